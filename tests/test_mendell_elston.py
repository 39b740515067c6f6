"""mvn_cdf(method="mendell_elston"): truncated normals, known answers, laws, edges, gradients; and the
CUDA kernels' bodies on the shim against the CPU."""

import itertools
import math
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from test_mvn_cdf import EDGES, random_problem

from mvnrob import Status, bvn_cdf, mvn_cdf, mvn_log_cdf
from mvnrob._mendell_elston import mendell_elston_reference

sys.path.insert(0, str(Path(__file__).parent / "native"))
import native_build

INF, NAN = math.inf, math.nan
ISA = next(isa for isa in ("avx2", "generic") if not native_build.missing_features(isa))


def sweep(upper, cov, lower=None, **options):
    return mvn_cdf(
        upper, cov, lower=lower, method="mendell_elston", return_info=True, **options
    )  # fmt: skip


def rectangle(n, seed, batch=()):
    upper, cov = random_problem(n, seed, batch=batch)
    return upper, cov, -upper.abs() - 0.5 * cov.diagonal(dim1=-2, dim2=-1).sqrt()


def compile_ahead():
    native_build.module_file("math_bindings.cpp", ISA)
    native_build.module_file("shim_kernel_bindings.cpp", ISA)


# ---- one truncated normal -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native():
    return native_build.load("math_bindings.cpp", ISA)


def exact(a, b):
    """log_mass, mean - a, b - mean, variance, 1 - variance by mpmath, digits to spare."""
    far = max((abs(x) for x in (a, b) if math.isfinite(x)), default=1)
    width = b - a if math.isfinite(b - a) else 1.0
    with mpmath.workdps(
        60 + int(6 * math.log10(max(far, 1))) + int(6 * max(0, -math.log10(width)))
    ):
        if a + b > 0:
            log, low, high, *spread = exact(-b, -a)
            return log, high, low, *spread
        a, b = mpmath.mpf(a), mpmath.mpf(b)

        def tail(x):
            return mpmath.erfc(-x / mpmath.sqrt(2)) / 2 if x != -INF else mpmath.mpf(0)

        def density(x):
            return mpmath.npdf(x) if abs(x) != INF else mpmath.mpf(0)

        mass = tail(b) - tail(a)
        low, high = density(a) / mass, density(b) / mass
        mean = low - high
        second = (a * low if a != -INF else 0) - b * high
        return (
            float(mpmath.log(mass)),
            float(mean - a),
            float(b - mean),
            float(1 + second - mean**2),
            float(mean**2 - second),
        )


HALF_LINES = [-1e4, -300.0, -40.0, -10.0, -5.0, -3.001, -3.0, -2.0, -0.5, 0.0, 0.7, 3.0, 8.0, 37.0]
INTERVALS = [
    (centre - width / 2, centre + width / 2)
    for centre in (0.0, 0.3, -1.0, 2.5, -6.0, 12.0, -40.0, 40.0, -1e3, 1e4)
    for width in (1e-12, 1e-6, 1e-3, 0.02, 0.3, 1.0, 2.0, 6.0, 90.0)
]


def test_truncated_normal(native):
    """Against mpmath: half-lines to 1e4, intervals from 1e-12 wide, in either tail."""
    limits = [(-INF, b) for b in HALF_LINES] + [(-b, INF) for b in HALF_LINES] + INTERVALS
    # A width below the spacing of the centre's neighbours leaves nothing.
    limits = [(a, b) for a, b in limits if a < b]
    found = native.truncated(*(np.array(x) for x in zip(*limits, strict=True)))
    for (a, b), fields in zip(limits, found, strict=True):
        log_mass, _, variance, shrink, from_lower, to_upper, at_lower, at_upper = fields
        log, low, high, spread, narrowing = exact(a, b)
        assert log_mass == pytest.approx(log, rel=1e-14), (a, b)
        assert variance == pytest.approx(spread, rel=5e-13), (a, b)
        assert shrink == pytest.approx(narrowing, rel=1e-12), (a, b)
        # The limit nearer to the mean is the one that matters.
        near = min(low, high)
        for ours, truth in ((from_lower, low), (to_upper, high)):
            if math.isfinite(truth):
                assert abs(ours - truth) <= 3e-14 * max(truth, 10 * near, 1e-2), (a, b)
        for slope, x in ((at_lower, a), (at_upper, b)):
            truth = math.exp(-0.5 * x * x - log) / math.sqrt(2 * math.pi) if abs(x) < 30 else None
            if truth is not None:
                assert slope == pytest.approx(truth, rel=1e-12), (a, b)


