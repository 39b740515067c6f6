"""``selfcheck``: which estimator to trust for a model, measured against Monte Carlo on a sample."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..network import Network
from ..robustness import METHODS, RobustnessResult, robustness
from .arguments import device_of, override, sigmas_of
from .examples import first_readable, read_tensor
from .models import LoadedModel, load_model
from .sources import load_source

DEFAULT_METHODS = ("taylor", "mmse", "logit_moments")
#: A backward pass costs about two forward ones.
_VJP_IN_FORWARDS, _JVP_IN_FORWARDS = 2, 2
#: Methods that draw for each sigma anew.
_PER_SIGMA = ("mmse", "mmse_mvs", "logit_moments")
#: A cheaper method is taken when its error is at most so many times the best one's.
_AS_GOOD = 1.5


@dataclass(frozen=True)
class Check:
    """One method at one sigma against Monte Carlo on the sample; printed headings in brackets.

    - ``method``, ``sigma``: which.
    - ``bias``: mean of p - mc.
    - ``mean_error`` (mean |e|): mean of |p - mc|.
    - ``rms``: root mean square of p - mc, Monte Carlo's own noise taken out.
    - ``inside`` (in MC): share of Monte Carlo's 99 % intervals that hold p.
    - ``stated``: share of examples with |p - mc| <= error + mc's half-width.
    - ``forwards`` (passes): of an input for one sigma, in forward passes; a backward pass or a
      forward-mode product counts as two.
    - ``seconds``: wall, per input and sigma (not printed).
    - ``counting``: rms error that Monte Carlo with as many forward passes would have.
    """

    method: str
    sigma: float
    bias: float
    mean_error: float
    rms: float
    inside: float
    stated: float
    forwards: float
    seconds: float
    counting: float


@dataclass(frozen=True)
class SelfCheck:
    """What :func:`selfcheck` found; ``print`` shows it as a table.

    - ``checks``: :class:`Check` of each sigma and method.
    - ``recommended``: ``recommended[sigma]`` is ``(method, why)``.
    - ``examples``: indices of the sample in the data.
    - ``draws``: Monte Carlo's of each example.
    - ``noise``: ``noise[sigma]`` is the rms error of Monte Carlo itself.
    - ``answers``: ``answers[method]`` is its :class:`mvnrob.RobustnessResult`, Monte Carlo's as
      ``"mc"``.
    """

    checks: tuple[Check, ...]
    recommended: dict[float, tuple[str, str]]
    examples: tuple[int, ...]
    draws: int
    noise: dict[float, float]
    answers: dict[str, RobustnessResult]

    def __str__(self) -> str:
        head = (
            f"{'method':14} {'sigma':>7} {'bias':>9} {'mean |e|':>9} {'rms':>9} {'in MC':>6} "
            f"{'stated':>7} {'passes':>8} {'counting':>9}"
        )
        lines = [
            f"{len(self.examples)} examples, Monte Carlo with {self.draws} draws each",
            head,
        ]
        lines += [
            f"{c.method:14} {c.sigma:7g} {c.bias:9.4f} {c.mean_error:9.4f} {c.rms:9.4f} "
            f"{100 * c.inside:5.0f}% {100 * c.stated:6.0f}% {c.forwards:8.0f} {c.counting:9.4f}"
            for c in self.checks
        ]
        lines += [
            f"sigma {sigma:g}: {method} ({why})"
            for sigma, (method, why) in self.recommended.items()
        ]
        return "\n".join(lines)


def selfcheck(
    model: str | Callable | LoadedModel,
    data,
    sigma: float | Sequence[float],
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    n_examples: int = 32,
    draws: int = 10_000,
    n_samples: int | None = None,
    seed: int = 0,
    weights: str | Path | None = None,
    input_size: int | None = None,
    crop: float | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
) -> SelfCheck:
    """Estimators beside Monte Carlo on a random sample: bias, error, cost, and which to choose.

    Args:
        model, data, weights, input_size, crop, preprocessing, device: as for :func:`mvnrob.evaluate`.
        sigma: noise levels, raw input units.
        methods: of :func:`mvnrob.robustness`, other than ``"mc"``.
        n_examples: how many readable examples to draw, without repeats.
        draws: Monte Carlo's noisy copies of each.
        n_samples: noisy copies of the methods that draw some.
        seed: of the sample and of all noise.

    Returns what prints as a table, of the differences e = p less Monte Carlo's. ``bias``, ``mean |e|``:
    their mean and that of their sizes; ``rms``: the root of the mean square less Monte Carlo's own
    variance; ``in MC``: the share of Monte Carlo's 99 % intervals that hold p; ``stated``: the share of
    examples whose e is at most the method's stated error and Monte Carlo's half-width together;
    ``passes``: of an input for one sigma, in forward passes (a backward pass or a forward-mode product
    counts as two); ``counting``: the rms error that Monte Carlo would have with as many. A method pays
    where its ``rms`` is below its ``counting``. The figures are fields of the result: ``checks``,
    ``recommended``, ``examples`` (indices of the sample), ``draws``, ``noise`` (Monte Carlo's rms error
    by sigma), ``answers`` (by method).

    Recommended is the cheapest method whose rms is at most 1.5 times the best one's or
    within Monte Carlo's noise; Monte Carlo itself where counting does better at that price.

    Cost: ``draws`` forward passes per example and sigma, and the methods' own.

    Raises:
        TypeError, ValueError: a bad argument; no readable example, or none with logits that are numbers.
        ImportError (MissingExtra): a package that model or data need is not installed.
    """
    methods = tuple(methods)
    if "mc" in methods or not methods:
        raise ValueError(f"selfcheck: methods must be other than mc, got {', '.join(methods)!r}")
    unknown = [m for m in methods if m not in METHODS]
    if unknown:
        raise ValueError(f"selfcheck: methods must be of {', '.join(METHODS)}, got {unknown[0]!r}")
    if n_samples is not None and not set(methods) & set(_PER_SIGMA):
        raise ValueError(
            f"selfcheck: n_samples must be left out for {', '.join(methods)}, got {n_samples!r}"
        )
    for name, value, least in (("n_examples", n_examples, 2), ("draws", draws, 100)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"selfcheck: {name} must be an int of at least {least}, got {value!r}")
    sigmas = sigmas_of("selfcheck", sigma)
    loaded, source = load_model(model, weights=weights), load_source(data)
    override(loaded, input_size, crop, None, preprocessing)
    chosen_device = device_of(device)
    if isinstance(loaded.model, torch.nn.Module):
        loaded.model.to(chosen_device)
    index, x = _sample(loaded, source, n_examples, seed)
    x = x.to(chosen_device)
    finite = _answered(loaded, x)
    index, x = [i for i, good in zip(index, finite, strict=True) if good], x[finite]
    if not index:
        raise ValueError(
            "selfcheck: model must have logits that are numbers, got NaN at all inputs"
        )
    answers, seconds = {}, {}
    for method in ("mc", *methods):
        options = {}
        if method == "mc":
            options["n_samples"] = draws
        elif n_samples is not None and method in _PER_SIGMA:
            options["n_samples"] = n_samples
        start = time.perf_counter()
        answers[method] = robustness(
            loaded.model,
            x,
            sigmas,
            method=method,
            preprocessing=loaded.preprocessing,
            seed=seed,
            **options,
        )
        seconds[method] = (time.perf_counter() - start) / len(index)
    checks, recommended, noise = [], {}, {}
    for s, level in enumerate(sigmas):
        mc = answers["mc"]
        p = mc.prob[s]
        variance = _variance(p, draws)
        noise[level] = math.sqrt(variance / draws)
        here = [
            _check(m, level, answers[m], mc, s, seconds[m], len(sigmas), variance, draws)
            for m in methods
        ]
        checks += here
        recommended[level] = _recommend(here, noise[level])
    return SelfCheck(tuple(checks), recommended, tuple(index), draws, noise, answers)


def _variance(p: torch.Tensor, draws: int) -> float:
    """Mean of p (1 - p), with two flips and two non-flips added to each count (Agresti and Coull): no
    flip in so many draws is not the knowledge that there is none."""
    p = (p * draws + 2) / (draws + 4)
    return float((p * (1 - p)).mean())


def _answered(loaded: LoadedModel, x: torch.Tensor) -> torch.Tensor:
    """Which inputs have logits without NaN, ``[n]``; the others have no answer to compare."""
    with torch.no_grad():
        network = Network("selfcheck", loaded.model, loaded.preprocessing, x)
        logits = [network(one.to(network.work_dtype)) for one in x.split(1)]
    return ~torch.cat(logits).isnan().any(1)


def _sample(loaded: LoadedModel, source, count: int, seed: int) -> tuple[list[int], torch.Tensor]:
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed)).tolist()
    like = first_readable(source, loaded)
    index, kept = [], []
    for at in order:
        try:
            x = read_tensor(source.read(at), source, loaded)
        except Exception:  # noqa: BLE001, S112  (readers raise what they like; the next one counts)
            continue
        if x.shape == like.shape and x.dtype == like.dtype:
            index.append(at)
            kept.append(x)
        if len(index) == count:
            break
    return index, torch.stack(kept)


def _check(
    method: str,
    sigma: float,
    result: RobustnessResult,
    mc: RobustnessResult,
    s: int,
    seconds: float,
    levels: int,
    variance: float,
    draws: int,
) -> Check:
    gap = (result.prob[s] - mc.prob[s]).double()
    inside = (mc.lower[s] <= result.prob[s]) & (result.prob[s] <= mc.upper[s])
    error = result.error[s].nan_to_num(nan=0.0)
    stated = gap.abs() <= error + mc.error[s]
    cost = result.cost
    forwards = float(
        (cost.forward + _VJP_IN_FORWARDS * cost.vjp + _JVP_IN_FORWARDS * cost.jvp).double().mean()
    )
    if method in _PER_SIGMA:
        forwards /= levels  # the others' one Jacobian would be needed for a single sigma, too
    return Check(
        method,
        sigma,
        float(gap.mean()),
        float(gap.abs().mean()),
        math.sqrt(max(float(gap.square().mean()) - variance / draws, 0.0)),
        float(inside.double().mean()),
        float(stated.double().mean()),
        forwards,
        seconds / levels,
        math.sqrt(variance / max(forwards, 1.0)),
    )


def _recommend(checks: list[Check], noise: float) -> tuple[str, str]:
    best = min(checks, key=lambda c: c.rms)
    good = [c for c in checks if c.rms <= max(_AS_GOOD * best.rms, noise)]
    chosen = min(good, key=lambda c: c.forwards)
    if chosen.rms < noise:
        return chosen.method, (
            f"its rms error cannot be told from Monte Carlo's own, {noise:.2g}, for the price of "
            f"{chosen.forwards:.0f} forward passes, where counting has {chosen.counting:.2g}"
        )
    if chosen.counting < chosen.rms:
        return "mc", (
            f"counting as many forward passes as {chosen.method} costs, {chosen.forwards:.0f}, has an "
            f"error of {chosen.counting:.2g}, {chosen.method} {chosen.rms:.2g}"
        )
    return chosen.method, (
        f"rms error {chosen.rms:.2g} for the price of {chosen.forwards:.0f} forward passes, where "
        f"counting has {chosen.counting:.2g}"
    )
