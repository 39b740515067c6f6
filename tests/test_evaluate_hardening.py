"""Evaluation under bad luck and bad will: odd inputs, files with payloads, folders in any state."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mvnrob
from mvnrob.cli import FINISHED, USAGE, main
from mvnrob.evaluation import Evaluation, LoadedModel, load_model, load_source, runner
from mvnrob.evaluation import manifest as manifest_module
from mvnrob.evaluation import models as models_module
from mvnrob.evaluation.images import to_tensor
from mvnrob.evaluation.manifest import create_atomically, write_atomically
from mvnrob.evaluation.results import PARTS, RESULTS, TIMINGS
from mvnrob.evaluation.selfcheck import Check, _recommend, _variance
from mvnrob.options import read_max_bytes
from mvnrob.report import report
from mvnrob.report import statistics as st
from mvnrob.training import taylor_probability

pytest.importorskip("pyarrow")

FEATURES, CLASSES = 12, 5


def net() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 16), torch.nn.Tanh(), torch.nn.Linear(16, CLASSES)
        ).eval()


def data(count: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(count, FEATURES, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(count) % CLASSES


def run(out: Path, model=None, source=None, sigma=0.3, **options) -> Evaluation:
    options = {"chunk": 8, "threads": 1, "progress": False, **options}
    return mvnrob.evaluate(
        net() if model is None else model,
        data() if source is None else source,
        sigma,
        out=out,
        **options,
    )


def x_with_labels(labels):
    return data()[0], labels


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (x_with_labels(torch.arange(20) / 2), "labels: label must be a whole number, got"),
        (x_with_labels(torch.full((20,), float("nan"))), "label must be a whole number"),
        (x_with_labels(torch.arange(5)), "a label for each input, got 5 for 20"),
        (x_with_labels(torch.eye(20)), "label must be a whole number"),
        (x_with_labels(torch.full((20,), 1e20)), "label must be a whole number"),
        (torch.tensor(1.0), r"must have shape \[N, \*shape\], got \[\]"),
        (data()[0].double(), "dtype of the model's parameters"),
        ([{"other": 1}] * 3, "must hold a readable example, got no x"),
    ],
)
def test_odd_data_is_refused_before_anything_is_written(tmp_path, source, text):
    with pytest.raises(ValueError, match=f"evaluate: .*{text}"):
        run(tmp_path / "out", source=source)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": torch.nn.Linear(FEATURES, 1).eval()}, "C >= 2"),
        (
            {"model": torch.nn.Linear(3, 2).eval()},
            rf"x must be what the model takes, got shape .*a chunk: 8 inputs of shape \[{FEATURES}\]",
        ),
        ({"bounds": (1, 0)}, r"bounds must be \(low, high\)"),
        ({"bounds": (1,)}, r"bounds must be \(low, high\)"),
        (
            {"bounds": (0, float("inf"))},
            r"bounds must be finite numbers and text, got \(0.0, inf\)",
        ),
        ({"device": "nonsense"}, "device must be one of torch's"),
        ({"device": "cuda:99"}, "device must be cpu or one of"),
        ({"workers": 0}, "workers must be a positive int"),
        ({"sigma": "0.1"}, "sigma must be one or more numbers"),
        ({"sigma": None}, "sigma must be one or more numbers"),
    ],
)
def test_odd_arguments_are_refused_before_anything_is_written(tmp_path, options, text):
    with pytest.raises(ValueError, match=f"evaluate: .*{text}"):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"out": None}, "out must be a folder's path, got NoneType"),
        (
            {"sigma": torch.full((FEATURES,), 0.1)},
            rf"sigma must be a number or a list of numbers, got a tensor of shape \[{FEATURES}\]",
        ),
        # of different numbers, it would be taken for so many levels
        ({"sigma": torch.linspace(0.1, 0.2, 3)}, r"sigma must be .*, got a tensor of shape \[3\]"),
    ],
)
def test_arguments_of_another_type(tmp_path, options, text):
    with pytest.raises(TypeError, match=f"^evaluate: {text}"):
        run(**{"out": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_labels_that_are_no_class_are_said(tmp_path, capfd):
    """They count as wrong answers, whatever the target is."""
    x, y = data()
    y[3], y[12] = CLASSES, -1
    notes = {3: f"label {CLASSES} of {CLASSES} classes", 12: f"label -1 of {CLASSES} classes"}
    rows = run(tmp_path / "a", source=(x, y), progress=True).table().to_pylist()
    assert [row["note"] for row in rows] == [notes.get(at) for at in range(20)]
    assert all(row["prob"] is not None and row["status"] != "UNREADABLE" for row in rows)
    said = capfd.readouterr().err
    assert said.count("it counts as wrong") == 1 and f"example 3 has {notes[3]}" in said
    x[3] = float("nan")
    rows = run(tmp_path / "b", source=(x, y), target="label").table().to_pylist()
    assert [row["note"] for row in rows] == [notes.get(at) for at in range(20)]
    assert [at for at, row in enumerate(rows) if row["status"] == "UNREADABLE"] == [3, 12]
    rows = run(tmp_path / "c", source=(x, y)).table().to_pylist()
    assert rows[3]["note"] == "NaN in the input"


def test_loaders_that_leave_examples_out_are_refused():
    """What a loader draws is not looked at: examples are read one by one."""
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

    class Backwards(SequentialSampler):
        def __iter__(self):
            return reversed(range(len(self)))

    pairs = TensorDataset(*data())
    two = SequentialSampler([0, 1])
    for options, text in (
        ({"batch_size": 3, "drop_last": True}, "whose drop_last leaves out 2 of 20 examples"),
        ({"batch_sampler": BatchSampler(two, 2, False)}, "whose sampler draws 2 of 20 examples"),
        ({"sampler": two}, "whose sampler draws 2 of 20 examples"),
        ({"batch_sampler": [[0, 1], [1, 2]]}, "with batches by list"),
        ({"sampler": Backwards(pairs)}, "that draws by Backwards"),
        (
            {"batch_sampler": BatchSampler(SequentialSampler(pairs), 3, True)},
            "whose drop_last leaves out 2 of 20 examples",
        ),
    ):
        with pytest.raises(
            ValueError, match=f"^evaluate: data must be a DataLoader .*got one {text}"
        ):
            load_source(DataLoader(pairs, **options))
    for options in (
        {"batch_size": 3},
        {"batch_size": 5, "drop_last": True},
        {"batch_size": None},
        {"batch_sampler": BatchSampler(SequentialSampler(pairs), 3, False)},
    ):
        assert len(load_source(DataLoader(pairs, **options))) == 20


def test_whole_float_labels_and_array_sigmas_serve(tmp_path):
    x, y = data()
    done = run(tmp_path / "out", source=(x.requires_grad_(), y.double()), sigma=np.float32([0.5]))
    assert done.table()["label"].to_pylist() == y.tolist()
    assert done.config.sigmas == (0.5,)


def test_files_that_are_no_data(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04garbage")
    (tmp_path / "b.npz").write_bytes(b"")
    (tmp_path / "b.tar").write_bytes(b"no tar" * 500)
    np.savez(tmp_path / "c.npz", x=np.array(["word"]))
    for spec, text in (
        ("a.npz", "must be an .npz file"),
        ("b.npz", "must be an .npz file"),
        ("c.npz", "must hold numbers"),
        ("b.tar", "must be plain tar shards"),
        ("x-{a..b}.tar", "must have numbers in its braces"),
    ):
        with pytest.raises(ValueError, match=f"evaluate: data {text}"):
            load_source(str(tmp_path / spec))
    np.savez(tmp_path / "big-endian.npz", x=np.ones((3, 2), ">f4"))
    assert load_source(str(tmp_path / "big-endian.npz")).read(0).x.dtype == torch.float32


def test_files_that_are_no_model(tmp_path, capfd):
    (tmp_path / "a.pt").write_bytes(b"x")
    (tmp_path / "a.pt2").write_bytes(b"x")
    (tmp_path / "a.safetensors").write_bytes(b"garbage, garbage")
    (tmp_path / "m.py").write_text(
        "import torch\ndef ok(): return torch.nn.Linear(2, 3)\ndef none(): pass\n"
        "def fails(): raise KeyError('weights')\ndef exits(): raise SystemExit(3)\n"
    )
    (tmp_path / "syntax.py").write_text("def f(:\n")
    for spec, text in (
        ("a.pt", "must load, got RuntimeError"),
        ("a.pt2", "must load, got "),
        ("m.py:none", "must be what none.. of .* returns, got NoneType"),
        ("m.py:fails", r"must load, got KeyError: 'weights' \(m.py, line 4\)"),
        ("m.py:exits", "must load, got SystemExit: 3"),
        ("syntax.py:f", "must load, got SyntaxError"),
    ):
        with pytest.raises(ValueError, match=f"evaluate: model {text}"):
            load_model(str(tmp_path / spec))
    with pytest.raises(ValueError, match="must load, got SafetensorError"):
        load_model(str(tmp_path / "m.py:ok"), weights=tmp_path / "a.safetensors")
    line = ["evaluate", "--model", str(tmp_path / "a.pt"), "--data", "digits", "--sigma", "1"]
    assert main([*line, "--out", str(tmp_path / "out")]) == USAGE
    printed = capfd.readouterr().err
    assert "evaluate: model must load" in printed and "resume" not in printed


# Where pickle.loads and its kin are defined.
PICKLES = ("pickle", "_pickle")


class Payload:
    def __reduce__(self):
        return (os.system, ("touch ran-the-payload",))


@pytest.mark.filterwarnings("ignore")
def test_pickles_in_an_exported_program_do_not_run(tmp_path, monkeypatch):
    """torch.export.load falls back to unpickling whatever is in the archive."""
    monkeypatch.chdir(tmp_path)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(net(), (data()[0],), dynamic_shapes=({0: batch},))
    torch.export.save(exported, "good.pt2")
    hit = 0
    with zipfile.ZipFile("good.pt2") as good, zipfile.ZipFile("bad.pt2", "w") as bad:
        for entry in good.namelist():
            content = good.read(entry)
            if "sample_inputs" in entry:
                sink = io.BytesIO()
                torch.save(Payload(), sink)
                content, hit = sink.getvalue(), hit + 1
            bad.writestr(entry, content)
    assert hit == 1, "the archive's layout has changed: choose another entry"
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    with pytest.raises(ValueError, match="evaluate: model must load"):
        load_model("bad.pt2")
    assert not Path("ran-the-payload").exists()
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") == before
    archive = sys.modules["torch.export.pt2_archive._package"]
    names = dict(vars(archive))
    # Opaque constants: the module is all by which they are unpickled; torch 2.10 has none.
    assert not any(getattr(thing, "__module__", "") in PICKLES for thing in names.values())
    assert names.get("pickle", pickle) is pickle
    with models_module._no_pickles():
        assert archive.pickle is None
    assert vars(archive) == names
    x = data()[0]
    torch.testing.assert_close(load_model("good.pt2").model(x), net()(x), atol=1e-6, rtol=0)


def test_a_run_killed_before_its_manifest_goes_on(tmp_path):
    out = tmp_path / "out"
    (out / PARTS).mkdir(parents=True)
    (out / f".{manifest_module.FILE}.0123456789abcdef").write_text("{")
    assert run(out, resume=True).is_complete
    other = tmp_path / "other"
    (other / PARTS).mkdir(parents=True)
    (other / PARTS / "00000000.parquet").write_bytes(b"whose?")
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        run(other, resume=True)


def test_of_two_that_start_at_once_the_second_is_compared(tmp_path, monkeypatch):
    """Both find no manifest; the slower one must not replace the other's."""
    out, read, first = tmp_path / "out", manifest_module.Manifest.read, [True]

    def racing(folder):
        if first and (folder == out):
            first.clear()
            run(out, seed=1)
            return None
        return read(folder)

    monkeypatch.setattr(manifest_module.Manifest, "read", staticmethod(racing))
    with pytest.raises(ValueError, match=r"new or empty folder|another one in .*seed"):
        run(out, resume=True, seed=2)
    assert Evaluation(out).config.seed == 1


