"""p as a loss term: values, derivatives through the norms, and that training with it works."""

import math

import pytest
import torch

import mvnrob
from mvnrob.training import taylor_probability


def smooth_model(dtype=torch.float64, classes=4, seed=0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, classes)
        ).to(dtype).eval()  # fmt: skip


def inputs(count=6, dtype=torch.float64):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.mark.parametrize("method", ["taylor", "taylor_mvs"])
@pytest.mark.parametrize("labelled", [False, True])
def test_values_are_those_of_robustness(method, labelled):
    x = inputs(20)
    target = torch.arange(20) % 4 if labelled else None
    wanted = mvnrob.robustness(smooth_model(), x, 0.3, method=method, target=target)
    got = taylor_probability(smooth_model(), x, 0.3, method=method, target=target, abs_tol=1e-6)
    torch.testing.assert_close(got.detach(), wanted.prob, atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["taylor", "taylor_mvs", "taylor_mendell_elston"])
def test_gradients_against_finite_differences(method):
    """Through margins, norms and angles. Four classes: mvn_cdf and its slopes are closed forms."""
    model, x = smooth_model(), inputs()
    weights = list(model.parameters())

    def p(x_, *w):
        names = [name for name, _ in model.named_parameters()]
        call = lambda v: torch.func.functional_call(model, dict(zip(names, w, strict=True)), (v,))
        target = model(x).argmax(1)
        return taylor_probability(call, x_, 0.4, target=target, method=method)

    leaves = [x.clone().requires_grad_(), *(w.detach().clone().requires_grad_() for w in weights)]
    # closed forms are exact to 1e-15, tvn to about 1e-13: central differences leave 1e-8
    assert torch.autograd.gradcheck(p, leaves, eps=1e-5, atol=2e-6, rtol=1e-4)


def test_norms_are_in_the_graph():
    """Scaling all logits changes neither z nor p: the gradient along the weights' scale is zero."""
    model = torch.nn.Linear(5, 3, bias=False).double()
    p = taylor_probability(model, inputs(), 0.5).sum()
    (slope,) = torch.autograd.grad(p, model.weight)
    assert abs(float((slope * model.weight).sum())) < 1e-10 * float(slope.abs().sum())
    assert float(slope.abs().sum()) > 1e-3


def test_more_classes_by_sampling():
    """Nine rivals: sampled slopes against those of float64 finite differences of a tight value."""
    model, x = smooth_model(classes=10), inputs(4)
    target = model(x).argmax(1)
    leaf = x.clone().requires_grad_()
    p = taylor_probability(model, leaf, 0.4, target=target, abs_tol=1e-5)
    (slope,) = torch.autograd.grad(p.sum(), leaf)
    step, direction = 1e-2, torch.nn.functional.normalize(slope, dim=1)

    def value(at):
        return taylor_probability(model, at, 0.4, target=target, abs_tol=1e-7).detach()

    with torch.no_grad():
        fall = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    # differences of second order in the step: 1e-4 of curvature, and 1e-7 / 1e-2 of integration
    torch.testing.assert_close((slope * direction).sum(1), fall, atol=2e-3, rtol=2e-2)


def test_mendell_elston_is_near():
    model, x = smooth_model(classes=10), inputs(20)
    exact = taylor_probability(model, x, 0.4, abs_tol=1e-5)
    near = taylor_probability(model, x, 0.4, method="taylor_mendell_elston")
    torch.testing.assert_close(near, exact, atol=0.03, rtol=0)  # mean .003 on classifiers
    assert not torch.equal(near, exact)


def test_fewer_rivals_bound_p():
    model, x = smooth_model(classes=10), inputs(20)
    whole = taylor_probability(model, x, 0.4, abs_tol=1e-6)
    some = taylor_probability(model, x, 0.4, rivals=3)
    assert bool((some >= whole - 2e-6).all()) and bool((some > whole + 1e-3).any())
    torch.testing.assert_close(
        taylor_probability(model, x, 0.4, rivals=99, abs_tol=1e-6), whole, atol=2e-6, rtol=0
    )


class Parallel(torch.nn.Module):
    """Class 1 has class 0's gradient, one less: never overtakes. Class 2 is as far on the other side."""

    def __init__(self, gap: float) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
        self.gap = gap

    def forward(self, x):
        f = x @ self.w
        return torch.stack([f, f - self.gap, 0.5 * f - 1], 1)


@pytest.mark.parametrize("method", ["taylor", "taylor_mvs"])
def test_equal_gradients(method):
    x = inputs(3).abs()
    target = torch.zeros(3, dtype=torch.int64)
    model = Parallel(1.0)
    p = taylor_probability(model, x, 0.5, target=target, method=method)
    assert bool((p > 0.5).all())
    (slope,) = torch.autograd.grad(p.sum(), model.w)
    assert bool(slope.isfinite().all())
    behind = taylor_probability(Parallel(-1.0), x, 0.5, target=target, method=method)
    assert behind.tolist() == [0, 0, 0]


