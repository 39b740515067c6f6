"""The point sets of mvn_cdf: their tables against direct constructions, scrambling, the samplers
against a plain evaluation at the same points, and what `points` does to a call."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special
from scipy.stats import qmc
from test_mvn_cdf import equicorrelated, random_problem

from mvnrob import Status, mvn_cdf, mvn_log_cdf

sys.path.insert(0, str(Path(__file__).parent / "native"))
import native_build

sys.path.insert(0, str(native_build.MATH / "fits"))
import fit_lattice

SETS = ("lattice", "richtmyer", "sobol")


@pytest.fixture(scope="module")
def plain():
    return native_build.load("math_bindings.cpp", "generic")


# ---- the lattice's table --------------------------------------------------------------------------


def slow_search(kernel, weights, first, last):
    """Component by component from the definition of the error: no transform, no levels reused."""
    floor, rounding = fit_lattice.FLOOR, fit_lattice.ROUNDING

    def error(z, m):
        return fit_lattice.squared_error(kernel, weights[: len(z)], z, m)

    def smallest(candidates, tolerance):
        least = min(value for value, _ in candidates)
        return min(z for value, z in candidates if value <= least * (1 + 1e-9 + tolerance(least)))

    alone = {}
    for m in range(first, last + 1):
        z, alone[m] = [], []
        for _ in weights:
            tried = [(error([*z, v], m) + floor, v) for v in range(1, 2 ** (m - 1), 2)]
            z.append(smallest(tried, lambda least: rounding / least))
            alone[m].append(error(z, m))
    z = []
    for j in range(len(weights)):
        least = min(alone[m][j] for m in alone) + floor
        tried = [
            (max((error([*z, v], m) + floor) / (alone[m][j] + floor) for m in alone), v)
            for v in range(1, 2 ** (last - 1), 2)
        ]
        z.append(smallest(tried, lambda _, least=least: rounding / least))
    return z


@pytest.mark.parametrize("kernel, name", [("B2", "0.2j^-1"), ("B4", "j^-2"), ("B2", "0.7**j")])
def test_fast_search_is_the_slow_one(kernel, name):
    weights = fit_lattice.gammas(name, 5)
    fast, squares, _ = fit_lattice.construct(kernel, weights, 3, 9)
    assert fast == slow_search(kernel, weights, 3, 9)
    for m in range(3, 10):
        direct = fit_lattice.squared_error(kernel, weights, fast, m)
        assert squares[m, -1] == pytest.approx(direct, rel=1e-9)


def test_table_is_the_search(plain):
    """The first components at all levels; every component by its figure of merit."""
    kernel, name = fit_lattice.WEIGHTS
    weights = fit_lattice.gammas(name, plain.lattice_dimensions)
    table = [plain.lattice_generator(j) for j in range(plain.lattice_dimensions)]
    assert plain.lattice_bits == fit_lattice.LAST
    assert plain.lattice_dimensions == fit_lattice.DIMENSIONS
    found, _, _ = fit_lattice.construct(kernel, weights[:5], fit_lattice.FIRST, fit_lattice.LAST)
    assert table[:5] == found
    assert all(z % 2 == 1 and z < 2**fit_lattice.LAST for z in table)
    assert len(set(table)) == len(table)
    # Far better than random generators, the more so the more a coordinate weighs.
    rng = np.random.default_rng(0)
    for m, count, factor in ((12, 5, 0.5), (12, 20, 0.8), (12, 256, 0.98), (16, 10, 0.6)):
        error = fit_lattice.squared_error(kernel, weights[:count], table[:count], m)
        others = [
            fit_lattice.squared_error(
                kernel, weights[:count], rng.integers(0, 2**19, count) * 2 + 1, m
            )
            for _ in range(20)
        ]
        assert error < factor * np.median(others), (m, count)


def test_generators_beyond_the_table(plain):
    richtmyer = plain.fill_richtmyer(plain.lattice_dimensions + 2)
    for j, a in enumerate(int(v) for v in richtmyer):
        got = plain.embedded_generator(j, a)
        if j < plain.lattice_dimensions:
            assert got % 2**plain.lattice_bits == plain.lattice_generator(j)
            assert got >> plain.lattice_bits == a >> plain.lattice_bits
        else:
            assert got == a


def test_reversed_bits(plain):
    x = np.random.default_rng(0).integers(0, 2**32, 100, dtype=np.uint32)
    expected = [int(f"{int(v):032b}"[::-1], 2) for v in x]
    np.testing.assert_array_equal(plain.reverse_bits(x), expected)


# ---- Sobol's sequence -----------------------------------------------------------------------------


def test_directions_are_those_of_scipy(plain):
    d = plain.sobol_dimensions
    expected = (qmc.Sobol(d, scramble=False, bits=32).random(512) * 2**32).astype(np.uint32)
    for j in range(d):
        words = plain.fill_sobol(j)
        ours = [
            plain.sobol_word(words, i ^ (i >> 1)) for i in range(512)
        ]  # SciPy's order is Gray's
        np.testing.assert_array_equal(plain.reverse_bits(np.array(ours, np.uint32)), expected[:, j])
    # The words of the high bits, which 512 points do not see, against points far on.
    engine = qmc.Sobol(8, scramble=False, bits=32).fast_forward(2**27 + 12345)
    far = (engine.random(1)[0] * 2**32).astype(np.uint32)
    gray = (2**27 + 12345) ^ ((2**27 + 12345) >> 1)
    for j in range(8):
        got = np.array([plain.sobol_word(plain.fill_sobol(j), gray)], np.uint32)
        assert plain.reverse_bits(got)[0] == far[j]


@pytest.fixture(scope="module")
def scrambled(plain):
    def points(count, dimensions, seed):
        words = [plain.fill_sobol(j) for j in range(dimensions)]
        out = []
        for j in range(dimensions):
            x = np.array([plain.sobol_word(words[j], k) for k in range(count)], np.uint32)
            w, wc = plain.scrambled_double(x, int(plain.hash_shift(seed, 0, j)))
            np.testing.assert_array_equal(w[0], w[1])  # scalars and packs
            np.testing.assert_array_equal(w + wc, 1.0)
            single, _ = plain.scrambled_float(x, int(plain.hash_shift(seed, 0, j)))
            np.testing.assert_array_equal(single[0], single[1])
            assert np.abs(single[0] - w[0]).max() < 2**-23
            out.append(w[0])
        return np.array(out)

    return points


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scrambled_points_are_a_net(scrambled, seed):
    """The first two dimensions are a (0, m, 2)-net: one point in every box of volume 2^-m."""
    m = 8
    w = scrambled(2**m, 6, seed)
    for a in range(m + 1):
        boxes = np.floor(w[0] * 2**a) * 2 ** (m - a) + np.floor(w[1] * 2 ** (m - a))
        assert len(set(boxes)) == 2**m
    for column in w:
        assert sorted(np.floor(column * 2**m)) == list(range(2**m))


def test_scrambling_is_as_good_as_owens(scrambled):
    """Mean and spread over the seeds of a smooth integral, beside SciPy's scrambled points."""

    def integral(w):
        return np.exp(w.sum(0) - 2.5).mean()

    exact = ((np.e - 1) / np.e**0.5) ** 5
    ours = np.array([integral(scrambled(64, 5, s)) for s in range(150)])
    theirs = np.array([integral(qmc.Sobol(5, rng=s).random(64).T) for s in range(150)])
    assert abs(ours.mean() - exact) < 4 * ours.std() / 150**0.5
    assert 0.5 < ours.std() / theirs.std() < 1.5


