"""A chunk of inputs linearised: values, rows as far as they are computed, and what memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ._jac_cov import jac_cov_accumulate, jac_cov_norms
from ._standard_normal import standard_normal
from .jacobian import LogitMap
from .network import TooLarge
from .noise import PROBES, Noise, row_keys

Answer = TypeVar("Answer")

#: Numbers converted to float64 at a time.
_CONVERTED = 2**22
#: Bytes that are always taken for granted: less is no reason to refuse a problem.
LEAST_BYTES = 2**24
#: Largest entries of float64 rows whose squares, and those of numbers 1e-14 times as large, are numbers.
_SQUARABLE = (1e-140, 1e140)
#: Binary exponent of rescaled rows: rows of other classes may be 1e-260 times as large.
_RESCALED = 400


class OutOfRange(Exception):
    """Squares of float64 derivatives would over- or underflow: see :meth:`Linearised.rescaled`."""


@dataclass
class Linearised:
    """What screening works on.

    ``values`` [b, G, C] float64: the logits' group means; ``weights`` [L, G]: the mean over all
    samples, and the jackknife's means that leave a group out; ``target`` int64 [b]; ``keys`` int64
    [b]: of the random directions; ``max_bytes``: the byte budget; ``pair_bytes``: what a pair of surviving
    classes takes of it; ``double``: whether products of float32 rows are float64, for differences
    between the sums.
    """

    logits: LogitMap
    noise: Noise
    target: Tensor
    values: Tensor
    weights: Tensor
    keys: Tensor
    max_bytes: int
    pair_bytes: int
    double: bool = False

    @property
    def row_bytes(self) -> int:
        """Half the byte budget, less what the covariances of all classes would take, is for rows; at
        least a quarter."""
        covariances = self.pair_bytes * self.values.shape[2] ** 2
        return max(self.max_bytes // 4, (self.max_bytes - covariances) // 2)

    def inputs_at_once(self, bytes_each: int) -> int:
        """Inputs whose sums fit in the budget beside the rows."""
        return max(1, self.max_bytes // 2 // max(1, bytes_each))

    def check_pairs(self, count: int) -> None:
        what = f"the covariances of the {count} classes that matter"
        self.check_fits(self.pair_bytes * count**2, what)

    def check_fits(self, needed: int, what: str) -> None:
        """An error where one input needs more than the budget."""
        if needed > max(self.max_bytes, LEAST_BYTES):
            raise TooLarge(
                f"{self.logits.network.op}: max_bytes must hold {what}, {needed} bytes for one input, "
                f"got {self.max_bytes}; a larger abs_tol or a smaller sigma keeps fewer classes"
            )

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
            return pulled_rows(self.logits, self.noise, classes)
        if not self.noise.plain:
            return torch.cat([known, pulled_rows(self.logits, self.noise, classes)], 1)
        # no second copy of the rows
        rows = pulled_rows(self.logits, self.noise, classes, spare=known.shape[1])
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

    def rescaled(self) -> Linearised:
        """Logits and derivatives of each input times a power of two, which changes neither z nor R,
        such that a gradient along a random cotangent has entries of about 1e120: so have the classes
        of the steepest logits, and the squares of the others' are numbers too.

        The target's logit becomes zero: what overflows then is decided whatever the noise is.
        """
        classes = self.values.shape[2]
        keys = row_keys(0, PROBES, self.logits.inputs)
        cotangent = standard_normal(keys, 1, 1, classes, torch.float64) / classes
        size = self.noise.pull(self.logits.vjp(cotangent)).abs().amax((1, 2))
        exponent = torch.frexp(torch.where(size.isfinite(), size, 1.0).double()).exponent
        scale = torch.exp2((_RESCALED - exponent).clamp(-1000, 1000).double())
        own = self.values.gather(2, self.target[:, None, None].expand(-1, self.values.shape[1], 1))
        values = self.values - torch.where(own.isfinite(), own, 0.0)
        logits = self.logits.scaled(scale)
        return replace(self, logits=logits, values=values * scale[:, None, None])


def in_range(problem: Linearised, solve: Callable[[Linearised], Answer]) -> Answer:
    """``solve`` of the problem, rescaled if its derivatives turn out to need that."""
    try:
        return solve(problem)
    except OutOfRange:
        return solve(problem.rescaled())


def pulled_rows(logits: LogitMap, noise: Noise, classes: Tensor, spare: int = 0) -> Tensor:
    """Gradients by e of ``classes`` [b, k] behind ``spare`` rows of zeros: ``[b, spare + k, G, r]``.

    Raises:
        OutOfRange: some float64 row cannot be squared, and nothing has been rescaled yet.
    """
    rows = noise.pull(logits.rows(classes, spare=spare))
    if rows.dtype == torch.float64 and logits.scale is None and rows.numel():
        check_range(torch.linalg.vector_norm(rows, math.inf, dim=-1))
    return rows


def check_range(size: Tensor) -> None:
    """Of the largest entries of rows."""
    low, high = _SQUARABLE
    if ((size > high) | ((size > 0) & (size < low))).any():
        raise OutOfRange


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
            with problem.logits.meter.clock("covariance"):
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
        with problem.logits.meter.clock("covariance"):
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
            piece[:, first : first + at_once] = pulled_rows(logits, noise, part)[..., start:stop]
        yield piece
        del piece  # before the next one comes
