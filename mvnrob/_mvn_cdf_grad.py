"""Gradients of ``mvn_cdf``: conditional probabilities, computed by ``mvn_cdf`` itself, or pathwise.

In units of the standard deviations, z = limit / s, R the correlation:

    dP/du_i = phi(u_i) Q(X_i = u_i),  dP/dl_i = -phi(l_i) Q(X_i = l_i),
    H_ij = d2P/dz_i dz_j = sum over the corners (a, b) of the limits of i and j of
           +- phi_2(a, b; R_ij) Q(X_i = a, X_j = b),  minus where one is lower and one upper,

Q the probability that the others keep their limits, given that. dP/dR_ij = H_ij (Plackett, Biometrika
41 (1954)), shared by the entries (i, j) and (j, i). Scaling X_i is scaling its limits back, so

    dP/dcov_ii = -(u_i dP/du_i + l_i dP/dl_i + sum_j R_ij H_ij) / (2 cov_ii).

Slopes to log p are these over p, in logarithms. Where the conditional probabilities would cost more
than differentiating the samples, the slopes are pathwise (_mvn_cdf_pathwise.py): those to limits that
samples know to the tolerance, and the H_ij that they know to be right enough, at positive definite cov
alone; but for variables that others nearly decide (_mvn_cdf_degenerate.py). Other H_ij are from the samples
of each limit's conditional problem (_mvn_cdf_mixed.py), as far as these know them. Slopes are pathwise also
where p is small and its digits are asked for: the tilted samples know the slopes of its logarithm
at least as well as p.

Where p is near 1 and digits of 1 - p are asked for, Q is near 1 as a rule, and only its error relative
to itself matters to the slope: it is asked for absolutely first, and as digits where it turns out
small. Few of the variables move it by that much; the others do not enter its problem.

Where cov is singular these are limits from the positive definite side, and continuous there but for
multiples (and for limits of three or more variables that meet in one point of their common subspace,
where it is one of several): a derivative in every direction that stays positive semidefinite.

Where some independent blocks of a sampled row are exact, each of them and the rest are differentiated on
their own, and H_ij between two of them is the product of their slopes.

To a factor U of cov it is dU = (dcov + dcov^T) U, summed over the pairs without forming dcov; conditional
problems keep a factor then (U without its part along row i), so they are semidefinite whatever rounding does.
Where U U^T is positive definite it is formed, since samples know dcov.

Multiples of one another (|R_ij| = 1): each decides where the other is given, so Q is 0 or 1 times that
of the rest, and the limits' gradients are right where the limits differ. Where they meet, P has a kink
(a minimum of limits): the variables share the slope equally, as torch.amin does. There dP/dR_ij is
infinite; H_ij is taken as zero, which is exact in directions that leave them multiples of each other,
and a subgradient to a factor of cov: P falls like |change of the factor|, symmetrically.

Second derivatives: _mvn_cdf_hvp.py. Forward mode takes the same slopes, times the tangents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _mvn_cdf_hvp, _mvn_cdf_mixed, _mvn_cdf_pathwise, _ops
from ._autograd import along_tangents, register
from ._mvn_cdf_blocks import blocks_of_split_rows, parts_of
from ._mvn_cdf_conditional import (
    EXACT,
    FEWEST,
    Found,
    Rows,
    Units,
    conditional,
    conditional_and_bound,
    conditional_near_one,
    contain,
    entry_error,
    finite,
    in_units_of_p,
    limit_units,
    moves,
    pair_matrices,
    pair_units,
    rows_at_once,
    signed,
    standardised,
)
from ._mvn_cdf_degenerate import is_definite, steep
from ._mvn_cdf_one_factor import pair_values
from ._mvn_cdf_sides import by_sides

#: The limits' conditional probabilities of a row take at most this many times the row's points, and
#: so do those of the pairs; each at least FEWEST, the first look of mvn_cdf.
COST = 3
#: and so many where digits of a tail are asked for, whose tilt or union comes after the first look.
_FEWEST_OF_TAIL = 8 * FEWEST
#: and so many where the row's samples do not know its slope.
_FEWEST_AFTER_SAMPLES = 8 * FEWEST
#: Conditional probabilities are the most accurate: they are taken while they cost at most _AFFORDABLE
#: times the value's points (a call's set-up counts _SETUP a variable).
_AFFORDABLE = 0.5
_SETUP = 4
#: Where the value took more points, for each limit that matters, and they were not tilted, slopes to cov are not taken
#: from the row's own samples: those of conditional problems cost less, and know more.
_POINTS_OF_A_LIMIT = FEWEST


def _too_dear(rows: Rows, units: Units, n_points: Tensor) -> Tensor:
    """[B] rows whose conditional probabilities would cost more than sampling their slopes."""
    counts = torch.bincount(units.row, minlength=len(n_points))
    n = rows.dead.shape[-1]
    # In points: what a call takes at least, and its matrix, read and factored.
    cost = counts * (FEWEST + _SETUP * n)
    return cost > _AFFORDABLE * n_points


def _backward_op(
    grad: Tensor | None,
    grad_log: Tensor | None,
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
    wants_cov: bool,
    factored: bool = False,
    log_tol: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    if log_tol > 0:
        tensors = (
            grad, grad_log, upper, cov, lower, seed, prob, complement, log_prob, n_points, n_pivots
        )  # fmt: skip
        flags = max_points, method, compute_dtype, points, wants_cov, factored
        return by_sides(_backward_op, tensors, prob, abs_tol, rel_tol, log_tol, flags)
    options = abs_tol, rel_tol, max_points, method, compute_dtype, points
    if factored and wants_cov:
        return _by_covariance(
            (grad, grad_log),
            (upper, cov, lower, seed),
            (prob, complement, log_prob, n_points, n_pivots),
            options,
        )
    whole = (
        (grad, grad_log),
        (upper, cov, lower, seed),
        (prob, complement, log_prob, n_points, n_pivots),
    )
    flags = options, wants_cov, factored
    batch, n = upper.shape
    # Only samples are differentiated whole where the value was not sampled whole; without a zero a
    # covariance is one block.
    if factored or method != "auto" or n <= EXACT or _has_no_zero(cov):
        return _backward_rows(*whole, *flags)
    rows = (n_points > 0) & (n_pivots > EXACT) & (prob > 0) & moves(grad, grad_log)
    # Near 1 with digits of 1 - p, conditional probabilities are taken.
    rows &= (abs_tol >= rel_tol * complement.double()) | (complement >= _mvn_cdf_pathwise.SMALL)
    if not bool(rows.any()):
        return _backward_rows(*whole, *flags)
    limited = finite(upper) if lower is None else finite(upper) | finite(lower)
    live = (cov.diagonal(dim1=1, dim2=2) > 0) & limited
    block = blocks_of_split_rows(upper, cov, lower, seed, live, rows)
    split = (block >= 0).any(1)
    if not bool(split.any()):
        return _backward_rows(*whole, *flags)
    to_upper, to_lower = torch.zeros_like(upper), torch.zeros_like(upper)
    to_cov = cov.new_zeros(batch, n, n) if wants_cov else upper.new_empty(0)
    totals = to_upper, to_lower, to_cov
    if not bool(split.all()):
        pick = lambda group: tuple(None if t is None else t[~split] for t in group)
        some = _backward_rows(*map(pick, whole), *flags)
        for total, part in zip(totals, some, strict=True):
            if part.numel():
                total[~split] = part
    # A factor's cotangent is that of the product times the others.
    found, log_total = [], torch.zeros_like(prob, dtype=torch.float64)
    for parts in parts_of(block):
        problem = parts.problem(upper, cov, lower, seed)
        r = _ops.call("mvn_cdf", *problem, *options, factored)
        log_total.index_add_(0, parts.row, r[7].double())
        found.append((parts, problem, (r[0], r[1], r[7], r[4], r[6])))
    for parts, problem, values in found:
        others = (log_total[parts.row] - values[2].double()).exp()
        cotangent = (
            None if grad is None else (grad[parts.row].double() * others).to(grad.dtype),
            None if grad_log is None else grad_log[parts.row],
        )
        slopes = _backward_rows(cotangent, problem, values, *flags)
        for total, part in zip(totals, slopes, strict=True):
            if part.numel():
                parts.add(total, part)
    if wants_cov:
        # d2p / dx_i dx_j, x limits of different blocks, is p times both slopes of log p.
        weight = torch.zeros_like(log_total) if grad is None else grad.double() * log_total.exp()
        weight = weight if grad_log is None else weight + grad_log
        for row in split.nonzero()[:, 0].split(rows_at_once(n * n)):
            both = to_upper[row].double() + to_lower[row]
            apart = block[row][:, :, None] != block[row][:, None, :]
            half = torch.where(weight[row] == 0, 0.0, 0.5 / weight[row])[:, None, None]
            cross = torch.where(apart, both[:, :, None] * both[:, None, :] * half, 0.0)
            to_cov[row] += cross.to(to_cov.dtype)
    return to_upper, upper.new_empty(0) if lower is None else to_lower, to_cov


def _has_no_zero(cov: Tensor) -> bool:
    cov = cov[:1] if cov.stride(0) == 0 else cov
    return int(cov.count_nonzero()) == cov.numel()


def _by_covariance(
    cotangent: tuple, problem: tuple, values: tuple, options: tuple
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a factor U whose slopes are wanted: rows that were sampled and whose U U^T is positive definite
    take the slopes to that, G, which samples know, dU = (G + G^T) U; the others are differentiated as
    they are."""
    upper, factor, lower, _ = problem
    n_points, n_pivots = values[3:]
    flags = options, True, True
    definite = None
    if factor.shape[2] >= factor.shape[1] > EXACT:
        definite = (n_points > 0) & (n_pivots > EXACT) & moves(*cotangent)
        if bool(definite.any()):
            definite &= is_definite(_correlations(upper, factor, lower))
    if definite is None or not bool(definite.any()):
        return _backward_rows(cotangent, problem, values, *flags)

    def pick(group, at):
        return tuple(None if t is None else t[at] for t in group)

    by_cov, as_it_is = (mask.nonzero()[:, 0] for mask in (definite, ~definite))
    limits, u, lows, seed = pick(problem, by_cov)
    wide = u.double()
    to_upper, to_lower, to_cov = _backward_op(
        *pick(cotangent, by_cov), limits.double(), wide @ wide.mT,
        None if lows is None else lows.double(), seed, *pick(values, by_cov), *options, True,
    )  # fmt: skip
    mine = to_upper, to_lower, (to_cov + to_cov.mT) @ wide
    mine = tuple(t.to(upper.dtype) for t in mine)
    if len(as_it_is) == 0:
        return mine
    others = _backward_rows(*(pick(g, as_it_is) for g in (cotangent, problem, values)), *flags)
    out = []
    for a, b in zip(mine, others, strict=True):
        if a.numel() == b.numel() == 0:
            out.append(a)
            continue
        whole = a.new_empty(len(upper), *a.shape[1:])
        whole[by_cov], whole[as_it_is] = a, b
        out.append(whole)
    return tuple(out)


