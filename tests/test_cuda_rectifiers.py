"""ReLU and its like in forward mode on a GPU: torch's derivatives bit for bit."""

import pytest
import test_rectifiers
import torch
from test_cuda import cuda  # noqa: F401  (a fixture)

from mvnrob import rectifiers
from mvnrob.forward_mode import LinearLayers


@pytest.mark.parametrize("dtype", test_rectifiers.DTYPES)
@pytest.mark.parametrize("name", [*test_rectifiers.OPS, *test_rectifiers.IN_PLACE])
def test_derivatives(cuda, monkeypatch, name, dtype):  # noqa: F811
    monkeypatch.setattr(rectifiers, "_FEW", 0)
    monkeypatch.setattr(rectifiers, "_FEW_TANGENTS", {"cuda": 0})
    taken = test_rectifiers.spied(monkeypatch)
    function = (test_rectifiers.OPS | test_rectifiers.IN_PLACE)[name]
    for layout in test_rectifiers.LAYOUTS:
        given = test_rectifiers.problem((2, 8, 4, 6), dtype, layout)
        x, along = (part.to(cuda) for part in given)
        expected = test_rectifiers.products(function, x, along)
        with LinearLayers(any_layout=True):
            test_rectifiers.assert_same(test_rectifiers.products(function, x, along), expected)
    assert taken and all(taken)


@pytest.mark.parametrize("in_place", [False, True])
def test_few_tangents_are_left_to_torch(cuda, monkeypatch, in_place):  # noqa: F811
    taken = test_rectifiers.spied(monkeypatch)
    function = torch.relu_ if in_place else torch.relu
    for directions, expected in ((4, False), (128, True)):
        x = torch.zeros(2**16, device=cuda)
        along = torch.ones(directions, 2**16, device=cuda)
        push = lambda e, x=x: torch.func.jvp(lambda x: function(x * 1), (x,), (e,))[1]
        taken.clear()
        with torch.no_grad(), LinearLayers(any_layout=True):
            assert not torch.func.vmap(push)(along).any()
        assert taken == [expected]
