"""mvn_cdf where others fail, by name: far tails, correlations of almost +-1, zero variances, singular,
antiparallel and repeated variables, float32 Gram matrices. Each answer is right within its stated
error, or the documented one where the input does not determine it.

The everyday range is test_coverage.py.
"""

import math

import log_oracles
import numpy as np
import oracles
import pytest
import torch
from tails import product_correlation

from mvnrob import Status, mvn_cdf, mvn_log_cdf

INF = math.inf


def integrate(upper, cov, lower=None, call=mvn_cdf, **options):
    t = [None if v is None else torch.from_numpy(np.asarray(v)) for v in (upper, cov, lower)]
    return call(t[0], t[1], lower=t[2], return_info=True, **options)


def equicorrelated(n, rho=0.5):
    return product_correlation(np.full(n, math.sqrt(rho)))


def assert_covered(result, truth, rounding=1e-12):
    """Within the stated error. `rounding`: that of the input and of the answer."""
    assert result.status in (Status.CONVERGED, Status.EXACT), result
    assert abs(float(result.prob) - truth) <= float(result.error) + rounding, (result, truth)
    assert abs(float(result.complement) - (1 - truth)) <= float(result.error) + rounding


def test_a_ridge_that_early_looks_miss():
    """A chain whose first three variables are nearly multiples of each other, p = .0093: where all eight shifts
    miss the ridge between these at a look of few points, they agree, next to it. The largest share of misses that
    is known (README), and none by Sobol points."""
    rho = np.array([-0.99982026782595, -0.99994674835812, -0.58017187640284, -3.9239215e-05])
    upper = np.array(
        [
            0.329691966648631,
            0.386910974088842,
            2.490164160915664,
            0.28989245024111,
            -1.617106127261785,
        ]
    )
    truth = 0.0093348604895  # a one-dimensional recursion, 500 to 1,900 nodes
    factor = np.zeros((5, 5))
    for k in range(5):
        if k:
            factor[k] = rho[k - 1] * factor[k - 1]
        factor[k, k] = math.sqrt(1 - rho[k - 1] ** 2) if k else 1.0
    limits, seeds = torch.from_numpy(upper).expand(1000, 5), torch.arange(1000)
    for points, most in (("lattice", 0.07), ("sobol", 0.01)):
        r = mvn_cdf(
            limits, factor=torch.from_numpy(factor), seed=seeds, points=points, return_info=True
        )
        assert ((r.prob - truth).abs() > r.error).double().mean() < most
        assert r.prob.mean() == pytest.approx(truth, abs=1e-5)


# ---- tails --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, limit, about",
    [(99, -77.0, -6000), (99, -30.0, -960), (999, -5.5, -60), (999, -8.0, -103)],
)
def test_log_p_far_out(n, limit, about):
    load = np.full(n, math.sqrt(0.5))
    upper = np.full(n, limit)
    truth = log_oracles.one_factor(load, load, np.full(n, -INF), upper)
    assert truth == pytest.approx(about, rel=0.05)
    r = integrate(upper, equicorrelated(n), call=mvn_log_cdf, rel_tol=3e-2)
    assert abs(float(r.log_prob) - truth) <= float(r.log_error) <= 0.05


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 33, 99])
@pytest.mark.parametrize("limit", [3.0, 5.0, 7.6])
@pytest.mark.parametrize("rectangular", [False, True])
def test_three_digits_of_one_minus_p(n, limit, rectangular):
    """1 - p from 1e-2 to 1e-14; closed forms state the error of that side too."""
    load = np.linspace(0.5, 0.9, n)
    noise = np.sqrt(1 - load**2)
    upper = limit + np.linspace(0, 0.5, n)
    lower = -upper - 0.1 if rectangular else None
    truth = log_oracles.one_factor_complement(
        load, noise, np.full(n, -INF) if lower is None else lower, upper
    )
    # The larger what is missing, the more points its digits take.
    rel_tol = 1e-3 if limit > 4 and n < 99 or limit > 7 else 5e-3
    r = integrate(upper, product_correlation(load), lower, abs_tol=0.0, rel_tol=rel_tol)
    assert r.status in (Status.CONVERGED, Status.EXACT)
    assert float(r.error) <= rel_tol * float(r.complement) * (1 + 1e-9)
    assert abs(float(r.complement) - truth) <= float(r.error) + 1e-12 * truth


def test_digits_of_one_minus_p_of_independent_and_tied_variables():
    upper = np.array([7.5, 7.6, 7.7, 8.0, 9.0])
    r = integrate(upper, np.eye(5), abs_tol=0.0, rel_tol=1e-3)
    truth = float(np.sum(oracles.special.ndtr(-upper)))  # products of two are 1e-27
    # Besides rounding half of what a tenth of the tolerance let screening take.
    assert r.status == Status.EXACT and float(r.error) <= 5.1e-5 * truth
    assert abs(float(r.complement) - truth) <= float(r.error) + 1e-12 * truth
    scale = np.array([1.0, 2, -1, -0.5, 3])  # all multiples of one variable
    r = integrate(upper * np.abs(scale), np.outer(scale, scale), abs_tol=0.0, rel_tol=1e-3)
    truth = float(oracles.special.ndtr(-7.5) + oracles.special.ndtr(-7.7))
    assert r.status == Status.EXACT and float(r.error) <= 5.1e-5 * truth
    assert abs(float(r.complement) - truth) <= float(r.error) + 1e-12 * truth


