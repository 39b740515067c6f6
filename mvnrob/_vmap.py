"""torch.func.vmap over the ops: a mapped dimension becomes more rows of one call.

Importing this module registers the rules. Any dimension of any tensor may be mapped, and maps nest:
each level folds its dimension into the rows and calls the op again, below itself. A row depends on
itself and its seed alone, so every answer is the one without vmap, to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._mvn_cdf import _result, _warn


def _first(t: Tensor, dim: int | None, size: int) -> Tensor:
    """``t`` with its mapped dimension first; one that is not mapped repeats without a copy."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def _rows(info, in_dims, args) -> tuple[list, int]:
    """Tensors [B, ...] among ``args`` as [size * B, ...], the rest unchanged; and B.

    A covariance that all rows share stays one matrix. One per row, not mapped while the limits are,
    is copied for each of them, as :func:`mvnrob.mvn_cdf` does when it broadcasts.
    """
    folded, rows = [], 0
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            arg = _first(arg, dim, info.batch_size)
            rows = arg.shape[1]
            # An explicit size: -1 cannot be inferred where the tensor is empty.
            arg = arg.reshape(info.batch_size * rows, *arg.shape[2:])
        folded.append(arg)
    return folded, rows


@torch.library.register_vmap("mvnrob::mvn_cdf")
def _(info, in_dims, *args):
    folded, rows = _rows(info, in_dims, args)
    out = torch.ops.mvnrob.mvn_cdf(*folded)
    # Inside the map nothing can be read, so mvn_cdf itself stays silent there.
    _warn(_result(out, out[0].shape))
    return tuple(t.reshape(info.batch_size, rows) for t in out), (0,) * len(out)


@torch.library.register_vmap("mvnrob::mvn_cdf_sums")
def _(info, in_dims, *args):
    folded, rows = _rows(info, in_dims, args)
    out = torch.ops.mvnrob.mvn_cdf_sums(*folded)
    return out.reshape(info.batch_size, rows, *out.shape[1:]), 0


@torch.library.register_vmap("mvnrob::mendell_elston")
def _(info, in_dims, *args):
    folded, rows = _rows(info, in_dims, args)
    out = torch.ops.mvnrob.mendell_elston(*folded)
    return tuple(t.reshape(info.batch_size, rows) for t in out), (0,) * len(out)


@torch.library.register_vmap("mvnrob::mendell_elston_backward")
def _(info, in_dims, *args):
    folded, rows = _rows(info, in_dims, args)
    out = torch.ops.mvnrob.mendell_elston_backward(*folded)
    size = info.batch_size
    # An empty output stands for none.
    return tuple(
        t.expand(size, 0) if t.dim() == 1 else t.unflatten(0, (size, rows)) for t in out
    ), 0


@torch.library.register_vmap("mvnrob::pivoted_cholesky")
def _(info, in_dims, *args):
    folded, rows = _rows(info, in_dims, args)
    out = torch.ops.mvnrob.pivoted_cholesky(*folded)
    return tuple(t.unflatten(0, (info.batch_size, rows)) for t in out), (0,) * len(out)


@torch.library.register_vmap("mvnrob::bvn_cdf")
def _(info, in_dims, h, k, rho):
    wide = [_first(t, d, info.batch_size) for t, d in zip((h, k, rho), in_dims, strict=True)]
    return torch.ops.mvnrob.bvn_cdf(*wide), 0
