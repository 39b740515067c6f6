"""The counted floor of jac_cov on a GPU, from the instructions of its loops and the bytes it moves.

python -m bench.cuda_floor_jac_cov     counts anew (nvcc and nvdisasm, no GPU) and writes
                                       bench/results/cuda_predicted_jac_cov.json and .md

As in bench/cuda_floor.py: the sm_90 code, a trip of a warp, the busiest unit is the limiter. One
stage of a kernel is one trip of its outer loop, inner ones included; its columns and the rows that a
block holds are those of csrc/kernels/jac_cov_*.h. `tensor` takes its products at the rate of the data
sheet, which mma.sync does not reach (about two thirds, others say). Memory: copies of 4.3 TB/s were
measured on an H200, the 5.5 TB/s of its L2 cache are a lead. Launches, the ends of chunks and the
latency of barriers are not in it: predictions, all of them. The peer's figure is reckoned, too: six
passes over J and the full square at 52 TFLOP/s.
"""

import argparse
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
CASES = [
    (10, 784, "float32"), (10, 3072, "float32"), (10, 3072, "bfloat16"), (32, 3072, "float32"),
    (100, 3072, "float32"), (100, 3072, "float64"), (1000, 3072, "float32"),
    (1000, 150528, "float32"), (1000, 150528, "bfloat16"), (1000, 150528, "float64"),
]  # fmt: skip


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
    loop = "for (int64_t at = first_; at < end_; at += kColumns)"
    return f"JacCovTensor<{name}>", "jac_cov_tensor.h", loop, 32, 8


def trips(classes, kernel):
    """Inner loop's trips in a stage: of a slice of the columns, or of groups of them."""
    if "Triangle" in kernel:
        blocks = -(-classes // 8)
        slices = 96 // (blocks * (blocks + 1) // 2)
        return -(-(8 if "double" in kernel else 32) // slices)
    return {"Tile": 8, "Tensor": 2}.get(kernel[6:].partition("<")[0], 0)


def stage_counts(graph, file, loop):
    """Units of one trip of the outer loop, and of one of the products' inner loop."""
    lines = (sass.ROOT / "csrc/kernels" / file).read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if loop in text)
    starts = [i for i, text in enumerate(lines, 1) if "bool mirror) const {" in text]
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


def predict(classes, columns, dtype, graphs):
    kernel, file, loop, stage, warps = kernel_of(classes, dtype)
    outer, inner = stage_counts(graphs[dtype][kernel], file, loop)
    size = TYPES[dtype][1]
    tiles = 1
    rows_read = classes + 1
    if classes > 104:
        across = -(-classes // 128)
        tiles = across * (across + 1) // 2
        # What one problem takes from the L2 cache: a tile's two sets of rows, one on the diagonal.
        rows_read = 256 * (tiles - across) + 128 * across
    stages = -(-columns // stage)
    scheduler_cycles = {
        u: cost * (outer[u] + inner[u] * trips(classes, kernel)) * warps * stages * tiles
        for u, cost in UNITS.items()
    }
    per_second = H200["multiprocessors"] * SCHEDULERS * H200["clock_hz"]
    seconds = {u: c / per_second for u, c in scheduler_cycles.items()}
    seconds["dram"] = (classes * columns * size + 2 * 8 * classes * classes) / DRAM
    if classes > 104:
        seconds["dram"] += classes * columns * size / DRAM * (dtype != "float64")  # the norms' pass
    seconds["l2"] = rows_read * columns * size / L2
    limiter = max(seconds, key=seconds.get)
    peer_size = max(size, 4)
    peer = 6 * classes * columns * peer_size / DRAM
    peer += 2 * classes**2 * columns / (52e12 if dtype != "float64" else 30e12)
    floor = 1 / seconds[limiter]
    return {
        "kernel": kernel, "C": classes, "D": columns, "dtype": dtype,
        "stage": {"outer": outer, "inner": inner, "inner_trips": trips(classes, kernel)},
        "floor_per_s": float(f"{floor:.3g}"),
        "expected_per_s": float(f"{EXPECTED_SHARE * floor:.3g}"),
        "limiter": limiter,
        "busy": {u: round(s / seconds[limiter], 2) for u, s in seconds.items()},
        "peer_per_s": float(f"{1 / peer:.3g}"),
    }  # fmt: skip


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    graphs = {d: sass.disassemble("sm_90", [source]) for d, source in SOURCES.items()}
    rows = [predict(*case, graphs) for case in CASES]
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
            f"{r['peer_per_s']:.2g} |"
        )
    cuda_prediction.write(RESULTS, "jac_cov", "cuda_floor_jac_cov", {"rows": rows}, lines)


if __name__ == "__main__":
    main()
