"""Second derivatives and forward mode of mvn_cdf: closed forms, exact families, differences of tight
slopes, tails, singular covariances, edges, transforms, cost."""

import math

import numpy as np
import pytest
import torch
from test_mvn_cdf import equicorrelated, random_problem
from test_mvn_cdf_grad import chain, gradients, leaves, phi, symmetric
from torch.autograd import forward_ad
from torch.autograd.functional import hessian
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from mvnrob import _mvn_cdf_grad, bvn_cdf, mvn_cdf, mvn_log_cdf
from mvnrob.distributions import MultivariateNormal

DOUBLE = torch.float64
INF, NAN = math.inf, math.nan


def difference(f, h):
    """Of a tensor's function of one number, at zero, to the fourth order."""
    return (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h)


def products(f, given, along):
    """The Hessian of f times ``along``, to each of ``given``."""
    given = leaves(*given)
    first = torch.autograd.grad(f(*given), given, create_graph=True)
    return torch.autograd.grad(sum((a * b).sum() for a, b in zip(first, along, strict=True)), given)


# ---- right answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("with_lower", [False, True])
@pytest.mark.parametrize("name", ["complement", "log_prob"])
def test_gradgradcheck_of_closed_forms(n, with_lower, name):
    upper, cov = random_problem(n, n, batch=(2,) if n < 3 else ())
    lower = -upper - 0.5 if with_lower else None

    def f(u, c, *low):
        r = mvn_cdf(u, symmetric(c), lower=low[0] if low else None, return_info=True)
        return getattr(r, name)

    given = leaves(upper, cov, *([lower] if with_lower else []))
    assert torch.autograd.gradcheck(f, given, atol=1e-7, rtol=1e-6, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, given, atol=1e-7, rtol=1e-6, check_fwd_over_rev=True)


def test_gradgradcheck_of_mean_and_factor():
    upper, _ = random_problem(3, 3)
    g = torch.Generator().manual_seed(1)
    factor, mean = (torch.randn(*s, generator=g, dtype=DOUBLE) for s in ((3, 4), (2, 3)))

    def f(u, m, a):
        return mvn_log_cdf(u, factor=a, mean=m)

    assert torch.autograd.gradgradcheck(f, leaves(upper, mean, factor), atol=1e-7, rtol=1e-6)


def one_factor(upper, lower, b, d):
    """P for cov = diag(d^2) + b b^T: 200 Gauss-Legendre nodes on [-9, 9]."""
    x, w = (torch.from_numpy(9 * v) for v in np.polynomial.legendre.leggauss(200))
    w = w * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    high, low = (0.5 * torch.erfc((x[:, None] * b - t) / d / math.sqrt(2)) for t in (upper, lower))
    return (w * (high - low).prod(1)).sum()


def one_factor_problem(n):
    g = torch.Generator().manual_seed(n)
    b = torch.randn(n, generator=g, dtype=DOUBLE)
    d, upper, lower = (t + torch.rand(n, generator=g, dtype=DOUBLE) for t in (0.6, 0.5, -2.0))
    return upper, lower, b, d


def of_stack(f):
    return lambda z: f(*z.unbind(0))


@pytest.mark.parametrize("name", ["prob", "log_prob"])
@pytest.mark.parametrize(
    ("n", "options", "off"),
    [
        (4, {}, 1e-9),  # exact
        (6, {}, 1e-9),
        (4, {"method": "sov", "abs_tol": 1e-4}, 1e-4),  # sampled: .3e-4 measured
        (6, {"method": "sov", "abs_tol": 1e-3}, 5e-3),  # p = .06; 1.5e-3
    ],
)
def test_hessian_of_one_factor(name, n, options, off):
    """To both limits and, through 2 n numbers, to cov."""

    def ours(upper, lower, b, d):
        cov = torch.diag(d * d) + torch.outer(b, b)
        return getattr(mvn_cdf(upper, cov, lower=lower, return_info=True, **options), name)

    def exact(*given):
        p = one_factor(*given)
        return p.log() if name == "log_prob" else p

    z = torch.stack(one_factor_problem(n))
    ours, exact = (jacrev(jacrev(of_stack(f)))(z).reshape(4 * n, 4 * n) for f in (ours, exact))
    assert (ours - exact).abs().max() < off and exact.abs().max() > 1e-2
    assert (ours - ours.T).abs().max() < off


