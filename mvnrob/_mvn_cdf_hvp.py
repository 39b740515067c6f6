"""Second derivatives of ``mvn_cdf``: products of the Hessian with a vector, by conditional probabilities.

In units of the standard deviations, with v_a = +-phi(a) Q(X_i = a) the slope to a limit a of variable i
and v_ab = +-phi_2(a, b; R_ij) Q(X_i = a, X_j = b) the same for two limits (minus for each lower one),

    d2P/da db = v_ab,  d2P/da2 = -(a v_a + sum_b R_ij v_ab),  b over the limits of the other variables.

The slope to cov is made of both (_mvn_cdf_grad.py), so second derivatives to it need those of v_a and v_ab:
each is a density times Q, and Q is mvn_cdf of the conditional limits and covariance,

    u - C y, V = R - C A^-1 C^T,  A = R[i, j][i, j], C = R[:, i, j], y = A^-1 (a, b),

whose slopes are those of mvn_cdf_backward. With q those to its limits (both sides summed) and G that to its
covariance, B = C A^-1:

    to (a, b): -B^T q,  to C: -q y^T - 2 G B,  to A: B^T q y^T + B^T G B,  to R: G.

A product with a vector needs the v_a and v_ab of the variables in which the vector is not zero. Each
conditional probability takes the points that its tolerance asks for. Derivatives of log p are relative to
p, in logarithms. Where only their values are needed the v_ab of many variables come from the samples of the
limits' conditional problems (_mvn_cdf_mixed.py).

Where variables are multiples of each other given the variables that are conditioned on, and their limits
meet, P has a kink, and the row is NaN.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import _mvn_cdf_mixed, _mvn_cdf_pathwise, _ops
from ._autograd import refuse, register
from ._mvn_cdf_conditional import (
    EXACT,
    INDEFINITE,
    Problem,
    Rows,
    Units,
    contain,
    entry_error,
    finite,
    in_units_of_p,
    limit_units,
    moves,
    pair_units,
    problem_of,
    repair,
    rows_at_once,
    signed,
    standardised,
)
from ._mvn_cdf_degenerate import is_definite
from ._mvn_cdf_sides import by_sides

#: With more than EXACT variables that matter no density is skipped that is larger than this share of the
#: tolerance, divided by the number of variables.
_SKIPPED = 0.01
#: Largest density of two independent limits. Times the tolerance it is the error that those of limits may have.
_DENSITY = 0.16
#: Up to so many variables pairs cost about as much, and are symmetric.
_FEW = 12
#: Points: conditional problems take what their tolerance asks for.
_NO_BUDGET = 2**60


class _Vector(NamedTuple):
    """What the Hessian is multiplied with, in units of the standard deviations."""

    limits: Tensor  # [B, 1 or 2, n]
    matrix: Tensor | None  # [B, n, n] symmetric; none: zero


class _Product(NamedTuple):
    """Gradients, relative to the rows' units, of the slopes times the vector."""

    limits: Tensor  # [B, 1 or 2, n]
    matrix: Tensor | None  # [B, n, n], to be made symmetric; none: not wanted
    kink: Tensor  # [B] rows that have no second derivative


