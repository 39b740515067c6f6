"""Quantiles behind the confidence statements: beta, Student t and chi-square, in NumPy float64.

SciPy is not a run-time dependency, so the incomplete beta function is evaluated here: Lentz's
algorithm on its continued fraction (Press et al., Numerical Recipes, "Incomplete beta function";
Lentz 1976), with the reflection x -> 1 - x where the fraction would converge slowly.
tests/test_estimators.py measures the functions against SciPy.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

_TINY = 1e-300


def _log_beta(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lgamma = np.vectorize(math.lgamma, otypes=[np.float64])
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _beta_fraction(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Continued fraction of I_x(a, b), for x < (a + 1) / (a + b + 2)."""
    c = np.ones_like(x)
    d = 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / np.where(np.abs(d) < _TINY, _TINY, d)
    h = d.copy()
    # Converges in O(sqrt(max(a, b))) steps; the cap covers 1e11 trials.
    for m in range(1, 1_000_000):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 + term * d
            d = 1.0 / np.where(np.abs(d) < _TINY, _TINY, d)
            c = 1.0 + term / c
            c = np.where(np.abs(c) < _TINY, _TINY, c)
            step = c * d
            h = h * step
        if np.all(np.abs(step - 1.0) < 1e-13):
            break
    return h


def beta_cdf(a, b, x) -> np.ndarray:
    """I_x(a, b) for a, b > 0 and 0 <= x <= 1, arrays broadcast."""
    a, b, x = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (a, b, x)))
    swap = x >= (a + 1.0) / (a + b + 2.0)
    p, q, y = np.where(swap, b, a), np.where(swap, a, b), np.where(swap, 1.0 - x, x)
    with np.errstate(divide="ignore"):
        front = p * np.log(y) + q * np.log1p(-y) - _log_beta(p, q) - np.log(p)
    part = np.exp(front) * _beta_fraction(p, q, y)
    return np.where(swap, 1.0 - part, part)


def beta_quantile(a, b, mass) -> np.ndarray:
    """The x with I_x(a, b) = mass: Newton steps kept inside a shrinking bracket."""
    a, b, mass = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (a, b, mass)))
    low, high = np.zeros_like(a), np.ones_like(a)
    x = a / (a + b)
    log_beta = _log_beta(a, b)
    for _ in range(200):
        gap = beta_cdf(a, b, x) - mass
        high = np.where(gap > 0, x, high)
        low = np.where(gap > 0, low, x)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            density = np.exp((a - 1) * np.log(x) + (b - 1) * np.log1p(-x) - log_beta)
            newton = x - gap / density
        inside = np.isfinite(newton) & (newton > low) & (newton < high)
        following = np.where(inside, newton, 0.5 * (low + high))
        # log_beta carries eps * lgamma(a + b): asking for more than 1e-10 would never end at 1e7
        settled = np.abs(gap) <= 1e-10 * mass
        narrow = np.abs(following - x) <= 1e-13 * x
        x = np.where(settled, x, following)
        if np.all(settled | narrow):
            break
    return x


def clopper_pearson(successes, trials: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided Clopper-Pearson limits of a proportion (Clopper & Pearson, Biometrika 1934).

    ``successes``: integers of any shape, of ``trials`` > 0; ``level``: confidence, e.g. 0.99.
    Covers the true proportion with probability at least ``level``, whatever it is.
    """
    counts, back = np.unique(np.asarray(successes, dtype=np.int64), return_inverse=True)
    tail = (1.0 - level) / 2.0
    lower, upper = np.zeros(counts.shape), np.ones(counts.shape)
    some, not_all = counts > 0, counts < trials
    lower[some] = beta_quantile(counts[some], trials - counts[some] + 1.0, tail)
    upper[not_all] = beta_quantile(counts[not_all] + 1.0, trials - counts[not_all], 1.0 - tail)
    shape = np.shape(successes)
    return lower[back].reshape(shape), upper[back].reshape(shape)


@functools.lru_cache(maxsize=256)
def student_t_quantile(level: float, degrees: int) -> float:
    """The t with P(|T| <= t) = level, T Student with ``degrees`` degrees of freedom."""
    # P(|T| > t) = I_x(degrees / 2, 1 / 2) with x = degrees / (degrees + t^2)
    x = float(beta_quantile(degrees / 2.0, 0.5, 1.0 - level))
    return math.sqrt(degrees * (1.0 - x) / x)


@functools.lru_cache(maxsize=256)
def chi_square_quantile(mass: float, degrees: int) -> float:
    """The x with P(chi^2 <= x) = mass, by bisection in log x on the incomplete gamma function."""
    shape = torch.tensor(degrees / 2.0, dtype=torch.float64)
    low, high = -700.0, math.log(degrees + 50.0 * math.sqrt(degrees) + 100.0)
    for _ in range(100):
        middle = 0.5 * (low + high)
        half = torch.tensor(math.exp(middle) / 2.0, dtype=torch.float64)
        if torch.special.gammainc(shape, half).item() < mass:
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))


def joint_error(error: np.ndarray, method: str) -> float:
    """Of stated errors of single examples, that of their mean: the mean error. Monte Carlo's draws are other ones
    for every example, so that its errors go together in squares. NaN where none is stated."""
    error = error[~np.isnan(error)]
    if len(error) == 0:
        return math.nan
    if method == "mc":
        return float(np.sqrt(np.square(error).sum()) / len(error))
    return float(error.mean())
