"""1 - p with its own digits: samples of the union of the events that a variable fails."""

import math

import log_oracles
import numpy as np
import pytest
import torch
from honesty import p_value

from mvnrob import Status, mvn_cdf


def one_factor(upper, load, lower=None):
    """1 - P for X_i = load_i Z + sqrt(1 - load_i^2) e_i, to 1e-13 of itself."""
    low = np.full(len(load), -math.inf) if lower is None else lower
    return log_oracles.one_factor_complement(load, np.sqrt(1 - load * load), low, upper)


def problem(n, near, seed, rectangular=False):
    rng = np.random.default_rng(seed)
    load = rng.uniform(0.5, 0.9, n)
    cov = np.outer(load, load)
    np.fill_diagonal(cov, 1.0)
    if n > 3:  # what is exactly of one factor is not sampled
        cov[0, 1] *= 1 - 1e-12
        cov[1, 0] = cov[0, 1]
    upper = near + rng.uniform(0, 1.5, n)
    lower = -upper - rng.uniform(-0.2, 0.5, n) if rectangular else None
    return upper, cov, lower, one_factor(upper, load, lower)


def integrate(upper, cov, lower, **options):
    t = [None if x is None else torch.from_numpy(np.asarray(x)) for x in (upper, cov, lower)]
    return mvn_cdf(t[0], t[1], lower=t[2], return_info=True, **options)


@pytest.mark.parametrize("n", [4, 9, 33, 80])
@pytest.mark.parametrize("near", [3.0, 5.0, 7.4])
@pytest.mark.parametrize("rectangular", [False, True])
def test_three_digits_of_the_complement(n, near, rectangular):
    """From 1 - p = 1e-2 down to 1e-14."""
    upper, cov, lower, truth = problem(n, near, n, rectangular)
    options = {"abs_tol": 0.0, "rel_tol": 2e-3, "max_points": 2**22}
    r = integrate(upper, cov, lower, **options)
    assert r.status == Status.CONVERGED
    assert float(r.error) <= 2e-3 * float(r.complement)
    assert abs(float(r.complement) - truth) <= float(r.error) + 1e-12 * truth


def test_separation_of_variables_could_not():
    """The case that it is for: without it the same call spends its points and misses the digits."""
    upper, cov, lower, truth = problem(20, 6.0, 0)
    options = {"abs_tol": 0.0, "rel_tol": 1e-3}
    plain = integrate(upper, cov, lower, method="sov", **options)
    assert plain.status == Status.MAX_POINTS and float(plain.error) > 0.02 * truth
    united = integrate(upper, cov, lower, **options)
    assert united.status == Status.CONVERGED
    assert int(united.n_points) < int(plain.n_points)


@pytest.mark.parametrize("rectangular", [False, True])
def test_error_covers_the_truth(rectangular):
    """Binomial at 99 % over fresh problems and seeds."""
    misses = rows = 0
    for n in (5, 12, 40):
        made = [problem(n, near, 100 * n + k, rectangular) for k, near in
                enumerate(np.linspace(2.5, 6.5, 40))]  # fmt: skip
        upper, cov, truth = (np.array([m[i] for m in made]) for i in (0, 1, 3))
        lower = np.array([m[2] for m in made]) if rectangular else None
        for seed in range(2):
            seeds = torch.arange(40) + 1000 * seed
            r = integrate(upper, cov, lower, abs_tol=0.0, rel_tol=1e-2, seed=seeds)
            misses += int((np.abs(r.complement.numpy() - truth) > r.error.numpy()).sum())
            rows += 40
    assert p_value(misses, rows) > 0.01, (misses, rows)


def test_singular_rows():
    """Duplicates, antiparallel pairs and low rank: an event and its copies happen together."""
    upper, cov, _, truth = problem(6, 5.0, 1)
    twice = np.tile(np.arange(6), 8)
    r = integrate(upper[twice], cov[np.ix_(twice, twice)], None, abs_tol=0.0, rel_tol=1e-2)
    assert abs(float(r.complement) - truth) <= float(r.error)
    # X and -X below u: both sides of a rectangle
    signs = np.concatenate([np.ones(6), -np.ones(6)])
    both = np.concatenate([np.arange(6), np.arange(6)])
    mirrored = cov[np.ix_(both, both)] * np.outer(signs, signs)
    one = integrate(upper[both], mirrored, None, abs_tol=0.0, rel_tol=1e-2)
    other = integrate(upper, cov, -upper, abs_tol=0.0, rel_tol=1e-2)
    assert abs(float(one.complement - other.complement)) <= float(one.error + other.error)


def test_row_depends_on_itself_alone():
    made = [problem(15, 5.0, k) for k in range(5)]
    upper, cov = np.array([m[0] for m in made]), np.array([m[1] for m in made])
    options = {"abs_tol": 0.0, "rel_tol": 1e-2}
    whole = integrate(upper, cov, None, seed=torch.arange(5), **options)
    for k in (3, 0):
        alone = integrate(upper[k], cov[k], None, seed=k, **options)
        assert float(alone.complement) == float(whole.complement[k])


def test_float32_input_and_output():
    upper, cov, _, truth = problem(10, 5.0, 3)
    r = integrate(upper.astype(np.float32), cov.astype(np.float32), None, abs_tol=0.0, rel_tol=1e-2)
    # float32 limits move the complement by about u * ulp(u) of itself
    assert abs(float(r.complement) - truth) <= 1.01e-2 * truth


@pytest.mark.parametrize("height", [20.0, 27.0, 33.0])
def test_complements_whose_squares_are_no_numbers(height):
    """1 - p of 1e-89 to 1e-239: as good where squares of samples underflow (below 1e-154)."""
    rng = np.random.default_rng(3)
    a = np.concatenate([np.full((12, 1), 3.0), 0.15 * rng.standard_normal((12, 12))], 1)
    cov = a @ a.T
    s = np.sqrt(np.diag(cov))
    upper = torch.from_numpy(s * (height + 0.02 * np.arange(12))).expand(8, 12)

    def integrate(rel_tol, first):
        return mvn_cdf(
            upper, torch.from_numpy(cov), abs_tol=0.0, rel_tol=rel_tol,
            seed=torch.arange(first, first + 8), return_info=True,
        )  # fmt: skip

    r, truth = integrate(1e-2, 0), integrate(1e-3, 100)
    assert (r.status == Status.CONVERGED).all()
    assert (truth.status == Status.CONVERGED).all()
    assert ((r.complement - truth.complement.mean()).abs() <= r.error).all()