def _correlations(upper: Tensor, factor: Tensor, lower: Tensor | None) -> Tensor:
    """Of a factor's rows, zero beside those that do not matter."""
    _, dead, scale, _ = standardised(upper, factor, lower, True)
    u = (factor.double() * scale[:, :, None]).masked_fill_(dead[:, :, None], 0.0)
    return u @ u.mT


class _Plan(NamedTuple):
    """What is known of some rows before any slope, and which way each is differentiated."""

    problem: tuple  # upper, cov, lower
    rows: Rows
    standard_deviation: Tensor  # [B, n]
    log_prob: Tensor  # [B], float64
    n_points: Tensor  # [B]
    n_pivots: Tensor  # [B]
    factor: Tensor  # [B] the cotangents, in the rows' units
    budget: Tensor  # [B] most points of a row's conditional problems of one kind together
    max_points: int  # of each of them
    limits: Units  # those whose densities matter
    pairs: Units | None  # the same of two of them; none: slopes to cov are not wanted
    sampled: _mvn_cdf_pathwise.Sampled | None  # none: neither digits nor many variables
    takes_part: Tensor | None  # [B, n] variables that are sampled
    by_path: Tensor | None  # [B] rows whose slopes to limits are their samples', as far as known
    pairs_by_samples: Tensor | None  # [B] rows whose slopes to cov come from samples
    cov_by_path: Tensor | None  # [B] from their own, first


