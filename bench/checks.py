"""Claims that hold on any machine: ratios measured in one run, with room for a busy one.

python -m bench SUBCOMMAND --check

A claim is a number and the least that it must be. The factors are far below what is measured on an
idle machine, so that a failure means a slower library and not a neighbour.
"""

import math
import tempfile
import warnings
from typing import NamedTuple

from bench import harness


class Claim(NamedTuple):
    what: str
    measured: float
    required: float

    @property
    def holds(self):
        return self.measured >= self.required  # NaN does not


def mvn_cdf(n=(9, 99)):
    """Ahead of SciPy's integrator at equal true error."""
    from bench import bench_mvn_cdf as base

    warnings.filterwarnings("ignore", message="mvn_cdf: .*max_points")
    for size, least in ((9, 20.0), (99, 10.0)):
        if size not in n:
            continue
        # One common cause alone is an integral of one dimension, which is no contest.
        families = [f for f in base.CLASSIFIER_LIKE if f != "one_factor"]
        group = base.exact_group(size, families)
        peer = base.scipy_lines(group, (1000, 4000), cap_s=2.0)
        ours = base.measured(group, 3e-3, seeds=4, repeats=3)
        # At the error that ours reached, so that neither side is extrapolated by much.
        peer_ms, how = base.at_equal_error(peer, ours["rms"])
        yield Claim(f"n = {size}: SciPy's time over ours at rms error {ours['rms']:.1e} ({how})",
                    peer_ms / ours["ms"], least)  # fmt: skip
        yield Claim(f"n = {size}: share of answers within their 99 % error",
                    1 - ours["beyond_error"], 0.9)  # fmt: skip


def step():
    """A draw beside SciPy's Phi and its inverse, element by element; float64."""
    import numpy as np
    from scipy import special

    from bench import bench_math

    # Without AVX2 there is no vector multiply-add and no claim beyond being ahead.
    isa = [i for i in bench_math.native_build.ISA_FLAGS
           if not bench_math.native_build.missing_features(i)][-1]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        rows = bench_math.measure(isa, folder)
    ns = min(r["ns"] for r in rows if (r["function"], r["type"]) == ("fused_step", "float64"))
    t, w = np.linspace(-4, 4, 4096), np.linspace(0.001, 0.999, 4096)
    timing, _ = harness.cpu_time(lambda: special.ndtri(w * special.ndtr(t)), 5, least_s=0.02)
    yield Claim(f"{isa}: SciPy's ndtri(w ndtr(t)) over our draw, float64",
                1e9 * timing["median_s"] / 4096 / ns, 1.0 if isa == "generic" else 3.0)  # fmt: skip


def jac_cov():
    """Ahead of PyTorch's difference, norm, divide, bmm; and no worse in error."""
    import torch

    from bench import bench_jac_cov

    torch.set_num_threads(1)
    rows = list(bench_jac_cov.Case("100x3072", "float32", "cpu").rows(1, 5))
    yield Claim("C = 100, D = 3072: PyTorch's time over ours", rows[0]["speedup"], 1.5)
    yield Claim("C = 100, D = 3072: PyTorch's error over ours",
                rows[0]["peer_error"] / rows[0]["error"], 1.0)  # fmt: skip


def mendell_elston():
    """Error and time beside mvn_cdf at 1e-3."""
    from bench import bench_mendell_elston as base
    from mvnrob import mvn_cdf

    upper, cov = base.problems(9, base.COUNT, 0)
    whole, known = harness.cpu_time(lambda: mvn_cdf(upper, cov), repeats=2)
    own, made = harness.cpu_time(
        lambda: mvn_cdf(upper, cov, method="mendell_elston"), 5, least_s=0.02
    )
    yield Claim("n = 9: .01 over the mean error", 0.01 / float((made - known).abs().mean()), 1.0)
    yield Claim("n = 9: mvn_cdf's time at 1e-4 over ours",
                whole["median_s"] / own["median_s"], 10.0)  # fmt: skip


def bvn():
    """Ahead of SciPy's bivariate cdf."""
    from bench import bench_bvn

    rows = bench_bvn.measured([1000], repeats=3)
    yield Claim("SciPy's time over ours, an element of 1,000", rows[1]["ns"] / rows[0]["ns"], 20.0)


def standard_normal():
    """Ahead of the same by torch's own operations."""
    from bench import bench_standard_normal

    rows = {r["method"]: r["ns"] for r in bench_standard_normal.measured([3072], repeats=3)}
    own = rows["standard_normal"]
    yield Claim("torch's functions' time over ours", rows["torch's functions"] / own, 1.2)


def gradients():
    """The gradient to all limits is cheaper than differences, which cost n + 1 values."""
    from bench import bench_mvn_cdf_grad as base

    upper, cov = base.problems(9, base.QUICK, 0)
    value, _ = harness.cpu_time(lambda: base.value(upper, cov, 1e-3), 5, least_s=0.02)
    both, _ = harness.cpu_time(lambda: base.gradients(upper, cov, 1e-3, False), 5, least_s=0.02)
    yield Claim("n = 9: n + 1 values over value and gradient",
                10 * value["median_s"] / both["median_s"], 1.0)  # fmt: skip


def hessians():
    """Cheaper than central differences of values, which cost 2 n^2 + 1 of them, and within its bound."""
    from bench import bench_mvn_cdf_hvp as base

    group = base.problems("hierarchy", 9, ".7", 1)
    truth = [base.known(p, base.quadrature(p), "mvn_cdf", 1e-4, True) for p in group]
    line = base.measured(group, truth, "mvn_cdf", 1e-4, True, repeats=3, budget_s=10)
    yield Claim("n = 9: 2 n^2 + 1 values over the Hessian", 163 / line["second/value"], 1.0)
    yield Claim("n = 9: the bound over the Hessian's error", 1 / line["over_bound"], 1.0)


CHECKS = {
    "mvn_cdf": mvn_cdf,
    "step": step,
    "jac_cov": jac_cov,
    "mendell_elston": mendell_elston,
    "bvn": bvn,
    "standard_normal": standard_normal,
    "gradients": gradients,
    "hessians": hessians,
}


def run(name, rest=()):
    """Prints the claims of a subcommand; the exit code."""
    if name not in CHECKS:
        print(f"bench: --check must go with one of {', '.join(CHECKS)}, got {name}")
        return 2
    if rest:
        print(f"bench: --check must come without other options, got {' '.join(rest)}")
        return 2
    harness.numpy_threads_one()
    import torch

    torch.set_num_threads(1)
    claims = list(CHECKS[name]())
    rows = [
        {"claim": c.what, "measured": c.measured, "required": c.required,
         "holds": "yes" if c.holds else "NO"}
        for c in claims
    ]  # fmt: skip
    harness.show(rows, list(rows[0]))
    return int(not all(c.holds and math.isfinite(c.measured) for c in claims))
