"""mvn_cdf on a GPU: time and true error together, beside its peers on the same machine.

python -m bench.bench_cuda [--n 9,99,999] [--tolerances 1e-2,1e-3,1e-4] [--json FILE]

Tables, in this order; FILE has each row as soon as it is there:
- latency: batches of 1, 10 and 100: GPU time, wall time, and replay of a CUDA graph.
- sov: every variable sampled, N points fixed.
- large: one problem of many variables, all sampled after a factor of full rank by the whole grid.
- bvn: bvn_cdf.
- cholesky: pivoted_cholesky of large batches, all columns.
- tolerance: problems/s of large batches at a 99 % error asked for, with the true rms error against
  exact or reference answers; what crude Monte Carlo needs for that rms error on the same GPU (factor
  included, its draws reckoned from a measured rate); the CPU backend on all threads, in calls large
  enough to take a thousandth of the budget.
- slopes: every variable sampled, the same points: the derivatives of the samples (mvn_cdf_pathwise)
  to limits, or to limits and covariance, beside their sums (mvn_cdf_sums).
- mvnxpb: BoTorch's approximation on the same problems with the rms error that it has. Last, because
  nothing bounds its time.

Beside a time, where one is known, stands the floor for this device and the share of it that was reached
(bench/cuda_shares.py). Device time by events, L2 cache flushed before each call, median and quartiles. A wrong answer is not
timed: the row says what was wrong and the exit code is 1. `--device cpu` tries the program itself.
"""

import json
import math
import os
import sys
from pathlib import Path

# First: it asks for one numpy thread before numpy is there, and holds the groups of problems.
from bench import bench_mvn_cdf as cpu_bench  # isort: skip

import honesty
import numpy as np
import torch
from two_levels import two_levels

import mvnrob
from bench import (
    classifiers,
    cuda_card,
    cuda_environment,
    cuda_shares,
    cuda_timing,
    harness,
    peers,
)
from mvnrob import Status, mvn_cdf

# Problems of one timed call, per n, as far as memory and time allow.
BATCH = {9: 100_000, 99: 10_000, 999: 1_000}
# Goals set beforehand for one H200: problems/s at rms error 1e-3.
GOALS = {9: 3e6, 99: 2e5, 999: 8e3}
# What a part that fails may raise: its row says so and the rest goes on.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError)
COLUMNS = {
    "tolerance": (
        "n", "group", "batch", "abs_tol", "problems_per_s", "q1_ms", "median_ms", "q3_ms", "rms",
        "beyond_error", "converged", "points_mean", "pivots_mean", "goal_at_rms_1e-3",
        "crude_per_s", "ours/crude", "cpu_batch", "cpu_per_s", "ours/cpu", "share", "sm_mhz", "note",
    ),
    "latency": ("n", "batch", "abs_tol", "device_us", "wall_us", "graph_us", "note"),
    "sov": (
        "n", "batch", "points", "dtype", "what", "problems_per_s", "floor_per_s", "share", "note",
    ),
    "slopes": (
        "n", "batch", "points", "dtype", "to", "sums_ms", "slopes_ms", "slopes/sums", "share", "note",
    ),
    "mvnxpb": ("n", "group", "batch", "problems_per_s", "rms", "nan", "note"),
    "large": (
        "n", "points", "pivots", "error", "off", "q1_ms", "median_ms", "q3_ms", "share", "note",
    ),
    "bvn": ("elements", "elements_per_s", "gb_per_s", "max_difference", "share", "note"),
    "cholesky": ("n", "batch", "problems_per_s", "error", "share", "note"),
}  # fmt: skip


