"""Gradients of mvn_cdf: gradcheck, exact derivatives, singular covariances, edges, cost, plumbing."""

import math

import numpy as np
import pytest
import torch
from test_mvn_cdf import equicorrelated, random_problem

from mvnrob import _mvn_cdf_grad, mvn_cdf

INF, NAN = math.inf, math.nan


def phi(x):
    return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def gradients(upper, cov, lower=None, output="prob", **options):
    """Of the summed probabilities to upper, cov and, where given, lower."""
    given = leaves(*(t for t in (upper, cov, lower) if t is not None))
    r = mvn_cdf(
        given[0], given[1], lower=given[2] if len(given) > 2 else None, return_info=True, **options
    )
    return torch.autograd.grad(getattr(r, output).sum(), given)


def symmetric(cov):
    return (cov + cov.mT) / 2


@pytest.fixture
def calls(monkeypatch):
    """What the backward asks of the op: a list of (arguments, outputs)."""
    seen, op = [], torch.ops.mvnrob.mvn_cdf

    def recorded(*args):
        seen.append((args, op(*args)))
        return seen[-1][1]

    monkeypatch.setattr(torch.ops.mvnrob, "mvn_cdf", recorded)
    return seen


@pytest.fixture
def pathwise_calls(monkeypatch):
    """The same of mvn_cdf_pathwise."""
    seen, op = [], torch.ops.mvnrob.mvn_cdf_pathwise

    def recorded(*args):
        seen.append((args, op(*args)))
        return seen[-1][1]

    monkeypatch.setattr(torch.ops.mvnrob, "mvn_cdf_pathwise", recorded)
    return seen


# ---- right answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("with_lower", [False, True])
def test_gradcheck_of_closed_forms(n, with_lower):
    upper, cov = random_problem(n, n, batch=(2,))
    lower = -upper - 0.5 if with_lower else None

    def f(u, c, *low):
        r = mvn_cdf(u, symmetric(c), lower=low[0] if low else None, return_info=True)
        return r.prob, r.complement

    given = leaves(upper, cov, *([lower] if with_lower else []))
    assert torch.autograd.gradcheck(f, given, atol=1e-7, rtol=1e-6)


def test_gradcheck_of_four_variables():
    """Closed forms conditionally; the value is sampled, so that its differences are off by an error
    of its own: below its 99 % bound of about 1e-6 times the number of waves of the integrand."""
    upper, cov = random_problem(4, 4)
    lower = -upper - 0.5

    def f(u, c, low):
        return mvn_cdf(u, symmetric(c), lower=low, abs_tol=2e-6, compute_dtype=torch.float64)

    assert torch.autograd.gradcheck(f, leaves(upper, cov, lower), atol=3e-5, rtol=1e-3)


def test_gradcheck_of_broadcasting_and_mean():
    """[4, 1] limits, one shared covariance, [2, 1, 1] means: gradients are summed to the leaves."""
    upper, cov = random_problem(2, 3)
    upper = upper + torch.linspace(0, 1, 4).double()[:, None]
    mean = torch.linspace(-0.3, 0.5, 4).double().reshape(2, 1, 2)

    def f(u, c, m):
        return mvn_cdf(u, symmetric(c).expand(4, 2, 2), mean=m)

    assert torch.autograd.gradcheck(f, leaves(upper, cov, mean), atol=1e-7, rtol=1e-6)
    u, m = leaves(upper, mean)
    mvn_cdf(u, cov, mean=m).sum().backward()
    torch.testing.assert_close(m.grad.sum((0, 1)), -u.grad.sum(0), rtol=1e-12, atol=0)


def two_factors(n, seed):
    """Limits and cov = diag(d^2) + B B^T with the derivatives of P, exact: a double integral."""
    g = torch.Generator().manual_seed(seed)
    b = torch.randn(n, 2, generator=g, dtype=torch.float64)
    d = 0.5 + torch.rand(n, generator=g, dtype=torch.float64)
    upper = 1 + 2 * torch.rand(n, generator=g, dtype=torch.float64)
    lower = -2 - 2 * torch.rand(n, generator=g, dtype=torch.float64)
    given = leaves(upper, lower, b, d)
    # 160 Gauss-Legendre nodes on [-9, 9]: the integrand is smooth on the scale of d / |B| > .2.
    x, w = (torch.from_numpy(9 * v) for v in np.polynomial.legendre.leggauss(160))
    w = w * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    known = torch.cartesian_prod(x, x) @ given[2].T
    high, low = (0.5 * torch.erfc((known - t) / given[3] / math.sqrt(2)) for t in given[:2])
    prob = ((w[:, None] * w).reshape(-1) * (high - low).prod(1)).sum()
    return given, torch.autograd.grad(prob, given)


