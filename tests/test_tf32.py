"""``check`` where passes round differently, and ReLUs take different sides: TF32, and half precision.

Here a module rounds its activations to TF32's 11 bits as long as torch's settings allow TF32, each batch
size and mode in its own way, as cuDNN's algorithms do.
"""

import itertools
import os
import subprocess
import sys
import warnings

import pytest
import torch
from test_robustness import LINEAR_METHODS, NoForwardMode, SlopesOff, inputs
from torch import nn

from mvnrob import chunks, network, robustness
from mvnrob.jacobian import JACOBIAN_METHODS, LogitMap, jacobian
from mvnrob.meter import Meter
from mvnrob.network import Network, full_float32

# --- the settings -----------------------------------------------------------------------------

#: What a user may have asked for, in the order given.
ASKED = (
    "",
    "b.cudnn.allow_tf32 = False",
    "b.cudnn.allow_tf32 = True",
    "b.cuda.matmul.allow_tf32 = True",
    "b.cuda.matmul.allow_tf32 = True; b.cuda.matmul.allow_tf32 = False",
    "torch.set_float32_matmul_precision('medium')",
    "b.fp32_precision = 'tf32'",
    "b.fp32_precision = 'ieee'",
    "b.fp32_precision = 'tf32'; b.cudnn.conv.fp32_precision = 'ieee'",
    "b.cudnn.fp32_precision = 'tf32'",
    "b.cudnn.fp32_precision = 'ieee'; b.fp32_precision = 'tf32'",
    "b.cudnn.conv.fp32_precision = 'ieee'",
    "b.cudnn.conv.fp32_precision = 'tf32'; b.cuda.matmul.fp32_precision = 'tf32'",
    "b.cuda.matmul.fp32_precision = 'ieee'",
    "b.cudnn.rnn.fp32_precision = 'ieee'",
    "b.cudnn.allow_tf32 = False; b.cuda.matmul.fp32_precision = 'tf32'",
)
SETTINGS = """
import os, sys, traceback
import torch
from mvnrob.network import _uses_tf32, full_float32

b = torch.backends
GPU = torch.device("cuda")
READ = (
    lambda: b.fp32_precision, lambda: b.cudnn.fp32_precision, lambda: b.cudnn.conv.fp32_precision,
    lambda: b.cudnn.rnn.fp32_precision, lambda: b.cuda.matmul.fp32_precision,
    lambda: b.mkldnn.matmul.fp32_precision, lambda: b.mkldnn.conv.fp32_precision,
    lambda: b.cudnn.allow_tf32, lambda: b.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision,
)

def readings():
    out = []
    for read in READ:
        try:
            out.append(str(read()))
        except RuntimeError:
            out.append("refused")
    return out

def later():
    "All readings, and those after each of what a user may ask for next."
    out = [readings()]
    for place in (b, b.cudnn):
        for precision in ("ieee", "tf32", "none"):
            place.fp32_precision = precision
            out.append(readings())
    return out

def convolve():
    x = torch.rand(1, 2, 5, 5, requires_grad=True)
    weight = torch.rand(2, 2, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(torch.conv2d(x, weight).square().sum(), x, create_graph=True)
    (gradient @ gradient).sum().backward()

def compare(asked):
    exec(asked)
    before = readings()
    uses = "tf32" in (b.cudnn.conv.fp32_precision, b.cuda.matmul.fp32_precision)
    assert _uses_tf32(GPU) == uses and not _uses_tf32(torch.device("cpu"))
    try:
        with full_float32():
            assert not _uses_tf32(GPU)
            assert "tf32" != b.cudnn.rnn.fp32_precision
            assert b.fp32_precision == before[0]
            convolve()
            with full_float32():
                assert not _uses_tf32(GPU)
            assert not _uses_tf32(GPU)
            raise KeyError
    except KeyError:
        pass
    assert readings() == before, (readings(), before)
    return later()

def untouched(asked):
    exec(asked)
    return later()

def in_a_fork(function, asked):
    "Settings as a process finds them: some cannot be undone."
    read, write = os.pipe()
    if not (child := os.fork()):
        code = 1
        try:
            os.write(write, repr(function(asked)).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, asked
    return text

for asked in sys.argv[1:]:
    assert in_a_fork(compare, asked) == in_a_fork(untouched, asked), asked
    print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_settings_are_as_they_were():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SETTINGS, *ASKED],
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"] * len(ASKED)


# --- the check --------------------------------------------------------------------------------


class ToTF32(torch.autograd.Function):
    """11 bits of each number, rounded up or down by ``seed``; derivatives pass unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, seed):
        generator = torch.Generator().manual_seed(seed)
        up = torch.rand(x.shape[1:], generator=generator, dtype=x.dtype)
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp((mantissa * 2**11 + up).floor() / 2**11, exponent)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def jvp(ctx, tangent, _):
        return tangent.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Kinked(nn.Module):
    """Zigzags so narrow that TF32 moves points to other sides: slopes 0 and 2.

    ``wrong``: gradients are 2 % too large. ``middle`` and ``last`` work on the features, before and after.
    """

    def __init__(self, classes=8, wrong=False, middle=torch.clone, last=torch.clone):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.head = nn.Linear(20, 60), nn.Linear(60, classes)
        self.wrong, self.middle, self.last = wrong, middle, last
        self.full, self.rounded = [], []  # inputs of the passes without and with TF32
        self.requires_grad_(False).eval()

    def forward(self, x):
        x = SlopesOff.apply(x) if self.wrong else x
        h = self.first(x)
        is_rounded = torch.backends.cudnn.conv.fp32_precision == "tf32"
        (self.rounded if is_rounded else self.full).append(len(x))
        h = ToTF32.apply(h, 2 * len(x) + torch.is_grad_enabled()) if is_rounded else h
        h = self.middle(h)
        return self.head(self.last((torch.remainder(500 * h, 2) - 1).abs() / 500 + h))


