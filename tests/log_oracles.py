"""Logarithms of small probabilities, and small complements, with their digits, in float64.

Each answer is right to a relative error of `REL_ERR`: quadrature of positive terms, its grid placed
around the integrand's peak and made finer until nothing changes. Nothing here samples or separates
variables.
"""

import math

import numpy as np
import oracles
from oracles import NotConverged
from scipy import optimize, special

REL_ERR = 1e-9
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def log_interval(lower, upper):
    """ln P(lower <= Z <= upper) of a standard normal, in either tail; lower < upper."""
    lower, upper = np.broadcast_arrays(lower, upper)
    flip = lower + upper > 0
    a, b = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    high = special.log_ndtr(b)
    return high + np.log1p(-np.exp(special.log_ndtr(a) - high))


def _settled(evaluate, sizes):
    last = math.nan
    for size in sizes:
        value = evaluate(size)
        if abs(value - last) < 0.1 * REL_ERR:
            return value
        last = value
    raise NotConverged(f"still moving at size {sizes[-1]}")


def one_factor(load, noise, lower, upper):
    """ln P(lower <= load z + noise e <= upper), z and e independent standard normal.

    The integrand over z is log-concave: one peak, which is found first, however far out it is.
    """

    def log_integrand(z):
        z = np.asarray(z)[:, None]
        inside = log_interval((lower - load * z) / noise, (upper - load * z) / noise).sum(1)
        return inside - 0.5 * z[:, 0] ** 2 - HALF_LOG_TWO_PI

    def at(z):
        return float(log_integrand([z])[0])

    peak = float(optimize.minimize_scalar(lambda z: -at(z), bracket=(-1.0, 1.0), tol=1e-10).x)
    top = at(peak)

    def end(side):
        step = 1e-4
        while at(peak + side * step) > top - 45:
            step *= 1.4
        return peak + side * step

    left, right = end(-1), end(1)

    def evaluate(panels):
        z, weight = oracles.gauss_legendre(left, right, panels)
        return top + math.log(weight @ np.exp(log_integrand(z) - top))

    return _settled(evaluate, (16, 32, 64, 128, 256, 512))


def markov(rho, lower, upper, reach=20.0):
    """ln P of a stationary Markov chain with correlations rho[k] between neighbours k and k + 1.

    The law of variable k, given that the ones before are inside, is carried along on nodes between
    its limits, in units of its largest value. Mass beyond `reach` is left out.
    """

    def evaluate(nodes):
        x, w = np.polynomial.legendre.leggauss(nodes)
        log_unit, before, density = 0.0, None, None
        for k, (a, b) in enumerate(zip(lower, upper, strict=True)):
            a, b = max(a, -reach), min(b, reach)
            z, weight = (a + b) / 2 + (b - a) / 2 * x, (b - a) / 2 * w
            if k == 0:
                log_density = -0.5 * z * z - HALF_LOG_TWO_PI
                log_unit += log_density.max()
                density = np.exp(log_density - log_density.max())
            else:
                spread = math.sqrt(1 - rho[k - 1] ** 2)
                step = (z[:, None] - rho[k - 1] * before) / spread
                density = np.exp(-0.5 * step * step) @ density
                density /= spread * math.sqrt(2 * math.pi)
                unit = density.max()
                if not unit > 1e-280:
                    raise NotConverged("the chain's law lies beyond what its nodes see")
                log_unit, density = log_unit + math.log(unit), density / unit
            before, density = z, density * weight
        return log_unit + math.log(density.sum())

    return _settled(evaluate, (100, 200, 400, 800))


def one_factor_complement(load, noise, lower, upper):
    """1 - P of the same one-factor problem: a sum of positive terms, right to 1e-13 of itself."""
    z, weight = oracles.gauss_legendre(-14.0, 14.0, 56, order=64)
    weight = weight * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    z = z[:, None]
    fails = special.ndtr(-(upper - load * z) / noise) + special.ndtr((lower - load * z) / noise)
    return float(weight @ -np.expm1(np.log1p(-np.minimum(fails, 1 - 1e-15)).sum(1)))


def star(loads, lower, upper):
    """P for X_0 = z, X_i = loads[i] z + sqrt(1 - loads[i]^2) e_i, however near +-1 the loads are.

    Gauss-Legendre between breaks that resolve every step of the integrand over z. To 1e-13.
    """
    loads = np.asarray(loads, dtype=float)
    noise = np.sqrt((1 - loads[1:]) * (1 + loads[1:]))
    breaks = [np.linspace(-9, 9, 73)]
    for load, spread, a, b in zip(loads[1:], noise, lower[1:], upper[1:], strict=True):
        for limit in (a, b):
            if np.isfinite(limit) and load != 0:
                breaks.append(limit / load + spread / load * np.linspace(-9, 9, 37))
    left, right = max(lower[0], -9.0), min(upper[0], 9.0)
    if left >= right:
        return 0.0
    edges = np.unique(np.clip(np.concatenate(breaks), left, right))
    x, w = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    z = ((edges[1:] + edges[:-1])[:, None] / 2 + half * x).ravel()
    inside = oracles.interval(
        (lower[1:] - loads[1:] * z[:, None]) / noise, (upper[1:] - loads[1:] * z[:, None]) / noise
    )
    weight = (half * w).ravel() * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return float(weight @ inside.prod(1))