@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize("tol", [1e-3, 1e-4, 1e-5])
def test_against_exact_derivatives(n, tol):
    """In limits, and in cov along the 3 n - 1 directions of its two factors and variances."""
    (upper, lower, b, d), exact = two_factors(n, n)
    prob = mvn_cdf(upper, torch.diag(d * d) + b @ b.T, lower=lower, abs_tol=tol)
    ours = torch.autograd.grad(prob, (upper, lower, b, d))
    for x, y in zip(ours[:2], exact[:2], strict=True):
        # Density / s <= .4 / .5 times the error of a conditional probability. That is at most tol, or
        # at a third of the points over the number of limits about sqrt of it more; measured: .3 tol.
        assert (x - y).abs().max() < tol
    for x, y in zip(ours[2:], exact[2:], strict=True):
        # A sum over n pairs of densities of at most .16 / s^2 / .6, independent errors; measured:
        # below .2 tol at 1e-3 and 1e-4, and 1.6 tol where 512 points a pair are the limit.
        assert (x - y).abs().max() < max(tol, 4e-5)


def test_against_differences_in_any_direction():
    upper, cov = random_problem(8, 5)
    upper, cov = upper / cov.diagonal().sqrt(), cov / cov.diagonal().sqrt()[:, None]
    cov = cov / cov.diagonal()
    g = torch.Generator().manual_seed(3)
    _, to_cov = gradients(upper, cov, abs_tol=1e-5)
    for _ in range(2):
        direction = symmetric(torch.randn(8, 8, generator=g, dtype=torch.float64))
        h = 0.1 * torch.linalg.eigvalsh(cov)[0] / torch.linalg.eigvalsh(direction).abs().max()
        p = [
            mvn_cdf(upper, cov + s * h * direction, abs_tol=2e-7, max_points=2**22)
            for s in (-2, -1, 1, 2)
        ]
        difference = (p[0] - 8 * p[1] + 8 * p[2] - p[3]) / (12 * h)
        ours = (to_cov * direction).sum()
        # Errors of 2e-7 (99 %) over 1.5 h, and ours: 36 pairs of 1e-5 times their density.
        assert abs(difference - ours) < 3e-7 / h + 1e-4 and abs(ours) > 3e-3


def test_complement_and_cotangents():
    upper, cov = random_problem(5, 2, batch=(3,))
    one = gradients(upper, cov)
    for x, y in zip(one, gradients(upper, cov, output="complement"), strict=True):
        assert torch.equal(x, -y)
    u, c = leaves(upper, cov)
    mvn_cdf(u, c).backward(torch.tensor([2.0, 0.0, -1.0]).double())
    assert torch.equal(u.grad, one[0] * torch.tensor([2.0, 0, -1]).double()[:, None])
    assert torch.equal(c.grad[1], torch.zeros(5, 5).double())
    r = mvn_cdf(u, c, return_info=True)
    assert r.prob.requires_grad and r.complement.requires_grad and not r.error.requires_grad


def test_only_what_is_asked_for():
    upper, cov = random_problem(5, 2)
    u = upper.clone().requires_grad_()
    mvn_cdf(u, cov).backward()
    c = cov.clone().requires_grad_()
    mvn_cdf(upper, c).backward()
    both = gradients(upper, cov)
    assert torch.equal(u.grad, both[0]) and torch.equal(c.grad, both[1])
    assert torch.equal(both[1], both[1].mT)


# ---- singular covariances -----------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 3])
def test_singular_through_the_factor(rank):
    g = torch.Generator().manual_seed(rank)
    factor = torch.randn(7, rank, generator=g, dtype=torch.float64)
    upper = factor.norm(dim=1) * (0.6 + torch.rand(7, generator=g, dtype=torch.float64))
    direction = torch.randn(7, rank, generator=g, dtype=torch.float64)
    u, f = leaves(upper, factor)
    mvn_cdf(u, f @ f.T, abs_tol=1e-5).backward()

    def difference(change, h=1e-2):
        """Five points, and what the values' own errors make of it."""
        p = [
            mvn_cdf(
                *change(s * h), abs_tol=1e-6, max_points=2**21, compute_dtype=torch.float64,
                return_info=True,
            )
            for s in (-2, -1, 1, 2)
        ]  # fmt: skip
        weights = torch.tensor([1, -8, 8, -1]).double() / (12 * h)
        values, errors = (torch.stack([getattr(r, name) for r in p]) for name in ("prob", "error"))
        return (weights * values).sum(), (weights * errors).norm()

    direction = direction / direction.norm(dim=1).max()

    def moved(h):
        shifted = factor + h * direction
        return upper, shifted @ shifted.T

    along = direction[:, 0]
    for change, slope in (
        (moved, (f.grad * direction).sum()),
        (lambda h: (upper + h * along, factor @ factor.T), (u.grad * along).sum()),
    ):
        expected, error = difference(change)
        assert slope.abs() > 1e-2
        # 1e-8 times a fifth derivative, and 1e-5 for each of a few limits or pairs.
        assert abs(expected - slope) < error + 1e-4


