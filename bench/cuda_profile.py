"""Runs Nsight Compute on bench/cuda_small.py and names the limiter of each kernel.

python -m bench.cuda_profile --ncu PATH --csv FILE

One line of FILE for each kernel and launch shape: launches, duration, registers, shared memory,
occupancy, and how busy each unit was in percent of its peak; `limiter` is the busiest of them. The
longest launch of a shape stands for it.
"""

import argparse
import csv
import io
import re
import subprocess
import sys

SECTIONS = (
    "SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy",
    "WarpStateStats", "SchedulerStats",
)  # fmt: skip
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


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--ncu", required=True)
    p.add_argument("--csv", required=True)
    p.add_argument("--seconds", type=float, default=45, help="then no call begins any more")
    p.add_argument("--launches", type=int, default=2, help="of each kernel and launch shape")
    args = p.parse_args()
    command = [args.ncu, "--csv", "--page", "raw", "--clock-control", "none"]
    for section in SECTIONS:
        command += ["--section", section]
    # Only our own kernels, whatever namespace they are in.
    command += ["--kernel-name-base", "mangled", "--kernel-name", "regex:.*mvnrob.*"]
    command += ["--filter-mode", "per-launch-config", "--launch-count", str(args.launches)]
    command += ["--target-processes", "all"]
    command += [
        sys.executable, "-m", "bench.cuda_small", "--set", "profile", "--seconds", str(args.seconds)
    ]  # fmt: skip
    print(" ".join(command), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows, units = read(done.stdout)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("==")]
    print("\n".join(said[-20:]))
    if done.returncode or not rows:
        print(done.stderr[-3000:])
        print(f"cuda_profile: ncu ended with {done.returncode} and {len(rows)} launches")
        return 1
    lines = summary(rows, units)
    keys = list(dict.fromkeys(key for line in lines for key in line))
    with open(args.csv, "w", newline="") as f:
        writer = csv.DictWriter(f, keys, restval="")
        writer.writeheader()
        writer.writerows(lines)
    for line in lines:
        print(
            f"{line['kernel']:50} {line['launches']:4} launches {line['duration']:>16} "
            f"{line.get('limiter', '-')} {line.get('limiter_pct', '')}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
