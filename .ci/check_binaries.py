"""Checks on what the compilers made. Standard library and binutils' nm only.

check_binaries.py abi FOLDER     every .so in it: abi3 name; undefined symbols only from the C and
                                 C++ run-time libraries, Python's C API, the CUDA runtime and
                                 torch's stable C interface, those of _C_cuda on the list in
                                 cuda_symbols.txt
check_binaries.py spills LOG     ptxas' report in LOG: at least one kernel, no spilled register
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# The stable interface is C: a mangled name (_Z...) of at:: or c10:: would tie the binary to one
# torch. Versioned names (GLIBC_2.14, GLIBCXX_3.4, CXXABI_1.3, GCC_3.0) are the run-time libraries'.
STABLE = re.compile(r"(aoti|torch)_\w+$")
# Names of namespace std can come without a version (templates that a header leaves external).
RUNTIME = re.compile(r".*@@?(GLIBC|GLIBCXX|CXXABI|GCC)_|_Z(T[ISV])?(N[KRO]*)?S[tabsiod]")
PYTHON = re.compile(r"_?Py\w+$")
CUDA_RUNTIME = re.compile(r"(__)?cuda\w+(@@?libcudart\.so\.\d+)?$")
LIST = Path(__file__).parent / "cuda_symbols.txt"


def undefined(path: Path) -> list[str]:
    """Undefined dynamic symbols, with their version; weak ones may stay unresolved."""
    command = ["nm", "-D", "--undefined-only", "--with-symbol-versions", str(path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line.split()[-1] for line in lines if line.split()[-2] == "U"]


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
        if is_cuda:
            allowed = set(LIST.read_text().split())
            for symbol in sorted(set(torch_symbols) - allowed):
                wrong.append(f"{path.name}: {symbol} is not in .ci/{LIST.name}")
        print(f"{path.name}: {len(torch_symbols)} symbols of torch's stable interface")
    return wrong


def check_spills(log: Path) -> list[str]:
    text = log.read_text()
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    if not spills:
        return [f"{log}: no ptxas report, so nothing was compiled"]
    names = re.findall(r"Function properties for (\S+)", text)
    print(f"ptxas: {len(spills)} kernel images of {len(set(names))} functions")
    wrong = [pair for pair in spills if pair != ("0", "0")]
    return [f"ptxas: {stores} bytes of spill stores, {loads} of loads" for stores, loads in wrong]


def main() -> int:
    check = {"abi": check_abi, "spills": check_spills}[sys.argv[1]]
    wrong = check(Path(sys.argv[2]))
    for line in wrong:
        print(line, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
