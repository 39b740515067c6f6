"""``mvn_cdf(method="mendell_elston")``: a moment-matching approximation, and its reference.

One variable after another, the least probable next first, is conditioned on keeping its limits, and
what is left is taken as normal with the mean and covariance that it then has (Mendell and Elston,
Biometrics 30 (1974); the order is that of Gibson, Glasbey and Elston, Adv. Appl. Probab. 26 (1994)).
The product of the conditional probabilities is the answer. Nothing is sampled, and nothing bounds the
error. log p is a sum of logarithms, so both tails keep their digits.

Variables that are multiples of the one conditioned on, given those before, narrow its interval and
leave, so duplicates count once and antiparallel pairs are intervals. Other dependence of a singular
covariance needs nothing: given events, not values, each variable keeps variance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _load  # noqa: F401  (the schemas)
from ._autograd import along_tangents, refuse, register


def rows(
    upper: Tensor, cov: Tensor, lower: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What ``torch.ops.mvnrob.mvn_cdf`` returns, ``[B]`` each, of ``upper, lower [B, n]`` and
    ``cov [B, n, n]``. Errors are NaN, but rounding's where at most one interval is left."""
    prob, complement, log_prob, status, n_active, n_pivots = _call(upper, cov, lower)
    exact = status == 1
    # As closed forms have it: an interval's, and that of a float32 answer.
    single = 6e-8 if upper.dtype == torch.float32 else 0.0
    rounding = 4e-15 + single * torch.maximum(prob, complement).detach()
    log_rounding = (4e-15 + single) * log_prob.detach().abs().clamp_min(4e-15)
    none = torch.zeros_like(rounding)
    error = torch.where(exact, torch.where(n_pivots > 0, rounding, none), math.nan)
    log_error = torch.where(exact, torch.where(n_pivots > 0, log_rounding, none), math.nan)
    return (
        prob, complement, error, status, torch.zeros_like(status), n_active, n_pivots, log_prob,
        log_error,
    )  # fmt: skip


@torch.library.register_fake("mvnrob::mendell_elston")
def _(upper, cov, lower):
    batch = upper.shape[:1]
    real = [upper.new_empty(batch) for _ in range(3)]
    return (*real, *(upper.new_empty(batch, dtype=torch.int64) for _ in range(3)))


@torch.library.register_fake("mvnrob::mendell_elston_backward")
def _(grad, upper, cov, lower, wants_cov):
    batch, n = upper.shape
    return (
        upper.new_empty(batch, n),
        upper.new_empty(0) if lower is None else upper.new_empty(batch, n),
        upper.new_empty(batch, n, n) if wants_cov else upper.new_empty(0),
    )


_no_second = refuse(
    "mvn_cdf: second derivatives of method mendell_elston are not built; first ones are, without "
    "create_graph"
)
_call_backward = register("mendell_elston_backward", _no_second, _no_second)


def _save(ctx, inputs, output) -> tuple[Tensor | None, ...]:
    prob, _, _, *integers = output
    ctx.mark_non_differentiable(*integers)
    return *inputs, prob


def _backward(ctx, grad_prob, grad_complement, grad_log_prob, *_):
    upper, cov, lower, prob = ctx.saved_tensors
    wants_upper, wants_cov, wants_lower = ctx.needs_input_grad
    # All three are functions of log p. Zero times an infinite slope is zero where p underflows.
    to_log = (grad_prob - grad_complement).double() * prob.double() + grad_log_prob.double()
    to_upper, to_lower, to_cov = _call_backward(to_log, upper, cov, lower, wants_cov)
    return (
        to_upper if wants_upper else None,
        to_cov if wants_cov else None,
        to_lower if wants_lower else None,
    )


def _jvp(ctx, saved, to_upper, to_cov, to_lower):
    upper, cov, lower, prob = saved
    one = torch.ones_like(prob, dtype=torch.float64)
    slopes = _call_backward(one, upper, cov, lower, to_cov is not None)
    along = along_tangents(slopes, (to_upper, to_lower, to_cov))
    of_prob = along * prob
    return of_prob, -of_prob, along, None, None, None


#: torch.ops.mvnrob.mendell_elston, also within torch.func.
_call = register("mendell_elston", _backward, _jvp, _save)


def mendell_elston_reference(
    upper: Tensor, cov: Tensor, lower: Tensor | None = None, order: list[int] | None = None
) -> tuple[Tensor, list[int]]:
    """log p of one row and the order taken, in plain float64 PyTorch: autograd goes through it.

    ``upper``, ``lower`` ``[n]``, ``cov`` ``[n, n]``, positive definite; limits such that no interval
    is narrow or far out (differences are taken). ``order`` forces the order. Cost O(n^3).
    """
    n = upper.shape[0]
    s, m = cov.double(), torch.zeros(n, dtype=torch.float64)
    upper = upper.double()
    # Infinite limits have no part in any slope.
    upper = upper.clamp_max(1e9)
    lower = torch.full_like(upper, -1e9) if lower is None else lower.double().clamp_min(-1e9)
    left, taken, log_prob = list(range(n)), [], torch.zeros((), dtype=torch.float64)
    while left:
        sd = s.diagonal().sqrt()
        a, b = ((lower - m) / sd).clamp_min(-40), ((upper - m) / sd).clamp_max(40)
        mass = torch.special.ndtr(b) - torch.special.ndtr(a)
        j = min(left, key=lambda i: float(mass[i].detach())) if order is None else order[len(taken)]
        left.remove(j)
        taken.append(j)
        low, high = _density(a[j]) / mass[j], _density(b[j]) / mass[j]
        mean = low - high
        shrink = mean * mean - (a[j] * low - b[j] * high)
        c = s[:, j] / sd[j]
        log_prob = log_prob + mass[j].log()
        m = m + c * mean
        s = s - shrink * torch.outer(c, c)
    return log_prob, taken


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
