"""Peers of mvn_cdf on one CPU thread: what is installed, and their answers with CPU seconds.

| peer | what | how to get it |
|---|---|---|
| scipy | multivariate_normal.cdf (Genz's lattice) | the extra `test` |
| mvtnorm | R, pmvnorm with GenzBretz | apt install r-cran-mvtnorm |
| TruncatedNormal | R, mvNqmc (Botev's tilt) | R -e 'install.packages("TruncatedNormal")' |
| mvnxpb | BoTorch, bivariate conditioning, no points | pip install botorch |
| crude | Monte Carlo on the same device: normal draws times a factor, float32, counted | - |

Each is optional but the last; one that is absent has a sentence that says so. All get the problems
one after the other but crude and mvnxpb, whose batches are theirs to use. A peer's `answers` are
(probabilities, CPU seconds of each) of the first problems that its budget lasts for.
"""

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench import harness

R_SCRIPT = Path(__file__).with_name("peers_r.R")


# Points of a setting, by n.
LATTICE_POINTS = {
    9: (300, 1_000, 10_000, 100_000),
    99: (300, 1_000, 10_000, 100_000),
    999: (1_000, 5_000),
}
TILTED_POINTS = {9: (1_000, 10_000, 100_000), 99: (1_000, 10_000), 999: (200, 1_000)}
CRUDE_POINTS = {9: (10_000, 100_000, 1_000_000), 99: (10_000, 100_000), 999: (1_000, 10_000)}


class SciPy:
    name = "scipy"
    points = LATTICE_POINTS

    def absent(self):
        try:
            import scipy.stats  # noqa: F401
        except ImportError as error:
            return f"SciPy is not installed here ({error})"

    def version(self):
        import scipy

        return scipy.__version__

    def answers(self, upper, cov, points, budget_s, seed):
        from scipy.stats import multivariate_normal

        rng, probs, seconds = np.random.default_rng(seed), [], []
        for u, c in zip(upper, cov, strict=True):
            call = lambda u=u, c=c: multivariate_normal.cdf(
                u, cov=c, allow_singular=True, maxpts=points, abseps=1e-12, rng=rng
            )
            timing, prob = harness.cpu_time(call, repeats=1, warm_up=0)
            probs.append(float(prob))
            seconds.append(timing["median_s"])
            if sum(seconds) > budget_s:
                break
        return probs, seconds


class R:
    """An R package, one process for each setting."""

    def __init__(self, package, points):
        self.name, self.points = package, points

    def _run(self, *arguments):
        command = ["Rscript", "--vanilla", str(R_SCRIPT), *map(str, arguments)]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    def absent(self):
        if shutil.which("Rscript") is None:
            return f"R's {self.name}: Rscript is not on PATH"
        if self._run("version", self.name).returncode:
            return f"R's {self.name} is not installed here"

    def version(self):
        return self._run("version", self.name).stdout.strip()

    def answers(self, upper, cov, points, budget_s, seed):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in", Path(folder) / "out"
            with source.open("wb") as f:
                f.write(struct.pack("<d", len(upper)))
                for u, c in zip(upper, cov, strict=True):
                    f.write(struct.pack("<d", len(u)) + u.astype("<f8").tobytes())
                    f.write(c.astype("<f8").tobytes())
            done = self._run("run", self.name, points, budget_s, seed, source, target)
            if done.returncode:
                raise RuntimeError(f"R's {self.name}: {done.stderr.strip()[-300:]}")
            lines = [line.split() for line in target.read_text().splitlines()]
        return [float(v[0]) for v in lines], [float(v[1]) for v in lines]


class MVNXPB:
    name = "mvnxpb"
    points = dict.fromkeys(LATTICE_POINTS, (0,))  # it has no setting

    def absent(self):
        try:
            from botorch.utils.probability.mvnxpb import MVNXPB  # noqa: F401
        except ImportError as error:
            return f"BoTorch is not installed here ({error})"

    def version(self):
        import botorch

        return botorch.__version__

    def answers(self, upper, cov, points, budget_s, seed):
        from botorch.utils.probability.mvnxpb import MVNXPB

        def solve(u, c):
            upper, cov = torch.from_numpy(u), torch.from_numpy(c)
            bounds = torch.stack([torch.full_like(upper, -torch.inf), upper], -1)
            return MVNXPB(cov, bounds).solve().exp()

        try:  # all at once, if none of them is refused; large ones as far as the budget lasts
            if upper.shape[1] <= 100:
                timing, probs = harness.cpu_time(lambda: solve(upper, cov), repeats=1, warm_up=0)
                return probs.tolist(), [timing["median_s"] / len(upper)] * len(upper)
        except (RuntimeError, ValueError):
            pass
        probs, seconds = [], []
        for u, c in zip(upper, cov, strict=True):
            try:
                call = lambda u=u, c=c: solve(u[None], c[None])
                timing, prob = harness.cpu_time(call, repeats=1, warm_up=0)
                probs.append(float(prob))
                seconds.append(timing["median_s"])
            except (RuntimeError, ValueError):  # singular covariances, for one
                probs.append(float("nan"))
                seconds.append(0.0)
            if sum(seconds) > budget_s:
                break
        return probs, seconds


class Crude:
    name = "crude"
    points = CRUDE_POINTS

    def absent(self):
        return None

    def version(self):
        return torch.__version__

    def answers(self, upper, cov, points, budget_s, seed):
        from bench.peers import count, factor

        generator = torch.Generator().manual_seed(seed)
        u, c = torch.from_numpy(upper).float(), torch.from_numpy(cov)
        probs, seconds = [], []
        piece = max(256, min(points, 4_000_000 // u.shape[1]))
        for i in range(len(u)):
            # Noise of its own for each problem: shared noise would make the errors one draw.
            def draw(i=i):
                low, left, hits = factor(c[i : i + 1]), points, 0
                while left > 0:
                    take = min(piece, left)
                    hits += int(count(low, u[i : i + 1], take, generator))
                    left -= take
                return hits / points

            timing, prob = harness.cpu_time(draw, repeats=1, warm_up=int(i == 0))
            probs.append(prob)
            seconds.append(timing["median_s"])
            if sum(seconds) > budget_s:
                break
        return probs, seconds


PEERS = (
    SciPy(),
    R("mvtnorm", LATTICE_POINTS),
    R("TruncatedNormal", TILTED_POINTS),
    MVNXPB(),
    Crude(),
)
