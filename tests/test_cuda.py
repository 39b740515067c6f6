"""mvn_cdf, bvn_cdf, standard_normal, nearest_ends and pivoted_cholesky on a GPU: the same numbers as on the CPU,
and CUDA's own ways of going wrong.

Tests that need a GPU are skipped without one; with MVNROB_REQUIRE_CUDA=1 they fail instead
(bench/gpu.sh sets it). Kernel bodies are tested without a GPU in test_shim.py.
"""

import math
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import honesty
import nearest_ends_cases
import numpy as np
import problems
import pytest
import torch
from singular_tails import cone
from test_mvn_cdf import BAD_CALLS, EDGES, equicorrelated, random_problem
from two_levels import two_levels

import mvnrob
from mvnrob import Status, _load, bvn_cdf, mvn_cdf, pivoted_cholesky
from mvnrob._nearest_ends import nearest_ends
from mvnrob._standard_normal import standard_normal
from mvnrob.noise import SAMPLES, row_keys

INF, NAN = math.inf, math.nan
DTYPES = (torch.float32, torch.float64)


def no_gpu():
    """Why there is nothing to test here, or None."""
    if _load.cuda_unavailable:
        return _load.cuda_unavailable
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    return None


@pytest.fixture
def cuda():
    """The GPU; skips, or fails where one is required."""
    reason = no_gpu()
    if reason and os.environ.get("MVNROB_REQUIRE_CUDA") == "1":
        pytest.fail(f"MVNROB_REQUIRE_CUDA=1, but {reason}")
    if reason:
        pytest.skip(reason)
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def all_threads():
    """The CPU side of a comparison is the slow one."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())
    yield
    torch.set_num_threads(before)


def put(x, device):
    """Tensors to a device, also inside tuples and dictionaries; meta tensors stay."""
    if isinstance(x, torch.Tensor):
        return x if x.device.type == "meta" else x.to(device)
    if isinstance(x, (tuple, list)):
        return type(x)(put(item, device) for item in x)
    if isinstance(x, dict):
        return {key: put(value, device) for key, value in x.items()}
    return x


def assert_same_bits(a, b):
    """Every field of two results; NaN equals NaN."""
    for name, x, y in zip(mvnrob.MVNResult._fields, a, b, strict=True):
        x, y = x.cpu(), y.cpu()
        same = (x == y) | (x.isnan() & y.isnan())
        assert x.shape == y.shape and bool(same.all()), (name, x[~same], y[~same])


def info(*args, **kwargs):
    return mvn_cdf(*args, return_info=True, **kwargs)


# ---- without a GPU ------------------------------------------------------------------------------


def cuda_tensors(*shapes):
    """Tensors that say they are on a GPU, whether there is one or not."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return [torch.empty(shape, device="cuda:0") for shape in shapes]


@pytest.mark.parametrize("reason", ["torch 9.9 is built without CUDA", "_C_cuda does not load"])
def test_error_says_what_is_missing(monkeypatch, reason):
    monkeypatch.setattr(_load, "cuda_unavailable", reason)
    upper, cov, h, k, rho = cuda_tensors(3, (3, 3), 2, 2, 2)
    with pytest.raises(NotImplementedError, match=f"mvn_cdf: upper must .*, got cuda:0: {reason}"):
        mvn_cdf(upper, cov)
    with pytest.raises(NotImplementedError, match=f"bvn_cdf: h must .*, got cuda:0: {reason}"):
        bvn_cdf(h, k, rho)


def test_reason_on_this_machine():
    """Beside a torch without CUDA the package imports, and knows why CUDA tensors will not do."""
    if torch.version.cuda is None:
        assert _load.cuda_unavailable == f"torch {torch.__version__} is built without CUDA"
    else:
        missing = _load.cuda_unavailable
        assert missing is None or "mvnrob._C_cuda could not be loaded" in missing


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_notices(tmp_path):
    """Whose notice the host sees, and what it asks CUDA for once: tests/native/notices.cpp."""
    native = Path(__file__).parent / "native"
    program = tmp_path / "notices"
    subprocess.run(
        ["nvcc", "-std=c++17", "-cudart", "none", "-Xcompiler", "-pthread", "-I",
         native.parents[1] / "csrc", native / "notices.cpp", "-o", program],
        check=True,
    )  # fmt: skip
    for arguments in ([], ["no memory"]):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


# ---- the same numbers as the CPU ----------------------------------------------------------------

# What the two may differ by when order and points are the same: another association of the same
# sums, fused multiply-adds, and CUDA's exp2, log2 and reciprocals (2 ulp). Two instruction sets of
# the CPU backend (no FMA against AVX-512) differ over these plans by at most 8e-6 of a sum in
# float32 and the kernels on their stand-in by 2.4e-11 in float64, where narrow intervals of rank 3
# magnify rounding, and both by 1e-6 and 1e-14 elsewhere. CUDA's units add about 4e-7 a step, of one
# sign at worst: 2e-5 covers 50 steps that matter. A wrong term, point or index moves a sum by far
# more. The second figure is for each sample: float32 knows a narrow interval to an ulp of its limits
# only.
AGREEMENT = {"float32": (2e-5, 2e-7), "float64": (5e-11, 1e-15)}
SUMS = ("value", "complement", "below", "above", "square")


def standard_form(problem):
    """Limits and covariance with the mean taken off and what cannot matter left out.

    A variable without limits or without variance is dropped by every plan, and has no place in a
    forced one.
    """
    mean = np.zeros(problem.n) if problem.mean is None else problem.mean
    upper = problem.upper - mean
    lower = np.full(problem.n, -INF) if problem.lower is None else problem.lower - mean
    keep = (np.diag(problem.cov) > 0) & ~(np.isposinf(upper) & np.isneginf(lower))
    return upper[keep], lower[keep], problem.cov[np.ix_(keep, keep)]


