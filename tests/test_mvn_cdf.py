"""mvn_cdf: reference, laws, edges, bad calls, plumbing. Known answers: test_coverage.py."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import mvnrob
from mvnrob import Status, mvn_cdf
from mvnrob._mvn_cdf import mvn_cdf_reference
from mvnrob.scipy_compat import multivariate_normal

INF = math.inf
NAN = math.nan


def random_problem(n, seed, rank=None, batch=()):
    """Limits and a covariance that is not a correlation, of full rank unless told."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(*batch, n, rank or n + 3, generator=g, dtype=torch.float64)
    factor = factor + torch.randn(*batch, 1, rank or n + 3, generator=g, dtype=torch.float64)
    upper = 2 * torch.rand(*batch, n, generator=g, dtype=torch.float64) * factor.norm(dim=-1)
    return upper, factor @ factor.mT


def equicorrelated(n, rho=0.5, dtype=torch.float64):
    """From four variables on one pair is a little off: what is exactly of one factor is not sampled."""
    cov = torch.full((n, n), rho, dtype=dtype)
    if n > 3:
        cov[0, 1] = cov[1, 0] = rho * (1 - (1e-9 if dtype == torch.float64 else 1e-5))
    return cov.fill_diagonal_(1.0)


# ---- reference and peers ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 13, 18, 19, 31, 48, 49, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_lower", [False, True])
def test_matches_reference(n, dtype, with_lower):
    upper, cov = random_problem(n, n, batch=(3,))
    lower = -1.5 * cov.diagonal(dim1=-2, dim2=-1).sqrt() - upper if with_lower else None
    r = mvn_cdf(
        upper.to(dtype),
        cov.to(dtype),
        lower=None if lower is None else lower.to(dtype),
        abs_tol=2e-4,
        return_info=True,
    )
    reference, spread = mvn_cdf_reference(upper, cov, lower=lower, n_points=8192)
    # 5 standard errors of the reference, our own error, and the rounding of a float32 input.
    allowed = 5 * spread + r.error + (5e-6 if dtype == torch.float32 else 0)
    assert r.prob.dtype == dtype
    assert ((r.prob - reference).abs() <= allowed).all(), (r, reference)


def test_matches_scipy():
    upper, cov = random_problem(6, 5)
    ours = mvn_cdf(upper, cov, abs_tol=5e-6, return_info=True)
    theirs = stats.multivariate_normal.cdf(
        upper.numpy(), cov=cov.numpy(), abseps=1e-6, maxpts=10**6, rng=1
    )
    # SciPy stops at 3 standard errors of 1e-6, or says nothing when it does not get there.
    assert abs(float(ours.prob) - theirs) < float(ours.error) + 5e-6


@pytest.mark.parametrize("n", [4, 9, 49, 120])
def test_orthants(n):
    r = mvn_cdf(torch.zeros(n).double(), equicorrelated(n), abs_tol=1e-4, return_info=True)
    assert abs(float(r.prob) - 1 / (n + 1)) <= float(r.error)
    assert r.status == Status.CONVERGED and r.error <= 1e-4


def test_methods_agree_and_are_used():
    cov = equicorrelated(90, 0.3)
    upper = torch.linspace(0.5, 4.5, 90).double()
    auto = mvn_cdf(upper, cov, return_info=True)
    full = mvn_cdf(upper, cov, method="sov", return_info=True)
    assert auto.n_pivots < full.n_pivots == full.n_active
    assert (auto.prob - full.prob).abs() <= auto.error + full.error


def test_closed_form_method():
    upper, cov = random_problem(3, 1)
    r = mvn_cdf(upper, cov, method="closed_form", return_info=True)
    assert r.status == Status.EXACT and r.n_points == 0
    sampled = mvn_cdf(upper, cov, method="sov", abs_tol=1e-6, return_info=True)
    assert sampled.n_points > 0
    assert (sampled.prob - r.prob).abs() <= sampled.error + r.error
    diagonal = mvn_cdf(torch.ones(20).double(), torch.eye(20).double(), method="closed_form")
    assert abs(float(diagonal) - stats.norm.cdf(1) ** 20) < 1e-14
    with pytest.raises(ValueError, match="mvn_cdf: method must be auto or sov for a row of more"):
        mvn_cdf(torch.ones(4).double(), equicorrelated(4), method="closed_form")
    with pytest.raises(ValueError, match="mvn_cdf: method must be auto or sov for a row of more"):
        # Not even where the tolerance would screen all but three.
        upper = torch.tensor([1.0, 1, 1, 6]).double()
        mvn_cdf(upper, equicorrelated(4), method="closed_form", abs_tol=1e-2)


def test_compute_dtype_is_honoured():
    upper, cov = random_problem(8, 3)
    single, double = (
        mvn_cdf(upper, cov, abs_tol=1e-4, compute_dtype=d) for d in (torch.float32, torch.float64)
    )
    assert 0 < abs(float(single - double)) < 2e-6  # same points, other rounding


