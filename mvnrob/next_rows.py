"""Which rivals' rows a low rank takes next: those by whose unknown part p would change most."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .influence import near_columns
from .intervals import chi_square_quantile
from .screening import standardised, tail

#: Share of the draws that the slopes take.
_SHARE = 0.25
#: What a rival's mass alone counts beside p's slopes: where draws have not met the others, the likeliest.
_UNMET = 1e-9
#: Ratios of unknown to known squares are taken between these: rows may lie wholly inside or outside.
_LEAST_RATIO, _MOST_RATIO = 1e-6, 1e6
#: Risk, on either side, that a rival like the rest is taken for one of another kind.
_CHANCE = 1e-3


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

    A rival that others outrun wherever it would win has a slope of nothing, however probable it is by itself
    (``python -m bench low_rank``: rows of fewer rivals do). The unknown squares are those of :func:`_shrunk`.
    """
    ranking = ranking.masked_fill(taken[:, None], 0.0)  # what is left there is rounding
    known, unknown = inside.square().sum(1), ranking.square().mean(1)
    mass = _mass(margins, known + unknown, sigma).masked_fill(taken, 0.0)
    shrunk = _shrunk(known, unknown, mass, ranking.shape[1])
    squares = known + shrunk
    share = torch.where(squares > 0, shrunk / squares, 0.0).nan_to_num(nan=1.0)
    scale = torch.where(unknown > 0, shrunk / unknown, 0.0).div(ranking.shape[1]).sqrt()
    slopes = _slopes(
        margins,
        squares,
        inside.mT,
        (ranking * scale[:, None]).mT,
        sigma,
        draws,
        neglected,
        max_bytes,
    )
    return (slopes * share + _UNMET * mass).masked_fill(taken, -1.0)


def _mass(margins: Tensor, squares: Tensor, sigma: float) -> Tensor:
    """Probability that each rival alone overtakes the target; 1 for what is no number."""
    return tail(margins, squares.sqrt(), sigma).nan_to_num(nan=1.0)


def _shrunk(known: Tensor, unknown: Tensor, weights: Tensor, draws: int) -> Tensor:
    """Estimates of the unknown squares ``[b, C]`` from means over so many ``draws``, closer to what rivals
    have in common: the same ratio to the known squares.

    Empirical Bayes in logarithms, with a spread of the true ratios that explains what the ratios show beyond
    chi-square's, by the ``weights``. Eight draws alone put the squares off by a half, and those that seem
    long would be taken for likely and for unknown. A rival that chance does not explain is of another kind than
    the rest, and its estimate stays.
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
    change = mean - offset - log
    least, most = (math.log(draws / chi_square_quantile(p, draws)) for p in (1 - _CHANCE, _CHANCE))
    alike = (change > least) & (change < most)
    return unknown * torch.where(alike, (1.0 - kept) * change, 0.0).exp()


def _slopes(
    margins: Tensor,
    squares: Tensor,
    exact: Tensor,
    drawn: Tensor,
    sigma: float,
    draws: Tensor,
    neglected: float,
    max_bytes: int,
) -> Tensor:
    """|d p / d z| ``[b, C]`` with these rows ``[b, C, k]`` and ``[b, C, q]``; zero where they are no numbers."""
    norms, out = squares.sqrt(), torch.zeros_like(margins)
    inputs = (norms.isfinite().all(1) & ~margins.isnan().any(1)).nonzero()[:, 0]
    z, mass = standardised(margins, norms, sigma), _mass(margins, squares, sigma)
    mass = mass.masked_fill(norms == 0, 0.0)  # the target's
    for rows, at, left, columns in near_columns(
        z, exact, drawn, norms, mass, neglected, inputs, draws, max_bytes
    ):
        slopes = columns.limit_slopes(until=_SHARE).masked_fill(left, 0.0)
        out[rows] = out[rows].scatter(1, at, slopes)
    return out
