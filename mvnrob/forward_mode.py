"""Forward mode through layers that are linear in their input, at the price of a forward pass.

torch's own rules count a layer's weights among the variables: beside each product of the tangent with the
weights they compute one of the input with zeros, and a batch norm in eval mode falls into a dozen
operations over all directions. Within :class:`LinearLayers` such a layer takes one operation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten
#: ``op(x, weight, bias, ...)``, bilinear in x and weight without the bias.
_PRODUCTS = {
    functional.linear, _aten.linear.default, _aten.convolution.default,
    torch.conv1d, _aten.conv1d.default, _aten.conv1d.padding,
    torch.conv2d, _aten.conv2d.default, _aten.conv2d.padding,
    torch.conv3d, _aten.conv3d.default, _aten.conv3d.padding,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
}  # fmt: skip
_CHANNELS_LAST = {torch.channels_last, torch.channels_last_3d}


class LinearLayers(TorchFunctionMode):
    """Convolutions, linear layers and batch norms in eval mode, wherever the model calls them.

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
        if self._any_layout and kwargs.get("memory_format") in _CHANNELS_LAST:
            others = {name: value for name, value in kwargs.items() if name != "memory_format"}
            if func is Tensor.contiguous:
                return args[0].contiguous()
            if func is Tensor.to:
                return args[0].to(*args[1:], **others) if args[1:] or others else args[0]
        return func(*args, **kwargs)


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether torch's own kernels take them: not for quantised or distributed weights."""
    return all(t is None or type(t) in (Tensor, nn.Parameter) for t in tensors)


def _product(op: Callable, input, weight, bias=None, *options, **named) -> Tensor:
    if not _is_plain(input, weight, bias):
        return op(input, weight, bias, *options, **named)
    return _Product.apply(input, weight, bias, op, options, named)


def _batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> Tensor:
    tensors = input, running_mean, running_var, weight, bias
    if training or running_mean is None or not _is_plain(*tensors):
        return functional.batch_norm(*tensors, training, momentum, eps)
    return _BatchNorm.apply(*tensors, eps)


def _batch_norm_of_aten(
    input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled
) -> Tensor:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


class _Product(torch.autograd.Function):
    @staticmethod
    def vmap(info, in_dims, *operands):
        return _vmapped(_Product.forward, in_dims, operands)

    @staticmethod
    def forward(x, weight, bias, op, options, named):
        return op(x, weight, bias, *options, **named)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, ctx.op, ctx.options, ctx.named = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def jvp(ctx, x_tangent, weight_tangent, bias_tangent, *_):
        x, weight = ctx.saved_tensors
        parts = []
        if x_tangent is not None:
            parts.append((x_tangent, weight, None))
        if weight_tangent is not None or bias_tangent is not None:
            # a layer whose weights the model makes of its input
            own = torch.zeros_like(weight) if weight_tangent is None else weight_tangent
            parts.append((x, own, bias_tangent))
        products = [ctx.op(*part, *ctx.options, **ctx.named) for part in parts]
        return sum(products[1:], products[0]) if products else None


class _BatchNorm(torch.autograd.Function):
    """In eval mode, over dimension 1."""

    @staticmethod
    def vmap(info, in_dims, *operands):
        return _vmapped(_BatchNorm.forward, in_dims, operands)

    @staticmethod
    def forward(x, mean, variance, weight, bias, eps):
        return functional.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.eps = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def jvp(ctx, x_tangent, mean_tangent, variance_tangent, weight_tangent, bias_tangent, _):
        x, mean, variance, weight, _ = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        parts = []
        if x_tangent is not None:
            parts.append(x_tangent * _channels(inverse if weight is None else inverse * weight, x))
        # of weights that the model makes of its input; statistics are no variables, as in torch
        if weight_tangent is not None:
            parts.append((x - _channels(mean, x)) * _channels(inverse * weight_tangent, x))
        if bias_tangent is not None:
            parts.append(_channels(bias_tangent, x).expand_as(x))
        return sum(parts[1:], parts[0]) if parts else None


def _vmapped(layer: Callable, in_dims: tuple, operands: tuple) -> tuple[Tensor, int]:
    """Where the model itself maps over a layer's tensors, derivatives are by torch's own rules."""
    moving = [i for i, operand in enumerate(operands)
              if isinstance(operand, Tensor) and in_dims[i] is not None]  # fmt: skip

    def run(*parts: Tensor) -> Tensor:
        at = dict(zip(moving, parts, strict=True))
        return layer(*(at.get(i, operand) for i, operand in enumerate(operands)))

    dims = tuple(in_dims[i] for i in moving)
    return torch.func.vmap(run, dims)(*(operands[i] for i in moving)), 0


def _channels(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).view(-1, *[1] * (x.dim() - 2))
