"""Coverage of the reported 99 % error over known answers, many seeds: a table and every miss.

python -m bench coverage --seeds 4 [--problem-seeds 4] [--tolerances 1e-3,1e-4] [--rel-tols 3e-2,1e-2]

Absolute tolerances on tests/problems.py in each dtype of input and of samples; relative ones on the
small sides of tests/tails.py and of the known answers, by the error of their logarithm. A branch
(tests/honesty.py names them) is rejected by a one-sided binomial test at 99 %. `problems` counts the
different problems behind a line.
"""

import argparse
import sys
from dataclasses import replace

from bench import harness

# dtype of the input, of the samples ("auto": the library's choice)
DTYPES = "float64:float64,float64:auto,float32:auto"


def pair_of_dtypes(text):
    """An argument type: (dtype of the input, of the samples)."""
    dtypes = ("float32", "float64")
    given, _, samples = text.partition(":")
    if given not in dtypes or samples not in (*dtypes, "auto"):
        raise argparse.ArgumentTypeError(
            f"must be INPUT:SAMPLES, each float32 or float64, SAMPLES also auto, got {text!r}"
        )
    return given, samples


def light(rows):
    """Without its matrix, 8 MB each at n = 999, a row can wait for the end."""
    return [replace(r, problem=replace(r.problem, cov=None)) for r in rows]


def absolute(args, seed, cases):
    """Adds the rows of one problem seed to cases {(input, samples, tolerance): rows}."""
    import honesty
    import problems
    import torch

    every = [q for q in problems.known_answers(seed) if q.n <= args.max_n]
    large = args.large_seeds or max(1, args.seeds // 3)
    for part, count in (
        ([q for q in every if q.n < 100], args.seeds),
        ([q for q in every if q.n >= 100], large),
    ):
        for (dtype, samples, tol), rows in cases.items():
            rows += light(
                honesty.run(
                    part,
                    abs_tol=tol,
                    dtype=getattr(torch, dtype),
                    compute_dtype=None if samples == "auto" else getattr(torch, samples),
                    seeds=range(1000 * seed, 1000 * seed + count),
                    max_points=args.max_points or None,
                    method=args.method,
                    points=args.points,
                )
            )


def relative(args, seed, cases):
    """The same for cases {tolerance: rows}; samples of these are float64."""
    import honesty
    import tails

    fresh = [*tails.lower_tails(seed, args.tails), *tails.upper_tails(seed, 3 * args.tails)]
    for tol, rows in cases.items():
        chosen = [p for p in fresh if p.n <= args.max_n]
        chosen += tails.known_tails(seed, tol, args.max_n)
        rows += light(
            honesty.run_tails(
                chosen,
                rel_tol=tol,
                seeds=range(1000 * seed, 1000 * seed + args.seeds),
                max_points=args.max_points or None,
                method=args.method,
                points=args.points,
            )
        )


def report_case(title, members, show):
    """Prints table and misses; the table, and whether nothing was wrong."""
    import honesty

    lines = honesty.table(members)
    print(f"\n{title}")
    harness.show(lines, list(lines[0]))
    insane = [r for r in members if honesty.insane(r)]
    for row in insane[:show]:
        print(f"INSANE {honesty.insane(row)}: {honesty.describe(row)}")
    missed = [r for r in members if r.miss]
    missed.sort(key=lambda r: -r.deviation / r.stated if r.stated else -1e300)
    for row in missed[:show]:
        print(f"miss {honesty.describe(row)}")
    rejected = [
        f"{line['name']} (p {line['p_value']:.1e})"
        for line in lines
        if line["group"] == "branch" and line["p_value"] < honesty.REJECT_BELOW
    ]
    print(f"rejected: {', '.join(rejected) or 'no branch'}; insane rows: {len(insane)}")
    return lines, not (rejected or insane)


def main():
    from mvnrob._mvn_cdf import METHODS, POINTS

    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--seeds", type=harness.whole(), default=4, help="shift seeds per problem")
    p.add_argument(
        "--problem-seeds", type=harness.whole(), default=4, help="fresh problem parameters"
    )
    p.add_argument("--first-problem-seed", type=harness.whole(0), default=0)
    p.add_argument(
        "--tolerances",
        type=harness.several(harness.positive, empty=True),
        default="1e-3,1e-4",
        help="absolute; empty: none",
    )
    p.add_argument(
        "--rel-tols",
        type=harness.several(harness.positive, empty=True),
        default="3e-2,1e-2",
        help="relative; empty: none",
    )
    p.add_argument(
        "--dtypes", type=harness.several(pair_of_dtypes), default=DTYPES, help="input:samples, ..."
    )
    p.add_argument(
        "--tails", type=harness.whole(), default=50, help="problems of each family of tails.py"
    )
    p.add_argument("--max-n", type=harness.whole(), default=999)
    p.add_argument(
        "--large-seeds", type=harness.whole(), help="shift seeds for n >= 100 (default: a third)"
    )
    p.add_argument(
        "--max-points", type=harness.whole(0), default=8 * 2**13, help="0: the library's own"
    )
    p.add_argument(
        "--method",
        type=harness.one_of(METHODS),
        default="auto",
        help="one of " + ", ".join(METHODS),
    )
    p.add_argument(
        "--points",
        type=harness.one_of(POINTS),
        default="lattice",
        help="one of " + ", ".join(POINTS),
    )
    p.add_argument("--threads", type=harness.whole(), default=1)
    p.add_argument(
        "--show", type=harness.whole(0), default=20, help="misses to print per case, worst first"
    )
    args = p.parse_args()
    if 0 < args.max_points < 512:
        p.error(f"--max-points must be 0 or at least 512, got {args.max_points}")

    import torch

    torch.set_num_threads(args.threads)
    report = harness.environment()
    harness.show_environment(report)
    rows = {(*dtype, tol): [] for dtype in args.dtypes for tol in args.tolerances}
    tail_rows = {tol: [] for tol in args.rel_tols}
    for seed in range(args.first_problem_seed, args.first_problem_seed + args.problem_seeds):
        if rows:
            absolute(args, seed, rows)
        if tail_rows:
            relative(args, seed, tail_rows)
    out, fine = [], True
    for (dtype, samples, tol), members in rows.items():
        title = f"{dtype} input, {samples} samples, abs_tol {tol:g}, method {args.method}, points {args.points}"
        lines, right = report_case(title, members, args.show)
        fine &= right
        kind = {
            "dtype": dtype,
            "samples": samples,
            "abs_tol": tol,
            "method": args.method,
            "points": args.points,
        }
        out += [kind | line for line in lines]
    for tol, members in tail_rows.items():
        title = f"float64, rel_tol {tol:g}, method {args.method}, points {args.points}: logarithm of the small side"
        lines, right = report_case(title, members, args.show)
        fine &= right
        kind = {
            "dtype": "float64",
            "samples": "float64",
            "rel_tol": tol,
            "method": args.method,
            "points": args.points,
        }
        out += [kind | line for line in lines]
    harness.write("coverage", report, out, args.out)
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
