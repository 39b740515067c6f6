"""evaluate(channels_last=True): the same probabilities from another layout, or a refusal in words."""

import pytest
import torch
from torch import nn

import mvnrob
from mvnrob.evaluation.layout import channels_last
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
