"""Screening by low rank: rows of rivals that matter, and a sample of what these leave of the others'.

Jacobians of networks have few large singular values: what the rows of some dozens of rivals do not
span is a few per cent of the other rivals' rows. Where several hundred rivals matter, their
covariances need not be known row by row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ._standard_normal import standard_normal
from .influence import DrawnColumns, near_columns
from .intervals import chi_square_quantile, student_t_quantile
from .linearised import LEAST_BYTES, Linearised, mean_rows
from .long_rows import inner, leading
from .next_rows import gains
from .noise import INFLUENCES, row_keys
from .screening import (
    EXACT_SHARE,
    LEAST_KEPT,
    SKETCH_SHARE,
    Screened,
    alike,
    dropped_mass,
    keep_largest,
    packed,
    standardised,
    survivors,
    tail,
)
from .sketch import (
    DEFLATED,
    DRAWN_AT_ONCE,
    JVP_IN_VJPS,
    NEAR_ROWS,
    SKETCH_SIZES,
    Begun,
    directions_at_once,
    margin_products,
    orthogonal_draws,
    stretches,
)

#: (rivals whose rows are computed, directions that sample the rest): each step adds to the last. Steps are
#: small: a look mostly costs less than the rows and products of a step too far.
LEVELS = (
    (7, 8),
    (7, 16),
    (16, 16),
    (16, 24),
    (24, 24),
    (32, 24),
    (32, 40),
    (48, 40),
    (48, 56),
    (64, 56),
    (80, 56),
    (96, 56),
    (112, 56),
    (128, 56),
    (128, 88),
    (160, 88),
    (192, 88),
    (256, 88),
)
#: Where rivals are chosen beyond the nearest by margin, the first draws rank them and nothing else: of
#: those that are not chosen, a sample that had chosen would know too small a rest (p off by .02 where
#: all rivals are alike).
RANKING = SKETCH_SIZES[0]
#: 99 % bound on what the sampled directions do to p, in abs_tol.
SAMPLED = 0.7
#: What it takes to find that bound, in backward passes: 1 to 5 of EfficientNet-Lite0's on a CPU where p is
#: above .9.
LOOK = 3
#: Share of abs_tol that the integral does not get. Its error and the sample's are independent, and
#: their squares add: .1 + sqrt(.7^2 + .55^2) = .99 with the dropped classes.
LOW_RANK_SHARE = 0.45
#: Smallest abs_tol: what estimates the sample's error takes 1 / abs_tol^2 draws.
LEAST_TOL = 5e-4
#: Draws at an abs_tol of 1e-3. Their own noise is part of the error that they estimate.
_DRAWS = 2**14
_FEWEST_DRAWS = 2**12
#: Bytes of a pass's graph that take as long as a draw for one rival and sigma, all levels together (on a
#: CPU thread; EfficientNet-Lite0's passes are far larger, those of a small perceptron smaller).
PASS_BYTES = 100
#: Rows whose leading directions are found at a time.
_TOGETHER = 32
#: By how much the error is expected to fall from k to K rivals: (K / k)^_RATE, from _MANY rivals on
#: (K / k)^_RATE_OF_MANY. EfficientNet-Lite0 where p = .3 to .6, and ResNet-50's shape where p = .9, of 96 x 96
#: pixels: .6 to 1.3 from 16 to 64 rivals, 1.5 to 3 from there on. With the number of directions by what
#: :func:`_uncertainty` says. What is expected decides whether to go on; the next step is as long as _HOPED
#: says, since a level that falls short costs no more than its look: rows and products stay.
_RATE, _MANY, _RATE_OF_MANY, _HOPED = 1.3, 64, 1.5, 2.2
#: From how few rivals that is believed, and how much of the direct way's price is spent on the belief in
#: all: steps that were expected to do cannot add up to more.
_FARTHEST, _SPENT = 4, 1.2
#: The first level whose forecast is believed if it says that the direct way is cheaper: fewer rivals and
#: directions know too little. It is tried in any case, since all rows take _WORTH times as many passes or
#: more.
_TRUSTED, _WORTH = (16, 24), 2
#: In place of a level: nothing more, or rows of all rivals that may matter.
_ENDED, _BY_ROWS = -1, -2
_LEVEL = 0.99
#: Its normal quantile, of one side.
_NORMAL = 2.3263478740408408
#: Share of abs_tol that the rivals hold which the draws leave out; it is added to the bound. And the
#: probability with which one of them is longer than it is taken for there.
_NEGLECTED, _LEFT_RISK = 0.01, 1e-3
#: Standard errors of the second order's estimate that are added to it.
_CURVATURE_ERRORS = 2.0
#: Share of the draws that is taken at first. Where the bound to first order is then so many times what is
#: allowed, as at most looks, the others would only say so again.
_GLANCE, _FAR = 0.25, 1.5
#: Rivals that are stretched alone, and the share of the draws that says how many count then.
_ALONE, _LONGER_SHARE = 3, 0.5


def serves(problem: Linearised, abs_tol: float, direct: float) -> bool:
    """Margins to one target (``argmax_probabilities`` takes differences of covariances), cheap products,
    room for those of one input, and a direct way that costs twice what is tried in any case, or more, and
    more than the influences take."""
    cheap = problem.logits.jvp_mode == "forward" and problem.logits.scale is None
    if problem.double or not cheap or abs_tol < LEAST_TOL or not _levels(problem, abs_tol):
        return False
    draws = _count_draws(abs_tol) * problem.values.shape[2] * len(problem.noise.sigmas)
    passes = direct * problem.logits.samples * problem.logits.network.graph
    return _WORTH * price(_TRUSTED) <= direct and draws * PASS_BYTES <= passes


def price(level: tuple[int, int]) -> float:
    """Backward passes that a level takes in all."""
    rivals = level[0]
    return 1 + rivals + JVP_IN_VJPS * (rivals + _drawn(level, NEAR_ROWS - 1))


def first_price(drawn: int) -> float:
    """What the first level takes beyond a sketch's rows and ``drawn`` directions."""
    rivals = LEVELS[0][0]
    more = max(0, _drawn(LEVELS[0], NEAR_ROWS - 1) - drawn)
    return max(0, 1 + rivals - NEAR_ROWS) + JVP_IN_VJPS * (rivals - DEFLATED + more) + LOOK


