"""Part (a): every estimator on scikit-learn's digits, against Monte Carlo with intervals."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._extras import require
from ..models.digits import load_digits_classifier
from ..robustness import robustness
from . import figures
from .output import say, write_csv, write_json

DRAWS = 10_000
#: For the sigma curves, of eight inputs.
CURVE_DRAWS = 2000
#: Monte Carlo at equal cost to the estimators: the baseline that they have to beat.
SMALL_DRAWS = (10, 100, 1000)

ESTIMATORS: dict[str, dict[str, Any]] = {
    "taylor": {"method": "taylor"},
    "mmse, 10 copies in pairs": {"method": "mmse", "n_samples": 10},
    "mmse, 10 copies iid (as published)": {"method": "mmse", "n_samples": 10, "sampling": "iid"},
    "taylor_mvs, slope 1 (as published)": {"method": "taylor_mvs", "slope": 1.0},
    "taylor_mvs, calibrated slope": {"method": "taylor_mvs", "slope": "calibrated"},
    "mmse_mvs, 10 copies in pairs": {"method": "mmse_mvs", "n_samples": 10},
    "softmax": {"method": "softmax"},
    "logit_moments, 50 copies": {"method": "logit_moments", "n_samples": 50},
}


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation coefficient; NaN where one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


def evaluate(model, x, sigmas: list[float], options: dict[str, Any]) -> dict[str, Any]:
    """One estimator on all inputs and sigmas: results ``[S, B]``, passes per input, seconds."""
    start = time.perf_counter()
    result = robustness(model, x, list(sigmas), **options)
    seconds = time.perf_counter() - start
    fields = ("prob", "error", "lower", "upper", "runner_up")
    found = {name: getattr(result, name).cpu().numpy() for name in fields}
    passes = ("forward", "jvp", "vjp")
    found |= {name: getattr(result.cost, name).double().mean().item() for name in passes}
    return found | {"target": result.target.cpu().numpy(), "seconds": seconds}


def compare(found: dict[str, Any], reference: dict[str, Any]) -> dict[str, list[float]]:
    """Agreement with the reference for each sigma."""
    gap = np.abs(found["prob"] - reference["prob"])
    inside = (found["prob"] >= reference["lower"]) & (found["prob"] <= reference["upper"])
    return {
        "mean_abs_error": gap.mean(1).tolist(),
        "max_abs_error": gap.max(1).tolist(),
        "pearson": [pearson(p, q) for p, q in zip(found["prob"], reference["prob"], strict=True)],
        "share_inside_interval": inside.mean(1).tolist(),
    }


def reference_noise(prob: np.ndarray, draws: int) -> np.ndarray:
    """Mean |error| of Monte Carlo itself, ``[S]``: sqrt(2/pi) standard deviations, on average."""
    return np.sqrt(2 / np.pi * prob * (1 - prob) / draws).mean(1)


def run(
    out: Path,
    sigmas: list[float],
    console,
    progress,
    *,
    inputs: int | None = None,
    draws: int = DRAWS,
    small_draws: tuple[int, ...] = SMALL_DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs part (a) on the first ``inputs`` test digits (all by default); writes into ``out``."""
    task = progress.add_task("digits: classifier", total=2 + len(ESTIMATORS) + len(small_draws) + 1)
    model, x, label = load_digits_classifier()
    x, label = x[:inputs], label[:inputs]
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == label).double().mean().item()
    progress.update(task, advance=1, description=f"digits: Monte Carlo, {draws:,} draws")
    reference = evaluate(model, x, sigmas, {"method": "mc", "n_samples": draws, "seed": seed})
    progress.advance(task)
    say(console, f"digits: Monte Carlo, {draws:,} draws: {reference['seconds']:.2f} seconds")
    found, agreement = {}, {}
    runs = dict(ESTIMATORS)
    for count in small_draws:
        runs[f"mc, {count:,} draws"] = {"method": "mc", "n_samples": count}
    for name, options in runs.items():
        progress.update(task, description=f"digits: {name}")
        # another seed than the reference's: shared draws would make the two agree
        found[name] = evaluate(model, x, sigmas, {**options, "seed": seed + 1})
        agreement[name] = compare(found[name], reference)
        progress.advance(task)
        say(console, f"digits: {name}: {found[name]['seconds']:.2f} seconds")
    progress.update(task, description="digits: sigma curves")
    few = min(draws, CURVE_DRAWS)
    curves = _curves(model, x, label, reference, few, seed, out / "digits_sigma.png")
    progress.update(task, advance=1, description="digits: done")
    say(console, f"digits: sigma curves of {len(curves['inputs'])} inputs: done")

    noise = reference_noise(reference["prob"], draws)
    shape = {"inputs": len(x), "accuracy": accuracy, "draws": draws, "sigmas": list(sigmas)}
    summary = {
        **shape,
        "mean_probability": reference["prob"].mean(1),
        "mean_interval": (reference["upper"] - reference["lower"]).mean(1),
        "noise_of_the_reference": noise,
        "estimators": {
            name: {**agreement[name], **_passes(found[name], len(sigmas))} for name in found
        },
        "sigma_curves": curves,
    }
    seconds = {name: found[name]["seconds"] for name in found}
    seconds[f"mc, {draws:,} draws"] = reference["seconds"]
    write_json(out / "digits.json", summary)
    write_csv(out / "digits.csv", _rows(found, reference, label.numpy(), sigmas, draws))
    _figures(out, found, reference, agreement, sigmas, noise, small_draws)
    _table(console, shape, reference, agreement, found, noise)
    return {"summary": summary, "seconds": seconds}


