"""Margins' covariances from the features of the last linear layer: J = W H, dW (H H^T) dW^T."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._jac_cov import jac_cov_accumulate
from .head import Head
from .linearised import Linearised, column_parts, column_ranges, mean_rows

#: Numbers of dW in memory at a time when the norms of all classes are computed.
_DIFFERENCES = 2**24


class Features:
    """The features h of a chunk of inputs, as far as they move.

    ReLU networks leave many features without a gradient (EfficientNet-Lite0: 700 to 900 of 1,280
    on a photograph). One forward-mode product along a random direction tells: a feature's derivative
    along it is exactly zero only where its whole gradient is. The same product, multiplied by W, is
    the one that rows of logits are checked against.

    Raises:
        HeadMismatch: W h(x) + b differs from the logits at one of the inputs, or W times the
            derivative of h from that of the logits.
    """

    def __init__(self, problem: Linearised, head: Head) -> None:
        self.head = head
        self.map = problem.logits.through(head)
        b = len(problem.target)
        with torch.no_grad(), problem.logits.meter.clock("network"):
            self.map.network.checked(problem.logits.x)
        problem.logits.meter.passes("forward", problem.logits.inputs, 1)
        every = torch.arange(head.width, device=problem.target.device).expand(b, -1)
        self.live = every  #: int64 [b, k]: the live features, and dead ones up to the longest row
        network = self.map.network
        network.with_logits = True
        try:
            direction, products = self.map.probe()
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return  # without forward mode every feature counts as live
        finally:
            network.with_logits = False
        product = network.compare_derivatives(products)
        self.map.take_probe(direction, product)
        problem.logits.take_probe(direction, product.double() @ head.weight.T)
        moves = product != 0
        most = int(moves.sum(1).max())
        order = moves.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        self.live = order[:, : max(1, most)]

    def subset(self, rows: Tensor) -> Features:
        part = object.__new__(Features)
        part.head, part.map, part.live = self.head, self.map.subset(rows), self.live[rows]
        return part

    def passes(self, row_budget: int) -> int:
        """Backward passes that all rows of J take; several times the features beyond the budget."""
        count = self.live.shape[1]
        fits = count <= row_budget
        return count if fits else count * math.ceil(count / max(1, row_budget // 2))


class Factorised:
    """What ``k`` backward passes of the features give: everything about all C margins.

    ``gram`` [L, b, k, k] float64: H H^T by e over the live features, once per weighting of the
    groups; ``weight`` [b, C, k]: the head's columns of these features. Products are float64
    throughout: differences of W's rows can cancel the large common part of H.
    """

    def __init__(self, problem: Linearised, features: Features) -> None:
        live, noise = features.live, problem.noise
        self.target = problem.target
        self.weight = features.head.weight.T[live].mT  # [b, C, k]
        b, count = live.shape
        versions = len(problem.weights)
        sums = problem.values.new_zeros(versions, b, 1 + count, 1 + count)
        place = torch.zeros_like(problem.target)
        if count <= problem.row_budget:
            pieces = [noise.pull(features.map.rows(live))]
        else:
            pieces = column_ranges(features.map, noise, live, problem.row_budget)
        for rows in pieces:
            for version, weight in enumerate(problem.weights):
                for part in column_parts(mean_rows(rows, weight)):
                    # jac_cov multiplies differences to the target's row: here a row of zeros
                    block = part.new_zeros(b, 1 + count, part.shape[2], dtype=torch.float64)
                    block[:, 1:] = part
                    jac_cov_accumulate(sums[version], block, place)
        self.gram = sums[:, :, 1:, 1:]

    @property
    def features(self) -> int:
        return self.weight.shape[2]

    def _differences(self, classes: Tensor) -> Tensor:
        """Rows W_t - W_i of ``classes`` [b, m]: ``[b, m, k]``."""
        batch = torch.arange(len(classes), device=classes.device)[:, None]
        own = self.weight[batch, self.target[:, None]]
        return own - self.weight[batch, classes]

    def norms(self) -> Tensor:
        """||u_i|| of all classes ``[L, b, C]``."""
        b, classes, count = self.weight.shape
        every = torch.arange(classes, device=self.weight.device).expand(b, -1)
        out = []
        for part in every.split(max(1, _DIFFERENCES // (b * count)), dim=1):
            d = self._differences(part)
            out.append(((d @ self.gram) * d).sum(-1))
        return torch.cat(out, 2).clamp_min(0).sqrt()

    def rows(self, classes: Tensor) -> Tensor:
        """Rows whose products are those of the u_i of ``classes`` [b, m]: ``[L, b, m, k]``.

        dW V sqrt(lambda) with H H^T = V diag(lambda) V^T: k numbers a class in place of m. Zero for
        the target, which also fills unused places.
        """
        values, vectors = torch.linalg.eigh(self.gram)
        root = vectors * values.clamp_min(0).sqrt()[..., None, :]
        return self._differences(classes) @ root

    def scatter(self, classes: Tensor) -> Tensor:
        """sum_d u_d u_d^T over ``classes`` [b, m] (the target first): ``[L, b, m, m]``."""
        d = self._differences(classes)
        out = d @ self.gram @ d.mT
        return ((out + out.mT) / 2).contiguous()


def factorised(problem: Linearised, features: Features) -> list[tuple[Tensor, Factorised]]:
    """The inputs in pieces whose features' rows fit in the budget: (numbers, their factor)."""
    count = features.live.shape[1]
    at_once = max(1, problem.rows_at_once // count)
    every = torch.arange(len(problem.target), device=problem.target.device)
    parts = []
    for rows in every.split(at_once):
        parts.append((rows, Factorised(problem.subset(rows), features.subset(rows))))
    return parts
