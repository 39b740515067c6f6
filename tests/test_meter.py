"""Seconds by phase: every moment has one, on the host's clock and on a device's events."""

import time

import pytest
import torch

import mvnrob
from mvnrob import meter as meter_module
from mvnrob.meter import PHASES, Meter

CPU = torch.device("cpu")


class Device:
    """A device that takes its time: what is launched runs one after the other, the host goes on."""

    def __init__(self, monkeypatch):
        self.now, self.waits = 0.0, 0
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing
                self.at = None

            def record(self, stream):
                assert stream == "the current one"
                self.at = device.now

            def synchronize(self):
                device.waits += 1

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "the current one")

    def meter(self):
        """Its passes are counted on the CPU: there is no such device."""
        meter = Meter.__new__(Meter)
        meter._seconds = dict.fromkeys(PHASES, 0.0)
        meter._passes = Meter(2, CPU)._passes
        meter._device, meter._within, meter._marks = torch.device("cuda"), ["other"], []
        meter._mark()
        return meter


def test_inner_phase_is_taken_from_the_outer_one(monkeypatch):
    device = Device(monkeypatch)
    meter = device.meter()
    device.now += 1
    with meter.clock("sketch"):
        device.now += 2
        with meter.clock("jvp"):
            device.now += 4
        device.now += 8
        with pytest.raises(RuntimeError, match="fails"), meter.clock("vjp"):
            device.now += 16
            raise RuntimeError("fails")
    device.now += 32
    assert device.waits == 0  # the host waits at the end alone
    seconds = meter.cost().seconds
    assert device.waits == 1
    assert {k: v for k, v in seconds.items() if v} == {
        "sketch": 10, "jvp": 4, "vjp": 16, "other": 33
    }  # fmt: skip
    device.now += 1
    assert sum(meter.cost().seconds.values()) == 64  # and goes on


def test_marks_are_read_when_there_are_many(monkeypatch):
    monkeypatch.setattr(meter_module, "_MARKS", 10)
    device = Device(monkeypatch)
    meter = device.meter()
    for _ in range(100):
        with meter.clock("forward"):
            device.now += 1
        device.now += 0.5
        assert len(meter._marks) <= 10
    seconds = meter.cost().seconds
    assert (seconds["forward"], seconds["other"]) == (100, 50)


def test_phases_of_a_call_fill_it():
    """Of a network that is slow forward, with a custom function that is slow backward."""

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            time.sleep(0.02)
            return x * 1.0

        @staticmethod
        def backward(ctx, gradient):
            time.sleep(0.01)
            return gradient * 1.0

    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    cost = mvnrob.robustness(
        lambda x: Slow.apply(x) @ weight.T, torch.ones(2, 3), 0.1, check="off"
    ).cost  # fmt: skip
    wall = time.perf_counter() - start
    seconds = cost.seconds
    assert tuple(seconds) == PHASES and min(seconds.values()) >= 0
    assert 0.8 * wall - 0.02 < sum(seconds.values()) <= wall
    # one forward pass of the graph's size, one for the answers, one with a graph; five backward
    assert seconds["forward"] >= 0.06 and seconds["vjp"] >= 0.05
    assert seconds["jvp"] == 0 and seconds["covariance"] > 0 and seconds["cdf"] > 0
    assert cost.seconds_network == seconds["forward"] + seconds["vjp"]
    assert cost.seconds_cdf == seconds["covariance"] + seconds["cdf"]
