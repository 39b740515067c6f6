"""ONNX graphs as torch modules, for the operators that PP-OCR's recognition networks are made of.

The file is read by the ``onnx`` package: protocol buffers hold numbers and names, nothing is executed.
Operators are those of https://onnx.ai/onnx/operators at opset 11 and 12. Whatever is not supported is
refused while reading, by its name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._extras import require

EXTRA = "ocr"
OPSETS = (11, 12)


class OnnxGraph:
    """A file's nodes, constants and metadata.

    ``metadata``: the file's own properties (PP-OCR keeps its character list there). ``outputs``: names
    of the graph's outputs. ``network(tensor)`` is the part of the graph that computes one tensor.
    """

    def __init__(self, path: str | Path) -> None:
        onnx = require("onnx", "onnx", EXTRA)
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"OnnxGraph: path must name a file, got {path}")
        try:
            model = onnx.load(path)
        except require("google.protobuf.message", "protobuf", EXTRA).DecodeError as error:
            raise ValueError(f"OnnxGraph: path must be an ONNX file, got {path}: {error}") from None
        opsets = {o.version for o in model.opset_import if o.domain in ("", "ai.onnx")}
        if not opsets <= set(OPSETS) or len(opsets) != 1:
            raise ValueError(
                f"OnnxGraph: path must be of opset {' or '.join(map(str, OPSETS))}, got "
                f"{sorted(opsets)} in {path}"
            )
        graph = model.graph
        self.metadata = {p.key: p.value for p in model.metadata_props}
        self.outputs = [o.name for o in graph.output]
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        self.input = next(i.name for i in graph.input if i.name not in self.constants)
        self.nodes: dict[str, Node] = {}  # by the name of its first output, in the file's order
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                self.constants[node.output[0]] = onnx.numpy_helper.to_array(attributes["value"])
            else:
                self.nodes[node.output[0]] = Node(
                    node.op_type, attributes, list(node.input), node.output[0]
                )

    def producer(self, tensor: str) -> Node:
        """The node that computes a tensor; identities are looked through."""
        node = self.nodes.get(tensor)
        if node is None:
            raise ValueError(f"OnnxGraph: tensor must be computed by a node, got {tensor!r}")
        return self.producer(node.inputs[0]) if node.op == "Identity" else node

    def network(self, tensor: str) -> OnnxNetwork:
        """A module from the graph's input to ``tensor``."""
        needed, wanted = [], {tensor}
        for node in reversed(self.nodes.values()):  # the format has nodes sorted topologically
            if node.output in wanted:
                needed.append(node)
                wanted |= set(node.inputs)
        if self.input not in wanted:
            raise ValueError(f"OnnxGraph: tensor must depend on the input, got {tensor!r}")
        constants = {name: value for name, value in self.constants.items() if name in wanted}
        return OnnxNetwork(self.input, needed[::-1], constants, tensor)


class Node:
    """An operator's name, attributes, the tensors that it takes ('' for one left out) and gives."""

    def __init__(self, op: str, attributes: dict[str, Any], inputs: list[str], output: str) -> None:
        self.op, self.inputs, self.output = op, inputs, output
        self._attributes = attributes

    def function(self) -> Callable:
        """What the node does, its attributes bound."""
        build = _OPERATORS.get(self.op)
        if build is None:
            raise ValueError(
                f"OnnxGraph: operators must be among {', '.join(sorted(_OPERATORS))}, got "
                f"{self.op} in {self.output!r}"
            )
        try:
            return build(**self._attributes)
        except (TypeError, ValueError) as error:  # an attribute unknown, or of a value unknown
            raise ValueError(f"OnnxGraph: {self.op} of {self.output!r}: {error}") from None


