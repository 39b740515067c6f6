"""ReLU and its like in forward mode: torch's derivatives bit for bit, and who computes them."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mvnrob import forward_mode, rectifiers
from mvnrob.forward_mode import LinearLayers

_aten = torch.ops.aten
M = 3  # directions
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OPS = {
    "relu": functional.relu,
    "torch.relu": torch.relu,
    "Tensor.relu": torch.Tensor.relu,
    "aten.relu": _aten.relu.default,
    "relu6": functional.relu6,
    "hardtanh": functional.hardtanh,
    "aten.hardtanh": lambda x: _aten.hardtanh.default(x, 0, 2),
    "clamp": lambda x: torch.clamp(x, -1, 2.0),
    "Tensor.clamp": lambda x: x.clamp(min=0, max=3),
    "crossed clamp": lambda x: x.clamp(2, -1),
    "nn.ReLU6": nn.ReLU6(),
}
IN_PLACE = {
    "relu, in place": lambda x: functional.relu(x, inplace=True),
    "nn.ReLU": nn.ReLU(inplace=True),
    "relu_": torch.Tensor.relu_,
    "aten.relu_": _aten.relu_.default,
    "relu6, in place": lambda x: functional.relu6(x, True),
    "hardtanh_": lambda x: functional.hardtanh_(x, -2.0, 2.0),
    "nn.ReLU6, in place": nn.ReLU6(inplace=True),
}
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(-3, -1).contiguous().movedim(-1, -3),
}


@pytest.fixture
def taken(monkeypatch):
    """Whether each call was taken. All sizes are, out of place on CPUs, too."""
    monkeypatch.setattr(rectifiers, "_FEW", 0)
    monkeypatch.setattr(rectifiers, "_OUT_OF_PLACE", {"cpu", "cuda"})
    return spied(monkeypatch)


def spied(monkeypatch):
    calls = []

    def spy(func, args, kwargs):
        out = rectifiers.rectified(func, args, kwargs)
        calls.append(out is not None)
        return out

    monkeypatch.setattr(forward_mode, "rectified", spy)
    return calls


def made(*shape, seed=0, dtype=torch.float64):
    steps = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    return (3.5 * (steps.square() * 0.37 + 1.3 * steps + seed).sin()).to(dtype)


def with_specials(x, numbers):
    for at, number in enumerate(numbers):
        x.view(-1)[at::31] = number
    return x


def problem(shape, dtype, layout="contiguous", nan=True):
    """Values at the bounds and beyond all numbers, tangents without numbers at both slopes."""
    values = [0.0, -0.0, 1.0, 2.0, 6.0, -1.0, -2.0, math.inf, -math.inf, *[math.nan] * nan]
    x = with_specials(made(*shape, seed=1, dtype=dtype), values)
    along = with_specials(
        made(M, *shape, seed=2, dtype=dtype), [math.inf, math.nan, -math.inf, -0.0]
    )
    return LAYOUTS[layout](x), LAYOUTS[layout](along)


def products(function, x, along):
    """Values, of which some were computed before ``function`` and must not be lost, and tangents."""

    def model(x):
        inner = x * 1
        out = function(inner)
        return out * 1, inner * 1

    def push(direction):
        return torch.func.jvp(model, (x,), (direction,))

    with torch.no_grad():
        return torch.func.vmap(push)(along)


def assert_same(got, expected):
    for one, other in zip(
        torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(expected), strict=True
    ):
        assert one.dtype == other.dtype and one.stride() == other.stride()
        assert torch.equal(one.isnan(), other.isnan())
        one, other = one.nan_to_num(7.0, 8.0, 9.0), other.nan_to_num(7.0, 8.0, 9.0)
        assert torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*OPS, *IN_PLACE])
def test_derivatives_are_torch_s_bit_for_bit(name, dtype, layout, taken):
    function = (OPS | IN_PLACE)[name]
    # torch on CPUs: where x is NaN, hardtanh's tangent is 0, or is not, by the number's place
    nan = "6" not in name and "hardtanh" not in name
    for shape in (2, 8, 3, 6), (2, 1, 7, 9), (1, 4, 1, 1), (5, 3):
        if len(shape) < 3 and layout == "channels_last":
            continue
        x, along = problem(shape, dtype, layout, nan)
        expected = products(function, x, along)
        taken.clear()
        with LinearLayers(any_layout=True):
            assert_same(products(function, x, along), expected)
        assert taken == [x.numel() * x.element_size() % 8 == 0]


@pytest.mark.parametrize("name", [*OPS, *IN_PLACE])
def test_without_vmap_it_is_torch_s(name, taken):
    function = (OPS | IN_PLACE)[name]
    x, along = problem((2, 8, 3, 6), torch.float32, nan=False)

    def push():
        return torch.func.jvp(lambda x: function(x * 1), (x,), (along[0],))

    def dual():
        with forward_ad.dual_level():
            return tuple(forward_ad.unpack_dual(function(forward_ad.make_dual(x, along[0]) * 1)))

    for run in (push, dual, lambda: function(x * 1)):
        expected = run()
        with LinearLayers(any_layout=True):
            assert_same(run(), expected)
    assert taken and not any(taken)


def test_hardtanh_of_nan_has_the_slope_of_torch_s_vectors(taken):
    x, along = problem((2, 8, 4, 8), torch.float32)
    expected = products(functional.relu6, x, along)
    with LinearLayers(any_layout=True):
        assert_same(products(functional.relu6, x, along), expected)
    assert taken == [True]


def test_small_tensors_and_cpus_out_of_place_are_left_to_torch(monkeypatch):
    taken = spied(monkeypatch)
    for size, function, expected in (
        (rectifiers._FEW - 8, torch.relu_, False),
        (rectifiers._FEW, torch.relu_, True),
        (rectifiers._FEW, torch.relu, False),
    ):
        taken.clear()
        with LinearLayers(any_layout=True):
            products(function, made(size), made(M, size, seed=1))
        assert taken == [expected]


class Tagged(torch.Tensor):
    pass


LEFT = {
    "odd size": (torch.relu, (3, 3)),
    "slices": (lambda x: x[:, :4].relu(), (2, 8)),
    "transposed": (lambda x: x.transpose(0, 1).relu(), (2, 4, 6)),
    "slices, in place": (lambda x: (x[:, :4].relu_(), x * 1)[1], (2, 8)),
    "bounds between numbers": (lambda x: functional.hardtanh(x, -0.1, 0.1), (2, 8)),
    "clamp in place": (lambda x: (x * 1).clamp_(0, 2), (2, 8)),
    "one bound": (lambda x: x.clamp(min=0), (2, 8)),
    "made bounds": (lambda x: x.clamp(x.mean() - 1, x.mean() + 1), (2, 8)),
    "constant": (lambda x: x + torch.relu(made(2, 8)), (2, 8)),
    "by keyword": (lambda x: torch.relu(input=x), (2, 8)),
    "vmap within": (torch.func.vmap(torch.relu), (2, 8)),
    "vmap within, of one": (
        lambda x: torch.func.vmap(lambda w: w * torch.relu(x))(made(4, 2, 8)), (2, 8),
    ),
    "jvp within": (
        lambda x: torch.func.jvp(torch.relu, (x,), (x.cos(),))[1] * x.sin(), (2, 8),
    ),
    "grad within": (lambda x: torch.func.grad(lambda x: torch.relu(x * x).sum())(x), (2, 8)),
    "subclass": (lambda x: torch.relu(x.as_subclass(Tagged)).as_subclass(torch.Tensor), (2, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_torch(name, taken):
    function, shape = LEFT[name]
    x, along = made(*shape, seed=1), made(M, *shape, seed=2)
    if name == "odd size":
        x, along = x.float(), along.float()
    expected = products(lambda x: function(x * 1), x, along)
    with LinearLayers(any_layout=True):
        assert_same(products(lambda x: function(x * 1), x, along), expected)
    assert not any(taken)
    assert taken or name in ("subclass", "clamp in place")


def test_a_constant_of_a_jvp_within(taken):
    """The inner jvp's tangent is a number of the outer one."""
    x, along = made(2, 8, seed=1), made(M, 2, 8, seed=2)

    def function(x):
        out, slope = torch.func.jvp(lambda y: torch.relu_(y * x), (x.sin(),), (x.cos(),))
        return torch.relu(out + slope)

    expected = products(function, x, along)
    with LinearLayers(any_layout=True):
        assert_same(products(function, x, along), expected)
    assert taken == [False, True]


