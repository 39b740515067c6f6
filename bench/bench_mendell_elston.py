"""mvn_cdf(method="mendell_elston") beside BoTorch's MVNXPB: error and time on the same problems.

python -m bench mendell_elston [--n 9,49,99,199] [--quick] [--botorch FOLDER]

One thread, CPU time, milliseconds per problem of one batched call, on classifier-like problems
(bench/classifiers.py), 18 a row. Errors are absolute, against mvn_cdf at `--reference` (its 99 %
error; the largest that was reached is "truth"). Beside a time stand the least and the most of its repeats.
"backward" is the gradient to the limits and the covariance, beside its value. MVNXPB conditions on pairs (Trinh and Genz, Stat. Comput. 25 (2015));
BoTorch is optional: `--botorch` names a folder that it was installed into (pip install --target),
and without it (`pip install botorch` brings it) its columns are empty. Both are float64 and deterministic.
"""

import sys
import warnings

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch

from bench import classifiers

COUNT, QUICK = 18, 6


def problems(n, count, seed):
    cases = classifiers.classifier_problems(n, count, seed)
    stack = lambda name: torch.from_numpy(np.stack([getattr(c, name) for c in cases]))
    return stack("upper"), stack("cov")


def mvnxpb(folder):
    """MVNXPB of a batch, or None where BoTorch is not installed."""
    if folder:
        sys.path.insert(0, folder)
    try:
        import botorch
        from botorch.utils.probability.mvnxpb import MVNXPB
    except ImportError as error:
        print(
            f"# BoTorch is not installed here ({error}), its columns are empty: pip install botorch"
        )
        return None, None

    def solve(upper, cov):
        bounds = torch.stack([torch.full_like(upper, -torch.inf), upper], -1)
        return MVNXPB(cov, bounds).solve().exp()

    return solve, botorch.__version__


def truth(upper, cov, tol):
    from mvnrob import mvn_cdf

    result = mvn_cdf(
        upper, cov, abs_tol=tol, max_points=2**21, compute_dtype=torch.float64, return_info=True
    )
    return result.prob, float(result.error.max())


def errors(name, off):
    """Mean and largest absolute error, and the mean of each kind of problem."""
    off = off.abs()
    failed = int(off.isnan().sum())  # left out of the figures
    by_kind = {
        f"{name}_{kind}": float(off[k :: len(classifiers.KINDS)].nanmean())
        for k, kind in enumerate(classifiers.KINDS)
    }
    return {
        f"{name}_mean": float(off.nanmean()),
        f"{name}_max": float(off.nan_to_num(0.0).max()),
        f"{name}_failed": failed,
        **by_kind,
    }


def line(n, peer, args):
    from mvnrob import mvn_cdf

    upper, cov = problems(n, QUICK if args.quick else COUNT, args.seed)
    known, uncertain = truth(upper, cov, args.reference)
    timing = {"repeats": args.repeats, "least_s": 0.05}
    ours = lambda u=upper, c=cov: mvn_cdf(u, c, method="mendell_elston")
    time, prob = harness.cpu_time(ours, **timing)
    leaves = [t.clone().requires_grad_() for t in (upper, cov)]
    both, _ = harness.cpu_time(lambda: torch.autograd.grad(ours(*leaves).sum(), leaves), **timing)
    row = {
        "n": n,
        "problems": len(upper),
        "truth": uncertain,
        **harness.milliseconds("ms", time, len(upper)),
        **errors("error", prob - known),
        **harness.milliseconds("backward_ms", both, len(upper), less=time),
        "backward/value": both["median_s"] / time["median_s"] - 1,
    }
    if peer is not None:
        time, prob = harness.cpu_time(lambda: peer(upper, cov), args.repeats, budget_s=30)
        row |= harness.milliseconds("mvnxpb_ms", time, len(upper)) | errors("mvnxpb", prob - known)
        row["mvnxpb_ms/ms"] = row["mvnxpb_ms"] / row["ms"]
    return row


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--n", type=harness.sizes(range(2, 2000)), default="9,49,99,199")
    p.add_argument("--quick", action="store_true", help="fewer problems")
    p.add_argument("--repeats", type=harness.whole(), default=5)
    p.add_argument("--seed", type=harness.whole(0), default=0, help="of the problems")
    p.add_argument(
        "--reference", type=harness.positive, default=2e-4, help="99 %% error of the truth"
    )
    p.add_argument("--botorch", help="folder with BoTorch, where it is not installed")
    args = p.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="mvn_cdf: .*max_points")
    peer, version = mvnxpb(args.botorch)
    report = harness.environment() | {"botorch": version}
    harness.show_environment(report)
    rows = [line(n, peer, args) for n in args.n]
    harness.show(
        rows,
        ["n", "truth", "ms", "ms_min", "ms_max", "error_mean", "error_max", "backward_ms"]
        + ["backward_ms_min", "backward_ms_max", "backward/value"]
        + [
            "mvnxpb_ms",
            "mvnxpb_ms_min",
            "mvnxpb_ms_max",
            "mvnxpb_mean",
            "mvnxpb_max",
            "mvnxpb_failed",
            "mvnxpb_ms/ms",
        ],
    )
    # Half as much again as the largest of the recursion in plain PyTorch, on such problems.
    if any(not row["error_max"] <= 0.03 for row in rows):
        raise SystemExit("the error is larger than that of the method")
    harness.write("mendell_elston", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
