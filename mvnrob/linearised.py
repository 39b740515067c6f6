"""A chunk of inputs linearised: values, rows as far as they are computed, and what memory allows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._jac_cov import jac_cov_accumulate, jac_cov_norms
from .jacobian import LogitMap
from .noise import Noise

#: Numbers converted to float64 at a time.
_CONVERTED = 2**22


@dataclass
class Linearised:
    """What screening works on.

    ``values`` [b, G, C] float64: the logits' group means; ``weights`` [L, G]: the mean over all
    samples, and the jackknife's means that leave a group out; ``target`` int64 [b]; ``keys`` int64
    [b]: of the random directions; ``row_bytes``: half the byte budget, for rows of this chunk;
    ``double``: whether products of float32 rows are float64, for differences between the sums.
    """

    logits: LogitMap
    noise: Noise
    target: Tensor
    values: Tensor
    weights: Tensor
    keys: Tensor
    row_bytes: int
    double: bool = False

    @property
    def rows_at_once(self) -> int:
        """Rows (of all groups) of a single input that the budget holds."""
        numbers = self.logits.features
        if not self.noise.plain:  # rows by x and by e are there at the same time
            numbers += self.noise.dim
        row = self.values.shape[1] * numbers * self.logits.x.element_size()
        return max(2, self.row_bytes // row)

    @property
    def row_budget(self) -> int:
        """Rows (of all groups) that the budget holds for every input of the chunk."""
        return max(2, self.rows_at_once // len(self.target))

    @property
    def margins(self) -> Tensor:
        return margins_of(self.values, self.weights[0], self.target)

    def rows(self, classes: Tensor, known: Tensor | None = None) -> Tensor:
        """Gradients by e of ``classes`` [b, k]: ``[b, k, G, r]``, behind the ``known`` [b, m, G, r]."""
        if known is None:
            return self.noise.pull(self.logits.rows(classes))
        if not self.noise.plain:
            return torch.cat([known, self.noise.pull(self.logits.rows(classes))], 1)
        rows = self.logits.rows(classes, spare=known.shape[1])  # no second copy of the rows
        rows[:, : known.shape[1]] = known
        return rows

    def subset(self, rows: Tensor) -> Linearised:
        return replace(
            self,
            logits=self.logits.subset(rows),
            target=self.target[rows],
            values=self.values[rows],
            keys=self.keys[rows],
        )


def margin(own: Tensor, rivals: Tensor, earlier: Tensor) -> Tensor:
    """own - rivals; of two equal infinite logits the ``earlier`` one is on top, as in argmax."""
    both = own.isinf() & (own == rivals)
    sign = torch.where(earlier, math.inf, -math.inf).to(rivals)
    return torch.where(both, sign, own - rivals)


def margins_of(values: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Margins f_t - f_i of the weighted group means: ``[b, C]``, zero at the target."""
    used = weight > 0  # zero times an infinite logit is not a number
    mean = (values[:, used] * weight[used, None]).sum(1)
    earlier = target[:, None] <= torch.arange(mean.shape[1], device=mean.device)
    out = margin(mean.gather(1, target[:, None]), mean, earlier)
    return out.scatter(1, target[:, None], 0.0)


def mean_rows(rows: Tensor, weights: Tensor) -> Tensor:
    """``[b, k, G, r]`` and group weights ``[G]`` -> ``[b, k, r]``."""
    if rows.shape[2] == 1:
        return rows[:, :, 0]
    return torch.einsum("bkgr,g->bkr", rows, weights.to(rows))


def squarable(rows: Tensor) -> Tensor:
    """The rows, in float64 where float32 squares of some would over- or underflow."""
    if rows.dtype == torch.float64 or rows.numel() == 0:
        return rows
    size = torch.linalg.vector_norm(rows, math.inf, dim=-1)  # without a copy of the rows
    small = torch.where(size > 0, size, 1.0).amin()
    fits = (small > 1e-15) & (size.amax() < 1e15)
    return rows if bool(fits) else rows.double()