# ---- tolerance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-4, 2e-5])
def test_absolute_tolerance_is_met(tol):
    upper, cov = random_problem(7, 11, rank=30, batch=(5,))
    r = mvn_cdf(upper, cov, abs_tol=tol, return_info=True)
    assert (r.status == Status.CONVERGED).all() and (r.error <= tol).all()


def test_relative_tolerance_in_both_tails():
    cov = equicorrelated(5)
    for shift in (-3.0, 2.5):
        upper = torch.full((5,), shift).double()
        r = mvn_cdf(upper, cov, abs_tol=0.0, rel_tol=1e-2, return_info=True)
        assert r.status == Status.CONVERGED
        small = torch.minimum(r.prob, r.complement)
        assert r.error <= 1e-2 * small
        # One-factor problem: a one-dimensional integral.
        x, w = np.polynomial.legendre.leggauss(400)
        x, w = 12 * x, 12 * w
        inner = stats.norm.logcdf((shift - math.sqrt(0.5) * x) / math.sqrt(0.5)) * 5
        inner = np.exp(inner) if shift < 0 else -np.expm1(inner)
        assert abs(float(small) - float((w * stats.norm.pdf(x) * inner).sum())) <= float(r.error)


def test_warnings_name_the_line_that_called():
    """Whatever is between: filters and "once per line" go by it."""
    upper, cov = random_problem(12, 4)
    options = {"max_points": 512}
    normal = mvnrob.distributions.MultivariateNormal(torch.zeros(12).double(), cov)
    calls = [
        lambda: mvn_cdf(upper, cov, abs_tol=1e-9, **options),
        lambda: mvnrob.mvn_log_cdf(upper, cov, rel_tol=1e-9, **options),
        lambda: normal.cdf(upper, abs_tol=1e-9, **options),
        lambda: normal.log_cdf(upper, rel_tol=1e-9, **options),
        lambda: multivariate_normal.cdf(upper.numpy(), cov=cov.numpy(), abseps=1e-9, maxpts=512),
        lambda: torch.vmap(lambda u: mvn_cdf(u, cov, abs_tol=1e-9, **options))(upper[None]),
    ]
    for call in calls:
        with pytest.warns(RuntimeWarning, match="spent max_points") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


def test_max_points_bounds_the_work_and_says_so():
    upper, cov = random_problem(12, 4)
    with pytest.warns(RuntimeWarning, match="1 of 1 rows spent max_points"):
        r = mvn_cdf(upper, cov, abs_tol=1e-9, max_points=4096, return_info=True)
    assert r.status == Status.MAX_POINTS and r.n_points <= 4096
    better = mvn_cdf(upper, cov, abs_tol=1e-4, return_info=True)
    assert (r.prob - better.prob).abs() <= r.error + better.error


def test_screening_is_certified():
    cov = equicorrelated(50, 0.3)
    upper = torch.full((50,), 9.0).double()
    upper[:4] = torch.tensor([1.0, 1.5, 2.0, 0.5])
    r = mvn_cdf(upper, cov, abs_tol=1e-4, return_info=True)
    assert r.n_active == 4
    small = mvn_cdf(upper[:4], cov[:4, :4], abs_tol=1e-5)
    assert (r.prob - small).abs() <= r.error + 1e-5


# ---- laws ---------------------------------------------------------------------------------------


def test_a_seed_of_numpy():
    upper, cov = random_problem(6, 1)
    assert mvn_cdf(upper, cov, seed=np.int64(3)) == mvn_cdf(upper, cov, seed=3)


def test_row_depends_on_itself_and_its_seed_only():
    upper, cov = random_problem(11, 7, batch=(9,))
    seed = torch.arange(9) * 17 - 40
    whole = mvn_cdf(upper, cov, seed=seed, return_info=True)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shuffled = mvn_cdf(upper[order], cov[order], seed=seed[order], return_info=True)
    for all_rows, some in zip(whole, shuffled, strict=True):
        assert torch.equal(all_rows[order], some)
    for b in range(9):
        alone = mvn_cdf(upper[b], cov[b], seed=int(seed[b]), return_info=True)
        for all_rows, one in zip(whole, alone, strict=True):
            assert torch.equal(all_rows[b], one)
    other = mvn_cdf(upper, cov, seed=seed + 1)
    assert not torch.equal(other, whole.prob)


