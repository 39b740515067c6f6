"""torch.func.vmap over the ops: a mapped dimension becomes more rows of one call.

Importing this module registers the rules. Any dimension of any tensor may be mapped, and maps nest:
each level folds its dimension into the rows and calls the op again, below itself. A row depends on
itself and its seed alone, so every answer is the one without vmap, to the bit.
"""

from __future__ import annotations

import functools

from torch import Tensor

from . import _bvn_cdf, _pivoted_cholesky  # noqa: F401  (the ops)
from ._autograd import register_vmap
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


def _unfolded(op, info, in_dims, *args, vectors=None):
    """For an op of rows, whose first ``vectors`` outputs (none: all) are ``[B]`` where they are wanted;
    of outputs that are not, which are empty, ``[0]``, there is nothing."""
    folded, rows = _rows(info, in_dims, args)
    out = op(*folded)
    out = (out,) if isinstance(out, Tensor) else out
    size = info.batch_size
    vectors = len(out) if vectors is None else vectors
    unfolded = tuple(
        t.expand(size, 0)
        if t.dim() == 1 and (len(t) != size * rows or at >= vectors)
        else t.unflatten(0, (size, rows))
        for at, t in enumerate(out)
    )
    if len(out) == 1:
        return unfolded[0], 0
    return unfolded, (0,) * len(out)


def _with_warning(op, info, in_dims, *args):
    out, dims = _unfolded(op, info, in_dims, *args)
    # Inside the map nothing can be read, so mvn_cdf itself stays silent there.
    _warn(_result(out, out[0].shape))
    return out, dims


def _elementwise(op, info, in_dims, *args):
    return op(*(_first(t, d, info.batch_size) for t, d in zip(args, in_dims, strict=True))), 0


register_vmap("mvn_cdf", _with_warning)
register_vmap("bvn_cdf", _elementwise)
for name, vectors in (("mvn_cdf_backward", 0), ("mvn_cdf_hvp", 2)):
    register_vmap(name, functools.partial(_unfolded, vectors=vectors))
for name in (
    "mvn_cdf_sums",
    "mendell_elston",
    "mendell_elston_backward",
    "pivoted_cholesky",
):
    register_vmap(name, _unfolded)
