"""Weights stored in fewer bits: what ONNX Runtime computes with is what the codes say, and nothing of the decoding runs in a call."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgegen.errors import BuildError
from edgegen.quantize.rounding import nearest
from edgegen.targets.onnxruntime.storage import store_codes, store_float

SHAPES = {"conv": ((6, 5, 3, 3), 0), "conv odd": ((3, 1, 3, 3), 0), "matmul": ((40, 7), 1), "gemm": ((7, 33), 0)}


def decoded(made, shape, tmp_path):
    """The tensor as ONNX Runtime computes it, and the operators of a network that adds it to an input, as they run."""
    nodes = [*made.nodes, helper.make_node("Add", ["x", made.output], ["y"])]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", value[:1], value[1:], list({t.name: t for t in made.constants}.values())),
        opset_imports=[helper.make_opsetid("", 13)], ir_version=8,
    )  # fmt: skip
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": np.zeros(shape, np.float32)})[0], [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("bits", "block"), [(8, 0), (4, 0), (4, 16), (8, 16), (3, 32)])
def test_codes_come_back_as_they_are(tmp_path, name, bits, block):
    shape, axis = SHAPES[name]
    codes = nearest(np.random.default_rng(0).standard_normal(shape).astype(np.float32), axis, bits, block)
    found, operators = decoded(store_codes(0, codes), shape, tmp_path)
    np.testing.assert_allclose(found, codes.values(), rtol=6e-4, atol=1e-7)  # scales of blocks are float16
    assert operators == ["Add"]  # folded when it was loaded


def test_four_bits_are_half_a_byte():
    codes = nearest(np.random.default_rng(0).standard_normal((64, 32, 3, 3)).astype(np.float32), 0, 4, 32)
    size = sum(len(t.raw_data) for t in store_codes(0, codes).constants)
    assert size <= 64 * 288 * (0.5 + 2 / 32) + 200


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_become_int8_weights_within_half_a_step_of_it(tmp_path, name):
    shape, axis = SHAPES[name]
    codes = nearest(np.random.default_rng(1).standard_normal(shape).astype(np.float32), axis, 4, 16)
    found, operators = decoded(store_codes(0, codes, as_int8=True), shape, tmp_path)
    rest = tuple(i for i in range(len(shape)) if i != axis)
    step = np.abs(codes.values()).max(axis=rest, keepdims=True) / 127
    assert (np.abs(found - codes.values()) <= 0.5001 * step + 1e-3 * np.abs(codes.values())).all()
    assert operators.count("DequantizeLinear") == 1 and set(operators) == {"DequantizeLinear", "Add"}


@pytest.mark.parametrize("name", SHAPES)
def test_floats_are_those_of_ml_dtypes(tmp_path, name):
    shape, axis = SHAPES[name]
    weight = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    weight.flat[:3] = 0.0, 65504.0, -1e-7
    found, operators = decoded(store_float(0, "w", weight, "float16", axis), shape, tmp_path)
    assert np.array_equal(found, weight.astype(np.float16).astype(np.float32)) and operators == ["Add"]

    rest = tuple(i for i in range(len(shape)) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=rest, keepdims=True) / np.float32(448), np.float32(1e-12))
    expected = (weight.astype(np.float64) / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    found, operators = decoded(store_float(0, "w", weight, "float8", axis), shape, tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert operators == ["Add"]


def test_what_cannot_be_stored_is_refused_with_what_to_do():
    huge = np.full((2, 2), 1e6, np.float32)
    with pytest.raises(BuildError, match="weight 'w' reaches 1e\\+06, beyond float16; name it in quantization.keep"):
        store_float(0, "w", huge, "float16", 0)
    with pytest.raises(BuildError, match="no storage type 'float15': did you mean"):
        store_float(0, "w", huge, "float15", 0)
