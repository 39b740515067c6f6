"""Gradients of ``mvn_cdf``: conditional probabilities, computed by ``mvn_cdf`` itself.

In units of the standard deviations, z = limit / s, R the correlation:

    dP/du_i = phi(u_i) Q(X_i = u_i),  dP/dl_i = -phi(l_i) Q(X_i = l_i),
    H_ij = d2P/dz_i dz_j = sum over the corners (a, b) of the limits of i and j of
           +- phi_2(a, b; R_ij) Q(X_i = a, X_j = b),  minus where one is lower and one upper,

Q the probability that the others keep their limits, given that. dP/dR_ij = H_ij (Plackett, Biometrika
41 (1954)), shared by the entries (i, j) and (j, i). Scaling X_i is scaling its limits back, so

    dP/dcov_ii = -(u_i dP/du_i + l_i dP/dl_i + sum_j R_ij H_ij) / (2 cov_ii).

Where cov is singular these are limits from the positive definite side, and continuous there but for
multiples (and for limits of three or more variables that meet in one point of their common subspace,
where it is one of several): a derivative in every direction that stays positive semidefinite.

To a factor U of cov it is dU = (dcov + dcov^T) U, summed over the pairs without forming dcov; conditional
problems keep a factor then (U without its part along row i), so they are semidefinite whatever rounding does.

Multiples of one another (|R_ij| = 1): each decides where the other is given, so Q is 0 or 1 times that
of the rest, and the limits' gradients are right where the limits differ. Where they meet, P has a kink
(a minimum of limits): the variables share the slope equally, as torch.amin does. There dP/dR_ij is
infinite; H_ij is taken as zero, which is exact in directions that leave them multiples of each other,
and a subgradient to a factor of cov: P falls like |change of the factor|, symmetrically.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import _load  # noqa: F401  (the schemas)
from ._autograd import register

#: The limits' conditional probabilities of a row take at most this many times the row's points, and
#: so do those of the pairs; each at least _FEWEST, the first look of mvn_cdf.
COST = 3
_INDEFINITE = 3  # mvnrob.Status
_FEWEST = 512
#: Up to so many variables that matter the conditional problems have closed forms: none is skipped.
_EXACT = 4
_BYTES = 64 * 2**20
_BYTES_PER_ENTRY = 32  # of a conditional matrix: as read, in float64, masks, the op's own


class _Rows(NamedTuple):
    """The batch, in units of the standard deviations; float64 but for the matrix."""

    matrix: Tensor  # as given: cov [B, n, n], or where factored a factor [B, n, r]
    factored: bool
    dead: Tensor  # [B, n] variables without a limit or a variance
    scale: Tensor  # [B, n] 1 / standard deviation, 0 for the dead
    limits: Tensor  # [B, 2, n]: upper, lower
    seed: Tensor
    entry_error: float  # of R, by rounding, as in csrc/plan/variable.h
    options: tuple  # abs_tol, rel_tol
    rest: tuple  # method, compute_dtype

    def problems(self, rows: Tensor) -> Tensor:
        """What the op takes for these rows, a copy: R, or the factor's rows of length one."""
        return self.unit_rows(rows) if self.factored else self.correlations(rows)

    def unit_rows(self, rows: Tensor) -> Tensor:
        """The factor's rows of length one ``[b, n, r]``, a copy: zero for the dead."""
        u = self.matrix[rows].double().mul_(self.scale[rows][:, :, None])
        return u.masked_fill_(self.dead[rows][:, :, None], 0.0)

    def correlations(self, rows: Tensor, some: slice = slice(None)) -> Tensor:
        """R of these rows ``[b, i, n]``, i some of its variables; a copy: zero beside the dead,
        whatever cov has there."""
        scale, dead = self.scale[rows], self.dead[rows]
        if self.factored:
            u = self.unit_rows(rows)
            r = u[:, some] @ u.mT
        else:
            r = self.matrix[rows, some].double()
            r.mul_(scale[:, some, None]).mul_(scale[:, None, :])
            r.masked_fill_(dead[:, some, None] | dead[:, None, :], 0.0)
        r.diagonal(some.start or 0, dim1=1, dim2=2).copy_((~dead[:, some]).double())
        return r


