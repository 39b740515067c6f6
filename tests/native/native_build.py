"""Compiles a C++ source of tests/native into a Python module, per instruction set."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MATH = ROOT / "csrc" / "math"

# As in setup.py: what is tested is what is shipped.
FLOAT_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
ISA_FLAGS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
}
CPU_FLAGS = {
    "generic": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"},
}


def compiler():
    """The C++ compiler: CXX, else c++."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "c++"


def missing_features(isa):
    """Features of an instruction set that this processor lacks, as Linux reports them."""
    if isa == "generic":
        return set()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return CPU_FLAGS[isa]
    line = next((row for row in text.splitlines() if row.startswith("flags")), "")
    return CPU_FLAGS[isa] - set(line.split())


def build_flags(isa):
    """Compiler flags shared by the test module and the benchmark."""
    return [
        "-std=c++17",
        *FLOAT_FLAGS,
        *ISA_FLAGS[isa],
        f"-DMVNROB_ISA={isa}",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",  # packs are passed by value only to functions that are inlined
        f"-I{MATH}",
    ]


def load(source, isa, folder=None):
    """The module compiled from tests/native/<source> for isa; rebuilt when a header changed."""
    import pybind11

    source = HERE / source
    name = f"{source.stem}_{isa}"
    flags = [
        *build_flags(isa),
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        f"-DMVNROB_MODULE={name}",
        f"-isystem{pybind11.get_include()}",
        f"-isystem{sysconfig.get_paths()['include']}",
    ]
    digest = hashlib.sha256(" ".join([compiler(), sys.version, *flags]).encode())
    for path in [source, *sorted(MATH.glob("*.h"))]:
        digest.update(path.read_bytes())
    folder = Path(folder or ROOT / "build" / "native")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        # Under another name first: several test processes may build at once.
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler(), *flags, str(source), "-o", str(partial)], check=True)
        partial.replace(target)
    spec = importlib.util.spec_from_file_location(name, target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
