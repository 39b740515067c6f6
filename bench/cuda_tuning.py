"""The log of tuning steps of the CUDA kernels: two results beside each other, before and after.

python -m bench cuda_tuning OLD NEW --step WORDS [--note WORDS] [--out FILE]

OLD and NEW are files that one command wrote: a prediction (bench/results/cuda_predicted*.json, by
cuda_floor*.py) or timings of a GPU (timings.json, cuda_jac_cov.json or pipeline.json of bench/gpu.sh, or
as bench/results/ has them; cuda_ab_old.json and cuda_ab_new.json, of one GPU in one call). REVISION:PATH takes the file as it
was committed, such as HEAD~1:bench/results/cuda_predicted.json. The step goes into
bench/results/cuda_tuning.json, in place of one with the same words, command and status;
`python -m bench page` shows it.

A row is a kernel at a size, with before and after: `floor`, problems/s by counted instructions;
`limiter`, the unit that sets it; where a GPU has measured, `rate` in problems/s (or in its `unit`)
and `share`, of that floor, or the `time` of a call in its `unit`; `error`, the true rms error of a
tolerance's answers, or jac_cov's largest. `ratio` is after/before: of the times, of the rates, or, where
nothing is measured, of the floors. Rows of one file only are left out and counted, and so are rows
whose answer was wrong.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bench import harness

RESULTS = harness.RESULTS / "cuda_tuning.json"
PREDICTED, MEASURED = "predicted", "measured"
# Numbers that say which problem a row is of, in the order of its words.
AXES = ("n", "pivots", "points", "batch", "C", "D", "chunk", "B", "elements", "abs_tol")
# Files of one kernel do not name it in each row.
KERNELS = {
    "cuda_floor_tensor": "MvnCdfSampleTensor",
    "cuda_floor_tensor_double": "MvnCdfSampleTensorDouble",
}


def read(source):
    """A result file, or REVISION:PATH of a committed one."""
    if Path(source).is_file():
        return json.loads(Path(source).read_text())
    if ":" not in source:
        raise ValueError(f"cuda_tuning: a result must be a file or REVISION:PATH, got {source}")
    show = subprocess.run(
        ["git", "show", source], cwd=harness.ROOT, capture_output=True, text=True, check=False
    )
    if show.returncode:
        raise ValueError(f"cuda_tuning: {source} must be committed, git says {show.stderr.strip()}")
    return json.loads(show.stdout)


def origin(result):
    """{status, command, device, commit, date} of a prediction or of timings."""
    if "environment" in result:
        about = result["environment"]
        if about.get("gpu", "none").startswith("none"):
            raise ValueError("cuda_tuning: a measured result must be of a GPU, got one of a CPU")
        return {
            "status": MEASURED,
            "command": measured_command(result["rows"], about.get("bench")),
            "device": about["gpu"],
            "commit": about["commit"],
            "date": about["time"][:10],
        }
    return {"status": PREDICTED, **{k: result[k] for k in ("command", "device", "commit", "date")}}


def size(row):
    words = [f"{axis} {row[axis]}" for axis in AXES if axis in row and row[axis] is not None]
    # A row all of whose variables are pivots says so by n alone.
    if row.get("pivots") == row.get("n"):
        words = [w for w in words if not w.startswith("pivots ")]
    return ", ".join([*words, *(["alone"] if row.get("alone") else [])])


def measured_command(rows, named=None):
    """Which benchmark a GPU's rows are of, where the result does not say so."""
    if named:
        return f"python -m bench {named}"
    if any("op" in row for row in rows):
        return "python -m bench jac_cov --device cuda"
    if any("images_per_s" in row for row in rows):
        return "python -m bench pipeline --device cuda"
    return "python -m bench cuda"


# What a row of each table of bench/bench_cuda.py measures: (kernel, column, kind, unit), `{}` from the row.
MEASURED_COLUMNS = {
    "latency": [
        (f"mvn_cdf, {words}", f"{name}_us", "time", "us")
        for name, words in (("device", "GPU time"), ("wall", "wall time"), ("graph", "CUDA graph"))
    ],
    "sov": [("{kernel}, {dtype}", "problems_per_s", "rate", None)],
    "tolerance": [("mvn_cdf, {group}", "problems_per_s", "rate", None)],
    "slopes": [("mvn_cdf_pathwise to {to}, {dtype}", "slopes_ms", "time", "ms")],
    "large": [("mvn_cdf, full rank", "median_ms", "time", "ms")],
    "bvn": [("bvn_cdf", "elements_per_s", "rate", "elements/s")],
    "cholesky": [("pivoted_cholesky", "problems_per_s", "rate", None)],
}
# What follows from how fast a run is does not say which problem a row is of.
FOLLOWS = {"tolerance": ("batch",), "large": ("points", "pivots")}


