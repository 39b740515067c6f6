"""A small set that goes through every kernel, for compute-sanitizer.

python -m bench.cuda_small [--seconds 30] [--device cuda]

Each size round the edges of the mappings, both dtypes, rectangles, singular and screened problems, edges.
Cases come in an order that has the broad ones first; those for which the seconds do not suffice are
named. Answers are compared with the CPU backend's: under a sanitizer, too, a wrong answer is an error.
"""

import argparse
import sys
import time

import torch

from mvnrob import bvn_cdf, jac_cov, mvn_cdf
from mvnrob._nearest_ends import nearest_ends
from mvnrob._standard_normal import standard_normal

SIZES = (9, 33, 65, 4, 120, 3, 2, 1, 32, 31, 8, 49, 48, 17, 129, 64, 200)
DTYPES = (torch.float32, torch.float64)
# Of jac_cov: each kernel, with a number of columns that ends inside a stage.
JACOBIANS = ((10, 1050), (33, 70), (130, 70))


def problem(n, batch, seed, rank=None, spread=2.0):
    """Limits and covariances that are no correlations; singular when rank < n."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, n, rank or n + 3)
    factor = torch.randn(shape, generator=g, dtype=torch.float64)
    factor += torch.randn(batch, 1, shape[2], generator=g, dtype=torch.float64)
    z = spread * torch.rand(batch, n, generator=g, dtype=torch.float64)
    return z * factor.norm(dim=-1), factor @ factor.mT


def jacobian(classes, batch, columns, dtype, device="cpu"):
    """J, float64 logits and targets."""
    g = torch.Generator(device=device).manual_seed(classes)
    J = torch.randn(batch, classes, columns, generator=g, device=device).to(dtype)
    logits = torch.randn(batch, classes, generator=g, device=device).double()
    return J, logits, torch.randint(classes, (batch,), generator=g, device=device)


def small_set():
    """Pairs of a name and a call that takes a device and gives answers and their errors."""
    cases = []

    def add(name, upper, cov, lower=None, **options):
        def call(device):
            put = lambda t: None if t is None else t.to(device)
            r = mvn_cdf(
                put(upper), put(cov), lower=put(lower), return_info=True,
                **{"abs_tol": 1e-2, **options},
            )  # fmt: skip
            return r.prob.cpu().double(), r.error.cpu().double()

        cases.append((name, call))

    def add_bvn():
        h, k, rho = torch.linspace(-0.9, 0.9, 3 * 301, dtype=torch.float64).reshape(3, -1)

        def call(device):
            p = bvn_cdf(*(t.to(device) for t in (h, k, rho)))
            return p.cpu(), torch.full((301,), 1e-14, dtype=torch.float64)

        cases.append(("bvn_cdf", call))

    def add_standard_normal():
        keys = torch.arange(5)

        def call(device):
            e = [standard_normal(keys.to(device), 1, 3, dim, torch.float32) for dim in (9, 1101)]
            e = torch.cat([part.flatten() for part in e]).cpu()
            return e, torch.full_like(e, 5e-7)

        cases.append(("standard_normal", call))

    def add_nearest_ends():
        g = torch.Generator().manual_seed(1)
        limit, table, draws = (
            torch.randn(shape, generator=g) for shape in ((3, 70), (3, 70, 21), (67, 23))
        )

        def call(device):
            given = (t.to(device) for t in (limit, table, draws))
            found = nearest_ends(*given, rising=50, exact=9, split=5, wants_rows=True)
            ends = torch.cat([part.flatten() for part in found]).cpu().double()
            # and the rows' numbers, of which no two are as near
            return ends, torch.full_like(ends, 1e-4)

        cases.append(("nearest_ends", call))

    def add_jac_cov(classes, columns, dtype):
        J, logits, target = jacobian(classes, 2, columns, dtype)

        def call(device):
            r = jac_cov(J.to(device), logits.to(device), target.to(device), 0.5)
            return r.corr.cpu(), torch.full(r.corr.shape, 2e-6, dtype=torch.float64)

        cases.append((f"jac_cov C={classes} {dtype}", call))

    def add_slopes(n, pivots, dtype, rank=None):
        upper, cov = problem(n, 2, n, rank=rank, spread=1.0)
        order = torch.full((2, pivots), -1)
        first, count = torch.zeros(2, dtype=torch.int64), torch.full((2,), 128)
        rows = (
            upper,
            cov,
            -2 * upper,
            torch.arange(2),
            order,
            first,
            count,
            torch.ones(2, 8).double(),
        )

        def call(device):
            out = torch.ops.mvnrob.mvn_cdf_pathwise(*(t.to(device) for t in rows), dtype, True)
            # The derivatives to upper limits and to cov, each in units of its largest.
            found = [t.flatten(1).cpu() for t in (out[1], out[3])]
            found = torch.cat([t / t.abs().amax(1, keepdim=True) for t in found], 1)
            return found, torch.full_like(found, 4e-4 if dtype == "float32" else 1e-8)

        cases.append((f"slopes n={n} k={pivots} {dtype}", call))

    for n in SIZES:
        upper, cov = problem(n, 3, n)
        for dtype in DTYPES:
            # Tighter than float32 goes by itself: the other dtype of the recursion.
            add(f"n={n} {dtype}", upper.to(dtype), cov.to(dtype), compute_dtype=dtype)
        if n == 9:
            add_bvn()
            add_standard_normal()
            add_nearest_ends()
            for classes, columns in JACOBIANS:
                for dtype in (*DTYPES, torch.bfloat16):
                    add_jac_cov(classes, columns, dtype)
            for dtype in ("float32", "float64"):
                add_slopes(9, 7, dtype)
                add_slopes(20, 5, dtype, rank=5)
                add_slopes(40, 36, dtype)
            edges = torch.tensor([[torch.inf] * 9, [torch.nan] * 9, [-torch.inf] * 9])
            add("edges", edges.double(), cov)
        if n in (9, 33, 120, 3, 129):
            add(f"rectangle n={n}", upper, cov, lower=-upper - 0.5)
            singular = problem(n, 3, n, rank=max(1, n // 3))
            add(f"singular n={n}", *singular)
            # Few variables matter: screened and completed ones.
            wide = upper * torch.linspace(1, 5, n).double()
            add(f"screened n={n}", wide, cov, abs_tol=1e-3)
            add(f"sov n={n}", upper, cov, method="sov", abs_tol=0.0, max_points=512)
            # With 96 pivots and more the tensor sampler's.
            add(f"sov float32 n={n}", upper, cov, method="sov", abs_tol=1e-3, max_points=512)
    return cases


def compare(name, call, device):
    """What is wrong with the answers on the device, or None."""
    prob, error = call(device)
    expected, allowed = call("cpu")
    # A NaN must be one on both sides; float32 results are rounded to 6e-8.
    same = (prob.isnan() & expected.isnan()) | ((prob - expected).abs() <= error + allowed + 2e-7)
    if bool(same.all()):
        return None
    return f"{name}: {prob.tolist()} on {device}, {expected.tolist()} on the CPU"


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seconds", type=float, default=30)
    p.add_argument("--device", default="cuda")
    p.add_argument("--threads", type=int, default=1, help="of the CPU backend")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    end = time.monotonic() + args.seconds
    wrong, done, cases = [], 0, small_set()
    for name, call in cases:
        if done and time.monotonic() > end:
            break
        if said := compare(name, call, args.device):
            wrong.append(said)
        done += 1
    print(f"cuda_small: {done} of {len(cases)} cases, {len(wrong)} wrong")
    if done < len(cases):
        print(f"cuda_small: no time for {', '.join(name for name, _ in cases[done:])}")
    for said in wrong:
        print(f"cuda_small: {said}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
