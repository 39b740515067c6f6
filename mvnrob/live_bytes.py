"""Memory that a forward pass takes, counted operation by operation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is active, ``most`` becomes the most bytes alive at once in tensors that torch's
    operations made: not those that were there before (inputs, weights and views of them), nor what
    kernels take and give back within an operation, nor arrays of other libraries. Needs no gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks. Otherwise it loads its compiler with the first operation, which takes seconds."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        # An address is another storage's only after its weak reference is gone.
        self._live = {at: kept for at, kept in self._live.items() if not kept[0].expired()}
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in given:
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self._live.values()))
        return out


def _storages(tree) -> list[torch.UntypedStorage]:
    return [
        leaf.untyped_storage()
        for leaf in tree_leaves(tree)
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided
    ]
