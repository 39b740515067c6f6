"""mvn_cdf_pathwise, the derivatives of the sampler under a forced plan, and the choice of it."""

import math

import pytest
import torch
from test_mvn_cdf import equicorrelated, random_problem
from test_mvn_cdf_grad import (
    calls,
    chain,
    gradients,
    leaves,
    pathwise_calls,
    symmetric,
    two_factors,
)

from mvnrob import _mvn_cdf_grad, _mvn_cdf_mixed, _mvn_cdf_pathwise, mvn_cdf
from mvnrob._mvn_cdf_conditional import Found

FIXTURES = (calls, pathwise_calls)


def sums(upper, cov, lower, seed, order, n_points=64, compute_dtype="float64"):
    """The integrand's sums, f and 1 - f, over all shifts."""
    out = torch.ops.mvnrob.mvn_cdf_sums(upper, cov, lower, seed, order, n_points, compute_dtype)
    return out[..., :2].sum(1)


def pathwise(upper, cov, lower, order, *, first=0, points=64, weight=None, wants_cov=True,
             compute_dtype="float64", seed=None, factored=False, tilt=None):  # fmt: skip
    rows = len(upper)
    return torch.ops.mvnrob.mvn_cdf_pathwise(
        upper, cov, lower, torch.arange(rows) if seed is None else seed, order,
        torch.full((rows,), first), torch.full((rows,), points),
        torch.ones(rows, 8).double() if weight is None else weight, compute_dtype, wants_cov,
        "lattice", factored, tilt,
    )  # fmt: skip


# ---- one smooth function ------------------------------------------------------------------------

# Round the edges of the register blocks (3, 6), the packs (2 to 16) and with rows that complete.
PLANS = [(1, 1), (2, 1), (3, 3), (6, 6), (7, 3), (8, 7), (13, 13), (20, 9), (34, 33)]


