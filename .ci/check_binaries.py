"""Checks on what the compilers made. Standard library and binutils' nm, readelf and c++filt only.

check_binaries.py abi FOLDER     every .so in it: abi3 name; undefined symbols only from the C and
                                 C++ run-time libraries, Python's C API, the CUDA runtime and
                                 torch's stable C interface, those of _C_cuda on the list in
                                 cuda_symbols.txt; _C_cuda needs libtorch.so
check_binaries.py registers LOG TABLE
                                 ptxas' report in LOG against TABLE (.ci/registers.txt says how
                                 it is written): no kernel spills, every one is within its budget
                                 on every architecture, every one is listed, every line is used; no
                                 function is compiled apart from its kernel
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# The stable interface is C: a mangled name (_Z...) of at:: or c10:: would tie the binary to one
# torch. Versioned names (GLIBC_2.14, GLIBCXX_3.4, CXXABI_1.3, GCC_3.0) are the run-time libraries'.
STABLE = re.compile(r"(aoti|torch)_\w+$")
# Names of namespace std can come without a version (templates that a header leaves external).
RUNTIME = re.compile(r".*@@?(GLIBC|GLIBCXX|CXXABI|GCC)_|_Z(T[ISV])?(N[KRO]*)?S[tabsiod]")
PYTHON = re.compile(r"_?Py\w+$")
CUDA_RUNTIME = re.compile(r"(__)?cuda\w+(@@?libcudart\.so\.\d+)?$")
LIST = Path(__file__).parent / "cuda_symbols.txt"
# Device functions that are nowhere inlined (MVNROB_DEVICE_ONCE). Any other that the compiler leaves
# apart gets the kernel's arguments by address, and looks up where an array lies before each access.
# Excepted as well: a function of three numbers, and those that take nothing by address and would spill
# where they are inlined.
APART = {
    "mean_of_pivot",
    "slopes_of_pivot",
    "bvn_cdf",
    "find_nearest<Block<32>>",
    "find_nearest<Block<128>>",
    "find_nearest<Block<256>>",
    "find_nearest<Grid<256>>",
    "find_tilt_apart<Block<256>>",
}


def undefined(path: Path) -> list[str]:
    """Undefined dynamic symbols, with their version; weak ones may stay unresolved."""
    command = ["nm", "-D", "--undefined-only", "--with-symbol-versions", str(path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line.split()[-1] for line in lines if line.split()[-2] == "U"]


def needed(path: Path) -> list[str]:
    """Libraries that the loader brings in with it."""
    command = ["readelf", "--dynamic", "--wide", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", text)


def check_abi(folder: Path) -> list[str]:
    modules = sorted(folder.glob("*.so"))
    if not any(path.name.startswith("_C.") for path in modules):
        return [f"{folder}: no _C module here"]
    wrong = []
    for path in modules:
        if not path.name.endswith(".abi3.so"):
            wrong.append(f"{path.name}: the name must end in .abi3.so")
        is_cuda = path.name.startswith("_C_cuda")
        torch_symbols = []
        for symbol in undefined(path):
            if RUNTIME.match(symbol) or PYTHON.match(symbol):
                continue
            if is_cuda and CUDA_RUNTIME.match(symbol):
                continue
            if STABLE.match(symbol):
                torch_symbols.append(symbol)
            else:
                wrong.append(f"{path.name}: {symbol} is not part of torch's stable interface")
        # Some of its symbols are libtorch_cuda's, which a build beside a torch without CUDA cannot name.
        if is_cuda and "libtorch.so" not in needed(path):
            wrong.append(f"{path.name}: must need libtorch.so, which brings torch's CUDA symbols")
        if is_cuda:
            allowed = set(LIST.read_text().split())
            for symbol in sorted(set(torch_symbols) - allowed):
                wrong.append(f"{path.name}: {symbol} is not in .ci/{LIST.name}")
        print(f"{path.name}: {len(torch_symbols)} symbols of torch's stable interface")
    return wrong


@dataclass
class Kernel:
    """What ptxas says of one kernel on one architecture. A stack frame is local memory: an array
    indexed at run time, or a function that was not inlined."""

    symbol: str
    architecture: str
    stack: int = 0
    spill: int = 0
    registers: int = 0
    shared: int = 0


def read_ptxas(text: str) -> list[Kernel]:
    """Every kernel image that LOG reports. Raises ValueError where lines of two compilations mix."""
    kernels: list[Kernel] = []
    now = None  # the kernel whose "Used ... registers" is still to come
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            if now is not None:
                raise ValueError(f"{found[1]} begins before the registers of {now.symbol} are told")
            now = Kernel(found[1], found[2])
        elif found := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            # Also printed for functions that were not inlined: theirs belong to the kernel.
            if now is not None:
                now.stack = max(now.stack, int(found[1]))
                now.spill += int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            if now is None:
                raise ValueError(f"registers of no kernel: {line.strip()}")
            now.registers = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            now.shared = int(shared[1]) if shared else 0
            kernels.append(now)
            now = None
    if now is not None:
        raise ValueError(f"the registers of {now.symbol} are not told")
    return kernels


def short_name(demangled: str) -> str:
    """`void a::(anonymous namespace)::f<b::K<float, 16> >(b::Args)` is `f<K<float,16>>`, and a
    wrapper `kernel<Body>` goes by the name of its body. No spaces: a table has columns."""
    name = demangled.replace("(anonymous namespace)::", "")
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:  # the arguments begin
            name = name[:at]
            break
    name = re.sub(r"^\w+ ", "", name)  # templates come with their return type
    name = re.sub(r"\b\w+::", "", name).replace(" ", "")
    body = re.fullmatch(r"kernel<(.*)>", name)
    return body[1] if body else name


def demangle(symbols: list[str]) -> dict[str, str]:
    done = subprocess.run(
        ["c++filt"], input="\n".join(symbols), check=True, capture_output=True, text=True
    )
    return dict(zip(symbols, done.stdout.splitlines(), strict=True))


def read_budgets(table: Path) -> dict[str, tuple[int, int]]:
    """Registers and bytes of stack allowed for each kernel."""
    budgets: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(table.read_text().splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) not in (2, 3) or not all(word.isdigit() for word in words[1:]):
            raise ValueError(f"{table.name}:{number}: not NAME REGISTERS [STACK]: {line}")
        if words[0] in budgets:
            raise ValueError(f"{table.name}:{number}: {words[0]} has a line already")
        budgets[words[0]] = (int(words[1]), int(words[2]) if len(words) == 3 else 0)
    return budgets


def left_apart(text: str, kernels: list[Kernel]) -> list[str]:
    """Functions that LOG tells the properties of, those of kernels and of APART excepted."""
    symbols = set(re.findall(r"Function properties for (\S+)", text))
    names = demangle(sorted(symbols - {kernel.symbol for kernel in kernels}))
    # A template's name comes with the type that it returns.
    bare = {name: re.sub(r"^\S+ (?=mvnrob::)", "", name) for name in names.values()}
    return sorted(name for name in bare if short_name(bare[name]) not in APART)


def check_registers(log: Path, table: Path) -> list[str]:
    try:
        kernels, budgets = read_ptxas(log.read_text()), read_budgets(table)
    except ValueError as error:
        return [f"{log.name}: {error}" if table.name not in str(error) else str(error)]
    if not kernels:
        return [f"{log}: no ptxas report, so nothing was compiled"]
    names = demangle(sorted({kernel.symbol for kernel in kernels}))
    images: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        images.setdefault(short_name(names[kernel.symbol]), []).append(kernel)
    wrong = []
    width = max(len(name) for name in images)
    for name, group in sorted(images.items()):
        most = max(kernel.registers for kernel in group)
        stack = max(kernel.stack for kernel in group)
        shared = max(kernel.shared for kernel in group)
        detail = " ".join(f"{k.architecture}:{k.registers}" for k in group)
        print(f"{name:{width}}  {most:3} registers, {stack} stack, {shared} shared  ({detail})")
        if name not in budgets:
            wrong.append(f"{name}: not in {table.name}; it needs a line `{name} {most}`")
            continue
        registers, frame = budgets[name]
        for kernel in group:
            where = f"{name} on {kernel.architecture}"
            if kernel.registers > registers:
                wrong.append(f"{where}: {kernel.registers} registers, {registers} are allowed")
            if kernel.stack > frame:
                wrong.append(f"{where}: {kernel.stack} bytes of stack, {frame} are allowed")
            if kernel.spill:
                wrong.append(f"{where}: {kernel.spill} bytes spilled")
    for name in sorted(set(budgets) - set(images)):
        wrong.append(f"{table.name}: {name} is no kernel of this build")
    for name in left_apart(log.read_text(), kernels):
        wrong.append(f"{name} is compiled apart from its kernel: MVNROB_DEVICE inlines it")
    return wrong


def main() -> int:
    checks = {"abi": check_abi, "registers": check_registers}
    wrong = checks[sys.argv[1]](*map(Path, sys.argv[2:]))
    for line in wrong:
        print(line, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
