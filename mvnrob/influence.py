"""How far p depends on which directions were drawn: to first order in their weights, and to second."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Numbers of samples times rivals in memory at a time.
_AT_ONCE = 2**21
#: Smallest slope of a unit row along v: ends of smaller ones lie a million standard deviations away.
_LEAST_SLOPE = 1e-6
#: Share of the draws that the curvature takes: its noise is below that of the influences.
_CURVATURE_SHARE = 0.25


class DrawnColumns:
    r"""p = P(A a + X c <= z), a and c standard normal, as a function of the columns of X.

    Args:
        z: limits ``[S]``, float64; infinite ones allowed.
        exact, drawn: A ``[S, k]`` and X ``[S, m]``, float64, with rows (A_i, X_i) of length one, or
            zero where z is infinite.
        draws: standard normal ``[N, k + m or more]``, float32.

    Given all but the leading direction v of A the event is an interval of v's coordinate, between the
    nearest of the limits (z_i - rest_i) / f_i, f = A v, from either side: its probability is smooth in
    X along almost every draw. Sums are float32 inside. A pass costs N S (k + m) multiplications.
    """

    def __init__(self, z: Tensor, exact: Tensor, drawn: Tensor, draws: Tensor) -> None:
        self.columns = drawn.shape[1]
        lead = torch.linalg.eigh(exact.mT @ exact).eigenvectors[:, -1]
        slope = exact @ lead
        # an end that never comes near: its sign does not matter
        slope = torch.where(slope.abs() < _LEAST_SLOPE, _LEAST_SLOPE, slope)
        order = slope.argsort(descending=True)  # those that rise with v, then those that fall
        slope = slope[order, None]
        self.rising = int((slope > 0).sum())
        self.lead = lead.float()
        self.limit = (z[order, None] / slope).float().flatten()
        self.exact, self.drawn = ((part[order] / slope).float() for part in (exact, drawn))
        self.parts = draws.split(max(1, _AT_ONCE // max(1, len(z))))
        self.count = len(draws)

    def _samples(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """Ends without X's part ``[n, S]``, and c ``[n, m]``."""
        k = self.exact.shape[1]
        a, c = part[:, :k], part[:, k : k + self.columns]
        a = a - (a @ self.lead)[:, None] * self.lead
        return torch.addmm(self.limit, a, self.exact.mT, alpha=-1.0), c

    def _nearest(self, ends: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(end, rival there) from above and from below; rivals of one side only: the other is open."""
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

    def influences(self) -> Tensor:
        """d p / d log w_j at w = 1, X diag(sqrt(w)) in place of X: float64 ``[m]``.

        Pathwise: column j moves an end, where rival i is nearest, by -c_j X_ij / f_i. Each draw is taken
        with c and with -c, and what these have in common cancels.
        """
        out = self.drawn.new_zeros(self.columns, dtype=torch.float64)
        for part in self.parts:
            free, c = self._samples(part)
            outside = c @ self.drawn.mT
            moved = torch.zeros_like(c)
            for sign in (1.0, -1.0):
                (upper, above), (lower, below) = self._nearest(free - sign * outside)
                open_ = upper > lower
                for end, at, way in ((upper, above, 1.0), (lower, below, -1.0)):
                    if at is not None:
                        density = torch.exp(-0.5 * end.square()) / math.sqrt(2.0 * math.pi)
                        rate = torch.where(open_, density, 0.0)
                        moved -= (way * sign) * rate[:, None] * self.drawn[at]
            # w enters as its square root; the mean of two signs
            out += 0.25 * (c * moved).sum(0, dtype=torch.float64)
        return out / self.count

    def curvature(self) -> tuple[float, float]:
        """The mean of p with either half of X alone, times sqrt(2), less p: (value, standard error).

        The halves' Gram matrices average to X X^T, so that terms of first order cancel. What remains is
        of second order: the expected difference between p from m drawn columns and from all directions.
        Draws are taken with all signs of each half's c.
        """
        half = self.columns // 2
        total = squares = count = 0
        for part in self.parts[: max(1, math.ceil(len(self.parts) * _CURVATURE_SHARE))]:
            free, c = self._samples(part)
            first = c[:, :half] @ self.drawn[:, :half].mT
            second = c[:, half : 2 * half] @ self.drawn[:, half : 2 * half].mT
            both = self._mass(free, first + second) + self._mass(free, first - second)
            alone = [self._mass(free, math.sqrt(2.0) * each) for each in (first, second)]
            gap = 0.5 * (alone[0] + alone[1]) - 0.5 * both
            total += gap.sum().item()
            squares += gap.square().sum().item()
            count += len(gap)
        mean = total / count
        return mean, math.sqrt(max(0.0, squares / count - mean**2) / count)

    def _mass(self, free: Tensor, outside: Tensor) -> Tensor:
        """P(event) given all but v's coordinate, the mean over both signs of ``outside``; float64."""
        out = free.new_zeros(len(free), dtype=torch.float64)
        for ends in (free - outside, free + outside):
            (upper, _), (lower, _) = self._nearest(ends)
            upper, lower = upper.double(), lower.double()
            out += (torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp_min(0.0)
        return 0.5 * out