def centred(h):
    return h - h.mean(0)


def scaled_by_mean(h):
    return h * h.mean(0)


@pytest.fixture
def tf32(monkeypatch):
    """As on a GPU. Forward mode takes an input at a time, rows all that there are."""
    monkeypatch.setattr(network, "_uses_tf32", lambda _: network_uses_tf32())
    monkeypatch.setattr(chunks, "_TANGENT_BYTES", 1)


def network_uses_tf32():
    return torch.backends.cudnn.conv.fp32_precision == "tf32"


def points(count=4):
    return inputs(count, 20, dtype=torch.float32)


def test_passes_of_other_sizes_differ_and_are_no_error(tf32, monkeypatch):
    model, x = Kinked(), points()
    alone = torch.cat([jacobian(model, row[None], check="off") for row in x])
    together = jacobian(model, x, check="raise")
    gap = (together - alone).norm(dim=2) / alone.norm(dim=2)
    assert 0.1 < gap.median() < 1, "what the check must not complain of"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in LINEAR_METHODS:
            robustness(model, x, 0.01, method=method)
    assert set(model.full) == {2, 4}, "two inputs, or two copies of each"
    monkeypatch.setattr(network.Network, "rounds_to_tf32", lambda self: False)
    with pytest.raises(RuntimeError, match="must agree with a forward-mode product"):
        robustness(model, x, 0.01, check="raise")


@pytest.mark.parametrize("way", JACOBIAN_METHODS)
@pytest.mark.parametrize("mode", ["forward", "double_backward"])
def test_every_way_is_served(tf32, way, mode):
    options = {"jacobian": way, "jvp_mode": mode, "check": "raise"}
    # the second derivative of a wrong gradient is as wrong, and single inputs are independent
    broken = {"wrong": True} if mode == "forward" else {"last": scaled_by_mean}
    for method, head in itertools.product(("taylor", "mmse"), ("off", "head")):
        model, x = Kinked(40), points()
        options |= {"method": method, "head": head, "screen": "exact"}
        robustness(model, x, 0.01, **options)
        assert max(model.full) <= max(model.rounded)
        if mode == "forward" or way != "loop":
            with pytest.raises(RuntimeError, match="must agree with a forward-mode product"):
                robustness(Kinked(40, **broken), x, 0.01, **options)


