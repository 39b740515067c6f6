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
    step (so an image is filtered once), as the model's evaluation protocol has it up to that; a model
    with a ``transform`` of its own has that. As in torchvision's and timm's loaders an orientation in
    EXIF is not applied, and of transparent pixels the colour is taken.
    """
    if model.transform is not None:
        return model.transform(to_rgb(image))
    if model.input_size is None:
        raise ValueError(
            f"evaluate: model must say its input_size for pictures (--input-size, input_size=), got "
            f"{model.name} without one"
        )
    pil = require("PIL.Image", "pillow", EXTRA)
    mode = getattr(pil.Resampling, model.interpolation.upper(), pil.Resampling.BICUBIC)
    image = to_rgb(image)
    width, height = image.size
    side = model.crop * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    size = model.input_size
    image = image.resize((size, size), mode, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)


def to_rgb(image):
    """8-bit colour. 16-bit grey is scaled: PIL's own conversion cuts it at 255, nearly all white.

    Raises:
        ValueError: floating point pixels, whose range nothing says.
    """
    if image.mode == "F":
        raise ValueError("pixels must be 8- or 16-bit, got floating point")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if image.mode != "I" or grey.max(initial=0) > 255:  # "I": 16-bit files of older PIL
            if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
                raise ValueError("pixels must be 8- or 16-bit, got larger ones")
            grey = (grey + 128) // 257
        image = require("PIL.Image", "pillow", EXTRA).fromarray(grey.astype(np.uint8))
    return image.convert("RGB")
