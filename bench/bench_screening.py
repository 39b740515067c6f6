"""robustness with screen="auto" beside the full 1,000-row Jacobian, on photographs.

python -m bench screening [--photos rocket,coffee] [--levels .3,.9,.99,.999] [--cache DIR]

EfficientNet-Lite0. For each photograph all 1,000 rows are computed (20 s) by plain backward passes,
without the engine; from them the noise levels at which the linearised p takes the given values, and
p with every rival in the integral. Beside it: what robustness says at each of these levels in a call
of its own, its error, its passes (JVP and VJP, the check's included) and its CPU time. A probability
that differs by more than the two errors ends the run. --cache keeps the covariances of the full
Jacobians (8 MB a photograph) for another run, and the seconds that these took.
"""

import statistics
import sys
import time
import warnings
from pathlib import Path

from bench import harness

COLUMNS = ["photo", "level", "sigma", "p_full", "error_full", "p", "error", "gap", "jvp", "vjp",
           "passes", "kept", "cpu_s", "full_cpu_s"]  # fmt: skip
#: 99 % error of the probabilities from the full Jacobian.
FULL_TOL = 1e-4


def full_covariance(model, x):
    """(S, logits, target, CPU seconds): sums u_i u_j of all 1,000 rows, one backward pass each."""
    import torch

    from mvnrob import jac_cov_accumulate

    start = time.process_time()
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    target = logits.argmax(1)
    rows = torch.empty(1, logits.shape[1], x.numel())
    for i in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[0, i], leaf, retain_graph=True)
        rows[0, i] = gradient.flatten()
    S = torch.zeros(1, *2 * [logits.shape[1]], dtype=torch.float64)
    jac_cov_accumulate(S, rows, target)
    seconds = time.process_time() - start
    return S, logits.detach().double(), target, seconds


def cached_covariance(model, x, path):
    import numpy as np
    import torch

    if path is not None and path.exists():
        d = np.load(path)
        return (torch.from_numpy(d["S"])[None], torch.from_numpy(d["logits"])[None],
                torch.tensor([int(d["target"])]), float(d["seconds"]))  # fmt: skip
    S, logits, target, seconds = full_covariance(model, x)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, S=S[0].numpy(), logits=logits[0].numpy(), target=int(target),
                 seconds=seconds)  # fmt: skip
    return S, logits, target, seconds


def probability(S, logits, target, sigma, tol):
    from mvnrob import jac_cov_finalize, mvn_cdf

    problem = jac_cov_finalize(S, logits, target, sigma)
    with warnings.catch_warnings():  # the error says what an unmet tolerance would
        warnings.simplefilter("ignore", RuntimeWarning)
        info = mvn_cdf(problem.z, problem.corr, abs_tol=tol, return_info=True)
    return float(info.prob[0]), float(info.error[0])


def sigma_of(S, logits, target, level):
    """The noise level at which p is ``level``, to half a thousandth (a twentieth of 1 - p)."""
    low, high = 1e-5, 2.0
    close = min(5e-4, (1 - level) / 20)
    for _ in range(40):
        sigma = (low * high) ** 0.5
        p, _ = probability(S, logits, target, sigma, close)
        if abs(p - level) < close:
            break
        low, high = (sigma, high) if p > level else (low, sigma)
    return sigma


def rows_of(model, name, x, levels, path, seed):
    from mvnrob import robustness

    S, logits, target, full_seconds = cached_covariance(model, x, path)
    for level in levels:
        sigma = sigma_of(S, logits, target, level)
        p_full, error_full = probability(S, logits, target, sigma, FULL_TOL)
        start = time.process_time()
        result = robustness(model, x, sigma, seed=seed, check="raise")
        seconds = time.process_time() - start
        p, error = float(result.prob[0]), float(result.error[0])
        gap = abs(p - p_full)
        if not gap <= error + error_full:
            sys.exit(
                f"bench_screening: {name} at sigma {sigma:.4g}: p {p:.6f}, error {error:.1e}, but "
                f"{p_full:.6f}, error {error_full:.1e}, from all rows"
            )
        jvp, vjp = int(result.cost.jvp[0]), int(result.cost.vjp[0])
        kept = logits.shape[1] - 1 - int(result.n_screened[0])
        values = [name, level, sigma, p_full, error_full, p, error, gap, jvp, vjp, jvp + vjp, kept,
                  seconds, full_seconds]  # fmt: skip
        yield dict(zip(COLUMNS, values, strict=True))


def summary(rows):
    """Passes of the median image and of the worst, at each level and over all with p >= .9."""
    groups = {str(level): [r for r in rows if r["level"] == level] for level in
              sorted({r["level"] for r in rows})}  # fmt: skip
    groups[">= 0.9"] = [r for r in rows if r["level"] >= 0.9]
    for name, some in groups.items():
        if some:
            yield {
                "level": name,
                "cases": len(some),
                "median_passes": statistics.median(r["passes"] for r in some),
                "most_passes": max(r["passes"] for r in some),
                "at_most_50": sum(r["passes"] <= 50 for r in some),
                "median_cpu_s": statistics.median(r["cpu_s"] for r in some),
                "largest_gap": max(r["gap"] for r in some),
            }


def photo_options(p, levels):
    """Which photographs, at which p, and where their covariances are kept."""
    from mvnrob.models import photos

    p.add_argument("--photos", type=harness.several(harness.one_of(photos.PHOTOS)),
                   help="names, with commas (default: all eight)")  # fmt: skip
    p.add_argument("--levels", type=harness.several(harness.number_between(0, 1)),
                   default=levels, help="p, each between 0 and 1")  # fmt: skip
    p.add_argument("--cache", type=Path, help="folder for the full Jacobians' covariances")


def main():
    from mvnrob.models import photos

    p = harness.parser(__doc__.splitlines()[0])
    photo_options(p, "0.3,0.9,0.99,0.999")
    p.add_argument("--seed", type=harness.whole(0), default=0, help="of the sketches and lattices")
    args = p.parse_args()

    import torch

    from mvnrob.models.efficientnet_lite import load_efficientnet_lite0

    torch.set_num_threads(1)
    report = harness.environment()
    harness.show_environment(report)
    model = load_efficientnet_lite0()
    rows = []
    for photo in photos.load_photos(args.photos):
        path = args.cache / f"{photo.name}.npz" if args.cache else None
        for row in rows_of(
            model, photo.name, photos.as_batch([photo]), args.levels, path, args.seed
        ):
            rows.append(row)
            print(f"# {photo.name} {row['level']}: {row['passes']} passes", flush=True)
    harness.show(rows, COLUMNS)
    report["summary"] = list(summary(rows))
    harness.show(report["summary"], list(report["summary"][0]))
    harness.write("screening", report, rows, args.out)


if __name__ == "__main__":
    main()
