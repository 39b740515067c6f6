"""Coverage of the reported 99 % error over known answers, many seeds: a table and every miss.

python -m bench.coverage --seeds 20 [--problem-seeds 3] [--tolerances 1e-3,1e-4]
"""

import sys
from dataclasses import replace

from bench import harness


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, default=20, help="shift seeds per problem")
    p.add_argument("--problem-seeds", type=int, default=1, help="fresh problem parameters")
    p.add_argument("--tolerances", default="1e-3,1e-4")
    p.add_argument("--dtypes", default="float64,float32")
    p.add_argument("--max-n", type=int, default=999)
    p.add_argument("--large-seeds", type=int, help="shift seeds for n >= 100 (default: a third)")
    p.add_argument("--max-points", type=int, default=8 * 2**13, help="0: the library's default")
    p.add_argument("--method", default="auto")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--show", type=int, default=20, help="misses to print per case, worst first")
    args = p.parse_args()

    import honesty
    import problems
    import torch

    torch.set_num_threads(args.threads)
    report = harness.environment()
    harness.show_environment(report)
    cases = [(d, float(t)) for d in args.dtypes.split(",") for t in args.tolerances.split(",")]
    rows = {case: [] for case in cases}
    for seed in range(args.problem_seeds):
        every = [q for q in problems.known_answers(seed) if q.n <= args.max_n]
        large = args.large_seeds or max(1, args.seeds // 3)
        for part, count in (
            ([q for q in every if q.n < 100], args.seeds),
            ([q for q in every if q.n >= 100], large),
        ):
            for dtype, tol in cases:
                done = honesty.run(
                    part,
                    abs_tol=tol,
                    dtype=getattr(torch, dtype),
                    seeds=range(1000 * seed, 1000 * seed + count),
                    max_points=args.max_points or None,
                    method=args.method,
                )
                # Without its matrix, 8 MB each at n = 999, a row can wait for the end.
                rows[dtype, tol] += [replace(r, problem=replace(r.problem, cov=None)) for r in done]
    out, failed = [], False
    for dtype, tol in cases:
        members = rows[dtype, tol]
        lines = honesty.table(members)
        out += [{"dtype": dtype, "abs_tol": tol, "method": args.method, **line} for line in lines]
        print(f"\n{dtype}, abs_tol {tol:g}, method {args.method}")
        harness.show(lines, list(lines[0]))
        insane = [r for r in members if honesty.insane(r)]
        for row in insane[: args.show]:
            print(f"INSANE {honesty.insane(row)}: {honesty.describe(row)}")
        missed = [r for r in members if r.miss]
        missed.sort(key=lambda r: -r.deviation / r.error if r.error else -1e300)
        for row in missed[: args.show]:
            print(f"miss {honesty.describe(row)}")
        rejected = [
            f"{line['name']} (p {line['p_value']:.1e})"
            for line in lines
            if line["group"] == "branch" and line["p_value"] < honesty.REJECT_BELOW
        ]
        print(f"rejected: {', '.join(rejected) or 'no branch'}; insane rows: {len(insane)}")
        failed |= bool(rejected or insane)
    harness.write("coverage", report, out, args.out)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
