"""SciPy's ``multivariate_normal`` with ``cdf`` and ``logcdf`` computed by ``mvn_cdf``.

    from mvnrob.scipy_compat import multivariate_normal  # was: from scipy.stats import ...

NumPy in, NumPy out, with SciPy's arguments, shapes and errors. Everything but ``cdf``, ``logcdf``
and the frozen form is SciPy's own (``pdf``, ``logpdf``, ``rvs``, ``entropy``, ``fit``, ``marginal``)
and imports SciPy when it is used; the rest does without.
"""

from __future__ import annotations

import numpy as np
import torch

from ._extras import require
from ._mvn_cdf import mvn_cdf

__all__ = ["multivariate_normal"]


class _Delegating:
    """Public names that are not here are SciPy's, of the object that ``_scipy()`` makes."""

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._scipy(), name)


class MultivariateNormal(_Delegating):
    """The type of :data:`multivariate_normal`; see its methods.

    Called, ``multivariate_normal(mean, cov, allow_singular)`` returns the frozen form,
    :class:`FrozenMultivariateNormal`, which checks and keeps the parameters.
    """

    def _scipy(self):
        return require("scipy.stats", "scipy", "demo").multivariate_normal

    def __call__(
        self,
        mean=None,
        cov=1,
        allow_singular=False,
        seed=None,
        maxpts=None,
        abseps=1e-5,
        releps=1e-5,
    ) -> FrozenMultivariateNormal:
        return FrozenMultivariateNormal(mean, cov, allow_singular, seed, maxpts, abseps, releps)

    def cdf(
        self,
        x,
        mean=None,
        cov=1,
        allow_singular=False,
        maxpts=None,
        abseps=1e-5,
        releps=1e-5,
        *,
        lower_limit=None,
        rng=None,
    ):
        """P(lower_limit <= X <= x) for X ~ N(mean, cov), as ``scipy.stats.multivariate_normal.cdf``.

        Args:
            x: upper limits ``[..., n]`` (``[k]`` are k limits where n = 1, one limit otherwise).
            mean: ``[n]``; none means zero.
            cov: a variance, n variances, a matrix ``[n, n]``, or a ``scipy.stats.Covariance``. Of a
                matrix that is not symmetric, that is read which SciPy 1.17 reads: the lower triangle,
                but in two dimensions the upper one (and the lower one's eigenvalues are looked at).
            allow_singular: take a covariance that is singular to SciPy's tolerance (an eigenvalue
                below 2.2e-10 of the largest).
            maxpts: most integrand evaluations for a limit (default ``1000000 * n``).
            abseps, releps: a limit is done when the 99 % bound on its error is at most
                ``max(abseps, releps * min(p, 1 - p))``. (SciPy 1.17 looks at ``abseps`` only.)
            lower_limit: lower limits, broadcasting with ``x``; none means minus infinity. Where one
                is above the upper limit the two change places and the result its sign.
            rng: an int is the seed; a NumPy generator gives one. None is seed 0: unlike SciPy's, the
                result is then the same at every call.

        Returns float64 of the shape of ``x`` without its last axis, squeezed: a scalar for one limit.
        NaN for a limit that is NaN. RuntimeWarning where ``maxpts`` are spent first.

        Raises:
            numpy.linalg.LinAlgError: the covariance is singular, without ``allow_singular``.
            ValueError: it has a negative eigenvalue or is not finite, or a shape does not fit.

        Cost: the eigenvalues of ``cov``, ``O(n^3)``, once a call (once in all in the frozen form);
        all limits then go through one :func:`mvnrob.mvn_cdf`, which names cost and sources.
        """
        parameters = _parameters(mean, cov, allow_singular)
        return _cdf(x, *parameters, maxpts, abseps, releps, lower_limit, rng, log=False)

    def logcdf(
        self,
        x,
        mean=None,
        cov=1,
        allow_singular=False,
        maxpts=None,
        abseps=1e-5,
        releps=1e-5,
        *,
        lower_limit=None,
        rng=None,
    ):
        """Logarithm of :meth:`cdf`, with its arguments, errors and cost.

        Computed from 1 - p where p is near 1. Its error is that of ``cdf`` divided by it: with
        ``abseps=0`` and a ``releps`` it is right however small p is, with the default ``abseps`` only
        while p is well above that. Complex, as in
        SciPy, if swapped limits make any result of ``cdf`` negative.
        """
        parameters = _parameters(mean, cov, allow_singular)
        return _cdf(x, *parameters, maxpts, abseps, releps, lower_limit, rng, log=True)


