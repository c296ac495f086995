"""`edgegen compare`: closed forms on small networks, a fault that is found where it was put, int8 against float32, and what it refuses."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgegen.targets.nvidia
from edgegen import comparing
from edgegen.bundle import open_bundle
from edgegen.comparing import compare, keep_tensors, matches, measure, open_side, read_inputs
from edgegen.errors import BundleError, EdgegenError, RuntimeFault, Status
from edgegen.program import normals
from edgegen.quantize import Ranges
from edgegen.targets.nvidia import nvidia_gpus
from edgegen.targets.tensorrt import check_for_tensorrt, lower_precision
from edgegen.targets.tensorrt import qdq as tensorrt_qdq
from tests.tiny import stream_bundle, tiny_model

pytest.importorskip("polygraphy")


TENSORS = {"c1", "g", "t1", "gt", "gt4", "s", "h", "c2", "xh", "prediction"}
"""What the tiny network computes."""


@pytest.fixture
def command(edgegen_command):
    """`edgegen compare` in this process: (standard output, standard error)."""
    return functools.partial(edgegen_command, "compare")


def two_nodes(scale, middle="m", output="y", shift=1.0):
    """y = (x * scale) + shift, float32[batch, 4]."""
    nodes = [helper.make_node("Mul", ["x", "scale"], [middle], "mul"), helper.make_node("Add", [middle, "shift"], [output], "add")]
    constants = [numpy_helper.from_array(np.float32(scale), "scale"), numpy_helper.from_array(np.float32(shift), "shift")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", output))
    return helper.make_model(helper.make_graph(nodes, "two", [x], [y], constants), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def saved(model, path):
    onnx.save(model, path)
    return str(path)


def changed(tmp_path, weight, factor, name="b.onnx"):
    """The tiny network with one of its weights scaled."""
    model = tiny_model()
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * np.float32(factor)).astype(np.float32), weight))
    return saved(model, tmp_path / name)


@pytest.fixture(scope="module")
def int8_side(tiny_bundle):
    return open_side(f"{tiny_bundle}:int8")


@pytest.fixture(scope="module")
def int8_comparison(tiny_bundle, int8_side):
    return compare(open_side(f"{tiny_bundle}:float32"), int8_side, seed=3, threads=1)


# --- the numbers


def test_the_numbers_of_a_comparison_by_hand():
    m = measure(np.array([3.0, -4.0]), np.array([3.0, -4.5]))  # power 25, difference 0.25; range 7
    assert (m.max_abs, m.max_rel) == (0.5, pytest.approx(0.5 / 7.0)) and m.snr_db == pytest.approx(20.0)
    assert measure(np.full(3, 2.0), np.full(3, 2.5)).max_rel == 0.25  # no range: of its magnitude
    equal = np.array([math.inf, -math.inf, math.nan, 1.0])
    assert measure(equal, equal.copy()) == measure(np.zeros(0), np.zeros(0)) == measure(np.float32(2), np.float32(2))
    assert measure(equal, equal).snr_db == math.inf
    for a, b in (([1.0, math.nan], [1.0, 2.0]), ([1.0, 2.0], [1.0, math.inf]), ([math.inf, 1.0], [-math.inf, 1.0])):
        assert measure(np.array(a), np.array(b)) == measure(np.array([1.0]), np.array([math.nan]))
        assert measure(np.array(a), np.array(b)).snr_db == -math.inf
    assert measure(np.zeros(2), np.array([0.0, 0.1])).snr_db == -math.inf
    assert measure(np.array([math.inf, 2.0]), np.array([math.inf, 2.2])).snr_db == pytest.approx(20.0)  # infinity is no power
    assert measure(np.array([3e38, 0.0], np.float32), np.array([3e37, 0.0], np.float32)).snr_db == pytest.approx(-20 * math.log10(0.9), abs=1e-4)
    assert measure(np.array([1e-300]), np.array([1.1e-300])).snr_db == pytest.approx(20.0)
    assert measure(np.array([True, False]), np.array([True, True])).max_abs == 1.0


def test_a_network_of_two_nodes_has_the_numbers_that_follow_from_its_constants(tmp_path):
    """m is 1 % off: 40 dB at every input. y = m + 1 is less off: by 2 x / (2 x + 1), here with the x that are given."""
    a, b = saved(two_nodes(2.0), tmp_path / "a.onnx"), saved(two_nodes(2.02), tmp_path / "b.onnx")
    x = np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)
    found = compare(open_side(a), open_side(b), inputs={"x": x}, threads=1)
    m, y = found.rows
    assert (m.tensor, m.node, m.operator, m.node_name, m.output, m.shape) == ("m", 0, "Mul", "mul", False, (1, 4))
    assert (
        m.snr_db == pytest.approx(40.0, abs=1e-3) and m.max_abs == pytest.approx(0.06, rel=1e-4) and m.max_rel == pytest.approx(0.06 / 10, rel=1e-4)
    )
    wanted = 10 * math.log10(float(np.sum((2 * x + 1) ** 2) / np.sum((0.02 * x) ** 2)))
    assert y.output and y.snr_db == pytest.approx(wanted, abs=1e-3) and y.rmse == pytest.approx(10 ** (-wanted / 20), rel=1e-4)
    assert found.worst is m and found.worst_output is y and found.first_below(39.9) is None and found.first_below(40.1) is m
    assert (found.program, found.evaluations, m.evaluation, m.time) == ("", 1, 1, None) and str(m) == "m (Mul, node 0), in evaluation 1"
    only = compare(open_side(a), open_side(b), inputs={"x": x}, layers=False, threads=1)
    assert [row.tensor for row in only.rows] == ["y"] and only.rows[0].snr_db == y.snr_db


def test_inputs_that_nobody_gives_are_normals_and_rows_of_the_table_that_they_pick_from(tmp_path):
    """The first float input is the seed's draw 0: the largest |x| of it gives the largest difference of m."""
    a, b = saved(two_nodes(2.0), tmp_path / "a.onnx"), saved(two_nodes(3.0), tmp_path / "b.onnx")
    found = compare(open_side(a), open_side(b), seed=5, batch=3, threads=1)
    assert found.rows[0].shape == (3, 4) and found.rows[0].max_abs == pytest.approx(float(np.abs(normals(5, 0, (3, 4))).max()))
    scalar = two_nodes(2.0)
    scalar.graph.input[0].type.tensor_type.shape.ClearField("dim")
    scalar.graph.output[0].type.tensor_type.shape.ClearField("dim")
    path = saved(scalar, tmp_path / "scalar.onnx")
    assert [row.shape for row in compare(open_side(path), open_side(path), threads=1).rows] == [(), ()]
    tiny = saved(tiny_model(), tmp_path / "tiny.onnx")
    found = compare(open_side(tiny), open_side(changed(tmp_path, "table", 2.0)), seed=1, batch=200, threads=1)
    rows = numpy_helper.to_array(next(t for t in tiny_model().graph.initializer if t.name == "table"))
    gather = next(row for row in found.rows if row.tensor == "g")
    assert gather.max_abs == pytest.approx(float(np.abs(rows).max()))  # of 200 samples some pick the row of the largest element


