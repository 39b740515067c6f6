"""What mvnrob.evaluate is predicted to take on a GPU, image by image, from counted work.

python -m bench cuda_floor_pipeline     counts it (no GPU, no nvcc) and writes
                                        bench/results/cuda_predicted_pipeline.json and .md

ResNet-50's shape (bench/resnet.py) at 224 x 224 in float32 with TF32 convolutions, 32 images at a time,
as bench/bench_pipeline.py runs it. Each operation that torch dispatches for a forward pass, a backward
pass and forward-mode products is counted on the meta device: its FLOP and the bytes of its tensors.
Its floor is the longer of the two at the data sheet's rate and at the copy rate that was measured on
an H200 (bench/cuda_floor_jac_cov.py); a pass takes the sum of its operations' floors over
EXPECTED_SHARE, or its launches one after the other, whichever is longer. Passes and rivals by p are those
of EfficientNet-Lite0 on photographs (bench/results/screening.json); where all rows were cheapest they are
the 1,000 classes' here, since ResNet-50's 2,048 features are more. The covariance is that of
cuda_predicted_jac_cov.json, mvn_cdf that of bench/cuda_floor.py with the points and pivots that the CPU
backend took (bench/results/mvn_cdf.json). The rest is assumed, and said in the result.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench import cuda_floor, cuda_floor_tensor, cuda_prediction, resnet
from bench.cuda_floor import EXPECTED_SHARE, H200
from bench.cuda_floor_jac_cov import DRAM, L2
from mvnrob.forward_mode import LinearLayers

RESULTS = Path(__file__).parent / "results" / "cuda_predicted_pipeline.json"
#: Dense products of the data sheet, FLOP/s.
TF32 = 494e12
#: Assumed, seconds: of the host for an operation, for one under torch.func (forward mode, vmap), for a
#: call of mvn_cdf, and of the device for an image's QR and SVD of seven gradients.
LAUNCH, LAUNCH_FUNC, CDF_CALL, LEADING = 5e-6, 10e-6, 5e-4, 1e-3
#: Assumed bytes that the influences of a low rank move for each draw and rival: some 40 float32.
INFLUENCE = 2**14 * 160
#: Assumed: calls of mvn_cdf in a chunk (its images in groups of similar numbers of rivals).
CDF_CALLS = 4
CHUNK, SIDE, CLASSES = 32, 224, 1000
INPUTS = 3 * SIDE**2
MEMORY = 139 * 2**30
#: Directions that go together: the check's one, the near rivals' basis, those of the sketch.
GROUPS = [1, 3, 8]
#: Operations without work on the device.
_VIEWS = ("view", "expand", "alias", "detach", "permute", "aten.t.", "select.int", "unsqueeze",
          "empty", "_efficientzerotensor", "to.dtype_layout", "_unsafe_view", "transpose",
          "is_same_size", "_has_same_storage_numel")  # fmt: skip
PHASES = ("read", "forward", "jvp", "vjp", "covariance", "sketch", "cdf", "other")


def held(tensor):
    """Bytes of a tensor's own numbers: an expanded dimension repeats them."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.element_size()


class Work(TorchDispatchMode):
    """Adds up what is dispatched inside: ``seconds`` of the floor, ``flop``, ``bytes``, ``launches``."""

    def __init__(self):
        super().__init__()
        self.seconds = self.flop = self.bytes = self.launches = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        if any(word in str(function) for word in _VIEWS):
            return out
        leaves = tree_leaves((arguments, keywords, out))
        moved = sum(held(t) for t in leaves if isinstance(t, torch.Tensor))
        count = flop_registry.get(function.overloadpacket)
        flop = count(*arguments, **(keywords or {}), out_val=out) if count else 0
        self.seconds += max(flop / TF32, moved / DRAM)
        self.flop += flop
        self.bytes += moved
        self.launches += 1
        return out


def work(call):
    with Work() as counted:
        call()
    return counted


