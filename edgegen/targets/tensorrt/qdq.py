"""Where QuantizeLinear and DequantizeLinear go for TensorRT, and the quantized model.

int8, fp8, w4a8: a pair on the input of each planned Conv, Gemm and MatMul (one scale per tensor), and a constant weight with one scale per
output channel; float bias, zero points 0, nothing on outputs: TensorRT moves the scales into the kernels' epilogues. w4a8 has int4 weights in
Gemm and MatMul, and int8 ones where TensorRT takes no others. int4, w8a16: weights only, of Gemm and MatMul; int4 in blocks along the summed
axis. A weight that several nodes share (a fused program's steps) is stored once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgegen.errors import BuildError, CalibrationError, Status
from edgegen.errors import nearest as nearest_name
from edgegen.quantize import Ranges
from edgegen.quantize.fp8 import fp8_weight
from edgegen.quantize.rounding import Codes, nearest
from edgegen.quantize.times import row_of_time
from edgegen.targets.placement import OPERATORS, Placement, place, watched
from edgegen.targets.tensorrt.scales import pack_int4, per_tensor
from edgegen.targets.tensorrt.timed import scaled_by_time, time_type

if TYPE_CHECKING:
    import onnx

__all__ = ["BLOCK", "BLOCKS", "OPERATORS", "PRECISIONS", "Placement", "plan", "quantize", "roundings", "watched"]

PRECISIONS: Mapping[str, tuple[str, str | None]] = {
    "int8": ("int8", "int8"), "fp8": ("fp8", "fp8"), "int4": ("int4", None), "w4a8": ("int4", "int8"), "w8a16": ("int8", None),
}  # fmt: skip
"""Precision -> types of its weights and of its activations; None: these stay float."""
BLOCK = 32
"""Values per int4 scale, where only weights are quantized and `codes` do not say otherwise."""
BLOCKS = (16, 32, 64, 128)
_FLOAT, _INT64 = 1, 7
_TYPE = {"int8": 3, "fp8": 17, "int4": 22}
_OPSET = {"int8": 13, "fp8": 19, "int4": 21}
"""The first opset that has each type."""
_BITS = {"int8": 8, "int4": 4}


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise BuildError(f"precision {precision!r} is not one that TensorRT quantizes to: {nearest_name(precision, PRECISIONS)}")


def _weight_type(operator: str, shape: Sequence[int], precision: str) -> str:
    """TensorRT takes int4 weights in no Conv, and none of an odd number of values."""
    weight, _ = PRECISIONS[precision]
    return "int8" if weight == "int4" and (operator == "Conv" or math.prod(shape) % 2) else weight


def plan(model: onnx.ModelProto, operators: Sequence[str], keep: Sequence[str], precision: str = "int8") -> tuple[Placement, ...]:
    """The nodes to quantize. keep: patterns (fnmatch) of node or weight names that stay float.

    int4 and w8a16 leave float what TensorRT would write out as floats in each run: Conv, weights with a side of odd length, and for int4
    those whose summed axis is not two blocks or more, in whole blocks. Raises BuildError for an operator or a precision that it does not know.
    """
    _check_precision(precision)
    placements = place(model, operators, keep, outputs=())
    if PRECISIONS[precision][1] is not None:
        return placements
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    products = [p for p in placements if model.graph.node[p.node].op_type != "Conv" and not any(size % 2 for size in shapes[p.weight])]
    return tuple(p for p in products if precision != "int4" or _fits(shapes[p.weight], p.axis, BLOCK))


def _fits(shape: Sequence[int], axis: int, block: int) -> bool:
    """Whether the summed axis of a [K, N] or [N, K] weight is two blocks or more, whole ones. axis: its output channels."""
    return shape[1 - axis] % block == 0 and shape[1 - axis] > block


def roundings(model: onnx.ModelProto, placements: Sequence[Placement], precision: str = "int8") -> dict[str, tuple[int, int, int]]:
    """The rounding that `quantize` takes in its `codes`: weight -> (axis, bits, block), to be given to `edgegen.quantize.rounding`.

    None for fp8, and for a weight whose output channels lie along both axes, by different nodes. Raises BuildError: an unknown precision.
    """
    _check_precision(precision)
    block = BLOCK if precision == "int4" else 0
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    wanted: dict[str, set[tuple[int, int, int]]] = {}
    for p in placements:
        kind = _weight_type(model.graph.node[p.node].op_type, shapes[p.weight], precision)
        if kind in _BITS:
            wanted.setdefault(p.weight, set()).add((p.axis, _BITS[kind], block))
    return {name: next(iter(forms)) for name, forms in wanted.items() if len(forms) == 1}


def _check_codes(name: str, codes: Codes, shape: tuple[int, ...], axis: int, kind: str, block: bool) -> None:
    """Raise BuildError unless codes are those of a weight. block: whether they are to have a scale for each block, or for each channel."""
    what = f"the codes of weight {name!r}"
    if kind not in _BITS:
        raise BuildError(f"{what}: it becomes {kind}, which has no integer codes; leave it out of `codes`", Status.BAD_DTYPE)
    if codes.codes.shape != shape:
        raise BuildError(f"{what} have the shape {list(codes.codes.shape)}, expected that of the weight, {list(shape)}", Status.BAD_SHAPE)
    if codes.axis != axis:
        raise BuildError(f"{what} have their output channels along axis {codes.axis}, expected axis {axis}, as its node reads it", Status.BAD_SHAPE)
    if codes.bits != _BITS[kind]:
        raise BuildError(f"{what} have {codes.bits} bits, expected {_BITS[kind]}; round it again with those", Status.BAD_DTYPE)
    if block and not (codes.block in BLOCKS and _fits(shape, axis, codes.block)):
        sizes = ", ".join(map(str, BLOCKS))
        message = f"{what} have blocks of {codes.block} along a summed axis of {shape[1 - axis]}; expected {sizes}, and two of them or more, whole"
        raise BuildError(message, Status.BAD_SHAPE)
    if codes.block and not block:
        raise BuildError(f"{what} have blocks of {codes.block}, expected one scale per channel (block 0)", Status.BAD_SHAPE)
    scales = (shape[axis], shape[1 - axis] // codes.block) if block else (shape[axis],)
    if codes.scale.shape != scales:
        raise BuildError(f"{what} have scales of shape {list(codes.scale.shape)}, expected {list(scales)}", Status.BAD_SHAPE)
    if not (np.isfinite(codes.scale).all() and (codes.scale > 0).all()):
        raise BuildError(f"{what} have a scale that is not finite and above 0", Status.OUT_OF_RANGE)
    largest = 2 ** (codes.bits - 1) - 1
    if np.abs(codes.codes.astype(np.int16)).max(initial=0) > largest:
        raise BuildError(f"{what} go beyond -{largest} .. {largest}", Status.OUT_OF_RANGE)


class _Quantizer:
    """Rewrites nodes one by one; keeps the constants that it added, and what it made of each tensor."""

    def __init__(self, model: onnx.ModelProto, ranges: Ranges | None, precision: str, codes: Mapping[str, Codes], time: str | None) -> None:
        from onnx import numpy_helper

        self.model, self.ranges, self.precision, self.codes, self.time = model, ranges, precision, codes, time
        self.ranks: dict[str, int] = {}
        """Number of axes, of the tensors that have scales by time."""
        if ranges is not None and time is not None:
            self.ranks = scaled_by_time(model, ranges.rows, ranges, time)
        self.factors: dict[str, str] = {}
        """A tensor -> the scale of each row's time."""
        self.indices: dict[tuple[float, ...], str] = {}
        """Times -> the index of each row's time among them."""
        self.activations = PRECISIONS[precision][1]
        self.arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == _FLOAT}
        self.taken = {v.name for v in model.graph.input} | {name for node in model.graph.node for name in (*node.input, *node.output)}
        self.nodes: list[Any] = []
        self.added: dict[str, Any] = {}
        self.dequantized: dict[Any, str] = {}
        """A tensor, or a weight with its axis -> its quantized and dequantized values."""
        self.biases: dict[tuple[str, int], str] = {}
        """A bias, number of axes -> it along axis 1 of them."""

    def name(self, wanted: str) -> str:
        while wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted

    def constant(self, wanted: str, data_type: int, shape: Sequence[int], data: bytes) -> str:
        from onnx import TensorProto

        name = self.name(wanted)
        self.added[name] = TensorProto(name=name, data_type=data_type, dims=shape, raw_data=data)
        return name

    def scale(self, wanted: str, value: np.ndarray[Any, Any]) -> str:
        return self.constant(wanted, _FLOAT, value.shape, np.ascontiguousarray(value, "<f4").tobytes())

    def zero(self, wanted: str, kind: str, shape: Sequence[int]) -> str:
        """Zero points, written out: without one, ONNX reads a Q as one to uint8."""
        size = (math.prod(shape) + 1) // 2 if kind == "int4" else math.prod(shape)
        return self.constant(wanted, _TYPE[kind], shape, bytes(size))

    def activation(self, tensor: str, kind: str) -> str:
        """The tensor after a Q and a DQ, one pair for all of its readers."""
        from onnx import helper

        if tensor not in self.dequantized:
            if self.ranges is None:
                raise CalibrationError(f"{self.precision} needs the range of tensor {tensor!r}, and no ranges were given")
            source, scale = tensor, np.asarray(per_tensor(*self.ranges.at(tensor), kind))
            if tensor in self.ranks:
                source, scale = self.divided(tensor, kind), np.ones((), np.float32)
            parameters = [self.scale(f"{tensor}_scale", scale), self.zero(f"{tensor}_zero_point", kind, ())]
            codes, values = self.name(f"{tensor}_q"), self.name(f"{tensor}_dq")
            self.nodes.append(helper.make_node("QuantizeLinear", [source, *parameters], [codes], f"{tensor}_Q"))
            self.nodes.append(helper.make_node("DequantizeLinear", [codes, *parameters], [values], f"{tensor}_DQ"))
            self.dequantized[tensor] = values
        return self.dequantized[tensor]

    def divided(self, tensor: str, kind: str) -> str:
        """The tensor in units of its time's scale, so that its range is that of the codes; the scale goes to `factors`."""
        from onnx import helper

        assert self.ranges is not None
        rows = self.ranges.rows[tensor]
        scales = np.array([per_tensor(low, high, kind) for _, low, high in rows], np.float32)
        table = self.scale(f"{tensor}_scales", scales.reshape([-1] + [1] * (self.ranks[tensor] - 1)))
        factor, divided = self.name(f"{tensor}_factor"), self.name(f"{tensor}_divided")
        index = self.index(tuple(time for time, _, _ in rows))
        self.nodes.append(helper.make_node("Gather", [table, index], [factor], f"{tensor}_Gather", axis=0))
        self.nodes.append(helper.make_node("Div", [tensor, factor], [divided], f"{tensor}_Div"))
        self.factors[tensor] = factor
        return divided

    def index(self, times: tuple[float, ...]) -> str:
        """int64[batch]: where each row's time is among `times`."""
        from onnx import numpy_helper

        if times not in self.indices:
            assert self.time is not None
            cast = time_type(self.model, self.time).elem_type != _FLOAT
            nodes, constants = row_of_time(self.name, self.time, times, cast=cast)
            self.nodes += nodes
            self.added |= {name: numpy_helper.from_array(array, name) for name, array in constants.items()}
            self.indices[times] = nodes[-1].output[0]
        return self.indices[times]

    def multiplied(self, node: Any, tensor: str) -> None:
        """Append a product with the codes of `tensor`, its rows multiplied by their scale, and its bias added after that."""
        from onnx import helper

        output, bias = node.output[0], node.input[2] if len(node.input) > 2 else ""
        del node.input[2:]
        node.output[0] = self.name(f"{output}_product")
        scaled = self.name(f"{output}_scaled") if bias else output
        self.nodes += [node, helper.make_node("Mul", [node.output[0], self.factors[tensor]], [scaled], f"{output}_Mul")]
        if bias:
            addend = self.channels(bias, self.ranks[tensor]) if node.op_type == "Conv" else bias
            self.nodes.append(helper.make_node("Add", [scaled, addend], [output], f"{output}_Add"))

    def channels(self, bias: str, rank: int) -> str:
        """A convolution's bias along axis 1 of its output."""
        from onnx import helper

        key = bias, rank
        if key not in self.biases:
            shape = [1, -1] + [1] * (rank - 2)
            if bias in self.arrays:
                self.biases[key] = self.scale(f"{bias}_channels", self.arrays[bias].reshape(shape))
            else:
                sizes = self.constant(f"{bias}_shape", _INT64, (rank,), np.array(shape, "<i8").tobytes())
                self.biases[key] = self.name(f"{bias}_channels")
                self.nodes.append(helper.make_node("Reshape", [bias, sizes], [self.biases[key]], f"{self.biases[key]}_Reshape"))
        return self.biases[key]

    def weight(self, name: str, axis: int, operator: str) -> str:
        """A DequantizeLinear over the weight's codes, the given or the nearest ones. axis: its output channels; operator: what reads it."""
        from onnx import helper

        key = name, axis
        if key not in self.dequantized:
            array, block = self.arrays[name], self.precision == "int4"
            kind = _weight_type(operator, array.shape, self.precision)
            if name in self.codes:
                _check_codes(name, self.codes[name], array.shape, axis, kind, block)
            if kind == "fp8":
                stored, scale = fp8_weight(array, axis)
                attributes, data = {"axis": axis}, stored.tobytes()
            else:
                rounded = self.codes[name] if name in self.codes else nearest(array, axis, _BITS[kind], BLOCK if block else 0)
                data = pack_int4(rounded.codes) if kind == "int4" else np.ascontiguousarray(rounded.codes).tobytes()
                scale = rounded.scale.T if block and axis == 1 else rounded.scale
                attributes = {"axis": 1 - axis, "block_size": rounded.block} if block else {"axis": axis}
            zero = [] if block else [self.zero(f"{name}_zero_point", kind, scale.shape)]
            inputs = [self.constant(f"{name}_q", _TYPE[kind], array.shape, data), self.scale(f"{name}_scale", scale), *zero]
            values = self.name(f"{name}_dq")
            node = helper.make_node("DequantizeLinear", inputs, [values], f"{name}_DQ")
            node.attribute.extend(helper.make_attribute(*attribute) for attribute in attributes.items())
            self.nodes.append(node)
            self.dequantized[key] = values
        return self.dequantized[key]

    def node(self, node: Any, placement: Placement | None) -> None:
        if placement is None:
            self.nodes.append(node)
            return
        tensor = node.input[0]
        if self.activations is not None:
            node.input[0] = self.activation(tensor, self.activations)
        node.input[1] = self.weight(placement.weight, placement.axis, node.op_type)
        if tensor in self.factors:
            self.multiplied(node, tensor)
        else:
            self.nodes.append(node)


