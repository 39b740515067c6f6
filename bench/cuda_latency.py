"""What the loops of a CUDA kernel wait for, by a model of one scheduler; needs no GPU.

python -m bench.cuda_latency KERNEL [--source FILE] [--loop FILE:LINE] [--mufu N] [--without FILE ...]
                             [--broadcast FILE:LINE ...] [--together] [--warps N ...]
                             [--memory CYCLES ...] [--top N]

Takes a trip of each loop (bench/sass.py: inner loops apart, the longest way or the longest with N
MUFU, around blocks that come from the files of --without) and lets some warps of one scheduler go
round it, each in order, one instruction of any warp a cycle. They wait as the control bits say that
the compiler puts into every instruction: cycles to the next one, and six counters of results (or
operands) under way; the bits are those of the public assemblers (CuAssembler, turingas), how long
what they count takes is assumed below. Prints cycles of a trip, in all and divided by the warps,
beside the busiest unit's, and what one and the most warps wait for: the instruction that is late.

--source is a .cu file or a cubin; --broadcast has lines whose wide loads from shared memory are the
same for all lanes; with --together a scheduler's warps meet at barriers; --memory is the latency of
loads from global memory: 41 is the L1 cache's, 263 the L2 cache's. Left out: warps elsewhere,
divergence, instruction caches, bank conflicts and queues. A prediction, whatever it prints.
"""

import argparse
from collections import Counter, defaultdict
from dataclasses import dataclass

from bench import sass

# Cycles from issue to result, for what the counters wait for: leads, none of them measured by us. L1,
# L2, shared memory: H100 after Luo et al. 2024 (arXiv:2402.13499), which has 479 for its DRAM; an SXM
# card under load has more. mma: m16n8k16 float16, the same and Abdelkhalik et al. 2022
# (arXiv:2208.11174, A100); the hardware waits for it, the compiler's counts end earlier. The others
# are guesses, after Jia et al. 2018 (arXiv:1804.06826: Volta).
LATENCY = {
    "memory": 41, "shared": 29, "constant": 30, "special": 25, "mufu": 22, "shuffle": 24, "tensor": 33,
    "fp64": 16, "operands": 12, "barrier": 20, "branch": 8,
}  # fmt: skip
L1, L2 = 41, 263
# Cycles for which an instruction of a warp keeps its unit of the scheduler; what is not named, one.
# As in bench/cuda_floor.py and its sisters; mma.sync of m16n8k16 reaches 62 % of the data sheet's 4 cycles (Luo et
# al. 2024), and the compiler spaces them by 6. The path of shared memory and L1 serves four schedulers.
COST = {
    "fp64": 2, "alu": 2, "imad": 2, "mufu": 8, "tensor": 6, "DMMA": 32, "shared": 4, "global": 4,
    "shuffle": 2,
}  # fmt: skip
QUEUED = ("mufu", "shared", "global", "shuffle")  # issue goes on while they are busy
# Times 32 bits for each lane of a load or store in shared memory; matrices of an LDSM.
WIDE = {"128": 4, "64": 2, "4": 4, "2": 2}
COUNTERS = 6


@dataclass(frozen=True)
class Control:
    """stall: cycles to the next instruction; write, read: the counter (7: none) of its result, of
    its operands; wait: a bit for each counter that must be zero before."""

    stall: int
    write: int
    read: int
    wait: int

    @classmethod
    def of(cls, bits):
        """Bits 105 .. 125 of an instruction: stall 4, yield 1, write 3, read 3, wait 6, reuse 4."""
        return cls(bits & 15, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63)


def registers(operand, count):
    name = operand.strip().lstrip("-|~").partition(".")[0].rstrip("|")
    first = int(name[1:]) if name.startswith("R") and name[1:].isdigit() else None
    return () if first is None else range(first, first + count)


