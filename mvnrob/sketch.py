"""Screening by sketches: bounds on all rows' norms from a few forward-mode products."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ._standard_normal import standard_normal
from .intervals import chi_square_quantile
from .linearised import Linearised, mean_rows, scatter_sums
from .long_rows import inner, leading
from .network import first_line
from .screening import (
    SKETCH_SHARE,
    Screened,
    alike,
    dropped_mass,
    keep_largest,
    packed,
    rival_order,
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
#: Directions are drawn by so many, which divides the steps of SKETCH_SIZES.
DRAWN_AT_ONCE = 8
#: Bytes for each number of a direction, drawn and made orthogonal: what float64 inputs take, and room.
_DRAWN_BYTES = 32
#: What a forward-mode product costs in backward passes. EfficientNet-Lite0 on a CPU: 33 ms each of eight
#: together, 50 ms one alone, beside 21 ms for a backward pass; residual networks less
#: (mvnrob/forward_mode.py; by torch's own rules it was 40 to 80 ms).
JVP_IN_VJPS = 1.5


def screen_sketch(problem: Linearised, *, allowed: float) -> Iterator[Screened]:
    """Bounds from a sketch and rows of those that may matter, whatever that costs."""
    try:
        with problem.logits.meter.clock("sketch"):
            parts, _, _ = sketch(problem, allowed, lambda drawn: math.inf)
    except NoForwardMode as error:
        raise ValueError(
            f"{problem.logits.network.op}: model must have forward-mode derivatives for "
            f"screen='sketch', got {error}; pass jvp_mode='double_backward' or screen='exact'"
        ) from error
    return parts


class NoForwardMode(Exception):
    pass


@dataclass
class Begun:
    """What a sketch knows of the inputs that it leaves.

    ``order`` [b, C - 1]: the rivals by margin; ``near_rows`` [b, near, G, r]: the rows of the target and
    the nearest of them. ``basis`` [b, d, r]: orthonormal directions in the span of their mean u_i;
    ``products`` [b, K, G, C]: along the first K draws, orthogonal to them; ``inside`` [b, d, G, C]: along
    the basis, or nothing [b, 0, G, C] where K is zero.
    """

    order: Tensor
    near_rows: Tensor
    basis: Tensor
    inside: Tensor
    products: Tensor

    def subset(self, rows: Tensor) -> Begun:
        return Begun(*(getattr(self, field.name)[rows] for field in fields(self)))


def sketch(
    problem: Linearised,
    allowed: float,
    otherwise: Callable[[int], float],
    *,
    hand_over: bool = False,
) -> tuple[Iterator[Screened], Tensor, list[tuple[Tensor, Begun]]]:
    r"""Survivors by bounds on the norms; the numbers of inputs that another way serves better, which
    takes ``otherwise`` (of the directions drawn so far) passes; with ``hand_over`` these in parts of
    equally many draws, beside what is known of them.

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
    target, margins = problem.target, problem.margins
    b, classes = margins.shape
    order = rival_order(margins, target)
    near = min(NEAR_ROWS, classes, max(2, problem.row_budget // 2))
    near_rows = problem.rows(torch.cat([target[:, None], order[:, : near - 1]], 1))
    mean = mean_rows(near_rows, problem.weights[0]).double()
    differences = mean[:, :1] - mean[:, 1:]
    basis, _ = leading(differences, DEFLATED)
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
    active = survivors(everyone, guess).sum(1) + first_price <= otherwise(0)
    left = ~active & ~broken
    active &= ~broken

    keep = forced.clone()
    most = torch.full_like(margins, math.nan)
    groups, mean_weight = problem.values.shape[1], problem.weights[0]
    inside = margins.new_zeros(b, basis.shape[1], groups, classes)
    # what has been drawn: its sum of squares for all, the products themselves of those that may leave
    outside, products = torch.zeros_like(margins), margins.new_zeros(b, 0, groups, classes)
    counts = torch.zeros_like(target)
    drawn = 0
    for look, size in enumerate(SKETCH_SIZES):
        rows = active.nonzero()[:, 0]
        if not len(rows):
            break
        part = problem.subset(rows)
        at_once = directions_at_once(part)
        for first in range(drawn, size, at_once):
            count = min(at_once, size - first)
            directions = orthogonal_draws(part, basis[rows], first, count)
            if first == 0:  # along the basis in the same pass
                directions = torch.cat([basis[rows].to(directions), directions], 1)
            along = margin_products(part, directions)
            if first == 0:
                inside[rows], along = along.split([basis.shape[1], count], 1)
            outside[rows] += mean_rows(along, mean_weight).square().sum(1)
            if hand_over:
                room = products.new_zeros(b, count, groups, classes)
                products = torch.cat([products, room], 1)
                products[rows, first:] = along
        drawn = size
        counts[rows] = size
        stretch = torch.zeros_like(margins[rows])
        stretch.scatter_(
            1, order[rows], stretches(classes - 1, size, order.device).expand(len(rows), -1)
        )
        known = mean_rows(inside[rows], mean_weight).square().sum(1)
        most[rows] = (known + outside[rows] * stretch).sqrt()
        kept = survivors(rows, most[rows])
        keep[rows] = kept | forced[rows]
        likely = survivors(rows, (known + outside[rows] / size).sqrt()).sum(1)
        last = look + 1 == len(SKETCH_SIZES)
        price = math.inf if last else JVP_IN_VJPS * (SKETCH_SIZES[look + 1] - size)
        lost = torch.minimum(kept.sum(1).double(), likely + price) > otherwise(size)
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

    begun = []
    for size in counts[left].unique().tolist() if hand_over else ():
        rows = (left & (counts == size)).nonzero()[:, 0]
        # those left at the guess have no products yet
        known = (order, near_rows, basis, inside if size else inside[:, :0], products[:, :size])
        begun.append((rows, Begun(*(part[rows] for part in known))))
    return map(covariances, alike(problem, keep.sum(1), ~left)), left.nonzero()[:, 0], begun


def directions_at_once(problem: Linearised) -> int:
    """Directions of every input that an eighth of the byte budget holds while they are drawn: where few
    inputs are left, more directions fill a pass (:meth:`LogitMap.group_jvp` splits what is too large)."""
    fits = problem.inputs_at_once(4 * _DRAWN_BYTES * problem.noise.dim) // len(problem.target)
    return max(DRAWN_AT_ONCE, fits // DRAWN_AT_ONCE * DRAWN_AT_ONCE)


def orthogonal_draws(problem: Linearised, basis: Tensor, first: int, count: int) -> Tensor:
    """Gaussian directions ``first ...`` of each input, less their part inside ``basis`` [b, d, r], in
    the precision of the inputs, whose products along them have no more."""
    basis = basis.to(problem.logits.x)
    draws = standard_normal(problem.keys, first, count, problem.noise.dim, basis.dtype)
    return torch.baddbmm(draws, inner(draws, basis), basis, alpha=-1.0)


def _risks(rivals: int) -> list[tuple[int, float]]:
    """(how many, each one's share of the risk) by rank of the margin: 1, 2, 4, 8, ... rivals, and
    each of these groups has the same part."""
    groups = [min(2**j, rivals - 2**j + 1) for j in range(rivals.bit_length())]
    return [(count, 1.0 / (len(groups) * 2**j)) for j, count in enumerate(groups)]


@functools.lru_cache(maxsize=64)
def stretches(rivals: int, size: int, device: torch.device) -> Tensor:
    """1 / chi2_size(a_i) for rivals by rank: ``[rivals]`` float64."""
    risk = SKETCH_RISK / len(SKETCH_SIZES)
    each = [
        torch.full((count,), 1.0 / chi_square_quantile(risk * share, size), dtype=torch.float64)
        for count, share in _risks(rivals)
    ]
    return torch.cat(each).to(device)


def margin_products(problem: Linearised, e: Tensor) -> Tensor:
    """u_i . e for directions e ``[b, m, r]``, of each group: ``[b, m, G, C]``, float64."""
    b, m, _ = e.shape
    logits = problem.logits
    along = problem.noise.push(e.flatten(0, 1).to(logits.x)).reshape(b, m, -1)
    try:
        out = logits.group_jvp(along)
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or logits.jvp_mode != "forward":
            raise
        raise NoForwardMode(repr(first_line(error))) from error
    own = problem.target[:, None, None, None].expand(b, m, out.shape[2], 1)
    return out.gather(3, own) - out