@pytest.mark.parametrize("n, pivots", PLANS)
@pytest.mark.parametrize("rectangular", [False, True])
def test_gradcheck_under_a_forced_plan(n, pivots, rectangular):
    upper, cov = random_problem(n, n, batch=(2,))
    lower = -upper - 0.5
    g = torch.Generator().manual_seed(n)
    order = torch.stack([torch.randperm(n, generator=g)[:pivots] for _ in range(2)])

    def f(u, c, *low):
        return sums(u, symmetric(c), low[0] if low else None, torch.tensor([3, 4]), order)

    given = leaves(upper, cov, *([lower] if rectangular else []))
    # Central differences at 1e-6 of a smooth sum of 512 terms: 1e-6 of it from rounding.
    assert torch.autograd.gradcheck(f, given, eps=1e-6, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n, pivots", [(1, 1), (6, 6), (13, 13), (20, 9)])
@pytest.mark.parametrize("rectangular", [False, True])
def test_tilted_slopes_are_those_of_tilted_sums(n, pivots, rectangular):
    """Along directions of limits and cov, the tilt held fixed: central differences of order 4."""
    upper, cov = random_problem(n, n, batch=(2,))
    upper = upper - 2 * cov.diagonal(dim1=1, dim2=2).sqrt()
    lower = upper - 1.5 if rectangular else None
    order = torch.arange(pivots).flip(0).expand(2, pivots).contiguous()
    g = torch.Generator().manual_seed(n)
    tilt = -torch.rand(2, pivots, generator=g).double()
    along_u, along_l = (torch.randn(2, n, generator=g).double() for _ in range(2))
    along_c = symmetric(torch.randn(2, n, n, generator=g).double())

    def f(h, u=0, low=0, c=0):
        moved = lower if lower is None else lower + low * h * along_l
        out = pathwise(upper + u * h * along_u, cov + c * h * along_c, moved, order, tilt=tilt)
        return out[0].sum(1) * out[6].exp(), out

    value, out = f(0.0)
    unit = out[6].exp()
    directions = [({"u": 1}, (out[1].sum(1) * along_u).sum(1)),
                  ({"c": 1}, (out[3] * along_c).sum((1, 2)))]  # fmt: skip
    if rectangular:
        directions.append(({"low": 1}, (out[2].sum(1) * along_l).sum(1)))
    h = 3e-4
    for which, slope in directions:
        far, near = (f(s * h, **which)[0] - f(-s * h, **which)[0] for s in (2, 1))
        difference = (8 * near - far) / (12 * h)
        # h^4 times a fifth derivative, and rounding over h.
        torch.testing.assert_close(
            slope * unit, difference, rtol=1e-7, atol=1e-9 * float(value.max())
        )


def test_tilted_slopes_far_out():
    """Closed form: one variable, or two that are independent; e itself underflows. And no limit."""
    upper = torch.tensor([[-3.0, math.inf], [-50.0, -1e4]]).double()
    cov = torch.eye(2).double().expand(2, 2, 2)
    tilt = torch.full((2, 2), math.nan).double()
    value, to_upper, *_, log_unit = pathwise(upper, cov, None, torch.tensor([[-1, -2], [-1, -1]]),
                                             tilt=tilt)  # fmt: skip
    slopes = to_upper.sum(1) / value.sum(1)[:, None]
    log_p = torch.special.log_ndtr(upper)
    density = -0.5 * upper**2 - 0.5 * math.log(2 * math.pi)
    expected = torch.where(upper.isfinite(), (density - log_p).exp(), 0.0)
    # log_ndtr itself has 1e-16 of 5e7 at -1e4.
    torch.testing.assert_close(slopes, expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(
        log_unit + (value.mean(1) / 64).log(), log_p.sum(1), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("columns", [3, 9, 20])
def test_a_factor_is_its_covariance(columns):
    g = torch.Generator().manual_seed(columns)
    factor = torch.randn(2, 9, columns, generator=g).double()
    upper = factor.norm(dim=-1) * torch.rand(2, 9, generator=g).double()
    order = torch.arange(min(9, columns)).expand(2, min(9, columns)).contiguous()
    for tilt in (None, torch.full(order.shape, -0.3).double()):
        by_factor = pathwise(upper, factor, None, order, wants_cov=False, factored=True, tilt=tilt)
        by_cov = pathwise(upper, factor @ factor.mT, None, order, wants_cov=False, tilt=tilt)
        for x, y in zip(by_factor[:3], by_cov[:3], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-7 * float(y.abs().max()))


@pytest.mark.parametrize("n, rank, pivots", [(5, 2, 2), (6, 3, 3), (12, 5, 5), (9, 4, 3)])
@pytest.mark.parametrize("rectangular", [False, True])
def test_gradcheck_of_a_singular_covariance_through_its_factor(n, rank, pivots, rectangular):
    """Rows without variance left bound a pivot; one of them, antiparallel, from below."""
    g = torch.Generator().manual_seed(n)
    root = torch.randn(2, n - 1, rank, generator=g, dtype=torch.float64)
    upper = root.norm(dim=-1) * (0.3 + torch.rand(2, n - 1, generator=g, dtype=torch.float64))
    upper = torch.cat([upper, 2 * upper[:, :1]], 1)
    order = torch.arange(pivots).expand(2, pivots).contiguous()

    def f(u, b, *low):
        b = torch.cat([b, -1.5 * b[:, :1]], 1)
        return sums(u, b @ b.mT, low[0] if low else None, torch.tensor([3, 4]), order)

    # Wide enough that no sample's interval is about to close: there the integrand has a kink.
    given = leaves(upper, root, *([-2 * upper - 1] if rectangular else []))
    assert torch.autograd.gradcheck(f, given, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_other_sums_have_no_gradient():
    upper, cov = random_problem(3, 1, batch=(1,))
    order, seed = torch.tensor([[0, 1, 2]]), torch.tensor([0])
    out = torch.ops.mvnrob.mvn_cdf_sums(*leaves(upper, cov), None, seed, order, 64, "float64")
    with pytest.raises(NotImplementedError, match="mvn_cdf_sums: gradients are built for the sums"):
        out.sum().backward()


def test_slopes_have_no_gradient():
    """Not even a silent one: a second derivative of the sums."""
    upper, cov = random_problem(3, 1, batch=(1,))
    u, c = leaves(upper, cov)
    total = sums(u, c, None, torch.tensor([0]), torch.tensor([[0, 1, 2]]))[:, 0].sum()
    (slope,) = torch.autograd.grad(total, u, create_graph=True)
    with pytest.raises(
        NotImplementedError, match="mvn_cdf_pathwise: derivatives of slopes are not"
    ):
        (slope.sum() + u.sum()).backward()


@pytest.mark.parametrize("rectangular", [False, True])
def test_values_are_the_sampler_s(rectangular):
    upper, cov = random_problem(20, 3, batch=(3,))
    lower = -2 * upper if rectangular else None
    order = torch.stack([torch.randperm(20)[:9] for _ in range(3)])
    seed = torch.arange(3)
    for dtype, tolerance in (("float64", 1e-13), ("float32", 1e-5)):
        expected = torch.ops.mvnrob.mvn_cdf_sums(upper, cov, lower, seed, order, 192, dtype)
        value = pathwise(upper, cov, lower, order, points=192, compute_dtype=dtype)[0]
        torch.testing.assert_close(value, expected[..., 0], rtol=tolerance, atol=0)


def test_float32_samples_are_the_float64_ones_to_rounding():
    upper, cov = random_problem(30, 3, batch=(2,))
    order = torch.full((2, 12), -1)
    single, double = (
        pathwise(upper, cov, -2 * upper, order, points=512, compute_dtype=d)
        for d in ("float32", "float64")
    )
    # 24 bits of the points: slopes move by what Phi^-1 makes of 1e-7 near 0 and 1.
    for x, y in zip(single[1:4], double[1:4], strict=True):
        assert (x - y).abs().max() < 1e-3 * y.abs().max()


# ---- plan, points, weights ----------------------------------------------------------------------


def test_greedy_order_is_mvn_cdf_s():
    """-1 takes the pivots of mvn_cdf in turn, -2 ends them; both name the same plan."""
    upper, cov = random_problem(12, 5, batch=(2,))
    greedy = pathwise(upper, cov, None, torch.full((2, 12), -1))
    r = torch.nn.functional.normalize(cov, dim=-1)
    assert greedy[5].tolist() == [12, 12] and r.isfinite().all()
    value = mvn_cdf(upper, cov, seed=torch.arange(2), method="sov", max_points=512,
                    compute_dtype=torch.float64)  # fmt: skip
    torch.testing.assert_close(greedy[0].sum(1) / 512, value, rtol=1e-12, atol=0)
    short = torch.tensor([[-1] * 5 + [-2] * 3, [-1] * 8])
    found = pathwise(upper, cov, None, short)
    assert found[5].tolist() == [5, 8]
    assert torch.equal(found[1][1], pathwise(upper, cov, None, torch.full((2, 8), -1))[1][1])


def test_points_add_up_and_weights_are_used():
    upper, cov = random_problem(9, 2, batch=(2,))
    order = torch.full((2, 6), -1)
    whole = pathwise(upper, cov, None, order, points=256)
    parts = [pathwise(upper, cov, None, order, first=f, points=p) for f, p in ((0, 64), (64, 192))]
    for i in (0, 1, 3):
        torch.testing.assert_close(parts[0][i] + parts[1][i], whole[i], rtol=1e-10, atol=1e-10)
    single = [
        pathwise(upper, cov, None, order, points=256, weight=torch.eye(8)[s].expand(2, 8).double())
        for s in range(8)
    ]
    by_shift = torch.stack([t[3] for t in single], 1)
    torch.testing.assert_close(by_shift.sum(1), whole[3], rtol=1e-10, atol=1e-10)
    # The variance of the sum of eight is eight times that of one.
    torch.testing.assert_close(8 * by_shift.var(1), whole[4], rtol=1e-8, atol=1e-12)


def test_rows_do_not_depend_on_their_company():
    upper, cov = random_problem(11, 2, batch=(4,))
    order = torch.full((4, 11), -1)
    whole = pathwise(upper, cov, None, order)
    for b in range(4):
        alone = pathwise(upper[b : b + 1], cov[b : b + 1], None, order[:1], seed=torch.tensor([b]))
        for x, y in zip(whole, alone, strict=True):
            assert torch.equal(x[b], y[0])


def test_variables_without_limits_are_left_out():
    upper, cov = random_problem(5, 2, batch=(1,))
    wide = torch.eye(8).double()[None] * 2
    wide[:, :5, :5] = cov
    wide[:, 5, 0] = wide[:, 0, 5] = 0.3
    limits = torch.cat([upper, torch.full((1, 3), math.inf).double()], 1)
    few = pathwise(upper, cov, None, torch.full((1, 5), -1))
    many = pathwise(limits, wide, None, torch.full((1, 8), -1))
    assert torch.equal(many[0], few[0]) and torch.equal(many[1][..., :5], few[1])
    assert not many[1][..., 5:].any() and torch.equal(many[3][:, :5, :5], few[3])


def test_rows_without_an_answer_are_nan():
    upper, cov = random_problem(4, 2, batch=(3,))
    upper[0, 1] = math.nan
    cov[1, 0, 1] = cov[1, 1, 0] = 1e3
    out = pathwise(upper, cov, None, torch.full((3, 4), -1))
    for t in out[:5]:
        assert t[:2].isnan().all() and t[2].isfinite().all()


def test_ties_share_the_slope():
    """Three copies of one variable, and a negative one whose lower limit is theirs."""
    upper = torch.tensor([[0.4, 0.4, 0.4, 9.0, 1.0]]).double()
    lower = torch.tensor([[-9.0, -9.0, -9.0, -0.4, -9.0]]).double()
    root = torch.tensor([[1.0, 0], [1, 0], [1, 0], [-1, 0], [0.6, 0.8]]).double()
    cov = (root @ root.T)[None]
    out = pathwise(upper, cov, lower, torch.full((1, 2), -1), points=512)
    one = pathwise(
        upper[:, [0, 4]], cov[:, [0, 4]][:, :, [0, 4]], lower[:, [0, 4]], torch.full((1, 2), -1),
        points=512,
    )  # fmt: skip
    assert out[5].tolist() == [2]
    total = out[1][..., :3].sum(-1) - out[2][..., 3]
    torch.testing.assert_close(total, one[1][..., 0], rtol=1e-9, atol=0)
    for copy in (out[1][..., 1], out[1][..., 2], -out[2][..., 3]):
        torch.testing.assert_close(copy, out[1][..., 0], rtol=1e-12, atol=0)


def test_ties_on_one_side_share_its_slope():
    """Two copies, whose limits meet on both sides, and a negative one that meets the lower ones."""
    upper = torch.tensor([[0.4, 0.4, 1.0, 1.0]]).double()
    lower = torch.tensor([[-1.0, -1.0, -9.0, -9.0]]).double()
    root = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [0.6, 0.8]]).double()
    for turn in ([0, 1, 2, 3], [2, 0, 1, 3], [1, 2, 0, 3]):  # whichever is found first
        out = pathwise(
            upper[:, turn], (root @ root.T)[None][:, turn][:, :, turn], lower[:, turn],
            torch.full((1, 2), -1), points=512,
        )  # fmt: skip
        back = torch.tensor(turn).argsort()
        to_upper, to_lower = (t[0][:, back] for t in out[1:3])
        assert (to_lower[:, 0] < 0).all() and (to_upper[:, 0] > 0).all()
        torch.testing.assert_close(to_upper[:, 1], to_upper[:, 0], rtol=1e-12, atol=0)
        torch.testing.assert_close(to_lower[:, 1], to_lower[:, 0], rtol=1e-12, atol=0)
        torch.testing.assert_close(-to_upper[:, 2], to_lower[:, 0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"order": torch.tensor([[0, 0]])}, "order must name distinct variables"),
        ({"order": torch.tensor([[0, -1]])}, "order must name distinct variables"),
        ({"order": torch.tensor([[-2, 0]])}, "order must name distinct variables"),
        ({"order": torch.tensor([[0, 1, 2, 3]])}, "order must be int64 of shape"),
        ({"points": 32}, "first and points must be multiples of 64"),
        ({"points": 0}, "first and points must be multiples of 64"),
        ({"first": -64}, "first and points must be multiples of 64"),
        ({"weight": torch.ones(1, 7).double()}, "weight must be float64 of shape"),
        ({"compute_dtype": "auto"}, "compute_dtype must be float32 or float64"),
        ({"factored": True}, "wants_cov must be False with a factor"),
        ({"tilt": torch.zeros(1, 3).double()}, "tilt must be float64 of the shape of order"),
        ({"tilt": torch.zeros(1, 2)}, "tilt must be float64 of the shape of order"),
        (
            {"tilt": torch.zeros(1, 2).double(), "compute_dtype": "float32"},
            "compute_dtype must be float64 with a tilt",
        ),
    ],
)
def test_bad_calls(change, message):
    upper, cov = random_problem(3, 1, batch=(1,))
    options = {"order": torch.tensor([[0, 1]]), **change}
    with pytest.raises(RuntimeError, match=f"mvn_cdf_pathwise: {message}"):
        pathwise(upper, cov, None, options.pop("order"), **options)


