"""How far p depends on which directions were drawn: to first order in their weights, and to second."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .noise import INFLUENCES, row_keys, standard_normal

#: Numbers of samples times rivals in memory at a time: more gains nothing on a CPU.
_AT_ONCE = 2**21
#: Bytes for each of them: several arrays are there together.
_EACH = 48
#: Smallest slope of a unit row along v: ends of smaller ones lie a million standard deviations away.
_LEAST_SLOPE = 1e-6
#: Share of the draws that the curvature takes: its noise is below that of the influences.
_CURVATURE_SHARE = 0.25
#: Random directions that are tried beside the leading one.
_TRIED = 16


class DrawnColumns:
    r"""p = P(A a + X c <= z), a and c standard normal, as a function of the columns of X.

    Args:
        z: limits ``[S]``, float64; infinite ones allowed.
        exact, drawn: A ``[S, k]`` and X ``[S, m]``, float64, with rows (A_i, X_i) of length one, or
            zero where z is infinite.
        draws: standard normal ``[N, k + m or more]``, float32.
        max_bytes: budget for what is computed beside these.

    Given all of (a, c) but the part along one direction v, the event is an interval of v's coordinate,
    between the nearest ends from either side, (z_i - A_i a - X_i c) / f_i beyond the coordinate drawn,
    f = (A, X) v: its probability is smooth in X along almost every draw. Sums are float32 inside. A
    pass costs N S (k + m) multiplications.
    """

    def __init__(
        self, z: Tensor, exact: Tensor, drawn: Tensor, draws: Tensor, max_bytes: int
    ) -> None:
        self.z, self.exact, self.drawn = z, exact, drawn
        self.columns = drawn.shape[1]
        self.lead = _direction(z, exact, drawn)
        at_once = min(_AT_ONCE, max_bytes // _EACH)
        self.parts = draws.split(max(1, at_once // max(1, len(z))))
        self.count = len(draws)

    def _split(self, part: Tensor) -> tuple[Tensor, Tensor]:
        k = self.exact.shape[1]
        return part[:, :k], part[:, k : k + self.columns]

    def influences(self) -> Tensor:
        """d p / d log w_j at w = 1, X diag(sqrt(w)) in place of X: float64 ``[m]``.

        Pathwise: column j moves an end, where rival i is nearest, by -y_j X_ij / f_i, y the value of c
        there. Each draw is taken with c and with -c, and what these have in common cancels.
        """
        ends = _Ends(self.z, self.exact, self.drawn, self.lead)
        along_a, along_c = self._split(self.lead[None].float())
        out = self.drawn.new_zeros(self.columns)
        for part in self.parts:
            a, c = self._split(part)
            free, outside = ends.free(a), c @ ends.drawn.mT
            moved = torch.zeros_like(c)
            for sign in (1.0, -1.0):
                drawn_at = (a @ along_a.mT + sign * c @ along_c.mT)[:, 0]
                (upper, above), (lower, below) = ends.nearest(free - sign * outside)
                open_ = upper > lower
                for end, at, way in ((upper, above, 1.0), (lower, below, -1.0)):
                    if at is None:
                        continue
                    density = torch.exp(-0.5 * (end + drawn_at).square()) / math.sqrt(2 * math.pi)
                    rate = torch.where(open_, density, 0.0)
                    shift = torch.where(rate == 0, 0.0, end)  # may be infinite there
                    there = sign * c + shift[:, None] * along_c
                    moved -= way * rate[:, None] * ends.drawn[at] * there
            # w enters as its square root; the mean of two signs
            out += 0.25 * moved.sum(0, dtype=torch.float64)
        return out / self.count

    def curvature(self) -> tuple[float, float]:
        """The mean of p with either half of X alone, times sqrt(2), less p: (value, standard error).

        The halves' Gram matrices average to X X^T, so that terms of first order cancel. What remains is
        of second order: the expected difference between p from m drawn columns and from all directions.
        Draws are taken with all signs of each half's c.
        """
        halves = slice(0, self.columns // 2), slice(self.columns // 2, None)
        alone = []
        for half in halves:
            doubled = torch.zeros_like(self.drawn)
            doubled[:, half] = math.sqrt(2.0) * self.drawn[:, half]
            alone.append(_Ends(self.z, self.exact, doubled, self.lead))
        whole = _Ends(self.z, self.exact, self.drawn, self.lead)
        along_a, along_c = self._split(self.lead[None].float())
        total = squares = count = 0
        for part in self.parts[: max(1, math.ceil(len(self.parts) * _CURVATURE_SHARE))]:
            a, c = self._split(part)
            free = [ends.free(a) for ends in (whole, *alone)]
            both = [c[:, half] @ whole.drawn[:, half].mT for half in halves]
            each = [
                c[:, half] @ ends.drawn[:, half].mT
                for half, ends in zip(halves, alone, strict=True)
            ]
            inner = [(c[:, half] @ along_c[:, half].mT)[:, 0] for half in halves]
            base = (a @ along_a.mT)[:, 0]
            gap = base.new_zeros(len(a), dtype=torch.float64)
            for signs in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)):
                drawn_at = base + signs[0] * inner[0] + signs[1] * inner[1]
                gap -= whole.mass(free[0] - signs[0] * both[0] - signs[1] * both[1], drawn_at)
                for i in range(2):
                    gap += 0.5 * alone[i].mass(free[1 + i] - signs[i] * each[i], drawn_at)
            gap *= 0.25
            total += gap.sum().item()
            squares += gap.square().sum().item()
            count += len(gap)
        mean = total / count
        return mean, math.sqrt(max(0.0, squares / count - mean**2) / count)


class _Ends:
    """Where a draw leaves the event along v, in v's coordinate, relative to where the draw is.

    Rows in the order of their slopes f: those that rise with v, then those that fall.
    """

    def __init__(self, z: Tensor, exact: Tensor, drawn: Tensor, lead: Tensor) -> None:
        slope = torch.cat([exact, drawn], 1) @ lead
        # an end that never comes near: its sign does not matter
        slope = torch.where(slope.abs() < _LEAST_SLOPE, _LEAST_SLOPE, slope)
        order = slope.argsort(descending=True)
        slope = slope[order, None]
        self.rising = int((slope > 0).sum())
        self.limit = (z[order, None] / slope).float().flatten()
        self.exact, self.drawn = ((part[order] / slope).float() for part in (exact, drawn))

    def free(self, a: Tensor) -> Tensor:
        """Ends without X's part ``[n, S]``."""
        return torch.addmm(self.limit, a, self.exact.mT, alpha=-1.0)

    def nearest(self, ends: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """(end, row there) from above and from below; without rows on a side it is open."""
        out = []
        for part, first, way in (
            (ends[:, : self.rising], 0, 1.0),
            (ends[:, self.rising :], self.rising, -1.0),
        ):
            if part.shape[1]:
                end, at = part.min(1) if way > 0 else part.max(1)
                out.append((end, at + first))
            else:
                out.append((ends.new_full(ends.shape[:1], way * math.inf), None))
        return out

    def mass(self, ends: Tensor, drawn_at: Tensor) -> Tensor:
        """P(event) given all but v's coordinate, float64 ``[n]``."""
        (upper, _), (lower, _) = self.nearest(ends)
        upper, lower = (upper + drawn_at).double(), (lower + drawn_at).double()
        return (torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp_min(0.0)


def _direction(z: Tensor, exact: Tensor, drawn: Tensor) -> Tensor:
    """v ``[k + m]``: A's leading direction, or a mixture of all where rivals that matter lie across it.

    The ends of a rival with a small f_i are near in few draws and move far in these: the variance of
    the influences goes with the sum of density(z_i) / |f_i|, which v makes small. Where it is infinite
    (groups of rivals orthogonal to each other), draws would show nothing of what these rivals do.
    """
    lead = torch.linalg.eigh(exact.mT @ exact).eigenvectors[:, -1]
    whole = torch.cat([exact, drawn], 1)
    values, vectors = torch.linalg.eigh(whole.mT @ whole)
    key = row_keys(0, INFLUENCES, torch.ones(1, dtype=torch.int64, device=z.device))
    mixtures = standard_normal(key, 0, _TRIED, len(values), torch.float64)[0]
    tried = (mixtures * values.clamp_min(0.0).sqrt()) @ vectors.mT
    tried = torch.cat([torch.cat([lead, lead.new_zeros(drawn.shape[1])])[None], tried])
    size = tried.norm(dim=1, keepdim=True)
    tried = tried / torch.where(size > 0, size, 1.0)
    matter = torch.exp(-0.5 * z.square())
    costs = (matter / (tried @ whole.mT).abs().clamp_min(_LEAST_SLOPE)).sum(1)
    # a little more is no reason to leave A's span
    costs[0] *= 0.5
    return tried[costs.argmin()]
