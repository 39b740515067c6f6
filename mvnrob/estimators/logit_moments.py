"""logit_moments: a normal law fitted to the margins of noisy copies; forward passes only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._mvn_cdf import mvn_cdf
from ..linearised import margin
from ..screening import rival_order
from .chunk import LEVEL, Chunk, Estimate, clamped, split_units, statuses_not_warnings
from .jackknife import MOST_GROUPS, group_weights, sampling_error
from .linear import nearest


def logit_moments(chunk: Chunk) -> Estimate:
    """P(M >= 0) for M normal with the sample mean and covariance of the margins of n copies.

    Needs no derivative, so it serves black boxes and models with very many classes, and it contains
    the curvature's share of the margins' variance, which ``taylor`` and ``mmse`` drop. Exact for
    linear models as n grows. The covariance is singular when n <= C - 1; that is allowed, and it is
    then kept as its factor of n columns.

    ``error`` covers the integral and the sampling error of the moments, by the jackknife over at
    most 8 groups of copies; not the distance of the margins from a normal law. The jackknife sees
    no bias beyond first order: with n below about C, too few copies narrow the covariance, and
    ``error`` may be too small. Cost per input and sigma: n forward passes.
    """
    return Estimate.join([_one_sigma(chunk, noise) for noise in chunk.noise.each()], 0)


def _one_sigma(chunk: Chunk, noise) -> Estimate:
    s = chunk.settings
    pairs = s.sampling == "antithetic"
    groups = split_units(s.n_samples, 2 if pairs else 1, MOST_GROUPS)
    order = rival_order(chunk.clean.gather(1, chunk.target[:, None]) - chunk.clean, chunk.target)
    margins = _margins(chunk, noise, order)
    weights = group_weights(groups, margins.device)
    group_of = torch.cat([torch.full((count,), number) for number, (_, count) in enumerate(groups)])
    infos, scores = [], None
    for version in range(len(weights)):
        chosen = margins if version == 0 else margins[:, group_of != version - 1]
        mean, factor = moments(chosen, pairs)
        if factor.shape[2] < factor.shape[1]:
            law = {"factor": factor}
        else:
            law = {"cov": factor @ factor.mT}
        with chunk.meter.clock("cdf"), statuses_not_warnings():
            infos.append(
                mvn_cdf(mean, **law, abs_tol=s.abs_tol, seed=chunk.cdf_seeds(), return_info=True)
            )
        if version == 0:
            deviation = torch.linalg.vector_norm(factor, dim=2)
            step = torch.where(mean < 0, -torch.inf, torch.inf)
            scores = torch.where(deviation == 0, step, mean / deviation)
    whole = infos[0]
    probs = torch.stack([info.prob for info in infos])
    error = whole.error + sampling_error(probs, groups, LEVEL)
    lower, upper = clamped(whole.prob, error, error)
    return Estimate(
        whole.prob[None],
        whole.complement[None],
        error[None],
        lower[None],
        upper[None],
        whole.status[None],
        nearest(scores, order, chunk)[None],
        torch.zeros_like(whole.status)[None],
    )


def moment_bytes(n_samples: int, classes: int) -> int:
    """Peak for one input: the copies' margins and what becomes of them, and the covariance, where it is
    not kept as a factor, with its copies in the CDF (measured: tests/test_memory.py)."""
    return 64 * n_samples * classes + (0 if n_samples < classes - 1 else 48 * classes**2)


def moments(margins: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
    """Mean ``[b, m]`` of samples ``[b, n, m]``, and a factor F ``[b, m, n]`` of their unbiased
    covariance F F^T.

    Antithetic pairs split the margins into an even part (the pair's mean) and an odd part (half its
    difference), which are uncorrelated; the odd part has mean zero, so its covariance loses no
    degree of freedom: cov = sum odd odd^T / P + sample covariance of the even part over P pairs.
    A margin that is infinite in all samples (a class at -inf) has an infinite mean and variance zero;
    one that is so in some of them only has no moments: NaN.
    """
    infinite = margins.isinf()
    always = infinite.all(1)
    mean = margins.mean(1).masked_fill(infinite.any(1) & ~always, math.nan)
    margins = margins.masked_fill(always[:, None], 0.0)
    centre = margins.mean(1, keepdim=True)
    if not pairs:
        return mean, (margins - centre).mT / math.sqrt(max(1, margins.shape[1] - 1))
    first, second = margins[:, 0::2], margins[:, 1::2]
    count = first.shape[1]
    odd = (first - second).mT / (2 * math.sqrt(count))
    even = ((first + second).mT / 2 - centre.mT) / math.sqrt(max(1, count - 1))
    return mean, torch.cat([odd, even], 2)


def _margins(chunk: Chunk, noise, order: Tensor) -> Tensor:
    """Margins over the rivals in ``order`` of all copies: ``[b, n, C - 1]``, float64."""
    n, batch = chunk.settings.n_samples, len(chunk.x)
    out = torch.empty(batch, n, order.shape[1], dtype=torch.float64, device=chunk.x.device)
    at_once = max(2, chunk.copies // max(1, batch) // 2 * 2)
    for first in range(0, n, at_once):
        count = min(at_once, n - first)
        copies = chunk.x[:, None] + chunk.perturbations(noise, first, count)
        with torch.no_grad(), chunk.meter.clock("forward"):
            parts = copies.flatten(0, 1).split(max(1, chunk.copies))
            logits = torch.cat([chunk.network(part).double() for part in parts])
        logits = logits.unflatten(0, (batch, count))
        own = logits.gather(2, chunk.target[:, None, None].expand(-1, count, 1))
        rivals = logits.gather(2, order[:, None].expand(-1, count, -1))
        out[:, first : first + count] = margin(
            own, rivals, chunk.target[:, None, None] < order[:, None]
        )
    chunk.meter.passes("forward", chunk.inputs, n)
    # one power of two for an input's margins, which changes no probability: their squares are numbers
    size = torch.where(out.isfinite(), out, 0.0).abs_().amax((1, 2))
    return out.mul_(
        torch.exp2(-torch.frexp(size).exponent.clamp(-1000, 1000).double())[:, None, None]
    )
