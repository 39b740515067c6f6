"""Seconds by phase on a GPU: the device's, without a wait of the host between phases."""

import time

import torch
from test_cuda import cuda  # noqa: F401

import mvnrob
from mvnrob.meter import Meter


def test_phases_are_the_device_s(cuda):  # noqa: F811
    meter = Meter(1, torch.device("cuda"))
    a = torch.randn(4096, 4096, device="cuda")
    a @ a
    torch.cuda.synchronize()
    start = time.perf_counter()
    with meter.clock("forward"):
        for _ in range(50):
            a @ a
    launched = time.perf_counter() - start
    with meter.clock("vjp"):
        for _ in range(25):
            a @ a
    seconds = meter.cost().seconds
    wall = time.perf_counter() - start
    assert launched < 0.5 * wall
    assert seconds["forward"] + seconds["vjp"] <= 1.05 * wall
    assert 1.5 < seconds["forward"] / seconds["vjp"] < 2.7


def test_phases_of_a_call_fill_it(cuda):  # noqa: F811
    """40 classes and a wide input: every phase has work."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(2000, 500), torch.nn.ReLU(), torch.nn.Linear(500, 60)
    )
    model, x = model.eval().cuda(), torch.rand(16, 2000, device="cuda")
    call = lambda: mvnrob.robustness(model, x, 0.01, screen="sketch")
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    seconds = call().cost.seconds
    torch.cuda.synchronize()
    wall = time.perf_counter() - start
    assert all(v > 0 for v in seconds.values()), seconds
    assert 0.5 * wall < sum(seconds.values()) <= 1.01 * wall
