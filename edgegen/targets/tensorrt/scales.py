"""Symmetric scales of activations (int8, FP8 E4M3FN), FP8 weights and packed int4, as TensorRT takes them. Zero points are always 0.

q = round(x / scale), clipped to the type's largest value; never a scale that is 0, NaN or infinite, which the parser refuses.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgegen.errors import CalibrationError, Status
from edgegen.quantize.fp8 import LARGEST_FP8, encode_fp8
from edgegen.quantize.scales import SMALLEST_SCALE

__all__ = ["LARGEST", "fp8_weight", "pack_int4", "per_tensor"]

LARGEST = {"int8": 127.0, "fp8": LARGEST_FP8}
"""The largest value that activations of each type get; -128 is left out, so that the codes are symmetric."""

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def per_tensor(low: float, high: float, precision: str) -> np.float32:
    """The scale of a tensor that was seen in [low, high]. Raises CalibrationError if the range is not finite or is inverted."""
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise CalibrationError(f"a range of [{low}, {high}] cannot be quantized; expected finite numbers in order", Status.NONFINITE)
    return np.float32(min(max(max(-low, high) / LARGEST[precision], SMALLEST_SCALE), float(np.finfo(np.float32).max)))


def fp8_weight(weight: Floats, axis: int) -> tuple[Bytes, Floats]:
    """(bytes of E4M3FN, float32 scale per channel). weight: float32, any rank; axis: its output channels. A dead channel gets the smallest scale.

    Raises CalibrationError on NaN or infinity.
    """
    if not np.isfinite(weight).all():
        raise CalibrationError("a weight holds NaN or infinity and cannot be quantized", Status.NONFINITE)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True).astype(np.float64)
    scale = np.maximum(largest / LARGEST_FP8, SMALLEST_SCALE).astype(np.float32)
    return encode_fp8(weight.astype(np.float64) / scale), scale.ravel()


def pack_int4(codes: npt.NDArray[np.int8]) -> bytes:
    """ONNX's packing of int4: two to a byte, the first in the low half; an odd last one alone."""
    nibbles = (codes.ravel() & 0x0F).astype(np.uint8)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()
