"""mvn_cdf with a factor of the covariance in place of it."""

import math

import numpy as np
import oracles
import pytest
import torch
from scipy import special, stats

from mvnrob import Status, mvn_cdf, mvn_log_cdf
from mvnrob.distributions import MultivariateNormal

INF, NAN = math.inf, math.nan


def factor_problem(n, r, seed, batch=(), dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(*batch, n, r, generator=g, dtype=torch.float64)
    factor = factor + torch.randn(*batch, 1, r, generator=g, dtype=torch.float64)
    upper = 2 * torch.rand(*batch, n, generator=g, dtype=torch.float64) * factor.norm(dim=-1)
    return upper.to(dtype), factor.to(dtype)


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


# ---- right answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "n, r", [(1, 1), (2, 1), (2, 3), (3, 2), (5, 3), (9, 9), (40, 12), (60, 80)]
)
@pytest.mark.parametrize("with_lower", [False, True])
def test_agrees_with_the_covariance(n, r, dtype, with_lower):
    upper, factor = factor_problem(n, r, n + r, batch=(3,), dtype=dtype)
    lower = -upper - 1 if with_lower else None
    ours = mvn_cdf(upper, factor=factor, lower=lower, return_info=True)
    # The float32 factor's own covariance, in float64.
    wide = factor.double()
    theirs = mvn_cdf(
        upper.double(), wide @ wide.mT, lower=lower if lower is None else lower.double(),
        seed=7, return_info=True,
    )  # fmt: skip
    assert ours.prob.dtype == dtype
    assert ((ours.prob - theirs.prob).abs() <= ours.error + theirs.error + 1e-14).all()
    assert ((ours.n_pivots <= r) | (ours.status == Status.EXACT)).all()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("n", [4, 9, 40])
def test_known_answers_of_low_rank(n, rank):
    upper, factor = factor_problem(n, rank, n)
    exact = {
        1: lambda u, a, b: oracles.rank_one(u[:, 0], a, b),
        2: oracles.rank_two,
        3: oracles.rank_three,
    }[rank]
    answer = exact(factor.numpy(), np.full(n, -INF), upper.numpy())
    # Also with columns that say nothing, and in another basis: the same rank, up to rounding.
    turn = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(1)).double())[
        0
    ]
    for u in (factor, torch.cat([factor, torch.zeros(n, 9 - rank).double()], 1) @ turn):
        r = mvn_cdf(upper, factor=u, abs_tol=1e-5, return_info=True)
        assert r.n_pivots <= rank
        assert abs(float(r.prob) - answer.prob) <= float(r.error) + answer.abs_err


def test_digits_that_a_covariance_cannot_hold():
    """X_2 = X_1 + d Z, between limits as near as d: the covariance rounds to that of multiples."""
    d = 1e-9
    factor = torch.eye(5, 6).double()
    factor[1] = factor[0]
    factor[1, 5] = d
    upper = torch.tensor([d, d, 1.0, 1, 1]).double()
    lower = torch.tensor([-d, -d, -INF, -INF, -INF]).double()
    t, w = np.polynomial.legendre.leggauss(40)
    pair = d * stats.norm.pdf(0) * w @ (special.ndtr(1 - t) - special.ndtr(-1 - t))
    truth = pair * stats.norm.cdf(1) ** 3
    options = {"lower": lower, "abs_tol": 0.0, "rel_tol": 1e-3, "return_info": True}
    r = mvn_cdf(upper, factor=factor, **options)
    assert r.status == Status.CONVERGED
    assert abs(float(r.prob) - truth) <= float(r.error)
    assert float(r.error) <= 1e-3 * truth
    singular = mvn_cdf(upper, factor @ factor.mT, **options)
    assert float(singular.prob) > 1.3 * truth


