"""What ``mvnrob info`` prints."""

from __future__ import annotations

import importlib.metadata
import os

import torch

from .. import _load
from ..evaluation.manifest import environment

#: Packages that commands use, by the extra that brings them.
_PACKAGES = (
    "click", "pyarrow", "rich", "pillow", "matplotlib", "jinja2", "scikit-learn", "safetensors",
    "torchmetrics", "timm", "torchvision", "transformers", "datasets",
)  # fmt: skip


def lines() -> list[str]:
    """Name and value of everything that an answer or its speed depends on."""
    out = [f"{name:12} {value}" for name, value in environment().items()]
    out.append(f"{'threads':12} {torch.get_num_threads()} of {os.cpu_count()} processors")
    if _load.cuda_unavailable:
        out.append(f"{'CUDA kernels':12} no: {_load.cuda_unavailable}")
    else:
        out.append(f"{'CUDA kernels':12} yes")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory = properties.total_memory / 2**30
        out.append(f"{f'cuda:{number}':12} {properties.name}, {memory:.0f} GiB")
    for package in _PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        out.append(f"{package:12} {version}")
    return out
