"""Independent blocks of a row of ``mvn_cdf``: which of its variables are in exact ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _load  # noqa: F401  (the schema)

#: So small that nothing is screened for it; the first look of what is not exact.
_NO_TOLERANCE, _FEWEST = 1e-300, 512


def in_exact_blocks(
    upper: Tensor, cov: Tensor, lower: Tensor | None, seed: Tensor, live: Tensor, rows: Tensor
) -> Tensor:
    """``[B, n]``: True for those of the ``live`` variables ``[B, n]`` whose block alone has an exact
    answer, in such of the ``rows`` ``[B]`` where others have not; False elsewhere.

    Blocks are the connected components of the entries of ``cov`` that are not zero. Cost: ``O(n^2)``
    a row, and for one of several blocks a call of ``mvn_cdf`` for all of them.
    """
    out = torch.zeros_like(live)
    for row in rows.nonzero()[:, 0].tolist():
        some = live[row].nonzero()[:, 0]
        joined = cov[row][some[:, None], some] != 0
        if len(some) == 0 or bool(joined[0].all()):
            continue  # one block
        block = _components(joined)
        names = block.unique()
        if len(names) == 1:
            continue
        mine = torch.zeros(len(names), live.shape[1], dtype=torch.bool, device=live.device)
        mine[:, some] = block == names[:, None]
        _, _, _, _, n_points, *_ = torch.ops.mvnrob.mvn_cdf(
            torch.where(mine, upper[row], math.inf),
            cov[row].expand(len(names), *cov[row].shape),
            None if lower is None else torch.where(mine, lower[row], -math.inf),
            seed[row].expand(len(names)).contiguous(),
            _NO_TOLERANCE, 0.0, _FEWEST, "auto", "float64", "lattice", False,
        )  # fmt: skip
        exact = n_points == 0
        if not bool(exact.all()):
            out[row] = mine[exact].any(0)
    return out


def _components(joined: Tensor) -> Tensor:
    """Of a graph ``[m, m]``: for each of its nodes the smallest number in its component."""
    m = len(joined)
    number = torch.arange(m, device=joined.device)
    joined = joined | joined.mT | torch.eye(m, dtype=torch.bool, device=joined.device)
    while True:
        lowest = torch.where(joined, number, m).amin(1)
        lowest = lowest[lowest]
        if bool((lowest == number).all()):
            return number
        number = lowest
