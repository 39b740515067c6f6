"""``report``: one HTML file that needs nothing else, and its figures and tables beside it."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from .._extras import require
from ..evaluation.manifest import clear_temporaries, write_atomically
from ..evaluation.results import Evaluation, arrow
from ..evaluation.sources import Source
from ..meter import PHASES
from ..printed import amount, probability
from . import figures, pictures
from . import statistics as st
from .agreement import agreement, disagreeing, shown_method

#: Pictures of the most vulnerable and of the most canonical inputs.
_GALLERY = 12
#: A matrix of flips is drawn up to so many classes; a table of pairs is there always.
_MOST_CLASSES = 30
#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def report(
    run: Evaluation | str | Path,
    *,
    out: str | Path | None = None,
    source: Source | None = None,
    method: str | None = None,
) -> Path:
    """Writes the report of a finished run and returns the page's path.

    Args:
        run: an :class:`Evaluation` or its folder.
        out: a folder, by default ``report`` in the run's own: ``index.html`` (self-contained: figures
            and pictures inside, no network), the figures as PNG, ``summary.csv``, ``classes.csv``,
            ``flips.csv``, ``examples.csv`` (an apostrophe before names that a spreadsheet would run
            as formulas), and ``scores.parquet`` in cleanlab's shape
            (:func:`score_frame`).
        source: the data set for the pictures, where the manifest's name does not lead to it.
        method: of the run, the one that headline, classes, galleries and flips are shown for. By default
            its first one that has answers; where that disagrees with the run's own Monte Carlo, the one
            that is nearest to it.

    All that is shown for one sigma is for that whose mean p is nearest to .8, where examples differ most.

    Raises:
        ValueError: the run is not finished, no example has an answer, or ``method`` is not of the run.
        MissingExtra: matplotlib, pillow or jinja2 is not installed.
    """
    run = run if isinstance(run, Evaluation) else Evaluation(run)
    parts = st.answers(run)
    found = agreement(parts)
    chosen = _method(run, parts, found, method)
    main = _main(parts, chosen)
    folder = Path(out) if out is not None else run.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    clear_temporaries(folder)
    names = run.manifest.get("class_names")
    classes = st.class_table(main, names)
    drawn = _draw(run, parts, main, classes, names)
    for name, data in drawn.items():
        write_atomically(folder / f"{name}.png", data)
    _export(folder, run, parts, main, classes, names)
    jinja = require("jinja2", "jinja2", "evaluate")
    environment = jinja.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["ends"] = _ends
    environment.filters["percent"] = lambda x: (
        "" if x is None or math.isnan(x) else f"{100 * x:.1f} %"
    )
    environment.filters["number"] = _number
    environment.filters["probability"] = probability
    environment.filters["amount"] = amount
    environment.tests["finite"] = math.isfinite
    text = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    origin = pictures.open_source(run, source)
    half = st.sigma_at_half(run, main.method, parts)
    first = _method(run, parts, [], None)
    beside = {a.sigma: a for a in found if a.method == main.method}
    mc = beside.get(main.sigma)
    page = environment.from_string(text).render(
        run=run,
        config=run.config,
        environment=run.manifest["environments"][0],
        started=run.manifest["started"],
        main=main,
        headline=probability(*_mean(main)),
        summaries=[_summary(a) for a in parts],
        risks=[f"p >= {1 - risk:g}" for risk in st.RISKS],
        kind=st.groups(main)[1],
        accuracy=st.accuracy(main),
        classes=classes,
        bias=st.bias(classes),
        bias_shown=_bias(classes),
        flips=st.flips(main, names),
        agreement=found,
        mc=mc,
        # else both means, over the inputs that both have, are in the sentence above the tiles alone
        same_inputs=mc is not None and mc.examples == len(main),
        disagreeing=_headline_first(disagreeing(found, main.method), main.sigma),
        compared=bool(beside),
        states_error=not np.isnan(main["error"].astype(float)).all(),
        changed=method is None and main.method != first,
        first=first,
        first_disagreeing=_headline_first(disagreeing(found, first), main.sigma),
        asked_for=method is not None,
        right=st.right(main),
        bands=st.cost_by_band(main),
        times=st.time_shares(run),
        phases=PHASES,
        half=st.median_half(half, run.config.sigmas),
        n_classes=_count(main, names),
        figures={name: _inline(data) for name, data in drawn.items()},
        vulnerable=_gallery(main, names, origin, half, worst=True),
        canonical=_gallery(main, names, origin, half, worst=False),
        has_pictures=origin is not None,
        gaps=_gaps(run),
    )
    path = folder / "index.html"
    write_atomically(path, page.encode())
    return path


def _method(run: Evaluation, parts: list[st.Answers], found, method: str | None) -> str:
    if method is None:
        answered = [m for m in run.config.methods if any(a.method == m and len(a) for a in parts)]
        return shown_method(answered or run.config.methods, found)
    if method not in run.config.methods:
        raise ValueError(
            f"report: method must be of the run, {', '.join(run.config.methods)}, got {method!r}"
        )
    return method


def _mean(of: st.Answers) -> tuple[float, float, float]:
    """Mean p, its stated error and 1 - p."""
    return float(of["prob"].mean()), st.mean_error(of), float(of["complement"].mean())


def _summary(of: st.Answers) -> dict[str, Any]:
    """A line of the overview, its probabilities as text."""
    line = st.summary(of)
    if not len(of):
        return line | {"mean p": "", "median p": "", "ends": ""}
    return line | {
        "mean p": probability(*_mean(of)),
        "median p": probability(line["median p"], st.median_error(of)),
        "ends": _ends(line["low"], line["high"]),
    }


def _bias(classes: list[st.ClassRow]) -> dict[str, str]:
    """How unequal the classes are, as text."""
    worst, best = classes[0], classes[-1]
    shown = {name: _number(value) for name, value in st.bias(classes).items()}
    return shown | {
        "its mean p": probability(worst.mean, worst.mean_error),
        "its mean": probability(best.mean, best.mean_error),
        "gap": amount(best.mean - worst.mean, worst.mean_error + best.mean_error),
    }


def _ends(low: float, high: float) -> str:
    """An interval to four decimals, rounded outwards."""
    return f"{math.floor(1e4 * low + 1e-6) / 1e4:.4g} to {math.ceil(1e4 * high - 1e-6) / 1e4:.4g}"


def _headline_first(found, sigma: float):
    """The page's own sigma before the others."""
    return sorted(found, key=lambda a: a.sigma != sigma)


