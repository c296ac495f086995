"""Symmetric scales of activations (int8, FP8 E4M3FN) and packed int4, as TensorRT takes them. Zero points are always 0.

q = round(x / scale), clipped to the type's largest value; never a scale that is 0, NaN or infinite, which the parser refuses.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgegen.quantize.fp8 import LARGEST_FP8
from edgegen.quantize.scales import symmetric

__all__ = ["LARGEST", "pack_int4", "per_tensor"]

LARGEST = {"int8": 127.0, "fp8": LARGEST_FP8}
"""The largest value that activations of each type get; -128 is left out, so that the codes are symmetric."""


def per_tensor(low: float, high: float, precision: str) -> np.float32:
    """The scale of a tensor that was seen in [low, high]. Raises CalibrationError if the range is not finite or is inverted."""
    return symmetric(low, high, LARGEST[precision])


def pack_int4(codes: npt.NDArray[np.int8]) -> bytes:
    """ONNX's packing of int4: two to a byte, the first in the low half; an odd last one alone."""
    nibbles = (codes.ravel() & 0x0F).astype(np.uint8)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()
