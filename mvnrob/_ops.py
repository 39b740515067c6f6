"""What memory does not hold, in torch's own class of error: of the native ops, and of torch's on a CPU."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import _load  # noqa: F401  (the ops)

#: What csrc/out_of_memory.h says, in a RuntimeError: the requirement, its bytes where they are known.
_FAILED = re.compile(r"(\w+: memory must hold (?:(\d+) bytes)?.*), got an allocation that failed")

#: What torch says where a CPU's memory does not do.
_REFUSALS = ("DefaultCPUAllocator: ", "std::bad_alloc")


def call(name: str, *args):
    """The op ``mvnrob::<name>``. Raises torch.OutOfMemoryError, on a CPU too, where memory does not hold
    its outputs or workspaces: callers go on with fewer rows then."""
    op = getattr(torch.ops.mvnrob, name)
    # A graph has the op itself, whose error is the RuntimeError.
    return op(*args) if torch.compiler.is_compiling() else run(op, *args)


def run(op: Callable, *args):
    """The same for the op itself, outside of torch.compile."""
    try:
        return op(*args)
    except torch.OutOfMemoryError:  # of an op within this one
        raise
    except RuntimeError as error:
        failed = _FAILED.match(str(error))
        if failed is None:
            raise
        must, size = failed.groups()
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    raise torch.OutOfMemoryError(f"{must}, got {_refusal(int(size or 0), device)}")


def _refusal(size: int, device: torch.device) -> str:
    """Why the allocator refuses so many bytes; an error of another kind, such as that of a kernel which
    ran before, is raised."""
    try:
        torch.empty(size, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        return str(error).partition("\n")[0]
    except RuntimeError as error:
        if device.type != "cpu":  # the CPU's allocator has no class of its own
            raise
        return str(error).partition("\n")[0]
    return "less beside the op's other memory"


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """torch.OutOfMemoryError on a CPU too, whose allocator raises RuntimeError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, MemoryError) as error:
        refused = isinstance(error, MemoryError) or any(text in str(error) for text in _REFUSALS)
        if not refused:
            raise
        raise torch.OutOfMemoryError(str(error).partition("\n")[0]) from error