@pytest.mark.parametrize("size", [2, 3])
def test_multiples_in_closed_forms(size):
    """Rows that are multiples up to rounding are taken as such, and nothing is lost by that."""
    row = torch.randn(7, generator=torch.Generator().manual_seed(0)).double()
    factor = torch.stack([row, -row / 3, row * 0.7])[:size]
    sd = float(row.norm())
    upper = sd * torch.tensor([0.5, 0.1, 2], dtype=torch.float64)[:size]
    r = mvn_cdf(upper, factor=factor, return_info=True)
    assert abs(float(r.prob) - (stats.norm.cdf(0.5) - stats.norm.cdf(-0.3))) <= 1e-14
    assert r.error <= 1e-11  # a covariance says no better than 1e-9


def test_either_tail():
    upper, factor = torch.full((30,), 5.0).double(), torch.eye(30, 31).double()
    factor[:, 30] = 1
    factor[0, 1] = 1e-6  # what is exactly of one factor is not sampled
    half = factor @ factor.mT
    for sign in (1, -1):
        ours = mvn_log_cdf(sign * upper, factor=factor, rel_tol=1e-2, return_info=True)
        theirs = mvn_log_cdf(sign * upper, half, rel_tol=1e-2, seed=5, return_info=True)
        assert ours.status == Status.CONVERGED
        gap = (ours.log_prob - theirs.log_prob).abs()
        assert gap <= ours.log_error + theirs.log_error
        assert (ours.complement - theirs.complement).abs() <= ours.error + theirs.error


def test_sums_agree_with_the_covariance_s():
    upper, factor = factor_problem(33, 20, 3, batch=(2,))
    order = torch.stack([torch.randperm(33)[:k] for k in (15, 15)])
    rest = (None, torch.tensor([1, 2]), order, 192, "float64")
    ours = torch.ops.mvnrob.mvn_cdf_sums(upper, factor, *rest, "lattice", True)
    theirs = torch.ops.mvnrob.mvn_cdf_sums(upper, factor @ factor.mT, *rest)
    assert (ours - theirs).abs().max() <= 1e-9 * 192


# ---- shapes, edges ------------------------------------------------------------------------------


