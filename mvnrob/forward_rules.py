"""Forward-mode rules of layers: what a layer does to a tangent, in as few operations as that takes.

A rule is called as the function that it stands for, which comes first. It does as that does wherever there
is no tangent, or more than the rule knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.nn import functional

from .batch_norms import BatchNorms

SUBTRACTIONS = {torch.sub, torch.subtract, Tensor.sub, Tensor.subtract, torch.ops.aten.sub.Tensor}
DIVISIONS = {
    torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.true_divide,
    torch.ops.aten.div.Tensor,
}  # fmt: skip


def product(op: Callable, input, weight, bias=None, *options, **named) -> Tensor:
    """``op(x, weight, bias, ...)``, linear in x without the bias."""
    return _pushed(
        lambda x: op(x, weight, bias, *options, **named),
        lambda tangent, _: op(tangent, weight, None, *options, **named),
        input,
        weight,
        bias,
    )


def linear(op: Callable, input, weight, bias=None) -> Tensor:
    """Over the last dimension."""

    def slope(tangent: Tensor, _) -> Tensor:
        if tangent.dim() <= 2:
            return op(tangent, weight)
        # as rows: of what does not lie as rows do, torch makes a product for each direction and others,
        # with copies of the weight
        return op(tangent.flatten(0, -2), weight).unflatten(0, tangent.shape[:-1])

    return _pushed(lambda x: op(x, weight, bias), slope, input, weight, bias)


def batch_norm(
    norms: BatchNorms,
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

    def slope(tangent: Tensor, _) -> Tensor:
        scale = norms.slope(running_var, weight, eps)
        return tangent * scale.to(tangent.dtype).view(-1, *[1] * (tangent.dim() - 2))

    return value(input) if training else _pushed(value, slope, input, weight, bias)


def pad(input, pad, mode="constant", value=None) -> Tensor:
    """By a constant; torch copies a tangent whose layout is not the value's."""
    if mode != "constant":
        return functional.pad(input, pad, mode, value)
    # vmap lays out what it pads by dimensions
    is_channels_last = input.dim() == 4 and len(pad) <= 4 and input.stride(1) == 1 < input.shape[1]

    def slope(tangent: Tensor, _) -> Tensor:
        if is_channels_last:
            return functional.pad(tangent.movedim(1, 3), (0, 0, *pad)).movedim(3, 1)
        return functional.pad(tangent, pad)

    return _pushed(lambda x: functional.pad(x, pad, value=value), slope, input)


def layer_norm(
    op: Callable, input, normalized_shape, weight=None, bias=None, eps=1e-5, *options, **named
) -> Tensor:
    """Over the last dimensions."""
    dims = tuple(range(-len(normalized_shape), 0))

    def slope(tangent: Tensor, point: Tensor) -> Tensor:
        normal, scale = _normalised(point, dims, eps)
        return _norm_tangent(tangent, normal, scale if weight is None else scale * weight, dims)

    value = lambda x: op(x, normalized_shape, weight, bias, eps, *options, **named)
    return _pushed(value, slope, input, weight, bias)


def group_norm(
    op: Callable, input, num_groups, weight=None, bias=None, eps=1e-5, *options, **named
) -> Tensor:
    """Over groups of dimension 1 and all dimensions behind it."""

    def slope(tangent: Tensor, point: Tensor) -> Tensor:
        split = (num_groups, point.shape[1] // num_groups)
        grouped = point.unflatten(1, split)
        dims = tuple(range(2, grouped.dim()))
        normal, scale = _normalised(grouped, dims, eps)
        if weight is not None:
            scale = scale * weight.view(*split, *[1] * (point.dim() - 2))
        return _norm_tangent(tangent.unflatten(1, split), normal, scale, dims).flatten(1, 2)

    value = lambda x: op(x, num_groups, weight, bias, eps, *options, **named)
    return _pushed(value, slope, input, weight, bias)


def _normalised(x: Tensor, dims: Sequence[int], eps: float) -> tuple[Tensor, Tensor]:
    """x with mean 0 and variance 1, and the factor of that."""
    x = x.float() if x.dtype.itemsize < 4 else x
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    scale = (variance + eps).rsqrt()
    return (x - mean) * scale, scale


def _norm_tangent(tangent: Tensor, normal: Tensor, scale: Tensor, dims: Sequence[int]) -> Tensor:
    """Times ``scale``, without what mean and variance take out."""
    tangent = tangent.to(normal.dtype)
    rest = tangent - tangent.mean(dims, keepdim=True)
    along = (tangent * normal).mean(dims, keepdim=True)
    return torch.addcmul(rest, normal, along, value=-1.0) * scale


def sum_with(op: Callable, *sides, **named) -> Tensor:
    """x + c, c + x, x - c and c - x for a constant c: torch would add zeros of its own making."""
    x, constant = _variable_first(sides, named)
    if x is None or not _has_shape_of_sum(x, constant):
        return op(*sides, **named)
    first, second = sides
    falls = x is second and op in SUBTRACTIONS
    return _pushed(
        lambda point: op(point, constant) if x is first else op(constant, point),
        # memory of its own, for what works in place on the sum
        lambda tangent, _: -tangent if falls else tangent.clone(),
        x,
    )


def multiple(op: Callable, *sides, **named) -> Tensor:
    """x c, c x and x / c for a constant c."""
    x, constant = _variable_first(sides, named)
    if x is None or (x is sides[1] and op in DIVISIONS):
        return op(*sides, **named)
    apply = lambda at, _=None: op(at, constant) if x is sides[0] else op(constant, at)
    return _pushed(apply, apply, x)


def _variable_first(sides: tuple, named: dict) -> tuple[Tensor | None, Tensor | float | None]:
    """The one of two sides that has a tangent, and the other; nothing where both have or none has, where more
    is asked for, and for numbers: what these are promoted to hangs on their being numbers."""
    if len(sides) != 2 or named:
        return None, None
    try:
        moving = [side for side in sides if isinstance(side, Tensor) and _moves(side)]
    except RuntimeError:  # within a vmap of the model itself
        return None, None
    if len(moving) != 1 or moving[0].dim() == 0:
        return None, None
    return moving[0], sides[1] if moving[0] is sides[0] else sides[0]


def _has_shape_of_sum(x: Tensor, constant) -> bool:
    if not isinstance(constant, Tensor):
        return not isinstance(constant, complex)
    sizes = zip(reversed(constant.shape), reversed(x.shape), strict=False)
    fits = constant.dim() <= x.dim() and all(size in (1, of_x) for size, of_x in sizes)
    return fits and torch.result_type(x, constant) == x.dtype


def _moves(tensor: Tensor) -> bool:
    # what is made of the input is not a parameter, and asking takes as long as launching a kernel
    return type(tensor) is not nn.Parameter and unpack_dual(tensor).tangent is not None


def _pushed(value: Callable, slope: Callable, x: Tensor, *weights: Tensor | None) -> Tensor:
    """``value(x)``, with ``slope(tangent, x)`` for a tangent."""
    try:
        point, tangent = unpack_dual(x)
        are_variables = any(weight is not None and _moves(weight) for weight in weights)
    except RuntimeError:  # within a vmap of the model itself
        return value(x)
    if tangent is None or are_variables:
        return value(x)
    out = value(point)
    return make_dual(out, slope(tangent, point).to(out.dtype))
