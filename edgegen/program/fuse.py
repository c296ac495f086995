"""A program and its components as one ONNX graph for a fixed batch: one engine call instead of one per evaluation.

Two forms. Unrolled: every step written out, so that times are folded to constants. Loop: the steps that repeat are the body of one
ONNX Loop, so that the graph does not grow with them. In both, weights are stored once, and what depends on neither step nor state
(an encoded goal, joined labels) is computed once. Noise enters as inputs named `draw.K`, to be filled with the normals of draw K, so that
fused and stepwise runs agree to the engine's tolerance. Needs onnx and ONNX Runtime, which are imported inside.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import ProgramError, Status
from edgegen.program.instructions import (
    Clamp,
    Concat,
    Eval,
    Imm,
    Instruction,
    Lincomb,
    Muladd,
    Noise,
    Operand,
    Program,
    Reduce,
    Scalar,
    Select,
    Slice,
    Slincomb,
    Threshold,
)  # fmt: skip
from edgegen.program.rewrite import fold, rescale, single_assignment
from edgegen.program.roll import Rolled, Varying, VaryingDraw, roll
from edgegen.program.shapes import Shape, written_shapes
from edgegen.program.verify import numbers

if TYPE_CHECKING:
    import onnx

__all__ = ["Fused", "Timed", "fuse"]

Array = npt.NDArray[Any]
_ELEMENTS = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}
"""dtype -> TensorProto.DataType."""
_FLOAT, _INT64, _BOOL = 1, 7, 9
_NEVER_SHARED = ("Random", "Multinomial", "Bernoulli", "Dropout")
_SCALAR_NODES = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "min": "Min", "max": "Max"}


@dataclass(frozen=True, slots=True)
class Fused:
    """The graph, and the `draws` to fill: input name -> (draw, shape with the batch). Outputs are named `out.NAME`."""

    model: onnx.ModelProto
    draws: Mapping[str, tuple[int, Shape]]


@dataclass(frozen=True, slots=True)
class Timed:
    """What of a network depends on the time that it is evaluated at: constants, by time (rounded to float32) and name, in place of its own.

    input: the network's input that holds the time.
    """

    input: str
    constants: Mapping[float, Mapping[str, onnx.TensorProto]]


def fuse(
    program: Program, components: Mapping[str, onnx.ModelProto], inputs: Mapping[str, tuple[str, Shape]], batch: int, *, loop: bool = False,
    timed: Mapping[str, Timed] | None = None,
) -> Fused:  # fmt: skip
    """Lower `program` with its networks to one graph.

    components: by name, self-contained models of one opset. inputs: the program's inputs -> (dtype, shape without the batch). loop: the
    Loop form, for long programs; its networks compute their time branches in every turn. timed: components -> constants of their copies by
    time, such as scales.
    Raises ProgramError for what has no lowering: programs with states, components with control flow, a time that a component's `timed` lacks,
    and, with `loop`, programs without three steps that do the same, or with `timed`.
    """
    rolled = roll(program) if loop else None
    if loop and rolled is None:
        raise _refuse(program, "it has no three steps that do the same; leave out the loop")
    if loop and timed:
        raise _refuse(program, "its network has constants of its own at each time; leave out the loop")
    return _Fuser(program, components, inputs, batch, timed or {}).run(rolled)


def _refuse(program: Program, what: str) -> ProgramError:
    return ProgramError(f"program {program.name!r} cannot be fused: {what}", Status.OUT_OF_RANGE)


@dataclass(slots=True)
class _Constants:
    """The initializers of the whole graph; equal ones are stored once."""

    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    by_content: dict[tuple[Any, ...], str] = field(default_factory=dict)
    times: set[str] = field(default_factory=set)
    """Those that are immediates of a program: what is computed from them and constants alone is folded."""

    def add(self, value: Any, dtype: npt.DTypeLike = np.float32, *, time: bool = False) -> str:
        from onnx import numpy_helper

        array = np.asarray(value, dtype)
        key = (array.dtype.char, array.shape, array.tobytes())
        if key not in self.by_content:
            self.by_content[key] = f"const.{len(self.by_content)}"
            self.tensors[self.by_content[key]] = numpy_helper.from_array(array, self.by_content[key])
        if time:
            self.times.add(self.by_content[key])
        return self.by_content[key]

    def weight(self, component: str, tensor: onnx.TensorProto) -> str:
        """A network's constant, under a name that all copies of the network share."""
        data = tensor.raw_data or tensor.SerializeToString()
        key = (tensor.data_type, tuple(tensor.dims), len(data), hashlib.sha256(data).digest())
        if key not in self.by_content:
            copy = type(tensor)()
            copy.CopyFrom(tensor)
            name = f"{component}/{tensor.name}"
            copy.name = self.by_content[key] = name if name not in self.tensors else f"{name}.{len(self.by_content)}"
            self.tensors[copy.name] = copy
        return self.by_content[key]

    def whole_numbers(self, name: str) -> list[int] | None:
        """A constant of integers as a list; None for anything else."""
        from onnx import numpy_helper

        tensor = self.tensors.get(name)
        return [int(v) for v in numpy_helper.to_array(tensor).ravel()] if tensor is not None and tensor.data_type in (6, _INT64) else None