def test_opcheck():
    upper, cov = random_problem(4, 1, batch=(2,))
    args = (
        upper, cov, -2 * upper, torch.tensor([1, 2]), torch.full((2, 3), -1), torch.tensor([0, 0]),
        torch.tensor([64, 64]), torch.ones(2, 8).double(), "float64", True,
    )  # fmt: skip
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.mvnrob.mvn_cdf_pathwise.default, args, test_utils=tests)


# ---- in mvn_cdf's backward ----------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 99])
@pytest.mark.parametrize("tol", [1e-3, 1e-4])
def test_against_exact_derivatives(n, tol, pathwise_calls, monkeypatch):
    monkeypatch.setattr(_mvn_cdf_grad, "_AFFORDABLE", 0.0)  # pathwise whatever it costs
    (upper, lower, b, d), exact = two_factors(n, n)
    prob = mvn_cdf(upper, torch.diag(d * d) + b @ b.T, lower=lower, abs_tol=tol)
    ours = torch.autograd.grad(prob, (upper, lower, b, d))
    assert pathwise_calls
    for x, y in zip(ours[:2], exact[:2], strict=True):
        # Slopes stop at a 99 % bound of tol in units of the standard deviations, above .5.
        assert (x - y).abs().max() < 2 * tol
    for x, y in zip(ours[2:], exact[2:], strict=True):
        # Sums of n pairs of up to tol / s^2 each at 99 %, errors nearly independent.
        assert (x - y).abs().max() < 4 * tol * n**0.5


