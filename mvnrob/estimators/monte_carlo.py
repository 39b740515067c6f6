"""p_mc: counting noisy copies that keep their class, with an exact interval."""

from __future__ import annotations

import torch
from torch import Tensor

from .._mvn_cdf import Status
from ..intervals import clopper_pearson
from ..noise import COUNTED
from .chunk import LEVEL, Chunk, Estimate
from .linear import clean_runner_up

#: First look of a run that may stop early; the number of copies doubles from look to look.
FIRST_LOOK = 128


def looks(n_samples: int, early: bool) -> list[int]:
    """Numbers of copies after which the interval may be read."""
    if not early:
        return [n_samples]
    sizes = []
    size = FIRST_LOOK
    while size < n_samples:
        sizes.append(size)
        size *= 2
    return [*sizes, n_samples]


def mc(chunk: Chunk) -> Estimate:
    """The share of n noisy copies at which no logit exceeds the target's.

    ``lower`` and ``upper`` are the Clopper-Pearson limits at 99 %, valid for the network itself, and
    ``error`` the larger distance to them. With ``width`` an input stops at the first look (128, 256,
    512, ... copies) whose interval is at most that wide; the 1 % is spent in equal parts over the
    looks that might be made, so the interval keeps its confidence wherever it stops. Copies are the
    same for every sigma. Cost: n forward passes per input and sigma.
    """
    s = chunk.settings
    sigmas, batch = len(chunk.noise.sigmas), len(chunk.x)
    plan = looks(s.n_samples, s.width is not None)
    level = 1.0 - (1.0 - LEVEL) / len(plan)
    device = chunk.x.device
    kept = torch.zeros(sigmas, batch, dtype=torch.int64, device=device)
    drawn = torch.zeros_like(kept)
    flips = torch.zeros(sigmas, batch, chunk.clean.shape[1], dtype=torch.int64, device=device)
    broken = torch.zeros(sigmas, batch, dtype=torch.bool, device=device)
    lower = torch.zeros(sigmas, batch, dtype=torch.float64, device=device)
    upper = torch.ones_like(lower)
    running = torch.ones(sigmas, batch, dtype=torch.bool, device=device)
    done = 0
    for size in plan:
        rows = running.any(0).nonzero()[:, 0]
        for part in rows.split(max(1, chunk.copies)):
            at_once = max(1, chunk.copies // len(part))
            for first in range(done, size, at_once):
                count = min(at_once, size - first)
                _count(chunk, part, first, count, running, kept, drawn, flips, broken)
        done = size
        low, high = clopper_pearson(kept[running].cpu().numpy(), size, level)
        lower[running] = torch.from_numpy(low).to(lower)
        upper[running] = torch.from_numpy(high).to(upper)
        if s.width is not None:
            running = running & (upper - lower > s.width)
        if not running.any():
            break
    prob = kept.double() / drawn
    complement = (drawn - kept).double() / drawn
    status = torch.full_like(kept, int(Status.CONVERGED))
    if s.width is not None:
        status = status.masked_fill(running, int(Status.MAX_POINTS))
    runner_up = torch.where(flips.sum(2) > 0, flips.argmax(2), clean_runner_up(chunk))
    estimate = Estimate(
        prob,
        complement,
        torch.maximum(upper - prob, prob - lower),
        lower,
        upper,
        status,
        runner_up,
        torch.zeros_like(kept),
    )
    return estimate.with_nan_rows(broken)


def _count(
    chunk: Chunk,
    rows: Tensor,
    first: int,
    count: int,
    running: Tensor,
    kept: Tensor,
    drawn: Tensor,
    flips: Tensor,
    broken: Tensor,
) -> None:
    """Adds samples ``first .. first + count - 1`` of ``rows`` to the counts, for running sigmas."""
    shift = chunk.noise.push(chunk.draws(first, count, rows, COUNTED).flatten(0, 1))
    shift = shift.unflatten(0, (len(rows), count))
    for number, sigma in enumerate(chunk.noise.sigmas):
        here = running[number, rows]
        active = rows[here]
        if not len(active):
            continue
        copies = chunk.x[active][:, None] + sigma * shift[here]
        with torch.no_grad(), chunk.meter.clock("forward"):
            logits = chunk.network(copies.flatten(0, 1))
        chunk.meter.passes("forward", chunk.inputs[active], count)
        target = chunk.target[active].repeat_interleave(count)[:, None]
        own = logits.gather(1, target)[:, 0]
        best, winner = logits.scatter(1, target, -torch.inf).max(1)
        stays = (own >= best).unflatten(0, (-1, count))  # a tie is kept: P(0 <= 0) = 1
        kept[number, active] += stays.sum(1)
        drawn[number, active] += count
        where = (active.repeat_interleave(count), winner)
        flips[number].index_put_(where, (~stays).long().flatten(), accumulate=True)
        broken[number, active] |= logits.isnan().any(1).unflatten(0, (-1, count)).any(1)
