"""Multivariate normal rectangle probabilities: ``mvn_cdf``, its fake kernel, its reference."""

from __future__ import annotations

import enum
import numbers
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from . import _load, _mendell_elston, _mvn_cdf_grad, _ops
from ._autograd import refuse
from ._checks import check_alike, warn_caller

METHODS = ("auto", "sov", "closed_form", "mendell_elston")
POINTS = ("lattice", "richtmyer", "sobol")
COMPUTE_DTYPES = {None: "auto", torch.float32: "float32", torch.float64: "float64"}
DEFAULT_MAX_POINTS = 8 * 2**17


class Status(enum.IntEnum):
    """How a row of :func:`mvn_cdf` or :func:`pivoted_cholesky` ended.

    - ``CONVERGED`` 0: the error is at most the tolerance asked for; ``error`` itself, in float32, has the
      rounding of ``prob`` in it (6e-8), and may be more where p is near 1: ``complement`` and ``log_error``
      have their digits.
    - ``EXACT`` 1: no sampling; the error is rounding and what near multiples leave, whatever
      tolerance was asked for.
    - ``MAX_POINTS`` 2: ``max_points`` were spent before the tolerance was met; ``prob`` and ``error``
      stand for what was reached.
    - ``INDEFINITE`` 3: the covariance has a negative eigenvalue beyond rounding; the result is NaN.
    - ``NAN_INPUT`` 4: a limit or an entry of the covariance is NaN, or a variance infinite; the
      result is NaN.
    - ``NO_CLOSED_FORM`` 5: ``method="closed_form"`` on a GPU, for a row that has none; the result is
      NaN. (The CPU raises ValueError; a GPU cannot without waiting for it.)
    - ``APPROXIMATE`` 6: ``method="mendell_elston"``: nothing bounds the error, which is NaN.
    - ``TRUNCATED`` 7: ``pivoted_cholesky``: so many columns leave variance, which is the residual.
    """

    CONVERGED = 0
    EXACT = 1
    MAX_POINTS = 2
    INDEFINITE = 3
    NAN_INPUT = 4
    NO_CLOSED_FORM = 5
    APPROXIMATE = 6
    TRUNCATED = 7


class MVNResult(NamedTuple):
    """What :func:`mvn_cdf` knows of each row; every field has the batch shape ``[...]``, the first five
    the dtype of the limits.

    - ``prob``: the probability.
    - ``complement``: one minus it, computed without cancellation.
    - ``log_prob``: its logarithm, right where the probability itself underflows.
    - ``error``: 99 % bound on ``|prob - truth|`` (and on the complement's).
    - ``log_error``: 99 % bound on ``|log_prob - truth|``; inf where p is not told from 0.
    - ``status``: int64, the numbers of :class:`Status`.
    - ``n_points``: int64, samples of all shifts together; 0 where nothing was sampled.
    - ``n_active``: int64, variables left after screening, those in exact blocks too.
    - ``n_pivots``: int64, variables sampled or in blocks that are exact; the other active ones were
      completed (given those sampled, the product of their own probabilities, and the error bounds the
      difference).
    """

    prob: Tensor
    complement: Tensor
    log_prob: Tensor
    error: Tensor
    log_error: Tensor
    status: Tensor
    n_points: Tensor
    n_active: Tensor
    n_pivots: Tensor