def test_more_digits_than_samples_have_stay_with_the_closed_form():
    upper = np.array([2.5, 3.0, 3.2])
    for n in (2, 3):
        r = integrate(upper[:n], equicorrelated(n), abs_tol=0.0, rel_tol=1e-13)
        assert r.status == Status.EXACT and float(r.error) < 1e-9 * float(r.complement)
        r = integrate(-upper[:n], equicorrelated(n), abs_tol=0.0, rel_tol=1e-13)
        assert r.status == Status.EXACT and float(r.error) < 1e-6 * float(r.prob)


# ---- correlations of almost +-1 -----------------------------------------------------------------

NEAR = 0.9999999999


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("gap", [-3e-5, 0.0, 1e-5, 1e-3, 0.7])
@pytest.mark.parametrize("at", [-1.2, 0.0, 0.4])
def test_correlation_of_almost_one_two_and_three_variables(sign, gap, at):
    """Steps of width 1.4e-5; limits that nearly meet, where the answer is in that width."""
    lower = np.full(3, -INF)
    for n in (2, 3):
        loads = np.array([1.0, sign * NEAR, 0.5])[:n]
        upper = np.array([at, sign * at + gap, 0.8])[:n]
        truth = log_oracles.star(loads, lower[:n], upper)
        # A correlation is rounded by 1e-16, a slope is up to 1 / (2 pi 1.4e-5).
        assert_covered(integrate(upper, product_correlation(loads)), truth, 5e-12)
        box = np.array([at - 0.5, sign * at + gap - 0.6, -2.0])[:n]
        truth = log_oracles.star(loads, box, upper)
        assert_covered(integrate(upper, product_correlation(loads), box), truth, 2e-11)


@pytest.mark.parametrize("n", [4, 9, 33, 99])
@pytest.mark.parametrize("sign", [-1, 1])
def test_correlation_of_almost_one_inside_larger_problems(n, sign):
    rng = np.random.default_rng(n)
    loads = np.concatenate([[1.0, sign * NEAR, NEAR], rng.uniform(-0.6, 0.8, n - 3)])
    at = 0.6
    upper = np.concatenate([[at, sign * at + 2e-5, at + 1e-5], rng.uniform(1.0, 2.5, n - 3)])
    if sign < 0:
        upper[1] = 0.9  # a band; at 2e-5 nothing would be left
    truth = log_oracles.star(loads, np.full(n, -INF), upper)
    order = rng.permutation(n)
    cov = product_correlation(loads)[np.ix_(order, order)]
    for tol in (1e-3, 1e-4):
        assert_covered(integrate(upper[order], cov, abs_tol=tol), truth, 1e-9)


# ---- singular by construction -------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 60])
def test_zero_variance(n):
    """A step that is closed at the limit: positive and zero limits hold, negative ones fail."""
    load = np.linspace(0.4, 0.9, n)
    upper = np.linspace(0.3, 1.5, n)
    free = oracles.one_factor(load, np.sqrt(1 - load**2), np.full(n, -INF), upper)
    cov = np.zeros((n + 1, n + 1))
    cov[:n, :n] = product_correlation(load)
    for limit, holds in [(2.0, True), (1e-300, True), (0.0, True), (-0.0, True), (-1e-300, False)]:
        r = integrate(np.append(upper, limit), cov)
        if holds:
            assert_covered(r, free.prob, free.abs_err + 1e-12)
        else:
            assert r.prob == 0 and r.complement == 1 and r.status == Status.EXACT
        assert integrate([limit], [[0.0]]).prob == float(holds)  # alone
    low = np.append(np.full(n, -INF), 0.0)  # 0 <= 0 <= 0
    assert_covered(integrate(np.append(upper, 0.0), cov, low), free.prob, free.abs_err + 1e-12)
    low[-1] = 1e-300
    assert integrate(np.append(upper, 1.0), cov, low).prob == 0
    nothing_varies = integrate(np.zeros(n), np.zeros((n, n)))
    assert nothing_varies.prob == 1 and nothing_varies.complement == 0


@pytest.mark.parametrize("n", [2, 3, 4, 9, 31, 99, 300, 999])
def test_simplex_orthants(n):
    """X_i = Z_i - Z_0 <= 0 for all i: Z_0 is the largest of n + 1. p = 1 / (n + 1)."""
    cov = np.ones((n, n)) + np.eye(n)
    tol = 2e-4 if n > 100 else 5e-5
    assert_covered(integrate(np.zeros(n), cov, abs_tol=tol), 1 / (n + 1))
    r = integrate(np.zeros(n), cov, abs_tol=0.0, rel_tol=2e-2)
    assert abs(float(r.log_prob) + math.log(n + 1)) <= float(r.log_error)
    assert r.status in (Status.CONVERGED, Status.EXACT)


