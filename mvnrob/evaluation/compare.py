"""``compare``: what changed between two finished runs over the same data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..intervals import joint_error, student_t_quantile
from ..printed import probability
from .results import Evaluation
from .sources import printable

_LEVEL = 0.99
#: Differences of p that say nothing: rounding of the network's, which no stated error has in it.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Change:
    """An example whose intervals in the two runs are more than 1e-6 apart: ``after`` less ``before``."""

    index: int
    name: str
    method: str
    sigma: float
    before: float
    after: float
    predicted_before: int
    predicted_after: int
    error_before: float = math.nan  #: as stated
    error_after: float = math.nan

    @property
    def difference(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class ClassChange:
    """Mean p of the examples of a class; errors as stated, of the means."""

    label: int
    name: str
    count: int
    before: float
    after: float
    error_before: float = math.nan
    error_after: float = math.nan

    @property
    def difference(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Pair:
    """One method and sigma that both runs have.

    - ``examples``: how many have a p in both.
    - ``before``, ``after``: mean p; ``error_before``, ``error_after``: as stated, of these.
    - ``half_width``: of the mean difference, 99 %, over examples drawn at random.
    - ``raised``, ``lowered``: examples whose interval moved clear of the former one, by more
      than 1e-6.
    - ``predictions``: examples whose predicted class changed.
    """

    method: str
    sigma: float
    examples: int
    before: float
    after: float
    half_width: float
    raised: int
    lowered: int
    predictions: int
    error_before: float = math.nan
    error_after: float = math.nan

    @property
    def difference(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found; ``print`` shows the largest of it.

    - ``pairs``: :class:`Pair`, each method and sigma of both runs.
    - ``changes``: :class:`Change`, examples that changed, largest first.
    - ``classes``: :class:`ClassChange` at the first pair, most lowered first.
    - ``names``: what the runs are called in print, ``before``'s first.
    """

    pairs: tuple[Pair, ...]
    changes: tuple[Change, ...]
    classes: tuple[ClassChange, ...]
    names: tuple[str, str] = ("before", "after")

    def __str__(self) -> str:
        both = [_both(p) for p in self.pairs]
        one, two = (
            max(map(len, (name, *(texts[at] for texts in both))))
            for at, name in enumerate(self.names)
        )
        arrow = " -> ".join(self.names)
        head = (
            f"{'method':14} {'sigma':>7} {'examples':>8} {self.names[0]:>{one}} {self.names[1]:>{two}} "
            f"{'change':>20} {'raised':>7} {'lowered':>8} {'predictions':>12}"
        )
        lines = [head]
        for p, (before, after) in zip(self.pairs, both, strict=True):
            change = f"{_signed(p.difference)} +- {_signed(p.half_width).lstrip('+')}"
            lines.append(
                f"{p.method:14} {p.sigma:7g} {p.examples:8d} {before:>{one}} {after:>{two}} "
                f"{change:>20} {p.raised:7d} {p.lowered:8d} {p.predictions:12d}"
            )
        lines.append(
            f"largest changes, {arrow}:" if self.changes else "no example changed beyond its error"
        )
        lines += [
            f"  {c.name}: {' -> '.join(_both(c))} ({_signed(c.difference)}; {c.method}, sigma {c.sigma:g})"
            for c in self.changes[:10]
        ]
        lines.append(f"classes, {arrow}:")
        lines += [
            f"  {c.name}: {' -> '.join(_both(c))} ({_signed(c.difference)}) over {c.count}"
            for c in self.classes[:10]
        ]
        return "\n".join(lines)


def _both(of: Pair | Change | ClassChange) -> tuple[str, str]:
    return probability(of.before, of.error_before), probability(of.after, of.error_after)


def _signed(difference: float) -> str:
    """Four decimals, or two digits of what these do not show."""
    if difference == 0 or abs(difference) >= 5e-4 or math.isnan(difference):
        return f"{difference + 0.0:+.4f}"
    return f"{difference:+.1e}"


def run_names(before: Path, after: Path) -> tuple[str, str]:
    """The folders' names, with as many of the folders above them as tell the two apart; a folder that is
    compared with itself is two runs all the same."""
    one, two = before.resolve(), after.resolve()
    if one == two:
        name = printable(one.name or str(one))
        return f"{name} (1)", f"{name} (2)"
    for parts in range(1, max(len(one.parts), len(two.parts)) + 1):
        names = [printable(str(Path(*path.parts[-parts:]))) for path in (one, two)]
        if names[0] != names[1]:
            break
    return names[0], names[1]


