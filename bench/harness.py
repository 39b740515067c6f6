"""What every benchmark shares: where it ran, how time is taken, how results are written."""

import argparse
import csv
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
# What `python -m bench` runs now (bench/__main__.py), and the result files written since.
subcommand = None
written = []

# `problems` and `honesty` live beside the tests, which use them as top-level modules.
if str(ROOT / "tests") not in sys.path:
    sys.path.insert(0, str(ROOT / "tests"))


def cpu_model():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit():
    """Commit of the checkout, with "+changes" when tracked files differ; None outside git."""
    try:
        run = lambda *a: subprocess.run(
            ["git", "-C", str(ROOT), *a], capture_output=True, text=True, check=True
        ).stdout.strip()
        return run("rev-parse", "--short=12", "HEAD") + (
            "+changes" if run("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def command():
    """The line that makes this result again, wherever it is written."""
    name = Path(sys.argv[0]).stem
    module = f"bench {subcommand}" if subcommand else f"bench.{name}"
    line = " ".join(["python", "-m", module, *sys.argv[1:]])
    return without_paths(line)


def without_paths(line):
    """A command without where its results go."""
    return re.sub(r" --(?:out|json)[ =]\S+", "", line)


def yardstick(seconds=0.1):
    """What one thread of this machine gives now: BLAS GFLOP/s of a product and GB/s of a copy.

    The product is torch's, 1024 x 1024; the copy reads and writes 64 MB, both counted. CPU time, the
    best of up to nine repeats.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = {}
    try:
        for dtype in (torch.float32, torch.float64):
            a = torch.ones(1024, 1024, dtype=dtype)
            into = torch.empty_like(a)
            call = lambda a=a, into=into: torch.mm(a, a, out=into)
            timing, _ = cpu_time(call, repeats=9, budget_s=seconds)
            name = str(dtype).removeprefix("torch.")
            out[f"blas_{name}_gflops"] = round(2e-9 * 1024**3 / timing["min_s"], 1)
        source = torch.ones(2**24)
        into = torch.empty_like(source)
        timing, _ = cpu_time(lambda: into.copy_(source), repeats=9, budget_s=seconds)
        out["copy_gb_s"] = round(2e-9 * source.numel() * 4 / timing["min_s"], 2)
    finally:
        torch.set_num_threads(threads)
    return out


def environment():
    import numpy
    import scipy
    import torch

    import mvnrob

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": [round(v, 2) for v in os.getloadavg()],
        "simd": mvnrob.simd_level(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "commit": commit(),
        "command": command(),
        "yardstick": yardstick(),
    }


def show_environment(report):
    for key, value in report.items():
        print(f"# {key}: {value}")


def cpu_time(call, repeats=3, warm_up=1, least_s=0.0, budget_s=None):
    """Median and spread of the CPU seconds of call(), and its last answer.

    CPU time of the whole process (time.process_time), not wall time: on a shared machine they
    differ by a factor of three. With one torch thread this is the time of one thread. Calls shorter
    than `least_s` are repeated within one measurement until they fill it. `budget_s` stops the
    repeats early; if the warm-up spent it all, the warm-up is the measurement.
    """
    seconds, spent, number = [], 0.0, 1
    for i in range(warm_up + repeats):
        start = time.process_time()
        for _ in range(number):
            answer = call()
        took = time.process_time() - start
        spent += took
        each = took / number
        if i >= warm_up:
            seconds.append(each)
        elif each > 0:
            number = max(1, round(least_s / each))
        if budget_s is not None and spent >= budget_s:
            break
    seconds = seconds or [each]
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "repeats": len(seconds),
    }, answer


def numpy_threads_one():
    """Asks for one BLAS thread. Must run before numpy is imported: call at the top of a script."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    if all(os.environ.get(name) == "1" for name in names):
        return  # one benchmark that imports another
    if "numpy" in sys.modules:
        raise RuntimeError("numpy_threads_one must be called before numpy is imported")
    for name in names:
        os.environ[name] = "1"


def results_folder(out=None):
    out = Path(out) if out else RESULTS
    out.mkdir(parents=True, exist_ok=True)
    return out


def _json(report, rows):
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f'{{"environment": {json.dumps(report, indent=1)},\n"rows": [\n{lines}\n]}}\n'


def write(name, report, rows, out=None):
    """bench/results/<name>.json (environment and rows, a line each) and <name>.csv (rows)."""
    out = results_folder(out)
    path = out / f"{name}.json"
    # Whole or not at all: a run may be cut off here as anywhere.
    whole = out / f".{name}.json.{os.getpid()}"
    whole.write_text(_json(report, rows))
    whole.replace(path)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with (out / f"{name}.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, keys, restval="")
        writer.writeheader()
        writer.writerows(rows)
    written.append(path)
    print(f"# written: {path.name} and {name}.csv in {out.name}/")


def number(value):
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else str(value)


def show(rows, columns):
    """A plain text table."""
    cells = [columns] + [[number(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def sizes(known):
    """An argument type: numbers with commas, each among `known` (a range or a collection)."""
    allowed = (
        f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(map(str, known))
    )

    def parse(text):
        values = []
        for part in text.split(","):
            if not part.strip().isdecimal() or int(part) not in known:
                raise argparse.ArgumentTypeError(f"must be among {allowed}, got {part.strip()!r}")
            values.append(int(part))
        return values

    return parse


def parser(description):
    program = f"python -m bench {subcommand}" if subcommand else None
    p = argparse.ArgumentParser(prog=program, description=description)
    p.add_argument("--out", help="folder for the results (default: bench/results)")
    return p
