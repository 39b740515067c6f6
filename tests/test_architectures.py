"""Parts of real networks: attention, batch norm, in-place operations, dropout, autocast."""

import types
import warnings

import pytest
import torch
from torch import nn

from mvnrob.jacobian import LogitMap, jacobian
from mvnrob.meter import Meter
from mvnrob.network import Network
from mvnrob.robustness import robustness
from mvnrob.training import taylor_probability


def inputs(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Attention(nn.Module):
    """A transformer block on torch's fused attention; answers like Hugging Face's classifiers."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv = nn.Linear(16, 32), nn.Linear(32, 96)
        self.out, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(32, 60)

    def forward(self, x):
        h = self.embed(x)
        q, k, v = self.qkv(h).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = nn.functional.gelu(self.norm(h + self.drop(self.out(attended))))
        return types.SimpleNamespace(logits=self.head(h.mean(1)))


class Encoder(nn.Module):
    """torch's own layer, which takes another path without gradients."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.head = nn.Linear(16, 60)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Convolutional(nn.Module):
    """Batch norm in eval mode and operations in place, one of them on the input itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.Conv2d(12, 24, 3)
        )
        self.head = nn.Linear(24, 60)

    def forward(self, x):
        x.sub_(0.1).mul_(2.0)
        h = self.body(x).relu_().mean((2, 3))
        return self.head(nn.functional.dropout(h, 0.5, self.training, inplace=True))


def built(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = kind()
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2.0)
    return net.eval().requires_grad_(False)


NETWORKS = {"attention": (Attention, (9, 16)), "encoder": (Encoder, (9, 16)),
            "convolutional": (Convolutional, (2, 8, 8))}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["taylor", "mmse", "taylor_mvs"])
def test_networks_in_float64_by_every_way(name, method):
    """check="raise": reverse and forward mode agree; no warning, and x is as it was."""
    kind, shape = NETWORKS[name]
    net, x = built(kind).double(), inputs(3, *shape)
    before = x.clone()
    options = {"n_samples": 4} if method == "mmse" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        full = robustness(net, x, 0.2, method=method, head="off", check="raise", **options)
        ways = [{}, {"jacobian": "loop"}]
        if method != "taylor_mvs":
            ways += [{"screen": "sketch"}, {"screen": "none"}, {"screen": "exact"}]
        for way in ways:
            result = robustness(net, x, 0.2, method=method, check="raise", **options, **way)
            assert ((result.prob - full.prob).abs() <= result.error + full.error).all()
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_mode_with_and_without_vmap(name):
    kind, shape = NETWORKS[name]
    net, x = built(kind).double(), inputs(2, *shape)
    directions = inputs(2, 5, x[0].numel(), seed=3)
    expected = directions @ jacobian(net, x, check="off").mT
    for batched in (True, False):
        network = Network("test", net, None, x)
        network.batch_tangents = batched
        linear = LogitMap(
            network,
            Meter(2, x.device),
            x,
            torch.arange(2),
            max_copies=2,
            max_tangents=6,
            method="batch",
            jvp_mode="forward",
            check="off",
        )
        torch.testing.assert_close(linear.jvp(directions), expected, rtol=1e-9, atol=1e-11)
        if batched:
            assert (
                network.batch_tangents or name == "convolutional"
            )  # vmap refuses its in-place steps


@pytest.mark.parametrize("name", ["attention", "encoder"])
def test_attention_by_double_backward(name):
    """torch's fused kernels have no second derivative."""
    kind, shape = NETWORKS[name]
    net, x = built(kind).double(), inputs(2, *shape)
    ways = [
        robustness(net, x, 0.2, screen="sketch", jvp_mode=mode, check="raise")
        for mode in ("forward", "double_backward")
    ]
    torch.testing.assert_close(ways[0].prob, ways[1].prob, rtol=0, atol=1e-6)


def test_attention_settings_are_left_as_they_were():
    net, x = built(Encoder), inputs(2, 9, 16, dtype=torch.float32)
    for fast in (True, False):
        torch.backends.mha.set_fastpath_enabled(fast)
        robustness(net, x, 0.2, screen="sketch")
        assert torch.backends.mha.get_fastpath_enabled() == fast
    torch.backends.mha.set_fastpath_enabled(True)
    assert torch.backends.cuda.flash_sdp_enabled()


class Autocast(nn.Module):
    def __init__(self, net, dtype):
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x):
        with torch.autocast("cpu", self.dtype):
            return self.net(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["attention", "convolutional"])
