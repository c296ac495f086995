"""What of a float ONNX network depends on the time alone: which nodes those are, and tables in their place for a finite set of times.

In: an ONNX model. Out: indices of its nodes (for what stays float by rule: the time path, the first and last layers, raw concats), or a new
model. Models come back as copies; the same model gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import BuildError
from edgegen.quantize.graph import Names, attribute, check_names, constants, copied, producers, prune

if TYPE_CHECKING:
    import onnx

__all__ = ["edges", "raw_concat", "row_of_time", "tabulate_times", "time_path"]

Array = npt.NDArray[Any]

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_MIXING = _WEIGHTED | {"ConvTranspose", "Einsum", "Attention", "LSTM", "GRU", "RNN"}
"""Operators that mix channels or positions: a layer, after which a tensor is no longer the network's input."""
_SHAPES = frozenset({"Shape", "Size"})
"""Operators whose result knows no value of what they read."""
_COPIES = frozenset({"Expand", "Tile"})
"""Operators whose result is larger than what they read and says nothing more: never worth a table."""


def time_path(model: onnx.ModelProto, input_names: Sequence[str]) -> frozenset[int]:
    """Indices of the Conv, Gemm and MatMul nodes with constant weights whose result is set by `input_names` (the time and conditions) alone.

    A node that takes only the shape of another input, such as its batch, counts. Raises BuildError for a name that is no input.
    """
    allowed = set(input_names)
    check_names(input_names, _inputs(model), "the network's input")
    depends = _dependences(model, through_shapes=False)
    weights = set(constants(model))
    return frozenset(
        i
        for i, node in enumerate(model.graph.node)
        if node.op_type in _WEIGHTED and weights & set(node.input) and all(depends[name] <= allowed for name in node.output)
    )


def edges(model: onnx.ModelProto, x: str, output: str) -> tuple[frozenset[int], frozenset[int]]:
    """(first, last): indices of the Conv, Gemm and MatMul nodes with constant weights that no other layer separates from x, and from `output`.

    On the way lie nodes that are no layers: Reshape, Concat, arithmetic, norms, activations. Shapes are not followed.
    Raises BuildError for a name that is no input, or no output.
    """
    check_names([x], _inputs(model), "the network's input")
    check_names([output], (o.name for o in model.graph.output), "the network's output")
    nodes, weights = model.graph.node, set(constants(model))
    forward = [(set(node.input), node.output) for node in nodes]
    backward = [(set(node.output), node.input) for node in nodes]
    first = _nearest_layers(nodes, range(len(nodes)), forward, x)
    last = _nearest_layers(nodes, reversed(range(len(nodes))), backward, output)
    weighted = {i for i, node in enumerate(nodes) if node.op_type in _WEIGHTED and weights & set(node.input)}
    return frozenset(first & weighted), frozenset(last & weighted)


def raw_concat(model: onnx.ModelProto) -> frozenset[int]:
    """Indices of the convolutions of size 1 that read the result of a Concat directly: the skip projections that int8 hurts most."""
    weights, made, nodes = constants(model), producers(model), model.graph.node
    found = []
    for i, node in enumerate(nodes):
        if node.op_type != "Conv" or node.input[0] not in made or node.input[1] not in weights:
            continue
        source, shape = nodes[made[node.input[0]]], weights[node.input[1]].shape
        if source.op_type == "Concat" and attribute(source, "axis", 0) in (1, 1 - len(shape)) and set(shape[2:]) == {1}:
            found.append(i)
    return frozenset(found)


def tabulate_times(model: onnx.ModelProto, input_name: str, times: Sequence[float]) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model with what depends on the time alone looked up in tables, and the names of the tensors that are looked up.

    A table is float32[len(times), ...], computed here by onnx's reference evaluator. Each row of a batch chooses its row of the tables by its own
    time: the one of `times` nearest to it. So the result is the network's at `times` and WRONG at every other time. Only the last tensors
    that depend on the time alone become tables, before they are copied to the size of an image. If the tables would hold more bytes than the
    constants that they replace, or nothing depends on the time alone, the model comes back as it is, with no names.

    input_name: a float32 or int64 input of shape [batch]. times: finite, as the program will give them, in any order.
    Raises BuildError: no such input, another shape or dtype, no times, or a fraction for an int64 time.
    """
    batch = _batch_of(model, input_name)
    keys = _keys(model, input_name, times)
    result = copied(model)
    cone, wanted = _cone(model, input_name)
    tables = _tables(model, cone, wanted, input_name, keys, batch)
    if not tables:
        return result, ()
    names = Names(result)
    nodes, added = row_of_time(names.new, input_name, keys.tolist(), cast=keys.dtype != np.float32)
    lookups = {tensor: names.new(f"{tensor}.table") for tensor in tables}
    added |= {lookups[tensor]: table for tensor, table in tables.items()}
    prune(result, [*nodes, *_with_lookups(result, lookups, nodes[-1].output[0], names)], added)
    if _bytes(result) > _bytes(model):
        return copied(model), ()
    return result, tuple(tables)


def _inputs(model: onnx.ModelProto) -> list[str]:
    return [i.name for i in model.graph.input]


def _dependences(model: onnx.ModelProto, *, through_shapes: bool) -> dict[str, frozenset[str]]:
    """For each tensor the inputs of the network that its value depends on. through_shapes: also those that only its shape comes from."""
    depends = {name: frozenset({name}) for name in _inputs(model)}
    for node in model.graph.node:
        cut = node.op_type in _SHAPES and not through_shapes
        union = frozenset[str]() if cut else frozenset[str]().union(*(depends.get(name, frozenset()) for name in node.input))
        depends.update(dict.fromkeys(node.output, union))
    return depends


def _nearest_layers(nodes: Sequence[Any], order: Iterable[int], sides: Sequence[tuple[set[str], Sequence[str]]], start: str) -> set[int]:
    """The layers that a walk from a tensor meets first. sides: for each node the names that it is met by, and those that the walk goes on to."""
    reached, layers = {start}, set()
    for i in order:
        met, onward = sides[i]
        if not reached & met or nodes[i].op_type in _SHAPES:
            continue
        if nodes[i].op_type in _MIXING:
            layers.add(i)
        else:
            reached.update(name for name in onward if name)
    return layers


def _batch_of(model: onnx.ModelProto, name: str) -> int | None:
    """The fixed size of a time input, or None for any. Raises BuildError unless it is float32[batch] or int64[batch]."""
    check_names([name], _inputs(model), "the network's input")
    kind = next(i for i in model.graph.input if i.name == name).type.tensor_type
    if kind.elem_type not in (1, 7) or len(kind.shape.dim) != 1:
        shape = [d.dim_param or d.dim_value for d in kind.shape.dim]
        raise BuildError(f"input {name!r}: ONNX type {kind.elem_type} {shape}, expected a time of float32[batch] or int64[batch]")
    return kind.shape.dim[0].dim_value or None


def _keys(model: onnx.ModelProto, name: str, times: Sequence[float]) -> Array:
    """The times in the input's dtype, ascending and each once."""
    whole = next(i for i in model.graph.input if i.name == name).type.tensor_type.elem_type == 7
    if not times:
        raise BuildError(f"no times to tabulate {name!r} at; expected those of the deployed programs")
    for time in times:
        if not math.isfinite(time) or (whole and (time != int(time) or abs(time) > 1 << 24)):
            raise BuildError(f"time {time!r} of {name!r}: expected a finite {'whole number that float32 holds' if whole else 'number'}")
    return np.unique(np.asarray(times, np.int64 if whole else np.float32))


