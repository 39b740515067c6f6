"""bench/: the front, the comparison of results, the claims, and the page that stands for the files."""

import copy
import dataclasses
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

# Last: an installed mvnrob goes before the source tree, which has no native module.
ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
from bench import __main__ as front
from bench import checks, compare, cuda_tuning, harness, page, sections


@pytest.fixture
def one_thread(monkeypatch):
    """What the scripts ask for at import: their threads, before numpy is there."""
    import torch

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    monkeypatch.setattr(harness, "subcommand", None)
    monkeypatch.setattr(harness, "written", [])
    return front.main(list(arguments))


@pytest.mark.parametrize("module", front.SUBCOMMANDS.values())
def test_subcommand_is_a_module_with_help_and_main(module):
    assert front.first_line(module)
    assert "\ndef main(" in (ROOT / "bench" / f"{module}.py").read_text()


def test_every_benchmark_has_a_subcommand():
    named = set(front.SUBCOMMANDS.values())
    assert {path.stem for path in (ROOT / "bench").glob("bench_*.py")} <= named


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing"], "bench: SUBCOMMAND must be one of step, "),
        (["coverage", "--check"], "bench: --check must go with one of "),
        (["bvn", "--check", "--repeats", "2"], "bench: --check must come without other options"),
        (["bvn", "--compare", "absent.json"], "bench: --compare must name a result file"),
    ],
)
def test_bad_call(monkeypatch, capsys, one_thread, arguments, text):
    assert run(monkeypatch, *arguments) == 2
    assert text in capsys.readouterr().out


def test_usage_names_every_subcommand(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in front.SUBCOMMANDS)


def test_result_says_how_to_make_it_and_compares(monkeypatch, capsys, one_thread, tmp_path):
    options = ("--elements", "500", "--out", str(tmp_path), "--repeats", "2")
    assert run(monkeypatch, "bvn", *options) == 0
    path = tmp_path / "bvn.json"
    result = json.loads(path.read_text())
    assert result["environment"]["command"] == "python -m bench bvn --elements 500 --repeats 2"
    assert result["environment"]["yardstick"]["copy_gb_s"] > 0
    for row in result["rows"]:
        row["ns"] /= 2
    path.write_text(json.dumps(result))
    capsys.readouterr()
    assert run(monkeypatch, "bvn", *options, "--compare", str(path)) == 0
    text = capsys.readouterr().out
    assert "new/old" in text and "method bvn_cdf, elements 500" in text
    assert (
        "# rows: 2 in both, 0 only before, 0 only now" in text and "processors of one kind" in text
    )


def test_compare_pairs_rows_by_their_axes():
    old = [
        {"method": "a", "n": 9, "ms": 2.0, "ms_min": 1.0, "ms_max": 3.0, "rms": 1e-4, "points": 8},
        {"method": "b", "n": 9, "ms": 5.0, "rms": 1e-4},
    ]
    new = copy.deepcopy(old[::-1])
    new[1]["ms"], new[1]["ms_max"], new[1]["rms"] = 3.0, 4.0, 2e-4
    lines = {(line["row"], line["column"]): line for line in compare.ratios(old, new)}
    first, second = "method a, n 9, points 8", "method b, n 9"
    assert lines[first, "ms"]["new/old"] == 1.5
    assert (lines[first, "ms"]["spread_old"], lines[first, "ms"]["spread_new"]) == (3.0, 4.0)
    assert lines[first, "rms"]["new/old"] == 2.0
    assert lines[second, "ms"]["new/old"] == 1.0
    assert len(lines) == 4
    new[0]["n"] = 10
    assert {line["row"] for line in compare.ratios(old, new)} == {first}
    assert compare.pairs(old, new)[1:] == (1, 1)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("bench_math", {"time": "ns"}),
        ("coverage", {"error": "worst_ratio rms_made rms_stated misses unbounded unmet",
                      "other": "rows problems p_value median_points"}),
        ("convergence", {"error": "rms"}),
        ("evaluate", {"time": "ms", "error": "error_mean",
                      "other": "images forward jvp vjp rivals_left_out"}),
        ("jac_cov", {"time": "ms peer_ms", "rate": "rate", "error": "error peer_error",
                     "other": "speedup"}),
        ("mvn_cdf", {"time": "ms crude_ms scipy_ms reached_ms ms_per_problem_cpu ours_ms",
                     "rate": "problems_per_s_wall_best",
                     "error": "rms max beyond_error rms_reported rms_reference",
                     "other": "problems converged points_median points_mean pivots_mean active_mean "
                              "abs_tol scipy/ours crude/ours our_points"}),
        ("peers", {"time": "ms mvn_cdf_ms", "error": "failed rms max",
                   "other": "answers converged bands ratio"}),
        ("screening", {"time": "cpu_s full_cpu_s", "error": "error_full error gap",
                       "other": "sigma p_full p jvp vjp passes kept"}),
        ("low_rank", {"error": "beyond_error gap error",
                      "other": "sigma seeds jvp vjp passes most_passes"}),
    ],
)  # fmt: skip
def test_compare_takes_every_measurement(name, kinds):
    """Of a committed result with itself: every row has a partner, every number has its kind."""
    rows = json.loads((harness.RESULTS / f"{name}.json").read_text())["rows"]
    lines = compare.ratios(rows, rows)
    found = {}
    for line in lines:
        found.setdefault(line["kind"], set()).add(line["column"])
    assert found == {k: set(v.split()) for k, v in kinds.items()}
    assert compare.pairs(rows, rows)[1:] == (0, 0)
    assert all(map(compare.same, lines)) and not any(map(compare.worse, lines))


def test_compare_ends_with_what_the_lines_say():
    row = {
        "n": 9,
        "ms": 1.0,
        "ms_min": 0.9,
        "ms_max": 1.1,
        "rms": 1e-4,
        "error": 1e-16,
        "bias": -1e-3,
    }
    slower = {"ms": 1.3, "ms_min": 1.2, "ms_max": 1.4, "rms": 2e-4, "error": 3e-16, "bias": -1e-4}
    old = [row, row | {"n": 10}]
    new = [row | {"ms": 1.2, "ms_min": 1.1, "ms_max": 1.3}, row | {"n": 10} | slower]
    assert compare.closing(compare.ratios(old, new)) == (
        "2 times, median new/old 1.25; 2 have spreads on both sides, 2 of them are within old spread x "
        "new spread; 6 errors, 1 worse by more than rounding"
    )
    new[1]["ms"] = 1.5
    said = compare.closing(compare.ratios(old, new[1:]))
    assert "2 have" not in said and "1 have spreads on both sides, 0 of them" in said
    assert compare.closing([]).startswith("0 times; 0 have")


