"""Screening, sketches and the last linear layer: the same p, the bounds, what it costs."""

import copy
import types
import warnings

import pytest
import torch
from torch import nn

import mvnrob
from mvnrob import low_rank
from mvnrob.estimators.linear import screen
from mvnrob.head import FeatureNetwork, read_head
from mvnrob.jacobian import LogitMap, jacobian
from mvnrob.linearised import Linearised
from mvnrob.meter import Meter
from mvnrob.network import Network
from mvnrob.noise import DIRECTIONS, Noise, row_keys
from mvnrob.robustness import robustness
from mvnrob.screening import rival_order, tail
from mvnrob.sketch import (
    JVP_IN_VJPS,
    NEAR_ROWS,
    SKETCH_RISK,
    SKETCH_SIZES,
    _risks,
    leading,
    screen_sketch,
)


def inputs(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def many_class_model(classes=300, features=120):
    """Three near rivals and a crowd: some classes matter, most do not. No module, so no head."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    weight += 3 * torch.randn(features, generator=generator, dtype=torch.float64)
    bias = torch.linspace(0, -25, classes, dtype=torch.float64)
    return lambda x: 0.2 * x @ weight.T + bias


def relu_net(classes=80, width=40, features=30, seed=0, dtype=torch.float64, spread=0.0):
    """ReLU features, half of them dead at a typical input; logits fall off by ``spread``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(features, 50),
            nn.Tanh(),
            nn.Linear(50, width),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(width, classes),
        )
    with torch.no_grad():
        net[5].weight += 0.3 * net[5].weight.std() * torch.randn(width, generator=torch.Generator())
        net[5].bias -= spread * torch.arange(classes) / classes
    return net.to(dtype).eval().requires_grad_(False)


def problem_of(model, x, sigma, seed=0):
    logits = model(x).detach()
    target = logits.argmax(1)
    network = Network("test", model, None, x)
    network.classes = logits.shape[1]
    numbers = torch.arange(len(x))
    linear = LogitMap(
        network,
        Meter(len(x), x.device),
        x,
        numbers,
        max_copies=len(x),
        max_tangents=2 * len(x),
        method="batch",
        jvp_mode="forward",
        check="off",
    )
    return Linearised(
        logits=linear,
        noise=Noise("test", [sigma], None, x),
        target=target,
        values=logits[:, None].double(),
        weights=torch.ones(1, 1, dtype=torch.float64),
        keys=row_keys(seed, DIRECTIONS, numbers),
        max_bytes=2**31,
        pair_bytes=48,
    )


def true_masses(model, x, target, sigma):
    logits, rows = model(x), jacobian(model, x)
    margins = logits.gather(1, target[:, None]) - logits
    own = rows.gather(1, target[:, None, None].expand(-1, 1, rows.shape[2]))
    return tail(margins, (own - rows).norm(dim=-1), sigma).scatter(1, target[:, None], 0.0)


# --- the sketch -------------------------------------------------------------------------------


def test_screening_changes_no_result_beyond_its_error():
    model, x = many_class_model(), inputs(6, 120)
    sigmas = [0.05, 0.1, 0.25]
    full = robustness(model, x, sigmas, screen="none", abs_tol=1e-4)
    for way in ("exact", "sketch", "auto"):
        screened = robustness(model, x, sigmas, screen=way)
        assert (screened.n_screened > 50).all() and (full.n_screened == 0).all()
        assert ((screened.prob - full.prob).abs() <= screened.error + full.error).all()
        assert (full.prob >= screened.lower - full.error).all()
        assert (full.prob <= screened.upper + full.error).all()
        assert (screened.error <= 1e-3).all()
        assert torch.equal(screened.runner_up, full.runner_up)
        if way != "exact":
            assert (screened.cost.jvp >= 3 + SKETCH_SIZES[0]).all()
            passes = screened.cost.vjp + JVP_IN_VJPS * screened.cost.jvp
            assert (passes < full.cost.vjp / 2).all(), passes
    assert (full.prob.amin() < 0.8) and (full.prob.amax() > 0.99)


