"""log p in both tails: tilted samples, closed forms whose p underflows, samples of the union."""

import math

import log_oracles
import numpy as np
import pytest
import torch
from honesty import p_value
from scipy import special

from mvnrob import Status, mvn_cdf, mvn_log_cdf
from mvnrob.distributions import MultivariateNormal

TENSOR = torch.from_numpy


def equicorrelated_log(upper, rho, lower=None):
    """log P, to 1e-9."""
    load = np.full(len(upper), math.sqrt(rho))
    low = np.full(len(upper), -math.inf) if lower is None else lower
    return log_oracles.one_factor(load, np.sqrt(1 - load * load), low, upper)


def equicorrelated(n, rho=0.5):
    """One pair is a little off: what is exactly of one factor is not sampled."""
    cov = np.full((n, n), rho)
    if n > 3:
        cov[0, 1] = cov[1, 0] = rho * (1 - 1e-11)
    np.fill_diagonal(cov, 1.0)
    return cov


def integrate(upper, cov, lower=None, **options):
    lower = None if lower is None else TENSOR(lower)
    return mvn_log_cdf(TENSOR(upper), TENSOR(cov), lower=lower, return_info=True, **options)


@pytest.mark.parametrize(
    "n, near", [(2, -3), (3, -8), (4, -1.5), (5, -40), (9, -3), (20, -6), (60, -3)]
)
@pytest.mark.parametrize("rectangular", [False, True])
def test_small_probabilities(n, near, rectangular):
    rng = np.random.default_rng(n)
    upper = near + rng.uniform(0, 0.5, n)
    lower = upper - rng.uniform(0.5, 2, n) if rectangular else None
    r = integrate(upper, equicorrelated(n), lower, rel_tol=1e-2)
    truth = equicorrelated_log(upper, 0.5, lower)
    assert r.status in (Status.CONVERGED, Status.EXACT) and float(r.log_error) <= 1.02e-2
    assert abs(float(r.log_prob) - truth) <= float(r.log_error) + 1e-8
    assert float(r.prob) == pytest.approx(math.exp(float(r.log_prob)), rel=1e-9)


@pytest.mark.parametrize("n, load, near", [(8, 0.999, -3.0), (20, 0.99, -3.0), (20, 0.99, -12.0)])
@pytest.mark.parametrize("rectangular", [False, True])
def test_tails_of_variables_in_opposite_directions(n, load, near, rectangular):
    """Where one limit is kept the others hardly are: the saddle point is far, and no iteration comes to it."""
    rng = np.random.default_rng(5)
    upper, lower, cov, truth = [], [], [], []
    for _ in range(24):
        loads = rng.choice([-load, load], n) * rng.uniform(0.95, 1, n)
        high = near * rng.uniform(0.6, 1.4, n)
        low = high - rng.uniform(0.5, 3, n) if rectangular else np.full(n, -np.inf)
        truth.append(log_oracles.one_factor(loads, np.sqrt(1 - loads * loads), low, high))
        matrix = np.outer(loads, loads)
        matrix[0, 1] = matrix[1, 0] = matrix[0, 1] * (1 - 1e-11)  # not exactly of one factor
        np.fill_diagonal(matrix, 1.0)
        upper.append(high)
        lower.append(low)
        cov.append(matrix)
    upper, lower, cov = np.stack(upper), np.stack(lower), np.stack(cov)
    r = integrate(upper, cov, lower if rectangular else None, rel_tol=1e-2, max_points=200_000)
    assert (r.status == Status.CONVERGED).all()
    misses = (r.log_prob - TENSOR(np.array(truth))).abs() > r.log_error + 1e-6
    assert int(misses.sum()) <= 1


@pytest.mark.parametrize("n, near, about", [(99, -80.0, -6462), (300, -4.0, -40)])
def test_far_tails(n, near, about):
    upper = np.full(n, near)
    r = integrate(upper, equicorrelated(n), rel_tol=3e-2)
    truth = equicorrelated_log(upper, 0.5)
    assert truth == pytest.approx(about, rel=0.2)
    assert abs(float(r.log_prob) - truth) <= float(r.log_error) <= 0.05


def test_three_digits_of_the_logarithm_near_one():
    upper = np.full(8, 6.5)
    r = integrate(upper, equicorrelated(8))
    assert float(r.log_prob) == pytest.approx(equicorrelated_log(upper, 0.5), rel=2e-3)


