"""Peak memory of robustness, as the operating system counts it, against its byte budget."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mvnrob import robustness

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")

#: ``growth(call)``: the growth of the resident set in MiB over a call, largest first seen.
PREAMBLE = """
import threading, time, torch, warnings
from torch import nn
from mvnrob import argmax_probabilities, robustness

warnings.simplefilter("ignore")
torch.set_num_threads(1)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def growth(call):
    start, peak, done = resident(), [0.0], threading.Event()
    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.001)
    thread = threading.Thread(target=watch)
    thread.start()
    call()
    done.set()
    thread.join()
    return peak[0] - start


small = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 500)).eval()
start = torch.randn(2, 8)
for options in ({}, {"screen": "none", "head": "off"}, {"method": "mmse"}, {"method": "logit_moments"}):
    robustness(small, start, 0.1, **options)  # what is loaded once
argmax_probabilities(small, start, 0.1)
budget = 48 * 2**20
"""

LARGE_INPUTS = """
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(40_000, 64), nn.Tanh(), nn.Linear(64, 500)).eval()
net.requires_grad_(False)
x = torch.randn(4, 40_000)
for rows, options in (
    (4, {"screen": "exact", "head": "off"}),
    (2, {"screen": "none", "head": "off"}),  # thousands of backward passes for each
    (4, {"screen": "exact"}),
    (4, {}),
    (4, {"method": "taylor_mvs", "head": "off"}),
    (4, {"method": "mmse", "n_samples": 4}),
    (4, {"method": "mmse", "n_samples": 16}),
):
    print(growth(lambda: robustness(net, x[:rows], 0.02, max_bytes=budget, **options)), options)
print(growth(lambda: argmax_probabilities(net, x[:1], 0.02, max_bytes=budget)), "argmax")
roomy = dict(screen="exact", head="off")
print(growth(lambda: robustness(net, x, 0.02, **roomy)), "default budget")
"""

MANY_CLASSES = """
def net(inputs, width, classes):
    torch.manual_seed(0)
    layers = nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, classes)
    return nn.Sequential(*layers).eval().requires_grad_(False)

classes = net(64, 64, 20_000)
x = torch.randn(200, 64)
for rows, sigma, options in (
    (200, [0.01, 0.1, 0.3], {"method": "mc", "n_samples": 8}),
    (200, [0.01, 0.1, 0.3], {"method": "softmax"}),
    (12, [0.01, 0.1, 0.3], {"method": "taylor_mvs"}),
    (2, 0.1, {"method": "logit_moments", "n_samples": 10}),
    (8, 0.003, {}),
    (4, 0.003, {"screen": "sketch"}),
):
    call = lambda: robustness(classes, x[:rows], sigma, max_bytes=budget, **options)
    print(growth(call), options)
print(growth(lambda: argmax_probabilities(classes, x[:4], 0.003, max_bytes=budget)), "argmax")
for width, classes in ((600, 20_000), (30_000, 300)):
    head, some = net(32, width, classes), torch.randn(2, 32)
    call = lambda: robustness(head, some, 0.003, screen="exact", max_bytes=2 * budget)
    print(growth(call) / 2, f"a head of {width} features and {classes} classes")
"""


def grown(script: str) -> list[tuple[float, str]]:
    # blocks of 64 KiB and more go back to the system when they are freed: what is counted is in use
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    run = subprocess.run(
        [sys.executable, "-c", PREAMBLE + script],
        capture_output=True, text=True, check=True, timeout=600, env=environment,
    )  # fmt: skip
    lines = [line.split(" ", 1) for line in run.stdout.splitlines()]
    return [(float(size), what) for size, what in lines]


@LINUX
def test_peak_memory_stays_below_the_budget():
    """500 rows of 40,000 numbers are 76 MiB an input, 305 MiB in all; the budget is 48 MiB."""
    *limited, (roomy, _) = grown(LARGE_INPUTS)
    assert len(limited) == 8
    for size, what in limited:
        assert size <= 48, what
    assert limited[0][0] > 10 and roomy > 150, "the reading must see what is allocated"


@LINUX
def test_peak_memory_of_many_classes_stays_below_the_budget():
    """Without chunks the counts alone are 96 MB, softmax's terms several times that; one covariance of
    20,000 classes is 3.2 GB, and a float64 copy of either head 72 to 96 MB."""
    limited = grown(MANY_CLASSES)
    assert len(limited) == 9
    for size, what in limited:
        assert 0 < size <= 48, what
    assert max(size for size, _ in limited) > 10, "the reading must see what is allocated"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"screen": "none", "head": "off"},
            "the covariances of the 3000 classes that matter, 4320",
        ),
        ({"screen": "none"}, "the factor of the 3000 classes that matter, 28"),
        (
            {"method": "logit_moments", "n_samples": 3000},
            "the margins of 3000 copies, 1008000000 bytes for one input, got 1000000",
        ),
    ],
)
def test_what_cannot_fit_is_refused_in_words(options, message):
    """Instead of taking gigabytes that were not granted."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 200), nn.Tanh(), nn.Linear(200, 3000)).eval()
    with pytest.raises(ValueError, match=f"^robustness: max_bytes must hold {message}"):
        robustness(net, torch.randn(1, 8), 0.1, max_bytes=1_000_000, **options)
