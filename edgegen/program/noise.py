"""Counter-based normal noise with the same bits in every language (runtimes/FORMAT.md, section 5).

Philox4x32-10 (Salmon et al. 2011) gives four 32-bit words per block of four elements; Box and Muller's map turns a pair of
words into a pair of normals in float64 with + - * / sqrt and integer operations only, then rounds to float32. No libm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import ProgramError, Status

__all__ = ["check_seed", "normals", "philox4x32"]

Words = npt.NDArray[np.uint64]
Doubles = npt.NDArray[np.float64]


def _word(value: int) -> Words:
    return np.array(value, np.uint64)


def _double(value: float) -> Doubles:
    return np.array(value, np.float64)


# Constants are 0-d arrays: numpy combines them with an array in half the time that it takes for a scalar.
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
_ROUNDS = np.arange(10, dtype=np.uint64).reshape(10, 1, 1)
_LOW, _SHIFT32 = _word(0xFFFFFFFF), _word(32)

_MANTISSA, _MANTISSA_BITS, _BIAS = _word(0xFFFFFFFFFFFFF), _word(52), _word(1023)
_SQRT2_MANTISSA = _word(0x6A09E667F3BCD)
"""Mantissa bits of sqrt(2): above it the exponent is raised by one, so that the mantissa lies in [sqrt(1/2), sqrt(2)]."""
_QUADRANT_BITS, _FRACTION, _ONE, _TWO = _word(30), _word(0x3FFFFFFF), _word(1), _word(2)
_LN2 = _double(float.fromhex("0x1.62e42fefa39efp-1"))
_TURN = _double(float.fromhex("0x1.921fb54442d18p+0") * 2.0**-30)
_HALF_FRACTION = _double(2.0**29 - 0.5)
_MINUS_TWO, _HALF, _UNIT, _SMALL = _double(-2.0), _double(0.5), _double(1.0), _double(2.0**-32)
_LOG_TERMS = tuple(_double(1.0 / k) for k in (17, 15, 13, 11, 9, 7, 5, 3))
_WAVE_TERMS = tuple(
    np.array([(-1.0) ** k / math.factorial(2 * k + 1), (-1.0) ** k / math.factorial(2 * k)]).reshape(2, 1, 1) for k in (7, 6, 5, 4, 3, 2, 1)
)
"""Terms of sin(x) / x - 1 and cos(x) - 1 in x^2."""


def check_seed(seed: object) -> int:
    """`seed` as an int in [0, 2^64), or ProgramError."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) < 2**64:
        raise ProgramError(f"expected a seed in 0 .. 2^64 - 1, found {seed!r}", Status.OUT_OF_RANGE)
    return int(seed)


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds of Philox4x32. counter: uint64[4, n] of 32-bit words; key: two 32-bit words. Returns uint64[4, n] of 32-bit words."""
    even, odd = counter[0::2], counter[1::2]
    keys = (_ROUNDS * _WEYL + np.array(key, np.uint64).reshape(2, 1)) & _LOW
    for round_keys in keys:
        product = even * _MULTIPLIERS
        even = (product >> _SHIFT32)[::-1] ^ odd
        even ^= round_keys
        product &= _LOW
        odd = product[::-1]
    return np.stack((even[0], odd[0], even[1], odd[1]))


def _horner(terms: Sequence[Any], z: Doubles) -> Doubles:
    """terms[0] z^(n-1) + ... + terms[n-1], from the left."""
    total: Doubles = terms[0] * z
    for term in terms[1:-1]:
        total += term
        total *= z
    total += terms[-1]
    return total


def _log(u: Doubles) -> Doubles:
    """ln(u) for normal u in (0, 1): exponent from the bits, 2 artanh((m - 1) / (m + 1)) for the mantissa."""
    bits = u.view(np.uint64)
    mantissa = bits & _MANTISSA
    raised = (mantissa > _SQRT2_MANTISSA).view(np.uint8).astype(np.uint64)
    exponent = (bits >> _MANTISSA_BITS) + raised
    m = (mantissa | ((_BIAS - raised) << _MANTISSA_BITS)).view(np.float64)
    s = (m - _UNIT) / (m + _UNIT)
    z = s * s
    series = _horner(_LOG_TERMS, z)
    series *= z
    series *= s
    series += s
    series += series
    series += (exponent.view(np.int64) - 1023) * _LN2
    return series


def _pair(w_radius: Words, w_angle: Words) -> tuple[Doubles, Doubles]:
    """Box and Muller on two words: the radius from the first, quadrant and angle from the second."""
    u = w_radius.astype(np.float64)
    u += _HALF
    u *= _SMALL
    radius = np.sqrt(_MINUS_TWO * _log(u))
    quadrant = w_angle >> _QUADRANT_BITS
    theta = (w_angle & _FRACTION).astype(np.float64)
    theta -= _HALF_FRACTION
    theta *= _TURN
    z = theta * theta
    waves = _horner(_WAVE_TERMS, z)
    waves *= z
    sine = waves[0] * theta
    sine += theta
    cosine = waves[1] + _UNIT
    odd = (quadrant & _ONE).astype(np.bool_)
    first, second = np.where(odd, -sine, cosine), np.where(odd, cosine, sine)
    signed = np.where(quadrant >= _TWO, -radius, radius)
    first *= signed
    second *= signed
    return first, second


def normals(seed: int, draw: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """float32[shape] of N(0, 1): element i depends on (seed, draw, i) only, so a larger batch begins with the smaller one.

    seed: 0 .. 2^64 - 1; draw: 0 .. 2^32 - 1. Bit-identical across runtimes; |value| <= 6.77.
    """
    count = math.prod(shape)
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    counter = np.zeros((4, len(blocks)), np.uint64)
    counter[0], counter[1], counter[2] = blocks & _LOW, blocks >> _SHIFT32, draw
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    pairs = np.empty((len(blocks), 2, 2), np.float32)
    pairs[:, :, 0], pairs[:, :, 1] = _pair(words[0::2].T, words[1::2].T)
    return pairs.reshape(-1)[:count].reshape(shape)
