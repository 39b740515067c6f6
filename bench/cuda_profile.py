"""Nsight Compute on one kernel after the other: how busy each unit was, what its warps waited for.

python -m bench cuda_profile --ncu PATH --csv FILE [--seconds 90] [--instructions FOLDER] [KERNEL ...]

Each kernel has a process of its own with its own limit of time, those first of which most is to be
learned, and FILE has a kernel's line as soon as it is there, and so has a .json file beside it (with
environment.json of that folder, which bench/gpu.sh writes): duration, registers, shared memory,
occupancy, how busy each unit was in percent of its peak (`limiter` is the busiest of them), and the
warps that waited for each reason. Where the counters are not permitted that is said at once; exit code
77. With --instructions FOLDER, KERNEL.csv there has each machine instruction's executions and the samples
of warps that stood at it, by reason, as ncu's source page has them, and KERNEL.ncu-rep ncu's own report.
"""

import argparse
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

#: The kernel, as .ci/registers.txt has it; its mangled name, in part; a call of bench/cuda_calls.py.
KERNELS = (
    ("MvnCdfSampleTensor", "18MvnCdfSampleTensorE", "sums n=999"),
    ("MvnCdfPlan<float,256>", "10MvnCdfPlanIfLi256E", "mvn_cdf n=999 1e-2"),
    ("JacCovTensor<float>", "12JacCovTensorIfE", "jac_cov 1000x3072 float32"),
    ("MvnCdfPlan<float,128>", "10MvnCdfPlanIfLi128E", "mvn_cdf n=99 one row"),
    ("MvnCdfSampleTensorDouble", "24MvnCdfSampleTensorDoubleE", "sums n=999 float64"),
    ("JacCovGram", "10JacCovGramE", "jac_cov 1000x3072 bfloat16"),
    ("MvnCdfSampleSmall<float>", "17MvnCdfSampleSmallIfE", "sums n=9"),
    # That of float32 never runs where two blocks of the tensor sampler fit.
    ("MvnCdfSampleBlocked<double>", "19MvnCdfSampleBlockedIdE", "sums n=64 float64"),
    ("MvnCdfPathwiseBlocked<float,false>", "21MvnCdfPathwiseBlockedIfLb0E", "slopes n=99"),
    ("MvnCdfGrow<float>", "10MvnCdfGrowIfE", "full rank n=2048"),
    ("BvnCdf", "6BvnCdfE", "bvn_cdf"),
    ("StandardNormal", "14StandardNormalE", "standard_normal"),
    ("NearestEnds", "11NearestEndsE", "nearest_ends"),
)  # fmt: skip
#: Of each a few passes: all sections take five times as long.
SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats", "SchedulerStats")
#: What a profiler says that will say it of every kernel.
HOPELESS = ("ERR_NVGPUCTRPERM", "LibraryNotLoaded", "Failed to initialize the profiler")
SKIPPED = 77
KEY = ("Kernel Name", "Block Size", "Grid Size")
DURATION = "gpu__time_duration.sum"
# How busy a unit was. Units that the chip or the version lacks are simply absent.
UNITS = re.compile(
    r"(sm__inst_executed_pipe_\w+|sm__pipe_\w+_cycles_active|sm__inst_issued|"
    r"sm__issue_active|l1tex__throughput|lts__throughput|dram__throughput|gpu__dram_throughput|"
    r"l1tex__data_bank_\w+)\.avg\.pct_of_peak_sustained_(active|elapsed)$"
)
OTHERS = re.compile(
    r"(launch__registers_per_thread|launch__shared_mem_per_block\w*|"
    r"sm__warps_active\.avg\.pct_of_peak_sustained_active|"
    r"sm__throughput\.avg\.pct_of_peak_sustained_elapsed|"
    r"gpu__compute_memory_throughput\.avg\.pct_of_peak_sustained_elapsed|"
    r"smsp__cycles_active\.avg|sm__cycles_elapsed\.avg\.per_second|"
    r"smsp__average_warps_issue_stalled_\w+_per_issue_active\.ratio)$"
)


def read(text):
    """Rows of `ncu --csv --page raw`: a line of names, a line of units, then one a launch."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return [], {}
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[start:]))))
    # The units come without an ID.
    units = rows.pop(0) if rows and not rows[0]["ID"].strip() else {}
    return [row for row in rows if (row["ID"] or "").strip().isdigit()], units


def number(text):
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def short(name):
    """Without namespaces and arguments; the binaries' check has the same idea of a name."""
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|\b\w+::", "", name)
    return re.sub(r"^void ", "", name).partition("(")[0].replace(" ", "")


def summary(rows, units):
    shapes = {}
    for row in rows:
        shapes.setdefault(tuple(row.get(k, "") for k in KEY), []).append(row)
    out = []
    for (name, block, grid), launches in shapes.items():
        longest = max(launches, key=lambda row: number(row.get(DURATION)) or 0.0)
        line = {"kernel": short(name), "block": block, "grid": grid, "launches": len(launches)}
        line["duration"] = f"{longest.get(DURATION, '')} {units.get(DURATION, '')}".strip()
        busy = {k: v for k in longest if UNITS.match(k) and (v := number(longest[k])) is not None}
        if busy:
            first = max(busy, key=busy.get)
            line |= {"limiter": first.split(".")[0], "limiter_pct": busy[first]}
        line |= {k: v for k in longest if OTHERS.match(k) and (v := number(longest[k])) is not None}
        out.append(line | busy)
    return out


