"""What the page of bench/page.py says of a GPU: what one was measured to do, and the log of tuning steps.

The measured files are those of bench/gpu.sh: cuda.json is timings.json of `python -m bench cuda`,
cuda_jac_cov.json and pipeline.json have their names already. Predictions have pages of their own
(bench/cuda_prediction.py).
"""

import itertools

from bench import cuda_card
from bench.sections import Section, by, same

#: What cuda_predicted*.json are of.
PREDICTED_CARD, PREDICTED_MULTIPROCESSORS = "H200", 132


def filled(columns, rows):
    """The columns that some row has a value for."""
    get = lambda row, key: key(row) if callable(key) else row.get(key)
    return [(head, key) for head, key in columns if any(get(row, key) is not None for row in rows)]


def percent(name):
    return lambda row: f"{100 * row[name]:.3g} %" if row.get(name) is not None else None


def times(name):
    """How many times ours a peer takes: bold where it takes less."""

    def text(row):
        value = row.get(name)
        return None if value is None else f"{'**' * (value < 1)}{value:.3g}{'**' * (value < 1)}"

    return text


def milliseconds_of_call(name):
    """Of all the problems of a call; the file has a problem's."""
    return lambda row: row[name] * row["B"] if row.get(name) is not None else None


def another_card(environment):
    """How the card of a result differs from that of the predictions; nothing if it is that one."""
    if PREDICTED_CARD in environment["gpu"]:
        return ""
    alike = environment["multiprocessors"] == PREDICTED_MULTIPROCESSORS
    how = ", with as many multiprocessors at the same clock and faster memory" if alike else ""
    return (
        f"The predictions below are for an {PREDICTED_CARD}, which is another card{how}: measured and "
        "predicted numbers are not of one device."
    )


#: Columns of bench/cuda_shares.py.
FLOOR = [
    ("share of the floor", percent("share")),
    ("limiter", "limiter"),
]


def floor_words(result):
    """What the floors in a section's tables are of."""
    if not any("share" in row for row in result["rows"]):
        return ""
    return (
        "A floor is the least time that the counted instructions and bytes of the kernels named in "
        "`bench/cuda_shares.py` allow, the share that floor over the time taken, the limiter what sets the "
        "floor. Where the result holds none, it is reckoned from the counts of "
        "`python -m bench cuda_floor*`, which are of the code as it is now: where a kernel has changed "
        "since it was timed, its share is not of the floor that it had. "
        f"{cuda_card.words(result['environment'])}\n"
    )


