"""float32 samples from how many pivots on by tensor cores: two builds of mvnrob in turn on one GPU.

python -m bench cuda_tensor_pivots OLD NEW [--old-from 96] [--new-from 33]

OLD and NEW are folders of an installed mvnrob whose kTensorPivots (csrc/kernels/mvn_cdf_data.h) are the
two numbers: `bench/gpu.sh OUTDIR tensor_pivots` builds both and runs it.

Calls of mvn_cdf, and of mvn_cdf_sums with so many pivots of n variables at fixed points; as in
bench/cuda_ab.py: in turn, answers compared, ratio new/old. Writes cuda_tensor_pivots.json.
"""

import contextlib
import io
import sys

from bench import cuda_ab, harness

CASES = [
    *(
        {"call": "mvn_cdf", "table": "tolerance", "n": 99, "batch": 5000, "abs_tol": tol}
        for tol in (1e-2, 1e-3)
    ),
    *(
        {"call": "mvn_cdf_sums", "table": "sov", "n": n, "batch": batch, "pivots": pivots,
         "points": 5120, "dtype": "float32"}
        for n, batch, pivots in ((99, 5000, 40), (99, 5000, 64), (99, 5000, 95), (999, 264, 40))
    ),
    {"call": "mvn_cdf", "table": "tolerance", "n": 999, "batch": 264, "abs_tol": 1e-2},
]  # fmt: skip


def row_of(case, found, old_from, new_from):
    """A row of the result; what was wrong in place of times."""
    about = {k: v for k, v in case.items() if k not in ("table", "dtype")}
    (row,) = found
    if "note" in row:
        return about | {"note": row["note"]}
    return about | {
        f"ms_from_{old_from}": row["old"], f"ms_from_{new_from}": row["new"],
        **{name: row[name] for name in ("ratio", "least", "largest", "rounds")},
    }  # fmt: skip


def main():
    p = cuda_ab.arguments(harness.parser(__doc__.splitlines()[0]))
    p.add_argument("--old-from", type=int, default=96, help="OLD's kTensorPivots")
    p.add_argument("--new-from", type=int, default=33, help="NEW's kTensorPivots")
    args = p.parse_args()
    report = cuda_ab.report_of(args) | {"bench": "cuda_tensor_pivots"}
    harness.show_environment(report)
    sides = {name: cuda_ab.Side(name, getattr(args, name)) for name in cuda_ab.SIDES}
    seconds = args.budget / (2 * args.rounds * len(CASES))
    rows, made = [], {}
    try:
        for case in (cuda_ab.scaled(case, args.scale) for case in CASES):
            if case["n"] not in made:
                made[case["n"]] = cuda_ab.problems(case["n"])
            found, _ = cuda_ab.compare(
                sides, case, made[case["n"]], args.device, args.rounds, seconds
            )
            rows.append(row_of(case, found, args.old_from, args.new_from))
            with contextlib.redirect_stdout(io.StringIO()):  # a run that is cut off leaves it
                harness.write("cuda_tensor_pivots", report, rows, args.out)
    finally:
        for side in sides.values():
            side.close()
    harness.show(rows, list(dict.fromkeys(key for row in rows for key in row)))
    harness.write("cuda_tensor_pivots", report, rows, args.out)
    return any("note" in row for row in rows)


if __name__ == "__main__":
    sys.exit(main())