class OnnxNetwork(nn.Module):
    """Part of an ONNX graph: ``x`` of the graph's input shape -> one of its tensors.

    Floating point constants are buffers (single numbers are Python's); shapes and indices are int64
    NumPy arrays, computed as the graph computes them, so the batch size is free. What depends on
    constants alone is computed once, here.
    """

    def __init__(
        self, entry: str, nodes: list[Node], constants: dict[str, np.ndarray], exit: str
    ) -> None:
        super().__init__()
        self._entry, self._exit = entry, exit
        known: dict[str, Any] = {"": None}
        known |= {name: _plain(value) for name, value in constants.items()}
        self._steps: list[tuple[Callable, list[str], str]] = []
        for node in nodes:
            function = node.function()
            if all(name in known for name in node.inputs):
                known[node.output] = function(*[known[name] for name in node.inputs])
            else:
                self._steps.append((function, node.inputs, node.output))
        used = {name for _, inputs, _ in self._steps for name in inputs}
        self._fixed = {n: v for n, v in known.items() if n in used and not isinstance(v, Tensor)}
        self._buffer_of: dict[str, str] = {}
        for name, value in known.items():
            if name in used and isinstance(value, Tensor):
                self._buffer_of[name] = f"constant{len(self._buffer_of)}"
                self.register_buffer(self._buffer_of[name], value)
        last = {name: at for at, (_, inputs, _) in enumerate(self._steps) for name in inputs}
        self._done = [[n for n in s[1] if last[n] == at] for at, s in enumerate(self._steps)]

    def forward(self, x: Tensor) -> Tensor:
        values = {self._entry: x, **self._fixed}
        values |= {name: getattr(self, buffer) for name, buffer in self._buffer_of.items()}
        for (function, inputs, output), done in zip(self._steps, self._done, strict=True):
            values[output] = function(*[values[name] for name in inputs])
            for name in done:
                values.pop(name, None)
        return values[self._exit]

    def extra_repr(self) -> str:
        return f"{self._entry} -> {self._exit}, {len(self._steps)} operators"


def _plain(value: np.ndarray) -> Tensor | np.ndarray | float:
    if value.dtype in (np.float32, np.float64):
        if value.size == 1 and value.ndim <= 1:
            return float(value.reshape(()))
        return torch.from_numpy(value.copy())
    if value.dtype in (np.int32, np.int64):
        return value.astype(np.int64)
    raise ValueError(f"OnnxGraph: constants must be float, int32 or int64, got {value.dtype}")


def _demand(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


def _padding(kernel, strides, pads, auto_pad) -> Callable[[Tensor], list[int]]:
    """Numbers for ``F.pad``, last axis first, from an input's shape."""
    if auto_pad in (b"NOTSET", b"VALID"):
        half = len(kernel)
        begin, end = list(pads or [0] * half), [0] * half
        if pads:
            begin, end = list(pads[:half]), list(pads[half:])
        fixed = [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]
        return lambda x: fixed
    _demand(auto_pad == b"SAME_UPPER", f"auto_pad must be SAME_UPPER, got {auto_pad.decode()}")

    def same(x: Tensor) -> list[int]:
        out = []
        for size, k, s in zip(
            reversed(x.shape[2:]), reversed(kernel), reversed(strides), strict=True
        ):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            out += [total // 2, total - total // 2]  # UPPER: an odd one lies at the end
        return out

    return same


def _conv(kernel_shape, strides, dilations, group=1, pads=None, auto_pad=b"NOTSET"):
    _demand(list(dilations) == [1, 1], f"dilations must be 1, got {dilations}")
    padding = _padding(kernel_shape, strides, pads, auto_pad)

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        left, right, top, bottom = padding(x)
        if left == right and top == bottom:
            return F.conv2d(x, weight, bias, strides, (top, left), groups=group)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, strides, groups=group)

    return conv


def _max_pool(kernel_shape, strides, pads=None, auto_pad=b"NOTSET", ceil_mode=0):
    _demand(ceil_mode == 0, "ceil_mode must be 0")
    padding = _padding(kernel_shape, strides, pads, auto_pad)
    return lambda x: F.max_pool2d(
        F.pad(x, padding(x), value=-torch.inf), kernel_shape, stride=strides
    )


def _average_pool(kernel_shape, strides, pads=(0, 0, 0, 0), ceil_mode=0, count_include_pad=0):
    _demand(ceil_mode == 0 and not any(pads), "ceil_mode and pads must be 0")
    return lambda x: F.avg_pool2d(x, kernel_shape, stride=strides)


def _batch_norm(epsilon=1e-5, momentum=0.9):
    # Not F.batch_norm: torch 2.13 on the CPU differentiates it wrongly, in reverse mode, for one
    # input of height 1 whose incoming gradient is strided; these networks have exactly that.
    def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor):
        scale = gamma / (variance + epsilon).sqrt()
        return x * scale[:, None, None] + (beta - mean * scale)[:, None, None]

    return batch_norm


