"""How many inputs pass together on a GPU: enough to fill it, in few different sizes."""

from __future__ import annotations

import torch
from torch import Tensor

#: Bytes of autograd's graph in a pass below which a GPU waits for the host, which takes as long to
#: launch a small pass as a large one (ResNet-50's shape: 36 images of 224 x 224).
_FULL_PASS = 3 * 2**30


def full_pass(device: torch.device, graph: int) -> int:
    """Inputs of ``graph`` bytes each below which a pass takes as long as one of fewer; 1 on a CPU."""
    return 1 if device.type == "cpu" else max(1, _FULL_PASS // max(1, graph))


def pass_size(rows: int, full: int, each: int = 1) -> int:
    """The size, ``rows`` or somewhat more, of a pass of so many points with ``each`` tangents of every one.

    cuDNN plans each convolution anew for every size of a batch, which takes longer than a pass: ResNet-50's
    shape on an H200 39 to 158 ms where a pass of a known size takes 8 to 23 (``python -m bench
    cuda_pass_sizes``); and what one rounds, a pass of another size rounds otherwise. So sizes are powers of
    two while the pass is not ``full``, which costs nothing, and beyond that four from one power of two to the
    next, at most a quarter more work. All are allowed where ``full`` is 1.
    """
    if full == 1:
        return rows
    size = 1 << (rows - 1).bit_length()
    if size * each <= full:
        return size
    step = max(1, (1 << rows.bit_length()) // 8)
    return -(-rows // step) * step


def padded(x: Tensor, size: int) -> Tensor:
    """x ``[b, ...]`` with copies of its first row, without derivatives, in the middle: ``[size, ...]``.

    In the middle: what depends on the first or on the last row of a batch shows as it would without them.
    """
    more = size - x.shape[0]
    if more <= 0:
        return x
    first, last = x.tensor_split([_before(x.shape[0])])
    return torch.cat([first, x[:1].detach().expand(more, *x.shape[1:]), last])


def unpadded(out: Tensor, rows: int) -> Tensor:
    """Of what was computed from ``rows`` of them."""
    if out.shape[0] == rows:
        return out
    before = _before(rows)
    return torch.cat([out[:before], out[out.shape[0] - rows + before :]])


def _before(rows: int) -> int:
    return (rows + 1) // 2
