"""From Jacobians to the normal probability problem: ``jac_cov``, its streaming form, its fakes,
its reference."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import _load, _ops
from ._checks import check_device, check_tensor

_J_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_REAL_DTYPES = (torch.float32, torch.float64)


class JacCovResult(NamedTuple):
    """What :func:`jac_cov` returns: entry i stands for class ``keep[b, i]``, n = C - 1.

    The first three have the dtype of the logits (float32 for bfloat16).

    - ``z``: ``[B, n]``, margins in standard deviations of their noise.
    - ``corr``: ``[B, n, n]``, correlations of that noise.
    - ``norms``: ``[B, n]``, ``||J_t - J_i||`` (before sigma), in logits per unit of input.
    - ``keep``: ``[B, n]`` int64, the classes other than the target, in increasing order.
    """

    z: Tensor
    corr: Tensor
    norms: Tensor
    keep: Tensor


def jac_cov(J: Tensor, logits: Tensor, target: Tensor, sigma: float | Tensor) -> JacCovResult:
    r"""Margins and correlations of a linearised classifier under Gaussian input noise.

    With ``u_i = J_t - J_i`` for the target t and the other classes i,

        z_i = (f_t - f_i) / (sigma ||u_i||),   corr_ij = <u_i, u_j> / (||u_i|| ||u_j||),

    so that ``mvn_cdf(z, corr)`` is the probability that ``f + J e`` keeps class t on top, for noise
    ``e ~ N(0, sigma^2 I)``.

    Args:
        J: Jacobians of the logits ``[B, C, D]``, float32, float64 or bfloat16. Rows may be strided
            or expanded; a last dimension with a stride other than 1 is copied.
        logits: ``[B, C]``, float32, float64 or bfloat16; need not have J's dtype.
        target: class t of each input, int64 ``[B]``.
        sigma: standard deviation of the noise in units of the input, positive and finite: a number,
            or float32 or float64 ``[B]`` (or ``[]``).

    The results have the dtype of ``logits`` (float32 for bfloat16); pass ``logits.double()`` for
    float64 correlations. Whatever that is, float32 and bfloat16 Jacobians are subtracted first (so
    a shift common to all classes costs no digits), multiplied in float32, summed in float32 over at
    most 1024 columns (in many partial sums), and beyond in float64; float64 Jacobians are float64
    throughout. ``corr`` is symmetric with a diagonal of exactly 1, ``|corr| <= 1``, exactly 1
    between equal rows and -1 between opposite ones.

    On CUDA the same holds, with one difference: for more than 104 classes float32 and bfloat16 are
    multiplied by tensor cores, each difference as the sum of two float16 (22 bits, scaled by its
    row's norm), with the error of float32. bfloat16 rows are multiplied as they are, several times
    faster, and differences taken of the products, in problems where all rows have ``|J_i|^2 +
    |J_t|^2 <= 9 ||u_i||^2`` (at that limit a correlation errs by about 1e-6, as measured) and no two
    differences the same norm to the bit. Values are not looked at there: a target that is no class makes its
    problem NaN, a sigma that is not positive and finite its ``z``.

    Edges are mathematics: a row ``u_i = 0`` (a class with the target's gradient) gives
    ``z = +inf``, or ``-inf`` for a negative margin (P(0 <= 0) = 1), and a row of the unit matrix.
    A NaN makes ``z_i`` NaN. C = 1 gives n = 0.

    Squares must fit the dtype that multiplies: keep ``||u_i||`` between about 1e-15 and 1e18 for
    float32 and bfloat16 Jacobians (where entries below about 1e-23 count as zero), and between 1e-150
    and 1e150 for float64, by a common factor on J and logits, which changes nothing but ``norms``.
    Above, norms are infinite. :func:`mvnrob.robustness` sees to it.

    Cost: ``B C^2 D`` flops (half the square; upper tiles only), a float64 ``[B, C, C]`` in memory
    (on CUDA some 64 MB more). A problem's answer is the same to the bit for every batch and number
    of threads, on one build and SIMD level (:func:`mvnrob.simd_level`) or GPU. For a Jacobian that
    does not fit, see :func:`jac_cov_accumulate`; to leave out classes before they cost anything,
    :func:`jac_cov_norms`.

    Source: ``z`` and ``corr`` are those of the Taylor estimator of Han, Srinivas and Lakkaraju (UAI 2024,
    arXiv 2307.13885).

    Returns :class:`mvnrob.JacCovResult`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or value.
        NotImplementedError: a tensor requires grad, or is on a device without kernels.
        torch.OutOfMemoryError: memory does not hold the results or the sums ``[B, C, C]``, on a CPU too.
    """
    _check_rows("jac_cov", J, target)
    logits = _check_logits("jac_cov", logits, target, tuple(J.shape[:2]))
    sigma = _check_sigma("jac_cov", sigma, logits)
    with _ops.memory_errors():
        S = J.new_zeros((J.shape[0], J.shape[1], J.shape[1]), dtype=torch.float64)
    _ops.call("jac_cov_accumulate_", S, J, target)
    return _finalize(S, logits, target, sigma)


def jac_cov_accumulate(S: Tensor, J_chunk: Tensor, target: Tensor) -> Tensor:
    """Adds the products of some columns of the Jacobian: ``S += sum_d u_d u_d^T``, in place.

    Start from ``S = torch.zeros(B, C, C, dtype=torch.float64)``, pass the columns of J in any
    number of chunks, then call :func:`jac_cov_finalize`.

    Args:
        S: sums ``[B, C, C]``, float64 (or float32, rounded once per call), symmetric, contiguous.
            Its upper triangle is read; both are written. Row and column t stay as they are.
        J_chunk: columns of the Jacobians ``[B, C, Dc]``; dtypes and rounding as in :func:`jac_cov`.
        target: int64 ``[B]``, the same in every call.

    Returns S. For a float64 S, chunks of a multiple of 1024 columns (the last may be shorter) give
    the bits of a single call (not on tensor cores); others differ by the rounding of their sums.

    Cost: ``B C^2 Dc`` flops. Raises as :func:`jac_cov` does.
    """
    _check_accumulate("jac_cov_accumulate", S, J_chunk, target)
    _ops.call("jac_cov_accumulate_", S, J_chunk, target)
    return S


def jac_cov_finalize(
    S: Tensor, logits: Tensor, target: Tensor, sigma: float | Tensor
) -> JacCovResult:
    """The result of :func:`jac_cov` from the sums of :func:`jac_cov_accumulate`.

    Args:
        S: ``[B, C, C]``, float64 or float32, contiguous; it is not changed, so one S serves many
            values of sigma (only ``z`` depends on it).
        logits, target, sigma: as in :func:`jac_cov`; the results have the dtype of ``logits``.

    Returns :class:`mvnrob.JacCovResult`. Cost: a pass over S. Raises as :func:`jac_cov` does.
    """
    op = "jac_cov_finalize"
    _check_target(op, target)
    logits = _check_logits(op, logits, target, None)
    _check_S(op, S, *logits.shape, logits.device)
    _check_target_shape(op, target, *logits.shape)
    return _finalize(S, logits, target, _check_sigma(op, sigma, logits))


def jac_cov_norms(J: Tensor, target: Tensor) -> Tensor:
    """Squared norms ``||J_t - J_i||^2`` as float64 ``[B, C]``; entry t is zero.

    What screening needs before any product is formed: ``z_i = (f_t - f_i) / (sigma norm_i)``. One
    pass over J, limited by memory; dtypes, strides and rounding as in :func:`jac_cov`. Squares of
    chunks of columns add up.

    Args:
        J: ``[B, C, D]``, float32, float64 or bfloat16.
        target: int64 ``[B]``.

    Cost: ``3 B C D`` flops. Raises as :func:`jac_cov` does.
    """
    _check_rows("jac_cov_norms", J, target)
    return _ops.call("jac_cov_norms", J, target)


def _finalize(S: Tensor, logits: Tensor, target: Tensor, sigma: Tensor) -> JacCovResult:
    z, corr, norms = _ops.call("jac_cov_finalize", S, logits, target, sigma)
    return JacCovResult(z, corr, norms, _other_classes(target, logits.shape[1]))


def _other_classes(target: Tensor, classes: int) -> Tensor:
    index = torch.arange(classes - 1, device=target.device)
    return index + (index >= target[:, None])


def _dtype_name(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _values_at_hand(t: Tensor) -> bool:
    """Whether values can be read without breaking a graph or synchronising a device."""
    return type(t) is Tensor and t.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_backend(op: str, name: str, t: Tensor) -> None:
    if t.device.type == "cuda" and _load.cuda_unavailable:
        raise NotImplementedError(
            f"{op}: {name} must be on the CPU, got {t.device}: {_load.cuda_unavailable}"
        )
    if t.device.type not in ("cpu", "cuda", "meta"):
        raise NotImplementedError(
            f"{op}: {name} must be on the CPU or a CUDA device, got {t.device}"
        )


def _check_target(op: str, target) -> None:
    check_tensor(op, "target", target)
    if target.dtype != torch.int64:
        raise TypeError(f"{op}: target must be int64, got {_dtype_name(target)}")


def _check_target_shape(op: str, target: Tensor, batch: int, classes: int) -> None:
    if target.dim() != 1 or target.shape[0] != batch:
        raise ValueError(f"{op}: target must have shape [{batch}], got {list(target.shape)}")
    if _values_at_hand(target) and batch > 0:
        low, high = (int(x) for x in target.aminmax())
        if low < 0 or high >= classes:
            bad = low if low < 0 else high
            raise ValueError(f"{op}: target must lie in [0, {classes}), got {bad}")


def _check_rows(op: str, J, target) -> None:
    check_tensor(op, "J", J)
    _check_target(op, target)
    if J.dim() != 3 or J.shape[1] < 1:
        raise ValueError(f"{op}: J must have shape [B, C, D] with C >= 1, got {list(J.shape)}")
    if J.dtype not in _J_DTYPES:
        raise TypeError(f"{op}: J must be float32, float64 or bfloat16, got {_dtype_name(J)}")
    _check_backend(op, "J", J)
    check_device(op, "target", target, J.device, "J")
    _check_target_shape(op, target, J.shape[0], J.shape[1])


def _check_S(op: str, S, batch: int, classes: int, device: torch.device) -> None:
    check_tensor(op, "S", S)
    if S.dtype not in _REAL_DTYPES:
        raise TypeError(f"{op}: S must be float32 or float64, got {_dtype_name(S)}")
    if S.dim() != 3 or S.shape[0] != batch or S.shape[1] != classes or S.shape[2] != classes:
        raise ValueError(
            f"{op}: S must have shape [{batch}, {classes}, {classes}], got {list(S.shape)}"
        )
    if not S.is_contiguous():
        raise ValueError(f"{op}: S must be contiguous, got strides {list(S.stride())}")
    check_device(op, "S", S, device, "J" if op == "jac_cov_accumulate" else "logits")


def _check_accumulate(op: str, S, J, target) -> None:
    _check_rows(op, J, target)
    _check_S(op, S, J.shape[0], J.shape[1], J.device)


def _check_logits(op: str, logits, target: Tensor, shape: tuple[int, int] | None) -> Tensor:
    check_tensor(op, "logits", logits)
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    if logits.dtype not in _REAL_DTYPES:
        raise TypeError(
            f"{op}: logits must be float32, float64 or bfloat16, got {_dtype_name(logits)}"
        )
    if shape is None and (logits.dim() != 2 or logits.shape[1] < 1):
        raise ValueError(
            f"{op}: logits must have shape [B, C] with C >= 1, got {list(logits.shape)}"
        )
    if shape is not None and tuple(logits.shape) != shape:
        raise ValueError(f"{op}: logits must have shape {list(shape)}, got {list(logits.shape)}")
    _check_backend(op, "logits", logits)
    if target.device != logits.device:
        raise ValueError(f"{op}: logits must be on the device of target, got {logits.device}")
    return logits


def _check_sigma(op: str, sigma, logits: Tensor) -> Tensor:
    batch = logits.shape[0]
    if isinstance(sigma, Tensor):
        check_tensor(op, "sigma", sigma)
        if sigma.dtype not in _REAL_DTYPES:
            raise TypeError(f"{op}: sigma must be float32 or float64, got {_dtype_name(sigma)}")
        if sigma.dim() > 1 or (sigma.dim() == 1 and sigma.shape[0] != batch):
            raise ValueError(
                f"{op}: sigma must have shape [{batch}] or [], got {list(sigma.shape)}"
            )
        check_device(op, "sigma", sigma, logits.device, "logits")
        if _values_at_hand(sigma):
            bad = sigma[~((sigma > 0) & sigma.isfinite())]
            if bad.numel():
                raise ValueError(
                    f"{op}: sigma must be positive and finite, got {bad.flatten()[0].item()}"
                )
        return sigma.double().expand(batch)
    if isinstance(sigma, bool) or not isinstance(sigma, (int, float)):
        raise TypeError(f"{op}: sigma must be a number or a tensor, got {type(sigma).__name__}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"{op}: sigma must be positive and finite, got {sigma}")
    return logits.new_full((batch,), float(sigma), dtype=torch.float64)


@torch.library.register_fake("mvnrob::jac_cov_accumulate_")
def _(S, J, target):
    _check_accumulate("jac_cov_accumulate", S, J, target)


@torch.library.register_fake("mvnrob::jac_cov_finalize")
def _(S, logits, target, sigma):
    _check_logits("jac_cov_finalize", logits, target, None)
    batch, classes = logits.shape
    _check_S("jac_cov_finalize", S, batch, classes, logits.device)
    _check_target("jac_cov_finalize", target)
    _check_target_shape("jac_cov_finalize", target, batch, classes)
    return (
        logits.new_empty((batch, classes - 1)),
        logits.new_empty((batch, classes - 1, classes - 1)),
        logits.new_empty((batch, classes - 1)),
    )


@torch.library.register_fake("mvnrob::jac_cov_norms")
def _(J, target):
    _check_rows("jac_cov_norms", J, target)
    return J.new_empty(J.shape[:2], dtype=torch.float64)


def jac_cov_reference(
    J: Tensor, logits: Tensor, target: Tensor, sigma: float | Tensor
) -> JacCovResult:
    """The same in plain float64 PyTorch, obvious rather than fast: for the tests.

    Arguments and result as in :func:`jac_cov`, in float64; differentiable in J, logits and sigma
    where no row is zero.
    """
    J, logits = J.double(), logits.double()
    batch, classes, _ = J.shape
    keep = _other_classes(target, classes)
    rows = torch.arange(batch, device=J.device)[:, None]
    u = J[rows, target[:, None]] - J[rows, keep]  # [B, n, D]
    margin = logits[rows, target[:, None]] - logits[rows, keep]
    norms = u.square().sum(-1).sqrt()
    zero = norms == 0
    safe = torch.where(zero, 1.0, norms)
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=J.device).expand(batch)[:, None]
    step = torch.where(margin < 0, -math.inf, math.inf)
    z = torch.where(zero & ~margin.isnan(), step, margin / (sigma * safe))
    unit = u / safe[..., None]
    corr = (unit @ unit.mT).clamp(-1, 1)
    off = ~torch.eye(classes - 1, dtype=torch.bool, device=J.device)
    return JacCovResult(z, torch.where(off, corr, 1.0), norms, keep)
