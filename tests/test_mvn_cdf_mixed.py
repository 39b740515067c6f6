"""Slopes of sampled conditional problems, in slopes to cov and second derivatives."""

import math

import pytest
import torch
from test_mvn_cdf import random_problem
from test_mvn_cdf_grad import calls, chain, leaves, pathwise_calls

from mvnrob import _mvn_cdf_conditional, _mvn_cdf_grad, _mvn_cdf_hvp, mvn_cdf

FIXTURES = (calls, pathwise_calls)


@pytest.fixture
def sampled(monkeypatch):
    """Pairs are neither conditional probabilities nor, at once, slopes of the row's own samples."""
    dear = _mvn_cdf_grad._too_dear

    def too_dear(rows, units, n_points):
        pairs = units.index.shape[1] == 2
        return torch.ones_like(n_points, dtype=torch.bool) if pairs else dear(rows, units, n_points)

    monkeypatch.setattr(_mvn_cdf_grad, "_too_dear", too_dear)
    monkeypatch.setattr(_mvn_cdf_grad, "_POINTS_OF_A_LIMIT", 0)


def slopes(upper, matrix, name, lower=None, **options):
    given = leaves(upper, matrix, *([] if lower is None else [lower]))
    r = mvn_cdf(
        given[0],
        **{name: given[1]},
        lower=given[2] if lower is not None else None,
        return_info=True,
        **options,
    )
    (r.log_prob if options.get("rel_tol") else r.prob).sum().backward()
    return [t.grad for t in given]


