"""The network as the estimators see it: checked and in raw input units."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ._ops import memory_errors
from .batch_norms import BatchNorms
from .live_bytes import LiveBytes

_HALF = (torch.float16, torch.bfloat16)


def safe_norm(rows: Tensor) -> Tensor:
    """Norms over the last dimension, float64, also where squares over- or underflow."""
    if rows.dtype != torch.float64:  # without a float64 copy
        return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
    size = torch.linalg.vector_norm(rows, math.inf, dim=-1, keepdim=True)
    unit = rows / torch.where(size > 0, size, 1.0)
    return size[..., 0] * torch.linalg.vector_norm(unit, dim=-1)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class TooLarge(ValueError):
    """A single input needs more than the byte budget."""


@contextlib.contextmanager
def memory_of_one(op: str) -> Iterator[None]:
    """Running out of memory with a single input, where nothing is left to split, says so."""
    try:
        with memory_errors():
            yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{op}: memory must hold the passes of a single input, got {first_line(error)}"
        ) from error


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Products of noise, gradients and covariances keep their dtype, whatever autocast says."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _uses_tf32(device: torch.device) -> bool:
    """Whether float32 convolutions or matrix products there may be rounded to TF32."""
    parts = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    return device.type == "cuda" and any(part.fp32_precision == "tf32" for part in parts)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 on a GPU, in the whole process; afterwards all is as it was.

    By the names of torch 2.9, which know what was asked by the older ``allow_tf32`` as well. Reading
    ``allow_tf32`` inside raises RuntimeError where it was on: setting it would leave torch's defaults
    behind as if the user had chosen them, and a later ``torch.backends.fp32_precision`` without effect.
    What ``torch.jit.trace`` recorded keeps the TF32 of its recording.
    """
    cudnn = torch.backends.cudnn
    parts = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before = [part.fp32_precision for part in parts]
    common = _own_cuda_precision()
    cudnn.fp32_precision = "ieee"  # of parts that nothing was asked of
    try:
        for part in parts:
            if part.fp32_precision != "ieee":
                part.fp32_precision = "ieee"
        yield
    finally:
        cudnn.fp32_precision = common
        for part, precision in zip(parts, before, strict=True):
            if part.fp32_precision != precision:
                part.fp32_precision = precision


def _own_cuda_precision() -> str:
    """What was asked of all CUDA operations together: "none" where every backend's setting holds."""
    general = torch.backends.fp32_precision
    torch.backends.fp32_precision = "none"
    try:
        return torch.backends.cudnn.fp32_precision
    finally:
        torch.backends.fp32_precision = general


