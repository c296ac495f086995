"""Factors per channel, and where the division by them goes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import scipy.special
import scipy.stats
from onnx import helper, numpy_helper

from edgegen.errors import BuildError, CalibrationError
from edgegen.quantize.smoothing import best_alpha, factors, reading_weights, smooth, spearman
from edgegen.quantize.times import tabulate_times
from tests.quantize import networks
from tests.quantize.networks import F, graph, run


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_smoothquant_factors_are_the_papers():
    activation = np.array([[1, 0.5, 0, 4], [8, 0.25, 0, 1]], np.float32)  # largest: 8, 0.5, 0, 4
    weights = [np.array([[0.5, -2], [0.1, 0.1], [1, 1], [0, 0]], np.float32), np.array([[1], [-0.5], [1], [0]], np.float32)]  # 2, 0.5, 1, 0
    np.testing.assert_allclose(factors(activation, weights), [2, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(factors(activation, weights, alpha=0.75)[:2], [8**0.75 / 2**0.25, 0.5**0.75 / 0.5**0.25], rtol=1e-6)
    np.testing.assert_allclose(factors(activation, weights, alpha=1.0), [8, 0.5, 1, 1], rtol=1e-6)
    assert factors(np.array([[1e20, 1e-20]], np.float32), [np.ones((2, 1), np.float32)], alpha=1.0).tolist() == [np.float32(1e4), np.float32(1e-4)]


def test_ranks_correlate_as_scipys():
    rng = np.random.default_rng(0)
    for n in (2, 5, 40):
        for values in (rng.standard_normal((2, n)), rng.integers(0, 3, (2, n)).astype(float)):
            a, b = values + np.eye(2, n)  # not constant
            assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(np.ones(4), np.arange(4.0)) == 0.0


def test_balance_weighs_the_times_that_complement_the_weights():
    activation, weight = np.abs(random(5, 16)), random(16, 8, seed=1)
    w = np.abs(weight).max(axis=1)
    activation[3] = w.max() + 0.1 - w  # large where the weights are small
    rho = [scipy.stats.spearmanr(row, w).statistic for row in activation]
    share = scipy.special.softmax(-np.array(rho))
    assert share.argmax() == 3
    wanted = np.sqrt((share[:, None] * activation).sum(axis=0) / w)
    np.testing.assert_allclose(factors(activation, [weight], "balance"), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("activation", "weights", "message"),
    [
        (np.ones((2, 3)), [np.ones((4, 5))], r"activation \[2, 3\] and weights \[\[4, 5\]\]: expected \[T, C\]"),
        (np.ones(3), [np.ones((3, 5))], "expected"),
        (np.ones((2, 3)), [], "expected"),
        (np.full((2, 3), np.nan), [np.ones((3, 5))], "finite"),
        (-np.ones((2, 3)), [np.ones((3, 5))], "not negative"),
        (np.ones((2, 3)), [np.full((3, 5), np.inf)], "finite"),
    ],
)
def test_what_gives_no_factors_is_refused(activation, weights, message):
    with pytest.raises(CalibrationError, match=message):
        factors(activation, weights)


def test_unknown_methods_and_alphas_are_refused():
    with pytest.raises(BuildError, match="did you mean 'balance'"):
        factors(np.ones((1, 1)), [np.ones((1, 1))], "balanced")
    with pytest.raises(CalibrationError, match=r"alpha is 1\.5"):
        factors(np.ones((1, 1)), [np.ones((1, 1))], alpha=1.5)


def int8(x, axis=None):
    """x rounded to int8, symmetric: one scale, or one for each index of an axis."""
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    step = np.maximum(np.abs(x).max(axis=others, keepdims=axis is not None), 1e-12) / 127
    return np.round(x / step) * step


def output_error(x, w):
    """Of x @ w with int8 activations (one scale) and weights (one per output)."""
    return float(np.linalg.norm(int8(x) @ int8(w, 1) - x.astype(np.float64) @ w))


@pytest.mark.parametrize("outliers", ["activation", "weight", "none"])
def test_the_best_alpha_is_nearly_the_best_when_measured(outliers):
    x, w = random(400, 64).astype(np.float64), random(64, 48, seed=1).astype(np.float64)
    if outliers != "none":
        (x if outliers == "activation" else w.T)[:, [5, 40]] *= 60
    activation = np.abs(x).reshape(4, 100, 64).max(axis=1)
    grid = np.linspace(0, 1, 21)
    measured = []
    for alpha in grid:
        s = factors(activation, [w], alpha=alpha).astype(np.float64)
        measured.append(output_error(x / s, w * s[:, None]))
    for square in (None, (x**2).mean(axis=0)):
        found = best_alpha(activation, [w], square)
        assert measured[int(np.argmin(np.abs(grid - found)))] < 1.1 * min(measured)
    if outliers == "activation":
        assert min(measured) < 0.5 * measured[0]
    with pytest.raises(CalibrationError, match="mean_square"):
        best_alpha(activation, [w], np.ones(3))


def dit_feeds():
    return {"x": random(4, 9, 16, seed=5), "t": np.array([0.1, 0.3, 0.6, 0.9], np.float32)}


def layer_inputs(model, skip=()):
    """For tensors that layers read: activations [samples, positions, C], and factors over samples as times."""
    weights = {name: w for name, w in reading_weights(model).items() if name not in skip}
    values = dict(zip(weights, run(model, dit_feeds(), list(weights)), strict=True))
    return values, weights


def test_a_dit_block_is_the_same_and_its_layers_lose_less_to_int8():
    model = networks.dit()
    before = model.SerializeToString()
    values, weights = layer_inputs(model, skip=("x", "cat", "silu"))
    scales = {name: factors(np.abs(values[name]).max(axis=1), weights[name]) for name in weights}
    smoothed, report = smooth(model, scales)
    onnx.checker.check_model(smoothed, full_check=True)
    assert model.SerializeToString() == before and smoothed.SerializeToString() == smooth(model, scales)[0].SerializeToString()

    qkv, attended, up, down, leave = weights
    assert [len(weights[name]) for name in weights] == [3, 1, 1, 1, 1]
    modulated = {"block.ada.weight", "block.ada.bias"}  # the shift; (1 + scale) stays, the norm's own scale takes the division
    assert modulated < set(report[qkv]) and modulated < set(report[up]) and len(report[qkv]) == len(report[up]) == 3
    assert "block.v.bias" in report[attended] and len(report[attended]) == 2
    assert report[down] == () and report[leave] == ()  # after GELU; and a sum of residuals
    assert [n.op_type for n in smoothed.graph.node].count("Mul") == [n.op_type for n in model.graph.node].count("Mul") + 2

    wanted = run(model, dit_feeds())
    assert np.abs(run(smoothed, dit_feeds()) - wanted).max() < 1e-5 * np.abs(wanted).max()

    after, weights_after = layer_inputs(smoothed, skip=("x", "cat", "silu"))
    ratios = [
        output_error(values[a].reshape(-1, w.shape[0]), w) / output_error(after[b].reshape(-1, w.shape[0]), v)
        for (a, ws), (b, vs) in zip(weights.items(), weights_after.items(), strict=True)
        for w, v in zip(ws, vs, strict=True)
    ]
    print("error of int8 outputs before / after smoothing:", np.round(ratios, 2))
    q, k, _, o, up_ratio, down_ratio, leave_ratio = ratios  # not of v, whose result is another after smoothing
    assert min(q, k, o, up_ratio, down_ratio) > 2.5 and leave_ratio > 1.2


def test_tables_of_times_take_the_division_too():
    model, _ = tabulate_times(networks.dit(), "t", [0.25, 0.5])
    qkv = next(name for name, ws in reading_weights(model).items() if len(ws) == 3)
    smoothed, report = smooth(model, {qkv: np.exp(random(32))})
    assert any("table" in name for name in report[qkv])
    feeds = dit_feeds() | {"t": np.array([0.25, 0.5, 0.5, 0.25], np.float32)}
    wanted = run(networks.dit(), feeds)
    assert np.abs(run(smoothed, feeds) - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("network", ["digits", "ddpm"])
def test_every_tensor_of_a_whole_network_can_be_smoothed(network):
    model = getattr(networks, network)()
    rng = np.random.default_rng(1)
    scales = {name: np.exp(rng.uniform(-1, 1, len(ws[0]))).astype(np.float32) for name, ws in reading_weights(model).items()}
    smoothed, report = smooth(model, scales)
    onnx.checker.check_model(smoothed, full_check=True)
    folded = sum(bool(names) for names in report.values())
    if network == "digits":
        assert folded == 0  # every layer reads a SiLU, a Concat or a sum of residuals
    else:
        assert folded == 14 * 2 + 3 + 1  # 14 blocks' norms and Relus, the Relus of 3 time branches, the table of sinusoids
    kind = np.float32 if network == "digits" else np.int64
    feeds = {"x": random(3, 1, 28, 28), "t": np.array([999, 500, 1], kind)} | ({"label": np.array([1, 2, 10])} if network == "digits" else {})
    wanted = run(model, feeds)
    assert np.abs(run(smoothed, feeds) - wanted).max() < 1e-5 * np.abs(wanted).max()


def case(producer, shape, constants, reader="MatMul", others=(), opset=20, **options):
    """x: [batch, *shape] -> the nodes of `producer`, the last of which makes h -> a layer that gives y.

    producer: (operator, inputs, output, attributes) each; reader: the layer; others: nodes beside, whose outputs the network gives too.
    """
    nodes = [
        helper.make_node(op, ins, [out] if isinstance(out, str) else out, out if isinstance(out, str) else out[0], **a)
        for op, ins, out, a in producer
    ]
    nodes.append(helper.make_node(reader, ["h", "W"], ["y"], "reader", **options))
    nodes += [helper.make_node(op, ins, [out]) for op, ins, out in others]
    outputs = {"y": (F, None)} | {out: (onnx.TensorProto.INT64 if op == "Shape" else F, None) for op, _, out in others}
    model = graph(nodes, {"x": (F, ["batch", *shape])}, outputs, constants)
    model.opset_import[0].version, model.ir_version = opset, 11
    return model


C = 6
IMAGE, TOKENS = (C, 5, 4), (3, C)
CONV = {"W": random(4, C, 3, 3)}
LINEAR = {"W": random(C, 4)}
vector = lambda k=C, seed=1: random(k, seed=seed)  # noqa: E731
image = lambda seed=1: random(C, 1, 1, seed=seed)  # noqa: E731

FOLDS = {
    "layer norm": (case([("LayerNormalization", ["x", "a", "b"], "h", {})], TOKENS, LINEAR | {"a": vector(), "b": vector(seed=2)}), {"a", "b"}),
    "layer norm over images": (
        case([("LayerNormalization", ["x", "a", "b"], "h", {"axis": 1})], IMAGE, CONV | {"a": random(*IMAGE), "b": random(*IMAGE)}, "Conv"), {"a", "b"},
    ),
    "RMS norm": (case([("RMSNormalization", ["x", "a"], "h", {})], TOKENS, LINEAR | {"a": vector()}, opset=23), {"a"}),
    "instance norm": (case([("InstanceNormalization", ["x", "a", "b"], "h", {})], IMAGE, CONV | {"a": vector(), "b": vector(seed=2)}, "Conv"), {"a", "b"}),
    "group norm": (
        case([("GroupNormalization", ["x", "a", "b"], "h", {"num_groups": C})], IMAGE, CONV | {"a": vector(), "b": vector(seed=2)}, "Conv"), {"a", "b"},
    ),
    "batch norm": (
        case([("BatchNormalization", ["x", "a", "b", "m", "v"], "h", {})], IMAGE,
             CONV | {"a": vector(), "b": vector(seed=2), "m": vector(seed=3), "v": vector() ** 2}, "Conv"), {"a", "b"},
    ),
    "affine": (
        case([("Mul", ["x", "a"], "u", {}), ("Add", ["u", "b"], "h", {})], IMAGE, CONV | {"a": image(), "b": image(2)}, "Conv"), {"a", "b"},
    ),
    "one number": (case([("Mul", ["x", "a"], "u", {}), ("Sub", ["b", "u"], "h", {})], TOKENS, LINEAR | {"a": np.float32(2), "b": np.float32(3)}), {"a", "b"}),
    "division": (case([("Div", ["x", "a"], "h", {})], TOKENS, LINEAR | {"a": vector()}), {"a"}),
    "linear": (case([("MatMul", ["x", "a"], "u", {}), ("Add", ["u", "b"], "h", {})], TOKENS, LINEAR | {"a": random(C, C), "b": vector()}), {"a", "b"}),
    "gemm": (case([("Gemm", ["x", "a", "b"], "h", {"alpha": 0.5})], (3,), LINEAR | {"a": random(3, C), "b": vector()}, "Gemm"), {"a", "b"}),
    "gemm transposed": (case([("Gemm", ["x", "a"], "h", {"transB": 1})], (3,), {"W": random(4, C), "a": random(C, 3)}, "Gemm", transB=1), {"a"}),
    "convolutions": (
        case([("Conv", ["x", "a", "b"], "u", {}), ("Relu", ["u"], "h", {})], (2, 7, 7), CONV | {"a": random(C, 2, 3, 3), "b": vector()}, "Conv"), {"a", "b"},
    ),
    "a grouped convolution": (
        case([("Conv", ["x", "a"], "u", {"group": 2}), ("LeakyRelu", ["u"], "h", {"alpha": 0.2})], (4, 7, 7),
             {"W": random(9, 2, 3, 3), "a": random(C, 2, 3, 3)}, "Conv", group=3), {"a"},
    ),
    "a shape": (case([("Mul", ["x", "a"], "h", {})], TOKENS, LINEAR | {"a": vector()}, others=[("Shape", ["h"], "s")]), {"a"}),
    "split heads": (
        case([("MatMul", ["x", "a"], "u", {}), ("Reshape", ["u", "heads"], "v", {}), ("Transpose", ["v"], "w", {"perm": [0, 2, 1, 3]}),
              ("MatMul", ["mix", "w"], "m", {}), ("Transpose", ["m"], "n", {"perm": [0, 2, 1, 3]}), ("Reshape", ["n", "joined"], "h", {})], TOKENS,
             LINEAR | {"a": random(C, C), "heads": np.array([0, 3, 2, 3]), "joined": np.array([0, 3, C]), "mix": random(2, 3, 3)}), {"a"},
    ),
    "a part": (
        case([("MatMul", ["x", "a"], "u", {}), ("Split", ["u", "sizes"], ["p", "h", "q"], {"axis": -1})], TOKENS,
             LINEAR | {"a": random(C, 13), "sizes": np.array([2, C, 5])}, others=[("Relu", ["p"], "p1"), ("Relu", ["q"], "q1")]), {"a"},
    ),
    "unsqueezed": (
        case([("MatMul", ["x", "a"], "u", {}), ("Unsqueeze", ["u", "axes"], "v", {}), ("Add", ["v", "wide"], "h", {})], (3,),
             CONV | {"a": random(3, C), "axes": np.array([2, -1]), "wide": random(1, C, 4, 5)}, "Conv"), {"a", "wide"},
    ),
    "turned": (
        case([("Mul", ["x", "a"], "u", {}), ("Transpose", ["u"], "v", {"perm": [1, 2, 0]}), ("Transpose", ["v"], "h", {"perm": [2, 0, 1]})], TOKENS,
             LINEAR | {"a": vector()}), {"a"},
    ),
    "positions in a row": (
        case([("Conv", ["x", "a"], "u", {}), ("Reshape", ["u", "flat"], "v", {}), ("Reshape", ["v", "image"], "h", {})], (2, 5, 4),
             CONV | {"a": random(C, 2, 1, 1), "flat": np.array([0, C, 20]), "image": np.array([0, C, 5, 4])}, "Conv"), {"a"},
    ),
    "a table": (
        case([("Cast", ["x"], "i", {"to": 7}), ("Gather", ["a", "i"], "h", {})], (2,), LINEAR | {"a": random(3, C)}), {"a"},
    ),
}  # fmt: skip


def feeds_of(model):
    shape = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    return {"x": random(*shape, seed=9)}


def assert_same(model, smoothed):
    for a, b in zip(
        run(model, feeds_of(model), [o.name for o in model.graph.output]),
        run(smoothed, feeds_of(model), [o.name for o in model.graph.output]),
        strict=True,
    ):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("name", FOLDS)
def test_the_division_goes_into(name):
    model, wanted = FOLDS[name]
    factor = np.exp(random(C, seed=3))
    smoothed, report = smooth(model, {"h": factor})
    assert set(report["h"]) == wanted
    assert [n.op_type for n in smoothed.graph.node] == [n.op_type for n in model.graph.node]
    assert_same(model, smoothed)
    shape = [1 if name_of(model) == "Conv" else -1]
    before, after = (run(m, feeds_of(model), ["h"])[0] for m in (model, smoothed))
    expected = before / (factor[:, None, None] if shape[0] == 1 else factor)
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def name_of(model):
    return next(n.op_type for n in model.graph.node if n.name == "reader")


KEPT = {
    "SiLU": case([("Mul", ["x", "a"], "u", {}), ("Sigmoid", ["u"], "v", {}), ("Mul", ["u", "v"], "h", {})], TOKENS, LINEAR | {"a": vector()}),
    "GELU": case([("Mul", ["x", "a"], "u", {}), ("Gelu", ["u"], "h", {})], TOKENS, LINEAR | {"a": vector()}),
    "a square": case([("Mul", ["x", "a"], "u", {}), ("Mul", ["u", "u"], "h", {})], TOKENS, LINEAR | {"a": vector()}),
    "the network's input": case([("Add", ["x", "x"], "h", {})], TOKENS, LINEAR),
    "another reader": case([("Mul", ["x", "a"], "h", {})], TOKENS, LINEAR | {"a": vector()}, others=[("Relu", ["h"], "z")]),
    "another reader further back": case(
        [("Mul", ["x", "a"], "u", {}), ("Relu", ["u"], "h", {})], TOKENS, LINEAR | {"a": vector()}, others=[("Tanh", ["u"], "z")]
    ),
    "half of a sum": case([("Mul", ["x", "a"], "u", {}), ("Add", ["u", "x"], "h", {})], TOKENS, LINEAR | {"a": vector()}),
    "a gate for all channels": case(
        [("ReduceMean", ["x", "last"], "u", {}), ("MatMul", ["u", "a"], "g", {}), ("Mul", ["x", "g"], "h", {})],
        TOKENS, LINEAR | {"last": np.array([-1]), "a": random(1, 1)},
    ),
    "an instance norm over positions": case([("InstanceNormalization", ["x", "a", "b"], "h", {})], (C, C), LINEAR | {"a": vector(), "b": vector()}),
    "a layer norm over positions": case(
        [("Transpose", ["x"], "u", {"perm": [0, 2, 1]}), ("LayerNormalization", ["u", "a"], "v", {}), ("Transpose", ["v"], "h", {"perm": [0, 2, 1]})],
        (C, C), LINEAR | {"a": vector()},
    ),
    "attention over channels": case(
        [("Mul", ["x", "a"], "u", {}), ("MatMul", ["mix", "u"], "v", {}), ("Transpose", ["v"], "h", {"perm": [0, 2, 1]})],
        (C, C), LINEAR | {"a": vector(), "mix": random(C, C)},
    ),
    "a gate for all channels of a position": case(
        [("ReduceMean", ["x", "last"], "u", {"keepdims": 0}), ("Mul", ["u", "a"], "v", {}), ("Reshape", ["v", "shape"], "g", {}), ("Mul", ["x", "g"], "h", {})],
        TOKENS, LINEAR | {"last": np.array([-1]), "a": np.float32(2), "shape": np.array([0, 3, 1])},
    ),
    "a gate for all channels, unsqueezed": case(
        [("ReduceMean", ["x", "last"], "u", {"keepdims": 0}), ("Mul", ["u", "a"], "v", {}), ("Unsqueeze", ["v", "last"], "g", {}), ("Mul", ["x", "g"], "h", {})],
        TOKENS, LINEAR | {"last": np.array([-1]), "a": np.float32(2)},
    ),
    "a table of single numbers": case([("Cast", ["x"], "i", {"to": 7}), ("Gather", ["a", "i"], "h", {})], TOKENS, LINEAR | {"a": vector()}),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_a_multiplication_is_added_where_the_division_cannot_go_into(name):
    model = KEPT[name]
    smoothed, report = smooth(model, {"h": np.exp(random(C, seed=3))})
    assert report == {"h": ()}
    assert len(smoothed.graph.node) == len(model.graph.node) + 1
    assert next(n for n in smoothed.graph.node if n.name == "reader").input[0] == "h.smoothed"
    assert_same(model, smoothed)


def test_a_norm_of_unknown_rank_is_left_alone():
    model = case([("InstanceNormalization", ["x", "a", "b"], "h", {})], (3, C), LINEAR | {"a": vector(3), "b": vector(3)})
    model.graph.input[0].type.tensor_type.ClearField("shape")
    smoothed, report = smooth(model, {"h": np.exp(random(C))})
    assert report == {"h": ()}
    x = {"x": random(2, 3, C)}
    np.testing.assert_allclose(run(smoothed, x), run(model, x), rtol=1e-4, atol=1e-5)


def test_an_output_of_the_network_is_not_divided():
    model = case([("Mul", ["x", "a"], "h", {})], TOKENS, LINEAR | {"a": vector()})
    model.graph.output.append(helper.make_tensor_value_info("h", F, None))
    smoothed, report = smooth(model, {"h": np.exp(random(C))})
    assert report == {"h": ()}
    assert_same(model, smoothed)


def test_a_weight_that_others_use_is_copied():
    nodes = [("MatMul", ["x", "W"], "u", {}), ("Relu", ["u"], "h", {})]
    model = case(nodes, TOKENS, {"W": random(C, C)})
    smoothed, report = smooth(model, {"h": np.exp(random(C))})
    assert report == {"h": ("W",)}  # the layer that reads h was given its copy before
    assert len(smoothed.graph.initializer) == 2
    assert_same(model, smoothed)


def test_several_tensors_are_smoothed_one_after_the_other():
    """The weight between them is divided by one's factors and multiplied by the other's."""
    nodes = [("Mul", ["x", "a"], "g", {}), ("MatMul", ["g", "b"], "u", {}), ("Relu", ["u"], "h", {})]
    model = case(nodes, TOKENS, LINEAR | {"a": vector(), "b": random(C, C)})
    first, second = np.exp(random(C)), np.exp(random(C, seed=1))
    smoothed, report = smooth(model, {"g": first, "h": second})
    assert report == {"g": ("a",), "h": ("b",)}
    assert_same(model, smoothed)
    values = {t.name: numpy_helper.to_array(t) for t in smoothed.graph.initializer}
    np.testing.assert_allclose(values["b"], random(C, C) * first[:, None] / second, rtol=1e-5)


def test_weights_are_given_as_channels_by_outputs():
    model, _ = FOLDS["a grouped convolution"]
    found, weight = reading_weights(model), {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}["W"]
    assert [w.shape for w in found["x"]] == [(4, 27)] and [w.shape for w in found["h"]] == [(6, 27)]
    np.testing.assert_array_equal(found["h"][0][3], weight[3:6, 1].reshape(-1))  # channel 3 is the second of the second group of two


@pytest.mark.parametrize(
    ("tensor", "factor", "message"),
    [
        ("g", np.ones(C, np.float32), "tensor that layers read, 'g' does not exist"),
        ("h", np.ones(C + 1, np.float32), r"factors of 'h': float32\[7\], expected \[6\]"),
        ("h", np.zeros(C, np.float32), "above 0"),
        ("h", np.full(C, np.nan, np.float32), "finite"),
    ],
)
def test_factors_that_do_not_fit_are_refused(tensor, factor, message):
    with pytest.raises(BuildError, match=message):
        smooth(FOLDS["layer norm"][0], {tensor: factor})


def test_a_tensor_with_channels_on_two_axes_is_refused():
    model = case([("Relu", ["x"], "h", {})], (C, C), {"W": random(4, C, 1), "V": random(C, 4)}, "Conv", others=[("MatMul", ["h", "V"], "z")])
    with pytest.raises(BuildError, match="on two axes"):
        smooth(model, {"h": np.ones(C, np.float32)})