# --- a bundle's program


def test_equal_networks_agree_in_every_tensor_at_every_step(tiny_bundle):
    side = open_side(f"{tiny_bundle}:float32")
    found = compare(side, open_side(f"{tiny_bundle}:float32"), seed=2, batch=2, threads=1)
    assert [row.tensor for row in found.rows] == ["c1", "g", "t1", "gt", "gt4", "s", "h", "c2", "xh", "prediction"]  # A's graph order
    assert {row.snr_db for row in found.rows} == {math.inf} and found.worst_output.rmse == 0.0 and found.first_below(1e9) is None
    assert (found.program, found.evaluations) == ("dpmpp_2m-4", 4)
    assert found.rows[0].shape == (4, 32, 8, 8)  # guidance: two branches of two samples
    bundle = open_bundle(tiny_bundle)
    times = [next(o.value for o in i.inputs["t"]) for i in bundle.programs["dpmpp_2m-4"].instructions if type(i).__name__ == "Eval"]
    assert [time for time, _ in found.rows[0].curve] == pytest.approx(times)
    assert compare(side, side, program="ddim-3", layers=False, threads=1).evaluations == 3


@pytest.mark.parametrize(("weight", "first", "behind"), [("w1", "c1", {"c1", "s", "h", "c2", "prediction"}), ("w2", "c2", {"c2", "prediction"})])
def test_a_wrong_weight_is_found_at_the_tensor_behind_it(tiny_bundle, tmp_path, weight, first, behind):
    """At every step: B gets the inputs that A had, so nothing before the weight differs however often the wrong one ran."""
    found = compare(open_side(f"{tiny_bundle}:float32"), open_side(changed(tmp_path, weight, 1.2)), threads=1)
    assert found.first_below(40.0).tensor == first and found.first_below(40.0).operator == "Conv"
    assert {row.tensor for row in found.rows if row.snr_db < 100.0} == behind
    conv = next(row for row in found.rows if row.tensor == first)
    assert [snr for _, snr in conv.curve] == pytest.approx([20 * math.log10(5)] * 4, abs=1e-3)  # off by a fifth, biases are 0
    assert conv.snr_db == min(snr for _, snr in conv.curve) and conv.time == conv.curve[conv.evaluation - 1][0]


