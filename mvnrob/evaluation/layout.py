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
    count = 0
    for weight in model.parameters():
        # of one channel, or one point, both layouts are the same
        if (layout := _LAYOUTS.get(weight.dim())) and not weight.is_contiguous(
            memory_format=layout
        ):
            weight.data = weight.data.contiguous(memory_format=layout)
            count += 1
    if not count:
        raise Unfit("a model without a convolution's weights in the usual layout")
    return model
