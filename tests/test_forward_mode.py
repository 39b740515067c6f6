"""Layers that are linear in their input: torch's derivatives, for one operation each."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mvnrob import batch_norms
from mvnrob.batch_norms import BatchNorms
from mvnrob.forward_mode import LayerRules
from mvnrob.robustness import robustness


def made(*shape, seed=0):
    """Numbers without a pattern; torch.func.vmap refuses random ones."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    return (steps.square() * 0.37 + 1.3 * steps + seed).sin()


def batch_norm(x, weight=None, bias=None):
    mean, variance = made(3, seed=7), made(3, seed=8).exp()
    return functional.batch_norm(x, mean, variance, weight, bias, eps=0.1)


POINTWISE = made(5, 3, 1), made(5)
FIVE, SIX = made(5, seed=1), made(6, seed=1)
SQUARE = made(6, 1, 3, 3), made(6)
LAYERS = {
    "linear": ((4, 3), lambda x: functional.linear(x, made(5, 3), made(5))),
    "linear without bias": ((4, 2, 3), lambda x: functional.linear(x, weight=made(5, 3))),
    "conv1d": ((4, 3, 7), lambda x: functional.conv1d(x, *POINTWISE, stride=2)),
    "conv2d": ((4, 3, 6, 6), lambda x: functional.conv2d(x, *SQUARE, 2, 1, groups=3)),
    "conv2d, same": ((4, 3, 5, 6), lambda x: functional.conv2d(x, made(2, 3, 3, 2), padding="same")),
    "conv3d": ((2, 3, 4, 4, 4), lambda x: functional.conv3d(x, made(2, 3, 2, 2, 2), made(2))),
    "conv_transpose2d": (
        (4, 3, 4, 4),
        lambda x: functional.conv_transpose2d(x, made(3, 2, 3, 3), made(2), stride=2),
    ),
    "batch_norm": ((4, 3, 5, 5), lambda x: batch_norm(x, made(3), made(3))),
    "batch_norm, bare": ((4, 3), batch_norm),
    "batch_norm, scaled": ((4, 3, 5), lambda x: batch_norm(x, weight=made(3))),
    "aten": (
        (4, 3, 6, 6),
        lambda x: torch.ops.aten.convolution.default(
            x, *SQUARE, [1, 1], [1, 1], [1, 1], False, [0, 0], 3
        ),
    ),
    "aten batch_norm": (
        (4, 3, 5),
        lambda x: torch.ops.aten.batch_norm.default(
            x, made(3), None, made(3), made(3).exp(), False, 0.1, 1e-5, True
        ),
    ),
    "pad": ((4, 3, 5, 4), lambda x: functional.pad(x, (1, 2, 0, 3), value=0.7)),
    "pad, channels_last": (
        (4, 3, 5, 4),
        lambda x: functional.pad(x.permute(0, 2, 3, 1).exp().permute(0, 3, 1, 2), (1, 2, 0, 3)),
    ),
    "pad of all dimensions": (
        (4, 3, 5, 4),
        lambda x: functional.pad(x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), (1, 0, 0, 2, 1, 1)),
    ),
    "layer_norm": ((4, 3, 5), lambda x: functional.layer_norm(x, (5,), made(5), made(5))),
    "layer_norm, bare": ((4, 3, 5), lambda x: functional.layer_norm(x, (3, 5), eps=0.1)),
    "layer_norm, made": ((4, 3, 5), lambda x: functional.layer_norm(x, (5,), x[0, 0], x[0, 1])),
    "aten layer_norm": (
        (4, 3, 5), lambda x: torch.ops.aten.layer_norm.default(x, [5], made(5), None, 0.1, False)
    ),
    "group_norm": ((4, 6, 3, 2), lambda x: functional.group_norm(x, 3, made(6), made(6))),
    "group_norm, bare": ((4, 6), lambda x: torch.group_norm(x, 2)),
    "times": ((4, 3, 5), lambda x: 2.5 * (made(3, 1) * (x * made(5)) * 3) * nn.Parameter(made(5))),
    "times a larger one": ((4, 1, 5), lambda x: x * made(3, 1)),
    "over": ((4, 3, 5), lambda x: torch.div(x / 2.5, made(5, seed=1)) / torch.tensor(3)),
    "under": ((4, 3, 5), lambda x: made(5) / (x + 2) + 1 / (x + 3)),
    "rounded": ((4, 3), lambda x: torch.div(x, 0.3, rounding_mode="floor") + x),
    "plus": ((4, 3, 5), lambda x: 1 + (made(3, 1) + (x + made(4, 3, 5)) + 2) + nn.Parameter(made(5))),
    "plus a larger one": ((4, 1, 5), lambda x: made(3, 1) + x),
    "plus a multiple": ((4, 3), lambda x: torch.add(x, made(3), alpha=2.5) + torch.sub(made(3), x, alpha=3)),
    "minus": ((4, 3), lambda x: made(3) - (x - made(3) - 2)),
    "one minus": ((4, 3), lambda x: (1 - x) * x),
    "a number": ((4, 3), lambda x: x.sum() * made(3) + (x.mean() + 2)),
    "aten arithmetic": (
        (4, 3),
        lambda x: torch.ops.aten.sub.Tensor(
            torch.ops.aten.mul.Tensor(made(3), torch.ops.aten.div.Tensor(x, made(3, seed=1))), made(3)
        ),
    ),
    "by keywords": (
        (4, 3),
        lambda x: torch.add(x, other=1.0).mul(other=made(3)).div(other=2) - torch.mul(input=x, other=made(3)),
    ),
    "aten by keywords": ((4, 3), lambda x: torch.ops.aten.add.Tensor(self=x, other=made(3))),
    "norms by keywords": (
        (4, 6),
        lambda x: torch.layer_norm(x, (6,), SIX, eps=0.1, cudnn_enable=False)
        + torch.group_norm(input=x, num_groups=2, cudnn_enabled=False),
    ),
    # what works in place on a sum leaves x as it is
    "plus, in place": ((4, 3), lambda x: (x + 1).mul_(x) + x),
    "vmap over constants": ((4, 3), lambda x: torch.func.vmap(lambda c: x * c + c - x / c)(made(6, 3))),
    "vmap over rows": (
        (4, 3, 5),
        lambda x: torch.func.vmap(lambda one: functional.layer_norm(one * 2 + made(5), (5,)))(x),
    ),
    "jvp within": (
        (4, 3),
        lambda x: torch.func.jvp(lambda y: y * 2 * made(3) + y * x, (made(4, 3),), (x.cos(),))[1],
    ),
    "reflected": ((4, 3, 5), lambda x: functional.pad(x, (1, 2), mode="reflect")),
    # weights that are variables, too
    "made weights": (
        (4, 3),
        lambda x: functional.linear(x, x.mean(0).outer(x[0]) + 1, x.square().mean(0)),
    ),
    "made bias": ((4, 3, 7), lambda x: functional.conv1d(x, POINTWISE[0], bias=x[0, 0, :5])),
    "made kernel, constant input": (
        (4, 3, 3),
        lambda x: functional.conv2d(made(2, 4, 6, 6), x.unsqueeze(0)),
    ),
    "made norm": ((4, 3, 5), lambda x: batch_norm(x, x[0, :, 0], x[1, :, 2])),
    "made norm, constant input": (
        (2, 3),
        lambda x: batch_norm(made(4, 3, 5), x[0], x[1]),
    ),
    # an ensemble
    "vmap over weights": (
        (4, 3),
        lambda x: torch.func.vmap(lambda w, b: functional.linear(x, w, b))(
            made(6, 5, 3), made(6, 5)
        ),
    ),
    "vmap over norms": (
        (4, 3, 5),
        lambda x: torch.func.vmap(lambda w: batch_norm(x, w, w + 1))(made(6, 3)),
    ),
    "vmap over inputs": (
        (4, 3, 6, 6),
        lambda x: torch.func.vmap(lambda one: functional.conv2d(one, *SQUARE, groups=3))(x),
    ),
    # twice in a row, and through itself
    "twice": (
        (4, 3, 6, 6),
        lambda x: batch_norm(functional.conv2d(x, made(3, 3, 3, 3), padding=1).relu() + x),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_torch_s(name):
    shape, layer = LAYERS[name]
    x, along = made(*shape, seed=1), made(3, *shape, seed=2)
    push = lambda tangent: torch.func.jvp(layer, (x,), (tangent,))
    value, expected = push(along[0])
    all_expected = torch.func.vmap(push)(along)[1]
    for any_layout in (False, True):
        with LayerRules(any_layout=any_layout):
            values = push(along[0])
            together = torch.func.vmap(push)(along)
            assert torch.equal(layer(x), value)
        torch.testing.assert_close(values, (value, expected), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together[0][1], value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together[1], all_expected, rtol=1e-12, atol=1e-12)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
                nn.Conv2d(16, 16, 3, groups=4), nn.BatchNorm2d(16), nn.Hardswish(),
            )  # fmt: skip
            self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def built():
    return Small().eval().double().requires_grad_(False)


