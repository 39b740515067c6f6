"""Two results of one benchmark, row by row: new/old of times and rates, errors, and all other numbers.

What identifies a row is its texts and its axes; every other number is a measurement, by the name of its
column a time, a rate, an error (the larger the worse) or something else, such as passes. Times, rates and
errors are printed always; of the others those that changed. An error is worse by more than rounding where
it grew by more than a thousandth and by more than 1e-15.
"""

import json
import math
import re
import statistics

from bench import harness

# Columns that say which row it is, besides all texts.
AXES = {
    "n", "B", "C", "D", "chunk", "batch", "columns", "packs", "threads", "points", "length", "setting",
    "maxpts", "abs_tol", "rel_tol", "rms_goal", "level", "sigma", "n_samples", "tol", "elements",
    "classes", "p_from", "p_to", "first", "last",
}  # fmt: skip
# Axes that the run finds itself where the row has one of the others.
FOUND = {"abs_tol": ("rms_goal", "reached"), "sigma": ("level",)}
# Texts, and truth values, that tell of an outcome.
OUTCOMES = {"how", "scipy_how", "note", "word", "limit", "limiter", "reached"}
# What no run changes.
CONSTANTS = {"target_ms", "target/reached"}
RATE = re.compile(r"(^|_)(per_s|gb_s|tb_s|gflops|rate)(_|$)")
TIME = re.compile(r"(^|_)(ns|us|ms|seconds|s|minutes)(_|$)")
ERROR = re.compile(
    r"(^|_)(rms|error|max|worst|bias|gap|largest|misses|failed|unmet|unbounded|truth|noise|stderr|left)(_|$)"
    r"|^(beyond_error|mvnxpb_(mean|rf|mlp|lin))$"
)
# Of an error's kin, what is none: sizes, and what would be reached by other means.
NO_ERROR = re.compile(r"_size$|^floor|^rivals_left_out$|/")
KINDS = {
    "time": "Times (new/old above 1: slower now):",
    "rate": "Rates (new/old above 1: faster now):",
    "error": "Errors (new/old above 1: larger now):",
    "other": "Other numbers, where they changed:",
}


def kind(column):
    """Of a measurement: one of KINDS."""
    if not column.startswith("floor"):
        if RATE.search(column):
            return "rate"
        if TIME.search(column):
            return "time"
    return "error" if ERROR.search(column) and not NO_ERROR.search(column) else "other"


def key(row):
    """What identifies a row: its texts and its axes."""
    return tuple(
        (name, value)
        for name, value in row.items()
        if value is not None
        and name not in OUTCOMES
        and not any(other in row for other in FOUND.get(name, ()))
        and (name in AXES or isinstance(value, (str, bool)))
    )


def label(row):
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in key(row))


def is_spread(row, column):
    """Whether a column only says how far the repeats behind another one lie apart."""
    stem, _, end = column.rpartition("_")
    return (
        (end in ("min", "max") and f"{stem}_min" in row and f"{stem}_max" in row)
        or (column.startswith("least_") and column.removeprefix("least_") in row)
        or column == "spread"
        or end == "spread"
    )


def spread(row, column):
    """Largest over smallest of the repeats behind a time, where the row has them."""
    if f"{column}_min" in row and row[f"{column}_min"] > 0:
        return row[f"{column}_max"] / row[f"{column}_min"]
    if f"least_{column}" in row and row[f"least_{column}"] > 0:
        return row[column] / row[f"least_{column}"]  # median over smallest
    prefix = column[: -len("ms")] if column.endswith("ms") else None
    return row.get(f"{prefix}spread") if prefix is not None else None


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def pairs(old, new):
    """Rows of both with one key, in order where several share it; and how many are left of each."""
    waiting = {}
    for row in old:
        waiting.setdefault(key(row), []).append(row)
    both = [(waiting[key(row)].pop(0), row) for row in new if waiting.get(key(row))]
    return both, len(old) - len(both), len(new) - len(both)


