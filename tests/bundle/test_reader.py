"""FORMAT.md section 6: each malformation is rejected with its exact status; nothing damaged is accepted."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import tracemalloc
import zipfile
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from edgegen import canonical
from edgegen.bundle import Golden, Manifest, ProgramEntry, Variant, bundle_bytes, open_bundle, parse_bundle, write_bundle
from edgegen.bundle.layout import HEADER, MAGIC, aligned
from edgegen.errors import BundleError, EdgegenError, Status
from edgegen.program import Clamp, Eval, Imm, Input, Program, Reg, program_to_json
from edgegen.spec import ConditionSpec, SampleSpec, Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "float32", ("batch", 2)), TensorSpec("t", "float32", ("batch",))), (TensorSpec("o", "float32", ("batch", 2)),))
PROGRAM = Program(
    "one", (Input("x_T"),), (Eval("f", {"x": (Reg("x_T"),), "t": (Imm(1.0),)}, {"o": ("e",)}), Clamp("y", "e", -1.0, 1.0)), {"sample": "y"}, {"f": 1}
)
MANIFEST = Manifest(
    "small", "a \"quoted\" \\ name, é", "", "test", False, SampleSpec((2,)), (ConditionSpec("c", "int64", (), 0, 3),), {"f": SIGNATURE},
    (ProgramEntry("one", 1, "program.0.json"),), (Variant("float32", "onnxruntime", {"f": "f.onnx"}, (Golden("one", "golden.f32", 0.5),)),),
    {"recipe": "recipe.json"},
)  # fmt: skip
MEMBERS = {
    "program.0.json": canonical.encode(program_to_json(PROGRAM)),
    "f.onnx": b"not checked before a session opens it",
    "golden.f32": np.zeros(2, np.float32).tobytes(),
    "recipe.json": canonical.encode({"schema": 1}),
}
SMALL = bundle_bytes(MANIFEST, MEMBERS)


def code_of(data):
    """The status with which a bundle is rejected; None if it is accepted."""
    try:
        parse_bundle(bytes(data))
    except BundleError as e:
        return e.code
    return None


def parts(data=SMALL):
    """(manifest JSON value, the members' bytes by name)"""
    bundle = parse_bundle(data)
    length = HEADER.unpack_from(data)[5]
    return json.loads(data[64 : 64 + length]), {name: bundle.member(name) for name in bundle.table}


def reheadered(data, **fields):
    """`data` with header fields changed."""
    names = ["magic", "major", "minor", "flags", "offset", "length", "members", "total", "digest"]
    values = dict(zip(names, HEADER.unpack_from(data), strict=True)) | fields
    return HEADER.pack(*values.values()) + data[64:]


def rebuilt(text, body, members=4):
    """A file with this manifest text and a header that fits it."""
    total = 64 + len(text) + len(body)
    return HEADER.pack(MAGIC, 1, 0, 0, 64, len(text), members, total, hashlib.sha256(text).digest()) + text + body


def joined(program, times=1):
    """A program's JSON with x_T joined to itself in front, again and again: w0 has twice its channels, w1 four times, ..."""
    names = ["x_T", *(f"w{i}" for i in range(times))]
    program["instructions"][:0] = [{"op": "CONCAT", "out": out, "parts": [x, x]} for x, out in pairwise(names)]


def edited(change, *, text=lambda value: json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()):
    """SMALL with its manifest JSON changed by `change`; header, hash and (where `change` left them alone) offsets made right again."""
    value, _ = parts()
    first = value["members"][0]["offset"]
    offsets = [m["offset"] for m in value["members"]]
    change(value)
    written = text(value)
    members = value.get("members")
    if isinstance(members, list) and sorted(m["offset"] for m in members) == offsets:
        while (shift := aligned(64 + len(written)) - min(m["offset"] for m in members)) != 0:
            for m in members:
                m["offset"] += shift
            written = text(value)
    return rebuilt(written, bytes(aligned(64 + len(written)) - 64 - len(written)) + SMALL[first:])


def with_program(change):
    """SMALL with its program's JSON changed."""
    value = program_to_json(PROGRAM)
    change(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return bundle_bytes(MANIFEST, MEMBERS | {"program.0.json": text})


def setter(*path_and_value):
    *path, value = path_and_value

    def change(target):
        for key in path[:-1]:
            target = target[key]
        if value is ...:
            del target[path[-1]]
        else:
            target[path[-1]] = value

    return change


def swapped(value):
    value["members"][0], value["members"][1] = value["members"][1], value["members"][0]


def fake_nested(depth):
    return rebuilt(b"[" * depth + b"]" * depth, b"")


S = Status
CASES = [
    ("empty file", b"", S.TRUNCATED),
    ("half a magic", MAGIC[:4], S.TRUNCATED),
    ("header cut", SMALL[:63], S.TRUNCATED),
    ("header only", SMALL[:64], S.TRUNCATED),
    ("foreign magic", b"GGUF" + SMALL[4:], S.NOT_A_BUNDLE),
    ("text mode copy", SMALL.replace(b"\r\n", b"\n", 1), S.NOT_A_BUNDLE),
    ("shifted by a byte", b"\0" + SMALL, S.NOT_A_BUNDLE),
    ("major 0", reheadered(SMALL, major=0), S.BAD_VERSION),
    ("major 2", reheadered(SMALL, major=2), S.BAD_VERSION),
    ("minor 1", reheadered(SMALL, minor=1), S.BAD_VERSION),
    ("flags", reheadered(SMALL, flags=1), S.BAD_HEADER),
    ("manifest offset 0", reheadered(SMALL, offset=0), S.BAD_HEADER),
    ("manifest offset 128", reheadered(SMALL, offset=128), S.BAD_HEADER),
    ("no manifest", reheadered(SMALL, length=0), S.LIMIT),
    ("manifest of 4 GiB", reheadered(SMALL, length=2**32 - 1), S.LIMIT),
    ("manifest above 1 MiB", reheadered(SMALL, length=2**20 + 1), S.LIMIT),
    ("no members", reheadered(SMALL, members=0), S.LIMIT),
    ("4097 members", reheadered(SMALL, members=4097), S.LIMIT),
    ("2^32 - 1 members", reheadered(SMALL, members=2**32 - 1), S.LIMIT),
    ("total of 2^64 - 1", reheadered(SMALL, total=2**64 - 1), S.TRUNCATED),
    ("total one less", reheadered(SMALL, total=len(SMALL) - 1), S.CORRUPT),
    ("a byte appended", SMALL + b"\0", S.CORRUPT),
    ("a zip appended", SMALL + b"PK\x05\x06" + bytes(18), S.CORRUPT),
    ("manifest longer than the file", rebuilt(b"{}", b"")[:65] + b"", S.TRUNCATED),
    ("wrong manifest hash", reheadered(SMALL, digest=bytes(32)), S.CORRUPT),
    ("one member less in the header", reheadered(SMALL, members=3), S.BAD_TABLE),
    ("not UTF-8", rebuilt(b"\xff\xfe", b""), S.BAD_MANIFEST),
    ("not JSON", rebuilt(b"{x}", b""), S.BAD_MANIFEST),
    ("JSON cut", rebuilt(b'{"a":', b""), S.BAD_MANIFEST),
    ("a list", rebuilt(b"[]", b""), S.BAD_MANIFEST),
    ("empty object", rebuilt(b"{}", b""), S.BAD_MANIFEST),
    ("nested 9 deep", fake_nested(9), S.LIMIT),
    ("nested 100,000 deep", fake_nested(100_000), S.LIMIT),
    ("unclosed 100,000 deep", rebuilt(b"[" * 100_000, b""), S.LIMIT),
    ("a float", edited(setter("trusted_pickle", 0.5)), S.BAD_MANIFEST),
    ("true", edited(setter("trusted_pickle", True)), S.BAD_MANIFEST),
    ("null", edited(setter("name", None)), S.BAD_MANIFEST),
    ("NaN", rebuilt(b'{"a":NaN}', b""), S.BAD_MANIFEST),
    ("an integer of 70 bits", rebuilt(b'{"a":1180591620717411303424}', b""), S.BAD_MANIFEST),
    ("an integer of 1 MB", rebuilt(b'{"a":' + b"9" * 1_000_000 + b"}", b""), S.BAD_MANIFEST),
    ("a control character", edited(setter("name", "a\x00b")), S.BAD_MANIFEST),
    ("a lone surrogate", rebuilt(b'{"a":"\\ud800"}', b""), S.BAD_MANIFEST),
    ("a key with a slash", rebuilt(b'{"a/b":1}', b""), S.BAD_MANIFEST),
    ("a duplicate key", rebuilt(b'{"a":1,"a":1}', b""), S.NOT_CANONICAL),
    ("white space", edited(lambda v: None, text=lambda v: json.dumps(v, sort_keys=True).encode()), S.NOT_CANONICAL),
    ("unsorted keys", rebuilt(b'{"b":1,"a":1}', b""), S.NOT_CANONICAL),
    ("an escape too many", rebuilt(b'{"a":"\\u0041"}', b""), S.NOT_CANONICAL),
    ("minus zero", rebuilt(b'{"a":-0}', b""), S.NOT_CANONICAL),
    ("member table missing", edited(setter("members", ...)), S.BAD_MANIFEST),
    ("member table is text", edited(setter("members", "x")), S.BAD_TABLE),
    ("member without hash", edited(setter("members", 0, "sha256", ...)), S.BAD_MANIFEST),
    ("member with a path", edited(setter("members", 0, "name", "../f.onnx")), S.BAD_TABLE),
    ("member with an absolute path", edited(setter("members", 0, "name", "/etc/passwd")), S.BAD_TABLE),
    ("member with a capital", edited(setter("members", 0, "name", "F.onnx")), S.BAD_TABLE),
    ("member name of 65 characters", edited(setter("members", 0, "name", "f" * 65)), S.BAD_TABLE),
    ("members out of order", edited(swapped), S.BAD_TABLE),
    ("member twice", edited(setter("members", 1, "name", "f.onnx")), S.BAD_TABLE),
    ("member offset + 64", edited(lambda v: v["members"][0].__setitem__("offset", v["members"][0]["offset"] + 64)), S.BAD_TABLE),
    ("member offset + 1", edited(lambda v: v["members"][0].__setitem__("offset", v["members"][0]["offset"] + 1)), S.BAD_TABLE),
    ("member offset 0", edited(setter("members", 0, "offset", 0)), S.BAD_TABLE),
    ("member offset negative", edited(setter("members", 0, "offset", -64)), S.BAD_TABLE),
    ("member of 0 bytes", edited(setter("members", 0, "nbytes", 0)), S.BAD_TABLE),
    ("member of -1 bytes", edited(setter("members", 0, "nbytes", -1)), S.BAD_TABLE),
    ("member of 2^62 bytes", edited(setter("members", 3, "nbytes", 2**62)), S.BAD_TABLE),
    ("member one byte short", edited(lambda v: v["members"][3].__setitem__("nbytes", v["members"][3]["nbytes"] - 1)), S.BAD_TABLE),
    ("wrong member hash", edited(setter("members", 0, "sha256", "0" * 64)), S.CORRUPT),
    ("member hash in capitals", edited(lambda v: v["members"][0].__setitem__("sha256", v["members"][0]["sha256"].upper())), S.CORRUPT),
    ("manifest of another version", edited(setter("format", "1.1")), S.BAD_VERSION),
    ("unknown manifest key", edited(setter("plugins", "x.so")), S.BAD_MANIFEST),
    ("manifest key missing", edited(setter("licence", ...)), S.BAD_MANIFEST),
    ("trusted_pickle 2", edited(setter("trusted_pickle", 2)), S.INCONSISTENT),
    ("no variants", edited(setter("variants", [])), S.INCONSISTENT),
    ("no programs", edited(setter("programs", [])), S.INCONSISTENT),
    ("variant without its component", edited(setter("variants", 0, "components", {})), S.INCONSISTENT),
    ("variant naming an absent member", edited(setter("variants", 0, "components", "f", "g.onnx")), S.INCONSISTENT),
    ("golden of an unknown program", edited(setter("variants", 0, "golden", 0, "program", "two")), S.INCONSISTENT),
    ("golden with a negative tolerance", edited(setter("variants", 0, "golden", 0, "tolerance", "-0x1.0000000000000p+0")), S.INCONSISTENT),
    ("golden tolerance as inf", edited(setter("variants", 0, "golden", 0, "tolerance", "inf")), S.NOT_CANONICAL),
    ("golden tolerance as 0.5", edited(setter("variants", 0, "golden", 0, "tolerance", "0.5")), S.NOT_CANONICAL),
    ("golden of another size", bundle_bytes(MANIFEST, MEMBERS | {"golden.f32": bytes(12)}), S.INCONSISTENT),
    ("a member that nothing names", edited(setter("documents", {})), S.INCONSISTENT),
    ("steps 0", edited(setter("programs", 0, "steps", 0)), S.INCONSISTENT),
    ("steps 65537", edited(setter("programs", 0, "steps", 65_537)), S.INCONSISTENT),
    ("unknown dtype", edited(setter("components", "f", "inputs", 0, "dtype", "object")), S.BAD_MANIFEST),
    ("rank 7", edited(setter("components", "f", "inputs", 0, "shape", [1] * 7)), S.BAD_MANIFEST),
    ("size 0", edited(setter("components", "f", "inputs", 0, "shape", [0])), S.BAD_MANIFEST),
    ("size 2^31", edited(setter("components", "f", "inputs", 0, "shape", [2**31])), S.BAD_MANIFEST),
    ("size -1", edited(setter("components", "f", "inputs", 0, "shape", [-1])), S.BAD_MANIFEST),
    ("size as text", edited(setter("components", "f", "inputs", 0, "shape", ["8"])), S.BAD_MANIFEST),
    ("sample of an unknown kind", edited(setter("sample", "kind", "video")), S.BAD_MANIFEST),
    ("sample range inverted", edited(setter("sample", "low", "0x1.0000000000000p+1")), S.BAD_MANIFEST),
    ("condition with minimum above maximum", edited(setter("conditions", 0, "minimum", "0x1.0000000000000p+3")), S.BAD_MANIFEST),
    ("program breaks a rule", with_program(setter("nfe", "f", 2)), S.BAD_PROGRAM),
    ("program with an unknown op", with_program(setter("instructions", 0, "op", "SYSTEM")), S.BAD_PROGRAM),
    ("program reads the undefined", with_program(setter("instructions", 1, "x", "nothing")), S.BAD_PROGRAM),
    ("program is not canonical", bundle_bytes(MANIFEST, MEMBERS | {"program.0.json": b" " + MEMBERS["program.0.json"]}), S.NOT_CANONICAL),
    ("program of an unknown component", with_program(lambda v: (v["nfe"].update({"g": v["nfe"].pop("f")}), v["instructions"][0].update(component="g"))), S.INCONSISTENT),
    ("program with other tensors", with_program(lambda v: v["instructions"][0]["inputs"].update(z=v["instructions"][0]["inputs"].pop("t"))), S.INCONSISTENT),
    ("program of an unknown condition", with_program(lambda v: v["inputs"].append({"kind": "condition", "name": "d", "scale": "0x1.0000000000000p+0"})), S.INCONSISTENT),
    ("program without noise", with_program(lambda v: v["inputs"][0].update(kind="condition")), S.INCONSISTENT),
    ("program feeding another shape", with_program(lambda v: (joined(v), v["instructions"][1]["inputs"]["x"][0].update(reg="w0"))), S.INCONSISTENT),
    ("program making another sample", with_program(lambda v: (joined(v), v.update(outputs={"sample": "w0"}))), S.INCONSISTENT),
    ("program that would fill the memory", with_program(lambda v: joined(v, 60)), S.INCONSISTENT),
    ("program without sample", with_program(lambda v: v.update(outputs={"image": "y"})), S.INCONSISTENT),
]  # fmt: skip


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
