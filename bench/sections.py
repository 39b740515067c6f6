"""What the page of bench/page.py says of each result: words, tables, a figure.

A section has the name of its file in bench/results/, a title, a few sentences, `tables(rows)`, which
yields (caption, columns, rows), and `draw(rows, pyplot)`, which returns a figure, or None. Sections of
a GPU's results are in bench/cuda_sections.py.
"""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple


class Section(NamedTuple):
    name: str
    title: str
    words: str
    tables: Callable
    draw: Callable | None = None
    gpu: bool = False  # of a GPU alone: a result of a CPU is refused


def same(*names):
    """Columns headed by their keys."""
    return [(name, name) for name in names]


def by(rows, name):
    return lambda value: [row for row in rows if row.get(name) == value]


# A method has one colour and one marker in every panel of every figure that shows it.
INTEGRATORS = {
    "mvn_cdf": ("C0", "o"), "scipy": ("C1", "s"), "mvtnorm": ("C2", "D"), "mvnxpb": ("C3", "P"),
    "crude": ("C4", "^"), "TruncatedNormal": ("C5", "v"),
}  # fmt: skip
CONVERGENCE = {
    "lattice, mvn_cdf's order": INTEGRATORS["mvn_cdf"], "SciPy": INTEGRATORS["scipy"],
    "indicator, independent draws": INTEGRATORS["crude"], "lattice, order given": ("C6", "<"),
    "independent points, mvn_cdf's order": ("C7", ">"),
}  # fmt: skip
ESTIMATORS = {
    "softmax": ("C7", "X"), "taylor": ("C1", "s"), "taylor_mvs, slope 1": ("C2", "v"),
    "taylor_mvs, calibrated": ("C8", "^"), "mmse": ("C3", "o"), "mmse iid": ("C4", "P"),
    "mmse_mvs": ("C5", "*"), "logit_moments": ("C0", "D"),
}  # fmt: skip


def panels(pyplot, count, **options):
    figure, axes = pyplot.subplots(1, count, figsize=(4.4 * count, 3.6), squeeze=False, **options)
    return figure, axes[0]


def one_legend(figure, columns):
    """Of all panels, below them: inside one it would cover curves, and not stand for the others."""
    named = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(named.values(), named, loc="outside lower center", ncols=columns, fontsize=8)


def mvn_cdf_tables(rows):
    part = by(rows, "table")
    yield (
        "Milliseconds per problem at equal true rms error, beside SciPy and crude Monte Carlo:",
        [("n", "n"), ("problems", "group"), ("rms goal", "rms_goal"), ("rms", "rms"),
         ("abs_tol", "abs_tol"), ("mvn_cdf, ms", "reached_ms"), ("SciPy, ms", "scipy_ms"),
         ("how", "scipy_how"), ("SciPy / ours", "scipy/ours"), ("crude / ours", "crude/ours")],
        part("goal"),
    )  # fmt: skip
    yield (
        "With a 99 % error asked for:",
        [("n", "n"), ("problems", "group"), ("abs_tol", "abs_tol"), ("ms", "ms"), ("ms, least",
         "ms_min"), ("ms, most", "ms_max"), ("rms", "rms"), ("beyond its error", "beyond_error"),
         ("within max_points", "converged"), ("points", "points_mean")],
        part("tolerance"),
    )  # fmt: skip


def draw_mvn_cdf(rows, pyplot):
    part = by(rows, "table")
    goals = part("goal")
    sizes = list(dict.fromkeys(row["n"] for row in goals))
    figure, axes = panels(pyplot, len(sizes))
    for axis, n in zip(axes, sizes, strict=True):
        for group in dict.fromkeys(row["group"] for row in goals if row["n"] == n):
            mine = [r for r in goals if (r["n"], r["group"]) == (n, group) and "reached_ms" in r]
            for key, x, label, method in (
                ("reached_ms", "rms", "mvn_cdf", "mvn_cdf"),
                ("scipy_ms", "rms_goal", "SciPy", "scipy"),
                ("crude_ms", "rms_goal", "crude Monte Carlo", "crude"),
            ):
                curve = [r for r in mine if key in r]
                colour, marker = INTEGRATORS[method]
                few = group == "few"
                axis.loglog([r[x] for r in curve], [r[key] for r in curve], "--" if few else "-",
                            color=colour, marker=marker, fillstyle="none" if few else "full",
                            label=f"{label}, {group}")  # fmt: skip
        axis.set(title=f"n = {n}", xlabel="true rms error", ylabel="ms per problem")
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    one_legend(figure, 3)
    return figure


