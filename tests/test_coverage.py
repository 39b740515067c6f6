"""The reported error as a statistic: does it cover the truth as often as it claims?

All known-answer problems, fresh shifts for every row and seed, both tolerances, both dtypes. The
larger version, with more seeds and fresh problem parameters, is `python -m bench.coverage`.
"""

import math

import honesty
import problems
import pytest
import torch

# Work of one row is capped so that the suite stays short; a row that ends there has status
# MAX_POINTS, and its error has to cover the truth all the same.
MAX_POINTS = 8 * 2**13
SEEDS_SMALL, SEEDS_LARGE, LARGE = 4, 2, 100

CASES = [
    pytest.param(1e-3, torch.float64, id="1e-3-float64"),
    pytest.param(1e-4, torch.float64, id="1e-4-float64"),
    pytest.param(1e-3, torch.float32, id="1e-3-float32"),
    pytest.param(1e-4, torch.float32, id="1e-4-float32"),
]


@pytest.fixture(scope="module")
def rows():
    """rows(abs_tol, dtype), computed once per pair."""
    done = {}

    def get(abs_tol, dtype):
        if (abs_tol, dtype) not in done:
            every = problems.known_answers(0)
            small = [p for p in every if p.n < LARGE]
            large = [p for p in every if p.n >= LARGE]
            options = {"abs_tol": abs_tol, "dtype": dtype, "max_points": MAX_POINTS}
            done[abs_tol, dtype] = honesty.run(
                small, seeds=range(SEEDS_SMALL), **options
            ) + honesty.run(large, seeds=range(SEEDS_LARGE), **options)
        return done[abs_tol, dtype]

    return get


@pytest.mark.slow
@pytest.mark.parametrize(("abs_tol", "dtype"), CASES)
def test_no_row_is_insane(rows, abs_tol, dtype):
    wrong = [
        f"{honesty.insane(r)}: {honesty.describe(r)}"
        for r in rows(abs_tol, dtype)
        if honesty.insane(r)
    ]
    assert not wrong, f"{len(wrong)} rows\n" + "\n".join(wrong[:20])


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["all", "plain", "screened", "completed"])
@pytest.mark.parametrize(("abs_tol", "dtype"), CASES)
def test_error_covers_the_truth(rows, abs_tol, dtype, branch):
    members = [r for r in rows(abs_tol, dtype) if branch in r.branches]
    assert len(members) >= 300, f"too few rows reach branch {branch}: {len(members)}"
    missed = sorted((r for r in members if r.miss), key=lambda r: -r.deviation / r.error)
    p = honesty.p_value(len(missed), len(members))
    assert p >= honesty.REJECT_BELOW, (
        f"{len(missed)} of {len(members)} rows miss, p = {p:.2g}; the worst:\n"
        + "\n".join(honesty.describe(r) for r in missed[:20])
    )


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
