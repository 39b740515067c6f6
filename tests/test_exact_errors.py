"""Stated errors of exact answers where limits, loads and multiples are at the end of the digits."""

import math
import time

import mpmath
import numpy as np
import oracles
import pytest
import torch
from scipy import special

from mvnrob import Status, mvn_cdf, mvn_log_cdf

INF = math.inf
ULP = 2.0**-53


def vector(*x):
    return torch.tensor(x, dtype=torch.float64)


def equal(n, corr, dtype=torch.float64):
    return torch.full((n, n), corr, dtype=dtype).fill_diagonal_(1.0)


def log_density(x, cov):
    x, cov = np.asarray(x), np.asarray(cov)
    n = len(x)
    return -0.5 * (
        x @ np.linalg.solve(cov, x) + np.linalg.slogdet(cov)[1] + n * math.log(2 * math.pi)
    )


def assert_exact(r, prob, log_prob):
    assert r.status == Status.EXACT and r.n_points == 0
    assert abs(float(r.prob) - prob) <= float(r.error)
    assert abs(float(r.log_prob) - log_prob) <= float(r.log_error)


# ---- quadrature where the logarithm of the integrand has few digits ------------------------------


def far_out(limit):
    """Savage's (1962) leading term, to a relative limit^-2."""
    n, corr = 5, 0.25
    slope = np.linalg.solve(np.asarray(equal(n, corr)), np.full(n, -limit))
    return log_density(np.full(n, limit), equal(n, corr)) - np.log(slope).sum()


@pytest.mark.parametrize("limit", [-1e4, -1e5, -1e7, -1e9, -1e12])
def test_limits_far_out(limit):
    start = time.process_time()
    r = mvn_cdf(vector(*[limit] * 5), equal(5, 0.25), return_info=True)
    assert_exact(r, 0.0, far_out(limit))
    assert float(r.log_error) <= 1e-12 + 1e-10 * limit**2
    assert float(r.error) == 0 and time.process_time() - start < 1


def test_one_limit_far_out():
    """A small variance makes one limit large."""
    scale = vector(1, 1, 1, 1, 1e-7)
    r = mvn_cdf(
        vector(1, 1, 1, 1, -1), equal(5, 0.25) * torch.outer(scale, scale), return_info=True
    )
    rest = [special.log_ndtr(0.25e7 / math.sqrt(0.9375))] * 4  # certain given the fifth
    assert_exact(r, 0.0, special.log_ndtr(-1e7) + sum(rest))
    assert float(r.log_error) <= 1


@pytest.mark.parametrize("width", [1e-9, 1e-12, 1e-14])
def test_narrow_boxes(width):
    low = torch.linspace(0.1, 1.1, 5, dtype=torch.float64)
    high = low + width
    log_prob = log_density(low + 0.5 * width, equal(5, 0.25)) + float((high - low).log().sum())
    for options in ({"abs_tol": 1e-4}, {"abs_tol": 0.0, "rel_tol": 1e-3}):
        r = mvn_cdf(high, equal(5, 0.25), lower=low, **options, return_info=True)
        assert_exact(r, math.exp(log_prob), log_prob)
        assert float(r.log_error) <= 5e-14 / width + 1e-10


def test_many_variables_far_out_are_quick():
    start = time.process_time()
    r = mvn_cdf(torch.full((1000,), -1e5).double(), equal(1000, 0.25), return_info=True)
    assert r.status == Status.EXACT and time.process_time() - start < 2
    assert float(r.log_prob) == pytest.approx(-0.5e10 * 1000 / (1 + 999 * 0.25), rel=1e-6)


@pytest.mark.parametrize("n, corr", [(145, 0.99), (1000, 0.99), (200, 0.998), (1000, 0.9989)])
def test_high_correlations_are_exact(n, corr):
    load = math.sqrt(corr)
    y, w = oracles.gauss_legendre(-10, 10, 4000)
    held = special.log_ndtr((1 - load * y) / math.sqrt(1 - corr))
    prob = float((w * np.exp(n * held - y * y / 2)).sum() / math.sqrt(2 * math.pi))
    r = mvn_cdf(torch.ones(n).double(), equal(n, corr), return_info=True)
    assert_exact(r, prob, math.log(prob))
    assert float(r.error) <= 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_steep_steps_anywhere_are_found(seed):
    rng = np.random.default_rng(seed)
    n = 300
    load = rng.choice([-1, 1], n) * rng.uniform(0.99, 0.9995, n)
    upper = np.abs(rng.normal(0, 2, n)) + 0.5
    cov = np.outer(load, load)
    np.fill_diagonal(cov, 1.0)
    answer = oracles.one_factor(load, np.sqrt(1 - load**2), np.full(n, -INF), upper)
    r = mvn_cdf(torch.from_numpy(upper), torch.from_numpy(cov), return_info=True)
    assert r.status == Status.EXACT
    assert abs(float(r.prob) - answer.prob) <= float(r.error) + answer.abs_err