@pytest.mark.parametrize("points", ["lattice", "richtmyer", "sobol"])
def test_the_same_points_as_the_sums(points):
    upper, cov = random_problem(9, 3)
    seed, order = torch.tensor([5]), torch.arange(9)[None]
    sums = torch.ops.mvnrob.mvn_cdf_sums(
        upper[None], cov[None], None, seed, order, 192, "float64", points
    )
    value = torch.ops.mvnrob.mvn_cdf_pathwise(
        upper[None], cov[None], None, seed, order, torch.zeros(1, dtype=torch.int64),
        torch.tensor([192]), torch.ones(1, 8).double(), "float64", False, points,
    )[0]  # fmt: skip
    torch.testing.assert_close(value, sums[..., 0], atol=0, rtol=1e-13)


def test_choice(calls, pathwise_calls):
    """What can be afforded: conditional probabilities; otherwise, and for digits of a small p, the
    samples' slopes."""
    upper, cov = random_problem(60, 60)
    (u,) = leaves(upper[:9])
    mvn_cdf(u, cov[:9, :9], abs_tol=1e-4).backward()
    assert calls and not pathwise_calls
    calls.clear()
    pathwise_calls.clear()
    (u,) = leaves(upper)
    mvn_cdf(u, cov, abs_tol=1e-2).backward()
    assert pathwise_calls and not calls
    pathwise_calls.clear()
    (u,) = leaves(upper - 3)
    calls.clear()
    mvn_cdf(u, cov, abs_tol=0.0, rel_tol=1e-2).backward()
    # A few whose own bound is above the tolerance are conditional probabilities all the same.
    assert pathwise_calls and sum(len(args[0]) for args, _ in calls) < 6


