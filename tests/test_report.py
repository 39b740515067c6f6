"""The report of a finished run, and its siblings compare, selfcheck and info."""

import csv
import html.parser
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import mvnrob
from mvnrob.cli import FINISHED, USAGE, main
from mvnrob.cli.commands import _summarise
from mvnrob.evaluation import Evaluation, LoadedModel
from mvnrob.evaluation.compare import Comparison, run_names
from mvnrob.evaluation.selfcheck import Check, _recommend
from mvnrob.printed import probability
from mvnrob.report import figures, report, score_frame
from mvnrob.report import statistics as st
from mvnrob.report.agreement import agreement, shown_method

pytest.importorskip("pyarrow")
pytest.importorskip("jinja2")

EVIL = '<script>alert("x")</script>'


class Page(html.parser.HTMLParser):
    """Tags and what they load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_data(self, data):
        self.text += data


def net() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = torch.nn.Linear(16, 4)
        layer.weight.data.mul_(3)
        return torch.nn.Sequential(layer).eval()


def data(count: int = 60):
    x = torch.rand(count, 16, generator=torch.Generator().manual_seed(2))
    return x, net()(x).argmax(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Evaluation:
    x, y = data()
    model = LoadedModel(net(), "net", [EVIL, "$b$", "c & d", "é"], bounds=(0.0, 1.0))
    x[7] = math.nan
    return mvnrob.evaluate(
        model,
        (x, y),
        (0.05, 0.2, 0.6),
        out=tmp_path_factory.mktemp("run") / "out",
        method=("taylor", "mc"),
        n_samples=300,
        progress=False,
        target="label",
        threads=1,
    )


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_page_is_whole_and_escapes(run):
    x, y = data()
    x[7] = math.nan
    source = mvnrob.evaluation.load_source((x, y))
    path = report(run, source=source)
    text = path.read_text()
    page = Page(text)
    assert "script" not in page.tags and EVIL not in text and EVIL in page.text
    assert page.loads and all(url.startswith("data:image/png;base64,") for url in page.loads)
    # figures, and two galleries of twelve
    assert page.tags.count("img") == 5 + 24
    for wanted in ("Against Monte Carlo", "Without an answer", "NAN_INPUT", "c & d", "Gini"):
        assert wanted in page.text
    assert report(run, source=source).read_text() == text  # nothing depends on the day
    assert "is given its label" in page.text and "less likely right than wrong" in page.text
    assert "100.0 %accuracy without noise" in page.text  # labels are the predictions here
    # the network is linear
    assert "taylor agrees with Monte Carlo" in page.text and 'class="notice"' not in text
    names = {p.name for p in path.parent.iterdir()}
    assert {"summary.csv", "classes.csv", "flips.csv", "examples.csv", "scores.parquet"} <= names
    assert {"distribution.png", "sigma.png", "classes.png", "flips.png"} <= names
    assert not [name for name in names if name.startswith(".")]


def test_pictures_only_of_the_same_data(run, tmp_path):
    other = mvnrob.evaluation.load_source(data(10))
    page = Page(report(run, out=tmp_path, source=other).read_text())
    assert page.tags.count("img") == 5 and "no pictures" in page.text


def test_exports_say_what_the_table_says(run):
    folder = report(run).parent
    table = run.table().to_pylist()
    for line in rows_of(folder / "summary.csv"):
        mine = [
            r["prob"]
            for r in table
            if (r["method"], r["sigma"]) == (line["method"], float(line["sigma"]))
            and r["prob"] is not None
        ]
        assert len(mine) == int(line["examples"]) == 59 and line["without answer"] == "1"
        assert float(line["mean p"]) == pytest.approx(np.mean(mine))
        assert float(line["median p"]) == pytest.approx(np.median(mine))
        assert float(line["p >= 0.9"]) == pytest.approx(np.mean(np.array(mine) >= 0.9))
        assert float(line["low"]) <= float(line["mean p"]) <= float(line["high"])
        largest = float(line["largest error"])
        assert 0 < float(line["error of the mean"]) <= largest
        assert 0 < float(line["error of the median"]) <= 1.0001 * largest
    assert len(rows_of(folder / "examples.csv")) == len(table)
    main_rows = st.answers(run)
    chosen = min(
        (a for a in main_rows if a.method == "taylor"), key=lambda a: abs(a["prob"].mean() - 0.8)
    )
    for line in rows_of(folder / "classes.csv"):
        mine = chosen["prob"][chosen["label"] == int(line["number"])]
        assert int(line["count"]) == len(mine)
        assert float(line["mean"]) == pytest.approx(mine.mean())
        assert float(line["worst"]) == pytest.approx(mine.min())
    lost = sum(float(line["expected"]) for line in rows_of(folder / "flips.csv"))
    assert lost == pytest.approx(chosen["complement"].astype(float).sum())
    frame = score_frame(run, method="taylor", sigma=0.2).to_pylist()
    assert score_frame(str(run.folder), method="taylor", sigma=0.2).to_pylist() == frame
    assert [r["index"] for r in frame] == [i for i in range(60) if i != 7]
    scores = {r["index"]: r["prob"] for r in table if (r["method"], r["sigma"]) == ("taylor", 0.2)}
    for r in frame:
        assert r["noise_vulnerability_score"] == scores[r["index"]]
        assert r["is_noise_vulnerability_issue"] == (scores[r["index"]] < 0.5)
    with pytest.raises(ValueError, match="method and sigma must be of the run"):
        score_frame(run, sigma=0.7)


def test_statistics():
    assert st.gini(np.array([0.5, 0.5, 0.5])) == pytest.approx(0)
    assert st.gini(np.array([0.0, 0.0, 1.0])) == pytest.approx(2 / 3)  # (n - 1) / n
    x = np.random.default_rng(0).random(20)
    assert st.gini(x) == pytest.approx(np.abs(x[:, None] - x).mean() / (2 * x.mean()))
    mean, low, high = st.mean_interval(np.array([0.2, 0.4, 0.6, 0.8]))
    scipy_stats = pytest.importorskip("scipy.stats")
    half = scipy_stats.t.ppf(0.995, 3) * scipy_stats.sem([0.2, 0.4, 0.6, 0.8])
    assert (mean, low, high) == (
        pytest.approx(0.5), pytest.approx(max(0, 0.5 - half)), pytest.approx(min(1, 0.5 + half))
    )  # fmt: skip
    error = np.array([0.03, math.nan, 0.03, 0.03, 0.03])
    assert st.joint_error(error, "taylor") == pytest.approx(0.03)
    assert st.joint_error(error, "mc") == pytest.approx(0.015)  # independent: by the root of four
    assert math.isnan(st.joint_error(error[1:2], "softmax"))
    # those that did not cross count: a median over the two that did would be .138
    half = st.median_half(np.array([math.inf] * 5 + [0.136, 0.14, math.nan]), (0.05, 0.15))
    assert (half.median, half.below, half.within, half.beyond) == (math.inf, 0, 2, 5)
    half = st.median_half(np.array([-math.inf, 0.07, 0.1, math.inf]), (0.05, 0.15))
    assert (half.median, half.below, half.within, half.beyond) == (0.07, 1, 2, 1)
    assert st.median_half(np.array([math.inf]), (0.05,)) is None
    assert st.median_half(np.array([math.nan]), (0.05, 0.15)) is None


def test_sigma_at_half_is_where_a_linear_model_s_p_is_half(run):
    """Between two sigmas, infinite where p does not cross, NaN without an answer."""
    parts = st.answers(run)
    half = st.sigma_at_half(run, "taylor", parts)
    assert math.isnan(half[7])
    x, y = data()
    for i, first, last in zip(parts[0]["index"], parts[0]["prob"], parts[2]["prob"], strict=True):
        assert (half[i] == -math.inf) == (first < 0.5)
        assert last >= 0.5 or half[i] < 0.6
    crossed = [i for i in range(60) if math.isfinite(half[i])]
    assert (half == math.inf).any()
    assert crossed, "no example crosses one half: the test says nothing"
    at = crossed[0]
    curve = mvnrob.robustness(net(), x[at : at + 1], [0.05, 0.2, 0.6], target=y[at : at + 1])
    p = curve.prob[:, 0].tolist()
    s = 0 if p[1] < 0.5 else 1
    sigmas = (0.05, 0.2, 0.6)
    wanted = sigmas[s] + (p[s] - 0.5) / (p[s] - p[s + 1]) * (sigmas[s + 1] - sigmas[s])
    assert half[at] == pytest.approx(wanted, rel=1e-3)


def test_unfinished_runs_have_no_report(tmp_path):
    x, y = data()
    mvnrob.evaluate(net(), (x, y), 0.1, out=tmp_path, chunk=8, shard="0/2", progress=False)
    with pytest.raises(ValueError, match="must hold a finished run, got 4 of 8 chunks"):
        report(tmp_path)
    with pytest.raises(ValueError, match="must hold a run"):
        report(tmp_path / "nothing")


def test_compare(run, tmp_path):
    x, y = data()
    x[7] = math.nan
    options = {"method": ("taylor",), "progress": False, "target": "label", "threads": 1}
    same = mvnrob.evaluate(net(), (x, y), (0.2,), out=tmp_path / "same", **options)
    nothing = mvnrob.compare(run, same)
    assert [(p.method, p.sigma, p.examples) for p in nothing.pairs] == [("taylor", 0.2, 59)]
    assert nothing.changes == () and nothing.pairs[0].difference == pytest.approx(0, abs=1e-9)
    assert "no example changed" in str(nothing)
    assert str(nothing).splitlines()[0].split()[3:5] == ["out", "same"]
    weaker = net()
    weaker[0].weight.data[1] *= 1.2
    other = mvnrob.evaluate(weaker, (x, y), (0.2, 0.3), out=tmp_path / "other", **options)
    changed = mvnrob.compare(run, other.folder)
    a = {r["index"]: r for r in same.table().to_pylist()}
    b = {r["index"]: r for r in other.table().to_pylist() if r["sigma"] == 0.2}
    beyond = {
        i
        for i in a
        if a[i]["prob"] is not None
        and (b[i]["lower"] > a[i]["upper"] or b[i]["upper"] < a[i]["lower"])
    }
    assert {c.index for c in changed.changes} == beyond and beyond
    pair = changed.pairs[0]
    assert pair.raised + pair.lowered == len(beyond)
    gaps = [b[i]["prob"] - a[i]["prob"] for i in a if a[i]["prob"] is not None]
    assert pair.difference == pytest.approx(np.mean(gaps))
    assert sum(c.count for c in changed.classes) == 59
    said = str(changed)
    assert "largest changes, out -> other:" in said and "classes, out -> other:" in said
    assert "before" not in said and "after" not in said
    p = changed.pairs[0]
    # taylor states 1e-4 or so for 59 inputs each
    assert 0 < p.error_before < 1e-3 and 0 < p.error_after < 1e-3
    assert f" {p.before:.4f} " in said and f" {p.after:.4f} " in said
    unlike = mvnrob.evaluate(net(), data(20), (0.2,), out=tmp_path / "unlike", **options)
    with pytest.raises(ValueError, match="must be over the same data"):
        mvnrob.compare(run, unlike)
    alone = mvnrob.evaluate(net(), (x, y), (0.9,), out=tmp_path / "alone", **options)
    with pytest.raises(ValueError, match="must share a method and a sigma"):
        mvnrob.compare(run, alone)


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ("a/run", "a/other", ("run", "other")),
        ("a/run", "b/run", ("a/run", "b/run")),
        ("x/a/run", "y/a/run", ("x/a/run", "y/a/run")),
        ("run", "a/run", None),
        ("run", "run", ("run (1)", "run (2)")),
        ("run", "a/../run", ("run (1)", "run (2)")),
    ],
)
def test_compare_tells_runs_apart(tmp_path, monkeypatch, before, after, names):
    monkeypatch.chdir(tmp_path)
    names = names or (f"{tmp_path.name}/run", "a/run")
    assert run_names(Path(before), Path(after)) == names
    heads = str(Comparison((), (), (), names)).splitlines()[0]
    assert all(f" {name} " in heads for name in names)


class Bent(torch.nn.Module):
    """Far from linear: the logit of class 0 is a narrow ridge along the first input."""

    def forward(self, x):
        ridge = 3 * torch.exp(-200 * (x[:, :1] - 0.5).square())
        return torch.cat([ridge, 0 * ridge + 0.5 * x[:, 1:2]], 1)


def bent_run(tmp_path, method, target="prediction", sigma=(0.05, 0.2)):
    """20 inputs on the ridge, labelled 0; 10 on it, labelled 1; 10 off it, labelled 1."""
    x = torch.full((40, 2), 0.5)
    x[30:, 0] = 0.75
    y = torch.tensor([0] * 20 + [1] * 20)
    options = {"n_samples": 200} if "mc" in method else {}
    return mvnrob.evaluate(
        LoadedModel(Bent().eval(), "bent", ["on", "off"]), (x, y), sigma, method=method,
        target=target, out=tmp_path / "out", progress=False, threads=1, **options,
    )  # fmt: skip


def without_figures(monkeypatch):
    """Drawing takes most of a page's time."""
    drawn = {"distribution": b"", "classes": b""}
    monkeypatch.setattr("mvnrob.report.page._draw", lambda *of: drawn)