@pytest.mark.parametrize("limit", [36.0, 37.04, 37.3])
def test_complement_at_the_end_of_the_format(limit):
    load, n = 0.9990234375, 5
    with mpmath.workdps(40):
        rest = mpmath.sqrt(1 - mpmath.mpf(load) ** 2)
        edges = [limit * load + k * rest / 2 for k in range(-40, 41)]
        truth = mpmath.quad(
            lambda y: (
                mpmath.npdf(y)
                * -mpmath.expm1(n * mpmath.log1p(-mpmath.ncdf((load * y - limit) / rest)))
            ),
            edges,
        )
    options = {"abs_tol": 0.0, "rel_tol": 1e-2}
    r = mvn_cdf(vector(*[limit] * n), equal(n, load**2), **options, return_info=True)
    assert abs(float(r.complement) - float(truth)) <= float(r.error) <= 1e-2 * float(truth)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("limit, variance", [(-1.0, 1e-40), (-1e10, 1.0), (-1.0, 1e-8)])
def test_logarithms_beyond_the_squares_of_the_fits(n, limit, variance):
    with mpmath.workdps(60):
        x = mpmath.mpf(limit) / mpmath.sqrt(mpmath.mpf(variance))
        one = -x * x / 2 - mpmath.log(-x * mpmath.sqrt(2 * mpmath.pi)) - 1 / x**2
        truth = n * one
        r = mvn_log_cdf(vector(*[limit] * n), variance * equal(n, 0.0), return_info=True)
        assert abs(float(r.log_prob) - truth) <= float(r.log_error) <= 1e-14 * -truth


def test_a_logarithm_that_is_not_known_says_so():
    r = mvn_cdf(vector(*[-1e20] * 5), equal(5, 0.25), return_info=True)
    assert r.prob == 0 and r.error == 0 and r.log_error == INF


# ---- the limits' rounding ------------------------------------------------------------------------


def interval_of(variance, centre, width):
    """Limits, P and ln P of one variable."""
    low, high = centre * math.sqrt(variance), (centre + width) * math.sqrt(variance)
    with mpmath.workdps(50):
        sd = mpmath.sqrt(mpmath.mpf(variance))
        tails = [mpmath.ncdf(-abs(mpmath.mpf(x)) / sd) for x in (low, high)]
        return low, high, abs(tails[0] - tails[1])


@pytest.mark.parametrize("variance", [3.0, 0.1, 1e-5])
@pytest.mark.parametrize("centre, width", [(0.5, 1e-13), (3.0, 1e-10), (30.0, 1e-9), (-7.0, 1e-6)])
def test_standardised_limits(variance, centre, width):
    """One variable alone, beside independent ones, and multiples of it."""
    low, high, p = interval_of(variance, centre, width)
    below = vector(low, -INF, -INF, -INF)
    for cov, others in (
        (equal(1, 0.0), 1.0),
        (equal(2, 0.0), 0.5),
        (equal(4, 0.0), 0.125),
        (equal(4, 1.0), 1.0),
    ):
        n = len(cov)
        upper = vector(high, *[0.0 if others < 1 else 100.0] * (n - 1))
        r = mvn_log_cdf(upper, variance * cov, lower=below[:n], return_info=True)
        truth = p * others
        assert_exact(r, float(truth), float(mpmath.log(truth)))
        assert float(r.log_error) <= 3e-15 * (1 + abs(centre)) / width + 1e-12 + 1e-14 * centre**2