def test_a_file_is_created_once_and_temporaries_never_meet(tmp_path, monkeypatch):
    path = tmp_path / "file"
    assert create_atomically(path, b"one") and not create_atomically(path, b"two")
    assert path.read_bytes() == b"one"
    replace, names = os.replace, []

    def nested(temporary, target):  # the process of the same number in another container
        names.append(temporary)
        if len(names) == 1:
            write_atomically(path, b"inner")
        replace(temporary, target)

    monkeypatch.setattr(manifest_module.os, "replace", nested)
    write_atomically(path, b"outer")
    assert path.read_bytes() == b"outer" and len(set(names)) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_join_trusts_no_foreign_part_and_finishes_last(tmp_path, monkeypatch):
    one, two = run(tmp_path / "one"), run(tmp_path / "two", seed=1)
    part = Path(PARTS) / "00000001.parquet"
    kept = (one.folder / part).read_bytes()
    for content, text in (
        ((two.folder / part).read_bytes(), "parts of this run"),
        (kept[:50], "readable tables"),
    ):
        (one.folder / part).write_bytes(content)
        with pytest.raises(ValueError, match=text):
            run(one.folder, resume=True)
    whole = (one.folder / RESULTS).read_bytes()
    (one.folder / part).unlink()
    (one.folder / PARTS / "0-copy.parquet").write_bytes(b"")
    (one.folder / PARTS / "00000099.parquet").write_bytes(b"")
    (one.folder / RESULTS).unlink()
    (one.folder / TIMINGS).unlink()
    run(one.folder, resume=True)
    assert (one.folder / RESULTS).read_bytes() == whole
    order = []
    monkeypatch.setattr(
        "mvnrob.evaluation.results.write_atomically", lambda path, _: order.append(path.name)
    )
    run(one.folder, resume=True)
    assert order == [TIMINGS, RESULTS]


