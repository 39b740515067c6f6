"""A data set evaluated: seconds and network passes of an image, by how probable its class is.

python -m bench evaluate [--sigmas 0.1,0.3] [--methods taylor,mmse,logit_moments,mc] [--photos 0]

scikit-learn's digits (360 test images) and, with `--photos N`, EfficientNet-Lite0 on N photographs
(screen="auto"; minutes). Each method answers all images once; the images of a band of p then go
through it again in a call of their own, which is timed: CPU time of one thread. Passes are per image:
forward, forward-mode and backward. A band whose answers differ from the first ones by more than both
errors is not timed. "evaluate" is mvnrob.evaluate with everything around: chunks, part files, table.
"""

import itertools
import sys
import tempfile
import time
import warnings

from bench import harness

harness.numpy_threads_one()

import torch

BANDS = (0.0, 0.5, 0.9, 0.99, 0.9999, 1.0)
METHODS = ("taylor", "mmse", "logit_moments", "mc")
OPTIONS = {"mc": {"n_samples": 1000}}


def inputs(args):
    """Pairs of a task's name and its model, images, and options of the linear methods."""
    from mvnrob.models.digits import load_digits_classifier

    model, x, _ = load_digits_classifier()
    yield "digits", model, x[: args.images], {}
    if args.photos:
        from mvnrob.models import efficientnet_lite, photos

        chosen = photos.load_photos(list(photos.PHOTOS)[: args.photos])
        model = efficientnet_lite.load_efficientnet_lite0()
        yield "photos", model, photos.as_batch(chosen), {"screen": "auto"}


def answer(model, x, sigma, method, more):
    from mvnrob import robustness

    screening = more if method in ("taylor", "mmse") else {}
    return robustness(model, x, sigma, method=method, **OPTIONS.get(method, {}), **screening)


def band_lines(task, model, x, sigma, method, more, args):
    """A row for each band of p that holds an image."""
    first = answer(model, x, sigma, method, more)
    for low, high in itertools.pairwise(BANDS):
        inside = (first.prob >= low) & ((first.prob < high) | (high == 1.0))
        if not bool(inside.any()):
            continue
        some = x[inside]
        timing, result = harness.cpu_time(
            lambda some=some: answer(model, some, sigma, method, more),
            args.repeats, least_s=0.02, budget_s=60,
        )  # fmt: skip
        # Random draws go by an image's number in the call; what is computed without them agrees.
        gap = (result.prob - first.prob[inside]).abs()
        allowed = result.error.nan_to_num() + first.error[inside].nan_to_num()
        if method == "taylor" and bool((gap > allowed + 1e-6).any()):
            raise SystemExit(f"bench evaluate: {task}, {method}: {float(gap.max()):.1e} off")
        seconds = {k: timing[f"{k}_s"] / len(some) for k in ("median", "min", "max")}
        passes = {
            kind: float(getattr(result.cost, kind).double().mean())
            for kind in ("forward", "jvp", "vjp")
        }
        yield {
            "task": task, "method": method, "sigma": sigma, "p_from": low, "p_to": high,
            "images": len(some), "ms": 1e3 * seconds["median"], "ms_min": 1e3 * seconds["min"],
            "ms_max": 1e3 * seconds["max"], **passes,
            "rivals_left_out": float(result.n_screened.double().mean()),
            "error_mean": float(result.error.mean()),
        }  # fmt: skip


def whole(model, args):
    """mvnrob.evaluate on all digits, files included; None where pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        print(f"# mvnrob.evaluate is not measured: {error}; pip install '.[evaluate]'")
        return None
    import mvnrob

    with tempfile.TemporaryDirectory() as out:
        start = time.process_time()
        mvnrob.evaluate(
            model, "digits", args.sigmas, out=out, method="taylor", limit=args.images,
            threads=1, progress=False,
        )  # fmt: skip
        seconds = time.process_time() - start
    return {
        "task": "digits", "method": "evaluate (taylor)", "sigma": None, "images": args.images,
        "ms": 1e3 * seconds / args.images,
    }  # fmt: skip


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--sigmas", type=harness.several(harness.positive), default="0.1,0.3")
    p.add_argument("--methods", type=harness.several(harness.one_of(METHODS)),
                   default=",".join(METHODS), help="of " + ", ".join(METHODS))  # fmt: skip
    p.add_argument("--images", type=harness.whole(), default=360, help="of the digits")
    p.add_argument("--photos", type=harness.whole(0), default=0)
    p.add_argument("--repeats", type=harness.whole(), default=3)
    args = p.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*ended before abs_tol was met")
    report = harness.environment()
    harness.show_environment(report)
    rows = []
    for task, model, x, more in inputs(args):
        for method in args.methods:
            if task == "photos" and method == "mmse":  # 10 Jacobians of 1,000 rows an image
                continue
            for sigma in args.sigmas:
                rows += band_lines(task, model, x, sigma, method, more, args)
        if task == "digits" and (total := whole(model, args)):
            rows.append(total)
    harness.show(rows, list(rows[0]))
    harness.write("evaluate", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
