"""What is measured of a model once for each form of its inputs, and known in later calls."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .network import Network

_Found = TypeVar("_Found")
#: Forms of a module that are known at a time.
_MOST_FORMS = 64
#: By the ids of modules that are alive.
_known: dict[int, tuple[weakref.ref[nn.Module], dict]] = {}


def once(what: str, network: Network, x: Tensor, measure: Callable[[], _Found]) -> _Found:
    """``measure()``, or what it gave for this module at inputs of this form; of other callables, which do not
    show when they change, every time.

    A form is an input's shape, dtype and device, autocast's state, and of the model its parts and the shapes,
    dtypes and ``requires_grad`` of its weights. A module that has been changed otherwise, by the numbers in its
    weights for instance, is taken to need as much memory as before. With what is known comes the number of
    classes; where that, or what hangs on it, turns out to be wrong, :func:`forget`.
    """
    module = network.model
    if not isinstance(module, nn.Module):
        return measure()
    form = what, tuple(x.shape[1:]), *network.form(), *_parts(module)
    known = _of(module)
    if form not in known:
        found = measure()
        if len(known) >= _MOST_FORMS:  # a module that makes its parts anew
            known.clear()
        known[form] = found, network.classes
        return found
    found, classes = known[form]
    if network.classes is None:
        network.classes, network.classes_of_before = classes, True
    return found


def forget(network: Network, what: str | None = None) -> None:
    """What is known of the model, or ``what`` of it: it has become another one."""
    known = _known.get(id(network.model), (None, {}))[1]
    for form in [form for form in known if what in (None, form[0])]:
        del known[form]


def measured_anew(call: Callable) -> Callable:
    """``call(network, ...)``, once more where it is refused by what an earlier call knew of the network, which may
    have changed since: before a pass of its own has shown how many classes it has."""

    @functools.wraps(call)
    def wrapped(network: Network, *arguments):
        try:
            return call(network, *arguments)
        except ValueError:
            if not network.classes_of_before:
                raise
        forget(network)
        network.classes, network.classes_of_before = None, False
        return call(network, *arguments)

    return wrapped


def graph_bytes(network: Network, x: Tensor) -> int:
    """:meth:`Network.graph_bytes` of an input like those of ``x`` [B, ...], B >= 1."""
    return once("graph", network, x, lambda: network.graph_bytes(x[:1]))


def pass_bytes(network: Network, x: Tensor, kind: str = "pass") -> int:
    """:meth:`Network.pass_bytes` of one; ``kind`` tells apart what holds around the pass."""
    return once(kind, network, x, lambda: network.pass_bytes(x[:1]))


def _of(module: nn.Module) -> dict:
    key = id(module)
    if key not in _known:
        _known[key] = weakref.ref(module, lambda _: _known.pop(key, None)), {}
    return _known[key][1]


def _parts(module: nn.Module) -> tuple:
    weights = tuple(
        (part.dtype, None if is_lazy(part) else part.shape, part.requires_grad)
        for part in module.parameters()
    )
    return tuple((name, type(part), id(part)) for name, part in module.named_modules()), weights
