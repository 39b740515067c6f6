"""Every estimator against Monte Carlo: error of the probability beside the network passes it costs.

python -m bench estimators [--tasks digits,pairs] [--inputs 100] [--draws 10000] [--photos 2]

Tasks: scikit-learn's digits (10 classes), pairs of them side by side (100 classes) and, if named,
EfficientNet-Lite0 (1,000 classes) on `--photos` of scikit-image's photographs: minutes. Reference:
Monte Carlo on the same inputs with `--draws` draws (a tenth of it for photographs), another seed.
Errors are over inputs; "rms" has the reference's own noise, "rms_reference", taken off its square.
"passes" is per input and sigma: forward passes, forward-mode products and backward passes, each counted as
1 (`mvnrob selfcheck` counts each of the last two as 2; the page has both). "mc_rms" is what Monte Carlo itself would do with as many passes,
sqrt(mean p (1 - p) / passes). A run whose Monte Carlo lines leave the reference is no result.
"""

import math
import sys
import time

from bench import harness

harness.numpy_threads_one()

import torch

# Name in figures, options of mvnrob.robustness.
ESTIMATORS = (
    *((f"mc, {n}", {"method": "mc", "n_samples": n}) for n in (10, 30, 100, 300, 1000)),
    ("softmax", {"method": "softmax"}),
    ("taylor", {"method": "taylor"}),
    ("taylor_mvs, slope 1", {"method": "taylor_mvs"}),
    ("taylor_mvs, calibrated", {"method": "taylor_mvs", "slope": "calibrated"}),
    *((f"mmse, {n}", {"method": "mmse", "n_samples": n}) for n in (2, 4, 10, 30)),
    ("mmse, 10 iid", {"method": "mmse", "n_samples": 10, "sampling": "iid"}),
    ("mmse_mvs, 10", {"method": "mmse_mvs", "n_samples": 10}),
    *(
        (f"logit_moments, {n}", {"method": "logit_moments", "n_samples": n})
        for n in (10, 30, 100, 300)
    ),
)
# 1,000 backward passes an image: only what a user would run.
PHOTO_ESTIMATORS = (
    *((f"mc, {n}", {"method": "mc", "n_samples": n}) for n in (30, 100, 300)),
    ("softmax", {"method": "softmax"}),
    ("taylor, screened", {"method": "taylor", "screen": "auto"}),
    *((f"logit_moments, {n}", {"method": "logit_moments", "n_samples": n}) for n in (30, 100)),
)
SIGMAS = {"digits": (0.1, 0.3, 0.5), "pairs": (0.1, 0.3, 0.5), "photos": (0.05, 0.1)}


def task(name, args):
    """Model, inputs, share of them that it classifies rightly (None where there are no labels)."""
    if name == "photos":
        from mvnrob.models import efficientnet_lite, photos

        chosen = photos.load_photos(list(photos.PHOTOS)[: args.photos])
        return efficientnet_lite.load_efficientnet_lite0(), photos.as_batch(chosen), None
    if name == "digits":
        from mvnrob.models.digits import load_digits_classifier as load
    else:
        from mvnrob.models.digit_pairs import load_digit_pairs_classifier as load
    model, x, label = load()
    right = float((model(x).argmax(1) == label).double().mean())
    return model, x[: args.inputs], right


def answers(model, x, sigma, options, seed):
    """Probabilities, stated errors, passes of each kind and CPU seconds, per input."""
    from mvnrob import robustness

    start = time.process_time()
    result = robustness(model, x, sigma, seed=seed, **options)
    seconds = (time.process_time() - start) / len(x)
    passes = {
        kind: float(getattr(result.cost, kind).double().mean())
        for kind in ("forward", "jvp", "vjp")
    }
    return result, passes, seconds


def line(name, options, model, x, sigma, reference, draws, seed):
    result, passes, seconds = answers(model, x, sigma, options, seed)
    p, made = reference.prob, result.prob - reference.prob
    noise = math.sqrt(float((p * (1 - p)).mean()) / draws)
    total = sum(passes.values())
    stated = result.error
    return {
        "method": name, "sigma": sigma, "inputs": len(x), **passes, "passes": total,
        "rms": math.sqrt(max(0.0, float(made.square().mean()) - noise**2)),
        "bias": float(made.mean()), "max": float(made.abs().max()), "rms_reference": noise,
        "mc_rms": noise * math.sqrt(draws / total),
        "rms_stated": None if bool(stated.isnan().any()) else float(stated.square().mean().sqrt()),
        "ms": 1e3 * seconds,
    }  # fmt: skip


def task_lines(name, args):
    model, x, right = task(name, args)
    draws = args.draws // 10 if name == "photos" else args.draws
    chosen = PHOTO_ESTIMATORS if name == "photos" else ESTIMATORS
    lines = []
    for sigma in SIGMAS[name]:
        reference, _, _ = answers(model, x, sigma, {"method": "mc", "n_samples": draws}, seed=1)
        for method, options in chosen:
            row = line(method, options, model, x, sigma, reference, draws, seed=2)
            lines.append({"task": name, "classes": model_classes(model, x), "accuracy": right,
                          "mean_prob": float(reference.prob.mean()), **row})  # fmt: skip
    wrong = [row for row in lines if row["method"].startswith("mc, ") and not consistent(row)]
    if wrong:
        raise SystemExit(f"bench estimators: Monte Carlo leaves its reference: {wrong[0]}")
    return lines


def model_classes(model, x):
    with torch.no_grad():
        return model(x[:1]).shape[1]


def consistent(row):
    """Whether Monte Carlo's rms error is what its draws and the number of inputs allow.

    The mean square of `inputs` errors is off its mean by a relative sqrt(2 / inputs) or, where most
    p are near 0 or 1 and few inputs carry it, some times that: six times, and as much again.
    """
    bound = row["mc_rms"] ** 2 * (1 + 12 * math.sqrt(2 / row["inputs"]))
    return row["rms"] ** 2 <= bound + row["rms_reference"] ** 2


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument(
        "--tasks",
        type=harness.several(harness.one_of(SIGMAS)),
        default="digits,pairs",
        help="of digits, pairs, photos",
    )
    p.add_argument("--inputs", type=harness.whole(), default=100, help="of digits and pairs")
    p.add_argument("--draws", type=harness.whole(), default=10_000, help="of the reference")
    p.add_argument("--photos", type=harness.whole(), default=2)
    args = p.parse_args()
    torch.set_num_threads(1)
    report = harness.environment()
    harness.show_environment(report)
    rows = []
    for name in args.tasks:
        lines = task_lines(name, args)
        print(f"\n{name}")
        harness.show(lines, ["method", "sigma", "passes", "rms", "mc_rms", "bias", "max", "ms"])
        rows += lines
    harness.write("estimators", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