def mvn_cdf(
    upper: Tensor,
    cov: Tensor | None = None,
    *,
    factor: Tensor | None = None,
    lower: Tensor | None = None,
    mean: Tensor | None = None,
    abs_tol: float = 1e-4,
    rel_tol: float = 0.0,
    log_tol: float = 0.0,
    max_points: int | None = None,
    method: str = "auto",
    seed: int | Tensor = 0,
    compute_dtype: torch.dtype | None = None,
    points: str = "lattice",
    check: bool = False,
    return_info: bool = False,
) -> Tensor | MVNResult:
    r"""P(lower <= X <= upper) for X ~ N(mean, cov), a batch of problems each with its own covariance.

    What to set, beside limits and a covariance: nothing, for p with a 99 % error of 1e-4.

    - another error: ``abs_tol=1e-3``; digits of a small p or of 1 - p: ``abs_tol=0, rel_tol=1e-3``
    - the error reached, and how a row ended: ``return_info=True`` (:class:`mvnrob.MVNResult`)
    - log p, however far in the tails: :func:`mvnrob.mvn_log_cdf`; in a likelihood ``log_tol=1e-3``, which
      asks for no digits of 1 - p; a known factor of cov: ``factor=``
    - microseconds, differentiable, without an error: ``method="mendell_elston"``

    All else, exactly, follows.

    Args:
        upper: upper limits ``[..., n]``, float32 or float64; ``+inf`` drops a variable.
        cov: covariances ``[..., n, n]`` of any scale, same dtype; symmetric and positive
            semidefinite. Singular matrices are the normal case and get no jitter. What counts as
            zero is decided by the rounding of the dtype, and by float32's in float64 matrices that
            turn out indefinite by no more than that (computed in float32, then converted). Of each
            pair of off-diagonal entries only one is read, and none of a variable that drops out.
        factor: in place of ``cov`` a factor ``[..., n, r]`` of it, ``cov = factor @ factor.mT``, same
            dtype, any r: never multiplied out, and beyond the rows' lengths only the rows of
            variables that matter are read. It is positive semidefinite whatever its rounding, and
            what counts as zero is a standard deviation within that, not a variance: directions that
            a covariance of the same dtype cannot hold stay apart. Squares of its rows' lengths must be
            float64 numbers: a row of less than about 1e-154 counts as zero, one of more than 1e154 as NaN.
        lower: lower limits ``[..., n]``; none means minus infinity.
        mean: means ``[..., n]``; none means zero.
        abs_tol, rel_tol, log_tol: a row is done when its error is at most
            ``max(abs_tol, rel_tol * min(p, 1 - p), log_tol * p)``. So ``abs_tol=0, rel_tol=1e-3`` gives
            three digits of either side, and ``abs_tol=0, log_tol=1e-3`` log p to .001, whatever it is;
            :func:`mvnrob.mvn_log_cdf` is the call for that.
        max_points: most integrand evaluations per row (default ``8 * 2**17``); a row that ends with
            its tolerance unmet says so in ``status``, and one warning is raised.
        method: ``"auto"``; ``"sov"`` samples every variable that screening leaves (no completion,
            no closed form, no tilt, no union, multiples apart); ``"closed_form"`` is exact and raises for
            a row that has no exact answer (below); ``"mendell_elston"`` approximates without sampling
            and knows no error (below).
        seed: int, or int64 ``[...]``, one per row. A row's answer depends on that row and its seed
            alone: not on the batch, its order, or the number of threads. It is the same to the bit
            on one build and SIMD level (:func:`mvnrob.simd_level`).
        compute_dtype: dtype of the sampled recursion (the factorisation is always float64). None
            takes float32 when ``abs_tol >= 1e-5``, float64 otherwise. Tilted samples need float64;
            samples of the union always are.
        points: which points are sampled, 8 random shifts of them: ``"lattice"``, an embedded rank-1
            lattice in base 2, tent transformed; ``"richtmyer"``, the square roots of the primes,
            tent transformed; ``"sobol"``, Owen-scrambled Sobol points. The first and the last go up
            in powers of two. At a true error of 1e-4 the lattice takes a fifth to two fifths of the
            time of Richtmyer's points (n = 9 and 49), at n = 9 and 1e-3 the same, at 1e-5 three
            quarters; Sobol points are as good and dearer each (``bench/bench_points.py``), and do not
            agree by chance next to a narrow ridge, as a lattice's shifts may at an early look.
        check: test that ``cov`` is finite, symmetric and positive semidefinite (eigenvalues), or
            ``factor`` finite, and raise naming the first bad row. Without it, a pivot that is negative
            beyond rounding makes that row NaN with status ``INDEFINITE``; a partial factorisation may
            not meet one.
        return_info: return :class:`MVNResult` instead of the probability alone.

    Batch dimensions broadcast. A covariance shared by the batch is not copied.

    On CUDA tensors the call returns without waiting for the device, but for up to a millisecond while that
    is at work on the call: what is launched for rows that turn out to be done has nothing to do, and the
    device has to pass it. Captured into a graph (torch.cuda.graph) it repeats its rounds on the device
    until every row is done, with about a sixth of the launches; drivers before CUDA 12.4 have no loops in
    graphs, which then hold the launches of all rounds, as a call without capture may make them.
    It decides and samples as on the CPU: under the same plan both give the same numbers to rounding,
    otherwise they agree within the sum of their errors. No warning is raised there, since that would
    wait: look at ``status``. With ``method="closed_form"`` a row that has none is NaN, with status
    ``NO_CLOSED_FORM``. Memory there is about ``10 n^2`` bytes a row (``12 n^2`` where samples are
    float64; with a factor of r < n / 2 columns ``12 n r + 8 r^2`` and ``16 n r + 8 r^2``), at most 8
    GiB at a time (larger batches go through in pieces), and up to a GiB for the samples: ``n = 16,384``
    takes 3.5 to 4 GiB beside its covariance.

    ``torch.func.vmap`` over it gives each row the answer that it has alone, to the bit (an int ``seed``
    serves all rows), in one call for all; ``check`` must be False for what is mapped. Autocast does not
    touch it: it computes in the dtype that it is given.

    Edges are mathematics: ``n = 0`` gives 1; zero variance is a step, closed at the limit
    (P(0 <= 0) = 1); ``lower > upper`` gives 0; a NaN in a limit, a mean or a variance, or in an
    entry of ``cov`` that is read, gives NaN for that row alone.

    Exact, without sampling (status ``EXACT``, ``n_points`` 0), are rows whose variables, after
    screening, fall apart into blocks that are independent (entries of exactly zero), each of up to three
    variables or of one common factor, R_ij = l_i l_j with ``|l_i| <= .9995``, one of 1 beside them
    (equicorrelated ones, for instance), which is a one-dimensional quadrature (Dunnett and Sobel 1955).
    The form is looked for in ``cov`` and in ``factor`` (up to ``n^2 r = 1e9``), and must hold in every
    entry to 8 entry errors (7e-15, or 3.6e-7 in float32); what is left over enters the error in
    float64. Independent blocks multiply: beside blocks of any other kind these are still integrated
    exactly, and the others are sampled together, as one smaller problem, to what the tolerance of the
    whole row leaves them (status ``CONVERGED``; ``method="closed_form"`` raises, ``"sov"`` samples
    all). Only where three variables' exact answer, whose error is absolute (1e-12), has not the digits
    of a tail that a relative tolerance asks for, the row is sampled whole. Variables that are multiples
    of each other, positive or negative, become one beforehand, in rows of up to n = 4,096; multiples
    but for rounding (1 - rho^2 up to 3.6e-15) move p by up to its square root, which both errors say,
    and where they contradict each other p is half its bound.

    ``error`` bounds ``|prob - truth|`` with probability 99 % over the random shifts. It is the sum of a
    t-interval over 8 random shifts of the lattice, its miss probability spent over the looks at it; of
    half the certified mass of screened variables; of what completion may leave out, at the upper
    confidence limit of its bound; and of the error of blocks that are exact. Closed forms (status
    ``EXACT``) state rounding, that of the limits in units of their standard deviation included (a
    narrow interval has few digits); ln p is known up to 1e15 standard deviations, and beyond with a
    log_error of inf, but for independent variables. Where p is near 1 the plan may change to samples of
    the union of the events that a variable fails, whose spread is that of 1 - p; where p < .05 and a
    relative tolerance asks for its digits, to tilted ones. ``error`` is then that of the smaller side:
    ``prob`` near 1 is also rounded to its dtype. The rounding of the input is not in it: a float32
    matrix is known to about 1e-7 an entry, so where it is within that of a singular one the answer is
    the singular one's, which can differ by the square root of that. A call cannot be interrupted from
    the keyboard; ``max_points`` bounds it.

    ``method="mendell_elston"`` conditions on one variable after another keeping its limits, the least
    probable next first, and takes what is left as normal with the moments that it then has. It is
    float64 inside, deterministic, has no part for ``abs_tol`` and ``seed`` and refuses ``rel_tol``,
    ``log_tol``, ``max_points`` and ``compute_dtype=torch.float32``. ``error`` and ``log_error`` are NaN and the
    status is ``APPROXIMATE``, but where at most one interval is left, which is ``EXACT``. Nothing
    bounds the error: on classifier problems of 9 to 199 variables it was .003 to .004 on average and
    at most .02 (``bench/results/mendell_elston.csv``); it grows with correlation (two variables of -.9: .023;
    multiples of each other but for 1e-14 to 1e-7: .04 for 2e-8, of opposite signs, or .64 for .69)
    and, in log p, in the tails (99 variables, log p = -90: 8). log p is a sum of logarithms and 1 - p
    is -expm1 of it, so either tail has all digits of the approximation. Multiples of a variable
    narrow its interval and leave; a covariance that is singular otherwise needs nothing, and an
    indefinite one is noticed only where a pair or a pivot shows it. Variables that cannot move log p
    are left out. Cost: ``O(n^3 / 6)`` multiply-adds, ``n_points`` is 0. Its derivatives, of
    ``log_prob`` too, are those of the approximation with its order held, once, and
    take two to three times the value's work; ties of multiples share, as below. It changes every entry of
    the covariance, so a ``factor`` is multiplied out for it.

    Cost: for a row with m active variables of which k are sampled, ``O(m k^2)`` for the factorisation
    (with ``factor`` ``O(m r k)``) and ``O(m k)`` per point; memory ``O(m k)`` per thread (with
    ``factor`` ``O(m (k + r))``).

    Gradients: ``prob``, ``complement`` and ``log_prob`` are differentiable, twice (below), to upper, lower,
    mean, factor and cov (taken as symmetric: entries (i, j) and (j, i) get half each), in one of two ways.
    Errors are in units of the standard deviations. Forward mode (``torch.func.jvp``, ``jacfwd``, dual
    numbers) takes the same slopes times the tangents, and ``jacfwd`` computes them once for all directions.

    - Densities times conditional probabilities, which this function computes with the tolerances,
      method, max_points and compute_dtype given. A slope's error is its density (at most .4, for a pair
      of variables ``.16 / sqrt(1 - R_ij^2)``) times the tolerance. It is more where points run out, and
      nothing says so: a row's limits together, and its pairs together, take at most 3 times the points
      that the value took, or 512 each (4,096 where a relative tolerance asks for digits of a tail). Those
      of an exact row of one factor are exact too (slopes to its cov as a rule one quadrature for all pairs), or take
      what their tolerance asks for. A row of exact and sampled blocks is differentiated as the product of both parts, unless p is near 1 and digits of
      1 - p are asked for. Those of ``log_prob`` are formed in logarithms, so p itself may have
      underflowed. Where p is near 1 and its complement's digits are asked for, each slope has the
      relative tolerance itself, and the problems keep only the variables that can move it by a
      twentieth of that.
    - Pathwise: the derivative of the sampled sum, its points held fixed. Slopes to limits and mean stop
      where the largest of their 99 % bounds, by the spread over the 8 shifts, is within ``abs_tol`` or
      ``rel_tol`` times the largest of them, or at the value's points. Where
      variables were completed (``n_pivots < n_active``) their dependence given the pivots is left out,
      as in the value, and the bound does not cover that. Where p < .05 and its digits are asked for,
      the samples are tilted and give slopes of ``log_prob``, the tilt held fixed: sums of the weights'
      derivatives over sums of the weights, which are known better than p is.

    A row takes the second way where its digits are those of a small p, and where the first would cost
    more than about half of the value's points; the first where p is near 1 and digits of 1 - p are asked for,
    and where ``n_points`` is 0.

    Of a row that takes the second way, slopes to limits whose own bound is then above the tolerance are taken
    the first way, and so are those of variables that others nearly decide, and of these others: with L the
    sampler's Cholesky factor of the correlation, X_i and pivot k where ``|L_ik|`` is ten times the standard
    deviation that X_i keeps given the pivots before it, or more, and more than a 400th of the points times it.
    That is a step in the integrand, which few points meet, so that pathwise slopes and their spread may miss it
    alike. Each of these conditional probabilities may
    take 4,096 points where 3 times the value's together are less. Where one is not known to the tolerance either,
    the slope of the smaller bound counts; at a step not the samples' where it is beyond the probability's bound.
    Nothing says that this came to pass.

    For cov and factor the second way takes the samples of one conditional problem a limit, X_i = u_i: their slopes
    to the other limits, times the density of X_i, are those to R_ij (some 512 points each at first, then as many as
    the tolerance asks for, together at most 3 times the value's, or 4,096 each). Where the value took less than 512
    points for each limit, or tilted ones, its own samples' slopes to cov come first, for which every variable is
    sampled, but for pairs with a variable at such a step. Either keeps the entries whose 99 % bound is within the
    larger of ``abs_tol`` (of the value's samples: or ``.16 / sqrt(1 - R_ij^2)`` times it) and ``rel_tol`` times
    the largest; the others are conditional probabilities, and so are all pairs of a row of four directions or
    fewer, with variables that are multiples of each other, or that another leaves less than 1e-2 of their
    variance or up to 63 before them less than 1e-3, but for none (a step that few points do not meet), and where
    p is near 1 and digits of
    1 - p are asked for. A ``factor`` of as many columns as variables or more takes the slopes to its
    covariance, where that is positive definite (each variable keeps more than 1e-6 of its variance given those
    before it).

    Up to four variables slopes are closed forms (entries of cov off the diagonal: up to five). For
    more, slopes whose density is below a tenth of the tolerance, divided by the number of variables,
    are zero: ask for ``rel_tol`` in the tails. Cost: to limits and mean at most about three times the
    value (a pathwise point costs 1.5 to 2 of the value's), or five where conditional probabilities follow, which
    take 4,096 points each for it where the value took few, beside about a millisecond (two to four with
    cov) that a call takes whatever its rows, which is most of it for a few rows of 20 variables and less;
    to cov 4 to 9 times the value at 49 to 199 variables (``bench/bench_mvn_cdf_grad.py``), and hundreds of
    times where a call is taken for each pair.
    What is computed is what requires grad: ``torch.autograd.grad(p, upper)`` pays for cov too where cov
    does, since torch does not say which inputs are wanted; detach it there. The backward depends on row
    and seed as the value does; on CUDA it waits for the device.

    Edges of the gradients: NaN rows have NaN ones, where the row's cotangent is not zero. Infinite
    limits, variables of zero variance (steps) and limits that contain nothing have zero. At a singular
    cov they are one-sided: right in directions that stay positive semidefinite, as all do that a factor
    of cov can take. Variables that are multiples of each other and whose limits meet share the slope
    of a minimum equally; their common entry of cov, where the derivative is infinite, gets zero, which
    is right where they stay multiples and a subgradient to a factor. The gradient to ``factor`` is
    made of the same slopes, of r < n columns without an ``[n, n]``; it is two-sided where cov is singular.

    Second derivatives (``create_graph=True`` and once more, ``torch.func.hessian``, ``jacrev`` of
    ``jacrev``, mapped too) are densities of one and two limits times conditional probabilities, and the
    slopes of these, whichever way the row's gradient takes. Each conditional probability has the tolerance
    asked for and takes what points it needs, up to ``max_points``, where nothing says so; its slopes are as
    above. So an error is the tolerance times a density of two limits, ``.16 / sqrt(1 - R_ij^2)`` at most,
    for second derivatives to limits and mean, to cov those of three and four, summed over the variables
    (in units of the standard deviations, and times the limits, as the formulas have them); those of
    ``log_prob`` divide it by p,
    or are differences of terms of the size of the slopes' products, each known to ``rel_tol``: at p = 1e-30
    with terms of 80 and a difference of .6, a ``rel_tol`` of 1e-3 left 1 %. Up to four variables they are
    closed forms (at four those of ``log_prob`` are over a p that is sampled). For more, densities below a
    hundredth of the tolerance, divided by the number of variables, are skipped.

    Of a sampled row of more than twelve variables those to limits and mean are slopes of conditional
    problems' samples, one problem a limit, to 99 % bounds of .16 times ``abs_tol``, or of ``rel_tol`` times
    the largest, where cov is positive definite and leaves each variable as much as that, and p is not near 1
    with digits of 1 - p asked for.
    Otherwise products with a vector cost ``n (n - 1) / 2`` conditional problems (four times as many with
    ``lower``), all in one call; a Hessian twice that. A Hessian is symmetric but for its errors, of pairs but
    for last bits. At few variables it is what a
    call takes, up to some dozens of rows: 6 to 10 milliseconds for a Hessian; of 16 problems mapped in one
    call each takes about one (``bench/bench_mvn_cdf_hvp.py``). Where cov takes part each problem is
    differentiated, too, to limits and cov. To a factor they go by its covariance, ``[n, n]``. At a singular
    cov they are one-sided as the gradients are; where limits of multiples meet (within what rounding of cov
    may move them), or those of variables that are multiples given one or two others, there are none, and
    the row is NaN. Third derivatives are refused.

    Sources: Genz (1992), J. Comput. Graph. Stat. 1(2) (separation of variables); Gibson, Glasbey and
    Elston (1994) (order); Hickernell (2002) (tent-transformed lattices); Cools, Kuo and Nuyens
    (2006), SIAM J. Sci. Comput. 28 (embedded lattices); Joe and Kuo (2008), SIAM J. Sci. Comput. 30
    (Sobol's direction numbers); Owen (1995), Burley (2020) (their scrambling); Genz (2004), Stat. Comput.
    14 (n = 2 and 3); Dunnett and Sobel (1955), Biometrika 42 (one factor); Botev (2017), J. R. Stat.
    Soc. B 79 (tilt); Owen, Maximov and Chertkov (2019), Electron. J. Stat. 13 (union); Mendell and
    Elston (1974), Biometrics 30 (moment matching); Plackett (1954), Biometrika 41 (gradient to cov).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
        NotImplementedError: a tensor is on a device without kernels; a third derivative, or a second one
            of ``method="mendell_elston"``; ``check`` looks at a covariance that vmap maps.
        torch.OutOfMemoryError: memory does not hold the results or a row's workspace, on a CPU too.
    """
    tolerances = {"abs_tol": abs_tol, "rel_tol": rel_tol, "log_tol": log_tol}
    _check_options(tolerances, max_points, method, compute_dtype, points)
    batch = check_problem("mvn_cdf", upper, cov, factor, lower, mean, gradients=True)
    seed = _check_seed(seed, batch, upper.device)
    if check:
        _check_covariance(cov) if factor is None else _check_factor(factor)
    rows = batch.numel()
    upper, matrix, lower = as_rows(batch, upper, cov if factor is None else factor, lower, mean)
    if method == "mendell_elston":
        matrix = matrix if factor is None else gram(matrix)
        result = _result(_mendell_elston.rows(upper, matrix, lower), batch)
        _warn(result)
        return result if return_info else result.prob
    try:
        out = _mvn_cdf_grad.call(
            upper,
            matrix,
            lower,
            seed.expand(batch).reshape(rows),
            float(abs_tol),
            float(rel_tol),
            DEFAULT_MAX_POINTS if max_points is None else int(max_points),
            method,
            COMPUTE_DTYPES[compute_dtype],
            points,
            factor is not None,
            float(log_tol),
        )
    except RuntimeError as error:
        if "mvn_cdf: method must be" in str(error):  # found out row by row
            raise ValueError(str(error)) from None
        raise
    result = _result(out, batch)
    _warn(result)
    return result if return_info else result.prob


