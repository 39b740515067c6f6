"""Mixed second derivatives of ``mvn_cdf`` by samples: slopes of conditional probabilities.

With a a limit of variable i, in units of the standard deviations, d2P/da db = +-phi(a) dQ/db, Q the
probability that the others keep their limits given X_i = a: one conditional problem, whose samples are
differentiated (_mvn_cdf_pathwise.py), gives these for all limits b, where Plackett's formula takes a
conditional probability for each of them. Where a is conditioned on and where b is, both give d2P/da db.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import _mvn_cdf_pathwise
from ._mvn_cdf_conditional import (
    FEWEST,
    Rows,
    Units,
    problem_of,
    rows_at_once,
    signed,
)
from ._mvn_cdf_degenerate import is_thin
from ._mvn_cdf_pathwise import FEW_DIRECTIONS, Sampled

#: What a conditional problem's slopes cost, in its probability.
_PRICE = 2.5
#: Points that each may take, whatever the budget.
_LEAST = 8 * FEWEST
#: An error counts as no less than this share of the other one's when the mean is taken: 8 shifts may agree
#: by chance.
_LEAST_ERROR = 0.25


class How(NamedTuple):
    """How the rows [B] are sampled."""

    takes_part: Tensor  # [B, n]
    budget: Tensor  # [B] most points of a row's conditional problems together
    n_pivots: Tensor  # [B]
    max_points: int
    sampled: Sampled
    abs_tol: float  # of each, before units
    #: Of tilted rows only what both limits' conditional problems say alike is known.
    both: bool


def of_pairs(rows: Rows, singles: Units, pairs: Units, which: Tensor, how: How) -> Tensor:
    """density * Q / exp(log_unit) of each pair, as ``conditional`` gives it, of the rows that ``which`` [B]
    marks and where it takes less than that; NaN of the others, and where it is not known to the tolerance.
    ``singles`` are the limits whose densities matter."""
    batch, sides, n = rows.limits.shape
    device, limits = which.device, sides * n
    out = torch.full_like(pairs.log_density, math.nan)
    place, most = torch.zeros_like(rows.seed), max(how.max_points, FEWEST)
    of_row = torch.bincount(pairs.row, minlength=batch)
    which = which & (of_row > _PRICE) & (how.n_pivots > FEW_DIRECTIONS)
    numbers = (which & ~is_thin(rows, which)).nonzero()[:, 0]
    if len(numbers) == 0:
        return out
    for some in numbers.split(rows_at_once(4 * limits * limits)):
        place[some] = torch.arange(len(some), device=device)
        here = torch.zeros_like(which).index_fill_(0, some, True)
        number = here[pairs.row].nonzero()[:, 0]
        mine = pairs.where(number)
        first, second = mine.limits(n)
        at = place[mine.row], first, second
        wanted = torch.zeros(len(some), limits, limits, dtype=torch.bool, device=device)
        wanted[at] = True
        wanted |= wanted.mT.clone()
        units = singles.of(here)
        limit = place[units.row], *units.limits(n)
        there = torch.zeros_like(wanted[:, 0])
        there[limit] = True
        units = units.where(_cover(wanted, there)[limit])
        count = torch.bincount(units.row, minlength=batch)
        units = units.of(here & (_PRICE * count < of_row))
        if len(units.row) == 0:
            continue
        points = (how.budget / count.clamp_min(1)).clamp_min(_LEAST).clamp_max(most)
        value, error = _of_rows(rows, units, points.long(), (place, len(some)), how)
        tilted = None if how.sampled.tilted is None else how.sampled.tilted[some, None, None]
        value, error = _joined(value, error, tilted if how.both else None)
        known = (error <= _allowed(rows, value, tilted, how))[at]
        value, error = signed(mine, value[at], sides), error[at]
        known &= value >= -error  # a density times a probability
        if rows.log_unit is not None:
            unit = rows.log_unit
            if how.sampled.tilted is not None:
                unit = unit.masked_fill(how.sampled.tilted, 0.0)
            value = value * (-unit[mine.row]).exp()
        known &= value.abs() < math.inf  # units at the end of the format
        out[number] = torch.where(known, value, math.nan)
    return out


def _of_rows(
    rows: Rows, units: Units, points: Tensor, places: tuple[Tensor, int], how: How
) -> tuple[Tensor, Tensor]:
    """d2P of the units' limits and all limits ``[m, k, k]``, rows in their ``places``, and 99 % bounds, infinite
    for other limits than the units'. ``points`` [B]: most of each unit."""
    place, count = places
    _, sides, n = rows.limits.shape
    value = torch.zeros(count, sides * n, sides * n, dtype=torch.float64, device=place.device)
    error = torch.full_like(value, math.inf)
    groups = [(False, units)]
    if how.sampled.tilted is not None:
        groups = [(tilted, units.of(how.sampled.tilted == tilted)) for tilted in (False, True)]
    chunk = rows_at_once(rows.matrix[0].numel())
    for tilted, group in groups:
        for first in range(0, len(group.row), chunk):
            some = slice(first, first + chunk)
            part = group.where(some)
            at = place[part.row], *part.limits(n)
            value[at], error[at] = _conditional_slopes(rows, part, points[part.row], how, tilted)
    return value, error


