"""Runs an estimator over a batch in chunks that fit the byte budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ._checks import warn_caller
from .estimators.chunk import Chunk, Settings
from .head import read_head
from .network import Cost, Meter, Network
from .noise import Noise

#: Methods that linearise the network.
LINEAR = ("taylor", "mmse", "taylor_mvs", "mmse_mvs")
#: Forward passes gain nothing from larger batches than this many bytes or copies (cache).
_FORWARD_BYTES, _FORWARD_COPIES = 2**27, 64
#: The same for forward mode, in bytes of autograd's graph (EfficientNet-Lite0: four copies).
_TANGENT_BYTES = 2**28


class _Joinable(Protocol):
    @staticmethod
    def join(parts: list, dim: int): ...

    def with_nan_rows(self, bad: Tensor): ...


Answer = TypeVar("Answer", bound=_Joinable)


def run(
    network: Network,
    x: Tensor,
    noise: Noise,
    settings: Settings,
    method: str,
    estimate: Callable[[Chunk], Answer],
    choose: Callable[[Tensor], Tensor],
    first_index: int,
    head: nn.Module | str | None,
) -> tuple[Answer, Tensor, Cost]:
    """``estimate`` of all inputs, at least one, in chunks; their targets; the cost.

    ``choose`` takes the clean logits ``[B, C]`` to the targets ``[B]``. ``method`` decides on what a
    chunk needs in memory. Running out of it halves the chunk.
    """
    batch, device = len(x), x.device
    meter = Meter(batch, device)
    with meter.clock("network"):
        graph = network.graph_bytes(x[:1])
        passes = 1
        if method in LINEAR:
            network.head = read_head(network.op, head, network, x[:1])
            passes += 2 * (network.head is not None)
    meter.passes("forward", torch.zeros(1, dtype=torch.int64, device=device), passes)
    clean = _clean_logits(network, meter, x, graph, settings.max_bytes)
    chosen = choose(clean)
    step, copies = _chunk_sizes(method, network.classes, x, noise, settings, graph)
    parts, start = [], 0
    while start < batch:
        numbers = torch.arange(start, min(start + step, batch), device=device)
        chunk = Chunk(
            network=network,
            meter=meter,
            noise=noise,
            settings=settings,
            x=x[numbers],
            inputs=numbers,
            index=numbers + first_index,
            target=chosen[numbers],
            clean=clean[numbers],
            copies=copies,
            tangents=_tangents(copies, graph, device),
        )
        try:
            part = estimate(chunk)
        except torch.OutOfMemoryError:
            if step == 1 and copies == 1:
                raise
            step, copies = max(1, step // 2), max(1, copies // 2)
            warn_caller(f"{network.op}: out of memory; going on with {step} inputs at a time")
            continue
        parts.append(part.with_nan_rows(chunk.clean.isnan().any(1)))
        start += len(numbers)
    return parts[0].join(parts, 1), chosen, meter.cost()


def _chunk_sizes(
    method: str, classes: int, x: Tensor, noise: Noise, settings: Settings, graph: int
) -> tuple[int, int]:
    """Inputs per chunk, and noisy copies per forward pass, from the byte budget."""
    budget = settings.max_bytes
    # a copy: autograd's graph or the activations, and its noise (hash words and uniforms, float64)
    copy = graph + 32 * max(noise.dim, x[0].numel())
    if method in ("mc", "softmax", "logit_moments"):
        copies = max(1, min(budget // copy, max(_FORWARD_COPIES, _FORWARD_BYTES // copy)))
        if method == "logit_moments":
            moments = 8 * (settings.n_samples * classes + 4 * classes**2)
            return max(1, min(len(x), budget // moments)), copies
        return len(x), copies
    groups, versions = 1, 1
    if method.startswith("mmse"):
        groups = 8
        versions = 9
    sketched = method in ("taylor", "mmse") and settings.screen in ("sketch", "auto")
    rows = min(classes, 64) if sketched else classes
    gram = 16 * versions * rows**2 if method in ("taylor", "mmse") else 0
    # rows twice: as they come, and gathered for the Gram
    point = 2 * groups * rows * noise.dim * x.element_size() + gram + copy
    if sketched:
        point += 4 * 8 * 8 * noise.dim  # directions, float64
    step = 1 if settings.jacobian == "loop" else max(1, min(len(x), budget // point))
    return step, max(1, min(budget // (2 * copy), max(step, 1) * max(1, settings.n_samples)))


def _tangents(copies: int, graph: int, device: torch.device) -> int:
    """Tangents per forward-mode pass: on a CPU few, whose activations the allocator keeps."""
    return copies if device.type != "cpu" else max(1, min(copies, _TANGENT_BYTES // graph))


def _clean_logits(network: Network, meter: Meter, x: Tensor, graph: int, max_bytes: int) -> Tensor:
    step = max(1, min(max_bytes // graph, max(_FORWARD_COPIES, _FORWARD_BYTES // graph)))
    with torch.no_grad(), meter.clock("network"):
        logits = torch.cat([network(part).double() for part in x.split(step)])
    meter.passes("forward", torch.arange(len(x), device=x.device), 1)
    return logits
