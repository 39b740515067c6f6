"""Draws from a counter: the same as torch's functions give, whatever computes them, and normal."""

import math
import os
import subprocess
import sys

import pytest
import torch
from scipy import stats

import mvnrob
from mvnrob._standard_normal import reference, splitmix64, standard_normal
from mvnrob.noise import CDF, DIRECTIONS, SAMPLES, row_keys

# Either side of a pack, of a block of words, of a stretch for a thread.
DIMS = (1, 2, 7, 15, 16, 17, 511, 512, 513, 1001, 8191, 8192, 8193, 20_001)


def check_reference():
    keys = row_keys(3, SAMPLES, torch.arange(5))
    for dim in DIMS:
        e, known = standard_normal(keys, 2, 3, dim, torch.float32), reference(keys, 2, 3, dim)
        assert e.shape == (5, 3, dim) and e.dtype == torch.float32
        # The inverse is known to 1e-13: hardly a number is rounded to the other side.
        assert (e - known).abs().max() <= 5e-7
        assert (e != known).float().mean() <= 1e-4


def levels():
    names = ["generic", "avx2", "avx512"]
    return names[: names.index(mvnrob.simd_level()) + 1]


@pytest.mark.parametrize("level", levels())
def test_instruction_sets(level):
    script = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
    script += "import test_standard_normal as t\n"
    script += f"assert t.mvnrob.simd_level() == {level!r}; t.check_reference()"
    environment = {**os.environ, "MVNROB_SIMD": level, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_splitmix64_is_the_published_one():
    """The first numbers of the generator with the seeds 0 and 1234567."""
    golden = 0x9E3779B97F4A7C15
    known = {
        0: (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F),
        1234567: (6457827717110365317, 3203168211198807973, 9817491932198370423),
    }
    for seed, numbers in known.items():
        states = [(seed + k * golden) % 2**64 for k in (1, 2, 3)]
        signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
        assert [n % 2**64 for n in splitmix64(signed).tolist()] == list(numbers)


def test_threads_do_not_change_a_bit():
    keys = row_keys(0, SAMPLES, torch.arange(3))
    threads = torch.get_num_threads()
    try:
        for dim in (3, 40_001):
            found = []
            for count in (1, 4):
                torch.set_num_threads(count)
                found.append(standard_normal(keys, 0, 7, dim, torch.float32))
            assert torch.equal(*found)
    finally:
        torch.set_num_threads(threads)


def test_draws_do_not_depend_on_chunks_or_dtype():
    keys = row_keys(3, SAMPLES, torch.arange(5))
    for dim in (1, 7, 64, 1001):
        whole = standard_normal(keys, 0, 12, dim, torch.float32)
        parts = [
            standard_normal(keys[[row]], at, 3, dim, torch.float32)
            for row in range(5)
            for at in (0, 3, 6, 9)
        ]
        assert torch.equal(torch.cat(parts).reshape(5, 12, dim), whole)
        double = standard_normal(keys, 0, 12, dim, torch.float64)
        assert torch.equal(double, whole.double())
    every_other = row_keys(3, SAMPLES, torch.arange(10))[::2]  # keys need not be contiguous
    assert torch.equal(
        standard_normal(every_other, 0, 2, 9, torch.float32),
        standard_normal(every_other.clone(), 0, 2, 9, torch.float32),
    )


def test_draws_are_standard_normal_and_independent():
    index = torch.arange(200)
    e = standard_normal(row_keys(0, SAMPLES, index), 0, 50, 99, torch.float64)
    assert stats.kstest(e.flatten().numpy()[::7], "norm").pvalue > 1e-4
    count = e.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((e**power).mean() - mean) < 5 * math.sqrt(variance / count)
    others = [
        standard_normal(row_keys(0, SAMPLES, index + 1), 0, 50, 99, torch.float64),
        standard_normal(row_keys(1, SAMPLES, index), 0, 50, 99, torch.float64),
        standard_normal(row_keys(0, CDF, index), 0, 50, 99, torch.float64),
        standard_normal(row_keys(0, SAMPLES, index), 1, 50, 99, torch.float64),
        e.roll(1, dims=2),
        e.roll(50, dims=2),  # the halves of a word
    ]
    for other in others[:3] + others[4:]:
        # products of independent normals have mean 0 and variance 1, and so have those of squares
        assert abs((e * other).mean()) < 5 / math.sqrt(count)
        assert abs(((e**2 - 1) * (other**2 - 1)).mean()) < 5 * 2 / math.sqrt(count)
    assert torch.equal(others[3][:, :-1], e[:, 1:]), (
        "draw 1 must not depend on where a chunk starts"
    )


def test_tails_and_middle():
    """Counts beyond 4.5 and within 1e-4, of ten million numbers, and the ends of what 32 bits reach."""
    e = standard_normal(row_keys(7, DIRECTIONS, torch.arange(10)), 0, 10, 100_001, torch.float32)
    for inside, p in ((e > 4.5, stats.norm.sf(4.5)), (e < -4.5, stats.norm.sf(4.5)),
                      (e.abs() < 1e-4, 2 * stats.norm.pdf(0) * 1e-4)):  # fmt: skip
        expected = p * e.numel()
        assert abs(int(inside.sum()) - expected) < 5 * math.sqrt(expected)
    assert e.abs().max() <= 6.34
    assert bool((e != 0).all())


def test_plumbing():
    keys = row_keys(1, SAMPLES, torch.arange(4))
    op = torch.ops.mvnrob.standard_normal
    torch.library.opcheck(op.default, (keys, 3, 2, 11))
    compiled = torch.compile(standard_normal, backend="eager", fullgraph=True)
    assert torch.equal(
        compiled(keys, 0, 2, 9, torch.float64), standard_normal(keys, 0, 2, 9, torch.float64)
    )
    for given in ((keys[:0], 0, 2, 9), (keys, 0, 0, 9), (keys, 0, 2, 0)):
        assert op(*given).shape == (len(given[0]), *given[2:])
    for given, words in (
        ((keys.int(), 0, 1, 1), "keys must be int64 of shape"),
        ((keys[None], 0, 1, 1), "keys must be int64 of shape"),
        ((keys, -1, 1, 1), "first must be at least 0, got -1"),
        ((keys, 0, -1, 1), "count must be at least 0, got -1"),
        ((keys, 0, 1, -1), "dim must be at least 0, got -1"),
    ):
        with pytest.raises(RuntimeError, match=f"standard_normal: {words}"):
            op(*given)
