"""A float32 network as a strongly typed float16 or bfloat16 one: TensorRT then computes in exactly these types.

Graph inputs and outputs keep their types (Cast at the edges), so a lowered component fuses into programs, whose own arithmetic stays float32.
Float32 stay: Casts, operators that lose too much (sums, powers, normalizations), everything that a Sin or Cos is computed from or a table's row
is chosen by (a time of 999 is a whole step off in half precision), and int8 and fp8 nodes with their scales, those by time among them, whose
Casts TensorRT moves into its kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import BuildError, Status, nearest

if TYPE_CHECKING:
    import onnx

__all__ = ["FLOAT_OPERATORS", "TYPES", "lower_precision"]

TYPES = {"float16": 10, "bfloat16": 16}
"""Name -> TensorProto.DataType."""
FLOAT_OPERATORS = frozenset({
    "CumSum", "Exp", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "Log", "Pow", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare",
})  # fmt: skip
"""Operators that stay float32."""
_FLOAT = 1
_SMALLEST_SCALE = np.float32(2.0**-24)
"""The smallest float16; a weight's scale that would round to 0, which the parser refuses, becomes this."""
_PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
_MOVES = ("Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that pass quantized values on."""

Floats = npt.NDArray[np.float32]


def _narrow(values: Floats, precision: str) -> bytes:
    """Little-endian bytes in the narrow type, rounded to nearest even; what overflows becomes infinite."""
    if precision == "float16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    bits = np.ascontiguousarray(values, "<f4").view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2").tobytes()


def _overflows(values: Floats, precision: str) -> bool:
    largest = 65519.996 if precision == "float16" else 3.3961e38
    finite = values[np.isfinite(values)]
    return bool(finite.size) and float(np.abs(finite).max()) > largest


def _subgraphs(node: Any) -> Iterator[Any]:
    for a in node.attribute:
        if a.HasField("g"):
            yield a.g
        yield from a.graphs


def _captured(node: Any) -> Iterator[str]:
    """Every name that a node's subgraphs mention."""
    for graph in _subgraphs(node):
        yield from (o.name for o in graph.output)
        for inner in graph.node:
            yield from inner.input
            yield from _captured(inner)


class _Schemas:
    """Which inputs and outputs of a node may be float16, by ONNX's own operator schemas."""

    def __init__(self, opset: int) -> None:
        self.opset = opset

    def may(self, node: Any) -> tuple[list[bool], list[bool]] | None:
        """(per input, per output), or None for an operator without a schema."""
        import onnx

        if node.domain not in ("", "ai.onnx"):
            return None
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            return None
        kinds = {c.type_param_str: "tensor(float16)" in c.allowed_type_strs for c in schema.type_constraints}

        def sides(formal: Sequence[Any], count: int) -> list[bool]:
            return [bool(formal) and kinds.get(formal[min(i, len(formal) - 1)].type_str, False) for i in range(count)]

        return sides(schema.inputs, len(node.input)), sides(schema.outputs, len(node.output))