def test_two_log_interval(native):
    a = np.array([-1.0, -9.0, -12.0, -3.5, 5.0, -40.0, -INF])
    b = np.array([2.0, 9.5, 11.0, 3.2, 6.0, -39.0, 8.0])
    found = native.two_log_interval(a, b)
    for x, y, ours in zip(a, b, found, strict=True):
        assert ours == pytest.approx(2 * exact(x, y)[0], rel=1e-13)


# ---- known answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 9, 33, 70])
@pytest.mark.parametrize("rectangular", [False, True])
def test_matches_reference(n, rectangular):
    upper, cov, lower = rectangle(n, n)
    lower = lower if rectangular else None
    r = sweep(upper, cov, lower)
    log_prob, _ = mendell_elston_reference(upper, cov, lower)
    assert abs(float(r.log_prob - log_prob)) < 1e-12 * n
    assert float(r.prob) == pytest.approx(math.exp(r.log_prob), rel=1e-15)
    assert r.status == (Status.EXACT if n == 1 else Status.APPROXIMATE)
    assert (r.n_points, r.n_active, r.n_pivots) == (0, n, n)
    if n > 1:
        assert r.error.isnan() and r.log_error.isnan()


def test_many_correlated_variables():
    """What counts as rounding of a variance must not grow with every pivot."""
    n = 199
    cov = torch.full((n, n), 0.75, dtype=torch.float64).fill_diagonal_(1.0)
    upper = torch.linspace(0.7, 4, n).double()
    log_prob, _ = mendell_elston_reference(upper, cov)
    r = sweep(upper, cov)
    assert r.n_pivots == n and abs(float(r.log_prob - log_prob)) < 1e-11


@pytest.mark.parametrize("tail", [-40.0, -3.0, 0.0, 3.0, 9.0])
def test_independent_variables_are_exact_in_both_tails(tail):
    upper = tail + torch.arange(6).double() / 4
    variance = torch.arange(1, 7).double() ** 2
    r = sweep(upper * variance.sqrt(), torch.diag(variance))
    with mpmath.workdps(60):
        exactly = mpmath.fprod(mpmath.ncdf(float(x)) for x in upper)
        log, rest = float(mpmath.log(exactly)), float(1 - exactly)
    assert float(r.log_prob) == pytest.approx(log, rel=1e-14)
    assert float(r.complement) == pytest.approx(rest, rel=1e-13)


def test_two_variables():
    """One step given a truncated normal: its error is that of a normal for a skew-normal variable."""
    grid = torch.linspace(-2, 2, 9).double()
    h, k = (x.flatten() for x in torch.meshgrid(grid, grid, indexing="ij"))
    for rho, most in ((-0.9, 0.024), (-0.5, 0.002), (0.0, 1e-15), (0.5, 0.0012), (0.9, 0.013)):
        cov = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
        off = sweep(torch.stack([h, k], 1), cov).prob - bvn_cdf(h, k, torch.tensor(rho).double())
        assert off.abs().max() <= most, rho


def test_orthants():
    """Equicorrelated orthants, whose answer is known: P(X <= 0) = 1 / (n + 1) at correlation 1/2."""
    for n in (2, 9, 49, 99):
        cov = torch.full((n, n), 0.5, dtype=torch.float64).fill_diagonal_(1.0)
        assert abs(float(sweep(torch.zeros(n).double(), cov).prob) - 1 / (n + 1)) < 0.004


