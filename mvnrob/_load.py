"""Loads the native modules and remembers why the CUDA one is missing, for the error that says so."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

try:
    from . import _C  # noqa: F401  (registers the schemas and the CPU kernels)
except ImportError as error:
    if Path(__file__).parent.parent.joinpath("setup.py").exists():
        raise ImportError(
            "mvnrob: this is its source folder, which has no native module. Start Python elsewhere, "
            "or build in place with `pip install --no-build-isolation -e .`"
        ) from error
    raise

#: Why CUDA tensors cannot be used, or None when they can.
cuda_unavailable: str | None = None

if torch.version.cuda is None:
    cuda_unavailable = f"torch {torch.__version__} is built without CUDA"
else:
    try:
        importlib.import_module("mvnrob._C_cuda")
    except ImportError as error:
        cuda_unavailable = (
            f"the module mvnrob._C_cuda could not be loaded ({error}); "
            "build with nvcc on PATH and MVNROB_CUDA=1"
        )


def simd_level() -> str:
    """Instruction set of the CPU kernels: ``"generic"``, ``"avx2"`` or ``"avx512"``.

    The best one that the processor has; the environment variable ``MVNROB_SIMD``, read once at the
    first call of a kernel, chooses a lower one. Costs nothing.

    Raises:
        RuntimeError: ``MVNROB_SIMD`` names none of them, or one that the processor or the build lacks.
    """
    return torch.ops.mvnrob.simd_level()
