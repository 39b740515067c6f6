"""bench/sass.py on a disassembly written out here, and the floors on their committed counts."""

import json
import sys
from pathlib import Path

import pytest

# Last: an installed mvnrob goes before the source tree, which has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench import cuda_floor, cuda_floor_tensor, cuda_floor_tensor_double, sass

# A loop with a branch (one way with a reciprocal) around a loop of two multiply-adds.
LISTING = """
.text.canned:
.L_x_9:
	//## File "/x/launcher.h", line 13
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
	//## File "/x/a.h", line 7 inlined at "/x/launcher.h", line 13
	//## File "/x/launcher.h", line 13
        /*0010*/                   LDG.E R1, desc[UR4][R2.64] ;
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/                   MUFU.RCP R3, R1 ;
        /*0040*/                   FMUL R3, R3, R1 ;
.L_x_1:
	//## File "/x/a.h", line 9 inlined at "/x/launcher.h", line 13
	//## File "/x/launcher.h", line 13
        /*0050*/                   FFMA R4, R3, R1, R4 ;
        /*0060*/                   DFMA R6, R8, R8, R6 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
	//## File "/x/a.h", line 7 inlined at "/x/launcher.h", line 13
	//## File "/x/launcher.h", line 13
        /*0080*/                   IADD3 R0, R0, 0x1, RZ ;
        /*0090*/               @P2 BRA `(.L_x_0) ;
        /*00a0*/                   EXIT ;
"""


def test_loops_and_ways_of_a_listing():
    graph = sass.Graph(*sass.read(LISTING)["canned"])
    outer, inner = graph.loops
    assert (sass.place(graph, outer), outer.depth) == ("a.h:7", 0)
    assert (sass.place(graph, inner), inner.depth) == ("a.h:9", 1)
    counted = sass.summary(graph.trip(inner))
    assert (counted["instructions"], counted["multiply_adds"]) == (3, 2)
    assert (counted["fp32"], counted["fp64"], counted["control"]) == (1, 1, 1)
    longest, plain = sass.summary(graph.trip(outer)), sass.summary(graph.trip(outer, mufu=0))
    assert (longest["instructions"], longest["mufu"], longest["global"]) == (6, 1, 1)
    assert (plain["instructions"], plain["mufu"], plain["alu"]) == (4, 0, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floor_counts_all_multiply_adds(dtype):
    for n in (9, 99, 999):
        _, times = cuda_floor.work(n, 0, dtype)
        # What the triangles of the draws do not: the rest of n^2 / 2, padded.
        done = times["panel"] + times.get("product", 0)
        assert n * (n - 16) / 2 <= done <= n * (n + 80) / 2
        slow, fast = (cuda_floor.problems_per_s(n, p, dtype, 132, 1.98e9) for p in (10_000, 1000))
        assert fast == pytest.approx(10 * slow)
        peak = 132 * 128 * 1.98e9 / (2 if dtype == "float64" else 1)
        assert slow < peak / (10_000 * n * n / 2)


def test_floor_of_the_tensor_sampler():
    """The committed counts have the HMMA that the products need, and no unit does better than it can."""
    counts = json.loads(cuda_floor_tensor.RESULTS.read_text())["counts"]
    assert counts["product"]["tensor"] == cuda_floor_tensor.HMMA == 3 * 64 * 64 * 16 // 2048
    assert cuda_floor_tensor.tensor_pivots() == 33
    for n in (cuda_floor_tensor.tensor_pivots("kTensorPivotsOfOneBlock"), 256, 999):
        times, slabs = cuda_floor_tensor.work(n, 0)
        done = 64 * 16 * slabs + times["panel"] * 16
        assert n * (n - 16) / 2 <= done <= n * (n + 80) / 2
        per_s = cuda_floor_tensor.problems_per_s(n, 10_000, 132, 1.98e9)
        assert per_s < 132 * 4 * 512 * 1.98e9 / (3 * 64 * 16 * slabs * 10_000)
        # Chosen, without a second block beside it, where its floor is the higher one.
        assert per_s > cuda_floor.problems_per_s(n, 10_000, "float32", 132, 1.98e9)
    alone = cuda_floor_tensor.seconds(999, 512, counts, alone=True)
    assert alone["issue"] == pytest.approx(
        66 * cuda_floor_tensor.seconds(999, 512, counts)["issue"]
    )


def test_floor_of_the_float64_tensor_sampler():
    """The same, and the floor is the higher one wherever a row is given to this sampler."""
    stored = json.loads(cuda_floor_tensor_double.RESULTS.read_text())
    counts, scalar = stored["counts"], stored["scalar"]
    assert counts["product"]["tensor"] == cuda_floor_tensor_double.DMMA == 64 * 32 * 8 // 1024
    for n in (256, 300, 999):
        times, slabs = cuda_floor_tensor_double.work(n, 0)
        done = 64 * 8 * slabs + times["panel"] * 16
        assert n * (n - 16) / 2 <= done <= n * (n + 80) / 2
        per_s = cuda_floor_tensor_double.problems_per_s(n, 10_000, 132, 1.98e9)
        assert per_s < 132 * 4 * 32 * 1.98e9 / (64 * 8 * slabs * 10_000)
    points = cuda_floor_tensor_double.BLOCK_POINTS
    clock = 132 * 1.98e9
    for pivots in (96, 128, 200, 256, 999):
        for completed in (0, 1, 80, 128, 500):
            if not cuda_floor_tensor_double.takes(pivots, completed):
                continue
            busy = cuda_floor_tensor_double.seconds(pivots, points, counts, completed)
            before = cuda_floor_tensor_double.scalar_cycles(pivots, completed, scalar)
            assert clock * max(busy.values()) < before, (pivots, completed)
    assert not cuda_floor_tensor_double.takes(95, 500)
    assert not cuda_floor_tensor_double.takes(128, 63)