def _passes(found: dict[str, Any], sigmas: int) -> dict[str, float]:
    return {f"{name}_per_input": found[name] for name in ("forward", "jvp", "vjp")}


def _rows(found, reference, label, sigmas, draws) -> list[dict[str, Any]]:
    rows = []
    for name, data in {f"mc, {draws:,} draws (reference)": reference, **found}.items():
        for s, sigma in enumerate(sigmas):
            for i in range(len(label)):
                rows.append(
                    {
                        "index": i,
                        "label": label[i],
                        "target": data["target"][i],
                        "sigma": sigma,
                        "estimator": name,
                        **{
                            key: data[key][s, i]
                            for key in ("prob", "error", "lower", "upper", "runner_up")
                        },
                    }
                )
    return rows


def curve_title(index: int, label: int, prediction: int) -> str:
    """The curve is the prediction's; the label says whether the prediction is right."""
    if label == prediction:
        return f"input {index}: digit {label} (label = prediction)"
    return f"input {index}: digit {prediction} (prediction; label: digit {label})"


def _curves(model, x, label, reference, draws, seed, path: Path) -> dict[str, Any]:
    """Curves of eight inputs, from the least robust to the most, at the reference's largest sigma."""
    order = reference["prob"][-1].argsort(kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(8, len(order))).round().astype(int)]
    inputs = x[torch.from_numpy(chosen)]
    fine = np.linspace(0.02, 0.8, 40).tolist()
    coarse = np.linspace(0.05, 0.8, 16).round(2).tolist()
    taylor = evaluate(model, inputs, fine, {"method": "taylor"})
    mmse = evaluate(model, inputs, coarse, {"method": "mmse", "n_samples": 10, "seed": seed + 1})
    mc = evaluate(model, inputs, coarse, {"method": "mc", "n_samples": draws, "seed": seed})
    titles = [
        curve_title(i, int(label[i]), int(t)) for i, t in zip(chosen, taylor["target"], strict=True)
    ]
    figures.sigma_curves(
        inputs.reshape(len(inputs), 8, 8).numpy(),
        titles,
        {"taylor": (np.array(fine), taylor["prob"]), "mmse": (np.array(coarse), mmse["prob"])},
        {"sigma": np.array(coarse), **{key: mc[key] for key in ("prob", "lower", "upper")}},
        path,
    )
    return {
        "inputs": chosen,
        "taylor_sigma": fine,
        "taylor": taylor["prob"],
        "sigma": coarse,
        "mmse": mmse["prob"],
        "mc": mc["prob"],
        "mc_lower": mc["lower"],
        "mc_upper": mc["upper"],
    }


def _figures(out, found, reference, agreement, sigmas, noise, small_draws) -> None:
    panels = {
        name: {
            sigma: {
                "prob": found[name]["prob"][s],
                "mc": reference["prob"][s],
                "lower": reference["lower"][s],
                "upper": reference["upper"][s],
            }
            for s, sigma in enumerate(sigmas)
        }
        for name in ESTIMATORS
    }
    figures.scatter(panels, out / "digits_scatter.png")
    share = len(reference["prob"][0]) * len(sigmas)  # calls serve all inputs and sigmas at once

    def point(name: str, s: int) -> tuple[float, float]:
        return found[name]["seconds"] / share, agreement[name]["mean_abs_error"][s]

    figures.time_error(
        {sigma: {n: point(n, s) for n in ESTIMATORS} for s, sigma in enumerate(sigmas)},
        {
            sigma: [point(f"mc, {count:,} draws", s) for count in small_draws]
            for s, sigma in enumerate(sigmas)
        },
        {sigma: float(noise[s]) for s, sigma in enumerate(sigmas)},
        out / "digits_time_error.png",
    )


def _table(console, shape, reference, agreement, found, noise) -> None:
    sigmas = shape["sigmas"]
    mean = ", ".join(f"{p:.3f}" for p in reference["prob"].mean(1))
    half = ", ".join(f"{w:.4f}" for w in (reference["upper"] - reference["lower"]).mean(1) / 2)
    floor = ", ".join(f"{e:.4f}" for e in noise)
    names = ", ".join(f"{sigma:g}" for sigma in sigmas)
    console.print(
        f"\nDigits: {shape['inputs']} test inputs, accuracy {shape['accuracy']:.3f}. "
        f"At sigma {names}, Monte Carlo with {shape['draws']:,} draws gives mean p {mean}, "
        f"99 % intervals of mean half-width {half}, and has itself a mean |error| of {floor}.",
        highlight=False,
    )
    table = require("rich.table", "rich", "demo").Table(
        title="Against Monte Carlo, one column per sigma: mean |error| and Pearson's r",
        title_justify="left",
    )
    table.add_column("estimator", no_wrap=True)
    for heading in ("error", "r"):
        for sigma in sigmas:
            table.add_column(f"{heading}\n{sigma:g}", justify="right")
    for heading in ("passes:\nforward", "\njvp", "\nvjp", "seconds,\none call"):
        table.add_column(heading, justify="right")
    for name, data in found.items():
        table.add_row(
            name,
            *(f"{value:.4f}" for value in agreement[name]["mean_abs_error"]),
            *(f"{value:.3f}" for value in agreement[name]["pearson"]),
            *(f"{data[key]:.0f}" for key in ("forward", "jvp", "vjp")),
            f"{data['seconds']:.2f}",
        )
    console.print(table)
    console.print(
        "Seconds are those of single calls for all inputs and sigmas together, first use included: "
        "no repeats, so expect other values in another run.",
        highlight=False,
    )