# ---- laws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rectangular", [False, True])
def test_order_and_scale_of_the_variables_do_not_matter(rectangular):
    upper, cov, lower = rectangle(12, 4)
    scale = torch.linspace(0.2, 30, 12).double()
    at = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    one = sweep(upper, cov, lower if rectangular else None)
    other = sweep(
        (scale * upper)[at],
        (cov * torch.outer(scale, scale))[at][:, at],
        (scale * lower)[at] if rectangular else None,
    )
    assert float(one.log_prob) == pytest.approx(float(other.log_prob), rel=1e-12)


def test_mean_moves_the_limits():
    upper, cov, lower = rectangle(6, 5)
    mean = torch.linspace(-1, 1, 6).double()
    one, other = sweep(upper, cov, lower, mean=mean), sweep(upper - mean, cov, lower - mean)
    assert torch.equal(one.prob, other.prob)


@pytest.mark.parametrize("copies", [2, 7, 49])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates_count_once(copies, dtype):
    upper, cov = (t.to(dtype) for t in random_problem(6, 9))
    index = torch.arange(6).repeat(copies)
    sign = torch.where(torch.arange(6 * copies) % 5 == 4, 2.0, 1.0).to(dtype)  # multiples, too
    once = sweep(upper, cov)
    many = sweep(upper[index] * sign, cov[index][:, index] * torch.outer(sign, sign))
    assert many.n_pivots == 6 and many.n_active == 6 * copies
    assert float(once.prob) == pytest.approx(
        float(many.prob), rel=1e-10 if dtype.itemsize == 8 else 1e-5
    )


def test_antiparallel_is_an_interval():
    upper, cov, lower = rectangle(5, 10)
    half = torch.cat([torch.eye(5), -torch.eye(5)]).double()
    both = sweep(torch.cat([upper, -lower]), half @ cov @ half.T)
    interval = sweep(upper, cov, lower)
    assert both.n_pivots == 5
    # Another order, as limits are ordered one at a time: both are approximations of one answer.
    truth = mvn_cdf(upper, cov, lower=lower, abs_tol=1e-4)
    assert abs(both.prob - truth) < 0.02 and abs(interval.prob - truth) < 0.02


