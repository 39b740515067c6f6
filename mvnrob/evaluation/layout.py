"""Convolutions that work on one point's channels at a time (channels last)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..network import first_line
from .models import LoadedModel
from .rewritten import Unfit, rewritten

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(loaded: LoadedModel, x: Tensor, sigmas: tuple[float, ...] = ()) -> LoadedModel:
    """A copy of the model whose convolutions' weights are laid out with the channels last.

    torch's convolutions, and the layers behind them, take the layout of the weights over: cuDNN's tensor
    cores and oneDNN's matrix products then read their operands as they lie.

    Raises:
        ValueError: a model without such weights, or that cannot be copied, or whose ``view`` of a
            convolution's output needs the other layout (``rewritten``).
    """
    return rewritten(loaded, x, sigmas, _laid_out, option="channels_last", name="channels last")


def _laid_out(model: nn.Module, x: Tensor) -> nn.Module:
    try:
        model = copy.deepcopy(model)
    except Exception as error:  # whatever a module holds beside its weights
        why = f"a model that cannot be copied ({type(error).__name__}: {first_line(error)})"
        raise Unfit(why) from error
    if not lay_out(model):
        raise Unfit("a model without a convolution's weights in the usual layout")
    return model


def lay_out(model: nn.Module) -> int:
    """Lays a model's own weights out with the channels last, and returns how many of them were not."""
    count = 0
    for weight in model.parameters():
        # of one channel, or one point, both layouts are the same
        if (layout := _LAYOUTS.get(weight.dim())) and not weight.is_contiguous(
            memory_format=layout
        ):
            weight.data = weight.data.contiguous(memory_format=layout)
            count += 1
    return count


def slow_depthwise(model, device: torch.device) -> str | None:
    """Why this layout may cost more than it saves there; None where nothing is known against it.

    Seen with EfficientNet-Lite0 on an H200 (docs/imagenet.md): plans of its depthwise convolutions with channels
    last took most of a run's first minute.
    """
    if device.type != "cuda" or not isinstance(model, nn.Module):
        return None
    depthwise = [
        name
        for name, part in model.named_modules()
        if isinstance(part, (nn.Conv2d, nn.Conv3d)) and part.groups == part.in_channels > 1
    ]
    if not depthwise:
        return None
    return (
        f"channels_last has cuDNN plan depthwise convolutions ({len(depthwise)} in this model, the first is "
        f"{depthwise[0]!r}) for seconds, anew for every size of a batch, which may cost more than the layout "
        "saves: compare a short run without it"
    )
