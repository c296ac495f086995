"""Layers that read a Concat become one layer per part and a sum, so that each part is quantized with a scale of its own.

In: a float ONNX model. Out: a new model with the same result, and which nodes were split. Source: Li et al. 2023 (Q-Diffusion), section 4.2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.quantize.graph import Names, Shapes, attribute, constants, copied, known_shapes, plain_gemm, producers, prune

if TYPE_CHECKING:
    import onnx

__all__ = ["split_concat_convolutions"]

Array = npt.NDArray[Any]


def split_concat_convolutions(
    model: onnx.ModelProto, operators: Collection[str] = ("Conv",), untouched: Collection[int] = ()
) -> tuple[onnx.ModelProto, dict[str, tuple[str, ...]]]:
    """The model with each convolution of a raw concat split along its input channels; and the names of split nodes -> those of their parts.

    conv(concat(a, b), W) + bias = (conv(a, W[:, :A]) + bias) + conv(b, W[:, A:]), equal up to the rounding of float32 sums. Weights and nodes of
    parts are called after the split ones, with `.part0`, `.part1` ... added. A Concat of Concats counts as one. The Concat stays where others
    read it. Layers whose parts have sizes that neither shape inference nor the other parts tell stay whole.

    operators: of "Conv" (groups 1, Concat over channels), "Gemm" and "MatMul" (Concat over the last axis). untouched: indices of nodes to leave.
    """
    result = copied(model)
    weights, shapes, names = constants(model), known_shapes(model), Names(model)
    added: dict[str, Array] = {}
    split: dict[str, tuple[str, ...]] = {}
    nodes: list[Any] = []
    made = producers(model)
    for i, node in enumerate(result.graph.node):
        axis = _input_axis(node, weights) if node.op_type in operators and i not in untouched else None
        if axis is None:
            nodes.append(node)
            continue
        weight, over = weights[node.input[1]], 1 if node.op_type == "Conv" else -1
        rank = len(shapes.get(node.input[0], ())) if node.op_type == "MatMul" else weight.ndim
        parts = _parts(model, made, node.input[0], over, rank)
        sizes = _sizes(parts, shapes, over, weight.shape[axis])
        if len(parts) < 2 or sizes is None:
            nodes.append(node)
            continue
        layers = _split(node, parts, np.split(weight, np.cumsum(sizes)[:-1], axis), names, added)
        nodes += layers
        split[node.name or node.output[0]] = tuple(n.name for n in layers if n.op_type == node.op_type)
    if split:
        prune(result, nodes, added)
    return result, split


def _input_axis(node: Any, weights: Mapping[str, Array]) -> int | None:
    """The axis of a layer's constant weight that counts input channels, or None if this is no layer to split."""
    if len(node.input) < 2 or node.input[1] not in weights or node.input[0] in weights:
        return None
    if node.op_type == "Conv":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return int(attribute(node, "transB", 0)) if plain_gemm(node) else None
    return 0 if weights[node.input[1]].ndim == 2 else None


def _parts(model: onnx.ModelProto, made: Mapping[str, int], tensor: str, axis: int, rank: int) -> list[str]:
    """The tensors that `tensor` is a Concat of along an axis, or itself. rank: of the tensor, 0 for unknown."""
    node = model.graph.node[made[tensor]] if tensor in made else None
    if node is None or node.op_type != "Concat":
        return [tensor]
    found = attribute(node, "axis", 0)
    if found != axis and (not rank or found % rank != axis % rank):
        return [tensor]
    return [part for name in node.input for part in _parts(model, made, name, axis, rank)]


def _sizes(parts: Sequence[str], shapes: Shapes, axis: int, total: int) -> list[int] | None:
    """The sizes of the parts along an axis; one that is unknown is what the others leave of `total`."""
    found = [shapes[name][axis] if len(shapes.get(name, ())) > max(axis, 0) else None for name in parts]
    known = [size for size in found if size is not None]
    if len(known) == len(found) - 1:
        found = [total - sum(known) if size is None else size for size in found]
    sizes = [size for size in found if size is not None and size > 0]
    return sizes if len(sizes) == len(found) and sum(sizes) == total else None


def _split(node: Any, parts: Sequence[str], weights: Sequence[Array], names: Names, added: dict[str, Array]) -> list[Any]:
    """The nodes in place of one: a layer per part, the first with the bias, and their sum, which has the old name."""
    from onnx import helper

    nodes: list[Any] = []
    for k, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        layer = type(node)()
        layer.CopyFrom(node)
        name = names.new(f"{node.input[1]}.part{k}")
        added[name] = weight
        layer.name, layer.output[0] = names.new(f"{node.name or node.output[0]}.part{k}"), names.new(f"{node.output[0]}.part{k}")
        layer.input[:] = [part, name, *(node.input[2:] if k == 0 else [])]
        nodes.append(layer)
    total = nodes[0].output[0]
    for k, layer in enumerate(nodes[1:], 1):
        made = node.output[0] if k == len(parts) - 1 else names.new(f"{node.output[0]}.sum{k}")
        nodes.append(helper.make_node("Add", [total, layer.output[0]], [made], names.new(f"{node.name or node.output[0]}.sum{k}")))
        total = made
    return nodes