def test_sketch_bounds_hold_for_every_seed():
    """The bound on the dropped mass fails with probability 1e-3 per input by construction."""
    model, x = many_class_model(), inputs(4, 120)
    dropped_true = []
    for seed in range(25):
        problem = problem_of(model, x, 1.0, seed)
        true_mass = true_masses(model, x, problem.target, 1.0)
        order = rival_order(problem.margins, problem.target)
        for part in screen_sketch(problem, allowed=5e-4):
            rest = true_mass[part.inputs].scatter(1, part.classes, 0.0).sum(1)
            assert (rest <= part.dropped[0]).all() and (part.dropped <= 5e-4).all()
            assert torch.equal(part.classes[:, 0], problem.target[part.inputs])
            assert torch.equal(part.classes[:, 1:NEAR_ROWS], order[part.inputs, : NEAR_ROWS - 1])
            dropped_true.append(rest)
    # the bound is a bound, not the mass itself: something is dropped
    assert torch.cat(dropped_true).amax() > 0


def test_bounds_on_sketched_norms_fail_as_rarely_as_they_say(monkeypatch):
    """With the risk raised to one half, the share of inputs with any failed bound is below it, and
    is not zero: the bounds are as tight as their confidence allows."""
    from mvnrob import sketch

    monkeypatch.setattr(sketch, "SKETCH_RISK", 0.5)
    sketch.stretches.cache_clear()
    model, x = many_class_model(60, 90), inputs(1, 90)
    rivals = 59
    rows = jacobian(model, x)[0]
    target = int(model(x).argmax())
    u = (rows[target] - rows)[torch.arange(60) != target]
    order = torch.arange(rivals)  # any order that does not depend on the sketch
    failed, draws = 0, 400
    generator = torch.Generator().manual_seed(5)
    for _ in range(draws):
        e = torch.randn(90, SKETCH_SIZES[-1], generator=generator, dtype=torch.float64)
        squares = (u @ e).square()
        bad = False
        for size in SKETCH_SIZES:
            bound = squares[:, :size].sum(1) * sketch.stretches(rivals, size, order.device)[order]
            bad = bad or bool((bound < u.square().sum(1)).any())
        failed += bad
    sketch.stretches.cache_clear()
    # below one half by the union over classes and looks; 400 draws: three standard errors are .075
    assert 0.02 * draws < failed < 0.5 * draws, failed


@pytest.mark.parametrize("rivals", [1, 2, 3, 7, 8, 99, 999, 18_709])
def test_risks_are_spent_once(rivals):
    groups = _risks(rivals)
    assert sum(count for count, _ in groups) == rivals
    total = sum(count * share for count, share in groups)
    assert 0.5 < total <= 1 + 1e-12  # the last group may be short
    assert 0 < SKETCH_RISK <= 1e-3  # beside the integral's 1 %


def test_leading_directions():
    vectors = inputs(2, 5, 40) @ torch.diag(torch.linspace(3, 0.1, 40, dtype=torch.float64))
    basis, sizes = leading(vectors, 3)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(3).double().expand(2, 3, 3))
    decomposed = torch.linalg.svd(vectors, full_matrices=False)
    torch.testing.assert_close(sizes, decomposed.S[:, :3])
    expected = decomposed.Vh[:, :3]
    torch.testing.assert_close(
        (basis @ expected.mT).abs().diagonal(dim1=1, dim2=2), torch.ones(2, 3).double()
    )
    assert leading(inputs(2, 5, 2), 3)[0].shape == (2, 2, 2)  # fewer numbers than directions