def test_a_thousand_parts_are_not_listed_a_thousand_times(tmp_path, monkeypatch):
    from mvnrob.evaluation.results import Parts

    calls, finished = [0], Parts.finished

    def counting(self):
        calls[0] += 1
        return finished(self)

    monkeypatch.setattr(Parts, "finished", counting)
    run(tmp_path / "out", source=data(60), chunk=1)
    assert calls[0] < 10


RANKS = """
import os, torch

def make():
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    return torch.nn.Linear(12, 5)
"""


def test_ranks_of_other_weights_are_refused(tmp_path):
    (tmp_path / "m.py").write_text(RANKS)
    x, y = data()
    np.savez(tmp_path / "d.npz", x=x.numpy(), y=y.numpy())
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
            "-m", "mvnrob", "evaluate", "--model", "m.py:make", "--data", "d.npz", "--sigma", "0.3",
            "--threads", "1", "--out", "out",
        ],
        check=False, capture_output=True, text=True, timeout=100, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "ranks must have one configuration, model and data" in done.stderr


def test_other_data_of_the_same_length_is_another_run(tmp_path):
    x, y = data()
    run(tmp_path / "out", source=torch.utils.data.TensorDataset(x, y))
    with pytest.raises(ValueError, match="data_fingerprint"):
        run(tmp_path / "out", source=torch.utils.data.TensorDataset(x + 1, y), resume=True)


