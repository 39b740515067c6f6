"""Builds the two native modules of mvnrob.

``mvnrob._C``       schemas and CPU kernels. Its SIMD sources are compiled once per instruction set
                    and chosen at run time, so a wheel runs on any x86-64 machine (or another
                    architecture, with the generic set alone).
``mvnrob._C_cuda``  CUDA kernels. ``MVNROB_CUDA=auto|0|1``: ``auto`` builds it where nvcc is found
                    and torch has CUDA (another cannot load it), ``1`` insists on it, with any
                    torch, ``0`` leaves it out. ``TORCH_CUDA_ARCH_LIST`` (such as ``8.0;9.0+PTX``) chooses
                    the architectures.

Both use only torch's stable ABI (target 2.10) and Python's limited API, so one build serves later
versions of either. nvcc is called here rather than through ``CUDAExtension``, which refuses a torch
without CUDA; the ``.cu`` files include no torch header.
"""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    sys.exit(
        f"mvnrob: building needs torch 2.10 or later in this environment ({error}). Install it, "
        "then build with `pip install --no-build-isolation .`"
    )

ROOT = Path(__file__).parent.resolve()
TARGET = ["-DPy_LIMITED_API=0x030A0000", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
# No -ffast-math: NaN and infinities are part of the mathematics. These two only free sqrt and
# selects from errno and from floating-point traps, which nobody here reads.
FLOAT_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]

