"""Pathwise gradients of ``mvn_cdf``: the sampler differentiated with its points held fixed.

``torch.ops.mvnrob.mvn_cdf_pathwise`` gives the derivatives of what is sampled under a plan. Here they
are sampled until the tolerance is met: a quarter of the value's points first, then as many of the
rest as their spread over the 8 shifts asks for.

Tilted samples (csrc/plan/tilt.h) give slopes to log p: with V_s the sum of the weights of shift s and
S_s that of their derivatives, sum S_s / sum V_s, whose error is the spread of S_s - V_s times it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Two-sided 99 % of Student's t with 7 degrees of freedom.
T_99 = 3.4994832973505
_SHIFTS = 8
_TILE = 64
_BYTES = 64 * 2**20


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
    tilted: bool  # slopes are relative to p


class Slopes(NamedTuple):
    """Of some rows, float64, in the input's units."""

    upper: Tensor  # [m, n]
    lower: Tensor  # [m, n]
    error: Tensor  # [m, n] 99 % bound on each of them, in units of the standard deviations
    cov: Tensor | None  # [m, n, n] symmetric, half to each of a pair of entries
    cov_error: Tensor | None  # [m, n, n] 99 % bound on each entry
    exhausted: Tensor  # [m] cov is singular: its pivots leave the other variables no variance


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
    sd, wants_cov, tilted = how.standard_deviation, how.wants_cov, how.tilted
    device = how.seed.device
    upper = torch.where(how.takes_part, upper, math.inf)
    lower = None if lower is None else torch.where(how.takes_part, lower, -math.inf)
    variables = how.takes_part.sum(1)
    whole = wants_cov or tilted
    pivots = variables if whole else torch.minimum(how.n_pivots, variables)
    count = torch.arange(int(pivots.max()), device=device)
    order = torch.where(count < pivots[:, None], -1, -2)
    most = (how.n_points // (_SHIFTS * _TILE) * _TILE).clamp_min(_TILE)

    def call(rows, first, points):
        given = (
            upper[rows], matrix[rows], None if lower is None else lower[rows], how.seed[rows],
            order[rows], first, points,
        )  # fmt: skip
        tilt = torch.full(order[rows].shape, math.nan, dtype=torch.float64, device=device)

        def op(weight, wants_cov):
            return torch.ops.mvnrob.mvn_cdf_pathwise(
                *given, weight, how.compute_dtype, wants_cov, how.points, how.factored,
                tilt if tilted else None,
            )  # fmt: skip

        weight = torch.ones(len(points), _SHIFTS, dtype=torch.float64, device=device)
        if wants_cov and tilted:
            # Weighted so, the sums for cov are of each shift's S_s / V_s, and so is their spread.
            weight = points[:, None] / op(weight, False)[0]
        return op(weight, wants_cov)

    points = (most // 4 // _TILE * _TILE).clamp_min(_TILE)
    every = slice(None)
    value, to_upper, to_lower, to_cov, variance, found, _ = call(
        every, torch.zeros_like(points), points
    )

    def means():
        """Slopes to the limits, and their 99 % bounds in units of the standard deviations."""
        of_shift = value if tilted else points[:, None].double()
        each = of_shift.mean(1)[:, None]
        out, bounds = [], []
        for t in (to_upper, to_lower):
            mean = t.mean(1) / each
            rest = t - mean[:, None] * of_shift[:, :, None] if tilted else t
            bounds.append(rest.std(1) / each * (T_99 / _SHIFTS**0.5))
            out.append(mean)
        return (*out, torch.maximum(*bounds) * sd)

    def errors():
        """Bounds on slopes to limits and to cov, and the worst in units of what is asked for."""
        high, low, of_limits = means()

        def asked(largest):
            return (how.rel_tol * largest).clamp_min(max(how.abs_tol, 1e-300))

        largest = torch.maximum(high.abs(), low.abs()) * sd
        worst = of_limits.amax(1) / asked(largest.amax(1))
        if not wants_cov:
            return high, low, of_limits, None, worst
        each = sd[:, :, None] * sd[:, None, :] / (_SHIFTS * points)[:, None, None]
        of_cov = variance.sqrt() * (T_99 / (_SHIFTS * points))[:, None, None]
        of_pairs = variance.sqrt() * T_99 * each
        of_pairs[found < variables] = 0  # not used
        worst_pair = of_pairs.amax((1, 2)) / asked((to_cov.abs() * each).amax((1, 2)))
        return high, low, of_limits, of_cov, torch.maximum(worst, worst_pair)

    worst = errors()[-1]
    ratio = worst.nan_to_num(1e9, 1e9, 1e9).clamp(1, 1e9) ** (1 / 0.7)
    wanted = torch.minimum((points * ratio / _TILE).ceil() * _TILE, most.double()).long()
    more = ((worst > 1) & (wanted > points)).nonzero()[:, 0]
    if len(more):
        extra = (wanted - points)[more]
        out = call(more, points[more], extra)
        points = points.index_add(0, more, extra)
        for total, part in zip((value, to_upper, to_lower), out, strict=False):
            total[more] += part
        if wants_cov:
            to_cov[more] += out[3]
            variance[more] += out[4]
    high, low, of_limits, of_cov, _ = errors()
    return Slopes(
        high,
        low,
        of_limits,
        to_cov / (_SHIFTS * points).double()[:, None, None] if wants_cov else None,
        of_cov,
        found < variables,
    )
