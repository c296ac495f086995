"""Symmetric scales and codes of the types that TensorRT computes with: int8, FP8 (E4M3FN) and int4. Zero points are always 0.

q = round_half_even(x / scale), clipped to the type's largest value; never a scale that is 0, NaN or infinite, which the parser refuses.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import BuildError, CalibrationError, Status
from edgegen.quantize.scales import SMALLEST_SCALE

__all__ = ["LARGEST", "encode_fp8", "pack_int4", "per_block", "per_channel", "per_tensor"]

LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}
"""The largest value of each type that is used; -128 and -8 are left out, so that the codes are symmetric."""

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def per_tensor(low: float, high: float, precision: str) -> np.float32:
    """The scale of a tensor that was seen in [low, high]. Raises CalibrationError if the range is not finite or is inverted."""
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise CalibrationError(f"a range of [{low}, {high}] cannot be quantized; expected finite numbers in order", Status.NONFINITE)
    return np.float32(min(max(max(-low, high) / LARGEST[precision], SMALLEST_SCALE), float(np.finfo(np.float32).max)))


def _scales(weight: Floats, axes: tuple[int, ...], precision: str) -> npt.NDArray[np.float64]:
    """float64 scales, reduced over `axes` (kept as 1) and rounded to float32."""
    if not np.isfinite(weight).all():
        raise CalibrationError("a weight holds NaN or infinity and cannot be quantized", Status.NONFINITE)
    largest = np.abs(weight).max(axis=axes, keepdims=True).astype(np.float64)
    scales: npt.NDArray[np.float64] = np.maximum(largest / LARGEST[precision], SMALLEST_SCALE).astype(np.float32).astype(np.float64)
    return scales


def _codes(scaled: npt.NDArray[np.float64], precision: str) -> npt.NDArray[Any]:
    if precision == "fp8":
        return encode_fp8(scaled)
    return np.clip(np.rint(scaled), -LARGEST[precision], LARGEST[precision]).astype(np.int8)


def per_channel(weight: Floats, axis: int, precision: str) -> tuple[npt.NDArray[Any], Floats]:
    """(codes, float32 scale per channel). weight: float32, any rank; axis: its output channels. Codes: int8, or uint8 bytes of FP8.

    Raises CalibrationError on NaN or infinity.
    """
    scale = _scales(weight, tuple(i for i in range(weight.ndim) if i != axis), precision)
    return _codes(weight.astype(np.float64) / scale, precision), scale.astype(np.float32).ravel()


def per_block(weight: Floats, axis: int, block: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """(int4 codes -7 .. 7 in int8, float32 scale per block). weight: [a, b]; axis: the one that is cut into blocks, a multiple of `block` long.

    Raises BuildError if it is not; CalibrationError on NaN or infinity.
    """
    if weight.ndim != 2 or weight.shape[axis] % block:
        raise BuildError(f"blocks of {block} along axis {axis} do not fit a weight of shape {list(weight.shape)}")
    cut = (weight.shape[0] // block, block, weight.shape[1]) if axis == 0 else (weight.shape[0], weight.shape[1] // block, block)
    blocks = weight.reshape(cut)
    scale = _scales(blocks, (axis + 1,), "int4")
    return _codes(blocks.astype(np.float64) / scale, "int4").reshape(weight.shape), scale.astype(np.float32).squeeze(axis + 1)


def pack_int4(codes: npt.NDArray[np.int8]) -> bytes:
    """ONNX's packing of int4: two to a byte, the first in the low half; an odd last one alone."""
    nibbles = (codes.ravel() & 0x0F).astype(np.uint8)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()


def _fp8_values() -> npt.NDArray[np.float64]:
    """The 127 values of E4M3FN from 0 to 448, by code: 3 bits of fraction, exponent bias 7, subnormals below 2^-6."""
    codes = np.arange(127)
    exponent, fraction = codes >> 3, codes & 7
    return np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10.0))


def encode_fp8(values: npt.NDArray[np.float64]) -> Bytes:
    """E4M3FN bytes: to nearest, ties to even, saturating at 448."""
    table = _fp8_values()
    middle = (table[1:] + table[:-1]) / 2
    magnitude = np.abs(values)
    code = np.searchsorted(middle, magnitude, side="left")
    tie = (code < len(middle)) & (magnitude == middle[np.minimum(code, len(middle) - 1)]) & (code % 2 == 1)
    codes: Bytes = ((code + tie) | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)
    return codes
