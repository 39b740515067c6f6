"""Margins' covariances from the features of the last linear layer: J = W H, dW (H H^T) dW^T."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ._jac_cov import jac_cov_accumulate
from ._standard_normal import standard_normal
from .head import Head
from .linearised import (
    Linearised,
    check_range,
    column_parts,
    column_ranges,
    mean_rows,
    pulled_rows,
)
from .network import full_float32
from .noise import PROBES, row_keys

#: Numbers of dW in memory at a time when the norms of all classes are computed.
_DIFFERENCES = 2**22


class Features:
    """The features h of a chunk of inputs, as far as they move.

    ReLU networks leave many features without a gradient (EfficientNet-Lite0: 700 to 900 of 1,280
    on a photograph). One forward-mode product along a random direction tells: a feature's derivative
    along it is exactly zero only where its whole gradient is. The same product, multiplied by W, is
    the one that rows of logits are checked against.

    Raises:
        HeadMismatch: W times the derivative of h differs from that of the logits (without forward
            mode, the gradients of the two along a random cotangent).
    """

    def __init__(self, problem: Linearised, head: Head) -> None:
        self.head = head
        self.map = problem.logits.through(head)
        b = len(problem.target)
        every = torch.arange(head.width, device=problem.target.device).expand(b, -1)
        self.live = every  #: int64 [b, k]: the live features, and dead ones up to the longest row
        network = self.map.network
        network.with_logits = True
        try:
            direction, products = self.map.probe()
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self._compare_gradients()
            return  # without forward mode every feature counts as live
        finally:
            network.with_logits = False
        product = network.compare_derivatives(products)
        self.map.take_probe(direction, product)
        problem.logits.take_probe(direction, head.products(product)[0])
        moves = product != 0
        most = int(moves.sum(1).max())
        order = moves.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        self.live = order[:, : max(1, most)]

    def _compare_gradients(self) -> None:
        """Without forward mode: one random cotangent, through the whole network and the features.

        Without TF32, which would round the two backward passes apart. They share the forward pass, and
        with it every side that a ReLU takes.
        """
        head, network = self.head, self.map.network
        classes, width = head.weight.shape
        keys = row_keys(0, PROBES, self.map.inputs)
        cotangent = standard_normal(keys, 1, 1, classes, torch.float64)[:, 0]
        pair = cotangent.new_zeros(len(cotangent), 2, width + classes)
        pair[:, 0, :width], pair[:, 1, width:] = head.pull(cotangent), cotangent
        network.with_logits = True
        try:
            with full_float32() if network.rounds_to_tf32() else contextlib.nullcontext():
                through, whole = self.map.vjp(pair).unbind(1)
        finally:
            network.with_logits = False
        network.compare_gradients(whole, through)

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

    ``gram`` [L, b, k, k] float64: H H^T by e over the ``live`` features [b, k], once per weighting of
    the groups. Products are float64 throughout: differences of W's rows can cancel the large common
    part of H. W itself is read from the module, for some classes at a time.
    """

    def __init__(self, problem: Linearised, features: Features) -> None:
        noise = problem.noise
        self.problem, self.weight, self.live = problem, features.head.weight, features.live
        b, count = self.live.shape
        versions = len(problem.weights)
        sums = problem.values.new_zeros(versions, b, 1 + count, 1 + count)
        place = torch.zeros_like(problem.target)
        if count <= problem.row_budget:
            pieces = iter([pulled_rows(features.map, noise, self.live)])
        else:
            pieces = column_ranges(features.map, noise, self.live, problem.row_budget)
        for rows in pieces:
            with self._clock():
                for version, weight in enumerate(problem.weights):
                    for part in column_parts(mean_rows(rows, weight)):
                        # jac_cov multiplies differences to the target's row: here a row of zeros
                        block = part.new_zeros(b, 1 + count, part.shape[2], dtype=torch.float64)
                        block[:, 1:] = part
                        jac_cov_accumulate(sums[version], block, place)
        self.gram = sums[:, :, 1:, 1:]
        if self.weight.dtype == torch.float64:
            largest = self.gram.diagonal(dim1=2, dim2=3).amax((0, 2)).sqrt()
            check_range(largest[:, None] * self.weight.abs().amax(1))

    @property
    def features(self) -> int:
        return self.live.shape[1]

    def _clock(self) -> contextlib.AbstractContextManager:
        return self.problem.logits.meter.clock("covariance")

    def _differences(self, classes: Tensor) -> Tensor:
        """Rows W_t - W_i of ``classes`` [b, m]: ``[b, m, k]`` float64."""
        live = self.live[:, None]
        own = self.weight[self.problem.target[:, None, None], live].double()
        return own - self.weight[classes[:, :, None], live]

    def norms(self) -> Tensor:
        """||u_i|| of all classes ``[L, b, C]``."""
        b, count = self.live.shape
        every = torch.arange(len(self.weight), device=self.live.device).expand(b, -1)
        each = 32 + 16 * len(self.gram)  # bytes for a number of dW
        at_once = min(_DIFFERENCES, self.problem.row_bytes // each) // (b * count)
        out = []
        with self._clock():
            for part in every.split(max(1, at_once), dim=1):
                d = self._differences(part)
                out.append((d @ self.gram).mul_(d).sum(-1))
            return torch.cat(out, 2).clamp_min(0).sqrt()

    def rows(self, classes: Tensor) -> Tensor:
        """Rows whose products are those of the u_i of ``classes`` [b, m]: ``[L, b, m, k]``.

        dW V sqrt(lambda) with H H^T = V diag(lambda) V^T: k numbers a class in place of m. Zero for
        the target, which also fills unused places.
        """
        m = classes.shape[1]
        needed = factor_bytes(len(self.gram)) * m * self.features
        self.problem.check_fits(needed, f"the factor of the {m} classes that matter")
        with self._clock():
            values, vectors = torch.linalg.eigh(self.gram)
            root = vectors.mul_(values.clamp_min_(0).sqrt_()[..., None, :])
            return self._differences(classes) @ root

    def scatter(self, classes: Tensor) -> Tensor:
        """sum_d u_d u_d^T over ``classes`` [b, m] (the target first): ``[L, b, m, m]``."""
        with self._clock():
            d = self._differences(classes)
            out = d @ self.gram @ d.mT
            return ((out + out.mT) / 2).contiguous()


def gram_bytes(problem: Linearised, count: int) -> int:
    """Peak for the products of one input's ``count`` features: H H^T, its eigenvectors with what
    LAPACK works on, and the columns of H that are converted at a time."""
    columns = 3 * 8 * min(1024, problem.noise.dim) * (1 + count)
    return 8 * (len(problem.weights) + 6) * (1 + count) ** 2 + columns


def factor_bytes(versions: int) -> int:
    """For each number of a factor [m, k]: those of all versions, and copies of one in the integral."""
    return 8 * versions + 40


def factorised(problem: Linearised, features: Features) -> Iterator[tuple[Tensor, Factorised]]:
    """The inputs in pieces that fit in the budget: (numbers, their factor)."""
    count, classes = features.live.shape[1], problem.values.shape[2]
    each = gram_bytes(problem, count) + problem.pair_bytes * min(count, classes) ** 2
    if classes > count:
        each += factor_bytes(len(problem.weights)) * classes * count
    at_once = min(problem.rows_at_once // count, problem.inputs_at_once(each))
    every = torch.arange(len(problem.target), device=problem.target.device)
    for rows in every.split(max(1, at_once)):
        yield rows, Factorised(problem.subset(rows), features.subset(rows))