def test_a_group_norm_of_a_layout_that_torch_s_rule_refuses():
    x, along = made(4, 3, 2, 6), made(3, 4, 3, 2, 6, seed=1)

    def pushed(layout):
        norm = lambda x: functional.group_norm(layout(x.permute(0, 3, 1, 2)), 2, weight=made(6))
        return torch.func.vmap(lambda tangent: torch.func.jvp(norm, (x,), (tangent,)))(along)

    with LayerRules(any_layout=True):
        torch.testing.assert_close(pushed(lambda x: x), pushed(Tensor.contiguous))


class Operations(TorchDispatchMode):
    """What reaches a backend."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "layer",
    [
        lambda x: x * 2.5,
        lambda x: x / FIVE,
        lambda x: FIVE + x,
        lambda x: functional.layer_norm(x, (5,), FIVE, FIVE),
        lambda x: functional.group_norm(x, 3, SIX, SIX),
    ],
    ids=["times", "over", "plus", "layer_norm", "group_norm"],
)
def test_fewer_operations_than_torch_s(layer):
    """And none by which torch, in Python, finds out what a sum or product with zeros looks like."""
    x, along = made(4, 6, 5), made(3, 4, 6, 5, seed=2)
    push = lambda tangent: torch.func.jvp(layer, (x,), (tangent,))

    def operations():
        with Operations() as seen:
            torch.func.vmap(push)(along)
        return seen.names

    with LayerRules(any_layout=True):
        names = operations()
    assert not any(name.startswith("prims") or "zerotensor" in name for name in names)
    assert len(names) < len(operations())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "layer",
    [
        lambda x: functional.layer_norm(x, (5,), made(5).to(x.dtype), eps=1e-3),
        lambda x: functional.group_norm(x, 3, eps=1e-3),
        lambda x: x * made(5).to(x.dtype) + 3 - made(5).to(x.dtype) / 2,
        lambda x: x * made(5).float() + made(5),
    ],
    ids=["layer_norm", "group_norm", "arithmetic", "promoted"],
)
def test_half_precision(layer, dtype):
    """The dtypes are torch's; norms add in single precision, and differ by one rounding of the answer."""
    x, along = made(4, 6, 5).to(dtype), made(4, 6, 5, seed=2).to(dtype)
    push = lambda x, along: torch.func.jvp(layer, (x,), (along,))
    with LayerRules(any_layout=True):
        got = push(x, along)
    assert [part.dtype for part in got] == [part.dtype for part in push(x, along)]
    exact, few = push(x.double(), along.double()), 8 * torch.finfo(dtype).eps
    for part, wanted in zip(got, exact, strict=True):
        torch.testing.assert_close(part.double(), wanted, rtol=few, atol=few)


