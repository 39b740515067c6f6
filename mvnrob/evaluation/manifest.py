"""What a run computes, in the folder beside its results: a run with another answer is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .._load import simd_level

FILE = "manifest.json"
FORMAT = 2
#: What a killed process may leave: names that :func:`_temporary` makes for files of a run or a report.
_TEMPORARY = re.compile(r"\.[^.]+\.(csv|html|json|parquet|png)\.[0-9a-f]{16}")


class OtherRun(ValueError):
    """The folder holds a run of another configuration."""


@dataclass(frozen=True)
class Config:
    """Everything that the finished table depends on, on one type of device.

    Networks are not batch-invariant: ``chunk``, the number of examples that pass together (the last
    chunk is padded), and ``threads`` belong to the result.
    """

    model: str
    model_fingerprint: str
    data: str
    data_fingerprint: str
    examples: int
    sigmas: tuple[float, ...]
    methods: tuple[str, ...]
    target: str
    options: dict[str, dict[str, Any]]
    seed: int
    chunk: int
    device: str
    threads: int
    max_bytes: int
    input_size: int | None
    crop: float
    interpolation: str
    bounds: tuple[float, float] | None
    preprocessing: dict[str, Any] | None

    @property
    def chunks(self) -> int:
        return -(-self.examples // self.chunk)

    def members(self, chunk: int) -> range:
        """The examples of a chunk."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.examples))

    def as_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))


def environment() -> dict[str, str]:
    """What else bits depend on: another machine may round differently."""
    from .. import __version__  # that module imports this one

    out = {
        "mvnrob": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "simd": simd_level(),
    }
    if torch.cuda.is_available():
        out["gpu"] = torch.cuda.get_device_name()
    return out


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or nothing, also after a power cut: temporary name, fsync, rename."""
    with _temporary(path, data) as temporary:
        os.replace(temporary, path)


def create_atomically(path: Path, data: bytes) -> bool:
    """As :func:`write_atomically`, unless ``path`` is there: then False, and it stays as it is."""
    with _temporary(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            os.replace(temporary, path)
    return True


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """The data on the disk under a name that nobody else has (process numbers repeat in containers),
    locked while it is there."""
    temporary, file = _locked(path)
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _locked(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside ``path``, open and locked; another one where it was cleared before that."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        file = temporary.open("xb")
        if _lock(file, otherwise=True) and os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()


def _lock(file: BinaryIO, *, otherwise: bool) -> bool:
    """Whether the file could be locked until it is closed; ``otherwise`` where its file system knows no
    locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return otherwise
    return True


def probe(folder: Path) -> None:
    """Raises an OSError where files cannot be written into the folder."""
    with _temporary(folder / FILE, b""):
        pass


def clear_temporaries(*folders: Path) -> None:
    """Removes the temporary files that killed processes left. One that a process holds, of another
    host too, is locked and stays, as all do where the file system knows no locks."""
    for path in (path for folder in folders for path in folder.iterdir()):
        if _TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError), path.open("r+b") as file:
                if _lock(file, otherwise=False):
                    path.unlink(missing_ok=True)


class Manifest:
    """The manifest of a folder."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content

    @staticmethod
    def read(folder: Path) -> Manifest | None:
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError:
            raise OtherRun(f"evaluate: out must hold a readable {FILE}, got {path}") from None
        if not isinstance(content, dict):
            raise OtherRun(f"evaluate: out must hold a readable {FILE}, got {path}")
        if content.get("format") != FORMAT:
            raise OtherRun(
                f"evaluate: out must hold a run of format {FORMAT}, got {content.get('format')}"
            )
        fields = {field.name for field in dataclasses.fields(Config)}
        config, environments = content.get("config"), content.get("environments")
        if not isinstance(config, dict) or set(config) != fields or not environments:
            raise OtherRun(f"evaluate: out must hold a whole {FILE}, got {path}")
        return Manifest(folder, content)

    @staticmethod
    def create(folder: Path, config: Config, extra: dict[str, Any]) -> bool:
        """Writes a new manifest; False where another process was first."""
        content = {
            "format": FORMAT,
            "config": config.as_json(),
            "environments": [environment()],
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **extra,
        }
        return create_atomically(folder / FILE, Manifest(folder, content).encoded())

    def encoded(self) -> bytes:
        return (json.dumps(self.content, indent=1, allow_nan=False) + "\n").encode()

    def write(self) -> None:
        write_atomically(self.folder / FILE, self.encoded())

    def differences(self, config: Config) -> list[str]:
        """``name: there, here`` of what this folder's run and ``config`` disagree about."""
        there, here = self.content["config"], config.as_json()
        return [
            f"{name}: {there.get(name)!r} there, {here.get(name)!r} now"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        ]

    def note_environment(self) -> bool:
        """Adds the present environment; whether it differs from the first one."""
        now = environment()
        known = self.content["environments"]
        if now not in known:
            known.append(now)
            self.write()
        return now != known[0]
