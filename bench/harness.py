"""What every benchmark shares: where it ran, how time is taken, how results are written."""

import argparse
import csv
import json
import math
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


def cpu_fields():
    """What /proc/cpuinfo says of the first processor; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_model():
    return cpu_fields().get("model name") or platform.processor() or platform.machine()


def cpu_caches():
    """{"L1d": "48K", "L2": "1024K", ...} of the first processor, as far as the kernel says."""
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            caches[f"L{level}{'d' if kind == 'Data' else ''}"] = size
    return caches


def processor():
    """What tells processors of one name apart: a virtual machine's name may be that of a family."""
    names = {
        "vendor": "vendor_id",
        "family": "cpu family",
        "model": "model",
        "stepping": "stepping",
    }
    known = cpu_fields()
    found = {key: known[name] for key, name in names.items() if name in known}
    return found | cpu_caches()


def processor_words(found):
    """A processor in one line."""
    return ", ".join(f"{key} {value}" for key, value in found.items() if key != "vendor")


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
    """What one thread of this machine gives now, the best of up to nine repeats, CPU time.

    blas_*_gflops: torch's product, 1024 x 1024. copy_gb_s: reads and writes of 64 MB. conv_float32_gflops:
    a 3 x 3 convolution of 64 channels, 56 x 56. oneDNN makes its code for the widest vectors that the
    processor has, which mvnrob's loops use as well; MKL's product takes narrower ones on some processors
    and then does not tell one that multiplies and adds twice as much at once (multiply_add of
    `python -m bench step`) from another.
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
        if torch.backends.mkldnn.is_available():
            image, weights = torch.ones(1, 64, 56, 56), torch.ones(64, 64, 3, 3)
            call = lambda: torch.conv2d(image, weights, padding=1)
            with torch.no_grad():
                timing, _ = cpu_time(call, repeats=9, least_s=0.005, budget_s=seconds)
            flops = 2 * weights.numel() * 56**2
            out["conv_float32_gflops"] = round(1e-9 * flops / timing["min_s"], 1)
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
        "processor": processor(),
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
    print(f"# written: {path.name} and {name}.csv in {shown(out)}/")


def shown(folder):
    """A folder as it was given; the results' own from the root of the repository."""
    return folder.relative_to(ROOT) if folder == RESULTS else folder


def nanoseconds(timing, count):
    """{ns, ns_min, ns_max} of one of the ``count`` things that a call of ``cpu_time`` makes."""
    ends = {"ns": "median", "ns_min": "min", "ns_max": "max"}
    return {name: 1e9 * timing[f"{end}_s"] / count for name, end in ends.items()}


def milliseconds(name, timing, count, less=None):
    """{name, name_min, name_max} of one of the ``count`` things that a call of ``cpu_time`` makes.

    ``less`` is another call's timing, which is taken off: the ends are those that both may have.
    """
    ends = {"": ("median_s", "median_s"), "_min": ("min_s", "max_s"), "_max": ("max_s", "min_s")}
    return {
        name + end: 1e3 * (timing[own] - (less[other] if less else 0.0)) / count
        for end, (own, other) in ends.items()
    }


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


def one_of(names):
    """An argument type: one of the names."""

    def parse(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}, got {text!r}")
        return text

    return parse


def whole(least=1, most=None):
    """An argument type: a whole number from `least` to `most`."""
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be a whole number {allowed}, got {text!r}")
        return value

    return parse


def number_between(least=0.0, most=math.inf):
    """An argument type: a number between two bounds, neither of them itself."""
    allowed = f"above {least:g}" if most == math.inf else f"between {least:g} and {most:g}"

    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least < value < most:
            raise argparse.ArgumentTypeError(f"must be a number {allowed}, got {text!r}")
        return value

    return parse


positive = number_between()


def several(parse, empty=False):
    """An argument type: values of another one, with commas; none only where `empty` says so."""

    def parse_all(text):
        if empty and not text:
            return []
        return [parse(part.strip()) for part in text.split(",")]

    return parse_all


def case(chunks=False):
    """An argument type: CxD, or CxD/CHUNK where there are chunks; the text itself."""
    form = "CxD or CxD/CHUNK, where CHUNK divides D" if chunks else "CxD"
    pattern = re.compile(r"([0-9]+)x([0-9]+)(?:/([0-9]+))?" if chunks else "([0-9]+)x([0-9]+)()")

    def parse(text):
        found = pattern.fullmatch(text)
        classes, columns, chunk = (int(v or 0) for v in found.groups()) if found else (0, 0, 0)
        divides = not found or found[3] in (None, "") or (chunk > 0 and columns % chunk == 0)
        if classes < 2 or columns < 1 or not divides:
            raise argparse.ArgumentTypeError(
                f"must be {form}, of two classes or more, got {text!r}"
            )
        return text

    return parse


def device(text):
    """An argument type: cpu, or cuda on a machine with a GPU."""
    if one_of(("cpu", "cuda"))(text) == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise argparse.ArgumentTypeError("must be cpu where torch finds no GPU, got 'cuda'")
    return text


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


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Every default is shown, once, and the lines of the epilog stay."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or "default" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A wrong option is one line and exit code 2."""

    def add_argument(self, *names, **options):
        default = options.get("default")
        if default is not None and default is not False and default != argparse.SUPPRESS:
            options.setdefault("help", "default: %(default)s")
        return super().add_argument(*names, **options)

    def error(self, message):
        message = re.sub(r"^argument (\S+): must ", r"\1 must ", message)
        self.exit(2, f"{self.prog}: {message}\n")


def parser(description):
    program = f"python -m bench {subcommand}" if subcommand else None
    p = Parser(prog=program, description=description, formatter_class=Help)
    p.add_argument("--out", help="folder for the results (default: bench/results)")
    if subcommand:
        from bench import checks

        p.epilog = "after the run:\n  --compare OLD.json    this result beside an older one"
        if subcommand in checks.CHECKS:
            p.epilog += (
                "\ninstead of the run:\n  --check               claims that hold on any machine"
            )
    return p