def pivot_order(upper, lower, cov):
    """Variables in the order of their tightest side given variances; stops at the rank."""
    sd = np.sqrt(np.diag(cov))
    corr = cov / np.outer(sd, sd)
    tight = np.minimum(upper / sd, -lower / sd)
    variance, columns, order = np.ones(len(sd)), [], []
    while len(order) < len(sd):
        free = [i for i in range(len(sd)) if i not in order and variance[i] > 1e-6]
        if not free:
            break
        i = min(free, key=lambda i: tight[i] / math.sqrt(variance[i]))
        column = corr[:, i] - sum((c * c[i] for c in columns), np.zeros(len(sd)))
        columns.append(column / math.sqrt(variance[i]))
        variance = variance - columns[-1] ** 2
        order.append(i)
    return order


@lru_cache(maxsize=1)
def forced_plans():
    """Batches (names, upper, lower or None, cov, order): all problems, sampled whole and in part."""
    plans = []
    for problem in problems.known_answers(0):
        upper, lower, cov = standard_form(problem)
        if len(upper) == 0:
            continue
        order = pivot_order(upper, lower, cov) if len(upper) <= 200 else list(range(len(upper)))
        if len(upper) > 200 and problem.singular:
            continue  # the plain order is no plan there, and the search for one is slow in Python
        whole = None if np.isneginf(lower).all() else lower
        for k in sorted({len(order), max(1, len(order) // 3)}):
            plans.append((problem.name, upper, whole, cov, order[:k]))

    def shape(plan):
        return (len(plan[1]), plan[2] is not None, len(plan[4]))

    batches = []
    for (_, has_lower, _), group in groupby(sorted(plans, key=shape), key=shape):
        names, upper, lower, cov, order = zip(*group, strict=True)
        tensor = lambda arrays: torch.from_numpy(np.stack(arrays))
        batches.append(
            (names, tensor(upper), tensor(lower) if has_lower else None, tensor(cov),
             torch.tensor(order))
        )  # fmt: skip
    return batches


def disagreements(batch, ours, theirs, n_points, compute_dtype):
    """A line for each row and sum that differs by more than rounding."""
    relative, each = AGREEMENT[compute_dtype]
    size = torch.maximum(ours.abs(), theirs.abs())
    # `below` and `above` are differences of sums as large as the complement.
    size[..., 2:4] += torch.maximum(ours[..., 1:2].abs(), theirs[..., 1:2].abs())
    far = ~((ours - theirs).abs() <= relative * size + each * n_points)
    return [
        f"{batch[0][row]} n={batch[1].shape[1]} k={batch[4].shape[1]} shift {shift} "
        f"{SUMS[which]}: {float(ours[row, shift, which])!r}, "
        f"{float(theirs[row, shift, which])!r} on the CPU"
        for row, shift, which in far.nonzero().tolist()
    ]


@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
def test_a_disagreement_is_seen(compute_dtype):
    """The comparison itself, on the CPU: any of the sums off by a thousandth of one shift."""
    upper, cov = random_problem(9, 1, batch=(2,))
    batch = (["a", "b"], upper, None, cov, torch.arange(5).expand(2, 5).contiguous())
    arguments = (upper, cov, None, torch.arange(2), batch[4], 128, compute_dtype)
    sums = torch.ops.mvnrob.mvn_cdf_sums(*arguments)
    assert not disagreements(batch, sums, sums.clone(), 128, compute_dtype)
    for which, name in enumerate(SUMS):
        other = sums.clone()
        other[1, 3, which] += 1e-3 * sums[1, 3].max()
        (line,) = disagreements(batch, other, sums, 128, compute_dtype)
        assert line.startswith(f"b n=9 k=5 shift 3 {name}:")
    assert disagreements(batch, sums * NAN, sums, 128, compute_dtype)


@pytest.mark.parametrize("n_points", [64, 192])
@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
def test_sums_of_a_forced_plan(cuda, all_threads, compute_dtype, n_points):
    wrong, rows = [], 0
    for batch in forced_plans():
        names, upper, lower, cov, order = batch
        seed = torch.arange(len(names)) - 3
        arguments = (upper, cov, lower, seed, order)
        call = torch.ops.mvnrob.mvn_cdf_sums
        theirs = call(*arguments, n_points, compute_dtype)
        ours = call(*put(arguments, cuda), n_points, compute_dtype).cpu()
        assert ours.shape == (len(names), 8, 5) and ours.dtype == torch.float64
        wrong += disagreements(batch, ours, theirs, n_points, compute_dtype)
        rows += len(names)
    assert rows > 500
    assert not wrong, f"{len(wrong)} sums of {rows} rows\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257])
@pytest.mark.parametrize("compute_dtype", ["float32", "float64"])
def test_sums_round_block_edges(cuda, n, compute_dtype):
    """Sizes, sampled counts and points next to every power of two, in batches of 1, 2 and 33."""
    for batch, k, n_points in ((1, n, 64), (2, max(1, n - 1), 128), (33, max(1, n // 2), 1024)):
        upper, cov = random_problem(n, n, batch=(batch,))
        order = torch.stack(
            [
                torch.randperm(n, generator=torch.Generator().manual_seed(b))[:k]
                for b in range(batch)
            ]
        )
        lower = -upper - 1 if batch == 2 else None
        arguments = (upper, cov, lower, torch.arange(batch), order)
        theirs = torch.ops.mvnrob.mvn_cdf_sums(*arguments, n_points, compute_dtype)
        ours = torch.ops.mvnrob.mvn_cdf_sums(*put(arguments, cuda), n_points, compute_dtype).cpu()
        plan = ([f"random {b}" for b in range(batch)], upper, lower, cov, order)
        wrong = disagreements(plan, ours, theirs, n_points, compute_dtype)
        assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize(
    "n, pivots, n_points",
    [(96, 96, 64), (97, 97, 1024), (129, 112, 128), (200, 160, 4288), (257, 257, 256), (600, 130, 64),
     (1000, 1000, 128)],
)  # fmt: skip
def test_sums_of_the_tensor_sampler(cuda, all_threads, n, pivots, n_points):
    """float32 samples of 96 pivots and more: products on tensor cores against the CPU's scalar ones,
    and no bias of 1e-6 against float64. Batches of one row and of more than the device holds."""
    for batch in (1, 67):
        upper, cov = random_problem(n, n + batch, batch=(batch,))
        order = torch.stack(
            [
                torch.randperm(n, generator=torch.Generator().manual_seed(b))[:pivots]
                for b in range(batch)
            ]
        )
        arguments = (upper, cov, None, torch.arange(batch), order, n_points)
        call = torch.ops.mvnrob.mvn_cdf_sums
        ours = call(*put(arguments, cuda), "float32").cpu()
        few = slice(0, 3)  # the CPU is slow
        some = tuple(x[few] if isinstance(x, torch.Tensor) else x for x in arguments)
        theirs, exact = (call(*some, dtype) for dtype in ("float32", "float64"))
        plan = ([f"random {b}" for b in range(batch)], upper, None, cov, order)
        wrong = disagreements(plan, ours[few], theirs, n_points, "float32")
        assert not wrong, "\n".join(wrong[:20])
        bias = (ours[few] - exact)[..., :2].mean(1).abs() / n_points
        assert bias.max() < 1e-6
        again = call(*put(arguments, cuda), "float32").cpu()
        assert torch.equal(ours, again)


@pytest.mark.parametrize(
    "n, pivots, n_points",
    [(176, 96, 64), (193, 103, 1024), (257, 257, 128), (200, 160, 4288), (600, 130, 64),
     (1000, 1000, 128)],
)  # fmt: skip
def test_sums_of_the_float64_tensor_sampler(cuda, all_threads, n, pivots, n_points):
    """The same in float64, which differs by rounding alone; devices without the cores for it take
    these rows to the other sampler."""
    for batch in (1, 67):
        upper, cov = random_problem(n, n + batch, batch=(batch,))
        generators = [torch.Generator().manual_seed(b) for b in range(batch)]
        order = torch.stack([torch.randperm(n, generator=g)[:pivots] for g in generators])
        lower = -upper - 1 if batch == 1 else None
        arguments = (upper, cov, lower, torch.arange(batch), order, n_points)
        call = torch.ops.mvnrob.mvn_cdf_sums
        ours = call(*put(arguments, cuda), "float64").cpu()
        few = slice(0, 3)  # the CPU is slow
        some = tuple(x[few] if isinstance(x, torch.Tensor) else x for x in arguments)
        plan = ([f"random {b}" for b in range(batch)], upper, lower, cov, order)
        wrong = disagreements(plan, ours[few], call(*some, "float64"), n_points, "float64")
        assert not wrong, "\n".join(wrong[:20])
        assert torch.equal(ours, call(*put(arguments, cuda), "float64").cpu())


MAX_POINTS = 8 * 2**13


@lru_cache(maxsize=8)
def known_rows(device, abs_tol, dtype, seeds):
    """All known answers on a device; few seeds for the large ones, as in test_coverage.py."""
    every = problems.known_answers(0)
    options = {"abs_tol": abs_tol, "dtype": dtype, "max_points": MAX_POINTS, "device": device}
    small = honesty.run([p for p in every if p.n < 100], seeds=range(seeds), **options)
    large = [p for p in every if p.n >= 100]
    return small + honesty.run(large, seeds=range(max(1, seeds // 2)), **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_known_answers_agree_with_the_cpu(cuda, all_threads, dtype):
    ours, theirs = (known_rows(device, 1e-3, dtype, 1) for device in (str(cuda), "cpu"))
    # Stored results are rounded; the input is the same on both sides.
    rounding = 2.0**-22 if dtype == torch.float32 else 1e-12
    wrong = [
        f"{honesty.describe(a)}; {b.prob!r} with error {b.error:.2e} on the CPU"
        for a, b in zip(ours, theirs, strict=True)
        if not (
            abs(a.prob - b.prob) <= a.error + b.error + rounding
            and abs(a.complement - b.complement) <= a.error + b.error + rounding
            # Screening and closed forms are decided in float64 by the same rules.
            and (a.n_active, a.status == Status.EXACT) == (b.n_active, b.status == Status.EXACT)
        )
    ]
    assert not wrong, f"{len(wrong)} of {len(ours)} rows\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("abs_tol", [1e-3, 1e-4])
def test_error_covers_the_truth(cuda, abs_tol, dtype):
    rows = known_rows(str(cuda), abs_tol, dtype, 4)
    insane = [f"{honesty.insane(r)}: {honesty.describe(r)}" for r in rows if honesty.insane(r)]
    assert not insane, f"{len(insane)} rows\n" + "\n".join(insane[:20])
    for branch in ("all", "plain", "screened", "completed"):
        members = [r for r in rows if branch in r.branches]
        assert len(members) >= 300, f"too few rows reach branch {branch}: {len(members)}"
        missed = sorted((r for r in members if r.miss), key=lambda r: -r.deviation / r.error)
        p = honesty.p_value(len(missed), len(members))
        assert p >= honesty.REJECT_BELOW, (
            f"{branch}: {len(missed)} of {len(members)}\n"
            + "\n".join(honesty.describe(r) for r in missed[:20])
        )


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize(
    "n, rank, far", [(9, 2, 6.0), (40, 12, 20.0), (200, 6, 3.0), (600, 9, 8.0)]
)
def test_singular_tails(cuda, n, rank, far, factored):
    factor, upper, truth, _ = cone(n, rank, far, seed=n)
    rows = factor if factored else factor @ factor.mT
    given = {"factor" if factored else "cov": rows}
    on_gpu = {name: value.to(cuda) for name, value in given.items()}
    leaf = upper.to(cuda, copy=True).requires_grad_()
    ours = mvnrob.mvn_log_cdf(leaf, **on_gpu, rel_tol=1e-2, return_info=True)
    theirs = mvnrob.mvn_log_cdf(upper, **given, rel_tol=1e-2, return_info=True)
    assert (ours.status == Status.CONVERGED).all() and (ours.n_pivots == rank).all()
    value, error = ours.log_prob.detach().cpu(), ours.log_error.cpu()
    assert ((value - truth).abs() <= error + 1e-7 * truth.abs()).all()
    assert ((value - theirs.log_prob).abs() <= error + theirs.log_error).all()
    ours.log_prob.sum().backward()
    same = upper.clone().requires_grad_()
    mvnrob.mvn_log_cdf(same, **given, rel_tol=1e-2).sum().backward()
    largest = same.grad.amax(1, keepdim=True)
    assert ((leaf.grad.cpu() - same.grad).abs() <= 5e-2 * largest).all()


@pytest.mark.parametrize("n", [4, 12, 40])
def test_tolerance_of_the_logarithm(cuda, n):
    at = torch.arange(n)
    cov = 0.5 ** (at[:, None] - at).abs().double()
    upper = torch.linspace(-6, 5, 9, dtype=torch.float64)[:, None] + torch.linspace(-0.3, 0.3, n)
    leaf = upper.to(cuda, copy=True).requires_grad_()
    ours = mvnrob.mvn_log_cdf(leaf, cov.to(cuda), log_tol=1e-2, return_info=True)
    theirs = mvnrob.mvn_log_cdf(upper, cov, log_tol=1e-2, return_info=True)
    assert (ours.log_error <= 1.1e-2).all()
    gap = (ours.log_prob.detach().cpu() - theirs.log_prob).abs()
    assert (gap <= ours.log_error.cpu() + theirs.log_error).all()
    ours.log_prob.sum().backward()
    same = upper.clone().requires_grad_()
    mvnrob.mvn_log_cdf(same, cov, log_tol=1e-2).sum().backward()
    largest = same.grad.amax(1, keepdim=True).clamp_min(0.1)
    assert ((leaf.grad.cpu() - same.grad).abs() <= 5e-2 * largest).all()


@pytest.mark.parametrize("upper, cov, lower, prob, status", EDGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_edges(cuda, upper, cov, lower, prob, status, dtype):
    def tensor(x):
        return None if x is None else torch.tensor(x, dtype=dtype, device=cuda)

    r = info(tensor(upper), tensor(cov), lower=tensor(lower))
    assert r.status == status and r.prob.device == cuda
    if math.isnan(prob):
        assert r.prob.isnan() and r.complement.isnan() and r.error.isnan()
    else:
        assert abs(float(r.prob) - prob) <= (1e-7 if dtype == torch.float32 else 1e-14)
        assert abs(float(r.complement) - (1 - prob)) <= (1e-7 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bvn_cdf(cuda, dtype):
    g = torch.Generator().manual_seed(0)
    h, k = 3 * torch.randn(2, 301, 1, generator=g, dtype=torch.float64)
    h[:4, 0] = torch.tensor([INF, -INF, NAN, 0.0])
    special = torch.tensor([-1.0, 1.0, 0.0, 1.5, NAN, 1 - 1e-15, 0.925, -0.925])
    rho = torch.cat([special.double(), 2 * torch.rand(90, generator=g, dtype=torch.float64) - 1])
    arguments = [t.to(dtype) for t in (h, k, rho)]
    expected, found = bvn_cdf(*arguments), bvn_cdf(*put(arguments, cuda)).cpu()
    assert found.dtype == dtype and torch.equal(found.isnan(), expected.isnan())
    off = (found - expected).abs().nan_to_num(0.0).max()
    assert off <= (6e-8 if dtype == torch.float32 else 4e-15)  # each is within 1e-15 of the truth
    assert bvn_cdf(*torch.zeros(3, 0, device=cuda)).shape == (0,)


def test_standard_normal(cuda):
    keys = row_keys(5, SAMPLES, torch.arange(7))
    for dim in (1, 9, 513, 4097):
        known = standard_normal(keys, 3, 2, dim, torch.float32)
        found = standard_normal(keys.to(cuda), 3, 2, dim, torch.float32)
        assert found.device == cuda and found.shape == known.shape
        off = (found.cpu() - known).abs()
        assert off.max() <= 5e-7 and (off > 0).float().mean() <= 1e-4
    assert standard_normal(keys.to(cuda), 0, 0, 9, torch.float64).shape == (7, 0, 9)
    torch.library.opcheck(torch.ops.mvnrob.standard_normal.default, (keys.to(cuda), 3, 2, 9))


@pytest.mark.parametrize("size", [*nearest_ends_cases.SIZES, (5, 700, 600, 60, 88, 4097)])
def test_nearest_ends(cuda, size):
    limit, table, draws = nearest_ends_cases.problem(*size)
    _, _, rising, exact, others, _ = size
    for split in {None, 0, others // 2, others}:
        options = {"rising": rising, "exact": exact, "split": split, "wants_rows": True}
        found = nearest_ends(*put((limit, table, draws), cuda), **options)
        signs = nearest_ends_cases.signs_of(exact, others, split)
        nearest_ends_cases.check([part.cpu() for part in found], limit, table, draws, rising, signs)
        options["wants_rows"] = False
        plain = nearest_ends(*put((limit, table, draws), cuda), **options)
        assert all(torch.equal(a, b) for a, b in zip(plain[:2], found[:2], strict=True))
        assert not plain[2].numel() and not plain[3].numel()
    torch.library.opcheck(
        torch.ops.mvnrob.nearest_ends.default,
        (*put((limit, table, draws), cuda), rising, exact, -1, True),
    )


# ---- a row depends on itself and its seed only --------------------------------------------------


def mixed_batch(n, copies=1):
    """Rows of all kinds: easy, hard, screened, singular, NaN, indefinite, a closed form."""
    upper, cov = random_problem(n, n, batch=(9,))
    sd = cov.diagonal(dim1=-2, dim2=-1).sqrt()
    upper[1] = 6 * sd[1]
    upper[1, :3] = sd[1, :3]
    upper[2] = 0.05 * sd[2]
    cov[3] = random_problem(n, 5, rank=max(1, n // 2))[1]
    upper[4, 0] = NAN
    if n > 1:
        cov[5, 0, 1] = cov[5, 1, 0] = 1e6
    cov[6] = torch.eye(n)
    upper[7] = INF
    upper[7, 0] = 0.3 * sd[7, 0]
    seed = torch.arange(9) * 17 - 40
    index = torch.arange(9).repeat(copies)
    return upper[index], cov[index], seed[index]


@pytest.mark.parametrize("n", [2, 5, 11, 40, 70, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_composition_does_not_matter(cuda, n, dtype):
    upper, cov, seed = put(mixed_batch(n), cuda)
    upper, cov = upper.to(dtype), cov.to(dtype)
    whole = info(upper, cov, seed=seed, abs_tol=1e-3)
    order = torch.tensor([8, 3, 0, 7, 1, 5, 4, 2, 6], device=cuda)
    shuffled = info(upper[order], cov[order], seed=seed[order], abs_tol=1e-3)
    assert_same_bits([field[order] for field in whole], shuffled)
    for b in range(9):
        alone = info(upper[b], cov[b], seed=int(seed[b]), abs_tol=1e-3)
        assert_same_bits([field[b] for field in whole], alone)
    # More rows than one launch holds at once, on any GPU.
    copies = 7000 // n
    index = torch.arange(9, device=cuda).repeat(copies)
    many = info(upper[index], cov[index], seed=seed[index], abs_tol=1e-3)
    assert_same_bits([field[index] for field in whole], many)
    other = info(upper, cov, seed=seed + 1, abs_tol=1e-3)
    assert not torch.equal(other.prob[2], whole.prob[2]) or n <= 3  # closed forms have no seed


@pytest.mark.parametrize("n, dtype", [(150, torch.float32), (260, torch.float64)])
def test_batch_composition_of_the_tensor_samplers(cuda, n, dtype):
    upper, cov = put(random_problem(n, 3, batch=(40,)), cuda)
    options = {"abs_tol": 1e-3, "method": "sov", "compute_dtype": dtype}
    seed = torch.arange(40, device=cuda)
    whole = info(upper, cov, seed=seed, **options)
    assert (whole.n_pivots >= 96).all()
    for rows in ([39], [5, 17, 0]):
        part = info(upper[rows], cov[rows], seed=seed[rows], **options)
        assert_same_bits([field[rows] for field in whole], part)


@pytest.mark.parametrize("n, columns", [(2048, None), (2048, 300), (1600, None)])
def test_batch_composition_of_factors_by_the_whole_grid(cuda, n, columns):
    """A row alone is factored by the grid, many of them by a block each, to the same bits; the CPU
    comes to the same answer."""
    generator = torch.Generator().manual_seed(n)
    root = torch.randn(n, columns or n + 50, generator=generator, dtype=torch.float64)
    root += torch.randn(columns or n + 50, generator=generator, dtype=torch.float64)
    upper = root.norm(dim=1) * (2.5 + torch.rand(n, generator=generator, dtype=torch.float64))
    matrix = {"factor": root} if columns else {"cov": root @ root.mT}
    options = {"abs_tol": 1e-2, "method": "sov", "max_points": 8 * 512}
    here = info(upper, **matrix, **options)
    rows = 2 * torch.cuda.get_device_properties(cuda).multi_processor_count
    matrix = {name: put(t, cuda) for name, t in matrix.items()}
    alone = info(put(upper, cuda), **matrix, **options)
    assert alone.n_pivots == min(int(alone.n_active), columns or n) > 0.9 * min(n, columns or n)
    assert abs(alone.prob.cpu() - here.prob) <= alone.error.cpu() + here.error
    if n > 1600 and not columns:
        return  # takes long, and much memory
    many = info(
        put(upper, cuda).expand(rows, n), seed=torch.zeros(rows, dtype=torch.int64, device=cuda),
        **{name: t.expand(rows, *t.shape) for name, t in matrix.items()}, **options,
    )  # fmt: skip
    for row in (0, rows - 1):
        assert_same_bits([field[row] for field in many], alone)


def test_16384_variables(cuda):
    """All variables sampled, after a factor of full rank, in seconds."""
    if torch.cuda.mem_get_info(cuda)[0] < 8 * 2**30:
        pytest.skip("needs 8 GB of free memory")
    upper, cov, truth = two_levels(16_384, cuda)
    options = {"abs_tol": 1e-2, "method": "sov"}
    info(upper[:1024], cov[:1024, :1024], **options)  # loads the kernels
    torch.cuda.synchronize()
    start = time.perf_counter()
    r = info(upper, cov, **options)
    value, error = float(r.prob), float(r.error)
    took = time.perf_counter() - start
    assert abs(value - truth) <= error <= 1e-2
    assert int(r.n_pivots) > 16_000 and took < 10, took  # some are screened


def test_runs_repeat(cuda):
    """Whatever the order in which blocks finish."""
    upper, cov, seed = put(mixed_batch(60, copies=50), cuda)
    first = info(upper, cov, seed=seed, abs_tol=1e-3)
    for _ in range(5):
        assert_same_bits(first, info(upper, cov, seed=seed, abs_tol=1e-3))


def test_out_of_memory_changes_nothing(cuda):
    """Smaller tiles, the same bits: a limit below what the whole batch would take at once."""
    upper, cov = put(random_problem(99, 1, batch=(3000,)), cuda)
    expected = info(upper, cov, abs_tol=1e-2)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved(cuda)
    total = torch.cuda.get_device_properties(cuda).total_memory
    try:
        # Less than a third of the 900 MB that all rows take at once; 170 MB of it whatever their number.
        torch.cuda.set_per_process_memory_fraction((reserved + 2**28) / total, cuda)
        found = info(upper, cov, abs_tol=1e-2)
        torch.cuda.synchronize()
        # Not even one row, whose factor alone takes 32 MB: the class of error on which callers split.
        large = put((torch.zeros(2000).double(), torch.eye(2000).double() + 1), cuda)
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved(cuda)
        torch.cuda.set_per_process_memory_fraction((reserved + 2**24) / total, cuda)
        message = (
            r"^mvn_cdf: memory must hold \d+ bytes for one row of 2000 variables, got CUDA out of"
        )
        with pytest.raises(torch.OutOfMemoryError, match=message):
            info(*large, abs_tol=1e-2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    assert_same_bits(expected, found)


# ---- shapes and sizes ---------------------------------------------------------------------------


def test_broadcasting(cuda):
    upper, _cov = random_problem(5, 1, batch=(4, 1))
    other = random_problem(5, 2, batch=(3,))[1]
    mean = torch.randn(2, 1, 1, 5, generator=torch.Generator().manual_seed(0)).double()
    upper, other, mean = put((upper, other, mean), cuda)
    r = info(upper, other)
    assert all(field.shape == (4, 3) and field.device == cuda for field in r)
    for i in range(4):
        for j in range(3):
            assert torch.equal(r.prob[i, j], mvn_cdf(upper[i, 0], other[j]))
    shifted = mvn_cdf(upper, other, mean=mean)
    assert shifted.shape == (2, 4, 3)
    assert torch.equal(shifted[1], mvn_cdf(upper - mean[1], other))


@pytest.mark.parametrize("n", [3, 6, 40, 130])
def test_strided_and_expanded(cuda, n):
    upper, cov = put(random_problem(n, 3, batch=(4,)), cuda)
    plain = info(upper, cov, abs_tol=1e-3)
    turned = info(upper.mT.contiguous().mT, cov.mT.contiguous().mT, abs_tol=1e-3)
    assert_same_bits(plain, turned)
    padded = torch.full((4, 2 * n + 1, 2 * n), NAN, dtype=torch.float64, device=cuda)
    padded[:, 1::2, ::2] = cov
    assert_same_bits(plain, info(upper, padded[:, 1::2, ::2], abs_tol=1e-3))
    offset = torch.full((4 * n + 1,), NAN, dtype=torch.float64, device=cuda)  # not 16-byte aligned
    offset[1:] = upper.flatten()
    assert_same_bits(plain, info(offset[1:].view(4, n), cov, abs_tol=1e-3))
    shared = info(upper, cov[:1].expand(4, n, n), abs_tol=1e-3)
    assert_same_bits(shared, info(upper, cov[0], abs_tol=1e-3))
    assert_same_bits(shared, info(upper, cov[:1].repeat(4, 1, 1), abs_tol=1e-3))
    seed = torch.tensor(7, device=cuda)
    assert_same_bits(info(upper, cov, seed=seed.expand(4)), info(upper, cov, seed=7))


def test_empty(cuda):
    one = mvn_cdf(torch.zeros(0, device=cuda), torch.zeros(0, 0, device=cuda))
    assert one.shape == () and one == 1 and one.device == cuda
    many = mvn_cdf(torch.zeros(5, 0, device=cuda), torch.zeros(0, 0, device=cuda))
    assert many.tolist() == [1.0] * 5
    eye = torch.eye(3, device=cuda)
    assert mvn_cdf(torch.zeros(0, 3, device=cuda), eye).shape == (0,)
    assert mvn_cdf(torch.zeros(2, 0, 3, device=cuda), eye).shape == (2, 0)


def test_more_elements_than_32_bits_count(cuda):
    n = 999
    batch = 2**31 // (n * n) + 2
    if torch.cuda.mem_get_info(cuda)[0] < 4 * 4 * batch * n * n:
        pytest.skip("needs 35 GB of free memory")
    cov = torch.eye(n, device=cuda).expand(batch, n, n).contiguous()
    upper = torch.full((batch, n), INF, device=cuda)
    upper[:, :5] = 1.0
    cov[-1, :5, :5] = equicorrelated(5, dtype=torch.float32).to(cuda)
    r = info(upper, cov, abs_tol=1e-4)
    alone = info(upper[-1], cov[-1], abs_tol=1e-4)
    assert_same_bits([field[-1] for field in r], alone)
    small = info(upper[-1, :5], cov[-1, :5, :5], abs_tol=1e-4)
    assert abs(alone.prob - small.prob) <= alone.error + small.error
    assert ((r.prob[:-1] - 0.8413447460685429**5).abs() < 1e-6).all()
    del cov, upper
    torch.cuda.empty_cache()


# ---- streams, graphs, devices -------------------------------------------------------------------


def test_uses_the_current_stream(cuda):
    """Inputs that are ready late on a second stream: work on another stream would read the NaN."""
    upper, cov = put(random_problem(20, 1, batch=(50,)), cuda)
    expected = info(upper, cov, abs_tol=1e-3)
    late_upper, late_cov = (torch.full_like(t, NAN) for t in (upper, cov))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late_upper.copy_(upper)
        late_cov.copy_(cov)
        found = info(late_upper, late_cov, abs_tol=1e-3)
    stream.synchronize()
    assert_same_bits(expected, found)


def test_does_not_wait_for_the_device(cuda):
    upper, cov = put(random_problem(20, 1, batch=(50,)), cuda)
    seed = torch.zeros(50, dtype=torch.int64, device=cuda)
    for _ in range(2):  # loads the kernels, fills the allocator's cache
        info(upper, cov, seed=seed, abs_tol=1e-3)
    torch.cuda.synchronize()
    slept = torch.cuda.Event()
    torch.cuda._sleep(1_000_000_000)
    slept.record()
    info(upper, cov, seed=seed, abs_tol=1e-3)
    waited = slept.query()
    torch.cuda.synchronize()
    assert not waited, "the call came back only after the work before it"


@pytest.mark.parametrize("n", [3, 9, 40, 120])
@pytest.mark.parametrize("seed_of", [int, "tensor"])
def test_graph_replays_with_other_values(cuda, n, seed_of):
    """The number of rounds is decided on the device: the replay has easier and harder rows."""
    first, second = put(mixed_batch(n), cuda), put(mixed_batch(n), cuda)
    second = [t.flip(0) for t in second]
    second[0][2] *= 0.7
    upper, cov, seed = (t.clone() for t in first)
    if seed_of is int:
        seed = 5
        first[2].fill_(5), second[2].fill_(5)
    call = lambda: info(upper, cov, seed=seed, abs_tol=1e-3)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for values in (first, second, first):
        upper.copy_(values[0])
        cov.copy_(values[1])
        if seed_of is not int:
            seed.copy_(values[2])
        graph.replay()
        found = [field.clone() for field in captured]
        assert_same_bits(info(values[0], values[1], seed=values[2], abs_tol=1e-3), found)


@pytest.mark.parametrize(
    "n, options",
    [(3, {}), (9, {"abs_tol": 0.0, "rel_tol": 1e-2}), (40, {"compute_dtype": torch.float64}),
     (99, {"abs_tol": 1e-4}), (150, {"method": "sov"})],
)  # fmt: skip
def test_eager_calls_and_their_graph(cuda, n, options):
    """The host stops launching when it sees that the rows are done, a graph's loop ends by itself, and
    behind a busy device the host launches every round: the same bits, alone and in a batch."""
    options = {"abs_tol": 1e-3, **options}
    for rows in (slice(2, 3), slice(None)):
        upper, cov, seed = (t[rows].to(cuda) for t in mixed_batch(n))
        call = lambda u=upper, c=cov, s=seed: info(u, c, seed=s, **options)
        eager = [call()]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        graph.replay()
        eager += [call() for _ in range(20)]
        torch.cuda.synchronize()
        torch.cuda._sleep(100_000_000)
        eager.append(call())
        for found in eager:
            assert_same_bits(captured, found)


def test_two_threads_on_two_streams(cuda):
    """At once to the same bits as one after another."""
    batches = [put(mixed_batch(n), cuda) for n in (9, 40)]
    call = lambda upper, cov, seed: info(upper, cov, seed=seed, abs_tol=1e-3)
    expected = [call(*batch) for batch in batches]
    torch.cuda.synchronize()

    def many(batch):
        stream = torch.cuda.Stream(cuda)
        with torch.cuda.stream(stream):
            found = [call(*batch) for _ in range(30)]
        stream.synchronize()
        return found

    with ThreadPoolExecutor(2) as pool:
        for alone, found in zip(expected, pool.map(many, batches), strict=True):
            for result in found:
                assert_same_bits(alone, result)


def test_other_device_than_the_current(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    upper, cov, seed = mixed_batch(40)
    here, there = torch.device("cuda:0"), torch.device("cuda:1")
    with torch.cuda.device(0):
        results = [info(*put((upper, cov), d), seed=seed.to(d)) for d in (here, there)]
        bvn = [bvn_cdf(*torch.full((3, 5), 0.4, device=d)) for d in (here, there)]
        assert torch.cuda.current_device() == 0
    assert all(field.device == there for field in results[1]) and bvn[1].device == there
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert_same_bits(*results)
        assert torch.equal(bvn[0].cpu(), bvn[1].cpu())
    with pytest.raises(ValueError, match="cov must be on the device of upper, got cuda:1"):
        mvn_cdf(upper.to(here), cov.to(there))


# ---- plumbing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("args, kwargs, kind, text", BAD_CALLS)
def test_bad_calls(cuda, args, kwargs, kind, text):
    # The one call of that list that mixes devices has its covariance on the CPU there.
    text = text.replace("got cpu", f"got {cuda}")
    with pytest.raises(kind, match="mvn_cdf: " + text):
        mvn_cdf(*put(args, cuda), **put(kwargs, cuda))


def test_tensors_on_two_devices(cuda):
    upper, cov = random_problem(4, 1)
    with pytest.raises(ValueError, match="mvn_cdf: cov must be on the device of upper, got cpu"):
        mvn_cdf(upper.to(cuda), cov)
    with pytest.raises(ValueError, match="mvn_cdf: lower must be on the device of upper, got cpu"):
        mvn_cdf(upper.to(cuda), cov.to(cuda), lower=-upper)
    with pytest.raises(ValueError, match="mvn_cdf: seed must be on the device of upper, got cpu"):
        mvn_cdf(upper.to(cuda), cov.to(cuda), seed=torch.tensor(1))
    with pytest.raises(ValueError, match="bvn_cdf: k must be on the device of h, got cpu"):
        bvn_cdf(upper.to(cuda), upper, upper)


def test_native_checks_speak_for_direct_calls(cuda):
    ones, eye = torch.ones(3, device=cuda).double(), torch.eye(3, device=cuda).double()
    seed = torch.zeros(1, dtype=torch.int64, device=cuda)
    rest = (1e-3, 0.0, 2**20, "auto", "auto", "lattice")
    call = torch.ops.mvnrob.mvn_cdf
    with pytest.raises(RuntimeError, match=r"mvn_cdf: upper must have shape \[B, n\], got \[3\]"):
        call(ones, eye[None], None, seed, *rest)
    with pytest.raises(RuntimeError, match="mvn_cdf: cov must have the dtype of upper"):
        call(ones[None].float(), eye[None], None, seed, *rest)
    with pytest.raises(RuntimeError, match="mvn_cdf: cov must be on the device of upper"):
        call(ones[None], eye[None].cpu(), None, seed, *rest)
    with pytest.raises(RuntimeError, match="mvn_cdf: lower must be on the device of upper"):
        call(ones[None], eye[None], -ones[None].cpu(), seed, *rest)
    with pytest.raises(RuntimeError, match="mvn_cdf: seed must be on the device of upper"):
        call(ones[None], eye[None], None, seed.cpu(), *rest)
    order = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="mvn_cdf_sums: order must be on the device of upper"):
        torch.ops.mvnrob.mvn_cdf_sums(ones[None], eye[None], None, seed, order, 64, "float64")


@pytest.mark.parametrize("lower", [False, True])
def test_opcheck(cuda, lower):
    upper, cov = random_problem(5, 1, batch=(2,))
    args = put((upper, cov, -upper - 1 if lower else None, torch.tensor([1, 2])), cuda)
    torch.library.opcheck(
        torch.ops.mvnrob.mvn_cdf.default, (*args, 1e-3, 0.0, 2**20, "auto", "auto", "lattice")
    )
    h, k, rho = torch.linspace(-1, 1, 12, dtype=torch.float64, device=cuda).reshape(3, 4).unbind(0)
    torch.library.opcheck(torch.ops.mvnrob.bvn_cdf.default, (h, k, rho))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rectangular", [False, True])
def test_gradients(cuda, dtype, rectangular):
    upper, cov = random_problem(7, 3, batch=(4,))
    upper[0, 2] = INF
    given = [upper, cov, *([-upper - 1] if rectangular else [])]
    found = []
    for device in ("cpu", cuda):
        leaves = [t.detach().to(device, dtype).requires_grad_() for t in given]
        prob = mvn_cdf(*leaves[:2], lower=leaves[2] if rectangular else None, abs_tol=1e-4)
        found.append(torch.autograd.grad(prob.sum(), leaves))
    for here, there in zip(*found, strict=True):
        assert there.dtype == dtype and there.device == cuda
        # Two conditional probabilities of that tolerance, times a density.
        assert (here - there.cpu()).abs().max() < 1e-4


def test_compile_fullgraph(cuda):
    upper, cov = put(random_problem(5, 1, batch=(3,)), cuda)

    def program(u, c):
        return 1 - mvn_cdf(u.exp().log(), c, abs_tol=1e-3)

    compiled = torch.compile(program, backend="eager", fullgraph=True)
    assert torch.equal(compiled(upper, cov), program(upper, cov))


def test_tolerance_and_points(cuda):
    upper, cov = put(random_problem(7, 11, rank=30, batch=(5,)), cuda)
    for tol in (1e-2, 1e-3, 1e-4, 2e-5):
        r = info(upper, cov, abs_tol=tol)
        assert (r.status == Status.CONVERGED).all() and (r.error <= tol).all()
    r = info(upper, cov, abs_tol=1e-9, max_points=4096)
    assert (r.status == Status.MAX_POINTS).all() and (r.n_points <= 4096).all()
    r = info(upper, cov, abs_tol=0.0, rel_tol=1e-2)
    assert (r.error <= 1e-2 * torch.minimum(r.prob, r.complement)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, rank", [(3, 3), (32, 20), (33, 12), (99, 99), (300, 64)])
def test_pivoted_cholesky(cuda, dtype, n, rank):
    upper, cov = (t.to(dtype) for t in random_problem(n, 4, batch=(50,)))
    lower = -upper.abs() - cov.diagonal(dim1=1, dim2=2).sqrt()
    upper[0, 0], cov[1, 0, 0] = INF, math.nan
    for low in (None, lower):
        here = pivoted_cholesky(upper, cov, lower=low, rank=rank)
        there = pivoted_cholesky(*put((upper, cov), cuda), lower=put(low, cuda), rank=rank)
        for name in ("order", "rank", "status"):
            assert torch.equal(getattr(there, name).cpu(), getattr(here, name))
        # Sums in another order; float32 results are rounded.
        tolerance = 1e-9 if dtype == torch.float64 else 2e-5
        size = float(cov.nan_to_num(0.0).abs().max())
        for mine, theirs, of in (
            (here.factor, there.factor, size**0.5),
            (here.residual, there.residual, size),
        ):
            torch.testing.assert_close(
                theirs.cpu(), mine, rtol=tolerance, atol=tolerance * of, equal_nan=True
            )


def test_compute_dtype_is_honoured(cuda):
    upper, cov = put(random_problem(8, 3), cuda)
    single, double = (mvn_cdf(upper, cov, compute_dtype=d) for d in DTYPES)
    assert 0 < abs(float(single - double)) < 2e-6  # same points, other rounding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 32, 33, 99])
def test_mendell_elston(cuda, dtype, n):
    upper, cov = (t.to(dtype) for t in random_problem(n, 4, batch=(300,)))
    lower = -upper.abs() - cov.diagonal(dim1=1, dim2=2).sqrt()
    upper[0, 0], cov[1, 0, 0] = INF, math.nan
    found = []
    for device in ("cpu", cuda):
        leaves = [t.detach().to(device).requires_grad_() for t in (upper, cov, lower)]
        r = mvn_cdf(*leaves[:2], lower=leaves[2], method="mendell_elston", return_info=True)
        found.append([r.log_prob, r.status, *torch.autograd.grad(r.log_prob.sum(), leaves)])
    # Sums in another order; float32 results are rounded.
    for here, there in zip(*found, strict=True):
        size = here.nan_to_num(0.0).abs().max().item()
        tolerance = 1e-9 if dtype == torch.float64 else 2e-5
        torch.testing.assert_close(
            there.cpu(), here, rtol=tolerance, atol=tolerance * size, equal_nan=True
        )