def _cover(wanted: Tensor, there: Tensor) -> Tensor:
    """[b, k] limits to condition on: of each pair, of those that are ``there``, the one that is in more of them,
    or both."""
    count = torch.where(there, wanted.sum(2), 0)
    return (wanted & (count[:, :, None] >= count[:, None, :])).any(2)


def _joined(value: Tensor, error: Tensor, both: Tensor | None) -> tuple[Tensor, Tensor]:
    """From what either limit's conditional problem says, the better known one counting for more, and its
    99 % bound: infinite where neither was taken, or not both of the rows that ``both`` [b, 1, 1] marks."""
    none = ~(error < math.inf)  # or not a number
    least = torch.maximum(error, _LEAST_ERROR * error.mT.masked_fill(none.mT, 0.0))
    weight = (1 / least.square().clamp_min(1e-300)).masked_fill_(none, 0.0)
    total = weight + weight.mT
    share = torch.where(total > 0, weight / total, 0.0)
    found, value = value, torch.where(share > 0, share * value, 0.0)
    square = torch.where(share > 0, share * error, 0.0).square()
    bound = (square + square.mT).sqrt_().masked_fill_(total == 0, math.inf)
    # Where they contradict each other one has not seen what the other has.
    gap = (found - found.mT).abs()
    bound = torch.where((gap > error + error.mT) & (gap > bound), gap, bound)
    if both is not None:
        bound.masked_fill_(both & (none | none.mT), math.inf)
    return value + value.mT, bound


def _allowed(rows: Rows, value: Tensor, tilted: Tensor | None, how: How) -> Tensor:
    """The larger of the tolerances, in the units of ``_conditional_slopes``."""
    absolute = torch.full_like(value[:, :1, :1], how.abs_tol)
    if tilted is not None:
        absolute.masked_fill_(tilted, 0.0)
    return torch.maximum(absolute, rows.options[1] * value.abs().amax((1, 2), keepdim=True))


def _conditional_slopes(
    rows: Rows, units: Units, points: Tensor, how: How, tilted: bool
) -> tuple[Tensor, Tensor]:
    """d2P of each unit's limit and all limits of the others ``[m, k]``, and 99 % bounds: absolute, or where
    tilted in the rows' units."""
    (upper, matrix, lower, seed), _ = problem_of(rows, units, torch.float64)
    takes_part = how.takes_part[units.row].scatter_(1, units.index, False)
    # Of a tilted row the scale is known afterwards, and only the largest slope counts before.
    density = torch.ones_like(units.log_density) if tilted else units.log_density.exp()
    samples = _mvn_cdf_pathwise.Samples(
        seed, takes_part, points, how.n_pivots[units.row], density[:, None].expand(takes_part.shape),
        0.0 if tilted else how.abs_tol, rows.options[1], how.sampled.compute_dtype, rows.rest[2], rows.factored,
        False, tilted, first=FEWEST,
    )  # fmt: skip
    out = _mvn_cdf_pathwise.slopes((upper, lower), matrix, samples)
    value, error, scale = out.upper, out.error, density
    if tilted:
        unit = 0.0 if rows.log_unit is None else rows.log_unit[units.row]
        scale = (units.log_density + out.log_unit - unit).exp()
        error = error * scale[:, None]
    scale = torch.where(units.side[:, 0] == 0, scale, -scale)
    if rows.limits.shape[1] == 2:
        to_lower = torch.zeros_like(value) if out.lower is None else out.lower
        value, error = torch.cat([value, to_lower], 1), torch.cat([error, error], 1)
    return scale[:, None] * value, error
