"""The bodies of mvn_cdf_pathwise's CUDA kernels, run on the CPU by csrc/shim, against the CPU backend."""

import math

import numpy as np
import pytest
import torch
from test_mvn_cdf import random_problem
from test_shim_mvn_cdf import shim

FIXTURES = (shim,)
#: Another order of summation; of each output's largest number, as slopes and variances are sums that
#: cancel. A pivot of a singular covariance that has little variance left magnifies rounding. Worst
#: over this file with AVX2: 9e-5 and 8e-10.
AGREEMENT = {"float32": 4e-4, "float64": 1e-8}


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


def compare(
    shim, upper, cov, lower, order, compute_dtype="float64", *, wants_cov=True, points="lattice",
    **options,
):  # fmt: skip
    """Returns the kernels' answer."""
    given = pathwise_arguments(upper, cov, lower, order)
    theirs = torch.ops.mvnrob.mvn_cdf_pathwise(*given, compute_dtype, wants_cov, points)
    ours = shim.mvn_cdf_pathwise(
        *(None if t is None else t.numpy() for t in given), compute_dtype, wants_cov, points,
        **options,
    )  # fmt: skip
    assert_agree(ours, [t.numpy() for t in theirs], compute_dtype)
    return ours


def same_bits(one, other):
    return all(x.tobytes() == y.tobytes() for x, y in zip(one, other, strict=True))


