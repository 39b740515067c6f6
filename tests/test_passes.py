"""Few, full passes: copies of few inputs serve several columns, and more directions pass together."""

import itertools
import types

import pytest
import torch
from test_robustness import inputs, mlp, same
from test_tf32 import ByBatch, Kinked, centred, points, scaled_by_mean
from torch import nn

from mvnrob import chunks, jacobian, low_rank, robustness, sketch
from mvnrob.jacobian import LogitMap
from mvnrob.meter import Meter
from mvnrob.network import Network, full_float32
from mvnrob.passes import full_pass, padded, pass_size, unpadded


class Counted(nn.Module):
    """A network that notes the sizes of its passes with a graph."""

    def __init__(self, net):
        super().__init__()
        self.net, self.graphs = net, []
        self.eval()

    def forward(self, x):
        if x.requires_grad:
            self.graphs.append(len(x))
        return self.net(x)


def linear_map(model, x, **options):
    numbers = torch.arange(len(x))
    network, meter = Network("test", model, None, x), Meter(len(x), x.device)
    options = {"max_copies": 100, "max_tangents": 100, "check": "raise", **options}
    options = {"method": "batch", "jvp_mode": "forward"} | options
    return LogitMap(network, meter, x, numbers, **options), meter


def sized(rows, fill, most):
    return min(pass_size(rows, fill), max(rows, most))


@pytest.mark.parametrize("noisy", [False, True])
def test_rows_of_filled_passes(noisy):
    """The same rows from fewer passes, as full as they may be; copies are forward passes."""
    model, x = Counted(mlp(8, 7)), inputs(3, 8)
    classes = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(1))
    options = {}
    if noisy:
        shifts = inputs(3, 6, 8, seed=5)
        options["offsets"] = lambda first, count: shifts[:, first : first + count]
        options["groups"] = [(0, 2), (2, 4)]
    plain, meter = linear_map(model, x, check="off", **options)
    expected = plain.rows(classes, spare=1)
    assert model.graphs == ([6, 12] if noisy else [3])
    assert meter.cost().vjp.tolist() == [30 if noisy else 5] * 3
    # (fill, most copies): copies of each input for five columns, without noise and in its two groups
    for fill, most, copies in (
        (2, 100, (1, (1, 1))),
        (6, 100, (2, (1, 1))),
        (14, 100, (3, (2, 1))),
        (15, 100, (5, (2, 1))),
        (100, 9, (3, (1, 1))),
        (100, 24, (5, (3, 2))),
        (100, 100, (5, (5, 5))),
    ):
        if noisy and most < 12:
            continue  # the groups are cut
        model.graphs.clear()
        filled, meter = linear_map(
            model, x, check="off", fill=fill, **options | {"max_copies": most}
        )
        rows = filled.rows(classes, spare=1)
        torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-14)
        if noisy:
            one, two = copies[1]
            assert model.graphs == [sized(6 * one, fill, most), sized(12 * two, fill, most)]
            assert meter.cost().forward.tolist() == [2 * one + 4 * two] * 3
        else:
            assert model.graphs == [sized(3 * copies[0], fill, most)]
            assert meter.cost().forward.tolist() == [copies[0]] * 3
        assert meter.cost().vjp.tolist() == [30 if noisy else 5] * 3


def test_copies_of_what_is_cut_from_a_map():
    model, x = Counted(mlp(8, 7)), inputs(4, 8)
    classes = torch.arange(6).expand(4, -1)
    whole, _ = linear_map(model, x, fill=12)
    expected = whole.rows(classes)
    model.graphs.clear()
    scale = torch.tensor([2.0, 1.0, 0.5, 4.0], dtype=torch.float64)
    some = torch.tensor([3, 1])
    part = whole.scaled(scale).subset(some)
    torch.testing.assert_close(
        part.rows(classes[:2]), expected[some] * scale[some, None, None, None]
    )
    assert model.graphs == [12]
    for method in ("loop", "vmap"):  # each in its own way
        model.graphs.clear()
        other, _ = linear_map(model, x, fill=12, method=method)
        torch.testing.assert_close(other.rows(classes), expected)
        assert model.graphs == [4]


