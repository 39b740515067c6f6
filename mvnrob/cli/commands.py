"""The commands and their options."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..printed import probability
from ..robustness import METHODS
from . import FINISHED, WITH_GAPS


class Numbers(click.ParamType):
    """Numbers separated by commas."""

    name = "numbers"

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def convert(self, value, param, ctx) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"must be numbers separated by commas, got {value!r}", param, ctx)
        if self.count is not None and len(numbers) != self.count:
            self.fail(f"must be {self.count} numbers, got {value!r}", param, ctx)
        return numbers


class Bytes(click.ParamType):
    """A number of bytes, with a suffix K, M, G (powers of 1024) or none."""

    name = "bytes"

    def convert(self, value, param, ctx) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().upper().removesuffix("IB").removesuffix("B")
        factor = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        try:
            return int(float(text.rstrip("KMG")) * factor)
        except (ValueError, OverflowError):
            self.fail(f"must be a number of bytes such as 2G, got {value!r}", param, ctx)


class MethodOption(click.ParamType):
    """METHOD.NAME=VALUE; the value is JSON, or a word."""

    name = "method.option"

    def convert(self, value, param, ctx) -> tuple[str, str, Any]:
        if isinstance(value, tuple):
            return value
        left, equals, right = value.partition("=")
        method, dot, name = left.partition(".")
        if not (equals and dot and method and name):
            self.fail(f"must be METHOD.NAME=VALUE, got {value!r}", param, ctx)
        try:
            return method, name, json.loads(right)
        except ValueError:
            return method, name, right


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mvnrob")
def group() -> None:
    """How likely is it that noise changes a classifier's answer?"""


@group.command()
@click.option("--model", required=True, help="digits, efficientnet-lite0, ppocr-v6, ppocr-v4, timm:NAME, "
              "torchvision:NAME, hf:NAME, a .pt2, .pt or .ts file, or path.py:factory")  # fmt: skip
@click.option("--data", required=True, help="digits, photos, glyphs or glyphs:ppocr-v4, a folder of "
              "pictures, an .npz file, .tar shards, or hf:NAME[:SPLIT]")  # fmt: skip
@click.option("--sigma", required=True, type=Numbers(), help="noise levels in raw input units "
              "(pixels in [0, 1]), separated by commas")  # fmt: skip
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="folder of the results")  # fmt: skip
@click.option("--method", default="taylor", show_default=True,
              help=f"one or several of {', '.join(METHODS)}, separated by commas")  # fmt: skip
@click.option("--target", type=click.Choice(("prediction", "label")), default="prediction",
              show_default=True, help="the class whose probability is asked for")  # fmt: skip
@click.option(
    "--n-samples", type=click.IntRange(1), help="noisy copies, for methods that draw them"
)
@click.option("--abs-tol", type=float, help="99 % error to reach, for methods that integrate")
@click.option("--option", "options", multiple=True, type=MethodOption(),
              help="METHOD.NAME=VALUE, any other option of robustness()")  # fmt: skip
@click.option("--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="safetensors, or a plain state dict")  # fmt: skip
@click.option("--input-size", type=click.IntRange(1), help="side of a picture in pixels")
@click.option("--crop", type=click.FloatRange(0, 1, min_open=True),
              help="share of a picture's shorter side that is cut out of its middle")  # fmt: skip
@click.option("--bounds", type=Numbers(2), help="LOW,HIGH: the range of raw inputs")
@click.option("--mean", type=Numbers(), help="with --std: (x - mean) / std goes into the model")
@click.option("--std", type=Numbers())
@click.option("--fold-batch-norm", is_flag=True, help="put batch norms into the convolutions before them: "
              "the same up to rounding, faster")  # fmt: skip
@click.option("--channels-last", is_flag=True, help="lay convolutions out with the channels last: the same up "
              "to rounding, for tensor cores")  # fmt: skip
@click.option("--dtype", type=click.Choice(("float16", "bfloat16")), help="what a float32 model computes in, all "
              "but its last linear layer: another function, for GPUs")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="only the first so many examples")