def _with_opset(model: onnx.ModelProto, least: int) -> onnx.ModelProto:
    """A copy of the model, of opset `least` or later."""
    import onnx
    from onnx import version_converter

    result = onnx.ModelProto()
    result.CopyFrom(model)
    opset = next((o for o in result.opset_import if o.domain in ("", "ai.onnx")), None)
    if opset is not None and opset.version < least:
        try:
            result = version_converter.convert_version(result, least)
        except Exception as e:  # what it raises is not documented
            raise BuildError(f"this needs opset {least} or later, the model has {opset.version} and onnx cannot convert it: {e}") from e
        result.ir_version = max(model.ir_version, 10 if least >= 21 else 9)
    return result


def quantize(
    model: onnx.ModelProto, placements: Sequence[Placement], ranges: Ranges | None, precision: str = "int8", *,
    codes: Mapping[str, Codes] | None = None, time: str | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """A copy of `model` with the planned nodes quantized. Same inputs, same bytes.

    ranges: of the tensors that `watched` names; int4 and w8a16 need none. codes: weights that are rounded already (`roundings` says how), by
    name, those of other weights among them; the rest is rounded to nearest. time: the network's time input, by which the tensors that
    `scaled_by_time` names get the scale of each row's time; all others, and without it all, get one scale over all times.
    fp8 takes opset 19 and int4 weights opset 21, to which older models are converted. Raises CalibrationError for a range that is missing or
    not finite, BuildError for a precision or an opset that cannot be had, codes that do not fit their weight, or no such time input.
    """
    import onnx

    _check_precision(precision)
    result = _with_opset(model, max(_OPSET[kind] for kind in PRECISIONS[precision] if kind))
    if len(result.graph.node) != len(model.graph.node):  # the converter added some: the placements' indices are the model's
        places = {node.output[0]: i for i, node in enumerate(result.graph.node)}
        placements = [replace(p, node=places[model.graph.node[p.node].output[0]]) for p in placements]
    quantizer = _Quantizer(result, ranges, precision, codes or {}, time)
    by_node = {p.node: p for p in placements}
    for i, node in enumerate(result.graph.node):
        quantizer.node(onnx.NodeProto.FromString(node.SerializeToString()), by_node.get(i))
    used = {name for node in quantizer.nodes for name in node.input} | {o.name for o in result.graph.output}
    kept = [t for t in result.graph.initializer if t.name in used]
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(quantizer.nodes)
    result.graph.initializer.extend([*kept, *quantizer.added.values()])
    return result