def printed(a) -> tuple[str, str]:
    """Monte Carlo's mean and the method's, to the digits that their errors back."""
    # 40 inputs of 200 draws know their mean to .01, and taylor states 1e-4 or less
    assert 2e-3 < a.mc_error < 2e-2 and a.error < 1e-3
    counted = f"{a.mc_mean:.{2 if a.mc_error >= 0.01 else 3}f}"
    return counted, probability(a.mean, a.error)


def test_no_digits_beyond_the_stated_error(tmp_path, capfd, monkeypatch):
    """p of 1 - 1e-30 or so, known to 1e-4 alone; Monte Carlo's of n draws that agree to 1/n."""
    x = torch.rand(12, 16, generator=torch.Generator().manual_seed(3))
    run = mvnrob.evaluate(
        net(), x, (0.001, 0.003), method=("taylor", "mc"), n_samples=1000, abs_tol=1e-4,
        out=tmp_path / "out", progress=False, threads=1,
    )  # fmt: skip
    stated = {"taylor": np.full(12, 1e-4), "mc": np.full(12, 5.3e-3)}
    parts = [
        st.Answers(a.method, a.sigma, a.columns | {"error": stated[a.method]}, 0)
        for a in st.answers(run)
    ]
    assert (parts[0]["complement"] < 1e-9).any()
    monkeypatch.setattr(st, "answers", lambda run: parts)
    without_figures(monkeypatch)
    text = Page(report(run).read_text()).text
    canonical, flips = text.split("picture of a class.")[1].split("Where noise sends")
    assert canonical.count("p >= 0.9999") >= 6
    assert "1 - " not in canonical and "<= 0.00" in flips and "e-" not in flips.split("Cost")[0]