def test_error_covers_the_truth():
    misses = rows = 0
    for n in (4, 9, 25):
        rng = np.random.default_rng(n)
        upper = rng.uniform(-8, -0.5, 40)[:, None] + rng.uniform(0, 1, (40, n))
        truth = [equicorrelated_log(u, 0.5) for u in upper]
        for seed in range(2):
            r = integrate(upper, equicorrelated(n), rel_tol=2e-2, seed=torch.arange(40) + 99 * seed)
            misses += int((np.abs(r.log_prob.numpy() - truth) > r.log_error.numpy()).sum())
            rows += 40
    assert p_value(misses, rows) > 0.01, (misses, rows)


def parallel(count):
    """Variables 1e-5 apart that all but the limits of two leave alone: an interval of one normal. And
    one more for its logarithm; the factor has two columns."""
    angle = 0.7 + 1e-5 * torch.tensor([0.0, 1.0, -0.7, 0.4, 0.8], dtype=torch.float64)
    factor = torch.stack([angle.cos(), angle.sin()], 1)
    upper = torch.tensor([1.44, 1.8, 2.05, 2.97, 2.3], dtype=torch.float64)
    lower = torch.full((5,), -math.inf, dtype=torch.float64)
    lower[1] = 1.378
    return (
        upper.expand(count, 5),
        lower.expand(count, 5),
        factor,
        math.log(special.ndtr(1.44) - special.ndtr(1.378)),
    )


@pytest.mark.parametrize("noise", [0.0, 1e-10])
def test_error_holds_where_tilted_samples_jump(noise):
    """All shifts of the lattice count alike then: their spread is nothing, the error is not."""
    upper, lower, factor, truth = parallel(300)
    cov = factor @ factor.mT + noise * torch.eye(5).double()
    result = mvn_log_cdf(upper, cov, lower=lower, seed=torch.arange(300), return_info=True)
    misses = (result.log_prob - truth).abs() > result.log_error + 1e-9
    assert (result.status == Status.CONVERGED).all()
    assert int(misses.sum()) <= 3


def test_slopes_of_few_directions_are_not_the_jumping_samples():
    upper, lower, factor, log_prob = parallel(20)
    limits = [upper.clone().requires_grad_(), lower.clone().requires_grad_()]
    value = mvn_log_cdf(limits[0], factor=factor, lower=limits[1], seed=torch.arange(20))
    for slope, at, limit, sign in zip(
        torch.autograd.grad(value.sum(), limits), (0, 1), (1.44, 1.378), (1, -1), strict=True
    ):
        want = torch.zeros(5, dtype=torch.float64)
        want[at] = sign * math.exp(-0.5 * limit**2 - log_prob) / math.sqrt(2 * math.pi)
        assert (slope - want).abs().max() < 2e-3 * want.abs().max()


def test_closed_forms_that_underflow():
    far = np.array([-30.0, -50.0, 2.0, -45.0])
    r = integrate(far, np.eye(4))
    assert r.status == Status.EXACT and float(r.prob) == 0
    assert float(r.log_prob) == pytest.approx(special.log_ndtr(far).sum(), rel=1e-14)
    one = integrate(far[:1], np.eye(1))
    assert float(one.log_prob) == pytest.approx(special.log_ndtr(-30.0), rel=1e-14)
    # multiples of one variable: the interval [-41, -40]
    same = integrate(np.array([-40.0, -30.0, 41.0, 50.0]), np.outer(s := [1, 1, -1, -1], s) * 1.0)
    between = special.log_ndtr(-40) + np.log1p(
        -np.exp(special.log_ndtr(-41) - special.log_ndtr(-40))
    )
    assert float(same.log_prob) == pytest.approx(between, rel=1e-12)


def test_impossible_and_certain():
    cov = equicorrelated(3)
    assert float(integrate(np.array([1.0, -np.inf, 0]), cov).log_prob) == -math.inf
    assert float(integrate(np.full(3, np.inf), cov).log_prob) == 0
    assert float(integrate(np.full(3, np.nan), cov).status) == Status.NAN_INPUT


def test_duplicates_count_once():
    upper, cov = np.full(6, -5.0), equicorrelated(6)
    many = np.tile(np.arange(6), 7)
    once, often = (
        integrate(upper[i], cov[np.ix_(i, i)], rel_tol=1e-2) for i in (np.arange(6), many)
    )
    apart = abs(float(once.log_prob - often.log_prob))
    assert apart <= float(once.log_error + often.log_error)


def test_plain_call_tells_its_logarithm():
    """Without a relative tolerance nothing is tilted, and log_error says what is known."""
    cov = TENSOR(equicorrelated(9))
    r = mvn_cdf(torch.full((9,), -4.0).double(), cov, return_info=True)
    assert r.log_error == math.inf or float(r.log_error) > 0.1
    r = mvn_cdf(torch.full((9,), 1.0).double(), cov, return_info=True)
    assert float(r.log_prob) == pytest.approx(math.log(float(r.prob)), abs=1e-12)
    assert float(r.error / r.prob) <= float(r.log_error) <= 1.01 * float(r.error / r.prob)


