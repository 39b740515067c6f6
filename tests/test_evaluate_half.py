"""evaluate(dtype="float16"): nearly the same probabilities in half precision, or a refusal in words."""

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import mvnrob
from mvnrob.evaluation.half import DTYPES, in_half
from mvnrob.evaluation.models import load_model
from mvnrob.network import Network

#: What a precision may do to p beside the stated errors (measured: .001 and .01).
APART = {"float16": 5e-3, "bfloat16": 4e-2}


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    return model.eval()


def rows(out):
    return pq.read_table(out / "results.parquet").to_pylist()


@pytest.mark.parametrize("more", [{}, {"fold_batch_norm": True, "channels_last": True}])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("screen", ["exact", "sketch"])
def test_nearly_the_same_probabilities(tmp_path, dtype, more, screen):
    model, x = network(), torch.rand(6, 3, 8, 8)
    options = {"taylor": {"screen": screen, "check": "raise"}}
    kwargs = {"progress": False, "threads": 1, "abs_tol": 1e-4, "options": options}
    mvnrob.evaluate(model, x, 0.3, out=tmp_path / "plain", **kwargs)
    mvnrob.evaluate(model, x, 0.3, out=tmp_path / "half", dtype=dtype, **more, **kwargs)
    pairs = list(zip(rows(tmp_path / "plain"), rows(tmp_path / "half"), strict=True))
    assert len({one["prob"] for one, _ in pairs}) > 1
    for one, other in pairs:
        assert one["target"] == other["target"]
        gap = abs(one["prob"] - other["prob"])
        assert gap <= APART[dtype] + one["error"] + other["error"]
    assert any(one["prob"] != other["prob"] for one, other in pairs)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    with pytest.raises(ValueError, match=f"{dtype}' now"):
        mvnrob.evaluate(model, x, 0.3, out=tmp_path / "plain", resume=True, dtype=dtype, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_layers_but_the_last(dtype):
    model, x = network(), torch.rand(2, 3, 8, 8)
    half = in_half(dtype)(load_model(model), x[:1]).model
    seen = []
    for part in half.model:
        part.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    leaf = x.clone().requires_grad_()
    half(leaf).sum().backward()
    assert seen == [(DTYPES[dtype],) * 2] * 6 + [(torch.float32,) * 2]
    assert leaf.grad.dtype == torch.float32
    assert Network("test", half, None, x).rounding() > Network("test", model, None, x).rounding()


class Unheaded(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(192, 3)

    def forward(self, x):
        return self.last(x.flatten(1)).square()


class Faint(nn.Module):
    """Gradients of 1e-8 and less, and numbers that half precision holds."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(192, 8), nn.Linear(8, 3)
        for layer in (self.first, self.last):
            layer.weight.data *= 1e-4

    def forward(self, x):
        return self.last(input=self.first(x.flatten(1)))


def test_gradients_that_bfloat16_holds_are_no_reason():
    torch.manual_seed(0)
    in_half("bfloat16")(load_model(Faint().eval()), torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: x.flatten(1), "a model that is no nn.Module"),
        (Unheaded(), "a model whose logits are not the output of a linear layer"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3).half()), "a model that is not in float32"),
        (Faint(), "a model whose gradients it changes by .* of "),
    ],
)
def test_refused_in_words(tmp_path, model, words):
    x = torch.rand(2, 3, 8, 8)
    if isinstance(model, nn.Module):
        model.eval()
        x = x.to(next(model.parameters()).dtype)
    kwargs = {"out": tmp_path / "run", "progress": False}
    with pytest.raises(ValueError, match=f"dtype must be left out for {words}"):
        mvnrob.evaluate(model, x, 0.3, dtype="float16", **kwargs)
    assert not (tmp_path / "run").exists()
    for bad in ("float64", torch.float16, ["float16"]):
        with pytest.raises(ValueError, match="dtype must be one of float16, bfloat16, got"):
            mvnrob.evaluate(model, x, 0.3, dtype=bad, **kwargs)