def test_the_program_goes_on_with_the_reference(tiny_bundle, tmp_path):
    """What B gets does not depend on B: twice the fault is twice the difference, in the last step as in the first."""
    first, second = (compare(open_side(f"{tiny_bundle}:float32"), open_side(changed(tmp_path, "w2", factor)), threads=1) for factor in (1.5, 2.0))
    assert second.worst_output.max_abs == pytest.approx(2 * first.worst_output.max_abs, rel=1e-4)
    assert [snr for _, snr in second.worst_output.curve] == pytest.approx([snr - 20 * math.log10(2) for _, snr in first.worst_output.curve], abs=1e-3)


def test_a_file_is_the_reference_too(tiny_bundle, tmp_path):
    """The program is B's, run with A's network: the wrong A leads the states astray, and is still off by a sixth of itself in c1."""
    found = compare(open_side(changed(tmp_path, "w1", 1.2)), open_side(f"{tiny_bundle}:float32"), threads=1)
    assert found.program == "dpmpp_2m-4" and found.first_below(40.0).tensor == "c1"
    assert found.first_below(40.0).snr_db == pytest.approx(20 * math.log10(6), abs=1e-3)


def test_a_program_with_states_runs_its_first_call(tmp_path):
    path = tmp_path / "s.edgegen"
    path.write_bytes(stream_bundle())
    found = compare(open_side(str(path)), open_side(str(path)), program="stream", threads=1)
    assert [row.tensor for row in found.rows if row.output] == ["g", "y"] and found.worst.snr_db == math.inf


# --- int8 against float32


def run_by_hand(model, extra, feeds):
    """Tensors of a network, as outputs of a plain session without optimizations."""
    model = keep_tensors(model, extra)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def test_each_float_tensor_is_compared_with_the_value_that_the_quantized_network_reads(tiny_bundle, int8_side):
    a = open_side(f"{tiny_bundle}:float32")
    feeds = {"x": normals(1, 0, (2, 1, 8, 8)), "t": np.array([400.0, 3.0], np.float32), "label": np.array([1, 2])}
    found = {row.tensor: row for row in compare(a, int8_side, inputs=feeds, threads=1).rows}
    assert {name: row.counterpart for name, row in found.items() if row.counterpart != name} == {"x": "x_dq", "h": "h_dq"}
    assert set(found) == TENSORS | {"x"}  # no codes, weights, c1_float
    (float_model, int8_model) = (side.networks["denoiser"].model for side in (a, int8_side))
    first, second = run_by_hand(float_model, ["h", "c1"], feeds), run_by_hand(int8_model, ["x_dq", "h_dq", "h", "c1", "c1_float"], feeds)
    assert found["x"].max_abs == pytest.approx(float(np.abs(second["x_dq"] - feeds["x"]).max()), rel=1e-6)
    assert found["h"].max_abs == pytest.approx(float(np.abs(second["h_dq"] - first["h"]).max()), rel=1e-3)
    assert found["h"].max_abs != pytest.approx(float(np.abs(second["h"] - first["h"]).max()), rel=1e-2)  # what h_dq is made of
    assert found["c1"].max_abs == pytest.approx(float(np.abs(second["c1"] - first["c1"]).max()), rel=1e-3)
    assert [(found[name].operator, found[name].node) for name in ("x", "c1", "h")] == [("input", -1), ("Conv", 0), ("Relu", 6)]