def splits(directions, tangents):
    """[(images, directions)] of the passes that push so many directions of a chunk's images, at most
    so many tangents in each (mvnrob/jacobian.py: all directions of few images)."""
    few, at_once = max(1, tangents // directions), min(directions, tangents)
    images = [min(few, CHUNK - at) for at in range(0, CHUNK, few)]
    return [
        (n, min(at_once, directions - at)) for n in images for at in range(0, directions, at_once)
    ]


def passes(pushed):
    """{("forward", images, 0), ("vjp", images, 1), ("jvp", images, m): Work}, m directions of each."""
    model = resnet.ResNet().to("meta")
    x = torch.empty(CHUNK, 3, SIDE, SIDE, device="meta")
    with torch.no_grad():
        out = {("forward", CHUNK, 0): work(lambda: model(x))}
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    out["vjp", CHUNK, 1] = work(
        lambda: torch.autograd.grad(logits[:, 0].sum(), leaf, retain_graph=True)
    )
    for images, m in pushed:
        out["jvp", images, m] = work(lambda images=images, m=m: push(model, x[:images], m))
    return out


def push(model, x, m):
    """``m`` directions of each input by forward mode, as mvnrob/jacobian.py does it."""
    along = x.new_empty(len(x), m, *x.shape[1:])
    one = lambda v: torch.func.jvp(model, (x,), (v,))[1]
    with torch.no_grad(), LinearLayers(any_layout=m > 1):
        return one(along[:, 0]) if m == 1 else torch.func.vmap(one, 1, 1)(along)


def graph_bytes():
    """What autograd keeps of an image, as robustness measures it."""
    from mvnrob.network import Network

    x = torch.zeros(1, 3, SIDE, SIDE)
    return Network("bench", resnet.ResNet(), None, x).graph_bytes(x)


def directions_bytes():
    """Bytes that drawing eight random directions and taking them out of a basis moves, one image."""
    from mvnrob._standard_normal import standard_normal

    key, basis = torch.tensor([1]), torch.zeros(1, 3, INPUTS, dtype=torch.float64)

    def draw():
        directions = standard_normal(key, 0, 8, INPUTS, torch.float64)
        directions -= (directions @ basis.mT) @ basis

    return work(draw).bytes


def seconds_of(counted, launch):
    """Of a pass: (expected, whether launches are the longer part)."""
    device, host = counted.seconds / EXPECTED_SHARE, counted.launches * launch
    return max(device, host), host > device


def moved(numbers, size=4):
    return numbers * size / DRAM / EXPECTED_SHARE


def cases():
    """Rows of screening.json: (level, JVPs, VJPs, rivals, way), where all rows were cheapest for 1,000."""
    rows = json.loads((RESULTS.parent / "screening.json").read_text())["rows"]
    for row in rows:
        jvp, vjp = row["jvp"], row["vjp"]
        way = "sketch"
        if row["kept"] + 1 > vjp:  # fewer rows than rivals
            # a low rank takes a product for every row and for every draw, all features hardly any
            way = "low rank" if jvp > vjp else "direct"
        if way == "direct":
            vjp = CLASSES
        yield row["level"], jvp, vjp, row["kept"], way


def integrals():
    """[(n, points, pivots)] that the CPU backend took on classifiers at a 99 % error of 1e-3."""
    rows = json.loads((RESULTS.parent / "mvn_cdf.json").read_text())["rows"]
    found = {}
    for row in rows:
        if row.get("abs_tol") == 1e-3 and row["table"] == "tolerance":
            points, pivots = row["points_mean"], row["pivots_mean"]
            old = found.get(row["n"], (0, 0))
            found[row["n"]] = max(old, (points, pivots))  # the hardest group
    return sorted((n, *v) for n, v in found.items())


def cdf_seconds(rivals, known):
    """Of an image with so many rivals: points and pivots of the next larger n that was measured."""
    _, points, pivots = next((row for row in known if row[0] >= rivals), known[-1])
    pivots = max(1, min(rivals, round(pivots)))
    points = max(512, points)
    completed = max(0, rivals - pivots)
    if pivots >= cuda_floor_tensor.tensor_pivots():
        counts = json.loads(cuda_floor_tensor.RESULTS.read_text())["counts"]
        took = max(cuda_floor_tensor.seconds(pivots, points, counts, completed=completed).values())
    else:
        took = 1 / cuda_floor.problems_per_s(pivots, points, "float32", **H200, completed=completed)
    # the plan: one block for a row, all rows of the chunk at the same time
    plan = 8 * pivots**2 * rivals / 2 / (L2 / H200["multiprocessors"]) / CHUNK
    return (took + plan) / EXPECTED_SHARE + CDF_CALLS * CDF_CALL / CHUNK


def jac_cov_seconds(rows):
    """Norms and products of an image's rows."""
    predicted = json.loads((RESULTS.parent / "cuda_predicted_jac_cov.json").read_text())["rows"]
    whole = next(r for r in predicted if (r["C"], r["D"], r["dtype"]) == (1000, INPUTS, "float32"))
    if rows > 104:  # the kernel by tensor cores: by pairs of rows
        return (rows / whole["C"]) ** 2 / whole["expected_per_s"]
    return 2 * moved(rows * INPUTS)


def image_seconds(jvp, vjp, rivals, way, counted, tangents, drawn, known):
    """{phase: seconds of an image} in a chunk of images alike."""
    of = lambda launch, *kind: seconds_of(counted[kind], launch)[0] / CHUNK
    out = dict.fromkeys(PHASES, 0.0)
    # evaluate's own, the targets', the features' check, one with a graph for each set of rows; and of
    # an image alone, whose launches are the time, three to measure the graph and find the last layer
    sets = 1 if jvp == 1 else 4 if way == "low rank" else 2
    alone = 3 * counted["forward", CHUNK, 0].launches * LAUNCH / CHUNK
    out["forward"] = (3 + sets) * of(LAUNCH, "forward", CHUNK, 0) + alone
    out["vjp"] = vjp * (of(LAUNCH, "vjp", CHUNK, 1) + moved(3 * INPUTS))
    groups = GROUPS[:1] if jvp == 1 else [*GROUPS[:2], *GROUPS[2:] * round((jvp - 4) / 8)]
    for size in groups:
        out["jvp"] += sum(of(LAUNCH_FUNC, "jvp", *part) for part in splits(size, tangents))
    if way != "low rank":
        out["covariance"] = jac_cov_seconds(1 + rivals)
    if way == "direct":
        out["covariance"] += moved(CLASSES * INPUTS)  # the norms of all rows
    if jvp > 1:
        eights = (jvp - 4) / 8
        out["sketch"] = LEADING + eights * drawn / DRAM / EXPECTED_SHARE
    if way == "low rank":
        # QR of the rows in eights like the first; the draws once more; influences twice, halves once
        out["sketch"] += LEADING * vjp / 8 + eights * drawn / DRAM / EXPECTED_SHARE
        out["sketch"] += 3 * moved(INFLUENCE * rivals, 1)
    out["cdf"] = cdf_seconds(rivals, known)
    # zeroed, gathered, and read three times by the check against a forward-mode product
    out["other"] = moved(6 * (vjp + 1) * INPUTS)
    out["read"] = INPUTS * 4 / 10e9  # to the device, from memory that is not pinned: 10 GB/s
    return out


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    kept, known = graph_bytes(), integrals()
    tangents = MEMORY // 4 // (2 * (kept + 32 * INPUTS + 48 * CLASSES))
    counted = passes(sorted({part for size in GROUPS for part in splits(size, tangents)}))
    drawn = directions_bytes()
    levels, rows = {}, []
    for level, *case in cases():
        levels.setdefault(level, []).append(case)
    for level, images in sorted(levels.items()):
        every = [image_seconds(*i, counted, tangents, drawn, known) for i in images]
        seconds = {phase: statistics.fmean(e[phase] for e in every) for phase in PHASES}
        total = sum(seconds.values())
        rows.append({
            "p": level, "jvp": statistics.fmean(i[0] for i in images),
            "vjp": statistics.fmean(i[1] for i in images),
            "rivals": statistics.fmean(i[2] for i in images),
            "images_per_s": 1 / total, **{f"{k}_ms": 1e3 * v for k, v in seconds.items()},
            "cdf_share": seconds["cdf"] / (total - seconds["read"]),
            "minutes_for_50000": 50_000 * total / 60,
        })  # fmt: skip
    rounded = [{k: float(f"{v:.3g}") for k, v in row.items()} for row in rows]
    work_rows = [
        {"pass": kind, "images": images, "directions": m,
         "gflop_an_image": w.flop / images / 1e9, "mb_an_image": w.bytes / images / 1e6,
         "launches": w.launches, "floor_ms_an_image": 1e3 * w.seconds / images,
         "tflops_at_floor": w.flop / w.seconds / 1e12,
         "launches_longer": seconds_of(w, LAUNCH_FUNC if kind == "jvp" else LAUNCH)[1]}
        for (kind, images, m), w in counted.items()
    ]  # fmt: skip
    data = {"passes": work_rows, "integrals": known, "tangents_at_once": tangents,
            "graph_mb": kept / 1e6, "rows": rounded}  # fmt: skip
    cuda_prediction.write(
        RESULTS, "mvnrob.evaluate", "cuda_floor_pipeline", data, lines_of(data),
        counted="operations and the floors of the kernels",
    )  # fmt: skip


def lines_of(data):
    number = lambda v: f"{v:.2g}" if v < 100 else f"{v:.0f}"
    head = ["p", "JVPs", "VJPs", "rivals", "images/s", *(f"{p} ms" for p in PHASES), "CDF's share",
            "minutes for 50,000"]  # fmt: skip
    about = (
        "ResNet-50's shape at 224 x 224, 1,000 classes, TF32 convolutions, chunks of "
        f"{CHUNK}, a quarter of the memory as `max_bytes`. A row is the mean over eight photographs whose "
        "p is the first column's, so 50,000 images are a set of such images; no decoding. An operation "
        f"takes its floor over {EXPECTED_SHARE:.0%} at {TF32 / 1e12:.0f} TFLOP/s and "
        f"{DRAM / 1e12:.1f} TB/s."
    )
    lines = [
        about,
        "",
        "| " + " | ".join(head) + " |",
        "| " + " | ".join(["---"] * len(head)) + " |",
    ]
    for r in data["rows"]:
        cells = [f"{r['p']:g}", *(number(r[k]) for k in ("jvp", "vjp", "rivals", "images_per_s")),
                 *(number(r[f"{p}_ms"]) for p in PHASES), f"{r['cdf_share']:.1%}",
                 number(r["minutes_for_50000"])]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "A pass, counted; directions and floor of each image:",
        "",
        "| pass | images | directions | GFLOP an image | MB an image | operations | floor, ms | TFLOP/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for w in data["passes"]:
        mark = " (launches take longer)" if w["launches_longer"] else ""
        lines.append(
            f"| {w['pass']} | {w['images']} | {w['directions']} | {w['gflop_an_image']:.1f} | {w['mb_an_image']:.0f} | {w['launches']}{mark} "
            f"| {w['floor_ms_an_image']:.2f} | {w['tflops_at_floor']:.0f} |"
        )
    assumed = (
        "Assumed: passes and rivals as EfficientNet-Lite0 took them on the photographs "
        "(`bench/results/screening.json`), 1,000 rows where all were cheapest; images of a chunk alike; "
        f"the host takes {1e6 * LAUNCH:.0f} us an operation, {1e6 * LAUNCH_FUNC:.0f} in forward mode, and "
        f"{1e3 * CDF_CALL:.1f} ms a call of mvn_cdf, of which a chunk has {CDF_CALLS}; points and pivots of "
        "mvn_cdf as the CPU backend took them on the hardest group of the next larger n "
        f"(`bench/results/mvn_cdf.json`); {1e3 * LEADING:.0f} ms an image for the QR and SVD of eight "
        "gradients, and as much for every eight more; "
        f"{INFLUENCE / 2**14:.0f} bytes moved for each of {2**14:,} draws and each rival where a low rank "
        "looks at what its sample does, three times an image; inputs reach the device at 10 GB/s. "
        f"Autograd keeps {data['graph_mb']:.0f} MB an image, so that {data['tangents_at_once']} "
        "tangents pass at once."
    )
    return [*lines, "", assumed]


if __name__ == "__main__":
    main()
