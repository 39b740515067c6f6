"""Pathwise gradients of ``mvn_cdf``: the sampler differentiated with its points held fixed.

``torch.ops.mvnrob.mvn_cdf_pathwise`` gives the derivatives of what is sampled under a plan. Here they
are sampled until the tolerance is met: some of the points first, then as many of the rest as their
spread over the 8 shifts asks for.

Tilted samples (csrc/plan/tilt.h) give slopes to log p: with V_s the sum of the weights of shift s and
S_s that of their derivatives, sum S_s / sum V_s, whose error is the spread of S_s - V_s times it.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import _ops
from ._mvn_cdf_conditional import Units

#: Two-sided 99 % of Student's t with 7 degrees of freedom.
T_99 = 3.4994832973505
_SHIFTS = 8
_TILE = 64
_BYTES = 64 * 2**20
#: Below it the smaller side has digits of its own: plan/row_plan.h tilts p, or unites 1 - p.
SMALL = 0.05
#: In so few directions the slopes of tilted samples jump in step at all shifts, whose spread then says
#: nothing; the conditional problems have a direction less, and each its own error.
FEW_DIRECTIONS = 4
#: Errors are expected to fall like N^-_RATE. Points are doubled at least.
_RATE, _LEAST_GROWTH = 0.7, 2.0
#: Of fewer than _FEW times the few points that are spent first the shifts may not see everything: their bounds
#: must be within this share of the tolerance.
_FEW, _CAUTION = 4, 0.4


class Samples(NamedTuple):
    """How some rows are sampled, and when their slopes are known well enough."""

    seed: Tensor  # [m]
    takes_part: Tensor  # [m, n]
    n_points: Tensor  # [m] of all shifts: the most that are spent
    n_pivots: Tensor  # [m]
    standard_deviation: Tensor  # [m, n]
    abs_tol: float  # in units of the standard deviations; 0 where tilted
    rel_tol: float  # relative to the largest slope
    compute_dtype: str
    points: str
    factored: bool
    wants_cov: bool
    tilted: bool
    relative: bool = False  # slopes are relative to p, of tilted samples
    first: int = 0  # few points of all shifts that are spent first; 0: a quarter


class Slopes(NamedTuple):
    """Of some rows, float64, in the input's units."""

    upper: Tensor  # [m, n]
    lower: Tensor | None  # [m, n] where there are lower limits
    error: Tensor  # [m, n] 99 % bound on each of them, in units of the standard deviations
    cov: Tensor | None  # [m, n, n] symmetric, half to each of a pair of entries
    cov_error: Tensor | None  # [m, n, n] 99 % bound on each entry
    exhausted: Tensor  # [m] cov is singular: its pivots leave the other variables no variance
    log_unit: Tensor  # [m] logarithms of the slopes' units, unless relative; 0 without a tilt
    points: Tensor  # [m] of all shifts, that were spent


class Sampled(NamedTuple):
    """Rows [B] by what their samples are good for."""

    some: Tensor  # their samples can be differentiated
    tilted: Tensor | None  # of these, those whose digits of a small p were asked for; none: no row
    near_one: Tensor | None  # p is near 1, and digits of 1 - p were asked for; none: no row
    compute_dtype: str


def sampled_rows(
    prob: Tensor,
    complement: Tensor,
    n_points: Tensor,
    n_pivots: Tensor,
    digits: Tensor | None,
    abs_tol: float,
    method: str,
    compute_dtype: str,
) -> Sampled:
    """Of the values' rows; ``digits`` [B]: the relative tolerance counts."""
    if compute_dtype == "auto":
        compute_dtype = "float32" if abs_tol >= 1e-5 else "float64"
    integrated = (n_points > 0) & (n_pivots > 0) & ~prob.isnan()
    if digits is None:
        return Sampled(integrated & (prob > 0), None, None, compute_dtype)
    near_one = integrated & digits & (complement < SMALL)
    some = integrated & ~near_one
    if compute_dtype != "float64" or method != "auto":
        return Sampled(some & (prob > 0), None, near_one, compute_dtype)
    # Digits of a small p: its samples were tilted, or would have been had they not sufficed.
    small = some & digits & (prob < SMALL)
    flat = small & (n_pivots <= FEW_DIRECTIONS)
    tilted = small & ~flat
    return Sampled(some & ~flat & (tilted | (prob > 0)), tilted, near_one, compute_dtype)


def that_take_part(limits: Tensor, dead: Tensor, units: Units) -> Tensor:
    """[B, n] variables that are sampled, of those with limits ``[B, 1 or 2, n]``: with the ``units`` whose
    densities matter, those that hardly ever keep a limit. One that is far inside is as good as none."""
    takes_part = limits[:, 0] < 0
    if limits.shape[1] == 2:
        takes_part |= limits[:, 1] > 0
    takes_part &= ~dead
    takes_part[units.row, units.index[:, 0]] = True
    return takes_part


def pivots(how: Samples) -> Tensor:
    """[m] variables that have points of their own, of those that take part; the others are completed."""
    variables = how.takes_part.sum(1)
    if how.wants_cov or how.tilted:
        return variables
    return torch.minimum(how.n_pivots, variables)