class Bench:
    """Arguments, budget and the rows so far."""

    def __init__(self, args):
        self.args = args
        self.device = torch.device(args.device)
        self.start()
        self.rows, self.missing, self.remarks, self.wrong = [], [], [], 0
        self.shown = 0
        self.report = harness.environment() | {"commit": cuda_environment.commit()}
        self.card = None
        if self.device.type == "cuda":
            self.report |= cuda_environment.gpu()
            self.report["copy_tb_s"] = cuda_timing.copy_tb_s(self.device)
            self.card = cuda_card.of(self.report)

    def start(self):
        self.budget = cuda_timing.Budget(self.args.budget)

    def add(self, table, row):
        self.rows.append({"table": table, **row, **cuda_shares.floors_of(table, row, self.card)})
        self.wrong += "wrong" in row.get("note", "")
        self.save()

    def attempt(self, table, row, measure):
        """Adds what measure() returns to a row; an error makes it a wrong one."""
        try:
            row = row | measure()
        except FAILURES as error:
            said = (str(error).splitlines() or [""])[0]
            row = row | {"note": f"wrong: {type(error).__name__}: {said}"}
        self.add(table, row)

    def enough(self, what, seconds=2.0):
        if self.budget.left() > seconds:
            return True
        self.missing.append(what)
        return False

    def finish(self, table):
        """Prints what is new of a table."""
        lines = [row for row in self.rows[self.shown :] if row["table"] == table]
        self.shown = len(self.rows)
        if not lines:
            return
        print(f"\n{table}: {self.clock_words()}")
        harness.show(lines, [c for c in COLUMNS[table] if any(c in row for row in lines)])

    def save(self):
        """Everything known so far: a run that is cut off leaves it."""
        if self.args.json:
            content = {
                "environment": self.report,
                "not_run": self.missing,
                "remarks": self.remarks,
                "rows": self.rows,
            }
            Path(self.args.json).write_text(json.dumps(content, indent=1) + "\n")

    def clock_words(self):
        state = cuda_environment.clocks() if self.device.type == "cuda" else None
        if state is None:
            return "clocks unknown"
        return f"SM {state['clocks.sm']} MHz, memory {state['clocks.mem']} MHz just after"

    def clock_mhz(self, name):
        if self.device.type != "cuda":
            return None
        value = (cuda_environment.clocks() or {}).get(name)
        return value if isinstance(value, float) else None

    def largest_batch(self, n):
        """Covariances in float64, the workspace and the peers' copies have to fit."""
        free = 2**30
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info(self.device)[0]
        wanted = max(1, int(BATCH.get(n, 1000) * self.args.scale))
        return max(1, min(wanted, int(free / 6 / (8 * n * n))))


def classifiers_of(n):
    """Problems as networks make them; their reference answers take seconds on many cores."""
    torch.set_num_threads(os.cpu_count())
    known = classifiers.references(n, cpu_bench.QUICK, 0, log=lambda line: None)
    return cpu_bench.Group(
        "classifiers",
        [c.name for c, _, _ in known],
        torch.from_numpy(np.stack([c.upper for c, _, _ in known])),
        torch.from_numpy(np.stack([c.cov for c, _, _ in known])),
        np.array([p for _, p, _ in known]),
        np.array([e for _, _, e in known]),
        [],
    )


class Batch:
    """The problems of a group again and again, each with a seed of its own, on a device."""

    def __init__(self, group, size, device):
        index = torch.arange(size) % group.size
        on = index.to(device)
        self.size, self.n = size, group.upper.shape[1]
        self.upper = group.upper.to(device)[on]
        self.cov = group.cov.to(device)[on]
        self.seed = torch.arange(size, device=device)
        self.truth = torch.from_numpy(group.truth)[index]
        self.truth_error = torch.from_numpy(group.truth_error)[index]

    def evaluate(self, **options):
        return mvn_cdf(self.upper, self.cov, seed=self.seed, return_info=True, **options)

    def off(self, result):
        """|prob - truth| of each row, on the CPU."""
        return (result.prob.cpu().double() - self.truth).abs()

    def wrong(self, result):
        """What is wrong with these answers, or None."""
        off = self.off(result)
        misses = int((~(off <= result.error.cpu() + self.truth_error + 1e-12)).sum())
        if not bool(result.prob.isfinite().all()):
            return f"wrong: {int((~result.prob.isfinite()).sum())} of {self.size} are not finite"
        if honesty.p_value(misses, self.size) < 1e-4:
            return f"wrong: {misses} of {self.size} off by more than their 99 % error"
        return None


