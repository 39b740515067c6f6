"""Batch norms put into the convolutions before them: fewer operations in every pass."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ..network import Network, first_line, full_float32
from .models import LoadedModel

#: For each batch norm, the layers whose output it may be folded into and that output's dimensions: with
#: more, a batch norm behind a linear layer normalises along another axis than the layer's own.
_PAIRS = {
    nn.BatchNorm1d: {nn.Conv1d: 3, nn.Linear: 2},
    nn.BatchNorm2d: {nn.Conv2d: 4},
    nn.BatchNorm3d: {nn.Conv3d: 5},
}
#: Noisy copies of the example, of each noise level, at which logits are compared beside itself.
_COPIES = 2


def fold_batch_norms(loaded: LoadedModel, x: Tensor, sigmas: tuple[float, ...] = ()) -> LoadedModel:
    """A copy of the model in which each batch norm that follows a convolution or a linear layer alone is
    part of that layer.

    Layers that are called twice, whose parameters are read elsewhere or that carry hooks stay as they
    are. The same function up to rounding, which is checked at the example ``x`` [1, ...] and at noisy
    copies of it; its name and fingerprint say that it is another model.

    Raises:
        ValueError: torch.fx cannot trace the model, or finds nothing to fold; the logits change.
    """
    model = loaded.model
    if not isinstance(model, nn.Module):
        raise _refused(loaded, "a model that is no nn.Module")
    x = _with_noise(x.nan_to_num(), sigmas)
    network = Network("evaluate", model, loaded.preprocessing, x)
    before = _logits(network, x)
    try:
        folded, count = _folded(model, x[:1].clone())  # a model may work in place on it
    except Exception as error:  # whatever a model's forward does with a stand-in for its input
        why = f"a model that torch.fx cannot trace ({type(error).__name__}: {first_line(error)})"
        raise _refused(loaded, why) from error
    if not count:
        raise _refused(loaded, "a model without batch norms right behind convolutions")
    after = _logits(Network("evaluate", folded, loaded.preprocessing, x), x)
    finite = before[before.isfinite()]
    if not len(finite):
        raise _refused(loaded, "a model without a finite logit at the first example")
    gap = torch.where(before == after, 0.0, (before - after).abs()).max()  # -inf: classes left out
    size = finite.max() - finite.min()
    if not gap <= network.rounding() * size:
        raise _refused(loaded, f"a model whose logits it changes by {gap:.2g} of {size:.2g}")
    # Of the model that was folded: what is computed from its weights differs in last bits between devices.
    digest = hashlib.sha256(f"{loaded.fingerprint}, batch norms folded".encode()).hexdigest()
    name = f"{loaded.name}, batch norms folded"
    return replace(loaded, model=folded, name=name, fingerprint=digest)


def _logits(network: Network, x: Tensor) -> Tensor:
    with torch.no_grad(), full_float32():
        return torch.cat([network(row.to(network.work_dtype)).double() for row in x.split(1)])


def _with_noise(x: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """x [1, ...] and copies with noise: a branch that was lost in tracing may need it to be taken."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_COPIES, *x.shape[1:], generator=generator).to(x.device)
    return torch.cat([x, *((x + sigma * noise).to(x.dtype) for sigma in sigmas)])


class _Logits(nn.Module):
    """The model as part of another: its own hooks are traced, too, and of objects the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        return out if isinstance(out, (Tensor, fx.Proxy)) else getattr(out, "logits", out)


def _folded(model: nn.Module, x: Tensor) -> tuple[nn.Module, int]:
    """A folded copy, and how many batch norms went into it."""
    traced = fx.symbolic_trace(_Logits(copy.deepcopy(model)))
    with torch.no_grad():
        ShapeProp(traced).propagate(x)
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
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval(), count


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


def _refused(loaded: LoadedModel, why: str) -> ValueError:
    return ValueError(
        f"evaluate: fold_batch_norm must be left out for {why}, got it for {loaded.name}"
    )
