"""Conditional problems of ``mvn_cdf``: a row given that one or two of its variables lie at their limits.

The rows are in units of the standard deviations, R their correlation. Conditioning takes the part
along the given variable out of R, or out of the rows of a factor, and moves the other limits; what is
left is a call of ``mvn_cdf`` with a variable or two less.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _ops

INDEFINITE = 3  # mvnrob.Status
#: A conditional probability may take at least so many points, the first look of mvn_cdf.
FEWEST = 512
#: Up to so many variables that matter the conditional problems have closed forms: none is skipped.
EXACT = 4
#: Problems of so many variables have closed forms to all digits that may be asked for: no points.
_CLOSED = 2
_BYTES = 64 * 2**20
_BYTES_PER_ENTRY = 32  # of a conditional matrix: as read, in float64, masks, the op's own


class Rows(NamedTuple):
    """The batch, in units of the standard deviations; float64 but for the matrix."""

    matrix: Tensor  # as given: cov [B, n, n], or where factored a factor [B, n, r]
    factored: bool
    dead: Tensor  # [B, n] variables without a limit or a variance
    all_live: bool  # there are none of them, as far as is known
    scale: Tensor  # [B, n] 1 / standard deviation, 0 for the dead
    limits: Tensor  # [B, 1 or 2, n]: upper, and lower where there are any
    seed: Tensor
    entry_error: float  # of R, by rounding, as in csrc/plan/variable.h
    log_unit: Tensor | None  # [B] slopes are in units of its exponential; none: of one
    fewest: Tensor | None  # [B] points that a conditional probability may take; none: FEWEST
    exact: Tensor  # [B] independent blocks of one factor, which conditional problems are again
    options: tuple  # abs_tol, rel_tol
    rest: tuple  # method, compute_dtype, points

    @property
    def open(self) -> Tensor:
        """[B, n] variables that have a density between their limits."""
        if self.limits.shape[1] == 1:
            return ~self.dead
        return (self.limits[:, 1] <= self.limits[:, 0]) & ~self.dead

    def problems(self, rows: Tensor) -> Tensor:
        """What the op takes for these rows, a copy: R, or the factor's rows of length one."""
        return self.unit_rows(rows) if self.factored else self.correlations(rows)

    def unit_rows(self, rows: Tensor | slice) -> Tensor:
        """The factor's rows of length one ``[b, n, r]``, a copy: zero for the dead."""
        u = self.matrix[rows] * self.scale[rows][:, :, None]
        return u.masked_fill_(self.dead[rows][:, :, None], 0.0)

    def correlations(self, rows: Tensor | slice, some: slice = slice(None)) -> Tensor:
        """R of these rows ``[b, i, n]``, i some of its variables; a copy: zero beside the dead,
        whatever cov has there."""
        if self.factored:
            u = self.unit_rows(rows)
            r = u[:, some] @ u.mT
        else:
            scale = self.scale[rows]
            r = self.matrix[rows, some] * scale[:, some, None]
            r *= scale[:, None, :]
        diagonal = r.diagonal(some.start or 0, dim1=1, dim2=2)
        if self.all_live:
            diagonal.fill_(1.0)
            return r
        dead = self.dead[rows]
        r.masked_fill_(dead[:, some, None] | dead[:, None, :], 0.0)
        diagonal.copy_(~dead[:, some])
        return r


class Units(NamedTuple):
    """Conditional problems: row b given that the variables i lie at their limits `side`."""

    row: Tensor  # [m]
    index: Tensor  # [m, 1 or 2]
    side: Tensor  # [m, 1 or 2] 0 upper, 1 lower
    log_density: Tensor  # [m] there
    stream: Tensor  # [m] number within the row, for the seed

    def limits(self, n: int) -> tuple[Tensor, ...]:
        """Numbers of the limits: n upper, then n lower ones."""
        return (self.side * n + self.index).unbind(1)

    def of(self, rows: Tensor) -> Units:
        """Those of the rows that the mask [B] marks."""
        return self.where(rows[self.row])

    def where(self, which: Tensor | slice) -> Units:
        if isinstance(which, Tensor) and which.dtype == torch.bool:
            which = which.nonzero()[:, 0]
        return Units(*(t[which] for t in self))

    @staticmethod
    def join(parts: list[Units]) -> Units:
        if len(parts) == 1:
            return parts[0]
        return Units(*(torch.cat(p) for p in zip(*parts, strict=True)))