SIMD_SOURCES = [
    "csrc/cpu/mvn_cdf_simd.cpp",
    "csrc/cpu/mvn_cdf_factor_simd.cpp",
    "csrc/cpu/jac_cov_simd.cpp",
    "csrc/cpu/mendell_elston_simd.cpp",
    "csrc/cpu/mvn_cdf_pathwise_simd.cpp",
    "csrc/cpu/standard_normal_simd.cpp",
]
SIMD_LEVELS = {"generic": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    SIMD_LEVELS["avx2"] = ["-mavx2", "-mfma"]
    SIMD_LEVELS["avx512"] = [
        "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma",
        "-mprefer-vector-width=512",
    ]  # fmt: skip

CPU_SOURCES = [
    "csrc/ops.cpp",
    "csrc/cpu/simd_dispatch.cpp",
    "csrc/cpu/generators.cpp",
    "csrc/cpu/bvn_cdf.cpp",
    "csrc/cpu/closed_form.cpp",
    "csrc/cpu/jac_cov.cpp",
    "csrc/cpu/mendell_elston.cpp",
    "csrc/cpu/mendell_elston_sweep.cpp",
    "csrc/cpu/mvn_cdf.cpp",
    "csrc/cpu/mvn_cdf_batch.cpp",
    "csrc/cpu/mvn_cdf_factor.cpp",
    "csrc/cpu/mvn_cdf_nearest.cpp",
    "csrc/cpu/mvn_cdf_pack.cpp",
    "csrc/cpu/mvn_cdf_pathwise.cpp",
    "csrc/cpu/mvn_cdf_pathwise_row.cpp",
    "csrc/cpu/mvn_cdf_problem.cpp",
    "csrc/cpu/mvn_cdf_points.cpp",
    "csrc/cpu/mvn_cdf_row.cpp",
    "csrc/cpu/mvn_cdf_series.cpp",
    "csrc/cpu/mvn_cdf_sums.cpp",
    "csrc/cpu/mvn_cdf_tilt.cpp",
    "csrc/cpu/mvn_cdf_union.cpp",
    "csrc/cpu/one_factor.cpp",
    "csrc/cpu/pivoted_cholesky.cpp",
    "csrc/cpu/standard_normal.cpp",
]
CUDA_SOURCES = [
    "csrc/cuda/module.cpp",
    "csrc/cuda/bvn_cdf.cpp",
    "csrc/cuda/jac_cov.cpp",
    "csrc/cuda/mendell_elston.cpp",
    "csrc/cuda/mvn_cdf.cpp",
    "csrc/cuda/mvn_cdf_pathwise.cpp",
    "csrc/cuda/nearest_ends.cpp",
    "csrc/cuda/pivoted_cholesky.cpp",
    "csrc/cuda/standard_normal.cpp",
]
CUDA_KERNELS = [
    "csrc/cuda/mvn_cdf_float.cu",
    "csrc/cuda/mvn_cdf_double.cu",
    "csrc/cuda/bvn_cdf.cu",
    "csrc/cuda/mendell_elston.cu",
    "csrc/cuda/nearest_ends.cu",
    "csrc/cuda/pivoted_cholesky.cu",
    "csrc/cuda/jac_cov_float.cu",
    "csrc/cuda/jac_cov_bfloat16.cu",
    "csrc/cuda/jac_cov_double.cu",
    "csrc/cuda/jac_cov.cu",
    "csrc/cuda/standard_normal.cu",
]
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"


def find_nvcc():
    """Path of nvcc and of its toolkit, or (None, None)."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(home, "bin", "nvcc") if home else None
    if nvcc is None or not nvcc.exists():
        found = shutil.which("nvcc")
        if found is None:
            return None, None
        nvcc = Path(found)
    # nvcc on PATH may be a wrapper script: its own dry run names the toolkit (TOP=).
    dry = subprocess.run(
        [nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False
    )
    for line in (dry.stderr + dry.stdout).splitlines():
        if "TOP=" in line:
            return nvcc, Path(line.split("TOP=")[1].strip()).resolve()
    return nvcc, nvcc.resolve().parent.parent


def cudart_options(top):
    """What links CUDA's runtime library of the toolkit ``top``. The packages of a registry, which torch
    brings, lack the name without a version: the file itself is linked then."""
    folders = [path for path in (top / "lib64", top / "lib") if path.is_dir()]
    if any((folder / "libcudart.so").exists() for folder in folders):
        return ["-L" + str(folder) for folder in folders] + ["-lcudart"]
    versions = sorted(path for folder in folders for path in folder.glob("libcudart.so.*"))
    return [str(versions[-1])] if versions else ["-lcudart"]


def gencode_flags():
    flags = []
    for name in os.environ.get("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES).split(";"):
        number = name.strip().removesuffix("+PTX").replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if name.strip().endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def wants_cuda():
    choice = os.environ.get("MVNROB_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"mvnrob: MVNROB_CUDA must be auto, 0 or 1, got {choice!r}")
    if choice == "0":
        return False
    found = find_nvcc()[0] is not None
    if choice == "1" and not found:
        sys.exit("mvnrob: MVNROB_CUDA=1 but nvcc was found neither in CUDA_HOME nor on PATH")
    return found and (choice == "1" or torch.version.cuda is not None)


def newest_header():
    return max(path.stat().st_mtime for path in ROOT.joinpath("csrc").rglob("*.h"))


class Build(BuildExtension):
    """Compiles the per-instruction-set and the CUDA objects, then lets torch do the rest."""

    def build_extension(self, ext):
        objects = []
        if ext.name == "mvnrob._C":
            objects = self.simd_objects()
        elif ext.name == "mvnrob._C_cuda":
            objects = self.cuda_objects()
        ext.extra_objects = [str(path) for path in objects]
        super().build_extension(ext)

    def simd_objects(self):
        compiler = os.environ.get("CXX", "c++").split()
        common = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", *FLOAT_FLAGS, *WARNINGS,
                  # GCC 12 warns of its own undefined-lane intrinsics.
                  "-Wno-maybe-uninitialized"]  # fmt: skip
        jobs = []
        for source in SIMD_SOURCES:
            for level, flags in SIMD_LEVELS.items():
                target = Path(self.build_temp, f"{Path(source).stem}.{level}.o").resolve()
                command = [*compiler, *common, *flags, f"-DMVNROB_ISA={level}", "-I", ROOT / "csrc"]
                jobs.append((source, target, [*command, "-c", ROOT / source, "-o", target]))
        return run_jobs(jobs)

    def cuda_objects(self):
        nvcc, _ = find_nvcc()
        # Warnings are errors where the Makefile asks nvcc for it: another release than CI's may warn.
        common = [nvcc, "-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas",
                  "-v,-warn-spills", *gencode_flags()]  # fmt: skip
        jobs = []
        for source in CUDA_KERNELS:
            target = Path(self.build_temp, f"{Path(source).stem}.cu.o").resolve()
            command = [*common, "-I", ROOT / "csrc", "-c", ROOT / source, "-o", target]
            jobs.append((source, target, command))
        return run_jobs(jobs)


def run_jobs(jobs):
    """Runs the compilations whose object is older than its source or any header."""
    stamp = newest_header()

    def run(job):
        source, target, command = job
        newest = max(stamp, (ROOT / source).stat().st_mtime, Path(__file__).stat().st_mtime)
        if target.exists() and target.stat().st_mtime > newest:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        print(" ".join(str(word) for word in command), flush=True)
        # Its output in one piece: ptxas' reports of several files would mix.
        done = subprocess.run(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(done.stdout, end="", flush=True)
        done.check_returncode()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, jobs))
    return [target for _, target, _ in jobs]


def extensions():
    options = {
        "include_dirs": [str(ROOT / "csrc")],
        "extra_compile_args": ["-O3", "-fvisibility=hidden", *TARGET, *FLOAT_FLAGS, *WARNINGS],
        "py_limited_api": True,
    }
    headers = [str(path.relative_to(ROOT)) for path in ROOT.joinpath("csrc").rglob("*.h")]
    simd_macro = [f"-DMVNROB_HAS_{level.upper()}" for level in SIMD_LEVELS]
    cpu_options = dict(options)
    cpu_options["extra_compile_args"] = options["extra_compile_args"] + simd_macro
    modules = [CppExtension("mvnrob._C", CPU_SOURCES, depends=headers, **cpu_options)]
    cuda = wants_cuda()
    if cuda:
        _nvcc, top = find_nvcc()
        cuda_options = dict(options)
        cuda_options["include_dirs"] = [*options["include_dirs"], str(top / "include")]
        cuda_options["extra_compile_args"] = [*options["extra_compile_args"], "-DUSE_CUDA"]
        modules.append(
            CppExtension(
                "mvnrob._C_cuda",
                CUDA_SOURCES,
                depends=headers,
                # The stream comes from libtorch_cuda, reached through libtorch, which defines nothing
                # of its own: a linker that drops such libraries leaves a module that does not load.
                extra_link_args=["-Wl,--no-as-needed", "-ltorch", *cudart_options(top)],
                **cuda_options,
            )
        )
    print(f"mvnrob: SIMD levels {', '.join(SIMD_LEVELS)}; CUDA module: {'yes' if cuda else 'no'}")
    return modules


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
