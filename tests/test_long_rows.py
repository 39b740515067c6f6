"""Products of long rows in parts, and their leading directions from Gram matrices."""

import pytest
import torch
from test_screening import inputs

from mvnrob import long_rows


@pytest.mark.parametrize("length", [0, 1, 31, 100, 257, 3000, 8191, 8192])
@pytest.mark.parametrize("most", [3, 256])
def test_products_by_parts(length, most):
    a, b = (inputs(n, 3 * length, seed=n).reshape(n, 3, length).transpose(0, 1) for n in (4, 5))
    got = long_rows._inner_by_parts(a.contiguous(), b.contiguous(), most)
    torch.testing.assert_close(got, a @ b.mT)
    # rows of a larger array, and rows that lie across
    torch.testing.assert_close(long_rows._inner_by_parts(a, b, most), a @ b.mT)
    across = a.mT.contiguous().mT
    torch.testing.assert_close(long_rows._inner_by_parts(across, b, most), a @ b.mT)


def by_qr(vectors, count):
    orthonormal, triangle = torch.linalg.qr(vectors.mT)
    left, sizes, _ = torch.linalg.svd(triangle)
    return (orthonormal @ left[:, :, :count]).mT, sizes[:, :count]


@pytest.mark.parametrize("dtype, smallest", [(torch.float32, 1e-4), (torch.float64, 1e-11)])
@pytest.mark.parametrize("count", [3, 5, 9])
def test_leading_directions_are_those_of_a_singular_value_decomposition(dtype, smallest, count):
    spread = torch.logspace(0, torch.tensor(smallest).log10().item(), 9, dtype=torch.float64)
    rows = torch.stack([inputs(9, 9, seed=s) * spread for s in (1, 2)])
    vectors = (rows @ torch.linalg.qr(inputs(4000, 9)).Q.mT).to(dtype)
    got, sizes = long_rows.leading(vectors, count)
    expected, expected_sizes = by_qr(vectors, count)
    eps = torch.finfo(dtype).eps
    assert got.dtype == dtype
    torch.testing.assert_close(
        sizes, expected_sizes.to(sizes), rtol=0, atol=20 * eps * float(sizes.max())
    )
    gram = got.double() @ got.double().mT
    ratio = float((sizes[:, 0] / sizes[:, -1]).max())
    torch.testing.assert_close(
        gram, torch.eye(count).double().expand_as(gram), rtol=0, atol=10 * eps * ratio
    )
    # of the same span, up to what rounding of the vectors does to its last direction
    along = (got.double() @ expected.double().mT).square().sum(2)
    torch.testing.assert_close(along, torch.ones_like(along), rtol=0, atol=20 * eps * ratio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_that_are_rounding_are_zero(dtype):
    equal = inputs(1, 500).to(dtype).expand(7, -1)
    broken = torch.full((7, 500), torch.nan, dtype=dtype)
    broken[2] = equal[0]
    got, sizes = long_rows.leading(torch.stack([equal, 0 * equal, broken]), 3)
    assert (got[:, 1:] == 0).all() and (got[1] == 0).all()
    along = (got[:, 0].double() @ equal[0].double()).abs() / equal[0].double().norm()
    torch.testing.assert_close(along, torch.tensor([1.0, 0.0, 1.0]).double(), rtol=0, atol=1e-6)
    assert (sizes[:, 1:] <= 4e-7 * sizes[0, 0]).all()
    # more rows than numbers
    got, sizes = long_rows.leading(inputs(16, 5).to(dtype)[None], 13)
    assert got.shape == (1, 5, 5) and sizes.shape == (1, 5)
