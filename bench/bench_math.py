"""csrc/math: ns per element of the functions under the SOV recursion, per instruction set.

python -m bench step [--isa avx512] [--out DIR]

One thread, processor time, 4096 elements (first-level cache), 1, 2 or 4 packs per call so that
their dependent chains overlap; median and least of 21 repeats. `multiply_add` is the machine's own
rate of vector multiply-adds at that moment (ns per element of one), the yardstick on a shared
machine. `fused_step` is a lattice point, one step and the product with the running weight. Results
are checked against the library's erfc before they are timed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from bench import harness

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "native"))
import native_build

COLUMNS = ["isa", "type", "function", "packs", "ns", "least_ns"]


def measure(isa, folder):
    """Rows of one instruction set."""
    program = Path(folder) / f"bench_math_{isa}"
    source = HERE / "bench_math.cpp"
    command = [
        native_build.compiler(),
        *native_build.build_flags(isa),
        str(source),
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    run = subprocess.run([program], check=True, capture_output=True, text=True)
    rows = []
    for line in run.stdout.splitlines():
        function, dtype, packs, ns, least = line.split(",")
        rows.append(
            {
                "isa": isa,
                "type": dtype,
                "function": function,
                "packs": int(packs),
                "ns": float(ns),
                "least_ns": float(least),
            }
        )
    return rows


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument(
        "--isa",
        type=harness.one_of(native_build.ISA_FLAGS),
        help="one instruction set (default: all that this processor has)",
    )
    options = p.parse_args()
    report = harness.environment()
    version = subprocess.run(
        [native_build.compiler(), "--version"], capture_output=True, text=True, check=True
    )
    report["compiler"] = version.stdout.splitlines()[0]
    harness.show_environment(report)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for isa in [options.isa] if options.isa else native_build.ISA_FLAGS:
            missing = native_build.missing_features(isa)
            if missing:
                print(f"# {isa}: this processor lacks {' '.join(sorted(missing))}")
                continue
            rows += measure(isa, folder)
    harness.show(rows, COLUMNS)
    harness.write("bench_math", report, rows, options.out)


if __name__ == "__main__":
    main()