def test_thread_count_does_not_matter():
    upper, cov = random_problem(70, 7, batch=(2,))
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(mvn_cdf(upper, cov, abs_tol=1e-4))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("level", ["generic", "avx2", "avx512"])
def test_simd_levels_agree(level, tmp_path):
    upper, cov = random_problem(67, 3, batch=(4,))
    torch.save((upper, cov), tmp_path / "problem.pt")
    code = (
        "import sys, torch, mvnrob; u, c = torch.load(sys.argv[1]);"
        "print(mvnrob.simd_level());"
        "print(*(x for d in (torch.float32, torch.float64) for x in"
        " mvnrob.mvn_cdf(u, c, abs_tol=1e-3, compute_dtype=d).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "problem.pt"],
        env={**os.environ, "MVNROB_SIMD": level},
        capture_output=True,
        check=False,
        text=True,
    )
    if "must name a level of this processor" in done.stderr:
        pytest.skip(f"this processor or build has no {level}")
    name, values = done.stdout.splitlines()
    assert name == level
    here = [
        mvn_cdf(upper, cov, abs_tol=1e-3, compute_dtype=d) for d in (torch.float32, torch.float64)
    ]
    there = torch.tensor([float(x) for x in values.split()], dtype=torch.float64).reshape(2, 4)
    assert (there[0] - here[0]).abs().max() < 2e-6
    assert (there[1] - here[1]).abs().max() < 1e-10


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12),
    rank=st.integers(1, 14),
    seed=st.integers(0, 2**31),
    shift=st.floats(-2, 3),
)
def test_laws_hold_for_any_covariance(n, rank, seed, shift):
    upper, cov = random_problem(n, seed, rank=rank)
    upper = upper + shift * cov.diagonal().sqrt()
    r = mvn_cdf(upper, cov, abs_tol=1e-3, seed=seed, return_info=True)
    assert r.status in (Status.CONVERGED, Status.EXACT)
    assert 0 <= r.prob <= 1 and 0 <= r.error <= 1e-3
    assert abs(float(r.prob + r.complement) - 1) < 1e-6
    # Frechet and Bonferroni: sum of failures and the largest one bracket it.
    fail = stats.norm.sf((upper / cov.diagonal().sqrt()).numpy())
    assert 1 - fail.sum() - float(r.error) <= float(r.prob) <= 1 - fail.max() + float(r.error)
    # Reordering the variables changes no more than the errors.
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    other = mvn_cdf(upper[order], cov[order][:, order], abs_tol=1e-3, seed=seed, return_info=True)
    assert (other.prob - r.prob).abs() <= other.error + r.error
    # Monotone in a limit.
    wider = mvn_cdf(upper + 0.5 * cov.diagonal().sqrt(), cov, abs_tol=1e-3, return_info=True)
    assert wider.prob >= r.prob - r.error - wider.error
    # Scaling a variable changes nothing but rounding.
    scale = torch.logspace(-3, 3, n).double()
    scaled = mvn_cdf(upper * scale, cov * scale[:, None] * scale, abs_tol=1e-3, return_info=True)
    assert (scaled.prob - r.prob).abs() <= scaled.error + r.error


def test_rectangle_is_a_difference():
    upper, cov = random_problem(5, 8)
    lower = torch.full((5,), -INF).double()
    lower[2] = -0.3
    both = mvn_cdf(upper, cov, lower=lower, abs_tol=1e-5, return_info=True)
    cut = upper.clone()
    cut[2] = -0.3
    difference = mvn_cdf(upper, cov, abs_tol=1e-5) - mvn_cdf(cut, cov, abs_tol=1e-5)
    assert (both.prob - difference).abs() < 3e-5


# ---- edges --------------------------------------------------------------------------------------

EDGES = [
    # upper, covariance, lower, probability, status
    ([INF, INF], [[1, 0.5], [0.5, 1]], None, 1.0, Status.EXACT),
    ([0.0, INF], [[1, 0.5], [0.5, 1]], None, 0.5, Status.EXACT),
    ([0.0, -INF], [[1, 0.5], [0.5, 1]], None, 0.0, Status.EXACT),
    ([1.0, 1.0], [[1, 0], [0, 1]], [2.0, 0.0], 0.0, Status.EXACT),
    ([1.0, 1.0], [[1, 0], [0, 1]], [1.0, 0.0], 0.0, Status.EXACT),
    ([0.0], [[0]], None, 1.0, Status.EXACT),
    ([-1e-30], [[0]], None, 0.0, Status.EXACT),
    ([1.0, 0.0], [[0, 0], [0, 1]], None, 0.5, Status.EXACT),
    ([1.0, 0.0], [[0, 0], [0, 1]], [0.0, -INF], 0.5, Status.EXACT),
    ([1.0, 0.0], [[0, 0], [0, 1]], [0.5, -INF], 0.0, Status.EXACT),
    ([0.0, 0.0], [[1, 1], [1, 1]], None, 0.5, Status.EXACT),
    ([0.0, 0.0], [[1, -1], [-1, 1]], None, 0.0, Status.EXACT),
    ([0.0, 0.0], [[1, -0.5], [-0.5, 1]], None, 1 / 6, Status.EXACT),
    ([0.0] * 3, [[1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1]], None, 0.0, Status.EXACT),
    ([NAN, 1.0], [[1, 0], [0, 1]], None, NAN, Status.NAN_INPUT),
    ([1.0, 1.0], [[1, 0], [0, 1]], [NAN, 0.0], NAN, Status.NAN_INPUT),
    ([1.0, 1.0], [[NAN, 0], [0, 1]], None, NAN, Status.NAN_INPUT),
    ([1.0, 1.0], [[INF, 0], [0, 1]], None, NAN, Status.NAN_INPUT),
    ([1.0, 1.0], [[1, NAN], [NAN, 1]], None, NAN, Status.NAN_INPUT),
    (
        [1.0] * 5,
        [[1 if i == j else NAN for i in range(5)] for j in range(5)],
        None,
        NAN,
        Status.NAN_INPUT,
    ),
    ([1.0, 1.0], [[1, 2], [2, 1]], None, NAN, Status.INDEFINITE),
    ([1.0, 1.0], [[-1, 0], [0, 1]], None, NAN, Status.INDEFINITE),
    ([0.5] * 3, [[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]], None, NAN, Status.INDEFINITE),
]