def measured_lines(row):
    """(kernel, size, values) of a row of a GPU's timings, for each of its rates and times."""
    if "op" in row:  # the file has a problem's time
        values = {"time": row["ms"] * row["B"], "unit": "ms", "error": row["error"]}
        values["share"] = row.get("share")
        yield f"{row['op']}, {row['dtype']}", size(row), values
    elif row.get("table") in ("band", "mix"):
        what = f"mvnrob.evaluate, {row['case']}, {row['precision']}"
        where = f"level {row['level']:g}, p {row['p']}"
        yield what, where, {"rate": row["images_per_s"], "unit": "images/s"}
    elif "wrong" not in row.get("note", ""):
        table = row["table"]
        kept = {key: v for key, v in row.items() if key not in FOLLOWS.get(table, ())}
        kernel = "mvn_cdf, all sampled" if row.get("what") == "mvn_cdf" else "mvn_cdf_sums"
        for name, column, kind, unit in MEASURED_COLUMNS.get(table, ()):
            if row.get(column) is not None:
                values = {kind: row[column], "unit": unit}
                values |= {"floor": row.get("floor_per_s"), "share": row.get("share")}
                values |= {"error": row.get("rms")}
                yield name.format(**row, kernel=kernel), size(kept), values


def lines_of(result):
    """{(kernel, size): {floor, limiter, rate, time, unit, share, error}} of a result, what it has of
    them."""
    if origin(result)["status"] == MEASURED:
        return {
            (kernel, where): values
            for row in result["rows"]
            for kernel, where, values in measured_lines(row)
        }
    kernel = KERNELS.get(result["command"].rpartition(".")[2])
    return {
        (row.get("kernel") or kernel, size(row)): {
            "floor": row["floor_per_s"],
            "limiter": row["limiter"],
        }
        for row in result["rows"]
    }


def compare(old, new, words, note=None):
    """The step from one result to another, as cuda_tuning.json holds it."""
    before, after = origin(old), origin(new)
    for name in ("status", "command", "device"):
        if before[name] != after[name]:
            raise ValueError(
                f"cuda_tuning: both results must have one {name}, "
                f"got {before[name]} and {after[name]}"
            )
    was, now = lines_of(old), lines_of(new)
    rows = []
    for key in (key for key in now if key in was):
        pair = {"before": was[key], "after": now[key]}
        row = {"kernel": key[0], "size": key[1]}
        for name in ("floor", "limiter", "rate", "time", "share", "error"):
            row |= {
                f"{name}_{side}": values[name]
                for side, values in pair.items()
                if values.get(name) is not None
            }
        judged = next(name for name in ("time", "rate", "floor") if now[key].get(name) is not None)
        if now[key].get("unit"):
            row["unit"] = now[key]["unit"]
        row["ratio"] = round(now[key][judged] / was[key][judged], 3)
        rows.append(row)
    if not rows:
        raise ValueError("cuda_tuning: the results must have rows in common, got none")
    return {
        "step": words,
        **({"note": note} if note else {}),
        **{name: after[name] for name in ("status", "command", "device")},
        "before": {name: before[name] for name in ("commit", "date")},
        "after": {name: after[name] for name in ("commit", "date")},
        "rows": rows,
        "left_out": len(was.keys() ^ now.keys()),
    }


def record(log, step):
    """The steps of a log with this one in its place: as `python -m bench page` shows them."""
    name = lambda s: (s["step"], s["command"], s["status"])
    known = [name(s) for s in log["steps"]]
    steps = list(log["steps"])
    if name(step) in known:
        steps[known.index(name(step))] = step
    else:
        steps.append(step)
    return {**log, "steps": steps}


def main():
    p = argparse.ArgumentParser(
        prog="python -m bench cuda_tuning", description=__doc__.splitlines()[0]
    )
    p.add_argument("old", metavar="OLD", help="a result file, or REVISION:PATH as committed")
    p.add_argument("new", metavar="NEW", help="the same, of the same command and device")
    p.add_argument("--step", required=True, help="what was done, in a few words")
    p.add_argument("--note", help="what else a reader must know")
    p.add_argument("--out", type=Path, default=RESULTS)
    args = p.parse_args()
    try:
        step = compare(read(args.old), read(args.new), args.step, args.note)
    except ValueError as error:
        print(error)
        return 2
    log = json.loads(args.out.read_text()) if args.out.exists() else {"steps": []}
    args.out.write_text(json.dumps(record(log, step), indent=1) + "\n")
    harness.show(step["rows"], list(dict.fromkeys(key for row in step["rows"] for key in row)))
    print(f"# {len(step['rows'])} rows, {step['left_out']} in one of the files only")
    return 0


if __name__ == "__main__":
    sys.exit(main())
