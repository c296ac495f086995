"""The quantized model for TensorRT: codes and scales against independent libraries, its values against closed forms in numpy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from edgegen.errors import BuildError, CalibrationError
from edgegen.quantize import Ranges
from edgegen.quantize.fp8 import encode_fp8, fp8_weight
from edgegen.quantize.rounding import Codes
from edgegen.targets.tensorrt import check_for_tensorrt, slow_spots
from edgegen.targets.tensorrt.networks import network_for
from edgegen.targets.tensorrt.qdq import PRECISIONS, plan, quantize, roundings, watched
from edgegen.targets.tensorrt.scales import pack_int4, per_tensor
from tests.targets.tensorrt.networks import FLOAT, constant, conv, float_network, matmul, network, node

OPERATORS = ("Conv", "Gemm", "MatMul")


def run(model, **feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def quantized(model, precision="int8", ranges=None, keep=()):
    return quantize(model, plan(model, OPERATORS, keep, precision), ranges or Ranges({"x": ((0.5, -3.0, 2.0),)}), precision)


def arrays(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def draw(shape, seed=3, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def fake(values, scale, largest):
    """Quantize and dequantize by the definition."""
    return np.clip(np.rint(values.astype(np.float64) / scale), -largest - 1, largest) * scale


def rms(a, b):
    return np.sqrt(np.mean((a - b) ** 2)) / np.sqrt(np.mean(b**2))


def test_an_int8_product_is_its_closed_form():
    model = matmul()
    w, x = arrays(model)["w_dq"], draw((4, 64))
    step = 3.0 / 127
    expected = fake(x, np.float32(step), 127) @ fake(w, (np.abs(w).max(0) / 127).astype(np.float32), 127)
    np.testing.assert_allclose(run(quantized(model), x=x), expected, rtol=1e-5, atol=1e-5)


def test_an_int8_convolution_is_its_closed_form():
    model = conv()
    w, x = arrays(model)["w_dq"], draw((2, 16, 8, 8))
    scale = (np.abs(w).max((1, 2, 3)) / 127).astype(np.float32).reshape(-1, 1, 1, 1)
    xq, wq = np.pad(fake(x, np.float32(3.0 / 127), 127), [(0, 0), (0, 0), (1, 1), (1, 1)]), fake(w, scale, 127)
    expected = np.ones((2, 32, 8, 8))
    for i, j in itertools.product(range(3), range(3)):
        expected += np.einsum("nchw,oc->nohw", xq[:, :, i : i + 8, j : j + 8], wq[:, :, i, j])
    np.testing.assert_allclose(run(quantized(model), x=x), expected, rtol=1e-5, atol=1e-4)


def test_an_fp8_product_is_its_closed_form():
    model = matmul()
    w, x = arrays(model)["w_dq"], draw((4, 64))
    step, steps = np.float32(3.0 / 448), (np.abs(w).max(0) / 448).astype(np.float32)

    def rounded(values, scale):
        return np.clip(values / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale

    assert rms(run(quantized(model, "fp8"), x=x), rounded(x, step) @ rounded(w, steps)) < 1e-6


@pytest.mark.parametrize("trans_b", [0, 1])
def test_an_int4_gemm_is_its_closed_form(trans_b):
    w, x, model = draw((128, 24)), draw((4, 128)), gemm(trans_b)
    blocks = w.reshape(4, 32, 24)
    expected = x.astype(np.float64) @ fake(blocks, (np.abs(blocks).max(1, keepdims=True) / 7).astype(np.float32), 7).reshape(128, 24) + np.arange(24)
    result = quantize(model, plan(model, OPERATORS, [], "int4"), None, "int4")
    np.testing.assert_allclose(run(result, x=x), expected, rtol=1e-5, atol=1e-4)
    (codes,) = [t for t in result.graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert len(codes.raw_data) == 128 * 24 // 2


def test_fp8_codes_are_those_of_ml_dtypes():
    every = np.arange(256).astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    every = every[np.isfinite(every)]
    middles = (np.sort(every)[1:] + np.sort(every)[:-1]) / 2
    near = [np.nextafter(middles.astype(np.float32), np.float32(side)).astype(np.float64) for side in (9e9, -9e9)]  # ml_dtypes goes over float32
    values = np.concatenate([every, middles, *near, np.random.default_rng(0).normal(size=9999) * 100])
    values = values[np.abs(values) <= 448]
    assert (encode_fp8(values) == values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)).all()
    assert encode_fp8(np.array([1e9, -1e9, 460.0])).tolist() == [0x7E, 0xFE, 0x7E]  # saturated: never the code of NaN


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_int4_codes_are_packed_as_onnx_packs_them(count):
    codes = np.random.default_rng(count).integers(-7, 8, count).astype(np.int8)
    assert pack_int4(codes) == numpy_helper.from_array(codes.astype(ml_dtypes.int4)).raw_data


def test_scales_are_symmetric_and_never_zero():
    assert per_tensor(-3.0, 2.0, "int8") == np.float32(3.0 / 127)
    assert per_tensor(1.0, 4.48, "fp8") == np.float32(0.01)
    assert per_tensor(0.0, 0.0, "int8") > 0
    assert np.isfinite(per_tensor(-3e38, 3e38, "int8"))
    weight = draw((6, 3, 3, 3))
    weight[2] = 0
    codes, scale = fp8_weight(weight, 0)
    assert (scale > 0).all()
    assert codes[2].any() == 0
    assert codes.max() == 0xFE  # -448
    for low, high in ((np.nan, 1.0), (0.0, np.inf), (2.0, 1.0)):
        with pytest.raises(CalibrationError):
            per_tensor(low, high, "int8")
    with pytest.raises(CalibrationError):
        fp8_weight(np.full((2, 2), np.nan, np.float32), 0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_scale_is_dead_and_no_zero_point_is_but_zero(precision):
    """Channels of zeros, of the smallest subnormal and of the largest float, and an activation that is always 0."""
    model = matmul(k=128)
    w = arrays(model)["w_dq"].copy()
    w[:, 0], w[:, 1], w[:, 2] = 0, np.float32(1e-45), np.finfo(np.float32).max
    model.graph.initializer[0].CopyFrom(constant("w_dq", w))
    result = quantized(model, precision, Ranges({"x": ((0.5, 0.0, 0.0),)}))
    check_for_tensorrt(result, "net.onnx", ["SM89"])
    for name, values in arrays(result).items():
        if "scale" in name:
            assert np.isfinite(values).all() and (values > 0).all()
        elif "zero_point" in name:
            assert (values.astype(np.float32) == 0).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_models_are_sound_deterministic_and_pass_the_check(precision):
    model, ranges = float_network(), Ranges({"x": ((0.5, -3.0, 2.0),), "f": ((0.5, 0.0, 30.0),)})
    before = model.SerializeToString(deterministic=True)
    result = quantized(model, precision, ranges)
    onnx.checker.check_model(result, full_check=True)
    assert result.SerializeToString(deterministic=True) == quantized(model, precision, ranges).SerializeToString(deterministic=True)
    assert model.SerializeToString(deterministic=True) == before
    check_for_tensorrt(result, "net.onnx", ["SM89"])
    assert slow_spots(result, ["SM89"]) == []
    x = draw((2, 16, 8, 8), scale=0.7)
    assert rms(run(result, x=x), run(model, x=x)) < {"int8": 0.02, "fp8": 0.06, "int4": 0.12, "w4a8": 0.2, "w8a16": 0.01}[precision]


def test_nothing_is_on_outputs_and_biases_stay_float():
    model = float_network()
    placements = plan(model, OPERATORS, [])
    assert watched(model, placements) == ("x", "f")
    result = quantized(model, ranges=Ranges({"x": ((0.5, -3.0, 2.0),), "f": ((0.5, 0.0, 30.0),)}))
    kinds = [n.op_type for n in result.graph.node]
    assert kinds == [
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "Conv",
        "Relu",
        "Flatten",
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "Gemm",
    ]
    assert {"b", "gb"} <= set(arrays(result))
    assert all((arrays(result)[name] == 0).all() for name in arrays(result) if "zero_point" in name)


def test_weights_and_inputs_that_nodes_share_are_quantized_once():
    model = network(
        [node("MatMul", ["x", "w"], "a", "first"), node("MatMul", ["x", "w"], "c", "second"), node("MatMul", ["a", "w"], "d", "third"),
         node("Add", ["c", "d"], "y", "add")],
        {"x": (FLOAT, [4, 64])}, {"y": (FLOAT, [4, 64])}, [constant("w", draw((64, 64)))],
    )  # fmt: skip
    result = quantized(model, ranges=Ranges({"x": ((0.5, -3.0, 2.0),), "a": ((0.5, -9.0, 9.0),)}))
    kinds = [n.op_type for n in result.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear"), kinds.count("MatMul")) == (2, 3, 3)
    assert "w" not in arrays(result)


def test_a_weight_that_is_read_as_floats_too_stays():
    model = network(
        [node("MatMul", ["x", "w"], "a", "mm"), node("Mul", ["a", "w"], "y", "mul")],
        {"x": (FLOAT, [64, 64])},
        {"y": (FLOAT, [64, 64])},
        [constant("w", draw((64, 64)))],
    )
    result = quantized(model)
    assert {"w", "w_q"} <= set(arrays(result))


def test_names_that_are_taken_are_not_taken_again():
    model = network(
        [node("Relu", ["x"], "x_q", "relu"), node("MatMul", ["x", "w"], "x_dq", "mm"), node("Add", ["x_q", "x_dq"], "y", "add")],
        {"x": (FLOAT, [64, 64])}, {"y": (FLOAT, [64, 64])}, [constant("w", draw((64, 64)))],
    )  # fmt: skip
    onnx.checker.check_model(quantized(model), full_check=True)


def test_int4_takes_only_what_stays_packed():
    assert [p.weight for p in plan(float_network(), OPERATORS, [], "int4")] == ["gw"]
    assert plan(matmul(k=32), OPERATORS, [], "int4") == ()  # one block
    assert plan(matmul(k=48), OPERATORS, [], "int4") == ()  # one and a half
    assert plan(float_network(), OPERATORS, ["gemm"], "int4") == ()


def gemm(trans_b, k=128, n=24):
    w = draw((k, n))
    return network(
        [node("Gemm", ["x", "w", "b"], "y", "gemm", transB=trans_b)], {"x": (FLOAT, [4, k])}, {"y": (FLOAT, [4, n])},
        [constant("w", w.T.copy() if trans_b else w), constant("b", np.arange(n), np.float32)],
    )  # fmt: skip


def drawn_codes(shape, axis, bits, block=0, seed=7):
    """Codes that no rounding of the weight would give, so that a result shows whose they are."""
    r, top = np.random.default_rng(seed), 2 ** (bits - 1) - 1
    scales = (shape[axis], shape[1 - axis] // block) if block else (shape[axis],)
    return Codes(r.integers(-top, top + 1, shape).astype(np.int8), (0.01 + r.random(scales)).astype(np.float32), bits, axis, block)


@pytest.mark.parametrize(("precision", "block"), [("int8", 0), ("int4", 16), ("int4", 32), ("int4", 64), ("w4a8", 0), ("w8a16", 0)])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_given_codes_are_what_is_multiplied(precision, block, trans_b):
    model, x = gemm(trans_b), draw((4, 128))
    placements = plan(model, OPERATORS, [], precision)
    axis, bits, usual = roundings(model, placements, precision)["w"]
    assert (axis, bits, usual) == (0 if trans_b else 1, 4 if "4" in precision else 8, 32 if block else 0)
    codes = drawn_codes((24, 128) if trans_b else (128, 24), axis, bits, block)
    rows = codes.codes.astype(np.float64) if trans_b else codes.codes.T.astype(np.float64)
    weight = rows * np.repeat(codes.scale.reshape(24, -1), block or 128, axis=1)
    inputs = fake(x, np.float32(3.0 / 127), 127) if precision in ("int8", "w4a8") else x.astype(np.float64)
    result = quantize(model, placements, Ranges({"x": ((0.5, -3.0, 2.0),)}), precision, codes={"w": codes, "elsewhere": codes})
    np.testing.assert_allclose(run(result, x=x), inputs @ weight.T + np.arange(24), rtol=1e-5, atol=1e-3)
    check_for_tensorrt(result, "net.onnx", ["SM86"])
    assert slow_spots(result, ["SM86"]) == []


def test_given_codes_of_a_convolution_reach_the_engines_network():
    model = conv()
    codes = drawn_codes((32, 16, 3, 3), 0, 8)
    for precision in ("int8", "w4a8"):
        assert roundings(model, plan(model, OPERATORS, [], precision), precision) == {"w_dq": (0, 8, 0)}
        result = arrays(network_for(model, precision, Ranges({"x": ((0.5, -3.0, 2.0),)}), codes={"w_dq": codes}))
        (stored,) = [v for v in result.values() if v.shape == (32, 16, 3, 3)]
        assert (stored == codes.codes).all()
        assert any(np.array_equal(v, codes.scale) for v in result.values())


GIVEN = drawn_codes((128, 24), 1, 8)


@pytest.mark.parametrize(
    ("codes", "precision", "words"),
    [
        (GIVEN, "fp8", "becomes fp8, which has no integer codes"),
        (replace(GIVEN, codes=GIVEN.codes[:64]), "int8", "have the shape .64, 24., expected that of the weight, .128, 24."),
        (replace(GIVEN, axis=0), "int8", "output channels along axis 0, expected axis 1"),
        (replace(GIVEN, bits=4), "int8", "have 4 bits, expected 8"),
        (GIVEN, "w4a8", "have 8 bits, expected 4"),
        (drawn_codes((128, 24), 1, 4), "int4", "have blocks of 0 along a summed axis of 128; expected 16, 32, 64, 128, and two"),
        (drawn_codes((128, 24), 1, 4, 128), "int4", "have blocks of 128 along"),
        (drawn_codes((128, 24), 1, 4, 8), "int4", "have blocks of 8 along"),
        (drawn_codes((128, 24), 1, 8, 32), "w8a16", "have blocks of 32, expected one scale per channel"),
        (drawn_codes((128, 24), 1, 4, 32), "w4a8", "have blocks of 32, expected one scale per channel"),
        (replace(GIVEN, scale=GIVEN.scale[:3]), "int8", "scales of shape .3., expected .24."),
        (replace(GIVEN, scale=GIVEN.scale * 0), "int8", "a scale that is not finite and above 0"),
        (replace(GIVEN, scale=-GIVEN.scale), "int8", "a scale that is not finite and above 0"),
        (replace(GIVEN, scale=GIVEN.scale * np.inf), "int8", "a scale that is not finite and above 0"),
        (replace(GIVEN, codes=np.full((128, 24), -128, np.int8)), "int8", "go beyond -127 .. 127"),
        (replace(drawn_codes((128, 24), 1, 4), codes=np.full((128, 24), 8, np.int8)), "w4a8", "go beyond -7 .. 7"),
    ],
)  # fmt: skip
def test_codes_that_do_not_fit_their_weight_are_refused_by_its_name(codes, precision, words):
    model = gemm(0)
    with pytest.raises(BuildError, match=f"^the codes of weight 'w'.* {words}"):
        quantize(model, plan(model, OPERATORS, [], precision), Ranges({"x": ((0.5, -3.0, 2.0),)}), precision, codes={"w": codes})


def test_a_weight_read_along_both_axes_has_no_one_rounding():
    model = network(
        [node("MatMul", ["x", "w"], "a", "mm"), node("Gemm", ["a", "w"], "y", "gemm", transB=1)],
        {"x": (FLOAT, [4, 64])}, {"y": (FLOAT, [4, 64])}, [constant("w", draw((64, 64)))],
    )  # fmt: skip
    placements, ranges = plan(model, OPERATORS, []), Ranges({"x": ((0.5, -3.0, 2.0),), "a": ((0.5, -9.0, 9.0),)})
    assert roundings(model, placements) == {}
    kinds = [n.op_type for n in quantize(model, placements, ranges).graph.node]
    assert kinds.count("DequantizeLinear") == 4
    with pytest.raises(BuildError, match="the codes of weight 'w' have their output channels along axis 1, expected axis 0"):
        quantize(model, placements, ranges, codes={"w": drawn_codes((64, 64), 1, 8)})


def test_weights_alone_are_quantized_where_that_stays_packed():
    model = float_network()
    assert [p.weight for p in plan(model, OPERATORS, [], "w8a16")] == ["gw"]  # not the convolution's
    assert [p.weight for p in plan(model, OPERATORS, [], "w4a8")] == ["w", "gw"]
    for k, n in ((64, 7), (65, 8)):  # odd sides
        assert plan(matmul(k=k, n=n), OPERATORS, [], "w8a16") == plan(matmul(k=k, n=n), OPERATORS, [], "int4") == ()
    result = quantize(model, plan(model, OPERATORS, [], "w8a16"), None, "w8a16")
    assert [n.op_type for n in result.graph.node] == ["Conv", "Relu", "Flatten", "DequantizeLinear", "Gemm"]
    with pytest.raises(BuildError, match="nothing to quantize to w8a16: the network has no Conv that takes it"):
        network_for(model, "w8a16", operators=["Conv"])


def test_int4_weights_of_an_odd_number_are_int8():
    model = matmul(k=65, n=7)
    placements = plan(model, OPERATORS, [], "w4a8")
    assert roundings(model, placements, "w4a8") == {"w_dq": (1, 8, 0)}
    result = quantize(model, placements, Ranges({"x": ((0.5, -3.0, 2.0),)}), "w4a8")
    check_for_tensorrt(result, "net.onnx", ["SM86"])
    assert not any(t.data_type == onnx.TensorProto.INT4 for t in result.graph.initializer)


def test_what_cannot_be_is_refused():
    model = float_network()
    with pytest.raises(BuildError, match="precision 'int2'"):
        plan(model, OPERATORS, [], "int2")
    with pytest.raises(BuildError, match="Known: Conv, Gemm, MatMul"):
        plan(model, ["Softmax"], [])
    with pytest.raises(CalibrationError, match="no range for tensor 'f'"):
        quantized(model)
    with pytest.raises(CalibrationError, match="no ranges were given"):
        quantize(model, plan(model, OPERATORS, []), None)


def test_models_of_older_opsets_are_converted():
    model = matmul(opset=17, k=128)
    result = quantized(model, "int4")
    assert result.opset_import[0].version == 21
    onnx.checker.check_model(result, full_check=True)
    assert quantized(model).opset_import[0].version == 17
    assert quantized(model, "fp8").opset_import[0].version == 19
    x = draw((4, 128))
    assert rms(run(result, x=x), run(model, x=x)) < 0.15