def test_what_is_not_given_is_that_of_the_run_that_goes_on(tmp_path):
    """Another GPU has another quarter of its memory."""
    x, y = data()
    source = torch.utils.data.TensorDataset(x, y)
    settings = {"chunk": 5, "max_bytes": 2**25, "threads": 1}
    first = run(tmp_path / "out", source=source, **settings)
    nothing = dict.fromkeys(settings)
    again = run(tmp_path / "out", source=source, resume=True, **nothing)
    assert again.table().equals(first.table())
    for name, value in settings.items():
        with pytest.raises(ValueError, match=f"{name}: {value} there, {value + 1} now"):
            run(tmp_path / "out", source=source, resume=True, **nothing | {name: value + 1})
    fresh = run(tmp_path / "fresh", source=source, **nothing)
    manifest = json.loads((fresh.folder / "manifest.json").read_text())
    assert (
        manifest["config"]["chunk"] == min(64, len(x)) and manifest["config"]["max_bytes"] == 2**31
    )


@pytest.mark.parametrize(
    ("device", "numbers", "examples", "wanted"),
    [
        ("cpu", 10_001, 1000, 16), ("cpu", 10_000, 1000, 64), ("cpu", 10_001, 3, 3),
        ("cuda", 10_001, 1000, 96), ("cuda", 10_000, 1000, 512), ("cuda", 10_000, 3, 3),
    ],
)  # fmt: skip
def test_chunks_are_larger_on_a_gpu(monkeypatch, device, numbers, examples, wanted):
    device = torch.device(device)
    of_run = SimpleNamespace(device=device, _like=torch.zeros(numbers))
    assert runner._Run._chunk_size(of_run, examples) == wanted
    memory = SimpleNamespace(total_memory=2**36)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert read_max_bytes("op", None, device) == (2**34 if device.type == "cuda" else 2**31)
    assert read_max_bytes("op", 5, device) == 5


