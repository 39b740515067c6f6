"""How far p depends on which directions were drawn: to first order in their weights, and to second."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Numbers of samples times rivals in memory at a time.
_AT_ONCE = 2**23


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
        slope = (exact @ lead).float()
        # an end that never comes near: its sign does not matter
        self.slope = torch.where(slope.abs() < 1e-20, 1e-20, slope)
        self.rising = self.slope > 0
        self.lead, self.limit = lead.float(), z.float()
        self.exact, self.drawn = exact.float(), drawn.float()
        self.parts = draws.split(max(1, _AT_ONCE // max(1, len(z))))
        self.count = len(draws)

    def _samples(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """z - A a without v's part ``[n, S]``, and c ``[n, m]``."""
        k = self.exact.shape[1]
        a, c = part[:, :k], part[:, k : k + self.columns]
        a = a - (a @ self.lead)[:, None] * self.lead
        return self.limit - a @ self.exact.mT, c

    def _ends(self, room: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(upper end, rival there) and (lower end, rival there) of v's coordinate."""
        ends = room / self.slope
        upper = torch.where(self.rising, ends, math.inf).min(1)
        lower = torch.where(self.rising, -math.inf, ends).max(1)
        return (upper.values, upper.indices), (lower.values, lower.indices)

    def influences(self) -> Tensor:
        """d p / d log w_j at w = 1, X diag(sqrt(w)) in place of X: float64 ``[m]``.

        Pathwise: column j moves an end, where rival i is nearest, by -c_j X_ij / f_i. Each draw is taken
        with c and with -c, and what these have in common cancels.
        """
        out = self.drawn.new_zeros(self.columns, dtype=torch.float64)
        for part in self.parts:
            room, c = self._samples(part)
            outside = c @ self.drawn.mT
            moved = torch.zeros_like(c)
            for sign in (1.0, -1.0):
                (upper, above), (lower, below) = self._ends(room - sign * outside)
                open_ = upper > lower
                for end, at, way in ((upper, above, 1.0), (lower, below, -1.0)):
                    density = torch.exp(-0.5 * end.square()) / math.sqrt(2.0 * math.pi)
                    rate = torch.where(open_, density, 0.0) / self.slope[at]
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
        total, squares = 0.0, 0.0
        for part in self.parts:
            room, c = self._samples(part)
            first = c[:, :half] @ self.drawn[:, :half].mT
            second = c[:, half : 2 * half] @ self.drawn[:, half : 2 * half].mT
            both = self._mass(room, first + second) + self._mass(room, first - second)
            alone = [self._mass(room, math.sqrt(2.0) * each) for each in (first, second)]
            gap = 0.5 * (alone[0] + alone[1]) - 0.5 * both
            total += gap.sum().item()
            squares += gap.square().sum().item()
        mean = total / self.count
        return mean, math.sqrt(max(0.0, squares / self.count - mean**2) / self.count)

    def _mass(self, room: Tensor, outside: Tensor) -> Tensor:
        """P(event) given all but v's coordinate, the mean over both signs of ``outside``; float64."""
        out = room.new_zeros(len(room), dtype=torch.float64)
        for sign in (1.0, -1.0):
            (upper, _), (lower, _) = self._ends(room - sign * outside)
            upper, lower = upper.double(), lower.double()
            out += (torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp_min(0.0)
        return 0.5 * out
