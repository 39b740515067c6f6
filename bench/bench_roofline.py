"""CPU rooflines: operations and bytes of each kernel, counted, beside what the machine gives now.

python -m bench roofline [--kernels step,sampler,jac_cov] [--n 9,99,999] [--cases 10x3072,1000x3072]

One thread, CPU time. Ceilings, the best that the same run saw: vector multiply-adds (twelve chains in
registers), BLAS (torch.mm, 1024 x 1024), copy (64 MB, read and written); they are measured again
beside every row, since a neighbour on the same core halves them. Counts:
- step: vector instructions of the compiled loop (objdump; loads, stores and moves not counted). The
  floor has multiplications, divisions and roots (as one each) at the rate of multiply-adds, and all
  together at twice that rate, whichever is larger. The products' rate is that of BLAS or of
  multiply-adds, whichever is higher.
- sampler: mvn_cdf_sums with every variable sampled, time of a point from two numbers of points, so
  that ordering and factorisation drop out. A point takes n (n - 1) operations at the products' rate and n
  steps at the step's floor. Bytes: the factor once for 64 points, the draws written once.
- jac_cov, jac_cov_norms: C (C + 1) D and 3 C D operations, J read once, 64 MB of them. The floor is
  the larger of operations at the products' rate and bytes at the copy's.
"share" is floor over measured time. Each kernel is checked before it is timed.
"""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "native"))
import native_build

COUNT = 4096  # elements of the step's loop: first-level cache
SHIFTS, TILE = 8, 64
MOVES = re.compile(r"v?(p?mov|p?broadcast|p?blend\w*mov|kmov|insert|extract|vextract)")


def best_isa():
    return [isa for isa in native_build.ISA_FLAGS if not native_build.missing_features(isa)][-1]


def library(isa):
    """Path of bench/step_loop.cpp compiled for an instruction set."""
    flags = [*native_build.build_flags(isa), "-fPIC", "-shared"]
    return native_build.compiled(HERE / "step_loop.cpp", f"step_loop_{isa}", ".so", flags)


def loop_instructions(text):
    """Mnemonics of the loop with the largest span in a disassembled function."""
    lines = re.findall(r"^\s*([0-9a-f]+):\s+(\S+)(?: +(.*))?$", text, re.MULTILINE)
    places = [int(place, 16) for place, _, _ in lines]
    spans = []
    for place, (_, name, operands) in zip(places, lines, strict=True):
        target = re.match(r"([0-9a-f]+)", operands or "")
        if name.startswith("j") and target and places[0] <= int(target.group(1), 16) < place:
            spans.append((int(target.group(1), 16), place))
    if not spans:
        raise RuntimeError("bench roofline: the step was compiled to something without a loop")
    first, last = max(spans, key=lambda span: span[1] - span[0])
    return [
        (name, operands or "")
        for place, (_, name, operands) in zip(places, lines, strict=True)
        if first <= place <= last
    ]


def vector_counts(instructions):
    """How many vector instructions there are of each kind; moves are not counted."""
    out = {"multiply": 0, "divide": 0, "other": 0, "integer": 0}
    for name, operands in instructions:
        if not re.search(r"%[xyz]mm", operands) or MOVES.match(name):
            continue
        if re.match(r"v?(fn?m|mul)", name):
            out["multiply"] += 1
        elif re.match(r"v?(div|sqrt)", name):
            out["divide"] += 1
        elif re.match(r"v?p", name):
            out["integer"] += 1
        else:
            out["other"] += 1
    return out


def count_step(path, dtype):
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", f"--disassemble=step_{dtype}", str(path)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return vector_counts(loop_instructions(text))


def checked(lib, dtype):
    """Arguments of the step's loop after a call whose results were right, and the call."""
    from scipy import special

    real = np.dtype(dtype)
    t = np.linspace(-4, 4, COUNT).astype(real)
    value, complement, y = np.ones(COUNT, real), np.zeros(COUNT, real), np.zeros(COUNT, real)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (t, value, complement, y)]
    step = getattr(lib, f"step_{dtype}")
    call = lambda: step(*pointers, COUNT, 0x6A09E667, 0x12345678)
    call()
    phi = special.ndtr(t.astype(float))
    bound = 3e-6 if real == np.float32 else 1e-12
    wrong = max(np.abs(value / phi - 1).max(), np.abs(value + complement - 1).max())
    if not (wrong < bound and (special.ndtr(y.astype(float)) <= phi * (1 + bound * 8)).all()):
        raise SystemExit(
            f"bench roofline: the {dtype} step is off by {wrong:.1e}, nothing is timed"
        )
    return call, (t, value, complement, y)


