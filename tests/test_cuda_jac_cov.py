"""jac_cov and its parts on a GPU: the truth in float64, the CPU's contracts, CUDA's own ways of going
wrong. Skipped, or failing, without a GPU as in test_cuda.py; the kernels run on the CPU in
test_shim_jac_cov.py."""

from __future__ import annotations

import pytest
import torch
from test_cuda import cuda, cuda_tensors, put  # noqa: F401  (a fixture among them)
from test_jac_cov import BAD_CALLS, SINGLE, TOLERANCE, assert_close, assert_same_bits, problem
from test_robustness import SlopesOff

import mvnrob
from mvnrob import _load
from mvnrob._jac_cov import (
    jac_cov,
    jac_cov_accumulate,
    jac_cov_finalize,
    jac_cov_norms,
    jac_cov_reference,
)
from mvnrob.jacobian import LogitMap
from mvnrob.meter import Meter
from mvnrob.models.digits import load_digits_classifier
from mvnrob.network import Network
from mvnrob.next_rows import gains

DTYPES = tuple(TOLERANCE)
# Each kernel, and both sides of where one takes over from another.
CLASSES = (1, 2, 9, 10, 11, 33, 64, 100, 104, 105, 128, 129, 257, 1000)


@pytest.mark.parametrize("reason", ["torch 9.9 is built without CUDA", "_C_cuda does not load"])
def test_error_says_what_is_missing(monkeypatch, reason):
    monkeypatch.setattr(_load, "cuda_unavailable", reason)
    J, logits, target = cuda_tensors((2, 5, 3), (2, 5), 2)
    with pytest.raises(NotImplementedError, match=f"jac_cov: J must .*, got cuda:0: {reason}"):
        jac_cov(J, logits, target.long(), 1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_reference(cuda, classes, dtype):  # noqa: F811
    for batch, columns in ((3, 70), (1, 2100), (40, 33)):
        if classes == 1000 and batch == 40:
            continue
        given = problem(batch, classes, columns, dtype, seed=classes)
        got = jac_cov(*put(given, cuda))
        want = jac_cov_reference(*put(given, cuda))
        assert got.corr.device == cuda
        assert_close(got, want, TOLERANCE[dtype])
        assert torch.equal(got.corr, got.corr.mT)
        norms = jac_cov_norms(given[0].to(cuda), given[2].to(cuda)).sqrt()
        if classes == 1:
            assert not norms.any()
            continue
        off = norms.gather(1, got.keep).sub(want.norms).abs().max()
        assert off <= TOLERANCE[dtype] * want.norms.max()


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_common_mode(cuda, classes):  # noqa: F811
    J, logits, target, sigma = put(problem(2, classes, 3072), cuda)
    g = torch.Generator(device=cuda).manual_seed(1)
    J = J + 1000 * torch.randn(2, 1, 3072, generator=g, device=cuda)
    got, want = jac_cov(J, logits, target, sigma), jac_cov_reference(J, logits, target, sigma)
    assert_close(got, want, SINGLE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [10, 100, 300])
def test_a_problem_depends_on_itself_only(cuda, classes, dtype):  # noqa: F811
    """Alone its tiles go chunk by chunk, in a large batch in one block each: the same bits."""
    J, logits, target, sigma = put(problem(160, classes, 3000, dtype), cuda)
    whole = jac_cov(J, logits, target, sigma)
    for _ in range(3):
        assert_same_bits(jac_cov(J, logits, target, sigma), whole)
    for rows in (slice(0, 1), slice(50, 57)):
        part = jac_cov(J[rows], logits[rows], target[rows], sigma[rows])
        assert_same_bits(part, [t[rows] for t in whole])
        norms = jac_cov_norms(J, target)
        assert torch.equal(jac_cov_norms(J[rows], target[rows]), norms[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [10, 40, 130])
def test_strides(cuda, classes, dtype):  # noqa: F811
    J, logits, target, sigma = put(problem(4, classes, 37, dtype), cuda)
    want = jac_cov(J, logits, target, sigma)
    wide = torch.full((4, classes, 81), torch.nan, dtype=dtype, device=cuda)
    wide[..., 3:40] = J
    for form in (
        wide[..., 3:40],
        J.transpose(0, 1).contiguous().transpose(0, 1),
        J.transpose(0, 2).contiguous().transpose(0, 2),
    ):
        assert_same_bits(jac_cov(form, logits, target, sigma), want)
        assert torch.equal(jac_cov_norms(form, target), jac_cov_norms(J, target))


@pytest.mark.parametrize("S_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [10, 40, 130])
def test_streaming(cuda, classes, S_dtype):  # noqa: F811
    J, logits, target, sigma = put(problem(2, classes, 3000), cuda)
    S = torch.zeros(2, classes, classes, dtype=S_dtype, device=cuda)
    for piece in J.split([1024, 1, 1975], dim=-1):
        assert jac_cov_accumulate(S, piece, target) is S
    got = jac_cov_finalize(S, logits, target, sigma)
    assert_close(got, jac_cov_reference(J, logits, target, sigma), SINGLE)


@pytest.mark.parametrize("batch, classes, columns", [(0, 4, 5), (2, 1, 5), (2, 4, 0), (0, 1, 0)])
def test_empty(cuda, batch, classes, columns):  # noqa: F811
    J, logits, target, sigma = put(problem(batch, classes, columns), cuda)
    got = jac_cov(J, logits, target, sigma)
    assert got.z.shape == got.norms.shape == (batch, classes - 1)
    assert got.corr.shape == (batch, classes - 1, classes - 1)
    # Without columns, or with one class, all of them are zero.
    assert jac_cov_norms(J, target).tolist() == [[0.0] * classes] * batch


def test_offsets_beyond_32_bits(cuda):  # noqa: F811
    apart = 2**31 + 64
    if torch.cuda.mem_get_info(cuda)[0] < 3 * apart:
        pytest.skip("needs 6 GB of free memory")
    J = torch.empty(apart + 16, dtype=torch.bfloat16, device=cuda).as_strided(
        (1, 2, 16), (0, apart, 1)
    )
    J[0, 0], J[0, 1] = 1.0, 3.0
    target = torch.zeros(1, dtype=torch.int64, device=cuda)
    got = jac_cov(J, torch.tensor([[2.0, 1.0]], device=cuda), target, 1.0)
    assert got.norms.item() == 8.0 and got.z.item() == 0.125
    assert jac_cov_norms(J, target).tolist() == [[0.0, 64.0]]


def test_values_are_not_looked_at(cuda):  # noqa: F811
    """A target that is no class gives NaN; nothing waits for the device."""
    J, logits, target, sigma = put(problem(3, 130, 40), cuda)
    target[1] = 130
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    slept = torch.cuda.Event()
    slept.record()
    got = jac_cov(J, logits, target, sigma)
    waited = slept.query()
    assert got.z.isnan().all(1).tolist() == [False, True, False]
    assert not waited, "the call came back only after the work before it"


def test_uses_the_current_stream_and_replays(cuda):  # noqa: F811
    given = put(problem(2, 130, 2100), cuda)
    want = jac_cov(*given)
    late = [torch.zeros_like(t) for t in given]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for to, t in zip(late, given, strict=True):
            to.copy_(t)
        found = jac_cov(*late)
    torch.cuda.synchronize()
    assert_same_bits(found, want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = jac_cov(*late)
    late[0].mul_(0.5)
    graph.replay()
    assert torch.equal(captured.norms, 0.5 * want.norms) and torch.equal(captured.corr, want.corr)


def test_other_device_than_the_current(cuda):  # noqa: F811
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    given = problem(2, 130, 300)
    with torch.cuda.device(0):
        there = jac_cov(*put(given, torch.device("cuda:1")))
        assert torch.cuda.current_device() == 0
    assert there.corr.device == torch.device("cuda:1")
    assert_close(there._make(t.cpu() for t in there), jac_cov_reference(*given), SINGLE)


@pytest.mark.parametrize(
    "case", [c for c in BAD_CALLS if "device" not in c[3]], ids=lambda c: c[3][:40]
)
def test_bad_call(cuda, case):  # noqa: F811
    call, arguments, error, text = case
    with pytest.raises(error) as caught:
        call(*put(arguments, cuda))
    assert str(caught.value) == f"{call.__name__}: {text}"


def test_opcheck_and_compile(cuda):  # noqa: F811
    J, logits, target, sigma = put(problem(2, 5, 12), cuda)
    S = torch.zeros(2, 5, 5, dtype=torch.float64, device=cuda)
    ops = torch.ops.mvnrob
    torch.library.opcheck(ops.jac_cov_accumulate_.default, (S, J, target))
    torch.library.opcheck(ops.jac_cov_norms.default, (J, target))
    torch.library.opcheck(ops.jac_cov_finalize.default, (S, logits, target, sigma))
    compiled = torch.compile(jac_cov, backend="eager", fullgraph=True)
    assert_same_bits(compiled(J, logits, target, sigma), jac_cov(J, logits, target, sigma))


@pytest.mark.parametrize("method", ["taylor", "mmse", "logit_moments", "taylor_mvs", "mc"])
def test_robustness(cuda, method):  # noqa: F811
    """The whole way on the device: the same answers as on the CPU, within their errors."""
    model, x, _ = load_digits_classifier()
    options = {"method": method, "n_samples": 64} if method != "taylor" else {"method": method}
    if "taylor" in method:
        options.pop("n_samples", None)
    here = mvnrob.robustness(model, x[:4], [0.1, 0.5], **options)
    there = mvnrob.robustness(model.to(cuda), x[:4].to(cuda), [0.1, 0.5], **options)
    assert there.prob.device == cuda
    allowed = here.error + there.error.cpu() + 1e-4
    # Clopper-Pearson limits of draws that are the same: a copy on the border may change sides.
    assert ((there.prob.cpu() - here.prob).abs() <= allowed.nan_to_num(1e-4) + 2 / 64).all()
    screened = mvnrob.robustness(model, x[:4].to(cuda), 0.3, screen="sketch")
    assert screened.prob.device == cuda and (screened.error < 1e-2).all()


def test_robustness_by_low_rank(cuda, monkeypatch):  # noqa: F811
    """Several hundred rivals that matter: rows of some, products and draws for the rest."""
    monkeypatch.setattr(mvnrob.low_rank, "PASS_BYTES", 0)  # as if the network were large
    rows = torch.randn(300, 300, generator=torch.Generator().manual_seed(3))
    rows *= torch.arange(1, 301) ** -1.2
    logits = torch.zeros(300)
    logits[0] = 8.0
    x, sigmas = torch.zeros(2, 300), [1.5, 2.0]
    here = mvnrob.robustness(lambda x: x @ rows.mT + logits, x, sigmas, target=0)
    there_rows, there_logits = rows.to(cuda), logits.to(cuda)
    there = mvnrob.robustness(
        lambda x: x @ there_rows.mT + there_logits, x.to(cuda), sigmas, target=0
    )
    assert (here.cost.jvp > 40).all() and (there.cost.jvp > 40).all()
    assert (there.cost.vjp < 200).all()
    gap = (here.prob - there.prob.cpu()).abs()
    assert (gap <= here.error + there.error.cpu()).all(), gap


def test_gains_of_low_rank(cuda):  # noqa: F811
    """Which rows come next: the CPU's numbers to rounding, and the same ones each time."""
    draw = torch.Generator().manual_seed(5)
    inside, ranking = (torch.randn(3, k, 60, generator=draw, dtype=torch.float64) for k in (4, 8))
    margins = 4 + 8 * torch.rand(3, 60, generator=draw, dtype=torch.float64)
    taken = torch.arange(60).expand(3, -1) < 4
    inside[:, :, 0] = ranking[:, :, 0] = 0.0  # the target's
    draws = torch.randn(2**14, 12, generator=draw)
    tensors = margins, inside, ranking, taken
    call = lambda tensors, draws: gains(*tensors, 1.0, draws, 1e-5, 2**26)
    here = call(tensors, draws)
    there = [call(put(tensors, cuda), draws.to(cuda)) for _ in range(2)]
    assert torch.equal(*there)
    assert here.amax() > 1e-2
    torch.testing.assert_close(there[0].cpu(), here, rtol=0, atol=1e-5)


def test_convolutions_that_round_to_tf32(cuda):  # noqa: F811
    """Torch's default on a GPU: derivatives of passes of other sizes take other sides of ReLUs' kinks,
    which is no error; a gradient that is wrong still is."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 64, 3, padding=1)]
    for _ in range(30):
        layers += [torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3, padding=1)]
        torch.nn.init.kaiming_normal_(layers[-1].weight)
    head = torch.nn.Linear(64, 12)
    net = torch.nn.Sequential(*layers).eval().requires_grad_(False).to(cuda)
    head = head.to(cuda).requires_grad_(False)
    x = torch.rand(4, 3, 32, 32, device=cuda)
    model = lambda x: head(net(x).mean((2, 3)))
    assert torch.backends.cudnn.allow_tf32
    sigma = 0.02
    there = mvnrob.robustness(model, x, sigma, check="raise")
    allow, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        exact = mvnrob.robustness(model, x, sigma)
    finally:
        torch.backends.cudnn.allow_tf32 = allow
    assert ((there.prob - exact.prob).abs() <= there.error + exact.error + 2e-2).all()
    wrong = lambda x: model(SlopesOff.apply(x))

    def rows(model):
        """In a pass of all inputs, where forward mode takes one at a time."""
        network, meter = Network("test", model, None, x), Meter(len(x), x.device)
        network(x)
        assert network.rounds_to_tf32()
        linear = LogitMap(
            network, meter, x, torch.arange(len(x), device=cuda), max_copies=len(x),
            max_tangents=1, method="batch", jvp_mode="forward", check="raise",
        )  # fmt: skip
        return linear.rows(torch.arange(12, device=cuda).expand(len(x), -1))

    assert rows(model).isfinite().all()
    assert torch.backends.cudnn.allow_tf32
    for call in (lambda: mvnrob.robustness(wrong, x, sigma, check="raise"), lambda: rows(wrong)):
        with pytest.raises(RuntimeError, match="must agree with a forward-mode product"):
            call()
