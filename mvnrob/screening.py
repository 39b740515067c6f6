"""Which classes matter: rows of the Jacobian for them only, and a bound on what the others hold.

With u_i = J_t - J_i and z_i = (f_t - f_i) / (sigma ||u_i||), dropping a set of classes changes
P(X <= z) by at most the sum of their Phi(-z_i): P_S - sum <= P <= P_S.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ._jac_cov import jac_cov_accumulate, jac_cov_norms
from .intervals import chi_square_quantile
from .jacobian import LogitMap
from .network import first_line
from .noise import Noise, standard_normal

SCREENS = ("exact", "sketch", "none")

#: Share of abs_tol that the dropped classes may hold: with norms known, and with norms bounded from
#: sketches (where a larger share saves rows; the CDF gets the rest).
EXACT_SHARE, SKETCH_SHARE = 0.1, 0.5

#: Rivals kept whatever their mass: they carry 1 - p where p is near 1, and cost next to nothing.
LEAST_KEPT = 8

#: Sketch sizes tried in turn, and rivals whose own gradients are taken out of the sketch first.
SKETCH_SIZES = (32, 64, 128, 256)
DEFLATED_ROWS = 8
#: Probability that any bound on a sketched norm fails, over all classes and looks of one input.
SKETCH_RISK = 1e-3
#: Directions in memory at a time, in float64; divides the steps of SKETCH_SIZES.
_DIRECTIONS_AT_ONCE = 16
#: What a forward-mode product costs in backward passes (EfficientNet-Lite0, CPU: 85 ms, 20 ms).
JVP_IN_VJPS = 4


@dataclass
class Screened:
    """The rivals that matter for a chunk of inputs, nearest margin first.

    ``classes`` [b, 1 + S] int64: the target, then the surviving rivals; places that an input does not
    need hold the target again (a zero row, z = +inf: no condition). ``rows`` [b, 1 + S, G, r]: their
    gradients by e, or None when they exceed the budget. ``norms`` [b, C]: ||u_i|| where known
    exactly, else NaN. ``dropped`` [n_sigma, b]: bound on the mass of the other classes.
    ``n_screened`` [b]: how many those are.
    """

    classes: Tensor
    rows: Tensor | None
    norms: Tensor
    dropped: Tensor
    n_screened: Tensor


def tail(margins: Tensor, norms: Tensor, sigma: float) -> Tensor:
    """Phi(-z): the probability that a rival alone overtakes the target in the linear model.

    A margin of zero counts as kept, like a norm or sigma of zero (P(0 <= 0) = 1).
    """
    return 0.5 * torch.special.erfc(standardised(margins, norms, sigma) / math.sqrt(2.0))


def standardised(margins: Tensor, norms: Tensor, sigma: float) -> Tensor:
    """z = margin / (sigma norm), +inf or -inf where the denominator is zero."""
    scale = sigma * norms
    step = torch.where(margins < 0, -math.inf, math.inf).to(margins)
    z = torch.where(scale == 0, step, margins / torch.where(scale == 0, 1.0, scale))
    # a rival at -inf never wins, whatever its gradient; NaN stays NaN
    return torch.where(margins == math.inf, margins, torch.where(margins.isnan(), margins, z))


def rival_order(margins: Tensor, target: Tensor) -> Tensor:
    """Rivals by increasing margin ``[b, C - 1]`` (the target left out)."""
    keyed = margins.scatter(1, target[:, None], math.inf)
    order = keyed.argsort(dim=1, stable=True)
    return order[order != target[:, None]].reshape(margins.shape[0], -1)


def keep_largest(mass: Tensor, allowed: float, least: int = 0) -> Tensor:
    """Marks the fewest entries of each row, but at least ``least``, such that the others sum to at
    most ``allowed``."""
    mass = mass.nan_to_num(nan=1.0)
    order = mass.argsort(dim=1, descending=True, stable=True)
    rest = mass.gather(1, order).flip(1).cumsum(1).flip(1)
    wanted = rest > allowed
    wanted[:, :least] = True
    return torch.zeros_like(wanted).scatter(1, order, wanted)


def mean_rows(rows: Tensor, weights: Tensor) -> Tensor:
    """``[b, k, G, r]`` and group weights ``[G]`` -> ``[b, k, r]``."""
    if rows.shape[2] == 1:
        return rows[:, :, 0]
    return torch.einsum("bkgr,g->bkr", rows, weights.to(rows))


def squarable(rows: Tensor) -> Tensor:
    """The rows, in float64 where float32 squares of some would over- or underflow."""
    if rows.dtype == torch.float64 or rows.numel() == 0:
        return rows
    size = rows.abs().amax(-1)
    small = torch.where(size > 0, size, 1.0).amin()
    fits = (small > 1e-15) & (size.amax() < 1e15)
    return rows if bool(fits) else rows.double()


def screen_none(
    logits: LogitMap, noise: Noise, target: Tensor, margins: Tensor, *, row_budget: int
) -> Screened:
    """Every class survives."""
    b, classes = margins.shape
    chosen = torch.cat([target[:, None], rival_order(margins, target)], 1)
    rows = noise.pull(logits.rows(chosen)) if classes <= row_budget else None
    nothing = margins.new_zeros(len(noise.sigmas), b)
    unknown = margins.new_full((b, classes), math.nan)
    return Screened(chosen, rows, unknown, nothing, torch.zeros_like(target))


def exact_norms(
    logits: LogitMap,
    noise: Noise,
    target: Tensor,
    order: Tensor,
    weights: Tensor,
    *,
    row_budget: int,
    hold: bool,
) -> tuple[Tensor, Tensor | None]:
    """One streaming pass: norms ``[L, b, C]`` of every u_i, and the rows of the nearest rivals.

    ``weights`` [L, G] average the groups, once per version. Holds at most ``row_budget`` rows (of all groups) at a time. With ``hold``, half of the budget
    keeps the rows of the target and the first rivals in ``order``, which are most likely to survive.
    """
    b, rivals = order.shape
    place = torch.zeros_like(target)
    norms = torch.zeros(len(weights), b, rivals + 1, dtype=torch.float64, device=order.device)
    fits = 1 + rivals <= row_budget
    held_count = (1 + rivals if fits else max(1, row_budget // 2)) if hold else 1
    first = rivals if fits else max(1, held_count - 1)
    step = max(1, row_budget - held_count)
    starts = [(0, first)] + [(a, min(a + step, rivals)) for a in range(first, rivals, step)]
    held: Tensor | None = None
    for start, stop in starts:
        wanted = order[:, start:stop]
        if held is None:
            rows = noise.pull(logits.rows(torch.cat([target[:, None], wanted], 1)))
            held = rows if held_count == rows.shape[1] else rows[:, :held_count].clone()
        else:
            rows = torch.cat([held[:, :1], noise.pull(logits.rows(wanted))], 1)
        for version, weight in enumerate(weights):
            squares = jac_cov_norms(squarable(mean_rows(rows, weight)), place)[:, 1:]
            norms[version].scatter_(1, order[:, start:stop], squares.sqrt())
    return norms, held if hold else None


def screen_exact(
    logits: LogitMap,
    noise: Noise,
    target: Tensor,
    margins: Tensor,
    weights: Tensor,
    *,
    allowed: float,
    row_budget: int,
) -> Screened:
    """Norms of all rivals, then rows of those that matter at the largest sigma."""
    order = rival_order(margins, target)
    norms, held = exact_norms(
        logits, noise, target, order, weights[None], row_budget=row_budget, hold=True
    )
    norms = norms[0]
    largest = max(noise.sigmas)
    ranked = tail(margins, norms, largest).gather(1, order)
    keep = keep_largest(ranked, allowed, LEAST_KEPT)
    dropped = _dropped_mass(margins, norms, order, keep, noise.sigmas)
    ranks, valid = _packed(keep)
    chosen = _classes(order, ranks, valid, target)
    rows = None
    if chosen.shape[1] <= row_budget:
        # position 0 of the held rows is the target's, which also fills unused places
        place = torch.where(valid, ranks + 1, 0)
        place = torch.cat([torch.zeros_like(target)[:, None], place], 1)
        if int(place.max()) < held.shape[1]:
            rows = held if _is_prefix(place, held) else _take(held, place)
        else:
            del held
            rows = noise.pull(logits.rows(chosen))
    return Screened(chosen, rows, norms, dropped, (~keep).sum(1))


def screen_sketch(
    logits: LogitMap,
    noise: Noise,
    target: Tensor,
    margins: Tensor,
    weights: Tensor,
    *,
    allowed: float,
    row_budget: int,
    keys: Tensor,
) -> Screened:
    r"""Bounds on the norms from a few forward-mode products; rows of the rivals that may matter.

    The rows of the target and of the nearest rivals (at most ``DEFLATED_ROWS`` in all) span a space
    Q. ``keys`` are the row's, for the random directions. Products along Q give the part of every u_i inside it exactly; K Gaussian directions
    orthogonal to Q give x_ik ~ N(0, ||u_i - Q Q^T u_i||^2), so that sum_k x_ik^2 over that squared
    norm is chi-square with K degrees of freedom and

        ||u_i||^2 <= |Q^T u_i|^2 + sum_k x_ik^2 / chi2_K(a)

    fails with probability a. Here a = SKETCH_RISK over all rivals and all sketch sizes that may be
    looked at, so all the bounds hold together with probability 99.9 %, and so does the bound on the
    dropped mass. K doubles while the rows that exact norms would save exceed the price of the next
    products. (Without Q the bounds are useless at moderate K: one direction, the target's own
    gradient, holds most of every u_i.)
    """
    b, classes = margins.shape
    rivals = classes - 1
    order = rival_order(margins, target)
    near = min(DEFLATED_ROWS, classes, noise.dim, max(1, row_budget // 2))
    nearest = torch.cat([target[:, None], order[:, : near - 1]], 1)
    near_rows = noise.pull(logits.rows(nearest))
    basis = torch.linalg.qr(mean_rows(near_rows, weights).double().mT).Q.mT  # [b, near, r]
    inside = _margin_products(logits, noise, basis, target).square().sum(1)  # [b, C]

    outside = torch.zeros_like(inside)
    largest, drawn = max(noise.sigmas), 0
    risk = SKETCH_RISK / (len(SKETCH_SIZES) * max(1, rivals))
    forced = torch.zeros(b, rivals, dtype=torch.bool, device=target.device)
    forced[:, : near - 1] = True
    for size in SKETCH_SIZES:
        for first in range(drawn, size, _DIRECTIONS_AT_ONCE):
            directions = standard_normal(keys, first, _DIRECTIONS_AT_ONCE, noise.dim, torch.float64)
            directions -= (directions @ basis.mT) @ basis
            outside += _margin_products(logits, noise, directions, target).square().sum(1)
        drawn = size
        most = (inside + outside / chi_square_quantile(risk, size)).sqrt()
        likely = (inside + outside / size).sqrt()
        kept = [
            keep_largest(
                tail(margins, norm, largest).gather(1, order).masked_fill(forced, 0.0), allowed
            )
            for norm in (most, likely)
        ]
        saving = (kept[0].sum(1) - kept[1].sum(1)).clamp_min(0).max()
        if int(saving) <= JVP_IN_VJPS * size:
            break
    keep = kept[0] | forced
    dropped = _dropped_mass(margins, most, order, keep, noise.sigmas)
    ranks, valid = _packed(keep)
    chosen = _classes(order, ranks, valid, target)
    rows = None
    if chosen.shape[1] <= row_budget:
        rows = near_rows
        if chosen.shape[1] > near:
            rows = torch.cat([near_rows, noise.pull(logits.rows(chosen[:, near:]))], 1)
    unknown = margins.new_full((b, classes), math.nan)
    return Screened(chosen, rows, unknown, dropped, (~keep).sum(1))


def _dropped_mass(margins: Tensor, norms: Tensor, order: Tensor, keep: Tensor, sigmas) -> Tensor:
    """Sum of Phi(-z) over the rivals that are not kept: ``[n_sigma, b]``."""
    masses = [tail(margins, norms, sigma).gather(1, order) for sigma in sigmas]
    return torch.stack([mass.masked_fill(keep, 0.0).sum(1) for mass in masses])


def _margin_products(logits: LogitMap, noise: Noise, e: Tensor, target: Tensor) -> Tensor:
    """u_i . e for directions e ``[b, m, r]``: ``[b, m, C]``, float64."""
    b, m, _ = e.shape
    along = noise.push(e.flatten(0, 1).to(logits.x)).reshape(b, m, -1)
    try:
        out = logits.jvp(along)
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or logits.jvp_mode != "forward":
            raise
        raise ValueError(
            f"{logits.network.op}: model must have forward-mode derivatives for screen='sketch', "
            f"got {first_line(error)!r}; pass jvp_mode='double_backward' or screen='exact'"
        ) from error
    return out.gather(2, target[:, None, None].expand(b, m, 1)) - out


def _packed(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks of the kept rivals in order, padded to the longest row: ``[b, S]``, and which count."""
    counts = keep.sum(1)
    longest = int(counts.max()) if keep.numel() else 0
    ranks = keep.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :longest]
    valid = torch.arange(longest, device=keep.device) < counts[:, None]
    return ranks, valid


