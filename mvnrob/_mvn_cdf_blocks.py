"""Independent blocks of a row of ``mvn_cdf``: which of them are exact, and each as a row of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _load  # noqa: F401  (the schema)

#: So small that nothing is screened for it; the first look of what is not exact.
_NO_TOLERANCE, _FEWEST = 1e-300, 512


class Parts(NamedTuple):
    """Blocks of some rows as rows of one width, filled up with variables without limits."""

    row: Tensor  # [m] of the batch
    index: Tensor  # [m, w] variables of it; 0 where filled
    filled: Tensor  # [m, w]

    def limits(self, t: Tensor, empty: float) -> Tensor:
        return torch.where(self.filled, empty, t[self.row[:, None], self.index])

    def matrices(self, cov: Tensor) -> Tensor:
        out = cov[self.row[:, None, None], self.index[:, :, None], self.index[:, None, :]]
        out = out.masked_fill(self.filled[:, :, None] | self.filled[:, None, :], 0.0)
        return out + torch.diag_embed(self.filled.to(out.dtype))

    def add(self, total: Tensor, part: Tensor) -> None:
        """``part`` ``[m, w]`` or ``[m, w, w]`` to ``total`` ``[B, n]`` or ``[B, n, n]``."""
        if part.dim() == 2:
            at, filled = (self.row[:, None], self.index), self.filled
        else:
            at = self.row[:, None, None], self.index[:, :, None], self.index[:, None, :]
            filled = self.filled[:, :, None] | self.filled[:, None, :]
        total.index_put_(at, part.masked_fill(filled, 0.0), accumulate=True)


def parts_of(block: Tensor) -> Iterator[Parts]:
    """All blocks that ``[B, n]`` numbers from 0, those of about one size together."""
    of_width: dict[int, list] = {}
    for row in (block >= 0).any(1).nonzero()[:, 0].tolist():
        for name in block[row].unique().tolist():
            if name < 0:
                continue
            index = (block[row] == name).nonzero()[:, 0]
            width = min(1 << (len(index) - 1).bit_length(), block.shape[1])
            of_width.setdefault(width, []).append((row, index))
    for width, found in of_width.items():
        index = torch.zeros(len(found), width, dtype=torch.int64, device=block.device)
        filled = torch.ones_like(index, dtype=torch.bool)
        for k, (_, i) in enumerate(found):
            index[k, : len(i)] = i
            filled[k, : len(i)] = False
        yield Parts(torch.tensor([row for row, _ in found], device=block.device), index, filled)


def blocks_of_split_rows(
    upper: Tensor, cov: Tensor, lower: Tensor | None, seed: Tensor, live: Tensor, rows: Tensor
) -> Tensor:
    """``[B, n]`` int64: in such of the ``rows`` ``[B]`` where some blocks alone have exact answers and
    others have not, 1, 2, ... for the ``live`` variables ``[B, n]`` of each that has, and 0 for those
    of all others together; -1 elsewhere.

    Blocks are the connected components of the entries of ``cov`` that are not zero. Cost: ``O(n^2)``
    a row, and for one of several blocks a call of ``mvn_cdf`` for all of them.
    """
    out = torch.full_like(live, -1, dtype=torch.int64)
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
        if bool(exact.any()) and not bool(exact.all()):
            number = torch.where(exact, exact.cumsum(0), 0)
            out[row, some] = (mine[:, some] * number[:, None]).sum(0)
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