class FrozenMultivariateNormal(_Delegating):
    """``multivariate_normal(mean, cov, allow_singular)``: the parameters checked and kept.

    Attributes: ``dim``, ``mean [n]``, ``cov [n, n]``, ``allow_singular``, ``maxpts``, ``abseps``,
    ``releps``. ``seed`` serves calls that give no ``rng``. The rest as in
    :class:`MultivariateNormal`.
    """

    def __init__(
        self,
        mean=None,
        cov=1,
        allow_singular=False,
        seed=None,
        maxpts=None,
        abseps=1e-5,
        releps=1e-5,
    ):
        self.mean, self.cov = _parameters(mean, cov, allow_singular)
        self.dim = self.mean.size
        self.allow_singular = allow_singular or hasattr(cov, "covariance")
        self.maxpts, self.abseps, self.releps = maxpts or 1_000_000 * self.dim, abseps, releps
        self._seed = seed

    def _scipy(self):
        stats = require("scipy.stats", "scipy", "demo")
        return stats.multivariate_normal(self.mean, self.cov, self.allow_singular, self._seed)

    def cdf(self, x, *, lower_limit=None, rng=None):
        """P(lower_limit <= X <= x) for ``x [..., n]``; see :meth:`MultivariateNormal.cdf`."""
        return self._call(x, lower_limit, rng, log=False)

    def logcdf(self, x, *, lower_limit=None, rng=None):
        """Logarithm of :meth:`cdf`; see :meth:`MultivariateNormal.logcdf`."""
        return self._call(x, lower_limit, rng, log=True)

    def marginal(self, dimensions) -> FrozenMultivariateNormal:
        """The distribution of the variables ``dimensions``, frozen; SciPy checks them."""
        part = self._scipy().marginal(dimensions)
        return FrozenMultivariateNormal(
            part.mean,
            part.cov,
            self.allow_singular,
            self._seed,
            None,
            self.abseps,
            self.releps,
        )

    def _call(self, x, lower_limit, rng, log):
        rng = self._seed if rng is None else rng
        return _cdf(
            x, self.mean, self.cov, self.maxpts, self.abseps, self.releps, lower_limit, rng, log=log
        )


#: The drop-in for ``scipy.stats.multivariate_normal``.
multivariate_normal = MultivariateNormal()