@pytest.mark.parametrize("directions", [1, 5])
def test_the_operations_of_a_forward_pass_for_each_direction(directions):
    net, x = built(), made(2, 3, 8, 8)
    along = made(directions, *x.shape, seed=1)

    def flops(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    one = flops(lambda: net(x))
    push = lambda tangent: torch.func.jvp(net, (x,), (tangent,))[1]
    with LayerRules(any_layout=True):
        assert flops(lambda: torch.func.vmap(push)(along)) == (1 + directions) * one
    assert flops(lambda: torch.func.vmap(push)(along)) == (2 + directions) * one


def test_slopes_of_batch_norms_are_computed_once_and_anew_when_they_change(monkeypatch):
    net, x, along = built(), made(2, 3, 8, 8), made(3, 2, 3, 8, 8, seed=1)
    made_anew, compute = [], batch_norms._norm_slope

    def counted(*args):
        made_anew.append(args)
        return compute(*args)

    monkeypatch.setattr(batch_norms, "_norm_slope", counted)
    push = lambda tangent: torch.func.jvp(net, (x,), (tangent,))[1]

    def products():
        return torch.func.vmap(push)(along)

    norms = BatchNorms(net)
    for change, anew in (
        (lambda: None, 0),
        (lambda: net.body[1].running_var.mul_(2.0), 1),
        (lambda: net.body[1].weight.add_(1.0), 1),
        (lambda: setattr(net.body[4], "eps", 0.5), 2),
        (lambda: setattr(net.body[1], "weight", None), 2),
    ):
        change()
        made_anew.clear()
        with LayerRules(any_layout=True, norms=norms):
            got = products()
        assert len(made_anew) == anew
        torch.testing.assert_close(got, products(), rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        fixed = built()  # its tensors tell no changes
    made_anew.clear()
    BatchNorms(fixed)
    BatchNorms(nn.BatchNorm2d(3, track_running_stats=False))
    assert not made_anew


class Laid(nn.Module):
    """Asks for channels_last, as networks for CPUs do; ``torch.func.vmap`` has no such layout."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        x = x.contiguous(memory_format=torch.channels_last)
        x = x.to(x.dtype, memory_format=torch.channels_last)
        return self.net(x.to(memory_format=torch.channels_last))


def exported(net):
    size = {0: torch.export.Dim("rows", min=1)}
    program = torch.export.export(net, (made(2, 3, 8, 8),), dynamic_shapes=(size,))
    return lambda x: program.module()(x)


@pytest.mark.parametrize("way", ["channels_last", "exported"])
def test_networks_as_they_come(way):
    net, x = built(), made(3, 3, 8, 8).sigmoid()
    way = {"channels_last": lambda net: Laid(net).eval(), "exported": exported}[way](net)
    options = {"head": "off", "screen": "sketch", "check": "raise"}
    expected = robustness(net, x, 0.3, **options)
    got = robustness(way, x, 0.3, **options)
    torch.testing.assert_close(got.prob, expected.prob, rtol=0, atol=1e-9)
    assert torch.equal(got.cost.jvp, expected.cost.jvp)


def test_the_network_runs_once_for_all_directions_of_a_layout(monkeypatch):
    seen = []
    net = Laid(built()).eval()
    net.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    robustness(net, made(1, 3, 8, 8).sigmoid(), 0.3, head="off", screen="sketch", check="raise")
    assert max(seen) <= 16  # not a copy of the input for every direction


@pytest.mark.parametrize("any_layout", [False, True])
@pytest.mark.parametrize("ask", [torch.Tensor.contiguous, torch.Tensor.to])
def test_what_is_laid_out_anew_has_its_own_memory(ask, any_layout):
    x = made(2, 3, 4, 4)

    def layer(x):
        return x + ask(x, memory_format=torch.channels_last).mul_(2)

    with LayerRules(any_layout=any_layout):
        value, slope = torch.func.jvp(layer, (x * 1,), (x.cos(),))
    torch.testing.assert_close(value, 3 * x)
    torch.testing.assert_close(slope, 3 * x.cos())


FIRST_CALL = """
import sys, torch, mvnrob
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.LayerNorm(288)
        )
        self.scale, self.head = nn.Parameter(torch.ones(288)), nn.Linear(288, 200)

    def forward(self, x):
        return self.head(self.body((x * 255 - 127) / 128) * self.scale + torch.ones(288))

result = mvnrob.robustness(Net().eval(), torch.rand(1, 3, 8, 8), 0.1, screen="sketch", head="off")
assert result.cost.jvp.item() >= 8
assert "torch._dynamo" not in sys.modules
"""


def test_a_process_s_first_call_does_not_load_torch_s_compiler():
    """Which takes seconds."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