@pytest.mark.parametrize("n", [3, 4, 9, 17])
def test_simplex_with_its_last_variable(n):
    """sum X_i = 0: at zero limits nothing is left, though every n - 1 of them have 2^-(n-1) and less."""
    cov = np.full((n, n), -1 / (n - 1.0))
    np.fill_diagonal(cov, 1.0)
    # Variances that cancel are taken as zero within 1e-7: a corner of that size may be counted.
    assert_covered(integrate(np.zeros(n), cov), 0.0, 1e-7)
    values, vectors = np.linalg.eigh(cov)
    rows = vectors[:, 1:] * np.sqrt(values[1:])
    exact = {3: oracles.rank_two, 4: oracles.rank_three}.get(n)
    upper = np.full(n, 0.4)
    answer = oracles.simplex(upper) if n > 4 else exact(rows, np.full(n, -INF), upper)
    assert_covered(integrate(upper, cov), answer.prob, 3e-8)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 33])
def test_rectangles_as_antiparallel_variables(n):
    """l <= X <= u as (X, -X) <= (u, -l): a covariance of half rank with correlations of -1."""
    load = np.linspace(0.4, 0.9, n) * (-1) ** np.arange(n)
    upper = np.linspace(0.6, 2.0, n)
    lower = -np.linspace(0.3, 2.5, n)
    cov = product_correlation(load)
    both = np.block([[cov, -cov], [-cov, cov]])
    answer = oracles.one_factor(load, np.sqrt(1 - load**2), lower, upper)
    for tol in (1e-3, 1e-4):
        assert_covered(integrate(upper, cov, lower, abs_tol=tol), answer.prob)
        r = integrate(np.concatenate([upper, -lower]), both, abs_tol=tol)
        assert_covered(r, answer.prob, 3e-8)
    # Intervals that touch or are empty.
    for at in (upper[0], upper[0] + 0.1):
        low = lower.copy()
        low[0] = at
        r = integrate(np.concatenate([upper, -low]), both)
        assert abs(float(r.prob)) <= float(r.error) + 3e-8


@pytest.mark.parametrize("copies", [49])
@pytest.mark.parametrize("m, rho", [(1, 0.0), (3, 0.6), (6, 0.5), (9, -0.1)])
def test_every_variable_49_times(m, rho, copies):
    cov = np.full((m, m), rho)
    np.fill_diagonal(cov, 1.0)
    upper = np.linspace(0.2, 1.6, m)
    if rho >= 0:
        load = np.full(m, math.sqrt(rho))
        answer = oracles.one_factor(load, np.sqrt(1 - load**2), np.full(m, -INF), upper)
    else:
        answer = oracles.negative_factor(np.full(m, math.sqrt(-rho)), np.full(m, -INF), upper)
    rng = np.random.default_rng(m)
    which = rng.permutation(np.repeat(np.arange(m), copies))
    scale = rng.choice([1.0, 2.0, 0.37, 1e-3, 1e5], len(which))
    many = cov[np.ix_(which, which)] * np.outer(scale, scale)
    r = integrate(upper[which] * scale, many, abs_tol=1e-4)
    assert_covered(r, answer.prob, 3e-8)
    assert int(r.n_pivots) <= m


# ---- float32 Gram matrices ----------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 9, 31, 99])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("stored", [np.float32, np.float64])
def test_float32_gram_matrices(n, rank, stored):
    """Rank 2 and 3, computed in float32: eigenvalues of -1e-7 where there should be zeros.

    The answer is the singular one's. The matrix itself is known to 1e-7 an entry, so a limit to its
    square root, 3e-4, times a slope of at most .4 for each of the faces that matter, `rank`
    typically.
    """
    rng = np.random.default_rng([n, rank])
    rows = rng.normal(size=(n, rank)).astype(np.float32)
    upper = (np.linalg.norm(rows, axis=1) * rng.uniform(0.8, 2.0, n)).astype(np.float32)
    gram = rows @ rows.T
    least = np.linalg.eigvalsh(gram.astype(np.float64))[0] / gram.max()
    assert abs(least) < 1e-6 and (least < -2e-8 or n == 4)
    exact = oracles.rank_two if rank == 2 else oracles.rank_three
    truth = exact(rows.astype(np.float64), np.full(n, -INF), upper.astype(np.float64))
    r = integrate(upper.astype(stored), gram.astype(stored))
    assert r.status != Status.INDEFINITE
    assert abs(float(r.prob) - truth.prob) <= float(r.error) + rank * 0.4 * 3e-4
    assert float(r.error) <= 1.01e-4 or r.status == Status.MAX_POINTS
    assert float(r.prob) + float(r.complement) == pytest.approx(1, abs=1e-6)


def test_far_from_semidefinite_is_refused():
    cov = equicorrelated(6)
    cov[0, 1] = cov[1, 0] = -0.99
    with pytest.warns(RuntimeWarning, match="indefinite"):
        r = integrate(np.ones(6), cov)
    assert r.status == Status.INDEFINITE and math.isnan(float(r.prob))
