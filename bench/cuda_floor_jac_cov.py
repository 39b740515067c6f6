"""The counted floor of jac_cov on a GPU, from the instructions of its loops and the bytes it moves.

python -m bench.cuda_floor_jac_cov     counts anew (nvcc and nvdisasm, no GPU) and writes
                                       bench/results/cuda_predicted_jac_cov.json and .md

As in bench/cuda_floor.py: the sm_90 code, a trip of a warp, the busiest unit is the limiter. One
stage of a kernel is one trip of its outer loop, inner ones included; its columns and the rows that a
block holds are those of csrc/kernels/jac_cov_*.h. `tensor` takes its products at the rate of the data
sheet, which mma.sync does not reach (about two thirds, others say). Memory: copies of 4.3 TB/s were
measured on an H200, the 5.5 TB/s of its L2 cache are a lead. Launches, the ends of chunks and the
latency of barriers are not in it: predictions, all of them. The peer's figure is reckoned, too: six
passes over J and the full square at 52 TFLOP/s. `counts` serve other sizes and cards (problems_per_s).
"""

import argparse
import json
from pathlib import Path

from bench import cuda_prediction, sass
from bench.cuda_floor import CYCLES, EXPECTED_SHARE, H200, SCHEDULERS

RESULTS = Path(__file__).parent / "results" / "cuda_predicted_jac_cov.json"
# m16n8k16 of float16: 2048 products, 512 a cycle and scheduler. ALU, shared memory: a wavefront each.
UNITS = {**CYCLES, "tensor": 4}
DRAM, L2 = 4.3e12, 5.5e12
SOURCES = {
    "float32": "csrc/cuda/jac_cov_float.cu",
    "bfloat16": "csrc/cuda/jac_cov_bfloat16.cu",
    "float64": "csrc/cuda/jac_cov_double.cu",
}
TYPES = {"float32": ("float", 4), "bfloat16": ("BFloat16", 2), "float64": ("double", 8)}
# (C, D, type) of jac_cov, then of jac_cov_norms.
CASES = [
    (10, 784, "float32"), (10, 3072, "float32"), (10, 3072, "bfloat16"), (32, 3072, "float32"),
    (100, 3072, "float32"), (100, 3072, "float64"), (1000, 3072, "float32"),
    (1000, 150528, "float32"), (1000, 150528, "bfloat16"), (1000, 150528, "float64"),
]  # fmt: skip
NORMS_CASES = [(c, d, t) for c, d in ((10, 3072), (1000, 150528)) for t in ("float32", "bfloat16")]
# Of JacNorms: rows of a warp.
NORMS_ROWS = 8


def kernel_of(classes, dtype):
    """(kernel, file, first line of its outer loop, columns of a stage, warps of a block)"""
    name, wide = TYPES[dtype][0], dtype == "float64"
    if classes <= 10:
        loop = "for (int64_t column = first + lane; column < end; column += kAhead * kWarp)"
        return f"JacCovNarrow<{name}>", "jac_cov_narrow.h", loop, 64, 1
    stage = 8 if wide else 32
    if classes <= 104:
        loop = "for (int64_t at = first_; at < end_; at += Stage::kColumns)"
        return f"JacCovTriangle<{name}>", "jac_cov_triangle.h", loop, stage, 3
    if wide:
        loop = "for (int64_t at = first_; at < end_; at += Stage::kColumns)"
        return f"JacCovTile<{name}>", "jac_cov_tile.h", loop, stage, 8
    if dtype == "bfloat16":
        loop = "for (int stage = 0; stage < stages_; ++stage)"
        return "JacCovGram", "jac_cov_gram.h", loop, 64, 8
    loop = "for (int stage = 0; stage < stages; ++stage)"
    return f"JacCovTensor<{name}>", "jac_cov_tensor.h", loop, 32, 8


def norms_kernel_of(dtype):
    """As kernel_of. A lane of float32 and bfloat16 takes two columns in a trip."""
    loop = "for (int64_t column = first + lane; column < end; column += kAhead * kWarp)"
    columns = 32 if dtype == "float64" else 64
    return f"JacNorms<{TYPES[dtype][0]}>", "jac_cov_norms.h", loop, columns, 1


