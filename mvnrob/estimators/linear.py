"""The linearised network's probability: what ``taylor`` and ``mmse`` share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._jac_cov import jac_cov_finalize
from .._mvn_cdf import mvn_cdf
from ..auto import screen_auto
from ..jacobian import LogitMap
from ..linearised import Linearised, in_range, margins_of
from ..noise import DIRECTIONS, Noise, row_keys
from ..screening import EXACT_SHARE, SKETCH_SHARE, Screened, screen_exact, standardised
from ..sketch import screen_sketch
from .chunk import LEVEL, Chunk, Estimate, clamped, statuses_not_warnings
from .jackknife import group_weights, sampling_error


def pair_bytes(versions: int, method: str = "taylor") -> int:
    """Bytes for each pair of classes that enter the integral: the sums of all versions beside rows
    (half the budget), or beside one version's correlations and copies of these in the CDF; for
    ``argmax_probabilities`` norms and margins of all pairs as well (measured: tests/test_memory.py)."""
    return max(40 + 8 * versions, 16 * versions) + (32 if method == "argmax" else 0)


def linearised(
    chunk: Chunk, noise: Noise, logits: LogitMap, values: Tensor, *, method: str = "taylor"
) -> Linearised:
    """The chunk's linear model, ready for screening."""
    weights = group_weights(logits.groups, values.device)
    return Linearised(
        logits=logits,
        noise=noise,
        target=chunk.target,
        values=values,
        weights=weights,
        keys=row_keys(chunk.settings.seed, DIRECTIONS, chunk.index),
        max_bytes=chunk.settings.max_bytes,
        pair_bytes=pair_bytes(len(weights), method),
        double=method == "argmax",
    )


def linear_estimate(
    chunk: Chunk, noise: Noise, logits: LogitMap, values: Tensor, *, sampled: bool
) -> Estimate:
    """P(target on top) of the linear model given by ``logits`` and its values ``[b, G, C]``.

    ``sampled``: the values and rows are means over random noise, so ``error`` includes theirs.
    """

    def solve(problem: Linearised) -> Estimate:
        inputs, estimates = [], []
        for screened in screen(problem, chunk.settings.screen, chunk.settings.abs_tol):
            inputs.append(screened.inputs)
            estimates.append(_integrate(chunk, problem, screened, sampled))
            del screened  # before the next one comes
        return Estimate.join(estimates, 1).at(torch.cat(inputs).argsort())

    return in_range(linearised(chunk, noise, logits, values), solve)


def screen(problem: Linearised, way: str, abs_tol: float) -> Iterator[Screened]:
    """The classes that matter, in as many parts as ways are taken and as fit in the budget."""
    if way == "none":
        return screen_exact(problem, allowed=0.0, share=0.0, all_classes=True)
    if way == "exact":
        return screen_exact(problem, allowed=EXACT_SHARE * abs_tol, share=EXACT_SHARE)
    if way == "sketch":
        return screen_sketch(problem, allowed=SKETCH_SHARE * abs_tol)
    return screen_auto(problem, abs_tol)


def _integrate(chunk: Chunk, problem: Linearised, screened: Screened, sampled: bool) -> Estimate:
    chunk = chunk.subset(screened.inputs)
    values, sigmas = problem.values[screened.inputs], problem.noise.sigmas
    probs = []
    for version, weight in enumerate(problem.weights):
        margins = margins_of(values, weight, chunk.target).gather(1, screened.classes)
        with chunk.meter.clock("covariance"):
            norms, law = _law(screened, version, margins)
        z = [standardised(margins[:, 1:], norms, sigma) for sigma in sigmas]
        infos = [_cdf(chunk, z_sigma, law, screened.share) for z_sigma in z]
        probs.append(torch.stack([info.prob for info in infos]))
        if version == 0:
            whole, z_whole = infos, z
    error = torch.stack([info.error for info in whole])
    if screened.sampled is not None:  # independent of the integral's
        error = torch.hypot(error, screened.sampled)
    if sampled:
        error = error + sampling_error(torch.stack(probs), problem.logits.groups, LEVEL)
    error = error.clamp_max(1.0)
    error_with_dropped = (error + screened.dropped).clamp_max(1.0)
    lower, upper = clamped(probs[0], error_with_dropped, error)
    return Estimate(
        probs[0],
        torch.stack([info.complement for info in whole]),
        error_with_dropped,
        lower,
        upper,
        torch.stack([info.status for info in whole]),
        torch.stack([nearest(z_sigma, screened.classes[:, 1:], chunk) for z_sigma in z_whole]),
        screened.n_screened.expand(len(sigmas), -1),
    )


def _law(screened: Screened, version: int, margins: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """||u_i|| of the rivals [b, S] and their correlations, as ``cov`` or ``factor`` of mvn_cdf."""
    if screened.factor is None:
        place = torch.zeros(len(margins), dtype=torch.int64, device=margins.device)
        out = jac_cov_finalize(screened.scatter[version], margins, place, 1.0)
        return out.norms, {"cov": out.corr}
    u = screened.factor[version][:, 1:]
    norms = torch.linalg.vector_norm(u, dim=-1)
    # a row of zeros stays one: z is infinite there, and the rival no condition or never met
    return norms, {"factor": u / torch.where(norms == 0, 1.0, norms)[..., None]}


def nearest(z: Tensor, classes: Tensor, chunk: Chunk) -> Tensor:
    """The rival that alone is most likely to overtake; the clean runner-up if none can."""
    fallback = clean_runner_up(chunk)
    if z.shape[1] == 0:
        return fallback
    least, at = z.min(1)
    return torch.where(least == torch.inf, fallback, classes.gather(1, at[:, None])[:, 0])


def clean_runner_up(chunk: Chunk) -> Tensor:
    others = chunk.clean.scatter(1, chunk.target[:, None], -torch.inf)
    return others.argmax(1)


def _cdf(chunk: Chunk, z: Tensor, law: dict[str, Tensor], share: float):
    s = chunk.settings
    with chunk.meter.clock("cdf"), statuses_not_warnings():
        return mvn_cdf(
            z,
            **law,
            abs_tol=(1.0 - share) * s.abs_tol,
            seed=chunk.cdf_seeds(),
            return_info=True,
        )
