"""mvs: the multivariate sigmoid in place of the normal CDF (arXiv 2307.13885)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._mvn_cdf import Status
from ..jacobian import LogitMap
from ..linearised import Linearised, in_range, margins_of
from ..noise import Noise
from ..screening import all_norms, rival_order, standardised
from .chunk import LEVEL, Chunk, Estimate
from .jackknife import sampling_error
from .linear import linearised, nearest
from .mmse import mmse_groups


def mv_sigmoid(z: Tensor, slope: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """1 / (1 + sum_i exp(-slope z_i)) over the last dimension, and one minus it without cancellation.

    ``z`` may hold infinities: +inf adds nothing, -inf gives 0.
    """
    odds = (-(torch.as_tensor(slope).to(z)[..., None] * z)).logsumexp(-1)
    return torch.sigmoid(-odds), torch.sigmoid(odds)


def calibrated_slope(z: Tensor) -> Tensor:
    """The slope c = 1.7 + 0.2 H for z ``[..., n]``: ``[...]``.

    H is the Shannon entropy (nats) of the weights Phi(-z_i) / sum_j Phi(-z_j): the logarithm of the
    number of rivals that matter. One rival: c = 1.7, the logistic curve nearest to Phi (gap 0.01).
    n equal rivals: c = 1.7 + 0.2 log n, that is 2.14, 2.62 and 3.08 at n = 9, 99, 999, beside 2.1,
    2.6 and 3.0 that fit the CDF best at correlation 1/2, which orthogonal class gradients of equal
    norm give. The factor 0.2 minimises, among multiples of 0.02, the mean error over 41 sets of z
    from digits, random hierarchical linear models (10 to 1,000 classes) and EfficientNet-Lite0 on
    three photographs at several sigmas: mean |mvs - CDF| 0.012, against 0.150 at slope 1 and 0.024
    at slope 2.1 for all. Many near-equal rivals with correlations above 0.7 are its weak spot (up
    to 0.12).
    """
    mass = torch.special.erfc(z / 2**0.5) / 2
    share = mass / mass.sum(-1, keepdim=True)
    # no mass at all (every z beyond 38): any slope gives 1
    return 1.7 + 0.2 * torch.special.entr(share).sum(-1).nan_to_num(0.0)


def taylor_mvs(chunk: Chunk) -> Estimate:
    """mvs(c z) with the z of ``taylor``; see :func:`_mvs_estimate` for the error."""
    values = chunk.clean[:, None]
    return _mvs_estimate(chunk, chunk.noise, chunk.linear_map(), values, sampled=False)


def mmse_mvs(chunk: Chunk) -> Estimate:
    """mvs(c z) with the z of ``mmse``; see :func:`_mvs_estimate` for the error."""
    parts = []
    groups = mmse_groups(chunk)
    for noise in chunk.noise.each():
        logits = chunk.smoothed_map(noise, groups)
        parts.append(_mvs_estimate(chunk, noise, logits, logits.values(), sampled=True))
    return Estimate.join(parts, 0)


def _mvs_estimate(
    chunk: Chunk, noise: Noise, logits: LogitMap, values: Tensor, *, sampled: bool
) -> Estimate:
    """mvs(c z): no Gram matrix, no integral; the correlations are ignored.

    ``slope=1`` is the published form, ``"calibrated"`` that of :func:`calibrated_slope`. ``error``
    bounds the distance to the linear model's CDF, which lies between 1 - sum_i Phi(-z_i) and
    min_i Phi(z_i): ``lower`` and ``upper`` are these two limits (plus, for ``mmse_mvs``, the
    jackknife's sampling error), between which the sigmoid itself need not lie. It does not cover the
    linearisation.
    """
    problem = linearised(chunk, noise, logits, values)
    return in_range(problem, lambda problem: _sigmoids(chunk, problem, sampled))


def _sigmoids(chunk: Chunk, problem: Linearised, sampled: bool) -> Estimate:
    noise, values = problem.noise, problem.values
    order = rival_order(problem.margins, chunk.target)
    norms = all_norms(problem, order)
    weights = problem.weights
    probs, parts = [], []
    for version, weight in enumerate(weights):
        margins = margins_of(values, weight, chunk.target).gather(1, order)
        z = torch.stack(
            [standardised(margins, norms[version].gather(1, order), s) for s in noise.sigmas]
        )
        slope = chunk.settings.slope
        prob, complement = mv_sigmoid(z, calibrated_slope(z) if slope == "calibrated" else slope)
        probs.append(prob)
        if version == 0:
            tails = torch.special.erfc(z / 2**0.5) / 2
            lower, upper = (1.0 - tails.sum(-1)).clamp_min(0), 1.0 - tails.amax(-1)
            parts = [prob, complement, lower, upper]
            runner_up = torch.stack([nearest(z_sigma, order, chunk) for z_sigma in z])
    prob, complement, lower, upper = parts
    if sampled:
        spread = sampling_error(torch.stack(probs), problem.logits.groups, LEVEL)
        lower = (lower - spread).clamp(0, 1)
        upper = (upper + spread).clamp(0, 1)
    return Estimate(
        prob,
        complement,
        torch.maximum(upper - prob, prob - lower),
        lower,
        upper,
        torch.full_like(prob, int(Status.EXACT), dtype=torch.int64),
        runner_up,
        torch.zeros_like(prob, dtype=torch.int64),
    )