def _result(out: tuple[Tensor, ...], batch: torch.Size) -> MVNResult:
    prob, complement, error, status, n_points, n_active, n_pivots, log_prob, log_error = (
        t.reshape(batch) for t in out
    )
    return MVNResult(
        prob, complement, log_prob, error, log_error, status, n_points, n_active, n_pivots
    )


def _warn(result: MVNResult) -> None:
    if torch.compiler.is_compiling() or result.status.device.type != "cpu":
        return  # reading the status would break the graph or synchronise the device
    if isinstance(result.status, FakeTensor):
        return  # a rule of vmap within a graph, where torch 2.10 does not say that it compiles
    for status, text in (
        (Status.MAX_POINTS, "spent max_points before they met their tolerance; see their error"),
        (Status.INDEFINITE, "have an indefinite covariance and are NaN"),
    ):
        try:
            count = int((result.status == status).sum())
        except RuntimeError:
            return  # inside vmap, which warns itself (_vmap.py), or a tensor without values
        if count:
            warn_caller(f"mvn_cdf: {count} of {result.status.numel()} rows {text}")


def _check_options(tolerances, max_points, method, compute_dtype, points) -> None:
    for name, value in tolerances.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"mvn_cdf: {name} must be a number, got {type(value).__name__}")
        if not 0 <= value < float("inf"):
            raise ValueError(f"mvn_cdf: {name} must be finite and not negative, got {value}")
    if max_points is not None:
        if isinstance(max_points, bool) or not isinstance(max_points, int):
            raise TypeError(
                f"mvn_cdf: max_points must be an int or None, got {type(max_points).__name__}"
            )
        if not 512 <= max_points <= 8 * 2**31:
            raise ValueError(
                f"mvn_cdf: max_points must be between 512 and {8 * 2**31}, got {max_points}"
            )
    if method not in METHODS:
        raise ValueError(f"mvn_cdf: method must be one of {', '.join(METHODS)}, got {method!r}")
    if compute_dtype not in COMPUTE_DTYPES:
        raise ValueError(
            "mvn_cdf: compute_dtype must be None, torch.float32 or torch.float64, "
            f"got {compute_dtype!r}"
        )
    if points not in POINTS:
        raise ValueError(f"mvn_cdf: points must be one of {', '.join(POINTS)}, got {points!r}")
    if method == "mendell_elston":
        # What it cannot honour; abs_tol and seed it only does not need.
        for name, value, taken in (
            ("rel_tol", tolerances["rel_tol"], 0),
            ("log_tol", tolerances["log_tol"], 0),
            ("max_points", max_points, None),
            ("compute_dtype", compute_dtype, (None, torch.float64)),
        ):
            if value not in (taken if isinstance(taken, tuple) else (taken,)):
                raise ValueError(
                    f"mvn_cdf: {name} must be left out with method mendell_elston, got {value}"
                )