def _softmax(axis):
    def softmax(x: Tensor) -> Tensor:
        # opset 12 and before: over all axes from this one on, so only the last is torch's
        _demand(
            axis in (-1, x.dim() - 1), f"OnnxGraph: Softmax must be over the last axis of {x.dim()}"
        )
        return x.softmax(-1)

    return softmax


def _reshape():
    def reshape(x, shape: np.ndarray):
        return x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape)])

    return reshape


def _slice():
    def part(x, starts, ends, axes, steps):
        index = [slice(None)] * x.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            index[axis] = slice(int(start), int(end), int(step))
        return x[tuple(index)]

    return lambda x, starts, ends, axes=None, steps=None: part(
        x,
        starts,
        ends,
        np.arange(len(starts)) if axes is None else axes,
        np.ones(len(starts)) if steps is None else steps,
    )


def _concat(axis):
    def concat(*parts):
        if isinstance(parts[0], np.ndarray):
            return np.concatenate(parts, axis)
        return torch.cat(parts, axis)

    return concat


def _unsqueeze(axes):
    (axis,) = axes
    return lambda x: x.unsqueeze(axis) if isinstance(x, Tensor) else np.expand_dims(x, axis)


def _cast(to):
    _demand(to in (6, 7), f"Cast must be to int32 or int64 (6, 7), got {to}")

    def cast(x):
        _demand(isinstance(x, np.ndarray), "OnnxGraph: Cast must be of shapes or indices")
        return x

    return cast


def _clip():
    return lambda x, low=None, high=None: x.clamp(low, high)


def _hard_sigmoid(alpha=0.2, beta=0.5):
    return lambda x: (alpha * x + beta).clamp(0.0, 1.0)


def _reduce_mean(axes, keepdims=1):
    return lambda x: x.mean(tuple(axes), keepdim=bool(keepdims))


def _fixed(function: Callable) -> Callable[[], Callable]:
    """An operator without attributes."""
    return lambda: function


#: operator -> what makes its function from its attributes; defaults are the format's.
_OPERATORS: dict[str, Callable[..., Callable]] = {
    "Add": _fixed(operator.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _fixed(operator.truediv),
    "Erf": _fixed(torch.erf),
    "GlobalAveragePool": _fixed(lambda x: x.mean((2, 3), keepdim=True)),
    "HardSigmoid": _hard_sigmoid,
    "Identity": _fixed(lambda x: x),
    "MatMul": _fixed(operator.matmul),
    "MaxPool": _max_pool,
    "Mul": _fixed(operator.mul),
    "Pow": _fixed(operator.pow),
    "ReduceMean": _reduce_mean,
    "Relu": _fixed(torch.relu),
    "Reshape": _reshape,
    "Shape": _fixed(lambda x: np.array(x.shape, dtype=np.int64)),
    "Sigmoid": _fixed(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Sqrt": _fixed(torch.sqrt),
    "Squeeze": lambda axes: lambda x: x.squeeze(tuple(axes)),
    "Sub": _fixed(operator.sub),
    "Transpose": lambda perm: lambda x: x.permute(*perm),
    "Unsqueeze": _unsqueeze,
}
