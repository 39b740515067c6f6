"""Rows of Jacobians without ever holding more of a Jacobian than a byte budget allows."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._checks import warn_caller
from ._ops import memory_errors
from ._standard_normal import standard_normal
from .forward_mode import LayerRules
from .head import FeatureNetwork, Head
from .host_memory import freed_memory_kept
from .meter import Meter
from .network import (
    Network,
    first_line,
    full_float32,
    memory_of_one,
    safe_norm,
    uncompiled,
    without_autocast,
)
from .noise import PROBES, row_keys
from .passes import full_pass, padded, pass_size, unpadded

JACOBIAN_METHODS = ("batch", "loop", "vmap")
JVP_MODES = ("forward", "double_backward")
CHECKS = ("off", "warn", "raise")
DEFAULT_MAX_BYTES = 2**30
#: Rows that ``vmap`` differentiates at once (MODELS: more gains nothing on a CPU).
_VMAP_ROWS = 16
#: Numbers that are checked at a time: few enough for a CPU's cache, many for a GPU's kernels.
_CHECKED = {"cpu": 2**20, "cuda": 2**27}
#: Inputs, and classes of each, whose rows are made anew to check a model that rounds to TF32.
_CHECKED_INPUTS, _CHECKED_CLASSES = 2, 2
#: Of a row's norm, what half precision was seen to do to its product with the probe where passes round in two ways
#: (:meth:`LogitMap._compare`), and by how much a larger one may still be that.
_KINKS = {torch.float16: 0.5, torch.bfloat16: 1.4}
_MORE_INPUTS = 2.5


class LogitMap:
    """Mean logits over fixed input noise, in groups, and their derivatives: the map linearised.

    F_g(x) = mean of f(x + d_j) over the samples j of group g. Without noise it is f itself, one
    group. Nothing is cached between calls: noise comes from a counter and is drawn again.

    Args:
        network: the classifier, or its features (:class:`mvnrob.head.FeatureNetwork`).
        meter: counts passes.
        x: inputs ``[b, *shape]`` in the network's working dtype.
        inputs: their numbers, int64 ``[b]``, for the meter.
        offsets: ``(first, count) -> [b, count, *shape]``, or None for no noise.
        groups: ``(first, count)`` of each group's samples.
        max_copies: most noisy copies in one pass with a graph.
        max_tangents: most tangents (inputs times copies times directions) in one forward-mode pass.
        fill: rows of few inputs come from passes of copies of these, one for each of several columns, as
            long as a pass has at most ``fill`` inputs (and ``max_copies``): see :func:`full_pass`; and all
            passes have one of few sizes (:func:`pass_size`). Without effect unless ``method`` is
            ``"batch"``.
        method, jvp_mode, check: as in :func:`mvnrob.robustness`.
    """

    def __init__(
        self,
        network: Network | FeatureNetwork,
        meter: Meter,
        x: Tensor,
        inputs: Tensor,
        *,
        offsets: Callable[[int, int], Tensor] | None = None,
        groups: list[tuple[int, int]] | None = None,
        max_copies: int,
        max_tangents: int,
        method: str,
        jvp_mode: str,
        check: str,
        fill: int = 1,
    ) -> None:
        self.network, self.meter, self.inputs = network, meter, inputs
        self.x = x.detach()
        self.groups = groups or [(0, 1)]
        self._offsets = offsets
        self._samples_at_once = max(1, max_copies // max(1, x.shape[0]))
        self._copies, self._tangents = max(1, max_copies), max(1, max_tangents)
        self._method, self._jvp_mode, self._check = method, jvp_mode, check
        self._fill = fill if method == "batch" else 1
        self._probe: tuple[Tensor, Tensor] | None = None
        #: the map that this one was cut from, which knows whether the model has been checked
        self._source: LogitMap | None = None
        self._model_checked = False
        #: factors [b] on all derivatives, or None (:meth:`mvnrob.linearised.Linearised.rescaled`)
        self.scale: Tensor | None = None

    def _with(self, network, x: Tensor, inputs: Tensor, offsets: Callable | None) -> LogitMap:
        """A map of this one's settings."""
        return LogitMap(
            network,
            self.meter,
            x,
            inputs,
            offsets=offsets,
            groups=self.groups,
            max_copies=self._copies,
            max_tangents=self._tangents,
            method=self._method,
            jvp_mode=self._jvp_mode,
            check=self._check,
            fill=self._fill,
        )

    def subset(self, rows: Tensor) -> LogitMap:
        """The same map at some of the inputs, with what is known of them."""
        whole = self._offsets
        offsets = None if whole is None else lambda first, count: whole(first, count)[rows]
        part = self._with(self.network, self.x[rows], self.inputs[rows], offsets)
        if self._probe is not None:
            part._probe = self._probe[0][rows], self._probe[1][rows]
        part._source = self._origin
        if self.scale is not None:
            part.scale = self.scale[rows]
        return part

    @property
    def _origin(self) -> LogitMap:
        return self if self._source is None else self._source

    def scaled(self, scale: Tensor) -> LogitMap:
        """The same map with derivatives times ``scale`` [b]."""
        whole = self.subset(torch.arange(len(self.x), device=self.x.device))
        whole.forget_probe()
        whole.scale = scale
        return whole

    def through(self, head: Head) -> LogitMap:
        """The map of the head's features, over the same inputs and noise."""
        return self._with(FeatureNetwork(self.network, head), self.x, self.inputs, self._offsets)

    @property
    def jvp_mode(self) -> str:
        return self._jvp_mode

    @property
    def features(self) -> int:
        return self.x[0].numel()

    @property
    def samples(self) -> int:
        return sum(count for _, count in self.groups)

    def _blocks(self) -> Iterator[tuple[int, int, int, float]]:
        """(group, first sample, count, weight) of pieces small enough for one pass."""
        for group, (first, count) in enumerate(self.groups):
            for start in range(0, count, self._samples_at_once):
                size = min(self._samples_at_once, count - start)
                yield group, first + start, size, 1.0 / count

    def _logits(
        self, x: Tensor, first: int, count: int, copies: int = 1, *, most: int = 0, each: int = 1
    ) -> Tensor:
        """Logits summed over ``count`` samples, differentiable in x: so many ``copies`` of every input, one
        behind the other, to ``[b copies, C]``. In a pass of at most ``most`` inputs, ``max_copies`` unless
        given, which ``each`` have so many tangents."""
        if self._offsets is None:
            return self._passed(x, most, each)
        noise = self._offsets(first, count)
        if copies > 1:
            noise = _repeated(noise, copies)
        noisy = (x[:, None] + noise).flatten(0, 1)
        return self._passed(noisy, most, each).unflatten(0, (x.shape[0], count)).sum(1)

    def _passed(self, x: Tensor, most: int, each: int) -> Tensor:
        """The network's answers ``[b, C]`` from a pass of one of few sizes."""
        rows = x.shape[0]
        size = min(pass_size(rows, self._fill, each), max(rows, most or self._copies))
        return unpadded(self.network(padded(x, size)), rows)

    def values(self) -> Tensor:
        """Group means of the logits ``[b, G, C]``, float64."""
        out: Tensor | None = None
        with torch.no_grad(), self.meter.clock("forward"):
            for group, first, count, weight in self._blocks():
                part = self._logits(self.x, first, count).double() * weight
                if out is None:
                    out = part.new_zeros(self.x.shape[0], len(self.groups), part.shape[1])
                out[:, group] += part
        self.meter.passes("forward", self.inputs, self.samples)
        return out

    def rows(self, classes: Tensor, spare: int = 0) -> Tensor:
        """Gradients of the group means of ``classes`` [b, k]: ``[b, spare + k, G, D]``, dtype of x.

        The first ``spare`` rows are zero, for the caller to fill.

        One backward pass per column of ``classes`` gives that column's row for every input: the sum
        over the batch of one logit each has row b's gradient at input b, because rows of the
        network are independent (what ``check`` tests). With ``fill`` a pass of copies of the inputs
        serves as many columns; the meter counts the copies' forward passes.
        """
        whole = self._unchecked_rows(classes, spare)
        self._check_rows(classes, whole[:, spare:])
        return whole

    def _unchecked_rows(self, classes: Tensor, spare: int = 0) -> Tensor:
        b, k = classes.shape
        whole = self.x.new_zeros(b, spare + k, len(self.groups), self.features)
        out = whole[:, spare:]
        forward = 0
        with torch.enable_grad():
            for group, first, count, weight in self._blocks():
                copies = self._copies_for(k, count)
                leaf, logits = self._with_graph(first, count, copies)
                with self.meter.clock("vjp"):
                    for at, gradient in self._backward(logits, leaf, classes, copies):
                        out[:, at, group] += self._in_scale(gradient) * weight
                del leaf, logits  # before the next ones come
                forward += copies * count
        self.meter.passes("forward", self.inputs, forward)
        self.meter.passes("vjp", self.inputs, k * self.samples)
        return whole

    def _copies_for(self, columns: int, count: int) -> int:
        """Copies of every input, with ``count`` samples each, in a pass for so many columns: no more than
        passes as few take."""
        most = min(self._copies, self._fill) // (len(self.x) * count)
        return math.ceil(columns / math.ceil(columns / most)) if min(most, columns) > 1 else 1

    def _with_graph(self, first: int, count: int, copies: int = 1) -> tuple[Tensor, Tensor]:
        """A leaf with the values of x, or of ``copies`` of each, and the logits that depend on it."""
        with self.meter.clock("forward"):
            leaf = _repeated(self.x, copies).requires_grad_()
            logits = self._logits(leaf, first, count, copies)
        self._check_differentiable(logits)
        return leaf, logits

    def _check_differentiable(self, logits: Tensor) -> None:
        if not logits.requires_grad:
            raise ValueError(
                f"{self.network.op}: model must be differentiable in its input, got logits "
                "without a gradient (methods 'mc' and 'logit_moments' need none)"
            )

    def _in_scale(self, derivatives: Tensor) -> Tensor:
        if self.scale is None:
            return derivatives
        shape = (-1, *[1] * (derivatives.dim() - 1))
        return derivatives * self.scale.to(derivatives).reshape(shape)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Of the mean over all samples, for cotangents ``[b, m, C]``: ``[b, m, D]``."""
        b, m, _ = cotangents.shape
        out = self.x.new_zeros(b, m, self.features)
        with torch.enable_grad():
            for _, first, count, _ in self._blocks():
                leaf, logits = self._with_graph(first, count)
                with self.meter.clock("vjp"):
                    for at, cotangent in enumerate(cotangents.to(logits).unbind(1)):
                        (gradient,) = torch.autograd.grad(
                            logits, leaf, cotangent, retain_graph=at < m - 1
                        )
                        out[:, at] += gradient.flatten(1)
        self.meter.passes("forward", self.inputs, self.samples)
        self.meter.passes("vjp", self.inputs, m * self.samples)
        return self._in_scale(out) / self.samples

    def _backward(
        self, logits: Tensor, leaf: Tensor, classes: Tensor, copies: int
    ) -> Iterator[tuple[slice, Tensor]]:
        """Columns, and their rows ``[b, columns, D]``."""
        b, k = classes.shape
        if self._method == "vmap":
            for start in range(0, k, _VMAP_ROWS):
                part = classes[:, start : start + _VMAP_ROWS]
                hot = torch.nn.functional.one_hot(part.T, logits.shape[1]).to(logits)
                (gradient,) = torch.autograd.grad(
                    logits, leaf, hot, retain_graph=True, is_grads_batched=True
                )
                yield slice(start, start + part.shape[1]), gradient.flatten(2).transpose(0, 1)
            return
        for start in range(0, k, copies):
            part = classes[:, start : start + copies]
            width = part.shape[1]
            if copies == 1:
                chosen = logits.gather(1, part)
            else:  # those copies that no column is left for have no gradient
                chosen = logits.unflatten(0, (b, copies))[:, :width].gather(2, part[:, :, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), leaf, retain_graph=start + copies < k)
            yield slice(start, start + width), gradient.reshape(b, copies, -1)[:, :width]

    def jvp(self, directions: Tensor) -> Tensor:
        """Derivatives of the mean over all samples along ``directions`` [b, m, D]: ``[b, m, C]``."""
        groups = self.group_jvp(directions)
        if groups.shape[2] == 1:
            return groups[:, :, 0]
        sizes = torch.tensor([count for _, count in self.groups]).to(groups)
        return torch.einsum("bmgc,g->bmc", groups, sizes / self.samples)

    def group_jvp(self, directions: Tensor) -> Tensor:
        """Derivatives of the group means along ``directions`` [b, m, D]: ``[b, m, G, C]``, float64.

        Forward mode by default; ``double_backward`` differentiates the VJP by its cotangent, for
        models with operations that have no forward-mode rule.
        """
        b, m, _ = directions.shape
        # few inputs rather than few directions: the network runs once for all directions of an input
        few = max(1, self._tangents // max(1, m))
        if self._offsets is None and few < b:
            parts = torch.arange(b, device=self.x.device).split(few)
            return torch.cat([self.subset(part).group_jvp(directions[part]) for part in parts])
        along = directions.reshape(b, m, *self.x.shape[1:]).to(self.x)
        push = self._jvp_forward if self._jvp_mode == "forward" else self._jvp_double_backward
        out: Tensor | None = None
        with self.meter.clock("jvp"):
            for group, first, count, weight in self._blocks():
                at_once = max(1, self._tangents // (b * count))
                parts = [
                    push(along[:, at : at + at_once], first, count) for at in range(0, m, at_once)
                ]
                part = torch.cat(parts, 1).double()
                if out is None:
                    out = part.new_zeros(b, m, len(self.groups), part.shape[2])
                out[:, :, group] += part * weight
        self.meter.passes("jvp", self.inputs, m * self.samples)
        return self._in_scale(out)

    def _jvp_forward(self, along: Tensor, first: int, count: int) -> Tensor:
        """``[b, m, C]`` for ``along`` [b, m, *shape], in passes of few sizes: with directions of zeros."""
        b, m = along.shape[:2]
        size = min(pass_size(m, self._fill, b * count), self._tangents // (b * count))
        if size > m:
            along = torch.cat([along, along.new_zeros(b, size - m, *along.shape[2:])], 1)
        return self._jvp_together(along, first, count)[:, :m]

    def _jvp_together(self, along: Tensor, first: int, count: int) -> Tensor:
        """With ``torch.func.vmap`` over the directions the network itself runs once for all of them;
        models that vmap refuses get a copy of their inputs for every direction.
        """
        b, m = along.shape[:2]
        most = self._tangents // m

        def summed(x: Tensor) -> Tensor:
            return self._logits(x, first, count, most=most, each=m)

        # no graph for the weights; forward mode does not need one
        with torch.no_grad(), plain_attention(), uncompiled(), memory_errors():
            norms = self.network.norms()
            if along.shape[1] > 1 and self.network.batch_tangents:
                try:
                    with memory_errors(), LayerRules(any_layout=True, norms=norms):
                        return _batched_tangents(summed, self.x, along)
                except torch.OutOfMemoryError:
                    raise
                except (NotImplementedError, RuntimeError, ValueError):
                    self.network.batch_tangents = False
            point = _repeated(self.x, m)

            def repeated(x: Tensor) -> Tensor:
                return self._logits(x, first, count, m, most=self._tangents)

            with LayerRules(any_layout=False, norms=norms):
                _, out = torch.func.jvp(repeated, (point,), (along.flatten(0, 1),))
        return out.unflatten(0, (b, m))

    def _jvp_double_backward(self, along: Tensor, first: int, count: int) -> Tensor:
        with torch.enable_grad(), plain_attention(), memory_errors():
            leaf = self.x.clone().requires_grad_()
            logits = self._logits(leaf, first, count)
            cotangent = torch.zeros_like(logits).requires_grad_()
            (gradient,) = torch.autograd.grad(logits, leaf, cotangent, create_graph=True)
            out = []
            for direction in along.unbind(1):
                (part,) = torch.autograd.grad(gradient, cotangent, direction, retain_graph=True)
                out.append(part)
        return torch.stack(out, 1)

    def probe(self) -> tuple[Tensor, Tensor]:
        """One random direction per input ``[b, 1, D]`` and the derivatives along it ``[b, C]``."""
        if self._probe is None:
            keys = row_keys(0, PROBES, self.inputs)
            direction = standard_normal(keys, 0, 1, self.features, self.x.dtype)
            self._probe = direction, self.jvp(direction)[:, 0]
        return self._probe

    def take_probe(self, direction: Tensor, product: Tensor) -> None:
        """What :meth:`probe` would compute, known from the features."""
        self._probe = direction, product

    def forget_probe(self) -> None:
        self._probe = None

    def _check_rows(self, classes: Tensor, rows: Tensor) -> None:
        """Compares ``rows`` [b, k, G, D] with one random forward-mode product per input.

        Reverse mode is wrong in places (torch 2.13 CPU: batch_norm of a single height-1 input with a
        strided gradient), and rows that are not independent make the sum-over-batch VJP wrong. Both
        show here. The products should agree to rounding: 1e-3 of the largest row's norm for float32
        networks (measured: 5e-6), 1e-7 for float64, 5e-2 where the model computes in half precision.
        Those that do not are compared once more (:meth:`_probe_as_rows`).

        Where TF32 is on, derivatives of two passes are not comparable (:meth:`Network.rounds_to_tf32`):
        the model is checked in place of the rows (:meth:`_check_model`).
        """
        if self._check == "off" or classes.numel() == 0:
            return
        if self.network.rounds_to_tf32():
            self._check_model(classes)
            return
        try:
            self.probe()
        except (NotImplementedError, RuntimeError) as error:
            self._was_not_checked(error)
            return
        self._compare(classes, rows)

    def _check_model(self, classes: Tensor) -> None:
        """Compares a few rows with forward-mode products, both made anew without TF32.

        Once for a map and all that are cut from it, at its first two inputs, which pass together in
        both modes (:meth:`_probe_as_rows` says why). Rows that are not independent show there; a map of
        one input has none that could, except copies (``fill``). Of noise: the first samples of the first group. Costs these inputs
        a forward pass, up to two backward passes and a forward-mode product for each sample; the meter
        counts them.
        """
        origin = self._origin
        if origin._model_checked:
            return
        part = origin._first_inputs()
        few = classes[:_CHECKED_INPUTS, :_CHECKED_CLASSES].expand(len(part.x), -1)
        try:
            with full_float32(), memory_errors():
                rows = part._unchecked_rows(few)
                part.probe()
        except (NotImplementedError, RuntimeError) as error:
            self._was_not_checked(error)
        else:
            part._compare(few, rows)
        origin._model_checked = True

    def _first_inputs(self) -> LogitMap:
        """The map at the inputs that the model is checked at, with as many samples as one pass takes."""
        part = self.subset(torch.arange(min(len(self.x), _CHECKED_INPUTS), device=self.x.device))
        part.forget_probe()
        first, count = self.groups[0]
        most = self._samples_at_once
        if len(part.x) == 1 and part._fill > 1:
            # copies of a single input show rows that are not independent too
            most = max(1, min(most, self._copies // _CHECKED_CLASSES))
        part.groups = [(first, min(count, most))]
        part._fill = 1 if len(part.x) > 1 else min(part._fill, _CHECKED_CLASSES * part.samples)
        part._tangents = len(part.x) * part.samples
        return part

    def _compare(self, classes: Tensor, rows: Tensor) -> None:
        """Warns, or raises, where rows and products differ by more than rounding.

        In half precision passes that round alike agree to 5e-3 (float16) and 4e-2 (bfloat16) of the largest
        row's norm (``python -m bench half_passes``: 53 convolutions, CPU). Passes of one size need not: where
        a single convolution takes another algorithm in forward mode, and rounds some numbers the other way,
        ReLUs behind it take other sides. One of the last four does .06 to .1 to one or two inputs of 48 in
        float16, the first up to .5 to all; in bfloat16 up to .3 and 1.1, all together 1.4. No bound that
        finds anything holds for that: it is the one of passes alike, and the words name the rounding.
        """
        gap, size = self._gaps(classes, rows)
        wrong = gap > self.network.rounding() * size
        if wrong.any():
            # float32 has its kinks as well
            self._probe_as_rows(classes.shape[1])
            gap, size = self._gaps(classes, rows)
            wrong = gap > self.network.rounding() * size
        if wrong.any():
            row = int((gap / size).masked_fill(~wrong, -1.0).nan_to_num(nan=math.inf).argmax())
            kinks = _MORE_INPUTS * _KINKS.get(self.network.half, 0.0)
            self._complain(
                "the Jacobian's reverse-mode rows must agree with a forward-mode product, got a "
                f"difference of {gap[row].item():.2g} beside rows of norm {size[row].item():.2g} "
                f"for input {int(self.inputs[row])}: {self._cause(bool(gap[row] <= kinks * size[row]))}"
            )
            if self._check == "warn":
                self._check = "off"

    def _cause(self, may_be_rounding: bool) -> str:
        """Why rows and products differ, in words."""
        model = (
            "an operation of the model differentiates wrongly, or its rows are not independent (then "
            "pass jacobian='loop')"
        )
        if not may_be_rounding:
            return model
        dtype = str(self.network.half).removeprefix("torch.")
        return (
            f"possibly rounding to {dtype}, by which two passes take other sides of ReLUs' kinks. Who wants to "
            "know compares with the model in float32 (on a GPU also in TF32): if this is said there, too, "
            + model
        )

    def _gaps(self, classes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of each input ``[b]``, float64: the largest difference to the probe, the largest row's norm."""
        direction, product = self.probe()
        shares = torch.tensor(
            [count / self.samples for _, count in self.groups], dtype=rows.dtype, device=rows.device
        )
        reverse, size = [], torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        # in parts: their squares are float64
        at_once = _CHECKED["cpu" if rows.device.type == "cpu" else "cuda"]
        for part in rows.split(max(1, at_once // rows[:, 0].numel()), dim=1):
            reverse.append(torch.einsum("bkgd,bd->bkg", part, direction[:, 0]) @ shares)
            size = torch.maximum(size, safe_norm(part).amax((1, 2)))
        return (torch.cat(reverse, 1) - product.gather(1, classes)).abs().amax(1), size

    def _probe_as_rows(self, columns: int) -> None:
        """The probe's products in passes of as many inputs as those of rows of so many columns.

        Passes of one size round alike. Those of two sizes differ by the last bits of their activations,
        and where a ReLU is that near its kink by another side: in one of four inputs by more than
        1e-3 of the rows' norm, at most 9e-3 (31 convolutions in float32, random weights, CPU), where
        passes of one size agree to 5e-6.
        """
        direction, _ = self.probe()
        copies = self._copies_for(columns, min(self.groups[0][1], self._samples_at_once))
        rows = torch.arange(len(self.x), device=self.x.device).repeat_interleave(copies)
        alike = self.subset(rows)
        alike._tangents = max(self._copies, len(rows))
        self._probe = direction, alike.jvp(direction[rows])[::copies, 0]
        # the meter has counted each input once
        self.meter.passes("jvp", self.inputs, (copies - 1) * self.samples)

    def _was_not_checked(self, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        self._complain(
            "the Jacobian could not be checked against a forward-mode product "
            f"({first_line(error)}); pass jvp_mode='double_backward' or check='off'",
        )
        self._check = "off"

    def _complain(self, text: str) -> None:
        if self._check == "raise":
            raise RuntimeError(f"{self.network.op}: {text}")
        warn_caller(f"{self.network.op}: {text}")


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by kernels that have forward-mode and second derivatives: the fused ones have none.

    The values are those of the fused kernels up to rounding.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _repeated(x: Tensor, copies: int) -> Tensor:
    """Each of x ``[b, ...]`` so many times, one behind the other: ``[b copies, ...]``, in memory of its own
    (forward mode refuses the overlapping memory of what is expanded)."""
    each = x[:, None].expand(-1, copies, *x.shape[1:])
    return each.clone(memory_format=torch.contiguous_format).flatten(0, 1)


def _batched_tangents(function: Callable[[Tensor], Tensor], x: Tensor, along: Tensor) -> Tensor:
    def push(direction: Tensor) -> Tensor:
        return torch.func.jvp(function, (x,), (direction,))[1]

    with warnings.catch_warnings():
        # an operation without a batching rule is looped over: slower, not wrong
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        # contiguous: matrix products of what is not repeat the weights for every direction
        return torch.func.vmap(push, out_dims=1)(along.transpose(0, 1).contiguous())


def jacobian(
    model: Callable,
    x: Tensor,
    classes: Tensor | None = None,
    *,
    preprocessing: Mapping | None = None,
    method: str = "batch",
    max_bytes: int = DEFAULT_MAX_BYTES,
    check: str = "warn",
) -> Tensor:
    """Rows of the Jacobian of a classifier's logits by its inputs, ``[B, k, D]``.

    Args:
        model: ``nn.Module`` in eval mode or callable, ``[B, *shape] -> [B, C]`` logits (or an
            object with ``.logits``); rows independent of each other.
        x: inputs ``[B, *shape]``, floating point, D numbers each.
        classes: the logits to differentiate, int64 ``[B, k]``, its own list for every input; none
            means all C.
        preprocessing: ``dict(mean, std, axis)``; derivatives are by x itself, in logits per unit.
        method: ``"batch"`` one backward pass per column of ``classes`` for a whole chunk of inputs;
            ``"loop"`` one input at a time, for models whose rows are not independent; ``"vmap"``
            batches the backward passes of 16 classes (``torch.vmap``).
        max_bytes: budget for the result and for autograd's graph of a chunk of inputs.
        check: compare each input's rows with one random ``torch.func.jvp``: ``"warn"`` or
            ``"raise"`` when they differ, or ``"off"``; where TF32 is on, a few rows made anew without
            it, as in :func:`mvnrob.robustness`.

    Returns float32, or float64 for float64 inputs. Half precision models are differentiated at
    float32 copies of their inputs.

    Cost: k + 2 passes per input (and one for the check).

    Raises:
        TypeError, ValueError: a bad argument; a module in train mode; a result beyond ``max_bytes``.
    """
    op = "jacobian"
    check_choice(op, "method", method, JACOBIAN_METHODS)
    check_choice(op, "check", check, CHECKS)
    check_inputs(op, x)
    network = Network(op, model, preprocessing, x)
    x = working_copy(x, network.work_dtype)
    batch, features = x.shape[0], x[0:1].numel()
    if batch == 0:
        rows = network.count_classes(x) if classes is None else classes.shape[1]
        return x.new_zeros(0, rows, features)
    with memory_of_one(op):
        graph = network.graph_bytes(x[:1])
    if classes is None:
        classes = torch.arange(network.classes, device=x.device).expand(batch, -1)
    elif classes.dim() != 2 or classes.shape[0] != batch or classes.dtype != torch.int64:
        raise ValueError(f"jacobian: classes must be int64 [{batch}, k], got {list(classes.shape)}")
    elif classes.numel() and not (0 <= classes.min() and classes.max() < network.classes):
        raise ValueError(f"jacobian: classes must lie in [0, {network.classes})")
    needed = classes.numel() * features * x.element_size()
    if needed > max_bytes:
        raise ValueError(
            f"jacobian: max_bytes must hold the result, {needed} bytes for {list(classes.shape)} "
            f"rows of {features} numbers, got {max_bytes}; pass fewer inputs or classes"
        )
    fits = max(1, (max_bytes - needed) // (2 * graph))
    step = 1 if method == "loop" else min(batch, fits)
    full = full_pass(x.device, graph) if method == "batch" else 1
    copies = max(step, min(fits, full))
    meter = Meter(batch, x.device)
    out = x.new_empty(batch, classes.shape[1], features)
    start = 0
    with freed_memory_kept(x.device):
        while start < batch:
            inputs = torch.arange(start, min(start + step, batch), device=x.device)
            part = LogitMap(
                network,
                meter,
                x[inputs],
                inputs,
                max_copies=copies,
                max_tangents=step,
                method=method,
                jvp_mode="forward",
                check=check,
                fill=min(copies, full),
            )
            try:
                one = memory_of_one(op) if step == copies == 1 else memory_errors()
                with one, without_autocast(x.device):
                    out[inputs] = part.rows(classes[inputs])[:, :, 0]
            except torch.OutOfMemoryError:
                if step == copies == 1:
                    raise
                step, copies = max(1, len(inputs) // 2), max(1, copies // 2)
                warn_caller(f"{op}: out of memory; going on with {step} inputs at a time")
                continue
            start += len(inputs)
    return out


def working_copy(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as an ordinary contiguous tensor without history, also inside ``torch.inference_mode``."""
    with torch.inference_mode(False):
        return x.detach().clone(memory_format=torch.contiguous_format).to(dtype)


def check_inputs(op: str, x) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(
            f"{op}: x must be floating point, got {str(x.dtype).removeprefix('torch.')}"
        )
    if x.layout != torch.strided or x.is_nested:
        kind = "a nested tensor" if x.is_nested else f"{x.layout}; pass x.to_dense()"
        raise TypeError(f"{op}: x must be a dense tensor, got {kind}")
    if x.is_meta:
        raise ValueError(f"{op}: x must hold numbers, got a tensor on device meta")
    if x.dim() < 2:
        raise ValueError(f"{op}: x must have shape [B, *shape], got {list(x.shape)}")
    if x.shape[0] > 0 and x.numel() == 0:
        raise ValueError(
            f"{op}: x must have at least one number for each input, got shape {list(x.shape)}"
        )


def check_choice(op: str, name: str, value, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got {value!r}")
