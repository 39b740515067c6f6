"""Floors beside what a GPU was measured to do, and the share of the floor that was reached.

A row gets `floor_per_s` (problems, or elements, a second) or `floor_ms` (of a call), `limiter` and
`share`. bench_cuda.py and bench_jac_cov.py write them with the counts of the code that they time; a
result of before that has none is given them when the page is made (`with_floors`), by the counts
committed now (bench/results/cuda_predicted*.json). Which device: bench/cuda_card.py. A floor holds for
the kernels named here alone: planning, launches and latency are what the rest of the time is.
"""

import functools
import json

from bench import (
    cuda_card,
    cuda_floor,
    cuda_floor_bvn,
    cuda_floor_grow,
    cuda_floor_jac_cov,
    cuda_floor_pathwise,
    cuda_floor_tensor,
    cuda_floor_tensor_double,
)

#: float64 is taken for tolerances below this (mvn_cdf's docstring).
LEAST_FLOAT32 = 1e-5


@functools.cache
def counted(path):
    """A prediction file, or None where it is missing."""
    return json.loads(path.read_text()) if path.exists() else None


def sampler(pivots, completed, points, dtype, device):
    """{limiter: seconds of a problem} of the sampler that takes such a row."""
    if dtype == "float32" and pivots >= cuda_floor_tensor.tensor_pivots():
        counts = counted(cuda_floor_tensor.RESULTS)["counts"]
        return cuda_floor_tensor.seconds(pivots, points, counts, completed, device=device)
    if dtype == "float64" and cuda_floor_tensor_double.takes(pivots, completed):
        counts = counted(cuda_floor_tensor_double.RESULTS)["counts"]
        return cuda_floor_tensor_double.seconds(pivots, points, counts, completed, device)
    counts = counted(cuda_floor.RESULTS)["counts"]
    _, busy = cuda_floor.cycles(pivots, completed, dtype, counts)
    lanes = device["multiprocessors"] * cuda_floor.SCHEDULERS * cuda_floor.LANES
    return {u: points * x / (lanes * device["clock_hz"]) for u, x in busy.items()}


def mean_floor(result, dtype, device):
    """(problems/s, limiter) of factor and sampler for all rows of an answer of mvn_cdf, each with its points,
    pivots and completed variables; None where nothing was sampled."""
    kinds = zip(
        result.n_pivots.tolist(), (result.n_active - result.n_pivots).tolist(),
        result.n_points.tolist(), strict=True,
    )  # fmt: skip
    total, limiters, rows = 0.0, {}, 0
    numbers = {}
    for kind in kinds:
        numbers[kind] = numbers.get(kind, 0) + 1
    for (pivots, completed, points), number in numbers.items():
        rows += number
        if points > 0 and pivots > 0:
            per_s, limiter = row_floor(pivots, max(0, completed), points, dtype, device)
            total += number / per_s
            limiters[limiter] = limiters.get(limiter, 0.0) + number / per_s
    return (rows / total, max(limiters, key=limiters.get)) if total else None


def row_floor(pivots, completed, points, dtype, device):
    """(problems/s, limiter) of a row of mvn_cdf: the factor's columns, then the samples."""
    busy = sampler(pivots, completed, points, dtype, device)
    limiter = max(busy, key=busy.get)
    factor = cuda_floor_pathwise.factor_seconds(pivots + completed, pivots, device, written=False)
    planning = max(factor.values())
    return 1 / (busy[limiter] + planning), limiter if busy[limiter] >= planning else "factor"


def rate(busy):
    """(problems/s, limiter) of {limiter: seconds}."""
    limiter = max(busy, key=busy.get)
    return 1 / busy[limiter], limiter


def jac_cov_floor(row, device):
    if row.get("chunk"):  # each chunk is the same data, which a cache may hold
        return None
    return cuda_floor_jac_cov.problems_per_s(row["op"], row["C"], row["D"], row["dtype"], device)


def sov_floor(row, device):
    return rate(sampler(row["n"], 0, row["points"], row["dtype"], device))


def tolerance_floor(row, device):
    """At the means of the points and of the sampled variables; the completed are not known here."""
    pivots = max(1, round(row["pivots_mean"]))
    dtype = "float32" if row["abs_tol"] >= LEAST_FLOAT32 else "float64"
    points = row["points_mean"]
    return row_floor(pivots, 0, points, dtype, device) if points else None


def large_floor(row, device):
    """Factor (its subtraction and bytes, without barriers and waits), then the sampler of a row alone."""
    tensor = counted(cuda_floor_tensor.RESULTS)
    n, points = row["n"], row["points"]
    factor = cuda_floor_grow.seconds(n, tensor["grow"], device["dram"], device=device)
    parts = {
        "subtraction": factor["subtraction"] + factor["its memory"] + factor["packing"],
        "samples": max(
            cuda_floor_tensor.seconds(
                n, points, tensor["counts"], alone=True, device=device
            ).values()
        ),
    }
    return 1 / sum(parts.values()), max(parts, key=parts.get)


def slopes_floor(row, device):
    """Samples, then what is made of their sums."""
    to_cov = row["to"] == "cov"
    busy = cuda_floor_pathwise.seconds(row["n"], row["points"], row["dtype"], to_cov, device)
    limiter = max(busy, key=busy.get)
    behind = max(cuda_floor_pathwise.cov_seconds(row["n"], device).values()) if to_cov else 0.0
    return 1 / (busy[limiter] + behind), limiter if busy[limiter] >= behind else "cov"


# Of each table: the floor, what was measured, and whether it stands as a rate or a time.
TABLES = {
    "sov": (sov_floor, "problems_per_s"),
    "tolerance": (tolerance_floor, "problems_per_s"),
    "bvn": (lambda row, device: cuda_floor_bvn.elements_per_s(device), "elements_per_s"),
    "cholesky": (
        lambda row, device: rate(cuda_floor_pathwise.factor_seconds(row["n"], row["n"], device)),
        "problems_per_s",
    ),
    "large": (large_floor, "median_ms"),
    "slopes": (slopes_floor, "slopes_ms"),
    "jac_cov": (jac_cov_floor, "ms"),
}


def floors_of(table, row, device):
    """{floor_per_s or floor_ms, limiter, share} of a measured row; nothing where there is no floor."""
    floor, measured = TABLES.get(table, (None, None))
    if device is None or row.get(measured) is None or "share" in row:
        return {}
    try:
        found = floor(row, device)
    except (TypeError, KeyError, OSError):  # counts are missing, or older than these names
        return {}
    if found is None:
        return {}
    per_s, limiter = found
    if measured.endswith("_per_s"):
        return {"floor_per_s": per_s, "limiter": limiter, "share": row[measured] / per_s}
    # jac_cov's milliseconds are a problem's already, those of slopes a batch's.
    milliseconds = 1e3 / per_s * (row.get("batch", 1) if table == "slopes" else 1)
    return {"floor_ms": milliseconds, "limiter": limiter, "share": milliseconds / row[measured]}


def with_floors(rows, environment):
    """The rows of a result of a GPU, each with its floor where one is known."""
    device = cuda_card.of(environment)
    table = lambda row: "jac_cov" if "op" in row else row.get("table")
    return [row | floors_of(table(row), row, device) for row in rows]
