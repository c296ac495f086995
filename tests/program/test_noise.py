"""The noise of FORMAT.md section 5, against a plain implementation of its text, published known answers, and statistics."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from edgegen.errors import ProgramError
from edgegen.program import interpret, normals, philox4x32
from edgegen.program.instructions import Input, Noise, Program
from edgegen.program.noise import check_seed

FORMAT = Path(__file__).parents[2] / "runtimes" / "FORMAT.md"


def plain_philox(counter, key):
    """One block, with Python integers, from the text."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def plain_pair(r, a):
    """Two normals from two words, with Python floats (IEEE doubles, no fused operations), from the text."""
    u = (r + 0.5) * 2.0**-32
    bits = struct.unpack("<Q", struct.pack("<d", u))[0]
    exponent, mantissa = bits >> 52, bits & ((1 << 52) - 1)
    up = 1 if mantissa > 0x6A09E667F3BCD else 0
    m = struct.unpack("<d", struct.pack("<Q", mantissa | ((1023 - up) << 52)))[0]
    s = (m - 1) / (m + 1)
    z = s * s
    terms = [1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3]
    q = terms[0] * z
    for term in terms[1:-1]:
        q = (q + term) * z
    q = q + terms[-1]
    q = q * z
    q = q * s
    q = q + s
    q = q + q
    ln = q + ((exponent + up) - 1023) * float.fromhex("0x1.62e42fefa39efp-1")
    radius = math.sqrt(-2 * ln)
    f = (a & 0x3FFFFFFF) - (2.0**29 - 0.5)
    theta = f * (float.fromhex("0x1.921fb54442d18p+0") * 2.0**-30)
    z = theta * theta

    def series(terms):
        q = terms[0] * z
        for term in terms[1:-1]:
            q = (q + term) * z
        return (q + terms[-1]) * z

    sine = series([(-1) ** j / math.factorial(2 * j + 1) for j in range(5, 0, -1)]) * theta + theta
    cosine = series([(-1) ** j / math.factorial(2 * j) for j in range(5, 0, -1)]) + 1
    s, c = sine * radius, cosine * radius
    if a >> 31 & 1:
        c = -c
    return (np.float32(s), np.float32(c)) if a >> 30 & 1 else (np.float32(c), np.float32(s))


def plain_normals(seed, draw, count):
    out = []
    for b in range((count + 3) // 4):
        w = plain_philox((b & 0xFFFFFFFF, b >> 32, draw, 0), (seed & 0xFFFFFFFF, seed >> 32))
        out += [*plain_pair(w[0], w[1]), *plain_pair(w[2], w[3])]
    return np.array(out[:count], np.float32)


def test_philox_meets_the_known_answers_of_random123():
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for counter, key, words in cases:
        assert tuple(philox4x32(np.array(counter, np.uint32)[:, None], key)[:, 0].tolist()) == words
        assert tuple(plain_philox(counter, key)) == words


@pytest.mark.parametrize(("seed", "draw"), [(0, 0), (1, 2), (2**64 - 1, 2**32 - 1), (0x123456789ABCDEF0, 77)])
def test_normals_are_bit_equal_to_the_plain_text(seed, draw):
    found = normals(seed, draw, (1001,))
    assert found.dtype == np.float32
    assert found.tobytes() == plain_normals(seed, draw, 1001).tobytes()


def test_the_known_answers_in_format_md_are_met():
    text = FORMAT.read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ((?:[0-9a-f]{8} ?){8})\|$", text, re.MULTILINE)
    assert len(rows) == 5
    for seed, draw, bits in rows:
        wanted = np.array([int(b, 16) for b in bits.split()], np.uint32)
        assert (normals(int(seed), int(draw), (8,)).view(np.uint32) == wanted).all()


def test_box_muller_is_accurate_to_float32_against_libm():
    rng = np.random.default_rng(0)
    for r, a in [*rng.integers(0, 2**32, (2000, 2)).tolist(), [0, 0], [2**32 - 1, 2**32 - 1]]:
        radius = math.sqrt(-2 * math.log((r + 0.5) / 2**32))
        angle = ((a & 0x3FFFFFFF) - (2**29 - 0.5)) * (math.pi / 2) / 2**30
        s, c = radius * math.sin(angle), radius * math.cos(angle) * (-1 if a >> 31 & 1 else 1)
        first, second = plain_pair(r, a)
        wanted = (s, c) if a >> 30 & 1 else (c, s)
        assert float(first) == pytest.approx(wanted[0], rel=1e-6, abs=1e-7)
        assert float(second) == pytest.approx(wanted[1], rel=1e-6, abs=1e-7)


def test_pairs_are_spread_evenly_over_the_circle():
    z = normals(4, 0, (4_000_000,)).astype(np.float64).reshape(-1, 2)
    counts, _ = np.histogram(np.arctan2(z[:, 1], z[:, 0]), bins=64, range=(-np.pi, np.pi))
    assert stats.chisquare(counts).pvalue > 0.001


def test_ten_million_normals_have_the_right_law():
    z = normals(20260, 3, (10_000_000,)).astype(np.float64)
    n = len(z)
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert stats.kstest(z, "norm").pvalue > 0.001
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 4 / np.sqrt(n)


def test_a_larger_batch_begins_with_the_smaller_one():
    assert (normals(3, 0, (5, 1, 9, 9))[:2] == normals(3, 0, (2, 1, 9, 9))).all()


def test_different_draws_and_seeds_are_unrelated():
    a, b, c = normals(1, 0, (100_000,)), normals(1, 1, (100_000,)), normals(2, 0, (100_000,))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.015
    assert abs(np.corrcoef(a, c)[0, 1]) < 0.015


def test_noise_instructions_use_seed_draw_and_shape():
    program = Program("n", (Input("x_T"),), (Noise("z", "x_T", 9),), {"sample": "z"}, {})
    for dtype in (np.float32, np.float64):
        out = interpret(program, {}, {"x_T": np.zeros((2, 3))}, seed=5, dtype=dtype)["sample"]
        assert out.dtype == dtype
        assert (out == normals(5, 9, (2, 3))).all()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1", True, None])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ProgramError, match="expected a seed"):
        check_seed(seed)


@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1, 2**32, 123456789, 2**64 - 1])
def test_few_normals_have_the_bits_of_many(seed):
    """Small tensors take a path of their own, one number at a time."""
    for draw in (0, 1, 2**32 - 1):
        many = normals(seed, draw, (65,))
        for count in (0, 1, 3, 16, 63, 64):
            assert normals(seed, draw, (count,)).tobytes() == many[:count].tobytes()
    for draw in range(300):
        assert normals(seed, draw, (64,)).tobytes() == normals(seed, draw, (2, 64))[0].tobytes()
