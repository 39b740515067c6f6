"""``screen="auto"``: of the ways to the rivals that matter, the one that is expected to cost least."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from .linearised import Linearised
from .low_rank import first_price, screen_low_rank, serves
from .screening import EXACT_SHARE, SKETCH_SHARE, Screened, cheaper, find_features, screen_exact
from .sketch import DEFLATED, JVP_IN_VJPS, NEAR_ROWS, SKETCH_SIZES, NoForwardMode, sketch


def screen_auto(problem: Linearised, abs_tol: float) -> Iterator[Screened]:
    """All rows, the features' rows, a sketch or a low rank, by the backward passes that each is
    expected to take (a forward-mode product counts as ``JVP_IN_VJPS``).

    ``direct``, what all rows cost, is known beforehand: C, or the number of live features. The near
    rivals' rows give a first guess of all norms, and every look at the sketch a better one of how
    many more rows it would save. An input leaves for a low rank as soon as the first level of that is
    cheaper, and from there, or where it is not served, for the direct way as soon as that is.
    """
    classes = problem.values.shape[2]
    least = NEAR_ROWS + JVP_IN_VJPS * (DEFLATED + SKETCH_SIZES[0])
    features, left = None, torch.arange(len(problem.target), device=problem.target.device)
    if classes > least:  # fewer cost no more than a sketch
        features = find_features(problem)
        direct = features.passes(problem.rows_at_once) if cheaper(problem, features) else classes
        if direct > least:
            low_rank = serves(problem, abs_tol, direct)

            def otherwise(drawn: int) -> float:
                return first_price(drawn) if low_rank else direct

            begun = []
            # without forward mode all are left
            with contextlib.suppress(NoForwardMode):
                with problem.logits.meter.clock("sketch"):
                    allowed = SKETCH_SHARE * abs_tol
                    sketched, left, begun = sketch(problem, allowed, otherwise, hand_over=low_rank)
                yield from sketched
                del sketched  # and what it holds of all inputs
            if begun:
                rest, parts = [], screen_low_rank(problem, begun, direct, abs_tol)
                del begun  # which that lets go of
                for part, direct_ones in parts:
                    rest.append(direct_ones)
                    if part is not None:
                        yield part
                        del part  # before the next one comes
                left = torch.cat(rest)
    if len(left):
        some = None if features is None else features.subset(left)
        exact = {"allowed": EXACT_SHARE * abs_tol, "share": EXACT_SHARE}
        for part in screen_exact(problem.subset(left), features=some, **exact):
            part.inputs = left[part.inputs]
            yield part
            del part  # before the next one comes
