"""Tiny networks for TensorRT, good and bad, written with onnx.helper alone so that they do not depend on what is tested."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
E4M3, INT4, UINT4, E5M2, FP4 = ml_dtypes.float8_e4m3fn, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn
LARGEST = {np.int8: 127, INT4: 7, E4M3: 448, FP4: 6}


def rng(seed=0):
    return np.random.default_rng(seed)


def constant(name, value, dtype=None):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def node(op, inputs, outputs, name, **attributes):
    return helper.make_node(op, inputs, [outputs] if isinstance(outputs, str) else outputs, name, **attributes)


def network(nodes, inputs, outputs, constants, opset=21, domains=()):
    """inputs, outputs: {name: (element type, shape)}."""
    values = [[helper.make_tensor_value_info(n, t, s) for n, (t, s) in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *values, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in (("", opset), *domains)], ir_version=10)


def float_network(batch=2):
    """Conv, Relu, Flatten, Gemm in float32, as an exporter would write them."""
    r = rng(1)
    return network(
        [node("Conv", ["x", "w", "b"], "c", "conv", pads=[1] * 4), node("Relu", ["c"], "r", "relu"), node("Flatten", ["r"], "f", "flat"),
         node("Gemm", ["f", "gw", "gb"], "y", "gemm", transB=1)],
        {"x": (FLOAT, [batch, 16, 8, 8])}, {"y": (FLOAT, [batch, 24])},
        [constant("w", r.normal(size=(32, 16, 3, 3)), np.float32), constant("b", r.normal(size=32), np.float32),
         constant("gw", r.normal(size=(24, 2048)), np.float32), constant("gb", r.normal(size=24), np.float32)],
    )  # fmt: skip


def pair(dtype=np.int8, zero=0, scale=0.02, x="x", scale_dtype=np.float32, **attributes):
    """Q and DQ on tensor x -> (nodes, constants); the result is named `x_dq`."""
    names = [f"{x}_s", f"{x}_z"]
    nodes = [
        node("QuantizeLinear", [x, *names], f"{x}_q", f"{x}_Q", **attributes),
        node("DequantizeLinear", [f"{x}_q", *names], f"{x}_dq", f"{x}_DQ", **attributes),
    ]
    return nodes, [constant(names[0], scale, scale_dtype), constant(names[1], zero, dtype)]


def weight(array, axis=0, dtype=np.int8, block=0, scale_dtype=np.float32, zero=True):
    """A weight's codes and DQ -> (nodes, constants); the result is named `w_dq`. block: along `axis`, else one scale per index of it."""
    if block:
        cut = [*array.shape[:axis], array.shape[axis] // block, block, *array.shape[axis + 1 :]]
        scale = np.abs(array.reshape(cut)).max(axis + 1) / LARGEST[dtype]
        codes = (array.reshape(cut) / np.expand_dims(scale, axis + 1)).reshape(array.shape)
    else:
        others = tuple(i for i in range(array.ndim) if i != axis)
        scale = np.abs(array).max(others) / LARGEST[dtype]
        codes = array / np.expand_dims(scale, others)
    codes = codes if dtype in (E4M3, FP4) else np.rint(codes)
    constants = [constant("w_q", codes.astype(dtype)), constant("w_s", scale, scale_dtype)]
    if zero and not block:
        constants.append(constant("w_z", np.zeros(scale.shape), dtype))
    attributes = {"axis": axis, "block_size": block} if block else {"axis": axis}
    return [node("DequantizeLinear", [c.name for c in constants], "w_dq", "w_DQ", **attributes)], constants


def conv(activation=None, weights=None, *, extra=(), constants=(), inputs=None, bias="b", opset=21, domains=()):
    """One 3x3 convolution 16 -> 32 named `conv`. activation, weights: (nodes, constants) that make `x_dq`, `w_dq`; None: floats."""
    a_nodes, a_constants = activation or ([], [])
    w_nodes, w_constants = weights or ([], [constant("w_dq", rng().normal(size=(32, 16, 3, 3)), np.float32)])
    x = "x_dq" if activation else "x"
    product = node("Conv", [x, "w_dq", bias], "y", "conv", pads=[1] * 4)
    return network(
        [*a_nodes, *w_nodes, *extra, product], {"x": (FLOAT, [2, 16, 8, 8]), **(inputs or {})}, {"y": (FLOAT, [2, 32, 8, 8])},
        [*a_constants, *w_constants, constant("b", np.ones(32), np.float32), *constants], opset, domains,
    )  # fmt: skip


def conv_weight(**options):
    return weight(rng().normal(size=(32, 16, 3, 3)), **options)


def matmul(activation=None, weights=None, *, k=64, n=32, kind=FLOAT, lead=(4,), opset=21):
    """One product [*, k] x [k, n] named `mm`; as `conv`."""
    a_nodes, a_constants = activation or ([], [])
    dtype = {FLOAT: np.float32, HALF: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}[kind]
    w_nodes, w_constants = weights or ([], [constant("w_dq", rng().normal(size=(k, n)), dtype)])
    product = node("MatMul", ["x_dq" if activation else "x", "w_dq"], "y", "mm")
    return network([*a_nodes, *w_nodes, product], {"x": (kind, [*lead, k])}, {"y": (kind, [*lead, n])}, [*a_constants, *w_constants], opset)


def matmul_weight(k=64, n=32, axis=1, **options):
    return weight(rng().normal(size=(k, n)), axis=axis, **options)


def single(op, *, inputs=("x",), kind=FLOAT, out=FLOAT, shape=(2, 64), constants=(), domain="", **attributes):
    """One operator from x to y."""
    return network(
        [node(op, list(inputs), "y", "n", domain=domain, **attributes)], {"x": (kind, list(shape))}, {"y": (out, list(shape))}, list(constants),
        domains=((domain, 1),) if domain else (),
    )  # fmt: skip


def computed_scale(op, constants=(), inputs=None, source="s0", **attributes):
    """A convolution whose input scale `x_s` comes out of an operator."""
    (q, dq), (_, zero) = pair()
    return conv(([node(op, source.split(), "x_s", "scale", **attributes), q, dq], [zero]), conv_weight(), constants=constants, inputs=inputs)


def branches(then_nodes, then_constants=()):
    """An If whose branches are [2, 64] -> [2, 64]."""
    out = [helper.make_tensor_value_info("t", FLOAT, [2, 64])]
    then = helper.make_graph(then_nodes, "then", [], out, list(then_constants))
    other = helper.make_graph([node("Neg", ["x"], "e", "neg")], "else", [], [helper.make_tensor_value_info("e", FLOAT, [2, 64])])
    return network(
        [node("If", ["c"], "y", "if", then_branch=then, else_branch=other)],
        {"x": (FLOAT, [2, 64]), "c": (TensorProto.BOOL, [])},
        {"y": (FLOAT, [2, 64])},
        [],
    )


def loop(nodes, constants=()):
    """Four turns of `nodes`, which make `v2` from `v`, [2, 64]."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["go"], "go_on", "go"), *nodes], "body", [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("v", FLOAT, [2, 64])],
        [info("go_on", TensorProto.BOOL, []), info("v2", FLOAT, [2, 64])],
    )  # fmt: skip
    turns = [constant("n", np.int64(4)), constant("c", np.array(True))]
    return network([node("Loop", ["n", "c", "x"], "y", "loop", body=body)], {"x": (FLOAT, [2, 64])}, {"y": (FLOAT, [2, 64])}, [*turns, *constants])


def concat(first, second):
    """Two dequantized tensors of these scales, joined, convolved."""
    nodes, constants = [], []
    for name, scale in (("a", first), ("b", second)):
        n, c = pair(x=name, scale=scale)
        nodes, constants = nodes + n, constants + c
    w_nodes, w_constants = conv_weight()
    nodes += [*w_nodes, node("Concat", ["a_dq", "b_dq"], "j", "cat", axis=1), node("Conv", ["j", "w_dq"], "y", "conv", pads=[1] * 4)]
    return network(nodes, {"a": (FLOAT, [2, 8, 8, 8]), "b": (FLOAT, [2, 8, 8, 8])}, {"y": (FLOAT, [2, 32, 8, 8])}, constants + w_constants)


def transposed_conv():
    a, c = pair()
    w, d = weight(rng().normal(size=(16, 32, 2, 2)), axis=1)
    return network(
        [*a, *w, node("ConvTranspose", ["x_dq", "w_dq"], "y", "up", strides=[2, 2])],
        {"x": (FLOAT, [2, 16, 8, 8])},
        {"y": (FLOAT, [2, 32, 16, 16])},
        c + d,
    )


def products_of_activations():
    """Attention's kind of product: both sides quantized at run time."""
    nodes, constants = [], []
    for name in "ab":
        n, c = pair(x=name)
        nodes, constants = nodes + n, constants + c
    nodes.append(node("MatMul", ["a_dq", "b_dq"], "y", "mm"))
    return network(nodes, {"a": (FLOAT, [2, 4, 64]), "b": (FLOAT, [2, 64, 8])}, {"y": (FLOAT, [2, 4, 8])}, constants)


def stored_transposed():
    """A weight stored [N, K], dequantized along N, then transposed."""
    a, c = pair()
    w, d = weight(rng().normal(size=(32, 64)), axis=0)
    nodes = [*a, *w, node("Transpose", ["w_dq"], "wt", "turn", perm=[1, 0]), node("MatMul", ["x_dq", "wt"], "y", "mm")]
    return network(nodes, {"x": (FLOAT, [4, 64])}, {"y": (FLOAT, [4, 32])}, c + d)
