"""Models by name or file, with what their inputs look like; no pickle is ever executed."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import pickle
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import MissingExtra, require
from ..network import owning_module

EXTRA = "evaluate"


@dataclass
class LoadedModel:
    """A classifier and how its inputs are made.

    ``sigma`` and ``bounds`` are in the units of the inputs before ``preprocessing``: for images,
    pixels in [0, 1].
    """

    model: Callable
    name: str
    #: names of the classes by index, or None
    class_names: list[str] | None = None
    #: side of a square image, for sources that hold pictures; None for other inputs
    input_size: int | None = None
    #: share of the shorter side that the centre crop keeps
    crop: float = 1.0
    interpolation: str = "bicubic"
    #: a picture in RGB to a tensor in [0, 1], in place of ``input_size``, ``crop``, ``interpolation``
    transform: Callable[[Any], Tensor] | None = None
    bounds: tuple[float, float] | None = None
    preprocessing: Mapping[str, Any] | None = None
    #: sha256 of the weights, or of what else identifies the model
    fingerprint: str = field(default="")
    #: of a model in half precision the one that it was made of
    full: Callable | None = None

    def __post_init__(self) -> None:
        if not self.fingerprint:
            self.fingerprint = fingerprint(self.model)


def load_model(
    spec: str | Callable | LoadedModel, *, weights: str | Path | None = None
) -> LoadedModel:
    """The model that ``spec`` names, in eval mode.

    Args:
        spec: ``"digits"`` (trained on the spot, 4 seconds); ``"efficientnet-lite0"``, ``"ppocr-v6"``
            and ``"ppocr-v4"`` (one printed character, 18,710 and 6,625 classes): weights from a
            package, no download; ``"timm:NAME"``, ``"torchvision:NAME"``, ``"hf:NAME-OR-FOLDER"``
            (Hugging Face image classification); a file ``*.pt2`` (``torch.export``; one of a fixed batch
            is given pieces of that size, padded where an input is alone) or ``*.pt``, ``*.ts``
            (TorchScript); ``"path.py:factory"``, whose function ``factory()`` returns an
            ``nn.Module`` or a :class:`LoadedModel`; or a model itself.
        weights: a ``*.safetensors`` file, or a state dict that ``torch.load(weights_only=True)``
            reads, for ``timm:``, ``torchvision:`` and ``path.py:``; their pretrained ones otherwise.

    Code runs only from a ``path.py`` that the user names, and from installed packages: nothing is
    unpickled, and ``hf:`` models that bring code of their own are refused.

    Raises:
        ValueError: a spec that names nothing; weights that do not fit.
        MissingExtra: the package that the spec needs is not installed.
    """
    if isinstance(spec, LoadedModel):
        loaded = spec
    elif not isinstance(spec, str):
        if not callable(spec):
            raise TypeError(
                f"evaluate: model must be a name, a file or callable, got {type(spec).__name__}"
            )
        loaded = LoadedModel(spec, getattr(spec, "__name__", type(spec).__name__))
    else:
        return _load_named(spec, weights)
    if weights is not None:
        raise ValueError("evaluate: weights must be left out for a model that is given, got both")
    return loaded


def _load_named(spec: str, weights: str | Path | None) -> LoadedModel:
    with _loading(spec):
        return _load_one(spec, weights)


def _load_one(spec: str, weights: str | Path | None) -> LoadedModel:
    kind, _, name = spec.partition(":")
    if kind in ("timm", "torchvision", "hf") and name:
        if kind == "hf" and weights is not None:
            raise ValueError("evaluate: weights must be left out for hf: models, got both")
        return {"timm": _timm, "torchvision": _torchvision, "hf": _hugging_face}[kind](
            name, weights
        )
    if ".py:" in spec:
        path, _, factory = spec.rpartition(":")
        return _from_file(Path(path), factory, weights)
    if weights is not None:
        raise ValueError(f"evaluate: weights must be left out for model {spec!r}, got {weights}")
    if spec in _BUILT_IN:
        return _BUILT_IN[spec]()
    if Path(spec).suffix in (".pt2", ".pt", ".ts"):
        return _exported(Path(spec))
    raise ValueError(
        f"evaluate: model must be {', '.join(_BUILT_IN)}, timm:NAME, torchvision:NAME, hf:NAME, "
        f"a .pt2, .pt or .ts file, or path.py:factory, got {spec!r}"
        + _FOR_WEIGHTS.get(Path(spec).suffix, "")
    )


#: Files that hold weights and no network, given as a model: what to do with them.
_WEIGHTS_ALONE = "; weights alone go to --weights (weights=) beside a path.py:factory"
_FOR_WEIGHTS = dict.fromkeys((".safetensors", ".pth", ".bin", ".ckpt", ".pkl"), _WEIGHTS_ALONE)


def _digits() -> LoadedModel:
    from ..models.digits import load_digits_classifier

    model, _, _ = load_digits_classifier()
    return LoadedModel(model, "digits", [str(d) for d in range(10)], bounds=(0.0, 1.0))


def _efficientnet_lite0() -> LoadedModel:
    from ..models.efficientnet_lite import (
        EfficientNetLite0,
        imagenet_names,
        load_efficientnet_lite0,
    )
    from ..models.photos import CROP

    return LoadedModel(
        load_efficientnet_lite0(),
        "efficientnet-lite0",
        imagenet_names(),
        input_size=EfficientNetLite0.input_size,
        crop=CROP,
        bounds=EfficientNetLite0.bounds,
    )


def _pp_ocr(name: str) -> LoadedModel:
    from ..models.pp_ocr import CharacterPlace, character_names, load_pp_ocr

    return LoadedModel(load_pp_ocr(name), name, character_names(name), bounds=CharacterPlace.bounds)


_BUILT_IN = {
    "digits": _digits,
    "efficientnet-lite0": _efficientnet_lite0,
    "ppocr-v6": partial(_pp_ocr, "ppocr-v6"),
    "ppocr-v4": partial(_pp_ocr, "ppocr-v4"),
}


def _timm(name: str, weights: str | Path | None) -> LoadedModel:
    timm = require("timm", "timm", "timm")
    try:
        model = timm.create_model(name, pretrained=weights is None)
    except ModuleNotFoundError as error:  # timm imports it late
        if (error.name or "").partition(".")[0] == "torchvision":
            require("torchvision", "torchvision", "timm")
        raise
    if weights is not None:
        _load_weights(model, weights)
    data = timm.data.resolve_model_data_config(model)
    if (mode := data.get("crop_mode", "center")) != "center":
        raise ValueError(
            f"evaluate: model must take pictures cropped at their centre, got timm's crop_mode {mode!r} "
            f"for {name}; give a path.py:factory with a LoadedModel whose transform makes them"
        )
    return LoadedModel(
        model.eval(),
        f"timm:{name}",
        input_size=int(data["input_size"][-1]),
        crop=float(data["crop_pct"]),
        interpolation=str(data["interpolation"]),
        bounds=(0.0, 1.0),
        preprocessing=_scaling(data["mean"], data["std"]),
    )


def _torchvision(name: str, weights: str | Path | None) -> LoadedModel:
    models = require("torchvision.models", "torchvision", "torchvision")
    entry = models.get_model_weights(name).DEFAULT
    model = models.get_model(name, weights=entry if weights is None else None)
    names = None
    if weights is None:
        names = list(entry.meta.get("categories", [])) or None
    else:
        _load_weights(model, weights)
    # The protocol of the architecture's own weights, also for others of it.
    preset = entry.transforms()
    side = int(preset.crop_size[0])
    return LoadedModel(
        model.eval(),
        f"torchvision:{name}",
        names,
        input_size=side,
        crop=side / int(preset.resize_size[0]),
        interpolation=preset.interpolation.value,
        bounds=(0.0, 1.0),
        preprocessing=_scaling(preset.mean, preset.std),
    )


def _hugging_face(name: str, weights: None) -> LoadedModel:
    transformers = require("transformers", "transformers", "hf")
    model = transformers.AutoModelForImageClassification.from_pretrained(
        name, trust_remote_code=False, use_safetensors=True
    )
    processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    transform, scaling = _hugging_face_pictures(name, processor)
    labels = model.config.id2label
    # How pictures are made belongs to what identifies the model.
    weights = fingerprint(model) + json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return LoadedModel(
        model.eval(),
        f"hf:{name}",
        [str(labels.get(i, i)) for i in range(model.config.num_labels)],
        crop=1.0,
        interpolation="the processor's",
        transform=transform,
        bounds=(0.0, 1.0),
        preprocessing=scaling,
        fingerprint=hashlib.sha256(weights.encode()).hexdigest(),
    )


def _hugging_face_pictures(name: str, processor) -> tuple[Callable[[Any], Tensor], Any]:
    """The processor without its normalisation, and the normalisation. Processors squash, crop and
    resize each in their own way, so theirs is used; that both parts make the whole is tried out.

    Raises:
        ValueError: they do not, or pixels do not come in [0, 1].
    """
    image = require("PIL.Image", "pillow", EXTRA)

    def pixels(picture, **options) -> Tensor:
        out = processor(picture, return_tensors="pt", **options)["pixel_values"]
        return torch.as_tensor(out)[0].float()

    def transform(picture) -> Tensor:
        return pixels(picture, do_normalize=False)

    scaling = None
    if getattr(processor, "do_normalize", False):
        scaling = _scaling(processor.image_mean, processor.image_std)
    columns = torch.linspace(0, 255, 320).to(torch.uint8).expand(240, 320)
    rows = torch.linspace(0, 255, 240).to(torch.uint8)[:, None].expand(240, 320)
    picture = image.fromarray(torch.stack([columns, rows, 255 - rows], -1).numpy())
    raw, whole = transform(picture), pixels(picture)
    low, high = float(raw.min()), float(raw.max())
    apart = raw
    if scaling is not None:
        apart = (raw - scaling["mean"][:, None, None]) / scaling["std"][:, None, None]
    # cubic filters leave [0, 1] by some per cent where a processor does not round
    if low < -0.2 or high > 1.2 or high < 0.1 or not torch.allclose(apart, whole, atol=1e-3):
        raise ValueError(
            f"evaluate: model must scale pixels in [0, 1] by a mean and a standard deviation, got "
            f"another preprocessing in hf:{name}; wrap it in path.py:factory"
        )
    return transform, scaling


def _scaling(mean, std) -> dict[str, Any]:
    return {
        "mean": torch.tensor(mean, dtype=torch.float32),
        "std": torch.tensor(std, dtype=torch.float32),
        "axis": -3,
    }


def _from_file(path: Path, factory: str, weights: str | Path | None) -> LoadedModel:
    if not path.is_file():
        raise ValueError(f"evaluate: model must name a file, got {path}")
    spec = importlib.util.spec_from_file_location(f"mvnrob_user_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    # It imports what lies beside it, as a script of Python's does.
    if (folder := str(path.parent.resolve())) not in sys.path:
        sys.path.insert(0, folder)
    spec.loader.exec_module(module)
    if not hasattr(module, factory):
        raise ValueError(f"evaluate: model must name a function of {path}, got {factory!r}")
    made = getattr(module, factory)()
    loaded = made if isinstance(made, LoadedModel) else None
    model = loaded.model if loaded else made
    if not callable(model):
        raise ValueError(  # noqa: TRY004  (a file's fault, not the caller's)
            f"evaluate: model must be what {factory}() of {path} returns, got {type(model).__name__}"
        )
    if weights is not None:
        if not isinstance(model, nn.Module):
            raise ValueError("evaluate: weights must be left out for a model that is no nn.Module")
        _load_weights(model, weights)
    if isinstance(model, nn.Module):
        model.eval()
    if loaded:
        loaded.fingerprint = fingerprint(model)
        return loaded
    return load_model(LoadedModel(model, f"{path.name}:{factory}"))


def _exported(path: Path) -> LoadedModel:
    if not path.is_file():
        raise ValueError(f"evaluate: model must name a file, got {path}")
    if path.suffix == ".pt2":
        with _no_pickles():
            program = torch.export.load(path)
        model = program.module()
        if (batches := _batches(program)) is not None:
            model = _Rebatched(model, *batches)
        # What was exported is what runs; the flag, which eval() may not set here, says nothing.
        for part in model.modules():
            part.training = False
    elif _is_saved_by_torch(path):
        raise ValueError(
            "evaluate: model must be TorchScript or an export, got what torch.save writes, weights or a "
            f"pickle, in {path}" + _WEIGHTS_ALONE
        )
    else:
        model = torch.jit.load(path, map_location="cpu").eval()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LoadedModel(model, path.name, fingerprint=digest)


def _batches(program) -> tuple[int, int] | None:
    """The least and the largest batch that an exported program takes; None where it takes any."""
    wanted = set(program.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in program.graph.nodes if n.name in wanted]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].dim() == 0:
        return None  # no classifier of one tensor: the first batch says what is wrong
    size = values[0].shape[0]
    if isinstance(size, int):
        return size, size
    # A least size above 1 is torch's own wariness of batches of one, which pass.
    limits = program.range_constraints.get(size.node.expr)
    most = None if limits is None else limits.upper
    return (1, int(most)) if most is not None and most.is_Integer else None


class _Rebatched(nn.Module):
    """A program of fixed batches (``torch.export`` without ``dynamic_shapes``) for batches of any
    size: pieces of the size that it takes, the last one padded with zeros."""

    def __init__(self, program: nn.Module, least: int, most: int) -> None:
        super().__init__()
        self.program, self.least, self.most = program, least, most

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for piece in x.split(self.most):
            if (missing := self.least - len(piece)) > 0:
                piece = torch.cat([piece, piece.new_zeros(missing, *piece.shape[1:])])
            out = self.program(piece)
            outs.append(getattr(out, "logits", out))
        return torch.cat(outs)[: len(x)]


def _is_saved_by_torch(path: Path) -> bool:
    """Whether it is an archive of ``torch.save``: one of TorchScript has ``constants.pkl``."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    return "data.pkl" in names and "constants.pkl" not in names


