"""The counted floor of mvn_cdf's float64 tensor sampler on a GPU, beside that of the scalar one.

python -m bench.cuda_floor_tensor_double     counts anew (nvcc and nvdisasm, no GPU) and writes
                                             bench/results/cuda_predicted_tensor_double.json and .md

As in bench/cuda_floor_tensor.py; a warp and one trip of a loop serve 32 points, and the scalar
sampler's counts are of the same build. The rates of float64 products are those of H100's data sheet:
67 TFLOP/s by tensor cores, 34 by multiply-adds. Whether both share a pipe is not in it, so the floor
lets them take turns (`fp64 + tensor`); `apart` is what it would be if they did not. Nothing is
measured: predictions, all of them.
"""

import argparse
import json
import re
from pathlib import Path

from bench import cuda_floor, cuda_floor_tensor, cuda_prediction, sass
from bench.cuda_floor import CYCLES, EXPECTED_SHARE, H200, SCHEDULERS, line_of
from bench.cuda_floor_tensor import DRAM, INNER, L2, L2_BYTES, RESIDENT, wavefronts

RESULTS = Path(__file__).parent / "results" / "cuda_predicted_tensor_double.json"
KERNEL, SOURCE = "MvnCdfSampleTensorDouble", "csrc/cuda/mvn_cdf_double.cu"
FILE = "csrc/kernels/mvn_cdf_sample_tensor_double.h"
OUTER, SLAB, WARP_POINTS, BLOCK_POINTS = 64, 8, 32, 128
DMMA = OUTER // 16 * WARP_POINTS // 8  # of a slab: tiles of rows, of points
CAPABILITY = (9, 0)  # whose code and rates are counted
# m16n8k8: 1024 products, 32 a cycle and scheduler.
UNITS = {**CYCLES, "tensor": 32, "shared": SCHEDULERS}

# Loops by their first line, and the MUFU of the way that rows with upper limits only take.
LOOPS = {
    "tile": ("for (int t = 0; t < p_.chunk_tiles; ++t)", None),
    "outer": ("for (int o = 0; o < p_.sampled_outer; ++o)", None),
    "completed_block": ("for (int first = 0; first < p_.completion_rows; first += kOuter)", None),
    "block": ("for (int b = 0; b < kInnerBlocks && b < left; ++b)", None),
    "product": ("for (int slab = 0; slab < slabs; ++slab)", None),
    "panel": ("for (int l = before; l < known; ++l", None),
    "draw": ("for (int r = 0; r < kInnerRows; ++r, coef", 4),
    "idle": ("for (int r = 0; r < kInnerRows; ++r, coef", 0),
    "keep": ("for (int slab = 0; slab < count; slab += kSlab", None),
    "completed": ("for (int r = 0; r < kOuter; ++r)", 1),
}


def count(arch="sm_90"):
    """{loop: units} of one trip, 32 points, and those of the scalar sampler."""
    graphs = sass.disassemble(arch, [SOURCE])
    graph, found = graphs[KERNEL], {}
    for name, (text, mufu) in LOOPS.items():
        at = f"{Path(FILE).name}:{line_of(FILE, text)} "
        loops = [x for x in graph.loops if (sass.place(graph, x) + " ").startswith(at)]
        trip = next(t for t in (graph.trip(x, mufu) for x in loops) if t is not None)
        found[name] = units(trip)
        if name in ("outer", "completed_block", "product", "keep"):
            found[name]["shared"] = wavefronts(trip)
        # The compiler takes several y's in a trip, and several slabs.
        summary = sass.summary(trip)
        times = {"panel": summary["multiply_adds"] / INNER, "keep": summary["global"] / 4}
        found[name] = {u: round(x / times.get(name, 1), 3) for u, x in found[name].items()}
    if found["product"]["tensor"] != DMMA:
        raise SystemExit(f"a slab takes {found['product']['tensor']} DMMA, not {DMMA}")
    scalar = cuda_floor.count_loops(graphs, "blocked", "float64")
    return found, {p: {u: round(x, 3) for u, x in c.items()} for p, c in scalar.items()}


def units(trip):
    counts = sass.summary(trip)
    found = {u: counts["instructions" if u == "issue" else u] for u in UNITS}
    # Coefficients and limits are the same for all lanes, points have 8 bytes.
    found["shared"] = 2 * counts["shared"] + counts["global"]
    return found


