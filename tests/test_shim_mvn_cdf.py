"""The bodies of mvn_cdf's CUDA kernels, run on the CPU by csrc/shim, against the CPU backend.

Both take their decisions from csrc/plan, so they nearly always take the same ones; what the samples
sum to is compared under forced plans. tests/native/shim_mvn_cdf_cases.h has the same kernels under
the sanitizers.
"""

import math
import sys
from functools import partial
from itertools import chain, groupby
from pathlib import Path

import honesty
import numpy as np
import problems
import pytest
import torch
from singular_tails import cone
from test_cuda import AGREEMENT, mixed_batch, pivot_order, standard_form
from test_exact_errors import equal
from test_mvn_cdf import EDGES, equicorrelated, random_problem
from test_mvn_cdf_factor import factor_problem
from test_mvn_cdf_union import problem as union_problem

from mvnrob import Status, bvn_cdf, mvn_cdf

sys.path.insert(0, str(Path(__file__).parent / "native"))
import native_build

# Round the edges of the register blocks (8, 16), of a warp and of an outer block (32, 64).
SIZES = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 66, 127, 128, 129, 200)
MAX_POINTS = 8 * 2**14


@pytest.fixture(scope="module")
def shim():
    isa = next(isa for isa in ("avx2", "generic") if not native_build.missing_features(isa))
    return native_build.load("shim_kernel_bindings.cpp", isa)


def array(t):
    return None if t is None else t.numpy()


class Result:
    """What mvn_cdf returns, by the kernels; fields are arrays."""

    def __init__(self, fields):
        self.prob, self.complement, self.error, self.status, *others = fields
        self.n_points, self.n_active, self.n_pivots, self.log_prob, self.log_error = others

    def bits(self):
        return [np.asarray(x).tobytes() for x in vars(self).values()]


def by_kernels(
    shim, upper, cov, lower=None, *, abs_tol=1e-3, rel_tol=0.0, seed=None, method="auto",
    compute_dtype="auto", points="lattice", max_points=MAX_POINTS, tile_rows=1 << 20, resident=3,
    factored=False, captured=False, host_lag=0, log_tol=0.0,
):  # fmt: skip
    seed = np.arange(len(upper)) if seed is None else np.asarray(seed)
    return Result(
        shim.mvn_cdf(
            array(upper), array(cov), array(lower), seed, abs_tol, rel_tol, max_points, method,
            compute_dtype, points, tile_rows=tile_rows, resident=resident, factored=factored,
            captured=captured, host_lag=host_lag, log_tol=log_tol,
        )
    )  # fmt: skip


def by_cpu(
    upper, cov, lower=None, *, abs_tol=1e-3, seed=None, compute_dtype="auto", factored=False,
    **options,
):  # fmt: skip
    seed = torch.arange(len(upper)) if seed is None else torch.as_tensor(seed)
    dtype = {"auto": None, "float32": torch.float32, "float64": torch.float64}[compute_dtype]
    matrix = {"factor" if factored else "cov": cov}
    return mvn_cdf(
        upper, **matrix, lower=lower, abs_tol=abs_tol, seed=seed, compute_dtype=dtype,
        max_points=MAX_POINTS, return_info=True, **options,
    )  # fmt: skip


def assert_agree(kernels, cpu):
    """The same plan gives the same numbers to rounding; another one agrees within the errors. Which
    rows had the same one: equal counts, and an order of the pivots that is not decided by ties."""
    near = np.abs(kernels.prob - cpu.prob.numpy()) <= 2e-6
    same_plan = (near | np.isnan(kernels.prob)) & (
        (kernels.n_points == cpu.n_points.numpy())
        & (kernels.n_active == cpu.n_active.numpy())
        & (kernels.n_pivots == cpu.n_pivots.numpy())
    )
    allowed = np.where(same_plan, 2e-6, kernels.error + cpu.error.numpy())
    for ours, theirs in ((kernels.prob, cpu.prob), (kernels.complement, cpu.complement)):
        theirs = theirs.numpy()
        assert (np.isnan(ours) == np.isnan(theirs)).all()
        difference = np.abs(np.nan_to_num(ours) - np.nan_to_num(theirs))
        assert (difference <= np.nan_to_num(allowed)).all(), difference.max()
    assert (kernels.status == cpu.status.numpy())[same_plan].all()
    return same_plan