def test_batches_broadcast_and_strides_do_not_matter():
    upper, factor = factor_problem(6, 4, 1, batch=(2, 3))
    whole = mvn_cdf(upper, factor=factor, seed=3)
    for i in range(2):
        for j in range(3):
            assert torch.equal(whole[i, j], mvn_cdf(upper[i, j], factor=factor[i, j], seed=3))
    wide = torch.zeros(2, 3, 12, 8).double()
    wide[..., ::2, ::2] = factor
    assert torch.equal(whole, mvn_cdf(upper, factor=wide[..., ::2, ::2], seed=3))
    turned = factor.mT.contiguous().mT
    assert torch.equal(whole, mvn_cdf(upper, factor=turned, seed=3))
    shared = mvn_cdf(upper, factor=factor[0, 0])
    assert torch.equal(shared[1, 2], mvn_cdf(upper[1, 2], factor=factor[0, 0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges(dtype):
    one = torch.ones
    assert mvn_cdf(one(0, dtype=dtype), factor=one(0, 3, dtype=dtype)) == 1
    nothing = one(4, 0, dtype=dtype)  # no columns: zero variances, steps
    assert mvn_cdf(torch.zeros(4, dtype=dtype), factor=nothing) == 1
    assert mvn_cdf(torch.tensor([0, 0, -1, 0], dtype=dtype), factor=nothing) == 0
    factor = torch.eye(4, dtype=dtype)
    factor[2] = 0
    r = mvn_cdf(torch.tensor([1, 1, 0, INF], dtype=dtype), factor=factor, return_info=True)
    assert r.prob == pytest.approx(stats.norm.cdf(1) ** 2, abs=1e-6) and r.status == Status.EXACT
    bad = torch.stack([torch.eye(4, dtype=dtype)] * 3)
    bad[1, 2, 0] = NAN
    bad[2, 0, 3] = INF
    r = mvn_cdf(one(4, dtype=dtype), factor=bad, return_info=True)
    assert r.status.tolist() == [Status.EXACT, Status.NAN_INPUT, Status.NAN_INPUT]
    assert r.prob.isnan().tolist() == [False, True, True]


def test_never_indefinite():
    """A float32 factor of low rank, rounded: its product is indefinite, it is not."""
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(12, 3, generator=g) @ torch.randn(3, 20, generator=g)
    r = mvn_cdf(factor.norm(dim=1), factor=factor, return_info=True)
    assert r.status == Status.CONVERGED and r.n_pivots == 3


def test_methods():
    upper, factor = factor_problem(3, 2, 1)
    exact = mvn_cdf(upper, factor=factor, method="closed_form", return_info=True)
    sampled = mvn_cdf(upper, factor=factor, method="sov", return_info=True)
    assert exact.status == Status.EXACT and sampled.n_points > 0
    assert (exact.prob - sampled.prob).abs() <= sampled.error
    upper, factor = factor_problem(6, 4, 1)
    with pytest.raises(ValueError, match="method must be auto or sov"):
        mvn_cdf(upper, factor=factor, method="closed_form")
    product = mvn_cdf(torch.ones(8).double(), factor=torch.eye(8).double(), method="closed_form")
    assert abs(float(product) - stats.norm.cdf(1) ** 8) < 1e-14


def test_mendell_elston_multiplies_out():
    """It changes every entry of the covariance; the gradient goes on to the factor."""
    upper, factor = factor_problem(9, 12, 1)
    ours, theirs = leaves(factor, factor)
    options = {"method": "mendell_elston", "return_info": True}
    a = mvn_cdf(upper, factor=ours, **options)
    b = mvn_cdf(upper, theirs @ theirs.mT, **options)
    assert a.status == Status.APPROXIMATE and a.prob == b.prob
    a.log_prob.backward()
    b.log_prob.backward()
    assert (ours.grad - theirs.grad).abs().max() <= 1e-12 < ours.grad.abs().max()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({}, ValueError, "one of cov and factor must be given, got neither"),
        ({"cov": torch.eye(3), "factor": torch.eye(3)}, ValueError, "must be given, got both"),
        (
            {"factor": torch.eye(4)},
            ValueError,
            r"factor must have shape \[..., 3, r\], got \[4, 4\]",
        ),
        ({"factor": torch.ones(3)}, ValueError, r"factor must have shape \[..., 3, r\], got \[3\]"),
        ({"factor": torch.eye(3).double()}, TypeError, "factor must have the dtype of upper"),
        ({"factor": torch.eye(3).int()}, TypeError, "factor must be float32 or float64"),
        ({"factor": [[1.0]]}, TypeError, "factor must be a tensor, got list"),
        (
            {"factor": torch.full((3, 2), NAN), "check": True},
            ValueError,
            "must be finite, got row 0",
        ),
    ],
)
def test_bad_calls(arguments, error, message):
    with pytest.raises(error, match=f"mvn_cdf: .*{message}"):
        mvn_cdf(torch.ones(3), **arguments)


def test_op_checks_shapes():
    upper, seed = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    rest = (None, seed, 1e-3, 0.0, 2**20, "auto", "auto", "lattice", True)
    with pytest.raises(RuntimeError, match=r"mvn_cdf: factor must have shape \[2, 3, r\]"):
        torch.ops.mvnrob.mvn_cdf(upper, torch.ones(2, 4, 3), *rest)


# ---- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n, r", [(1, 1), (1, 3), (2, 2), (2, 3), (3, 2), (3, 3), (3, 5)])
@pytest.mark.parametrize("with_lower", [False, True])
def test_gradcheck_of_closed_forms(n, r, with_lower):
    """Singular ones too: a factor moves within the semidefinite matrices, both ways."""
    upper, factor = factor_problem(n, r, n + r, batch=(2,))
    lower = -upper - 0.5 if with_lower else None

    def f(u, w, *low):
        result = mvn_cdf(u, factor=w, lower=low[0] if low else None, return_info=True)
        return result.prob, result.complement

    given = leaves(upper, factor, *([lower] if with_lower else []))
    torch.autograd.gradcheck(f, given, eps=1e-6, atol=2e-8)


@pytest.mark.parametrize("n", [4, 5])
def test_gradient_at_a_singular_covariance(n):
    """Against differences of the exact answer for two columns."""
    upper, factor = factor_problem(n, 2, n + 20)
    (leaf,) = leaves(factor)
    mvn_cdf(upper, factor=leaf, abs_tol=1e-7).backward()

    def exact(u):
        return oracles.rank_two(u, np.full(n, -INF), upper.numpy()).prob

    step = 1e-4
    for i in range(n):
        for k in range(2):
            move = np.zeros((n, 2))
            move[i, k] = step
            slope = (exact(factor.numpy() + move) - exact(factor.numpy() - move)) / (2 * step)
            assert abs(float(leaf.grad[i, k]) - slope) <= 2e-5


@pytest.mark.parametrize("n, r, with_lower", [(5, 7, True), (9, 12, False), (20, 30, True)])
def test_gradient_is_that_through_the_covariance(n, r, with_lower):
    upper, factor = factor_problem(n, r, n)
    upper = upper + factor.norm(dim=1)
    lower = -upper if with_lower else None
    options = {"lower": lower, "abs_tol": 1e-5 if n < 20 else 1e-4}
    ours, theirs = leaves(factor, factor)
    mvn_cdf(upper, factor=ours, **options).backward()
    mvn_cdf(upper, theirs @ theirs.mT, **options).backward()
    # Each of up to n slopes has the tolerance, in units of the standard deviation; they are random.
    assert (ours.grad - theirs.grad).abs().max() <= 10 * options["abs_tol"]
    assert theirs.grad.abs().max() > 50 * options["abs_tol"]


def test_gradient_forms_no_covariance(monkeypatch):
    seen, op = [], torch.ops.mvnrob.mvn_cdf

    def recorded(*args):
        seen.append(args)
        return op(*args)

    monkeypatch.setattr(torch.ops.mvnrob, "mvn_cdf", recorded)
    upper, factor = leaves(*factor_problem(30, 4, 2, batch=(2,)))
    mvn_cdf(upper, factor=factor, abs_tol=1e-3).sum().backward()
    assert seen and all(args[-1] and args[1].shape[1:] == (30, 4) for args in seen)
    assert factor.grad.isfinite().all() and factor.grad.abs().max() > 0.01


def test_gradient_in_pieces(monkeypatch):
    """Pairs are looked for in pieces of R: their size does not matter."""
    from mvnrob import _mvn_cdf_conditional

    def gradient():
        (leaf,) = leaves(factor)
        mvn_cdf(upper, factor=leaf, abs_tol=1e-3).backward()
        return leaf.grad

    upper, factor = factor_problem(12, 15, 4)
    whole = gradient()
    monkeypatch.setattr(_mvn_cdf_conditional, "_BYTES", 32 * 12 * 5)
    assert (whole - gradient()).abs().max() <= 1e-12


def test_rows_of_nan_and_zero_cotangents():
    upper, factor = factor_problem(4, 4, 1, batch=(3,))
    factor[1, 0, 0] = NAN
    u, f = leaves(upper, factor)
    p = mvn_cdf(u, factor=f)
    (p[0] + 0 * p[2]).backward()
    assert f.grad[0].isfinite().all() and (f.grad[1:] == 0).all()
    u, f = leaves(upper, factor)
    mvn_cdf(u, factor=f).sum().backward()
    assert f.grad[1].isnan().all() and f.grad[[0, 2]].isfinite().all()


# ---- plumbing -----------------------------------------------------------------------------------


def test_opcheck():
    upper, factor = leaves(*factor_problem(4, 3, 1, batch=(2,)))
    args = (
        upper,
        factor,
        None,
        torch.tensor([1, 2]),
        1e-3,
        0.0,
        2**20,
        "auto",
        "auto",
        "lattice",
        True,
    )
    torch.library.opcheck(torch.ops.mvnrob.mvn_cdf.default, args)
    order = torch.tensor([[0, 1], [2, 3]])
    sums = (
        upper.detach(),
        factor.detach(),
        None,
        torch.tensor([1, 2]),
        order,
        64,
        "float64",
        "lattice",
        True,
    )
    torch.library.opcheck(
        torch.ops.mvnrob.mvn_cdf_sums.default, sums, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 1)])
