"""Time to error: CPU seconds per problem against true rms error, mvn_cdf beside every peer, one run.

python -m bench peers [--n 9,49,99,199,499,999,1999,4095] [--budget 2] [--curve 2]
                      [--patience 12] [--references 9] [--peers scipy,mvtnorm,mvnxpb,crude] [--cache FOLDER]
python -m bench peers --join A.json,B.json

One thread. A curve has a point for each setting: a number of points for a peer (bench/peers_cpu.py says
which there are, and how to install them), "authors" and "default" for SciPy with the authors' arguments
and with none; an absolute tolerance for mvn_cdf, which is a 99 % error. Problems: bench/peer_problems.py,
by kind and by band of p; `--references` names the n whose trained classifiers take part (their sampled
answers take minutes at first; at n = 9 half of one), `--cache` the folder of EfficientNet-Lite0's
covariances, which `python -m bench screening --cache FOLDER` fills.
A peer answers the problems of one n in rounds with fresh seeds, bands in turn, until `--budget` CPU
seconds are spent on a setting (with enough for `--seeds` rounds every row has that many answers and
more); a first problem that takes more than `--patience` is given up, and the peer has no answer at
this n. A ratio compares times at equal true rms error over the same problems: mvn_cdf's curve is
interpolated in log-log, beyond its ends extended at N^-1/2 for the peer's sake and marked. Few answers
make a rough rms error, and the column "answers" says how few; that of crude Monte Carlo is known.
"""

import json
import math
import sys
import warnings
from pathlib import Path

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch

from bench import classifiers, peer_problems, peers_cpu

SIZES = "9,49,99,199,499,999,1999,4095"
TOLERANCES = tuple(m * 10.0**-k for k in range(1, 9) for m in (1, 0.3))  # .1 to 3e-9
ALL = "all"


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def problems_of(n, args):
    out = list(peer_problems.hierarchies(n, args.seed))
    if n in args.references:
        out += peer_problems.classifier_cases(n, args.seed)
    if n == 999 and args.cache:
        out += peer_problems.photographs(args.cache)
    return out


def groups_of(problems):
    """{(kind, band): indices}."""
    groups = {}
    for i, problem in enumerate(problems):
        groups.setdefault((problem.kind, problem.band), []).append(i)
    return dict(sorted(groups.items()))


def own_curve(problems, args):
    """mvn_cdf over tolerances on one group: milliseconds and errors [seeds, problems].

    The next tolerance costs up to ten times as much and is left out once `--curve` is spent.
    """
    from mvnrob import mvn_cdf

    upper = torch.from_numpy(np.stack([p.upper for p in problems]))
    cov = torch.from_numpy(np.stack([p.cov for p in problems]))
    truth = np.array([p.prob for p in problems])
    curve = []
    for tol in TOLERANCES:
        made, seconds = [], []
        for seed in range(args.seeds):
            seeds = torch.arange(len(truth)) + 10_000 * (seed + 1)
            call = lambda seeds=seeds, tol=tol: mvn_cdf(
                upper, cov, abs_tol=tol, seed=seeds, return_info=True
            )
            if seed == 0 or seconds[0] >= peers_cpu.LEAST_S:
                result, took = peers_cpu.timed(call)
                seconds.append(took)
            else:  # short ones are timed once
                result = call()
            made.append(np.abs(result.prob.numpy() - truth))
        curve.append(
            {
                "tol": tol,
                "ms": 1e3 * float(np.mean(seconds)) / len(truth),
                "made": np.array(made),
                "converged": float((result.status != 2).double().mean()),
            }
        )
        if sum(seconds) > args.curve:
            break
    return curve


def at_error(points, target):
    """mvn_cdf's milliseconds at a true rms error, from its (error, ms); and how found."""
    kept = []
    for error, ms in sorted(points):  # the best error first; a dearer one that is no better is out
        if not kept or ms < kept[-1][1]:
            kept.append((max(error, 1e-17), ms))
    if target >= kept[-1][0]:
        return kept[-1][1], "its cheapest setting"
    if target <= kept[0][0]:
        error, ms = kept[0]
        return ms * (error / target) ** 2, "extrapolated"
    at = next(i for i, (error, _) in enumerate(kept) if error > target)
    (a, ms_a), (b, ms_b) = kept[at - 1], kept[at]
    share = math.log(target / a) / math.log(b / a)
    return ms_a * (ms_b / ms_a) ** share, "interpolated"


def in_turn(problems, rounds, rng):
    """Indices of the problems for `rounds` rounds: in each, every group once before any twice."""
    order = []
    for _ in range(rounds):
        waiting = [list(rng.permutation(indices)) for indices in groups_of(problems).values()]
        while waiting:
            for i in rng.permutation(len(waiting)):
                order.append(int(waiting[i].pop()))
            waiting = [group for group in waiting if group]
    return order


