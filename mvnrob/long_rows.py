"""Products and bases of a few long rows each, for many inputs at a time."""

from __future__ import annotations

import torch
from torch import Tensor

#: Numbers in float64 at a time: few enough for a CPU's cache, many for a GPU's kernels.
_CONVERTED = {"cpu": 2**19, "cuda": 2**27}
#: Into so many parts a GPU takes the sums of an input's products: four for each multiprocessor or
#: more, which with two of them waits for memory.
_PARTS = 512
#: What parts hold a multiple of.
_STEP = 32


def inner(a: Tensor, b: Tensor) -> Tensor:
    """a b^T: ``[n, i, r]`` and ``[n, j, r]`` -> ``[n, i, j]``, for r far beyond i and j."""
    return a @ b.mT if a.device.type == "cpu" else _inner_by_parts(a, b, _PARTS)


def _inner_by_parts(a: Tensor, b: Tensor, most: int) -> Tensor:
    """A batched product is left to a thread block for each tile of i and j, which here has r terms to
    sum and few others beside it: the sums are cut into ``most`` parts."""
    n, i, r = a.shape
    width = -(-r // most // _STEP) * _STEP if r >= most else r
    parts = r // max(1, width)
    if parts < 2:
        return a @ b.mT
    whole = parts * width
    out = a.new_empty(n, parts, i, b.shape[1])
    for k in range(n):  # a view for each input: of all of them together it would be a copy
        left = a[k, :, :whole].unflatten(1, (parts, width)).transpose(0, 1)
        right = b[k, :, :whole].unflatten(1, (parts, width)).permute(1, 2, 0)
        torch.bmm(left, right, out=out[k])
    total = out.sum(1)
    return total if whole == r else total.baddbmm_(a[:, :, whole:], b[:, :, whole:].mT)


def leading(vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Orthonormal leading directions of ``vectors`` [b, m, r]: ``[b, min(count, m, r), r]``, and their
    singular values; zero where these are rounding.

    From the eigenvectors of the Gram matrix in float64, whose squares leave of singular values what is
    above 1e-8 of the largest: enough for rows of float32. Those of float64 are scaled by what the first
    Gram matrix shows, and the second one is of rows of comparable lengths.
    """
    count = min(count, *vectors.shape[1:])
    sizes, turn = _spectrum(_gram(vectors, None))
    if vectors.dtype != torch.float64:
        sizes, turn = sizes[:, :count], turn[:, :, :count]
        return _combined(vectors, _reciprocal(sizes)[..., None] * turn.mT), sizes
    least = sizes[:, :1] * torch.finfo(sizes.dtype).eps ** 0.5
    scale = torch.maximum(sizes, torch.where(least > 0, least, 1.0))
    scaled = turn.mT / scale[..., None]  # vectors = turn scale (scaled vectors)
    inside, turn_inside = _spectrum(_gram(vectors, scaled))
    left = turn * scale[:, None]
    _, sizes, right = torch.linalg.svd(left @ turn_inside * inside[:, None])
    sizes, right = sizes[:, :count], right[:, :count]
    return _combined(
        vectors, right @ (_reciprocal(inside)[..., None] * turn_inside.mT) @ scaled
    ), sizes


def _reciprocal(sizes: Tensor) -> Tensor:
    """1 / sizes, 0 for those that are rounding beside the first."""
    small = sizes <= 4.0 * torch.finfo(sizes.dtype).eps ** 0.5 * sizes[:, :1]
    return torch.where(small, 0.0, 1.0 / torch.where(small, 1.0, sizes))


def _spectrum(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, the largest first, and left singular vectors of what has this Gram matrix."""
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp_min(0.0).sqrt().flip(1), vectors.flip(2)


def _converted(vectors: Tensor) -> list[tuple[int, int]]:
    """Ranges of columns that are converted to float64 together."""
    b, m, r = vectors.shape
    at_once = _CONVERTED["cpu" if vectors.device.type == "cpu" else "cuda"]
    width = max(1024, at_once // max(1, b * m))
    return [(first, min(first + width, r)) for first in range(0, r, width)]


def _double(part: Tensor) -> Tensor:
    """Float64, zeros for what is no number."""
    if part.dtype == torch.float64:
        return part.nan_to_num(0.0, 0.0, 0.0)
    return part.double().nan_to_num_(0.0, 0.0, 0.0)


def _gram(vectors: Tensor, factor: Tensor | None) -> Tensor:
    """Of the ``vectors``, or of ``factor @ vectors``: ``[b, m, m]``, float64."""
    total = torch.zeros((), dtype=torch.float64, device=vectors.device)
    for first, end in _converted(vectors):
        part = _double(vectors[:, :, first:end])
        if factor is not None:
            part = factor @ part
        total = total + inner(part, part)
    return total


def _combined(vectors: Tensor, factor: Tensor) -> Tensor:
    out = vectors.new_empty(len(vectors), factor.shape[1], vectors.shape[2])
    for first, end in _converted(vectors):
        out[:, :, first:end] = factor @ _double(vectors[:, :, first:end])
    return out
