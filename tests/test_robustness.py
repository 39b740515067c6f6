"""mvnrob.robustness: known answers, laws, budgets, screening, edges and bad calls."""

import copy
import functools
import math
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from mvnrob import Status, argmax_probabilities, chunks, mvn_cdf
from mvnrob.jacobian import LogitMap, jacobian
from mvnrob.meter import Meter
from mvnrob.network import Network
from mvnrob.robustness import METHODS, RobustnessResult, robustness

LINEAR_METHODS = ("taylor", "mmse", "taylor_mvs", "mmse_mvs")


def linear_model(classes, features, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, features, generator=generator, dtype=dtype)
    bias = torch.randn(classes, generator=generator, dtype=dtype)
    return weight, bias, lambda x: x.flatten(1) @ weight.T + bias


def mlp(features, classes, seed=0, dtype=torch.float64, width=32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(features, width), nn.Tanh(), nn.Linear(width, classes)
        )
    return net.to(dtype).eval()


def inputs(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def same(a: RobustnessResult, b: RobustnessResult, tolerance=0.0):
    for name in ("prob", "complement", "lower", "upper"):
        torch.testing.assert_close(
            getattr(a, name), getattr(b, name), rtol=0, atol=tolerance, equal_nan=True
        )


# --- known answers ----------------------------------------------------------------------------


def test_taylor_is_exact_for_linear_models_against_ten_million_draws():
    weight, _bias, model = linear_model(10, 20)
    x = inputs(3, 20)
    sigmas = [0.2, 0.6, 1.5]
    result = robustness(model, x, sigmas)
    draws, chunk = 10_000_000, 500_000
    clean = model(x).float()
    kept = torch.zeros(3, 3, dtype=torch.int64)
    generator = torch.Generator().manual_seed(3)
    for _ in range(draws // chunk):
        shift = torch.randn(chunk, 20, generator=generator) @ weight.T.float()
        for row in range(3):
            target = int(result.target[row])
            # class i overtakes once sigma (shift_i - shift_t) exceeds the margin
            speed = (shift - shift[:, target, None]) / (clean[row, target] - clean[row])
            speed[:, target] = 0
            fastest = speed.amax(1)
            for s, sigma in enumerate(sigmas):
                kept[s, row] += (sigma * fastest <= 1).sum()
    truth = kept / draws
    # four standard errors of the counting: 9 comparisons fail by chance with probability 6e-4
    noise = 4 * (truth * (1 - truth) / draws).sqrt() + 1e-6
    assert ((result.prob - truth).abs() <= result.error + noise).all()
    assert (result.error <= 1e-3).all()
    assert (truth.amin() < 0.5) and (truth.amax() > 0.95), "the cases must not all be easy"


def test_two_classes_are_the_closed_form():
    weight, _, model = linear_model(2, 7)
    x = inputs(5, 7)
    result = robustness(model, x, 0.8)
    margin = model(x).diff(dim=1).abs()[:, 0]
    z = margin / (0.8 * (weight[0] - weight[1]).norm())
    torch.testing.assert_close(result.prob, torch.special.ndtr(z), rtol=0, atol=1e-14)
    torch.testing.assert_close(result.complement, torch.special.ndtr(-z), rtol=1e-12, atol=0)
    assert (result.status == Status.EXACT).all()
    assert torch.equal(result.runner_up, 1 - result.target)


def test_monte_carlo_interval_covers_the_known_probability():
    _weight, _, model = linear_model(2, 6)
    x = inputs(300, 6)
    truth = robustness(model, x, 1.0).prob
    plain = robustness(model, x, 1.0, method="mc", n_samples=400)
    # at least 99 % coverage: P(more than 9 misses of 300) < 0.2 % at 1 %
    assert ((truth < plain.lower) | (truth > plain.upper)).sum() <= 9
    early = robustness(model, x, 1.0, method="mc", n_samples=20_000, width=0.1)
    assert ((truth < early.lower) | (truth > early.upper)).sum() <= 9
    assert (early.upper - early.lower <= 0.1).all() and (early.status == Status.CONVERGED).all()
    assert early.cost.forward.amin() < early.cost.forward.amax() < 20_000
    short = robustness(model, x, 1.0, method="mc", n_samples=128, width=1e-3)
    assert (short.status == Status.MAX_POINTS).any()


@pytest.mark.parametrize("method", ["taylor", "mmse", "logit_moments", "mc"])
def test_target_that_is_not_the_prediction(method):
    _, _, model = linear_model(4, 9)
    x = inputs(6, 9)
    options = {} if method == "taylor" else {"n_samples": 2000}
    total = torch.zeros(6, dtype=torch.float64)
    allowed = torch.zeros(6, dtype=torch.float64)
    for label in range(4):
        result = robustness(model, x, 1.0, method=method, target=label, **options)
        assert (result.target == label).all() and (result.runner_up != label).all()
        total += result.prob
        allowed += result.error
    # the four events fill the space
    assert ((total - 1).abs() <= allowed).all()


def test_targets():
    _, _, model = linear_model(5, 3)
    x = inputs(4, 3)
    prediction = model(x).argmax(1)
    labels = torch.tensor([0, 4, 2, 2], dtype=torch.int32)
    assert torch.equal(robustness(model, x, 0.1).target, prediction)
    assert torch.equal(robustness(model, x, 0.1, target="prediction").target, prediction)
    assert torch.equal(robustness(model, x, 0.1, target=labels).target, labels.long())
    assert torch.equal(robustness(model, x, 0.1, target=3).target, torch.full((4,), 3))


def test_numpy_and_lists_as_sigma_and_target():
    model, x = mlp(6, 4), inputs(3, 6)
    curve = robustness(model, x, [0.1, 0.3])
    assert torch.equal(curve.sigma, torch.tensor([0.1, 0.3], dtype=torch.float64))
    for sigma in (np.array([0.1, 0.3]), [np.float64(0.1), torch.tensor(0.3, dtype=torch.float64)]):
        again = robustness(model, x, sigma)
        same(curve, again)
        assert torch.equal(again.sigma, curve.sigma)
    single = robustness(model, x, np.float64(0.3), target=np.int32(2))
    same(single, robustness(model, x, np.array(0.3), target=2))
    assert single.prob.shape == (3,) and single.target.tolist() == [2, 2, 2]
    labels = [3, 0, 1]
    for target in (labels, tuple(labels), np.array(labels, dtype=np.uint8), list(np.array(labels))):
        assert robustness(model, x, 0.3, target=target).target.tolist() == labels


def test_models_that_cast_their_inputs_are_served():
    plain = mlp(6, 4, dtype=torch.float32)

    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain

        def forward(self, v):
            return self.net(v.float())

    x = inputs(3, 6)
    cast = robustness(Casting().eval(), x, 0.3, check="raise")
    same(cast, robustness(plain, x.float(), 0.3), 1e-5)


def test_the_models_own_error_is_the_cause():
    with pytest.raises(ValueError, match="what the model takes") as caught:
        robustness(mlp(6, 4), inputs(3, 5), 0.1)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_repr_is_a_line():
    model, x = mlp(6, 4), inputs(50, 6)
    text = repr(robustness(model, x, [0.1, 0.2, 0.3], method="logit_moments"))
    assert text.startswith("RobustnessResult(method='logit_moments', prob: 3x50 with mean 0.")
    assert "status: " in text and len(text) < 200 and "\n" not in text
    assert repr(robustness(model, x[:0], 0.1)) == "RobustnessResult(method='taylor', prob: 0)"


@pytest.mark.parametrize("features", [1, 2, 3, 5])
@pytest.mark.parametrize("classes", [4, 10, 50])
def test_singular_covariances_in_float32(classes, features):
    """Fewer features than rivals: the Gram has rank D, up to float32 rounding of the gradients."""
    net = mlp(features, classes, dtype=torch.float32)
    x = inputs(50, features, dtype=torch.float32)
    _close_to_float64(net, x, {})


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("classes", [4, 10, 50])
def test_noise_of_low_rank_in_float32(classes, rank):
    net = mlp(20, classes, dtype=torch.float32)
    x = inputs(50, 20, dtype=torch.float32)
    _close_to_float64(net, x, {"noise_factor": inputs(20, rank, seed=5, dtype=torch.float32)})


def _close_to_float64(net, x, options):
    single = robustness(net, x, 0.5, **options)
    wide = {name: value.double() for name, value in options.items()}
    double = robustness(copy.deepcopy(net).double(), x.double(), 0.5, target=single.target, **wide)
    assert single.prob.isfinite().all() and double.prob.isfinite().all()
    assert (single.status != Status.INDEFINITE).all()
    gap = (single.prob - double.prob).abs()
    assert (gap <= single.error + double.error + 1e-4).all(), gap.max()


@pytest.mark.parametrize("method", ["taylor", "mmse", "taylor_mvs", "mmse_mvs"])
@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e-22, 1e19, 1e30])
def test_scale_of_the_logits_does_not_matter_in_float32(method, scale):
    """Squares of such gradients under- or overflow: once p = 1 with error 0, or NaN."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 6, generator=generator)
    x = torch.randn(2, 6, generator=generator)

    def probabilities(factor):
        model = nn.Linear(6, 6, bias=False)
        model.weight.data = weight * factor
        return robustness(model.eval(), x, 0.5, method=method)

    plain, scaled = probabilities(1.0), probabilities(scale)
    assert (plain.prob > 0.01).all() and (plain.prob < 0.99).all()
    assert ((scaled.prob - plain.prob).abs() <= plain.error + scaled.error + 1e-5).all()
    assert ((scaled.upper - plain.upper).abs() <= 2e-3).all()


@pytest.mark.parametrize("classes", [6, 40])
@pytest.mark.parametrize("scale", [1e-280, 1e-200, 1e-160, 1e160, 1e200, 1e280])
def test_scale_of_the_logits_does_not_matter_in_float64(scale, classes):
    """Squares of such gradients are no numbers: p was 1 with error 0, or NaN."""
    weight, bias, _ = linear_model(classes, 12)
    model, x = nn.Linear(12, classes).double().eval().requires_grad_(False), inputs(3, 12)
    model.weight.copy_(0.3 * weight)
    model.bias.copy_(0.3 * bias)
    scaled = copy.deepcopy(model)
    for value in scaled.parameters():
        value *= scale
    x = 3 * x
    for method in (*LINEAR_METHODS, "logit_moments"):
        for screen in ("auto", "exact", "sketch", "none") if method == "taylor" else (None,):
            call = functools.partial(robustness, sigma=[0.5, 1.0], method=method, screen=screen)
            plain, far = call(model, x), call(scaled, x)
            assert (plain.prob > 0.005).any() and (plain.prob < 0.9).any()
            gap = (far.prob - plain.prob).abs()
            assert (gap <= 1e-9 + 2e-3 * (method != "taylor_mvs")).all(), (method, screen, gap)
            assert (far.error.nan_to_num(1.0) <= 1e-9 + plain.error.nan_to_num(1.0) + 2e-3).all()
            assert torch.equal(plain.runner_up, far.runner_up)
    shares, far = (argmax_probabilities(m, x, 0.5, min_prob=0.0) for m in (model, scaled))
    assert ((shares.prob - far.prob).abs() <= shares.error + far.error).all()
    torch.testing.assert_close(far.prob.sum(1), torch.ones(3).double(), rtol=0, atol=5e-3)


def test_one_input_of_a_batch_beyond_the_squares():
    """An activation that makes one input's logits and gradients 1e200 times the others'."""
    weight, bias, _ = linear_model(40, 12)
    x = inputs(4, 12)
    size = torch.tensor([1.0, 1e200, 1.0, 1e-200], dtype=torch.float64)

    def model(v):
        place = (v.detach()[:, None] - x).abs().sum(2).argmin(1)
        return (v @ weight.T + bias) * size[place, None]

    plain = robustness(lambda v: v @ weight.T + bias, x, 0.3, screen="exact")
    mixed = robustness(model, x, 0.3, screen="exact", check="raise")
    assert ((plain.prob - mixed.prob).abs() <= plain.error + mixed.error).all()
    assert (plain.prob < 0.99).all() and (mixed.error <= 1e-3).all()


@pytest.mark.parametrize("method", ["taylor", "mmse"])
@pytest.mark.parametrize("steepest", [1.0, 1e-100, 1e50])
def test_slopes_of_very_different_size_in_one_input(method, steepest):
    """Two logits whose slopes are 1e-200, beside one far steeper that is out of reach: p was that of
    no rival, with an error of 1e-15."""
    x = torch.tensor([[0.3, 0.1, -4.0]], dtype=torch.float64)
    sizes = torch.tensor([1e-200, 1e-200, steepest], dtype=torch.float64)
    p = float(torch.special.ndtr(torch.tensor(0.2 / 0.5**0.5, dtype=torch.float64)))
    for screen in ("auto", "exact", "sketch", "none"):
        got = robustness(lambda v: v * sizes, x, 0.5, method=method, screen=screen)
        assert abs(float(got.prob) - p) < 1e-9
    shares = argmax_probabilities(lambda v: v * sizes, x, 0.5).prob[0]
    assert (shares - shares.new_tensor([p, 1 - p, 0.0])).abs().max() < 1e-9


@pytest.mark.parametrize("width", [3, 40])
@pytest.mark.parametrize("mask", [-1e200, -1e300, -1.7e308])
def test_masks_beside_tiny_logits(mask, width):
    """A finite number for a class that does not count: it does not say how the others are rescaled."""
    _, _, model = linear_model(width, 12)
    x, masked = inputs(3, 12), torch.full((3, 2), mask, dtype=torch.float64)
    plain = robustness(model, x, 0.3)
    got = robustness(lambda v: torch.cat([1e-200 * model(v), masked[: len(v)]], 1), x, 0.3)
    assert ((got.prob - plain.prob).abs() <= got.error + plain.error).all()
    assert (plain.prob < 0.999).all()


def test_runner_up_is_where_monte_carlo_flips():
    _, _, model = linear_model(6, 10)
    x = inputs(40, 10)
    counted = robustness(model, x, 0.5, method="mc", n_samples=4000)
    often = counted.prob < 0.9
    assert often.sum() >= 10
    for method in ("taylor", "taylor_mvs", "logit_moments"):
        linear = robustness(model, x, 0.5, method=method)
        # ties between two near rivals may go either way
        agreement = (linear.runner_up == counted.runner_up)[often].double().mean()
        assert agreement >= 0.8


# --- noise models -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_many_sigmas_equal_single_calls(method):
    model, x = mlp(6, 4), inputs(5, 6)
    options = {"n_samples": 40} if method in ("mc", "mmse", "mmse_mvs", "logit_moments") else {}
    sigmas = [0.1, 0.7, 0.0]
    curve = robustness(model, x, sigmas, method=method, **options)
    assert curve.prob.shape == (3, 5) and curve.sigma.tolist() == sigmas
    for row, sigma in enumerate(sigmas):
        single = robustness(model, x, sigma, method=method, **options)
        assert single.prob.shape == (5,) and single.sigma.shape == ()
        if method in ("mc", "softmax"):
            assert torch.equal(curve.prob[row], single.prob)
        # taylor screens a curve at its largest sigma: the same up to the stated errors
        gap = (curve.prob[row] - single.prob).abs()
        assert ((gap <= curve.error[row] + single.error) | (gap <= 1e-12)).all()


def test_one_jacobian_serves_the_curve():
    model, x = mlp(6, 4), inputs(5, 6)
    one, many = robustness(model, x, 0.3), robustness(model, x, [0.1 * k for k in range(1, 20)])
    assert torch.equal(one.cost.vjp, many.cost.vjp) and (one.cost.vjp == 4).all()


@pytest.mark.parametrize("method", LINEAR_METHODS + ("mc", "logit_moments"))
def test_sigma_per_feature_is_sigma_one_on_rescaled_inputs(method):
    model, x = mlp(12, 5), inputs(4, 3, 4)
    scale = torch.linspace(0.1, 1.0, 12, dtype=torch.float64).reshape(3, 4)
    options = {} if method.startswith("taylor") else {"n_samples": 50}
    direct = robustness(model, x, scale, method=method, **options)
    rescaled = robustness(lambda y: model(y * scale), x / scale, 1.0, method=method, **options)
    # the same noise (it is drawn in units of sigma); rounding differs, and a count by one copy
    same(direct, rescaled, 0.03 if method == "mc" else 1e-7)
    assert torch.equal(direct.sigma, scale)


def test_noise_factor_is_the_explicit_covariance():
    weight, _, model = linear_model(6, 8)
    x = inputs(5, 8)
    factor = inputs(8, 3, seed=4)
    result = robustness(model, x, [0.5, 1.0], noise_factor=factor)
    logits = model(x)
    for s, sigma in enumerate((0.5, 1.0)):
        for row in range(5):
            target = int(result.target[row])
            rivals = [c for c in range(6) if c != target]
            u = weight[target] - weight[rivals]
            covariance = sigma**2 * u @ factor @ factor.T @ u.T
            margin = logits[row, target] - logits[row, rivals]
            truth = mvn_cdf(margin, covariance, abs_tol=1e-4, return_info=True)
            gap = (result.prob[s, row] - truth.prob).abs()
            assert gap <= result.error[s, row] + truth.error
    for method in ("mmse", "mc", "logit_moments"):
        sampled = robustness(model, x, 0.5, method=method, n_samples=4000, noise_factor=factor)
        assert ((sampled.prob - result.prob[0]).abs() <= 0.05).all()


@pytest.mark.parametrize("method", ["taylor", "mmse", "mc"])
def test_noise_map_is_its_matrix(method):
    model, x = mlp(16, 4, dtype=torch.float32), inputs(3, 1, 4, 4, dtype=torch.float32)
    kernel = torch.tensor([[1.0, 2, 0], [0, 3, 1], [0, 0, 1]])[None, None] / 4  # not symmetric

    def blur(e):
        return nn.functional.conv2d(e, kernel, padding=1)

    matrix = blur(torch.eye(16).reshape(16, 1, 4, 4)).reshape(16, 16).T
    options = {} if method == "taylor" else {"n_samples": 200}
    by_map = robustness(model, x, 0.4, method=method, noise_factor=blur, **options)
    by_matrix = robustness(model, x, 0.4, method=method, noise_factor=matrix, **options)
    same(by_map, by_matrix, 0.011 if method == "mc" else 1e-5)


def test_preprocessing_keeps_sigma_in_raw_units():
    model, x = mlp(12, 4), inputs(3, 3, 2, 2)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 2.0, 0.25])

    def raw(y):
        return model((y - mean.double()[:, None, None]) / std.double()[:, None, None])

    declared = robustness(
        model, x, 0.3, preprocessing={"mean": mean, "std": std.tolist(), "axis": -3}
    )
    same(declared, robustness(raw, x, 0.3), 1e-9)
    scalar = robustness(model, x, 0.3, preprocessing={"std": 2.0})
    same(scalar, robustness(model, x / 2, 0.15), 1e-9)


# --- chunks and budgets -----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_byte_budget_and_batch_split_do_not_change_results(method):
    model, x = mlp(10, 5), inputs(5, 10)
    options = {"n_samples": 8} if method in ("mc", "mmse", "mmse_mvs", "logit_moments") else {}
    call = functools.partial(robustness, model, sigma=[0.2, 0.9], method=method, seed=5, **options)
    whole = call(x)
    # matrix products of different batches differ by rounding; the noise does not differ at all
    # (limits of counts: the last bit, by the length of the vector that NumPy works on)
    tolerance = 1e-15 if method == "mc" else 1e-9
    for max_bytes in (1, 10_000):
        same(whole, call(x, max_bytes=max_bytes), tolerance)
    first, second = call(x[:2]), call(x[2:], first_index=2)
    joined = torch.cat([first.prob, second.prob], 1)
    torch.testing.assert_close(joined, whole.prob, rtol=0, atol=tolerance)
    if method in ("mc", "mmse", "logit_moments"):
        assert not torch.equal(call(x, first_index=100).prob, whole.prob)
        other = robustness(model, x, [0.2, 0.9], method=method, seed=6, **options)
        assert not torch.equal(other.prob, whole.prob)


@pytest.mark.parametrize(
    ("method", "screen"),
    [(m, s) for m in ("taylor", "mmse") for s in ("auto", "exact", "sketch", "none")]
    + [("taylor_mvs", None)],
)
def test_rows_in_memory_stay_below_the_budget(monkeypatch, method, screen):
    classes, features, max_bytes = 60, 500, 200_000
    _, _, model = linear_model(classes, features)
    x = inputs(3, features)
    largest = []
    original = LogitMap.rows

    def watched(self, wanted, **options):
        rows = original(self, wanted, **options)
        largest.append(rows.numel() * rows.element_size())
        return rows

    monkeypatch.setattr(LogitMap, "rows", watched)
    options = {"screen": screen}
    if method == "mmse":
        options["n_samples"] = 4
    tight = robustness(model, x, 20.0, method=method, max_bytes=max_bytes, **options)
    assert len(largest) > 3 and max(largest) <= max_bytes // 2
    roomy = robustness(model, x, 20.0, method=method, **options)
    gap = (tight.prob - roomy.prob).abs()
    assert (gap <= tight.error + roomy.error).all() and tight.prob.amin() < 0.9
    if screen not in ("auto", "sketch"):  # the sketch may take other directions with another budget
        assert (gap <= 1e-9).all()


@pytest.mark.parametrize("way", ["loop", "vmap"])
def test_ways_to_the_jacobian_agree(way):
    model, x = mlp(8, 21), inputs(5, 2, 4)
    expected = torch.func.vmap(torch.func.jacrev(lambda v: model(v[None])[0]))(x).flatten(2)
    torch.testing.assert_close(jacobian(model, x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(jacobian(model, x, method=way), expected, rtol=1e-12, atol=1e-12)
    chosen = torch.tensor([[3, 0], [1, 1], [20, 2], [0, 5], [7, 7]])
    rows = jacobian(model, x, chosen, max_bytes=2 * 8 * 80)
    torch.testing.assert_close(rows, expected[torch.arange(5)[:, None], chosen])
    for method in ("taylor", "mmse"):
        same(
            robustness(model, x, 0.3, method=method),
            robustness(model, x, 0.3, method=method, jacobian=way),
            1e-6,  # mvn_cdf's recursion is float32 here: last bits of the rows may show
        )


def test_double_backward_is_forward_mode():
    model, x = mlp(8, 5), inputs(3, 8)
    network = Network("test", model, None, x)
    numbers = torch.arange(3)
    directions = inputs(3, 4, 8, seed=9)
    products = [
        LogitMap(
            network,
            Meter(3, x.device),
            x,
            numbers,
            max_copies=3,
            max_tangents=tangents,
            method="batch",
            jvp_mode=mode,
            check="off",
        ).jvp(directions)
        for mode in ("forward", "double_backward")
        for tangents in (1, 6, 100)
    ]
    expected = directions @ jacobian(model, x).mT
    for product in products:
        torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-12)


class Scarce(nn.Module):
    """A network that runs out of memory in a pass of more than ``most`` inputs.

    ``where``: in the forward passes that keep a graph, in those that do not, or in backward passes.
    """

    def __init__(self, where, most, first=0):
        super().__init__()
        self.net, self.where, self.most = mlp(8, 5), where, most
        self.passes, self.first = [], first

    def forward(self, x):
        kind = "graph" if torch.is_grad_enabled() else "forward"
        self.spend(kind, len(x))
        if x.requires_grad:
            x.register_hook(lambda gradient: self.spend("backward", len(gradient)))
        return self.net(x)

    def spend(self, kind, count):
        if kind != self.where:
            return
        self.passes.append(count)
        if count > self.most and len(self.passes) > self.first:
            raise torch.OutOfMemoryError(f"pretend {kind}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["graph", "forward", "backward"])
@pytest.mark.parametrize("most", [1, 4])
def test_out_of_memory_halves_the_chunk(method, where, most):
    # One at a time they take long, and seven are halved three times.
    x = inputs(13, 8)[: 7 if most == 1 else 13]
    call = functools.partial(robustness, x=x, sigma=[0.5, 0.7], method=method)
    options = {"n_samples": 40} if method in ("mc", "mmse", "mmse_mvs", "logit_moments") else {}
    whole = call(mlp(8, 5), **options)
    scarce = Scarce(where, most).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        halved = call(scarce, **options)
    # products of other batches differ in their last bits, as they do under a byte budget
    same(whole, halved, 1e-9)
    for name in ("status", "target", "runner_up", "n_screened"):
        assert torch.equal(getattr(whole, name), getattr(halved, name))
    tried = [count for count in scarce.passes if count > most]
    needs = where == "forward" or method in LINEAR_METHODS
    assert bool(tried) == needs
    assert len(caught) == len(tried) and {w.filename for w in caught} <= {__file__}
    assert all("out of memory; going on with" in str(w.message) for w in caught)
    # each try is smaller than the last, and what fits is used from then on
    assert tried == sorted(tried, reverse=True) and len(set(tried)) == len(tried)
    if needs:
        assert most // 2 < max(count for count in scarce.passes if count <= most)


@pytest.mark.parametrize("where", ["graph", "forward", "backward"])
@pytest.mark.parametrize("first", [0, 1])
def test_out_of_memory_of_a_single_input_is_one_error(where, first):
    """At once, or after some passes that fitted."""
    scarce = Scarce(where, 0, first).eval()
    message = "^robustness: memory must hold the passes of a single input, got pretend " + where
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(torch.OutOfMemoryError, match=message) as caught:
            robustness(scarce, inputs(2, 8), 0.5)
    assert str(caught.value.__cause__) == f"pretend {where}"


def test_tangents_are_bounded_by_the_budget_alone():
    """Forward mode on a GPU: several directions pass at once though all inputs pass already."""
    x = torch.zeros(8, 100)
    noise = types.SimpleNamespace(sigmas=[0.1], dim=100)
    graph = 10**5
    for max_bytes, wanted in ((10**9, 4700), (10**7, 47), (10**5, 1)):
        settings = types.SimpleNamespace(
            max_bytes=max_bytes, screen="auto", jacobian="batch", n_samples=0
        )  # fmt: skip
        step, copies, tangents = chunks._chunk_sizes("op", "taylor", 50, x, noise, settings, graph)
        assert copies <= step <= 8 and copies <= tangents
        # two of a graph, its noise and its logits
        assert tangents == max(1, max_bytes // (2 * (graph + 32 * 100 + 48 * 50)))
        assert tangents == pytest.approx(wanted, rel=0.02)


def test_out_of_memory_of_argmax_probabilities_and_jacobian():
    x, plain = inputs(13, 8), mlp(8, 5)
    for where in ("graph", "backward"):
        with pytest.warns(RuntimeWarning, match="argmax_probabilities: out of memory; going on"):
            shares = argmax_probabilities(Scarce(where, 4).eval(), x, 0.5)
        expected = argmax_probabilities(plain, x, 0.5)
        torch.testing.assert_close(shares.prob, expected.prob, rtol=0, atol=1e-9)
        with pytest.warns(RuntimeWarning, match="jacobian: out of memory; going on with [63] inp"):
            rows = jacobian(Scarce(where, 4).eval(), x)
        torch.testing.assert_close(rows, jacobian(plain, x), rtol=0, atol=1e-14)
        with (
            pytest.warns(RuntimeWarning, match="going on with 1 inputs"),
            pytest.raises(
                torch.OutOfMemoryError, match="^jacobian: memory must hold the passes of"
            ),
        ):
            jacobian(Scarce(where, 0, 1).eval(), x)


# --- statuses ---------------------------------------------------------------------------------


def test_status_and_error_of_an_unmet_tolerance():
    # 60 equal rivals at correlation 1/2, two of them nearer so that there is no common factor: no
    # screening, and 1e-9 takes more points than allowed
    weight = torch.eye(61, dtype=torch.float64)
    weight[1, 2] = 0.1
    x = torch.zeros(1, 61, dtype=torch.float64)
    x[0, 0] = 1.0
    x = torch.cat([x, 1e3 * x])  # the second input is done at once
    message = "^robustness: 1 of 2 inputs ended before abs_tol was met"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        result = robustness(lambda v: v @ weight, x, [1.0, 0.9], abs_tol=1e-9)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():  # a user's filter governs it, also one that raises
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(RuntimeWarning, match=message):
            robustness(lambda v: v @ weight, x, 1.0, abs_tol=1e-9)
    assert (result.status[:, 0] == Status.MAX_POINTS).all() and (result.error[:, 0] > 1e-9).all()
    assert (result.status[:, 1] != Status.MAX_POINTS).all() and (result.error[:, 1] <= 1e-9).all()


def test_an_indefinite_covariance_is_reported(monkeypatch):
    """jac_cov gives no such matrix that a test could ask for, so the status is put there."""
    from mvnrob.estimators import linear

    true_cdf = linear.mvn_cdf

    def spoiled(z, **options):
        info = true_cdf(z, **options)
        info.prob[1], info.status[1] = math.nan, int(Status.INDEFINITE)
        return info

    monkeypatch.setattr(linear, "mvn_cdf", spoiled)
    message = "^robustness: 1 of 3 inputs got NaN: the covariance of their margins"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        result = robustness(mlp(6, 6), inputs(3, 6), 0.3)
    assert result.status[1] == Status.INDEFINITE and result.prob[1].isnan()
    assert len(caught) == 1 and caught[0].filename == __file__


# --- checks of the derivative -----------------------------------------------------------------


class WrongBackward(torch.autograd.Function):
    """Doubles in forward and forward mode, triples in reverse mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