def check_problem(op: str, upper, cov, factor, lower, mean, *, gradients: bool) -> torch.Size:
    """Raises for a bad tensor of a call of ``op``; returns the batch shape."""
    if (cov is None) == (factor is None):
        got = "neither" if cov is None else "both"
        raise ValueError(f"{op}: one of cov and factor must be given, got {got}")
    given = {"upper": upper, "cov": cov, "factor": factor, "lower": lower, "mean": mean}
    named = {name: t for name, t in given.items() if t is not None or name == "upper"}
    check_alike(op, named, gradients=gradients)
    if upper.dim() < 1:
        raise ValueError(f"{op}: upper must have shape [..., n], got []")
    n = upper.shape[-1]
    if cov is not None and (cov.dim() < 2 or cov.shape[-1] != n or cov.shape[-2] != n):
        raise ValueError(f"{op}: cov must have shape [..., {n}, {n}], got {list(cov.shape)}")
    if factor is not None and (factor.dim() < 2 or factor.shape[-2] != n):
        raise ValueError(f"{op}: factor must have shape [..., {n}, r], got {list(factor.shape)}")
    for name in ("lower", "mean"):
        t = named.get(name)
        if t is not None and (t.dim() < 1 or t.shape[-1] != n):
            raise ValueError(f"{op}: {name} must have shape [..., {n}], got {list(t.shape)}")
    shapes = [
        (name, t.shape[: -2 if name in ("cov", "factor") else -1]) for name, t in named.items()
    ]
    batch = torch.Size()
    for name, shape in shapes:
        joined = _broadcast(batch, shape)
        if joined is None:
            raise ValueError(
                f"{op}: {name} must have batch dimensions that broadcast with {list(batch)}, "
                f"got {list(shape)}"
            )
        batch = joined
    if upper.device.type == "cuda" and _load.cuda_unavailable:
        raise NotImplementedError(
            f"{op}: upper must be on the CPU, got {upper.device}: {_load.cuda_unavailable}"
        )
    if upper.device.type not in ("cpu", "cuda", "meta"):
        raise NotImplementedError(
            f"{op}: upper must be on the CPU or a CUDA device, got {upper.device}"
        )
    return batch