def _classes(order: Tensor, ranks: Tensor, valid: Tensor, target: Tensor) -> Tensor:
    chosen = torch.where(valid, order.gather(1, ranks), target[:, None])
    return torch.cat([target[:, None], chosen], 1)


def _is_prefix(place: Tensor, held: Tensor) -> bool:
    whole = torch.arange(held.shape[1], device=place.device)
    return place.shape[1] == held.shape[1] and bool((place == whole).all())


def _take(held: Tensor, place: Tensor) -> Tensor:
    batch = torch.arange(held.shape[0], device=held.device)[:, None]
    return held[batch, place]


def scatter_sums(
    logits: LogitMap,
    noise: Noise,
    screened: Screened,
    weights: Tensor,
    *,
    row_budget: int,
) -> Tensor:
    """sum_d u_d u_d^T over the survivors, once per weighting of the groups.

    ``weights`` [L, G]: the mean over all samples, and the jackknife's means that leave a group out.
    Returns ``[L, b, 1 + S, 1 + S]`` float64 for ``jac_cov_finalize`` with target 0. Rows beyond the
    budget are computed again for each range of columns that fits (at one backward pass per survivor
    and range).
    """
    b, count = screened.classes.shape
    out = torch.zeros(
        len(weights), b, count, count, dtype=torch.float64, device=screened.classes.device
    )
    place = torch.zeros(b, dtype=torch.int64, device=screened.classes.device)
    if screened.rows is not None:
        pieces = [screened.rows]
    else:
        pieces = _column_ranges(logits, noise, screened.classes, row_budget)
    for rows in pieces:
        for version, weight in enumerate(weights):
            jac_cov_accumulate(out[version], squarable(mean_rows(rows, weight)), place)
    return out


def _column_ranges(logits: LogitMap, noise: Noise, classes: Tensor, row_budget: int):
    """The survivors' rows by ranges of columns: class by class, only the range is kept."""
    ranges = math.ceil(classes.shape[1] / row_budget)
    # a multiple of 1024 columns keeps jac_cov's sums those of a single call
    width = max(1024, math.ceil(noise.dim / ranges / 1024) * 1024)
    for start in range(0, noise.dim, width):
        parts = []
        for first in range(0, classes.shape[1], row_budget):
            rows = noise.pull(logits.rows(classes[:, first : first + row_budget]))
            parts.append(rows[..., start : start + width].clone())
        yield torch.cat(parts, 1)
