"""FP8 (E4M3FN, Micikevicius et al. 2022): float64 to bytes, to nearest, ties to even, saturating at 448; and what bytes mean."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgegen.errors import CalibrationError, Status
from edgegen.quantize.scales import SMALLEST_SCALE

__all__ = ["LARGEST_FP8", "encode_fp8", "fp8_values", "fp8_weight"]

LARGEST_FP8 = 448.0
_NAN = 127


def fp8_values() -> npt.NDArray[np.float64]:
    """The value of each byte, float64[256]: sign, exponent of bias 7, 3 bits of fraction, subnormals below 2^-6; 127 and 255 are NaN, here 0."""
    codes = np.arange(_NAN)
    exponent, fraction = codes >> 3, codes & 7
    positive = np.append(np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10.0)), 0.0)
    return np.concatenate([positive, -positive])


def encode_fp8(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The bytes of finite values, of their shape."""
    table = fp8_values()[:_NAN]
    middle = (table[1:] + table[:-1]) / 2
    magnitude = np.abs(values)
    code = np.searchsorted(middle, magnitude, side="left")
    tie = (code < len(middle)) & (magnitude == middle[np.minimum(code, len(middle) - 1)]) & (code % 2 == 1)
    codes: npt.NDArray[np.uint8] = ((code + tie) | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)
    return codes


def fp8_weight(weight: npt.NDArray[np.float32], axis: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """(bytes of E4M3FN, float32 scale per channel). weight: float32, any rank; axis: its output channels. A dead channel gets the smallest scale.

    Raises CalibrationError on NaN or infinity.
    """
    if not np.isfinite(weight).all():
        raise CalibrationError("a weight holds NaN or infinity and cannot be quantized", Status.NONFINITE)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True).astype(np.float64)
    scale = np.maximum(largest / LARGEST_FP8, SMALLEST_SCALE).astype(np.float32)
    return encode_fp8(weight.astype(np.float64) / scale), scale.ravel()
