"""Engines from the real builder, in its child process: precisions by GPU, the report, and every way to fail."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from edgegen.errors import BuildError, Status
from edgegen.quantize import Ranges
from edgegen.targets.tensorrt import BuildOptions, build, build_engine, lower_precision, module
from edgegen.targets.tensorrt.qdq import plan, quantize, watched
from edgegen.targets.tensorrt.report import layers_of
from tests.targets.tensorrt.builds import build_all
from tests.targets.tensorrt.networks import FLOAT, constant, conv, conv_weight, float_network, matmul, network, node, pair, rng

SM86 = BuildOptions(capabilities=("SM86",))
RANGES = Ranges({"x": ((0.5, -3.0, 4.0),), "f": ((0.5, 0.0, 40.0),)})
OPERATORS = ("Conv", "Gemm", "MatMul")


def in_precision(name):
    model = float_network()
    if name in ("int8", "fp8", "int4", "w4a8", "w8a16"):
        return quantize(model, plan(model, OPERATORS, [], name), RANGES, name)
    if name.endswith("+float16"):
        return lower_precision(in_precision(name.removesuffix("+float16")))
    return lower_precision(model, name) if name != "float32" else model


PRECISIONS = (
    "float32", "float16", "bfloat16", "int8", "int8+float16", "fp8", "int4", "int4+float16", "w4a8", "w4a8+float16", "w8a16", "w8a16+float16",
)  # fmt: skip
ABSENT = {("SM75", p) for p in PRECISIONS if p not in ("float16", "w8a16+float16")} | {("SM86", "fp8")}
CASES = [(sm, p) for sm in ("SM75", "SM86", "SM89") for p in PRECISIONS]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    return build_all({(sm, p): (in_precision(p), [sm]) for sm, p in CASES}, tmp_path_factory.mktemp("precisions"))


@pytest.mark.parametrize(("sm", "precision"), CASES)
def test_each_precision_builds_where_the_check_says(sm, precision, engines):
    if (sm, precision) in ABSENT:
        assert isinstance(engines[sm, precision], BuildError)
        with pytest.raises(BuildError, match=f"which {sm} does not have|which TensorRT does not multiply on {sm}"):
            build_engine(in_precision(precision).SerializeToString(), BuildOptions(capabilities=(sm,)))
        return
    engine = engines[sm, precision]
    assert not isinstance(engine, BuildError), str(engine)
    computed = {
        "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "fp8": "FP8", "int4": "Float", "int4+float16": "Half", "w8a16": "Float",
        "w8a16+float16": "Half",
    }.get(precision, "Int8")  # fmt: skip
    assert engine.report.precisions() == {computed: 2}
    assert engine.report.written_out() == ()
    assert engine.report.size == len(engine.data) > 0


def test_the_report_answers_whether_convolutions_are_int8(engines):
    report = engines["SM86", "int8"].report
    assert report.all_in("Conv", "Int8")
    assert not report.all_in("ConvTranspose", "Int8")  # there is none
    assert not engines["SM86", "float16"].report.all_in("Conv", "Int8")
    (layer,) = report.products("Conv")
    assert layer.weight.shape == (32, 16, 3, 3)
    assert layer.weight.dtype == "Int8"
    assert "conv" in layer.nodes
    assert report.engine == "tensorrt-rtx"
    assert report.version == module.version("tensorrt-rtx")
    assert report.capabilities == ("SM86",)
    assert 0 < report.seconds < 60
    json.dumps(report.to_json())


def test_int8_weights_are_a_quarter_and_int4_gemm_weights_an_eighth(engines):
    def bytes_of(precision, operator):
        (layer,) = engines["SM86", precision].report.products(operator)
        bits = {"Float": 32, "Int8": 8, "Int4": 4}
        return layer.weight.elements * bits[layer.weight.dtype] // 8

    assert bytes_of("int8", "Conv") * 4 == bytes_of("float32", "Conv") == 32 * 16 * 9 * 4
    assert bytes_of("w8a16", "MatMul") * 4 == bytes_of("float32", "MatMul")
    assert engines["SM86", "w8a16+float16"].report.dequantized_inside() != ()
    stored = [c for layer in engines["SM86", "w4a8"].report.layers for c in layer.constants if c.dtype == "Int4"]
    assert [c.elements for c in stored] == [24 * 2048]  # the Gemm's; the convolution's are int8
    assert bytes_of("int4", "MatMul") * 8 == bytes_of("float32", "MatMul") == 24 * 2048 * 4
    assert engines["SM86", "int4"].report.dequantized_inside() != ()  # that is what weight-only is


def test_engines_of_one_model_are_equal_to_the_byte_and_progress_is_told():
    seen = []
    first = build_engine(float_network().SerializeToString(), SM86, progress=lambda *step: seen.append(step))
    second = build_engine(float_network().SerializeToString(), SM86)
    assert first.data == second.data
    assert seen[0] == ("parsing", 0, 1)
    assert any(phase == "Building engine" and done == total > 0 for phase, done, total in seen)
    assert all(0 <= done <= total for _, done, total in seen)


def refused(model, options=SM86, code=Status.BACKEND_FAILED, **words):
    with pytest.raises(BuildError) as e:
        build_engine(model if isinstance(model, bytes) else model.SerializeToString(), options, where="net.onnx")
    assert str(e.value).startswith("net.onnx: ")
    assert e.value.code == code
    return str(e.value)


def test_an_operator_that_only_the_parser_knows_is_named_with_its_node():
    model = network([node("BitwiseAnd", ["x", "x"], "y", "and")], {"x": (6, [2])}, {"y": (6, [2])}, [])
    assert "tensorrt-rtx 1.7.1.116 does not take it: node 'and' (BitwiseAnd)" in refused(model)


def test_what_the_builder_says_is_in_the_error():
    text = refused(float_network(), BuildOptions(capabilities=("SM86",), workspace=16))
    assert "no tactics to implement the operation within workspace limit" in text


def test_refit_without_a_gpu_is_an_error_that_says_so():
    text = refused(float_network(), BuildOptions(capabilities=("SM86",), refit=True, strip_weights=True))
    assert "cannot build it" in text
    assert "needs an NVIDIA GPU" in text


@pytest.mark.parametrize(("data", "words"), [(b"", "no nodes"), (b"\x0a\x03abc", "no nodes"), (b"not onnx", "is not an ONNX file")])
def test_bytes_that_are_no_model_are_refused(data, words):
    assert words in refused(data, code=Status.INCONSISTENT)


def test_a_crash_of_the_builder_is_an_error_that_says_where(monkeypatch):
    monkeypatch.setattr(build, "check_for_tensorrt", lambda *_: None)
    (q, dq), (_, zero) = pair()
    model = conv(([q, dq], [zero]), conv_weight(), inputs={"x_s": (FLOAT, [])})
    assert "the builder crashed (SIGSEGV) after the parser had read every node" in refused(model)


def test_a_builder_that_is_killed_is_out_of_memory(monkeypatch):
    def run(folder, timeout, progress):
        (folder / "stderr.txt").touch()
        return subprocess.run([sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"], check=False).returncode, False

    monkeypatch.setattr(build, "_run", run)
    assert "without free memory" in refused(float_network(), code=Status.NO_MEMORY)


def test_a_builder_that_takes_too_long_is_stopped():
    text = refused(float_network(), BuildOptions(capabilities=("SM86",), timeout=0.05), code=Status.BUSY)
    assert "more than 0.05 s" in text


def test_a_progress_that_raises_ends_the_builder():
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(float_network().SerializeToString(), SM86, progress=stop)


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        ({"engine": "openvino"}, "no TensorRT engine 'openvino'", Status.UNKNOWN_NAME),
        ({"engine": "tensorrt"}, "module tensorrt is not installed", Status.BACKEND_MISSING),
        ({"engine": "tensorrt", "capabilities": ("SM86",)}, "takes no `capabilities`", Status.PROVIDER_MISSING),
        ({"capabilities": ("SM999",)}, "does not build for SM999", Status.PROVIDER_MISSING),
        ({"capabilities": ("SM90",)}, "does not build for SM90: .*Known: SM120, SM121, SM75, SM80, SM86, SM89", Status.PROVIDER_MISSING),
        ({"hardware_compatible": True}, "no a? ?hardware compatibility|hardware compatibility", Status.PROVIDER_MISSING),
        ({"version_compatible": True}, "version compatible engines", Status.PROVIDER_MISSING),
        ({"timing_cache": "cache.bin"}, "timing cache", Status.PROVIDER_MISSING),
        ({"optimization_level": 6}, "expected 0 to 5", Status.OUT_OF_RANGE),
        ({"workspace": 0}, "more than 0", Status.OUT_OF_RANGE),
        ({"timeout": float("nan")}, "timeout nan", Status.OUT_OF_RANGE),
        ({"profiles": {"z": ((1,), (1,), (1,))}}, "input 'z'", Status.UNKNOWN_NAME),
        ({"profiles": {"x": ((2, 16, 8, 8), (2, 16, 8, 8), (3, 16, 8, 8))}}, "its profile says .3, 16, 8, 8.", Status.BAD_SHAPE),
    ],
)  # fmt: skip
def test_options_that_cannot_be_met_are_named(options, words, code):
    with pytest.raises(BuildError, match=words) as e:
        build_engine(float_network().SerializeToString(), BuildOptions(**options))
    assert e.value.code == code


def test_missing_modules_say_how_to_install_them(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"install it with: pip install 'edgegen\[tensorrt\]'") as e:
        build_engine(float_network().SerializeToString())
    assert e.value.code == Status.BACKEND_MISSING


def test_dimensions_of_any_size_take_a_profile():
    model = matmul(lead=("N",)).SerializeToString()
    with pytest.raises(BuildError, match="input 'x' has dimensions of any size") as e:
        build_engine(model, SM86)
    assert e.value.code == Status.BAD_SHAPE
    with pytest.raises(BuildError, match="least <= usual <= most"):
        build_engine(model, BuildOptions(capabilities=("SM86",), profiles={"x": ((4, 64), (2, 64), (8, 64))}))
    engine = build_engine(
        model, BuildOptions(capabilities=("SM86",), profiles={"x": ((1, 64), (2, 64), (8, 64))}, workspace=1 << 30, optimization_level=1)
    )
    assert engine.report.precisions() == {"Float": 1}
    assert engine.report.options["profiles"] == {"x": [[1, 64], [2, 64], [8, 64]]}


def test_no_compute_capability_builds_too():
    assert build_engine(float_network().SerializeToString()).report.precisions() == {"Float": 2}


def test_a_log_without_a_table_leaves_questions_open(engines):
    report = engines["SM86", "int8"].report
    without = type(report)(**{f: getattr(report, f) for f in report.__slots__} | {"layers": ()})
    with pytest.raises(BuildError, match="gave no table of layers"):
        without.precisions()


def test_tables_of_tensorrt_proper_are_read_too():
    """A line as TensorRT 10 prints it (from its manual): Format/Datatype in one."""
    text = (
        "Layers:\nName: conv1 + relu1, LayerType: CaskConvolution, Inputs: [ { Name: in[0], Location: Device, Dimensions: [1,3,8,8], "
        "Format/Datatype: Channel major INT8 where channel % 4 == 0 }], Outputs: [ { Name: out, Location: Device, Dimensions: [1,32,8,8], "
        "Format/Datatype: Row major linear FP16 }], ParameterType: Convolution, TacticName: t, StreamId: 0, Metadata: [ONNX Layer: conv1]\n"
    )
    (layer,) = layers_of([text])
    assert (layer.product, layer.precision, layer.outputs[0].dtype, layer.nodes) == ("Conv", "Int8", "Half", ("conv1",))
    assert layer.inputs[0].shape == (1, 3, 8, 8)


def test_a_whole_sampler_stores_its_weights_once():
    """Eight steps of one network with shared initializers: what the engine grows by is less than one more copy of the weight."""

    def steps(count):
        nodes = []
        for k in range(count):
            x, y = f"x{k}" if k else "x", f"x{k + 1}" if k < count - 1 else "y"
            nodes += [node("MatMul", [x, "w"], f"p{k}", f"mm{k}"), node("Tanh", [f"p{k}"], y, f"tanh{k}")]
        return network(nodes, {"x": (FLOAT, [4, 512])}, {"y": (FLOAT, [4, 512])}, [constant("w", rng().normal(size=(512, 512)), np.float32)])

    sizes = {}
    for count in (1, 8):
        model = steps(count)
        placements = plan(model, OPERATORS, [])
        model = quantize(model, placements, Ranges(dict.fromkeys(watched(model, placements), ((0.5, -4.0, 4.0),))))
        assert sum(t.data_type == 3 and len(t.raw_data) == 512 * 512 for t in model.graph.initializer) == 1
        engine = build_engine(model.SerializeToString(), SM86)
        assert engine.report.precisions() == {"Int8": count}
        sizes[count] = len(engine.data)
    assert sizes[8] - sizes[1] < 512 * 512 < sizes[1]


def test_a_crash_of_the_parser_is_at_a_node():
    log = [("VERBOSE", "Parsing node: x_Q [QuantizeLinear]"), ("VERBOSE", "Searching for input: x"), ("VERBOSE", "Parsing node: conv [Conv]")]
    assert build._where(log) == " at node conv [Conv]"
    assert build._where([]) == ""