def test_the_page_says_where_monte_carlo_disagrees(tmp_path, capfd, monkeypatch):
    run = bent_run(tmp_path, ("taylor", "logit_moments", "mc"))
    found = agreement(st.answers(run))
    worst = next(a for a in found if (a.method, a.sigma) == ("taylor", 0.2))
    # on the ridge taylor's p is 1, Monte Carlo's .42
    assert worst.disagrees and worst.apart >= 0.75 and worst.bias > 0.3
    assert (worst.below_half, worst.mc_below_half) == (0.0, pytest.approx(0.75, abs=0.15))
    # the first method where it is not contradicted, and where it is Monte Carlo itself
    small = [a for a in found if a.method == "logit_moments" and a.sigma == 0.05]
    assert shown_method(["taylor", "logit_moments"], small) == "taylor"
    assert shown_method(["mc", "taylor"], found) == "mc"
    page = Page(report(run).read_text())
    assert "This page shows logit_moments, since Monte Carlo disagrees with taylor" in page.text
    counted, stated = printed(worst)
    assert f"mean p {counted}, taylor {stated}" in page.text
    assert f"(logit_moments; Monte Carlo: {counted})" in page.text
    without_figures(monkeypatch)
    command = ["report", str(run.folder), "--method", "taylor"]
    assert main([*command, "--out", str(tmp_path / "asked")]) == FINISHED
    page = Page((tmp_path / "asked" / "index.html").read_text())
    assert "Monte Carlo disagrees with taylor, which this page shows" in page.text
    # p of 1 at both sigmas: no input crosses
    assert "beyond 0.2median sigma" in page.text and "40 beyond)" in page.text
    assert main([*command[:-1], "softmax"]) == USAGE
    assert "method must be of the run, taylor, logit_moments, mc" in capfd.readouterr().err
    lines: list[str] = []
    _summarise(run, lines.append)
    said = [line for line in lines if "disagrees with taylor" in line]
    assert len(said) == 1
    assert f"sigma 0.2 mean p {counted}, not {stated}" in said[0]


