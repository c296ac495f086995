"""Which nodes of a network are quantized, for every engine; what each then puts around them is its own business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from edgegen.errors import BuildError, nearest

if TYPE_CHECKING:
    import onnx

__all__ = ["OPERATORS", "Placement", "place", "watched"]

OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Placement:
    """One node to quantize: its place in the graph, weight and weight axis, and whether its output gets a Q."""

    node: int
    weight: str
    axis: int
    bias: str | None
    output: bool


def _weight_axis(node: Any) -> int:
    """The axis of a node's weight that counts output channels."""
    if node.op_type == "Conv":
        return 0
    transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1


def _plain_gemm(node: Any) -> bool:
    """Whether a Gemm is x W + b, without scaling or a transposed x."""
    defaults = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return all(a.name not in defaults or (a.f if a.type == 1 else a.i) == defaults[a.name] for a in node.attribute)


def place(model: onnx.ModelProto, operators: Sequence[str], keep: Sequence[str], outputs: Sequence[str]) -> tuple[Placement, ...]:
    """The nodes of `operators` with a constant float32 weight. keep: patterns (fnmatch) of node or weight names that stay float.

    outputs: the operators whose output the engine wants quantized too. Raises BuildError for an operator that cannot be quantized here.
    """
    unknown = set(operators) - set(OPERATORS)
    if unknown:
        raise BuildError(f"quantization.operators: {nearest(sorted(unknown)[0], OPERATORS)}")
    constants = {t.name: t for t in model.graph.initializer}
    placements = []
    for i, node in enumerate(model.graph.node):
        if node.op_type not in operators or len(node.input) < 2 or node.input[1] not in constants or node.input[0] in constants:
            continue
        weight = constants[node.input[1]]
        if weight.data_type != 1 or (node.op_type == "MatMul" and len(weight.dims) != 2) or (node.op_type == "Gemm" and not _plain_gemm(node)):
            continue
        if any(fnmatchcase(name, pattern) for name in (node.name, weight.name) for pattern in keep):
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] in constants else None
        placements.append(Placement(i, weight.name, _weight_axis(node), bias, node.op_type in outputs))
    return tuple(placements)


def watched(model: onnx.ModelProto, placements: Sequence[Placement]) -> tuple[str, ...]:
    """Names of the tensors whose ranges the placements need."""
    names: dict[str, None] = {}
    for p in placements:
        node = model.graph.node[p.node]
        names[node.input[0]] = None
        if p.output:
            names[node.output[0]] = None
    return tuple(names)
