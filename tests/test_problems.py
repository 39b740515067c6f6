"""The oracles against methods that share nothing with them, on sizes where those are sharp."""

import math

import log_oracles
import mpmath
import numpy as np
import oracles
import problems
import pytest
from scipy import integrate, interpolate, special, stats

INF = np.inf


def rng(*key):
    return np.random.default_rng([20, *key])


def nested_quad(cov, lower, upper):
    """n = 2 or 3 by SciPy's adaptive quadrature over the density of all but the last variable."""
    n = len(cov)
    head = cov[:-1, :-1]
    weight = np.linalg.solve(head, cov[:-1, -1])
    sd = math.sqrt(cov[-1, -1] - cov[-1, :-1] @ weight)
    inverse = np.linalg.inv(head)
    norm = 1 / math.sqrt((2 * math.pi) ** (n - 1) * np.linalg.det(head))

    def integrand(*x):
        x = np.array(x)
        m = weight @ x
        last = special.ndtr((upper[-1] - m) / sd) - special.ndtr((lower[-1] - m) / sd)
        return norm * math.exp(-0.5 * x @ inverse @ x) * last

    reach = 8.5 * np.sqrt(np.diag(cov))
    ranges = [
        (max(a, -r), min(b, r)) for a, b, r in zip(lower[:-1], upper[:-1], reach[:-1], strict=True)
    ]
    options = {"epsabs": 1e-11, "epsrel": 1e-11, "limit": 200}
    return integrate.nquad(integrand, ranges, opts=options)[0]


def filled(correlations):
    out = np.array(correlations)
    np.fill_diagonal(out, 1.0)
    return out


def cases_of_three():
    """name, oracle's answer, covariance, lower, upper: each oracle at n = 2 or 3."""
    r = rng(1)
    free = np.full(3, -INF)
    hi, lo = np.array([0.8, 1.1, -0.2]), np.array([-1.0, -0.3, -1.5])
    load = np.array([0.8, -0.5, 0.6])
    noise = np.sqrt(1 - load**2)
    product = filled(np.outer(load, load))
    yield "one_factor", oracles.one_factor(load, noise, free, hi), product, free, hi
    yield "one_factor box", oracles.one_factor(load, noise, lo, hi), product, lo, hi
    against = filled(-np.outer(load, load))
    yield "negative", oracles.negative_factor(load, free, hi), against, free, hi
    yield "negative box", oracles.negative_factor(load, lo, hi), against, lo, hi
    two = r.normal(size=(3, 2)) * 0.5
    rest = np.sqrt(1 - (two**2).sum(1))
    yield "two_factor", oracles.two_factor(two, rest, lo, hi), filled(two @ two.T), lo, hi
    top, within, group = np.array([0.7, 0.6, 0.5]), np.array([0.5, 0.6, 0.3]), np.array([0, 0, 1])
    tree = filled(np.outer(top, top) + (group[:, None] == group) * np.outer(within, within))
    left = np.sqrt(1 - top**2 - within**2)
    yield "hierarchy", oracles.hierarchy(top, group, within, left, lo, hi), tree, lo, hi
    chain = np.array([[1, 0.7, -0.28], [0.7, 1, -0.4], [-0.28, -0.4, 1]])
    yield "markov", oracles.markov(np.array([0.7, -0.4]), lo, hi), chain, lo, hi
    rows = r.normal(size=(3, 3))
    yield "rank_three", oracles.rank_three(rows, free, hi), rows @ rows.T, free, hi
    yield "rank_three box", oracles.rank_three(rows, lo, hi), rows @ rows.T, lo, hi
    flat, two_hi = r.normal(size=(2, 2)), np.array([0.4, -0.7])
    two_free = np.full(2, -INF)
    yield "rank_two", oracles.rank_two(flat, two_free, two_hi), flat @ flat.T, two_free, two_hi
    yield "nested", oracles.nested(product, lo, hi), product, lo, hi


@pytest.mark.parametrize("case", list(cases_of_three()), ids=lambda c: c[0])
def test_oracle_against_adaptive_quadrature(case):
    _, answer, cov, lower, upper = case
    # nquad is asked for 1e-11 per level.
    assert answer.prob == pytest.approx(nested_quad(cov, lower, upper), abs=1e-9)
    assert answer.prob + answer.complement == pytest.approx(1, abs=1e-10)
    assert answer.abs_err <= 1e-9