def test_int8_is_tens_of_decibels_away_and_quantized_tensors_come_first(int8_comparison):
    assert int8_comparison.evaluations == 4
    assert 15.0 < int8_comparison.worst_output.snr_db < 60.0
    assert str(int8_comparison.first_below(60.0)).startswith("x (input), at time ")  # its own quantization
    for row in int8_comparison.rows:
        lowest = min(range(4), key=lambda i: row.curve[i][1])
        assert (row.evaluation, row.time, row.snr_db) == (lowest + 1, *row.curve[lowest])
    assert {row.evaluation for row in int8_comparison.rows} > {1}
    exact = {row.tensor for row in int8_comparison.rows if row.snr_db == math.inf}
    assert exact == {"g", "t1", "gt", "gt4", "xh"}  # what no quantized node touches


def test_the_tensors_that_are_kept_leave_the_integer_kernels(tiny_bundle, int8_side, tmp_path, monkeypatch):
    """Marking everything, weights and all, would make ONNX Runtime compute in float: not what ships."""
    kept = []
    monkeypatch.setattr(comparing, "keep_tensors", lambda model, names: kept.append(names) or keep_tensors(model, names))
    compare(open_side(f"{tiny_bundle}:float32"), int8_side, threads=1)
    model = int8_side.networks["denoiser"].model

    def operators(names):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
        onnxruntime.InferenceSession(keep_tensors(model, names).SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)

    everything = [name for node in model.graph.node for name in node.output]
    assert operators([])["QLinearConv"] == operators(kept[1])["QLinearConv"] == 2 and len(kept[1]) == 10
    assert operators(everything)["QLinearConv"] == 0


def test_two_quantized_networks_are_compared_once_per_value(int8_side):
    model = int8_side.networks["denoiser"].model
    found = {m.tensor: (m.a, m.b, m.operator) for m in matches(model, model)}
    assert found["h"] == ("h_dq", "h_dq", "Relu")
    assert found["c1"] == ("c1", "c1", "Conv")
    assert found["x"] == ("x_dq", "x_dq", "input") and set(found) == TENSORS | {
        "x"
    }  # neither codes nor dequantized weights nor a second name of a value


def test_networks_for_tensorrt_are_matched_by_the_same_rule():
    model = tiny_model()
    placements = tensorrt_qdq.plan(model, ("Conv",), ())
    ranges = Ranges(dict.fromkeys(tensorrt_qdq.watched(model, placements), ((0.5, -3.0, 3.0),)))
    quantized = tensorrt_qdq.quantize(model, placements, ranges)
    found = {m.tensor: m.b for m in matches(model, quantized)}
    assert found["h"] == "h_dq" and found["c1"] == "c1" and found["x"] == "x_dq" and len(found) == 11
    half = {m.tensor: m.b for m in matches(model, lower_precision(model))}
    assert half["c1"] == "c1_half" and half["prediction"] == "prediction" and len(half) == 10
    assert [(m.tensor, m.a, m.b, m.output, m.node) for m in matches(["h", "prediction"], model)] == [
        ("h", "h", "h", False, 6), ("prediction", "prediction", "prediction", True, 9),
    ]  # fmt: skip


def test_a_network_in_half_precision_is_compared(tmp_path):
    a = saved(tiny_model(), tmp_path / "a.onnx")
    found = compare(open_side(a), open_side(saved(lower_precision(tiny_model()), tmp_path / "b.onnx")), threads=1)
    assert 50.0 < found.worst_output.snr_db < 80.0 and {row.counterpart for row in found.rows} >= {"c1_half", "h_half"}


def test_kept_tensors_have_types_so_that_tensorrt_takes_the_network():
    model = tiny_model()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    kept = keep_tensors(model, ["c1", "h", "h", "prediction"])
    assert [o.name for o in kept.graph.output] == ["prediction", "c1", "h"]
    check_for_tensorrt(kept, "kept", ("SM86",))
    assert len(model.graph.output) == 1


# --- what it refuses


