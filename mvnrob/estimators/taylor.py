"""p_taylor: the network linearised at the input (Han, Srinivas & Lakkaraju, arXiv 2307.13885)."""

from __future__ import annotations

from .chunk import Chunk, Estimate
from .linear import linear_estimate


def taylor(chunk: Chunk) -> Estimate:
    """Phi_R(z), z_i = (f_t - f_i) / (sigma ||u_i||) and u_i = grad f_t - grad f_i at x.

    One Jacobian serves every sigma. ``error`` covers the integral and the screened classes, not
    the linearisation. Cost per input: at most C backward passes
    (:mod:`mvnrob.screening` has the ways to fewer).
    """
    values = chunk.clean[:, None]
    return linear_estimate(chunk, chunk.noise, chunk.linear_map(), values, sampled=False)