def rms(values):
    return float(values.double().square().mean().sqrt())


def batch_within(bench, group, tol, seconds):
    """The largest batch whose timing is likely to fit in `seconds`."""
    size = min(group.size, bench.largest_batch(group.upper.shape[1]))
    largest = bench.largest_batch(group.upper.shape[1])
    while True:
        batch = Batch(group, size, bench.device)
        batch.evaluate(abs_tol=tol)  # the first call also loads the kernels
        took, _ = cuda_timing.once(
            lambda batch=batch: batch.evaluate(abs_tol=tol), bench.device, lambda: None
        )
        if size >= largest or 4 * took > seconds:
            return batch
        # Small batches do not fill the device, so time grows slower than this.
        size = min(largest, 16 * size, max(size, int(size * seconds / (4 * took))))


def tolerance_row(bench, group, tol, beside):
    device, n = bench.device, group.upper.shape[1]
    batch = batch_within(bench, group, tol, seconds=0.04 * bench.args.budget)
    result = batch.evaluate(abs_tol=tol)
    row = {"batch": batch.size}
    if said := batch.wrong(result):
        return row | {"note": said}
    timing, _ = cuda_timing.measure(
        lambda: batch.evaluate(abs_tol=tol), device, budget_s=0.03 * bench.args.budget
    )
    off = batch.off(result)
    beyond = off > result.error.cpu() + batch.truth_error + 1e-12
    rate = batch.size / timing["median_s"]
    row |= {
        "problems_per_s": rate,
        **{f"{name}_ms": 1e3 * timing[f"{name}_s"] for name in ("q1", "median", "q3")},
        "repeats": timing["repeats"],
        "rms": rms(off),
        "max": float(off.max()),
        "rms_reference": rms(batch.truth_error / 2.6),
        "beyond_error": float(beyond.double().mean()),
        "converged": float((result.status != Status.MAX_POINTS).double().mean()),
        "points_mean": float(result.n_points.double().mean()),
        "pivots_mean": float(result.n_pivots.double().mean()),
        "goal_at_rms_1e-3": GOALS.get(n),
        "sm_mhz": bench.clock_mhz("clocks.sm"),
    }
    dtype = "float32" if tol >= cuda_shares.LEAST_FLOAT32 else "float64"
    if bench.card and (found := cuda_shares.mean_floor(result, dtype, bench.card)):
        row |= {"floor_per_s": found[0], "limiter": found[1], "share": rate / found[0]}
    if crude := beside["crude"]:
        # sqrt(p (1 - p) / draws), averaged over the problems, is as large as our rms error.
        pq = float((batch.truth * (1 - batch.truth)).mean())
        seconds = crude["factor_s"] + crude["draw_s"] * max(1.0, pq / row["rms"] ** 2)
        row |= {"crude_per_s": 1 / seconds, "ours/crude": rate * seconds}
    if cpu := cpu_rate(bench, group, tol, beside, max(batch.size, group.size)):
        row |= {**cpu, "ours/cpu": rate / cpu["cpu_per_s"]}
    return row


def cpu_rate(bench, group, tol, beside, most):
    """Problems/s of the CPU backend on all threads in a call of up to `most` problems, and how many
    it had; None once it has become too slow to wait for."""
    if beside.get("cpu_s", 0) > 0.02 * bench.args.budget:
        return None
    torch.set_num_threads(os.cpu_count())
    size = group.size
    while True:
        batch = Batch(group, size, torch.device("cpu"))
        took, result = cuda_timing.once(
            lambda batch=batch: batch.evaluate(abs_tol=tol), batch.upper.device, lambda: None
        )
        if said := batch.wrong(result):
            raise RuntimeError(f"CPU backend, n = {batch.n}: {said}")
        # A thread takes whole problems: few of them leave cores idle.
        if took > 0.001 * bench.args.budget or size >= most:
            break
        size = min(most, 8 * size)
    beside["cpu_s"] = took
    return {"cpu_batch": size, "cpu_per_s": size / took}


