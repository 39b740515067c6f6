"""Forward mode through a network's layers, about at the price of a forward pass.

torch's own rules count a layer's weights among the variables: beside each product of the tangent with the
weights they compute one of the input with zeros; a batch norm in eval mode, a layer norm or a group norm falls
into a dozen operations or more over all directions; and a number that an activation is multiplied by, or that is
added to it, takes as long on the host as a dozen kernels. Within :class:`LayerRules` such a layer takes the
operations that it needs (:mod:`mvnrob.forward_rules`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from . import forward_rules as rules
from .batch_norms import BatchNorms

_aten = torch.ops.aten
_RULES = {
    rules.linear: (functional.linear, _aten.linear.default),
    rules.product: (
        _aten.convolution.default,
        torch.conv1d, _aten.conv1d.default, _aten.conv1d.padding,
        torch.conv2d, _aten.conv2d.default, _aten.conv2d.padding,
        torch.conv3d, _aten.conv3d.default, _aten.conv3d.padding,
        torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    ),
    rules.layer_norm: (functional.layer_norm, torch.layer_norm, _aten.layer_norm.default),
    rules.group_norm: (functional.group_norm, torch.group_norm, _aten.group_norm.default),
    rules.sum_with: (torch.add, Tensor.add, _aten.add.Tensor, *rules.SUBTRACTIONS),
    rules.multiple: (
        torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, _aten.mul.Tensor, *rules.DIVISIONS,
    ),
}  # fmt: skip
_RULE_OF = {op: rule for rule, ops in _RULES.items() for op in ops}
_CHANNELS_LAST = {torch.channels_last, torch.channels_last_3d}


class LayerRules(TorchFunctionMode):
    """Layers by their rules, wherever the model calls them.

    Those whose weights have tangents themselves, because the model makes them of its input, are left to
    torch.

    Args:
        any_layout: requests for the layout channels_last are ignored; ``torch.func.vmap`` refuses
            them, and the numbers are the same in every layout.
        norms: slopes of batch norms that are known.
    """

    def __init__(self, *, any_layout: bool, norms: BatchNorms | None = None) -> None:
        super().__init__()
        self._any_layout = any_layout
        self._norms = norms or BatchNorms(None)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        rule = _RULE_OF.get(func)
        if rule is not None:
            return rule(func, *args, **kwargs)
        if func is functional.batch_norm:
            return rules.batch_norm(self._norms, *args, **kwargs)
        if func is torch.batch_norm or func is _aten.batch_norm.default:
            return _batch_norm_of_aten(self._norms, *args, **kwargs)
        if func is functional.pad:
            return rules.pad(*args, **kwargs)
        if self._any_layout and kwargs.get("memory_format") in _CHANNELS_LAST:
            others = {name: value for name, value in kwargs.items() if name != "memory_format"}
            if func is Tensor.contiguous or func is Tensor.to:
                is_asked = func is Tensor.contiguous or args[1:] or others
                out = func(*args, **others) if is_asked else args[0]
                # What is laid out anew has memory of its own, for a model that works in place on it.
                return out.clone() if out is args[0] else out
        return func(*args, **kwargs)


def _batch_norm_of_aten(
    norms, input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled
) -> Tensor:
    return rules.batch_norm(
        norms, input, running_mean, running_var, weight, bias, training, momentum, eps
    )