@pytest.mark.parametrize("method", ["taylor", "mmse", "taylor_mvs"])
def test_answers_of_filled_passes(monkeypatch, method):
    model, x = Counted(mlp(8, 12)), inputs(5, 8)
    plain = robustness(model, x, [0.1, 0.5], method=method, check="raise")
    backward, model.graphs = len(model.graphs), []
    monkeypatch.setattr(chunks, "full_pass", lambda device, graph: 40)
    filled = robustness(model, x, [0.1, 0.5], method=method, check="raise")
    same(filled, plain, 1e-6)
    assert torch.equal(filled.cost.vjp, plain.cost.vjp)
    assert (filled.cost.forward >= plain.cost.forward).all()
    # twelve columns by six copies of five inputs, or by four of two samples of each
    assert max(model.graphs) == (32 if method != "mmse" else 40)
    assert len(model.graphs) <= backward
    # one at a time where rows are not independent
    model.graphs.clear()
    robustness(model, x, 0.5, method=method, jacobian="loop")
    assert max(model.graphs) <= (10 if method == "mmse" else 1)


def test_copies_stay_within_the_budget():
    """Beside what the inputs of a chunk take already."""
    x, graph = torch.zeros(8, 100), 10**6
    noise = types.SimpleNamespace(sigmas=[0.1], dim=100)
    for max_bytes, wanted in ((10**9, 30), (3 * 10**7, 14), (10**6, 1)):
        settings = types.SimpleNamespace(
            max_bytes=max_bytes, screen="auto", jacobian="batch", n_samples=0
        )  # fmt: skip
        sizes = [
            chunks._chunk_sizes("op", "taylor", 50, x, noise, settings, graph, fill)
            for fill in (1, 30)
        ]
        assert sizes[0][0] == sizes[1][0] and sizes[0][2] == sizes[1][2]
        assert sizes[0][1] <= sizes[1][1] == wanted


def test_full_passes_are_a_gpu_s():
    assert full_pass(torch.device("cpu"), 1) == 1
    assert full_pass(torch.device("cuda"), 2**30) == 3
    assert full_pass(torch.device("cuda"), 2**40) == 1


def test_pass_sizes():
    """At most doubled while the pass is not full, a quarter more beyond; few of them."""
    sizes = [pass_size(rows, 36) for rows in range(1, 1000)]
    assert sorted({size for size in sizes if size <= 36}) == [1, 2, 4, 8, 16, 32]
    assert len(set(sizes)) == 6 + 20
    for rows, size in enumerate(sizes, 1):
        assert rows <= size <= (36 if rows <= 32 else 1.25 * rows)
    # with eleven tangents each three points are as many as fill a pass
    assert [pass_size(rows, 36, 11) for rows in (1, 2, 3, 5, 9, 10)] == [1, 2, 3, 5, 10, 10]
    assert [pass_size(rows, 1) for rows in range(1, 100)] == list(range(1, 100))


def test_padding_has_no_derivatives():
    """Nor do those of the first row, which it repeats, suffer from it."""
    x = torch.zeros(1, 3, requires_grad=True)
    out = padded(x, 4).sqrt()  # of infinite slope
    (gradient,) = torch.autograd.grad(unpadded(out, 1).sum(), x)
    assert out.shape == (4, 3) and torch.equal(gradient, torch.full((1, 3), torch.inf))
    along = torch.ones(5, 3, 2)
    push = lambda e: torch.func.jvp(lambda x: padded(x, 5), (torch.zeros(3, 2),), (e,))[1]
    tangents = torch.func.vmap(push)(along)
    # two rows, the copies, and the third
    assert torch.equal(tangents[0, :, 0], torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]))
    for rows, size in ((1, 1), (1, 8), (5, 8), (8, 8)):
        x = torch.arange(rows)[:, None]
        assert len(padded(x, size)) == size and torch.equal(unpadded(padded(x, size), rows), x)


