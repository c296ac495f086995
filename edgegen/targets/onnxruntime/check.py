"""What an ONNX model must be before any engine sees it: self-contained, of known operator domains, with the expected signature."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgegen.errors import BundleError, Status
from edgegen.spec import BATCH, Signature, TensorSpec
from edgegen.targets.onnxruntime.weights import ALIGNMENT, EXTERNAL

if TYPE_CHECKING:
    import onnx

__all__ = ["check_model", "parse_model"]

_DOMAINS = ("", "ai.onnx")
_CONTRIB = frozenset({"BiasGelu", "DequantizeLinear", "FastGelu", "Gelu", "MatMulNBits", "QuantizeLinear", "QuickGelu"})
"""Operators of the domain com.microsoft that a network may use: those whose attributes an engine does not trust over its tensors, and
MatMulNBits, whose attributes are checked here."""
_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}
"""TensorProto.DataType -> bytes per element, for the types that a component may hold."""
_OTHER_BITS = {16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4}
"""Of the types that networks for other engines may hold too: bfloat16, float8, int4."""
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}


def _bad(where: str, message: str) -> BundleError:
    return BundleError(f"{where}: {message}", Status.INCONSISTENT)


def parse_model(data: bytes, where: str) -> onnx.ModelProto:
    """The ONNX model in `data`. Raises BundleError if it is not one."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as e:
        raise _bad(where, "is not an ONNX file (protobuf)") from e
    if not model.graph.node or not model.opset_import:
        raise _bad(where, "is not an ONNX model: it has no nodes or no opset")
    return model


def _check_constant(tensor: Any, where: str, weights: Mapping[str, int], *, initializer: bool, others: bool) -> None:
    """weights: the members that hold large constants, and their sizes."""
    where = f"{where}: tensor {tensor.name!r}"
    bits = _BYTES.get(tensor.data_type, 0) * 8 or (_OTHER_BITS.get(tensor.data_type, 0) if others else 0)
    if not bits:
        raise _bad(where, f"has ONNX data type {tensor.data_type}, which components may not hold")
    if any(size < 0 for size in tensor.dims):
        raise _bad(where, f"has the shape {list(tensor.dims)}")
    expected = (math.prod(tensor.dims) * bits + 7) // 8
    lists = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data, tensor.string_data)
    if any(lists) or tensor.HasField("segment"):
        raise _bad(where, "is stored as a list of numbers; components hold raw bytes")
    if tensor.external_data or tensor.data_location:
        if not weights or not initializer or tensor.data_location != EXTERNAL or tensor.HasField("raw_data"):
            raise _bad(where, "lies in another file (external data); save the model with its weights inside")
        _check_place(tensor, where, weights, expected)
    elif len(tensor.raw_data) != expected:
        raise _bad(where, f"{len(tensor.raw_data)} bytes for shape {list(tensor.dims)}, expected {expected}")


def _check_place(tensor: Any, where: str, weights: Mapping[str, int], expected: int) -> None:
    entries = [(e.key, e.value) for e in tensor.external_data]
    if [key for key, _ in entries] != ["location", "offset", "length"] or entries[0][1] not in weights:
        raise _bad(where, f"external data {entries}, expected a location, which is {' or '.join(map(repr, weights))}, an offset and a length")
    if not all(_DECIMAL.fullmatch(value) for _, value in entries[1:]):
        raise _bad(where, f"external data {entries}: the offset and the length are decimal numbers")
    offset, length, size = int(entries[1][1]), int(entries[2][1]), weights[entries[0][1]]
    if offset % ALIGNMENT or length != expected or offset + length > size:
        message = f"{length} bytes at {offset} of {size}; expected {expected} at a multiple of {ALIGNMENT}"
        raise _bad(where, message)


def _check_value(value: Any, expected: TensorSpec, where: str) -> None:
    kind = value.type.tensor_type
    dtype = _DTYPES.get(kind.elem_type, f"ONNX type {kind.elem_type}")
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    fits = len(shape) == len(expected.shape) and all(
        isinstance(found, str) if size == BATCH else found == size or isinstance(found, str)
        for found, size in zip(shape, expected.shape, strict=True)
    )
    if dtype != expected.dtype or not fits:
        raise _bad(where, f"tensor {value.name!r} is {dtype}{shape}, expected {expected}")