def _drawn(level: tuple[int, int], near: int) -> int:
    """Directions that a level takes, where so many rivals are the nearest ones."""
    rivals, directions = level
    return directions + (RANKING if rivals > near else 0)


def _levels(problem: Linearised, abs_tol: float) -> tuple[tuple[int, int], ...]:
    """Those whose rows, basis, products and draws fit in the budget for one input, of fewer rows than
    rivals."""
    most = min(problem.rows_at_once // 4, problem.values.shape[2] - 2)
    budget = max(problem.max_bytes, LEAST_BYTES)
    return tuple(
        level
        for level in LEVELS
        if level[0] <= most
        and 2 * _bytes(problem, level) <= budget
        and 4 * 4 * _count_draws(abs_tol) * sum(level) <= budget
    )


def _bytes(problem: Linearised, level: tuple[int, int]) -> int:
    """What the products of one input take, and their copies: by groups, and by versions as a factor."""
    _, groups, classes = problem.values.shape
    return 8 * classes * (3 * groups + 2 * len(problem.weights)) * (sum(level) + RANKING)


def screen_low_rank(
    problem: Linearised, begun: list[tuple[Tensor, Begun]], direct: float, abs_tol: float
) -> Iterator[tuple[Screened | None, Tensor]]:
    r"""The inputs in pieces: (what was found for some, numbers of those that ``direct`` serves better).

    With Q an orthonormal basis of the u_i of k rivals (:mod:`mvnrob.next_rows` chooses them), products along
    Q give A = U Q for all rivals, and m Gaussian directions the products X sqrt(m) of U (I - Q Q^T). X X^T
    estimates the Gram matrix of the rest without bias (its rows are zero for the k rivals themselves), and p
    is taken from the factor [A, X]. To first order that moves p by a mean of m independent terms, the influences
    of the columns (:class:`mvnrob.influence.DrawnColumns`): Student's t with m - 1 degrees of freedom
    on their spread is the 99 % bound ``sampled``, or where that is more, what p loses with the rest
    stretched to a 99 % bound on its length (:func:`_lost`): Student's t misses one input in twenty where
    a single rival holds the rest. Beside it stands what the draws' halves show of the second order. k and m
    grow (``LEVELS``) until all that is at most ``SAMPLED * abs_tol`` at every sigma, or the way to it is
    expected to cost more than the rows of all rivals that the bounds on the norms leave, or than ``direct``
    backward passes.
    """
    levels = _levels(problem, abs_tol)
    # a sketch may have drawn more than any level does
    drawn = max(start.products.shape[1] for _, start in begun)
    draws = _draws(problem, abs_tol, levels[-1][0] + max(levels[-1][1], drawn - RANKING))
    waiting = _Waiting(problem, levels)
    for numbers, start in begun:
        waiting.add(0, _State(problem.subset(numbers), numbers, start))
    del begun, start
    while (found := waiting.take()) is not None:
        yield from _refine(problem, *found, levels, draws, direct, abs_tol, waiting)
        del found  # before the next one comes


def _count_draws(abs_tol: float) -> int:
    return max(_FEWEST_DRAWS, round(_DRAWS * (1e-3 / abs_tol) ** 2))


def _draws(problem: Linearised, abs_tol: float, dim: int) -> Tensor:
    count = _count_draws(abs_tol)
    key = row_keys(0, INFLUENCES, torch.zeros(1, dtype=torch.int64, device=problem.target.device))
    return standard_normal(key, 0, count, dim, torch.float32)[0]


class _State:
    """A, X and what they come from, for some inputs of equal progress: ``numbers`` [b], in the whole
    problem."""

    def __init__(self, problem: Linearised, numbers: Tensor, begun: Begun) -> None:
        b, classes = problem.margins.shape
        self.numbers, self.order = numbers, begun.order
        self.first_basis, self.products = begun.basis, begun.products
        near_rows = mean_rows(begun.near_rows, problem.weights[0])
        self.own = near_rows[:, 0]
        self.taken = torch.zeros(b, classes, dtype=torch.bool, device=problem.target.device)
        self.taken.scatter_(1, problem.target[:, None], True)
        near = near_rows.shape[1] - 1
        self.taken.scatter_(1, begun.order[:, :near], True)
        self.fresh = self.own[:, None] - near_rows[:, 1:]
        self.near = self.rivals = near
        self.basis = begun.basis.to(self.own)
        self.inside = begun.inside
        #: the draws' coordinates [b, K, k] in the basis beyond the first one, to which they are orthogonal
        self.along = begun.inside.new_zeros(b, begun.products.shape[1], 0)
        self.ranking: Tensor | None = None
        self.rest: Tensor | None = None

    def subset(self, rows: Tensor) -> _State:
        part = object.__new__(_State)
        for name, value in vars(self).items():
            setattr(part, name, value[rows] if isinstance(value, Tensor) else value)
        return part

    def is_like(self, other: _State) -> bool:
        """Whether the two differ in their inputs alone."""
        size = lambda value: value.shape[1:] if isinstance(value, Tensor) else value
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(size(a) == size(b) for a, b in pairs)

    @staticmethod
    def joined(parts: list[_State]) -> _State:
        if len(parts) == 1:
            return parts[0]
        whole = object.__new__(_State)
        for name, value in vars(parts[0]).items():
            if isinstance(value, Tensor):
                value = torch.cat([getattr(part, name) for part in parts])
            setattr(whole, name, value)
        return whole

    def grow(
        self, problem: Linearised, level: tuple[int, int], draws: Tensor, abs_tol: float
    ) -> None:
        rivals, directions = level
        if rivals > self.rivals:
            self._choose(problem, rivals, draws, abs_tol)
        self._extend()
        self._find_coordinates(problem)
        self._multiply(problem, _drawn((self.rivals, directions), self.near))
        self._find_rest(problem)

    def _choose(self, problem: Linearised, rivals: int, draws: Tensor, abs_tol: float) -> None:
        """More rivals' rows, by what there is to gain, so that there are ``rivals`` of them."""
        self._multiply(problem, RANKING)
        ranking = self.products[:, :RANKING] if self.ranking is None else self.ranking
        inside, ranking = (mean_rows(part, problem.weights[0]) for part in (self.inside, ranking))
        gain = gains(
            problem.margins, inside, ranking, self.taken, max(problem.noise.sigmas), draws,
            _NEGLECTED * abs_tol, problem.max_bytes // 8,
        )  # fmt: skip
        new = gain.topk(rivals - self.rivals, dim=1).indices
        self.taken.scatter_(1, new, True)
        differences = self.own[:, None] - mean_rows(problem.rows(new), problem.weights[0])
        self.fresh = torch.cat([self.fresh, differences], 1)
        self.rivals = rivals

    def _omega(self, problem: Linearised, first: int, count: int) -> Tensor:
        return orthogonal_draws(problem, self.first_basis, first, count)

    def _multiply(self, problem: Linearised, directions: int) -> None:
        """Products along what is new in the basis and along draws up to ``directions``: both in one pass,
        as far as memory allows."""
        at_once = directions_at_once(problem)
        new = self.basis[:, self.inside.shape[1] :].to(problem.logits.x)
        while new.shape[1] or self.products.shape[1] < directions:
            first, room = self.products.shape[1], max(0, at_once - new.shape[1])
            if new.shape[1]:
                room -= room % DRAWN_AT_ONCE
            count = min(room, max(0, directions - first))
            pushed = new
            if count:
                omega = self._omega(problem, first, count)
                self.along = torch.cat([self.along, self._coordinates(omega)], 1)
                pushed = torch.cat([new, omega], 1)
                del omega  # before the pass
            inside, products = margin_products(problem, pushed).split([new.shape[1], count], 1)
            self.inside = torch.cat([self.inside, inside], 1)
            self.products = torch.cat([self.products, products], 1)
            new = new[:, :0]

    def _extend(self) -> None:
        """The basis by the fresh u_i."""
        if self.fresh.shape[1] == 0:
            return
        # rows of one length: what is small beside the steepest rival's may be all of another's
        vectors = self.fresh
        for order in (math.inf, 2):  # squares of float32 numbers may leave its range
            sizes = torch.linalg.vector_norm(vectors, order, dim=2, keepdim=True)
            vectors = vectors / torch.where(sizes > 0, sizes, 1.0)
        for _ in range(2):  # the second time for what rounding left of the first
            along = inner(vectors, self.basis)
            vectors = torch.baddbmm(vectors, along, self.basis, alpha=-1.0)
        # directions of the first basis lie in the span of the nearest rivals' u_i
        new = _independent(vectors, self.rivals - self.basis.shape[1])
        self.basis = torch.cat([self.basis, new], 1)
        self.fresh = self.fresh[:, :0]

    def _coordinates(self, omega: Tensor, known: int = 0) -> Tensor:
        """Of draws [b, m, r] in the basis beyond the first one and so many vectors: ``[b, m, k]``."""
        skip = self.first_basis.shape[1] + known
        return inner(omega.to(self.basis), self.basis[:, skip:]).double()

    def _find_coordinates(self, problem: Linearised) -> None:
        """Those of the draws there are, which are drawn once more, in what is new in the basis."""
        known, drawn = self.along.shape[2], self.along.shape[1]
        new = self.basis.shape[1] - self.first_basis.shape[1] - known
        if new == 0:
            return
        parts = [self.along.new_zeros(len(self.along), 0, new)]
        at_once = directions_at_once(problem)
        for first in range(0, drawn, at_once):
            count = min(at_once, drawn - first)
            # with their part inside the first basis, to which the others are orthogonal
            draws = standard_normal(problem.keys, first, count, problem.noise.dim, self.basis.dtype)
            parts.append(self._coordinates(draws, known))
        self.along = torch.cat([self.along, torch.cat(parts, 1)], 2)

    def _find_rest(self, problem: Linearised) -> None:
        """X: the products along the draws without their part inside the basis."""
        inside = self.inside[:, self.first_basis.shape[1] :].flatten(2)
        rest = self.products - (self.along @ inside).view_as(self.products)
        self.ranking = rest[:, :RANKING]
        if self.rivals > self.near:
            rest = rest[:, RANKING:]
        self.rest = rest / rest.shape[1] ** 0.5
        # rows that were computed lie inside, and what is left of them is rounding (not of single groups)
        if len(problem.weights) == 1:
            self.rest = self.rest.masked_fill(self.taken[:, None, None], 0.0)

    def means(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A and X, transposed, of the groups' weighted mean: ``[b, k, C]`` and ``[b, m, C]``."""
        return mean_rows(self.inside, weight), mean_rows(self.rest, weight)

    def keep(self, problem: Linearised, allowed: float) -> tuple[Tensor, Tensor]:
        """Rivals [b, C - 1] (in ``order``) that may matter, and bounds on all norms [b, C]."""
        order = self.order
        inside, rest = self.means(problem.weights[0])
        known, spread = inside.square().sum(1), rest.square().sum(1) * rest.shape[1]
        ranks = stretches(order.shape[1], rest.shape[1], order.device)
        stretch = torch.zeros_like(known).scatter(1, order, ranks.expand(len(order), -1))
        norms = (known + spread * stretch).sqrt()
        mass = tail(problem.margins, norms, max(problem.noise.sigmas)).gather(1, order)
        return keep_largest(mass, allowed, LEAST_KEPT), norms


def _independent(vectors: Tensor, count: int) -> Tensor:
    """The ``count`` leading directions of what is left of unit ``vectors`` [b, m, r]; zero where that is
    rounding, whose directions would not be orthogonal to those taken before."""
    # all of many: a GPU takes small eigenproblems of all inputs together, larger ones one by one
    at_once = _TOGETHER if count >= vectors.shape[1] else max(1, vectors.shape[1])
    out = vectors[:, :0]
    for part in vectors.split(at_once, dim=1):
        for _ in range(2 if out.shape[1] else 0):
            part = torch.baddbmm(part, inner(part, out), out, alpha=-1.0)
        directions, sizes = leading(part, count - out.shape[1])
        large = sizes > 1e3 * torch.finfo(vectors.dtype).eps
        out = torch.cat([out, directions * large[..., None]], 1)
    return out


class _Waiting:
    """Inputs by the level that they go to next. Those of the lowest level come first, all that are alike
    together: passes of many inputs. Where what is held of them takes half of the budget for rows, those of
    the highest level do, which soon leave."""

    def __init__(self, problem: Linearised, levels: tuple[tuple[int, int], ...]) -> None:
        self._parts: dict[int, list[_State]] = {}
        self._rows = problem.rows_at_once
        self._most = [
            max(
                1, min(self._rows // (4 * level[0]), problem.inputs_at_once(_bytes(problem, level)))
            )
            for level in levels
        ]

    def add(self, level: int, state: _State) -> None:
        self._parts.setdefault(level, []).append(state)

    def take(self) -> tuple[int, _State] | None:
        """A level, and inputs that go there."""
        if not self._parts:
            return None
        waiting = [state for parts in self._parts.values() for state in parts]
        held = sum(len(state.numbers) * state.rivals for state in waiting)
        level = max(self._parts) if held > self._rows // 2 else min(self._parts)
        parts = self._parts.pop(level)
        alike, room = [], self._most[level]
        for state in parts:
            count = min(room, len(state.numbers)) if state.is_like(parts[0]) else 0
            if count < len(state.numbers):
                every = torch.arange(len(state.numbers), device=state.numbers.device)
                self.add(level, state.subset(every[count:]))
                state = state.subset(every[:count])
            if count:
                alike.append(state)
                room -= count
        return level, _State.joined(alike)


def _refine(
    problem: Linearised,
    at: int,
    state: _State,
    levels: tuple[tuple[int, int], ...],
    draws: Tensor,
    direct: float,
    abs_tol: float,
    waiting: _Waiting,
) -> Iterator[tuple[Screened | None, Tensor]]:
    """Grows ``state`` to a level; inputs whose sample is not known well enough there wait for another one."""
    numbers = state.numbers
    problem = problem.subset(numbers)
    with problem.logits.meter.clock("sketch"):
        state.grow(problem, levels[at], draws, abs_tol)
    keep, norms = state.keep(problem, EXACT_SHARE * abs_tol)
    sampled, first_order = _sampled(problem, state, keep, draws, abs_tol)
    done = sampled.amax(0) <= SAMPLED * abs_tol
    ratio = first_order.amax(0) / (SAMPLED * abs_tol)
    if done.any():
        rows = done.nonzero()[:, 0]
        yield _screened(problem, state, keep, norms, sampled, rows), numbers[:0]
    # rows of all that may matter, as after a sketch, where another level is expected to cost more
    wanted, _ = state.keep(problem, SKETCH_SHARE * abs_tol)
    counts = wanted.sum(1)
    following = torch.tensor(
        [
            _ENDED if ended else _next_level(levels, at, value, direct, 1 + count)
            for value, count, ended in zip(
                ratio.tolist(), counts.tolist(), done.tolist(), strict=True
            )
        ],
        device=numbers.device,
    )
    for rows in alike(problem, counts, following == _BY_ROWS):
        part = survivors(problem, rows, state.order, norms, wanted, None, SKETCH_SHARE)
        part.inputs = numbers[rows]
        yield part, numbers[:0]
        del part  # before the next one comes
    for level in following[following >= 0].unique().tolist():
        rows = (following == level).nonzero()[:, 0]
        if level == len(levels):
            yield None, numbers[rows]
        else:
            waiting.add(level, state.subset(rows))


def _next_level(
    levels: tuple[tuple[int, int], ...], at: int, ratio: float, direct: float, rows: int
) -> int:
    """Where to go on from ``at`` with a bound of first order ``ratio`` times too large: toward the level
    that may do, or ``len(levels)`` where the direct way is cheaper than the one that is expected to do, or
    ``_BY_ROWS`` where so many ``rows`` are. Where that bound is small enough, but not what is beyond first
    order, a few more directions do."""
    if not math.isfinite(ratio):  # nor will another level's be
        return len(levels)
    rivals, _ = levels[at]
    level = _reaching(levels, at, ratio, _RATE_OF_MANY)
    ahead = price(levels[level]) - price(levels[at]) if level < len(levels) else direct
    most = direct if levels[at] >= _TRUSTED else _WORTH * price(_TRUSTED)
    if rows < min(ahead, most):
        return _BY_ROWS
    if level < len(levels) and (ahead > direct or price(levels[level]) > _SPENT * direct):
        level = len(levels)
    elif level < len(levels):
        level = _reaching(levels, at, ratio, _HOPED)
    if levels[at] < _TRUSTED:
        tried = [i for i in range(at + 1, len(levels)) if levels[i] <= _TRUSTED]
        return min([level, *tried[-1:]])
    while len(levels) > level > at + 1 and levels[level][0] > _FARTHEST * rivals:
        level -= 1
    return level


def _reaching(
    levels: tuple[tuple[int, int], ...], at: int, ratio: float, rate_of_many: float
) -> int:
    """The first level beyond ``at`` whose error is ``ratio`` times smaller at that rate, or their number."""
    rivals, directions = levels[at]
    rate = _RATE if rivals < _MANY else rate_of_many
    for level in range(at + 1, len(levels)):
        more = (levels[level][0] / rivals) ** rate
        if ratio <= more * _uncertainty(directions) / _uncertainty(levels[level][1]):
            return level
    return len(levels)


def _uncertainty(directions: int) -> float:
    """99 % bound on a mean of so many terms in units of their spread."""
    return student_t_quantile(_LEVEL, directions - 1) / math.sqrt(directions - 1)


def _sampled(
    problem: Linearised,
    state: _State,
    keep: Tensor,
    draws: Tensor,
    abs_tol: float,
) -> tuple[Tensor, Tensor]:
    """99 % bounds ``[n_sigma, b]`` on what drawing other directions would change, and these to first order
    alone; zero for the sigmas below the first whose bound is too large."""
    allowed, neglected = SAMPLED * abs_tol, _NEGLECTED * abs_tol
    directions = state.rest.shape[1]
    out = problem.values.new_zeros(len(problem.noise.sigmas), len(keep))
    first_order = out.clone()
    budget = problem.max_bytes // 8
    with problem.logits.meter.clock("sketch"):
        chosen = packed(state.order, keep, problem.target)[0][:, 1:]
        padding = chosen == problem.target[:, None]
        exact, rest = (
            part.gather(2, chosen[:, None].expand(-1, part.shape[1], -1)).mT
            for part in state.means(problem.weights[0])
        )
        known, spread = (part.square().sum(2).masked_fill(padding, 0.0) for part in (exact, rest))
        norms = (known + spread).sqrt()
        longer = (
            known + spread * (directions / chi_square_quantile(_LEFT_RISK, directions))
        ).sqrt()
        margins = problem.margins.gather(1, chosen)
        finite = norms.isfinite().all(1)
        out[:, ~finite] = first_order[:, ~finite] = math.inf  # the direct way says which
        active = finite.nonzero()[:, 0]
        # the largest first: where that is not known well enough, the others need not be looked at
        for s, sigma in sorted(enumerate(problem.noise.sigmas), key=lambda pair: -pair[1]):
            mass = tail(margins, longer, sigma).masked_fill(padding, 0.0)
            limits = standardised(margins, norms, sigma)
            for rows, _, _, columns in near_columns(
                limits, exact, rest, norms, mass, neglected, active, draws, budget
            ):
                bound, first_order[s, rows] = _bounds(columns, allowed)
                out[s, rows] = bound + neglected
            active = active[out[s, active] <= allowed]
            if not len(active):
                break
    return out, first_order


def _bounds(columns: DrawnColumns, allowed: float) -> tuple[Tensor, Tensor]:
    """99 % bounds ``[b]`` on what drawing other directions would change, whole where the one to first order
    is allowed; and these to first order."""
    each, by_row = columns.influences(until=_GLANCE)
    first_order = _first_order(each)
    near = (first_order <= _FAR * allowed).nonzero()[:, 0]
    if not len(near):
        return first_order, first_order
    if len(near) < len(each):
        columns, each, by_row = columns.subset(near), each[near], by_row[near]
    rest = columns.influences(_GLANCE)
    each, by_row = (
        torch.lerp(other, some, _GLANCE) for some, other in zip((each, by_row), rest, strict=True)
    )
    first_order[near] = _first_order(each)
    bound = first_order.clone()
    some = (first_order[near] <= allowed).nonzero()[:, 0]
    if len(some):
        if len(some) < len(near):
            columns, by_row = columns.subset(some), by_row[some]
        some = near[some]
        value, error = columns.curvature()
        lost = torch.maximum(bound[some], _lost(columns, by_row, bound[some]))
        bound[some] = lost + value.abs() + _CURVATURE_ERRORS * error
    return bound, first_order


def _first_order(influences: Tensor) -> Tensor:
    """Student's 99 % bounds ``[b]`` on the sums of ``influences`` [b, m]."""
    columns = influences.shape[1]
    spread = (influences - influences.mean(1, keepdim=True)).square().sum(1)
    return _uncertainty(columns) * (spread * columns).sqrt()


def _lost(columns: DrawnColumns, by_row: Tensor, bound: Tensor) -> Tensor:
    """What p loses ``[b]`` if the rest is longer than it was drawn, by a 99 % bound: that of all rivals
    together, and that of each of the ``_ALONE`` that alone would lose most, if more than ``bound``.

    A rival whose rest was drawn short has next to no influence there: hence how many rivals count is
    looked at with the rest as long as that of one may be, too, and many small ones do not hide one.
    """
    one = _stretch(by_row.new_ones(()), by_row.shape[1])
    _, of_longer = columns.longer(one.expand_as(columns.z)).influences(until=_LONGER_SHARE)
    together = torch.maximum(*(_stretch(_count(m), len(m[0])) for m in (by_row, of_longer)))
    scales = [together[:, None].expand_as(columns.z)]
    # limits of rows of length one, of which X is a part; a tail grows by no less than p loses
    norms = (1.0 + columns.drawn.square().sum(2) * (one.square() - 1.0)).sqrt()
    grown = (tail(columns.z, norms, 1.0) - tail(columns.z, torch.ones_like(norms), 1.0)).abs()
    most = grown.topk(min(_ALONE, grown.shape[1]), dim=1)
    matters = most.values > bound[:, None]
    for at in range(int(matters.sum(1).amax())):
        length = torch.where(matters[:, at], one, 1.0)
        scales.append(
            torch.ones_like(columns.z).scatter(1, most.indices[:, at, None], length[:, None])
        )
    values, errors = columns.stretched(*scales)
    return (values.abs() + _CURVATURE_ERRORS * errors).amax(0)


def _count(by_row: Tensor) -> Tensor:
    """How many rivals count ``[b]``, by :meth:`DrawnColumns.influences`' M of m columns.

    With G = tr M the sum of their influences and V the sum of g_i g_j cos(x_i, x_j)^2 over true rows,
    G^2 / V do: one where they share a direction. Of drawn rows that sum is |M|^2, of which chance gives
    (G^2 - V) / m.
    """
    columns = by_row.shape[1]
    total = by_row.diagonal(dim1=1, dim2=2).sum(1).square()
    alike = (by_row.square().sum((1, 2)) - total / columns) * (columns / (columns - 1))
    return (total / alike.clamp_min(1e-300)).nan_to_num(nan=1.0).clamp(1.0, columns)


def _stretch(count: Tensor, columns: int) -> Tensor:
    """99 % bound on the ratio of the rest's true length to the drawn one, where so many rivals count: that
    are stretched independently of each other, and off less together than one is."""
    # chi-square's quantile by Wilson and Hilferty (1931), a few per cent too small at 8 degrees
    width = 2.0 / (9.0 * columns * count)
    return (1.0 - width - _NORMAL * width.sqrt()) ** -1.5


def _screened(
    problem: Linearised,
    state: _State,
    keep: Tensor,
    norms: Tensor,
    sampled: Tensor,
    rows: Tensor,
) -> Screened:
    part, state = problem.subset(rows), state.subset(rows)
    keep, norms = keep[rows], norms[rows]
    chosen, _ = packed(state.order, keep, part.target)
    padding = (chosen == chosen[:, :1])[..., None]  # and the target itself
    factor = []
    for weight in part.weights:
        columns = torch.cat(state.means(weight), 1)
        at = chosen[:, None].expand(-1, columns.shape[1], -1)
        factor.append(columns.gather(2, at).mT.masked_fill(padding, 0.0))
    factor = torch.stack(factor)
    scatter = None
    if chosen.shape[1] <= factor.shape[3]:
        part.check_pairs(chosen.shape[1])
        scatter, factor = (factor @ factor.mT).contiguous(), None
    dropped = dropped_mass(part.margins, norms, state.order, keep, part.noise.sigmas)
    return Screened(
        state.numbers,
        chosen,
        scatter,
        dropped,
        (~keep).sum(1),
        LOW_RANK_SHARE,
        factor,
        sampled[:, rows],
    )
