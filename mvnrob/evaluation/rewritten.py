"""A model in another form that is faster: the same function up to rounding, or a refusal in words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..network import Network, first_line, full_float32
from .models import LoadedModel

#: Noisy copies of the example, of each noise level, at which logits are compared beside itself.
_COPIES = 2


class Unfit(Exception):
    """What a model must not be to be rewritten."""


def rewritten(
    loaded: LoadedModel,
    x: Tensor,
    sigmas: tuple[float, ...],
    rewrite: Callable[[nn.Module, Tensor], nn.Module],
    *,
    option: str,
    name: str,
) -> LoadedModel:
    """The model as ``rewrite`` makes it of the module and the example ``x`` [1, ...].

    ``rewrite`` leaves the module itself as it is. Logits are compared at the example and at noisy
    copies of it; ``name``, added to the model's name and fingerprint, says that it is another model.

    Raises:
        ValueError: the model is no module, or ``rewrite`` finds it :class:`Unfit`; the logits change, or
            there are none any more. The message names ``option``, evaluate's argument.
    """
    try:
        model = _checked(loaded, x, sigmas, rewrite)
    except Unfit as why:
        raise ValueError(
            f"evaluate: {option} must be left out for {why}, got it for {loaded.name}"
        ) from why.__cause__
    # Of the model that was given: what is computed from its weights differs in last bits between devices.
    digest = hashlib.sha256(f"{loaded.fingerprint}, {name}".encode()).hexdigest()
    return replace(loaded, model=model, name=f"{loaded.name}, {name}", fingerprint=digest)


def _checked(loaded: LoadedModel, x: Tensor, sigmas: tuple[float, ...], rewrite) -> nn.Module:
    if not isinstance(loaded.model, nn.Module):
        raise Unfit("a model that is no nn.Module")
    x = _with_noise(x.nan_to_num(), sigmas)
    network = Network("evaluate", loaded.model, loaded.preprocessing, x)
    before = _logits(network, x)
    model = rewrite(loaded.model, x[:1].clone())  # a model may work in place on it
    try:
        changed = Network("evaluate", model, loaded.preprocessing, x)
        after = _logits(changed, x)
    except ValueError as error:  # Network's words for whatever the model raised
        raise Unfit(
            f"a model that fails with it ({first_line(error.__cause__ or error)})"
        ) from error
    finite = before[before.isfinite()]
    if not len(finite):
        raise Unfit("a model without a finite logit at the first example")
    gap = torch.where(before == after, 0.0, (before - after).abs()).max()  # -inf: classes left out
    size = finite.max() - finite.min()
    if not gap <= max(network.rounding(), changed.rounding()) * size:
        raise Unfit(f"a model whose logits it changes by {gap:.2g} of {size:.2g}")
    return model


def _logits(network: Network, x: Tensor) -> Tensor:
    with torch.no_grad(), full_float32():
        return torch.cat([network(row.to(network.work_dtype)).double() for row in x.split(1)])


def _with_noise(x: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """x [1, ...] and copies with noise: a branch that was lost in tracing may need it to be taken."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_COPIES, *x.shape[1:], generator=generator).to(x.device)
    return torch.cat([x, *((x + sigma * noise).to(x.dtype) for sigma in sigmas)])