PEERS = ("scipy", "mvtnorm", "TruncatedNormal", "mvnxpb", "crude")


def least_ratio(rows, method):
    """A peer's best of some rows: ratio and setting, or why there is none.

    A row of fewer than four answers has an rms error by name only, and counts where there is no other.
    """
    mine = [r for r in rows if r["method"] == method]
    rated = [r for r in mine if "ratio" in r]
    sound = [r for r in rated if r["answers"] >= 4 or method == "mvnxpb"] or rated
    best = min(sound, key=lambda r: r["ratio"], default=None)
    if best is None:
        return next((r["word"] for r in mine if r["word"]), None)
    at = "" if method == "mvnxpb" else f" at {best['setting']}"
    return f"{'**behind** ' * (best['ratio'] < 1)}{best['ratio']:.3g}{at}"


def peers_tables(rows):
    methods = [m for m in PEERS if any(r["method"] == m for r in rows)]
    none = {(r["n"], r["method"]): r["word"] for r in rows if r["kind"] == "all"}

    def groups(chosen, keys):
        out = {}
        for row in chosen:
            out.setdefault(tuple(row[key] for key in keys), []).append(row)
        for values, group in out.items():
            line = dict(zip(keys, values, strict=True))
            own = next((r for r in group if r["method"] == "mvn_cdf" and r["setting"] == 1e-3), {})
            cells = {m: least_ratio(group, m) or none.get((line["n"], m)) for m in methods}
            yield line | {"ms": own.get("ms"), "rms": own.get("rms")} | cells

    whole = [r for r in rows if r["p"] == "all" and r["kind"] != "all"]
    yield (
        "A peer's least ratio and its setting (where it gave four answers or more, if it did anywhere), "
        + "over the bands of p that it answered. Beside it mvn_cdf with a 99 % error of 1e-3 asked for:",
        [("n", "n"), ("problems", "kind"), ("ms", "ms"), ("rms", "rms"), *same(*methods)],
        list(groups(whole, ("n", "kind"))),
    )  # fmt: skip
    bands = sorted((r for r in rows if r["p"] != "all"), key=lambda r: (r["n"], float(r["p"])))
    yield (
        "The same by p, the least over all kinds of problems:",
        [("n", "n"), ("p near", "p"), *same(*methods)],
        list(groups(bands, ("n", "p"))),
    )
    behind = [r for r in rows if r.get("ratio", 1) < 1]
    yield (
        "Every row in which a peer is ahead:",
        [("n", "n"), ("problems", "kind"), ("p near", "p"), ("method", "method"),
         ("setting", "setting"), ("answers", "answers"), ("ms", "ms"), ("rms", "rms"),
         ("mvn_cdf, ms", "mvn_cdf_ms"), ("ratio", "ratio"), ("", "word")],
        behind,
    )  # fmt: skip


