"""The PTX that nvcc makes of kernels, run on the CPU: tests/native/ptx translates it into C++, which
takes the place of the kernel bodies on the shim.

It shows what the bodies cannot: inline PTX, fragments of the tensor cores, vector accesses and their
alignment, tables in constant memory, what the compiler made of a body. Here are some kernels of
sm_90; MVNROB_SHIM_PTX=90 (or 80) with any test_shim_*.py runs all of them so. What the translator
itself does is tested on PTX written out here, without nvcc.
"""

import sys
from pathlib import Path

import nearest_ends_cases
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "native"))
sys.path.insert(1, str(Path(__file__).parent / "native" / "ptx"))
import native_build
import ptx_objects
from translate import Unknown

ARCHITECTURE = "90"
needs_nvcc = pytest.mark.skipif(ptx_objects.find_nvcc() is None, reason="nvcc is not on PATH")


def best_isa():
    return next(isa for isa in ("avx2", "generic") if not native_build.missing_features(isa))


# ---- the translator ---------------------------------------------------------------------------------

HEAD = ".version 9.0\n.target sm_90\n.address_size 64\n.extern .shared .align 16 .b8 memory[];\n"


def kernel(name, body):
    """Reads in[thread] into %rd5, and stores %rd6 in out[thread]."""
    return f"""
.visible .entry _ZN6mvnrob4cuda6kernelI{len(name)}{name}EEvv(
	.param .align 8 .b8 args[16]
)
{{
	.reg .pred %p<4>;
	.reg .b16 %rs<4>;
	.reg .b32 %r<20>;
	.reg .f32 %f<8>;
	.reg .f64 %fd<8>;
	.reg .b64 %rd<12>;
	ld.param.u64 %rd1, [args];
	ld.param.u64 %rd2, [args+8];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd3, %r1, 8;
	add.s64 %rd4, %rd1, %rd3;
	ld.global.u64 %rd5, [%rd4];
	mov.b64 {{%r2, %r3}}, %rd5;
	mov.b64 %fd1, %rd5;
	mov.b32 %f1, %r2;
	mov.b32 %f2, %r3;
	{body}
	add.s64 %rd4, %rd2, %rd3;
	st.global.u64 [%rd4], %rd6;
	ret;

}}
"""


def real(x):
    return int(np.float64(x).view(np.uint64))


def two(low, high):
    """Two whole or real numbers of 32 bits in a word."""
    parts = [np.float32(x).view(np.uint32) if isinstance(x, float) else x for x in (low, high)]
    return int(parts[0]) & 0xFFFFFFFF | (int(parts[1]) & 0xFFFFFFFF) << 32


