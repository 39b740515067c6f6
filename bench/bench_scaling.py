"""Cost against size: mvn_cdf over n, batch and threads, jac_cov over C and D, with memory peaks.

python -m bench scaling [--n 9,49,99,199,499] [--batch 1,10,100,1000] [--classes 10,30,100,300]
                        [--dim 300,3000,30000] [--threads 1,2]

mvn_cdf at `--abs-tol` on hierarchies: variance .4 from a common cause, .2 from one for each ten
variables, .4 of their own; limits rise linearly and give `--p`. The answer is an integral of
integrals, and rows that miss it by more than their errors are not timed. Times of a batch are CPU time; over threads wall time, the best of the repeats, on a batch of the largest
size. "mb" is the memory of the process at its peak beyond what it held before the call (VmHWM), the
inputs not counted. "exponent" is that of the time from the row before, in n, C or D.
"""

import ctypes
import itertools
import math
import sys
import time
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
COMMON, SHARED, GROUP = 0.4, 0.2, 10


def hierarchy(upper):
    """P(X <= upper) of the hierarchy, by quadrature over the common cause and each group's."""
    given = math.sqrt(COMMON) * NODES[:, None] + math.sqrt(SHARED) * NODES  # [common, shared]
    log_p = np.zeros(len(NODES))
    for first in range(0, len(upper), GROUP):
        members = upper[first : first + GROUP, None, None]
        log_inner = special.log_ndtr((members - given) / math.sqrt(1 - COMMON - SHARED)).sum(0)
        log_p += np.log(np.exp(log_inner) @ WEIGHTS)
    return float(np.exp(log_p) @ WEIGHTS)


def problem(n, p):
    """Limits [n], covariance [n, n] and P(X <= upper), close to p."""
    slope = 2.5 * np.linspace(0, 1, n) if n > 1 else np.zeros(1)
    first = optimize.brentq(lambda u: hierarchy(u + slope) - p, -4, 6, xtol=1e-3)
    group = torch.arange(n) // GROUP
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


def checked_mvn_cdf(upper, cov, p, args):
    from mvnrob import mvn_cdf

    call = lambda: mvn_cdf(
        upper, cov, abs_tol=args.abs_tol, seed=torch.arange(len(upper)), return_info=True
    )
    result = call()
    off = (result.prob - p).abs()
    # One row in a hundred may miss; nearly all must not, and none by much.
    missed = float((off > result.error + 1e-12).double().mean())
    if missed > 0.05 or float((off / result.error).max()) > 3:
        raise SystemExit(f"bench scaling: {missed:.1%} of the rows miss, nothing is timed")
    return call, result, float(off.square().mean().sqrt())


def mvn_cdf_line(table, n, batch, args):
    upper, cov, p = batched(n, batch, args)
    memory = peak_mb(lambda: checked_mvn_cdf(upper, cov, p, args))
    call, result, rms = checked_mvn_cdf(upper, cov, p, args)
    timing, _ = harness.cpu_time(call, args.repeats, least_s=0.05)
    ms = {k: 1e3 * timing[f"{k}_s"] / batch for k in ("median", "min", "max")}
    return {
        "table": table, "n": n, "batch": batch, "abs_tol": args.abs_tol, "ms": ms["median"],
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


def threads_lines(counts, args):
    upper, cov, p = batched(9, max(args.batch), args)
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
                "table": "threads", "n": 9, "batch": len(upper), "threads": threads,
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
    numbers = lambda text: [int(v) for v in text.split(",") if v]
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--n", type=numbers, default="9,49,99,199,499")
    p.add_argument("--batch", type=numbers, default="1,10,100,1000", help="rows of a call at n = 9")
    p.add_argument("--classes", type=numbers, default="10,30,100,300", help="at D = 3000")
    p.add_argument("--dim", type=numbers, default="300,3000,30000", help="at C = 100")
    p.add_argument("--threads", type=numbers, default="1,2")
    p.add_argument("--abs-tol", type=float, default=1e-3)
    p.add_argument("--p", type=float, default=0.7)
    p.add_argument("--repeats", type=int, default=5)
    args = p.parse_args()
    torch.set_num_threads(1)
    report = harness.environment()
    harness.show_environment(report)
    rows = with_rates([mvn_cdf_line("n", n, max(1, min(8, 800 // n)), args) for n in args.n], "n")
    rows += [mvn_cdf_line("batch", 9, batch, args) for batch in args.batch]
    rows += with_rates([jac_cov_line(c, 3000, args) for c in args.classes], "C")
    rows += with_rates([jac_cov_line(100, d, args) for d in args.dim], "D")
    if args.threads and args.batch:
        rows += threads_lines(args.threads, args)
    for table in dict.fromkeys(row["table"] for row in rows):
        part = [row for row in rows if row["table"] == table]
        print(f"\n{table}")
        harness.show(part, list(dict.fromkeys(k for row in part for k in row if k != "table")))
    harness.write("scaling", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