def _present_autocast(device: str) -> Callable[[], contextlib.AbstractContextManager]:
    """What brings the autocast of now back within :func:`without_autocast`, for the model."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext
    return functools.partial(
        torch.autocast,
        device,
        torch.get_autocast_dtype(device),
        cache_enabled=torch.is_autocast_cache_enabled(),
    )


def uncompiled() -> contextlib.AbstractContextManager:
    """What ``torch.compile`` made runs as it was written.

    Compiled graphs have no forward mode, and most let go of what a second backward pass needs.
    """
    # Slow to import, and nothing is compiled; or the caller is being compiled, which refuses a stance.
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def owning_module(model: Callable) -> nn.Module | None:
    """The module behind a callable, where Python shows it: bound methods and functools.partial."""
    while isinstance(model, functools.partial):
        model = model.func
    if not isinstance(model, nn.Module):
        model = getattr(model, "__self__", None)
    return model if isinstance(model, nn.Module) else None


def _half_of(dtypes: Iterable[torch.dtype | None]) -> torch.dtype | None:
    """The coarser half precision among them, or none."""
    found = set(dtypes)
    return next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in found), None)


class Network:
    """A classifier ``x [b, *shape] -> logits [b, C]``.

    Args:
        op: name of the public function, for error messages.
        model: an ``nn.Module`` in eval mode, or any callable. It returns logits, or an object that
            has them as ``.logits`` (Hugging Face). Rows must be independent of each other.
        preprocessing: ``dict(mean=..., std=..., axis=...)`` as in Foolbox: the model is given
            ``(x - mean) / std``; ``axis`` (negative) is the one that 1-D values lie along. Noise and
            Jacobians stay in the units of x.
        x: the inputs. Their dtype is what the model is given: half precision inputs are kept in
            float32 here (noise is added there) and rounded on entry to the model.
    """

    def __init__(self, op: str, model: Callable, preprocessing: Mapping | None, x: Tensor) -> None:
        dtype = x.dtype
        if not callable(model):
            raise TypeError(f"{op}: model must be callable, got {type(model).__name__}")
        module = owning_module(model)
        for name, part in module.named_modules() if module is not None else ():
            if part.training:
                place = f"its part {name!r}" if name else "the model"
                raise ValueError(
                    f"{op}: model must be in eval mode, got {place} in train mode; call model.eval()"
                )
        self.op = op
        self.model = model
        self._entry_dtype = dtype
        self.work_dtype = torch.float32 if dtype in _HALF else dtype
        self._shape, self._device = list(x.shape), x.device
        self._autocast = _present_autocast(x.device.type)
        self._mean, self._std = _read_preprocessing(op, preprocessing, self._shape)
        self.classes: int | None = None
        #: whether an earlier call says so (:mod:`mvnrob.measured`), and no pass yet
        self.classes_of_before = False
        #: the last linear layer (:class:`mvnrob.head.Head`) once it is found or named
        self.head = None
        #: whether forward mode takes many tangents of one point at once (``torch.func.vmap``)
        self.batch_tangents = True
        self._norms: BatchNorms | None = None
        #: bytes that autograd keeps of one input, once they are measured: how large a pass is
        self.graph = 0
        #: most inputs in one pass since it was last set to 0
        self.largest_pass = 0
        #: half precision that the model computes in, or None; also of one that casts what it is given, and
        #: its logits back
        weights = () if module is None else module.parameters()
        self.half = _half_of((dtype, *(weight.dtype for weight in weights)))
        self._single_inside = self.work_dtype == torch.float32

    def form(self) -> tuple:
        """What a pass's memory hangs on, beside an input's shape and the model."""
        casts = self._autocast is not contextlib.nullcontext
        dtype = torch.get_autocast_dtype(self._device.type) if casts else None
        return self._entry_dtype, self._device, self._mean is None, dtype

    def norms(self) -> BatchNorms:
        """Slopes of the model's batch norms."""
        if self._norms is None:
            self._norms = BatchNorms(owning_module(self.model))
        return self._norms

    def rounding(self) -> float:
        """Relative difference that one product of the model may have by rounding alone."""
        if self.half is not None:
            return 5e-2
        return 1e-3 if self._single_inside else 1e-7

    def rounds_to_tf32(self) -> bool:
        """Whether float32 passes may be rounded to TF32 (11 of 24 bits), torch's default for convolutions
        on a GPU.

        Each pass then rounds in its own way, that of the algorithm for its batch, and where a ReLU or a
        max pool is near its kink takes another side: derivatives of two passes differ by far more than
        :meth:`rounding` (by a fifth of their norm, ResNet-50's shape with random weights on an H100).
        """
        return self._single_inside and self.half is None and _uses_tf32(self._device)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``[b, C]`` in float32 (float64 from a float64 model); keeps the autograd graph."""
        self.largest_pass = max(self.largest_pass, x.shape[0])
        if self._mean is not None:
            x = (x - self._mean.to(x)) / self._std.to(x)
        # its own memory: a model may work in place on what it is given
        x = x.to(self._entry_dtype, copy=self._mean is None)
        takes_rows = torch.is_grad_enabled()
        with (
            self._autocast(),
            uncompiled() if takes_rows else contextlib.nullcontext(),
            memory_errors(),
        ):
            known = self.classes is not None and not self.classes_of_before
            out = self.model(x) if known else self._first_pass(x)
        out = getattr(out, "logits", out)
        self._check_output(out, x.shape[0])
        if out.dtype in _HALF:
            self.half = _half_of((self.half, out.dtype))
            return out.float()
        # float64 inputs that the model casts
        self._single_inside = self._single_inside or out.dtype == torch.float32
        return out

    def _first_pass(self, x: Tensor):
        """The model at x, or an error that says what is wrong with the inputs.

        dtype and device are compared with the model's after a failure only: models that cast their
        inputs, or are spread over devices, are served.
        """
        try:
            with memory_errors():
                return self.model(x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._compare_with_parameters(error)
            raise ValueError(
                f"{self.op}: x must be what the model takes, got shape {self._shape} "
                f"{self._entry_dtype}: {first_line(error)}"
            ) from error

    def _compare_with_parameters(self, cause: Exception | None) -> None:
        module = owning_module(self.model)
        for parameter in module.parameters() if module is not None else ():
            if not parameter.is_floating_point():
                continue
            for name, want, got in (
                ("dtype", parameter.dtype, self._entry_dtype),
                ("device", parameter.device, self._device),
            ):
                if want != got:
                    raise ValueError(
                        f"{self.op}: x must have the {name} of the model's parameters ({want}), "
                        f"got {got}"
                    ) from cause
            return

    def _check_output(self, out, rows: int) -> None:
        want = f"{self.op}: model must return logits [B, C] with C >= 2"
        if not isinstance(out, Tensor):
            raise TypeError(f"{want}, got {type(out).__name__}")
        if not out.is_floating_point():
            raise TypeError(f"{want}, got dtype {str(out.dtype).removeprefix('torch.')}")
        if out.device != self._device:  # a model on meta answers without complaint
            self._compare_with_parameters(None)
            raise ValueError(
                f"{self.op}: model must return logits on the device of x ({self._device}), "
                f"got {out.device}"
            )
        shape = list(out.shape)
        if out.dim() != 2 or shape[0] != rows or shape[1] < 2:
            raise ValueError(f"{want}, got {shape} for {rows} inputs")
        if self.classes is None:
            self.classes = shape[1]
        if shape[1] != self.classes:
            raise ValueError(f"{want} the same for every input, got {shape[1]} and {self.classes}")
        self.classes_of_before = False

    def count_classes(self, x: Tensor) -> int:
        """Of a model that is given no inputs: by its answer at zeros of the shape of ``x`` [0, ...]."""
        with torch.no_grad():
            self(x.new_zeros(1, *x.shape[1:]))
        return self.classes

    def graph_bytes(self, x: Tensor) -> int:
        """Bytes that autograd keeps per input for one backward pass, measured on ``x [1, ...]``.

        Tensors that need no gradient path through x (weights) are shared by a batch; they are told
        from activations by belonging to the module, or count as activations (an overestimate). Where
        the model itself calls ``torch.func.grad``, which refuses the hooks: all that its operations
        have alive at once.
        """
        module = owning_module(self.model)
        shared = set()
        if module is not None:
            for tensor in (*module.parameters(), *module.buffers()):
                shared.add(tensor.untyped_storage().data_ptr())
        seen: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            # A sparse weight's numbers are not in one place; torch's symbolic zeros have none.
            if tensor.layout is not torch.strided or tensor._is_zerotensor():
                return tensor.detach()
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in shared:
                seen[storage.data_ptr()] = storage.nbytes()
            # A saved output that held its own node would never be freed.
            return tensor.detach()

        leaf = x.detach().requires_grad_()
        try:
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                out = self(leaf)
        except (RuntimeError, ValueError) as error:
            if "saved tensor hooks" not in str(error):
                raise
            with torch.enable_grad(), LiveBytes() as live:
                self(leaf)
            return live.most + x.nbytes
        return sum(seen.values()) + x.nbytes + out.nbytes

    def pass_bytes(self, x: Tensor) -> int:
        """Bytes that an input takes in a forward pass without gradients, measured on ``x [1, ...]``."""
        with torch.no_grad(), LiveBytes() as live:
            self(x)
        return live.most + x.nbytes


def _read_preprocessing(
    op: str, given: Mapping | None, shape: list[int]
) -> tuple[Tensor | None, Tensor | None]:
    if given is None:
        return None, None
    if not isinstance(given, Mapping):
        raise TypeError(f"{op}: preprocessing must be a dict, got {type(given).__name__}")
    unknown = sorted(set(given) - {"mean", "std", "axis"})
    if unknown:
        raise ValueError(
            f"{op}: preprocessing must hold mean, std and axis only, got {unknown[0]!r}"
        )
    axis = given.get("axis")
    if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int) or axis >= 0):
        raise ValueError(f"{op}: preprocessing axis must be a negative int, got {axis!r}")
    if axis is not None and -axis >= len(shape):
        raise ValueError(
            f"{op}: preprocessing axis must be one of an input's {len(shape) - 1}, "
            f"-1 to {1 - len(shape)}, got {axis}"
        )
    read = []
    for name, default in (("mean", 0.0), ("std", 1.0)):
        value = torch.as_tensor(given.get(name, default), dtype=torch.float64)
        if value.dim() == 1 and axis is None and value.numel() > 1:
            raise ValueError(
                f"{op}: preprocessing must have an axis when {name} is a sequence, got none"
            )
        if value.dim() > 1:
            raise ValueError(
                f"{op}: preprocessing {name} must be a number or 1-D, got {value.dim()} dimensions"
            )
        if value.dim() == 1 and axis is not None and len(value) not in (1, shape[axis]):
            raise ValueError(
                f"{op}: preprocessing {name} must hold {shape[axis]} numbers, the size of axis "
                f"{axis} of x {shape}, got {len(value)}"
            )
        if not value.isfinite().all() or (name == "std" and not (value > 0).all()):
            wanted = "positive and finite" if name == "std" else "finite"
            raise ValueError(f"{op}: preprocessing {name} must be {wanted}, got {given[name]}")
        if value.dim() == 1 and axis is not None:
            value = value.reshape(-1, *[1] * (-axis - 1))
        read.append(value)
    return read[0], read[1]


def check_bounds(op: str, x: Tensor, bounds: tuple[float, float] | None) -> None:
    """Raises when an input lies outside the bounds declared for it (noise is never clipped)."""
    if bounds is None:
        return
    try:
        low, high = bounds
        if isinstance(low, str) or isinstance(high, str):
            raise TypeError
        low, high = float(low), float(high)
    except (TypeError, ValueError):
        raise ValueError(f"{op}: bounds must be a pair (low, high), got {bounds!r}") from None
    if not low < high or math.isnan(low) or math.isnan(high):
        raise ValueError(f"{op}: bounds must be a pair with low < high, got {bounds!r}")
    if x.numel() == 0:
        return
    least, most = (v.item() for v in x.detach().aminmax())
    # half a unit in the last place of a float32 image is no reason to refuse it
    slack = 1e-6 * (high - low)
    if least < low - slack or most > high + slack:
        raise ValueError(
            f"{op}: x must lie within bounds ({low:g}, {high:g}), "
            f"got values from {least:g} to {most:g} (already normalised? see preprocessing)"
        )
