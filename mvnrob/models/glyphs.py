"""Printed characters as labelled inputs: drawn with Pillow from a font that a package brings."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._extras import MissingExtra, require
from .onnx_reader import EXTRA
from .pp_ocr import CharacterPlace, character_names

#: Pixels of an em. PP-OCR's lines are 48 high, and characters fill three quarters of them.
EM = 36
#: A code point without a character: fonts draw their mark for what they lack.
_NO_CHARACTER = "\U0010fffd"


class Glyph(NamedTuple):
    character: str
    label: int  #: its class
    pixels: np.ndarray  #: uint8 ``[48, 56]``, black on white, centred


def draw_glyphs(
    name: str = "ppocr-v6", font: str | Path | None = None, limit: int | None = None
) -> list[Glyph]:
    """Everyday characters that the network of that name knows and the font has, in a fixed shuffle.

    Everyday are the 2,965 Chinese characters of JIS X 0208's first level, by frequency of use in
    print. ``font``: a TrueType or OpenType file; by default IPAexGothic, which the package
    matplotlib-fontja brings (IPA Font Licence 1.0). ``limit``: only the first so many. A third of a
    millisecond each.

    Raises ValueError for a font that cannot be read or has none of the characters.
    """
    pil = require("PIL.ImageFont", "pillow", EXTRA)
    path = _packaged_font() if font is None else Path(font)
    try:
        face = pil.truetype(str(path), EM)
    except OSError as error:
        raise ValueError(f"draw_glyphs: font must be a font file, got {path}: {error}") from None
    known = [(c, i) for i, c in enumerate(character_names(name)) if is_everyday(c)]
    random.Random(0).shuffle(known)
    blank = _draw(face, _NO_CHARACTER)
    glyphs: list[Glyph] = []
    for character, label in known:
        if len(glyphs) == limit:
            break
        pixels = _draw(face, character)
        if not np.array_equal(pixels, blank):
            glyphs.append(Glyph(character, label, pixels))
    if not glyphs:
        raise ValueError(f"draw_glyphs: font must have Chinese characters, got {path}")
    return glyphs


def is_everyday(character: str) -> bool:
    """Whether a character is in rows 16 to 47 of JIS X 0208, its first level."""
    try:
        code = character.encode("euc_jp")
    except UnicodeEncodeError:
        return False
    return len(code) == 2 and 0xB0 <= code[0] <= 0xCF


def as_input(glyph: Glyph) -> Tensor:
    """float32 ``[3, 48, 56]`` in [0, 1]: what :class:`CharacterPlace` takes, without the batch."""
    return torch.from_numpy(glyph.pixels).float().div_(255).expand(3, -1, -1).contiguous()


def _draw(face, character: str) -> np.ndarray:
    _, height, width = CharacterPlace.input_shape
    image = require("PIL.Image", "pillow", EXTRA).new("L", (width, height), 255)
    left, top, right, bottom = face.getbbox(character)
    at = ((width - left - right) / 2, (height - top - bottom) / 2)
    require("PIL.ImageDraw", "pillow", EXTRA).Draw(image).text(at, character, fill=0, font=face)
    return np.array(image)


def _packaged_font() -> Path:
    found = find_spec("matplotlib_fontja")  # not imported: it would change matplotlib's settings
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(
            "mvnrob: the package matplotlib-fontja is needed here and not installed; "
            f"`pip install --no-build-isolation 'mvnrob[{EXTRA}]'` brings it; or name a font"
        )
    return Path(found.submodule_search_locations[0]) / "fonts" / "ipaexg.ttf"
