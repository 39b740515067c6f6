"""Gaussian input noise: its covariance, and standard normal draws from a counter, not a state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ._standard_normal import GOLDEN, splitmix64, standard_normal

#: Streams that must not share draws; they enter the hash. COUNTED: of Monte Carlo, which is independent of
#: the estimators that it is set beside.
SAMPLES, DIRECTIONS, PROBES, CDF, INFLUENCES, COUNTED = range(6)


def row_keys(seed: int, stream: int, index: Tensor) -> Tensor:
    """Keys int64 ``[b]`` of the rows numbered ``index`` (int64 ``[b]``) in one stream of a seed."""
    low = (int(seed) % 2**64 + 2**63) % 2**64 - 2**63
    start = torch.full_like(index, low)
    root = splitmix64(splitmix64(start + GOLDEN) + stream)
    return splitmix64(root + (index + 1) * GOLDEN)


class Noise:
    """Noise ``sigma A e`` with ``e ~ N(0, I_r)``; A is the identity, a diagonal, a matrix or a map.

    Attributes:
        sigmas: the values of sigma, each >= 0.
        many: whether the result has a leading sigma dimension.
        dim: r, the length of e.
    """

    def __init__(self, op: str, sigma, factor, x: Tensor) -> None:
        self._shape = tuple(x.shape[1:])
        features = math.prod(self._shape)
        self.dim = features
        self._scale: Tensor | None = None
        self._matrix: Tensor | None = None
        self._map: Callable[[Tensor], Tensor] | None = None
        self.many = False
        self.sigmas = self._read_sigma(op, sigma, x)
        if factor is None:
            return
        if self._scale is not None:
            raise ValueError(
                f"{op}: sigma must be a number or a list of numbers beside noise_factor, "
                f"got a tensor of shape {list(sigma.shape)}"
            )
        if isinstance(factor, Tensor):
            if factor.dim() != 2 or factor.shape[0] != features or factor.shape[1] < 1:
                raise ValueError(
                    f"{op}: noise_factor must have shape [{features}, r], got {list(factor.shape)}"
                )
            if not factor.is_floating_point():
                raise TypeError(f"{op}: noise_factor must be floating point, got {factor.dtype}")
            if not factor.isfinite().all():
                bad = factor[~factor.isfinite()][0].item()
                raise ValueError(f"{op}: noise_factor must be finite, got {bad}")
            self._matrix = factor.detach().to(x)
            self.dim = factor.shape[1]
        elif callable(factor):
            self._map = factor
            self._check_map(op, x)
        else:
            raise TypeError(
                f"{op}: noise_factor must be a tensor or a callable, got {type(factor).__name__}"
            )

    def each(self) -> list[Noise]:
        """The same noise at one sigma at a time."""
        parts = []
        for sigma in self.sigmas:
            part = copy.copy(self)
            part.sigmas = [sigma]
            parts.append(part)
        return parts

    def _read_sigma(self, op: str, sigma, x: Tensor) -> list[float]:
        if isinstance(sigma, Tensor) and sigma.dim() > 0:
            if tuple(sigma.shape) != self._shape:
                raise ValueError(
                    f"{op}: sigma must be a number, a list of numbers (a curve) or a tensor of one "
                    f"input's shape {list(self._shape)}, got a tensor of shape {list(sigma.shape)}"
                )
            scale = sigma.detach().to(x)
            bad = ~(scale.isfinite() & (scale >= 0))
            if bad.any():
                raise ValueError(
                    f"{op}: sigma must be finite and not negative, got {scale[bad][0].item():g} "
                    f"among its {scale.numel()} numbers"
                )
            self._scale = scale.flatten()
            return [1.0]
        if isinstance(sigma, np.ndarray) and sigma.ndim > 0:
            if sigma.ndim > 1:
                raise ValueError(
                    f"{op}: sigma must be a 1-D array (a list of numbers, a curve) or a tensor of "
                    f"one input's shape {list(self._shape)}, got an array of shape "
                    f"{list(sigma.shape)}"
                )
            sigma = list(sigma)
        if not (_is_number(sigma) or isinstance(sigma, (list, tuple, range))):
            raise TypeError(
                f"{op}: sigma must be a number, a list of numbers or a tensor, "
                f"got {type(sigma).__name__}"
            )
        self.many = isinstance(sigma, (list, tuple, range))
        values = list(sigma) if self.many else [sigma]
        if not values:
            raise ValueError(f"{op}: sigma must hold at least one number, got an empty list")
        return [_number(op, value) for value in values]

    def _check_map(self, op: str, x: Tensor) -> None:
        """The callable must keep the shape and be linear; both are tried on two random vectors."""
        keys = row_keys(0, PROBES, torch.zeros(1, dtype=torch.int64, device=x.device))
        a, b = standard_normal(keys, 0, 2, self.dim, x.dtype)[0].reshape(2, 1, *self._shape)
        with torch.no_grad():
            parts = [self._map(v) for v in (a, b, a - 2 * b)]
        for part in parts:
            if not isinstance(part, Tensor) or part.shape != a.shape:
                got = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise ValueError(
                    f"{op}: noise_factor must map [m, *{list(self._shape)}] to the same shape, "
                    f"got {got}"
                )
        gap = (parts[2] - parts[0] + 2 * parts[1]).abs().max()
        size = torch.stack([part.abs().max() for part in parts]).max()
        # sums of up to D rounded products
        if not gap <= 1e3 * torch.finfo(x.dtype).eps * size:
            raise ValueError(
                f"{op}: noise_factor must be linear, got A(a - 2b) - Aa + 2Ab of size "
                f"{gap.item():.2g} beside values of size {size.item():.2g}"
            )

    @property
    def plain(self) -> bool:
        """A is the identity: ``pull`` returns what it is given."""
        return self._scale is None and self._matrix is None and self._map is None

    def push(self, e: Tensor) -> Tensor:
        """``A e`` for e ``[m, r]``: perturbations ``[m, *shape]`` at sigma = 1."""
        if self._scale is not None:
            e = e * self._scale
        elif self._matrix is not None:
            e = e @ self._matrix.T
        shaped = e.reshape(e.shape[0], *self._shape)
        return shaped if self._map is None else self._map(shaped).to(e.dtype)

    def pull(self, rows: Tensor) -> Tensor:
        """``rows A``: Jacobian rows ``[..., D]`` become derivatives by e, ``[..., r]``."""
        if self._scale is not None:
            return rows * self._scale.to(rows.dtype)
        if self._matrix is not None:
            return rows @ self._matrix.to(rows.dtype)
        if self._map is None:
            return rows
        flat = rows.reshape(-1, *self._shape)
        with torch.enable_grad():
            # A is linear, so its transpose is its VJP at any point
            point = torch.zeros_like(flat).requires_grad_()
            (pulled,) = torch.autograd.grad(self._map(point), point, grad_outputs=flat)
        return pulled.reshape(rows.shape)


def _is_number(value) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return True
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_complex() and value.dtype != torch.bool
    return (
        isinstance(value, (np.generic, np.ndarray))
        and value.ndim == 0
        and (value.dtype.kind in "iuf")
    )


def _number(op: str, value) -> float:
    if not _is_number(value):
        raise TypeError(f"{op}: sigma must hold numbers, got {type(value).__name__}")
    value = float(value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{op}: sigma must be finite and not negative, got {value}")
    return value