@pytest.mark.parametrize("upper, cov, lower, prob, status", EDGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges(upper, cov, lower, prob, status, dtype):
    def tensor(x):
        return None if x is None else torch.tensor(x, dtype=dtype)

    r = mvn_cdf(tensor(upper), tensor(cov), lower=tensor(lower), return_info=True)
    assert r.status == status
    if math.isnan(prob):
        assert r.prob.isnan() and r.complement.isnan() and r.error.isnan()
    else:
        assert abs(float(r.prob) - prob) <= 1e-7 if dtype == torch.float32 else 1e-14
        assert abs(float(r.complement) - (1 - prob)) <= 1e-6


def test_bad_rows_leave_the_others_alone():
    upper, cov = random_problem(6, 1, batch=(4,))
    upper[1, 2] = NAN
    cov[2, 0, 1] = cov[2, 1, 0] = 1e3
    r = mvn_cdf(upper, cov, return_info=True)
    assert r.status.tolist() == [0, Status.NAN_INPUT, Status.INDEFINITE, 0]
    assert torch.equal(r.prob.isnan(), torch.tensor([False, True, True, False]))
    assert torch.equal(r.prob[3], mvn_cdf(upper[3], cov[3]))


def test_empty():
    one = mvn_cdf(torch.zeros(0), torch.zeros(0, 0))
    assert one.shape == () and one == 1
    assert mvn_cdf(torch.zeros(5, 0), torch.zeros(0, 0)).tolist() == [1.0] * 5
    assert mvn_cdf(torch.zeros(0, 3), torch.eye(3)).shape == (0,)
    assert mvn_cdf(torch.zeros(2, 0, 3), torch.eye(3)).shape == (2, 0)


@pytest.mark.parametrize("copies", [2, 7, 49])
def test_duplicates_count_once(copies):
    upper, cov = random_problem(6, 9)
    index = torch.arange(6).repeat(copies)
    once = mvn_cdf(upper, cov, abs_tol=1e-4, return_info=True)
    many = mvn_cdf(upper[index], cov[index][:, index], abs_tol=1e-4, return_info=True)
    assert many.n_pivots <= 6
    assert (once.prob - many.prob).abs() <= once.error + many.error


def test_antiparallel_is_an_interval():
    upper, cov = random_problem(5, 10)
    half = torch.cat([torch.eye(5), -torch.eye(5)]).double()
    low = -0.4 * cov.diagonal().sqrt()
    both = mvn_cdf(torch.cat([upper, -low]), half @ cov @ half.T, abs_tol=1e-5, return_info=True)
    interval = mvn_cdf(upper, cov, lower=low, abs_tol=1e-5, return_info=True)
    assert both.n_pivots <= 5
    assert (both.prob - interval.prob).abs() <= both.error + interval.error


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_multiples_of_one_variable_are_an_interval(compute_dtype, shift):
    """Without sampling, so in float64 and with the digits of both tails."""
    scale = torch.tensor([1.0, -2.0, 4.0, 0.5, -1.0]).double()
    upper = torch.tensor([3.0, 1.0, 5.0, 1.0, 2.0]).double() + shift * scale.abs()
    r = mvn_cdf(
        upper, torch.outer(scale, scale), compute_dtype=compute_dtype, abs_tol=1e-20,
        return_info=True,
    )  # fmt: skip
    assert r.status == Status.EXACT and r.n_points == 0 and r.n_pivots == 1
    low, high = -0.5 - shift, 1.25 + shift
    assert float(r.prob) == pytest.approx(stats.norm.cdf(high) - stats.norm.cdf(low), rel=1e-14)
    assert float(r.complement) == pytest.approx(
        stats.norm.cdf(low) + stats.norm.sf(high), rel=1e-13
    )
    empty = mvn_cdf(torch.full((5,), -1.0).double(), torch.outer(scale, scale), return_info=True)
    assert (empty.prob, empty.complement) == (0, 1)


@pytest.mark.parametrize("rank", [1, 2, 5, 30])
def test_singular_against_counting(rank):
    g = torch.Generator().manual_seed(rank)
    factor = torch.randn(60, rank, generator=g, dtype=torch.float64)
    upper = factor.norm(dim=1) * (1.0 + torch.rand(60, generator=g, dtype=torch.float64))
    r = mvn_cdf(upper, factor @ factor.T, abs_tol=1e-3, return_info=True)
    assert r.n_pivots <= rank and r.status in (Status.CONVERGED, Status.EXACT)
    draws = torch.randn(400_000, rank, generator=g, dtype=torch.float64)
    counted = (draws @ factor.T <= upper).all(1).double().mean()
    spread = (counted * (1 - counted) / 400_000).sqrt()
    assert (r.prob - counted).abs() <= r.error + 4 * spread


@pytest.mark.parametrize("n", [3, 4, 10, 50])
@pytest.mark.parametrize("rank", [1, 2, 3, 7])
def test_float32_gram_as_float64(n, rank):
    """Indefinite by float32 rounding only: once NaN for most rows."""
    g = torch.Generator().manual_seed(rank)
    factor = torch.randn(50, n, rank, generator=g)
    upper = 2 * torch.rand(50, n, generator=g) * factor.norm(dim=-1)
    rounded = mvn_cdf(upper.double(), (factor @ factor.mT).double(), abs_tol=1e-3, return_info=True)
    factor = factor.double()
    exact = mvn_cdf(upper.double(), factor @ factor.mT, abs_tol=1e-3, return_info=True)
    # Rounding of 1e-7 in a matrix of rank one moves a limit by about as much; of a higher rank by up
    # to the root of that, which is the input's and in neither error (8e-4 in one row of rank 3).
    moved = 1e-6 if rank == 1 else 3 * 1.2e-7**0.5
    assert ((rounded.prob - exact.prob).abs() <= rounded.error + exact.error + moved).all()


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0, 7.0])
@pytest.mark.parametrize("n", [2, 3])
def test_closed_forms_see_multiples_through_rounding(n, scale):
    """cov / sqrt(v w) rounds to 1 - 2e-16 for scale 2, which once cost 5e-9."""
    ones = torch.full((n, n), scale).double()
    r = mvn_cdf(torch.zeros(n).double(), ones, return_info=True)
    assert abs(float(r.prob) - 0.5) <= float(r.error) <= 1e-11
    ones[0, 1:] = ones[1:, 0] = -scale
    r = mvn_cdf(torch.zeros(n).double(), ones, return_info=True)
    assert float(r.prob) <= float(r.error) <= 1e-11


