"""Rows of independent blocks of which some are exact: the others are sampled, and all multiply."""

import math

import numpy as np
import pytest
import torch
from honesty import REJECT_BELOW, p_value
from test_one_factor import product_form

from mvnrob import Status, _mvn_cdf_blocks, mvn_cdf, mvn_log_cdf

INF = math.inf


def dense_form(rng, n, columns=None):
    rows = rng.normal(size=(n, n + 3 if columns is None else columns))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    return rows @ rows.T


class Row:
    """Blocks (cov, upper, lower or None) in a random order of their variables."""

    def __init__(self, rng, *blocks):
        self.blocks = blocks
        self.n = sum(len(upper) for _, upper, _ in blocks)
        cov, at = np.zeros((self.n, self.n)), 0
        for block, *_ in blocks:
            here = slice(at, at + len(block))
            cov[here, here] = block
            at += len(block)
        lower = [np.full(len(u), -INF) if v is None else v for _, u, v in blocks]
        self.order = rng.permutation(self.n)
        self.cov = torch.from_numpy(cov[np.ix_(self.order, self.order)])
        self.upper = torch.from_numpy(np.concatenate([u for _, u, _ in blocks])[self.order])
        self.lower = torch.from_numpy(np.concatenate(lower)[self.order])

    def solve(self, **options):
        return mvn_cdf(self.upper, self.cov, lower=self.lower, return_info=True, **options)

    def each(self, **options):
        """The blocks one by one."""
        out = []
        for cov, upper, lower in self.blocks:
            low = None if lower is None else torch.from_numpy(lower)
            t = torch.from_numpy(upper), torch.from_numpy(cov)
            out.append(mvn_cdf(*t, lower=low, return_info=True, **options))
        return out


def combined(each):
    """p, 1 - p and log p of blocks, and absolute errors of p and log p."""
    p, q, log_p = 1.0, 0.0, 0.0
    for r in each:
        q += p * float(r.complement)
        p *= float(r.prob)
        log_p += float(r.log_prob)
    return p, q, log_p, sum(float(r.error) for r in each), sum(float(r.log_error) for r in each)


def assert_right(r, truth, rel_tol=0.0, status=Status.CONVERGED):
    p, q, log_p, error, log_error = truth
    assert abs(float(r.prob) - p) <= float(r.error) + error + 2e-16  # rounding near one
    assert abs(float(r.complement) - q) <= float(r.error) + error
    assert abs(float(r.log_prob) - log_p) <= float(r.log_error) + log_error + 2e-16
    assert r.status == status
    if rel_tol:
        assert float(r.error) <= rel_tol * min(float(r.prob), float(r.complement)) * (1 + 1e-9)


def equicorrelated(n, limit, corr=0.5, lower=None):
    low = None if lower is None else np.full(n, float(lower))
    return product_form(np.full(n, math.sqrt(corr))), np.full(n, float(limit)), low


LIMITS = {
    "middle": (0.8, 1.0),
    "exact block is small": (-6.0, 1.0),
    "rest is small": (1.5, -2.5),
    "both are small": (-2.0, -1.0),
    "exact block decides near one": (3.0, 7.5),
    "rest decides near one": (7.5, 3.5),
    "both near one": (5.0, 5.0),
    "exact block is near one": (9.0, 0.5),
    "rest is near one": (0.5, 9.0),
}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("rectangular", [False, True])
def test_products(name, rectangular):
    """20 equicorrelated variables, a pair and a single beside 12 of no form."""
    rng = np.random.default_rng(len(name))
    near, rest = LIMITS[name]
    upper = rest + rng.uniform(0, 0.5, 12)
    low = (lambda u: -np.abs(u) - rng.uniform(0.2, 2, len(u))) if rectangular else lambda u: None
    pair = np.array([[1.0, -0.3], [-0.3, 1.0]]), np.array([near, near + 1]), None
    single = np.ones((1, 1)), np.array([near + 0.5]), np.array([-9.0])
    row = Row(
        rng,
        equicorrelated(20, near, lower=-abs(near) - 1 if rectangular else None),
        (dense_form(rng, 12, 40), upper, low(upper)),
        pair,
        single,
    )
    options = {"abs_tol": 0.0, "max_points": 8 * 2**17}
    truth = combined(row.each(rel_tol=2e-4, seed=1, **options))
    r = row.solve(rel_tol=5e-3, **options)
    if name in ("exact block decides near one", "rest is near one"):  # here too
        assert_right(r, truth, rel_tol=5e-3, status=r.status)
    else:
        assert_right(r, truth, rel_tol=5e-3)
        assert 0 < r.n_active == r.n_pivots
    r = row.solve(abs_tol=1e-4)  # may screen away all that is not exact, or all that is
    assert_right(r, truth, status=r.status)
    assert float(r.error) <= 1e-4 and r.status != Status.MAX_POINTS
    with pytest.raises(ValueError, match="not independent blocks"):
        row.solve(method="closed_form")
    sampled = row.solve(method="sov", abs_tol=1e-2)
    assert_right(sampled, truth, status=sampled.status)
    assert sampled.n_points > 0 or sampled.n_active <= 1


