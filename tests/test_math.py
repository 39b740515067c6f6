"""csrc/math against multiple precision, exact integers and its own laws, per instruction set.

The headers are compiled by tests/native/native_build.py with the flags of the package. Bounds are the
worst errors measured on these points, times about 1.5 for other points; they are far inside what
the callers need (an error d in Phi^-1 biases an integral by O(d), DESIGN section 4 asks for 1e-5 in
float32).
"""

import functools
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from math import isqrt
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "native"))
import native_build
import reference

F32, F64 = np.float32, np.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
MODES = ["scalar", "pack", "wide"]
SETS = [isa for isa in native_build.ISA_FLAGS if not native_build.missing_features(isa)]


def compile_ahead():
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda isa: native_build.module_file("math_bindings.cpp", isa), SETS))


@pytest.fixture(scope="session")
def modules():
    """By instruction set, compiled beside each other."""
    compile_ahead()
    return {isa: native_build.load("math_bindings.cpp", isa) for isa in SETS}


@pytest.fixture(scope="session", params=list(native_build.ISA_FLAGS))
def native(request, modules):
    missing = native_build.missing_features(request.param)
    if missing:
        pytest.skip(f"this processor lacks {' '.join(sorted(missing))}")
    return modules[request.param]


@pytest.fixture(scope="session")
def plain(modules):
    """The baseline build, for what does not depend on the instruction set."""
    return modules["generic"]


def errors(values, exact, relative):
    """|value - exact| in multiple precision, divided by |exact| if relative."""
    out = []
    for v, r in zip(values, exact, strict=True):
        d = abs(mp.mpf(float(v)) - r)
        out.append(float(d / abs(r)) if relative else float(d))
    return np.array(out)


def worst(values, exact, at, relative=True):
    """The largest error and where, for a readable failure."""
    e = errors(values, exact, relative)
    k = int(np.nanargmax(e)) if np.isfinite(e).any() else 0
    assert np.isfinite(e).all(), f"not finite at {[a[~np.isfinite(e)] for a in at]}"
    return e[k], [a[k] for a in at]


@functools.lru_cache(None)
def limits(dtype):
    """Arguments of Phi: both tails to the smallest normal result, the centre, near zero."""
    rng = np.random.default_rng(1)
    low = -12.9 if dtype is F32 else -37.5
    x = np.concatenate(
        [
            np.linspace(low, 9, 700),
            3 * rng.standard_normal(200),
            -np.logspace(-30, 0, 40),
            np.logspace(-30, 0, 40),
            [0.0, -0.0],
        ]
    ).astype(dtype)
    return x[x >= dtype(low)]