@click.option("--shard", help="i/k: every k-th chunk, from i = 0")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--chunk", type=click.IntRange(1), help="examples that pass together")
@click.option("--device", help="cpu, cuda, cuda:1")
@click.option("--threads", type=click.IntRange(1), help="of torch on the CPU")
@click.option("--max-bytes", type=Bytes(), help="memory for Jacobians and graphs, such as 2G (the default; "
              "on a GPU a quarter of its memory)")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True,
              help="threads that read examples")  # fmt: skip
@click.option("--resume", is_flag=True, help="go on with the run in --out")
@click.option("--quiet", is_flag=True, help="no progress; warnings are still said")
def evaluate(method, options, mean, std, quiet, bounds, **rest) -> int:
    """Evaluate a model over a data set.

    Under torchrun: torchrun --nproc-per-node N -m mvnrob evaluate ... shares the work.

    Exit status: 0 done; 1 stopped, --resume goes on; 2 bad usage; 3 done, but some rows have no
    answer (0 under torchrun, which knows only failure); 130 interrupted, --resume goes on.
    """
    from ..evaluation import evaluate as run

    of_method: dict[str, dict[str, Any]] = {}
    for name, option, value in options:
        of_method.setdefault(name, {})[option] = value
    scaling = _scaling(mean, std)
    done = run(
        rest.pop("model"),
        rest.pop("data"),
        rest.pop("sigma"),
        method=tuple(part.strip() for part in method.split(",")),
        options=of_method,
        preprocessing=scaling,
        bounds=bounds,
        progress=not quiet,
        **rest,
    )
    leads = os.environ.get("RANK", "0") == "0"  # of torchrun's processes one speaks
    say = click.echo if leads else lambda text: None
    if not done.is_complete:
        finished, every = done.progress()
        say(f"{done.folder}: {finished} of {every} chunks")
        return FINISHED
    status = _summarise(done, say)
    # torchrun takes any status but 0 for a failure: it ends the ranks that are left.
    return FINISHED if "TORCHELASTIC_RUN_ID" in os.environ else status


def _scaling(mean, std) -> dict[str, Any] | None:
    """``--mean`` and ``--std`` as ``preprocessing``."""
    if (mean is None) != (std is None):
        raise click.UsageError("--mean and --std go together")
    if mean is None:
        return None
    scaling: dict[str, Any] = {"mean": list(mean), "std": list(std)}
    scaling = {k: v[0] if len(v) == 1 else v for k, v in scaling.items()}
    if len(mean) > 1 or len(std) > 1:
        scaling["axis"] = -3
    return scaling


def _summarise(done, say: Callable[[str], None]) -> int:
    """A line for each method and sigma; what they say is set beside Monte Carlo, gaps are counted."""
    import numpy as np

    from ..intervals import joint_error

    columns = ("method", "sigma", "prob", "error", "status", "note")
    table = done.table().select(columns).to_pylist()
    gaps = sum(row["prob"] is None for row in table)
    for method in done.config.methods:
        for sigma in done.config.sigmas:
            rows = [r for r in table if (r["method"], r["sigma"]) == (method, sigma)]
            probs = [r["prob"] for r in rows if r["prob"] is not None]
            if not probs:
                say(f"{method:14} sigma {sigma:<8g} no answers")
                continue
            errors = [r["error"] for r in rows if r["error"] is not None]
            tail = f", largest error {max(errors):.2g}" if errors else ""
            low = sum(p < 0.5 for p in probs)
            mean = probability(sum(probs) / len(probs), joint_error(np.array(errors), method))
            say(
                f"{method:14} sigma {sigma:<8g} mean p {mean} over "
                f"{len(probs)} examples, {low} below .5{tail}"
            )
    _set_beside_monte_carlo(done, say)
    say(f"{done.folder / 'results.parquet'}: {len(table)} rows")
    if gaps:
        say(f"{gaps} {'row has' if gaps == 1 else 'rows have'} no answer; status and note say why")
    return WITH_GAPS if gaps else FINISHED