class _Units(NamedTuple):
    """Conditional problems: row b given that the variables i lie at their limits `side`."""

    row: Tensor  # [m]
    index: Tensor  # [m, 1 or 2]
    side: Tensor  # [m, 1 or 2] 0 upper, 1 lower
    weight: Tensor  # [m] density there
    stream: Tensor  # [m] number within the row, for the seed

    @staticmethod
    def join(parts: list[_Units]) -> _Units:
        return _Units(*(torch.cat(p) for p in zip(*parts, strict=True)))


def _phi(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _levels(max_points: int) -> list[int]:
    """Numbers of points that calls ask for; rows with the same one go together."""
    levels = [_FEWEST]
    for k in range(1, 64):
        for level in (_FEWEST * 2**k, _FEWEST * 3 * 2 ** (k - 1)):
            if level <= max_points:
                levels.append(level)
        if levels[-1] < _FEWEST * 2**k:
            break
    return levels


def _given(rows: _Rows, r: Tensor, limits: Tensor, index: Tensor, side: Tensor) -> Tensor:
    """Conditions in place on X_index at its limit; returns the share of that variable (ties)."""
    unit, entry_error = torch.arange(len(r), device=r.device), rows.entry_error
    # Zero is as in the forward: a few entries' rounding, and once more by the pivot.
    if rows.factored:
        before = r.square().sum(2)
        variance, zero = before[unit, index], 128 * entry_error**2
        q = r[unit, index] / variance.sqrt()[:, None]
        c = torch.linalg.vecdot(r, q[:, None, :])
        r.addcmul_(c[:, :, None], q[:, None, :], value=-1)
        after = r.square().sum(2)
    else:
        variance, zero = r[unit, index, index], 16 * entry_error
        c = r[unit, index] / variance.sqrt()[:, None]
        after = r.diagonal(dim1=1, dim2=2)
        before = after.clone()
        r.addcmul_(c[:, :, None], c[:, None, :], value=-1)
    value = limits[unit, side, index] / variance.sqrt()
    zero = (zero / variance)[:, None]
    gone = after <= zero
    multiple = gone & (before > zero)
    multiple[unit, index] = False
    shift = (c * value[:, None])[:, None, :]
    size = limits.abs() + shift.abs()
    limits.sub_(shift)
    tie = (limits.abs() <= 8 * entry_error * size) & limits.isfinite() & multiple[:, None, :]
    tie = tie.any(1)
    r.masked_fill_(gone[:, :, None], 0.0)
    if not rows.factored:
        r.masked_fill_(gone[:, None, :], 0.0)
    tied = tie.sum(1)
    tie[unit, index] = True
    limits[:, 0].masked_fill_(tie, math.inf)
    limits[:, 1].masked_fill_(tie, -math.inf)
    return 1 / (1 + tied.double())


def _conditional(rows: _Rows, units: _Units, budget: Tensor, max_points: int) -> Tensor:
    """weight * Q of each unit; `budget` [B] is what a row's units may cost together."""
    out = torch.zeros_like(units.weight)
    if out.numel() == 0:
        return out
    counts = torch.bincount(units.row, minlength=len(budget))
    levels = _levels(max_points)
    each = (budget / counts.clamp_min(1)).clamp(_FEWEST, max(max_points, _FEWEST))
    bounds = torch.tensor(levels, dtype=torch.float64, device=each.device)
    level = torch.bucketize(each.double(), bounds, right=True)[units.row] - 1
    chunk = _chunk(rows.matrix[0].numel())
    for number in level.unique().tolist():
        picks = (level == number).nonzero()[:, 0]
        for part in picks.split(chunk):
            piece = _Units(*(t[part] for t in units))
            out[part] = _probabilities(rows, piece, levels[number]) * piece.weight
    return out


def _chunk(entries: int) -> int:
    """How many matrices of so many entries are worked on at once."""
    return max(1, _BYTES // (_BYTES_PER_ENTRY * max(1, entries)))


def _probabilities(rows: _Rows, units: _Units, max_points: int) -> Tensor:
    r = rows.problems(units.row)
    limits = rows.limits[units.row]
    share = torch.ones_like(units.weight)
    for index, side in zip(units.index.unbind(1), units.side.unbind(1), strict=True):
        share = share * _given(rows, r, limits, index, side)
    # Steps of the golden ratio: the streams of a row and the seeds of a batch do not meet.
    seed = rows.seed[units.row] + (units.stream + 1) * -0x61C8864680B583EB
    upper, lower = limits.unbind(1)
    lower = lower.contiguous() if bool((lower != -math.inf).any()) else None

    def call(keep):
        return torch.ops.mvnrob.mvn_cdf(
            upper[keep].contiguous(),
            r[keep],
            None if lower is None else lower[keep].contiguous(),
            seed[keep],
            *rows.options,
            max_points,
            *rows.rest,
            rows.factored,
        )

    every = slice(None)
    prob, _, _, status, *_ = call(every)
    # A small conditional variance is rounding of the matrix made large. The forward takes what
    # float32's rounding explains as singular, so here as much is added to the diagonal.
    bad = (status == _INDEFINITE).nonzero()[:, 0]
    if len(bad):
        diagonal = r.diagonal(dim1=1, dim2=2)
        jitter = 4 * r.shape[-1] * torch.finfo(torch.float32).eps
        r.diagonal(dim1=1, dim2=2).add_((diagonal != 0) * jitter)
        prob = prob.index_copy(0, bad, call(bad)[0])
    return prob * share


def _limit_units(rows: _Rows, wanted: Tensor, least: Tensor) -> _Units:
    n = rows.dead.shape[-1]
    parts = []
    open_ = (rows.limits[:, 1] <= rows.limits[:, 0]) & ~rows.dead & wanted[:, None]
    for side in (0, 1):
        z = rows.limits[:, side]
        density = _phi(z)
        row, i = (open_ & z.isfinite() & (density > least[:, None])).nonzero(as_tuple=True)
        parts.append(
            _Units(
                row, i[:, None], torch.full_like(i, side)[:, None], density[row, i], side * n + i
            )
        )
    return _Units.join(parts)


def _pair_units(rows: _Rows, wanted: Tensor, least: Tensor) -> _Units:
    n = rows.dead.shape[-1]
    usable = (rows.limits[:, 1] <= rows.limits[:, 0]) & ~rows.dead
    parts = []
    height = min(n, _chunk(n))  # variables of a piece of R
    for some in wanted.nonzero()[:, 0].split(_chunk(n * n)):
        for first in range(0, n, height):
            here = slice(first, min(first + height, n))
            r = rows.correlations(some, here)
            left = 1 - r * r
            pair = (usable[some, here, None] & usable[some, None, :]).triu(1 + first)
            # |R_ij| = 1 to rounding: no density, or an infinite one where the limits meet.
            pair &= left > 32 * rows.entry_error
            spread = torch.where(pair, left, 1.0).sqrt()
            for corner in range(4):
                a = rows.limits[some, corner // 2, here, None]
                b = rows.limits[some, corner % 2, None, :]
                finite = pair & a.isfinite() & b.isfinite()
                a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
                density = _phi(a) * _phi((b - r * a) / spread) / spread
                row, i, j = (finite & (density > least[some, None, None])).nonzero(as_tuple=True)
                side = torch.tensor([corner // 2, corner % 2], device=i.device).expand(len(i), 2)
                weight, i = density[row, i, j], i + first
                stream = (2 + corner * n + i) * n + j
                parts.append(_Units(some[row], torch.stack([i, j], 1), side, weight, stream))
    return _Units.join(parts)


def _backward_op(
    grad: Tensor,
    upper: Tensor,
    cov: Tensor,
    lower: Tensor | None,
    seed: Tensor,
    prob: Tensor,
    complement: Tensor,
    n_points: Tensor,
    abs_tol: float,
    rel_tol: float,
    max_points: int,
    method: str,
    compute_dtype: str,
    wants_cov: bool,
    factored: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, n = upper.shape
    dtype = upper.dtype
    nothing = upper.new_empty(0)
    if batch == 0 or n == 0:
        return (
            torch.zeros_like(upper),
            nothing if lower is None else torch.zeros_like(upper),
            upper.new_zeros(cov.shape) if wants_cov else nothing,
        )
    grad = grad.double()
    low = torch.full_like(upper, -math.inf) if lower is None else lower
    limits = torch.stack([upper, low], 1).double()
    if factored:
        shared = cov[:1] if cov.stride(0) == 0 else cov
        variance = shared.double().square().sum(2).expand(batch, n)
    else:
        variance = cov.diagonal(dim1=1, dim2=2).double()
    dead = ~(variance > 0) | ~limits.isfinite().any(1)
    scale = torch.where(dead, 0.0, 1 / variance.sqrt())
    # A step has its limit in its own units; only its sign matters.
    limits = torch.where(dead[:, None], limits, limits * scale[:, None])
    entry_error = (4 if dtype == torch.float64 else 1) * torch.finfo(dtype).eps
    options = (abs_tol, rel_tol), (method, compute_dtype)
    rows = _Rows(cov, factored, dead, scale, limits, seed, entry_error, *options)

    nan = prob.isnan()
    wanted = (grad != 0) & ~nan
    tolerance = torch.minimum(prob, complement).double().mul(rel_tol).clamp_min(abs_tol)
    live = (~dead).sum(1)
    # What is skipped cannot move any sum over the variables by more than a tenth of the tolerance.
    least = 0.1 * tolerance / live.clamp_min(1)
    budget = COST * n_points

    units = _limit_units(rows, wanted, torch.where(live <= _EXACT, 0.0, least))
    values = _conditional(rows, units, budget, max_points)
    slopes = torch.zeros_like(limits)
    side = units.side[:, 0]
    slopes[units.row, side, units.index[:, 0]] = torch.where(side == 0, values, -values)
    # NaN rows have NaN gradients, but where nothing depends on them.
    factor = torch.where(nan & (grad != 0), math.nan, grad)[:, None]
    to_limits = (slopes * scale[:, None] * factor[:, None]).to(dtype)
    to_upper = to_limits[:, 0].contiguous()
    to_lower = nothing if lower is None else to_limits[:, 1].contiguous()
    if not wants_cov:
        return to_upper, to_lower, nothing

    pairs = _pair_units(rows, wanted, torch.where(live <= _EXACT + 1, 0.0, least))
    values = _conditional(rows, pairs, budget, max_points)
    values = torch.where(pairs.side[:, 0] == pairs.side[:, 1], values, -values)
    scaled = torch.where(limits.isfinite(), limits, 0.0).mul_(slopes).sum(1)
    to_matrix = (_to_factor if factored else _to_cov)(rows, pairs, values, scaled, factor)
    return to_upper, to_lower, to_matrix.to(dtype)


def _to_cov(rows: _Rows, pairs: _Units, values: Tensor, scaled: Tensor, factor: Tensor) -> Tensor:
    """The gradient to cov, from H of the pairs and the limits' slopes times the limits."""
    batch, n = scaled.shape
    h = torch.zeros(batch, n, n, dtype=torch.float64, device=scaled.device)
    for corner in range(4):  # one at a time: within one, no entry comes twice
        mine = (2 * pairs.side[:, 0] + pairs.side[:, 1] == corner).nonzero()[:, 0]
        h[(pairs.row[mine], *pairs.index[mine].unbind(1))] += values[mine]
    h += h.mT.clone()
    for some in torch.arange(batch, device=scaled.device).split(_chunk(n * n)):
        part, s = h[some], rows.scale[some]
        # Zero where nothing was computed, also beside a NaN.
        products = torch.where(part == 0, 0.0, part * rows.correlations(some))
        sums = scaled[some] + products.sum(-1)
        part.diagonal(dim1=1, dim2=2).copy_(-sums)
        # The product of the scales first: symmetric to the bit.
        h[some] = part * (s[:, :, None] * s[:, None, :]) * (0.5 * factor[some, :, None])
    return h


def _to_factor(
    rows: _Rows, pairs: _Units, values: Tensor, scaled: Tensor, factor: Tensor
) -> Tensor:
    """The same to a factor of cov. With w the rows of length one,
    dP/dU_i = (sum_j H_ij w_j - (scaled_i + sum_j R_ij H_ij) w_i) / s_i."""
    batch, n = scaled.shape
    w = rows.unit_rows(torch.arange(batch, device=scaled.device)).reshape(batch * n, -1)
    out, sums = torch.zeros_like(w), scaled.reshape(-1).clone()
    for part in torch.arange(len(values), device=w.device).split(_chunk(w.shape[1])):
        first, second = ((pairs.row[part] * n)[:, None] + pairs.index[part]).unbind(1)
        value = values[part]
        # A NaN of some other row or of a value that is not used stays there.
        r = torch.linalg.vecdot(w[first], w[second])
        for a, b in ((first, second), (second, first)):
            out.index_add_(0, a, value[:, None] * w[b])
            sums.index_add_(0, a, value * r)
    out.addcmul_(sums[:, None], w, value=-1)
    return out.reshape(rows.matrix.shape) * (rows.scale * factor)[:, :, None]


torch.library.impl("mvnrob::mvn_cdf_backward", ("cpu", "cuda"), _backward_op)


@torch.library.register_fake("mvnrob::mvn_cdf_backward")
def _(
    grad, upper, cov, lower, seed, prob, complement, n_points, abs_tol, rel_tol, max_points, method,
    compute_dtype, wants_cov, factored=False,
):  # fmt: skip
    batch, n = upper.shape
    return (
        upper.new_empty(batch, n),
        upper.new_empty(0) if lower is None else upper.new_empty(batch, n),
        upper.new_empty(cov.shape) if wants_cov else upper.new_empty(0),
    )


@torch.library.register_vmap("mvnrob::mvn_cdf_backward")
def _(info, in_dims, *args):
    """The mapped dimension joins the rows, each of which has its own seed."""
    size = info.batch_size
    joined = []
    for x, dim in zip(args, in_dims, strict=True):
        if isinstance(x, Tensor):
            x = x[None].expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            x = x.reshape(size * x.shape[1], *x.shape[2:])
        joined.append(x)
    out = torch.ops.mvnrob.mvn_cdf_backward(*joined)
    shape = (size, joined[0].shape[0] // size)
    # An empty output stands for none.
    return tuple(t.expand(size, 0) if t.dim() == 1 else t.unflatten(0, shape) for t in out), 0


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError(
        "mvn_cdf: second derivatives are not built yet; first ones are, without create_graph"
    )


_call_backward = register("mvn_cdf_backward", _no_second_derivative)


def _save(ctx, inputs, output) -> None:
    upper, cov, lower, seed, *options = inputs
    prob, complement, error, status, n_points, *others = output
    ctx.mark_non_differentiable(error, status, n_points, *others)
    ctx.save_for_backward(upper, cov, lower, seed, prob, complement, n_points)
    ctx.options = options


def _backward(ctx, grad_prob, grad_complement, *_):
    upper, cov, lower, *rest = ctx.saved_tensors
    *options, factored = ctx.options
    wants_upper, wants_cov, wants_lower = ctx.needs_input_grad[:3]
    to_upper, to_lower, to_cov = _call_backward(
        grad_prob - grad_complement, upper, cov, lower, *rest, *options, wants_cov, factored
    )
    return (
        to_upper if wants_upper else None,
        to_cov if wants_cov else None,
        to_lower if wants_lower else None,
        *[None] * 7,
    )


#: torch.ops.mvnrob.mvn_cdf, also within torch.func.
call = register("mvn_cdf", _backward, _save)
