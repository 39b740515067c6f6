"""Slopes to cov of rows of one factor: all pairs by one quadrature, beside a conditional problem for each."""

import pytest
import torch

import mvnrob._mvn_cdf_grad as grad
from mvnrob import mvn_cdf, mvn_log_cdf


def problem(n, far, rows=3, seed=0, least=-0.8, most=0.8):
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.rand(rows, n, generator=g, dtype=torch.float64)
    loads, sd = least + (most - least) * draw(), 0.5 + draw()
    return loads, sd, (far + draw()) * sd


def covariance(loads, sd):
    r = loads[:, :, None] * loads[:, None, :]
    r.diagonal(dim1=1, dim2=2).fill_(1.0)
    return r * sd[:, :, None] * sd[:, None, :]


@pytest.fixture
def counted(monkeypatch):
    """Numbers of conditional problems for pairs."""
    counts, conditional = [], grad.conditional

    def noted(rows, units, *rest):
        if units.index.shape[1] == 2:
            counts.append(len(units.row))
        return conditional(rows, units, *rest)

    monkeypatch.setattr(grad, "conditional", noted)
    return counts


def slopes(function, *leaves):
    leaves = [t.detach().requires_grad_() for t in leaves]
    return torch.autograd.grad(function(*leaves).sum(), leaves)


@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("n, far", [(9, 0.5), (9, -20.0), (30, 1.0), (30, -3.0)])
def test_as_a_conditional_problem_for_each(monkeypatch, counted, n, far, rectangular):
    loads, sd, upper = problem(n, far, least=0.1 if far < 0 else -0.8)
    cov = covariance(loads, sd)
    width = 2 * sd
    for function in (
        lambda u, c: mvn_cdf(u, c, lower=u - width if rectangular else None, abs_tol=1e-6),
        lambda u, c: mvn_log_cdf(u, c, lower=u - width if rectangular else None, rel_tol=1e-5),
    ):
        counted.clear()
        ours = slopes(function, upper, cov)
        assert sum(counted) == 0
        with monkeypatch.context() as without:
            without.setattr(grad, "pair_values", lambda rows, pairs: None)
            theirs = slopes(function, upper, cov)
        for mine, other in zip(ours, theirs, strict=True):
            size = other.abs().amax()
            if size.isfinite():
                assert ((mine - other).abs() <= 1e-10 * size).all()


def test_a_factor_s_slopes_and_float32(counted):
    loads, sd, upper = problem(20, 0.5)
    factor = torch.cat([loads[..., None], torch.diag_embed((1 - loads.square()).sqrt())], 2)
    factor = factor * sd[..., None]
    to_cov = slopes(lambda c: mvn_cdf(upper, c, abs_tol=1e-6), covariance(loads, sd))[0]
    to_factor = slopes(lambda u: mvn_cdf(upper, factor=u, abs_tol=1e-6), factor)[0]
    wanted = (to_cov + to_cov.mT) @ factor
    assert ((to_factor - wanted).abs() <= 1e-9 * wanted.abs().amax()).all()
    single = slopes(lambda c: mvn_cdf(upper.float(), c), covariance(loads, sd).float())[0]
    assert ((single - to_cov).abs() <= 2e-4 * to_cov.abs().amax()).all()
    assert sum(counted) == 0


def test_against_differences():
    loads, sd, upper = problem(12, 0.3, rows=1)
    cov = covariance(loads, sd)
    to_cov = slopes(lambda c: mvn_cdf(upper, c, abs_tol=1e-6), cov)[0][0]
    step = 1e-5
    for i, j in ((0, 1), (3, 7), (5, 5), (11, 2)):
        values = []
        for sign in (1, -1):
            moved = cov.clone()
            moved[0, i, j] += sign * step
            if i != j:
                moved[0, j, i] += sign * step
            values.append(mvn_cdf(upper, moved, abs_tol=1e-9, max_points=2**22))
        expected = float(values[0] - values[1]) / (2 * step)
        got = float(to_cov[i, j] + (to_cov[j, i] if i != j else 0))
        assert got == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("kind", ["two blocks", "narrow", "next to one"])
def test_what_it_does_not_serve_is_conditional(counted, kind):
    loads, sd, upper = problem(14, 0.5, rows=2)
    lower = None
    if kind == "next to one":
        loads[:, 3] = 1 - 1e-10
    cov = covariance(loads, sd)
    if kind == "two blocks":
        cov[:, :7, 7:] = cov[:, 7:, :7] = 0
    if kind == "narrow":
        lower = upper - torch.cat([1e-5 * sd[:, :1], 2 * sd[:, 1:]], 1)
    (got,) = slopes(lambda c: mvn_cdf(upper, c, lower=lower, abs_tol=1e-5), cov)
    assert got.isfinite().all() and sum(counted) > 0