def test_vmap(in_dims):
    upper, factor = factor_problem(5, 3, 2, batch=(4,))
    given = (
        upper if in_dims[0] == 0 else upper[0],
        {0: factor, None: factor[0], 1: factor.movedim(0, 1)}[in_dims[1]],
    )
    mapped = torch.func.vmap(lambda u, f: mvn_cdf(u, factor=f), in_dims)(*given)
    for b in range(4):
        u = upper[b if in_dims[0] == 0 else 0]
        f = factor[0 if in_dims[1] is None else b]
        assert torch.equal(mapped[b], mvn_cdf(u, factor=f))


def test_vmap_of_gradients():
    upper, factor = factor_problem(3, 2, 2, batch=(4,))
    slope = torch.func.grad(lambda f, u: mvn_cdf(u, factor=f))
    mapped = torch.func.vmap(slope)(factor, upper)
    for b in range(4):
        assert (mapped[b] - slope(factor[b], upper[b])).abs().max() <= 1e-12


def test_compile_fullgraph():
    def program(u, f):
        return 1 - mvn_cdf(u, factor=f * 2, abs_tol=1e-3)

    compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
    plain, ours = (
        torch.autograd.grad(f(*given).sum(), given)
        for f in (program, compiled)
        for given in [leaves(*factor_problem(5, 3, 1, batch=(3,)))]
    )
    for x, y in zip(plain, ours, strict=True):
        assert torch.equal(x, y)


