"""A tiny conditional denoiser as an ONNX file and its recipe: what tests build when no training is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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

[gate]
psnr_db = 20.0
samples = 4
"""


def tiny_model(seed: int = 0) -> onnx.ModelProto:
    """prediction = 0.5 x + conv2(relu(conv1(x) + t + table[label]))."""
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
        constant("w1", (0.3 * rng.standard_normal((8, 1, 3, 3))).astype(np.float32)),
        constant("b1", np.zeros(8, np.float32)),
        constant("w2", (0.05 * rng.standard_normal((1, 8, 3, 3))).astype(np.float32)),
        constant("b2", np.zeros(1, np.float32)),
        constant("table", (0.2 * rng.standard_normal((5, 8))).astype(np.float32)),
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
