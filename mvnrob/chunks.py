"""Runs an estimator over a batch in chunks that fit the byte budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ._checks import warn_caller
from ._ops import memory_errors
from .estimators.chunk import Chunk, Settings
from .estimators.linear import pair_bytes
from .estimators.logit_moments import moment_bytes
from .head import checked_logits, read_head
from .jacobian import plain_attention
from .linearised import LEAST_BYTES
from .measured import graph_bytes, measured_anew, pass_bytes
from .meter import Cost, Meter
from .network import Network, TooLarge, memory_of_one, uncompiled
from .noise import Noise
from .passes import full_pass
from .screening import FEW_CLASSES

#: Methods that linearise the network.
LINEAR = ("taylor", "mmse", "taylor_mvs", "mmse_mvs")
#: The same and ``argmax_probabilities``.
LINEARISED = (*LINEAR, "argmax")
#: Those of them that take an integral, for which rivals are screened.
_SCREENED = ("taylor", "mmse", "argmax")
#: Forward passes gain nothing from larger batches than this many bytes or copies (cache).
_FORWARD_BYTES, _FORWARD_COPIES = 2**27, 64
#: The same for forward mode, of a byte budget (EfficientNet-Lite0: 26 tangents; with one thread torch
#: has convolutions of 1 x 1 for passes of 16 inputs and more that take two thirds of the time).
_TANGENT_BYTES = 2**31
#: Passes whose memory a tangent takes (measured, ResNet-50's depth: 1.8, by a copy of the input 2.7).
_TANGENT_PASSES = 3
#: Arrays of one number a class that an input holds where rivals are ranked and sketched.
_RANKED = 48
#: Products along directions that an input keeps for each class of a group.
_SKETCHED = 64


class _Joinable(Protocol):
    @staticmethod
    def join(parts: list, dim: int): ...

    def with_nan_rows(self, bad: Tensor): ...


Answer = TypeVar("Answer", bound=_Joinable)


@measured_anew
def run(
    network: Network,
    x: Tensor,
    noise: Noise,
    settings: Settings,
    method: str,
    estimate: Callable[[Chunk], Answer],
    labels: Callable[[int], Tensor | None],
    first_index: int,
    head: nn.Module | str | None,
) -> tuple[Answer, Tensor, Cost]:
    """``estimate`` of all inputs, at least one, in chunks; their targets; the cost.

    ``labels`` takes the number of classes to the targets ``[B]``, or to None for the predictions.
    ``method`` decides on what a chunk needs in memory. Running out of it halves the chunk.
    """
    batch, device = len(x), x.device
    meter = Meter(batch, device)
    with meter.clock("forward"), memory_of_one(network.op):
        # methods that take no gradient serve models that have none
        linearised = method in LINEARISED
        graph = graph_bytes(network, x) if linearised else pass_bytes(network, x)
        if linearised:
            network.graph = graph
            network.head = read_head(network.op, head, network, x[:1])
    fill = full_pass(device, graph) if settings.jacobian == "batch" else 1
    step, copies, most = _chunk_sizes(
        network.op, method, network.classes, x, noise, settings, graph, fill
    )
    if linearised and settings.jvp_mode == "forward":
        on_cpu = device.type == "cpu"
        budget = min(settings.max_bytes, _TANGENT_BYTES) if on_cpu else settings.max_bytes
        with meter.clock("forward"), memory_of_one(network.op):
            fits = _most_tangents(network, x, budget)
        most = max(1, fits) if on_cpu else max(most, fits)
    has_features = method in _SCREENED and network.classes > FEW_CLASSES
    given, parts, targets, start = None, [], [], 0
    while start < batch:
        numbers = torch.arange(start, min(start + step, batch), device=device)
        network.largest_pass = 0
        try:
            one = step == copies == 1 >= most
            with memory_of_one(network.op) if one else memory_errors():
                clean = _clean_logits(network, meter, x, numbers, copies, has_features)
                if not parts:
                    given = labels(network.classes)
                chunk = Chunk(
                    network=network,
                    meter=meter,
                    noise=noise,
                    settings=settings,
                    x=x[numbers],
                    inputs=numbers,
                    index=numbers + first_index,
                    target=clean.argmax(1) if given is None else given[numbers],
                    clean=clean,
                    copies=copies,
                    tangents=most,
                    fill=fill,
                )
                part = estimate(chunk)
        except torch.OutOfMemoryError:
            if one:
                raise
            # halves of what was tried, which may be less than what was allowed
            tried = min(copies, network.largest_pass)
            step, copies = max(1, len(numbers) // 2), max(1, tried // 2)
            most = min(most, copies)
            warn_caller(f"{network.op}: out of memory; going on with {step} inputs at a time")
            continue
        if not parts and method != "mc":  # which reads the greatest alone
            _warn_of_probabilities(network.op, clean)
        parts.append(part.with_nan_rows(clean.isnan().any(1)))
        targets.append(chunk.target)
        start += len(numbers)
    return parts[0].join(parts, 1), torch.cat(targets), meter.cost()


def _chunk_sizes(
    op: str,
    method: str,
    classes: int,
    x: Tensor,
    noise: Noise,
    settings: Settings,
    graph: int,
    fill: int = 1,
) -> tuple[int, int, int]:
    """Inputs per chunk, copies (noisy ones, or up to ``fill`` in all) per pass, and tangents per
    forward-mode pass (whose activations are not kept as a graph's are), from the byte budget."""
    budget, sigmas = settings.max_bytes, len(noise.sigmas)
    # a copy: autograd's graph or the activations, its noise (hash words and uniforms, float64), and
    # its logits as they are compared
    copy = graph + 32 * max(noise.dim, x[0].numel()) + 48 * classes
    # an input beside its passes: its own copy, and float64 or int64 for every class
    arrays = {"mc": 3 + sigmas, "softmax": 4 + 4 * sigmas}
    held = x[0].nbytes + 8 * classes * arrays.get(method, _RANKED)
    if method in ("mc", "softmax", "logit_moments"):
        copies = max(1, min(budget // (2 * copy), max(_FORWARD_COPIES, _FORWARD_BYTES // copy)))
        if method == "logit_moments":
            moments = moment_bytes(settings.n_samples, classes)
            if moments > max(budget, LEAST_BYTES):
                raise TooLarge(
                    f"{op}: max_bytes must hold the margins of {settings.n_samples} copies, {moments} "
                    f"bytes for one input, got {budget}"
                )
            held += moments
        return max(1, min(len(x), (budget - copies * copy) // held)), copies, copies
    groups, versions = 1, 1
    if method.startswith("mmse"):
        groups = 8
        versions = 9
    sketched = method in _SCREENED and settings.screen in ("sketch", "auto")
    rows = min(classes, 64) if sketched else classes
    gram = pair_bytes(versions, method) * rows**2 if method in _SCREENED else 0
    # rows twice: as they come, and gathered for the Gram
    point = 2 * groups * rows * noise.dim * x.element_size() + gram + copy + held
    if sketched:
        # directions and what they give all classes, float64
        point += 8 * 4 * 8 * noise.dim + 8 * _SKETCHED * groups * classes
    step = 1 if settings.jacobian == "loop" else max(1, min(len(x), budget // point))
    most = max(1, budget // (2 * copy))
    # what an input's own pass takes is in a chunk's bytes already
    beside = max(0, budget - step * (point - copy)) // copy
    copies = max(step * max(1, settings.n_samples), min(fill, beside))
    return step, min(most, copies), most


def _most_tangents(network: Network, x: Tensor, budget: int) -> int:
    """Tangents in a forward-mode pass, which keeps no graph, by half the byte budget."""
    with plain_attention(), uncompiled():
        each = _TANGENT_PASSES * pass_bytes(network, x, "tangent") + 16 * network.classes
    return budget // (2 * each)


def _warn_of_probabilities(op: str, logits: Tensor) -> None:
    known = logits[~logits.isnan().any(1)]
    if len(known) and bool((known >= 0).all() and ((known.sum(1) - 1).abs() < 1e-3).all()):
        warn_caller(
            f"{op}: the model's outputs look like probabilities (none below 0, sums of 1), which are far "
            "less linear than logits: leave out its last softmax"
        )


def _clean_logits(
    network: Network, meter: Meter, x: Tensor, numbers: Tensor, copies: int, has_features: bool
) -> Tensor:
    """Logits ``[b, C]``, float64. Where rivals may be screened by the last layer's features, W h(x) + b is
    compared with the logits of every input."""
    parts, out = numbers.split(max(1, min(copies, _FORWARD_COPIES))), []
    with torch.no_grad(), meter.clock("forward"):
        for part in parts:
            if has_features and network.head is not None:
                out.append(checked_logits(network, x[part]).double())
            else:
                out.append(network(x[part]).double())
    meter.passes("forward", numbers, 1)
    return torch.cat(out)
