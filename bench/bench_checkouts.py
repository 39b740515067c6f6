"""mvn_cdf of two checkouts in turn: time, true and stated error, for decisions about its plan.

python -m bench checkouts FOLDER [--cases hierarchy:99:1e-3,flat:999:1e-3] [--seeds 8] [--name NAME]

FOLDER is another checkout of this repository; both are built in place. Each has a process of its own, and they
take turns at the same rows and seeds, so that a ratio knows nothing of the machine's changing load.
"hierarchy" are classes in groups, few of them near; "flat" two common factors and margins so alike
that every variable matters. Answers are quadratures. "gain" is the ratio this/other of CPU time times
mean squared error, more than 1 where the other one is ahead: with the true error, between the quantiles
16 % and 84 % of resampled seeds, and with the stated one. The true error is that of few seeds, so its
gain is known badly.
"""

import pickle
import subprocess
import sys
import time
from pathlib import Path

from bench import harness

harness.numpy_threads_one()

import numpy as np

TARGETS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
CASES = (
    "hierarchy:9:1e-3,hierarchy:20:1e-3,hierarchy:99:1e-3,flat:99:1e-3,hierarchy:199:1e-3,"
    "flat:199:1e-3,hierarchy:499:1e-3,flat:499:1e-3,hierarchy:999:1e-3,flat:999:1e-3,"
    "hierarchy:9:1e-4,hierarchy:20:1e-4,hierarchy:99:1e-4,flat:99:1e-4,hierarchy:199:1e-4"
)
# A call that takes less is repeated until it has.
LEAST_S = 0.02


