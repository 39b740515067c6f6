"""The inputs themselves, as small PNG pictures, where the data set is still to be read."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np

from .._extras import require
from ..evaluation.images import to_rgb
from ..evaluation.results import Evaluation
from ..evaluation.sources import Source, load_source

_SIDE = 160


def open_source(run: Evaluation, source: Source | None) -> Source | None:
    """The run's data set: the one given, or what the manifest names, if it still has the same
    fingerprint. A report without pictures says so."""
    if source is None:
        if run.config.data.startswith("hf:") and not Path(run.config.data[3:]).is_dir():
            return None  # would be a download
        try:
            source = load_source(run.config.data)
        except Exception:  # noqa: BLE001  (whatever is wrong with it: a page without pictures)
            return None
    return source if source.fingerprint == run.config.data_fingerprint else None


def thumbnail(source: Source, index: int) -> bytes | None:
    """PNG bytes of an example; None when it has no shape of a picture or cannot be read."""
    pil = require("PIL.Image", "pillow", "evaluate")
    try:
        x = source.read(index).x
    except Exception:  # noqa: BLE001  (no longer to be read: a page without this picture)
        return None
    if hasattr(x, "convert"):
        image = to_rgb(x)
        image.thumbnail((_SIDE, _SIDE))
    else:
        pixels = _pixels(np.asarray(x, dtype=np.float64))
        if pixels is None:
            return None
        image = pil.fromarray(pixels)
        if max(image.size) < _SIDE:
            scale = _SIDE // max(image.size)
            image = image.resize(
                (image.width * scale, image.height * scale), pil.Resampling.NEAREST
            )
        else:
            image.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def _pixels(x: np.ndarray) -> np.ndarray | None:
    """``[H, W]`` or ``[H, W, 3]``, uint8: colour, grey, or a flat square picture such as 8 x 8."""
    if x.ndim == 1 and x.size >= 16 and math.isqrt(x.size) ** 2 == x.size:
        x = x.reshape(1, math.isqrt(x.size), -1)
    if x.ndim != 3 or x.shape[0] not in (1, 3) or not np.isfinite(x).all():
        return None
    low, high = x.min(), x.max()
    if low < 0 or high > 1:  # not pixels in [0, 1]: stretched
        x = (x - low) / max(high - low, 1e-12)
    pixels = np.rint(x * 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
