"""Counts the instructions of the CUDA kernels' loops in their machine code; needs no GPU.

python -m bench.sass [--arch sm_90] [--json FILE] [KERNEL ...]

Compiles csrc/cuda/*.cu for one architecture, disassembles it and prints for each kernel (or those
whose name contains KERNEL) its loops in the order of the code, nested ones indented: where they are
in the source, the instructions of one trip, inner loops apart, and of which class they are. A trip
is the longest way through the loop: of branches that exclude each other, the longer one. Needs nvcc
and nvdisasm: the toolkit's, or the package nvidia-cuda-nvdisasm.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("csrc/cuda/mvn_cdf_float.cu", "csrc/cuda/mvn_cdf_double.cu", "csrc/cuda/bvn_cdf.cu")
# The first that fits. `fp32` and `fp64` are the multiply-add pipes with all that they execute;
# `alu` has half the lanes of fp32: comparisons, selects, minima, logic, shifts, additions.
CLASSES = (
    ("fp32", r"FFMA|FMUL|FADD"),
    ("fp64", r"DFMA|DMUL|DADD|DSETP|DMNMX"),
    ("mufu", r"MUFU|I2F|F2I|F2F|FRND|POPC|FLO|BREV"),
    ("tensor", r"[HIDQ]MMA"),
    ("imad", r"IMAD|HFMA2"),
    ("shared", r"LDS|STS|ATOMS|LDSM"),
    ("global", r"LDG|STG|LD|ST|ATOMG|ATOM|RED|LDGSTS|ATOMIC"),
    ("local", r"LDL|STL"),
    ("shuffle", r"SHFL|VOTE|VOTEU|R2UR|S2R|S2UR|CS2R|LDC"),
    ("uniform", r"U[A-Z0-9]+|R2P|P2R"),
    ("control", r"BRA|BRX|BSSY|BSYNC|BREAK|EXIT|RET|CALL|BAR|WARPSYNC|NOP|YIELD|DEPBAR|LDGDEPBAR"),
)  # fmt: skip
CLASS_NAMES = (*(name for name, _ in CLASSES), "alu")
MULTIPLY_ADD = re.compile(r"[FD]FMA")

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
SECOND_HALF = re.compile(
    r"^\s+/\* 0x([0-9a-f]{16}) \*/\s*$"
)  # of an instruction's 128 bits, by -hex
LABEL = re.compile(r"^(\.L_x_\w+|\$\S+):")
TARGET = re.compile(r"`\((\.L_x_\w+)\)")
FRAME = re.compile(r'//## File "([^"]+)", line (\d+)')
SECTION = re.compile(r"^\.text\.(\S+):")


@dataclass
class Instruction:
    predicate: str
    opcode: str
    operands: str
    frames: tuple  # (file, line) of the source, the innermost first
    control: int = 0  # bits 105 .. 125: how long it waits and what for (bench/cuda_latency.py)

    @property
    def base(self):
        return self.opcode.partition(".")[0]

    @property
    def kind(self):
        for name, pattern in CLASSES:
            if re.fullmatch(pattern, self.base):
                return name
        return "alu"


@dataclass
class Loop:
    header: int
    blocks: set
    latches: list
    depth: int = 0
    inner: list = field(default_factory=list)


def read(text):
    """{symbol: (instructions, {label: index of its instruction})} of nvdisasm -hex -c -gi."""
    kernels, code, labels, frames, fresh = {}, None, None, [], False
    for line in text.splitlines():
        if found := SECTION.match(line):
            code, labels, frames = [], {}, []
            kernels[found[1]] = (code, labels)
        elif code is None:
            continue
        elif found := FRAME.search(line):
            frames = [] if fresh else frames
            fresh = False
            frames.append((Path(found[1]).name, int(found[2])))
        elif found := LABEL.match(line):
            labels[found[1]] = len(code)
        elif found := SECOND_HALF.match(line):
            code[-1].control = int(found[1], 16) >> 41 & 0x1FFFFF
        elif found := LINE.match(line):
            fresh = True
            code.append(Instruction(found[2] or "", found[3], found[4], tuple(frames)))
    return kernels


class Graph:
    """Basic blocks of one kernel. Calls return; a label that ends a BSSY follows its BSYNC."""

    def __init__(self, code, labels):
        self.code = code
        starts = {0} | {i for i in labels.values() if i < len(code)}
        ends = re.compile(r"BRA|BRX|EXIT|RET|JMP")
        starts |= {i + 1 for i, x in enumerate(code) if ends.fullmatch(x.base)}
        order = sorted(i for i in starts if i < len(code))
        self.blocks = [range(a, b) for a, b in zip(order, [*order[1:], len(code)], strict=True)]
        number = {r.start: b for b, r in enumerate(self.blocks)}
        self.next = []
        for b, r in enumerate(self.blocks):
            last, after = code[r[-1]], []
            # BRA.DIV leads to the slow way of a warp that has diverged.
            if (
                last.opcode.startswith("BRA")
                and last.opcode != "BRA.DIV"
                and (found := TARGET.search(last.operands))
            ):
                after.append(number.get(labels[found[1]]))
            conditional = last.predicate or re.match(r"!?U?P\d", last.operands)
            falls = not ends.fullmatch(last.base) or conditional or last.opcode == "BRA.DIV"
            if falls and b + 1 < len(self.blocks):
                after.append(b + 1)
            self.next.append([b for b in after if b is not None])
        self.loops = self.find_loops()

    def find_loops(self):
        n = len(self.blocks)
        seen, order = set(), []
        for root in range(n):  # functions of the library begin anywhere
            stack = [(root, iter(self.next[root]))] if root not in seen else []
            seen.add(root)
            while stack:
                for s in stack[-1][1]:
                    if s not in seen:
                        seen.add(s)
                        stack.append((s, iter(self.next[s])))
                        break
                else:
                    order.append(stack.pop()[0])
        before = [[] for _ in range(n)]
        for b, after in enumerate(self.next):
            for s in after:
                before[s].append(b)
        position = {b: i for i, b in enumerate(reversed(order))}
        # Dominators as bit sets; a block without predecessor is an entry.
        everything = (1 << n) - 1
        dominators = [everything if before[b] else 1 << b for b in range(n)]
        dominators[0] = 1
        changed = True
        while changed:
            changed = False
            for b in sorted(range(n), key=position.get):
                if b == 0 or not before[b]:
                    continue
                met = everything
                for p in before[b]:
                    met &= dominators[p]
                met |= 1 << b
                changed |= met != dominators[b]
                dominators[b] = met
        loops = {}
        for b in range(n):
            for h in self.next[b]:
                if not dominators[b] >> h & 1:
                    continue
                loop = loops.setdefault(h, Loop(h, {h}, []))
                loop.latches.append(b)
                work = [b]
                while work:
                    x = work.pop()
                    if x not in loop.blocks:
                        loop.blocks.add(x)
                        work += before[x]
        found = sorted(loops.values(), key=lambda x: (x.header, -len(x.blocks)))
        for loop in found:
            outer = [o for o in found if o is not loop and loop.header in o.blocks]
            loop.depth = len(outer)
            if outer:
                min(outer, key=lambda o: len(o.blocks)).inner.append(loop)
        return found

    def comes_from(self, block, files):
        """Whether most of its instructions do; where branches meet, lines mean nothing."""
        code = [x for i in self.blocks[block] if (x := self.code[i]).kind != "control"]
        return 2 * sum(any(f in files for f, _ in x.frames) for x in code) > len(code)

    def trip(self, loop, mufu=None, without=()):
        """Instructions of the longest way from the header to a latch, inner loops left out. With
        `mufu`, of those ways with so many MUFU (None if there is none): the compiler merges branches of the source and
        mixes up their line numbers, but not how many reciprocals and roots they take. With
        `without`, of those ways around blocks that come from these files."""
        inner = {b for i in loop.inner for b in i.blocks}
        shut = {b for b in loop.blocks if without and self.comes_from(b, without)}
        best = {}

        def ways_from(b, on_way):
            """{number of MUFU: longest way}"""
            if b in best:
                return best[b]
            own = [] if b in inner else [self.code[i] for i in self.blocks[b]]
            ways = {0: []} if b in loop.latches else {}
            for s in self.next[b]:
                if s in loop.blocks and s not in shut | {loop.header} and s not in on_way:
                    for n, way in ways_from(s, on_way | {b}).items():
                        ways[n] = max(ways.get(n, []), way, key=len)
            here = sum(x.base == "MUFU" for x in own)
            best[b] = {n + here: own + way for n, way in ways.items()}
            return best[b]

        ways = ways_from(loop.header, frozenset())
        return max(ways.values(), key=len, default=[]) if mufu is None else ways.get(mufu)


def summary(instructions):
    kinds = Counter(x.kind for x in instructions)
    return {
        "instructions": len(instructions),
        **{name: kinds[name] for name in CLASS_NAMES},
        "multiply_adds": sum(bool(MULTIPLY_ADD.fullmatch(x.base)) for x in instructions),
    }


def place(graph, loop):
    """The loop in the source, innermost call first: where its last branch comes from."""
    last = graph.code[graph.blocks[max(loop.latches)][-1]]
    return " < ".join(f"{f}:{line}" for f, line in last.frames if f != "launcher.h")


def find_tool(name):
    """On PATH, in CUDA_HOME, or in the package nvidia-cuda-NAME."""
    home = os.environ.get("CUDA_HOME")
    if found := shutil.which(name) or (home and shutil.which(name, path=f"{home}/bin")):
        return found
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(folder).glob(f"*/bin/{name}")):
            return str(path)
    sys.exit(f"sass: {name} is neither on PATH nor in CUDA_HOME nor the package nvidia-cuda-{name}")


def kernel_name(symbol):
    """Without namespaces and arguments; kernel<Body> goes by its body, as in .ci/registers.txt."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::|^void ", "", name.strip()).partition("(")[0]
    name = re.sub(r"\b\w+::|\s", "", name)
    return found[1] if (found := re.fullmatch(r"kernel<(.*)>", name)) else name