def test_a_wide_error_excuses_no_headline():
    """Sigmoids state errors that reach Monte Carlo's interval anywhere: their mean is compared, too."""
    n = 50
    columns = {
        "index": np.arange(n), "prob": np.full(n, 0.6), "error": np.full(n, 0.3),
        "lower": np.full(n, 0.3), "upper": np.full(n, 0.9),
    }  # fmt: skip
    mc = {"prob": np.full(n, 0.9), "lower": np.full(n, 0.87), "upper": np.full(n, 0.93)}
    parts = [st.Answers("taylor_mvs", 0.1, columns, 0), st.Answers("mc", 0.1, columns | mc, 0)]
    (beside,) = agreement(parts)
    assert beside.apart == 0 and beside.inside == 0 and beside.disagrees
    # where all draws agree an interval has one side: what lies within all of them is not outside on average
    columns["prob"][:] = 0.945
    mc |= {"prob": np.ones(n), "lower": np.full(n, 0.94), "upper": np.ones(n)}
    assert not agreement([parts[0], st.Answers("mc", 0.1, columns | mc, 0)])[0].mean_outside
    columns["prob"][:] = 0.6
    # without an error p alone counts; one input of 50 is chance
    columns["error"][:] = math.nan
    assert agreement(parts)[0].apart == 1
    columns["prob"][1:] = 0.9
    assert agreement(parts)[0].apart == 0.02 and not agreement(parts)[0].disagrees


