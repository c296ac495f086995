"""Rewrites around quantization for ONNX Runtime: the same results, fewer nodes, bytes transposed only, and nothing else touched."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgegen.calibration import with_outputs
from edgegen.onnx_export import export_module
from edgegen.quantize import Ranges
from edgegen.spec import Signature, TensorSpec
from edgegen.targets.onnxruntime.lowering import finish, lower
from edgegen.targets.onnxruntime.qdq import plan, quantize, watched
from tests.tiny import tiny_model

DIGITS = Path(__file__).parents[2] / "export" / "digits"
C, K, S = 8, 6, 5
"""Channels, the embedding's width and the image's side in the small networks."""


def session(model, threads=1, optimized=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(model, batch, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for value in model.graph.input:
        shape = [d.dim_value or batch for d in value.type.tensor_type.shape.dim]
        integers = value.type.tensor_type.elem_type == TensorProto.INT64
        made[value.name] = rng.integers(0, 4, shape) if integers else rng.standard_normal(shape).astype(np.float32)
    return made


def check_equal(model, lowered, batches=(1, 3)):
    onnx.checker.check_model(lowered)
    for batch in batches:
        given = feeds(model, batch, batch)
        for a, b in zip(session(model).run(None, given), session(lowered).run(None, given), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * np.abs(a).max())


def operators(model):
    return Counter(n.op_type for n in model.graph.node)


def network(nodes, constants, outputs=("y",), opset=20):
    """A network of x [batch, C, S, S] and e [batch, K]. nodes: (operator, inputs, output or outputs, attributes)."""
    made = [helper.make_node(op, i, [o] if isinstance(o, str) else o, f"{op}_{k}", **a) for k, (op, i, o, a) in enumerate(nodes)]
    inputs = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["batch", C, S, S]), ("e", ["batch", K]))]
    results = [helper.make_tensor_value_info(o, 1, ["batch", C, S, S]) for o in outputs]
    initializers = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    model = helper.make_model(
        helper.make_graph(made, "g", inputs, results, initializers), opset_imports=[helper.make_opsetid("", opset)], ir_version=9
    )
    onnx.checker.check_model(model)
    return model


NORM = [
    ("Reshape", ["x", "groups"], "x3", {}),
    ("InstanceNormalization", ["x3", "ones", "zeros"], "n3", {}),
    ("Shape", ["x"], "full", {}),
    ("Reshape", ["n3", "full"], "n", {}),
]


def constants(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "groups": np.array([0, 2, -1]), "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32), "one": np.float32(1), "axes": np.array([2, 3]),
        "gamma": normal(C, 1, 1), "beta": normal(1, C, 1, 1), "place": normal(S, S), "W": normal(2 * C, K), "b": normal(2 * C), "V": normal(K, C),
        "double": np.float32(2),
    }  # fmt: skip


def modulation(gemm=("Gemm", ["e", "W", "b"], "p", {"transB": 1})):
    """Scale and shift by e: y = n (1 + scale) + shift, from m."""
    return [
        gemm,
        ("Unsqueeze", ["p", "axes"], "p4", {}),
        ("Split", ["p4"], ["scale", "shift"], {"axis": 1, "num_outputs": 2}),
        ("Add", ["scale", "one"], "scale1", {}),
        ("Mul", ["m", "scale1"], "ms", {}),
        ("Add", ["ms", "shift"], "y", {}),
    ]


AFFINE = [("Mul", ["n", "gamma"], "ng", {}), ("Add", ["ng", "beta"], "m", {})]


@pytest.fixture(scope="module")
def digits():
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(DIGITS))
    try:
        from model import DigitsUNet
    finally:
        sys.path.remove(str(DIGITS))
    torch.manual_seed(0)
    module = DigitsUNet(width=8)
    for blocks in (module.encode0, module.encode1, module.middle, module.decode1, module.decode0):
        del blocks[len(blocks) // 2 :]
    for name, parameter in module.named_parameters():
        if "norm" in name or "conv2" in name:  # a new block is the identity
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") and "norm" in name else 0.0, 0.1)
    batch = ("batch",)
    image = TensorSpec("x", "float32", ("batch", 1, 28, 28))
    signature = Signature(
        (image, TensorSpec("t", "float32", batch), TensorSpec("label", "int64", batch)), (TensorSpec("prediction", "float32", image.shape),)
    )
    example = {"x": np.zeros((2, 1, 28, 28), np.float32), "t": np.array([1, 2], np.float32), "label": np.array([1, 2])}
    return export_module(module, signature, example)


def in_int8(model):
    placements = plan(model, ["Conv"], ["conv_in*", "conv_out*"])
    tensors = watched(model, placements)
    observer = session(onnx.load_model_from_string(with_outputs(model, tensors)))
    given = feeds(model, 4)
    values = given | dict(zip((o.name for o in observer.get_outputs()), observer.run(None, given), strict=True))
    ranges = Ranges({name: ((0.0, min(float(values[name].min()), 0.0), max(float(values[name].max()), 0.0)),) for name in tensors})
    return quantize(model, placements, ranges), len(placements)


def test_a_unet_computes_the_same_in_far_fewer_nodes(digits):
    before = digits.SerializeToString()
    lowered = lower(digits)
    assert digits.SerializeToString() == before
    check_equal(digits, lowered)
    was, now = operators(digits), operators(lowered)
    assert (was["Gemm"], was["Shape"], was["Split"]) == (9, 15, 7)
    assert (now["Gemm"], now["Shape"], now["Split"]) == (3, 0, 1)
    assert now["BatchNormalization"] == 8 and now.total() < 0.75 * was.total()
    for model in (digits, lowered):
        names = [(n.name, n.input[0], n.output[0]) for n in model.graph.node if n.op_type == "Conv"]
        assert names == [(n.name, n.input[0], n.output[0]) for n in digits.graph.node if n.op_type == "Conv"]
    assert lower(digits).SerializeToString(deterministic=True) == lowered.SerializeToString(deterministic=True)
    assert operators(lower(lowered)) == now


def test_an_int8_unet_transposes_bytes_only_and_all_its_convolutions_are_fused(digits, tmp_path):
    quantized, planned = in_int8(lower(digits))
    finished = finish(quantized)
    onnx.checker.check_model(finished)
    for batch in (1, 3):
        given = feeds(digits, batch)
        np.testing.assert_array_equal(session(finished).run(None, given)[0], session(quantized).run(None, given)[0])

    def optimized(model):
        session(model, optimized=tmp_path / "optimized.onnx")
        return onnx.load(tmp_path / "optimized.onnx")

    def float_transposes(model):
        made_by = {o: n.op_type for n in model.graph.node for o in n.output}
        return sum(n.op_type == "Transpose" and made_by.get(n.input[0]) in ("DequantizeLinear", "Resize", "Add") for n in model.graph.node)

    before, after = optimized(quantized), optimized(finished)
    assert float_transposes(before) > 0 and float_transposes(after) == 0
    count = operators(after)
    assert count["QLinearConv"] == planned == 20
    assert count["Transpose"] == 2 * planned
    assert count["QuantizeLinear"] <= len({n.input[0] for n in quantized.graph.node if n.op_type == "QuantizeLinear"}) - planned
    assert finish(quantized).SerializeToString(deterministic=True) == finished.SerializeToString(deterministic=True)


def test_networks_without_the_patterns_stay_as_they_are():
    for model in (tiny_model(), in_int8(tiny_model())[0]):
        assert list(lower(model).graph.node) == list(model.graph.node)
        assert lower(model).graph.initializer == model.graph.initializer
    assert list(finish(tiny_model()).graph.node) == list(tiny_model().graph.node)


def test_normalization_scale_and_modulation_become_one_scale_and_shift():
    model = network([*NORM, *AFFINE, *modulation()], constants())
    lowered = lower(model)
    check_equal(model, lowered)
    assert operators(lowered) == {"Reshape": 3, "InstanceNormalization": 1, "Gemm": 1, "Split": 1, "Mul": 1, "Add": 1}


def test_a_scale_without_an_embedding_becomes_one_batch_normalization():
    model = network([*NORM, *AFFINE[:1], ("Add", ["ng", "beta"], "y", {})], constants())
    lowered = lower(model)
    check_equal(model, lowered)
    assert operators(lowered) == {"Reshape": 2, "InstanceNormalization": 1, "BatchNormalization": 1}


def test_projections_that_are_added_to_images_become_one():
    nodes = []
    for k, image in enumerate(("x", "h0", "h1")):
        nodes += [
            ("Gemm", ["e", "V"], f"p{k}", {}),
            ("Unsqueeze", [f"p{k}", "axes"], f"q{k}", {}),
            ("Add", [image, f"q{k}"], f"h{k}" if k < 2 else "y", {}),
        ]
    model = network(nodes, constants())
    lowered = lower(model)
    check_equal(model, lowered)
    assert operators(lowered) == {"Gemm": 1, "Reshape": 1, "Split": 1, "Add": 3}
    one = network([*nodes[:2], ("Add", ["x", "q0"], "y", {})], constants())
    assert list(lower(one).graph.node) == list(one.graph.node)


@pytest.mark.parametrize(
    "nodes",
    [
        [*NORM, ("Mul", ["n", "place"], "ng", {}), ("Add", ["ng", "beta"], "y", {})],
        [*NORM, ("Mul", ["n", "n"], "ng", {}), ("Add", ["ng", "beta"], "y", {})],
        [*NORM, ("Mul", ["n", "gamma"], "ng", {}), ("Add", ["ng", "x"], "y", {})],
        [*NORM, ("Mul", ["n", "gamma"], "ng", {}), ("Add", ["ng", "beta"], "nb", {}), ("Add", ["nb", "ng"], "y", {})],
        [("Mul", ["x", "gamma"], "ng", {}), ("Add", ["ng", "beta"], "y", {})],
        [*NORM, ("Identity", ["n"], "m", {}), *modulation(("Gemm", ["e", "W", "b"], "p", {"transB": 1, "alpha": 2.0}))],
        [*NORM, ("Identity", ["n"], "m", {}), ("Gemm", ["e", "W", "b"], "p0", {"transB": 1}), *modulation(("Tanh", ["p0"], "p", {}))],
    ],
    ids=["varies over the image", "square", "adds an image", "read twice", "no normalization", "alpha", "no projection"],
)
def test_what_does_not_match_exactly_keeps_its_scales(nodes):
    model = network(nodes, constants())
    lowered = lower(model)
    check_equal(model, lowered)
    was, now = operators(model), operators(lowered)
    assert all(now[op] == count for op, count in was.items() if op != "Shape") and now["BatchNormalization"] == 0


def test_tensors_that_the_network_gives_out_are_kept():
    model = network([*NORM, *AFFINE, *modulation()], constants(), outputs=("y", "ng", "m"))
    lowered = lower(model)
    check_equal(model, lowered)
    assert [o.name for o in lowered.graph.output] == ["y", "ng", "m"]


@pytest.mark.parametrize("seed", range(25))
def test_random_chains_of_scales_and_shifts_compute_the_same(seed):
    rng = np.random.default_rng(seed)
    operands = ["gamma", "beta", "one", "double", "place", "scale", "shift", "scale1", "x", "tanh"]
    nodes = [*NORM, *modulation()[:4], ("Tanh", ["shift"], "tanh", {})]
    last = "n"
    for k in range(6):
        pair = [last, str(rng.choice(operands))]
        rng.shuffle(pair)
        last = "y" if k == 5 else f"c{k}"
        nodes.append((str(rng.choice(["Mul", "Add"])), pair, last, {}))
    model = network(nodes, constants(seed))
    check_equal(model, lower(model))


def test_graphs_of_other_forms_are_returned_as_they_are():
    value = helper.make_tensor_value_info
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [value("z", 1, ["n"])])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    nested = helper.make_model(helper.make_graph([choice], "g", [value("x", 1, ["n"]), value("c", 9, [])], [value("y", 1, ["n"])]))
    old = network([("Mul", ["x", "gamma"], "ng", {}), ("Add", ["ng", "beta"], "y", {})], constants(), opset=11)
    unknown = network([("Mul", ["x", "gamma"], "y", {})], constants())
    unknown.graph.node[0].domain, unknown.graph.node[0].op_type = "somewhere.else", "Mystery"
    for model in (nested, old, unknown):
        assert list(lower(model).graph.node) == list(model.graph.node)
        assert list(finish(model).graph.node) == list(model.graph.node)
