"""The tensor samplers of mvn_cdf (csrc/kernels/mvn_cdf_sample_tensor.h and _tensor_double.h), run on
the CPU by csrc/shim: the same sums as the CPU backend's scalar path, and in float32 no bias of its
own against float64.

Their plans need 33 pivots or more (96 where a multiprocessor holds one block), in float64 96 and as
many rows to each pivot as make the products worth it. Ragged sizes are those round a slab of 16 or 8
pivots, an outer block of 64 rows and a tile of 64 points.
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


def with_limits(*plans):
    """Triples n, pivots, whether there are lower limits: both, but for the largest, which take long."""
    return [
        (n, pivots, rectangular)
        for n, pivots in plans
        for rectangular in ((True,) if n > 300 else (False, True))
    ]


@pytest.mark.parametrize(
    "n, pivots, rectangular",
    with_limits(
        (96, 96), (97, 97), (111, 111), (128, 128), (129, 112), (129, 129), (193, 97), (200, 160),
        (333, 100), (401, 321),
    ),
)  # fmt: skip
def test_sums_agree_with_the_scalar_path(shim, n, pivots, rectangular):
    """All pivots, and pivots with rows that complete; up to 7 outer blocks and 5 of those rows."""
    plan = forced(n + pivots, n, pivots, rectangular=rectangular)
    compare_sums(shim, *plan, "float32")


@pytest.mark.parametrize(
    "n, pivots, rectangular",
    with_limits(
        (176, 96), (177, 97), (193, 103), (199, 112), (255, 200), (256, 256), (257, 257), (263, 263),
        (333, 100), (401, 321),
    ),
)  # fmt: skip
def test_sums_agree_with_the_scalar_path_in_float64(shim, n, pivots, rectangular):
    """The same, beside sums that differ in their last bits: by another sampler."""
    plan = forced(n + pivots, n, pivots, rectangular=rectangular)
    compare_sums(shim, *plan, "float64")
    assert takes_tensor(shim, plan)


def takes_tensor(shim, plan):
    """Whether the float64 samples of a plan differ by what sampler a device has for them."""
    upper, cov, lower, order = plan
    with_, without = (
        shim.mvn_cdf_sums(
            upper, cov, lower, np.arange(len(upper)), order, 64, "float64", "lattice",
            double_tensor=double_tensor,
        )
        for double_tensor in (True, False)
    )  # fmt: skip
    assert with_ == pytest.approx(without, rel=1e-11)
    return with_.tobytes() != without.tobytes()


def test_which_float64_rows_take_tensor_cores(shim):
    """96 pivots, and half of them and the rows that complete make 128."""
    for n, pivots, takes in ((175, 96, False), (176, 96, True), (300, 95, False), (254, 254, False),
                             (256, 256, True)):  # fmt: skip
        assert takes_tensor(shim, forced(n, n, pivots, rows=1)) == takes, (n, pivots)


def test_which_devices_have_float64_tensor_cores(shim):
    """A100, H100 and H200; not those of 8.x for graphics, Blackwell, nor what is not known."""
    known = [(major, minor) for major in range(7, 14) for minor in range(10)]
    assert [c for c in known if shim.multiplies_doubles(*c)] == [(8, 0), (9, 0)]


DTYPES = ("float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_agree_at_a_thousand_variables(shim, dtype):
    compare_sums(shim, *forced(1, 1000, 144, rows=1), dtype, n_points=64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, pivots, copies", [(330, 110, 3), (500, 98, 5), (300, 145, 2)])
def test_groups(shim, n, pivots, copies, dtype):
    """Outer blocks of 64 rows close few pivots: slabs that two blocks fill. Groups of 1 to 5 rows
    bound a pivot from both sides; some span two outer blocks. Float64 plans have rows that complete
    as well, for enough of the products."""
    plan = forced(n, n, pivots, copies=copies)
    if dtype == "float64":
        plan = beside(plan, forced(n + 1, 140, 0))
        assert takes_tensor(shim, plan)
    compare_sums(shim, *plan, dtype)


def beside(plan, other):
    """The variables of both; the other's, correlated with the first, complete."""
    (upper, cov, _, order), (more, extra, _, _) = plan, other
    rows, n, m = len(upper), upper.shape[1], more.shape[1]
    # The first m of the first's variables, which are there again with something of their own.
    joint = np.empty((rows, n + m, n + m))
    joint[:, :n, :n] = cov
    joint[:, n:, :n] = cov[:, :m]
    joint[:, :n, n:] = cov[:, :, :m]
    joint[:, n:, n:] = cov[:, :m, :m] + extra
    sd = np.sqrt(np.diagonal(joint, axis1=1, axis2=2))[:, n:]
    return np.concatenate([upper, 3 * sd], 1), joint, None, order


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_last_pivots_exhaust_the_others(shim, dtype):
    compare_sums(shim, *forced(3, 260, 120, rank=120), dtype)


