"""Pictures to tensors: resize, centre crop, pixels in [0, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from .models import EXTRA, LoadedModel

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def to_tensor(image, model: LoadedModel) -> Tensor:
    """A PIL image as float32 ``[3, side, side]`` in [0, 1].

    The central square of ``crop`` times the shorter side, resampled to the model's input size in one
    step (so an image is filtered once), as the model's evaluation protocol has it up to that.
    """
    if model.input_size is None:
        raise ValueError(
            f"evaluate: model must say its input_size for pictures, got {model.name} without one"
        )
    pil = require("PIL.Image", "pillow", EXTRA)
    mode = getattr(pil.Resampling, model.interpolation.upper(), pil.Resampling.BICUBIC)
    image = image.convert("RGB")
    width, height = image.size
    side = model.crop * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    size = model.input_size
    image = image.resize((size, size), mode, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