@functools.lru_cache(None)
def weights(dtype, n, seed=0):
    """n lattice-like weights w with 1 - w exact, the extreme ones among them."""
    rng = np.random.default_rng(seed)
    bits = 23 if dtype is F32 else 32
    k = rng.integers(0, 2**bits, n)
    k[:: max(1, n // 7)] = 0
    k[1 :: max(1, n // 7)] = 2**bits - 1
    w = ((k + 0.5) / 2.0**bits).astype(dtype)
    wc = dtype(1) - w
    assert ((w.astype(F64) + wc.astype(F64)) == 1).all() and (w > 0).all() and (wc > 0).all()
    return w, wc


# ---- Phi, log Phi, Phi^-1 ---------------------------------------------------------------------


@DTYPES
def test_ndtr_is_accurate_in_both_tails(native, dtype):
    x = limits(dtype)
    p, q = native.ndtr_pair(x)
    # Measured 4.4e-7 (float: the fit's 4e-8, a few roundings) and 1.2e-15 relative.
    bound = 6.5e-7 if dtype is F32 else 2e-15
    for values, sign in ((p, 1), (q, -1), (native.ndtr(x), 1)):
        e, where = worst(values, [reference.ndtr(sign * float(t)) for t in x], [x])
        assert e < bound, where


@DTYPES
def test_ndtr_edges(native, dtype):
    x = np.array([np.inf, -np.inf, np.nan, 1e30, -1e30, -15.0, -39.0, 15.0, 0.0], dtype)
    p, q = native.ndtr_pair(x)
    far = 0.0 if dtype is F32 else float(reference.ndtr(-15.0))
    np.testing.assert_allclose(p, [1, 0, np.nan, 1, 0, far, 0, 1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(q, [0, 1, np.nan, 0, 1, 1, 1, far, 0.5], rtol=1e-6)


@DTYPES
def test_ndtri_half_is_accurate(native, dtype):
    tiny = np.finfo(dtype).tiny
    rng = np.random.default_rng(2)
    p = np.concatenate(
        [np.geomspace(tiny, 0.5, 400), rng.random(200) / 2, [0.5, tiny, 1e-300]]
    ).astype(dtype)
    p = p[(p >= tiny) & (p <= 0.5)]
    e, where = worst(native.ndtri_half(p), [reference.ndtri(float(t)) for t in p], [p], False)
    # Measured 1.4e-6 (float: half an ulp of 13 in l and in y) and 7.9e-14 (the fit: 8.7e-14).
    assert e < (1.5e-6 if dtype is F32 else 1.5e-13), where


@DTYPES
def test_ndtri_is_accurate_to_rounding(native, dtype):
    rng = np.random.default_rng(3)
    tiny, eps = np.finfo(dtype).tiny, np.finfo(dtype).eps
    centre = [0.5 + s * d for s in (-1, 1) for d in np.geomspace(eps, 0.3, 60)]
    edges = [0.5 + s * d for s in (-1, 1) for d in (0.0999, 0.1, 0.1001, 0.1999, 0.2, 0.2001)]
    p = np.concatenate(
        [np.geomspace(tiny / 500, 0.5, 300), 1 - np.geomspace(eps, 0.5, 100), centre, edges,
         rng.random(200)]
    ).astype(dtype)  # fmt: skip
    p = p[(p > 0) & (p < 1) & (p != 0.5)]
    e, where = worst(native.ndtri(p), [reference.ndtri(float(t)) for t in p], [p])
    # Measured 7.3e-7 and 2.1e-15 relative; subnormal p (tiny / 500) included.
    assert e < (1.2e-6 if dtype is F32 else 3e-15), where


@DTYPES
def test_ndtri_edges(native, dtype):
    p = np.array([0, 1, 0.5, -0.0, -1e-9, 1.5, np.nan, np.inf, -np.inf], dtype)
    expected = [-np.inf, np.inf, 0, -np.inf] + [np.nan] * 5
    np.testing.assert_array_equal(native.ndtri(p), np.array(expected, dtype))
    assert native.ndtri_half(np.array([0], dtype))[0] < -12  # zero counts as the least normal


@DTYPES
def test_log_ndtr_is_accurate(native, dtype):
    top = 37.5 if dtype is F64 else 12.0  # beyond it the result is not a normal number
    x = np.concatenate(
        [-np.geomspace(1e-8, 1e12, 250), np.geomspace(1e-8, top, 150),
         [-1.0, np.nextafter(-1, 0), np.nextafter(-1, -2), -1e6, -1e6 - 1, 0, 36.99, 37, 37.01]]
    ).astype(dtype)  # fmt: skip
    x = x[x <= top]
    exact = [
        mp.log1p(-reference.ndtr(-float(t))) if t > -1 else mp.log(reference.ndtr(float(t)))
        for t in x
    ]
    e, where = worst(native.log_ndtr(x), exact, [x])
    # Measured 9.7e-16 in double; float rounds that once.
    assert e < (6.1e-8 if dtype is F32 else 2e-15), where


def test_log_ndtr_edges(native):
    x = np.array([np.inf, -np.inf, np.nan, 41.0, 38.0])
    got = native.log_ndtr(x)
    assert got[0] == 0 and got[1] == -np.inf and np.isnan(got[2]) and got[3] == 0
    # Subnormal: 2.9e-316 in steps of 4.9e-324.
    assert abs(got[4] / float(-reference.ndtr(-38.0)) - 1) < 1e-7


# ---- steps of separation of variables ---------------------------------------------------------


@functools.lru_cache(None)
def upper_case(dtype):
    rng = np.random.default_rng(4)
    low = -12.5 if dtype is F32 else -36.0
    t = np.concatenate(
        [np.linspace(low, 10, 150), rng.standard_normal(150), [0.0, -0.0, 1e-30, -1e-30]]
    ).astype(dtype)
    w, wc = weights(dtype, len(t))
    exact = [reference.step(-mp.inf, float(b), float(u)) for b, u in zip(t, w, strict=True)]
    return t, w, wc, exact


@DTYPES
def test_step_upper_is_accurate(native, dtype):
    t, w, wc, exact = upper_case(dtype)
    e, ec, y = native.step_upper(t, w, wc)
    p, q = native.ndtr_pair(t)
    np.testing.assert_array_equal(e, p)
    np.testing.assert_array_equal(ec, q)
    d, where = worst(y, [r[2] for r in exact], [t, w], relative=False)
    # Measured 1.1e-6 and 6.2e-14: as ndtri_half. Within |t| < 5, 5.7e-7 and 1.1e-15.
    assert d < (1.8e-6 if dtype is F32 else 1.5e-13), where
    near = np.abs(t) < 5
    d, where = worst(
        y[near], [r[2] for r, n in zip(exact, near, strict=True) if n], [t[near], w[near]], False
    )
    assert d < (8e-7 if dtype is F32 else 3e-15), where


@DTYPES
def test_step_upper_survives_its_limits(native, dtype):
    t = np.array([np.inf, -np.inf, 1e30, -1e30, -50, -1e3, -1e5], dtype)
    for w in weights(dtype, 21)[0]:
        ws = np.full_like(t, w)
        e, ec, y = native.step_upper(t, ws, dtype(1) - ws)
        np.testing.assert_array_equal(e, [1, 0, 1, 0, 0, 0, 0])
        np.testing.assert_array_equal(ec, [0, 1, 0, 1, 1, 1, 1])
        assert np.isfinite(y).all()
        # Nothing to the right: the plain inverse. Below the range of Phi: y^2 = t^2 - 2 ln w to
        # O(1 / t^2); the fit is used beyond its interval there (measured 2e-4 at -50).
        whole = float(reference.ndtri(float(w)))
        np.testing.assert_allclose(y[[0, 2]], whole, atol=2e-6 if dtype is F32 else 2e-13)
        tail = -np.sqrt(t[4:].astype(F64) ** 2 - 2 * np.log(float(w)))
        np.testing.assert_allclose(y[4:], tail, atol=1e-3, rtol=1e-6)
    e, ec, y = native.step_upper(np.array([np.nan], dtype), ws[:1], ws[:1])
    assert np.isnan(e[0]) and np.isnan(ec[0]) and np.isnan(y[0])


@functools.lru_cache(None)
def interval_case(dtype):
    rng = np.random.default_rng(5)
    n = 300
    a = rng.standard_normal(n) * rng.choice([1, 2, 4], n)
    b = a + 10 ** rng.uniform(-3, 1, n)
    a, b = a.astype(dtype), b.astype(dtype)
    keep = (a < b) & (np.abs(a + b) < (20 if dtype is F32 else 60))
    a, b = a[keep], b[keep]
    w, wc = weights(dtype, len(a))
    exact = [reference.step(float(p), float(q), float(u)) for p, q, u in zip(a, b, w, strict=True)]
    return a, b, w, wc, exact


@DTYPES
def test_step_interval_is_accurate(native, dtype):
    a, b, w, wc, exact = interval_case(dtype)
    e, ec, y = native.step_interval(a, b, w, wc)
    eps = np.finfo(dtype).eps
    # e: relative to the tail it is cut from (a narrow interval subtracts two close numbers).
    tail = [
        min(reference.ndtr(float(q)), reference.ndtr(-float(p))) for p, q in zip(a, b, strict=True)
    ]
    d = [abs(mp.mpf(float(v)) - r[0]) / s for v, r, s in zip(e, exact, tail, strict=True)]
    assert max(d) < 8 * eps  # measured 2.7 (float) and 4.3 (double)
    d, where = worst(ec, [r[1] for r in exact], [a, b])
    assert d < 6 * eps, where  # measured 2.6 and 2.9
    d, where = worst(y, [r[2] for r in exact], [a, b, w], relative=False)
    assert d < (1.8e-6 if dtype is F32 else 1.5e-13), where
    slack = (2e-6 if dtype is F32 else 2e-13) * np.maximum(1, np.abs(y) / 4)
    assert (y >= a - slack).all() and (y <= b + slack).all()


def test_step_interval_goes_on_in_the_far_tails(native):
    """ln Phi(y) = ln w + ln Phi(t) however far out: what a tilted sample needs."""
    t = -np.geomspace(5, 1e4, 40)
    w = np.resize([1e-6, 0.01, 0.3, 0.9, 1 - 2**-20], 40)
    _, _, y = native.step_interval_far(np.full(40, -np.inf), t, w, 1 - w)
    with mp.workdps(60):
        log = lambda x: mp.log(reference.ndtr(mp.mpf(float(x)))) if x > -37 else far_log(x)
        wrong = [
            abs(log(v) - mp.log(float(u)) - log(s)) / abs(s)
            for v, u, s in zip(y, w, t, strict=True)
        ]
    # relative to t; measured 5.7e-15, by the fit below 36 standard deviations
    assert max(wrong / np.abs(t)) < 1e-14 and (y <= t).all()


def far_log(x):
    """ln Phi(x), x < 0, through erfc at the working precision."""
    return mp.log(mp.erfc(-mp.mpf(float(x)) / mp.sqrt(2)) / 2)


def test_minus_two_log_interval_is_accurate(native):
    """Wide, narrow, straddling, far out, and round the switch to the midpoint rule."""
    rng = np.random.default_rng(0)
    width = np.concatenate([np.geomspace(1e-12, 30, 300), 2e-3 * rng.uniform(0.5, 2, 60), [np.inf]])
    a = np.concatenate([rng.normal(0, 3, 200), rng.uniform(-60, 60, 161)])
    a[-1] = -np.inf
    b = a + width
    b[-1] = -25.0
    got = native.minus_two_log_interval(a, b)
    with mp.workdps(80):
        below = lambda x: mp.erfc(-mp.mpf(float(x)) / mp.sqrt(2)) / 2
        # the difference in the tail where both are small
        exact = [
            -2 * mp.log(below(q) - below(p) if p + q <= 0 else below(-p) - below(-q))
            for p, q in zip(a, b, strict=True)
        ]
        wrong = np.array(
            [float(abs(g - e) / max(1, abs(e))) for g, e in zip(got, exact, strict=True)]
        )
    # The wide form subtracts two Mills ratios: at the switch they agree to 2e-3.
    assert wrong.max() < 3e-12, (a[wrong.argmax()], b[wrong.argmax()])


def test_minus_two_log_interval_edges(native):
    inf, nan = math.inf, math.nan
    a = np.array([0.0, 1.0, -inf, -inf, inf, 3.0])
    b = np.array([0.0, -1.0, inf, -inf, inf, nan])
    np.testing.assert_array_equal(
        native.minus_two_log_interval(a, b)[:5], np.array([inf, inf, 0, inf, inf])
    )
    far = native.minus_two_log_interval(np.array([-inf]), np.array([-1e7]))[0]
    assert far == pytest.approx(1e14, rel=1e-12)


@DTYPES
def test_step_interval_reflects_exactly(native, dtype):
    a, b, w, wc, _ = interval_case(dtype)
    off_centre = a + b != 0
    e, ec, y = native.step_interval(a, b, w, wc)
    f, fc, z = native.step_interval(-b, -a, wc, w)
    np.testing.assert_array_equal(e, f)
    np.testing.assert_array_equal(ec, fc)
    np.testing.assert_array_equal(y[off_centre], -z[off_centre])


@DTYPES
def test_step_interval_without_a_lower_limit_is_step_upper(native, dtype):
    t, w, wc, _ = upper_case(dtype)
    eps = np.finfo(dtype).eps
    one = native.step_upper(t, w, wc)
    two = native.step_interval(np.full_like(t, -np.inf), t, w, wc)
    np.testing.assert_allclose(two[0], one[0], rtol=4 * eps)
    np.testing.assert_allclose(two[1], one[1], rtol=4 * eps)
    np.testing.assert_allclose(two[2], one[2], rtol=4 * eps, atol=4 * eps)


@DTYPES
def test_step_interval_survives_its_limits(native, dtype):
    inf = np.inf
    a = np.array([-inf, 3, -inf, 30, -31, 2, 5, inf, -inf, 2, -1e30, 1e30, -40], dtype)
    b = np.array([inf, inf, -3, 31, -30, 2, 4, inf, -inf, -2, 1e30, inf, 40], dtype)
    tail = float(reference.ndtr(-3.0))
    deep = float(reference.step(30.0, 31.0, 0.5)[0]) if dtype is F64 else 0.0
    mass = [1, tail, tail, deep, deep, 0, 0, 0, 0, 0, 1, 0, 1]
    for w in weights(dtype, 9)[0]:
        ws = np.full_like(a, w)
        e, ec, y = native.step_interval(a, b, ws, dtype(1) - ws)
        np.testing.assert_allclose(e, mass, rtol=1e-6)
        np.testing.assert_allclose(ec, 1 - np.array(mass), rtol=1e-6)
        assert np.isfinite(y).all()
        assert 30 - 1e-3 <= y[3] <= 31 + 1e-3 and -31 - 1e-3 <= y[4] <= -30 + 1e-3
    for bad in ([np.nan, 1], [1, np.nan], [np.nan, np.nan]):
        lo, hi = np.array(bad, dtype)[:, None]
        e, ec, _ = native.step_interval(lo, hi, ws[:1], ws[:1])
        assert np.isnan(e[0]) and np.isnan(ec[0])


# ---- packs ------------------------------------------------------------------------------------


@DTYPES
def test_packs_equal_scalars_lane_by_lane(native, dtype):
    rng = np.random.default_rng(6)
    n = 1027  # not a multiple of any pack
    x = np.concatenate(
        [rng.standard_normal(n - 8) * 5, [0, -0.0, np.inf, -np.inf, 1e30, 50, 13, -13]]
    )
    x = x.astype(dtype)
    other = (x + rng.exponential(size=n)).astype(dtype)
    w, wc = weights(dtype, n)
    calls = {
        "ndtr": (x,),
        "ndtr_pair": (x,),
        "ndtri": (w,),
        "ndtri_half": (w / 2,),
        "log_ndtr": (x,),
        "step_upper": (x, w, wc),
        "step_interval": (x, other, w, wc),
        "square": (np.clip(x, -100, 100),),
        "minus_two_log": (w, np.abs(np.clip(x, -9, 9))),
        "times_exp_half": (w, np.clip(x, 0, 9) ** 2, np.zeros_like(x)),
        "fma": (w, wc, np.clip(x, -9, 9)),
        "sqrt": (np.abs(x),),
        "abs": (x,),
        "min": (x, other),
        "max": (x, other),
        "copysign": (w, x),
        "mulsign": (w, x),
        "select_in": (x, -np.ones_like(x), other, w),
    }
    for name, args in calls.items():
        results = [getattr(native, name)(*args, mode=mode) for mode in MODES]
        results = [r if isinstance(r, tuple) else (r,) for r in results]
        for mode, result in zip(MODES[1:], results[1:], strict=True):
            for one, many in zip(results[0], result, strict=True):
                np.testing.assert_array_equal(one, many, err_msg=f"{name} {mode}")
                np.testing.assert_array_equal(np.signbit(one), np.signbit(many), err_msg=name)


@DTYPES
@pytest.mark.parametrize("mode", MODES)
def test_pack_operations(native, dtype, mode):
    rng = np.random.default_rng(7)
    x = np.concatenate([rng.standard_normal(200), [0, -0.0, np.inf, -np.inf, 1e-40]]).astype(dtype)
    y = rng.permutation(x)
    np.testing.assert_array_equal(native.sqrt(np.abs(x), mode=mode), np.sqrt(np.abs(x)))
    np.testing.assert_array_equal(native.abs(x, mode=mode), np.abs(x))
    assert not np.signbit(native.abs(x, mode=mode)).any()
    np.testing.assert_array_equal(native.min(x, y, mode=mode), np.minimum(x, y))
    np.testing.assert_array_equal(native.max(x, y, mode=mode), np.maximum(x, y))
    np.testing.assert_array_equal(native.copysign(x, y, mode=mode), np.copysign(x, y))
    flipped = np.where(np.signbit(y), -x, x)
    np.testing.assert_array_equal(native.mulsign(x, y, mode=mode), flipped)
    inside = np.where((x >= y) & (x < 1), dtype(7), x)
    one, seven = np.ones_like(x), np.full_like(x, 7)
    np.testing.assert_array_equal(native.select_in(x, y, one, seven, mode=mode), inside)
    # The second operand of min and max comes through when either is NaN.
    nan, two = np.full(3, np.nan, dtype), np.full(3, 2, dtype)
    for f in (native.min, native.max):
        assert np.isnan(f(two, nan, mode=mode)).all() and (f(nan, two, mode=mode) == 2).all()


@DTYPES
@pytest.mark.parametrize("mode", MODES)
def test_fma_is_fused_where_the_build_says_so(native, dtype, mode):
    eps = np.finfo(dtype).eps
    x = np.array([1 + eps, 1 - eps / 2, 3 + 4 * eps], dtype)
    lost = native.fma(x, x, -(x * x), mode=mode).astype(F64)
    exact = np.array([float(Fraction(float(v)) ** 2 - Fraction(float(v * v))) for v in x])
    np.testing.assert_array_equal(lost, exact if native.fused else np.zeros(3))
    assert (exact != 0).all() and native.fused == (native.isa != "generic")


@DTYPES
def test_square_is_exact(native, dtype):
    rng = np.random.default_rng(8)
    x = np.concatenate([rng.standard_normal(300) * 10, [12.93, 37.5, 1e-3, 1.0, 0.0]]).astype(dtype)
    for mode in MODES:
        hi, lo = native.square(x, mode=mode)
        np.testing.assert_array_equal(hi, x * x)
        for v, h, small in zip(x, hi, lo, strict=True):
            exact, got = Fraction(float(v)) ** 2, Fraction(float(h)) + Fraction(float(small))
            # Without a fused product the low half's own square may lose its last bit.
            assert got == exact or (not native.fused and abs(got - exact) <= exact / 2**104)


@DTYPES
def test_exponential_and_logarithm(native, dtype):
    rng = np.random.default_rng(9)
    eps = np.finfo(dtype).eps
    top = 2 * 87.0 if dtype is F32 else 2 * 708.0  # where exp(-x / 2) stops being normal
    x = np.concatenate([rng.random(300) * top, np.geomspace(1e-20, top, 100), [0, top]])
    x = x.astype(dtype)
    one, none = np.ones_like(x), np.zeros_like(x)
    got = native.times_exp_half(one, x, none)
    e, where = worst(got, [mp.exp(-mp.mpf(float(t)) / 2) for t in x], [x])
    assert e < (3e-7 if dtype is F32 else 2e-16), where  # measured 2.1e-7 and 1.3e-16
    assert np.isnan(native.times_exp_half(one * dtype(np.nan), x, none)).all()
    v = np.concatenate([np.geomspace(np.finfo(dtype).tiny, 1, 300), rng.random(300)]).astype(dtype)
    v = v[v >= np.finfo(dtype).tiny]
    zero = np.zeros_like(v)
    exact = [-2 * mp.log(mp.mpf(float(t))) for t in v]
    got = native.minus_two_log(v, zero)
    scaled = errors(got, exact, False) / np.maximum(1, [float(r) for r in exact])
    assert scaled.max() < (6e-7 if dtype is F32 else 5e-16)  # measured 4.4e-7 and 3e-16
    np.testing.assert_allclose(native.minus_two_log(v, zero + 3), got + 3, rtol=2 * eps)


@pytest.mark.parametrize("name", ["reduce_f4", "reduce_f64", "reduce_d2", "reduce_d32"])
def test_reductions_fold_halves(native, name):
    dtype, width = (F32 if name[7] == "f" else F64), int(name[8:])
    x = (10 ** np.random.default_rng(10).uniform(-4, 4, width)).astype(dtype)
    total = x.copy()
    while len(total) > 1:
        total = total[: len(total) // 2] + total[len(total) // 2 :]
    for bound in (x.max(), np.nextafter(x.max(), dtype(0))):
        got = getattr(native, name)(x, bound)
        assert got == (total[0], x.min(), x.max(), bool((x > bound).any()))


def test_isa_namespace(native):
    """Inline functions of different builds must not share a name."""
    assert native.isa in Path(native.__file__).name
    assert native.vector_bytes == {"generic": 16, "avx2": 32, "avx512": 64}[native.isa]


# ---- lattice ----------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("mode", MODES)
def test_lattice_point_is_exact(native, dtype, mode):
    point = native.lattice_float if dtype is F32 else native.lattice_double
    rng = np.random.default_rng(11)
    k = rng.integers(0, 2**32, 1024, dtype=np.uint32)
    k[:6] = [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    for a, s in ((1, 0), (0x6A09E667, 0x9E3779B9), (0xFFFFFFFF, 12345)):
        w, wc = point(k, a, s, mode=mode)
        for i in range(len(k)):
            x = (int(k[i]) * a + s) % 2**32
            tent = 2 * x % 2**32 if x < 2**31 else 2**32 - 1 - 2 * x % 2**32
            if dtype is F32:
                exact = Fraction(2 * (tent >> 9) + 1, 2**24)
            else:
                exact = Fraction(2 * tent + 1, 2**33)
            assert Fraction(float(w[i])) == exact and Fraction(float(wc[i])) == 1 - exact
        assert (w > 0).all() and (w < 1).all()


def test_richtmyer_table(plain):
    n = 16384
    a = plain.fill_richtmyer(n)
    sieve = np.ones(200000, bool)
    sieve[:2] = False
    for p in range(2, isqrt(len(sieve)) + 1):
        if sieve[p]:
            sieve[p * p :: p] = False
    primes = np.flatnonzero(sieve)[:n]
    assert len(primes) == n
    expected = [(isqrt(int(p) << 64) % 2**32) | 1 for p in primes]
    np.testing.assert_array_equal(a, np.array(expected, np.uint32))
    assert len(set(expected)) == n
    for j in (0, 1, 2, 99, 4096):
        assert plain.richtmyer_generator(j) == a[j]


def test_hash_shift(plain):
    mask = 2**64 - 1

    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    gold = 0x9E3779B97F4A7C15
    for seed, r, d in ((0, 0, 0), (1, 2, 3), (2**64 - 1, 7, 16383), (2**63, 2**32 - 1, 2**32 - 1)):
        state = mix((seed + gold) & mask)
        expected = mix((state + (r << 32 | d) * gold) & mask) >> 32
        assert plain.hash_shift(np.uint64(seed), r, d) == expected

    # Every bit of seed, replicate and dimension flips each output bit about half the time: over
    # 1000 trials the share of flips has standard deviation 0.016; 5.5 of them over 4096 pairs.
    rng = np.random.default_rng(12)
    seed = rng.integers(0, 2**64, 1000, dtype=np.uint64)
    r = rng.integers(0, 64, 1000, dtype=np.uint32)
    d = rng.integers(0, 1000, 1000, dtype=np.uint32)
    base = plain.hash_shift(seed, r, d)
    changed = [plain.hash_shift(seed ^ np.uint64(1 << b), r, d) for b in range(64)]
    changed += [plain.hash_shift(seed, r ^ np.uint32(1 << b), d) for b in range(32)]
    changed += [plain.hash_shift(seed, r, d ^ np.uint32(1 << b)) for b in range(32)]
    for other in changed:
        flips = np.unpackbits((base ^ other).view(np.uint8).reshape(-1, 4), axis=1).mean(0)
        assert np.abs(flips - 0.5).max() < 5.5 * 0.016

    # Neighbouring counters fill the circle evenly: chi-square with 255 degrees of freedom.
    grid = plain.hash_shift(np.uint64(0), *np.meshgrid(np.arange(16), np.arange(4096)))
    counts = np.bincount((grid.ravel() >> 24).astype(int), minlength=256)
    chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert 255 - 5 * 22.6 < chi2 < 255 + 5 * 22.6


# ---- closed forms -----------------------------------------------------------------------------


def test_sine(native):
    x = np.concatenate([np.linspace(-np.pi / 2, np.pi / 2, 501), np.geomspace(1e-30, 1, 60)])
    keep = x != 0
    e, where = worst(native.sine_quarter(x[keep]), [mp.sin(float(t)) for t in x[keep]], [x[keep]])
    assert e < 2.2e-16, where  # measured 1.3e-16


def test_owens_t_is_accurate(native):
    rng = np.random.default_rng(13)
    h = np.concatenate([np.abs(rng.standard_normal(120)) * 3, [0, 0, 1e-9, 5, 8.5, 2, 0.5]])
    a = np.concatenate([rng.random(120), [1, 0.5, 1, 1, 0.3, 1e-12, 1]])
    exact = [reference.owens_t(float(u), float(v)) for u, v in zip(h, a, strict=True)]
    got = native.owens_t(h, a)
    e, where = worst(got, exact, [h, a], relative=False)
    assert e < 1e-16, where  # measured 3.5e-17
    # |a| > 1 through T(h, a) + T(a h, 1 / a) = (p + q) / 2 - p q, p = Phi(-h), q = Phi(-a h).
    slope = 1 / np.maximum(a, 1e-3)
    p = [reference.ndtr(-float(u)) for u in h]
    q = [
        reference.ndtr(-mp.mpf(float(u)) * mp.mpf(float(s))) for u, s in zip(h, slope, strict=True)
    ]
    other = [
        (u + v) / 2 - u * v - reference.owens_t(mp.mpf(x) * mp.mpf(s), 1 / mp.mpf(s))
        for u, v, x, s in zip(p, q, h, slope, strict=True)
    ]  # fmt: skip
    e, where = worst(native.owens_t(h, slope), other, [h, slope], relative=False)
    assert e < 2e-16, where  # measured 7.7e-17
    np.testing.assert_array_equal(native.owens_t(-h, a), got)
    np.testing.assert_array_equal(native.owens_t(h, -a), -got)


def test_owens_t_edges(native):
    inf = np.inf
    h = np.array([0, 0, 1, inf, inf, 1, 1e200, 1e-300])
    a = np.array([inf, 1, inf, 1, inf, 0, 1e200, 1e300])
    tail = float(reference.ndtr(-1.0))
    # T(0, inf) = 1/4, T(0, 1) = 1/8, T(1, inf) = Phi(-1) / 2; the last has h a = 1 and p = 1/2:
    # (p + q) / 2 - p q with q = Phi(-1).
    expected = [0.25, 0.125, tail / 2, 0, 0, 0, 0, 0.25]
    np.testing.assert_allclose(native.owens_t(h, a), expected, atol=2e-16)
    assert np.isnan(native.owens_t(np.nan, 1.0)) and np.isnan(native.owens_t(1.0, np.nan))


@functools.lru_cache(None)
def bvn_case():
    rng = np.random.default_rng(14)
    rows = []
    for i in range(180):
        h, k = rng.standard_normal(2) * rng.choice([0.5, 2, 4])
        sign = rng.choice([-1, 1])
        r = [
            rng.uniform(-1, 1),
            sign * (1 - 10 ** rng.uniform(-15, -1)),
            rng.choice([0, 0.3, 0.75, 0.925, -0.925, 0.9249999, 1, -1, 0.5]),
        ][i % 3]
        if i % 4 == 0:  # the ridge h = sign k, where |rho| near one matters
            k = h * np.copysign(1, r) + 10 ** rng.uniform(-9, 0) * rng.standard_normal()
        rows.append((h, k, r))
    rows += [(0, 0, r) for r in (-1, -0.9999, -0.5, 0, 0.95, 1)] + [(8, 9, 0.5), (-8, -9, -0.97)]
    h, k, r = np.array(rows).T
    return h, k, r, [reference.bvn_upper(*map(float, row)) for row in rows]


def test_bvn_is_accurate(native):
    h, k, r, exact = bvn_case()
    e, where = worst(native.bvn_upper(h, k, r), exact, [h, k, r], relative=False)
    assert e < 8e-16, where  # measured 4.7e-16
    np.testing.assert_array_equal(native.bvn_cdf(-h, -k, r), native.bvn_upper(h, k, r))
    union = [
        reference.ndtr(-float(u)) + reference.ndtr(-float(v)) - x
        for u, v, x in zip(h, k, exact, strict=True)
    ]
    e, where = worst(native.bvn_complement(h, k, r), union, [h, k, r])
    assert e < 2e-15, where  # measured 7.6e-16, to h = 12
    # Orthants: 1/4 + asin(rho) / (2 pi).
    rho = np.linspace(-1, 1, 201)
    np.testing.assert_allclose(
        native.bvn_upper(0.0, 0.0, rho), 0.25 + np.arcsin(rho) / (2 * np.pi), atol=3e-16
    )


def test_bvn_agrees_with_owens_t(native):
    """Two formulas that share only Phi: (Phi(h) + Phi(k)) / 2 - T(h, .) - T(k, .) - {0, 1/2}."""
    rng = np.random.default_rng(15)
    h, k = rng.standard_normal((2, 400)) * 2
    r = rng.uniform(-0.999, 0.999, 400)
    s = np.sqrt((1 - r) * (1 + r))
    half = np.where(h * k < 0, 0.5, 0.0)
    p = (native.ndtr(h) + native.ndtr(k)) / 2 - half
    p -= native.owens_t(h, (k / h - r) / s) + native.owens_t(k, (h / k - r) / s)
    np.testing.assert_allclose(native.bvn_cdf(h, k, r), p, atol=2e-14)  # (k / h - r) / s rounds


def test_bvn_edges(native):
    inf = np.inf
    p = native.ndtr(np.array([0.3]))[0]
    for r in (-1.0, -0.95, -0.3, 0.0, 0.4, 0.99, 1.0):
        assert native.bvn_cdf(inf, inf, r) == 1 and native.bvn_cdf(-inf, inf, r) == 0
        assert native.bvn_cdf(0.3, inf, r) == p == native.bvn_cdf(inf, 0.3, r)
        assert native.bvn_cdf(0.3, -inf, r) == 0 == native.bvn_cdf(-inf, 0.3, r)
        assert native.bvn_complement(inf, inf, r) == 0 and native.bvn_complement(-inf, 1, r) == 1
        np.testing.assert_allclose(native.bvn_cdf(0.3, 40, r), p, rtol=4e-16)
    assert native.bvn_cdf(1.0, -1.0, -1.0) == 0  # P(X <= 1, X >= 1)
    assert native.bvn_cdf(1.0, -1.5, -1.0) == 0
    np.testing.assert_allclose(
        native.bvn_cdf(-8.0, 9.0, -1.0),
        float(reference.ndtr(-8.0) - reference.ndtr(-9.0)),
        rtol=1e-14,
    )
    for args in ((np.nan, 0, 0), (0, np.nan, 0), (0, 0, np.nan), (np.inf, np.nan, 0)):
        assert np.isnan(native.bvn_cdf(*args)) and np.isnan(native.bvn_complement(*args))
    assert (
        abs(native.bvn_cdf_float(0.5, -0.25, 0.3) - native.bvn_cdf(0.5, -0.25, F64(F32(0.3))))
        < 4e-8
    )


def correlation(factor):
    factor = np.asarray(factor, float)
    factor = factor / np.linalg.norm(factor, axis=1)[:, None]
    r = factor @ factor.T
    return r[0, 1], r[0, 2], r[1, 2]


def test_tvn_orthants_and_independence(native):
    rng = np.random.default_rng(16)
    for rank in (1, 2, 3):
        for _ in range(60):
            r = np.clip(correlation(rng.standard_normal((3, rank))), -1, 1)
            expected = 0.125 + np.arcsin(r).sum() / (4 * np.pi)
            got = native.tvn_cdf(0.0, 0.0, 0.0, *r)
            # Rank one: |r| = 1 up to rounding, of which asin takes the square root.
            assert abs(got - expected) < (2e-8 if rank == 1 else 1e-15), (rank, r)
    for b in rng.standard_normal((20, 3)) * 2:
        p = native.ndtr(b)
        np.testing.assert_allclose(native.tvn_cdf(*b, 0.0, 0.0, 0.0), p.prod(), rtol=4e-16)
        r = rng.uniform(-1, 1)
        pair = native.ndtr(b[:1])[0] * native.bvn_cdf(b[1], b[2], r)
        np.testing.assert_allclose(native.tvn_cdf(*b, 0.0, 0.0, r), pair, atol=2e-16)


# b2, b3 is not the most correlated pair in any of them, and every matrix is positive definite as
# rounded (reference.tvn_cdf checks): from a plain one to 1 - |r| = 5e-15 and det = 3e-11, 2e-15.
TVN_ROWS = [
    (0.3, -0.2, 0.9, 0.5, 0.3, 0.1),
    (1.5, 0.25, -0.5, -0.8, 0.45, -0.2),
    (-2.5, -1.0, -0.5, 0.7, 0.6, 0.5),
    (-6.0, -4.0, -5.0, 0.7, 0.75, 0.5),
    (0.1, 0.1, 0.1, 0.9999, 0.9999, 0.9998),
    (1.2, -1.2, 0.4, -0.9999999, -0.25, 0.25),
    (-0.314171305935, -0.177131449891, 0.590520671004,
     -0.6592137412314849, -0.6652386110617372, -0.12289880654785716),
    (-1.6710117449036501, 1.671011741998419, 2.401854582825792,
     -0.9999999999999946, -0.8475791193835835, 0.8475790893081261),
    (-0.7384139799719531, -0.7384140099212557, -0.738414091788019,
     0.9999999999969035, 0.9999999999913272, 0.9999999999778661),
]  # fmt: skip


def test_tvn_is_accurate_up_to_singular_matrices(native):
    for row, exact in ((row, reference.tvn_cdf(*row)) for row in TVN_ROWS):
        b, r = np.array(row[:3]), np.array(row[3:])
        pairs = {frozenset(p): v for p, v in zip([(0, 1), (0, 2), (1, 2)], r, strict=True)}
        for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):  # the largest |r| in each place
            i, j, k = order
            args = (*b[order], *(pairs[frozenset(p)] for p in [(i, j), (i, k), (j, k)]))
            assert abs(native.tvn_cdf(*args) - float(exact)) < 1e-15, (row, order)
            assert abs(native.tvn_complement(*args) - float(1 - exact)) < 1e-15, (row, order)


def test_tvn_singular_families(native):
    rng = np.random.default_rng(17)
    for _ in range(40):
        b1, b2, b3 = rng.standard_normal(3) * 1.5
        r = rng.uniform(-1, 1)
        # X3 = X2, X3 = -X2, and X1 = X2 = X3, each with the singular pair in every place.
        same = native.bvn_cdf(b1, min(b2, b3), r)
        for got in (native.tvn_cdf(b1, b2, b3, r, r, 1.0), native.tvn_cdf(b2, b1, b3, r, 1.0, r),
                    native.tvn_cdf(b3, b2, b1, 1.0, r, r)):  # fmt: skip
            assert abs(got - same) < 1e-15
        low, high = min(b2, -b3), max(b2, -b3)
        opposite = native.bvn_cdf(b1, high, r) - native.bvn_cdf(b1, low, r) if b2 > -b3 else 0.0
        for got in (native.tvn_cdf(b1, b2, b3, r, -r, -1.0),
                    native.tvn_cdf(b2, b1, b3, r, -1.0, -r),
                    native.tvn_cdf(b3, b2, b1, -1.0, -r, r)):  # fmt: skip
            assert abs(got - opposite) < 1e-15
        least = native.ndtr(np.array([min(b1, b2, b3)]))[0]
        assert abs(native.tvn_cdf(b1, b2, b3, 1.0, 1.0, 1.0) - least) < 1e-15


def test_tvn_rank_two_against_the_limit(native):
    """A rank-two matrix is the limit of full-rank ones: |dP/dr| <= 1 / (2 pi sqrt(1 - r^2))."""
    rng = np.random.default_rng(18)
    for _ in range(60):
        factor = rng.standard_normal((3, 2))
        r = np.array(correlation(factor))
        if np.abs(r).max() > 0.99:
            continue
        b = rng.standard_normal(3) * 1.5
        if rng.random() < 0.5:  # the corner lies on the plane: three limits meet in one point
            b = factor / np.linalg.norm(factor, axis=1)[:, None] @ rng.standard_normal(2)
        values = [native.tvn_cdf(*b, *(r * (1 - d))) for d in (0, 1e-12, 1e-10)]
        assert abs(values[1] - values[0]) < 4e-12 and abs(values[2] - values[0]) < 4e-10


def test_tvn_laws(native):
    rng = np.random.default_rng(19)
    b = rng.standard_normal((200, 3)) * 2
    rows = np.array([correlation(rng.standard_normal((3, 3))) for _ in range(200)])
    p = native.tvn_cdf(*b.T, *rows.T)
    q = native.tvn_complement(*b.T, *rows.T)
    np.testing.assert_allclose(p + q, 1, atol=5e-16)
    # P(X1 <= b1, X2 <= b2) = P(.., X3 <= b3) + P(.., -X3 <= -b3).
    other = native.tvn_cdf(b[:, 0], b[:, 1], -b[:, 2], rows[:, 0], -rows[:, 1], -rows[:, 2])
    np.testing.assert_allclose(p + other, native.bvn_cdf(b[:, 0], b[:, 1], rows[:, 0]), atol=1e-15)
    assert (native.tvn_cdf(b[:, 0] + 0.1, b[:, 1], b[:, 2], *rows.T) >= p - 1e-16).all()
    single = native.tvn_cdf_float(*map(F32, (*b[0], *rows[0])))
    assert abs(single - native.tvn_cdf(*map(float, map(F32, (*b[0], *rows[0]))))) < 4e-8


def test_tvn_complement_keeps_its_digits(native):
    """Far from the corner 1 - p is a sum of tails; reference by inclusion and exclusion."""
    for b, r in (((6, 7, 6.5), (0.3, 0.5, 0.2)), ((9, 9, 9), (0.99, 0.98, 0.985)),
                 ((8, 9, 12), (-0.5, 0.2, -0.3)), ((10, 10, 10), (0.5, 0.5, 0.5))):  # fmt: skip
        b, r = [float(v) for v in b], [float(v) for v in r]
        single = sum(reference.ndtr(-v) for v in b)
        pairs = sum(reference.bvn_upper(b[i], b[j], r[k]) for k, (i, j) in
                    enumerate([(0, 1), (0, 2), (1, 2)]))  # fmt: skip
        triple = reference.tvn_cdf(*(-v for v in b), *r)
        exact = single - pairs + triple
        assert abs(mp.mpf(native.tvn_complement(*b, *r)) / exact - 1) < 5e-14, (b, r)


def test_tvn_edges(native):
    inf, r = np.inf, (0.5, 0.3, -0.2)
    assert native.tvn_cdf(inf, inf, inf, *r) == 1 and native.tvn_complement(inf, inf, inf, *r) == 0
    assert (
        native.tvn_cdf(-inf, inf, 1.0, *r) == 0 and native.tvn_complement(-inf, inf, 1.0, *r) == 1
    )
    assert native.tvn_cdf(inf, 0.4, 1.0, *r) == native.bvn_cdf(0.4, 1.0, -0.2)
    assert native.tvn_cdf(0.4, inf, 1.0, *r) == native.bvn_cdf(0.4, 1.0, 0.3)
    assert native.tvn_cdf(0.4, 1.0, inf, *r) == native.bvn_cdf(0.4, 1.0, 0.5)
    for k in range(6):
        args = [0.1, 0.2, 0.3, *r]
        args[k] = np.nan
        assert np.isnan(native.tvn_cdf(*args)) and np.isnan(native.tvn_complement(*args))


# ---- coefficients and CUDA --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("script", ["fit_normal", "fit_quadrature", "sobol_directions"])
def test_committed_coefficients_are_those_of_the_script(script, tmp_path):
    target = {
        "fit_normal": "normal_coefs.h",
        "fit_quadrature": "quadrature_tables.h",
        "sobol_directions": "sobol_table.h",
    }[script]
    out = tmp_path / target
    subprocess.run([sys.executable, native_build.MATH / "fits" / f"{script}.py", out], check=True,
                   capture_output=True)  # fmt: skip
    number = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")
    old = (native_build.MATH / target).read_text()
    new = out.read_text()
    assert number.sub("#", old) == number.sub("#", new)
    # Library versions may differ in the last digit.
    pairs = zip(number.findall(old), number.findall(new), strict=True)
    assert all(abs(float(a) - float(b)) <= 1e-6 * abs(float(a)) for a, b in pairs)


@pytest.mark.slow
def test_committed_generators_are_those_of_the_script(monkeypatch):
    """The first of them: each depends on those before it alone."""
    monkeypatch.syspath_prepend(native_build.MATH / "fits")
    import fit_lattice

    weights = fit_lattice.gammas(fit_lattice.WEIGHTS[1], fit_lattice.DIMENSIONS)[:30]
    kernel = fit_lattice.WEIGHTS[0]
    made, _, _ = fit_lattice.construct(kernel, weights, fit_lattice.FIRST, fit_lattice.LAST)
    table = (native_build.MATH / "lattice_table.h").read_text()
    committed = [int(z, 16) for z in re.findall(r"(0x[0-9a-f]+)u", table)]
    assert len(committed) == fit_lattice.DIMENSIONS
    assert made == committed[:30]


def test_hot_loops_stay_vectors():
    """No scalar floating-point instruction in the loops that the integrator spends its time in."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("reads x86-64 assembly")
    for isa in native_build.ISA_FLAGS:
        run = subprocess.run(
            [native_build.compiler(), *native_build.build_flags(isa), "-S", "-o", "-",
             str(native_build.HERE / "hot_loops.cpp")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        body = re.findall(r"^(hot_\w+):(.*?)\.size\s+\1", run.stdout, re.MULTILINE | re.DOTALL)
        assert len(body) == 8
        for name, text in body:
            scalar = re.findall(r"\tv?(?:add|sub|mul|div|sqrt|max|min|fn?m\w+)s[sd]\t.*", text)
            assert not scalar, (isa, name, scalar)
            assert "\tcall\t" not in text, (isa, name)
            packed = re.findall(r"\tv?(?:add|sub|mul|fn?m\w+)p[sd]\t", text)
            assert packed or "lattice" in name, (isa, name)


def test_headers_compile_for_cuda(tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc here")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90)]
    run = subprocess.run(
        [nvcc, "-std=c++17", "-O3", "-c", "-Werror=all-warnings", "-Xptxas=-v,-warn-spills",
         *targets, f"-I{native_build.MATH}", native_build.HERE / "math_device.cu",
         "-o", tmp_path / "math_device.o"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # The step kernels hold everything in registers; only the adaptive rule of the trivariate
    # integral keeps a stack.
    blocks = re.split(r"Compiling entry function '", run.stderr)[1:]
    assert len(blocks) == 6 * len(targets)
    for block in blocks:
        if "trivariate" not in block.split("'")[0]:
            assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in block, block
