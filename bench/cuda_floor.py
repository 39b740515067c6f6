"""The counted floor of mvn_cdf's samplers on a GPU, from the instructions of their loops alone.

python -m bench.cuda_floor     counts them anew (bench/sass.py: nvcc and nvdisasm, no GPU) and writes
                               bench/results/cuda_predicted.json and .md

The counts are those of the sm_90 code in cuda_predicted.json, which names the commit and the
compiler; a count is of one warp and one trip of a loop, on the way that rows with upper limits only
take. A sampler's work is laid out over its loops as csrc/kernels does it, padding included. A unit
that is asked for x instructions is busy for x times CYCLES of a scheduler's cycles; the busiest unit
is the limiter and its cycles are the floor. No latency, launch, planning or memory traffic is in it,
so everything here is a prediction. Devices with another number of units need other CYCLES. What rows of
many pivots take instead of MvnCdfSampleBlocked is reckoned in bench/cuda_floor_tensor.py and
bench/cuda_floor_tensor_double.py.
"""

import argparse
import json
from pathlib import Path

from bench import cuda_prediction, sass

RESULTS = Path(__file__).parent / "results" / "cuda_predicted.json"
SCHEDULERS, LANES = 4, 32
# Cycles for which one instruction of a warp keeps a unit of its scheduler: sm_90 has, in each
# multiprocessor, lanes for 128 FP32 (32 a scheduler), 64 FP64, 64 ALU and 16 special functions.
CYCLES = {"issue": 1, "fp32": 1, "fp64": 2, "alu": 2, "mufu": 8}
H200 = {"multiprocessors": 132, "clock_hz": 1.98e9}
EXPECTED_SHARE = 0.65  # of a floor, in a first measurement
DTYPES = {"float32": "float", "float64": "double"}
BODIES = {"small": "MvnCdfSampleSmall", "blocked": "MvnCdfSampleBlocked"}

# Loops by their first line; what one trip of a warp serves: points of a lane, times rows; and, where
# a trip has branches, the MUFU of the way that rows with upper limits only take, float32 and float64
# (a quotient or a root each, three or four in a draw and one in a completed row, for each point).
LOOPS = {
    "small": {
        "tile": ("for (int t = 0; t < stream.tiles; ++t)", 2, None),
        "block": ("for (int b = 0; b < p.sampled_blocks; ++b)", 2, None),
        "panel": ("for (int l = 0; l < columns; ++l", "multiply_adds", None),
        "draw": ("for (int r = 0; r < kSmallRows; ++r, triangle", 2, (6, 8)),
        "idle": ("for (int r = 0; r < kSmallRows; ++r, triangle", 2, (0, 0)),  # padding, no draw
        "completed_block": ("for (int first = 0; first < p.completion_rows", 2, None),
        "completed": ("for (int r = 0; r < kSmallRows; r += kStep)", 8, (8, 8)),
    },
    "blocked": {
        "tile": ("for (int t = 0; t < p_.chunk_tiles; ++t)", 1, None),
        "block": ("for (int b = o * kInnerBlocks; b < end; ++b)", 1, None),
        "panel": ("for (int l = 0; l < known - before; ++l", "multiply_adds", None),
        "draw": ("for (int r = 0; r < kInnerRows; ++r, coef", 1, (3, 4)),
        "idle": ("for (int r = 0; r < kInnerRows; ++r, coef", 1, (0, 0)),
        "store": ("for (int j = before; wanted && j < known; ++j)", "shared", None),
        "product": ("for (int stage = 0; stage < stages; ++stage)", "multiply_adds", None),
        "completed": ("for (int r = 0; r < kOuter; ++r)", 1, (1, 1)),
    },
}


def units(summary, divisor):
    """Instructions for each unit, of one point, row or multiply-add."""
    named = {name: summary[name] for name in CYCLES if name != "issue"}
    return {k: v / divisor for k, v in {"issue": summary["instructions"], **named}.items()}


def line_of(path, text):
    lines = (sass.ROOT / path).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


def count(arch="sm_90"):
    """{dtype: {sampler: {loop: units}}} of the kernels as they are compiled now."""
    graphs = sass.disassemble(arch, sass.SOURCES[:2])
    return {
        dtype: {sampler: count_loops(graphs, sampler, dtype) for sampler in LOOPS}
        for dtype in DTYPES
    }


