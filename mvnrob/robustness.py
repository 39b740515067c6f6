"""``robustness``: how likely noise on an input leaves a classifier's answer as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ._checks import warn_caller
from ._mvn_cdf import Status
from .chunks import LINEAR, run
from .estimators import ESTIMATORS
from .estimators.chunk import Estimate, Settings
from .host_memory import freed_memory_kept
from .jacobian import (
    CHECKS,
    JACOBIAN_METHODS,
    JVP_MODES,
    check_choice,
    check_inputs,
    working_copy,
)
from .meter import Cost, Meter
from .network import Network, check_bounds, without_autocast
from .noise import Noise
from .options import check_int, check_number, read_max_bytes
from .screening import SCREENS

METHODS = tuple(ESTIMATORS)
SAMPLINGS = ("antithetic", "iid")
#: Copies per input (and sigma) unless given.
DEFAULT_SAMPLES = {"mc": 10_000, "mmse": 10, "mmse_mvs": 10, "logit_moments": 100}
#: option -> methods that read it; giving it to another method is an error.
_READERS = {
    "n_samples": tuple(DEFAULT_SAMPLES),
    "sampling": ("mmse", "mmse_mvs", "logit_moments"),
    "slope": ("taylor_mvs", "mmse_mvs"),
    "temperature": ("softmax",),
    "width": ("mc",),
    "screen": ("taylor", "mmse"),
    "head": LINEAR,
    "abs_tol": ("taylor", "mmse", "logit_moments"),
    "jacobian": LINEAR,
    "jvp_mode": LINEAR,
    "check": LINEAR,
}


@dataclass(frozen=True, repr=False)
class RobustnessResult:
    """What :func:`robustness` knows of each input; tensors are on the device of x.

    Shape (s) is ``[B]``, or ``[n_sigma, B]`` when sigma was a list.

    - ``prob``: (s) float64, P(argmax f(x + noise) = target).
    - ``complement``: (s) float64, one minus it, computed without cancellation.
    - ``error``: (s) float64, 99 % bound on ``|prob - truth|``, of what :func:`robustness` says the
      method's error covers; NaN: no statement.
    - ``lower``, ``upper``: (s) float64, the limits that ``error`` stands for, possibly at unequal
      distances from ``prob``.
    - ``status``: (s) int64, the numbers of :class:`mvnrob.Status`: how the integral alone ended. It
      does not speak of sampling error (``mmse``, ``logit_moments``), which ``abs_tol`` does not govern.
      EXACT for ``softmax``, ``taylor_mvs`` and ``mmse_mvs``, formulas without an integral; for
      ``mc``, MAX_POINTS where ``width`` was not reached.
    - ``target``: ``[B]`` int64, the class whose probability this is.
    - ``runner_up``: (s) int64, the class the input most probably flips to.
    - ``n_screened``: (s) int64, rivals that did not enter the integral.
    - ``sigma``: float64, the noise levels in units of x: ``[]``, ``[n_sigma]`` or one input's shape.
    - ``method``: str, as asked for.
    - ``cost``: :class:`mvnrob.meter.Cost`, passes of each input and seconds of the call.
    """

    prob: Tensor
    complement: Tensor
    error: Tensor
    lower: Tensor
    upper: Tensor
    status: Tensor
    target: Tensor
    runner_up: Tensor
    n_screened: Tensor
    sigma: Tensor
    method: str
    cost: Cost

    def __repr__(self) -> str:
        """A line: the tensors are for indexing."""
        shape = "x".join(map(str, self.prob.shape)) or "one"
        text = f"RobustnessResult(method={self.method!r}, prob: {shape}"
        if self.prob.numel():
            text += f" with mean {self.prob.nanmean().item():.4g}"
            text += f", largest error {self.error.max().item():.2g}, status:"
            kinds, counts = self.status.unique(return_counts=True)
            for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
                text += f" {count} {Status(kind).name}"
        return text + ")"


def robustness(
    model: Callable,
    x: Tensor,
    sigma: float | Sequence[float] | np.ndarray | Tensor,
    *,
    method: str = "taylor",
    target: str | int | Sequence[int] | np.ndarray | Tensor | None = None,
    n_samples: int | None = None,
    sampling: str | None = None,
    slope: float | str | None = None,
    temperature: float | Tensor | None = None,
    width: float | None = None,
    abs_tol: float | None = None,
    screen: str | None = None,
    head: nn.Module | str | None = None,
    noise_factor: Tensor | Callable | None = None,
    bounds: tuple[float, float] | None = None,
    preprocessing: Mapping | None = None,
    seed: int = 0,
    first_index: int = 0,
    max_bytes: int | None = None,
    jacobian: str | None = None,
    jvp_mode: str | None = None,
    check: str | None = None,
) -> RobustnessResult:
    r"""P(argmax f(x + noise) = target) for every input, with an error.

    The estimators are those of Han, Srinivas & Lakkaraju, *Characterizing Data Point Vulnerability
    via Average-Case Robustness* (UAI 2024, arXiv 2307.13885), and three additions: antithetic
    sampling, calibrated ``mvs``, ``logit_moments``.

    Args:
        model: ``[B, *shape] -> [B, C]`` logits, C >= 2: an ``nn.Module`` in eval mode, or a callable;
            an output object with ``.logits`` is accepted. Rows must be independent of each other.
            Half precision outputs are computed with in float32; autocast around the call reaches the
            model alone. What ``torch.compile`` made runs compiled where no derivatives are taken. Train
            mode is refused where it can be seen: in a module, its bound methods and
            ``functools.partial`` of them. A lambda or function that calls a module is not searched;
            call ``model.eval()`` yourself.
        x: inputs ``[B, *shape]``, a dense floating point tensor of the dtype and on the device that
            the model takes: images, tables, any shape.
        sigma: standard deviation of the Gaussian noise in the units of x. A number; a list or
            1-D NumPy array of numbers (a curve: results gain a leading dimension); or a tensor of one
            input's shape, one for each feature.
        method:
            ``"mc"`` counts ``n_samples`` noisy copies: ``lower`` and ``upper`` are Clopper-Pearson
            limits, valid for the network itself.
            ``"taylor"`` the network linearised at x: ``error`` covers the integral and screening.
            ``"mmse"`` linearised by averaging ``n_samples`` noisy copies: ``error`` also covers the
            sampling error of the averages (jackknife; NaN for two antithetic copies).
            ``"taylor_mvs"``, ``"mmse_mvs"`` the multivariate sigmoid in place of the integral:
            ``lower`` and ``upper`` enclose the integral, ``error`` is the distance to the farther.
            ``"softmax"`` softmax of f(x) / temperature: no statement on its error (NaN).
            ``"logit_moments"`` a normal law with the sample moments of ``n_samples`` noisy copies'
            margins: ``error`` covers the integral and the sampling error (jackknife).
            No ``error`` but that of ``"mc"`` covers the network's departure from the method's model.
            A jackknife interval is approximate: with fewer than 50 copies it misses in up to 4 % of
            the cases, not 1 % (measured on digits; rates in ``estimators/jackknife.py``).
        target: None or ``"prediction"``: the argmax at x; B labels (a tensor, a NumPy array or
            a list of ints); or one class for all, an int. A target that is not the argmax at x is
            answered all the same.
        n_samples: noisy copies per input and sigma: 10,000 for ``mc``, 10 for ``mmse`` and
            ``mmse_mvs``, 100 for ``logit_moments``.
        sampling: ``"antithetic"`` (default) or ``"iid"`` (as published), for ``mmse``, ``mmse_mvs``
            and ``logit_moments``.
        slope: of the sigmoid: 1 (default, as published), another number, or ``"calibrated"``
            (:func:`mvnrob.estimators.calibrated_slope`).
        temperature: of the softmax, 1 by default; a number, or one per sigma
            (:func:`mvnrob.estimators.softmax_temperature` gives T = sigma k).
        width: ``mc`` stops drawing for an input when its interval is at most this wide.
        abs_tol: 99 % error to reach by integral and screening together (default 1e-3). It does not
            govern the sampling error of ``mmse`` and ``logit_moments``: more ``n_samples`` do.
        screen: which rivals' gradients are computed. ``"auto"`` (default): what is expected to take
            the fewest passes, of ``"exact"``, ``"sketch"`` and, with an ``abs_tol`` of 5e-4 or more, a
            low rank: rows of the rivals that matter most, forward-mode products along their span, and random
            directions for the rest, whose sampling error (99 %) is in ``error``
            (:mod:`mvnrob.low_rank`). ``"exact"``: all, but only those that can matter
            enter the integral; with many classes through the last linear layer (``head``), where
            its live features are fewer than the classes. ``"sketch"``: the nearest rivals', bounds
            on all others from 8 to 256 forward-mode products, then those that can matter; the
            bounds hold with probability 99.9 %, and the mass of what they leave out is in
            ``error``. ``"none"``: all enter the integral.
        head: the layer that computes the logits from w features, ``nn.Linear`` or a convolution of
            one place on pooled features: a module or its dotted name in the model; ``"off"``: none.
            By default it is looked for in modules (not in compiled ones), and found where its output
            is the logits. Its product is compared with the logits at every input, and its derivative along one
            direction with theirs (without forward mode, one gradient with theirs). A named head that
            does not give them is refused; one that was found is given up with a warning.
        noise_factor: A with noise = sigma A e, e ~ N(0, I_r): a tensor ``[D, r]`` over the flattened
            input, or a linear callable ``[m, *shape] -> [m, *shape]`` (a blur), r = D.
        bounds: ``(low, high)`` that x must lie in. Noise is not clipped.
        preprocessing: ``dict(mean, std, axis)`` as in Foolbox, applied before the model; sigma and
            bounds stay in raw units.
        seed: of all random numbers. An input's noise depends on the seed and its number alone.
        first_index: number of the first input, so that a data set in batches draws what it would
            draw in one call.
        max_bytes: budget for Jacobian rows, covariances, counts and autograd's graph: 2 GiB by default,
            on a GPU a quarter of its memory (small passes leave it idle); bounds the
            inputs, samples and classes handled at once. Rows that do not fit are computed again for
            each range of columns. A single input's graph is not split, nor its covariances (48 bytes
            for each pair of classes in the integral, 144 for ``mmse``) or the margins of
            ``logit_moments`` (64 bytes for each copy and class): where these need more than the
            budget, and more than 16 MiB, a ValueError says how much.
        jacobian: ``"batch"`` (default), ``"loop"``, ``"vmap"``: see :func:`mvnrob.jacobian.jacobian`.
        jvp_mode: ``"forward"`` (default; attention by torch's plain kernel, the fused ones have no
            forward mode), or ``"double_backward"`` where forward mode is missing (some 20 backward
            passes each on a CPU).
        check: ``"warn"`` (default), ``"raise"`` or ``"off"``: compare every input's rows with one
            random forward-mode product. Where a GPU rounds float32 to TF32 (torch's default for
            convolutions) derivatives of two passes take different sides of ReLUs' kinks and differ by
            a fifth of their norm; there the model is checked in place of the rows, with TF32 off: two
            rows of each of the first two inputs of every chunk, made anew beside such a product. Half
            precision may do the same, and cannot be turned off: differences that it explains are said
            to be possibly its own, and the model in float32 tells.

    ``status`` tells how the integral ended and nothing else: ``CONVERGED`` beside a large ``error``
    means that sampling is what is uncertain. Inputs that end with ``abs_tol`` unmet or with
    ``INDEFINITE`` are counted in one warning each.

    Edges: a common factor on all logits changes nothing (float64: up to some 1e280 either way, by
    another try with rescaled derivatives; so may classes of one input have slopes 1e-260 times those
    of others, less count as none); sigma = 0 gives 1 where the target is the argmax (ties count as
    kept), else 0; a rival with the target's gradient never changes its margin; NaN logits give NaN
    with status ``NAN_INPUT`` for that input alone; an empty batch gives empty results.

    Cost, in passes per input: 1 forward for the target; ``taylor`` at most C backward, whatever the
    number of sigmas (screened at the largest); fewer with a head or where few rivals matter; ``mmse``
    n times that per sigma; ``mc`` and ``logit_moments`` n forward per sigma; one forward-mode
    product for the check, and another where it disagrees with the rows (where TF32 is on, a forward
    pass, two backward passes and a product for two inputs of a chunk instead). On a GPU, which small
    passes leave idle, gradients of few inputs come from passes of copies, each one more forward pass,
    for several classes at a time. Memory: below
    ``max_bytes``, results and a copy of x aside, and what a model's operations take for a moment; on a
    CPU freed memory is kept until the call ends and may come on top of it.

    Returns :class:`mvnrob.RobustnessResult`.

    Raises:
        TypeError, ValueError: a bad argument, an option that the method does not read, a module in
            train mode, inputs outside ``bounds``, a ``max_bytes`` that one input's sums exceed.
        torch.OutOfMemoryError: memory does not hold the passes of a single input; with more inputs
            or copies in a pass, their number is halved, with a warning.
        RuntimeError: ``check="raise"`` and derivatives that disagree.
    """
    op = "robustness"
    check_choice(op, "method", method, METHODS)
    given = {
        "n_samples": n_samples,
        "sampling": sampling,
        "slope": slope,
        "temperature": temperature,
        "width": width,
        "screen": screen,
        "head": head,
        "abs_tol": abs_tol,
        "jacobian": jacobian,
        "jvp_mode": jvp_mode,
        "check": check,
    }
    for name, value in given.items():
        if value is not None and method not in _READERS[name]:
            raise ValueError(f"{op}: {name} must be left out for method {method!r}, got {value!r}")
    check_inputs(op, x)
    for name, value, least in (("seed", seed, None), ("first_index", first_index, 0)):
        check_int(op, name, value, least)
    max_bytes = read_max_bytes(op, max_bytes, x.device)
    network = Network(op, model, preprocessing, x)
    target = _plain_target(op, target)
    check_bounds(op, x, bounds)
    with (
        torch.inference_mode(False),
        without_autocast(x.device),
        freed_memory_kept(x.device),
    ):
        inputs = working_copy(x, network.work_dtype)
        noise = Noise(op, sigma, noise_factor, inputs)
        settings = _settings(op, method, given, noise, seed, max_bytes)
        _check_target(op, target, len(x))
        if len(x) == 0:
            estimate, cost = Estimate.empty(len(noise.sigmas), x.device), Meter(0, x.device).cost()
            chosen = estimate.status[0]
        else:
            estimate, chosen, cost = run(
                network,
                inputs,
                noise,
                settings,
                method,
                ESTIMATORS[method],
                lambda classes: _read_labels(op, target, len(x), classes, x.device),
                first_index,
                head,
            )
    _warn_of_statuses(op, method, estimate.status)
    values = {name: value if noise.many else value[0] for name, value in vars(estimate).items()}
    return RobustnessResult(
        **values, target=chosen, sigma=sigma_levels(sigma), method=method, cost=cost
    )


#: Names of all arguments of :func:`robustness`.
OPTIONS = inspect.signature(robustness).parameters.keys()


def sigma_levels(sigma) -> Tensor:
    """Float64: the noise levels as given, ``[]``, ``[n_sigma]`` or one input's shape."""
    if isinstance(sigma, Tensor):
        return sigma.detach().double()
    return torch.tensor(sigma, dtype=torch.float64)