def command(ncu, pattern, call, report=None):
    """Of one kernel's process, which ends after its first launch."""
    words = [ncu, "--csv", "--page", "raw", "--clock-control", "none", "--replay-mode", "kernel"]
    sections = SECTIONS
    if report:
        # What goes into a file is not printed: `read_report` has it from there.
        words = [word for word in words if word not in ("--csv", "--page", "raw")]
        words += ["--export", str(report), "--force-overwrite"]
        sections += ("SourceCounters",)
    for section in sections:
        words += ["--section", section]
    words += ["--kernel-name-base", "mangled", "--kernel-name", f"regex:{pattern}"]
    words += ["--launch-count", "1", "--kill", "yes"]
    return [*words, sys.executable, "-m", "bench.cuda_profile", "--call", call]


def read_report(ncu, report, seconds):
    """What ncu would have printed; the instructions' page goes beside the report."""
    page = lambda name: [ncu, "--import", str(report), "--csv", "--page", name]
    said, ended = run([*page("source"), "--print-source", "sass"], seconds)
    if ended:
        report.with_suffix(".csv").write_text(said)
    return run(page("raw"), seconds)


def run(words, seconds):
    """(what a process and its children said, whether it ended in time)"""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=seconds)[0], True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0], False


def write(path, lines):
    """All lines so far: their columns differ."""
    keys = list(dict.fromkeys(key for line in lines for key in line))
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, keys, restval="")
        writer.writeheader()
        writer.writerows(lines)
    about = Path(path).parent / "environment.json"
    report = json.loads(about.read_text()) if about.exists() else {}
    report["command"] = "python -m bench cuda_profile"
    content = json.dumps({"environment": report, "rows": lines}, indent=1)
    Path(path).with_suffix(".json").write_text(content + "\n")


def stalls(line):
    """The two reasons for which most warps waited."""
    prefix, suffix = "smsp__average_warps_issue_stalled_", "_per_issue_active.ratio"
    found = {k: v for k, v in line.items() if k.startswith(prefix) and k.endswith(suffix)}
    most = sorted(found, key=found.get, reverse=True)[:2]
    return ", ".join(f"{k[len(prefix) : -len(suffix)]} {found[k]:.2g}" for k in most)


def profile(args):
    end, lines, missing = time.monotonic() + args.seconds, [], []
    for name, pattern, call in KERNELS:
        if args.kernels and name not in args.kernels:
            continue
        left = end - time.monotonic()
        if left < 4:
            missing.append(f"{name} (no time left)")
            continue
        start = time.monotonic()
        limit = min(left, args.seconds_a_kernel)
        if args.instructions:
            report = args.instructions / (re.sub(r"\W+", "_", name).strip("_") + ".ncu-rep")
            said, ended = run(command(args.ncu, pattern, call, report), limit)
            if report.exists():
                said, ended = read_report(args.ncu, report, limit)
        else:
            said, ended = run(command(args.ncu, pattern, call), limit)
        if found := next((word for word in HOPELESS if word in said), None):
            print(f"cuda_profile: ncu cannot read this GPU's counters here: {found}")
            return SKIPPED
        rows, units = read(said)
        if not rows:
            missing.append(f"{name} ({'nothing profiled' if ended else 'out of time'})")
            print("\n".join(line for line in said.splitlines()[-15:]), flush=True)
            continue
        found = [{**line, "kernel": name, "call": call} for line in summary(rows, units)]
        lines += [line | {"waits": stalls(line)} for line in found]
        write(args.csv, lines)
        print(
            f"{name:30} {lines[-1]['duration']:>14} {lines[-1].get('limiter', '-')} "
            f"{lines[-1].get('limiter_pct', '')}; waits: {lines[-1]['waits'] or '-'} "
            f"({time.monotonic() - start:.0f} s)",
            flush=True,
        )
    if missing:
        print(f"cuda_profile: not profiled: {', '.join(missing)}")
    return 0 if lines else 1


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "kernels", nargs="*", metavar="KERNEL", help="of " + ", ".join(k[0] for k in KERNELS)
    )
    p.add_argument("--ncu")
    p.add_argument("--csv")
    p.add_argument("--seconds", type=float, default=90, help="of all kernels")
    p.add_argument("--seconds-a-kernel", type=float, default=20)
    p.add_argument("--instructions", type=Path, metavar="FOLDER")
    p.add_argument("--call", help="what the profiler runs: one call of bench/cuda_calls.py")
    p.add_argument("--device", default="cuda", help="of that call")
    args = p.parse_args()
    if args.call:
        import torch

        from bench import cuda_calls

        cuda_calls.calls()[args.call](args.device)()
        if args.device == "cuda":
            torch.cuda.synchronize()
        return 0
    if not (args.ncu and args.csv):
        p.error("--ncu and --csv must be given")
    if args.instructions:
        args.instructions.mkdir(parents=True, exist_ok=True)
    return profile(args)


if __name__ == "__main__":
    sys.exit(main())