def picture_model(**options) -> LoadedModel:
    return LoadedModel(
        lambda x: x.mean((2, 3)), "means", input_size=8, fingerprint="means", **options
    )


def test_sixteen_bit_pictures_are_scaled(tmp_path):
    image = pytest.importorskip("PIL.Image")
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    image.fromarray(ramp).save(tmp_path / "deep.png")
    read = load_source(str(tmp_path)).read(0)
    x = to_tensor(read.x, picture_model())
    expected = torch.from_numpy(ramp / 65535).float().expand(3, 8, 8)
    torch.testing.assert_close(x, expected, atol=1 / 255, rtol=0)
    with pytest.raises(ValueError, match="8- or 16-bit, got floating point"):
        to_tensor(image.fromarray(ramp.astype(np.float32)), picture_model())


def test_only_what_is_named_is_cropped(tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[4:12, 4:12, 0] = 255  # the middle half
    pixels[:, :, 1] = 200
    image.fromarray(pixels).save(folder / "one.png")
    half = run(tmp_path / "half", picture_model(), str(folder), crop=0.5).table()
    whole = run(tmp_path / "whole", picture_model(), str(folder)).table()
    assert half["predicted"].to_pylist() == [0] and whole["predicted"].to_pylist() == [1]
    with pytest.raises(ValueError, match="crop must be above 0 and at most 1, got 2"):
        run(tmp_path / "two", picture_model(), str(folder), crop=2)


def test_a_file_imports_what_lies_beside_it(tmp_path):
    (tmp_path / "beside_it.py").write_text("import torch\n\nnet = torch.nn.Linear(4, 3)\n")
    (tmp_path / "own.py").write_text("from beside_it import net\n\n\ndef make():\n    return net\n")
    assert load_model(f"{tmp_path / 'own.py'}:make").model.in_features == 4


def test_a_transform_of_the_model_s_own_is_used(tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    folder.mkdir()
    image.fromarray(np.full((9, 5), 128, np.uint8)).save(folder / "grey.png")
    seen = []

    def transform(picture):
        seen.append(picture.mode)
        return torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))

    model = picture_model(transform=transform)
    assert run(tmp_path / "out", model, str(folder)).table().num_rows == 1
    assert set(seen) == {"RGB"}
    with pytest.raises(ValueError, match="input_size must be left out"):
        run(tmp_path / "two", model, str(folder), input_size=5)


class Processor:
    """As Hugging Face's: squashes, scales, normalises; with ``twist`` the channels change places."""

    image_mean, image_std, do_normalize = [0.5] * 3, [0.25] * 3, True

    def __init__(self, twist: bool = False) -> None:
        self.twist = twist

    def __call__(self, picture, *, return_tensors, do_normalize=True):
        x = np.asarray(picture.resize((8, 8))).transpose(2, 0, 1) / 255
        if do_normalize:
            x = (x - 0.5) / 0.25
            x = x[::-1].copy() if self.twist else x
        return {"pixel_values": torch.from_numpy(x).float()[None]}


def test_a_processor_is_taken_apart_or_refused():
    pytest.importorskip("PIL.Image")
    transform, scaling = models_module._hugging_face_pictures("net", Processor())
    assert scaling["mean"].tolist() == [0.5] * 3 and callable(transform)
    with pytest.raises(ValueError, match="must scale pixels in .* by a mean"):
        models_module._hugging_face_pictures("net", Processor(twist=True))


def test_names_that_are_no_text(tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    try:
        (folder / "caf\udce9").mkdir(parents=True)
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "caf\udce9" / "=cmd()\udcff.png")
    (folder / "caf\udce9" / "b\udcff.png").write_bytes(b"no picture")
    done = run(tmp_path / "out", picture_model(), str(folder))
    assert done.table()["name"].to_pylist() == ["caf\\xe9/=cmd()\\xff.png", "caf\\xe9/b\\xff.png"]
    pytest.importorskip("jinja2")
    assert "caf\\xe9" in report(done).read_text("utf-8")


