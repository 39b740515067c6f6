"""Derivatives of an op, for autograd and for the transforms of torch.func."""

from __future__ import annotations

from collections.abc import Callable

import torch


def _nothing(ctx, inputs, output) -> None:
    pass


def refuse(message: str) -> Callable:
    """A backward, or a jvp, of derivatives that are not built."""

    def refused(ctx, *args):
        raise NotImplementedError(message)

    return refused


def register(name: str, backward: Callable, save: Callable = _nothing) -> Callable:
    """torch.library.register_autograd for the op ``mvnrob::<name>``; returns what calls the op.

    Within torch.func's transforms (grad, vjp, jacrev) what register_autograd makes is refused by
    torch; the callable goes through an autograd.Function there, which they accept.
    """
    op = getattr(torch.ops.mvnrob, name)
    torch.library.register_autograd(f"mvnrob::{name}", backward, setup_context=save)
    function = type(
        name,
        (torch.autograd.Function,),
        {
            "generate_vmap_rule": True,
            "forward": staticmethod(lambda *args: op(*args)),
            "setup_context": staticmethod(save),
            "backward": staticmethod(backward),
            "jvp": staticmethod(
                refuse(
                    f"{name.removesuffix('_backward')}: derivatives must be taken in reverse mode "
                    "(grad, vjp, jacrev), got forward mode (jvp, jacfwd, hessian)"
                )
            ),
        },
    )

    def call(*args):
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return function.apply(*args)
        return op(*args)

    return call