def word(line):
    """Why a row is behind, if it is."""
    if line.get("ratio", 1) >= 1:
        return ""
    why = {
        "its cheapest setting": "behind: mvn_cdf has no cheaper setting",
        "extrapolated": "behind: beyond mvn_cdf's tightest setting here",
    }.get(line["how"], "behind")
    answers = line["answers"]
    return why + (f" (rms of {answers} answer{'s' * (answers > 1)})" if answers <= 4 else "")


def peer_lines(peer, setting, n, problems, curves, args):
    """Rows of one setting: each group, and each kind over its bands. And whether each had an answer."""
    rounds = 1 if peer.name == "mvnxpb" else args.seeds  # it draws nothing
    order = in_turn(problems, rounds, np.random.default_rng(args.seed + 1))
    made = peers_cpu.within(
        peer, [(problems[i].upper, problems[i].cov) for i in order], setting, args.budget,
        args.patience, args.seed + 1,
    )  # fmt: skip
    common = {"n": n, "method": peer.name, "setting": setting}
    if not made:
        return [common | {"kind": ALL, "p": ALL, "answers": 0, "failed": 0,
                "word": f"no answer in {args.patience:g} CPU seconds"}], False  # fmt: skip
    lines = []
    for (kind, band), indices in groups_of(problems).items():
        mine = [(order[k], *pair) for k, pair in enumerate(made) if order[k] in indices]
        if not mine:
            continue
        probs = np.array([v[1] for v in mine])
        right = np.isfinite(probs)
        line = common | {"kind": kind, "p": str(band), "answers": int(right.sum()),
                         "failed": int((~right).sum())}  # fmt: skip
        if right.any():
            which = np.array([v[0] for v in mine])[right]
            off = np.abs(probs[right] - np.array([problems[i].prob for i in which]))
            ms = 1e3 * float(np.mean(np.array([v[2] for v in mine])[right]))
            known = getattr(peer, "known_rms", None)
            truth = np.array([problems[i].prob for i in which])
            line |= {
                "ms": ms, "rms": known(truth, setting) if known else rms(off), "max": float(off.max()),
            }  # fmt: skip
            columns = [indices.index(i) for i in which]
            curve = curves[kind, band]
            own = [(rms(p["made"][:, columns]), p["ms"]) for p in curve]
            line["_own"] = own
            if line["rms"] > 0:
                line["mvn_cdf_ms"], line["how"] = at_error(own, line["rms"])
                line["ratio"] = ms / line["mvn_cdf_ms"]
        line["word"] = word(line) if right.any() else "refused"
        lines.append(line)
    for kind in dict.fromkeys(line["kind"] for line in lines):
        parts = [line for line in lines if line["kind"] == kind and "rms" in line]
        if parts:
            lines.append(over_bands(parts, common | {"kind": kind, "p": ALL}))
    return lines, len(made) >= len(curves)


def over_bands(parts, line):
    """A kind's row from the bands that were answered, each with equal weight.

    mvn_cdf is compared over the same bands, at one tolerance for all.
    """
    line |= {
        "bands": len(parts),
        "answers": sum(p["answers"] for p in parts),
        "failed": sum(p["failed"] for p in parts),
        "ms": float(np.mean([p["ms"] for p in parts])),
        "rms": rms([p["rms"] for p in parts]),
        "max": max(p["max"] for p in parts),
    }
    steps = min(len(p["_own"]) for p in parts)
    own = [
        (rms([p["_own"][k][0] for p in parts]), float(np.mean([p["_own"][k][1] for p in parts])))
        for k in range(steps)
    ]
    if line["rms"] > 0:
        line["mvn_cdf_ms"], line["how"] = at_error(own, line["rms"])
        line["ratio"] = line["ms"] / line["mvn_cdf_ms"]
    line["word"] = word(line)
    return line


def own_lines(n, curves):
    lines = []
    for kind in dict.fromkeys(kind for kind, _ in curves):
        bands = {band: curve for (k, band), curve in curves.items() if k == kind}
        for i, tol in enumerate(TOLERANCES):
            parts = []
            for band, curve in bands.items():
                if i < len(curve):
                    made = curve[i]["made"]
                    parts.append(
                        {
                            "n": n, "method": "mvn_cdf", "setting": tol, "kind": kind, "p": str(band),
                            "answers": made.size, "failed": 0, "ms": curve[i]["ms"],
                            "rms": rms(made), "max": float(made.max()),
                            "converged": curve[i]["converged"],
                        }
                    )  # fmt: skip
            lines += parts
            if len(parts) == len(bands):
                lines.append(
                    parts[0]
                    | {
                        "p": ALL, "answers": sum(p["answers"] for p in parts), "bands": len(parts),
                        "ms": float(np.mean([p["ms"] for p in parts])),
                        "rms": rms([p["rms"] for p in parts]),
                        "max": max(p["max"] for p in parts),
                        "converged": float(np.mean([p["converged"] for p in parts])),
                    }
                )  # fmt: skip
    return lines