def _parameters(mean, cov, allow_singular) -> tuple[np.ndarray, np.ndarray]:
    """``mean [n]`` and ``cov [n, n]`` in full, float64; raises what SciPy raises, in its words."""
    if hasattr(cov, "covariance"):  # a scipy.stats.Covariance, which has been checked
        matrix = np.asarray(cov.covariance, dtype=float)
        n = matrix.shape[-1]
        if matrix.ndim > 2:
            raise ValueError(
                "Array 'cov' must be at most two-dimensional, "
                f"but cov.covariance.ndim = {matrix.ndim}"
            )
        try:
            return np.broadcast_to(0.0 if mean is None else np.asarray(mean, float), n), matrix
        except ValueError as error:
            raise ValueError(
                f"`cov` represents a covariance matrix in {n} dimensions,"
                f"and so `mean` must be broadcastable to shape {(n,)}"
            ) from error
    cov = np.asarray(1.0 if cov is None else cov, dtype=float)
    if mean is None:
        n = 1 if cov.ndim < 2 else cov.shape[0]
        mean = np.zeros(n)
    else:
        mean = np.asarray(mean, dtype=float)
        n = mean.size
    if n == 1:
        mean, cov = mean.reshape(1), cov.reshape(1, 1)
    if mean.ndim != 1:
        raise ValueError(f"Array 'mean' must be a vector of length {n}.")
    if cov.ndim == 0:
        cov = cov * np.eye(n)
    elif cov.ndim == 1:
        cov = np.diag(cov)
    if cov.ndim > 2:
        raise ValueError(f"Array 'cov' must be at most two-dimensional, but cov.ndim = {cov.ndim}")
    if cov.shape[0] != cov.shape[1]:
        raise ValueError(
            f"Array 'cov' must be square if it is two dimensional, but cov.shape = {cov.shape}."
        )
    if cov.shape != (n, n):
        raise ValueError(
            f"Dimension mismatch: array 'cov' is of shape {cov.shape}, "
            f"but 'mean' is a vector of length {len(mean)}."
        )
    if not np.isfinite(cov).all():
        raise ValueError("array must not contain infs or NaNs")
    eigenvalues = np.linalg.eigvalsh(cov, UPLO="L")  # SciPy's eigh reads the lower triangle
    negligible = 1e6 * np.finfo(float).eps * np.abs(eigenvalues).max()
    if eigenvalues[0] < -negligible:
        raise ValueError("The input matrix must be symmetric positive semidefinite.")
    if eigenvalues[0] <= negligible and not allow_singular:
        raise np.linalg.LinAlgError(
            "When `allow_singular is False`, the input matrix must be symmetric positive definite."
        )
    return mean, cov


def _cdf(x, mean, cov, maxpts, abseps, releps, lower_limit, rng, *, log):
    n = mean.size
    upper = np.asarray(x, dtype=float)
    if upper.ndim == 0:
        upper = upper[np.newaxis]
    elif upper.ndim == 1:
        upper = upper[:, np.newaxis] if n == 1 else upper[np.newaxis, :]
    signs = np.ones(())
    if upper.shape[-1] != n:
        raise ValueError(f"Array 'x' must have {n} components on its last axis: {upper.shape}")
    lower = None
    if lower_limit is not None:
        upper, lower = np.broadcast_arrays(upper, np.asarray(lower_limit, dtype=float))
        if upper.shape[-1] != n:
            raise ValueError(
                f"Array 'lower_limit' must broadcast to {n} components on its last axis: "
                f"{upper.shape}"
            )
        swapped = upper < lower
        signs = 1.0 - 2.0 * (swapped.sum(-1) % 2)
        upper, lower = np.where(swapped, lower, upper), np.where(swapped, upper, lower)
        lower = torch.from_numpy(lower - mean)
    # mvn_cdf reads one entry of each pair and does not say which. SciPy's sampler (n > 2) factorises the
    # lower triangle; its closed form of two variables takes the entry above the diagonal.
    cov = np.triu(cov) + np.triu(cov, 1).T if n == 2 else np.tril(cov) + np.tril(cov, -1).T
    # SciPy's answer has no meaning then.
    if n == 2 and cov[0, 1] ** 2 > (1 + 1e-9) * cov[0, 0] * cov[1, 1]:
        raise ValueError("The input matrix must be symmetric positive semidefinite.")
    points = int(maxpts or 1_000_000 * n)
    info = mvn_cdf(
        torch.from_numpy(upper - mean),
        torch.from_numpy(np.ascontiguousarray(cov)),
        lower=lower,
        abs_tol=float(abseps),
        rel_tol=float(releps),
        max_points=min(max(points, 512), 8 * 2**31),
        seed=_seed(rng),
        return_info=True,
    )
    out = signs * info.prob.numpy()
    if log:
        negative = out < 0
        out = info.log_prob.numpy()
        if negative.any():
            out = out + 1j * np.pi * negative
    return np.squeeze(out)[()]


def _seed(rng) -> int:
    if rng is None:
        return 0
    if isinstance(rng, (int, np.integer)):
        return int(rng)
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**62, dtype=np.int64))
    if isinstance(rng, np.random.RandomState):
        return int(rng.randint(2**62, dtype=np.int64))
    raise ValueError(f"{rng!r} cannot be used to seed mvn_cdf: give an int or a NumPy generator")
