"""Counter-based normal noise with the same bits in every language (runtimes/FORMAT.md, section 5).

Philox4x32-10 (Salmon et al. 2011) gives four 32-bit words per block of four elements; Box and Muller's map turns a pair of
words into a pair of normals in float64 with + - * / sqrt and integer operations only, then rounds to float32. No libm.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import ProgramError, Status

__all__ = ["check_seed", "normals", "philox4x32"]

Words = npt.NDArray[Any]
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
_LOW_HALF = 0 if sys.byteorder == "little" else 1

_MANTISSA_BITS, _BIAS = np.array(52, np.int64), np.array(1023, np.int64)
_ABOVE_SQRT2 = np.array((1 << 52) - 1 - 0x6A09E667F3BCD, np.int64)
"""Added to a float64's bits, it carries into the exponent where the mantissa is above sqrt(2)'s."""
_FRACTION, _SWAP, _NEGATE = _word(0x3FFFFFFF), _word(1 << 30), _word(1 << 31)
_LN_2, _ANGLE = float.fromhex("0x1.62e42fefa39efp-1"), float.fromhex("0x1.921fb54442d18p+0") * 2.0**-30
_LN2, _TURN = _double(_LN_2), _double(_ANGLE)
_HALF_FRACTION = _double(2.0**29 - 0.5)
_MINUS_TWO, _ONE, _UNIT, _HALF_UNIT = _double(-2.0), _double(1.0), _double(2.0**-32), _double(2.0**-33)
_TERMS = tuple(
    np.array([1.0 / (2 * k + 1), (-1.0) ** k / math.factorial(2 * k + 1), (-1.0) ** k / math.factorial(2 * k)]).reshape(3, 1, 1)
    for k in (5, 4, 3, 2, 1)
)
"""Terms, in x^2, of artanh(x) / x - 1, sin(x) / x - 1 and cos(x) - 1: the three series are summed side by side."""


def check_seed(seed: object) -> int:
    """`seed` as an int in [0, 2^64), or ProgramError."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) < 2**64:
        raise ProgramError(f"expected a seed in 0 .. 2^64 - 1, found {seed!r}", Status.OUT_OF_RANGE)
    return int(seed)


def _rounds(even: Words, odd: Words, key: tuple[int, int]) -> tuple[Words, Words]:
    """Philox's ten rounds on words (c0, c2) and (c1, c3), each [2, n] of 32 bits."""
    keys = ((_ROUNDS * _WEYL + np.array(key, np.uint64).reshape(2, 1)) & _LOW).astype(np.uint32)
    for round_keys in keys:
        halves = (even * _MULTIPLIERS).view(np.uint32).reshape(2, -1, 2)[::-1]
        even = halves[:, :, 1 - _LOW_HALF] ^ odd
        even ^= round_keys
        odd = halves[:, :, _LOW_HALF]
    return even, odd


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds of Philox4x32. counter: uint32[4, n]; key: two 32-bit words. Returns uint32[4, n]."""
    even, odd = _rounds(counter[0::2], counter[1::2], key)
    return np.stack((even[0], odd[0], even[1], odd[1]))


def _pair(w_radius: Words, w_angle: Words) -> tuple[Doubles, Doubles]:
    """Box and Muller on two words, each [n, 2]: the radius from the first; angle, swap and sign from the second.

    ln(u): exponent from the bits, 2 artanh((m - 1) / (m + 1)) for the mantissa m in [sqrt(1/2), sqrt(2)].
    """
    u = w_radius * _UNIT
    u += _HALF_UNIT
    bits = u.view(np.int64)
    exponent = ((bits + _ABOVE_SQRT2) >> _MANTISSA_BITS) - _BIAS
    m = (bits - (exponent << _MANTISSA_BITS)).view(np.float64)
    s = (m - _ONE) / (m + _ONE)
    theta = (w_angle & _FRACTION) - _HALF_FRACTION
    theta *= _TURN

    z = np.empty((3, *u.shape))
    np.multiply(s, s, out=z[0])
    np.multiply(theta, theta, out=z[1])
    z[2] = z[1]
    series = _TERMS[0] * z
    for term in _TERMS[1:-1]:
        series += term
        series *= z
    series += _TERMS[-1]
    series *= z
    log, sine, cosine = series

    log *= s
    log += s
    log += log
    log += exponent * _LN2
    log *= _MINUS_TWO
    radius = np.sqrt(log)
    sine *= theta
    sine += theta
    sine *= radius
    cosine += _ONE
    cosine *= radius
    np.negative(cosine, out=cosine, where=w_angle >= _NEGATE)
    swapped = (w_angle & _SWAP).astype(np.bool_)
    return np.where(swapped, sine, cosine), np.where(swapped, cosine, sine)


_FEW = 64
"""Up to this many elements plain Python is faster than numpy's hundred calls; the arithmetic and the bits are the same."""
_SQRT2 = float.fromhex("0x1.6a09e667f3bcdp+0")
_LOG, _SINE, _COSINE = (tuple(float(t[k, 0, 0]) for t in _TERMS) for k in range(3))


