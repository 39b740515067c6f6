"""From CUDA sources to objects whose functions run in place of kernel bodies on the shim.

nvcc makes PTX at the flags of setup.py, translate.py makes C++ of it, the C++ compiler an object of
every function. All of it lies in build/native/ptx, under a hash of what it was made from.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
import native_build
from translate import Module

CUDA = native_build.CSRC / "cuda"
# Of the module of tests/native that launches them.
SOURCES = {
    "shim_kernel_bindings.cpp": (
        "bvn_cdf", "mendell_elston", "pivoted_cholesky", "mvn_cdf_float", "mvn_cdf_double",
        "standard_normal",
    ),
    "shim_jac_cov_bindings.cpp": (
        "jac_cov", "jac_cov_float", "jac_cov_double", "jac_cov_bfloat16",
    ),
}  # fmt: skip
# Every instruction rounds by itself, bits change their type in memory, and a function of 30,000
# instructions is to be compiled in half a minute.
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-math-errno",
         "-fPIC", "-fvisibility=hidden", f"-I{HERE}", f"-I{native_build.CSRC}"]  # fmt: skip


def find_nvcc():
    return shutil.which("nvcc")


def made(name, suffix, ingredients, make):
    """Path of build/native/ptx/<name>-<hash><suffix>, by make(path) unless it is there."""
    folder = native_build.ROOT / "build" / "native" / "ptx"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256("\0".join(ingredients).encode()).hexdigest()[:16]
    target = folder / f"{name}-{digest}{suffix}"
    with native_build.missing(target) as partial:
        if partial:
            make(partial)
    return target


def ptx(source, architecture):
    """Path of the PTX of csrc/cuda/<source>.cu, or of one beside this file, for an architecture,
    such as "90"."""
    path = next(p for p in (CUDA / f"{source}.cu", HERE / f"{source}.cu") if p.exists())
    version = subprocess.run(
        [find_nvcc(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    command = [find_nvcc(), "-ptx", "-O3", "-std=c++17", f"-arch=sm_{architecture}",
               f"-I{native_build.CSRC}", str(path)]  # fmt: skip
    # nvcc reads no header of the shim.
    headers = [p for p in native_build.with_headers(path) if p.parent.name != "shim"]
    return made(
        f"{source}.{architecture}",
        ".ptx",
        [version, *command, *(p.read_text() for p in headers)],
        lambda target: subprocess.run([*command, "-o", str(target)], check=True),
    )


def objects(source, architecture, kernels="."):
    """Objects of the kernels of <source>.cu (see ptx) whose names match, and of what they call."""
    text = ptx(source, architecture).read_text()
    return objects_of(text, f"{source}.{architecture}", kernels)


def objects_of(text, name, kernels="."):
    """The same of PTX."""
    flags = list(FLAGS)
    if not native_build.missing_features("avx2"):
        flags += native_build.ISA_FLAGS["avx2"]
    headers = [(HERE / "machine.h").read_text()]
    module = Module(name, text)
    jobs = {}
    left = [f for f in module.functions.values() if f.is_entry and re.search(kernels, f.name)]
    while left:
        function = left.pop()
        if function.name not in jobs:
            jobs[function.name] = module.source(function)
            left += [module.functions[n] for n in function.calls if n in module.functions]

    def make(job):
        function, source = job
        # Names of templates are long; the hash is what tells them apart.
        return compiled(f"{name}.{function[-60:]}", source, flags, headers)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(make, jobs.items()))


def compiled(name, text, flags, headers):
    def make(target):
        source = target.with_suffix(".cpp")
        source.write_text(text)
        command = [native_build.compiler(), *flags, "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True)
        source.unlink()

    return made(name, ".o", [native_build.compiler(), *flags, *headers, text], make)


def machine():
    """The object that all others need."""
    headers = [p.read_text() for p in native_build.with_headers(HERE / "machine.cpp")]
    return compiled("machine", (HERE / "machine.cpp").read_text(), FLAGS, headers)


def every_object(program, architecture):
    """All that SOURCES names for a module."""
    found = [machine()]
    for source in SOURCES[program]:
        found += objects(source, architecture)
    return found
