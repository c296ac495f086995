"""What the rewrites of ONNX graphs share: who makes and who reads a tensor, new names, and removing what nothing reads any more.

Networks hold no subgraphs (edgegen refuses them), so a name means one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import BuildError, nearest

if TYPE_CHECKING:
    import onnx

__all__ = ["Names", "Shapes", "attribute", "check_names", "constants", "copied", "known_shapes", "plain_gemm", "producers", "prune", "readers"]

Array = npt.NDArray[Any]
Shapes = Mapping[str, tuple[int | None, ...]]


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A deep copy of a model."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Initializers by name, as arrays not to be written to."""
    from onnx import numpy_helper

    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, int]:
    """Index of the node that makes each tensor."""
    return {name: i for i, node in enumerate(model.graph.node) for name in node.output if name}


def readers(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Indices of the nodes that read each tensor, ascending, each once."""
    found: dict[str, list[int]] = {}
    for i, node in enumerate(model.graph.node):
        for name in dict.fromkeys(node.input):
            if name:
                found.setdefault(name, []).append(i)
    return found


def known_shapes(model: onnx.ModelProto) -> Shapes:
    """The shapes of tensors and constants as far as they are known, None for a size that is not."""
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        v.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim)
        for v in (*inferred.value_info, *inferred.input, *inferred.output)
        if v.type.tensor_type.HasField("shape")
    }
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    filters = {n.output[0]: weights[n.input[1]] for n in model.graph.node if n.op_type == "Conv" and n.input[1] in weights}
    made = {name: (None, shape[0], *(None for _ in shape[2:])) for name, shape in filters.items()}
    return made | shapes | weights  # a convolution tells its channels even where its input's shape is unknown


def attribute(node: Any, name: str, default: Any) -> Any:
    """A node's attribute, or what it is when absent."""
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def plain_gemm(node: Any) -> bool:
    """Whether a Gemm is x W + b or x W' + b, without factors or a transposed x."""
    return attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0 and not attribute(node, "transA", 0)


def check_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise BuildError for the first name that is not known. what: such as "the network's input"."""
    known = set(known)
    for name in names:
        if name not in known:
            raise BuildError(f"{what} {name!r} does not exist: {nearest(name, known)}")


class Names:
    """Names for new tensors, nodes and constants that the graph does not have yet; the same graph gives the same names."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.taken = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
        self.taken |= {name for node in graph.node for name in (node.name, *node.output)}

    def new(self, name: str) -> str:
        """`name`, or `name.2`, `name.3` ... if it is taken."""
        unique, k = name, 1
        while unique in self.taken:
            k += 1
            unique = f"{name}.{k}"
        self.taken.add(unique)
        return unique


def prune(model: onnx.ModelProto, nodes: Iterable[Any], added: Mapping[str, Array]) -> None:
    """Give `model` these nodes and further constants, in place; nodes and constants that no output depends on are left out."""
    from onnx import numpy_helper

    graph, kept = model.graph, []
    needed = {o.name for o in graph.output}
    for node in reversed(list(nodes)):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    tensors = [t for t in graph.initializer if t.name in needed and t.name not in added]
    tensors += [numpy_helper.from_array(np.ascontiguousarray(v).reshape(v.shape), n) for n, v in added.items() if n in needed]
    values = [v for v in graph.value_info if v.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept[::-1])
    graph.initializer.extend(tensors)
    graph.value_info.extend(values)
