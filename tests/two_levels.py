"""A large problem of full rank with a known answer, made on the device that it is for."""

import numpy as np
import torch

GROUPS, ROOT, GROUP, LIMIT = 128, 0.3, 0.3, 3.5


def two_levels(n, device):
    """Limits (n,), float32 covariance (n, n), and P: a cause of all n variables, a multiple of 128,
    and one for each of 128 groups. P is an integral over the first of products of integrals over the
    others; no part of it is a block of one factor, so mvn_cdf samples all variables."""
    label = torch.arange(n, device=device) % GROUPS
    cov = (label[:, None] == label).float().mul_(GROUP).add_(ROOT)
    cov.diagonal().fill_(1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    x, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    rest = (LIMIT - ROOT**0.5 * x[:, None] - GROUP**0.5 * x) / (1 - ROOT - GROUP) ** 0.5
    given_root = (torch.special.ndtr(rest) ** (n // GROUPS)) @ weights
    return torch.full((n,), LIMIT, device=device), cov, float((given_root**GROUPS) @ weights)
