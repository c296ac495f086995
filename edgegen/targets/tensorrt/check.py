"""What TensorRT refuses, crashes on or misreads, found in the ONNX model before the builder sees it; and what it takes and runs slowly.

Every rule is one that TensorRT-RTX 1.7.1 was seen to follow (tests/targets/tensorrt/test_check.py builds each case). Refused here although
it builds: what would come out wrong without a word (uint8 codes read as int8; block scales on an int8 product, which it applies as if they
were one per column; an unknown domain's operator taken for its namesake), and scales computed at run time, which its manual forbids: it
crashes on them before a convolution and multiplies in float elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import BuildError, Status

if TYPE_CHECKING:
    import onnx

__all__ = ["capability", "check_for_tensorrt", "slow_spots"]

_DOMAINS = ("", "ai.onnx")
_CONTRIB = ("DequantizeLinear", "Gelu", "QuantizeLinear")
"""Operators of com.microsoft that TensorRT reads as the ONNX ones of the same name, which they equal."""
_REFUSED = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")
_TYPE_NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16", 11: "float64",
    12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "fp8 (e4m3fn)", 18: "fp8 (e4m3fnuz)", 19: "fp8 (e5m2)",
    20: "fp8 (e5m2fnuz)", 21: "uint4", 22: "int4", 23: "fp4",
}  # fmt: skip
_INT8, _DOUBLE, _BFLOAT16, _FP8, _INT4, _FP4, _UINT8 = 3, 11, 16, 17, 22, 23, 2
_CODES = (_INT8, _FP8, _INT4, _FP4)
"""Types that may be quantized to."""
_STORED = (1, 2, 3, 6, 7, 9, 10, 11, 16, 17, 22, 23)
"""Types that a constant may have."""
_LEAST = {_FP8: 89, _FP4: 100, _INT4: 80, _BFLOAT16: 80}
"""Type -> the first compute capability that has it."""
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOAT_PRODUCTS = ("Einsum", "Gemm", "MatMul")
"""What TensorRT does not compute in float32 on SM75."""
_MOVES = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators behind which a dequantized tensor is one still."""

Array = npt.NDArray[Any]


def capability(name: str) -> int:
    """75 for "SM75". Raises BuildError for what is no compute capability."""
    if not (name.startswith("SM") and name[2:].isdigit()):
        raise BuildError(f"{name!r} is no compute capability; expected SM and its digits, as SM86 for 8.6", Status.BAD_ARGUMENT)
    return int(name[2:])


def _type_name(kind: int) -> str:
    return _TYPE_NAMES.get(kind, f"ONNX type {kind}")


@dataclass(frozen=True, slots=True)
class _Dequantized:
    """Where a float tensor comes from: a DequantizeLinear over codes of type `kind`, constant or not."""

    node: Any
    kind: int
    constant: bool
    scale: Array
    axis: int
    block: int
    shape: tuple[int, ...]
    """Of the codes, if they are stored."""


@dataclass(slots=True)
class _Scope:
    """The tensors that a graph's nodes can see: its own and those around it."""

    constants: dict[str, Any] = field(default_factory=dict)
    """Name -> TensorProto, of what is stored."""
    producers: dict[str, Any] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)

    def inner(self, graph: Any) -> _Scope:
        scope = _Scope(dict(self.constants), dict(self.producers), dict(self.types))
        for value in (*graph.input, *graph.value_info, *graph.output):
            scope.types[value.name] = value.type.tensor_type.elem_type
        for value in graph.input:  # hides an outer tensor of its name
            scope.producers.pop(value.name, None)
            scope.constants.pop(value.name, None)
        scope.constants |= {t.name: t for t in graph.initializer}
        for node in graph.node:
            for name in node.output:
                scope.producers[name] = node
            tensor = _stored(node)
            if tensor is not None:
                scope.constants[node.output[0]] = tensor
            elif node.op_type == "Identity" and node.input[0] in scope.constants:
                scope.constants[node.output[0]] = scope.constants[node.input[0]]
        scope.types |= {name: t.data_type for name, t in scope.constants.items()}
        return scope

    def array(self, name: str) -> Array:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name])

    def code_type(self, node: Any) -> int:
        """The type of the codes on a Q's output or a DQ's input: 0 if the graph does not say."""
        if len(node.input) > 2 and node.input[2] in self.types:
            return self.types[node.input[2]]
        if node.op_type == "DequantizeLinear":
            source = node.input[0]
            if self.types.get(source):
                return self.types[source]
            producer = self.producers.get(source)
            return self.code_type(producer) if producer is not None and producer.op_type == "QuantizeLinear" else 0
        return next((int(a.i) for a in node.attribute if a.name == "output_dtype"), 0) or _UINT8

    def dequantized(self, name: str) -> _Dequantized | None:
        """The DequantizeLinear that a tensor comes from, directly or moved; None for other floats."""
        node = self.producers.get(name)
        while node is not None and node.op_type in _MOVES:
            node = self.producers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in self.constants:
            return None
        source = self.producers.get(node.input[0])
        stored = [self.constants[name] for name in (node.input[0], *(source.input[:1] if source is not None else ())) if name in self.constants]
        shape = tuple(stored[0].dims) if stored else ()
        values = {a.name: int(a.i) for a in node.attribute}
        return _Dequantized(
            node, self.code_type(node), bool(stored), self.array(node.input[1]), values.get("axis", 1), values.get("block_size", 0), shape
        )


