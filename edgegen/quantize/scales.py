"""Scales and zero points of int8 arithmetic: q = round_half_even(x / scale) + zero_point. Never zero, NaN or infinite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import CalibrationError, Status

__all__ = ["SMALLEST_SCALE", "affine_uint8", "bias_int32", "per_channel_int8"]

SMALLEST_SCALE = 1e-12
"""A range narrower than this is a constant: it gets this scale, so that nothing divides by zero."""

Floats = npt.NDArray[np.float32]


def affine_uint8(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """(scale, zero_point) of asymmetric uint8 over [low, high] widened to hold 0, which is then exact.

    Raises CalibrationError if the range is not finite or is inverted.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise CalibrationError(f"a range of [{low}, {high}] cannot be quantized; expected finite numbers in order", Status.NONFINITE)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(min(max((high / 255.0 - low / 255.0), SMALLEST_SCALE), float(np.finfo(np.float32).max)))
    return scale, np.uint8(min(max(round(-low / float(scale)), 0), 255))


def per_channel_int8(weight: Floats, axis: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """(int8 weight, float32 scale per channel) symmetric, -127 .. 127. A dead channel gets the smallest scale.

    weight: float32, any rank; axis: its output channels. Raises CalibrationError on NaN or infinity.
    """
    if not np.isfinite(weight).all():
        raise CalibrationError("a weight holds NaN or infinity and cannot be quantized", Status.NONFINITE)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others).astype(np.float64) / 127.0, SMALLEST_SCALE).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    quantized = np.rint(weight.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return np.clip(quantized, -127, 127).astype(np.int8), scale


def bias_int32(bias: Floats, input_scale: np.float32, weight_scale: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
    """(int32 bias, float32 scales): the accumulator's own scale, input_scale * weight_scale, clipped to int32."""
    scale: Any = (np.float32(input_scale) * weight_scale).astype(np.float32)
    info = np.iinfo(np.int32)
    return np.clip(np.rint(bias.astype(np.float64) / np.maximum(scale.astype(np.float64), 1e-300)), info.min, info.max).astype(np.int32), scale