def linear_settings(op: str, noise: Noise, seed: int, max_bytes: int, **given) -> Settings:
    """Checked settings of ``taylor``; what is not given has its default."""
    return _settings(op, "taylor", dict.fromkeys(_READERS) | given, noise, seed, max_bytes)


def _settings(
    op: str, method: str, given: dict, noise: Noise, seed: int, max_bytes: int
) -> Settings:
    def value(name: str, default):
        return default if given[name] is None else given[name]

    sampling = value("sampling", "antithetic")
    check_choice(op, "sampling", sampling, SAMPLINGS)
    n_samples = value("n_samples", DEFAULT_SAMPLES.get(method, 0))
    if method in DEFAULT_SAMPLES:
        check_int(op, "n_samples", n_samples, 1 if method == "mc" else 2)
        if method != "mc" and sampling == "antithetic" and n_samples % 2:
            raise ValueError(
                f"{op}: n_samples must be even for sampling='antithetic', got {n_samples}"
            )
    slope = value("slope", 1.0)
    if slope != "calibrated":
        check_number(op, "slope", slope, "'calibrated' or a positive number", positive=True)
    width = value("width", None)
    if width is not None:
        check_number(op, "width", width, "a positive number", positive=True)
    abs_tol = value("abs_tol", 1e-3)
    check_number(op, "abs_tol", abs_tol, "a positive number", positive=True)
    screen = value("screen", "auto")
    check_choice(op, "screen", screen, SCREENS)
    jacobian = value("jacobian", "batch")
    check_choice(op, "jacobian", jacobian, JACOBIAN_METHODS)
    jvp_mode = value("jvp_mode", "forward")
    check_choice(op, "jvp_mode", jvp_mode, JVP_MODES)
    check = value("check", "warn")
    check_choice(op, "check", check, CHECKS)
    return Settings(
        n_samples=n_samples,
        sampling=sampling,
        slope=slope,
        temperature=_read_temperature(op, value("temperature", 1.0), noise),
        width=width,
        screen=screen,
        abs_tol=float(abs_tol),
        seed=seed,
        max_bytes=max_bytes,
        jacobian=jacobian,
        jvp_mode=jvp_mode,
        check=check,
    )