@pytest.mark.parametrize("n", [4, 5, 8])
@pytest.mark.parametrize("along", ["limits", "cov"])
def test_against_differences_of_slopes(n, along, monkeypatch):
    upper, cov = random_problem(n, n)
    sd = cov.diagonal().sqrt()
    upper, cov = upper / sd, cov / sd / sd[:, None]
    g = torch.Generator().manual_seed(1)
    to_upper = torch.randn(n, generator=g, dtype=DOUBLE) * (along == "limits")
    to_cov = symmetric(torch.randn(n, n, generator=g, dtype=DOUBLE)) * (along == "cov")
    least = torch.linalg.eigvalsh(cov)[0]

    def slopes(t):
        moved = upper + t * to_upper, cov + t * to_cov
        return gradients(*moved, abs_tol=5e-7, compute_dtype=DOUBLE)

    ours = products(lambda u, c: mvn_cdf(u, c, abs_tol=1e-4), (upper, cov), (to_upper, to_cov))
    monkeypatch.setattr(_mvn_cdf_grad, "_AFFORDABLE", INF)  # conditional probabilities alone
    h = 0.02 if along == "limits" else 0.05 * least / torch.linalg.norm(to_cov, 2)
    for k, mine in enumerate(ours):
        exact = difference(lambda t, k=k: slopes(t)[k], float(h))
        # Densities of pairs times 1e-4, and slopes of 5e-7 over h; measured: .2e-4 at n = 8.
        assert (mine - exact).abs().max() < 1e-4 * (1 + exact.abs().max())
        assert exact.abs().max() > 1e-2


def test_classifier_like_margins():
    """Screened variables, a nearly singular covariance, mixed routes in one batch."""
    g = torch.Generator().manual_seed(5)
    weights = torch.randn(3, 10, 6, generator=g, dtype=DOUBLE)
    margins = (weights[:, 1:] - weights[:, :1]) / 4
    cov = margins @ margins.mT + 1e-3 * torch.eye(9, dtype=DOUBLE)
    upper = 0.5 + torch.rand(3, 9, generator=g, dtype=DOUBLE)
    upper[0, 4:] = 12.0  # cannot fail
    cov[1] = equicorrelated(9)
    along = torch.randn(3, 9, generator=g, dtype=DOUBLE)

    def summed(u):
        return mvn_cdf(u, cov, abs_tol=1e-5).sum()

    (ours,) = products(summed, (upper,), (along,))
    slopes = lambda t: gradients(upper + t * along, cov, abs_tol=2e-6, compute_dtype=DOUBLE)[0]
    assert (ours - difference(slopes, 3e-2)).abs().max() < 2e-4
    assert ours.abs().amax(1).min() > 1e-2
    for b in range(3):
        alone = products(lambda u, b=b: mvn_cdf(u, cov[b], abs_tol=1e-5), (upper[b],), (along[b],))
        assert torch.equal(alone[0], ours[b])


@pytest.mark.parametrize(
    ("n", "limit", "off"), [(8, -5.7, 0.05), (12, -3.0, 0.05), (20, 4.5, 1e-3)]
)
def test_log_p_in_either_tail(n, limit, off):
    """Down to p = 1e-30: a difference of terms of the size of the slopes' products, 40 to 60 of them
    at small p, to rel_tol each (measured: .01 of the result); and near p = 1."""
    upper, cov, log_p, _ = chain(n, limit)
    assert limit > 0 or -71 < log_p < -30
    (ours,) = products(lambda u: mvn_log_cdf(u, cov), (upper,), (torch.ones(n, dtype=DOUBLE),))
    exact = difference(lambda t: chain(n, limit + t)[3], 1e-2)
    assert (ours - exact).abs().max() < off * exact.abs().max()