def test_compare_says_when_processors_differ(monkeypatch, capsys):
    one = {"cpu": "AMD EPYC", "processor": {"family": "25", "model": "17", "L1d": "32K"}}
    two = {"cpu": "AMD EPYC", "processor": {"family": "26", "model": "2", "L1d": "48K"}}
    said = lambda old, new: "\n".join(compare.machines(old, new))
    assert said(one, two) == (
        "ANOTHER PROCESSOR: AMD EPYC (family 25, model 17, L1d 32K) before, AMD EPYC (family 26, model 2, "
        "L1d 48K) now"
    )
    assert said(one, one).startswith("processors of one kind: ")
    assert said({"cpu": "AMD EPYC"}, two).startswith(
        "whether the processor is of the same kind is not"
    )
    assert said({"cpu": "other"}, two).startswith("ANOTHER PROCESSOR: other before")
    assert "another command: a before, None now" in said(one | {"command": "a"}, one)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("no JSON at all", "got no JSON in "),
        ("[1]", "got JSON without rows and a command in "),
        ('{"environment": {"what": "x"}, "rows": []}', "got JSON without rows and a command in "),
        ('{"environment": {"command": "python -m bench.bench_jac_cov"}, "rows": []}', "of bench_jac_cov"),
        ('{"environment": {"command": "python -m bench points --n 9"}, "rows": []}', "got one of points"),
    ],
)  # fmt: skip
def test_compare_refuses_another_benchmark_before_the_run(
    monkeypatch, capsys, tmp_path, content, text
):
    path = tmp_path / "old.json"
    path.write_text(content)
    assert run(monkeypatch, "bvn", "--compare", str(path)) == 2
    out = capsys.readouterr().out
    assert out.startswith("bench: --compare must name a result of bvn, got ") and text in out
    assert out.count("\n") == 1


def test_compare_takes_results_of_a_module_s_own_name():
    old = '{"environment": {"command": "python -m bench.bench_points --quick"}, "rows": []}'
    assert compare.refusal(old, "points", "bench_points") is None


def test_environment_tells_processors_apart(one_thread):
    found = harness.processor()
    if Path("/proc/cpuinfo").exists() and "model name" in harness.cpu_fields():
        assert {"vendor", "family", "model", "stepping"} <= set(found)
    words = harness.processor_words({"vendor": "A", "family": "1", "L1d": "32K"})
    assert words == "family 1, L1d 32K"
    if torch.backends.mkldnn.is_available():
        assert harness.yardstick(0.01)["conv_float32_gflops"] > 0


BAD_OPTIONS = [
    ("screening --levels 2", "--levels must be a number between 0 and 1, got '2'"),
    ("screening --photos rockett", "--photos must be one of chelsea, coffee, "),
    ("jac_cov --cases 10", "--cases must be CxD or CxD/CHUNK, "),
    ("jac_cov --cases 10x31/7", "--cases must be CxD or CxD/CHUNK, where CHUNK divides D, "),
    ("jac_cov --cases 10x31/0", "--cases must be CxD or CxD/CHUNK, where CHUNK divides D, "),
    ("jac_cov --dtypes float99", "--dtypes must be one of float32, float64, bfloat16, got 'float99'"),
    ("evaluate --methods foo", "--methods must be one of taylor, mmse, logit_moments, mc, got 'foo'"),
    ("evaluate --sigmas 0.1,x", "--sigmas must be a number above 0, got 'x'"),
    ("evaluate --sigmas nan", "--sigmas must be a number above 0, got 'nan'"),
    ("evaluate --repeats 0", "--repeats must be a whole number of at least 1, got '0'"),
    ("mvn_cdf --seeds 0", "--seeds must be a whole number of at least 1, got '0'"),
    ("coverage --seeds 0", "--seeds must be a whole number of at least 1, got '0'"),
    ("coverage --dtypes float32", "--dtypes must be INPUT:SAMPLES, each float32 or "),
    ("coverage --max-points 9", "--max-points must be 0 or at least 512, got 9"),
    ("convergence --most 30", "--most must be a whole number from 10 to 24, got '30'"),
    ("large_classes --model foo", "--model must be one of ppocr-v6, ppocr-v4, got 'foo'"),
    ("roofline --cases 10x31/7", "--cases must be CxD, of two classes or more, got '10x31/7'"),
    ("scaling --n 9,,", "--n must be a whole number of at least 1, got ''"),
    ("peers --cache absent", "--cache must be a folder that `python -m bench screening --cache"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "text"), BAD_OPTIONS)
def test_bad_options_are_one_line_before_any_work(monkeypatch, capsys, one_thread, line, text):
    monkeypatch.setattr(harness, "environment", lambda: pytest.fail("the work has begun"))
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *line.split())
    captured = capsys.readouterr()
    name = line.split()[0]
    assert stopped.value.code == 2 and captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"python -m bench {name}: {text}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_is_refused_without_a_gpu(monkeypatch, capsys, one_thread):
    with pytest.raises(SystemExit):
        run(monkeypatch, "jac_cov", "--device", "cuda")
    assert "--device must be cpu where torch finds no GPU, got 'cuda'" in capsys.readouterr().err


def test_help_shows_defaults_and_what_the_front_takes(monkeypatch, capsys, one_thread):
    for name, shown in (("bvn", True), ("screening", False)):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, name, "--help")
        text = capsys.readouterr().out
        assert stopped.value.code == 0 and "--compare OLD.json" in text
        assert ("--check" in text) == shown
    assert "default: 0.3,0.9,0.99,0.999" in text and text.count("default: all eight") == 1
    assert "(default: None)" not in text and "(default: 0)" in text


