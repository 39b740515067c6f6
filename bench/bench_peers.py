"""Time to error: CPU seconds per problem against true rms error, mvn_cdf beside every peer, one run.

python -m bench.bench_peers [--n 9,99,999] [--budget 60] [--peers scipy,mvtnorm,mvnxpb,crude]

One thread. A curve has a point for each setting: a number of points for a peer (bench/peers_cpu.py says
which there are, and how to install them), an absolute tolerance for mvn_cdf, whose lines also tell
what it claims, a 99 % error. Problems: classifiers with reference answers (bench/classifiers.py; at
n = 999 families with exact ones), and known answers that look like them. `--budget` caps the CPU
seconds of each setting of each peer; it then answers fewer problems, in a fixed random order, and
mvn_cdf's error is taken over the same ones for that line's ratio. A ratio compares times at equal true
rms error: mvn_cdf's curve is interpolated in log-log, beyond its ends extended at N^-1/2 for the peer's
sake and marked.
"""

import math
import sys
import warnings

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch

from bench import bench_mvn_cdf as base
from bench import peers_cpu

TOLERANCES = {
    9: (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5),
    99: (1e-2, 3e-3, 1e-3, 3e-4, 1e-4),
    999: (1e-2, 3e-3, 1e-3, 3e-4),
}


def groups_of(n, args):
    """The groups of one n, smallest counts with --quick."""
    if n == 999 and not args.sampled_references:
        whole = base.exact_group(n, base.CLASSIFIER_LIKE, "classifier-like")
        few, flat = whole.truth >= 0.9, whole.truth <= 0.7
        return [whole.part(few, "classifier-like p>=.9"), whole.part(flat, "classifier-like p<=.7")]
    count = base.QUICK if args.quick else base.COUNTS[n]
    whole, _ = base.classifier_group(n, count, args.seed)
    whole.name = "classifiers"
    singular = np.array([name.startswith("lin") for name in whole.names])
    steep = np.array([name.startswith("mlp") for name in whole.names])
    return [
        whole,
        whole.part(singular, "classifiers, singular"),
        whole.part(steep, "classifiers, networks"),
        base.exact_group(n, base.CLASSIFIER_LIKE, "known answers"),
    ]


def own_curve(group, args):
    """mvn_cdf over tolerances: time, errors [seeds, problems] and what it claims."""
    curve = []
    for tol in TOLERANCES[group.upper.shape[1]]:
        line = base.measured(group, tol, args.seeds, args.repeats)
        made, _ = base.errors(group, tol, args.seeds)
        curve.append({"tol": tol, "line": line, "made": made})
    return curve


def at_error(curve, which, target):
    """mvn_cdf's milliseconds at a true rms error over the problems `which`; and how found."""
    points = sorted(
        (base.rms(point["made"][:, which]), point["line"]["ms"]) for point in curve
    )  # the best error first
    kept = []
    for error, ms in points:  # a dearer setting that is not better says nothing
        if not kept or ms < kept[-1][1]:
            kept.append((error, ms))
    if target >= kept[-1][0]:
        return kept[-1][1], "its cheapest setting"
    if target <= kept[0][0]:
        error, ms = kept[0]
        return ms * (error / target) ** 2, "extrapolated"
    at = next(i for i, (error, _) in enumerate(kept) if error > target)
    (a, ms_a), (b, ms_b) = kept[at - 1], kept[at]
    share = math.log(target / a) / math.log(b / a)
    return ms_a * (ms_b / ms_a) ** share, "interpolated"


def peer_lines(peer, group, curve, args):
    n = group.upper.shape[1]
    order = np.random.default_rng(1).permutation(group.size)
    upper, cov = group.upper.numpy()[order], group.cov.numpy()[order]
    lines, spent = [], 0.0
    for points in peer.points[n]:
        probs, seconds = peer.answers(upper, cov, points, args.budget, args.seed + 1)
        made = np.abs(np.array(probs) - group.truth[order[: len(probs)]])
        right = np.isfinite(made)
        line = {
            "n": n, "group": group.name, "method": peer.name, "setting": points,
            "problems": int(right.sum()), "failed": int((~right).sum()),
            "of": group.size,
        }  # fmt: skip
        if right.any():
            which = order[: len(probs)][right]
            error, ms = base.rms(made[right]), 1e3 * float(np.mean(np.array(seconds)[right]))
            line |= {"ms": ms, "rms": error, "max": float(made[right].max())}
            if error > 0:
                line["mvn_cdf_ms"], line["how"] = at_error(curve, which, error)
                line["ratio"] = ms / line["mvn_cdf_ms"]
        lines.append(line)
        spent = sum(seconds)
        if spent > args.budget:  # the next setting is dearer still
            break
    return lines


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--n", default="9,99,999")
    p.add_argument("--quick", action="store_true", help="a third of the problems, two seeds")
    p.add_argument("--seeds", type=int, default=4, help="fresh shifts behind mvn_cdf's rms error")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--seed", type=int, default=0, help="of the problems")
    p.add_argument("--budget", type=float, default=60.0, help="CPU seconds per setting of a peer")
    p.add_argument("--peers", default=",".join(peer.name for peer in peers_cpu.PEERS))
    p.add_argument(
        "--sampled-references",
        action="store_true",
        help="n = 999: networks with sampled reference answers (an hour of CPU time at first)",
    )
    args = p.parse_args()
    known = {peer.name: peer for peer in peers_cpu.PEERS}
    unknown = [name for name in args.peers.split(",") if name and name not in known]
    if unknown:
        p.error(f"--peers must be among {', '.join(known)}, got {', '.join(unknown)}")
    if args.quick:
        args.seeds = min(args.seeds, 2)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="mvn_cdf: .*max_points")
    report = harness.environment()
    peers, report["peers"] = [], {}
    for name in args.peers.split(","):
        if name:
            absent = known[name].absent()
            report["peers"][name] = f"absent: {absent}" if absent else known[name].version()
            if not absent:
                peers.append(known[name])
    harness.show_environment(report)
    rows = []
    for n in [int(v) for v in args.n.split(",")]:
        for group in groups_of(n, args):
            curve = own_curve(group, args)
            own = [
                {
                    "n": n, "group": group.name, "method": "mvn_cdf", "setting": point["tol"],
                    "problems": group.size, "failed": 0, "of": group.size,
                    **{k: point["line"][k] for k in ("ms", "rms", "max")},
                    "converged": point["line"]["converged"],
                    "rms_reference": point["line"]["rms_reference"],
                }
                for point in curve
            ]  # fmt: skip
            lines = own + [line for peer in peers for line in peer_lines(peer, group, curve, args)]
            print(f"\nn = {n}, {group.name}: ms per problem and true rms error")
            harness.show(
                lines,
                ["method", "setting", "problems", "of", "failed", "ms", "rms", "max", "mvn_cdf_ms",
                 "how", "ratio", "converged"],
            )  # fmt: skip
            rows += lines
            slower = [line for line in lines if line.get("ratio", 2.0) < 1]
            for line in slower:
                print(f"# slower than {line['method']} at {line['setting']}: {line['ratio']:.2f}")
    harness.write("peers", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