def test_where_p_underflows():
    upper, cov, log_p, _ = chain(6, -25.0)
    assert log_p < -800
    h = hessian(lambda u: mvn_log_cdf(u, cov, rel_tol=1e-5), upper)
    exact = difference(lambda t: chain(6, -25.0 + t)[3], 1e-2)
    # Terms of up to 1,200 to 1e-5.
    assert (h.sum(1) - exact).abs().max() < 0.03 * exact.abs().max() and torch.equal(h, h.T)


def test_float32():
    upper, cov = random_problem(5, 3)
    given = upper, cov
    along = upper / 2, cov / 4
    double = products(lambda u, c: mvn_log_cdf(u, c), given, along)
    single = products(
        lambda u, c: mvn_log_cdf(u, c), [t.float() for t in given], [t.float() for t in along]
    )
    for x, y in zip(single, double, strict=True):
        assert x.dtype == torch.float32 and (x - y).abs().max() < 2e-5 * y.abs().max()


# ---- singular covariances -----------------------------------------------------------------------


@pytest.mark.parametrize(("n", "rank"), [(4, 2), (6, 2), (6, 3)])
def test_singular_through_the_factor(n, rank):
    g = torch.Generator().manual_seed(rank)
    factor = torch.randn(n, rank, generator=g, dtype=DOUBLE)
    upper = factor.norm(dim=1) * (0.6 + torch.rand(n, generator=g, dtype=DOUBLE))
    along = [torch.randn(t.shape, generator=g, dtype=DOUBLE) / 4 for t in (upper, factor)]

    def slopes(t, k):
        u, f = leaves(upper + t * along[0], factor + t * along[1])
        p = mvn_cdf(u, factor=f, abs_tol=1e-8, compute_dtype=DOUBLE)
        return torch.autograd.grad(p, (u, f))[k]

    for call in (
        lambda u, f: mvn_cdf(u, factor=f, abs_tol=1e-5),
        lambda u, f: mvn_cdf(u, f @ f.T, abs_tol=1e-5),
    ):
        for k, mine in enumerate(products(call, (upper, factor), along)):
            exact = difference(lambda t, k=k: slopes(t, k), 1e-3)
            assert (mine - exact).abs().max() < 1e-5 and exact.abs().max() > 1e-2


def test_multiples():
    ones = torch.ones(2, 2, dtype=DOUBLE)
    u = torch.tensor([0.5, 0.7], dtype=DOUBLE)
    h = hessian(lambda u: mvn_cdf(u, ones), u)
    assert h[0, 0] == pytest.approx(-0.5 * phi(0.5), rel=1e-13)
    assert h[0, 1] == h[1, 0] == h[1, 1] == 0
    # A minimum of equal limits, and lines that meet in one point, alone in their batch.
    plane = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, -0.8]], dtype=DOUBLE)
    meet = torch.stack([plane @ plane.T, plane @ plane.T])
    upper = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.2, 0.1]], dtype=DOUBLE)
    (product,) = products(lambda u: mvn_cdf(u, meet).sum(), (upper,), (torch.ones_like(upper),))
    assert product[0].isnan().all() and product[1].isfinite().all()
    assert hessian(lambda u: mvn_cdf(u, ones), torch.full((2,), 0.4, dtype=DOUBLE)).isnan().all()
    apart = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=DOUBLE)
    u = torch.full((2,), 0.4, dtype=DOUBLE)
    assert products(mvn_cdf, (u, ones), (torch.zeros_like(u), apart))[0].isnan().all()
    # Multiples but for rounding, whose limits differ by less than it may move them.
    for gap, kink in ((1e-9, True), (1e-4, False)):
        u = torch.tensor([0.4, 0.4 + gap], dtype=DOUBLE)
        h = hessian(lambda u: mvn_cdf(u, ones.clone().fill_diagonal_(1 + 4e-15)), u)
        assert bool(h.isnan().any()) == kink
    # To cov the same of limits that meet given one variable: X_1 and X_2 are given X_0.
    given = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.5, 1.0]], dtype=DOUBLE)
    cov = given @ given.T
    for limit, kink in ((0.7, True), (0.9, False)):
        upper = torch.tensor([0.4, 0.7, limit], dtype=DOUBLE)
        _, to_cov = products(
            mvn_cdf, (upper, cov), (torch.tensor([1.0, 0, 0], dtype=DOUBLE), torch.zeros_like(cov))
        )
        assert bool(to_cov.isnan().any()) == kink


