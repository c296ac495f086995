"""A float network with integer weights and activations, as ONNX Runtime's CPU kernels take it.

Conv: QDQ on the input, an int8 weight per output channel, a float bias, and QDQ on the output, without which ONNX Runtime runs the
convolution in float. Gemm, MatMul by a constant: MatMul of QDQ input and int8 weight, without output QDQ (MatMulIntegerToFloat), its bias subtracted
negated. One Q per tensor. Activations are uint8 and asymmetric, or int8 and symmetric for ARM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgegen.quantize import Ranges, affine_uint8, symmetric
from edgegen.quantize.rounding import Codes, nearest
from edgegen.targets.onnxruntime.storage import Stored, store_codes, store_float
from edgegen.targets.placement import OPERATORS, Placement, place, watched

if TYPE_CHECKING:
    import onnx

__all__ = ["OPERATORS", "Integers", "Placement", "plan", "quantize", "scale_constants", "scales_at", "watched"]

Integers = Literal["uint8", "int8"]
"""What activations become: uint8 with a zero point (x86), or int8 without (ARM)."""


def plan(model: onnx.ModelProto, operators: Sequence[str], keep: Sequence[str]) -> tuple[Placement, ...]:
    """The nodes to quantize. keep: patterns (fnmatch) of node or weight names that stay float.

    Raises BuildError for an operator that cannot be quantized here.
    """
    return place(model, operators, keep, outputs=("Conv",))


def _scale(low: float, high: float, integers: Integers) -> tuple[np.float32, np.uint8 | np.int8]:
    if integers == "int8":
        return symmetric(low, high, 127.0), np.int8(0)
    return affine_uint8(low, high)


def scales_at(ranges: Ranges, tensors: Sequence[str], time: float | None, integers: Integers) -> dict[str, tuple[float, int]]:
    """(scale, zero point) of each tensor at a network time; None: over all times. Raises CalibrationError as `Ranges.at` does."""
    pairs = {tensor: _scale(*ranges.at(tensor, time), integers) for tensor in tensors}
    return {tensor: (float(scale), int(zero)) for tensor, (scale, zero) in pairs.items()}


def scale_constants(scales: Mapping[str, tuple[float, int]], integers: Integers) -> dict[str, onnx.TensorProto]:
    """The constants of `quantize`'s graph that hold tensors' (scale, zero point), by name."""
    from onnx import numpy_helper

    dtype = np.uint8 if integers == "uint8" else np.int8
    made = {}
    for tensor, (scale, zero) in scales.items():
        for suffix, value in (("scale", np.array(scale, np.float32)), ("zero_point", np.array(zero, dtype))):
            made[f"{tensor}_{suffix}"] = numpy_helper.from_array(value, f"{tensor}_{suffix}")
    return made


class _Emitter:
    """Rewrites nodes one by one."""

    def __init__(self, model: onnx.ModelProto, codes: Mapping[str, Codes], stored: Mapping[str, Codes | str], float_weights: bool) -> None:
        from onnx import numpy_helper

        self.arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == 1}
        self.codes, self.stored, self.float_weights = codes, stored, float_weights
        self.nodes: list[Any] = []
        self.added: dict[str, Any] = {}
        self.dequantized: dict[str, str] = {}
        """Tensor -> the tensor that carries its quantized and dequantized values."""
        self.products: set[str] = set()
        """Results of quantized MatMuls that had no bias of their own."""
        self.weights: dict[tuple[str, bool], str] = {}
        """(a weight, whether it is int8 here) -> the tensor that carries it."""

    def pair(self, source: str, tensor: str, target: str) -> None:
        """Q and DQ with `tensor`'s scale, from `source` to `target`."""
        from onnx import helper

        scale = [f"{tensor}_scale", f"{tensor}_zero_point"]
        self.nodes.append(helper.make_node("QuantizeLinear", [source, *scale], [f"{tensor}_q"], f"{tensor}_Q"))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", *scale], [target], f"{tensor}_DQ"))

    def activation(self, tensor: str) -> str:
        if tensor not in self.dequantized:
            self.pair(tensor, tensor, f"{tensor}_dq")
            self.dequantized[tensor] = f"{tensor}_dq"
        return self.dequantized[tensor]

    def take(self, made: Stored) -> str:
        self.nodes += made.nodes
        self.added |= {t.name: t for t in made.constants}
        return made.output

    def weight(self, name: str, axis: int, transposed: bool) -> str:
        """An int8 weight, dequantized; of a Gemm with transB, [in, out]."""
        from onnx import helper

        if self.float_weights:
            weight = self.float_weight(name, axis)
            if transposed:
                self.nodes.append(helper.make_node("Transpose", [weight], [f"{weight}_t"], f"{weight}_t", perm=[1, 0]))
                weight = f"{weight}_t"
            return weight
        if (name, True) not in self.weights:
            codes = self.codes.get(name) or nearest(self.arrays[name], axis, 8)
            if transposed:
                codes = replace(codes, codes=np.ascontiguousarray(codes.codes.T), axis=1)
            self.weights[name, True] = self.take(store_codes(len(self.weights), codes, as_int8=True))
        return self.weights[name, True]

    def float_weight(self, name: str, axis: int) -> str:
        """A weight that is computed with in float, as it is stored."""
        how = self.stored.get(name)
        if how is None:
            return name
        if (name, False) not in self.weights:
            number = len(self.weights)
            made = store_float(number, name, self.arrays[name], how, axis) if isinstance(how, str) else store_codes(number, how)
            self.weights[name, False] = self.take(made)
        return self.weights[name, False]

    def node(self, node: Any, placement: Placement | None) -> None:
        if placement is None:
            for k, name in enumerate(node.input):
                if name in self.stored:
                    node.input[k] = self.float_weight(name, 0)
            self.nodes.append(node)
            return
        source = self.activation(node.input[0])
        transposed = node.op_type == "Gemm" and placement.axis == 0
        weight = self.weight(placement.weight, placement.axis, transposed)
        if node.op_type != "Conv":
            self.linear(node, source, weight)
            return
        node.input[0], node.input[1] = source, weight
        y = node.output[0]
        self.nodes.append(node)
        if placement.output:
            node.output[0] = f"{y}_float"
            self.pair(f"{y}_float", y, y)
            self.dequantized[y] = y

    def linear(self, node: Any, source: str, weight: str) -> None:
        """MatMul, and the bias subtracted negated: of MatMul and Add, ONNX Runtime would make a Gemm in float."""
        from onnx import helper

        y = node.output[0]
        if len(node.input) < 3:
            self.products.add(y)
            self.nodes.append(helper.make_node("MatMul", [source, weight], [y], node.name))
            return
        self.nodes.append(helper.make_node("MatMul", [source, weight], [f"{y}_product"], node.name))
        self.nodes.append(helper.make_node("Sub", [f"{y}_product", self.negated(node.input[2])], [y], f"{node.name}_bias"))

    def negated(self, bias: str) -> str:
        """-bias, a constant where the bias is one."""
        from onnx import helper, numpy_helper

        name = f"{bias}_negated"
        if name not in self.added and bias in self.arrays:
            self.added[name] = numpy_helper.from_array(-self.arrays[bias], name)
        elif bias not in self.arrays and not any(n.output[0] == name for n in self.nodes):
            self.nodes.append(helper.make_node("Neg", [bias], [name], name))
        return name

    def subtract_biases(self) -> None:
        """Make the Adds of constants that follow quantized MatMuls such subtractions too."""
        from onnx import helper

        for i, node in enumerate(self.nodes):
            if node.op_type != "Add":
                continue
            product = next((name for name in node.input if name in self.products), None)
            bias = next((name for name in node.input if name in self.arrays), None)
            if product is not None and bias is not None:
                self.nodes[i] = helper.make_node("Sub", [product, self.negated(bias)], list(node.output), node.name)


