"""mvnrob.distributions against torch.distributions, mvn_cdf and SciPy."""

import math

import pytest
import torch
from scipy import stats

import mvnrob
from mvnrob.distributions import MultivariateNormal

DOUBLE = torch.float64
LOC = torch.tensor([0.2, -0.1, 0.4], dtype=DOUBLE)
TRIL = torch.tensor([[1.0, 0, 0], [0.5, 0.8, 0], [-0.3, 0.4, 1.2]], dtype=DOUBLE)
COV = TRIL @ TRIL.mT
MATRICES = {
    "covariance_matrix": COV,
    "precision_matrix": torch.linalg.inv(COV),
    "scale_tril": TRIL,
    "cov_factor": torch.cat([TRIL, torch.zeros(3, 1, dtype=DOUBLE)], 1),
}
VALUE = torch.tensor([0.5, 1.0, -0.2], dtype=DOUBLE)
# A plane in three dimensions
FACTOR = torch.tensor([[1.0, 0], [0, 1], [0.6, -0.8]], dtype=DOUBLE)


@pytest.mark.parametrize("name", MATRICES)
def test_agrees_with_torch_and_mvn_cdf(name):
    ours = MultivariateNormal(LOC, **{name: MATRICES[name]})
    theirs = torch.distributions.MultivariateNormal(LOC, COV)
    assert isinstance(ours, torch.distributions.MultivariateNormal)
    assert ours.batch_shape == () and ours.event_shape == (3,)
    # Other routes to the same matrices: rounding.
    same = {"rtol": 1e-12, "atol": 1e-12}
    for field in ("mean", "variance", "covariance_matrix", "precision_matrix", "scale_tril"):
        torch.testing.assert_close(getattr(ours, field), getattr(theirs, field), **same)
    torch.testing.assert_close(ours.log_prob(VALUE), theirs.log_prob(VALUE), **same)
    torch.testing.assert_close(ours.entropy(), theirs.entropy(), **same)
    kl = torch.distributions.kl_divergence(ours, theirs)
    torch.testing.assert_close(kl, torch.zeros((), dtype=DOUBLE), **same)
    assert (ours.cov_factor is None) == (name != "cov_factor")
    # Three variables have a closed form, right to 1e-14.
    expected = mvnrob.mvn_cdf(VALUE, COV, mean=LOC)
    torch.testing.assert_close(ours.cdf(VALUE), expected, rtol=0, atol=1e-12)


def test_positional_arguments_are_those_of_torch():
    for position, name in enumerate(("covariance_matrix", "precision_matrix", "scale_tril")):
        arguments = [None] * 3
        arguments[position] = MATRICES[name]
        torch.testing.assert_close(MultivariateNormal(LOC, *arguments).covariance_matrix, COV)
    assert MultivariateNormal(LOC, COV, None, None, False)._validate_args is False


def test_rectangle():
    d = MultivariateNormal(LOC, COV)
    lower = VALUE - 1.5
    expected = mvnrob.mvn_cdf(VALUE, COV, lower=lower, mean=LOC)
    torch.testing.assert_close(d.rectangle(lower, VALUE), expected, rtol=0, atol=1e-14)
    whole = torch.full((3,), math.inf, dtype=DOUBLE)
    assert d.rectangle(-whole, whole) == 1
    assert d.rectangle(VALUE, lower) == 0
    torch.testing.assert_close(d.rectangle(-whole, VALUE), d.cdf(VALUE), rtol=0, atol=1e-14)


def test_options_reach_mvn_cdf():
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(2, 8, 12, generator=g, dtype=DOUBLE)
    d = MultivariateNormal(torch.zeros(8, dtype=DOUBLE), factor @ factor.mT)
    value = torch.full((8,), 3.0, dtype=DOUBLE)
    options = {"abs_tol": 1e-3, "rel_tol": 1e-5, "seed": torch.tensor([3, 4]), "max_points": 2**16}
    info = d.cdf(value, **options, method="sov", compute_dtype=DOUBLE, return_info=True, check=True)
    expected = mvnrob.mvn_cdf(
        value, d.covariance_matrix, **options, method="sov", compute_dtype=DOUBLE, return_info=True
    )
    assert all(torch.equal(a, b) for a, b in zip(info, expected, strict=True))
    assert isinstance(info, mvnrob.MVNResult)
    assert isinstance(d.rectangle(value - 9, value, return_info=True), mvnrob.MVNResult)
    for name in ("mean", "lower"):
        with pytest.raises(TypeError, match=f"Normal: options must leave out .*, got '{name}'"):
            d.cdf(value, **{name: value})