@pytest.mark.parametrize("variance", [3.0, 0.1])
@pytest.mark.parametrize("centre, width", [(0.5, 1e-13), (3.0, 1e-10), (1.0, 1e-7)])
def test_a_narrow_range_of_the_factor(variance, centre, width):
    """The first variable is the factor itself."""
    load = [1, 0.5, 0.25, 0.75, 0.5]
    low, high, _ = interval_of(variance, centre, width)
    with mpmath.workdps(50):
        sd = mpmath.sqrt(mpmath.mpf(variance))

        def held(y):
            rest = [mpmath.ncdf(-a * y / mpmath.sqrt(1 - mpmath.mpf(a) ** 2)) for a in load[1:]]
            return mpmath.npdf(y) * mpmath.fprod(rest)

        truth = mpmath.quad(held, [mpmath.mpf(low) / sd, mpmath.mpf(high) / sd])
    cov = np.outer(load, load)
    np.fill_diagonal(cov, 1.0)
    r = mvn_log_cdf(
        vector(high, 0, 0, 0, 0), torch.from_numpy(variance * cov),
        lower=vector(low, *[-INF] * 4), return_info=True,
    )  # fmt: skip
    assert_exact(r, float(truth), float(mpmath.log(truth)))
    assert float(r.log_error) <= 5e-15 * (1 + centre) / width + 1e-11


# ---- near multiples ------------------------------------------------------------------------------


def log_of_near_multiples(limit, corr):
    """ln P of two variables below the same limit."""
    with mpmath.workdps(50):
        corr = mpmath.mpf(corr)
        rest = mpmath.sqrt(1 - corr**2)
        edges = [limit + k * rest for k in range(-12, 13, 2)]
        lost = mpmath.quad(
            lambda x: mpmath.npdf(x) * (1 - mpmath.ncdf((limit - corr * x) / rest)),
            [e for e in edges if e <= limit],
        )
        return float(mpmath.log(mpmath.ncdf(limit) - lost))


@pytest.mark.parametrize("ulps", [1, 4, 13])
@pytest.mark.parametrize("limit", [-30.0, -5.0, 0.3])
def test_merged_multiples_move_the_logarithm(ulps, limit):
    corr = 1 - ulps * ULP
    truth = log_of_near_multiples(limit, corr)
    two = mvn_log_cdf(vector(limit, limit), equal(2, corr), return_info=True)
    beside = torch.block_diag(equal(2, corr), equal(4, 0.5))
    upper = vector(limit, limit, 0, 0, 0, 0)
    five = mvn_log_cdf(upper, beside, return_info=True)
    for r, log_prob in ((two, truth), (five, truth + math.log(0.2))):
        assert_exact(r, math.exp(log_prob), log_prob)
        assert float(r.log_error) <= 20 * math.sqrt(ulps * ULP) * (1 - limit)
    # And where an interval is narrower than what is neglected.
    r = mvn_log_cdf(vector(0, INF), equal(2, corr), lower=vector(-INF, -1e-9), return_info=True)
    with mpmath.workdps(50):
        truth = mpmath.acos(mpmath.mpf(corr)) / (2 * mpmath.pi) + 0.5e-9 / mpmath.sqrt(
            2 * mpmath.pi
        )
    assert abs(float(r.log_prob) - math.log(float(truth))) <= float(r.log_error)


def contradiction(n, corr, gap, dtype):
    """X_0 <= 0, X_1 >= gap, and others that hold half the time; P by Plackett's integral."""
    cov = torch.eye(n, dtype=dtype)
    cov[0, 1] = cov[1, 0] = corr
    upper, lower = torch.zeros(n, dtype=dtype), torch.full((n,), -INF, dtype=dtype)
    upper[1], lower[1] = INF, gap
    with mpmath.workdps(50):
        corr = mpmath.mpf(float(cov[0, 1]))
        angle = mpmath.acos(corr)
        gap = mpmath.mpf(float(lower[1]))
        p = mpmath.quad(
            lambda t: mpmath.exp(-((gap / mpmath.sin(t)) ** 2) / 2), [0, angle / 2, angle]
        )
        return upper, cov, lower, float(p / (2 * mpmath.pi) / 2 ** (n - 2))


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("ulps", [1, 4, 13])
@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-7])
def test_near_multiples_that_contradict_each_other(n, ulps, gap):
    upper, cov, lower, prob = contradiction(n, 1 - ulps * ULP, gap, torch.float64)
    r = mvn_cdf(upper, cov, lower=lower, return_info=True)
    assert r.status == Status.EXACT
    assert abs(float(r.prob) - prob) <= float(r.error) <= 1e-8
    assert math.log(prob) >= float(r.log_prob) - float(r.log_error)
    factor = torch.eye(n).double()
    sd = min(ulps, 4) * 1e-15
    factor[1, 0], factor[1, 1] = 1, sd
    r = mvn_cdf(upper, factor=factor, lower=lower, return_info=True)
    assert float(r.prob) <= float(r.error) <= 2e-12
    if gap == 0:
        assert abs(float(r.prob) - sd / 2 ** (n - 1) / math.pi) <= float(r.error)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("gap", [0.0, 3e-4, 1e-2])