def crude_of(bench, group):
    """Crude Monte Carlo knows no tolerance: once for a group is enough. None when it miscounts."""
    batch = Batch(group, min(group.size, bench.largest_batch(group.upper.shape[1])), bench.device)
    crude = peers.crude(batch.upper, batch.cov, batch.truth, bench.device, 0.03 * bench.args.budget)
    bench.add("crude", {"n": batch.n, "group": group.name, "batch": batch.size, **crude})
    if not crude["right"]:
        bench.remarks.append(f"crude Monte Carlo, n = {batch.n}, miscounts and is left out")
        return None
    return crude


def mvnxpb_row(bench, group):
    n = group.upper.shape[1]
    if bench.device.type == "cpu" and n > 200:
        return {"note": "takes minutes on a CPU"}
    # Its many launches dominate small batches: let it have a large one.
    size = min(group.size * (1 if n > 200 else 50), bench.largest_batch(n))
    batch = Batch(group, size, bench.device)
    answer = peers.mvnxpb(batch.upper, batch.cov, bench.device, 0.03 * bench.args.budget)
    if isinstance(answer, str):
        return {"note": answer}
    timing, prob = answer
    finite = prob.isfinite()
    return {
        "batch": batch.size,
        "problems_per_s": batch.size / timing["median_s"],
        "rms": rms((prob - batch.truth)[finite]),
        "nan": int((~finite).sum()),
    }


def mvnxpb_table(bench, groups):
    for group in groups:
        n = group.upper.shape[1]
        if bench.enough(f"mvnxpb, n = {n}, {group.name}", 5):
            row = {"n": n, "group": group.name}
            bench.attempt("mvnxpb", row, lambda group=group: mvnxpb_row(bench, group))
            bench.finish("mvnxpb")


def tolerance_table(bench, groups):
    for group in groups:
        n = group.upper.shape[1]
        if not bench.enough(f"tolerance, n = {n}, {group.name}", 5):
            continue
        beside = {"crude": None}
        try:
            beside["crude"] = crude_of(bench, group)
        except FAILURES as error:
            bench.remarks.append(f"crude Monte Carlo, n = {n}, {group.name}: {error}")
        for tol in sorted(map(float, bench.args.tolerances.split(",")), reverse=True):
            if bench.enough(f"tolerance, n = {n}, {group.name}, {tol:g}", 5):
                bench.attempt(
                    "tolerance",
                    {"n": n, "group": group.name, "abs_tol": tol},
                    lambda group=group, tol=tol, beside=beside: tolerance_row(
                        bench, group, tol, beside
                    ),
                )
    bench.finish("tolerance")


def latency_row(bench, group, size, tol):
    device = bench.device
    batch = Batch(group, size, device)
    call = lambda: batch.evaluate(abs_tol=tol)
    row = {}
    result = call()
    if said := batch.wrong(result):
        return {"note": said}
    each = 0.01 * bench.args.budget
    timing, _ = cuda_timing.measure(call, device, repeats=21, budget_s=each)
    row["device_us"] = 1e6 * timing["median_s"]
    row["wall_us"] = 1e6 * cuda_timing.wall(
        call, device, repeats=21 if row["device_us"] < 1e5 else 2
    )
    if device.type != "cuda":
        return row | {"note": "a graph needs a GPU"}
    try:
        graph, captured = cuda_timing.capture(call)
    except RuntimeError as error:
        return row | {"note": f"wrong: capture fails: {str(error).splitlines()[0]}"}
    graph.replay()
    if not torch.equal(captured.prob, result.prob):
        return row | {"note": "wrong: the replay gives another answer"}
    timing, _ = cuda_timing.measure(graph.replay, device, repeats=21, budget_s=each)
    return row | {"graph_us": 1e6 * timing["median_s"]}


