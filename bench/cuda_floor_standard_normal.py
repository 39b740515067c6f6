"""The counted floor of standard_normal on a GPU, from the instructions of its loop.

python -m bench cuda_floor_standard_normal     counts anew (nvcc and nvdisasm, no GPU) and writes
                                               bench/results/cuda_predicted_standard_normal.json, .md

As in bench/cuda_floor.py. A trip of the loop makes a word of 64 bits and the two numbers of it, both ways
of a number's sign and tail counted as the longer one; 8 bytes go to memory. Nothing is measured: a prediction.
"""

import argparse
from pathlib import Path

from bench import cuda_prediction, sass
from bench.cuda_floor import CYCLES, EXPECTED_SHARE, H200, LANES, SCHEDULERS
from bench.cuda_floor_bvn import units
from bench.cuda_floor_jac_cov import DRAM

RESULTS = Path(__file__).parent / "results" / "cuda_predicted_standard_normal.json"
KERNEL, SOURCE = "StandardNormal", "csrc/cuda/standard_normal.cu"


def count(graphs):
    """Units of a trip of the innermost loop: two numbers of each lane."""
    graph = graphs[KERNEL]
    deepest = max(loop.depth for loop in graph.loops)
    (loop,) = (loop for loop in graph.loops if loop.depth == deepest)
    return units(graph.trip(loop))


def seconds(numbers, counts, device=H200, dram=DRAM):
    """{limiter: seconds}"""
    per_second = device["multiprocessors"] * SCHEDULERS * device["clock_hz"]
    warps = numbers / 2 / LANES
    busy = {unit: cost * counts[unit] * warps / per_second for unit, cost in CYCLES.items()}
    return busy | {"dram": 4 * numbers / dram}


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    counts = count(sass.disassemble("sm_90", [SOURCE]))
    busy = seconds(1, counts)
    *_, second, limiter = sorted(busy, key=busy.get)
    row = {
        "kernel": KERNEL, "numbers": 64 * 8 * 150_528, "limiter": limiter,
        "floor_per_s": float(f"{1 / busy[limiter]:.3g}"),
        "expected_per_s": float(f"{EXPECTED_SHARE / busy[limiter]:.3g}"),
        "busy": {unit: round(s / busy[limiter], 2) for unit, s in busy.items()},
    }  # fmt: skip
    trip = (
        f"A trip of the loop, two numbers: {counts['issue']} instructions, {counts['fp64']} FP64."
    )
    cells = [KERNEL, f"{row['floor_per_s']:.2g}", f"{row['expected_per_s']:.2g}", limiter,
             f"{second} {row['busy'][second]:.0%}"]  # fmt: skip
    lines = [
        f"Numbers/s; expected is {EXPECTED_SHARE:.0%} of the floor. {trip}",
        "",
        "| kernel | floor | expected | limiter | next busiest |",
        "| --- | --- | --- | --- | --- |",
        f"| {' | '.join(cells)} |",
    ]
    data = {"counts": counts, "rows": [row]}
    cuda_prediction.write(RESULTS, "standard_normal", "cuda_floor_standard_normal", data, lines)


if __name__ == "__main__":
    main()
