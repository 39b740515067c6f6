"""evaluate(fold_batch_norm=True): the same probabilities from fewer operations, or a refusal in words."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mvnrob
from mvnrob.evaluation.folding import fold_batch_norms
from mvnrob.evaluation.models import LoadedModel, load_model

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
    """A convolution that is used twice, behind it two batch norms: they cannot be part of it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.two, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x):
        return self.last(self.two(self.layer(self.one(self.layer(x)))).relu().mean((2, 3)))


class OfItsInput(Convolutional):
    """What torch.fx gives it is no tensor: the trace goes past the branch, which few inputs take."""

    def forward(self, x):
        if isinstance(x, torch.Tensor):
            x = torch.where(x > 1.1, -20 * x, x)
        return super().forward(x)


class Output:
    def __init__(self, logits):
        self.logits = logits


class Small(nn.Module):
    """A batch norm that can be folded, and what is given."""

    def __init__(self, layer, norm, forward):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.layer, self.other, self.last = layer, norm, nn.Linear(8, 5)
        self.answer = forward

    def forward(self, x):
        return self.answer(self, self.norm(self.first(x)))


def twice_where_bright(model, x):
    """Once more, without the batch norm, where inputs are brighter than the first one."""
    once = model.other(model.layer(x)).relu().mean((2, 3))
    bright = (x.mean((1, 2, 3), keepdim=False) + 3).relu()[:, None]
    return model.last(once + 0.001 * model.layer(x).mean((2, 3)) * bright)


def weight_alone(model, x):
    once = model.other(model.layer(x)).relu().mean((2, 3))
    return model.last(once + 0.01 * nn.functional.conv2d(x, model.layer.weight).mean((2, 3)))


def in_turn(model, x):
    return model.last(model.other(model.layer(x)).relu().mean((2, 3)))


def rows_of_rows(model, x):
    """A batch norm over the second of three axes, a linear layer over the last."""
    return model.last(model.other(model.layer(x.mean(3))).relu().mean(1))


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
        (trained_norms(Twice()), "without batch norms right behind"),
        (trained_norms(OfItsInput()), "whose logits it changes by"),
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


def one_more_hook(model):
    model.other.register_forward_hook(lambda module, args, out: out + 0.02 * out**2)
    return model


def pruned(model):
    from torch.nn.utils import prune

    prune.l1_unstructured(model.layer, "weight", 0.5)
    return model


@pytest.mark.parametrize(
    ("layer", "norm", "forward", "change"),
    [
        (nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), twice_where_bright, lambda m: m),
        (nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), weight_alone, lambda m: m),
        (nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), in_turn, one_more_hook),
        (nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), in_turn, pruned),
        (nn.Linear(8, 8), nn.BatchNorm1d(8), rows_of_rows, lambda m: m),
    ],
)
def test_what_cannot_be_folded_stays(layer, norm, forward, change):
    """Nothing is believed because one example does not show it."""
    model = change(trained_norms(Small(layer, norm, forward)))
    x = torch.rand(5, 3, 8, 8)
    folded = fold_batch_norms(load_model(model), x[:1], (0.3,)).model
    kept = [part for part in folded.modules() if isinstance(part, _BatchNorm)]
    assert len(kept) == 1
    with torch.no_grad():
        for bright in (x, x + 3, 4 * x - 2):
            assert torch.allclose(folded(bright), model(bright), rtol=1e-3, atol=1e-4)


def test_two_batch_norms_in_a_row():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
    )
    x = torch.rand(3, 3, 8, 8)
    folded = fold_batch_norms(load_model(trained_norms(model)), x[:1]).model
    assert not any(isinstance(part, _BatchNorm) for part in folded.modules())
    with torch.no_grad():
        assert torch.allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)


def test_what_evaluate_takes_and_refuses_itself(tmp_path):
    """Objects with logits, a first example of NaN; parts in train mode and other dtypes, in its words."""
    x = torch.rand(3, 3, 8, 8)
    kwargs = {"out": tmp_path / "run", "fold_batch_norm": True, "progress": False}
    wrapped = Small(
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        lambda m, x: Output(in_turn(m, x)),
    )
    with_nan = x.clone()
    with_nan[0] = torch.nan
    mvnrob.evaluate(trained_norms(wrapped), with_nan, 0.3, **kwargs)
    assert rows(tmp_path / "run")[0]["status"] == "NAN_INPUT"
    training = nn.Sequential(trained_norms(Convolutional()), nn.Dropout()).eval()
    training[1].train()
    with pytest.raises(ValueError, match="must be in eval mode, got its part '1' in train mode"):
        mvnrob.evaluate(training, x, 0.3, **kwargs | {"out": tmp_path / "other"})
    with pytest.raises(ValueError, match="x must have the dtype of the model's parameters"):
        mvnrob.evaluate(
            trained_norms(Convolutional()), x.double(), 0.3, **kwargs | {"out": tmp_path / "other"}
        )


def test_classes_that_are_left_out_and_work_in_place():
    """Logits of -inf are the same before and after; neither the data nor what is compared changes."""

    def answer(model, x):
        out = in_turn(model, x)
        return torch.cat([out, torch.full_like(out[:, :1], -torch.inf)], 1)

    class InPlace(Small):
        def forward(self, x):
            return super().forward(x.mul_(2))

    model = trained_norms(InPlace(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), answer))
    x = torch.rand(3, 3, 8, 8)
    given = x.clone()
    folded = fold_batch_norms(load_model(model), given[:1], (0.3,)).model
    assert torch.equal(given, x)
    with torch.no_grad():
        assert torch.allclose(folded(x.clone()), model(x.clone()), rtol=1e-4, atol=1e-4)


def test_hooks_of_the_whole_model_are_traced():
    model = trained_norms(Convolutional())
    model.register_forward_pre_hook(lambda module, args: (2 * args[0] - 1,))
    x = torch.rand(3, 3, 8, 8)
    folded = fold_batch_norms(load_model(model), x[:1]).model
    with torch.no_grad():
        assert torch.allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)


def test_fingerprint_is_of_the_model_that_was_folded():
    """Not of what folding computes, which other devices round differently, and of all that identified it."""
    model = trained_norms(Convolutional())
    x = torch.rand(1, 3, 8, 8)
    known = [
        fold_batch_norms(LoadedModel(model, "name", fingerprint=own), x).fingerprint
        for own in ("one", "one", "another")
    ]
    assert known[0] == known[1] != known[2]
