"""robustness with 18,710 classes: passes and seconds per input, beside draws and the network itself.

python -m bench large_classes [--model ppocr-v6] [--characters 8] [--sigmas .05,.1]

PP-OCR's network on printed characters, in their fixed shuffle. Each input and noise level is a call of
its own: p and error of "taylor", its passes (JVP and VJP, the check's included), its CPU time. Beside
it p_drawn: normal draws of the last layer's 120 linearised features, every class's margin at each, which
shares nothing with the estimator; a p off by more than 5 standard errors of the draws ends the run. And
p_network with its 99 % limits: Monte Carlo of the network.
"""

import math
import statistics
import sys
import time

from bench import harness

COLUMNS = ["character", "sigma", "p", "error", "p_drawn", "p_network", "network_low", "network_high",
           "jvp", "vjp", "passes", "kept", "cpu_s"]  # fmt: skip
MODELS = ("ppocr-v6", "ppocr-v4")
BANDS = (0.0, 0.9, 0.99, 0.999)


def drawn(model, x, target, sigmas, count, seed):
    """Shares of draws of the linearised features ``W (h + sigma H e) + b`` with the target on top."""
    import torch

    leaf = x.clone().requires_grad_()
    features = model.features(leaf.flip(1) * 2 - 1)[0, model.place]
    rows = [torch.autograd.grad(f, leaf, retain_graph=True)[0].flatten() for f in features]
    rows = torch.stack(rows).double()
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    root = (vectors * values.clamp_min(0).sqrt()).T.float()
    clean = model(x)[0].detach()
    generator = torch.Generator().manual_seed(seed)
    kept = [0] * len(sigmas)
    for _ in range(count // 1000):
        moves = (torch.randn(1000, len(rows), generator=generator) @ root) @ model.head.weight.T
        for s, sigma in enumerate(sigmas):
            kept[s] += int(((clean + sigma * moves).argmax(1) == target).sum())
    return [k / (count // 1000 * 1000) for k in kept]


def rows_of(model, name, x, sigmas, draws, copies, seed):
    from mvnrob import robustness

    target = model(x).argmax(1)
    shares = drawn(model, x, target, sigmas, draws, seed)
    for sigma, share in zip(sigmas, shares, strict=True):
        start = time.process_time()
        result = robustness(model, x, sigma, seed=seed, check="raise")
        seconds = time.process_time() - start
        p, error = float(result.prob[0]), float(result.error[0])
        allowed = 5 * math.sqrt(max(p * (1 - p), 1 / draws) / draws) + error
        if not abs(p - share) <= allowed:
            sys.exit(f"bench_large_classes: {name} at {sigma}: p {p:.5f}, but {share:.5f} of draws")
        mc = robustness(model, x, sigma, method="mc", n_samples=copies, seed=seed)
        jvp, vjp = int(result.cost.jvp[0]), int(result.cost.vjp[0])
        kept = model.num_classes - 1 - int(result.n_screened[0])
        values = [name, sigma, p, error, share, float(mc.prob[0]), float(mc.lower[0]),
                  float(mc.upper[0]), jvp, vjp, jvp + vjp, kept, seconds]  # fmt: skip
        yield dict(zip(COLUMNS, values, strict=True))


def summary(rows):
    for low, high in zip(BANDS, (*BANDS[1:], 1.1), strict=True):
        some = [r for r in rows if low <= r["p"] < high]
        if some:
            yield {
                "p_from": low,
                "cases": len(some),
                "median_passes": statistics.median(r["passes"] for r in some),
                "most_passes": max(r["passes"] for r in some),
                "median_cpu_s": statistics.median(r["cpu_s"] for r in some),
                "most_cpu_s": max(r["cpu_s"] for r in some),
                "outside_network_limits": sum(
                    not r["network_low"] <= r["p"] <= r["network_high"] for r in some
                ),
            }


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument(
        "--model",
        type=harness.one_of(MODELS),
        default=MODELS[0],
        help="one of " + ", ".join(MODELS),
    )
    p.add_argument("--characters", type=harness.whole(), default=8)
    p.add_argument("--sigmas", type=harness.several(harness.positive), default="0.05,0.1")
    p.add_argument(
        "--draws", type=harness.whole(1000), default=10_000, help="of the linearised features"
    )
    p.add_argument(
        "--copies", type=harness.whole(), default=128, help="noisy copies for the network itself"
    )
    p.add_argument("--seed", type=harness.whole(0), default=0)
    args = p.parse_args()

    import torch

    from mvnrob.models.glyphs import as_input, draw_glyphs
    from mvnrob.models.pp_ocr import load_pp_ocr

    torch.set_num_threads(1)
    report = harness.environment()
    harness.show_environment(report)
    model = load_pp_ocr(args.model)
    rows = []
    for glyph in draw_glyphs(args.model, limit=args.characters):
        x = as_input(glyph)[None]
        for row in rows_of(
            model, glyph.character, x, args.sigmas, args.draws, args.copies, args.seed
        ):
            rows.append(row)
            print(f"# {glyph.character} {row['sigma']}: {row['passes']} passes", flush=True)
    harness.show(rows, COLUMNS)
    report["classes"] = model.num_classes
    report["summary"] = list(summary(rows))
    harness.show(report["summary"], list(report["summary"][0]))
    harness.write("large_classes", report, rows, args.out)


if __name__ == "__main__":
    main()
