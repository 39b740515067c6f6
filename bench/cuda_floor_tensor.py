"""The counted floor of mvn_cdf's tensor sampler on a GPU, beside that of the scalar one.

python -m bench.cuda_floor_tensor     counts anew (nvcc and nvdisasm, no GPU) and writes
                                      bench/results/cuda_predicted_tensor.json and .md

As in bench/cuda_floor.py: the sm_90 code, one warp and one trip of a loop, which here serves 64
points. `tensor` takes its products at the rate of the data sheet, which mma.sync does not reach
(about two thirds, others say); `shared` is the path that shared memory and the L1 cache have in
common, 128 bytes a cycle of a multiprocessor, counted in the loops of the products and of y's way to
memory. Bytes: L once for each block of 256 points, y once for each outer block, all from the L2
cache; y from memory as well where the resident blocks hold more of it than the cache. Copies of 4.3
TB/s were measured on an H200, the 5.5 TB/s of its L2 cache are a lead. A problem alone has only as
many multiprocessors as blocks. No latency, launch or planning is in it, but for the factor of a problem
alone (bench/cuda_floor_grow.py): predictions, all of them.
"""

import argparse
import json
import re
from pathlib import Path

from bench import cuda_floor, cuda_floor_grow, cuda_prediction, sass
from bench.cuda_floor import CYCLES, EXPECTED_SHARE, H200, SCHEDULERS, line_of

RESULTS = Path(__file__).parent / "results" / "cuda_predicted_tensor.json"
KERNEL, SOURCE = "MvnCdfSampleTensor", "csrc/cuda/mvn_cdf_float.cu"
FILE = "csrc/kernels/mvn_cdf_sample_tensor.h"
# m16n8k16 of float16: 2048 products, 512 a cycle and scheduler. A wavefront of 128 bytes keeps the
# path that four schedulers share for a cycle.
UNITS = {**CYCLES, "tensor": 4, "shared": SCHEDULERS}
DRAM, L2, L2_BYTES = 4.3e12, 5.5e12, 50 * 2**20
RESIDENT = 2  # blocks of a multiprocessor
OUTER, INNER, SLAB, WARP_POINTS, BLOCK_POINTS = 64, 16, 16, 64, 256
HMMA = OUTER // 16 * WARP_POINTS // 8 * 3  # of a slab: tiles of rows, of points, products

# Loops by their first line, and the MUFU of the way that rows with upper limits only take.
LOOPS = {
    "block": ("for (int b = 0; b < kInnerBlocks && b < left; ++b)", None),
    "product": ("while (to_fetch > 1 - kStages)", None),
    "panel": ("for (int l = before; l < known; ++l", None),
    "draw": ("for (int r = 0; r < kInnerRows; ++r, coef", 6),
    "idle": ("for (int r = 0; r < kInnerRows; ++r, coef", 0),
    "keep": ("for (int slab = 0; slab < count; slab += kSlab", None),
    "completed": ("for (int r = 0; r < kOuter; ++r)", 2),
}


def wavefronts(instructions):
    """Of loads and stores of different numbers by each lane."""
    width = {"128": 4, "64": 2}
    return sum(
        max((width.get(part, 1) for part in x.opcode.split(".")), default=1)
        for x in instructions
        if x.base in ("LDS", "STS", "LDG", "STG", "LDGSTS")
    )


def units(trip):
    counts = sass.summary(trip)
    found = {u: counts["instructions" if u == "issue" else u] for u in UNITS}
    # Coefficients are the same for all lanes: a wavefront each. The others are counted by width.
    found["shared"] = counts["shared"] + counts["global"]
    return found


def around_the_product(graph):
    """Instructions of product() outside its loop: once for each outer block."""
    lines = (sass.ROOT / FILE).read_text().splitlines()
    first = line_of(FILE, "void product(")
    last = next(i for i in range(first, len(lines)) if lines[i - 1] == "  }")
    loops = {b for loop in graph.loops for b in loop.blocks}
    reached, work = set(), [0]  # not: what a warp does that has diverged
    while work:
        if (b := work.pop()) not in reached:
            reached.add(b)
            work += graph.next[b]
    return [
        graph.code[i]
        for b in sorted(reached - loops)
        for i in graph.blocks[b]
        if any(f == Path(FILE).name and first <= n <= last for f, n in graph.code[i].frames)
    ]


