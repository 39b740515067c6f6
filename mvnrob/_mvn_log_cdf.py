"""Logarithms of multivariate normal probabilities: ``mvn_log_cdf``."""

from __future__ import annotations

from torch import Tensor

from ._mvn_cdf import MVNResult, mvn_cdf


def log_tolerances(
    method: str, rel_tol: float | None = None, log_tol: float | None = None
) -> dict[str, float]:
    """What log p asks of :func:`mvnrob.mvn_cdf`: digits of it unless an error is asked for, and unless the
    method knows none."""
    if rel_tol is None:
        rel_tol = 1e-3 if log_tol is None and method != "mendell_elston" else 0.0
    return {"abs_tol": 0.0, "rel_tol": rel_tol, "log_tol": 0.0 if log_tol is None else log_tol}


def mvn_log_cdf(
    upper: Tensor,
    cov: Tensor | None = None,
    *,
    factor: Tensor | None = None,
    lower: Tensor | None = None,
    mean: Tensor | None = None,
    rel_tol: float | None = None,
    log_tol: float | None = None,
    max_points: int | None = None,
    method: str = "auto",
    seed: int | Tensor = 0,
    points: str = "lattice",
    check: bool = False,
    return_info: bool = False,
) -> Tensor | MVNResult:
    r"""log P(lower <= X <= upper) for X ~ N(mean, cov) or N(mean, factor factor^T), right in either tail.

    Arguments, shapes and errors are those of :func:`mvnrob.mvn_cdf`. When a row is done is said by

    - ``rel_tol`` (1e-3 unless either is given; nothing for ``method="mendell_elston"``, which has none),
      relative to ``min(p, 1 - p)``: where p is small ``log_error`` is at most about that, and where p is
      near 1 log p, about ``-(1 - p)``, has that many digits, which takes long;
    - ``log_tol``: the error of p is at most that times p, and ``log_error`` about that (far below 1), wherever p
      is. What a likelihood adds up asks for no more: ``log_tol=1e-2`` or 1e-3.

    Where both are given, the first of them that is met counts. Returns ``[...]``, or :class:`mvnrob.MVNResult` with
    ``return_info=True``.

    Small p come from tilted samples (Botev 2017, J. R. Stat. Soc. B 79), whose weights are kept as
    logarithms: -6,000 in 99 dimensions is as good as -6. p near 1 come from samples of the union of
    the failures (Owen, Maximov and Chertkov 2019, Electron. J. Stat. 13). Both are float64 inside
    whatever the input. Where no saddle point of the tilt is found (limits whose rounding is not small)
    samples stay plain, and ``log_error``, then often infinite, and ``status`` say what they know. Limits
    that contradict each other by a singular covariance, or leave a sliver below rounding, have ``prob`` 0,
    as a rule at once and with ``error`` 0, and ``log_prob`` minus infinity with an infinite ``log_error``.

    Differentiable twice and in forward mode, as :func:`mvnrob.mvn_cdf` is, also where p itself is no
    number of the dtype: slopes to the limits are those of the tilted samples, within ``rel_tol`` of the
    largest of them at the value's points or before, or for p near 1 each within ``rel_tol`` of itself
    (with ``log_tol``, where p is .5 or more, within half of that absolutely).
    Cost: as :func:`mvnrob.mvn_cdf`; a tilted point about three times a plain one.

    Raises what :func:`mvnrob.mvn_cdf` does, in its name: TypeError and ValueError for a bad argument,
    NotImplementedError, torch.OutOfMemoryError.
    """
    result = mvn_cdf(
        upper,
        cov,
        factor=factor,
        lower=lower,
        mean=mean,
        **log_tolerances(method, rel_tol, log_tol),
        max_points=max_points,
        method=method,
        seed=seed,
        points=points,
        check=check,
        return_info=True,
    )
    return result if return_info else result.log_prob
