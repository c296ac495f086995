"""Scales, ranges and where QDQ goes."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgegen.calibration import Batch, collect_record, read_batches, write_batches
from edgegen.errors import BuildError, CalibrationError
from edgegen.quantize import Ranges, affine_uint8, choose_ranges
from edgegen.spec import Signature, TensorSpec
from edgegen.targets.onnxruntime.qdq import plan, quantize, watched
from tests.tiny import tiny_model

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 1, 8, 8)), TensorSpec("t", "float32", ("batch",)), TensorSpec("label", "int64", ("batch",))),
    (TensorSpec("prediction", "float32", ("batch", 1, 8, 8)),),
)
finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=10_000, deadline=None)
@given(finite, finite)
def test_scales_of_any_range_are_usable(a, b):
    low, high = min(a, b), max(a, b)
    scale, zero = affine_uint8(low, high)
    assert np.isfinite(scale) and scale > 0
    assert 0 <= int(zero) <= 255
    if high - low > 1e-9 and abs(low) < 1e30 and abs(high) < 1e30:
        for value in (low, 0.0, high):
            q = min(max(round(value / float(scale)) + int(zero), 0), 255)
            assert abs((q - int(zero)) * float(scale) - value) <= 1.01 * float(scale)
    assert (int(zero) - int(zero)) * float(scale) == 0.0  # zero is exact: padding stays padding


@pytest.mark.parametrize(("low", "high"), [(math.nan, 1), (0, math.inf), (-math.inf, 0), (2, 1)])
def test_ranges_that_are_no_ranges_are_refused(low, high):
    with pytest.raises(CalibrationError):
        affine_uint8(low, high)


def feeds(time=0.5, count=2, seed=0, value=None):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 1, 8, 8)).astype(np.float32) if value is None else np.full((count, 1, 8, 8), value, np.float32)
    return Batch("denoiser", time, {"x": x, "t": np.full(count, time, np.float32), "label": np.zeros(count, np.int64)})


def record_of(batches, tensors=("x", "h", "c2")):
    return collect_record({"denoiser": tiny_model()}, {"denoiser": SIGNATURE}, {"denoiser": tensors}, iter(batches))


def ranges_of(batches, tensors=("x", "h", "c2"), times="step"):
    return choose_ranges(record_of(batches, tensors), times=times)


def test_ranges_are_kept_per_time_and_merge_over_batches():
    a, b, c = feeds(0.5, seed=1), feeds(0.5, seed=2), feeds(0.1, seed=3)
    ranges = ranges_of([a, b, c])
    assert [row[0] for row in ranges.rows["x"]] == pytest.approx([0.1, 0.5])
    both = np.concatenate([a.feeds["x"], b.feeds["x"]])
    assert ranges.at("x", 0.5) == (float(both.min()), float(both.max()))
    assert ranges.at("x") == (min(both.min(), c.feeds["x"].min()), max(both.max(), c.feeds["x"].max()))
    assert ranges.at("h")[0] == 0.0  # after a Relu
    assert ranges_of([a, b, c], times="shared").at("x", 0.3) == ranges.at("x")
    with pytest.raises(CalibrationError, match=r"no range of tensor 'x' at network time 0\.3: calibrated at 0\.1, 0\.5"):
        ranges.at("x", 0.3)


def test_batches_come_back_from_their_file(tmp_path):
    batches = [feeds(0.5, seed=1), feeds(0.1, seed=2)]
    assert list(write_batches(tmp_path / "a.zip", iter(batches))) == batches
    for found, expected in zip(read_batches(tmp_path / "a.zip"), batches, strict=True):
        assert (found.component, found.time) == (expected.component, expected.time)
        assert all(np.array_equal(found.feeds[k], v) and found.feeds[k].dtype == v.dtype for k, v in expected.feeds.items())
    list(write_batches(tmp_path / "b.zip", iter(batches)))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_calibration_inputs_that_are_not_finite_are_refused_with_tensor_and_time(value):
    with pytest.raises(CalibrationError, match="tensor 'x' is NaN or infinite at time 0.5"):
        ranges_of([feeds(value=value)])


def test_a_set_without_batches_is_refused():
    with pytest.raises(CalibrationError, match="gave no batches"):
        ranges_of([])


def test_plan_names_its_nodes_and_keeps_what_it_is_told():
    model = tiny_model()
    assert [p.weight for p in plan(model, ["Conv"], [])] == ["w1", "w2"]
    assert [p.weight for p in plan(model, ["Conv"], ["w1"])] == ["w2"]
    assert [p.weight for p in plan(model, ["Conv"], ["conv*"])] == []
    assert watched(model, plan(model, ["Conv"], [])) == ("x", "c1", "h", "c2")
    with pytest.raises(BuildError, match="Known: Conv, Gemm, MatMul"):
        plan(model, ["Softmax"], [])


def run(model, batch, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, dump=None):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, batch.feeds)[0]


def test_the_quantized_model_is_close_and_fused_and_deterministic(tmp_path):
    model = tiny_model()
    placements = plan(model, ["Conv"], [])
    batch = feeds(count=16)
    ranges = ranges_of([batch], watched(model, placements), "shared")
    quantized = quantize(model, placements, ranges)
    onnx.checker.check_model(quantized)
    assert quantized.SerializeToString() == quantize(model, placements, ranges).SerializeToString()
    assert model.SerializeToString() == tiny_model().SerializeToString()  # the input is untouched
    exact, all_on = run(model, batch), run(quantized, batch, dump=tmp_path / "o.onnx")
    all_off = run(quantized, batch, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    step = affine_uint8(*ranges.at("c2"))[0]
    assert np.abs(all_on - all_off).max() <= 2.01 * step
    assert np.sqrt(np.mean((all_on - exact) ** 2)) < 0.02 * np.std(exact)
    kinds = [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]
    assert kinds.count("QLinearConv") == 2


def test_coarser_scales_are_caught_by_the_distance():
    """The negative control: ranges ten times too wide."""
    model = tiny_model()
    placements, batch = plan(model, ["Conv"], []), feeds(count=16)
    ranges = ranges_of([batch], watched(model, placements), "shared")
    wide = Ranges({name: tuple((t, 30 * a, 30 * b) for t, a, b in rows) for name, rows in ranges.rows.items()})
    exact = run(model, batch)
    assert np.sqrt(np.mean((run(quantize(model, placements, wide), batch) - exact) ** 2)) > 0.02 * np.std(exact)


def gemm_model(trans_b, kind="Gemm"):
    weight = np.random.default_rng(0).standard_normal((16, 8) if trans_b else (8, 16)).astype(np.float32)
    initializers = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(16, np.float32), "b")]
    if kind == "Gemm":
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "g", transB=int(trans_b))]
    else:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "m")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])], initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(("kind", "trans_b"), [("Gemm", True), ("Gemm", False), ("MatMul", False)])
def test_linear_layers_are_quantized_along_their_output_channels(tmp_path, kind, trans_b):
    model = gemm_model(trans_b, kind)
    placements = plan(model, [kind], [])
    x = np.random.default_rng(1).standard_normal((32, 8)).astype(np.float32)
    ranges = Ranges({"x": ((0.0, float(x.min()), float(x.max())),)})
    batch = Batch("f", 0.0, {"x": x})
    exact, found = run(model, batch), run(quantize(model, placements, ranges), batch, dump=tmp_path / "o.onnx")
    assert np.abs(found - exact).max() < 0.15
    assert "MatMulIntegerToFloat" in [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]