def trips(classes, kernel):
    """Inner loop's trips in a stage: of a slice of the columns, or of groups of them."""
    if "Triangle" in kernel:
        blocks = -(-classes // 8)
        slices = 96 // (blocks * (blocks + 1) // 2)
        return -(-(8 if "double" in kernel else 32) // slices)
    return {"Tile": 8}.get(kernel[6:].partition("<")[0], 0)


def stage_counts(graph, file, loop):
    """Units of one trip of the outer loop, and of one of the products' inner loop."""
    lines = (sass.ROOT / "csrc/kernels" / file).read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if loop in text)
    ends = "finish(const Shared& shared, bool", "bool mirror) const {"
    starts = [i for i, text in enumerate(lines, 1) if any(end in text for end in ends)]
    end = range(starts[0], len(lines)) if starts else ()

    def units(found):
        # The end of a chunk comes once in many stages.
        trip = [
            x for x in graph.trip(found) if not any(f == file and n in end for f, n in x.frames)
        ]
        counts = sass.summary(trip)
        return {u: counts["instructions" if u == "issue" else u] for u in UNITS}

    at = [x for x in graph.loops if f"{file}:{line} " in sass.place(graph, x) + " "]
    outer = max(at, key=lambda x: len(x.blocks))
    inner = max(
        (x for x in graph.loops if x is not outer and x.blocks < outer.blocks),
        key=lambda x: sum(map(sass.summary(graph.trip(x)).get, ("multiply_adds", "tensor"))),
        default=None,
    )
    return units(outer), units(inner) if inner else dict.fromkeys(UNITS, 0)


def count(graphs):
    """{kernel: {outer, inner: units}} of every kernel, of {dtype: {kernel: Graph}}."""
    found = {}
    for dtype in TYPES:
        for kernel, file, loop, _, _ in (
            *(kernel_of(classes, dtype) for classes in (10, 100, 1000)),
            norms_kernel_of(dtype),
        ):
            outer, inner = stage_counts(graphs[dtype][kernel], file, loop)
            found[kernel] = {"outer": outer, "inner": inner}
    return found


def busy_schedulers(counts, inner_trips, stages, device):
    """{unit: seconds} of so many stages of a warp."""
    per_second = device["multiprocessors"] * SCHEDULERS * device["clock_hz"]
    outer, inner = counts["outer"], counts["inner"]
    return {
        u: cost * (outer[u] + inner[u] * inner_trips) * stages / per_second
        for u, cost in UNITS.items()
    }


def seconds(classes, columns, dtype, counts, device=H200):
    """{limiter: seconds of a problem} of jac_cov."""
    kernel, _, _, stage, warps = kernel_of(classes, dtype)
    size = TYPES[dtype][1]
    tiles = 1
    rows_read = classes + 1
    if classes > 104:
        across = -(-classes // 128)
        tiles = across * (across + 1) // 2
        # What one problem takes from the L2 cache: a tile's two sets of rows, one on the diagonal.
        rows_read = 256 * (tiles - across) + 128 * across
    stages = warps * -(-columns // stage) * tiles
    busy = busy_schedulers(counts[kernel], trips(classes, kernel), stages, device)
    moved = classes * columns * size + 2 * 8 * classes * classes
    if classes > 104 and dtype != "float64":
        moved += classes * columns * size  # the norms' pass
    busy["dram"] = moved / device.get("dram", DRAM)
    busy["l2"] = rows_read * columns * size / L2
    return busy


def norms_seconds(classes, columns, dtype, counts, device=H200):
    """{limiter: seconds of a problem} of jac_cov_norms."""
    kernel, _, _, stage, _ = norms_kernel_of(dtype)
    size, groups = TYPES[dtype][1], -(-classes // NORMS_ROWS)
    busy = busy_schedulers(counts[kernel], 0, groups * -(-columns // stage), device)
    busy["dram"] = (classes * columns * size + 8 * classes) / device.get("dram", DRAM)
    busy["l2"] = (classes + groups) * columns * size / L2  # row t for every group
    return busy


def problems_per_s(op, classes, columns, dtype, device, counts=None):
    """(the floor by the committed counts, its limiter) of jac_cov or jac_cov_norms on a device."""
    counts = counts or json.loads(RESULTS.read_text())["counts"]
    of = {"jac_cov": seconds, "jac_cov_norms": norms_seconds}[op]
    busy = of(classes, columns, dtype, counts, device)
    limiter = max(busy, key=busy.get)
    return 1 / busy[limiter], limiter


def predict(op, classes, columns, dtype, counts):
    of, named = (
        (norms_seconds, norms_kernel_of(dtype))
        if op == "jac_cov_norms"
        else (seconds, kernel_of(classes, dtype))
    )
    busy = of(classes, columns, dtype, counts)
    limiter = max(busy, key=busy.get)
    floor, peer = 1 / busy[limiter], None
    if op == "jac_cov":
        peer = 6 * classes * columns * max(TYPES[dtype][1], 4) / DRAM
        peer += 2 * classes**2 * columns / (52e12 if dtype != "float64" else 30e12)
    return {
        "kernel": named[0], "C": classes, "D": columns, "dtype": dtype,
        "floor_per_s": float(f"{floor:.3g}"),
        "expected_per_s": float(f"{EXPECTED_SHARE * floor:.3g}"),
        "limiter": limiter,
        "busy": {u: round(s / busy[limiter], 2) for u, s in busy.items()},
        "peer_per_s": peer and float(f"{1 / peer:.3g}"),
    }  # fmt: skip


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    graphs = {d: sass.disassemble("sm_90", [source]) for d, source in SOURCES.items()}
    counts = count(graphs)
    rows = [predict("jac_cov", *case, counts) for case in CASES]
    rows += [predict("jac_cov_norms", *case, counts) for case in NORMS_CASES]
    lines = [
        f"Problems/s; expected is {EXPECTED_SHARE:.0%} of the floor. The peer, reckoned, is PyTorch's",
        "difference, norm, quotient and bmm.",
        "",
        "| kernel | C | D | dtype | floor | expected | limiter | next busiest | peer |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        second = sorted(r["busy"], key=r["busy"].get)[-2]
        lines.append(
            f"| {r['kernel']} | {r['C']} | {r['D']} | {r['dtype']} | {r['floor_per_s']:.2g} | "
            f"{r['expected_per_s']:.2g} | {r['limiter']} | {second} {r['busy'][second]:.0%} | "
            f"{'' if r['peer_per_s'] is None else format(r['peer_per_s'], '.2g')} |"
        )
    cuda_prediction.write(
        RESULTS, "jac_cov", "cuda_floor_jac_cov", {"counts": counts, "rows": rows}, lines
    )


if __name__ == "__main__":
    main()