def mvn_cdf_cuda_tables(rows):
    part = by(rows, "table")
    quartiles = [("ms a call", "median_ms"), ("first quartile", "q1_ms"), ("third", "q3_ms")]

    def table(name, words, columns):
        return words, filled([*columns, ("", "note")], part(name)), part(name)

    yield table(
        "latency",
        "**Latency**, microseconds of a call with a 99 % error of abs_tol asked for. A row is a batch of "
        "so many problems: the GPU's own time, the wall time until the answer is ready, and the GPU's time "
        "for the replay of the call captured into a CUDA graph.",
        [*same("n", "batch", "abs_tol"), ("GPU, us", "device_us"), ("wall, us", "wall_us"),
         ("graph, us", "graph_us")],
    )  # fmt: skip
    clocks = sorted({row["floor_clock_mhz"] for row in rows if "floor_clock_mhz" in row})
    at = f" at {', '.join(f'{v:,.0f}' for v in clocks)} MHz" if clocks else ""
    yield table(
        "sov",
        "**All variables sampled**, all points taken. A row is a call of `mvn_cdf`, or of the "
        "sampler alone (`sums`). The floor is what the kernel's counted instructions would allow on this "
        f"card's multiprocessors{at}; the share is the measured rate over it.",
        [*same("n", "points"), ("type", "dtype"), ("call", "what"), ("batch", "batch"),
         ("problems/s", "problems_per_s"), ("floor, problems/s", "floor_per_s"), *FLOOR],
    )  # fmt: skip
    yield table("tolerance", tolerance_words(part("tolerance")), [
        ("n", "n"), ("problems", "group"), ("abs_tol", "abs_tol"), ("batch", "batch"),
        ("problems/s", "problems_per_s"), ("repeats", "repeats"), ("rms", "rms"),
        ("beyond its error", percent("beyond_error")), ("within max_points", percent("converged")),
        ("points", "points_mean"), ("sampled", "pivots_mean"),
        ("crude, problems/s", "crude_per_s"), ("ours / crude", times("ours/crude")),
        ("CPU's call", "cpu_batch"), ("CPU, problems/s", "cpu_per_s"),
        ("ours / CPU", times("ours/cpu")), ("floor, problems/s", "floor_per_s"), *FLOOR,
    ])  # fmt: skip
    yield table(
        "large",
        "**Large n**: one problem with a factor of full rank, made by the whole grid, a 99 % error of 1e-2 "
        "asked for. Beside the stated error, how far the answer is off. The floor has no barriers of the "
        "grid and no waits for a column.",
        [*same("n", "points"), ("sampled", "pivots"), ("error", "error"), ("off", "off"), *quartiles,
         ("floor, ms", "floor_ms"), *FLOOR],
    )  # fmt: skip
    yield table(
        "bvn",
        "**bvn_cdf**, a call of so many elements; the largest difference is from the CPU backend.",
        [("elements", "elements"), ("elements/s", "elements_per_s"), ("GB/s", "gb_per_s"),
         ("largest difference", "max_difference"), ("floor, elements/s", "floor_per_s"), *FLOOR],
    )  # fmt: skip
    yield table(
        "cholesky",
        "**pivoted_cholesky**, all columns, with the largest error relative to the largest entry.",
        [("n", "n"), ("batch", "batch"), ("problems/s", "problems_per_s"), ("error", "error"),
         ("floor, problems/s", "floor_per_s"), *FLOOR],
    )  # fmt: skip
    yield table(
        "slopes",
        "**Slopes**: the samples' derivatives (`mvn_cdf_pathwise`) to the limits, or to limits and "
        "covariance (`cov`), beside their sums (`mvn_cdf_sums`) at the same points, milliseconds of a "
        "batch.",
        [*same("n", "points"), ("type", "dtype"), ("to", "to"), ("batch", "batch"),
         ("sums, ms", "sums_ms"), ("slopes, ms", "slopes_ms"), ("slopes / sums", "slopes/sums"),
         ("floor, ms", "floor_ms"), *FLOOR],
    )  # fmt: skip
    yield table(
        "mvnxpb",
        "**MVNXPB**, BoTorch's approximation on the same GPU; its rms error stays what it is.",
        [("n", "n"), ("problems", "group"), ("batch", "batch"), ("problems/s", "problems_per_s"),
         ("rms", "rms"), ("not a number", "nan")],
    )  # fmt: skip


def tolerance_words(rows):
    cores = (
        "The CPU backend has all cores of this machine and calls of the size given beside it."
        if any(row.get("cpu_batch") for row in rows)
        else "The CPU backend has all cores of this machine, but only the group's few problems in its "
        "call, one thread each: cores idle, and the ratio flatters the GPU."
    )
    return (
        "**A tolerance asked for**: large batches with a 99 % error of abs_tol. A row is a group of "
        "problems, again and again with seeds of their own; rms is their true error against answers that "
        "are exact (`classifiers`: references), beside the share of problems beyond the error that "
        "was stated. Crude Monte Carlo is reckoned at the same rms error on the same GPU, from its "
        f"measured factor and draws. {cores} Where a ratio is bold, the peer is ahead. The floor is that "
        "of the factor's columns and of the sampler, for the points and variables that the answers took."
    )