def test_log_cdf_in_both_tails():
    d = MultivariateNormal(torch.zeros(1, dtype=DOUBLE), torch.eye(1, dtype=DOUBLE))
    x = torch.tensor([-37.0, -20, -5, -1, 0, 1, 5, 8, 12, 37], dtype=DOUBLE)
    expected = torch.from_numpy(stats.norm.logcdf(x.numpy()))
    # A closed form; the tail of Phi itself is good to a few 1e-15 of its value.
    torch.testing.assert_close(d.log_cdf(x[:, None]), expected, rtol=1e-12, atol=0)
    # where p itself is 0
    assert abs(d.log_cdf(torch.tensor([-60.0], dtype=DOUBLE)) - stats.norm.logcdf(-60)) < 1e-10
    assert d.log_cdf(torch.tensor([-math.inf], dtype=DOUBLE)) == -math.inf
    assert d.log_cdf(torch.tensor([math.inf], dtype=DOUBLE)) == 0
    log, info = d.log_cdf(x[:, None], return_info=True)
    assert torch.equal(log, info.log_prob) and torch.equal(info.prob, d.cdf(x[:, None]))
    wide = MultivariateNormal(torch.zeros(6, dtype=DOUBLE), torch.eye(6, dtype=DOUBLE) + 0.5)
    log, info = wide.log_cdf(
        torch.full((6,), -1.5).double(), rel_tol=1e-3, abs_tol=0, return_info=True
    )
    assert abs(log - info.prob.log()) < 1e-14 and info.error <= 1e-3 * info.prob


def test_batches_broadcast():
    loc = torch.zeros(4, 1, 3, dtype=DOUBLE)
    scales = torch.tensor([0.5, 1.0], dtype=DOUBLE)[:, None, None]
    for matrix in ({"scale_tril": scales * TRIL}, {"cov_factor": scales * FACTOR}):
        d = MultivariateNormal(loc, **matrix)
        assert d.batch_shape == (4, 2) and d.variance.shape == (4, 2, 3)
        assert d.covariance_matrix.shape == (4, 2, 3, 3)
        value = torch.linspace(-1, 2, 5, dtype=DOUBLE)[:, None, None, None] * torch.ones(3)
        p = d.cdf(value)
        assert p.shape == (5, 4, 2)
        single = MultivariateNormal(loc[0, 0], **{k: m[1] for k, m in matrix.items()})
        torch.testing.assert_close(p[:, 2, 1], single.cdf(value[:, 0, 0]), rtol=0, atol=1e-12)
        assert d.sample((7,)).shape == (7, 4, 2, 3)


@pytest.mark.parametrize("name", MATRICES)
def test_expand(name):
    d = MultivariateNormal(LOC, **{name: MATRICES[name]}, validate_args=False)
    for _ in range(2):  # the second time with what cdf has made
        wide = d.expand((2, 4))
        assert type(wide) is MultivariateNormal and wide._validate_args is False
        assert wide.batch_shape == (2, 4) and wide.loc.data_ptr() == d.loc.data_ptr()
        assert torch.equal(wide.cdf(VALUE), d.cdf(VALUE).expand(2, 4))
        assert wide.covariance_matrix.stride()[:2] == (0, 0)
        assert wide.log_prob(VALUE).shape == wide.entropy().shape == (2, 4)
        assert wide.expand((3, 2, 4)).rsample().shape == (3, 2, 4, 3)
        if name == "cov_factor":
            assert wide.cov_factor.shape == (2, 4, 3, 4)
        assert d.log_prob(VALUE).shape == ()


# ---- singular covariances -----------------------------------------------------------------------


def test_singular_cdf_and_samples():
    d = MultivariateNormal(LOC, cov_factor=FACTOR)
    draws = d.sample((200_000,))
    normal = torch.tensor([0.6, -0.8, -1.0], dtype=DOUBLE)
    assert ((draws - LOC) @ normal).abs().max() < 1e-12  # they lie in the plane
    # Moments of 200,000 draws: five standard errors of a variance of 1 are .016.
    assert (torch.cov(draws.mT) - d.covariance_matrix).abs().max() < 0.02
    assert (draws.mean(0) - LOC).abs().max() < 0.012
    share = float((draws <= VALUE).all(-1).double().mean())
    assert abs(float(d.cdf(VALUE)) - share) < 5 * (0.25 / 200_000) ** 0.5
    inside = (draws >= VALUE - 1).all(-1) & (draws <= VALUE).all(-1)
    p = float(d.rectangle(VALUE - 1, VALUE))
    assert abs(p - float(inside.double().mean())) < 5 * (0.25 / 200_000) ** 0.5
    torch.testing.assert_close(d.variance, d.covariance_matrix.diagonal())


def test_samples_are_differentiable_in_the_factor():
    factor = FACTOR.clone().requires_grad_()
    MultivariateNormal(LOC, cov_factor=factor).rsample((5,)).sum().backward()
    assert factor.grad.abs().sum() > 0


@pytest.mark.parametrize("factor", [FACTOR, torch.ones(3, 3, dtype=DOUBLE)])
def test_singular_has_no_density(factor):
    d = MultivariateNormal(LOC, cov_factor=factor)
    for call in (
        lambda: d.log_prob(VALUE),
        d.entropy,
        lambda: d.scale_tril,
        lambda: d.precision_matrix,
        lambda: torch.distributions.kl_divergence(d, d),
    ):
        with pytest.raises(ValueError, match="cov_factor must have rank 3 for a density, got "):
            call()
    assert d.cdf(VALUE) > 0