def test_written_names_the_folder_given(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(harness, "written", [])
    monkeypatch.chdir(tmp_path)
    harness.write("x", {}, [{"n": 1}], "a/b")
    assert capsys.readouterr().out == "# written: x.json and x.csv in a/b/\n"
    assert str(harness.shown(harness.RESULTS)) == "bench/results"


def test_reference_next_to_one_has_a_standard_error(monkeypatch, one_thread, tmp_path):
    """Standard errors of both sides that round to zero once refused equal answers."""
    from bench import classifiers

    case = next(c for c in classifiers.classifier_problems(9, 3, 0) if c.kind == "lin")
    monkeypatch.setattr(classifiers, "CACHE", tmp_path)
    monkeypatch.setattr(classifiers, "classifier_problems", lambda *a: [sure])
    sure = dataclasses.replace(case, upper=np.full(9, 9.0))
    off = 3e-15
    monkeypatch.setattr(classifiers, "conditional_monte_carlo", lambda *a: (1.0 - off, 0.0))
    ((_, p, _),) = classifiers.references(9, 1, 0)
    assert p == pytest.approx(1.0)
    off = 1e-3
    with pytest.raises(RuntimeError, match="s.e."):
        classifiers.references(9, 1, 1)


def test_claim_fails_when_it_is_missed(monkeypatch, capsys, one_thread):
    slow = lambda: iter([checks.Claim("twice as fast", 1.9, 2.0)])
    monkeypatch.setitem(checks.CHECKS, "bvn", slow)
    assert checks.run("bvn") == 1
    assert "NO" in capsys.readouterr().out
    monkeypatch.setitem(checks.CHECKS, "bvn", lambda: iter([checks.Claim("x", float("nan"), 2.0)]))
    assert checks.run("bvn") == 1


@pytest.mark.slow
def test_mvn_cdf_is_ahead_of_scipy_at_equal_error(one_thread):
    claims = list(checks.mvn_cdf(n=(9,)))
    assert len(claims) == 2
    assert all(claim.holds for claim in claims), claims


def test_bvn_is_ahead_of_scipy(one_thread):
    assert all(claim.holds for claim in checks.bvn())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jac_cov", "mendell_elston", "gradients", "hessians"])
def test_claims_hold(one_thread, name):
    claims = list(checks.CHECKS[name]())
    assert claims and all(claim.holds for claim in claims), claims


def test_difference_of_times_has_a_spread():
    """Of both calls; results from before it have no such columns."""
    base = {"median_s": 2.0, "min_s": 1.0, "max_s": 3.0}
    both = {"median_s": 8.0, "min_s": 7.0, "max_s": 9.0}
    row = harness.milliseconds("limits_ms", both, 2, less=base)
    assert row == {"limits_ms": 3000.0, "limits_ms_min": 2000.0, "limits_ms_max": 4000.0}
    assert compare.spread(row, "limits_ms") == 2.0
    (_, columns, _), *_ = sections.gradients_tables([row])
    (_, before, _), *_ = sections.gradients_tables([{"limits_ms": 3000.0}])
    assert set(columns) - set(before) == {("least", "limits_ms_min"), ("most", "limits_ms_max")}


def test_wrong_bvn_prints_no_time(monkeypatch, one_thread):
    import mvnrob
    from bench import bench_bvn

    right = mvnrob.bvn_cdf
    monkeypatch.setattr(mvnrob, "bvn_cdf", lambda *args: right(*args) + 2e-15)
    with pytest.raises(SystemExit, match="nothing is timed"):
        bench_bvn.measured([10], 1)


def test_wrong_pivoted_cholesky_prints_no_time(monkeypatch, one_thread):
    import mvnrob
    from bench import bench_pivoted_cholesky as base

    right = mvnrob.pivoted_cholesky
    rows = list(base.lines(9, "singular", [2], 5, 1)) + list(base.lines(9, "definite", [], 5, 1))
    assert [r["method"] for r in rows] == ["pivoted_cholesky", "dpstrf"] * 3 + [
        "torch.linalg.cholesky"
    ]
    assert [r["rank"] for r in rows[::2]] == [2, 3, 9, 9]
    # LAPACK's and torch's answers are judged by the same rule.
    assert all(r["error"] <= base.WORST[r["kind"]] for r in rows)
    text = page.table(*next(sections.pivoted_cholesky_tables(rows))[1:])
    assert text.count("| dpstrf |") == 3

    def off(*args, **options):
        made = right(*args, **options)
        return made._replace(factor=made.factor * (1 + 1e-6))

    def short(*args, **options):
        made = right(*args, **options)
        return made._replace(rank=made.rank - 1)

    for wrong in (off, short):
        monkeypatch.setattr(mvnrob, "pivoted_cholesky", wrong)
        with pytest.raises(SystemExit, match="nothing is timed"):
            list(base.lines(9, "singular", [2], 5, 1))


@pytest.mark.parametrize("p", [".7", "1e-6"])
def test_known_second_derivatives_are_right(one_thread, p):
    """Values by other code, Hessians by differences of them; in 30 digits for one factor."""
    import mpmath as mp
    import oracles

    from bench import bench_mvn_cdf_hvp as base

    target = base.TARGETS[p]
    for family in base.FAMILIES:
        problem = base.problems(family, 5, p, 1)[0]
        log_p, _, hessian = base.quadrature(problem)
        assert float(log_p.exp()) == pytest.approx(target, rel=0.01)
        if family == "chain":
            answer = oracles.markov(np.full(4, 0.5), np.full(5, -np.inf), problem.upper.numpy())
            assert float(log_p.exp()) == pytest.approx(answer.prob, abs=1e-11)
        value = lambda u, problem=problem: problem.log_prob(u, 3)
        step = 1e-3 * torch.eye(5, dtype=torch.float64)
        for i, j in ((0, 0), (0, 1), (4, 2)):
            corners = [value(problem.upper + a * step[i] + b * step[j])
                       for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))]  # fmt: skip
            different = float(corners[0] - corners[1] - corners[2] + corners[3]) / 4e-6
            assert float(hessian[i, j]) == pytest.approx(different, abs=1e-5)

    (problem,) = base.problems("one factor", 3, p, 1)
    load = [float(problem.cov[0, 1] * problem.cov[0, 2] / problem.cov[1, 2]) ** 0.5]
    load += [float(problem.cov[0, k]) / load[0] for k in (1, 2)]
    with mp.workdps(30):
        h = mp.mpf("1e-7")

        def log_p(move):
            def density(x):
                out = mp.npdf(x)
                for u, a, m in zip(problem.upper.tolist(), load, move, strict=True):
                    out *= mp.ncdf((u + m * h - a * x) / mp.sqrt(1 - mp.mpf(a) ** 2))
                return out

            return mp.log(mp.quad(density, mp.linspace(-10, 10, 11)))

        both = log_p((1, 1, 0)) - log_p((1, -1, 0)) - log_p((-1, 1, 0)) + log_p((-1, -1, 0))
        own = log_p((0, 0, 1)) - 2 * log_p((0, 0, 0)) + log_p((0, 0, -1))
        exact = float(both / (4 * h * h)), float(own / (h * h))
    hessian = base.quadrature(problem)[2]
    assert (float(hessian[0, 1]), float(hessian[2, 2])) == pytest.approx(exact, abs=1e-11)


def test_wrong_second_derivatives_print_no_time(monkeypatch, one_thread):
    import mvnrob
    from bench import bench_mvn_cdf_hvp as base

    for function, p in (("mvn_cdf", ".7"), ("mvn_log_cdf", ".7")):
        group = base.problems("chain", 5, p, 1)
        exact = base.quadrature(group[0])
        right = getattr(mvnrob, function)
        for whole in (True, False):
            truth = [base.known(group[0], exact, function, 1e-3, whole)]
            line = base.measured(group, truth, function, 1e-3, whole, 1, 1.0)
            assert line["over_bound"] < 1 and line["rms"] < 0.02 * line["size"]
            assert line["second_ms"] > line["gradient_ms"] > line["value_ms"] > 0
            wrong = lambda *args, right=right, **options: 1.1 * right(*args, **options)
            with monkeypatch.context() as patched:
                patched.setattr(mvnrob, function, wrong)
                with pytest.raises(SystemExit, match="times its bound; nothing is timed"):
                    base.measured(group, truth, function, 1e-3, whole, 1, 1.0)


@pytest.mark.parametrize("whole", [True, False])
def test_differences_of_the_peer_are_those_of_its_values(monkeypatch, one_thread, whole):
    import scipy.stats

    from bench import bench_mvn_cdf_hvp as base

    (problem,) = base.problems("one factor", 4, ".7", 1)
    asked = []

    def exact(upper, **options):
        asked.append(options["maxpts"])
        return problem.log_prob(torch.from_numpy(upper), 3).exp().item()

    monkeypatch.setattr(scipy.stats.multivariate_normal, "cdf", exact)
    known = base.quadrature(problem)
    differences = base.Differences(problem, whole, 99)
    setting = (0.01, 1000, *differences.values(0.01, 1000))
    assert len(asked) == differences.values_of_all == (33 if whole else 16)
    for function in ("mvn_cdf", "mvn_log_cdf"):
        truth = base.known(problem, known, function, 1e-3, whole)
        assert differences.rms(setting, truth, function == "mvn_log_cdf") < 1e-4
        lines = [base.scipy_line(differences, [setting], truth, function == "mvn_log_cdf", goal)
                 for goal in (1e-3, 1e-9)]  # fmt: skip
        assert [line["scipy_how"] for line in lines] == ["as good", "its best"]
    few = base.Differences(problem, whole, 2)
    assert few.values(0.01, 1000)[0].shape == (2, 4) and len(few.at) == 2