def jac_cov_cuda_tables(rows):
    ms = milliseconds_of_call
    yield (
        "Milliseconds of a call on B problems:",
        filled(
            [*same("op", "C", "D", "chunk", "dtype", "B"), ("ms", ms("ms")), ("spread", "spread"),
             ("rate", "rate"), ("", "unit"), ("error", "error"), ("PyTorch, ms", ms("peer_ms")),
             ("its error", "peer_error"), ("PyTorch / ours", times("speedup")),
             ("with TF32, ms", ms("tf32_ms")), ("its error", "tf32_error"),
             ("TF32 / ours", times("tf32_speedup")), ("floor, ms", ms("floor_ms")), *FLOOR],
            rows,
        ),
        rows,
    )  # fmt: skip


def tensor_pivots_tables(rows):
    sides = list(dict.fromkeys(key for row in rows for key in row if key.startswith("ms_from_")))
    columns = [
        ("call", "call"), *same("n", "batch", "pivots", "points", "abs_tol"),
        *((f"from {side.removeprefix('ms_from_')}, ms", side) for side in sides),
        ("new / old", "ratio"), ("least", "least"), ("largest", "largest"), ("", "note"),
    ]  # fmt: skip
    yield "", filled(columns, rows), rows


#: Kernels with less of a call's time than this are left out.
LEAST_SHARE = 0.01


def kernels_tables(rows):
    between = lambda row: row.get("kernel") == "between"
    shown = [r for r in rows if between(r) or r.get("share", 1.0) >= LEAST_SHARE]
    columns = [("call", "call"), ("kernel", "kernel"), ("launches", "launches"), ("ms", "ms"),
               ("share", percent("share")), ("", "note")]  # fmt: skip
    yield "", filled(columns, shown), shown


def profile_tables(rows):
    elapsed = ".avg.pct_of_peak_sustained_elapsed"
    memory = lambda row: row.get(
        f"gpu__dram_throughput{elapsed}", row.get(f"dram__throughput{elapsed}")
    )
    columns = [
        ("kernel", "kernel"), ("call", "call"), ("duration", "duration"), ("busiest", "limiter"),
        ("%", "limiter_pct"), ("memory, %", memory),
        ("L2, %", f"lts__throughput{elapsed}"), ("registers", "launch__registers_per_thread"),
        ("warps, %", "sm__warps_active.avg.pct_of_peak_sustained_active"), ("waits", "waits"),
        ("commit", "commit"),
    ]  # fmt: skip
    yield "", filled(columns, rows), rows


def tf32_tables(rows):
    gap = lambda name, which: lambda row: (row.get(name) or {}).get(which)
    columns = [("TF32", lambda row: bool(row["tf32"]))]
    for name in ("rows_and_products", "passes_of_1_and_8", "rows_against_float32"):
        words = name.replace("_", " ")
        columns += [(f"{words}, median", gap(name, "median")), ("most", gap(name, "most"))]
    yield "", columns, rows


def pass_sizes_tables(rows):
    ratio = lambda row: row["first_ms"] / row["again_ms"]
    columns = [("pass", "pass"), ("size", "size"), ("for the first time, ms", "first_ms"),
               ("again, ms", "again_ms"), ("ratio", ratio)]  # fmt: skip
    kind = lambda row: (row["network"], row["layout"], row["precision"])
    for (network, layout, precision), group in itertools.groupby(rows, kind):
        yield f"{network}, {layout.replace('_', ' ')}, {precision}:", columns, list(group)


def phases_tables(rows):
    parts = [row for row in rows if row["table"] == "part"]
    whole = sum(row["kernels_ms"] for row in parts)
    share = lambda row: f"{100 * row['kernels_ms'] / whole:.3g} %"
    columns = [("phase", "phase"), ("part", "part"), ("kernels, ms", "kernels_ms"), ("share", share),
               ("launches", "launches"), ("waiting, ms", "waiting_ms")]  # fmt: skip
    yield "By phase and part of screening:", columns, parts
    kernels = [
        row for row in rows if row["table"] == "kernel" and row["kernels_ms"] >= 0.01 * whole
    ]
    columns = [("phase", "phase"), ("kernel", "part"), ("ms", "kernels_ms")]
    yield "Kernels that take a hundredth of it or more:", columns, kernels


PARTS = ("read", "forward", "jvp", "vjp", "covariance", "sketch", "cdf", "other", "write")