def test_flips_are_of_inputs_that_are_right_without_noise(tmp_path, monkeypatch):
    """Noise sends an input that is wrong without it to its own label: that is no flip of its class."""
    run = bent_run(tmp_path, ("mc",), sigma=(0.2,))
    rows = {row.name: row for row in st.class_table(st.answers(run)[0], ["on", "off"])}
    assert (rows["on"].flips_to, rows["off"].flips_to) == ("off", "on")
    assert rows["off"].accuracy == 0.5 and rows["off"].count == 20
    run = bent_run(tmp_path / "label", ("taylor",), "label")
    main_part = st.answers(run)[1]
    # the ten wrong ones have p of 0, and no noise sends them anywhere
    assert (main_part["prob"] < 1e-6).sum() == 10
    sent = {(f.of, f.to): f.examples for f in st.flips(main_part, ["on", "off"])}
    assert sent.get(("off", "on"), 10) == 10 and st.flip_matrix(main_part, 2).trace() == 0
    assert sum(f.expected for f in st.flips(main_part, None)) < 1
    without_figures(monkeypatch)
    page = Page(report(run).read_text())
    assert "right ones flip to" in page.text
    assert "of the 30 of 40 inputs that the model gives their label" in page.text
    assert "without noise: on" in page.text and "(inputs: 10 below 0.05" in page.text
    assert "No Monte Carlo in this run" in page.text
    lines: list[str] = []
    _summarise(run, lines.append)
    assert any("mvnrob selfcheck sets them beside Monte Carlo" in line for line in lines)