def test_bivariate_against_mpmath():
    """Sheppard's integral over the correlation, in 30 digits."""
    with mpmath.workdps(30):
        for h, k, rho in [(0.3, -0.8, 0.6), (-1.2, 0.4, -0.95), (2.5, 2.4, 0.999)]:
            tail = mpmath.quad(
                lambda t, h=h, k=k: mpmath.exp(
                    -(h * h + k * k - 2 * h * k * mpmath.sin(t)) / (2 * mpmath.cos(t) ** 2)
                ),
                mpmath.linspace(0, mpmath.asin(rho), 20),
            ) / (2 * mpmath.pi)
            want = float(mpmath.ncdf(h) * mpmath.ncdf(k) + tail)
            cov = np.array([[1, rho], [rho, 1]])
            got = oracles.nested(cov, np.full(2, -INF), np.array([h, k]))
            assert got.prob == pytest.approx(want, abs=1e-9)


def test_orthants():
    """Correlation 1/2: 1 / (n + 1); three variables: 1/8 + sum asin / (4 pi)."""
    for n in (2, 5, 33, 999):
        load = np.full(n, math.sqrt(0.5))
        answer = oracles.one_factor(load, load, np.full(n, -INF), np.zeros(n))
        assert answer.prob == pytest.approx(1 / (n + 1), abs=1e-11)
    rows = rng(2).normal(size=(3, 3))
    sd = np.linalg.norm(rows, axis=1)
    corr = rows @ rows.T / sd[:, None] / sd
    want = 1 / 8 + np.arcsin(corr[np.triu_indices(3, 1)]).sum() / (4 * math.pi)
    assert oracles.rank_three(rows, np.full(3, -INF), np.zeros(3)).prob == pytest.approx(
        want, 1e-10
    )


@pytest.mark.parametrize("n", [8, 12, 31])
def test_simplex_against_nair(n):
    """P(max Z_i - mean Z <= x) by Nair's (1948) recursion in n, each step one integral.

    F_m(x) = m / sqrt(2 pi) sqrt(m / (m - 1)) int_0^x exp(-m t^2 / (2 (m - 1))) F_{m-1}(m t / (m-1)).
    """
    x = np.linspace(0, 9, 12001)
    f = np.ones_like(x)
    for m in range(2, n + 1):
        ratio = m / (m - 1)
        inner = interpolate.CubicSpline(x, f)(np.minimum(ratio * x, x[-1]))
        g = m / math.sqrt(2 * math.pi) * math.sqrt(ratio) * np.exp(-ratio * x**2 / 2) * inner
        f = np.concatenate([[0], integrate.cumulative_simpson(g, x=x)])
    for at in (2000, 2800, 4000):  # x = 1.5, 2.1, 3
        upper = np.full(n, x[at] * math.sqrt(n / (n - 1)))
        # The recursion's own error, of order 4 in the step of 7.5e-4: 1.2e-9 at n = 31.
        assert oracles.simplex(upper).prob == pytest.approx(f[at], abs=2e-9)


def test_transfer_and_factor_agree_on_a_shared_special_case():
    """n = 40, no correlation: every oracle must give the same product."""
    n, r = 40, rng(3)
    hi, lo = r.uniform(1.5, 3, n), r.uniform(-4, -2, n)
    want = oracles.independent(lo, hi).prob
    zero, one = np.zeros(n), np.ones(n)
    assert oracles.one_factor(zero, one, lo, hi).prob == pytest.approx(want, abs=1e-10)
    assert oracles.markov(np.zeros(n - 1), lo, hi).prob == pytest.approx(want, abs=1e-10)
    assert oracles.two_factor(np.zeros((n, 2)), one, lo, hi).prob == pytest.approx(want, abs=1e-10)
    assert oracles.negative_factor(zero, lo, hi).prob == pytest.approx(want, abs=1e-10)


def test_log_oracles_agree_with_the_others_where_both_are_sharp():
    r = rng(5)
    for n in (3, 9, 40):
        load = r.uniform(0.3, 0.9, n)
        noise = np.sqrt(1 - load**2)
        for lower in (np.full(n, -INF), r.uniform(-2, -1, n)):
            upper = r.uniform(0.5, 2.5, n)
            want = oracles.one_factor(load, noise, lower, upper)
            got = log_oracles.one_factor(load, noise, lower, upper)
            assert math.exp(got) == pytest.approx(want.prob, abs=2 * want.abs_err)
            missing = log_oracles.one_factor_complement(load, noise, lower, upper)
            assert missing == pytest.approx(want.complement, abs=2 * want.abs_err)
        rho = r.uniform(-0.8, 0.9, n - 1)
        want = oracles.markov(rho, np.full(n, -INF), upper)
        got = log_oracles.markov(rho, np.full(n, -INF), upper)
        assert math.exp(got) == pytest.approx(want.prob, abs=2 * want.abs_err + 1e-10)
    load = np.array([1.0, -0.9, 0.95])
    cov = filled(np.outer(load, load))
    for lower in (np.full(3, -INF), np.array([-1.0, -0.4, -2.0])):
        upper = np.array([0.8, 0.7, 0.3])
        want = oracles.nested(cov, lower, upper)
        assert log_oracles.star(load, lower, upper) == pytest.approx(want.prob, abs=1e-9)