@pytest.mark.parametrize("ulps", [5, 31, 200, 3000, 10**5])
@pytest.mark.parametrize("n", [4, 50, 300])
def test_nearly_equal_variables(n, ulps):
    """One factor with noise near the rounding of the matrix: a one-dimensional integral."""
    noise = ulps * torch.finfo(torch.float64).eps
    cov = torch.ones(n, n).double().fill_diagonal_(1 + noise)
    r = mvn_cdf(torch.zeros(n).double(), cov, abs_tol=1e-3, return_info=True)
    # P(x + sqrt(noise) max e <= 0) = E Phi(-sqrt(noise) max e): to first order in sqrt(noise).
    t = np.linspace(-9, 9, 20001)
    largest = np.sum(stats.norm.cdf(t) ** (n - 1) * n * stats.norm.pdf(t) * t) * (t[1] - t[0])
    truth = 0.5 - math.sqrt(noise) * largest / math.sqrt(2 * math.pi)
    assert abs(float(r.prob) - truth) <= float(r.error) + 1e-9


# ---- shapes -------------------------------------------------------------------------------------


def test_broadcasting():
    upper, _cov = random_problem(5, 1, batch=(4, 1))
    other = random_problem(5, 2, batch=(3,))[1]
    r = mvn_cdf(upper, other, return_info=True)
    assert all(field.shape == (4, 3) for field in r)
    for i in range(4):
        for j in range(3):
            assert torch.equal(r.prob[i, j], mvn_cdf(upper[i, 0], other[j]))
    mean = torch.randn(2, 1, 1, 5, generator=torch.Generator().manual_seed(0)).double()
    shifted = mvn_cdf(upper, other, mean=mean)
    assert shifted.shape == (2, 4, 3)
    assert torch.equal(shifted[1], mvn_cdf(upper - mean[1], other))


def test_strided_inputs():
    upper, cov = random_problem(6, 3, batch=(4,))
    plain = mvn_cdf(upper, cov)
    assert torch.equal(plain, mvn_cdf(upper.mT.contiguous().mT, cov.mT.contiguous().mT))
    padded = torch.full((4, 12, 12), NAN, dtype=torch.float64)
    padded[:, ::2, ::2] = cov
    assert torch.equal(plain, mvn_cdf(upper, padded[:, ::2, ::2]))
    shared = mvn_cdf(upper, cov[:1].expand(4, 6, 6))
    assert torch.equal(shared, mvn_cdf(upper, cov[0]))


# ---- plumbing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [False, True])
def test_opcheck(lower):
    upper, cov = random_problem(5, 1, batch=(2,))
    args = (upper, cov, -upper - 1 if lower else None, torch.tensor([1, 2]))
    torch.library.opcheck(
        torch.ops.mvnrob.mvn_cdf.default, (*args, 1e-3, 0.0, 2**20, "auto", "auto", "lattice")
    )


