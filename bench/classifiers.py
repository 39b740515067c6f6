"""Classifier-like problems: limits and correlations as a robustness estimate makes them.

Three kinds, after the problems that the design was measured on:
- "rf": random Jacobian rows, full rank, mean correlation .5;
- "mlp": a ReLU network trained on the spot on classes that form a hierarchy (n = 9: on scikit-learn's
  digits), Jacobians at its test points, mean correlation about .4 to .7;
- "lin": softmax regression on 48 features (n = 9: on 8), so that the covariance is singular for more
  classes than that.
For each point, sigma is chosen so that the probability p of keeping the class is near a target.
There are no exact answers; `references` computes them once with tight tolerances, checks them by
conditional Monte Carlo, which shares no code with mvnrob, and keeps them in bench/.cache.
"""

import hashlib
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize, special

from bench import harness

TARGETS = (0.3, 0.5, 0.7, 0.9, 0.99, 0.999)
KINDS = ("rf", "mlp", "lin")
CACHE = harness.ROOT / "bench" / ".cache"


@dataclass(frozen=True, eq=False)
class Case:
    name: str
    kind: str
    target: float
    upper: np.ndarray  # [n] (f_t - f_i) / (sigma |u_i|)
    factor: np.ndarray  # [n, D] rows u_i / |u_i|; cov = factor factor^T

    @property
    def cov(self):
        cov = self.factor @ self.factor.T
        cov = (cov + cov.T) / 2
        np.fill_diagonal(cov, 1.0)
        return cov