class Step:
    """An instruction of the trip as the scheduler sees it."""

    def __init__(self, x, taken, latency, broadcast=()):
        self.x, self.control, self.kind = x, Control.of(x.control), x.kind
        base = x.base
        self.stall = max(1, self.control.stall) + (latency["branch"] if taken else 0)
        self.is_barrier = base == "BAR"
        self.stall += latency["barrier"] if self.is_barrier else 0
        width = 1
        if self.kind == "shared" and not any(f"{f}:{n}" in broadcast for f, n in x.frames):
            width = max((WIDE.get(part, 1) for part in x.opcode.split(".")), default=1)
        self.cost = COST.get(base, COST.get(self.kind, 1)) * width
        named = {"LDC": "constant", "ULDC": "constant", "LDGDEPBAR": "memory"}.get(base, self.kind)
        named = "memory" if named in ("global", "local") else named
        self.latency = latency.get(named, latency["special"])
        self.operands_read = latency["operands"]
        # DEPBAR.LE SB0, 1: at most so many of a counter are under way.
        self.at_most = None
        if base == "DEPBAR":
            counter, number = x.operands.replace("SB", "").split(",")[:2]
            self.at_most = int(counter), int(number, 0)
        # HMMA's sum is waited for by the hardware, whether it is added to or read.
        operands = x.operands.split(",")
        self.mma = registers(operands[0], 4) if self.kind == "tensor" else ()
        widths = (2, 4, 2, 4) if self.kind == "tensor" else (1,) * len(operands)
        self.uses = {r for o, n in zip(operands, widths, strict=True) for r in registers(o, n)}

    def line(self, file):
        frames = self.x.frames
        own = [f"{f}:{n}" for f, n in frames if f == file]
        return " < ".join(dict.fromkeys([f"{f}:{n}" for f, n in frames[:1]] + own[:1]))


def steps_of(graph, trip, latency, broadcast=()):
    at = {id(x): i for i, x in enumerate(graph.code)}
    order = [at[id(x)] for x in trip]
    after = [*order[1:], order[0]] if order else []
    latency = LATENCY | latency
    return [
        Step(x, b != i + 1 and x.base in ("BRA", "BRX", "JMP"), latency, broadcast)
        for x, i, b in zip(trip, order, after, strict=True)
    ]


class Warp:
    def __init__(self, start):
        self.at, self.trips, self.next, self.last = 0, 0, start, start - 1
        self.under_way = [[] for _ in range(COUNTERS)]  # of each counter: (when done, step)
        self.mma = {}  # register: when its sum is there, step
        self.barriers = 0


def earliest(warp, step, free, open_at=0):
    """When the step may issue, and the bounds on the way: [(cycle, why)]."""
    bounds = [(warp.next, ("stall", None)), (open_at, ("barrier", None))]
    wanted = [(c, 0) for c in range(COUNTERS) if step.control.wait >> c & 1]
    for counter, number in wanted + ([step.at_most] if step.at_most else []):
        done = sorted(warp.under_way[counter], key=lambda x: x[0])
        if len(done) > number:
            bounds.append((done[-number - 1][0], ("wait", done[-number - 1][1])))
    for r in step.uses & warp.mma.keys():
        bounds.append((warp.mma[r][0], ("wait", warp.mma[r][1])))
    if step.kind in COST and step.kind not in QUEUED:
        bounds.append((free[step.kind], ("unit", step)))
    return max(cycle for cycle, _ in bounds), bounds


def issue(warp, step, now, free):
    start = now
    if step.kind in COST:
        start = max(now, free[step.kind])
        free[step.kind] = start + step.cost
    for counter in range(COUNTERS):
        warp.under_way[counter] = [x for x in warp.under_way[counter] if x[0] > now]
    for counter, done in (
        (step.control.write, start + step.latency),
        (step.control.read, start + step.operands_read),
    ):
        if counter < COUNTERS:
            warp.under_way[counter].append((done, step))
    for r in step.mma:
        warp.mma[r] = (start + step.latency, step)
    warp.next, warp.last = now + step.stall, now
    warp.at += 1


