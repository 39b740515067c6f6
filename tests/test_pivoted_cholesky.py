"""pivoted_cholesky: the order by its reference, ranks by LAPACK, what a factor must be, edges; and the
CUDA kernel's body on the shim against the CPU."""

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import lapack
from test_mvn_cdf import random_problem
from test_mvn_cdf_factor import factor_problem

from mvnrob import Status, mvn_cdf, pivoted_cholesky
from mvnrob._pivoted_cholesky import pivoted_cholesky_reference

sys.path.insert(0, str(Path(__file__).parent / "native"))
import native_build

INF, NAN = math.inf, math.nan
EPS = torch.finfo(torch.float64).eps
DTYPES = (torch.float32, torch.float64)
EYE = torch.eye(3).double()
ONES = torch.ones(3).double()


def rectangle(n, seed, **options):
    upper, cov = random_problem(n, seed, **options)
    return upper, cov, -upper.abs() - 0.5 * cov.diagonal(dim1=-2, dim2=-1).sqrt()


def left_over(cov, factor):
    """cov - factor factor^T relative to the standard deviations."""
    sd = cov.double().diagonal(dim1=-2, dim2=-1).sqrt()
    made = factor.double() @ factor.double().mT
    return (cov.double() - made) / (sd[..., :, None] * sd[..., None, :])


# ---- the order and the factor -------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 9, 33, 70, 450])
@pytest.mark.parametrize("with_lower", [False, True])
@pytest.mark.parametrize("rank", [None, 1, 4])
def test_agrees_with_the_reference(n, with_lower, rank):
    upper, cov, lower = rectangle(n, n)
    lower = lower if with_lower else None
    r = pivoted_cholesky(upper, cov, lower=lower, rank=rank)
    factor, pivots, residual = pivoted_cholesky_reference(upper, cov, lower=lower, rank=rank)
    k = min(n, rank or n)
    assert r.factor.shape == (n, k) and r.rank == k == len(pivots)
    assert r.order[:k].tolist() == pivots
    assert r.order[k:].tolist() == [i for i in range(n) if i not in pivots]
    # The reference takes the trace of all roundings along, which its condition amplifies.
    size = cov.diagonal().max()
    assert (r.factor - factor).abs().max() <= 1e-9 * size.sqrt()
    assert (r.residual - residual).abs().max() <= 1e-9 * size
    assert r.status == (Status.EXACT if k == n else Status.TRUNCATED)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, rank", [(9, 9), (99, 99), (99, 16), (200, 64), (520, 520), (520, 300)])
def test_multiplies_out(n, rank, dtype):
    upper, cov = (t.to(dtype) for t in random_problem(n, 3, batch=(4,)))
    r = pivoted_cholesky(upper, cov, rank=rank)
    rest = left_over(cov, r.factor)
    # The roundings of k products, as a random walk, and of what is stored; most is four times that.
    unit = 4 * rank**0.5 * EPS + 4 * torch.finfo(dtype).eps
    # Rows of pivots are met.
    for b in range(4):
        assert rest[b, r.order[b, :rank]].abs().max() <= unit
    diagonal = r.residual / cov.diagonal(dim1=1, dim2=2)
    assert (rest.diagonal(dim1=1, dim2=2) - diagonal).abs().max() <= 2 * unit
    bound = diagonal.clamp_min(0).sqrt()
    assert (rest.abs() <= bound[:, :, None] * bound[:, None] + 2 * unit).all()
    ordered = r.factor.gather(1, r.order[..., None].expand(-1, -1, rank))
    assert torch.equal(ordered, ordered.tril())
    assert (ordered.diagonal(dim1=1, dim2=2) > 0).all()