def classifier_problems(n, count, seed):
    """`count` cases with n + 1 classes, kinds and targets in turn."""
    rng = np.random.default_rng([n, seed])
    models = {kind: _MODELS[kind](n, seed) for kind in KINDS}
    cases = []
    for i in range(count):
        kind, target = KINDS[i % 3], TARGETS[(i // 3) % 6]
        jacobian, logits = models[kind](rng)
        t = int(np.argmax(logits))
        rows = np.delete(jacobian[t] - jacobian, t, axis=0)
        margin = np.delete(logits[t] - logits, t)
        length = np.linalg.norm(rows, axis=1)
        factor = rows / length[:, None]
        # The noise flips the class at sigma when max(rows e / margin) > 1 / sigma: one quantile
        # gives sigma for any target.
        flips = np.concatenate(
            [
                (rng.normal(size=(500, factor.shape[1])) @ (rows / margin[:, None]).T).max(1)
                for _ in range(16)
            ]
        )
        sigma = 1 / np.quantile(flips, target)
        name = f"{kind}-n{n}-p{target:g}-{i}"
        cases.append(Case(name, kind, target, margin / (sigma * length), factor))
    return cases


def _random_features(n, seed):
    dimension = max(2 * n, 32)

    def draw(rng):
        jacobian = rng.normal(size=(n + 1, dimension)) * np.exp(0.2 * rng.normal(size=(n + 1, 1)))
        return jacobian, rng.normal(size=n + 1)

    return draw


def _hierarchical_data(classes, features, count, generator):
    """Gaussian classes around super-classes of about ten members."""
    groups = max(2, classes // 10)
    g = lambda *shape: torch.randn(*shape, generator=generator)
    centre = 0.8 * g(groups, features)[torch.arange(classes) % groups] + 0.6 * g(classes, features)
    label = torch.randint(classes, (count,), generator=generator)
    return centre[label] + g(count, features), label


def _train(model, x, y, steps, rate, generator):
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        batch = torch.randint(len(x), (256,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def _from_network(model, x):
    """Draws a row of x and returns Jacobian and logits of the network there, in float64."""
    model = model.double()

    def draw(rng):
        at = x[int(rng.integers(len(x)))].double()
        jacobian = torch.func.jacrev(model)(at)
        return jacobian.numpy(), model(at).numpy()

    return draw


def _network(n, seed):
    if n == 9:
        from mvnrob.models.digits import load_digits_classifier

        model, x, _ = load_digits_classifier()
        return _from_network(model, x)
    generator = torch.Generator().manual_seed(seed)
    features = 192 if n < 500 else 384
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            torch.nn.Linear(features, 384),
            torch.nn.ReLU(),
            torch.nn.Linear(384, 384),
            torch.nn.ReLU(),
            torch.nn.Linear(384, n + 1),
        )
        x, y = _hierarchical_data(n + 1, features, 20_000, generator)
        _train(model, x, y, 400, 1e-3, generator)
    return _from_network(model, x[:200])


def _linear(n, seed):
    generator = torch.Generator().manual_seed(seed + 1)
    features = 8 if n == 9 else 48
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torch.nn.Linear(features, n + 1)
        x, y = _hierarchical_data(n + 1, features, 20_000, generator)
        _train(model, x, y, 400, 1e-2, generator)
    return _from_network(model, x[:200])


_MODELS = {"rf": _random_features, "mlp": _network, "lin": _linear}


def conditional_monte_carlo(case, draws, seed=0, chunk=2048):
    """P and its standard error by integrating exactly along one direction of the noise.

    X = factor (e + t d) with d a unit vector, t ~ N(0, 1), e normal in the complement of d. Given e
    the limits leave an interval of t, whose probability is averaged. d is the mean of the rows
    weighted by phi(z_i), those that matter.
    """
    rng = np.random.default_rng(seed)
    weight = np.exp(-0.5 * np.minimum(case.upper, 30.0) ** 2) + 1e-300
    d = weight @ case.factor
    d /= np.linalg.norm(d)
    slope = case.factor @ d
    up, down = slope > 1e-12, slope < -1e-12
    level = ~(up | down)
    rest = case.factor - np.outer(slope, d)
    total = square = 0.0
    done = 0
    while done < draws:
        m = min(chunk, draws - done)
        room = case.upper - rng.normal(size=(m, rest.shape[1])) @ rest.T
        hi = np.min(room[:, up] / slope[up], axis=1, initial=np.inf)
        lo = np.max(room[:, down] / slope[down], axis=1, initial=-np.inf)
        value = np.maximum(special.ndtr(hi) - special.ndtr(lo), 0.0)
        value *= (room[:, level] >= 0).all(1)
        total, square, done = total + value.sum(), square + (value**2).sum(), done + m
    mean = total / done
    return mean, np.sqrt(max(square / done - mean**2, 0.0) / done)


def near_singular(count, seed, n=9, smallest=4e-4):
    """Classifiers as networks make them, nearer to singular: `smallest` eigenvalue of the correlation.

    Factors of the "mlp" kind whose singular values are raised to the power that gives it: the same
    directions and margins, a steeper spectrum. What is left of the last variables is then so small
    that the integrand of separation of variables is nearly a step. Targets in turn.
    """
    out = []
    for case in [c for c in classifier_problems(n, 3 * count, seed) if c.kind == "mlp"]:
        left, values, right = np.linalg.svd(case.factor, full_matrices=False)

        def steeper(power, left=left, values=values, right=right):
            rows = (left * values**power) @ right
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

        def excess(power, steeper=steeper):
            least = np.linalg.svd(steeper(power), compute_uv=False)[n - 1] ** 2
            return np.log(least / smallest)

        factor = steeper(optimize.brentq(excess, 0.2, 5.0))
        rng = np.random.default_rng([n, seed, len(out)])
        flips = (rng.normal(size=(8000, factor.shape[1])) @ (factor / case.upper[:, None]).T).max(1)
        upper = case.upper * np.quantile(flips, case.target)
        out.append(Case(f"near-singular-{case.name}", "near_singular", case.target, upper, factor))
    return out


# Standard error below which none is taken to be: sums of up to 400,000 float64 terms near 1.
LEAST_ERROR = 1e-12
# 99 % error asked of a reference, and its limit of points: below a third of the finest rms error
# that is measured against it (n = 9: 1e-5, n = 49 and 99: 1e-4, n = 999: 1e-4; n = 199 and 499: 1e-3).
REFERENCE = {
    9: (4e-6, 2**24),
    49: (4e-5, 2**22),
    99: (4e-5, 2**23),
    199: (1e-4, 2**20),
    499: (2e-4, 2**18),
    999: (8e-5, 2**21),
}


def references(n, count, seed, log=print):
    """Cases and their reference answers: list of (case, prob, error_99)."""
    from mvnrob import mvn_cdf

    cases = classifier_problems(n, count, seed)
    key = hashlib.sha256()
    for case in cases:
        key.update(np.round(case.upper, 6).tobytes())
    tol, points = REFERENCE[n]
    path = CACHE / f"reference-n{n}-{count}-{seed}-{key.hexdigest()[:12]}.npz"
    if path.exists():
        stored = np.load(path)
        return list(zip(cases, stored["prob"].tolist(), stored["error"].tolist(), strict=True))
    out = []
    for case in cases:
        start = time.process_time()
        # method "sov": no completion; float64; a seed that no benchmark uses; the same points for
        # every comparison of points.
        result = mvn_cdf(
            torch.from_numpy(case.upper),
            torch.from_numpy(case.cov),
            abs_tol=tol,
            max_points=points,
            method="sov",
            points="richtmyer",
            compute_dtype=torch.float64,
            seed=987_654_321,
            return_info=True,
        )
        p, error = float(result.prob), float(result.error)
        check, se = conditional_monte_carlo(case, max(4000, min(400_000, 20_000_000 // n)))
        # Where p is next to 1 both standard errors round to zero, and the two sums differ by some
        # roundings of numbers near 1: no difference below a few 1e-12 counts.
        score = abs(p - check) / np.hypot(np.hypot(se, error / 2.6), LEAST_ERROR)
        log(
            f"# reference {case.name}: p {p:.7f} +- {error:.1e}, conditional Monte Carlo "
            f"{check:.7f} +- {se:.1e} ({score:.1f} s.e.), {time.process_time() - start:.1f} s"
        )
        if score > 4.5:
            raise RuntimeError(
                f"{case.name}: reference {p} +- {error} against {check} +- {se}, {score:.1f} s.e."
            )
        out.append((case, p, error))
    CACHE.mkdir(exist_ok=True)
    np.savez(path, prob=[r[1] for r in out], error=[r[2] for r in out])
    return out