# Round the edges of the register blocks (8, 16), of a product's tile (32, 64), of small programs (32).
SIZES = (1, 2, 3, 7, 8, 9, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 70, 99)


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", SIZES)
def test_agree(shim, n, compute_dtype):
    for pivots in sorted({1, max(1, n // 3), max(1, n - 1), n}):
        upper, cov = random_problem(n, n, batch=(2,))
        g = torch.Generator().manual_seed(n)
        named = torch.stack([torch.randperm(n, generator=g)[:pivots] for _ in range(2)])
        greedy = torch.full((2, pivots), -1)
        greedy[1, pivots // 2 + 1 :] = -2
        lower = -upper - 1 if pivots % 2 else None
        for order in (named, greedy):
            compare(shim, upper, cov, lower, order, compute_dtype)


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
@pytest.mark.parametrize("points", ["lattice", "richtmyer", "sobol"])
@pytest.mark.parametrize("n, pivots", [(9, 9), (40, 35)])
def test_agree_for_any_points(shim, n, pivots, points, compute_dtype):
    upper, cov = random_problem(n, n, batch=(1,))
    order = torch.full((1, pivots), -1)
    values = compare(shim, upper, cov, None, order, compute_dtype, points=points)[0]
    others = {"lattice", "richtmyer", "sobol"} - {points}
    for other in others:
        again = compare(shim, upper, cov, None, order, compute_dtype, points=other)[0]
        assert not np.array_equal(again, values)


def test_more_variables_than_the_tables_of_points(shim):
    """256 threads plan; 270 pivots are more than Sobol's table has."""
    upper, cov = random_problem(280, 1, batch=(1,))
    compare(shim, upper, cov, None, torch.full((1, 270), -1), "float32", points="sobol")


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
def test_float32_input(shim, compute_dtype):
    upper, cov = random_problem(20, 4, batch=(2,))
    upper, cov = upper.float(), cov.float()
    for order in (torch.full((2, 12), -1), torch.arange(20)[8:].expand(2, 12).contiguous()):
        compare(shim, upper, cov, -2 * upper, order, compute_dtype)


def singular_problem(variables, rank, copies):
    """Rows of a factor; then a duplicate, a multiple and an antiparallel one of each of the first."""
    g = torch.Generator().manual_seed(variables)
    root = torch.randn(2, variables, rank, generator=g, dtype=torch.float64)
    upper = root.norm(dim=-1) * (0.3 + torch.rand(2, variables, generator=g, dtype=torch.float64))
    # What the multiples add to: limits that meet, and for the antiparallel ones limits that differ.
    some = slice(0, copies)
    root = torch.cat([root, root[:, some], 2 * root[:, some], -root[:, some]], 1)
    upper = torch.cat([upper, upper[:, some], 2 * upper[:, some], 4 * upper[:, some]], 1)
    return upper, root @ root.mT


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("variables, rank, copies", [(9, 4, 1), (20, 7, 3), (60, 40, 5), (9, 1, 2)])
def test_singular(shim, variables, rank, copies, rectangular, compute_dtype):
    """Groups, some of them longer than a register block, and ties that share. Pivots are named: which
    of several multiples a greedy order takes is rounding's choice."""
    upper, cov = singular_problem(variables, rank, copies)
    lower = -3 * upper if rectangular else None
    for pivots in {rank, max(1, rank - 1)}:
        order = torch.arange(pivots).flip(0).expand(2, pivots).contiguous()
        out = compare(shim, upper, cov, lower, order, compute_dtype)
        assert (out[5] == pivots).all()


def test_singular_in_greedy_order(shim):
    """It ends at the rank, whatever is asked for."""
    upper, cov = singular_problem(20, 7, 3)
    out = compare(shim, upper, cov, None, torch.full((2, 29), -1))
    assert (out[5] == 7).all()


def test_ties_on_one_side_alone(shim):
    """Copies whose upper limits meet and whose lower ones differ, or the other way round, or one of
    them has none."""
    root = torch.tensor([[1.0, 0], [1, 0], [2, 0], [-1, 0], [0.6, 0.8]]).double()
    upper = torch.tensor([[0.4, 0.4, 0.8, 9, 1], [0.4, 0.5, 0.9, 3, 1], [0.4, 0.4, 9, 9, 1]])
    lower = torch.tensor([[-1.0, -2, -2, -0.4, -9], [-1, -1, -2, -0.4, -9], [-2, -9, -9, -9, -9]])
    cov = (root @ root.T).expand(3, 5, 5)
    lower[lower == -9] = -math.inf
    out = compare(shim, upper.double(), cov, lower.double(), torch.full((3, 2), -1))
    assert out[1][0, 0, 0] == pytest.approx(out[1][0, 0, 1], rel=1e-12)


@pytest.fixture(scope="module")
def mixed():
    """Good and bad rows, and variables without limits."""
    upper, cov = random_problem(40, 3, batch=(5,))
    upper[1, 2] = torch.nan
    cov[2, 0, 1] = cov[2, 1, 0] = 1e3
    upper[3, 4:9] = torch.inf
    upper[4] = torch.inf
    return upper, cov, torch.full((5, 36), -1)


def test_bad_rows(shim, mixed):
    upper, cov, order = (t.clone() for t in mixed)
    out = compare(shim, upper, cov, None, order)
    assert np.isnan(out[0]).all(1).tolist() == [False, True, True, False, True]
    named = torch.arange(36).expand(5, 36).contiguous()
    out = compare(shim, upper, cov, None, named)
    assert np.isnan(out[0]).all(1).tolist() == [False, True, True, False, False]
    upper[0] = -torch.inf
    cov[3, 7, 7] = 0
    compare(shim, upper, cov, None, named)
    compare(shim, upper, cov, None, order)


def test_strided_input(shim):
    upper, cov = random_problem(9, 2, batch=(4,))
    order = torch.full((4, 6), -1)
    wide = torch.zeros(4, 18, 18).double()
    wide[:, ::2, ::2] = cov
    assert same_bits(
        compare(shim, upper, cov, None, order), compare(shim, upper, wide[:, ::2, ::2], None, order)
    )


def test_same_bits_for_any_tile_and_grid_and_without_cov(shim, mixed):
    upper, cov, order = mixed
    one = compare(shim, upper, cov, None, order, "float32")
    for tile_rows, resident in ((1, 1), (2, 5), (4, 2)):
        options = {"tile_rows": tile_rows, "resident": resident}
        assert same_bits(one, compare(shim, upper, cov, None, order, "float32", **options))
    limits = compare(shim, upper, cov, None, order, "float32", wants_cov=False)
    assert same_bits(one[:3], limits[:3])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_same_bits_in_any_order_of_threads(shim, order):
    upper, cov = singular_problem(30, 20, 4)
    plan = torch.arange(20).expand(2, 20).contiguous()
    one = compare(shim, upper, cov, -3 * upper, plan)
    shim.set_order(order)
    try:
        other = compare(shim, upper, cov, -3 * upper, plan)
    finally:
        shim.set_order(0)
    assert same_bits(one, other)
