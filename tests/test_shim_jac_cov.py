"""The CUDA kernels of jac_cov on the CPU (csrc/shim): against float64, against the CPU backend, and
the same bits whatever the grid.

At most 10 classes go through one kernel, up to 104 through another, more through tiles: tensor cores
for float32 and bfloat16 (emulated), plain products for float64. CLASSES has both sides of each
border.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_jac_cov import SINGLE, TOLERANCE, assert_close, assert_same_bits, problem

from mvnrob._jac_cov import JacCovResult, jac_cov, jac_cov_finalize, jac_cov_reference

sys.path.insert(0, str(Path(__file__).parent / "native"))
import native_build

CLASSES = (1, 2, 3, 9, 10, 11, 12, 16, 17, 33, 64, 97, 104, 105, 128, 129, 140)
DTYPES = tuple(TOLERANCE)
# A few hundred products of a kernel in each of its ways.
WAYS = (7, 30, 110)
ISA = next(isa for isa in ("avx2", "generic") if not native_build.missing_features(isa))


def compile_ahead():
    native_build.module_file("shim_jac_cov_bindings.cpp", ISA)


@pytest.fixture(scope="module")
def shim():
    return native_build.load("shim_jac_cov_bindings.cpp", ISA)


@pytest.fixture
def order(shim):
    yield shim.set_order
    shim.set_order(0)


def array(t):
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy()


def sums(shim, J, target, start=None, **options):
    batch, classes = J.shape[:2]
    S = torch.zeros(batch, classes, classes, dtype=torch.float64) if start is None else start
    shim.accumulate(S.numpy(), array(J), target.numpy(), **options)
    return S


def finalize(shim, S, logits, target, sigma):
    sigma = torch.as_tensor(sigma, dtype=torch.float64).expand(len(logits)).contiguous()
    fields = shim.finalize(*(t.numpy() for t in (S, logits, target, sigma)))
    z, corr, norms = (torch.from_numpy(x) for x in fields)
    index = torch.arange(logits.shape[1] - 1)
    return JacCovResult(z, corr, norms, index + (index >= target[:, None]))


def by_kernels(shim, J, logits, target, sigma, **options):
    return finalize(shim, sums(shim, J, target, **options), logits, target, sigma)


# ---- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_reference_by_classes(shim, classes, dtype):
    J, logits, target, sigma = problem(2, classes, 70, dtype, seed=classes)
    got = by_kernels(shim, J, logits, target, sigma)
    assert_close(got, jac_cov_reference(J, logits, target, sigma), TOLERANCE[dtype])
    assert torch.equal(got.corr, got.corr.mT)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", WAYS)
def test_reference_by_columns(shim, classes, dtype):
    chunks = (511, 512, 513, 1023, 1024, 1025, 2090) if classes < 100 else (1025,)
    for columns in (1, 2, 7, 8, 15, 16, 17, 31, 32, 33, *chunks):
        J, logits, target, sigma = problem(2, classes, columns, dtype, seed=columns)
        got = by_kernels(shim, J, logits, target, sigma)
        assert_close(got, jac_cov_reference(J, logits, target, sigma), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", WAYS)
def test_common_mode(shim, classes, dtype):
    """A shift common to all classes, a thousand times the size of the rows, costs no digits."""
    J, logits, target, sigma = problem(1, classes, 1500, dtype)
    shift = torch.randn(1, 1, 1500, generator=torch.Generator().manual_seed(1)).to(dtype)
    J = J + (1000 if dtype != torch.bfloat16 else 30) * shift
    got = by_kernels(shim, J, logits, target, sigma)
    assert_close(got, jac_cov_reference(J, logits, target, sigma), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_of_tensor_cores_is_that_of_float32(shim, dtype):
    """Rows of every size and with elements of every size: 22 bits of the norm are enough."""
    J, logits, target, sigma = problem(1, 110, 600, torch.float64, seed=3)
    g = torch.Generator().manual_seed(4)
    J = J * torch.exp(4 * torch.randn(1, 1, 600, generator=g, dtype=torch.float64))
    target[:] = 0
    J[:, 0] = 0
    J = J * torch.logspace(-12, 12, 110, dtype=torch.float64)[None, :, None]
    J = J.to(dtype)
    want = jac_cov_reference(J, logits, target, sigma)
    assert_close(by_kernels(shim, J, logits, target, sigma), want, SINGLE)
    assert_close(jac_cov(J, logits, target, sigma), want, SINGLE)


def shifted(classes, columns, size, batch=1):
    """bfloat16 rows with a part in common, the same in every problem."""
    J, logits, target, sigma = problem(batch, classes, columns, torch.float64, seed=1)
    shift = torch.randn(columns, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (J + size * shift).to(torch.bfloat16), logits, target, sigma


def multiplies_itself(shim, J, target):
    """Whether J is multiplied as it is: differences have the bits of those of float32."""
    return not torch.equal(sums(shim, J, target), sums(shim, J.float(), target))


@pytest.mark.parametrize("columns", [600, 4500])
@pytest.mark.parametrize("size, own", [(0, True), (1, True), (2.5, True), (3, False), (30, False)])
def test_bfloat16_is_multiplied_as_it_is_where_that_costs_no_digits(shim, columns, size, own):
    J, logits, target, sigma = shifted(110, columns, size)
    assert multiplies_itself(shim, J, target) == own
    want = jac_cov_reference(J, logits, target, sigma)
    assert_close(by_kernels(shim, J, logits, target, sigma), want, SINGLE)


def test_bfloat16_is_subtracted_first_where_rows_meet_or_squares_leave_the_range(shim):
    J, _, target, _ = problem(1, 110, 40, torch.bfloat16)
    target[:] = 0
    assert multiplies_itself(shim, J, target)
    for change in ("equal", "zero", "opposite", "small", "large"):
        other = J.clone()
        if change == "equal":
            other[0, 7] = other[0, 90]
        elif change == "zero":
            other[0, 7] = other[0, 0]
        elif change == "opposite":
            other[0, 0] = 0
            other[0, 7] = -other[0, 90]
        else:
            other *= 2.0**-56 if change == "small" else 2.0**60
        assert not multiplies_itself(shim, other, target), change


def test_ways_of_bfloat16_side_by_side(shim):
    """A problem goes its way whatever the others do, and adds to what is there."""
    J, _, target, _ = shifted(110, 2200, 0, batch=3)
    J[1] = shifted(110, 2200, 30)[0][0]
    start = torch.ones(3, 110, 110, dtype=torch.float64)
    whole = {r: sums(shim, J, target, start.clone(), resident=r) for r in (1, 100)}
    assert torch.equal(whole[1], whole[100])
    for b, own in enumerate((True, False, True)):
        one = slice(b, b + 1)
        assert multiplies_itself(shim, J[one], target[one]) == own
        assert torch.equal(sums(shim, J[one], target[one], start[one].clone())[0], whole[1][b])
        t = int(target[b])
        assert (whole[1][b, t] == 1).all() and (whole[1][b, :, t] == 1).all()


@pytest.mark.parametrize("columns", [8, 60, 70, 2122])
def test_bfloat16_in_rows_that_are_aligned_or_not(shim, columns):
    J, _, target, _ = problem(1, 130, columns, torch.bfloat16)
    wanted = sums(shim, J, target)
    for pitch, first in ((columns // 8 * 8 + 16, 0), (columns // 8 * 8 + 16, 8), (columns + 3, 2)):
        wide = torch.full((1, 130, pitch), torch.nan, dtype=torch.bfloat16)
        wide[..., first : first + columns] = J
        assert torch.equal(sums(shim, wide[..., first : first + columns], target), wanted)


def test_conversions_of_the_emulation(shim):
    every = np.arange(2**16, dtype=np.uint16)
    want = every.view(np.float16).astype(np.float32)
    got = shim.from_half(every)
    assert np.array_equal(got, want, equal_nan=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=20000) * np.exp2(rng.integers(-30, 18, 20000))
    near = want[np.isfinite(want)].astype(np.float64)
    ties = (near[1:] + near[:-1]) / 2
    x = np.concatenate([x, ties, [np.inf, -np.inf, 0.0, -0.0, 65519.9, 65520.0]]).astype(np.float32)
    with np.errstate(over="ignore"):
        assert np.array_equal(shim.to_half(x), x.astype(np.float16).view(np.uint16))


# ---- edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [9, 30, 140])
def test_zero_equal_and_opposite_rows(shim, classes, dtype):
    g = torch.Generator().manual_seed(0)
    # Multiples of 1/8, so that 2 J_t - J_6 is exact in every dtype.
    J = torch.randint(-8, 9, (1, classes, 90), generator=g).to(dtype) / 8
    J[0, [0, 3, 8]] = J[0, 2].clone()  # u = 0
    J[0, classes - 4] = J[0, 4]
    J[0, 7] = 2 * J[0, 2] - J[0, 6]
    logits = torch.ones(1, classes)
    logits[0, :4] = torch.tensor([1.0, 0.0, 1.5, 2.0])
    logits[0, 8] = 1.5
    got = by_kernels(shim, J, logits, torch.tensor([2]), 0.5)
    place = {int(c): i for i, c in enumerate(got.keep[0])}
    assert got.z[0, place[0]] == torch.inf
    assert got.z[0, place[3]] == -torch.inf
    assert got.z[0, place[8]] == torch.inf
    for c in (0, 3, 8):
        unit = torch.zeros(classes - 1)
        unit[place[c]] = 1
        assert got.norms[0, place[c]] == 0
        assert torch.equal(got.corr[0, place[c]], unit)
    assert got.corr[0, place[4], place[classes - 4]] == 1
    assert got.corr[0, place[6], place[7]] == -1
    assert_close(got, jac_cov_reference(J, logits, torch.tensor([2]), 0.5), SINGLE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", WAYS)
def test_nan_and_infinity_stay_in_their_row(shim, classes, dtype):
    J, logits, target, sigma = problem(3, classes, 40, dtype)
    target[:] = 0
    want = by_kernels(shim, J, logits, target, sigma)
    J[1, 3, 4] = torch.nan
    J[2, 5, 6] = torch.inf
    got = by_kernels(shim, J, logits, target, sigma)
    bad = torch.zeros(3, classes - 1, dtype=torch.bool)
    bad[1, 2] = bad[2, 4] = True
    assert torch.equal(got.z.isnan(), bad)
    assert torch.equal(got.z[~bad], want.z[~bad])
    pair = bad[:, :, None] | bad[:, None, :]
    assert torch.equal(got.corr.isnan(), pair & ~torch.eye(classes - 1, dtype=torch.bool))
    assert torch.equal(got.corr[~pair], want.corr[~pair])
    assert got.norms[1, 2].isnan() and got.norms[2, 4] == torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", WAYS)
def test_range_of_norms(shim, classes, dtype):
    """As documented: norms from 1e-15 to 1e18 are exact to rounding, larger ones infinite."""
    J, logits, target, sigma = problem(1, classes, 40, dtype)
    for scale in (2.0**-48, 2.0**54):
        got = by_kernels(shim, J * scale, logits, target, sigma)
        assert_close(got, jac_cov_reference(J * scale, logits, target, sigma), SINGLE)
    got = by_kernels(shim, J * 2.0**66, logits, target, sigma)
    assert (got.norms == torch.inf).all() and got.z.isnan().all()


@pytest.mark.parametrize("classes", WAYS)
def test_target_that_is_no_class(shim, classes):
    """It cannot be refused before a launch: its problem is NaN, the others are not touched."""
    J, logits, target, sigma = problem(3, classes, 40)
    want = by_kernels(shim, J, logits, target, sigma)
    for wrong in (-1, classes, 2**40):
        target[1] = wrong
        got = by_kernels(shim, J, logits, target, sigma)
        assert got.z[1].isnan().all() and got.norms[1].isnan().all()
        off = ~torch.eye(classes - 1, dtype=torch.bool)
        assert got.corr[1][off].isnan().all()
        for b in (0, 2):
            assert_same_bits([t[b] for t in got], [t[b] for t in want])
    assert np.isnan(shim.norms(array(J), target.numpy())[1]).all()


@pytest.mark.parametrize("sigma", [0.0, -1.0, torch.inf, torch.nan])
def test_sigma_that_is_none(shim, sigma):
    J, logits, target, _ = problem(1, 5, 40)
    got = by_kernels(shim, J, logits, target, sigma)
    assert got.z.isnan().all() and got.corr.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", WAYS)
def test_strides(shim, classes, dtype):
    """Unaligned rows of a wider tensor, classes before inputs, one Jacobian for all."""
    J, logits, target, sigma = problem(3, classes, 37, dtype)
    want = by_kernels(shim, J, logits, target, sigma)
    norms = shim.norms(array(J), target.numpy())
    wide = torch.full((3, classes, 81), torch.nan, dtype=dtype)
    wide[..., 3:40] = J
    for form in (wide[..., 3:40], J.transpose(0, 1).contiguous().transpose(0, 1)):
        assert_same_bits(by_kernels(shim, form, logits, target, sigma), want)
        assert np.array_equal(shim.norms(array(form), target.numpy()), norms)
    shared = J[:1].expand(3, classes, 37)
    assert_same_bits(
        by_kernels(shim, shared, logits, target, sigma),
        by_kernels(shim, shared.contiguous(), logits, target, sigma),
    )


# ---- the same bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [7, 30, 140])
def test_bits_do_not_depend_on_the_grid(shim, classes, dtype):
    """Nor on the batch: all chunks in one block or each in its own, in one launch or several."""
    columns = 2100 if classes < 100 or dtype == torch.bfloat16 else 1060
    J, _, target, _ = problem(3, classes, columns, dtype)
    want = sums(shim, J, target, resident=100)
    for resident, problems, chunks in ((1, 0, 0), (100, 1, 1), (100, 2, 3)):
        got = sums(shim, J, target, resident=resident, problems=problems, chunks=chunks)
        assert torch.equal(got, want)
    alone = sums(shim, J[1:2], target[1:2])
    assert torch.equal(alone[0], want[1])


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("classes", WAYS)
def test_bits_do_not_depend_on_the_order_of_threads(shim, order, classes, seed):
    for dtype in DTYPES:
        J, logits, target, sigma = problem(2, classes, 100, dtype)
        want = by_kernels(shim, J, logits, target, sigma)
        norms = shim.norms(array(J), target.numpy())
        order(seed)
        assert_same_bits(by_kernels(shim, J, logits, target, sigma), want)
        assert np.array_equal(shim.norms(array(J), target.numpy()), norms)
        order(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", WAYS)
def test_accumulate_adds(shim, classes, dtype):
    """To the upper triangle of what is there, in any chunks; both triangles are written."""
    J, _, target, _ = problem(2, classes, 100, dtype)
    g = torch.Generator().manual_seed(5)
    start = torch.randn(2, classes, classes, generator=g, dtype=torch.float64)
    whole = sums(shim, J, target)
    got = sums(shim, J, target, start.clone())
    want = start.triu() + start.triu(1).mT + whole
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13 * float(whole.abs().max()))
    parts = start.clone()
    for piece in J.split([1, 63, 36], dim=-1):
        sums(shim, piece, target, parts)
    scale = torch.einsum("bi,bj->bij", *[whole.diagonal(dim1=1, dim2=2).sqrt()] * 2)
    assert ((parts - got).abs() <= TOLERANCE[dtype] * scale).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [7, 30])
def test_streaming_gives_the_bits_of_one_call(shim, classes, dtype):
    J, _, target, _ = problem(2, classes, 2500, dtype)
    parts = torch.zeros(2, classes, classes, dtype=torch.float64)
    for piece in J.split([1024, 1476], dim=-1):
        sums(shim, piece, target, parts)
    assert torch.equal(parts, sums(shim, J, target))


# ---- the other ops ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "classes, columns", [(1, 5), (3, 1), (4, 0), (9, 17), (70, 1025), (6, 4099)]
)
def test_norms(shim, classes, columns, dtype):
    J, _, target, _ = problem(3, classes, columns, dtype)
    got = shim.norms(array(J), target.numpy())
    exact = J.double()
    want = (exact[torch.arange(3), target][:, None] - exact).square().sum(-1).numpy()
    np.testing.assert_allclose(got, want, rtol=2 * TOLERANCE[dtype])
    for problems, chunks in ((1, 1), (2, 2), (1, 0)):
        cut = shim.norms(array(J), target.numpy(), problems=problems, chunks=chunks)
        assert np.array_equal(cut, got)


@pytest.mark.parametrize("S_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 10, 17, 70, 300])
def test_finalize_has_the_bits_of_the_cpu(shim, classes, dtype, S_dtype):
    J, logits, target, sigma = problem(5, classes, 12, torch.float64, seed=classes)
    J[2, 1] = J[2, 0]
    u = J[torch.arange(5), target][:, None] - J
    S = (u @ u.mT).to(S_dtype)
    S = (S.triu() + S.triu(1).mT).contiguous()
    logits = logits.to(dtype)
    got = finalize(shim, S, logits, target, sigma)
    assert_same_bits(got, jac_cov_finalize(S, logits, target, sigma))


def test_conversions_of_S(shim):
    x = torch.randn(777, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(shim.to_float(x.numpy()), x.float().numpy())
    assert np.array_equal(shim.to_double(x.float().numpy()), x.float().double().numpy())
