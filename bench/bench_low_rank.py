"""Passes and errors of screening by low rank over many seeds: linear models with photographs' covariances.

python -m bench low_rank --cache DIR [--photos camera,coffee] [--levels .3,.6,.9,.97,.99] [--seeds 4]

A linear model with the covariance of the margins that EfficientNet-Lite0 has at a photograph (all 1,000
rows; `--cache` keeps them, the same files as those of `bench screening`) is screened as the network is,
in milliseconds a pass: what a seed's draws do to the number of passes shows, and how often p is off by more
than its error. Its features are 1,000, and the length that a model's passes must have to be screened so is
set to nothing. The noise levels are those at which p takes about the given values with all rivals in the integral.
Writes low_rank.json: a row for each photograph and level. More than a tenth of the answers beyond their errors
end with exit code 1.
"""

import statistics
import sys
import warnings

from bench import bench_screening, harness

#: 99 % error of the probabilities with every rival in the integral.
FULL_TOL = 3e-4
COLUMNS = ["photo", "level", "sigma", "seeds", "jvp", "vjp", "passes", "most_passes", "beyond_error", "gap", "error"]  # fmt: skip


def linear_model(S, logits):
    """A function ``[b, C] -> [b, C]`` whose rows have the products S, in float64."""
    import torch

    values, vectors = torch.linalg.eigh(S)
    rows = vectors * values.clamp_min(0.0).sqrt()
    return lambda x: x @ rows.mT + logits


def sigma_near(S, logits, target, level):
    """A noise level at which p is about ``level``: to a fifth of 1 - p, or .01."""
    low, high = 1e-4, 2.0
    close = min(0.01, (1 - level) / 5)
    while high > 1.001 * low:
        sigma = (low * high) ** 0.5
        p, _ = bench_screening.probability(S, logits, target, sigma, close / 2)
        if abs(p - level) < close:
            break
        low, high = (sigma, high) if p > level else (low, sigma)
    return sigma


def rows_of(name, S, logits, target, levels, seeds):
    import torch

    from mvnrob import robustness

    model, x = linear_model(S[0], logits[0]), torch.zeros_like(logits)
    for level in levels:
        sigma = sigma_near(S, logits, target, level)
        p_full, error_full = bench_screening.probability(S, logits, target, sigma, FULL_TOL)
        found = []
        for seed in range(seeds):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                found.append(robustness(model, x, sigma, target=target, seed=seed, check="off"))
        jvp, vjp = ([int(getattr(r.cost, kind)[0]) for r in found] for kind in ("jvp", "vjp"))
        gaps = [abs(float(r.prob[0]) - p_full) for r in found]
        errors = [float(r.error[0]) for r in found]
        beyond = sum(gap > error + error_full for gap, error in zip(gaps, errors, strict=True))
        passes = [a + b for a, b in zip(jvp, vjp, strict=True)]
        values = [name, level, sigma, seeds, *map(statistics.fmean, (jvp, vjp, passes)), max(passes), beyond,
                  max(gaps), statistics.fmean(errors)]  # fmt: skip
        yield dict(zip(COLUMNS, values, strict=True))


def summary(rows):
    """Of all photographs, at each level: mean passes, and how many answers were off by more than their
    errors."""
    for level in sorted({row["level"] for row in rows}):
        some = [row for row in rows if row["level"] == level]
        yield {
            "level": level, "answers": sum(row["seeds"] for row in some),
            **{k: statistics.fmean(row[k] for row in some) for k in ("jvp", "vjp", "passes")},
            "beyond_error": sum(row["beyond_error"] for row in some),
        }  # fmt: skip


def main():
    from mvnrob.models import photos

    p = harness.parser(__doc__.splitlines()[0])
    bench_screening.photo_options(p, "0.3,0.6,0.9,0.97,0.99")
    p.add_argument("--seeds", type=harness.whole(1), default=4, help="of the directions")
    args = p.parse_args()

    import torch

    from mvnrob import low_rank
    from mvnrob.models.efficientnet_lite import load_efficientnet_lite0

    torch.set_num_threads(1)
    low_rank.PASS_BYTES = 0
    report = harness.environment()
    harness.show_environment(report)
    network, rows = load_efficientnet_lite0(), []
    for photo in photos.load_photos(args.photos):
        path = args.cache / f"{photo.name}.npz" if args.cache else None
        S, logits, target, _ = bench_screening.cached_covariance(
            network, photos.as_batch([photo]), path
        )
        for row in rows_of(photo.name, S, logits, target, args.levels, args.seeds):
            rows.append(row)
            print(f"# {photo.name} {row['level']}: {row['passes']:.0f} passes", flush=True)
    harness.show(rows, COLUMNS)
    report["summary"] = list(summary(rows))
    harness.show(report["summary"], list(report["summary"][0]))
    harness.write("low_rank", report, rows, args.out)
    beyond, answers = (sum(row[k] for row in rows) for k in ("beyond_error", "seeds"))
    if beyond > 0.1 * answers:
        sys.exit(f"bench_low_rank: {beyond} of {answers} answers are off by more than their errors")


if __name__ == "__main__":
    main()