def _check_matmul(node: Any, constants: dict[str, Any], where: str) -> None:
    """MatMulNBits: ONNX Runtime reads as much of its weights as the attributes say, so they must say what is there."""
    values = {a.name: a.i for a in node.attribute}
    k, n, bits, block = (values.get(name, 4 if name == "bits" else 0) for name in ("K", "N", "bits", "block_size"))
    if bits not in (2, 4, 8) or block < 16 or block & (block - 1) or not (1 <= k < 2**31 and 1 <= n < 2**31) or block >= 2**31:
        raise _bad(where, f"MatMulNBits {node.name!r}: K {k}, N {n}, bits {bits}, block_size {block}")
    blocks = -(-k // block)
    packed = -(-blocks * bits // 8)
    expected = {1: (2, n * blocks * (block * bits // 8)), 2: (None, n * blocks), 3: (2, n * packed), 5: (None, n)}
    if len(node.input) < 3 or len(node.input) > 6 or (len(node.input) > 4 and node.input[4]):
        raise _bad(where, f"MatMulNBits {node.name!r}: {len(node.input)} inputs; a permutation (g_idx) is not supported")
    for index, (data_type, count) in expected.items():
        name = node.input[index] if index < len(node.input) else ""
        if not name and index > 2:
            continue
        tensor = constants.get(name)
        if tensor is None or math.prod(tensor.dims) != count or tensor.data_type not in ({data_type} if data_type else {1, 10}):
            raise _bad(
                where, f"MatMulNBits {node.name!r}: input {index} ({name!r}) is not the constant of {count} elements that K, N and bits ask for"
            )


def check_model(
    model: onnx.ModelProto, signature: Signature, where: str, weights: Mapping[str, int] | None = None, engine: str = "onnxruntime"
) -> None:
    """Raise BundleError (INCONSISTENT) unless the model is self-contained and has this signature.

    weights: the members that may hold its large constants and their sizes in bytes, for the network of a bundle.
    engine: networks of others may hold bfloat16, float8 and int4.
    """
    graph = model.graph
    if model.functions:
        raise _bad(where, f"has a model-local function ({model.functions[0].name!r}); inline it")
    if model.training_info or graph.sparse_initializer:
        raise _bad(where, "has training information or sparse constants, which components may not")
    constants = {t.name: t for t in graph.initializer}
    if len(constants) != len(graph.initializer):
        raise _bad(where, "has two constants of one name")
    for node in graph.node:
        if node.domain == "com.microsoft":
            if node.op_type not in _CONTRIB:
                raise _bad(where, f"operator {node.op_type!r} of com.microsoft; allowed: {', '.join(sorted(_CONTRIB))}")
        elif node.domain not in _DOMAINS:
            raise _bad(where, f"operator {node.op_type!r} is of the domain {node.domain!r}; allowed: ai.onnx, com.microsoft")
        if any(a.HasField("g") or a.graphs or a.HasField("sparse_tensor") or a.sparse_tensors or a.tensors for a in node.attribute):
            raise _bad(where, f"operator {node.op_type!r} holds a subgraph or a list of tensors, which components may not")
        for a in node.attribute:
            if a.HasField("t"):
                _check_constant(a.t, where, {}, initializer=False, others=engine != "onnxruntime")
    for tensor in graph.initializer:
        _check_constant(tensor, where, weights or {}, initializer=True, others=engine != "onnxruntime")
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            _check_matmul(node, constants, where)
    for side, values, specs in (
        ("input", [v for v in graph.input if v.name not in constants], signature.inputs),
        ("output", list(graph.output), signature.outputs),
    ):
        found, expected = {v.name: v for v in values}, {t.name: t for t in specs}
        if set(found) != set(expected) or len(found) != len(values):
            raise _bad(where, f"its {side}s are {', '.join(sorted(v.name for v in values))}; expected {', '.join(map(str, specs))}")
        for name, value in found.items():
            _check_value(value, expected[name], where)