# ---- edges --------------------------------------------------------------------------------------


def test_infinite_limits_zero_variances_and_nan():
    upper, cov = random_problem(4, 3)
    small = hessian(lambda u: mvn_cdf(u, cov[:3, :3]), upper[:3])
    wide, far = cov.clone(), upper.clone()
    wide[3] = wide[:, 3] = NAN  # not read
    wide[3, 3], far[3] = 1, INF
    h = hessian(lambda u: mvn_cdf(u, wide), far)
    assert torch.equal(h[:3, :3], small) and not h[3].any() and not h[:, 3].any()
    wide[3] = wide[:, 3] = 0
    for limit, factor in ((0.5, 1), (-0.5, 0)):
        far[3] = limit
        h = hessian(lambda u: mvn_cdf(u, wide), far)
        torch.testing.assert_close(h[:3, :3], factor * small, rtol=1e-12, atol=1e-16)
        assert not h[3].any()
    rows = torch.stack([upper, torch.full_like(upper, NAN)])
    for t in products(lambda u, c: mvn_cdf(u, c).sum(), (rows, cov), (rows, cov)):
        assert t.isnan().any()
    (product,) = products(lambda u: mvn_cdf(u, cov).sum(), (rows,), (torch.ones_like(rows),))
    assert product[0].isfinite().all() and product[1].isnan().all()
    empty = torch.zeros(3, 0, dtype=DOUBLE)
    (product,) = products(lambda u: mvn_cdf(u, empty[:0]).sum(), (empty,), (empty,))
    assert product.shape == (3, 0)


@pytest.mark.parametrize("with_lower", [False, True])
def test_log_of_limits_that_contain_nothing(with_lower):
    upper, cov = random_problem(3, 2)
    upper[1] = -INF
    lower = upper - 1 if with_lower else None
    f = lambda u, c: mvn_log_cdf(u, c, lower=lower)
    for t in (*jacfwd(f, (0, 1))(upper, cov), *jacrev(f, (0, 1))(upper, cov)):
        assert not t.any()
    for t in products(f, (upper, cov), (torch.ones_like(upper), cov)):
        assert not t.any()


def test_no_variables():
    empty = torch.zeros(0, dtype=DOUBLE)
    for f in (mvn_cdf, mvn_log_cdf):
        of_none = lambda u, f=f: f(u, u.new_zeros(0, 0))
        assert torch.func.hessian(of_none)(empty).shape == (0, 0)
        assert jacfwd(of_none)(empty).shape == (0,)


def test_backward_passes_among_dual_numbers():
    upper, cov = random_problem(3, 2)
    along = torch.tensor([1.0, -0.5, 0.3], dtype=DOUBLE)
    (expected,) = products(lambda u: mvn_cdf(u, cov), (upper,), (along,))
    for of_tangent in (True, False):
        (leaf,) = leaves(upper)
        with forward_ad.dual_level():
            p = mvn_cdf(forward_ad.make_dual(leaf, along), cov)
            got = forward_ad.unpack_dual(p).tangent if of_tangent else p
            (got,) = torch.autograd.grad(got, leaf)
            got = forward_ad.unpack_dual(got)
        got = got.primal if of_tangent else got.tangent
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_compiled_forward_mode():
    upper, cov = random_problem(3, 2)
    push = lambda u: jvp(lambda t: mvn_cdf(t, cov), (u,), (u.cos(),))[1]
    torch.testing.assert_close(torch.compile(push, backend="eager")(upper), push(upper))


