"""log p far out where the covariance is singular: pivots and tilt from the nearest point of the box."""

import math

import numpy as np
import pytest
import torch
from honesty import p_value
from singular_tails import cone, plane

from mvnrob import Status, mvn_log_cdf


@pytest.mark.parametrize("n, rank", [(4, 2), (9, 2), (12, 5), (40, 12), (90, 4)])
@pytest.mark.parametrize("far", [2.0, 8.0, 60.0])
@pytest.mark.parametrize("factored", [False, True])
def test_known_answers(n, rank, far, factored):
    factor, upper, truth, _ = cone(n, rank, far, seed=n + rank)
    given = {"factor": factor} if factored else {"cov": factor @ factor.mT}
    r = mvn_log_cdf(upper, **given, rel_tol=1e-2, return_info=True)
    assert np.isin(r.status, (Status.CONVERGED, Status.EXACT)).all()
    assert (r.log_error <= 1.02e-2).all() and (r.n_points < 200_000).all()
    assert ((r.log_prob - truth).abs() <= r.log_error + 1e-7 * truth.abs()).all()


@pytest.mark.parametrize("far", [1.0, 4.0, 15.0])
@pytest.mark.parametrize("rectangular", [False, True])
def test_polygons(far, rectangular):
    """No row is known to bound nothing, and every error is to cover the truth as often as it says."""
    rng = np.random.default_rng(7)
    factor, upper, lower, truth = [], [], [], []
    for _ in range(60):
        rows = rng.standard_normal((8, 2))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        inside = far * rng.uniform(1, 2) * np.array([math.cos(a := rng.uniform(0, 6)), math.sin(a)])
        high = rows @ inside + rng.uniform(0.01, 1, 8)
        low = rows @ inside - rng.uniform(0.01, 1, 8) if rectangular else np.full(8, -np.inf)
        factor.append(rows)
        upper.append(high)
        lower.append(low)
        truth.append(plane(rows, high, low))
    factor, upper, lower, truth = (
        torch.from_numpy(np.array(a)) for a in (factor, upper, lower, truth)
    )
    small = truth < math.log(0.04)
    assert small.sum() > 20
    lower = {"lower": lower} if rectangular else {}
    r = mvn_log_cdf(upper, factor=factor, **lower, rel_tol=1e-2, return_info=True)
    assert np.isin(r.status, (Status.CONVERGED, Status.EXACT)).all()
    misses = (r.log_prob - truth).abs() > r.log_error + 1e-6
    assert p_value(int(misses.sum()), len(misses)) > 0.01
    assert ((r.log_prob - truth).abs() <= 3 * r.log_error + 1e-6).all()


@pytest.mark.parametrize("apart", [1e-12, 1e-10, 1e-8, 1e-4])
def test_rows_that_are_nearly_multiples(apart):
    """Only one of them holds the box; taken as a pivot beside it the other one would be a wall."""
    angles = 0.3 + np.array([0.0, 1.4, 2.2, math.pi + apart])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1)
    lower = np.array([-1.55, -np.inf, -np.inf, 1.3])
    upper = np.array([-1.09, 1.5, 1.9, 2.1])
    factor, low, high = (torch.from_numpy(a) for a in (rows, lower, upper))
    r = mvn_log_cdf(high, factor=factor, lower=low, return_info=True)
    assert r.status == Status.CONVERGED
    assert abs(float(r.log_prob) - plane(rows, upper, lower)) <= float(r.log_error) + 1e-5


@pytest.mark.parametrize("n, rank, far", [(6, 2, 3.0), (12, 5, 8.0)])
def test_gradient(n, rank, far):
    """The rows that bound nothing have no slope; those that do have that of an interval each."""
    factor, upper, _, holds = cone(n, rank, far, seed=3, slack=2.0)
    upper.requires_grad_()
    mvn_log_cdf(upper, factor=factor, rel_tol=1e-3).sum().backward()
    z = upper.detach()
    slope = torch.exp(-0.5 * z * z - 0.5 * math.log(2 * math.pi) - torch.special.log_ndtr(z))
    expected = torch.where(holds, slope, 0.0)
    assert ((upper.grad - expected).abs() / slope.amax(1, keepdim=True)).max() < 5e-3


def test_limits_that_contradict_each_other():
    """A triangle turned inside out, and a box that a sum of its variables leaves: p is zero at once."""
    triangle = torch.tensor([[1.0, 0], [-0.6, 0.8], [-0.6, -0.8]]).double()
    for far in (0.2, 30.0):
        limits = torch.full((3,), -far).double()
        rows = torch.cat([triangle, torch.tensor([[0.0, 1], [0.8, 0.6]]).double()])
        limits = torch.cat([limits, torch.ones(2).double()])
        for given in ({"factor": rows}, {"cov": rows @ rows.T}):
            r = mvn_log_cdf(limits, **given, rel_tol=1e-2, return_info=True)
            assert r.status == Status.EXACT and r.n_points < 20_000
            assert r.prob == 0 and r.error == 0
            assert r.log_prob == -math.inf and r.log_error == math.inf


def test_limits_that_all_but_meet():
    """Rows whose mixture is zero: they leave a small simplex, or contradict each other by as little."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((16, 12, 5))
    rows[:, 5] = -(rng.uniform(0.1, 1, (16, 1, 5)) @ rows[:, :5])[:, 0]
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    at = (rows @ rng.standard_normal((16, 5, 1)))[..., 0]
    for margin in (-0.1, -0.01, 0.01, 0.1):
        apart = np.where(np.arange(12) < 6, margin, rng.uniform(0.2, 2, (16, 12)))
        upper = torch.from_numpy(at + apart)
        r = mvn_log_cdf(upper, factor=torch.from_numpy(rows), rel_tol=1e-2, return_info=True)
        if margin < 0:
            assert (r.status == Status.EXACT).all() and (r.prob == 0).all() and (r.error == 0).all()
        else:
            assert (r.status != Status.EXACT).all() and (r.log_error < 0.5).sum() >= 12