def test_files_that_cannot_be_compared(tiny_bundle, tmp_path):
    tiny, two = saved(tiny_model(), tmp_path / "tiny.onnx"), saved(two_nodes(2.0), tmp_path / "two.onnx")
    (tmp_path / "x.onnx").write_bytes(b"no network")
    (tmp_path / "x.edgegen").write_bytes(b"no bundle")
    wide = two_nodes(2.0)
    wide.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    renamed = saved(two_nodes(2.0, "n", "z"), tmp_path / "z.onnx")
    for a, b, code, words in (
        (f"{tiny_bundle}:int4", tiny, Status.NO_VARIANT, "no variant 'int4' in this bundle: did you mean 'int8'"),
        (tmp_path / "no.onnx", tiny, Status.CANNOT_OPEN, "no.onnx: no such file; expected FILE.edgegen, FILE.edgegen:VARIANT"),
        (tmp_path / "m.tflite", tiny, Status.BAD_ARGUMENT, "m.tflite: expected FILE.edgegen"),
        (tmp_path / "x.onnx", tiny, Status.INCONSISTENT, "x.onnx: is not an ONNX"),
        (tiny, two, Status.BAD_SHAPE, "A and B take different inputs: .*tiny.onnx takes x, t, label; .*two.onnx takes x"),
        (two, saved(wide, tmp_path / "wide.onnx"), Status.BAD_SHAPE, r"input 'x' is float32\[any, 4\] in .*two.onnx and float32\[any, 5\] in .*wide"),
        (tiny_bundle, two, Status.BAD_SHAPE, "A and B take different inputs"),
        (two, renamed, Status.BAD_SHAPE, "A and B have no output in common: A gives y; B gives z"),
    ):  # fmt: skip
        with pytest.raises(EdgegenError, match=words) as e:
            compare(open_side(str(a)), open_side(str(b)), threads=1)
        assert e.value.code == code
    with pytest.raises(BundleError):
        open_side(str(tmp_path / "x.edgegen"))
    with pytest.raises(RuntimeFault, match="no program 'ddim-4' in .*: did you mean 'ddim-3'"):
        compare(open_side(str(tiny_bundle)), open_side(str(tiny_bundle)), program="ddim-4")
    with pytest.raises(RuntimeFault, match="a program is of a bundle"):
        compare(open_side(tiny), open_side(tiny), program="ddim-3")
    x = np.ones((1, 3), np.float32)
    loose = two_nodes(2.0)
    loose.graph.input[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    loose.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(4, np.float32), "scale"))
    with pytest.raises(RuntimeFault, match="loose.onnx failed in onnxruntime: ") as e:
        compare(open_side(saved(loose, tmp_path / "loose.onnx")), open_side(two), inputs={"x": x}, threads=1)
    assert e.value.code == Status.BACKEND_FAILED and "\n" not in str(e.value)
    with pytest.raises(RuntimeFault, match="no engine 'tensor': did you mean"):
        open_side(tiny, "tensor")