def _cone(model: onnx.ModelProto, source: str) -> tuple[list[Any], list[str]]:
    """The nodes that depend on one input alone, and constants' nodes; and the tensors of theirs that other nodes, or the caller, read."""
    depends = _dependences(model, through_shapes=True)
    alone, cone, rest = frozenset({source}), [], []
    inside = {source}
    for node in model.graph.node:
        reads = [name for name in node.input if depends.get(name)]
        ready = all(depends[name] == alone and name in inside for name in reads)
        if ready and (not reads or node.op_type not in _COPIES):
            cone.append(node)
            inside.update(node.output)
        else:
            rest.append(node)
    read = {name for node in rest for name in node.input} | {o.name for o in model.graph.output}
    return cone, [name for node in cone for name in node.output if name in read and depends[name] == alone]


def _tables(model: onnx.ModelProto, cone: Sequence[Any], wanted: Sequence[str], time: str, keys: Array, batch: int | None) -> dict[str, Array]:
    """float32[len(keys), ...] for each wanted tensor that is float32 and has one row per sample, set by the sample's time."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    if not wanted:
        return {}
    part = copied(model)
    del part.graph.output[:]
    part.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    prune(part, cone, {})
    del part.graph.input[:], part.graph.value_info[:]
    part.graph.input.extend(i for i in model.graph.input if i.name == time)
    network = ReferenceEvaluator(part)

    def at(key: Any, count: int) -> list[Array]:
        return [np.asarray(v) for v in network.run(None, {time: np.full(count, key, keys.dtype)})]

    count = batch or 2
    rows = [at(key, count) for key in keys]
    other = at(keys[0], batch or 3)
    tables = {}
    for k, name in enumerate(wanted):
        values = [row[k] for row in rows]
        floats = all(v.ndim and v.dtype == np.float32 for v in values) and len(other[k]) == (batch or 3)
        if floats and all(np.array_equal(v[:1].repeat(count, 0), v) for v in values):
            tables[name] = np.stack([v[0] for v in values])
    return tables


def row_of_time(
    name: Callable[[str], str], time: str, times: Sequence[float], *, cast: bool
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:  # fmt: skip
    """Nodes whose last gives int64[batch], the place among `times` of each row of the input `time`: the nearest; and their constants, by name.

    name: gives a new name like the one that it is given. cast: the input is of integers.
    """
    from onnx import TensorProto, helper

    arrays: dict[str, Array] = {name(f"{time}_column"): np.array([-1, 1], np.int64), name(f"{time}_known"): np.array([times], np.float32)}
    column, known = arrays
    steps: list[tuple[str, list[str], dict[str, Any]]] = [("Reshape", [column], {}), ("Sub", [known], {}), ("Abs", [], {})]
    steps.append(("ArgMin", [], {"axis": 1, "keepdims": 0}))
    if cast:
        steps.insert(0, ("Cast", [], {"to": TensorProto.FLOAT}))
    nodes, value = [], time
    for operator, others, attributes in steps:
        made = name(f"{time}_{operator.lower()}")
        nodes.append(helper.make_node(operator, [value, *others], [made], f"{made}_{operator}", **attributes))
        value = made
    return nodes, arrays


def _with_lookups(model: onnx.ModelProto, lookups: Mapping[str, str], row: str, names: Names) -> list[Any]:
    """The graph's nodes with a Gather in place of the maker of each tensor. lookups: tensor -> its table."""
    from onnx import helper

    nodes: list[Any] = [
        helper.make_node("Gather", [table, row], [tensor], names.new(f"{tensor}.gather"), axis=0) for tensor, table in lookups.items()
    ]
    for node in model.graph.node:
        node.output[:] = [names.new(f"{name}.computed") if name in lookups else name for name in node.output]
        nodes.append(node)
    return nodes


def _bytes(model: onnx.ModelProto) -> int:
    return sum(value.nbytes for value in constants(model).values())