def _few(seed: int, draw: int, count: int, call: int) -> list[float]:
    """`normals`, one number at a time (FORMAT.md, section 5), in float64."""
    keys, low, high = [], seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        keys.append((low, high))
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    out: list[float] = []
    for block in range((count + 3) // 4):
        c0, c1, c2, c3 = block, 0, draw, call
        for k0, k1 in keys:
            p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
            c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        out += _one_pair(c0, c1)
        out += _one_pair(c2, c3)
    return out[:count]


def _one_pair(w_radius: int, w_angle: int) -> tuple[float, float]:
    """`_pair` of two numbers; written out, because calls would cost as much as the arithmetic."""
    m, exponent = math.frexp(w_radius * 2.0**-32 + 2.0**-33)
    if 2.0 * m <= _SQRT2:
        m, exponent = 2.0 * m, exponent - 1
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    t0, t1, t2, t3, t4 = _LOG
    q = ((((t0 * z + t1) * z + t2) * z + t3) * z + t4) * z * s + s
    radius = math.sqrt(-2.0 * (q + q + exponent * _LN_2))
    theta = ((w_angle & 0x3FFFFFFF) - 536870911.5) * _ANGLE
    z = theta * theta
    t0, t1, t2, t3, t4 = _SINE
    sine = (((((t0 * z + t1) * z + t2) * z + t3) * z + t4) * z * theta + theta) * radius
    t0, t1, t2, t3, t4 = _COSINE
    cosine = (((((t0 * z + t1) * z + t2) * z + t3) * z + t4) * z + 1.0) * radius
    if w_angle & 0x80000000:
        cosine = -cosine
    return (sine, cosine) if w_angle & 0x40000000 else (cosine, sine)


def normals(seed: int, draw: int, shape: tuple[int, ...], call: int = 0) -> npt.NDArray[np.float32]:
    """float32[shape] of N(0, 1): element i depends on (seed, draw, call, i) only, so a larger batch begins with the smaller one.

    seed: 0 .. 2^64 - 1; draw: 0 .. 2^32 - 1; call: how many calls a stream has had before, 0 .. 2^32 - 1, and 0 outside streams.
    Bit-identical across runtimes; |value| <= 6.77.
    """
    count = math.prod(shape)
    if count <= _FEW:
        return np.array(_few(seed, draw, count, call), np.float32).reshape(shape)
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    even, odd = np.empty((2, len(blocks)), np.uint32), np.empty((2, len(blocks)), np.uint32)
    even[0], even[1], odd[0], odd[1] = blocks & _LOW, draw, blocks >> _SHIFT32, call
    words = _rounds(even, odd, (seed & 0xFFFFFFFF, seed >> 32))
    pairs = np.empty((len(blocks), 2, 2), np.float32)
    pairs[:, :, 0], pairs[:, :, 1] = _pair(words[0].T, words[1].T)
    return pairs.reshape(-1)[:count].reshape(shape)