# ---- bad calls ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "exactly one of .* must be given, got 0"),
        ({"scale_tril": TRIL, "cov_factor": TRIL}, "exactly one of .* must be given, got 2"),
        ({"cov_factor": TRIL[:2]}, r"cov_factor must have shape \[..., 3, r\], got \[2, 3\]"),
        ({"cov_factor": LOC}, r"cov_factor must have shape \[..., 3, r\], got \[3\]"),
        ({"cov_factor": TRIL * math.nan}, "parameter cov_factor"),
        ({"covariance_matrix": -COV}, "parameter covariance_matrix"),
        ({"scale_tril": COV}, "parameter scale_tril"),
    ],
)
def test_bad_parameters(arguments, text):
    # torch.compile switches the default off for the whole process.
    with pytest.raises(ValueError, match=text):
        MultivariateNormal(LOC, **arguments, validate_args=True)


def test_bad_values():
    for matrix in ({"covariance_matrix": COV}, {"cov_factor": FACTOR}):
        d = MultivariateNormal(LOC, **matrix, validate_args=True)
        with pytest.raises(ValueError, match="right-most size"):
            d.cdf(VALUE[:2])
        for call in (d.cdf, d.log_cdf, lambda x, d=d: d.rectangle(x, VALUE)):
            with pytest.raises(ValueError, match="within the support"):
                call(VALUE * math.nan)
    with pytest.raises(ValueError, match="loc must be at least one-dimensional"):
        MultivariateNormal(torch.zeros(()), cov_factor=FACTOR)
    half = MultivariateNormal(LOC.half(), cov_factor=FACTOR.half())
    with pytest.raises(TypeError, match="mvn_cdf: upper must be float32 or float64, got"):
        half.cdf(VALUE.half())


# ---- torch's transforms -------------------------------------------------------------------------


def test_autocast_keeps_float32():
    for matrix in ({"scale_tril": TRIL.float()}, {"cov_factor": FACTOR.float()}):
        d = MultivariateNormal(LOC.float(), **matrix)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            p = MultivariateNormal(LOC.float(), **matrix).cdf(VALUE.float())
        assert p.dtype == torch.float32 and torch.equal(p, d.cdf(VALUE.float()))


def test_vmap_and_compile():
    def program(loc, factor):
        d = MultivariateNormal(loc, cov_factor=factor, validate_args=False)
        return d.log_cdf(loc + 0.5)

    locs, factors = LOC + torch.arange(4)[:, None], FACTOR * torch.arange(1, 5)[:, None, None]
    expected = torch.stack([program(*pair) for pair in zip(locs, factors, strict=True)])
    # A batched product may round otherwise.
    same = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(torch.func.vmap(program)(locs, factors), expected, **same)
    compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(locs, factors), expected, **same)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["one model", "a list of models"])
def test_posteriors_of_botorch(kind):
    """README's line: the mean in the order of the covariance is the distribution's loc."""
    models = pytest.importorskip("botorch.models")
    x = torch.linspace(0, 1, 8).double()[:, None]
    y = torch.cat([torch.sin(6 * x), torch.cos(5 * x)], 1)
    if kind == "one model":
        model = models.SingleTaskGP(x, y)
    else:
        model = models.ModelListGP(*(models.SingleTaskGP(x, y[:, i : i + 1]) for i in (0, 1)))
    posterior = model.posterior(torch.tensor([[[0.05], [0.5], [1.1]]]).double())
    d = posterior.distribution
    p = mvnrob.mvn_cdf(0.9 - d.loc, d.covariance_matrix)
    torch.manual_seed(0)
    draws = (posterior.rsample(torch.Size([100_000])) <= 0.9).flatten(2).all(-1).double()
    assert abs(float(p) - float(draws.mean())) < 5 * (float(p) * (1 - float(p)) / 1e5) ** 0.5


@pytest.mark.parametrize(
    ("loc", "factor", "kind", "text"),
    [
        (torch.zeros(3, 2), torch.zeros(2, 2, 2), ValueError,
         r"cov_factor must have batch dimensions .* of loc, \[3\], got \[2\]"),
        (torch.zeros(2), [[1.0], [0.0]], TypeError, "cov_factor must be a tensor, got list"),
        ([0.0, 0.0], torch.zeros(2, 1), TypeError, "loc must be a tensor, got list"),
        (torch.zeros(2), torch.zeros(2, 1, dtype=DOUBLE), TypeError,
         r"cov_factor must have the dtype of loc \(torch.float32\), got torch.float64"),
    ],
)  # fmt: skip
def test_factors_that_do_not_fit_the_means(loc, factor, kind, text):
    with pytest.raises(kind, match=f"^MultivariateNormal: {text}"):
        MultivariateNormal(loc, cov_factor=factor)
