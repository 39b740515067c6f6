"""What is measured of a module once for each form of its inputs."""

import gc
import math
import warnings

import pytest
import torch
from torch import nn

from mvnrob import measured
from mvnrob.argmax import argmax_probabilities
from mvnrob.robustness import METHODS, robustness


class Net(nn.Module):
    """Counts its passes; answers with as many classes as it is told to."""

    def __init__(self, classes=40, shown=None):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body, self.last = nn.Linear(6, 16), nn.Linear(16, classes)
        self.passes, self.shown = [], shown

    def forward(self, x):
        self.passes.append(len(x))
        return self.last(self.body(x).tanh())[:, : self.shown]


def passes(net, call):
    net.passes.clear()
    call()
    return list(net.passes)


def inputs(count=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 6, generator=generator, dtype=dtype)


def built(**options):
    return Net(**options).eval()


@pytest.mark.parametrize("method", METHODS)
def test_later_calls_measure_nothing(method):
    net, x = built(), inputs()
    options = {"n_samples": 4} if method in ("mmse", "mmse_mvs", "logit_moments", "mc") else {}
    call = lambda: results.append(robustness(net, x, 0.1, method=method, **options))
    results = []
    first, second, third = (passes(net, call) for _ in range(3))
    assert len(first) > len(second) and second == third
    assert 1 in first and 1 not in second
    for result in results[1:]:
        assert torch.equal(result.prob, results[0].prob)
        assert torch.equal(result.cost.forward, results[0].cost.forward)


def test_other_callables_are_measured_every_time():
    net, x = built(), inputs()
    call = lambda: argmax_probabilities(lambda x: net(x), x, 0.1)
    assert passes(net, call) == passes(net, call)


def test_every_form_is_measured():
    net, x = built(), inputs()
    call = lambda x=x, **options: robustness(net, x, 0.1, **options)
    call()

    def measures(call):
        again, known = passes(net, call), passes(net, call)
        return len(again) > len(known)

    assert not measures(lambda: call(x[:1]))  # as many of them as come
    assert measures(lambda: call(preprocessing={"mean": 0.5}))
    with torch.autocast("cpu", torch.bfloat16):
        assert measures(call)
    net.double()
    assert measures(lambda: call(x.double()))
    net.requires_grad_(False)
    assert measures(lambda: call(x.double()))
    net.body = nn.Sequential(nn.Linear(6, 16), nn.Dropout()).double().eval()
    assert measures(lambda: call(x.double()))


def test_a_new_last_layer_is_found():
    net, x = built(), inputs()
    sketched = lambda: robustness(net, x, 0.1, screen="exact")
    sketched()
    net.last = nn.Sequential(nn.Linear(16, 40), nn.Identity()).eval()
    expected = robustness(lambda x: net(x), x, 0.1, screen="exact")
    torch.testing.assert_close(sketched().prob, expected.prob, rtol=0, atol=1e-4)
    # and that another number in it is no other layer
    with torch.no_grad():
        net.last[0].weight.mul_(2.0)
    expected = robustness(lambda x: net(x), x, 0.1, screen="exact")
    torch.testing.assert_close(sketched().prob, expected.prob, rtol=0, atol=1e-4)


def test_another_number_of_classes():
    """A module that tells nobody."""
    net, x = built(shown=32), inputs()
    robustness(net, x, 0.1)
    net.shown = 36
    assert robustness(net, x, 0.1, target=35).target.tolist() == [35] * 3
    net.shown = 33
    with pytest.raises(ValueError, match="target must"):
        robustness(net, x, 0.1, target=35)
    assert robustness(net, x, 0.1, method="mc", n_samples=4, target=32).prob.shape == (3,)


class Twice(Net):
    """Two layers of as many outputs; the logits are the second one's, times two."""

    def __init__(self):
        super().__init__()
        self.side = nn.Linear(16, 40)

    def forward(self, x):
        logits = super().forward(x)
        self.side(self.body(x))
        return 2 * logits


def test_what_an_input_of_nan_shows_is_not_kept():
    net, x = Twice().eval(), inputs()
    with pytest.warns(RuntimeWarning, match="the last linear layer is not used"):
        robustness(net, torch.cat([x[:1] * math.nan, x]), 0.1, screen="exact")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robustness(net, x, 0.1, screen="exact")


class Either(Net):
    """Two last layers, of which one is used."""

    def __init__(self, classes=40, others=40):
        super().__init__(classes)
        self.other, self.uses = nn.Linear(16, others), "last"

    def forward(self, x):
        self.passes.append(len(x))
        return getattr(self, self.uses)(self.body(x).tanh())


def quiet(net, x=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return robustness(net, inputs() if x is None else x, 0.1, **options)


def test_another_last_layer_of_the_same_network():
    net = Either().eval()
    rows = quiet(net, screen="exact").cost.vjp
    net.uses = "other"
    assert torch.equal(quiet(net, screen="exact").cost.vjp, rows)
    assert (rows < 40).all()
    wide = Either(others=60).eval()
    quiet(wide)
    wide.uses = "other"
    assert (quiet(wide, head="other").target < 60).all()


def test_a_last_layer_of_another_name():
    net = built()
    quiet(net)
    net.final = net.last
    del net.last
    net.forward = lambda x: net.final(net.body(x).tanh())
    quiet(net)


class Masked(Net):
    masks = True

    def forward(self, x):
        logits = super().forward(x)
        return logits.masked_fill(torch.arange(40) > 33, -math.inf) if self.masks else logits


def test_a_last_layer_that_was_hidden_is_found_later():
    net = Masked().eval()
    robustness(net, inputs(), 0.1, screen="exact")
    net.masks = False
    assert (quiet(net, screen="exact").cost.vjp < 40).all()


def test_what_was_too_large():
    net = built(classes=8000, shown=8000)
    call = lambda **options: robustness(
        net, inputs(), 0.1, method="logit_moments", n_samples=1000, **options
    )
    call(max_bytes=2**30)
    net.shown = 5
    assert call(max_bytes=2**24).prob.shape == (3,)
    net.shown = 8000
    with pytest.raises(ValueError, match="max_bytes must hold the margins"):
        call(max_bytes=2**24)


def test_errors_of_later_calls():
    net = built()
    robustness(net, inputs(), 0.1)
    net.to("meta")
    with pytest.raises(ValueError, match="x must have the device of the model's parameters"):
        robustness(net, inputs(), 0.1)


def test_lazy_modules_and_parts_made_anew():
    lazy = nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.LazyLinear(40)).eval()
    assert quiet(lazy, method="mc", n_samples=4).prob.shape == (3,)
    net = built()
    for _ in range(measured._MOST_FORMS):
        net.extra = nn.Tanh().eval()
        quiet(net, inputs(1), method="mc", n_samples=4)
    assert len(measured._known[id(net)][1]) <= measured._MOST_FORMS


class Growing(Net):
    def forward(self, x):
        self.shown = 30 + len(self.passes)
        return super().forward(x)


def test_a_number_of_classes_that_does_not_stay():
    with pytest.raises(ValueError, match="the same for every input, got"):
        robustness(Growing().eval(), inputs(), 0.1)


def test_nothing_is_kept_of_modules_that_are_gone():
    gc.collect()
    before = len(measured._known)
    net = built()
    robustness(net, inputs(), 0.1)
    assert len(measured._known) == before + 1
    del net
    gc.collect()
    assert len(measured._known) == before
