"""pivoted_cholesky: time and reconstruction error, beside LAPACK's dpstrf and torch.linalg.cholesky.

python -m bench pivoted_cholesky [--n 9,99,999] [--columns 16,64] [--entries 1000000]

One thread, CPU time, float64, milliseconds a matrix of one call of a batch (as many matrices as have
`--entries` entries, at least two). Correlations of random Jacobian rows with a direction in common,
of 2 n features ("definite") and of n / 3 ("singular"); limits between 0 and 3. "error" is the
largest entry of cov - L L^T, of a partial factor in the rows of its pivots, and "left" the mean variance
given the pivots. dpstrf (SciPy's wrapper, a matrix at a time) takes the largest variance first. It
cannot stop at a number of columns: its time for a partial factor is that of the full one, and its
"left" that of its first columns. torch.linalg.cholesky has no order and takes definite matrices only.
Nothing is timed where the rank is wrong, or the error more than rounding.
"""

import sys

from bench import harness

harness.numpy_threads_one()

import numpy as np
import torch

# Rounding; of singular matrices amplified by pivots that are nearly dependent.
WORST = {"definite": 1e-13, "singular": 1e-7}


def problems(n, kind, count, seed=0):
    """Limits [count, n], correlations [count, n, n] and their rank."""
    g = torch.Generator().manual_seed(seed)
    features = 2 * n if kind == "definite" else max(2, n // 3)
    rows = torch.randn(count, n, features, generator=g, dtype=torch.float64)
    rows += torch.randn(count, 1, features, generator=g, dtype=torch.float64)
    rows /= rows.norm(dim=-1, keepdim=True)
    cov = rows @ rows.mT
    cov = (cov + cov.mT) / 2
    cov.diagonal(dim1=1, dim2=2).fill_(1.0)
    return 3 * torch.rand(count, n, generator=g, dtype=torch.float64), cov, min(n, features)


def dpstrf(cov):
    """Factors with rows in the input's order, pivots and ranks, one matrix after the other."""
    from scipy.linalg import lapack

    out = []
    for matrix in cov.numpy():
        made, pivots, rank, _ = lapack.dpstrf(matrix, lower=1)
        out.append((made, pivots - 1, rank))
    return out


def in_order(made, columns):
    """dpstrf's answers as pivoted_cholesky's: factor, pivots and ranks."""
    factors = np.zeros((len(made), len(made[0][0]), columns))
    for factor, (lower, order, rank) in zip(factors, made, strict=True):
        k = min(columns, rank)
        factor[order, :k] = np.tril(lower)[:, :k]
    order = torch.from_numpy(np.stack([order for _, order, _ in made]).astype(np.int64))
    rank = torch.tensor([min(columns, rank) for _, _, rank in made])
    return torch.from_numpy(factors), order, rank


def judged(cov, factor, order, rank, columns):
    """Largest error, and the mean variance left."""
    rest = cov - factor @ factor.mT
    left = float(rest.diagonal(dim1=1, dim2=2).mean())
    if columns < cov.shape[-1]:  # what is not a pivot's is left on purpose
        rest = torch.stack([m[p[:r]].abs().amax() for m, p, r in zip(rest, order, rank.tolist(),
                                                                     strict=True)])  # fmt: skip
    return float(rest.abs().max()), left


def refuse_wrong(name, error, rank, expected, kind):
    if not error <= WORST[kind] or bool((rank != expected).any()):
        raise SystemExit(
            f"bench pivoted_cholesky: {name}: an error of {error:.1e}, ranks {rank.min()} to "
            f"{rank.max()} where it is {expected}; nothing is timed"
        )


def lines(n, kind, columns, count, repeats):
    """A row for ours at each number of columns, and for each peer."""
    from mvnrob import pivoted_cholesky

    upper, cov, whole = problems(n, kind, count)
    timing = {"repeats": repeats, "least_s": 0.02, "budget_s": 60}
    pivoted = None
    for k in (*columns, n):
        expected = min(k, whole)
        call = lambda k=k: pivoted_cholesky(upper, cov, rank=k)
        made = call()
        error, left = judged(cov, made.factor, made.order, made.rank, k)
        refuse_wrong("pivoted_cholesky", error, made.rank, expected, kind)
        took, _ = harness.cpu_time(call, **timing)
        ours = line("pivoted_cholesky", n, kind, count, k, expected, took, error, left)
        yield ours | {"ratio": 1.0}
        if pivoted is None:
            pivoted = harness.cpu_time(lambda: dpstrf(cov), **timing)
        factor, order, rank = in_order(pivoted[1], k)
        error, left = judged(cov, factor, order, rank, k)
        row = line("dpstrf", n, kind, count, k, int(rank.max()), pivoted[0], error, left)
        yield row | {"ratio": row["ms"] / ours["ms"]}
        if kind == "definite" and k == n:
            took, factor = harness.cpu_time(lambda: torch.linalg.cholesky(cov), **timing)
            error, left = judged(cov, factor, None, None, k)
            row = line("torch.linalg.cholesky", n, kind, count, k, n, took, error, left)
            yield row | {"ratio": row["ms"] / ours["ms"]}


def line(method, n, kind, count, columns, rank, timing, error, left):
    ms = {name: 1e3 * timing[f"{name}_s"] / count for name in ("median", "min", "max")}
    return {
        "method": method, "n": n, "kind": kind, "batch": count, "columns": columns, "rank": rank,
        "ms": ms["median"], "ms_min": ms["min"], "ms_max": ms["max"], "error": error, "left": left,
    }  # fmt: skip


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--n", type=harness.sizes(range(2, 4097)), default="9,99,999")
    p.add_argument("--columns", type=harness.sizes(range(1, 4097)), default="16,64",
                   help="of partial factors, where they are fewer than n")  # fmt: skip
    p.add_argument(
        "--entries", type=harness.whole(), default=1_000_000, help="of a batch's matrices"
    )
    p.add_argument("--repeats", type=harness.whole(), default=5)
    args = p.parse_args()
    torch.set_num_threads(1)
    report = harness.environment()
    harness.show_environment(report)
    rows = []
    for n in args.n:
        for kind in WORST:
            columns = [k for k in args.columns if k < n]
            rows += lines(n, kind, columns, max(2, args.entries // n**2), args.repeats)
    harness.show(rows, list(rows[0]))
    harness.write("pivoted_cholesky", report, rows, args.out)


if __name__ == "__main__":
    sys.exit(main())