def test_hessians_has_a_row_for_each_call(monkeypatch, capsys, one_thread, tmp_path):
    from bench import bench_mvn_cdf_hvp as base

    monkeypatch.setattr(base, "POINTS", (100, 200, 300))
    monkeypatch.setattr(base, "FAMILIES", {"chain": base.chain})
    options = ("--n", "3", "--products", "5", "--quick", "--repeats", "1", "--entries", "2",
               "--out", str(tmp_path))  # fmt: skip
    assert not run(monkeypatch, "hessians", *options)
    path = tmp_path / "mvn_cdf_hvp.json"
    rows = json.loads(path.read_text())["rows"]
    keys = ("what", "family", "p", "function")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows) == 6
    assert all(row["over_bound"] <= 1 for row in rows)
    assert {row["scipy_points"] for row in rows} <= {100, 200}
    text = "".join(page.table(columns, mine) for _, columns, mine in sections.hessians_tables(rows))
    assert text.count("| mvn_log_cdf |") == 4
    capsys.readouterr()
    assert not run(monkeypatch, "hessians", *options, "--compare", str(path))
    assert "second_ms" in capsys.readouterr().out


def test_hierarchy_of_the_scaling_problems_is_exact(one_thread):
    import torch

    from bench import bench_scaling
    from mvnrob import mvn_cdf

    for n in (1, 9, 25):
        upper, cov, p = bench_scaling.problem(n, 0.7)
        result = mvn_cdf(upper, cov, abs_tol=1e-5, compute_dtype=torch.float64, return_info=True)
        assert abs(p - 0.7) < 0.01
        assert abs(float(result.prob) - p) <= float(result.error) + 1e-9


def test_scaling_refuses_wrong_answers(one_thread):
    from bench import bench_scaling

    args = SimpleNamespace(abs_tol=1e-3, p=0.7)
    upper, cov, p = bench_scaling.batched(9, 20, args)
    bench_scaling.checked_mvn_cdf(upper, cov, p, args)
    with pytest.raises(SystemExit, match="nothing is timed"):
        bench_scaling.checked_mvn_cdf(upper, cov, p + 0.01, args)


def test_scaling_in_points_samples_every_variable(monkeypatch, one_thread):
    from bench import bench_scaling

    args = SimpleNamespace(p=0.7, repeats=1)
    rows = list(bench_scaling.points_lines(9, [512, 8192], args))
    assert [row["points"] for row in rows] == [512, 8192]
    assert rows[1]["stderr"] < rows[0]["stderr"] and rows[1]["ms"] > rows[0]["ms"]
    right = bench_scaling.problem
    monkeypatch.setattr(
        bench_scaling, "problem", lambda n, p: (*right(n, p)[:2], right(n, p)[2] + 0.02)
    )
    with pytest.raises(SystemExit, match="8192 points are .* off, nothing is timed"):
        list(bench_scaling.points_lines(9, [8192], args))


def test_checkouts_weigh_time_and_error(one_thread):
    """Two known integrators, of which the other takes half the time for twice the error."""
    from bench import bench_checkouts

    def integrator(seconds, off):
        def answer(upper, cov, abs_tol, seeds):
            truth = [bench_checkouts.KINDS["flat"](len(u), k)[2].prob for k, u in enumerate(upper)]
            return seconds, np.array(truth) + off, np.full(len(truth), 1.5e-3)

        return answer

    pair = [integrator(2.0, 1e-3), integrator(1.0, -2e-3)]
    line = bench_checkouts.measure(pair, "flat", 9, 1e-3, rows=3, seeds=4)
    assert (line["missed"], line["other_missed"]) == (0, 12)
    assert line["time_ratio"] == line["gain_stated"] == 2.0
    assert all(line[key] == pytest.approx(0.5) for key in ("gain", "gain_low", "gain_high"))
    assert line["rms"] == pytest.approx(1e-3) and line["other_rms"] == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("name", "n", "text"),
    [
        ("peers", "9,5", "--n must be among 6 to 4095, got '5'"),
        ("peers", "nine", "--n must be among 6 to 4095, got 'nine'"),
        ("mvn_cdf", "50", "--n must be among 9, 99, 999, got '50'"),
    ],
)
def test_bad_n_is_one_clear_error(monkeypatch, capsys, one_thread, name, n, text):
    with pytest.raises(SystemExit):
        run(monkeypatch, name, "--n", n)
    assert capsys.readouterr().err.count(text) == 1


@pytest.mark.parametrize("n", [6, 9, 40])
def test_answers_of_the_peers_problems_are_exact(one_thread, n):
    import oracles

    from bench import peer_problems
    from mvnrob import mvn_cdf

    problems = list(peer_problems.hierarchies(n, 0))
    assert {p.band for p in problems} == set(peer_problems.TARGETS)
    for k, p in enumerate(problems[::3]):
        r = mvn_cdf(torch.from_numpy(p.upper), torch.from_numpy(p.cov), abs_tol=1e-4, seed=k,
                    return_info=True)  # fmt: skip
        assert abs(float(r.prob) - p.prob) <= 1.5 * float(r.error)
    # The same integral by code of its own.
    rng = np.random.default_rng(1)
    group, margins = np.arange(12) % 2, np.round(1 + rng.random(12), 1)
    share = np.array([2, 0])
    top, within = np.sqrt(np.array(peer_problems.SHARES)[share[group]].T)
    answer = oracles.hierarchy(top, group, within, np.sqrt(1 - top**2 - within**2),
                               np.full(12, -np.inf), margins)  # fmt: skip
    model = peer_problems.Hierarchy(group, share, margins)
    assert abs(model.prob(1.0) - answer.prob) < 1e-8
    assert abs(model.complement(1.0) - answer.complement) < 1e-8


def test_peers_are_compared_at_equal_error(one_thread):
    from bench import bench_peers

    points = [(1e-2, 1.0), (1e-3, 10.0), (2e-3, 20.0), (1e-4, 100.0)]  # the third is of no use
    assert bench_peers.at_error(points, 1e-3)[0] == pytest.approx(10.0)
    assert bench_peers.at_error(points, 3e-3)[1] == "interpolated"
    assert bench_peers.at_error(points, 0.1) == (1.0, "its cheapest setting")
    ms, how = bench_peers.at_error(points, 1e-5)
    assert how == "extrapolated" and ms == pytest.approx(1e4)
    row = {"ratio": 0.5, "how": "extrapolated", "answers": 1}
    assert (
        bench_peers.word(row) == "behind: beyond mvn_cdf's tightest setting here (rms of 1 answer)"
    )
    assert bench_peers.word(row | {"ratio": 1.5}) == ""


