"""log_tol: an error of log p that is asked for wherever p is."""

import math

import log_oracles
import numpy as np
import pytest
import torch

from mvnrob import Status, mvn_cdf, mvn_log_cdf
from mvnrob.distributions import MultivariateNormal


def chain(n, rho=0.5):
    """A covariance that is of no form with a closed answer."""
    at = torch.arange(n)
    return rho ** (at[:, None] - at).abs().double()


def limits(n, levels=(-6.0, -2.0, 0.0, 0.7, 1.5, 3.0, 5.0)):
    return torch.tensor(levels, dtype=torch.float64)[:, None] + torch.linspace(-0.3, 0.3, n)


def known(n, rho=0.4):
    """(limits ``[7, n]``, cov, log p): of one factor but for an entry, so that it is sampled."""
    upper, load = limits(n), np.full(n, rho**0.5)
    truth = [
        log_oracles.one_factor(load, (1 - load**2) ** 0.5, np.full(n, -np.inf), u.numpy())
        for u in upper
    ]
    cov = torch.full((n, n), rho, dtype=torch.float64).fill_diagonal_(1.0)
    cov[0, 1] = cov[1, 0] = rho * (1 - 1e-11)
    return upper, cov, torch.tensor(truth)


@pytest.mark.parametrize("log_tol", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("n", [4, 9, 40])
def test_errors_are_met_and_hold(n, log_tol):
    upper, cov, truth = known(n)
    seeds = torch.arange(20 * 7).reshape(20, 7)
    r = mvn_log_cdf(upper.expand(20, 7, n), cov, log_tol=log_tol, seed=seeds, return_info=True)
    assert (r.status <= Status.EXACT).all() and (r.log_error <= 1.1 * log_tol).all()
    misses = (r.log_prob - truth).abs() > r.log_error + 1e-8
    assert misses.double().mean() < 0.05


@pytest.mark.parametrize("n", [5, 12])
def test_where_p_is_small_it_is_rel_tol(n):
    upper = limits(n, (-9.0, -4.0, -2.0))
    a, b = (
        mvn_log_cdf(upper, chain(n), return_info=True, **o)
        for o in ({"log_tol": 1e-2}, {"rel_tol": 1e-2})
    )
    assert torch.equal(a.log_prob, b.log_prob) and torch.equal(a.n_points, b.n_points)


def test_where_p_is_near_one_it_takes_few_points():
    upper = limits(12, (2.5, 3.0, 4.0))
    digits = mvn_log_cdf(upper, chain(12), return_info=True)
    loose = mvn_log_cdf(upper, chain(12), log_tol=1e-3, return_info=True)
    assert (digits.n_points >= torch.tensor([8, 50, 50]) * loose.n_points).all()
    assert digits.prob.tolist() == pytest.approx([0.928, 0.982, 0.9995], abs=1e-3)
    assert ((loose.log_prob - digits.log_prob).abs() <= loose.log_error + digits.log_error).all()
    assert (digits.log_prob < 0).all()


def test_the_first_tolerance_that_is_met_counts():
    upper, cov = limits(9), chain(9)
    call = lambda **options: mvn_cdf(upper, cov, return_info=True, **options)
    each = [{"abs_tol": 1e-3}, {"abs_tol": 0.0, "rel_tol": 1e-2}, {"abs_tol": 0.0, "log_tol": 3e-3}]
    fewest = torch.stack([call(**options).n_points for options in each]).amin(0)
    both = call(abs_tol=1e-3, rel_tol=1e-2, log_tol=3e-3)
    assert (both.n_points <= fewest).all()
    p = both.prob
    allowed = torch.maximum(1e-2 * torch.minimum(p, both.complement), 3e-3 * p).clamp_min(1e-3)
    assert (both.error <= allowed).all()


def test_blocks_beside_samples():
    """Three variables exactly, independent of five that are sampled."""
    cov = torch.block_diag(chain(3, 0.7), chain(5))
    upper = limits(8)
    r = mvn_log_cdf(upper, cov, log_tol=1e-2, return_info=True)
    parts = [
        mvn_log_cdf(upper[:, some], cov[some, some], rel_tol=1e-4)
        for some in (slice(0, 3), slice(3, 8))
    ]
    assert (r.log_error <= 1.1e-2).all()
    assert ((r.log_prob - sum(parts)).abs() <= r.log_error + 2e-4).all()


def slopes(upper, cov, **options):
    upper, cov = upper.clone().requires_grad_(), cov.clone().requires_grad_()
    out = mvn_log_cdf(upper, cov, **options)
    return torch.autograd.grad(out.sum(), (upper, cov))


@pytest.mark.parametrize("n", [3, 4, 6, 12])
def test_slopes(n):
    """Those with digits, to a tolerance of their own; alone and in a batch of both sides."""
    upper, cov = limits(n), chain(n).expand(7, n, n)
    exact, loose = slopes(upper, cov, rel_tol=1e-4), slopes(upper, cov, log_tol=1e-2)
    for wanted, got in zip(exact, loose, strict=True):
        size = wanted.flatten(1).abs().amax(1).clamp_min(1.0).reshape(-1, *[1] * (wanted.dim() - 1))
        assert ((got - wanted).abs() <= 0.06 * size).all()
    for row in range(7):
        alone = slopes(upper[row : row + 1], cov[row : row + 1], log_tol=1e-2)
        for part, whole in zip(alone, loose, strict=True):
            assert torch.equal(part[0], whole[row])


def test_a_shared_covariance_and_factors():
    upper, cov = limits(6), chain(6)
    shared, each = (
        slopes(upper, cov, log_tol=1e-2),
        slopes(upper, cov.expand(7, 6, 6), log_tol=1e-2),
    )
    assert torch.equal(shared[0], each[0])
    torch.testing.assert_close(shared[1], each[1].sum(0))
    factor = torch.linalg.cholesky(cov)[:, :4].requires_grad_()
    for options in ({"log_tol": 1e-3}, {"rel_tol": 1e-3}):
        out = mvn_log_cdf(upper[1:6], factor=factor, **options).sum()
        (slope,) = torch.autograd.grad(out, factor)
        if "log_tol" in options:
            loose = slope
    torch.testing.assert_close(loose, slope, rtol=0, atol=0.02 * slope.abs().max().item())


def test_second_derivatives_and_forward_mode():
    upper, cov = limits(4)[[1, 4, 6]], chain(4)
    total = lambda u, **options: mvn_log_cdf(u, cov, **options).sum()
    wanted = torch.func.hessian(lambda u: total(u, rel_tol=1e-5))(upper)
    got = torch.func.hessian(lambda u: total(u, log_tol=1e-3))(upper)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-2)
    along = torch.ones_like(upper)
    value, slope = torch.func.jvp(lambda u: total(u, log_tol=1e-3), (upper,), (along,))
    backward = slopes(upper, cov.expand(3, 4, 4), log_tol=1e-3)[0].sum()
    torch.testing.assert_close(slope, backward)
    assert value == total(upper, log_tol=1e-3)


