"""Bivariate normal probabilities: ``bvn_cdf``, its fake kernel, its reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _load
from ._autograd import register
from ._checks import check_alike


def bvn_cdf(h: Tensor, k: Tensor, rho: Tensor) -> Tensor:
    """P(X <= h, Y <= k) for standard normal X and Y of correlation rho, element by element.

    Args:
        h, k: limits, float32 or float64, of shapes that broadcast; infinities are limits too.
        rho: correlations in [-1, 1], same dtype, broadcasting with them.

    Returns the probabilities, in the common shape and dtype; computed in float64, absolute error
    below 1e-15. NaN where an argument is NaN or rho is outside [-1, 1]. Cost: about 0.1 us an
    element. Source: Genz, Statistics and Computing 14 (2004).

    Differentiable, as often as wanted where |rho| < 1, in reverse and in forward mode. At rho = 1 and -1
    the gradient is one-sided where the limits differ (h and k; h and -k); where they meet they share the
    slope equally, and that to rho is infinite.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, device or shape.
        NotImplementedError: a tensor is on a device without kernels.
        torch.OutOfMemoryError: memory does not hold the result, on a CPU too.
    """
    named = {"h": h, "k": k, "rho": rho}
    check_alike("bvn_cdf", named, gradients=True)
    if h.device.type == "cuda" and _load.cuda_unavailable:
        raise NotImplementedError(
            f"bvn_cdf: h must be on the CPU, got {h.device}: {_load.cuda_unavailable}"
        )
    double = [t.double() for t in named.values()]
    try:
        wide = torch.broadcast_tensors(*double)
    except RuntimeError:
        shapes = ", ".join(str(list(t.shape)) for t in named.values())
        raise ValueError(
            f"bvn_cdf: arguments must have shapes that broadcast, got {shapes}"
        ) from None
    out = _call(*wide)
    # The kernel serves callers whose rho is a rounding error beyond 1; here that is no correlation.
    return torch.where(wide[2].abs() > 1, torch.nan, out).to(h.dtype)


@torch.library.register_fake("mvnrob::bvn_cdf")
def _(h, k, rho):
    return torch.empty_like(h, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> tuple[Tensor, ...]:
    return inputs


def _slopes(h: Tensor, k: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives to each argument, differentiable themselves."""
    left = (1 - rho) * (1 + rho)
    inside = left > 0
    s = torch.where(inside, left, 1.0).sqrt()

    def slope(x, y):  # phi(x) Phi((y - rho x) / s); x infinite: no density
        finite, within = x.isfinite(), y.isfinite()
        x = torch.where(finite, x, 0.0)
        # finite where y is not, or the derivatives of what is not used there would be NaN
        z = torch.where(within, y, 0.0) - rho.clamp(-1, 1) * x
        # s = 0: a step, one half on it
        step = torch.where(z == 0, 0.5, (z > 0).to(z.dtype))
        given = torch.where(inside, 0.5 * torch.erfc(z / s * -(0.5**0.5)), step)
        given = torch.where(within, given, (y > 0).to(z.dtype))
        return torch.where(finite, _density(x) * given, 0.0)

    finite = h.isfinite() & k.isfinite()
    x, y = torch.where(finite, h, 0.0), torch.where(finite, k, 0.0)
    z = y - rho.clamp(-1, 1) * x
    line = torch.where(z == 0, math.inf, 0.0)
    pair = _density(x) * torch.where(inside, _density(z / s) / s, line)
    # A NaN answer has NaN slopes.
    nan = torch.where(h.isnan() | k.isnan() | rho.isnan(), math.nan, 0.0)
    return slope(h, k) + nan, slope(k, h) + nan, torch.where(finite, pair, 0.0) + nan


def _backward(ctx, grad):
    return tuple(grad * slope for slope in _slopes(*ctx.saved_tensors))


def _jvp(ctx, saved, *tangents):
    total = 0.0
    for slope, t in zip(_slopes(*saved), tangents, strict=True):
        if t is not None:
            # An infinite slope has no part in a direction that does not change its argument.
            total = total + torch.where(slope.isinf() & (t == 0), 0.0, slope * t)
    return total


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


_call = register("bvn_cdf", _backward, _jvp, _save)


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
