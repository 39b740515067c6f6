"""What a run computes, in the folder beside its results: a run with another answer is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._load import simd_level

FILE = "manifest.json"
FORMAT = 1


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
            content = json.loads(path.read_text())
        except ValueError:
            raise OtherRun(f"evaluate: out must hold a readable {FILE}, got {path}") from None
        if content.get("format") != FORMAT:
            raise OtherRun(
                f"evaluate: out must hold a run of format {FORMAT}, got {content.get('format')}"
            )
        return Manifest(folder, content)

    @staticmethod
    def create(folder: Path, config: Config, extra: dict[str, Any]) -> Manifest:
        content = {
            "format": FORMAT,
            "config": config.as_json(),
            "environments": [environment()],
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **extra,
        }
        manifest = Manifest(folder, content)
        manifest.write()
        return manifest

    def write(self) -> None:
        text = json.dumps(self.content, indent=1, allow_nan=False) + "\n"
        write_atomically(self.folder / FILE, text.encode())

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
