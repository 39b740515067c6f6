"""The bodies of mvn_cdf_pathwise's CUDA kernels, run on the CPU by csrc/shim, against the CPU backend."""

import math

import numpy as np
import pytest
import torch
from singular_tails import cone
from test_cuda_mvn_cdf_pathwise import (
    SINGULAR,
    SIZES,
    TILTED,
    assert_agree,
    pathwise_arguments,
    plans,
    singular_problem,
    tilted_problem,
)
from test_mvn_cdf import random_problem
from test_shim_mvn_cdf import shim

from mvnrob import _mvn_cdf_grad, mvn_cdf

FIXTURES = (shim,)


def by_kernels(shim, given, compute_dtype, wants_cov, points, **options):
    """What the op returns, as arrays."""
    given = (None if t is None else t.numpy() for t in given)
    return shim.mvn_cdf_pathwise(*given, compute_dtype, wants_cov, points, **options)


def compare(
    shim, upper, cov, lower, order, compute_dtype="float64", *, wants_cov=True, points="lattice",
    factored=False, tilt=None, **options,
):  # fmt: skip
    """Returns the kernels' answer."""
    given = pathwise_arguments(upper, cov, lower, order)
    theirs = torch.ops.mvnrob.mvn_cdf_pathwise(
        *given, compute_dtype, wants_cov, points, factored, tilt
    )
    options |= {"factored": factored, "tilt": None if tilt is None else tilt.numpy()}
    ours = by_kernels(shim, given, compute_dtype, wants_cov, points, **options)
    assert_agree(ours, [t.numpy() for t in theirs], compute_dtype)
    return ours


def same_bits(one, other):
    return all(x.tobytes() == y.tobytes() for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", SIZES)
def test_agree(shim, n, compute_dtype):
    for problem in plans(n):
        compare(shim, *problem, compute_dtype)


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


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("variables, rank, copies", SINGULAR)
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


@pytest.mark.parametrize("found", [False, True])
@pytest.mark.parametrize("n, pivots, rectangular", TILTED)
def test_tilted(shim, n, pivots, rectangular, found):
    """By a tilt that is given and by the saddle point; all pivots or some, groups, far tails."""
    *problem, tilt = tilted_problem(n, pivots, rectangular, found)
    out = compare(shim, *problem, tilt=tilt)
    assert np.isfinite(out[1]).all() and (out[6] != 0).all()
    assert not np.array_equal(out[0], compare(shim, *problem)[0])


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("n, rank, far", [(9, 2, 3.0), (40, 6, 8.0), (140, 5, 2.0)])
def test_singular_tails(shim, n, rank, far, factored):
    """By pivots that are not the least likely ones."""
    factor, upper, truth, holds = cone(n, rank, far, seed=n)
    given = factor if factored else factor @ factor.mT
    order = torch.full((4, n), -1)
    tilt = torch.full((4, n), math.nan).double()
    out = compare(
        shim, upper, given, None, order, wants_cov=not factored, factored=factored, tilt=tilt
    )
    assert (out[5] == rank).all()
    log_p = out[6] + np.log(out[0].mean(1) / 128)  # points of each shift
    assert np.abs(log_p - truth.numpy()).max() < 0.1
    slope = out[1].mean(1) / out[0].mean(1, keepdims=True)
    assert (slope[holds.numpy()] > 0).all()


def test_tilted_rows_in_pieces_and_bad_ones(shim, mixed):
    upper, cov, order = (t.clone() for t in mixed)
    tilt = torch.full(order.shape, math.nan).double()
    one = compare(shim, upper - 2, cov, None, order, tilt=tilt)
    assert np.isnan(one[6]).tolist() == [False, True, True, False, True]
    other = compare(shim, upper - 2, cov, None, order, tilt=tilt, tile_rows=2, resident=2)
    assert same_bits(one, other)


@pytest.mark.parametrize("columns", [3, 12, 30])
def test_factors(shim, columns):
    g = torch.Generator().manual_seed(columns)
    factor = torch.randn(2, 20, columns, generator=g).double()
    upper = factor.norm(dim=-1) * torch.rand(2, 20, generator=g).double()
    order = torch.full((2, 20), -1)
    for tilt in (None, torch.full((2, 20), math.nan).double()):
        out = compare(shim, upper, factor, None, order, wants_cov=False, factored=True, tilt=tilt)
        assert (out[5] == min(20, columns)).all()


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


# ---- within autograd ------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [False, True])
@pytest.mark.parametrize("with_cov", [False, True])
@pytest.mark.parametrize("n", [20, 33])
def test_gradients_by_the_kernels(shim, n, with_cov, digits, monkeypatch):
    """The backward of mvn_cdf with the kernels' slopes is that with the CPU's."""
    monkeypatch.setattr(_mvn_cdf_grad, "_AFFORDABLE", 0.0)  # pathwise whatever it costs
    upper, cov = random_problem(n, 3, batch=(3,))
    if digits:
        upper = upper - 2 * cov.diagonal(dim1=1, dim2=2).sqrt()
    lower = upper - 3 * cov.diagonal(dim1=1, dim2=2).sqrt() if digits else -upper - 1
    upper[0, 1] = math.inf

    def gradients():
        u, c = upper.clone().requires_grad_(), cov.clone().requires_grad_(with_cov)
        tolerance = {"abs_tol": 0.0, "rel_tol": 1e-2} if digits else {"abs_tol": 1e-3}
        r = mvn_cdf(u, c, lower=lower, return_info=True, **tolerance)
        loss = (r.log_prob if digits else r.prob).sum()
        return torch.autograd.grad(loss, (u, c) if with_cov else (u,))

    theirs = gradients()
    calls = []

    def kernels(*args):
        calls.append(args)
        *given, factored, tilt = args
        options = {"factored": factored, "tilt": None if tilt is None else tilt.numpy()}
        out = by_kernels(shim, given[:8], *given[8:], **options)
        return [torch.from_numpy(np.array(t)) for t in out]

    monkeypatch.setattr(torch.ops.mvnrob, "mvn_cdf_pathwise", kernels)
    for x, y in zip(gradients(), theirs, strict=True):
        # Float32 samples, whose points are taken until the tolerance is met.
        assert (x - y).abs().max() < 1e-4 * y.abs().max()
    assert any(args[9] for args in calls) == with_cov
    assert (calls[0][12] is not None) == digits
