"""Batch norms put into the convolutions before them: fewer operations in every pass."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .models import LoadedModel, fingerprint

#: Largest difference of logits, beside how far they lie apart, that is taken for rounding: half
#: precision's. Folding that does not fit the model changes them altogether.
_ROUNDING = 0.05


def fold_batch_norms(loaded: LoadedModel, x: Tensor) -> LoadedModel:
    """A copy of the model in which each batch norm that follows a convolution or a linear layer alone is
    part of that layer (``torch.fx.experimental.optimization.fuse``).

    The same function up to rounding, which is checked at the example ``x`` [1, ...]; its name and
    fingerprint say that it is another model.

    Raises:
        ValueError: torch.fx cannot trace the model, or finds nothing to fold; the logits change.
    """
    from torch.fx.experimental.optimization import fuse

    model = loaded.model
    if not isinstance(model, nn.Module):
        raise _refused(loaded, "a model that is no nn.Module")
    try:
        folded = fuse(model).eval()
    except Exception as error:  # whatever a model's forward does with a stand-in for its input
        line = next(iter(str(error).splitlines()), "")
        raise _refused(
            loaded, f"a model that torch.fx cannot trace ({type(error).__name__}: {line})"
        ) from error
    if _count(folded) == _count(model):
        raise _refused(loaded, "a model without batch norms right behind convolutions")
    with torch.no_grad():
        before, after = (network(x).double() for network in (model, folded))
    gap, size = (before - after).abs().max(), before.max() - before.min()
    if not gap <= _ROUNDING * size:
        raise _refused(loaded, f"a model whose logits it changes by {gap:.2g} of {size:.2g}")
    name = f"{loaded.name}, batch norms folded"
    return replace(loaded, model=folded, name=name, fingerprint=fingerprint(folded))


def _count(model: nn.Module) -> int:
    return sum(isinstance(part, _BatchNorm) for part in model.modules())


def _refused(loaded: LoadedModel, why: str) -> ValueError:
    return ValueError(
        f"evaluate: fold_batch_norm must be left out for {why}, got it for {loaded.name}"
    )