def test_near_multiples_in_float32(n, gap):
    upper, cov, lower, prob = contradiction(n, 1 - 3 * 2.0**-24, gap, torch.float32)
    r = mvn_cdf(upper, cov, lower=lower, return_info=True)
    assert abs(float(r.prob) - prob) <= float(r.error) <= 1e-4


def test_multiples_far_apart_have_no_probability():
    upper, cov, lower, _ = contradiction(6, 1 - ULP, 1e-5, torch.float64)
    r = mvn_cdf(upper, cov, lower=lower, return_info=True)
    assert r.prob == 0 and r.error == 0 and r.log_prob == -INF and r.log_error == 0


# ---- what is nearly of one factor, and what is no covariance -------------------------------------


def test_float32_entries_off_the_form_are_sampled():
    cov = torch.full((20, 20), 0.999**2)
    cov[3:, 3:] += 9e-7
    cov.fill_diagonal_(1.0)
    r = mvn_cdf(torch.zeros(20), cov, return_info=True)
    assert r.status == Status.CONVERGED and r.n_points > 0


@pytest.mark.parametrize("n", [6, 40, 300])
def test_float32_roundings_of_one_factor_are_exact(n):
    rng = np.random.default_rng(n)
    for scaled in (False, True):
        load = rng.uniform(0.2, 0.98, n) * rng.choice([-1, 1], n)
        upper = rng.uniform(1, 3, n)
        cov = np.outer(load, load)
        np.fill_diagonal(cov, 1.0)
        scale = rng.uniform(0.5, 2, n) if scaled else np.ones(n)
        r = mvn_cdf(
            torch.from_numpy(upper * scale).float(),
            torch.from_numpy(cov * np.outer(scale, scale)).float(),
            return_info=True,
        )
        assert r.status == Status.EXACT
        truth = oracles.one_factor(load, np.sqrt(1 - load**2), np.full(n, -INF), upper)
        assert float(r.prob) == pytest.approx(truth.prob, abs=2e-6)


@pytest.mark.parametrize("n, corr", [(6, -0.5), (10, -0.2), (20, -0.5), (200, -0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_early_zero_pivots_of_an_indefinite_matrix(n, corr, dtype):
    """Pivots leave no variance, and the other variables correlations of -1 and less."""
    with pytest.warns(RuntimeWarning, match="indefinite"):
        r = mvn_cdf(torch.ones(n, dtype=dtype), equal(n, corr, dtype), return_info=True)
    assert r.status == Status.INDEFINITE


def test_singular_matrices_are_not_indefinite():
    """Gram matrices in float64, in float32, and those as float64."""
    rng = np.random.default_rng(1)
    for trial in range(60):
        n = int(rng.integers(4, 80))
        rank = int(rng.integers(1, min(n, 20)))
        rows = rng.normal(size=(n, rank)) * 10.0 ** rng.uniform(-2, 2, (n, 1))
        if trial % 3 == 0:
            rows = np.concatenate([rows, rows[: n // 2] * rng.choice([-2.0, 1], (n // 2, 1))])
        if trial % 5 == 0:
            rows *= 10.0 ** rng.uniform(-4, 0, rank)
        upper = torch.from_numpy(rng.uniform(0.3, 2, len(rows)) * np.linalg.norm(rows, axis=1))
        double = torch.from_numpy(rows)
        single = double.float() @ double.float().mT
        for cov in (double @ double.mT, single, single.double()):
            r = mvn_cdf(upper.to(cov.dtype), cov, abs_tol=0.05, return_info=True)
            assert r.status in (Status.EXACT, Status.CONVERGED)
