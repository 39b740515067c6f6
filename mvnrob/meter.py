"""What an answer costs: passes of each input, and the call's seconds by phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Phases of a call, as :class:`Cost` tells them apart.
PHASES = ("forward", "jvp", "vjp", "covariance", "sketch", "cdf", "other")
#: Marks that are kept before they are read: events take memory.
_MARKS = 4096


@dataclass(frozen=True)
class Cost:
    """What an answer cost. Passes are per input, all sigmas together; seconds are for the call.

    - ``forward``: ``[B]`` int64, forward passes: those that VJPs start from included, on a GPU of
      several copies of an input where that fills a pass. Not the few by which a module's memory is measured
      and its last layer found: once for inputs of one form, for other callables in every call.
    - ``jvp``: ``[B]`` int64, Jacobian-vector products (forward mode).
    - ``vjp``: ``[B]`` int64, vector-Jacobian products (backward passes).
    - ``seconds``: dict of floats, wall time by phase, which sum to the call's; on CUDA those of the
      stream, where a phase lasts until the next one's work begins. ``"forward"``: the network's forward
      passes, with and without a graph; ``"jvp"``, ``"vjp"``: forward-mode products and backward passes;
      ``"covariance"``: norms and products of rows, of the last layer's features too (``jac_cov``);
      ``"sketch"``: random directions and what is concluded from products along them; ``"cdf"``:
      ``mvn_cdf``; ``"other"``: all the rest.
    """

    forward: Tensor
    jvp: Tensor
    vjp: Tensor
    seconds: dict[str, float]

    @property
    def seconds_network(self) -> float:
        """In the network: forward, forward mode and backward."""
        return sum(self.seconds[phase] for phase in ("forward", "jvp", "vjp"))

    @property
    def seconds_cdf(self) -> float:
        """In jac_cov and mvn_cdf."""
        return self.seconds["covariance"] + self.seconds["cdf"]


class Meter:
    """Adds up passes and seconds of one call.

    Every moment belongs to one phase, the innermost. The moments are wall clock's on the CPU; on CUDA
    they are events in the current stream, which are read at the end (or when there are many): the
    host does not wait at a change of phases.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self._device = device
        self._passes = {
            kind: torch.zeros(batch, dtype=torch.int64, device=device)
            for kind in ("forward", "jvp", "vjp")
        }
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._within = ["other"]
        #: (phase, its first moment), each until the next one's
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self._mark()

    def passes(self, kind: str, inputs: Tensor, count: int) -> None:
        """``count`` passes of each input whose number is in ``inputs`` (no repeats)."""
        self._passes[kind][inputs] += count

    @contextlib.contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """What is done inside belongs to the phase, except what an inner clock has."""
        self._within.append(phase)
        self._mark()
        try:
            yield
        finally:
            self._within.pop()
            self._mark()

    def cost(self) -> Cost:
        """All so far."""
        self._mark()
        self._read()
        return Cost(**self._passes, seconds=dict(self._seconds))

    def _mark(self) -> None:
        if self._device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)
            moment.record(torch.cuda.current_stream(self._device))
        else:
            moment = time.perf_counter()
        self._marks.append((self._within[-1], moment))
        if len(self._marks) > _MARKS:
            self._read()

    def _read(self) -> None:
        """Adds up what lies between the marks; the last one stays."""
        on_device = self._device.type == "cuda"
        if on_device:
            self._marks[-1][1].synchronize()
        for (phase, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            self._seconds[phase] += 1e-3 * start.elapsed_time(end) if on_device else end - start
        del self._marks[:-1]
