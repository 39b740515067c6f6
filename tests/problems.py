"""Problems with known answers: P(lower <= X <= upper), X ~ N(mean, cov), n = 1..999.

`known_answers(seed)` returns more than 500 of them, with fresh parameters for each seed. Every
answer comes from `oracles.py` (quadrature or closed form, no sampling); its absolute error is in
`abs_err_of_answer` and is at most 1e-7. Sizes are taken from a short list so that all problems of
one n can share one batched call.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import oracles
from scipy import optimize, special

# Exactly singular covariances are stored rounded to float64: a correlation of 1 becomes
# 1 - O(2e-16), which moves the probability by up to phi(0) sqrt(4 eps) = 1.2e-8 per tied pair.
SINGULAR_ROUNDING = 3e-8

SMALL = (4, 5, 6, 8, 9, 12, 16, 17)
MIDDLE = (31, 33, 64, 65, 99)
LARGE = (128, 200, 500, 999)
# Mostly the range in which classifiers live; .99 and up is where the integrand is skewed.
TARGETS = (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999, 0.9999)


@dataclass(frozen=True, eq=False)
class Problem:
    name: str
    family: str
    upper: np.ndarray
    cov: np.ndarray
    lower: np.ndarray | None
    prob: float
    complement: float
    abs_err_of_answer: float
    singular: bool
    mean: np.ndarray | None = None

    @property
    def n(self):
        return len(self.upper)


def _make(name, family, cov, lower, upper, answer, singular=False):
    if np.all(np.isneginf(lower)):
        lower = None
    cov = (cov + cov.T) / 2  # products of matrices are symmetric to rounding only
    err = answer.abs_err + (SINGULAR_ROUNDING if singular else 0.0)
    if not err <= 1e-7:
        raise oracles.NotConverged(f"{name}: error of the answer {err}")
    return Problem(name, family, upper, cov, lower, answer.prob, answer.complement, err, singular)


def gaps(rng, n):
    """Margins of a classifier in three shapes: all near, Gaussian logits, a few classes matter."""
    shape = rng.integers(3)
    if shape == 0:
        return 1 + 0.15 * rng.gamma(2.0, size=n)
    if shape == 1:
        logits = rng.normal(size=n + 1)
        order = np.sort(logits)
        return rng.permutation(order[-1] - order[:-1]) + 0.05
    far = rng.uniform(2.0, 6.0, n)
    near = rng.choice(n, size=min(n, int(rng.integers(2, 8))), replace=False)
    far[near] = rng.uniform(1.0, 1.6, len(near))
    return far


def limits_for(target, margins, draws):
    """c * margins such that P(X <= c * margins) is near the target, from draws [m, n] of X.

    Above 1 - 20 / m the quantile of the draws is not resolved; the union bound, which is nearly
    the answer there, takes over (1.3: correlated events overlap).
    """
    if 1 - target > 20 / len(draws):
        return np.quantile((draws / margins).max(1), target) * margins
    sd = draws.std(0)

    def excess(c):
        return special.logsumexp(special.log_ndtr(-c * margins / sd)) - np.log(1.3 * (1 - target))

    return optimize.brentq(excess, 0.0, 10.0 / np.min(margins / sd)) * margins


def _limits(rng, target, draws, two_sided):
    """Limits for draws of unit-variance X; a rectangle when two_sided, else lower = -inf."""
    n = draws.shape[1]
    high = gaps(rng, n)
    if not two_sided:
        return np.full(n, -np.inf), limits_for(target, high, draws)
    low = gaps(rng, n)
    upper = limits_for(target, np.ones(n), np.maximum(draws / high, -draws / low))
    c = max(upper[0], 0.02)
    return -c * low, c * high


def _draws(rng, *parts):
    """Sum of independent parts: each is a matrix [r, n] of loadings or a vector [n] of sds.

    Only to find limits near a wanted probability; the answers are computed afterwards.
    """
    total, count = 0.0, 3000 if parts[-1].shape[-1] < 200 else 800
    for part in parts:
        if part.ndim == 2:
            total = total + rng.normal(size=(count, part.shape[0])) @ part
        else:
            total = total + rng.normal(size=(count, len(part))) * part
    return total


def _sizes(small, middle, large):
    """n for each problem of a family: cycles through the three lists."""
    return (
        [SMALL[i % len(SMALL)] for i in range(small)]
        + [MIDDLE[i % len(MIDDLE)] for i in range(middle)]
        + [LARGE[-1 - i % len(LARGE)] for i in range(large)]
    )


def univariate(rng):
    for i in range(10):
        sd = np.exp(rng.normal())
        hi = rng.normal(1, 1.5)
        lo = hi - rng.gamma(2.0) if i % 2 else -np.inf
        answer = oracles.independent(np.array([lo]), np.array([hi]))
        yield _make(
            f"univariate-{i}",
            "univariate",
            np.array([[sd**2]]),
            np.array([lo * sd]),
            np.array([hi * sd]),
            answer,
        )


def independent(rng):
    for i, n in enumerate([2, 3] + _sizes(12, 6, 4)):
        sd = np.exp(rng.normal(size=n)) if i % 3 else np.ones(n)
        lo, hi = _limits(rng, TARGETS[i % len(TARGETS)], _draws(rng, np.ones(n)), i % 2 == 1)
        answer = oracles.independent(lo, hi)
        yield _make(
            f"independent-{i}-n{n}", "independent", np.diag(sd**2), lo * sd, hi * sd, answer
        )


def bivariate_trivariate(rng):
    for i in range(48):
        n = 2 + i % 2
        if n == 2:
            rho = (0.0, 0.3, -0.7, 0.9, -0.95, 0.99, -0.999, 0.9999)[(i // 2) % 8]
            corr = np.array([[1, rho], [rho, 1]])
        else:
            factor = rng.normal(size=(3, 3)) + rng.choice([0, 1, 2]) * rng.normal(size=(1, 3))
            corr = factor @ factor.T + 0.1 * np.eye(3)
            sd = np.sqrt(np.diag(corr))
            corr = corr / sd[:, None] / sd
        hi = rng.normal(0.7, 1.2, n)
        lo = hi - rng.gamma(3.0, size=n) if i % 5 == 4 else np.full(n, -np.inf)
        yield _make(f"nested-{i}-n{n}", f"nested_{n}", corr, lo, hi, oracles.nested(corr, lo, hi))


def one_factor(rng):
    """Product-form correlation a_i a_j; mixed signs, upper limits only and rectangles."""
    for i, n in enumerate([3] * 2 + _sizes(28, 20, 14)):
        strength = (0.5, 0.75, 0.9, 0.97)[i % 4]
        load = strength * rng.uniform(0.8, 1.02, n)
        if i % 3 == 2:
            load *= rng.choice([-1, 1], n)
        if i % 7 == 6:
            load *= rng.uniform(0.1, 1.0, n)
        noise = np.sqrt(1 - load**2)
        draws = _draws(rng, load[None], noise)
        lo, hi = _limits(rng, TARGETS[(i * 3 + 1) % len(TARGETS)], draws, i % 5 == 1)
        cov = np.outer(load, load)
        np.fill_diagonal(cov, 1.0)
        answer = oracles.one_factor(load, noise, lo, hi)
        yield _make(f"one_factor-{i}-n{n}", "one_factor", cov, lo, hi, answer)


def skewed(rng):
    """p near .999 with strongly correlated classes: few points see the mass (a known weak spot)."""
    for i, n in enumerate(_sizes(12, 10, 8)):
        load = np.full(n, np.sqrt((0.75, 0.9, 0.97, 0.6)[i % 4])) * rng.uniform(0.97, 1.01, n)
        load = np.minimum(load, 0.995)
        noise = np.sqrt(1 - load**2)
        target = (0.997, 0.999, 0.9995, 0.9999)[(i // 2) % 4]
        margins = 1 + 0.02 * rng.gamma(2.0, size=n)
        # The union bound is far off here, so the limits are solved for exactly.
        lo = np.full(n, -np.inf)

        def excess(c, load=load, noise=noise, lo=lo, margins=margins, target=target):
            answer = oracles.one_factor(load, noise, lo, c * margins)
            return np.log(answer.complement) - np.log(1 - target)

        hi = optimize.brentq(excess, 1.0, 8.0, rtol=1e-3) * margins
        cov = np.outer(load, load)
        np.fill_diagonal(cov, 1.0)
        answer = oracles.one_factor(load, noise, lo, hi)
        yield _make(f"skewed-{i}-n{n}", "skewed", cov, lo, hi, answer)


def orthant(rng):
    """All correlations 1/2 and limits 0: P = 1 / (n + 1). Scaled, so that cov = s s^T (I + 11^T)."""
    for i, n in enumerate((2, 3, 4, 5, 6, 8, 9, 12, 16, 17, 31, 33, 64, 65, 99, 128, 200, 999)):
        sd = np.exp(rng.normal(size=n)) if i % 2 else np.ones(n)
        cov = (np.ones((n, n)) + np.eye(n)) / 2 * np.outer(sd, sd)
        p = 1 / (n + 1)
        answer = oracles.Answer(p, n / (n + 1), 1e-15)
        yield _make(f"orthant-n{n}", "orthant", cov, np.full(n, -np.inf), np.zeros(n), answer)


def equicorrelated(rng):
    for i, n in enumerate(_sizes(16, 10, 8)):
        rho = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98)[i % 6]
        load, noise = np.full(n, np.sqrt(rho)), np.full(n, np.sqrt(1 - rho))
        if i % 2:  # equal limits: every order of the variables is as good
            x = _draws(rng, load[None], noise).max(1)
            hi = np.full(n, np.quantile(x, min(TARGETS[i % len(TARGETS)], 0.99)))
        else:
            hi = _limits(rng, TARGETS[i % len(TARGETS)], _draws(rng, load[None], noise), False)[1]
        lo = np.full(n, -np.inf)
        cov = np.full((n, n), rho)
        np.fill_diagonal(cov, 1.0)
        answer = oracles.one_factor(load, noise, lo, hi)
        yield _make(f"equicorrelated-{i}-n{n}", "equicorrelated", cov, lo, hi, answer)


def negative(rng):
    """Correlations -b_i b_j, from mild to nearly singular."""
    for i, n in enumerate(_sizes(14, 6, 4)):
        load = rng.uniform(0.3, 1.0, n)
        room = (0.6, 0.2, 0.05)[i % 3]

        def excess(c, b=load, r=room):
            return np.sum((c * b) ** 2 / (1 + (c * b) ** 2)) - 1 + r

        load = load * optimize.brentq(excess, 0.0, 100.0)
        cov = -np.outer(load, load)
        np.fill_diagonal(cov, 1.0)
        draws = rng.normal(size=(3000, n)) @ np.linalg.cholesky(cov).T
        lo, hi = _limits(rng, TARGETS[(i * 2) % len(TARGETS)], draws, i % 4 == 3)
        answer = oracles.negative_factor(load, lo, hi)
        yield _make(f"negative-{i}-n{n}", "negative", cov, lo, hi, answer)


def simplex(rng):
    """sum X_i = 0: the covariance has rank n - 1 and no correlated pair stands out."""
    for i, n in enumerate((8, 8, 9, 9, 12, 16, 17, 17, 31, 33, 64, 65, 99, 99, 128, 200, 500, 999)):
        cov = np.full((n, n), -1 / (n - 1.0))
        np.fill_diagonal(cov, 1.0)
        z = rng.normal(size=(3000, n))
        draws = (z - z.mean(1, keepdims=True)) * np.sqrt(n / (n - 1.0))
        hi = _limits(rng, TARGETS[(i + 2) % len(TARGETS)], draws, False)[1]
        answer = oracles.simplex(hi)
        lo = np.full(n, -np.inf)
        yield _make(f"simplex-{i}-n{n}", "simplex", cov, lo, hi, answer, singular=True)


def markov(rng):
    """Markov chains: AR(1) with one coefficient, and one coefficient per step."""
    for i, n in enumerate([3] * 2 + _sizes(20, 12, 8)):
        base = (0.2, 0.6, -0.5, 0.9, 0.97)[i % 5]
        rho = np.full(n - 1, base) if i % 2 else np.clip(rng.normal(base, 0.2, n - 1), -0.9, 0.97)
        # corr_ij = product of rho between i and j.
        cov = np.eye(n)
        for k in range(1, n):
            cov[k, :k] = cov[:k, k] = rho[k - 1] * cov[k - 1, :k]
        draws = np.empty((3000, n))
        draws[:, 0] = rng.normal(size=3000)
        for k in range(1, n):
            draws[:, k] = rho[k - 1] * draws[:, k - 1]
            draws[:, k] += np.sqrt(1 - rho[k - 1] ** 2) * rng.normal(size=3000)
        lo, hi = _limits(rng, TARGETS[(i * 4 + 1) % len(TARGETS)], draws, i % 4 == 2)
        answer = oracles.markov(rho, lo, hi)
        order = rng.permutation(n)
        yield _make(
            f"markov-{i}-n{n}", "markov", cov[np.ix_(order, order)], lo[order], hi[order], answer
        )


def two_factor(rng):
    for i, n in enumerate(_sizes(10, 8, 4)):
        angle = rng.normal(0, 0.6, n)
        strength = rng.uniform(0.6, 0.93, n)
        load = strength[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        noise = np.sqrt(1 - strength**2)
        draws = _draws(rng, load.T, noise)
        lo, hi = _limits(rng, TARGETS[(i * 3 + 4) % len(TARGETS)], draws, i % 6 == 5)
        cov = load @ load.T
        np.fill_diagonal(cov, 1.0)
        answer = oracles.two_factor(load, noise, lo, hi)
        yield _make(f"two_factor-{i}-n{n}", "two_factor", cov, lo, hi, answer)


def hierarchy(rng):
    """Classes in groups, as in a trained network with super-classes: mean correlation .5 to .8."""
    for i, n in enumerate(_sizes(14, 14, 10)):
        group = rng.integers(0, max(2, n // 10), n)
        top = np.sqrt((0.45, 0.55, 0.7)[i % 3]) * rng.uniform(0.9, 1.05, n)
        within = np.sqrt((0.3, 0.15, 0.2)[i % 3]) * rng.uniform(0.8, 1.02, n)
        noise = np.sqrt(1 - top**2 - within**2)
        same = group[:, None] == group
        cov = np.outer(top, top) + same * np.outer(within, within)
        np.fill_diagonal(cov, 1.0)
        member = (group == np.unique(group)[:, None]) * within
        draws = _draws(rng, top[None], member, noise)
        target = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9999)[(i * 3) % 10]
        lo, hi = _limits(rng, target, draws, False)
        answer = oracles.hierarchy(top, group, within, noise, lo, hi)
        yield _make(f"hierarchy-{i}-n{n}", "hierarchy", cov, lo, hi, answer)


def orthogonal_classifier(rng):
    """Linear classifier with orthogonal class weights w_i: u_i = w_t - w_i, cov = U U^T unscaled."""
    for i, n in enumerate(_sizes(8, 6, 6)):
        norm = np.exp(0.3 * rng.normal(size=n + 1))
        cov = np.full((n, n), norm[0] ** 2) + np.diag(norm[1:] ** 2)
        sd = np.sqrt(np.diag(cov))
        load, noise = norm[0] / sd, norm[1:] / sd
        lo, hi = _limits(
            rng, TARGETS[(i * 2 + 3) % len(TARGETS)], _draws(rng, load[None], noise), 0
        )
        answer = oracles.one_factor(load, noise, lo, hi)
        yield _make(f"orthogonal-{i}-n{n}", "orthogonal_classifier", cov, lo, hi * sd, answer)


def low_rank_classifier(rng):
    """Linear softmax classifier with C = n + 1 classes and weights of rank 1, 2 or 3."""
    exact = {
        1: lambda u, a, b: oracles.rank_one(u[:, 0], a, b),
        2: oracles.rank_two,
        3: oracles.rank_three,
    }
    for i, n in enumerate(_sizes(24, 16, 9)):
        rank = 1 + i % 3
        weight = rng.normal(size=(n + 1, rank)) * np.exp(0.5 * rng.normal(size=(n + 1, 1)))
        logits = weight @ rng.normal(size=rank) + 0.3 * rng.normal(size=n + 1)
        t = int(np.argmax(logits))
        rows = np.delete(weight[t] - weight, t, axis=0)
        margin = np.delete(logits[t] - logits, t)
        draws = _draws(rng, rows.T)
        target = (0.01, 0.1, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999)[(i * 3 + 2) % 8]
        hi = limits_for(target, margin, draws)
        lo = np.full(n, -np.inf)
        answer = exact[rank](rows, lo, hi)
        yield _make(
            f"classifier-rank{rank}-{i}-n{n}",
            f"classifier_rank{rank}",
            rows @ rows.T,
            lo,
            hi,
            answer,
            singular=n > rank,
        )


def low_rank(rng):
    """Random rows of rank 1, 2, 3: wedges, polygons and polyhedra, boxes included."""
    exact = {
        1: lambda u, a, b: oracles.rank_one(u[:, 0], a, b),
        2: oracles.rank_two,
        3: oracles.rank_three,
    }
    for i, n in enumerate(_sizes(33, 15, 6)):
        rank = 1 + i % 3
        rows = rng.normal(size=(n, rank))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        if i % 4 == 3:  # one orthant-like corner: all rows within a half space, limits near 0
            rows *= np.sign(rows[:, :1])
            hi = 0.3 * rng.normal(size=n) if rank > 1 else np.abs(rng.normal(size=n))
            lo = np.full(n, -np.inf)
        else:
            target = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)[(i * 2) % 7]
            lo, hi = _limits(rng, target, _draws(rng, rows.T), i % 5 == 0)
        answer = exact[rank](rows, lo, hi)
        cov = rows @ rows.T
        yield _make(
            f"low_rank{rank}-{i}-n{n}", f"low_rank{rank}", cov, lo, hi, answer, singular=n > rank
        )


def duplicates(rng):
    """Repeated, scaled and antiparallel variables: a rectangle written with upper limits alone."""
    for i, m in enumerate([2, 3] + _sizes(20, 8, 0)):
        load = rng.uniform(0.3, 0.95, m) * rng.choice([-1, 1], m)
        noise = np.sqrt(1 - load**2)
        draws = _draws(rng, load[None], noise)
        lo, hi = _limits(rng, TARGETS[(i * 3) % len(TARGETS)], draws, i % 2 == 0)
        cov = np.outer(load, load)
        np.fill_diagonal(cov, 1.0)
        answer = oracles.one_factor(load, noise, lo, hi)
        rows, upper = [np.eye(m)], [hi]
        finite = np.flatnonzero(np.isfinite(lo))
        rows.append(-np.eye(m)[finite])
        upper.append(-lo[finite])
        extra = rng.integers(0, m, max(2, m // 3))
        slack = rng.choice([0.0, 0.1, 1.0], len(extra))  # 0: tied with the original
        scale = rng.choice([1.0, 2.0, 0.37], len(extra))
        rows.append(np.eye(m)[extra] * scale[:, None])
        upper.append((hi[extra] + slack) * scale)
        rows, upper = np.concatenate(rows), np.concatenate(upper)
        order = rng.permutation(len(upper))
        rows, upper = rows[order], upper[order]
        n = len(upper)
        yield _make(
            f"duplicates-{i}-n{n}",
            "duplicates",
            rows @ cov @ rows.T,
            np.full(n, -np.inf),
            upper,
            answer,
            singular=True,
        )


def blocks(rng):
    """Block-diagonal covariances: products of small problems, variables shuffled."""
    for i, n in enumerate(_sizes(10, 10, 6)):
        parts, answers, singular = [], [], False
        left, kinds = n, 0
        # Each block's share: n variables of probability p ** (size / n).
        target = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)[i % 7]
        while left:
            size = left if left <= 3 else int(rng.integers(2, min(left, max(4, n // 3)) + 1))
            share = target ** (size / n)
            kind = kinds % 3 if size >= 3 else 0
            if kind == 0:
                load = rng.uniform(0.2, 0.95, size)
                noise = np.sqrt(1 - load**2)
                draws = _draws(rng, load[None], noise)
                cov = np.outer(load, load)
                np.fill_diagonal(cov, 1.0)
                lo, hi = _limits(rng, share, draws, kinds % 2 == 1)
                answers.append(oracles.one_factor(load, noise, lo, hi))
            elif kind == 1:
                rho = rng.uniform(-0.6, 0.9)
                cov = rho ** np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
                draws = rng.normal(size=(3000, size)) @ np.linalg.cholesky(cov).T
                lo, hi = _limits(rng, share, draws, False)
                answers.append(oracles.markov(np.full(size - 1, rho), lo, hi))
            else:
                rows = rng.normal(size=(size, 2))
                cov = rows @ rows.T
                margin = np.linalg.norm(rows, axis=1) * gaps(rng, size)
                hi = limits_for(share, margin, _draws(rng, rows.T))
                lo = np.full(size, -np.inf)
                answers.append(oracles.rank_two(rows, lo, hi))
                singular = True
            parts.append((cov, lo, hi))
            left, kinds = left - size, kinds + 1
        cov, at = np.zeros((n, n)), 0
        for part, _, _ in parts:
            cov[at : at + len(part), at : at + len(part)] = part
            at += len(part)
        lo, hi = (np.concatenate([p[k] for p in parts]) for k in (1, 2))
        order = rng.permutation(n)
        yield _make(
            f"blocks-{i}-n{n}",
            "blocks",
            cov[np.ix_(order, order)],
            lo[order],
            hi[order],
            oracles.joined(answers),
            singular,
        )


def infinite(rng):
    """Limits at infinity: the variables drop out, or the sides of a box open."""
    for i, n in enumerate(_sizes(10, 5, 2)):
        load = rng.uniform(0.3, 0.95, n)
        noise = np.sqrt(1 - load**2)
        draws = _draws(rng, load[None], noise)
        lo, hi = _limits(rng, (0.3, 0.9, 0.99)[i % 3], draws, i % 2 == 0)
        hi[rng.random(n) < 0.4] = np.inf
        if i % 2 == 0:
            lo[rng.random(n) < 0.4] = -np.inf
        if i % 5 == 4:
            lo[:], hi[:] = -np.inf, np.inf
        cov = np.outer(load, load)
        np.fill_diagonal(cov, 1.0)
        answer = oracles.one_factor(load, noise, lo, hi)
        yield _make(f"infinite-{i}-n{n}", "infinite", cov, lo, hi, answer)


def zero_variance(rng):
    """Constant variables: a step that is closed at the limit, P(0 <= 0) = 1."""
    for i, n in enumerate(_sizes(8, 4, 2)):
        load = rng.uniform(0.3, 0.95, n)
        noise = np.sqrt(1 - load**2)
        lo, hi = _limits(rng, (0.5, 0.9, 0.99)[i % 3], _draws(rng, load[None], noise), i % 4 == 1)
        constant = rng.choice(n, size=max(1, n // 4), replace=False)
        free = np.setdiff1d(np.arange(n), constant)
        answer = oracles.one_factor(load[free], noise[free], lo[free], hi[free])
        cov = np.outer(load, load)
        np.fill_diagonal(cov, 1.0)
        cov[constant], cov[:, constant] = 0.0, 0.0
        lo[constant] = -np.inf
        hi[constant] = rng.choice([0.0, 0.5], len(constant))  # 0: at the limit
        if i % 5 == 4:
            hi[constant[0]] = -1e-3
            answer = oracles.Answer(0.0, 1.0, 0.0)
        problem = _make(
            f"zero_variance-{i}-n{n}", "zero_variance", cov, lo, hi, answer, singular=True
        )
        yield problem


FAMILIES = (
    univariate, independent, bivariate_trivariate, one_factor, skewed, orthant, equicorrelated,
    negative, simplex, markov, two_factor, hierarchy, orthogonal_classifier, low_rank_classifier,
    low_rank, duplicates, blocks, infinite, zero_variance,
)  # fmt: skip


def shifted_and_scaled(problem, rng, scale=True, shift=True):
    """The same problem in other units: cov -> D cov D, limits -> D limits + mean."""
    n = problem.n
    sd = np.exp(rng.normal(size=n)) if scale else np.ones(n)
    mean = rng.normal(size=n) if shift else None
    move = 0.0 if mean is None else mean
    tag = "-scaled" * scale + "-shifted" * shift
    return replace(
        problem,
        name=problem.name + tag,
        upper=problem.upper * sd + move,
        lower=None if problem.lower is None else problem.lower * sd + move,
        cov=problem.cov * np.outer(sd, sd),  # the outer product first: exactly symmetric
        mean=mean,
    )


@lru_cache(maxsize=2)
def known_answers(seed=0):
    """All problems of one seed. Every fourth one is moved to other units and another mean."""
    return tuple(problem for family in FAMILIES for problem in of_family(family, seed))


def of_family(family, seed):
    """Those of one of FAMILIES."""
    rng = np.random.default_rng([seed, FAMILIES.index(family)])
    for i, problem in enumerate(family(rng)):
        # Constant variables stay where they are: mean + 0 <= mean must not be rounded.
        if i % 4 == 3 and problem.family != "zero_variance":
            problem = shifted_and_scaled(problem, rng, scale=i % 8 == 3, shift=True)
        yield problem
