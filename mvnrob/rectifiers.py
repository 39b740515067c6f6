"""Forward mode through ReLU, ReLU6 and clamp, for one pass over the memory of the tangents.

Within ``torch.func.vmap`` torch's rule combines tangents [m, b, ...] with values [b, ...], a broadcast
that GPUs read number by number, two bytes at a time in half precision: a third of memory's speed. The
slope is 0 or 1. Here it is made of the values once, as a mask of bits, and ANDed with eight bytes of the
tangents at a time. In place torch writes new tangents and copies them over the old ones; here nothing is
copied.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.nn import functional

try:
    # Not public, but torch's own Python and torch.compile stand on them. An operator with
    # torch.library.register_vmap costs 100 us of host time a call more than torch's rule: of a ResNet-50's
    # pass, 5 ms of 10.
    from torch._C import _DisableFuncTorch as _PlainTensors
    from torch._C._functorch import (
        TransformType,
        _add_batch_dim,
        get_unwrapped,
        is_batchedtensor,
        is_functorch_wrapped_tensor,
        is_gradtrackingtensor,
        maybe_get_bdim,
        maybe_get_level,
        peek_interpreter_stack,
    )

    _JVP = TransformType.Jvp
except (ImportError, AttributeError):  # another torch: all is left to its rules

    def peek_interpreter_stack() -> None:
        return None


#: Values (of the point), and numbers of the tangents, below which torch's rule is left its way: the tangents'
#: kernel is then shorter than the launches of the mask's. They cost the host 25 us in place and 50 out of
#: place (a slow shared core, where torch's rule costs 24 within LinearLayers; a good third is make_dual and
#: unpack_dual), in which a GPU takes ten million numbers by torch's rule.
_FEW = 2**16
_FEW_TANGENTS = {"cpu": 0, "cuda": 2**23}
#: An integer as wide as the number.
_BITS = {
    torch.float16: torch.int16, torch.bfloat16: torch.int16,
    torch.float32: torch.int32, torch.float64: torch.int64,
}  # fmt: skip
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_WORD = 8  # bytes of an int64
#: On CPUs torch reads vectors in a broadcast, too, and out of place the mask is work on top: for tangents
#: [8, 8, 64, 56, 56], on one core that keeps freed memory, 7.5 ms against torch's 5.4 in float32, 4.7
#: against 3.0 in float16. In place it is 4.1 against 9.7 and 3.3 against 5.6 (ReLU6 5.4 against 15.4).
_OUT_OF_PLACE = {"cuda"}
_IN_PLACE = {"cpu", "cuda"}


def _relu_slope(out: Tensor) -> Tensor:
    # NaN is not zero; to compare with a number would take three times as long on the host
    return out.to(torch.bool)


def _hardtanh_slope(low: float, high: float, out: Tensor) -> Tensor:
    if out.is_cpu:  # at NaN 0 (but in the last few numbers torch takes 1)
        return (out > low).logical_and_(out < high)
    return (out <= low).logical_or_(out >= high).logical_not_()


def _clamp_slope(low: float, high: float, x: Tensor) -> Tensor:
    return (x >= low).logical_and_(x <= high)


def _are_exact(*bounds) -> bool:
    """In every precision; others are rounded here in one way, there in another."""
    return all(type(b) in (int, float) and abs(b) <= 256 and b == int(b) for b in bounds)


# Each returns how the slopes (bool) follow, whether from the result or from x, and whether func works in
# place; or none.


def _relu(x, inplace=False) -> tuple | None:
    return _relu_slope, True, inplace


def _relu6(x, inplace=False) -> tuple | None:
    return _hardtanh(x, 0, 6, inplace)


def _hardtanh(x, min_val=-1, max_val=1, inplace=False) -> tuple | None:
    if not _are_exact(min_val, max_val):
        return None
    return partial(_hardtanh_slope, min_val, max_val), True, inplace


def _clamp(x, min=None, max=None) -> tuple | None:
    return (partial(_clamp_slope, min, max), False, False) if _are_exact(min, max) else None


_aten = torch.ops.aten
RECTIFIERS: dict[Callable, Callable] = {
    **dict.fromkeys((torch.relu, Tensor.relu, functional.relu, _aten.relu.default), _relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_, _aten.relu_.default), partial(_relu, inplace=True)),
    functional.relu6: _relu6,
    **dict.fromkeys((functional.hardtanh, _aten.hardtanh.default), _hardtanh),
    **dict.fromkeys(
        (functional.hardtanh_, _aten.hardtanh_.default), partial(_hardtanh, inplace=True)
    ),
    **dict.fromkeys((torch.clamp, Tensor.clamp, _aten.clamp.default), _clamp),
}


def rectified(func: Callable, args: tuple, kwargs: dict) -> Tensor | None:
    """``func(*args, **kwargs)`` for a func of :data:`RECTIFIERS`, or none: that is left to torch.

    Taken are values that are dense in memory, with tangents laid out alike, one direction after another,
    of ``vmap(jvp)``. Whatever else is wrapped around the one or the other, torch knows what to do.
    """
    transform = peek_interpreter_stack()
    if transform is None or transform.key() != _JVP or not args:
        return None
    x = args[0]
    if type(x) is not Tensor or x.numel() < _FEW:
        return None
    try:
        rule = RECTIFIERS[func](*args, **kwargs)
    except TypeError:  # func may know better
        return None
    if rule is None:
        return None
    slope_of, of_result, in_place = rule
    if x.device.type not in (_IN_PLACE if in_place else _OUT_OF_PLACE):
        return None
    point, tangent = unpack_dual(x)
    if tangent is None:
        return None
    for part in (point, tangent):
        if not is_gradtrackingtensor(part) or maybe_get_level(part) != transform.level():
            return None
    point, batch = get_unwrapped(point), get_unwrapped(tangent)
    if is_functorch_wrapped_tensor(point) or not is_batchedtensor(batch) or maybe_get_bdim(batch):
        return None
    along = get_unwrapped(batch)
    if is_functorch_wrapped_tensor(along):
        return None
    with _PlainTensors():
        if along.numel() < _FEW_TANGENTS[x.device.type] or not _are_laid_alike(point, along):
            return None
        count = point.numel()
        value = func(point, *args[1:], **kwargs)
        if value.stride() != point.stride():
            return None
        flat = (value if of_result else point).as_strided((count,), (1,))
        mask = slope_of(flat).view(torch.int8).neg_()  # -1 is all ones
        mask = mask.to(_BITS[flat.dtype]).view(torch.int64)
        words = along.as_strided((along.shape[0], count), (count, 1)).view(torch.int64)
        if in_place:  # on the memory of x and of its tangent, as torch does
            words.bitwise_and_(mask)
            return x
        tangent = words.bitwise_and(mask).view(along.dtype)
        # laid out as the value, or make_dual copies it
        tangent = tangent.as_strided(along.shape, (count, *value.stride()))
    return make_dual(value, _add_batch_dim(tangent, 0, maybe_get_level(batch)))


def _are_laid_alike(point: Tensor, along: Tensor) -> bool:
    """Dense, in the same order, in whole words; and plain numbers, without a graph."""
    if type(point) is not Tensor or type(along) is not Tensor:
        return False
    if point.layout is not torch.strided or along.layout is not torch.strided:
        return False
    if point.requires_grad or along.requires_grad or along.is_neg() or along._is_zerotensor():
        return False
    if along.dtype is not point.dtype or point.dtype not in _BITS or along.device != point.device:
        return False
    count, shape, strides = point.numel(), along.shape, along.stride()
    if shape[1:] != point.shape or shape[0] < 2 or strides[0] != count:
        return False
    if strides[1:] != point.stride():
        sides = zip(point.shape, point.stride(), strides[1:], strict=True)
        if any(size > 1 and one != other for size, one, other in sides):
            return False
    if not point.is_contiguous():
        layout = _CHANNELS_LAST.get(point.dim())
        if layout is None or not point.is_contiguous(memory_format=layout):
            return False
    width = point.element_size()
    return not (
        count * width % _WORD or along.storage_offset() * width % _WORD or along.data_ptr() % _WORD
    )
