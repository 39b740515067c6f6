"""What a pass of a size that was not seen before takes, beside one of the same size again.

python -m bench cuda_pass_sizes [--device cuda] [--networks resnet,efficientnet-lite0] [--budget 60]

cuDNN plans a convolution anew for every size of a batch: why passes on a GPU come in few sizes
(mvnrob/passes.py). bench/resnet.py's network, batch norms folded, channels last, or EfficientNet-Lite0 with
`--layouts`; random images. Of each precision, in ms of the host's clock, the device waited for:

- forward: without a graph; vjp: forward with a graph, and a backward pass; jvp: by mvnrob's forward mode,
  so many directions (eight) of each of a few images.
- first: at a size for the first time in the process; again: the median of the next three.

Sizes are taken in turn, and the first one of a kind also loads the kernels. Writes cuda_pass_sizes.json.
"""

import statistics
import sys
import time

from bench import harness

harness.numpy_threads_one()

import torch

from bench import bench_pipeline, cuda_environment, cuda_timing, resnet
from mvnrob.evaluation.folding import fold_batch_norms
from mvnrob.evaluation.layout import lay_out
from mvnrob.evaluation.models import LoadedModel
from mvnrob.forward_mode import LayerRules

DIRECTIONS = 8
#: Sizes that a run may meet one after the other.
SIZES = {
    "forward": (64, 65, 66, 67, 96),
    "vjp": (64, 65, 66, 67, 96),
    "jvp": (8, 9, 10, 11, 24),
}
COLUMNS = ["network", "layout", "precision", "pass", "size", "first_ms", "again_ms"]


def resnet_model(args, device):
    model = resnet.ResNet(args.blocks, args.width, args.classes)
    x = torch.rand(2, 3, args.side, args.side)
    resnet.calibrate(model, x)
    model = fold_batch_norms(LoadedModel(model, "resnet", bounds=(0.0, 1.0)), x).model
    return model.to(device).to(memory_format=torch.channels_last)


def efficientnet(layout, device):
    from mvnrob.models.efficientnet_lite import load_efficientnet_lite0

    # on a CPU it comes with channels last
    model = load_efficientnet_lite0().to(device).to(memory_format=torch.contiguous_format)
    if layout == "channels_last":
        lay_out(model)
    return model


def models(args, device):
    """(name, layout, model in float32)"""
    for network in args.networks:
        if network == "resnet":
            yield "ResNet-50's shape", "channels_last", resnet_model(args, device)
            continue
        for layout in args.layouts:
            yield "EfficientNet-Lite0", layout, efficientnet(layout, device)


def passes(model, side, device, dtype):
    """{kind: a pass of so many images}"""
    images = lambda *shape: torch.rand(*shape, 3, side, side, device=device, dtype=dtype)

    @torch.no_grad()
    def forward(size):
        return model(images(size))

    def vjp(size):
        x = images(size).requires_grad_()
        return torch.autograd.grad(model(x).sum(), x)

    @torch.no_grad()
    def jvp(size):
        x, along = images(size), images(DIRECTIONS, size)
        push = lambda e: torch.func.jvp(model, (x,), (e,))[1]
        with LayerRules(any_layout=True):
            return torch.func.vmap(push, out_dims=1)(along)

    return {"forward": forward, "vjp": vjp, "jvp": jvp}


def timed(call, size, device):
    cuda_timing.synchronize(device)
    start = time.perf_counter()
    call(size)
    cuda_timing.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def measured(args, device, budget):
    """Rows, as they come, as long as there is time."""
    for name, layout, model in models(args, device):
        for precision in args.precisions:
            half = {"float16": torch.float16, "bfloat16": torch.bfloat16}
            dtype = half.get(precision, torch.float32)
            model.to(dtype)
            about = {"network": name, "layout": layout, "precision": precision}
            with bench_pipeline.precise(precision):
                for kind, call in passes(model, args.side, device, dtype).items():
                    for size in SIZES[kind]:
                        if budget.left() < 0:
                            args.not_run.append(f"{name}, {layout}, {precision}, {kind}, {size}")
                            continue
                        first, *again = (timed(call, size, device) for _ in range(4))
                        again = statistics.median(again)
                        shown = f"{size} x {DIRECTIONS}" if kind == "jvp" else str(size)
                        yield about | {
                            "pass": kind,
                            "size": shown,
                            "first_ms": first,
                            "again_ms": again,
                        }


def main():
    p = harness.parser(__doc__.splitlines()[0])
    words = lambda text: text.split(",")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--networks", type=words, default="resnet", help="resnet, efficientnet-lite0")
    p.add_argument("--precisions", type=words, default="tf32,float16")
    p.add_argument(
        "--layouts", type=words, default="contiguous,channels_last", help="of efficientnet-lite0"
    )
    p.add_argument("--side", type=int, default=224)
    p.add_argument("--classes", type=int, default=1000)
    p.add_argument(
        "--blocks", type=lambda text: [int(v) for v in text.split(",")], default="3,4,6,3"
    )
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--budget", type=float, default=60.0, help="seconds; what is left out is named")
    args = p.parse_args()
    if unknown := set(args.networks) - {"resnet", "efficientnet-lite0"}:
        p.error(f"--networks must be of resnet, efficientnet-lite0, got {unknown.pop()}")
    if unknown := set(args.layouts) - {"contiguous", "channels_last"}:
        p.error(f"--layouts must be of contiguous, channels_last, got {unknown.pop()}")
    if unknown := set(args.precisions) - set(bench_pipeline.ROUNDING):
        p.error(
            f"--precisions must be of {', '.join(bench_pipeline.ROUNDING)}, got {unknown.pop()}"
        )
    device, args.not_run = torch.device(args.device), []
    report = harness.environment()
    if device.type == "cuda":
        report |= cuda_environment.gpu() | {"commit": cuda_environment.commit()}
    harness.show_environment(report)
    rows = []
    for row in measured(args, device, cuda_timing.Budget(args.budget)):
        print("#", *row.values(), flush=True)
        rows.append(row)
        harness.write("cuda_pass_sizes", report | {"not_run": args.not_run}, rows, args.out)
    harness.show(rows, COLUMNS)
    if rows:  # once more, with what there was no time for
        harness.write("cuda_pass_sizes", report | {"not_run": args.not_run}, rows, args.out)
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
