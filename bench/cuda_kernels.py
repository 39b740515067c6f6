"""Which kernels the time of a call goes to on a GPU: time, share and launches of each, by CUPTI.

python -m bench cuda_kernels [--json FILE] [--seconds 8] [--device cuda]

torch.profiler on one call each of bench/cuda_calls.py, after one to warm up. `ms` are the kernel's, `share`
is of all kernels of the call; `between` is the call's time from its first work to its last less its
kernels': waits for the host and gaps between launches. No counters: what limits a kernel is
bench/cuda_profile.py's. Where the profiler has no kernels the call has its time alone.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

import torch

from bench import cuda_calls, cuda_environment, cuda_profile, cuda_timing, harness

COLUMNS = ["call", "kernel", "launches", "ms", "share", "note"]


def name_of(kernel):
    """kernel<Body> goes by its body, as in .ci/registers.txt."""
    name = cuda_profile.short(kernel)
    return found[1] if (found := re.fullmatch(r"kernel<(.*)>", name)) else name


def rows_of(call, kernels, whole_ms):
    """Rows of a call from [(kernel's name, launches, ms)], the longest first."""
    merged = {}
    for name, launches, ms in kernels:
        before = merged.get(name_of(name), (0, 0.0))
        merged[name_of(name)] = before[0] + launches, before[1] + ms
    total = sum(ms for _, ms in merged.values())
    out = [
        {"call": call, "kernel": name, "launches": launches, "ms": ms, "share": ms / total}
        for name, (launches, ms) in sorted(merged.items(), key=lambda x: -x[1][1])
    ]
    last = {"call": call, "kernel": "between", "launches": sum(n for n, _ in merged.values())}
    if not out:
        return [last | {"kernel": "all", "ms": whole_ms, "note": "no kernels by the profiler"}]
    return [*out, last | {"ms": max(0.0, whole_ms - total)}]


def kernels_of(call, device):
    """[(name, launches, ms)] of one call."""
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as found:
        call()
        cuda_timing.synchronize(device)
    if device.type == "cuda":
        time_of = lambda e: e.self_device_time_total
    else:
        time_of = lambda e: e.self_cpu_time_total
    averages = [(e.key, e.count, 1e-3 * time_of(e)) for e in found.key_averages()]
    return [row for row in averages if row[2] > 0]


def measure(name, make, device):
    call = make(device)
    call()
    cuda_timing.synchronize(device)
    took, _ = cuda_timing.once(call, device, lambda: None)
    try:
        kernels = kernels_of(call, device)
    except (RuntimeError, AttributeError) as error:  # no CUPTI, or another torch's profiler
        print(f"# {name}: {(str(error).splitlines() or [''])[0]}")
        kernels = []
    return rows_of(name, kernels, 1e3 * took)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--json", help="file for all rows")
    p.add_argument("--seconds", type=float, default=8.0, help="then no call begins any more")
    p.add_argument("--device", default="cuda")
    p.add_argument("--scale", type=float, default=1.0, help="of the batches, for a dry run")
    args = p.parse_args()
    device, rows = torch.device(args.device), []
    report = harness.environment() | {"commit": cuda_environment.commit()}
    if device.type == "cuda":
        report |= cuda_environment.gpu()
    end, left = time.monotonic() + args.seconds, []
    for name, make in cuda_calls.calls(args.scale).items():
        if rows and time.monotonic() > end:
            left.append(name)
            continue
        try:
            found = measure(name, make, device)
        except RuntimeError as error:
            found = [{"call": name, "note": f"wrong: {(str(error).splitlines() or [''])[0]}"}]
        rows += found
        harness.show(found if len(found) < 8 else [*found[:6], found[-1]], COLUMNS)
        if args.json:
            content = {"environment": report, "not_run": left, "rows": rows}
            Path(args.json).write_text(json.dumps(content, indent=1) + "\n")
    if left:
        print(f"# not run, no time left: {', '.join(left)}")
    return any("note" in row and "wrong" in row["note"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