def test_log_oracles_against_mpmath_in_the_tail():
    load, noise = np.array([0.6, 0.8, -0.3]), np.array([0.8, 0.6, math.sqrt(0.91)])
    with mpmath.workdps(30):
        for upper in ([-9.0, -11.0, -10.0], [-40.0, -41.0, -45.0]):

            def inside(z, upper=upper):
                parts = [
                    mpmath.ncdf((mpmath.mpf(u) - mpmath.mpf(a) * z) / mpmath.mpf(s))
                    for a, s, u in zip(load, noise, upper, strict=True)
                ]
                return mpmath.npdf(z) * parts[0] * parts[1] * parts[2]

            want = mpmath.log(mpmath.quad(inside, mpmath.linspace(-60, 10, 71)))
            got = log_oracles.one_factor(load, noise, np.full(3, -INF), np.array(upper))
            assert got == pytest.approx(float(want), abs=1e-8)
        # 1 - P of two variables by inclusion and exclusion, both beyond 7.
        both = mpmath.quad(
            lambda z: mpmath.npdf(z) * mpmath.ncdf((0.6 * z - 7) / 0.8) * mpmath.ncdf(
                (0.8 * z - 7.5) / 0.6
            ),
            mpmath.linspace(-10, 20, 61),
        )  # fmt: skip
        want = mpmath.ncdf(-7) + mpmath.ncdf(-7.5) - both
    got = log_oracles.one_factor_complement(
        load[:2], noise[:2], np.full(2, -INF), np.array([7.0, 7.5])
    )
    assert got == pytest.approx(float(want), rel=1e-11)


def test_there_are_enough_problems():
    every = problems.known_answers(0)
    assert len(every) >= 500
    assert len({p.name for p in every}) == len(every)
    sizes = {p.n for p in every}
    assert {1, 2, 3, 9, 31, 33, 64, 65, 99, 999} <= sizes
    assert sum(p.n >= 500 for p in every) >= 40
    assert sum(p.singular for p in every) >= 100
    assert sum(p.lower is not None for p in every) >= 60
    assert sum(p.mean is not None for p in every) >= 60
    for low, high in [(0, 0.01), (0.01, 0.3), (0.3, 0.9), (0.9, 0.99), (0.99, 0.9999)]:
        assert sum(low <= p.prob < high for p in every) >= 30
    for p in every:
        assert p.upper.dtype == p.cov.dtype == np.float64
        assert p.abs_err_of_answer <= 1e-7
        assert p.prob + p.complement == pytest.approx(1, abs=1e-9)
        assert np.array_equal(p.cov, p.cov.T)


def test_every_problem_against_monte_carlo():
    """Each stored problem (its cov, limits, mean, order, units), n <= 33, by counting draws.

    The draws come from the eigenvectors of cov. Over all problems the squared z-scores follow a
    chi-square law; one wrong answer by .01 would add about 50 at these 20,000 draws.
    """
    r, draws, scores = rng(4), 20_000, []
    for p in problems.known_answers(0):
        if p.n > 33 or p.prob * p.complement < 1e-3:
            continue
        values, vectors = np.linalg.eigh(p.cov)
        keep = values > 1e-12 * values.max()
        x = r.normal(size=(draws, keep.sum())) @ (vectors[:, keep] * np.sqrt(values[keep])).T
        if p.mean is not None:
            x += p.mean
        # Tied and constant variables are rebuilt to rounding only.
        slack = 1e-7 * np.sqrt(values.max())
        inside = (x <= p.upper + slack).all(1)
        if p.lower is not None:
            inside &= (x >= p.lower - slack).all(1)
        z = (inside.mean() - p.prob) / math.sqrt(p.prob * p.complement / draws)
        assert abs(z) < 5, f"{p.name}: {inside.mean()} against {p.prob}"
        scores.append(z)
    assert len(scores) >= 200
    assert stats.chi2.sf(np.sum(np.square(scores)), len(scores)) > 1e-3