class _BySamples(NamedTuple):
    """Slopes of the rows' own samples, in the rows' units."""

    limits: Tensor  # [B, 1 or 2, n], zero where none was taken
    bound: Tensor  # [B, n] 99 % bounds on them, infinite where none was taken
    tolerance: Tensor  # [B, 1]
    steep: Tensor  # [B, n] variables whose samples meet a step, which their bounds do not see
    pairs: Tensor | None  # [B, n, n] H; none: taken of no row
    unknown_pairs: Tensor | None  # [B, n, n] those that samples do not know well enough


def _backward_rows(
    cotangent: tuple, problem: tuple, values: tuple, options: tuple, wants_cov: bool, factored: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows that are differentiated whole; the groups are those of ``_backward_op``."""
    upper, cov, lower, _ = problem
    dtype = upper.dtype
    # Two tensors: each output has a tangent of its own.
    no_lower, no_cov = upper.new_empty(0), upper.new_empty(0)
    if upper.numel() == 0:
        return (
            torch.zeros_like(upper),
            no_lower if lower is None else torch.zeros_like(upper),
            upper.new_zeros(cov.shape) if wants_cov else no_cov,
        )
    plan = _plan(cotangent, problem, values, options, wants_cov, factored)
    samples = None if plan.by_path is None else _by_samples(plan)
    slopes = _slopes_to_limits(plan, samples)
    to_limits = (slopes * plan.rows.scale[:, None] * plan.factor[:, None, None]).to(dtype)
    if lower is None:
        to_upper, to_lower = to_limits[:, 0], no_lower
    else:
        # Not views of one tensor, as contiguous() leaves those of one row: dual numbers want a layout.
        layout = torch.contiguous_format
        to_upper, to_lower = (t.clone(memory_format=layout) for t in to_limits.unbind(1))
    if not wants_cov:
        return to_upper, to_lower, no_cov
    return to_upper, to_lower, _slopes_to_matrix(plan, samples, slopes).to(dtype)


def _plan(
    cotangent: tuple, problem: tuple, values: tuple, options: tuple, wants_cov: bool, factored: bool
) -> _Plan:
    grad, grad_log = cotangent
    upper, cov, lower, seed = problem
    prob, complement, log_prob, n_points, n_pivots = values
    abs_tol, rel_tol, max_points, method, compute_dtype, points = options
    batch, n = upper.shape
    log_prob = log_prob.double()
    limits, dead, scale, sd = standardised(upper, cov, lower, factored)
    # Slopes are in units of p where its logarithm moves the loss.
    log_unit, factor = in_units_of_p(grad, grad_log, log_prob)
    nan, moving = prob.isnan(), moves(grad, grad_log)
    # Where p is not told from zero it has no slopes of its logarithm.
    wanted = moving & ~nan
    # NaN rows have NaN gradients, but where nothing depends on them.
    undefined = nan & moving
    if log_unit is not None:
        wanted &= log_unit > -math.inf
        # And where p is not told from zero although its limits contain something.
        undefined |= (log_unit == -math.inf) & contain(limits)
    fewest = digits = None
    log_tolerance = math.log(abs_tol) if abs_tol > 0 else -math.inf
    if rel_tol > 0:
        small = torch.minimum(prob, complement).double()
        digits = rel_tol * small >= abs_tol
        fewest = torch.where(digits, _FEWEST_OF_TAIL, FEWEST)
        # In logarithms, since p may have underflowed where its logarithm has not.
        log_small = torch.where(prob <= complement, log_prob, small.log())
        log_tolerance = (log_small + math.log(rel_tol)).clamp_min(log_tolerance)
    exact = (n_points == 0) & (n_pivots > 3)
    rows = Rows(
        cov, factored, dead, not bool(dead.any()), scale, limits, seed, entry_error(upper.dtype), log_unit, fewest,
        exact, (abs_tol, rel_tol), (method, compute_dtype, points),
    )  # fmt: skip
    live = n - dead.sum(1) if n > EXACT else None

    def least(all_matter: int) -> Tensor | float:
        """Up to ``all_matter`` variables none is skipped; what is cannot move any sum over the
        variables by more than a tenth of the tolerance."""
        if n <= all_matter:
            return -math.inf
        log_least = math.log(0.1) + log_tolerance - live.double().log()
        return log_least.masked_fill_(live <= all_matter, -math.inf)[:, None]

    # A row that was not sampled has conditional problems that are not either, as a rule; where rounding
    # keeps their form from being recognised they take what their tolerance asks for.
    budget = torch.where(exact, torch.iinfo(torch.int64).max, COST * n_points)
    singles = limit_units(rows, wanted, least(EXACT))
    pairs = pair_units(rows, wanted, least(EXACT + 1)) if wants_cov else None
    sampled = takes_part = by_path = pairs_by_samples = cov_by_path = None
    if digits is not None or n > EXACT:
        sampled = _mvn_cdf_pathwise.sampled_rows(
            prob, complement, n_points, n_pivots, digits, abs_tol, method, compute_dtype
        )
    if n > EXACT:
        tilted = sampled.tilted
        takes_part = _mvn_cdf_pathwise.that_take_part(limits, dead, singles)
        by_samples = sampled.some & wanted & (live > EXACT)
        dear = _too_dear(rows, singles, n_points)
        by_path = by_samples & (dear if tilted is None else tilted | dear)
        if wants_cov:
            pairs_by_samples = by_samples & _too_dear(rows, pairs, n_points)
        # The samples' slopes to matrices are built for covariances, not for factors.
        if wants_cov and not factored:
            most = _POINTS_OF_A_LIMIT * torch.bincount(singles.row, minlength=batch)
            few = n_points <= most
            cov_by_path = pairs_by_samples & (few if tilted is None else few | tilted)
    return _Plan(
        (upper, cov, lower), rows, sd, log_prob, n_points, n_pivots, factor.masked_fill(undefined, math.nan),
        budget, max_points, singles, pairs, sampled, takes_part, by_path, pairs_by_samples, cov_by_path,
    )  # fmt: skip


def _by_samples(plan: _Plan) -> _BySamples | None:
    """None where no row's samples are differentiated."""
    groups = list(_sampled_together(plan.by_path, plan.cov_by_path, plan.sampled.tilted))
    if not groups:
        return None
    rows, (upper, cov, lower) = plan.rows, plan.problem
    batch, n = upper.shape
    abs_tol, rel_tol = rows.options
    out = _BySamples(
        torch.zeros_like(rows.limits), torch.full_like(rows.scale, math.inf),
        torch.zeros_like(rows.scale[:, :1]), torch.zeros_like(rows.dead), None, None,
    )  # fmt: skip
    for of_cov, of_tilted, picks in groups:
        # All rows together need no copy.
        pick = (lambda t: t) if len(picks) == batch else (lambda t, at=picks: t[at])
        given = rows.seed, plan.takes_part, plan.n_points, plan.n_pivots, plan.standard_deviation
        how = _mvn_cdf_pathwise.Samples(
            *map(pick, given), 0.0 if of_tilted else abs_tol, rel_tol, plan.sampled.compute_dtype, rows.rest[2],
            rows.factored, of_cov, of_tilted, of_tilted,
        )  # fmt: skip
        found = _mvn_cdf_pathwise.slopes(
            (pick(upper), None if lower is None else pick(lower)), pick(cov), how
        )
        unit = torch.ones_like(how.standard_deviation[:, :1])
        if rows.log_unit is not None:
            unit = pick(rows.log_unit).exp()[:, None]
        if of_tilted:  # their slopes are relative to p
            log_unit = 0.0 if rows.log_unit is None else pick(rows.log_unit)
            unit = (log_unit - pick(plan.log_prob)).exp()[:, None]
        # Where no sample met the rectangle, or nothing could be factored, nothing is known.
        known = finite(found.error).all(1, keepdim=True) & pick(plan.by_path)[:, None]
        slopes = torch.stack((found.upper, found.lower)[: rows.limits.shape[1]], 1)
        slopes *= how.standard_deviation[:, None]
        largest = slopes.abs().amax((1, 2))[:, None]
        tolerance = (how.rel_tol * largest).clamp_min(how.abs_tol)
        out.limits[picks] = torch.where(known[:, None], slopes / unit[:, None], 0.0)
        out.bound[picks] = torch.where(known, found.error / unit, math.inf)
        out.tolerance[picks] = tolerance / unit
        out.steep[picks] = steep(
            rows, picks, how.takes_part, _mvn_cdf_pathwise.pivots(how), found.points
        )
        if of_cov:
            if out.pairs is None:
                shape = batch, n, n
                out = out._replace(
                    pairs=torch.zeros(shape, dtype=torch.float64, device=upper.device),
                    unknown_pairs=torch.zeros(shape, dtype=torch.bool, device=upper.device),
                )
            pairs, unknown = _pathwise_pairs(rows, picks, found, how)
            of_step = out.steep[picks]
            out.unknown_pairs[picks] = unknown | of_step[:, :, None] | of_step[:, None, :]
            out.pairs[picks] = pairs / unit[:, :, None]
    return out


def _slopes_to_limits(plan: _Plan, samples: _BySamples | None) -> Tensor:
    """[B, 1 or 2, n] in the rows' units: conditional probabilities where there are no samples, where they do not
    know a slope to the tolerance, and of variables that meet in a step."""
    rows, units = plan.rows, plan.limits
    if samples is None:
        slopes = torch.zeros_like(rows.limits)
        found = _conditional_limits(plan, rows, units, False)
    else:
        slopes = samples.limits.clone()
        unknown = ~(samples.bound <= samples.tolerance) | samples.steep
        units = units.where(unknown[units.row, units.index[:, 0]])
        fewest = FEWEST if rows.fewest is None else rows.fewest
        fewest = torch.where(plan.by_path, _FEWEST_AFTER_SAMPLES, fewest)
        found = _conditional_limits(plan, rows._replace(fewest=fewest), units, True)
    at = units.row, units.side[:, 0], units.index[:, 0]
    values = signed(units, found.value, rows.limits.shape[1])
    if samples is not None:
        less = _known_less(samples, units, (slopes[at] - values).abs(), found.bound)
        values = torch.where(less, slopes[at], values)
    slopes[at] = values
    return slopes


def _known_less(samples: _BySamples, units: Units, gap: Tensor, bound: Tensor) -> Tensor:
    """[m] conditional probabilities that are known less than to the tolerance and than the samples' slopes; ``gap``
    between both and 99 % bounds of the former. Samples of a step do not know their own error: where they contradict
    the conditional probability it is theirs."""
    row, i = units.row, units.index[:, 0]
    known = samples.bound[row, i]
    less = ~(bound <= torch.maximum(known, samples.tolerance[row, 0])) & (known < math.inf)
    return less & ~((gap > bound) & samples.steep[row, i])


def _conditional_limits(plan: _Plan, rows: Rows, units: Units, wants_bound: bool) -> Found:
    """Of limits; bounds are zero where p is near 1 and digits of 1 - p are asked for, where samples know nothing."""
    how = plan.budget, plan.max_points
    near_one = None if plan.sampled is None else plan.sampled.near_one
    if near_one is None or not bool(near_one.any()):
        return conditional_and_bound(rows, units, *how, wants_bound)
    near = near_one[units.row]
    value, bound = torch.zeros_like(units.log_density).repeat(2, 1)
    value[near] = conditional_near_one(rows, units.where(near), *how)
    others = conditional_and_bound(rows, units.where(~near), *how, wants_bound)
    value[~near] = others.value
    if wants_bound:
        bound[~near] = others.bound
    return Found(value, bound)


def _slopes_to_matrix(plan: _Plan, samples: _BySamples | None, slopes: Tensor) -> Tensor:
    """The gradient to cov or to its factor; ``slopes``: those to limits."""
    rows, pairs, factor = plan.rows, plan.pairs, plan.factor[:, None]
    scaled = torch.where(finite(rows.limits), rows.limits, 0.0).mul_(slopes).sum(1)
    known = None if samples is None else samples.pairs
    if known is not None:
        unknown = ~plan.cov_by_path[:, None, None] | samples.unknown_pairs
        pairs = pairs.where(unknown[(pairs.row, *pairs.index.unbind(1))])
    values = None
    if plan.by_path is not None:
        how = _mvn_cdf_mixed.How(
            plan.takes_part, plan.budget, plan.n_pivots, plan.max_points, plan.sampled, rows.options[0], True
        )  # fmt: skip
        values = _mvn_cdf_mixed.of_pairs(rows, plan.limits, pairs, plan.pairs_by_samples, how)
    values = _completed(values, rows, pairs, plan.budget, plan.max_points)
    if rows.factored:
        return _to_factor(rows, pairs, signed(pairs, values, rows.limits.shape[1]), scaled, factor)
    h = pair_matrices(rows, pairs, values)
    if known is not None:
        h = torch.where(unknown, h, known)
    return _to_cov(rows, h, scaled, factor)


def _completed(
    values: Tensor | None, rows: Rows, pairs: Units, budget: Tensor, max_points: int
) -> Tensor:
    """The pairs' ``values``; where they are NaN (none: everywhere) those of a factor's rows, or conditional
    probabilities."""
    if values is None:
        values = pair_values(rows, pairs)
        if values is None:
            return conditional(rows, pairs, budget, max_points)
    elif bool(rows.exact.any()):
        left = values.isnan().nonzero()[:, 0]
        known = pair_values(rows, pairs.where(left)) if len(left) else None
        if known is not None:
            values[left] = known
    left = values.isnan().nonzero()[:, 0]
    if len(left):
        values[left] = conditional(rows, pairs.where(left), budget, max_points)
    return values


def _sampled_together(
    by_path: Tensor, cov_by_path: Tensor | None, tilted: Tensor | None
) -> Iterator[tuple[bool, bool, Tensor]]:
    """Groups of rows whose slopes are sampled alike: to cov too, tilted, the rows' numbers; none is empty."""
    groups = [(False, by_path)]
    if cov_by_path is not None:
        groups = [(False, by_path & ~cov_by_path), (True, cov_by_path)]
    for of_cov, mask in groups:
        parts = [mask] if tilted is None else [mask & ~tilted, mask & tilted]
        for of_tilted, part in enumerate(parts):
            rows = part.nonzero()[:, 0]
            if len(rows):
                yield of_cov, bool(of_tilted), rows


def _to_cov(rows: Rows, h: Tensor, scaled: Tensor, factor: Tensor) -> Tensor:
    """The gradient to cov, in place of H, which has the pairs; ``scaled``: the limits' slopes times
    the limits."""
    batch, n = scaled.shape
    half, chunk = 0.5 * factor[:, :, None], rows_at_once(n * n)
    for first in range(0, batch, chunk):
        some = slice(first, first + chunk)
        part, s = h[some], rows.scale[some]
        # Zero where nothing was computed, also beside a NaN.
        products = torch.where(part == 0, 0.0, part * rows.correlations(some))
        sums = scaled[some] + products.sum(-1)
        part.diagonal(dim1=1, dim2=2).copy_(-sums)
        # The product of the scales first: symmetric to the bit.
        part *= s[:, :, None] * s[:, None, :]
        part *= half[some]
    return h


def _to_factor(rows: Rows, pairs: Units, values: Tensor, scaled: Tensor, factor: Tensor) -> Tensor:
    """The same to a factor of cov. With w the rows of length one,
    dP/dU_i = (sum_j H_ij w_j - (scaled_i + sum_j R_ij H_ij) w_i) / s_i."""
    batch, n = scaled.shape
    w = rows.unit_rows(torch.arange(batch, device=scaled.device)).reshape(batch * n, -1)
    out, sums = torch.zeros_like(w), scaled.reshape(-1).clone()
    for part in torch.arange(len(values), device=w.device).split(rows_at_once(w.shape[1])):
        first, second = ((pairs.row[part] * n)[:, None] + pairs.index[part]).unbind(1)
        value = values[part]
        # A NaN of some other row or of a value that is not used stays there.
        r = torch.linalg.vecdot(w[first], w[second])
        for a, b in ((first, second), (second, first)):
            out.index_add_(0, a, value[:, None] * w[b])
            sums.index_add_(0, a, value * r)
    out.addcmul_(sums[:, None], w, value=-1)
    return out.reshape(rows.matrix.shape) * (rows.scale * factor)[:, :, None]


def _pathwise_pairs(
    rows: Rows, picks: Tensor, out: _mvn_cdf_pathwise.Slopes, how: _mvn_cdf_pathwise.Samples
) -> tuple[Tensor, Tensor]:
    """H [m, n, n] of these rows, zero on the diagonal, and the pairs that it does not know well.

    Those whose 99 % bound is above the tolerance times their density (or times one, where that is
    less), and above the relative one times the largest of the row, which Plackett's formula keeps; and
    all of a row whose covariance is singular: there the samples do not tell what a variance more does.
    """
    sd = how.standard_deviation
    each = 2 * sd[:, :, None] * sd[:, None, :]
    values = out.cov * each
    error = out.cov_error * each
    values.diagonal(dim1=1, dim2=2).zero_()
    r = rows.correlations(picks)
    density = 0.16 / (1 - r * r).clamp_min(rows.entry_error).sqrt()
    largest = values.abs().amax((1, 2), keepdim=True)
    allowed = torch.maximum(how.abs_tol * density.clamp_min(1.0), how.rel_tol * largest)
    bad = ~(error <= allowed) | out.exhausted[:, None, None]
    return values, bad | bad.mT


torch.library.impl("mvnrob::mvn_cdf_backward", ("cpu", "cuda"), _backward_op)


@torch.library.register_fake("mvnrob::mvn_cdf_backward")
def _(
    grad, grad_log, upper, cov, lower, seed, prob, complement, log_prob, n_points, n_pivots, abs_tol,
    rel_tol, max_points, method, compute_dtype, points, wants_cov,
    factored=False, log_tol=0.0,
):  # fmt: skip
    batch, n = upper.shape
    return (
        upper.new_empty(batch, n),
        upper.new_empty(0) if lower is None else upper.new_empty(batch, n),
        upper.new_empty(cov.shape) if wants_cov else upper.new_empty(0),
    )


def _save_backward(ctx, inputs, output) -> tuple[Tensor | None, ...]:
    *tensors, abs_tol, rel_tol, max_points, method, compute_dtype, points, wants_cov = inputs[:18]
    ctx.set_materialize_grads(False)
    ctx.options = abs_tol, rel_tol, max_points, method, compute_dtype, points
    ctx.wants_cov, ctx.flags = wants_cov, inputs[18:]
    return tuple(tensors)


def _second_backward(ctx, to_upper, to_lower, to_cov):
    """Second derivatives; p and what else came with it count as given."""
    grad, grad_log, *rest = ctx.saved_tensors
    needs = ctx.needs_input_grad
    cotangents = (
        to_upper,
        to_lower if rest[2] is not None else None,
        to_cov if ctx.wants_cov else None,
    )
    if all(t is None for t in cotangents):
        return (None,) * 20
    along, along_log, *to_problem = _mvn_cdf_hvp.call(
        grad,
        grad_log,
        *cotangents,
        *rest,
        *ctx.options,
        needs[0] or needs[1],
        needs[3],
        *ctx.flags,
    )
    to_upper, to_lower, to_cov = to_problem
    return (
        along if needs[0] else None,
        along_log if needs[1] else None,
        to_upper if needs[2] else None,
        to_cov if needs[3] else None,
        to_lower if needs[4] else None,
        *[None] * 15,
    )


def _second_jvp(ctx, saved, grad, grad_log, upper, cov, lower, *_):
    """The same: second derivatives are symmetric."""
    saved_grad, saved_log, *rest = saved
    parts = []
    if grad is not None or grad_log is not None:
        parts.append(_call_backward(grad, grad_log, *rest, *ctx.options, ctx.wants_cov, *ctx.flags))
    if any(t is not None for t in (upper, cov, lower)):
        product = _mvn_cdf_hvp.call(
            saved_grad, saved_log, upper, lower, cov, *rest, *ctx.options, False, ctx.wants_cov,
            *ctx.flags,
        )  # fmt: skip
        parts.append(product[2:])
    if not parts:
        return None, None, None
    return tuple(sum(p[1:], p[0]) for p in zip(*parts, strict=True))


_call_backward = register("mvn_cdf_backward", _second_backward, _second_jvp, _save_backward)


def _save(ctx, inputs, output) -> tuple[Tensor | None, ...]:
    upper, cov, lower, seed, *options = inputs
    prob, complement, error, status, n_points, n_active, n_pivots, log_prob, log_error = output
    ctx.mark_non_differentiable(error, status, n_points, n_active, n_pivots, log_error)
    # Which outputs the loss depends on decides what is computed.
    ctx.set_materialize_grads(False)
    ctx.options, ctx.flags = options[:6], options[6:]
    return upper, cov, lower, seed, prob, complement, log_prob, n_points, n_pivots


def _backward(ctx, grad_prob, grad_complement, *grads):
    upper, cov, lower, *rest = ctx.saved_tensors
    wants_upper, wants_cov, wants_lower = ctx.needs_input_grad[:3]
    grad, grad_log = grad_prob, grads[5]
    if grad_complement is not None:
        grad = -grad_complement if grad is None else grad - grad_complement
    if grad is None and grad_log is None:
        return (None,) * 12
    to_upper, to_lower, to_cov = _call_backward(
        grad,
        grad_log,
        upper,
        cov,
        lower,
        *rest,
        *ctx.options,
        wants_cov,
        *ctx.flags,
    )
    return (
        to_upper if wants_upper else None,
        to_cov if wants_cov else None,
        to_lower if wants_lower else None,
        *[None] * 9,
    )


def _jvp(ctx, saved, to_upper, to_cov, to_lower, *_):
    """The slopes of the backward times the tangents."""
    if to_upper is None and to_cov is None and to_lower is None:
        return (None,) * 9
    upper, _, lower, _, prob, _, log_prob, *_ = saved
    told = log_prob > -math.inf  # from zero
    # Relative to p where it is, which has all digits wherever p has them.
    slopes = _call_backward(
        (~told).to(prob.dtype),
        told.to(prob.dtype),
        *saved,
        *ctx.options,
        to_cov is not None,
        *ctx.flags,
    )
    along = along_tangents(slopes, (to_upper, to_lower, to_cov))
    of_prob = along * torch.where(told, prob, 1.0)
    contains = contain(upper[:, None] if lower is None else torch.stack([upper, lower], 1))
    undefined = torch.where(prob.isnan() | contains, math.nan, 0.0).to(prob.dtype)
    of_log = torch.where(told, along, undefined)
    return of_prob, -of_prob, None, None, None, None, None, of_log, None


#: torch.ops.mvnrob.mvn_cdf, also within torch.func.
call = register("mvn_cdf", _backward, _jvp, _save)
