"""What the check refuses, TensorRT refuses (or crashes on, or misreads); what it passes, builds; what it calls slow runs in float."""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgegen.errors import BuildError, Status
from edgegen.targets.tensorrt import check_for_tensorrt, slow_spots
from tests.targets.tensorrt.builds import build_all
from tests.targets.tensorrt.networks import (
    E4M3,
    E5M2,
    FLOAT,
    FP4,
    HALF,
    INT4,
    UINT4,
    branches,
    computed_scale,
    concat,
    constant,
    conv,
    conv_weight,
    float_network,
    loop,
    matmul,
    matmul_weight,
    network,
    node,
    pair,
    products_of_activations,
    single,
    stored_transposed,
    transposed_conv,
)  # fmt: skip

SM86, SM89, SM75, SM120 = ["SM86"], ["SM89"], ["SM75"], ["SM120"]
MICROSOFT = "com.microsoft"


def int32_bias():
    bias = [constant("b_q", np.ones(32), np.int32), constant("b_s", np.full(32, 0.01), np.float32), constant("b_z", np.zeros(32), np.int32)]
    return conv(pair(), conv_weight(), extra=[node("DequantizeLinear", ["b_q", "b_s", "b_z"], "b_dq", "b_DQ", axis=0)], constants=bias, bias="b_dq")


def dynamic():
    nodes = [node("DynamicQuantizeLinear", ["x"], ["x_q", "x_s", "x_z"], "dyn"), node("DequantizeLinear", ["x_q", "x_s", "x_z"], "x_dq", "x_DQ")]
    return conv((nodes, []), conv_weight())


