"""Figures of a report as PNG bytes."""

from __future__ import annotations

import io
import textwrap
import warnings
from itertools import cycle

import numpy as np

from .._extras import require
from . import statistics as st

COLOURS = (
    "#1b6ca8", "#d1762b", "#3a8f5d", "#8a4f9e", "#c0392b", "#555555", "#17a2b8", "#c9a400",
)  # fmt: skip


def _figure(width: float = 6.4, height: float = 3.8):
    # Figure without pyplot: no global state, no display needed.
    module = require("matplotlib.figure", "matplotlib", "evaluate")
    return module.Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(figure) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        # boxes in place of letters that no font here has; the page's tables have the names
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        _save(figure, out)
    return out.getvalue()


def _save(figure, out: io.BytesIO) -> None:
    # No date and version: the same run gives the same file.
    figure.savefig(out, format="png", metadata={"Software": None})


#: Fonts with letters that matplotlib's own lacks, tried in turn where they are installed.
_MORE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "IPAexGothic", "Hiragino Sans",
    "PingFang SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans",
)  # fmt: skip


def _named(labels) -> None:
    """Class names as they are: letters of any script that a font here has, and no mathematics."""
    manager = require("matplotlib.font_manager", "matplotlib", "evaluate").fontManager
    installed = {font.name for font in manager.ttflist}
    families = ["DejaVu Sans", *(name for name in _MORE_FONTS if name in installed)]
    for label in labels:
        label.set_fontfamily(families)
        label.set_parse_math(False)  # a class may be called $x$


def _shortened(name: str, most: int = 36) -> str:
    """The name, or its beginning and end: names of neighbouring classes often begin alike."""
    half = most // 2
    return name if len(name) <= most else f"{name[:half].rstrip()} … {name[-half:].lstrip()}"


def _two_lines(name: str, width: int = 22) -> str:
    """The same in two lines, cut between words."""
    lines = textwrap.wrap(name, width)
    if len(lines) > 2:
        lines[1:] = ["… " + textwrap.wrap(name[::-1], width - 2)[0][::-1]]
    return "\n".join(lines)


def distribution(parts: list[st.Answers], method: str) -> bytes:
    """Share of examples with a p of at most x, one line per sigma."""
    figure = _figure()
    axis = figure.subplots()
    mine = [a for a in parts if a.method == method and len(a)]
    for colour, part in zip(cycle(COLOURS), mine, strict=False):
        p = np.concatenate([[0], np.sort(part["prob"]), [1.01]])
        share = np.minimum(np.arange(len(p)) / len(part), 1)
        axis.step(p, share, where="post", color=colour, label=f"sigma {part.sigma:g}")
    axis.set(xlabel="p", ylabel="share of examples", xlim=(0, 1.01), ylim=(0, 1.01))
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return _png(figure)


def sigma_curve(parts: list[st.Answers], methods: tuple[str, ...], main: str) -> bytes:
    """Mean p against sigma with its 99 % interval; the quartiles of ``main`` as a band."""
    figure = _figure()
    axis = figure.subplots()
    for colour, method in zip(cycle(COLOURS), methods, strict=False):
        mine = sorted((a for a in parts if a.method == method and len(a)), key=lambda a: a.sigma)
        sigma = [a.sigma for a in mine]
        mean = np.array([st.mean_interval(a["prob"]) for a in mine]).reshape(-1, 3)
        if method == main:
            low, high = ([np.quantile(a["prob"], q) for a in mine] for q in (0.25, 0.75))
            axis.fill_between(
                sigma, low, high, color=colour, alpha=0.15, label=f"quartiles, {main}"
            )
        spread = np.stack([mean[:, 0] - mean[:, 1], mean[:, 2] - mean[:, 0]])
        # Monte Carlo dashed: another method's line is often below it
        line = ".--" if method == "mc" else ".-"
        axis.errorbar(sigma, mean[:, 0], spread, color=colour, fmt=line, capsize=2, label=method)
    axis.axhline(0.5, color="0.6", lw=1, ls="--")
    axis.set(xlabel="sigma, raw input units", ylabel="mean p", ylim=(0, 1.02))
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return _png(figure)


def classes(rows: list[st.ClassRow], most: int = 30) -> bytes:
    """Means of the least robust classes with their intervals."""
    rows = rows[:most]
    figure = _figure(6.4, 1.1 + 0.22 * len(rows))
    axis = figure.subplots()
    at = np.arange(len(rows))
    mean = np.array([row.mean for row in rows])
    spread = np.array([[row.mean - row.low, row.high - row.mean] for row in rows]).T
    axis.errorbar(mean, at, xerr=spread, fmt="o", ms=4, color=COLOURS[0], ecolor="0.6", capsize=2)
    axis.set_yticks(at, [f"{_shortened(row.name)} ({row.count})" for row in rows], fontsize=8)
    _named(axis.get_yticklabels())
    axis.invert_yaxis()
    axis.set(xlabel="mean p, 99 % interval", xlim=(-0.02, 1.02))
    axis.grid(alpha=0.3, axis="x")
    return _png(figure)


def flips(matrix: np.ndarray, names: list[str]) -> bytes:
    """Where noise sends each class: shares of its lost probability."""
    labels = [_two_lines(name) for name in names]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    size = 0.8 + 0.38 * len(names) + 0.07 * longest
    figure = _figure(size + 0.8, size)
    axis = figure.subplots()
    image = axis.imshow(np.ma.masked_equal(matrix, 0), cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(names))
    axis.set_xticks(ticks, labels, rotation=90, fontsize=8)
    axis.set_yticks(ticks, labels, fontsize=8)
    _named((*axis.get_xticklabels(), *axis.get_yticklabels()))
    axis.set(xlabel="flips to", ylabel="from")
    figure.colorbar(image, ax=axis, shrink=0.8)
    return _png(figure)


def against_monte_carlo(parts: list[st.Answers], method: str) -> bytes:
    """A method against Monte Carlo, whose 99 % intervals are the vertical lines."""
    figure = _figure(5.2, 4.8)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.6", lw=1)
    counts = {a.sigma: a for a in parts if a.method == "mc"}
    mine = [a for a in parts if a.method == method and a.sigma in counts]
    for colour, part in zip(cycle(COLOURS), mine, strict=False):
        mc = counts[part.sigma]
        _, at, at_mc = np.intersect1d(
            part["index"].astype(int), mc["index"].astype(int), return_indices=True
        )
        p = part["prob"][at]
        axis.vlines(p, mc["lower"][at_mc], mc["upper"][at_mc], color=colour, lw=0.8, alpha=0.4)
        label = f"sigma {part.sigma:g}"
        axis.plot(p, mc["prob"][at_mc], ".", ms=3, color=colour, label=label)
    axis.set(xlabel=method, ylabel="Monte Carlo", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.set_aspect("equal")
    axis.legend(fontsize=8)
    return _png(figure)
