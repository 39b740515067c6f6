"""CUDA kernels of two builds in turn on one GPU: times, ratios with their spread, answers compared.

python -m bench cuda_ab OLD NEW [--rounds 5] [--cases latency,sums,tolerance,jac_cov] [--budget 60]

OLD and NEW are folders that hold an installed mvnrob (bench/gpu.sh has them in build/gpu/base and
build/gpu/installed). As in bench/bench_checkouts.py each has a process of its own and they take turns,
so that a ratio knows nothing of clocks that change and of another machine. Problems are that file's
"hierarchy", Jacobians those of bench/bench_jac_cov.py. A ratio is new/old of the device's time (below 1
the new one is faster): the median of the rounds' ratios, the least and the largest. Probabilities must
agree within both stated errors, correlations within what bench_jac_cov.py allows; what does not agree
is not timed.

cuda_ab.json has all of it, after each case; cuda_ab_old.json and cuda_ab_new.json hold the two sides as
`python -m bench cuda` and `jac_cov` would, for `python -m bench cuda_tuning`.
"""

import contextlib
import io
import itertools
import pickle
import statistics
import sys
from pathlib import Path

from bench import harness

harness.numpy_threads_one()

import numpy as np

from bench import bench_checkouts, cuda_environment

LATENCY = [{"table": "latency", "n": n, "batch": 1, "abs_tol": 1e-3} for n in (9, 99, 999)]
SUMS = [
    {"table": "sov", "what": "sums", "n": n, "batch": batch, "points": 10_240, "dtype": "float32"}
    for n, batch in ((99, 5000), (999, 264))
]
TOLERANCE = [
    {"table": "tolerance", "group": "hierarchy", "n": n, "abs_tol": tol, "batch": batch}
    for n, batch in ((9, 50_000), (99, 5000), (999, 264))
    for tol in (1e-2, 1e-3)
]
JAC_COV = [
    {"op": "jac_cov", "C": 1000, "D": columns, "dtype": dtype}
    for columns in (3072, 150_528)
    for dtype in ("float32", "bfloat16")
]
CASES = {"latency": LATENCY, "sums": SUMS, "tolerance": TOLERANCE, "jac_cov": JAC_COV}
# Problems of one size that are made and repeated, with seeds of their own.
PROBLEMS = {9: 12, 99: 12, 999: 4}
# Of correlations, twice what bench_jac_cov.py allows each side.
WORST = 1.6e-5
SIDES = ("old", "new")
COLUMNS = ["case", "measure", "old", "new", "unit", "ratio", "least", "largest", "difference",
           "same_bits", "note"]  # fmt: skip


# The worker


