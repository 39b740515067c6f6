"""Densities of pairs of limits in rows of one factor, all of a row at once.

With R_ij = l_i l_j the variables are independent given the factor t, and with s_i = (1 - l_i^2)^(1/2), P_i(t) the
probability of variable i and d_i(t) its density at a limit, the pair's density times its conditional probability is

    integral of phi(t) d_i(t) d_j(t) prod_{k != i, j} P_k(t) dt:

with hazards h_i = d_i / P_i a product of matrices, where conditional problems would be an integral for each pair.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._mvn_cdf_conditional import Rows, Units

#: Of fewer pairs conditional problems take less time.
_PAIRS = 64
#: Numbers of float64 in memory at a time: a node, a variable and a limit each.
_AT_ONCE = 2**22
#: Nodes of the trapezoidal rule, which are doubled until what two of them say differs by _AGREES of the largest pair:
#: the error is then about its square.
_FEWEST, _MOST, _AGREES = 128, 2**14, 1e-7
#: The integrand is left out where it is exp(-_DEPTH) of its peak.
_DEPTH = 60.0
#: Least variance beside the factor, and least width of an interval in units of its root: below, digits are lost.
_LEAST_REST, _LEAST_WIDTH = 1e-8, 1e-3
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def pair_values(rows: Rows, pairs: Units) -> Tensor | None:
    """``conditional`` of these pairs where a row with an exact answer has one factor and many pairs, NaN elsewhere;
    None where there is no such row."""
    batch, n = rows.dead.shape
    counts = torch.bincount(pairs.row, minlength=batch)
    chosen = (rows.exact & (counts > 2 * n)).nonzero()[:, 0]
    if int(counts[chosen].sum()) < _PAIRS:
        return None
    out = None
    for some in chosen.split(max(1, _AT_ONCE // (n * n))):
        loads, fits = _loadings(rows, some)
        numbers = some[fits]
        if not len(numbers):
            continue
        sides = rows.limits.shape[1]
        for part in torch.arange(len(numbers), device=some.device).split(
            max(1, _AT_ONCE // (sides * n * max(n, _FEWEST)))
        ):
            h = _matrix(rows, numbers[part], loads[fits][part])
            place = torch.full((batch,), -1, device=some.device)
            place[numbers[part]] = part - part[0]
            mine = (place[pairs.row] >= 0).nonzero()[:, 0]
            units = pairs.where(mine)
            i, j = units.limits(n)
            if out is None:
                out = torch.full_like(pairs.log_density, math.nan)
            out[mine] = h[place[units.row], i, j]
    return out


def _loadings(rows: Rows, some: Tensor) -> tuple[Tensor, Tensor]:
    """[b, n] l of these rows, and which of them have one factor beside variances of their own."""
    r = rows.correlations(some)
    unit = torch.arange(len(some), device=some.device)
    off = r.clone()
    off.diagonal(dim1=1, dim2=2).zero_()
    # the variable that hangs most on the others, and two of these that say by how much
    a = off.abs().sum(2).argmax(1)
    mine = off[unit, a]
    b = mine.abs().argmax(1)
    weight = mine.abs() * off[unit, b].abs()
    c = weight.scatter(1, torch.stack([a, b], 1), 0.0).argmax(1)
    square = mine[unit, b] * mine[unit, c] / off[unit, b, c]
    own = square.clamp_min(0.0).sqrt()
    loads = (mine / own[:, None]).scatter(1, a[:, None], own[:, None])
    gap = (loads[:, :, None] * loads[:, None, :] - off).abs()
    gap.diagonal(dim1=1, dim2=2).zero_()
    fits = (gap <= 16 * rows.entry_error).all((1, 2)) & (1 - loads.square() > _LEAST_REST).all(1)
    if rows.limits.shape[1] == 2:
        width = rows.limits[some, 0] - rows.limits[some, 1]
        wide = width > _LEAST_WIDTH * (1 - loads.square()).sqrt()
        fits &= (wide | rows.dead[some]).all(1)
    return loads, fits


class _Integrand:
    """phi(t) prod P_k(t), of some rows."""

    def __init__(self, rows: Rows, numbers: Tensor, loads: Tensor) -> None:
        self._live = ~rows.dead[numbers][:, None]
        self._rest = (1 - loads.square()).sqrt()[:, None]
        self._loads = loads[:, None]
        self._limits = rows.limits[numbers].unbind(1)

    def _ends(self, t: Tensor) -> list[Tensor]:
        """Limits given t [b, q], in units of what is left: ``[b, q, n]`` each."""
        return [(x[:, None] - t[..., None] * self._loads) / self._rest for x in self._limits]

    def logs(self, t: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """ln of the integrand [b, q] and of each P [b, q, n], and the ends."""
        ends = self._ends(t)
        if len(ends) == 1:
            each = torch.special.log_ndtr(ends[0])
        else:
            # on the side where both are tails
            flip = ends[1] > 0
            upper = torch.where(flip, -ends[1], ends[0])
            lower = torch.where(flip, -ends[0], ends[1])
            top = torch.special.log_ndtr(upper)
            each = top + torch.log1p(-(torch.special.log_ndtr(lower) - top).exp())
        each = torch.where(self._live, each, 0.0)
        return -0.5 * t.square() - _HALF_LOG_TWO_PI + each.sum(2), each, ends

    def hazards(self, each: Tensor, ends: list[Tensor]) -> Tensor:
        """d / P of every limit ``[b, q, sides n]``."""
        out = [
            torch.where(
                self._live & x.isfinite(),
                (-0.5 * x.square() - _HALF_LOG_TWO_PI - each).exp() / self._rest,
                0.0,
            )
            for x in ends
        ]
        return torch.cat(out, 2)


def _peak(f: _Integrand, like: Tensor) -> Tensor:
    """Where the integrand, whose logarithm is concave, is largest: ``[b]``."""
    steps = torch.linspace(0, 1, 33, dtype=like.dtype, device=like.device)
    low, high = -like, like
    for _ in range(14):  # by a factor of 16 each
        t = low[:, None] + (high - low)[:, None] * steps
        at = f.logs(t)[0].nan_to_num(nan=-math.inf).argmax(1)
        low, high = (t.gather(1, (at + d).clamp(0, 32)[:, None])[:, 0] for d in (-1, 1))
    return 0.5 * (low + high)


def _edge(f: _Integrand, peak: Tensor, way: float) -> Tensor:
    """How far from the peak, on one side, the integrand has fallen by exp(-_DEPTH): ``[b]``."""
    top = f.logs(peak[:, None])[0][:, 0]

    def is_deep(width: Tensor) -> Tensor:
        return ~(f.logs((peak + way * width)[:, None])[0][:, 0] > top - _DEPTH)

    low, high = torch.zeros_like(peak), torch.full_like(peak, 1e-6)
    for _ in range(40):
        deep = is_deep(high)
        if bool(deep.all()):
            break
        low, high = torch.where(deep, low, high), torch.where(deep, high, 2 * high)
    for _ in range(12):
        middle = 0.5 * (low + high)
        deep = is_deep(middle)
        low, high = torch.where(deep, low, middle), torch.where(deep, middle, high)
    return high


def _matrix(rows: Rows, numbers: Tensor, loads: Tensor) -> Tensor:
    """Values of all pairs of limits ``[b, sides n, sides n]`` of these rows; NaN where the nodes do not do."""
    f = _Integrand(rows, numbers, loads)
    limits = rows.limits[numbers]
    far = torch.where(limits.isfinite(), limits.abs(), 0.0).amax((1, 2))
    # no farther than the nearest point within the limits
    peak = _peak(f, 10.0 + (1.0 + limits.shape[2] ** 0.5) * far)
    left, right = _edge(f, peak, -1.0), _edge(f, peak, 1.0)
    log_unit = 0.0 if rows.log_unit is None else rows.log_unit[numbers][:, None]
    size = limits.shape[1] * limits.shape[2]
    out = peak.new_full((len(peak), size, size), math.nan)

    def products(rows_: Tensor, offset: float, count: int) -> Tensor:
        """Sums over nodes offset, offset + 1, ... of ``count`` between the edges, times their distance."""
        width = (left + right)[rows_] / count
        total = peak.new_zeros(len(rows_), size, size)
        g = f if len(rows_) == len(peak) else _Integrand(rows, numbers[rows_], loads[rows_])
        at_once = max(1, _AT_ONCE // (size * len(rows_)))
        for first in range(0, count, at_once):
            number = torch.arange(first, min(first + at_once, count), device=peak.device) + offset
            t = (peak - left)[rows_][:, None] + width[:, None] * number
            log, each, ends = g.logs(t)
            unit = log_unit if isinstance(log_unit, float) else log_unit[rows_]
            root = (0.5 * (log - unit + width[:, None].log())).exp()
            h = g.hazards(each, ends) * root[..., None]
            total.baddbmm_(h.mT, h)
        return total

    active = torch.arange(len(peak), device=peak.device)
    before, count = products(active, 0.0, _FEWEST), _FEWEST
    while len(active) and count < _MOST:
        # the nodes between those there are
        now = 0.5 * (before + products(active, 0.5, count))
        count *= 2
        gap = (now - before).abs().amax((1, 2))
        enough = gap <= _AGREES * now.abs().amax((1, 2))
        out[active[enough]] = now[enough]
        active, before = active[~enough], now[~enough]
    return out
