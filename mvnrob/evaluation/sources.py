"""Data sets by name, folder or file, read example by example in a fixed order."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from .images import SUFFIXES
from .models import EXTRA


@dataclass
class Example:
    """One input: a tensor in the model's raw units, or a PIL image that the model's size decides."""

    x: Any
    label: int | None
    name: str


def printable(text: str) -> str:
    """Text that UTF-8 can write: bytes of a file name that are none appear as ``\\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def as_label(value) -> int | None:
    """A class number, or None.

    Raises:
        ValueError: not a whole number.
    """
    if value is None:
        return None
    try:
        number = float(value)
        if number == int(number) and -(2**63) <= int(value) < 2**63:
            return int(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise ValueError(f"label must be a whole number, got {str(value)[:50]}")


#: Bytes of zeros that every tar file ends with.
_TAR_END = 1024


class Source:
    """A data set in a fixed order.

    Subclasses set ``name``, ``class_names`` (or None) and ``fingerprint``, and define ``__len__`` and
    ``read``. ``read`` may raise for an example that cannot be read: the run records that and goes on.
    It is called from several threads.
    """

    name: str
    class_names: list[str] | None = None
    fingerprint: str = ""
    #: False where no example has a label, as far as that is known beforehand.
    has_labels: bool = True

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> Example:
        raise NotImplementedError

    def named(self, index: int) -> Example:
        """Label and name of an example, as far as they are known without reading it."""
        return Example(None, None, str(index))


class Arrays(Source):
    """Inputs in one array ``[N, *shape]``, labels ``[N]`` or none."""

    def __init__(self, name: str, x: Tensor, labels, class_names=None) -> None:
        if x.dim() < 2:
            raise ValueError(f"evaluate: data must have shape [N, *shape], got {list(x.shape)}")
        x = x.detach().cpu()
        self.name, self.x, self.class_names = name, x, class_names
        if labels is not None and len(labels) != len(x):
            raise ValueError(
                f"evaluate: data must have a label for each input, got {len(labels)} for {len(x)}"
            )
        try:
            self.labels = None if labels is None else [as_label(y) for y in labels]
        except ValueError as error:
            raise ValueError(f"evaluate: data must have classes as labels: {error}") from None
        self.has_labels = self.labels is not None
        digest = hashlib.sha256(f"{x.dtype} {list(x.shape)}".encode())
        digest.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        digest.update(repr(self.labels).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.x)

    def read(self, index: int) -> Example:
        return Example(
            self.x[index], None if self.labels is None else self.labels[index], str(index)
        )


class Files(Source):
    """Picture files: ``folder/CLASS/file`` with one folder per class, or files alone without labels."""

    def __init__(self, folder: Path) -> None:
        folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        self.name = str(folder)
        found: list[tuple[Path, int | None]] = []
        if folders:
            own = folder.resolve()
            if loops := [p for p in folders if own.is_relative_to(p.resolve())]:
                raise ValueError(f"evaluate: data must not hold itself, got the link {loops[0]}")
            self.class_names = [printable(p.name) for p in folders]
            for label, part in enumerate(folders):
                found += [(path, label) for path in _pictures(part.rglob("*"))]
        else:
            found = [(path, None) for path in _pictures(folder.iterdir())]
        if not found:
            raise ValueError(
                f"evaluate: data must hold pictures ({', '.join(SUFFIXES)}), got {folder}"
            )
        self.folder, self.found, self.has_labels = folder, found, bool(folders)
        digest = hashlib.sha256()
        for path, _ in found:
            size = path.stat().st_size if path.is_file() else "gone"
            line = f"{path.relative_to(folder)} {size}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.found)

    def named(self, index: int) -> Example:
        path, label = self.found[index]
        return Example(None, label, path.relative_to(self.folder).as_posix())

    def read(self, index: int) -> Example:
        example = self.named(index)
        example.x = _opened(self.found[index][0].read_bytes())
        return example


def _pictures(paths) -> list[Path]:
    """Also links to files that are away: those cannot be read, which shall be seen."""
    return sorted(
        p
        for p in paths
        if p.suffix.lower() in SUFFIXES and (p.is_file() or (p.is_symlink() and not p.exists()))
    )


def _opened(data: bytes):
    image = require("PIL.Image", "pillow", EXTRA).open(io.BytesIO(data))
    image.load()  # a truncated file fails here, where it is recorded
    return image


class Shards(Source):
    """WebDataset shards: tar files of ``KEY.jpg`` with ``KEY.cls`` (a number) or ``KEY.json``.

    The shards are indexed once by their headers; pictures are read by their offsets.
    """

    def __init__(self, spec: str, shards: Sequence[Path]) -> None:
        self.name = spec
        self._pictures: list[tuple[Path, str, int, int]] = []
        self._labels: dict[tuple[Path, str], tuple[str, int, int]] = {}
        digest = hashlib.sha256()
        for shard in shards:
            digest.update(f"{shard.name} {shard.stat().st_size}\n".encode())
            try:
                self._index(shard)
            except tarfile.TarError as error:
                raise ValueError(
                    f"evaluate: data must be plain tar shards, got {shard}: {error}"
                ) from None
        if not self._pictures:
            raise ValueError(f"evaluate: data must hold pictures in its shards, got {spec}")
        self.has_labels = bool(self._labels)
        self.fingerprint = digest.hexdigest()

    def _index(self, shard: Path) -> None:
        # tarfile takes a file that was cut between two members for a shorter one.
        with shard.open("rb") as file:
            file.seek(max(0, shard.stat().st_size - _TAR_END))
            if file.read() != bytes(_TAR_END):
                raise tarfile.ReadError("it ends early: the two blocks of zeros are missing")
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, ending = file.partition(".")  # WebDataset: the key ends at a dot
                key = f"{folder}/{stem}" if folder else stem
                place = (member.offset_data, member.size)
                if f".{ending.lower()}" in SUFFIXES:
                    self._pictures.append((shard, key, *place))
                elif ending in ("cls", "json"):
                    self._labels[shard, key] = (ending, *place)

    def __len__(self) -> int:
        return len(self._pictures)

    def named(self, index: int) -> Example:
        shard, key, _, _ = self._pictures[index]
        return Example(None, None, f"{shard.name}/{key}")

    def read(self, index: int) -> Example:
        shard, key, offset, size = self._pictures[index]
        with shard.open("rb") as file:
            file.seek(offset)
            image = _opened(file.read(size))
            label = None
            if (found := self._labels.get((shard, key))) is not None:
                ending, offset, size = found
                file.seek(offset)
                text = file.read(size).decode("utf-8-sig")  # editors put a mark before it
                value = json.loads(text) if ending == "json" else text.strip()
                if isinstance(value, dict):
                    value = value.get("label", value.get("cls"))
                label = as_label(value)
        return Example(image, label, f"{shard.name}/{key}")


class HuggingFace(Source):
    """A ``datasets`` data set with a column of pictures (``image``, ``img``) and one of labels."""

    def __init__(self, spec: str, data) -> None:
        kinds = require("datasets", "datasets", "hf")
        columns = data.features
        images = [name for name, kind in columns.items() if isinstance(kind, kinds.Image)]
        labels = [name for name, kind in columns.items() if isinstance(kind, kinds.ClassLabel)]
        if not images:
            raise ValueError(
                f"evaluate: data must have a column of pictures, got {', '.join(columns)}"
            )
        self.name, self._data, self._image = spec, data, images[0]
        self._label = labels[0] if labels else "label" if "label" in columns else None
        self.has_labels = self._label is not None
        if labels:
            self.class_names = list(columns[labels[0]].names)
        self.fingerprint = str(getattr(data, "_fingerprint", f"{spec} {len(data)}"))

    def __len__(self) -> int:
        return len(self._data)

    def read(self, index: int) -> Example:
        row = self._data[index]
        label = None if self._label is None else row[self._label]
        return Example(row[self._image], as_label(label), str(index))


class Indexed(Source):
    """Anything with ``len`` and ``[i]`` that gives ``(x, label)``, a dict, or x alone."""

    def __init__(self, data) -> None:
        self._data = data
        self.name = type(data).__name__
        names = getattr(data, "classes", None)
        self.class_names = [str(n) for n in names] if isinstance(names, (list, tuple)) else None
        self.fingerprint = f"{self.name} {len(data)} {_sampled(self)}"

    def __len__(self) -> int:
        return len(self._data)

    def read(self, index: int) -> Example:
        item = self._data[index]
        if isinstance(item, dict):
            x = next((item[k] for k in ("x", "image", "pixel_values", "input") if k in item), None)
            label = next((item[k] for k in ("label", "labels", "y", "target") if k in item), None)
        elif isinstance(item, (tuple, list)):
            x, label = item[0], item[1] if len(item) > 1 else None
        else:
            x, label = item, None
        if x is None:
            raise ValueError("no x, image, pixel_values or input in it")
        return Example(x, as_label(label), str(index))


def _sampled(source: Source) -> str:
    """sha256 of the first, the middle and the last example: other data of the same length differ."""
    digest = hashlib.sha256()
    for index in sorted({0, len(source) // 2, len(source) - 1} - {-1, len(source)}):
        try:
            example = source.read(index)
            x = example.x.detach().cpu() if isinstance(example.x, Tensor) else example.x
            x = np.ascontiguousarray(x)
        except Exception as error:  # noqa: BLE001  (readers raise what they like)
            digest.update(type(error).__name__.encode())
        else:
            digest.update(f"{x.dtype} {x.shape} {example.label}".encode())
            digest.update(x.tobytes())
    return digest.hexdigest()


def load_source(spec) -> Source:
    """The data set that ``spec`` names.

    Args:
        spec: ``"digits"`` (scikit-learn's, the 360 test images); ``"photos"`` (packaged photographs,
            no labels); ``"glyphs[:MODEL[:FONT]]"`` (some 2,900 printed characters for ``ppocr-v6`` or
            ``ppocr-v4``, drawn from a packaged font or a file); a folder of pictures (``CLASS/file``,
            or files alone); ``*.npz`` with ``x`` (or ``images``) ``[N, *shape]`` and ``y`` (or
            ``labels``); WebDataset shards ``*.tar``, ``NAME-{0000..0099}.tar`` included;
            ``"hf:NAME[:SPLIT]"`` or ``"hf:FOLDER"`` (Hugging Face ``datasets``); or a :class:`Source`,
            a map-style ``Dataset``, a ``DataLoader`` that yields all of one in its order, or a tuple of
            tensors or NumPy arrays ``(x, labels)``.

    Raises:
        ValueError: a spec that names nothing; a loader that shuffles or leaves examples out.
        MissingExtra: the package that the spec needs is not installed.
    """
    if isinstance(spec, Source):
        return spec
    if isinstance(spec, torch.utils.data.DataLoader):
        if (odd := _departs(spec)) is not None:
            raise ValueError(
                "evaluate: data must be a DataLoader of its whole data set in its order (examples are "
                f"read one by one), got one {odd}"
            )
        plain = (torch.utils.data.default_collate, torch.utils.data.default_convert)
        if spec.collate_fn not in plain:
            raise ValueError(
                "evaluate: data must be a DataLoader without a collate_fn of its own (examples are read "
                "one by one), got one with it; put its work into the data set"
            )
        return load_source(spec.dataset)
    if isinstance(spec, (Tensor, np.ndarray)):
        return Arrays("tensor", _tensor(spec), None)
    if isinstance(spec, tuple) and spec and isinstance(spec[0], (Tensor, np.ndarray)):
        if len(spec) > 2:
            raise ValueError(f"evaluate: data must be (x, labels), got a tuple of {len(spec)}")
        return Arrays("tensors", _tensor(spec[0]), spec[1] if len(spec) == 2 else None)
    if not isinstance(spec, (str, Path)):
        if not (hasattr(spec, "__len__") and hasattr(spec, "__getitem__")):
            raise TypeError(
                "evaluate: data must be a name, a path, tensors, a map-style data set or a "
                f"DataLoader, got {type(spec).__name__}"
            )
        return Indexed(spec)
    try:
        return _load_named(str(spec))
    except OSError as error:
        raise ValueError(f"evaluate: data must be readable, got {spec}: {error}") from None


def _departs(loader: torch.utils.data.DataLoader) -> str | None:
    """What makes the loader yield other examples than its data set has, in its order, if anything."""
    sampler, drops = loader.sampler, loader.drop_last
    size = loader.batch_size
    if loader.batch_sampler is not None and size is None:  # the user's own
        if type(loader.batch_sampler) is not torch.utils.data.BatchSampler:
            return f"with batches by {type(loader.batch_sampler).__name__}"
        sampler, drops = loader.batch_sampler.sampler, loader.batch_sampler.drop_last
        size = loader.batch_sampler.batch_size
    if type(sampler) is not torch.utils.data.SequentialSampler:
        return f"that draws by {type(sampler).__name__}"
    if len(sampler) != len(loader.dataset):
        return f"whose sampler draws {len(sampler)} of {len(loader.dataset)} examples"
    if drops and len(sampler) % size:
        return f"whose drop_last leaves out {len(sampler) % size} of {len(sampler)} examples"
    return None


def _tensor(x: Tensor | np.ndarray) -> Tensor:
    if isinstance(x, Tensor):
        return x
    try:
        return torch.from_numpy(x.astype(x.dtype.newbyteorder("="), copy=False))
    except TypeError:
        raise TypeError(f"evaluate: data must hold numbers, got an array of {x.dtype}") from None


def _load_named(spec: str) -> Source:
    if spec in _BUILT_IN:
        return _BUILT_IN[spec]()
    if spec.startswith("hf:"):
        return _hugging_face(spec)
    if spec.partition(":")[0] == "glyphs":
        return _Glyphs(spec)
    path = Path(spec)
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".tar":
        return Shards(spec, _expanded(spec))
    if path.is_dir():
        return Files(path)
    raise ValueError(
        f"evaluate: data must be {', '.join(_BUILT_IN)}, glyphs, a folder of pictures, an .npz file, "
        f".tar shards or hf:NAME, got {spec!r}"
    )


def _digits() -> Source:
    from ..models.digits import load_digits_data

    _, _, x, y = load_digits_data()
    return Arrays("digits", x, y, [str(d) for d in range(10)])


class _Photos(Source):
    name = "photos"
    has_labels = False

    def __init__(self) -> None:
        from ..models.photos import load_photos

        self._photos = load_photos()
        self.fingerprint = " ".join(photo.name for photo in self._photos)

    def __len__(self) -> int:
        return len(self._photos)

    def read(self, index: int) -> Example:
        photo = self._photos[index]
        image = require("PIL.Image", "pillow", EXTRA).fromarray(photo.pixels)
        return Example(image, None, photo.name)


class _Glyphs(Source):
    """``glyphs``, ``glyphs:MODEL`` or ``glyphs:MODEL:FONT``: labels are the model's classes."""

    def __init__(self, spec: str) -> None:
        from ..models.glyphs import as_input, draw_glyphs
        from ..models.pp_ocr import character_names

        parts = spec.split(":", 2)[1:]
        model, font = parts[0] if parts else "ppocr-v6", parts[1] if len(parts) > 1 else None
        self.name, self._as_input = spec, as_input
        self._glyphs = draw_glyphs(model, font)
        self.class_names = character_names(model)
        digest = hashlib.sha256()
        for glyph in self._glyphs:  # the pixels: another font or rasteriser is other data
            digest.update(f"{glyph.label} ".encode() + glyph.pixels.tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._glyphs)

    def named(self, index: int) -> Example:
        glyph = self._glyphs[index]
        return Example(None, glyph.label, glyph.character)

    def read(self, index: int) -> Example:
        example = self.named(index)
        example.x = self._as_input(self._glyphs[index])
        return example


_BUILT_IN = {"digits": _digits, "photos": _Photos}


def _npz(path: Path) -> Source:
    if not path.is_file():
        raise ValueError(f"evaluate: data must name a file, got {path}")
    try:
        file = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"evaluate: data must be an .npz file, got {path}: {error}") from None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(  # noqa: TRY004  (a file of another kind)
            f"evaluate: data must be an .npz file, got a single array in {path}"
        )
    with file:
        names = list(file)
        inputs = next((n for n in ("x", "images", "x_test", "data") if n in names), None)
        labels = next((n for n in ("y", "labels", "y_test", "label") if n in names), None)
        if inputs is None:
            raise ValueError(
                f"evaluate: data must hold x or images, got {', '.join(names)} in {path}"
            )
        try:
            x = file[inputs]
            x = torch.from_numpy(x.astype(x.dtype.newbyteorder("="), copy=False))
            y = None if labels is None else file[labels]
        except (OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"evaluate: data must hold numbers, got {path}: {error}") from None
    if x.dtype == torch.uint8:
        x = x.float().div_(255)
        if x.dim() == 4 and x.shape[-1] in (1, 3):
            x = x.permute(0, 3, 1, 2).contiguous()
    if not x.is_floating_point():
        raise ValueError(f"evaluate: data must be floating point or 8-bit, got {x.dtype} in {path}")
    return Arrays(str(path), x, y)


def _expanded(spec: str) -> list[Path]:
    """``a-{0000..0002}.tar`` as three paths, and a glob pattern as what it matches."""
    head, brace, rest = spec.partition("{")
    if brace and ".." in rest:
        span, _, tail = rest.partition("}")
        first, _, last = span.partition("..")
        if not (first.isdecimal() and last.isdecimal()):
            raise ValueError(f"evaluate: data must have numbers in its braces, got {spec!r}")
        paths = [
            Path(f"{head}{number:0{len(first)}d}{tail}")
            for number in range(int(first), int(last) + 1)
        ]
    elif any(letter in spec for letter in "*?["):
        base = Path(spec)
        paths = sorted(base.parent.glob(base.name))
    else:
        paths = [Path(spec)]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise ValueError(f"evaluate: data must name files, got {missing[0] if missing else spec}")
    return paths


def _hugging_face(spec: str) -> Source:
    datasets = require("datasets", "datasets", "hf")
    name = spec.removeprefix("hf:")
    if Path(name).is_dir():
        try:
            data = datasets.load_from_disk(name)
        except Exception as error:  # noqa: BLE001  (that package raises many kinds)
            raise ValueError(
                f"evaluate: data must be a folder of save_to_disk, got {name}: {error}"
            ) from None
        if isinstance(data, datasets.DatasetDict):
            raise ValueError(
                f"evaluate: data must be one split, got {', '.join(data)} in {name}; name its folder"
            )
        return HuggingFace(spec, data)
    name, _, split = name.partition(":")
    try:
        data = datasets.load_dataset(name, split=split or "test")
    except Exception as error:  # noqa: BLE001  (that package raises many kinds)
        raise ValueError(f"evaluate: data must load, got {spec}: {error}") from None
    return HuggingFace(spec, data)