def test_auto_takes_the_cheap_way(monkeypatch):
    """Few rivals that matter: a sketch. Many: a low rank, or for a tolerance that is too tight for
    one all rows, of the features where they are fewer."""
    monkeypatch.setattr(low_rank, "PASS_BYTES", 0)  # as if the network were large
    net, x = relu_net(classes=300, spread=0.0, width=150), inputs(4, 30)
    with torch.no_grad():
        net[5].bias.zero_()
        net[5].bias[:5] = 3.0
    small = robustness(net, x, 0.05)
    assert (small.cost.jvp > 8).all() and (small.cost.vjp < 60).all()
    low = robustness(net, x, 50.0)
    price = low.cost.vjp + JVP_IN_VJPS * low.cost.jvp
    assert (low.cost.vjp > NEAR_ROWS).all() and (price < 150).all()
    large = robustness(net, x, 50.0, abs_tol=4e-4)
    live = (net[:5](x) != 0).sum(1)
    assert large.cost.jvp.tolist() == [1] * 4  # the one that tells live features, and the check's
    # the chunk's inputs pass together: the longest list of live features for all
    assert large.cost.vjp.tolist() == [NEAR_ROWS + int(live.max())] * 4
    without = robustness(net, x, 50.0, head="off", abs_tol=4e-4)
    assert without.cost.vjp.tolist() == [NEAR_ROWS + 300] * 4
    for a, b in (
        (large, without),
        (low, large),
        (small, robustness(net, x, 0.05, screen="none", head="off")),
    ):
        assert ((a.prob - b.prob).abs() <= a.error + b.error).all()
    few = robustness(relu_net(classes=12), x, 0.3)
    assert few.cost.vjp.tolist() == [12] * 4 and few.cost.jvp.tolist() == [1] * 4


def test_inputs_of_a_batch_go_their_own_ways():
    """An easy input beside hard ones costs what it costs alone, and its answer is the same."""
    net = relu_net(classes=300, width=150)
    with torch.no_grad():
        net[5].bias[7] += 0.5
    x = inputs(6, 30)
    with torch.no_grad():  # scaled inputs: larger margins
        x[1] *= 8
    scale = 0.5
    together = robustness(net, x, scale)
    alone = [robustness(net, x[i : i + 1], scale, first_index=i) for i in range(6)]
    probs = torch.cat([a.prob for a in alone])
    errors = torch.cat([a.error for a in alone])
    assert ((together.prob - probs).abs() <= 1e-6 + (together.error + errors)).all()
    costs = together.cost.vjp + JVP_IN_VJPS * together.cost.jvp
    alone_costs = torch.cat([a.cost.vjp + JVP_IN_VJPS * a.cost.jvp for a in alone])
    assert costs.unique().numel() > 1, "the inputs must differ in what they need"
    assert (costs <= 2 * alone_costs + 1).all(), (costs, alone_costs)


def test_auto_without_forward_mode_takes_all_rows():
    class NoForwardMode(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    plain, x = many_class_model(), inputs(2, 120)
    result = robustness(lambda v: plain(NoForwardMode.apply(v)), x, 0.1, check="off")
    expected = robustness(plain, x, 0.1, screen="exact")
    torch.testing.assert_close(result.prob, expected.prob, rtol=0, atol=1e-12)
    # the near rivals' rows come before the first product
    assert (result.cost.vjp == 300 + NEAR_ROWS).all() and (result.cost.jvp == 0).all()


# --- the last linear layer ------------------------------------------------------------------------


class ConvHead(nn.Module):
    """A 1x1 convolution on pooled features, as in some mobile networks; Hugging Face's output."""

    def __init__(self, classes=80):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3)
        self.head = nn.Conv2d(24, classes, 1)

    def forward(self, x):
        pooled = torch.relu(self.stem(x)).mean((2, 3), keepdim=True)
        return types.SimpleNamespace(logits=self.head(pooled).flatten(1))


def conv_head():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return ConvHead().double().eval()


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x * 2)


@pytest.mark.parametrize(
    ("model", "shape", "name"),
    [
        (relu_net(), (30,), "5"),
        (Wrapped(relu_net()).eval(), (30,), "net.5"),
        (conv_head(), (3, 5, 5), "head"),
        (relu_net().forward, (30,), "5"),
        (nn.Sequential(relu_net(), nn.LogSoftmax(1)).eval(), (30,), None),
        (lambda v: relu_net()(v), (30,), None),
    ],
)
def test_head_is_found_where_its_output_is_the_logits(model, shape, name):
    x = inputs(3, *shape)
    network = Network("test", model, None, x)
    network.graph_bytes(x[:1])
    head = read_head("test", None, network, x[:1])
    assert (head.name if head else None) == name
    if head is not None:
        features = FeatureNetwork(network, head)(x)
        logits = head.products(features)[0] + head.bias
        torch.testing.assert_close(logits, network(x).double())


