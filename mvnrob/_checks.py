"""Requirements that several ops share, in the words of the house: ``<op>: <argument> must ...``; and
warnings where the user called."""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor

#: The packages whose frames a warning skips (mvnrob.demo is a caller like any other), and torch, which
#: stands between under vmap.
_INSIDE = (__package__, f"{__package__}.estimators")


def warn_caller(text: str) -> None:
    """A RuntimeWarning at the line outside this package that called into it."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None:
        package = frame.f_globals.get("__package__") or ""
        if package not in _INSIDE and package.partition(".")[0] != "torch":
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(text, RuntimeWarning, stacklevel=level)


def check_tensor(op: str, name: str, t, *, gradients: bool = False) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(t).__name__}")
    if t.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be dense (torch.strided), got {t.layout}")
    if not gradients and t.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{op}: {name} must not require grad, got requires_grad=True "
            "(gradients are not built yet; pass x.detach() or use torch.no_grad())"
        )


def check_device(op: str, name: str, t: Tensor, device: torch.device, of: str) -> None:
    if t.device != device:
        raise ValueError(f"{op}: {name} must be on the device of {of}, got {t.device}")


def check_alike(op: str, named: dict[str, Tensor], *, gradients: bool = False) -> None:
    """Float32 or float64 tensors with the dtype and device of the first; with `gradients`, ones that
    require grad are taken too."""
    first, model = next(iter(named.items()))
    for name, t in named.items():
        check_tensor(op, name, t, gradients=gradients)
        if t.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{op}: {name} must be float32 or float64, got {t.dtype}")
        if t.dtype != model.dtype:
            raise TypeError(f"{op}: {name} must have the dtype of {first}, got {t.dtype}")
        check_device(op, name, t, model.device, first)