def test_indefinite_rows_warn():
    with pytest.warns(RuntimeWarning, match="1 of 2 rows have an indefinite covariance"):
        mvn_cdf(torch.ones(2, 2), torch.tensor([[[1.0, 2], [2, 1]], [[1.0, 0], [0, 1]]]))


def test_compile_fullgraph():
    upper, cov = random_problem(5, 1, batch=(3,))

    def program(u, c):
        return 1 - mvn_cdf(u.exp().log(), c, abs_tol=1e-3)

    compiled = torch.compile(program, backend="eager", fullgraph=True)
    assert torch.equal(compiled(upper, cov), program(upper, cov))


EYE = torch.eye(3).double()
ONES = torch.ones(3).double()
BAD_CALLS = [
    ((ONES, EYE[:2]), {}, ValueError, r"cov must have shape \[..., 3, 3\], got \[2, 3\]"),
    (
        (torch.tensor(1.0).double(), EYE),
        {},
        ValueError,
        r"upper must have shape \[..., n\], got \[\]",
    ),
    ((ONES.float(), EYE), {}, TypeError, "cov must have the dtype of upper, got torch.float64"),
    ((ONES.long(), EYE), {}, TypeError, "upper must be float32 or float64, got torch.int64"),
    ((ONES.half(), EYE), {}, TypeError, "upper must be float32 or float64, got torch.float16"),
    (
        (ONES, EYE.to_sparse()),
        {},
        TypeError,
        "cov must be dense \\(torch.strided\\), got torch.sparse_coo",
    ),
    (([1.0], EYE), {}, TypeError, "upper must be a tensor, got list"),
    ((ONES, EYE), {"lower": ONES[:2]}, ValueError, r"lower must have shape \[..., 3\], got \[2\]"),
    ((ONES, EYE), {"mean": ONES[:2]}, ValueError, r"mean must have shape \[..., 3\], got \[2\]"),
    ((ONES.expand(2, 3), EYE.expand(4, 3, 3)), {}, ValueError, "cov must have batch dimensions"),
    ((ONES, EYE), {"abs_tol": -1e-3}, ValueError, "abs_tol must be finite and not negative"),
    ((ONES, EYE), {"abs_tol": NAN}, ValueError, "abs_tol must be finite and not negative"),
    ((ONES, EYE), {"abs_tol": "1"}, TypeError, "abs_tol must be a number, got str"),
    ((ONES, EYE), {"rel_tol": INF}, ValueError, "rel_tol must be finite and not negative, got inf"),
    ((ONES, EYE), {"max_points": 10}, ValueError, "max_points must be between 512 and"),
    ((ONES, EYE), {"max_points": 1e6}, TypeError, "max_points must be an int or None, got float"),
    ((ONES, EYE), {"method": "genz"}, ValueError, "method must be one of auto, sov, closed_form"),
    (
        (ONES, EYE),
        {"points": "halton"},
        ValueError,
        "points must be one of lattice, richtmyer, sobol",
    ),
    ((ONES, EYE), {"compute_dtype": torch.half}, ValueError, "compute_dtype must be None"),
    ((ONES, EYE), {"seed": 1.5}, TypeError, "seed must be an int or an int64 tensor, got float"),
    ((ONES, EYE), {"seed": 2**63}, ValueError, "seed must fit 64 bits"),
    ((ONES, EYE), {"seed": torch.ones(2)}, TypeError, "seed must be an int or an int64 tensor"),
    ((ONES, EYE), {"seed": torch.tensor([1, 2])}, ValueError, r"seed must broadcast to \[\]"),
    ((ONES.to("meta"), EYE), {}, ValueError, "cov must be on the device of upper, got cpu"),
    ((ONES, EYE + NAN), {"check": True}, ValueError, "cov must be finite, got row 0"),
    ((ONES, EYE.cumsum(0)), {"check": True}, ValueError, "cov must be symmetric, got row 0"),
    (
        (ONES, torch.stack([EYE, 2 - 3 * EYE])),
        {"check": True},
        ValueError,
        "cov must be positive semidefinite, got row 1",
    ),
]


@pytest.mark.parametrize("args, kwargs, kind, text", BAD_CALLS)
def test_bad_calls(args, kwargs, kind, text):
    with pytest.raises(kind, match="mvn_cdf: " + text):
        mvn_cdf(*args, **kwargs)


def test_check_accepts_what_is_right():
    upper, cov = random_problem(20, 1, rank=3)
    plain = mvn_cdf(upper, cov)
    assert torch.equal(plain, mvn_cdf(upper, cov, check=True))
    gram = cov.float()
    mvn_cdf(upper.float(), gram, check=True)  # float32 rounding is not indefiniteness