def simulate(steps, warps=1, trips=8, together=False):
    """Cycles of a trip, divided by the warps; {(why, step): cycles a trip} of their waits. Warps wait
    for each other at barriers if they are `together`."""
    free, waits = defaultdict(int), Counter()
    pace = sum(s.stall for s in steps) // warps
    group = [Warp(1 + k * pace) for k in range(warps)]
    clock, ends, arrivals = 0, [], defaultdict(list)  # of trips; at each barrier

    def open_at(warp):
        came = arrivals[warp.barriers]
        return (max(came) if len(came) == warps else float("inf")) if came and together else 0

    while min(w.trips for w in group) < trips:
        found = [(earliest(w, steps[w.at], free, open_at(w)), k) for k, w in enumerate(group)]
        # Of those that may, the one that has waited longest.
        soon = max(clock, min(now for (now, _), _ in found))
        (_, bounds), k = min(
            ((e, k) for e, k in found if e[0] <= soon), key=lambda f: group[f[1]].last
        )
        warp, step, before = group[k], steps[group[k].at], group[k].last + 1
        if warp.trips >= 2:
            for cycle, (why, late) in sorted(bounds, key=lambda b: b[0]):
                if cycle > before:
                    waits[why, late or step] += cycle - before
                    before = cycle
            waits["others", None] += max(0, soon - before)
        issue(warp, step, soon, free)
        if step.is_barrier:
            warp.barriers += 1
            arrivals[warp.barriers].append(warp.next)
        clock = soon + 1
        if warp.at == len(steps):
            warp.at, warp.trips = 0, warp.trips + 1
            ends.append(clock)
    settled = ends[2 * warps - 1 :]
    counted = sum(w.trips - 2 for w in group)
    waits = {key: cycles / counted for key, cycles in waits.items()}
    return (settled[-1] - settled[0]) / (len(settled) - 1), waits


def busiest(steps):
    used = Counter(issue=len(steps))
    for s in steps:
        if s.kind in COST:
            used[s.kind] += s.cost
    used["fp32"] = sum(s.kind == "fp32" for s in steps)
    return max(used.items(), key=lambda x: x[1])


def report(graph, loop, options):
    trip = graph.trip(loop, options.mufu, tuple(options.without))
    if not trip:
        return
    place = sass.place(graph, loop)
    file = place.partition(":")[0]
    code = 16 * sum(len(graph.blocks[b]) for b in loop.blocks)
    print(f"\n{place.split(' < ')[0]}: {len(trip)} instructions, {code} bytes of code")
    for memory in options.memory:
        steps = steps_of(graph, trip, {"memory": memory}, options.broadcast)
        unit, used = busiest(steps)
        print(f"  memory {memory}: {unit} {used}")
        for warps in options.warps:
            cycles, waits = simulate(steps, warps, together=options.together)
            print(f"    {warps} warps: {cycles * warps:.0f} a trip, {cycles:.0f} a trip and warp, "
                  f"{used / cycles:.2f} of {unit}")  # fmt: skip
            by_reason = Counter()
            for (why, step), n in waits.items():
                late = step if why not in ("stall", "barrier", "others") else None
                by_reason[why, f"{late.x.base} {late.line(file)}" if late else ""] += n
            top = options.top if warps in (options.warps[0], options.warps[-1]) else 0
            for (why, name), n in by_reason.most_common(top):
                print(f"      {n:6.0f} {why} {name}")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("kernel", help="a part of its name")
    p.add_argument("--source", default="csrc/cuda/mvn_cdf_float.cu")
    p.add_argument("--arch", default="sm_90")
    p.add_argument("--loop", help="FILE:LINE of the loop's first line; every loop where left out")
    p.add_argument("--mufu", type=int)
    p.add_argument("--without", nargs="*", default=["sobol.h"])
    p.add_argument("--broadcast", nargs="*", default=[])
    p.add_argument("--together", action="store_true")
    p.add_argument("--warps", type=int, nargs="+", default=[1, 2])
    p.add_argument("--memory", type=int, nargs="+", default=[L1, L2])
    p.add_argument("--top", type=int, default=8)
    options = p.parse_args()
    if options.source.endswith(".cubin"):
        graphs = sass.graphs_of(options.source)
    else:
        graphs = sass.disassemble(options.arch, [options.source])
    for name, graph in graphs.items():
        if options.kernel in name:
            print(name)
            for loop in graph.loops:
                if options.loop in (None, sass.place(graph, loop).partition(" ")[0]):
                    report(graph, loop, options)


if __name__ == "__main__":
    main()
