"""Variables with one common factor, and independent blocks of them: exact by quadrature."""

import math

import mpmath
import numpy as np
import oracles
import problems
import pytest
import torch

from mvnrob import Status, mvn_cdf, mvn_log_cdf

INF = math.inf


def product_form(load):
    cov = np.outer(load, load)
    np.fill_diagonal(cov, 1.0)
    return cov


def exact(upper, cov, lower=None, **options):
    t = [
        None if x is None else torch.from_numpy(np.asarray(x, dtype=float))
        for x in (upper, cov, lower)
    ]
    return mvn_cdf(t[0], t[1], lower=t[2], method="closed_form", return_info=True, **options)


def log_by_mpmath(load, upper, lower=None):
    """ln P and ln(1 - P) to 40 digits: quadrature in pieces between where the integrand bends."""
    with mpmath.workdps(40):
        load = [mpmath.mpf(float(x)) for x in load]
        rest = [mpmath.sqrt(1 - x * x) for x in load]
        low = [-mpmath.inf] * len(load) if lower is None else [mpmath.mpf(float(x)) for x in lower]

        def holds(y):
            p = mpmath.mpf(1)
            for a, s, v, u in zip(load, rest, low, upper, strict=True):
                p *= mpmath.ncdf((u - a * y) / s) - (
                    0 if v == -mpmath.inf else mpmath.ncdf((v - a * y) / s)
                )
            return p

        at = [float(u / a) for u, a in zip(upper, load, strict=True)]
        at += [float(v / a) for v, a in zip(low, load, strict=True) if v != -mpmath.inf]
        edges = sorted({*np.arange(-20, 21, 2.0), *[x for x in at if abs(x) < 20]})
        edges = [mpmath.mpf(x) for x in edges]
        p = mpmath.quad(lambda y: mpmath.npdf(y) * holds(y), edges)
        q = mpmath.quad(lambda y: mpmath.npdf(y) * (1 - holds(y)), edges)
        return float(mpmath.log(p)), float(mpmath.log(q))


@pytest.mark.parametrize(
    "load, upper, lower",
    [
        ([0.7, 0.7, 0.7, 0.7], [1.0, 0.5, 2, 0], None),
        ([0.9, -0.8, 0.3, 0.6], [1.0, 0.5, 2, 0], [-1, -2, -INF, -0.5]),
        ([0.7, 0.6, 0.8, 0.7], [-9.0, -8, -10, -7], None),
        ([0.7, 0.6, 0.8, 0.7], [7.5, 7, 8, 9], None),
        ([0.7, -0.6, 0.8, 0.7], [6.0, 7, 5, 6], [-6, -5, -7, -8]),
        ([0.999, 0.99, 0.9, 0.99], [0.3, 0.4, -0.2, 0.1], None),
        ([0.5, 0.6, 0.7, 0.8], [0.01, 0.02, 0.03, 0.01], [0.0, 0.01, -0.01, 0.005]),
    ],
)
def test_digits_of_either_side(load, upper, lower):
    r = exact(upper, product_form(np.array(load)), lower)
    log_p, log_q = log_by_mpmath(load, upper, lower)
    assert r.status == Status.EXACT and r.n_points == 0
    assert float(r.log_prob) == pytest.approx(log_p, rel=1e-11, abs=1e-15)
    assert float(r.complement) == pytest.approx(math.exp(log_q), rel=1e-11)
    assert abs(float(r.prob) - math.exp(log_p)) <= float(r.error) <= 1e-11
    assert float(r.log_error) <= 1e-10


def test_stated_errors_hold():
    """All one-factor problems with known answers, whatever they are called."""
    seen = 0
    for problem in problems.known_answers(1):
        if problem.family not in ("one_factor", "skewed", "orthant", "equicorrelated"):
            continue
        if problem.n < 4 or problem.n > 200:
            continue
        mean = 0 if problem.mean is None else problem.mean
        lower = None if problem.lower is None else problem.lower - mean
        r = exact(problem.upper - mean, problem.cov, lower)
        assert r.status == Status.EXACT, problem.name
        wrong = abs(float(r.prob) - problem.prob)
        assert wrong <= float(r.error) + problem.abs_err_of_answer, problem.name
        assert float(r.error) <= 1e-10
        seen += 1
    assert seen >= 80


@pytest.mark.parametrize("n, limit, log_truth", [(99, -10.0, None), (999, -3.0, None)])
def test_far_tails(n, limit, log_truth):
    """Against the density's own quadrature in logarithms."""
    r = exact(np.full(n, limit), product_form(np.full(n, math.sqrt(0.5))))
    from scipy import special

    y, w = oracles.gauss_legendre(-40, 40, 4000)
    g = n * special.log_ndtr((limit - y * math.sqrt(0.5)) / math.sqrt(0.5)) - y * y / 2
    truth = special.logsumexp(g, b=w) - 0.5 * math.log(2 * math.pi)
    assert float(r.log_prob) == pytest.approx(truth, rel=1e-12)
    assert abs(float(r.log_prob) - truth) <= float(r.log_error) + 1e-12 * abs(truth)