def test_vmap_over_inputs_and_directions(taken):
    x, along = made(5, 2, 8, seed=1), made(5, M, 2, 8, seed=2)
    for function in (torch.relu, lambda x: torch.relu_(x * 1)):
        run = torch.func.vmap(lambda x, along, f=function: products(f, x, along))
        expected = run(x, along)
        with LinearLayers(any_layout=True):
            assert_same(run(x, along), expected)
    assert taken and not any(taken)
    x, along = made(5, 2, 8, seed=1), made(5, M, 2, 8, seed=2)
    push = lambda d: torch.func.jvp(torch.relu, (x,), (d,))[1]
    expected = torch.func.vmap(push, 1)(along)
    with LinearLayers(any_layout=True):
        assert_same(torch.func.vmap(push, 1)(along), expected)


def test_a_graph_through_values_or_tangents_is_kept(taken):
    x, along = made(2, 8, seed=1), made(M, 2, 8, seed=2)
    for leaf in (x, along):
        gradients = []
        for mode in (torch.no_grad, lambda: LinearLayers(any_layout=True)):
            leaf.requires_grad_()
            with mode(), torch.enable_grad():
                push = lambda d: torch.func.jvp(lambda x: torch.relu(x * x), (x,), (d,))[1]
                out = torch.func.vmap(push)(along).square().sum()
                gradients += torch.autograd.grad(out, leaf)
        leaf.requires_grad_(False)
        assert torch.equal(*gradients)
    assert taken and not any(taken)


