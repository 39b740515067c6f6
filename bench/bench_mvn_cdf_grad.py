"""Gradients of mvn_cdf: time beside the value's, and their error against a tight run.

python -m bench gradients [--n 9,49,99,199] [--quick] [--conditional]

One thread, CPU time, milliseconds per problem of one batched call, on classifier-like problems
(bench/classifiers.py). "limits": backward to the upper limits; "cov": to upper limits and
covariance together, for n > 9 on the first three problems. Beside a time stand the least and the most of its
repeats. Errors are root mean squares over all entries of a group's problems, in units of the standard
deviations, against the same gradients at `--reference` (tolerance) with another seed and more points, whose own
error is in them (it ends at max_points too); "size" is the rms of the gradients themselves.
Points: what mvn_cdf and mvn_cdf_pathwise spend.
With --conditional every slope is a conditional probability, as the reference's are anyway.

Then digits of either tail, slopes of log p to the limits alone, eight rows of one chain with different
seeds: AR(1) with correlation .5 and equal limits, as cov and as its Cholesky factor, whose slopes
quadrature along the chain knows. Their errors are relative to the largest slope, as rel_tol is.
"""

import contextlib
import math
import sys
import warnings
from typing import ClassVar

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch

COUNT, QUICK, MANY_VARIABLES = 18, 6, 150
ROWS = 8  # of a chain
REFERENCE_POINTS = 10
#: Side, variables, common limit, rel_tol.
CHAINS = (
    ("p small", 20, -3.0, 1e-2),
    ("p small", 50, -3.0, 1e-2),
    ("p small", 99, -3.0, 1e-2),
    ("p small", 20, -3.0, 1e-3),
    ("p near 1", 50, 5.0, 1e-2),
    ("p near 1", 99, 5.0, 1e-2),
    ("p near 1", 20, 3.5, 1e-2),
    ("between", 20, 1.5, 1e-2),
    ("between", 50, 1.5, 1e-2),
)


def problems(n, count, seed):
    from bench import classifiers

    cases = classifiers.classifier_problems(n, count, seed)
    stack = lambda name: torch.from_numpy(np.stack([getattr(c, name) for c in cases]))
    return stack("upper"), stack("cov")


def value(upper, cov, tol, seed=0):
    from mvnrob import mvn_cdf

    seeds = torch.arange(len(upper)) + 10_000 * seed
    return mvn_cdf(upper, cov, abs_tol=tol, seed=seeds, return_info=True)


def gradients(upper, cov, tol, with_cov, seed=0):
    upper = upper.detach().requires_grad_()
    cov = cov.detach().requires_grad_(with_cov)
    prob = value(upper, cov, tol, seed).prob.sum()
    return torch.autograd.grad(prob, (upper, cov) if with_cov else (upper,))


class Points:
    """Counts what the backward spends while it is entered."""

    OPS: ClassVar = {
        "mvn_cdf": lambda args, out: out[4],
        "mvn_cdf_pathwise": lambda args, out: 8 * args[6],
    }

    def __enter__(self):
        self.kept = {name: getattr(torch.ops.mvnrob, name) for name in self.OPS}
        self.calls = []

        def counted(name, of):
            def call(*args):
                out = self.kept[name](*args)
                self.calls.append(int(of(args, out).sum()))
                return out

            return call

        for name, of in self.OPS.items():
            setattr(torch.ops.mvnrob, name, counted(name, of))
        return self

    def __exit__(self, *_):
        for name, op in self.kept.items():
            setattr(torch.ops.mvnrob, name, op)


class Conditional:
    """Every slope is a conditional probability while it is entered, with so many times the points that it
    may take."""

    def __init__(self, points=1):
        from mvnrob import _mvn_cdf_grad

        self.module, self.points = _mvn_cdf_grad, points

    def __enter__(self):
        self.kept = self.module._AFFORDABLE, self.module.COST
        self.module._AFFORDABLE = math.inf
        self.module.COST *= self.points

    def __exit__(self, *_):
        self.module._AFFORDABLE, self.module.COST = self.kept


def rms(x):
    return float(x.square().mean().sqrt())


def lines(n, tolerances, args):
    few = args.quick or n > MANY_VARIABLES
    upper, cov = problems(n, QUICK if few else COUNT, args.seed)
    # The reference's pairs are n^2 / 2 conditional problems.
    few = slice(0, None if n <= 9 else 3)
    with Conditional(REFERENCE_POINTS):
        tight_limits = gradients(upper, cov, args.reference, False, seed=7)[0]
        tight_cov = gradients(upper[few], cov[few], args.reference, True, seed=7)[1]
    for tol in tolerances:
        base, result = harness.cpu_time(
            lambda tol=tol: value(upper, cov, tol), args.repeats, least_s=0.05
        )
        line = {
            "n": n,
            "problems": len(upper),
            "abs_tol": tol,
            **harness.milliseconds("value_ms", base, len(upper)),
            "value_points": float(result.n_points.double().mean()),
        }
        for name, with_cov in (("limits", False), ("cov", True)):
            some = few if with_cov else slice(None)
            u, c = upper[some], cov[some]
            if with_cov:
                base, result = harness.cpu_time(
                    lambda tol=tol, u=u, c=c: value(u, c, tol), args.repeats, least_s=0.05
                )
            both, found = harness.cpu_time(
                lambda tol=tol, u=u, c=c, w=with_cov: gradients(u, c, tol, w), args.repeats
            )
            with Points() as counted:
                gradients(u, c, tol, with_cov)
            backward = both["median_s"] - base["median_s"]
            known = tight_cov if with_cov else tight_limits
            line |= {
                **harness.milliseconds(f"{name}_ms", both, len(u), less=base),
                f"{name}/value": backward / base["median_s"],
                f"{name}_points/value": sum(counted.calls) / max(1, int(result.n_points.sum())),
                f"{name}_rms": rms(found[-1] - known),
                f"{name}_size": rms(known),
            }
        yield line


