"""Robustness as a loss term: p of the linearised network, differentiable in inputs and weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ._mvn_cdf import mvn_cdf
from .jacobian import plain_attention
from .network import owning_module, uncompiled, without_autocast
from .options import check_number

METHODS = ("taylor", "taylor_mvs", "taylor_mendell_elston")
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def taylor_probability(
    model: Callable,
    x: Tensor,
    sigma: float,
    *,
    target: Tensor | None = None,
    method: str = "taylor",
    rivals: int | None = None,
    slope: float = 1.0,
    abs_tol: float = 1e-3,
    seed: int = 0,
) -> Tensor:
    r"""P(argmax f(x + noise) = target) of the network linearised at x, ``[B]``, with its graph.

    With u_i = grad f_t - grad f_i, z_i = (f_t - f_i) / (sigma ||u_i||) and R_ij the cosine of u_i and
    u_j it is ``mvn_cdf(z, R)`` (``"taylor"``); its deterministic approximation, some .003 off and far
    cheaper to differentiate (``"taylor_mendell_elston"``); or ``1 / (1 + sum_i exp(-slope z_i))``
    (``"taylor_mvs"``).
    The gradients u_i keep their own graph, so that the derivative has the terms through their norms
    and angles: those by which training can make a network smoother, not only its margins wider.

    Args:
        model: ``[B, *shape] -> [B, C]`` logits, twice differentiable almost everywhere (a ReLU network
            is: its second derivatives are zero, and its weights still enter u). In train or eval
            mode; batch norm in train mode is refused, since it makes rows depend on each other.
            Attention runs by torch's plain kernel: the fused ones have no second derivative.
        x: inputs ``[B, *shape]``, floating point. Where they require a gradient they get one.
        sigma: standard deviation of the noise, > 0, in units of x.
        target: int64 ``[B]``, labels; the prediction by default.
        method: ``"taylor"``, ``"taylor_mendell_elston"`` or ``"taylor_mvs"``.
        rivals: only the so many classes of least margin, C - 1 by default. With fewer, p is that of not
            flipping to one of them: an upper bound, at the price of fewer backward passes.
        slope: of the sigmoid.
        abs_tol: 99 % error of the integral (:func:`mvnrob.mvn_cdf`); its slopes have about as much.
            Like seed, for ``"taylor"`` alone.
        seed: of the integral's random shifts.

    A row of equal gradients (u_i = 0) never changes its margin: the rival counts as never or always
    ahead, and gives no gradient; nor does one whose logit is infinite (a class masked by -inf). NaN
    logits give NaN. A common factor on all logits changes nothing, while the slopes of p to the logits
    are numbers of their dtype (logits of 1e-37 and more in float32). p may underflow to 0, with a
    gradient of 0: as a term of log p, clamp it first. Autocast reaches the model alone.

    Cost: one forward pass and as many backward passes as rivals, of which a graph is kept, so memory
    grows with them; the gradient of ``"taylor"`` to R costs a call for each pair of rivals that matters,
    that of ``"taylor_mendell_elston"`` about twice its value.

    Source: the estimators of Han, Srinivas and Lakkaraju (UAI 2024), whose published code leaves the
    gradient through ||u_i|| out.

    Raises:
        TypeError, ValueError: a bad argument; a model whose logits do not depend on x; a call within
            ``torch.inference_mode`` (``torch.no_grad`` will do, and :func:`mvnrob.robustness`).
    """
    op = "taylor_probability"
    if torch.is_inference_mode_enabled():
        raise ValueError(
            f"{op}: x must be given outside of torch.inference_mode, where nothing has a gradient, got "
            "a call within it; torch.no_grad will do"
        )
    _check(op, model, x, sigma, target, method, rivals, slope)
    leaf = x if x.requires_grad else x.detach().clone().requires_grad_()
    with torch.enable_grad(), plain_attention(), uncompiled():
        logits = model(leaf.clone())  # a model may work in place on what it is given
    logits = getattr(logits, "logits", logits)
    with torch.enable_grad(), without_autocast(x.device):
        if logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] < 2:
            raise ValueError(
                f"{op}: model must return logits [{len(x)}, C], got {list(logits.shape)}"
            )
        chosen = logits.argmax(1) if target is None else target
        classes = logits.shape[1]
        if len(x) and not 0 <= int(chosen.min()) <= int(chosen.max()) < classes:
            low, high = int(chosen.min()), int(chosen.max())
            raise ValueError(
                f"{op}: target must lie in [0, {classes}), got {low if low < 0 else high}"
            )
        # half precision stays within the model
        logits = logits.to(torch.promote_types(logits.dtype, x.dtype))
        margins = logits.gather(1, chosen[:, None]) - logits
        order = margins.detach().scatter(1, chosen[:, None], math.inf).argsort(dim=1, stable=True)
        count = classes - 1 if rivals is None else min(rivals, classes - 1)
        g = margins.gather(1, order[:, :count])
        rows = []
        for column in g.unbind(1):
            (row,) = torch.autograd.grad(
                column.sum(), leaf, create_graph=True, allow_unused=True
            ) if column.requires_grad else (None,)  # fmt: skip
            if row is None:
                raise ValueError(f"{op}: model must be differentiable in its input, got none")
            rows.append(row.flatten(1).to(logits.dtype))
        u, g = _rescaled(torch.stack(rows, 1), g)
        squares = u.square().sum(-1)
        # sqrt has no derivative at zero: where u is zero, its norm is kept out of the graph, and so are
        # infinite margins, whose slopes would be 0 / 0
        zero, infinite = squares == 0, g.detach().isinf()
        norms = torch.where(zero, 1.0, squares).sqrt()
        step = torch.where(g.detach() < 0, -math.inf, math.inf).to(g)
        moves = torch.where(infinite, 0.0, g) / (sigma * norms)
        z = torch.where(zero | infinite, step, moves)
        if method == "taylor_mvs":
            # 1 / (1 + sum_i exp(-slope z_i)), whose terms may overflow where p is 0
            finite = (-slope * z).clamp(max=torch.finfo(z.dtype).max)
            return torch.cat([torch.zeros_like(z[:, :1]), finite], 1).softmax(1)[:, 0]
        unit = torch.where(zero[..., None], 0.0, u / norms[..., None])
        corr = unit @ unit.mT
        # The diagonal is one whatever x and the weights are; only zero rows have to be told so.
        corr = corr + torch.diag_embed(zero.to(corr))
        if method == "taylor_mendell_elston":
            return mvn_cdf(z, corr, method="mendell_elston")
        return mvn_cdf(z, corr, abs_tol=abs_tol, seed=seed)


def _rescaled(u: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Each rival's gradient ``[B, m, D]`` and margin ``[B, m]`` times one power of two, which changes
    neither z nor R: squares of the gradients then neither over- nor underflow."""
    if u.numel() == 0:
        return u, g
    size = torch.linalg.vector_norm(u.detach(), math.inf, dim=-1)
    # in two steps: the inverse of the least numbers is not a number of the dtype
    exponent = -torch.frexp(torch.where(size.isfinite(), size, 1.0)).exponent
    for part in (exponent // 2, exponent - exponent // 2):
        factor = torch.exp2(part.to(u.dtype))
        u, g = u * factor[..., None], g * factor
    return u, g


def _check(op: str, model, x, sigma, target, method, rivals, slope) -> None:
    if not callable(model):
        raise TypeError(f"{op}: model must be callable, got {type(model).__name__}")
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{op}: x must be a float32 or float64 tensor, got {got}")
    if x.dim() < 2:
        raise ValueError(f"{op}: x must have shape [B, *shape], got {list(x.shape)}")
    if isinstance(sigma, bool) or not isinstance(sigma, (int, float)):
        raise TypeError(f"{op}: sigma must be a number, got {type(sigma).__name__}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"{op}: sigma must be positive and finite, got {sigma}")
    if method not in METHODS:
        raise ValueError(f"{op}: method must be one of {', '.join(METHODS)}, got {method!r}")
    check_number(op, "slope", slope, "a positive number", positive=True)
    if rivals is not None and (
        isinstance(rivals, bool) or not isinstance(rivals, int) or rivals < 1
    ):
        raise ValueError(f"{op}: rivals must be a positive int or None, got {rivals!r}")
    if target is not None and (
        not isinstance(target, Tensor) or target.dtype != torch.int64 or target.shape != x.shape[:1]
    ):
        got = list(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(f"{op}: target must be int64 [{len(x)}], got {got}")
    module = owning_module(model)
    for name, part in module.named_modules() if module is not None else ():
        if isinstance(part, _BATCH_NORMS) and part.training:
            raise ValueError(
                f"{op}: model must have its batch norm in eval mode, got {name!r} in train mode"
            )
