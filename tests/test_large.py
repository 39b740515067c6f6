"""mvn_cdf with thousands of variables: memory, time, 64-bit sizes."""

import json
import mmap
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from mvnrob import Status, mvn_cdf

N = 4096

# Prints by how much the largest resident memory grows in a call (MiB), its seconds on the processor,
# the answer and its error.
PROGRAM = """
import json, resource, sys, time, torch
from mvnrob import mvn_cdf
n, kind = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
if kind == "factor":  # X_i = (Z_i mod 64 + Z_0) / sqrt 2: groups of equal variables, 1 / 65
    matrix = torch.zeros(n, 65)
    matrix[:, 64] = 1
    matrix[torch.arange(n), torch.arange(n) % 64] = 1
else:
    matrix = torch.full((n, n), 0.5).fill_diagonal_(1)
given = {kind: matrix}
upper = torch.zeros(n)
mvn_cdf(torch.zeros(5), torch.eye(5))  # what is loaded once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
r = mvn_cdf(upper, **given, abs_tol=float(sys.argv[3]), return_info=True)
seconds = time.process_time() - start
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps([grown, seconds, float(r.prob), float(r.error), int(r.status)]))
"""


@pytest.mark.parametrize(
    "kind, abs_tol, mebibytes",
    [
        # 512 pivots: the factor's columns and as much of float32 coefficients, 24 MiB; the matrix
        # itself has 64.
        ("cov", 1e-2, 60),
        # 2048 pivots at most.
        ("cov", 1e-3, 180),
        # The rows in float64 and 65 columns: a covariance would be 128 MiB.
        ("factor", 1e-3, 20),
    ],
)
def test_memory_and_time(kind, abs_tol, mebibytes):
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(N), kind, str(abs_tol)],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, seconds, prob, error, status = json.loads(out.stdout)
    truth = 1 / 65 if kind == "factor" else 1 / (N + 1)
    assert abs(prob - truth) <= error <= abs_tol and status <= Status.EXACT
    assert grown <= mebibytes
    assert seconds <= 60  # measured: 3


def test_sizes_beyond_32_bits():
    """The last variables of a matrix of 2^31 entries; its pages are allocated when they are touched."""
    n = 46_400
    try:
        memory = mmap.mmap(-1, 4 * n * n)
    except OSError:
        pytest.skip("not enough address space")
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    cov = np.frombuffer(memory, np.float32).reshape(n, n)
    np.fill_diagonal(cov, 1)
    cov[-6:, -6:] = 0.5 + 0.5 * np.eye(6)
    upper = torch.full((n,), torch.inf)
    upper[-6:] = 0
    r = mvn_cdf(upper, torch.from_numpy(cov), return_info=True)
    assert r.n_active == 6
    assert abs(float(r.prob) - 1 / 7) <= float(r.error)


def test_a_factor_of_many_rows():
    """A million variables of which a handful matters: the others are never looked at in pairs."""
    n = 1_000_000
    factor = torch.zeros(n, 3, dtype=torch.float64)
    factor[:, 0] = 1
    factor[::2, 1] = 1
    factor[::3, 2] = -1
    upper = torch.full((n,), 15.0, dtype=torch.float64)
    few = torch.tensor([1, 2, 3, 6, 600_000, 999_999])
    upper[few] = torch.tensor([0.5, 1, 0.3, 1.5, 1.5, 0.4]).double()
    start = time.process_time()
    whole = mvn_cdf(upper, factor=factor, abs_tol=1e-4, return_info=True)
    assert time.process_time() - start < 20  # measured: .2
    alone = mvn_cdf(upper[few], factor=factor[few], abs_tol=1e-5, seed=1, return_info=True)
    assert whole.n_active == 6
    assert (whole.prob - alone.prob).abs() <= whole.error + alone.error
