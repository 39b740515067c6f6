"""The factor that ``mvn_cdf`` samples from: ``pivoted_cholesky``, its fake kernel, its reference."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import _ops
from ._autograd import refuse
from ._checks import warn_caller
from ._mvn_cdf import Status, as_rows, check_problem


class PivotedCholesky(NamedTuple):
    """What :func:`pivoted_cholesky` returns: ``cov = factor @ factor.mT`` but for the residual. Both have
    the dtype of the limits.

    - ``factor``: ``[..., n, k]``, variables as in the input; columns from ``rank`` on are zero. Its rows
      taken in ``order`` are lower triangular with a positive diagonal.
    - ``order``: ``[..., n]`` int64, every variable once: the pivots in turn, then the others.
    - ``rank``: ``[...]`` int64, pivots found, at most k.
    - ``residual``: ``[..., n]``, the diagonal of ``cov - factor @ factor.mT`` in units of ``cov``: each
      variable's variance given the pivots, 0 for these. One within rounding may be negative. What is
      left off the diagonal is at most the root of two of them.
    - ``status``: ``[...]`` int64, the numbers of :class:`mvnrob.Status`.
    """

    factor: Tensor
    order: Tensor
    rank: Tensor
    residual: Tensor
    status: Tensor


def pivoted_cholesky(
    upper: Tensor,
    cov: Tensor | None = None,
    *,
    factor: Tensor | None = None,
    lower: Tensor | None = None,
    mean: Tensor | None = None,
    rank: int | None = None,
) -> PivotedCholesky:
    r"""Partial Cholesky factor of a covariance, the variable least likely to keep its limits first.

    The order is that of :func:`mvnrob.mvn_cdf` (Gibson, Glasbey and Elston 1994): with y_1, ..., y_j
    the expected values of the pivots before, each within its limits, the next pivot is the variable of
    the smallest probability of keeping its own; of equal ones the first in the input. Without a
    finite lower limit in the row that is the variable with the smallest standardised limit. There
    is no jitter, and singular covariances are the normal case: a variable that the pivots leave no
    variance beyond rounding becomes no pivot.

    Args:
        upper: upper limits ``[..., n]``, float32 or float64; variables with ``+inf`` come last.
        cov: covariances ``[..., n, n]`` of any scale, same dtype; symmetric and positive
            semidefinite. Of each pair of off-diagonal entries only one is read. What counts as zero is
            decided by the rounding of the dtype, and by float32's in float64 matrices that turn
            out indefinite by no more than that.
        factor: in place of ``cov`` a factor ``[..., n, r]`` of it, ``cov = factor @ factor.mT``, any r:
            its rows are orthogonalised, and what counts as zero is a standard deviation within rounding.
        lower: lower limits ``[..., n]``; none means minus infinity.
        mean: means ``[..., n]``; none means zero.
        rank: most columns, k = min(rank, n) (with ``factor`` at most r); None goes on to the end.

    Batch dimensions broadcast; a covariance shared by the batch is not copied. Computed in float64
    whatever the dtype. A row depends on itself alone, not on the batch or the number of threads.

    ``status`` is ``EXACT`` where nothing is left beyond rounding (``rank`` is then the numerical
    rank), ``TRUNCATED`` where k columns leave variance, ``INDEFINITE`` where a variance given the pivots
    is negative beyond rounding, with one warning (the CPU's; a GPU does not wait to know), and
    ``NAN_INPUT`` where a limit, a variance or an entry that is read is NaN, a variance is infinite, or
    limits contain nothing (``lower > upper``, ``upper = -inf``, ``lower = +inf``), which leaves the
    order without a meaning. Factor and residual of the last two are NaN, their rank is 0. A variable of
    zero variance is no pivot. The order looks at probabilities, not for large variances as LAPACK's
    ``pstrf`` does: pivots that are nearly dependent amplify the rounding of the entries, and what that
    makes of variances that should be zero stands in ``residual``. Of 200 variables of rank 30 it is
    1e-15 of the variance with limits of 1.5 standard deviations and more, but with limits about the mean
    some 1e-5 in the median and the whole variance at worst. Where a factor is known, ``factor`` has no such
    loss. A partial factor reads the columns of its pivots only and may not meet what makes a matrix
    indefinite.

    Cost: ``O(n k^2)`` a row (with ``factor`` ``O(n r k)``), a row a thread; memory ``O(n k)`` a thread.
    On CUDA tensors the call returns without waiting for the device, a row a block, and takes
    ``8 n k`` bytes a row beside the result, at most 8 GiB at a time. It works under
    ``torch.func.vmap`` and ``torch.compile``. The pivots depend on the input in steps, so there is
    no gradient.

    Sources: Gibson, Glasbey and Elston (1994), Adv. Appl. Probab. 26 (order); Higham (2002),
    Accuracy and Stability of Numerical Algorithms, 10.3 (semidefinite matrices); Genz and Bretz
    (2009), Computation of Multivariate Normal and t Probabilities, 4.1.3.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
        NotImplementedError: a tensor requires grad, or is on a device without kernels.
        torch.OutOfMemoryError: memory does not hold the results or a row's workspace, on a CPU too.
    """
    batch = check_problem("pivoted_cholesky", upper, cov, factor, lower, mean, gradients=False)
    matrix = cov if factor is None else factor
    columns = min(upper.shape[-1], matrix.shape[-1])
    if rank is not None:
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise TypeError(
                f"pivoted_cholesky: rank must be an int or None, got {type(rank).__name__}"
            )
        if rank < 1:
            raise ValueError(f"pivoted_cholesky: rank must be at least 1, got {rank}")
        columns = min(columns, rank)
    upper, matrix, lower = as_rows(batch, upper, matrix, lower, mean)
    out = _ops.call("pivoted_cholesky", upper, matrix, lower, columns, factor is not None)
    result = PivotedCholesky(*(t.reshape((*batch, *t.shape[1:])) for t in out))
    _warn(result.status)
    return result


def _warn(status: Tensor) -> None:
    if torch.compiler.is_compiling() or status.device.type != "cpu":
        return  # reading the status would break the graph or synchronise the device
    try:
        count = int((status == Status.INDEFINITE).sum())
    except RuntimeError:
        return  # inside vmap
    if count:
        warn_caller(
            f"pivoted_cholesky: {count} of {status.numel()} rows have an indefinite covariance and "
            "are NaN"
        )


@torch.library.register_fake("mvnrob::pivoted_cholesky")
def _(upper, cov, lower, columns, factored=False):
    torch._check(upper.dim() == 2, lambda: "pivoted_cholesky: upper must have shape [B, n]")
    batch, n = upper.shape

    def integer(*shape):
        return upper.new_empty(shape, dtype=torch.int64)

    return (
        upper.new_empty(batch, n, columns), integer(batch, n), integer(batch),
        upper.new_empty(batch, n), integer(batch),
    )  # fmt: skip


# What calls torch.ops itself is told, too.
torch.library.register_autograd(
    "mvnrob::pivoted_cholesky",
    refuse("pivoted_cholesky: gradients are not built; the pivots depend on the input in steps"),
)


def pivoted_cholesky_reference(
    upper: Tensor,
    cov: Tensor,
    *,
    lower: Tensor | None = None,
    rank: int | None = None,
    tol: float = 1e-10,
) -> tuple[Tensor, list[int], Tensor]:
    """Factor ``[n, k]``, pivots and residual ``[n]`` of one row in plain float64 PyTorch: for the tests.

    Right-looking, of the covariance itself: after each pivot the whole matrix is that of the variables
    given the pivots. A variable leaves when its variance is below ``tol`` times what it was. ``upper``,
    ``lower`` ``[n]``, ``cov`` ``[n, n]``. Cost ``O(k n^2)``.
    """
    rest, n = cov.double().clone(), len(upper)
    variances = rest.diagonal().clone()
    mean = torch.zeros(n, dtype=torch.float64)
    lower = torch.full((n,), -math.inf) if lower is None else lower
    upper, lower = upper.double(), lower.double()
    rectangular = bool((lower > -math.inf).any())
    pivots: list[int] = []
    columns: list[Tensor] = []
    while len(pivots) < (n if rank is None else rank):
        left = [i for i in range(n) if i not in pivots and rest[i, i] > tol * variances[i]]
        if not left:
            break
        sd = rest.diagonal().clamp_min(0).sqrt()
        a, b = (lower - mean) / sd, (upper - mean) / sd
        key = _phi(b) - _phi(a) if rectangular else b
        j = min(left, key=lambda i: (float(key[i]), i))
        mass = _phi(b[j]) - _phi(a[j])
        density = torch.exp(-0.5 * torch.stack([a[j], b[j]]) ** 2) / math.sqrt(2 * math.pi)
        column = rest[:, j] / sd[j]
        mean = mean + column * (density[0] - density[1]) / mass
        rest = rest - torch.outer(column, column)
        pivots.append(j)
        columns.append(column)
    made = torch.stack(columns, 1) if columns else torch.zeros(n, 0, dtype=torch.float64)
    return made, pivots, rest.diagonal()


def _phi(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x * 0.5**0.5)
