"""mvnrob.scipy_compat beside scipy.stats.multivariate_normal."""

import copy
import inspect
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy
from scipy import stats

from mvnrob import scipy_compat
from mvnrob.scipy_compat import multivariate_normal as ours

theirs = stats.multivariate_normal
EYE = np.eye(3)
X = np.array([0.4, 1.0, -0.3])
#: Two integrators, each asked for 1e-5: SciPy's bound is three standard errors, ours 99 %.
ERROR = 3e-5


def random_call(seed, n, shape, *, lower=False, mean=True):
    g = np.random.default_rng(seed)
    factor = g.normal(size=(n, n + 2))
    arguments = {"x": 2 * g.normal(size=(*shape, n)), "cov": factor @ factor.T}
    if mean:
        arguments["mean"] = g.normal(size=n)
    if lower:  # some above x: those change places, and the sign
        arguments["lower_limit"] = 2 * g.normal(size=n) - 1
    return arguments


def assert_alike(result, expected, error=ERROR):
    assert type(result) is type(expected)
    assert result.shape == expected.shape and result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=0, atol=error)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 9])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (1, 2), (1, 1)])
@pytest.mark.parametrize("lower", [False, True])
def test_matches_scipy(n, shape, lower):
    call = random_call(n, n, shape, lower=lower, mean=len(shape) != 1)
    rng = np.random.default_rng(0)
    expected = theirs.cdf(**call, rng=rng)
    assert_alike(ours.cdf(**call), expected)
    x, lower_limit = call.pop("x"), call.pop("lower_limit", None)
    assert_alike(ours(**call).cdf(x, lower_limit=lower_limit), expected)


@pytest.mark.parametrize("lower", [False, True])
def test_logcdf_matches_scipy(lower):
    call = random_call(5, 3, (6,), lower=lower)
    call["x"] += 2  # away from zero, where the logarithm magnifies the error
    expected = theirs.logcdf(**call, rng=np.random.default_rng(0))
    assert np.iscomplexobj(expected) == lower
    # The error of the logarithm is that of the probability divided by it; here p > .001
    assert_alike(ours.logcdf(**call), expected, error=ERROR / 1e-3)
    x, limit = call.pop("x"), call.pop("lower_limit", None)
    assert_alike(ours(**call).logcdf(x, lower_limit=limit), expected, error=ERROR / 1e-3)


def test_logcdf_keeps_its_digits_near_one():
    expected = stats.norm.logcdf([8.0, 9, 9]).sum()
    assert ours.logcdf([8.0, 9, 9], cov=EYE) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        (0.3,),
        ([0.3, 0.4],),
        (0.3, 1.0, 2.0),
        ([0.3, 0.4], [1.0], [[2.0]]),
        ([[0.3], [0.4]], None, 2.0),
        (X, [0, 0, 0], 2.0),
        (X, [0, 0, 0], [1, 2, 3]),
        (X, np.zeros(3), None),
        (X, None, 2 * EYE),
        (X, None, stats.Covariance.from_diagonal([1, 2, 3])),
        (X, 1.0, stats.Covariance.from_precision(2 * EYE)),
        ([1, np.nan, 2], None, EYE),
        ([1, np.inf, -np.inf], None, EYE),
        ([1, 1], None, np.ones((2, 2)), True),
        ([1, 2, -1], None, np.zeros((3, 3)), True),
        (X, None, EYE, False, 5000, 1e-3, 1e-2),
    ],
)
def test_ways_to_say_it(arguments):
    """n <= 3: exact on both sides."""
    assert_alike(ours.cdf(*arguments), theirs.cdf(*arguments), error=1e-7)
    frozen = arguments[1:4]
    expected = theirs(*frozen).cdf(arguments[0])
    assert_alike(ours(*frozen).cdf(arguments[0]), expected, error=1e-7)