# ---- distributions ------------------------------------------------------------------------------


def test_distributions_hand_their_factor_on(monkeypatch):
    from mvnrob import distributions

    seen = []

    def recorded(upper, **options):
        seen.append({k: v.shape for k, v in options.items() if k in ("cov", "factor")})
        return mvn_cdf(upper, **options)

    monkeypatch.setattr(distributions, "mvn_cdf", recorded)
    upper, factor = factor_problem(6, 2, 1)
    tril = torch.linalg.cholesky(torch.eye(6).double() + factor @ factor.mT)
    zero = torch.zeros(6).double()
    whole = tril @ tril.mT
    made = [
        (MultivariateNormal(zero, cov_factor=factor), {"factor": (6, 2)}),
        (MultivariateNormal(zero, scale_tril=tril), {"factor": (6, 6)}),
        (MultivariateNormal(zero, precision_matrix=whole.inverse()), {"factor": (6, 6)}),
        (MultivariateNormal(zero, whole), {"cov": (6, 6)}),
    ]
    answers = []
    for normal, expected in made:
        answers.append(normal.cdf(upper))
        assert seen.pop() == expected
        assert "covariance_matrix" not in normal.__dict__ or "cov" in expected
        spread = normal.expand((2,))
        assert torch.equal(spread.cdf(upper), answers[-1].expand(2))
        assert {k: v[-2:] for k, v in seen.pop().items()} == expected
        normal.covariance_matrix  # noqa: B018  (cached: must not change what is integrated)
        assert torch.equal(normal.cdf(upper), answers[-1])
        seen.clear()
    assert (answers[1] - answers[3]).abs() <= 2e-4
    assert (answers[2] - answers[3]).abs() <= 2e-4