def chain_log_prob(u, rho, nodes):
    """log P(X <= u) of an AR(1) chain: Gauss-Legendre nodes that move with each limit."""
    width, square = max(9.0, float(u.detach().max()) + 9.0), 1 - rho * rho
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(nodes))
    down, log_w = width * (x + 1) / 2, (width * w / 2).log()
    y = u[0] - down
    log_mass = log_w - 0.5 * y * y - 0.5 * math.log(2 * math.pi)
    log_density = -0.5 * math.log(2 * math.pi * square)
    for k in range(1, len(u)):
        following = u[k] - down
        step = log_density - 0.5 * (following[:, None] - rho * y) ** 2 / square
        log_mass = log_w + torch.logsumexp(step + log_mass, 1)
        y = following
    return torch.logsumexp(log_mass, 0)


def chain(n, limit, rho=0.5, nodes=240):
    """Limits, covariance, and the slopes of log p."""
    i = torch.arange(n).double()
    upper, cov = torch.full((n,), limit).double(), rho ** (i[:, None] - i).abs()
    u = upper.clone().requires_grad_()
    return upper, cov, torch.autograd.grad(chain_log_prob(u, rho, nodes), u)[0]


def tail_lines(args):
    from mvnrob import mvn_cdf

    for side, n, limit, rel_tol in CHAINS:
        upper, cov, exact = chain(n, limit)
        upper = upper.expand(ROWS, n).clone()
        for name, matrix in (("cov", cov), ("factor", torch.linalg.cholesky(cov))):

            def value(u, name=name, matrix=matrix, rel_tol=rel_tol):
                return mvn_cdf(
                    u, **{name: matrix}, abs_tol=0.0, rel_tol=rel_tol, seed=torch.arange(ROWS),
                    return_info=True,
                )  # fmt: skip

            def slopes(upper=upper, value=value):
                u = upper.detach().requires_grad_()
                return torch.autograd.grad(value(u).log_prob.sum(), u)[0]

            base, result = harness.cpu_time(
                lambda v=value, u=upper: v(u), args.repeats, least_s=0.05
            )
            both, found = harness.cpu_time(slopes, args.repeats, least_s=0.05)
            u = upper.detach().requires_grad_()
            log_prob = value(u).log_prob.sum()
            with Points() as counted:
                torch.autograd.grad(log_prob, u)
            backward = both["median_s"] - base["median_s"]
            off = (found - exact).abs().amax(1) / exact.abs().max()
            yield {
                "group": side,
                "given": name,
                "n": n,
                "rel_tol": rel_tol,
                "log_p": float(result.log_prob.mean()),
                **harness.milliseconds("value_ms", base, ROWS),
                **harness.milliseconds("limits_ms", both, ROWS, less=base),
                "limits/value": backward / base["median_s"],
                "limits_points/value": sum(counted.calls) / int(result.n_points.sum()),
                "worst_mean": float(off.mean()),
                "worst_max": float(off.max()),
            }


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--n", default="9,49,99,199")
    p.add_argument("--quick", action="store_true", help="fewer problems")
    p.add_argument("--conditional", action="store_true", help="no pathwise slopes")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--seed", type=int, default=0, help="of the problems")
    p.add_argument("--reference", type=float, default=1e-5, help="tolerance of the tight run")
    args = p.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="mvn_cdf: .*max_points")
    report = harness.environment()
    harness.show_environment(report)
    rows = []
    for n in (int(v) for v in args.n.split(",")):
        with Conditional() if args.conditional else contextlib.nullcontext():
            rows += lines(n, (1e-3, 1e-4), args)
        harness.show(rows[-2:], list(rows[0]))
        # Half of the densities' bound .4, and room for points that ran out.
        if any(row["limits_rms"] > 0.4 * row["abs_tol"] for row in rows[-2:]):
            raise SystemExit(f"n = {n}: gradients are farther from the tight run than they may be")
    if not args.conditional:
        tails = list(tail_lines(args))
        harness.show(tails, list(tails[0]))
        # Bounds at 99 % of every slope, for eight rows; or where the value's points ended.
        if any(row["worst_mean"] > 2 * row["rel_tol"] for row in tails):
            raise SystemExit("slopes of a chain are farther from the quadrature than they may be")
        rows += tails
    harness.write("mvn_cdf_grad", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