def test_the_rest_costs_what_it_costs_alone():
    rng = np.random.default_rng(0)
    blocks = [equicorrelated(10, 3.5) for _ in range(30)]
    alone = dense_form(rng, 40), 1.5 + rng.uniform(0, 1, 40), None
    row = Row(rng, *blocks, alone)
    r = row.solve(abs_tol=1e-3)
    rest = row.each(abs_tol=1e-3)[-1]
    assert r.status == Status.CONVERGED and r.n_active == r.n_pivots == 340
    assert r.n_points <= rest.n_points
    assert_right(r, combined(row.each(abs_tol=1e-6, seed=1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors(dtype):
    """By a factor of the covariance, scaled, in both dtypes; the rest is singular."""
    rng = np.random.default_rng(2)
    load = rng.uniform(0.3, 0.9, 7)
    one = np.hstack([load[:, None], np.diag(np.sqrt(1 - load**2))])
    other = rng.normal(size=(9, 4))
    other /= np.linalg.norm(other, axis=1)[:, None]
    factor = np.zeros((16, 12))
    factor[:7, :8], factor[7:, 8:] = one, other
    upper, scale = rng.uniform(0.5, 2, 16), rng.uniform(0.1, 3, 16)
    t = (torch.from_numpy(x).to(dtype) for x in (upper * scale, factor * scale[:, None]))
    r = mvn_cdf(
        next(t), factor=next(t), abs_tol=1e-4, compute_dtype=torch.float64, return_info=True
    )
    row = Row(rng, (product_form(load), upper[:7], None), (other @ other.T, upper[7:], None))
    truth = combined(row.each(abs_tol=1e-6, seed=1))
    assert abs(float(r.prob) - truth[0]) <= float(r.error) + truth[3] + 1e-6 * (
        dtype == torch.float32
    )
    assert r.status == Status.CONVERGED
    assert r.n_active == 16 and r.n_pivots == 11
    assert_right(row.solve(abs_tol=1e-4), truth)


def test_duplicates():
    """Every variable twice, the second time as a negative multiple."""
    rng = np.random.default_rng(3)
    row = Row(rng, equicorrelated(6, 1.0), (dense_form(rng, 8), np.linspace(0.5, 2, 8), None))
    sign = np.concatenate([np.ones(14), np.full(14, -2.0)])
    cov = row.cov.repeat(2, 2) * torch.from_numpy(np.outer(sign, sign))
    upper = torch.cat([row.upper, torch.full((14,), 1.2).double()])
    lower = torch.cat([torch.full((14,), -1.3).double(), -2 * row.upper - 1])
    r = mvn_cdf(upper, cov, lower=lower, abs_tol=1e-5, return_info=True)
    once = mvn_cdf(
        row.upper,
        row.cov,
        lower=torch.full((14,), -0.6).double(),
        abs_tol=1e-5,
        return_info=True,
    )
    assert r.n_points == once.n_points > 0 and r.n_active == 14
    assert float(r.prob) == pytest.approx(float(once.prob), abs=1e-9)


def test_a_probability_that_underflows():
    """E of e^-5000 and less: log p has its digits, and p is no number to tell from zero."""
    rng = np.random.default_rng(4)
    row = Row(
        rng,
        *[equicorrelated(100, -20.0) for _ in range(20)],
        (dense_form(rng, 10), np.linspace(-1, 1, 10), None),
    )
    truth = combined(row.each(abs_tol=0.0, rel_tol=1e-5, seed=1))
    assert truth[2] < -5000
    r = mvn_log_cdf(row.upper, row.cov, rel_tol=1e-3, return_info=True)
    assert r.prob == 0 and r.complement == 1
    assert_right(r, truth)
    assert float(r.log_error) <= 1.1e-3
    r = row.solve(abs_tol=1e-4)
    assert r.prob == 0 and r.status == Status.CONVERGED and r.n_points == 512
    assert abs(float(r.log_prob) - truth[2]) <= float(r.log_error)


def test_screening_counts_for_the_whole_row():
    rng = np.random.default_rng(5)
    row = Row(
        rng,
        equicorrelated(30, 4.5),
        equicorrelated(10, 1.0),
        (dense_form(rng, 30), np.concatenate([np.full(10, 1.0), np.full(20, 4.6)]), None),
    )
    truth = combined(row.each(abs_tol=1e-6, seed=1))
    r = row.solve(abs_tol=1e-3)
    assert r.n_active < row.n
    assert_right(r, truth)
    small = row.solve(abs_tol=0.0, rel_tol=1e-3)  # screened again
    assert_right(small, truth, rel_tol=1e-3)
    # What is screened is more than p itself: its logarithm is not known.
    row = Row(
        rng,
        *[equicorrelated(100, -20.0) for _ in range(20)],
        (dense_form(rng, 10), np.full(10, 4.5), None),
    )
    assert row.solve(abs_tol=1e-3).log_error == INF


def test_an_exact_block_without_digits():
    """Three variables' error is absolute: where p needs its digits the row is sampled whole."""
    rng = np.random.default_rng(6)
    three = np.array([[1.0, 0.5, -0.2], [0.5, 1.0, 0.4], [-0.2, 0.4, 1.0]])
    row = Row(
        rng,
        (three, np.array([-3.0, -3.5, -2.8]), None),
        (dense_form(rng, 6), np.full(6, 1.0), None),
    )
    options = {"abs_tol": 0.0, "rel_tol": 1e-2}
    truth = combined(row.each(**options, seed=1))
    assert truth[0] < 1e-7
    assert_right(row.solve(**options), truth, rel_tol=1e-2)
    r = row.solve(abs_tol=1e-4)
    assert_right(r, truth)
    assert r.n_points == 512


@pytest.mark.parametrize("corr", [0.99995, -0.9999999])
def test_steep_pairs_have_a_closed_form(corr):
    rng = np.random.default_rng(7)
    pair = np.array([[1.0, corr], [corr, 1.0]]), np.array([0.3, 0.30001]), None
    row = Row(rng, pair, (dense_form(rng, 6), np.full(6, 1.0), None), equicorrelated(5, 1.0))
    assert_right(row.solve(abs_tol=1e-5), combined(row.each(abs_tol=1e-7, seed=1)))
    only = Row(rng, pair, equicorrelated(5, 1.0))
    assert only.solve().status == Status.EXACT


def test_an_indefinite_rest():
    rng = np.random.default_rng(8)
    bad = dense_form(rng, 6)
    bad[0, 1] = bad[1, 0] = 1.3
    row = Row(rng, equicorrelated(5, 1.0), (bad, np.full(6, 1.0), None))
    with pytest.warns(RuntimeWarning, match="indefinite"):
        r = row.solve()
    assert r.status == Status.INDEFINITE and math.isnan(float(r.prob))
    # Computed in float32: judged as such, and the exact block still is one.
    rows = rng.normal(size=(60, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    singular = (rows @ rows.T).astype(float)
    row = Row(rng, equicorrelated(5, 1.0), (singular, rng.uniform(1, 2, 60), None))
    r = row.solve(abs_tol=1e-3)
    assert r.status == Status.CONVERGED
    exact, rest = (mvn_cdf(torch.from_numpy(u), torch.from_numpy(c)) for c, u, _ in row.blocks)
    assert abs(float(r.prob - exact * rest)) <= float(r.error) + 2e-4


def test_a_rest_of_a_thousand():
    rng = np.random.default_rng(9)
    row = Row(
        rng,
        equicorrelated(50, 1.5),
        (dense_form(rng, 1000, 80), rng.uniform(2.5, 4, 1000), None),
    )
    truth = combined(row.each(abs_tol=2e-4, seed=1))
    for options in ({"abs_tol": 1e-3}, {"abs_tol": 0.0, "rel_tol": 2e-2}):
        assert_right(row.solve(**options), truth)


@pytest.mark.parametrize("kind", ["absolute", "small", "near one"])
def test_errors_cover_the_truth(kind):
    """300 rows of 6 one-factor, 2 independent and 7 dense variables, truths by the blocks."""
    rng = np.random.default_rng(10)
    count, sizes = 300, (6, 2, 7)
    shift = {"absolute": (0.7, 0.7), "small": (-1.5, -1.5), "near one": (3.0, 3.2)}[kind]
    n = sum(sizes)
    cov = np.zeros((count, n, n))
    upper = rng.uniform(0, 1, (count, n))
    upper[:, :8] += shift[0]
    upper[:, 8:] += shift[1]
    for b in range(count):
        cov[b, :6, :6] = product_form(rng.uniform(0.3, 0.95, 6))
        cov[b, [6, 7], [6, 7]] = 1
        cov[b, 8:, 8:] = dense_form(rng, 7)
    upper, cov = torch.from_numpy(upper), torch.from_numpy(cov)
    exact = mvn_cdf(upper[:, :8], cov[:, :8, :8], method="closed_form", return_info=True)
    options = {"abs_tol": 1e-4} if kind == "absolute" else {"abs_tol": 0.0, "rel_tol": 1e-2}
    finer = {k: v / 20 for k, v in options.items()}
    rest = mvn_cdf(
        upper[:, 8:], cov[:, 8:, 8:], seed=10**6 + torch.arange(count), return_info=True, **finer
    )
    r = mvn_cdf(upper, cov, seed=torch.arange(count), return_info=True, **options)
    assert (r.status == Status.CONVERGED).all()
    p = exact.prob * rest.prob
    q = exact.complement + exact.prob * rest.complement
    known = exact.prob * rest.error + 1e-11
    missed = ((r.prob - p).abs() > r.error + known) | ((r.complement - q).abs() > r.error + known)
    assert p_value(int(missed.sum()), count) >= REJECT_BELOW
    # And it is not far more than the error made.
    made = ((r.prob - p).abs() / r.error).square().mean().sqrt()
    assert made >= 0.02


# ---- gradients -----------------------------------------------------------------------------------


def by_quadrature(upper, lower, loads, noise):
    """P by Gauss-Legendre over two common factors, differentiable."""
    x, w = (torch.from_numpy(t) for t in np.polynomial.legendre.leggauss(120))
    w = 8 * w * torch.exp(-32 * x * x) / math.sqrt(2 * math.pi)
    y = 8 * x
    known = loads[:, :1, None] * y[:, None] + loads[:, 1:, None] * y
    phi = torch.special.ndtr
    each = phi((upper[:, None, None] - known) / noise) - phi((lower[:, None, None] - known) / noise)
    return torch.einsum("a,b,ab->", w, w, each.prod(0))


@pytest.mark.parametrize("output", ["prob", "log_prob", "complement"])
@pytest.mark.parametrize("rest", [5, 14])
def test_gradients(rest, output):
    """Of limits, loads and entries between the blocks; a few conditional problems, and many."""
    rng = np.random.default_rng(rest)
    parts = []
    for m, corr in ((6, 0.0), (6, 0.0), (rest, 1.0)):
        loads = rng.uniform(0.3, 0.6, (m, 2)) * [1, corr]
        upper, lower = rng.uniform(0.8, 2, m), -rng.uniform(1.2, 3, m)
        parts.append([torch.from_numpy(t).requires_grad_() for t in (upper, lower, loads)])
    noise = 0.7

    def together(k):
        return torch.cat([part[k] for part in parts])

    n = 12 + rest
    cov = torch.block_diag(*[p[2] @ p[2].mT for p in parts]) + noise**2 * torch.eye(n).double()
    between = torch.zeros(n, n, dtype=torch.float64, requires_grad=True)
    order = torch.from_numpy(rng.permutation(n))
    r = mvn_cdf(
        together(0)[order],
        (cov + between)[order][:, order],
        lower=together(1)[order],
        abs_tol=1e-4,
        return_info=True,
    )
    assert r.n_points > 0
    each = [by_quadrature(*part, noise) for part in parts]
    p = each[0] * each[1] * each[2]
    assert abs(float(r.prob - p)) <= float(r.error)
    truth = {"prob": p, "log_prob": p.log(), "complement": 1 - p}[output]
    flat = [t for part in parts for t in part]
    ours = torch.autograd.grad(getattr(r, output), [*flat, between])
    theirs = torch.autograd.grad(truth, flat, retain_graph=True)
    scale = 1 / float(p) if output == "log_prob" else 1.0
    for a, b in zip(ours, theirs, strict=False):
        assert (a - b).abs().max() <= 2e-4 * scale
    # Between independent blocks: the product of the slopes to what moves the limits, half to each.
    moves = torch.cat(
        [sum(torch.autograd.grad(e.log(), part[:2])) for e, part in zip(each, parts, strict=True)]
    )
    sign = -1 if output == "complement" else 1
    expected = 0.5 * sign * torch.outer(moves, moves) * float(p) * scale
    apart = cov.detach() == 0
    assert (ours[-1] - expected)[apart].abs().max() <= 2e-4 * scale
    assert expected[apart].abs().max() >= 1e-3 * scale


def test_rows_of_a_batch_are_differentiated_alone():
    """Split ones beside whole ones, exact ones and those without slopes."""
    rng = np.random.default_rng(12)
    split = Row(rng, equicorrelated(6, 1.0), (dense_form(rng, 14), rng.uniform(1, 2, 14), None))
    whole = torch.from_numpy(dense_form(rng, 20))
    only_exact = torch.from_numpy(equicorrelated(20, 0.0)[0])
    cov = torch.stack([whole, split.cov, only_exact, split.cov, whole])
    upper = split.upper.repeat(5, 1)
    upper[3, 0] = math.nan
    seed = torch.arange(5)

    def grads(rows):
        u, c = (t[rows].clone().requires_grad_() for t in (upper, cov))
        r = mvn_cdf(u, c, seed=seed[rows], abs_tol=1e-3)
        return torch.autograd.grad(r.sum(), (u, c))

    for dtype in (torch.float64, torch.float32):
        upper, cov = upper.to(dtype), cov.to(dtype)
        together = grads(slice(None))
        for b in (0, 1, 2, 4):
            alone = grads(slice(b, b + 1))
            assert all(torch.equal(t[b], a[0]) for t, a in zip(together, alone, strict=True))
        assert together[0][3].isnan().all()


def test_blocks_of_many_rows():
    """Against a search row by row: connected components of live variables, in ascending order."""
    rng = np.random.default_rng(3)
    batch, n = 60, 11
    # Some chains are linked in one of two mirrored entries alone, of which only one is read.
    links = np.triu(rng.random((batch, n, n)) < rng.choice([0.02, 0.1, 0.3], (batch, 1, 1)), 1)
    order = np.stack([rng.permutation(n) for _ in range(batch)])
    links = np.take_along_axis(np.take_along_axis(links, order[:, :, None], 1), order[:, None], 2)
    live = rng.random((batch, n)) < 0.8
    joined = torch.from_numpy(links & live[:, :, None] & live[:, None, :])
    component = _mvn_cdf_blocks._components(joined)
    block = component.masked_fill(~torch.from_numpy(live), -1)
    expected, sizes = set(), set()
    for b in range(batch):
        left = set(np.flatnonzero(live[b]).tolist())
        while left:
            found, new = set(), {min(left)}
            while new:
                found |= new
                new = {j for i in new for j in left if links[b, i, j] or links[b, j, i]} - found
            assert set(component[b, sorted(found)].tolist()) == {min(found)}
            expected.add((b, tuple(sorted(found))))
            sizes.add(len(found))
            left -= found
    assert len(sizes) >= 5
    got = []
    for parts in _mvn_cdf_blocks.parts_of(block):
        assert parts.index.shape[1] in (1, 2, 4, 8, n)
        for row, index, filled in zip(*parts, strict=True):
            got.append((int(row), tuple(index[~filled].tolist())))
            assert 2 * len(got[-1][1]) > parts.index.shape[1] or parts.index.shape[1] == n
    assert sorted(got) == sorted(expected)