def test_autocast_models(name, dtype):
    """Half precision inside: p within .03 of float32's (bfloat16 on 200 inputs: .028 at most, .005 on average; float16 a tenth), rows within the check's 5 %."""
    kind, shape = NETWORKS[name]
    net, x = built(kind), inputs(4, *shape, dtype=torch.float32)
    for screen in ("auto", "exact", "sketch"):
        exact = robustness(net, x, 0.3, screen=screen)
        half = robustness(
            Autocast(net, dtype).eval(),
            x,
            0.3,
            target=exact.target,
            screen=screen,
            check="raise",
        )
        gap = (half.prob - exact.prob).abs()
        assert (gap <= 0.03 + exact.error + half.error).all(), gap
    full = robustness(Autocast(net, dtype).eval(), x, 0.3, target=exact.target, head="off")
    assert ((full.prob - half.prob).abs() <= 0.03 + full.error + half.error).all()


@pytest.mark.parametrize("method", ["taylor", "mmse", "taylor_mvs", "mc", "logit_moments"])
def test_autocast_around_a_call(method):
    """It reaches the model alone: the answer is that of a model which casts by itself."""
    net, x = built(Attention).float(), inputs(4, 9, 16, dtype=torch.float32)
    factor = torch.randn(x[0].numel(), 7, generator=torch.Generator().manual_seed(2))
    options = {"n_samples": 64} if method == "mc" else {}
    call = lambda model: robustness(
        model, x, 0.3, method=method, noise_factor=factor, **options
    ).prob  # fmt: skip
    wanted = call(Autocast(net, torch.bfloat16).eval())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(net), wanted)
        rows = jacobian(net, x)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(rows, jacobian(Autocast(net, torch.bfloat16).eval(), x))


def test_mmse_keeps_no_jacobian_of_a_copy(monkeypatch):
    """Rows are running sums: as many numbers for 4 copies as for 32, beyond 8 groups none more."""
    net, x = built(Convolutional).double(), inputs(1, 2, 8, 8)
    sizes = {}
    original = LogitMap.rows
    for n in (16, 64):
        largest = []

        def watched(self, classes, largest=largest, **options):
            rows = original(self, classes, **options)
            largest.append(rows.numel())
            return rows

        monkeypatch.setattr(LogitMap, "rows", watched)
        robustness(net, x, 0.2, method="mmse", n_samples=n, head="off", screen="none")
        sizes[n] = max(largest)
    assert sizes[16] == sizes[64] == 60 * 8 * 128  # classes, groups, numbers of an input


def test_compiled_callers():
    net, x = built(Convolutional).double(), inputs(3, 2, 8, 8)
    options = {"screen": "sketch", "head": "off"}

    @torch.compile(backend="eager")
    def program(x):
        return robustness(net, x, 0.2, **options).prob

    torch.testing.assert_close(program(x), robustness(net, x, 0.2, **options).prob)


def test_compiled_models():
    """As they were written where derivatives are taken: a compiled graph is differentiated once."""
    net, x = built(Convolutional).float(), inputs(3, 2, 8, 8, dtype=torch.float32)
    compiled = torch.compile(net, backend="aot_eager")
    rows = {"check": "raise"}
    for options in ({"head": "off", "screen": "none"} | rows, {"screen": "sketch"} | rows,
                    {"method": "mmse"} | rows, {"method": "mc", "n_samples": 50}):  # fmt: skip
        plain = robustness(net, x, 0.2, **options)
        result = robustness(compiled, x, 0.2, **options)
        torch.testing.assert_close(result.prob, plain.prob, rtol=0, atol=1e-5)
    plain = taylor_probability(net, x, 0.2, method="taylor_mvs")
    torch.testing.assert_close(taylor_probability(compiled, x, 0.2, method="taylor_mvs"), plain)


class Energy(nn.Module):
    """Logits of the gradient of a scalar, by ``torch.func``: per input, or along a direction."""

    def __init__(self, forward_mode):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 7), nn.Linear(5, 4)
        self.forward_mode = forward_mode

    def forward(self, x):
        if self.forward_mode:
            inner = lambda v: self.inner(v).tanh()
            return torch.func.jvp(inner, (x,), (x.cos(),))[1][:, :4]
        energy = lambda v: self.inner(v).tanh().square().sum()
        return self.head(torch.func.vmap(torch.func.grad(energy))(x))


@pytest.mark.parametrize("forward_mode", [False, True])
def test_models_that_differentiate(forward_mode):
    net, x = built(lambda: Energy(forward_mode)).double(), inputs(3, 5)
    options = {"check": "raise", "head": "off"}
    plain, sketched = (robustness(net, x, 0.3, screen=s, **options) for s in ("none", "sketch"))
    torch.testing.assert_close(sketched.prob, plain.prob, rtol=0, atol=1e-9)
    rows = jacobian(net, x)
    for at in range(len(x)):
        reference = torch.autograd.functional.jacobian(net, x[at : at + 1])[0, :, 0]
        torch.testing.assert_close(rows[at], reference, rtol=1e-9, atol=1e-12)
