"""FORMAT.md section 6: each malformation is rejected with its exact status; nothing damaged is accepted."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from edgegen import canonical
from edgegen.bundle import bundle_bytes, open_bundle, parse_bundle, write_bundle
from edgegen.errors import BundleError, EdgegenError, Status
from tests.attacks.bundles import CASES, MANIFEST, MEMBERS, PROGRAM, SMALL, reheadered


def code_of(data):
    """The status with which a bundle is rejected; None if it is accepted."""
    try:
        parse_bundle(bytes(data))
    except BundleError as e:
        return e.code
    return None


@pytest.mark.parametrize(("data", "code"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_malformation_is_rejected_with_its_exact_status(data, code):
    assert code_of(data) == code


def test_there_are_at_least_sixty_malformations():
    assert len(CASES) >= 60


def test_a_sound_bundle_is_read_back_whole():
    bundle = parse_bundle(SMALL)
    assert bundle.manifest == MANIFEST
    assert bundle.programs["one"] == PROGRAM
    assert {name: bundle.member(name) for name in bundle.table} == MEMBERS
    assert bundle_bytes(bundle.manifest, MEMBERS) == SMALL


def test_every_truncation_is_rejected():
    codes = {code_of(SMALL[:n]) for n in range(len(SMALL))}
    assert codes == {Status.TRUNCATED}


def test_every_flipped_bit_is_rejected():
    for i in range(len(SMALL) * 8):
        data = bytearray(SMALL)
        data[i // 8] ^= 1 << (i % 8)
        assert code_of(data) is not None, f"bit {i} may be flipped"


def test_truncations_and_flips_of_a_real_bundle_are_rejected(tiny_bundle):
    data = tiny_bundle.read_bytes()
    assert code_of(data) is None
    rng = np.random.default_rng(0)
    for n in rng.integers(0, len(data), 200):
        assert code_of(data[: int(n)]) is not None
    for i in rng.integers(0, len(data) * 8, 500):
        flipped = bytearray(data)
        flipped[int(i) // 8] ^= 1 << (int(i) % 8)
        assert code_of(flipped) is not None


def test_random_mutations_end_in_a_status():
    rng = np.random.default_rng(1)
    for _ in range(3000):
        data = bytearray(SMALL)
        for _ in range(int(rng.integers(1, 6))):
            at = int(rng.integers(0, len(data)))
            match int(rng.integers(0, 3)):
                case 0:
                    data[at] = int(rng.integers(0, 256))
                case 1:
                    del data[at : at + int(rng.integers(1, 40))]
                case 2:
                    data[at:at] = rng.integers(0, 256, int(rng.integers(1, 40)), np.uint8).tobytes()
        if data != SMALL:
            assert code_of(data) is not None


def archives():
    z, t = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(z, "w") as f:
        f.writestr("manifest.json", "{}")
    with tarfile.open(fileobj=t, mode="w"):
        pass
    return {
        "zip": z.getvalue(),
        "tar": t.getvalue(),
        "gzip": gzip.compress(SMALL),
        "elf": b"\x7fELF" + bytes(100),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }


@pytest.mark.parametrize("kind", sorted(archives()))
def test_archives_and_other_formats_are_foreign(kind, tmp_path):
    path = tmp_path / "x.edgegen"
    path.write_bytes(archives()[kind])
    with pytest.raises(BundleError) as e:
        open_bundle(path)
    assert e.value.code == Status.NOT_A_BUNDLE
    assert str(path) in str(e.value)


def test_what_is_not_a_regular_file_is_not_opened(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, fifo, "/dev/zero", tmp_path / "absent"):
        with pytest.raises(BundleError) as e:
            open_bundle(path)
        assert e.value.code == Status.CANNOT_OPEN


def test_a_hostile_header_costs_no_memory():
    hostile = reheadered(SMALL[:64] + bytes(4032), total=2**40)
    tracemalloc.start()
    assert code_of(hostile) == Status.TRUNCATED
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Bad": b"x"}, "member name 'Bad'"),
        ({"empty": b""}, "is empty"),
        ({"extra": b"x"}, "manifest and members differ"),
    ],
)
def test_the_writer_refuses_what_the_reader_would(change, message):
    with pytest.raises(BundleError, match=message):
        bundle_bytes(MANIFEST, MEMBERS | change)


def test_writing_is_atomic_and_reproducible(tmp_path):
    path = tmp_path / "a.edgegen"
    path.write_bytes(b"old")
    write_bundle(path, MANIFEST, MEMBERS)
    assert path.read_bytes() == SMALL
    assert [p.name for p in tmp_path.iterdir()] == ["a.edgegen"]
    write_bundle(path, replace(MANIFEST), dict(reversed(MEMBERS.items())))
    assert path.read_bytes() == SMALL


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.5, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1])
def test_hex_floats_are_exact(value):
    assert canonical.from_hex(canonical.to_hex(value)).hex() == value.hex()


@pytest.mark.parametrize(
    "text", ["1.0", "0x1p+0", "0X1.0000000000000P+0", "nan", "inf", "", " 0x1.0000000000000p+0", "0x1.0000000000000p+00", 3, None]
)
def test_other_spellings_of_floats_are_rejected(text):
    with pytest.raises(EdgegenError):
        canonical.from_hex(text)