@contextlib.contextmanager
def _no_pickles() -> Iterator[None]:
    """``torch.export.load`` unpickles tensors, constants and example inputs of an archive, whatever
    they are: here only what ``weights_only`` lets through. Formulas of shapes are still evaluated.
    Not for use from several threads at once."""
    flag = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(flag)
    archive = importlib.import_module("torch.export.pt2_archive._package")
    # not there in torch 2.10, which has no such constants
    module = getattr(archive, "pickle", None)
    os.environ[flag] = "1"
    archive.pickle = None
    try:
        yield
    finally:
        if module is None:
            del archive.pickle
        else:
            archive.pickle = module
        if before is None:
            del os.environ[flag]
        else:
            os.environ[flag] = before


@contextlib.contextmanager
def _loading(what: str) -> Iterator[None]:
    """Whatever a package, a file or a factory raises is one error that names it."""
    try:
        yield
    except MissingExtra:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and str(error).startswith("evaluate: "):
            raise
        lines = str(error).strip().splitlines()
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"evaluate: model must load, got {type(error).__name__}: {lines[0] if lines else ''} "
            f"({Path(place.filename).name}, line {place.lineno}) from {what}"
        ) from error


def _load_weights(model: nn.Module, path: str | Path) -> None:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"evaluate: weights must name a file, got {path}")
    if path.suffix == ".safetensors":
        state = require("safetensors.torch", "safetensors", EXTRA).load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            # Not torch's own words: they advise to load it all the same.
            raise ValueError(
                "evaluate: weights must be a safetensors file or a plain state dict, tensors by name, "
                f"got other objects in {path}, which are not unpickled since that can run code; save "
                "model.state_dict()"
            ) from None
        except (RuntimeError, OSError, EOFError) as error:
            raise ValueError(
                "evaluate: weights must be a safetensors file or a plain state dict "
                f"(torch.load with weights_only=True), got {path}: {str(error).splitlines()[0]}"
            ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    for name, own in model.state_dict().items() if isinstance(state, dict) else ():
        given = state.get(name)
        if isinstance(given, Tensor) and own.is_floating_point() and not given.is_floating_point():
            raise ValueError(
                f"evaluate: weights must be floating point where the model's are, got {name} in "
                f"{given.dtype} in {path}"
            )
    try:
        model.load_state_dict(state)
    except (TypeError, RuntimeError) as error:
        # The first line says only that there are errors.
        lines = [line.strip() for line in str(error).splitlines()]
        text = " ".join(lines[1:3] or lines)
        raise ValueError(
            f"evaluate: weights must fit the model, got {path}: {text[:300]}"
        ) from None


def fingerprint(model: Callable) -> str:
    """sha256 over names, shapes and values of parameters and buffers; of the name for other callables."""
    digest = hashlib.sha256()
    module = owning_module(model)
    if module is None:
        digest.update(getattr(model, "__qualname__", type(model).__qualname__).encode())
        return digest.hexdigest()
    digest.update(str(module).encode())
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            plain = value.detach().cpu().contiguous()
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
