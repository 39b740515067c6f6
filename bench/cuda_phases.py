"""Where a chunk of mvnrob.evaluate goes on a GPU: kernels' time and waits for the host, by phase and part.

python -m bench cuda_phases [--precision float16] [--sigma .0286] [options of bench pipeline]

The network and images of `bench pipeline`; two chunks to plan and load kernels, a third without the profiler, a
fourth with it (CUPTI, by torch.profiler). Each kernel belongs to the phase of the call (mvnrob/meter.py), and
to the parts of screening by low rank (PARTS) in which it was launched. Written to cuda_phases.json, a row for
each of these:

- kernels_ms, launches: of its kernels and copies.
- waiting_ms: the device had nothing to do before they began. The profiler slows the host down, by a factor of
  two and more: waits are for comparison with each other.

and a row `kernel` for each of the longest kernels of a phase.
"""

import collections
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

from bench import harness

harness.numpy_threads_one()

import torch

from bench import bench_pipeline, cuda_environment
from mvnrob import influence, low_rank
from mvnrob.meter import Meter

#: Functions that are told apart, besides the phases.
PARTS = (
    *((low_rank._State, name) for name in ("_choose", "_extend", "_find_coordinates", "_multiply")),
    (low_rank._State, "_find_rest"), (low_rank, "_sampled"), (low_rank, "_screened"),
    *((influence.DrawnColumns, name) for name in ("influences", "stretched", "curvature")),
)  # fmt: skip
PHASE, PART = "#", "@"
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
HOST = ("cuda_runtime", "cuda_driver")
KERNELS = 8  # of a phase
COLUMNS = ["phase", "part", "kernels_ms", "launches", "waiting_ms"]


@contextlib.contextmanager
def annotated():
    """Phases and parts as the profiler's annotations."""
    from torch.profiler import record_function

    def named(function, mark):
        def call(*args, **options):
            with record_function(mark):
                return function(*args, **options)

        return call

    clock = Meter.clock

    @contextlib.contextmanager
    def clock_and_mark(self, phase):
        with clock(self, phase), record_function(PHASE + phase):
            yield

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Meter, "clock", clock_and_mark))
        for owner, name in PARTS:
            marked = named(getattr(owner, name), PART + name)
            stack.enter_context(mock.patch.object(owner, name, marked))
        yield


def traced(call):
    """The events of a call, as torch.profiler writes them for Chrome."""
    from torch.profiler import ProfilerActivity, profile

    with annotated(), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event.get("ph") == "X"]


def stacks(launches, marks):
    """The annotations around each of the ``launches`` (times, ascending), from ``marks`` (start, end, name)."""
    edges = [(start, 1, -end, name) for start, end, name in marks]
    edges = sorted(edges + [(end, 0, 0, name) for _, end, name in marks])
    inside, out, at = [], [], 0
    for time in launches:
        while at < len(edges) and edges[at][0] <= time:
            _, begins, _, name = edges[at]
            at += 1
            if begins:
                inside.append(name)
            elif name in inside:  # the innermost of that name
                del inside[len(inside) - 1 - inside[::-1].index(name)]
        out.append(tuple(inside))
    return out


def place(stack):
    """(phase, part) of a stack of annotations: the innermost of either."""
    phase = next((name[1:] for name in reversed(stack) if name[0] == PHASE), "other")
    return phase, next((name[1:] for name in reversed(stack) if name[0] == PART), "")


def attributed(events):
    """(device events in order, [(phase, part)] of each)"""
    launched = {
        e["args"]["correlation"]: e["ts"]
        for e in events
        if e.get("cat") in HOST and e.get("args", {}).get("correlation")
    }
    marks = collections.defaultdict(list)
    for e in events:
        if e.get("cat") == "user_annotation" and e["name"][0] in (PHASE, PART):
            marks[e["tid"]].append((e["ts"], e["ts"] + e["dur"], e["name"]))
    main = max(marks.values(), key=len, default=[])
    device = sorted((e for e in events if e.get("cat") in DEVICE), key=lambda e: e["ts"])
    when = [launched.get(e.get("args", {}).get("correlation"), e["ts"]) for e in device]
    order = sorted(range(len(device)), key=when.__getitem__)
    found = stacks([when[i] for i in order], main)
    places = [None] * len(device)
    for i, stack in zip(order, found, strict=True):
        places[i] = place(stack)
    return device, places


def rows_of(events):
    device, places = attributed(events)
    if not device:
        return []
    sums = collections.defaultdict(lambda: [0.0, 0, 0.0])
    kernels, end = collections.Counter(), device[0]["ts"]
    for event, where in zip(device, places, strict=True):
        row = sums[where]
        row[0] += event["dur"] / 1e3
        row[1] += 1
        row[2] += max(0.0, event["ts"] - end) / 1e3
        end = max(end, event["ts"] + event["dur"])
        kernels[where[0], event["name"]] += event["dur"] / 1e3
    rows = [
        {"table": "part", "phase": phase, "part": part, "kernels_ms": ms, "launches": count,
         "waiting_ms": waiting}
        for (phase, part), (ms, count, waiting) in sorted(sums.items(), key=lambda x: -x[1][0])
    ]  # fmt: skip
    for phase in dict.fromkeys(row["phase"] for row in rows):
        longest = [(ms, name) for (of, name), ms in kernels.items() if of == phase]
        for ms, name in sorted(longest, reverse=True)[:KERNELS]:
            rows.append({"table": "kernel", "phase": phase, "part": name[:120], "kernels_ms": ms})
    return rows


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--precision", default="float16", help="as of bench pipeline")
    p.add_argument("--sigma", type=float, default=0.0286, help="p near .999 for its ResNet")
    mine, others = p.parse_known_args()
    sys.argv[1:] = [*others, "--fold-batch-norm", "--precisions", mine.precision]
    args, device = bench_pipeline.arguments()
    if device.type != "cuda":
        p.error(f"--device must be a GPU, got {device}")
    report = harness.environment() | cuda_environment.gpu() | {"commit": cuda_environment.commit()}
    harness.show_environment(report)
    case, report["network"] = bench_pipeline.synthetic_case(args, device)
    report |= {"case": case.name, "precision": mine.precision, "sigma": mine.sigma}

    def chunk():
        index = list(range(min(args.chunk, len(case.x))))
        return bench_pipeline.evaluate(case, index, mine.sigma, args, mine.precision, args.chunk)

    for _ in range(2):
        chunk()
    done = chunk()
    report["chunk"] = {
        "images": len(done.rows),
        "seconds": sum(done.seconds.values()),
        **done.seconds,
    }
    print("#", report["chunk"], flush=True)
    rows = rows_of(traced(chunk))
    harness.show([row for row in rows if row["table"] == "part"], COLUMNS)
    harness.write("cuda_phases", report, rows, mine.out)
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
