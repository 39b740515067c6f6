"""mvn_cdf_pathwise on a GPU: the CPU's slopes to rounding, also within autograd.

What test_shim_mvn_cdf_pathwise.py checks of the same kernels without a GPU uses the problems and the
comparison of this file.
"""

import math

import numpy as np
import pytest
import torch
from test_cuda import cuda, put
from test_mvn_cdf import random_problem

from mvnrob import _mvn_cdf_grad, mvn_cdf

FIXTURES = (cuda,)
#: Another order of summation; of each output's largest number, as slopes and variances are sums that
#: cancel. A pivot of a singular covariance that has little variance left magnifies rounding. Worst
#: over the shim's tests with AVX2: 9e-5 and 8e-10.
AGREEMENT = {"float32": 4e-4, "float64": 1e-8}
# Round the edges of the register blocks (8, 16), of a product's tile (32, 64), of small programs (32).
SIZES = (1, 2, 3, 7, 8, 9, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 70, 99)


def pathwise_arguments(upper, cov, lower, order, *, first=64, points=128):
    rows = len(upper)
    weight = torch.linspace(0.5, 1.5, 8).double().expand(rows, 8).contiguous()
    return (
        upper, cov, lower, torch.arange(rows), order, torch.full((rows,), first),
        torch.full((rows,), points), weight,
    )  # fmt: skip


def assert_agree(ours, theirs, compute_dtype):
    """Both to rounding: values, slopes to upper, lower and cov, its variance; and the pivots."""
    for x, y in zip(ours[:5], theirs[:5], strict=True):
        assert x.size == y.size
        if x.size == 0:
            continue
        assert (np.isnan(x) == np.isnan(y)).all()
        rows = len(x)
        scale = np.nan_to_num(np.abs(y)).reshape(rows, -1).max(1)
        error = np.nan_to_num(np.abs(x - y)).reshape(rows, -1).max(1)
        assert (error <= AGREEMENT[compute_dtype] * scale).all(), (error / scale).max()
    assert (ours[5] == theirs[5]).all()
    np.testing.assert_allclose(ours[6], theirs[6], rtol=1e-12, atol=1e-12)