def ratios(old, new):
    """Lines {kind, row, column, old, new, new/old, spread_old, spread_new} of the rows in both."""
    lines = []
    for before, row in pairs(old, new)[0]:
        identity = dict(key(row))
        for column, value in row.items():
            was = before.get(column)
            if column in identity or column in CONSTANTS or is_spread(row, column):
                continue
            if not (number(value) and number(was)):
                continue
            line = {"kind": kind(column), "row": label(row), "column": column, "old": was,
                    "new": value, "new/old": value / was if was else None}  # fmt: skip
            if line["kind"] == "time":
                line |= {"spread_old": spread(before, column), "spread_new": spread(row, column)}
            lines.append(line)
    return lines


def same(line):
    old, new = line["old"], line["new"]
    return old == new or (math.isnan(old) and math.isnan(new))


def worse(line):
    """Whether an error grew by more than rounding, or is none any more."""
    old, new = abs(line["old"]), abs(line["new"])  # a bias has a sign
    return not (same(line) or math.isnan(old) or new <= 1.001 * old + 1e-15)


def within_spreads(line):
    both = line["spread_old"] * line["spread_new"]
    return 1 / both <= line["new/old"] <= both


def closing(lines):
    """What the lines say together."""
    times = [line for line in lines if line["kind"] == "time" and line["new/old"]]
    known = [line for line in times if line["spread_old"] and line["spread_new"]]
    errors = [line for line in lines if line["kind"] == "error"]
    grown = sum(map(worse, errors))
    said = f"{len(times)} times"
    if times:
        said += f", median new/old {statistics.median(line['new/old'] for line in times):.3g}"
    said += (
        f"; {len(known)} have spreads on both sides, {sum(map(within_spreads, known))} of them are within "
        f"old spread x new spread; {len(errors)} errors, "
    )
    return said + (
        f"{grown} worse by more than rounding" if grown else "none worse by more than rounding"
    )


def machines(old, new):
    """What two environments say of their commands and their processors: lines."""
    if old.get("command") != new.get("command"):
        yield f"another command: {old.get('command')} before, {new.get('command')} now"
    was, now = (e.get("processor") for e in (old, new))
    names = [f"{e.get('cpu')}" + (f" ({harness.processor_words(p)})" if p else "")
             for e, p in ((old, was), (new, now))]  # fmt: skip
    if old.get("cpu") != new.get("cpu") or (was and now and was != now):
        yield f"ANOTHER PROCESSOR: {names[0]} before, {names[1]} now"
    elif was and now:
        yield f"processors of one kind: {names[1]}"
    else:
        yield (f"whether the processor is of the same kind is not known, a result has no more than its name: "
               f"{names[0]} before, {names[1]} now")  # fmt: skip
    if old.get("simd") != new.get("simd"):
        yield f"another instruction set: {old.get('simd')} before, {new.get('simd')} now"
    was, now = (e.get("yardstick") or {} for e in (old, new))
    for name in now:
        if was.get(name):
            yield f"the machine itself, {name}: new/old {now[name] / was[name]:.2f}"


def refusal(text, name, module):
    """What a file has in place of a result of the subcommand `name`; None if it is one."""
    try:
        result = json.loads(text)
        rows, command = result["rows"], result["environment"]["command"]
    except ValueError:
        return "no JSON"
    except (KeyError, TypeError):
        return "JSON without rows and a command"
    # The first results were made by modules that the front has now.
    found = re.search(r"python -m bench[ .](\w+)", command) if isinstance(command, str) else None
    if not isinstance(rows, list) or not found:
        return "JSON without rows and a command"
    return None if found[1] in (name, module) else f"one of {found[1]}"


def report(old_text, new_text):
    """Prints what became of the numbers of one result file's text in another's, and of the machine."""
    old, new = json.loads(old_text), json.loads(new_text)
    print(f"\n# old: {old['environment'].get('commit')} {old['environment'].get('time')}")
    for line in machines(old["environment"], new["environment"]):
        print(f"# {line}")
    lines = ratios(old["rows"], new["rows"])
    for name, title in KINDS.items():
        part = [line for line in lines if line["kind"] == name]
        chosen = [line for line in part if name != "other" or not same(line)]
        if chosen:
            print(f"\n{title}")
            harness.show(chosen, [column for column in chosen[0] if column != "kind"])
        if len(chosen) < len(part):
            print(f"# the same in both: {len(part) - len(chosen)} other numbers")
    both, before, now = pairs(old["rows"], new["rows"])
    print(f"# rows: {len(both)} in both, {before} only before, {now} only now")
    print(f"# {closing(lines)}")
    return lines
