"""Derivatives of an op, for autograd and for the transforms of torch.func."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _ops


def _nothing(ctx, inputs, output) -> tuple[Tensor | None, ...]:
    return ()


#: By the names of their ops.
_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {}


def refuse(message: str) -> Callable:
    """A backward, or a jvp, of derivatives that are not built."""

    def refused(ctx, *args):
        raise NotImplementedError(message)

    return refused


def _primal(t: Tensor | None) -> Tensor | None:
    return None if t is None else forward_ad.unpack_dual(t).primal


def along_tangents(slopes: tuple, tangents: tuple) -> Tensor:
    """``[B]``: the slopes ``[B, ...]`` of each argument times its tangent, summed; a tangent of None is
    zero."""
    total = 0.0
    for slope, tangent in zip(slopes, tangents, strict=True):
        if tangent is not None:
            total = total + (slope * tangent).flatten(1).sum(1, dtype=torch.float64)
    return total.to(slopes[0].dtype)


def register(name: str, backward: Callable, jvp: Callable, save: Callable = _nothing) -> Callable:
    """torch.library.register_autograd for the op ``mvnrob::<name>``; returns what calls the op.

    ``save(ctx, inputs, output)`` returns the tensors that ``backward(ctx, *cotangents)`` finds in
    ``ctx.saved_tensors``, and which ``jvp(ctx, saved, *tangents)`` is given. What register_autograd makes
    has no forward mode, and torch refuses it within torch.func's transforms (grad, vjp, jacrev); there and
    among dual numbers the callable goes through an autograd.Function.
    """
    op = getattr(torch.ops.mvnrob, name)

    def save_for_backward(ctx, inputs, output):
        ctx.save_for_backward(*save(ctx, inputs, output))

    def save_for_both(ctx, inputs, output):
        saved = save(ctx, inputs, output)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    def forward_mode(ctx, *tangents):
        # torch calls it with forward mode off, where an outer derivative in forward mode would be zero.
        with forward_ad._set_fwd_grad_enabled(True):
            saved, tangents = (
                tuple(map(_primal, given)) for given in (ctx.saved_tensors, tangents)
            )
            return jvp(ctx, saved, *tangents)

    torch.library.register_autograd(f"mvnrob::{name}", backward, setup_context=save_for_backward)
    function = type(
        name,
        (torch.autograd.Function,),
        {
            "forward": staticmethod(lambda *args: _ops.run(op, *args)),
            "setup_context": staticmethod(save_for_both),
            "backward": staticmethod(backward),
            "jvp": staticmethod(forward_mode),
        },
    )

    _FUNCTIONS[name] = function

    def call(*args):
        if torch.compiler.is_compiling():
            if forward_ad._current_level >= 0:
                # In the graph it would have no tangents, and nothing would say so.
                torch._dynamo.graph_break()
                return function.apply(*args)
            return op(*args)
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return function.apply(*args)
        return _ops.run(op, *args)

    return call


def register_vmap(name: str, rule: Callable) -> None:
    """``rule(op, info, in_dims, *args)`` for the op ``mvnrob::<name>``, within torch.func's derivatives
    and without; what it calls, below the map, is ``op``."""
    op = getattr(torch.ops.mvnrob, name)
    torch.library.register_vmap(f"mvnrob::{name}", functools.partial(rule, op))
    function = _FUNCTIONS.get(name)
    if function is not None:

        def mapped(info, in_dims, *args):
            return rule(function.apply, info, in_dims, *args)

        function.vmap = staticmethod(mapped)
