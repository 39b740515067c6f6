"""The last linear layer: where logits = W h(x) + b, the Jacobian is J = W H.

The w rows of H, the Jacobian of the features h, then stand for all C rows of J: w backward passes
instead of C, and margins' covariances dW (H H^T) dW^T without a C-row Jacobian
(:mod:`mvnrob.factorised`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._checks import warn_caller
from .batch_norms import BatchNorms
from .measured import forget, once
from .network import Network, owning_module, safe_norm

#: Weights converted to float64 at a time.
_CONVERTED = 2**20
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class HeadMismatch(Exception):
    """W h(x) + b is not what the network answered."""


@dataclass(frozen=True)
class Head:
    """``logits = features @ weight.T + bias``: weight ``[C, w]``, the module's own; bias ``[C]`` float64.

    ``named``: the user gave it, so that a mismatch is an error.
    """

    module: nn.Module
    name: str
    weight: Tensor
    bias: Tensor
    named: bool

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def pull(self, cotangent: Tensor) -> Tensor:
        """``cotangent @ weight`` ``[b, w]`` for ``[b, C]``, float64, in parts like the products."""
        size = max(1, _CONVERTED // self.width)
        parts = zip(cotangent.double().split(size, 1), self.weight.split(size), strict=True)
        return sum(c @ w.double() for c, w in parts)

    def products(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """For features ``[b, w]``: ``features @ weight.T`` and the sums of its terms' sizes, each
        ``[b, C]`` float64. The weights are converted in parts."""
        features = features.double()
        sizes = features.abs()
        parts = self.weight.split(max(1, _CONVERTED // self.width))
        product = torch.cat([features @ part.double().T for part in parts], 1)
        return product, torch.cat([sizes @ part.double().abs().T for part in parts], 1)


def _is_linear(module: nn.Module) -> bool:
    """nn.Linear, or a convolution of one place (on pooled features it is the same)."""
    if isinstance(module, _CONVOLUTIONS):
        return (
            set(module.kernel_size) == {1} and module.groups == 1 and set(module.stride) == {1}
        ) and module.padding in ("valid", "same", (0,) * len(module.kernel_size))
    return isinstance(module, nn.Linear)


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has taken the module over: hooks inside would be traced, not called."""
    compiled = getattr(module, "_compiled_call_impl", None)
    return compiled is not None or hasattr(module, "_orig_mod")


def _as_head(module: nn.Module, name: str, named: bool) -> Head:
    weight = module.weight.detach().flatten(1)
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach()
    return Head(module, name, weight, bias.double(), named)


def read_head(op: str, given, network: Network, x: Tensor) -> Head | None:
    """The head that ``given`` names, or the one found, or None.

    Args:
        given: None to look for one, ``"off"``, a module, or its dotted name in the model.
        x: inputs ``[1, *shape]`` at which the answer is compared. ``network.classes`` is known.

    Raises:
        TypeError, ValueError: ``given`` names no linear layer that gives the logits.
    """
    if isinstance(given, str) and given == "off":
        return None
    if given is None:
        return _find_head(network, x)
    want = f"{op}: head must be 'off', an nn.Linear or a 1x1 convolution of the model, or its name"
    name = given if isinstance(given, str) else type(given).__name__
    if isinstance(given, str):
        owner = owning_module(network.model)
        if owner is None:
            raise ValueError(
                f"{op}: head must be a module where the model is not one, got {given!r}"
            )
        try:
            given = owner.get_submodule(given)
        except AttributeError:
            raise ValueError(f"{want}, got {name!r}, which the model does not have") from None
    if not isinstance(given, nn.Module):
        raise TypeError(f"{want}, got {name}")
    if not _is_linear(given):
        raise ValueError(f"{want}, got a {type(given).__name__}")
    head = _as_head(given, name, True)
    if len(head.weight) != network.classes:
        raise ValueError(
            f"{op}: head must have {network.classes} outputs, the number of logits, "
            f"got {len(head.weight)}"
        )
    try:
        with torch.no_grad():
            FeatureNetwork(network, head).checked_logits(x)
    except HeadMismatch as error:
        raise ValueError(f"{op}: head must give the logits, got {error}") from None
    return head


def _find_head(network: Network, x: Tensor) -> Head | None:
    """The linear layer whose output the logits are, bit for bit, if the model shows one."""
    owner = owning_module(network.model)
    if owner is None or any(_is_compiled(part) for part in owner.modules()):
        return None
    name = once("head", network, x, lambda: _name_of_head(owner, network, x))
    if name is None:
        forget(network, "head")  # logits of infinity hide it, for instance
        return None
    return _as_head(owner.get_submodule(name), name, False)


def _name_of_head(owner: nn.Module, network: Network, x: Tensor) -> str | None:
    candidates = {
        name: part
        for name, part in owner.named_modules()
        if _is_linear(part)
        and len(part.weight) == network.classes
        and part.weight.dim() >= 2
        and part.weight.is_floating_point()
    }
    with torch.no_grad(), contextlib.ExitStack() as stack:
        seen = {name: stack.enter_context(_watch(part)) for name, part in candidates.items()}
        logits = network(x)
    for name, calls in reversed(seen.items()):
        if len(calls) != 1 or not isinstance(calls[0][1], Tensor):
            continue
        out = calls[0][1].flatten(1).to(logits.dtype)
        if out.shape != logits.shape or not bool((out.eq(logits) | logits.isnan()).all()):
            continue
        head = _as_head(candidates[name], name, False)
        with contextlib.suppress(HeadMismatch):
            FeatureNetwork(network, head).of_calls(calls, logits)
            return name
    return None


