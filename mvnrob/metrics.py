"""``AverageCaseRobustness``: the estimators as a torchmetrics metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._extras import require
from .jacobian import check_choice
from .options import check_int, check_options
from .robustness import METHODS, OPTIONS, robustness

_torchmetrics = require("torchmetrics", "torchmetrics", "metrics")

#: Arguments of robustness that the metric sets itself.
_OWN = ("model", "x", "sigma", "method", "target", "first_index")
REDUCTIONS = ("mean", "none", "class")


class AverageCaseRobustness(_torchmetrics.Metric):
    """P(argmax f(x + noise) = target) over batches of inputs.

    Args:
        model: the classifier, as for :func:`mvnrob.robustness`; in eval mode whenever ``update`` runs.
        sigma: the noise level, one number, raw input units.
        method: of :func:`mvnrob.robustness`.
        reduction: ``"mean"``: the mean, a number; ``"none"``: each input's, ``[N]``; ``"class"``: means
            by the target given to ``update``, ``[num_classes]``, NaN where a class has no input.
        num_classes: for ``"class"``.
        options: anything else that :func:`mvnrob.robustness` takes, ``{"n_samples": 1000}``; not as
            arguments of their own, which are torchmetrics'.

    ``update(x, target=None)`` takes inputs ``[B, *shape]`` and labels ``[B]``; without labels the
    prediction is the target. ``compute()`` gives float64. Inputs that have no answer (NaN logits) are
    left out of means. Noise of the input that is numbered i on its process is a function of the seed
    and i: ``update`` and ``metric(x)`` go on with the number of inputs so far, ``reset`` starts over.

    The model belongs to the caller: it is no state, is not moved, and is not in ``state_dict``. In a
    ``MetricCollection`` each metric runs on its own: torchmetrics' compute groups, which share what one
    metric has computed, never take it in.

    Raises:
        TypeError, ValueError: a bad argument; in ``update`` as :func:`mvnrob.robustness`, and for
            ``"class"`` a target (or prediction) that is not below ``num_classes``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(
        self,
        model: Callable,
        sigma: float,
        *,
        method: str = "taylor",
        reduction: str = "mean",
        num_classes: int | None = None,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in kwargs.keys() & OPTIONS:
            raise TypeError(f"metrics: {name} must be in options, got it as an argument of its own")
        super().__init__(**kwargs)
        check_choice("metrics", "method", method, METHODS)
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float)):
            raise TypeError(f"metrics: sigma must be a number, got {type(sigma).__name__}")
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"metrics: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}"
            )
        if (num_classes is None) == (reduction == "class"):
            raise ValueError(
                f"metrics: num_classes must go with reduction 'class', got {num_classes!r} "
                f"for {reduction!r}"
            )
        if num_classes is not None:
            check_int("metrics", "num_classes", num_classes, 1)
        check_options("metrics", options, known=OPTIONS, own=_OWN)
        # In a list: a Module set as an attribute would be registered and moved with the metric.
        self._model = [model]
        self._sigma, self._method, self._reduction = float(sigma), method, reduction
        self._classes, self._options = num_classes, dict(options or {})
        # The number of the input that the states begin with: not 0 within forward alone.
        self._first = self._batch_first = 0
        self.add_state("prob", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")
        # A collection computes once for metrics whose states are close after their first batch, and the
        # answers of different models, sigmas and methods may well be. NaN is close to nothing.
        self.add_state("apart", default=torch.tensor(math.nan), dist_reduce_fx="max")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a batch and returns its own value."""
        # torchmetrics resets the states on the way, and puts them back afterwards.
        self._batch_first = self._inputs()
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._first = self._batch_first = 0

    def update(self, x: Tensor, target: Tensor | None = None) -> None:
        """Adds a batch."""
        result = robustness(
            self._model[0],
            x,
            self._sigma,
            method=self._method,
            target=target,
            first_index=self._first + self._inputs(),
            **self._options,
        )
        if self._classes is not None and len(x) and int(result.target.max()) >= self._classes:
            raise ValueError(
                "metrics: target (or the prediction) must lie in [0, num_classes), got "
                f"{int(result.target.max())} for num_classes {self._classes}"
            )
        self.prob.append(result.prob)
        self.target.append(result.target)
        self.apart = self.apart.to(result.prob.device)  # where processes join the others, too

    def compute(self) -> Tensor:
        """The probabilities, reduced."""
        prob = _joined(self.prob, torch.float64)
        if self._reduction == "none":
            return prob
        if self._reduction == "mean":
            return prob.nanmean()
        target, known = _joined(self.target, torch.int64), ~prob.isnan()
        size = (self._classes,)
        total = prob.new_zeros(size).index_add(0, target[known], prob[known])
        count = prob.new_zeros(size).index_add(0, target[known], torch.ones_like(prob[known]))
        return total / count

    def reset(self) -> None:
        """Forgets every batch; the next input is number 0 again."""
        super().reset()
        self._first = self._batch_first

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Joins the processes' states."""
        if isinstance(self.prob, list) and not self.prob:
            # torchmetrics would send float32 for both, which ends the process that waits for others.
            self.prob.append(torch.zeros(0, dtype=torch.float64, device=self.device))
            self.target.append(torch.zeros(0, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def _inputs(self) -> int:
        """How many the states hold."""
        return len(_joined(self.prob, torch.float64))


def _joined(state: list[Tensor] | Tensor, dtype: torch.dtype) -> Tensor:
    """A list before the processes' states are joined, a tensor after."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.zeros(0, dtype=dtype)