def test_tar_members_are_names_only(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    sink = io.BytesIO()
    image.fromarray(np.zeros((8, 8), np.uint8)).save(sink, "png")
    with tarfile.open("s.tar", "w") as tar:
        for name, content in (("../../up.png", sink.getvalue()), ("../../up.cls", b"1.5")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("passwd.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = load_source("s.tar")
    assert len(source) == 1
    with pytest.raises(ValueError, match="label must be a whole number, got 1.5"):
        source.read(0)
    assert {p.name for p in tmp_path.iterdir()} == {"s.tar"}


def test_selfcheck_leaves_out_what_has_no_answer_and_claims_no_certainty():
    x, y = data(10)
    x[3] = float("nan")
    found = mvnrob.selfcheck(net(), (x, y), 0.3, methods=("taylor",), n_examples=10, draws=200)
    assert 3 not in found.examples and len(found.examples) == 9
    assert np.isfinite(found.checks[0].rms)
    with pytest.raises(ValueError, match="got NaN at all inputs"):
        mvnrob.selfcheck(net(), (x * float("nan"), y), 0.3, methods=("taylor",), n_examples=3)
    for options, text in (
        ({"methods": ("taylor",), "n_samples": 5}, "n_samples must be left out"),
        ({"methods": ("guess",)}, "methods must be of"),
    ):
        with pytest.raises(ValueError, match=f"selfcheck: {text}"):
            mvnrob.selfcheck(net(), (x, y), 0.3, **options)
    # No flip in 10,000 draws is not knowing p; an estimator within that noise is not beaten by it.
    assert _variance(torch.ones(5), 10_000) > 1e-4
    tiny = Check("taylor", 0.1, 0.0, 1e-6, 1e-6, 1.0, 1.0, 20, 1.0, 0.003)
    method, why = _recommend([tiny], 1e-4)
    assert method == "taylor" and "cannot be told from Monte Carlo's own" in why


def test_compare_of_labels_below_zero_and_of_methods_without_errors(tmp_path):
    x, y = data()
    names = ["a", "b", "c", "d", "the last"]
    model = LoadedModel(net(), "net", names)
    one = run(tmp_path / "one", model, (x, y - 1), method="softmax")
    moved = LoadedModel(lambda z: net()(z) * 0.9, "net", names, fingerprint="moved")
    two = run(tmp_path / "two", moved, (x, y - 1), method="softmax")
    found = mvnrob.compare(one, two)
    assert {c.label: c.name for c in found.classes}[-1] == "-1"
    assert len(found.changes) == 20
    assert not mvnrob.compare(one, one).changes
    labels = run(tmp_path / "labels", model, (x, y), target="label", method="softmax")
    plain = run(tmp_path / "plain", model, (x, y), method="softmax")
    with pytest.raises(ValueError, match="compare: runs must be about the same target"):
        mvnrob.compare(plain, labels)


def test_intervals_of_examples_that_are_all_alike():
    """Ten ones do not prove a mean of one: Clopper and Pearson's lower end."""
    mean, low, high = st.mean_interval(np.ones(10))
    assert (mean, high) == (1.0, 1.0) and low == pytest.approx(0.005**0.1)
    mean, low, high = st.mean_interval(np.full(50, 0.5))
    assert low < 0.46 and high > 0.54


def test_report_of_odd_runs(tmp_path, monkeypatch):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    names = ["=SUM(A1)", "b" * 150, "", "-2", "@x"]
    model = LoadedModel(net(), "net", names)
    sigmas = [1e-9 * k for k in range(1, 12)]  # more than there are colours; all p = 1
    sure = run(tmp_path / "sure", model, sigma=sigmas, method="taylor_mvs")
    page = report(sure, source=load_source(data())).read_text("utf-8")
    assert "<b>none</b>least robust class" in page
    classes = (sure.folder / "report" / "classes.csv").read_text("utf-8")
    assert ",'=SUM(A1)," in classes and ",=SUM" not in classes
    one = run(tmp_path / "one", model, source=data(1)[0])
    source = load_source(data(1)[0])
    monkeypatch.setattr(source, "read", lambda index: 1 / 0)  # gone since
    assert report(one, source=source).is_file()


def test_a_manifest_of_another_kind(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="must hold a readable manifest"):
        Evaluation(tmp_path)


def test_taylor_probability_names_the_label_that_is_wrong():
    x, y = data(4)
    with pytest.raises(ValueError, match=r"target must lie in \[0, 5\), got -1"):
        taylor_probability(net(), x, 0.1, target=y - 1)


def test_outputs_with_logits(tmp_path):
    wrapped = run(tmp_path / "a", lambda x: SimpleNamespace(logits=net()(x)))
    plain = run(tmp_path / "b")
    assert wrapped.table()["prob"].to_pylist() == plain.table()["prob"].to_pylist()


def test_an_unreadable_picture_has_one_note_in_every_process(tmp_path):
    """Pillow's words hold the address of the buffer, other in each process; tables are the same."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    image.new("RGB", (9, 9), (250, 0, 0)).save(folder / "whole.png")
    rows = run(tmp_path / "out", picture_model(), str(folder)).table().to_pylist()
    assert [row["note"] for row in rows[:2]] == [
        "UnidentifiedImageError: cannot identify image file <_io.BytesIO object>"
    ] * 2
    assert rows[2]["note"] is None


def test_nan_rows_say_whose_nan(tmp_path):
    x, y = data(6)
    x[1] = float("nan")

    def model(z):
        return net()(z) * torch.where(z[:, :1] == 7.0, float("nan"), 1.0)

    x[4, 0] = 7.0
    rows = run(tmp_path / "out", model, (x, y)).table().to_pylist()
    notes = {row["index"]: row["note"] for row in rows}
    assert notes == {0: None, 1: "NaN in the input", 2: None, 3: None, 4: "NaN logits", 5: None}


def test_labels_that_nobody_has_are_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    for source in (data()[0], "photos"):
        with pytest.raises(ValueError, match="target must be prediction for data without labels"):
            run(out, picture_model() if source == "photos" else None, source, target="label")
    assert not out.exists()


def test_warnings_are_said_without_progress(tmp_path, capfd):
    x, y = data()
    run(tmp_path / "out", source=(x * 3, y), bounds=(0, 1))
    said = capfd.readouterr().err
    assert "outside their bounds" in said and "evaluate: 20 of 20" not in said


def test_numpy_arrays_are_data(tmp_path):
    x, y = data()
    as_tensors = run(tmp_path / "a", source=(x, y)).table()
    as_arrays = run(tmp_path / "b", source=(x.numpy(), y.numpy())).table()
    assert as_arrays.equals(as_tensors)
    assert len(load_source(x.numpy().astype(">f4"))) == len(x)
    with pytest.raises(ValueError, match=r"must be \(x, labels\), got a tuple of 3"):
        load_source((x, y, y))
    with pytest.raises(TypeError, match="must hold numbers, got an array of object"):
        load_source(np.array([[None]]))


def test_weights_given_as_a_model_say_where_they_go(tmp_path):
    torch.save(net().state_dict(), tmp_path / "plain.pt")
    (tmp_path / "plain.safetensors").write_bytes(b"")
    for name in ("plain.pt", "plain.safetensors"):
        with pytest.raises(ValueError, match="weights alone go to --weights"):
            load_model(str(tmp_path / name))


def test_weights_that_do_not_load_say_why(tmp_path):
    (tmp_path / "model.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(3, 4)\n"
    )
    spec = f"{tmp_path / 'model.py'}:make"
    torch.save(torch.nn.Linear(3, 4), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match="not unpickled since that can run code") as caught:
        load_model(spec, weights=tmp_path / "whole.pt")
    assert "weights_only" not in str(caught.value)  # torch's advice is to load it all the same
    torch.save(torch.nn.Linear(3, 5).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(ValueError, match="size mismatch for weight"):
        load_model(spec, weights=tmp_path / "wide.pt")


def test_selfcheck_of_pictures_and_of_a_scaled_model(tmp_path, capfd):
    """A network that says nothing of its inputs is checked with the options it is evaluated with."""
    pictures = pytest.importorskip("PIL.Image")
    (tmp_path / "model.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return 5 * x.mean((2, 3)) + torch.tensor([0.0, 0.1, 0.2])\n"
        "make = Net\n"
    )
    (tmp_path / "pictures").mkdir()
    for level in range(3):
        image = pictures.new("RGB", (9, 9), (250, 90 * level, 9))
        image.save(tmp_path / "pictures" / f"{level}.png")
    words = [
        "selfcheck", "--model", f"{tmp_path / 'model.py'}:make", "--data",
        str(tmp_path / "pictures"), "--sigma", "1", "--method", "taylor", "--examples", "3", "--draws",
        "200",
    ]  # fmt: skip
    assert main(words) == USAGE
    assert "--input-size" in capfd.readouterr().err
    words += ["--input-size", "4"]
    assert main(words) == FINISHED
    plain = capfd.readouterr().out
    assert main([*words, "--mean", "0.5", "--std", "0.25"]) == FINISHED
    assert "3 examples" in plain and capfd.readouterr().out != plain
    assert main([*words, "--mean", "0.5"]) == USAGE


def test_outputs_that_are_probabilities_are_said(tmp_path, capfd):
    run(tmp_path / "logits")
    assert "probabilities" not in capfd.readouterr().err
    probabilities = torch.nn.Sequential(net(), torch.nn.Softmax(1)).eval()
    run(tmp_path / "mc", probabilities, method="mc", n_samples=10)
    assert "probabilities" not in capfd.readouterr().err  # it reads the greatest alone
    run(tmp_path / "softmax", probabilities)
    assert capfd.readouterr().err.count("look like probabilities") == 1


def test_options_that_evaluate_sets_and_too_many_threads_are_refused(tmp_path):
    x, y = data()
    for options, text in (
        ({"options": {"taylor": {"seed": 3}}}, "leave out what evaluate sets itself, got 'seed'"),
        ({"threads": 100_000}, "threads must be at most 1024, got 100000"),
    ):
        with pytest.raises(ValueError, match=text):
            run(tmp_path / "out", source=torch.utils.data.TensorDataset(x, y), **options)
    assert main(["evaluate", "--model", "digits", "--data", "digits", "--sigma", "0.1",
                 "--max-bytes", "1e400", "--out", str(tmp_path / "two")]) == USAGE  # fmt: skip


def test_a_manifest_with_gaps_is_no_run(tmp_path):
    x, y = data()
    done = run(tmp_path / "out", source=torch.utils.data.TensorDataset(x, y))
    path = done.folder / manifest_module.FILE
    content = json.loads(path.read_text())
    for gone in ("config", "environments"):
        path.write_text(json.dumps({k: v for k, v in content.items() if k != gone}))
        with pytest.raises(ValueError, match="out must hold a whole"):
            Evaluation(done.folder)


def test_a_flipped_bit_in_a_part_is_found_or_does_no_harm(tmp_path):
    """Values have checksums; of a page's header not every bit matters."""
    x, y = data()
    source = torch.utils.data.TensorDataset(x, y)
    done = run(tmp_path / "out", source=source)
    table = done.table()
    part = min((done.folder / PARTS).glob("[0-9]*.parquet"))
    whole, found = part.read_bytes(), 0
    for at in range(4, len(whole) // 2, len(whole) // 13):  # where the pages are
        (done.folder / RESULTS).unlink()
        part.write_bytes(whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
        try:
            run(tmp_path / "out", source=source, resume=True)
        except ValueError as error:
            assert "out must hold readable tables, got" in str(error) and "delete it" in str(error)
            found += 1
            part.write_bytes(whole)
            run(tmp_path / "out", source=source, resume=True)
        assert done.table().equals(table)
    assert found >= 2


def test_a_shard_that_ends_early_is_refused(tmp_path):
    image = pytest.importorskip("PIL.Image")
    picture = io.BytesIO()
    image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture, "png")
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for k in range(3):
            entry = tarfile.TarInfo(f"{k}.png")
            entry.size = len(picture.getvalue())
            tar.addfile(entry, io.BytesIO(picture.getvalue()))
    assert len(load_source(str(tmp_path / "whole.tar"))) == 3
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:1024])
    with pytest.raises(ValueError, match="plain tar shards, got .*ends early"):
        load_source(str(tmp_path / "cut.tar"))


def test_weights_of_integers_are_refused(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    (tmp_path / "own.py").write_text(
        "import torch\n\n\ndef make():\n    return torch.nn.Linear(4, 3)\n"
    )
    state = {"weight": torch.ones(3, 4, dtype=torch.int8), "bias": torch.zeros(3)}
    safetensors.save_file(state, str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="floating point where the model's are, got weight"):
        load_model(f"{tmp_path / 'own.py'}:make", weights=tmp_path / "w.safetensors")
