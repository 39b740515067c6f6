"""Sampling error of a function of group means: the delete-a-group jackknife."""

from __future__ import annotations

import torch
from torch import Tensor

from ..intervals import student_t_quantile

#: Most groups: each costs one more CDF per input; 8 give Student's t 7 degrees of freedom.
MOST_GROUPS = 8


def group_weights(groups: list[tuple[int, int]], device: torch.device) -> Tensor:
    """Weights of the group means ``[1 + G, G]``: all groups, then each one left out.

    One group cannot be left out: ``[1, 1]``.
    """
    sizes = torch.tensor([count for _, count in groups], dtype=torch.float64, device=device)
    if len(groups) == 1:
        return torch.ones(1, 1, dtype=torch.float64, device=device)
    without = sizes.repeat(len(groups), 1)
    without.fill_diagonal_(0.0)
    weights = torch.cat([sizes[None], without])
    return weights / weights.sum(1, keepdim=True)


def sampling_error(values: Tensor, groups: list[tuple[int, int]], level: float) -> Tensor:
    """Half-width at ``level`` for the sampling error of ``values[0]``.

    ``values`` [1 + G, ...]: the estimate from all groups, then with each group left out. The
    delete-a-group jackknife for unequal groups (Busing, Meijer & van der Leeden, Statistics and
    Computing 1999): Student's t on its standard error plus the size of its bias estimate. One
    group says nothing: NaN. Approximate; misses seen on digits at sigma .1, .3, .5 (nominal 1 %):
    antithetic mmse 0 to 1 % at n = 4 to 50, iid 2 to 3 % at n = 10 and 0.4 to 0.8 % at n = 50;
    antithetic logit_moments 0.6 to 4 % at n = 20, 2 % at n = 50, 1 % at n = 100.
    """
    whole, without = values[0], values[1:]
    count = len(groups)
    if count == 1:
        return torch.full_like(whole, torch.nan)
    sizes = torch.tensor([size for _, size in groups], dtype=values.dtype, device=values.device)
    shape = (count, *[1] * whole.dim())
    share = (sizes / sizes.sum()).reshape(shape)
    ratio = 1.0 / share
    corrected = count * whole - ((1.0 - share) * without).sum(0)
    pseudo = ratio * whole - (ratio - 1.0) * without
    variance = ((pseudo - corrected).square() / (ratio - 1.0)).mean(0)
    half_width = student_t_quantile(level, count - 1) * variance.sqrt() + (whole - corrected).abs()
    return half_width.clamp_max(1.0)