class _Lowering:
    def __init__(self, model: onnx.ModelProto, precision: str, keep: Sequence[str]) -> None:
        from onnx import numpy_helper

        self.model, self.precision, self.keep = model, precision, keep
        self.floats = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == _FLOAT}
        self.types = _types(model)
        self.schemas = _Schemas(max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")))
        self.nodes: list[Any] = []
        self.added: list[Any] = []
        self.narrow: dict[str, str] = {}
        """A float32 tensor -> its narrow copy."""
        self.suffix = "_half" if precision == "float16" else "_bf16"

    def is_float(self, name: str) -> bool:
        return self.types.get(name) == _FLOAT

    # --- which nodes are lowered

    def lowered(self) -> set[int]:
        """Indices of the nodes that will compute in the narrow type."""
        nodes = self.model.graph.node
        kept = self.quantized() | self.scales_by_time() | self.of_times()
        chosen = set()
        for i, node in enumerate(nodes):
            may = self.schemas.may(node)
            if i in kept or may is None or node.op_type == "Cast" or node.op_type in FLOAT_OPERATORS or any(_subgraphs(node)):
                continue
            if any(a.name == "dtype" for a in node.attribute) or node.op_type in ("Constant", "ConstantOfShape"):
                continue
            if any(fnmatchcase(name, pattern) for name in (node.name, node.op_type) for pattern in self.keep):
                continue
            takes = any(self.is_float(name) and ok for name, ok in zip(node.input, may[0], strict=True))
            if takes and all(ok for name, ok in zip(node.output, may[1], strict=True) if self.is_float(name)):
                chosen.add(i)
        readers = self.readers()
        for i, node in enumerate(nodes):  # a weight's DQ is of its readers' type
            if node.op_type == "DequantizeLinear" and any(r not in chosen for r in readers.get(node.output[0], ())):
                chosen.discard(i)
        return chosen

    def producers(self) -> dict[str, int]:
        return {name: i for i, node in enumerate(self.model.graph.node) for name in node.output}

    def readers(self) -> dict[str, list[int]]:
        readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.model.graph.node):
            for name in (*node.input, *_captured(node)):
                readers.setdefault(name, []).append(i)
        return readers

    def quantized(self) -> set[int]:
        """Nodes that quantize activations, or read activations that were quantized."""
        kept: set[int] = set()
        coded: set[str] = set()
        for i, node in enumerate(self.model.graph.node):
            if node.op_type == "QuantizeLinear":
                kept.add(i)
                coded.update(node.output)
            elif any(name in coded for name in node.input):
                kept.add(i)
                if node.op_type == "DequantizeLinear" or node.op_type in _MOVES:
                    coded.update(node.output)
        return kept

    def scales_by_time(self) -> set[int]:
        """Where activations are divided by a scale out of a table and then quantized: its Gather, the Div, the Mul of each product, the bias."""
        nodes, producers, readers = self.model.graph.node, self.producers(), self.readers()
        kept: set[int] = set()
        for node in nodes:
            divided = producers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
            if divided is None or nodes[divided].op_type != "Div":
                continue
            table = producers.get(nodes[divided].input[1])
            if table is None or nodes[table].op_type != "Gather":
                continue
            kept |= {table, *readers[nodes[table].output[0]]}
        multiplied = [nodes[i].output[0] for i in kept if nodes[i].op_type == "Mul"]
        return kept | {i for name in multiplied for i in readers.get(name, ()) if nodes[i].op_type == "Add"}

    def of_times(self) -> set[int]:
        """Sin, Cos and the ArgMin of a choice of rows, and the nodes that they are computed from. An ArgMin of products is no choice by time."""
        nodes, producers = self.model.graph.node, self.producers()
        found: set[int] = set()
        for i, node in enumerate(nodes):
            if node.op_type not in ("Sin", "Cos", "ArgMin"):
                continue
            waiting, before = [i], {i}
            while waiting:
                new = {producers[name] for name in nodes[waiting.pop()].input if name in producers} - before
                before |= new
                waiting += new
            if node.op_type != "ArgMin" or not any(nodes[k].op_type in _PRODUCTS for k in before):
                found |= before
        return found

    # --- the rewriting

    def run(self) -> None:
        nodes = self.model.graph.node
        chosen = self.lowered()
        needed = self.needed(chosen)
        for i, node in enumerate(nodes):
            if i in chosen:
                self.lower(node, needed)
            else:
                self.nodes.append(node)

    def needed(self, chosen: set[int]) -> set[str]:
        """Tensors that something reads as float32."""
        names = {o.name for o in self.model.graph.output}
        for i, node in enumerate(self.model.graph.node):
            may = self.schemas.may(node) if i in chosen else None
            names.update(name for k, name in enumerate(node.input) if may is None or not may[0][k])
            names.update(_captured(node))
        return names

    def lower(self, node: Any, needed: set[str]) -> None:
        may = self.schemas.may(node)
        assert may is not None
        for k, name in enumerate(node.input):
            if name and may[0][k] and self.is_float(name):
                node.input[k] = self.narrowed(name, scale=node.op_type == "DequantizeLinear")
        self.nodes.append(node)
        for k, name in enumerate(node.output):
            if name and self.is_float(name):
                node.output[k] = self.narrow[name] = f"{name}{self.suffix}"
                if name in needed:
                    self.cast(node.output[k], name, _FLOAT)

    def narrowed(self, name: str, *, scale: bool) -> str:
        """The narrow copy of a float32 tensor; constants are converted here and now."""
        if name not in self.narrow:
            self.narrow[name] = f"{name}{self.suffix}"
            if name in self.floats:
                self.constant(name, scale=scale)
            else:
                self.cast(name, self.narrow[name], TYPES[self.precision])
        return self.narrow[name]

    def constant(self, name: str, *, scale: bool) -> None:
        from onnx import TensorProto

        values = self.floats[name]
        if _overflows(values, self.precision):
            found = float(np.abs(values[np.isfinite(values)]).max())
            raise BuildError(
                f"constant {name!r} holds {found:g}, which overflows {self.precision}; name its node or operator in `keep`, or use bfloat16",
                Status.OUT_OF_RANGE,
            )
        if scale and self.precision == "float16":
            values = np.maximum(values, _SMALLEST_SCALE)
        data = _narrow(values, self.precision)
        self.added.append(TensorProto(name=self.narrow[name], data_type=TYPES[self.precision], dims=values.shape, raw_data=data))

    def cast(self, source: str, target: str, to: int) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Cast", [source], [target], f"{target}_cast", to=to))


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Name -> TensorProto.DataType, of every tensor whose type can be inferred."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: int(v.type.tensor_type.elem_type) for v in (*graph.input, *graph.value_info, *graph.output)}
    return types | {t.name: int(t.data_type) for t in graph.initializer}


def _constants_as_initializers(graph: Any) -> None:
    """Constant nodes with a tensor become initializers."""
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            graph.node.append(node)
        else:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]


def _unused(model: onnx.ModelProto, nodes: Iterable[Any]) -> set[str]:
    used = {o.name for o in model.graph.output} | {i.name for i in model.graph.input}
    for node in nodes:
        used.update(node.input)
        used.update(_captured(node))
    return {t.name for t in model.graph.initializer} - used


def lower_precision(model: onnx.ModelProto, precision: str = "float16", keep: Sequence[str] = ()) -> onnx.ModelProto:
    """A copy of a float32 (or quantized) `model` that computes in `precision` wherever that is safe. Same inputs, same bytes.

    keep: patterns (fnmatch) of node names and operators that stay float32. In bfloat16 the result is for TensorRT: ONNX's own schemas allow
    Conv and others bfloat16 only since opset 22. Raises BuildError: an unknown precision, or a constant that overflows it (OUT_OF_RANGE).
    """
    import onnx

    if precision not in TYPES:
        raise BuildError(f"precision {precision!r} is not one to lower to: {nearest(precision, TYPES)}", Status.UNKNOWN_NAME)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _constants_as_initializers(result.graph)
    lowering = _Lowering(result, precision, keep)
    lowering.run()
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in lowering.nodes]
    unused = _unused(result, nodes)
    kept = [t for t in result.graph.initializer if t.name not in unused]
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend([*kept, *lowering.added])
    return result