def step_line(dtype, isa, repeats):
    path = library(isa)
    lib = ctypes.CDLL(str(path))
    call, kept = checked(lib, dtype)

    def fresh():  # the running weights would sink into denormal numbers
        kept[1][:] = 1
        kept[2][:] = 0
        for _ in range(8):
            call()

    timing, _ = harness.cpu_time(fresh, repeats, least_s=0.01)
    adds = 12 * 2**20
    rate, _ = harness.cpu_time(lambda: getattr(lib, f"multiply_add_{dtype}")(adds), 9)
    ns = {k: 1e9 * timing[f"{k}_s"] / (8 * COUNT) for k in ("median", "min", "max")}
    counts = count_step(path, dtype)
    size = np.dtype(dtype).itemsize
    return {
        "kernel": "step", "dtype": dtype, "isa": isa,
        "operations": sum(counts.values()), "bytes": 6 * size,  # t, value, complement; the last two, y
        "ns": ns["median"], "ns_min": ns["min"], "ns_max": ns["max"],
        "multiply_add_ns": 1e9 * rate["min_s"] / adds, **counts,
    }  # fmt: skip


def sampler_line(n, dtype, repeats):
    """Time of a point when all n variables are sampled."""
    from bench import bench_scaling

    upper, cov, p = bench_scaling.problem(n, 0.7)
    batch = 32 if n < 100 else 1
    upper, cov = upper.expand(batch, n).contiguous(), cov.expand(batch, n, n).contiguous()
    order, seeds = torch.arange(n).expand(batch, n).contiguous(), torch.arange(batch)
    sums = lambda points: torch.ops.mvnrob.mvn_cdf_sums(
        upper, cov, None, seeds, order, points, dtype
    )
    few, many = (1024, 8192) if n < 500 else (256, 1024)
    found = sums(many)[:, :, 0].sum(1) / (many * SHIFTS)
    off = float((found - p).abs().max())
    if not off < 5e-3:
        raise SystemExit(f"bench roofline: the sampler is off by {off:.1e}, nothing is timed")
    times = [harness.cpu_time(lambda k=k: sums(k), repeats)[0] for k in (few, many)]
    points = batch * SHIFTS * (many - few)
    ns = 1e9 * (times[1]["median_s"] - times[0]["median_s"]) / points
    noise = [t["max_s"] - t["min_s"] for t in times]
    size = np.dtype(dtype).itemsize
    flops = n * (n - 1)
    bytes_ = size * (n * (n + 1) / 2 / TILE + n)
    return {
        "kernel": "sampler", "dtype": dtype, "n": n, "operations": flops, "bytes": bytes_,
        "ns": ns, "ns_min": ns - 1e9 * sum(noise) / points, "ns_max": ns + 1e9 * sum(noise) / points,
        "error": off,
    }  # fmt: skip


