"""``argmax_probabilities``: where noise on an input sends a classifier's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .chunks import run
from .estimators.argmax import Shares, argmax_shares
from .host_memory import freed_memory_kept
from .jacobian import check_inputs, working_copy
from .meter import Cost, Meter
from .network import Network, check_bounds, without_autocast
from .noise import Noise
from .options import check_int, check_number, read_max_bytes
from .robustness import linear_settings, sigma_levels


@dataclass(frozen=True, repr=False)
class ArgmaxResult:
    """What :func:`argmax_probabilities` knows of each input; tensors are on the device of x.

    Shapes marked (s) gain a leading dimension ``n_sigma`` when sigma was a list.

    - ``prob``: (s) ``[B, C]`` float64, P(argmax f(x + noise) = c); zero where not computed.
    - ``error``: (s) ``[B, C]`` float64, 99 % bound on ``|prob - P|`` in the linear model; where ``prob``
      is not computed, a bound on P.
    - ``rest``: (s) ``[B]`` float64, what the computed ones leave of 1: the mass of all the others.
    - ``rest_error``: (s) ``[B]`` float64, bound on the error of ``rest``, and of the sum of ``prob``
      beside ``1 - rest``: the computed ones' integration errors and the screened mass.
    - ``status``: (s) ``[B]`` int64, the worst :class:`mvnrob.Status` of the integrals (CONVERGED for
      all that met the tolerance).
    - ``target``: ``[B]`` int64, the argmax at x itself.
    - ``sigma``: float64, as in :class:`mvnrob.RobustnessResult`.
    - ``cost``: :class:`mvnrob.meter.Cost`, passes of each input and seconds of the call.
    """

    prob: Tensor
    error: Tensor
    rest: Tensor
    rest_error: Tensor
    status: Tensor
    target: Tensor
    sigma: Tensor
    cost: Cost

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.prob.shape)) or "one"
        text = f"ArgmaxResult(prob: {shape}"
        if self.prob.numel():
            text += f", largest error {self.error.max().item():.2g}"
            text += f", largest rest {self.rest.max().item():.2g}"
        return text + ")"


def argmax_probabilities(
    model: Callable,
    x: Tensor,
    sigma: float | Sequence[float] | np.ndarray | Tensor,
    *,
    abs_tol: float = 1e-3,
    min_prob: float = 1e-3,
    screen: str = "auto",
    head: nn.Module | str | None = None,
    noise_factor: Tensor | Callable | None = None,
    bounds: tuple[float, float] | None = None,
    preprocessing: Mapping | None = None,
    seed: int = 0,
    first_index: int = 0,
    max_bytes: int | None = None,
    jacobian: str = "batch",
    jvp_mode: str = "forward",
    check: str = "warn",
) -> ArgmaxResult:
    r"""P(argmax f(x + noise) = c) of the network linearised at x, for every class that matters.

    One Jacobian serves all classes and sigmas: with u_i = J_t - J_i for the argmax t at x, class c's
    margins have gradients J_c - J_i = u_i - u_c and hence covariances that follow from those of the
    u_i. Classes that screening keeps get a probability each, by :func:`mvnrob.mvn_cdf` with target c;
    the classes it drops share at most ``abs_tol`` and are bounded in ``error``.

    Args:
        min_prob: a class gets an integral where the bound min_i Phi(z^c_i) on its probability, over
            one other class at a time, is above this. The others keep probability zero, that bound as
            ``error``, and are together in ``rest``. Each integral costs a call of mvn_cdf over all
            kept classes: with hundreds of them, ask for no more than needed.
        abs_tol: 99 % error to reach for each class, screening included.
        model: ``[B, *shape] -> [B, C]`` logits; x: inputs ``[B, *shape]``; sigma: standard deviation of
            the noise in units of x; these and screen, head, noise_factor, bounds, preprocessing, seed,
            first_index, max_bytes, jacobian, jvp_mode, check: as in :func:`mvnrob.robustness`.

    Of equal classes whose margin cannot move the first wins, as in ``torch.argmax``. Where two
    gradients differ by no more than rounding (3e-7 of their distance to the target's) and the margin
    does not tell the classes apart, one gets the share of both, and ``error`` says so. NaN logits give
    NaN and status ``NAN_INPUT`` for that input. No error covers the network's departure from the
    linear model.

    An empty batch gives empty results; the number of classes is the model's at an input of zeros.

    Cost: passes as for ``robustness(method="taylor")``; then one integral per class and sigma. For each
    pair of kept classes 80 bytes.

    Returns :class:`mvnrob.ArgmaxResult`.

    Source: the Taylor estimator of Han, Srinivas and Lakkaraju (UAI 2024, arXiv 2307.13885), asked for
    every class in place of the one at x.

    Raises:
        TypeError, ValueError: a bad argument, as for :func:`mvnrob.robustness`; ``min_prob`` outside
            [0, 1); a ``max_bytes`` that the kept classes' covariances exceed.
        torch.OutOfMemoryError, RuntimeError: as :func:`mvnrob.robustness`.
    """
    op = "argmax_probabilities"
    check_inputs(op, x)
    check_int(op, "seed", seed, None)
    check_int(op, "first_index", first_index, 0)
    max_bytes = read_max_bytes(op, max_bytes, x.device)
    check_number(op, "min_prob", min_prob, "a number in [0, 1)", positive=False)
    if not 0 <= min_prob < 1:
        raise ValueError(f"{op}: min_prob must be a number in [0, 1), got {min_prob}")
    network = Network(op, model, preprocessing, x)
    check_bounds(op, x, bounds)
    with (
        torch.inference_mode(False),
        without_autocast(x.device),
        freed_memory_kept(x.device),
    ):
        inputs = working_copy(x, network.work_dtype)
        noise = Noise(op, sigma, noise_factor, inputs)
        settings = linear_settings(
            op, noise, seed, max_bytes, screen=screen, abs_tol=abs_tol, jacobian=jacobian,
            jvp_mode=jvp_mode, check=check,
        )  # fmt: skip
        if len(x) == 0:
            shares = Shares.empty(len(noise.sigmas), network.count_classes(inputs), inputs)
            target, cost = shares.status[0], Meter(0, x.device).cost()
        else:
            shares, target, cost = run(
                network,
                inputs,
                noise,
                settings,
                "argmax",
                lambda chunk: argmax_shares(chunk, min_prob),
                lambda classes: None,
                first_index,
                head,
            )
    values = {name: v if noise.many else v[0] for name, v in vars(shares).items()}
    return ArgmaxResult(**values, target=target, sigma=sigma_levels(sigma), cost=cost)


__all__ = ["ArgmaxResult", "argmax_probabilities"]