@pytest.mark.parametrize("points", ["lattice", "richtmyer", "sobol"])
def test_any_points_and_chunks_in_float64(shim, points):
    """33 tiles: 17 chunks, the last of one tile."""
    plan = forced(5, 200, 99, rows=1)
    assert takes_tensor(shim, plan)
    compare_sums(shim, *plan, "float64", 64 * 67 if points == "lattice" else 64, points)


@pytest.mark.parametrize("points", ["lattice", "richtmyer", "sobol"])
@pytest.mark.parametrize("n_points", [64, 64 * 67])
def test_any_points_and_chunks(shim, n_points, points):
    """67 tiles are 34 chunks, the last of one tile: streams of unequal length in a block."""
    compare_sums(shim, *forced(5, 99, 99, rows=1), "float32", n_points, points)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_coefficients(shim, dtype):
    """Pivots with a hundredth of a standard deviation left: rows of coefficients beyond 100, beside
    others below 1. What float32 loses there the scalar path loses too."""
    upper, cov, lower, order = forced(7, n := 130 if dtype == "float32" else 260, n)
    near = np.arange(1, n, 3)
    sd = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    mix = np.eye(n)
    mix[near, near] = 1e-2
    mix[near, near - 1] = 1
    cov = mix @ cov @ mix.T
    upper = np.sqrt(np.diagonal(cov, axis1=1, axis2=2)) * (upper / sd)
    order = np.stack([np.arange(n)] * 2)
    compare_sums(shim, upper, cov, lower, order, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_that_fail_early(shim, dtype):
    """y far beyond what float16 holds, from limits that nobody meets: zeros, not NaN."""
    upper, cov, _, order = forced(8, n := 128 if dtype == "float32" else 256, n)
    for row, limit in enumerate((-1e3, -1e7)):
        upper[row, order[row, 40]] = limit
    compare_sums(shim, upper, cov, None, order, dtype)
    sums = shim.mvn_cdf_sums(upper, cov, None, np.arange(2), order, 64, dtype, "lattice")
    assert (sums[..., 0] == 0).all() and sums[..., 1] == pytest.approx(64, rel=1e-6)


@pytest.mark.parametrize("n", [128, 200])
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_calls(shim, dtype):
    upper, cov = whole_rows(130 if dtype == "float32" else 260)
    for options in ({}, {"lower": -upper}):
        options |= {"method": "sov", "abs_tol": 0.03, "compute_dtype": dtype}
        kernels, cpu = (
            by_kernels(shim, upper, cov, **options),
            by_cpu(upper, cov, **options),
        )
        assert assert_agree(kernels, cpu).all()
        assert (kernels.n_pivots >= 96).all() and (kernels.status == Status.CONVERGED).all()


def test_tilted_samples(shim):
    """Small p, which only tilted float64 samples reach."""
    upper, cov = whole_rows(256, rows=2)
    upper = -0.8 * cov.diagonal(dim1=1, dim2=2).sqrt() * torch.linspace(0.8, 1.2, 256).double()
    options = {"abs_tol": 0.0, "rel_tol": 0.2}
    kernels, cpu = by_kernels(shim, upper, cov, **options), by_cpu(upper, cov, **options)
    assert (kernels.n_pivots == 256).all() and (kernels.log_prob < -100).all()
    assert kernels.n_points == pytest.approx(cpu.n_points.numpy())
    assert kernels.log_prob == pytest.approx(cpu.log_prob.numpy(), abs=1e-8)
    assert kernels.log_error == pytest.approx(cpu.log_error.numpy(), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_grid_and_company(shim, dtype):
    upper, cov = whole_rows(130 if dtype == "float32" else 260)
    options = {"method": "sov", "abs_tol": 0.03, "compute_dtype": dtype}
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