def disassemble(arch, sources=SOURCES):
    """{kernel: Graph}, sources compiled as setup.py does, with line numbers (same code)."""
    nvcc = find_tool("nvcc")
    graphs = {}
    for source in sources:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            flags = ["-O3", "-std=c++17", "-lineinfo", f"-arch={arch}", "-I", ROOT / "csrc"]
            command = [nvcc, *flags, "-cubin", ROOT / source, "-o", cubin.name]
            subprocess.run([str(word) for word in command], check=True)
            graphs |= graphs_of(cubin.name)
    return graphs


def graphs_of(cubin):
    command = [find_tool("nvdisasm"), "-hex", "-c", "-gi", cubin]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {kernel_name(s): Graph(*parts) for s, parts in read(text).items()}


def report(graph):
    loops = []
    for loop in graph.loops:
        counts = summary(graph.trip(loop))
        if counts["instructions"]:
            loops.append({"loop": place(graph, loop), "depth": loop.depth, **counts})
    return {"instructions": len(graph.code), "loops": loops}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("kernels", nargs="*", metavar="KERNEL")
    p.add_argument("--arch", default="sm_90")
    p.add_argument("--json", help="file for all of it")
    args = p.parse_args()
    out = {}
    for name, graph in disassemble(args.arch).items():
        if args.kernels and not any(k in name for k in args.kernels):
            continue
        out[name] = report(graph)
        print(f"\n{name}: {out[name]['instructions']} instructions")
        for loop in out[name]["loops"]:
            share = loop["multiply_adds"] / loop["instructions"]
            kinds = " ".join(f"{k} {loop[k]}" for k in CLASS_NAMES if loop[k])
            print(f"{'  ' * loop['depth']}{loop['loop']}")
            print(f"{'  ' * loop['depth']}  {loop['instructions']}: {kinds}; {share:.0%} FMA")
    if args.json:
        Path(args.json).write_text(json.dumps({"arch": args.arch, "kernels": out}, indent=1) + "\n")


if __name__ == "__main__":
    main()