def test_gradient_penalty():
    """Second derivatives go through the integral, too, as far as the network has them."""
    model, x = smooth_model(), inputs()

    def slope(x):
        p = taylor_probability(model, x, 0.4, abs_tol=1e-6)
        return torch.autograd.grad(p.sum(), x, create_graph=True)[0]

    at = x.clone().requires_grad_()
    (penalty,) = torch.autograd.grad(slope(at).square().sum(), at)
    along = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)
    plus, minus = (
        float(slope((x + s * 1e-3 * along).requires_grad_()).square().sum()) for s in (1, -1)
    )
    # A third derivative of order one times 1e-6.
    assert float((penalty * along).sum()) == pytest.approx((plus - minus) / 2e-3, rel=1e-3)


@pytest.mark.parametrize("method", ["taylor", "taylor_mvs", "taylor_mendell_elston"])
def test_a_masked_class_changes_nothing(method):
    """A logit of -inf that depends on x: values and slopes of the other classes alone."""
    model, x = smooth_model(classes=5), inputs()

    class Others(torch.nn.Module):
        def forward(self, v):
            return model(v)[:, 1:]

    mask = torch.tensor([-math.inf, 0, 0, 0, 0], dtype=torch.float64)
    slopes = []
    for network in (lambda v: model(v) + mask, Others()):
        p = taylor_probability(network, x, 0.4, method=method)
        slopes.append(torch.autograd.grad(p.sum(), list(model.parameters())))
    for masked, without in zip(*slopes, strict=True):
        torch.testing.assert_close(masked, without, atol=1e-12, rtol=1e-9)


def test_mvs_far_from_the_label():
    """p from 5e-16 to 2e-83: the squares of some are no float32, and of others the exponentials."""
    known = []
    for dtype in (torch.float32, torch.float64):
        model, x = smooth_model().to(dtype), inputs(8).to(dtype).requires_grad_()
        label = model(x).argmin(1)
        p = taylor_probability(model, x, 0.02, target=label, method="taylor_mvs")
        known.append((p.detach().double(), torch.autograd.grad(p.sum(), x)[0].double()))
    (p, single), (q, double) = known
    normal = q > torch.finfo(torch.float32).tiny
    assert int((q[normal] < 1e-20).sum()) >= 2 and int((q < 1e-50).sum()) >= 2
    # z of about 60 carries float32's rounding, some 1e-6 of it, into log p
    torch.testing.assert_close(p[normal], q[normal], atol=0, rtol=1e-3)
    size = double.abs().amax(1, keepdim=True)
    torch.testing.assert_close((single / size)[normal], (double / size)[normal], atol=1e-3, rtol=0)
    assert float(single[~normal].abs().max()) < 1e-30


@pytest.mark.parametrize("method", ["taylor", "taylor_mvs", "taylor_mendell_elston"])
@pytest.mark.parametrize("dtype, most", [(torch.float32, 30), (torch.float64, 250)])
def test_scale_of_the_logits_does_not_matter(method, dtype, most):
    """Squares of such gradients are no numbers of the dtype."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 6, generator=generator, dtype=dtype)
    x = torch.randn(3, 6, generator=generator, dtype=dtype)

    def answer(scale):
        model = torch.nn.Linear(6, 6, bias=False, dtype=dtype)
        model.weight.data = weight * scale
        p = taylor_probability(model, x, 0.5, method=method)
        (slope,) = torch.autograd.grad(p.sum(), model.weight)
        return p.detach(), slope * scale

    plain, slope = answer(1.0)
    assert float(plain.min()) < 0.6 and float(slope.norm()) > 0.3
    for exponent in (-most, -25, 25, most):
        p, scaled_slope = answer(10.0**exponent)
        # the scaled weights are rounded
        torch.testing.assert_close(p, plain, atol=1e-6, rtol=0)
        torch.testing.assert_close(scaled_slope, slope, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["taylor", "taylor_mvs", "taylor_mendell_elston"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_inputs(method, dtype):
    """Empty, with a graph: a loss summed over it gives zero gradients."""
    model = smooth_model(dtype, classes=40)
    for options in ({}, {"rivals": 2}, {"target": torch.zeros(0, dtype=torch.int64)}):
        p = taylor_probability(model, inputs(0, dtype), 0.3, method=method, **options)
        assert p.shape == (0,) and p.dtype == dtype
        for slope in torch.autograd.grad(p.sum(), list(model.parameters()), allow_unused=True):
            assert slope is None or not bool(slope.any())


@pytest.mark.parametrize("training", [False, True])
def test_attention_has_second_derivatives(training):
    """The fused kernels that torch takes by itself have none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Unflatten(1, (5, 1)),
            torch.nn.Linear(1, 8),
            torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
            torch.nn.Flatten(),
            torch.nn.Linear(40, 4),
        ).double().train(training)  # fmt: skip
    x = inputs(2).requires_grad_()
    target = model(x).argmax(1)
    # closed forms, as above
    assert torch.autograd.gradcheck(
        lambda v: taylor_probability(model, v, 0.4, target=target),
        x,
        eps=1e-5,
        atol=2e-6,
        rtol=1e-4,
    )