def _stored(node: Any) -> Any:
    """The tensor of a Constant node, or None."""
    import onnx
    from onnx import numpy_helper

    if node.op_type != "Constant" or node.domain not in _DOMAINS:
        return None
    for a in node.attribute:
        if a.name == "value":
            return a.t
        if a.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(a), np.float32))
        if a.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(a), np.int64))
    return None


def _subgraphs(node: Any) -> Iterator[Any]:
    for a in node.attribute:
        if a.HasField("g"):
            yield a.g
        yield from a.graphs


def _called(node: Any) -> str:
    """How errors name a node."""
    name = node.name or (node.output[0] if node.output else "")
    return f"{node.op_type} {name!r}"


class _Checker:
    def __init__(self, where: str, capabilities: Sequence[str]) -> None:
        self.where = where
        self.capabilities = sorted((capability(name), name) for name in capabilities)

    def bad(self, what: str, status: Status = Status.INCONSISTENT) -> BuildError:
        return BuildError(f"{self.where}: {what}", status)

    def type(self, kind: int, what: str) -> None:
        """Raise unless every target has a type."""
        least = _LEAST.get(kind, 0)
        if self.capabilities and self.capabilities[0][0] < least:
            name = self.capabilities[0][1]
            raise self.bad(f"{what} is {_type_name(kind)}, which {name} does not have; it needs SM{least} or later", Status.PROVIDER_MISSING)

    def graph(self, graph: Any, outer: _Scope) -> None:
        scope = outer.inner(graph)
        for tensor in graph.initializer:
            self.stored(tensor, f"constant {tensor.name!r}")
        for name, kind in scope.types.items():
            self.type(kind, f"tensor {name!r}")
        for node in graph.node:
            self.node(node, scope)
            for inner in _subgraphs(node):
                self.graph(inner, scope)

    def stored(self, tensor: Any, what: str) -> None:
        if tensor.external_data or tensor.data_location == 1:
            raise self.bad(f"{what} lies in another file (external data); put the weights inside first")
        if tensor.data_type not in _STORED:
            raise self.bad(f"{what} is {_type_name(tensor.data_type)}, which TensorRT does not take")
        self.type(tensor.data_type, what)

    def node(self, node: Any, scope: _Scope) -> None:
        called = _called(node)
        known = node.domain in _DOMAINS or (node.domain == "com.microsoft" and node.op_type in _CONTRIB)
        if not known:
            raise self.bad(f"{called} is of the domain {node.domain!r}, whose operators TensorRT does not have")
        if node.op_type in _REFUSED:
            raise self.bad(f"{called}: TensorRT does not have {node.op_type}; quantize with constant scales and QuantizeLinear")
        if node.op_type == "Constant":
            tensor = _stored(node)
            if tensor is not None:
                self.stored(tensor, called)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            self.quantizer(node, called, scope)
        else:
            self.codes_of(node, called, scope)
        if node.op_type == "Loop":
            self.loop(node, called)
        if node.op_type in _PRODUCTS:
            self.product(node, called, scope)
        if node.op_type in _FLOAT_PRODUCTS and self.capabilities and self.capabilities[0][0] < 80:
            kinds = [scope.types.get(name) for name in node.input] + [scope.types.get(name) for name in node.output]
            if 1 in kinds:
                message = f"{called} is in float32, which TensorRT does not multiply on {self.capabilities[0][1]}; lower the network to float16"
                raise self.bad(message, Status.PROVIDER_MISSING)

    def quantizer(self, node: Any, called: str, scope: _Scope) -> None:
        kind = scope.code_type(node)
        if kind == _UINT8 and node.op_type == "QuantizeLinear" and len(node.input) < 3:
            raise self.bad(f"{called} has no zero point, so its codes are uint8, which TensorRT reads as int8; give it an int8 zero point of 0")
        if kind == _UINT8:
            raise self.bad(f"{called} has uint8 codes, which TensorRT reads as int8; quantize symmetrically to int8")
        if kind and kind not in _CODES:
            raise self.bad(f"{called} has {_type_name(kind)} codes; TensorRT takes int8, fp8 (e4m3fn), int4 and fp4, and a float bias")
        self.type(kind, called)
        if kind in (_INT4, _FP4) and node.input[0] in scope.constants and math.prod(scope.constants[node.input[0]].dims) % 2:
            sizes = list(scope.constants[node.input[0]].dims)
            raise self.bad(f"{called} has {_type_name(kind)} codes of shape {sizes}, an odd number, which TensorRT does not take; use int8")
        scale = node.input[1]
        if scale not in scope.constants:
            raise self.bad(f"{called}: its scale {scale!r} is not a stored constant, on which TensorRT crashes, or computes in float; store it")
        values = scope.array(scale).astype(np.float64)
        if not (np.isfinite(values).all() and (values > 0).all()):
            worst = values[~(np.isfinite(values) & (values > 0))].flat[0]
            raise self.bad(f"{called}: its scale {scale!r} holds {worst:g}; scales are finite and above 0", Status.OUT_OF_RANGE)
        if len(node.input) > 2 and node.input[2]:
            self.zero_point(node, called, scope)

    def zero_point(self, node: Any, called: str, scope: _Scope) -> None:
        name = node.input[2]
        if name not in scope.constants:
            raise self.bad(f"{called}: its zero point {name!r} is not a stored constant")
        values = scope.array(name).astype(np.float64)
        if (values != 0).any():
            raise self.bad(f"{called}: its zero point {name!r} holds {values[values != 0].flat[0]:g}; TensorRT takes only 0 (symmetric scales)")

    def loop(self, node: Any, called: str) -> None:
        """A Loop whose body reads its condition is given one."""
        body = next(_subgraphs(node), None)
        if (len(node.input) > 1 and node.input[1]) or body is None or len(body.input) < 2:
            return
        condition = body.input[1].name
        if any(condition in inner.input for inner in body.node):
            message = f"{called} leaves out its condition, which its body reads ({condition!r}); TensorRT wants one: give it a constant true"
            raise self.bad(message)

    def codes_of(self, node: Any, called: str, scope: _Scope) -> None:
        for name in node.input:
            if name in scope.constants and scope.constants[name].data_type in _CODES and node.op_type != "Identity":
                kind = _type_name(scope.constants[name].data_type)
                raise self.bad(f"{called} reads the {kind} constant {name!r}, which TensorRT allows before DequantizeLinear only")

    def product(self, node: Any, called: str, scope: _Scope) -> None:
        """Types and scales of a quantized product fit together."""
        x, w = scope.dequantized(node.input[0]), scope.dequantized(node.input[1])
        if x is None or w is None:
            return
        four_bit = w.kind == _INT4 and w.constant and node.op_type in ("Gemm", "MatMul") and x.kind == _INT8
        if x.kind != w.kind and not four_bit:
            raise self.bad(f"{called} multiplies {_type_name(x.kind)} by {_type_name(w.kind)}; TensorRT takes two of one type")
        if w.block and w.scale.ndim > 1 and 1 not in w.scale.shape and w.kind != _FP4:
            raise self.bad(
                f"{called}: its weight has scales per block of {w.block} and its activations are {_type_name(x.kind)}; TensorRT would apply them "
                f"as one per column (or refuse); use one scale per channel, or float activations"
            )


