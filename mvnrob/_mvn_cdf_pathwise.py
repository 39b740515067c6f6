"""Pathwise gradients of ``mvn_cdf``: the sampler differentiated with its points held fixed.

``torch.ops.mvnrob.mvn_cdf_pathwise`` gives the derivatives of what is sampled under a plan. Here they
are sampled until the tolerance is met: a quarter of the value's points first, then as many of the
rest as their spread over the 8 shifts asks for.
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


class Slopes(NamedTuple):
    """Of some rows, float64, in the input's units."""

    upper: Tensor  # [m, n]
    lower: Tensor  # [m, n]
    error: Tensor  # [m, n] 99 % bound on each of them, in units of the standard deviations
    cov: Tensor | None  # [m, n, n] symmetric, half to each of a pair of entries
    cov_error: Tensor | None  # [m, n, n] 99 % bound on each entry
    exhausted: Tensor  # [m] cov is singular: its pivots leave the other variables no variance


def slopes(
    limits: tuple[Tensor, Tensor | None],
    cov: Tensor,
    seed: Tensor,
    takes_part: Tensor,
    n_points: Tensor,
    n_pivots: Tensor,
    tolerance: Tensor,
    standard_deviation: Tensor,
    compute_dtype: str,
    points: str,
    wants_cov: bool,
) -> Slopes:
    """Slopes of these rows to their limits and, where asked, to cov.

    ``n_points`` [m] of all shifts are the most that are spent; fewer where every slope is known to
    ``tolerance`` [m], in units of the standard deviations. For cov all variables that take part are
    sampled, since given the pivots the others count as independent of each other.
    """
    m, n = seed.shape[0], cov.shape[-1]
    each = 8 * (4 * _SHIFTS * n + (3 * n * n if wants_cov else 0))
    chunk = max(1, _BYTES // each)
    parts = []
    for some in torch.arange(m, device=seed.device).split(chunk):
        whole = len(some) == m
        pick = (lambda t: t) if whole else (lambda t, some=some: t[some])
        parts.append(
            _slopes(
                *(t if t is None else pick(t) for t in limits),
                *(
                    pick(t)
                    for t in (
                        cov, seed, takes_part, n_points, n_pivots, tolerance, standard_deviation
                    )
                ),
                compute_dtype,
                points,
                wants_cov,
            )
        )  # fmt: skip
    if len(parts) == 1:
        return parts[0]
    return Slopes(*(None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True)))


def _slopes(
    upper,
    lower,
    cov,
    seed,
    takes_part,
    n_points,
    n_pivots,
    tolerance,
    sd,
    compute_dtype,
    point_set,
    wants_cov,
) -> Slopes:
    upper = torch.where(takes_part, upper, math.inf)
    lower = None if lower is None else torch.where(takes_part, lower, -math.inf)
    variables = takes_part.sum(1)
    pivots = variables if wants_cov else torch.minimum(n_pivots, variables)
    count = torch.arange(int(pivots.max()), device=seed.device)
    order = torch.where(count < pivots[:, None], -1, -2)
    most = (n_points // (_SHIFTS * _TILE) * _TILE).clamp_min(_TILE)

    def call(rows, first, points):
        return torch.ops.mvnrob.mvn_cdf_pathwise(
            upper[rows], cov[rows], None if lower is None else lower[rows], seed[rows],
            order[rows], first, points,
            torch.ones(len(points), _SHIFTS, dtype=torch.float64, device=seed.device),
            compute_dtype, wants_cov, point_set,
        )  # fmt: skip

    points = (most // 4 // _TILE * _TILE).clamp_min(_TILE)
    every = slice(None)
    _, to_upper, to_lower, to_cov, variance, found = call(every, torch.zeros_like(points), points)

    def errors():
        """99 % bounds in units of the standard deviations."""
        spread = [
            (t / points[:, None, None]).std(1) * (T_99 / _SHIFTS**0.5) for t in (to_upper, to_lower)
        ]
        of_limits = torch.maximum(*spread) * sd
        if not wants_cov:
            return of_limits, None, of_limits.amax(1)
        of_cov = variance.sqrt() * (T_99 / (_SHIFTS * points))[:, None, None]
        of_pairs = of_cov * sd[:, :, None] * sd[:, None, :]
        of_pairs[found < variables] = 0  # not used
        return of_limits, of_cov, torch.maximum(of_limits.amax(1), of_pairs.amax((1, 2)))

    worst = errors()[2]
    ratio = (worst / tolerance).nan_to_num(1e9, 1e9, 1e9).clamp(1, 1e9) ** (1 / 0.7)
    wanted = torch.minimum((points * ratio / _TILE).ceil() * _TILE, most.double()).long()
    more = ((worst > tolerance) & (wanted > points)).nonzero()[:, 0]
    if len(more):
        extra = (wanted - points)[more]
        out = call(more, points[more], extra)
        points = points.index_add(0, more, extra)
        to_upper[more] += out[1]
        to_lower[more] += out[2]
        if wants_cov:
            to_cov[more] += out[3]
            variance[more] += out[4]
    of_limits, of_cov, _ = errors()
    all_points = (_SHIFTS * points).double()
    return Slopes(
        to_upper.sum(1) / all_points[:, None],
        to_lower.sum(1) / all_points[:, None],
        of_limits,
        to_cov / all_points[:, None, None] if wants_cov else None,
        of_cov,
        found < variables,
    )
