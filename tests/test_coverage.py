"""The reported error as a statistic: does it cover the truth as often as it claims?

All known-answer problems, fresh shifts for every row and seed, both tolerances, both dtypes of input
and of samples; in the tails the error of the logarithm. The larger version, with more seeds and
fresh problem parameters, is `python -m bench.coverage`.
"""

import math

import honesty
import problems
import pytest
import tails
import torch

# Work of one row is capped so that the suite stays short; a row that ends there has status
# MAX_POINTS, and its error has to cover the truth all the same.
MAX_POINTS = 8 * 2**13
SEEDS_SMALL, SEEDS_LARGE, LARGE = 4, 1, 100
# Large rows take most of the time: to the end where dtypes are the default, and elsewhere to what
# leaves twice the error, which has to cover the truth as well.
MAX_POINTS_LARGE = 8 * 2**11

# Tolerance, dtype of the input, dtype of the samples.
CASES = [
    pytest.param(1e-3, torch.float64, None, id="1e-3-float64"),
    pytest.param(1e-4, torch.float64, None, id="1e-4-float64"),
    pytest.param(1e-4, torch.float64, torch.float64, id="1e-4-float64-sampled-in-float64"),
    pytest.param(1e-3, torch.float32, None, id="1e-3-float32"),
    pytest.param(1e-4, torch.float32, None, id="1e-4-float32"),
]
# Of the small side; its samples are always float64.
REL_TOLS = [3e-2, 1e-2]


@pytest.fixture(scope="module")
def rows():
    """rows(abs_tol, dtype, compute_dtype), computed once for each."""
    done = {}

    def get(*case):
        if case not in done:
            abs_tol, dtype, compute_dtype = case
            every = problems.known_answers(0)
            small = [p for p in every if p.n < LARGE]
            large = [p for p in every if p.n >= LARGE]
            options = {"abs_tol": abs_tol, "dtype": dtype, "compute_dtype": compute_dtype}
            most = MAX_POINTS if case[1:] == (torch.float64, None) else MAX_POINTS_LARGE
            done[case] = [
                *honesty.run(small, seeds=range(SEEDS_SMALL), max_points=MAX_POINTS, **options),
                *honesty.run(large, seeds=range(SEEDS_LARGE), max_points=most, **options),
            ]
        return done[case]

    return get


@pytest.fixture(scope="module")
def tail_rows():
    """tail_rows(rel_tol), computed once for each."""
    done, fresh = {}, [*tails.lower_tails(0, 60), *tails.upper_tails(0, 150)]

    def get(rel_tol):
        if rel_tol not in done:
            chosen = fresh + list(tails.known_tails(0, rel_tol))
            done[rel_tol] = honesty.run_tails(
                chosen, rel_tol=rel_tol, seeds=range(2), max_points=MAX_POINTS
            )
        return done[rel_tol]

    return get


def assert_sane(rows):
    wrong = [f"{honesty.insane(r)}: {honesty.describe(r)}" for r in rows if honesty.insane(r)]
    assert not wrong, f"{len(wrong)} rows\n" + "\n".join(wrong[:20])


def assert_honest(rows, branch, least):
    """At least `least` rows take the branch, and they miss no more often than one in a hundred."""
    members = [r for r in rows if branch in r.branches]
    assert len(members) >= least, f"too few rows reach branch {branch}: {len(members)}"
    missed = sorted((r for r in members if r.miss), key=lambda r: -r.deviation / r.stated)
    p = honesty.p_value(len(missed), len(members))
    assert p >= honesty.REJECT_BELOW, (
        f"{len(missed)} of {len(members)} rows miss, p = {p:.2g}; the worst:\n"
        + "\n".join(honesty.describe(r) for r in missed[:20])
    )


@pytest.mark.slow
@pytest.mark.parametrize(("abs_tol", "dtype", "compute_dtype"), CASES)
def test_no_row_is_insane(rows, abs_tol, dtype, compute_dtype):
    assert_sane(rows(abs_tol, dtype, compute_dtype))


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["all", "plain", "screened", "completed"])
@pytest.mark.parametrize(("abs_tol", "dtype", "compute_dtype"), CASES)
def test_error_covers_the_truth(rows, abs_tol, dtype, compute_dtype, branch):
    assert_honest(rows(abs_tol, dtype, compute_dtype), branch, 300)