def test_pairs_that_the_samples_do_not_tell_are_computed(monkeypatch, calls, pathwise_calls):
    """A singular covariance: all of its pairs are slopes of conditional problems, a problem for each
    variable."""
    g = torch.Generator().manual_seed(1)
    root = torch.randn(20, 6, generator=g, dtype=torch.float64)
    cov = root @ root.T
    upper = 1.5 * cov.diagonal().sqrt()
    calls.clear()
    gradients(upper, cov, abs_tol=1e-2)
    assert pathwise_calls[0][1][5].tolist() == [6]
    others = [len(args[0]) for args, _ in pathwise_calls if not args[9]]
    assert 15 < max(others) <= 20 and sum(len(args[0]) for args, _ in calls) < 19
    # Of a regular one the samples tell some pairs.
    full = cov + 0.5 * torch.eye(20).double()
    pathwise_calls.clear()
    seen = []
    of_pairs = _mvn_cdf_mixed.of_pairs
    monkeypatch.setattr(
        _mvn_cdf_mixed, "of_pairs", lambda *args: seen.append(args[2]) or of_pairs(*args)
    )
    gradients(upper, full, abs_tol=1e-2)
    assert 0 < len(seen[0].row) < 20 * 19 // 2


def test_error_of_the_slopes_is_covered(monkeypatch):
    """Over seeds, the spread of pathwise slopes is what their tolerance promises, at 99 %."""
    monkeypatch.setattr(_mvn_cdf_grad, "_AFFORDABLE", 0.0)
    upper = torch.linspace(0.2, 2.0, 16).double()
    cov = equicorrelated(16)
    rows = 60
    u = upper.expand(rows, 16).clone().requires_grad_()
    c = cov.expand(rows, 16, 16)
    mvn_cdf(u, c, abs_tol=1e-3, seed=torch.arange(rows)).sum().backward()
    with torch.enable_grad():
        (tight,) = leaves(upper)
        monkeypatch.setattr(_mvn_cdf_grad, "_AFFORDABLE", 1e9)
        mvn_cdf(tight, cov, abs_tol=1e-6, compute_dtype=torch.float64).backward()
    misses = ((u.grad - tight.grad).abs() > 1e-3).any(1).sum()
    # The worst of 16 slopes is at most tol at 99 %: 4 of 60 have odds of 3e-3.
    assert misses <= 3