def test_native_checks_speak_for_direct_calls():
    call = torch.ops.mvnrob.mvn_cdf
    seed = torch.zeros(1, dtype=torch.int64)
    rest = (seed, 1e-3, 0.0, 2**20, "auto", "auto", "lattice")
    with pytest.raises(RuntimeError, match=r"mvn_cdf: upper must have shape \[B, n\], got \[3\]"):
        call(ONES, EYE[None], None, *rest)
    with pytest.raises(RuntimeError, match="mvn_cdf: cov must have the dtype of upper"):
        call(ONES[None].float(), EYE[None], None, *rest)
    with pytest.raises(RuntimeError, match="mvn_cdf: method must be auto, sov or closed_form"):
        call(ONES[None], EYE[None], None, seed, 1e-3, 0.0, 2**20, "genz", "auto", "lattice")
    with pytest.raises(RuntimeError, match="mvn_cdf: points must be lattice, richtmyer or sobol"):
        call(ONES[None], EYE[None], None, *rest[:-1], "halton")


# ---- sums of a given plan -----------------------------------------------------------------------


def sums_of(upper, cov, order, points=512, *, lower=None, seed=0, dtype="float64"):
    """mvn_cdf_sums for one problem or several, divided by the points: [..., 8 shifts, 5]."""
    batch = upper.shape[:-1]
    rows = batch.numel()
    sums = torch.ops.mvnrob.mvn_cdf_sums(
        upper.reshape(rows, -1),
        cov.reshape(rows, *cov.shape[-2:]),
        None if lower is None else lower.reshape(rows, -1),
        torch.full((rows,), seed),
        torch.as_tensor(order).expand(*batch, -1).reshape(rows, -1),
        points,
        dtype,
    )
    return sums.reshape(*batch, 8, 5) / points


