"""Variables with one common factor, and independent blocks of them: exact by quadrature."""

import math
from itertools import chain

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
    families = problems.one_factor, problems.skewed, problems.orthant, problems.equicorrelated
    for problem in chain.from_iterable(problems.of_family(family, 1) for family in families):
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
    chain = np.eye(5)
    for i, corr in enumerate((0.5, 0.4, 0.3)):
        chain[i, i + 1] = chain[i + 1, i] = corr
    for other in (off, negative, heywood, chain):
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


def test_duplicates_cost_and_answer_as_one():
    """49 copies of every variable, a third of them negative, half of them in other units."""
    rng = np.random.default_rng(3)
    n, copies = 9, 49
    rows = rng.normal(size=(n, n + 2))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    upper, lower = rng.uniform(0.5, 2, n), -rng.uniform(0.5, 2, n)
    index = np.tile(np.arange(n), copies)
    scale, sign = np.ones(n * copies), np.ones(n * copies)
    scale[n::2], sign[n::3] = 2.0, -1.0
    # The first ones are the tightest.
    looser = 1 + rng.uniform(0, 1, n * copies) * (np.arange(n * copies) >= n)
    unit, looser = sign * scale, scale * looser
    high = np.where(sign > 0, upper[index], -lower[index]) * looser
    low = np.where(sign > 0, lower[index], -upper[index]) * looser
    limits = [torch.from_numpy(x) for x in (upper, lower, high, low)]
    once, many = torch.from_numpy(rows), torch.from_numpy(rows[index] * unit[:, None])
    cov = torch.from_numpy((rows @ rows.T)[np.ix_(index, index)] * np.outer(unit, unit))
    for one, all_of_them in (
        ({"cov": cov[:n, :n]}, {"cov": cov}),
        ({"factor": once}, {"factor": many}),
    ):
        first = mvn_cdf(limits[0], lower=limits[1], **one, return_info=True)
        r = mvn_cdf(limits[2], lower=limits[3], **all_of_them, return_info=True)
        assert r.n_points == first.n_points > 0 and r.n_active == n
        assert float(r.prob) == pytest.approx(float(first.prob), abs=1e-9)
        assert float(r.error) == pytest.approx(float(first.error), abs=1e-7)


def test_antiparallel_limits_that_contain_nothing():
    cov = torch.tensor([[1.0, -1, 0.3], [-1, 1, -0.3], [0.3, -0.3, 1]], dtype=torch.float64)
    r = mvn_cdf(torch.tensor([-0.5, 0.2, 1.0], dtype=torch.float64), cov, return_info=True)
    assert r.prob == 0 and r.complement == 1 and r.status == Status.EXACT


def test_multiples_that_contradict_each_other_are_indefinite():
    cov = torch.eye(5, dtype=torch.float64)
    cov[0, 1] = cov[1, 0] = 1.0
    cov[0, 2] = cov[2, 0] = 0.5
    with pytest.warns(RuntimeWarning, match="indefinite"):
        r = mvn_cdf(torch.ones(5).double(), cov, return_info=True)
    assert r.status == Status.INDEFINITE


@pytest.mark.parametrize("n", [4, 6])
def test_gradients(n):
    """The slopes of an exact row: finite differences of its own answer, which has 14 digits."""
    load = torch.linspace(0.3, 0.8, n, dtype=torch.float64)
    upper = torch.linspace(-0.2, 1.2, n, dtype=torch.float64)

    def p(upper, load):
        factor = torch.cat([load[:, None], torch.diag_embed((1 - load**2).sqrt())], 1)
        return mvn_cdf(upper, factor @ factor.mT)

    inputs = upper.requires_grad_(), load.requires_grad_()
    assert torch.autograd.gradcheck(p, inputs, eps=1e-5, atol=1e-7, rtol=1e-6)


def test_narrow_intervals_far_out():
    """The rounding of limits counts there; ln P is known where P itself is zero."""
    load = np.array([0.3, 0.5, 0.6, 0.8])
    for half in (1e-4, 1e-6):
        centre = np.array([2.0, 1.5, 2.5, 1.0])
        # Scaled, so that limits are rounded once more.
        sd = np.array([0.7, 130.0, 3.3e-3, 1.9])
        upper, lower = (centre + half) * sd, (centre - half) * sd
        r = exact(upper, product_form(load) * np.outer(sd, sd), lower)
        log_p = log_by_density(load, centre, half)
        assert abs(float(r.log_prob) - log_p) <= float(r.log_error) + 1e-12
        assert float(r.log_error) <= 1e-2
    n = 100
    centre = np.linspace(1.0, 3.0, n)
    load = np.full(n, 0.5)
    r = exact(centre + 1e-4, product_form(load), centre - 1e-4)
    log_p = log_by_density(load, centre, 1e-4)
    assert r.prob == 0 and math.isfinite(float(r.log_prob))
    assert abs(float(r.log_prob) - log_p) <= float(r.log_error) + 1e-12 < 1e-2


def log_by_density(load, centre, half):
    """ln P of short intervals: their lengths times the density at their centres, to second order."""
    cov = product_form(load)
    log_det = np.linalg.slogdet(cov)[1]
    n = len(load)
    inverse = np.linalg.inv(cov)
    slope = inverse @ centre
    log_density = -0.5 * (centre @ slope + log_det + n * math.log(2 * math.pi))
    bend = half**2 / 6 * (slope @ slope - np.trace(inverse))
    return log_density + n * math.log(2 * half) + math.log1p(bend)
