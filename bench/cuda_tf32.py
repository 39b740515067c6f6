"""How far rows of a Jacobian and products with it differ where convolutions are rounded to TF32.

python -m bench cuda_tf32 [--device cuda] [--images 8] [--rows 8]

bench/resnet.py's network of ResNet-50's shape, random weights, batch norms calibrated in float32,
channels last on a GPU, images of bench/synthetic_images.py. Rows are those of a few classes, by
torch.autograd.grad; products along one normal direction by torch.func.jvp. With TF32 off and on:

- rows_and_products: rows times the direction less the products, in units of the row's norm;
- passes_of_1_and_8: rows of passes of one image and of all, relative to their norm;
- rows_against_float32: rows with TF32 against those without.

Writes cuda_tf32.json: of each gap the median and the most. On a CPU TF32 changes nothing.
"""

import sys

from bench import harness

harness.numpy_threads_one()

import torch

from bench import bench_pipeline, cuda_environment, resnet, synthetic_images

SHAPE = {"blocks": [3, 4, 6, 3], "width": 64, "classes": 1000, "side": 224}


def network(args, device):
    """The model and its images."""
    made = synthetic_images.SyntheticImages(args.classes, args.side, device=device)
    model = resnet.ResNet(args.blocks, args.width, args.classes).to(device)
    with bench_pipeline.precise("float32"):
        resnet.calibrate(model, made.images(0, args.norm_images, salt=bench_pipeline.NORMS))
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    return model, made.images(0, args.images, salt=bench_pipeline.EVALUATED)


def jacobian_rows(model, x, classes, batch):
    """Rows [images, classes, inputs], so many images in a pass."""
    parts = []
    for part in x.split(batch):
        leaf = part.clone().requires_grad_()
        logits = model(leaf)
        rows = [
            torch.autograd.grad(logits[:, c].sum(), leaf, retain_graph=True)[0] for c in classes
        ]
        parts.append(torch.stack([row.flatten(1) for row in rows], 1).detach())
    return torch.cat(parts)


def gaps(values):
    return {"median": float(values.median()), "most": float(values.max())}


def relative(found, wanted):
    """||found - wanted|| / ||wanted|| of each row."""
    norms = torch.linalg.vector_norm(wanted.double(), dim=-1)
    return torch.linalg.vector_norm((found - wanted).double(), dim=-1) / norms


def measure(model, x, classes, tf32, plain=None):
    """(a row of the result, the Jacobian's rows); `plain` are the rows without TF32."""
    generator = torch.Generator(device=x.device).manual_seed(0)
    direction = torch.randn(x.shape, generator=generator, device=x.device)
    with bench_pipeline.precise("tf32" if tf32 else "float32"):
        rows = jacobian_rows(model, x, classes, len(x))
        alone = jacobian_rows(model, x, classes, 1)
        _, products = torch.func.jvp(model, (x,), (direction,))
    along = (rows.double() * direction.flatten(1)[:, None].double()).sum(-1)
    norms = torch.linalg.vector_norm(rows.double(), dim=-1)
    row = {
        "tf32": tf32,
        "rows_and_products": gaps((along - products[:, classes].double()).abs() / norms),
        "passes_of_1_and_8": gaps(relative(alone, rows)),
    }
    if plain is not None:
        row["rows_against_float32"] = gaps(relative(rows, plain))
    return row, rows


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--images", type=int, default=8)
    p.add_argument("--rows", type=int, default=8, help="classes, evenly spaced")
    p.add_argument("--norm-images", type=int, default=128)
    p.add_argument("--side", type=int, default=SHAPE["side"])
    p.add_argument("--classes", type=int, default=SHAPE["classes"])
    p.add_argument("--width", type=int, default=SHAPE["width"])
    p.add_argument(
        "--blocks", type=lambda text: [int(v) for v in text.split(",")], default=SHAPE["blocks"]
    )
    args = p.parse_args()
    device = torch.device(args.device)
    report = harness.environment()
    if device.type == "cuda":
        report |= cuda_environment.gpu() | {"commit": cuda_environment.commit()}
    harness.show_environment(report)
    model, x = network(args, device)
    classes = [at * args.classes // args.rows for at in range(args.rows)]
    plain, rows = measure(model, x, classes, False)
    rounded, _ = measure(model, x, classes, True, rows)
    out = [plain, rounded]
    for row in out:
        print(row)
    harness.write("cuda_tf32", report, out, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