class Problem:
    """A case on a device: its call, and what the call answered first."""

    def __init__(self, case, arrays, device):
        import torch

        self.case, self.device = case, torch.device(device)
        self.graph = None
        if "op" in case:
            self.prepare_jac_cov()
            return
        put = lambda x: torch.from_numpy(x).to(self.device)
        index = torch.arange(case["batch"], device=self.device) % len(arrays["upper"])
        upper, cov = put(arrays["upper"])[index], put(arrays["cov"])[index]
        seed = torch.arange(case["batch"], device=self.device)
        if case["table"] == "sov":
            pivots = case.get("pivots", case["n"])
            order = torch.arange(pivots, device=self.device).expand(case["batch"], pivots)
            given = upper, cov, None, seed, order.contiguous(), case["points"] // 8
            self.call = lambda: torch.ops.mvnrob.mvn_cdf_sums(*given, case["dtype"])
        else:
            from mvnrob import mvn_cdf

            options = {"abs_tol": case["abs_tol"], "seed": seed, "return_info": True}
            self.call = lambda: mvn_cdf(upper, cov, **options)

    def prepare_jac_cov(self):
        from bench import bench_jac_cov

        # A processor only tries the program.
        size = f"{self.case['C']}x{self.case['D']}"
        self.jac = bench_jac_cov.Case(size, self.case["dtype"], self.device.type)
        self.call = self.jac.jac_cov

    def answer(self):
        """{name: numbers}: what both sides must agree in, its error, problems of a call."""
        made = self.call()
        if "op" in self.case:
            return self.jac_cov_answer(made)
        if self.case["table"] == "sov":
            means = made[:, :, 0].double() / (self.case["points"] // 8)
            # They state no error: the spread over the shifts, Student's t of 8 at one in a thousand.
            error = 5.4 * means.std(1) / 8**0.5 + 1e-6
            return {"answer": means.mean(1).cpu().numpy(), "error": error.cpu().numpy()}
        return {
            "answer": made.prob.double().cpu().numpy(),
            "error": made.error.double().cpu().numpy(),
        }

    def jac_cov_answer(self, made):
        from mvnrob._jac_cov import jac_cov_reference

        one, jac = slice(0, 1), self.jac
        want = jac_cov_reference(jac.J[one], jac.logits[one], jac.target[one], jac.sigma).corr
        found = made.corr[one].double()
        return {
            "answer": found.cpu().numpy(), "error": np.float64(WORST / 2), "batch": jac.B,
            "off": float((found - want).abs().max()),
        }  # fmt: skip

    def times(self, seconds):
        """{measure: median seconds} of one turn."""
        from bench import cuda_timing

        timing, _ = cuda_timing.measure(
            self.call, self.device, repeats=9, warm_up=1, budget_s=seconds
        )
        if self.case.get("table") != "latency":
            return {"device": timing["median_s"]}
        out = {"device": timing["median_s"], "wall": cuda_timing.wall(self.call, self.device, 9, 1)}
        if self.device.type == "cuda":
            if self.graph is None:
                self.graph, self.captured = cuda_timing.capture(self.call)
            timing, _ = cuda_timing.measure(
                self.graph.replay, self.device, repeats=9, warm_up=1, budget_s=seconds
            )
            out["graph"] = timing["median_s"]
        return out


def serve(folder):
    """Answers ("prepare", case, arrays, device), ("times", seconds) and ("drop",) until the end."""
    # What is printed would spoil the answers.
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    sys.path.insert(0, folder)
    import warnings

    import torch

    import mvnrob

    if not Path(mvnrob.__file__).is_relative_to(folder):
        raise SystemExit(f"bench cuda_ab: mvnrob comes from {mvnrob.__file__}, not {folder}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="mvn_cdf: .*max_points")
    problem = None
    while True:
        try:
            what, *given = pickle.load(sys.stdin.buffer)
        except EOFError:
            return 0
        try:
            if what == "prepare":
                problem = Problem(*given)
                made = problem.answer()
            elif what == "times":
                made = problem.times(*given)
            else:
                made = problem = None
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
            made = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        pickle.dump(made, answers)
        answers.flush()


# The comparison


class Ended(RuntimeError):
    """A side's process is gone: an error that leaves its CUDA context unusable, say."""


class Side:
    """A worker that is started anew when it has ended."""

    def __init__(self, name, folder):
        self.name, self.folder, self.worker = name, folder, None

    def __call__(self, *task):
        if self.worker is None:
            self.worker = bench_checkouts.Checkout(self.folder, "bench.cuda_ab")
        try:
            made = self.worker(*task)
        except (EOFError, OSError) as error:
            self.worker.process.kill()
            self.worker = None
            raise Ended(f"{self.name}: its process ended") from error
        if isinstance(made, str):
            raise Ended(f"{self.name}: {made}")
        return made

    def close(self):
        if self.worker is not None:
            self.worker.close()


def built(folder):
    """The commit that bench/gpu.sh says was built there."""
    path = Path(folder) / "built"
    words = path.read_text().split() if path.exists() else []
    return words[2] if len(words) > 2 else "unknown"


def problems(n):
    """Limits, covariances and answers of a few problems."""
    made = [bench_checkouts.hierarchy(n, k) for k in range(PROBLEMS.get(n, 4))]
    upper, cov = (np.stack([m[i] for m in made]) for i in range(2))
    return {"upper": upper, "cov": cov, "truth": np.array([m[2].prob for m in made])}


def differ(old, new):
    """(largest difference, whether all bits agree, what is wrong or None) of two answers."""
    gap = np.abs(old["answer"] - new["answer"])
    allowed = old["error"] + new["error"] + 1e-7
    bits = bool(np.array_equal(old["answer"], new["answer"], equal_nan=True))
    share = float(np.mean(~(gap <= allowed)))
    # 99 % errors of both: together hardly ever exceeded.
    wrong = f"wrong: {share:.2%} of the answers differ by more than their errors"
    return float(gap.max()), bits, wrong if share > 0.005 and not bits else None


def turns(sides, rounds, seconds):
    """{measure: [(old, new) of each round]}, the order changing with the round."""
    out = {}
    for round_ in range(rounds):
        took = {}
        for name in SIDES if round_ % 2 == 0 else SIDES[::-1]:
            took[name] = sides[name]("times", seconds)
        for measure in took["old"]:
            if measure in took["new"]:
                out.setdefault(measure, []).append((took["old"][measure], took["new"][measure]))
    return out


def summary(pairs):
    """Medians of both sides in milliseconds, and the median, least and largest of the ratios."""
    ratios = [new / old for old, new in pairs]
    spread = lambda values: max(values) / min(values)
    olds, news = zip(*pairs, strict=True)
    return {
        "old": 1e3 * statistics.median(olds), "new": 1e3 * statistics.median(news), "unit": "ms",
        "ratio": statistics.median(ratios), "least": min(ratios), "largest": max(ratios),
        "old_spread": spread(olds), "new_spread": spread(news), "rounds": len(pairs),
    }  # fmt: skip


def words(case):
    return ", ".join(f"{key} {value}" for key, value in case.items())


def compare(sides, case, arrays, device, rounds, seconds):
    """(rows of the comparison, {side: its answer}) of a case."""
    about = {"case": words(case)}
    try:
        answers = {name: sides[name]("prepare", case, arrays, device) for name in SIDES}
        gap, bits, wrong = differ(answers["old"], answers["new"])
        about |= {"difference": gap, "same_bits": bits}
        if wrong:
            return [about | {"note": wrong}], {}
        measured = turns(sides, rounds, seconds)
    except Ended as error:
        return [about | {"note": f"wrong: {error}"}], {}
    finally:
        for side in sides.values():
            with contextlib.suppress(Ended):
                side("drop")
    return [about | {"measure": m} | summary(pairs) for m, pairs in measured.items()], answers


def side_row(case, name, rows, answer, truth):
    """A row as bench_cuda.py and bench_jac_cov.py have it, of one side."""
    ms = {row["measure"]: row[name] for row in rows}
    if "op" in case:
        batch = answer["batch"]
        return {
            **case,
            "chunk": None,
            "B": batch,
            "ms": ms["device"] / batch,
            "error": answer["off"],
        }
    if case["table"] == "latency":
        return {**case, **{f"{measure}_us": 1e3 * v for measure, v in ms.items()}}
    row = {**case, "problems_per_s": 1e3 * case["batch"] / ms["device"]}
    if case["table"] == "tolerance":
        index = np.arange(case["batch"]) % len(truth)
        row["rms"] = float(np.sqrt(np.mean(np.square(answer["answer"] - truth[index]))))
    return row


def run(sides, cases, args, save):
    """Rows of the comparison and those of each side, saved after each case."""
    rows, each, made = [], {name: [] for name in SIDES}, {}
    seconds = args.budget / (len(cases) * 2 * args.rounds)
    for case in cases:
        n = case.get("n")
        if n is not None and n not in made:
            made[n] = problems(n)
        arrays = made.get(n)
        found, answers = compare(sides, case, arrays, args.device, args.rounds, seconds)
        rows += found
        for name in SIDES if answers else ():
            each[name].append(
                side_row(case, name, found, answers[name], arrays and arrays["truth"])
            )
        harness.show(found, [c for c in COLUMNS if any(c in row for row in found)])
        sys.stdout.flush()
        save(rows, each)
    return rows


def arguments(parser):
    parser.add_argument("old", metavar="OLD", help="folder of an installed mvnrob")
    parser.add_argument("new", metavar="NEW")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of timed calls, about")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="of the batches")
    return parser


def report_of(args):
    """Environment of the run, which build each side is."""
    report = harness.environment()
    report["bench"] = "cuda_ab"
    if args.device != "cpu":
        report |= cuda_environment.gpu() | {"clocks_before": cuda_environment.clocks()}
    return report | {"old": built(args.old), "new": built(args.new)}


def main():
    p = arguments(harness.parser(__doc__.splitlines()[0]))
    p.add_argument("--cases", default=",".join(CASES), help="of " + ", ".join(CASES))
    args = p.parse_args()
    chosen = args.cases.split(",")
    if unknown := set(chosen) - set(CASES):
        p.error(f"--cases must be of {', '.join(CASES)}, got {unknown.pop()}")
    cases = list(itertools.chain.from_iterable(CASES[name] for name in chosen))
    if args.scale != 1:
        cases = [scaled(case, args.scale) for case in cases]
    report = report_of(args)
    harness.show_environment(report)

    def save(rows, each):
        with contextlib.redirect_stdout(io.StringIO()):
            harness.write("cuda_ab", report, rows, args.out)
            for name in SIDES:
                about = report | {"commit": report[name]}
                harness.write(f"cuda_ab_{name}", about, each[name], args.out)

    sides = {name: Side(name, getattr(args, name)) for name in SIDES}
    try:
        rows = run(sides, cases, args, save)
    finally:
        for side in sides.values():
            side.close()
    wrong = sum("wrong" in row.get("note", "") for row in rows)
    print(f"# {report['old']} and {report['new']}: {len(rows)} rows, {wrong} wrong")
    return bool(wrong)


def scaled(case, scale):
    """A smaller case, for a dry run."""
    small = dict(case)
    if "op" in case:
        return small | {"C": max(12, int(case["C"] * scale)), "D": max(64, int(case["D"] * scale))}
    return small | {"batch": max(1, int(case["batch"] * scale))}


if __name__ == "__main__":
    sys.exit(main())