NAN, INF = float("nan"), float("inf")
# A body, and what it makes of some words, by the ISA.
MEANINGS = {
    "Shifts": (
        "shr.s32 %r4, %r2, %r3; shl.b32 %r5, %r2, %r3; mov.b64 %rd6, {%r4, %r5};",
        [(two(-8, 1), two(-4, -16)), (two(-8, 40), two(-1, 0)), (two(7, 32), two(0, 0))],
    ),
    "Fields": (
        "bfi.b32 %r4, %r2, %r3, 8, 4; prmt.b32 %r5, %r2, %r3, 0x9140; mov.b64 %rd6, {%r4, %r5};",
        [(two(0x123456F5, 0xFFFFFFFF), two(0xFFFFF5FF, 0x0056FFF5)),
         (two(0x8000, 0), two(0, 0xFF800000))],
    ),
    "Products": (
        "mul.hi.u32 %r4, %r2, %r3; mul.lo.s32 %r5, %r2, %r3; mov.b64 %rd6, {%r4, %r5};",
        [(two(0x80000000, 6), two(3, 0)), (two(-1, -1), two(-2, 1))],
    ),
    "Wide": (
        "mul.wide.s32 %rd6, %r2, %r3;",
        [(two(-3, 5), -15 % 2**64), (two(2**31 - 1, 4), 2**33 - 4)],
    ),
    "Unordered": (
        ("setp.ltu.f32 %p1, %f1, %f2; setp.ne.f32 %p2, %f1, %f2; selp.u32 %r4, 1, 0, %p1;"
        "selp.u32 %r5, 1, 0, %p2; mov.b64 %rd6, {%r4, %r5};"),
        [(two(1.0, 2.0), two(1, 1)), (two(NAN, 2.0), two(1, 0)), (two(2.0, 2.0), two(0, 0))],
    ),
    "Extremes": (
        ("min.f32 %f3, %f1, %f2; max.f32 %f4, %f1, %f2; mov.b32 %r4, %f3; mov.b32 %r5, %f4;"
        "mov.b64 %rd6, {%r4, %r5};"),
        [(two(NAN, 2.0), two(2.0, 2.0)), (two(0.0, -0.0), two(-0.0, 0.0))],
    ),
    "Whole": (
        ("cvt.rzi.s32.f64 %r4, %fd1; cvt.rmi.f64.f64 %fd2, %fd1; cvt.rn.f32.f64 %f3, %fd2;"
        "mov.b32 %r5, %f3; mov.b64 %rd6, {%r4, %r5};"),
        [(real(-2.5), two(-2, -3.0)), (real(1e10), two(2**31 - 1, 1e10)),
         (real(-INF), two(-(2**31), -INF)), (real(2**53 + 2), two(2**31 - 1, float(2**53)))],
    ),
    "Halves": (
        ("cvt.rn.f16x2.f32 %r4, %f1, %f2; { .reg .f16 low, high; mov.b32 {low, high}, %r4;"
        "cvt.f32.f16 %f3, low; cvt.f32.f16 %f4, high; } mov.b32 %r5, %f3; mov.b32 %r6, %f4;"
        "mov.b64 %rd6, {%r5, %r6};"),
        [(two(1.0 + 2**-11, -7.25), two(-7.25, 1.0)), (two(1e9, 2.0**-25 * 1.5), two(2.0**-24, INF))],
    ),
    "Undefined": ("mov.f64 %fd3, %fd2; mov.b64 %rd6, %fd3;", [(0, 2**64 - 1)]),
    # The ISA reads only the upper half, and gives no more.
    "Rough": ("rcp.approx.ftz.f64 %fd2, %fd1; mov.b64 %rd6, %fd2;",
              [(real(4.0) + 12345, real(0.25)), (real(1e-310), real(INF)), (real(1.5e308), real(0.0)),
               (real(3.0), real(1 / 3) + 2**31 >> 32 << 32)]),
}  # fmt: skip

EXCHANGE = (
    "shfl.sync.bfly.b32 %r4|%p1, %r2, 5, 31, -1; setp.gt.s32 %p2, %r2, 20;"
    "vote.sync.ballot.b32 %r5, %p2, -1; mov.b64 %rd6, {%r4, %r5};"
)
SHARED = "mov.u32 %r4, memory; shl.b32 %r5, %r1, {shift}; add.s32 %r6, %r4, %r5;"
FAULTS = {
    "Misaligned": ("add.s64 %rd7, %rd1, 8; ld.global.v2.f64 {%fd2, %fd3}, [%rd7];", "misaligned"),
    "MisalignedShared": (
        SHARED.format(shift=3) + "st.shared.v4.f32 [%r6], {%f1, %f1, %f1, %f1};",
        "misaligned shared",
    ),
    "Beyond": (SHARED.format(shift=3) + "st.shared.u64 [%r6+248], %rd5;", "outside of shared"),
    "Mask": ("bar.warp.sync 1;", "mask must be"),
    "Divergent": (
        (
            "setp.lt.u32 %p1, %r1, 16; @%p1 bra $L_there; bar.sync 0; bra.uni $L_end;\n$L_there:\n"
            "bar.sync 0;\n$L_end:\n"
        ),
        "cannot go on",
    ),
    "Leaves": ("setp.eq.u32 %p1, %r1, 3; @%p1 ret; bar.sync 0;", "have ended"),
    "Zero": ("div.u32 %r4, %r2, %r3;", "division"),
}


def written_objects():
    bodies = {name: body for name, (body, _) in (MEANINGS | FAULTS).items()} | {"Lanes": EXCHANGE}
    text = HEAD + "".join(kernel(name, body) for name, body in bodies.items())
    return [ptx_objects.machine(), *ptx_objects.objects_of(text, "written")]


@pytest.fixture(scope="module")
def written():
    return native_build.load("ptx_bindings.cpp", "generic", objects=written_objects())