def test_multiples_of_one_variable():
    ones = torch.ones(2, 2).double()
    u, c = gradients(torch.tensor([0.5, 0.7], dtype=torch.float64), ones)
    assert u[0] == pytest.approx(phi(0.5), rel=1e-14) and u[1] == 0
    # P = Phi(u_0 / s_0), whatever the other's variance.
    assert c[0, 0] == pytest.approx(-0.25 * phi(0.5), rel=1e-14)
    assert c[0, 1] == c[1, 0] == c[1, 1] == 0
    # x <= .5 and -2 x <= .6: an interval.
    scale = torch.tensor([1.0, -2.0]).double()
    u, _ = gradients(torch.tensor([0.5, 0.6], dtype=torch.float64), torch.outer(scale, scale))
    assert u.tolist() == pytest.approx([phi(0.5), phi(0.3) / 2], rel=1e-14)
    # Equal limits, a minimum: equal shares, as torch.amin.
    for scale in (torch.ones(3), torch.tensor([1.0, 3.0, 7.0])):
        scale = scale.double()
        u, c = gradients(0.4 * scale, torch.outer(scale, scale))
        assert (u * scale).tolist() == pytest.approx([phi(0.4) / 3] * 3, rel=1e-12)
        assert c.isfinite().all()


@pytest.mark.parametrize("copies", [2, 5])
def test_duplicates(copies):
    """Copies that stay copies: the gradient is that of the originals, to cov as well."""
    upper, cov = random_problem(4, 9)
    index = torch.arange(4).repeat(copies)
    u, c = leaves(upper, cov)
    mvn_cdf(u[index], c[index][:, index], abs_tol=1e-5).backward()
    once = gradients(upper, cov, abs_tol=1e-5)
    # The originals are exact; copies of an exact conditional problem are one, or sampled to 1e-5.
    assert (u.grad - once[0]).abs().max() < 1e-5
    assert (c.grad - once[1]).abs().max() < 1e-5


def test_antiparallel_pairs_are_an_interval():
    upper, cov = random_problem(4, 10)
    low = -0.4 * cov.diagonal().sqrt()
    half = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    u, low_leaf, c = leaves(upper, low, cov)
    mvn_cdf(torch.cat([u, -low_leaf]), half @ c @ half.T, abs_tol=1e-5).backward()
    once = gradients(upper, cov, low, abs_tol=1e-5)
    for x, y in zip((u, c, low_leaf), once, strict=True):
        assert (x.grad - y).abs().max() < 1e-5