def rows(n, rank, count, seed):
    """Limits on both sides and a factor of so many rows."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(count, n, rank, generator=g, dtype=torch.float64)
    upper = factor.norm(dim=2) * (0.8 + torch.rand(count, n, generator=g, dtype=torch.float64))
    return upper, factor, -1.5 * upper


@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("name", ["cov", "factor"])
@pytest.mark.parametrize(("n", "rank"), [(12, 12), (12, 7), (20, 9)])
def test_against_conditional_probabilities(n, rank, name, rectangular, monkeypatch, calls, sampled):
    upper, factor, lower = rows(n, rank, 2, n)
    matrix = factor if name == "factor" else factor @ factor.mT
    lower = lower if rectangular else None
    ours = slopes(upper, matrix, name, lower, abs_tol=1e-3)[1]
    most = 2 * upper.numel()  # of limits
    assert sum(len(args[0]) for args, _ in calls) < most + 0.1 * 2 * n * (n - 1) / 2
    monkeypatch.setattr(_mvn_cdf_grad, "_too_dear", lambda *_: torch.zeros(2, dtype=torch.bool))
    monkeypatch.setattr(_mvn_cdf_grad, "COST", 30)
    theirs = slopes(upper, matrix, name, lower, abs_tol=1e-4)[1]
    size = factor.norm(dim=2)[:, :, None]
    if name == "factor":
        # Along a row of it the slopes to limits count.
        w = factor / size
        error, whole = (
            (t - (t * w).sum(2, keepdim=True) * w) * size for t in (ours - theirs, theirs)
        )
    else:
        error, whole = ((t * size * size.mT).triu(1) for t in (ours - theirs, theirs))
    # 99 % bounds of 1e-3 for each pair of limits, half of which an entry of cov gets; to a factor sums of n.
    assert error.abs().max() < (2e-3 if rectangular else 1e-3)
    assert whole.abs().max() > 1e-2


def test_the_error_is_covered(sampled):
    """Over seeds, at a covariance of full rank and at a singular one."""
    for rank in (10, 6):
        upper, factor, _ = rows(10, rank, 1, rank)
        cov = factor @ factor.mT
        count = 40
        many = upper.expand(count, -1), cov.expand(count, -1, -1)
        ours = slopes(*many, "cov", abs_tol=1e-3, seed=torch.arange(count))[1]
        (tight,) = slopes(upper, cov, "cov", abs_tol=1e-6, compute_dtype=torch.float64)[1]
        unit = cov[0].diagonal().sqrt()
        off = ~torch.eye(10, dtype=torch.bool)
        # Half of H_ij goes to each of its two entries.
        error = (2 * (ours - tight) * unit * unit[:, None])[:, off].abs()
        # The worst of a row's slopes is within 1e-3 at 99 %; measured: all.
        assert (error > 1e-3).any(1).sum() <= 2


@pytest.mark.parametrize("rel_tol", [1e-2, 1e-3])
def test_digits_of_a_small_p(rel_tol, sampled, pathwise_calls):
    """Slopes of log p of a chain to its correlation."""
    n = 12
    upper, cov, _, _ = chain(n, -2.0)
    _, ours = slopes(upper, cov, "cov", abs_tol=0.0, rel_tol=rel_tol)
    # The row's own samples come first.
    conditional = [args for args, _ in pathwise_calls if len(args[0]) > n // 2]
    assert all(args[12] is not None for args in conditional) and (conditional or rel_tol > 5e-3)
    h = 1e-5
    i = torch.arange(n).double()
    plus, minus = (chain(n, -2.0, 0.5 + s * h)[2] for s in (1, -1))
    along = (i[:, None] - i).abs() * 0.5 ** ((i[:, None] - i).abs() - 1)
    assert (ours * along).sum() == pytest.approx((plus - minus) / (2 * h), rel=2 * rel_tol)


def test_digits_of_slopes_that_are_small_beside_the_largest(monkeypatch, sampled):
    """The slope to a limit is known to a share of the largest one; the slopes of its conditional problem are not
    measured by it."""
    n = 8
    g = torch.Generator().manual_seed(190)
    parts = [1 + 0.3 * torch.randn(n, 3, dtype=torch.float64, generator=g)]
    parts.append(0.3 * torch.randn(n, n, dtype=torch.float64, generator=g))
    factor = torch.cat(parts, 1)
    factor /= factor.norm(dim=1, keepdim=True)
    cov = (factor @ factor.T).expand(12, n, n)
    upper = (-1 + 0.2 * torch.randn(n, dtype=torch.float64, generator=g)).expand(12, n)
    seeds = torch.arange(12)
    ours = 2 * slopes(upper, cov, "cov", abs_tol=0.0, rel_tol=1e-2, seed=seeds)[1]
    # by conditional probabilities of 3e-5: .3419 and, the largest, .5002
    assert (ours[:, 4, 7] - 0.3419).abs().max() < 0.01 * 0.5002


@pytest.mark.parametrize(("own_samples", "apart"), [(False, 1e-2), (True, 1e-3)])
def test_variables_that_others_nearly_decide(own_samples, apart, calls, monkeypatch, sampled):
    """A narrow step in the integrand, which few points do not meet: pairs are conditional probabilities."""
    n = 8
    if own_samples:  # come first
        monkeypatch.setattr(_mvn_cdf_grad, "_POINTS_OF_A_LIMIT", 2**40)
    upper, cov = [], []
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        factor = torch.randn(n, n + 3, dtype=torch.float64, generator=g)
        factor /= factor.norm(dim=1, keepdim=True)
        noise = torch.randn(n + 3, dtype=torch.float64, generator=g)
        others = factor[2:5].sum(0) if own_samples else factor[0]
        factor[1] = apart * noise / (n + 3) ** 0.5 - others / others.norm()
        factor /= factor.norm(dim=1, keepdim=True)
        cov.append(factor @ factor.T)
        limit = 0.5 if own_samples else 2.0
        upper.append(limit + 0.3 * torch.randn(n, dtype=torch.float64, generator=g))
    upper, cov = torch.stack(upper), torch.stack(cov)
    ours = slopes(upper, cov, "cov", abs_tol=1e-3)[1]
    monkeypatch.setattr(_mvn_cdf_grad, "_too_dear", lambda *_: torch.zeros(6, dtype=torch.bool))
    monkeypatch.setattr(_mvn_cdf_grad, "COST", 100)
    theirs = slopes(upper, cov, "cov", abs_tol=1e-4)[1]
    error = (2 * (ours - theirs)).abs().triu(1)
    if not own_samples:
        error[:, 0, 1] = 0.0  # its density is large
    assert error.max() < 1e-3


def test_pieces_do_not_matter(monkeypatch, sampled):
    upper, cov = random_problem(12, 3, batch=(5,))
    whole = slopes(upper, cov, "cov", abs_tol=1e-3)
    monkeypatch.setattr(_mvn_cdf_conditional, "_BYTES", 20_000)  # rows and problems one by one
    for x, y in zip(whole, slopes(upper, cov, "cov", abs_tol=1e-3), strict=True):
        assert torch.equal(x, y)
    alone = slopes(upper[3:4], cov[3:4], "cov", abs_tol=1e-3, seed=torch.tensor([3]))
    both = slopes(upper[2:4], cov[2:4], "cov", abs_tol=1e-3, seed=torch.tensor([2, 3]))
    for x, y in zip(alone, both, strict=True):
        assert torch.equal(x[0], y[1])


@pytest.mark.parametrize(
    ("limit", "options", "off"),
    [(1.5, {"abs_tol": 1e-4}, 1e-4), (-2.0, {"abs_tol": 0.0, "rel_tol": 1e-3}, 2e-2)],
)
def test_hessian_of_a_chain(limit, options, off, calls, pathwise_calls):
    """Of p, and of log p where p is small, times a vector and whole, beside differences of exact slopes; a
    conditional problem for each limit."""
    n = 16
    upper, cov, log_p, slope = chain(n, limit)
    along = torch.linspace(-1, 1, n).double()
    of_log = options.get("rel_tol")
    h = 1e-4

    def f(u):
        r = mvn_cdf(u, cov, return_info=True, **options)
        return r.log_prob if of_log else r.prob

    # chain() has limits that are all alike: along them only
    one = torch.ones(n).double()
    up, down = (chain(n, limit + s * h) for s in (1, -1))
    exact = (up[3] - down[3]) / (2 * h)
    if not of_log:
        exact = math.exp(log_p) * (exact + slope * slope.sum())
    pathwise_calls.clear()
    u = upper.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(u), u, create_graph=True)
    calls.clear()
    (product,) = torch.autograd.grad(first @ one, u, retain_graph=True)
    # n - 2 variables are left of pairs: there are none; half of the n limits stand for all pairs
    assert len(calls) and all(args[0].shape == (n, n) for args, _ in calls)
    assert n // 2 <= max(len(args[0]) for args, _ in pathwise_calls) <= n
    # Of log p differences of sums of slopes' products, 40 times as large.
    assert (product - exact).abs().max() < off * max(1.0, float(exact.abs().max()))
    whole = torch.stack([torch.autograd.grad(s, u, retain_graph=True)[0] for s in first])
    assert (whole.sum(1) - exact).abs().max() < off * max(1.0, float(exact.abs().max()))
    (mixed,) = torch.autograd.grad(first @ along, u)
    assert (whole @ along - mixed).abs().max() < off * max(1.0, float(whole.abs().max()))


def test_hessian_of_limits_on_both_sides(monkeypatch):
    """Beside a conditional probability for each pair of limits; and of a vector with zeros."""
    upper, factor, lower = rows(14, 16, 2, 3)
    cov = factor @ factor.mT
    along = torch.ones_like(upper)
    along[1, 4:] = 0.0

    def product(tol):
        u, low = leaves(upper, lower)
        first = torch.autograd.grad(
            mvn_cdf(u, cov, lower=low, abs_tol=tol).sum(), (u, low), create_graph=True
        )
        return torch.autograd.grad(((first[0] - first[1]) * along).sum(), (u, low))

    ours = product(1e-3)
    monkeypatch.setattr(_mvn_cdf_hvp, "_FEW", 99)
    size = cov.diagonal(dim1=1, dim2=2)
    for x, y in zip(ours, product(1e-4), strict=True):
        # 28 pairs of limits of .16e-3 each at 99 %, and the density's own terms.
        assert ((x - y) * size).abs().max() < 2e-3 < (y * size).abs().max()
    for x, y in zip(ours, product(1e-3), strict=True):
        assert not torch.equal(x, y)