def _read_temperature(op: str, given, noise: Noise) -> Tensor:
    temperature = torch.as_tensor(given, dtype=torch.float64).detach().cpu()
    allowed = [(), (len(noise.sigmas),)] if noise.many else [()]
    if tuple(temperature.shape) not in allowed:
        raise ValueError(
            f"{op}: temperature must be a number, or one per sigma, "
            f"got shape {list(temperature.shape)}"
        )
    if not (temperature.isfinite() & (temperature > 0)).all():
        raise ValueError(f"{op}: temperature must be positive and finite, got {given}")
    return temperature


def _warn_of_statuses(op: str, method: str, status: Tensor) -> None:
    if method not in _READERS["abs_tol"]:
        return
    for kind, what in (
        (Status.MAX_POINTS, "ended before abs_tol was met; their error says how far they came"),
        (Status.INDEFINITE, "got NaN: the covariance of their margins is not semidefinite"),
    ):
        count = int((status == kind).any(0).sum())
        if count:
            warn_caller(f"{op}: {count} of {status.shape[1]} inputs {what}")


_TARGETS = "None, 'prediction', an int or B labels (a tensor, an array or a list of ints)"


def _plain_target(op: str, target):
    """NumPy integers, arrays and lists of integers as an int or a tensor."""
    if isinstance(target, (list, tuple)):
        for label in target:
            if isinstance(label, bool) or not isinstance(label, (int, np.integer)):
                raise TypeError(
                    f"{op}: target must be {_TARGETS}, "
                    f"got a {type(target).__name__} that holds {type(label).__name__}"
                )
        return torch.tensor([int(label) for label in target], dtype=torch.int64)
    if isinstance(target, (np.integer, np.ndarray)):
        if target.dtype.kind not in "iu":
            raise TypeError(f"{op}: target must be {_TARGETS}, got an array of {target.dtype}")
        return torch.from_numpy(np.array(target, dtype=np.int64))
    return target


def _check_target(op: str, target, batch: int) -> None:
    if target is None:
        return
    if isinstance(target, str):
        if target != "prediction":
            raise ValueError(f"{op}: target must be {_TARGETS}, got {target!r}")
        return
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TypeError(f"{op}: target must be a tensor of integers, got {target.dtype}")
        if target.dim() > 1 or target.dim() == 1 and len(target) != batch:
            raise ValueError(f"{op}: target must have shape [{batch}], got {list(target.shape)}")
        return
    if isinstance(target, bool) or not isinstance(target, int):
        raise TypeError(f"{op}: target must be {_TARGETS}, got {type(target).__name__}")


def _read_labels(op: str, target, batch: int, classes: int, device: torch.device) -> Tensor | None:
    """Labels ``[B]``, or None for the predictions."""
    if target is None or isinstance(target, str):
        return None
    labels = torch.as_tensor(target, device=device).long().expand(batch).clone()
    if batch and not (0 <= int(labels.min()) and int(labels.max()) < classes):
        bad = labels[(labels < 0) | (labels >= classes)][0].item()
        raise ValueError(f"{op}: target must lie in [0, {classes}), got {bad}")
    return labels


__all__ = ["METHODS", "RobustnessResult", "Status", "robustness"]