def quantize(
    model: onnx.ModelProto, placements: Sequence[Placement], ranges: Ranges, *, codes: Mapping[str, Codes] | None = None,
    stored: Mapping[str, Codes | str] | None = None, integers: Integers = "uint8",
    float_weights: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """A copy of `model` with int8 arithmetic at the planned nodes. Same inputs, same bytes.

    codes: their weights by name, rounded beforehand; without, each is rounded to its nearest int8. stored: weights of other nodes, which are
    computed with in float: codes, or the name of a float type (edgegen/targets/onnxruntime/storage.py). Scales are those over all times;
    `scale_constants` gives those of others. float_weights: only what the nodes read and write is quantized, to see what that does alone.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    emitter = _Emitter(result, codes or {}, stored or {}, float_weights)
    by_node = {p.node: p for p in placements}
    for i, node in enumerate(list(result.graph.node)):
        emitter.node(node, by_node.get(i))
    emitter.subtract_biases()
    emitter.added |= scale_constants(scales_at(ranges, watched(model, placements), None, integers), integers)
    used = {name for node in emitter.nodes for name in node.input} | {o.name for o in result.graph.output}
    kept = [t for t in result.graph.initializer if t.name in used]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in emitter.nodes]
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend([*kept, *(t for t in emitter.added.values() if t.name in used)])
    return result