def latency_table(bench, groups):
    for group in groups:
        n = group.upper.shape[1]
        for size in (1, 10, 100):
            if bench.enough(f"latency, n = {n}, batch {size}", 3):
                bench.attempt(
                    "latency",
                    {"n": n, "batch": size, "abs_tol": 1e-3},
                    lambda group=group, size=size: latency_row(bench, group, size, 1e-3),
                )
    bench.finish("latency")


def sums_wrong(sums, batch, per_shift):
    """What is wrong with the sums of mvn_cdf_sums, or None.

    They state no error: the spread over the shifts stands in, with Student's t of 8 of them at one
    in a thousand.
    """
    means = sums[:, :, 0].cpu() / per_shift
    off = (means.mean(1) - batch.truth).abs()
    allowed = 5.4 * means.std(1) / math.sqrt(8) + batch.truth_error + 1e-5
    share = float((~(off <= allowed)).double().mean())
    return f"wrong: {share:.1%} of the sums are off" if share > 0.03 else None


def sov_row(bench, group, dtype, what):
    """Every variable sampled at N points: by mvn_cdf itself, or the sums alone."""
    n, device = group.upper.shape[1], bench.device
    # In steps of 64 for each of 8 shifts.
    per_shift = 64 * max(1, round(bench.args.points / 512))
    points, name = 8 * per_shift, str(dtype).removeprefix("torch.")
    options = {"abs_tol": 0.0, "max_points": points, "method": "sov", "compute_dtype": dtype}

    def call(batch):
        if what == "mvn_cdf":
            return batch.evaluate(**options)
        order = torch.arange(n, device=device).expand(batch.size, n)
        return torch.ops.mvnrob.mvn_cdf_sums(
            batch.upper, batch.cov, None, batch.seed, order, per_shift, name
        )

    size = bench.largest_batch(n)
    if device.type == "cpu":  # the program is tried, nothing else
        small = Batch(group, 1, device)
        took, _ = cuda_timing.once(lambda: call(small), device, lambda: None)
        size = max(1, min(size, int(0.02 * bench.args.budget / took)))
    batch = Batch(group, size, device)
    row = {"batch": batch.size, "points": points}
    result = call(batch)
    if what == "sums":
        said = sums_wrong(result, batch, per_shift)
    else:
        said = batch.wrong(result)
        if said is None and not bool((result.n_points == points).all()):
            said = f"wrong: {float(result.n_points.double().mean()):g} points were taken"
    if said:
        return row | {"note": said}
    timing, _ = cuda_timing.measure(
        lambda: call(batch), device, repeats=5, warm_up=1, budget_s=0.02 * bench.args.budget
    )
    row |= {"problems_per_s": batch.size / timing["median_s"]}
    row |= {f"{part}_ms": 1e3 * timing[f"{part}_s"] for part in ("q1", "median", "q3")}
    return row | {"sm_mhz": bench.clock_mhz("clocks.sm")}


def sov_table(bench, groups):
    for group in groups:
        n = group.upper.shape[1]
        for dtype in (torch.float32, torch.float64):
            for what in ("mvn_cdf", "sums"):
                if bench.enough(f"sov, n = {n}, {dtype}, {what}", 3):
                    bench.attempt(
                        "sov",
                        {"n": n, "dtype": str(dtype).removeprefix("torch."), "what": what},
                        lambda group=group, dtype=dtype, what=what: sov_row(
                            bench, group, dtype, what
                        ),
                    )
    bench.finish("sov")


