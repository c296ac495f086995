"""A program and its components as one ONNX graph for a fixed batch: one engine call instead of one per evaluation, times folded to constants.

Noise enters as inputs named `draw.K`, to be filled with the normals of draw K, so that fused and stepwise runs agree to the engine's
tolerance. Weights are stored once. Needs onnx, which is imported inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgegen.errors import ProgramError, Status
from edgegen.program.instructions import Clamp, Concat, Eval, Imm, Instruction, Lincomb, Muladd, Noise, Operand, Program, Select, Slice
from edgegen.program.shapes import Shape, written_shapes

if TYPE_CHECKING:
    import onnx

__all__ = ["Fused", "fuse"]


@dataclass(frozen=True, slots=True)
class Fused:
    """The graph, and the `draws` to fill: input name -> (draw, shape)."""

    model: onnx.ModelProto
    draws: Mapping[str, tuple[int, Shape]]


def fuse(program: Program, components: Mapping[str, onnx.ModelProto], inputs: Mapping[str, tuple[str, Shape]], batch: int) -> Fused:
    """Lower `program` with its networks to one graph.

    components: by name, self-contained models of one opset. inputs: the program's inputs -> (dtype, shape without the batch).
    Raises ProgramError for what has no lowering: runtime scalars (REDUCE, SCALAR, SLINCOMB), THRESHOLD, components with control flow.
    """
    return _Fuser(program, components, inputs, batch).run()


class _Fuser:
    def __init__(self, program: Program, components: Mapping[str, onnx.ModelProto], inputs: Mapping[str, tuple[str, Shape]], batch: int) -> None:
        self.program, self.components, self.batch = program, components, batch
        self.declared = inputs
        self.shapes: dict[str, Shape] = {}
        self.values: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.draws: dict[str, tuple[int, Shape]] = {}
        self.count = 0

    def refuse(self, what: str) -> ProgramError:
        return ProgramError(f"program {self.program.name!r} cannot be fused: {what}; run it step by step", Status.OUT_OF_RANGE)

    def run(self) -> Fused:
        from onnx import TensorProto, helper

        if self.program.states:
            raise self.refuse("it has states")
        element = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "int32": TensorProto.INT32}
        graph_inputs = []
        for declared in self.program.inputs:
            dtype, tail = self.declared[declared.name]
            if dtype not in element:
                raise self.refuse(f"input {declared.name!r} is {dtype}")
            self.shapes[declared.name], self.values[declared.name] = tail, declared.name
            graph_inputs.append(helper.make_tensor_value_info(declared.name, element[dtype], (self.batch, *tail)))
        signatures = {name: (_tails(m.graph.input), _tails(m.graph.output)) for name, m in self.components.items()}
        for instruction in self.program.instructions:
            made = written_shapes(instruction, self.shapes, signatures)
            self.lower(instruction)
            self.shapes.update(made)
        graph_inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, (_, shape) in self.draws.items()]
        outputs = []
        for name, register in self.program.outputs.items():
            self.nodes.append(helper.make_node("Identity", [self.values[register]], [f"out.{name}"]))
            outputs.append(helper.make_tensor_value_info(f"out.{name}", TensorProto.FLOAT, (self.batch, *self.shapes[register])))
        graph = helper.make_graph(self.nodes, self.program.name, graph_inputs, outputs, list(self.initializers.values()))
        model = helper.make_model(graph, opset_imports=self.opsets(), ir_version=max(m.ir_version for m in self.components.values()))
        return Fused(model, self.draws)

    def opsets(self) -> list[onnx.OperatorSetIdProto]:
        versions: dict[str, int] = {}
        for name, model in self.components.items():
            for opset in model.opset_import:
                if versions.setdefault(opset.domain, opset.version) != opset.version:
                    raise self.refuse(
                        f"component {name!r} has opset {opset.version} of {opset.domain or 'ai.onnx'}, another has {versions[opset.domain]}"
                    )
        from onnx import helper

        return [helper.make_opsetid(domain, version) for domain, version in versions.items()]

    # --- pieces of graph

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        from onnx import numpy_helper

        array: np.ndarray[Any, Any] = np.asarray(value, dtype)
        name = f"const.{array.dtype.char}.{'x'.join(map(str, array.shape))}.{array.tobytes().hex() if array.size <= 8 else len(self.initializers)}"
        self.initializers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        self.count += 1
        out = f"v{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    # --- instructions

    def lower(self, instruction: Instruction) -> None:
        match instruction:
            case Eval():
                self.evaluate(instruction)
            case Lincomb(out, terms, bias):
                total = self.scaled(*terms[0])
                for term in terms[1:]:
                    total = self.node("Add", [total, self.scaled(*term)])
                if bias != 0.0:
                    total = self.node("Add", [total, self.constant(bias)])
                self.values[out] = total
            case Noise(out, like, draw, tail):
                name = self.values[out] = f"draw.{draw}"
                self.draws[name] = draw, (self.batch, *(self.shapes[like] if tail is None else tail))
            case Clamp(out, x, low, high):
                self.values[out] = self.node("Clip", [self.values[x], self.constant(low), self.constant(high)])
            case Muladd(out, x, scale, shift):
                across = (-1, *[1] * (len(self.shapes[x]) - 1)) if len(scale) > 1 else ()
                scale_name, shift_name = (self.constant(np.reshape(c, across)) for c in (scale, shift))
                self.values[out] = self.node("Add", [self.node("Mul", [self.values[x], scale_name]), shift_name])
            case Concat(out, parts):
                self.values[out] = self.node("Concat", [self.values[p] for p in parts], axis=1)
            case Slice(out, x, start, stop):
                ends = [self.constant([v], np.int64) for v in (start, stop, 1)]
                self.values[out] = self.node("Slice", [self.values[x], *ends])
            case Select(out, mask, a, b):
                chosen = self.node("Not", [self.node("Equal", [self.values[mask], self.constant(0.0)])])
                self.values[out] = self.node("Where", [chosen, self.values[a], self.values[b]])
            case _:
                raise self.refuse(f"{type(instruction).__name__.upper()} has no lowering yet")

    def scaled(self, c: float, register: str) -> str:
        value = self.values[register]
        return value if c == 1.0 else self.node("Mul", [value, self.constant(c)])

    def evaluate(self, instruction: Eval) -> None:
        """A copy of the component's nodes, reading the operands; with k branches on k times the rows."""
        model = self.components[instruction.component]
        self.count += 1
        prefix = f"e{self.count}/"
        renamed = self.weights(instruction.component, model)
        for declared in model.graph.input:
            if declared.name in instruction.inputs:
                renamed[declared.name] = self.gathered(instruction.inputs[declared.name], declared)
        for node in model.graph.node:
            if any(a.HasField("g") or a.graphs for a in node.attribute):
                raise self.refuse(f"component {instruction.component!r} has control flow ({node.op_type})")
            copy = type(node)()
            copy.CopyFrom(node)
            copy.name = prefix + node.name if node.name else ""
            del copy.input[:], copy.output[:]
            copy.input.extend(renamed.get(name, prefix + name) if name else "" for name in node.input)
            copy.output.extend(prefix + name if name else "" for name in node.output)
            self.nodes.append(copy)
        for name, targets in instruction.outputs.items():
            for branch, target in enumerate(targets):
                value = prefix + name
                if len(targets) > 1:
                    rows = [self.constant([v * self.batch], np.int64) for v in (branch, branch + 1)]
                    value = self.node("Slice", [value, *rows, self.constant([0], np.int64)])
                self.values[target] = value

    def weights(self, component: str, model: onnx.ModelProto) -> dict[str, str]:
        """The component's initialisers under names that all its copies share."""
        renamed = {}
        for tensor in model.graph.initializer:
            name = renamed[tensor.name] = f"{component}/{tensor.name}"
            if name not in self.initializers:
                copy = type(tensor)()
                copy.CopyFrom(tensor)
                copy.name = name
                self.initializers[name] = copy
        return renamed

    def gathered(self, operands: tuple[Operand, ...], declared: onnx.ValueInfoProto) -> str:
        """The operands of one component input, joined along axis 0 (FORMAT.md, EVAL)."""
        from onnx import helper

        kind = declared.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        tail = _tail(declared)
        parts = []
        for operand in operands:
            if isinstance(operand, Imm):
                parts.append(self.constant(np.full((self.batch, *tail), operand.value), dtype.type))
            else:
                parts.append(self.scaled(operand.scale, operand.name))
        return parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=0)


def _tail(tensor: onnx.ValueInfoProto) -> Shape:
    """A component tensor's shape without the batch."""
    return tuple(d.dim_value for d in tensor.type.tensor_type.shape.dim[1:])


def _tails(tensors: Iterable[onnx.ValueInfoProto]) -> dict[str, Shape]:
    return {t.name: _tail(t) for t in tensors}
