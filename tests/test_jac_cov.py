"""jac_cov, its streaming form and jac_cov_norms: against plain float64 PyTorch, and contracts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

import mvnrob
from mvnrob._jac_cov import (
    jac_cov,
    jac_cov_accumulate,
    jac_cov_finalize,
    jac_cov_norms,
    jac_cov_reference,
)

# float32 sums: at most 256 terms per lane (generic build), their rounding a random walk of 16 steps
# of eps32, relative to ||u_i|| ||u_j||. Measured worst over the cases of this file, on the generic
# build: 2.9e-7 (float32), 4.8e-7 (bfloat16); with AVX-512 1.4e-7 for both.
SINGLE = 16 * torch.finfo(torch.float32).eps
# float64 sums over at most some thousand columns: a random walk of 64 steps. Measured: 3.1e-15.
DOUBLE = 64 * torch.finfo(torch.float64).eps
TOLERANCE = {torch.float32: SINGLE, torch.bfloat16: SINGLE, torch.float64: DOUBLE}


def problem(batch, classes, columns, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    J = torch.randn(batch, classes, columns, generator=g, dtype=torch.float64).to(dtype)
    logits = torch.randn(batch, classes, generator=g, dtype=torch.float64)
    target = torch.randint(classes, (batch,), generator=g)
    sigma = 0.1 + torch.rand(batch, generator=g, dtype=torch.float64)
    return J, logits, target, sigma


def assert_close(got, want, tolerance):
    """z and norms relative to their size, correlations absolutely; the same classes."""
    assert torch.equal(got.keep, want.keep)
    torch.testing.assert_close(got.z.double(), want.z, rtol=tolerance, atol=0)
    torch.testing.assert_close(got.norms.double(), want.norms, rtol=tolerance, atol=0)
    torch.testing.assert_close(got.corr.double(), want.corr, rtol=0, atol=tolerance)


def assert_same_bits(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


# ---- values -----------------------------------------------------------------------------------

CLASSES = [1, 2, 3, 4, 5, 6, 31, 32, 33, 64, 65, 100, 257]  # groups of 3 and 5, tiles of 50..201
COLUMNS = [1, 2, 7, 8, 15, 16, 17, 31, 33, 1000]  # vectors of 2..16 lanes


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_reference_by_classes(classes, dtype):
    J, logits, target, sigma = problem(3, classes, 130, dtype, seed=classes)
    got = jac_cov(J, logits, target, sigma)
    assert_close(got, jac_cov_reference(J, logits, target, sigma), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("columns", COLUMNS)
def test_reference_by_columns(columns, dtype):
    J, logits, target, sigma = problem(3, 12, columns, dtype, seed=columns)
    got = jac_cov(J, logits, target, sigma)
    assert_close(got, jac_cov_reference(J, logits, target, sigma), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("columns", [511, 512, 513, 1023, 1024, 1025, 4099])
def test_reference_across_chunks(columns, dtype):
    """The kernel works on 512 columns of float64 or 1024 of float32 at a time."""
    J, logits, target, sigma = problem(2, 11, columns, dtype, seed=columns)
    got = jac_cov(J, logits, target, sigma)
    assert_close(got, jac_cov_reference(J, logits, target, sigma), TOLERANCE[dtype])


@pytest.mark.parametrize("target", [0, 5, 11])
def test_each_position_of_the_target(target):
    J, logits, _, sigma = problem(1, 12, 40)
    t = torch.tensor([target])
    got = jac_cov(J, logits, t, sigma)
    assert got.keep[0].tolist() == [i for i in range(12) if i != target]
    assert_close(got, jac_cov_reference(J, logits, t, sigma), SINGLE)


def test_corr_is_a_correlation_matrix():
    J, logits, target, sigma = problem(2, 70, 40)  # rank 40 at most
    corr = jac_cov(J, logits, target, sigma).corr
    assert torch.equal(corr, corr.mT)
    assert corr.abs().max() == 1
    assert torch.equal(corr.diagonal(dim1=-2, dim2=-1), torch.ones(2, 69, dtype=torch.float64))
    # Perturbed by at most SINGLE per entry, so each eigenvalue by at most 69 times that.
    assert torch.linalg.eigvalsh(corr).min() > -69 * SINGLE


def test_common_mode():
    """A shift common to all classes, a thousand times the size of the rows, costs no digits."""
    J, logits, target, sigma = problem(2, 40, 3072)
    J = J + 1000 * torch.randn(2, 1, 3072, generator=torch.Generator().manual_seed(1))
    want = jac_cov_reference(J, logits, target, sigma)
    assert_close(jac_cov(J, logits, target, sigma), want, SINGLE)
    # What multiplying first would do to the same input: the loss that the order avoids.
    gram = J @ J.mT
    rows = torch.arange(2)
    column = gram[rows, target]
    S = gram[rows, target, target][:, None, None] - column[:, :, None] - column[:, None] + gram
    first = jac_cov_finalize(S.contiguous(), logits, target, sigma).corr
    assert not (first - want.corr).abs().max() < 1e-2


@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_results_have_the_dtype_of_logits(logits_dtype):
    J, logits, target, sigma = problem(2, 6, 20)
    logits = logits.to(logits_dtype)
    got = jac_cov(J, logits, target, sigma)
    want = torch.float32 if logits_dtype == torch.bfloat16 else logits_dtype
    assert got.z.dtype == got.corr.dtype == got.norms.dtype == want
    assert_close(got, jac_cov_reference(J, logits, target, sigma), SINGLE)


@pytest.mark.parametrize(
    "sigma",
    [2, 0.5, torch.tensor(0.5), torch.tensor([0.5, 2.0]), torch.tensor([0.5, 2.0]).double()],
)
def test_forms_of_sigma(sigma):
    J, logits, target, _ = problem(2, 6, 20)
    assert_close(
        jac_cov(J, logits, target, sigma), jac_cov_reference(J, logits, target, sigma), SINGLE
    )


# ---- streaming --------------------------------------------------------------------------------


def streamed(J, target, sizes, dtype=torch.float64):
    S = torch.zeros(J.shape[0], J.shape[1], J.shape[1], dtype=dtype)
    for chunk in J.split(sizes, dim=-1):
        assert jac_cov_accumulate(S, chunk, target) is S
    return S


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_streaming_gives_the_bits_of_one_call(dtype):
    J, logits, target, sigma = problem(2, 23, 5000, dtype)
    S = streamed(J, target, [1024, 2048, 1024, 904])
    assert torch.equal(S, S.mT)
    got = jac_cov_finalize(S, logits, target, sigma)
    assert_same_bits(got, jac_cov(J, logits, target, sigma))


@pytest.mark.parametrize("S_dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_streaming_in_odd_chunks(dtype, S_dtype):
    J, logits, target, sigma = problem(2, 23, 1000, dtype)
    S = streamed(J, target, [1, 16, 0, 300, 683], S_dtype)
    got = jac_cov_finalize(S, logits, target, sigma)
    tolerance = max(TOLERANCE[dtype], SINGLE if S_dtype == torch.float32 else 0)
    assert_close(got, jac_cov_reference(J, logits, target, sigma), tolerance)


def test_one_S_serves_many_sigmas():
    J, logits, target, _ = problem(2, 9, 30)
    S = streamed(J, target, [30])
    before = S.clone()
    for sigma in (0.1, 0.4):
        got = jac_cov_finalize(S, logits, target, sigma)
        assert_close(got, jac_cov_reference(J, logits, target, sigma), SINGLE)
    assert torch.equal(S, before)


def test_accumulate_adds():
    """S starts from what the caller put there, in the upper triangle."""
    J, _, target, _ = problem(1, 8, 30)
    once = streamed(J, target, [30])
    start = torch.arange(64, dtype=torch.float64).reshape(1, 8, 8)
    got = jac_cov_accumulate(start.clone(), J, target)
    want = start.triu() + start.triu(1).mT + once
    torch.testing.assert_close(got, want, rtol=DOUBLE, atol=0)


# ---- one row's answer is its own --------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("classes", [10, 120, 257, 520])
def test_bits_do_not_depend_on_threads_or_batch(classes, dtype, threads):
    """Threads and batch also choose the tiles: of 63 to 250 rows, or one for all of them."""
    J, logits, target, sigma = problem(7, classes, 300, dtype)
    threads(1)
    want = jac_cov(J, logits, target, sigma)
    norms = jac_cov_norms(J, target)
    for count in (2, 3, 16):
        threads(count)
        assert_same_bits(jac_cov(J, logits, target, sigma), want)
        assert torch.equal(jac_cov_norms(J, target), norms)
        for rows in (slice(0, 1), slice(4, 7)):
            part = jac_cov(J[rows], logits[rows], target[rows], sigma[rows])
            assert_same_bits(part, [t[rows] for t in want])
            assert torch.equal(jac_cov_norms(J[rows], target[rows]), norms[rows])
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    moved = jac_cov(J[order], logits[order], target[order], sigma[order])
    assert_same_bits(moved, [t[order] for t in want])


def test_a_pair_does_not_depend_on_its_place():
    """Permuting the classes permutes the result, to the bit."""
    J, logits, _, _ = problem(1, 113, 1500, torch.float32)
    order = torch.randperm(113, generator=torch.Generator().manual_seed(3))
    want = jac_cov(J, logits, torch.tensor([17]), 0.3)
    new = torch.argsort(order)  # class i becomes class new[i]
    got = jac_cov(J[:, order], logits[:, order], new[17].reshape(1), 0.3)
    place = new[want.keep[0]]
    place = place - (place > new[17]).long()
    assert torch.equal(got.z[:, place], want.z)
    assert torch.equal(got.corr[:, place][:, :, place], want.corr)


# ---- edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_zero_equal_and_opposite_rows(dtype):
    g = torch.Generator().manual_seed(0)
    # Multiples of 1/8, so that 2 J_t - J_6 is exact in every dtype.
    J = torch.randint(-8, 9, (1, 9, 1100), generator=g).to(dtype) / 8
    J[0, [0, 3, 8]] = J[0, 2].clone()  # u = 0
    J[0, 5] = J[0, 4]
    J[0, 7] = 2 * J[0, 2] - J[0, 6]
    logits = torch.tensor([[1.0, 0.0, 1.5, 2.0, 1.0, 1.0, 1.0, 1.0, 1.5]])
    got = jac_cov(J, logits, torch.tensor([2]), 0.5)
    place = {int(c): i for i, c in enumerate(got.keep[0])}
    assert got.z[0, place[0]] == torch.inf
    assert got.z[0, place[3]] == -torch.inf
    assert got.z[0, place[8]] == torch.inf  # margin 0: P(0 <= 0) = 1
    for c in (0, 3, 8):
        unit = torch.zeros(8)
        unit[place[c]] = 1
        assert got.norms[0, place[c]] == 0
        assert torch.equal(got.corr[0, place[c]], unit)
        assert torch.equal(got.corr[0, :, place[c]], unit)
    assert got.corr[0, place[4], place[5]] == 1
    assert got.corr[0, place[6], place[7]] == -1
    assert_close(got, jac_cov_reference(J, logits, torch.tensor([2]), 0.5), SINGLE)


@pytest.mark.parametrize(
    "scale", [2.0**-530, 2.0**-500, 2.0**500], ids=["subnormal", "small", "large"]
)
def test_far_scales(scale):
    """Norms whose products leave the range of float64, or whose squares are subnormal."""
    J, logits, target, sigma = problem(1, 8, 20, torch.float64)
    want = jac_cov(J, logits, target, sigma)
    got = jac_cov(J * scale, logits, target, sigma * 2.0**-30)
    # Squares near 2^-1060 are multiples of 2^-1074: a few digits are left.
    tolerance = 2.0**-8 if scale == 2.0**-530 else DOUBLE
    torch.testing.assert_close(got.corr, want.corr, rtol=0, atol=tolerance)
    torch.testing.assert_close(got.norms, want.norms * scale, rtol=tolerance, atol=0)
    torch.testing.assert_close(got.z, want.z / scale * 2.0**30, rtol=tolerance, atol=0)


def test_rows_of_very_different_size():
    J, logits, _, sigma = problem(1, 8, 20, torch.float64)
    J[:, 0] = 0
    J[:, 1::2] *= 2.0**-500
    J[:, 2::2] *= 2.0**500
    got = jac_cov(J, logits, torch.tensor([0]), sigma)
    flat = torch.nn.functional.normalize(J[0, 1:] * J[0, 1:, :1].abs().reciprocal(), dim=-1)
    torch.testing.assert_close(got.corr[0], flat @ flat.T, rtol=0, atol=DOUBLE)


def test_rounding_is_clamped():
    """Nearly parallel rows: the quotient would round past 1."""
    g = torch.Generator().manual_seed(0)
    J = torch.randn(64, 1, 300, generator=g) * (1 + torch.rand(64, 30, 1, generator=g))
    J[:, 0] = 0
    got = jac_cov(J, torch.zeros(64, 30).double(), torch.zeros(64, dtype=torch.int64), 1.0)
    assert got.corr.max() == 1 and got.corr.min() > 1 - SINGLE


def test_nan_and_infinity_stay_in_their_row():
    J, logits, target, sigma = problem(3, 7, 30)
    target[:] = 0
    want = jac_cov(J, logits, target, sigma)
    J[1, 3, 4] = torch.nan
    J[2, 5, 6] = torch.inf
    got = jac_cov(J, logits, target, sigma)
    bad = torch.zeros(3, 6, dtype=torch.bool)
    bad[1, 2] = bad[2, 4] = True
    assert torch.equal(got.z.isnan(), bad)
    assert torch.equal(got.z[~bad], want.z[~bad])
    pair = bad[:, :, None] | bad[:, None, :]
    eye = torch.eye(6, dtype=torch.bool)
    assert torch.equal(got.corr.isnan(), pair & ~eye)
    assert torch.equal(got.corr[~pair], want.corr[~pair])
    logits[0, 2] = torch.nan
    logits[0, 4] = -torch.inf
    got = jac_cov(J, logits, target, sigma)
    assert got.z[0].isnan().tolist() == [False, True, False, False, False, False]
    assert got.z[0, 3] == torch.inf


@pytest.mark.parametrize(
    "batch, classes, columns", [(0, 4, 5), (2, 1, 5), (2, 4, 0), (0, 1, 0), (2, 2, 1)]
)
def test_empty_and_smallest(batch, classes, columns):
    J, logits, target, sigma = problem(batch, classes, columns)
    got = jac_cov(J, logits, target, sigma)
    assert got.z.shape == got.norms.shape == got.keep.shape == (batch, classes - 1)
    assert got.corr.shape == (batch, classes - 1, classes - 1)
    assert_close(got, jac_cov_reference(J, logits, target, sigma), SINGLE)
    assert jac_cov_norms(J, target).shape == (batch, classes)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_strides(dtype):
    J, logits, target, sigma = problem(4, 6, 37, dtype)
    want = jac_cov(J, logits, target, sigma)
    norms = jac_cov_norms(J, target)
    wide = torch.full((4, 6, 80), torch.nan, dtype=dtype)
    wide[..., 3:40] = J
    forms = {
        "columns of a wider tensor": wide[..., 3:40],
        "classes before inputs": J.transpose(0, 1).contiguous().transpose(0, 1),
        "columns first": J.transpose(0, 2).contiguous().transpose(0, 2),
        "every other class": J.repeat_interleave(2, 1)[:, ::2],
    }
    for name, form in forms.items():
        assert not form.is_contiguous(), name
        assert_same_bits(jac_cov(form, logits, target, sigma), want)
        assert torch.equal(jac_cov_norms(form, target), norms), name
    shared = J[:1].expand(4, 6, 37)
    assert_same_bits(
        jac_cov(shared, logits, target, sigma), jac_cov(shared.clone(), logits, target, sigma)
    )
    same_rows = J[:, :1].expand(4, 6, 37)  # every class the same gradient
    assert (jac_cov(same_rows, logits, target, sigma).norms == 0).all()
    strided = [t.repeat_interleave(2, 0)[::2] for t in (logits, target, sigma)]
    assert_same_bits(jac_cov(J, *strided), want)


def test_offsets_beyond_32_bits():
    """Rows 2^31 + 64 elements apart; only the pages in use are ever touched."""
    apart = 2**31 + 64
    storage = torch.empty(apart + 16, dtype=torch.bfloat16)
    J = storage.as_strided((1, 2, 16), (0, apart, 1))
    J[0, 0], J[0, 1] = 1.0, 3.0
    target = torch.tensor([0])
    got = jac_cov(J, torch.tensor([[2.0, 1.0]]), target, 1.0)
    assert got.norms.item() == 8.0 and got.z.item() == 0.125
    assert jac_cov_norms(J, target).tolist() == [[0.0, 64.0]]


# ---- jac_cov_norms ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("classes, columns", [(1, 5), (3, 1), (33, 17), (70, 1025), (6, 4099)])
def test_norms(classes, columns, dtype):
    J, _, target, _ = problem(3, classes, columns, dtype)
    got = jac_cov_norms(J, target)
    exact = J.double()
    want = (exact[torch.arange(3), target][:, None] - exact).square().sum(-1)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=2 * TOLERANCE[dtype], atol=0)
    assert (got[torch.arange(3), target] == 0).all()


def test_norms_of_chunks_add_up():
    J, _, target, _ = problem(2, 12, 3000)
    parts = sum(jac_cov_norms(c, target) for c in J.split([1024, 1024, 952], dim=-1))
    assert torch.equal(parts, jac_cov_norms(J, target))


# ---- contracts --------------------------------------------------------------------------------


def test_opcheck():
    J, logits, target, sigma = problem(2, 5, 12)
    S = torch.zeros(2, 5, 5, dtype=torch.float64)
    ops = torch.ops.mvnrob
    torch.library.opcheck(ops.jac_cov_accumulate_.default, (S, J, target))
    torch.library.opcheck(ops.jac_cov_norms.default, (J, target))
    for x in (logits, logits.float()):
        torch.library.opcheck(ops.jac_cov_finalize.default, (S, x, target, sigma))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend):
    def stream(J, logits, target, sigma):
        S = torch.zeros(J.shape[0], J.shape[1], J.shape[1], dtype=torch.float64)
        for chunk in J.split(16, dim=-1):
            jac_cov_accumulate(S, chunk, target)
        return jac_cov_finalize(S, logits, target, sigma), jac_cov_norms(J, target)

    torch.compiler.reset()
    whole = torch.compile(jac_cov, backend=backend, fullgraph=True)
    pieces = torch.compile(stream, backend=backend, fullgraph=True)
    for args in (problem(2, 5, 32), problem(3, 7, 48)):
        for sigma in (args[3], 0.25):
            args = (*args[:3], sigma)
            assert_same_bits(whole(*args), jac_cov(*args))
            (result, norms), (want, want_norms) = pieces(*args), stream(*args)
            assert_same_bits(result, want)
            assert torch.equal(norms, want_norms)


@pytest.mark.parametrize("name", ["J", "logits", "sigma"])
def test_gradients_are_refused(name):
    J, logits, target, sigma = problem(2, 5, 12)
    arguments = {"J": J, "logits": logits, "target": target, "sigma": sigma}
    want = jac_cov(**arguments)
    arguments[name].requires_grad_()
    with pytest.raises(NotImplementedError, match=f"jac_cov: {name} must not require grad"):
        jac_cov(**arguments)
    with torch.no_grad():
        assert_same_bits(jac_cov(**arguments), want)
    if name == "J":
        S = torch.zeros(2, 5, 5, dtype=torch.float64)
        with pytest.raises(NotImplementedError, match="jac_cov_accumulate: J must not require"):
            jac_cov_accumulate(S, J, target)
        with pytest.raises(NotImplementedError, match="jac_cov_norms: J must not require grad"):
            jac_cov_norms(J, target)


def t_(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


J_, F_, T_, S_ = t_(2, 5, 3), t_(2, 5), t_(2, dtype=torch.int64), t_(2, 5, 5, dtype=torch.float64)

# call, arguments, error, text
BAD_CALLS = [
    (jac_cov, (3, F_, T_, 1.0), TypeError, "J must be a tensor, got int"),
    (jac_cov, (F_, F_, T_, 1.0), ValueError,
     "J must have shape [B, C, D] with C >= 1, got [2, 5]"),
    (jac_cov, (t_(2, 0, 3), t_(2, 0), T_, 1.0), ValueError,
     "J must have shape [B, C, D] with C >= 1, got [2, 0, 3]"),
    (jac_cov, (J_.half(), F_, T_, 1.0), TypeError,
     "J must be float32, float64 or bfloat16, got float16"),
    (jac_cov, (J_.to("meta"), F_, T_, 1.0), ValueError,
     "target must be on the device of J, got cpu"),
    (jac_cov, (J_, None, T_, 1.0), TypeError, "logits must be a tensor, got NoneType"),
    (jac_cov, (J_, F_[:, :4], T_, 1.0), ValueError, "logits must have shape [2, 5], got [2, 4]"),
    (jac_cov, (J_, F_.half(), T_, 1.0), TypeError,
     "logits must be float32, float64 or bfloat16, got float16"),
    (jac_cov, (J_, F_.to("meta"), T_, 1.0), ValueError,
     "logits must be on the device of target, got meta"),
    (jac_cov, (J_, F_, [0, 1], 1.0), TypeError, "target must be a tensor, got list"),
    (jac_cov, (J_, F_, T_.int(), 1.0), TypeError, "target must be int64, got int32"),
    (jac_cov, (J_, F_, T_[:1], 1.0), ValueError, "target must have shape [2], got [1]"),
    (jac_cov, (J_, F_, T_, "1"), TypeError, "sigma must be a number or a tensor, got str"),
    (jac_cov, (J_, F_, T_, True), TypeError, "sigma must be a number or a tensor, got bool"),
    (jac_cov, (J_, F_, T_, 0.0), ValueError, "sigma must be positive and finite, got 0.0"),
    (jac_cov, (J_, F_, T_, float("inf")), ValueError,
     "sigma must be positive and finite, got inf"),
    (jac_cov, (J_, F_, T_, T_), TypeError, "sigma must be float32 or float64, got int64"),
    (jac_cov, (J_, F_, T_, t_(3)), ValueError, "sigma must have shape [2] or [], got [3]"),
    (jac_cov, (J_, F_, T_, t_(2).to("meta")), ValueError,
     "sigma must be on the device of logits, got meta"),
    (jac_cov_accumulate, (S_[0], J_, T_), ValueError, "S must have shape [2, 5, 5], got [5, 5]"),
    (jac_cov_accumulate, (S_[:, :4], J_, T_), ValueError,
     "S must have shape [2, 5, 5], got [2, 4, 5]"),
    (jac_cov_accumulate, (S_.long(), J_, T_), TypeError,
     "S must be float32 or float64, got int64"),
    (jac_cov_accumulate, (S_.mT, J_, T_), ValueError,
     "S must be contiguous, got strides [25, 1, 5]"),
    (jac_cov_accumulate, (S_.to("meta"), J_, T_), ValueError,
     "S must be on the device of J, got meta"),
    (jac_cov_finalize, (S_, t_(2), T_, 1.0), ValueError,
     "logits must have shape [B, C] with C >= 1, got [2]"),
    (jac_cov_finalize, (S_[:1], F_, T_, 1.0), ValueError,
     "S must have shape [2, 5, 5], got [1, 5, 5]"),
    (jac_cov_finalize, (S_.to("meta"), F_, T_, 1.0), ValueError,
     "S must be on the device of logits, got meta"),
    (jac_cov_finalize, (S_, F_, T_[:1], 1.0), ValueError, "target must have shape [2], got [1]"),
    (jac_cov_norms, (F_, T_), ValueError, "J must have shape [B, C, D] with C >= 1, got [2, 5]"),
    (jac_cov_norms, (J_, T_.int()), TypeError, "target must be int64, got int32"),
]  # fmt: skip

# Values are looked at where they are at hand: not through fakes.
BAD_VALUES = [
    (jac_cov, (J_, F_, T_ + 5, 1.0), ValueError, "target must lie in [0, 5), got 5"),
    (jac_cov, (J_, F_, T_ - 1, 1.0), ValueError, "target must lie in [0, 5), got -1"),
    (jac_cov_finalize, (S_, F_, T_ + 5, 1.0), ValueError, "target must lie in [0, 5), got 5"),
    (jac_cov_norms, (J_, T_ + 7), ValueError, "target must lie in [0, 5), got 7"),
    (jac_cov, (J_, F_, T_, torch.tensor([1.0, -2.0])), ValueError,
     "sigma must be positive and finite, got -2.0"),
    (jac_cov, (J_, F_, T_, torch.tensor(torch.nan)), ValueError,
     "sigma must be positive and finite, got nan"),
]  # fmt: skip


def call_id(case):
    return f"{case[0].__name__}-{case[3]}" if isinstance(case, tuple) else None


@pytest.mark.parametrize("case", BAD_CALLS + BAD_VALUES, ids=call_id)
def test_bad_call(case):
    call, arguments, error, text = case
    with pytest.raises(error) as caught:
        call(*arguments)
    assert str(caught.value) == f"{call.__name__}: {text}"


@pytest.mark.parametrize("case", BAD_CALLS, ids=call_id)
def test_bad_call_through_fakes(case):
    call, arguments, error, text = case
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    with mode, pytest.raises(error) as caught:
        call(*fakes)
    assert str(caught.value) == f"{call.__name__}: {text}"


D_ = torch.ones(2, dtype=torch.float64)
# The native checks guard direct calls of torch.ops: same words, torch's RuntimeError.
BAD_NATIVE = [
    ("jac_cov_accumulate_", (S_, F_, T_), "J must have shape [B, C, D] with C >= 1, got [2, 5]"),
    ("jac_cov_accumulate_", (S_, J_.half(), T_), "J must be float32, float64 or bfloat16"),
    ("jac_cov_accumulate_", (S_, J_, T_.int()), "target must be int64"),
    ("jac_cov_accumulate_", (S_, J_, T_[:1]), "target must have shape [2], got [1]"),
    ("jac_cov_accumulate_", (S_, J_, T_ + 5), "target must lie in [0, 5), got 5"),
    ("jac_cov_accumulate_", (S_[:1], J_, T_), "S must have shape [2, 5, 5], got [1, 5, 5]"),
    ("jac_cov_accumulate_", (S_.long(), J_, T_), "S must be float32 or float64"),
    ("jac_cov_accumulate_", (S_.mT, J_, T_), "S must be contiguous, got strides [25, 1, 5]"),
    ("jac_cov_finalize", (S_, J_, T_, D_),
     "logits must have shape [B, C] with C >= 1, got [2, 5, 3]"),
    ("jac_cov_finalize", (S_, F_.half(), T_, D_), "logits must be float32 or float64"),
    ("jac_cov_finalize", (S_[:, :4], F_, T_, D_), "S must have shape [2, 5, 5], got [2, 4, 5]"),
    ("jac_cov_finalize", (S_, F_, T_.int(), D_), "target must be int64"),
    ("jac_cov_finalize", (S_, F_, T_[:1], D_), "target must have shape [2], got [1]"),
    ("jac_cov_finalize", (S_, F_, T_ - 1, D_), "target must lie in [0, 5), got -1"),
    ("jac_cov_finalize", (S_, F_, T_, D_.float()), "sigma must be float64"),
    ("jac_cov_finalize", (S_, F_, T_, D_[:1]), "sigma must have shape [2], got [1]"),
    ("jac_cov_finalize", (S_, F_, T_, -D_), "sigma must be positive and finite, got -1"),
    ("jac_cov_norms", (F_, T_), "J must have shape [B, C, D] with C >= 1, got [2, 5]"),
    ("jac_cov_norms", (J_, T_ + 9), "target must lie in [0, 5), got 9"),
]  # fmt: skip


@pytest.mark.parametrize("op, arguments, text", BAD_NATIVE)
def test_bad_native_call(op, arguments, text):
    with pytest.raises(RuntimeError) as caught:
        getattr(torch.ops.mvnrob, op)(*arguments)
    assert f"{op.rstrip('_')}: {text}" in str(caught.value)


# ---- instruction sets -------------------------------------------------------------------------

LEVEL_SCRIPT = """
import sys, torch, mvnrob
sys.path.insert(0, {tests!r})
import test_jac_cov as t
assert mvnrob.simd_level() == {level!r}
out = []
for dtype, tolerance in t.TOLERANCE.items():
    for classes, columns in ((2, 1), (5, 17), (10, 1030), (33, 513), (101, 64), (203, 20)):
        args = t.problem(2, classes, columns, dtype)
        got = t.jac_cov(*args)
        t.assert_close(got, t.jac_cov_reference(*args), tolerance)
        assert torch.equal(got.corr, got.corr.mT)
        norms = t.jac_cov_norms(args[0], args[2]).gather(1, got.keep).sqrt()
        torch.testing.assert_close(norms, got.norms, rtol=tolerance, atol=0)
t.test_zero_equal_and_opposite_rows(torch.float32)
t.test_common_mode()
"""


def levels():
    names = ["generic", "avx2", "avx512"]
    return names[: names.index(mvnrob.simd_level()) + 1]


@pytest.mark.parametrize("level", levels())
def test_instruction_sets(level):
    here = os.path.dirname(__file__)
    environment = {**os.environ, "MVNROB_SIMD": level}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    script = LEVEL_SCRIPT.format(tests=here, level=level)
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