def test_row_depends_on_itself_alone():
    upper = np.linspace(-9, -1, 5)[:, None] + np.zeros(7)
    whole = integrate(upper, equicorrelated(7), rel_tol=1e-2, seed=torch.arange(5))
    alone = integrate(upper[3], equicorrelated(7), rel_tol=1e-2, seed=3)
    assert float(alone.log_prob) == float(whole.log_prob[3])


def test_gradient():
    cov = TENSOR(equicorrelated(4))
    upper = torch.tensor([-1.0, 0.5, 1.0, 2.0]).double().requires_grad_()
    mvn_log_cdf(upper, cov, rel_tol=1e-4).backward()
    p = mvn_cdf(upper.detach().requires_grad_(), cov, abs_tol=1e-6)
    (slope,) = torch.autograd.grad(mvn_cdf(upper, cov, abs_tol=1e-6), upper)
    torch.testing.assert_close(upper.grad, slope / p.detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("limit", [-45.0, -8.0, 0.5, 5.0])
@pytest.mark.parametrize("n", [3, 7])
def test_gradient_in_the_tails(limit, n):
    """Equicorrelated: against the derivatives of a one-dimensional integral, in logarithms."""
    rho = 0.5
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(400))
    upper = (limit + torch.linspace(-0.3, 0.3, n).double()).requires_grad_()
    # The common factor given the limits lies about limit sqrt(rho) n / (n + 1) / (1 - rho) + ...;
    # 20 standard deviations round where the integrand is largest hold all of it.
    grid = torch.linspace(-100, 20, 24001).double()

    def log_integrand(t):
        z = (upper - rho**0.5 * t[:, None]) / (1 - rho) ** 0.5
        return torch.special.log_ndtr(z).sum(1) - 0.5 * t * t - 0.5 * math.log(2 * math.pi)

    centre = grid[log_integrand(grid).argmax()].detach()
    nodes = centre + 12 * x
    log_p = torch.logsumexp(log_integrand(nodes) + torch.log(12 * w), 0)
    (exact,) = torch.autograd.grad(log_p, upper)
    ours = upper.detach().requires_grad_()
    value = mvn_log_cdf(ours, TENSOR(equicorrelated(n)), rel_tol=1e-3)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(log_p.detach()), rel=2e-3)
    # Q and p have 1e-3 each, at 99 %; near one p has all its digits.
    torch.testing.assert_close(ours.grad, exact, rtol=3e-3, atol=0)


def test_gradient_where_nothing_is_left():
    cov = torch.eye(2).double()
    for upper, lower in (([0.0, 1.0], [1.0, 0.0]), ([1.0, 1.0], [math.inf, 0.0])):
        u = torch.tensor(upper).double().requires_grad_()
        mvn_log_cdf(u, cov, lower=torch.tensor(lower).double()).backward()
        assert u.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [{"rel_tol": -1.0}, {"rel_tol": "x"}, {"max_points": 3}])
def test_bad_options(bad):
    with pytest.raises((TypeError, ValueError), match="mvn_cdf: "):
        mvn_log_cdf(torch.zeros(2), torch.eye(2), **bad)


def test_mendell_elston_has_no_tolerance():
    upper, cov = torch.tensor([-3.0, -2.5]).double(), TENSOR(equicorrelated(2))
    r = mvn_log_cdf(upper, cov, method="mendell_elston", return_info=True)
    whole = mvn_cdf(upper, cov, method="mendell_elston", return_info=True)
    assert float(r.log_prob) == float(whole.log_prob) == pytest.approx(math.log(whole.prob))
    normal = MultivariateNormal(torch.zeros(2).double(), cov)
    assert float(normal.log_cdf(upper, method="mendell_elston")) == float(r.log_prob)
    with pytest.raises(ValueError, match="rel_tol must be left out with method mendell_elston"):
        mvn_log_cdf(upper, cov, method="mendell_elston", rel_tol=1e-3)


