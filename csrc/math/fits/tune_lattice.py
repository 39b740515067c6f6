"""Compares kernels and weights of fit_lattice.py at true errors on classifier-like problems.

Run from the root of the checkout: python csrc/math/fits/tune_lattice.py [--n 9,49,99]
Separation of variables in NumPy over the problems of bench/classifiers.py that have full rank, in
the order that mvn_cdf takes its pivots in. Every shift's mean is unbiased, so the spread of the means
of 32 shifts is the true error, no reference needed. Prints for every n and N the root mean square
error of one shift in units of Richtmyer's, as a geometric mean over the problems.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import fit_lattice

from bench import classifiers

FAMILIES = [
    (kernel, weights)
    for kernel in ("B2", "B4")
    for weights in ("j^-1", "j^-2", "j^-3", "0.2j^-1", "0.2j^-2", "0.05j^-1", "0.05j^-2", "0.7**j")
]
SHIFTS = 32


def pivoted(upper, cov):
    """Limits and factor after the order of Gibson, Glasbey and Elston (1994), rows divided by their
    diagonal."""
    n = len(upper)
    a, z, L = cov.copy(), upper.copy(), np.zeros((n, n))
    variance, mean = np.diag(cov).copy(), np.zeros(n)
    for j in range(n):
        limit = (z[j:] - mean[j:]) / np.sqrt(variance[j:])
        s = j + int(np.argmin(limit))
        for array in (z, variance, mean):
            array[[j, s]] = array[[s, j]]
        a[[j, s]] = a[[s, j]]
        a[:, [j, s]] = a[:, [s, j]]
        L[[j, s]] = L[[s, j]]
        L[j, j] = variance[j] ** 0.5
        L[j + 1 :, j] = (a[j + 1 :, j] - L[j + 1 :, :j] @ L[j, :j]) / L[j, j]
        t = limit[s - j]
        y = -np.exp(-0.5 * t * t) / (np.sqrt(2 * np.pi) * ndtr(t))
        mean[j + 1 :] += L[j + 1 :, j] * y
        variance[j + 1 :] = np.maximum(variance[j + 1 :] - L[j + 1 :, j] ** 2, 1e-12)
    diagonal = np.diag(L)
    return z / diagonal, L / diagonal[:, None]


def means(problem, points):
    """Mean of the integrand over points [n, N] in (0, 1)."""
    limit, L = problem
    y = np.empty_like(points)
    f = np.ones(points.shape[1])
    for i in range(len(limit)):
        e = ndtr(limit[i] - L[i, :i] @ y[:i])
        f *= e
        y[i] = ndtri(np.clip(points[i] * e, 1e-300, 1 - 1e-16))
    return f.mean()


def tent(k, z, shift):
    x = (k[None, :] * np.asarray(z)[:, None] + shift[:, None]) % 2**32
    return 1 - np.abs(2 * (x + 0.5) / 2.0**32 - 1)


def spread(problem, z, points, reverse):
    """Standard deviation over the shifts of the mean over `points` points of each."""
    n, m = len(problem[0]), points.bit_length() - 1
    k = np.arange(points, dtype=np.int64)
    if reverse:  # the first 2^m of the sequence: multiples of 2^(32 - m), in any order
        k = k * 2 ** (32 - m)
    shifts = np.random.default_rng(1).integers(0, 2**32, (SHIFTS, n))
    return np.std([means(problem, tent(k, z[:n], s)) for s in shifts], ddof=1)


def problems(n, count):
    full = [c for c in classifiers.classifier_problems(n, 36, 0) if c.kind != "lin"]
    full = [c for c in full if c.target <= 0.9]  # nearer to 1 mvn_cdf hardly samples
    return [pivoted(c.upper, c.cov) for c in full[:count]]


def richtmyer(n):
    primes = [p for p in range(2, 10000) if all(p % d for d in range(2, int(p**0.5) + 1))][:n]
    return [int((p**0.5 % 1) * 2**32) | 1 for p in primes]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", default="9,49,99")
    parser.add_argument("--problems", type=int, default=8)
    args = parser.parse_args()
    sizes = [int(v) for v in args.n.split(",")]
    points = {n: (2**8, 2**11, 2**13) if n < 50 else (2**8, 2**11) for n in sizes}
    solved = {n: problems(n, args.problems) for n in sizes}
    base = {
        (n, N): [spread(p, richtmyer(n), N, False) for p in solved[n]]
        for n in sizes
        for N in points[n]
    }
    columns = list(base)
    print("error / Richtmyer's".ljust(20) + "".join(f"{f'n={n} N={N}':>14}" for n, N in columns))
    for kernel, name in FAMILIES:
        weights = fit_lattice.gammas(name, max(sizes))
        z, _, _ = fit_lattice.construct(kernel, weights, fit_lattice.FIRST, 17)
        line = f"{kernel} {name}".ljust(20)
        for n, N in columns:
            made = [spread(p, z, N, True) for p in solved[n]]
            line += f"{np.exp(np.mean(np.log(np.divide(made, base[n, N])))):14.3f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
