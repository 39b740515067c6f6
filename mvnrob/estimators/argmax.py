"""Where noise sends an input: P(argmax = c) of the linearised network, from one Jacobian."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .._jac_cov import jac_cov_finalize
from .._mvn_cdf import Status, mvn_cdf
from ..linearised import Linearised, in_range
from ..screening import Screened
from .chunk import Chunk, statuses_not_warnings
from .linear import linearised, screen

#: Variances of differences below this share of their terms are rounding: no difference.
_ROUNDING = 1e-13


@dataclass
class Shares:
    """Results of a chunk: ``prob`` and ``error`` [n_sigma, b, C], the others [n_sigma, b]."""

    prob: Tensor
    error: Tensor
    rest: Tensor
    rest_error: Tensor
    status: Tensor

    @staticmethod
    def empty(sigmas: int, classes: int, like: Tensor) -> Shares:
        nothing = like.new_zeros(sigmas, len(like), dtype=torch.float64)
        wide = like.new_zeros(sigmas, len(like), classes, dtype=torch.float64)
        return Shares(wide, wide.clone(), nothing, nothing.clone(), nothing.long())

    @staticmethod
    def join(parts: list[Shares], dim: int) -> Shares:
        return Shares(
            *(torch.cat([getattr(p, f.name) for p in parts], dim) for f in fields(Shares))
        )

    def with_nan_rows(self, bad: Tensor) -> Shares:
        for name in ("prob", "error"):
            setattr(self, name, getattr(self, name).masked_fill(bad[:, None], torch.nan))
        for name in ("rest", "rest_error"):
            setattr(self, name, getattr(self, name).masked_fill(bad, torch.nan))
        self.status = self.status.masked_fill(bad, int(Status.NAN_INPUT))
        return self


def argmax_shares(chunk: Chunk, min_prob: float) -> Shares:
    """P_S(argmax = c) over the classes S that screening keeps, for those that can reach min_prob.

    With the target t in S, a class outside S that is on top beats t. So the events argmax = c,
    c in S, taken over S alone, are a partition, and P_S(c) - P(c) >= 0 sum to at most the dropped
    mass. The covariance of class c's margins follows from the target's: u^c_i = u_i - u_c.
    """
    values = chunk.clean[:, None]

    def solve(problem: Linearised) -> Shares:
        out = Shares.empty(len(chunk.noise.sigmas), values.shape[2], chunk.clean[:, 0])
        scaled = replace(chunk, clean=problem.values[:, 0])
        for screened in screen(problem, chunk.settings.screen, chunk.settings.abs_tol):
            _fill(out, scaled, screened, min_prob)
            del screened  # before the next one comes
        return out

    problem = linearised(chunk, chunk.noise, chunk.linear_map(), values, method="argmax")
    return in_range(problem, solve)


def _fill(out: Shares, chunk: Chunk, screened: Screened, min_prob: float) -> None:
    rows, classes, sums = screened.inputs, screened.classes, screened.sums(0)
    part = chunk.subset(rows)
    b = len(classes)
    batch = torch.arange(b, device=classes.device)[:, None]
    padding = classes == classes[:, :1]
    padding[:, 0] = False
    logits = part.clean.gather(1, classes).masked_fill(padding, -math.inf)
    seeds = part.cdf_seeds()
    # argmax takes the first of equal classes: where two never differ, the lower index wins
    earlier = classes[:, :, None] < classes[:, None, :]
    same = classes[:, :, None] == classes[:, None, :]
    broken = sums.isnan().flatten(1).any(1) | part.clean.isnan().any(1)
    # also where screening dropped them
    impossible = (part.clean == -math.inf) & (part.clean.amax(1, keepdim=True) > -math.inf)
    pairs, blurs = _difference_norms(sums)
    margins = logits[:, :, None] - logits[:, None, :]
    for s, sigma in enumerate(part.noise.sigmas):
        beats = _beats(margins, pairs, sigma, earlier, same)
        most = (0.5 * torch.special.erfc(-beats.amin(2) / math.sqrt(2.0))).masked_fill(padding, 0.0)
        likely = most > min_prob
        # classes that screening dropped, then those too unlikely for an integral
        error = screened.dropped[s][:, None].expand(-1, out.prob.shape[2]).clone()
        error.scatter_(1, classes, torch.where(padding, screened.dropped[s][:, None], most))
        error[batch, classes[:, :1]] = most[:, :1]
        prob = torch.zeros_like(error)
        integrals = torch.zeros_like(most[:, 0])
        status = torch.zeros_like(rows)
        for place in likely.any(0).nonzero()[:, 0].tolist():
            here = likely[:, place].nonzero()[:, 0]
            info = _integral(part, sums[here], pairs[here], beats[here, place], place,
                             seeds[here], screened.share)  # fmt: skip
            own = classes[here, place]
            prob[here, own] = info.prob
            error[here, own] = info.error + screened.dropped[s][here]
            integrals[here] += info.error
            worse = info.status.long() > int(Status.EXACT)
            status[here] = torch.where(
                worse, torch.maximum(status[here], info.status), status[here]
            )
        shares = prob.gather(1, classes).masked_fill(padding, 0.0)
        # two classes whose order is in doubt hold each other's share at most
        doubt = (
            _doubt(margins, blurs, sigma).minimum(shares[:, :, None] + shares[:, None, :]).sum(2)
        )
        error = error.scatter_add(1, classes, doubt).masked_fill(impossible, 0.0)
        out.prob[s, rows], out.error[s, rows] = prob, error
        out.rest[s, rows] = (1.0 - prob.sum(1)).clamp_min(0.0)
        out.rest_error[s, rows] = integrals + screened.dropped[s] + (doubt * (shares > 0)).sum(1)
        out.status[s, rows] = status.masked_fill(broken, int(Status.NAN_INPUT))
        for field in (out.prob, out.error, out.rest, out.rest_error):
            field[s, rows[broken]] = math.nan


def _difference_norms(sums: Tensor) -> tuple[Tensor, Tensor]:
    """||u_i - u_j|| from the sums u_i u_j, zero where it is rounding, and how large it may be there
    (zero elsewhere): each ``[b, m, m]``."""
    own = sums.diagonal(dim1=1, dim2=2)
    scale = own[:, :, None] + own[:, None, :]
    square = scale - 2 * sums
    rounding = square <= _ROUNDING * scale
    norms = torch.where(rounding, 0.0, square).sqrt()
    return norms, torch.where(rounding, _ROUNDING * scale, 0.0).sqrt()


def _doubt(margins: Tensor, blurs: Tensor, sigma: float) -> Tensor:
    """Bound on P(another order than that of the margins at x) of two classes whose difference is
    rounding: ``[b, m, m]``. Equal margins are those of equal classes, and of a class with itself."""
    scale = sigma * blurs
    size = torch.where(scale > 0, margins.abs() / torch.where(scale > 0, scale, 1.0), math.inf)
    size = size.masked_fill((margins == 0) | margins.isnan(), math.inf)
    return 0.5 * torch.special.erfc(size / math.sqrt(2.0))


def _beats(margins: Tensor, norms: Tensor, sigma: float, earlier: Tensor, same: Tensor) -> Tensor:
    """z of class i (dim 1) staying above class j (dim 2); +inf with itself and with padding."""
    scale = sigma * norms
    step = torch.where((margins > 0) | ((margins == 0) & earlier), math.inf, -math.inf).to(margins)
    z = torch.where(scale == 0, step, margins / torch.where(scale == 0, 1.0, scale))
    # a class at -inf, padding among them, never wins
    z = torch.where(margins.abs() == math.inf, margins, z)
    # -inf beside -inf: the first is on top
    first = torch.where(earlier | same, math.inf, -math.inf).to(z)
    z = torch.where(margins.isnan(), first, z)
    return z.diagonal_scatter(z.new_full(z.shape[:2], math.inf), dim1=1, dim2=2)


def _integral(
    part: Chunk, sums: Tensor, pairs: Tensor, z: Tensor, place: int, seeds: Tensor, share: float
):
    """P(class at ``place`` is on top of the others) for its z ``[b, m]`` over them."""
    column = sums[:, :, place]
    own = column[:, place, None, None]
    moved = sums - column[:, :, None] - column[:, None, :] + own
    # rounding beside the terms is no difference, as in the pairs' norms
    none = pairs[:, place] == 0
    moved.masked_fill_(none[:, :, None] | none[:, None, :], 0.0)
    target = torch.full((len(sums),), place, dtype=torch.int64, device=sums.device)
    with part.meter.clock("covariance"):
        problem = jac_cov_finalize(moved.contiguous(), torch.zeros_like(column), target, 1.0)
    with part.meter.clock("cdf"), statuses_not_warnings():
        return mvn_cdf(
            z.gather(1, problem.keep),
            problem.corr,
            abs_tol=(1.0 - share) * part.settings.abs_tol,
            seed=seeds,
            return_info=True,
        )
