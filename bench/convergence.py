"""Error against the number of points where the integrand is steep: nearly singular problems, n = 9.

python -m bench convergence [--problems 12] [--seeds 8] [--most 20]

Writes convergence.csv, .json and (with matplotlib, of the extra `demo`) .png. Curves, each the rms error
over problems and seeds at N points altogether:
- mvn_cdf's lattice, its pivots forced to its own order and to the order given
  (torch.ops.mvnrob.mvn_cdf_sums: no screening, no decisions);
- the same integrand at independent uniform points;
- the indicator at independent normal draws: sqrt(p (1 - p) / N), not run;
- SciPy's multivariate_normal.cdf.
Problems are bench/classifiers.py's near_singular and, beside them, its random features, which are far
from singular. The references are mvn_cdf_sums at 2^22 points of each of 8 other shifts.
"""

import sys

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch
from scipy import special

from bench import classifiers

SHIFTS = 8
REFERENCE_POINTS = 2**22  # of each shift
REFERENCE_SEED = 987_654_321


def limits_order(upper, cov):
    """The order in which mvn_cdf samples: the smallest limit given the means of those before."""
    n = len(upper)
    mean, variance, left = np.zeros(n), np.diag(cov).copy(), list(range(n))
    columns, order = [], []
    while left:
        b = (upper[left] - mean[left]) / np.sqrt(variance[left])
        i = left.pop(int(np.argmin(b)))
        b = (upper[i] - mean[i]) / np.sqrt(variance[i])
        known = sum((c * c[i] for c in columns), np.zeros(n))
        column = (cov[:, i] - known) / np.sqrt(variance[i])
        y = -np.exp(-0.5 * b * b) / np.sqrt(2 * np.pi) / special.ndtr(b)
        mean, variance = mean + column * y, np.maximum(variance - column**2, 1e-12)
        columns.append(column)
        order.append(i)
    return np.array(order)


def lattice(case, order, points, seed):
    """Estimate from `points` of each shift, float64."""
    t = lambda a, dtype=torch.float64: torch.as_tensor(np.array(a)[None], dtype=dtype)
    sums = torch.ops.mvnrob.mvn_cdf_sums(
        t(case.upper), t(case.cov), None, t(seed, torch.int64), t(order, torch.int64), points,
        "float64",
    )  # fmt: skip
    return float(sums[0, :, 0].sum()) / (points * SHIFTS)


def independent_points(case, order, counts, rng):
    """Estimates of the same integrand from the first N of one stream of uniform points."""
    cov, upper = case.cov[np.ix_(order, order)], case.upper[order]
    low = np.linalg.cholesky(cov)
    n, done, total, out = len(upper), 0, 0.0, []
    for count in counts:
        while done < count:
            m = min(65_536, count - done)
            f, y = np.ones(m), np.empty((m, n))
            for i in range(n):
                e = special.ndtr((upper[i] - y[:, :i] @ low[i, :i]) / low[i, i])
                f *= e
                y[:, i] = special.ndtri(np.maximum(rng.random(m) * e, 1e-300))
            total, done = total + f.sum(), done + m
        out.append(total / count)
    return out


def scipy_estimate(case, points, rng):
    from scipy.stats import multivariate_normal

    return float(
        multivariate_normal.cdf(
            case.upper, cov=case.cov, allow_singular=True, maxpts=points, abseps=1e-14, rng=rng
        )
    )


def curves(family, cases, args):
    """Rows {family, method, points, rms} of all methods."""
    counts = [2**k for k in range(10, args.most + 1)]  # of all shifts together
    slow = [n for n in counts if n <= 2**17]
    made = {}
    for index, case in enumerate(cases):
        own, given = limits_order(case.upper, case.cov), np.arange(len(case.upper))
        truth = lattice(case, own, REFERENCE_POINTS, REFERENCE_SEED)
        for n in counts:
            crude = np.sqrt(truth * (1 - truth) / n)
            made.setdefault(("indicator, independent draws", n), []).append(crude)
        for seed in range(args.seeds):
            rng = np.random.default_rng([index, seed])
            for name, order in (("mvn_cdf's order", own), ("order given", given)):
                for n in counts:
                    off = lattice(case, order, n // SHIFTS, 1000 * index + seed) - truth
                    made.setdefault((f"lattice, {name}", n), []).append(off)
            for n, p in zip(slow, independent_points(case, own, slow, rng), strict=True):
                made.setdefault(("independent points, mvn_cdf's order", n), []).append(p - truth)
            for n in slow:
                made.setdefault(("SciPy", n), []).append(scipy_estimate(case, n, rng) - truth)
    return [
        {"family": family, "method": method, "points": n, "rms": float(np.sqrt(np.mean(np.square(v))))}
        for (method, n), v in made.items()
    ]  # fmt: skip


def rates(rows):
    """The exponent of each curve by least squares, and its error at both ends."""
    out = []
    for family, method in dict.fromkeys((r["family"], r["method"]) for r in rows):
        curve = [r for r in rows if (r["family"], r["method"]) == (family, method)]
        n, error = (np.array([r[key] for r in curve]) for key in ("points", "rms"))
        slope = np.polyfit(np.log(n), np.log(error), 1)[0]
        out.append(
            {
                "family": family, "method": method, "rate": float(slope),
                "first": int(n[0]), "rms_first": float(error[0]),
                "last": int(n[-1]), "rms_last": float(error[-1]),
            }
        )  # fmt: skip
    return out


def plot(rows, path):
    try:
        import matplotlib
    except ImportError as error:
        print(f"# no plot: matplotlib is not installed ({error}); pip install '.[demo]'")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    families = list(dict.fromkeys(r["family"] for r in rows))
    figure, axes = pyplot.subplots(
        1, len(families), figsize=(5.2 * len(families), 4.2), sharey=True, squeeze=False
    )
    slopes = {(r["family"], r["method"]): r["rate"] for r in rates(rows)}
    for axis, family in zip(axes[0], families, strict=True):
        for method in dict.fromkeys(r["method"] for r in rows):
            curve = [r for r in rows if r["family"] == family and r["method"] == method]
            label = f"{method} (N^{slopes[family, method]:.2f})"
            axis.loglog([r["points"] for r in curve], [r["rms"] for r in curve], ".-", label=label)
        axis.set_title(family)
        axis.set_xlabel("points N")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("rms error of the probability")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(f"# written: {path.name} in {harness.shown(path.parent)}/")


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--problems", type=harness.whole(), default=12, help="of each family")
    p.add_argument("--seeds", type=harness.whole(), default=8)
    p.add_argument(
        "--most",
        type=harness.whole(10, 24),
        default=20,
        help="log2 of the most points of the lattice",
    )
    p.add_argument("--seed", type=harness.whole(0), default=0, help="of the problems")
    args = p.parse_args()
    import mvnrob  # noqa: F401  (loads the operators)

    torch.set_num_threads(1)
    report = harness.environment()
    harness.show_environment(report)
    smooth = classifiers.classifier_problems(9, 3 * args.problems, args.seed)
    rows = curves("near-singular", classifiers.near_singular(args.problems, args.seed), args)
    rows += curves("random features", [c for c in smooth if c.kind == "rf"], args)
    lines = rates(rows)
    harness.show(lines, list(lines[0]))
    harness.write("convergence", report, rows, args.out)
    plot(rows, harness.results_folder(args.out) / "convergence.png")


if __name__ == "__main__":
    sys.exit(main())
