"""Forward mode through layers that are linear in their input, at the price of a forward pass.

torch's own rules count a layer's weights among the variables: beside each product of the tangent with the
weights they compute one of the input with zeros, and a batch norm in eval mode falls into a dozen
operations over all directions. Within :class:`LinearLayers` such a layer takes one operation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten
#: ``op(x, weight, bias, ...)``, linear in x without the bias.
_PRODUCTS = {
    functional.linear, _aten.linear.default, _aten.convolution.default,
    torch.conv1d, _aten.conv1d.default, _aten.conv1d.padding,
    torch.conv2d, _aten.conv2d.default, _aten.conv2d.padding,
    torch.conv3d, _aten.conv3d.default, _aten.conv3d.padding,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
}  # fmt: skip
_CHANNELS_LAST = {torch.channels_last, torch.channels_last_3d}


class LinearLayers(TorchFunctionMode):
    """Convolutions, linear layers, batch norms in eval mode and padding, wherever the model calls them.

    Those whose weights have tangents themselves, because the model makes them of its input, are left to
    torch.

    Args:
        any_layout: requests for the layout channels_last are ignored; ``torch.func.vmap`` refuses
            them, and the numbers are the same in every layout.
    """

    def __init__(self, *, any_layout: bool) -> None:
        super().__init__()
        self._any_layout = any_layout

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            return _product(func, *args, **kwargs)
        if func is functional.batch_norm:
            return _batch_norm(*args, **kwargs)
        if func is torch.batch_norm or func is _aten.batch_norm.default:
            return _batch_norm_of_aten(*args, **kwargs)
        if func is functional.pad:
            return _pad(*args, **kwargs)
        if self._any_layout and kwargs.get("memory_format") in _CHANNELS_LAST:
            others = {name: value for name, value in kwargs.items() if name != "memory_format"}
            if func is Tensor.contiguous or func is Tensor.to:
                is_asked = func is Tensor.contiguous or args[1:] or others
                out = func(*args, **others) if is_asked else args[0]
                # What is laid out anew has memory of its own, for a model that works in place on it.
                return out.clone() if out is args[0] else out
        return func(*args, **kwargs)


def _product(op: Callable, input, weight, bias=None, *options, **named) -> Tensor:
    return _pushed(
        lambda x: op(x, weight, bias, *options, **named),
        lambda tangent: op(tangent, weight, None, *options, **named),
        input,
        weight,
        bias,
    )


def _batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> Tensor:
    """Over dimension 1. In eval mode the statistics are no variables, for torch either."""

    def value(x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum, eps
        )

    def slope(tangent: Tensor) -> Tensor:
        scale = (running_var + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        return tangent * scale.to(tangent.dtype).view(-1, *[1] * (tangent.dim() - 2))

    return value(input) if training else _pushed(value, slope, input, weight, bias)


def _batch_norm_of_aten(
    input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled
) -> Tensor:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _pad(input, pad, mode="constant", value=None) -> Tensor:
    if mode != "constant":
        return functional.pad(input, pad, mode, value)
    # torch copies a tangent whose layout is not the value's; vmap lays out what it pads by dimensions
    is_channels_last = input.dim() == 4 and len(pad) <= 4 and input.stride(1) == 1 < input.shape[1]

    def slope(tangent: Tensor) -> Tensor:
        if is_channels_last:
            return functional.pad(tangent.movedim(1, 3), (0, 0, *pad)).movedim(3, 1)
        return functional.pad(tangent, pad)

    return _pushed(lambda x: functional.pad(x, pad, value=value), slope, input)


def _pushed(value: Callable, slope: Callable, x: Tensor, *weights: Tensor | None) -> Tensor:
    """``value(x)``, with ``slope`` of the tangent of x."""
    try:
        point, tangent = unpack_dual(x)
        are_variables = any(w is not None and unpack_dual(w).tangent is not None for w in weights)
    except RuntimeError:  # within a vmap of the model itself
        return value(x)
    if tangent is None or are_variables:
        return value(x)
    return make_dual(value(point), slope(tangent))