@pytest.mark.slow
@pytest.mark.parametrize("rel_tol", REL_TOLS)
def test_no_tail_is_insane(tail_rows, rel_tol):
    assert_sane(tail_rows(rel_tol))


@pytest.mark.slow
@pytest.mark.parametrize(("branch", "least"), [("all", 1200), ("tilted", 600), ("union", 500)])
@pytest.mark.parametrize("rel_tol", REL_TOLS)
def test_log_error_covers_the_truth(tail_rows, rel_tol, branch, least):
    assert_honest(tail_rows(rel_tol), branch, least)


@pytest.mark.parametrize(("near_one", "share"), [(False, 0.98), (True, 0.85)])
def test_tails_take_the_branch_that_they_are_counted_for(near_one, share):
    """Where all variables are sampled, plain samples of the same plan give the same bits."""
    made = tails.upper_tails(1, 40) if near_one else tails.lower_tails(1, 15)
    options = {"rel_tol": 1e-2, "max_points": 8 * 2**11}
    branch = "union" if near_one else "tilted"
    chosen = list(made)
    auto = honesty.run_tails(chosen, **options)
    plain = honesty.run_tails(chosen, method="sov", **options)
    counted = [
        (a.log_small, p.log_small) for a, p in zip(auto, plain, strict=True) if branch in a.branches
    ]
    assert len(counted) >= 50
    assert sum(a != p for a, p in counted) >= share * len(counted)


@pytest.mark.slow
@pytest.mark.parametrize("points", ["richtmyer", "sobol"])
def test_error_covers_the_truth_for_any_points(points):
    """What CASES are for the default."""
    some = [p for p in problems.known_answers(0) if p.n < LARGE]
    rows = honesty.run(
        some,
        abs_tol=1e-4,
        dtype=torch.float32,
        seeds=range(2),
        max_points=MAX_POINTS,
        points=points,
    )
    missed = [r for r in rows if r.miss]
    assert len(rows) >= 900
    assert honesty.p_value(len(missed), len(rows)) >= honesty.REJECT_BELOW


def test_a_miss_is_seen():
    """The harness itself: rows that understate their error are rejected, honest ones are not."""
    problem = next(p for p in problems.known_answers(0) if p.family == "one_factor")

    def row(off, error, status=honesty.CONVERGED):
        points = 0 if status == honesty.EXACT else 512
        return honesty.Row(
            problem, 0, torch.float64, 1e-3, problem.prob + off, problem.complement - off,
            math.log(problem.prob), error, error / problem.prob, status, points, problem.n, problem.n, 1e-12,
        )  # fmt: skip

    assert row(2e-4, 1e-4).miss and not row(0.9e-4, 1e-4).miss
    assert row(float("nan"), 1e-4).miss
    assert "not finite" in honesty.insane(row(float("nan"), 1e-4))
    assert honesty.insane(row(0.0, 1e-4)) is None
    assert "tolerance" in honesty.insane(row(0.0, 2e-3))
    assert "off by" in honesty.insane(row(2e-4, 1e-4, honesty.EXACT))
    assert honesty.p_value(10, 1000) > 0.1
    assert honesty.p_value(25, 1000) < honesty.REJECT_BELOW
    tail = next(tails.lower_tails(0, 1))

    def tail_row(off, error, points=1024):
        at = tail.log_small + off
        return honesty.TailRow(tail, 0, 1e-2, at, error, honesty.CONVERGED, points, tail.n, tail.n)

    assert tail_row(-2e-3, 1e-3).miss and not tail_row(0.9e-3, 1e-3).miss
    assert tail_row(float("nan"), 1e-3).miss and tail_row(0.0, math.nan).miss is True
    assert tail_row(0.0, 1e-3).branches == ("all", "tilted")
    assert tail_row(0.0, 1e-3, points=512).branches == ("all", "pilot")
    assert "tolerance" in honesty.insane(tail_row(0.0, 2e-2))