def exact_norms(problem: Linearised, order: Tensor, *, hold: bool) -> tuple[Tensor, Tensor | None]:
    """One streaming pass: norms ``[L, b, C]`` of every u_i, and the rows of the nearest rivals.

    Holds at most ``row_budget`` rows (of all groups) at a time. With ``hold``, half of the budget
    keeps the rows of the target and the first rivals in ``order``, which are most likely to survive.
    """
    target, row_budget = problem.target, problem.row_budget
    b, rivals = order.shape
    place = torch.zeros_like(target)
    norms = problem.values.new_zeros(len(problem.weights), b, rivals + 1)
    fits = 1 + rivals <= row_budget
    held_count = (1 + rivals if fits else max(1, row_budget // 2)) if hold else 1
    first = rivals if fits else max(1, held_count - 1)
    step = max(1, row_budget - held_count)
    starts = [(0, first)] + [(a, min(a + step, rivals)) for a in range(first, rivals, step)]
    held: Tensor | None = None
    for start, stop in starts:
        wanted = order[:, start:stop]
        if held is None:
            rows = problem.rows(torch.cat([target[:, None], wanted], 1))
            held = rows if held_count == rows.shape[1] else rows[:, :held_count].clone()
        else:
            rows = problem.rows(wanted, known=held[:, :1])
        for version, weight in enumerate(problem.weights):
            squares = jac_cov_norms(squarable(mean_rows(rows, weight)), place)[:, 1:]
            norms[version].scatter_(1, order[:, start:stop], squares.sqrt())
        del rows  # before the next ones come
    return norms, held if hold else None


def scatter_sums(problem: Linearised, classes: Tensor, rows: Tensor | None) -> Tensor:
    """sum_d u_d u_d^T over ``classes`` [b, m], the target first, once per weighting of the groups.

    ``rows`` [b, m, G, r]: theirs; None computes them again for each range of columns that fits the
    budget (at one backward pass per class and range). Returns ``[L, b, m, m]`` float64 for
    ``jac_cov_finalize`` with target 0.
    """
    b, count = classes.shape
    out = problem.values.new_zeros(len(problem.weights), b, count, count)
    place = torch.zeros_like(problem.target)
    if rows is not None:
        pieces = [rows]
    else:
        pieces = column_ranges(problem.logits, problem.noise, classes, problem.row_budget)
    for piece in pieces:
        for version, weight in enumerate(problem.weights):
            mean = mean_rows(piece, weight)
            if problem.double:
                for part in column_parts(mean):
                    jac_cov_accumulate(out[version], part.double(), place)
            else:
                jac_cov_accumulate(out[version], squarable(mean), place)
    # places that hold the target again: its row comes from another pass, other in its last bits,
    # and a difference of 1e-17 would be a rival with z = 0
    padding = classes == classes[:, :1]
    return out.masked_fill_(padding[:, :, None] | padding[:, None, :], 0.0)


def column_parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Columns of ``rows`` [b, m, r] in parts that may be converted to float64."""
    b, count, _ = rows.shape
    # a multiple of 1024 columns keeps jac_cov's sums those of a single call
    return rows.split(max(1024, _CONVERTED // (b * count) // 1024 * 1024), dim=2)


def column_ranges(
    logits: LogitMap, noise: Noise, classes: Tensor, row_budget: int
) -> Iterator[Tensor]:
    """The rows of ``classes`` by ranges of columns: row by row, only the range is kept.

    Half of ``row_budget`` is for the range, half for the rows that it is cut from.
    """
    b, count = classes.shape
    at_once = max(1, row_budget // 2)
    ranges = math.ceil(count / at_once)
    # a multiple of 1024 columns keeps jac_cov's sums those of a single call
    width = max(1024, math.ceil(noise.dim / ranges / 1024) * 1024)
    groups = len(logits.groups)
    for start in range(0, noise.dim, width):
        stop = min(start + width, noise.dim)
        piece = logits.x.new_empty(b, count, groups, stop - start)
        for first in range(0, count, at_once):
            part = classes[:, first : first + at_once]
            piece[:, first : first + at_once] = noise.pull(logits.rows(part))[..., start:stop]
        yield piece
        del piece  # before the next one comes
