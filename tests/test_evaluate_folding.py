"""evaluate(fold_batch_norm=True): the same probabilities from fewer operations, or a refusal in words."""

import pytest
import torch
from torch import nn

import mvnrob

pq = pytest.importorskip("pyarrow.parquet")


class Convolutional(nn.Module):
    """Two folded batch norms, and one that is not: its input is used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.hidden = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = self.second(self.first(x))
        x = torch.relu(self.norm(x)) + x
        x = torch.relu(self.other(x)).mean((2, 3))
        return self.last(self.hidden(x))


class Twice(nn.Module):
    """A convolution that is used twice, behind it two batch norms: folding it into one breaks the other."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.two, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x):
        return self.last(self.two(self.layer(self.one(self.layer(x)))).relu().mean((2, 3)))


class Branching(Convolutional):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def trained_norms(model):
    """In eval mode with statistics that change something."""
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.BatchNorm1d)):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.2, 4)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return model.eval()


def rows(out):
    return pq.read_table(out / "results.parquet").to_pylist()


def test_folded_network_has_the_same_probabilities(tmp_path, monkeypatch):
    model, x = trained_norms(Convolutional()), torch.rand(6, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kwargs = {"progress": False, "threads": 1, "abs_tol": 1e-4}
    mvnrob.evaluate(model, x, 0.3, out=tmp_path / "plain", **kwargs)
    calls = []
    norm = nn.functional.batch_norm
    monkeypatch.setattr(
        nn.functional, "batch_norm", lambda *a, **k: calls.append(1) or norm(*a, **k)
    )
    mvnrob.evaluate(model, x, 0.3, out=tmp_path / "folded", fold_batch_norm=True, **kwargs)
    assert calls  # self.norm stays, whose input is also added
    plain, folded = rows(tmp_path / "plain"), rows(tmp_path / "folded")
    for one, other in zip(plain, folded, strict=True):
        assert one["target"] == other["target"]
        assert abs(one["prob"] - other["prob"]) <= 1e-5 + one["error"] + other["error"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(
        ValueError, match="'Convolutional' there, 'Convolutional, batch norms folded' now"
    ):
        mvnrob.evaluate(
            model, x, 0.3, out=tmp_path / "plain", resume=True, fold_batch_norm=True, **kwargs
        )


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: x.flatten(1), "a model that is no nn.Module"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval(), "without batch norms right behind"),
        (trained_norms(Branching()), "cannot trace .TraceError: "),
        (trained_norms(Twice()), "whose logits it changes by"),
    ],
)
def test_refused_in_words(tmp_path, model, words):
    with pytest.raises(ValueError, match=f"fold_batch_norm must be left out for .*{words}"):
        mvnrob.evaluate(
            model, torch.rand(2, 3, 8, 8), 0.3, out=tmp_path / "run", fold_batch_norm=True,
            progress=False,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match="fold_batch_norm must be a bool, got int"):
        mvnrob.evaluate(
            model, torch.rand(2, 3, 8, 8), 0.3, out=tmp_path / "run", fold_batch_norm=1,
            progress=False,
        )  # fmt: skip