def _set_beside_monte_carlo(done, say: Callable[[str], None]) -> None:
    """A line for each method that the run's own Monte Carlo disagrees with, at its worst sigma; without
    Monte Carlo, what the errors leave out."""
    from ..report.agreement import agreement, disagreeing
    from ..report.statistics import answers

    if "mc" not in done.config.methods:
        say(
            "p and its error are of a method's own model of the network: mvnrob selfcheck sets them "
            "beside Monte Carlo"
        )
        return
    found = agreement(answers(done))
    for method in done.config.methods:
        for worst in disagreeing(found, method)[:1]:
            counted = probability(worst.mc_mean, worst.mc_error)
            stated = probability(worst.mean, worst.error)
            outside = ", and the mean leaves Monte Carlo's intervals" if worst.mean_outside else ""
            say(
                f"Monte Carlo disagrees with {method}: at sigma {worst.sigma:g} mean p {counted}, "
                f"not {stated}; {100 * worst.apart:.1f} % of inputs differ by more than both "
                f"99 % intervals allow{outside}"
            )


@group.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="folder of the page (default: report in FOLDER)")  # fmt: skip
@click.option("--method", help="the run's method that headline, classes and galleries are shown for "
              "(default: its first, or where Monte Carlo disagrees with that, the one nearest to it)")  # fmt: skip
def report(folder, out, method) -> int:
    """Write the report of a finished run in FOLDER."""
    from ..report import report as write

    click.echo(write(folder, out=out, method=method))
    return FINISHED


@group.command()
@click.option("--model", required=True, help="as for evaluate")
@click.option("--data", required=True, help="as for evaluate")
@click.option("--sigma", required=True, type=Numbers(), help="noise levels")
@click.option("--method", default="taylor,mmse,logit_moments", show_default=True,
              help="the methods to check, separated by commas")  # fmt: skip
@click.option("--examples", type=click.IntRange(2), default=32, show_default=True,
              help="how many to draw")  # fmt: skip
@click.option("--draws", type=click.IntRange(100), default=10_000, show_default=True,
              help="noisy copies of each for Monte Carlo")  # fmt: skip
@click.option("--n-samples", type=click.IntRange(1), help="noisy copies of the methods")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="as for evaluate")  # fmt: skip
@click.option("--input-size", type=click.IntRange(1), help="as for evaluate")
@click.option("--crop", type=click.FloatRange(0, 1, min_open=True), help="as for evaluate")
@click.option("--mean", type=Numbers(), help="as for evaluate")
@click.option("--std", type=Numbers())
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1")
def selfcheck(model, data, sigma, method, examples, mean, std, **rest) -> int:
    """Check the estimators against Monte Carlo on a sample, and recommend one.

    bias, mean |e|, rms: of p less Monte Carlo's; in MC: the share of its 99 % intervals that hold p;
    stated: the share that differs by no more than the stated errors and Monte Carlo's half-width;
    passes: of an input, for one sigma, in forward passes, where a backward pass or a forward-mode
    product counts as two; counting: the error of Monte Carlo with as many. A method pays where its
    rms is below its counting.

    Cost: --draws forward passes for each example and sigma, and the methods' own.
    """
    from ..evaluation import selfcheck as check

    methods = tuple(part.strip() for part in method.split(","))
    scaling = _scaling(mean, std)
    click.echo(check(model, data, sigma, methods=methods, n_examples=examples,
                     preprocessing=scaling, **rest))  # fmt: skip
    return FINISHED


@group.command()
@click.argument("before", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, file_okay=False, path_type=Path))
def compare(before, after) -> int:
    """What changed between two finished runs over the same data: change is AFTER less BEFORE.

    The table's columns have the folders' names.
    """
    from ..evaluation import compare as both

    click.echo(both(before, after))
    return FINISHED


@group.command()
def info() -> int:
    """The build, the devices and the optional packages."""
    from .info import lines

    click.echo("\n".join(lines()))
    return FINISHED