def test_a_peer_stops_with_its_budget():
    import time

    from bench import peers_cpu

    def busy(seconds):
        start = time.process_time()
        while time.process_time() - start < seconds:
            pass
        return seconds

    class Peer:
        name = "busy"

        def answers(self, problems, setting, budget_s, seed):
            for seconds in problems:
                yield busy(seconds), seconds

    assert [p for p, _ in peers_cpu.within(Peer(), [0.2] * 9, "-", 0.3, 5, 0)] == [0.2, 0.2]
    assert peers_cpu.within(Peer(), [9.0], "-", 0.3, 1, 0) == []


def test_peers_has_a_row_for_each_band_and_joins(monkeypatch, capsys, one_thread, tmp_path):
    from bench import bench_peers

    monkeypatch.setattr(bench_peers, "TOLERANCES", (1e-2, 1e-3))
    for n in ("7", "6"):
        options = ("--n", n, "--peers", "crude", "--seeds", "1", "--budget", "0.2")
        assert not run(monkeypatch, "peers", *options, "--out", str(tmp_path / n))
    parts = ",".join(str(tmp_path / n / "peers.json") for n in ("7", "6"))
    assert not run(monkeypatch, "peers", "--join", parts, "--out", str(tmp_path))
    result = json.loads((tmp_path / "peers.json").read_text())
    assert result["environment"]["command"].count("; python -m bench peers --n 6 ") == 1
    assert str(tmp_path) not in result["environment"]["command"]
    rows = result["rows"]
    assert [row["n"] for row in rows] == sorted(row["n"] for row in rows)
    bands = {row["p"] for row in rows if (row["n"], row["method"]) == (6, "crude")}
    assert "all" in bands and len(bands) > 3
    for row in rows:
        assert ("behind" in row.get("word", "")) == (row.get("ratio", 1) < 1)
    text = "".join(page.table(columns, lines) for _, columns, lines in sections.peers_tables(rows))
    assert text.count("| 6 |") > 3
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(monkeypatch, "peers", "--join", "absent.json")
    assert "--join must name result files, got absent.json" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["hierarchy", "flat"])
def test_answers_of_checkouts_are_exact(one_thread, kind):
    from bench import bench_checkouts
    from mvnrob import mvn_cdf

    made = [bench_checkouts.KINDS[kind](n, k) for n, k in ((9, 0), (20, 1), (60, 2))]
    for upper, cov, answer in made:
        r = mvn_cdf(torch.from_numpy(upper), torch.from_numpy(cov), abs_tol=1e-4, return_info=True)
        assert abs(float(r.prob) - answer.prob) <= float(r.error)
        assert answer.abs_err < 1e-7


def test_checkouts_need_builds(tmp_path):
    from bench import bench_checkouts

    with pytest.raises(SystemExit, match="FOLDER must hold mvnrob, built in place, got"):
        bench_checkouts.Checkout(tmp_path)


def test_instructions_of_a_loop_are_counted(one_thread):
    from bench import bench_roofline

    listing = """
   0:	vmulps %zmm0,%zmm1,%zmm2
   6:	nop
   8:	vmovups (%rdi,%rcx,4),%zmm9
   f:	vfmadd213ps 0x0(%rip),%zmm0,%zmm2        # 1db <x>
  19:	vpaddd %zmm14,%zmm5,%zmm5
  20:	vdivps %zmm3,%zmm2,%zmm2
  26:	vminps %zmm3,%zmm2,%zmm2
  2c:	add    $0x10,%edx
  30:	jne    8 <step_float32+0x8>
  32:	ret
"""
    counts = bench_roofline.vector_counts(bench_roofline.loop_instructions(listing))
    assert counts == {"multiply": 1, "divide": 1, "other": 1, "integer": 1}
    with pytest.raises(RuntimeError, match="without a loop"):
        bench_roofline.loop_instructions("   0:\tret\n")


def test_floors_come_from_the_best_ceilings(one_thread):
    from bench import bench_roofline

    step = {"kernel": "step", "dtype": "float32", "ns": 2.0, "operations": 80, "multiply": 30,
            "divide": 2}  # fmt: skip
    steps = [step | {"multiply_add_ns": 0.025}, step | {"multiply_add_ns": 0.04}]
    seen = [{"blas_float32_gflops": g, "copy_gb_s": 10.0} for g in (50.0, 100.0)]
    rows = [
        steps[0],
        {
            "kernel": "sampler",
            "dtype": "float32",
            "n": 10,
            "operations": 90,
            "bytes": 0,
            "ns": 20.0,
        },
        {"kernel": "jac_cov", "dtype": "float32", "operations": 100, "bytes": 50, "ns": 10.0},
    ]
    bench_roofline.with_floors(rows, steps, seen)
    assert [row["floor_ns"] for row in rows] == pytest.approx([1.0, 90 / 100 + 10.0, 5.0])
    assert [row["share"] for row in rows] == pytest.approx([0.5, 0.545, 0.5])


def test_estimators_are_measured_against_monte_carlo(monkeypatch, one_thread):
    from bench import bench_estimators as base
    from mvnrob.evaluation.selfcheck import _JVP_IN_FORWARDS, _VJP_IN_FORWARDS

    names = [name for name, _ in (*base.ESTIMATORS, *base.PHOTO_ESTIMATORS)]
    drawn = {sections.family(name) for name in names if not name.startswith("mc, ")}
    assert drawn == set(sections.ESTIMATORS)  # each has its colour
    few = [item for item in base.ESTIMATORS if item[0] in ("mc, 100", "taylor", "softmax")]
    monkeypatch.setattr(base, "ESTIMATORS", few)
    args = SimpleNamespace(inputs=20, draws=2000, photos=0)
    rows = base.task_lines("digits", args)
    assert len(rows) == 9 and all(row["classes"] == 10 for row in rows)
    taylor = next(r for r in rows if r["method"] == "taylor" and r["sigma"] == 0.1)
    assert taylor["vjp"] == 10 and taylor["passes"] >= 11
    assert _VJP_IN_FORWARDS == _JVP_IN_FORWARDS == sections.FORWARDS
    assert sections.in_forwards(taylor) == taylor["passes"] + taylor["jvp"] + taylor["vjp"]
    assert sections.mc_rms_forwards(taylor) == pytest.approx(
        math.sqrt(taylor["rms_reference"] ** 2 * 2000 / sections.in_forwards(taylor))
    )
    assert taylor["rms"] < 0.02 < next(r for r in rows if r["method"] == "softmax")["max"]
    # An estimate that is far off is told from Monte Carlo.
    assert not base.consistent({"rms": 0.3, "mc_rms": 0.05, "rms_reference": 0.01, "inputs": 20})