def draw_peers(rows, pyplot):
    sizes = list(dict.fromkeys(r["n"] for r in rows))
    across = min(4, len(sizes))
    down = -(-len(sizes) // across)
    figure, grid = pyplot.subplots(down, across, figsize=(4.0 * across, 3.5 * down), squeeze=False)
    for axis in grid.flat[len(sizes) :]:
        axis.axis("off")
    methods = [m for m in ("mvn_cdf", *PEERS) if any(r["method"] == m for r in rows)]
    for axis, n in zip(grid.flat, sizes, strict=False):
        for method in methods:
            colour, marker = INTEGRATORS[method]
            for kind, style in (("hierarchy, few", "--"), ("hierarchy, flat", "-")):
                curve = [r for r in rows if (r["n"], r["kind"], r["p"], r["method"])
                         == (n, kind, "all", method) and r.get("rms")]  # fmt: skip
                curve = [r for r in curve if r["bands"] == max(c["bands"] for c in curve)]
                axis.loglog([r["ms"] for r in curve], [r["rms"] for r in curve], style, color=colour,
                            marker=marker, markersize=4, fillstyle="none" if style == "--" else "full",
                            label=f"{method}, {kind.split(', ')[1]}")  # fmt: skip
        axis.set(title=f"n = {n}", xlabel="ms per problem", ylabel="true rms error")
        axis.grid(alpha=0.3)
    one_legend(figure, len(methods))
    return figure


def coverage_tables(rows):
    yield (
        "",
        [("input", "dtype"), ("samples", "samples"), ("abs_tol", "abs_tol"), ("rel_tol", "rel_tol"),
         ("branch", "name"), ("rows", "rows"), ("misses", "misses"), ("p-value", "p_value"),
         ("rms made", "rms_made"), ("rms stated", "rms_stated")],
        by(rows, "group")("branch"),
    )  # fmt: skip


def convergence_tables(rows):
    curves = {}
    for row in rows:
        curves.setdefault((row["family"], row["method"]), []).append(row)
    lines = []
    for (family, method), curve in curves.items():
        points, errors = ([math.log(r[key]) for r in curve] for key in ("points", "rms"))
        slope = statistics.linear_regression(points, errors).slope if len(curve) > 1 else None
        lines.append(
            {"family": family, "method": method, "rate": slope,
             "first": curve[0]["points"], "rms_first": curve[0]["rms"],
             "last": curve[-1]["points"], "rms_last": curve[-1]["rms"]}
        )  # fmt: skip
    yield (
        "Exponents by least squares, and the rms error at both ends:",
        same("family", "method", "rate", "first", "rms_first", "last", "rms_last"),
        lines,
    )


def draw_convergence(rows, pyplot):
    families = list(dict.fromkeys(r["family"] for r in rows))
    figure, axes = panels(pyplot, len(families), sharey=True)
    for axis, family in zip(axes, families, strict=True):
        for method in dict.fromkeys(r["method"] for r in rows):
            curve = [r for r in rows if (r["family"], r["method"]) == (family, method)]
            colour, marker = CONVERGENCE[method]
            axis.loglog([r["points"] for r in curve], [r["rms"] for r in curve], "-", color=colour,
                        marker=marker, markersize=4, label=method)  # fmt: skip
        axis.set(title=family, xlabel="points", ylabel="rms error")
        axis.grid(alpha=0.3)
    one_legend(figure, 2)
    return figure


def step_tables(rows):
    names = ("multiply_add", "ndtr_pair", "ndtri_half", "step_upper", "step_interval", "fused_step")
    out = {}
    for row in rows:
        if row["function"] in names:
            line = out.setdefault((row["isa"], row["type"], row["function"]), row)
            if row["ns"] < line["ns"]:
                out[row["isa"], row["type"], row["function"]] = row
    yield (
        "Nanoseconds an element, the best number of packs in flight:",
        [("instruction set", "isa"), ("type", "type"), ("function", "function"),
         ("packs", "packs"), ("ns, median", "ns"), ("ns, least", "least_ns")],
        list(out.values()),
    )  # fmt: skip


def roofline_tables(rows):
    size = lambda r: (
        f"n = {r['n']}" if "n" in r else f"C = {r['C']}, D = {r['D']}" if "C" in r else "a draw"
    )
    yield (
        "",
        [("kernel", "kernel"), ("type", "dtype"), ("size", size), ("operations", "operations"),
         ("bytes", "bytes"), ("measured, ns", "ns"), ("floor, ns", "floor_ns"),
         ("set by", "limit"), ("share of the floor", "share")],
        rows,
    )  # fmt: skip


def draw_roofline(rows, pyplot):
    figure, axes = pyplot.subplots(figsize=(7, 0.26 * len(rows) + 1))
    size = lambda r: f"n={r['n']}" if "n" in r else f"{r['C']}x{r['D']}" if "C" in r else ""
    axes.barh([f"{r['kernel']} {size(r)} {r['dtype']}" for r in rows], [r["share"] for r in rows])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_xlabel("floor over measured time")
    return figure


def jac_cov_tables(rows):
    yield (
        "",
        [*same("op", "C", "D", "B", "dtype"), ("ms", "ms"), ("spread", "spread"), ("rate", "rate"),
         ("", "unit"), ("error", "error"), ("PyTorch, ms", "peer_ms"),
         ("its error", "peer_error"), ("PyTorch / ours", "speedup")],
        rows,
    )  # fmt: skip


def least_most(rows, key):
    """Columns of the least and the most of a time's repeats; earlier results do not have them."""
    if not any(f"{key}_min" in row for row in rows):
        return []
    return [("least", f"{key}_min"), ("most", f"{key}_max")]


def mendell_elston_tables(rows):
    yield (
        "",
        [("n", "n"), ("ms", "ms"), *least_most(rows, "ms"), ("mean error", "error_mean"),
         ("largest", "error_max"), ("backward / value", "backward/value"),
         ("MVNXPB, ms", "mvnxpb_ms"), *least_most(rows, "mvnxpb_ms"),
         ("its mean error", "mvnxpb_mean"), ("its largest", "mvnxpb_max"),
         ("MVNXPB / ours", "mvnxpb_ms/ms")],
        rows,
    )  # fmt: skip


def pivoted_cholesky_tables(rows):
    yield (
        "",
        [*same("n", "kind", "batch", "columns", "method", "rank"), ("ms a matrix", "ms"),
         ("least", "ms_min"), ("most", "ms_max"), ("error", "error"), ("mean variance left", "left"),
         ("time over ours", "ratio")],
        rows,
    )  # fmt: skip


def gradients_tables(rows):
    yield (
        "",
        [("n", "n"), ("abs_tol", "abs_tol"), ("value, ms", "value_ms"), *least_most(rows, "value_ms"),
         ("limits, ms", "limits_ms"), *least_most(rows, "limits_ms"),
         ("over the value", "limits/value"), ("rms error", "limits_rms"),
         ("rms size", "limits_size"), ("with cov, ms", "cov_ms"), *least_most(rows, "cov_ms"),
         ("over the value of these", "cov/value"), ("rms error of cov", "cov_rms"), ("its rms size", "cov_size")],
        [row for row in rows if not row.get("group")],
    )  # fmt: skip
    tails = [row for row in rows if row.get("group")]
    if tails:
        yield (
            ("Digits of log p and of its slopes to the limits, eight rows of an AR(1) chain of correlation "
            ".5, exact by quadrature; a row's worst slope, relative to the largest, beside rel_tol:"),
            [("side", "group"), ("given", "given"), ("n", "n"), ("log p", "log_p"),
             ("rel_tol", "rel_tol"), ("value, ms", "value_ms"), *least_most(tails, "value_ms"),
             ("limits, ms", "limits_ms"), *least_most(tails, "limits_ms"),
             ("over the value", "limits/value"), ("worst, mean", "worst_mean"),
             ("worst of all", "worst_max")],
            tails,
        )  # fmt: skip


def hessians_tables(rows):
    part = by(rows, "what")
    head = [("n", "n"), ("problems", "family"), ("p", "p"), ("function", "function"),
            ("tolerance", "tol"), ("value, ms", "value_ms"), ("gradient, ms", "gradient_ms")]  # fmt: skip
    tail = [
        ("over the value", "second/value"), ("over the gradient", "second/gradient"),
        ("rms error", "rms"), ("largest", "largest"), ("rms size", "size"),
        ("over its bound", "over_bound"), ("SciPy, ms", "scipy_ms"), ("its rms error", "scipy_rms"),
        ("its points", "scipy_points"), ("its step", "scipy_step"), ("which", "scipy_how"),
        ("SciPy / ours", "scipy/ours"),
    ]  # fmt: skip
    spread = [("least", "second_ms_min"), ("most", "second_ms_max")]
    yield (
        "Hessians, by torch.func.hessian; beside the time of one alone that of one of 16 in a call:",
        [*head, ("Hessian, ms", "second_ms"), *spread, ("of 16, ms", "batch_ms"), *tail],
        part("Hessian"),
    )
    yield (
        "Products with a vector that has no zeros, by two backward passes:",
        [*head, ("product, ms", "second_ms"), *spread, *tail],
        part("product"),
    )


def points_tables(rows):
    part = by(rows, "table")
    yield (
        "Milliseconds per problem at equal true rms error:",
        [("n", "n"), ("problems", "group"), ("points", "set"), ("rms goal", "rms_goal"),
         ("abs_tol", "abs_tol"), ("ms", "ms"), ("rms", "rms"), ("points drawn", "points_mean")],
        part("goal"),
    )  # fmt: skip
    yield (
        "At as many points:",
        [("n", "n"), ("problems", "group"), ("points", "set"), ("points drawn", "points"),
         ("ms", "ms"), ("rms", "rms"), ("rms of the stated errors", "rms_reported")],
        [row for row in part("points") if row["group"] == "all"],
    )  # fmt: skip


def bvn_tables(rows):
    yield (
        "",
        [("method", "method"), ("elements of a call", "elements"), ("ns an element", "ns"),
         ("least", "ns_min"), ("most", "ns_max"), ("largest error", "error")],
        rows,
    )  # fmt: skip


def standard_normal_tables(rows):
    yield (
        "",
        [("method", "method"), ("length of a draw", "length"), ("ns a number", "ns"),
         ("least", "ns_min"), ("most", "ns_max")],
        rows,
    )  # fmt: skip


def scaling_tables(rows):
    part = by(rows, "table")
    spread = [("ms", "ms"), ("least", "ms_min"), ("most", "ms_max")]
    mvn = [
        ("rms", "rms"),
        ("points", "points_mean"),
        ("sampled", "pivots_mean"),
        ("peak, MB", "mb"),
    ]
    yield (
        "mvn_cdf, milliseconds a problem against the number of variables:",
        [("n", "n"), ("batch", "batch"), ("abs_tol", "abs_tol"), *spread, ("exponent", "exponent"),
         *mvn],
        part("n"),
    )  # fmt: skip
    yield (
        "with 4,096 points and no more, where the set-up is what costs:",
        [("n", "n"), *spread, ("exponent", "exponent"), *mvn],
        part("large"),
    )
    yield (
        "of one problem against its points, every variable sampled (float32):",
        [("n", "n"), ("points", "points"), *spread, ("exponent", "exponent"),
         ("ns a point", "ns_point"), ("standard error", "stderr")],
        part("points"),
    )  # fmt: skip
    yield (
        "against the rows of a call:",
        [("n", "n"), ("batch", "batch"), *spread, *mvn],
        part("batch"),
    )
    yield (
        "jac_cov (float32) against classes and inputs' size:",
        [("C", "C"), ("D", "D"), ("batch", "batch"), *spread, ("exponent", "exponent"),
         ("peak, MB", "mb")],
        part("jac_cov"),
    )  # fmt: skip
    yield (
        "Wall time against threads:",
        [("n", "n"), ("batch", "batch"), ("threads", "threads"), ("wall ms a problem", "wall_ms"),
         ("most", "wall_ms_max")],
        part("threads"),
    )  # fmt: skip


def draw_scaling(rows, pyplot):
    part = by(rows, "table")
    figure, axes = panels(pyplot, 2)
    for axis, table, key, title in (
        (axes[0], "n", "n", "mvn_cdf against n"),
        (axes[1], "batch", "batch", "mvn_cdf against the batch, n = 9"),
    ):
        axis.loglog([r[key] for r in part(table)], [r["ms"] for r in part(table)], "o-")
        axis.set(title=title, xlabel=key, ylabel="ms per problem")
        axis.grid(alpha=0.3)
    return figure


# Forward passes that `mvnrob selfcheck` counts for a forward-mode product or a backward pass.
FORWARDS = 2


def in_forwards(row):
    """Passes of a row of bench_estimators as `mvnrob selfcheck` counts them."""
    return row["forward"] + FORWARDS * (row["jvp"] + row["vjp"])


def mc_rms_forwards(row):
    """rms error of Monte Carlo with as many."""
    return row["mc_rms"] * math.sqrt(row["passes"] / in_forwards(row))


def choosing_table(rows, task):
    """Columns and rows of docs/choosing.md: a row for each method, its errors by sigma.

    Passes and times are those of the sigma in the middle. Passes are counted twice: alike, and as
    `mvnrob selfcheck` does.
    """
    mine = [row for row in rows if row["task"] == task]
    sigmas = list(dict.fromkeys(row["sigma"] for row in mine))
    middle = sigmas[len(sigmas) // 2]
    name = lambda sigma: f"sigma {sigma:g}".replace("0.", ".")
    columns = [
        ("method", "method"), (f"passes, {name(middle)}", "passes"),
        *((f"rms, {name(sigma)}", sigma) for sigma in sigmas),
        (f"Monte Carlo with as many passes, {name(middle)}", "mc_rms"),
        (f"passes in forwards, {name(middle)}", "forwards"),
        ("Monte Carlo with as many forwards", "mc_rms_forwards"),
        (f"CPU ms, {name(middle)}", "ms"),
    ]  # fmt: skip
    out = {}
    for row in mine:
        line = out.setdefault(row["method"], {"method": row["method"]})
        line[row["sigma"]] = row["rms"]
        if row["sigma"] == middle:
            line |= {key: row[key] for key in ("passes", "mc_rms", "ms")}
            line |= {"forwards": in_forwards(row), "mc_rms_forwards": mc_rms_forwards(row)}
    return columns, list(out.values())


def estimators_tables(rows):
    yield (
        "",
        [("task", "task"), ("sigma", "sigma"), ("method", "method"), ("passes", "passes"),
         ("rms", "rms"), ("bias", "bias"), ("largest", "max"), ("stated, rms", "rms_stated"),
         ("Monte Carlo with as many passes", "mc_rms"), ("in forwards", in_forwards),
         ("Monte Carlo with as many forwards", mc_rms_forwards), ("CPU ms", "ms")],
        rows,
    )  # fmt: skip


def family(method):
    """Of a row's method what ESTIMATORS names: copies are along a curve, options are not."""
    name, _, option = method.partition(", ")
    if option in ("slope 1", "calibrated"):
        return method
    return f"{name} iid" if option.endswith("iid") else name


def draw_estimators(rows, pyplot):
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    most = max(len({r["sigma"] for r in rows if r["task"] == task}) for task in tasks)
    figure, grid = pyplot.subplots(
        len(tasks), most, figsize=(4.6 * most, 3.9 * len(tasks)), squeeze=False
    )
    for line, task in zip(grid, tasks, strict=True):
        sigmas = list(dict.fromkeys(r["sigma"] for r in rows if r["task"] == task))
        for axis in line[len(sigmas) :]:
            axis.axis("off")
        for axis, sigma in zip(line, sigmas, strict=False):
            mine = [r for r in rows if (r["task"], r["sigma"]) == (task, sigma)]
            ends = sorted({r["passes"] for r in mine})
            scale = mine[0]["mc_rms"] * mine[0]["passes"] ** 0.5
            axis.loglog(ends, [scale * n**-0.5 for n in ends], "k:", label="Monte Carlo, expected")
            for name, (colour, marker) in ESTIMATORS.items():
                # No error below the reference's own noise can be told.
                curve = [(r["passes"], max(r["rms"], r["rms_reference"] / 3))
                         for r in mine if family(r["method"]) == name]  # fmt: skip
                if curve:
                    axis.loglog(*zip(*curve, strict=True), "-", color=colour, marker=marker,
                                markersize=5, label=name)  # fmt: skip
            axis.axhline(mine[0]["rms_reference"] / 3, color="grey", linewidth=0.6)
            axis.set(
                title=f"{task}, sigma {sigma:g}", xlabel="passes per input", ylabel="rms error"
            )
            axis.grid(alpha=0.3)
    one_legend(figure, 5)
    return figure


def evaluate_tables(rows):
    band = lambda r: f"{r['p_from']:g} to {r['p_to']:g}" if "p_from" in r else "all, with files"
    yield (
        "",
        [("task", "task"), ("method", "method"), ("sigma", "sigma"), ("p", band),
         ("images", "images"), ("ms an image", "ms"), ("least", "ms_min"), ("most", "ms_max"),
         ("forward", "forward"), ("jvp", "jvp"), ("backward", "vjp"), ("mean 99 % error",
         "error_mean")],
        rows,
    )  # fmt: skip


def forward_mode_tables(rows):
    yield (
        "",
        [*same("network", "side", "directions"), ("a forward pass, ms", "forward_ms"),
         ("torch's rules, ms", "torch_ms"), ("mvnrob, ms", "ms"), ("least", "ms_min"),
         ("most", "ms_max"), ("torch / mvnrob", "ratio"), ("difference", "difference")],
        rows,
    )  # fmt: skip


def half_passes_tables(rows):
    where = lambda r: f"{r['layer'] + 1} of {r['layers']}" if r["rounding"] == "one" else "-"
    yield (
        "",
        [("precision", "precision"), ("rounding", "rounding"), ("convolution", where),
         ("median", "median"), ("most", "most"), ("share above the bound", "above")],
        rows,
    )  # fmt: skip


def authors_loop_tables(rows):
    yield (
        "",
        [*same("task", "classes", "sigma", "method", "images"), ("ms an image", "ms"),
         ("of it Jacobian", "jacobian_ms"), ("covariance", "covariance_ms"), ("cdf", "cdf_ms"),
         ("abs_tol", "abs_tol"), ("rms", "rms"), ("largest", "largest"), ("truth to", "truth"),
         ("rms to Monte Carlo", "rms_monte_carlo"), ("noise of it", "noise"),
         ("loop / mvnrob", "ratio"), ("error no larger", "reached")],
        rows,
    )  # fmt: skip


def screening_tables(rows):
    yield (
        "",
        same("photo", "level", "sigma", "p_full", "p", "error", "gap", "jvp", "vjp", "kept",
             "cpu_s", "full_cpu_s"),
        rows,
    )  # fmt: skip


def low_rank_tables(rows):
    yield (
        "",
        [*same("photo", "level", "sigma", "seeds", "jvp", "vjp", "passes"), ("most", "most_passes"),
         ("beyond its error", "beyond_error"), ("largest gap", "gap"), ("mean error", "error")],
        rows,
    )  # fmt: skip


def large_classes_tables(rows):
    rest = lambda key: lambda row: 1 - row[key]
    yield (
        "",
        [*same("character", "sigma"), ("1 - p", rest("p")), ("error", "error"),
         ("drawn", rest("p_drawn")), ("network, from", rest("network_high")),
         ("to", rest("network_low")), *same("jvp", "vjp", "passes"), ("rivals kept", "kept"),
         ("CPU s", "cpu_s")],
        rows,
    )  # fmt: skip


SECTIONS = (
    Section(
        "mvn_cdf", "mvn_cdf beside SciPy",
        "Classifier-like problems of `bench/classifiers.py`, at n = 999 families with exact answers. A "
        "peer's time at an error that it was not run at is interpolated or extrapolated, as the column "
        "says.", mvn_cdf_tables, draw_mvn_cdf,
    ),
    Section(
        "peers", "Time to error, every peer",
        "SciPy (points, the authors' arguments, its default), R's mvtnorm, BoTorch's MVNXPB and crude "
        "Monte Carlo on the same problems in the same run; R's TruncatedNormal where it is installed. A "
        "ratio is the peer's time over mvn_cdf's at the peer's true rms error; below 1 the row is marked "
        "as behind. Hierarchies have exact answers at every p, the others are classifiers: trained ones, and at "
        "n = 999 EfficientNet-Lite0 on photographs. The peers' rms errors come from as many answers as "
        "their budget lasted for: one answer that happens to be good looks like a small error, and "
        "such rows say how many there were. A dash: no problem of the group was answered within the "
        "budget, or only with errors of zero; `refused`: the peer raised an error on each (singular "
        "covariances, mostly). Rows behind for want of a cheaper setting are problems that "
        "the fewest points of mvn_cdf, with its set-up, already answer better than asked. "
        "In the figure a point stands for all bands of p that its method reached most of. To run it again: "
        "`apt install r-cran-mvtnorm` brings R's mvtnorm, `pip install botorch` BoTorch; "
        "`python -m bench screening --cache build/photos_cache` fills, in about ten minutes, the folder of "
        "the photographs' covariances that `--cache` names. The runs take about an hour.",
        peers_tables, draw_peers,
    ),
    Section(
        "coverage", "Coverage of the stated error",
        "How often the true error exceeds the 99 % error that is stated, over problems with known "
        "answers and fresh seeds. A branch is rejected by a one-sided binomial test at 99 %. "
        "`exact` rows are closed forms.", coverage_tables,
    ),
    Section(
        "convergence", "Convergence where the integrand is steep",
        "Error against the number of points, on nearly singular problems (smallest eigenvalue about 4e-4, "
        "n = 9) and on ordinary ones. Where a variable has hardly any variance left, its factor of the "
        "integrand is a steep step, and every lattice falls to about N^-0.6. What was done about it: the "
        "variables are taken in the order of their expected probabilities, so that steep steps come last "
        "and as limits of what was drawn before (`order given` has not that, and two to three times the "
        "error); the points are a lattice (two to three times the accuracy of independent ones at a "
        "thousand points, twenty times at a million); a variable with no variance left at all bounds the "
        "last pivot that it depends on and is no step. The exponent stays; what it costs is in the stated "
        "error, which follows the spread of the shifts and not a rate. SciPy draws up to 1.4 times the "
        "points that it is given.",
        convergence_tables, draw_convergence,
    ),
    Section("bench_math", "The scalar functions", "Vectorised, one thread, first-level cache.",
            step_tables),
    Section(
        "roofline", "Rooflines of the CPU kernels",
        "Floors from counted operations and bytes and from the best multiply-add, BLAS and copy rates "
        "that the same run saw. Products go at the rate of torch.mm or of "
        "multiply-adds, whichever is higher. Measured on a busy machine a share is too low.",
        roofline_tables, draw_roofline,
    ),
    Section("jac_cov", "jac_cov beside PyTorch",
            "PyTorch's form is difference, norm, divide and `bmm`, in the same dtype.",
            jac_cov_tables),
    Section(
        "pivoted_cholesky", "pivoted_cholesky beside LAPACK",
        "Correlations of random Jacobian rows, in float64. dpstrf chooses the largest variance and cannot "
        "stop at a number of columns; torch.linalg.cholesky does not choose and takes definite matrices "
        "alone. Both work by matrix products in blocks; the order by limits needs each column before it "
        "can choose the next one, and the expected values and error bounds of all variables with it: full "
        "factors of definite matrices are behind. \"rank\" is the largest found in the batch.",
        pivoted_cholesky_tables,
    ),
    Section(
        "mendell_elston", "mendell_elston beside MVNXPB",
        "Both approximations without points, float64; errors against mvn_cdf. MVNXPB is BoTorch's "
        "(`pip install botorch`): its columns are empty where it is not installed.", mendell_elston_tables,
    ),
    Section("mvn_cdf_grad", "Gradients of mvn_cdf",
            "Beside the value's time; errors against a tighter run, whose own error is in them. With cov: of "
            "the first three problems of 49 to 199 variables.",
            gradients_tables),
    Section(
        "mvn_cdf_hvp", "Second derivatives of mvn_cdf",
        "To the limits, against quadratures that are exact to 1e-9. SciPy: central differences of its "
        "cdf (of its logarithm) with the same random numbers at every value, at the points and step "
        "that serve them best by the true error. Every error is within its bound. What is paid for it is a "
        "conditional problem for each pair of limits, beyond twelve variables one for each limit: a product at "
        "n = 49 takes 6 to 80 gradients where nothing is exact. SciPy's differences take longer in every row.",
        hessians_tables,
    ),
    Section(
        "points", "Point sets of mvn_cdf",
        "Two seeds are behind an error and tolerances go in steps of sqrt 2: a time is known to about "
        "a factor of two.", points_tables,
    ),
    Section("bvn", "bvn_cdf", "Beside SciPy's, a matrix at a time.", bvn_tables),
    Section(
        "standard_normal", "standard_normal",
        "Noise and directions, float32. A number depends on its row's key and its place alone, which those of "
        "the generators do not; `torch's functions` is the same by torch's operations.",
        standard_normal_tables,
    ),
    Section("scaling", "Scaling", "Hierarchical problems with p near .7.", scaling_tables, draw_scaling),
    Section(
        "estimators", "Estimators against Monte Carlo",
        "Error of the probability itself, linearisation included, against passes through the network of "
        "an input at one sigma. \"passes\", also the figure's, counts a forward pass, a forward-mode product "
        "(JVP) and a backward pass (VJP) as 1 each; \"in forwards\" a JVP or a VJP as 2 forward passes, as "
        "`mvnrob selfcheck` does. The grey line is the least that the reference can tell.", estimators_tables, draw_estimators,
    ),
    Section(
        "authors_loop", "The authors' estimator loop",
        "Taylor's estimator one image after the other, by backward passes, NumPy and SciPy's cdf (10,000 "
        "points), beside `robustness(method=\"taylor\")` at the first tolerance whose true rms error is no "
        "larger. Errors are of the linearised probability; the distance to the network's own is that of "
        "the linearisation, whichever way it is computed.", authors_loop_tables,
    ),
    Section("evaluate", "A data set", "By how probable an image's class is.", evaluate_tables),
    Section(
        "screening", "1,000 classes on photographs",
        "EfficientNet-Lite0, `screen=\"auto\"` beside the full Jacobian of 1,000 rows.",
        screening_tables,
    ),
    Section(
        "low_rank", "Screening by low rank, over seeds",
        "Linear models with the covariances that EfficientNet-Lite0's margins have at the photographs, each "
        "screened with several seeds: mean and most passes, and how many answers were off by more than their "
        "errors.", low_rank_tables,
    ),
    Section(
        "large_classes", "18,710 classes",
        "PP-OCR's network on printed characters, each a call of its own: how probable another class is. "
        "\"drawn\" is the share of normal draws of the linearised features with another class on top, which "
        "must agree; \"network\" is between the 99 % limits of Monte Carlo of the network itself.",
        large_classes_tables,
    ),
    Section(
        "forward_mode", "Forward-mode products of whole networks",
        "One pass of products along several directions at a single input (torch.func.vmap over torch.func.jvp), "
        "networks of known shapes with random weights: with mvnrob's rules for layers, and with torch's own alone. "
        "With small images a pass is little but the host's part of each operation, which a GPU waits for, and "
        "reading the weights; with large ones the work. \"difference\" is that of the products to their norm.",
        forward_mode_tables,
    ),
    Section(
        "half_passes", "What half precision does to derivatives of a network",
        "Gaps between rows and products along a direction in units of an image's largest row, as `check` takes "
        "them. \"alike\": both passes round alike; \"one\" and \"all\": two in five numbers "
        "behind one convolution, or behind all, differ by a unit or two in the last place, as other algorithms round "
        "(those that sum in float32 fewer numbers).", half_passes_tables,
    ),
)  # fmt: skip
