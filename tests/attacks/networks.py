"""Networks that must not reach an engine: changes to the ONNX model of a sound bundle, each with words of the error that it gets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgegen.bundle import Bundle, bundle_bytes, open_bundle

__all__ = ["ENCODINGS", "NETWORKS", "QUANTIZED", "with_encoding", "with_network"]


def with_network(path, change: Callable[[onnx.ModelProto], object]) -> bytes:
    """The bytes of the tiny bundle with the model of its float variant changed."""
    bundle: Bundle = open_bundle(path)
    model = onnx.load_model_from_string(bundle.member("denoiser.float32.onnx"))
    change(model)
    return with_encoding(path, lambda m: m.SerializeToString(), model)


def with_encoding(path, encode: Callable[[onnx.ModelProto], bytes], model: onnx.ModelProto | None = None) -> bytes:
    """The same with the model's bytes written by `encode`."""
    bundle: Bundle = open_bundle(path)
    model = model or onnx.load_model_from_string(bundle.member("denoiser.float32.onnx"))
    members = {name: bundle.member(name) for name in bundle.table} | {"denoiser.float32.onnx": encode(model)}
    return bundle_bytes(bundle.manifest, members)


def named(model, name):
    return next(t for t in model.graph.initializer if t.name == name)


def moved(model):
    """The constant that lies in the weights."""
    return next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)


def external(model, location, tensor=None):
    tensor = tensor or named(model, "b1")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "128")):
        tensor.external_data.add(key=key, value=value)


def entry(key, value):
    def change(model):
        next(e for e in moved(model).external_data if e.key == key).value = value

    return change


def reordered(model):
    entries = moved(model).external_data
    first, second = onnx.StringStringEntryProto(), onnx.StringStringEntryProto()
    first.CopyFrom(entries[0])
    second.CopyFrom(entries[1])
    entries[0].CopyFrom(second)
    entries[1].CopyFrom(first)


def listed(model):
    tensor = named(model, "b1")
    tensor.float_data.extend(np.frombuffer(tensor.raw_data, np.float32))
    tensor.ClearField("raw_data")


def constant_node(model, **fields):
    value = helper.make_tensor("", TensorProto.FLOAT, [2], np.zeros(2, np.float32).tobytes(), raw=True)
    for key, item in fields.items():
        setattr(value, key, item)
    model.graph.node.add(op_type="Constant", output=["spare"]).attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(value)
    return model.graph.node[-1].attribute[0].t


def external_attribute(model):
    tensor = constant_node(model)
    external(model, "denoiser.float32.weights", tensor)


def attribute(kind, fill):
    def change(model):
        a = model.graph.node[0].attribute.add(name="extra", type=kind)
        fill(a)

    return change


def doubled(model):
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])


def value(side, index=0):
    return lambda model: getattr(model.graph, side)[index].type.tensor_type


def set_in(getter, field, item):
    return lambda model: setattr(getter(model), field, item)


def dim(side, axis):
    return lambda model: getattr(model.graph, side)[0].type.tensor_type.shape.dim[axis]


def bits(change=lambda fields: None, **tensors):
    """A MatMulNBits of K = 40, N = 3, 4 bits, blocks of 32, sound unless changed."""
    fields = {"K": 40, "N": 3, "bits": 4, "block_size": 32}
    change(fields)
    made = {
        "B": np.zeros((3, 2, 16), np.uint8), "scales": np.ones(6, np.float32), "zeros": np.zeros(3, np.uint8), "bias": np.zeros(3, np.float32),
    } | tensors  # fmt: skip

    def build(model):
        for name, item in made.items():
            if item is not None:
                model.graph.initializer.append(numpy_helper.from_array(item, f"q.{name}"))
        inputs = [
            "q.x",
            *(f"q.{n}" if made[n] is not None else "" for n in ("B", "scales", "zeros")),
            "",
            "q.bias" if made["bias"] is not None else "",
        ]
        model.graph.node.append(helper.make_node("MatMulNBits", inputs, ["q.y"], domain="com.microsoft", **fields))

    return build


def many(**changes):
    return lambda fields: fields.update(changes)


def nothing_outside(model):
    tensor = model.graph.initializer.add(name="nothing", data_type=TensorProto.FLOAT, dims=[0])
    external(model, "denoiser.float32.weights", tensor)
    tensor.external_data[2].value = "none"


def permuted(model):
    bits()(model)
    model.graph.node[-1].input[4] = "q.x"


def with_inputs(*inputs):
    def change(model):
        bits()(model)
        del model.graph.node[-1].input[:]
        model.graph.node[-1].input.extend(inputs)

    return change


def short(tensor, count=4):
    tensor.raw_data = tensor.raw_data[:-count]


