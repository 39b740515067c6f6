"""Numbers of a finished run, from its table's columns. No drawing, no HTML."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..evaluation.results import Evaluation
from ..intervals import joint_error, student_t_quantile
from ..meter import PHASES

#: Bands of p by which cost is split.
BANDS = ((0.0, 0.5), (0.5, 0.9), (0.9, 0.99), (0.99, 0.999), (0.999, 1.0))
#: An input counts as robust at risk r when p >= 1 - r.
RISKS = (0.1, 0.05, 0.01)
LEVEL = 0.99
#: Values within such a range are alike.
_ALIKE = 1e-3


@dataclass(frozen=True)
class Answers:
    """One method at one sigma: arrays over its examples that have an answer."""

    method: str
    sigma: float
    columns: dict[str, np.ndarray]
    gaps: int  #: examples without an answer

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["prob"])


def answers(run: Evaluation) -> list[Answers]:
    """Every method and sigma, in the run's order."""
    table = run.table()
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    out = []
    for method in run.config.methods:
        for sigma in run.config.sigmas:
            here = (columns["method"] == method) & (columns["sigma"] == sigma)
            known = here & ~np.isnan(columns["prob"].astype(float))
            chosen = {name: values[known] for name, values in columns.items()}
            out.append(Answers(method, sigma, chosen, int(here.sum() - known.sum())))
    return out


def groups(of: Answers) -> tuple[np.ndarray, str]:
    """The class by which examples are grouped: the label where all have one, else the prediction."""
    labels = of["label"].astype(float)
    if len(labels) and not np.isnan(labels).any():
        return labels.astype(np.int64), "label"
    return of["predicted"].astype(np.int64), "prediction"


def accuracy(of: Answers) -> float | None:
    """Share of examples whose prediction is their label, where all have one: without noise."""
    number, kind = groups(of)
    return float((of["predicted"].astype(float) == number).mean()) if kind == "label" else None


def right(of: Answers) -> np.ndarray:
    """Examples whose target is what the model answers without noise: all of them where it is the
    prediction. Only there is 1 - p what noise changes, and the runner-up where it leads."""
    return of["predicted"].astype(float) == of["target"].astype(float)


def mean_error(of: Answers, chosen: np.ndarray | None = None) -> float:
    """What is stated of the mean p, of some of the examples."""
    error = of["error"].astype(float)[slice(None) if chosen is None else chosen]
    return joint_error(error, of.method)


