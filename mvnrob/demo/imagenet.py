"""Part (b): EfficientNet-Lite0, 1,000 classes, on photographs; beside Monte Carlo."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._extras import require
from ..models.efficientnet_lite import EfficientNetLite0, imagenet_names, load_efficientnet_lite0
from ..models.photos import Photo, as_batch, load_photos
from ..printed import probability, with_error
from ..robustness import robustness
from . import figures
from .output import say, write_csv, write_json

#: Noisy copies per photograph and sigma, for Monte Carlo and for logit_moments.
MC_COPIES, MOMENT_COPIES = 100, 60
#: As few as the time budget may leave of them: below, an interval says next to nothing.
MIN_COPIES = 20
ABS_TOL = 1e-3
#: Budget for Jacobian rows, covariances and autograd's graph: half of it holds all 1,000 rows of
#: one photograph (0.6 MB each).
MAX_BYTES = 5 * 2**28
#: Seconds for part (b): taylor of all photographs comes first, then logit_moments, then Monte Carlo.
#: Where the rest would not suffice for all rows of a Jacobian, taylor leaves out every sigma but the
#: smallest, where a few rows decide; the other two draw fewer copies, but ``MIN_COPIES``.
BUDGET = 480.0
#: A gap to Monte Carlo's interval beyond which an estimate is marked as off.
CLOSE = 0.02
METHODS = ("taylor", "logit_moments", "mc")
#: One seed each: with shared draws logit_moments and mc would agree too well.
SEEDS = {method: number for number, method in enumerate(METHODS)}
CAPTION_WIDTH = 50
FIELDS = ("prob", "error", "lower", "upper", "runner_up", "n_screened")
RIVALS = EfficientNetLite0.num_classes - 1


def run(
    out: Path,
    sigmas: list[float],
    console,
    progress,
    *,
    names: list[str] | None = None,
    mc_copies: int = MC_COPIES,
    moment_copies: int = MOMENT_COPIES,
    budget: float = BUDGET,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs part (b) on the named photographs (all by default); writes into ``out``."""
    start = time.perf_counter()
    photos = load_photos(names)
    task = progress.add_task("photographs: network", total=1 + len(METHODS) * len(photos))
    labels = imagenet_names()
    model = load_efficientnet_lite0()
    batch = as_batch(photos, EfficientNetLite0.input_size)
    all_rows = RIVALS * seconds_per_row(model, batch[:1])
    copy = seconds_per_copy(model, batch[:1])
    with torch.no_grad():
        logits = torch.cat([model(x) for x in batch.split(1)])
    progress.advance(task)
    wanted = {"logit_moments": moment_copies, "mc": mc_copies}
    pending = len(photos) * len(sigmas) * sum(wanted.values())
    found = {photo.name: {} for photo in photos}
    for method in METHODS:
        for photo, x in zip(photos, batch.split(1), strict=True):
            progress.update(task, description=f"photographs: {method}, {photo.name}")
            left = budget - (time.perf_counter() - start)
            if method == "taylor":
                levels, copies = sorted(sigmas) if all_rows < left else sorted(sigmas)[:1], None
            else:
                levels, copies = sigmas, affordable(wanted[method], pending * copy, left)
                pending -= len(sigmas) * wanted[method]
            values = evaluate_photo(
                model, x, sigmas, method, levels=levels, copies=copies, seed=seed
            )
            if method != "taylor":  # other programs come and go: what a copy cost just now
                copy = values["seconds"]["network"] / values["passes"]["forward"]
            found[photo.name][method] = values
            say(console, _progress_line(photo.name, method, values, sigmas, wanted.get(method)))
            progress.advance(task)
    records = [
        _record(photo, row, labels, found[photo.name])
        for photo, row in zip(photos, logits, strict=True)
    ]
    progress.update(task, description="photographs: done")
    crops = batch.permute(0, 2, 3, 1).numpy()
    figures.photographs(crops, [_caption(r, sigmas) for r in records], out / "photographs.png")
    seconds = {r["photo"]: {m: f.pop("seconds") for m, f in r["methods"].items()} for r in records}
    summary = {
        "sigmas": sigmas,
        "abs_tol": ABS_TOL,
        "copies": wanted,  # asked for; each photograph's methods say what was drawn
        "max_bytes": MAX_BYTES,
        "photographs": records,
    }
    write_json(out / "photographs.json", summary)
    write_csv(out / "photographs.csv", _rows(records, sigmas))
    _print_estimates(console, summary)
    _print_agreement(console, summary)
    _print_costs(console, records, seconds)
    return {"summary": summary, "seconds": seconds}


