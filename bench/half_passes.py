"""What half precision does to rows and products of a network, where passes round alike and where one layer does not.

python -m bench half_passes [--device cpu] [--images 48] [--rows 32]

Why `check` warns in half precision of networks that differentiate rightly (mvnrob/jacobian.py). bench/resnet.py's
network with random weights but a last layer that tells its classes apart, batch norms folded, all but its last
layer in float16 or bfloat16, as evaluate's `dtype` makes it; images of bench/synthetic_images.py, some classes of
each. Rows by backward passes and products along one normal direction by forward mode as mvnrob's check compares
them: of each image the largest difference, in units of its largest row's norm.

- alike: both passes round alike.
- one, all: numbers behind one convolution, or behind all of them, come out otherwise in one of the two passes,
  two in five, by a unit or two in the last place, as other algorithms round: those that sum in float32 fewer
  numbers. `layer` counts from 0.

Writes half_passes.json: of each the median, the most and the share above the check's bound.
"""

import sys

from bench import harness

harness.numpy_threads_one()

import torch
from torch import nn

from bench import bench_pipeline, resnet, synthetic_images
from mvnrob.evaluation.folding import fold_batch_norms
from mvnrob.evaluation.half import in_half
from mvnrob.evaluation.models import LoadedModel
from mvnrob.jacobian import LogitMap
from mvnrob.meter import Meter
from mvnrob.network import Network

COLUMNS = ["precision", "rounding", "layer", "layers", "median", "most", "above"]


class Rounding:
    """Moves numbers behind convolutions by less than half of the dtype's eps, in one of two ways, and rounds them."""

    def __init__(self, model):
        self.layers = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
        self.other = frozenset()  # layers that take the other way
        for at, part in enumerate(self.layers):
            part.register_forward_hook(lambda _, args, out, at=at: self.moved(at, out))

    def moved(self, at, out):
        way = torch.Generator().manual_seed(2 * at + (at in self.other))
        up = torch.rand(out.shape[1:], generator=way).to(out.device) - 0.5
        return (out.float() * (1 + torch.finfo(out.dtype).eps * up)).to(out.dtype)


def network(args, device):
    """The model, batch norms folded, and its images."""
    made = synthetic_images.SyntheticImages(args.classes, args.side, device=device)
    model = resnet.ResNet(args.blocks, args.width, args.classes).to(device)
    with bench_pipeline.precise("float32"):
        resnet.calibrate(model, made.images(0, args.norm_images, salt=bench_pipeline.NORMS))
        resnet.set_last_layer(
            model, lambda first, count: made.images(first, count, salt=bench_pipeline.LAST_LAYER),
            4, args.norm_images,
        )  # fmt: skip
    x = made.images(0, args.images, salt=bench_pipeline.EVALUATED)
    return fold_batch_norms(LoadedModel(model, "resnet", bounds=(0.0, 1.0)), x[:1]), x


def measured(args, device):
    """Rows, as they come."""
    loaded, x = network(args, device)
    generator = torch.Generator().manual_seed(0)
    classes = torch.stack([torch.randperm(args.classes, generator=generator) for _ in x])
    classes = classes[:, : args.rows].to(device)
    for precision in args.precisions:
        model = in_half(precision)(loaded, x[:1]).model
        rounding, net = Rounding(model), Network("half_passes", model, None, x)
        net(x[:1])

        def made(net=net):
            return LogitMap(
                net, Meter(len(x), device), x, torch.arange(len(x), device=device), check="off",
                max_copies=len(x), max_tangents=len(x), method="batch", jvp_mode="forward",
            )  # fmt: skip

        rounding.other = frozenset()
        rows, count = made().rows(classes), len(rounding.layers)
        cases = [("alike", "", ())]
        cases += [
            ("one", at, (at,)) for at in args.layers or (0, count // 2, *range(count - 4, count))
        ]
        for name, layer, other in [*cases, ("all", "", range(count))]:
            rounding.other = frozenset(other)
            gap, size = made()._gaps(classes, rows)
            gap = gap / size
            yield {
                "precision": precision, "rounding": name, "layer": layer, "layers": count,
                "median": float(gap.median()), "most": float(gap.max()),
                "above": float((gap > net.rounding()).double().mean()),
            }  # fmt: skip


def main():
    p = harness.parser(__doc__.splitlines()[0])
    numbers = lambda text: [int(v) for v in text.split(",")]
    p.add_argument("--device", default="cpu")
    p.add_argument("--precisions", type=lambda text: text.split(","), default="float16,bfloat16")
    p.add_argument("--images", type=int, default=48)
    p.add_argument("--rows", type=int, default=32, help="classes of each image")
    p.add_argument("--norm-images", type=int, default=64)
    p.add_argument("--side", type=int, default=64)
    p.add_argument("--classes", type=int, default=64)
    p.add_argument("--width", type=int, default=16)
    p.add_argument("--blocks", type=numbers, default="3,4,6,3")
    p.add_argument("--layers", type=numbers, help="taken one at a time")
    args = p.parse_args()
    report = harness.environment()
    harness.show_environment(report)
    rows = []
    for row in measured(args, torch.device(args.device)):
        print("#", *row.values(), flush=True)
        rows.append(row)
    harness.show(rows, COLUMNS)
    harness.write("half_passes", report, rows, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
