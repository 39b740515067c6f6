"""How far p depends on which directions were drawn: to first order in their weights, and to second."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ._standard_normal import standard_normal
from .noise import INFLUENCES, row_keys

#: Numbers of samples times rivals and columns in memory at a time: more gains nothing on a CPU. A GPU takes many
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
#: Each draw is taken with c and with -c.
_SIGNS = (1.0, -1.0)
#: A Gram matrix's power 2^_SQUARINGS has its leading eigenvector in every column.
_SQUARINGS = 9


def inputs_at_once(draws: Tensor, rivals: int, columns: int, max_bytes: int) -> int:
    """Inputs of so many rivals and drawn columns whose draws all fit in a pass."""
    return max(1, _numbers_at_once(draws.device, max_bytes) // (len(draws) * (rivals + columns)))


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
        return draws.split(max(1, self.at_once // max(1, inputs * (rivals + self.columns))))

    def _whole(self) -> _Ends:
        if self._ends is None:
            self._ends = _Ends(self.z, self.exact, self.drawn, self.lead)
        return self._ends

    def _split(self, part: Tensor) -> tuple[Tensor, Tensor]:
        k = self.exact.shape[2]
        return part[..., :k], part[..., k : k + self.columns]

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
            for sign, each in zip(_SIGNS, ends.less(ends.free(a), c), strict=True):
                drawn_at = at_a + sign * at_c
                (upper, above), (lower, below) = ends.nearest(each)
                open_ = upper > lower
                signed = (sign * c)[:, None]
                for end, at, way in ((upper, above, 1.0), (lower, below, -1.0)):
                    if at is None:
                        continue
                    density = torch.exp(-0.5 * (end + drawn_at).square()) / math.sqrt(2 * math.pi)
                    rate = torch.where(open_, density, 0.0)
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

    def stretched(self, *scales: Tensor) -> tuple[Tensor, Tensor]:
        """p with X's rows times each of the ``scales`` [b, S] less p: (values, standard errors), each float64
        ``[len(scales), b]``."""
        ends = [self.longer(scale)._whole() for scale in scales]
        along_a, along_c = self._split(self.lead.float())

        def gap(part: Tensor) -> Tensor:
            a, c = self._split(part)
            at_a, at_c = a @ along_a.mT, c @ along_c.mT
            drawn_at = torch.stack([at_a + sign * at_c for sign in _SIGNS])

            def mass(ends: _Ends) -> Tensor:
                each = [ends.least(end) for end in ends.less(ends.free(a), c)]
                return 0.5 * _mass(each, drawn_at).sum(0)

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
        halves = slice(0, self.columns // 2), slice(self.columns // 2, None)
        alone = []
        for half in halves:
            doubled = torch.zeros_like(self.drawn)
            doubled[..., half] = math.sqrt(2.0) * self.drawn[..., half]
            alone.append(_Ends(self.z, self.exact, doubled, self.lead))
        whole = self._whole()
        along_a, along_c = self._split(self.lead.float())

        def gap(part: Tensor) -> Tensor:
            a, c = self._split(part)
            base = a @ along_a.mT
            inner = [c[:, half] @ along_c[:, half].mT for half in halves]
            # of the first half's sign and the second one's
            drawn_at = torch.stack([base + sign * inner[0] for sign in _SIGNS])[:, None]
            drawn_at = drawn_at + torch.stack([sign * inner[1] for sign in _SIGNS])
            ends = [
                whole.least(end)
                for some in whole.less(whole.free(a), c, halves[0])
                for end in whole.less(some, c, halves[1])
            ]
            gap = -_mass(ends, drawn_at.flatten(0, 1)).sum(0)
            for i, half in enumerate(halves):
                free = alone[i].free(a)
                ends = [alone[i].least(end) for end in alone[i].less(free, c, half)]
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
        self.rising, falling = torch.cat([rising.amax(0), count - rising.amin(0)]).tolist()
        first = count - falling
        order = torch.cat([order[:, : self.rising], order[:, first:]], 1)
        place = torch.arange(self.rising + falling, device=z.device)
        place = torch.where(place < self.rising, place, place - self.rising + first)
        rises = torch.arange(len(place), device=z.device) < self.rising
        foreign = (place < rising) != rises
        slope = slope.gather(1, order)
        never = torch.where(rises, math.inf, -math.inf).to(z)
        self.limit = torch.where(foreign, never, z.gather(1, order) / slope).float().flatten()
        slope = torch.where(foreign, math.inf, slope)[..., None]
        order = order[..., None]
        self._exact, self._drawn = (
            (part.gather(1, order.expand(-1, -1, part.shape[2])) / slope).float().flatten(0, 1)
            for part in (exact, drawn)
        )
        self._shape = z.shape[0], self.rising + falling
        self._starts = torch.arange(z.shape[0], device=z.device) * self._shape[1]

    def free(self, a: Tensor) -> Tensor:
        """Ends without X's part ``[n, b, S]``."""
        return torch.addmm(self.limit, a, self._exact.mT, alpha=-1.0).unflatten(1, self._shape)

    def less(self, ends: Tensor, c: Tensor, columns: slice = slice(None)) -> Iterator[Tensor]:
        """Ends [n, b, S] less X's part, of some columns, with each of the signs, one after the other."""
        c, drawn = c[:, columns], self._drawn[:, columns].mT
        if ends.device.type == "cpu":
            part = (c @ drawn).unflatten(1, self._shape)
            for sign in _SIGNS:
                yield ends.sub(part, alpha=sign)
            return
        # a GPU's products end before its memory has brought and taken what is subtracted
        for sign in _SIGNS:
            yield torch.addmm(ends.flatten(1), c, drawn, alpha=-sign).unflatten(1, self._shape)

    def rows(self, at: Tensor) -> Tensor:
        """X's rows, each divided by its slope: ``[n, b]`` -> ``[n, b, m]``."""
        return self._drawn[at + self._starts]

    def nearest(self, ends: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """(end, row there) from above and from below, ``[n, b]``; without rows on a side it is open."""
        out = []
        for part, first, way in self._sides(ends):
            if part.shape[2]:
                end, at = part.min(2) if way > 0 else part.max(2)
                out.append((end, at + first))
            else:
                out.append((ends.new_full(ends.shape[:2], way * math.inf), None))
        return out

    def least(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        """The same without the rows, which take several times as long to find."""
        upper, lower = (
            (part.amin(2) if way > 0 else part.amax(2))
            if part.shape[2]
            else ends.new_full(ends.shape[:2], way * math.inf)
            for part, _, way in self._sides(ends)
        )
        return upper, lower

    def _sides(self, ends: Tensor) -> tuple[tuple[Tensor, int, float], ...]:
        """Rows that rise along v and that fall, the first one's number, and the sign of their ends."""
        return (ends[..., : self.rising], 0, 1.0), (ends[..., self.rising :], self.rising, -1.0)


def _mass(ends: list[tuple[Tensor, Tensor]], drawn_at: Tensor) -> Tensor:
    """P(event) given all but v's coordinate, float64, for each of the ``ends`` from above and from below, with
    its ``drawn_at``: ``[len(ends), n, b]``."""
    upper, lower = (torch.stack([pair[side] for pair in ends]) + drawn_at for side in range(2))
    # Phi(upper) - Phi(lower), as tails on one side
    upper, lower = (end.double().mul_(-math.sqrt(0.5)).erfc_() for end in (upper, lower))
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
