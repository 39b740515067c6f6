"""standard_normal: time of a number, beside torch's and NumPy's generators.

python -m bench standard_normal [--dims 64,3072,150528]

One thread, CPU time, float32, 32 draws of each length. torch.randn and NumPy's Generator draw from a
state: their numbers depend on what was drawn before. Ours depend on a row's key and the place alone;
`torch's functions` is the same by torch's own operations, which is what the numbers are checked against
before anything is timed.
"""

import sys

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch

DRAWS = 32


def measured(dims, repeats):
    """Rows of each length, one for each method."""
    return [row for dim in dims for row in of_length(dim, repeats)]


def of_length(dim, repeats):
    from mvnrob._standard_normal import reference, standard_normal

    keys, draws = torch.arange(4), DRAWS // 4
    generator = np.random.default_rng(0)
    calls = {
        "standard_normal": lambda: standard_normal(keys, 0, draws, dim, torch.float32),
        "torch's functions": lambda: reference(keys, 0, draws, dim),
        "torch.randn": lambda: torch.randn(len(keys), draws, dim),
        "NumPy's Generator": lambda: generator.standard_normal((DRAWS, dim), dtype=np.float32),
    }
    made, known = calls["standard_normal"](), calls["torch's functions"]()
    error = float((made - known).abs().max())
    if not error <= 5e-7:
        raise SystemExit(f"bench standard_normal: an error of {error:.1e}, nothing is timed")
    for method, call in calls.items():
        timing, _ = harness.cpu_time(call, repeats, least_s=0.02)
        yield {"method": method, "length": dim, **harness.nanoseconds(timing, DRAWS * dim)}


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument(
        "--dims",
        type=harness.several(harness.whole()),
        default="64,3072,150528",
        help="lengths of a draw",
    )
    p.add_argument("--repeats", type=harness.whole(), default=7)
    args = p.parse_args()
    torch.set_num_threads(1)
    report = harness.environment()
    harness.show_environment(report)
    rows = measured(args.dims, args.repeats)
    harness.show(rows, list(rows[0]))
    harness.write("standard_normal", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
