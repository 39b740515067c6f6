"""Which classes matter: rows of the Jacobian for them only, and a bound on what the others hold.

With u_i = J_t - J_i and z_i = (f_t - f_i) / (sigma ||u_i||), dropping a set of classes changes
P(X <= z) by at most the sum of their Phi(-z_i): P_S - sum <= P <= P_S.

Four ways to the rows that matter: all rows (C backward passes); all rows of the last linear layer's
features (:mod:`mvnrob.factorised`); a few rows, and bounds on the other norms from forward-mode
products (:mod:`mvnrob.sketch`); some dozens of rows, and a sample of what they leave of the others
(:mod:`mvnrob.low_rank`). ``"auto"`` takes the one that it expects to cost least (:mod:`mvnrob.auto`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .factorised import Factorised, Features, factorised, gram_bytes
from .head import HeadMismatch, give_up
from .linearised import LEAST_BYTES, Linearised, exact_norms, scatter_sums

SCREENS = ("auto", "exact", "sketch", "none")

#: Share of abs_tol that the dropped classes may hold: with norms known, and with norms bounded from
#: sketches (where a larger share saves rows; the CDF gets the rest).
EXACT_SHARE, SKETCH_SHARE = 0.1, 0.5

#: Rivals kept whatever their mass: they carry 1 - p where p is near 1, and cost next to nothing.
LEAST_KEPT = 8

#: So many classes or fewer: all rows, without a look at the last layer or a sketch.
FEW_CLASSES = 30


@dataclass
class Screened:
    """The rivals that matter for some inputs of a chunk, nearest margin first.

    ``inputs`` int64 [b]: their numbers in the chunk. ``classes`` [b, 1 + S] int64: the target, then
    the surviving rivals; places that an input does not need hold the target again (a zero row,
    z = +inf: no condition). ``scatter`` [L, b, 1 + S, 1 + S] float64: sum_d u_d u_d^T over them,
    once per weighting of the groups; or, where fewer features than classes give it, ``factor``
    [L, b, 1 + S, k] with scatter = factor factor^T, which is never multiplied out. ``dropped``
    [n_sigma, b]: bound on the mass of the other classes. ``n_screened`` [b]: how many those are.
    ``share``: of abs_tol, spent on them. ``sampled`` [n_sigma, b]: 99 % bound on what the sampling of
    the factor's last columns does to p (:mod:`mvnrob.low_rank`), beside the integral's own error.
    """

    inputs: Tensor
    classes: Tensor
    scatter: Tensor | None
    dropped: Tensor
    n_screened: Tensor
    share: float
    factor: Tensor | None = None
    sampled: Tensor | None = None

    def sums(self, version: int) -> Tensor:
        """The scatter of a version, multiplied out if need be."""
        if self.scatter is not None:
            return self.scatter[version]
        return self.factor[version] @ self.factor[version].mT


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


def dropped_mass(margins: Tensor, norms: Tensor, order: Tensor, keep: Tensor, sigmas) -> Tensor:
    """Sum of Phi(-z) over the rivals that are not kept: ``[n_sigma, b]``."""
    masses = [tail(margins, norms, sigma).gather(1, order) for sigma in sigmas]
    return torch.stack([mass.masked_fill(keep, 0.0).sum(1) for mass in masses])


def packed(order: Tensor, keep: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The target and the kept rivals ``[b, 1 + S]``, padded by the target; their ranks + 1, 0 there."""
    counts = keep.sum(1)
    longest = int(counts.max()) if keep.numel() else 0
    ranks = keep.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :longest]
    valid = torch.arange(longest, device=keep.device) < counts[:, None]
    chosen = torch.where(valid, order.gather(1, ranks), target[:, None])
    place = torch.where(valid, ranks + 1, 0)
    first = torch.zeros_like(target)[:, None]
    return torch.cat([target[:, None], chosen], 1), torch.cat([first, place], 1)


def find_features(problem: Linearised) -> Features | None:
    """The last layer's features, where the network has such a layer and many classes.

    Which features move takes a forward-mode product: with few classes all rows cost no more. Rescaled
    derivatives are taken whole: their sizes may lie in W or in H.
    """
    head = problem.logits.network.head
    if head is None or problem.values.shape[2] <= FEW_CLASSES or problem.logits.scale is not None:
        return None
    try:
        return Features(problem, head)
    except HeadMismatch as error:
        mismatch(problem, error)
        return None


