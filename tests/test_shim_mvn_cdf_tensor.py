"""The tensor sampler of mvn_cdf (csrc/kernels/mvn_cdf_sample_tensor.h), run on the CPU by csrc/shim:
the same sums as the CPU backend's scalar path, and no bias of its own against float64.

Its plans need 96 pivots or more. Ragged sizes are those round a slab of 16 pivots, an outer block of
64 rows and a tile of 64 points.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_shim_mvn_cdf import assert_agree, by_cpu, by_kernels, compare_sums

from mvnrob import Status

sys.path.insert(0, str(Path(__file__).parent / "native"))
import native_build


@pytest.fixture(scope="module")
def shim():
    isa = next(isa for isa in ("avx2", "generic") if not native_build.missing_features(isa))
    return native_build.load("shim_kernel_bindings.cpp", isa)


def forced(seed, n, pivots, rank=None, copies=1, rows=2, rectangular=False):
    """Limits, covariances, an order of pivots. `copies` multiples of each variable: groups."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(rows, -(-n // copies), rank or n + 8))
    root = root[:, np.arange(n) % root.shape[1]]
    if copies > 1:
        root = root * rng.uniform(0.5, 2, (rows, n, 1)) * rng.choice([-1, 1], (rows, n, 1))
    cov = root @ root.transpose(0, 2, 1)
    sd = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    upper = sd * rng.uniform(1.5, 3.5, (rows, n))
    lower = -sd * rng.uniform(1.5, 4, (rows, n)) if rectangular else None
    order = np.stack([rng.permutation(-(-n // copies))[:pivots] for _ in range(rows)])
    return upper, cov, lower, order


@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize(
    "n, pivots",
    [(96, 96), (97, 97), (111, 111), (128, 128), (129, 112), (129, 129), (193, 97), (200, 160),
     (333, 100), (401, 321)],
)  # fmt: skip
def test_sums_agree_with_the_scalar_path(shim, n, pivots, rectangular):
    """All pivots, and pivots with rows that complete; up to 7 outer blocks and 5 of those rows."""
    plan = forced(n + pivots, n, pivots, rectangular=rectangular)
    compare_sums(shim, *plan, "float32")


def test_sums_agree_at_a_thousand_variables(shim):
    compare_sums(shim, *forced(1, 1000, 144, rows=1), "float32", n_points=64)


@pytest.mark.parametrize("n, pivots, copies", [(330, 110, 3), (500, 98, 5), (300, 145, 2)])
def test_groups(shim, n, pivots, copies):
    """Outer blocks of 64 rows close few pivots: slabs that two blocks fill. Groups of 1 to 5 rows
    bound a pivot from both sides; some span two outer blocks."""
    compare_sums(shim, *forced(n, n, pivots, copies=copies), "float32")


def test_the_last_pivots_exhaust_the_others(shim):
    compare_sums(shim, *forced(3, 260, 120, rank=120), "float32")


@pytest.mark.parametrize("points", ["lattice", "richtmyer", "sobol"])
@pytest.mark.parametrize("n_points", [64, 64 * 67])
def test_any_points_and_chunks(shim, n_points, points):
    """67 tiles are 34 chunks, the last of one tile: streams of unequal length in a block."""
    compare_sums(shim, *forced(5, 99, 99, rows=1), "float32", n_points, points)


def test_large_coefficients(shim):
    """Pivots with a hundredth of a standard deviation left: rows of coefficients beyond 100, beside
    others below 1. What float32 loses there the scalar path loses too."""
    upper, cov, lower, order = forced(7, 130, 130)
    near = np.arange(1, 130, 3)
    sd = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    mix = np.eye(130)
    mix[near, near] = 1e-2
    mix[near, near - 1] = 1
    cov = mix @ cov @ mix.T
    upper = np.sqrt(np.diagonal(cov, axis1=1, axis2=2)) * (upper / sd)
    order = np.stack([np.arange(130)] * 2)
    compare_sums(shim, upper, cov, lower, order, "float32")


def test_samples_that_fail_early(shim):
    """y far beyond what float16 holds, from limits that nobody meets: zeros, not NaN."""
    upper, cov, _, order = forced(8, 128, 128)
    for row, limit in enumerate((-1e3, -1e7)):
        upper[row, order[row, 40]] = limit
    compare_sums(shim, upper, cov, None, order, "float32")
    sums = shim.mvn_cdf_sums(upper, cov, None, np.arange(2), order, 64, "float32", "lattice")
    assert (sums[..., 0] == 0).all() and sums[..., 1] == pytest.approx(64, rel=1e-6)


@pytest.mark.parametrize("n", [128, 300])
def test_bias_against_float64(shim, n):
    """Means over all points: within 1e-6 of float64's, whose rounding does not matter here. The bias
    of p is what would stay however many points are taken."""
    upper, cov, _, order = forced(n, n, n, rows=3)
    n_points = 512
    ours = shim.mvn_cdf_sums(upper, cov, None, np.arange(3), order, n_points, "float32", "lattice")
    exact = torch.ops.mvnrob.mvn_cdf_sums(
        *(torch.from_numpy(x) for x in (upper, cov)),
        None,
        torch.arange(3),
        torch.from_numpy(order),
        n_points,
        "float64",
        "lattice",
        False,
    ).numpy()
    bias = np.abs((ours - exact)[..., :2].mean(1)) / n_points
    assert bias.max() < 1e-6


def whole_rows(n=130, rows=3):
    upper, cov, _, _ = forced(11, n, n, rows=rows)
    return torch.from_numpy(upper), torch.from_numpy(cov)


def test_whole_calls(shim):
    upper, cov = whole_rows()
    for options in ({}, {"lower": -upper}):
        options |= {"method": "sov", "abs_tol": 0.03}
        kernels, cpu = (
            by_kernels(shim, upper, cov, **options),
            by_cpu(upper, cov, **options),
        )
        assert assert_agree(kernels, cpu).all()
        assert (kernels.n_pivots >= 96).all() and (kernels.status == Status.CONVERGED).all()


def test_same_bits_for_any_grid_and_company(shim):
    upper, cov = whole_rows()
    options = {"method": "sov", "abs_tol": 0.03}
    expected = by_kernels(shim, upper, cov, **options).bits()
    for tile_rows, resident in ((1, 1), (2, 5)):
        other = by_kernels(shim, upper, cov, **options, tile_rows=tile_rows, resident=resident)
        assert other.bits() == expected
    for order in (1, 2):
        shim.set_order(order)
        try:
            assert by_kernels(shim, upper, cov, **options).bits() == expected
        finally:
            shim.set_order(0)
