"""What the launches of one mvn_cdf call take on a GPU: made by the host, and in a captured graph.

python -m bench.cuda_launches [--n 9,40,99] [--seeds 8]
                               counts them anew (CPU shim, no GPU; compiles it the first time) and writes
                               bench/results/cuda_predicted_launches.json and .md

The host launches the kernels of every round that a row may need, unless it sees before that no row is
left, for which it waits a millisecond at most: counted is a host that never sees it, the most. A captured graph
(torch.cuda.graph) repeats one round in a loop of its own until the device says that no row is left:
launches counted on the shim with single rows of bench/classifiers.py, abs_tol 1e-3. Their times are
HOST_US, what a launch takes the host, and NODE_US, what a kernel of a graph takes on the device though
it has nothing to do: both reckoned, as is everything made of them. The kernels' own work is not in it.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

from bench import classifiers, cuda_prediction

TESTS = Path(__file__).parents[1] / "tests"
RESULTS = Path(__file__).parent / "results" / "cuda_predicted_launches.json"
HOST_US, NODE_US = 2.2, 1.3
NAMES = ("n", "rows", "by the host", "in a graph, median", "most", "host, us", "graph, us")


def shim():
    """tests/native/shim_kernel_bindings.cpp and the call of test_shim_mvn_cdf.py."""
    for folder in (TESTS, TESTS / "native"):
        sys.path.insert(0, str(folder))
    import native_build
    import test_shim_mvn_cdf

    isa = next(isa for isa in ("avx2", "generic") if not native_build.missing_features(isa))
    return native_build.load("shim_kernel_bindings.cpp", isa), test_shim_mvn_cdf.by_kernels


def launches(native, by_kernels, case, **how):
    """Of a call with one row, and its answer."""
    before = native.launches()
    upper, cov = (torch.from_numpy(x)[None] for x in (case.upper, case.cov))
    prob = by_kernels(native, upper, cov, abs_tol=1e-3, max_points=2**20, **how).prob
    return native.launches() - before, float(prob[0])


def measure(n, seeds):
    native, by_kernels = shim()
    by_host, in_graph = [], []
    for case in classifiers.classifier_problems(n, seeds, 0):
        host, answer = launches(native, by_kernels, case, host_lag=None)
        graph, same = launches(native, by_kernels, case, captured=True)
        assert same == answer, (n, case.name)
        by_host.append(host)
        in_graph.append(graph)
    median, most = statistics.median(in_graph), max(in_graph)
    times = (HOST_US * max(by_host), NODE_US * median)
    return dict(zip(NAMES, (n, seeds, max(by_host), median, most, *times), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", default="9,40,99", help="dimensions, comma separated")
    parser.add_argument("--seeds", type=int, default=8, help="problems of each")
    args = parser.parse_args()
    rows = [measure(int(n), args.seeds) for n in args.n.split(",")]
    lines = [
        f"Launches of one call with one row, abs_tol 1e-3; {HOST_US} us a launch by the host and",
        f"{NODE_US} us a kernel in a graph, as reckoned, without the kernels' own work.",
        "",
        "| " + " | ".join(NAMES) + " |",
        "| " + " | ".join("---" for _ in NAMES) + " |",
        *("| " + " | ".join(f"{value:.3g}" for value in row.values()) + " |" for row in rows),
    ]
    cuda_prediction.write(
        RESULTS, "mvn_cdf's launches", "cuda_launches", {"rows": rows}, lines, counted="launches"
    )


if __name__ == "__main__":
    main()