def test_inputs_get_gradients_and_float32():
    x = inputs(4, torch.float32).requires_grad_()
    p = taylor_probability(smooth_model(torch.float32), x, 0.3)
    p.sum().backward()
    assert p.dtype == torch.float32 and bool(x.grad.isfinite().all()) and float(x.grad.norm()) > 0


def test_nan_rows_stay_alone():
    x = inputs(3)
    x[1] = math.nan
    p = taylor_probability(smooth_model(), x, 0.3)
    assert p.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": 3}, "model must be callable"),
        ({"x": torch.zeros(2, 5, dtype=torch.int64)}, "x must be a float32 or float64 tensor"),
        ({"x": torch.zeros(5)}, r"x must have shape \[B"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma": [0.1]}, "sigma must be a number"),
        ({"method": "mc"}, "method must be one of"),
        ({"rivals": 0}, "rivals must be a positive int"),
        ({"slope": -1.0}, "slope must be a positive number"),
        ({"slope": "steep"}, "slope must be a positive number, got 'steep'"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, r"target must be int64 \[6\]"),
        ({"target": torch.full((6,), 9)}, r"target must lie in \[0, 4\)"),
        ({"model": lambda x: torch.zeros(6, 4)}, "must be differentiable in its input"),
        ({"model": lambda x: x.sum()}, r"must return logits \[6, C\]"),
        ({"model": torch.nn.Sequential(torch.nn.BatchNorm1d(5)).double()}, "batch norm in eval"),
    ],
)
def test_bad_calls(change, text):
    call = {"model": smooth_model(), "x": inputs(), "sigma": 0.3, **change}
    with pytest.raises((TypeError, ValueError), match=text):
        taylor_probability(call.pop("model"), call.pop("x"), call.pop("sigma"), **call)


def test_training_raises_p_on_digits():
    """Fifty steps from a trained network: the test set's mean p rises and its accuracy stays."""
    from mvnrob.demo.training import train_robustly
    from mvnrob.models.digits import load_digits_classifier, load_digits_data

    x_train, y_train, x, y = load_digits_data()
    model, _, _ = load_digits_classifier()

    def measure():
        p = mvnrob.robustness(model, x, 0.3, target=y, method="mc", n_samples=300).prob.mean()
        return float(p), float((model(x).argmax(1) == y).double().mean())

    before, accuracy = measure()
    train_robustly(model, x_train, y_train, sigma=0.3, steps=50)
    after, kept = measure()
    assert after > before + 0.03  # measured: .76 to .83; 360 x 300 draws have a noise of .001
    assert kept > accuracy - 0.02


@pytest.mark.parametrize("method", ["taylor", "taylor_mvs", "taylor_mendell_elston"])
def test_autocast_reaches_the_model_alone(method):
    """What the covariances are made of keeps its dtype: as if the model cast by itself."""
    model, x = smooth_model(torch.float32), inputs(dtype=torch.float32)

    def inside(v):
        with torch.autocast("cpu", torch.bfloat16):
            return model(v)

    wanted = taylor_probability(inside, x, 0.4, method=method)
    with torch.autocast("cpu", torch.bfloat16):
        got = taylor_probability(model, x, 0.4, method=method)
    assert got.dtype == torch.float32 and torch.equal(got, wanted)
    weights = list(model.parameters())
    slopes, wanted = (torch.autograd.grad(p.sum(), weights) for p in (got, wanted))
    assert all(map(torch.equal, slopes, wanted))


def test_logits_of_another_dtype():
    """Differences of half precision logits are not rounded to it again."""
    model, x = smooth_model(), inputs(dtype=torch.float32)
    wanted = taylor_probability(model, x.double(), 0.4).detach()
    double = taylor_probability(lambda v: model(v.double()), x, 0.4).detach()
    torch.testing.assert_close(double, wanted, atol=1e-6, rtol=0)
    # 100.5 - 0.30078125 is 100 in bfloat16, where both are numbers
    half = lambda v: torch.cat([v + 100.5, 0 * v + 0.30078125], 1).bfloat16()
    p = taylor_probability(half, torch.zeros(1, 1), 100.0).detach()
    torch.testing.assert_close(p, torch.special.ndtr(torch.tensor([1.0019921875])))


def test_inference_mode_is_refused():
    model, x = torch.nn.Linear(4, 3).eval(), torch.ones(2, 4)
    with torch.no_grad():
        value = taylor_probability(model, x, 0.3)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match="x must be given outside of torch.inference_mode.* got"),
    ):
        taylor_probability(model, x, 0.3)
    assert value.shape == (2,)