@pytest.mark.parametrize("row", [0, -1])
@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_rows_that_depend_on_one_of_the_batch(monkeypatch, count, row):
    """Are found in padded passes as in others."""
    net = mlp(8, 7)
    model, x = (lambda x: net(x) - 0.5 * net(x)[row:][:1]), inputs(count, 8)
    monkeypatch.setattr(jacobian, "full_pass", lambda device, graph: 8)
    monkeypatch.setattr(chunks, "full_pass", lambda device, graph: 8)
    for call in (jacobian.jacobian, lambda *a, **k: robustness(*a, 0.5, **k)):
        with pytest.raises(RuntimeError, match="must agree with a forward-mode product"):
            call(model, x, check="raise")


@pytest.mark.parametrize("by_vmap", [True, False])
@pytest.mark.parametrize("noisy", [False, True])
def test_products_of_sized_passes(monkeypatch, noisy, by_vmap):
    """Those of plain passes; of tangents in fewer sizes, which the budget bounds."""
    net, x, tangents, together = mlp(8, 7), inputs(9, 8), [], [1]

    def model(x):
        tangents.append(x.shape[0] * together[-1])
        return net(x)

    def spy(function, x, along, plain=jacobian._batched_tangents):
        together.append(along.shape[1])
        out = plain(function, x, along)
        together.pop()
        return out

    monkeypatch.setattr(jacobian, "_batched_tangents", spy)
    shifts, many = inputs(9, 2, 8, seed=5), inputs(9, 37, 8, seed=3)
    for most in (1000, 45):
        sizes = {1: set(), 8: set()}
        for count, m in itertools.product(range(1, 10), (1, 3, 5, 9, 13, 37)):
            options = {}
            if noisy:
                options["offsets"] = lambda first, some, n=count: shifts[:n, first : first + some]
                options["groups"] = [(0, 1), (1, 1)]
            found = {}
            for fill, seen in sizes.items():
                options |= {"check": "off", "fill": fill, "max_tangents": most}
                one, _ = linear_map(model, x[:count], **options)
                one.network.batch_tangents = by_vmap
                tangents.clear()
                found[fill] = one.group_jvp(many[:count, :m])
                seen.update(tangents)
            torch.testing.assert_close(found[8], found[1], rtol=1e-12, atol=1e-14)
        assert max(sizes[8]) <= most
        assert len(sizes[8]) < len(sizes[1])


def test_jacobian_of_filled_passes(monkeypatch):
    model, x = Counted(mlp(8, 12)), inputs(5, 8)
    expected = jacobian.jacobian(model, x)
    monkeypatch.setattr(jacobian, "full_pass", lambda device, graph: 30)
    model.graphs.clear()
    torch.testing.assert_close(jacobian.jacobian(model, x, check="raise"), expected)
    assert model.graphs == [1, 30]


def test_check_of_filled_passes():
    """Products are made anew in passes of as many inputs as the rows', and rows that are not independent
    are found, of a single input's copies too."""
    x = points()
    classes = (torch.tensor([[3, 0, 5]]) + torch.arange(4)[:, None]) % 8
    with full_float32():
        whole, meter = linear_map(Kinked(middle=ByBatch()), x, fill=12)
        whole.rows(classes)
        # of four inputs, then of three copies of each
        assert meter.cost().jvp.tolist() == [4] * 4
        for broken in ({"wrong": True}, {"last": centred}, {"last": scaled_by_mean}):
            for count in (1, 4):
                whole, _ = linear_map(Kinked(middle=ByBatch(), **broken), x[:count], fill=12)
                with pytest.raises(RuntimeError, match="must agree with a forward-mode product"):
                    whole.rows(classes[:count])


