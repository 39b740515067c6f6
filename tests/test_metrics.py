"""The shapes of other libraries: a torchmetrics metric and Captum's estimator object."""

import pytest
import torch

import mvnrob
from mvnrob import Estimator

metrics = pytest.importorskip("mvnrob.metrics")


def net() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(6, 3)).eval()


def data(count: int = 20):
    x = torch.rand(count, 6, generator=torch.Generator().manual_seed(2))
    return x, torch.arange(count) % 3


@pytest.mark.parametrize("method", ["taylor", "mc"])
def test_batches_are_one_data_set(method):
    """Whatever the batches: the noise of an input is its own."""
    x, y = data()
    options = {"n_samples": 100} if method == "mc" else {}
    whole = mvnrob.robustness(net(), x, 0.2, target=y, method=method, **options)
    metric = metrics.AverageCaseRobustness(
        net(), 0.2, method=method, reduction="none", options=options
    )
    for _ in range(2):  # reset starts over
        for part in (slice(0, 3), slice(3, 11), slice(11, 20)):
            metric.update(x[part], y[part])
        torch.testing.assert_close(metric.compute(), whole.prob, atol=2e-6, rtol=0)
        metric.reset()


def test_reductions():
    x, y = data()
    x[4] = float("nan")
    prob = mvnrob.robustness(net(), x, 0.2, target=y).prob
    mean = metrics.AverageCaseRobustness(net(), 0.2)
    mean.update(x, y)
    torch.testing.assert_close(mean.compute(), prob.nanmean())
    each = metrics.AverageCaseRobustness(net(), 0.2, reduction="class", num_classes=4)
    each.update(x, y)
    wanted = torch.stack([prob[(y == c) & ~prob.isnan()].mean() for c in range(3)])
    torch.testing.assert_close(each.compute()[:3], wanted)
    assert each.compute()[3].isnan()
    alone = metrics.AverageCaseRobustness(net(), 0.2)
    alone.update(x)  # predictions
    torch.testing.assert_close(alone.compute(), mvnrob.robustness(net(), x, 0.2).prob.nanmean())


def test_forward_and_composition():
    x, y = data()
    metric = metrics.AverageCaseRobustness(net(), 0.2)
    batch = metric(x[:5], y[:5])
    torch.testing.assert_close(
        batch, mvnrob.robustness(net(), x[:5], 0.2, target=y[:5]).prob.mean()
    )
    metric(x[5:], y[5:])
    torch.testing.assert_close(
        metric.compute(), mvnrob.robustness(net(), x, 0.2, target=y).prob.mean()
    )
    assert metric.state_dict() == {} and not list(metric.parameters())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"sigma": [0.1]}, "sigma must be a number"),
        ({"sigma": 0.1, "reduction": "sum"}, "reduction must be one of"),
        ({"sigma": 0.1, "reduction": "class"}, "num_classes must go with"),
        ({"sigma": 0.1, "num_classes": 3}, "num_classes must go with"),
    ],
)
def test_bad_metrics(arguments, text):
    with pytest.raises((TypeError, ValueError), match=text):
        metrics.AverageCaseRobustness(net(), **arguments)


def test_estimator_is_robustness():
    x, y = data()
    wanted = mvnrob.robustness(net(), x, [0.1, 0.2], target=y, abs_tol=1e-4)
    got = Estimator(net(), [0.1, 0.2], abs_tol=1e-4).estimate(x, target=y)
    assert torch.equal(got.prob, wanted.prob) and got.method == "taylor"
    one = Estimator(net(), 0.1, method="mc", n_samples=50).estimate(x[:3], target=2)
    assert one.target.tolist() == [2, 2, 2]


class Conditioned(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x, shift, scale):
        return self.inner(x + shift) * scale


def test_additional_forward_args():
    x, _ = data(4)
    shift = torch.full((1, 6), 0.3)
    model = Conditioned().eval()
    wanted = mvnrob.robustness(lambda x: net()(x + 0.3) * 2.0, x, 0.2)
    got = Estimator(model, 0.2).estimate(x, additional_forward_args=(shift, 2.0))
    torch.testing.assert_close(got.prob, wanted.prob, atol=1e-6, rtol=0)
    sampled = Estimator(model, 0.2, method="mc", n_samples=50)
    assert sampled.estimate(x, additional_forward_args=(shift, 2.0)).prob.shape == (4,)
    with pytest.raises(ValueError, match="must be shared by the inputs"):
        Estimator(model, 0.2).estimate(x, additional_forward_args=(shift.expand(4, 6), 2.0))
    with pytest.raises(ValueError, match="must be in eval mode"):
        Estimator(Conditioned(), 0.2).estimate(x, additional_forward_args=(shift, 2.0))
    with pytest.raises(ValueError, match="method must be one of"):
        Estimator(model, 0.2, method="guess")
    with pytest.raises(TypeError, match="forward_func must be callable"):
        Estimator(3, 0.2)


def test_options_and_methods_are_looked_at_before_the_first_batch():
    with pytest.raises(TypeError, match="n_samples must be in options"):
        metrics.AverageCaseRobustness(net(), 0.2, method="mc", n_samples=10)
    with pytest.raises(ValueError, match="method must be one of"):
        metrics.AverageCaseRobustness(net(), 0.2, method="monte-carlo")
