"""Compiles a C++ source of tests/native into a Python module, per instruction set, or a program.

What was compiled lies in build/native under a hash of the compiler, the flags, the source and every
header of the project that it includes.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
MATH = CSRC / "math"

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
    """Compiler flags shared by the test modules, the programs and the benchmark."""
    return [
        "-std=c++17",
        *FLOAT_FLAGS,
        *ISA_FLAGS[isa],
        f"-DMVNROB_ISA={isa}",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",  # packs are passed by value only to functions that are inlined
        f"-I{CSRC}",
        f"-I{MATH}",
    ]


def with_headers(source):
    """The source and every header it includes, directly or not, from its folder or from csrc."""
    found, left = set(), [source]
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        for name in re.findall(r'^\s*#include "([^"]+)"', path.read_text(), re.MULTILINE):
            places = (folder / name for folder in (path.parent, CSRC, MATH))
            left += [place.resolve() for place in places if place.exists()]
    return sorted(found)


def compiled(source, name, suffix, flags, folder=None):
    """Path of what the compiler makes of the source, from an earlier call if nothing changed."""
    digest = hashlib.sha256(" ".join([compiler(), sys.version, *flags]).encode())
    for path in with_headers(source):
        digest.update(path.read_bytes())
    return made([source], name, digest, suffix, flags, folder)


def linked(objects, name, suffix, flags, folder=None):
    """The same of objects, whose names tell what is in them."""
    words = [compiler(), *flags, *(path.name for path in objects)]
    return made(objects, name, hashlib.sha256(" ".join(words).encode()), suffix, flags, folder)


def made(inputs, name, digest, suffix, flags, folder):
    folder = Path(folder or ROOT / "build" / "native")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{digest.hexdigest()[:16]}{suffix}"
    with missing(target) as partial:
        if partial:
            words = [compiler(), *flags, *map(str, inputs), "-o", str(partial)]
            subprocess.run(words, check=True)
    return target


@contextlib.contextmanager
def missing(target):
    """Another name to make a file under, which the target then takes; None where it is there.

    Whoever else wants the same file meanwhile, in whatever process, waits instead of making it twice.
    """
    with open(target.with_name(f"{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        partial = target.with_name(f"{os.getpid()}-{target.name}")
        yield partial
        partial.replace(target)


def module_file(source, isa, folder=None, objects=None):
    """Path of the module that `load` loads."""
    import pybind11

    if objects is None and os.environ.get("MVNROB_SHIM_PTX"):
        objects = every_ptx_object(source, os.environ["MVNROB_SHIM_PTX"])
    source = HERE / source
    name = f"{source.stem}_{isa}"
    flags = [
        *build_flags(isa),
        "-fPIC",
        "-fvisibility=hidden",
        f"-DMVNROB_MODULE={name}",
        f"-isystem{pybind11.get_include()}",
        f"-isystem{sysconfig.get_paths()['include']}",
    ]
    if source.stem.startswith("shim_"):
        flags.append("-O2")  # not what is shipped: as fast as -O3, and compiled sooner
    # In two steps: what is linked to more objects is compiled once.
    module = compiled(source, name, ".o", [*flags, "-c"], folder)
    return linked([module, *(objects or ())], name, ".so", ["-shared"], folder)


def load(source, isa, folder=None, objects=None):
    """The module compiled from tests/native/<source> for isa; rebuilt when a header changed.

    With objects linked to it: None takes every kernel as translated PTX where MVNROB_SHIM_PTX names
    an architecture (ptx/ptx_objects.py), such as 90.
    """
    target = module_file(source, isa, folder, objects)
    name = f"{Path(source).stem}_{isa}"
    # pybind11 keeps one module for each qualified name.
    spec = importlib.util.spec_from_file_location(f"{target.stem}.{name}", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if objects is None and launches_ptx(source):
        seed = int(os.environ.get("MVNROB_PTX_APPROXIMATE", "0"))
        module.use_stand_ins(True, required=True, approximate=seed)
    return module


def every_ptx_object(program, architecture):
    """Objects of the kernels that a program launches; none where it launches no kernel of csrc."""
    if not launches_ptx(program):
        return ()
    import ptx_objects

    return ptx_objects.every_object(program, architecture)


def launches_ptx(program):
    """Whether MVNROB_SHIM_PTX asks for translated kernels, and the program launches any."""
    if not os.environ.get("MVNROB_SHIM_PTX"):
        return False
    sys.path.append(str(HERE / "ptx"))
    import ptx_objects

    return program in ptx_objects.SOURCES


def executable(source, name, flags, folder=None):
    """Path of the program compiled from tests/native/<source>; flags come after the usual ones."""
    source = HERE / source
    return compiled(source, name, ".out", [*build_flags("generic"), *flags], folder)


def links_with(flags):
    """Whether the compiler has what the flags ask for, such as the run-time of a sanitizer."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cpp")
        source.write_text("int main() {}\n")
        command = [compiler(), *flags, str(source), "-o", str(source.with_suffix(".out"))]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
