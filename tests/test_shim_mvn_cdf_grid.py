"""The factor of a large row by a whole grid (csrc/kernels/mvn_cdf_grow.h), and by panels of its
columns (mvn_cdf_trailing.h), stretch by stretch (mvn_cdf_stretch.h), on csrc/shim: every number is the one
that a single block comes to column by column, to the bit.

The shim's grids are asked to make whatever they can; their blocks have 256 threads, so only rows of
more variables are theirs. tests/native/shim_mvn_cdf_cases.h has some under the sanitizers.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from singular_tails import cone

from mvnrob import Status

sys.path.insert(0, str(Path(__file__).parent / "native"))
import native_build

# Of a block. For 290 variables that is room for 75 columns and for 20.
DEVICE_SHARED = (56_000, 232_448)


@pytest.fixture(scope="module")
def shim():
    isa = next(isa for isa in ("avx2", "generic") if not native_build.missing_features(isa))
    return native_build.load("shim_kernel_bindings.cpp", isa)


def bits(fields):
    return [np.asarray(x).tobytes() for x in fields]


def by_block_and_grid(shim, call, blocks=(3,)):
    """What ``call(together)`` gives by one block, column by column; in stretches, whatever shared
    memory there is for them, with panels, and by a grid of any size, it must give the same."""
    before = shim.grown()
    alone = call(-1)
    for shared in DEVICE_SHARED:
        shim.set_device_shared(shared)
        assert bits(call(0)) == bits(alone), shared
    assert shim.grown() == before
    for together in blocks:
        assert bits(call(together)) == bits(alone), together
        assert shim.grown() > before
        before = shim.grown()
    return [np.asarray(x) for x in alone]


def plan(shim, upper, matrix, lower=None, *, blocks=(3,), **options):
    options = {
        "abs_tol": 1e-2, "rel_tol": 0.0, "max_points": 8 * 256, "method": "auto",
        "compute_dtype": "auto", "points": "lattice",
    } | options  # fmt: skip

    def call(together):
        seed = np.arange(len(upper))
        return shim.mvn_cdf(upper, matrix, lower, seed, **options, together=together)

    return by_block_and_grid(shim, call, blocks)


def covariances(n, seed):
    """Of full rank; of rank 40; with 130 variables twice; of rank one up to rounding; indefinite;
    with a NaN."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(6, n, n + 20))
    root[1, :, 40:] = 0
    root[2, -130:] = root[2, :130]
    root[3, :, 1:] = 0
    cov = root @ root.transpose(0, 2, 1)
    cov[3, 1, 2] *= 1 - 1e-9
    cov[3, 2, 1] = cov[3, 1, 2]
    away = rng.normal(size=n)
    cov[4] -= 3 * n * np.outer(away, away) / (away @ away)
    cov[5, 7, 200] = cov[5, 200, 7] = np.nan
    sd = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    return sd * rng.uniform(1.5, 3.5, (6, n)), cov, sd


@pytest.mark.parametrize("method, dtype", [("sov", np.float32), ("auto", np.float64)])
def test_covariances(shim, method, dtype):
    upper, cov, sd = (x.astype(dtype) for x in covariances(290, 0))
    upper[3] = sd[3] * np.random.default_rng(1).uniform(0.5, 1, 290)
    for compute_dtype, lower in (("float32", None), ("float64", -upper - sd)):
        fields = plan(shim, upper, cov, lower, method=method, compute_dtype=compute_dtype)
        status, pivots = fields[3], fields[6]
        assert status[4] == Status.INDEFINITE and status[5] == Status.NAN_INPUT
        assert np.isin(status[:4], (Status.CONVERGED, Status.EXACT, Status.MAX_POINTS)).all()
        assert pivots[0] > 200 and pivots[1] == 40 and pivots[3] == 1


def test_a_float64_matrix_made_in_float32_is_judged_again(shim):
    upper, cov, _ = covariances(290, 2)
    rounded = cov[1:3].astype(np.float32).astype(np.float64)
    fields = plan(shim, upper[1:3], rounded, method="sov")
    assert (fields[3] != Status.INDEFINITE).all() and (fields[6] < 290).all()


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
def test_factors(shim, compute_dtype):
    rng = np.random.default_rng(3)
    factor = rng.normal(size=(3, 290, 60))
    factor[0, :, 40:] = 0
    factor[1, 150:] = factor[1, :140]
    sd = np.linalg.norm(factor, axis=2)
    upper = sd * rng.uniform(1.5, 3, sd.shape)
    for lower in (None, -3 * sd):
        fields = plan(
            shim, upper, factor, lower, method="sov", factored=True, compute_dtype=compute_dtype
        )
        assert fields[6].tolist() == [40, 60, 60]


