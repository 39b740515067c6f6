"""Where draws leave a polyhedron along a line: ``nearest_ends``, its kernel on a CPU, its fake kernel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from . import _ops

#: Each draw's columns are taken with both signs.
SIGNS = (1.0, -1.0)


def nearest_ends(
    limit: Tensor,
    table: Tensor,
    draws: Tensor,
    *,
    rising: int,
    exact: int,
    split: int | None = None,
    wants_rows: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The nearest of ``limit - table . (a, +-c)`` from above and from below, of each draw (a, c) and input.

    Args:
        limit: ``[b, S]`` float32; infinite ones allowed.
        table: ``[b, S, K]`` float32.
        draws: ``[N, K or more]`` float32, the same for all inputs.
        rising: the least is taken over so many rows, the greatest over those behind them.
        exact: columns of a; those of c, behind them, are taken with both signs.
        split: the first ``split`` columns of c and the others have signs of their own; none: they have one.
        wants_rows: the numbers of the nearest rows as well.

    Returns ``(upper, lower, above, below)``: least and greatest, float32 ``[signs, N, b]``, by the signs +, -,
    or ++, +-, -+, --, infinite where there are no rows; and these rows' numbers, int64 of that shape, or
    nothing (``[0, N, b]``).

    Cost: N b S K multiplications (on a GPU twice as many with ``split``), on a GPU without memory for
    N b S numbers.

    Raises:
        RuntimeError: arguments of other shapes, dtypes or devices; torch.OutOfMemoryError is one.
    """
    split = -1 if split is None else split
    return _ops.call("nearest_ends", limit, table, draws, rising, exact, split, wants_rows)


def _check(limit, table, draws, rising, exact, split) -> None:
    """In the words of csrc/checks.h, which does it on a GPU."""
    if limit.dim() != 2:
        raise RuntimeError(f"nearest_ends: limit must have shape [b, S], got {list(limit.shape)}")
    if table.dim() != 3 or table.shape[:2] != limit.shape:
        wanted = ", ".join(map(str, limit.shape))
        raise RuntimeError(
            f"nearest_ends: table must have shape [{wanted}, K], got {list(table.shape)}"
        )
    _, rows, columns = table.shape
    if draws.dim() != 2 or draws.shape[1] < columns:
        raise RuntimeError(
            f"nearest_ends: draws must have shape [N, {columns} or more], got {list(draws.shape)}"
        )
    if not all(t.dtype == torch.float32 for t in (limit, table, draws)):
        raise RuntimeError("nearest_ends: arguments must be float32")
    for name, value, least, most in (
        ("rising", rising, 0, rows), ("exact", exact, 0, columns), ("split", split, -1, columns - exact),
    ):  # fmt: skip
        if not least <= value <= most:
            raise RuntimeError(f"nearest_ends: {name} must be {least} to {most}, got {value}")


def _by_signs(ends: Tensor, parts: list[Tensor]) -> Iterator[Tensor]:
    """Ends less the parts with all signs, one after the other: a CPU's cache holds few of them."""
    if not parts:
        yield ends
        return
    for sign in SIGNS:
        yield from _by_signs(ends.sub(parts[0], alpha=sign), parts[1:])


def _nearest(
    ends: Tensor, rising: int, wants_rows: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Of ends ``[N, b, S]``."""
    found, places = [], []
    for part, first, way in ((ends[..., :rising], 0, 1.0), (ends[..., rising:], rising, -1.0)):
        at = None
        if not part.shape[2]:
            end = ends.new_full(ends.shape[:2], way * torch.inf)
            at = torch.zeros_like(end, dtype=torch.int64) if wants_rows else None
        elif wants_rows:  # which takes several times as long
            end, at = part.min(2) if way > 0 else part.max(2)
            at += first
        else:
            end = part.amin(2) if way > 0 else part.amax(2)
        found.append(end)
        places.append(at)
    return *found, *places


def _nearest_ends_op(limit, table, draws, rising, exact, split, wants_rows):
    _check(limit, table, draws, rising, exact, split)
    inputs, rows, columns = table.shape
    flat, count = table.flatten(0, 1).mT, len(draws)
    free = torch.addmm(limit.flatten(), draws[:, :exact], flat[:exact], alpha=-1.0)
    edges = [exact, columns] if split < 0 else [exact, exact + split, columns]
    parts = [
        (draws[:, first:end] @ flat[first:end]).view(count, inputs, rows)
        for first, end in itertools.pairwise(edges)
    ]
    ends = _by_signs(free.view(count, inputs, rows), parts)
    found = [_nearest(each, rising, wants_rows) for each in ends]
    upper, lower = (torch.stack([each[side] for each in found]) for side in range(2))
    if not wants_rows:
        return upper, lower, *(limit.new_empty((0, count, inputs), dtype=torch.int64) for _ in "ab")
    return upper, lower, *(torch.stack([each[side] for each in found]) for side in (2, 3))


torch.library.impl("mvnrob::nearest_ends", "cpu", _nearest_ends_op)


@torch.library.register_fake("mvnrob::nearest_ends")
def _(limit, table, draws, rising, exact, split, wants_rows):
    shape = 2 if split < 0 else 4, draws.shape[0], limit.shape[0]
    rows = shape if wants_rows else (0, *shape[1:])
    return *(limit.new_empty(shape) for _ in "ab"), *(
        limit.new_empty(rows, dtype=torch.int64) for _ in "ab"
    )
