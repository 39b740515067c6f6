"""What batch norms in eval mode multiply by."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BatchNorms:
    """Slopes of a module's batch norms, computed once: in every pass they would be three launches each."""

    def __init__(self, module: nn.Module | None) -> None:
        self._known: dict[tuple, tuple] = {}
        for part in module.modules() if module is not None else ():
            if not isinstance(part, nn.modules.batchnorm._BatchNorm) or part.running_var is None:
                continue
            held = (part.running_var, part.weight)
            if any(tensor is not None and tensor.is_inference() for tensor in held):
                continue  # without a version
            with torch.no_grad():
                slope = _norm_slope(*held, part.eps)
            # the tensors are held, so that their ids stay theirs
            self._known[self._key(*held, part.eps)] = (slope, held, _versions(held))

    @staticmethod
    def _key(running_var: Tensor, weight: Tensor | None, eps: float) -> tuple:
        return id(running_var), id(weight), eps

    def slope(self, running_var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """As it was computed, or anew where these are not a module's own or have been changed."""
        found = self._known.get(self._key(running_var, weight, eps))
        if found is not None:
            slope, held, versions = found
            if _versions(held) == versions:
                return slope
        return _norm_slope(running_var, weight, eps)


def _versions(tensors: tuple[Tensor | None, ...]) -> list[int]:
    return [0 if tensor is None else tensor._version for tensor in tensors]


def _norm_slope(running_var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    slope = (running_var + eps).rsqrt()
    return slope if weight is None else slope * weight
