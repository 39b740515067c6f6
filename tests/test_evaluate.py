"""mvnrob evaluate: the table, durability, ranks, gaps, sources, and what must not run."""

import errno
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import mvnrob
from mvnrob.cli import FINISHED, INTERRUPTED, USAGE, WITH_GAPS, main
from mvnrob.evaluation import Evaluation, Source, load_model, load_source
from mvnrob.evaluation import results as results_module
from mvnrob.evaluation.results import OUT_OF_MEMORY, UNREADABLE

pytest.importorskip("pyarrow")

FEATURES, CLASSES = 12, 5


def tiny_model(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 16), torch.nn.Tanh(), torch.nn.Linear(16, CLASSES)
        ).eval()


def tiny_data(count: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, FEATURES, generator=generator)
    return x, torch.randint(CLASSES, (count,), generator=generator)


def run(out: Path, model=None, data=None, sigma=(0.1, 0.5), **options) -> Evaluation:
    options = {"chunk": 8, "threads": 1, "progress": False, **options}
    return mvnrob.evaluate(
        tiny_model() if model is None else model,
        tiny_data() if data is None else data,
        sigma,
        out=out,
        **options,
    )


def table_bytes(folder: Path) -> bytes:
    return (folder / results_module.RESULTS).read_bytes()


def column(done: Evaluation, name: str, **where) -> list:
    rows = done.table().to_pylist()
    return [r[name] for r in rows if all(r[k] == v for k, v in where.items())]


def test_table_is_what_robustness_says(tmp_path):
    """Row by row: chunks, padding and files change nothing of a model that is batch-invariant."""
    x, labels = tiny_data()
    done = run(tmp_path / "out", method=("taylor", "mc"), n_samples=200, target="label")
    assert done.is_complete and done.progress() == (7, 7)
    for method, options in (("taylor", {}), ("mc", {"n_samples": 200})):
        whole = mvnrob.robustness(
            tiny_model(), x, [0.1, 0.5], method=method, target=labels, **options
        )
        for s, sigma in enumerate((0.1, 0.5)):
            assert column(done, "index", method=method, sigma=sigma) == list(range(50))
            prob = torch.tensor(column(done, "prob", method=method, sigma=sigma)).double()
            # rounding of matrix products in batches of other sizes
            torch.testing.assert_close(prob, whole.prob[s], atol=2e-5, rtol=0)
            assert column(done, "target", method=method, sigma=sigma) == labels.tolist()
            flips = column(done, "runner_up", method=method, sigma=sigma)
            assert flips == whole.runner_up[s].tolist()
    logits = tiny_model()(x)
    assert column(done, "predicted", method="mc", sigma=0.1) == logits.argmax(1).tolist()
    assert column(done, "forward", method="mc", sigma=0.1)[0] >= 400  # passes of both sigmas
    times = done.timings().to_pylist()
    assert len(times) == 21 and all(t["seconds"] > 0 for t in times)
    phases = [name for name in times[0] if name.startswith("seconds_")]
    assert all(t["seconds"] == pytest.approx(sum(t[n] for n in phases)) for t in times)
    assert all(min(t[n] for n in phases) >= 0 for t in times)
    assert all(t["seconds_forward"] > 0 for t in times)
    spent = {
        method: {n for n in phases if any(t[n] > 0 for t in times if t["method"] == method)}
        for method in ("taylor", "mc", None)
    }
    both = {"seconds_forward", "seconds_other"}
    assert spent["taylor"] - {"seconds_jvp"} == both | {
        "seconds_vjp", "seconds_covariance", "seconds_cdf"
    }  # fmt: skip
    assert spent["mc"] == both and spent[None] == {*both, "seconds_read"}


def test_refuses_another_run_and_a_second_without_resume(tmp_path):
    out = tmp_path / "out"
    run(out)
    before = table_bytes(out)
    with pytest.raises(ValueError, match=r"out must be a new folder unless resume is set"):
        run(out)
    for options, name in (
        ({"sigma": (0.1,)}, "sigmas"),
        ({"seed": 1}, "seed"),
        ({"model": tiny_model(1)}, "model_fingerprint"),
        ({"data": tiny_data(49)}, "data_fingerprint"),
        ({"chunk": 4}, "chunk"),
        ({"abs_tol": 1e-2}, "options"),
        ({"method": "mmse"}, "methods"),
        ({"limit": 20}, "examples"),
    ):
        with pytest.raises(ValueError, match=rf"got another one in .*{name}: "):
            run(out, resume=True, **options)
    run(out, resume=True)
    assert table_bytes(out) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        run(other)