def as_rows(
    batch: torch.Size, upper: Tensor, matrix: Tensor, lower: Tensor | None, mean: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``upper [B, n]``, ``matrix [B, n, ...]`` and ``lower [B, n]`` about a mean of zero; a matrix that
    all rows share is not copied."""
    n = upper.shape[-1]
    if mean is not None:
        upper = upper - mean
        lower = None if lower is None else lower - mean
    # An explicit size for the rows: -1 cannot be inferred when n = 0.
    rows = batch.numel()
    upper = upper.expand(*batch, n).reshape(rows, n)
    lower = None if lower is None else lower.expand(*batch, n).reshape(rows, n)
    size = matrix.shape[-2:]
    if matrix.shape[:-2].numel() == 1:
        return upper, matrix.reshape(1, *size).expand(rows, *size), lower
    return upper, matrix.expand(*batch, *size).reshape(rows, *size), lower


def _broadcast(a: torch.Size, b: torch.Size) -> torch.Size | None:
    """The common shape, or None. (torch.broadcast_shapes imports for half a second at first use.)"""
    length = max(len(a), len(b))
    a, b = (1,) * (length - len(a)) + tuple(a), (1,) * (length - len(b)) + tuple(b)
    if any(i != j and i != 1 and j != 1 for i, j in zip(a, b, strict=True)):
        return None
    return torch.Size(j if i == 1 else i for i, j in zip(a, b, strict=True))


def _check_seed(seed, batch: torch.Size, device: torch.device) -> Tensor:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"mvn_cdf: seed must be an int or an int64 tensor, got {seed.dtype}")
        if seed.device != device:
            raise ValueError(f"mvn_cdf: seed must be on the device of upper, got {seed.device}")
        try:
            return seed.expand(batch)
        except RuntimeError:
            raise ValueError(
                f"mvn_cdf: seed must broadcast to {list(batch)}, got {list(seed.shape)}"
            ) from None
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(
            f"mvn_cdf: seed must be an int or an int64 tensor, got {type(seed).__name__}"
        )
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"mvn_cdf: seed must fit 64 bits, got {seed}")
    return torch.full((), int(seed), dtype=torch.int64, device=device)


def _check_covariance(cov: Tensor) -> None:
    """Raises for the first matrix that is not finite, symmetric and positive semidefinite."""
    n = cov.shape[-1]
    flat = cov.reshape(cov.shape[:-2].numel(), n, n).double()
    if flat.numel() == 0:
        return
    # Entries of the size of the largest variance carry rounding of the input's dtype.
    tolerance = 8 * n**0.5 * torch.finfo(cov.dtype).eps
    scale = (
        flat.diagonal(dim1=-2, dim2=-1).abs().amax(-1).clamp_min(torch.finfo(torch.float64).tiny)
    )
    finite = _finite(flat)
    asymmetry = (flat - flat.mT).abs().amax((-2, -1)) / scale
    for row in range(flat.shape[0]):
        if not finite[row]:
            raise ValueError(f"mvn_cdf: cov must be finite, got row {row} with inf or NaN")
        if asymmetry[row] > tolerance:
            raise ValueError(
                f"mvn_cdf: cov must be symmetric, got row {row} with a relative asymmetry of "
                f"{asymmetry[row]:.3g}"
            )
        smallest = torch.linalg.eigvalsh(flat[row])[0] / scale[row]
        if smallest < -tolerance:
            raise ValueError(
                f"mvn_cdf: cov must be positive semidefinite, got row {row} with a smallest "
                f"relative eigenvalue of {smallest:.3g}"
            )


def _check_factor(factor: Tensor) -> None:
    """Raises for the first matrix that is not finite."""
    flat = factor.reshape(factor.shape[:-2].numel(), *factor.shape[-2:])
    bad = (~_finite(flat)).nonzero()
    if len(bad):
        raise ValueError(f"mvn_cdf: factor must be finite, got row {int(bad[0])} with inf or NaN")


def gram(factor: Tensor) -> Tensor:
    """``factor @ factor.mT`` in the dtype of ``factor``, whatever autocast says."""
    device = factor.device.type
    if not torch.amp.is_autocast_available(device):
        return factor @ factor.mT
    with torch.autocast(device, enabled=False):
        return factor @ factor.mT


def _finite(matrices: Tensor) -> Tensor:
    """Whether each of ``[B, n, r]`` is finite, as a tensor that can be looked at."""
    finite = matrices.isfinite().flatten(1).all(1)
    try:
        finite.all().item()
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        raise NotImplementedError(
            "mvn_cdf: check must be False inside vmap, got True (a map cannot look at its values)"
        ) from None
    return finite


@torch.library.register_fake("mvnrob::mvn_cdf")
def _(
    upper, cov, lower, seed, abs_tol, rel_tol, max_points, method, compute_dtype, points,
    factored=False, log_tol=0.0,
):  # fmt: skip
    torch._check(upper.dim() == 2, lambda: "mvn_cdf: upper must have shape [B, n]")
    torch._check(cov.dim() == 3, lambda: "mvn_cdf: cov must have shape [B, n, n]")

    def real():
        return upper.new_empty(upper.shape[0])

    def integer():
        return upper.new_empty(upper.shape[0], dtype=torch.int64)

    return real(), real(), real(), integer(), integer(), integer(), integer(), real(), real()


# torch.ops.mvnrob.mvn_cdf_sums serves tests and benchmarks: it samples a plan that the caller gives,
# so that backends and dtypes can be compared sum by sum, and timed at a known amount of work. The
# pivots are exactly order [B, k], in this order; the other variables complete, those with no variance
# left bound their pivot. Nothing is screened or skipped. It returns float64 [B, 8, 5]: for each shift
# the sums over its n_points (a multiple of 64) of the integrand f, of 1 - f, of how far the truth may
# lie below f and above it, and of f^2. A row is NaN when one of its pivots has no variance left at
# its turn, or when mvn_cdf would answer it without an integral (a NaN, a variance that is not
# positive, limits that contain nothing).
@torch.library.register_fake("mvnrob::mvn_cdf_sums")
def _(upper, cov, lower, seed, order, n_points, compute_dtype, points="lattice", factored=False):
    torch._check(upper.dim() == 2, lambda: "mvn_cdf_sums: upper must have shape [B, n]")
    torch._check(order.dim() == 2, lambda: "mvn_cdf_sums: order must have shape [B, k]")
    return upper.new_empty(upper.shape[0], 8, 5, dtype=torch.float64)


# torch.ops.mvnrob.mvn_cdf_pathwise differentiates what mvn_cdf_sums samples, with the points, the
# pivots and their groups held fixed, so that both are one smooth function of limits and covariance.
# order [B, k] names a row's pivots, or is -1 for those that mvn_cdf would take in turn; -2 ends it.
# Variables without limits are left out then. first and count [B] are of each shift and multiples of
# 64. All float64: the sums of the integrand [B, 8], their derivatives to upper and lower [B, 8, n],
# and that of sum_s weight[b, s] value[b, s] to cov [B, n, n] (symmetric: half to each of a pair; empty
# where not wanted) with the square of each entry's standard error over the shifts; the number of pivots
# found, int64 [B]; and log_unit [B]. Where factored, cov is a factor [B, n, r], and only limits have
# slopes. With tilt [B, k] pivot j is drawn from N(tilt_j, 1) within its limits (csrc/plan/tilt.h),
# which is held fixed too; a row whose first number is NaN takes the saddle point, as mvn_cdf does, or
# where it has none 0; values and slopes are in units of exp(log_unit), which is 0 without a tilt. Rows
# that complete are not tilted. Tilted samples are float64. NaN rows as in mvn_cdf_sums. A tile of 64 samples is recomputed and reversed at
# a time: memory O(64 (n + 7 k)) a thread, and O(n k) for cov (CUDA: O(64 n) a block, and 64 n k bytes
# a row for cov). CUDA does not look at order, first and count: an order that cannot be followed is NaN.
@torch.library.register_fake("mvnrob::mvn_cdf_pathwise")
def _(
    upper, cov, lower, seed, order, first, count, weight, compute_dtype, wants_cov, points="lattice",
    factored=False, tilt=None,
):  # fmt: skip
    torch._check(upper.dim() == 2, lambda: "mvn_cdf_pathwise: upper must have shape [B, n]")
    batch, n = upper.shape

    def real(*shape):
        return upper.new_empty(shape, dtype=torch.float64)

    return (
        real(batch, 8), real(batch, 8, n), real(batch, 8, n),
        *(real(batch, n, n) if wants_cov else real(0) for _ in range(2)),
        upper.new_empty(batch, dtype=torch.int64),
        real(batch),
    )  # fmt: skip


def _save_sums(ctx, inputs, output) -> None:
    upper, cov, lower, seed, order, n_points, compute_dtype, points, factored = inputs
    ctx.save_for_backward(upper, cov, lower, seed, order)
    ctx.options = n_points, compute_dtype, points, factored


def _sums_backward(ctx, grad):
    """Of f and 1 - f by mvn_cdf_pathwise, in float64 or float32 as they were summed."""
    if bool((grad[..., 2:] != 0).any()):
        raise NotImplementedError(
            "mvn_cdf_sums: gradients are built for the sums of f and of 1 - f, not for the others"
        )
    upper, cov, lower, seed, order = ctx.saved_tensors
    n_points, compute_dtype, points, factored = ctx.options
    if factored:
        raise NotImplementedError(
            "mvn_cdf_sums: gradients are built for covariances, not for factors"
        )
    count = torch.full_like(seed, n_points)
    weight = (grad[..., 0] - grad[..., 1]).contiguous()
    _, to_upper, to_lower, to_cov, *_ = _ops.call(
        "mvn_cdf_pathwise",
        upper, cov, lower, seed, order, torch.zeros_like(seed), count, weight, compute_dtype,
        ctx.needs_input_grad[1], points,
    )  # fmt: skip
    to_upper, to_lower = (
        (weight[..., None] * t).sum(1).to(upper.dtype) for t in (to_upper, to_lower)
    )
    return (
        to_upper if ctx.needs_input_grad[0] else None,
        to_cov.to(upper.dtype) if ctx.needs_input_grad[1] else None,
        to_lower if ctx.needs_input_grad[2] else None,
        *[None] * 6,
    )


torch.library.register_autograd("mvnrob::mvn_cdf_sums", _sums_backward, setup_context=_save_sums)
# Without it a second derivative of the sums would lack their part, and nothing would say so.
torch.library.register_autograd(
    "mvnrob::mvn_cdf_pathwise",
    refuse("mvn_cdf_pathwise: derivatives of slopes are not built; those of mvn_cdf_sums are, "
           "without create_graph"),
)  # fmt: skip


def mvn_cdf_reference(
    upper: Tensor,
    cov: Tensor,
    *,
    lower: Tensor | None = None,
    mean: Tensor | None = None,
    n_points: int = 4096,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The same probability in plain float64 PyTorch, obvious rather than fast: for the tests.

    Separation of variables (Genz 1992) in the given order, 8 independently shifted and tent
    transformed Richtmyer lattices of ``n_points`` each. ``upper``, ``lower``, ``mean`` ``[..., n]``
    and ``cov`` ``[..., n, n]`` as in :func:`mvn_cdf`, positive definite. Returns the estimate and
    its standard error over the shifts, each ``[...]``. Cost ``O(8 n_points n^2)`` per row.
    """
    upper, cov = upper.double(), cov.double()
    lower = torch.full_like(upper, -torch.inf) if lower is None else lower.double()
    if mean is not None:
        upper, lower = upper - mean.double(), lower - mean.double()
    n = upper.shape[-1]
    batch = torch.broadcast_shapes(upper.shape[:-1], lower.shape[:-1], cov.shape[:-2])
    if n == 0:
        return torch.ones(batch).double(), torch.zeros(batch).double()
    factor = torch.linalg.cholesky(cov).expand(*batch, n, n)
    generator = torch.Generator().manual_seed(seed)
    shift = torch.rand(8, 1, n, generator=generator, dtype=torch.float64)
    primes = torch.tensor(_first_primes(n), dtype=torch.float64)
    k = torch.arange(n_points, dtype=torch.float64)[:, None]
    w = 1 - (2 * ((k * primes.sqrt() + shift) % 1) - 1).abs()  # [8, n_points, n]
    w = w.clamp(1e-16, 1 - 1e-16)
    f = torch.ones(*batch, 8, n_points, dtype=torch.float64)
    ys: list[Tensor] = []
    for i in range(n):
        row = factor[..., i, :, None, None]
        known = sum((row[..., j, :, :] * y for j, y in enumerate(ys)), torch.zeros_like(f))
        diagonal = row[..., i, :, :]
        high = _phi((upper.expand(*batch, n)[..., i, None, None] - known) / diagonal)
        low = _phi((lower.expand(*batch, n)[..., i, None, None] - known) / diagonal)
        probability = (high - low).clamp_min(0)
        f = f * probability
        ys.append(torch.special.ndtri((low + w[..., i] * probability).clamp(1e-300, 1 - 1e-16)))
    means = f.mean(-1)
    return means.mean(-1), means.std(-1) / 8**0.5


def _phi(x: Tensor) -> Tensor:
    # torch.special.ndtr is 0 below about -8.3; erfc keeps its digits.
    return 0.5 * torch.erfc(-x * 0.5**0.5)


def _first_primes(n: int) -> list[int]:
    primes: list[int] = []
    candidate = 2
    while len(primes) < n:
        if all(candidate % p for p in primes if p * p <= candidate):
            primes.append(candidate)
        candidate += 1
    return primes