# ---- the samplers ---------------------------------------------------------------------------------


def coordinates(plain, name, seed, shift, dimensions, count):
    """w [dimensions, count] of the points of one shift, in plain integers."""
    richtmyer = plain.fill_richtmyer(dimensions)
    k = np.arange(count, dtype=np.uint32)
    out = []
    for j in range(dimensions):
        s = int(plain.hash_shift(seed, shift, j))
        if name == "sobol" and j < plain.sobol_dimensions:
            words = plain.fill_sobol(j)
            x = np.array([plain.sobol_word(words, int(v)) for v in k], np.uint32)
            out.append(plain.scrambled_double(x, s)[0][0])
            continue
        a, index = int(richtmyer[j]), k.astype(np.uint64)
        if name == "lattice":
            a, index = plain.embedded_generator(j, a), plain.reverse_bits(k).astype(np.uint64)
        x = (index * np.uint64(a) + np.uint64(s)) % 2**32
        out.append(1 - np.abs(2 * (x + 0.25) / 2.0**32 - 1))  # the tent's cell middles
    return np.array(out)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("n", [3, 9, 270])
def test_sums_are_those_of_the_points(plain, name, n):
    """Separation of variables in NumPy at the same points; 270 variables pass the tables' ends."""
    count, seed = 4096 + 128 if n < 100 else 192, 5  # more than a task of the sampler
    upper, cov = random_problem(n, n)
    sums = torch.ops.mvnrob.mvn_cdf_sums(
        upper[None], cov[None], None, torch.tensor([seed]), torch.arange(n)[None], count, "float64",
        name,
    )[0]  # fmt: skip
    L, limit = torch.linalg.cholesky(cov).numpy(), upper.numpy()
    for shift in (0, 7):
        w = coordinates(plain, name, seed, shift, n, count)
        y, f = np.empty_like(w), np.ones(count)
        for i in range(n):
            e = special.ndtr((limit[i] - L[i, :i] @ y[:i]) / L[i, i])
            f *= e
            y[i] = special.ndtri(w[i] * e)
        assert float(sums[shift, 0]) == pytest.approx(f.sum(), rel=1e-9)


