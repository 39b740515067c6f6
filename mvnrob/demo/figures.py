"""The demo's pictures. Each function takes plain arrays and writes one PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .._extras import require

COLOURS = (
    "#1b6ca8", "#d1762b", "#3a8f5d", "#8a4f9e", "#c0392b", "#555555", "#17a2b8", "#c9a400",
)  # fmt: skip


def _figure(width: float, height: float, layout: str | None = "constrained"):
    # Figure without pyplot: no global state, no display needed.
    module = require("matplotlib.figure", "matplotlib", "demo")
    return module.Figure(figsize=(width, height), dpi=130, layout=layout)


def scatter(panels: dict[str, dict[float, dict[str, np.ndarray]]], path: Path) -> None:
    """Estimator against Monte Carlo, one panel each.

    ``panels[estimator][sigma]`` holds ``prob``, ``mc``, ``lower``, ``upper``, each ``[B]``; the
    last two are the interval of Monte Carlo, drawn as a vertical line.
    """
    columns = 4
    rows = -(-len(panels) // columns)
    figure = _figure(3.1 * columns, 3.2 * rows + 0.4)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, series) in zip(axes.flat, panels.items(), strict=False):
        axis.plot([0, 1], [0, 1], color="0.6", lw=1, zorder=1)
        for colour, (sigma, data) in zip(COLOURS, series.items(), strict=False):
            axis.vlines(data["prob"], data["lower"], data["upper"], color=colour, lw=0.8, alpha=0.5)
            axis.plot(data["prob"], data["mc"], ".", ms=3, color=colour, label=f"sigma {sigma:g}")
        axis.set_title(name, fontsize=10)
        axis.set_aspect("equal")
    for axis in axes[:, 0]:
        axis.set_ylabel("Monte Carlo, 99 % interval")
    for axis in axes[-1]:
        axis.set_xlabel("estimator")
    axes.flat[0].legend(fontsize=8, loc="upper left")
    figure.suptitle("Digits: probability that noise leaves the answer unchanged")
    figure.savefig(path)


def sigma_curves(
    images: np.ndarray,
    titles: list[str],
    curves: dict[str, tuple[np.ndarray, np.ndarray]],
    mc: dict[str, np.ndarray],
    path: Path,
) -> None:
    """p against sigma for single inputs, with the input beside its curve.

    ``images [K, H, W]``; ``curves[name] = (sigma [S], prob [S, K])``; ``mc`` holds ``sigma [M]``
    and ``prob``, ``lower``, ``upper``, each ``[M, K]``.
    """
    count = len(images)
    columns = min(4, count)
    rows = -(-count // columns)
    figure = _figure(3.3 * columns, 2.8 * rows + 0.4)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for k, axis in enumerate(axes.flat[:count]):
        for colour, (name, (sigma, prob)) in zip(COLOURS, curves.items(), strict=False):
            axis.plot(sigma, prob[:, k], color=colour, lw=1.5, label=name)
        middle, low, high = mc["prob"][:, k], mc["lower"][:, k], mc["upper"][:, k]
        axis.errorbar(
            mc["sigma"],
            middle,
            yerr=np.stack([middle - low, high - middle]).clip(0),
            fmt="k.",
            ms=4,
            lw=1,
            label="Monte Carlo",
        )
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(titles[k], fontsize=9)
        inset = axis.inset_axes([0.03, 0.04, 0.25, 0.36])
        inset.imshow(images[k], cmap="gray_r", interpolation="nearest")
        inset.set_xticks([])
        inset.set_yticks([])
    for axis in axes[:, 0]:
        axis.set_ylabel("p")
    for axis in axes[-1]:
        axis.set_xlabel("sigma")
    axes.flat[0].legend(fontsize=7, loc="upper right")
    figure.suptitle("Digits: one Jacobian serves the whole curve of the Taylor estimator")
    figure.savefig(path)


def time_error(
    estimators: dict[float, dict[str, tuple[float, float]]],
    mc: dict[float, list[tuple[float, float]]],
    floor: dict[float, float],
    path: Path,
) -> None:
    """Mean absolute error against seconds per input, one panel per sigma.

    ``estimators[sigma][name]`` and the points of ``mc[sigma]`` are (seconds, error); ``floor`` is
    the reference's own mean absolute error.
    """
    figure = _figure(4 * len(estimators) + 2.7, 4.2)
    axes = figure.subplots(1, len(estimators), sharex=True, sharey=True, squeeze=False)[0]
    markers = "osD^vP*X"
    if max(map(len, estimators.values())) > len(markers):
        raise ValueError(
            f"time_error: estimators must be at most {len(markers)} for distinct markers, "
            f"got {max(map(len, estimators.values()))}"
        )
    for axis, (sigma, points) in zip(axes, estimators.items(), strict=True):
        line = np.array(mc[sigma])
        axis.loglog(line[:, 0], line[:, 1], "k.-", lw=1, label="Monte Carlo")
        series = zip(markers, COLOURS, points.items(), strict=False)
        for marker, colour, (name, (seconds, error)) in series:
            axis.loglog([seconds], [error], marker, color=colour, ms=7, label=name)
        axis.axhline(floor[sigma], color="0.6", lw=1, ls="--", label="noise of the reference")
        axis.set_title(f"sigma {sigma:g}", fontsize=10)
        axis.set_xlabel("seconds per input and sigma, from one call")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("mean |error| against Monte Carlo")
    # outside: inside, it would cover points
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    figure.suptitle("Digits: time and error; Monte Carlo at 10, 100, 1,000 draws is the line")
    figure.savefig(path)


def photographs(crops: np.ndarray, captions: list[str], path: Path) -> None:
    """The photographs as the network sees them ``[N, H, W, 3]``, a caption under each."""
    columns = min(4, len(crops))
    rows = -(-len(crops) // columns)
    # In inches, by hand: automatic layouts cut the lower lines of captions this long.
    side, gap, edge, head, line = 3.3, 0.15, 0.15, 0.45, 0.13
    below = line * max(caption.count("\n") + 1 for caption in captions) + 2 * gap
    width = 2 * edge + columns * side + (columns - 1) * gap
    height = head + rows * (side + below) + edge
    figure = _figure(width, height, layout=None)
    for k, (crop, caption) in enumerate(zip(crops, captions, strict=True)):
        row, column = divmod(k, columns)
        left = edge + column * (side + gap)
        bottom = height - head - side - row * (side + below)
        axis = figure.add_axes([left / width, bottom / height, side / width, side / height])
        axis.imshow(crop)
        axis.set_axis_off()
        figure.text(
            left / width,
            (bottom - gap / 2) / height,
            caption,
            fontsize=7.5,
            family="monospace",
            linespacing=1.2,
            va="top",
        )
    title = "EfficientNet-Lite0, 1,000 classes: probability that noise keeps the top label"
    figure.suptitle(
        title if columns > 2 else title.replace(": ", ":\n"),
        y=1 - 0.5 * head / height,
        va="center",
        fontsize=12 if columns > 2 else 9,
    )
    figure.savefig(path)