def rows_of(n, peers, args):
    problems = problems_of(n, args)
    curves = {
        key: own_curve([problems[i] for i in indices], args)
        for key, indices in groups_of(problems).items()
    }
    rows = own_lines(n, curves)
    for peer in peers:
        if peer.most_n is not None and n > peer.most_n:
            rows.append({"n": n, "method": peer.name, "kind": ALL, "p": ALL, "answers": 0,
                         "word": f"takes at most {peer.most_n} variables"})  # fmt: skip
            continue
        onwards = True
        for setting in peer.settings(n):
            if not onwards and setting not in peers_cpu.SCIPY_SETTINGS:
                continue  # the setting before was too dear to reach every band
            lines, onwards = peer_lines(peer, setting, n, problems, curves, args)
            rows += lines
            if lines[0]["kind"] == ALL:
                break  # not one answer, and what follows is dearer still
    for row in rows:
        row.pop("_own", None)
        for key, value in row.items():
            if isinstance(value, float):
                row[key] = float(f"{value:.4g}")
    return rows


def join(paths, out):
    """One result of several runs, by n; the environment is the first one's, with every command."""
    parts = [json.loads(path.read_text()) for path in paths]
    rows = sorted((row for part in parts for row in part["rows"]), key=lambda row: row["n"])
    report = parts[0]["environment"]
    report["command"] = "; ".join(part["environment"]["command"] for part in parts)
    report["runs"] = [
        {k: v for k, v in part["environment"].items() if k != "runs"} for part in parts
    ]
    harness.write("peers", report, rows, out)


def main():
    p = harness.parser(__doc__.splitlines()[0])
    least, most = peer_problems.LEAST_N, peer_problems.MOST_N
    p.add_argument("--n", type=harness.sizes(range(least, most + 1)), default=SIZES)
    p.add_argument(
        "--references",
        type=harness.sizes([n for n in classifiers.REFERENCE if n != 999]),
        default="9",
        help="the n whose trained classifiers take part",
    )
    p.add_argument(
        "--seeds", type=harness.whole(), default=4, help="fresh shifts behind each rms error"
    )
    p.add_argument("--seed", type=harness.whole(0), default=0, help="of the problems")
    p.add_argument(
        "--budget",
        type=harness.positive,
        default=2.0,
        help="CPU seconds per n and a peer's setting",
    )
    p.add_argument(
        "--curve", type=harness.positive, default=2.0,
        help="CPU seconds per n, kind and band after which mvn_cdf's next tolerance is left out",
    )  # fmt: skip
    p.add_argument(
        "--patience", type=harness.positive, default=12.0, help="CPU seconds for one problem"
    )
    p.add_argument("--join", help="instead of a run: these results, with commas, as one")
    p.add_argument("--peers", default=",".join(peer.name for peer in peers_cpu.PEERS))
    p.add_argument(
        "--cache", type=Path, help="folder of covariances that bench screening --cache fills"
    )
    args = p.parse_args()
    known = {peer.name: peer for peer in peers_cpu.PEERS}
    unknown = [name for name in args.peers.split(",") if name and name not in known]
    if unknown:
        p.error(f"--peers must be among {', '.join(known)}, got {', '.join(unknown)}")
    if args.cache and not args.cache.is_dir():
        p.error(
            f"--cache must be a folder that `python -m bench screening --cache FOLDER` has filled, "
            f"got {args.cache}"
        )
    if args.join:
        absent = [name for name in args.join.split(",") if not Path(name).is_file()]
        if absent:
            p.error(f"--join must name result files, got {', '.join(absent)}")
        return join([Path(name) for name in args.join.split(",")], args.out)
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
    for n in args.n:
        lines = rows_of(n, peers, args)
        print(f"\nn = {n}: ms per problem and true rms error, all bands of p")
        harness.show(
            [line for line in lines if line["p"] == ALL],
            ["kind", "method", "setting", "bands", "answers", "failed", "ms", "rms", "max", "mvn_cdf_ms",
             "how", "ratio", "word"],
        )  # fmt: skip
        behind = [line for line in lines if line.get("ratio", 2.0) < 1]
        print(f"# rows in which a peer is ahead: {len(behind)} of {len(lines)}")
        harness.show(
            behind, ["kind", "p", "method", "setting", "answers", "ms", "rms", "ratio", "word"]
        )
        sys.stdout.flush()
        rows += lines
    harness.write("peers", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