def field_of(key, item):
    return lambda fields: fields.__setitem__(key, item)


QUANTIZED = bits()
"""Not an attack: what the checks of MatMulNBits let pass."""

NETWORKS = {
    "no graph": (lambda m: m.ClearField("graph"), "no nodes"),
    "no nodes": (lambda m: m.graph.ClearField("node"), "no nodes"),
    "no opset": (lambda m: m.ClearField("opset_import"), "no opset"),
    "external data elsewhere": (lambda m: external(m, "../../etc/passwd"), "expected a location, which is 'denoiser.float32.weights'"),
    "external data, absolute": (lambda m: external(m, "/etc/passwd"), "expected a location"),
    "external data in another member": (lambda m: external(m, "golden.0.float32.f32"), "expected a location"),
    "external data in memory": (lambda m: external(m, "*/_ORT_MEM_ADDR_/*"), "expected a location"),
    "external data without a name": (lambda m: external(m, ""), "expected a location"),
    "external attribute": (external_attribute, "lies in another file"),
    "external without entries": (lambda m: moved(m).ClearField("external_data"), "expected a location"),
    "external with an entry more": (lambda m: moved(m).external_data.add(key="checksum", value="0"), "expected a location"),
    "external in another order": (reordered, "expected a location"),
    "external data of a constant that is inside": (lambda m: moved(m).ClearField("data_location"), "lies in another file"),
    "external and inside": (lambda m: setattr(moved(m), "raw_data", bytes(4)), "lies in another file"),
    "offset negative": (entry("offset", "-64"), "decimal numbers"),
    "offset with a zero in front": (entry("offset", "00"), "decimal numbers"),
    "offset of 2^64": (entry("offset", str(2**64)), "decimal numbers"),
    "offset in hexadecimal": (entry("offset", "0x0"), "decimal numbers"),
    "offset of nothing": (entry("offset", ""), "decimal numbers"),
    "offset not a multiple of 64": (entry("offset", "4"), "expected"),
    "offset past the end": (entry("offset", str(2**40)), "expected"),
    "length past the end": (entry("length", str(2**62)), "expected"),
    "length short": (entry("length", "4"), "expected"),
    "constant short": (lambda m: short(named(m, "b1")), "bytes for shape"),
    "constant long": (lambda m: setattr(named(m, "b1"), "raw_data", bytes(132)), "bytes for shape"),
    "constant empty": (lambda m: named(m, "b1").ClearField("raw_data"), "bytes for shape"),
    "constant with a huge shape": (lambda m: named(m, "b1").dims.extend([2**40, 2**40]), "bytes for shape"),
    "constant with a shape that wraps": (lambda m: (named(m, "b1").ClearField("dims"), named(m, "b1").dims.extend([2**62 + 32, 4])), "bytes for shape"),
    "constant with a negative size": (lambda m: named(m, "b1").dims.insert(0, -1), "has the shape"),
    "constant with a negative size and none": (lambda m: (named(m, "b1").ClearField("raw_data"), named(m, "b1").ClearField("dims"), named(m, "b1").dims.extend([-1, 0])), "has the shape"),
    "external, of no bytes, its length no number": (nothing_outside, "decimal numbers"),
    "constant as a list": (listed, "list of numbers"),
    "constant with a list beside": (lambda m: named(m, "b1").int64_data.append(1), "list of numbers"),
    "constant of a segment": (lambda m: setattr(named(m, "b1").segment, "begin", 0), "list of numbers"),
    "constant of strings": (lambda m: (setattr(named(m, "b1"), "data_type", TensorProto.STRING), named(m, "b1").string_data.append(b"x")), "data type 8"),
    "constant of complex numbers": (lambda m: setattr(named(m, "b1"), "data_type", TensorProto.COMPLEX64), "data type 14"),
    "constant without a type": (lambda m: named(m, "b1").ClearField("data_type"), "data type 0"),
    "constant of an attribute short": (lambda m: short(constant_node(m)), "bytes for shape"),
    "constant of an attribute without a type": (lambda m: constant_node(m, data_type=0), "data type 0"),
    "two constants of one name": (doubled, "two constants of one name"),
    "sparse constant": (lambda m: m.graph.sparse_initializer.add(), "sparse constants"),
    "training information": (lambda m: m.training_info.add(), "training information"),
    "local function": (lambda m: m.functions.add(name="f", domain="local"), "model-local function"),
    "subgraph": (attribute(onnx.AttributeProto.GRAPH, lambda a: setattr(a.g, "name", "inner")), "holds a subgraph"),
    "subgraphs": (attribute(onnx.AttributeProto.GRAPHS, lambda a: a.graphs.add(name="inner")), "holds a subgraph"),
    "sparse attribute": (attribute(onnx.AttributeProto.SPARSE_TENSOR, lambda a: a.sparse_tensor.dims.append(1)), "holds a subgraph"),
    "sparse attributes": (attribute(onnx.AttributeProto.SPARSE_TENSORS, lambda a: a.sparse_tensors.add()), "holds a subgraph"),
    "list of tensors": (attribute(onnx.AttributeProto.TENSORS, lambda a: a.tensors.add()), "holds a subgraph"),
    "custom domain": (lambda m: setattr(m.graph.node[0], "domain", "evil"), "of the domain 'evil'"),
    "custom domain with a NUL": (lambda m: setattr(m.graph.node[0], "domain", "ai.onnx\0"), "of the domain"),
    "operator that reads files": (lambda m: (setattr(m.graph.node[0], "domain", "com.microsoft"), setattr(m.graph.node[0], "op_type", "EPContext")), "EPContext"),
    "operator that trusts its attributes": (lambda m: (setattr(m.graph.node[0], "domain", "com.microsoft"), setattr(m.graph.node[0], "op_type", "Attention")), "Attention"),
    "input renamed": (lambda m: setattr(m.graph.input[0], "name", "y"), "its inputs are"),
    "input missing": (lambda m: m.graph.input.pop(), "its inputs are"),
    "input twice": (lambda m: m.graph.input.add().CopyFrom(m.graph.input[0]), "its inputs are"),
    "input twice in place of another": (lambda m: m.graph.input[2].CopyFrom(m.graph.input[0]), "its inputs are"),
    "output renamed": (lambda m: setattr(m.graph.output[0], "name", "y"), "its outputs are"),
    "output too many": (lambda m: m.graph.output.add().CopyFrom(m.graph.input[0]), "its outputs are"),
    "input of another dtype": (set_in(value("input"), "elem_type", 11), "expected x: float32"),
    "input of an unknown dtype": (set_in(value("input"), "elem_type", 99), "expected x: float32"),
    "input that is no tensor": (lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent(), "expected x: float32"),
    "input of another size": (set_in(dim("input", 2), "dim_value", 9), "expected x: float32"),
    "input of another rank": (lambda m: m.graph.input[0].type.tensor_type.shape.dim.add(dim_value=1), "expected x: float32"),
    "input with a fixed batch": (set_in(dim("input", 0), "dim_value", 2), "expected x: float32"),
    "output of another size": (set_in(dim("output", 3), "dim_value", 9), "expected prediction: float32"),
    "MatMulNBits, N that wraps around": (bits(many(N=2**62 + 3, K=128), B=np.zeros(192, np.uint8), scales=np.ones(12, np.float32), zeros=None, bias=None), "MatMulNBits"),
    "MatMulNBits, K that wraps around": (bits(many(N=64, K=2**62 + 16, block_size=16), B=np.zeros(512, np.uint8), scales=np.ones(64, np.float32), zeros=None, bias=None), "MatMulNBits"),
    "MatMulNBits, 3 bits with weights that fit": (bits(field_of("bits", 3), B=np.zeros(72, np.uint8), zeros=None), "MatMulNBits"),
    "MatMulNBits, K too large": (bits(field_of("K", 4096)), "MatMulNBits"),
    "MatMulNBits, K 0": (bits(field_of("K", 0)), "MatMulNBits"),
    "MatMulNBits, K of 2^62": (bits(field_of("K", 2**62)), "MatMulNBits"),
    "MatMulNBits, N too large": (bits(field_of("N", 1000)), "MatMulNBits"),
    "MatMulNBits, N of 2^62": (bits(field_of("N", 2**62)), "MatMulNBits"),
    "MatMulNBits, 8 bits": (bits(field_of("bits", 8)), "MatMulNBits"),
    "MatMulNBits, 3 bits": (bits(field_of("bits", 3)), "MatMulNBits"),
    "MatMulNBits, blocks of 16": (bits(field_of("block_size", 16)), "MatMulNBits"),
    "MatMulNBits, blocks of 33": (bits(field_of("block_size", 33)), "MatMulNBits"),
    "MatMulNBits, blocks of 8": (bits(field_of("block_size", 8)), "MatMulNBits"),
    "MatMulNBits, blocks of 2^40": (bits(field_of("block_size", 2**40)), "MatMulNBits"),
    "MatMulNBits, B short": (bits(B=np.zeros((3, 2, 15), np.uint8)), "MatMulNBits"),
    "MatMulNBits, B of int8": (bits(B=np.zeros((3, 2, 16), np.int8)), "MatMulNBits"),
    "MatMulNBits, B no constant": (bits(B=None), "MatMulNBits"),
    "MatMulNBits, scales short": (bits(scales=np.ones(5, np.float32)), "MatMulNBits"),
    "MatMulNBits, scales of float64": (bits(scales=np.ones(6)), "MatMulNBits"),
    "MatMulNBits, zero points short": (bits(zeros=np.zeros(2, np.uint8)), "MatMulNBits"),
    "MatMulNBits, bias long": (bits(bias=np.zeros(4, np.float32)), "MatMulNBits"),
    "MatMulNBits, permuted": (permuted, "MatMulNBits"),
    "MatMulNBits, two inputs": (with_inputs("q.x", "q.B"), "MatMulNBits"),
    "MatMulNBits, seven inputs": (with_inputs("q.x", "q.B", "q.scales", "", "", "", "q.x"), "MatMulNBits"),
}  # fmt: skip


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, payload: bytes | int, wire: int | None = None) -> bytes:
    """A protobuf field: a number as a varint, bytes with their length."""
    if isinstance(payload, int):
        return varint(number << 3 | (wire or 0)) + varint(payload)
    return varint(number << 3 | (2 if wire is None else wire)) + (varint(len(payload)) if wire is None else b"") + payload