def test_what_was_screened_may_be_all_of_p():
    """X_5 <= 4.5 hardly matters by itself, and is all but impossible beside X_1, ..., X_4 >= 8: of
    what an absolute tolerance screens, ln p is not known from below."""
    upper = np.array([math.inf, math.inf, math.inf, math.inf, 4.5, 5.0])
    lower = np.array([8.0, 8.1, 8.2, 8.4, -math.inf, -math.inf])
    cov = np.full((6, 6), 0.85)
    np.fill_diagonal(cov, 1.0)
    truth = equicorrelated_log(upper, 0.85, lower)
    r = mvn_cdf(TENSOR(upper), TENSOR(cov), lower=TENSOR(lower), abs_tol=1e-4, return_info=True)
    assert abs(float(r.prob) - math.exp(truth)) <= float(r.error) < 1e-16
    assert float(r.log_prob) > truth + 1 and float(r.log_error) == math.inf
    r = integrate(upper, cov, lower, rel_tol=1e-3)
    assert abs(float(r.log_prob) - truth) <= float(r.log_error) < 2e-3


@pytest.mark.parametrize(
    "a, b, rho",
    [(-60, 40, -0.99), (-50, 38, -0.9), (-100, 40, -0.4), (-38, 38, -0.99), (-60, 1e8, -0.99)],
)
def test_a_limit_whose_mass_underflows_may_be_all_of_p(a, b, rho):
    """X <= a makes Y <= b all but impossible, whose own probability of failing is below all numbers.
    Screened, it had left log p off by thousands with an error of 1e-11."""
    s = math.sqrt(1 - rho * rho)

    def log_integrand(x):
        log = -0.5 * x * x - 0.5 * math.log(2 * math.pi)
        return log + special.log_ndtr((b - rho * x) / s)

    coarse = np.arange(a, a - 90, -1e-3)
    top, step = coarse[log_integrand(coarse).argmax()], 2e-6
    x = np.arange(min(a, top + 1), top - 1, -step)
    log_masses = log_integrand(x)
    log_masses[0] -= math.log(2)  # trapezoids
    truth = float(special.logsumexp(log_masses)) + math.log(step)
    cov = np.array([[1, rho], [rho, 1]])
    upper = TENSOR(np.array([a, b], dtype=float)).requires_grad_()
    r = mvn_log_cdf(upper, TENSOR(cov), return_info=True)
    assert abs(float(r.log_prob) - truth) <= float(r.log_error) + 1e-6 < 2e-3
    (slopes,) = torch.autograd.grad(r.log_prob, upper)
    weights = np.exp(log_masses - log_masses.max())
    z = (b - rho * x) / s
    hazard = np.exp(-0.5 * z * z - 0.5 * math.log(2 * math.pi) - special.log_ndtr(z)) / s
    slope = float((weights * hazard).sum() / weights.sum())
    assert abs(float(slopes[1]) - slope) <= 2e-3 * max(slope, float(slopes[0]))
    # in company, and where the digits are not asked for: not known, and said so
    wide = np.eye(5)
    wide[:2, :2] = cov
    limits = np.array([a, b, 0.5, 41.0, np.inf])
    r = integrate(limits, wide)
    known = truth + float(special.log_ndtr(0.5))
    assert abs(float(r.log_prob) - known) <= float(r.log_error) + 1e-6 < 2e-3
    r = mvn_cdf(upper.detach(), TENSOR(cov), return_info=True)
    assert abs(float(r.log_prob) - truth) <= float(r.log_error) + 1e-6


def test_plain_weights_whose_squares_are_no_numbers():
    """Near two directions and in narrow intervals no saddle point is found, and samples stay plain:
    weights of 1e-163, whose squares underflow. Errors cover the spread over seeds all the same."""
    factor = np.zeros((7, 7))
    factor[np.tril_indices(7)] = [
        1.0, -0.68956, 0.72423, -0.96076, -0.26776, 0.07247, -0.23001, -0.97024, 0.03872, 0.06499,
        0.85455, -0.51551, 0.05252, 0.02936, 0.01924, 0.82788, -0.54647, 0.02241, -0.02049, 0.00522,
        0.12266, -0.46993, 0.87876, -0.00061, -0.06304, -0.00664, 0.03445, 0.04176,
    ]  # fmt: skip
    upper = np.array([0.73126, -0.35281, 0.48692, -0.21724, 0.83278, 0.35172, 0.76413])
    lower = upper - [0.000948, 2.23e-06, 0.204, 0.00644, 1e-06, 1.65e-05, 0.00377]
    seeds = torch.arange(200)
    problem = [TENSOR(t).expand(200, -1) for t in (upper, lower)]
    r = mvn_log_cdf(
        problem[0], TENSOR(factor @ factor.T), lower=problem[1], rel_tol=1e-2, seed=seeds,
        return_info=True,
    )  # fmt: skip
    assert (r.status == Status.CONVERGED).all()
    truth = -373.91114  # 1e-5: by 66,000 points and more at 9 seeds
    missed = int(((r.log_prob - truth).abs() > r.log_error + 2e-5).sum())
    assert p_value(missed, 200) > 0.01