@pytest.mark.parametrize("rank", [2, 3, 7])
def test_float32_gram_as_float64(rank):
    """Rounding of 1e-7 makes conditional covariances indefinite: their rows are repaired."""
    g = torch.Generator().manual_seed(rank)
    factor = torch.randn(6, 8, rank, generator=g)
    upper = (0.8 + torch.rand(6, 8, generator=g)) * factor.norm(dim=-1)
    rounded = gradients(upper.double(), (factor @ factor.mT).double(), abs_tol=1e-4)
    f = factor.double()
    exact = gradients(upper.double(), f @ f.mT, abs_tol=1e-4)
    # A repair of 3e-6 moves a limit by its root, 2e-3, times a slope of .4.
    assert (rounded[0] - exact[0]).abs().max() < 1e-3
    assert rounded[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_of_full_rank_takes_the_slopes_of_its_covariance(dtype, calls, pathwise_calls):
    """A row of many variables, one whose covariance is singular although the factor is wide, an exact
    one and one of no weight."""
    n = 24
    g = torch.Generator().manual_seed(n)
    factor = torch.cat([torch.randn(4, n, 3, generator=g), torch.eye(n).expand(4, n, n)], 2).to(
        dtype
    )
    factor[1, :, 3:] = 0
    factor[2, :, 1:3] = 0  # of one factor
    upper = (0.8 + torch.rand(4, n, generator=g)).to(dtype) * factor.norm(dim=2)
    weight = torch.tensor([1, 1, 1, 0], dtype=dtype)
    u, f = leaves(upper, factor)
    (mvn_cdf(u, factor=f, abs_tol=1e-3) * weight).sum().backward()
    assert {args[0].dtype for args, _ in pathwise_calls} == {torch.float64, dtype}
    wide, v = leaves(factor.double(), upper.double())
    (mvn_cdf(v, wide @ wide.mT, abs_tol=1e-3) * weight.double()).sum().backward()
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    for ours, theirs in ((u.grad, v.grad), (f.grad, wide.grad)):
        assert ours.dtype == dtype and (ours - theirs)[[0, 3]].abs().max() < tol
        assert (ours - theirs)[1:3].abs().max() < 2e-3 and not ours[3].any()
    calls.clear(), pathwise_calls.clear()
    u, f = leaves(upper[:1], factor[:1])
    mvn_cdf(u, factor=f, abs_tol=1e-3).sum().backward()
    assert sum(len(args[0]) for args, _ in calls) < n * (n - 1) / 4  # of half as many pairs


@pytest.mark.parametrize(("rank", "apart"), [(3, 3e-4), (12, 1e-5)])
def test_float32_rows_of_a_factor_that_are_nearly_multiples(rank, apart):
    """Rounding of the factor does not make multiples of them, as rounding of the covariance would."""
    n = 12
    g = torch.Generator().manual_seed(rank)
    factor = torch.randn(n, rank, generator=g)
    factor[5] = factor[4] + apart * factor[4].norm() * torch.randn(rank, generator=g)
    upper = factor.norm(dim=1) * (0.5 + torch.rand(n, generator=g))
    upper[5] = upper[4]
    slopes = []
    for dtype in (torch.float32, torch.float64):
        u, f = leaves(upper.to(dtype), factor.to(dtype))
        mvn_cdf(u, factor=f, abs_tol=1e-4).backward()
        slopes.append(f.grad.double())
    assert (slopes[0] - slopes[1]).abs().max() < 1e-4 < slopes[1][4:6].abs().max() / 30


@pytest.mark.parametrize("ulps", [5, 200, 10**5])
def test_nearly_equal_variables(ulps):
    cov = torch.ones(6, 6).double().fill_diagonal_(1 + ulps * torch.finfo(torch.float64).eps)
    u, _ = gradients(torch.zeros(6).double(), cov, abs_tol=1e-4)
    # A common shift of all limits moves P by phi(0), up to the spread of the six, below 1e-5.
    assert float(u.sum()) == pytest.approx(phi(0), abs=6 * 0.4e-4)
    assert (u >= 0).all() and u.max() < phi(0)


# ---- edges --------------------------------------------------------------------------------------


def test_infinite_limits_and_zero_variances():
    upper, cov = random_problem(4, 3)
    small = gradients(upper[:3], cov[:3, :3])
    wide = cov.clone()
    wide[3] = wide[:, 3] = NAN  # not read
    wide[3, 3] = 1
    u, c = gradients(torch.cat([upper[:3], torch.tensor([INF]).double()]), wide)
    assert torch.equal(u[:3], small[0]) and u[3] == 0
    assert torch.equal(c[:3, :3], small[1]) and not c[3].any() and not c[:, 3].any()
    # A step: it holds, or nothing does.
    wide[3] = wide[:, 3] = 0
    for limit, factor in ((0.5, 1), (0.0, 1), (-0.5, 0)):
        u, c = gradients(torch.cat([upper[:3], torch.tensor([limit]).double()]), wide)
        torch.testing.assert_close(u[:3], factor * small[0], rtol=1e-13, atol=0)
        torch.testing.assert_close(c[:3, :3], factor * small[1], rtol=1e-13, atol=0)
        assert u[3] == 0 and not c[3].any()
    for low, high in ((1.0, 0.0), (INF, INF), (-INF, -INF)):
        edge = torch.tensor([high, 1.0]).double()
        out = gradients(edge, equicorrelated(2), torch.tensor([low, 0.0]).double())
        assert not any(t.any() for t in out)


def test_bad_rows():
    upper, cov = random_problem(6, 1, batch=(4,))
    upper[1, 2] = NAN
    cov[2, 0, 1] = cov[2, 1, 0] = 1e3
    lower = torch.full_like(upper, -INF)
    with pytest.warns(RuntimeWarning, match="indefinite"):
        out = gradients(upper, cov, lower)
    for t in out:
        assert t[1:3].isnan().all() and t[[0, 3]].isfinite().all()
    # A row that the loss leaves out does not spoil what it shares with others.
    c = cov.clone().requires_grad_()
    broken = c + torch.diag_embed(torch.tensor([0, NAN, 0, 0, 0, 0]).double())
    broken = torch.stack([c[0], broken[1], c[0], c[0] + NAN])
    u = upper.clone().nan_to_num(0.5).requires_grad_()
    mvn_cdf(u, broken).nansum().backward()
    assert u.grad.isfinite().all() and c.grad.isfinite().all()
    u, c = leaves(upper, cov[0])
    mvn_cdf(u, c).nansum().backward()
    assert c.grad.isfinite().all() and u.grad.isfinite().all()


def test_empty():
    for upper, cov in (
        (torch.zeros(0), torch.zeros(0, 0)),
        (torch.zeros(5, 0), torch.zeros(0, 0)),
        (torch.zeros(0, 3), torch.eye(3)),
    ):
        u, c = gradients(upper, cov)
        assert u.shape == upper.shape and c.shape == cov.shape and not c.any()


def test_what_cannot_matter_is_skipped(calls):
    """phi(z) <= abs_tol / 10 / variables: above 5.0 at 1e-4 and ten."""
    upper = torch.linspace(0.5, 2, 10).double()
    upper[7:] = torch.tensor([4.9, 5.1, 9.0]).double()
    u, _ = gradients(upper, equicorrelated(10), abs_tol=1e-4)
    assert u[7] > 0 and not u[8:].any()
    asked = sum(len(args[0]) for args, _ in calls)
    # At most the pairs of the eight; those with a joint density below 1e-6 go too.
    assert 8 < asked <= 8 + 28
    fine, _ = gradients(upper, equicorrelated(10), abs_tol=1e-6)
    assert fine[8] > 0 and fine[9] == 0
    # Few enough variables are exact and skip nothing.
    few, _ = gradients(upper[-4:], equicorrelated(4))
    assert (few > 0).all()


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_limit_that_is_hardly_ever_kept_is_not_skipped(side):
    """Its density says nothing either, but p is next to zero, and so are the others' slopes."""
    upper, cov = torch.ones(10).double(), equicorrelated(10)
    upper[0] = -8.0
    lower = None
    if side < 0:
        upper, lower = torch.full_like(upper, INF), -upper
    slopes = gradients(upper, cov, lower)
    assert max(g.abs().max() for g in slopes) < 1e-12


def test_float32():
    upper, cov = random_problem(9, 3, batch=(2,))
    lower = -2 * upper
    double = gradients(upper, cov, lower, compute_dtype=torch.float32)
    single = gradients(upper.float(), cov.float(), lower.float())
    for x, y in zip(single, double, strict=True):
        assert x.dtype == torch.float32
        # The same points; rounding of limits (1e-7) and of the recursion, at most.
        assert (x - y).abs().max() < 2e-5 * (1 + y.abs().max())


# ---- work ---------------------------------------------------------------------------------------


def test_a_row_s_gradient_is_its_own():
    upper, cov = random_problem(9, 7, batch=(5,))
    seed = torch.arange(5) * 17 - 40
    whole = gradients(upper, cov, seed=seed)
    for x, y in zip(whole, gradients(upper, cov, seed=seed), strict=True):
        assert torch.equal(x, y)
    for b in range(5):
        alone = gradients(upper[b], cov[b], seed=int(seed[b]))
        for x, y in zip(whole, alone, strict=True):
            assert torch.equal(x[b], y)
    assert not torch.equal(whole[0], gradients(upper, cov, seed=seed + 1)[0])


def test_chunks_do_not_matter(monkeypatch):
    from mvnrob import _mvn_cdf_conditional

    upper, cov = random_problem(7, 7, batch=(3,))
    whole = gradients(upper, cov)
    monkeypatch.setattr(_mvn_cdf_conditional, "_BYTES", 10_000)  # six matrices at a time
    for x, y in zip(whole, gradients(upper, cov), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("n", [9, 30, 60])
def test_cost_of_the_limits(n, calls, pathwise_calls):
    upper, cov = random_problem(n, 1, batch=(4,))
    for tol in (1e-3, 1e-5):
        calls.clear()
        pathwise_calls.clear()
        u = upper.clone().requires_grad_()
        r = mvn_cdf(u, cov, abs_tol=tol, return_info=True)
        r.prob.sum().backward()
        # A pathwise point takes about 1.9 of the value's (bench_mvn_cdf_grad).
        spent = sum(int(out[4].sum()) for _, out in calls)
        spent += sum(int(1.9 * 8 * args[6].sum()) for args, _ in pathwise_calls)
        assert 0 < spent <= 3 * int(r.n_points.sum())


def chain(n, limit, rho=0.5):
    """Limits and covariance of an AR(1) chain, log p and its slopes: quadrature along the chain, on
    nodes that move with the limit (exact to 1e-9 for limits of -60 to 5)."""
    i = torch.arange(n).double()
    upper, cov = torch.full((n,), limit).double(), rho ** (i[:, None] - i).abs()
    width, square = max(9.0, limit + 9.0), 1 - rho * rho
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(240))
    down, log_w = width * (x + 1) / 2, (width * w / 2).log()
    (u,) = leaves(upper)
    y = u[0] - down
    log_mass = log_w - 0.5 * y * y - 0.5 * math.log(2 * math.pi)
    for k in range(1, n):
        following = u[k] - down
        step = -0.5 * (following[:, None] - rho * y) ** 2 / square
        log_mass = log_w + torch.logsumexp(
            step - 0.5 * math.log(2 * math.pi * square) + log_mass, 1
        )
        y = following
    log_p = torch.logsumexp(log_mass, 0)
    return upper, cov, float(log_p.detach()), torch.autograd.grad(log_p, u)[0]


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("n, limit", [(8, -3.0), (60, -3.0), (40, -10.0), (30, 4.5), (60, 5.0)])
def test_digits_of_either_tail(n, limit, factored, calls, pathwise_calls):
    """Slopes relative to the largest, and what they cost: tilted samples where p is small; where it is
    near 1 conditional probabilities among the few variables that matter."""
    upper, cov, log_p, exact = chain(n, limit)
    rows = 6
    u = upper.expand(rows, n).clone().requires_grad_()
    matrix = {"factor": torch.linalg.cholesky(cov)} if factored else {"cov": cov}
    r = mvn_cdf(u, **matrix, abs_tol=0.0, rel_tol=1e-2, seed=torch.arange(rows), return_info=True)
    assert (r.log_prob - log_p).abs().max() < 1e-2
    calls.clear()
    (ours,) = torch.autograd.grad(r.log_prob.sum(), u)
    # 99 % bounds of 1e-2 for each of rows n slopes; measured: below .5e-2.
    assert (ours - exact).abs().max() < 1e-2 * exact.abs().max()
    spent = sum(int(out[4].sum()) for _, out in calls)
    spent += sum(int(1.9 * 8 * args[6].sum()) for args, _ in pathwise_calls)
    assert spent <= 3 * int(r.n_points.sum())
    if limit < 0:
        assert not calls and pathwise_calls[0][0][12] is not None
    else:
        assert not pathwise_calls and max(args[0].shape[1] for args, _ in calls) <= 4


def test_the_variables_that_matter_near_one(calls):
    """Where many do, few do, or one is a multiple; Q far below 1 has its own digits."""
    upper = torch.cat([torch.full((12,), 3.0), torch.full((18,), 7.0)]).double()
    cov = equicorrelated(30)
    cov[:12, :12] = 0.95 + 0.05 * torch.eye(12)
    cov[1], cov[:, 1] = cov[0], cov[:, 0]
    cov[1, 1] = cov[0, 1] = cov[1, 0] = 1.0
    upper[1] = 3.2
    u, _ = gradients(upper, cov, abs_tol=0.0, rel_tol=1e-2)
    assert max(args[0].shape[1] for args, _ in calls) == 30  # the second look, at small Q
    full, _ = gradients(upper[:12], cov[:12, :12], abs_tol=1e-7, compute_dtype=torch.float64)
    assert (u[:12] - full).abs().max() < 1e-2 * full.max()
    assert u[1] == 0 and (u[12:] < 1e-9).all()


def test_cov_in_the_tail(calls, pathwise_calls):
    """Tilted samples know pairs too; what they do not is Plackett's."""
    n = 12
    upper, cov, _, _ = chain(n, -2.0)
    _, ours = gradients(upper, cov, output="log_prob", abs_tol=0.0, rel_tol=1e-2)
    assert any(args[9] and args[12] is not None for args, _ in pathwise_calls)
    h = 1e-5
    i = torch.arange(n).double()
    plus, minus = (chain(n, -2.0, 0.5 + s * h)[2] for s in (1, -1))
    along = (i[:, None] - i).abs() * 0.5 ** ((i[:, None] - i).abs() - 1)
    # n pairs of 1e-2 of the largest each, errors nearly independent.
    assert (ours * along).sum() == pytest.approx((plus - minus) / (2 * h), rel=2e-2)


def test_options_reach_the_conditional_problems(calls, pathwise_calls, monkeypatch):
    upper, cov = random_problem(9, 1)
    options = {"abs_tol": 1e-6, "rel_tol": 1e-3, "max_points": 4096, "points": "sobol"}
    gradients(upper, cov, method="sov", compute_dtype=torch.float64, **options)
    # of conditional problems
    assert max(len(args[0]) for args, _ in pathwise_calls) > 5
    for args, _ in pathwise_calls:
        assert args[8] == "float64" and args[10] == "sobol" and (8 * args[6] <= 4096).all()
    monkeypatch.setattr(_mvn_cdf_grad, "_AFFORDABLE", INF)
    calls.clear()
    gradients(upper, cov, method="sov", compute_dtype=torch.float64, **options)
    assert calls
    for args, out in calls:
        assert args[4:6] == (1e-6, 1e-3) and args[7:] == ("sov", "float64", "sobol", False)
        assert args[6] <= 4096 and (out[4] <= 4096).all()
    calls.clear()
    gradients(torch.ones(20).double(), torch.eye(20).double(), method="closed_form")
    assert all(args[7] == "closed_form" for args, _ in calls)


def test_memory_is_bounded(calls, monkeypatch):
    """Never [rows, n, n, n]: 40 x 60 problems of 60 variables would be 69 MB."""
    from mvnrob import _mvn_cdf_grad

    monkeypatch.setattr(_mvn_cdf_grad, "_AFFORDABLE", 1e9)  # conditional probabilities alone
    upper, cov = random_problem(60, 1)
    u = upper.expand(40, 60).clone().requires_grad_()
    mvn_cdf(u, cov, abs_tol=1e-2).sum().backward()
    assert max(args[1].numel() * 8 for args, _ in calls) <= 2**24


# ---- plumbing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_lower", [False, True])
def test_opcheck(with_lower):
    upper, cov = leaves(*random_problem(4, 1, batch=(2,)))
    (lower,) = leaves(-upper - 1)
    args = (upper, cov, lower if with_lower else None, torch.tensor([1, 2]))
    torch.library.opcheck(
        torch.ops.mvnrob.mvn_cdf.default, (*args, 1e-3, 0.0, 2**20, "auto", "auto", "lattice")
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_fullgraph(backend):
    def program(u, c):
        return 1 - mvn_cdf(u.exp().log(), c, abs_tol=1e-3)

    plain, compiled = (
        torch.autograd.grad(f(*given).sum(), given)
        for f in (program, torch.compile(program, backend=backend, fullgraph=True))
        for given in [leaves(*random_problem(5, 1, batch=(3,)))]
    )
    for x, y in zip(plain, compiled, strict=True):
        assert torch.equal(x, y)


def test_torch_func():
    upper, cov = random_problem(5, 1, batch=(3,))
    plain = gradients(upper, cov)
    functional = torch.func.grad(lambda u, c: mvn_cdf(u, c).sum(), (0, 1))(upper, cov)
    value, vjp = torch.func.vjp(mvn_cdf, upper, cov)
    assert torch.equal(value, mvn_cdf(upper, cov))
    for x, y, z in zip(plain, functional, vjp(torch.ones(3).double()), strict=True):
        assert torch.equal(x, y) and torch.equal(x, z)
    jacobian = torch.func.jacrev(mvn_cdf)(upper, cov)
    for b in range(3):
        assert torch.equal(jacobian[b, b], plain[0][b])
    assert torch.equal(jacobian.sum(1), plain[0])


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("limit", [3.0, 4.0, 6.0])
def test_no_other_variable_matters(n, limit):
    """Near 1, digits of 1 - p: given a variable, that any other fails is within the tolerance."""
    cov = torch.eye(n, dtype=torch.float64)
    for gap, r in ((1, 0.05), (2, 0.02)):
        beside = torch.full((n - gap,), r, dtype=torch.float64)
        cov += torch.diag_embed(beside, gap) + torch.diag_embed(beside, -gap)
    upper = (limit + 0.01 * torch.arange(n)).double()
    (u,) = leaves(upper)
    result = mvn_cdf(u, cov, rel_tol=0.5, abs_tol=0.0, return_info=True)
    (slope,) = torch.autograd.grad(result.complement, u)
    # the density times the probability that the others hold, each more than (n - 1) Phi(-limit) below 1
    density = (-0.5 * upper.square()).exp() / math.sqrt(2 * math.pi)
    assert ((-slope <= density * (1 + 1e-12)) & (-slope >= 0.9 * density)).all()


def test_nothing_is_mapped():
    upper, cov = random_problem(5, 1, batch=(3,))
    slopes = torch.func.vmap(torch.func.grad(mvn_cdf, (0, 1)))(upper[:0], cov[:0])
    assert [list(t.shape) for t in slopes] == [[0, 5], [0, 5, 5]]


def test_training_moves_the_probability():
    """Limits of a fixed length, and a factor of fixed row norms, both towards larger p."""
    g = torch.Generator().manual_seed(0)
    limits, factor = leaves(
        torch.rand(9, generator=g, dtype=torch.float64) - 0.3,
        torch.randn(9, 12, generator=g, dtype=torch.float64),
    )
    optimizer = torch.optim.SGD([limits, factor], lr=1.0)
    reached = []
    for _ in range(25):
        unit = factor / factor.norm(dim=1, keepdim=True)
        p = mvn_cdf(2 * limits / limits.norm(), unit @ unit.T, abs_tol=1e-3)
        optimizer.zero_grad()
        (-p.log()).backward()
        optimizer.step()
        reached.append(float(p.detach()))
    # Rows of the factor can all become one: Phi(2 / 3) = .75 is where that leads.
    assert reached[-1] > reached[0] + 0.3 and reached[-1] < 0.7475 + 1e-3


@pytest.mark.parametrize("n", [3, 7, 12])
@pytest.mark.parametrize("with_lower", [False, True])
def test_outputs_that_the_loss_leaves_out(n, with_lower):
    """Without a cotangent an output counts as with one of zero, and cotangents add up."""
    upper, cov = random_problem(n, n, batch=(3,))
    given = leaves(*((upper, cov, upper - 3.0) if with_lower else (upper, cov)))

    def of(loss):
        r = mvn_cdf(*given[:2], lower=given[2] if with_lower else None, return_info=True)
        return torch.autograd.grad(loss(r).sum(), given)

    prob, log_prob = of(lambda r: r.prob), of(lambda r: r.log_prob)
    for t in zip(log_prob, of(lambda r: r.log_prob + 0 * r.prob - 0 * r.complement), strict=True):
        assert torch.equal(*t)
    # The rest to rounding: slopes of p are taken as p times those of its logarithm, or as such.
    for loss, a, b in (
        (lambda r: r.prob + 0 * r.log_prob, 1, 0),
        (lambda r: -r.complement, 1, 0),
        (lambda r: 2 * r.prob - 3 * r.complement, 5, 0),
        (lambda r: 2 * r.log_prob - 3 * r.complement, 3, 2),
    ):
        for got, x, y in zip(of(loss), prob, log_prob, strict=True):
            assert (got - (a * x + b * y)).abs().max() <= 1e-12
            assert (got != 0).any()


def operations(upper, cov, wants_cov):
    """How many operations a backward call takes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from mvnrob import _mvn_cdf_grad

    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            self.number += 1
            return op(*args, **(kwargs or {}))

    options = (1e-3, 0.0, 2**20, "auto", "auto", "lattice")
    seed = torch.zeros(len(upper), dtype=torch.int64)
    prob, complement, _, _, n_points, _, n_pivots, log_prob, _ = torch.ops.mvnrob.mvn_cdf(
        upper, cov, None, seed, *options
    )
    values = prob, complement, log_prob, n_points, n_pivots
    grad = torch.ones_like(prob)
    with Count() as count:
        _mvn_cdf_grad._backward_op(grad, None, upper, cov, None, seed, *values, *options, wants_cov)
    return count.number


def test_few_operations_whatever_the_rows():
    """They are most of what a call of small problems takes; the bounds leave a tenth to spare."""
    for n in (2, 3):  # closed forms
        for rows in (1, 8, 64):
            upper, cov = random_problem(n, 0, batch=(rows,))
            assert operations(upper, cov, False) <= 140
            assert operations(upper, cov, True) <= 340
    # Sampled ones take both ways and further looks, for some variables one after the other; some rows are of blocks.
    upper, cov = random_problem(6, 0, batch=(64,))
    assert operations(upper, cov, False) <= 640
    cov[::2, :2, 2:], cov[::2, 2:, :2] = 0.0, 0.0
    few = operations(upper[:8], cov[:8], False)
    assert operations(upper, cov, False) <= 1.5 * few