@pytest.mark.parametrize("n", [40, 450])  # of 450 the columns are formed before their turn
def test_partial_factors_are_the_first_columns(n):
    upper, cov, lower = rectangle(n, 1, batch=(3,))
    whole = pivoted_cholesky(upper, cov, lower=lower)
    for k in (1, 7, n // 2, n - 1, n, n + 1, 10**12):
        part = pivoted_cholesky(upper, cov, lower=lower, rank=k)
        assert torch.equal(part.factor, whole.factor[..., :k])
        assert torch.equal(part.order[..., :k], whole.order[..., :k])
        assert (part.rank == min(k, n)).all()
        assert (part.residual >= whole.residual).all()


def test_laws():
    """Scales, means and the numbering of the variables change names, not answers."""
    upper, cov, lower = rectangle(20, 2)
    r = pivoted_cholesky(upper, cov, lower=lower, rank=12)
    scale = torch.logspace(-3, 3, 20).double()
    scaled = pivoted_cholesky(
        scale * upper, scale[:, None] * cov * scale, lower=scale * lower, rank=12
    )
    assert torch.equal(scaled.order, r.order)
    torch.testing.assert_close(scaled.factor, scale[:, None] * r.factor, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(scaled.residual, scale**2 * r.residual, rtol=1e-11, atol=1e-12)
    mean = torch.linspace(-1, 1, 20).double()
    moved = pivoted_cholesky(upper + mean, cov, lower=lower + mean, mean=mean, rank=12)
    assert torch.equal(moved.order, r.order)
    assert not torch.equal(pivoted_cholesky(upper, cov, lower=lower, mean=mean).order, r.order)
    turn = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    turned = pivoted_cholesky(upper[turn], cov[turn][:, turn], lower=lower[turn], rank=12)
    assert torch.equal(turn[turned.order[:12]], r.order[:12])
    torch.testing.assert_close(turned.factor, r.factor[turn], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equals_the_first_in_the_input_goes_first(dtype):
    """Also where rows that have left stand between them."""
    cov = torch.kron(torch.eye(3), torch.ones(2, 2)).to(dtype)
    r = pivoted_cholesky(torch.ones(6, dtype=dtype), cov)
    assert r.order.tolist() == [0, 2, 4, 1, 3, 5] and r.rank == 3 and r.status == Status.EXACT
    assert torch.equal(r.factor @ r.factor.mT, cov)
    # Those without limits are equals, and come last.
    free = pivoted_cholesky(torch.tensor([INF, INF, 1, INF, INF, 2], dtype=dtype), cov)
    assert free.order.tolist() == [2, 5, 0, 1, 3, 4] and free.rank == 3


@pytest.mark.filterwarnings("ignore:mvn_cdf. .* spent max_points")
def test_mvn_cdf_takes_this_order():
    upper, cov, lower = rectangle(30, 5, batch=(6,), rank=12)
    for low in (None, lower):
        r = pivoted_cholesky(upper, cov, lower=low)
        whole = mvn_cdf(upper, cov, lower=low, method="sov", abs_tol=1e-12, max_points=512,
                        compute_dtype=torch.float64, return_info=True)  # fmt: skip
        assert torch.equal(r.rank, whole.n_pivots)
        args = (upper, cov, low, torch.arange(6))
        named = torch.ops.mvnrob.mvn_cdf_sums(*args, r.order[:, :12], 512, "float64")[..., 0]
        # -1: the next in mvn_cdf's own order
        greedy, *_ = torch.ops.mvnrob.mvn_cdf_pathwise(
            *args, torch.full((6, 12), -1), torch.zeros(6).long(), torch.full((6,), 512),
            torch.ones(6, 8).double(), "float64", False,
        )  # fmt: skip
        torch.testing.assert_close(named, greedy, rtol=1e-9, atol=0)


# ---- rank ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, rank", [(2, 1), (9, 3), (40, 12), (99, 30), (99, 98), (450, 150)])
@pytest.mark.parametrize("with_lower", [False, True])
def test_ranks_are_lapack_s(n, rank, with_lower):
    upper, cov, lower = rectangle(n, 1, batch=(5,), rank=rank)
    r = pivoted_cholesky(upper, cov, lower=lower if with_lower else None)
    theirs = [lapack.dpstrf(c.numpy(), lower=1)[2] for c in cov]
    assert r.rank.tolist() == theirs == [rank] * 5
    assert (r.status == Status.EXACT).all()
    # What rounding makes of the variances that should be zero, and of the entries between them:
    # theirs are pivoted for size, and ours are not.
    assert left_over(cov, r.factor).abs().max() <= 1e-9
    assert (r.residual / cov.diagonal(dim1=1, dim2=2)).abs().max() <= 1e-9
    assert (r.factor[..., rank:] == 0).all()


@pytest.mark.parametrize("n, rank", [(9, 3), (40, 12)])
def test_float32_has_the_rank_of_its_rounding(n, rank):
    upper, cov = random_problem(n, 1, batch=(5,), rank=rank)
    for u, c in ((upper.float(), cov.float()), (upper, cov.float().double())):
        r = pivoted_cholesky(u, c)  # the second is indefinite by no more than float32's rounding
        assert (r.rank == rank).all() and (r.status == Status.EXACT).all()
        assert left_over(c, r.factor).abs().max() <= 1e-3


def test_factors_keep_the_digits_that_a_covariance_loses():
    factor = torch.eye(3, 4).double()
    factor[1] = factor[0]
    factor[1, 3] = 1e-9
    upper = torch.tensor([0.0, 1, 2]).double()
    r = pivoted_cholesky(upper, factor=factor)
    assert r.rank == 3 and r.order.tolist() == [0, 2, 1]  # X_0 below 0 leaves X_1 far below 1
    assert abs(float(r.factor[1, 2]) - 1e-9) <= 1e-24
    assert pivoted_cholesky(upper, factor @ factor.mT).rank == 2


@pytest.mark.parametrize("n, columns", [(1, 1), (5, 3), (9, 20), (40, 12)])
@pytest.mark.parametrize("with_lower", [False, True])
def test_factored(n, columns, with_lower):
    upper, factor = factor_problem(n, columns, n, batch=(3,))
    lower = -upper - 1 if with_lower else None
    r = pivoted_cholesky(upper, factor=factor, lower=lower)
    most = min(n, columns)
    assert r.factor.shape == (3, n, most) and (r.rank == most).all()
    assert left_over(factor @ factor.mT, r.factor).abs().max() <= 40 * EPS
    plain = pivoted_cholesky(upper, factor @ factor.mT, lower=lower)
    assert torch.equal(r.order[:, :most], plain.order[:, :most])
    part = pivoted_cholesky(upper, factor=factor, lower=lower, rank=2)
    assert torch.equal(part.factor, r.factor[..., :2])


# ---- edges --------------------------------------------------------------------------------------

BEYOND = [[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]]
EDGE_ROWS = [
    # upper, covariance, lower, rank, status
    ([INF, INF], [[1, 0.5], [0.5, 1]], None, 2, Status.EXACT),
    ([0.0], [[0]], None, 0, Status.EXACT),
    ([-1.0, 1.0], [[0, 0], [0, 4]], None, 1, Status.EXACT),
    ([0.0, 0.0], [[1, -1], [-1, 1]], None, 1, Status.EXACT),
    ([1.0, 1.0], [[1, 0], [0, 1]], [1.0, 0.0], 2, Status.EXACT),  # a point is a limit, too
    ([1.0, 1.0], [[1, 0], [0, 1]], [2.0, 0.0], 0, Status.NAN_INPUT),
    ([1.0, -INF], [[1, 0], [0, 1]], None, 0, Status.NAN_INPUT),
    ([1.0, INF], [[1, 0], [0, 1]], [0.0, INF], 0, Status.NAN_INPUT),
    ([NAN, 1.0], [[1, 0], [0, 1]], None, 0, Status.NAN_INPUT),
    ([1.0, 1.0], [[1, NAN], [NAN, 1]], None, 0, Status.NAN_INPUT),
    ([1.0, 1.0], [[INF, 0], [0, 1]], None, 0, Status.NAN_INPUT),
    ([1.0, 1.0], [[0, NAN], [NAN, 1]], None, 0, Status.NAN_INPUT),
    ([1.0, 1.0], [[1, 2], [2, 1]], None, 0, Status.INDEFINITE),
    ([1.0, 1.0], [[-1, 0], [0, 1]], None, 0, Status.INDEFINITE),
    ([1.0, 1.0], [[0, 1], [1, 0]], None, 0, Status.INDEFINITE),
    ([1.0, 1.0], [[0, 0.1], [0.1, 1]], None, 0, Status.INDEFINITE),
    ([0.5] * 3, BEYOND, None, 0, Status.INDEFINITE),
]


@pytest.mark.parametrize("upper, cov, lower, rank, status", EDGE_ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_edges(upper, cov, lower, rank, status, dtype):
    upper, cov, lower = (
        None if x is None else torch.tensor(x, dtype=dtype) for x in (upper, cov, lower)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        r = pivoted_cholesky(upper, cov, lower=lower)
    n = len(upper)
    assert r.status == status and r.rank == rank
    assert sorted(r.order.tolist()) == list(range(n))
    if status == Status.EXACT:
        assert (r.factor @ r.factor.mT - cov).abs().max() <= torch.finfo(dtype).eps
        assert r.residual.abs().max() <= 1e-15
    else:
        assert r.factor.isnan().all() and r.residual.isnan().all()
        assert r.order.tolist() == list(range(n))


def test_bad_rows_leave_the_others_alone():
    upper, cov = random_problem(6, 1, batch=(4,))
    upper[1, 2] = NAN
    cov[2, 0, 1] = cov[2, 1, 0] = 1e3
    with pytest.warns(RuntimeWarning, match="pivoted_cholesky: 1 of 4 rows have an indefinite"):
        r = pivoted_cholesky(upper, cov)
    assert r.status.tolist() == [1, Status.NAN_INPUT, Status.INDEFINITE, 1]
    assert torch.equal(r.factor[3], pivoted_cholesky(upper[3], cov[3]).factor)


def test_a_partial_factor_reads_its_pivots_only():
    upper, cov = random_problem(6, 1)
    first = int(pivoted_cholesky(upper, cov, rank=1).order[0])
    i, j = [k for k in range(6) if k != first][:2]
    cov[i, j] = cov[j, i] = NAN
    assert pivoted_cholesky(upper, cov, rank=1).status == Status.TRUNCATED
    assert pivoted_cholesky(upper, cov).status == Status.NAN_INPUT


def test_empty():
    none = pivoted_cholesky(torch.zeros(0), torch.zeros(0, 0))
    assert none.factor.shape == (0, 0) and none.rank == 0 and none.status == Status.EXACT
    rows = pivoted_cholesky(torch.zeros(0, 3), torch.zeros(0, 3, 3), rank=2)
    assert rows.factor.shape == (0, 3, 2) and rows.order.shape == (0, 3)
    thin = pivoted_cholesky(torch.ones(3), factor=torch.zeros(3, 0))
    assert thin.factor.shape == (3, 0) and thin.status == Status.EXACT


# ---- plumbing -----------------------------------------------------------------------------------


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_row_depends_on_itself_alone():
    upper, cov, lower = rectangle(50, 7, batch=(9,), rank=20)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = pivoted_cholesky(upper, cov, lower=lower)
        torch.set_num_threads(2)
        assert same(whole, pivoted_cholesky(upper, cov, lower=lower))
    finally:
        torch.set_num_threads(before)
    for b in (0, 4, 8):
        alone = pivoted_cholesky(upper[b], cov[b], lower=lower[b])
        assert same(alone, (t[b] for t in whole))
    back = pivoted_cholesky(upper.flip(0), cov.flip(0), lower=lower.flip(0))
    assert same((t.flip(0) for t in back), whole)


def test_batches_broadcast():
    upper, cov = random_problem(5, 1, batch=(2, 3))
    shared = pivoted_cholesky(upper, cov[0, 0])
    assert shared.factor.shape == (2, 3, 5, 5) and shared.rank.shape == (2, 3)
    assert same((t[1, 2] for t in shared), pivoted_cholesky(upper[1, 2], cov[0, 0]))
    strided = pivoted_cholesky(upper.mT.contiguous().mT, cov.mT)
    assert torch.equal(strided.order, pivoted_cholesky(upper, cov).order)


def test_transforms():
    upper, cov, lower = rectangle(5, 1, batch=(3,))
    op = torch.ops.mvnrob.pivoted_cholesky
    for low in (None, lower):
        torch.library.opcheck(op.default, (upper, cov, low, 4))
    torch.library.opcheck(op.default, (upper, cov[..., :2].contiguous(), None, 2, True))
    plain = pivoted_cholesky(upper, cov, lower=lower, rank=3)

    def call(u, c, low):
        return pivoted_cholesky(u, c, lower=low, rank=3)

    assert same(torch.compile(call, backend="aot_eager", fullgraph=True)(upper, cov, lower), plain)
    assert same(torch.func.vmap(call)(upper, cov, lower), plain)
    shared = torch.func.vmap(call, in_dims=(0, None, 0))(upper, cov[0], lower)
    assert same(shared, pivoted_cholesky(upper, cov[0], lower=lower, rank=3))
    shapes = [t.shape for t in pivoted_cholesky(upper.to("meta"), cov.to("meta"), rank=3)]
    assert shapes == [t.shape for t in plain]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(call(upper, cov, lower), plain)


def test_gradients_are_refused():
    upper, cov = random_problem(4, 1)
    for leaf in (upper, cov):
        with pytest.raises(NotImplementedError, match="pivoted_cholesky: .* must not require grad"):
            pivoted_cholesky(*(t.clone().requires_grad_(t is leaf) for t in (upper, cov)))
    with torch.no_grad():
        pivoted_cholesky(upper.clone().requires_grad_(), cov)
    factor, *_ = torch.ops.mvnrob.pivoted_cholesky(upper[None], cov[None].requires_grad_(), None, 4)
    with pytest.raises(NotImplementedError, match="pivoted_cholesky: gradients are not built"):
        factor.sum().backward()


BAD_CALLS = [
    ((ONES, EYE[:2]), {}, ValueError, r"cov must have shape \[..., 3, 3\], got \[2, 3\]"),
    ((ONES,), {}, ValueError, "one of cov and factor must be given, got neither"),
    ((ONES, EYE), {"factor": EYE}, ValueError, "one of cov and factor must be given, got both"),
    ((ONES[0], EYE), {}, ValueError, r"upper must have shape \[..., n\], got \[\]"),
    ((ONES.float(), EYE), {}, TypeError, "cov must have the dtype of upper, got torch.float64"),
    ((ONES.long(), EYE), {}, TypeError, "upper must be float32 or float64, got torch.int64"),
    (([1.0], EYE), {}, TypeError, "upper must be a tensor, got list"),
    ((ONES, EYE), {"lower": ONES[:2]}, ValueError, r"lower must have shape \[..., 3\], got \[2\]"),
    ((ONES, EYE), {"mean": ONES[:2]}, ValueError, r"mean must have shape \[..., 3\], got \[2\]"),
    ((ONES.expand(2, 3), EYE.expand(4, 3, 3)), {}, ValueError, "cov must have batch dimensions"),
    ((ONES.to("meta"), EYE), {}, ValueError, "cov must be on the device of upper, got cpu"),
    ((ONES, EYE), {"rank": 0}, ValueError, "rank must be at least 1, got 0"),
    ((ONES, EYE), {"rank": 2.0}, TypeError, "rank must be an int or None, got float"),
    ((ONES, EYE), {"rank": True}, TypeError, "rank must be an int or None, got bool"),
]


@pytest.mark.parametrize("args, kwargs, kind, text", BAD_CALLS)
def test_bad_calls(args, kwargs, kind, text):
    with pytest.raises(kind, match="pivoted_cholesky: " + text):
        pivoted_cholesky(*args, **kwargs)


def test_native_checks_speak_for_direct_calls():
    call = torch.ops.mvnrob.pivoted_cholesky
    for args, text in (
        ((ONES, EYE[None], None, 1), r"upper must have shape \[B, n\], got \[3\]"),
        ((ONES[None].float(), EYE[None], None, 1), "cov must have the dtype of upper"),
        ((ONES[None], EYE[None], None, 4), "columns must be between 0 and 3, got 4"),
        ((ONES[None], EYE[None, :, :2], None, 3, True), "columns must be between 0 and 2, got 3"),
        ((ONES[None], EYE[None], None, -1), "columns must be between 0 and 3, got -1"),
    ):
        with pytest.raises(RuntimeError, match="pivoted_cholesky: " + text):
            call(*args)


# ---- the kernel's body --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shim():
    isa = next(isa for isa in ("avx2", "generic") if not native_build.missing_features(isa))
    return native_build.load("shim_kernel_bindings.cpp", isa)


def assert_kernel_agrees(shim, upper, matrix, lower, columns, factored, **options):
    given = [t if t is None else t.numpy() for t in (upper, matrix, lower)]
    kernel = shim.pivoted_cholesky(*given, columns, factored, **options)
    cpu = torch.ops.mvnrob.pivoted_cholesky(upper, matrix, lower, columns, factored)
    factor, order, rank, residual, status = (t.numpy() for t in cpu)
    for mine, theirs in zip((order, rank, status), (kernel[1], kernel[2], kernel[4]), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # Sums in another order, amplified by dependent pivots; float32 results are rounded.
    tolerance = 1e-9 if upper.dtype == torch.float64 else 1e-5
    size = max(1.0, float(np.nan_to_num(np.abs(matrix.numpy()), posinf=0).max(initial=0)))
    np.testing.assert_allclose(kernel[0], factor, rtol=tolerance, atol=tolerance * size**0.5)
    np.testing.assert_allclose(kernel[3], residual, rtol=tolerance, atol=tolerance * size)
    return status


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 9, 31, 32, 33, 70, 257])
def test_kernel(shim, n, dtype):
    upper, cov, lower = (t.to(dtype) for t in rectangle(n, n, batch=(3,)))
    upper[0, 0] = INF
    for low in (None, lower):
        for columns in {n, (n + 1) // 2}:
            status = assert_kernel_agrees(shim, upper, cov, low, columns, False)
            assert (status == (Status.EXACT if columns == n else Status.TRUNCATED)).all()


@pytest.mark.parametrize("n, columns", [(5, 3), (9, 20), (40, 12), (70, 33)])
def test_kernel_of_factors(shim, n, columns):
    upper, factor = factor_problem(n, columns, n, batch=(3,))
    for low in (None, -upper - 1):
        for k in {min(n, columns), 2}:
            assert_kernel_agrees(shim, upper, factor, low, k, True)


@pytest.mark.parametrize("n, rank", [(9, 3), (40, 12)])
def test_kernel_of_singular_matrices(shim, n, rank):
    upper, cov = random_problem(n, 1, batch=(5,), rank=rank)
    assert_kernel_agrees(shim, upper, cov, None, n, False, tile_rows=2, resident=1)
    # indefinite by float32 rounding, and judged again
    rounded = cov.float().double()
    given = [t.numpy() for t in (upper, rounded)]
    kernel = shim.pivoted_cholesky(*given, None, n, False)
    assert (kernel[2] == rank).all() and (kernel[4] == Status.EXACT).all()
    blocks = torch.kron(torch.eye(n), torch.ones(3, 3)).double()[None]
    assert_kernel_agrees(shim, torch.ones(1, 3 * n).double(), blocks, None, 3 * n, False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_at_edges(shim, dtype):
    for upper, cov, lower, _, status in EDGE_ROWS:
        row = [
            None if x is None else torch.tensor(x, dtype=dtype)[None] for x in (upper, cov, lower)
        ]
        found = assert_kernel_agrees(shim, *row, len(upper), False)
        assert found == [status]
