"""What memory does not hold: torch's own class of error in the op's words, on which callers split."""

import contextlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from mvnrob import _ops, jac_cov_norms, robustness
from mvnrob._bvn_cdf import _call as bvn_cdf
from mvnrob.jacobian import jacobian

#: A tensor of so many rows has its own memory nowhere, and without it (stride 0) takes no time.
MANY = 2**44
CPU_REFUSAL = r"got .*DefaultCPUAllocator: can't allocate memory.*"


def many(*shape, dtype=torch.float64):
    return torch.ones(1, *shape, dtype=dtype).expand(MANY, *shape)


def whole(*shape):
    return many(*shape, dtype=torch.int64)


PROBLEM = (many(2), many(2, 2), None)
WIDE = torch.ones(1, 3, 1).expand(1, 3, MANY)
ZERO = torch.zeros(1, dtype=torch.int64)
POINTS = (1e-3, 0.0, 1024, "auto", "auto", "lattice")
#: Arguments of each op, and the bytes of the tensor that is asked for first.
CALLS = {
    "bvn_cdf": ((many(), many(), many()), 8 * MANY),
    "mvn_cdf": ((*PROBLEM, whole(), *POINTS), 16 * MANY),
    "mvn_cdf_sums": ((*PROBLEM, whole(), whole(1), 64, "float64"), 8 * MANY),
    "mvn_cdf_pathwise": (
        (*PROBLEM, whole(), whole(1), whole(), whole(), many(8), "float32", True),
        8 * MANY,
    ),
    "mendell_elston": (PROBLEM, 16 * MANY),
    "mendell_elston_backward": ((many(), *PROBLEM, True), 16 * MANY),
    "pivoted_cholesky": ((*PROBLEM, 2), 16 * MANY),
    "jac_cov_accumulate_": ((torch.zeros(1, 3, 3), WIDE, ZERO), 12 * MANY),
    "jac_cov_norms": ((WIDE, ZERO), 12 * MANY),
    "standard_normal": ((ZERO, 0, 2**20, 2**24), 2**46),
}


@pytest.mark.parametrize("op", CALLS)
def test_ops_say_what_they_asked_for(op):
    given, size = CALLS[op]
    message = f"^{op.rstrip('_')}: memory must hold {size} bytes, {CPU_REFUSAL}{size} bytes"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        _ops.call(op, *given)


def test_transforms_keep_the_class():
    for call in (
        lambda: torch.func.vmap(bvn_cdf)(*(many().unsqueeze(1) for _ in range(3))),
        lambda: torch.func.jvp(lambda h: bvn_cdf(h, many(), many()), (many(),), (many(),)),
        lambda: jac_cov_norms(WIDE, ZERO),
    ):
        with pytest.raises(torch.OutOfMemoryError, match="^(bvn_cdf|jac_cov_norms): memory must"):
            call()


@contextlib.contextmanager
def at_most(size):
    """So many bytes of addresses more than now."""
    resource = pytest.importorskip("resource")
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_outputs_and_workspaces_beside_others():
    """In a process of its own, whose heap has nothing at hand."""
    code = "import test_out_of_memory as t; t.outputs_and_workspaces_beside_others()"
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code], cwd=here, check=True)


def outputs_and_workspaces_beside_others():
    n = 4000  # 128 MB a matrix
    S, logits = torch.zeros(1, n, n, dtype=torch.float64), torch.zeros(1, n, dtype=torch.float64)
    sigma = torch.ones(1, dtype=torch.float64)
    message = f"^jac_cov_finalize: memory must hold {8 * (n - 1) ** 2} bytes, {CPU_REFUSAL}"
    with at_most(2**26), pytest.raises(torch.OutOfMemoryError, match=message):
        _ops.call("jac_cov_finalize", S, logits, ZERO, sigma)
    # The result fits, but not the factor in a thread's workspace.
    upper, factor = torch.ones(1, n, dtype=torch.float64), torch.rand(1, n, 1, dtype=torch.float64)
    given = (upper, factor.expand(1, n, n), None, n, True)
    message = "^pivoted_cholesky: memory must hold its threads' workspaces, got less beside"
    with at_most(3 * 2**26), pytest.raises(torch.OutOfMemoryError, match=message):
        _ops.call("pivoted_cholesky", *given)


@pytest.mark.parametrize(
    ("given", "raised", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried (a test)\nframes"),
            torch.OutOfMemoryError,
            r"^op: memory must hold 70 bytes for one row, got CUDA out of memory. Tried \(a test\)$",
        ),
        (
            None,  # what was refused beside the outputs is to be had without them
            torch.OutOfMemoryError,
            "^op: memory must hold 70 bytes for one row, got less beside the op's other memory$",
        ),
        (RuntimeError("an illegal memory access"), RuntimeError, "^an illegal memory access$"),
    ],
)
def test_a_device_has_the_last_word(monkeypatch, given, raised, message):
    def op(x):
        raise RuntimeError(
            "op: memory must hold 70 bytes for one row, got an allocation that failed"
        )

    def empty(size, dtype, device):
        assert (size, dtype, device.type) == (70, torch.uint8, "meta")
        if given is not None:
            raise given

    x = torch.ones(3, device="meta")
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(RuntimeError, match=message) as caught:
        _ops.run(op, x)
    assert type(caught.value) is raised


@pytest.mark.parametrize(
    ("op", "method"),
    [("mvn_cdf", "taylor"), ("jac_cov_accumulate_", "taylor"), ("standard_normal", "mc")],
)
def test_robustness_splits(monkeypatch, op, method):
    run, tried = _ops.run, []

    def scarce(called, *args):
        if called is getattr(torch.ops.mvnrob, op):
            tried.append(len(args[0]))
            if tried[-1] > most:
                return run(refused, *args)
        return run(called, *args)

    def refused(*args):
        raise RuntimeError(f"{op}: memory must hold 9 bytes, got an allocation that failed")

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6)).double().eval()
    x = torch.randn(7, 8, dtype=torch.float64)
    options = {"screen": "none"} if method == "taylor" else {"n_samples": 50}
    expected = robustness(net, x, 0.5, method=method, **options)
    monkeypatch.setattr(_ops, "run", scarce)
    most = 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = robustness(net, x, 0.5, method=method, **options)
    assert [w for w in caught if "out of memory; going on with" in str(w.message)]
    assert max(tried) > most >= tried[-1]
    torch.testing.assert_close(found.prob, expected.prob, rtol=0, atol=1e-9)
    most = 0
    message = "^robustness: memory must hold the passes of a single input, got .*must hold 9 bytes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(torch.OutOfMemoryError, match=message):
            robustness(net, x, 0.5, method=method, **options)


@pytest.mark.parametrize("ask", ["taylor", "mmse", "mc", "jacobian"])
def test_passes_split_on_a_cpu(ask):
    """Of what a pass itself asks for, torch's error on a CPU is a RuntimeError."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6)).double().eval()
    x, most = torch.randn(7, 8, dtype=torch.float64), 99

    def model(x):
        if len(x) > most:
            torch.empty(MANY)
        return net(x)

    def answer():
        if ask == "jacobian":
            return jacobian(model, x)
        options = {"taylor": {"screen": "none"}}.get(ask, {"n_samples": 8})
        return robustness(model, x, 0.5, method=ask, **options).prob

    expected = answer()
    most = 3
    with pytest.warns(RuntimeWarning, match="out of memory; going on with [1-3] inputs at a time"):
        found = answer()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    most = 0
    with pytest.raises(torch.OutOfMemoryError, match="must hold the passes of a single input, got"):
        answer()
