"""Weights stored in fewer bits than they are computed with, as ordinary nodes that ONNX Runtime folds into the weight when it loads the network.

(A DequantizeLinear would not be folded: it would run in every call.) Only operators of opset 13 are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import BuildError, nearest
from edgegen.quantize.fp8 import LARGEST_FP8, encode_fp8, fp8_values
from edgegen.quantize.rounding import Codes
from edgegen.quantize.scales import SMALLEST_SCALE

if TYPE_CHECKING:
    import onnx

__all__ = ["FLOATS", "Stored", "store_codes", "store_float"]

FLOATS = ("float16", "float8")
"""Float types to store in; float8 is E4M3FN with a scale per output channel. (bfloat16 is as large as float16 and less exact.)"""
_FLOAT, _INT8, _INT32 = 1, 3, 6
_NORMAL_HALF = 2.0**-14


class Stored:
    """Nodes and constants that make the tensor `output`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.output = ""

    def constant(self, suffix: str, value: Any) -> str:
        """Add a constant; returns its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value), f"{self.name}_{suffix}"))
        return self.constants[-1].name

    def node(self, op: str, inputs: Sequence[str], suffix: str, **attributes: Any) -> str:
        """Add a node; returns its output, which is `output` from now on."""
        from onnx import helper

        self.output = f"{self.name}_{suffix}"
        self.nodes.append(helper.make_node(op, list(inputs), [self.output], self.output, **attributes))
        return self.output


def store_float(name: str, weight: npt.NDArray[np.float32], kind: str, axis: int) -> Stored:
    """`weight` rounded to a float type of `FLOATS`. axis: of output channels.

    Raises BuildError for an unknown type, and for values beyond float16.
    """
    from onnx import numpy_helper

    if kind not in FLOATS:
        raise BuildError(f"no storage type {kind!r}: {nearest(kind, FLOATS)}")
    made = Stored(name)
    if kind == "float16":
        if float(np.abs(weight).max(initial=0.0)) > float(np.finfo(np.float16).max):
            raise BuildError(f"weight {name!r} reaches {float(np.abs(weight).max()):g}, beyond float16; name it in quantization.keep")
        made.node("Cast", [made.constant("f16", weight.astype(np.float16))], "f32", to=_FLOAT)
        return made
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    largest = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis)).reshape(shape)
    scale = np.maximum(largest / LARGEST_FP8, np.float32(SMALLEST_SCALE)).astype(np.float32)
    codes = made.constant("f8", encode_fp8(weight.astype(np.float64) / scale))
    # float8 is no type that components may hold: its bytes look their values up
    index = made.node("Cast", [codes], "index", to=_INT32)
    table = numpy_helper.from_array(fp8_values().astype(np.float32), "float8_values")
    made.constants.append(table)  # one for all weights
    values = made.node("Gather", [table.name, index], "f32", axis=0)
    made.node("Mul", [values, made.constant("scale", scale)], "w")
    return made


def _scales(made: Stored, scale: npt.NDArray[np.float32]) -> str:
    """Block scales: in float16 where that keeps 11 bits of each."""
    if scale.size and float(scale.min()) >= _NORMAL_HALF and float(scale.max()) <= float(np.finfo(np.float16).max):
        return made.node("Cast", [made.constant("scale", scale.astype(np.float16))], "scale32", to=_FLOAT)
    return made.constant("scale", scale)


def store_codes(name: str, codes: Codes, *, as_int8: bool = False) -> Stored:
    """A weight of integer codes, decoded to float32 in its own shape.

    as_int8: to an int8 weight with one scale per output channel, and a DequantizeLinear of it: what int8 kernels take. Codes of 8 bits per
    channel are so already; of others, each is rounded to the nearest of its channel's 255 values.
    """
    made = Stored(name)
    shape, axis = codes.codes.shape, codes.axis
    channels = shape[axis]
    across = [-1 if i == axis else 1 for i in range(len(shape))]
    if as_int8:
        if codes.bits == 8 and not codes.block:
            whole, scale = made.constant("q", codes.codes), codes.scale
        else:
            values = codes.values()
            rest = tuple(i for i in range(values.ndim) if i != axis)
            scale = np.maximum(np.abs(values).max(axis=rest) / 127.0, SMALLEST_SCALE).astype(np.float32)
            decoded = _decoded(made, codes)
            divided = made.node("Div", [decoded, made.constant("step", scale.reshape(across))], "steps")
            whole = made.node("Cast", [made.node("Round", [divided], "rounded")], "q", to=_INT8)
        zeros = made.constant("zero_point", np.zeros(channels, np.int8))
        made.node("DequantizeLinear", [whole, made.constant("channel_scale", scale), zeros], "dq", axis=axis)
        return made
    made.output = _decoded(made, codes)
    return made


def _decoded(made: Stored, codes: Codes) -> str:
    """The float32 weight of codes."""
    shape, axis = codes.codes.shape, codes.axis
    across = [-1 if i == axis else 1 for i in range(len(shape))]
    if codes.bits == 8 and not codes.block:
        value = made.node("Cast", [made.constant("q8", codes.codes)], "f32", to=_FLOAT)
        return made.node("Mul", [value, made.constant("scale", codes.scale.reshape(across))], "w")
    moved = np.moveaxis(codes.codes, axis, 0)
    channels, k = len(moved), math.prod(moved.shape[1:])
    block = codes.block or k
    blocks = -(-k // block)
    rows = np.zeros((channels, blocks * block), np.int8)
    rows[:, :k] = moved.reshape(channels, k)
    if codes.bits == 8:
        value = made.constant("q8", rows)
        offset = None
    else:
        value, offset = _nibbles(made, rows.ravel()), 8.0
    value = made.node("Cast", [value], "f32", to=_FLOAT)
    if offset is not None:
        value = made.node("Sub", [value, made.constant("offset", np.float32(offset))], "signed")
    value = made.node("Reshape", [value, made.constant("blocks", np.array([channels, blocks, block], np.int64))], "in_blocks")
    value = made.node("Mul", [value, _scales(made, codes.scale.reshape(channels, blocks, 1))], "scaled")
    if blocks * block != k:
        value = made.node("Reshape", [value, made.constant("padded", np.array([channels, blocks * block], np.int64))], "rows")
        bounds = [made.constant(n, np.array([v], np.int64)) for n, v in (("start", 0), ("stop", k), ("axis", 1))]
        value = made.node("Slice", [value, *bounds], "unpadded")
    value = made.node("Reshape", [value, made.constant("shape", np.array(moved.shape, np.int64))], "w")
    if axis != 0:
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
        value = made.node("Transpose", [value], "transposed", perm=order)
    return value


def _nibbles(made: Stored, codes: npt.NDArray[np.int8]) -> str:
    """Codes -8 .. 7 as nibbles (code + 8), two to a byte, the first in the low half; unpacked: uint8 in their order, an even number of them."""
    nibbles = (codes + 8).astype(np.uint8)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(8))
    packed = made.constant("q4", (nibbles[0::2] | (nibbles[1::2] << 4)).reshape(-1, 1))
    four = made.constant("four", np.array([4], np.uint8))
    high = made.node("BitShift", [packed, four], "high", direction="RIGHT")
    low = made.node("BitShift", [made.node("BitShift", [packed, four], "up", direction="LEFT"), four], "low", direction="RIGHT")
    both = made.node("Concat", [low, high], "both", axis=1)
    flat = made.node("Reshape", [both, made.constant("flat", np.array([-1], np.int64))], "nibbles")
    if len(codes) % 2:
        bounds = [made.constant(n, np.array([v], np.int64)) for n, v in (("first", 0), ("count", len(codes)))]
        flat = made.node("Slice", [flat, *bounds], "even")
    return flat
