"""mvn_cdf and bvn_cdf under torch's transforms: vmap, compile, functional_call, autocast."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call, vmap

from mvnrob import MVNResult, bvn_cdf, mvn_cdf
from mvnrob._vmap import _rows


def random_problem(*batch, n=6):
    g = torch.Generator().manual_seed(n)
    factor = torch.randn(*batch, n, n + 3, generator=g, dtype=torch.float64)
    upper = 2 * torch.rand(*batch, n, generator=g, dtype=torch.float64) * factor.norm(dim=-1)
    return upper, factor @ factor.mT


def assert_same(results, expected):
    """To the bit, in every field."""
    for one, other in zip(results, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def info(upper, cov, lower=None, mean=None, seed=0):
    return mvn_cdf(upper, cov, lower=lower, mean=mean, seed=seed, return_info=True)


# ---- mvn_cdf ------------------------------------------------------------------------------------


def test_rows_equal_those_without_vmap():
    upper, cov = random_problem(5)
    mapped = vmap(info)(upper, cov)
    assert isinstance(mapped, MVNResult)
    assert_same(mapped, info(upper, cov))
    for row in range(5):
        assert_same([field[row] for field in mapped], info(upper[row], cov[row]))


def test_every_dimension_of_every_argument():
    upper, cov = random_problem(4, 3)
    lower, mean = -1 - upper, 0.1 * upper.flip(0)
    seed = torch.arange(12).reshape(4, 3)
    expected = info(upper, cov, lower, mean, seed)
    assert_same(vmap(info)(upper, cov, lower, mean, seed), expected)
    moved = (upper.movedim(0, 2), cov.movedim(0, 3), lower.movedim(0, 1), mean, seed.mT)
    assert_same(vmap(info, in_dims=(2, 3, 1, 0, 1))(*moved), expected)
    assert_same(vmap(info, in_dims=(-1, -1, -2, -3, -1))(*moved), expected)
    out = vmap(info, out_dims=1)(upper, cov, lower, mean, seed)
    assert_same([field.mT for field in out], expected)


ARGUMENTS = ("upper", "cov", "lower", "mean", "seed")


@pytest.mark.parametrize("mapped", range(1, 2 ** len(ARGUMENTS)))
@pytest.mark.parametrize("inner", [(), (2,)])
def test_any_combination_of_mapped_arguments(mapped, inner):
    """Those not mapped serve all; they equal themselves repeated."""
    upper, cov = random_problem(3, *inner, n=4)
    seed = torch.arange(upper[..., 0].numel()).reshape(upper.shape[:-1])
    given = {"upper": upper, "cov": cov, "lower": -1 - upper, "mean": 0.1 * upper, "seed": seed}
    dims, passed, repeated = [], [], {}
    for bit, name in enumerate(ARGUMENTS):
        t = given[name]
        dims.append(0 if mapped >> bit & 1 else None)
        passed.append(t if mapped >> bit & 1 else t[0])
        repeated[name] = t if mapped >> bit & 1 else t[:1].expand(t.shape)
    assert_same(vmap(info, in_dims=tuple(dims))(*passed), info(**repeated))


@pytest.mark.parametrize("dims", [((0, None), (None, 0)), ((None, 0), (0, None)), ((0, 0), (0, 0))])
def test_nested(dims):
    upper, cov = random_problem(3, 2)
    outer, inner = dims
    if outer == (0, 0):
        assert_same(vmap(vmap(info))(upper, cov), info(upper, cov))
        return
    upper, cov = upper[:, 0], cov[:, 1]  # every limit with every covariance
    result = vmap(vmap(info, in_dims=inner), in_dims=outer)(upper, cov)
    expected = info(upper[:, None], cov) if outer == (0, None) else info(upper, cov[:, None])
    assert_same(result, expected)


def test_in_chunks_and_with_a_seed_for_each_row():
    upper, cov = random_problem(7)
    seed = torch.arange(7) + 5
    expected = info(upper, cov, seed=seed)
    mapped = vmap(lambda u, c, s: info(u, c, seed=s), chunk_size=3)(upper, cov, seed)
    assert_same(mapped, expected)
    alike = vmap(lambda u: mvn_cdf(u, cov[0], seed=5))(upper[:1].expand(7, 6))
    assert torch.equal(alike, expected.prob[:1].expand(7))  # an int: the same shifts for all


def test_shared_covariance_is_not_copied():
    upper, cov = torch.ones(7, 1, 4), torch.eye(4)[None]
    (folded, shared), rows = _rows(SimpleNamespace(batch_size=7), (0, None), (upper, cov))
    assert rows == 1 and folded.shape == (7, 4) and shared.shape == (7, 4, 4)
    assert shared.stride(0) == 0 and shared.data_ptr() == cov.data_ptr()
    # Two rows and one matrix, as mvn_cdf passes it; then mapped again.
    (shared,), rows = _rows(SimpleNamespace(batch_size=7), (None,), (cov.expand(2, 4, 4),))
    assert rows == 2 and shared.shape == (14, 4, 4) and shared.stride(0) == 0
    (shared,), _ = _rows(SimpleNamespace(batch_size=3), (None,), (shared,))
    assert shared.shape == (42, 4, 4) and shared.data_ptr() == cov.data_ptr()


@pytest.mark.parametrize("shape", [(3, 0), (3, 0, 4), (3, 2, 0)])
def test_empty(shape):
    upper = torch.ones(shape).double()
    cov = torch.eye(shape[-1]).double().expand(*shape, shape[-1])
    assert_same(vmap(info)(upper, cov), info(upper, cov))


def test_warns_once_and_as_without():
    upper, cov = torch.ones(2, 3, 2), torch.tensor([[1.0, 2], [2, 1]])
    text = "6 of 6 rows have an indefinite covariance"
    with pytest.warns(RuntimeWarning, match=text) as caught:
        assert vmap(vmap(mvn_cdf, in_dims=(0, None)), in_dims=(0, None))(upper, cov).isnan().all()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vmap(mvn_cdf)(*random_problem(3))


def test_errors_are_those_without():
    upper, cov = random_problem(3)
    with pytest.raises(ValueError, match="mvn_cdf: method must be auto or sov for a row of more"):
        vmap(lambda u, c: mvn_cdf(u, c, method="closed_form"))(upper, cov)
    with pytest.raises(ValueError, match=r"mvn_cdf: cov must have shape \[..., 6, 6\], got \[6\]"):
        vmap(mvn_cdf)(upper, upper)
    with pytest.raises(NotImplementedError, match="mvn_cdf: check must be False inside vmap"):
        vmap(lambda u, c: mvn_cdf(u, c, check=True))(upper, cov)
    # What is not mapped can be looked at.
    checked = vmap(lambda u: mvn_cdf(u, cov[0], check=True))(upper)
    assert torch.equal(checked, mvn_cdf(upper, cov[0]))


def test_sums():
    upper, cov = random_problem(4, 2)
    seed, order = torch.arange(8).reshape(4, 2), torch.tensor([[0, 2, 1], [4, 1, 3]])

    def sums(u, c, s, o):
        return torch.ops.mvnrob.mvn_cdf_sums(u, c, None, s, o, 128, "float64")

    mapped = vmap(sums, in_dims=(0, 0, 0, None))(upper, cov, seed, order)
    rows = zip(upper, cov, seed, strict=True)
    assert torch.equal(mapped, torch.stack([sums(*row, order) for row in rows]))
    mapped = vmap(sums, in_dims=(None, None, 0, None))(upper[0], cov[0], seed, order)
    assert torch.equal(mapped, torch.stack([sums(upper[0], cov[0], s, order) for s in seed]))

    def rectangle(low, o):
        return torch.ops.mvnrob.mvn_cdf_sums(upper[0], cov[0], low, seed[0], o, 128, "float64")

    lower, orders = -1 - upper, torch.stack([order, order.flip(1)], 2)
    mapped = vmap(vmap(rectangle, in_dims=(0, None)), in_dims=(None, 2))(lower, orders)
    for i in range(2):
        for j in range(4):
            assert torch.equal(mapped[i, j], rectangle(lower[j], orders[:, :, i]))


# ---- bvn_cdf ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [(0, 0, 0), (1, None, 0), (None, 1, None), (None, -1, 0)])
def test_bvn_cdf(dims):
    values = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(3, 3, 4)
    arguments = [
        t[0] if dim is None else t.movedim(0, dim) for t, dim in zip(values, dims, strict=True)
    ]
    mapped = vmap(bvn_cdf, in_dims=dims)(*arguments)
    repeated = [
        t[0].expand(3, 4) if dim is None else t for t, dim in zip(values, dims, strict=True)
    ]
    assert mapped.shape == (3, 4) and torch.equal(mapped, bvn_cdf(*repeated))


def test_bvn_cdf_nested_and_broadcast():
    h, k = torch.linspace(-2, 2, 5), torch.linspace(-1, 3, 4)
    table = vmap(vmap(bvn_cdf, in_dims=(None, 0, None)), in_dims=(0, None, None))
    assert torch.equal(table(h, k, torch.tensor(0.3)), bvn_cdf(h[:, None], k, torch.tensor(0.3)))


# ---- compile, functional_call, autocast ---------------------------------------------------------


def program(upper, cov):
    p = mvn_cdf(upper.exp().log(), cov, abs_tol=1e-3, seed=3)
    return (1 - p).sqrt()


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_without_a_graph_break(backend):
    upper, cov = random_problem(3)
    compiled = torch.compile(program, backend=backend, fullgraph=True)
    # Inductor's own exp and log round otherwise; the result moves by far less than this.
    torch.testing.assert_close(compiled(upper, cov), program(upper, cov), rtol=1e-9, atol=1e-9)
    inner = torch.compile(vmap(program), backend=backend, fullgraph=True)
    torch.testing.assert_close(inner(upper, cov), program(upper, cov), rtol=1e-9, atol=1e-9)


def test_compile_with_dynamic_shapes_and_all_fields():
    compiled = torch.compile(info, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch, n in ((2, 4), (3, 5), (5, 7)):
        upper, cov = random_problem(batch, n=n)
        assert_same(compiled(upper, cov, -1 - upper), info(upper, cov, -1 - upper))


class Head(torch.nn.Module):
    """Probability that all margins are positive, with a learnt covariance."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 5, dtype=torch.float64)
        self.factor = torch.nn.Parameter(torch.eye(5, dtype=torch.float64) + 0.3)

    def forward(self, x):
        return mvn_cdf(self.linear(x), self.factor @ self.factor.mT)


