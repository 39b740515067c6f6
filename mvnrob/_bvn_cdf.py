"""Bivariate normal probabilities: ``bvn_cdf``, its fake kernel, its reference."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _load
from ._checks import check_alike


def bvn_cdf(h: Tensor, k: Tensor, rho: Tensor) -> Tensor:
    """P(X <= h, Y <= k) for standard normal X and Y of correlation rho, element by element.

    Args:
        h, k: limits, float32 or float64, of shapes that broadcast; infinities are limits too.
        rho: correlations in [-1, 1], same dtype, broadcasting with them.

    Returns the probabilities, in the common shape and dtype; computed in float64, absolute error
    below 1e-15. NaN where an argument is NaN or rho is outside [-1, 1]. Cost: about 0.1 us an
    element. Source: Genz, Statistics and Computing 14 (2004).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, device or shape.
        NotImplementedError: a tensor requires grad, or is on a device without kernels.
    """
    named = {"h": h, "k": k, "rho": rho}
    check_alike("bvn_cdf", named)
    if h.device.type == "cuda" and _load.cuda_unavailable:
        raise NotImplementedError(
            f"bvn_cdf: h must be on the CPU, got {h.device}: {_load.cuda_unavailable}"
        )
    try:
        wide = torch.broadcast_tensors(*(t.double() for t in named.values()))
    except RuntimeError:
        shapes = ", ".join(str(list(t.shape)) for t in named.values())
        raise ValueError(
            f"bvn_cdf: arguments must have shapes that broadcast, got {shapes}"
        ) from None
    out = torch.ops.mvnrob.bvn_cdf(*wide)
    # The kernel serves callers whose rho is a rounding error beyond 1; here that is no correlation.
    return torch.where(wide[2].abs() > 1, torch.nan, out).to(h.dtype)


@torch.library.register_fake("mvnrob::bvn_cdf")
def _(h, k, rho):
    return torch.empty_like(h, memory_format=torch.contiguous_format)


def bvn_cdf_reference(h: Tensor, k: Tensor, rho: Tensor, n_nodes: int = 4000) -> Tensor:
    """The same in plain float64 PyTorch, for the tests: |rho| < 0.999, finite limits.

    The integral over x of phi(x) Phi((k - rho x) / sqrt(1 - rho^2)) by the trapezoidal rule in
    x = h - t, t = e^u: double-exponential decay at both ends.
    """
    h, k, rho = torch.broadcast_tensors(h.double(), k.double(), rho.double())
    u = torch.linspace(-40.0, 4.5, n_nodes, dtype=torch.float64)
    t = u.exp()
    x = h[..., None] - t
    inner = (k[..., None] - rho[..., None] * x) / (1 - rho[..., None] ** 2).sqrt()
    density = torch.exp(-0.5 * x * x) / (2 * torch.pi) ** 0.5
    values = density * 0.5 * torch.erfc(-inner * 0.5**0.5) * t
    return values.sum(-1) * (44.5 / (n_nodes - 1))
