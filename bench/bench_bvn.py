"""bvn_cdf: time and error of an element, beside SciPy's multivariate_normal.cdf.

python -m bench bvn [--elements 1,1000,100000]

One thread, CPU time. Limits in [-4, 4], correlations in (-1, 1), some next to its ends. The error is
the largest beside adaptive quadrature of Drezner and Wesolowsky's integral at 22 digits (mpmath, 40
of the elements). SciPy is called in its own way, a matrix at a time, on them too.
"""

import sys

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch

CHECKED = 40
# The documented error, and one rounding of the reference.
WORST = 1e-15 + 2.3e-16


def elements(count, seed=0):
    rng = np.random.default_rng(seed)
    h, k = rng.uniform(-4, 4, (2, count))
    rho = np.tanh(rng.normal(0, 1.5, count))
    return h, k, rho


def reference(h, k, rho):
    """P by Phi(h) Phi(k) + integral of the density over asin of the correlation; 22 digits."""
    import mpmath as mp

    with mp.workdps(22):
        h, k, end = mp.mpf(float(h)), mp.mpf(float(k)), mp.asin(mp.mpf(float(rho)))
        density = lambda t: mp.exp(-(h * h + k * k - 2 * h * k * mp.sin(t)) / (2 * mp.cos(t) ** 2))
        steps = mp.linspace(0, end, 3)
        return float(mp.ncdf(h) * mp.ncdf(k) + mp.quad(density, steps) / (2 * mp.pi))


def peer(h, k, rho):
    from scipy.stats import multivariate_normal

    return np.array(
        [
            multivariate_normal.cdf([a, b], cov=[[1.0, r], [r, 1.0]], allow_singular=True)
            for a, b, r in zip(h, k, rho, strict=True)
        ]
    )


def measured(counts, repeats):
    """A row for each count, and one of SciPy."""
    from mvnrob import bvn_cdf

    h, k, rho = elements(max(CHECKED, *counts))
    some = slice(0, CHECKED)
    known = np.array([reference(*v) for v in zip(h[some], k[some], rho[some], strict=True)])
    tensors = [torch.from_numpy(v) for v in (h, k, rho)]
    error = float(np.abs(bvn_cdf(*(t[some] for t in tensors)).numpy() - known).max())
    if not error <= WORST:
        raise SystemExit(f"bench bvn: an error of {error:.1e}, nothing is timed")
    rows = []
    for count in counts:
        part = [t[:count] for t in tensors]
        timing, _ = harness.cpu_time(lambda part=part: bvn_cdf(*part), repeats, least_s=0.02)
        rows.append(line("bvn_cdf", count, timing, error))
    timing, made = harness.cpu_time(lambda: peer(h[some], k[some], rho[some]), repeats)
    rows.append(line("SciPy", CHECKED, timing, float(np.abs(made - known).max())))
    return rows


def line(method, count, timing, error):
    ns = harness.nanoseconds(timing, count)
    return {"method": method, "elements": count, **ns, "error": error}


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument(
        "--elements",
        type=harness.several(harness.whole()),
        default="1,1000,100000",
        help="of one call",
    )
    p.add_argument("--repeats", type=harness.whole(), default=7)
    args = p.parse_args()
    torch.set_num_threads(1)
    report = harness.environment()
    harness.show_environment(report)
    rows = measured(args.elements, args.repeats)
    harness.show(rows, list(rows[0]))
    harness.write("bvn", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
