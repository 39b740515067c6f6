"""What ``evaluate`` and ``selfcheck`` ask of their arguments."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..robustness import _READERS, METHODS, robustness
from .models import LoadedModel
from .sources import Source

_MOST_THREADS = 1024
#: Arguments of robustness that evaluate sets itself.
_OWN_OPTIONS = {
    "model", "x", "sigma", "target", "method", "preprocessing", "seed", "first_index", "max_bytes",
}  # fmt: skip
TARGETS = ("prediction", "label")


def check_counts(*, limit, chunk, threads, max_bytes, seed) -> None:
    """Whole numbers, where they are given."""
    for name, value, least in (
        ("limit", limit, 1), ("chunk", chunk, 1), ("threads", threads, 1),
        ("max_bytes", max_bytes, 1), ("seed", seed, None),
    ):  # fmt: skip
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"evaluate: {name} must be an int, got {type(value).__name__}")
        if least is not None and value < least:
            raise ValueError(f"evaluate: {name} must be at least {least}, got {value}")
        if name == "threads" and value > _MOST_THREADS:  # OpenMP ends the process
            raise ValueError(f"evaluate: threads must be at most {_MOST_THREADS}, got {value}")


def check_target(target: str, source: Source) -> None:
    if target not in TARGETS:
        raise ValueError(f"evaluate: target must be one of {', '.join(TARGETS)}, got {target!r}")
    if target == "label" and not source.has_labels:
        raise ValueError(
            f"evaluate: target must be prediction for data without labels, got {target!r} for "
            f"{source.name}"
        )


def options_of(
    methods: Sequence[str], options: Mapping[str, Mapping[str, Any]], shared: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Each method's options: its own, and of the ``shared`` ones those that it reads."""
    unknown = set(options) - set(methods)
    if unknown:
        raise ValueError(
            f"evaluate: options must be for methods {', '.join(methods)}, got {unknown.pop()!r}"
        )
    for method, own in options.items():
        strange = set(own) - set(inspect.signature(robustness).parameters)
        if strange:
            raise ValueError(
                f"evaluate: options must be arguments of robustness, got {min(strange)!r} for "
                f"{method}"
            )
        taken = set(own) & _OWN_OPTIONS
        if taken:
            raise ValueError(
                f"evaluate: options must leave out what evaluate sets itself, got {min(taken)!r} "
                f"for {method}"
            )
    of_method = {m: dict(options.get(m, {})) for m in methods}
    for name, value in shared.items():
        readers = [m for m in methods if m in _READERS[name]]
        if value is not None and not readers:
            raise ValueError(
                f"evaluate: {name} must be left out for {', '.join(methods)}, got {value!r}"
            )
        for m in readers if value is not None else ():
            of_method[m].setdefault(name, value)
    return of_method


def override(loaded: LoadedModel, input_size, crop, bounds, preprocessing) -> None:
    """Sets what is given in place of what the model says."""
    for name, value in (("input_size", input_size), ("crop", crop)):
        if value is None:
            continue
        if loaded.transform is not None:
            raise ValueError(
                f"evaluate: {name} must be left out for {loaded.name}, whose pictures have their "
                f"own, got {value}"
            )
        if name == "crop" and not 0 < value <= 1:
            raise ValueError(f"evaluate: crop must be above 0 and at most 1, got {value}")
        setattr(loaded, name, value)
    if bounds is not None:
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise ValueError(f"evaluate: bounds must be (low, high), got {bounds!r}")
        loaded.bounds = (float(bounds[0]), float(bounds[1]))
    if preprocessing is not None:
        loaded.preprocessing = preprocessing


def device_of(device: str | torch.device | None, local_rank: int = 0) -> torch.device:
    """The device named, or CUDA where there is one; a bare "cuda" is the rank's own."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        raise ValueError(
            f"evaluate: device must be one of torch's, got {device!r}: {text}"
        ) from None
    if chosen.type not in ("cpu", "cuda") or (
        chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(
            f"evaluate: device must be cpu or one of {torch.cuda.device_count()} CUDA devices, got "
            f"{chosen}"
        )
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
    return chosen


def sigmas_of(op: str, sigma) -> tuple[float, ...]:
    """One or several noise levels as floats, without repeats."""
    if isinstance(sigma, Tensor) and sigma.dim() > 0:  # one for each feature, elsewhere
        raise TypeError(
            f"{op}: sigma must be a number or a list of numbers, got a tensor of shape "
            f"{list(sigma.shape)}"
        )
    try:
        values = [float(v) for v in (sigma if hasattr(sigma, "__iter__") else (sigma,))]
    except (TypeError, ValueError, RuntimeError):
        values = []
    if not values or isinstance(sigma, (str, bool)) or any(not 0 <= v < math.inf for v in values):
        raise ValueError(f"{op}: sigma must be one or more numbers >= 0, got {sigma!r}")
    if len(set(values)) != len(values):
        raise ValueError(f"{op}: sigma must not repeat a value, got {sigma!r}")
    return tuple(values)


def methods_of(method) -> tuple[str, ...]:
    values = (method,) if isinstance(method, str) else tuple(method)
    for value in values:
        if value not in METHODS:
            raise ValueError(
                f"evaluate: method must be one or more of {', '.join(METHODS)}, got {value!r}"
            )
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated or not values:
        raise ValueError(f"evaluate: method must name each method once, got {method!r}")
    return values


def shard_of(shard: str | None) -> tuple[int, int]:
    if shard is None:
        return 0, 1
    number, slash, count = shard.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"evaluate: shard must be i/k with 0 <= i < k, got {shard!r}")
    return int(number), int(count)
