"""Does the reported 99 % error cover the true one? Runs known problems through mvn_cdf and counts.

A row misses when |prob - truth| > error + error of the answer + rounding, or the same for the
complement. Rounding is
- float64 input: 1e-12, the arithmetic of a few thousand operations on numbers up to 1;
- float32 input: rounding of the stored result (2^-24 of prob and of error), plus what rounding the
  *inputs* to float32 may do to the probability: `rounding_of_input`, a first-order bound.
Rows of a relative tolerance (tails.py) are compared by the logarithm of their small side.
Covariances that have an exact answer without sampling are taken a little off it (off_the_form).
Rows with status EXACT (closed forms; their error is rounding and half the screened mass) are
certified and must all hold. For the others misses happen with probability at most 1 % each, which
a one-sided binomial test can reject.
"""

import itertools
import warnings
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from scipy import special, stats

CONVERGED, EXACT, MAX_POINTS = 0, 1, 2
MISS_RATE = 0.01
REJECT_BELOW = 0.01
# Rows of one call: as many as fit this many bytes of covariance.
BATCH_BYTES = 2**27


# Parts of the pipeline that a sampled row can go through, and how its result tells; a row of none of
# them is "plain". A new part needs one line here, and its name in the tests that ask for it.
BRANCHES = {
    "screened": lambda row: row.n_active < row.problem.n,
    "completed": lambda row: row.n_pivots < row.n_active,
}
# The same for the rows of a relative tolerance. One that a first look of PILOT plain points answers
# is "pilot"; in the tails the plan then goes to these samples (test_coverage.py: the answers are
# not those of plain ones).
PILOT = 512
TAIL_BRANCHES = {
    "tilted": lambda row: not row.problem.near_one and row.n_points > PILOT,
    "union": lambda row: row.problem.near_one and row.n_points > PILOT,
    "pilot": lambda row: row.n_points <= PILOT,
}


@dataclass(frozen=True)
class Row:
    problem: object
    seed: int
    dtype: torch.dtype
    abs_tol: float
    prob: float
    complement: float
    log_prob: float
    error: float
    log_error: float
    status: int
    n_points: int
    n_active: int
    n_pivots: int
    rounding: float

    @property
    def deviation(self):
        p = self.problem
        return max(abs(self.prob - p.prob), abs(self.complement - p.complement))

    @property
    def miss(self):
        allowed = self.error + self.problem.abs_err_of_answer + self.rounding
        return not self.deviation <= allowed  # a NaN misses

    @property
    def stated(self):
        return self.error

    @property
    def branches(self):
        """The parts of the pipeline that this row went through."""
        if self.status == EXACT:
            return ("exact",)
        parts = tuple(name for name, takes in BRANCHES.items() if takes(self))
        return ("all", *(parts or ("plain",)))


@dataclass(frozen=True)
class TailRow:
    """A row of tails.py under a relative tolerance: its small side, as a logarithm."""

    problem: object
    seed: int
    rel_tol: float
    log_small: float  # ln p, or ln(1 - p)
    log_error: float
    status: int
    n_points: int
    n_active: int
    n_pivots: int

    @property
    def deviation(self):
        return abs(self.log_small - self.problem.log_small)

    @property
    def stated(self):
        return self.log_error

    @property
    def miss(self):
        return not self.deviation <= self.log_error + self.problem.rel_err + 1e-9

    @property
    def branches(self):
        if self.status == EXACT:
            return ("exact",)
        return ("all", *(name for name, takes in TAIL_BRANCHES.items() if takes(self)))


def _pair_density(a, b, corr, floor):
    """phi_2(a, b; corr), its singularity at |corr| = 1 cut off at 1 - corr^2 = floor."""
    room = np.maximum(1 - corr * corr, floor)
    with np.errstate(invalid="ignore", over="ignore"):
        exponent = -(a * a - 2 * corr * a * b + b * b) / (2 * room)
        value = np.exp(np.minimum(exponent, 0)) / (2 * np.pi * np.sqrt(room))
    return np.where(np.isfinite(a) & np.isfinite(b), value, 0.0)


def rounding_of_input(problem, unit=2.0**-24):
    """First-order bound on how much rounding limits, means and covariances moves the probability.

    |dP| <= sum_i phi(z_i) |dz_i| + sum_{i<j} phi_2(z_i, z_j; R_ij) |dR_ij| (Plackett 1954: the
    derivative to R_ij is phi_2 times a probability), each variable at each of its limits, with
    |dR_ij| <= 2 unit |R_ij| and |dz_i| from the roundings of limit, mean, difference and variance.
    """
    sd = np.sqrt(np.diag(problem.cov))
    live = sd > 0
    sd = sd[live]
    corr = problem.cov[np.ix_(live, live)] / sd[:, None] / sd
    mean = np.zeros(len(sd)) if problem.mean is None else problem.mean[live]
    sides = [problem.upper[live]] + ([] if problem.lower is None else [problem.lower[live]])
    total, scores = 0.0, []
    for limit in sides:
        finite = np.isfinite(limit)
        at = np.where(finite, limit, 0.0)
        z = (at - mean) / sd
        move = unit * ((np.abs(at) + np.abs(mean)) / sd + 1.5 * np.abs(z))
        total += float(np.sum(np.where(finite, np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * move, 0)))
        scores.append(np.where(finite, z, np.inf))
    delta = 2 * unit * np.abs(corr)
    i, j = np.triu_indices(len(sd), 1)
    r, d = corr[i, j], delta[i, j]
    for a in scores:
        for b in scores:
            total += float(np.sum(_pair_density(a[i], b[j], r, np.maximum(d, unit)) * d))
    return total


