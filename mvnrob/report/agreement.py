"""How well a run's methods agree with its own Monte Carlo, and which of them its page shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..intervals import clopper_pearson
from .statistics import LEVEL, Answers, mean_error


@dataclass(frozen=True)
class Agreement:
    """A method beside Monte Carlo at one sigma, over the examples that both have an answer for."""

    method: str
    sigma: float
    examples: int
    mean: float  #: mean p
    mc_mean: float
    below_half: float  #: share with p < .5
    mc_below_half: float
    bias: float  #: mean of p - mc
    mean_error: float  #: mean of |p - mc|
    largest: float
    inside: float  #: share of Monte Carlo's 99 % intervals that hold p
    apart: float  #: share whose own interval and Monte Carlo's do not meet
    mc_low: float  #: mean lower end of Monte Carlo's intervals
    mc_high: float
    error: float = math.nan  #: stated, of ``mean``
    mc_error: float = math.nan

    @property
    def mc_width(self) -> float:
        """Mean half-width of Monte Carlo's intervals."""
        return (self.mc_high - self.mc_low) / 2

    @property
    def mean_outside(self) -> bool:
        """The mean leaves the mean ends of Monte Carlo's intervals: an error stated wide enough to meet all
        of them, as the calibrated sigmoids' is, makes no headline true. Not the half-width: where all
        draws agree an interval has one side, twice as long."""
        return not self.mc_low <= self.mean <= self.mc_high

    @property
    def disagrees(self) -> bool:
        """More intervals that do not meet than the 1 % that chance allows (99 % limits of that share), or
        a mean outside theirs."""
        low, _ = clopper_pearson(round(self.apart * self.examples), self.examples, LEVEL)
        return float(low) > 1 - LEVEL or self.mean_outside


def agreement(parts: Sequence[Answers]) -> list[Agreement]:
    """Every other method beside Monte Carlo, sigma by sigma, where the run has both."""
    counts = {a.sigma: a for a in parts if a.method == "mc"}
    pairs = [(a, counts[a.sigma]) for a in parts if a.method != "mc" and a.sigma in counts]
    return [found for a, mc in pairs if (found := _beside(a, mc)) is not None]


def _beside(a: Answers, mc: Answers) -> Agreement | None:
    index, at, at_mc = np.intersect1d(
        a["index"].astype(np.int64), mc["index"].astype(np.int64), return_indices=True
    )
    if len(index) == 0:
        return None
    p, m = a["prob"][at], mc["prob"][at_mc]
    low, high = mc["lower"][at_mc], mc["upper"][at_mc]
    # without an error of its own (softmax) a method's ends are 0 and 1; it states p alone
    unstated = np.isnan(a["error"][at].astype(float))
    own_low, own_high = (np.where(unstated, p, a[end][at]) for end in ("lower", "upper"))
    gap = p - m
    return Agreement(
        a.method,
        a.sigma,
        len(index),
        float(p.mean()),
        float(m.mean()),
        float((p < 0.5).mean()),
        float((m < 0.5).mean()),
        float(gap.mean()),
        float(np.abs(gap).mean()),
        float(np.abs(gap).max()),
        float(((low <= p) & (p <= high)).mean()),
        float(((own_high < low) | (own_low > high)).mean()),
        float(low.mean()),
        float(high.mean()),
        mean_error(a, at),
        mean_error(mc, at_mc),
    )


def disagreeing(found: Sequence[Agreement], method: str) -> list[Agreement]:
    """The sigmas at which a method disagrees with Monte Carlo, the worst mean first."""
    mine = [a for a in found if a.method == method and a.disagrees]
    return sorted(mine, key=lambda a: -abs(a.bias))


def shown_method(methods: Sequence[str], found: Sequence[Agreement]) -> str:
    """The first method of the run; where that disagrees with Monte Carlo at some sigma, the one whose mean
    distance to it is least, over the sigmas.

    Monte Carlo itself is shown only where it comes first: its p are multiples of 1/n, and many inputs
    with no flip in n copies have no order.
    """
    if not disagreeing(found, methods[0]):
        return methods[0]
    distance = {
        method: np.mean([a.mean_error for a in found if a.method == method])
        for method in methods
        if any(a.method == method for a in found)
    }
    return min(distance, key=lambda method: distance[method])
