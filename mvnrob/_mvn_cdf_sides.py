"""Derivatives where log p has a tolerance: rows of a small p ask for its digits, the others for an error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def by_sides(
    op: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Tensor | None, ...],
    prob: Tensor,
    abs_tol: float,
    rel_tol: float,
    log_tol: float,
    flags: tuple,
) -> tuple[Tensor, ...]:
    """``op(*tensors, abs_tol, rel_tol, *flags)`` of rows [B, ...], with the tolerances that ``log_tol`` means
    for them: a relative one below p = .5, and half of it, absolute, from there on."""
    near_one = prob >= 0.5
    sides = (
        (~near_one, (abs_tol, max(rel_tol, log_tol))),
        (near_one, (max(abs_tol, 0.5 * log_tol), rel_tol)),
    )
    rows, parts = [], []
    for side, tolerances in sides:
        at = side.nonzero()[:, 0]
        if len(at) == len(prob):
            return op(*tensors, *tolerances, *flags)
        some = (None if t is None else _some(t, at) for t in tensors)
        rows.append(at)
        parts.append(op(*some, *tolerances, *flags))
    back = torch.cat(rows).argsort()
    # what is not wanted is empty
    return tuple(
        one
        if one.dim() == 1 and one.numel() == other.numel() == 0
        else torch.cat([one, other])[back]
        for one, other in zip(*parts, strict=True)
    )


def _some(rows: Tensor, at: Tensor) -> Tensor:
    """Those of the rows; one that all share, as covariances may be, stays one."""
    is_shared = rows.dim() > 1 and rows.stride(0) == 0
    return rows[:1].expand(len(at), *rows.shape[1:]) if is_shared else rows[at]
