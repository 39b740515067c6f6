"""What every estimator is given, and what it gives back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .._mvn_cdf import Status
from .._standard_normal import standard_normal
from ..jacobian import LogitMap
from ..meter import Meter
from ..network import Network
from ..noise import CDF, SAMPLES, Noise, row_keys

#: Confidence of every interval and every ``error``.
LEVEL = 0.99


@dataclass(frozen=True)
class Settings:
    """Options of :func:`mvnrob.robustness` that estimators read, checked there."""

    n_samples: int
    sampling: str
    slope: float | str
    temperature: Tensor
    width: float | None
    screen: str
    abs_tol: float
    seed: int
    max_bytes: int
    jacobian: str
    jvp_mode: str
    check: str


@dataclass(frozen=True)
class Chunk:
    """Some inputs of a call: what does not fit in the byte budget comes in another chunk.

    ``inputs`` are their numbers in the call (for costs), ``index`` their numbers in the data set
    (for noise): int64 ``[b]``. ``clean``: logits ``[b, C]`` of ``x``, float64.
    """

    network: Network
    meter: Meter
    noise: Noise
    settings: Settings
    x: Tensor
    inputs: Tensor
    index: Tensor
    target: Tensor
    clean: Tensor
    copies: int
    tangents: int
    fill: int

    def subset(self, rows: Tensor) -> Chunk:
        """Some of its inputs."""
        parts = {name: getattr(self, name)[rows] for name in ("x", "inputs", "index")}
        parts |= {name: getattr(self, name)[rows] for name in ("target", "clean")}
        return replace(self, **parts)

    def linear_map(self) -> LogitMap:
        """The network itself, to be linearised at x."""
        return LogitMap(self.network, self.meter, self.x, self.inputs, **self._options())

    def smoothed_map(self, noise: Noise, units: list[tuple[int, int]]) -> LogitMap:
        """The network averaged over the noise of one sigma, in groups ``(first, count)``."""
        return LogitMap(
            self.network,
            self.meter,
            self.x,
            self.inputs,
            offsets=lambda first, count: self.perturbations(noise, first, count),
            groups=units,
            **self._options(),
        )

    def _options(self) -> dict:
        s = self.settings
        return {
            "max_copies": self.copies,
            "max_tangents": self.tangents,
            "method": s.jacobian,
            "jvp_mode": s.jvp_mode,
            "check": s.check,
            "fill": self.fill,
        }

    def draws(
        self, first: int, count: int, rows: Tensor | None = None, stream: int = SAMPLES
    ) -> Tensor:
        """Standard normal e of samples ``first ...``: ``[b, count, r]``, a row's own of the stream."""
        index = self.index if rows is None else self.index[rows]
        keys = row_keys(self.settings.seed, stream, index)
        return standard_normal(keys, first, count, self.noise.dim, self.x.dtype)

    def perturbations(self, noise: Noise, first: int, count: int) -> Tensor:
        """``sigma A e`` of samples ``first ...``: ``[b, count, *shape]``.

        Antithetic samples 2i and 2i + 1 are e_i and -e_i.
        """
        if self.settings.sampling == "antithetic":
            pairs = torch.arange(first, first + count, device=self.x.device)
            e = self.draws(first // 2, (first + count + 1) // 2 - first // 2)
            e = e[:, pairs // 2 - first // 2] * (1 - 2 * (pairs % 2)).to(e)[:, None]
        else:
            e = self.draws(first, count)
        shaped = noise.push(e.flatten(0, 1)).unflatten(0, (len(e), count))
        return shaped * noise.sigmas[0]

    def cdf_seeds(self) -> Tensor:
        """A seed per row for the lattice's shifts, int64 ``[b]``, not negative."""
        return row_keys(self.settings.seed, CDF, self.index) & (2**62 - 1)


@dataclass
class Estimate:
    """Results of a chunk, each ``[n_sigma, b]``; int64 for the last three, float64 otherwise."""

    prob: Tensor
    complement: Tensor
    error: Tensor
    lower: Tensor
    upper: Tensor
    status: Tensor
    runner_up: Tensor
    n_screened: Tensor

    @staticmethod
    def empty(sigmas: int, device: torch.device) -> Estimate:
        """Of no inputs."""
        nothing = torch.zeros(sigmas, 0, dtype=torch.float64, device=device)
        return Estimate(*[nothing] * 5, *[nothing.long()] * 3)

    @staticmethod
    def join(parts: list[Estimate], dim: int) -> Estimate:
        return Estimate(
            *(torch.cat([getattr(p, f.name) for p in parts], dim) for f in fields(Estimate))
        )

    def at(self, inputs: Tensor) -> Estimate:
        """The inputs in another order."""
        return Estimate(*(getattr(self, f.name)[:, inputs] for f in fields(Estimate)))

    def with_nan_rows(self, bad: Tensor) -> Estimate:
        """Rows whose clean logits are NaN: no statement, and the status says why."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value.is_floating_point():
                setattr(self, field.name, value.masked_fill(bad, torch.nan))
        self.status = self.status.masked_fill(bad, int(Status.NAN_INPUT))
        return self


@contextlib.contextmanager
def statuses_not_warnings() -> Iterator[None]:
    """mvn_cdf without its warning: ``robustness`` reads the statuses and warns once, in its terms."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "mvn_cdf: .*max_points", RuntimeWarning)
        yield


def clamped(prob: Tensor, below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """Limits ``prob - below`` and ``prob + above`` inside [0, 1]; NaN widths say nothing."""
    lower = (prob - below).clamp(0, 1).masked_fill(below.isnan() & ~prob.isnan(), 0.0)
    upper = (prob + above).clamp(0, 1).masked_fill(above.isnan() & ~prob.isnan(), 1.0)
    return lower, upper


def split_units(n_samples: int, unit: int, most: int) -> list[tuple[int, int]]:
    """``(first, count)`` of at most ``most`` groups of whole units, as even as can be."""
    units = n_samples // unit
    groups = min(units, most)
    edges = [units * g // groups * unit for g in range(groups + 1)]
    return [(edges[g], edges[g + 1] - edges[g]) for g in range(groups)]
