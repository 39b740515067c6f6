"""Peers of mvn_cdf on one CPU thread: what is installed, and their answers with CPU seconds.

| peer | what | how to get it |
|---|---|---|
| scipy | multivariate_normal.cdf (Genz's lattice) | the extra `test` |
| mvtnorm | R, pmvnorm with GenzBretz | apt install r-cran-mvtnorm |
| TruncatedNormal | R, mvNqmc (Botev's tilt) | R -e 'install.packages("TruncatedNormal")' |
| mvnxpb | BoTorch, bivariate conditioning, no points | pip install botorch |
| crude | Monte Carlo on the same device: normal draws times a factor, float32, counted | - |

Each is optional but the last; one that is absent has a sentence that says so. All get the problems
one after the other but mvnxpb up to n = 100, whose batch is its to use. A peer's `answers` are pairs
(probability, CPU seconds), one for each of the problems in turn; `within` takes them in a process of
its own, for as long as a budget of CPU time lasts. Where a peer's rms error is known beforehand,
`known_rms` has it: one count of a thousand draws can be right by luck.
"""

import math
import multiprocessing
import resource
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench import harness

R_SCRIPT = Path(__file__).with_name("peers_r.R")
# A setting of SciPy is a number of points, or one of these.
SCIPY_SETTINGS = {
    "default": {},
    "authors": {"maxpts": 10_000, "abseps": 1e-4, "releps": 1e-4},
}


# A call that takes less is repeated until it has: the clock of CPU time is coarse.
LEAST_S = 0.02


def timed(call):
    """Answer and CPU seconds of a call."""
    start = time.process_time()
    answer = call()
    took = time.process_time() - start
    if took >= LEAST_S:
        return answer, took
    calls, start = 0, time.process_time()
    while calls == 0 or time.process_time() - start < LEAST_S:
        answer = call()
        calls += 1
    return answer, (time.process_time() - start) / calls


def lattice_points(n):
    return (300, 1_000, 10_000, 100_000) if n <= 199 else (1_000, 5_000, 25_000)


class SciPy:
    name = "scipy"
    most_n = None

    def settings(self, n):
        """The default goes on to a stated error of 1e-5, for minutes beyond n = 99."""
        return (*lattice_points(n), "authors", *(["default"] if n <= 99 else []))

    def absent(self):
        try:
            import scipy.stats  # noqa: F401
        except ImportError as error:
            return f"SciPy is not installed here ({error}); pip install scipy"

    def version(self):
        import scipy

        return scipy.__version__

    def answers(self, problems, setting, budget_s, seed):
        from scipy.stats import multivariate_normal

        options = SCIPY_SETTINGS.get(setting, {"maxpts": setting, "abseps": 1e-12})
        rng = np.random.default_rng(seed)
        for u, c in problems:
            call = lambda u=u, c=c: multivariate_normal.cdf(
                u, cov=c, allow_singular=True, rng=rng, **options
            )
            try:
                prob, seconds = timed(call)
                yield float(prob), seconds
            except ValueError:  # not semidefinite by its measure
                yield float("nan"), 0.0


class R:
    """An R package, one process for each setting."""

    def __init__(self, package, settings, install, most_n=None):
        self.name, self.settings, self.install, self.most_n = package, settings, install, most_n

    def _run(self, *arguments):
        command = ["Rscript", "--vanilla", str(R_SCRIPT), *map(str, arguments)]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    def absent(self):
        if shutil.which("Rscript") is None:
            return f"R's {self.name}: Rscript is not on PATH; {self.install}"
        if self._run("version", self.name).returncode:
            return f"R's {self.name} is not installed here; {self.install}"

    def version(self):
        return self._run("version", self.name).stdout.strip()

    def answers(self, problems, setting, budget_s, seed):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in", Path(folder) / "out"
            with source.open("wb") as f:
                f.write(struct.pack("<d", len(problems)))
                for u, c in problems:
                    f.write(struct.pack("<d", len(u)) + u.astype("<f8").tobytes())
                    f.write(c.astype("<f8").tobytes())
            done = self._run("run", self.name, setting, budget_s, seed, source, target)
            if done.returncode > 0:
                raise RuntimeError(f"R's {self.name}: {done.stderr.strip()[-300:]}")
            # One that ran out of CPU time has written what it had.
            lines = target.read_text().splitlines() if target.exists() else []
            for line in lines:
                prob, seconds, _ = line.split()
                yield float(prob), float(seconds)


