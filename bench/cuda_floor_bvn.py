"""The counted floor of bvn_cdf on a GPU, from the instructions of its three integrals.

python -m bench.cuda_floor_bvn     counts anew (nvcc and nvdisasm, no GPU) and writes
                                   bench/results/cuda_predicted_bvn.json and .md

As in bench/cuda_floor.py. An element takes one of three integrals of ten trips: |rho| below .925, near
1, near -1; a warp takes those of all its lanes, one after the other. Correlations are even in (-1, 1),
as `python -m bench cuda` times them: 7 warps of 10 have a lane near 1, as many one near -1. Of what
stands around the integrals the longest single way is counted, once. Nothing is measured: a prediction.
"""

import argparse
import json
import re
from pathlib import Path

from bench import cuda_prediction, sass
from bench.cuda_floor import CYCLES, H200, LANES, SCHEDULERS, line_of

RESULTS = Path(__file__).parent / "results" / "cuda_predicted_bvn.json"
KERNEL, SOURCE, FILE = "BvnCdf", "csrc/cuda/bvn_cdf.cu", "csrc/math/bivariate.h"
TRIPS, NEAR = 10, 0.925
# Of a warp of even correlations: each of the two ends has (1 - NEAR) / 2 of them.
SHARES = {"arc": 1 - (1 - NEAR) ** LANES, "near_one": 1 - ((1 + NEAR) / 2) ** LANES,
          "near_minus_one": 1 - ((1 + NEAR) / 2) ** LANES}  # fmt: skip


def units(trip):
    counts = sass.summary(trip)
    return {u: counts["instructions" if u == "issue" else u] for u in CYCLES}


def count(graphs):
    """{part: units}: a trip of each integral, and the rest of an element."""
    graph = graphs[KERNEL]
    lines = (sass.ROOT / FILE).read_text().splitlines()
    arc = line_of(FILE, "return kInvTwoPi * gauss20(f, 0.0, ::asin(rho));")
    near = [i for i, text in enumerate(lines, 1) if re.search(r"detail::bvn_near_one\(h, ", text)]
    places = {"arc": arc, "near_one": near[0], "near_minus_one": near[1]}
    found = {"rest": units(graph.trip(next(x for x in graph.loops if x.depth == 0)))}
    for name, line in places.items():
        loops = [
            x
            for x in graph.loops
            if "quadrature.h" in sass.place(graph, x)
            and f"{Path(FILE).name}:{line} " in sass.place(graph, x) + " "
        ]
        if len(loops) != 1:
            raise SystemExit(f"{name}: one loop of line {line} must be there, not {len(loops)}")
        found[name] = units(graph.trip(loops[0]))
    return found


def seconds(elements, counts, device=H200):
    """{limiter: seconds}"""
    warps = elements / LANES
    per_second = device["multiprocessors"] * SCHEDULERS * device["clock_hz"]
    each = {
        u: counts["rest"][u] + TRIPS * sum(share * counts[k][u] for k, share in SHARES.items())
        for u in CYCLES
    }
    return {u: cost * each[u] * warps / per_second for u, cost in CYCLES.items()}


def elements_per_s(device, counts=None):
    """(the floor by the committed counts, its limiter) on a device."""
    counts = counts or json.loads(RESULTS.read_text())["counts"]
    busy = seconds(1, counts, device)
    limiter = max(busy, key=busy.get)
    return 1 / busy[limiter], limiter


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    counts = count(sass.disassemble("sm_90", [SOURCE]))
    busy = seconds(1, counts)
    limiter = max(busy, key=busy.get)
    row = {
        "kernel": KERNEL, "elements": 2**24, "floor_per_s": float(f"{1 / busy[limiter]:.3g}"),
        "limiter": limiter,
        "busy": {u: round(s / busy[limiter], 2) for u, s in busy.items()},
    }  # fmt: skip
    names = [f"{name} {counts[name]['issue']}, {counts[name]['fp64']} FP64" for name in counts]
    lines = [
        "Elements/s, correlations even in (-1, 1).",
        f"Instructions of a trip: {'; '.join(names)}.",
        "",
        "| kernel | floor | limiter | next busiest |",
        "| --- | --- | --- | --- |",
    ]
    second = sorted(row["busy"], key=row["busy"].get)[-2]
    lines.append(
        f"| {KERNEL} | {row['floor_per_s']:.2g} | {limiter} | {second} {row['busy'][second]:.0%} |"
    )
    data = {"counts": counts, "rows": [row]}
    cuda_prediction.write(RESULTS, "bvn_cdf", "cuda_floor_bvn", data, lines)


if __name__ == "__main__":
    main()
