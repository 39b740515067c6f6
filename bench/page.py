"""Writes docs/benchmarks.md, its figures and the tables of choosing.md and imagenet.md from bench/results/.

python -m bench page [--results FOLDER] [--docs FOLDER] [--redraw]

A section stands for a result file and is left out where there is none. A figure carries the digest
of the file it was drawn from (PNG text "Source"), so that tests/test_bench.py sees when either is old,
and is drawn again when that changes: after a change of how figures are drawn, say --redraw.
What a section says is in bench/sections.py, of a GPU in bench/cuda_sections.py.
"""

import argparse
import hashlib
import json
import re
import struct
import sys
from pathlib import Path

from bench import cuda_sections, cuda_shares, harness, sections

DOCS = harness.ROOT / "docs"
SECTIONS = (*sections.SECTIONS, *cuda_sections.SECTIONS)
HEAD = """# Benchmarks

Made by `python -m bench page` from the files in `bench/results/`; do not edit. Each section names its
file, the command that makes it again, the machine, the date and the commit. Times are CPU times of one
thread unless a column says otherwise. Least, most and "spread" of a time are those of the repeats within
one run: another run on a shared machine, and all the more on another processor, may differ by more.
"99 %" errors are what the library states, "rms" errors are true ones.
{gpu}
Compare a run of your own with the committed one by

    python -m bench SUBCOMMAND ... --out /tmp/mine --compare bench/results/NAME.json

Which estimator to choose: [choosing.md](choosing.md).
"""


def load(path):
    """A result file: environment, rows, digest; None where it is missing."""
    if not path.exists():
        return None
    data = path.read_bytes()
    return {**json.loads(data), "digest": hashlib.sha256(data).hexdigest()}