class _Graph:
    """Nodes, each written once: an equal node with equal inputs is the same value, and a part of joined registers is that register."""

    def __init__(self, constants: _Constants, prefix: str = "") -> None:
        self.constants, self.prefix = constants, prefix
        self.joined: dict[str, list[tuple[str, int]]] = {}
        """What CONCAT instructions joined along axis 1: the value -> its parts and their sizes."""
        self.flat: dict[str, tuple[str, int]] = {}
        """Values of registers that are also there as [batch, n]: the value -> (the flat one, n)."""
        self.producer: dict[str, onnx.NodeProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.seen: dict[tuple[Any, ...], list[str]] = {}
        self.count = 0

    def add(self, node: onnx.NodeProto, inputs: Sequence[str]) -> list[str]:
        """The outputs of a copy of `node` that reads `inputs`; "" for outputs that it leaves out."""
        if inputs and inputs[0] in self.joined and node.op_type in ("Gather", "Slice"):
            inputs = self.part(node, inputs)
            if len(inputs) == 1:
                return [inputs[0]]
        if node.op_type == "Reshape" and inputs[0] in self.flat:
            flat, n = self.flat[inputs[0]]
            if self.constants.whole_numbers(inputs[1]) == [-1, n]:
                return [flat]
        key = (node.op_type, node.domain, *inputs, *sorted(a.SerializeToString(deterministic=True) for a in node.attribute), *map(bool, node.output))
        if key in self.seen and not node.op_type.startswith(_NEVER_SHARED):
            return self.seen[key]
        copy = type(node)()
        copy.CopyFrom(node)
        self.count += 1
        copy.name = f"{self.prefix}n{self.count}"
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(f"{copy.name}.{k}" if name else "" for k, name in enumerate(node.output))
        self.nodes.append(copy)
        self.producer[copy.output[0]] = copy
        self.seen[key] = list(copy.output)
        if node.op_type == "Cast" and inputs[0] in self.joined:
            self.joined[copy.output[0]] = [(self.add(node, [name])[0], size) for name, size in self.joined[inputs[0]]]
        return self.seen[key]

    def know_flat(self, value: str, n: int) -> None:
        """Remember the flat form of a network's output that is a Gemm's [batch, n], reshaped."""
        reshape = self.producer.get(value)
        product = self.producer.get(reshape.input[0]) if reshape is not None and reshape.op_type == "Reshape" else None
        if product is None or product.op_type != "Gemm" or product.input[1] not in self.constants.tensors:
            return
        across = 0 if any(a.name == "transB" and a.i for a in product.attribute) else 1
        if self.constants.tensors[product.input[1]].dims[across] == n:
            self.flat[value] = product.output[0], n

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """The output of a new node."""
        from onnx import helper

        return self.add(helper.make_node(op, [], ["out"], **attributes), inputs)[0]

    def part(self, node: onnx.NodeProto, inputs: Sequence[str]) -> Sequence[str]:
        """The inputs of a Slice or Gather of joined registers that lies within one of them, as one of that register; its name alone if it is
        all of it. So what a network does with a condition beside its state does not depend on the state.
        """
        values = [self.constants.whole_numbers(name) for name in inputs[1:]]
        if node.op_type == "Gather" and [a.i for a in node.attribute if a.name == "axis"] == [1] and values[0] is not None and len(values[0]) == 1:
            found = self.inside(inputs[0], values[0][0], values[0][0] + 1)
            if found is not None:
                shape = self.constants.tensors[inputs[1]].dims
                return [found[0], self.constants.add(np.reshape(found[1], tuple(shape)), np.int64)]
        if node.op_type == "Slice" and len(values) >= 3 and values[2] == [1] and (len(values) == 3 or values[3] == [1]) and values[0] and values[1]:
            found = self.inside(inputs[0], values[0][0], values[1][0])
            if found is not None:
                part, start, stop, size = found
                if (start, stop) == (0, size):
                    return [part]
                return [part, self.constants.add([start], np.int64), self.constants.add([stop], np.int64), *inputs[3:]]
        return inputs

    def inside(self, joined: str, start: int, stop: int) -> tuple[str, int, int, int] | None:
        """The part that holds [start, stop) of joined registers: (its name, start and stop there, its size)."""
        total = sum(size for _, size in self.joined[joined])
        start, stop = start + total * (start < 0), min(stop + total * (stop < 0), total)
        offset = 0
        for name, size in self.joined[joined]:
            if offset <= start < stop <= offset + size:
                return name, start - offset, stop - offset, size
            offset += size
        return None


class _Fuser:
    """Lowers instructions into `graph`; `values` and `shapes` say where each register is and what it looks like."""

    def __init__(
        self, program: Program, components: Mapping[str, onnx.ModelProto], inputs: Mapping[str, tuple[str, Shape]], batch: int,
        timed: Mapping[str, Timed],
    ) -> None:  # fmt: skip
        self.program, self.components, self.declared, self.batch, self.timed = program, components, inputs, batch, timed
        self.constants = _Constants()
        self.graph = _Graph(self.constants)
        self.shapes: dict[str, Shape] = {}
        self.values: dict[str, str] = {}
        self.draws: dict[str, tuple[int, Shape]] = {}
        self.signatures = {name: (_tails(m.graph.input), _tails(m.graph.output)) for name, m in components.items()}
        self.columns: dict[tuple[float, ...], str] = {}
        """In a loop's body: the numbers of all turns -> the name of this turn's."""

    def run(self, rolled: Rolled | None) -> Fused:
        from onnx import helper

        if self.program.states:
            raise _refuse(self.program, "it has states; it runs as a stream")
        for name, model in self.components.items():
            nodes = model.graph.node
            if model.functions or any(a.HasField("g") or a.graphs for node in nodes for a in node.attribute):
                raise _refuse(self.program, f"component {name!r} has control flow; run it step by step")
        graph_inputs = []
        for declared in self.program.inputs:
            dtype, tail = self.declared[declared.name]
            self.shapes[declared.name], self.values[declared.name] = tail, declared.name
            graph_inputs.append(helper.make_tensor_value_info(declared.name, _ELEMENTS[dtype], (self.batch, *tail)))
        self.opsets = self.common_opsets()
        outputs = self.program.outputs
        if rolled is None:
            straight = fold(rescale(single_assignment(replace(self.program, steps=()))))
            self.lower_all(straight.instructions)
            outputs = straight.outputs
        else:
            outputs = self.lower_loop(rolled)
        graph_inputs += [helper.make_tensor_value_info(name, _FLOAT, shape) for name, (_, shape) in self.draws.items()]
        graph_outputs = []
        for name, register in outputs.items():
            self.graph.nodes.append(helper.make_node("Identity", [self.values[register]], [f"out.{name}"], f"out.{name}"))
            graph_outputs.append(helper.make_tensor_value_info(f"out.{name}", _FLOAT, (self.batch, *self.shapes[register])))
        nodes = _fold(_needed(self.graph.nodes, graph_outputs), self.constants, self.opsets)
        self.graph.nodes = _scaled_products(nodes, self.constants)
        return Fused(self.model(graph_inputs, graph_outputs), self.draws)

    def model(self, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
        from onnx import helper

        used = set(_read_names(self.graph.nodes))
        weights = [t for name, t in self.constants.tensors.items() if name in used]
        graph = helper.make_graph(self.graph.nodes, self.program.name, inputs, outputs, weights)
        version = max((m.ir_version for m in self.components.values()), default=10)
        return helper.make_model(graph, opset_imports=self.opsets, ir_version=version, producer_name="edgegen")

    def common_opsets(self) -> list[onnx.OperatorSetIdProto]:
        from onnx import helper

        versions: dict[str, int] = {}
        for name, model in self.components.items():
            for opset in model.opset_import:
                domain = "" if opset.domain == "ai.onnx" else opset.domain
                if versions.setdefault(domain, opset.version) != opset.version:
                    what = f"component {name!r} has opset {opset.version} of {domain or 'ai.onnx'}, another has {versions[domain]}"
                    raise _refuse(self.program, what)
        return [helper.make_opsetid(domain, version) for domain, version in (versions or {"": 20}).items()]

    # --- numbers

    def constant(self, value: Any, dtype: npt.DTypeLike = np.float32) -> str:
        """A constant; or, for a Varying number of a loop's body, this turn's."""
        if isinstance(value, Varying):
            return self.columns[value.values]
        return self.constants.add(value, dtype)

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.graph.node(op, inputs, **attributes)

    def scaled(self, c: float, value: str) -> str:
        return value if c == 1.0 else self.node("Mul", [value, self.constant(c)])

    # --- instructions

    def lower_all(self, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            made = written_shapes(instruction, self.shapes, self.signatures)
            self.lower(instruction)
            self.shapes.update(made)

    def lower(self, instruction: Instruction) -> None:
        values = self.values
        match instruction:
            case Eval():
                self.evaluate(instruction)
            case Lincomb(out, terms, bias):
                values[out] = self.combined(terms, bias)
            case Slincomb(out, scaled):
                values[out] = self.sum([self.scaled_by(*term) for term in scaled])
            case Noise(out, like, draw, tail):
                values[out] = self.noise(draw, (self.batch, *(self.shapes[like] if tail is None else tail)))
            case Clamp(out, x, low, high):
                values[out] = self.node("Clip", [values[x], self.constant(low), self.constant(high)])
            case Threshold(out, x, quantile, floor, ceiling):
                bound = self.node("Clip", [self.quantile(x, quantile), self.constant(floor), self.constant(ceiling)])
                bound = self.per_sample(bound, x)
                inside = self.node("Max", [self.node("Min", [values[x], bound]), self.node("Neg", [bound])])
                values[out] = self.node("Div", [inside, bound])
            case Muladd(out, x, scale, shift):
                across = (-1, *[1] * (len(self.shapes[x]) - 1)) if len(scale) > 1 else ()
                scale_name, shift_name = (self.constant(np.reshape(c, across)) for c in (scale, shift))
                values[out] = self.node("Add", [self.node("Mul", [values[x], scale_name]), shift_name])
            case Concat(out, parts):
                values[out] = self.node("Concat", [values[p] for p in parts], axis=1)
                self.graph.joined[values[out]] = [(values[p], self.shapes[p][0]) for p in parts]
            case Slice(out, x, start, stop):
                values[out] = self.node("Slice", [values[x], *(self.constant([v], np.int64) for v in (start, stop, 1))])
            case Select(out, mask, a, b):
                values[out] = self.node("Where", [self.is_set(mask), values[a], values[b]])
            case Reduce(out, kind, x, mask, quantile):
                values[out] = self.quantile(x, quantile, mask) if kind == "quantile" else self.reduced(kind, x, mask)
            case Scalar(out, kind, a, b):
                first, second = (values[o] if isinstance(o, str) else self.constant(o) for o in (a, b))
                values[out] = self.node("Sqrt", [first]) if kind == "sqrt" else self.node(_SCALAR_NODES[kind], [first, second])

    def combined(self, terms: Sequence[tuple[float, str]], bias: float) -> str:
        """A LINCOMB; in flat form where a term is there so, because networks that flatten their state then find it flat."""
        values = {name: self.values[name] for _, name in terms}
        known = next((self.graph.flat[v] for v in values.values() if v in self.graph.flat), None)
        if known is not None:
            flattened = self.constant([-1, known[1]], np.int64)
            values = {name: self.graph.node("Reshape", [v, flattened]) for name, v in values.items()}
        total = self.sum([self.scaled(c, values[name]) for c, name in terms])
        if bias != 0.0:
            total = self.node("Add", [total, self.constant(bias)])
        if known is None:
            return total
        shaped = self.node("Reshape", [total, self.constant([self.batch, *self.shapes[terms[0][1]]], np.int64)])
        self.graph.flat[shaped] = total, known[1]
        return shaped

    def sum(self, terms: Sequence[str]) -> str:
        total = terms[0]
        for term in terms[1:]:
            total = self.node("Add", [total, term])
        return total

    def noise(self, draw: int, shape: Shape) -> str:
        for value in draw.values if isinstance(draw, VaryingDraw) else (draw,):
            self.draws[f"draw.{value}"] = value, shape
        return self.columns[draw.values] if isinstance(draw, VaryingDraw) else f"draw.{draw}"

    # --- scalars, one per sample: [batch]

    def per_sample(self, scalar: str, x: str) -> str:
        """A scalar in a shape that multiplies register x."""
        sizes = [self.batch, *[1] * len(self.shapes[x])]
        return self.node("Reshape", [scalar, self.constant(sizes, np.int64)])

    def scaled_by(self, c: float, register: str, scalar: str | None) -> str:
        if scalar is None:
            return self.scaled(c, self.values[register])
        return self.node("Mul", [self.values[register], self.per_sample(self.scaled(c, self.values[scalar]), register)])

    def is_set(self, mask: str) -> str:
        return self.node("Not", [self.node("Equal", [self.values[mask], self.constant(0.0)])])

    def rows(self, value: str) -> str:
        return self.node("Reshape", [value, self.constant([self.batch, -1], np.int64)])

    def added_up(self, rows: str) -> str:
        return self.node("ReduceSum", [rows, self.constant([1], np.int64)], keepdims=1)

    def kept(self, x: str, mask: str | None) -> tuple[str, str | None, str]:
        """Register x as rows [batch, n]; 1 where its mask is set (None: everywhere); and how many are, [batch, 1]."""
        x_rows, n = self.rows(self.values[x]), math.prod(self.shapes[x])
        if mask is None:
            return x_rows, None, self.constant(np.full((self.batch, 1), n))
        shape = self.constant([self.batch, *self.shapes[x]], np.int64)
        ones = self.rows(self.node("Cast", [self.node("Expand", [self.is_set(mask), shape])], to=_FLOAT))
        return x_rows, ones, self.added_up(ones)

    def reduced(self, kind: str, x: str, mask: str | None) -> str:
        rows, ones, count = self.kept(x, mask)
        if ones is not None:
            rows = self.node("Mul", [rows, ones])
        one = self.constant(1.0)
        if kind != "norm":
            mean = self.node("Div", [self.added_up(rows), self.node("Max", [count, one])])
            if kind == "mean":
                return self.flat(mean)
            rows = self.node("Sub", [rows, mean])
            if ones is not None:
                rows = self.node("Mul", [rows, ones])
        total = self.added_up(self.node("Mul", [rows, rows]))
        if kind == "std":
            total = self.node("Div", [total, self.node("Max", [self.node("Sub", [count, one]), one])])
        return self.flat(self.node("Sqrt", [total]))

    def flat(self, column: str) -> str:
        return self.node("Reshape", [column, self.constant([self.batch], np.int64)])

    def quantile(self, x: str, quantile: float, mask: str | None = None) -> str:
        """[batch]: of the absolute values of register x, or of those where the mask is set; linear between neighbours (FORMAT.md, THRESHOLD)."""
        rows, ones, count = self.kept(x, mask)
        rows = self.node("Abs", [rows])
        n = math.prod(self.shapes[x])
        if ones is None:
            position = quantile * (n - 1)
            low = math.floor(position)
            largest = self.largest(rows, n - low)
            a, b = (self.column(largest, n - 1 - k) for k in (low, min(low + 1, n - 1)))
            return self.flat(self.node("Add", [a, self.scaled(position - low, self.node("Sub", [b, a]))]))
        rows = self.node("Where", [self.node("Cast", [ones], to=_BOOL), rows, self.constant(-1.0)])
        last = self.node("Max", [self.node("Sub", [count, self.constant(1.0)]), self.constant(0.0)])  # the index of the greatest, from below
        at = self.node("Mul", [last, self.constant(quantile)])
        floor = self.node("Floor", [at])
        sorted_rows = self.largest(rows, n)
        a, b = (
            self.node("GatherElements", [sorted_rows, self.node("Cast", [self.node("Sub", [last, k])], to=_INT64)], axis=1)
            for k in (floor, self.node("Min", [self.node("Add", [floor, self.constant(1.0)]), last]))
        )
        between = self.node("Add", [a, self.node("Mul", [self.node("Sub", [b, a]), self.node("Sub", [at, floor])])])
        return self.flat(self.node("Max", [between, self.constant(0.0)]))  # 0 where the mask is empty

    def largest(self, rows: str, k: int) -> str:
        """The k largest of each row, in descending order."""
        from onnx import helper

        node = helper.make_node("TopK", [], ["values", "indices"], axis=1, largest=1, sorted=1)
        return self.graph.add(node, [rows, self.constant([k], np.int64)])[0]

    def column(self, rows: str, index: int) -> str:
        return self.node("Slice", [rows, *(self.constant([v], np.int64) for v in (index, index + 1, 1))])

    # --- networks

    def evaluate(self, instruction: Eval) -> None:
        """A copy of the component's nodes, reading the operands; with k branches on k times the rows."""
        model = self.components[instruction.component]
        own = self.at_time(instruction)
        names = {t.name: self.constants.weight(instruction.component, own.get(t.name, t)) for t in model.graph.initializer}
        for declared in model.graph.input:
            if declared.name in instruction.inputs:
                names[declared.name] = self.gathered(instruction.inputs[declared.name], declared)
        for node in model.graph.node:
            made = self.graph.add(node, [names[name] if name else "" for name in node.input])
            names |= {name: value for name, value in zip(node.output, made, strict=True) if name}
        for name, targets in instruction.outputs.items():
            value = names[name]
            for branch, target in enumerate(targets):
                self.values[target] = value if len(targets) == 1 else self.branch(value, branch)
            if len(targets) == 1:
                self.graph.know_flat(value, math.prod(self.signatures[instruction.component][1][name]))
            elements = next(o.type.tensor_type.elem_type for o in model.graph.output if o.name == name)
            if elements != _FLOAT:
                for target in targets:
                    self.values[target] = self.node("Cast", [self.values[target]], to=_FLOAT)

    def at_time(self, instruction: Eval) -> Mapping[str, onnx.TensorProto]:
        """The constants that the component has of its own at this evaluation's time."""
        timed = self.timed.get(instruction.component)
        if timed is None:
            return {}
        times = {float(np.float32(o.value)) if isinstance(o, Imm) else None for o in instruction.inputs[timed.input]}
        (time,) = times if len(times) == 1 else (None,)
        if time is None or time not in timed.constants:
            known = ", ".join(f"{t:g}" for t in sorted(timed.constants)[:12])
            what = "a time that is not one number" if time is None else f"the time {time:g}"
            raise _refuse(self.program, f"component {instruction.component!r} is evaluated at {what}, and it was quantized for {known}")
        return timed.constants[time]

    def branch(self, value: str, branch: int) -> str:
        rows = [self.constant([v * self.batch], np.int64) for v in (branch, branch + 1)]
        return self.node("Slice", [value, *rows, self.constant([0], np.int64)])

    def gathered(self, operands: tuple[Operand, ...], declared: onnx.ValueInfoProto) -> str:
        """The operands of one component input, joined along axis 0 (FORMAT.md, EVAL)."""
        elements = declared.type.tensor_type.elem_type
        shape = [d.dim_value or self.batch for d in declared.type.tensor_type.shape.dim]
        if all(isinstance(o, Imm) for o in operands):
            values = [o.value for o in operands if isinstance(o, Imm)]
            if all(v == values[0] for v in values):
                shape = [d.dim_value or self.batch * len(operands) for d in declared.type.tensor_type.shape.dim]
                return self.filled(values[0], shape, elements)
            return self.node("Concat", [self.filled(v, shape, elements) for v in values], axis=0)
        parts = []
        for operand in operands:
            if isinstance(operand, Imm):
                parts.append(self.filled(operand.value, shape, elements))
                continue
            value = self.scaled(operand.scale, self.values[operand.name])
            dtype = self.declared.get(operand.name, ("float32",))[0] if operand.name in self.declared else "float32"
            parts.append(value if _ELEMENTS[dtype] == elements else self.node("Cast", [value], to=elements))
        return parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=0)

    def filled(self, value: float, shape: list[int], elements: int) -> str:
        """An immediate in every element of a component's input."""
        from onnx import helper

        if isinstance(value, Varying):
            number = self.columns[value.values]
            if elements != _FLOAT:
                number = self.node("Cast", [number], to=elements)
            return self.node("Expand", [number, self.constant(shape, np.int64)])
        array = np.full(shape, np.float32(value)).astype(helper.tensor_dtype_to_np_dtype(elements))
        return self.constants.add(array, array.dtype, time=True)

    # --- the loop

    def lower_loop(self, rolled: Rolled) -> Mapping[str, str]:
        """The Loop form; returns the registers of the program's outputs."""
        from onnx import helper

        self.lower_all(rolled.before)
        outer, body = self.graph, _Graph(self.constants, "turn/")
        turn, more = "turn", "more"
        carried_names = [c.name for c in rolled.carried]
        self.infer_body(rolled)
        self.columns = self.turn_numbers(rolled, body, turn)
        self.graph = body
        self.values |= {name: f"in.{name}" for name in carried_names}
        self.lower_all(rolled.body)
        ends = [
            body.node("Identity", [self.values[c.next]]) if self.values[c.next].startswith("in.") else self.values[c.next] for c in rolled.carried
        ]
        always = body.node("Identity", [more])
        self.graph, self.columns = outer, {}
        starts = [self.values[c.initial] if c.initial else self.zeros(c.like) for c in rolled.carried]
        inputs = [helper.make_tensor_value_info(turn, _INT64, ()), helper.make_tensor_value_info(more, _BOOL, ())]
        inputs += [helper.make_tensor_value_info(f"in.{c.name}", _FLOAT, self.sizes(c.like)) for c in rolled.carried]
        outputs = [helper.make_tensor_value_info(always, _BOOL, ())]
        outputs += [helper.make_tensor_value_info(end, _FLOAT, self.sizes(c.like)) for end, c in zip(ends, rolled.carried, strict=True)]
        inside = _needed(body.nodes, outputs)
        hoisted = _invariant(inside, {declared.name for declared in self.program.inputs}, outer)
        graph = helper.make_graph([n for n in inside if n.name not in hoisted], "turn", inputs, outputs)
        outer.nodes += [n for n in inside if n.name in hoisted]
        count = self.constant(rolled.turns, np.int64)
        lasts = [f"{name}.last" for name in carried_names]
        outer.nodes.append(helper.make_node("Loop", [count, self.constant(True, np.bool_), *starts], lasts, "loop", body=graph))
        for c, name in zip(rolled.carried, lasts, strict=True):
            self.values[name] = name
            if c.like in self.shapes:
                self.shapes[name] = self.shapes[c.like]
        self.lower_all(rolled.after)
        return rolled.outputs

    def infer_body(self, rolled: Rolled) -> None:
        """The shapes of the body's registers and of carried values, which are read before the register is written whose shape they have."""
        shapes = {declared.name: self.declared[declared.name][1] for declared in self.program.inputs}
        for instruction in single_assignment(self.program).instructions:
            shapes |= written_shapes(instruction, shapes, self.signatures)
        self.shapes |= {name: shapes[original] for name, original in rolled.originals.items() if original in shapes}
        self.shapes |= {c.name: self.shapes[c.like] for c in rolled.carried if c.like in self.shapes}

    def sizes(self, register: str) -> Shape:
        """A register's shape with the batch; a scalar's is [batch]."""
        return (self.batch, *self.shapes.get(register, ()))

    def zeros(self, register: str) -> str:
        return self.constant(np.zeros(self.sizes(register)))

    def turn_numbers(self, rolled: Rolled, body: _Graph, turn: str) -> dict[tuple[float, ...], str]:
        """The varying numbers of the body, read from tables by the turn: a row of all of them, and the stacked draws."""
        found: dict[tuple[float, ...], None] = {}
        draws: list[tuple[VaryingDraw, Shape]] = []
        for instruction in rolled.body:
            found |= {v.values: None for v in numbers(instruction) if isinstance(v, Varying)}
            if isinstance(instruction, Noise) and isinstance(instruction.draw, VaryingDraw):
                draws.append((instruction.draw, self.shapes[instruction.like] if instruction.shape is None else instruction.shape))
        columns: dict[tuple[float, ...], str] = {}
        if found:
            row = body.node("Gather", [self.constants.add(np.array(list(found)).T), turn], axis=0)
            columns = {values: body.node("Gather", [row, self.constants.add(k, np.int64)], axis=0) for k, values in enumerate(found)}
        for draw, tail in draws:
            first = self.constants.add([0], np.int64)
            for value in draw.values:
                self.draws[f"draw.{value}"] = value, (self.batch, *tail)
            stack = [self.graph.node("Unsqueeze", [f"draw.{value}", first]) for value in draw.values]
            columns[draw.values] = body.node("Gather", [self.graph.node("Concat", stack, axis=0), turn], axis=0)
        return columns


def _tail(tensor: onnx.ValueInfoProto) -> Shape:
    """A component tensor's shape without the batch."""
    return tuple(d.dim_value for d in tensor.type.tensor_type.shape.dim[1:])


def _tails(tensors: Iterable[onnx.ValueInfoProto]) -> dict[str, Shape]:
    return {t.name: _tail(t) for t in tensors}


def _read_names(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """Every name that nodes read, also those of a loop's body."""
    names = []
    for node in nodes:
        names += node.input
        for a in node.attribute:
            if a.HasField("g"):
                names += [*_read_names(a.g.node), *(o.name for o in a.g.output)]
    return names


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[onnx.ValueInfoProto]) -> list[onnx.NodeProto]:
    """The nodes that the outputs depend on, in their order."""
    needed, kept = {o.name for o in outputs}, []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed.update(_read_names([node]))
    return kept[::-1]


def _invariant(nodes: Sequence[onnx.NodeProto], inputs: set[str], outer: _Graph) -> set[str]:
    """Names of a loop body's nodes that do the same in every turn and depend on the program's inputs. What depends on weights alone
    stays where it is read: engines fuse it there.
    """
    inside = {name for node in nodes for name in node.output} | {"turn", "more"}
    depends = set(inputs) | {name for node in outer.nodes for name in node.output}
    hoisted: set[str] = set()
    for node in nodes:
        ready = all(name not in inside and not name.startswith("in.turn.") for name in node.input)
        if ready and depends & set(node.input):
            hoisted.add(node.name)
            inside -= set(node.output)
            depends |= set(node.output)
    return hoisted


def _fold(nodes: list[onnx.NodeProto], constants: _Constants, opsets: Sequence[onnx.OperatorSetIdProto]) -> list[onnx.NodeProto]:
    """The nodes without those that depend on immediates and constants alone (the networks' time branches), whose results become constants."""
    from onnx import TensorProto, helper

    known, timed = set(constants.tensors), set(constants.times)
    folding, helping, rest = [], [], []
    for node in nodes:
        if node.op_type != "Loop" and all(name in known for name in node.input if name):
            known.update(node.output)
            if timed & set(node.input):
                timed.update(node.output)
                folding.append(node)
                continue
            helping.append(node)
        rest.append(node)
    made = {name for node in folding for name in node.output}
    wanted = sorted(made & set(_read_names(rest)))
    if not wanted:
        return nodes
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in wanted]
    order = {id(node): i for i, node in enumerate(nodes)}
    network = _needed(sorted(folding + helping, key=lambda node: order[id(node)]), outputs)
    read = set(_read_names(network))
    graph = helper.make_graph(network, "times", [], [_untyped(name) for name in wanted], [t for n, t in constants.tensors.items() if n in read])
    for name, value in zip(wanted, _evaluated(graph, opsets), strict=True):
        renamed = constants.add(value, value.dtype)
        for node in rest:
            node.input[:] = [renamed if n == name else n for n in node.input]
    return _needed(rest, [_untyped(node.output[0]) for node in rest if node.output[0].startswith("out.")])


def _scaled_products(nodes: list[onnx.NodeProto], constants: _Constants) -> list[onnx.NodeProto]:
    """The nodes without multiplications of a Gemm's result by a number, which go into its alpha and beta."""
    from onnx import helper, numpy_helper

    producer = {node.output[0]: node for node in nodes}
    uses = Counter(_read_names(nodes))
    replaced: dict[str, str] = {}
    for node in nodes:
        node.input[:] = [replaced.get(name, name) for name in node.input]
        factor = next((constants.tensors[name] for name in node.input if node.op_type == "Mul" and name in constants.tensors), None)
        if factor is None or list(factor.dims) or factor.data_type != _FLOAT:
            continue
        value = next(name for name in node.input if name != factor.name)
        product = producer.get(value)
        while product is not None and product.op_type == "Reshape" and uses[product.output[0]] == 1:
            product = producer.get(product.input[0])
        if product is None or product.op_type != "Gemm" or uses[product.output[0]] != 1 or uses[value] != 1:
            continue
        number = float(numpy_helper.to_array(factor))
        attributes = {a.name: helper.get_attribute_value(a) for a in product.attribute}
        for name in ("alpha", "beta"):
            attributes[name] = attributes.get(name, 1.0) * number
        del product.attribute[:]
        product.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(attributes.items()))
        replaced[node.output[0]] = value
        uses[value] = uses[node.output[0]]
    return [node for node in nodes if node.output[0] not in replaced]


def _untyped(name: str) -> Any:
    import onnx

    return onnx.ValueInfoProto(name=name)


def _evaluated(graph: onnx.GraphProto, opsets: Sequence[onnx.OperatorSetIdProto]) -> list[Array]:
    """The outputs of a graph without inputs, by ONNX Runtime on one thread."""
    import onnxruntime
    from onnx import helper

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {})]
