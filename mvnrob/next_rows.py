"""Which rivals' rows a low rank takes next: those by whose unknown part p would change most."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .influence import DrawnColumns, near_groups
from .screening import standardised, tail

#: Share of the draws that the slopes take.
_SHARE = 0.25
#: What a rival's mass alone counts beside p's slopes: where draws have not met the others, the likeliest.
_UNMET = 1e-9
#: Ratios of unknown to known squares are taken between these: rows may lie wholly inside or outside.
_LEAST_RATIO, _MOST_RATIO = 1e-6, 1e6


def gains(
    margins: Tensor,
    inside: Tensor,
    ranking: Tensor,
    taken: Tensor,
    sigma: float,
    draws: Tensor,
    neglected: float,
    max_bytes: int,
) -> Tensor:
    """How much there is to gain ``[b, C]`` from a rival's row: |d p / d z_i| times the share of its squared
    norm that is not known yet; -1 for rows that are known.

    Args:
        margins: ``[b, C]``, float64.
        inside: products along the basis ``[b, k, C]``, float64: rows' known parts.
        ranking: products along draws of what they leave ``[b, q, C]``.
        taken: the rows that are known ``[b, C]``, the target's among them.
        sigma: the noise.
        draws: standard normal ``[N, k + q or more]``, float32.
        neglected: probability of rivals that are left out of the integral.
        max_bytes: budget for it.

    A rival that others outrun wherever it would win has a slope of nothing, however probable it is by itself:
    EfficientNet-Lite0 where p = .3 to .6 takes rows of 80 to 112 rivals by this, of 128 to 192 by Phi(-z_i).
    The unknown squares are those of :func:`_shrunk`.
    """
    ranking = ranking.masked_fill(taken[:, None], 0.0)  # what is left there is rounding
    known, unknown = inside.square().sum(1), ranking.square().mean(1)
    mass = _mass(margins, known + unknown, taken, sigma)
    unknown = _shrunk(known, unknown, mass, ranking.shape[1])
    squares = known + unknown
    mass = _mass(margins, squares, taken, sigma)
    share = torch.where(squares > 0, unknown / squares, 0.0)
    # rows that are known are obstacles, too
    norms = squares.sqrt()
    lengths = ranking.square().sum(1)
    scale = torch.where(lengths > 0, unknown / lengths, 0.0).sqrt()
    slopes = _slopes(
        margins, norms, inside, ranking * scale[:, None], sigma, draws, neglected, max_bytes
    )
    return (slopes * share + _UNMET * mass).masked_fill(taken, -1.0)


def _mass(margins: Tensor, squares: Tensor, taken: Tensor, sigma: float) -> Tensor:
    """Probability that each rival whose row is not known overtakes the target; 1 for what is no number."""
    return tail(margins, squares.sqrt(), sigma).nan_to_num(nan=1.0).masked_fill(taken, 0.0)


def _shrunk(known: Tensor, unknown: Tensor, weights: Tensor, draws: int) -> Tensor:
    """Estimates of the unknown squares ``[b, C]`` from means over so many ``draws``, closer to what rivals
    have in common: the same ratio to the known squares.

    Empirical Bayes in logarithms, with a spread of the true ratios that explains what the ratios show beyond
    chi-square's, by the ``weights``. Eight draws alone put the squares off by a half, and those that seem
    long would be taken for likely and for unknown.
    """
    half = torch.tensor(0.5 * draws, dtype=torch.float64)
    noise = torch.special.polygamma(1, half).item()
    offset = torch.special.digamma(half).item() - math.log(half.item())
    ratio = torch.where(known > 0, unknown / known, _MOST_RATIO)
    log = ratio.nan_to_num(nan=_MOST_RATIO).clamp(_LEAST_RATIO, _MOST_RATIO).log()
    total = weights.sum(1, keepdim=True)
    weights = weights / torch.where(total > 0, total, 1.0)
    mean = (weights * log).sum(1, keepdim=True)
    spread = ((weights * (log - mean).square()).sum(1, keepdim=True) - noise).clamp_min(0.0)
    kept = spread / (spread + noise)
    # what is common has no such offset
    change = (1.0 - kept) * (mean - offset - log)
    return unknown * change.exp()


def _slopes(
    margins: Tensor,
    norms: Tensor,
    inside: Tensor,
    ranking: Tensor,
    sigma: float,
    draws: Tensor,
    neglected: float,
    max_bytes: int,
) -> Tensor:
    """|d p / d z| ``[b, C]`` with rows of these products; zero where they are no numbers."""
    out = torch.zeros_like(margins)
    finite = norms.isfinite().all(1) & ~margins.isnan().any(1)
    inputs = finite.nonzero()[:, 0]
    z = standardised(margins, norms, sigma)
    mass = tail(margins, norms, sigma).masked_fill(norms == 0, 0.0)
    scale = torch.where(norms > 0, norms, 1.0)[..., None]
    rank = inside.shape[1], ranking.shape[1]
    for rows, at, left in near_groups(mass, neglected, inputs, draws, *rank, max_bytes):
        limits = z[rows].gather(1, at).masked_fill(left, math.inf)
        exact, drawn = (
            (part.mT[rows[:, None], at] / scale[rows[:, None], at]).masked_fill(
                left[..., None], 0.0
            )
            for part in (inside, ranking)
        )
        columns = DrawnColumns(limits, exact, drawn, draws, max_bytes)
        out[rows] = out[rows].scatter(
            1, at, columns.limit_slopes(until=_SHARE).masked_fill(left, 0.0)
        )
    return out
