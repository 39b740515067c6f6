"""Standard normal draws from a counter: ``standard_normal``, its fake kernel, its reference."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _load, _ops

# splitmix64 (Steele, Lea & Flood, OOPSLA 2014): the golden-ratio step and the finaliser's factors,
# as signed 64-bit numbers. Products wrap modulo 2^64.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FACTOR_1 = 0xBF58476D1CE4E5B9 - 2**64
_FACTOR_2 = 0x94D049BB133111EB - 2**64


def splitmix64(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (a new tensor); a shift right is logical after its mask."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _FACTOR_1
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _FACTOR_2
    return x ^ ((x >> 31) & (2**33 - 1))


def standard_normal(keys: Tensor, first: int, count: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Draws ``[b, count, dim]``: numbers ``first .. first + count - 1`` of each row's stream.

    Args:
        keys: int64 ``[b]``, one for each row (:func:`mvnrob.noise.row_keys`).

    A draw depends on its row's key, its number and ``dim`` only, so neither the batch, its chunks
    nor the number of threads change a bit of it; nor does dtype, because values are rounded to
    float32 first, which also hides what processors and devices differ in but for a last bit now and
    then. Inverse normal CDF, by ``mvn_cdf``'s functions, of 32 bits of a splitmix64 hash:
    |value| <= 6.34. Cost: 1 to 2 ns a number on a CPU thread with AVX-512, for draws of some hundred
    numbers or more.

    Raises:
        NotImplementedError: keys are on a device without kernels.
        RuntimeError: keys, first, count or dim are out of range; torch.OutOfMemoryError is one.
    """
    if keys.device.type == "cuda" and _load.cuda_unavailable:
        raise NotImplementedError(
            f"standard_normal: keys must be on the CPU, got {keys.device}: {_load.cuda_unavailable}"
        )
    return _ops.call("standard_normal", keys, first, count, dim).to(dtype)


@torch.library.register_fake("mvnrob::standard_normal")
def _(keys, first, count, dim):
    return keys.new_empty((keys.shape[0], count, dim), dtype=torch.float32)


def reference(keys: Tensor, first: int, count: int, dim: int) -> Tensor:
    """The same by torch's functions, float32."""
    number = torch.arange(first + 1, first + count + 1, device=keys.device)
    keys = splitmix64(keys[:, None] + number * GOLDEN)
    half = (dim + 1) // 2
    words = splitmix64(keys[..., None] + torch.arange(1, half + 1, device=keys.device) * GOLDEN)
    bits = torch.cat([words & (2**32 - 1), (words >> 32) & (2**32 - 1)], -1)[..., :dim]
    half_uniform = ((bits & (2**31 - 1)).double() + 0.5) * 2.0**-32
    magnitude = -torch.special.ndtri(half_uniform)
    return torch.where(bits >= 2**31, magnitude, -magnitude).float()
