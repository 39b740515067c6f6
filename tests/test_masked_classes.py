"""Classes at -inf, always or in some copies only, and gradients that are NaN."""

import gc
import math
import weakref

import pytest
import torch

from mvnrob import Status, argmax_probabilities, robustness

X = torch.tensor([[1.0, 0.5, 0.0, 0.0]])


def masked(*classes):
    return lambda x: x.masked_fill(torch.tensor([i in classes for i in range(4)]), -math.inf)


@pytest.mark.parametrize(
    "method", ["taylor", "mmse", "taylor_mvs", "logit_moments", "mc", "softmax"]
)
def test_a_target_that_is_masked_beside_another_has_probability_zero(method):
    options = {} if method in ("taylor", "taylor_mvs", "softmax") else {"n_samples": 64}
    r = robustness(masked(2, 3), X, 0.3, target=2, method=method, **options)
    assert float(r.prob) == 0.0


def test_moments_of_a_rival_that_is_masked_in_some_copies_are_unknown():
    model = lambda x: torch.where(x > 0, x, -math.inf)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    r = robustness(model, x, 1.0, method="logit_moments", n_samples=100)
    assert r.prob.isnan().all() and int(r.status) == Status.NAN_INPUT
    # Masked in all copies it never wins.
    r = robustness(masked(3), X, 0.3, method="logit_moments", n_samples=1000)
    assert 0.6 < float(r.prob) < 0.95


def test_the_first_of_classes_that_are_all_masked_wins():
    shares = argmax_probabilities(masked(0, 1, 2, 3), X, 0.3)
    assert shares.prob.flatten().tolist() == [1.0, 0.0, 0.0, 0.0]
    shares = argmax_probabilities(masked(1, 3), X, 0.3)
    assert float(shares.prob.sum()) == pytest.approx(1.0, abs=1e-3)
    assert shares.prob.flatten()[[1, 3]].tolist() == [0.0, 0.0]


def test_a_gradient_that_is_nan_has_no_shares():
    x = torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    shares = argmax_probabilities(lambda x: x.abs().sqrt(), x, 0.3)
    first, second = shares.prob.reshape(2, 3)
    assert first.isnan().all() and shares.rest.flatten()[0].isnan()
    assert int(shares.status.flatten()[0]) == Status.NAN_INPUT
    assert float(second.sum()) == pytest.approx(1.0, abs=1e-3)


def test_measuring_a_graph_frees_it():
    """A ReLU saves its output, whose node must not hold itself."""

    class Marker:
        pass

    kept = []

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.marker = Marker()
            kept.append(weakref.ref(ctx.marker))
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return grad

    weight = torch.ones(4, 3)
    for _ in range(3):
        robustness(lambda x: torch.relu(Marked.apply(x) @ weight), X, 0.1, method="softmax")
    gc.collect()
    assert kept and all(ref() is None for ref in kept)
