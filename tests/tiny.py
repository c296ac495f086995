"""Tiny networks as ONNX files, with a recipe or as a bundle: what tests build when no training is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgegen import canonical
from edgegen.bundle import Manifest, ProgramEntry, Variant, bundle_bytes
from edgegen.program import Eval, Input, Lincomb, Noise, Program, Reg, State, Step, program_to_json
from edgegen.spec import ConditionSpec, SampleSpec, Signature, TensorSpec

RECIPE = """\
schema = 1
name = "tiny"
summary = "a tiny denoiser for tests"

[model]
source = "tiny.onnx"
prediction = "sample"
sample_shape = [1, 8, 8]

[process]
name = "vp_linear"

[conditions.label]
dtype = "int64"
minimum = 0
maximum = 3
null = 4
default = 1

[sample]
kind = "image"

[[programs]]
solver = "dpmpp_2m"
steps = [4, 2]
guidance = 1.5

[[programs]]
solver = "ddim"
steps = [3]
options = { eta = 1.0 }

[calibration]
samples = 4
batch = 2

[quantization]
rules = []

[gate]
psnr_db = 20.0
samples = 4
"""


def tiny_model(seed: int = 0) -> onnx.ModelProto:
    """prediction = 0.5 x + conv2(relu(conv1(x) + t + table[label])). Its two convolutions have constants large enough to be moved out."""
    rng = np.random.default_rng(seed)

    def constant(name, value):
        return numpy_helper.from_array(np.asarray(value), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Gather", ["table", "label"], ["g"], "gather"),
        helper.make_node("Unsqueeze", ["t", "axis1"], ["t1"], "unsqueeze_t"),
        helper.make_node("Add", ["g", "t1"], ["gt"], "add_t"),
        helper.make_node("Unsqueeze", ["gt", "axes23"], ["gt4"], "unsqueeze_g"),
        helper.make_node("Add", ["c1", "gt4"], ["s"], "add_c"),
        helper.make_node("Relu", ["s"], ["h"], "relu"),
        helper.make_node("Conv", ["h", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["x", "half"], ["xh"], "mul"),
        helper.make_node("Add", ["c2", "xh"], ["prediction"], "out"),
    ]
    initializers = [
        constant("w1", (0.3 * rng.standard_normal((32, 1, 3, 3))).astype(np.float32)),
        constant("b1", np.zeros(32, np.float32)),
        constant("w2", (0.025 * rng.standard_normal((1, 32, 3, 3))).astype(np.float32)),
        constant("b2", np.zeros(1, np.float32)),
        constant("table", (0.2 * rng.standard_normal((5, 32))).astype(np.float32)),
        constant("axis1", np.array([1], np.int64)),
        constant("axes23", np.array([2, 3], np.int64)),
        constant("half", np.float32(0.5)),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8]),
        helper.make_tensor_value_info("t", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["batch", 1, 8, 8])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_tiny(folder: Path) -> Path:
    """tiny.onnx and recipe.toml in `folder`; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(tiny_model(), folder / "tiny.onnx")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"