class MinusMean(torch.nn.Module):
    """Whose rows are not independent."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, x):
        out = self.net(x)
        return out - 0.5 * out.mean(0)


@pytest.mark.parametrize("most", [100, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_check_of_one_noisy_input_where_tf32_is_on(monkeypatch, count, most):
    """By copies of its samples, as its rows are computed."""
    monkeypatch.setattr(Network, "rounds_to_tf32", lambda self: True)
    x, shifts = inputs(1, 8), inputs(1, 4, 8, seed=5)
    options = {
        "offsets": lambda first, count: shifts[:, first : first + count],
        "groups": [(0, count), (count, count)],
        "max_copies": most,
    }
    broken, _ = linear_map(MinusMean(mlp(8, 7)), x, fill=36, **options)
    with pytest.raises(RuntimeError, match="must agree with a forward-mode product"):
        broken.rows(torch.arange(5)[None])
    sound, _ = linear_map(mlp(8, 7).eval(), x, fill=36, **options)
    sound.rows(torch.arange(5)[None])


@pytest.mark.parametrize("method", ["batch", "loop", "vmap"])
def test_no_copies_on_a_cpu(method):
    """Nor in a last chunk of fewer inputs than the others."""
    model, x = Counted(mlp(8, 12)), inputs(9, 8)
    graph = Network("test", model, None, x).graph_bytes(x[:1])
    model.graphs.clear()
    classes = torch.arange(12).expand(9, -1)
    jacobian.jacobian(
        model, x, classes, max_bytes=9 * 12 * 8 * 8 + 16 * graph, method=method, check="off"
    )
    assert max(model.graphs) == (1 if method == "loop" else 8) and model.graphs[-1] == 1


def test_directions_that_pass_together():
    """As many as an eighth of the budget holds, by eights; at least eight."""
    for count, max_bytes, wanted in ((4, 2**20, 8), (4, 2**24, 160), (1, 2**24, 648)):
        problem = types.SimpleNamespace(
            target=torch.zeros(count),
            noise=types.SimpleNamespace(dim=100),
            inputs_at_once=lambda each, most=max_bytes: max(1, most // 2 // each),
        )
        assert sketch.directions_at_once(problem) == wanted


@pytest.mark.parametrize("screen", ["auto", "sketch"])
def test_fewer_passes_of_more_directions(monkeypatch, screen):
    """The same directions, whether eight of them or all pass together."""
    monkeypatch.setattr(low_rank, "PASS_BYTES", 0)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(300, 60, generator=generator, dtype=torch.float64)
    rows *= torch.arange(1, 61) ** -0.8
    logits = torch.zeros(300, dtype=torch.float64)
    logits[0] = 6.0
    calls = []

    def model(x):
        calls.append(len(x))
        return x @ rows.mT + logits

    x = 0.1 * torch.randn(3, 60, generator=generator, dtype=torch.float64)
    many = robustness(model, x, 0.8, screen=screen)
    fewer, calls = len(calls), []
    for module in (sketch, low_rank):
        monkeypatch.setattr(module, "directions_at_once", lambda problem: 8)
    few = robustness(model, x, 0.8, screen=screen)
    same(many, few, 1e-9)
    assert torch.equal(many.cost.jvp, few.cost.jvp) and torch.equal(many.cost.vjp, few.cost.vjp)
    assert fewer < len(calls)


def test_tangents_of_a_forward_mode_pass_are_bounded_by_what_passes_keep():
    """Not by what autograd keeps, which is more in a deep network."""
    layers = [layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.Tanh())]
    model, x = nn.Sequential(*layers).eval(), torch.zeros(3, 64)
    net = Network("test", model, None, x)
    graph, kept = net.graph_bytes(x[:1]), net.pass_bytes(x[:1])
    assert kept < graph / 3
    assert chunks._most_tangents(net, x, 10**6) == 10**6 // (2 * (3 * kept + 16 * 64))
    # attention by torch's plain kernel, which forward mode takes, has all weights at once
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    model, x = lambda x: layer(x).sum(2), torch.zeros(1, 64, 16)
    net = Network("test", model, None, x)
    net.count_classes(x)
    assert chunks._most_tangents(net, x, 2**24) <= 2**24 // (6 * 4 * 64 * 64 * 4)