def _hvp_op(
    grad: Tensor | None,
    grad_log: Tensor | None,
    to_upper: Tensor | None,
    to_lower: Tensor | None,
    to_cov: Tensor | None,
    upper: Tensor,
    cov: Tensor,
    lower: Tensor | None,
    seed: Tensor,
    prob: Tensor,
    complement: Tensor,
    log_prob: Tensor,
    n_points: Tensor,
    n_pivots: Tensor,
    abs_tol: float,
    rel_tol: float,
    max_points: int,
    method: str,
    compute_dtype: str,
    points: str,
    wants_slopes: bool,
    wants_cov: bool,
    factored: bool = False,
    log_tol: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if log_tol > 0:
        tensors = (
            grad, grad_log, to_upper, to_lower, to_cov, upper, cov, lower, seed, prob, complement, log_prob,
            n_points, n_pivots,
        )  # fmt: skip
        flags = max_points, method, compute_dtype, points, wants_slopes, wants_cov, factored
        return by_sides(_hvp_op, tensors, prob, abs_tol, rel_tol, log_tol, flags)
    options = abs_tol, rel_tol, max_points, method, compute_dtype, points
    values = prob, complement, log_prob, n_points, n_pivots
    cotangent, problem = (grad, grad_log), (upper, cov, lower, seed)
    vector = to_upper, to_lower, to_cov
    if upper.numel() == 0:
        nothing = prob.new_zeros(len(prob) if wants_slopes else 0)
        return (
            nothing, nothing.clone(), torch.zeros_like(upper),
            upper.new_empty(0) if lower is None else torch.zeros_like(upper),
            upper.new_zeros(cov.shape) if wants_cov else upper.new_empty(0),
        )  # fmt: skip
    told = log_prob > -math.inf  # from zero
    contains = contain(upper[:, None] if lower is None else torch.stack([upper, lower], 1))
    along, along_log = upper.new_empty(0), upper.new_empty(0)
    if wants_slopes or grad_log is not None:
        # Relative to p where it is told from zero.
        slopes = _ops.call(
            "mvn_cdf_backward",
            (~told).to(prob.dtype), told.to(prob.dtype), *problem, *values, *options,
            to_cov is not None or wants_cov, factored,
        )  # fmt: skip
        of_log = _along(slopes, vector)
    if wants_slopes:
        along = (of_log * torch.where(told, log_prob.double().exp(), 1.0)).to(prob.dtype)
        undefined = torch.where(prob.isnan() | contains, math.nan, 0.0)
        along_log = torch.where(told, of_log, undefined).to(prob.dtype)
    of = _of_factor if factored else _of_cov
    totals = of(cotangent, vector, problem, values, options, wants_cov)
    if grad_log is not None:
        # d(dP / P) = d2P / P - (dP / P)^2
        weight = torch.where(grad_log == 0, 0.0, grad_log.double() * of_log)
        weight = torch.where(told | ~contains | (grad_log == 0), weight, math.nan)
        for total, slope in zip(totals, slopes, strict=True):
            if total is not None:
                each = weight.reshape(-1, *[1] * (slope.dim() - 1))
                total -= torch.where(each == 0, 0.0, each * slope)
    totals = (upper.new_empty(0) if t is None else t.to(upper.dtype) for t in totals)
    return along, along_log, *totals


def _of_factor(
    cotangent: tuple, vector: tuple, problem: tuple, values: tuple, options: tuple, wants_cov: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``_of_cov`` to a factor U: the covariance is multiplied out, in double precision, so that what is
    singular but for rounding is the factor's. The slope to U is 2 G U, G that to the covariance."""
    *limits, to_factor = vector
    upper, factor, lower, seed = problem
    u = factor.double()
    cov = u @ u.mT
    v = product = None
    if to_factor is not None:
        v = to_factor.double()
        product = v @ u.mT
        product = product + product.mT
    problem = upper.double(), cov, None if lower is None else lower.double(), seed
    values = tuple(t.double() if t.is_floating_point() else t for t in values)
    *of_limits, of_cov = _of_cov(
        cotangent, (*limits, product), problem, values, options, wants_cov, entry_error(upper.dtype)
    )
    if not wants_cov:
        return *of_limits, None
    out = 2 * of_cov @ u
    if v is not None:
        slopes = _ops.call(
            "mvn_cdf_backward",
            *(None if t is None else t.double() for t in cotangent), *problem, *values, *options,
            True, False,
        )  # fmt: skip
        out += 2 * slopes[2] @ v
    return *of_limits, out


def _along(slopes: tuple[Tensor, ...], vector: tuple[Tensor | None, ...]) -> Tensor:
    """``[B]``, float64; a slope of zero counts for nothing, whatever it is multiplied with."""
    total = torch.zeros(len(slopes[0]), dtype=torch.float64, device=slopes[0].device)
    for slope, t in zip(slopes, vector, strict=True):
        if t is not None:
            total += torch.where(slope == 0, 0.0, slope * t).flatten(1).sum(1, dtype=torch.float64)
    return total


def _of_cov(
    cotangent: tuple, vector: tuple, problem: tuple, values: tuple, options: tuple, wants_cov: bool,
    zero: float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Second derivatives of ``grad`` times p and ``grad_log`` times p / (p held fixed), times the vector:
    to upper, lower and, where wanted, to cov, all float64; the groups are those of ``_hvp_op``."""
    batch, n = problem[0].shape
    zero = entry_error(problem[0].dtype) if zero is None else zero
    parts = []
    for some in torch.arange(batch, device=problem[0].device).split(rows_at_once(8 * n * n)):
        groups = (
            tuple(None if t is None else t[some] for t in group)
            for group in (cotangent, vector, problem, values)
        )
        parts.append(_of_rows(*groups, options, wants_cov, zero))
    upper, *lower = (torch.cat(t) for t in zip(*(p[0].unbind(1) for p in parts), strict=True))
    of_cov = torch.cat([of_matrix for _, of_matrix in parts]) if wants_cov else None
    return upper, lower[0] if lower else None, of_cov


def _of_rows(
    cotangent: tuple, vector: tuple, problem: tuple, values: tuple, options: tuple, wants_cov: bool,
    zero: float,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """``_of_cov`` of some rows: the limits' ``[B, 1 or 2, n]`` and that to cov. ``zero``: what of a
    correlation is rounding."""
    grad, grad_log = cotangent
    to_upper, to_lower, to_cov = vector
    upper, cov, lower, seed = problem
    prob, complement, log_prob, n_points, n_pivots = values
    abs_tol, rel_tol, max_points, method, compute_dtype, points = options
    n = upper.shape[1]
    log_prob = log_prob.double()
    limits, dead, scale, _ = standardised(upper, cov, lower, False)
    log_unit, factor = in_units_of_p(grad, grad_log, log_prob)
    moving, nan = moves(grad, grad_log), prob.isnan()
    wanted = moving & ~nan
    if log_unit is not None:
        wanted &= log_unit > -math.inf
    rows = Rows(
        cov, False, dead, not bool(dead.any()), scale, limits, seed, zero, log_unit, None,
        n_points == 0, (abs_tol, rel_tol), (method, compute_dtype, points),
    )  # fmt: skip
    log_tolerance = torch.full_like(log_prob, math.log(abs_tol) if abs_tol > 0 else -math.inf)
    digits = None
    if rel_tol > 0:
        small = torch.minimum(prob, complement).double()
        digits = rel_tol * small >= abs_tol
        small = torch.where(prob <= complement, log_prob, small.log())
        log_tolerance = torch.maximum(log_tolerance, small + math.log(rel_tol))
    live = n - dead.sum(1)
    log_least = math.log(_SKIPPED) + log_tolerance - live.double().log()
    log_least = log_least.masked_fill(live <= EXACT, -math.inf)[:, None]

    sides = [t for t in (to_upper, to_lower)[: limits.shape[1]]]
    sides = [torch.zeros_like(scale) if t is None else t.double() * scale for t in sides]
    matrix = None
    if to_cov is not None:
        matrix = to_cov.double()
        matrix = 0.5 * (matrix + matrix.mT) * scale[:, :, None] * scale[:, None, :]
        matrix = matrix.masked_fill_(dead[:, :, None] | dead[:, None, :], 0.0)
    given = _Vector(torch.stack(sides, 1).masked_fill_(dead[:, None], 0.0), matrix)
    sampled = None
    if n > _FEW:
        sampled = _mvn_cdf_pathwise.sampled_rows(
            prob, complement, n_points, n_pivots, digits, abs_tol, method, compute_dtype
        )
        some = sampled.some & wanted & (live > _FEW)
        sampled = sampled._replace(some=_definite(rows, some)), n_pivots
    product = _product(rows, given, wanted, log_least, max_points, wants_cov, sampled)

    undefined = (nan | product.kink) & moving
    if log_unit is not None:
        undefined |= (log_unit == -math.inf) & contain(limits)
    factor = torch.where(undefined, math.nan, factor)[:, None, None]
    out_limits = product.limits * scale[:, None] * factor
    if not wants_cov:
        return out_limits, None
    out_matrix = 0.5 * (product.matrix + product.matrix.mT)
    return out_limits, out_matrix * (scale[:, :, None] * scale[:, None, :]) * factor


def _definite(rows: Rows, which: Tensor) -> Tensor:
    """[B] those that ``which`` marks whose correlation is definite: limits of multiples that meet are a kink."""
    out = torch.zeros_like(which)
    some = which.nonzero()[:, 0]
    if len(some):
        out[some] = is_definite(rows.correlations(some))
    return out


def _product(
    rows: Rows,
    vector: _Vector,
    wanted: Tensor,
    log_least: Tensor,
    max_points: int,
    wants_cov: bool,
    sampled: tuple[_mvn_cdf_pathwise.Sampled, Tensor] | None,
) -> _Product:
    """``sampled``: what the rows' samples are good for, and their pivots; none: of few variables."""
    batch, n = rows.scale.shape
    device = rows.limits.device
    every = torch.arange(batch, device=device)
    at = torch.where(finite(rows.limits), rows.limits, 0.0)
    r = rows.correlations(every)
    w, matrix = vector
    if matrix is None:
        diagonal = torch.zeros_like(rows.scale)
    else:
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        # The slope to a variance is -(its limits' slopes times them + sum_j R_ij H_ij) / 2.
        w = w - 0.5 * diagonal[:, None] * at
    of_pair = torch.zeros_like(r)
    if matrix is not None:
        of_pair = matrix - 0.5 * r * (diagonal[:, :, None] + diagonal[:, None, :])
    active = (w != 0).any(1) | (diagonal != 0)

    out = torch.zeros_like(rows.limits)
    out_r = torch.zeros_like(r) if wants_cov else None
    low = rows.limits[:, 1] if rows.limits.shape[1] == 2 else None
    kink = _meet(rows.limits[:, 0], r, low, rows.entry_error, nearly=True)
    kink &= active.any(1) | (of_pair != 0).any(2).any(1)
    by_limit = torch.zeros_like(out)  # v_a
    sums = torch.zeros_like(rows.scale)  # sum_j R_ij H_ij

    singles = limit_units(rows, wanted, log_least)
    takes_part = _mvn_cdf_pathwise.that_take_part(rows.limits, rows.dead, singles)
    singles = singles.where(active[singles.row, singles.index[:, 0]])
    pairs = pair_units(rows, wanted, log_least)
    i, j = pairs.index.unbind(1)
    used = active[pairs.row, i] | active[pairs.row, j]
    if matrix is not None:
        used |= matrix[pairs.row, i, j] != 0
    pairs = pairs.where(used)

    for units, weight in (
        (singles, w[singles.row, singles.side[:, 0], singles.index[:, 0]]),
        (pairs, of_pair[(pairs.row, *pairs.index.unbind(1))]),
    ):
        one = units.index.shape[1] == 1
        # A limit's own slopes to limits are the pairs'.
        deep = weight != 0
        if one and not wants_cov:
            deep = torch.zeros_like(deep)
        if not one and sampled is not None:
            how = _mvn_cdf_mixed.How(
                takes_part, torch.full_like(sampled[1], _NO_BUDGET), sampled[1], max_points, sampled[0],
                _DENSITY * rows.options[0], False,
            )  # fmt: skip
            # Values alone may be slopes of the limits' conditional problems.
            alone = (~deep).nonzero()[:, 0]
            values = _mvn_cdf_mixed.of_pairs(
                rows, singles, units.where(alone), sampled[0].some, how
            )
            known = alone[~values.isnan()]
            part = units.where(known)
            values = signed(part, values[~values.isnan()], rows.limits.shape[1])
            _second(part, values, w, diagonal, r, (out, out_r, sums))
            left = torch.ones_like(deep).index_fill_(0, known, False)
            units, weight, deep = units.where(left), weight[left], deep[left]
        chunk = rows_at_once(2 * n * n)
        for start in range(0, len(weight), chunk):
            some = slice(start, start + chunk)
            part, mine = units.where(some), weight[some]
            values, conditional = _values(rows, part, max_points, kink)
            if one:
                by_limit[part.row, part.side[:, 0], part.index[:, 0]] = values
            else:
                _second(part, values, w, diagonal, r, (out, out_r, sums))
            _add_density(part, mine * values, at, r, one, (out if not one else None, out_r))
            pick = deep[some].nonzero()[:, 0]
            if len(pick):
                part = part.where(pick)
                slopes = conditional.slopes(pick, part, mine[pick], values[pick], wants_cov, kink)
                _add_conditional(part, *slopes, at, r, (None if one else out, out_r))
    # Limits' own densities, and w's dependence on them.
    out -= w * at * by_limit + 0.5 * diagonal[:, None] * by_limit
    if wants_cov:
        # The slope to a variance is over it.
        over = 0.5 * diagonal * ((at * by_limit).sum(1) + sums)
        out_r.diagonal(dim1=1, dim2=2).add_(over)
    return _Product(out, out_r, kink)


def _sign(units: Units) -> Tensor:
    return 1.0 - 2.0 * (units.side.sum(1) % 2)


class _Conditional(NamedTuple):
    """Conditional problems, and what mvn_cdf says of them."""

    rows: Rows
    max_points: int
    problem: Problem
    found: tuple[Tensor, ...]
    digits: Tensor  # [m] small, so that their own digits were asked for

    def slopes(
        self,
        pick: Tensor,
        units: Units,
        weight: Tensor,
        values: Tensor,
        wants_cov: bool,
        kink: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Those of ``weight`` times v, the density held fixed: to upper and lower, and to cov."""
        problem = [None if t is None else t[pick] for t in self.problem]
        prob, complement, _, _, n_points, _, n_pivots, log_prob, _ = (t[pick] for t in self.found)
        found = prob, complement, log_prob, n_points, n_pivots
        unit = self.rows.log_unit
        absolute = weight * _sign(units) * units.log_density.exp()
        relative = None
        if unit is not None:
            unit = unit[units.row]
            absolute, relative = (
                torch.where(unit == 0, absolute, 0.0),
                torch.where(unit == 0, 0.0, weight * values),
            )
        upper, matrix, lower, _ = problem
        out = [torch.zeros_like(t) for t in (upper, upper, matrix)]
        for digits in (False, True):
            mine = (self.digits[pick] == digits).nonzero()[:, 0]
            if len(mine) == 0:
                continue
            part = _ops.call(
                "mvn_cdf_backward",
                *(None if t is None else t[mine] for t in (absolute, relative, *problem, *found)),
                *_options(self.rows, self.max_points, digits), wants_cov, False,
            )  # fmt: skip
            for total, t in zip(out, part, strict=True):
                if t.numel():
                    total[mine] = t
        kink[units.row[_meet(upper, matrix, lower, self.rows.entry_error)]] = True
        return out[0], out[1], out[2] if wants_cov else None


def _options(rows: Rows, max_points: int, digits: bool) -> tuple:
    """Of a conditional problem. Only the error relative to Q itself matters, which is an absolute one
    where Q is not small, whatever digits 1 - Q has then."""
    abs_tol, rel_tol = rows.options
    tolerances = (abs_tol, rel_tol) if digits else (max(abs_tol, 0.5 * rel_tol), 0.0)
    return (*tolerances, max_points, *rows.rest)


def _values(rows: Rows, units: Units, max_points: int, kink: Tensor) -> tuple[Tensor, _Conditional]:
    """v of each unit, relative to its row's unit, and its problem."""
    problem, shares = problem_of(rows, units, torch.float64)
    for share in shares:
        if share is not None:
            kink[units.row[share < 1]] = True

    def call(some, digits):
        given = (None if t is None else t[some] for t in problem)
        return _ops.call("mvn_cdf", *given, *_options(rows, max_points, digits), False)

    def again(found, some, digits):
        if len(some) == 0:
            return found
        out = call(some, digits)
        return tuple(t.index_copy(0, some, s) for t, s in zip(found, out, strict=True))

    found = call(slice(None), False)
    bad = (found[3] == INDEFINITE).nonzero()[:, 0]
    if len(bad):
        repaired = problem.matrix[bad]
        repair(repaired)
        problem.matrix[bad] = repaired
        found = again(found, bad, False)
    digits = found[0] < 0.5
    if rows.options[1] == 0:
        digits.zero_()
    found = again(found, digits.nonzero()[:, 0], True)
    values = units.log_density.exp() * found[0]
    if rows.log_unit is not None:
        unit = rows.log_unit[units.row]
        values = torch.where(unit == 0, values, (units.log_density + found[7] - unit).exp())
    return _sign(units) * values, _Conditional(rows, max_points, problem, found, digits)


def _second(
    pairs: Units, values: Tensor, w: Tensor, diagonal: Tensor, r: Tensor, totals: tuple
) -> None:
    """Adds what comes of the v_ab as slopes of the v_a, and of what they have to do with variances."""
    out, out_r, sums = totals
    row = pairs.row
    (i, j), (of_i, of_j) = pairs.index.unbind(1), pairs.side.unbind(1)
    rho = r[row, i, j]
    for a, side_a, b, side_b in ((i, of_i, j, of_j), (j, of_j, i, of_i)):
        weighted = w[row, side_a, a] * values
        out.index_put_((row, side_b, b), weighted, accumulate=True)
        out.index_put_((row, side_a, a), -rho * weighted, accumulate=True)
        sums.index_put_((row, a), rho * values, accumulate=True)
    if out_r is not None:
        both = diagonal[row, i] + diagonal[row, j]
        out_r.index_put_((row, i, j), -0.5 * both * values, accumulate=True)


def _add_density(
    units: Units, weighted: Tensor, at: Tensor, r: Tensor, one: bool, totals: tuple
) -> None:
    """Adds ``weighted``, a weight times v, times the slopes of the logarithm of its density."""
    out, out_r = totals
    row = units.row
    x = at[row[:, None], units.side, units.index]
    if one:
        if out_r is not None:
            i = units.index[:, 0]
            slope = 0.5 * weighted * (x[:, 0].square() - 1)
            out_r.index_put_((row, i, i), slope, accumulate=True)
        return
    inverse, y = _inverse(units, x, r)
    index = row[:, None], units.side, units.index
    out.index_put_(index, -weighted[:, None] * y, accumulate=True)
    if out_r is not None:
        slope = 0.5 * weighted[:, None, None] * (y[:, :, None] * y[:, None, :] - inverse)
        _add_block(out_r, units, slope)


def _add_block(out_r: Tensor, units: Units, slope: Tensor) -> None:
    """Adds ``[m, k, k]`` to the entries of the units' own variables."""
    at = units.row[:, None, None], units.index[:, :, None], units.index[:, None, :]
    out_r.index_put_(at, slope, accumulate=True)


def _inverse(units: Units, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """A^-1 ``[m, k, k]`` and y = A^-1 x ``[m, k]``."""
    k = units.index.shape[1]
    if k == 1:
        return torch.ones(len(x), 1, 1, dtype=x.dtype, device=x.device), x
    rho = r[units.row, units.index[:, 0], units.index[:, 1]]
    left = 1 / ((1 - rho) * (1 + rho))
    inverse = torch.stack([left, -rho * left, -rho * left, left], 1).reshape(-1, 2, 2)
    return inverse, (inverse @ x[:, :, None])[:, :, 0]


def _add_conditional(
    units: Units, to_upper: Tensor, to_lower: Tensor, g: Tensor | None, at: Tensor, r: Tensor,
    totals: tuple,
) -> None:  # fmt: skip
    """Adds the slopes of Q, given those to its limits and covariance."""
    out, out_r = totals
    row, index = units.row, units.index
    x = at[row[:, None], units.side, index]
    inverse, y = _inverse(units, x, r)
    c = r[row[:, None], index].mT  # [m, n, k]
    b = c @ inverse
    q = to_upper + to_lower
    along = (b.mT @ q[:, :, None])[:, :, 0]  # B^T q
    if out is not None:
        out[:, 0].index_add_(0, row, to_upper)
        if out.shape[1] == 2:
            out[:, 1].index_add_(0, row, to_lower)
        out.index_put_((row[:, None], units.side, index), -along, accumulate=True)
    if out_r is not None:
        out_r.index_add_(0, row, g)
        to_c = -(q[:, :, None] * y[:, None, :] + 2 * g @ b)
        for k in range(index.shape[1]):
            n = out_r.shape[1]
            variables = torch.arange(n, device=row.device)
            out_r.index_put_(
                (row[:, None], variables, index[:, k, None]), to_c[:, :, k], accumulate=True
            )
        _add_block(out_r, units, along[:, :, None] * y[:, None, :] + b.mT @ g @ b)


def _meet(
    upper: Tensor, matrix: Tensor, lower: Tensor | None, zero: float, nearly: bool = False
) -> Tensor:
    """``[m]`` problems in which limits of two variables that are multiples of each other meet, to the
    rounding of the limits; ``nearly``: to what rounding of the matrix may move such variables apart."""
    out = torch.zeros(len(upper), dtype=torch.bool, device=upper.device)
    variance = matrix.diagonal(dim1=1, dim2=2)
    alive = variance > 0
    sd = torch.where(alive, variance, 1.0).sqrt()
    r = matrix / (sd[:, :, None] * sd[:, None, :])
    multiple = (1 - r.abs() <= 16 * zero / variance[:, :, None].clamp_min(1e-300)).triu(1)
    multiple &= alive[:, :, None] & alive[:, None, :]
    m, i, j = multiple.nonzero(as_tuple=True)
    if len(m) == 0:
        return out
    sides = [upper / sd] + ([] if lower is None else [lower / sd])
    least = torch.minimum(sd[m, i], sd[m, j])
    for a in sides:
        for b in sides:
            x, z = a[m, i], torch.where(r[m, i, j] > 0, 1.0, -1.0) * b[m, j]
            gap = 32 * zero * (1 + x.abs()) / least
            if nearly:
                # Four of the standard deviations that 1 - R^2 = 32 zero leaves.
                gap += 4 * math.sqrt(32 * zero)
            out[m[((x - z).abs() <= gap) & finite(x)]] = True
    return out


torch.library.impl("mvnrob::mvn_cdf_hvp", ("cpu", "cuda"), _hvp_op)


@torch.library.register_fake("mvnrob::mvn_cdf_hvp")
def _(
    grad, grad_log, to_upper, to_lower, to_cov, upper, cov, lower, seed, prob, complement, log_prob,
    n_points, n_pivots, abs_tol, rel_tol, max_points, method, compute_dtype, points, wants_slopes,
    wants_cov, factored=False, log_tol=0.0,
):  # fmt: skip
    none = upper.new_empty(0)
    along = torch.empty_like(prob) if wants_slopes else none
    return (
        along,
        along.clone(),
        torch.empty_like(upper),
        none.clone() if lower is None else torch.empty_like(upper),
        upper.new_empty(cov.shape) if wants_cov else none.clone(),
    )


_no_third = refuse("mvn_cdf: third derivatives are not built; first and second ones are")

#: torch.ops.mvnrob.mvn_cdf_hvp, also within torch.func.
call = register("mvn_cdf_hvp", _no_third, _no_third)
