"""bvn_cdf as an operator; the mathematics itself is tested in test_math.py."""

import math

import pytest
import torch
from scipy import stats

from mvnrob import bvn_cdf, mvn_cdf
from mvnrob._bvn_cdf import bvn_cdf_reference


def test_matches_reference():
    g = torch.Generator().manual_seed(0)
    h, k = 3 * torch.randn(2, 40, 1, generator=g, dtype=torch.float64)
    rho = torch.linspace(-0.99, 0.99, 23, dtype=torch.float64)
    # The reference's own truncation and rounding: a few 1e-15 over 4,000 nodes.
    assert (bvn_cdf(h, k, rho) - bvn_cdf_reference(h, k, rho)).abs().max() < 1e-13


def test_known_answers_and_edges():
    def p(h, k, rho):
        return float(bvn_cdf(*(torch.tensor(float(v), dtype=torch.float64) for v in (h, k, rho))))

    for rho in (-0.9, -0.3, 0.0, 0.5, 0.999999):
        assert abs(p(0, 0, rho) - (0.25 + math.asin(rho) / (2 * math.pi))) < 1e-15
    assert p(math.inf, 0.3, 0.4) == pytest.approx(stats.norm.cdf(0.3), abs=1e-15)
    assert p(-math.inf, 0.3, 0.4) == 0
    assert p(0.2, 0.7, 1.0) == pytest.approx(stats.norm.cdf(0.2), abs=1e-15)
    assert p(0.2, 0.7, -1.0) == pytest.approx(stats.norm.cdf(0.7) - stats.norm.cdf(-0.2), abs=1e-15)
    assert math.isnan(p(math.nan, 0, 0)) and math.isnan(p(0, 0, 1.5))


def test_mvn_cdf_agrees():
    upper = torch.tensor([0.4, -0.8], dtype=torch.float64)
    cov = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    assert abs(mvn_cdf(upper, cov) - bvn_cdf(upper[0], upper[1], cov[0, 1])) < 1e-15


def test_shapes_and_dtype():
    out = bvn_cdf(torch.zeros(3, 1), torch.zeros(4), torch.tensor(0.5))
    assert out.shape == (3, 4) and out.dtype == torch.float32
    assert bvn_cdf(*torch.zeros(3, 0)).shape == (0,)


def test_plumbing():
    h, k, rho = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4).unbind(0)
    torch.library.opcheck(torch.ops.mvnrob.bvn_cdf.default, (h, k, rho))
    compiled = torch.compile(bvn_cdf, backend="eager", fullgraph=True)
    assert torch.equal(compiled(h, k, rho), bvn_cdf(h, k, rho))


def test_gradients():
    given = [
        torch.tensor(v, dtype=torch.float64, requires_grad=True)
        for v in ([0.1, -0.5, 2.0, -3.0], [0.4, 1.0, -1.0, -2.5], [0.3, -0.8, 0.99, 0.95])
    ]
    # Rounding of 1e-15 over differences of 1e-6, and their truncation, large near rho = 1.
    assert torch.autograd.gradcheck(bvn_cdf, given, atol=1e-7)
    assert torch.autograd.gradgradcheck(bvn_cdf, given, atol=1e-6)
    assert torch.library.opcheck(torch.ops.mvnrob.bvn_cdf.default, given)
    functional = torch.func.grad(lambda *a: bvn_cdf(*a).sum(), (0, 1, 2))(*given)
    plain = torch.autograd.grad(bvn_cdf(*given).sum(), given)
    for x, y in zip(functional, plain, strict=True):
        assert torch.equal(x, y)


def test_second_derivatives_at_infinite_limits():
    def at(*values):
        given = [torch.tensor(v, dtype=torch.float64) for v in values]
        return torch.stack([torch.stack(r) for r in torch.func.hessian(bvn_cdf, (0, 1, 2))(*given)])

    only = torch.zeros(3, 3, dtype=torch.float64)
    only[1, 1] = -0.2 * stats.norm.pdf(0.2)
    torch.testing.assert_close(at(math.inf, 0.2, 0.4), only)
    torch.testing.assert_close(at(0.2, math.inf, 0.4), only[[1, 0, 2]][:, [1, 0, 2]])
    assert not at(0.2, -math.inf, 0.4).any() and not at(math.inf, math.inf, 0.4).any()


@pytest.mark.parametrize("rho", [-1.0, 1.0])
def test_forward_mode_where_limits_of_multiples_meet(rho):
    given = torch.tensor([0.3, 0.3 * rho, rho], dtype=torch.float64).unbind()
    nothing, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    slope = torch.func.jvp(bvn_cdf, given, (one, nothing, nothing))[1]
    torch.testing.assert_close(slope, torch.func.grad(bvn_cdf)(*given))


def test_gradients_at_the_edges():
    def slopes(*values):
        given = [torch.tensor(float(v), dtype=torch.float64, requires_grad=True) for v in values]
        return [float(g) for g in torch.autograd.grad(bvn_cdf(*given), given)]

    density = stats.norm.pdf(0.2)
    assert slopes(math.inf, 0.2, 0.4) == pytest.approx([0, density, 0])
    assert slopes(0.2, math.inf, 1) == pytest.approx([density, 0, 0])
    assert slopes(-math.inf, math.inf, 0.4) == [0, 0, 0]
    assert slopes(0.2, 0.7, 1) == pytest.approx([density, 0, 0])
    assert slopes(0.2, 0.7, -1) == pytest.approx([density, stats.norm.pdf(0.7), 0])
    assert slopes(-0.2, -0.7, -1) == [0, 0, 0]
    assert slopes(0.2, 0.2, 1) == pytest.approx([density / 2, density / 2, math.inf])
    assert all(math.isnan(v) for v in slopes(math.nan, 0.2, 0.4))


ONE = torch.ones(2)
BAD_CALLS = [
    ((1.0, ONE, ONE), TypeError, "h must be a tensor, got float"),
    ((ONE, ONE.long(), ONE), TypeError, "k must be float32 or float64, got torch.int64"),
    ((ONE, ONE, ONE.double()), TypeError, "rho must have the dtype of h, got torch.float64"),
    ((ONE, ONE.to("meta"), ONE), ValueError, "k must be on the device of h, got meta"),
    (
        (ONE, torch.ones(3), ONE),
        ValueError,
        r"arguments must have shapes that broadcast, got \[2\]",
    ),
]


@pytest.mark.parametrize("args, kind, text", BAD_CALLS)
def test_bad_calls(args, kind, text):
    with pytest.raises(kind, match="bvn_cdf: " + text):
        bvn_cdf(*args)