@pytest.mark.parametrize("name", SETS)
def test_a_point_depends_on_its_number_alone(name):
    """Sums over fewer points are sums over the first of more: differences are sums over the rest."""
    upper, cov = random_problem(9, 2)
    arguments = (upper[None], cov[None], None, torch.tensor([3]), torch.arange(9)[None])
    sums = [
        torch.ops.mvnrob.mvn_cdf_sums(*arguments, count, "float64", name)[0, :, 0]
        for count in (64, 4096, 4160)
    ]
    assert ((sums[1] > sums[0]) & (sums[2] > sums[1])).all()
    # And the rest does not repeat what went before.
    assert ((sums[2] - sums[1] - sums[0]).abs() > 1e-9).all()


LEVELS = """
import torch, mvnrob
x = torch.load({path!r})
for name in ("lattice", "richtmyer", "sobol"):
    for dtype in ("float32", "float64"):
        s = torch.ops.mvnrob.mvn_cdf_sums(*x, None, torch.tensor([1]), torch.arange(20)[None], 192,
                                          dtype, name)
        print(*s[0, :, 0].tolist())
"""


@pytest.mark.parametrize("level", ["generic", "avx2", "avx512"])
def test_simd_levels_agree(tmp_path, level):
    upper, cov = random_problem(20, 4)
    path = str(tmp_path / "problem.pt")
    torch.save((upper[None], cov[None]), path)
    done = subprocess.run(
        [sys.executable, "-c", LEVELS.format(path=path)],
        env={**os.environ, "MVNROB_SIMD": level},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "must name a level of this processor" in done.stderr:
        pytest.skip(f"this processor or build has no {level}")
    there = iter(done.stdout.splitlines())
    for name in SETS:
        for dtype, rounding in (("float32", 2e-6), ("float64", 1e-12)):
            here = torch.ops.mvnrob.mvn_cdf_sums(
                upper[None], cov[None], None, torch.tensor([1]), torch.arange(20)[None], 192, dtype,
                name,
            )[0, :, 0]  # fmt: skip
            values = torch.tensor([float(v) for v in next(there).split()], dtype=torch.float64)
            assert (here - values).abs().max() < rounding * 192, (name, dtype)


# ---- calls ----------------------------------------------------------------------------------------


def test_every_set_finds_the_truth_by_its_own_points():
    """Plain, union and tilted samples."""
    n = 9
    cov = equicorrelated(n)
    results = {
        name: [
            mvn_cdf(torch.zeros(n).double(), cov, abs_tol=1e-4, points=name, return_info=True),
            mvn_cdf(torch.full((n,), 5.0).double(), cov, abs_tol=0, rel_tol=1e-2, points=name,
                    return_info=True),
            mvn_log_cdf(torch.full((n,), -4.0).double(), cov, points=name, return_info=True),
        ]
        for name in SETS
    }  # fmt: skip
    for name in SETS:
        orthant, near_one, tail = results[name]
        assert abs(float(orthant.prob) - 0.1) <= float(orthant.error)
        assert all(r.status == Status.CONVERGED for r in results[name])
        for other in SETS:
            a, b = results[name], results[other]
            assert abs(a[1].complement - b[1].complement) <= a[1].error + b[1].error
            assert abs(a[2].log_prob - b[2].log_prob) <= a[2].log_error + b[2].log_error
            if name != other:  # every branch takes them
                assert a[0].prob != b[0].prob and a[1].complement != b[1].complement
                assert a[2].log_prob != b[2].log_prob
    assert float(near_one.complement) < 1e-4 and float(tail.log_prob) < -10


@pytest.mark.parametrize("name", ["lattice", "sobol"])
def test_points_go_up_in_powers_of_two(name):
    upper, cov = random_problem(9, 1, batch=(6,))
    r = mvn_cdf(upper, cov, abs_tol=1e-4, points=name, return_info=True, method="sov")
    each = r.n_points // 8
    assert (each & (each - 1) == 0).all() and (each >= 64).all()


def test_gradients_take_the_same_points():
    upper, cov = random_problem(6, 3)
    made = {}
    for name in SETS:
        u = upper.clone().requires_grad_()
        p = mvn_cdf(u, cov, abs_tol=1e-4, points=name)
        (made[name],) = torch.autograd.grad(p, u)
    assert (made["lattice"] - made["sobol"]).abs().max() < 2e-3
    assert not torch.equal(made["lattice"], made["sobol"])
    assert not torch.equal(made["lattice"], made["richtmyer"])