def pipeline_tables(rows):
    kind = lambda row: (row["case"], row["precision"], row["chunk"], row.get("commit"))
    for (case, precision, chunk, commit), group in itertools.groupby(rows, kind):
        mine = list(group)
        which = f"chunks of {chunk}" + (f", of commit {commit}" if commit else "")
        row = [*same("level", "sigma", "p")]
        yield (
            f"{case}, {precision}, {which}:",
            filled(
                [*row, *same("images", "share"), ("images/s", "images_per_s"),
                 ("CDF's share", percent("cdf_share")), ("forward passes", "forward"), ("JVPs", "jvp"),
                 ("VJPs", "vjp"), ("rivals in the integral", "kept"), ("mean 99 % error", "error_mean"),
                 ("minutes for 50,000", "minutes_for_50000")],
                mine,
            ),
            mine,
        )  # fmt: skip
        phases = [(f"{part} ms", f"{part}_ms") for part in PARTS]
        yield "Milliseconds an image, by phase:", [*row, *phases], mine


SECTIONS = (
    Section(
        "cuda", "mvn_cdf on a GPU: measured",
        "`python -m bench cuda`. GPU times are between events, the L2 cache emptied before each call, "
        "medians of repeats. Problems are `exact`, families with exact answers that sampling has to find, or "
        "`classifiers`, as networks make them. An answer that is wrong is not timed: its row says what was "
        "wrong.", mvn_cdf_cuda_tables, gpu=True,
    ),
    Section(
        "cuda_jac_cov", "jac_cov on a GPU: measured",
        "`python -m bench jac_cov --device cuda`. A row is a call on B problems of C classes and D inputs; "
        "GPU times between events, the L2 cache emptied before each call. PyTorch's form is difference, norm, "
        "divide and `bmm`, in float32 (for bfloat16 too), and again with TF32 allowed in its products, "
        "with the error that it then has. Errors are the largest, against float64. Where a ratio is bold, PyTorch "
        "takes less time.", jac_cov_cuda_tables, gpu=True,
    ),
    Section(
        "pipeline", "mvnrob.evaluate end to end: measured",
        "`mvnrob.evaluate` with 1,000 classes, chunk files and all, on made-up images (`bench/resnet.py`, "
        "`bench/synthetic_images.py`); noise so that the median image's p is about the level. A band's "
        "row is a chunk of that run's images in it, repeated to fill it; `all` is the run itself, its "
        "minutes for 50,000 images are the bands' seconds by their shares, without decoding. Seconds of "
        "read and write are the host's, those of a GPU's phases between events on its stream. "
        "The CDF's share is of the time in forward to other.", pipeline_tables,
    ),
    Section(
        "pipeline_photos", "mvnrob.evaluate end to end, a trained network: measured",
        "EfficientNet-Lite0 (1,000 classes of ImageNet) on crops of photographs (`bench/photo_crops.py`), "
        "read as the tables before.", pipeline_tables,
    ),
    Section(
        "cuda_kernels", "Kernels of a call on a GPU: measured",
        "`python -m bench cuda_kernels`: the calls of `bench/cuda_calls.py`, by CUPTI; a share is of the "
        "call's kernels, `between` the rest of the call's time on the device: waits for the host and gaps "
        "between launches. Kernels below 1 % are left out.", kernels_tables, gpu=True,
    ),
    Section(
        "cuda_profile", "Kernels by Nsight Compute: measured",
        "`python -m bench cuda_profile`: one launch each, clocks as they were. Percent of the unit's peak; "
        "`busiest` is the unit that comes nearest to it, `warps` those resident of the most that fit, "
        "`waits` the two reasons for which most warps waited, in warps an instruction issued.",
        profile_tables, gpu=True,
    ),
    Section(
        "cuda_tensor_pivots", "float32 samples by tensor cores: from how many pivots on",
        "`python -m bench cuda_tensor_pivots`; `bench/gpu.sh OUTDIR tensor_pivots` makes its two builds, of "
        "two values of `kTensorPivots`, and runs it. Below 1 the new one is faster.",
        tensor_pivots_tables,
    ),
    Section(
        "cuda_tf32", "What TF32 does to derivatives of a network",
        "`python -m bench cuda_tf32` (`bench/gpu.sh OUTDIR build tf32`). Gaps of products in units of the "
        "row's norm, of rows relative to their norm.", tf32_tables,
    ),
    Section(
        "cuda_phases", "What a chunk of mvnrob.evaluate goes to on a GPU",
        "`python -m bench cuda_phases` (`bench/gpu.sh OUTDIR build phases`): the network of ResNet-50's shape of "
        "`bench pipeline`, kernels by torch.profiler, each where it was launched. The device waits before the "
        "kernels named; the profiler slows the host down, so waits are for comparison with each other.",
        phases_tables,
    ),
    Section(
        "cuda_pass_sizes", "What a pass of a new size takes",
        "`python -m bench cuda_pass_sizes` (`bench/gpu.sh OUTDIR build pass_sizes`). Milliseconds of the host's "
        "clock, the device waited for. Why passes come in few sizes (`mvnrob/passes.py`); the first size of a "
        "kind also loads the kernels. Sizes of jvp are images times directions.", pass_sizes_tables,
    ),
)  # fmt: skip