@pytest.mark.parametrize("n", [1, 2, 3, 8, 13, 31, 49])
@pytest.mark.parametrize("with_lower", [False, True])
def test_sums_match_reference(n, with_lower):
    upper, cov = random_problem(n, n, batch=(3,))
    lower = -1.5 * cov.diagonal(dim1=-2, dim2=-1).sqrt() - upper if with_lower else None
    reference, spread = mvn_cdf_reference(upper, cov, lower=lower, n_points=8192)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    for pivots in {n, 1 + n // 2}:
        sums = sums_of(upper, cov, order[:pivots], 8192, lower=lower)
        value, complement, below, above, square = sums.mean(-2).unbind(-1)
        error = 5 * (spread + sums.std(-2)[:, [0, 2, 3]].sum(-1) / 8**0.5)
        # The reference may be off by more than its spread over 8 shifts says where that is zero.
        assert (reference >= value - below - error - 1e-12).all()
        assert (reference <= value + above + error + 1e-12).all()
        assert (value + complement - 1).abs().max() < 1e-12
        assert (square <= value).all() and (square >= value**2 - 1e-12).all()
        if pivots == n:
            assert not below.any() and not above.any()
        else:
            assert (below >= 0).all() and (above >= 0).all()


@pytest.mark.parametrize(("n", "pivots"), [(12, 12), (60, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rectangular", [False, True])
def test_sums_are_what_mvn_cdf_estimates_from(n, pivots, dtype, rectangular):
    # Equal correlations: the order of the limits is the order of the pivots, and nothing screens.
    upper, cov = torch.linspace(0.5, 2.5, n).double(), equicorrelated(n, 0.5)
    lower = -6 - upper if rectangular else None
    tolerance = 5e-2 if pivots < n else 1e-3
    r = mvn_cdf(
        upper, cov, lower=lower, abs_tol=tolerance, compute_dtype=dtype, seed=5, return_info=True
    )
    assert r.status == Status.CONVERGED and r.n_active == n and r.n_pivots == pivots
    sums = sums_of(
        upper,
        cov,
        torch.arange(pivots),
        int(r.n_points) // 8,
        lower=lower,
        seed=5,
        dtype=str(dtype).removeprefix("torch."),
    )
    value, complement = sums.mean(-2)[:2]
    skipped = 0.01 * tolerance if pivots < n else 0.0
    rounding = 1e-6 if dtype == torch.float32 else 1e-12
    assert (value - r.prob).abs() <= skipped + rounding
    assert (complement - r.complement).abs() <= skipped + rounding


def test_sums_of_both_dtypes_agree():
    upper, cov = random_problem(40, 6, batch=(2,))
    lower = -upper - cov.diagonal(dim1=-2, dim2=-1).sqrt()
    for pivots in (10, 40):
        for limits in (None, lower):
            single, double = (
                sums_of(upper, cov, torch.arange(pivots), lower=limits, dtype=d)
                for d in ("float32", "float64")
            )
            assert 0 < (single - double).abs().max() < 1e-5


def test_sums_depend_on_their_row_only():
    upper, cov = random_problem(20, 2, batch=(5,))
    order = torch.arange(20).flip(0)[:15]
    whole = sums_of(upper, cov, order, 4096 + 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = sums_of(upper, cov, order, 4096 + 64)
    torch.set_num_threads(threads)
    assert torch.equal(whole, again)
    for b in range(5):
        assert torch.equal(whole[b], sums_of(upper[b], cov[b], order, 4096 + 64))
    assert not torch.equal(whole, sums_of(upper, cov, order, 4096 + 64, seed=1))


def test_sums_with_equal_and_unlimited_variables():
    upper, cov = random_problem(6, 9)
    once = sums_of(upper, cov, torch.arange(6))
    # Copies bound the pivot that they equal, wherever they stand.
    index = torch.arange(6).repeat(3)
    copies = sums_of(upper[index], cov[index][:, index], torch.arange(6))
    torch.testing.assert_close(copies, once, rtol=0, atol=1e-9)
    # A variable without limits changes nothing, drawn last or completed.
    wide, wide_cov = random_problem(7, 9)
    wide[6] = INF
    once = sums_of(wide[:6], wide_cov[:6, :6], torch.arange(6))
    for pivots in (6, 7):
        torch.testing.assert_close(
            sums_of(wide, wide_cov, torch.arange(pivots)), once, rtol=0, atol=1e-12
        )
    assert sums_of(wide, wide_cov, [6, 0, 1, 2, 3, 4, 5]).isfinite().all()


def test_sums_of_rows_without_an_integral_are_nan():
    upper, cov = random_problem(4, 1, batch=(7,))
    lower = torch.full_like(upper, -INF)
    cov[1] = cov[1][[0, 1, 2, 0]][:, [0, 1, 2, 0]]  # variable 3 is variable 0
    upper[2, 1] = NAN
    cov[3, :, 2] = cov[3, 2, :] = 0.0
    lower[4, 0] = upper[4, 0] + 1
    cov[5, 0, 1] = cov[5, 1, 0] = 1e3
    upper[6, 3] = -INF
    sums = sums_of(upper, cov, torch.arange(4), lower=lower)
    alone = sums_of(upper[0], cov[0], torch.arange(4), lower=lower[0])
    assert torch.equal(sums[0], alone) and alone.isfinite().all()
    assert sums[1:].isnan().all()
    # The copy follows its variable when it need not be a pivot.
    assert sums_of(upper[1], cov[1], torch.arange(3)).isfinite().all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"order": [[0, 3]]}, r"order must name distinct variables of \[0, 3\) in a row, got 3"),
        ({"order": [[1, 1]]}, r"order must name distinct variables of \[0, 3\) in a row, got 1"),
        ({"order": [[-1]]}, r"order must name distinct variables of \[0, 3\) in a row, got -1"),
        ({"order": [[]]}, r"order must be int64 of shape \[1, k\] with 1 <= k <= 3, got \[1, 0\]"),
        ({"order": [0]}, r"order must be int64 of shape \[1, k\] with 1 <= k <= 3, got \[1\]"),
        ({"order": [[0], [1]]}, "order must be int64 of shape"),
        ({"n_points": 0}, r"n_points must be a positive multiple of 64, at most 2\^31, got 0"),
        ({"n_points": 100}, "n_points must be a positive multiple of 64, .* got 100"),
        ({"n_points": 2**32}, "n_points must be a positive multiple of 64, .* got 4294967296"),
        ({"points": "halton"}, "points must be lattice, richtmyer or sobol, got halton"),
        ({"compute_dtype": "auto"}, "compute_dtype must be float32 or float64, got auto"),
        ({"upper": ONES}, r"upper must have shape \[B, n\], got \[3\]"),
        ({"cov": EYE[None].float()}, "cov must have the dtype of upper"),
        ({"lower": ONES[None, :2]}, r"lower must have shape \[1, 3\], got \[1, 2\]"),
        ({"seed": torch.zeros(1)}, r"seed must be int64 of shape \[1\], got \[1\]"),
    ],
)
def test_bad_calls_of_sums(change, text):
    arguments = {
        "upper": ONES[None],
        "cov": EYE[None],
        "lower": None,
        "seed": torch.zeros(1, dtype=torch.int64),
        "order": [[0, 1]],
        "n_points": 64,
        "compute_dtype": "float64",
    } | change
    arguments["order"] = torch.tensor(arguments["order"], dtype=torch.int64)
    with pytest.raises(RuntimeError, match="mvn_cdf_sums: " + text):
        torch.ops.mvnrob.mvn_cdf_sums(**arguments)


def test_opcheck_of_sums():
    upper, cov = random_problem(5, 1, batch=(2,))
    order = torch.tensor([[0, 2], [4, 1]])
    torch.library.opcheck(
        torch.ops.mvnrob.mvn_cdf_sums.default,
        (upper, cov, None, torch.tensor([1, 2]), order, 128, "float32"),
    )


def test_bad_simd_level_says_so():
    done = subprocess.run(
        [sys.executable, "-c", "import mvnrob; mvnrob.simd_level()"],
        env={**os.environ, "MVNROB_SIMD": "sse9"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert "MVNROB_SIMD must be generic, avx2 or avx512, got sse9" in done.stderr


def test_status_numbers_match_the_native_ones():
    assert [int(s) for s in Status] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert mvnrob.Status.EXACT == 1