def count(graphs):
    """{loop: units} of one trip, 64 points."""
    graph = graphs[KERNEL]
    outer = around_the_product(graph)
    found = {"outer": units(outer) | {"shared": wavefronts(outer)}}
    for name, (text, mufu) in LOOPS.items():
        at = f"{Path(FILE).name}:{line_of(FILE, text)} "
        loop = next(x for x in graph.loops if (sass.place(graph, x) + " ").startswith(at))
        trip = graph.trip(loop, mufu)
        found[name] = units(trip)
        if name in ("product", "keep"):
            found[name]["shared"] = wavefronts(trip)
        if name == "panel":  # the compiler takes several y's in a trip
            times = sass.summary(trip)["multiply_adds"] / (2 * INNER)
            found[name] = {u: x / times for u, x in found[name].items()}
    if found["product"]["tensor"] != HMMA:
        raise SystemExit(f"a slab takes {found['product']['tensor']} HMMA, not {HMMA}")
    return found


def work(pivots, completed):
    """{loop: trips of a warp} for its 64 points; slabs of L and y."""
    outer, rows = -(-pivots // OUTER), -(-completed // OUTER)
    before = [OUTER * o for o in range(outer)] + [pivots] * rows
    slabs = sum(-(-b // SLAB) for b in before)
    blocks = -(-pivots // INNER)
    return {
        "outer": outer + rows,
        "block": blocks,
        "product": slabs,
        "panel": sum(INNER * b % OUTER for b in range(blocks)),
        "draw": pivots,
        "idle": INNER * blocks - pivots,
        "keep": -(-(pivots if completed else before[-1]) // SLAB),
        "completed": rows * OUTER,
    }, slabs


def tensor_pivots(constant="kTensorPivots"):
    """From how many pivots on a row takes this sampler, where a multiprocessor holds two blocks."""
    text = (sass.ROOT / "csrc/kernels/mvn_cdf_data.h").read_text()
    return int(re.search(rf"{constant} = (\d+)", text)[1])


def problems_per_s(pivots, points, multiprocessors, clock_hz):
    """The floor by the committed counts, of a device with an H200's memory."""
    counts = json.loads(RESULTS.read_text())["counts"]
    device = {"multiprocessors": multiprocessors, "clock_hz": clock_hz}
    return 1 / max(seconds(pivots, points, counts, device=device).values())


def seconds(pivots, points, counts, completed=0, alone=False, device=H200):
    """{limiter: seconds of a problem}."""
    times, slabs = work(pivots, completed)
    blocks = points / BLOCK_POINTS
    processors = device["multiprocessors"]
    if alone:
        processors = min(processors, -(-points // BLOCK_POINTS))
    per_second = processors * SCHEDULERS * device["clock_hz"]
    busy = {
        unit: cost
        * sum(counts[loop][unit] * number for loop, number in times.items())
        * (points / WARP_POINTS)
        / per_second
        for unit, cost in UNITS.items()
    }
    read = 4 * SLAB * slabs * points  # of y
    written = 4 * SLAB * times["keep"] * points
    panels = 4 * SLAB * OUTER * slabs * blocks
    busy["l2"] = (read + written + panels) / L2
    held = min(RESIDENT * processors, blocks if alone else RESIDENT * processors)
    held *= 4 * pivots * BLOCK_POINTS
    dram = device.get("dram", DRAM)
    busy["dram"] = (read + written if held > L2_BYTES else 0) / dram
    if alone and 2 * pivots**2 > L2_BYTES:  # L does not fit the cache; blocks go along together
        busy["dram"] += 4 * SLAB * OUTER * slabs / dram
    return busy


def predictions(counts, grow):
    scalar = cuda_floor.committed()
    cases = [
        *((n, 10_000, 0, False) for n in (65, 96, 128, 192, 256, 512, 999, 2048, 4096)),
        (999, 1000, 0, False), (128, 10_000, 871, False), (16_384, 10_000, 0, True),
        (16_384, 100_000, 0, True),
    ]  # fmt: skip
    rows = []
    for pivots, points, completed, alone in cases:
        busy = seconds(pivots, points, counts, completed, alone)
        limiter = max(busy, key=busy.get)
        floor = 1 / busy[limiter]
        _times, slabs = work(pivots, completed)
        other = cuda_floor.problems_per_s(
            pivots, points, "float32", **H200, completed=completed, counts=scalar
        )
        planning = cuda_floor_grow.seconds(pivots, grow, DRAM) if alone else None
        rows.append(
            {
                "n": pivots + completed, "pivots": pivots, "points": points, "alone": alone,
                "hmma_flop": 2 * 2048 * HMMA * slabs * points / WARP_POINTS,
                "y_bytes": 4 * SLAB * slabs * points,
                "L_bytes": 4 * SLAB * OUTER * slabs * points / BLOCK_POINTS,
                "floor_per_s": float(f"{floor:.3g}"),
                "expected_per_s": float(f"{EXPECTED_SHARE * floor:.3g}"),
                "limiter": limiter,
                "busy": {k: round(v / busy[limiter], 2) for k, v in busy.items()},
                "planning_s": planning and {k: float(f"{x:.2g}") for k, x in planning.items()},
                "expected_planning_s": planning
                and float(f"{cuda_floor_grow.expected_seconds(planning):.2g}"),
                "scalar_floor_per_s": None if alone else float(f"{other:.3g}"),
            }
        )  # fmt: skip
    return rows


def planning_lines(row, grow):
    parts = ", ".join(f"{name} {1e3 * x:.0f} ms" for name, x in row["planning_s"].items())
    planning = row["expected_planning_s"]
    return [
        f"Factor and program of n = {row['n']} alone: expected {planning:.2g} s, with {row['points']}",
        f"points {planning + 1 / row['expected_per_s']:.2g} s. Of it {parts}: barriers and columns by",
        "assumed latencies, the others by counts and bytes, at their floor. A column takes a warp of the",
        f"subtraction {grow['issue']:.0f} instructions, {grow['fp64']:.0f} of them in double precision and",
        f"{grow['loads']:.0f} loads.",
    ]


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    graphs = sass.disassemble("sm_90", [SOURCE])
    counts = count(graphs)
    grow = cuda_floor_grow.count(graphs)
    rows = predictions(counts, grow)
    product = counts["product"]
    lines = [
        f"Problems/s in float32, all pivots unless n says more; expected is {EXPECTED_SHARE:.0%} of the",
        "floor. `scalar` is the floor of the sampler without tensor cores. A problem alone has 40 or",
        "132 of the multiprocessors; its factor, made by the whole grid, comes before. A slab of 16",
        f"pivots takes a warp {product['issue']} instructions: {product['tensor']} HMMA, as reckoned,",
        f"{product['fp32']} FADD and {product['shared']} wavefronts of shared memory and L1.",
        "",
        "| n | pivots | points | floor | expected | limiter | busy | flop | y bytes | L bytes | scalar |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        busiest = sorted(r["busy"], key=r["busy"].get)[-2:-6:-1]
        next_busiest = ", ".join(f"{u} {r['busy'][u]:.0%}" for u in busiest)
        scalar = "" if r["alone"] else f"{r['scalar_floor_per_s']:.2g}"
        lines.append(
            f"| {r['n']}{' alone' if r['alone'] else ''} | {r['pivots']} | {r['points']} | "
            f"{r['floor_per_s']:.2g} | {r['expected_per_s']:.2g} | {r['limiter']} | "
            f"{next_busiest} | {r['hmma_flop']:.2g} | "
            f"{r['y_bytes']:.2g} | {r['L_bytes']:.2g} | {scalar} |"
        )
    lines += ["", *(line for r in rows if r["planning_s"] for line in planning_lines(r, grow))]
    data = {"counts": counts, "grow": grow, "rows": rows}
    cuda_prediction.write(RESULTS, "mvn_cdf's tensor sampler", "cuda_floor_tensor", data, lines)


if __name__ == "__main__":
    main()
