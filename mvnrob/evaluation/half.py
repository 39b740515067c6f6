"""A model that computes in half precision, all but its last linear layer."""

from __future__ import annotations

import copy
from collections.abc import Callable

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


def in_half(
    name: str,
) -> Callable[[LoadedModel, Tensor, tuple[float, ...]], LoadedModel]:
    """What makes a copy of a model that computes in the dtype of this name: its weights and activations. The
    last linear layer, where logits' differences are small beside them, and inputs, noise and
    Jacobians keep theirs.

    Raises:
        ValueError: a model without a last linear layer, not in float32, or whose logits or gradients are
            lost; see ``rewritten``.
    """

    def rewrite(loaded: LoadedModel, x: Tensor, sigmas: tuple[float, ...] = ()) -> LoadedModel:
        return rewritten(
            loaded, x, sigmas, lambda model, example: _halved(model, example, DTYPES[name]),
            option="dtype", name=name,
        )  # fmt: skip

    return rewrite


class InHalf(nn.Module):
    """``model`` in ``dtype``, but for its layer ``last``. (Under autocast convolutions have no forward mode.)"""

    def __init__(self, model: nn.Module, dtype: torch.dtype, last: str) -> None:
        super().__init__()
        self.model = model.to(dtype)
        self.dtype = dtype
        head = self.model.get_submodule(last).float()
        head.register_forward_pre_hook(_widen, with_kwargs=True)
        self.training = False

    def forward(self, x: Tensor):
        return self.model(x.to(self.dtype))


def _widen(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return tuple(x.float() for x in args), {name: x.float() for name, x in kwargs.items()}


def _halved(model: nn.Module, x: Tensor, dtype: torch.dtype) -> nn.Module:
    if x.dtype != torch.float32 or any(
        p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters()
    ):
        raise Unfit("a model that is not in float32")
    network = Network("evaluate", model, None, x)
    network.count_classes(x)
    head = read_head("evaluate", None, network, x)
    if head is None:
        raise Unfit("a model whose logits are not the output of a linear layer")
    try:
        half = InHalf(copy.deepcopy(model), dtype, head.name)
    except Exception as error:  # whatever a module holds beside its weights
        why = f"a model that cannot be copied ({type(error).__name__}: {first_line(error)})"
        raise Unfit(why) from error
    before, after = (_gradient(m, x) for m in (model, half))
    moved = float(safe_norm(after - before)), float(safe_norm(before))
    if not moved[0] <= _MOVED * moved[1]:
        raise Unfit(f"a model whose gradients it changes by {moved[0]:.2g} of {moved[1]:.2g}")
    return half


def _gradient(model: nn.Module, x: Tensor) -> Tensor:
    """``[D]`` of the likeliest class's logit less the mean of all."""
    network = Network("evaluate", model, None, x)
    leaf = x.clone().requires_grad_()
    with torch.enable_grad(), full_float32():
        logits = network(leaf)
        (gradient,) = torch.autograd.grad((logits.amax(1) - logits.mean(1)).sum(), leaf)
    return gradient.flatten()
