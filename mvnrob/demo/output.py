"""Result files of the demo and the shape of its terminal."""

from __future__ import annotations

import csv
import json
import math
import platform
from pathlib import Path

import numpy as np
import torch

from .. import __version__, simd_level
from .._extras import require


def make_console():
    """A rich console; where there is no terminal (CI, a pipe), wide enough for the tables."""
    console = require("rich.console", "rich", "demo").Console()
    return console if console.is_terminal else type(console)(width=130)


def say(console, text: str) -> None:
    """A plain line where no progress bar can show that work goes on: a log, a pipe."""
    if not console.is_terminal:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(_plain(rows))


def _plain(value):
    """Python values: no arrays, and None where JSON has no word for NaN or infinity."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, torch.Tensor, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def environment() -> dict:
    """What the timings depend on."""
    return {
        "mvnrob": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "simd": simd_level(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