def test_cotangents_that_depend_on_the_input():
    """(p - c)^2 with p = c: the cotangent is zero, its slope is not."""
    upper, cov = random_problem(3, 2)
    c = mvn_cdf(upper, cov)
    h = hessian(lambda u: (mvn_cdf(u, cov) - c).square(), upper)
    slope = gradients(upper, cov)[0]
    torch.testing.assert_close(h, 2 * torch.outer(slope, slope), rtol=1e-12, atol=0)
    by_log = hessian(lambda u: mvn_log_cdf(u, cov).exp(), upper)
    torch.testing.assert_close(
        by_log, hessian(lambda u: mvn_cdf(u, cov), upper), rtol=1e-10, atol=1e-15
    )


# ---- transforms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prob", "complement", "log_prob"])
@pytest.mark.parametrize("argument", [0, 1, 2, 3])
def test_forward_mode_has_the_slopes_of_the_backward(name, argument):
    upper, cov = random_problem(6, 2, batch=(3,))
    given = [upper, cov, -1 - upper, 0.1 * upper]

    def f(x):
        u, c, low, mean = (*given[:argument], x, *given[argument + 1 :])
        r = mvn_cdf(u, c, lower=low, mean=mean, return_info=True)
        return getattr(r, name)

    x = given[argument]
    slope = grad(lambda x: f(x).sum())(x)
    tangent = torch.linspace(-1, 1, x.numel(), dtype=DOUBLE).reshape(x.shape)
    along = (slope * tangent).flatten(1).sum(1)
    value, by_jvp = jvp(f, (x,), (tangent,))
    assert torch.equal(value, f(x))
    torch.testing.assert_close(by_jvp, along, rtol=1e-12, atol=1e-15)
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent)))
        assert torch.equal(out.tangent, by_jvp)
    jacobian = jacfwd(f)(x)
    torch.testing.assert_close(jacobian, jacrev(f)(x), rtol=1e-12, atol=1e-15)
    mapped = vmap(lambda t: jvp(f, (x,), (t,))[1])(torch.stack([tangent, -2 * tangent]))
    torch.testing.assert_close(mapped, torch.stack([along, -2 * along]), rtol=1e-12, atol=1e-15)


def test_forward_mode_of_the_others():
    g = torch.Generator().manual_seed(1)
    factor = torch.randn(6, 4, generator=g, dtype=DOUBLE)
    upper = factor.norm(dim=1)

    def f(a):
        return mvn_cdf(upper, factor=a)

    torch.testing.assert_close(jacfwd(f)(factor), jacrev(f)(factor), rtol=1e-12, atol=1e-15)
    h, k, rho = torch.linspace(-0.9, 0.8, 12, dtype=DOUBLE).reshape(3, 4)
    of_pairs = lambda *a: bvn_cdf(*a).sum()
    for forward, reverse in zip(
        jacfwd(of_pairs, (0, 1, 2))(h, k, rho), jacrev(of_pairs, (0, 1, 2))(h, k, rho), strict=True
    ):
        torch.testing.assert_close(forward, reverse, rtol=1e-13, atol=0)
    assert torch.autograd.gradcheck(bvn_cdf, leaves(h, k, rho), check_forward_ad=True, atol=1e-7)
    moments = lambda u: (
        mvn_cdf(u, factor @ factor.T, method="mendell_elston", return_info=True).log_prob
    )
    torch.testing.assert_close(jacfwd(moments)(upper), jacrev(moments)(upper), rtol=1e-12, atol=0)
    # Where p is not told from zero, and where nothing is there.
    one = torch.ones(1, dtype=DOUBLE)
    for low, high, tangents in ((0.0, 1.0, True), (1.0, 0.0, False)):
        f = lambda u, low=low: mvn_log_cdf(u, torch.eye(1, dtype=DOUBLE), lower=low * one)
        tangent = jvp(f, (high * one,), (one,))[1]
        assert bool(tangent != 0) == tangents and tangent.isfinite()