class SlopesOff(torch.autograd.Function):
    """The identity whose gradient is 2 % too large."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.02 * gradient


def test_wrong_reverse_mode_is_reported():
    plain = mlp(6, 4)
    x = inputs(2, 6)

    def model(v):
        return plain(WrongBackward.apply(v))

    for method in LINEAR_METHODS:
        with pytest.warns(RuntimeWarning, match="must agree with a forward-mode product") as caught:
            robustness(model, x, 0.1, method=method)
        # torch warns of its own, once a process
        ours = {w.filename for w in caught if issubclass(w.category, RuntimeWarning)}
        assert ours == {__file__}
        with pytest.raises(RuntimeError, match=r"for input \d: an operation of the model diff"):
            robustness(model, x, 0.1, method=method, check="raise")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            robustness(model, x, 0.1, method=method, check="off")
            robustness(plain, x, 0.1, method=method, check="raise")


def test_rows_that_are_not_independent_are_reported_and_loop_mends_them():
    plain = mlp(6, 4)
    x = inputs(3, 6)

    def coupled(v):
        return plain(v) + v.mean(0).sum() * torch.arange(4)

    with pytest.raises(RuntimeError, match="jacobian='loop'"):
        robustness(coupled, x, 0.1, check="raise")
    assert robustness(coupled, x, 0.1, check="raise", jacobian="loop").prob.shape == (3,)


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_models_without_forward_mode():
    plain = mlp(6, 4)
    x = inputs(2, 6)

    def model(v):
        return plain(NoForwardMode.apply(v))

    with pytest.warns(RuntimeWarning, match="could not be checked"):
        result = robustness(model, x, 0.5)
    same(result, robustness(plain, x, 0.5), 1e-12)
    same(result, robustness(model, x, 0.5, jvp_mode="double_backward", check="raise"), 1e-12)
    sketched = robustness(model, x, 0.5, jvp_mode="double_backward", screen="sketch")
    assert ((sketched.prob - result.prob).abs() <= sketched.error + result.error).all()


# --- edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3)])
def test_any_input_shape_one_input_and_non_contiguous(method, shape):
    model = mlp(6, 4)
    x = inputs(3, *shape)
    options = {"n_samples": 20} if method in ("mc", "mmse", "mmse_mvs", "logit_moments") else {}
    call = functools.partial(robustness, model, sigma=0.4, method=method, **options)
    whole = call(x)
    assert whole.prob.shape == (3,) and whole.prob.dtype == torch.float64
    assert isinstance(whole, RobustnessResult) and whole.method == method
    for field in ("status", "target", "runner_up", "n_screened"):
        assert getattr(whole, field).dtype == torch.int64
        assert getattr(whole, field).shape == (3,)
    torch.testing.assert_close(whole.prob + whole.complement, torch.ones(3).double())
    far = torch.maximum(whole.upper - whole.prob, whole.prob - whole.lower)
    if method != "softmax":
        assert (far <= whole.error + 1e-12).all() and (whole.lower <= whole.upper).all()
    same(whole, call(x.transpose(0, -1).contiguous().transpose(0, -1)), 1e-9)
    single = call(x[1:2], first_index=1)
    torch.testing.assert_close(single.prob, whole.prob[1:2], rtol=0, atol=1e-9)
    empty = call(x[:0])
    assert empty.prob.shape == (0,) and empty.cost.vjp.shape == (0,)
    assert robustness(model, x[:0], [0.1, 0.2], method=method, **options).prob.shape == (2, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(method, dtype):
    exact = mlp(6, 4, dtype=torch.float32)
    half = mlp(6, 4, dtype=torch.float32).to(dtype)
    x = inputs(5, 6, dtype=torch.float32)
    options = {"n_samples": 50} if method in ("mc", "mmse", "mmse_mvs", "logit_moments") else {}
    reference = robustness(exact, x, 0.5, method=method, **options)
    result = robustness(half, x.to(dtype), 0.5, method=method, target=reference.target, **options)
    assert result.prob.dtype == torch.float64 and result.prob.isfinite().all()
    # bfloat16 keeps 8 bits: logits of size 1 are off by about 0.01
    torch.testing.assert_close(result.prob, reference.prob, rtol=0, atol=0.1)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "softmax"])
def test_sigma_zero_and_ties(method):
    x = torch.tensor([[1.0, 0, 0], [0, 1, 0], [2, 2, 0]], dtype=torch.float64)
    result = robustness(lambda v: 3 * v, x, 0.0, method=method, target=0)
    assert torch.equal(result.prob, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


def test_a_last_softmax_is_said():
    model = nn.Sequential(mlp(6, 4), nn.Softmax(1)).eval()
    with pytest.warns(RuntimeWarning, match="^robustness: the model's outputs look like probab"):
        robustness(model, inputs(5, 6), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robustness(model, inputs(5, 6), 0.1, method="mc", n_samples=10)
        robustness(model[0], inputs(5, 6), 0.1)


@pytest.mark.parametrize("method", LINEAR_METHODS + ("logit_moments",))
def test_zero_gradients(method):
    """Dead ReLUs: the margins cannot change, so the clean answer stands."""
    bias = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)

    def dead(v):
        return torch.relu(v - 100) @ torch.ones(4, 3, dtype=torch.float64) + bias

    x = inputs(2, 4)
    assert torch.equal(robustness(dead, x, 0.5, method=method).prob, torch.ones(2).double())
    lost = robustness(dead, x, 0.5, method=method, target=0)
    assert torch.equal(lost.prob, torch.zeros(2).double())


@pytest.mark.parametrize("method", METHODS)
def test_nan_is_confined_to_its_row(method):
    model, x = mlp(6, 4), inputs(3, 6)
    options = {"n_samples": 20} if method in ("mc", "mmse", "mmse_mvs", "logit_moments") else {}
    clean = robustness(model, x, 0.3, method=method, **options)
    broken = x.clone()
    broken[1, 2] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the check of a NaN Jacobian
        result = robustness(model, broken, 0.3, method=method, **options)
    assert result.prob[1].isnan() and result.status[1] == Status.NAN_INPUT
    torch.testing.assert_close(result.prob[[0, 2]], clean.prob[[0, 2]], rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["taylor", "mmse", "logit_moments", "mc"])
def test_a_class_at_minus_infinity_never_wins(method):
    plain = mlp(6, 4)
    x = inputs(3, 6)
    masked = torch.tensor([0.0, 0, 0, -math.inf], dtype=torch.float64)
    options = {} if method == "taylor" else {"n_samples": 100}
    result = robustness(lambda v: plain(v) + masked, x, 0.5, method=method, **options)
    without = robustness(lambda v: plain(v)[:, :3], x, 0.5, method=method, **options)
    assert ((result.prob - without.prob).abs() <= result.error + without.error).all()


def test_models_that_return_objects_and_callables():
    plain, x = mlp(6, 4), inputs(3, 6)
    expected = robustness(plain, x, 0.3)
    for model in (
        lambda v: types.SimpleNamespace(logits=plain(v)),
        functools.partial(plain),
        plain.forward,
    ):
        same(expected, robustness(model, x, 0.3), 0.0)


def test_leaves_no_trace():
    model, x = mlp(6, 4), inputs(3, 6).requires_grad_()
    before = torch.get_rng_state()
    for method in METHODS:
        result = robustness(model, x, 0.3, method=method)
        assert not result.prob.requires_grad
    assert torch.equal(before, torch.get_rng_state())
    assert x.grad is None and all(p.grad is None for p in model.parameters())
    expected = robustness(model, x, 0.3)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            same(expected, robustness(model, x, 0.3), 0.0)


def test_cost_counts_passes():
    calls = []
    plain, x = mlp(6, 4), inputs(3, 6)

    def counted(v):
        calls.append(len(v))
        return plain(v)

    result = robustness(counted, x, [0.1, 0.2], method="mc", n_samples=70)
    # one for the target, 70 for each sigma; memory was measured by another one
    assert result.cost.forward.tolist() == [141, 141, 141]
    assert sum(calls) == 1 + int(result.cost.forward.sum())
    taylor = robustness(plain, x, 0.1, check="off")
    assert taylor.cost.vjp.tolist() == [4] * 3 and taylor.cost.jvp.tolist() == [0] * 3
    assert robustness(plain, x, 0.1).cost.jvp.tolist() == [1] * 3
    mmse = robustness(plain, x, [0.1, 0.2], method="mmse", n_samples=6)
    assert mmse.cost.vjp.tolist() == [2 * 6 * 4] * 3
    assert mmse.cost.seconds_network > 0 and mmse.cost.seconds_cdf > 0


# --- bad calls --------------------------------------------------------------------------------

MODEL, X = mlp(6, 4), inputs(3, 6)


def dropout_model():
    return nn.Sequential(nn.Linear(6, 4), nn.Dropout()).double().eval()


def part_in_train_mode():
    model = dropout_model()
    model[1].train()
    return model


BAD_CALLS = [
    ({"model": 3}, TypeError, "model must be callable, got int"),
    ({"model": dropout_model().train()}, ValueError, "model must be in eval mode, got the model"),
    ({"model": part_in_train_mode()}, ValueError, "got its part '1' in train mode"),
    (
        {"model": functools.partial(part_in_train_mode().forward)},
        ValueError,
        "got its part '1' in train mode",
    ),
    ({"model": lambda v: [v]}, TypeError, r"return logits \[B, C\] with C >= 2, got list"),
    ({"model": lambda v: v[:, :1]}, ValueError, r"with C >= 2, got \[1, 1\] for 1 inputs"),
    ({"model": lambda v: v.long()}, TypeError, "with C >= 2, got dtype int64"),
    ({"model": lambda v: v[None]}, ValueError, r"with C >= 2, got \[1, 1, 6\]"),
    (
        {"model": lambda v: v.detach() @ torch.ones(6, 4).double()},
        ValueError,
        "model must be differentiable in its input",
    ),
    ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    ({"x": torch.ones(3, 6, dtype=torch.uint8)}, TypeError, "x must be floating point, got uint8"),
    ({"x": torch.ones(6)}, ValueError, r"x must have shape \[B, \*shape\], got \[6\]"),
    ({"sigma": -0.1}, ValueError, "sigma must be finite and not negative, got -0.1"),
    ({"sigma": math.nan}, ValueError, "sigma must be finite and not negative, got nan"),
    ({"sigma": []}, ValueError, "sigma must hold at least one number, got an empty list"),
    ({"sigma": ["a"]}, TypeError, "sigma must hold numbers, got str"),
    (
        {"sigma": "0.1"},
        TypeError,
        "sigma must be a number, a list of numbers or a tensor, got str",
    ),
    (
        {"sigma": True},
        TypeError,
        "sigma must be a number, a list of numbers or a tensor, got bool",
    ),
    (
        {"sigma": torch.ones(5)},
        ValueError,
        r"one input's shape \[6\], got a tensor of shape \[5\]",
    ),
    (
        {"sigma": torch.tensor([1, 1, -2.5, 1, -3, 1])},
        ValueError,
        "sigma must be finite and not negative, got -2.5 among its 6 numbers",
    ),
    ({"sigma": np.ones((3, 2))}, ValueError, r"sigma must be a 1-D array .* got .* \[3, 2\]"),
    ({"sigma": np.array(["a"])}, TypeError, "sigma must hold numbers, got str"),
    ({"sigma": np.array([0.1, -0.2])}, ValueError, "sigma must be finite .* got -0.2"),
    ({"sigma": np.bool_(True)}, TypeError, "sigma must be a number, .* got bool"),
    ({"sigma": torch.tensor(1j)}, TypeError, "sigma must be a number, .* got Tensor"),
    (
        {"x": X.float()},
        ValueError,
        r"x must have the dtype of the model's parameters \(torch.float64\), got torch.float32",
    ),
    (
        {"model": mlp(6, 4, dtype=torch.float16), "x": X.float()},
        ValueError,
        r"x must have the dtype of the model's parameters \(torch.float16\), got torch.float32",
    ),
    (
        {"model": mlp(6, 4, dtype=torch.float64).to("meta")},
        ValueError,
        r"x must have the device of the model's parameters \(meta\), got cpu",
    ),
    (
        {"model": lambda v: v.to("meta")},
        ValueError,
        r"model must return logits on the device of x \(cpu\), got meta",
    ),
    (
        {"x": inputs(3, 5)[:, :0]},
        ValueError,
        r"x must have at least one number for each input, got shape \[3, 0\]",
    ),
    (
        {"x": inputs(3, 5)},
        ValueError,
        r"x must be what the model takes, got shape \[3, 5\] torch.float64: .*mat1 and mat2 shapes",
    ),
    (
        {"model": lambda v: MODEL(v.undefined)},
        ValueError,
        r"x must be what the model takes, got shape \[3, 6\] torch.float64: .*'undefined'",
    ),
    ({"x": X.to_sparse()}, TypeError, "x must be a dense tensor, got torch.sparse_coo; pass x.to_"),
    ({"x": X.to("meta")}, ValueError, "x must hold numbers, got a tensor on device meta"),
    (
        {"model": lambda v: MODEL(NoForwardMode.apply(v)), "screen": "sketch", "check": "off"},
        ValueError,
        "model must have forward-mode derivatives for screen='sketch'.*='double_backward'",
    ),
    ({"method": "exact"}, ValueError, "method must be one of mc, taylor, .*, got 'exact'"),
    (
        {"target": "label"},
        ValueError,
        "target must be None, 'prediction', an int or B labels .* got 'label'",
    ),
    ({"target": [0, 1]}, ValueError, r"target must have shape \[3\], got \[2\]"),
    ({"target": [0, 1, 0.5]}, TypeError, "an int or B labels .* got a list that holds float"),
    ({"target": np.zeros(3)}, TypeError, "an int or B labels .* got an array of float64"),
    ({"target": np.zeros((3, 1), int)}, ValueError, r"target must have shape \[3\], got \[3, 1\]"),
    ({"target": 4}, ValueError, r"target must lie in \[0, 4\), got 4"),
    ({"target": -1}, ValueError, r"target must lie in \[0, 4\), got -1"),
    (
        {"target": 1.0},
        TypeError,
        "target must be None, 'prediction', an int or B labels .* got float",
    ),
    ({"target": torch.zeros(2).long()}, ValueError, r"target must have shape \[3\], got \[2\]"),
    ({"target": torch.zeros(3)}, TypeError, "target must be a tensor of integers"),
    ({"n_samples": 10}, ValueError, "n_samples must be left out for method 'taylor', got 10"),
    ({"method": "mc", "screen": "none"}, ValueError, "screen must be left out for method 'mc'"),
    ({"method": "mc", "abs_tol": 0.1}, ValueError, "abs_tol must be left out for method 'mc'"),
    ({"slope": 2.0}, ValueError, "slope must be left out for method 'taylor', got 2.0"),
    ({"method": "mc", "n_samples": 0}, ValueError, "n_samples must be at least 1, got 0"),
    ({"method": "mc", "n_samples": 1e4}, TypeError, "n_samples must be an int, got float"),
    ({"method": "mmse", "n_samples": 9}, ValueError, "even for sampling='antithetic', got 9"),
    (
        {"method": "mmse", "sampling": "sobol"},
        ValueError,
        "sampling must be one of antithetic, iid",
    ),
    (
        {"method": "taylor_mvs", "slope": "best"},
        TypeError,
        "slope must be 'calibrated' or a positive",
    ),
    (
        {"method": "taylor_mvs", "slope": 0.0},
        ValueError,
        "slope must be 'calibrated' or a positive",
    ),
    ({"method": "softmax", "temperature": 0.0}, ValueError, "temperature must be positive"),
    ({"method": "softmax", "temperature": [1, 2]}, ValueError, r"one per sigma, got shape \[2\]"),
    ({"method": "mc", "width": -1.0}, ValueError, "width must be a positive number, got -1.0"),
    ({"abs_tol": 0.0}, ValueError, "abs_tol must be a positive number, got 0.0"),
    ({"abs_tol": -1e-3}, ValueError, "abs_tol must be a positive number, got -0.001"),
    ({"screen": "all"}, ValueError, "screen must be one of auto, exact, sketch, none, got 'all'"),
    ({"method": "mc", "head": "off"}, ValueError, "head must be left out for method 'mc'"),
    ({"head": "3.fc"}, ValueError, "or its name, got '3.fc', which the model does not have"),
    ({"head": ""}, ValueError, "head must be 'off', an nn.Linear or .*, got a Sequential"),
    ({"head": 3}, TypeError, "head must be 'off', an nn.Linear or .*, got int"),
    ({"head": "1"}, ValueError, "head must have 4 outputs, the number of logits, got 32"),
    (
        {"head": nn.Linear(32, 4).double()},
        ValueError,
        "must give the logits, got 0 calls of 'Linear'",
    ),
    (
        {"model": lambda v: MODEL(v), "head": "3"},
        ValueError,
        "head must be a module where the model is not one, got '3'",
    ),
    (
        {"model": lambda v: MODEL(v) / 2, "head": MODEL[3]},
        ValueError,
        "head must give the logits, got a difference of .* between logit 0 and the output of",
    ),
    ({"jacobian": "jacrev"}, ValueError, "jacobian must be one of batch, loop, vmap"),
    ({"jvp_mode": "reverse"}, ValueError, "jvp_mode must be one of forward, double_backward"),
    ({"check": True}, ValueError, "check must be one of off, warn, raise, got True"),
    ({"seed": 0.5}, TypeError, "seed must be an int, got float"),
    ({"first_index": -1}, ValueError, "first_index must be at least 0, got -1"),
    ({"max_bytes": 0}, ValueError, "max_bytes must be at least 1, got 0"),
    ({"bounds": (0, 1)}, ValueError, r"x must lie within bounds \(0, 1\), got values from -"),
    ({"bounds": (1, 0)}, ValueError, "bounds must be a pair with low < high"),
    ({"bounds": 3}, ValueError, r"bounds must be a pair \(low, high\), got 3"),
    ({"preprocessing": [0, 1]}, TypeError, "preprocessing must be a dict, got list"),
    ({"preprocessing": {"std": 0.0}}, ValueError, "preprocessing std must be positive and finite"),
    ({"preprocessing": {"men": 0.0}}, ValueError, "mean, std and axis only, got 'men'"),
    ({"preprocessing": {"mean": [0, 1]}}, ValueError, "must have an axis when mean is a sequence"),
    ({"bounds": "01"}, ValueError, r"bounds must be a pair \(low, high\), got '01'"),
    ({"bounds": ("0", "1")}, ValueError, r"bounds must be a pair \(low, high\)"),
    (
        {"preprocessing": {"mean": [0, 1], "axis": -1}},
        ValueError,
        r"preprocessing mean must hold 6 numbers, the size of axis -1 of x \[3, 6\], got 2",
    ),
    (
        {"preprocessing": {"std": [1.0] * 7, "axis": -1}},
        ValueError,
        r"preprocessing std must hold 6 numbers, the size of axis -1 of x \[3, 6\], got 7",
    ),
    (
        {"preprocessing": {"mean": [0, 1, 2], "axis": -2}},
        ValueError,
        "preprocessing axis must be one of an input's 1, -1 to -1, got -2",
    ),
    ({"preprocessing": {"axis": 1}}, ValueError, "axis must be a negative int, got 1"),
    ({"noise_factor": torch.ones(5, 2)}, ValueError, r"noise_factor must have shape \[6, r\]"),
    ({"noise_factor": torch.eye(6) / 0}, ValueError, "noise_factor must be finite, got inf"),
    (
        {"noise_factor": torch.eye(6).int()},
        TypeError,
        "noise_factor must be floating .* got torch.",
    ),
    ({"noise_factor": 2}, TypeError, "noise_factor must be a tensor or a callable, got int"),
    ({"noise_factor": lambda e: e**2}, ValueError, "noise_factor must be linear"),
    ({"noise_factor": lambda e: e[:, :2]}, ValueError, "noise_factor must map"),
    (
        {"noise_factor": torch.eye(6), "sigma": torch.ones(6)},
        ValueError,
        "sigma must be a number or a list of numbers beside noise_factor",
    ),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD_CALLS)
def test_bad_calls(change, kind, message):
    call = {"model": MODEL, "x": X, "sigma": 0.1, **change}
    with pytest.raises(kind, match=message) as caught:
        robustness(call.pop("model"), call.pop("x"), call.pop("sigma"), **call)
    assert str(caught.value).startswith("robustness: ")


def test_bad_calls_of_jacobian():
    bad = [
        ({"max_bytes": 100}, "max_bytes must hold the result, 576 bytes"),
        ({"classes": torch.zeros(2, 1).long()}, r"classes must be int64 \[3, k\], got \[2, 1\]"),
        ({"classes": torch.full((3, 1), 4)}, r"classes must lie in \[0, 4\)"),
        ({"method": "fast"}, "method must be one of batch, loop, vmap"),
    ]
    for change, message in bad:
        with pytest.raises(ValueError, match=f"jacobian: {message}"):
            jacobian(MODEL, X, **change)
    inside = robustness(MODEL, torch.rand(3, 6).double(), 0.1, bounds=(0, 1))
    assert inside.prob.shape == (3,), "inputs within bounds pass"


@pytest.mark.parametrize("method", ["mc", "logit_moments", "softmax"])
def test_methods_without_a_gradient_ask_for_none(method):
    """Of a model that NumPy computes, or that refuses inputs with a gradient."""
    options = {} if method == "softmax" else {"n_samples": 200}
    weight = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(6, 3).sin()

    def plain(x):
        assert not x.requires_grad and not torch.is_grad_enabled()
        return x @ weight

    wanted = robustness(lambda x: x @ weight, X, 0.3, method=method, **options)
    for model in (lambda x: torch.from_numpy(x.numpy() @ weight.numpy()), plain):
        got = robustness(model, X, 0.3, method=method, **options)
        torch.testing.assert_close(got.prob, wanted.prob, atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="x must be what the model takes, .*requires grad"):
        robustness(lambda x: torch.from_numpy(x.numpy() @ weight.numpy()), X, 0.3)


def test_bytes_of_a_forward_pass():
    """The most that is alive at once; weights, views and what is there before are none of it."""
    wide = torch.nn.Linear(6, 1000, bias=False).double().eval()
    narrow = torch.nn.Linear(1000, 4, bias=False).double().eval()
    x = X[:1].double()

    def deep(v):
        for _ in range(5):  # one wide activation, its tanh and the next input, never more
            v = wide(v).tanh()[:, :6] @ wide.weight[:6].T
        return narrow(wide(v))

    network = Network("test", deep, None, x)
    used = network.pass_bytes(x)
    assert 2 * 8000 <= used <= 2 * 8000 + 500
    assert network.graph_bytes(x) > 5 * 8000


def test_sparse_weights():
    weight = torch.eye(6, 4, dtype=torch.float64).to_sparse()
    dense = robustness(lambda x: x @ weight.to_dense(), X, 0.3)
    sparse = robustness(lambda x: torch.sparse.mm(weight.T, x.T).T, X, 0.3, check="off")
    torch.testing.assert_close(sparse.prob, dense.prob, atol=2e-3, rtol=0)