def hierarchy(n, k):
    """Limits, correlation and answer: classes in groups of ten, margins in three shapes."""
    import oracles
    import problems

    rng = np.random.default_rng([n, k])
    group = rng.integers(0, max(2, n // 10), n)
    top = np.sqrt((0.45, 0.55, 0.7)[k % 3]) * rng.uniform(0.9, 1.05, n)
    within = np.sqrt((0.3, 0.15, 0.2)[k % 3]) * rng.uniform(0.8, 1.02, n)
    noise = np.sqrt(1 - top**2 - within**2)
    cov = np.outer(top, top) + (group[:, None] == group) * np.outer(within, within)
    np.fill_diagonal(cov, 1.0)
    draws = np.outer(rng.normal(size=1000), top) + rng.normal(size=(1000, n)) * noise
    draws += rng.normal(size=(1000, group.max() + 1))[:, group] * within
    upper = problems.limits_for(TARGETS[k % len(TARGETS)], problems.gaps(rng, n), draws)
    return upper, cov, oracles.hierarchy(top, group, within, noise, np.full(n, -np.inf), upper)


def flat(n, k):
    """The same with two common factors and margins all alike."""
    import oracles
    import problems

    rng = np.random.default_rng([n, k])
    angle, strength = rng.normal(0, 0.6, n), rng.uniform(0.6, 0.93, n)
    load = strength[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    noise = np.sqrt(1 - strength**2)
    cov = load @ load.T
    np.fill_diagonal(cov, 1.0)
    draws = rng.normal(size=(1000, 2)) @ load.T + rng.normal(size=(1000, n)) * noise
    margin = 1 + 0.15 * rng.gamma(2.0, size=n)
    upper = problems.limits_for(TARGETS[k % len(TARGETS)], margin, draws)
    return upper, cov, oracles.two_factor(load, noise, np.full(n, -np.inf), upper)


KINDS = {"hierarchy": hierarchy, "flat": flat}


def serve(folder):
    """The worker: answers (upper, cov, abs_tol, seeds) with (seconds, prob, error) until the end."""
    import warnings

    import torch

    sys.path.insert(0, folder)
    import mvnrob
    from mvnrob import mvn_cdf

    if not Path(mvnrob.__file__).is_relative_to(folder):
        raise SystemExit(f"bench checkouts: mvnrob comes from {mvnrob.__file__}, not {folder}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="mvn_cdf: .*max_points")
    answers = sys.stdout.buffer
    while True:
        try:
            upper, cov, abs_tol, seeds = pickle.load(sys.stdin.buffer)
        except EOFError:
            return 0
        arguments = [torch.from_numpy(x) for x in (upper, cov)]
        seeds = torch.from_numpy(seeds)
        start, calls = time.process_time(), 0
        while calls == 0 or time.process_time() - start < LEAST_S:
            r = mvn_cdf(*arguments, abs_tol=abs_tol, seed=seeds, return_info=True)
            calls += 1
        seconds = (time.process_time() - start) / calls
        pickle.dump((seconds, r.prob.numpy(), r.error.numpy()), answers)
        answers.flush()


class Checkout:
    """A process that runs ``serve(folder)`` of a module; a call sends it a task and waits for the answer."""

    def __init__(self, folder, module="bench.bench_checkouts"):
        folder = Path(folder).resolve()
        if not list((folder / "mvnrob").glob("_C.*.so")):
            raise SystemExit(
                f"bench checkouts: FOLDER must hold mvnrob, built in place, got {folder}"
            )
        self.process = subprocess.Popen(
            [sys.executable, "-c",
             (f"import sys; sys.path.insert(0, {str(harness.ROOT)!r}); "
              f"from {module} import serve; serve({str(folder)!r})")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *task):
        pickle.dump(task, self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def gain(times, errors, draws=400):
    """Ratio this/other of seconds times mean square; its quantiles .16 and .84 over resampled seeds."""
    rng, size = np.random.default_rng(0), len(times[0])
    seconds = times[0].mean() / times[1].mean()
    square = [np.square(e).mean(1) for e in errors]
    pick = lambda x: x[rng.integers(0, size, size)].mean()
    ratios = [seconds * pick(square[0]) / pick(square[1]) for _ in range(draws)]
    low, high = np.quantile(ratios, [0.16, 0.84]).tolist()
    return float(seconds * square[0].mean() / square[1].mean()), low, high


def measure(checkouts, kind, n, abs_tol, rows, seeds):
    made = [KINDS[kind](n, k) for k in range(rows)]
    upper, cov = (np.stack([m[i] for m in made]) for i in range(2))
    truth = np.array([m[2].prob for m in made])
    for ask in checkouts:  # the first call is slower
        ask(upper, cov, abs_tol, np.arange(rows))
    got = ([], [])
    for seed in range(1, seeds + 1):
        for k in (0, 1) if seed % 2 else (1, 0):
            got[k].append(checkouts[k](upper, cov, abs_tol, np.arange(rows) + 10_000 * seed))
    times = [np.array([g[0] for g in x]) for x in got]
    off = [np.array([g[1] - truth for g in x]) for x in got]
    stated = [np.array([g[2] for g in x]) for x in got]
    rms = lambda x: float(np.sqrt(np.mean(np.square(x))))
    ratio, low, high = gain(times, off)
    return {
        "group": kind, "n": n, "abs_tol": abs_tol, "problems": rows, "seeds": seeds,
        "ms": 1e3 * float(times[0].mean()) / rows, "other_ms": 1e3 * float(times[1].mean()) / rows,
        "time_ratio": float(times[0].mean() / times[1].mean()),
        "rms": rms(off[0]), "other_rms": rms(off[1]),
        "rms_stated": rms(stated[0]), "other_rms_stated": rms(stated[1]),
        "missed": int((np.abs(off[0]) > stated[0] + 1e-7).sum()),
        "other_missed": int((np.abs(off[1]) > stated[1] + 1e-7).sum()),
        "gain": ratio, "gain_low": low, "gain_high": high,
        "gain_stated": gain(times, stated)[0],
    }  # fmt: skip


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("folder", help="the other checkout")
    p.add_argument("--cases", default=CASES, help="kind:n:abs_tol, ...")
    p.add_argument(
        "--rows", type=int, help="problems of a case (default: 12; n >= 499 or below 1e-3: 6)"
    )
    p.add_argument(
        "--seeds", type=int, default=8, help="of each problem; thrice where there are 12"
    )
    p.add_argument("--name", default="checkouts", help="of the result")
    args = p.parse_args()
    report = harness.environment()
    report["other"] = subprocess.run(
        ["git", "-C", args.folder, "log", "-1", "--format=%h %s"], capture_output=True, text=True,
        check=False,
    ).stdout.strip()  # fmt: skip
    harness.show_environment(report)
    checkouts, lines = [Checkout(harness.ROOT), Checkout(args.folder)], []
    for case in args.cases.split(","):
        kind, n, abs_tol = case.split(":")
        large = int(n) >= 499 or float(abs_tol) < 1e-3
        rows = args.rows or (6 if large else 12)
        seeds = args.seeds * (1 if large else 3)
        lines.append(measure(checkouts, kind, int(n), float(abs_tol), rows, seeds))
        harness.show(lines[-1:], list(lines[-1]))
    for checkout in checkouts:
        checkout.close()
    harness.write(args.name, report, lines, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
