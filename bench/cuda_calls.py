"""Calls that give one kernel each something to do, for bench/cuda_profile.py and bench/cuda_kernels.py.

A call is made once (its data on the device) and may be repeated. Small enough that a profiler, which runs
a kernel many times and puts back what it wrote, takes a few seconds.
"""

import sys

import torch

from bench import harness
from mvnrob import bvn_cdf, jac_cov, mvn_cdf
from mvnrob._nearest_ends import nearest_ends
from mvnrob._standard_normal import standard_normal


def problems(n, batch, device, spread=5.0):
    """Limits and covariances ``[batch, n, n]``: eight different ones, made on the device."""
    g = torch.Generator(device=device).manual_seed(n)
    factor = torch.randn(8, n, n + 3, generator=g, device=device, dtype=torch.float64)
    factor += torch.randn(8, 1, n + 3, generator=g, device=device, dtype=torch.float64)
    limits = spread * torch.rand(8, n, generator=g, device=device, dtype=torch.float64)
    upper, cov = limits * factor.norm(dim=-1), factor @ factor.mT
    index = torch.arange(batch, device=device) % 8
    return upper[index], cov[index], torch.arange(batch, device=device)


def tolerance(n, batch, tol):
    def make(device):
        upper, cov, seed = problems(n, batch, device)
        return lambda: mvn_cdf(upper, cov, abs_tol=tol, seed=seed)

    return make


def sums(n, batch, points, dtype):
    def make(device):
        upper, cov, seed = problems(n, batch, device)
        order = torch.arange(n, device=device).expand(batch, n).contiguous()
        given = upper, cov, None, seed, order, points // 8, dtype
        return lambda: torch.ops.mvnrob.mvn_cdf_sums(*given)

    return make


def slopes(n, batch, points, wants_cov):
    def make(device):
        upper, cov, seed = problems(n, batch, device)
        first = torch.zeros(batch, dtype=torch.int64, device=device)
        order = torch.arange(n, device=device).expand(batch, n).contiguous()
        weight = torch.ones(batch, 8, dtype=torch.float64, device=device)
        given = (
            upper,
            cov,
            None,
            seed,
            order,
            first,
            first + points // 8,
            weight,
            "float32",
            wants_cov,
        )
        return lambda: torch.ops.mvnrob.mvn_cdf_pathwise(*given)

    return make


def large(n):
    def make(device):
        assert str(harness.ROOT / "tests") in sys.path
        from two_levels import two_levels

        upper, cov, _ = two_levels(n, device)
        return lambda: mvn_cdf(upper, cov, abs_tol=1e-2, method="sov", seed=0)

    return make


def correlations(classes, batch, columns, dtype):
    def make(device):
        g = torch.Generator(device=device).manual_seed(classes)
        J = torch.randn(batch, classes, columns, generator=g, device=device).to(dtype)
        logits = torch.randn(batch, classes, generator=g, device=device).double()
        target = torch.randint(classes, (batch,), generator=g, device=device)
        return lambda: jac_cov(J, logits, target, 0.5)

    return make


def bivariate(count):
    def make(device):
        h = torch.linspace(-3, 3, count, device=device, dtype=torch.float64)
        rho = torch.rand(count, device=device, dtype=torch.float64) * 2 - 1
        return lambda: bvn_cdf(h, h.flip(0), rho)

    return make


def directions(inputs, count, dim):
    def make(device):
        keys = torch.arange(inputs, device=device)
        return lambda: standard_normal(keys, 0, count, dim, torch.float32)

    return make


def ends(inputs, rows, exact, others, draws):
    """As low-rank screening of 1,000 classes asks for them at first, some inputs together."""

    def make(device):
        g = torch.Generator(device=device).manual_seed(0)
        normal = lambda *shape: torch.randn(shape, generator=g, device=device)
        limit, table = 3 + normal(inputs, rows).abs(), normal(inputs, rows, exact + others)
        e = normal(draws, exact + others)
        return lambda: nearest_ends(limit, table, e, rising=rows, exact=exact, wants_rows=True)[0]

    return make


def calls(scale=1.0):
    """{name: function of a device that gives a call}; `scale` is for a dry run."""
    of = lambda number: max(1, int(number * scale))
    return {
        "sums n=999": sums(999, of(132), 2048, "float32"),
        "mvn_cdf n=999 1e-2": tolerance(999, of(132), 1e-2),
        "mvn_cdf n=999 1e-3": tolerance(999, of(132), 1e-3),
        "mvn_cdf n=999 one row": tolerance(999, 1, 1e-3),
        "jac_cov 1000x3072 float32": correlations(of(1000), 8, 3072, torch.float32),
        "jac_cov 1000x3072 bfloat16": correlations(of(1000), 8, 3072, torch.bfloat16),
        "sums n=9": sums(9, of(20_000), 2048, "float32"),
        "mvn_cdf n=9 1e-3": tolerance(9, of(20_000), 1e-3),
        "mvn_cdf n=9 one row": tolerance(9, 1, 1e-3),
        "mvn_cdf n=99 1e-3": tolerance(99, of(5000), 1e-3),
        "mvn_cdf n=99 one row": tolerance(99, 1, 1e-3),
        "sums n=999 float64": sums(999, of(132), 1024, "float64"),
        "sums n=64 float64": sums(64, of(2000), 2048, "float64"),
        "slopes n=99": slopes(99, of(200), 2048, False),
        "slopes n=99 to cov": slopes(99, of(200), 2048, True),
        "full rank n=2048": large(2048 if scale == 1 else 128),
        "bvn_cdf": bivariate(of(2**22)),
        "standard_normal": directions(of(64), 8, 150_528),
        "nearest_ends": ends(of(32), 640, 64, 56, 4096),
    }