@pytest.mark.parametrize(
    "arguments",
    [
        (X, [0, 0], EYE),
        (X, None, np.ones((2, 3))),
        (X, None, np.ones((1, 3, 3))),
        (X, [[0, 0, 0]], EYE),
        (X, None, [1.0, 2]),
        (X, None, EYE * np.nan),
        (X, None, -EYE),
        (X, None, np.ones((3, 3))),
        (X, [1, 2], stats.Covariance.from_diagonal([1, 2, 3])),
    ],
)
def test_errors_are_scipys(arguments):
    with pytest.raises(ValueError) as expected:  # LinAlgError is one
        theirs.cdf(*arguments)
    for call in (lambda: ours.cdf(*arguments), lambda: ours(*arguments[1:])):
        with pytest.raises(ValueError) as found:
            call()
        assert type(found.value) is type(expected.value)
        assert str(found.value) == str(expected.value)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"'x' must have 3 components on its last axis: \(1, 2\)"):
        ours.cdf([1, 2], cov=EYE)
    with pytest.raises(ValueError, match=r"'x' must have 3 components on its last axis: \(1,\)"):
        ours.cdf(1.0, cov=EYE)
    with pytest.raises(ValueError, match="broadcast"):
        ours.cdf(X, cov=EYE, lower_limit=[0, 0])
    with pytest.raises(ValueError, match="'lower_limit' must broadcast to 1 components"):
        ours.cdf([1.0, 2.0], lower_limit=[0.0, 1.0])


def test_one_triangle_is_read():
    """SciPy's: in two dimensions the upper one."""
    skew = np.array([[1.0, 0.9], [0.1, 2.0]])
    upper = ours.cdf([0.3, 1.0], cov=[[1.0, 0.9], [0.9, 2.0]])
    assert abs(upper - ours.cdf([0.3, 1.0], cov=[[1.0, 0.1], [0.1, 2.0]])) > 0.02
    frozen = ours(cov=skew)
    for got in (ours.cdf([0.3, 1.0], cov=skew), frozen.cdf([0.3, 1.0])):
        assert got == upper
    if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 17):  # another integrator before
        assert abs(upper - stats.multivariate_normal.cdf([0.3, 1.0], cov=skew)) < 1e-6
    assert (frozen.cov == skew).all() and frozen.pdf([0, 1]) == stats.multivariate_normal.pdf(
        [0, 1], cov=skew
    )
    with pytest.raises(ValueError, match="must be symmetric positive semidefinite"):
        ours.cdf([0.3, 1.0], cov=[[1.0, 2.0], [0.1, 1.0]])
    cov = random_call(1, 3, ())["cov"]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):  # the integrator sorts the variables
        x, lower = X[order], cov[order][:, order]
        above = np.triu(np.full((3, 3), 0.1), 1)
        theirs = stats.multivariate_normal.cdf(
            x, cov=np.tril(lower) + above, rng=np.random.default_rng(0)
        )
        assert abs(theirs - ours.cdf(x, cov=lower)) < 1e-4
        assert ours.cdf(x, cov=np.tril(lower) + above) == ours.cdf(x, cov=lower)


#: With another, a second common factor: what has one alone is not sampled.
X6 = np.linspace(-0.5, 0.5, 6)