def slopes_row(bench, group, dtype, wants_cov):
    n, device = group.upper.shape[1], bench.device
    # The sums of slopes to cov are 64 n^2 bytes a row.
    batch = Batch(group, min(bench.largest_batch(n), max(1, int(2e7 / n**2))), device)
    per_shift = max(64, int(bench.args.points / 8) // 64 * 64)

    def arguments(rows):
        where, order = rows.upper.device, torch.arange(n, device=rows.upper.device)
        order = order.expand(rows.size, n).contiguous()
        first = torch.zeros(rows.size, dtype=torch.int64, device=where)
        weight = torch.ones(rows.size, 8, dtype=torch.float64, device=where)
        given = rows.upper, rows.cov, None, rows.seed, order
        return given, (*given, first, first + per_shift, weight, dtype, wants_cov)

    few = [torch.ops.mvnrob.mvn_cdf_pathwise(*arguments(Batch(group, 2, d))[1])
           for d in (device, torch.device("cpu"))]  # fmt: skip
    for name, ours, theirs in zip(("value", "upper", "lower", "cov"), *few, strict=False):
        if theirs.numel() == 0:
            continue
        off = float((ours.cpu() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300))
        if not off < (4e-4 if dtype == "float32" else 1e-8):
            return {"note": f"wrong: {name} off by {off:.2g} of the largest"}
    given, forced = arguments(batch)
    sums, _ = cuda_timing.measure(
        lambda: torch.ops.mvnrob.mvn_cdf_sums(*given, per_shift, dtype), device, 5, budget_s=2
    )
    slopes, _ = cuda_timing.measure(
        lambda: torch.ops.mvnrob.mvn_cdf_pathwise(*forced), device, 5, budget_s=2
    )
    return {
        "batch": batch.size,
        "points": 8 * per_shift,
        "sums_ms": 1e3 * sums["median_s"],
        "slopes_ms": 1e3 * slopes["median_s"],
        "slopes/sums": slopes["median_s"] / sums["median_s"],
    }


def slopes_table(bench, groups):
    for group in groups:
        n = group.upper.shape[1]
        for dtype in ("float32", "float64"):
            for wants_cov in (False, True):
                to = "cov" if wants_cov else "limits"
                if bench.enough(f"slopes, n = {n}, {dtype}, to {to}", 3):
                    bench.attempt(
                        "slopes",
                        {"n": n, "dtype": dtype, "to": to},
                        lambda group=group, dtype=dtype, wants_cov=wants_cov: slopes_row(
                            bench, group, dtype, wants_cov
                        ),
                    )
    bench.finish("slopes")


def large_row(bench, n):
    upper, cov, truth = two_levels(n, bench.device)
    options = {"abs_tol": 1e-2, "method": "sov", "seed": 0, "return_info": True}
    r = mvn_cdf(upper, cov, **options)
    off, error = abs(float(r.prob) - truth), float(r.error)
    row = {"error": error, "off": off, "points": int(r.n_points), "pivots": int(r.n_pivots)}
    if not off <= error:
        return row | {"note": f"wrong: off by {off:.2g}"}
    timing, _ = cuda_timing.measure(
        lambda: mvn_cdf(upper, cov, **options), bench.device, repeats=3, budget_s=10
    )
    return row | {f"{name}_ms": 1e3 * timing[f"{name}_s"] for name in ("q1", "median", "q3")}


def large_table(bench):
    for n in (2048, 16_384) if bench.device.type == "cuda" else (256,):
        if bench.enough(f"large, n = {n}", 10):
            bench.attempt("large", {"n": n}, lambda n=n: large_row(bench, n))
    bench.finish("large")


def bvn_row(bench, count):
    generator = torch.Generator().manual_seed(0)
    h, k = 2 * torch.randn(2, count, generator=generator, dtype=torch.float64)
    rho = 2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1
    on = [t.to(bench.device) for t in (h, k, rho)]
    # Part of it is enough to know that the answer is right.
    part = slice(0, 10_000)
    expected = mvnrob.bvn_cdf(h[part], k[part], rho[part])
    off = float((mvnrob.bvn_cdf(*(t[part] for t in on)).cpu() - expected).abs().max())
    if not off < 1e-14:
        return {"note": f"wrong: off by {off:.2g}"}
    # The op itself: the public function also marks what is no correlation.
    timing, _ = cuda_timing.measure(
        lambda: torch.ops.mvnrob.bvn_cdf(*on), bench.device, repeats=5, budget_s=3
    )
    rate = count / timing["median_s"]
    return {"elements_per_s": rate, "gb_per_s": 32e-9 * rate, "max_difference": off}


def cholesky_row(bench, group):
    n = group.upper.shape[1]
    batch = Batch(group, bench.largest_batch(n), bench.device)
    few = Batch(group, 1, bench.device)
    made = mvnrob.pivoted_cholesky(few.upper, few.cov)
    off = (made.factor @ made.factor.mT - few.cov).abs().max() / few.cov.abs().max()
    row = {"batch": batch.size, "error": float(off)}
    if not row["error"] < 1e-12:
        return row | {"note": f"wrong: off by {row['error']:.2g}"}
    timing, _ = cuda_timing.measure(
        lambda: mvnrob.pivoted_cholesky(batch.upper, batch.cov), bench.device, repeats=5,
        warm_up=1, budget_s=0.01 * bench.args.budget,
    )  # fmt: skip
    return row | {"problems_per_s": batch.size / timing["median_s"]}


def cholesky_table(bench, groups):
    for group in groups:
        n = group.upper.shape[1]
        if bench.enough(f"cholesky, n = {n}"):
            bench.attempt("cholesky", {"n": n}, lambda group=group: cholesky_row(bench, group))
    bench.finish("cholesky")


def bvn_table(bench):
    if bench.enough("bvn"):
        count = int(2**24 * min(1.0, bench.args.scale))
        bench.attempt("bvn", {"elements": count}, lambda: bvn_row(bench, count))
    bench.finish("bvn")


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--json", help="file for all rows")
    p.add_argument("--n", default="9,99,999")
    p.add_argument("--tolerances", default="1e-2,1e-3,1e-4", help="99 %% errors asked for")
    p.add_argument(
        "--points", type=float, default=1e4, help="of the table sov, all shifts together"
    )
    p.add_argument("--budget", type=float, default=100.0, help="seconds; what is left out is named")
    p.add_argument("--device", default="cuda")
    p.add_argument("--scale", type=float, default=1.0, help="of the batches")
    args = p.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            f"bench_cuda: torch {torch.__version__} finds no GPU (--device cpu tries the program)"
        )
    bench = Bench(args)
    harness.show_environment(bench.report)
    sizes = [int(v) for v in args.n.split(",")]
    # Exact problems first: nothing has to be computed beforehand.
    groups = [
        cpu_bench.exact_group(n, cpu_bench.CLASSIFIER_LIKE, "exact")
        for n in sorted(sizes, reverse=True)
    ]
    bench.start()  # what was computed beforehand is not the GPU's
    latency_table(bench, groups)
    sov_table(bench, groups)
    large_table(bench)
    bvn_table(bench)
    cholesky_table(bench, groups)
    tolerance_table(bench, groups)
    slopes_table(bench, groups)
    for n in sizes:
        if n in (9, 99) and bench.enough(f"classifiers, n = {n}", 10):
            groups.append(classifiers_of(n))
            tolerance_table(bench, groups[-1:])
    mvnxpb_table(bench, groups)
    bench.save()
    for what in bench.missing:
        print(f"# not run, no time left: {what}")
    for remark in bench.remarks:
        print(f"# {remark}")
    print(f"# {bench.args.budget - bench.budget.left():.0f} s, {bench.wrong} wrong rows")
    return bool(bench.wrong)


if __name__ == "__main__":
    sys.exit(main())