def test_vmap_and_compile():
    upper, cov = limits(5), chain(5)
    one = lambda u: mvn_log_cdf(u, cov, log_tol=1e-2)
    whole = one(upper)
    assert torch.equal(torch.func.vmap(one)(upper), whole)
    by_row = torch.func.vmap(torch.func.grad(one))(upper)
    leaf = upper.clone().requires_grad_()
    one(leaf).sum().backward()
    assert torch.equal(by_row, leaf.grad)
    assert torch.equal(torch.compile(one, fullgraph=True, backend="aot_eager")(upper), whole)


def test_distributions():
    normal = MultivariateNormal(torch.zeros(5).double(), chain(5))
    upper = limits(5)
    assert torch.equal(
        normal.log_cdf(upper, log_tol=1e-2), mvn_log_cdf(upper, chain(5), log_tol=1e-2)
    )
    assert torch.equal(normal.log_cdf(upper), mvn_log_cdf(upper, chain(5)))
    low, box = upper - 2, normal.log_rectangle(upper - 2, upper, log_tol=1e-2, return_info=True)
    assert torch.equal(box[0], box[1].log_prob)
    assert torch.equal(box[0], mvn_log_cdf(upper, chain(5), lower=low, log_tol=1e-2))
    nothing = {"rel_tol": None, "log_tol": None}
    assert torch.equal(normal.log_cdf(upper, **nothing), normal.log_cdf(upper))
    assert torch.equal(
        normal.log_cdf(upper, log_tol=np.float64(1e-2)), normal.log_cdf(upper, log_tol=1e-2)
    )
    looser = {"abs_tol": 1e-3, "rel_tol": 0.0}
    assert torch.equal(
        normal.log_cdf(upper, **looser),
        mvn_cdf(upper, chain(5), return_info=True, **looser).log_prob,
    )


def test_refused():
    upper, cov = torch.zeros(3), torch.eye(3)
    for bad, error in (
        (-1.0, ValueError),
        (math.nan, ValueError),
        ("x", TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match="mvn_cdf: log_tol must be"):
            mvn_log_cdf(upper, cov, log_tol=bad)
    with pytest.raises(ValueError, match="log_tol must be left out with method mendell_elston"):
        mvn_log_cdf(upper, cov, method="mendell_elston", log_tol=1e-3)