@pytest.mark.parametrize("model", ["relu", "conv"])
@pytest.mark.parametrize("method", ["taylor", "mmse", "taylor_mvs", "mmse_mvs"])
def test_factorised_rows_are_the_rows(model, method):
    net, x = (relu_net(), inputs(5, 30)) if model == "relu" else (conv_head(), inputs(5, 3, 5, 5))
    options = {"n_samples": 8} if method.startswith("mmse") else {}
    for way in ("exact", "none") if method in ("taylor", "mmse") else (None,):
        call = dict(options) if way is None else {"screen": way, **options}
        if way is not None:
            call["abs_tol"] = 1e-4
        through = robustness(net, x, [0.2, 1.0], method=method, check="raise", **call)
        full = robustness(net, x, [0.2, 1.0], method=method, head="off", **call)
        # rivals beyond the features are integrated by a factor, on other samples: two tolerances
        torch.testing.assert_close(through.prob, full.prob, rtol=0, atol=2e-4)
        assert (through.cost.vjp < full.cost.vjp * 0.6).all()
        assert torch.equal(through.n_screened, full.n_screened)


def test_only_live_features_are_differentiated():
    net, x = relu_net(), inputs(3, 30)
    live = (net[:5](x) != 0).sum(1)
    assert live.unique().numel() > 1 and live.max() < 35
    for row in range(3):
        one = robustness(net, x[row : row + 1], 1.0, screen="exact")
        assert one.cost.vjp.item() == live[row]
    # noise can revive a feature: copies of mmse have other dead ones
    noisy = robustness(net, x, 1.0, method="mmse", n_samples=4, screen="exact")
    assert noisy.cost.vjp.amax() > 4 * live.max()


@pytest.mark.parametrize(
    "options", [{"noise_factor": inputs(30, 4, seed=6)}, {"max_bytes": 40_000}]
)
def test_factorised_rows_with_noise_factors_and_budgets(options):
    net, x = relu_net(), inputs(5, 30)
    through = robustness(net, x, 1.0, screen="exact", abs_tol=1e-4, **options)
    full = robustness(net, x, 1.0, screen="exact", head="off", abs_tol=1e-4, **options)
    torch.testing.assert_close(through.prob, full.prob, rtol=0, atol=2e-4)
    assert (through.cost.vjp != full.cost.vjp).all()


def test_feature_rows_in_memory_stay_below_the_budget(monkeypatch):
    """Too few bytes for all features' rows: they are computed again for each range of columns."""
    net, x = relu_net(classes=900, width=40, features=4000), inputs(2, 4000)
    largest = []
    original = LogitMap.rows

    def watched(self, wanted, **options):
        rows = original(self, wanted, **options)
        largest.append(rows.numel() * rows.element_size())
        return rows

    monkeypatch.setattr(LogitMap, "rows", watched)
    tight = robustness(net, x, 1.0, screen="exact", max_bytes=800_000)
    assert max(largest) <= 400_000 and len(largest) > 2
    monkeypatch.undo()
    roomy = robustness(net, x, 1.0, screen="exact")
    torch.testing.assert_close(tight.prob, roomy.prob, rtol=0, atol=1e-9)
    assert (tight.cost.vjp > roomy.cost.vjp).all()


def test_a_large_common_part_costs_no_digits_in_float32():
    """All rows of W share a part 1,000 times their differences: it is subtracted in float64."""
    net = relu_net(classes=120, width=30)
    with torch.no_grad():
        net[5].weight += 1000 * torch.randn(30, generator=torch.Generator().manual_seed(1))
    single = copy.deepcopy(net).float()
    net = copy.deepcopy(single).double()  # the same weights to the bit
    x = inputs(6, 30, dtype=torch.float32)
    a = robustness(single, x, 0.7, screen="exact", check="off")
    b = robustness(net, x.double(), 0.7, screen="exact", target=a.target)
    # float32 logits of size 1e4 are known to 1e-3, which is what the margins then differ by
    own = (single(x).double() - net(x.double())).abs().max()
    gap = (a.prob - b.prob).abs().max()
    assert gap <= 2e-3 + 2 * own, (gap, own)


