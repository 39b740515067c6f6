"""PP-OCR's recognition networks as classifiers of one character: 6,625 and 18,710 classes.

Weights and character lists come from registry packages (extras ``ocr``, ``ocr-v4``), as data (ONNX); the
packages themselves are not imported. Networks and packages: Apache-2.0.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._extras import MissingExtra
from .onnx_reader import EXTRA, OnnxGraph


class Release(NamedTuple):
    """Where a network is: a file of an installed package."""

    package: str  #: as the registry calls it
    module: str  #: as Python calls it
    file: str
    extra: str


#: name -> its file, both Apache-2.0.
RELEASES = {
    "ppocr-v4": Release(
        "rapidocr-onnxruntime",
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_rec_infer.onnx",
        "ocr-v4",
    ),
    "ppocr-v6": Release("rapidocr", "rapidocr", "models/PP-OCRv6_rec_small.onnx", EXTRA),
}

#: What class 0 means: no character at this place (the blank of connectionist temporal classification).
BLANK = "<blank>"


class CharacterPlace(nn.Module):
    """Logits ``[B, C]`` of the middle place of RGB pictures ``[B, 3, 48, 56]`` in [0, 1].

    The network reads a line of text 48 pixels high, one place every 8 pixels. A window of 56 pixels
    has seven places; the fourth is that of a character in the middle, the rest is its context. Class
    0 is "none" (:data:`BLANK`). The scaling that the network was trained with, ``2 x - 1`` on BGR, is
    inside, so that a noise level is in raw pixel units. The softmax that the file ends in is left
    out. ``head`` is the last linear layer, from 120 numbers.
    """

    input_shape = (3, 48, 56)
    bounds = (0.0, 1.0)
    place = 3

    def __init__(self, features: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.features, self.head = features, head

    @property
    def num_classes(self) -> int:
        return self.head.out_features

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x.flip(1) * 2 - 1)  # [B, 7, 120]
        return self.head(features[:, self.place])


def load_pp_ocr(name: str = "ppocr-v6") -> CharacterPlace:
    """``"ppocr-v6"`` (PP-OCRv6 small, 18,710 classes) or ``"ppocr-v4"`` (mobile, 6,625), frozen.

    Raises ValueError for another name, MissingExtra where its package or ``onnx`` is not installed.
    """
    graph = OnnxGraph(_path(name))
    softmax = graph.producer(graph.outputs[0])
    shift = graph.producer(softmax.inputs[0])
    product = graph.producer(shift.inputs[0])
    if [softmax.op, shift.op, product.op] != ["Softmax", "Add", "MatMul"]:
        raise ValueError(
            "load_pp_ocr: the network must end in MatMul, Add, Softmax, got "
            f"{product.op}, {shift.op}, {softmax.op} in {_path(name)}"
        )
    weight = torch.from_numpy(graph.constants[product.inputs[1]].T.copy())
    bias = torch.from_numpy(graph.constants[shift.inputs[1]].copy())
    head = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    features = graph.network(product.inputs[0])
    return CharacterPlace(features, head).eval().requires_grad_(False)


def character_names(name: str = "ppocr-v6") -> list[str]:
    """The classes by index: :data:`BLANK`, the characters, a space."""
    return [BLANK, *OnnxGraph(_path(name)).metadata["character"].split("\n"), " "]


def _path(name: str) -> Path:
    if name not in RELEASES:
        raise ValueError(f"load_pp_ocr: name must be one of {', '.join(RELEASES)}, got {name!r}")
    release = RELEASES[name]
    found = find_spec(release.module)  # not imported: it would bring OpenCV up
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(
            f"mvnrob: the package {release.package} is needed here and not installed; "
            f"`pip install --no-build-isolation 'mvnrob[{release.extra}]'` brings it"
        )
    return Path(found.submodule_search_locations[0]) / release.file
