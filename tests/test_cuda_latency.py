"""bench/cuda_latency.py on control bits and loops written out here."""

import sys
from pathlib import Path

import pytest

# Last: an installed mvnrob goes before the source tree, which has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench import cuda_latency, sass
from bench.cuda_latency import LATENCY, Control

# Of an sm_90 kernel, with nvdisasm -hex: waits, a scoreboard of its own, both halves of the word.
LISTING = """
.text.canned:
        /*0000*/                   S2R R0, SR_TID.X ;          /* 0x0000000000007919 */
                                                               /* 0x000e6e0000002100 */
        /*0010*/                   LDC R1, c[0x0][0x28] ;      /* 0x00000a00ff017b82 */
                                                               /* 0x000fe20000000800 */
        /*0020*/                   UIMAD.WIDE.U32 UR4, UR6, UR8, UR4 ; /* 0x00000008060472a5 */
                                                               /* 0x004fc8000f8e0004 */
"""


def test_control_bits():
    code, _ = sass.read(LISTING)["canned"]
    assert [Control.of(x.control) for x in code] == [
        Control(stall=7, write=1, read=7, wait=0),
        Control(stall=1, write=7, read=7, wait=0),
        Control(stall=4, write=7, read=7, wait=0b000100),
    ]


def loop(*lines):
    """Steps of (opcode, operands, stall, written counter, bits waited for); the last is a branch back."""
    code = [
        sass.Instruction("", o, x, (("a.h", i),), stall | 7 << 8 | write << 5 | wait << 11)
        for i, (o, x, stall, write, wait) in enumerate(lines)
    ]
    graph = type("Graph", (), {"code": code})
    return cuda_latency.steps_of(graph, code, {})


def cycles(steps, warps=1):
    return cuda_latency.simulate(steps, warps)[0]


def test_fixed_latency_is_hidden_by_other_warps():
    steps = loop(*[("FFMA", "R0, R1, R2, R0", 4, 7, 0)] * 10)
    assert [cycles(steps, w) for w in (1, 2, 4)] == [40, 20, 10]
    # `alu` has half the lanes.
    assert cycles(loop(*[("LOP3.LUT", "R0, R1, R2, R0", 1, 7, 0)] * 10), 4) == 20


def test_a_load_is_waited_for_where_it_is_used():
    use = ("FADD", "R0, R4, R0", 4, 7, 1)
    load = ("LDG.E", "R4, [R2.64]", 1, 0, 0)
    idle = [("FFMA", "R8, R1, R2, R8", 1, 7, 0)] * 20
    at_once, waits = cuda_latency.simulate(loop(load, use, *idle))
    assert at_once == LATENCY["memory"] + 4 + len(idle)
    assert max(waits, key=waits.get)[1].x.base == "LDG"
    assert cycles(loop(load, *idle, use)) == LATENCY["memory"] + 4
    # Each warp has its own; four of a scheduler have something to do meanwhile.
    assert cycles(loop(load, *idle, use), 4) < cycles(loop(load, *idle, use)) / 2


def test_copies_in_the_background_are_counted_down():
    """Waiting for all but one of them takes two trips for the time of one."""
    copy = ("LDGDEPBAR", "", 1, 0, 0)
    pause = ("FFMA", "R8, R1, R2, R8", 10, 7, 0)
    none, one = (cycles(loop(copy, pause, ("DEPBAR.LE", f"SB0, {n}", 4, 7, 0))) for n in (0, 1))
    assert none == LATENCY["memory"] + 4
    assert one == pytest.approx(none / 2, rel=0.05)


def test_sums_of_a_tensor_core_wait_for_each_other():
    chain = [("HMMA.16816.F32", "R0, R4, R8, R0", 6, 7, 0)] * 4
    apart = [("HMMA.16816.F32", f"R{12 + 4 * i}, R4, R8, R{12 + 4 * i}", 6, 7, 0) for i in range(8)]
    assert cycles(loop(*chain)) == 4 * LATENCY["tensor"]
    assert cycles(loop(*apart)) == 8 * 6
    assert cycles(loop(*apart), 2) == 8 * 6  # the unit


def test_barriers_hold_the_warps_of_a_block_together():
    """Two warps would fill each other's waits; at the same place they want the same unit."""
    busy = [("MUFU.RCP", "R1, R2", 1, 0, 0)] * 8 + [("FADD", "R3, R1, R3", 4, 7, 1)]
    steps = loop(*busy, ("BAR.SYNC", "0x0", 5, 7, 0), *[("FFMA", "R8, R1, R2, R8", 8, 7, 0)] * 8)
    apart, together = (
        cuda_latency.simulate(steps, 2, together=together)[0] for together in (False, True)
    )
    assert together > apart + 20