def run(module, name, words, threads=None, shared_bytes=0):
    given = np.zeros(len(words) + 8, np.uint64)
    given[: len(words)] = words
    # From a multiple of 16 bytes on.
    given = given[(given.ctypes.data // 8) % 2 :][:]
    given[: len(words)] = words
    out = np.zeros(len(words), np.uint64)
    module.run(name, threads or len(words), shared_bytes, given, out)
    return [int(x) for x in out]


@pytest.mark.parametrize("name", MEANINGS)
def test_instructions(written, name):
    for word, expected in MEANINGS[name][1]:
        (got,) = run(written, name, [word])
        assert got == expected, f"{word:x}: {got:x}, not {expected:x}"


def test_lanes_exchange(written):
    got = run(written, "Lanes", [two(lane, 0) for lane in range(32)])
    assert got == [two(lane ^ 5, 0xFFE00000) for lane in range(32)]


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reported(written, name):
    with pytest.raises(RuntimeError, match=FAULTS[name][1]):
        run(written, name, [0] * 32, shared_bytes=256)


def test_what_has_no_meaning_is_refused():
    for body in ("ex2.approx.f32 %f3, %f1;", "bar.sync 1;", "mov.u32 %r4, nowhere;"):
        with pytest.raises(Unknown, match="no meaning known"):
            ptx_objects.objects_of(HEAD + kernel("Other", body), "refused")


# ---- kernels ----------------------------------------------------------------------------------------


def both(module, run, *names, approximate=0):
    """What a call gives by bodies and by PTX, which must have run in the kernels of these names."""
    module.use_stand_ins(False)
    bodies = run()
    before = module.stand_in_launches()
    module.use_stand_ins(True, approximate=approximate)
    translated = run()
    ran = module.stand_in_launches()
    for name in names:
        assert ran.get(f"mvnrob::kernels::{name}", 0) > before.get(f"mvnrob::kernels::{name}", 0)
    return bodies, translated


def mvn_objects():
    objects = [ptx_objects.machine()]
    objects += ptx_objects.objects("bvn_cdf", ARCHITECTURE)
    objects += ptx_objects.objects("standard_normal", ARCHITECTURE)
    objects += ptx_objects.objects("nearest_ends", ARCHITECTURE)
    return objects + ptx_objects.objects("samplers_double", ARCHITECTURE)


def jac_objects():
    objects = [ptx_objects.machine(), *ptx_objects.objects("jac_cov_float", ARCHITECTURE)]
    return objects + ptx_objects.objects(
        "jac_cov_bfloat16", ARCHITECTURE, "Gram|Products|JacCovTensor"
    )


def compile_ahead():
    native_build.module_file("ptx_bindings.cpp", "generic", objects=written_objects())
    if ptx_objects.find_nvcc():
        isa = best_isa()
        native_build.module_file("shim_kernel_bindings.cpp", isa, objects=mvn_objects())
        native_build.module_file("shim_jac_cov_bindings.cpp", isa, objects=jac_objects())


@pytest.fixture(scope="module")
def mvn():
    return native_build.load("shim_kernel_bindings.cpp", best_isa(), objects=mvn_objects())


@pytest.fixture(scope="module")
def jac():
    return native_build.load("shim_jac_cov_bindings.cpp", best_isa(), objects=jac_objects())


@needs_nvcc
def test_bvn_cdf(mvn):
    rng = np.random.default_rng(0)
    h, k = rng.normal(0, 3, (2, 3000))
    rho = rng.uniform(-1, 1, 3000)
    rho[:100] = np.sign(rho[:100]) * (1 - 10.0 ** -rng.uniform(1, 16, 100))
    h[:3] = [INF, -INF, NAN]
    bodies, translated = both(mvn, lambda: mvn.bvn_cdf(h, k, rho, 7), "BvnCdf")
    # Products are fused with sums in other places.
    assert translated == pytest.approx(bodies, rel=1e-13, abs=3e-16, nan_ok=True)


@needs_nvcc
def test_standard_normal(mvn):
    keys = np.arange(-3, 4)
    run = lambda: mvn.standard_normal(keys, 1, 2, 1101)
    bodies, translated = both(mvn, run, "StandardNormal")
    assert np.abs(translated - bodies).max() <= 5e-7
    assert np.mean(translated != bodies) <= 1e-4  # rounded to float32


@needs_nvcc
def test_nearest_ends(mvn):
    size = nearest_ends_cases.SIZES[-1]
    limit, table, draws = (part.numpy() for part in nearest_ends_cases.problem(*size))
    _, _, rising, exact, others, _ = size
    flipped = exact + others // 2
    run = lambda: mvn.nearest_ends(limit, table, draws, rising, exact, flipped, True)
    bodies, translated = both(mvn, run, "NearestEnds")
    for ours, theirs in zip(bodies[:2], translated[:2], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-6, abs=5e-5)
    for ours, theirs in zip(bodies[2:], translated[2:], strict=True):
        assert np.mean(theirs != ours) <= 1e-2  # as near but for rounding


@needs_nvcc
@pytest.mark.parametrize(
    "n, pivots, name",
    [
        (7, 7, "MvnCdfSampleSmall<double>"),
        (70, 69, "MvnCdfSampleBlocked<double>"),
        (176, 96, "MvnCdfSampleTensorDouble"),
    ],
)
def test_mvn_cdf_samples(mvn, n, pivots, name):
    sums = forced_sums(mvn, n, pivots)
    bodies, translated = both(mvn, sums, name)
    # Products are fused with sums in other places.
    scale = np.abs(bodies).max(axis=-1, keepdims=True)
    assert (np.abs(translated - bodies) <= 1e-13 * scale).all()


def forced_sums(mvn, n, pivots):
    rng = np.random.default_rng(n)
    root = rng.normal(size=(2, n, n))
    cov = root @ root.transpose(0, 2, 1)
    sd = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    upper, lower = sd * rng.uniform(0.5, 2.5, (2, n)), -sd * rng.uniform(0.5, 3, (2, n))
    order = np.stack([rng.permutation(n)[:pivots] for _ in range(2)])
    return lambda: mvn.mvn_cdf_sums(
        upper, cov, lower, np.arange(2), order, 192, "float64", "lattice"
    )


@needs_nvcc
def test_errors_of_approximate_instructions_are_corrected(mvn):
    """Reciprocals and roots off by what the ISA allows change last places of the draws at most."""
    sums = forced_sums(mvn, 7, 7)
    bodies, near = both(mvn, sums)
    for seed in (1, 2, 3):
        _, off = both(mvn, sums, approximate=seed)
        assert (off != near).any()
        assert off == pytest.approx(bodies, rel=1e-13, abs=1e-13)


@needs_nvcc
@pytest.mark.parametrize(
    "classes, columns, name", [(5, 40, "Narrow"), (70, 200, "Triangle"), (140, 100, "Tensor")]
)
def test_jac_cov(jac, classes, columns, name):
    rng = np.random.default_rng(classes)
    J = rng.normal(size=(2, classes, columns)).astype(np.float32)
    target = rng.integers(0, classes, 2)

    def accumulated():
        S = np.zeros((2, classes, classes))
        jac.accumulate(S, J, target)
        return S, jac.norms(J, target)

    names = "JacNorms<float>", "JacNormsSum", f"JacCov{name}<float>"
    bodies, translated = both(jac, accumulated, *names)
    for ours, theirs in zip(translated, bodies, strict=True):
        # Sums of float32 products in another order.
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@needs_nvcc
@pytest.mark.parametrize("columns", [104, 37])
def test_jac_cov_of_bfloat16(jac, columns):
    """Rows that are copied, and rows that are not aligned; the third problem subtracts first."""
    rng = np.random.default_rng(columns)
    J = rng.normal(size=(3, 140, columns)).astype(np.float32)
    J[2] += 20
    J = (J.view(np.uint32) >> 16).astype(np.uint16)
    target = rng.integers(0, 140, 3)

    def accumulated():
        S = np.zeros((3, 140, 140))
        jac.accumulate(S, J, target)
        return S

    of = "<mvnrob::kernels::BFloat16>"
    names = f"JacNormsProducts{of}", "JacGramChoice", "JacCovGram", f"JacCovTensor{of}"
    bodies, translated = both(jac, accumulated, *names)
    assert np.abs(translated - bodies).max() <= 1e-5 * np.abs(bodies).max()