def eigenvalues_exceed(matrix, bound):
    """Whether all do, by a Cholesky factor: a tenth of the time that the eigenvalues take."""
    try:
        np.linalg.cholesky(matrix - bound * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True


def off_the_form(problem, single):
    """cov, a little off what quadrature integrates exactly, and how far that moves P at most.

    Many families have answers because they have one factor or independent blocks, and such rows are
    not sampled. So three of the correlations between the four variables that are most likely to fail
    change by more than rounding: then the four are one block without a common factor. Not where cov
    is singular, which it would not stay.
    """
    shift = 4e-6 if single else 1e-11
    cov, sd = problem.cov.copy(), np.sqrt(np.diag(problem.cov))
    if problem.n < 4 or getattr(problem, "singular", False) or not np.all(sd > 0):
        return cov, 0.0
    # Problems of tails do not say it: at a correlation of 1 a shift by d moves P like sqrt(d).
    if not eigenvalues_exceed(cov / np.outer(sd, sd), 1e-6):
        return cov, 0.0
    mean = 0.0 if problem.mean is None else problem.mean
    upper = (problem.upper - mean) / sd
    lower = np.full(problem.n, -np.inf) if problem.lower is None else (problem.lower - mean) / sd
    first = np.argsort(-(special.ndtr(-upper) + special.ndtr(lower)), kind="stable")[:4]
    moved = 0.0
    for i, j in itertools.pairwise(first):
        corr = cov[i, j] / (sd[i] * sd[j])
        cov[i, j] = cov[j, i] = cov[i, j] - np.copysign(shift, corr) * sd[i] * sd[j]
        for a, b in itertools.product((upper, lower), repeat=2):
            moved += shift * float(_pair_density(a[i], b[j], corr, shift))
    return cov, moved


def _batches(problems, device, dtype, seeds):
    """Problems of one shape in batches: (problems, seed, arguments of mvn_cdf).

    Every row gets a seed of its own: rows with one seed share their shifts, and their misses would
    not be independent draws.
    """

    def shape(p):
        return (p.n, p.lower is not None, p.mean is not None)

    count = 0
    for (n, has_lower, has_mean), group in groupby(sorted(problems, key=shape), key=shape):
        group = list(group)
        size = max(1, BATCH_BYTES // (8 * n * n))
        for at in range(0, len(group), size):
            part = group[at : at + size]
            tensor = lambda name, part=part: torch.from_numpy(
                np.stack([getattr(p, name) for p in part])
            ).to(device, dtype)
            covs = np.stack([off_the_form(p, dtype == torch.float32)[0] for p in part])
            arguments = {"upper": tensor("upper"), "cov": torch.from_numpy(covs).to(device, dtype)}
            arguments["lower"] = tensor("lower") if has_lower else None
            arguments["mean"] = tensor("mean") if has_mean else None
            for seed in seeds:
                own = [1_000_003 * seed + count + k for k in range(len(part))]
                count += len(part)
                yield part, seed, arguments | {"seed": torch.tensor(own, device=device)}


def _call(**arguments):
    from mvnrob import mvn_cdf

    with warnings.catch_warnings():
        # Unmet tolerances show in `status`, which is looked at.
        warnings.filterwarnings("ignore", message="mvn_cdf: .*max_points")
        return mvn_cdf(return_info=True, **arguments)


def run(problems, *, abs_tol, dtype=torch.float64, seeds=(0,), device="cpu", **options):
    """One Row per problem and seed; problems of one n go through mvn_cdf in one batch.

    dtype is that of the input; compute_dtype, among the options of mvn_cdf, that of the samples.
    """
    rows, single, rounding = [], dtype == torch.float32, {}
    for part, seed, arguments in _batches(problems, device, dtype, seeds):
        result = _call(abs_tol=abs_tol, **arguments, **options)
        columns = [field.tolist() for field in result]
        for k, p in enumerate(part):
            if id(p) not in rounding:
                rounding[id(p)] = 2.0**-23 + rounding_of_input(p) if single else 1e-12
                rounding[id(p)] += off_the_form(p, single)[1]
            values = [column[k] for column in columns]
            rows.append(Row(p, seed, dtype, abs_tol, *values, rounding[id(p)]))
    return rows


def run_tails(problems, *, rel_tol, seeds=(0,), device="cpu", **options):
    """One TailRow per problem (tails.Tail) and seed, float64."""
    rows = []
    for part, seed, arguments in _batches(problems, device, torch.float64, seeds):
        r = _call(abs_tol=0.0, rel_tol=rel_tol, **arguments, **options)
        near_one = torch.tensor([p.near_one for p in part], device=device)
        # Of the complement: that of a value below it, which may be nothing.
        relative = torch.where(r.complement > 0, r.error / r.complement, torch.inf)
        log_error = torch.where(relative < 1, -torch.log1p(-relative), torch.inf)
        small = torch.where(near_one, r.complement.log(), r.log_prob)
        stated = torch.where(near_one, log_error, r.log_error)
        columns = [
            c.tolist() for c in (small, stated, r.status, r.n_points, r.n_active, r.n_pivots)
        ]
        for k, p in enumerate(part):
            rows.append(TailRow(p, seed, rel_tol, *(column[k] for column in columns)))
    return rows


def p_value(misses, count):
    """One-sided: how likely at least this many misses are if each row misses with 1 %."""
    if count == 0:
        return 1.0
    return float(stats.binomtest(misses, count, MISS_RATE, alternative="greater").pvalue)


def insane(row):
    """What must not happen in any row, as a sentence; None when the row is sane."""
    if isinstance(row, TailRow):
        return _insane_tail(row)
    values = (row.prob, row.complement, row.error)
    if not all(np.isfinite(values)):
        return f"not finite: {values}"
    if not (0 <= row.prob <= 1 and 0 <= row.complement <= 1 and row.error >= 0):
        return f"out of range: {values}"
    if row.status not in (CONVERGED, EXACT, MAX_POINTS):
        return f"status {row.status} for a valid problem"
    if row.status != MAX_POINTS and row.error > row.abs_tol * (1 + 1e-6) + 2.0**-23:
        return f"status {row.status} with error {row.error} at tolerance {row.abs_tol}"
    if row.status == EXACT and row.miss:
        return f"exact, off by {row.deviation} with error {row.error}"
    if not 0 <= row.n_pivots <= row.n_active <= row.problem.n:
        return f"n_pivots {row.n_pivots}, n_active {row.n_active}, n {row.problem.n}"
    if row.n_points <= 0 and row.status != EXACT:
        return f"status {row.status} after {row.n_points} points"
    return None


def _insane_tail(row):
    if not (row.log_small < 0 and row.log_error >= 0):
        return f"out of range: {row.log_small}, {row.log_error}"
    if row.status not in (CONVERGED, EXACT, MAX_POINTS):
        return f"status {row.status} for a valid problem"
    # ln(1 - x) is a little more than x.
    if row.status == CONVERGED and row.log_error > 1.1 * row.rel_tol:
        return f"converged with a relative error of {row.log_error} at tolerance {row.rel_tol}"
    if row.status == EXACT and row.miss:
        return f"exact, off by {row.deviation} with error {row.log_error}"
    if row.n_points <= 0 and row.status != EXACT:
        return f"status {row.status} after {row.n_points} points"
    return None


def describe(row):
    p = row.problem
    if isinstance(row, TailRow):
        return (
            f"{p.name} rel_tol={row.rel_tol:g} seed={row.seed} ln truth={p.log_small:.8f} "
            f"off={row.deviation:.2e} error={row.log_error:.2e} "
            f"({row.deviation / row.log_error if row.log_error else np.inf:.2f}x) "
            f"status={row.status} points={row.n_points} active={row.n_active} pivots={row.n_pivots}"
        )
    return (
        f"{p.name} n={p.n} {str(row.dtype)[6:]} tol={row.abs_tol:g} seed={row.seed} "
        f"truth={p.prob:.8f} prob={row.prob:.8f} off={row.deviation:.2e} error={row.error:.2e} "
        f"({row.deviation / row.error if row.error else np.inf:.2f}x) status={row.status} "
        f"points={row.n_points} active={row.n_active} pivots={row.n_pivots}"
    )


def table(rows):
    """Per branch and per family: rows, misses, p-value, worst and rms of |error made| / reported."""
    groups = {}
    for row in rows:
        for branch in row.branches:
            groups.setdefault(("branch", branch), []).append(row)
        if row.status != EXACT:
            groups.setdefault(("family", row.problem.family), []).append(row)
    out = []
    for (kind, name), members in sorted(groups.items()):
        misses = sum(r.miss for r in members)
        made = np.array([r.deviation for r in members])
        stated = np.array([r.stated for r in members])
        known = np.isfinite(stated)  # an infinite error covers, and says nothing
        made, stated = made[known], stated[known]
        ratio = np.append(made / np.maximum(stated, 1e-300), 0.0)
        out.append(
            {
                "group": kind, "name": name, "rows": len(members),
                "problems": len({id(r.problem.upper) for r in members}), "misses": misses,
                "p_value": 1.0 if name == "exact" else p_value(misses, len(members)),
                "worst_ratio": float(ratio.max()),
                "rms_made": float(np.sqrt(np.mean(made**2))) if len(made) else None,
                "rms_stated": float(np.sqrt(np.mean(stated**2))) if len(made) else None,
                "unbounded": int((~known).sum()),
                "unmet": sum(r.status == MAX_POINTS for r in members),
                "median_points": int(np.median([r.n_points for r in members])),
            }
        )  # fmt: skip
    return out
