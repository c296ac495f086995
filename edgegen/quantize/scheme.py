"""Precisions: what a quantized variant's weights and activations are."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SCHEMES", "Scheme"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """weight_bits: of integer weights, 0 for a float type, whose name is `storage`. activation_bits: 8, or 0 where activations stay float.

    kept_bits: of the weights of layers that stay float, which are only stored so; 0: in float16.
    """

    weight_bits: int
    activation_bits: int
    storage: str = ""
    kept_bits: int = 8


SCHEMES = {
    "int8": Scheme(8, 8),
    "w4a8": Scheme(4, 8),
    "w8a16": Scheme(8, 0),
    "w4a16": Scheme(4, 0),
    "float16": Scheme(0, 0, "float16"),
    "float8": Scheme(0, 0, "float8"),
}
"""Names of precisions for ONNX Runtime -> what they are. Weights of 4 bits have a scale per block; activations of 16 bits are computed in float32."""