def mixing_model(inputs: dict[str, tuple[str, list[int]]], output: list[int]) -> onnx.ModelProto:
    """prediction = 0.5 x[:, :C] + 0.01 * (the mean of each further input), without the batch in the shapes; of more output channels
    the rest are 7. inputs: name -> (dtype, shape); the first is x, of at least C = output[0] channels if it is the network's state.
    """
    element = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    (state, (_, wide)), *others = inputs.items()
    channels = min(output[0], wide[0])
    axes = list(range(1, len(wide) + 1))

    def ints(name, values):
        return numpy_helper.from_array(np.array(values, np.int64), name)

    initializers = [ints("zero", [0]), ints("stop", [channels]), ints("one", [1]), numpy_helper.from_array(np.float32(0.5), "half")]
    initializers += [numpy_helper.from_array(np.float32(0.01), "small")]
    nodes = [helper.make_node("Slice", [state, "zero", "stop", "one"], ["cut"]), helper.make_node("Mul", ["cut", "half"], ["sum0"])]
    total = "sum0"
    for k, (name, (dtype, shape)) in enumerate(others, 1):
        value = name
        if dtype != "float32":
            nodes.append(helper.make_node("Cast", [value], [value := f"{name}.float"], to=TensorProto.FLOAT))
        if shape:
            initializers.append(ints(f"axes{k}", list(range(1, len(shape) + 1))))
            nodes.append(helper.make_node("ReduceMean", [value, f"axes{k}"], [value := f"{name}.mean"], keepdims=0))
        initializers.append(ints(f"spread{k}", axes))
        nodes += [
            helper.make_node("Unsqueeze", [value, f"spread{k}"], [f"{name}.wide"]),
            helper.make_node("Mul", [f"{name}.wide", "small"], [f"{name}.small"]),
            helper.make_node("Add", [total, f"{name}.small"], [total := f"sum{k}"]),
        ]
    if output[0] > channels:
        initializers.append(numpy_helper.from_array(np.float32(7.0), "seven"))
        initializers.append(numpy_helper.from_array(np.float32(0.0), "nothing"))
        nodes += [
            helper.make_node("Mul", [total, "nothing"], ["none"]),
            helper.make_node("Add", ["none", "seven"], ["sevens"]),
            helper.make_node("Concat", [total, "sevens"], ["prediction"], axis=1),
        ]
    else:
        nodes.append(helper.make_node("Identity", [total], ["prediction"]))
    declared = [helper.make_tensor_value_info(name, element[dtype], ["batch", *shape]) for name, (dtype, shape) in inputs.items()]
    outputs = [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["batch", *output])]
    graph = helper.make_graph(nodes, "mixing", declared, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def cell_model() -> onnx.ModelProto:
    """A recurrent cell: g = tanh(x A + h B), y = g C."""
    rng = np.random.default_rng(5)
    constants = {"A": (4, 8), "B": (8, 8), "C": (8, 4)}
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["xa"]),
        helper.make_node("MatMul", ["h", "B"], ["hb"]),
        helper.make_node("Add", ["xa", "hb"], ["s"]),
        helper.make_node("Tanh", ["s"], ["g"]),
        helper.make_node("MatMul", ["g", "C"], ["y"]),
    ]
    initializers = [numpy_helper.from_array((0.5 * rng.standard_normal(shape)).astype(np.float32), name) for name, shape in constants.items()]
    inputs, outputs = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", k]) for n, k in side] for side in ((("x", 4), ("h", 8)), (("y", 4), ("g", 8)))
    )
    graph = helper.make_graph(nodes, "cell", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def stream_program() -> Program:
    """Frames through the cell: sample = y + 0.5 last frame + 0.25 the one before it + 0.125 noise."""
    return Program(
        "stream",
        (Input("frame", "condition"),),
        (
            Eval("cell", {"x": (Reg("frame"),), "h": (Reg("h"),)}, {"y": ("y",), "g": ("g",)}),
            Noise("z", "frame", 1),
            Lincomb("out", ((1.0, "y"), (0.5, "one"), (0.25, "two"), (0.125, "z"))),
        ),
        {"sample": "out"},
        {"cell": 1},
        (Step(3, "out", 0.0),),
        (State("h", (8,), "g"), State("one", (4,), "frame", 1.0), State("two", (4,), "one", 2.0)),
    )


def stream_bundle() -> bytes:
    """A bundle of `stream_program` and a program without states over the same cell."""
    shape = lambda n: ("batch", n)  # noqa: E731
    signature = Signature(
        (TensorSpec("x", "float32", shape(4)), TensorSpec("h", "float32", shape(8))),
        (TensorSpec("y", "float32", shape(4)), TensorSpec("g", "float32", shape(8))),
    )
    once = Program(
        "once",
        (Input("x_T"), Input("frame", "condition")),
        (Noise("z", "x_T", 1, (8,)), Eval("cell", {"x": (Reg("frame"),), "h": (Reg("z"),)}, {"y": ("y",), "g": ("g",)}), Lincomb("out", ((1.0, "y"), (1.0, "x_T")))),
        {"sample": "out"},
        {"cell": 1},
        (Step(3, "out", 0.0),),
    )  # fmt: skip
    manifest = Manifest(
        "stream", "a recurrent cell for tests", "", "tests", False, SampleSpec((4,)), (ConditionSpec("frame", "float32", (4,), default=0.0),),
        {"cell": signature}, (ProgramEntry("once", 1, "program.0.json"), ProgramEntry("stream", 1, "program.1.json")),
        (Variant("float32", "onnxruntime", {"cell": "cell.onnx"}, ()),), {},
    )  # fmt: skip
    members = {"cell.onnx": cell_model().SerializeToString(deterministic=True)}
    members |= {f"program.{i}.json": canonical.encode(program_to_json(p)) for i, p in enumerate((once, stream_program()))}
    return bundle_bytes(manifest, members)
