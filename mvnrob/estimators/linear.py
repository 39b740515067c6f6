"""The linearised network's probability: what ``taylor`` and ``mmse`` share."""

from __future__ import annotations

import torch
from torch import Tensor

from .._jac_cov import jac_cov_finalize
from .._mvn_cdf import mvn_cdf
from ..jacobian import LogitMap
from ..noise import DIRECTIONS, Noise, row_keys
from ..screening import (
    EXACT_SHARE,
    SKETCH_SHARE,
    Screened,
    scatter_sums,
    screen_exact,
    screen_none,
    screen_sketch,
    standardised,
)
from .chunk import LEVEL, Chunk, Estimate, clamped, statuses_not_warnings
from .jackknife import group_weights, sampling_error

SHARES = {"exact": EXACT_SHARE, "sketch": SKETCH_SHARE, "none": 0.0}


def row_budget(chunk: Chunk, noise: Noise, groups: int) -> int:
    """Rows (of all groups) that half the byte budget holds for every input of the chunk."""
    row = len(chunk.x) * groups * max(noise.dim, 1) * chunk.x.element_size()
    return max(2, chunk.settings.max_bytes // 2 // row)


def linear_estimate(
    chunk: Chunk, noise: Noise, logits: LogitMap, values: Tensor, *, sampled: bool
) -> Estimate:
    """P(target on top) of the linear model given by ``logits`` and its values ``[b, G, C]``.

    ``sampled``: the values and rows are means over random noise, so ``error`` includes theirs.
    """
    weights = group_weights(logits.groups, values.device)
    screened = _screen(
        chunk, noise, logits, margins_of(values, weights[0], chunk.target), weights[0]
    )
    budget = row_budget(chunk, noise, len(logits.groups))
    scatter = scatter_sums(logits, noise, screened, weights, row_budget=budget)
    probs = []
    for version, weight in enumerate(weights):
        margins = margins_of(values, weight, chunk.target).gather(1, screened.classes)
        with chunk.meter.clock("cdf"):
            corr = jac_cov_finalize(scatter[version], margins, torch.zeros_like(chunk.target), 1.0)
        margins = margins[:, 1:]
        z = [standardised(margins, corr.norms, sigma) for sigma in noise.sigmas]
        infos = [_cdf(chunk, z_sigma, corr.corr) for z_sigma in z]
        probs.append(torch.stack([info.prob for info in infos]))
        if version == 0:
            whole, z_whole = infos, z
    error = torch.stack([info.error for info in whole])
    if sampled:
        error = error + sampling_error(torch.stack(probs), logits.groups, LEVEL)
    error_with_dropped = error + screened.dropped
    lower, upper = clamped(probs[0], error_with_dropped, error)
    return Estimate(
        probs[0],
        torch.stack([info.complement for info in whole]),
        error_with_dropped,
        lower,
        upper,
        torch.stack([info.status for info in whole]),
        torch.stack([nearest(z_sigma, screened.classes[:, 1:], chunk) for z_sigma in z_whole]),
        screened.n_screened.expand(len(noise.sigmas), -1),
    )


def margins_of(values: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Margins f_t - f_i of the weighted group means: ``[b, C]``, zero at the target."""
    used = weight > 0  # zero times an infinite logit is not a number
    mean = (values[:, used] * weight[used, None]).sum(1)
    return mean.gather(1, target[:, None]) - mean


def nearest(z: Tensor, classes: Tensor, chunk: Chunk) -> Tensor:
    """The rival that alone is most likely to overtake; the clean runner-up if none can."""
    fallback = clean_runner_up(chunk)
    if z.shape[1] == 0:
        return fallback
    least, at = z.min(1)
    return torch.where(least == torch.inf, fallback, classes.gather(1, at[:, None])[:, 0])


def clean_runner_up(chunk: Chunk) -> Tensor:
    others = chunk.clean.scatter(1, chunk.target[:, None], -torch.inf)
    return others.argmax(1)


def _screen(
    chunk: Chunk, noise: Noise, logits: LogitMap, margins: Tensor, weights: Tensor
) -> Screened:
    s = chunk.settings
    budget = row_budget(chunk, noise, len(logits.groups))
    allowed = SHARES[s.screen] * s.abs_tol
    if s.screen == "none":
        return screen_none(logits, noise, chunk.target, margins, row_budget=budget)
    if s.screen == "exact":
        return screen_exact(
            logits, noise, chunk.target, margins, weights, allowed=allowed, row_budget=budget
        )
    return screen_sketch(
        logits,
        noise,
        chunk.target,
        margins,
        weights,
        allowed=allowed,
        row_budget=budget,
        keys=row_keys(s.seed, DIRECTIONS, chunk.index),
    )


def _cdf(chunk: Chunk, z: Tensor, corr: Tensor):
    s = chunk.settings
    with chunk.meter.clock("cdf"), statuses_not_warnings():
        return mvn_cdf(
            z,
            corr,
            abs_tol=(1.0 - SHARES[s.screen]) * s.abs_tol,
            seed=chunk.cdf_seeds(),
            return_info=True,
        )