def plans(n):
    """Problems of n variables with a forced plan: named pivots, greedy ones, all or some of them."""
    for pivots in sorted({1, max(1, n // 3), max(1, n - 1), n}):
        upper, cov = random_problem(n, n, batch=(2,))
        g = torch.Generator().manual_seed(n)
        named = torch.stack([torch.randperm(n, generator=g)[:pivots] for _ in range(2)])
        greedy = torch.full((2, pivots), -1)
        greedy[1, pivots // 2 + 1 :] = -2
        lower = -upper - 1 if pivots % 2 else None
        for order in (named, greedy):
            yield upper, cov, lower, order


#: Variables, their rank, and how many come again as a duplicate, a multiple and an antiparallel one.
SINGULAR = ((9, 4, 1), (20, 7, 3), (60, 40, 5), (9, 1, 2))


def singular_problem(variables, rank, copies):
    g = torch.Generator().manual_seed(variables)
    root = torch.randn(2, variables, rank, generator=g, dtype=torch.float64)
    upper = root.norm(dim=-1) * (0.3 + torch.rand(2, variables, generator=g, dtype=torch.float64))
    # Limits of the multiples meet those of the first, but for the antiparallel ones.
    some = slice(0, copies)
    root = torch.cat([root, root[:, some], 2 * root[:, some], -root[:, some]], 1)
    upper = torch.cat([upper, upper[:, some], 2 * upper[:, some], 4 * upper[:, some]], 1)
    return upper, root @ root.mT


#: Variables, pivots, whether there are lower limits.
TILTED = ((1, 1, False), (6, 6, True), (20, 13, False), (40, 40, False), (40, 35, False))


def tilted_problem(n, pivots, rectangular, found):
    """Small p, the second row's beyond what a float64 holds where the saddle point is found (away from
    it weights are too far from each other to agree); a copy that bounds its first; and the tilt."""
    upper, cov = random_problem(n, n, batch=(2,))
    sd = cov.diagonal(dim1=1, dim2=2).sqrt()
    upper = upper - torch.tensor([[2.0], [60.0 if found else 4.0]]).double() * sd
    copies = list(range(n)) + [0] * (n > 6)
    upper, cov = upper[:, copies], cov[:, copies][:, :, copies]
    order = torch.arange(pivots).expand(2, pivots).contiguous()
    tilt = -torch.linspace(0.5, 3, pivots).double().expand(2, pivots).contiguous()
    tilt = torch.full_like(tilt, math.nan) if found else tilt
    return upper, cov, upper - 1 if rectangular else None, order, tilt


def compare(device, given, compute_dtype, wants_cov=True, points="lattice", *more):
    ours, theirs = (
        [
            t.cpu().numpy()
            for t in torch.ops.mvnrob.mvn_cdf_pathwise(
                *on[:8], compute_dtype, wants_cov, points, *on[8:]
            )
        ]
        for on in (put((*given, *more), device), (*given, *more))
    )
    assert_agree(ours, theirs, compute_dtype)


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", SIZES)
def test_agree(cuda, n, compute_dtype):
    for problem in plans(n):
        compare(cuda, pathwise_arguments(*problem), compute_dtype)


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("variables, rank, copies", SINGULAR)
def test_singular(cuda, variables, rank, copies, rectangular, compute_dtype):
    upper, cov = singular_problem(variables, rank, copies)
    order = torch.arange(rank).flip(0).expand(2, rank).contiguous()
    lower = -3 * upper if rectangular else None
    compare(cuda, pathwise_arguments(upper, cov, lower, order), compute_dtype)


@pytest.mark.parametrize("points", ["lattice", "richtmyer", "sobol"])
def test_points(cuda, points):
    for n in (9, 40, 280):
        upper, cov = random_problem(n, n, batch=(1,))
        given = pathwise_arguments(upper, cov, None, torch.full((1, n), -1))
        compare(cuda, given, "float32", False, points)


def test_runs_repeat_and_the_batch_does_not_matter(cuda):
    upper, cov = random_problem(40, 3, batch=(64,))
    given = put(pathwise_arguments(upper, cov, None, torch.full((64, 36), -1)), cuda)
    call = torch.ops.mvnrob.mvn_cdf_pathwise
    first = call(*given, "float32", True)
    for _ in range(3):
        for x, y in zip(first, call(*given, "float32", True), strict=True):
            assert torch.equal(x, y)
    part = call(*(None if t is None else t[50:] for t in given), "float32", True)
    for x, y in zip(first, part, strict=True):
        assert torch.equal(x[50:], y)


def test_memory_does_not_grow_with_the_points(cuda):
    upper, cov = random_problem(99, 3, batch=(4,))
    peaks = []
    for points in (64, 2**16):
        given = put(
            pathwise_arguments(upper, cov, None, torch.full((4, 99), -1), points=points), cuda
        )
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(cuda)
        torch.ops.mvnrob.mvn_cdf_pathwise(*given, "float32", True)
        peaks.append(torch.cuda.max_memory_allocated(cuda))
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("n", [20, 60])
def test_autograd_chooses_as_on_the_cpu(cuda, n, rectangular, monkeypatch):
    """Slopes of the samples where they are cheaper, from the same points as on the CPU."""
    monkeypatch.setattr(_mvn_cdf_grad, "_AFFORDABLE", 0.0)
    op, calls = torch.ops.mvnrob.mvn_cdf_pathwise, []

    def recorded(*args):
        calls.append(args[0].device.type)
        return op(*args)

    monkeypatch.setattr(torch.ops.mvnrob, "mvn_cdf_pathwise", recorded)
    upper, cov = random_problem(n, 3, batch=(4,))
    found = []
    for device in ("cpu", cuda):
        # detached: on the CPU upper itself would require a gradient, and lower depend on it
        u, c = (t.detach().to(device).requires_grad_() for t in (upper, cov))
        lower = (-upper - 1).to(device) if rectangular else None
        prob = mvn_cdf(u, c, lower=lower, abs_tol=1e-3)
        found.append(torch.autograd.grad(prob.sum(), (u, c)))
    # A further look where rounding decides on it, of the row or of its limits' conditional problems.
    assert set(calls) == {"cpu", "cuda"} and abs(calls.count("cpu") - calls.count("cuda")) <= 2
    sd = cov.diagonal(dim1=1, dim2=2).sqrt()
    for (here, there), unit in zip(
        zip(*found, strict=True), (sd, sd[:, :, None] * sd[:, None, :]), strict=True
    ):
        # Another plan, where rounding decides on it, moves them by twice the tolerance.
        assert ((here - there.cpu()) * unit).abs().max() < 2e-3


def test_gradient_of_the_sums(cuda):
    upper, cov = random_problem(9, 3, batch=(2,))
    order, seed = torch.arange(9).expand(2, 9).contiguous(), torch.tensor([5, 6])
    found = []
    for device in ("cpu", cuda):
        u, c = (t.detach().to(device).requires_grad_() for t in (upper, cov))
        sums = torch.ops.mvnrob.mvn_cdf_sums(
            u, c, None, seed.to(device), order.to(device), 128, "float64"
        )
        found.append(torch.autograd.grad(sums[..., :2].sum(1)[:, 0].sum(), (u, c)))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(
            there.cpu(), here, rtol=1e-8, atol=1e-8 * here.abs().max().item()
        )


def test_bad_rows_and_refused_calls(cuda):
    upper, cov = random_problem(12, 3, batch=(4,))
    upper[0, 2] = torch.nan
    cov[1, 0, 1] = cov[1, 1, 0] = 1e3
    upper[2, 4:9] = torch.inf
    given = pathwise_arguments(upper, cov, None, torch.full((4, 12), -1))
    compare(cuda, given, "float64")
    # Values cannot be looked at: a row whose order cannot be followed is NaN.
    order = torch.tensor([[0, 0], [0, 99], [0, 1], [1, 0]])
    on = put(pathwise_arguments(*random_problem(12, 3, batch=(4,)), None, order), cuda)
    out = torch.ops.mvnrob.mvn_cdf_pathwise(*on, "float64", True)
    assert out[0].isnan().all(1).tolist() == [True, True, False, False]
    with pytest.raises(
        RuntimeError, match="mvn_cdf_pathwise: order, first, points and weight must"
    ):
        torch.ops.mvnrob.mvn_cdf_pathwise(*on[:4], order, *on[5:], "float64", True)


def test_opcheck(cuda):
    upper, cov = random_problem(5, 1, batch=(2,))
    given = put(pathwise_arguments(upper, cov, -2 * upper, torch.full((2, 3), -1)), cuda)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.mvnrob.mvn_cdf_pathwise.default, (*given, "float64", True), test_utils=tests
    )