def test_multiples_of_one_variable_are_exact():
    scale = torch.tensor([1.0, -2.0, 4.0, 0.5, -1.0]).double()
    upper = torch.tensor([3.0, 1.0, 5.0, 1.0, 2.0]).double()
    r = sweep(upper, torch.outer(scale, scale))
    truth = mvn_cdf(upper, torch.outer(scale, scale))
    assert r.status == Status.EXACT and r.n_pivots == 1
    assert abs(r.prob - truth) <= r.error and 0 < r.error < 1e-14
    none = sweep(torch.tensor([-1.0, -1.0]), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    assert none.prob == 0 and none.complement == 1 and none.log_prob == -INF


def test_singular_covariances_need_nothing():
    """Rank 4 of 20: no worse than at full rank, and continuous there."""
    upper, cov = random_problem(20, 3, rank=4)
    r = sweep(upper, cov)
    near = sweep(upper, cov + 1e-7 * torch.diag(cov.diagonal()))
    truth = mvn_cdf(upper, cov, abs_tol=1e-4)
    assert abs(r.prob - truth) < 0.02 and abs(r.prob - near.prob) < 1e-5


def test_variables_that_cannot_matter_are_left_out():
    upper, cov = random_problem(8, 2)
    wide = torch.cat([upper, torch.full((30,), 60.0).double()])
    big = torch.block_diag(cov, torch.eye(30).double())
    big[:8, 8:] = 0.01
    big[8:, :8] = 0.01
    few, many = sweep(upper, cov), sweep(wide, big)
    assert many.n_active == 38 and many.n_pivots == 8
    assert float(few.log_prob) == pytest.approx(float(many.log_prob), rel=1e-15)


def exact_sweep(upper, lower, cov):
    """log p of the recursion itself, in 200 digits."""
    n = len(upper)
    with mpmath.workdps(200):
        s = mpmath.matrix(cov.tolist())
        u, low = ([mpmath.mpf(x) for x in t.tolist()] for t in (upper, lower))
        m, left, log_prob = [mpmath.mpf(0)] * n, list(range(n)), mpmath.mpf(0)
        while left:
            limits = {
                i: ((low[i] - m[i]) / mpmath.sqrt(s[i, i]), (u[i] - m[i]) / mpmath.sqrt(s[i, i]))
                for i in left
            }
            tail = {i: (-b, -a) if a + b > 0 else (a, b) for i, (a, b) in limits.items()}
            mass = {i: mpmath.ncdf(b) - mpmath.ncdf(a) for i, (a, b) in tail.items()}
            j = min(left, key=mass.get)
            left.remove(j)
            a, b = limits[j]
            at_lower, at_upper = mpmath.npdf(a) / mass[j], mpmath.npdf(b) / mass[j]
            mean = at_lower - at_upper
            shrink = mean**2 - (a * at_lower - b * at_upper)
            c = [s[i, j] / mpmath.sqrt(s[j, j]) for i in range(n)]
            log_prob += mpmath.log(mass[j])
            for i in left:
                m[i] += c[i] * mean
                for k in left:
                    s[i, k] -= shrink * c[i] * c[k]
        return float(log_prob)


@pytest.mark.parametrize("centre, width", [(-20.0, 60.0), (-20.0, 1.0), (30.0, 1e-3), (0.0, 1e-9)])
def test_digits_in_far_tails_and_narrow_intervals(centre, width):
    """Rounding only: the same recursion in 200 digits. Standardising rounds both limits, which is
    part of the width where they lie close."""
    _, cov = random_problem(6, 11)
    scale = cov.diagonal().sqrt()
    middle = (centre + torch.linspace(-0.4, 0.4, 6).double()) * scale
    lower, upper = middle - width / 2 * scale, middle + width / 2 * scale
    r = sweep(upper, cov, lower)
    truth = exact_sweep(upper, lower, cov)
    assert float(r.log_prob) == pytest.approx(truth, rel=1e-12, abs=4e-15 / min(width, 1.0))


@pytest.mark.parametrize("n, limit", [(5, -30.0), (99, -30.0), (99, -8.0)])
def test_far_tails(n, limit):
    """The error of log p grows with n and in the tail: .04 %, 2 % and 9 % of it here."""
    cov = torch.full((n, n), 0.5, dtype=torch.float64).fill_diagonal_(1.0)
    upper = torch.full((n,), limit).double()
    r = sweep(upper, cov)
    truth = float(mvn_log_cdf(upper, cov, rel_tol=1e-2))
    assert float(r.log_prob) == pytest.approx(truth, rel=5e-4 if n == 5 else 0.1)
    assert r.log_prob < truth


def test_rows_do_not_depend_on_the_batch():
    upper, cov, lower = rectangle(9, 6, batch=(7,))
    together = sweep(upper, cov, lower)
    alone = [sweep(u, c, x) for u, c, x in zip(upper, cov, lower, strict=True)]
    assert torch.equal(together.log_prob, torch.stack([r.log_prob for r in alone]))
    mapped = torch.func.vmap(lambda *a: sweep(*a).log_prob)(upper, cov, lower)
    assert torch.equal(together.log_prob, mapped)
    shared = sweep(upper, cov[0])
    assert torch.equal(shared.prob[3], sweep(upper[3], cov[0]).prob)


# ---- edges ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upper, cov, lower, prob, status", EDGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges(upper, cov, lower, prob, status, dtype):
    def tensor(x):
        return None if x is None else torch.tensor(x, dtype=dtype)

    r = sweep(tensor(upper), tensor(cov), tensor(lower))
    if len(upper) == 3 and prob == 0:
        # Singular in three variables together, and at its corner: given events nothing shows that.
        assert r.status == Status.APPROXIMATE and 0 < r.prob < 0.2
        return
    if status == Status.EXACT and r.status == Status.APPROXIMATE:
        assert abs(float(r.prob) - prob) < 0.004 and r.error.isnan()
        return
    assert r.status == status
    if math.isnan(prob):
        fields = (r.prob, r.complement, r.log_prob, r.error, r.log_error)
        assert all(x.isnan() for x in fields)
    else:
        assert abs(float(r.prob) - prob) <= 1e-7 if dtype == torch.float32 else 1e-14
        assert abs(float(r.complement) - (1 - prob)) <= 1e-6
        assert not r.error.isnan()


def test_empty():
    one = sweep(torch.zeros(0), torch.zeros(0, 0))
    assert one.prob == 1 and one.complement == 0 and one.log_prob == 0 and one.error == 0
    assert sweep(torch.zeros(0, 3), torch.eye(3)).prob.shape == (0,)
    assert sweep(torch.zeros(2, 0, 3), torch.eye(3)).prob.shape == (2, 0)


def test_bad_rows_leave_the_others_alone():
    upper, cov = random_problem(6, 1, batch=(4,))
    upper[1, 2] = NAN
    cov[2, 0, 1] = cov[2, 1, 0] = 1e3
    with pytest.warns(RuntimeWarning, match="indefinite"):
        r = sweep(upper, cov)
    assert r.status.tolist() == [6, Status.NAN_INPUT, Status.INDEFINITE, 6]
    assert torch.equal(r.prob[3], sweep(upper[3], cov[3]).prob)


@pytest.mark.parametrize(
    "options", [{"rel_tol": 1e-3}, {"max_points": 4096}, {"compute_dtype": torch.float32}]
)
def test_options_that_it_cannot_honour(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"mvn_cdf: {name} must be left out with method mendell"):
        sweep(torch.zeros(2), torch.eye(2), **options)


# ---- gradients --------------------------------------------------------------------------------------


def gradient(given, rectangular, field="log_prob"):
    leaves = [t.detach().clone().requires_grad_() for t in given]
    lower = leaves[2] if rectangular else None
    return torch.autograd.grad(getattr(sweep(*leaves[:2], lower), field).sum(), leaves)


@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("n", [1, 2, 6, 40])
def test_gradients_match_autograd_of_the_reference(n, rectangular):
    given = rectangle(n, 20 + n)[: 3 if rectangular else 2]
    leaves = [t.clone().requires_grad_() for t in given]
    log_prob, _ = mendell_elston_reference(
        leaves[0], (leaves[1] + leaves[1].T) / 2, leaves[2] if rectangular else None
    )
    for ours, truth in zip(
        gradient(given, rectangular), torch.autograd.grad(log_prob, leaves), strict=True
    ):
        assert (ours - truth).abs().max() <= 1e-11 * truth.abs().max()


@pytest.mark.parametrize("rectangular", [False, True])
def test_gradcheck(rectangular):
    upper, cov, lower = rectangle(5, 3, batch=(2,))
    mean = torch.linspace(-0.3, 0.4, 5).double()
    given = [t.requires_grad_() for t in (upper, cov, mean, *([lower] if rectangular else []))]

    def call(u, c, m, x=None):
        r = sweep(u, (c + c.mT) / 2, x, mean=m)
        return r.prob, r.complement, r.log_prob

    assert torch.autograd.gradcheck(call, given)


def test_gradients_at_multiples_and_edges():
    """Against finite differences in directions that keep the multiples; ties share."""
    upper, cov = random_problem(4, 8)
    half = torch.cat([torch.eye(4), -1.5 * torch.eye(4)[:2], torch.eye(4)[3:]]).double()
    limits = torch.cat([upper, 1.5 * (upper[:2].abs() + 1), upper[3:]])

    def log_prob(factor, u):
        return sweep(u, factor @ cov @ factor.T).log_prob

    leaves = [half.clone().requires_grad_(), limits.clone().requires_grad_()]
    grads = torch.autograd.grad(log_prob(*leaves), leaves)
    g = torch.Generator().manual_seed(1)
    direction = torch.randn(4, 4, generator=g).double()
    h = 1e-6
    # Variables stay multiples: half -> half (I + h D).
    moved = [log_prob(half @ (torch.eye(4) + s * h * direction), limits) for s in (1, -1)]
    slope = float((grads[0] * (half @ direction)).sum())
    assert float(moved[0] - moved[1]) / (2 * h) == pytest.approx(slope, rel=1e-5)
    assert float(grads[1][3]) == pytest.approx(float(grads[1][6]), rel=1e-6) and grads[1][3] > 0
    together = torch.zeros(7).double()
    together[[3, 6]] = h
    moved = log_prob(half, limits + together) - log_prob(half, limits - together)
    assert float(moved) / (2 * h) == pytest.approx(float(grads[1][3] + grads[1][6]), rel=1e-5)

    nothing = [torch.tensor([INF, 0.3, 1.0]), torch.diag(torch.tensor([1.0, 1.0, 0.0]))]
    to_upper, to_cov = gradient([t.double() for t in nothing], False)
    assert to_upper[0] == 0 and to_upper[1] > 0 and to_upper[2] == 0
    assert to_cov.isfinite().all()
    impossible = gradient([torch.tensor([-1.0, 0.0]).double(), torch.zeros(2, 2).double()], False)
    assert all((t == 0).all() for t in impossible)
    bad = gradient([torch.tensor([NAN, 0.0]).double(), torch.eye(2).double()], False)
    assert all(t.isnan().all() for t in bad)


@pytest.mark.parametrize("limit", [-40.0, 40.0])
def test_gradients_in_the_far_tails(limit):
    """log p and 1 - p move by their own slopes where p is 0 or 1 to rounding."""
    n = 5
    cov = torch.full((n, n), 0.3, dtype=torch.float64).fill_diagonal_(1.0)
    upper = torch.full((n,), limit / 2).double() + torch.arange(n).double() / 10
    field = "log_prob"
    (to_upper,) = gradient([upper, cov], False, field)[:1]
    for i in range(n):
        step = torch.zeros(n).double()
        step[i] = 1e-5
        high, low = sweep(upper + step, cov), sweep(upper - step, cov)
        slope = float(high.log_prob - low.log_prob) / 2e-5
        # Differences of 1e-5 of values up to 1e3: 1e-8; slopes of e^-200 are compared by themselves.
        assert float(to_upper[i]) == pytest.approx(slope, rel=1e-5)


def test_float32_gradients():
    given = rectangle(7, 2)
    double = gradient(given, True)
    single = gradient([t.float() for t in given], True)
    for x, y in zip(single, double, strict=True):
        assert x.dtype == torch.float32 and (x - y).abs().max() < 1e-4 * y.abs().max()


def test_second_derivatives_are_refused():
    upper, cov = (t.requires_grad_() for t in random_problem(4, 1))
    (slope,) = torch.autograd.grad(sweep(upper, cov).prob, upper, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of method mendell_elston"):
        slope.sum().backward()


def test_plumbing():
    upper, cov, lower = rectangle(5, 1, batch=(3,))
    op = torch.ops.mvnrob.mendell_elston
    for low in (None, lower):
        given = [t if t is None else t.clone().requires_grad_() for t in (upper, cov, low)]
        torch.library.opcheck(op.default, given)
        for wants_cov in (False, True):
            args = (torch.ones(3).double(), upper, cov, low, wants_cov)
            torch.library.opcheck(torch.ops.mvnrob.mendell_elston_backward.default, args)

    def loss(u, c):
        return sweep(u, c).log_prob.sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    leaves = [t.clone().requires_grad_() for t in (upper, cov)]
    plain = torch.autograd.grad(loss(*leaves), leaves)
    for other in (
        torch.autograd.grad(compiled(*leaves), leaves),
        torch.func.grad(loss, (0, 1))(*leaves),
    ):
        assert all(torch.equal(x, y) for x, y in zip(plain, other, strict=True))
    mapped = torch.func.vmap(torch.func.grad(loss))(upper, cov)
    assert torch.equal(mapped, plain[0])
    with pytest.raises(RuntimeError, match="mendell_elston: cov must have the dtype of upper"):
        op(upper, cov.float(), None)
    with pytest.raises(
        RuntimeError, match=r"mendell_elston_backward: grad must be float64 of shape"
    ):
        torch.ops.mvnrob.mendell_elston_backward(torch.ones(2), upper, cov, None, True)


# ---- the kernels on the shim ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shim():
    return native_build.load("shim_kernel_bindings.cpp", ISA)


def problems_of(n, dtype):
    """Rows of every kind: plain, rectangles, duplicates, nothing, NaN, indefinite."""
    upper, cov, lower = rectangle(n, n + 1, batch=(8,))
    scale = cov.diagonal(dim1=1, dim2=2).sqrt()
    upper[1] += 3 * scale[1]
    upper[2, 0] = INF
    lower[2, 0] = -INF
    if n > 2:  # multiples, one of them negative
        for row, factor in ((3, 2.0), (4, -0.5)):
            cov[row, :, -1] = factor * cov[row, :, 0]
            cov[row, -1] = factor * cov[row, 0]
            cov[row, -1, -1] = factor**2 * cov[row, 0, 0]
            lower[row, -1], upper[row, -1] = -abs(factor) * scale[row, 0], 3 * scale[row, 0]
    upper[5, -1] = NAN
    cov[6, 0, -1] = cov[6, -1, 0] = 1e4
    upper[7] -= 12 * scale[7]
    lower[7] = -INF
    return [t.to(dtype) for t in (upper, cov, lower)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "n, rectangular", list(itertools.product([1, 2, 9, 32, 33, 70], [False, True]))
)
def test_kernels_agree_with_the_cpu(shim, n, rectangular, dtype):
    upper, cov, lower = problems_of(n, dtype)
    low = lower if rectangular else None
    cpu = torch.ops.mvnrob.mendell_elston(upper, cov, low)
    arrays = [None if t is None else t.numpy() for t in (upper, cov, low)]
    found = [torch.from_numpy(x) for x in shim.mendell_elston(*arrays, resident=3)]
    # Sums in another order; float32 results are rounded.
    tight = {"rtol": 1e-9 if dtype == torch.float64 else 2e-5, "atol": 1e-12, "equal_nan": True}
    for ours, theirs in zip(found, cpu, strict=True):
        torch.testing.assert_close(ours, theirs, **tight)
    assert cpu[3].tolist().count(Status.NAN_INPUT) == 1 and (n == 1 or Status.INDEFINITE in cpu[3])
    grad = torch.linspace(0.5, 2, 8).double()
    cpu = torch.ops.mvnrob.mendell_elston_backward(grad, upper, cov, low, True)
    found = shim.mendell_elston_backward(grad.numpy(), *arrays, True, resident=2)
    for ours, theirs in zip(found, cpu, strict=True):
        if theirs.numel():
            size = theirs.nan_to_num(0).abs().max().item()
            tight["atol"] = size * (1e-9 if dtype == torch.float64 else 1e-5)
            torch.testing.assert_close(torch.from_numpy(ours), theirs, **tight)


def test_kernels_with_many_correlated_variables(shim):
    n = 150
    cov = torch.full((1, n, n), 0.75, dtype=torch.float64)
    cov.diagonal(dim1=1, dim2=2).fill_(1.0)
    upper = torch.linspace(0.7, 4, n).double()[None]
    found = shim.mendell_elston(upper.numpy(), cov.numpy(), None)
    assert found[2][0] == pytest.approx(float(sweep(upper, cov).log_prob), rel=1e-11)


def test_kernels_do_not_depend_on_the_order_of_threads(shim):
    arrays = [t.numpy() for t in problems_of(33, torch.float64)]
    once = [x.tobytes() for x in shim.mendell_elston(*arrays)]
    try:
        for seed in (1, 2):
            shim.set_order(seed)
            assert [x.tobytes() for x in shim.mendell_elston(*arrays, resident=8)] == once
    finally:
        shim.set_order(0)
