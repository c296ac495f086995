"""Fused programs that must not reach an engine: (a bundle's bytes, words of the error), by name (FORMAT.md, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgegen import canonical
from edgegen.bundle import FusedEntry, Golden, Manifest, ProgramEntry, Variant, bundle_bytes
from edgegen.program import Clamp, Eval, Imm, Input, Noise, Program, Reg, State, program_to_json
from edgegen.spec import ConditionSpec, SampleSpec, Signature, TensorSpec

__all__ = ["FUSED", "fused_bundle"]

SAMPLE = (2, 4)
PROGRAM = Program(
    "one", (Input("x_T"), Input("c", "condition")), (Noise("z", "x_T", 3), Eval("f", {"x": (Reg("z"),), "t": (Imm(1.0),)}, {"o": ("e",)}), Clamp("y", "e", -1.0, 1.0)),
    {"sample": "y"}, {"f": 1},
)  # fmt: skip


def fused_model() -> onnx.ModelProto:
    """out.sample = x_T + draw.3 + big[0, :8], for batch 1."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["x_T", "draw.3"], ["a"]),
        helper.make_node("Cast", ["c"], ["cf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cf", "zero"], ["nothing"]),
        helper.make_node("Add", ["a", "nothing"], ["b"]),
        helper.make_node("ReduceSum", ["big"], ["s"], keepdims=0),
        helper.make_node("Add", ["b", "s"], ["out.sample"]),
    ]
    inputs = [value("x_T", TensorProto.FLOAT, [1, *SAMPLE]), value("c", TensorProto.INT64, [1]), value("draw.3", TensorProto.FLOAT, [1, *SAMPLE])]
    big = onnx.TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[300], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "f.weights"), ("offset", "0"), ("length", "1200")):
        big.external_data.add(key=key, value=text)
    constants = [numpy_helper.from_array(np.zeros(1, np.float32), "zero"), big]
    graph = helper.make_graph(nodes, "g", inputs, [value("out.sample", TensorProto.FLOAT, [1, *SAMPLE])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def fused_bundle(
    change: Callable[[onnx.ModelProto], object] = lambda m: None,
    program: Program = PROGRAM,
    *,
    condition: str = "c",
    sample: tuple[int, ...] = SAMPLE,
) -> bytes:
    """A bundle whose default program is fused, with its network changed."""
    model = fused_model()
    change(model)
    tail = ("batch", *SAMPLE)
    signature = Signature((TensorSpec("x", "float32", tail), TensorSpec("t", "float32", ("batch",))), (TensorSpec("o", "float32", tail),))
    variant = Variant(
        "float32",
        "onnxruntime",
        {"f": "f.onnx"},
        (Golden("one", "golden.f32", 0.5),),
        {"f": "f.weights"},
        (),
        (FusedEntry("one", 1, "fused.onnx"),),
    )
    manifest = Manifest(
        "fused", "", "", "test", False, SampleSpec(sample), (ConditionSpec(condition, "int64", (), 0, 3, 1),), {"f": signature},
        (ProgramEntry("one", 1, "program.json"),), (variant,), {},
    )  # fmt: skip
    members = {
        "program.json": canonical.encode(program_to_json(program)), "f.onnx": b"not read", "f.weights": np.zeros(300, np.float32).tobytes(),
        "golden.f32": np.zeros(sample, np.float32).tobytes(), "fused.onnx": model.SerializeToString(),
    }  # fmt: skip
    return bundle_bytes(manifest, members)


def location(text):
    return lambda m: setattr(m.graph.initializer[1].external_data[0], "value", text)


def size(side, index, axis, value):
    return lambda m: setattr(getattr(m.graph, side)[index].type.tensor_type.shape.dim[axis], "dim_value", value)


def drawing(count):
    """The program with so many draws."""
    return replace(PROGRAM, instructions=(*(Noise("z", "x_T", k + 1) for k in range(count)), *PROGRAM.instructions[1:]))


def taking(count):
    """The network with so many draws more."""

    def change(model):
        del model.graph.input[2]
        model.graph.node[0].input[1] = "draw.1"
        model.graph.input.extend(helper.make_tensor_value_info(f"draw.{k + 1}", 1, [1, *SAMPLE]) for k in range(count))

    return change


def giving(name, tail):
    """The network with an output more."""

    def change(model):
        model.graph.node.append(helper.make_node("Identity", ["a"], [name]))
        model.graph.output.append(helper.make_tensor_value_info(name, 1, [1, *tail]))

    return change


def of_rank_six():
    """A bundle whose samples have six sizes, which the batch makes seven."""
    wide = (2, 4, 1, 1, 1, 1)

    def change(model):
        for value in (model.graph.input[0], model.graph.input[2], model.graph.output[0]):
            for _ in range(4):
                value.type.tensor_type.shape.dim.add(dim_value=1)

    plain = (Noise("z", "x_T", 3), Clamp("y", "z", -1.0, 1.0))
    return fused_bundle(change, replace(PROGRAM, instructions=plain, nfe={}), sample=wide)


LIKE_A_DRAW = replace(PROGRAM, inputs=(Input("x_T"), Input("draw.3", "condition")))
LONG = replace(PROGRAM, outputs={"sample": "y", "a" * 61: "e"})
STREAM = replace(PROGRAM, states=(State("h", (2,), "n"),), instructions=(*PROGRAM.instructions, Clamp("n", "h", 0.0, 1.0)))

FUSED = {
    "a constant in a member that holds no weights": (fused_bundle(location("golden.f32")), "expected a location, which is 'f.weights'"),
    "a constant behind the end": (fused_bundle(lambda m: setattr(m.graph.initializer[1].external_data[1], "value", "64")), "expected 1200 at a multiple"),
    "another batch in an input": (fused_bundle(size("input", 0, 0, 2)), "tensor 'x_T' is float32"),
    "another batch in the output": (fused_bundle(size("output", 0, 0, 2)), "tensor 'out.sample' is float32"),
    "a draw of another size": (fused_bundle(size("input", 2, 1, 3)), "tensor 'draw.3' is float32"),
    "a condition of another dtype": (fused_bundle(lambda m: setattr(m.graph.input[1].type.tensor_type, "elem_type", 6)), "tensor 'c' is int32"),
    "without the draw": (fused_bundle(lambda m: m.graph.input.pop()), "its inputs are"),
    "with a draw more": (fused_bundle(lambda m: m.graph.input.add().CopyFrom(helper.make_tensor_value_info("draw.4", 1, [1, 2, 4]))), "its inputs are"),
    "an output of another name": (fused_bundle(lambda m: setattr(m.graph.output[0], "name", "a")), "its outputs are"),
    "a program with states": (fused_bundle(program=STREAM), "has states"),
    "a condition named like a draw": (fused_bundle(program=LIKE_A_DRAW, condition="draw.3"), "has an input that is named like a draw"),
    "2,049 tensors": (fused_bundle(taking(2046), drawing(2046)), "has more than 2048 inputs, draws and outputs"),
    "an output with a long name": (fused_bundle(giving("out." + "a" * 61, SAMPLE), LONG), "has a name that is too long"),
    "samples of rank six": (of_rank_six(), "has a tensor of rank 6"),
}  # fmt: skip