def test_tolerances_and_points():
    call = random_call(3, 8, ())
    tight, loose = (ours.cdf(**call, abseps=t, rng=1) for t in (1e-5, 1e-3))
    assert 0 < abs(tight - loose) < 1e-3 + 1e-5
    # A small probability, at which only a relative tolerance bites; none of these ends at maxpts.
    call = {"x": np.full(6, -2.0), "cov": np.eye(6) + 0.5 + np.outer(X6, X6)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reference = ours.cdf(**call, abseps=0, releps=1e-3)
        absolute, relative = (ours.cdf(**call, abseps=t, releps=1e-2) for t in (1e-3, 0))
    assert 0 < reference < 1e-3 and absolute != relative
    assert abs(relative - reference) <= 1.1e-2 * reference
    with pytest.warns(RuntimeWarning, match="spent max_points"):
        ours.cdf(**call, abseps=0, releps=1e-6, maxpts=600)
    x = call.pop("x")
    with pytest.warns(RuntimeWarning, match="spent max_points"):
        ours(**call, abseps=0, releps=1e-6, maxpts=600).cdf(x)


def test_rng():
    call = {"x": np.full(6, 0.5), "cov": 0.5 + np.outer(X6, X6) + np.eye(6), "abseps": 1e-3}
    assert ours.cdf(**call) == ours.cdf(**call) == ours.cdf(**call, rng=0)
    assert ours.cdf(**call, rng=1) == ours.cdf(**call, rng=np.int32(1)) != ours.cdf(**call)
    for make in (np.random.default_rng, np.random.RandomState):
        assert ours.cdf(**call, rng=make(1)) == ours.cdf(**call, rng=make(1))
        rng = make(1)
        assert ours.cdf(**call, rng=rng) != ours.cdf(**call, rng=rng)
    for bad in ("one", 1.5, np.random.SeedSequence(1)):
        with pytest.raises(ValueError, match="cannot be used to seed"):
            ours.cdf(**call, rng=bad)
    x = call.pop("x")
    assert ours(**call, seed=1).cdf(x) == ours.cdf(x, **call, rng=1)
    assert ours(**call, seed=1).cdf(x, rng=2) == ours.cdf(x, **call, rng=2)


def test_frozen():
    frozen = ours([1, 2, 3], EYE + 1, seed=4)
    assert frozen.dim == 3 and frozen.maxpts == 3_000_000 and not frozen.allow_singular
    np.testing.assert_array_equal(frozen.mean, [1, 2, 3])
    np.testing.assert_array_equal(frozen.cov, EYE + 1)
    for twin in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert twin.cdf(X) == frozen.cdf(X)
    part = frozen.marginal([0, 2])
    assert type(part) is type(frozen)
    assert part.cdf(X[[0, 2]]) == ours.cdf(X[[0, 2]], [1, 3], np.eye(2) + 1)
    singular = ours([0, 0], np.ones((2, 2)), True)
    assert singular.allow_singular
    assert singular.marginal(0).cdf(0.0) == pytest.approx(0.5, abs=1e-15)


def test_the_rest_is_scipys():
    assert ours.pdf(X, cov=EYE) == theirs.pdf(X, cov=EYE)
    frozen, expected = ours([1, 2, 3], EYE), theirs([1, 2, 3], EYE)
    assert frozen.logpdf(X) == expected.logpdf(X) and frozen.entropy() == expected.entropy()
    assert frozen.rvs(5, random_state=1).shape == (5, 3)
    with pytest.raises(AttributeError):
        ours.no_such_thing  # noqa: B018


def test_signatures_are_scipys():
    """As of SciPy 1.17: an argument by position means the same."""
    for name in ("cdf", "logcdf"):
        expected, found = (inspect.signature(getattr(o, name)).parameters for o in (theirs, ours))
        assert list(found)[: len(expected)] == [*expected][: len(found)] == list(found)
        assert {p.name: p.default for p in found.values()} == {
            p.name: p.default for p in expected.values()
        }
    assert list(inspect.signature(ours).parameters)[:4] == ["mean", "cov", "allow_singular", "seed"]


def test_documented():
    for thing in (scipy_compat, ours, type(ours).cdf, type(ours).logcdf, ours().cdf, ours().logcdf):
        assert inspect.getdoc(thing)


def test_works_without_scipy(tmp_path):
    """It imports SciPy for what is SciPy's own alone, and says what is missing."""
    code = (
        "import sys; sys.modules['scipy'] = None\n"
        "from mvnrob.scipy_compat import multivariate_normal as m\n"
        "print(m([0, 0], [1, 1]).cdf([0, 0]), m.cdf(0.0))\n"
        "m.pdf(0.0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    found = [float(word) for word in done.stdout.split()]
    assert found == pytest.approx([0.25, 0.5], abs=1e-14), done.stderr
    assert "mvnrob: the package scipy is needed here and not installed" in done.stderr