def work(pivots, completed):
    """{loop: trips of a warp} for its 32 points; slabs of L and y."""
    outer, rows = -(-pivots // OUTER), -(-completed // OUTER)
    before = [OUTER * o for o in range(outer)] + [pivots] * rows
    slabs = sum(-(-b // SLAB) for b in before)
    blocks = -(-pivots // INNER)
    return {
        "tile": 1,
        "outer": outer,
        "completed_block": rows,
        "block": blocks,
        "product": slabs,
        "panel": sum(INNER * b % OUTER for b in range(blocks)),
        "draw": pivots,
        "idle": INNER * blocks - pivots,
        "keep": -(-(pivots if completed else before[-1]) // SLAB),
        "completed": rows * OUTER,
    }, slabs


def takes(pivots, completed):
    """Whether a float64 row goes to this sampler, where a device has the cores (is_tensor)."""
    text = (sass.ROOT / "csrc/kernels/mvn_cdf_data.h").read_text()
    rows = int(re.search(r"kTensorDoubleRows = (\d+);", text)[1])
    least = cuda_floor_tensor.tensor_pivots("kTensorDoublePivots")
    return pivots >= least and pivots // 2 + completed >= rows


def problems_per_s(pivots, points, multiprocessors, clock_hz):
    """The floor by the committed counts, of a device with an H200's memory."""
    counts = json.loads(RESULTS.read_text())["counts"]
    device = {"multiprocessors": multiprocessors, "clock_hz": clock_hz}
    return 1 / max(seconds(pivots, points, counts, device=device).values())


def seconds(pivots, points, counts, completed=0, device=H200):
    """{limiter: seconds of a problem}."""
    times, slabs = work(pivots, completed)
    processors = device["multiprocessors"]
    per_second = processors * SCHEDULERS * device["clock_hz"]
    busy = {
        unit: cost
        * sum(counts[loop][unit] * number for loop, number in times.items())
        * (points / WARP_POINTS)
        / per_second
        for unit, cost in UNITS.items()
    }
    busy["fp64 + tensor"] = busy["fp64"] + busy["tensor"]
    read = 8 * SLAB * slabs * points  # of y
    written = 8 * SLAB * times["keep"] * points
    panels = 8 * SLAB * OUTER * slabs * points / BLOCK_POINTS
    busy["l2"] = (read + written + panels) / L2
    held = RESIDENT * processors * 8 * pivots * BLOCK_POINTS
    busy["dram"] = (read + written if held > L2_BYTES else 0) / device.get("dram", DRAM)
    return busy


def scalar_cycles(pivots, completed, counts):
    """Cycles of a multiprocessor for 128 points by MvnCdfSampleBlocked<double>."""
    _, busy = cuda_floor.cycles(pivots, completed, "float64", {"float64": {"blocked": counts}})
    return max(busy.values())  # a scheduler's for its 32


def predictions(counts, scalar):
    cases = [
        *((n, 10_000, 0) for n in (96, 128, 192, 256, 384, 512, 999, 2048, 4096)),
        (96, 10_000, 80), (96, 10_000, 903), (128, 10_000, 64), (128, 10_000, 871),
        (256, 10_000, 743), (999, 1000, 0),
    ]  # fmt: skip
    rows = []
    for pivots, points, completed in cases:
        busy = seconds(pivots, points, counts, completed)
        limiter = max(busy, key=busy.get)
        apart = max(v for k, v in busy.items() if k != "fp64 + tensor")
        _times, slabs = work(pivots, completed)
        # Of a multiprocessor, for 128 points.
        cycles = BLOCK_POINTS / points * H200["multiprocessors"] * H200["clock_hz"]
        rows.append(
            {
                "n": pivots + completed, "pivots": pivots, "points": points,
                "floor_per_s": float(f"{1 / busy[limiter]:.3g}"),
                "expected_per_s": float(f"{EXPECTED_SHARE / busy[limiter]:.3g}"),
                "limiter": limiter,
                "busy": {k: round(v / busy[limiter], 2) for k, v in busy.items()},
                "cycles": round(cycles * busy[limiter]),
                "cycles_apart": round(cycles * apart),
                "cycles_scalar": round(scalar_cycles(pivots, completed, scalar)),
                "y_bytes": 8 * SLAB * slabs * points,
            }
        )  # fmt: skip
        rows[-1]["gain"] = round(rows[-1]["cycles_scalar"] / rows[-1]["cycles"], 2)
    return rows


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    counts, scalar = count()
    rows = predictions(counts, scalar)
    product = counts["product"]
    lines = [
        f"Problems/s in float64, all pivots unless n says more; expected is {EXPECTED_SHARE:.0%} of the",
        "floor. `cycles` are those of a multiprocessor for 128 points: of this sampler, of it if float64",
        "multiply-adds and tensor cores did not take turns, and of the sampler without tensor cores;",
        f"`gain` is the last by the first. A slab of 8 pivots takes a warp {product['issue']:g} instructions:",
        f"{product['tensor']:g} DMMA of 32 cycles, as reckoned, and {product['shared']:g} wavefronts of shared",
        "memory and L1.",
        "",
        "| n | pivots | points | floor | expected | limiter | busy | cycles | apart | scalar | gain |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        busiest = sorted(r["busy"], key=r["busy"].get)[-2:-6:-1]
        next_busiest = ", ".join(f"{u} {r['busy'][u]:.0%}" for u in busiest)
        lines.append(
            f"| {r['n']} | {r['pivots']} | {r['points']} | {r['floor_per_s']:.2g} | "
            f"{r['expected_per_s']:.2g} | {r['limiter']} | "
            f"{next_busiest} | {r['cycles']} | "
            f"{r['cycles_apart']} | {r['cycles_scalar']} | {r['gain']} |"
        )
    data = {"counts": counts, "scalar": scalar, "rows": rows}
    cuda_prediction.write(
        RESULTS, "mvn_cdf's float64 tensor sampler", "cuda_floor_tensor_double", data, lines
    )


if __name__ == "__main__":
    main()