def test_autocast(taken):
    x, along = made(4, 8, seed=1).float(), made(M, 4, 8, seed=2).float()
    weight = made(8, 8, seed=3).float()

    def function(x):
        return torch.relu(functional.linear(x, weight))

    with torch.autocast("cpu", torch.bfloat16), LinearLayers(any_layout=True):
        got = products(function, x, along)
        with torch.no_grad():
            expected = torch.func.vmap(lambda d: functional.linear(d, weight))(along)
            expected = expected * (functional.linear(x, weight) > 0)
    assert got[1][0].dtype == torch.bfloat16
    assert torch.equal(got[1][0], expected)
    assert taken == [True]


@pytest.mark.parametrize("function", [torch.relu_, lambda x: functional.relu6(x, inplace=True)])
def test_in_place_is_in_place(function, taken):
    """All that sees the memory of the value and of the tangent sees the change, as with torch."""

    def model(x):
        inner = x * 2
        view, before = inner.view(8, -1), inner * 1
        out = function(view)
        assert out is view
        return out + 0, inner + 0, view.flatten()[3:7] + 0, before

    x, along = problem((2, 8, 3, 6), torch.float32, nan=False)
    expected = products(lambda x: torch.cat([y.flatten() for y in model(x)]), x, along)
    with LinearLayers(any_layout=True):
        got = products(lambda x: torch.cat([y.flatten() for y in model(x)]), x, along)
    assert_same(got, expected)
    assert taken == [True]


class Residual(nn.Module):
    """In place as torchvision's and timm's blocks are, on a sum that is used again."""

    def __init__(self, width=8):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, width, 3, padding=1)
            self.body = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
            )  # fmt: skip
            self.relu, self.relu6 = nn.ReLU(inplace=True), nn.ReLU6(inplace=True)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.relu(self.body(x) + x)
        return self.relu6(4 * self.body(x) + x).mean((2, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_networks_in_place(layout, taken):
    net = Residual().eval().double().requires_grad_(False)
    if layout == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    x, along = LAYOUTS[layout](made(2, 3, 8, 8)), LAYOUTS[layout](made(M, 2, 3, 8, 8, seed=1))
    value = net(x)
    expected = products(net, x, along)
    with LinearLayers(any_layout=True):
        got = products(net, x, along)
        assert torch.equal(net(x), value)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert taken[:5] == [True] * 5


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("function", [torch.relu, torch.relu_, torch.nn.functional.relu6])
def test_one_operation_on_the_tangents_and_no_copy(function, layout, taken):
    x, along = problem((1, 8, 3, 6), torch.float16, layout)
    with torch.no_grad(), LinearLayers(any_layout=True), Seen() as seen:
        torch.func.vmap(lambda d: torch.func.jvp(lambda x: function(x), (x,), (d,)))(along)
    assert taken == [True]
    ands = [name for name in seen.names if name.startswith("bitwise_and")]
    assert len(ands) == 1
    assert not {"copy_", "clone", "threshold_backward", "hardtanh_backward"} & set(seen.names)
