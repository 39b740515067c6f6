"""One front for all benchmarks: python -m bench SUBCOMMAND [options of its own].

Common to all that time a CPU and write a result (of a GPU: --help of each):
  --out FOLDER        where <name>.json and <name>.csv go (default: bench/results)
  --compare OLD.json  after the run: new/old of every time, with both spreads, and of every error and
                      count, row by row
  --check             instead of the run: the claims of bench/checks.py, each relative and measured
                      in one go; exit code 1 if one fails (a few seconds, for CI)
`python -m bench SUBCOMMAND --help` lists the rest. Times are CPU times of one thread unless a column
says otherwise; environment, command and the machine's own speed stand in each result. A spread is that
of the repeats within one run: another run, on a shared machine, may differ by more.
"""

import ast
import importlib
import sys
from pathlib import Path

from bench import harness

HERE = Path(__file__).resolve().parent
# Subcommand: module of this folder, whose docstring's first line is its help.
SUBCOMMANDS = {
    "step": "bench_math",
    "mvn_cdf": "bench_mvn_cdf",
    "jac_cov": "bench_jac_cov",
    "pivoted_cholesky": "bench_pivoted_cholesky",
    "mendell_elston": "bench_mendell_elston",
    "bvn": "bench_bvn",
    "standard_normal": "bench_standard_normal",
    "gradients": "bench_mvn_cdf_grad",
    "hessians": "bench_mvn_cdf_hvp",
    "estimators": "bench_estimators",
    "evaluate": "bench_evaluate",
    "pipeline": "bench_pipeline",
    "authors_loop": "bench_authors_loop",
    "screening": "bench_screening",
    "low_rank": "bench_low_rank",
    "large_classes": "bench_large_classes",
    "points": "bench_points",
    "coverage": "coverage",
    "convergence": "convergence",
    "checkouts": "bench_checkouts",
    "peers": "bench_peers",
    "scaling": "bench_scaling",
    "roofline": "bench_roofline",
    "forward_mode": "bench_forward_mode",
    "half_passes": "half_passes",
    "cuda": "bench_cuda",
    "cuda_ab": "cuda_ab",
    "cuda_floor": "cuda_floor",
    "cuda_floor_bvn": "cuda_floor_bvn",
    "cuda_floor_standard_normal": "cuda_floor_standard_normal",
    "cuda_floor_jac_cov": "cuda_floor_jac_cov",
    "cuda_floor_tensor": "cuda_floor_tensor",
    "cuda_floor_tensor_double": "cuda_floor_tensor_double",
    "cuda_tensor_pivots": "cuda_tensor_pivots",
    "cuda_tf32": "cuda_tf32",
    "cuda_tuning": "cuda_tuning",
    "cuda_kernels": "cuda_kernels",
    "cuda_pass_sizes": "cuda_pass_sizes",
    "cuda_phases": "cuda_phases",
    "cuda_profile": "cuda_profile",
    "cuda_small": "cuda_small",
    "page": "page",
}


def first_line(module):
    """Help of a module, without importing it."""
    return ast.get_docstring(ast.parse((HERE / f"{module}.py").read_text())).splitlines()[0]


def usage():
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:{width}}  {first_line(module)}" for name, module in SUBCOMMANDS.items()]
    return __doc__ + "\nSubcommands:\n" + "\n".join(lines)


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name not in SUBCOMMANDS:
        print(f"bench: SUBCOMMAND must be one of {', '.join(SUBCOMMANDS)}, got {name}")
        return 2
    harness.subcommand = name
    common = harness.Parser(add_help=False, allow_abbrev=False, prog=f"bench {name}")
    common.add_argument("--compare", type=Path)
    common.add_argument("--check", action="store_true")
    options, rest = common.parse_known_args(rest)
    if options.check:
        from bench import checks

        return checks.run(name, rest)
    if options.compare and not options.compare.is_file():
        print(f"bench: --compare must name a result file, got {options.compare}")
        return 2
    # Read now: the run may write over it.
    old = options.compare and options.compare.read_text(errors="replace")
    if old is not None:
        from bench import compare

        if wrong := compare.refusal(old, name, SUBCOMMANDS[name]):
            print(
                f"bench: --compare must name a result of {name}, got {wrong} in {options.compare}"
            )
            return 2
    sys.argv = [str(HERE / f"{SUBCOMMANDS[name]}.py"), *rest]
    code = importlib.import_module(f"bench.{SUBCOMMANDS[name]}").main()
    if options.compare:
        if not harness.written:
            print(f"bench: {name} wrote no result to compare")
            return 2
        compare.report(old, harness.written[-1].read_text())
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