@pytest.mark.parametrize("method", LINEAR_METHODS)
def test_a_wrong_gradient_is_still_an_error(tf32, method):
    """Also one of 2 %, a tenth of what the passes differ by."""
    x = points()
    for count in (1, 4):
        with pytest.raises(RuntimeError, match="must agree with a forward-mode product"):
            robustness(Kinked(wrong=True), x[:count], 0.01, method=method, check="raise")
    with pytest.warns(RuntimeWarning, match="must agree with a forward-mode product") as caught:
        robustness(Kinked(wrong=True), x, 0.01, method=method)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robustness(Kinked(wrong=True), x, 0.01, method=method, check="off")


def test_rows_that_are_not_independent_are_still_an_error(tf32):
    x = points()
    for method, last in itertools.product(LINEAR_METHODS, (centred, scaled_by_mean)):
        with pytest.raises(RuntimeError, match="its rows are not independent"):
            robustness(Kinked(last=last), x, 0.01, method=method, check="raise")
    # one at a time nothing is coupled
    robustness(Kinked(last=scaled_by_mean), x, 0.01, jacobian="loop", check="raise")


def test_once_for_a_map_and_what_is_cut_from_it(tf32):
    """Rows of subsets, rescaled maps and single inputs are not checked again, and the first two inputs are
    taken together whichever are asked for first."""
    model, x = Kinked(), points()
    net = Network("test", model, None, x)
    meter = Meter(4, x.device)
    options = {"max_copies": 4, "max_tangents": 4, "method": "batch", "jvp_mode": "forward"}
    numbers = torch.arange(4)
    whole = LogitMap(net, meter, x, numbers, check="raise", **options)
    classes = torch.tensor([[3, 0, 5]]).expand(4, -1)
    net(x)
    model.full.clear()
    whole.subset(numbers[3:]).rows(classes[3:])
    assert model.full == [2, 2], "a pass with a graph, one in forward mode"
    assert meter.cost().vjp.tolist() == [2, 2, 0, 3] and meter.cost().jvp.tolist() == [1, 1, 0, 0]
    assert meter.cost().forward.tolist() == [1, 1, 0, 1]
    whole.rows(classes)
    whole.scaled(torch.full((4,), 2.0)).subset(numbers[:2]).rows(classes[:2])
    whole.subset(numbers[:1]).subset(numbers[:1]).rows(classes[:1])
    assert model.full == [2, 2]
    assert meter.cost().jvp.tolist() == [1, 1, 0, 0]
    LogitMap(net, meter, x, numbers, check="raise", **options).rows(classes)
    assert model.full == [2, 2, 2, 2]


def test_screening_checks_a_chunk_once(tf32):
    """Low rank, sketch and rows of 80 classes ask for rows many times."""
    model, x = Kinked(80), points()
    for screen, head in (("auto", "off"), ("sketch", "off"), ("exact", "off"), ("exact", "head")):
        model.full.clear()
        robustness(model, x, 0.01, screen=screen, head=head, check="raise")
        assert model.full == [2, 2], "a pass with a graph, one in forward mode"


class ByBatch(nn.Module):
    """Rounds each batch size in its own way, but all modes alike: float32, with coarse last bits."""

    def forward(self, h):
        return ToTF32.apply(h, len(h))


def test_passes_of_other_sizes_in_float32():
    """Products that differ from the rows are made anew in passes of the rows' size, and only then blamed."""
    x, numbers = points(), torch.arange(4)
    classes = (torch.tensor([[3, 0, 5]]) + numbers[:, None]) % 8
    options = {"max_copies": 4, "method": "batch", "jvp_mode": "forward", "check": "raise"}
    with full_float32():
        for tangents, products in ((4, 1), (1, 2)):
            net, meter = Network("test", Kinked(middle=ByBatch()), None, x), Meter(4, x.device)
            whole = LogitMap(net, meter, x, numbers, max_tangents=tangents, **options)
            whole.rows(classes)
            assert meter.cost().jvp.tolist() == [products] * 4
            whole.rows(classes)
            assert meter.cost().jvp.tolist() == [products] * 4
            whole.subset(numbers[1:3]).rows(classes[1:3])
            assert meter.cost().jvp.tolist() == [products, products + 1, products + 1, products]
            for broken in ({"wrong": True}, {"last": centred}, {"last": scaled_by_mean}):
                net = Network("test", Kinked(middle=ByBatch(), **broken), None, x)
                whole = LogitMap(net, meter, x, numbers, max_tangents=tangents, **options)
                with pytest.raises(RuntimeError, match="must agree with a forward-mode product"):
                    whole.rows(classes)


