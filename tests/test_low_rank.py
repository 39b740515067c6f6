"""Screening by low rank: what drawn directions do to p, and the bounds on it."""

import copy
import math

import pytest
import torch
from test_memory import LINUX, grown
from test_screening import inputs, problem_of

import mvnrob
from mvnrob import influence, low_rank, next_rows, sketch
from mvnrob._standard_normal import standard_normal
from mvnrob.influence import DrawnColumns
from mvnrob.noise import row_keys
from mvnrob.robustness import robustness


@pytest.fixture(autouse=True)
def small_networks_too(monkeypatch):
    """Passes of these linear models cost less than any draws."""
    monkeypatch.setattr(low_rank, "PASS_BYTES", 0)


def crowd(kind, classes=100, numbers=300, seed=3):
    """Rows [classes, numbers] of a linear model with logits 8, 0, 0, ... at x = 0."""
    rows = inputs(classes, numbers, seed=seed)
    if kind == "decay":
        rows = rows * torch.arange(1, numbers + 1).double() ** -1.2
    logits = torch.zeros(classes, dtype=torch.float64)
    logits[0] = 8.0
    return rows, logits


def true_p(rows, logits, sigma, abs_tol=1e-4):
    u = rows[:1] - rows[1:]
    z = (logits[0] - logits[1:]) / sigma
    return float(mvnrob.mvn_cdf(z, u @ u.mT, abs_tol=abs_tol, seed=9))


def sigma_for(rows, logits, p):
    low, high = 1e-3, 1e3
    for _ in range(20):
        sigma = math.sqrt(low * high)
        low, high = (sigma, high) if true_p(rows, logits, sigma, 3e-3) > p else (low, sigma)
    return sigma


def columns(seed=1, rivals=6, exact=3, drawn=4, draws=2**17):
    a, x = inputs(rivals, exact, seed=seed), 0.5 * inputs(rivals, drawn, seed=seed + 1)
    a[:, 0] = a[:, 0].abs() + 0.5
    norms = torch.cat([a, x], 1).norm(dim=1, keepdim=True)
    a, x = a / norms, x / norms
    z = torch.linspace(0.2, 1.8, rivals, dtype=torch.float64)
    e = standard_normal(
        row_keys(0, 4, torch.tensor([seed])), 0, draws, exact + drawn, torch.float32
    )
    return z, a, x, e[0]


def drawn_columns(z, a, x, draws):
    """Of one input."""
    return DrawnColumns(z[None], a[None], x[None], draws, 2**28)


def p_of(z, a, x):
    return float(mvnrob.mvn_cdf(z, a @ a.mT + x @ x.mT, abs_tol=1e-6))


# --- influences and curvature -----------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 5])
def test_influences_are_derivatives_by_the_weights(seed):
    z, a, x, draws = columns(seed)
    got = drawn_columns(z, a, x, draws).influences()[0][0]
    step = 0.1
    expected = []
    for j in range(x.shape[1]):
        sides = []
        for sign in (1, -1):
            moved = x.clone()
            moved[:, j] *= math.exp(sign * step / 2)
            sides.append(p_of(z, a, moved))
        expected.append((sides[0] - sides[1]) / (2 * step))
    expected = torch.tensor(expected, dtype=torch.float64)
    assert expected.abs().max() > 5e-3  # there is something to find
    # 131,072 draws: standard errors of about 3e-4
    torch.testing.assert_close(got, expected, rtol=0, atol=1.2e-3)


def test_influences_of_rivals_across_the_leading_direction():
    """Two groups of rivals with nothing in common: what the smaller one does shows all the same."""
    (z, a, x, _), draws = columns(rivals=3, exact=2), columns()[3]
    above = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    ahead = torch.cat([above.expand(5, -1), torch.zeros(5, 3).double()], 1)
    across = torch.cat([torch.zeros(3, 1).double(), a, x], 1)
    whole = torch.cat([ahead, across])
    z = torch.cat([torch.full((5,), 1.0).double(), z])
    exact, drawn = whole[:, :3], whole[:, 3:]
    got = drawn_columns(z, exact, drawn, draws)
    expected = []
    for j in range(4):
        sides = []
        for sign in (1, -1):
            moved = drawn.clone()
            moved[:, j] *= math.exp(sign * 0.05)
            sides.append(p_of(z, exact, moved))
        expected.append((sides[0] - sides[1]) / 0.2)
    expected = torch.tensor(expected, dtype=torch.float64)
    assert expected.abs().max() > 5e-3
    torch.testing.assert_close(got.influences()[0][0], expected, rtol=0, atol=2e-3)
    halves = [p_of(z, exact, math.sqrt(2) * part) for part in (drawn[:, :2], drawn[:, 2:])]
    value, error = (float(v) for v in got.curvature())
    assert error < 1e-3
    assert abs(value - (sum(halves) / 2 - p_of(z, exact, drawn))) < 4 * error + 1e-5