@pytest.mark.parametrize("output", ["prob", "log_prob"])
def test_hessians_by_all_transforms(output):
    """Forward over forward too, which torch makes zero of, did it not know of the outer level."""
    upper, cov = random_problem(3, 2)

    def f(u, c):
        return getattr(mvn_cdf(u, symmetric(c), return_info=True), output)

    for argument in (0, 1):
        other = [upper, cov]
        x = other[argument]
        of = lambda x, a=argument: f(*(x if k == a else t for k, t in enumerate([upper, cov])))
        expected = hessian(of, x)
        assert expected.abs().max() > 1e-3
        for outer in (jacfwd, jacrev):
            for inner in (jacfwd, jacrev):
                torch.testing.assert_close(outer(inner(of))(x), expected, rtol=1e-10, atol=1e-16)
    mapped = vmap(torch.func.hessian(f))(torch.stack([upper, upper / 2]), torch.stack([cov, cov]))
    torch.testing.assert_close(
        mapped[1], hessian(lambda u: f(u, cov), upper / 2), rtol=1e-10, atol=0
    )
    of_bvn = lambda h: bvn_cdf(h, 0.3 * h, 0.5 + 0.1 * h)
    at = torch.tensor(0.2, dtype=DOUBLE)
    torch.testing.assert_close(
        jacfwd(jacfwd(of_bvn))(at), jacrev(jacrev(of_bvn))(at), rtol=1e-12, atol=0
    )


def test_hessian_of_sampled_rows_is_symmetric():
    upper, cov = random_problem(7, 2, batch=(2,))
    for h in (
        hessian(lambda u: mvn_cdf(u, cov[0], lower=-u - 2), upper[0]),
        jacrev(jacrev(lambda u: mvn_cdf(u, cov[0])))(upper[0]),
    ):
        assert (h - h.T).abs().max() < 1e-15
    whole = hessian(lambda u: mvn_cdf(u, cov).sum(), upper)
    assert torch.equal(whole[1, :, 1], hessian(lambda u: mvn_cdf(u, cov[1]), upper[1]))
    assert not whole[0, :, 1].any()


def test_distribution():
    upper, cov = random_problem(3, 2)
    log_cdf = lambda loc: MultivariateNormal(loc, cov, validate_args=False).log_cdf(upper)
    loc = torch.zeros(3, dtype=DOUBLE)
    expected = hessian(lambda u: mvn_log_cdf(u, cov), upper)
    torch.testing.assert_close(torch.func.hessian(log_cdf)(loc), expected, rtol=1e-10, atol=0)


def test_third_derivatives_are_refused():
    upper, cov = random_problem(4, 1)
    second = torch.func.hessian(lambda u: mvn_cdf(u, cov))
    for third in (grad(lambda u: second(u).sum()), jacfwd(second)):
        with pytest.raises(NotImplementedError, match="mvn_cdf: third derivatives are not built"):
            third(upper)
    (u,) = leaves(upper)
    (first,) = torch.autograd.grad(mvn_cdf(u, cov), u, create_graph=True)
    (twice,) = torch.autograd.grad(first.sum(), u, create_graph=True)
    with pytest.raises(NotImplementedError, match="mvn_cdf: third derivatives are not built"):
        twice.sum().backward()


def test_opcheck():
    upper, cov = random_problem(4, 1, batch=(2,))
    options = (1e-3, 0.0, 2**20, "auto", "auto", "lattice")
    seed = torch.arange(2)
    prob, complement, _, _, n_points, _, n_pivots, log_prob, _ = torch.ops.mvnrob.mvn_cdf(
        upper, cov, None, seed, *options
    )
    values = upper, cov, None, seed, prob, complement, log_prob, n_points, n_pivots
    for grads, flags in (((prob, None), (True, True)), ((None, prob), (False, False))):
        torch.library.opcheck(
            torch.ops.mvnrob.mvn_cdf_hvp.default,
            (*grads, upper, None, cov if flags[1] else None, *values, *options, *flags),
            test_utils=("test_schema", "test_faketensor"),
        )


# ---- work ---------------------------------------------------------------------------------------