def seconds_per_row(model: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Wall time of one backward pass on this machine, from a few after a warm-up."""
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    for repeat in range(8):
        if repeat == 3:
            start = time.perf_counter()
        torch.autograd.grad(logits[0, repeat], leaf, retain_graph=True)
    return (time.perf_counter() - start) / 5


def seconds_per_copy(model: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Wall time of one noisy copy's forward pass, from a batch of eight after a warm-up."""
    copies = x.expand(8, *x.shape[1:]).contiguous()
    with torch.no_grad():
        model(copies)
        start = time.perf_counter()
        model(copies)
    return (time.perf_counter() - start) / 8


def affordable(wanted: int, needed: float, left: float) -> int:
    """Copies to draw when all that are still wanted need ``needed`` of ``left`` seconds.

    Even, for pairs; at least ``MIN_COPIES``, never more than wanted.
    """
    if needed <= left:
        return wanted
    return min(wanted, max(MIN_COPIES, int(wanted * max(left, 0.0) / needed) // 2 * 2))


def evaluate_photo(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    sigmas: list[float],
    method: str,
    *,
    levels: list[float],
    copies: int | None,
    seed: int,
) -> dict[str, Any]:
    """One method at one input ``[1, ...]``: a value per sigma (None outside ``levels``), costs."""
    options = {
        "taylor": {"abs_tol": ABS_TOL},
        "logit_moments": {"abs_tol": ABS_TOL, "n_samples": copies},
        "mc": {"n_samples": copies},
    }
    result = robustness(
        model,
        x,
        levels,
        method=method,
        bounds=EfficientNetLite0.bounds,
        max_bytes=MAX_BYTES,
        seed=seed + SEEDS[method],
        **options[method],
    )
    found = {}
    for name in FIELDS:
        values = dict(zip(levels, getattr(result, name)[:, 0].tolist(), strict=True))
        found[name] = [values.get(sigma) for sigma in sigmas]
    passes = ("forward", "jvp", "vjp")
    found["passes"] = {name: int(getattr(result.cost, name)[0]) for name in passes}
    found["copies"] = copies
    found["seconds"] = {
        "network": result.cost.seconds_network,
        "cdf": result.cost.seconds_cdf,
    }
    return found


def _progress_line(
    photo: str, method: str, found: dict[str, Any], sigmas: list[float], wanted: int | None
) -> str:
    probs = ", ".join(
        probability(p, error) or "-" for p, error in zip(found["prob"], found["error"], strict=True)
    )
    line = f"photographs: {photo}, {method}: p {probs} at sigma {', '.join(map(str, sigmas))}; "
    if wanted is not None:
        line += f"{found['copies']} copies per sigma"
        line += f" (time budget: not {wanted}); " if found["copies"] < wanted else "; "
    elif None in found["prob"]:
        line += "time budget: smallest sigma only; "
    return line + f"{sum(found['seconds'].values()):.1f} seconds"


def distance(found: dict[str, Any], s: int, mc: dict[str, Any]) -> float | None:
    """Of an estimate from Monte Carlo's interval: 0 inside, None without an estimate."""
    prob = found["prob"][s]
    return None if prob is None else max(mc["lower"][s] - prob, prob - mc["upper"][s], 0.0)


def runner_up(record: dict[str, Any], s: int) -> tuple[str, str]:
    """The class that noise most probably leads to, by taylor; where it has none, logit_moments."""
    for method in METHODS[:2]:
        label = record["runner_up_label"][method][s]
        if label is not None:
            return label, method
    raise ValueError(f"runner_up: record must have one at sigma number {s}, got none")


def _record(photo: Photo, logits: Tensor, labels: list[str], found) -> dict[str, Any]:
    top = logits.topk(2)
    return {
        "photo": photo.name,
        "source": photo.source,
        "class": int(top.indices[0]),
        "label": labels[int(top.indices[0])],
        "margin": float(top.values[0] - top.values[1]),
        "runner_up_label": {
            method: [None if c is None else labels[c] for c in values["runner_up"]]
            for method, values in found.items()
        },
        "methods": found,
    }


def _named(label: str, method: str) -> str:
    return label if method == "taylor" else f"{label} ({method})"


def _caption(record: dict[str, Any], sigmas: list[float]) -> str:
    methods = record["methods"]
    lines = [
        f"{record['photo']}: {record['label']}",
        "sigma  taylor       moments      Monte Carlo",
    ]
    for s, sigma in enumerate(sigmas):
        mc = methods["mc"]
        found = [methods[m] for m in METHODS[:2]]
        cells = [probability(of["prob"][s], of["error"][s]) or "-" for of in found]
        interval = f"[{mc['lower'][s]:.2f}, {mc['upper'][s]:.2f}]"
        lines.append(f"{sigma:<6g} {cells[0]:<12} {cells[1]:<12} {mc['prob'][s]:.3f} {interval}")
    rivals: dict[str, str] = {}  # as a rule the same at every sigma; each is said once
    for s in range(len(sigmas)):
        label, method = runner_up(record, s)
        rivals.setdefault(label, _named(label, method))
    lines += textwrap.wrap(f"runner-up: {'; '.join(rivals.values())}", CAPTION_WIDTH)
    return "\n".join(lines)


def _rows(records: list[dict[str, Any]], sigmas: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "photo": record["photo"],
            "class": record["class"],
            "label": record["label"],
            "margin": record["margin"],
            "sigma": sigma,
            "method": method,
            **{key: found[key][s] for key in FIELDS},
            "runner_up_label": record["runner_up_label"][method][s],
            **found["passes"],
            "copies": found["copies"],
        }
        for record in records
        for s, sigma in enumerate(sigmas)
        for method, found in record["methods"].items()
    ]


def _table(title: str):
    return require("rich.table", "rich", "demo").Table(title=title, title_justify="left")


def _print_estimates(console, summary: dict[str, Any]) -> None:
    sigmas = summary["sigmas"]
    table = _table("Photographs: probability that noise keeps the top label, of 1,000")
    table.add_column("photograph\n  top label")
    table.add_column("sigma", justify="right")
    table.add_column("taylor\np ± error", justify="right")
    table.add_column("logit_moments\np ± error", justify="right")
    table.add_column("Monte Carlo\np [99 % interval]", justify="right")
    table.add_column("runner-up\n(taylor's)", max_width=24)
    table.add_column(f"rivals kept\nof {RIVALS}", justify="right")
    for record in summary["photographs"]:
        methods = record["methods"]
        taylor, mc = methods["taylor"], methods["mc"]
        for s, sigma in enumerate(sigmas):
            cells = []
            for method in METHODS[:2]:
                found = methods[method]
                text = "time budget"
                if found["prob"][s] is not None:
                    text = with_error(found["prob"][s], found["error"][s])
                    off = distance(found, s, mc) > CLOSE
                    text = f"[yellow]{text} *[/yellow]" if off else f"{text}  "
                cells.append(text)
            screened = taylor["n_screened"][s]
            table.add_row(
                f"{record['photo']}\n  {record['label']}" if s == 0 else "",
                f"{sigma:g}",
                *cells,
                f"{mc['prob'][s]:.3f} \\[{mc['lower'][s]:.3f}, {mc['upper'][s]:.3f}]",
                _named(*runner_up(record, s)),
                "-" if screened is None else str(RIVALS - screened),
                end_section=s == len(sigmas) - 1,
            )
    console.print()
    console.print(table)


def _copies(summary: dict[str, Any], method: str) -> str:
    """How many were drawn, and for which photographs the time budget left fewer than asked for."""
    wanted = summary["copies"][method]
    drawn = {r["photo"]: r["methods"][method]["copies"] for r in summary["photographs"]}
    text = f"{method} drew {wanted} copies per sigma"
    fewer = [f"{photo} {count}" for photo, count in drawn.items() if count < wanted]
    return text + (f"; for lack of time fewer: {', '.join(fewer)}." if fewer else ".")


def _print_agreement(console, summary: dict[str, Any]) -> None:
    """Says in words where each method follows the real network, and where it does not."""
    limits = [r["methods"]["mc"] for r in summary["photographs"]]
    widest = max(
        (high - low) / 2
        for mc in limits
        for low, high in zip(mc["lower"], mc["upper"], strict=True)
    )
    text = (
        f"* off Monte Carlo's interval by more than {CLOSE}. The error of taylor is that of the "
        "integral and of the classes screened out: it does not cover the linearisation. That of "
        "logit_moments is of the integral and of its copies' sampling, not of the normal law. Monte "
        "Carlo counts what the real network does, with intervals of half-widths up to "
        f"{widest:.2f}: gaps smaller than that can hide in them."
    )
    lines = [text, *(_copies(summary, method) for method in METHODS[1:])]
    records = summary["photographs"]
    for method in METHODS[:2]:
        for s, sigma in enumerate(summary["sigmas"]):
            gaps = {
                r["photo"]: distance(r["methods"][method], s, r["methods"]["mc"]) for r in records
            }
            gaps = {photo: gap for photo, gap in gaps.items() if gap is not None}
            if not gaps:
                lines.append(f"{method}, sigma {sigma:g}: left out for lack of time.")
                continue
            off = [photo for photo, gap in gaps.items() if gap > CLOSE]
            text = (
                f"{method}, sigma {sigma:g}: follows the network on "
                f"{len(gaps) - len(off)} of {len(gaps)}"
            )
            if off:
                text += f"; off by up to {max(gaps.values()):.2f} on {', '.join(off)}"
            lines.append(text + ".")
    console.print("\n".join(lines) + "\n", highlight=False)


def _print_costs(console, records: list[dict[str, Any]], seconds: dict[str, Any]) -> None:
    table = _table("What it cost, all sigmas together; seconds of single calls")
    table.add_column("photograph")
    for method in METHODS:
        table.add_column(f"{method}: passes\nforward + jvp + vjp", justify="right")
        table.add_column("seconds:\nnetwork + CDF", justify="right")
    for record in records:
        cells = []
        for method in METHODS:
            passes, spent = record["methods"][method]["passes"], seconds[record["photo"]][method]
            cells.append(f"{passes['forward']} + {passes['jvp']} + {passes['vjp']}")
            cells.append(f"{spent['network']:.1f} + {spent['cdf']:.2f}")
        table.add_row(record["photo"], *cells)
    console.print(table)