def check_for_tensorrt(model: onnx.ModelProto, where: str, capabilities: Sequence[str] = ()) -> None:
    """Raise BuildError if TensorRT is known to refuse, crash on or misread `model`; the error names the node.

    where: what the error calls the model. capabilities: of the GPUs to build for, "SM75" and later; empty: this machine's, not checked.
    What only the parser knows (an operator that it lacks) it says itself, when building.
    """
    import onnx

    checker = _Checker(where, capabilities)
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.tensor_type.elem_type
        if kind == _DOUBLE:
            raise checker.bad(f"tensor {value.name!r} is float64, which TensorRT turns into float32 without a word; use float32")
        if kind not in _STORED:
            raise checker.bad(f"tensor {value.name!r} is {_type_name(kind)}, which TensorRT does not take")
    outer = _Scope()
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        inferred = model
    outer.types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    checker.graph(model.graph, outer)


def _slow(node: Any, scope: _Scope) -> str | None:
    """Why a product with quantized inputs is computed in float, or None."""
    x, w = scope.dequantized(node.input[0]), scope.dequantized(node.input[1])
    if x is None and node.op_type == "Conv":
        joined = _concatenated(node, scope)
        if isinstance(joined, str):
            return joined
        x = joined
    if x is None:
        return None if w is None or not w.constant else _slow_weight(node, w)
    if w is None:
        return "its input is quantized and its weight is not, so it runs in float"
    if node.op_type == "ConvTranspose":
        return "TensorRT runs a quantized ConvTranspose in float"
    if x.scale.ndim and not x.constant:
        return f"its input has a scale of shape {list(x.scale.shape)}; only a scalar scale, one for the tensor, runs in {_type_name(x.kind)}"
    if w.constant and w.scale.ndim and not w.block:
        channels = _channels(node, w)
        if channels is not None and w.axis != channels:
            return f"its weight has scales along axis {w.axis}; only scales along its output channels (axis {channels}) run in {_type_name(w.kind)}"
    return None


