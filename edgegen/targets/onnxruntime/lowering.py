"""Rewrites of a network that ONNX Runtime's CPU kernels run faster, before (`lower`) and after (`finish`) it is quantized.

ONNX Runtime pays for each node (2 to 8 us with two threads) and for each pass over an image, and it runs an int8 convolution channels-last
between two Transposes. So: fewer nodes and passes around a group normalization, one Gemm for all projections of an embedding, and nothing through
which a Transpose of bytes could wander and become one of floats. What does not match a pattern exactly stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.quantize.graph import Names, attribute, copied, known_shapes, plain_gemm, prune

if TYPE_CHECKING:
    import onnx

__all__ = ["finish", "lower"]

Array = npt.NDArray[Any]
_OPSET = 13
"""The oldest opset whose Split and Unsqueeze take their sizes and axes as inputs."""
_EXTERNAL = 1
_INTEGER = ("Conv", "ConvTranspose", "Gemm", "MatMul", "QuantizeLinear")
"""Operators that ONNX Runtime fuses with a DequantizeLinear in front of them: nothing may come between."""


@dataclass(frozen=True, slots=True)
class _Linear:
    """A tensor [N, C] or [N, C, 1, ...] that is weight x + bias. source: the name of the weight it was made from."""

    x: str
    weight: Array
    bias: Array
    source: str


_PerChannel = Array | _Linear
"""One value per channel: the same for every sample, or a linear function of an embedding."""


def _scaled(a: _PerChannel, b: _PerChannel) -> _PerChannel | None:
    """a b, or None if it is neither constant nor linear."""
    if isinstance(b, _Linear):
        a, b = b, a
    if isinstance(b, _Linear):
        return None
    return _Linear(a.x, a.weight * b[:, None], a.bias * b, a.source) if isinstance(a, _Linear) else a * b


def _sum(a: _PerChannel, b: _PerChannel) -> _PerChannel | None:
    """a + b, or None if they are linear functions of different tensors."""
    if isinstance(b, _Linear):
        a, b = b, a
    if isinstance(b, _Linear):
        assert isinstance(a, _Linear)
        return _Linear(a.x, a.weight + b.weight, a.bias + b.bias, a.source) if a.x == b.x else None
    return _Linear(a.x, a.weight, a.bias + b, a.source) if isinstance(a, _Linear) else a + b


class _Graph:
    """The nodes of a copy of a model, with what is known about its tensors; `model` puts them back in order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self._model = copied(model)
        self.nodes: list[Any] = list(self._model.graph.node)
        self.outputs = {o.name for o in model.graph.output}
        self.shapes = known_shapes(model)
        inputs = {i.name for i in model.graph.input}
        inside = [t for t in model.graph.initializer if t.data_location != _EXTERNAL and t.name not in inputs]
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in inside}
        self._added: dict[str, Array] = {}
        self._names = Names(model)
        self.index()

    def index(self) -> None:
        """Note who makes and who reads each tensor."""
        self.maker: dict[str, Any] = {o: n for n in self.nodes for o in n.output if o}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def sole_reader(self, name: str) -> Any | None:
        """The one node that reads a tensor, which is no output of the network; None otherwise."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def name(self, wanted: str) -> str:
        """A name for a tensor that is not taken."""
        return self._names.new(wanted)

    def constant(self, wanted: str, value: Array) -> str:
        """A new constant; returns its name."""
        name = self.name(wanted)
        self.constants[name] = self._added[name] = value
        return name

    def replace(self, old: Sequence[Any], new: Sequence[Any]) -> None:
        """Put `new` where the last of `old` stood."""
        gone = {id(n) for n in old}
        at = next(i for i, n in enumerate(self.nodes) if n is old[-1])
        before, behind = ([n for n in part if id(n) not in gone] for part in (self.nodes[:at], self.nodes[at:]))
        self.nodes = [*before, *new, *behind]
        self.index()

    def needed(self, more: Iterable[str] = ()) -> set[int]:
        """The nodes (their ids) that the outputs and `more` depend on."""
        needed: set[int] = set()
        names = [*self.outputs, *more]
        while names:
            node = self.maker.get(names.pop())
            if node is not None and id(node) not in needed:
                needed.add(id(node))
                names += node.input
        return needed

    def model(self) -> onnx.ModelProto:
        """The model with the nodes that its outputs need, each behind those it reads, otherwise in their order."""
        done: set[int] = set()
        order = []
        for node in self.nodes:
            stack = [node]
            while stack:
                before = [m for m in (self.maker.get(i) for i in stack[-1].input) if m is not None and id(m) not in done]
                if before:
                    stack.append(before[0])
                    continue
                last = stack.pop()
                if id(last) not in done:
                    done.add(id(last))
                    order.append(type(last).FromString(last.SerializeToString()))
        prune(self._model, order, self._added)
        return self._model


def _open(model: onnx.ModelProto) -> _Graph | None:
    """The model's graph, or None for one whose operators have other forms or are unknown, or that holds subgraphs or functions."""
    from onnx.shape_inference import InferenceError

    opsets = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    nested = any(a.HasField("g") or a.graphs for n in model.graph.node for a in n.attribute)
    if not opsets or min(opsets) < _OPSET or nested or model.functions:
        return None
    try:
        return _Graph(model)
    except InferenceError:
        return None


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float network that computes the same as `model`, up to float32 rounding, in fewer nodes and passes.

    1. A Reshape to the Shape of another tensor gets its sizes as a constant, so nothing waits for that tensor.
    2. The scale-and-shifts behind a normalization become one: a BatchNormalization with constants, or a Mul and an Add whose factors
       are linear in an embedding (scale and shift of the normalization multiplied into that projection's weights).
    3. Projections of the same embedding become one Gemm and one Split.

    Names of the tensors that convolutions read and write do not change. Same model, same bytes.
    """
    graph = _open(model)
    if graph is None:
        return copied(model)
    _fix_shapes(graph)
    _merge_projections(graph, _merge_scales(graph))
    return graph.model()


def finish(model: onnx.ModelProto) -> onnx.ModelProto:
    """A quantized network that computes the same as `model`, in which ONNX Runtime transposes bytes only.

    The output of an int8 convolution is reshaped before it is dequantized: to what the normalization behind it wants, or to [N, C, HW].
    A Transpose cannot pass a Reshape; without one it passes the DequantizeLinear and ends, on floats, with a further pair of Q and DQ, before
    the next Add or Concat. Same model, same bytes.
    """
    graph = _open(model)
    if graph is None:
        return copied(model)
    for node in list(graph.nodes):
        sizes = _output_of_convolution(graph, node) if node.op_type == "DequantizeLinear" else None
        if sizes is not None:
            _flatten(graph, node, sizes)
    return graph.model()


def _fix_shapes(graph: _Graph) -> None:
    for node in graph.nodes:
        if node.op_type != "Reshape" or node.input[1] in graph.constants or attribute(node, "allowzero", 0):
            continue
        shape = graph.shapes.get(node.output[0], (None, None))
        if sum(size is None for size in shape) == 1 and 0 not in shape:
            sizes = np.array([-1 if size is None else size for size in shape], np.int64)
            node.input[1] = graph.constant(f"{node.output[0]}_shape", sizes)
    graph.index()


def _constant_per_channel(value: Array, rank: int, channels: int) -> Array | None:
    """A constant operand as one value per channel (axis 1 of `rank` axes), or None if it varies along another axis."""
    if value.dtype != np.float32 or value.ndim > rank:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(value.astype(np.float64).reshape(-1), (channels,))


def _is_per_channel(shape: tuple[int | None, ...] | None, channels: int) -> bool:
    return shape is not None and len(shape) >= 2 and shape[1] == channels and all(size == 1 for size in shape[2:])


def _linear(graph: _Graph, name: str) -> _PerChannel | None:
    """What a tensor [N, C] or [N, C, 1, ...] is: linear in the input of a Gemm, up to views and per-channel constants. None if it is not."""
    node, shape = graph.maker.get(name), graph.shapes.get(name)
    if node is None or shape is None or len(shape) < 2 or shape[1] is None or not _is_per_channel(shape, shape[1]):
        return None
    channels = shape[1]
    if node.op_type == "Gemm":
        return _gemm(graph, node)
    if node.op_type in ("Add", "Mul"):
        found = [_operand(graph, i, len(shape), channels) for i in node.input]
        if found[0] is None or found[1] is None:
            return None
        return (_sum if node.op_type == "Add" else _scaled)(found[0], found[1])
    if node.op_type in ("Unsqueeze", "Reshape") and _is_per_channel(graph.shapes.get(node.input[0]), channels):
        return _linear(graph, node.input[0])
    if node.op_type == "Split" and attribute(node, "axis", 0) == 1:
        whole = _linear(graph, node.input[0])
        sizes = [(graph.shapes.get(o) or (None, None))[1] for o in node.output]
        if isinstance(whole, _Linear) and None not in sizes:
            start = sum(size or 0 for size in sizes[: list(node.output).index(name)])
            rows = slice(start, start + channels)
            return _Linear(whole.x, whole.weight[rows], whole.bias[rows], whole.source)
    return None


def _operand(graph: _Graph, name: str, rank: int, channels: int) -> _PerChannel | None:
    if name in graph.constants:
        return _constant_per_channel(graph.constants[name], rank, channels)
    shape = graph.shapes.get(name)
    return _linear(graph, name) if shape is not None and len(shape) == rank and _is_per_channel(shape, channels) else None


def _gemm(graph: _Graph, node: Any) -> _Linear | None:
    """A Gemm x W + b with constant float32 W and b."""
    weight = graph.constants.get(node.input[1])
    if weight is None or weight.dtype != np.float32 or not plain_gemm(node):
        return None
    rows = weight if attribute(node, "transB", 0) else weight.T
    bias: Array | None = np.zeros(len(rows))
    if len(node.input) > 2 and node.input[2]:
        value = graph.constants.get(node.input[2])
        bias = None if value is None else _constant_per_channel(value, 2, len(rows))
    return None if bias is None else _Linear(node.input[0], rows.astype(np.float64), bias, node.input[1])


@dataclass(frozen=True, slots=True)
class _Projection:
    """A tensor to be made by a merged Gemm: its name, rank (2 or that of an image) and values."""

    name: str
    rank: int
    value: _Linear


def _is_normalization(graph: _Graph, name: str) -> bool:
    node = graph.maker.get(name)
    if node is not None and node.op_type == "Reshape":
        node = graph.maker.get(node.input[0])
    return node is not None and node.op_type == "InstanceNormalization"


def _merge_scales(graph: _Graph) -> list[_Projection]:
    """Step 2 of `lower`. Returns the factors that are still to be made."""
    from onnx import helper

    projections: list[_Projection] = []
    for name in [o for n in graph.nodes for o in n.output if _is_normalization(graph, o)]:
        shape = graph.shapes.get(name)
        if shape is None or len(shape) < 3 or shape[1] is None:
            continue
        steps, gain, offset = _scale_and_shift(graph, name, len(shape), shape[1])
        if len(steps) < 2:
            continue
        last = steps[-1].output[0]

        def factor(value: _PerChannel, what: str, rank: int = len(shape), last: str = last) -> str:
            if isinstance(value, _Linear):
                projections.append(_Projection(graph.name(f"{last}_{what}"), rank, value))
                return projections[-1].name
            return graph.constant(f"{last}_{what}", value.astype(np.float32).reshape(-1, *(1,) * (rank - 2)))

        if isinstance(gain, _Linear) or isinstance(offset, _Linear):
            scaled = graph.name(f"{last}_scaled")
            new = [
                helper.make_node("Mul", [name, factor(gain, "gain")], [scaled], f"{last}_scale"),
                helper.make_node("Add", [scaled, factor(offset, "offset")], [last], f"{last}_shift"),
            ]
        else:
            zeros, ones = (graph.constant(f"{last}_{what}", np.full(len(gain), v, np.float32)) for what, v in (("mean", 0), ("variance", 1)))
            values = [factor(gain, "gain", 2), factor(offset, "offset", 2)]
            new = [helper.make_node("BatchNormalization", [name, *values, zeros, ones], [last], f"{last}_scale", epsilon=0.0)]
        graph.replace(steps, new)
    return projections


def _scale_and_shift(graph: _Graph, name: str, rank: int, channels: int) -> tuple[list[Any], _PerChannel, _PerChannel]:
    """The Mul and Add nodes that follow a tensor one after the other, and what they do together: gain y + offset."""
    steps: list[Any] = []
    gain: _PerChannel = np.ones(channels)
    offset: _PerChannel = np.zeros(channels)
    while True:
        node = graph.sole_reader(name)
        if node is None or node.op_type not in ("Mul", "Add"):
            return steps, gain, offset
        value = _operand(graph, node.input[1 if node.input[0] == name else 0], rank, channels)
        if value is None:
            return steps, gain, offset
        next_gain = _scaled(gain, value) if node.op_type == "Mul" else gain
        next_offset = _scaled(offset, value) if node.op_type == "Mul" else _sum(offset, value)
        if next_gain is None or next_offset is None:
            return steps, gain, offset
        gain, offset, name = next_gain, next_offset, node.output[0]
        steps.append(node)


def _merge_projections(graph: _Graph, projections: Sequence[_Projection]) -> None:
    """Step 3 of `lower`: makes `projections`, and with them the other views [N, C, 1, ...] of projections."""
    groups: dict[tuple[str, int], list[_Projection]] = {}
    for projection in [*projections, *_projection_views(graph, [p.value.x for p in projections])]:
        groups.setdefault((projection.value.x, projection.rank), []).append(projection)
    wanted = {p.name for p in projections}
    for group in groups.values():
        if len(group) > 1 or group[0].name in wanted:
            _merge(graph, group)


def _projection_views(graph: _Graph, read: Sequence[str]) -> list[_Projection]:
    """The Unsqueezes and Reshapes that give [N, C, 1, ...] of a Gemm's output. read: tensors that something not yet there will read."""
    needed = graph.needed(read)
    views = []
    for node in graph.nodes:
        if id(node) in needed and node.op_type in ("Unsqueeze", "Reshape") and node.output[0] not in graph.outputs:
            shape = graph.shapes.get(node.output[0])
            value = _linear(graph, node.output[0]) if shape is not None and len(shape) > 2 else None
            if shape is not None and isinstance(value, _Linear):
                views.append(_Projection(node.output[0], len(shape), value))
    return views


def _merge(graph: _Graph, group: Sequence[_Projection]) -> None:
    """Make all of `group` with one Gemm."""
    from onnx import helper

    value, rank = group[0].value, group[0].rank
    made = {p.name for p in group}
    graph.nodes = [n for n in graph.nodes if not made.intersection(n.output)]
    weight = graph.constant(f"{value.source}_merged", np.concatenate([p.value.weight for p in group]).astype(np.float32))
    bias = graph.constant(f"{value.source}_merged_bias", np.concatenate([p.value.bias for p in group]).astype(np.float32))
    flat = graph.name(f"{value.source}_projections")
    whole = group[0].name if len(group) == 1 else graph.name(f"{flat}_view")
    view = graph.constant(f"{flat}_shape", np.array([0, -1] + [1] * (rank - 2), np.int64))
    graph.nodes.append(helper.make_node("Gemm", [value.x, weight, bias], [flat], flat, transB=1))
    graph.nodes.append(helper.make_node("Reshape", [flat, view], [whole], f"{flat}_Reshape"))
    if len(group) > 1:
        sizes = graph.constant(f"{flat}_sizes", np.array([len(p.value.bias) for p in group], np.int64))
        graph.nodes.append(helper.make_node("Split", [whole, sizes], [p.name for p in group], f"{flat}_Split", axis=1))
    graph.index()


def _output_of_convolution(graph: _Graph, node: Any) -> list[int] | None:
    """The sizes C, H, W of a DequantizeLinear's output if it makes floats of an int8 convolution's output for other operators; else None."""
    quantize = graph.maker.get(node.input[0])
    convolution = graph.maker.get(quantize.input[0]) if quantize is not None and quantize.op_type == "QuantizeLinear" else None
    shape = graph.shapes.get(node.output[0])
    if quantize is None or convolution is None or convolution.op_type != "Conv" or shape is None or len(shape) != 4:
        return None
    if None in (graph.sole_reader(quantize.input[0]), graph.sole_reader(node.input[0])) or node.output[0] in graph.outputs:
        return None
    if any(r.op_type in _INTEGER for r in graph.readers.get(node.output[0], [])):
        return None
    sizes = [size for size in shape[1:] if size]
    return sizes if len(sizes) == 3 else None


def _flatten(graph: _Graph, node: Any, sizes: list[int]) -> None:
    """Reshape the bytes that a DequantizeLinear reads, and its floats back for those of its readers that do not reshape them themselves."""
    from onnx import helper

    name = node.output[0]
    views = [r for r in graph.readers[name] if r.op_type == "Reshape" and _is_view(graph, r)]
    target = graph.constants[views[0].input[1]] if views else np.array([0, sizes[0], -1], np.int64)
    shape = graph.constant(f"{name}_flat_shape", target)
    flat, quantized = graph.name(f"{name}_flat"), graph.name(f"{node.input[0]}_flat")
    new = [helper.make_node("Reshape", [node.input[0], shape], [quantized], f"{quantized}_Reshape"), node]
    node.input[0], node.output[0] = quantized, flat
    for view in views:
        if np.array_equal(graph.constants[view.input[1]], target):
            for reader in graph.readers[view.output[0]]:
                reader.input[:] = [flat if i == view.output[0] else i for i in reader.input]
        else:
            view.input[0] = flat
    if len(views) < len(graph.readers[name]):
        back = graph.constant(f"{name}_shape", np.array([-1, *sizes], np.int64))
        new.append(helper.make_node("Reshape", [flat, back], [name], f"{name}_Reshape"))
    graph.replace([node], new)


def _is_view(graph: _Graph, node: Any) -> bool:
    """Whether a Reshape makes [N, ?, ?] of an image, whatever the image's own shape is noted as."""
    shape = graph.constants.get(node.input[1])
    return shape is not None and shape.shape == (3,) and shape[0] == 0 and 0 not in shape[1:] and node.output[0] not in graph.outputs
