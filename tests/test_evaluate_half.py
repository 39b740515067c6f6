"""evaluate(dtype="float16"): nearly the same probabilities in half precision, or a refusal in words."""

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import mvnrob
from mvnrob.evaluation.half import DTYPES, in_half
from mvnrob.evaluation.models import load_model
from mvnrob.network import Network

#: What a precision may do to p beside the stated errors (measured: .0003 and .004).
APART = {"float16": 2e-3, "bfloat16": 2e-2}


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
    for part in half:
        part.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    leaf = x.clone().requires_grad_()
    half(leaf).sum().backward()
    assert seen == [(DTYPES[dtype],) * 2] * 6 + [(torch.float32,) * 2]
    assert leaf.grad.dtype == torch.float32
    assert torch.equal(half[-1].weight, model[-1].weight)  # to the bit
    assert Network("test", half, None, x).rounding() > Network("test", model, None, x).rounding()


class Net(nn.Module):
    def __init__(self, forward, prepare=None):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.given = forward
        if prepare is not None:
            prepare(self)

    def forward(self, x):
        return self.given(self, x.flatten(1))


def made_faint(net):
    """Gradients of 1e-8 and less, and numbers that half precision holds."""
    for layer in (net.first, net.last):
        layer.weight.data *= 1e-4


def Faint():
    return Net(lambda net, x: net.last(input=net.first(x)), made_faint)


@pytest.mark.parametrize("method", ["taylor", "mc"])
def test_examples_whose_logits_are_lost_have_no_answer(tmp_path, method):
    """What swallows an overflow gives numbers, and the first example does not show it."""
    torch.manual_seed(0)
    norm = lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
    model = Net(lambda net, x: net.last(net.middle(norm(net.first(x))))).eval()
    x = torch.rand(5, 3, 8, 8)
    x[1:] = 1500 + 500 * x[1:]
    mvnrob.evaluate(model, x, 30.0, out=tmp_path / "run", method=method, dtype="float16", chunk=2)
    first, *others = rows(tmp_path / "run")
    assert first["prob"] is not None
    for row in others:
        assert (row["status"], row["prob"], row["predicted"]) == ("HALF_PRECISION", None, None)
        assert row["note"].startswith("half precision changes its logits by")


def test_models_without_gradients_are_counted(tmp_path):
    torch.manual_seed(0)
    model = Net(lambda net, x: net.last((net.first(x) > 0).to(x.dtype))).eval()
    x, kwargs = torch.rand(3, 3, 8, 8), {"method": "mc", "n_samples": 200, "progress": False}
    mvnrob.evaluate(model, x, 0.3, out=tmp_path / "run", dtype="float16", **kwargs)
    assert all(row["prob"] is not None for row in rows(tmp_path / "run"))


class Full(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, grad):
        raise torch.OutOfMemoryError("full")


def test_out_of_memory_is_no_gradient_that_is_missing(tmp_path):
    """The check of gradients is not left out for it."""
    model = Net(lambda net, x: net.last(Full.apply(net.first(x)))).eval()
    kwargs = {"out": tmp_path / "run", "method": "mc", "n_samples": 20, "progress": False}
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        mvnrob.evaluate(model, torch.rand(3, 3, 8, 8), 0.3, dtype="float16", **kwargs)


def test_the_models_own_scaling_comes_first(tmp_path):
    """At raw pixels a sigmoid is flat: there nothing could be said of its gradients."""
    torch.manual_seed(0)
    model = Net(lambda net, x: net.last(net.middle(net.first(x)).sigmoid())).eval()
    x, kwargs = torch.randint(0, 256, (3, 3, 8, 8)).float(), {"progress": False}
    kwargs["preprocessing"] = {"mean": [127.0] * 3, "std": [64.0] * 3, "axis": -3}
    seen = []
    model.first.register_forward_pre_hook(
        lambda _, args: seen.append(float(args[0].detach().abs().max()))
    )
    mvnrob.evaluate(model, x, 5.0, out=tmp_path / "run", dtype="bfloat16", **kwargs)
    assert 0 < max(seen) < 3
    assert all(row["prob"] is not None for row in rows(tmp_path / "run"))


def test_head_by_name(tmp_path):
    options = {"taylor": {"head": "6"}}
    out = mvnrob.evaluate(
        network(), torch.rand(2, 3, 8, 8), 0.3, out=tmp_path / "run", options=options,
        dtype="bfloat16", progress=False,
    )  # fmt: skip
    assert out.is_complete


def test_gradients_that_bfloat16_holds_are_no_reason():
    torch.manual_seed(0)
    in_half("bfloat16")(load_model(Faint().eval()), torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: x.flatten(1), "a model that is no nn.Module"),
        (
            Net(lambda net, x: net.last(net.first(x)).square()),
            "a model whose logits are not the output of a linear layer",
        ),
        (
            Net(lambda net, x: net.last(net.middle(net.first(x) * torch.linspace(0, 1, 8)))),
            r"a model that fails with it \(RuntimeError: .*dtype",
        ),
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