def test_limit_slopes_are_derivatives_by_the_limits():
    """Of two inputs together, one of independent rivals, with limits on either side of zero."""
    z, a, x, draws = columns()
    own = torch.tensor([-0.3, 0.0, 0.4, 1.0, 2.0, math.inf], dtype=torch.float64)
    eye = torch.eye(6, 7, dtype=torch.float64)
    both = DrawnColumns(
        torch.stack([z, own]),
        torch.stack([a, eye[:, :3]]),
        torch.stack([x, eye[:, 3:]]),
        draws,
        2**26,
    )
    got = both.limit_slopes()
    limits = z.clone().requires_grad_()
    cov = a @ a.mT + x @ x.mT
    (expected,) = torch.autograd.grad(mvnrob.mvn_cdf(limits, cov, abs_tol=1e-6), limits)
    normal = torch.distributions.Normal(0.0, 1.0)
    below = normal.cdf(own)
    alone = normal.log_prob(own).exp() * below.prod() / below
    assert expected.max() > 0.2 and alone[:5].min() > 1e-3
    # 131,072 draws, each with both signs
    torch.testing.assert_close(got, torch.stack([expected, alone]), rtol=0, atol=1.5e-3)
    some = both.limit_slopes(until=0.25)
    assert not torch.equal(some, got)
    torch.testing.assert_close(some, got, rtol=0, atol=6e-3)


