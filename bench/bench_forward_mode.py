"""Forward-mode products of whole networks: mvnrob's rules for layers beside torch's own.

python -m bench forward_mode [--device cpu] [--networks resnet50,deit_tiny,convnext_tiny] [--sides 32,224]
                             [--directions 8]

Networks of known shapes with random weights, a single input, `directions` of it in one pass
(torch.func.vmap over torch.func.jvp, so that the network itself runs once): mvnrob's way, and the same by torch's own
rules. Where images are small a pass is next to nothing but what the host does for each operation, which is what
a GPU waits for in passes of any size that is not large; at 224 x 224 it is the work itself. On a CPU in CPU time of one
thread; on a GPU in wall time, the device's work included. The products must agree to a thousandth of their norm.

Writes forward_mode.json, of a GPU cuda_forward_mode.json: of each network and side milliseconds of a pass by both
ways, their ratio, a forward pass's, and the difference of the products to their norm. In full float32, since
with TF32 two ways to the same product part at ReLUs' kinks.
"""

import sys
import time

from bench import harness

harness.numpy_threads_one()

import statistics

import torch

from bench import cuda_environment
from bench.convnext import ConvNeXt
from bench.resnet import ResNet
from bench.vision_transformer import VisionTransformer
from mvnrob.jacobian import LogitMap, plain_attention
from mvnrob.meter import Meter
from mvnrob.network import Network, full_float32

NETWORKS = {
    "resnet50": lambda side: ResNet(),
    "deit_tiny": VisionTransformer,
    "convnext_tiny": lambda side: ConvNeXt(),
}
#: Difference of the products, to their norm, that rounding explains.
ALIKE = 1e-3
COLUMNS = ["network", "side", "directions", "forward_ms", "torch_ms", "ms", "ms_min", "ms_max", "ratio", "difference"]  # fmt: skip


def by_torch(model, x, along):
    """``[m, 1, C]`` for directions ``[m, 1, ...]``."""
    push = lambda direction: torch.func.jvp(model, (x,), (direction,))[1]
    with torch.no_grad(), plain_attention():
        return torch.func.vmap(push)(along)


def by_mvnrob(model, x, along):
    directions, device = len(along), x.device
    network = Network("forward_mode", model, None, x)
    with torch.no_grad():
        network(x)
    logits = LogitMap(
        network, Meter(1, device), x, torch.zeros(1, dtype=torch.int64, device=device), check="off",
        max_copies=1, max_tangents=directions, method="batch", jvp_mode="forward",
    )  # fmt: skip
    rows = along.transpose(0, 1).flatten(2)
    return lambda: logits.jvp(rows).transpose(0, 1)


def timed(call, device, repeats):
    """{median_s, min_s, max_s}."""
    if device.type == "cpu":
        return harness.cpu_time(call, repeats, warm_up=2)[0]
    seconds = []
    for repeat in range(repeats + 2):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        if repeat > 1:
            seconds.append(time.perf_counter() - start)
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}


def measured(name, side, directions, device, repeats):
    model = NETWORKS[name](side).to(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, side, side, generator=generator).to(device)
    along = torch.randn(directions, *x.shape, generator=generator).to(device)
    mine = by_mvnrob(model, x, along)
    wanted, got = by_torch(model, x, along).double(), mine()
    difference = float((got - wanted).norm() / wanted.norm())
    if not difference <= ALIKE:
        raise SystemExit(
            f"bench_forward_mode: products of {name} differ by {difference:.1e} of their norm"
        )
    with torch.no_grad():
        forward = timed(lambda: model(x), device, repeats)
    theirs = timed(lambda: by_torch(model, x, along), device, repeats)
    own = timed(mine, device, repeats)
    return {
        "network": name, "side": side, "directions": directions, "device": device.type,
        "forward_ms": 1e3 * forward["median_s"], "torch_ms": 1e3 * theirs["median_s"],
        **harness.milliseconds("ms", own, 1), "ratio": theirs["median_s"] / own["median_s"],
        "difference": difference,
    }  # fmt: skip


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--device", type=harness.device, default="cpu", help="cpu or cuda")
    every = ",".join(NETWORKS)
    p.add_argument("--networks", type=harness.several(harness.one_of(NETWORKS)), default=every)
    p.add_argument("--sides", type=harness.several(harness.whole(32)), default="32,224")
    p.add_argument("--directions", type=harness.whole(), default=8)
    p.add_argument("--repeats", type=harness.whole(), default=5)
    args = p.parse_args()
    torch.set_num_threads(1)
    report, on_gpu = harness.environment(), args.device == "cuda"
    if on_gpu:
        report |= cuda_environment.gpu() | {"commit": cuda_environment.commit()}
    harness.show_environment(report)
    rows = []
    with full_float32():
        for name in args.networks:
            for side in args.sides:
                rows.append(
                    measured(name, side, args.directions, torch.device(args.device), args.repeats)
                )
                print("#", *map(harness.number, rows[-1].values()), flush=True)
    harness.show(rows, COLUMNS)
    harness.write("cuda_forward_mode" if on_gpu else "forward_mode", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