class Switching(nn.Module):
    """Its logits are the last layer's, but where the first number of an input is positive."""

    def __init__(self):
        super().__init__()
        self.net = relu_net()

    def forward(self, x):
        return self.net(x) * torch.where(x[:, :1] > 0, 2.0, 1.0)


def test_a_head_that_fails_at_a_later_input_is_given_up_loudly():
    model = Switching().eval()
    x = inputs(4, 30)
    x[:, 0] = torch.tensor([-1.0, -1, 1, -1])
    expected = robustness(model, x, 0.5, screen="exact", head="off")
    with pytest.warns(RuntimeWarning, match="the last linear layer is not used") as caught:
        result = robustness(model, x, 0.5, screen="exact", check="raise")
    assert {w.filename for w in caught} == {__file__}
    torch.testing.assert_close(result.prob, expected.prob, rtol=0, atol=1e-9)
    with pytest.raises(
        ValueError, match="^robustness: head must give the logits, got a difference"
    ):
        robustness(model, x, 0.5, screen="exact", head="net.5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robustness(model, x[[0, 1, 3]], 0.5, screen="exact", head="net.5")


class Straight(nn.Module):
    """The last layer's output to the bit with another derivative, as in a straight-through estimator."""

    def __init__(self):
        super().__init__()
        self.net = relu_net()

    def forward(self, x):
        own = x[:, :1] * torch.linspace(-3, 3, 80).to(x)
        return self.net(x) + (own - own.detach())


def test_a_head_with_another_derivative_is_given_up_loudly():
    model, x = Straight().eval(), inputs(3, 30)
    expected = robustness(model, x, 0.5, screen="exact", head="off")
    with pytest.warns(RuntimeWarning, match="not used.*between the derivatives of logit"):
        result = robustness(model, x, 0.5, screen="exact", check="raise")
    torch.testing.assert_close(result.prob, expected.prob, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="head must give the logits, got .* derivatives"):
        robustness(model, x, 0.5, screen="exact", head="net.5")


class NoForwardMode(torch.autograd.Function):
    """The identity, in reverse mode alone."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Bypassed(nn.Module):
    """Logits that are the last layer's to the bit, with gradients that are not; no forward mode."""

    def __init__(self, way, dtype):
        super().__init__()
        self.net, self.way = relu_net(dtype=dtype), way

    def forward(self, x):
        x = NoForwardMode.apply(x)
        logits = self.net(x)
        if self.way == "one logit moves on its own":
            own = x[:, :1] * torch.nn.functional.one_hot(torch.tensor(3), 80).to(x)
            return logits + (own - own.detach())
        if self.way == "features detached":  # what moves is another path
            other = 1e-3 * (x @ torch.linspace(-1, 1, 30 * 80).to(x).reshape(30, 80))
            return logits.detach() + (other - other.detach())
        return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["one logit moves on its own", "features detached"])