def _main(parts: list[st.Answers], method: str) -> st.Answers:
    mine = [a for a in parts if a.method == method and len(a)]
    if not mine:
        raise ValueError("report: run must have an answer for some example, got none")
    return min(mine, key=lambda a: abs(float(a["prob"].mean()) - 0.8))


def _draw(run, parts, main, classes, names) -> dict[str, bytes]:
    drawn = {
        "distribution": figures.distribution(parts, main.method),
        "classes": figures.classes(classes),
    }
    if len(run.config.sigmas) > 1:
        drawn["sigma"] = figures.sigma_curve(parts, run.config.methods, main.method)
    count = _count(main, names)
    if count <= _MOST_CLASSES:
        shown = [st.name_of(c, names) for c in range(count)]
        drawn["flips"] = figures.flips(st.flip_matrix(main, count), shown)
    if "mc" in run.config.methods and main.method != "mc":
        drawn["monte-carlo"] = figures.against_monte_carlo(parts, main.method)
    return drawn


def _count(main: st.Answers, names: list[str] | None) -> int:
    """Classes of the model, as far as names or answers show."""
    return max(1 + int(max(main["target"].max(), main["runner_up"].max())), len(names or ()))


def _inline(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _number(x: Any) -> str:
    """Four digits; small ones as powers; nothing where nothing is known."""
    if x is None:
        return ""
    if isinstance(x, (int, str)):
        return str(x)
    if math.isnan(x):
        return ""
    return f"{x:.1e}" if 0 < abs(x) < 1e-3 else f"{x:.4g}"


def _gallery(
    main: st.Answers, names, source: Source | None, half: np.ndarray, *, worst: bool
) -> list[dict[str, Any]]:
    """The examples with the least p, or with the least 1 - p."""
    if worst:
        order = np.argsort(main["prob"], kind="stable")
    else:
        order = np.argsort(main["complement"], kind="stable")
    out = []
    for at in order[:_GALLERY]:
        index = int(main["index"][at])
        label, target, predicted = (main[name][at] for name in ("label", "target", "predicted"))
        picture = None if source is None else pictures.thumbnail(source, index)
        labelled = label is not None and not math.isnan(label)
        out.append(
            {
                "index": index,
                "name": main["name"][at],
                "picture": None if picture is None else _inline(picture),
                # where these are not what p is of
                "label": st.name_of(int(label), names) if labelled and label != target else None,
                "predicted": st.name_of(int(predicted), names) if predicted != target else None,
                "target": st.name_of(int(target), names),
                "to": st.name_of(int(main["runner_up"][at]), names),
                "p": probability(
                    *(float(main[name][at]) for name in ("prob", "error", "complement"))
                ),
                "half": float(half[index]),
            }
        )
    return out


def _gaps(run: Evaluation) -> list[dict[str, Any]]:
    """Examples without an answer, once each."""
    columns = ("index", "name", "status", "note", "prob")
    seen: dict[int, dict[str, Any]] = {}
    for row in run.table().select(columns).to_pylist():
        if row["prob"] is None:
            seen.setdefault(row["index"], row)
    return list(seen.values())


def _export(folder: Path, run: Evaluation, parts, main, classes, names) -> None:
    _csv(folder / "summary.csv", [st.summary(a) for a in parts])
    _csv(folder / "classes.csv", [dataclasses.asdict(row) for row in classes])
    _csv(folder / "flips.csv", [dataclasses.asdict(f) for f in st.flips(main, names, most=10**6)])
    _csv(folder / "examples.csv", run.table().to_pylist())
    pa, parquet = arrow()
    sink = pa.BufferOutputStream()
    parquet.write_table(st.score_frame(run, method=main.method, sigma=main.sigma), sink)
    write_atomically(folder / "scores.parquet", sink.getvalue().to_pybytes())


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    write_atomically(path, text.getvalue().encode())


def _cell(value: Any) -> Any:
    """Names come from files: one that a spreadsheet would run as a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
