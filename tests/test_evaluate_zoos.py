"""Models of timm and torchvision: stand-ins with their interfaces, and they themselves where installed."""

import sys
import types

import pytest
import torch

from mvnrob.evaluation import evaluate, load_model


def net() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))


def module(monkeypatch, name: str, **content) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def fake_timm(monkeypatch, **config) -> list:
    asked = []
    data = {
        "input_size": (3, 8, 8), "crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.5, 0.5), **config,
    }  # fmt: skip

    def create_model(name, pretrained):
        asked.append((name, pretrained))
        return net()

    data_module = types.SimpleNamespace(resolve_model_data_config=lambda model: data)
    module(monkeypatch, "timm", create_model=create_model, data=data_module)
    return asked


def test_timm(monkeypatch, tmp_path):
    asked = fake_timm(monkeypatch)
    loaded = load_model("timm:small")
    assert asked == [("small", True)]
    assert (loaded.input_size, loaded.crop, loaded.interpolation) == (8, 0.9, "bicubic")
    torch.testing.assert_close(loaded.preprocessing["mean"], torch.tensor([0.1, 0.2, 0.3]))
    assert not loaded.model.training
    torch.save(net().state_dict(), tmp_path / "w.pt")
    load_model("timm:small", weights=tmp_path / "w.pt")
    assert asked[-1] == ("small", False)


@pytest.mark.parametrize("mode", ["squash", "border"])
def test_timm_pictures_that_are_not_cropped_at_the_centre_are_refused(monkeypatch, mode):
    fake_timm(monkeypatch, crop_mode=mode)
    with pytest.raises(ValueError, match=f"cropped at their centre, got timm's crop_mode '{mode}'"):
        load_model("timm:small")


def test_torchvision(monkeypatch, tmp_path):
    asked = []
    preset = types.SimpleNamespace(
        crop_size=[8], resize_size=[10], mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2),
        interpolation=types.SimpleNamespace(value="bilinear"),
    )  # fmt: skip
    entry = types.SimpleNamespace(transforms=lambda: preset, meta={"categories": list("abcd")})

    def get_model(name, weights):
        asked.append(weights)
        return net()

    models = module(
        monkeypatch, "torchvision.models", get_model=get_model,
        get_model_weights=lambda name: types.SimpleNamespace(DEFAULT=entry),
    )  # fmt: skip
    module(monkeypatch, "torchvision", models=models)
    loaded = load_model("torchvision:small")
    assert asked == [entry] and loaded.class_names == list("abcd")
    torch.save(net().state_dict(), tmp_path / "w.pt")
    own = load_model("torchvision:small", weights=tmp_path / "w.pt")
    assert asked[-1] is None and own.class_names is None
    for made in (loaded, own):  # the architecture's own protocol, whoever trained it
        assert (made.input_size, made.crop, made.interpolation) == (8, 0.8, "bilinear")
        torch.testing.assert_close(made.preprocessing["std"], torch.full((3,), 0.2))


@pytest.mark.parametrize(
    "spec", ["timm:resnet18", "timm:vit_tiny_patch16_224", "torchvision:mobilenet_v3_small"]
)
def test_the_packages_themselves(spec, tmp_path):
    """Where they are installed: an architecture with weights from a file, through a whole run."""
    library, _, name = spec.partition(":")
    package = pytest.importorskip(library)
    torch.manual_seed(0)
    make = package.create_model if library == "timm" else package.models.get_model
    torch.save(make(name).state_dict(), tmp_path / "weights.pt")
    loaded = load_model(spec, weights=tmp_path / "weights.pt")
    assert loaded.input_size == 224 and loaded.crop <= 1 and loaded.bounds == (0.0, 1.0)
    run = evaluate(loaded, "photos", 0.02, out=tmp_path / "run", limit=1, threads=1, progress=False)
    row = run.table().to_pylist()[0]
    assert row["status"] in ("CONVERGED", "EXACT") and 0 < row["prob"] <= 1
    assert 0 <= row["error"] <= 1e-3
