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
from edgegen.quantize.fp8 import fp8_values, fp8_weight
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
    """Nodes and constants that make the tensor `output`. number: keeps the names, which are short, apart from those of other weights."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.output = ""

    def constant(self, value: Any) -> str:
        """Add a constant; returns its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value), f"w{self.number}.{len(self.constants)}"))
        return self.constants[-1].name

    def integers(self, *values: int) -> str:
        """Add a list of whole numbers, which all weights share."""
        from onnx import numpy_helper

        name = f"i.{'.'.join(map(str, values))}"
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node; returns its output, which is `output` from now on."""
        from onnx import helper

        self.output = f"w{self.number}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [self.output], **attributes))
        return self.output


def store_float(number: int, name: str, weight: npt.NDArray[np.float32], kind: str, axis: int) -> Stored:
    """The weight called `name` rounded to a float type of `FLOATS`. axis: of output channels.

    Raises BuildError for an unknown type, and for values beyond float16.
    """
    from onnx import numpy_helper

    if kind not in FLOATS:
        raise BuildError(f"no storage type {kind!r}: {nearest(kind, FLOATS)}")
    made = Stored(number)
    if kind == "float16":
        if float(np.abs(weight).max(initial=0.0)) > float(np.finfo(np.float16).max):
            raise BuildError(f"weight {name!r} reaches {float(np.abs(weight).max()):g}, beyond float16; name it in quantization.keep")
        made.node("Cast", [made.constant(weight.astype(np.float16))], to=_FLOAT)
        return made
    values, scale = fp8_weight(weight, axis)
    codes = made.constant(values)
    # float8 is no type that components may hold: its bytes look their values up
    index = made.node("Cast", [codes], to=_INT32)
    table = numpy_helper.from_array(fp8_values().astype(np.float32), "float8")
    made.constants.append(table)  # one for all weights
    across = [-1 if i == axis else 1 for i in range(weight.ndim)]
    made.node("Mul", [made.node("Gather", [table.name, index], axis=0), made.constant(scale.reshape(across))])
    return made


def _scales(made: Stored, scale: npt.NDArray[np.float32]) -> str:
    """Block scales: in float16 where that keeps 11 bits of each."""
    if scale.size and float(scale.min()) >= _NORMAL_HALF and float(scale.max()) <= float(np.finfo(np.float16).max):
        return made.node("Cast", [made.constant(scale.astype(np.float16))], to=_FLOAT)
    return made.constant(scale)


def store_codes(number: int, codes: Codes, *, as_int8: bool = False) -> Stored:
    """A weight of integer codes, decoded to float32 in its own shape.

    as_int8: to an int8 weight with one scale per output channel, and a DequantizeLinear of it: what int8 kernels take. Codes of 8 bits per
    channel are so already; of others, each is rounded to the nearest of its channel's 255 values.
    """
    made = Stored(number)
    if not as_int8:
        made.output = _decoded(made, codes)
        return made
    axis = codes.axis
    if codes.bits == 8 and not codes.block:
        whole, scale = made.constant(codes.codes), codes.scale
    else:
        values = codes.values()
        rest = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.maximum(np.abs(values).max(axis=rest) / 127.0, SMALLEST_SCALE).astype(np.float32)
        across = [-1 if i == axis else 1 for i in range(values.ndim)]
        divided = made.node("Div", [_decoded(made, codes), made.constant(scale.reshape(across))])
        whole = made.node("Cast", [made.node("Round", [divided])], to=_INT8)
    zeros = made.constant(np.zeros(len(scale), np.int8))
    made.node("DequantizeLinear", [whole, made.constant(scale), zeros], axis=axis)
    return made


def _decoded(made: Stored, codes: Codes) -> str:
    """The float32 weight of codes."""
    shape, axis = codes.codes.shape, codes.axis
    if codes.bits == 8 and not codes.block:
        across = [-1 if i == axis else 1 for i in range(len(shape))]
        value = made.node("Cast", [made.constant(codes.codes)], to=_FLOAT)
        return made.node("Mul", [value, made.constant(codes.scale.reshape(across))])
    moved = np.moveaxis(codes.codes, axis, 0)
    channels, k = len(moved), math.prod(moved.shape[1:])
    block = codes.block or k
    blocks = -(-k // block)
    rows = np.zeros((channels, blocks * block), np.int8)
    rows[:, :k] = moved.reshape(channels, k)
    value = made.constant(rows) if codes.bits == 8 else _nibbles(made, rows.ravel())
    value = made.node("Cast", [value], to=_FLOAT)
    if codes.bits != 8:
        value = made.node("Sub", [value, made.constant(np.float32(8.0))])
    value = made.node("Reshape", [value, made.integers(channels, blocks, block)])
    value = made.node("Mul", [value, _scales(made, codes.scale.reshape(channels, blocks, 1))])
    if blocks * block != k:
        value = made.node("Reshape", [value, made.integers(channels, blocks * block)])
        value = made.node("Slice", [value, made.integers(0), made.integers(k), made.integers(1)])
    value = made.node("Reshape", [value, made.integers(*moved.shape)])
    if axis != 0:
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
        value = made.node("Transpose", [value], perm=order)
    return value


def _nibbles(made: Stored, codes: npt.NDArray[np.int8]) -> str:
    """Codes -8 .. 7 as nibbles (code + 8), two to a byte, the first in the low half; unpacked: uint8 in their order."""
    nibbles = (codes + 8).astype(np.uint8)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(8))
    packed = made.constant((nibbles[0::2] | (nibbles[1::2] << 4)).reshape(-1, 1))
    four = made.constant(np.array([4], np.uint8))
    high = made.node("BitShift", [packed, four], direction="RIGHT")
    low = made.node("BitShift", [made.node("BitShift", [packed, four], direction="LEFT"), four], direction="RIGHT")
    flat = made.node("Reshape", [made.node("Concat", [low, high], axis=1), made.integers(-1)])
    if len(codes) % 2:
        flat = made.node("Slice", [flat, made.integers(0), made.integers(len(codes))])
    return flat