@pytest.mark.parametrize("method", ["taylor", "taylor_mvs", "mmse"])
def test_a_head_with_another_gradient_is_given_up_loudly_without_forward_mode(dtype, way, method):
    """Where forward mode cannot tell, one backward pass along a random cotangent does."""
    model, x = Bypassed(way, dtype).eval(), inputs(3, 30, dtype=dtype)
    options = {"method": method, "check": "off"}
    options |= {"n_samples": 4} if method == "mmse" else {}
    options |= {} if method == "taylor_mvs" else {"screen": "exact"}
    expected = robustness(model, x, 0.5, head="off", **options)
    with pytest.warns(RuntimeWarning, match="not used.* between the gradients of the logits"):
        result = robustness(model, x, 0.5, **options)
    torch.testing.assert_close(result.prob, expected.prob, rtol=0, atol=1e-6)
    with pytest.raises(
        ValueError, match="^robustness: head must give the logits, got .* gradients"
    ):
        robustness(model, x, 0.5, head="net.5", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_without_forward_mode_is_used(dtype):
    model, x = Bypassed("not at all", dtype).eval(), inputs(3, 30, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = robustness(model, x, 0.5, screen="exact", head="net.5", check="off")
    plain = robustness(model.net, x, 0.5, screen="exact", head="off")
    torch.testing.assert_close(result.prob, plain.prob, rtol=0, atol=1e-5)
    assert (result.cost.vjp == 40 + 2).all(), "the features' rows, and the two that are compared"


def test_named_head_of_a_callable():
    net, x = relu_net(), inputs(3, 30)
    by_name = robustness(lambda v: net(v), x, 0.5, screen="exact", head=net[5])
    plain = robustness(lambda v: net(v), x, 0.5, screen="exact")
    torch.testing.assert_close(by_name.prob, plain.prob, rtol=0, atol=1e-6)
    assert (by_name.cost.vjp < 40).all() and (plain.cost.vjp == 80).all()


def test_compiled_models_are_left_alone():
    """Hooks on a compiled model's parts would be traced: no head, no warning, no recompilation."""
    net, x = relu_net(), inputs(3, 30)
    plain = robustness(net, x, 0.5, screen="exact", head="off")
    inside = copy.deepcopy(net)
    inside.compile(backend="eager")
    for compiled in (torch.compile(copy.deepcopy(net), backend="eager"), inside):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            result = robustness(compiled, x, 0.5, screen="exact")
        torch.testing.assert_close(result.prob, plain.prob, rtol=0, atol=1e-9)
        assert torch.equal(result.cost.vjp, plain.cost.vjp)


def test_classes_with_equal_weights_never_overtake():
    """dW = 0 exactly: no noise moves the margin."""
    net, x = relu_net(), inputs(3, 30)
    with torch.no_grad():
        net[5].weight[:] = net[5].weight[0]
        net[5].weight[1] = -net[5].weight[0]
        net[5].bias[:] = -torch.arange(80)
        net[5].bias[0] = 30.0
    result = robustness(net, x, 0.3, screen="none", target=0)
    full = robustness(net, x, 0.3, screen="none", target=0, head="off")
    torch.testing.assert_close(result.prob, full.prob, rtol=0, atol=1e-9)


def test_screen_covers_its_inputs_once():
    net, x = relu_net(classes=300, width=150), inputs(5, 30)
    problem = problem_of(net, x, 0.3)
    parts = screen(problem, "auto", 1e-3)
    assert sorted(torch.cat([part.inputs for part in parts]).tolist()) == list(range(5))


class Narrow(nn.Module):
    """Many classes from few features: more survivors than features."""

    def __init__(self, classes: int = 400, width: int = 6) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.body = nn.Sequential(nn.Linear(12, width), nn.Tanh())
            self.head = nn.Linear(width, classes)
            self.head.weight.data[7] = self.head.weight.data[3]  # never change their margin

    def forward(self, x):
        return self.head(self.body(x))


def test_survivors_beyond_the_features_stay_a_factor(monkeypatch):
    """The integral gets rows of six numbers, never a covariance of 399 classes; p is the same."""
    from mvnrob.estimators import linear

    model, x = Narrow().double().eval(), torch.rand(5, 12).double()
    seen = []

    def watched(z, **options):
        seen.append({k: tuple(v.shape) for k, v in options.items() if k in ("cov", "factor")})
        return mvnrob.mvn_cdf(z, **options)

    monkeypatch.setattr(linear, "mvn_cdf", watched)
    options = {"abs_tol": 1e-4, "screen": "none"}
    narrow = mvnrob.robustness(model, x, [0.02, 0.1], **options)
    assert seen and all(shapes == {"factor": (5, 399, 6)} for shapes in seen)
    seen.clear()
    whole = mvnrob.robustness(model, x, [0.02, 0.1], head="off", **options)
    assert all(set(shapes) == {"cov"} for shapes in seen)
    gap = (narrow.prob - whole.prob).abs()
    assert bool((gap <= narrow.error + whole.error + 1e-9).all())
    assert torch.equal(narrow.runner_up, whole.runner_up)
    shares = mvnrob.argmax_probabilities(model, x, 0.1, screen="none")
    near = shares.prob.gather(1, narrow.target[:, None])[:, 0]
    assert bool(((near - narrow.prob[1]).abs() <= 2e-3).all())