def test_functional_call():
    head, other = Head(), Head()
    x = torch.ones(4, 3, dtype=torch.float64)
    with torch.no_grad():
        parameters = dict(other.named_parameters())
        assert torch.equal(functional_call(head, parameters, (x,)), other(x))
        assert not torch.equal(head(x), other(x))
        # An ensemble: parameters stacked and mapped over.
        stacked = torch.func.stack_module_state([head, other])[0]
        both = vmap(lambda p: functional_call(head, p, (x,)))(stacked)
        # Batched products may round otherwise than single ones.
        torch.testing.assert_close(both, torch.stack([head(x), other(x)]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_keeps_the_dtype(dtype):
    upper, cov = (t.to(dtype) for t in random_problem(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info(upper, cov)
        checked = mvn_cdf(upper, cov, check=True)
        pair = bvn_cdf(upper[:, 0], upper[:, 1], torch.full((3,), 0.5, dtype=dtype))
    assert inside.prob.dtype == pair.dtype == dtype
    assert_same(inside, info(upper, cov))
    assert torch.equal(checked, inside.prob)


def test_autocast_does_not_hide_half_precision():
    upper, cov = (t.float() for t in random_problem(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = cov @ torch.eye(6)  # what a network's own layers return there
        assert product.dtype == torch.bfloat16
        with pytest.raises(TypeError, match="cov must be float32 or float64, got torch.bfloat16"):
            mvn_cdf(upper, product)
        with pytest.raises(TypeError, match="upper must be float32 or float64, got torch.bfloat16"):
            mvn_cdf(upper.bfloat16(), product)
    assert mvn_cdf(upper, cov).dtype == torch.float32