class MVNXPB:
    name = "mvnxpb"
    most_n = None

    def settings(self, n):
        return ("-",)  # it has none

    def absent(self):
        try:
            from botorch.utils.probability.mvnxpb import MVNXPB  # noqa: F401
        except ImportError as error:
            return f"BoTorch is not installed here ({error}); pip install botorch"

    def version(self):
        import botorch

        return botorch.__version__

    def answers(self, problems, setting, budget_s, seed):
        from botorch.utils.probability.mvnxpb import MVNXPB

        def solve(u, c):
            upper, cov = torch.from_numpy(u), torch.from_numpy(c)
            bounds = torch.stack([torch.full_like(upper, -torch.inf), upper], -1)
            return MVNXPB(cov, bounds).solve().exp()

        try:  # all at once, if none of them is refused; large ones as far as the budget lasts
            if len(problems[0][0]) <= 100:
                upper, cov = (np.stack(arrays) for arrays in zip(*problems, strict=True))
                timing, probs = harness.cpu_time(lambda: solve(upper, cov), repeats=1, warm_up=0)
                each = timing["median_s"] / len(problems)
                yield from ((prob, each) for prob in probs.tolist())
                return
        except (RuntimeError, ValueError):
            pass
        for u, c in problems:
            try:
                call = lambda u=u, c=c: solve(u[None], c[None])
                prob, seconds = timed(call)
                yield float(prob), seconds
            except (RuntimeError, ValueError):  # singular covariances, for one
                yield float("nan"), 0.0


class Crude:
    name = "crude"
    most_n = None

    def known_rms(self, probs, setting):
        """Its rms error over problems of these probabilities is no matter of luck."""
        return float(np.sqrt(np.mean(probs * (1 - probs)) / setting))

    def settings(self, n):
        return (10_000, 100_000, 1_000_000) if n <= 99 else (1_000, 10_000, 100_000)

    def absent(self):
        return None

    def version(self):
        return torch.__version__

    def answers(self, problems, setting, budget_s, seed):
        from bench.peers import count, factor

        generator = torch.Generator().manual_seed(seed)
        for upper, cov in problems:
            u, c = torch.from_numpy(upper).float()[None], torch.from_numpy(cov)[None]
            piece = max(256, min(setting, 4_000_000 // len(upper)))

            # Noise of its own for each problem: shared noise would make the errors one draw.
            def draw(u=u, c=c, piece=piece):
                low, left, hits = factor(c), setting, 0
                while left > 0:
                    take = min(piece, left)
                    hits += int(count(low, u, take, generator))
                    left -= take
                return hits / setting

            yield timed(draw)


PEERS = (
    SciPy(),
    # Fewer points than its lattice's first make no difference.
    R(
        "mvtnorm",
        lambda n: (1_000, 25_000, 250_000) if n <= 199 else (1_000, 25_000),
        "apt install r-cran-mvtnorm",
        most_n=1_000,
    ),
    R(
        "TruncatedNormal",
        lambda n: (1_000, 10_000, 100_000) if n <= 9 else (200, 1_000, 10_000),
        "apt install r-base-core, then R -e 'install.packages(\"TruncatedNormal\")'",
    ),
    MVNXPB(),
    Crude(),
)


def within(peer, problems, setting, budget_s, patience_s, seed):
    """Answers of a peer: (probability, CPU seconds) of the first problems.

    A problem is begun while less than budget_s has been spent; what is not done after patience_s in all
    is given up: the process's limit of CPU time ends it.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def work():
        here.close()
        start, limit = time.process_time(), math.ceil(patience_s) + 1
        # The soft limit's signal ends a process that does not handle it; R inherits it.
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        try:
            for pair in peer.answers(problems, setting, budget_s, seed):
                there.send(pair)
                if time.process_time() - start > budget_s:
                    break
        except (RuntimeError, ValueError, ImportError) as error:
            there.send(f"{type(error).__name__}: {error}")

    process = context.Process(target=work)
    process.start()
    there.close()
    made = []
    try:
        while True:
            made.append(here.recv())
    except EOFError:
        pass
    process.join()
    if made and isinstance(made[-1], str):
        raise RuntimeError(f"{peer.name} at {setting}: {made[-1]}")
    return made
