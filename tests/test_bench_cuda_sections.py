"""The page's sections of what a GPU was measured to do, from small made-up files."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
from bench import cuda_card, cuda_environment, cuda_floor_jac_cov, cuda_shares, harness, page

TITLES = {
    "cuda": "## mvn_cdf on a GPU: measured",
    "cuda_jac_cov": "## jac_cov on a GPU: measured",
    "pipeline": "## mvnrob.evaluate end to end: measured",
}
PREDICTED = "# mvn_cdf on one H200: predicted, not measured\n"
OTHER_CARD = "The predictions below are for an H200, which is another card"


def environment(**more):
    return {
        "time": "2026-01-02T00:00:00Z", "cpu": "Some CPU", "cores": 16, "load": [1.0, 2.0, 3.0],
        "simd": "avx512", "torch": "2.11.0+cu130", "commit": "abc", "cuda": "13.0",
        "gpu": "NVIDIA H100 80GB HBM3", "multiprocessors": 132, "memory_gib": 79.2,
        "command": "python -m bench.bench_cuda --json /some/where/timings.json --budget 90", **more,
    }  # fmt: skip


def cuda_result(**more):
    sov = {"table": "sov", "n": 99, "batch": 8, "points": 512, "dtype": "float32"}
    tolerance = {"table": "tolerance", "n": 99, "group": "exact", "abs_tol": 1e-3, "batch": 64}
    return {
        "environment": environment(**more),
        "not_run": ["slopes, n = 9, float32", "slopes, n = 9, float32", "bvn"],
        "remarks": ["crude Monte Carlo, n = 9, miscounts and is left out"],
        "rows": [
            {"table": "latency", "n": 9, "batch": 10, "abs_tol": 1e-3, "device_us": 91.0,
             "wall_us": 123.0, "graph_us": 61.0},
            {"table": "latency", "n": 99, "batch": 1, "abs_tol": 1e-3, "note": "wrong: 3 off"},
            {**sov, "what": "sums", "problems_per_s": 40.0, "floor_per_s": 100.0, "share": 0.4,
             "floor_clock_mhz": 1980.0},
            {"table": "crude", "n": 99, "group": "exact", "batch": 7, "right": True},
            {**tolerance, "problems_per_s": 700.0, "repeats": 9, "rms": 2e-4, "beyond_error": 0.01,
             "converged": 1.0, "points_mean": 512.0, "pivots_mean": 4.5, "crude_per_s": 7.0,
             "ours/crude": 100.0, "cpu_per_s": 875.0, "ours/cpu": 0.8},
        ],
    }  # fmt: skip


def jac_cov_result(**more):
    row = {
        "op": "jac_cov", "C": 10, "D": 64, "chunk": None, "B": 50, "dtype": "float32", "ms": 0.04,
        "spread": 1.1, "rate": 9.0, "unit": "GFLOP/s", "error": 1e-7, "peer_ms": 0.08,
        "peer_error": 2e-7, "speedup": 2.0, "tf32_ms": 0.02, "tf32_error": 3e-5,
        "tf32_speedup": 0.5,
    }  # fmt: skip
    norms = {k: v for k, v in row.items() if not k.startswith("tf32")} | {"op": "jac_cov_norms"}
    return {"environment": environment(**more), "rows": [row, norms]}


def pipeline_result(**more):
    parts = ("read", "forward", "jvp", "vjp", "covariance", "sketch", "cdf", "other", "write")
    row = {
        "case": "net", "level": 0.9, "sigma": 0.25, "images": 4, "images_per_s": 20.0,
        **{f"{part}_ms": 2.0 for part in parts}, "cdf_share": 0.125, "forward": 2.0, "jvp": 20.0,
        "vjp": 8.0, "kept": 30.0, "error_mean": 5e-4, "chunk": 32,
    }  # fmt: skip
    rows = []
    for precision, minutes in (("tf32", 41.0), ("bfloat16", 32.0)):
        rows.append(
            {**row, "precision": precision, "table": "band", "p": "0.6 to 0.95", "share": 1.0}
        )
        rows.append({**row, "precision": precision, "table": "mix", "p": "all, median 0.9100",
                     "share": 1.0, "minutes_for_50000": minutes})  # fmt: skip
    return {"environment": environment(wrong=["net, tf32, level 0.3: Wrong: off\nmore"], **more),
            "rows": rows}  # fmt: skip


MADE = {"cuda": cuda_result, "cuda_jac_cov": jac_cov_result, "pipeline": pipeline_result}


@pytest.fixture
def made_page(monkeypatch, tmp_path):
    """docs/benchmarks.md of made-up results and, unless it is None, a prediction."""

    def make(results, prediction=PREDICTED):
        folder, docs = tmp_path / "results", tmp_path / "docs"
        folder.mkdir()
        for name, result in results.items():
            (folder / f"{name}.json").write_text(json.dumps(result))
        if prediction:
            (folder / "cuda_predicted.md").write_text(prediction)
        arguments = ["page", "--results", str(folder), "--docs", str(docs)]
        monkeypatch.setattr(sys, "argv", arguments)
        page.main()
        return (docs / "benchmarks.md").read_text()

    return make


def test_measured_sections_stand_before_the_predicted(made_page):
    committed = json.loads((harness.RESULTS / "jac_cov.json").read_text())
    text = made_page({"jac_cov": committed, **{name: make() for name, make in MADE.items()}})
    places = [
        text.index(t) for t in ("## jac_cov beside PyTorch", *TITLES.values(), f"#{PREDICTED}")
    ]
    assert places == sorted(places) and text.count("\n## ") == 5
    head = text[: places[0]]
    assert "What a GPU (NVIDIA H100 80GB HBM3) was measured to do" in head
    assert "predicted to do" in head and text.count(OTHER_CARD) == 3
    assert "as many multiprocessors at the same clock and faster memory" in text


@pytest.mark.parametrize("name", MADE)
def test_section_without_its_file_is_left_out(made_page, name):
    text = made_page({other: make() for other, make in MADE.items() if other != name})
    assert [title for title in TITLES.values() if title not in text] == [TITLES[name]]
    assert f"bench/results/{name}.json" not in text


def test_head_without_a_gpu(made_page):
    text = made_page({})
    assert "What a GPU is predicted to do" in text and "measured to do" not in text
    assert OTHER_CARD not in text and "\n## mvn_cdf on one H200: predicted" in text


def test_head_without_predictions(made_page):
    text = made_page({"cuda": cuda_result()}, prediction=None)
    assert "measured to do" in text and "predicted" not in text and OTHER_CARD not in text


@pytest.mark.parametrize(
    ("more", "said"),
    [({"gpu": "NVIDIA H200"}, None), ({"multiprocessors": 114}, f"{OTHER_CARD}: measured and")],
)
def test_another_card_is_told_from_the_predicted_one(made_page, more, said):
    text = made_page({"cuda": cuda_result(**more)})
    assert "as many multiprocessors" not in text
    assert (OTHER_CARD not in text) if said is None else (said in text)


def test_result_says_where_it_is_from(made_page):
    text = made_page({"cuda": cuda_result(driver="580.1"), "cuda_jac_cov": jac_cov_result()})
    with_driver, without = text.split(TITLES["cuda_jac_cov"])
    card = "NVIDIA H100 80GB HBM3 (132 multiprocessors, 79.2 GiB), "
    rest = (
        "CUDA 13.0; Some CPU, 16 cores, avx512, torch 2.11.0+cu130; 2026-01-02, commit abc, load "
    )
    assert f"{card}driver 580.1, {rest}" in with_driver
    assert f"{card}{rest}" in without and "driver" not in without
    assert "`python -m bench.bench_cuda --budget 90`" in text and "/some/where" not in text


def test_mvn_cdf_tables(made_page):
    text = made_page({"cuda": cuda_result()})
    assert "| 9 | 10 | 0.001 | 91 | 123 | 61 | - |" in text
    assert "| 99 | 1 | 0.001 | - | - | - | wrong: 3 off |" in text
    assert "| 99 | 512 | float32 | sums | 8 | 40 | 100 | 40 % |" in text and "at 1,980 MHz" in text
    # A peer that is ahead shows; a table without rows has no caption.
    assert ("| 99 | exact | 0.001 | 64 | 700 | 9 | 0.0002 | 1 % | 100 % | 512 | 4.5 | 7 | 100 | 875 "
            "| **0.8** |") in text  # fmt: skip
    assert "flatters the GPU" in text and "**bvn_cdf**" not in text and "miscounts" in text
    assert "Not run, no time was left: slopes, n = 9, float32; bvn.\n" in text


def test_cpu_s_batch_stands_beside_its_rate(made_page):
    result = cuda_result()
    result["rows"][-1]["cpu_batch"] = 3584
    text = made_page({"cuda": result})
    assert "| 7 | 100 | 3584 | 875 | **0.8** |" in text and "flatters" not in text


def test_jac_cov_table_has_both_of_pytorch_s_forms(made_page):
    text = made_page({"cuda_jac_cov": jac_cov_result()})
    start = "| 10 | 64 | float32 | 50 | 2 | 1.1 | 9 | GFLOP/s | 1e-07 | 4 | 2e-07 | 2 |"
    assert f"| jac_cov {start} 1 | 3e-05 | **0.5** |" in text
    assert f"| jac_cov_norms {start} - | - | - |" in text


def floors(**row):
    """Of a made-up row on a made-up H100 whose memory copies 2 TB/s."""
    device = {"multiprocessors": 132, "clock_hz": 1.98e9, "dram": 2e12}
    return cuda_shares.floors_of(row.get("table", "jac_cov"), row, device)


def test_card_s_memory_is_timed_or_known():
    known = {"gpu": "NVIDIA H100 80GB HBM3", "multiprocessors": 132, "capability": "9.0"}
    assert cuda_card.of(known) == {"multiprocessors": 132, "clock_hz": 1.98e9, "dram": 3e12}
    timed = cuda_card.of({**known, "gpu": "Some H100", "copy_tb_s": 2.5, "max_sm_mhz": 1755.0})
    assert timed == {"multiprocessors": 132, "clock_hz": 1.755e9, "dram": 2.5e12}
    assert cuda_card.of({**known, "gpu": "Some H100"}) is None
    assert cuda_card.of({**known, "capability": "8.0"}) is None
    assert "2.5 TB/s of memory (a copy timed" in cuda_card.words({**known, "copy_tb_s": 2.5})


def test_floors_of_jac_cov():
    row = {"op": "jac_cov_norms", "C": 1000, "D": 150_528, "dtype": "float32", "ms": 0.6, "B": 3}
    found = floors(**row)
    assert found["limiter"] == "dram" and found["share"] == pytest.approx(0.5018, abs=1e-3)
    assert found["floor_ms"] == pytest.approx(1e3 * 4 * 150_528_000 / 2e12, rel=1e-3)
    whole = floors(**{**row, "op": "jac_cov"})
    assert whole["limiter"] == "l2" and whole["floor_ms"] > found["floor_ms"]
    assert floors(**row, chunk=3072) == {}
    assert floors(**row, share=0.1) == {}  # what the run itself reckoned stands
    # The committed rows follow from the committed counts.
    for said in json.loads(cuda_floor_jac_cov.RESULTS.read_text())["rows"]:
        op = "jac_cov_norms" if said["kernel"].startswith("JacNorms") else "jac_cov"
        device = {**cuda_floor_jac_cov.H200, "dram": cuda_floor_jac_cov.DRAM}
        floor, limiter = cuda_floor_jac_cov.problems_per_s(
            op, said["C"], said["D"], said["dtype"], device
        )
        assert limiter == said["limiter"]
        assert floor == pytest.approx(said["floor_per_s"], rel=6e-3)


def test_floors_of_mvn_cdf_s_tables():
    asked = {"table": "tolerance", "n": 999, "abs_tol": 1e-3, "problems_per_s": 1e3}
    few = floors(**asked, points_mean=4096.0, pivots_mean=40.2)
    many = floors(**asked, points_mean=4096.0, pivots_mean=400.0)
    assert few["floor_per_s"] > 5 * many["floor_per_s"] and 0 < few["share"] < many["share"] < 1
    assert floors(**asked, points_mean=0.0, pivots_mean=0.0) == {}  # nothing was sampled
    tight = floors(**{**asked, "abs_tol": 1e-6}, points_mean=4096.0, pivots_mean=40.0)
    assert tight["floor_per_s"] < few["floor_per_s"]  # float64
    large = floors(table="large", n=16_384, points=16_384, median_ms=1000.0)
    assert 0.05 < large["share"] < 0.5 and large["limiter"] == "subtraction"
    slopes = {"table": "slopes", "n": 999, "points": 8192, "dtype": "float32", "batch": 4}
    limits, cov = (floors(**slopes, to=to, slopes_ms=100.0) for to in ("limits", "cov"))
    assert limits["limiter"] == "dram" and limits["floor_ms"] < cov["floor_ms"] < 100
    twice = floors(**{**slopes, "batch": 8}, to="limits", slopes_ms=100.0)
    assert twice["share"] == pytest.approx(2 * limits["share"])
    assert floors(table="bvn", elements=7, elements_per_s=1e9)["limiter"] == "issue"
    factor = floors(table="cholesky", n=99, batch=7, problems_per_s=1e5)
    assert 0 < factor["share"] < 1
    assert floors(table="latency", n=9, batch=1, device_us=80.0) == {}


def test_floor_of_answers_is_of_each_row():
    def floor(rows):
        pivots, active, points = (torch.tensor(x) for x in zip(*rows, strict=True))
        answer = SimpleNamespace(n_pivots=pivots, n_active=active, n_points=points)
        device = {"multiprocessors": 132, "clock_hz": 1.98e9, "dram": 2e12}
        return cuda_shares.mean_floor(answer, "float32", device)

    small, large = (5, 9, 512), (200, 900, 8192)
    assert floor([(0, 0, 0)]) is None
    each = [1 / floor([row])[0] for row in (small, large)]
    assert 2 / floor([small, large])[0] == pytest.approx(sum(each))
    assert floor([small, (0, 0, 0)])[0] == pytest.approx(2 / each[0])
    assert floor([(200, 200, 8192)])[0] > floor([large])[0]  # completed variables


def test_old_results_get_floors_on_the_page(made_page):
    text = made_page({"cuda_jac_cov": jac_cov_result(), "cuda": cuda_result()})
    assert text.count("A floor is the least time") == 2
    assert text.count("1,980 MHz and 3 TB/s of memory (copies timed before).") == 2
    head = text.partition("Milliseconds of a call on B problems:\n\n")[2].splitlines()[0]
    assert head.endswith("| floor, ms | share of the floor | limiter |")


def test_card_that_is_not_known_has_no_floors(made_page):
    text = made_page({"cuda_jac_cov": jac_cov_result(gpu="Some GPU", capability="12.0")})
    assert "floor, ms" not in text and "A floor is" not in text


def test_kernels_and_profile_have_sections(made_page):
    about = environment(command="python -m bench cuda_profile")
    del about["simd"], about["load"]  # as environment.json of bench/gpu.sh
    line = {
        "kernel": "MvnCdfGrow<float>", "call": "full rank n=2048", "duration": "9 ms",
        "limiter": "sm__inst_issued", "limiter_pct": 40.0, "launch__registers_per_thread": 255.0,
        "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": 12.5, "waits": "barrier 2.5",
    }  # fmt: skip
    call = {"call": "bvn_cdf", "launches": 1}
    kernels = [{**call, "kernel": "BvnCdf", "ms": 4.0, "share": 0.995},
               {**call, "kernel": "Fill", "ms": 0.02, "share": 0.005},
               {**call, "kernel": "between", "launches": 2, "ms": 0.5}]  # fmt: skip
    text = made_page(
        {
            "cuda_profile": {"environment": about, "rows": [line]},
            "cuda_kernels": {
                "environment": environment(),
                "rows": kernels,
                "not_run": ["sums n=9"],
            },
        }
    )
    assert (
        "| MvnCdfGrow<float> | full rank n=2048 | 9 ms | sm__inst_issued | 40 | 12.5 | 255 | barrier 2.5 |"
    ) in text
    assert (
        "`python -m bench cuda_profile`\n\n`bench/results/cuda_profile.json`; NVIDIA H100" in text
    )
    assert "16 cores, torch 2.11.0+cu130; 2026-01-02, commit abc.\n" in text
    assert "| bvn_cdf | BvnCdf | 1 | 4 | 99.5 % |" in text and "| Fill |" not in text
    assert "| bvn_cdf | between | 2 | 0.5 | - |" in text and "no time was left: sums n=9." in text


def test_pipeline_tables_are_one_for_a_precision(made_page):
    text = made_page({"pipeline": pipeline_result()})
    assert text.index("net, tf32, chunks of 32:") < text.index("net, bfloat16, chunks of 32:")
    start = "| 0.9 | 0.25 | all, median 0.9100 |"
    for minutes in (41, 32):
        line = f"{start} 4 | 1 | 20 | 12.5 % | 2 | 20 | 8 | 30 | 0.0005 | {minutes} |"
        assert text.count(line) == 1
    assert text.count(f"{start} {' | '.join(9 * ['2'])} |") == 2
    assert "Not timed, for a wrong answer or an error: net, tf32, level 0.3: Wrong: off.\n" in text


def test_cpu_s_result_is_refused_as_a_gpu_s(made_page):
    result = cuda_result()
    del result["environment"]["multiprocessors"]
    with pytest.raises(ValueError, match=r"cuda.json must be of a GPU, got one of a CPU"):
        made_page({"cuda": result})


def test_report_of_a_gpu_has_the_driver(monkeypatch):
    asked = []

    def output(*command):
        asked.append(command[0])
        return "580.1" if "--query-gpu=driver_version" in command else None

    monkeypatch.setattr(cuda_environment, "output", output)
    assert cuda_environment.gpu()["driver"] == "580.1"
    assert cuda_environment.before("x")["driver"] == "580.1" and "nvidia-smi" in asked


def test_cpu_has_calls_that_fill_its_threads(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    from bench import bench_cuda, bench_mvn_cdf, cuda_timing

    threads, sizes = torch.get_num_threads(), []

    def once(call, device, flush):
        result = call()
        sizes.append(len(result.prob))
        return 1e-4 * len(result.prob), result

    monkeypatch.setattr(cuda_timing, "once", once)
    group = bench_mvn_cdf.exact_group(9, bench_mvn_cdf.CLASSIFIER_LIKE, "exact")
    bench = SimpleNamespace(args=SimpleNamespace(budget=20.0))
    size = group.size
    try:
        beside = {}
        made = bench_cuda.cpu_rate(bench, group, 1e-2, beside, 10_000)
        assert sizes == [size, 8 * size, 64 * size] and made["cpu_batch"] == 64 * size
        assert made["cpu_per_s"] == pytest.approx(1e4) and beside["cpu_s"] == 64e-4 * size
        made = bench_cuda.cpu_rate(bench, group, 1e-2, {}, size + 1)
        assert made["cpu_batch"] == size + 1
        assert bench_cuda.cpu_rate(bench, group, 1e-2, {"cpu_s": 0.5}, 10_000) is None
    finally:
        torch.set_num_threads(threads)