def _slow_weight(node: Any, w: _Dequantized) -> str | None:
    """Why a product of floats and a quantized weight is slower than one of floats, or None."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return f"its weight is {_type_name(w.kind)} and its input is not quantized, so the weight is turned into floats in every run"
    whole = not w.block or 1 in w.scale.shape
    if (w.kind == _INT4 and whole) or (w.kind == _INT8 and w.block):
        return "its weight is written out as floats in every run; use int4 in two or more blocks"
    if any(size % 2 for size in w.shape):
        return f"its weight has a side of odd length ({list(w.shape)}), so it is written out as floats in every run; leave it float"
    return None


def _channels(node: Any, w: _Dequantized) -> int | None:
    """The axis of output channels of a weight that is read as it is stored, else None."""
    if w.node.output[0] != node.input[1]:
        return None
    if node.op_type == "Conv":
        return 0
    return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1


def _concatenated(node: Any, scope: _Scope) -> _Dequantized | str | None:
    """What a convolution reads through a Concat of dequantized tensors: one of them if their scales agree, else why that is slow."""
    producer = scope.producers.get(node.input[0])
    if producer is None or producer.op_type != "Concat":
        return None
    parts = [scope.dequantized(name) for name in producer.input]
    if all(part is None for part in parts):
        return None
    first = parts[0]
    if first is None or any(p is None or not np.array_equal(p.scale, first.scale) for p in parts):
        return f"{_called(producer)} joins tensors of different scales, so it runs in float; quantize after the Concat, or split the convolution"
    return first


def _graphs(graph: Any, outer: _Scope) -> Iterator[tuple[Any, _Scope]]:
    """Every node with what it can see, subgraphs included."""
    scope = outer.inner(graph)
    for node in graph.node:
        yield node, scope
        for inner in _subgraphs(node):
            yield from _graphs(inner, scope)


def slow_spots(model: onnx.ModelProto, capabilities: Sequence[str] = ()) -> list[str]:
    """Quantized nodes that TensorRT takes and computes in float all the same: "Conv 'name': why", in the model's order.

    For models that `check_for_tensorrt` passes. capabilities: as there; SM75 has no int8 convolutions, and an engine for several runs like the
    least of them.
    """
    turing = any(capability(name) < 80 for name in capabilities)
    found = []
    for node, scope in _graphs(model.graph, _Scope()):
        if node.op_type not in _PRODUCTS or len(node.input) < 2:
            continue
        why = _slow(node, scope)
        if why is None and turing and node.op_type == "Conv" and scope.dequantized(node.input[0]) is not None:
            why = "SM75 has no int8 convolution; build for SM80 and later apart, or leave it float16 there"
        if why is not None:
            found.append(f"{_called(node)}: {why}")
    return found
