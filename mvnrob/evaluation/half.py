"""A model that computes in half precision, all but its last linear layer.

(Under autocast convolutions have no forward mode.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ..head import read_head
from ..network import Network, first_line, full_float32, safe_norm
from .models import LoadedModel
from .rewritten import Unfit, rewritten

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
#: Part of a gradient's norm by which half precision may move it at the example. Kinks of ReLUs alone make
#: .2 (float16) to .6 (bfloat16) of a trained network; gradients that underflow or overflow are lost whole.
_MOVED = 0.8
#: Part of the logits' spread by which it may move an example's. (The first example's, which speaks for the whole run,
#: by Network.rounding(), half of that.)
_MOVED_LOGITS = 0.1


def in_half(name: str) -> Callable[[LoadedModel, Tensor, tuple[float, ...]], LoadedModel]:
    """What makes a copy of a model that computes in the dtype of this name: its weights and activations. The
    last linear layer, where logits' differences are small beside them, and inputs, noise and
    Jacobians keep theirs. ``full`` of the loaded model is the model as it was.

    Raises:
        ValueError: a model without a last linear layer, not in float32, that fails in half precision, or
            whose logits or gradients are lost; see ``rewritten``.
    """

    def rewrite(loaded: LoadedModel, x: Tensor, sigmas: tuple[float, ...] = ()) -> LoadedModel:
        half = rewritten(
            loaded, x, sigmas, lambda _, example: _halved(loaded, example, DTYPES[name]),
            option="dtype", name=name,
        )  # fmt: skip
        return replace(half, full=loaded.model)

    return rewrite


def lost(full: Tensor, half: Tensor) -> list[tuple[float, float] | None]:
    """Of logits ``[b, C]`` of the model as it was and in half precision: by how much they differ and how far the
    former spread, where that is too much; whatever swallows an overflow leaves numbers."""
    finite = full.isfinite()
    spread = torch.where(finite, full, -math.inf).amax(1) - torch.where(
        finite, full, math.inf
    ).amin(1)
    gap = torch.where(full == half, 0.0, (full - half).abs()).amax(1)  # -inf: classes left out
    bad = ~(gap <= _MOVED_LOGITS * spread) & ~full.isnan().any(1)
    return [
        (g, s) if b else None
        for g, s, b in zip(*(t.tolist() for t in (gap, spread, bad)), strict=True)
    ]


def _halved(loaded: LoadedModel, x: Tensor, dtype: torch.dtype) -> nn.Module:
    model = loaded.model
    if x.dtype != torch.float32 or any(
        p.is_complex() or (p.is_floating_point() and p.dtype != torch.float32)
        for p in model.parameters()
    ):
        raise Unfit("a model that is not in float32")
    network = Network("evaluate", model, loaded.preprocessing, x)
    network(x)
    head = read_head("evaluate", None, network, x)
    if head is None:
        raise Unfit("a model whose logits are not the output of a linear layer")
    try:
        half = copy.deepcopy(model)
    except Exception as error:  # whatever a module holds beside its weights
        why = f"a model that cannot be copied ({type(error).__name__}: {first_line(error)})"
        raise Unfit(why) from error
    last = half.get_submodule(head.name)
    weights = copy.deepcopy(last.state_dict())
    half.to(dtype)
    last.float().load_state_dict(weights)
    # Hooks, not a module around it: the parts keep their names.
    half.register_forward_pre_hook(partial(_as, dtype), with_kwargs=True)
    last.register_forward_pre_hook(partial(_as, torch.float32), with_kwargs=True)
    try:
        before = _gradient(model, loaded, x)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001  (a model without gradients has none to lose)
        return half
    try:
        after = _gradient(half, loaded, x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        error = error.__cause__ or error
        raise Unfit(
            f"a model that fails with it ({type(error).__name__}: {first_line(error)})"
        ) from error
    gap, size = float(safe_norm(after - before)), float(safe_norm(before))
    if not gap <= _MOVED * size:
        raise Unfit(f"a model whose gradients it changes by {gap:.2g} of {size:.2g}")
    return half


def _as(dtype: torch.dtype, _module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    def cast(x):
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return tuple(map(cast, args)), {name: cast(x) for name, x in kwargs.items()}


def _gradient(model: nn.Module, loaded: LoadedModel, x: Tensor) -> Tensor:
    """``[D]`` of the likeliest class's logit less the mean of all."""
    network = Network("evaluate", model, loaded.preprocessing, x)
    leaf = x.clone().requires_grad_()
    with torch.enable_grad(), full_float32():
        logits = network(leaf)
        (gradient,) = torch.autograd.grad((logits.amax(1) - logits.mean(1)).sum(), leaf)
    return gradient.flatten()
