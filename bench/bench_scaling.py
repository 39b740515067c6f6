"""Cost against size: mvn_cdf over n, points, batch and threads, jac_cov over C and D; memory peaks.

python -m bench scaling [--n 9,49,99,199,499] [--large 999,1999,4096] [--points 512,4096,32768,262144]
                        [--batch 1,10,100,1000] [--classes 10,30,100,300] [--dim 300,3000,30000]
                        [--threads 1,2]

mvn_cdf at `--abs-tol` on hierarchies: variance .4 from a common cause, .2 from one for each ten
variables (three at n = 9), .4 of their own; limits rise linearly and give `--p`. The answer is an
integral of integrals, and rows that miss it by more than their errors are not timed. Times of a batch
are CPU time; over threads wall time, the best of the repeats, on a batch of the largest size at n = 9
and of a thirtieth of it at n = 99. `--large` takes what 4,096 points reach, so that the set-up is what
costs; `--points` samples every variable, in float32, by mvn_cdf_sums. "mb" is the memory of the process
at its peak beyond what it held before the call (VmHWM), the inputs not counted. "exponent" is that of
the time from the row before, in n, points, C or D.
"""

import ctypes
import itertools
import math
import sys
import time
import warnings
from pathlib import Path

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch
from scipy import optimize, special

LIBC = ctypes.CDLL(None)
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Trapezoids for a Gaussian times something smooth: converged beyond the digits that count.
NODES = np.linspace(-8, 8, 97)
WEIGHTS = np.exp(-0.5 * NODES**2) / math.sqrt(2 * math.pi) * (NODES[1] - NODES[0])
COMMON, SHARED = 0.4, 0.2


