"""Variables that others decide, or nearly: what is asked of a correlation before its samples are believed.

With L the pivoted Cholesky factor of R in the sampler's order, X_j keeps the variance L_jj^2 given the pivots
before it. As a function of a pivot's normal y_k its conditional probability is a step of width L_jj / L_jk. Where
that is small few points meet the step, and neither the sum of their derivatives nor its spread over the shifts
knows of it. Where R is singular a variable without variance left bounds the pivot that took the last of it, so it
is that coefficient which makes the step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _ops
from ._mvn_cdf_conditional import Rows, rows_at_once

_EXACT = 1  # mvnrob.Status
#: Of a variable's variance given those before it: a covariance that leaves less counts as singular.
_LEFT = 1e-6
#: Variance, of one, that a variable keeps given those before it. Less, but for none, is a step in the integrand that
#: few points do not meet: where all agree that there is nothing. Many that decide it together blur it, unless one
#: alone leaves it less than _NEAR.
_THIN, _MANY, _NEAR = 1e-3, 64, 1e-2
#: Ratio of the standard deviations, along one pivot's normal and kept, from which a step is narrow; and about so many
#: points that meet it show it in their spread all the same.
_STEEP, _MET = 10.0, 400


def is_definite(r: Tensor) -> Tensor:
    """[B] correlations ``[B, n, n]``, zero beside variables that do not matter, which leave each variable more than
    _LEFT of its variance given those before it. So no two are multiples given others. In place: the diagonal is one."""
    r.diagonal(dim1=1, dim2=2).fill_(1.0)
    factor, failed = torch.linalg.cholesky_ex(r)
    left = factor.diagonal(dim1=1, dim2=2).square().amin(1)
    return (failed == 0) & (left > _LEFT)


def is_thin(rows: Rows, which: Tensor) -> Tensor:
    """[B] those that ``which`` marks in which some variable is nearly decided by another or by few before it, or
    is a multiple of another."""
    out = torch.zeros_like(which)
    n = rows.dead.shape[1]
    for some in which.nonzero()[:, 0].split(rows_at_once(2 * n * n)):
        if len(some) == 0:
            continue
        factor, order, rank, status = _pivoted_cholesky(
            rows, some, rows.limits[some, :1].unbind(1), n
        )
        columns = torch.arange(factor.shape[2], device=which.device)
        kept = factor.gather(1, order[:, None, : len(columns)]).square_()[:, 0]
        thin = (kept < _THIN) & (columns < rank[:, None].clamp_max(_MANY))
        left = 1 - rows.correlations(some).square_()
        left.diagonal(dim1=1, dim2=2).fill_(1.0)
        near = (left < _NEAR).flatten(1).any(1)
        out[some] = thin.any(1) | near | (status != _EXACT)
    return out


def steep(rows: Rows, which: Tensor, takes_part: Tensor, pivots: Tensor, points: Tensor) -> Tensor:
    """[m, n] variables of the rows ``which`` [m] that meet in a step, sampled so: those nearly decided, and the
    pivots whose normals decide them. ``takes_part`` [m, n] are sampled, ``pivots`` [m] of them as such, at so many
    ``points`` [m]."""
    size = rows_at_once(2 * takes_part.shape[1] ** 2)
    if len(which) <= size:
        return _steep(rows, which, takes_part, pivots, points)
    parts = (t.split(size) for t in (which, takes_part, pivots, points))
    return torch.cat([_steep(rows, *part) for part in zip(*parts, strict=True)])


def _steep(rows: Rows, some: Tensor, takes_part: Tensor, pivots: Tensor, points: Tensor) -> Tensor:
    upper, *lower = rows.limits[some].unbind(1)
    limits = (
        torch.where(takes_part, upper, math.inf),
        *(torch.where(takes_part, t, -math.inf) for t in lower),
    )
    factor, order, *_ = _pivoted_cholesky(rows, some, limits, max(1, int(pivots.max())))
    columns = torch.arange(1, factor.shape[2] + 1, device=factor.device)
    square = factor.double().square_().mul_(takes_part[:, :, None])
    square.masked_fill_((columns > pivots[:, None])[:, None], 0.0)
    # Kept is the last coefficient's: a pivot's own, or that of the one which is bounded.
    last = (columns * (square > 0)).amax(2, keepdim=True)
    kept = square.gather(2, (last - 1).clamp_min_(0))
    completed = pivots < takes_part.sum(1)
    if bool(completed.any()):  # what the pivots leave of those that are none
        left = 1 - square.sum(2, keepdim=True)
        kept = torch.where(completed[:, None, None] & (left > 16 * rows.entry_error), left, kept)
    ratio = (points / _MET).clamp_min(_STEEP).square()[:, None, None]
    sharp = (square >= ratio * kept) & (square > 0)
    of_pivots = torch.zeros_like(takes_part).scatter_(1, order[:, : len(columns)], sharp.any(1))
    return of_pivots | sharp.any(2)


def _pivoted_cholesky(
    rows: Rows, some: Tensor, limits: tuple[Tensor, ...], most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Factor, order, rank and status of these rows of R with the limits, upper and lower or upper alone, of at most
    so many columns."""
    dtype = rows.matrix.dtype  # whose rounding counts as zero
    upper, *lower = (t.to(dtype) for t in limits)
    n, width = rows.matrix.shape[1:]
    factor, order, rank, _, status = _ops.call(
        "pivoted_cholesky",
        upper,
        rows.problems(some).to(dtype),
        lower[0] if lower else None,
        min(n, width, most),
        rows.factored,
    )
    return factor, order, rank, status