# The log of tuning steps

TUNING = (
    "What each step in the CUDA kernels changed, as `python -m bench cuda_tuning` set two "
    "results beside each other: in problems/s, or in the time of a call where a table says so (there "
    "below 1 is faster). A floor comes from counted instructions (the tables above); a step is "
    "`predicted` where only floors are known and `measured` where a GPU has run both sides, one run each, "
    "whose share of the floor and true error (rms of mvn_cdf's answers, the largest of jac_cov's) then "
    "stand beside it. The limiter is the unit that sets "
    "the floor. Steps that cost speed stand here as well."
)
TUNING_COLUMNS = {
    "floor_before": ("floor before", "floor_before"),
    "floor_after": ("floor after", "floor_after"),
    "rate_before": ("measured before", "rate_before"),
    "rate_after": ("measured after", "rate_after"),
    "time_before": ("time before", "time_before"),
    "time_after": ("time after", "time_after"),
    "share_before": ("share before", "share_before"),
    "share_after": ("share after", "share_after"),
    "ratio": ("after / before", lambda row: f"{row['ratio']:.3f}"),
    "error_before": ("error before", "error_before"),
    "error_after": ("error after", "error_after"),
}


def limiter(row):
    was, now = row["limiter_before"], row["limiter_after"]
    return now if was == now else f"{was}, then {now}"


def kinds_of_rows(rows):
    """(caption, rows) by unit, and rates without a floor apart from those with one."""
    kind = lambda row: (row.get("unit"), "floor_after" in row)
    for unit, floor in dict.fromkeys(map(kind, rows)):
        mine = [row for row in rows if kind(row) == (unit, floor)]
        if "time_after" in mine[0]:
            unit = f"Time of a call, {unit} (below 1 is faster)"
        yield f"{unit}:" if unit else "", mine


def tuning_tables(log):
    """Of bench/results/cuda_tuning.json: (words, [(caption, columns, rows)]) for each step, unchanged
    rows left out."""
    for step in log["steps"]:
        before, after = step["before"], step["after"]
        changed = [row for row in step["rows"] if row["ratio"] != 1]
        unchanged = len(step["rows"]) - len(changed)
        words = (
            f"### {step['step']}\n\n{step['status'].capitalize()}, `{step['command']}`; "
            f"{step['device']}; before: {before['date']}, commit {before['commit']}; after: "
            f"{after['date']}, commit {after['commit']}."
        )
        words += f" {step['note']}" if "note" in step else ""
        words += f" Rows without change: {unchanged}." if unchanged else ""
        tables = []
        for caption, rows in kinds_of_rows(changed):
            there = set().union(*rows)
            chosen = [column for key, column in TUNING_COLUMNS.items() if key in there]
            chosen += [("limiter", limiter)] if "limiter_after" in there else []
            tables.append((caption, [*same("kernel", "size"), *chosen], rows))
        yield words, tables
