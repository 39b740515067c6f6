"""argmax_probabilities: known answers, sums, edges and bad calls."""

import math

import pytest
import torch
from torch import nn

from mvnrob import Status, argmax_probabilities, robustness
from mvnrob.argmax import ArgmaxResult


def inputs(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear_model(classes, features, seed=0, dtype=torch.float64):
    layer = nn.Linear(features, classes).to(dtype).eval().requires_grad_(False)
    layer.weight.copy_(inputs(classes, features, seed=seed, dtype=dtype))
    layer.bias.copy_(inputs(classes, seed=seed + 100, dtype=dtype))
    return layer


def counted(model, x, sigma, draws=2_000_000):
    """Shares of the classes over noisy copies of each input of a linear model."""
    generator = torch.Generator().manual_seed(7)
    weight = model.weight.float()
    counts = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for _ in range(draws // 100_000):
        moved = torch.randn(100_000, x.shape[1], generator=generator) @ weight.T * sigma
        for row, clean in enumerate(model(x).float()):
            counts[row] += torch.bincount((clean + moved).argmax(1), minlength=len(weight))
    return counts / draws


@pytest.mark.parametrize(("classes", "features"), [(2, 3), (10, 20), (60, 8), (60, 100)])
def test_against_counting(classes, features):
    """(60, 8): covariances of rank 8, and the last layer's 8 features for 60 rows."""
    model, x = linear_model(classes, features), inputs(3, features)
    sigmas = [0.1, 0.5]
    result = argmax_probabilities(model, x, sigmas, min_prob=1e-4)
    for s, sigma in enumerate(sigmas):
        truth = counted(model, x, sigma)
        spread = 4 * (truth * (1 - truth) / 2_000_000).sqrt() + 3e-6
        assert ((result.prob[s] - truth).abs() <= result.error[s] + spread).all()
        left = truth.masked_fill(result.prob[s] > 0, 0.0).sum(1)
        assert ((result.rest[s] - left).abs() <= result.rest_error[s] + 3e-3).all()
    assert (result.prob > 0.02).sum() > 6 or classes == 2
    assert (result.error[result.prob > 0] <= 1e-3).all()
    assert torch.equal(result.target, model(x).argmax(1))


def test_probabilities_sum_to_one_within_their_error():
    model, x = linear_model(40, 30), inputs(6, 30)
    for min_prob in (0.0, 1e-3, 0.05):
        result = argmax_probabilities(model, x, [0.05, 0.3, 2.0], min_prob=min_prob)
        total = result.prob.sum(-1)
        if min_prob == 0.0:
            assert ((total - 1).abs() <= result.rest_error).all()
        assert (total <= 1 + result.rest_error).all()
        torch.testing.assert_close(total + result.rest, torch.ones(3, 6).double().maximum(total))
        # a class without an integral cannot reach min_prob
        left = result.prob == 0
        assert (result.error[left] <= min_prob + 1e-3).all()
    assert (result.rest > 0.05).any()


def test_is_robustness_with_each_target():
    model, x = linear_model(12, 9), inputs(4, 9)
    shares = argmax_probabilities(model, x, 0.5, min_prob=0.0)
    for label in range(12):
        one = robustness(model, x, 0.5, target=label, screen="none")
        gap = (shares.prob[:, label] - one.prob).abs()
        assert (gap <= shares.error[:, label] + one.error + 1e-12).all()


@pytest.mark.parametrize("screen", ["auto", "exact", "sketch", "none"])
def test_screening_and_the_last_layer(screen):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(300, 120, generator=generator, dtype=torch.float64)
    weight += 3 * torch.randn(120, generator=generator, dtype=torch.float64)
    bias = torch.linspace(0, -25, 300, dtype=torch.float64)
    x = inputs(4, 120)
    result = argmax_probabilities(
        lambda v: 0.2 * v @ weight.T + bias, x, [0.05, 0.25], screen=screen
    )
    full = argmax_probabilities(
        lambda v: 0.2 * v @ weight.T + bias, x, [0.05, 0.25], screen="none", abs_tol=1e-4
    )
    assert ((result.prob - full.prob).abs() <= result.error + full.error).all()
    if screen in ("auto", "sketch"):
        assert (result.cost.vjp < 150).all()
    assert (full.prob[1] > 0.01).sum(1).amax() >= 3


def test_differences_of_rivals_keep_their_digits_in_float32():
    """Two rivals whose gradients differ by 1e-3 of their size: their difference decides."""
    model = linear_model(5, 40, dtype=torch.float32)
    model.weight[1:] *= 3
    model.weight[2] = model.weight[1] + 3e-3 * inputs(40, seed=9, dtype=torch.float32)
    x = inputs(4, 40, dtype=torch.float32)
    model.bias.zero_()
    own = model(x)[0]
    model.bias[1:3] += own.max() - own[1:3]  # both at the top
    wide = nn.Linear(40, 5).double().eval().requires_grad_(False)
    wide.load_state_dict(model.state_dict())
    a = argmax_probabilities(model, x, 0.5, head="off", min_prob=0.0)
    b = argmax_probabilities(wide, x.double(), 0.5, min_prob=0.0)
    # float32 logits of size 10 against margins' deviations of 1e-2: z is known to 1e-4
    assert ((a.prob - b.prob).abs() <= a.error + b.error + 2e-4).all()
    assert a.prob[0, 1] > 0.02 and a.prob[0, 2] > 0.02


@pytest.mark.parametrize("relative", [1e-3, 1e-6, 1e-9, 1e-13])
def test_nearly_equal_classes(relative):
    """Two rivals that differ by little in float64: beside each one's probability by its own
    differences, which keep their digits."""
    model, x = linear_model(8, 6), inputs(3, 6)
    step = relative * inputs(6, seed=5)
    model.weight[2] = model.weight[1] + step
    model.bias[2] = model.bias[1] - x[0] @ step
    shares = argmax_probabilities(model, x, 2.0, min_prob=0.0)
    for label in range(8):
        one = robustness(model, x, 2.0, target=label, screen="none")
        gap = (shares.prob[:, label] - one.prob).abs()
        assert (gap <= shares.error[:, label] + one.error).all()
    assert ((shares.prob.sum(1) + shares.rest - 1).abs() <= shares.rest_error).all()
    told = shares.error[0, 1:3] <= 1e-3
    assert told.all() == (relative > 1e-7)
    assert (shares.error[:, 3:] <= 1e-3).all()
    # where neither is ever on top there is nothing to share
    far = argmax_probabilities(model, x[1:], 2e-3, min_prob=0.0)
    assert (far.error <= 1e-3).all()


def test_equal_classes_and_sigma_zero():
    model, x = linear_model(4, 6), inputs(3, 6)
    model.weight[3], model.bias[3] = model.weight[1], model.bias[1]
    result = argmax_probabilities(model, x, [0.0, 0.7], min_prob=0.0)
    clean = torch.nn.functional.one_hot(model(x).argmax(1), 4).double()
    assert torch.equal(result.prob[0], clean)
    assert (result.prob[:, :, 3] == 0).all(), "the first of equal classes wins"
    assert ((result.prob.sum(-1) - 1).abs() <= result.rest_error + 1e-12).all()
    assert (result.prob[1, :, 1] > 0.01).any() and (result.error <= 1e-3).all()


def test_nan_confined_infinite_logits_and_batches():
    model, x = linear_model(40, 6), inputs(5, 6)
    whole = argmax_probabilities(model, x, 0.5)
    broken = x.clone()
    broken[2, 0] = math.nan
    result = argmax_probabilities(model, broken, 0.5, check="off")
    assert result.prob[2].isnan().all() and result.status[2] == Status.NAN_INPUT
    rows = [0, 1, 3, 4]
    gap = (result.prob[rows] - whole.prob[rows]).abs()
    assert (gap <= result.error[rows] + whole.error[rows]).all()
    single = argmax_probabilities(model, x[3:4], 0.5, first_index=3)
    torch.testing.assert_close(single.prob[0], whole.prob[3], rtol=0, atol=1e-6)
    tight = argmax_probabilities(model, x, 0.5, max_bytes=1)
    assert ((tight.prob - whole.prob).abs() <= tight.error + whole.error).all()
    masked = torch.zeros(40, dtype=torch.float64)
    masked[:20] = -math.inf
    half = argmax_probabilities(lambda v: model(v) + masked, x, 0.5)
    assert (half.prob[:, :20] == 0).all() and (half.error[:, :20] == 0).all()
    assert ((half.prob.sum(1) + half.rest - 1).abs() <= half.rest_error).all()


def test_shapes_and_repr():
    model, x = linear_model(4, 6), inputs(3, 6)
    one, many = argmax_probabilities(model, x, 0.3), argmax_probabilities(model, x, [0.3])
    assert isinstance(one, ArgmaxResult) and one.prob.shape == (3, 4) and one.rest.shape == (3,)
    assert many.prob.shape == (1, 3, 4) and many.sigma.tolist() == [0.3]
    assert (one.cost.vjp == 4).all()
    assert repr(many).startswith("ArgmaxResult(prob: 1x3x4, largest error ")


@pytest.mark.parametrize("sigma", [0.3, [0.3, 0.4]])
def test_no_inputs(sigma):
    """A loader's last batch may be empty: shapes and dtypes are those of any batch."""
    model = linear_model(4, 6)
    some = argmax_probabilities(model, inputs(3, 6), sigma)
    none = argmax_probabilities(model, inputs(0, 6), sigma)
    for name in ("prob", "error", "rest", "rest_error", "status", "target"):
        full, empty = getattr(some, name), getattr(none, name)
        assert empty.dtype == full.dtype
        assert empty.shape == tuple(0 if size == 3 else size for size in full.shape)
    assert len(none.cost.vjp) == 0


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"min_prob": 1.0}, ValueError, r"min_prob must be a number in \[0, 1\), got 1.0"),
        ({"min_prob": "a"}, TypeError, r"min_prob must be a number in \[0, 1\), got 'a'"),
        ({"abs_tol": 0.0}, ValueError, "abs_tol must be a positive number, got 0.0"),
        ({"screen": "all"}, ValueError, "screen must be one of auto, exact, sketch, none"),
        (
            {"head": "a"},
            ValueError,
            "head must be 'off', .* got 'a', which the model does not have",
        ),
        ({"sigma": -1.0}, ValueError, "sigma must be finite and not negative"),
        ({"seed": 0.5}, TypeError, "seed must be an int, got float"),
        ({"max_bytes": 0}, ValueError, "max_bytes must be at least 1, got 0"),
    ],
)
def test_bad_calls(change, kind, message):
    call = {"model": linear_model(4, 6), "x": inputs(3, 6), "sigma": 0.1, **change}
    with pytest.raises(kind, match=message) as caught:
        argmax_probabilities(call.pop("model"), call.pop("x"), call.pop("sigma"), **call)
    assert str(caught.value).startswith("argmax_probabilities: ")
