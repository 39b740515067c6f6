"""How GPU time is taken: events round one call, a cold L2 cache before each, median and quartiles.

With a CPU device the same functions take wall time, so that the benchmark itself can be tried
without a GPU.
"""

import statistics
import time

import torch


class Budget:
    """Wall time left for a benchmark."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def left(self):
        return self.end - time.monotonic()


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Flush:
    """Empties the L2 cache by writing a buffer of twice its size (256 MB where it is not told)."""

    def __init__(self, device):
        self.buffer = None
        if device.type == "cuda":
            size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
            self.buffer = torch.empty(2 * size or 2**28, dtype=torch.uint8, device=device)

    def __call__(self):
        if self.buffer is not None:
            self.buffer.zero_()


def once(call, device, flush):
    """Seconds of call(), from the device's first work to its last, and what it returned."""
    flush()
    if device.type != "cuda":
        start = time.perf_counter()
        answer = call()
        return time.perf_counter() - start, answer
    # The host prepares the call while the device still writes the flush, as in a busy program; a
    # call that the host cannot keep fed shows its gaps all the same.
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    answer = call()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end), answer


def measure(call, device, repeats=9, warm_up=2, budget_s=10.0):
    """Median and quartiles of the seconds of call(), and its last answer.

    One run at least, even if the warm-up spent the budget.
    """
    flush, seconds = Flush(device), []
    end = time.monotonic() + budget_s
    for _ in range(warm_up):
        answer = call()
        synchronize(device)
        if time.monotonic() > end:
            break
    while len(seconds) < repeats and (not seconds or time.monotonic() < end):
        took, answer = once(call, device, flush)
        seconds.append(took)
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {
        "median_s": statistics.median(seconds),
        "q1_s": quartiles[0],
        "q3_s": quartiles[2],
        "repeats": len(seconds),
    }, answer


def copy_tb_s(device):
    """TB/s of a copy of 1 GiB from memory to memory, read and written together."""
    source = torch.zeros(2**28, device=device)
    into = torch.empty_like(source)
    timing, _ = measure(lambda: into.copy_(source), device, repeats=7, budget_s=1)
    return 1e-12 * 2 * source.nbytes / timing["median_s"]


def wall(call, device, repeats=9, warm_up=2):
    """Median seconds from the call to its answer being ready, host included."""
    seconds = []
    for i in range(warm_up + repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        if i >= warm_up:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def capture(call):
    """A CUDA graph of call() and the tensors that a replay fills."""
    # torch asks for warm-up on another stream than the capture's.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call()
    return graph, answer