@pytest.mark.parametrize("n, limit", [(20, -2.5), (6, -4.0)])
def test_error_of_tilted_slopes_is_covered(n, limit):
    """Over seeds: the worst slope's error is within its 99 % bound, and the tolerance, relative to the
    largest, is kept."""
    upper, cov, _, exact = chain(n, limit)
    rows = 200
    how = _mvn_cdf_pathwise.Samples(
        torch.arange(rows), torch.ones(rows, n, dtype=torch.bool), torch.full((rows,), 4096),
        torch.full((rows,), n), torch.ones(rows, n).double(), 0.0, 1e-2, "float64", "lattice", False,
        False, True, True,
    )  # fmt: skip
    out = _mvn_cdf_pathwise.slopes((upper.expand(rows, n), None), cov.expand(rows, n, n), how)
    off = (out.upper - exact).abs()
    assert (out.error.amax(1) < 1e-2 * exact.max()).float().mean() > 0.9
    # Binomial: 9 of 200 and more at 1 % have odds of 4e-4.
    assert int((off[:, 0] > out.error[:, 0]).sum()) <= 8
    assert int((off[:, n // 2] > out.error[:, n // 2]).sum()) <= 8
    assert int((off.amax(1) > 1e-2 * exact.max()).sum()) <= 8


# ---- what samples do not know of limits ---------------------------------------------------------


def nearly_decided(apart, dtype=torch.float64, n=8):
    """Limits and factors of rows in which one variable is another, the sum of three, the sum of all others, but for
    so many standard deviations; and of one without such variables."""
    g = torch.Generator().manual_seed(8)
    unit = torch.nn.functional.normalize
    factor = unit(torch.randn(4, n, n, generator=g, dtype=torch.float64), dim=2)
    noise = apart * unit(torch.randn(3, n, generator=g, dtype=torch.float64), dim=1)
    for row, others in enumerate((1, 3, n - 1)):
        factor[row, -1] = unit(factor[row, :others].sum(0), dim=0) + noise[row]
    upper = 0.5 + 0.7 * torch.randn(4, n, generator=g, dtype=torch.float64)
    upper[0, -1] = upper[0, 0] + apart * torch.randn((), generator=g, dtype=torch.float64)
    return upper.to(dtype), unit(factor, dim=2).to(dtype)


def slopes_to_limits(upper, lower, seed=None, **options):
    given = leaves(*(t for t in (upper, lower) if t is not None))
    low = None if lower is None else given[1]
    seed = torch.arange(len(upper)) if seed is None else seed
    r = mvn_cdf(given[0], lower=low, seed=seed, return_info=True, **options)
    loss = r.log_prob if options.get("rel_tol") else r.prob
    return torch.stack(torch.autograd.grad(loss.sum(), given), 1)


@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize(
    ("name", "dtype", "apart"),
    [
        ("cov", torch.float64, 1e-2),
        ("cov", torch.float64, 1e-4),
        ("factor", torch.float64, 1e-4),
        ("cov", torch.float32, 1e-2),
        ("factor", torch.float32, 1e-3),
    ],
)
def test_variables_that_others_nearly_decide(
    name, dtype, apart, rectangular, monkeypatch, calls, pathwise_calls
):
    """Few points meet a step in the integrand, and their spread does not see it: these are conditional
    probabilities, within the tolerance whatever the distance."""
    upper, factor = (t.repeat_interleave(4, 0) for t in nearly_decided(apart, dtype))
    lower = -1.2 - upper.abs() if rectangular else None
    matrix = {name: factor if name == "factor" else factor @ factor.mT}
    monkeypatch.setattr(_mvn_cdf_grad, "_AFFORDABLE", 0.0)
    ours = slopes_to_limits(upper, lower, abs_tol=1e-3, **matrix)
    assert pathwise_calls and sum(len(args[0]) for args, _ in calls[1:]) < 0.8 * ours.numel()
    seed = torch.tensor([5])
    alone = {name: matrix[name][5:6]}
    alone = slopes_to_limits(
        upper[5:6], None if lower is None else lower[5:6], seed, abs_tol=1e-3, **alone
    )
    assert torch.equal(alone[0], ours[5])
    pathwise_calls.clear()
    monkeypatch.setattr(_mvn_cdf_grad, "_AFFORDABLE", math.inf)
    monkeypatch.setattr(_mvn_cdf_grad, "COST", 1000)
    theirs = slopes_to_limits(upper, lower, abs_tol=5e-5, **matrix)
    assert not pathwise_calls
    assert (ours - theirs).abs().max() < 1e-3 < 0.1 * theirs.abs().max()


@pytest.mark.parametrize("nothing", [math.inf, math.nan])
@pytest.mark.parametrize("of_log", [False, True])
def test_the_better_known_slope_is_kept(of_log, nothing, monkeypatch):
    """Of a conditional probability that fails, or is known less than the samples; of variables that others nearly
    decide, whose samples do not know their own error, unless they contradict it."""
    upper, factor = nearly_decided(1e-3)
    options = {"abs_tol": 1e-3}
    if of_log:
        upper, options = upper - 2.5, {"abs_tol": 0.0, "rel_tol": 1e-2}
    by_samples, probabilities = _mvn_cdf_grad._by_samples, _mvn_cdf_grad.conditional_and_bound
    seen, change = [], None
    asked = torch.zeros_like(upper, dtype=torch.bool)

    def unsure(plan):  # of every slope
        samples = by_samples(plan)
        seen.append(samples._replace(tolerance=0 * samples.tolerance))
        return seen[-1]

    def changed(rows, units, *how):
        asked[units.row, units.index[:, 0]] = True
        return change(units, *probabilities(rows, units, *how))

    monkeypatch.setattr(_mvn_cdf_grad, "_AFFORDABLE", 0.0)
    monkeypatch.setattr(_mvn_cdf_grad, "_by_samples", unsure)
    monkeypatch.setattr(_mvn_cdf_grad, "conditional_and_bound", changed)

    def ours(how):
        nonlocal change
        change = how
        return slopes_to_limits(upper, None, cov=factor @ factor.mT, **options)[:, 0]

    failed = ours(lambda units, value, bound: Found(0 * value, nothing * bound))
    samples = seen[0]
    sampled = samples.limits[:, 0]
    assert (failed - sampled).abs().max() < 1e-12 * sampled.abs().max()
    better = ours(lambda units, value, bound: Found(0 * value + 1e3, 0 * value))
    assert torch.equal(better > 500, asked) and asked.sum() > 20
    known = samples.bound < 400
    worse = ours(lambda units, value, bound: Found(0 * value + 1e3, 0 * value + 400))
    assert torch.equal(worse > 500, asked & (samples.steep | ~known))
    alike = ours(lambda units, value, bound: Found(0 * value + 1e3, 0 * value + 2e3))
    assert torch.equal(alike > 500, asked & (samples.bound > 2e3))
    assert samples.steep[:3].any(1).all() and not samples.steep[3].any()
