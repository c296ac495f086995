"""Where QuantizeLinear and DequantizeLinear go for TensorRT, and the quantized model.

int8, fp8: a pair on the input of each planned Conv, Gemm and MatMul (one scale per tensor), and a constant weight with one scale per output
channel; float bias, zero points 0, nothing on outputs: TensorRT moves the scales into the kernels' epilogues. int4: weights only, of Gemm
and MatMul, in blocks along the summed axis. A weight that several nodes share (a fused program's steps) is stored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgegen.errors import BuildError, CalibrationError, nearest
from edgegen.quantize import Ranges
from edgegen.targets.placement import OPERATORS, Placement, place, watched
from edgegen.targets.tensorrt.scales import LARGEST, pack_int4, per_block, per_channel, per_tensor

if TYPE_CHECKING:
    import onnx

__all__ = ["BLOCK", "OPERATORS", "PRECISIONS", "Placement", "plan", "quantize", "watched"]

PRECISIONS = tuple(LARGEST)
BLOCK = 32
"""Values per int4 scale."""
_INT8, _FP8, _INT4, _FLOAT = 3, 17, 22, 1
_OPSET = {"int8": 13, "fp8": 19, "int4": 21}
"""The first opset that has each type."""
_TYPE = {"int8": _INT8, "fp8": _FP8, "int4": _INT4}


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise BuildError(f"precision {precision!r} is not one that TensorRT quantizes to: {nearest(precision, PRECISIONS)}")


def plan(model: onnx.ModelProto, operators: Sequence[str], keep: Sequence[str], precision: str = "int8") -> tuple[Placement, ...]:
    """The nodes to quantize. keep: patterns (fnmatch) of node or weight names that stay float.

    int4 takes Gemm and MatMul whose summed axis is two blocks or more, in whole blocks; TensorRT would write out other weights as floats in
    each run. Raises BuildError for an operator or a precision that it does not know.
    """
    _check_precision(precision)
    placements = place(model, operators, keep, outputs=())
    if precision != "int4":
        return placements
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    fitting = []
    for p in placements:
        shape = shapes[p.weight]
        if model.graph.node[p.node].op_type != "Conv" and shape[1 - p.axis] % BLOCK == 0 and shape[1 - p.axis] > BLOCK:
            fitting.append(replace(p, output=False))
    return tuple(fitting)


class _Quantizer:
    """Rewrites nodes one by one; keeps the constants that it added, and what it made of each tensor."""

    def __init__(self, model: onnx.ModelProto, ranges: Ranges | None, precision: str) -> None:
        from onnx import numpy_helper

        self.ranges, self.precision = ranges, precision
        self.arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == _FLOAT}
        self.taken = {v.name for v in model.graph.input} | {name for node in model.graph.node for name in (*node.input, *node.output)}
        self.nodes: list[Any] = []
        self.added: dict[str, Any] = {}
        self.dequantized: dict[Any, str] = {}
        """A tensor, or a weight with its axis -> its quantized and dequantized values."""

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

    def zero(self, wanted: str, shape: Sequence[int]) -> str:
        """Zero points, written out: without one, ONNX reads a Q as one to uint8."""
        return self.constant(wanted, _TYPE[self.precision], shape, bytes(int(np.prod(shape))))

    def activation(self, tensor: str) -> str:
        """The tensor after a Q and a DQ, one pair for all of its readers."""
        from onnx import helper

        if tensor not in self.dequantized:
            if self.ranges is None:
                raise CalibrationError(f"{self.precision} needs the range of tensor {tensor!r}, and no ranges were given")
            scale = np.asarray(per_tensor(*self.ranges.at(tensor), self.precision))
            parameters = [self.scale(f"{tensor}_scale", scale), self.zero(f"{tensor}_zero_point", ())]
            codes, values = self.name(f"{tensor}_q"), self.name(f"{tensor}_dq")
            self.nodes.append(helper.make_node("QuantizeLinear", [tensor, *parameters], [codes], f"{tensor}_Q"))
            self.nodes.append(helper.make_node("DequantizeLinear", [codes, *parameters], [values], f"{tensor}_DQ"))
            self.dequantized[tensor] = values
        return self.dequantized[tensor]

    def weight(self, name: str, axis: int) -> str:
        """A DequantizeLinear over the weight's codes; axis: its output channels."""
        from onnx import helper

        key = name, axis
        if key not in self.dequantized:
            array = self.arrays[name]
            if self.precision == "int4":
                codes, scale = per_block(array, 1 - axis, BLOCK)
                attributes, data = {"axis": 1 - axis, "block_size": BLOCK}, pack_int4(codes)
                zero: list[str] = []
            else:
                codes, scale = per_channel(array, axis, self.precision)
                attributes, data = {"axis": axis}, codes.tobytes()
                zero = [self.zero(f"{name}_zero_point", scale.shape)]
            inputs = [self.constant(f"{name}_q", _TYPE[self.precision], array.shape, data), self.scale(f"{name}_scale", scale), *zero]
            values = self.name(f"{name}_dq")
            node = helper.make_node("DequantizeLinear", inputs, [values], f"{name}_DQ")
            node.attribute.extend(helper.make_attribute(*attribute) for attribute in attributes.items())
            self.nodes.append(node)
            self.dequantized[key] = values
        return self.dequantized[key]

    def node(self, node: Any, placement: Placement | None) -> None:
        if placement is not None:
            if self.precision != "int4":
                node.input[0] = self.activation(node.input[0])
            node.input[1] = self.weight(placement.weight, placement.axis)
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


def quantize(model: onnx.ModelProto, placements: Sequence[Placement], ranges: Ranges | None, precision: str = "int8") -> onnx.ModelProto:
    """A copy of `model` with the planned nodes quantized. Same inputs, same bytes.

    ranges: of the tensors that `watched` names; int4 needs none. fp8 takes opset 19 and int4 opset 21, to which older models are converted.
    Raises CalibrationError for a range that is missing or not finite, BuildError for a precision or an opset that cannot be had.
    """
    import onnx

    _check_precision(precision)
    result = _with_opset(model, _OPSET[precision])
    if len(result.graph.node) != len(model.graph.node):  # the converter added some: the placements' indices are the model's
        places = {node.output[0]: i for i, node in enumerate(result.graph.node)}
        placements = [replace(p, node=places[model.graph.node[p.node].output[0]]) for p in placements]
    quantizer = _Quantizer(result, ranges, precision)
    by_node = {p.node: p for p in placements}
    for i, node in enumerate(result.graph.node):
        quantizer.node(onnx.NodeProto.FromString(node.SerializeToString()), by_node.get(i))
    used = {name for node in quantizer.nodes for name in node.input} | {o.name for o in result.graph.output}
    kept = [t for t in result.graph.initializer if t.name in used]
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(quantizer.nodes)
    result.graph.initializer.extend([*kept, *quantizer.added.values()])
    return result
