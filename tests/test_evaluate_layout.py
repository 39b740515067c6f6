"""evaluate(channels_last=True): the same probabilities from another layout, or a refusal in words."""

import warnings

import pytest
import torch
from torch import nn

import mvnrob
from mvnrob.evaluation import runner
from mvnrob.evaluation.layout import channels_last, lay_out, slow_depthwise
from mvnrob.evaluation.models import load_model

pq = pytest.importorskip("pyarrow.parquet")


class Viewed(nn.Module):
    """Works on one layout alone."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(144, 3)

    def forward(self, x):
        return self.last(self.first(x).view(len(x), -1))


def network(convolution=nn.Conv2d, norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(
        convolution(3, 8, 3, bias=False), norm(8), nn.ReLU(), convolution(8, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.LazyLinear(5),
    )  # fmt: skip


def rows(out):
    return pq.read_table(out / "results.parquet").to_pylist()


@pytest.mark.parametrize("folded", [False, True])
def test_same_probabilities(tmp_path, folded):
    model, x = network(), torch.rand(6, 3, 8, 8)
    model(x)
    model.eval()
    kwargs = {"progress": False, "threads": 1, "abs_tol": 1e-4, "fold_batch_norm": folded}
    mvnrob.evaluate(model, x, 0.3, out=tmp_path / "plain", **kwargs)
    mvnrob.evaluate(model, x, 0.3, out=tmp_path / "last", channels_last=True, **kwargs)
    for one, other in zip(rows(tmp_path / "plain"), rows(tmp_path / "last"), strict=True):
        assert one["target"] == other["target"]
        assert abs(one["prob"] - other["prob"]) <= 1e-5 + one["error"] + other["error"]
    assert model[0].weight.is_contiguous()
    with pytest.raises(ValueError, match="channels last' now"):
        mvnrob.evaluate(
            model, x, 0.3, out=tmp_path / "plain", resume=True, channels_last=True, **kwargs
        )


@pytest.mark.parametrize(
    ("convolution", "norm", "layout", "side"),
    [
        (nn.Conv2d, nn.BatchNorm2d, torch.channels_last, (8, 8)),
        (nn.Conv3d, nn.BatchNorm3d, torch.channels_last_3d, (6, 8, 8)),
    ],
)
def test_layers_work_on_the_layout_in_every_mode(convolution, norm, layout, side):
    model, x = network(convolution, norm), torch.rand(2, 3, *side)
    model(x)
    model = channels_last(load_model(model.eval()), x[:1]).model
    seen = []
    model[3].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].is_contiguous(memory_format=layout))
    )
    model(x)
    leaf = x.clone().requires_grad_()
    model(leaf).sum().backward()
    assert seen == [True, True]


def depthwise(groups=8, convolution=nn.Conv2d):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), convolution(8, 8, 3, groups=groups), nn.Flatten(), nn.Linear(128, 3),
    ).eval()  # fmt: skip


def test_depthwise_convolutions_on_a_gpu_are_warned_of(tmp_path, monkeypatch):
    cuda = torch.device("cuda", 0)
    assert "1 in this model, the first is '2'" in slow_depthwise(depthwise(), cuda)
    for model in (depthwise(1), depthwise(4), nn.Conv2d(1, 4, 3), nn.Conv1d(4, 4, 3, groups=4)):
        assert slow_depthwise(model, cuda) is None
    assert slow_depthwise(depthwise(), torch.device("cpu")) is None
    assert slow_depthwise(lambda x: x, cuda) is None
    x, kwargs = torch.rand(4, 3, 8, 8), {"progress": False, "threads": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        mvnrob.evaluate(depthwise(), x, 0.3, out=tmp_path / "cpu", channels_last=True, **kwargs)
    monkeypatch.setattr(runner, "slow_depthwise", lambda model, _: slow_depthwise(model, cuda))
    with pytest.warns(RuntimeWarning, match="^evaluate: channels_last has cuDNN plan") as said:
        mvnrob.evaluate(depthwise(), x, 0.3, out=tmp_path / "last", channels_last=True, **kwargs)
    assert len(said) == 1 and said[0].filename == __file__
    # it changes nothing
    assert rows(tmp_path / "last") == rows(tmp_path / "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        mvnrob.evaluate(depthwise(), x, 0.3, out=tmp_path / "plain", **kwargs)


def test_lay_out_counts_what_it_changes():
    model = network()
    model(torch.rand(2, 3, 8, 8))
    weights = [p.clone() for p in model.parameters()]
    assert lay_out(model) == 2 and lay_out(model) == 0
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: x.flatten(1), "a model that is no nn.Module"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "without a convolution's weights"),
        (Viewed(), "that fails with it .view size is not compatible"),
    ],
)
def test_refused_in_words(tmp_path, model, words):
    if isinstance(model, nn.Module):
        model.eval()
    kwargs = {"out": tmp_path / "run", "progress": False}
    with pytest.raises(ValueError, match=f"channels_last must be left out for .*{words}"):
        mvnrob.evaluate(model, torch.rand(2, 3, 8, 8), 0.3, channels_last=True, **kwargs)
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match="channels_last must be a bool, got int"):
        mvnrob.evaluate(model, torch.rand(2, 3, 8, 8), 0.3, channels_last=1, **kwargs)