def _bounds(rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends, give or take rounding; of p where no error is stated."""
    p, unstated = rows["prob"].astype(float), np.isnan(rows["error"].astype(float))
    return (
        np.where(unstated, p, rows["lower"].astype(float)) - _ROUNDING / 2,
        np.where(unstated, p, rows["upper"].astype(float)) + _ROUNDING / 2,
    )


def compare(before: Evaluation | str | Path, after: Evaluation | str | Path) -> Comparison:
    """Two finished runs over the same data: means, examples and classes that changed.

    Args:
        before, after: :class:`Evaluation` or their folders. Other models, methods, sigmas, limits may
            differ; what both have is compared, example by example.

    An example has changed when its intervals ``[lower, upper]`` are more than 1e-6 apart (rounding, which no
    stated error has in it); where a method states no error, when its p are. The half-width of a mean
    difference is that of a paired t-interval over examples.

    Returns what prints as a table, whose columns have the folders' names, with fields ``pairs`` (means of each
    method and sigma), ``changes`` (examples, largest first), ``classes`` (most lowered first) and ``names``.

    Cost: both tables are read into memory and matched row by row; no network is run.

    Raises:
        ValueError: a folder holds no run, a run is not finished, the data or the targets differ, or no
            method and sigma is in both.
    """
    a = before if isinstance(before, Evaluation) else Evaluation(before)
    b = after if isinstance(after, Evaluation) else Evaluation(after)
    if a.config.data_fingerprint != b.config.data_fingerprint:
        raise ValueError(
            f"compare: runs must be over the same data, got {a.config.data} and {b.config.data} of "
            "other contents"
        )
    if a.config.target != b.config.target:
        raise ValueError(
            f"compare: runs must be about the same target, got {a.config.target} and {b.config.target}"
        )
    common = [
        (m, s)
        for m in a.config.methods
        if m in b.config.methods
        for s in a.config.sigmas
        if s in b.config.sigmas
    ]
    if not common:
        raise ValueError("compare: runs must share a method and a sigma, got none in both")
    columns = [
        {
            name: table[name].to_numpy(zero_copy_only=False)
            for name in ("index", "name", "method", "sigma", "label", "predicted", "prob",
                         "error", "lower", "upper")
        }
        for table in (a.table(), b.table())
    ]  # fmt: skip
    names = a.manifest.get("class_names")
    pairs, changes, classes = [], [], []
    for method, sigma in common:
        here = [
            np.flatnonzero((c["method"] == method) & (c["sigma"] == sigma) & ~np.isnan(
                c["prob"].astype(float)
            ))
            for c in columns
        ]  # fmt: skip
        _, at_a, at_b = np.intersect1d(
            columns[0]["index"][here[0]], columns[1]["index"][here[1]], return_indices=True
        )
        one = {k: v[here[0][at_a]] for k, v in columns[0].items()}
        two = {k: v[here[1][at_b]] for k, v in columns[1].items()}
        count = len(one["prob"])
        if count == 0:
            continue
        gap = two["prob"] - one["prob"]
        bounds = [_bounds(rows) for rows in (one, two)]
        raised, lowered = bounds[1][0] > bounds[0][1], bounds[1][1] < bounds[0][0]
        half = math.nan
        if count > 1:
            half = student_t_quantile(_LEVEL, count - 1) * gap.std(ddof=1) / math.sqrt(count)
        pairs.append(
            Pair(
                method, sigma, count, float(one["prob"].mean()), float(two["prob"].mean()),
                float(half), int(raised.sum()), int(lowered.sum()),
                int((one["predicted"] != two["predicted"]).sum()),
                *(joint_error(rows["error"].astype(float), method) for rows in (one, two)),
            )
        )  # fmt: skip
        changes += [
            Change(
                int(one["index"][i]), str(one["name"][i]), method, sigma, float(one["prob"][i]),
                float(two["prob"][i]), int(one["predicted"][i]), int(two["predicted"][i]),
                float(one["error"][i]), float(two["error"][i]),
            )
            for i in np.flatnonzero(raised | lowered)
        ]  # fmt: skip
        if not classes:
            label = one["label"].astype(float)
            number = np.where(np.isnan(label), one["predicted"].astype(float), label).astype(int)
            classes = [
                ClassChange(
                    int(c), names[c] if names and 0 <= c < len(names) else str(c),
                    int((number == c).sum()), float(one["prob"][number == c].mean()),
                    float(two["prob"][number == c].mean()),
                    *(joint_error(rows["error"][number == c].astype(float), method)
                      for rows in (one, two)),
                )
                for c in np.unique(number)
            ]  # fmt: skip
    return Comparison(
        tuple(pairs),
        tuple(sorted(changes, key=lambda c: -abs(c.difference))),
        tuple(sorted(classes, key=lambda c: c.difference)),
        run_names(a.folder, b.folder),
    )
