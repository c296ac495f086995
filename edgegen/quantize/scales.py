"""Scales and zero points of int8 arithmetic: q = round_half_even(x / scale) + zero_point. Never zero, NaN or infinite."""

from __future__ import annotations

import math

import numpy as np

from edgegen.errors import CalibrationError, Status

__all__ = ["SMALLEST_SCALE", "affine_uint8", "symmetric_int8"]

SMALLEST_SCALE = 1e-12
"""A range narrower than this is a constant: it gets this scale, so that nothing divides by zero."""


def affine_uint8(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """(scale, zero_point) of asymmetric uint8 over [low, high] widened to hold 0, which is then exact.

    Raises CalibrationError if the range is not finite or is inverted.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise CalibrationError(f"a range of [{low}, {high}] cannot be quantized; expected finite numbers in order", Status.NONFINITE)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(min(max((high / 255.0 - low / 255.0), SMALLEST_SCALE), float(np.finfo(np.float32).max)))
    return scale, np.uint8(min(max(round(-low / float(scale)), 0), 255))


def symmetric_int8(low: float, high: float) -> np.float32:
    """The scale of symmetric int8, -127 .. 127, for a tensor seen in [low, high]. Raises CalibrationError as `affine_uint8` does."""
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise CalibrationError(f"a range of [{low}, {high}] cannot be quantized; expected finite numbers in order", Status.NONFINITE)
    return np.float32(min(max(max(-low, high) / 127.0, SMALLEST_SCALE), float(np.finfo(np.float32).max)))
