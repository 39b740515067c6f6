"""Evaluation on machines that fail: memory, disks, folders, terminals, killed processes."""

import errno
import fcntl
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import mvnrob
from mvnrob.cli import FINISHED, STOPPED, USAGE, WITH_GAPS, main
from mvnrob.evaluation import Evaluation, LoadedModel, Source, load_model, load_source
from mvnrob.evaluation import manifest as manifest_module
from mvnrob.evaluation.manifest import clear_temporaries, write_atomically
from mvnrob.evaluation.results import OUT_OF_MEMORY, PARTS, RESULTS, UNREADABLE
from mvnrob.evaluation.sources import Example
from mvnrob.report import report

pytest.importorskip("pyarrow")

FEATURES, CLASSES, COUNT = 12, 5, 20


def net() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 16), torch.nn.Tanh(), torch.nn.Linear(16, CLASSES)
        ).eval()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(COUNT, FEATURES, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(COUNT) % CLASSES


def run(out: Path, model=None, source=None, **options) -> Evaluation:
    options = {"chunk": 8, "threads": 1, "progress": False, **options}
    model = LoadedModel(net(), "net", fingerprint="net") if model is None else model
    return mvnrob.evaluate(model, data() if source is None else source, 0.3, out=out, **options)


def table_bytes(folder: Path) -> bytes:
    return (folder / RESULTS).read_bytes()


# --- exported programs -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [1, 8, COUNT, torch.export.Dim("batch", min=1, max=6)])
def test_a_program_of_a_fixed_batch_is_given_batches_of_that_size(tmp_path, batch):
    """8 is the chunk: there only what the methods pass has another size."""
    fixed = isinstance(batch, int)
    shapes = None if fixed else ({0: batch},)
    example = (data()[0][: batch if fixed else 4],)
    exported = torch.export.export(net(), example, dynamic_shapes=shapes)
    torch.export.save(exported, tmp_path / "fixed.pt2")
    program = load_model(str(tmp_path / "fixed.pt2")).model
    for count in (0, 1, 5, 8, COUNT):
        x = data()[0][:count]
        torch.testing.assert_close(program(x), net()(x), atol=1e-6, rtol=0)
    options = {"method": ("taylor", "mmse", "mc"), "n_samples": 50}
    done = run(tmp_path / "fixed", str(tmp_path / "fixed.pt2"), **options).table()
    wanted = run(tmp_path / "free", **options).table()
    assert done["predicted"].to_pylist() == wanted["predicted"].to_pylist()
    np.testing.assert_allclose(done["prob"], wanted["prob"], atol=1e-4)  # integrals' own error


@pytest.mark.parametrize("size", [8, 1, 3])
def test_a_model_of_fixed_batches_is_refused_before_anything_is_written(tmp_path, size):
    """8 is the chunk."""

    def fixed(x):
        assert len(x) == size
        return net()(x)

    text, shape = ("batches of any size", 1) if size == 8 else ("what the model takes", 8)
    with pytest.raises(ValueError, match=rf"evaluate: .*{text}.*\[{shape}, 12\]"):
        run(tmp_path / "out", fixed)
    assert not (tmp_path / "out").exists()


# --- memory ------------------------------------------------------------------------------------------


class Hungry(torch.nn.Module):
    """Out of memory for batches above ``most``, at calls ``first`` to ``last`` of the model."""

    def __init__(self, first: float, last: float, most: int = 0) -> None:
        super().__init__()
        self.inner, self.calls = net(), 0
        self.first, self.last, self.most = first, last, most

    def forward(self, x):
        self.calls += 1
        if self.first <= self.calls <= self.last and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")
        return self.inner(x)


def hungry(*arguments) -> LoadedModel:
    return LoadedModel(Hungry(*arguments).eval(), "net", fingerprint="net")


METHODS = {"method": ("taylor", "mc"), "n_samples": 50}


@pytest.mark.filterwarnings("ignore:robustness. out of memory")
def test_out_of_memory_once_at_any_call_loses_nothing(tmp_path):
    counted = hungry(np.inf, np.inf)
    whole = run(tmp_path / "whole", counted, **METHODS).table().to_pylist()
    same = 0
    for call in range(1, counted.model.calls + 1):
        out = tmp_path / str(call)
        rows = run(out, hungry(call, call), **METHODS).table().to_pylist()
        same += table_bytes(out) == table_bytes(tmp_path / "whole")
        for row, wanted in zip(rows, whole, strict=True):
            assert row["status"] == wanted["status"] and row["predicted"] == wanted["predicted"]
            # where an estimator went on with fewer inputs at a time, the network rounds otherwise
            assert row["prob"] == pytest.approx(wanted["prob"], abs=2e-5)
    assert same >= 0.5 * counted.model.calls


@pytest.mark.filterwarnings("ignore:robustness. out of memory")
def test_memory_for_a_few_inputs_finishes_in_smaller_batches(tmp_path):
    whole = run(tmp_path / "whole", **METHODS).table()
    done = run(tmp_path / "few", hungry(4, np.inf, 3), **METHODS).table()
    assert done["status"].to_pylist() == whole["status"].to_pylist()
    assert done["predicted"].to_pylist() == whole["predicted"].to_pylist()
    np.testing.assert_allclose(done["prob"], whole["prob"], atol=2e-5)


def test_a_chunk_that_never_fits_says_which_would(tmp_path):
    for most, text in ((3, r"got 8 \(2 would\)"), (0, r"got 8 \(even one input would not\)")):
        with pytest.raises(ValueError, match=f"evaluate: chunk must fit into the memory, {text}"):
            run(tmp_path / "out", hungry(1, np.inf, most))
        assert not (tmp_path / "out").exists()
    assert run(tmp_path / "out", hungry(1, np.inf, 3), chunk=3).is_complete


def test_inputs_that_exceed_the_byte_budget_are_recorded(tmp_path):
    """Near zero all 700 classes matter, and their covariance alone takes 24 MB; far out few do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Linear(FEATURES, 700).eval()
    x, y = data()
    x = x * torch.where(torch.arange(COUNT) % 5 == 0, 0.01, 100.0)[:, None]
    options = {
        "method": ["taylor", "mc"],
        "options": {"taylor": {"head": "off"}, "mc": {"n_samples": 50}},
        "max_bytes": 2**20,
    }
    model = LoadedModel(model, "wide", fingerprint="wide")
    rows = run(tmp_path / "out", model, (x, y), **options).table().to_pylist()
    gone = [row for row in rows if row["status"] == OUT_OF_MEMORY]
    assert [(row["index"], row["method"]) for row in gone] == [
        (i, "taylor") for i in range(0, COUNT, 5)
    ]
    assert all("max_bytes must hold" in row["note"] for row in gone)
    assert all(np.isfinite(row["prob"]) for row in rows if row not in gone)


@pytest.mark.parametrize("target", ["prediction", "label"])
def test_memory_that_is_gone_is_recorded_and_tried_again(tmp_path, capfd, target):
    (tmp_path / "m.py").write_text(HUNGRY_FILE)
    x, y = data()
    np.savez(tmp_path / "d.npz", x=x.numpy(), y=y.numpy())
    words = [
        "evaluate", "--model", f"{tmp_path / 'm.py'}:make", "--data", str(tmp_path / "d.npz"),
        "--sigma", "0.3", "--chunk", "8", "--threads", "1", "--target", target, "--quiet", "--out",
    ]  # fmt: skip
    out = tmp_path / "out"
    assert main([*words, str(tmp_path / "whole")]) == FINISHED
    (tmp_path / "gone").write_text("12")
    assert main([*words, str(out)]) == WITH_GAPS
    assert "rows have no answer" in capfd.readouterr().out
    rows = Evaluation(out).table().to_pylist()
    assert {row["status"] for row in rows[8:]} == {OUT_OF_MEMORY}
    for row in rows[16:]:
        assert row["prob"] is None and row["predicted"] is None and "a test" in row["note"]
    assert main([*words, str(out), "--resume"]) == WITH_GAPS
    (tmp_path / "gone").unlink()
    assert main([*words, str(out), "--resume"]) == FINISHED
    assert table_bytes(out) == table_bytes(tmp_path / "whole")


HUNGRY_FILE = """
import pathlib, torch
gone = pathlib.Path(__file__).with_name("gone")

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.calls = torch.nn.Linear(12, 5), 0

    def forward(self, x):
        self.calls += 1
        if gone.exists() and self.calls > int(gone.read_text()):
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")
        return self.inner(x)

make = Net
"""


class Away(Source):
    """Some examples are away for a while, as on a file server that is down."""

    name, fingerprint = "away", "away"

    def __init__(self, *away: int) -> None:
        self.away = away

    def __len__(self) -> int:
        return COUNT

    def read(self, index: int) -> Example:
        if index in self.away:
            raise OSError(errno.EIO, "Input/output error")
        x, y = data()
        return Example(x[index], int(y[index]), str(index))


def test_what_could_not_be_read_is_tried_again_by_resume(tmp_path):
    run(tmp_path / "whole", source=Away())
    done = run(tmp_path / "out", source=Away(3, 17))
    assert [r["index"] for r in done.table().to_pylist() if r["status"] == UNREADABLE] == [3, 17]
    kept = (done.folder / PARTS / "00000001.parquet").stat().st_mtime_ns
    run(tmp_path / "out", source=Away(17), resume=True)
    run(tmp_path / "out", source=Away(), resume=True)
    assert table_bytes(tmp_path / "out") == table_bytes(tmp_path / "whole")
    assert (done.folder / PARTS / "00000001.parquet").stat().st_mtime_ns == kept


# --- folders and disks -------------------------------------------------------------------------------


def command(folder: Path, out: Path, *more: str) -> list[str]:
    """Of a model and data that lie in the folder."""
    (folder / "m.py").write_text(HUNGRY_FILE)
    np.savez(folder / "d.npz", x=data()[0].numpy())
    return ["evaluate", "--model", f"{folder / 'm.py'}:make", "--data", str(folder / "d.npz"),
            "--sigma", "0.1", "--method", "softmax", "--threads", "1", "--quiet",
            "--out", str(out), *more]  # fmt: skip


def test_a_folder_that_cannot_be_made_is_bad_usage(tmp_path, capfd, monkeypatch):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "run", tmp_path / ("long" * 100)):
        assert main(command(tmp_path, out)) == USAGE
        said = capfd.readouterr().err
        assert said.startswith("evaluate: out must be a folder that can be made, read and written")
        assert len(said.splitlines()) == 1 and "resume" not in said
    done = run(tmp_path / "run")

    def denied(self, *rest, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)  # root may write everywhere
    for folder in (tmp_path / "new", done.folder):
        with pytest.raises(ValueError, match=r"out must be a folder .*\(Permission denied: "):
            run(folder, resume=True)


def test_a_disk_that_is_full_at_the_start_is_not_bad_usage(tmp_path, capfd, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest_module.os, "fsync", full)
    assert main(command(tmp_path, tmp_path / "out")) == STOPPED
    assert "No space left on device; what was finished is kept" in capfd.readouterr().err
    monkeypatch.undo()
    assert main(command(tmp_path, tmp_path / "out", "--resume")) == FINISHED


def test_only_evaluate_speaks_of_resuming(tmp_path, capfd):
    done = run(tmp_path / "run")
    (tmp_path / "file").touch()
    assert main(["report", str(done.folder), "--out", str(tmp_path / "file" / "r")]) == STOPPED
    assert "resume" not in capfd.readouterr().err


# --- temporary files of killed processes ---------------------------------------------------------------


def test_resume_removes_what_killed_processes_left_and_nothing_else(tmp_path):
    done = run(tmp_path / "out")
    (done.folder / PARTS / "00000001.parquet").unlink()
    token = "0123456789abcdef"
    left = [
        done.folder / f".manifest.json.{token}",
        done.folder / f".results.parquet.{token}",
        done.folder / PARTS / f".00000001.parquet.{token}",
        done.folder / PARTS / f".timing-00000001.parquet.{token}",
    ]
    others = [
        done.folder / PARTS / ".nfs000000000123",
        done.folder / PARTS / f"00000001.parquet.{token}",
        done.folder / ".notes.txt",
    ]
    for path in left + others:
        path.write_bytes(b"half")
    held = done.folder / PARTS / ".00000000.parquet.00000000000000aa"
    with held.open("xb") as file:  # by a process that lives
        fcntl.flock(file, fcntl.LOCK_EX)
        run(done.folder, resume=True)
        assert held.exists() and not any(path.exists() for path in left)
        assert all(path.read_bytes() == b"half" for path in others)
    run(done.folder, resume=True)
    assert not held.exists()


def test_report_removes_what_killed_reports_left(tmp_path):
    pytest.importorskip("jinja2")
    done = run(tmp_path / "out")
    (done.folder / "report").mkdir()
    for name in ("index.html", "flips.png", "classes.csv", "scores.parquet"):
        (done.folder / "report" / f".{name}.0123456789abcdef").write_bytes(b"half")
    assert not [p for p in report(done).parent.iterdir() if p.name.startswith(".")]


def test_a_failing_model_s_own_error_is_said(tmp_path):
    model, calls = net(), [0]

    def failing(x):
        calls[0] += 1
        if calls[0] > 12:
            raise KeyError("colour")
        return model(x)

    with pytest.raises(RuntimeError, match=r"answer examples \d+ to \d+, got KeyError: 'colour'"):
        run(tmp_path / "out", failing)


def test_clearing_meets_writers(tmp_path, monkeypatch):
    """In the moments before a new file is locked and after it is written."""
    opened, replaced = manifest_module._lock, os.replace

    def cleared_before(file, *, otherwise):
        monkeypatch.setattr(manifest_module, "_lock", opened)
        clear_temporaries(tmp_path)
        return opened(file, otherwise=otherwise)

    def cleared_after(temporary, target):
        clear_temporaries(tmp_path)
        replaced(temporary, target)

    monkeypatch.setattr(manifest_module, "_lock", cleared_before)
    monkeypatch.setattr(manifest_module.os, "replace", cleared_after)
    write_atomically(tmp_path / "a.json", b"whole")
    assert (tmp_path / "a.json").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_file_systems_without_locks(tmp_path, monkeypatch):
    def unknown(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(manifest_module.fcntl, "flock", unknown)
    left = tmp_path / ".a.json.0123456789abcdef"
    left.touch()
    write_atomically(tmp_path / "a.json", b"whole")
    clear_temporaries(tmp_path)
    assert left.exists() and (tmp_path / "a.json").read_bytes() == b"whole"


# --- terminals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_terminals_without_the_letters_of_a_class(tmp_path, encoding):
    model = LoadedModel(net(), "net", ["猫", "é", "c", "d", "ü"], fingerprint="net")
    one = run(tmp_path / "猫-1", model)
    two = run(tmp_path / "two", LoadedModel(net()[::2].eval(), "n", fingerprint="n"))
    np.savez(tmp_path / "猫.npz", x=data()[0].numpy())
    (tmp_path / "m.py").write_text(HUNGRY_FILE)

    def says(*commands: list[str]) -> list[str]:
        """Of all commands in one process."""
        code = f"import sys, mvnrob.cli as c\nfor w in {list(commands)!r}:\n s = c.main(w); print(f'={{s}}=')"
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        # click writes UTF-8 where it is told ASCII
        text = done.stdout.decode("latin-1" if encoding == "latin-1" else "utf-8")
        *said, rest = text.split(f"={FINISHED}=")
        assert len(said) == len(commands) and not rest.strip(), (text, done.stderr)
        return said

    cat = "\\u732b" if encoding == "latin-1" else "猫"
    compare = ["compare", one.folder.name, two.folder.name]
    if encoding == "latin-1":
        evaluate = [
            "evaluate",
            "--model",
            "m.py:make",
            "--data",
            "猫.npz",
            "--sigma",
            "0.3",
            "--out",
        ]
        said = says(compare, ["report", one.folder.name], [*evaluate, "猫-3"])
        assert f"{cat}-1" in said[1] and f"{cat}-3" in said[2]
    else:
        said = says(compare)
    assert f"{cat}: " in said[0] and "é: " in said[0]


# --- data sets ---------------------------------------------------------------------------------------


def png() -> bytes:
    sink = io.BytesIO()
    pytest.importorskip("PIL.Image").new("RGB", (9, 9), (90, 200, 30)).save(sink, "png")
    return sink.getvalue()


def test_labels_from_editors_that_mark_their_files(tmp_path):
    mark = b"\xef\xbb\xbf"
    labels = {"a.cls": mark + b"2\r\n", "b.cls": b"2\r", "c.json": mark + b'{"label": 2}\r\n'}
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in labels.items():
            for entry, data in ((f"{name[0]}.png", png()), (name, content)):
                member = tarfile.TarInfo(entry)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source = load_source(str(tmp_path / "s.tar"))
    assert [source.read(index).label for index in range(3)] == [2, 2, 2]


def test_links_in_a_folder_of_pictures(tmp_path):
    """One to the folder itself would give every picture twice; one to nothing is a gap."""
    folder = tmp_path / "pictures"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").write_bytes(png())
    (folder / "a" / "up").symlink_to("..")
    (folder / "self").symlink_to("self")
    assert len(load_source(str(folder))) == 2
    (folder / "b" / "away.png").symlink_to("nowhere.png")
    model = LoadedModel(lambda x: x.mean((2, 3)), "means", input_size=8, fingerprint="means")
    rows = run(tmp_path / "out", model, str(folder)).table().to_pylist()
    assert [(r["name"], r["status"]) for r in rows[1:]] == [
        ("b/0.png", rows[0]["status"]), ("b/away.png", UNREADABLE)
    ]  # fmt: skip
    for target in (".", ".."):
        (folder / "loop").symlink_to(target)
        with pytest.raises(ValueError, match="data must not hold itself, got the link .*loop"):
            load_source(str(folder))
        (folder / "loop").unlink()


def test_a_damaged_table_is_named(tmp_path, capfd):
    done = run(tmp_path / "run")
    (done.folder / RESULTS).write_bytes(table_bytes(done.folder)[:100])
    assert main(["compare", str(done.folder), str(done.folder)]) == USAGE
    said = capfd.readouterr().err
    assert (
        f"readable tables, got {done.folder / RESULTS}" in said and "delete it and resume" in said
    )
