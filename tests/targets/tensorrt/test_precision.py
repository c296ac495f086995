"""Float16 and bfloat16 networks: types at the edges and inside, values against float32, constants that do not fit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgegen.errors import BuildError, Status
from edgegen.quantize import Ranges
from edgegen.targets.tensorrt import check_for_tensorrt, lower_precision, slow_spots
from edgegen.targets.tensorrt.precision import _narrow
from edgegen.targets.tensorrt.qdq import plan, quantize
from tests.targets.tensorrt.networks import FLOAT, branches, constant, float_network, matmul, matmul_weight, network, node

OPERATORS = ("Conv", "Gemm", "MatMul")


def run(model, **feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def types(model):
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)} | {
        t.name: t.data_type for t in inferred.initializer
    }


def draw(shape, seed=3):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def timed_network():
    """x + a sine of a time, as embeddings of times are made: t * frequency -> Sin -> product."""
    return network(
        [node("Mul", ["t", "freqs"], "a", "scale"), node("Sin", ["a"], "s", "sin"), node("MatMul", ["s", "w"], "e", "embed"),
         node("Add", ["x", "e"], "h", "add"), node("ReduceMean", ["h"], "m", "mean"), node("Sub", ["h", "m"], "y", "sub")],
        {"x": (FLOAT, [2, 8]), "t": (FLOAT, [2, 1])}, {"y": (FLOAT, [2, 8]), "h": (FLOAT, [2, 8])},
        [constant("freqs", np.geomspace(1, 1e-3, 4), np.float32), constant("w", draw((4, 8)))],
    )  # fmt: skip


def test_a_float16_network_keeps_its_edges_and_computes_within_half_precision():
    model = float_network()
    result = lower_precision(model)
    onnx.checker.check_model(result, full_check=True)
    assert list(result.graph.input) == list(model.graph.input)
    assert list(result.graph.output) == list(model.graph.output)
    found = types(result)
    assert {found[n.output[0]] for n in result.graph.node if n.op_type in ("Conv", "Relu", "Flatten", "Gemm")} == {TensorProto.FLOAT16}
    assert [n.op_type for n in result.graph.node] == ["Cast", "Conv", "Relu", "Flatten", "Gemm", "Cast"]
    x = draw((2, 16, 8, 8))
    (exact,), (half,) = run(model, x=x), run(result, x=x)
    assert half.dtype == np.float32
    error = np.abs(half - exact).max() / np.abs(exact).max()
    assert 0 < error < 2e-3
    assert result.SerializeToString(deterministic=True) == lower_precision(model).SerializeToString(deterministic=True)


def test_times_stay_float32_up_to_their_sine():
    model = timed_network()
    result, x, t = lower_precision(model), draw((2, 8)), np.array([[999.0], [998.7]], np.float32)
    found = types(result)
    assert (found["a"], found["s"], found["m"]) == (FLOAT, FLOAT, FLOAT)
    assert found["e_half"] == TensorProto.FLOAT16
    for exact, half in zip(run(model, x=x, t=t), run(result, x=x, t=t), strict=True):
        assert np.abs(half - exact).max() < 5e-3
    # the negative control: with the time in half precision the sine is of another angle
    assert np.abs(np.sin(np.float32(t.astype(np.float16))) - np.sin(t)).max() > 0.1


def test_what_is_told_to_stay_stays():
    found = types(lower_precision(float_network(), keep=["conv"]))
    assert (found["c"], found["r_half"]) == (FLOAT, TensorProto.FLOAT16)
    assert "w" in found
    assert "w_half" not in found
    found = types(lower_precision(float_network(), keep=["Gemm"]))
    assert (found["y"], found["c_half"]) == (FLOAT, TensorProto.FLOAT16)
    assert "y_half" not in found


@pytest.mark.parametrize(("precision", "value"), [("float16", 65520.0), ("float16", -1e6), ("bfloat16", 3.4e38)])
def test_a_weight_that_overflows_is_an_error_that_names_it(precision, value):
    model = float_network()
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = value
    model.graph.initializer[0].CopyFrom(constant("w", weight))
    with pytest.raises(BuildError, match=f"constant 'w' holds .* overflows {precision}") as e:
        lower_precision(model, precision)
    assert e.value.code == Status.OUT_OF_RANGE
    lower_precision(model, precision, keep=["conv"])


def test_the_largest_weights_and_infinite_masks_fit():
    model = float_network()
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0, 0, :2] = 65504.0, -np.inf
    model.graph.initializer[0].CopyFrom(constant("w", weight))
    lowered = next(numpy_helper.to_array(t) for t in lower_precision(model).graph.initializer if t.name == "w_half")
    assert lowered[0, 0, 0, :2].tolist() == [65504.0, -np.inf]


def test_rounding_is_that_of_numpy_and_ml_dtypes():
    values = np.concatenate([draw(5000), draw(5000) * 1e-6, draw(5000) * 1e30, [0.0, -0.0, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 1e-40]]).astype(
        np.float32
    )
    assert _narrow(values, "bfloat16") == values.astype(ml_dtypes.bfloat16).tobytes()
    with np.errstate(over="ignore"):
        assert _narrow(values, "float16") == values.astype(np.float16).tobytes()


def test_int8_scales_stay_float32_and_the_rest_is_half():
    model = float_network()
    ranges = Ranges({"x": ((0.5, -3.0, 3.0),), "f": ((0.5, 0.0, 40.0),)})
    int8 = quantize(model, plan(model, OPERATORS, []), ranges)
    result = lower_precision(int8)
    onnx.checker.check_model(result, full_check=True)
    check_for_tensorrt(result, "net.onnx", ["SM86"])
    assert slow_spots(result) == []
    found = types(result)
    assert {found[n.input[1]] for n in result.graph.node if n.op_type.endswith("quantizeLinear") or n.op_type == "QuantizeLinear"} == {FLOAT}
    assert found["r_half"] == TensorProto.FLOAT16
    x = draw((2, 16, 8, 8))
    (exact,), (half,) = run(int8, x=x), run(result, x=x)
    assert np.abs(half - exact).max() / np.abs(exact).max() < 0.02  # a rounding to half may move an int8 code by one


def test_weight_only_scales_are_lowered_with_their_product_and_none_becomes_zero():
    model = matmul(None, matmul_weight(128, 32, axis=0, block=32), k=128)
    scale = np.full((4, 32), 1e-12, np.float32)
    model.graph.initializer[1].CopyFrom(constant("w_s", scale))
    result = lower_precision(model)
    found = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    assert found["w_s_half"].dtype == np.float16
    assert (found["w_s_half"] == 2.0**-24).all()
    assert types(result)["w_dq_half"] == TensorProto.FLOAT16
    check_for_tensorrt(result, "net.onnx", ["SM86"])


def test_scales_of_resize_stay_float32():
    model = network(
        [node("Relu", ["x"], "r", "relu"), node("Resize", ["r", "", "s"], "y", "up")], {"x": (FLOAT, [1, 2, 4, 4])}, {"y": (FLOAT, [1, 2, 8, 8])},
        [constant("s", [1, 1, 2, 2], np.float32)],
    )  # fmt: skip
    result = lower_precision(model)
    onnx.checker.check_model(result, full_check=True)
    found = types(result)
    assert (found["s"], found["y_half"]) == (FLOAT, TensorProto.FLOAT16)
    x = np.abs(draw((1, 2, 4, 4)))
    np.testing.assert_allclose(run(result, x=x)[0], x.repeat(2, 2).repeat(2, 3), rtol=1e-3)


def test_constant_nodes_and_integers_and_branches():
    nodes = [
        node("Constant", [], "k", "k", value=constant("v", 2.0, np.float32)), node("Mul", ["x", "k"], "y", "mul"),
        node("Shape", ["x"], "sh", "shape"), node("Cast", ["sh"], "z", "count", to=1),
    ]  # fmt: skip
    model = network(nodes, {"x": (FLOAT, [2, 3])}, {"y": (FLOAT, [2, 3]), "z": (FLOAT, [2])}, [])
    result = lower_precision(model)
    onnx.checker.check_model(result, full_check=True)
    y, z = run(result, x=np.ones((2, 3), np.float32))
    assert y.tolist() == [[2.0] * 3] * 2
    assert z.tolist() == [2.0, 3.0]

    branch = branches([node("Relu", ["h"], "t", "relu")])
    branch.graph.node.insert(0, node("Mul", ["x", "x"], "h", "square"))
    branch = helper.make_model(branch.graph, opset_imports=branch.opset_import, ir_version=10)
    lowered = lower_precision(branch)  # its branches stay float32, and so does what they read
    onnx.checker.check_model(lowered, full_check=True)
    assert types(lowered)["h_half"] == TensorProto.FLOAT16
    x = draw((2, 64))
    np.testing.assert_allclose(run(lowered, x=x, c=np.array(True))[0], x * x, rtol=2e-3, atol=1e-6)


def test_unknown_precisions_are_refused():
    with pytest.raises(BuildError, match="precision 'float8'"):
        lower_precision(float_network(), "float8")