def edited(model, name, values, dtype):
    """The model with another constant in the place of `name`."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(constant(name, values, dtype))
    return model


def with_value(count, index, value, fill):
    values = np.full(count, fill)
    values[index] = value
    return values


def scale_input():
    (q, dq), (_, zero) = pair()
    return conv(([q, dq], [zero]), conv_weight(), inputs={"x_s": (FLOAT, [])})


def external():
    model = matmul()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    return model


def one_block(dtype):
    return matmul(pair(), matmul_weight(axis=0, dtype=dtype, block=64))


def bfloat(op="Relu"):
    nodes = [node("Cast", ["x"], "c", "down", to=16), node(op, ["c"], "r", "n"), node("Cast", ["r"], "y", "up", to=1)]
    return network(nodes, {"x": (FLOAT, [2, 64])}, {"y": (FLOAT, [2, 64])}, [])


def fp4():
    return matmul(None, matmul_weight(axis=0, dtype=FP4, block=16, scale_dtype=np.float16), kind=HALF, opset=23)


def bits():
    codes = rng_codes((32, 2, 16))
    return network([node("MatMulNBits", ["x", "B", "s"], "y", "nbits", domain=MICROSOFT, K=64, N=32, bits=4, block_size=32)],
                   {"x": (HALF, [2, 64])}, {"y": (HALF, [2, 32])}, [constant("B", codes), constant("s", np.ones(64), np.float16)], domains=((MICROSOFT, 1),))  # fmt: skip


def rng_codes(shape):
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


def inner_zero_point():
    nodes, constants = pair(zero=3)
    return branches([*nodes, node("Relu", ["x_dq"], "t", "relu")], constants)


def inner_scale():
    (q, dq), (_, zero) = pair()
    return branches([node("ReduceMax", ["x"], "x_s", "scale", keepdims=0), q, dq, node("Relu", ["x_dq"], "t", "relu")], [zero])


def loop_of_int8(zero=0, scale=0.02):
    (q, dq), constants = pair(x="v", zero=zero, scale=scale)
    w, d = matmul_weight(64, 64)
    return loop([q, dq, *w, node("MatMul", ["v_dq", "w_dq"], "v2", "mm")], constants + d)


def endless(read=True):
    """A Loop without a condition, whose body reads it or passes it on."""
    model = loop([node("Relu", ["v"], "v2", "relu")])
    model.graph.node[0].input[1] = ""
    if not read:
        body = next(a.g for a in model.graph.node[0].attribute if a.name == "body")
        del body.node[0]
        body.output[0].name = "go"
    return model


def scan():
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Add", ["s", "xi"], "s2", "add"), node("Identity", ["s2"], "o", "copy")], "body", [info("s", FLOAT, [64]), info("xi", FLOAT, [64])],
        [info("s2", FLOAT, [64]), info("o", FLOAT, [64])],
    )  # fmt: skip
    nodes = [node("Scan", ["s0", "x"], ["last", "y"], "scan", body=body, num_scan_inputs=1)]
    return network(nodes, {"x": (FLOAT, [2, 64])}, {"y": (FLOAT, [2, 64])}, [constant("s0", np.zeros(64), np.float32)])


def cast_constant(dtype, stored=True):
    nodes = [node("Cast", ["c"], "k", "cast", to=1), node("Add", ["x", "k"], "y", "add")]
    tensor = constant("c", np.ones(64), dtype)
    if not stored:
        nodes.insert(0, node("Constant", [], "c", "stored", value=tensor))
    return network(nodes, {"x": (FLOAT, [2, 64])}, {"y": (FLOAT, [2, 64])}, [tensor] if stored else [])


# name: (model, capabilities, what the check says)
REFUSED = {
    "uint8 zero point 128": (conv(pair(np.uint8, 128), conv_weight()), SM86, "QuantizeLinear 'x_Q' has uint8 codes"),
    "int8 zero point 3": (conv(pair(zero=3), conv_weight()), SM86, "'x_Q': its zero point 'x_z' holds 3"),
    "int8 weight zero point": (edited(conv(pair(), conv_weight()), "w_z", with_value(32, 3, 1, 0), np.int8), SM86, "'w_DQ': its zero point 'w_z' holds 1"),
    "int4 zero point": (edited(matmul(None, matmul_weight(dtype=INT4)), "w_z", np.ones(32), INT4), SM86, "'w_DQ': its zero point 'w_z' holds 1"),
    "zero point at run time": (conv((pair()[0], pair()[1][:1]), conv_weight(), inputs={"x_z": (3, [])}), SM86, "zero point 'x_z' is not a stored"),
    "int16 codes": (conv(pair(np.int16), conv_weight()), SM86, "'x_z' is int16"),
    "uint16 codes": (conv(pair(np.uint16), conv_weight()), SM86, "'x_z' is uint16"),
    "uint4 codes": (conv(pair(UINT4), conv_weight()), SM86, "'x_z' is uint4"),
    "e5m2 codes": (conv(pair(E5M2), conv_weight()), SM89, "'x_z' is fp8 .e5m2"),
    "int32 bias": (int32_bias(), SM86, "'b_DQ' has int32 codes"),
    "scale 0": (conv(pair(scale=0.0), conv_weight()), SM86, "scale 'x_s' holds 0;"),
    "scale -1": (conv(pair(scale=-1.0), conv_weight()), SM86, "scale 'x_s' holds -1"),
    "scale NaN": (conv(pair(scale=np.nan), conv_weight()), SM86, "scale 'x_s' holds nan"),
    "dead channel": (edited(conv(pair(), conv_weight()), "w_s", with_value(32, 3, 0, 0.1), np.float32), SM86, "'w_DQ': its scale 'w_s' holds 0"),
    "DynamicQuantizeLinear": (dynamic(), SM86, "DynamicQuantizeLinear 'dyn'"),
    "ConvInteger": (network([node("ConvInteger", ["x", "w"], "y", "n")], {"x": (3, [2, 16, 8, 8])}, {"y": (6, [2, 32, 6, 6])},
                            [constant("w", np.ones((32, 16, 3, 3)), np.int8)]), SM86, "does not have ConvInteger"),
    "MatMulInteger": (network([node("MatMulInteger", ["x", "w"], "y", "n")], {"x": (3, [4, 64])}, {"y": (6, [4, 32])},
                              [constant("w", np.ones((64, 32)), np.int8)]), SM86, "does not have MatMulInteger"),
    "int4 convolution of int8": (conv(pair(), conv_weight(dtype=INT4)), SM86, "'conv' multiplies int8 by int4"),
    "int4, an odd number": (matmul(pair(), matmul_weight(13, 7, dtype=INT4), k=13, n=7), SM86, "'w_DQ' has int4 codes of shape .13, 7., an odd number"),
    "fp8 convolution of int8": (conv(pair(E4M3), conv_weight()), SM89, "'conv' multiplies fp8 .e4m3fn. by int8"),
    "int8 product of fp8": (matmul(pair(E4M3), matmul_weight()), SM89, "'mm' multiplies fp8"),
    "int4 product of fp8": (matmul(pair(E4M3), matmul_weight(dtype=INT4)), SM89, "'mm' multiplies fp8"),
    "int4 blocks of int8, rank 3": (matmul(pair(), matmul_weight(axis=0, dtype=INT4, block=32), lead=(2, 4)), SM86, "'mm': its weight has scales per block of 32"),
    "int8 constant elsewhere": (cast_constant(np.int8), SM86, "Cast 'cast' reads the int8 constant 'c'"),
    "uint32 constant": (cast_constant(np.uint32), SM86, "constant 'c' is uint32"),
    "uint16 Constant node": (cast_constant(np.uint16, stored=False), SM86, "Constant 'stored' is uint16"),
    "int16 input": (single("Cast", kind=TensorProto.INT16, to=1), SM86, "tensor 'x' is int16"),
    "external data": (external(), SM86, "constant 'w_dq' lies in another file"),
    "FastGelu": (single("FastGelu", domain=MICROSOFT), SM86, "FastGelu 'n' is of the domain 'com.microsoft'"),
    "QuickGelu": (single("QuickGelu", domain=MICROSOFT), SM86, "QuickGelu"),
    "BiasGelu": (single("BiasGelu", inputs=("x", "b"), domain=MICROSOFT, constants=[constant("b", np.ones(64), np.float32)]), SM86, "BiasGelu"),
    "MatMulNBits": (bits(), SM86, "MatMulNBits 'nbits' is of the domain"),
    "unknown operator": (single("Frobnicate", domain="foo"), SM86, "Frobnicate 'n' is of the domain 'foo'"),
    "fp8 on SM86": (conv(pair(E4M3), conv_weight(dtype=E4M3)), SM86, "fp8 .e4m3fn., which SM86 does not have; it needs SM89"),
    "fp8 on SM86 and SM89": (matmul(pair(E4M3), matmul_weight(dtype=E4M3)), ["SM89", "SM86"], "which SM86 does not have"),
    "fp8 weight only on SM86": (matmul(None, matmul_weight(dtype=E4M3)), SM86, "which SM86 does not have"),
    "fp4 on SM89": (fp4(), SM89, "fp4, which SM89 does not have; it needs SM100"),
    "int4 on SM75": (matmul(None, matmul_weight(axis=0, dtype=INT4, block=32, scale_dtype=np.float16), kind=HALF), SM75, "int4, which SM75 does not have"),
    "bfloat16 on SM75": (bfloat(), SM75, "bfloat16, which SM75 does not have; it needs SM80"),
    "float32 MatMul on SM75": (matmul(), SM75, "MatMul 'mm' is in float32, which TensorRT does not multiply on SM75"),
    "float32 Gemm on SM75": (float_network(), SM75, "Gemm 'gemm' is in float32"),
    "float32 Einsum on SM75": (single("Einsum", inputs=("x", "w"), constants=[constant("w", np.ones((64, 64)), np.float32)], equation="ij,jk->ik"), SM75, "Einsum 'n'"),
    "int8 MatMul of float32 on SM75": (matmul(pair(), matmul_weight()), SM75, "is in float32"),
    "Loop without its condition": (endless(), SM86, "Loop 'loop' leaves out its condition, which its body reads .'go'."),
    "zero point inside a branch": (inner_zero_point(), SM86, "zero point 'x_z' holds 3"),
}  # fmt: skip
CRASHES = {
    "scale is an input": (scale_input(), SM86, "'x_Q': its scale 'x_s' is not a stored constant"),
    "scale of a table": (
        computed_scale("Gather", [constant("t", np.full(4, 0.02), np.float32)], {"k": (7, [])}, "t k"),
        SM86,
        "scale 'x_s' is not a stored",
    ),
    "scale reduced": (computed_scale("ReduceMax", [constant("s0", np.full(5, 0.02), np.float32)], keepdims=0), SM86, "is not a stored constant"),
}
MISREAD = {
    "uint8 zero point 0": (conv(pair(np.uint8, 0), conv_weight()), SM86, "has uint8 codes, which TensorRT reads as int8"),
    "no zero point": (conv(([node("QuantizeLinear", ["x", "x_s"], "x_q", "x_Q"), node("DequantizeLinear", ["x_q", "x_s"], "x_dq", "x_DQ")],
                            [constant("x_s", 0.02, np.float32)]), conv_weight()), SM86, "has no zero point, so its codes are uint8"),
    "int4 blocks of int8": (matmul(pair(), matmul_weight(axis=0, dtype=INT4, block=32)), SM86, "its weight has scales per block of 32"),
    "int8 blocks of int8": (matmul(pair(), matmul_weight(axis=0, block=32)), SM86, "its weight has scales per block of 32"),
    "int8 blocks along N": (matmul(pair(), matmul_weight(64, 64, axis=1, block=32)), SM86, "its weight has scales per block of 32"),
    "infinite scale": (conv(pair(scale=np.inf), conv_weight()), SM86, "scale 'x_s' holds inf"),
    "computed scale that it folds": (computed_scale("Mul", [constant("s0", 0.2, np.float32)], source="s0 s0"), SM86, "is not a stored constant"),
    "scale inside a branch": (inner_scale(), SM86, "is not a stored constant"),
    "float64": (single("Relu", kind=TensorProto.DOUBLE, out=TensorProto.DOUBLE), SM86, "'x' is float64"),
    "a namesake": (single("Relu", domain="foo"), SM86, "Relu 'n' is of the domain 'foo'"),
}  # fmt: skip
FAST = {
    "int8 Conv": (conv(pair(), conv_weight()), SM86, "Int8"),
    "int8 Conv, opset 13": (conv(pair(), conv_weight(), opset=13), SM86, "Int8"),
    "int8 Conv for two": (conv(pair(), conv_weight()), ["SM86", "SM120"], "Int8"),
    "int8 Conv, zero points left out": (conv(([node("QuantizeLinear", ["x", "x_s"], "x_q", "x_Q", output_dtype=3), node("DequantizeLinear", ["x_q", "x_s"], "x_dq", "x_DQ")],
                                             [constant("x_s", 0.02, np.float32)]), conv_weight(zero=False)), SM86, "Int8"),
    "int8 Conv, scale of a Constant node": (computed_scale("Constant", source="", value=constant("v", 0.02, np.float32)), SM86, "Int8"),
    "int8 Conv, scale through Identity": (computed_scale("Identity", [constant("s0", 0.02, np.float32)]), SM86, "Int8"),
    "int8 MatMul": (matmul(pair(), matmul_weight()), SM86, "Int8"),
    "int8 MatMul, odd sizes": (matmul(pair(), matmul_weight(13, 10), k=13, n=10), SM86, "Int8"),
    "int8 MatMul, rank 3": (matmul(pair(), matmul_weight(), lead=(2, 4)), SM86, "Int8"),
    "int8 MatMul of float16 on SM75": (matmul(pair(scale_dtype=np.float16), matmul_weight(scale_dtype=np.float16), kind=HALF), SM75, "Int8"),
    "int8 product of activations": (products_of_activations(), SM86, "Int8"),
    "int8 weight stored transposed": (stored_transposed(), SM86, "Int8"),
    "int8 by int4 per channel": (matmul(pair(), matmul_weight(dtype=INT4)), SM86, "Int8"),
    "int8 by int4 per channel, odd sides": (matmul(pair(), matmul_weight(13, 10, dtype=INT4), k=13, n=10), SM86, "Int8"),
    "int8 by int4 per channel, odd columns": (matmul(pair(), matmul_weight(64, 7, dtype=INT4), n=7), SM86, "Int8"),
    "int8 by int8 of one block": (one_block(np.int8), SM86, "Int8"),
    "concat of one scale": (concat(0.02, 0.02), SM86, "Int8"),
    "com.microsoft Q and DQ": (conv(pair(domain=MICROSOFT), conv_weight(), domains=((MICROSOFT, 1),)), SM86, "Int8"),
    "fp8 Conv": (conv(pair(E4M3), conv_weight(dtype=E4M3)), SM89, "FP8"),
    "fp8 Conv, opset 19": (conv(pair(E4M3), conv_weight(dtype=E4M3), opset=19), SM120, "FP8"),
    "fp8 MatMul": (matmul(pair(E4M3), matmul_weight(dtype=E4M3)), SM89, "FP8"),
    "int8 in a Loop": (loop_of_int8(), SM86, "Int8"),
}  # fmt: skip
SLOW = {
    "scale per channel": (conv(pair(scale=np.full(16, 0.02), zero=np.zeros(16), axis=1), conv_weight()), SM86, "its input has a scale of shape .16."),
    "scale of shape [1]": (conv(pair(scale=[0.02], zero=[0]), conv_weight()), SM86, "its input has a scale of shape .1."),
    "Conv weight axis 1": (conv(pair(), conv_weight(axis=1)), SM86, "its weight has scales along axis 1"),
    "MatMul weight axis 0": (matmul(pair(), matmul_weight(axis=0)), SM86, "its weight has scales along axis 0"),
    "concat of two scales": (concat(0.02, 0.03), SM86, "Concat 'cat' joins tensors of different scales"),
    "Conv weight only int8": (conv(None, conv_weight()), SM86, "its weight is int8 and its input is not quantized"),
    "Conv weight only int4": (conv(None, conv_weight(dtype=INT4)), SM86, "its weight is int4 and its input is not quantized"),
    "Conv input only": (conv(pair()), SM86, "its input is quantized and its weight is not"),
    "ConvTranspose": (transposed_conv(), SM86, "quantized ConvTranspose"),
    "Conv on SM75": (conv(pair(), conv_weight()), SM75, "SM75 has no int8 convolution"),
    "Conv on SM75 and SM86": (conv(pair(), conv_weight()), ["SM75", "SM86"], "SM75 has no int8 convolution"),
    "MatMul weight only int4, per channel": (matmul(None, matmul_weight(dtype=INT4)), SM86, "written out as floats"),
    "MatMul weight only int8, odd columns": (matmul(None, matmul_weight(64, 7), n=7), SM86, "has a side of odd length"),
    "MatMul weight only int8, odd rows": (matmul(None, matmul_weight(13, 8), k=13, n=8), SM86, "has a side of odd length"),
    "MatMul weight only int4, odd columns": (matmul(None, matmul_weight(64, 7, axis=0, dtype=INT4, block=32), n=7), SM86, "has a side of odd length"),
    "MatMul weight only int8, blocks": (matmul(None, matmul_weight(axis=0, block=32)), SM86, "written out as floats"),
}  # fmt: skip
TAKEN = {
    "float32": (float_network(), SM86),
    "float32 Conv on SM75": (conv(), SM75),
    "float16 MatMul on SM75": (matmul(kind=HALF), SM75),
    "bfloat16 MatMul": (matmul(kind=TensorProto.BFLOAT16), SM86),
    "int4 blocks": (matmul(None, matmul_weight(axis=0, dtype=INT4, block=32)), SM86),
    "fp4 blocks": (fp4(), SM120),
    "int8 per channel, weight only": (matmul(None, matmul_weight()), SM86),
    "int8 per channel, weight only, not a multiple of 4": (matmul(None, matmul_weight(14, 10), k=14, n=10), SM86),
    "com.microsoft Gelu": (single("Gelu", domain=MICROSOFT), SM86),
    "If": (branches([node("Relu", ["x"], "t", "relu")]), SM86),
    "Loop": (loop([node("Relu", ["v"], "v2", "relu")]), SM86),
    "Loop without a condition that is read": (endless(read=False), SM86),
    "Scan": (scan(), SM86),
    "int64": (single("Neg", kind=TensorProto.INT64, out=TensorProto.INT64), SM86),
    "float64 inside": (cast_constant(np.float64), SM86),
    "uint8 constant": (cast_constant(np.uint8), SM86),
}
EVERYTHING = {f"{group}/{name}": case for group, table in
              (("refused", REFUSED), ("crashes", CRASHES), ("misread", MISREAD), ("fast", FAST), ("slow", SLOW), ("taken", TAKEN))
              for name, case in table.items()}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What the real builder makes of every model here."""
    return build_all({name: case[:2] for name, case in EVERYTHING.items()}, tmp_path_factory.mktemp("builds"))


