"""p_softmax: the softmax of the clean logits at a temperature (arXiv 2307.13885)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._mvn_cdf import Status
from .chunk import Chunk, Estimate
from .linear import clean_runner_up


def softmax_temperature(sigma: float | Tensor, gradient_norm: float | Tensor) -> float | Tensor:
    """T = sigma k, at which softmax(f / T)_t equals ``taylor_mvs`` (slope 1) for ||u_i|| = k.

    Args:
        sigma: noise in input units.
        gradient_norm: k, the common norm of the margins' gradients in logits per input unit; where
            they differ, any average makes softmax an approximation.
    """
    return sigma * gradient_norm


def softmax(chunk: Chunk) -> Estimate:
    """softmax(f(x) / T)_t. sigma enters only through T; T = 1 is the published form.

    Not an integral of anything: ``error`` is NaN, the limits are 0 and 1. Cost: no pass beyond the
    clean forward.
    """
    s = chunk.settings
    sigmas = len(chunk.noise.sigmas)
    temperature = s.temperature.to(chunk.clean).reshape(-1, 1).expand(sigmas, 1)
    # Classes at +inf share the whole, at any temperature.
    infinite = chunk.clean == torch.inf
    shared = torch.where(infinite, 0.0, -torch.inf).to(chunk.clean)
    clean = torch.where(infinite.any(1, keepdim=True), shared, chunk.clean)
    scaled = clean / temperature[..., None]  # [n_sigma, b, C]
    whole = scaled.logsumexp(-1)
    target = chunk.target[None, :, None].expand(sigmas, -1, 1)
    prob = (scaled.gather(2, target)[..., 0] - whole).exp()
    others = scaled.scatter(2, target, -torch.inf).logsumexp(-1)
    complement = (others - whole).exp()
    return Estimate(
        prob,
        complement,
        torch.full_like(prob, torch.nan),
        torch.zeros_like(prob),
        torch.ones_like(prob),
        torch.full_like(prob, int(Status.EXACT), dtype=torch.int64),
        clean_runner_up(chunk).expand(sigmas, -1),
        torch.zeros_like(prob, dtype=torch.int64),
    )
