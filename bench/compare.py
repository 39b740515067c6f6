"""Two results of one benchmark, row by row: new/old of every time and of the true error beside it."""

import json
import re

from bench import harness

# Columns that say which row it is, besides all texts; every other number is a measurement.
AXES = {
    "n", "B", "C", "D", "chunk", "batch", "problems", "packs", "threads", "points", "setting",
    "maxpts", "abs_tol", "rel_tol", "rms_goal", "sigma", "n_samples", "tol", "elements", "classes",
    "p_from", "p_to", "first", "last",
}  # fmt: skip
# Texts that tell of an outcome.
OUTCOMES = {"how", "scipy_how", "note"}
TIME = re.compile(r"(^|_)(ns|us|ms|seconds|s|per_s|rate)(_|$)")
ERROR = re.compile(r"^(rms|error|mean_error)$")
SPREAD = re.compile(r"_(min|max)$|^least_|spread")


def key(row):
    """What identifies a row: its texts and its axes."""
    return tuple(
        (name, value)
        for name, value in row.items()
        if name in AXES or (isinstance(value, (str, bool)) and name not in OUTCOMES)
    )


def spread(row, column):
    """Largest over smallest of the repeats behind a time, where the row has them."""
    if f"{column}_min" in row and row[f"{column}_min"] > 0:
        return row[f"{column}_max"] / row[f"{column}_min"]
    if f"least_{column}" in row and row[f"least_{column}"] > 0:
        return row[column] / row[f"least_{column}"]  # median over smallest
    prefix = column[: -len("ms")] if column.endswith("ms") else None
    return row.get(f"{prefix}spread") if prefix is not None else None


def ratios(old, new):
    """Lines {row, column, old, new, new/old, spread_old, spread_new} of the rows in both.

    Rows that share a key are paired in order.
    """
    waiting = {}
    for row in old:
        waiting.setdefault(key(row), []).append(row)
    lines = []
    for row in new:
        if not waiting.get(key(row)):
            continue
        before = waiting[key(row)].pop(0)
        for column, value in row.items():
            if column in AXES or SPREAD.search(column):
                continue
            if not (TIME.search(column) or ERROR.match(column)):
                continue
            was = before.get(column)
            if not all(isinstance(v, (int, float)) and v > 0 for v in (value, was)):
                continue
            lines.append(
                {
                    "row": " ".join(f"{v:g}" if isinstance(v, float) else str(v)
                                    for _, v in key(row) if v is not None),
                    "column": column, "old": was, "new": value, "new/old": value / was,
                    "spread_old": spread(before, column), "spread_new": spread(row, column),
                }
            )  # fmt: skip
    return lines


def report(old_text, new_text):
    """Prints the ratios of two result files' texts, and that of the machine itself."""
    old, new = json.loads(old_text), json.loads(new_text)
    print(f"\n# old: {old['environment'].get('commit')} {old['environment'].get('time')}")
    was, now = (r["environment"].get("yardstick") or {} for r in (old, new))
    for name in now:
        if was.get(name):
            print(f"# the machine itself, {name}: new/old {now[name] / was[name]:.2f}")
    lines = ratios(old["rows"], new["rows"])
    if lines:
        harness.show(lines, list(lines[0]))
    print(f"# {len(old['rows'])} rows before, {len(new['rows'])} now")
    return lines
