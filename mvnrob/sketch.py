"""Screening by sketches: bounds on all rows' norms from a few forward-mode products."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .intervals import chi_square_quantile
from .linearised import Linearised, mean_rows, scatter_sums
from .network import first_line
from .noise import standard_normal
from .screening import (
    EXACT_SHARE,
    SKETCH_SHARE,
    Screened,
    alike,
    cheaper,
    dropped_mass,
    find_features,
    keep_largest,
    packed,
    rival_order,
    screen_exact,
    tail,
)

#: Rows computed first: the target's and those of the nearest rivals.
NEAR_ROWS = 8
#: Leading directions of the near rivals' u_i that are taken out of the sketch.
DEFLATED = 3
#: Directions after which the bounds are looked at.
SKETCH_SIZES = (8, 16, 32, 64, 128, 256)
#: Probability that any bound on a sketched norm fails, over all classes and looks of one input.
SKETCH_RISK = 1e-3
#: Directions in memory at a time, in float64; divides the steps of SKETCH_SIZES.
_DIRECTIONS_AT_ONCE = 8
#: What a forward-mode product costs in backward passes. EfficientNet-Lite0 on a CPU: 33 ms each of eight
#: together, 50 ms one alone, beside 21 ms for a backward pass; residual networks less
#: (mvnrob/forward_mode.py; by torch's own rules it was 40 to 80 ms).
JVP_IN_VJPS = 1.5


def screen_auto(problem: Linearised, abs_tol: float) -> Iterator[Screened]:
    """All rows, the features' rows or a sketch, by the backward passes that each is expected to
    take (a forward-mode product counts as ``JVP_IN_VJPS``).

    ``direct``, what all rows cost, is known beforehand: C, or the number of live features. The near
    rivals' rows give a first guess of all norms, and every look at the sketch a better one of how
    many more rows it would save. An input leaves for the direct way as soon as that is cheaper.
    """
    classes = problem.values.shape[2]
    least = NEAR_ROWS + JVP_IN_VJPS * (DEFLATED + SKETCH_SIZES[0])
    exact = {"allowed": EXACT_SHARE * abs_tol, "share": EXACT_SHARE}
    features, left = None, torch.arange(len(problem.target), device=problem.target.device)
    if classes > least:  # fewer cost no more than a sketch
        features = find_features(problem)
        direct = features.passes(problem.rows_at_once) if cheaper(problem, features) else classes
        if direct > least:
            # without forward mode all are left
            with contextlib.suppress(_NoForwardMode):
                with problem.logits.meter.clock("sketch"):
                    sketched, left = _sketch(problem, SKETCH_SHARE * abs_tol, direct)
                yield from sketched
    if len(left):
        some = None if features is None else features.subset(left)
        for part in screen_exact(problem.subset(left), features=some, **exact):
            part.inputs = left[part.inputs]
            yield part
            del part  # before the next one comes


def screen_sketch(problem: Linearised, *, allowed: float) -> Iterator[Screened]:
    """Bounds from a sketch and rows of those that may matter, whatever that costs."""
    try:
        with problem.logits.meter.clock("sketch"):
            parts, _ = _sketch(problem, allowed, math.inf)
    except _NoForwardMode as error:
        raise ValueError(
            f"{problem.logits.network.op}: model must have forward-mode derivatives for "
            f"screen='sketch', got {error}; pass jvp_mode='double_backward' or screen='exact'"
        ) from error
    return parts


class _NoForwardMode(Exception):
    pass


def _sketch(
    problem: Linearised, allowed: float, direct: float
) -> tuple[Iterator[Screened], Tensor]:
    r"""Survivors by bounds on the norms, and the numbers of inputs that ``direct`` rows serve better.

    The target's and the nearest rivals' rows (``NEAR_ROWS`` in all) are computed. Products along the
    leading ``DEFLATED`` directions Q of their u_i give the part of every u_i inside Q exactly; K
    Gaussian directions orthogonal to Q give x_ik ~ N(0, ||u_i - Q Q^T u_i||^2), so that
    sum_k x_ik^2 over that squared norm is chi-square with K degrees of freedom and

        ||u_i||^2 <= |Q^T u_i|^2 + sum_k x_ik^2 / chi2_K(a_i)

    fails with probability a_i. The a_i sum to ``SKETCH_RISK`` over all rivals and all looks, so all
    bounds hold together with probability 99.9 %, and so does the bound on the dropped mass. They are
    larger for near rivals, where a tight bound saves a row (:func:`_risks`): that depends on the
    margins only, not on the sketch. (Without Q the bounds are useless at moderate K: one direction,
    the target's own gradient, holds most of every u_i.)

    Rivals are kept in the order of their bounds until the rest is allowed. K doubles while the rows
    that exact norms would save exceed the price of the next products.
    """
    target, margins, keys = problem.target, problem.margins, problem.keys
    b, classes = margins.shape
    order = rival_order(margins, target)
    near = min(NEAR_ROWS, classes, max(2, problem.row_budget // 2))
    near_rows = problem.rows(torch.cat([target[:, None], order[:, : near - 1]], 1))
    mean = mean_rows(near_rows, problem.weights[0]).double()
    differences = mean[:, :1] - mean[:, 1:]
    basis = _leading(differences, DEFLATED)
    forced = torch.zeros_like(order, dtype=torch.bool)
    forced[:, : near - 1] = True
    largest = max(problem.noise.sigmas)

    def survivors(rows: Tensor, norms: Tensor) -> Tensor:
        """Rivals beyond the near ones to keep, for norms ``[len(rows), C]``."""
        mass = tail(margins[rows], norms, largest).gather(1, order[rows])
        return keep_largest(mass.masked_fill(forced[rows], 0.0), allowed)

    everyone = torch.arange(b, device=target.device)
    guess = differences.norm(dim=2).mean(1, keepdim=True).expand(-1, classes)
    first_price = JVP_IN_VJPS * (basis.shape[1] + SKETCH_SIZES[0])
    # an input without numbers has no survivors to look for
    broken = margins.isnan().any(1)
    active = survivors(everyone, guess).sum(1) + first_price <= direct
    left = ~active & ~broken
    active &= ~broken

    keep = forced.clone()
    most = torch.full_like(margins, math.nan)
    inside, outside = torch.zeros_like(margins), torch.zeros_like(margins)
    drawn = 0
    for look, size in enumerate(SKETCH_SIZES):
        rows = active.nonzero()[:, 0]
        if not len(rows):
            break
        part = problem.subset(rows)
        if look == 0:
            inside[rows] = _margin_products(part, basis[rows]).square().sum(1)
        for first in range(drawn, size, _DIRECTIONS_AT_ONCE):
            directions = standard_normal(
                keys[rows], first, _DIRECTIONS_AT_ONCE, problem.noise.dim, torch.float64
            )
            directions -= (directions @ basis[rows].mT) @ basis[rows]
            outside[rows] += _margin_products(part, directions).square().sum(1)
        drawn = size
        stretch = torch.zeros_like(margins[rows])
        stretch.scatter_(
            1, order[rows], _stretches(classes - 1, size).to(order.device).expand(len(rows), -1)
        )
        most[rows] = (inside[rows] + outside[rows] * stretch).sqrt()
        kept = survivors(rows, most[rows])
        keep[rows] = kept | forced[rows]
        likely = survivors(rows, (inside[rows] + outside[rows] / size).sqrt()).sum(1)
        last = look + 1 == len(SKETCH_SIZES)
        price = math.inf if last else JVP_IN_VJPS * (SKETCH_SIZES[look + 1] - size)
        lost = torch.minimum(kept.sum(1).double(), likely + price) > direct
        left[rows[lost]] = True
        active[rows] = (kept.sum(1) - likely > price) & ~lost

    def covariances(rows: Tensor) -> Screened:
        part = problem.subset(rows)
        chosen, _ = packed(order[rows], keep[rows], target[rows])
        part.check_pairs(chosen.shape[1])
        held = None
        if chosen.shape[1] <= part.row_budget:
            held = near_rows[rows]
            if chosen.shape[1] > near:
                held = part.rows(chosen[:, near:], known=held)
        scatter = scatter_sums(part, chosen, held)
        dropped = dropped_mass(
            margins[rows], most[rows], order[rows], keep[rows], problem.noise.sigmas
        )
        n_screened = (~keep[rows]).sum(1)
        return Screened(rows, chosen, scatter, dropped, n_screened, SKETCH_SHARE)

    return map(covariances, alike(problem, keep.sum(1), ~left)), left.nonzero()[:, 0]


def _leading(vectors: Tensor, count: int) -> Tensor:
    """Orthonormal leading directions of ``vectors`` [b, m, r]: ``[b, min(count, m, r), r]``."""
    orthonormal, triangle = torch.linalg.qr(vectors.nan_to_num(0.0, 0.0, 0.0).mT)
    left = torch.linalg.svd(triangle).U
    return (orthonormal @ left[:, :, :count]).mT


def _risks(rivals: int) -> list[tuple[int, float]]:
    """(how many, each one's share of the risk) by rank of the margin: 1, 2, 4, 8, ... rivals, and
    each of these groups has the same part."""
    groups = [min(2**j, rivals - 2**j + 1) for j in range(rivals.bit_length())]
    return [(count, 1.0 / (len(groups) * 2**j)) for j, count in enumerate(groups)]


@functools.lru_cache(maxsize=64)
def _stretches(rivals: int, size: int) -> Tensor:
    """1 / chi2_size(a_i) for rivals by rank: ``[rivals]`` float64."""
    risk = SKETCH_RISK / len(SKETCH_SIZES)
    return torch.cat(
        [
            torch.full((count,), 1.0 / chi_square_quantile(risk * share, size), dtype=torch.float64)
            for count, share in _risks(rivals)
        ]
    )


def _margin_products(problem: Linearised, e: Tensor) -> Tensor:
    """u_i . e for directions e ``[b, m, r]``: ``[b, m, C]``, float64."""
    b, m, _ = e.shape
    logits = problem.logits
    along = problem.noise.push(e.flatten(0, 1).to(logits.x)).reshape(b, m, -1)
    try:
        out = logits.jvp(along)
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or logits.jvp_mode != "forward":
            raise
        raise _NoForwardMode(repr(first_line(error))) from error
    return out.gather(2, problem.target[:, None, None].expand(b, m, 1)) - out