def check(case):
    check_for_tensorrt(case[0], "net.onnx", case[1])


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_check_refuses_tensorrt_refuses(name, built):
    with pytest.raises(BuildError, match=f"^net.onnx: .*{REFUSED[name][2]}"):
        check(REFUSED[name])
    assert isinstance(built[f"refused/{name}"], BuildError), "TensorRT builds it, so the check must not refuse it"
    assert "crash" not in str(built[f"refused/{name}"])


@pytest.mark.parametrize("name", CRASHES)
def test_what_crashes_the_builder_is_refused_before(name, built):
    with pytest.raises(BuildError, match=CRASHES[name][2]):
        check(CRASHES[name])
    assert isinstance(built[f"crashes/{name}"], BuildError)
    assert "the builder crashed (SIGSEGV)" in str(built[f"crashes/{name}"])


@pytest.mark.parametrize("name", MISREAD)
def test_what_tensorrt_would_misread_is_refused(name, built):
    with pytest.raises(BuildError, match=MISREAD[name][2]):
        check(MISREAD[name])
    assert not isinstance(built[f"misread/{name}"], BuildError), "it is refused by TensorRT itself by now: move it to REFUSED"


def test_block_scales_of_an_int8_product_are_applied_as_if_per_column(built):
    """Why they are refused: for 32 columns in two blocks the engine multiplies the 32 sums with 64 scales."""
    layers = built["misread/int4 blocks of int8"].report.layers
    shapes = [c.shape for layer in layers for c in layer.constants if c.name.endswith("folded_matmul_myl0")]
    assert shapes == [(1, 64)]
    layers = built["fast/int8 MatMul"].report.layers
    assert [c.shape for layer in layers for c in layer.constants if c.name.endswith("folded_matmul_myl0")] == [(1, 32)]


@pytest.mark.parametrize("name", FAST)
def test_what_the_check_passes_builds_and_computes_in_its_type(name, built):
    model, capabilities, dtype = FAST[name]
    check(FAST[name])
    assert slow_spots(model, capabilities) == []
    report = built[f"fast/{name}"].report
    assert set(report.precisions()) == {dtype}
    assert report.written_out() == ()


@pytest.mark.parametrize("name", SLOW)
def test_what_is_called_slow_builds_and_runs_in_float(name, built):
    model, capabilities, why = SLOW[name]
    check(SLOW[name])
    (spot,) = slow_spots(model, capabilities)
    assert spot.split(":")[0] in ("Conv 'conv'", "MatMul 'mm'", "ConvTranspose 'up'")
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(spot)
    report = built[f"slow/{name}"].report
    computed_in_float = set(report.precisions()) == {"Float"}
    assert computed_in_float or report.dequantized_inside() or any("CastMul" in layer.name and layer.product for layer in report.layers)


@pytest.mark.parametrize("name", TAKEN)
def test_what_the_check_passes_builds(name, built):
    check(TAKEN[name])
    assert slow_spots(TAKEN[name][0], TAKEN[name][1]) == []
    assert not isinstance(built[f"taken/{name}"], BuildError), str(built[f"taken/{name}"])


def test_weights_that_are_written_out_in_every_run_are_seen(built):
    assert built["slow/Conv weight only int8"].report.written_out() == ("__myl_CastMulCast_myl0_0",)
    assert built["slow/Conv on SM75"].report.written_out() != ()
    assert all(built[f"slow/{name}"].report.written_out() != () for name in SLOW if "odd" in name)
    for name in ("int4 blocks", "int8 per channel, weight only", "int8 per channel, weight only, not a multiple of 4"):
        assert built[f"taken/{name}"].report.written_out() == ()
        assert len(built[f"taken/{name}"].report.dequantized_inside()) == 1


@pytest.mark.parametrize(
    "name", ["slow/Conv weight only int8", "slow/Conv weight axis 1", "slow/concat of two scales", "fast/int8 Conv", "fast/concat of one scale"]
)
def test_the_engines_own_records_agree_with_the_table(name, built):
    """The serialized engine names its generated kernels: a second source beside the builder's log."""
    kernels = re.findall(rb"function=\{ name=(\S+) ", built[name].data)
    assert any(k.startswith(b"__myl_MulMinMaxRounCast") for k in kernels) or "weight only" in name
    assert (b"__myl_CastMulCast" in kernels) == (built[name].report.written_out() != ()) == name.startswith("slow")


def test_capabilities_that_are_none_are_refused():
    with pytest.raises(BuildError, match="'sm_86' is no compute capability") as e:
        check_for_tensorrt(float_network(), "net.onnx", ["sm_86"])
    assert e.value.code == Status.BAD_ARGUMENT


def test_without_capabilities_types_are_not_checked():
    check_for_tensorrt(FAST["fp8 Conv"][0], "net.onnx")
    check_for_tensorrt(matmul(), "net.onnx")