def test_authors_loop_is_beaten_at_its_error(monkeypatch, one_thread):
    import mvnrob
    from bench import bench_authors_loop as base

    args = SimpleNamespace(images=4, draws=2000, truth=1e-5, repeats=1)
    model, x = base.inputs("digits", args)
    theirs, ours = base.task_lines("digits", model, x, 0.3, args)
    assert (theirs["method"], ours["method"]) == ("loop", "mvnrob") and ours["reached"]
    assert ours["rms"] <= theirs["rms"] < 1e-3 and ours["ratio"] == theirs["ms"] / ours["ms"]
    assert ours["ratio"] > 2  # 10 or more on an idle machine
    stages = [theirs[f"{k}_ms"] for k in ("jacobian", "covariance", "cdf")]
    assert all(v > 0 for v in stages)
    # Both are as far from the network, by the linearisation and the draws.
    assert abs(ours["rms_monte_carlo"] - theirs["rms_monte_carlo"]) <= 2e-3
    assert theirs["rms_monte_carlo"] <= 0.1
    # The loop's answers are those of the same integral by mvn_cdf; others are found out.
    loop = base.Loop(model, x[:2], 0.3)
    upper, cov = (torch.from_numpy(np.stack(v)) for v in zip(*loop.problems, strict=True))
    made = mvnrob.robustness(model, x[:2], 0.3, method="taylor")
    assert (torch.tensor(loop.prob) - made.prob).abs().max() <= 2e-3
    assert cov.shape == (2, 9, 9) and (upper > 0).all()
    right = mvnrob.robustness

    def wrong(*args, **options):
        made = right(*args, **options)
        more = 0.05 if options["method"] == "taylor" else 0.0
        return dataclasses.replace(made, prob=made.prob + more)

    monkeypatch.setattr(mvnrob, "robustness", wrong)
    with pytest.raises(SystemExit, match="taylor at 0.001: .* beyond its error"):
        list(base.task_lines("digits", model, x, 0.3, args))


@pytest.mark.slow
def test_digit_pairs_classifier(one_thread):
    import torch

    from mvnrob.models.digit_pairs import load_digit_pairs_classifier

    state = torch.get_rng_state()
    model, x, label = load_digit_pairs_classifier()
    assert torch.equal(torch.get_rng_state(), state)
    logits = model(x)
    assert x.shape == (1000, 128) and logits.shape == (1000, 100) and not model.training
    assert 0 <= float(x.min()) and float(x.max()) <= 1
    # Two digits right of two: .986^2 of a classifier of single digits is .97.
    assert float((logits.argmax(1) == label).double().mean()) >= 0.93


def test_digit_pairs_lie_side_by_side():
    from mvnrob.models.digit_pairs import load_digit_pairs_data
    from mvnrob.models.digits import load_digits_data

    _, _, x, label = load_digit_pairs_data()
    single = load_digits_data()
    known = {tuple(row.tolist()): int(y) for row, y in zip(single[2], single[3], strict=True)}
    for image, y in zip(x[:50].unflatten(1, (8, 16)), label[:50].tolist(), strict=True):
        left, right = (tuple(half.flatten().tolist()) for half in image.split(8, dim=1))
        assert 10 * known[left] + known[right] == y


# The page


@pytest.fixture(scope="module")
def results():
    return page.all_results(harness.RESULTS)


def test_page_is_what_the_committed_results_make(results):
    """After a new result: python -m bench page."""
    predictions = page.all_predictions(harness.RESULTS)
    text = page.text_of(results, predictions, page.tuning_log(harness.RESULTS))
    assert (page.DOCS / "benchmarks.md").read_text() == text
    assert text.count(": predicted, not measured\n") == len(predictions) > 0


def test_imagenet_holds_what_is_expected(results):
    text, blocks = (page.DOCS / "imagenet.md").read_text(), page.imagenet_blocks(results)
    assert text == page.fill(text, blocks) and blocks["predicted"].count("\n") == 6


def test_expected_rows_are_passes_times_milliseconds():
    parts = ("read", "forward", "jvp", "vjp", "covariance", "sketch", "cdf", "other", "write")
    base = {"table": "mix", "precision": "tf32", "jvp": 10.0, "vjp": 4.0,
            **{f"{part}_ms": 2.0 for part in parts}}  # fmt: skip
    other = {**base, "precision": "bfloat16", "jvp_ms": 9.0}
    passes = [{"level": 0.9, "jvp": jvp, "vjp": vjp} for jvp, vjp in ((10, 2), (30, 4))]
    (row,) = page.expected_rows([other, base], passes)
    # 2 + .2 x 20 + .5 x 3 + .2 x 20, and five parts that do not change
    assert (row["jvp_ms"], row["vjp_ms"], row["sketch_ms"], row["rest_ms"]) == (4.0, 1.5, 4.0, 10.0)
    assert row["images_per_s"] == pytest.approx(1e3 / 21.5)
    assert row["minutes_for_50000"] == pytest.approx(50_000 * 21.5e-3 / 60)


def test_choosing_holds_the_committed_tables(results):
    text = (page.DOCS / "choosing.md").read_text()
    assert text == page.fill(text, page.choosing_blocks(results))
    assert page.choosing_blocks(results)


def test_figures_are_of_the_committed_results(results):
    drawn = {s.name: results[s.name]["digest"] for s in sections.SECTIONS
             if s.draw and s.name in results}  # fmt: skip
    found = {path.stem: page.digest_of_figure(path) for path in (page.DOCS / "figures").iterdir()}
    assert found == drawn


def test_page_has_a_section_for_every_result(results):
    """README: the page shows them all."""
    named = {s.name for s in page.SECTIONS}
    apart = {"cuda_tuning"} | {path.stem for path in harness.RESULTS.glob("cuda_predicted*.json")}
    assert {path.stem for path in harness.RESULTS.glob("*.json")} - apart <= named


def test_source_line_names_the_processor_where_a_result_has_it(results):
    one = copy.deepcopy(results["bvn"])
    one["environment"].pop("processor", None)
    assert "AMD EPYC, 2 cores, " in page.where("bvn", one)
    one["environment"]["processor"] = {"vendor": "x", "family": "26", "model": "2", "L1d": "48K"}
    assert "AMD EPYC (family 26, model 2, L1d 48K), 2 cores, " in page.where("bvn", one)


def test_joined_command_can_be_pasted():
    one, two = "python -m bench peers --n 6", "python -m bench peers --n 7 --cache x"
    assert page.to_paste("peers", one) == f"`{one}`\n"
    lines = page.to_paste("peers", f"{one}; {two}").splitlines()
    assert lines == [
        "```", f"{one} --out build/peers/1", f"{two} --out build/peers/2",
        "python -m bench peers --join build/peers/1/peers.json,build/peers/2/peers.json", "```",
    ]  # fmt: skip


def test_page_follows_its_results(results, tmp_path, monkeypatch):
    name = "jac_cov"
    other = json.loads((harness.RESULTS / f"{name}.json").read_text())
    other["rows"][0]["ms"] = 123.25
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / f"{name}.json").write_text(json.dumps(other))
    docs = tmp_path / "docs"
    monkeypatch.setattr(sys, "argv", ["page", "--results", str(folder), "--docs", str(docs)])
    page.main()
    text = (docs / "benchmarks.md").read_text()
    assert "| 123 |" in text and text != page.text_of(results, [])
    assert text.count("\n## ") == 1 and other["environment"]["command"] in text


# The log of tuning steps


def prediction(floor, limiter="issue", commit="a"):
    row = {"kernel": "Sampler<double>", "n": 99, "pivots": 99, "points": 1000}
    return {
        "status": "predicted from counted instructions, nothing measured", "device": "one",
        "date": "2026-01-01", "commit": commit, "command": "python -m bench.cuda_floor",
        "rows": [
            {**row, "floor_per_s": floor, "limiter": limiter},
            {**row, "pivots": 16, "floor_per_s": 7.0, "limiter": "fp64"},
            {**row, "n": 5 if commit == "a" else 6, "floor_per_s": 1.0, "limiter": "alu"},
        ],
    }  # fmt: skip