def median_error(of: Answers) -> float:
    """Of the median p: where the medians of the ends of its examples' intervals are."""
    error, p = of["error"].astype(float), of["prob"].astype(float)
    if len(p) == 0 or np.isnan(error).any():
        return math.nan
    return float(max(np.median(p + error) - np.median(p), np.median(p) - np.median(p - error)))


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 99 % t-interval over examples drawn at random, cut to [0, 1].

    Examples that are all alike have no spread to speak of, and still others may come: there the ends
    allow for the share q of unlike ones that n examples miss in one case of 200, (1 - q)^n = .005.
    """
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return mean, 0.0, 1.0
    if np.ptp(values) < _ALIKE:
        met = (0.5 * (1 - LEVEL)) ** (1 / n)
        return mean, met * mean, 1 - met * (1 - mean)
    half = student_t_quantile(LEVEL, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


@dataclass(frozen=True)
class ClassRow:
    number: int
    name: str
    count: int
    accuracy: float | None
    mean: float
    low: float
    high: float
    worst: float
    flips_to: str  #: of the examples that are given this class without noise
    flips_share: float | None
    mean_error: float | None = None  #: stated
    worst_error: float | None = None


def class_table(of: Answers, names: list[str] | None) -> list[ClassRow]:
    """Classes from the least robust on; intervals are of the mean over a class's examples.

    ``flips_to`` leaves out those of a label that the model answers otherwise without noise: where the
    target is the prediction, noise often sends these to their label.
    """
    number, kind = groups(of)
    rows = []
    for c in np.unique(number):
        here = number == c
        p = of["prob"][here]
        mean, low, high = mean_interval(p)
        own = here & right(of) & (of["predicted"].astype(float) == c)
        mass = of["complement"][own].astype(float)
        flips, share = "", None
        if mass.sum() > 0:
            to = of["runner_up"][own].astype(np.int64)
            weight = np.bincount(to, weights=mass)
            flips, share = (
                name_of(int(weight.argmax()), names),
                min(1.0, float(weight.max() / mass.sum())),
            )
        accuracy = None
        if kind == "label":
            accuracy = float((of["predicted"][here].astype(float) == c).mean())
        rows.append(
            ClassRow(
                int(c),
                name_of(int(c), names),
                int(here.sum()),
                accuracy,
                mean,
                low,
                high,
                float(p.min()),
                flips,
                share,
                mean_error(of, here),
                float(of["error"][here].astype(float)[p.argmin()]),
            )
        )
    return sorted(rows, key=lambda row: row.mean)


def name_of(number: int, names: list[str] | None) -> str:
    return (names[number] if names and 0 <= number < len(names) else "") or str(number)


def gini(values: np.ndarray) -> float:
    """Gini coefficient, half the mean absolute difference over the mean: 0 when all are equal."""
    if len(values) == 0 or values.mean() == 0:
        return 0.0
    x = np.sort(values)
    rank = np.arange(1, len(x) + 1)
    return float(((2 * rank - len(x) - 1) * x).sum() / (len(x) ** 2 * x.mean()))


def bias(rows: list[ClassRow]) -> dict[str, float | str]:
    """How unequal the classes are: worst, best, their gap, Gini of the means, spread."""
    means = np.array([row.mean for row in rows])
    return {
        "worst class": rows[0].name,
        "its mean p": float(means[0]),
        "best class": rows[-1].name,
        "its mean": float(means[-1]),
        "gap": float(means[-1] - means[0]),
        "Gini": gini(means),
        "standard deviation": float(means.std()),
    }


def summary(of: Answers) -> dict[str, float | str | int | None]:
    """A line of the overview."""
    p = of["prob"]
    mean, low, high = mean_interval(p)
    error = of["error"].astype(float)
    known = error[~np.isnan(error)]
    line: dict[str, float | str | int | None] = {
        "method": of.method,
        "sigma": of.sigma,
        "examples": len(of),
        "without answer": of.gaps,
        "mean p": mean,
        "error of the mean": mean_error(of) if len(p) else math.nan,
        "low": low,
        "high": high,
        "median p": float(np.median(p)) if len(p) else math.nan,
        "error of the median": median_error(of),
        "largest error": float(known.max()) if len(known) else None,
    }
    for risk in RISKS:
        line[f"p >= {1 - risk:g}"] = float((p >= 1 - risk).mean()) if len(p) else math.nan
    return line


def sigma_at_half(run: Evaluation, method: str, parts: list[Answers]) -> np.ndarray:
    """Where p first falls to one half, per example, linear between the sigmas: -inf where it is below at
    the least sigma, inf where it stays above up to the largest, NaN without an answer."""
    mine = sorted((a for a in parts if a.method == method), key=lambda a: a.sigma)
    count = run.config.examples
    out, before, level = (np.full(count, math.nan) for _ in range(3))
    for part in mine:
        p = np.full(count, math.nan)
        p[part["index"].astype(np.int64)] = part["prob"]
        fallen = np.isnan(out) & (p < 0.5)
        first = fallen & np.isnan(before)
        out[first] = -math.inf
        here = fallen & ~first
        fall = (before[here] - 0.5) / (before[here] - p[here])
        out[here] = level[here] + fall * (part.sigma - level[here])
        known = ~np.isnan(p)
        before[known], level[known] = p[known], part.sigma
    out[np.isnan(out) & ~np.isnan(before)] = math.inf
    return out


@dataclass(frozen=True)
class Half:
    """The sigma at which half of the examples have fallen to p = .5: what :func:`sigma_at_half` has, as
    one number, infinite outside the run's sigmas."""

    median: float
    low: float  #: the run's least sigma
    high: float
    below: int  #: examples with p < .5 there already
    within: int
    beyond: int


