"""What a GPU takes for the factor and the program of one large row: csrc/kernels/mvn_cdf_grow.h.

Part of bench/cuda_floor_tensor.py, whose rows "alone" it completes. Counted: instructions of the loop
that subtracts a panel, in the sm_90 code, and bytes to and from memory. Assumed, not counted: what a
barrier of the grid takes, and how long a column waits for numbers that the L2 cache holds. All of it is
a prediction.
"""

from pathlib import Path

from bench import sass
from bench.cuda_floor import CYCLES, EXPECTED_SHARE, H200, SCHEDULERS, line_of

FILE = "csrc/kernels/mvn_cdf_trailing.h"
SLABS, COLUMNS = "for (int s = 0; s < slabs; ++s)", "for (int l = 0; l < kSlab; ++l)"
PANEL, SLAB, TILE, THREADS, AHEAD, BARRIERS = 64, 8, 128, 256, 16, 3
# Seconds: a barrier of 132 blocks with what they exchange; a round of loads from the L2 cache; what
# else a pivot waits for, one thing after another: the exchange of two rows, its limits, its mean.
BARRIER_S, L2_LATENCY_S, PIVOT_S = 2.5e-6, 4e-7, 3e-6


def count(graphs):
    """Instructions of a warp that subtracts one column from a thread's 64 entries, its part of a slab's
    copies included, by the loops of csrc/cuda/mvn_cdf_float.cu (sass.disassemble)."""
    graph = next(g for name, g in graphs.items() if name.startswith("MvnCdfGrow"))

    def trip(loop):
        at = f"{Path(FILE).name}:{line_of(FILE, loop)} "
        found = next(x for x in graph.loops if (sass.place(graph, x) + " ").startswith(at))
        return sass.summary(graph.trip(found, None))

    column, slab = trip(COLUMNS), trip(SLABS)
    if column["multiply_adds"] != 64:
        raise SystemExit(f"a column takes {column['multiply_adds']} multiply-adds, not 64")
    of = {unit: "instructions" if unit == "issue" else unit for unit in CYCLES}
    return {unit: column[key] + slab[key] / SLAB for unit, key in of.items()} | {
        "loads": column["shared"]
    }


def seconds(n, counts, bandwidth, coefficient_bytes=2, device=H200):
    """{part: seconds} of all n pivots of a dense row, and of the program made of them."""
    cycles = max(cost * counts[unit] for unit, cost in CYCLES.items())
    warps = THREADS // 32
    arithmetic = memory = 0.0
    for j in range(PANEL, n, PANEL):
        tiles = (-(-(n - j) // TILE)) ** 2
        turns = -(-tiles // device["multiprocessors"])
        arithmetic += turns * PANEL * cycles * warps / SCHEDULERS / device["clock_hz"]
        memory += 16 * (n - j) ** 2 / bandwidth
    rounds = sum(-(-(j % PANEL) // AHEAD) + 1 for j in range(n))
    return {
        "barriers": n * BARRIERS * BARRIER_S,
        "columns": n * PIVOT_S + rounds * L2_LATENCY_S,
        "subtraction": arithmetic,
        "its memory": memory,
        "packing": n**2 / 2 * (8 + 2 * coefficient_bytes) / bandwidth,
    }


def expected_seconds(parts):
    """Arithmetic and memory at the share that is expected of a floor; the rest is assumed already."""
    floor = parts["subtraction"] + parts["its memory"] + parts["packing"]
    return parts["barriers"] + parts["columns"] + floor / EXPECTED_SHARE
