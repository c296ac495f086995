"""Scales and zero points of int8 arithmetic: q = round_half_even(x / scale) + zero_point. Never zero, NaN or infinite."""

from __future__ import annotations

import math

import numpy as np

from edgegen.errors import CalibrationError, Status

__all__ = ["SMALLEST_SCALE", "affine_uint8", "symmetric"]

SMALLEST_SCALE = 1e-12
"""A range narrower than this is a constant: it gets this scale, so that nothing divides by zero."""


def affine_uint8(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """(scale, zero_point) of asymmetric uint8 over [low, high] widened to hold 0, which is then exact.

    Raises CalibrationError if the range is not finite or is inverted.
    """
    _check(low, high)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = _usable(high / 255.0 - low / 255.0)
    return scale, np.uint8(min(max(round(-low / float(scale)), 0), 255))


def symmetric(low: float, high: float, largest: float) -> np.float32:
    """The scale of a symmetric type for a tensor seen in [low, high]. largest: the type's largest code, 127 of int8 without -128.

    Raises CalibrationError as `affine_uint8` does.
    """
    _check(low, high)
    return _usable(max(-low, high) / largest)


def _check(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise CalibrationError(f"a range of [{low}, {high}] cannot be quantized; expected finite numbers in order", Status.NONFINITE)


def _usable(scale: float) -> np.float32:
    return np.float32(min(max(scale, SMALLEST_SCALE), float(np.finfo(np.float32).max)))
