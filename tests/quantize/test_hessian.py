"""Rows of a layer's input against ONNX's reference evaluator, and sums of their outer products against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgegen.errors import CalibrationError
from edgegen.quantize import HessianSum, rows_of


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def evaluated(node, x, weight):
    """The node's output by onnx.reference."""
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "w")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])).run(None, {"x": x, "w": weight})[0]


CONVOLUTIONS = [
    ((2, 4, 7, 6), (5, 4, 3, 3), {}),
    ((2, 4, 7, 6), (5, 4, 3, 2), {"pads": [1, 0, 2, 1]}),
    ((2, 4, 8, 7), (5, 4, 3, 3), {"strides": [2, 1], "pads": [1, 1, 1, 1]}),
    ((2, 4, 9, 9), (5, 4, 3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    ((2, 6, 6, 6), (9, 2, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    ((2, 4, 6, 5), (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
    ((2, 4, 7, 6), (5, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((2, 4, 7, 6), (5, 4, 4, 3), {"auto_pad": "SAME_LOWER"}),
    ((2, 4, 7, 6), (5, 4, 3, 3), {"auto_pad": "VALID", "strides": [2, 3]}),
    ((3, 4, 11), (5, 4, 3), {"pads": [2, 0], "strides": [2]}),
    ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"pads": [0, 1, 0, 1, 1, 1]}),
    ((2, 4, 5, 5), (5, 4, 1, 1), {"strides": [2, 2]}),
]


@pytest.mark.parametrize(("shape", "weight_shape", "attributes"), CONVOLUTIONS)
def test_rows_of_a_convolution_times_its_weight_are_its_output(shape, weight_shape, attributes):
    node = helper.make_node("Conv", ["x", "w"], ["y"], "c", **attributes)
    x, weight = normal(*shape), normal(*weight_shape, seed=1)
    wanted = np.moveaxis(evaluated(node, x, weight), 1, -1).reshape(-1, weight_shape[0])
    rows, groups = rows_of(node, x, weight_shape), attributes.get("group", 1)
    assert rows.dtype == np.float32 and rows.ndim == (3 if groups > 1 else 2)
    by_group = weight.reshape(groups, weight_shape[0] // groups, -1)
    found = np.concatenate([r @ w.T for r, w in zip(rows.reshape(groups, -1, by_group.shape[2]), by_group, strict=True)], axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape", "weight_shape", "attributes"),
    [
        ("MatMul", (7, 5), (5, 3), {}), ("MatMul", (2, 3, 4, 5), (5, 3), {}), ("MatMul", (5,), (5, 3), {}),
        ("Gemm", (7, 5), (5, 3), {}), ("Gemm", (7, 5), (3, 5), {"transB": 1}), ("Gemm", (5, 7), (5, 3), {"transA": 1}),
    ],
)  # fmt: skip
def test_rows_of_a_linear_layer_times_its_weight_are_its_output(kind, shape, weight_shape, attributes):
    node = helper.make_node(kind, ["x", "w"], ["y"], "l", **attributes)
    x, weight = normal(*shape), normal(*weight_shape, seed=1)
    by_channel = weight if attributes.get("transB") else weight.T
    wanted = evaluated(node, x, weight).reshape(-1, 3)
    np.testing.assert_allclose(rows_of(node, x, weight_shape) @ by_channel.T, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_limit_draws_that_many_different_rows_in_order(groups):
    node = helper.make_node("Conv", ["x", "w"], ["y"], "c", pads=[1, 1, 1, 1], group=groups)
    x, shape = normal(3, 4, 6, 6), (4, 4 // groups, 3, 3)
    every = rows_of(node, x, shape).reshape(groups, 108, -1)
    some = rows_of(node, x, shape, 20, np.random.default_rng(5)).reshape(groups, 20, -1)
    places = [int(np.flatnonzero((every[0] == row).all(axis=1))[0]) for row in some[0]]
    assert places == sorted(set(places)) and np.array_equal(some, every[:, places])
    again = rows_of(node, x, shape, 20, np.random.default_rng(5)).reshape(groups, 20, -1)
    assert np.array_equal(some, again)
    assert not np.array_equal(some, rows_of(node, x, shape, 20, np.random.default_rng(6)).reshape(groups, 20, -1))
    assert np.array_equal(rows_of(node, x, shape, 108).reshape(groups, 108, -1), every)


def test_every_row_is_as_likely_to_be_drawn():
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    x, rng = np.arange(10, dtype=np.float32)[:, None], np.random.default_rng(0)
    drawn = np.concatenate([rows_of(node, x, (1, 3), 3, rng)[:, 0] for _ in range(3000)]).astype(int)
    counts = np.bincount(drawn, minlength=10)
    assert ((counts - 900) ** 2 / 900).sum() < 27.9  # chi-square with 9 degrees of freedom, one in a thousand


def test_the_mean_is_that_of_the_outer_products():
    rows = normal(50, 6)
    hessian = HessianSum()
    hessian.add(rows[:20])
    hessian.add(rows[20:])
    assert hessian.count == 50 and hessian.mean.dtype == np.float64
    np.testing.assert_allclose(hessian.mean, np.mean([np.outer(r, r) for r in rows.astype(np.float64)], axis=0), rtol=1e-5, atol=1e-6)
    grouped = HessianSum()
    grouped.add(normal(3, 50, 6))
    np.testing.assert_allclose(grouped.mean[2], normal(3, 50, 6)[2].T @ normal(3, 50, 6)[2] / 50, rtol=1e-4, atol=1e-5)


def test_many_batches_lose_nothing_of_a_small_share():
    """A float32 sum would stop at 2^24 times a row's product."""
    hessian = HessianSum()
    hessian.add(np.full((1, 1), 2.0**13, np.float32))
    for _ in range(1000):
        hessian.add(np.ones((1, 1), np.float32))
    assert hessian.mean[0, 0] * hessian.count == 2.0**26 + 1000


def test_what_does_not_fit_is_refused():
    conv, matmul = helper.make_node("Conv", ["x", "w"], ["y"], "c"), helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    for bad, message in [
        (lambda: rows_of(helper.make_node("Relu", ["x"], ["y"], "r"), normal(2, 3), (3, 3)), "'r': expected Conv, Gemm or MatMul, found Relu"),
        (lambda: rows_of(conv, normal(2, 3, 5, 5), (4, 4, 3, 3)), r"'c': Conv of x \[2, 3, 5, 5\]"),
        (lambda: rows_of(conv, normal(2, 4, 2, 2), (4, 4, 3, 3)), "'c'"), (lambda: rows_of(conv, normal(2, 4), (4, 4, 3, 3)), "'c'"),
        (lambda: rows_of(matmul, normal(2, 3), (4, 5)), "'m'"), (lambda: rows_of(matmul, normal(2, 3), (3, 5), 0), "at least 1"),
        (lambda: HessianSum().mean, "no rows were added"), (lambda: HessianSum().add(np.array([[math.nan]])), "NaN"),
        (lambda: HessianSum().add(np.full((1, 1), 1e30)), "overflow"),
    ]:  # fmt: skip
        with pytest.raises(CalibrationError, match=message):
            bad()
    hessian = HessianSum()
    hessian.add(normal(4, 3))
    with pytest.raises(CalibrationError, match=r"shape \[2, 2\], expected \[3, 3\]"):
        hessian.add(normal(4, 2))