def cheaper(problem: Linearised, features: Features | None) -> bool:
    """Whether the features' rows take fewer backward passes than the logits', and their products fit."""
    if features is None:
        return False
    # one input's budget: inputs pass in pieces that fit
    passes = features.passes(problem.rows_at_once)
    allowed = max(problem.max_bytes // 2, LEAST_BYTES)
    fits = gram_bytes(problem, features.live.shape[1]) <= allowed
    return fits and passes < problem.values.shape[2]


def mismatch(problem: Linearised, error: HeadMismatch) -> None:
    give_up(problem.logits.network, error)
    problem.logits.forget_probe()


def screen_exact(
    problem: Linearised,
    *,
    allowed: float,
    share: float,
    all_classes: bool = False,
    features: Features | None = None,
) -> Iterator[Screened]:
    """Norms of all rivals, then covariances of those that matter at the largest sigma.

    ``all_classes``: every class survives. Through the last layer's ``features`` (found here unless
    given) where that is cheaper.
    """
    left = torch.arange(len(problem.target), device=problem.target.device)
    features = features or find_features(problem)
    if cheaper(problem, features):
        try:
            for rows, factor in factorised(problem, features):
                yield _survivors_of_factor(rows, factor, allowed, share, all_classes)
                del factor  # before the next one comes
                left = left[len(rows) :]
        except HeadMismatch as error:
            mismatch(problem, error)
    if len(left):
        yield from _screen_rows(problem, left, allowed, share, all_classes)


def all_norms(problem: Linearised, order: Tensor) -> Tensor:
    """||u_i|| of all classes, once per weighting of the groups: ``[L, b, C]``."""
    features = find_features(problem)
    if cheaper(problem, features):
        try:
            parts = (part.norms() for _, part in factorised(problem, features))
            return torch.cat(list(parts), 1)
        except HeadMismatch as error:
            mismatch(problem, error)
    return exact_norms(problem, order, hold=False)[0]


def _kept(
    problem: Linearised, norms: Tensor | None, order: Tensor, allowed: float, all_classes: bool
) -> Tensor:
    if all_classes:
        return torch.ones_like(order, dtype=torch.bool)
    ranked = tail(problem.margins, norms, max(problem.noise.sigmas)).gather(1, order)
    return keep_largest(ranked, allowed, LEAST_KEPT)


def _survivors_of_factor(
    rows: Tensor, factor: Factorised, allowed: float, share: float, all_classes: bool
) -> Screened:
    part = factor.problem
    order = rival_order(part.margins, part.target)
    norms = factor.norms()[0]
    keep = _kept(part, norms, order, allowed, all_classes)
    chosen, _ = packed(order, keep, part.target)
    dropped = dropped_mass(part.margins, norms, order, keep, part.noise.sigmas)
    scatter = rows_of_factor = None
    if chosen.shape[1] > factor.features:
        rows_of_factor = factor.rows(chosen)
    else:
        part.check_pairs(chosen.shape[1])
        scatter = factor.scatter(chosen)
    return Screened(rows, chosen, scatter, dropped, (~keep).sum(1), share, rows_of_factor)


def _screen_rows(
    problem: Linearised, left: Tensor, allowed: float, share: float, all_classes: bool
) -> Iterator[Screened]:
    """By rows of all classes, for the inputs ``left``."""
    problem = problem.subset(left)
    order = rival_order(problem.margins, problem.target)
    norms = held = None
    if not all_classes:
        norms, held = exact_norms(problem, order, hold=True)
        norms = norms[0]
    keep = _kept(problem, norms, order, allowed, all_classes)
    for rows in alike(problem, keep.sum(1), torch.ones_like(left, dtype=torch.bool)):
        part = survivors(problem, rows, order, norms, keep, held, share)
        part.inputs = left[rows]
        yield part
        del part  # before the next one comes


def survivors(
    problem: Linearised,
    inputs: Tensor,
    order: Tensor,
    norms: Tensor | None,
    keep: Tensor,
    held: Tensor | None,
    share: float,
) -> Screened:
    """The covariances of the kept rivals of some ``inputs``; ``held``: first rows of all inputs."""
    part, order, keep = problem.subset(inputs), order[inputs], keep[inputs]
    chosen, place = packed(order, keep, part.target)
    part.check_pairs(chosen.shape[1])
    rows = None
    if chosen.shape[1] <= part.row_budget:
        # position 0 of the held rows is the target's, which also fills unused places
        if held is None or int(place.max()) >= held.shape[1]:
            rows = part.rows(chosen)
        elif len(inputs) == len(held) and _is_prefix(place, held):
            rows = held
        else:
            rows = held[inputs[:, None], place]
    scatter = scatter_sums(part, chosen, rows)
    dropped = part.values.new_zeros(len(part.noise.sigmas), len(inputs))
    if norms is not None:
        dropped = dropped_mass(part.margins, norms[inputs], order, keep, part.noise.sigmas)
    return Screened(inputs, chosen, scatter, dropped, (~keep).sum(1), share)


def alike(problem: Linearised, counts: Tensor, wanted: Tensor) -> list[Tensor]:
    """The wanted inputs in groups whose ``counts`` of rivals differ by less than a factor of two, so
    that padding costs no more than the rows do, and whose rows and covariances fit in the budget."""
    groups: dict[int, list[int]] = {}
    for number, count in enumerate(counts.tolist()):
        if wanted[number]:
            groups.setdefault(count.bit_length(), []).append(number)
    out = []
    for _, numbers in sorted(groups.items()):
        rows = torch.tensor(numbers, dtype=torch.int64, device=counts.device)
        most = 1 + max(counts[rows].tolist())
        pairs = problem.inputs_at_once(problem.pair_bytes * most**2)
        out += rows.split(max(1, min(problem.rows_at_once // most, pairs)))
    return out


def _is_prefix(place: Tensor, held: Tensor) -> bool:
    whole = torch.arange(held.shape[1], device=place.device)
    return place.shape[1] == held.shape[1] and bool((place == whole).all())
