"""Layers of a Concat, split into one per part."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgegen.quantize.splitting import split_concat_convolutions
from tests.quantize import networks
from tests.quantize.networks import F, graph, run


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_skips_of_digits_are_split_and_nothing_else_changes():
    digits = networks.digits()
    before = digits.SerializeToString()
    model, split = split_concat_convolutions(digits)
    onnx.checker.check_model(model, full_check=True)
    assert digits.SerializeToString() == before and model.SerializeToString() == split_concat_convolutions(digits)[0].SerializeToString()
    weights = {n.name: n.input[1] for n in model.graph.node if len(n.input) > 1}
    assert [[weights[name] for name in parts] for parts in split.values()] == [
        [f"decode{i}.0.skip.weight.part0", f"decode{i}.0.skip.weight.part1"] for i in (1, 0)
    ]
    was = {t.name: numpy_helper.to_array(t) for t in digits.graph.initializer}
    now = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert [now[f"decode0.0.skip.weight.part{k}"].shape for k in (0, 1)] == [(32, 32, 1, 1)] * 2
    assert set(was) - set(now) == {"decode0.0.skip.weight", "decode1.0.skip.weight"}
    assert sum(n.op_type == "Concat" for n in model.graph.node) == 3  # the norms of those blocks still read them
    feeds = {"x": random(3, 1, 28, 28), "t": np.array([999, 500, 1], np.float32), "label": np.array([1, 2, 10])}
    wanted = run(digits, feeds)
    assert np.abs(run(model, feeds) - wanted).max() < 1e-5 * np.abs(wanted).max()


def conv_graph(concat_axis=1, group=1, sizes=(3, 1, 4), declared=None, extra=None, bias=True):
    """A strided, padded convolution of a Concat. declared: the parts' channels as the graph declares them."""
    parts = [f"p{k}" for k in range(len(sizes))]
    inputs = ["c", "w", "b"] if bias else ["c", "w"]
    nodes = [helper.make_node("Concat", parts, ["c"], axis=concat_axis)]
    nodes.append(helper.make_node("Conv", inputs, ["y"], "conv", pads=[1, 0, 2, 1], strides=[2, 1], group=group))
    declared = sizes if declared is None else declared
    shapes = {name: (F, ["batch", size, 9, 7]) for name, size in zip(parts, declared, strict=True)}
    outputs = {"y": (F, ["batch", 4, None, None])} | ({extra: (F, None)} if extra else {})
    constants = {"w": random(4, sum(sizes) // group, 3, 3)} | ({"b": random(4, seed=1)} if bias else {})
    return graph(nodes, shapes, outputs, constants)


def conv_feeds(sizes=(3, 1, 4)):
    return {f"p{k}": (10.0**k) * random(2, size, 9, 7, seed=k) for k, size in enumerate(sizes)}


def assert_equal(model, split, feeds):
    wanted = run(model, feeds)
    np.testing.assert_allclose(run(split, feeds), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("bias", [True, False])
def test_three_parts_of_different_sizes(bias):
    model = conv_graph(bias=bias)
    result, split = split_concat_convolutions(model)
    assert split == {"conv": ("conv.part0", "conv.part1", "conv.part2")}
    assert [n.op_type for n in result.graph.node] == ["Conv"] * 3 + ["Add"] * 2
    assert_equal(model, result, conv_feeds())


def test_the_concat_stays_where_others_read_it():
    model = conv_graph(extra="c")
    result, split = split_concat_convolutions(model)
    assert split and "Concat" in [n.op_type for n in result.graph.node]
    assert_equal(model, result, conv_feeds())


def test_a_size_that_is_unknown_is_what_the_others_leave():
    model = conv_graph(declared=(3, None, 4))
    result, split = split_concat_convolutions(model)
    assert split
    assert_equal(model, result, conv_feeds())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (conv_graph(declared=(None, None, 4)), "two sizes are unknown"),
        (conv_graph(declared=(3, 1, 5)), "the sizes are not the weight's"),
        (conv_graph(concat_axis=0, sizes=(8, 8), declared=(8, 8)), "the Concat is over the batch"),
        (conv_graph(group=2, sizes=(2, 6), declared=(2, None)), "a grouped convolution"),
        (conv_graph(sizes=(8,)), "one part"),
    ],
)
def test_what_cannot_be_split_stays_as_it_is(model, why):
    result, split = split_concat_convolutions(model)
    assert split == {} and result.SerializeToString() == model.SerializeToString(), why


def test_nodes_can_be_left_whole():
    model = conv_graph()
    assert split_concat_convolutions(model, untouched={1})[1] == {}
    assert split_concat_convolutions(model, operators=("Gemm",))[1] == {}


def test_a_concat_of_concats_is_one_and_channels_come_from_convolutions():
    """Nothing is known of the input's shape; the convolutions' weights tell the channels of their results."""
    nodes = [
        helper.make_node("Conv", ["x", "u"], ["a"]),
        helper.make_node("Conv", ["x", "v"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["ab"], axis=-3),
        helper.make_node("Concat", ["ab", "x"], ["c"], axis=1),
        helper.make_node("Conv", ["c", "w"], ["y"]),
    ]
    constants = {"u": random(2, 3, 1, 1), "v": random(5, 3, 1, 1), "w": random(4, 10, 1, 1)}
    model = graph(nodes, {"x": (F, None)}, {"y": (F, None)}, constants)
    result, split = split_concat_convolutions(model)
    assert split == {"y": ("y.part0", "y.part1", "y.part2")}
    assert_equal(model, result, {"x": random(2, 3, 6, 6)})


@pytest.mark.parametrize(("kind", "axis"), [("MatMul", -1), ("MatMul", 2), ("Gemm", 1), ("Gemm", -1), ("Gemm transposed", 1)])
def test_linear_layers_are_split_along_the_last_axis(kind, axis):
    operator, rows = kind.split()[0], ["batch", 5] if kind == "MatMul" else ["batch"]
    transposed = kind == "Gemm transposed"
    options = {"transB": int(transposed)} if operator == "Gemm" else {}
    inputs = ["c", "w"] + (["b"] if operator == "Gemm" else [])
    nodes = [helper.make_node("Concat", ["p0", "p1"], ["c"], axis=axis), helper.make_node(operator, inputs, ["y"], "linear", **options)]
    constants = {"w": random(7, 10) if transposed else random(10, 7), "b": random(7, seed=1)}
    shapes = {"p0": (F, [*rows, 4]), "p1": (F, [*rows, 6])}
    model = graph(nodes, shapes, {"y": (F, [*rows, 7])}, constants if operator == "Gemm" else {"w": constants["w"]})
    assert split_concat_convolutions(model)[1] == {}  # by default only convolutions
    result, split = split_concat_convolutions(model, operators=("Gemm", "MatMul"))
    assert split == {"linear": ("linear.part0", "linear.part1")}
    sizes = [2, 5] if kind == "MatMul" else [2]
    assert_equal(model, result, {"p0": random(*sizes, 4), "p1": 100 * random(*sizes, 6, seed=1)})


def test_a_gemm_with_a_factor_stays_whole():
    nodes = [helper.make_node("Concat", ["p0", "p1"], ["c"], axis=1), helper.make_node("Gemm", ["c", "w"], ["y"], "linear", alpha=2.0)]
    model = graph(nodes, {"p0": (F, [2, 4]), "p1": (F, [2, 6])}, {"y": (F, [2, 7])}, {"w": random(10, 7)})
    assert split_concat_convolutions(model, operators=("Gemm",))[1] == {}


def test_own_scales_of_the_parts_lower_the_error_of_int8():
    """Why: parts of unlike size share one scale in a Concat. Fake quantization in numpy, symmetric per tensor."""
    whole, feeds = conv_graph(sizes=(4, 4)), conv_feeds((4, 4))
    weight = numpy_helper.to_array(whole.graph.initializer[0]) / np.where(np.arange(8) < 4, 1, 10)[:, None, None]  # equal parts of the sum
    whole.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight.astype(np.float32), "w"))
    model, _ = split_concat_convolutions(whole)
    wanted = run(whole, feeds)
    largest = {name: np.abs(x).max() / 127 for name, x in feeds.items()}

    def rounded(scales):
        return {name: (np.round(x / scales[name]) * scales[name]).astype(np.float32) for name, x in feeds.items()}

    shared = np.linalg.norm(run(whole, rounded(dict.fromkeys(feeds, max(largest.values())))) - wanted)
    own = np.linalg.norm(run(model, rounded(largest)) - wanted)
    assert own < 0.25 * shared
