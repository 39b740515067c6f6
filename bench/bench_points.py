"""The point sets of mvn_cdf: time and true error of each, on the problems of bench/classifiers.py.

python -m bench points [--n 9,49,99,199,499] [--quick]

One thread, CPU time (time.process_time), every set in turn on the same problems.
- "points": every variable sampled (method "sov", float64) with a fixed number of points. No reference
  is needed: the estimates are unbiased, so their spread over fresh seeds is the rms error.
- "tolerance": calls that ask for a 99 % error; rms error against reference answers, share of rows beyond
  the error reported, time.
- "goal": time at equal true rms error, by the largest tolerance that reaches it.
Groups: all problems; those of the networks ("mlp": nearly singular at n = 9); of the linear models
("lin": singular, but at n = 49 nearly).
"""

import sys
import warnings

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch

from bench import bench_mvn_cdf, classifiers

SETS = ("richtmyer", "lattice", "sobol")
COUNTS = {9: 54, 49: 36, 99: 36, 199: 18, 499: 18}
POINTS = {9: (512, 8192, 2**17, 2**20), 49: (512, 8192, 2**17), 99: (512, 8192, 2**17),
          199: (512, 8192, 2**16), 499: (512, 8192)}  # fmt: skip
TOLERANCES = {9: (1e-3, 1e-4, 1e-5), 49: (1e-3, 1e-4), 99: (1e-3, 1e-4), 199: (1e-3,), 499: (1e-3,)}
GOALS = {9: (1e-3, 1e-4, 1e-5), 49: (1e-3, 1e-4), 99: (1e-3, 1e-4), 199: (1e-3,), 499: (1e-3,)}


def problems(n, count):
    known = classifiers.references(n, count, 0)
    every = bench_mvn_cdf.Group(
        "all",
        [c.name for c, _, _ in known],
        torch.from_numpy(np.stack([c.upper for c, _, _ in known])),
        torch.from_numpy(np.stack([c.cov for c, _, _ in known])),
        np.array([p for _, p, _ in known]),
        np.array([e for _, _, e in known]),
        [c.factor for c, _, _ in known],
    )
    kinds = np.array([c.kind for c, _, _ in known])
    return [every] + [every.part(kinds == kind, kind) for kind in ("mlp", "lin")]


def at_fixed_points(group, points, seeds, repeats):
    """One line for each set: error of `points` points of every variable, and time."""
    lines, base = [], None
    for name in SETS:
        call = lambda seed, name=name: bench_mvn_cdf.evaluate(
            group, 0.0, seed, points=name, method="sov", max_points=points,
            compute_dtype=torch.float64,
        )  # fmt: skip
        results = [call(seed + 1) for seed in range(seeds)]
        made = np.array([r.prob.numpy() for r in results])
        assert all(bool((r.n_points == points).all()) for r in results)
        spread = made.std(axis=0, ddof=1)
        stated = np.array([r.error.numpy() for r in results])
        timing, _ = harness.cpu_time(lambda call=call: call(0), repeats=repeats, least_s=0.05)
        lines.append(
            {
                "table": "points",
                "n": group.upper.shape[1],
                "group": group.name,
                "set": name,
                "points": points,
                "ms": 1e3 * timing["median_s"] / group.size,
                "rms": bench_mvn_cdf.rms(spread),
                "rms_reported": bench_mvn_cdf.rms(stated),
            }
        )
        # Problems differ in size: the mean logarithm of the ratio sees all of them alike.
        base = spread if base is None else base
        some = (base > 1e-12) & (spread > 1e-12)  # the others are answered without points
        lines[-1]["error/richtmyer"] = float(np.exp(np.mean(np.log(spread[some] / base[some]))))
    return lines


def at_tolerance(group, tolerance, args):
    return [
        {"table": "tolerance", "set": name}
        | bench_mvn_cdf.measured(group, tolerance, args.seeds, args.repeats, points=name)
        for name in SETS
    ]


def at_goal(group, goal, args):
    lines = []
    for name in SETS:
        line = {"table": "goal", "set": name, "n": group.upper.shape[1], "group": group.name,
                "rms_goal": goal}  # fmt: skip
        tolerance = bench_mvn_cdf.tolerance_for(group, goal, args.seeds, points=name)
        if tolerance is not None:
            line |= bench_mvn_cdf.measured(
                group, tolerance, args.seeds, args.repeats, points=name
            ) | {"rms_goal": goal}
        lines.append(line)
    return lines


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--n", type=harness.sizes(list(COUNTS)), default="9,49,99,199,499")
    p.add_argument("--quick", action="store_true", help="18 problems of each n, fewer seeds")
    p.add_argument(
        "--seeds", type=harness.whole(), default=4, help="fresh shifts behind each rms error"
    )
    p.add_argument(
        "--spread-seeds", type=harness.whole(2), default=16, help="the same at fixed points"
    )
    p.add_argument("--repeats", type=harness.whole(), default=3)
    args = p.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="mvn_cdf: .*max_points")
    report = harness.environment()
    harness.show_environment(report)
    rows = []
    for n in args.n:
        groups = problems(n, 18 if args.quick else COUNTS[n])
        tables = [
            [line for g in groups[: 3 if n < 100 else 1] for k in POINTS[n]
             for line in at_fixed_points(g, k, args.spread_seeds if n < 100 else 8, args.repeats)],
            [line for g in groups for tol in TOLERANCES[n] for line in at_tolerance(g, tol, args)],
            [line for goal in GOALS[n] for line in at_goal(groups[0], goal, args)],
        ]  # fmt: skip
        for lines, columns in zip(
            tables,
            (
                ["n", "group", "set", "points", "ms", "rms", "rms_reported", "error/richtmyer"],
                ["n", "group", "set", "abs_tol", "ms", "rms", "max", "rms_reported",
                 "beyond_error", "rms_reference", "converged", "points_mean"],
                ["n", "group", "set", "rms_goal", "abs_tol", "ms", "rms", "points_mean"],
            ),
            strict=True,
        ):  # fmt: skip
            print(f"\nn = {n}: {lines[0]['table']}")
            harness.show(lines, columns)
        rows += [line for lines in tables for line in lines]
    harness.write("points", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