def group_size(n):
    """Ten, and fewer where that were one group: a single common cause is an exact form."""
    return max(1, min(10, n // 3))


def hierarchy(upper):
    """P(X <= upper) of the hierarchy, by quadrature over the common cause and each group's."""
    given = math.sqrt(COMMON) * NODES[:, None] + math.sqrt(SHARED) * NODES  # [common, shared]
    log_p = np.zeros(len(NODES))
    size = group_size(len(upper))
    for first in range(0, len(upper), size):
        members = upper[first : first + size, None, None]
        log_inner = special.log_ndtr((members - given) / math.sqrt(1 - COMMON - SHARED)).sum(0)
        log_p += np.log(np.exp(log_inner) @ WEIGHTS)
    return float(np.exp(log_p) @ WEIGHTS)


def problem(n, p):
    """Limits [n], covariance [n, n] and P(X <= upper), close to p."""
    slope = 2.5 * np.linspace(0, 1, n) if n > 1 else np.zeros(1)
    first = optimize.brentq(lambda u: hierarchy(u + slope) - p, -4, 6, xtol=1e-3)
    group = torch.arange(n) // group_size(n)
    cov = COMMON + SHARED * (group[:, None] == group).double()
    return torch.from_numpy(first + slope), cov.fill_diagonal_(1.0), hierarchy(first + slope)


def held_mb(name):
    """VmRSS or VmHWM in MB, None where there is no /proc."""
    if not STATUS.exists():
        return None
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def peak_mb(call):
    """Memory that call() needs beyond what is held, or None where the peak cannot be reset."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    # What the allocator keeps of earlier calls would hide what this one needs.
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)
    CLEAR.write_text("5")
    before = held_mb("VmRSS")
    call()
    return max(0.0, held_mb("VmHWM") - before)


def batched(n, batch, args):
    upper, cov, p = problem(n, args.p)
    return upper.expand(batch, n).contiguous(), cov.expand(batch, n, n).contiguous(), p


def checked_mvn_cdf(upper, cov, p, args, **options):
    from mvnrob import mvn_cdf

    call = lambda: mvn_cdf(
        upper, cov, seed=torch.arange(len(upper)), return_info=True,
        **({"abs_tol": args.abs_tol} | options),
    )  # fmt: skip
    result = call()
    off = (result.prob - p).abs()
    # One row in a hundred may miss; nearly all must not, and none by much.
    missed = float((off > result.error + 1e-12).double().mean())
    if missed > 0.05 or float((off / result.error).max()) > 3:
        raise SystemExit(f"bench scaling: {missed:.1%} of the rows miss, nothing is timed")
    return call, result, float(off.square().mean().sqrt())


def mvn_cdf_line(table, n, batch, args, **options):
    upper, cov, p = batched(n, batch, args)
    memory = peak_mb(lambda: checked_mvn_cdf(upper, cov, p, args, **options))
    call, result, rms = checked_mvn_cdf(upper, cov, p, args, **options)
    timing, _ = harness.cpu_time(call, args.repeats, least_s=0.05, budget_s=60)
    ms = {k: 1e3 * timing[f"{k}_s"] / batch for k in ("median", "min", "max")}
    return {
        "table": table, "n": n, "batch": batch, "abs_tol": options.get("abs_tol", args.abs_tol),
        "ms": ms["median"],
        "ms_min": ms["min"], "ms_max": ms["max"], "rms": rms, "mb": memory,
        "points_mean": float(result.n_points.double().mean()),
        "pivots_mean": float(result.n_pivots.double().mean()),
    }  # fmt: skip


def jac_cov_line(classes, dim, args):
    from mvnrob import _jac_cov as op

    batch = max(1, min(64, 4_000_000 // (classes * dim)))
    g = torch.Generator().manual_seed(0)
    J = torch.randn(batch, classes, dim, generator=g)
    logits, target = torch.randn(batch, classes, generator=g), torch.zeros(batch).long()
    call = lambda: op.jac_cov(J, logits, target, 0.1)
    error = float((call().corr[:1] - op.jac_cov_reference(J[:1], logits[:1], target[:1], 0.1).corr)
                  .abs().max())  # fmt: skip
    if not error < 1e-5:
        raise SystemExit(f"bench scaling: jac_cov is off by {error:.1e}, nothing is timed")
    memory = peak_mb(call)
    timing, _ = harness.cpu_time(call, args.repeats, least_s=0.02)
    ms = {k: 1e3 * timing[f"{k}_s"] / batch for k in ("median", "min", "max")}
    return {
        "table": "jac_cov", "C": classes, "D": dim, "batch": batch, "ms": ms["median"],
        "ms_min": ms["min"], "ms_max": ms["max"], "error": error, "mb": memory,
    }  # fmt: skip


def points_lines(n, counts, args):
    """All variables sampled and nothing decided on the way: so many points of all shifts together."""
    from mvnrob import pivoted_cholesky

    upper, cov, p = batched(n, 1, args)
    order = pivoted_cholesky(upper, cov).order
    for points in counts:
        call = lambda points=points: torch.ops.mvnrob.mvn_cdf_sums(
            upper, cov, None, torch.zeros(1).long(), order, points // 8, "float32"
        )
        shifts = call()[0, :, 0] / (points // 8)
        # Of right means of 8 shifts one in 5,000 is beyond seven of its standard errors.
        off, error = float((shifts.mean() - p).abs()), float(shifts.std() / 8**0.5)
        if off > 7 * error:
            raise SystemExit(f"bench scaling: {points} points are {off:.1e} off, nothing is timed")
        timing, _ = harness.cpu_time(call, args.repeats, least_s=0.05, budget_s=60)
        ms = {k: 1e3 * timing[f"{k}_s"] for k in ("median", "min", "max")}
        yield {
            "table": "points", "n": n, "points": points, "ms": ms["median"], "ms_min": ms["min"],
            "ms_max": ms["max"], "ns_point": 1e6 * ms["median"] / points, "stderr": error,
        }  # fmt: skip


def threads_lines(n, batch, counts, args):
    upper, cov, p = batched(n, batch, args)
    checked_mvn_cdf(upper, cov, p, args)
    lines = []
    for threads in counts:
        torch.set_num_threads(threads)
        call, _, rms = checked_mvn_cdf(upper, cov, p, args)
        walls = []
        for _ in range(args.repeats + 1):
            start = time.perf_counter()
            call()
            walls.append(time.perf_counter() - start)
        lines.append(
            {
                "table": "threads", "n": n, "batch": len(upper), "threads": threads,
                "abs_tol": args.abs_tol, "wall_ms": 1e3 * min(walls[1:]) / len(upper),
                "wall_ms_min": 1e3 * min(walls[1:]) / len(upper),
                "wall_ms_max": 1e3 * max(walls[1:]) / len(upper), "rms": rms,
            }
        )  # fmt: skip
    torch.set_num_threads(1)
    return lines


def with_rates(lines, axis):
    """Adds the exponent of the time from the row before."""
    for before, line in itertools.pairwise(lines):
        steps = line[axis] / before[axis]
        line["exponent"] = (
            math.log(line["ms"] / before["ms"]) / math.log(steps) if steps != 1 else None
        )
    return lines


def main():
    numbers = harness.several(harness.whole(), empty=True)
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--n", type=numbers, default="9,49,99,199,499")
    p.add_argument("--large", type=numbers, default="999,1999,4096",
                   help="n with 4,096 points at most")  # fmt: skip
    p.add_argument("--points", type=numbers, default="512,4096,32768,262144",
                   help="of all 8 shifts, at n = 9 and 99; multiples of 512")  # fmt: skip
    p.add_argument("--batch", type=numbers, default="1,10,100,1000", help="rows of a call at n = 9")
    p.add_argument("--classes", type=numbers, default="10,30,100,300", help="at D = 3000")
    p.add_argument("--dim", type=numbers, default="300,3000,30000", help="at C = 100")
    p.add_argument("--threads", type=numbers, default="1,2")
    p.add_argument("--abs-tol", type=harness.positive, default=1e-3)
    p.add_argument("--p", type=harness.number_between(0, 1), default=0.7)
    p.add_argument("--repeats", type=harness.whole(), default=5)
    args = p.parse_args()
    torch.set_num_threads(1)
    if any(v < 512 or v % 512 for v in args.points):
        p.error(f"--points must be multiples of 512, got {args.points}")
    warnings.filterwarnings("ignore", message="mvn_cdf: .*max_points")
    report = harness.environment()
    harness.show_environment(report)
    rows = with_rates([mvn_cdf_line("n", n, max(1, min(8, 800 // n)), args) for n in args.n], "n")
    few = {"abs_tol": 0.0, "max_points": 4096}
    rows += with_rates([mvn_cdf_line("large", n, 1, args, **few) for n in args.large], "n")
    for n in (9, 99):
        rows += with_rates(list(points_lines(n, args.points, args)), "points")
    rows += [mvn_cdf_line("batch", 9, batch, args) for batch in args.batch]
    rows += with_rates([jac_cov_line(c, 3000, args) for c in args.classes], "C")
    rows += with_rates([jac_cov_line(100, d, args) for d in args.dim], "D")
    if args.threads and args.batch:
        rows += threads_lines(9, max(args.batch), args.threads, args)
        rows += threads_lines(99, max(1, max(args.batch) // 30), args.threads, args)
    for table in dict.fromkeys(row["table"] for row in rows):
        part = [row for row in rows if row["table"] == table]
        print(f"\n{table}")
        harness.show(part, list(dict.fromkeys(k for row in part for k in row if k != "table")))
    harness.write("scaling", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