def test_selfcheck_sees_a_bias():
    """On a linear model taylor is right; on a ridge it does not see the fall on both sides."""
    linear = mvnrob.selfcheck(net(), data(), 0.1, n_examples=20, draws=2000)
    by_method = {c.method: c for c in linear.checks}
    assert set(by_method) == {"taylor", "mmse", "logit_moments"}
    # 2,000 draws have a standard error of .011 at most
    assert abs(by_method["taylor"].bias) < 0.01 and by_method["taylor"].stated > 0.9
    assert linear.recommended[0.1][0] == "taylor"
    assert len(set(linear.examples)) == 20
    x = torch.full((30, 2), 0.5)
    bent = mvnrob.selfcheck(Bent().eval(), x, 0.2, methods=("taylor",), n_examples=20, draws=2000)
    assert bent.checks[0].bias > 0.3 and bent.checks[0].inside == 0
    assert bent.recommended[0.2][0] == "mc"
    assert "sigma 0.2: mc" in str(bent)
    for options, text in (
        ({"methods": ("mc",)}, "methods must be other than mc"),
        ({"n_examples": 1}, "n_examples must be an int of at least 2"),
        ({"draws": 10}, "draws must be an int of at least 100"),
    ):
        with pytest.raises(ValueError, match=text):
            mvnrob.selfcheck(net(), data(), 0.1, **options)


def test_recommendation_prefers_the_cheaper_of_equals():
    def check(method, rms, forwards, counting):
        return Check(method, 0.1, 0.0, rms, rms, 1.0, 1.0, forwards, 1.0, counting)

    cheap, dear = check("taylor", 0.012, 20, 0.1), check("mmse", 0.010, 200, 0.03)
    assert _recommend([cheap, dear], 0.001)[0] == "taylor"
    assert _recommend([check("taylor", 0.05, 20, 0.1), dear], 0.001)[0] == "mmse"
    assert _recommend([check("taylor", 0.2, 20, 0.1)], 0.001)[0] == "mc"
    # below Monte Carlo's own noise nothing tells them apart
    assert _recommend([check("taylor", 0.05, 20, 0.1), dear], 0.06)[0] == "taylor"


def test_commands(run, tmp_path, capfd):
    assert main(["report", str(run.folder), "--out", str(tmp_path / "page")]) == FINISHED
    assert capfd.readouterr().out.strip() == str(tmp_path / "page" / "index.html")
    assert main(["compare", str(run.folder), str(run.folder)]) == FINISHED
    assert "no example changed" in capfd.readouterr().out
    assert main(["report", str(tmp_path)]) == USAGE
    assert "must hold a run" in capfd.readouterr().err
    assert main(["info"]) == FINISHED
    printed = capfd.readouterr().out
    assert torch.__version__ in printed and mvnrob.simd_level() in printed
    np.savez(tmp_path / "data.npz", x=torch.rand(40, 64).numpy())
    line = ["--model", "digits", "--data", str(tmp_path / "data.npz"), "--sigma", "0.1"]
    checked = ["--examples", "5", "--draws", "200", "--method", "taylor"]
    assert main(["selfcheck", *line, *checked]) == FINISHED
    assert "5 examples, Monte Carlo with 200 draws" in capfd.readouterr().out


LONG = [
    "Staffordshire bullterrier, Staffordshire bull terrier",
    "Staffordshire bullterrier, Staffordshire terrier of the American kind",
    "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
    "great white heron",
    "x" * 90,
    "",
]


@pytest.mark.parametrize("count", [6, 30])
def test_long_class_names_stay_apart_and_inside_the_figures(monkeypatch, count):
    drawn = []
    monkeypatch.setattr(figures, "_png", lambda figure: drawn.append(figure) or b"")
    names = (LONG * 5)[:count]
    figures.flips(np.eye(count), names)
    figures.classes(
        [st.ClassRow(i, n, 3, None, 0.5, 0.4, 0.6, 0.1, "", 0.0) for i, n in enumerate(names)]
    )
    for figure in drawn:
        figure.draw_without_rendering()
        axis = figure.axes[0]
        whole = figure.bbox
        labels = axis.get_yticklabels()
        assert len({label.get_text() for label in labels}) >= min(count, len(LONG))
        assert labels[0].get_text().replace("\n", " ").split(" (")[0].endswith("bull terrier")
        assert labels[3].get_text().startswith("great white heron")
        boxes = [label.get_window_extent() for label in labels]
        assert all(whole.x0 <= box.x0 and whole.y0 <= box.y0 for box in boxes)
        for above, below in itertools.pairwise(boxes):
            assert below.y1 <= above.y0 + 1  # a pixel
        assert axis.bbox.width > 0.4 * whole.width
    bottoms = [label.get_window_extent() for label in drawn[0].axes[0].get_xticklabels()]
    assert all(box.y0 >= 0 for box in bottoms)
