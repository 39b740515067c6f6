"""``MultivariateNormal`` of ``torch.distributions`` with a CDF, and with singular covariances."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.distribution import Distribution
from torch.distributions.utils import _standard_normal, lazy_property

from ._checks import check_tensor
from ._mvn_cdf import MVNResult, gram, mvn_cdf
from ._mvn_log_cdf import log_tolerances

__all__ = ["MultivariateNormal"]


class MultivariateNormal(torch.distributions.MultivariateNormal):
    """The normal distribution of ``torch.distributions``, with ``cdf``, ``log_cdf``, ``rectangle``.

    Constructor, validation and the other methods are those of
    :class:`torch.distributions.MultivariateNormal`, and code that takes one takes this one.

    Args:
        loc: means ``[..., n]``.
        covariance_matrix, precision_matrix, scale_tril: ``[..., n, n]``, as in ``torch``: the first
            two positive definite, the third lower triangular with a positive diagonal.
        validate_args: as in ``torch``.
        cov_factor: ``[..., n, r]`` for the covariance ``cov_factor @ cov_factor.mT``, which may be
            singular (r < n, or linearly dependent rows). Sampling takes r draws. Where r < n there
            is no density: ``log_prob``, ``entropy``, ``scale_tril`` and ``precision_matrix`` raise
            ValueError. Where r >= n they work if the covariance has a Cholesky factor.

    Exactly one of the four matrices is given. Batch dimensions broadcast. Memory: the constructor
    does as in ``torch`` (a Cholesky factor of a covariance or precision); with ``cov_factor`` it
    does nothing. ``cdf`` and its like integrate with the covariance where that was given and with the
    factor otherwise, and form no other matrix.

    Raises:
        ValueError: not exactly one matrix, a shape that does not fit, or (with ``validate_args``) a
            value outside its domain.
        TypeError: ``cov_factor`` is not a tensor of the dtype of ``loc``.
    """

    arg_constraints: ClassVar[dict] = {
        **torch.distributions.MultivariateNormal.arg_constraints,
        "cov_factor": constraints.independent(constraints.real, 2),
    }

    def __init__(
        self,
        loc: Tensor,
        covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        cov_factor: Tensor | None = None,
    ) -> None:
        given = (covariance_matrix, precision_matrix, scale_tril, cov_factor)
        count = sum(matrix is not None for matrix in given)
        if count != 1:
            raise ValueError(
                "MultivariateNormal: exactly one of covariance_matrix, precision_matrix, scale_tril "
                f"and cov_factor must be given, got {count}"
            )
        self._by_covariance = covariance_matrix is not None
        if cov_factor is None:
            super().__init__(loc, covariance_matrix, precision_matrix, scale_tril, validate_args)
            return
        for name, given in (("loc", loc), ("cov_factor", cov_factor)):
            check_tensor("MultivariateNormal", name, given, gradients=True)
        if loc.dim() < 1:
            raise ValueError("loc must be at least one-dimensional.")
        n = loc.shape[-1]
        if cov_factor.dim() < 2 or cov_factor.shape[-2] != n:
            raise ValueError(
                f"MultivariateNormal: cov_factor must have shape [..., {n}, r], "
                f"got {list(cov_factor.shape)}"
            )
        if cov_factor.dtype != loc.dtype:  # draws would be of neither
            raise TypeError(
                f"MultivariateNormal: cov_factor must have the dtype of loc ({loc.dtype}), "
                f"got {cov_factor.dtype}"
            )
        try:
            batch_shape = torch.broadcast_shapes(cov_factor.shape[:-2], loc.shape[:-1])
        except RuntimeError:
            raise ValueError(
                "MultivariateNormal: cov_factor must have batch dimensions that broadcast with those "
                f"of loc, {list(loc.shape[:-1])}, got {list(cov_factor.shape[:-2])}"
            ) from None
        self.loc = loc.expand(*batch_shape, n)
        self.cov_factor = cov_factor.expand(*batch_shape, *cov_factor.shape[-2:])
        self._unbroadcasted_cov_factor = cov_factor
        Distribution.__init__(self, batch_shape, loc.shape[-1:], validate_args=validate_args)

    # The base class validates what is in __dict__ and skips a lazy property that is not, such as
    # this one when a square matrix was given. It is None then.
    @lazy_property
    def cov_factor(self) -> Tensor | None:
        return None

    # The base class sets this in its constructor, where a square matrix is given: an attribute of the
    # instance hides a lazy property. It is what log_prob, entropy, scale_tril and precision_matrix
    # start from.
    @lazy_property
    def _unbroadcasted_scale_tril(self) -> Tensor:
        factor = self._unbroadcasted_cov_factor
        n, r = factor.shape[-2:]
        singular = f"MultivariateNormal: cov_factor must have rank {n} for a density, got "
        if r < n:
            raise ValueError(singular + f"{r} columns")
        tril, failed = torch.linalg.cholesky_ex(gram(factor))
        if failed.any():
            raise ValueError(singular + "a singular covariance")
        return tril

    @property
    def _is_factored(self) -> bool:
        return "_unbroadcasted_cov_factor" in self.__dict__

    @lazy_property
    def covariance_matrix(self) -> Tensor:
        """``[..., n, n]``."""
        factor = (
            self._unbroadcasted_cov_factor if self._is_factored else self._unbroadcasted_scale_tril
        )
        n = self._event_shape[0]
        return gram(factor).expand(*self._batch_shape, n, n)

    @property
    def variance(self) -> Tensor:
        """``[..., n]``."""
        if not self._is_factored:
            return super().variance
        variance = self._unbroadcasted_cov_factor.pow(2).sum(-1)
        return variance.expand(self._batch_shape + self._event_shape)

    def expand(self, batch_shape, _instance=None) -> MultivariateNormal:
        """The same distribution with a batch shape that ``batch_shape`` broadcasts to; no copy."""
        new = self._get_checked_instance(MultivariateNormal, _instance)
        new._by_covariance = self._by_covariance
        if not self._is_factored:
            return super().expand(batch_shape, new)
        batch_shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        for name in ("cov_factor", "covariance_matrix", "scale_tril", "precision_matrix"):
            if name in self.__dict__:
                matrix = self.__dict__[name]
                setattr(new, name, matrix.expand(batch_shape + matrix.shape[-2:]))
        for name in ("_unbroadcasted_cov_factor", "_unbroadcasted_scale_tril"):
            if name in self.__dict__:
                setattr(new, name, self.__dict__[name])
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape=torch.Size()) -> Tensor:  # noqa: B008 (as in the base class)
        """Draws ``[*sample_shape, ..., n]`` that are differentiable in the parameters."""
        if not self._is_factored:
            return super().rsample(sample_shape)
        factor = self._unbroadcasted_cov_factor
        shape = torch.Size(sample_shape) + self._batch_shape + factor.shape[-1:]
        draws = _standard_normal(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (factor @ draws.unsqueeze(-1)).squeeze(-1)

    def cdf(self, value: Tensor, **options) -> Tensor | MVNResult:
        """P(X <= value), ``[...]``, for ``value [..., n]`` that broadcasts with the batch shape.

        ``options`` are those of :func:`mvnrob.mvn_cdf`: ``abs_tol``, ``rel_tol``, ``log_tol``, ``max_points``,
        ``method``, ``seed``, ``compute_dtype``, ``check`` and ``return_info``, which returns its
        :class:`mvnrob.MVNResult`. What it says of tolerance, edges, errors raised, cost and sources
        holds here. Limits may be infinite. The dtype is float32 or float64.

        Raises also ValueError, with ``validate_args``, for a value that is NaN or does not fit, and
        TypeError for a limit, a mean or a matrix among the options.
        """
        return self._probability(None, value, options)

    def rectangle(self, lower: Tensor, upper: Tensor, **options) -> Tensor | MVNResult:
        """P(lower <= X <= upper), ``[...]``; arguments and options as in :meth:`cdf`.

        Where ``lower > upper`` in a variable it is 0.
        """
        return self._probability(lower, upper, options)

    def log_rectangle(
        self, lower: Tensor, upper: Tensor, *, return_info: bool = False, **options
    ) -> Tensor | tuple[Tensor, MVNResult]:
        """log P(lower <= X <= upper), ``[...]``; arguments and options as in :meth:`log_cdf`."""
        return self._log_probability(lower, upper, return_info, options)

    def log_cdf(
        self, value: Tensor, *, return_info: bool = False, **options
    ) -> Tensor | tuple[Tensor, MVNResult]:
        """log P(X <= value), ``[...]``; arguments and options as in :meth:`cdf`.

        Unless they are given, ``abs_tol`` is 0 and ``rel_tol`` 1e-3 (0 beside a ``log_tol``, and for
        ``method="mendell_elston"``), as in :func:`mvnrob.mvn_log_cdf`: right in either tail, also
        where p underflows.

        With ``return_info`` it returns the pair of it and the :class:`mvnrob.MVNResult` of p.
        """
        return self._log_probability(None, value, return_info, options)

    def _log_probability(self, lower, upper, return_info, options):
        options = dict(options)
        asked = (options.pop(name, None) for name in ("rel_tol", "log_tol"))
        options = {**log_tolerances(options.get("method", "auto"), *asked), **options}
        info = self._probability(lower, upper, {**options, "return_info": True})
        log = info.log_prob
        return (log, info) if return_info else log

    def _probability(self, lower, upper, options):
        for name in options.keys() & {"upper", "cov", "lower", "mean", "factor"}:
            raise TypeError(
                "MultivariateNormal: options must leave out limits (see rectangle), mean and matrices, "
                f"got {name!r}"
            )
        for limit in (lower, upper):
            if limit is not None and self._validate_args:
                self._validate_sample(limit)
        if self._by_covariance:
            matrix = {"cov": self.covariance_matrix}
        elif self._is_factored:
            matrix = {"factor": self._unbroadcasted_cov_factor}
        else:
            matrix = {"factor": self._unbroadcasted_scale_tril}
        return mvn_cdf(
            upper - self.loc,
            **matrix,
            lower=None if lower is None else lower - self.loc,
            **options,
        )