def slopes(limits: tuple[Tensor, Tensor | None], matrix: Tensor, how: Samples) -> Slopes:
    """Slopes of these rows to their limits and, where asked, to cov.

    Fewer than ``how.n_points`` are spent where every slope is known to the larger of the tolerances.
    For cov, and where tilted, all variables that take part are sampled: given the pivots the others
    count as independent of each other, and are not tilted.
    """
    m, n = how.takes_part.shape
    each = 8 * (4 * _SHIFTS * n + (3 * n * n if how.wants_cov else 0))
    chunk = max(1, _BYTES // each)
    if m <= chunk:
        return _slopes(*limits, matrix, how)
    parts = []
    for some in torch.arange(m, device=how.seed.device).split(chunk):
        mine = how._replace(
            seed=how.seed[some],
            takes_part=how.takes_part[some],
            n_points=how.n_points[some],
            n_pivots=how.n_pivots[some],
            standard_deviation=how.standard_deviation[some],
        )
        parts.append(_slopes(*(t if t is None else t[some] for t in limits), matrix[some], mine))
    return Slopes(*(None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True)))


def _slopes(upper: Tensor, lower: Tensor | None, matrix: Tensor, how: Samples) -> Slopes:
    sd, wants_cov, tilted, relative = (
        how.standard_deviation,
        how.wants_cov,
        how.tilted,
        how.relative,
    )
    device = how.seed.device
    upper = torch.where(how.takes_part, upper, math.inf)
    lower = None if lower is None else torch.where(how.takes_part, lower, -math.inf)
    variables, sampled = how.takes_part.sum(1), pivots(how)
    count = torch.arange(int(sampled.max()), device=device)
    order = torch.where(count < sampled[:, None], -1, -2)
    most = (how.n_points // (_SHIFTS * _TILE) * _TILE).clamp_min(_TILE)

    def call(rows, first, points):
        given = (
            upper[rows], matrix[rows], None if lower is None else lower[rows], how.seed[rows],
            order[rows], first, points,
        )  # fmt: skip
        tilt = None
        if tilted:
            tilt = torch.full(order[rows].shape, math.nan, dtype=torch.float64, device=device)

        def op(weight, wants_cov):
            return _ops.call(
                "mvn_cdf_pathwise",
                *given,
                weight,
                how.compute_dtype,
                wants_cov,
                how.points,
                how.factored,
                tilt,
            )

        weight = torch.ones(len(points), _SHIFTS, dtype=torch.float64, device=device)
        if wants_cov and relative:
            # Weighted so, the sums for cov are of each shift's S_s / V_s, and so is their spread.
            weight = points[:, None] / op(weight, False)[0]
        return op(weight, wants_cov)

    first = torch.full_like(most, how.first // _SHIFTS) if how.first else most // 4
    points = (first // _TILE * _TILE).clamp_min_(_TILE)
    every = slice(None)
    value, to_upper, to_lower, to_cov, variance, found, log_unit = call(
        every, torch.zeros_like(points), points
    )

    def means():
        """Slopes to the limits of each side, and 99 % bounds: on them, in units of the standard
        deviations, and on those to cov."""
        each = 1 / (value.mean(1) if relative else points.double())[:, None]
        of_side, bounds = [], []
        for t in (to_upper,) if lower is None else (to_upper, to_lower):
            spread, mean = torch.std_mean(t, 1)
            if relative:
                spread = (t - (mean * each)[:, None] * value[:, :, None]).std(1)
            of_side.append(mean * each)
            bounds.append(spread)
        of_limits = functools.reduce(torch.maximum, bounds) * (each * sd * (T_99 / _SHIFTS**0.5))
        if not wants_cov:
            return of_side, of_limits, None
        return of_side, of_limits, variance.sqrt() * (T_99 / (_SHIFTS * points))[:, None, None]

    def worst(of_side, of_limits, of_cov):
        """The largest bound in units of what is asked for."""

        def asked(largest):
            tolerance = (how.rel_tol * largest).clamp_min(max(how.abs_tol, 1e-300))
            if not how.first:
                return tolerance
            return torch.where(_SHIFTS * points < _FEW * how.first, _CAUTION, 1.0) * tolerance

        largest = functools.reduce(torch.maximum, (t.abs() for t in of_side)) * sd
        out = of_limits.amax(1) / asked(largest.amax(1))
        if not wants_cov:
            return out
        each = sd[:, :, None] * sd[:, None, :]
        of_pairs = of_cov * each
        of_pairs[found < variables] = 0  # not used
        largest = to_cov.abs() * (each / (_SHIFTS * points)[:, None, None])
        return torch.maximum(out, of_pairs.amax((1, 2)) / asked(largest.amax((1, 2))))

    known = means()
    while True:
        error = worst(*known)
        ratio = error.nan_to_num(1e9, 1e9, 1e9).clamp(1, 1e9) ** (1 / _RATE)
        wanted = (points * ratio.clamp_min(_LEAST_GROWTH) / _TILE).ceil() * _TILE
        wanted = torch.minimum(wanted, most.double()).long()
        more = ((error > 1) & (wanted > points)).nonzero()[:, 0]
        if len(more) == 0:
            break
        first = points[more]
        extra = wanted[more] - first
        out = call(more, first, extra)
        points.index_add_(0, more, extra)
        totals = [value, to_upper, to_lower, to_cov, variance]
        for total, part in zip(totals, out, strict=False):
            if total.numel():  # what is not wanted is empty
                total.index_add_(0, more, part)
        known = means()
    of_side, of_limits, of_cov = known
    return Slopes(
        of_side[0],
        None if lower is None else of_side[1],
        of_limits,
        to_cov / (_SHIFTS * points).double()[:, None, None] if wants_cov else None,
        of_cov,
        found < variables,
        log_unit,
        _SHIFTS * points,
    )