def test_shards_share_a_folder(tmp_path):
    method = ("taylor", "mmse")  # one of them draws
    whole = run(tmp_path / "whole", method=method)
    parts = tmp_path / "parts"
    first = run(parts, shard="1/2", method=method)
    assert not first.is_complete and first.progress() == (3, 7)
    with pytest.raises(ValueError, match="got 3 of 7 chunks"):
        first.table()
    with pytest.raises(ValueError, match="got another one in"):
        run(parts, shard="0/2", seed=1, method=method)
    # shards know nothing of each other: none has to be the one that resumes
    assert run(parts, shard="0/2", method=method).is_complete
    assert table_bytes(parts) == table_bytes(whole.folder)


def test_noise_is_the_example_s_own(tmp_path):
    """A limit changes nothing of the examples that are left, the last padded chunk included."""
    whole = run(tmp_path / "whole", method="mc", n_samples=100)
    some = run(tmp_path / "some", method="mc", n_samples=100, limit=13)
    assert column(some, "prob") == column(whole, "prob")[: 13 * 2]
    other = run(tmp_path / "other", method="mc", n_samples=100, seed=5)
    assert column(other, "prob") != column(whole, "prob")


MODEL_FILE = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)
    )
"""

# Runs the evaluation in forks and kills them -9 at random moments, the first writes included; every
# second one soon after it has written a part, on however slow a machine.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import mvnrob

model, data, out, cycles = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

def go(out, **options):
    mvnrob.evaluate(model, data, (0.1, 0.5), out=out, chunk=2, threads=1, method=("taylor", "mc"),
                    n_samples=500, progress=False, resume=True, **options)

def parts():
    return len(list(Path(out).glob("parts/*")))

go(out + "-loaded", limit=2)  # what is loaded once: the forks would all be killed while they load it
random.seed(7)
killed = 0
while True:
    before, child = parts(), os.fork()
    if child == 0:
        go(out)
        os._exit(0)
    if killed < cycles:
        until = time.monotonic() + 60
        while killed % 2 and parts() <= before and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.03) if killed % 2 else random.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
            continue
        break
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    break
print(killed)
"""


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    """A model file and a data file that any process can load."""
    model, data = tmp_path / "model.py", tmp_path / "data.npz"
    model.write_text(MODEL_FILE)
    x, y = tiny_data(120)
    np.savez(data, x=x.numpy(), y=y.numpy())
    return f"{model}:make", str(data)


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def test_twenty_kills_end_in_the_same_bytes(tmp_path, files):
    options = {"chunk": 2, "threads": 1, "method": ("taylor", "mc"), "n_samples": 500}
    whole = tmp_path / "whole"
    mvnrob.evaluate(*files, (0.1, 0.5), out=whole, progress=False, **options)
    killed = tmp_path / "killed"
    done = python("-c", KILLER, *files, str(killed), "20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10, "the run was over before it could be killed often"
    assert table_bytes(killed) == table_bytes(whole)
    leftovers = [p.name for p in killed.rglob(".*")]
    # what a kill leaves behind is a temporary file, never half of a part
    assert all(name.startswith(".") for name in leftovers)


# mc draws, and loads less than mmse: in a process of its own that counts.
METHODS = {"method": ("taylor", "mc"), "n_samples": 50}


def torchrun(ranks: int, out: Path, files) -> subprocess.CompletedProcess:
    return python(
        "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone",
        "-m", "mvnrob", "evaluate", "--model", files[0], "--data", files[1], "--sigma", "0.1,0.5",
        "--method", "taylor,mc", "--n-samples", "50", "--chunk", "4", "--threads", "1",
        "--out", str(out), cwd=out.parent, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def alone(out: Path, files, **options) -> Evaluation:
    """What torchrun runs, in this process."""
    options = {"chunk": 4, "threads": 1, "progress": False, **METHODS, **options}
    return mvnrob.evaluate(*files, (0.1, 0.5), out=out, **options)


def test_three_ranks_give_one_table(tmp_path, files):
    """Gaps are no failure to torchrun: it would end the other ranks and call a finished run failed."""
    x, y = tiny_data(120)
    x[2] = float("nan")
    np.savez(files[1], x=x.numpy(), y=y.numpy())
    one = alone(tmp_path / "one", files)
    out = tmp_path / "three"
    done = torchrun(3, out, files)
    assert done.returncode == 0, done.stderr
    assert "4 rows have no answer" in done.stdout and Evaluation(out).is_complete
    assert table_bytes(out) == table_bytes(one.folder)
    assert {t["rank"] for t in Evaluation(out).timings().to_pylist()} == {0, 1, 2}


DIES = """
import os
from mvnrob.evaluation import results

write, left = results.Parts.write, [3]

def dying(self, chunk, rows, timings):
    left[0] -= 1
    if os.environ.get("RANK") == "1" and left[0] == 0:
        os.kill(os.getpid(), 9)
    write(self, chunk, rows, timings)

results.Parts.write = dying
"""


def test_a_killed_rank_and_a_resumed_run(tmp_path, files):
    path = Path(files[0].rpartition(":")[0])
    whole = alone(tmp_path / "one", files)
    path.write_text(MODEL_FILE + DIES)
    out = tmp_path / "two"
    assert torchrun(2, out, files).returncode != 0
    done, every = Evaluation(out).progress()
    assert 0 < done < every
    path.write_text(MODEL_FILE)
    alone(out, files, resume=True)
    assert table_bytes(out) == table_bytes(whole.folder)


class Flawed(Source):
    """Example 3 cannot be read, 5 has another shape, 7 gives NaN, 9 has no label, 11 a strange one."""

    name, fingerprint = "flawed", "flawed"

    def __len__(self) -> int:
        return 20

    def read(self, index: int):
        x, y = tiny_data()
        if index == 3:
            raise OSError("a broken sector")
        example = load_source((x, y)).read(index)
        if index == 5:
            example.x = example.x[:4]
        if index == 7:
            example.x = example.x * float("nan")
        if index == 9:
            example.label = None
        if index == 11:
            example.label = 99
        return example


def test_flawed_examples_are_recorded(tmp_path):
    done = run(tmp_path / "out", data=Flawed(), target="label", sigma=0.3)
    good = run(tmp_path / "good", data=tiny_data(), target="label", sigma=0.3, limit=20)
    rows = {r["index"]: r for r in done.table().to_pylist()}
    expected = {
        3: (UNREADABLE, "OSError: a broken sector"),
        5: (UNREADABLE, "torch.float32 [4] where the first example is torch.float32 [12]"),
        7: ("NAN_INPUT", "NaN in the input"),
        9: (UNREADABLE, "no label"),
        11: (UNREADABLE, "label 99 of 5 classes"),
    }
    for index, row in rows.items():
        if index in expected:
            assert (row["status"], row["note"]) == expected[index]
            assert row["prob"] is None and row["error"] is None
        else:
            wanted = good.table().to_pylist()[index]
            assert row["prob"] == pytest.approx(wanted["prob"], abs=1e-6)
            assert {k: row[k] for k in ("name", "label", "target", "status", "note")} == {
                k: wanted[k] for k in ("name", "label", "target", "status", "note")
            }
    assert len(rows) == 20


class HungryModel(torch.nn.Module):
    """Out of memory in any batch, and for one input also by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model()
        self.marked = tiny_data()[0][4]

    def forward(self, x):
        if torch.is_grad_enabled() and (len(x) > 1 or bool((x == self.marked).all())):
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")
        return self.inner(x)


@pytest.mark.filterwarnings("ignore:robustness. out of memory")
def test_out_of_memory_is_retried_then_recorded(tmp_path):
    done = run(tmp_path / "out", model=HungryModel().eval(), sigma=0.3)
    good = run(tmp_path / "good", sigma=0.3)
    rows, right = done.table().to_pylist(), good.table().to_pylist()
    assert rows[4]["status"] == OUT_OF_MEMORY and rows[4]["prob"] is None
    assert "a test" in rows[4]["note"]
    for index, (row, wanted) in enumerate(zip(rows, right, strict=True)):
        if index != 4:
            assert row["prob"] == pytest.approx(wanted["prob"], abs=2e-5)


def test_a_full_disk_stops_and_resume_finishes(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    out = tmp_path / "out"
    write, left = results_module.write_atomically, [6]

    def full(path, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(results_module, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        run(out)
    assert Evaluation(out).progress() == (3, 7)
    monkeypatch.undo()
    run(out, resume=True)
    assert table_bytes(out) == table_bytes(whole.folder)


def test_a_failing_model_keeps_what_was_done(tmp_path):
    model, calls = tiny_model(), [0]

    def failing(x):
        calls[0] += 1
        if calls[0] > 30:
            raise RuntimeError("a bug in the model")
        return model(x)

    with pytest.raises(RuntimeError, match=r"examples \d+ to \d+, got .*a bug in the model"):
        run(tmp_path / "out", model=failing)
    done, every = Evaluation(tmp_path / "out").progress()
    assert 0 < done < every


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sigma": ()}, "sigma must be one or more numbers"),
        ({"sigma": (-1.0,)}, "sigma must be one or more numbers"),
        ({"sigma": (0.1, 0.1)}, "sigma must not repeat"),
        ({"method": "guess"}, "method must be one or more of"),
        ({"method": ("mc", "mc")}, "method must name each method once"),
        ({"target": "truth"}, "target must be one of"),
        ({"shard": "2/2"}, "shard must be i/k"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"options": {"mc": {"n_samples": 5}}}, "options must be for methods taylor"),
        ({"options": {"taylor": {"n_samples": 5}}}, "n_samples must be left out"),
        (
            {"options": {"taylor": {"abs_tol": torch.tensor(0.1)}}},
            "abs_tol must be a positive number",
        ),
        ({"options": {"taylor": {"seed": 1}}}, "options must leave out"),
        ({"abs_tol": float("nan")}, "abs_tol must be a positive number, got nan"),
        ({"options": {"taylor": {"foo": 1}}}, "options must be arguments of robustness, got 'foo'"),
        ({"n_samples": 5}, "n_samples must be left out for taylor, got 5"),
        ({"options": {"taylor": {"screen": "maybe"}}}, "screen must be one of"),
        ({"data": "no-such"}, "data must be"),
        ({"model": "no-such"}, "model must be"),
        ({"model": "missing.py:make"}, "model must name a file"),
        (
            {"data": torch.utils.data.DataLoader([1, 2], shuffle=True)},
            "that draws by RandomSampler",
        ),
        ({"data": torch.utils.data.DataLoader([1], collate_fn=list)}, "without a collate_fn"),
    ],
)
def test_bad_calls(tmp_path, options, text):
    with pytest.raises((ValueError, TypeError), match=text):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out" / "manifest.json").exists()


class Payload:
    def __reduce__(self):
        return (os.system, ("touch ran-the-payload",))


def test_a_pickle_with_a_payload_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL_FILE)
    for name in ("weights.pt", "weights.bin"):
        torch.save({"state_dict": Payload()}, name)
        with pytest.raises(ValueError, match="weights must be a safetensors file or a plain state"):
            load_model("model.py:make", weights=name)
    with open("plain.pt", "wb") as file:
        pickle.dump(Payload(), file)
    with pytest.raises(ValueError, match="weights must be"):
        load_model("model.py:make", weights="plain.pt")
    for name in ("plain.pt", "weights.pt"):  # as a model: neither TorchScript nor an export
        os.replace(name, "model.pt")
        with pytest.raises((ValueError, RuntimeError)):
            load_model("model.pt")
    np.savez("data.npz", x=np.array([Payload()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_source("data.npz")
    assert not (tmp_path / "ran-the-payload").exists()


def test_weights_and_exported_models(tmp_path):
    (tmp_path / "model.py").write_text(MODEL_FILE)
    spec = f"{tmp_path / 'model.py'}:make"
    trained = tiny_model(3)
    torch.save(trained.state_dict(), tmp_path / "plain.pt")
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(trained.state_dict(), tmp_path / "plain.safetensors")
    x = tiny_data()[0]
    prints = set()
    for weights in ("plain.pt", "plain.safetensors"):
        loaded = load_model(spec, weights=tmp_path / weights)
        torch.testing.assert_close(loaded.model(x), trained(x), atol=0, rtol=0)
        assert not loaded.model.training
        prints.add(loaded.fingerprint)
    assert len(prints) == 1 and load_model(spec).fingerprint not in prints
    other = torch.nn.Linear(3, 3).state_dict()
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="weights must fit the model"):
        load_model(spec, weights=tmp_path / "other.pt")
    torch.jit.trace(trained, x[:2]).save(tmp_path / "traced.ts")
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(trained, (x[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "exported.pt2")
    for name in ("traced.ts", "exported.pt2"):
        loaded = load_model(str(tmp_path / name))
        torch.testing.assert_close(loaded.model(x), trained(x), atol=1e-6, rtol=0)
        done = run(tmp_path / name.replace(".", "-"), model=str(tmp_path / name), limit=10)
        reference = run(tmp_path / f"ref-{name}", model=trained, limit=10)
        for a, b in zip(column(done, "prob"), column(reference, "prob"), strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def picture(seed: int, size=(40, 30)):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return image.fromarray(pixels)


PICTURE_MODEL = """
import torch
from mvnrob.evaluation import LoadedModel

class Net(torch.nn.Module):
    def forward(self, x):
        means = x.mean((2, 3))
        return torch.cat([means, means.flip(1)[:, :1] * 2], 1) * 30

def make():
    return LoadedModel(Net(), "net", ["r", "g", "b", "bb"], input_size=8, bounds=(0.0, 1.0))
"""


def test_pictures_from_folders_and_shards(tmp_path):
    (tmp_path / "model.py").write_text(PICTURE_MODEL)
    spec = f"{tmp_path / 'model.py'}:make"
    folder = tmp_path / "pictures"
    shard = tmp_path / "part-0000.tar"
    with tarfile.open(shard, "w") as tar:
        for label, name in enumerate(("cat", "dog <b>")):
            (folder / name).mkdir(parents=True)
            for number in range(3):
                image = picture(10 * label + number)
                image.save(folder / name / f"{number}.png")
                data = io.BytesIO()
                image.save(data, "png")
                for ending, content in (("png", data.getvalue()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{name}-{number}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (folder / "cat" / "9.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("no picture, no class")
    done = run(tmp_path / "folder-out", spec, str(folder), sigma=0.05)
    rows = done.table().to_pylist()
    assert [r["name"] for r in rows] == [
        "cat/0.png", "cat/1.png", "cat/2.png", "cat/9.jpg",
        "dog <b>/0.png", "dog <b>/1.png", "dog <b>/2.png",
    ]  # fmt: skip
    assert [r["label"] for r in rows] == [0, 0, 0, 0, 1, 1, 1]
    assert rows[3]["status"] == UNREADABLE and "UnidentifiedImageError" in rows[3]["note"]
    tarred = run(tmp_path / "tar-out", spec, str(tmp_path / "part-{0000..0000}.tar"), sigma=0.05)
    again = tarred.table().to_pylist()
    assert [r["label"] for r in again] == [0, 0, 0, 1, 1, 1]
    assert [r["prob"] for r in again] == [r["prob"] for r in rows if r["prob"] is not None]
    assert done.manifest["class_names"] == ["r", "g", "b", "bb"]


def test_data_sets_of_other_kinds(tmp_path):
    x, y = tiny_data(20)
    reference = run(tmp_path / "a", data=(x, y), limit=20)
    pairs = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(pairs, batch_size=3)
    dicts = [{"x": a, "label": int(b)} for a, b in zip(x, y, strict=True)]
    for name, data in (("b", pairs), ("c", loader), ("d", dicts), ("e", list(x))):
        done = run(tmp_path / name, data=data, limit=20)
        assert column(done, "prob") == column(reference, "prob")
        labels = [None] * 40 if name == "e" else column(reference, "label")
        assert column(done, "label") == labels
    images = (x.reshape(20, 3, 2, 2).permute(0, 2, 3, 1) * 255).to(torch.uint8)
    np.savez(tmp_path / "bytes.npz", images=images.numpy())
    read = load_source(str(tmp_path / "bytes.npz")).read(0).x
    torch.testing.assert_close(read, images[0].permute(2, 0, 1).float() / 255)


def test_inputs_outside_their_bounds_are_said(tmp_path, capfd):
    x, y = tiny_data(8)
    run(tmp_path / "out", data=(x * 3, y), bounds=(0, 1), progress=True)
    assert "outside their bounds (0.0, 1.0)" in capfd.readouterr().err
    model = torch.nn.Sequential(torch.nn.Flatten(), tiny_model()).eval()
    normalised = x.reshape(8, 3, 2, 2) * 4 - 2
    run(tmp_path / "two", model=model, data=(normalised, y), progress=True)
    assert "look normalised" in capfd.readouterr().err
    pixels = x.reshape(8, 3, 2, 2) * 255
    run(tmp_path / "three", model=model, data=(pixels, y), progress=True)
    assert "look like pixels in [0, 255]" in capfd.readouterr().err


def test_preprocessing_keeps_sigma_in_raw_units(tmp_path):
    x, y = tiny_data(10)
    model = tiny_model()
    inside = torch.nn.Sequential(_Scale(), model).eval()
    a = run(tmp_path / "a", model=inside, data=(x, y))
    b = run(tmp_path / "b", data=(x, y), preprocessing={"mean": 0.5, "std": 0.25})
    for p, q in zip(column(a, "prob"), column(b, "prob"), strict=True):
        assert p == pytest.approx(q, abs=2e-5)


class _Scale(torch.nn.Module):
    def forward(self, x):
        return (x - 0.5) / 0.25


def test_command_line(tmp_path, files, capfd):
    base = [
        "evaluate", "--model", files[0], "--data", files[1], "--sigma", "0.1,0.5",
        "--chunk", "16", "--threads", "1", "--limit", "40", "--quiet",
    ]  # fmt: skip
    out = str(tmp_path / "out")
    options = ["--method", "mmse,mc", "--n-samples", "20", "--option", "mmse.sampling=iid"]
    assert main([*base, "--out", out, *options]) == FINISHED
    printed = capfd.readouterr().out
    assert "mean p" in printed and "results.parquet: 160 rows" in printed
    config = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]
    assert config["options"] == {
        "mmse": {"sampling": "iid", "n_samples": 20}, "mc": {"n_samples": 20}
    }  # fmt: skip
    assert main([*base, "--out", out, *options]) == USAGE  # no --resume
    assert main([*base, "--out", out, *options, "--resume"]) == FINISHED
    assert main([*base, "--out", out, "--mean", "0.5"]) == USAGE
    assert main([*base, "--out", out, "--sigma", "x"]) == USAGE
    assert main(["--help"]) == FINISHED
    x, y = tiny_data(20)
    x[2] = float("nan")
    np.savez(tmp_path / "gap.npz", x=x.numpy(), y=y.numpy())
    base[4] = str(tmp_path / "gap.npz")
    assert main([*base, "--out", str(tmp_path / "gaps")]) == WITH_GAPS
    assert "2 rows have no answer" in capfd.readouterr().out


def test_interruptions_have_a_status_of_their_own(tmp_path, capfd, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mvnrob.evaluation.evaluate", interrupted)
    base = ["evaluate", "--model", "digits", "--data", "digits", "--sigma", "0.1"]
    assert main([*base, "--out", str(tmp_path / "out")]) == INTERRUPTED == 130
    assert "interrupted; what was finished is kept" in capfd.readouterr().err
    main(["evaluate", "--help"])
    text = " ".join(capfd.readouterr().out.split())
    assert f"{INTERRUPTED} interrupted, --resume goes on" in text


def test_digits_from_the_command_line(tmp_path):
    """The line that README shows, in a process of its own."""
    done = python(
        "-m", "mvnrob", "evaluate", "--model", "digits", "--data", "digits",
        "--sigma", "0.1,0.3", "--out", str(tmp_path / "out"), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    evaluation = Evaluation(tmp_path / "out")
    assert evaluation.table().num_rows == 720
    probs = column(evaluation, "prob", sigma=0.1)
    # USERS' experiment on another network of this kind: .975
    assert 0.95 < sum(probs) / len(probs) < 0.99
    assert textwrap.shorten(done.stdout, 40).startswith("taylor")