def jac_cov_lines(text, dtype, repeats):
    from mvnrob import _jac_cov as op

    classes, dim = (int(v) for v in text.split("x"))
    batch = max(1, 2**26 // (classes * dim * torch.finfo(getattr(torch, dtype)).bits // 8))
    g = torch.Generator().manual_seed(0)
    J = torch.randn(batch, classes, dim, generator=g, dtype=getattr(torch, dtype))
    logits = torch.randn(batch, classes, generator=g, dtype=J.dtype)
    target = torch.zeros(batch, dtype=torch.int64)
    want = op.jac_cov_reference(J[:1], logits[:1], target[:1], 0.1)
    corr = op.jac_cov(J[:1], logits[:1], target[:1], 0.1).corr.double()
    norms = op.jac_cov_norms(J[:1], target[:1])[:, 1:]
    off = max(
        float((corr - want.corr).abs().max()),
        float((norms / want.norms.square() - 1).abs().max()),
    )
    if not off < (8e-6 if dtype == "float32" else 1e-12):
        raise SystemExit(f"bench roofline: jac_cov is off by {off:.1e}, nothing is timed")
    calls = {
        "jac_cov": (lambda: op.jac_cov(J, logits, target, 0.1), classes * (classes + 1) * dim),
        "jac_cov_norms": (lambda: op.jac_cov_norms(J, target), 3 * classes * dim),
    }
    for kernel, (call, flops) in calls.items():
        timing, _ = harness.cpu_time(call, repeats, least_s=0.01)
        ns = {k: 1e9 * timing[f"{k}_s"] / batch for k in ("median", "min", "max")}
        bytes_ = J[0].numel() * J.element_size()
        yield {
            "kernel": kernel, "dtype": dtype, "C": classes, "D": dim, "operations": flops,
            "bytes": bytes_, "ns": ns["median"], "ns_min": ns["min"], "ns_max": ns["max"],
            "error": off,
        }  # fmt: skip


KERNELS = ("step", "sampler", "jac_cov")


def with_floors(rows, steps, seen):
    """Adds floor, what sets it, and share; returns the ceilings, the best of all yardsticks."""
    ceilings = {name: max(y[name] for y in seen) for name in seen[0]}
    step_floor = {}
    for dtype in dict.fromkeys(row["dtype"] for row in steps):
        own = [row for row in steps if row["dtype"] == dtype]
        add_ns = min(row["multiply_add_ns"] for row in own)
        ceilings[f"multiply_add_{dtype}_ns"] = add_ns
        slow = own[0]["multiply"] + own[0]["divide"]
        step_floor[dtype] = add_ns * max(slow, own[0]["operations"] / 2)
    for row in rows:
        dtype = row["dtype"]
        add_ns = ceilings[f"multiply_add_{dtype}_ns"]
        products = row["operations"] / max(ceilings[f"blas_{dtype}_gflops"], 2 / add_ns)
        if row["kernel"] == "step":
            row["floor_ns"], row["limit"] = step_floor[dtype], "vector instructions"
        elif row["kernel"] == "sampler":
            draws = row["n"] * step_floor[dtype]
            row["floor_ns"] = products + draws
            row["limit"] = "steps" if draws > products else "products"
        else:
            reading = row["bytes"] / ceilings["copy_gb_s"]
            row["floor_ns"] = max(products, reading)
            row["limit"] = "products" if products > reading else "copy"
        row["share"] = row["floor_ns"] / row["ns"]
    return ceilings


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument(
        "--kernels", type=harness.several(harness.one_of(KERNELS)), default=",".join(KERNELS)
    )
    p.add_argument("--n", type=harness.sizes(range(2, 4096)), default="9,99,999")
    p.add_argument(
        "--cases",
        type=harness.several(harness.case()),
        default="10x3072,100x3072,1000x3072",
        help="CxD of jac_cov",
    )
    p.add_argument(
        "--dtypes",
        type=harness.several(harness.one_of(("float32", "float64"))),
        default="float32,float64",
    )
    p.add_argument("--repeats", type=harness.whole(), default=7)
    args = p.parse_args()
    torch.set_num_threads(1)
    isa = best_isa()
    report = harness.environment() | {"isa": isa}
    harness.show_environment(report)
    rows, steps, seen = [], [], [report["yardstick"]]
    for dtype in args.dtypes:
        steps.append(step_line(dtype, isa, args.repeats))
        if "step" in args.kernels:
            rows.append(steps[-1])
        for n in args.n if "sampler" in args.kernels else ():
            rows.append(sampler_line(n, dtype, args.repeats))
            seen.append(harness.yardstick())
        for case in args.cases if "jac_cov" in args.kernels else ():
            rows += jac_cov_lines(case, dtype, args.repeats)
            seen.append(harness.yardstick())
        steps.append(step_line(dtype, isa, args.repeats))
    report["ceilings"] = with_floors(rows, steps, seen)
    print(f"# ceilings: {report['ceilings']}")
    harness.show(
        rows,
        [
            "kernel",
            "dtype",
            "n",
            "C",
            "D",
            "operations",
            "bytes",
            "ns",
            "floor_ns",
            "share",
            "limit",
        ],
    )
    harness.write("roofline", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