@pytest.fixture
def problems(monkeypatch):
    """How many problems mvn_cdf is called for, by their number of variables that have limits."""
    seen, op = [], torch.ops.mvnrob.mvn_cdf

    def recorded(upper, *args):
        seen.extend(int(k) for k in upper.isfinite().sum(1))
        recorded.options.append(args[3:])
        return op(upper, *args)

    recorded.options = []
    monkeypatch.setattr(torch.ops.mvnrob, "mvn_cdf", recorded)
    return seen, recorded.options


def test_cost(problems):
    seen, _ = problems
    n = 7
    upper, cov = random_problem(n, 2)
    (u,) = leaves(upper)
    asked = []
    for create_graph in (False, True):  # the graph alone costs nothing
        seen.clear()
        p = mvn_cdf(u, cov, abs_tol=1e-3)
        (first,) = torch.autograd.grad(p, u, create_graph=create_graph)
        asked.append(sorted(seen))
    assert asked[0] == asked[1]
    seen.clear()
    torch.autograd.grad(first.sum(), u)
    assert sorted(seen) == [n - 2] * (n * (n - 1) // 2) + [n - 1] * n
    seen.clear()
    hessian(lambda u: mvn_cdf(u, cov, abs_tol=1e-3), upper)
    assert seen.count(n - 2) == n * (n - 1)
    # Densities that cannot matter are skipped.
    far = upper.clone()
    far[:3] = 12 * cov.diagonal()[:3].sqrt()
    seen.clear()
    products(lambda u: mvn_cdf(u, cov, abs_tol=1e-3), (far,), (torch.ones_like(far),))
    assert seen.count(n - 2) <= 6


def test_options_reach_the_conditional_problems(problems):
    _, options = problems
    upper, cov = random_problem(8, 1)
    (u,) = leaves(upper)
    p = mvn_cdf(
        u, cov, abs_tol=1e-3, rel_tol=1e-2, method="sov", max_points=4096, compute_dtype=DOUBLE,
        points="sobol",
    )  # fmt: skip
    (first,) = torch.autograd.grad(p, u, create_graph=True)
    options.clear()
    torch.autograd.grad(first.sum(), u)
    assert options
    for given in options:
        assert given[:2] in ((1e-3, 1e-2), (5e-3, 0.0))
        assert given[2:] == (4096, "sov", "float64", "sobol", False)


def test_seed_and_pieces(monkeypatch):
    from mvnrob import _mvn_cdf_conditional

    upper, cov = random_problem(6, 1)

    def product(seed):
        given = products(lambda u, c: mvn_cdf(u, c, seed=seed), (upper, cov), (upper, cov))
        return torch.cat([t.flatten() for t in given])

    whole = product(0)
    assert not torch.equal(whole, product(1))
    monkeypatch.setattr(_mvn_cdf_conditional, "_BYTES", 10_000)
    assert (whole - product(0)).abs().max() < 1e-14


def test_newton_finds_a_maximum():
    """Of a probit likelihood: the Hessian takes it there in a few steps."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, 2, generator=g, dtype=DOUBLE)
    true = torch.tensor([0.8, -0.5], dtype=DOUBLE)
    cov = equicorrelated(3)
    noise = torch.randn(60, 3, generator=g, dtype=DOUBLE) @ torch.linalg.cholesky(cov).T
    sign = torch.where(x @ true + noise > 0, 1.0, -1.0).double()

    def loss(beta):
        signs = sign[:, :, None] * sign[:, None, :]
        return -mvn_log_cdf(sign * (x @ beta), signs * cov).sum()

    beta = torch.zeros(2, dtype=DOUBLE)
    for _ in range(6):
        beta = beta - torch.linalg.solve(torch.func.hessian(loss)(beta), grad(loss)(beta))
    assert grad(loss)(beta).abs().max() < 1e-8
    errors = torch.linalg.inv(torch.func.hessian(loss)(beta)).diagonal().sqrt()
    assert ((beta - true).abs() < 4 * errors).all() and (errors < 0.3).all()