def median_half(half: np.ndarray, sigmas: tuple[float, ...]) -> Half | None:
    """None where a single sigma has no range, or no example has an answer."""
    known = np.sort(half[~np.isnan(half)])
    if len(known) == 0 or len(set(sigmas)) < 2:
        return None
    return Half(
        float(known[(len(known) - 1) // 2]),  # no mean of two: one may be infinite
        min(sigmas),
        max(sigmas),
        int((known == -math.inf).sum()),
        int(np.isfinite(known).sum()),
        int((known == math.inf).sum()),
    )


@dataclass(frozen=True)
class Flip:
    of: str
    to: str
    expected: float
    examples: int
    error: float | None = None  #: of ``expected``: the sum of what is stated


def flips(of: Answers, names: list[str] | None, most: int = 15) -> list[Flip]:
    """Where noise sends inputs: 1 - p given to each one's most probable rival, by pairs of classes. Where
    the target is the label, of those that are right without noise: the others are not sent."""
    pairs: dict[tuple[int, int], list[tuple[float, float]]] = {}
    own = right(of)
    columns = (of[name][own] for name in ("target", "runner_up", "complement", "error"))
    for a, b, p, error in zip(*columns, strict=True):
        pairs.setdefault((int(a), int(b)), []).append((float(p), float(error)))
    found = [
        Flip(
            name_of(a, names),
            name_of(b, names),
            sum(p for p, _ in mass),
            len(mass),
            len(mass) * joint_error(np.array([error for _, error in mass]), of.method),
        )
        for (a, b), mass in pairs.items()
    ]
    ranked = sorted(found, key=lambda flip: -flip.expected)[:most]
    return [flip for flip in ranked if flip.expected > 0]


def flip_matrix(of: Answers, classes: int) -> np.ndarray:
    """The same as a matrix ``[classes, classes]``, rows normalised to shares of all of a class's mass.

    A class that loses less than a thousandth of what the one that loses most does is left empty.
    """
    out = np.zeros((classes, classes))
    own = right(of)
    pairs = (of["target"][own].astype(np.int64), of["runner_up"][own].astype(np.int64))
    np.add.at(out, pairs, of["complement"][own].astype(float))
    total = out.sum(1, keepdims=True)
    return np.divide(out, total, out=np.zeros_like(out), where=total > 1e-3 * total.max(initial=0))


def cost_by_band(of: Answers) -> list[dict[str, float | str | int]]:
    """Mean passes of an example by its p."""
    p, out = of["prob"], []
    for low, high in BANDS:
        here = (p >= low) & ((p < high) if high < 1 else (p <= 1))
        if not here.any():
            continue
        line: dict[str, float | str | int] = {
            "p": f"{low:g} to {high:g}",
            "examples": int(here.sum()),
        }
        for kind in ("forward", "jvp", "vjp"):
            line[kind] = float(of[kind][here].astype(float).mean())
        out.append(line)
    return out


def time_shares(run: Evaluation) -> list[dict[str, float | str | int]]:
    """Seconds per example and method, and what share each of its phases took."""
    times = run.timings().to_pylist()
    out = []
    for method in run.config.methods:
        mine = [t for t in times if t["method"] == method]
        seconds = sum(t["seconds"] for t in mine)
        examples = sum(t["examples"] for t in mine)
        if examples:
            out.append(
                {
                    "method": method,
                    "examples": examples,
                    "seconds per example": seconds / examples,
                    **{
                        phase: sum(t[f"seconds_{phase}"] for t in mine) / max(seconds, 1e-12)
                        for phase in PHASES
                    },
                }
            )
    return out


def score_frame(
    run: Evaluation | str | Path, *, method: str | None = None, sigma: float | None = None
):
    """Scores in cleanlab's shape, ``pyarrow.Table``: ``index``, ``given_label``, ``predicted_label``,
    ``noise_vulnerability_score`` (p: low is bad) and ``is_noise_vulnerability_issue`` (p < .5).

    ``run``: a finished :class:`Evaluation` or its folder. ``method`` and ``sigma``: its first ones by
    default. ``.to_pandas()`` gives a data frame.
    """
    from ..evaluation.results import arrow

    run = run if isinstance(run, Evaluation) else Evaluation(run)
    method = run.config.methods[0] if method is None else method
    sigma = run.config.sigmas[0] if sigma is None else sigma
    for part in answers(run):
        if (part.method, part.sigma) == (method, sigma):
            pa, _ = arrow()
            labels = [None if np.isnan(v) else int(v) for v in part["label"].astype(float)]
            return pa.table(
                {
                    "index": pa.array(part["index"].astype(np.int64)),
                    "given_label": pa.array(labels, pa.int64()),
                    "predicted_label": pa.array(part["predicted"].astype(np.int64)),
                    "noise_vulnerability_score": pa.array(part["prob"].astype(float)),
                    "is_noise_vulnerability_issue": pa.array(part["prob"] < 0.5),
                }
            )
    raise ValueError(
        f"score_frame: method and sigma must be of the run, got {method!r} and {sigma!r}"
    )