def whole(model, *, graph=b"", more=b""):
    """The model with bytes added to its graph and behind it."""
    inner = model.graph.SerializeToString() + graph
    light = onnx.ModelProto()
    light.CopyFrom(model)
    light.ClearField("graph")
    return light.SerializeToString() + field(7, inner) + more


def constant(*, dims: bytes = field(1, 2), name=b"added", data=bytes(8), more=b"") -> bytes:
    return field(5, dims + field(2, 1) + field(8, name) + field(9, data) + more)


ENCODINGS = {
    "an unknown field of the model": lambda m: whole(m, more=field(60, 1)),
    "a field number above 63": lambda m: whole(m, more=field(1000, 1)),
    "a second graph": lambda m: whole(m, more=field(7, b"")),
    "an unknown field of the graph": lambda m: whole(m, graph=field(30, b"")),
    "bytes of a wire type that is not used": lambda m: whole(m, more=varint(6 << 3 | 3) + varint(1) + b"x"),
    "a length that leads back": lambda m: whole(m, more=field(6, b"") + varint(6 << 3 | 2) + varint(2**64 - 13)),
    "a domain that is a number": lambda m: whole(m, graph=field(1, field(7, 5) + field(4, b"Relu"))),
    "a data type that is bytes behind a number": lambda m: whole(
        m, graph=field(5, field(1, 2) + field(2, b"\1") + field(8, b"added") + field(9, bytes(2)))
    ),
    "a group": lambda m: whole(m, more=varint(5 << 3 | 3) + varint(5 << 3 | 4)),
    "a tag that is cut": lambda m: whole(m, more=b"\xba"),
    "a varint of eleven bytes": lambda m: whole(m, more=field(5, 0)[:1] + b"\xff" * 10 + b"\1"),
    "a length behind the end": lambda m: whole(m, more=varint(6 << 3 | 2) + varint(100) + b"x"),
    "a length of 2^63": lambda m: whole(m, more=varint(6 << 3 | 2) + varint(2**63) + b"x"),
    "eight bytes that are cut": lambda m: whole(m, more=field(5, bytes(7), 1)),
    "four bytes that are cut": lambda m: whole(m, more=field(5, bytes(3), 5)),
    "a graph that is a number": lambda m: whole(m).replace(whole(m), field(1, 10) + field(8, b"") + field(7, 1)),
    "a data type that is bytes": lambda m: whole(m, graph=field(5, field(1, 2) + field(2, b"\1") + field(8, b"added") + field(9, bytes(8)))),
    "a name twice": lambda m: whole(m, graph=constant(more=field(8, b"again"))),
    "bytes twice": lambda m: whole(m, graph=constant(more=field(9, bytes(8)))),
    "packed sizes that are cut": lambda m: whole(m, graph=constant(dims=field(1, b"\2\x81"), data=bytes(8))),
    "packed sizes of eleven bytes": lambda m: whole(m, graph=constant(dims=field(1, b"\x82" + b"\x80" * 10 + b"\0"), data=bytes(8))),
    "a node that is cut": lambda m: whole(m, graph=field(1, b"\x22\x50x")),
    "a data location that is none": lambda m: whole(m, graph=constant(more=field(14, 2))),
    "a data type of 2^32 + 1": lambda m: whole(m, graph=field(5, field(1, 2) + field(2, 2**32 + 1) + field(8, b"added") + field(9, bytes(8)))),
}
"""Encodings that protobuf libraries read in different ways, or that only the reader in C++ sees: it refuses them all."""
