"""Coverage of the reported 99 % error over known answers, many seeds: a table and every miss.

python -m bench.coverage --seeds 20 [--problem-seeds 3] [--tolerances 1e-3,1e-4]
"""

import sys

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
    out, failed = [], False
    for name in args.dtypes.split(","):
        for tol in map(float, args.tolerances.split(",")):
            rows = []
            for seed in range(args.problem_seeds):
                every = [q for q in problems.known_answers(seed) if q.n <= args.max_n]
                large = args.large_seeds or max(1, args.seeds // 3)
                for part, count in (
                    ([q for q in every if q.n < 100], args.seeds),
                    ([q for q in every if q.n >= 100], large),
                ):
                    rows += honesty.run(
                        part,
                        abs_tol=tol,
                        dtype=getattr(torch, name),
                        seeds=range(1000 * seed, 1000 * seed + count),
                        max_points=args.max_points or None,
                        method=args.method,
                    )
            lines = honesty.table(rows)
            for line in lines:
                out.append({"dtype": name, "abs_tol": tol, "method": args.method, **line})
            print(f"\n{name}, abs_tol {tol:g}, method {args.method}")
            harness.show(lines, list(lines[0]))
            for row in [r for r in rows if honesty.insane(r)][: args.show]:
                print(f"INSANE {honesty.insane(row)}: {honesty.describe(row)}")
            missed = [r for r in rows if r.miss]
            missed.sort(key=lambda r: -r.deviation / r.error if r.error else -1e300)
            for row in missed[: args.show]:
                print(f"miss {honesty.describe(row)}")
            failed |= any(
                line["group"] == "branch" and line["p_value"] < honesty.REJECT_BELOW
                for line in lines
            ) or any(honesty.insane(r) for r in rows)
    harness.write("coverage", report, out, args.out)
    print("REJECTED: see the p-values of the branches" if failed else "not rejected")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