def timing(rate, commit):
    row = {"table": "sov", "n": 99, "batch": 8, "points": 512, "dtype": "float64"}
    return {
        "environment": {"gpu": "H200", "time": "2026-01-01T00:00:00Z", "commit": commit},
        "rows": [
            {**row, "problems_per_s": rate, "floor_per_s": 1000.0, "share": rate / 1000},
            {**row, "n": 9, "note": "wrong"},
            {**row, "table": "slopes", "problems_per_s": 3.0},
        ],
    }  # fmt: skip


def run_tuning(monkeypatch, folder, old, new, words, *more):
    for name, result in (("old", old), ("new", new)):
        (folder / f"{name}.json").write_text(json.dumps(result))
    log = folder / "log.json"
    arguments = [str(folder / "old.json"), str(folder / "new.json"), "--step", words]
    code = run(monkeypatch, "cuda_tuning", *arguments, "--out", str(log), *more)
    return code, json.loads(log.read_text())["steps"] if log.exists() else []


def test_tuning_step_of_predictions(monkeypatch, tmp_path):
    old, new = prediction(100.0), prediction(150.0, "fp64", "b")
    code, (step,) = run_tuning(monkeypatch, tmp_path, old, new, "one", "--note", "Why.")
    assert code == 0 and step["status"] == "predicted" and step["left_out"] == 2
    assert (step["before"]["commit"], step["after"]["commit"], step["note"]) == ("a", "b", "Why.")
    changed, same = step["rows"]
    assert changed == {
        "kernel": "Sampler<double>", "size": "n 99, points 1000", "floor_before": 100.0,
        "floor_after": 150.0, "limiter_before": "issue", "limiter_after": "fp64", "ratio": 1.5,
    }  # fmt: skip
    assert same["size"] == "n 99, pivots 16, points 1000" and same["ratio"] == 1
    # The same step again takes its place; another one follows.
    run_tuning(monkeypatch, tmp_path, old, prediction(200.0, commit="b"), "one")
    _, steps = run_tuning(monkeypatch, tmp_path, old, new, "two")
    assert [(s["step"], s["rows"][0]["ratio"]) for s in steps] == [("one", 2.0), ("two", 1.5)]
    text = page.tuning_text({"steps": steps})
    assert "| Sampler<double> | n 99, points 1000 | 100 | 150 | 1.500 | issue, then fp64 |" in text
    assert text.count("Rows without change: 1.") == 2 and "measured before" not in text


def test_tuning_step_of_measurements(monkeypatch, tmp_path):
    code, (step,) = run_tuning(
        monkeypatch, tmp_path, timing(500.0, "a"), timing(650.0, "b"), "faster"
    )
    assert code == 0 and step["status"] == "measured" and step["device"] == "H200"
    (row,) = step["rows"]
    assert row == {
        "kernel": "mvn_cdf_sums, float64", "size": "n 99, points 512, batch 8",
        "floor_before": 1000.0, "floor_after": 1000.0, "rate_before": 500.0, "rate_after": 650.0,
        "share_before": 0.5, "share_after": 0.65, "ratio": 1.3,
    }  # fmt: skip
    text = page.tuning_text({"steps": [step]})
    assert "Measured, `python -m bench cuda`; H200" in text
    assert (
        "| 1,000 | 1,000 | 500 | 650 | 0.5 | 0.65 | 1.300 |" in text and "| limiter |" not in text
    )


def gpu_timings(faster, commit, batch):
    """Rows of all kinds in a GPU's timings; a tolerance's batch is as large as the time allows."""
    sov = {"table": "sov", "n": 99, "batch": 8, "points": 512, "dtype": "float32"}
    tolerance = {"table": "tolerance", "n": 99, "group": "exact", "abs_tol": 1e-3}
    latency = {"table": "latency", "n": 9, "batch": 1, "abs_tol": 1e-3}
    return {
        "environment": {"gpu": "H100", "time": "2026-01-01T00:00:00Z", "commit": commit},
        "rows": [
            {**sov, "what": "mvn_cdf", "problems_per_s": 40.0 * faster, "floor_per_s": 100.0,
             "share": 0.4 * faster},
            {**sov, "what": "sums", "problems_per_s": 50.0, "floor_per_s": 100.0, "share": 0.5},
            {**tolerance, "batch": batch, "problems_per_s": 7.0 * faster, "rms": 2e-4 / faster},
            {**tolerance, "group": "classifiers", "batch": batch, "note": "wrong: 3 of 8 off"},
            {**latency, "device_us": 90.0 / faster, "wall_us": 120.0, "graph_us": 60.0 / faster},
            {**latency, "n": 99, "device_us": 9.0, "note": "wrong: capture fails"},
            {"table": "crude", "n": 99, "batch": batch, "draws": 9, "right": True},
            {"table": "bvn", "elements": 64, "elements_per_s": 1e9 * faster},
        ],
    }  # fmt: skip


def test_tuning_step_of_a_gpu_s_rates_and_times(monkeypatch, tmp_path):
    old, new = gpu_timings(1.0, "a", 8), gpu_timings(1.25, "b", 16)
    code, (step,) = run_tuning(monkeypatch, tmp_path, old, new, "faster")
    assert code == 0 and step["left_out"] == 0 and step["command"] == "python -m bench cuda"
    rows = {(row["kernel"], row["size"]): row for row in step["rows"]}
    assert len(rows) == len(step["rows"]) == 7
    # The sampler alone and the whole call are two rows.
    at = "n 99, points 512, batch 8"
    assert rows["mvn_cdf, all sampled, float32", at]["ratio"] == 1.25
    assert rows["mvn_cdf_sums, float32", at]["ratio"] == 1
    assert rows["mvn_cdf, exact", "n 99, abs_tol 0.001"] == {
        "kernel": "mvn_cdf, exact", "size": "n 99, abs_tol 0.001", "rate_before": 7.0,
        "rate_after": 8.75, "error_before": 2e-4, "error_after": 1.6e-4, "ratio": 1.25,
    }  # fmt: skip
    assert rows["mvn_cdf, GPU time", "n 9, batch 1, abs_tol 0.001"] == {
        "kernel": "mvn_cdf, GPU time", "size": "n 9, batch 1, abs_tol 0.001", "unit": "us",
        "time_before": 90.0, "time_after": 72.0, "ratio": 0.8,
    }  # fmt: skip
    text = page.tuning_text({"steps": [step]})
    assert "| mvn_cdf, exact | n 99, abs_tol 0.001 | 7 | 8.75 | 1.250 | 0.0002 | 0.00016 |" in text
    assert "elements/s:\n\n| kernel | size | measured before | measured after |" in text
    times = text.partition("Time of a call, us (below 1 is faster):\n\n")[2]
    assert times.startswith("| kernel | size | time before | time after | after / before |\n")
    assert "| mvn_cdf, CUDA graph | n 9, batch 1, abs_tol 0.001 | 60 | 48 | 0.800 |" in times
    assert "Rows without change: 2." in text and "wall time" not in text


