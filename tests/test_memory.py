"""Peak memory of robustness, as the operating system counts it, against its byte budget."""

import os
import subprocess
import sys

import pytest

#: Prints the growth of the resident set in MiB over each call, largest first seen.
SCRIPT = """
import threading, time, torch, warnings
from torch import nn
from mvnrob import argmax_probabilities, robustness

warnings.simplefilter("ignore")
torch.set_num_threads(1)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(40_000, 64), nn.Tanh(), nn.Linear(64, 500)).eval()
net.requires_grad_(False)
x = torch.randn(4, 40_000)
small = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 500)).eval()
for options in ({}, {"screen": "none", "head": "off"}):  # what is loaded once
    robustness(small, x[:2, :8], 0.1, **options)

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

budget = 48 * 2**20
for options in (
    {"screen": "exact", "head": "off"},
    {"screen": "none", "head": "off"},
    {"screen": "exact"},
    {},
    {"method": "taylor_mvs", "head": "off"},
    {"method": "mmse", "n_samples": 4},
    {"method": "mmse", "n_samples": 16},
):
    print(growth(lambda: robustness(net, x, 0.02, max_bytes=budget, **options)), options)
print(growth(lambda: argmax_probabilities(net, x[:1], 0.02, max_bytes=budget)), "argmax")
roomy = dict(screen="exact", head="off")
print(growth(lambda: robustness(net, x, 0.02, **roomy)), "default budget")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_peak_memory_stays_below_the_budget():
    """500 rows of 40,000 numbers are 76 MiB an input, 305 MiB in all; the budget is 48 MiB."""
    # blocks of 64 KiB and more go back to the system when they are freed: what is counted is in use
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True, text=True, check=True, timeout=600, env=environment,
    )  # fmt: skip
    lines = [line.split(" ", 1) for line in run.stdout.splitlines()]
    *limited, (roomy, _) = [(float(grown), what) for grown, what in lines]
    assert len(limited) == 8
    for grown, what in limited:
        assert grown <= 48, what
    assert limited[0][0] > 10 and roomy > 150, "the reading must see what is allocated"