def test_gains_are_of_what_is_unknown_and_matters():
    """Rivals: one known; half of it unknown; the same farther away; one that cannot win; one that is no number."""
    inside = torch.tensor(
        [[0.0, 1.0, 0.7, 0.7, 0.7, 0.7, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    )
    unknown = 0.7 * inputs(8, 1, seed=2)
    ranking = torch.cat([torch.zeros(8, 2), unknown.expand(-1, 4), torch.zeros(8, 1)], 1)
    inside, ranking = inside.double()[None], ranking.double()[None]
    margins = torch.tensor([[0.0, 1.0, 1.0, 4.0, 2.5, 1.2, 9.0]], dtype=torch.float64)
    taken = torch.tensor([[True, True, *[False] * 5]])
    draws = standard_normal(row_keys(0, 4, torch.tensor([1])), 0, 2**15, 10, torch.float32)[0]
    options = taken, 1.0, draws, 1e-9, 2**26
    gain = next_rows.gains(margins, inside, ranking, *options)[0]
    assert (gain[:2] == -1).all()
    # rivals 2 to 5 have one row: only the nearest is ever met
    assert gain[2] > 0.03 and (gain[3:] < 1e-9).all() and (gain[3:6] > 0).all() and gain[6] == 0
    assert gain[5] > gain[4] > gain[3]  # of what is not met, the likeliest first
    ranking[0, 0, 4] = math.nan
    gain = next_rows.gains(margins, inside, ranking, *options)[0]
    assert gain.isfinite().all() and gain.argmax() == 4


@pytest.mark.parametrize("apart", [0.0, 2.0])
def test_squares_shrink_to_what_rivals_have_in_common(apart):
    """All alike: to the common ratio, without chi-square's noise, but for two in a thousand that might be of
    another kind; far apart: hardly."""
    known = inputs(4000, 1, seed=3).square().mT + 0.1
    true = known * torch.exp(apart * inputs(4000, 1, seed=4).mT)
    drawn = true * inputs(4000, 8, seed=5).square().mean(1)
    got = next_rows._shrunk(known, drawn, torch.ones_like(known), 8)
    off = lambda value: (value / true).log().square().mean().sqrt()
    assert 0.5 < off(drawn) < 0.6
    assert off(got) < (0.15 if apart == 0 else off(drawn))
    if apart == 0:
        assert (got / true).log().abs().quantile(0.99) < 0.05
    known[0, 0], drawn[0, 0] = 0.0, 1e3  # of another kind, and of little weight
    weights = torch.ones_like(known)
    weights[0, 0] = 0.1
    assert next_rows._shrunk(known, drawn, weights, 8)[0, 0] > 300
    nothing = torch.zeros_like(known)
    assert (next_rows._shrunk(nothing, nothing, nothing, 8) == 0).all()


@pytest.mark.parametrize("seed", [1, 5])
def test_curvature_is_what_halves_differ_by(seed):
    z, a, x, draws = columns(seed)
    value, error = (float(v) for v in drawn_columns(z, a, x, draws).curvature())
    halves = [p_of(z, a, math.sqrt(2) * part) for part in (x[:, :2], x[:, 2:])]
    expected = sum(halves) / 2 - p_of(z, a, x)
    assert 0 < error < abs(expected) / 3
    assert abs(value - expected) < 4 * error + 1e-5


@pytest.mark.parametrize("rivals, together", [(1, False), (6, True), (6, False)])
def test_bound_where_few_rivals_hold_what_is_sampled(rivals, together):
    """Of inputs with 8 draws each: rivals whose rest is one direction, their own or one for all."""
    inputs_, drawn, rest = 400, 8, 0.7
    generator = torch.Generator().manual_seed(5)
    count = 1 if together else rivals
    x = torch.randn(inputs_, count, drawn, generator=generator, dtype=torch.float64)
    x = (rest / drawn) ** 0.5 * x.expand(-1, rivals, -1)
    a = torch.full((inputs_, rivals, 1), (1 - rest) ** 0.5, dtype=torch.float64)
    margin = 2.0 if rivals == 1 else 2.4
    norms = (a.square().sum(2) + x.square().sum(2)).sqrt()[..., None]
    draws = standard_normal(row_keys(0, 4, torch.tensor([1])), 0, 2**11, 9, torch.float32)[0]
    z = margin / norms[..., 0]
    columns = DrawnColumns(z, a / norms, x / norms, draws, 2**26)
    bounds, student = low_rank._bounds(columns, math.inf)
    correlation = torch.full((rivals, rivals), 1.0 if together else 1 - rest).double()
    truth = mvnrob.mvn_cdf(
        torch.full((rivals,), margin).double(), correlation.fill_diagonal_(1.0), abs_tol=1e-6
    )
    cov = (a @ a.mT + x @ x.mT) / (norms @ norms.mT)
    gap = (mvnrob.mvn_cdf(z, cov, abs_tol=3e-4) - truth).abs() - 3e-4
    assert (gap > bounds).double().mean() <= 0.02
    if rivals == 1 or together:
        assert (gap > student).double().mean() >= 0.1  # it alone does not do


def test_rivals_that_never_come_near_have_no_influence():
    z, a, x, draws = columns(draws=2**12)
    far = torch.cat([z, torch.tensor([math.inf, math.inf]).double()])
    zeros = a.new_zeros(2, 3), x.new_zeros(2, 4)
    wide = drawn_columns(far, torch.cat([a, zeros[0]]), torch.cat([x, zeros[1]]), draws)
    alone = drawn_columns(z, a, x, draws)
    torch.testing.assert_close(wide.influences(), alone.influences())
    torch.testing.assert_close(wide.curvature(), alone.curvature(), rtol=0, atol=1e-7)


def test_several_inputs_at_a_time():
    """One whose rivals all rise, fewer rivals, and draws in several parts."""
    few, many = columns(1, rivals=3, draws=2**12), columns(5, rivals=6, draws=2**12)
    draws = many[3]
    alone = [drawn_columns(*part[:3], draws) for part in (few, many)]
    z = torch.stack([torch.cat([few[0], torch.full((3,), math.inf).double()]), many[0]])
    a, x = (torch.stack([torch.cat([few[i], 0 * many[i][:3]]), many[i]]) for i in (1, 2))
    for both in (
        DrawnColumns(z, a, x, draws, 2**28),
        DrawnColumns(z, a, x, draws, 2**18),
        DrawnColumns(z.flip(0), a.flip(0), x.flip(0), draws, 2**28).subset(torch.tensor([1, 0])),
    ):
        got, curvature = both.influences(), both.curvature()
        for i, one in enumerate(alone):
            torch.testing.assert_close(got[0][i], one.influences()[0][0], rtol=1e-4, atol=1e-7)
            for value, expected in zip(curvature, one.curvature(), strict=True):
                torch.testing.assert_close(value[i], expected[0], rtol=1e-4, atol=1e-7)
    # rivals on both sides of one input, on one side of the other
    mixed = torch.where(torch.arange(6) % 2 == 0, 1.0, -1.0).double()[:, None]
    both = DrawnColumns(
        many[0].expand(2, -1), torch.stack([many[1], mixed * many[1]]), many[2].expand(2, -1, -1),
        draws, 2**28,
    )  # fmt: skip
    for i, rows in enumerate((many[1], mixed * many[1])):
        one = drawn_columns(many[0], rows, many[2], draws)
        torch.testing.assert_close(
            both.influences()[0][i], one.influences()[0][0], rtol=1e-4, atol=1e-7
        )


def test_a_single_drawn_column():
    """Of which one half is empty: the other one alone has all of it, sqrt(2) times."""
    z, a, x, draws = columns(2, drawn=1, draws=2**12)
    one = drawn_columns(z, a, x, draws)
    (value, error), ones = one.curvature(), torch.ones(1, len(z)).double()
    (without, doubled), _ = one.stretched(0 * ones, math.sqrt(2.0) * ones)
    torch.testing.assert_close(value, 0.5 * (without + doubled), rtol=1e-5, atol=1e-8)
    assert float(error) > 0


def test_inputs_whose_draws_and_rows_fit():
    """Few draws: tables of the rows are what memory ends at; many: what each draw holds."""
    for rivals, max_bytes in ((50, 2**20), (5000, 2**26), (20_000, 2**28)):
        count = influence.inputs_at_once(torch.zeros(1, 40), rivals, 16, 24, max_bytes)
        assert 1 < count and count * rivals * 40 * 8 * 5 < max_bytes < 2 * count * rivals * 40 * 48
    many = influence.inputs_at_once(torch.zeros(2**12, 40), 2, 1, 8, 2**30)
    assert many == 2**19 // (2**12 * 10)
    assert influence.inputs_at_once(torch.zeros(2**12, 40), 20_000, 16, 24, 2**20) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_independent_directions(dtype):
    """In parts: the same span, and nothing of what an earlier part holds."""
    vectors = inputs(70, 200).to(dtype)
    vectors[40] = vectors[3]
    vectors = (vectors / vectors.norm(dim=1, keepdim=True))[None]
    got = low_rank._independent(vectors, 70)
    assert got.shape == vectors.shape and int((got != 0).any(2).sum()) == 69
    gram = got[0] @ got[0].mT
    some = (got[0] != 0).any(1)
    close = {"rtol": 0, "atol": 30 * torch.finfo(dtype).eps}
    torch.testing.assert_close(gram[some][:, some], torch.eye(69, dtype=dtype), **close)
    torch.testing.assert_close(vectors @ got.mT @ got, vectors, **close)


# --- the screen -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, p", [("flat", 0.3), ("flat", 0.9), ("decay", 0.8)])
def test_bounds_on_what_is_sampled_hold_whatever_they_are(monkeypatch, kind, p):
    """Every level is accepted here, however large its bound. Rivals chosen by the draws that sample
    the rest would show: p then came out .03 too large, beyond most bounds."""
    monkeypatch.setattr(low_rank, "LEVELS", ((32, 24),))
    monkeypatch.setattr(low_rank, "SAMPLED", 1e9)
    monkeypatch.setattr(low_rank, "_DRAWS", 2**12)
    rows, logits = crowd(kind)
    sigma = sigma_for(rows, logits, p)
    truth = true_p(rows, logits, sigma)
    gaps, bounds = [], []
    for seed in range(24):
        problem = problem_of(lambda x: x @ rows.mT + logits, inputs(1, 300) * 0, sigma, seed)
        _, left, begun = sketch.sketch(problem, 5e-4, lambda drawn: 0.0, hand_over=True)
        assert left.tolist() == [0]
        parts = low_rank.screen_low_rank(problem, begun, 1e9, 1e-3)
        (part,) = [part for part, _ in parts if part is not None]
        u = part.factor[0, 0, 1:] if part.factor is not None else None
        cov = part.scatter[0, 0, 1:, 1:] if u is None else u @ u.mT
        z = (logits[0] - logits[part.classes[0, 1:]]) / sigma
        gaps.append(float(mvnrob.mvn_cdf(z, cov, abs_tol=1e-3, seed=seed)) - truth)
        bounds.append(float(part.sampled[0, 0]))
    gaps, bounds = torch.tensor(gaps), torch.tensor(bounds)
    assert int((gaps.abs() > bounds + 5e-4).sum()) <= 1  # nominal: 1 in 100
    assert gaps.mean().abs() < 0.5 * bounds.mean()
    # and they are bounds on something: not ten times too large
    assert gaps.square().mean().sqrt() > 0.1 * bounds.mean()


def test_p_within_its_error_for_fewer_passes():
    rows, logits = crowd("decay", classes=400, numbers=600)
    x = 0.2 * inputs(2, 600)
    sigmas = [sigma_for(rows, logits, 0.9), sigma_for(rows, logits, 0.6)]

    def model(x):
        return x @ rows.mT + logits

    target = torch.zeros(2, dtype=torch.int64)
    full = robustness(model, x, sigmas, screen="none", abs_tol=2e-4, target=target)
    assert 0.2 < full.prob.min() < 0.8 < full.prob.max()
    for seed in range(2):
        got = robustness(model, x, sigmas, seed=seed, target=target)
        assert ((got.prob - full.prob).abs() <= got.error + full.error).all()
        assert (got.error <= 2e-3).all()
        assert (full.prob <= got.upper + full.error).all()
        assert (full.prob >= got.lower - full.error).all()
        price = got.cost.vjp + sketch.JVP_IN_VJPS * got.cost.jvp
        assert (got.cost.vjp > sketch.NEAR_ROWS).all() and (price < 390).all(), price


def test_several_noise_levels_of_several_inputs_at_a_time(monkeypatch):
    """Each level's bound is that of the level alone, to rounding; none below a level whose bound is too large."""
    rows, logits = crowd("decay", classes=300, numbers=400)
    model = lambda x: x @ rows.mT + logits
    sigmas = [sigma_for(rows, logits, p) for p in (0.8, 0.84, 0.9)]
    problem = problem_of(model, inputs(6, 400) * 0, 1.0)
    problem.noise.sigmas = sigmas
    sampled, compared = low_rank._sampled, []

    def by_each(problem, state, keep, draws, abs_tol):
        together = sampled(problem, state, keep, draws, abs_tol)
        alone = []
        for sigma in sigmas:
            part = problem.subset(torch.arange(len(keep)))
            part.noise = copy.copy(problem.noise)
            part.noise.sigmas = [sigma]
            alone.append(sampled(part, state, keep, draws, abs_tol))
        for both, each in zip(together, zip(*alone, strict=True), strict=True):
            looked_at = together[0] > 0
            each = torch.cat(each)
            assert torch.allclose(both[looked_at], each[looked_at], rtol=1e-6)
        small = torch.cat([bound for bound, _ in alone]) <= low_rank.SAMPLED * abs_tol
        assert torch.equal(looked_at[1:], looked_at[:-1] & small[:-1]) and looked_at[0].all()
        compared.append(int(looked_at.sum()))
        return together

    monkeypatch.setattr(low_rank, "_sampled", by_each)
    _, _, begun = sketch.sketch(problem, 5e-3, lambda drawn: 0.0, hand_over=True)
    parts = low_rank.screen_low_rank(problem, begun, 1e9, 1e-2)
    found = {int(i): part for part, _ in parts if part is not None for i in part.inputs}
    assert sorted(found) == list(range(6))
    assert compared[0] == 6 and sum(compared[1:]) >= 18
    for i, part in found.items():
        bounds = part.sampled[:, part.inputs.tolist().index(i)]
        assert bounds.min() > 2 * low_rank._NEGLECTED * 1e-2


def test_inputs_of_one_level_go_on_together(monkeypatch):
    """Whether a sketch left them at its guess or behind eight draws; each with what belongs to it."""
    monkeypatch.setattr(low_rank, "LEVELS", ((7, 8), (16, 24), (32, 56)))
    rows, logits = crowd("decay", classes=300, numbers=400)
    model, x = lambda x: x @ rows.mT + logits, 0.6 * inputs(6, 400)
    sigma = sigma_for(rows, logits, 0.9)
    problem = problem_of(model, x, sigma)
    begun = []
    for numbers, most in (([0, 2, 4], 0.0), ([1, 3, 5], 1e9)):
        numbers = torch.tensor(numbers)
        leaves = lambda drawn, most=most: 0.0 if drawn else most
        _, _, parts = sketch.sketch(problem.subset(numbers), 1e-6, leaves, hand_over=True)
        begun += [(numbers[rows], start) for rows, start in parts]
    assert [start.products.shape[1] for _, start in begun] == [0, 8]
    grow, grown = low_rank._State.grow, []

    def noted(state, problem, level, *options):
        grown.append((level, len(state.numbers)))
        grow(state, problem, level, *options)

    monkeypatch.setattr(low_rank._State, "grow", noted)
    found = low_rank.screen_low_rank(problem, begun, 1e9, 3e-3)
    parts = [part for part, left in found if part is not None]
    assert grown == [((7, 8), 3), ((7, 8), 3), ((16, 24), 6)]
    assert sorted(int(i) for part in parts for i in part.inputs) == list(range(6))
    truths = []
    for part in parts:
        for at, i in enumerate(part.inputs.tolist()):
            own, target = model(x[i]), int(problem.target[i])
            u = rows[target] - rows
            truth = mvnrob.mvn_cdf((own[target] - own) / sigma, u @ u.mT, abs_tol=1e-4)
            cov = part.sums(0)[at, 1:, 1:]
            margins = own[target] - own[part.classes[at, 1:]]
            p = mvnrob.mvn_cdf(margins / sigma, cov, abs_tol=1e-4)
            assert abs(float(p - truth)) <= 2 * float(part.sampled[0, at]) + 2e-3
            truths.append(float(truth))
    assert max(truths) - min(truths) > 0.03  # what belongs to another would show


def test_one_rival_beside_a_crowd_of_small_rests():
    """60 rivals along one direction, with small rests of their own; one of another direction, whose tail
    a sample that drew it short does not show (missed in a fifth of the seeds where it was not looked at)."""
    classes, crowded, rest = 250, 60, 0.02
    margin, alone = 2.8, 2.6
    rows = torch.zeros(classes, classes, dtype=torch.float64)
    logits = torch.full((classes,), -60.0, dtype=torch.float64)
    logits[0] = 0.0
    some = torch.arange(1, crowded + 1)
    rows[some, 0], rows[some, some] = -math.sqrt(1 - rest), -math.sqrt(rest)
    rows[crowded + 1, crowded + 1], logits[some] = -10.0, -margin
    logits[crowded + 1] = -10.0 * alone
    x = torch.zeros(100, classes, dtype=torch.float64)
    target = torch.zeros(100, dtype=torch.int64)
    got = robustness(lambda x: x @ rows.mT + logits, x, 1.0, abs_tol=5e-3, target=target)
    gap = (got.prob - true_p(rows, logits, 1.0, 1e-5)).abs()
    assert (gap > got.error + 1e-5).sum() <= 4
    assert (got.cost.vjp < 150).all()


@pytest.mark.parametrize("scale", [1e-35, 1e-30, 1e19, 1e30])
def test_single_precision_of_extreme_scale(scale):
    rows, logits = crowd("decay", classes=300, numbers=400)
    sigma = sigma_for(rows, logits, 0.8)
    weights, bias = (scale * rows).float(), (scale * logits).float()
    x = torch.zeros(4, 400)
    got = robustness(lambda x: x @ weights.mT + bias, x, sigma, abs_tol=2e-3)
    plain = robustness(lambda x: x @ rows.float().mT + logits.float(), x, sigma, abs_tol=2e-3)
    assert ((got.prob - plain.prob).abs() <= got.error + plain.error).all()
    assert (got.cost.vjp < 100).all()


def test_slopes_of_very_different_sizes():
    """Rivals of hardly any slope, and hardly any margin, beside hundreds of steep ones."""
    rows, logits = crowd("decay", classes=300, numbers=400)
    rows[0] = 0.0
    sigma = sigma_for(rows, logits, 0.85)
    rows[1:14] *= 2e-5
    logits[0], logits[14:] = 0.0, -8.0
    margins = sigma * rows[1:14].norm(dim=1) * torch.linspace(1.2, 2.5, 13).double()
    logits[1:14] = -margins
    weights, x = rows.float(), torch.zeros(1, 400)
    got = robustness(lambda x: x @ weights.mT + logits, x, sigma)
    truth = true_p(weights.double(), logits, sigma)
    assert abs(float(got.prob) - truth) <= float(got.error) + 1e-4
    assert 0.3 < truth < 0.75 and int(got.cost.jvp) > 40 and int(got.cost.vjp) < 200


def test_what_does_not_fall_off_takes_every_row():
    rows, logits = crowd("flat", classes=300, numbers=400)
    sigma = sigma_for(rows, logits, 0.4)
    got = robustness(lambda x: x @ rows.mT + logits, torch.zeros(1, 400).double(), sigma)
    truth = true_p(rows, logits, sigma)
    assert int(got.cost.vjp) >= 300 and abs(float(got.prob) - truth) <= float(got.error) + 1e-4
    # it was noticed before the levels had cost as much again
    assert int(got.cost.vjp) < 300 + 64 and int(got.cost.jvp) < 80


@pytest.mark.parametrize("kind", ["equal rows", "few numbers", "equal to the target's"])
def test_dependent_rows(kind):
    """The span of the rivals' rows is smaller than their number: no direction is made up."""
    numbers = 14 if kind == "few numbers" else 300
    rows, logits = crowd("flat" if kind == "few numbers" else "decay", 300, numbers)
    if kind == "equal rows":
        rows[2::2] = rows[1:-1:2]
    if kind == "equal to the target's":
        rows[5:9] = rows[:1]
        logits[5:9] = 1.0
    sigma = sigma_for(rows, logits, 0.5)
    x = torch.zeros(1, numbers).double()
    got = robustness(lambda x: x @ rows.mT + logits, x, sigma)
    full = robustness(lambda x: x @ rows.mT + logits, x, sigma, screen="none", abs_tol=2e-4)
    assert abs(float(got.prob - full.prob)) <= float(got.error + full.error)
    assert float(got.error) <= 1e-3
    if kind != "equal rows":  # of which the likeliest rivals hold two each
        assert int(got.cost.vjp) < 200


def test_groups_of_rivals_with_nothing_in_common():
    """Most rivals are alike, and what the others do shows in no draw along the direction of those: p
    was beyond its error in one seed of ten, three times in the worst."""
    alike = inputs(1, 50, seed=1) + 0.1 * inputs(100, 50, seed=2)
    others = inputs(200, 300, seed=3) * torch.arange(1, 301).double() ** -0.6
    rows = torch.zeros(301, 350, dtype=torch.float64)
    rows[1:101, :50] = alike / alike.norm(dim=1, keepdim=True)
    rows[101:, 50:] = others / others.norm(dim=1, keepdim=True)
    logits = torch.zeros(301, dtype=torch.float64)
    logits[0], logits[1:101] = 3.0, -0.5
    sigma = sigma_for(rows, logits, 0.3)
    truth = true_p(rows, logits, sigma)
    gaps = []
    for seed in range(12):
        x = torch.zeros(1, 350).double()
        got = robustness(lambda x: x @ rows.mT + logits, x, sigma, abs_tol=0.02, seed=seed)
        gaps.append(abs(float(got.prob) - truth) / float(got.error))
    assert max(gaps) < 1.0


def test_single_precision_and_scaled_noise():
    rows, logits = crowd("decay", classes=300, numbers=400)
    weights = rows.float()
    sigma = torch.linspace(0.5, 1.5, 400)
    scale = sigma_for(rows * sigma.double(), logits, 0.7)
    x = torch.zeros(2, 400)

    def model(x):
        return x @ weights.mT + logits.float()

    got = robustness(model, x, sigma * scale)
    full = robustness(model, x, sigma * scale, screen="none", abs_tol=2e-4)
    assert (got.cost.vjp < 200).all()
    assert ((got.prob - full.prob).abs() <= got.error + full.error).all()


def test_gradients_that_are_no_numbers():
    rows, logits = crowd("decay", classes=300)
    sigma, x = sigma_for(rows, logits, 0.5), torch.zeros(1, 300).double()

    def model(x):  # an infinite slope of one class
        return (
            x @ rows.mT
            + logits
            + torch.nn.functional.one_hot(torch.tensor(150), 300) * x[:, :1].abs().sqrt()
        )

    got, exact = robustness(model, x, sigma), robustness(model, x, sigma, screen="exact")
    assert got.status.tolist() == exact.status.tolist()
    torch.testing.assert_close(got.prob, exact.prob, equal_nan=True)


def test_means_over_noisy_copies():
    """The products of each group give the jackknife's versions, which leave one out."""
    rows, logits = crowd("decay", classes=300, numbers=400)
    sigma = sigma_for(rows, logits, 0.75)
    x = torch.zeros(2, 400).double()

    def model(x):  # bent, so that the groups' gradients differ
        steps = x @ rows.mT
        return steps + 0.05 * torch.sin(steps) + logits

    call = {"method": "mmse", "n_samples": 8, "target": torch.zeros(2, dtype=torch.int64)}
    full = robustness(model, x, sigma, screen="none", abs_tol=2e-4, **call)
    got = robustness(model, x, sigma, **call)
    assert (got.cost.vjp < 8 * 200).all() and (got.cost.jvp > 8 * 40).all()
    integral = 1e-3  # both errors contain the copies' sampling, which is the same
    assert ((got.prob - full.prob).abs() <= 2 * integral).all()
    torch.testing.assert_close(got.error, full.error, rtol=0.1, atol=2 * integral)


LOW_RANK = """
from mvnrob import low_rank
low_rank.PASS_BYTES = 0
rows = torch.randn(300, 300, generator=torch.Generator().manual_seed(3))
rows *= torch.arange(1, 301) ** -1.2
logits = torch.zeros(300)
logits[0] = 8.0
x = torch.zeros(1, 300)
model = lambda x: x @ rows.mT + logits
robustness(model, x, 2.65, abs_tol=0.1, max_bytes=2**24)
for tolerance in (1e-3, 5e-4, 0.02):
    options = {"abs_tol": tolerance, "max_bytes": 2**24}
    print(growth(lambda: robustness(model, x, 2.65, **options)), options)
"""


@LINUX
def test_peak_memory_of_a_low_rank_stays_below_the_budget():
    for most, options in grown(LOW_RANK):
        assert most < 16, options  # 240 MiB where draws and samples were as many as ever


def test_a_sketch_that_drew_more_than_any_level(monkeypatch):
    monkeypatch.setattr(low_rank, "LEVELS", ((16, 24),))
    monkeypatch.setattr(low_rank, "SAMPLED", 1e9)
    rows, logits = crowd("decay", classes=300, numbers=400)
    sigma = sigma_for(rows, logits, 0.9)
    problem = problem_of(lambda x: x @ rows.mT + logits, inputs(1, 400) * 0, sigma)
    most = lambda drawn: 0.0 if drawn == 64 else 1e9
    monkeypatch.setattr(
        sketch, "JVP_IN_VJPS", 0.0
    )  # products for nothing: as many as there are looks
    _, left, begun = sketch.sketch(problem, 1e-9, most, hand_over=True)
    assert left.tolist() == [0] and begun[0][1].products.shape[1] == 64
    ((part, _),) = low_rank.screen_low_rank(problem, begun, 1e9, 1e-3)
    assert part.factor.shape[3] == 16 + 56


def test_small_networks_take_every_row(monkeypatch):
    monkeypatch.setattr(low_rank, "PASS_BYTES", 100)
    rows, logits = crowd("decay", classes=300, numbers=400)
    x, sigma = torch.zeros(1, 400).double(), sigma_for(rows, logits, 0.6)
    got = robustness(lambda x: x @ rows.mT + logits, x, sigma)
    assert int(got.cost.vjp) >= 300
    patient = robustness(
        lambda x: 0 * x.repeat(1, 2000).cos().sum(1, True) + x @ rows.mT + logits, x, sigma
    )
    assert int(patient.cost.vjp) < 200  # a graph of megabytes