def test_inputs_that_do_not_fit(tmp_path):
    side, path = open_side(saved(two_nodes(2.0), tmp_path / "two.onnx")), tmp_path / "x.npz"
    x = np.ones((1, 4), np.float32)
    for arrays, code, words in (
        ({"x": x, "u": x}, Status.UNKNOWN_NAME, "no input 'u': Known: x"),
        ({}, Status.UNKNOWN_NAME, r"holds no 'x', which is float32\[any, 4\]"),
        ({"x": x[:, :3]}, Status.BAD_SHAPE, r"'x' is float32\[1, 3\], expected float32\[any, 4\]"),
        ({"x": x.astype(complex)}, Status.BAD_DTYPE, r"'x' is complex128\[1, 4\], expected float32"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(RuntimeFault, match=words) as e:
            compare(side, side, inputs=read_inputs(path), threads=1)
        assert e.value.code == code
    path.write_bytes(b"no archive")
    for wrong in (path, tmp_path / "none.npz"):
        with pytest.raises(RuntimeFault, match=r"expected an \.npz file") as e:
            read_inputs(wrong)
        assert e.value.code == Status.CANNOT_OPEN
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(RuntimeFault, match=r"expected an \.npz file"):
        read_inputs(tmp_path / "a.npy")


def test_outputs_of_different_shapes_are_refused_and_other_tensors_left_out(tmp_path):
    def reshaped(middle, end):
        nodes = [helper.make_node("Reshape", ["x", "inner"], ["m"]), helper.make_node("Reshape", ["m", "outer"], ["y"])]
        constants = [numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in (("inner", middle), ("outer", end))]
        values = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        return helper.make_model(
            helper.make_graph(nodes, "r", [values[0]], [values[1]], constants), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
        )

    a, b, c = (saved(reshaped(*shapes), tmp_path / f"{i}.onnx") for i, shapes in enumerate((([2, 2], [4]), ([4, 1], [4]), ([2, 2], [1, 4]))))
    found = compare(open_side(a), open_side(b), threads=1)
    assert found.unlike == ("m",) and [row.tensor for row in found.rows] == ["y"]
    with pytest.raises(RuntimeFault, match=r"output 'y' is float32\[4\] in A and float32\[1, 4\] in B"):
        compare(open_side(a), open_side(c), threads=1)


def test_without_polygraphy_it_says_how_to_get_it(tmp_path, monkeypatch):
    side = open_side(saved(two_nodes(2.0), tmp_path / "a.onnx"))
    for name in [name for name in sys.modules if name.split(".")[0] == "polygraphy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(RuntimeFault, match=r"pip install 'edgegen\[compare\]'") as e:
        compare(side, side)
    assert e.value.code == Status.BACKEND_MISSING


@pytest.mark.skipif(bool(nvidia_gpus()), reason="there is a GPU here")
def test_an_engine_without_a_gpu_is_one_sentence(command, tmp_path, monkeypatch):
    engine, two = tmp_path / "a.engine", saved(two_nodes(2.0), tmp_path / "a.onnx")
    engine.write_bytes(b"code for a GPU")
    said = command(two, engine, code=4)
    assert said.out == "" and len(said.err.strip().splitlines()) == 1 and "there is no NVIDIA GPU here" in said.err
    with pytest.raises(RuntimeFault, match="a.onnx runs in TensorRT, and there is no NVIDIA GPU here") as e:
        open_side(two, "tensorrt-rtx")
    assert e.value.code == Status.PROVIDER_MISSING
    monkeypatch.setattr(edgegen.targets.nvidia, "nvidia_gpus", lambda: (edgegen.targets.nvidia.Gpu("none", "SM86"),))
    with pytest.raises(RuntimeFault, match="a.engine failed in tensorrt-rtx: .*an engine runs on the GPU model and the version"):
        compare(open_side(two), open_side(str(engine)))  # through Polygraphy's TrtRunner, up to the driver that is not there


# --- the command


def test_the_command(command, tiny_bundle, tmp_path):
    same = command(f"{tiny_bundle}:float32", f"{tiny_bundle}:float32", "--threads", 1)
    assert "no tensor is below 40 dB" in same.out and "the outputs agree: relative RMSE 0.0e+00" in same.out
    wrong = changed(tmp_path, "w2", 1.2)
    differs = command(f"{tiny_bundle}:float32", wrong, "--threads", 1, "--top", 2, "--seed", 4, code=3)
    assert "the first tensor below 40 dB is c2 (Conv, node 7), at time " in differs.out and "4 evaluations of dpmpp_2m-4, 2 of 10" in differs.out
    assert "relative RMSE" in differs.err and "0.001 is allowed (--tolerance)" in differs.err
    said = json.loads(command(f"{tiny_bundle}:float32", wrong, "--json", "--snr", 5, "--tolerance", 10).out)
    assert said["first_below"] is None and said["agree"] and said["worst_output"]["tensor"] == "prediction" and len(said["tensors"]) == 10
    assert {t["tensor"]: t["snr_db"] for t in said["tensors"]}["c1"] == "inf" and len(said["tensors"][0]["curve"]) == 4
    a, b = saved(two_nodes(2.0, "[red]m"), tmp_path / "a.onnx"), saved(two_nodes(2.0, "[red]m", shift=1.5), tmp_path / "b.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((1, 4), np.float32))
    assert "[red]m" in command(a, b, "--inputs", tmp_path / "x.npz", code=3).out  # a name, not a colour