def cell(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and abs(value) >= 1000:
        return f"{value:,.0f}"
    return harness.number(value)


def table(columns, rows):
    """Markdown: columns are pairs of a heading and a key (or a function of the row)."""
    get = lambda row, key: key(row) if callable(key) else row.get(key)
    lines = [[heading for heading, _ in columns], ["---"] * len(columns)]
    lines += [[cell(get(row, key)) for _, key in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def to_paste(name, command):
    """The line that makes a result; of a joined one the lines of its runs, and that of the join."""
    runs = command.split("; ")
    if len(runs) == 1:
        return f"`{command}`\n"
    folders = [f"build/{name}/{k}" for k in range(1, len(runs) + 1)]
    lines = [f"{run} --out {folder}" for run, folder in zip(runs, folders, strict=True)]
    parts = ",".join(f"{folder}/{name}.json" for folder in folders)
    # Every run has the front's subcommand in the same place.
    front = " ".join(runs[0].split()[:4])
    return "\n".join(["```", *lines, f"{front} --join {parts}", "```", ""])


def where(name, result):
    """Command, machine and date of a result."""
    e = result["environment"]
    if "what" in e:  # measured before the command that makes it again was there
        commit = f", commit {e['commit']}" if "commit" in e else ""
        return (
            f"`bench/results/{name}.json`: {e['what'].rstrip('.')}; {e['gpu']}, driver {e['driver']}, CUDA "
            f"{e['cuda']}, torch {e['torch']}; {e['time'][:10]}{commit}.\n"
        )
    simd = f", {e['simd']}" if "simd" in e else ""
    kind = f" ({harness.processor_words(e['processor'])})" if e.get("processor") else ""
    machine = f"{e['cpu']}{kind}, {e['cores']} cores{simd}, torch {e['torch']}"
    if on_gpu(result):
        driver = f"driver {e['driver']}, " if e.get("driver") else ""
        machine = (
            f"{e['gpu']} ({e['multiprocessors']} multiprocessors, {e['memory_gib']:g} GiB), {driver}"
            f"CUDA {e['cuda']}; {machine}"
        )
    load = f", load {'/'.join(str(v) for v in e['load'])}" if "load" in e else ""
    # The first results were made by modules that the front has now.
    return (
        f"{to_paste(name, harness.without_paths(e['command']))}\n"
        f"`bench/results/{name}.json`; {machine}; {e['time'][:10]}, commit {e['commit']}{load}.\n"
    )


def gaps(result):
    """What a result lacks, as its run said: parts without time left, remarks, wrong answers."""
    first = lambda said: ([line for line in said.splitlines() if line.strip()] or [""])[0]
    lists = {
        "Not run, no time was left": result.get("not_run") or result["environment"].get("not_run"),
        "Remarks": result.get("remarks") or result["environment"].get("remarks"),
        "Not timed, for a wrong answer or an error": result["environment"].get("wrong"),
    }
    return "".join(
        f"{title}: {'; '.join(dict.fromkeys(map(first, said)))}.\n\n"
        for title, said in lists.items()
        if said
    )


def tuning_text(log):
    """The section of bench/results/cuda_tuning.json."""
    parts = [f"## CUDA kernels, tuning step by step\n\n{cuda_sections.TUNING}\n"]
    for words, tables in cuda_sections.tuning_tables(log):
        parts.append(f"{words}\n")
        parts += [(f"{caption}\n\n" if caption else "") + table(c, r) for caption, c, r in tables]
    return "\n".join(parts)


def on_gpu(result):
    return "multiprocessors" in result["environment"]


def gpu_words(results, predictions):
    """What the page's head says of GPUs."""
    cards = dict.fromkeys(r["environment"]["gpu"] for r in results.values() if on_gpu(r))
    predicted = (
        "What a GPU is predicted to do, from counted instructions, launches and operations,\nstands at the "
        "end: nothing of that is measured."
    )
    if not cards:
        return predicted if predictions else "Nothing here was run on a GPU."
    measured = f"What a GPU ({', '.join(cards)}) was measured to do stands after the CPU's results."
    return f"{measured}\n{predicted}" if predictions else measured


def text_of(results, predictions, tuning=None):
    """docs/benchmarks.md from {name: result}, the Markdown of what is predicted for a GPU and the log
    of tuning steps."""
    parts = [HEAD.format(gpu=gpu_words(results, predictions))]
    for section in SECTIONS:
        result = results.get(section.name)
        if result is None:
            continue
        if section.gpu:
            rows = cuda_shares.with_floors(result["rows"], result["environment"])
            result = {**result, "rows": rows}
        parts.append(f"## {section.title}\n\n{section.words}\n")
        for caption, columns, rows in section.tables(result["rows"]):
            if rows:
                parts.append((f"{caption}\n\n" if caption else "") + table(columns, rows))
        if section.gpu and (said := cuda_sections.floor_words(result)):
            parts.append(said)
        if section.draw:
            parts.append(f"![{section.title}](figures/{section.name}.png)\n")
        if (
            on_gpu(result)
            and predictions
            and (said := cuda_sections.another_card(result["environment"]))
        ):
            parts.append(f"{said}\n")
        parts.append(gaps(result) + where(section.name, result))
    parts += [f"#{text}" for text in predictions]
    return "\n".join([*parts, *([tuning_text(tuning)] if tuning else [])])


def fill(text, blocks):
    """The text with what stands between `<!-- NAME: begin -->` and `end` replaced."""
    for name, content in blocks.items():
        pattern = re.compile(f"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        text, found = pattern.subn(lambda m, c=content: m[1] + c + m[2], text)
        if found != 1:
            raise ValueError(f"bench page: text must hold the block {name} once, got {found}")
    return text


def choosing_blocks(results):
    """Tables of docs/choosing.md."""
    result = results.get("estimators")
    if result is None:
        return {}
    blocks = {
        task: table(*sections.choosing_table(result["rows"], task))
        for task in dict.fromkeys(row["task"] for row in result["rows"])
    }
    return blocks | {"source": where("estimators", result)}


def imagenet_blocks(results):
    """The table of docs/imagenet.md: a GPU's milliseconds a pass times the photographs' passes."""
    pipeline, screening = results.get("pipeline"), results.get("screening")
    if pipeline is None or screening is None or not tf32_runs(pipeline["rows"]):
        return {}
    columns = [
        ("p", "p"), ("JVPs, mean", "jvp"), ("VJPs, mean", "vjp"), ("forward ms", "forward_ms"),
        ("jvp ms", "jvp_ms"), ("vjp ms", "vjp_ms"), ("sketch ms", "sketch_ms"), ("the rest ms", "rest_ms"),
        ("images/s", "images_per_s"), ("minutes for 50,000", "minutes_for_50000"),
    ]  # fmt: skip
    return {"predicted": table(columns, expected_rows(pipeline["rows"], screening["rows"]))}


def tf32_runs(rows):
    return [row for row in rows if row["table"] == "mix" and row["precision"] == "tf32"]


def expected_rows(measured, passes):
    """Rows by p of ``passes``, at the milliseconds of a pass of the first TF32 run in ``measured``."""
    base = tf32_runs(measured)[0]
    rows = []
    for level in sorted({row["level"] for row in passes}):
        here = [row for row in passes if row["level"] == level]
        jvp, vjp = (sum(row[kind] for row in here) / len(here) for kind in ("jvp", "vjp"))
        ms = {
            "forward_ms": base["forward_ms"],
            "jvp_ms": base["jvp_ms"] * jvp / base["jvp"],
            "vjp_ms": base["vjp_ms"] * vjp / base["vjp"],
            "sketch_ms": base["sketch_ms"] * jvp / base["jvp"],
            "rest_ms": sum(base[f"{k}_ms"] for k in ("read", "covariance", "cdf", "other", "write")),
        }  # fmt: skip
        total = sum(ms.values())
        rows.append({"p": level, "jvp": jvp, "vjp": vjp, **ms, "images_per_s": 1e3 / total,
                     "minutes_for_50000": 50_000 * total / 6e4})  # fmt: skip
    return rows


def digest_of_figure(path):
    """The text "Source" of a PNG file."""
    data, at = path.read_bytes(), 8
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        if kind == b"tEXt":
            key, _, value = data[at + 8 : at + 8 + length].partition(b"\0")
            if key == b"Source":
                return value.decode()
        at += 12 + length
    return None


def draw(section, result, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = section.draw(result["rows"], pyplot)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110, metadata={"Source": result["digest"], "Software": None})
    pyplot.close(figure)


def all_results(folder):
    found = {s.name: load(folder / f"{s.name}.json") for s in SECTIONS}
    results = {name: result for name, result in found.items() if result is not None}
    for section in SECTIONS:
        if section.gpu and section.name in results and not on_gpu(results[section.name]):
            raise ValueError(f"bench page: {section.name}.json must be of a GPU, got one of a CPU")
    return results


def all_predictions(folder):
    """As bench/cuda_prediction.py wrote them."""
    return [path.read_text() for path in sorted(folder.glob("cuda_predicted*.md"))]


def tuning_log(folder):
    """As bench/cuda_tuning.py wrote it; None where it is missing."""
    return load(folder / "cuda_tuning.json")


def main():
    p = argparse.ArgumentParser(prog="python -m bench page", description=__doc__.splitlines()[0])
    p.add_argument("--results", type=Path, default=harness.RESULTS)
    p.add_argument("--docs", type=Path, default=DOCS)
    p.add_argument("--redraw", action="store_true", help="figures of unchanged results, too")
    args = p.parse_args()
    results = all_results(args.results)
    figures = args.docs / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for section in SECTIONS:
        path = figures / f"{section.name}.png"
        result = results.get(section.name)
        if result is None or not section.draw:
            path.unlink(missing_ok=True)
        elif args.redraw or not path.exists() or digest_of_figure(path) != result["digest"]:
            draw(section, result, path)
            print(f"# drawn: figures/{path.name}")
    (args.docs / "benchmarks.md").write_text(
        text_of(results, all_predictions(args.results), tuning_log(args.results))
    )
    blocks = {
        "choosing.md": choosing_blocks(results),
        "imagenet.md": imagenet_blocks(results),
    }
    for name, found in blocks.items():
        if (args.docs / name).exists():
            (args.docs / name).write_text(fill((args.docs / name).read_text(), found))
    print(f"# written: benchmarks.md with {len(results)} sections")


if __name__ == "__main__":
    sys.exit(main())
