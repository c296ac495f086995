"""What an ONNX model must be before any engine sees it: self-contained, of known operator domains, with the expected signature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgegen.errors import BundleError, Status
from edgegen.spec import BATCH, Signature, TensorSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["check_model", "parse_model"]

_DOMAINS = ("", "ai.onnx", "com.microsoft")
_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}
"""TensorProto.DataType -> bytes per element, for the types that a component may hold."""
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


def _tensors(model: onnx.ModelProto) -> list[Any]:
    """Every constant of the graph: initializers and tensor attributes."""
    attributes = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    return [*model.graph.initializer, *attributes]


def _check_constant(tensor: Any, where: str) -> None:
    if tensor.external_data or tensor.data_location == 1:
        raise _bad(where, f"tensor {tensor.name!r} lies in another file (external data); save the model with its weights inside")
    if tensor.data_type not in _BYTES:
        raise _bad(where, f"tensor {tensor.name!r} has ONNX data type {tensor.data_type}, which components may not hold")
    count = 1
    for size in tensor.dims:
        if size < 0:
            raise _bad(where, f"tensor {tensor.name!r} has the size {size}")
        count *= size
    if tensor.HasField("raw_data") and len(tensor.raw_data) != count * _BYTES[tensor.data_type]:
        expected = count * _BYTES[tensor.data_type]
        raise _bad(where, f"tensor {tensor.name!r}: {len(tensor.raw_data)} bytes for shape {list(tensor.dims)}, expected {expected}")


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


def check_model(model: onnx.ModelProto, signature: Signature, where: str) -> None:
    """Raise BundleError (INCONSISTENT) unless the model is self-contained and has this signature."""
    if model.functions:
        raise _bad(where, f"has a model-local function ({model.functions[0].name!r}); inline it")
    for node in model.graph.node:
        if node.domain not in _DOMAINS:
            raise _bad(where, f"operator {node.op_type!r} is of the domain {node.domain!r}; allowed: {', '.join(filter(None, _DOMAINS))}")
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise _bad(where, f"operator {node.op_type!r} holds a subgraph, which components may not")
    for tensor in _tensors(model):
        _check_constant(tensor, where)
    constants = {t.name for t in model.graph.initializer}
    for side, values, specs in (
        ("input", [v for v in model.graph.input if v.name not in constants], signature.inputs),
        ("output", list(model.graph.output), signature.outputs),
    ):
        found, expected = {v.name: v for v in values}, {t.name: t for t in specs}
        if set(found) != set(expected):
            raise _bad(where, f"its {side}s are {', '.join(sorted(found))}; expected {', '.join(map(str, specs))}")
        for name, value in found.items():
            _check_value(value, expected[name], where)
