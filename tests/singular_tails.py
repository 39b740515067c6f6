"""Small probabilities of singular covariances, with exact answers."""

import math

import numpy as np
import torch
from scipy import special


def cone(n, rank, far, seed, slack=0.3, batch=4):
    """Rows of length one (factor ``[batch, n, rank]``), upper limits, log p, and which rows hold it.

    ``rank`` of them are orthogonal and hold all others, which are mixtures of them: these are further
    out by themselves and bound nothing.
    """
    rng = np.random.default_rng(seed)
    factor, upper, truth, holds = [], [], [], []
    for _ in range(batch):
        axes, _ = np.linalg.qr(rng.standard_normal((rank, rank)))
        limits = -far * rng.uniform(0.3, 1, rank)
        mixture = rng.uniform(0, 1, (n - rank, rank)) * (rng.uniform(size=(n - rank, rank)) < 0.6)
        mixture[np.arange(n - rank), rng.integers(rank, size=n - rank)] = 1
        mixture /= np.linalg.norm(mixture, axis=1, keepdims=True)
        order = rng.permutation(n)
        factor.append(np.concatenate([axes, mixture @ axes])[order])
        held = mixture @ limits + slack * rng.uniform(size=n - rank)
        upper.append(np.concatenate([limits, held])[order])
        truth.append(special.log_ndtr(limits).sum())
        holds.append(order < rank)
    return (torch.from_numpy(np.stack(a)) for a in (factor, upper, np.array(truth), holds))


def plane(factor, upper, lower, panels=4000):
    """log P(lower <= F x <= upper) for rows F ``[n, 2]`` that all depend on the second coordinate, by
    Gauss's rule on the first."""
    slope = factor[:, 1]
    low, high = np.where(slope > 0, lower, upper), np.where(slope > 0, upper, lower)

    def log_integrand(x):
        known = factor[:, :1] * x
        below = ((low[:, None] - known) / slope[:, None]).max(0)
        above = ((high[:, None] - known) / slope[:, None]).min(0)
        flip = below + above > 0
        a, b = np.where(flip, -above, below), np.where(flip, -below, above)
        with np.errstate(all="ignore"):
            mass = special.log_ndtr(b) + np.log1p(
                -np.exp(special.log_ndtr(a) - special.log_ndtr(b))
            )
        return np.where(below < above, mass, -np.inf) - 0.5 * x * x - 0.5 * math.log(2 * math.pi)

    left, right = -200.0, 200.0
    for _ in range(6):  # to where all of it is
        x = np.linspace(left, right, 20001)
        value = log_integrand(x)
        near = x[value > value.max() - 45]
        step = x[1] - x[0]
        left, right = near.min() - step, near.max() + step
    node, weight = np.polynomial.legendre.leggauss(8)
    edges = np.linspace(left, right, panels + 1)
    half = 0.5 * (edges[1] - edges[0])
    x = (edges[:-1, None] + half * (1 + node)).ravel()
    return float(special.logsumexp(log_integrand(x) + np.log(half * np.tile(weight, panels))))
