"""What an installation consists of: names, versions, binaries, environment variables."""

import dataclasses
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mvnrob

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(mvnrob.__file__).resolve().parent


def run_python(code, *, cwd, **environment):
    """A fresh interpreter; cwd decides nothing about imports as long as it holds no mvnrob/."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", mvnrob.__all__)
def test_public_name_exists_and_is_documented(name):
    thing = getattr(mvnrob, name)
    if not inspect.ismodule(thing) and not callable(thing):
        return  # a constant
    # NamedTuple and dataclass write a signature as the docstring when there is none
    text = inspect.getdoc(thing)
    assert text and not text.startswith(f"{name}("), f"mvnrob.{name} has no docstring"
    # help() shows no comments: what a result holds is said in the docstring
    fields = [f.name for f in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else []
    for field in (*fields, *getattr(thing, "_fields", ())):
        assert f"``{field}``" in text, f"mvnrob.{name} does not say what {field} is"


def test_public_names_are_sorted_and_unique():
    assert list(mvnrob.__all__) == sorted(set(mvnrob.__all__))


def test_version_agrees_with_the_metadata():
    assert mvnrob.__version__ == importlib.metadata.version("mvnrob")
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', project, re.MULTILINE).group(1) == mvnrob.__version__


def test_binaries_are_abi3():
    names = sorted(path.name for path in PACKAGE.rglob("*.so"))
    assert "_C.abi3.so" in names
    assert set(names) <= {"_C.abi3.so", "_C_cuda.abi3.so"}


def distribution():
    """That which mvnrob was imported from: a build leaves an egg-info in the source tree, too, which
    tests of bench/ have on their path."""
    found = list(PACKAGE.parent.glob("mvnrob-*.dist-info"))
    if not found:
        pytest.skip("editable install: no files of its own")
    return importlib.metadata.Distribution.at(found[0])


def test_distribution_holds_the_package_alone():
    files = distribution().files
    places = {Path(file).parts[0] for file in files}
    information = {place for place in places if place.endswith(".dist-info")}
    assert len(information) == 1
    script = {Path(file) for file in files if Path(file).parts[0] == ".."}
    assert [path.name for path in script] == ["mvnrob"]  # the command
    assert places - information - {".."} == {"mvnrob"}
    endings = {Path(file).suffix for file in files if Path(file).parts[0] == "mvnrob"}
    assert endings <= {".py", ".so", ".pyc", ".html"}
    wheel = next(file for file in files if file.name == "WHEEL").read_text()
    assert re.search(r"^Tag: cp310-abi3-", wheel, re.MULTILINE), wheel


def test_licence_is_shipped():
    assert distribution().metadata["License-Expression"] == "MIT AND BSD-3-Clause"
    licence = (ROOT / "LICENSE").read_text()
    shipped = [file for file in distribution().files if file.name == "LICENSE"]
    assert [file.read_text() for file in shipped] == [licence]
    (others,) = (f for f in distribution().files if f.name == "joe_kuo.txt")
    assert others.read_text() == (ROOT / "LICENSES" / "joe_kuo.txt").read_text()


def test_core_imports_no_extra(tmp_path):
    """Run-time dependencies of the core are torch and numpy."""
    extras = ("scipy", "sklearn", "skimage", "matplotlib", "rich", "PIL", "mpmath")
    code = f"import sys, mvnrob; print([name for name in {extras!r} if name in sys.modules])"
    without = f"import sys, torch; print([name for name in {extras!r} if name in sys.modules])"
    ours, torchs = run_python(code, cwd=tmp_path), run_python(without, cwd=tmp_path)
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == torchs.stdout


def test_simd_level_can_be_lowered(tmp_path):
    code = "import mvnrob; print(mvnrob.simd_level())"
    done = run_python(code, cwd=tmp_path, MVNROB_SIMD="generic")
    assert done.stdout.strip() == "generic", done.stderr


def test_unknown_simd_level_is_an_error(tmp_path):
    code = "import mvnrob; print(mvnrob.simd_level())"
    done = run_python(code, cwd=tmp_path, MVNROB_SIMD="sse9")
    assert done.returncode != 0
    assert "mvnrob: MVNROB_SIMD must be generic, avx2 or avx512, got sse9" in done.stderr


def test_bad_build_switch_is_an_error():
    """setup.py reads MVNROB_CUDA before it builds anything."""
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "MVNROB_CUDA": "yes"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "mvnrob: MVNROB_CUDA must be auto, 0 or 1, got 'yes'" in done.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
def test_a_torch_without_cuda_gets_no_cuda_module(tmp_path):
    """Minutes of compiling for a module that it cannot load, unless it is asked for."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    wanted = (
        "import os, setuptools; setuptools.setup = dict; import setup\n"
        "for choice in ('auto', '1', '0'):\n"
        "    os.environ['MVNROB_CUDA'] = choice\n"
        "    setup.extensions()\n"
        "    print(setup.wants_cuda())"
    )
    done = subprocess.run(
        [sys.executable, "-c", wanted],
        cwd=ROOT,
        env={**os.environ, "MVNROB_CUDA": "0", "CUDA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [line for line in done.stdout.splitlines() if line in ("True", "False")]
    assert answers == ["False", "True", "False"]


def test_runtime_library_of_a_toolkit(tmp_path):
    """A toolkit of its own has libcudart.so, one of packages only the file with its version."""
    wanted = (
        "import setuptools, sys; setuptools.setup = dict; import setup; from pathlib import Path\n"
        "for top in sys.argv[1:]:\n"
        "    print(*setup.cudart_options(Path(top)))"
    )
    folders = []
    for files in ((), ("libcudart.so.13",), ("libcudart.so.13", "libcudart.so")):
        folders.append(tmp_path / str(len(files)) / "lib")
        folders[-1].mkdir(parents=True)
        for name in files:
            (folders[-1] / name).touch()
    done = subprocess.run(
        [sys.executable, "-c", wanted, *(str(folder.parent) for folder in folders)],
        cwd=ROOT,
        env={**os.environ, "MVNROB_CUDA": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = done.stdout.splitlines()[-3:]
    assert answers == [
        "-lcudart", str(folders[1] / "libcudart.so.13"), f"-L{folders[2]} -lcudart"
    ]  # fmt: skip


def test_cuda_build_without_nvcc_is_an_error(tmp_path):
    environment = {**os.environ, "MVNROB_CUDA": "1", "PATH": str(tmp_path)}
    environment.pop("CUDA_HOME", None)
    environment.pop("CUDA_PATH", None)
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "MVNROB_CUDA=1 but nvcc was found neither in CUDA_HOME nor on PATH" in done.stderr


def test_missing_package_names_the_extra():
    from mvnrob._extras import MissingExtra, require

    with pytest.raises(MissingExtra, match=r"no-such-package is needed here .*mvnrob\[demo\]"):
        require("mvnrob_no_such_module", "no-such-package", "demo")


def test_error_inside_an_installed_package_passes(tmp_path, monkeypatch):
    (tmp_path / "mvnrob_broken_module.py").write_text("import mvnrob_absent_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    from mvnrob._extras import require

    with pytest.raises(ModuleNotFoundError, match="mvnrob_absent_dependency") as caught:
        require("mvnrob_broken_module", "broken", "demo")
    assert caught.value.name == "mvnrob_absent_dependency"


CHECKS = ROOT / ".ci" / "check_binaries.py"


def run_check(*arguments):
    command = [sys.executable, str(CHECKS), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_installed_binaries_use_the_stable_interface_alone():
    done = run_check("abi", PACKAGE)
    assert done.returncode == 0, done.stderr


def test_abi_check_finds_a_cpp_symbol_of_torch(tmp_path):
    """The check above can fail: a module that calls c10:: is refused."""
    source = tmp_path / "bad.cpp"
    source.write_text("namespace c10 { void f(int); }\nvoid g() { c10::f(1); }\n")
    compiler = os.environ.get("CXX", "c++").split()
    target = tmp_path / "_C.abi3.so"
    subprocess.run([*compiler, "-shared", "-fPIC", source, "-o", target], check=True)
    done = run_check("abi", tmp_path)
    assert done.returncode == 1
    assert "c10" in done.stderr


@pytest.mark.parametrize("flags", [[], ["-Wl,--no-as-needed", "-ltorch"]])
def test_abi_check_finds_a_cuda_module_without_libtorch(tmp_path, flags):
    """Beside a torch with CUDA such a module would not load."""
    source = tmp_path / "empty.cpp"
    source.write_text("")
    compiler = [*os.environ.get("CXX", "c++").split(), "-shared", "-fPIC", source]
    libraries = f"-L{Path(torch.__file__).parent / 'lib'}"
    for name in ("_C", "_C_cuda"):
        target = tmp_path / f"{name}.abi3.so"
        subprocess.run([*compiler, libraries, *flags, "-o", target], check=True)
    done = run_check("abi", tmp_path)
    assert done.returncode == (not flags)
    assert flags or "_C_cuda.abi3.so: must need libtorch.so" in done.stderr


def ptxas_report(symbol, registers, architecture="sm_90", stack=0, spill=0, shared=""):
    """A kernel in ptxas' words (nvcc 13.0)."""
    return (
        f"ptxas info    : Compiling entry function '{symbol}' for '{architecture}'\n"
        f"ptxas info    : Function properties for {symbol}\n"
        f"    {stack} bytes stack frame, {spill} bytes spill stores, {spill} bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers{shared}\n"
        "ptxas info    : Compile time = 100.000 ms\n"
    )


PIECE = (
    "ptxas info    : Function properties for SYMBOL\n"
    "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
)
# mvnrob::cuda::(anonymous namespace)::copy(double*, long), the namespace as nvcc names it
COPY = "_ZN6mvnrob4cuda39_GLOBAL__N__ac3d6bf6_7_copy_cu_74d11f2b4copyEPdl"
# void mvnrob::cuda::kernel<mvnrob::kernels::Sum<float, 16> >(mvnrob::kernels::Sum<float, 16>::Args)
SUM = "_ZN6mvnrob4cuda6kernelINS_7kernels3SumIfLi16EEEEEvNT_4ArgsE"


@pytest.mark.parametrize(
    ("log", "table", "messages"),
    [
        (
            ptxas_report(COPY, 20, "sm_80") + ptxas_report(COPY, 24) + ptxas_report(SUM, 80),
            "copy 24  # a remark\n\nSum<float,16> 80\n",
            [],
        ),
        (
            ptxas_report(COPY, 20, "sm_80") + ptxas_report(COPY, 25),
            "copy 24",
            ["copy on sm_90: 25 registers, 24 are allowed"],
        ),
        (
            ptxas_report(SUM, 80),
            "copy 24",
            [
                "Sum<float,16>: not in registers.txt; it needs a line `Sum<float,16> 80`",
                "registers.txt: copy is no kernel of this build",
            ],
        ),
        (ptxas_report(COPY, 24, stack=8), "copy 24", ["8 bytes of stack, 0 are allowed"]),
        (ptxas_report(COPY, 24, stack=8), "copy 24 8", []),
        (ptxas_report(COPY, 24, spill=4), "copy 24", ["copy on sm_90: 8 bytes spilled"]),
        # a function that was not inlined, after its kernel
        (
            ptxas_report(COPY, 24)
            + PIECE.replace("SYMBOL", "_ZN6mvnrob7kernels13mean_of_pivotEdd"),
            "copy 24",
            [],
        ),
        (
            ptxas_report(COPY, 24) + PIECE.replace("SYMBOL", "_ZN6mvnrob7kernels3runERKd"),
            "copy 24",
            ["mvnrob::kernels::run(double const&) is compiled apart from its kernel"],
        ),
        # `make cuda` compiles several files at once
        (
            ptxas_report(COPY, 24).splitlines(keepends=True)[0] + ptxas_report(SUM, 80),
            "copy 24",
            [f"log.txt: {SUM} begins before the registers of {COPY} are told"],
        ),
        (ptxas_report(COPY, 24)[:-120], "copy 24", [f"the registers of {COPY} are not told"]),
        ("", "copy 24", ["no ptxas report"]),
        (ptxas_report(COPY, 24), "copy: 24", ["not in registers.txt", "copy: is no kernel"]),
        (ptxas_report(COPY, 24), "copy many", ["registers.txt:1: not NAME REGISTERS [STACK]"]),
        (ptxas_report(COPY, 24), "copy 24\ncopy 30", ["registers.txt:2: copy has a line already"]),
    ],
)
def test_register_check(tmp_path, log, table, messages):
    (tmp_path / "log.txt").write_text(log)
    (tmp_path / "registers.txt").write_text(table)
    done = run_check("registers", tmp_path / "log.txt", tmp_path / "registers.txt")
    assert done.returncode == bool(messages), done.stderr
    assert len(done.stderr.splitlines()) == len(messages)
    for message, line in zip(messages, done.stderr.splitlines(), strict=True):
        assert message in line


def test_register_check_tells_shared_memory(tmp_path):
    (tmp_path / "log.txt").write_text(ptxas_report(COPY, 24, shared=", 1024 bytes smem"))
    (tmp_path / "registers.txt").write_text("copy 24\n")
    done = run_check("registers", tmp_path / "log.txt", tmp_path / "registers.txt")
    assert done.stdout == "copy   24 registers, 0 stack, 1024 shared  (sm_90:24)\n"