def test_tuning_step_of_jac_cov_and_of_the_pipeline(monkeypatch, tmp_path):
    about = {"gpu": "H100", "time": "2026-01-01T00:00:00Z", "commit": "a"}
    row = {"op": "jac_cov", "C": 10, "D": 64, "chunk": None, "B": 50, "dtype": "float32",
           "error": 1e-7}  # fmt: skip
    cov = [{"environment": about, "rows": [row | {"ms": ms}]} for ms in (0.04, 0.02)]
    _, (step,) = run_tuning(monkeypatch, tmp_path, *cov, "one")
    assert step["command"] == "python -m bench jac_cov --device cuda"
    (made,) = step["rows"]
    assert (made["time_before"], made["time_after"], made["ratio"]) == (2.0, 1.0, 0.5)
    assert (made["kernel"], made["size"]) == ("jac_cov, float32", "C 10, D 64, B 50")
    row = {"table": "band", "case": "net", "precision": "tf32", "level": 0.9, "p": "0 to 0.6"}
    band = [{"environment": about, "rows": [row | {"images_per_s": v}]} for v in (20.0, 30.0)]
    _, (_, step) = run_tuning(monkeypatch, tmp_path, *band, "two")
    (made,) = step["rows"]
    assert (made["unit"], made["ratio"]) == ("images/s", 1.5)
    assert step["command"] == "python -m bench pipeline --device cuda"


CPU_RESULT = {"environment": {"time": "2026-01-01T00:00:00Z", "commit": "a"}, "rows": []}


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (CPU_RESULT, CPU_RESULT, "a measured result must be of a GPU, got one of a CPU"),
        (prediction(1.0), timing(1.0, "a"), "both results must have one status, got predicted and"),
        (prediction(1.0), {**prediction(1.0), "command": "x"}, "must have one command, got python"),
        (prediction(1.0), {**prediction(1.0), "rows": []}, "must have rows in common, got none"),
    ],
)
def test_tuning_refuses_what_does_not_compare(monkeypatch, tmp_path, capsys, old, new, text):
    code, steps = run_tuning(monkeypatch, tmp_path, old, new, "x")
    assert (code, steps) == (2, []) and text in capsys.readouterr().out


@pytest.mark.parametrize("source", ["absent.json", "HEAD:bench/absent.json"])
def test_tuning_refuses_an_absent_result(monkeypatch, capsys, source):
    assert run(monkeypatch, "cuda_tuning", source, source, "--step", "x") == 2
    assert "cuda_tuning: " in capsys.readouterr().out


def test_committed_tuning_steps_end_at_the_committed_predictions():
    """The last step of each command leads to the floors that stand in bench/results now."""
    steps = page.tuning_log(harness.RESULTS)["steps"]
    last = {step["command"]: step for step in steps if step["status"] == "predicted"}
    assert len(last) == 4
    for command, step in last.items():
        name = command.rpartition("cuda_floor")[2]
        result = json.loads((harness.RESULTS / f"cuda_predicted{name}.json").read_text())
        assert result["command"] == command
        now = cuda_tuning.lines_of(result)
        assert step["rows"]
        for row in step["rows"]:
            assert now[row["kernel"], row["size"]]["floor"] == row["floor_after"]


def test_figure_carries_its_digest(results, tmp_path):
    section = next(s for s in sections.SECTIONS if s.name == "mvn_cdf")
    page.draw(section, {**results["mvn_cdf"], "digest": "abc"}, tmp_path / "x.png")
    assert page.digest_of_figure(tmp_path / "x.png") == "abc"


def test_fill_refuses_a_missing_block():
    with pytest.raises(ValueError, match="must hold the block digits once, got 0"):
        page.fill("nothing", {"digits": "table"})


def test_low_rank_over_seeds(monkeypatch, one_thread, tmp_path):
    """A covariance whose spectrum falls off, in place of a photograph's: rows as committed, answers within
    their errors, and an answer that is not fails the run."""
    from bench import bench_screening
    from mvnrob import low_rank
    from mvnrob.models import efficientnet_lite

    monkeypatch.setattr(
        low_rank, "PASS_BYTES", low_rank.PASS_BYTES
    )  # the benchmark's own ends with the test
    rows = torch.randn(300, 300, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows *= torch.arange(1, 301) ** -1.2
    rows -= rows[:1].clone()
    logits = torch.zeros(1, 300, dtype=torch.float64)
    logits[0, 0] = 8.0
    known = (rows @ rows.mT)[None], logits, torch.tensor([0]), 1.0
    monkeypatch.setattr(bench_screening, "cached_covariance", lambda *_: known)
    monkeypatch.setattr(efficientnet_lite, "load_efficientnet_lite0", lambda: None)
    call = ("low_rank", "--photos", "camera", "--levels", ".6,.9", "--seeds", "2")
    assert run(monkeypatch, *call, "--out", str(tmp_path)) == 0
    made, committed = (
        json.loads((folder / "low_rank.json").read_text()) for folder in (tmp_path, harness.RESULTS)
    )
    assert {tuple(row) for row in made["rows"]} == {tuple(row) for row in committed["rows"]}
    for row in made["rows"]:
        assert row["beyond_error"] == 0 and 20 < row["passes"] <= row["most_passes"] < 600
    assert [row["answers"] for row in made["environment"]["summary"]] == [2, 2]
    monkeypatch.setattr(bench_screening, "probability", lambda *_: (0.5, 0.0))
    with pytest.raises(SystemExit, match="4 of 4 answers are off by more than their errors"):
        run(monkeypatch, *call, "--out", str(tmp_path))


def test_forward_mode(monkeypatch, one_thread, tmp_path):
    """Rows as committed; products that are not torch's are not timed."""
    from bench import bench_forward_mode

    call = (
        "forward_mode",
        "--networks",
        "deit_tiny,convnext_tiny",
        "--sides",
        "32",
        "--directions",
        "2",
    )
    call += "--repeats", "1", "--out", str(tmp_path)
    assert run(monkeypatch, *call) == 0
    made, committed = (
        json.loads((folder / "forward_mode.json").read_text())["rows"]
        for folder in (tmp_path, harness.RESULTS)
    )
    assert {tuple(row) for row in made} == {tuple(row) for row in committed}
    assert [row["network"] for row in made] == ["deit_tiny", "convnext_tiny"]
    assert all(0 < row["difference"] < 1e-5 < row["ms"] for row in made)
    theirs = bench_forward_mode.by_torch
    monkeypatch.setattr(bench_forward_mode, "by_torch", lambda *a: 1.01 * theirs(*a))
    with pytest.raises(SystemExit, match="products of deit_tiny differ by"):
        run(monkeypatch, *call)


def test_every_column_of_the_page_is_in_its_file():
    """A dash in all rows would be a column whose name has changed."""
    seen = 0
    for section in page.SECTIONS:
        path = harness.RESULTS / f"{section.name}.json"
        if not path.exists():
            continue
        for title, columns, rows in section.tables(json.loads(path.read_text())["rows"]):
            rows = list(rows)
            for head, column in columns:
                if isinstance(column, str):
                    assert any(column in row for row in rows), (section.name, title, head, column)
                    seen += 1
    assert seen > 500
