"""Independent blocks of a row of ``mvn_cdf``: which of them are exact, and each as a row of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _ops

#: So small that nothing is screened for it; the first look of what is not exact.
_NO_TOLERANCE, _FEWEST = 1e-300, 512
_BYTES = 64 * 2**20
_BYTES_PER_ENTRY = 16  # of a matrix: its numbers, masks


class Parts(NamedTuple):
    """Blocks of some rows as rows of one width, filled up with variables without limits."""

    row: Tensor  # [m] of the batch
    index: Tensor  # [m, w] variables of it; 0 where filled
    filled: Tensor  # [m, w]

    def problem(
        self, upper: Tensor, cov: Tensor, lower: Tensor | None, seed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """What the op takes for them."""
        return (
            self.limits(upper, math.inf),
            self.matrices(cov),
            None if lower is None else self.limits(lower, -math.inf),
            seed[self.row],
        )

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
    """All blocks that ``[B, n]`` numbers from 0, those of about one size together; each one's variables
    in ascending order."""
    n = block.shape[1]
    row, variable = (block >= 0).nonzero(as_tuple=True)
    _, of, size = (row * (n + 1) + block[row, variable]).unique(
        return_inverse=True, return_counts=True
    )
    order = of.argsort(stable=True)
    row, variable, of = row[order], variable[order], of[order]
    first = size.cumsum(0) - size
    place = torch.arange(len(of), device=of.device) - first[of]
    width = torch.exp2(size.double().log2().ceil()).long().clamp_max(n)
    for wide in width.unique().tolist():
        found = (width == wide).nonzero()[:, 0]
        mine = (width == wide)[of]
        index = torch.zeros(len(found), wide, dtype=torch.int64, device=block.device)
        filled = torch.ones_like(index, dtype=torch.bool)
        at = torch.searchsorted(found, of[mine]), place[mine]
        index[at], filled[at] = variable[mine], False
        yield Parts(row[first[found]], index, filled)


def blocks_of_split_rows(
    upper: Tensor, cov: Tensor, lower: Tensor | None, seed: Tensor, live: Tensor, rows: Tensor
) -> Tensor:
    """``[B, n]`` int64: in such of the ``rows`` ``[B]`` where some blocks alone have exact answers and
    others have not, a positive number for the ``live`` variables ``[B, n]`` of each that has, and 0 for
    those of all others together; -1 elsewhere.

    Blocks are the connected components of the entries of ``cov`` that are not zero. Cost: ``O(n^2)``
    a row, and for rows of several blocks a call of ``mvn_cdf`` for all blocks of about one size.
    """
    n = live.shape[1]
    block = torch.full_like(live, -1, dtype=torch.int64)
    for some in rows.nonzero()[:, 0].split(max(1, _BYTES // (_BYTES_PER_ENTRY * n * n))):
        component = _components((cov[some] != 0) & live[some, :, None] & live[some, None, :])
        component.masked_fill_(~live[some], -1)
        apart = (component != component.amax(1, keepdim=True)) & live[some]
        block[some] = component.masked_fill_(~apart.any(1)[:, None], -1)
    exact = torch.zeros_like(live)
    for parts in parts_of(block):
        _, _, _, _, n_points, *_ = _ops.call(
            "mvn_cdf",
            *parts.problem(upper, cov, lower, seed),
            _NO_TOLERANCE, 0.0, _FEWEST, "auto", "float64", "lattice", False,
        )  # fmt: skip
        # A block's number is its first variable.
        exact[parts.row, parts.index[:, 0]] = n_points == 0
    taken = block >= 0
    exact = exact.gather(1, block.clamp_min(0)) & taken
    split = exact.any(1) & (taken & ~exact).any(1)
    return torch.where(exact, block + 1, 0).masked_fill_(~(taken & split[:, None]), -1)


def _components(joined: Tensor) -> Tensor:
    """Of graphs ``[B, m, m]``: for each node the smallest number in its component ``[B, m]``."""
    m = joined.shape[1]
    number = torch.arange(m, device=joined.device).expand(len(joined), m)
    joined = joined | joined.mT | torch.eye(m, dtype=torch.bool, device=joined.device)
    while True:
        lowest = torch.where(joined, number[:, None, :], m).amin(2)
        lowest = lowest.gather(1, lowest)
        if bool((lowest == number).all()):
            return number
        number = lowest