def checked_logits(network: Network, x: Tensor) -> Tensor:
    """The logits at x, whose head gives them or is given up. One that was found is looked for once more: in
    an earlier call the network may have had another, or an input that hides the difference, such as NaN."""
    try:
        return FeatureNetwork(network, network.head).checked_logits(x)
    except HeadMismatch as error:
        if not network.head.named:
            forget(network, "head")
            found = _find_head(network, x[:1])
            if found is not None and found.name != network.head.name:
                network.head = found
                return checked_logits(network, x)
        give_up(network, error)
    return network(x)


def give_up(network: Network, error: HeadMismatch) -> None:
    """A head that the user named is refused; one that was found is given up, with a warning."""
    if network.head.named:
        raise ValueError(f"{network.op}: head must give the logits, got {error}") from error
    warn_caller(
        f"{network.op}: the last linear layer is not used, and every class's row is computed: {error}"
    )
    network.head = None
    forget(network, "head")


@contextlib.contextmanager
def _watch(module: nn.Module) -> Iterator[list]:
    """Collects (first input, output) of every call of the module."""
    calls: list = []

    def keep(_module, args, kwargs, output):
        calls.append((next(iter((*args, *kwargs.values())), None), output))

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


class FeatureNetwork:
    """The head's inputs h(x) as ``[b, w]``, in place of the logits, for a :class:`LogitMap`.

    Every pass in which gradients are recorded compares W h + b with the logits.
    """

    def __init__(self, network: Network, head: Head) -> None:
        self.network, self.head = network, head
        self.op = network.op
        self.batch_tangents = True
        #: append the logits to the features: [b, w + C]
        self.with_logits = False

    def norms(self) -> BatchNorms:
        return self.network.norms()

    @property
    def half(self) -> torch.dtype | None:
        return self.network.half

    def rounding(self) -> float:
        return self.network.rounding()

    def rounds_to_tf32(self) -> bool:
        return self.network.rounds_to_tf32()

    def __call__(self, x: Tensor) -> Tensor:
        features, logits = self._both(x)
        if torch.is_grad_enabled():  # forward mode runs without: its tensors cannot be read
            self._compare(features.detach(), logits.detach())
        return torch.cat([features, logits], 1) if self.with_logits else features

    def checked_logits(self, x: Tensor) -> Tensor:
        """The logits, compared with W h + b."""
        features, logits = self._both(x)
        self._compare(features, logits)
        return logits

    def of_calls(self, calls: list, logits: Tensor) -> Tensor:
        """The features ``[b, w]`` by the head's calls of a pass, compared with its logits."""
        features = self._read(calls, logits)
        self._compare(features, logits)
        return features

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with _watch(self.head.module) as calls:
            logits = self.network(x)
        return self._read(calls, logits), logits

    def _read(self, calls: list, logits: Tensor) -> Tensor:
        name, rows = self.head.name, logits.shape[0]
        if len(calls) != 1:
            raise HeadMismatch(f"{len(calls)} calls of {name!r} in one pass of the model")
        features = calls[0][0]
        if not isinstance(features, Tensor):
            raise HeadMismatch(f"{name!r} called with {type(features).__name__}, not a tensor")
        if features.shape[0] != rows or features.flatten(1).shape[1] != self.head.width:
            raise HeadMismatch(
                f"inputs of shape {list(features.shape)} at {name!r}, not [{rows}, {self.head.width}]"
            )
        return features.flatten(1).to(logits.dtype)

    def compare_derivatives(self, products: Tensor) -> Tensor:
        """Of derivatives ``[b, w + C]`` along one direction, with the logits: those of the features
        ``[b, w]``. W must take them to those of the logits."""
        features, logits = products.split([self.head.width, products.shape[1] - self.head.width], 1)
        product, size = self.head.products(features)
        gap = (product - logits).abs()
        wrong = ~(gap <= self.rounding() * size) & logits.isfinite()
        if wrong.any():
            row, at = wrong.nonzero()[0].tolist()
            raise HeadMismatch(
                f"a difference of {gap[row, at].item():.2g} between the derivatives of logit {at} and "
                f"of the output of {self.head.name!r}, whose terms have size {size[row, at].item():.2g}"
            )
        return features

    def compare_gradients(self, whole: Tensor, factorised: Tensor) -> None:
        """Of gradients ``[b, D]`` of c . logits and of (W^T c) . features, both through one pass in full
        float32: they must be equal."""
        gap, size = safe_norm(whole - factorised), safe_norm(whole)
        size = torch.maximum(size, safe_norm(factorised))
        wrong = ~(gap <= self.rounding() * size) & whole.isfinite().all(1)
        if wrong.any():
            row = int(wrong.nonzero()[0, 0])
            raise HeadMismatch(
                f"a difference of {gap[row].item():.2g} between the gradients of the logits and of the "
                f"output of {self.head.name!r} along one cotangent, of size {size[row].item():.2g}"
            )

    def _compare(self, features: Tensor, logits: Tensor) -> None:
        """The two may differ by rounding: 1e-3 of the terms' sizes in float32 (TF32 included)."""
        head = self.head
        product, size = head.products(features)
        gap = (product + head.bias - logits).abs()
        size += head.bias.abs()
        wrong = ~(gap <= self.rounding() * size) & logits.isfinite()
        if wrong.any():
            row, at = wrong.nonzero()[0].tolist()
            raise HeadMismatch(
                f"a difference of {gap[row, at].item():.2g} between logit {at} and the output of "
                f"{head.name!r}, whose terms have size {size[row, at].item():.2g}"
            )
