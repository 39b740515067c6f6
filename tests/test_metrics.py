"""The shapes of other libraries: a torchmetrics metric and Captum's estimator object."""

import pickle

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


def collection():
    """Two metrics that agree on the first of two batches, whatever they are asked; and the batches."""
    torchmetrics = pytest.importorskip("torchmetrics")
    identity = torch.nn.Identity().eval()
    easy = torch.tensor([[50.0, 0, 0], [60, 0, 0]])
    hard = torch.tensor([[0.1, 0, 0], [0.2, 0.1, 0]])
    small = metrics.AverageCaseRobustness(identity, 0.01)
    large = metrics.AverageCaseRobustness(identity, 1.0)
    alone = [mvnrob.robustness(identity, hard, sigma).prob.mean() for sigma in (0.01, 1.0)]
    assert alone[0] - alone[1] > 0.3
    return torchmetrics.MetricCollection({"small": small, "large": large}), easy, hard, alone


def look(both, easy, hard, alone):
    """That each metric has its own answer after both batches."""
    both.update(easy)
    both.update(hard)
    got = both.compute()
    torch.testing.assert_close(got["small"], (1 + alone[0]) / 2, atol=1e-3, rtol=0)
    torch.testing.assert_close(got["large"], (1 + alone[1]) / 2, atol=1e-3, rtol=0)


def test_metrics_of_a_collection_keep_apart():
    both, easy, hard, alone = collection()
    look(both, easy, hard, alone)
    assert all(len(group) == 1 for group in both.compute_groups.values())
    both.reset()
    look(both, easy, hard, alone)
    for copied in (both.clone(), pickle.loads(pickle.dumps(both))):
        copied.reset()
        look(copied, easy, hard, alone)
    both.reset()
    both.set_dtype(torch.float64)
    both.add_metrics({"again": both["large"].clone()})  # groups are looked for anew
    look(both, easy, hard, alone)
    assert len(both.compute_groups) == 3
    assert both["large"](easy) == 1 and both["small"](hard) == alone[0]  # one at a time
    several = both(hard)
    torch.testing.assert_close(several["small"], alone[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(several["large"], alone[1], atol=1e-3, rtol=0)


def test_a_copy_with_another_model_keeps_apart():
    """A clone has the model as it was then."""
    torchmetrics = pytest.importorskip("torchmetrics")
    model, x = net(), data()[0]
    now = metrics.AverageCaseRobustness(model, 0.2)
    both = torchmetrics.MetricCollection({"now": now, "then": now.clone()})
    both.update(x)
    before = both.compute()
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    both.reset()
    both.update(x)
    after = both.compute()
    assert after["then"] == before["then"] and after["now"] != before["now"]


@pytest.mark.parametrize("on_step", [False, True])
def test_numbers_go_on_after_forward(on_step):
    """Noise of an input is its number's, by whatever mixture of calls it came."""
    x = torch.rand(1, 6, generator=torch.Generator().manual_seed(2)).repeat(8, 1)
    options = {"n_samples": 200}
    whole = mvnrob.robustness(net(), x, 2.0, method="mc", **options).prob
    assert len(set(whole.tolist())) > 4
    metric = metrics.AverageCaseRobustness(
        net(), 2.0, method="mc", reduction="none", options=options, dist_sync_on_step=on_step
    )
    for _ in range(2):
        assert torch.equal(metric(x[:2]), whole[:2])
        metric.update(x[2:3])
        with pytest.raises(ValueError, match="target must lie"):
            metric.update(x[3:5], torch.tensor([0, 7]))
        assert torch.equal(metric(x[3:5]), whole[3:5])
        metric = pickle.loads(pickle.dumps(metric))
        metric.update(x[5:6])
        assert torch.equal(metric(x[6:]), whole[6:])
        assert torch.equal(metric.compute(), whole)
        metric.reset()


def test_a_process_without_inputs_sends_the_others_dtypes():
    """Two processes, of which the other is played: it had all inputs, this one had none."""
    x, _ = data(4)
    other = metrics.AverageCaseRobustness(net(), 0.2)
    other.update(x)
    theirs = {torch.float64: other.prob[0], torch.int64: other.target[0]}

    def gather(mine, group=None):
        return [mine, mine if mine.dim() == 0 else theirs[mine.dtype]]

    metric = metrics.AverageCaseRobustness(
        net(), 0.2, dist_sync_fn=gather, distributed_available_fn=lambda: True
    )
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert metric.compute() == other.compute()
    metric.update(x[:1])
    assert len(metric.prob[-1]) == 1 and metric.apart.isnan()


def test_classes_beyond_num_classes_are_refused():
    metric = metrics.AverageCaseRobustness(net(), 0.2, reduction="class", num_classes=2)
    x, _ = data(2)
    with pytest.raises(ValueError, match=r"target .* must lie in \[0, num_classes\), got 2"):
        metric.update(x, torch.tensor([0, 2]))
    metric.update(x, torch.tensor([0, 1]))
    assert metric.compute().shape == (2,)
    sure = metrics.AverageCaseRobustness(
        torch.nn.Identity().eval(), 0.2, reduction="class", num_classes=2
    )
    with pytest.raises(ValueError, match=r"prediction.* must lie in \[0, num_classes\), got 2"):
        sure.update(torch.tensor([[0.0, 0.0, 9.0]]))
    with pytest.raises(TypeError, match="num_classes must be an int, got float"):
        metrics.AverageCaseRobustness(net(), 0.2, reduction="class", num_classes=2.5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("first_index", "metrics: options must leave out .*, got 'first_index'"),
        ("sigma", "metrics: options must leave out .*, got 'sigma'"),
        ("target", "metrics: options must leave out .*, got 'target'"),
        ("samples", "metrics: options must be one of .*, got 'samples'"),
    ],
)
def test_options_that_are_none_of_the_users(name, text):
    with pytest.raises(TypeError, match=text):
        metrics.AverageCaseRobustness(net(), 0.2, options={name: 1})
    if name == "first_index":  # the estimator counts nothing
        assert Estimator(net(), 0.2, first_index=1).estimate(data(2)[0]).prob.shape == (2,)
    elif name != "sigma":  # which is an argument of its own
        with pytest.raises(TypeError, match=text.replace("metrics", "Estimator")):
            Estimator(net(), 0.2, **{name: 1})
