"""Checks of options that several public functions take."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch

#: Two inputs' worth of a 1,000-class network on 3x224x224 images (600 MB of rows each).
DEFAULT_MAX_BYTES = 2**31


def read_max_bytes(op: str, given, device: torch.device) -> int:
    """``max_bytes``; None: 2 GiB, on a GPU a quarter of its memory, which fewer inputs leave idle."""
    if given is not None:
        check_int(op, "max_bytes", given, 1)
        return given
    if device.type != "cuda":
        return DEFAULT_MAX_BYTES
    return torch.cuda.get_device_properties(device).total_memory // 4


def check_int(op: str, name: str, value, least: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    if least is not None and value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")


def check_number(op: str, name: str, value, wanted: str, *, positive: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = repr(value) if isinstance(value, str) else type(value).__name__
        raise TypeError(f"{op}: {name} must be {wanted}, got {kind}")
    if not math.isfinite(value) or (positive and value <= 0):
        raise ValueError(f"{op}: {name} must be {wanted}, got {value}")


def check_options(
    op: str, options: Mapping | None, *, known: Collection[str], own: Collection[str]
) -> None:
    """Keyword arguments that are passed on: ``known`` ones, except those that ``op`` sets itself."""
    for name in options or ():
        if name not in known:
            served = ", ".join(k for k in known if k not in own)
            raise TypeError(f"{op}: options must be one of {served}, got {name!r}")
        if name in own:
            raise TypeError(f"{op}: options must leave out what is set otherwise, got {name!r}")
