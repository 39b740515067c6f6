"""Photographs that ship inside packages of the ``demo`` extra: nothing is downloaded at run time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._extras import require

#: Share of the shorter side that the centre crop keeps: 224 / (224 + 32), as EfficientNet was
#: evaluated.
CROP = 0.875


class Photo(NamedTuple):
    """A photograph as an 8-bit RGB array and where it comes from."""

    name: str
    pixels: np.ndarray  #: uint8 ``[height, width, 3]``
    source: str  #: the package that ships it


def _skimage(function: str):
    picture = getattr(require("skimage.data", "scikit-image", "demo"), function)()
    return picture[0] if isinstance(picture, tuple) else picture  # a stereo pair: its left view


def _sklearn(file: str):
    return require("sklearn.datasets", "scikit-learn", "demo").load_sample_image(file)


#: name -> (package, function that reads it); scikit-image lists the licences in its LICENSE file.
PHOTOS = {
    "chelsea": ("scikit-image", lambda: _skimage("chelsea")),
    "coffee": ("scikit-image", lambda: _skimage("coffee")),
    "rocket": ("scikit-image", lambda: _skimage("rocket")),
    "astronaut": ("scikit-image", lambda: _skimage("astronaut")),
    "motorcycle": ("scikit-image", lambda: _skimage("stereo_motorcycle")),
    "camera": ("scikit-image", lambda: _skimage("camera")),
    "china": ("scikit-learn", lambda: _sklearn("china.jpg")),
    "flower": ("scikit-learn", lambda: _sklearn("flower.jpg")),
}


def load_photos(names: list[str] | None = None) -> list[Photo]:
    """The named photographs (all of :data:`PHOTOS` by default), whole and unscaled."""
    photos = []
    for name in PHOTOS if names is None else names:
        if name not in PHOTOS:
            raise ValueError(f"load_photos: names must be among {', '.join(PHOTOS)}, got {name!r}")
        source, read = PHOTOS[name]
        pixels = np.asarray(read())
        if pixels.ndim == 2:  # grey
            pixels = np.repeat(pixels[:, :, None], 3, axis=2)
        photos.append(Photo(name, np.ascontiguousarray(pixels[:, :, :3]), source))
    return photos


def centre_crop(pixels: np.ndarray, size: int = 224) -> np.ndarray:
    """The central square of :data:`CROP` times the shorter side, bicubic to ``size`` (uint8)."""
    image_module = require("PIL.Image", "pillow", "demo")
    height, width = pixels.shape[:2]
    side = CROP * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    image = image_module.fromarray(pixels)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), image_module.Resampling.BICUBIC, box=box))


def as_batch(photos: list[Photo], size: int = 224) -> Tensor:
    """float32 ``[N, 3, size, size]`` in [0, 1]: what the image models here take."""
    crops = np.stack([centre_crop(photo.pixels, size) for photo in photos])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float().div_(255)