def test_half_precision_and_float64_are_checked_as_ever(tf32):
    for dtype in (torch.float64, torch.bfloat16):
        net = Network("test", lambda x: x[:, :3].tanh(), None, points().to(dtype))
        net(points().to(net.work_dtype))
        assert not net.rounds_to_tf32()
    cast = Network("test", lambda x: x[:, :3].float().tanh(), None, points().double())
    cast(points().double())
    assert cast.rounds_to_tf32()


def test_without_forward_mode(tf32):
    """A head's gradient is compared without TF32, and what cannot be checked is said once."""
    model, x = Kinked(80, middle=NoForwardMode.apply), points()
    with pytest.warns(RuntimeWarning, match="could not be checked against a forw") as caught:
        robustness(model, x, 0.01, head="off")
    assert len(caught) == 1
    model.full.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = robustness(model, x, 0.01, head="head", screen="exact", check="off")
    assert model.full == [4], "both gradients through one pass of all inputs"
    assert (result.cost.vjp == 60 + 2).all()
    with pytest.raises(RuntimeError, match="could not be checked against a forward-mode product"):
        robustness(model, x, 0.01, head="head", screen="exact", check="raise")


# --- half precision ---------------------------------------------------------------------------


class OtherInReverse(nn.Module):
    """ReLU behind what rounds as another algorithm would where a graph is wanted: by ``ulps`` of its dtype."""

    def __init__(self, ulps):
        super().__init__()
        self.ulps = ulps

    def forward(self, h):
        if torch.is_grad_enabled() and self.ulps:
            up = torch.rand(h.shape[1:], generator=torch.Generator().manual_seed(1)) - 0.5
            h = (h.float() * (1 + self.ulps * torch.finfo(h.dtype).eps * up)).to(h.dtype)
        return torch.relu(h)


class Minus(torch.autograd.Function):
    """The identity whose gradient has the wrong sign and a fifth of the size."""

    generate_vmap_rule = True
    forward, setup_context, jvp = SlopesOff.forward, SlopesOff.setup_context, SlopesOff.jvp

    @staticmethod
    def backward(ctx, gradient):
        return -0.2 * gradient


def relus(dtype, ulps):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(20, 300)]
        for _ in range(3):
            layers += [OtherInReverse(ulps), nn.Linear(300, 300)]
    return nn.Sequential(*layers, nn.Linear(300, 8)).to(dtype).requires_grad_(False).eval()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_named_where_it_explains_the_difference(dtype):
    x = points(8).to(dtype)
    robustness(relus(dtype, 0), x, 0.1, check="raise")  # passes that round alike
    text = f"must agree with .* possibly rounding to {str(dtype)[6:]}, .* float32 .* pass jacobian='loop'"
    for head in ("off", "7"):
        with pytest.raises(RuntimeError, match=text):
            robustness(relus(dtype, 32), x, 0.1, check="raise", head=head, screen="exact")
    # beyond it, and in float32, the model alone is blamed
    wrong = nn.Sequential(relus(dtype, 0)).eval()
    wrong.register_forward_pre_hook(lambda _, args: (Minus.apply(args[0]),))
    with pytest.raises(RuntimeError, match=r"for input \d: an operation of the model") as caught:
        robustness(wrong, x, 0.1, check="raise")
    assert "rounding" not in str(caught.value)
    with pytest.raises(RuntimeError, match=r"for input \d: an operation of the model"):
        robustness(relus(torch.float32, 2.0**18), x.float(), 0.1, check="raise")


def test_half_precision_is_known_by_weights_inputs_and_logits():
    x, plain = points(), relus(torch.float32, 0)
    assert Network("test", plain, None, x).half is None
    assert Network("test", plain, None, x.half()).half == torch.float16
    mixed = nn.Sequential(relus(torch.float16, 0), relus(torch.bfloat16, 0)).eval()
    assert Network("test", mixed, None, x.half()).half == torch.bfloat16
    cast = Network("test", lambda x: plain(x).bfloat16(), None, x)
    assert cast.half is None
    cast(x)
    assert cast.half == torch.bfloat16