@pytest.mark.parametrize("near", [-1.0, 4.5])
def test_tilt_and_union(shim, near):
    rng = np.random.default_rng(4)
    load = rng.uniform(0.5, 0.9, (2, 290))
    cov = 0.9 * load[:, :, None] * load[:, None, :]
    cov[:, range(290), range(290)] = 1
    cov[:, 1, 0] = cov[:, 0, 1] = 0.99 * cov[:, 0, 1]
    upper = near + rng.uniform(0, 0.3, (2, 290))
    fields = plan(
        shim, upper, cov, abs_tol=0.0, rel_tol=0.1, max_points=8 * 1024, compute_dtype="float64"
    )
    assert (fields[6] == 290).all() and (fields[3] == Status.CONVERGED).all()


@pytest.mark.parametrize("factored", [False, True])
def test_tilt_of_singular_covariances(shim, factored):
    factor, upper, truth, _ = cone(300, 14, 6.0, seed=1, batch=2)
    given = (factor if factored else factor @ factor.mT).contiguous().numpy()
    fields = plan(
        shim, upper.numpy(), given, abs_tol=0.0, rel_tol=0.1, compute_dtype="float64",
        factored=factored,
    )  # fmt: skip
    assert (fields[6] == 14).all() and (fields[3] == Status.CONVERGED).all()
    assert (np.abs(fields[7] - truth.numpy()) <= fields[8]).all()


@pytest.mark.parametrize("pivots", [1, 33, 200])
def test_forced_orders(shim, pivots):
    upper, cov, _ = covariances(270, 5)
    rng = np.random.default_rng(6)
    order = np.stack([rng.permutation(270)[:pivots] for _ in range(2)])
    order[1, pivots // 2] = order[1, 0]  # cannot be followed, unless there is but one

    def call(together):
        return [
            shim.mvn_cdf_sums(
                upper[[0, 2]], cov[[0, 2]], None, np.arange(2), order, 64, "float32", "lattice",
                together=together,
            )
        ]  # fmt: skip

    (sums,) = by_block_and_grid(shim, call, blocks=(1, 2, 5))
    assert np.isfinite(sums[0]).all() and np.isnan(sums[1]).all() == (pivots > 1)


def test_the_order_of_the_input(shim):
    """Of all variables as they stand: entries above the diagonal are not made."""
    upper, cov, _ = covariances(270, 5)
    cov = cov[:2].copy()
    cov[0][np.tril_indices(270, -1)] *= 1 + 1e-13  # of a pair only the pivot's row is read
    order = np.arange(270)[None].repeat(2, 0)

    def call(together):
        return [
            shim.mvn_cdf_sums(
                upper[:2], cov, None, np.arange(2), order, 64, "float32", "lattice",
                together=together,
            )
        ]  # fmt: skip

    (sums,) = by_block_and_grid(shim, call, blocks=(1, 3))
    assert np.isfinite(sums).all()


def test_slopes(shim):
    """mvn_cdf_pathwise: named pivots, greedy ones, and a matrix that is judged again."""
    upper, cov, _ = covariances(262, 7)
    cov[1] = cov[1].astype(np.float32)
    order = np.full((2, 50), -1)
    order[0, :3] = (5, 200, 261)

    def call(together):
        return shim.mvn_cdf_pathwise(
            upper[:2], cov[:2], None, np.arange(2), order, np.ones(2, dtype=np.int64),
            np.full(2, 64), np.ones((2, 8)), "float32", False, "lattice", together=together,
        )  # fmt: skip

    fields = by_block_and_grid(shim, call, blocks=(3,))
    assert np.isfinite(fields[0]).all() and fields[5][0] == 50


def test_rounds_that_a_graph_repeats(shim):
    upper, cov, _ = covariances(280, 10)

    def call(together):
        return shim.mvn_cdf(
            upper[:3], cov[:3], None, np.arange(3), 1e-2, 0.0, 8 * 512, "auto", "auto", "lattice",
            captured=together > 0, together=together,
        )  # fmt: skip

    by_block_and_grid(shim, call, blocks=(3,))


def test_orders_of_threads_and_blocks(shim):
    upper, cov, _ = covariances(266, 8)
    try:
        for seed in (1, 2):
            shim.set_order(seed)
            plan(shim, upper[:2], cov[:2], method="sov", blocks=(3,))
    finally:
        shim.set_order(0)


def test_only_where_it_pays(shim):
    """The first 16 columns of 300 variables read 2,314 numbers each, which is enough for one row at
    a threshold of 2,300 and for two at half of it."""
    upper, cov, _ = covariances(300, 9)
    order = np.arange(16)[None].repeat(2, 0)
    for rows, grow_from, grown in ((1, 2300, 1), (1, 2330, 0), (2, 2300, 0), (2, 1150, 2)):
        before = shim.grown()
        shim.mvn_cdf_sums(
            upper[:rows], cov[:rows], None, np.arange(rows), order[:rows], 64, "float32",
            "lattice", together=2, grow_from=grow_from,
        )  # fmt: skip
        assert shim.grown() - before == grown, (rows, grow_from)
