"""``Estimator``: the estimators in the shape of Captum's attribution methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .estimators import ESTIMATORS
from .jacobian import check_choice
from .network import owning_module
from .options import check_options
from .robustness import OPTIONS, RobustnessResult, robustness


class Estimator:
    """One estimator bound to a forward function and a noise level.

    Args:
        forward_func: ``forward_func(inputs, *additional_forward_args) -> logits [B, C]``; a module in
            eval mode, or any callable.
        sigma: as for :func:`mvnrob.robustness`.
        method: of :func:`mvnrob.robustness`.
        options: anything else it takes.

    ``Estimator(model, 0.1).estimate(inputs, target=labels)`` is
    ``mvnrob.robustness(model, inputs, 0.1, target=labels)``.

    What an estimate means and costs, and where it is from, is said in :func:`mvnrob.robustness`; binding
    costs nothing.

    Raises:
        TypeError, ValueError: a bad method or option; the others when ``estimate`` is called, as
            :func:`mvnrob.robustness` does.
    """

    def __init__(
        self, forward_func: Callable, sigma, *, method: str = "taylor", **options: Any
    ) -> None:
        check_choice("Estimator", "method", method, tuple(ESTIMATORS))
        if not callable(forward_func):
            raise TypeError(
                f"Estimator: forward_func must be callable, got {type(forward_func).__name__}"
            )
        check_options(
            "Estimator", options, known=OPTIONS, own=("model", "x", "sigma", "method", "target")
        )
        self.forward_func, self.sigma, self.method = forward_func, sigma, method
        self.options = options

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        name = getattr(self.forward_func, "__name__", type(self.forward_func).__name__)
        return f"Estimator({name}, {self.sigma!r}, method={self.method!r}{options})"

    def estimate(
        self,
        inputs: Tensor,
        target: int | Tensor | list[int] | None = None,
        additional_forward_args: Any = None,
    ) -> RobustnessResult:
        """P(argmax = target) for ``inputs [B, *shape]``.

        ``target``: None for the prediction, a class, or one per input. ``additional_forward_args``: a
        value or a tuple, the same for all inputs; a tensor of one row is repeated for each noisy copy.
        Rows of their own for several inputs are refused: estimate such inputs one at a time.

        Returns :class:`mvnrob.RobustnessResult`. Errors and cost: :func:`mvnrob.robustness`.
        """
        model = self.forward_func
        if additional_forward_args is not None:
            extra = additional_forward_args
            extra = extra if isinstance(extra, tuple) else (extra,)
            if len(inputs) > 1 and any(
                isinstance(a, Tensor) and a.dim() > 0 and len(a) == len(inputs) for a in extra
            ):
                raise ValueError(
                    "Estimator: additional_forward_args must be shared by the inputs, got a tensor "
                    "with one row for each; estimate those inputs one at a time"
                )
            model = _Bound(self.forward_func, extra)
        return robustness(
            model, inputs, self.sigma, method=self.method, target=target, **self.options
        )


class _Bound(torch.nn.Module):
    """The forward function with its other arguments; rows of single-row tensors are repeated."""

    def __init__(self, forward_func: Callable, extra: tuple[Any, ...]) -> None:
        super().__init__()
        self._function, self._extra = forward_func, extra
        # Seen as the model that it is: robustness asks whether it is in eval mode.
        self.inner = owning_module(forward_func)
        self.training = False

    def forward(self, x: Tensor):
        extra = [
            a.expand(len(x), *a.shape[1:])
            if isinstance(a, Tensor) and a.dim() > 0 and len(a) == 1
            else a
            for a in self._extra
        ]
        return self._function(x, *extra)
