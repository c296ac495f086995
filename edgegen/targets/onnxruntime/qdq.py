"""Where QuantizeLinear and DequantizeLinear go for ONNX Runtime's CPU kernels, and the quantized model.

Conv: uint8 input, int8 weight per output channel, int32 bias, and a Q on the output, without which ONNX Runtime runs the
convolution in float. Gemm and MatMul by a constant: the same, without the output Q (MatMulIntegerToFloat, QGemm).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgegen.quantize import Ranges, affine_uint8, bias_int32, per_channel_int8
from edgegen.targets.placement import OPERATORS, Placement, place, watched

if TYPE_CHECKING:
    import onnx

__all__ = ["OPERATORS", "Placement", "plan", "quantize", "watched"]


def plan(model: onnx.ModelProto, operators: Sequence[str], keep: Sequence[str]) -> tuple[Placement, ...]:
    """The nodes to quantize. keep: patterns (fnmatch) of node or weight names that stay float.

    Raises BuildError for an operator that cannot be quantized here.
    """
    return place(model, operators, keep, outputs=("Conv",))


class _Quantizer:
    def __init__(self, model: onnx.ModelProto, ranges: Ranges) -> None:
        from onnx import numpy_helper

        self.model = model
        self.ranges = ranges
        self.arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.nodes: list[Any] = []
        self.added: dict[str, Any] = {}
        self.dequantized: dict[str, str] = {}
        """Tensor -> the tensor that carries its quantized and dequantized values."""

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        from onnx import numpy_helper

        self.added[name] = numpy_helper.from_array(value, name)
        return name

    def activation_scale(self, tensor: str) -> tuple[np.float32, list[str]]:
        scale, zero = affine_uint8(*self.ranges.at(tensor))
        names = [
            self.constant(f"{tensor}_scale", np.asarray(scale, np.float32)),
            self.constant(f"{tensor}_zero_point", np.asarray(zero, np.uint8)),
        ]
        return scale, names

    def pair(self, source: str, tensor: str, target: str) -> None:
        """Q and DQ with `tensor`'s scale, from `source` to `target`."""
        from onnx import helper

        _, scale = self.activation_scale(tensor)
        self.nodes.append(helper.make_node("QuantizeLinear", [source, *scale], [f"{tensor}_q"], f"{tensor}_Q"))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", *scale], [target], f"{tensor}_DQ"))

    def parameter(self, name: str, values: np.ndarray[Any, Any], scale: np.ndarray[Any, Any], axis: int) -> str:
        """A DequantizeLinear over integer constants; returns its output. One per (parameter, scale)."""
        from onnx import helper

        output = f"{name}_dq"
        inputs = [
            self.constant(f"{name}_q", values),
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero_point", np.zeros(scale.shape, values.dtype)),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [output], f"{name}_DQ", axis=axis))
        return output

    def node(self, node: Any, placement: Placement | None, index: int) -> None:
        if placement is None:
            self.nodes.append(node)
            return
        x, y = node.input[0], node.output[0]
        if x not in self.dequantized:
            self.pair(x, x, f"{x}_dq")
            self.dequantized[x] = f"{x}_dq"
        input_scale, _ = self.activation_scale(x)
        weight, scale = per_channel_int8(self.arrays[placement.weight], placement.axis)
        node.input[1] = self.parameter(f"{placement.weight}_{index}", weight, scale, placement.axis)
        if placement.bias is not None:
            bias, bias_scale = bias_int32(self.arrays[placement.bias], input_scale, scale)
            node.input[2] = self.parameter(f"{placement.bias}_{index}", bias, bias_scale, 0)
        node.input[0] = self.dequantized[x]
        self.nodes.append(node)
        if placement.output:
            node.output[0] = f"{y}_float"
            self.pair(f"{y}_float", y, y)
            self.dequantized[y] = y


def quantize(model: onnx.ModelProto, placements: Sequence[Placement], ranges: Ranges) -> onnx.ModelProto:
    """A copy of `model` with QDQ around the planned nodes. Same inputs, same bytes."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    quantizer = _Quantizer(result, ranges)
    by_node = {p.node: p for p in placements}
    for i, node in enumerate(list(result.graph.node)):
        quantizer.node(node, by_node.get(i), i)
    used = {name for node in quantizer.nodes for name in node.input}
    kept = [t for t in result.graph.initializer if t.name in used]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in quantizer.nodes]
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend([*kept, *(t for t in quantizer.added.values() if t.name in used)])
    return result