def test_blocks_multiply():
    """Singles, pairs and one-factor blocks in any order; complements do not cancel."""
    load = np.array([0.5, 0.8, -0.6, 0.7])
    parts = [product_form(load), np.array([[1, -0.4], [-0.4, 1]]), np.eye(2), np.ones((1, 1))]
    n = sum(len(p) for p in parts)
    cov, at = np.zeros((n, n)), 0
    for p in parts:
        cov[at : at + len(p), at : at + len(p)] = p
        at += len(p)
    order = np.random.default_rng(0).permutation(n)
    for shift in (0.0, 7.0):
        upper = np.linspace(0.2, 1.2, n) + shift
        r = exact(upper[order], cov[np.ix_(order, order)])
        each, at = [], 0
        for p in parts:
            some = slice(at, at + len(p))
            each.append(exact(upper[some], p))
            at += len(p)
        prob = math.prod(float(e.prob) for e in each)
        log = sum(float(e.log_prob) for e in each)
        assert float(r.prob) == pytest.approx(prob, rel=1e-12)
        assert float(r.complement) == pytest.approx(-math.expm1(log), rel=1e-11)


def test_what_is_not_of_this_form():
    cov = product_form(np.array([0.5, 0.8, -0.6, 0.7]))
    upper = np.ones(4)
    assert exact(upper, cov).status == Status.EXACT
    off = cov.copy()
    off[0, 3] = off[3, 0] = cov[0, 3] + 1e-12
    negative = np.full((4, 4), -0.2) + 1.2 * np.eye(4)
    heywood = product_form(np.array([1.2, 0.3, 0.4, 0.5]))
    triple = np.eye(5)
    triple[0, 1] = triple[1, 0] = 0.5
    triple[1, 2] = triple[2, 1] = 0.4
    for other in (off, negative, heywood, triple):
        assert np.linalg.eigvalsh(other)[0] > 0
        with pytest.raises(ValueError, match="not independent blocks of one factor"):
            exact(np.ones(len(other)), other)
        t = torch.from_numpy(np.ones(len(other))), torch.from_numpy(other)
        assert mvn_cdf(*t, return_info=True).n_points > 0


def test_sov_samples():
    cov = torch.from_numpy(product_form(np.full(6, 0.7)))
    upper = torch.ones(6).double()
    auto = mvn_cdf(upper, cov, return_info=True)
    sampled = mvn_cdf(upper, cov, method="sov", abs_tol=1e-5, return_info=True)
    assert auto.status == Status.EXACT and sampled.n_points > 0
    assert (auto.prob - sampled.prob).abs() <= sampled.error


def test_a_variable_without_rest():
    """X_0 = Y itself cuts the integral off."""
    load = np.array([1.0, 0.6, -0.7, 0.5])
    upper = np.array([0.3, 1.0, 0.5, 0.8])
    answer = oracles.one_factor(load[1:], np.sqrt(1 - load[1:] ** 2), np.full(3, -INF), upper[1:])
    below = exact(upper, product_form(load))
    above = exact(
        np.array([INF, *upper[1:]]), product_form(load), np.array([upper[0], -INF, -INF, -INF])
    )
    assert float(below.prob + above.prob) == pytest.approx(answer.prob, abs=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factor_and_scales(dtype):
    load = torch.tensor([0.5, 0.8, -0.6, 0.7], dtype=dtype)
    factor = torch.cat([load[:, None], torch.diag((1 - load**2).sqrt())], 1)
    upper = torch.tensor([0.2, 0.5, 1, 0.4], dtype=dtype)
    scale = torch.tensor([2.0, 0.1, 3, 1], dtype=dtype)
    plain = mvn_cdf(upper, factor @ factor.mT, return_info=True)
    given = mvn_cdf(upper * scale, factor=factor * scale[:, None], return_info=True)
    assert plain.status == given.status == Status.EXACT
    assert (plain.prob - given.prob).abs() <= (1e-12 if dtype == torch.float64 else 1e-6)


def test_log_of_screened_rows():
    """Screening comes first; relative tolerances undo it."""
    load = np.full(40, 0.7)
    upper = np.concatenate([np.full(20, 0.5), np.full(20, 5.0)])
    t = torch.from_numpy(upper), torch.from_numpy(product_form(load))
    rough = mvn_cdf(*t, abs_tol=1e-3, return_info=True)
    fine = mvn_log_cdf(*t, rel_tol=1e-9, return_info=True)
    assert rough.status == fine.status == Status.EXACT
    assert rough.n_active < 40 == fine.n_active
    assert (rough.prob - fine.prob).abs() <= rough.error
    assert float(fine.log_error) <= 1e-10
