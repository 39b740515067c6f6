"""Batch norms put into the convolutions before them: fewer operations in every pass."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ..network import first_line
from .models import LoadedModel
from .rewritten import Unfit, rewritten

#: For each batch norm, the layers whose output it may be folded into and that output's dimensions: with
#: more, a batch norm behind a linear layer normalises along another axis than the layer's own.
_PAIRS = {
    nn.BatchNorm1d: {nn.Conv1d: 3, nn.Linear: 2},
    nn.BatchNorm2d: {nn.Conv2d: 4},
    nn.BatchNorm3d: {nn.Conv3d: 5},
}


def fold_batch_norms(loaded: LoadedModel, x: Tensor, sigmas: tuple[float, ...] = ()) -> LoadedModel:
    """A copy of the model in which each batch norm that follows a convolution or a linear layer alone is
    part of that layer.

    Layers that are called twice, whose parameters are read elsewhere or that carry hooks stay as they
    are.

    Raises:
        ValueError: torch.fx cannot trace the model, or finds nothing to fold; see ``rewritten``.
    """
    return rewritten(
        loaded, x, sigmas, _folded, option="fold_batch_norm", name="batch norms folded"
    )


class _Logits(nn.Module):
    """The model as part of another: its own hooks are traced, too, and of objects the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        return out if isinstance(out, (Tensor, fx.Proxy)) else getattr(out, "logits", out)


def _folded(model: nn.Module, x: Tensor) -> nn.Module:
    try:
        traced = fx.symbolic_trace(_Logits(copy.deepcopy(model)))
        with torch.no_grad():
            ShapeProp(traced).propagate(x)
    except Exception as error:  # whatever a model's forward does with a stand-in for its input
        why = f"a model that torch.fx cannot trace ({type(error).__name__}: {first_line(error)})"
        raise Unfit(why) from error
    graph, modules = traced.graph, dict(traced.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[n.target]) for n in graph.nodes if n.op == "call_module")
    read = {n.target.rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
    read = {id(modules[name]) for name in read if name in modules}
    count = 0
    for node in list(graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        # after the first of two batch norms in a row the layer is not the model's any more
        layer, norm = traced.get_submodule(before.target), modules[node.target]
        dim = _PAIRS.get(type(norm), {}).get(type(layer))
        if (
            dim is None
            or not norm.track_running_stats
            or len(before.meta["tensor_meta"].shape) != dim
        ):
            continue
        if calls[id(layer)] > 1 or id(layer) in read or _hooks(layer) or _hooks(norm):
            continue
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        traced.set_submodule(before.target, fuse(layer, norm))
        node.replace_all_uses_with(before)
        graph.erase_node(node)
        count += 1
    if not count:
        raise Unfit("a model without batch norms right behind convolutions")
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


def _hooks(module: nn.Module) -> bool:
    """Also those by which ``weight_norm``, ``spectral_norm`` and pruning set weights before each call."""
    return any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )
