"""Scales that know the time: the tables' entries, values against fake quantization by the definition, and engines of the real builder."""

from __future__ import annotations

import itertools
import re

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from edgegen.errors import BuildError, Status
from edgegen.quantize import Ranges, Record, TensorRecord, choose_ranges
from edgegen.quantize.record import BINS
from edgegen.targets.tensorrt import BuildOptions, build_engine, check_for_tensorrt, lower_precision, slow_spots
from edgegen.targets.tensorrt.networks import network_for
from edgegen.targets.tensorrt.qdq import plan, quantize, watched
from edgegen.targets.tensorrt.timed import scaled_by_time
from tests.targets.tensorrt.builds import build_all
from tests.targets.tensorrt.networks import FLOAT, constant, conv, conv_weight, network, node, pair

OPERATORS = ("Conv", "Gemm", "MatMul")
TIMES = (124.0, 249.0, 374.0, 499.0, 624.0, 749.0, 874.0, 999.0)
LEVELS = [onnxruntime.GraphOptimizationLevel(v) for v in (0, 1, 2, 99)]


def draw(shape, seed=3, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def arrays(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def sentinels(first, count=len(TIMES)):
    """A record of one tensor: another range at each time, none twice."""
    high = np.array([[first * (1.0 + 0.37 * k)] for k in range(count)], np.float32)
    return TensorRecord(np.array(TIMES[:count]), -high / 3, high, np.zeros((count, BINS), np.int64), 1e9)


def ranges_of(**firsts):
    return choose_ranges(Record({name: sentinels(first) for name, first in firsts.items()}), times="step")


def scale_at(ranges, tensor, time, largest=127):
    """By the definition: the largest magnitude becomes the largest code."""
    low, high = next(row[1:] for row in ranges.rows[tensor] if row[0] == time)
    return np.float32(max(-low, high) / largest)


def fake(x, scales, largest=127):
    """Each row of x rounded with the scale of its time."""
    s = np.asarray(scales, np.float32).reshape(-1, *[1] * (x.ndim - 1))
    return np.clip(np.rint(x / s), -128, largest).astype(np.float64) * s


def weight_of(w, axis):
    others = tuple(i for i in range(w.ndim) if i != axis)
    scale = (np.abs(w).max(others, keepdims=True) / 127).astype(np.float32)
    return np.rint(w.astype(np.float64) / scale) * scale


def convolve(x, w):
    """3x3, one ring of zeros."""
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    height, width = x.shape[2] - 2, x.shape[3] - 2
    return sum(np.einsum("nchw,oc->nohw", x[:, :, i : i + height, j : j + width], w[:, :, i, j]) for i, j in itertools.product(range(3), range(3)))


def run(model, level=LEVELS[0], **feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads = level, 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def one(op, x, weight, y, *, bias=None, time=FLOAT, batch="batch", **attributes):
    """One product of x, [batch, *x], that ignores its time."""
    constants = [constant("w", weight)] + ([constant("b", bias)] if bias is not None else [])
    product = node(op, ["x", "w", *(["b"] if bias is not None else [])], "y", "product", **attributes)
    return network([product], {"x": (FLOAT, [batch, *x]), "t": (time, [batch])}, {"y": (FLOAT, [batch, *y])}, constants)


def by_time(model, ranges, precision="int8", **options):
    return quantize(model, plan(model, OPERATORS, [], precision), ranges, precision, time="t", **options)


def steps(batch="batch"):
    """Conv, a product with the time, Conv, Flatten, Gemm: three tensors that are quantized."""
    shape = constant("shape", [-1, 1, 1, 1], np.int64)
    return network(
        [node("Reshape", ["t", "shape"], "column", "column"), node("Conv", ["x", "w1", "b1"], "c", "conv1", pads=[1] * 4),
         node("Relu", ["c"], "r", "relu"), node("Conv", ["r", "w2", "b2"], "d", "conv2", pads=[1] * 4), node("Mul", ["d", "column"], "e", "mul"),
         node("Flatten", ["e"], "f", "flat"), node("Gemm", ["f", "w3", "b3"], "y", "gemm", transB=1)],
        {"x": (FLOAT, [batch, 8, 8, 8]), "t": (FLOAT, [batch])}, {"y": (FLOAT, [batch, 16])},
        [shape, constant("w1", draw((16, 8, 3, 3))), constant("b1", draw(16)), constant("w2", draw((16, 16, 3, 3), 4)),
         constant("b2", draw(16, 5)), constant("w3", draw((16, 1024), 6)), constant("b3", draw(16, 7))],
    )  # fmt: skip


STEPS = ranges_of(x=3.0, r=11.0, f=5e4)


def test_the_tables_entry_of_a_tensor_and_a_time_is_the_records():
    """24 values, none twice: a row that is one off, or another tensor's, is another number."""
    record = Record({"x": sentinels(3.0), "r": sentinels(11.0), "f": sentinels(5e4)})
    model = steps()
    result = by_time(model, choose_ranges(record, times="step"))
    stored, makers = arrays(result), {name: n for n in result.graph.node for name in n.output}
    seen = set()
    for tensor in ("x", "r", "f"):
        (division,) = [n for n in result.graph.node if n.op_type == "Div" and n.input[0] == tensor]
        gather = makers[division.input[1]]
        index, table = makers[gather.input[1]], stored[gather.input[0]]
        distance = makers[makers[index.input[0]].input[0]]
        assert (index.op_type, distance.op_type) == ("ArgMin", "Sub")
        known = stored[distance.input[1]]
        assert known.shape == (1, 8)
        assert table.shape == (8, *[1] * (2 if tensor == "f" else 4))[: table.ndim]
        for k, time in enumerate(record[tensor].times):
            largest = float(record[tensor].largest[k])
            assert table.ravel()[list(known[0]).index(time)] == np.float32(largest / 127)
            seen.add(float(table.ravel()[k]))
        (quantizer,) = [n for n in result.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == division.output[0]]
        assert (stored[quantizer.input[1]], stored[quantizer.input[2]]) == (1.0, 0)
    assert len(seen) == 24


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("biased", [True, False])
def test_a_convolutions_rows_are_each_rounded_with_the_scale_of_their_time(level, biased):
    w, b, x = draw((16, 8, 3, 3)), draw(16, 5), draw((8, 8, 6, 6), 4, 2.0)
    model = one("Conv", (8, 6, 6), w, (16, 6, 6), bias=b if biased else None, pads=[1] * 4)
    ranges = ranges_of(x=3.0)
    order = np.array([3, 0, 7, 7, 1, 5, 2, 6])
    scales = [scale_at(ranges, "x", TIMES[k]) for k in order]
    expected = convolve(fake(x, scales), weight_of(w, 0)) + (b[:, None, None] if biased else 0.0)
    found = run(by_time(model, ranges), level, x=x, t=np.array(TIMES, np.float32)[order])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    # the negative control: the scales of the next times
    other = convolve(fake(x, np.roll(scales, 1)), weight_of(w, 0)) + (b[:, None, None] if biased else 0.0)
    assert np.abs(found - other).max() > 0.05


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize(("op", "inner", "axis", "attributes"), [("MatMul", (5,), 1, {}), ("MatMul", (), 1, {}), ("Gemm", (), 0, {"transB": 1}), ("Gemm", (), 1, {})])  # fmt: skip
def test_a_products_rows_are_each_rounded_with_the_scale_of_their_time(op, inner, axis, attributes, level):
    w, b, x = draw((32, 24) if axis else (24, 32)), draw(24, 5), draw((8, *inner, 32), 4, 2.0)
    bias = b if op == "Gemm" else None
    model = one(op, (*inner, 32), w, (*inner, 24), bias=bias, time=TensorProto.INT64, **attributes)
    ranges = ranges_of(x=3.0)
    weight = weight_of(w, axis)
    expected = fake(x, [scale_at(ranges, "x", t) for t in TIMES]) @ (weight if axis else weight.T) + (b if bias is not None else 0.0)
    found = run(by_time(model, ranges), level, x=x, t=np.array(TIMES, np.int64))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_fp8_and_w4a8_have_tables_too():
    w, x = draw((32, 24)), draw((8, 32), 4, 2.0)
    model, ranges = one("MatMul", (32,), w, (24,)), ranges_of(x=3.0)
    t = np.array(TIMES, np.float32)
    s = np.array([[scale_at(ranges, "x", t, 448)] for t in TIMES])
    steps_of = (np.abs(w).max(0) / 448).astype(np.float32)
    x8 = np.clip(x / s, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * s
    w8 = (w / steps_of).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * steps_of
    np.testing.assert_allclose(run(by_time(model, ranges, "fp8"), x=x, t=t), x8 @ w8, rtol=1e-5, atol=1e-4)
    quarter = (np.abs(w).max(0) / 7).astype(np.float32)
    expected = fake(x, [scale_at(ranges, "x", t) for t in TIMES]) @ (np.rint(w.astype(np.float64) / quarter) * quarter)
    np.testing.assert_allclose(run(by_time(model, ranges, "w4a8"), x=x, t=t), expected, rtol=1e-5, atol=1e-4)


def test_a_time_that_was_not_calibrated_gets_the_nearest_ones_scale():
    w, x = draw((32, 24)), draw((3, 32), 4, 2.0)
    ranges = ranges_of(x=3.0)
    expected = fake(x, [scale_at(ranges, "x", t) for t in (TIMES[0], TIMES[2], TIMES[7])]) @ weight_of(w, 1)
    found = run(by_time(one("MatMul", (32,), w, (24,)), ranges), x=x, t=np.array([-5.0, 380.0, 2000.0], np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_tensors_of_one_range_and_networks_without_a_time_keep_constant_scales():
    model = steps()
    placements = plan(model, OPERATORS, [])
    mixed = Ranges(STEPS.rows | {"r": ((124.0, -1.0, 9.0),), "f": tuple((t, -7.0, 8.0) for t in TIMES)})
    assert scaled_by_time(model, watched(model, placements), mixed, "t") == {"x": 4}
    result = by_time(model, mixed)
    assert [n.input[0] for n in result.graph.node if n.op_type == "Div"] == ["x"]
    assert (arrays(result)["r_scale"], arrays(result)["f_scale"]) == (np.float32(9 / 127), np.float32(8 / 127))
    constant_scales = arrays(quantize(model, placements, STEPS))
    assert constant_scales["x_scale"] == scale_at(STEPS, "x", TIMES[-1])  # the widest
    assert not any("known" in name for name in constant_scales)


def transposed(batch):
    """[batch, length, channels] with the length in front: axis 0 counts no times."""
    return network(
        [node("Transpose", ["x"], "l", "turn", perm=[1, 0, 2]), node("MatMul", ["l", "w"], "m", "mm"), node("Transpose", ["m"], "y", "back", perm=[1, 0, 2])],
        {"x": (FLOAT, [batch, 2, 32]), "t": (FLOAT, [batch])}, {"y": (FLOAT, [batch, 2, 24])}, [constant("w", draw((32, 24)))],
    )  # fmt: skip


@pytest.mark.parametrize("batch", ["batch", 2])
def test_a_tensor_whose_first_axis_is_not_the_batch_keeps_one_scale_for_all_times(batch):
    """With a batch of 2 its first axis is as long as the batch, and is none all the same."""
    model, ranges = transposed(batch), ranges_of(l=3.0)
    assert scaled_by_time(model, ["l"], ranges, "t") == {}
    x = draw((2, 2, 32), scale=2.0)
    found = run(by_time(model, ranges), x=x, t=np.array(TIMES[:2], np.float32))
    np.testing.assert_allclose(found, fake(x, [scale_at(ranges, "l", TIMES[-1])] * 2) @ weight_of(draw((32, 24)), 1), rtol=1e-5, atol=1e-4)


def test_of_one_row_every_tensor_is_of_its_time():
    model, ranges = transposed(1), ranges_of(l=3.0)
    assert scaled_by_time(model, ["l"], ranges, "t") == {"l": 3}
    x, result = draw((1, 2, 32), scale=2.0), by_time(model, ranges)
    for time in TIMES:
        expected = fake(x, [scale_at(ranges, "l", time)]) @ weight_of(draw((32, 24)), 1)
        np.testing.assert_allclose(run(result, x=x, t=np.array([time], np.float32)), expected, rtol=1e-5, atol=1e-4)


def test_batches_are_followed_through_shapes_that_only_values_know():
    """As exporters write a view: the batch is read off x, and goes through Concat into Reshape."""
    model = network(
        [node("Shape", ["x"], "n", "size", end=1), node("Concat", ["n", "rest"], "to", "cat", axis=0), node("Reshape", ["x", "to"], "v", "view"),
         node("Resize", ["v", "", "factors"], "u", "up"), node("Conv", ["u", "w"], "y", "conv", pads=[1] * 4)],
        {"x": (FLOAT, ["batch", 64]), "t": (FLOAT, ["batch"])}, {"y": (FLOAT, ["batch", 8, 8, 8])},
        [constant("rest", [4, 4, 4], np.int64), constant("factors", [1, 1, 2, 2], np.float32), constant("w", draw((8, 4, 3, 3)))],
    )  # fmt: skip
    assert scaled_by_time(model, ["u", "v", "nothing"], ranges_of(u=1.0, v=2.0, nothing=3.0), "t") == {"u": 4, "v": 4}


def test_a_tensor_of_two_readers_is_quantized_once_and_each_product_multiplied():
    w = draw((8, 8, 3, 3))
    model = network(
        [node("Conv", ["x", "w", "b"], "c", "first", pads=[1] * 4), node("Conv", ["x", "w", "b"], "d", "second", pads=[1] * 4),
         node("Add", ["c", "d"], "y", "add")],
        {"x": (FLOAT, ["n", 8, 6, 6]), "t": (FLOAT, ["n"])}, {"y": (FLOAT, ["n", 8, 6, 6])}, [constant("w", w), constant("b", draw(8))],
    )  # fmt: skip
    ranges, x = ranges_of(x=3.0), draw((2, 8, 6, 6))
    result = by_time(model, ranges)
    kinds = [n.op_type for n in result.graph.node]
    assert [kinds.count(op) for op in ("ArgMin", "Gather", "Div", "QuantizeLinear", "Conv", "Mul", "Add")] == [1, 1, 1, 1, 2, 2, 3]
    assert "b" not in arrays(result)
    onnx.checker.check_model(result, full_check=True)
    single = convolve(fake(x, [scale_at(ranges, "x", t) for t in TIMES[:2]]), weight_of(w, 0)) + draw(8)[:, None, None]
    np.testing.assert_allclose(run(result, x=x, t=np.array(TIMES[:2], np.float32)), 2 * single, rtol=1e-5, atol=1e-4)


def test_a_bias_that_is_computed_is_added_too():
    w, b, x, ranges = draw((16, 8, 3, 3)), draw(16, 5), draw((2, 8, 6, 6)), ranges_of(x=3.0)
    model = network(
        [node("Neg", ["b0"], "b", "neg"), node("Conv", ["x", "w", "b"], "y", "conv", pads=[1] * 4)],
        {"x": (FLOAT, ["n", 8, 6, 6]), "t": (FLOAT, ["n"])}, {"y": (FLOAT, ["n", 16, 6, 6])}, [constant("w", w), constant("b0", -b)],
    )  # fmt: skip
    expected = convolve(fake(x, [scale_at(ranges, "x", t) for t in TIMES[:2]]), weight_of(w, 0)) + b[:, None, None]
    np.testing.assert_allclose(run(by_time(model, ranges), x=x, t=np.array(TIMES[:2], np.float32)), expected, rtol=1e-5, atol=1e-4)


def test_times_that_were_dead_have_scales_above_zero():
    rows = tuple((t, 0.0, 0.0 if k % 2 else 1.0) for k, t in enumerate(TIMES))
    result = by_time(one("MatMul", (32,), draw((32, 24)), (24,)), Ranges({"x": rows}))
    table = arrays(result)["x_scales"]
    assert np.isfinite(table).all() and (table > 0).all()
    assert np.isfinite(run(result, x=draw((8, 32), scale=1e6), t=np.array(TIMES, np.float32))).all()


def test_a_time_that_is_none_is_refused():
    model = one("MatMul", (32,), draw((32, 24)), (24,))
    for time, words, code in (
        ("time", "no time input 'time'", Status.UNKNOWN_NAME),
        ("x", "'x' is of ONNX type 1 and shape .'batch', 32.", Status.BAD_SHAPE),
    ):
        with pytest.raises(BuildError, match=words) as e:
            quantize(model, plan(model, OPERATORS, []), ranges_of(x=3.0), time=time)
        assert e.value.code == code


def test_the_model_is_sound_deterministic_and_left_as_it_was():
    model = steps()
    before = model.SerializeToString(deterministic=True)
    result = by_time(model, STEPS)
    onnx.checker.check_model(result, full_check=True)
    assert result.SerializeToString(deterministic=True) == by_time(model, STEPS).SerializeToString(deterministic=True)
    assert model.SerializeToString(deterministic=True) == before
    check_for_tensorrt(result, "net.onnx", ["SM86"])
    assert slow_spots(result, ["SM86"]) == []


def test_in_float16_times_and_scales_by_time_stay_float32():
    """1/16 apart, times near 999 are one in half precision; and a product before its scale is 300 times what half precision holds."""
    w, b = draw((16, 8, 3, 3)), draw(16, 5)
    model, x = one("Conv", (8, 6, 6), w, (16, 6, 6), bias=b, pads=[1] * 4), draw((8, 8, 6, 6), 4)
    times = tuple(999.0 + k / 16 for k in range(8))
    ranges = Ranges({"x": tuple((t, -s, s) for t, s in zip(times, (0.4, 4.0) * 4, strict=True))})
    result = network_for(model, "int8", ranges, time="t")
    kinds = {t.name: t.data_type for t in result.graph.initializer}
    assert {kinds[name] for name in ("x_scales", "t_known", "b_channels")} == {FLOAT}
    expected = convolve(fake(x, [scale_at(ranges, "x", t) for t in times]), weight_of(w, 0)) + b[:, None, None]
    assert np.sqrt(np.mean((run(result, x=x, t=np.array(times, np.float32)) - expected) ** 2)) < 2e-3 * np.sqrt(np.mean(expected**2))


def test_a_choice_by_products_is_no_choice_by_time():
    """Vector quantization: the network before its ArgMin is lowered as any other."""
    model = network(
        [node("MatMul", ["x", "w"], "h", "mm"), node("ArgMin", ["h"], "i", "choose", axis=1, keepdims=0), node("Gather", ["book", "i"], "y", "look")],
        {"x": (FLOAT, [2, 32])}, {"y": (FLOAT, [2, 8])}, [constant("w", draw((32, 24))), constant("book", draw((24, 8)))],
    )  # fmt: skip
    result = lower_precision(model)
    assert next(n for n in result.graph.node if n.op_type == "MatMul").output[0] == "h_half"


# --- engines

CASES = [(sm, form, half) for sm in ("SM86", "SM89") for form in ("constant", "table") for half in (False, True)]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    def made(form, half):
        model = steps(batch=2)
        result = quantize(model, plan(model, OPERATORS, []), STEPS, time="t" if form == "table" else None)
        return lower_precision(result) if half else result

    return build_all({case: (made(*case[1:]), [case[0]]) for case in CASES}, tmp_path_factory.mktemp("tables"))


@pytest.mark.parametrize(("sm", "half"), list(itertools.product(("SM86", "SM89"), (False, True))))
def test_tables_cost_one_small_kernel_and_products_stay_int8(sm, half, engines):
    plain, table = engines[sm, "constant", half], engines[sm, "table", half]
    assert table.report.precisions() == plain.report.precisions() == {"Int8": 3}
    assert table.report.written_out() == ()
    assert not any(k.startswith(b"__myl_CastMulCast") for k in re.findall(rb"function=\{ name=(\S+) ", table.data))
    assert len(table.report.layers) == len(plain.report.layers) + 1  # the choice of the time; all else is inside kernels that are there
    assert len(table.data) - len(plain.data) < 200_000


def test_a_batch_of_any_size_takes_tables():
    profiles = {"x": ((1, 8, 8, 8), (2, 8, 8, 8), (16, 8, 8, 8)), "t": ((1,), (2,), (16,))}
    data = network_for(steps(), "int8", STEPS, time="t").SerializeToString()
    report = build_engine(data, BuildOptions(capabilities=("SM86",), profiles=profiles)).report
    assert report.precisions() == {"Int8": 3}
    assert report.written_out() == ()


def unrolled(count, scales):
    """`count` convolutions of one weight, each with an activation scale of its own or not."""
    weights, constants = conv_weight_square()
    nodes = [*weights]
    for k in range(count):
        x, y = f"x{k}" if k else "x", f"x{k + 1}" if k < count - 1 else "y"
        quantizers, added = pair(x=x, scale=scales[k])
        nodes += [*quantizers, node("Conv", [f"{x}_dq", "w_dq", "b"], f"c{k}", f"conv{k}", pads=[1] * 4), node("Tanh", [f"c{k}"], y, f"tanh{k}")]
        constants = constants + added
    return network(nodes, {"x": (FLOAT, [1, 32, 8, 8])}, {"y": (FLOAT, [1, 32, 8, 8])}, [*constants, constant("b", draw(32))])


def conv_weight_square():
    model = conv(None, conv_weight())
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    codes = np.concatenate([stored["w_q"], stored["w_q"]], axis=1)
    dequantize = next(n for n in model.graph.node if n.op_type == "DequantizeLinear")
    return [dequantize], [constant("w_q", codes), constant("w_s", stored["w_s"]), constant("w_z", stored["w_z"])]


def test_one_weight_with_many_activation_scales_is_fine_and_each_scale_costs_a_kernel(tmp_path):
    """A fused program with scales by step: int8, weights once, and 100 to 200 KB of engine for each further scale."""
    scales = {"shared": [0.02] * 8, "groups": [0.01] * 3 + [0.02] * 3 + [0.03] * 2, "steps": [0.01 * (k + 1) for k in range(8)]}
    models = {name: unrolled(8, values) for name, values in scales.items()}
    sizes = {}
    for name, engine in build_all({name: (model, ["SM89"]) for name, model in models.items()}, tmp_path).items():
        check_for_tensorrt(models[name], name, ["SM89"])
        assert slow_spots(models[name], ["SM89"]) == []
        assert engine.report.precisions("Conv") == {"Int8": 8}
        assert engine.report.written_out() == ()
        stored = {c.name for layer in engine.report.layers for c in layer.constants if c.elements == 32 * 32 * 9}
        assert len(stored) == 1
        sizes[name] = len(engine.data)
    assert 100_000 < (sizes["groups"] - sizes["shared"]) / 2 < 200_000
    assert 100_000 < (sizes["steps"] - sizes["shared"]) / 7 < 200_000