# ---- forced plans ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", SIZES)
def test_sums_agree_under_a_forced_plan(shim, n, compute_dtype):
    rng = np.random.default_rng(n)
    for pivots in sorted({1, max(1, n // 3), min(n, 16), min(n, 32), min(n, 33), max(1, n - 1), n}):
        for rank in (n + 1, pivots):  # of full rank; the last pivots exhaust the others
            rows = 2
            root = rng.normal(size=(rows, n, rank))
            cov = root @ root.transpose(0, 2, 1)
            sd = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
            upper = sd * rng.uniform(0.5, 2.5, (rows, n))
            lower = -sd * rng.uniform(0.5, 3, (rows, n)) if pivots % 2 else None
            order = np.stack([rng.permutation(n)[:pivots] for _ in range(rows)])
            compare_sums(shim, upper, cov, lower, order, compute_dtype)


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 8, 31, 32, 33, 65, 130])
def test_sums_of_a_factor_agree(shim, n, compute_dtype):
    rng = np.random.default_rng(n)
    for columns in sorted({1, max(1, n // 2), n, n + 5, 33}):
        factor = rng.normal(size=(2, n, columns))
        sd = np.linalg.norm(factor, axis=2)
        upper = sd * rng.uniform(0.5, 2.5, (2, n))
        lower = -sd * rng.uniform(0.5, 3, (2, n)) if columns % 2 else None
        pivots = min(n, columns)
        order = np.stack([rng.permutation(n)[:pivots] for _ in range(2)])
        compare_sums(shim, upper, factor, lower, order, compute_dtype, factored=True)


def compare_sums(
    shim, upper, cov, lower, order, compute_dtype, n_points=192, points="lattice", factored=False
):
    seed = np.arange(len(upper))
    theirs = torch.ops.mvnrob.mvn_cdf_sums(
        *(torch.from_numpy(x) for x in (upper, cov)),
        None if lower is None else torch.from_numpy(lower),
        torch.from_numpy(seed),
        torch.from_numpy(order),
        n_points,
        compute_dtype,
        points,
        factored,
    ).numpy()
    relative, each = AGREEMENT[compute_dtype]
    # Devices differ in the sampler of plans that large.
    by_device = compute_dtype == "float32" and 32 < order.shape[1] < 96
    for tensor in (True, False) if by_device else (True,):
        ours = shim.mvn_cdf_sums(
            upper, cov, lower, seed, order, n_points, compute_dtype, points, factored=factored,
            double_tensor=tensor,
        )  # fmt: skip
        assert (np.isnan(ours) == np.isnan(theirs)).all()
        # The bounds below and above are small differences of the others.
        scale = np.abs(theirs)
        scale[..., 2:4] = np.maximum(scale[..., 2:4], np.minimum(scale[..., :1], scale[..., 1:2]))
        allowed = relative * scale + each * n_points
        assert (np.nan_to_num(np.abs(ours - theirs)) <= np.nan_to_num(allowed)).all()


@pytest.mark.parametrize("points", ["lattice", "richtmyer", "sobol"])
@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
@pytest.mark.parametrize("n, pivots", [(7, 7), (40, 30), (70, 40), (300, 280)])
def test_sums_agree_for_any_points(shim, n, pivots, compute_dtype, points):
    """Small and blocked programs; 280 pivots are more than the tables of lattice and Sobol have."""
    upper, cov = random_problem(n, n, batch=(1,))
    order = np.random.default_rng(n).permutation(n)[None, :pivots]
    n_points = 128 if n > 100 else 4096 + 192
    compare_sums(shim, upper.numpy(), cov.numpy(), None, order, compute_dtype, n_points, points)


@pytest.mark.parametrize("points", ["richtmyer", "sobol"])
def test_union_and_tilt_for_any_points(shim, points):
    made = [union_problem(5, near, 5, True) for near in (3.0, 5.0)]
    upper, cov, lower = (torch.from_numpy(np.array([m[i] for m in made])) for i in range(3))
    options = {"abs_tol": 0.0, "rel_tol": 1e-2, "points": points}
    kernels, cpu = (f(upper, cov, lower, **options) for f in (partial(by_kernels, shim), by_cpu))
    assert assert_agree(kernels, cpu).all()
    assert kernels.complement == pytest.approx(cpu.complement.numpy(), rel=1e-11)
    for n in (5, 40):
        upper = torch.linspace(-5, -4.7, n).double()[None]
        kernels = by_kernels(shim, upper, equicorrelated(n)[None], **options)
        cpu = by_cpu(upper, equicorrelated(n)[None], **options)
        assert kernels.log_prob == pytest.approx(cpu.log_prob.numpy(), abs=1e-9)


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
def test_sums_agree_over_all_families(shim, compute_dtype):
    """At least 200 problems of all kinds, singular ones and rectangles included."""
    seen, families = 0, set()
    for problem in problems.known_answers(0):
        if problem.n > 130:
            continue
        upper, lower, cov = standard_form(problem)
        order = pivot_order(upper, lower, cov)
        if len(order) == 0:
            continue
        for pivots in sorted({len(order), max(1, len(order) // 2)}):
            chosen = np.array([order[:pivots]])
            compare_sums(shim, upper[None], cov[None], lower[None], chosen, compute_dtype, 128)
        seen += 1
        families.add(problem.family)
    assert seen >= 200 and len(families) >= 15


# ---- a factor in place of the covariance ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "n, columns", [(1, 2), (2, 3), (3, 2), (7, 3), (32, 40), (33, 20), (70, 30)]
)
def test_factors(shim, n, columns, dtype):
    """Closed forms, small and blocked rows, groups, completion, the union, the tilt; strides."""
    upper, factor = factor_problem(n, columns, n, batch=(3,), dtype=dtype)
    wide = torch.zeros(3, 2 * n, columns + 1, dtype=dtype)
    wide[:, ::2, 1:] = factor
    for options in (
        {},
        {"lower": -upper - 1, "method": "sov"},
        {"abs_tol": 0.0, "rel_tol": 2e-2, "compute_dtype": "float64"},
    ):
        for scale in (1, 2.5, -1) if "rel_tol" in options else (1,):
            kernels = by_kernels(shim, scale * upper, factor, factored=True, **options)
            cpu = by_cpu(scale * upper, factor, factored=True, **options)
            assert assert_agree(kernels, cpu).mean() > 0.5
            strided = by_kernels(shim, scale * upper, wide[:, ::2, 1:], factored=True, **options)
            assert strided.bits() == kernels.bits()


def test_a_factor_s_digits(shim):
    """Near multiples that only a factor tells apart, duplicates, a row of zeros, no columns, NaN."""
    factor = torch.eye(9, 10).double()
    factor[1] = factor[0]
    factor[1, 9] = 1e-9
    factor[3] = -2 * factor[2]
    factor[4] = 0
    upper = torch.ones(9).double()
    upper[:2] = 1e-9
    lower = torch.full((9,), -math.inf).double()
    lower[:2] = -1e-9
    options = {"abs_tol": 0.0, "rel_tol": 1e-2, "factored": True}
    kernels = by_kernels(shim, upper[None], factor[None], lower[None], **options)
    cpu = by_cpu(upper[None], factor[None], lower[None], **options)
    assert assert_agree(kernels, cpu).all()
    assert kernels.status[0] == Status.CONVERGED
    assert kernels.log_prob == pytest.approx(cpu.log_prob.numpy(), abs=1e-9)
    nothing = by_kernels(shim, upper[None], factor[None, :, :0], factored=True)
    assert nothing.prob[0] == 1 and nothing.status[0] == Status.EXACT
    factor[5, 3] = math.nan
    assert by_kernels(shim, upper[None], factor[None], factored=True).status[0] == Status.NAN_INPUT


# ---- blocks of one factor -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 9, 33, 130, 300])
def test_one_factor(shim, n):
    """Exact on both: either side, rectangles, a variable without rest, blocks, singles, pairs."""
    rng = np.random.default_rng(n)
    load = rng.uniform(0.3, 0.95, (4, n)) * rng.choice([-1, 1], (4, n))
    load[1, 0] = 1
    cov = load[:, :, None] * load[:, None, :]
    if n > 4:
        block = rng.integers(0, 3, n)
        cov[2] *= block[:, None] == block
        cov[3, -2:] = cov[3, :, -2:] = 0
        cov[3, -1, -2] = cov[3, -2, -1] = -0.4
    cov[:, np.arange(n), np.arange(n)] = 1
    cov = torch.from_numpy(cov)
    for near in (0.5, 6.0, -4.0):
        upper = torch.from_numpy(near + rng.uniform(0, 1, (4, n)))
        for lower in (None, -upper.abs() - 1):
            for options in ({"method": "closed_form"}, {"abs_tol": 0.0, "rel_tol": 1e-3}):
                kernels = by_kernels(shim, upper, cov, lower, **options)
                cpu = by_cpu(upper, cov, lower, **options)
                assert (kernels.status == Status.EXACT).all() and (cpu.status == Status.EXACT).all()
                assert kernels.log_prob == pytest.approx(
                    cpu.log_prob.numpy(), rel=1e-11, abs=1e-300
                )
                assert kernels.complement == pytest.approx(cpu.complement.numpy(), rel=1e-11)
                for ours, theirs in (
                    (kernels.error, cpu.error),
                    (kernels.log_error, cpu.log_error),
                ):
                    assert ours == pytest.approx(theirs.numpy(), rel=0.1, abs=1e-18)


@pytest.mark.parametrize("rest", [5, 20, 33, 140])
def test_exact_blocks_beside_others(shim, rest):
    """The exact blocks are integrated and the rest is sampled on both: either tail, the union, the
    tilt, completion, steep pairs and triples, screening, two blocks of no form; factors."""
    rng = np.random.default_rng(rest)
    sizes = [1, 9, 2, 3, rest, 4, 6]
    n = sum(sizes)
    columns = n + len(sizes)
    factor = np.zeros((4, n, columns))
    at = 0
    for k, size in enumerate(sizes):
        here = slice(at, at + size)
        if size in (9, 4):
            load = rng.uniform(0.3, 0.95, (4, size))
            factor[:, here, n + k] = load
            factor[:, np.arange(at, at + size), np.arange(at, at + size)] = np.sqrt(1 - load**2)
        else:
            factor[:, here, at : at + size + 1] = rng.normal(size=(4, size, size + 1))
        at += size
    pair = slice(10, 12)
    factor[0, pair] = 0
    factor[0, pair, 10] = 1
    factor[0, 11, 11] = 1e-4
    factor /= np.linalg.norm(factor, axis=2)[..., None]
    order = rng.permutation(n)
    factor = torch.from_numpy(factor[:, order])
    cov = factor @ factor.mT
    assert ((cov == 0).sum((1, 2)) > 0).all()
    rows = 1 if rest > 100 else 4  # those take long
    factor, cov = factor[:rows], cov[:rows]
    for near, options in (
        (1.0, {}),
        (1.0, {"compute_dtype": "float64", "abs_tol": 1e-3}),
        (3.5, {"abs_tol": 0.0, "rel_tol": 2e-2}),
        (-1.0, {"abs_tol": 0.0, "rel_tol": 5e-2}),
    ):
        upper = torch.from_numpy(near + rng.uniform(0, 1, (4, n)))[:rows]
        for lower in (None, -upper.abs() - 1.5):
            for given in ({}, {"factored": True}):
                matrix = factor if given else cov
                kernels = by_kernels(shim, upper, matrix, lower, **given, **options)
                cpu = by_cpu(upper, matrix, lower, **given, **options)
                assert assert_agree(kernels, cpu).mean() >= 0.5
                assert (kernels.n_points > 0).any()
                finite = np.isfinite(kernels.log_error) & np.isfinite(cpu.log_error.numpy())
                allowed = kernels.log_error + cpu.log_error.numpy()
                apart = np.abs(kernels.log_prob - cpu.log_prob.numpy())
                assert (apart <= allowed)[finite].all()


def ends_of_the_digits():
    """Exact rows of tests/test_exact_errors.py, and indefinite ones."""
    infinite = math.inf
    for limit in (-1e5, -1e7, -1e9, -1e20):
        yield [limit] * 5, equal(5, 0.25), None
    low = np.linspace(0.1, 1.1, 5)
    yield low + 1e-12, equal(5, 0.25), low
    yield np.ones(200), equal(200, 0.99), None
    for n in (1, 2, 5):
        yield [-1e10] * n, torch.eye(n).double(), None
    yield [1.5 + 1e-12, 0, 0], 3 * torch.eye(3).double(), [1.5, -infinite, -infinite]
    load = torch.tensor([1, 0.5, 0.25, 0.75, 0.5]).double()
    cov = 3 * torch.outer(load, load).fill_diagonal_(1.0)
    yield [1.5 + 1e-10, 0, 0, 0, 0], cov, [1.5] + [-infinite] * 4
    near = equal(2, 1 - 4 * 2.0**-53)
    others = torch.block_diag(near, equal(4, 0.5))
    yield [-30, -30], near, None
    yield [-30, -30, 0, 0, 0, 0], others, None
    for gap in (0, 1e-8, 1e-5):
        yield [0, infinite], near, [-infinite, gap]
        yield [0, infinite, 1, 1, 1, 1], others, [-infinite, gap] + [-infinite] * 4
    for n, corr in ((6, -0.5), (10, -0.2), (40, -0.3)):
        yield [1.0] * n, equal(n, corr), None


@pytest.mark.filterwarnings("ignore:mvn_cdf:RuntimeWarning")
def test_ends_of_the_digits(shim):
    for upper, cov, lower in ends_of_the_digits():
        upper = torch.as_tensor(np.asarray(upper, dtype=float))[None]
        lower = None if lower is None else torch.as_tensor(np.asarray(lower, dtype=float))[None]
        kernels, cpu = (by(upper, cov[None], lower) for by in (partial(by_kernels, shim), by_cpu))
        assert int(kernels.status[0]) == int(cpu.status[0])
        assert int(cpu.status[0]) in (Status.EXACT, Status.INDEFINITE)
        both = float(cpu.log_error[0])
        assert (kernels.n_active == cpu.n_active.numpy()).all()
        for name, abs_error in (("prob", float(cpu.error[0])), ("log_prob", both)):
            ours, theirs = float(getattr(kernels, name)[0]), float(getattr(cpu, name)[0])
            assert ours == pytest.approx(theirs, rel=1e-12, abs=max(abs_error, 1e-300), nan_ok=True)
        for name in ("error", "log_error"):
            ours, theirs = getattr(kernels, name)[0], float(getattr(cpu, name)[0])
            assert ours == pytest.approx(theirs, rel=0.1, abs=1e-300, nan_ok=True)


# ---- whole calls ----------------------------------------------------------------------------------


def known(limit=200):
    chosen = sorted((p for p in problems.known_answers(0) if p.n <= limit), key=lambda p: p.n)
    for _, group in groupby(chosen, key=lambda p: p.n):
        yield list(group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_answers(shim, dtype):
    """The CPU's plans and numbers, and the truth within the stated error; every other problem."""
    rows = same = misses = 0
    for group in known():
        group = group[int(dtype == torch.float64) :: 2]
        if not group:
            continue
        mean = [np.zeros(p.n) if p.mean is None else p.mean for p in group]
        upper, cov, lower = (
            torch.from_numpy(np.stack(x)).to(dtype)
            for x in (
                [p.upper - m for p, m in zip(group, mean, strict=True)],
                [p.cov for p in group],
                [
                    (np.full(p.n, -math.inf) if p.lower is None else p.lower) - m
                    for p, m in zip(group, mean, strict=True)
                ],
            )
        )
        kernels = by_kernels(shim, upper, cov, lower)
        same += int(assert_agree(kernels, by_cpu(upper, cov, lower)).sum())
        rows += len(group)
        truth = np.array([p.prob for p in group])
        slack = np.array([p.abs_err_of_answer for p in group])
        if dtype == torch.float32:
            slack += [honesty.rounding_of_input(p) for p in group]
        misses += int((np.abs(kernels.prob - truth) > kernels.error + slack).sum())
    assert rows >= 250
    assert same >= 0.97 * rows
    assert misses <= 0.005 * rows


def test_a_contradiction_is_not_merged(shim):
    """Two variables are multiples of one another, and disagree beside a third."""
    cov = torch.full((1, 5, 5), 0.2).double()
    cov.diagonal(dim1=1, dim2=2).fill_(1.0)
    for i, j, r in ((0, 1, 1.0), (0, 3, 0.5), (1, 3, 0.3)):
        cov[0, i, j] = cov[0, j, i] = r
    upper = torch.linspace(0.2, 1, 5).double()[None]
    kernels, cpu = by_kernels(shim, upper, cov), by_cpu(upper, cov)
    assert int(kernels.status[0]) == int(cpu.status[0]) == Status.INDEFINITE


@pytest.mark.parametrize("n", [300, 520])
def test_large_rows(shim, n):
    """256 threads plan; some rows screen to a few variables, flat ones deepen."""
    upper, cov = random_problem(n, n, rank=40, batch=(2,))
    upper = upper * torch.tensor([1.0, 2.5])[:, None]
    assert assert_agree(by_kernels(shim, upper, cov), by_cpu(upper, cov)).all()


@pytest.mark.parametrize("upper, cov, lower, prob, status", EDGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges(shim, upper, cov, lower, prob, status, dtype):
    upper, cov = torch.tensor([upper]).to(dtype), torch.tensor([cov]).to(dtype)
    n = upper.shape[-1]
    lower = None if lower is None else torch.tensor([lower]).to(dtype).reshape(1, n)
    result = by_kernels(shim, upper, cov.reshape(1, n, n), lower, abs_tol=1e-5)
    assert result.status[0] == status
    if math.isnan(prob):
        assert np.isnan([result.prob, result.complement, result.error]).all()
    else:
        assert result.prob[0] == pytest.approx(prob, abs=1e-6)
        assert result.complement[0] == pytest.approx(1 - prob, abs=1e-6)


@pytest.mark.parametrize("rel_tol", [1e-2, 1e-4])
def test_relative_tolerance(shim, rel_tol):
    """Screening that took too much for a relative tolerance is undone, closed forms included."""
    upper, cov = random_problem(12, 5, batch=(6,))
    upper = upper * torch.linspace(0.5, 5, 6, dtype=torch.float64)[:, None]
    options = {"abs_tol": 0.0, "rel_tol": rel_tol, "compute_dtype": "float64"}
    assert_agree(by_kernels(shim, upper, cov, **options), by_cpu(upper, cov, **options))


@pytest.mark.parametrize("n", [3, 6, 12])
def test_tolerance_of_the_logarithm(shim, n):
    """Small p by tilted samples, p near 1 by few plain ones, blocks beside others."""
    upper, cov = random_problem(n, 6, batch=(7,))
    upper = upper * torch.linspace(-3, 5, 7, dtype=torch.float64)[:, None]
    cov[3:5, 3:, :3] = cov[3:5, :3, 3:] = 0
    options = {"abs_tol": 0.0, "log_tol": 1e-2}
    kernels, cpu = by_kernels(shim, upper, cov, **options), by_cpu(upper, cov, **options)
    assert assert_agree(kernels, cpu).all()
    assert (kernels.log_error <= 1.1e-2).all()
    assert kernels.log_prob == pytest.approx(cpu.log_prob.numpy(), abs=1e-9)


@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("n", [3, 5, 33, 70])
def test_union(shim, n, rectangular):
    made = [union_problem(n, near, n, rectangular) for near in (3.0, 5.0, 7.0)]
    upper, cov = (torch.from_numpy(np.array([m[i] for m in made])) for i in (0, 1))
    lower = torch.from_numpy(np.array([m[2] for m in made])) if rectangular else None
    options = {"abs_tol": 0.0, "rel_tol": 1e-2}
    kernels, cpu = (
        by_kernels(shim, upper, cov, lower, **options),
        by_cpu(upper, cov, lower, **options),
    )
    assert assert_agree(kernels, cpu).all()
    assert kernels.complement == pytest.approx(cpu.complement.numpy(), rel=1e-11)


@pytest.mark.parametrize("kind", ["orthant", "rectangle", "duplicates"])
@pytest.mark.parametrize("n, near", [(2, -3), (3, -8), (5, -10), (20, -2), (40, -3), (70, -20)])
def test_tilted(shim, n, near, kind):
    upper = torch.linspace(near, near + 0.3, n).double()
    cov, lower = equicorrelated(n), None
    if kind == "rectangle":
        lower = (upper - torch.linspace(0.5, 2, n))[None]
    if kind == "duplicates":
        twice = torch.arange(min(2 * n, 70)) % n
        upper, cov = upper[twice], cov[twice][:, twice]
    options = {"abs_tol": 0.0, "rel_tol": 2e-2}
    kernels = by_kernels(shim, upper[None], cov[None], lower, **options)
    cpu = by_cpu(upper[None], cov[None], lower, **options)
    assert_agree(kernels, cpu)
    assert kernels.log_prob == pytest.approx(cpu.log_prob.numpy(), abs=1e-9)
    assert kernels.log_error == pytest.approx(cpu.log_error.numpy(), rel=1e-3)


@pytest.mark.parametrize("n, rank, far", [(9, 2, 6.0), (20, 5, 1.5), (40, 33, 4.0), (140, 6, 30.0)])
@pytest.mark.parametrize("factored", [False, True])
def test_tilted_singular(shim, n, rank, far, factored):
    factor, upper, truth, _ = cone(n, rank, far, seed=n)
    given = (factor if factored else factor @ factor.mT).contiguous()
    options = {"abs_tol": 0.0, "rel_tol": 2e-2, "factored": factored}
    kernels, cpu = by_kernels(shim, upper, given, **options), by_cpu(upper, given, **options)
    assert_agree(kernels, cpu)
    assert kernels.log_prob == pytest.approx(cpu.log_prob.numpy(), rel=1e-9)
    assert (np.abs(kernels.log_prob - truth.numpy()) <= kernels.log_error + 1e-6).all()
    assert (kernels.log_error < 2.1e-2).all()
    # the last of them contradicts all others
    given = torch.cat([factor, -factor.mean(1, keepdim=True)], 1)
    contradicted = torch.cat([upper, upper.mean(1, keepdim=True) - far], 1)
    problem = contradicted, (given if factored else given @ given.mT).contiguous()
    kernels, cpu = by_kernels(shim, *problem, **options), by_cpu(*problem, **options)
    for r in (kernels, cpu):
        assert (np.asarray(r.status) == Status.EXACT).all() and (np.asarray(r.prob) == 0).all()
        assert (np.asarray(r.error) == 0).all() and (np.asarray(r.log_prob) == -math.inf).all()
    assert (kernels.n_points == cpu.n_points.numpy()).all()


def test_a_limit_whose_mass_underflows(shim):
    upper = torch.tensor([[-60.0, 40.0], [-38.0, 38.0], [0.5, 50.0], [-60.0, 1e8]]).double()
    cov = torch.tensor([[1, -0.99], [-0.99, 1]]).double().expand(4, 2, 2)
    for wide in (False, True):
        if wide:  # sampled beside others
            upper = torch.cat([upper, torch.tensor([0.5, 41.0, 0.3]).double().expand(4, 3)], 1)
            rest = 0.5 * torch.eye(3).double() + 0.5
            cov = torch.stack([torch.block_diag(c, rest) for c in cov])
        problem = upper.contiguous(), cov.contiguous()
        options = {"abs_tol": 0.0, "rel_tol": 1e-2}
        kernels, cpu = by_kernels(shim, *problem, **options), by_cpu(*problem, **options)
        assert_agree(kernels, cpu)
        assert (kernels.n_active == cpu.n_active.numpy()).all()
        assert (np.isfinite(kernels.log_prob) & np.isfinite(kernels.log_error)).all()
        gap = np.abs(kernels.log_prob - cpu.log_prob.numpy())
        assert (gap <= kernels.log_error + cpu.log_error.numpy()).all()


def test_methods(shim):
    upper, cov = random_problem(6, 3, batch=(2,))
    assert_agree(by_kernels(shim, upper, cov, method="sov"), by_cpu(upper, cov, method="sov"))
    refused = by_kernels(shim, upper, cov, method="closed_form")
    assert (refused.status == Status.NO_CLOSED_FORM).all() and np.isnan(refused.prob).all()
    product = by_kernels(shim, upper, torch.eye(6).double().expand(2, 6, 6), method="closed_form")
    expected = torch.special.ndtr(upper).prod(-1).numpy()
    assert (product.status == Status.EXACT).all()
    assert product.prob == pytest.approx(expected, rel=1e-13)
    small = by_kernels(shim, upper[:, :3], cov[:, :3, :3], method="closed_form")
    assert_agree(small, by_cpu(upper[:, :3], cov[:, :3, :3], method="closed_form"))


def test_max_points(shim):
    upper, cov = random_problem(40, 1, batch=(3,))
    result = by_kernels(shim, upper, cov, abs_tol=1e-6, compute_dtype="float64", max_points=4096)
    assert (result.status == Status.MAX_POINTS).all()
    assert (result.n_points <= 4096).all() and (result.error > 1e-6).all()


def test_indefinite_and_rounded_to_float32(shim):
    indefinite = torch.tensor(
        [[1.0, 1, 0, 0], [1, 1, 0.5, 0], [0, 0.5, 1, 0], [0, 0, 0, 1]]
    ).double()
    gram = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    rounded = (gram @ gram.T).double()  # rank 3, indefinite by float32's rounding
    assert by_kernels(shim, torch.ones(1, 4).double(), indefinite[None]).status[0] == 3
    upper = torch.linspace(0.5, 2, 7).double()[None]
    assert_agree(by_kernels(shim, upper, rounded[None]), by_cpu(upper, rounded[None]))
    assert by_kernels(shim, upper, rounded[None]).status[0] == Status.CONVERGED


# ---- bvn_cdf ------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 31, 32, 33, 127, 128, 129, 300])
def test_bvn_cdf(shim, n, blocks):
    rng = np.random.default_rng(n)
    h, k, rho = 2 * rng.normal(size=n), 2 * rng.normal(size=n), rng.uniform(-1, 1, n)
    expected = bvn_cdf(*(torch.from_numpy(x) for x in (h, k, rho))).numpy()
    assert shim.bvn_cdf(h, k, rho, blocks) == pytest.approx(expected, abs=1e-15)


# ---- standard_normal ----------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("dim", [1, 2, 7, 40, 511, 512, 513, 2048, 2049, 5001])
def test_standard_normal(shim, dim, blocks):
    """Several draws to a block, one, and stretches of one; also fewer blocks than these need."""
    keys = torch.arange(-2, 3) * 2**61
    expected = torch.ops.mvnrob.standard_normal(keys, 4, 3, dim).numpy()
    found = shim.standard_normal(keys.numpy(), 4, 3, dim, blocks)
    # the inverse of the generic instruction set: another last bit now and then
    assert np.abs(found - expected).max() <= 5e-7
    assert np.mean(found != expected) <= 1e-3


# ---- independence of everything but the row ------------------------------------------------------


@pytest.fixture(scope="module")
def mixed():
    """Rows of every kind in one batch: closed forms, small, blocked, completed, bad."""
    upper, cov = random_problem(70, 7, rank=60, batch=(6,))
    upper = upper * torch.tensor([0.6, 1.0, 2.0, 3.0, 1.0, 1.0]).double()[:, None]
    cov[4] = torch.eye(70).double()
    cov[5, 3, 3] = math.nan
    return upper, cov


def test_same_bits_for_any_tile_and_grid(shim, mixed):
    expected = by_kernels(shim, *mixed).bits()
    for tile_rows, resident in ((1, 1), (2, 5), (4, 17), (6, 2)):
        assert by_kernels(shim, *mixed, tile_rows=tile_rows, resident=resident).bits() == expected


def test_same_bits_in_any_company(shim, mixed):
    upper, cov = mixed
    whole = by_kernels(shim, upper, cov)
    for rows in ([3], [5, 0], [4, 2, 1, 0, 5, 3]):
        part = by_kernels(shim, upper[rows], cov[rows], seed=rows)
        for name, values in vars(part).items():
            assert values.tobytes() == getattr(whole, name)[rows].tobytes(), name


@pytest.mark.parametrize("order", [1, 2, 3])
def test_same_bits_in_any_order_of_threads(shim, mixed, order):
    expected = by_kernels(shim, *mixed).bits()
    shim.set_order(order)
    try:
        assert by_kernels(shim, *mixed).bits() == expected
    finally:
        shim.set_order(0)


@pytest.mark.parametrize(
    "n, options",
    [(2, {}), (9, {"rel_tol": 1e-2, "abs_tol": 0.0}), (40, {}), (70, {"method": "sov"}), (130, {})],
)
def test_a_captured_loop_stops_by_itself(shim, n, options):
    """A graph repeats the launches of a round until no row is left: the same answers, from fewer
    launches than a host makes that does not look."""
    upper, cov, seed = mixed_batch(n)
    results, launches = [], []
    for how in ({"host_lag": None}, {"captured": True}):
        before = shim.launches()
        results.append(by_kernels(shim, upper, cov, seed=seed, **how, **options))
        launches.append(shim.launches() - before)
    assert results[0].bits() == results[1].bits()
    assert n == 2 or launches[1] < launches[0]


def test_a_captured_loop_ends_with_the_last_round(shim):
    upper, cov, _ = mixed_batch(40)
    few = {"abs_tol": 1e-9, "max_points": 8 * 2**8}
    hard = by_kernels(shim, upper, cov, captured=True, **few)
    assert Status.MAX_POINTS in hard.status
    assert hard.bits() == by_kernels(shim, upper, cov, **few).bits()


def launches_of(shim, *args, **kwargs):
    """The answer, and of each launch the round it was made for."""
    shim.launched_rounds()
    return by_kernels(shim, *args, **kwargs), shim.launched_rounds()


@pytest.mark.parametrize(
    "n, options",
    [(2, {}), (9, {"rel_tol": 1e-2, "abs_tol": 0.0}), (40, {"compute_dtype": "float64"}),
     (70, {"method": "sov"})],
)  # fmt: skip
def test_the_host_stops_launching(shim, n, options):
    """Once it sees that no row is left, however late, to the same bits."""
    upper, cov, seed = mixed_batch(n)
    arguments = {"seed": seed, **options}
    expected, every = launches_of(shim, upper, cov, host_lag=None, **arguments)
    last = max(every)
    assert every.count(last) == 1 and set(every) == set(range(last + 1))
    found, at_once = launches_of(shim, upper, cov, **arguments)
    assert found.bits() == expected.bits()
    # The first sampler after the plan that left no row is the last launch: one for that round's plan,
    # and one. A graph's loop makes as many plans.
    done = at_once[-1]
    assert done < last and at_once.count(done) == 2 and at_once == every[: len(at_once)]
    found, looped = launches_of(shim, upper, cov, captured=True, **arguments)
    assert found.bits() == expected.bits()
    assert done == looped.count(1)  # the plan of each pass
    for lag in (1, 5, 1000):
        found, late = launches_of(shim, upper, cov, host_lag=lag, **arguments)
        assert found.bits() == expected.bits()
        assert late == every[: len(at_once) + lag]
    # Tiles stop by themselves, whatever an earlier one was told.
    found, tiles = launches_of(shim, upper, cov, tile_rows=2, **arguments)
    assert found.bits() == expected.bits()
    alone = []
    for rows in torch.arange(9).split(2):
        own = {**arguments, "seed": seed[rows]}
        alone.append(launches_of(shim, upper[rows], cov[rows], **own)[1])
    assert tiles == list(chain.from_iterable(alone)) and max(rounds[-1] for rounds in alone) == done


def test_the_host_stops_after_the_first_plan(shim):
    """Rows that no sample is wanted for."""
    upper, cov = random_problem(40, 1, batch=(3,))
    _, rounds = launches_of(shim, upper * math.nan, cov)
    assert rounds == [0, 0]


def test_the_host_launches_every_round_that_rows_need(shim):
    upper, cov, _ = mixed_batch(40)
    few = {"abs_tol": 1e-9, "max_points": 8 * 2**8}
    expected, every = launches_of(shim, upper, cov, host_lag=None, **few)
    found, rounds = launches_of(shim, upper, cov, **few)
    assert Status.MAX_POINTS in found.status
    assert found.bits() == expected.bits() and rounds == every[: len(rounds)]
    # A forced plan has one round, and nothing to look for.
    shim.launched_rounds()
    order = np.arange(7)[None]
    shim.mvn_cdf_sums(
        array(upper[:1]), array(cov[:1]), None, np.zeros(1, int), order, 64, "float64", "lattice"
    )
    assert set(shim.launched_rounds()) == {0, 1}


def test_strided_and_expanded_input(shim):
    upper, cov = random_problem(9, 2, batch=(4,))
    expected = by_kernels(shim, upper, cov).bits()
    wide = torch.zeros(4, 18, 18).double()
    wide[:, ::2, ::2] = cov
    assert by_kernels(shim, upper, wide[:, ::2, ::2]).bits() == expected
    assert by_kernels(shim, upper, cov.mT).bits() == expected
    shared = equicorrelated(9)[None].expand(4, 9, 9)
    assert by_kernels(shim, upper, shared).bits() == by_kernels(shim, upper, shared.clone()).bits()


def test_no_rows_and_no_variables(shim):
    assert by_kernels(shim, torch.ones(0, 5).double(), torch.ones(0, 5, 5).double()).prob.size == 0
    nothing = by_kernels(shim, torch.ones(3, 0).double(), torch.ones(3, 0, 0).double())
    assert (nothing.prob == 1).all() and (nothing.status == Status.EXACT).all()
