"""Forward mode through layers that are linear in their input, at the price of a forward pass.

torch's own rules count a layer's weights among the variables: beside each product of the tangent with the
weights they compute one of the input with zeros, and a batch norm in eval mode falls into a dozen
operations over all directions. Within :class:`LinearLayers` such a layer takes one operation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
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


class BatchNorms:
    """Slopes of a module's batch norms, computed once: in every pass they would be three launches each."""

    def __init__(self, module: nn.Module | None) -> None:
        self._known: dict[tuple, tuple] = {}
        for part in module.modules() if module is not None else ():
            if not isinstance(part, nn.modules.batchnorm._BatchNorm) or part.running_var is None:
                continue
            held = (part.running_var, part.weight)
            if any(tensor is not None and tensor.is_inference() for tensor in held):
                continue  # without a version
            with torch.no_grad():
                slope = _norm_slope(*held, part.eps)
            # the tensors are held, so that their ids stay theirs
            self._known[self._key(*held, part.eps)] = (slope, held, _versions(held))

    @staticmethod
    def _key(running_var: Tensor, weight: Tensor | None, eps: float) -> tuple:
        return id(running_var), id(weight), eps

    def slope(self, running_var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """As it was computed, or anew where these are not a module's own or have been changed."""
        found = self._known.get(self._key(running_var, weight, eps))
        if found is not None:
            slope, held, versions = found
            if _versions(held) == versions:
                return slope
        return _norm_slope(running_var, weight, eps)


def _versions(tensors: tuple[Tensor | None, ...]) -> list[int]:
    return [0 if tensor is None else tensor._version for tensor in tensors]


def _norm_slope(running_var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    slope = (running_var + eps).rsqrt()
    return slope if weight is None else slope * weight


class LinearLayers(TorchFunctionMode):
    """Convolutions, linear layers, batch norms in eval mode and padding, wherever the model calls them.

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
        if func in _PRODUCTS:
            return _product(func, *args, **kwargs)
        if func is functional.batch_norm:
            return _batch_norm(self._norms, *args, **kwargs)
        if func is torch.batch_norm or func is _aten.batch_norm.default:
            return _batch_norm_of_aten(self._norms, *args, **kwargs)
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
    norms,
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
) -> Tensor:
    """Over dimension 1. In eval mode the statistics are no variables, for torch either."""

    def value(x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum, eps
        )

    def slope(tangent: Tensor) -> Tensor:
        scale = norms.slope(running_var, weight, eps)
        return tangent * scale.to(tangent.dtype).view(-1, *[1] * (tangent.dim() - 2))

    return value(input) if training else _pushed(value, slope, input, weight, bias)


def _batch_norm_of_aten(
    norms, input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled
) -> Tensor:
    return _batch_norm(
        norms, input, running_mean, running_var, weight, bias, training, momentum, eps
    )


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


def _has_tangent(weight: Tensor | None) -> bool:
    # what is made of the input is not a parameter, and asking takes as long as launching a kernel
    plain = weight is None or type(weight) is nn.Parameter
    return not plain and unpack_dual(weight).tangent is not None


def _pushed(value: Callable, slope: Callable, x: Tensor, *weights: Tensor | None) -> Tensor:
    """``value(x)``, with ``slope`` of the tangent of x."""
    try:
        point, tangent = unpack_dual(x)
        are_variables = any(map(_has_tangent, weights))
    except RuntimeError:  # within a vmap of the model itself
        return value(x)
    if tangent is None or are_variables:
        return value(x)
    return make_dual(value(point), slope(tangent))
