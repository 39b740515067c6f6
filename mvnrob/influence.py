"""How far p depends on which directions were drawn: to first order in their weights, and to second."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ._nearest_ends import SIGNS, nearest_ends
from ._standard_normal import standard_normal
from .noise import INFLUENCES, row_keys
from .screening import keep_largest

#: Numbers of samples times what each has in memory at a time: more gains nothing on a CPU. A GPU takes many
#: inputs together, whose kernels would last less than their launches.
_AT_ONCE = {"cpu": 2**19, "cuda": 2**26}
#: Bytes for each of them: several arrays are there together.
_EACH = 48
#: Smallest slope of a unit row along v: ends of smaller ones lie a million standard deviations away.
_LEAST_SLOPE = 1e-6
#: Share of the draws that the curvature takes: its noise is below that of the influences.
_CURVATURE_SHARE = 0.5
#: Random directions that are tried beside the leading one.
_TRIED = 16
#: Bytes for each number of an input's rows: copies in float64, and tables of up to five lengths.
_TABLES = 48
#: Ends that a sample has in memory on a GPU, whose kernel keeps the nearest ones; a CPU has all rivals'.
_KEPT = 8
#: Of a density, in sums of whole numbers.
_UNITS = 2.0**40
#: A Gram matrix's power 2^_SQUARINGS has its leading eigenvector in every column.
_SQUARINGS = 9


def inputs_at_once(draws: Tensor, rivals: int, exact: int, drawn: int, max_bytes: int) -> int:
    """Inputs of so many rivals, exact and drawn columns whose draws all fit in a pass."""
    each = len(draws) * _numbers_of_sample(draws.device, rivals, drawn)
    tables = _TABLES * rivals * (exact + drawn)
    most = min(_numbers_at_once(draws.device, max_bytes) // each, max_bytes // max(1, tables))
    return max(1, most)


def _numbers_of_sample(device: torch.device, rivals: int, columns: int) -> int:
    return columns + (rivals if device.type == "cpu" else _KEPT)


def _numbers_at_once(device: torch.device, max_bytes: int) -> int:
    return min(_AT_ONCE["cpu" if device.type == "cpu" else "cuda"], max_bytes // _EACH)


class DrawnColumns:
    r"""p = P(A a + X c <= z), a and c standard normal, as a function of the columns of X, of each input.

    Args:
        z: limits ``[b, S]``, float64; infinite ones allowed.
        exact, drawn: A ``[b, S, k]`` and X ``[b, S, m]``, float64, with rows (A_i, X_i) of length one,
            or zero where z is infinite.
        draws: standard normal ``[N, k + m or more]``, float32; all inputs take the same.
        max_bytes: budget for what is computed beside these.

    Given all of (a, c) but the part along one direction v, the event is an interval of v's coordinate,
    between the nearest ends from either side, (z_i - A_i a - X_i c) / f_i beyond the coordinate drawn,
    f = (A, X) v: its probability is smooth in X along almost every draw. Sums are float32 inside. A
    pass costs N S (k + m) multiplications.
    """

    def __init__(
        self, z: Tensor, exact: Tensor, drawn: Tensor, draws: Tensor, max_bytes: int
    ) -> None:
        self.z, self.exact, self.drawn, self.draws = z, exact, drawn, draws
        self.columns = drawn.shape[2]
        self.at_once = _numbers_at_once(z.device, max_bytes)
        self.lead = _direction(z, exact, drawn)
        self._ends: _Ends | None = None

    def subset(self, rows: Tensor) -> DrawnColumns:
        """Some of the inputs."""
        part = object.__new__(DrawnColumns)
        vars(part).update(vars(self), _ends=None)
        for name in ("z", "exact", "drawn", "lead"):
            setattr(part, name, getattr(self, name)[rows])
        return part

    def longer(self, scale: Tensor) -> DrawnColumns:
        """The same with X's rows times ``scale`` [b, S]."""
        part = object.__new__(DrawnColumns)
        vars(part).update(vars(self), _ends=None, drawn=self.drawn * scale[..., None])
        return part

    def _some(self, start: float, end: float) -> Tensor:
        """The draws between two shares of them."""
        first = math.floor(len(self.draws) * start)
        return self.draws[first : max(first + 1, math.floor(len(self.draws) * end))]

    def _parts(self, draws: Tensor) -> tuple[Tensor, ...]:
        inputs, rivals = self.z.shape
        each = inputs * _numbers_of_sample(self.z.device, rivals, self.columns)
        return draws[:, : self.lead.shape[1]].split(max(1, self.at_once // max(1, each)))

    def _whole(self) -> _Ends:
        if self._ends is None:
            self._ends = _Ends(self.z, self.exact, self.drawn, self.lead)
        return self._ends

    def _split(self, part: Tensor) -> tuple[Tensor, Tensor]:
        k = self.exact.shape[2]
        return part[..., :k], part[..., k:]

    def influences(self, since: float = 0.0, until: float = 1.0) -> tuple[Tensor, Tensor]:
        """By the draws between two shares: d p / d log w_j at w = 1, X diag(sqrt(w)) in place of X, float64
        ``[b, m]``; and M, ``[b, m, m]``: the sum over the rivals of g_i x_i x_i^T, with x_i row i of X at
        length one and g_i what p changes by if that row alone is stretched (d p / d log of its squared
        length).

        Pathwise: column j moves an end, where rival i is nearest, by -y_j X_ij / f_i, y the value of c
        there. Each draw is taken with c and with -c, and what these have in common cancels.
        """
        ends = self._whole()
        along_a, along_c = self._split(self.lead.float())
        out = self.drawn.new_zeros(len(self.z), self.columns)
        by_row = self.drawn.new_zeros(len(self.z), self.columns, self.columns)
        draws = self._some(since, until)
        for part in self._parts(draws):
            a, c = self._split(part)
            at_a, at_c = a @ along_a.mT, c @ along_c.mT
            moved = c.new_zeros(len(c), *out.shape)
            for sign, upper, lower, above, below in zip(SIGNS, *ends.nearest(part), strict=True):
                drawn_at = at_a + sign * at_c
                open_ = upper > lower
                signed = (sign * c)[:, None]
                sides = ((upper, above, 1.0, ends.rising), (lower, below, -1.0, ends.falling))
                for end, at, way, count in sides:
                    if not count:
                        continue
                    rate = _density(end, drawn_at, open_)
                    shift = torch.where(rate == 0, 0.0, end)  # may be infinite there
                    there = torch.addcmul(signed, shift[..., None], along_c)
                    rows = ends.rows(at)
                    size = rows.square().sum(2)
                    there.mul_(rows).mul_((-way * rate)[..., None])
                    moved += there
                    weight = there.sum(2).div_(torch.where(size > 0, size, 1.0))
                    turned = rows.permute(1, 2, 0)  # no sum over draws by atomic additions
                    by_row += 0.25 * (turned * weight.T[:, None] @ turned.mT).double()
            # w enters as its square root; the mean of two signs
            out += 0.25 * moved.sum(0, dtype=torch.float64)
        return out / len(draws), by_row / len(draws)

    def limit_slopes(self, until: float = 1.0) -> Tensor:
        """d p / d z, ``[b, S]``, float64, by the draws up to a share of them: how much of the event's boundary
        is each rival's.

        Pathwise: a limit moves the end that its rival has nearest by 1 / f.
        """
        ends = self._whole()
        along_a, along_c = self._split(self.lead.float())
        # whole numbers: their sums do not depend on the order in which a GPU adds
        total = torch.zeros(self.z.numel(), dtype=torch.int64, device=self.z.device)
        draws = self._some(0.0, until)
        for part in self._parts(draws):
            a, c = self._split(part)
            at_a, at_c = a @ along_a.mT, c @ along_c.mT
            for sign, upper, lower, above, below in zip(SIGNS, *ends.nearest(part), strict=True):
                for end, at, count in ((upper, above, ends.rising), (lower, below, ends.falling)):
                    if not count:
                        continue
                    rate = _density(end, at_a + sign * at_c, upper > lower)
                    units = rate.double().mul_(_UNITS).round_().long()
                    total.index_add_(0, ends.rivals(at).flatten(), units.flatten())
        mean = total.view_as(self.z).double() / (_UNITS * len(SIGNS) * len(draws))
        return mean / ends.steepness

    def stretched(self, *scales: Tensor) -> tuple[Tensor, Tensor]:
        """p with X's rows times each of the ``scales`` [b, S] less p: (values, standard errors), each float64
        ``[len(scales), b]``."""
        ends = [self.longer(scale)._whole() for scale in scales]
        along_a, along_c = self._split(self.lead.float())

        def gap(part: Tensor) -> Tensor:
            a, c = self._split(part)
            at_a, at_c = a @ along_a.mT, c @ along_c.mT
            drawn_at = torch.stack([at_a + sign * at_c for sign in SIGNS])

            def mass(ends: _Ends) -> Tensor:
                return 0.5 * _mass(ends.least(part), drawn_at).sum(0)

            own = mass(self._whole())
            return torch.stack([mass(longer).sub_(own) for longer in ends], 1)

        return self._mean(gap)

    def _mean(self, gap: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and standard error over draws [n, k + m] of ``gap``, ``[n, ..., b]``."""
        draws = self._some(0.0, _CURVATURE_SHARE)
        total = squares = 0.0
        for part in self._parts(draws):
            each = gap(part)
            total = total + each.sum(0)
            squares = squares + each.square().sum(0)
        mean = total / len(draws)
        return mean, ((squares / len(draws) - mean.square()).clamp_min(0.0) / len(draws)).sqrt()

    def curvature(self) -> tuple[Tensor, Tensor]:
        """The mean of p with either half of X alone, times sqrt(2), less p: (value, standard error), each
        float64 ``[b]``.

        The halves' Gram matrices average to X X^T, so that terms of first order cancel. What remains is
        of second order: the expected difference between p from m drawn columns and from all directions.
        Draws are taken with all signs of each half's c.
        """
        half = self.columns // 2
        along_a, along_c = self._split(self.lead.float())
        whole, alone = self._whole(), []
        for some in (slice(0, half), slice(half, None)):
            lead_a, lead_c = self._split(self.lead)
            lead = torch.cat([lead_a, lead_c[:, some]], 1)
            alone.append(_Ends(self.z, self.exact, math.sqrt(2.0) * self.drawn[..., some], lead))

        def gap(part: Tensor) -> Tensor:
            a, c = self._split(part)
            base = a @ along_a.mT
            first, second = (
                some @ along.mT
                for some, along in zip(
                    c.tensor_split([half], 1), along_c.tensor_split([half], 1), strict=True
                )
            )
            # of the first half's sign and the second one's
            drawn_at = torch.stack([base + sign * first for sign in SIGNS])[:, None]
            drawn_at = drawn_at + torch.stack([sign * second for sign in SIGNS])
            gap = -_mass(whole.least(part, split=half), drawn_at.flatten(0, 1)).sum(0)
            for i, some in enumerate(c.tensor_split([half], 1)):
                ends = alone[i].least(torch.cat([a, some], 1))
                for at in drawn_at.unbind(1 - i):
                    gap += 0.5 * _mass(ends, at).sum(0)
            return gap.mul_(0.25)

        return self._mean(gap)


class _Ends:
    """Where a draw leaves the event along v, in v's coordinate, relative to where the draw is.

    Rows of each input in the order of their slopes f: those that rise with v, then those that fall; in
    the places that another input needs, rows that never come near.
    """

    def __init__(self, z: Tensor, exact: Tensor, drawn: Tensor, lead: Tensor) -> None:
        slope = exact @ lead[:, : exact.shape[2], None] + drawn @ lead[:, exact.shape[2] :, None]
        slope = slope[..., 0]
        # an end that never comes near: its sign does not matter
        slope = torch.where(slope.abs() < _LEAST_SLOPE, _LEAST_SLOPE, slope)
        order = slope.argsort(dim=1, descending=True)
        rising = (slope > 0).sum(1, keepdim=True)
        count = slope.shape[1]
        self.rising, self.falling = torch.cat([rising.amax(0), count - rising.amin(0)]).tolist()
        first = count - self.falling
        #: of each rival, in its own place: the size of its slope
        self.steepness = slope.abs()
        order = torch.cat([order[:, : self.rising], order[:, first:]], 1)
        place = torch.arange(self.rising + self.falling, device=z.device)
        place = torch.where(place < self.rising, place, place - self.rising + first)
        rises = torch.arange(len(place), device=z.device) < self.rising
        foreign = (place < rising) != rises
        slope = slope.gather(1, order)
        never = torch.where(rises, math.inf, -math.inf).to(z)
        self.limit = torch.where(foreign, never, z.gather(1, order) / slope).float()
        slope = torch.where(foreign, math.inf, slope)[..., None]
        whole = torch.cat([exact, drawn], 2)
        at = order[..., None].expand(-1, -1, whole.shape[2])
        self._table = (whole.gather(1, at) / slope).float()
        self._order = order
        self._columns = exact.shape[2]

    @functools.cached_property
    def _drawn(self) -> Tensor:
        """X's rows, each divided by its slope: ``[b, S, m]``."""
        return self._table[..., self._columns :].contiguous()

    def rows(self, at: Tensor) -> Tensor:
        """Those of the rows ``[n, b]``: ``[n, b, m]``."""
        inputs, count, _ = self._drawn.shape
        starts = count * torch.arange(inputs, device=at.device)
        return self._drawn.flatten(0, 1)[at + starts]

    def rivals(self, at: Tensor) -> Tensor:
        """Which rivals ``[n, b]``, counted through all inputs, stand at the rows ``[n, b]``."""
        inputs, count = self._order.shape
        every = torch.arange(inputs, device=at.device)
        return self._order.flatten()[at + count * every] + self.steepness.shape[1] * every

    def nearest(self, draws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(ends from above, from below, rows there, rows there), each ``[2, n, b]``, for the signs of c."""
        return self._nearest(draws, wants_rows=True)

    def least(self, draws: Tensor, split: int | None = None) -> tuple[Tensor, Tensor]:
        """The same without the rows; where X is ``split`` for both halves' signs, ``[4, n, b]``."""
        return self._nearest(draws, split=split)[:2]

    def _nearest(self, draws: Tensor, **options) -> tuple[Tensor, ...]:
        return nearest_ends(
            self.limit, self._table, draws, rising=self.rising, exact=self._columns, **options
        )


def _density(end: Tensor, drawn_at: Tensor, is_open: Tensor) -> Tensor:
    """The normal density of v's coordinate at an ``end`` relative to ``drawn_at``, zero without an interval."""
    density = torch.exp(-0.5 * (end + drawn_at).square()) / math.sqrt(2 * math.pi)
    return torch.where(is_open, density, 0.0)


def _mass(ends: tuple[Tensor, Tensor], drawn_at: Tensor) -> Tensor:
    """P(event) given all but v's coordinate, float64 ``[signs, n, b]``, of ends from above and from below
    relative to ``drawn_at``."""
    # Phi(upper) - Phi(lower), as tails on one side
    upper, lower = ((end + drawn_at).double().mul_(-math.sqrt(0.5)).erfc_() for end in ends)
    return upper.sub_(lower).mul_(0.5).clamp_min_(0.0)


@functools.lru_cache(maxsize=16)
def _mixtures(rivals: int, device: torch.device) -> Tensor:
    """Normal numbers ``[rivals, _TRIED]``; the first rivals' are the same whatever the number."""
    key = row_keys(0, INFLUENCES, torch.ones(1, dtype=torch.int64, device=device))
    return standard_normal(key, 0, rivals, _TRIED, torch.float64)[0]


def _direction(z: Tensor, exact: Tensor, drawn: Tensor) -> Tensor:
    """v ``[b, k + m]``: A's leading direction, or a mixture of all where rivals that matter lie across it.

    The ends of a rival with a small f_i are near in few draws and move far in these: the variance of
    the influences goes with the sum of density(z_i) / |f_i|, which v makes small. Where it is infinite
    (groups of rivals orthogonal to each other), draws would show nothing of what these rivals do.
    """
    whole = torch.cat([exact, drawn], 2)
    lead = torch.cat([_leading(exact), drawn.new_zeros(len(z), drawn.shape[2])], 1)
    # sums of the rows times normal numbers, a rival's own whatever the number of rivals
    count = z.shape[1]
    mixtures = _mixtures(1 << (count - 1).bit_length(), z.device)[:count]
    tried = torch.cat([lead[:, None], mixtures.mT @ whole], 1)
    size = tried.norm(dim=2, keepdim=True)
    tried = tried / torch.where(size > 0, size, 1.0)
    matter = torch.exp(-0.5 * z.square())[:, None]
    costs = (matter / (tried @ whole.mT).abs().clamp_min(_LEAST_SLOPE)).sum(2)
    # a little more is no reason to leave A's span
    costs[:, 0] *= 0.5
    best = costs.argmin(1)[:, None, None]
    return tried.gather(1, best.expand(-1, 1, tried.shape[2]))[:, 0]


def _leading(rows: Tensor) -> Tensor:
    """Leading right singular vector of rows ``[b, S, k]``, of any length. An eigenproblem on a GPU takes
    milliseconds of each input; any direction serves, so one that is not alone need not be told apart."""
    gram = rows.mT @ rows
    for step in range(_SQUARINGS):
        if step % 3 == 0:  # eighth powers of numbers up to k
            size = gram.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
            gram = gram / torch.where(size > 0, size, 1.0)
        gram = gram @ gram
    largest = gram.diagonal(dim1=1, dim2=2).argmax(1)[:, None, None]
    return gram.gather(2, largest.expand(-1, gram.shape[1], 1))[..., 0]


def near_columns(
    z: Tensor,
    exact: Tensor,
    drawn: Tensor,
    norms: Tensor,
    mass: Tensor,
    neglected: float,
    inputs: Tensor,
    draws: Tensor,
    max_bytes: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor, DrawnColumns]]:
    """Some of the ``inputs`` at a time, those of like numbers of rivals together.

    Args:
        z: limits ``[b, S]`` of all inputs.
        exact, drawn: rows ``[b, S, k]`` and ``[b, S, m]`` of these ``norms`` [b, S] together.
        mass: of each rival ``[b, S]``: those are left out that hold ``neglected`` of it.
        draws, max_bytes: as of :class:`DrawnColumns`.

    Yields (numbers [g] of the inputs, places [g, s] of their rivals, which of these are left over, the rivals'
    columns).
    """
    if not len(inputs):
        return
    scale = torch.where(norms > 0, norms, 1.0)[..., None]
    near = keep_largest(mass[inputs], neglected, 1)
    counts, order = near.sum(1).sort(descending=True, stable=True)
    inputs = inputs[order]
    places = near[order].to(torch.int8).argsort(dim=1, descending=True, stable=True)
    most, first = counts.tolist(), 0
    while first < len(most):
        end = first + inputs_at_once(draws, most[first], exact.shape[2], drawn.shape[2], max_bytes)
        rows, at = inputs[first:end], places[first:end, : most[first]]
        left = torch.arange(most[first], device=at.device) >= counts[first:end, None]
        limits = z[rows].gather(1, at).masked_fill(left, math.inf)
        parts = (
            (part[rows[:, None], at] / scale[rows[:, None], at]).masked_fill(left[..., None], 0.0)
            for part in (exact, drawn)
        )
        yield rows, at, left, DrawnColumns(limits, *parts, draws, max_bytes)
        first = end