@functools.lru_cache(maxsize=16)
def _bounds(max_points: int, device: torch.device) -> Tensor:
    return torch.tensor(_levels(max_points), dtype=torch.float64, device=device)


@functools.lru_cache(maxsize=16)
def _levels(max_points: int) -> list[int]:
    """Numbers of points that calls ask for; rows with the same one go together."""
    levels = [FEWEST]
    for k in range(1, 64):
        for level in (FEWEST * 2**k, FEWEST * 3 * 2 ** (k - 1)):
            if level <= max_points:
                levels.append(level)
        if levels[-1] < FEWEST * 2**k:
            break
    return levels


def finite(t: Tensor) -> Tensor:
    """torch.isfinite in two operations; it takes four."""
    return t.abs() < math.inf


def entry_error(dtype: torch.dtype) -> float:
    """Of a correlation, by rounding, as in csrc/plan/variable.h."""
    return (4 if dtype == torch.float64 else 1) * torch.finfo(dtype).eps


def standardised(
    upper: Tensor, cov: Tensor, lower: Tensor | None, factored: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Limits ``[B, 1 or 2, n]`` in units of the standard deviations, which variables are dead, 1 over
    the standard deviations, and these, ``[B, n]``: the last two are 0 for the dead."""
    limits = upper[:, None] if lower is None else torch.stack([upper, lower], 1)
    limits = limits.double()
    if factored:
        shared = cov[:1] if cov.stride(0) == 0 else cov
        variance = shared.double().square().sum(2).expand(upper.shape)
    else:
        variance = cov.diagonal(dim1=1, dim2=2).double()
    limited = finite(upper) if lower is None else finite(upper) | finite(lower)
    dead = ~((variance > 0) & limited)
    sd = variance.sqrt().masked_fill_(dead, 0.0)
    inverse = 1 / sd
    scale = inverse.masked_fill(dead, 0.0)
    # A step has its limit in its own units; only its sign matters.
    return limits * inverse.masked_fill_(dead, 1.0)[:, None], dead, scale, sd


def contain(limits: Tensor) -> Tensor:
    """[B] rows whose limits [B, 1 or 2, n] contain something."""
    low = -math.inf if limits.shape[1] == 1 else limits[:, 1]
    return (low < limits[:, 0]).all(1)


def moves(*cotangents: Tensor | None) -> Tensor:
    """[B] rows that one of them, at least one of which there is, is not zero for."""
    given = [t != 0 for t in cotangents if t is not None]
    return given[0] if len(given) == 1 else given[0] | given[1]


def in_units_of_p(
    grad: Tensor | None, grad_log: Tensor | None, log_prob: Tensor
) -> tuple[Tensor | None, Tensor | float]:
    """Logarithms of the units ``[B]`` in which slopes are wanted, p where its logarithm moves the loss
    and else one (none: one everywhere), and the cotangents in them."""
    factor = 0.0 if grad is None else grad.double()
    if grad_log is None:
        return None, factor
    grad_log = grad_log.double()
    log_unit = torch.where((grad_log != 0) & (log_prob != 0), log_prob, 0.0)
    if grad is not None:
        factor = torch.where(factor == 0, 0.0, factor * log_unit.exp())
    return log_unit, factor + grad_log


def _given(rows: Rows, r: Tensor, limits: Tensor, index: Tensor, side: Tensor) -> Tensor | None:
    """Conditions in place on X_index at its limit; returns the share of that variable, if there are
    ties."""
    unit, entry_error = torch.arange(len(r), device=r.device), rows.entry_error
    mine = r[unit, index]
    # Zero is as in the forward: a few entries' rounding, and once more by the pivot.
    if rows.factored:
        before = r.square().sum(2)
        variance, zero = before[unit, index][:, None], 128 * entry_error**2
        q = mine / variance.sqrt()
        c = torch.linalg.vecdot(r, q[:, None, :])
        r.addcmul_(c[:, :, None], q[:, None, :], value=-1)
        after = r.square().sum(2)
    else:
        variance, zero = mine.gather(1, index[:, None]), 16 * entry_error
        c = mine / variance.sqrt()
        after = r.diagonal(dim1=1, dim2=2)
        before = after.clone()
        r.addcmul_(c[:, :, None], c[:, None, :], value=-1)
    shift = (c * (limits[unit, side, index][:, None] / variance.sqrt()))[:, None, :]
    zero = zero / variance
    gone = after <= zero
    multiple = gone & (before > zero)
    multiple.scatter_(1, index[:, None], False)
    unlimited = list(zip(limits.unbind(1), (math.inf, -math.inf), strict=False))
    share = None
    if bool(multiple.any()):
        size = limits.abs() + shift.abs()
        limits.sub_(shift)
        tie = (limits.abs() <= 8 * entry_error * size) & limits.isfinite() & multiple[:, None, :]
        tie = tie.any(1)
        share = 1 / (1 + tie.sum(1).double())
        for limit, infinite in unlimited:
            limit.masked_fill_(tie, infinite)
    else:
        limits.sub_(shift)
    for limit, infinite in unlimited:
        limit.scatter_(1, index[:, None], infinite)
    r.masked_fill_(gone[:, :, None], 0.0)
    if not rows.factored:
        r.masked_fill_(gone[:, None, :], 0.0)
    return share


class Found(NamedTuple):
    """Of each unit, in its row's units."""

    value: Tensor  # [m] density * Q
    bound: Tensor  # [m] 99 % bound on its error; inf or NaN where nothing is known


def conditional(rows: Rows, units: Units, budget: Tensor, max_points: int) -> Tensor:
    """density * Q / exp(log_unit) of each unit; `budget` [B] is what a row's may cost together."""
    return conditional_and_bound(rows, units, budget, max_points, False).value


def conditional_and_bound(
    rows: Rows, units: Units, budget: Tensor, max_points: int, wants_bound: bool = True
) -> Found:
    """The same and how well it is known, where that is wanted; else the bounds are empty."""
    size = len(units.row)
    if size == 0:
        return Found(*torch.zeros_like(units.log_density).expand(2, 0))
    pieces = list(_pieces(rows, units, budget, max_points))
    if len(pieces) == 1:
        return _probabilities(rows, units, *pieces[0][1:], wants_bound)
    value = torch.empty_like(units.log_density)
    bound = torch.empty_like(value[: size if wants_bound else 0])
    for some, *how in pieces:
        part = _probabilities(rows, units.where(some), *how, wants_bound)
        value[some] = part.value
        if wants_bound:
            bound[some] = part.bound
    return Found(value, bound)


def _pieces(
    rows: Rows, units: Units, budget: Tensor, max_points: int
) -> Iterator[tuple[Tensor | slice, int, torch.dtype]]:
    """The units that are computed together: which, the most points of each, and their dtype."""
    size, chunk = len(units.row), rows_at_once(rows.matrix[0].numel())
    if rows.dead.shape[1] - units.index.shape[1] <= _CLOSED and rows.rest[0] != "sov":
        for first in range(0, size, chunk):
            yield slice(first, first + chunk), max_points, torch.float64
        return
    levels = _levels(max_points)
    # A row's share of its budget; that of a row without units is not looked at.
    each = budget / torch.bincount(units.row, minlength=len(budget))
    if rows.fewest is not None:
        each = torch.maximum(each, rows.fewest)
    each = each.clamp(FEWEST, max(max_points, FEWEST)).double()
    level = torch.bucketize(each, _bounds(max_points, each.device), right=True) - 1
    level = (2 * level + rows.exact)[units.row]
    least, most = (int(t) for t in level.aminmax())
    for number in [least] if least == most else level.unique().tolist():
        # What has its form to float32's rounding has it in float32 alone.
        how = levels[number // 2], rows.matrix.dtype if number % 2 else torch.float64
        for some in (level == number).nonzero()[:, 0].split(chunk):
            yield some, *how


def conditional_near_one(rows: Rows, units: Units, budget: Tensor, max_points: int) -> Tensor:
    """The same where p is near 1 and so is Q as a rule: its error absolute, then as digits of Q where
    that is small, among the variables that matter."""
    out = torch.zeros_like(units.log_density)
    if out.numel() == 0:
        return out
    abs_tol, rel_tol = rows.options
    enough = max(abs_tol, 0.5 * rel_tol)
    each = budget / torch.bincount(units.row, minlength=len(budget)).clamp_min(1)
    for part in torch.arange(len(out), device=out.device).split(
        rows_at_once(8 * rows.dead.shape[1])
    ):
        piece = Units(*(t[part] for t in units))
        order, count = _that_matter(rows, piece, 0.1 * enough)
        for size in count.unique().tolist():
            mine = (count == size).nonzero()[:, 0]
            few = Units(*(t[mine] for t in piece))
            at = torch.arange(len(mine), device=out.device)
            among = _among(rows, few, order[mine, :size])._replace(options=(enough, 0.0))
            alone = few._replace(row=at, index=torch.zeros_like(few.index))
            out[part[mine]] = conditional(among, alone, each[few.row], max_points)
    log_unit = 0.0 if rows.log_unit is None else rows.log_unit[units.row]
    again = (out < 0.5 * (units.log_density - log_unit).exp()).nonzero()[:, 0]
    if len(again):
        out[again] = conditional(rows, Units(*(t[again] for t in units)), budget, max_points)
    return out


def _that_matter(rows: Rows, units: Units, dropped: float) -> tuple[Tensor, Tensor]:
    """[m, n] the units' own variable and then the others, those most likely to fail given it first;
    [m] how many matter: those after them fail with at most the probability `dropped`, all together.
    It is rounded up to a power of two, so that few sizes occur."""
    n = rows.dead.shape[1]
    row, i = units.row, units.index[:, 0]
    if rows.factored:
        some, mine = row.unique(return_inverse=True)
        w = rows.unit_rows(some)
        r = (w @ w.mT)[mine, i]
    else:
        r = rows.matrix[row, i].double() * rows.scale[row] * rows.scale[row, i][:, None]
    dead = rows.dead[row]
    r.masked_fill_(dead, 0.0)
    left = 1 - r * r
    spread = left.clamp_min(0).sqrt()
    value = rows.limits[row, units.side[:, 0], i][:, None]
    upper, *lower = ((limit - r * value) / spread for limit in rows.limits[row].unbind(1))
    fails = torch.special.ndtr(-upper)
    for t in lower:
        fails += torch.special.ndtr(t)
    # Multiples of it, and what is not a number, stay.
    fails = torch.where(left > 32 * rows.entry_error, fails, 2.0).nan_to_num(2.0)
    fails.masked_fill_(dead, 0.0)
    fails[torch.arange(len(row), device=row.device), i] = 3.0
    fails, order = fails.sort(1, descending=True)
    rest = fails.flip(1).cumsum(1).flip(1)  # of this variable and those after it
    count = (rest > dropped).sum(1)
    power = torch.exp2((count - 0.5).log2().ceil()).long()
    return order, power.clamp(1, n)


def _among(rows: Rows, units: Units, kept: Tensor) -> Rows:
    """A row for each unit, of the variables `kept` [m, k] alone."""
    row = units.row
    at = row[:, None]
    if rows.factored:
        matrix = rows.matrix[at, kept]
    else:
        matrix = rows.matrix[at[:, :, None], kept[:, :, None], kept[:, None, :]]
    return rows._replace(
        matrix=matrix,
        dead=rows.dead[at, kept],
        scale=rows.scale[at, kept],
        limits=rows.limits[row].gather(2, kept[:, None].expand(-1, rows.limits.shape[1], -1)),
        seed=rows.seed[row],
        log_unit=None if rows.log_unit is None else rows.log_unit[row],
        fewest=None if rows.fewest is None else rows.fewest[row],
        exact=rows.exact[row],
    )


def rows_at_once(entries: int) -> int:
    """How many matrices of so many entries are worked on at once."""
    return max(1, _BYTES // (_BYTES_PER_ENTRY * max(1, entries)))


def repair(r: Tensor) -> None:
    """In place: indefinite by float32's rounding no more."""
    diagonal = r.diagonal(dim1=1, dim2=2)
    jitter = 4 * r.shape[-1] * torch.finfo(torch.float32).eps
    diagonal.add_((diagonal != 0) * jitter)


class Problem(NamedTuple):
    """What is left of some rows under their conditions: what the op takes."""

    upper: Tensor  # [m, n]
    matrix: Tensor  # [m, n, ...]: R, or a factor of it
    lower: Tensor | None  # [m, n]
    seed: Tensor  # [m]


def problem_of(rows: Rows, units: Units, dtype: torch.dtype) -> tuple[Problem, list[Tensor | None]]:
    """And the shares of the variables at their limits, one for each condition; none: all one."""
    r = rows.problems(units.row)
    limits = rows.limits[units.row]
    shares = []
    for index, side in zip(units.index.unbind(1), units.side.unbind(1), strict=True):
        shares.append(_given(rows, r, limits, index, side))
    # Steps of the golden ratio: the streams of a row and the seeds of a batch do not meet.
    seed = rows.seed[units.row] + (units.stream + 1) * -0x61C8864680B583EB
    r = r.to(dtype)
    upper, *lower = (t.contiguous() for t in limits.to(dtype).unbind(1))
    lower = lower[0] if lower and bool((lower[0] != -math.inf).any()) else None
    return Problem(upper, r, lower, seed), shares


def _probabilities(
    rows: Rows, units: Units, max_points: int, dtype: torch.dtype, wants_bound: bool
) -> Found:
    (upper, r, lower, seed), shares = problem_of(rows, units, dtype)
    wanted = (0, 7, 2, 8) if wants_bound else (0, 7)  # prob, log_prob and their errors

    def call(*problem):
        out = _ops.call("mvn_cdf", *problem, *rows.options, max_points, *rows.rest, rows.factored)
        return out[3], [out[k].double() for k in wanted]

    status, found = call(upper, r, lower, seed)
    # A small conditional variance is rounding of the matrix made large. The forward takes what
    # float32's rounding explains as singular, so here as much is added to the diagonal.
    bad = (status == INDEFINITE).nonzero()[:, 0]
    if len(bad):
        repair(r)
        _, again = call(upper[bad], r[bad], None if lower is None else lower[bad], seed[bad])
        found = [t.index_copy(0, bad, s) for t, s in zip(found, again, strict=True)]
    prob, log_prob, *errors = found
    density = units.log_density.exp()
    out = [density * prob] + [density * error for error in errors[:1]]
    if rows.log_unit is not None:
        # Relative to p where its logarithm is asked for, in logarithms: no factor need be a number.
        unit = rows.log_unit[units.row]
        relative = (units.log_density + log_prob - unit).exp()
        relatives = [relative] + [relative * error.expm1() for error in errors[1:]]
        out = [torch.where(unit == 0, *pair) for pair in zip(out, relatives, strict=True)]
    for share in shares:
        if share is not None:
            out = [t * share for t in out]
    return Found(*out) if wants_bound else Found(*out, out[0][:0])


def _log_phi(x: Tensor) -> Tensor:
    return -0.5 * x * x - 0.5 * math.log(2 * math.pi)


def limit_units(rows: Rows, wanted: Tensor, log_least: Tensor | float) -> Units:
    """``log_least`` ``[B, 1]``: densities that matter are larger; those at infinity are zero."""
    n = rows.dead.shape[-1]
    parts = []
    open_ = rows.open & wanted[:, None]
    for side, z in enumerate(rows.limits.unbind(1)):
        density = _log_phi(z)
        row, i = (open_ & (density > log_least)).nonzero(as_tuple=True)
        index = i[:, None]
        parts.append(Units(row, index, torch.full_like(index, side), density[row, i], side * n + i))
    return Units.join(parts)


def _rounding_of_multiples(rows: Rows) -> float:
    """1 - R_ij^2 of variables that are multiples of each other: a factor's rounding moves it by no more than
    its square, as in _given."""
    if rows.factored:
        return max(32 * entry_error(torch.float64), 128 * rows.entry_error**2)
    return 32 * rows.entry_error


def pair_units(rows: Rows, wanted: Tensor, log_least: Tensor | float) -> Units:
    n = rows.dead.shape[-1]
    sides = range(rows.limits.shape[1])
    usable = rows.open
    parts = []
    zero = _rounding_of_multiples(rows)
    height = min(n, rows_at_once(n))  # variables of a piece of R
    for some in wanted.nonzero()[:, 0].split(rows_at_once(n * n)):
        for first in range(0, n, height):
            here = slice(first, min(first + height, n))
            r = rows.correlations(some, here)
            left = 1 - r * r
            pair = (usable[some, here, None] & usable[some, None, :]).triu(1 + first)
            # There no density, or an infinite one where the limits meet.
            pair &= left > zero
            spread = torch.where(pair, left, 1.0).sqrt()
            least = log_least if isinstance(log_least, float) else log_least[some, :, None]
            for of_i, of_j in itertools.product(sides, sides):
                a = rows.limits[some, of_i, here, None]
                b = rows.limits[some, of_j, None, :]
                # At infinity it is zero, or not a number: neither is larger.
                density = _log_phi(a) + _log_phi((b - r * a) / spread) - spread.log()
                row, i, j = (pair & (density > least)).nonzero(as_tuple=True)
                side = torch.tensor([of_i, of_j], device=i.device).expand(len(i), 2)
                weight, i = density[row, i, j], i + first
                stream = (2 + (2 * of_i + of_j) * n + i) * n + j
                parts.append(Units(some[row], torch.stack([i, j], 1), side, weight, stream))
    return Units.join(parts)


def signed(units: Units, values: Tensor, sides: int) -> Tensor:
    """Negative for each lower limit among its conditions."""
    if sides == 1:
        return values
    return torch.where(units.side.sum(1) % 2 == 0, values, -values)


def pair_matrices(rows: Rows, pairs: Units, values: Tensor) -> Tensor:
    """H [B, n, n] from its corners."""
    batch, n = rows.dead.shape
    sides = rows.limits.shape[1]
    h = torch.zeros(batch, n, n, dtype=torch.float64, device=values.device)
    values = signed(pairs, values, sides)
    for mine in _corners(pairs, sides):  # one at a time: within one, no entry comes twice
        h[(pairs.row[mine], *pairs.index[mine].unbind(1))] += values[mine]
    return h.add_(h.mT.clone())


def _corners(pairs: Units, sides: int) -> list[Tensor | slice]:
    if sides == 1:
        return [slice(None)]
    corner = 2 * pairs.side[:, 0] + pairs.side[:, 1]
    return [(corner == k).nonzero()[:, 0] for k in range(4)]