def count_loops(graphs, sampler, dtype):
    """{loop: units} of one sampler."""
    graph = graphs[f"{BODIES[sampler]}<{DTYPES[dtype]}>"]
    which = list(DTYPES).index(dtype)
    file = f"mvn_cdf_sample_{sampler}.h"
    found = {}
    for name, (text, divisor, mufu) in LOOPS[sampler].items():
        at = f"{file}:{line_of(f'csrc/kernels/{file}', text)} "
        # Where samples may be tilted the loop comes twice; tilted draws take more MUFU.
        trips = (
            graph.trip(x, mufu and mufu[which])
            for x in graph.loops
            if sass.place(graph, x).startswith(at)
        )
        trip = sass.summary(next(t for t in trips if t is not None))
        found[name] = units(trip, trip.get(divisor, divisor))
    return found


def work(pivots, completed, dtype):
    """(sampler, {loop: how often}) of one sample."""
    if pivots <= 32:
        blocks = -(-pivots // 8)
        rows = -(-completed // 8) * 8
        return "small", {
            "tile": 1,
            "block": blocks,
            "panel": sum(8 * 8 * b for b in range(blocks)) + rows * pivots,
            "draw": pivots,
            "idle": 8 * blocks - pivots,
            "completed_block": rows // 8,
            "completed": rows,
        }
    outer = 64 if dtype == "float32" else 32
    blocks = -(-pivots // 16)
    rows = -(-completed // outer) * outer
    before = list(range(0, pivots, outer))
    return "blocked", {
        "tile": 1,
        "block": blocks,
        "panel": sum(16 * (16 * b % outer) for b in range(blocks)),
        "draw": pivots,
        "idle": 16 * blocks - pivots,
        "store": pivots if completed else before[-1],
        "product": outer * sum(before) + rows * pivots,
        "completed": rows,
    }


def cycles(pivots, completed, dtype, counts):
    """Cycles of a scheduler for 32 samples, unit by unit."""
    sampler, times = work(pivots, completed, dtype)
    pieces = counts[dtype][sampler]
    return sampler, {
        unit: cost * sum(pieces[name][unit] * number for name, number in times.items())
        for unit, cost in CYCLES.items()
    }


def committed():
    return json.loads(RESULTS.read_text())["counts"]


def problems_per_s(d, points, dtype, multiprocessors, clock_hz, completed=0, counts=None):
    """Problems of d pivots a second at `points` points each, all shifts together."""
    _, busy = cycles(d, completed, dtype, counts or committed())
    lanes_per_s = multiprocessors * SCHEDULERS * LANES * clock_hz
    return lanes_per_s / (points * max(busy.values()))


def predictions(counts):
    rows = []
    cases = [(n, 0, points) for points in (1000, 10_000) for n in (9, 99, 999)]
    for dtype, scalar in DTYPES.items():
        for pivots, completed, points in [*cases, (16, 983, 512)]:
            sampler, busy = cycles(pivots, completed, dtype, counts)
            floor = problems_per_s(
                pivots, points, dtype, **H200, completed=completed, counts=counts
            )
            limiter = max(busy, key=busy.get)
            share = {k: round(v / busy[limiter], 2) for k, v in busy.items()}
            rows.append(
                {
                    "kernel": f"{BODIES[sampler]}<{scalar}>",
                    "n": pivots + completed, "pivots": pivots, "points": points,
                    "floor_per_s": float(f"{floor:.3g}"),
                    "expected_per_s": float(f"{EXPECTED_SHARE * floor:.3g}"),
                    "limiter": limiter, "busy": share,
                }
            )  # fmt: skip
    return rows


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    counts = count()
    rounded = {
        d: {s: {p: {u: round(x, 3) for u, x in c.items()} for p, c in v.items()} for s, v in k.items()}
        for d, k in counts.items()
    }  # fmt: skip
    rows = predictions(rounded)
    lines = [
        f"Problems/s; expected is {EXPECTED_SHARE:.0%} of the floor. All points, all shifts together.",
        "",
        "| kernel | n | pivots | points | floor | expected | limiter | next busiest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        second = sorted(r["busy"], key=r["busy"].get)[-2]
        lines.append(
            f"| {r['kernel']} | {r['n']} | {r['pivots']} | {r['points']} | {r['floor_per_s']:.2g} | "
            f"{r['expected_per_s']:.2g} | {r['limiter']} | {second} {r['busy'][second]:.0%} |"
        )
    cuda_prediction.write(
        RESULTS, "mvn_cdf", "cuda_floor", {"counts": rounded, "rows": rows}, lines
    )


if __name__ == "__main__":
    main()
