"""Problems whose answer is small on one side, p or 1 - p, and known to a relative error.

`lower_tails(seed, count)` are answered by their logarithm, `upper_tails(seed, count)` by their
complement; every call with another seed gives other problems. With a relative tolerance they go
through tilted samples and samples of the union.
"""

import math
from dataclasses import dataclass

import log_oracles
import numpy as np
import problems
from oracles import NotConverged

SIZES = (4, 5, 6, 9, 12, 17, 33)


@dataclass(frozen=True, eq=False)
class Tail:
    name: str
    family: str
    upper: np.ndarray
    cov: np.ndarray
    lower: np.ndarray | None
    near_one: bool
    log_small: float  # ln p, or ln(1 - p) where p is near one
    rel_err: float
    mean: np.ndarray | None = None

    @property
    def n(self):
        return len(self.upper)


def product_correlation(load):
    cov = np.outer(load, load)
    np.fill_diagonal(cov, 1.0)
    return cov


def chain_correlation(rho):
    cov = np.eye(len(rho) + 1)
    for k in range(1, len(cov)):
        cov[k, :k] = cov[:k, k] = rho[k - 1] * cov[k - 1, :k]
    return cov


def _one_factor(rng, n, load, centre, spread):
    """Limits around centre; a third of the problems are rectangles."""
    noise = np.sqrt(1 - load * load)
    upper = centre + spread * rng.normal(size=n)
    lower = upper - rng.gamma(2.0, size=n) * (1 + spread) if rng.random() < 0.3 else None
    free = np.full(n, -np.inf)
    log_p = log_oracles.one_factor(load, noise, free if lower is None else lower, upper)
    return upper, product_correlation(load), lower, log_p


def positive(rng, n):
    """All correlations positive."""
    return _one_factor(rng, n, rng.uniform(0.3, 0.97, n), -rng.uniform(0.3, 6), 0.5)


def mixed_signs(rng, n):
    load = rng.uniform(0.3, 0.9, n) * rng.choice([-1, 1], n)
    return _one_factor(rng, n, load, -rng.uniform(0.0, 5), 0.5)


def antiparallel(rng, n):
    """Most pairs correlated by -.9 to -.998 or by as much: bands of the common factor."""
    load = rng.uniform(0.95, 0.999, n) * rng.choice([-1, 1], n)
    noise = np.sqrt(1 - load * load)
    return _one_factor(rng, n, load, -rng.uniform(0.2, 3) * noise, 0.15)


def one_pair(rng, n):
    """One pair correlated by -.9 to -.99999, the others as usual."""
    load = rng.uniform(0.2, 0.8, n) * rng.choice([-1, 1], n)
    load[0] = math.sqrt(1 - 10 ** rng.uniform(-5, -1))
    load[1] = -load[0]
    noise = np.sqrt(1 - load * load)
    at = 1.5 * rng.normal()
    upper = rng.normal(-0.5, 1.0, n)
    upper[0], upper[1] = at + 2 * noise[0] * rng.normal(), -at
    free = np.full(n, -np.inf)
    log_p = log_oracles.one_factor(load, noise, free, upper)
    return upper, product_correlation(load), None, log_p


def pairs(rng, n):
    """Independent pairs, each correlated by -.9 to -.99999."""
    parts, upper, log_p = np.zeros((n - n % 2,) * 2), [], 0.0
    for i in range(n // 2):
        load = math.sqrt(1 - 10 ** rng.uniform(-5, -1)) * np.array([1.0, -1.0])
        noise = np.sqrt(1 - load * load)
        at = rng.normal()
        limits = np.array([at + 1.5 * noise[0] * rng.normal(), -at])
        log_p += log_oracles.one_factor(load, noise, np.full(2, -np.inf), limits)
        parts[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = product_correlation(load)
        upper.append(limits)
    return np.concatenate(upper), parts, None, log_p


def chain(rng, n):
    """Markov chains, mild to strong, both signs; shuffled."""
    n = min(n, 12)  # the oracle's cost
    rho = rng.choice([-1, 1], n - 1) * rng.uniform(0.2, 0.97, n - 1)
    upper = rng.normal(-0.8, 0.8, n) - (rng.random() < 0.3) * 2
    log_p = log_oracles.markov(rho, np.full(n, -np.inf), upper)
    order = rng.permutation(n)
    return upper[order], chain_correlation(rho)[np.ix_(order, order)], None, log_p


LOWER_FAMILIES = (positive, mixed_signs, antiparallel, one_pair, pairs, chain)


def lower_tails(seed, count):
    """`count` problems of each family with p <= .03."""
    for k, family in enumerate(LOWER_FAMILIES):
        rng, made = np.random.default_rng([seed, 100 + k]), 0
        while made < count:
            try:
                upper, cov, lower, log_p = family(rng, SIZES[made % len(SIZES)])
            except NotConverged:
                continue
            if log_p > math.log(0.03):
                continue
            name = f"{family.__name__}-{made}-n{len(upper)}"
            yield Tail(
                name, family.__name__, upper, cov, lower, False, log_p, 2 * log_oracles.REL_ERR
            )
            made += 1


def upper_tails(seed, count, small=5e-2, least=1e-14):
    """`count` problems each with upper limits and rectangles, 1 - p from `small` to `least`."""
    for rectangular in (False, True):
        rng, made = np.random.default_rng([seed, 200 + rectangular]), 0
        family = "rectangle_near_one" if rectangular else "near_one"
        while made < count:
            n = SIZES[made % len(SIZES)]
            load = rng.uniform(0.2, 0.97, n) * (rng.choice([-1, 1], n) if made % 3 == 2 else 1)
            noise = np.sqrt(1 - load * load)
            upper = rng.uniform(1.5, 7.5) + rng.uniform(0, 1.5, n)
            lower = -upper - rng.uniform(-0.2, 0.5, n) if rectangular else np.full(n, -np.inf)
            q = log_oracles.one_factor_complement(load, noise, lower, upper)
            if not least < q < small:
                continue
            yield Tail(
                f"{family}-{made}-n{n}", family, upper, product_correlation(load),
                lower if rectangular else None, True, math.log(q), 1e-11,
            )  # fmt: skip
            made += 1


def known_tails(seed, rel_tol, max_n=99):
    """Known answers with a small side whose error is below a hundredth of the tolerance there."""
    for p in problems.known_answers(seed):
        small = min(p.prob, p.complement)
        if p.n <= max_n and 0 < small < 0.05 and p.abs_err_of_answer < 0.01 * rel_tol * small:
            near_one = p.complement < p.prob
            yield Tail(
                p.name, p.family, p.upper, p.cov, p.lower, near_one, math.log(small),
                p.abs_err_of_answer / small, p.mean,
            )  # fmt: skip
