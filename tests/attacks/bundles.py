"""Malformed bundles, one for each rule of FORMAT.md, with the status that every reader must give: (name, bytes, status)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np

from edgegen import canonical
from edgegen.bundle import FusedEntry, Golden, Manifest, ProgramEntry, Variant, bundle_bytes, parse_bundle
from edgegen.bundle.layout import HEADER, MAGIC, aligned
from edgegen.errors import Status
from edgegen.program import Clamp, Eval, Imm, Input, Program, Reg, program_to_json
from edgegen.spec import ConditionSpec, SampleSpec, Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "float32", ("batch", 2)), TensorSpec("t", "float32", ("batch",))), (TensorSpec("o", "float32", ("batch", 2)),))
PROGRAM = Program(
    "one", (Input("x_T"),), (Eval("f", {"x": (Reg("x_T"),), "t": (Imm(1.0),)}, {"o": ("e",)}), Clamp("y", "e", -1.0, 1.0)), {"sample": "y"}, {"f": 1}
)
MANIFEST = Manifest(
    "small", "a \"quoted\" \\ name, é", "", "test", False, SampleSpec((2,)), (ConditionSpec("c", "int64", (), 0, 3),), {"f": SIGNATURE},
    (ProgramEntry("one", 1, "program.0.json"),), (Variant("float32", "elsewhere", {"f": "f.onnx"}, (Golden("one", "golden.f32", 0.5),), fused=(FusedEntry("one", 2, "fused.onnx"),), threads=2),),
    {"recipe": "recipe.json"},
)  # fmt: skip
MEMBERS = {
    "program.0.json": canonical.encode(program_to_json(PROGRAM)),
    "f.onnx": b"not checked before a session opens it",
    "fused.onnx": b"nor this",
    "golden.f32": np.zeros(2, np.float32).tobytes(),
    "recipe.json": canonical.encode({"schema": 1}),
}
SMALL = bundle_bytes(MANIFEST, MEMBERS)


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


def rebuilt(text, body, members=5):
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
    if isinstance(members, dict):
        members = list(members.values())
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


def padded(data):
    """A zero between the manifest and the first member changed."""
    first = min(m["offset"] for m in parts(data)[0]["members"])
    assert data[first - 1] == 0
    return data[: first - 1] + b"\1" + data[first:]


def cut_manifest():
    """A header whose manifest is longer than the file, with the hash of what there is."""
    data = SMALL[:100]
    return reheadered(data, length=1000, total=100, digest=hashlib.sha256(data[64:]).digest())


def beyond():
    for first in range(1024, 4096, 64):  # where the first member is in the end
        made = edited(lambda v, first=first: (v["members"][0].update(offset=first, nbytes=2**62), v["members"][1].update(offset=first + 2**62)))
        if aligned(64 + HEADER.unpack_from(made)[5]) == first:
            return made
    raise AssertionError


def with_empty_member():
    """A sound file but for its last member, which has no bytes."""
    value, members = parts()
    members["recipe.json"] = b""
    assert list(members)[-1] == "recipe.json"
    while True:
        table, body, begin = [], b"", 64 + len(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
        for name, data in members.items():
            body += bytes(aligned(begin + len(body)) - begin - len(body))
            table.append({"name": name, "offset": begin + len(body), "nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
            body += data
        if value["members"] == table:
            return rebuilt(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(), body)
        value["members"] = table


EMPTY = Variant("v", "elsewhere", {}, ())
PLAIN = (ProgramEntry("one", 1, "p.json"),)
PLAIN_TEXT = canonical.encode(program_to_json(Program("one", (Input("x_T"),), (Clamp("y", "x_T", -1.0, 1.0),), {"sample": "y"}, {})))


def condition(name):
    return {"name": name, "dtype": "int64", "shape": [], "summary": ""}


def tensor(name, shape=("batch", 2)):
    return {"name": name, "dtype": "float32", "shape": list(shape)}


def tensors(count):
    return {"inputs": [tensor(f"i{i}") for i in range(count - 1)], "outputs": [tensor("o")]}


S = Status
TEXTS = [
    ("not UTF-8", b"\xff\xfe", S.BAD_MANIFEST),
    ("not JSON", b"{x}", S.BAD_MANIFEST),
    ("JSON cut", b'{"a":', S.BAD_MANIFEST),
    ("nested 9 deep", b"[" * 9 + b"]" * 9, S.LIMIT),
    ("nested 100,000 deep", b"[" * 100_000 + b"]" * 100_000, S.LIMIT),
    ("unclosed 100,000 deep", b"[" * 100_000, S.LIMIT),
    ("NaN", b'{"a":NaN}', S.BAD_MANIFEST),
    ("an integer of 70 bits", b'{"a":1180591620717411303424}', S.BAD_MANIFEST),
    ("an integer of 1 MB", b'{"a":' + b"9" * 1_000_000 + b"}", S.BAD_MANIFEST),
    ("a lone surrogate", b'{"a":"\\ud800"}', S.BAD_MANIFEST),
    ("a key with a slash", b'{"a/b":1}', S.BAD_MANIFEST),
    ("a duplicate key", b'{"a":1,"a":1}', S.NOT_CANONICAL),
    ("unsorted keys", b'{"b":1,"a":1}', S.NOT_CANONICAL),
    ("an escape too many", b'{"a":"\\u0041"}', S.NOT_CANONICAL),
    ("minus zero", b'{"a":-0}', S.NOT_CANONICAL),
    ("an array cut", b'["a"', S.BAD_MANIFEST),
    ("a comma too many", b'["a",]', S.BAD_MANIFEST),
    ("a comma too many in an object", b'{"a":1,}', S.BAD_MANIFEST),
    ("no comma", b'["a" "b"]', S.BAD_MANIFEST),
    ("no colon", b'{"a" 1}', S.BAD_MANIFEST),
    ("a key that is a number", b"{1:1}", S.BAD_MANIFEST),
    ("a key of nothing", b'{"":1}', S.BAD_MANIFEST),
    ("a key of 65 characters", b'{"' + b"a" * 65 + b'":1}', S.BAD_MANIFEST),
    ("a string cut", b'{"a":"b', S.BAD_MANIFEST),
    ("an escape cut", b'{"a":"\\', S.BAD_MANIFEST),
    ("an escape of nothing", b'{"a":"\\x"}', S.BAD_MANIFEST),
    ("an escaped tab", b'{"a":"\\t"}', S.BAD_MANIFEST),
    ("an escaped control character", b'{"a":"\\u001f"}', S.BAD_MANIFEST),
    ("an escaped delete", b'{"a":"\\u007f"}', S.BAD_MANIFEST),
    ("an escape with three digits", b'{"a":"\\u004"}', S.BAD_MANIFEST),
    ("an escape that is no number", b'{"a":"\\u00g0"}', S.BAD_MANIFEST),
    ("a low surrogate", b'{"a":"\\udc00"}', S.BAD_MANIFEST),
    ("a high surrogate and a letter", b'{"a":"\\ud800\\u0041"}', S.BAD_MANIFEST),
    ("a pair of surrogates", b'{"a":"\\ud83d\\ude00"}', S.NOT_CANONICAL),
    ("an escaped slash", b'{"a":"\\/"}', S.NOT_CANONICAL),
    ("a delete character", b'{"a":"\x7f"}', S.BAD_MANIFEST),
    ("a tab in a string", b'{"a":"\t"}', S.BAD_MANIFEST),
    ("overlong UTF-8", b'{"a":"\xc0\xaf"}', S.BAD_MANIFEST),
    ("a surrogate in UTF-8", b'{"a":"\xed\xa0\x80"}', S.BAD_MANIFEST),
    ("UTF-8 above U+10FFFF", b'{"a":"\xf4\x90\x80\x80"}', S.BAD_MANIFEST),
    ("UTF-8 cut", b'{"a":"\xe2\x82"}', S.BAD_MANIFEST),
    ("overlong UTF-8 of three bytes", b'{"a":"\xe0\x80\xaf"}', S.BAD_MANIFEST),
    ("overlong UTF-8 of four bytes", b'{"a":"\xf0\x80\x80\xaf"}', S.BAD_MANIFEST),
    ("a continuation byte", b'{"a":"\x80"}', S.BAD_MANIFEST),
    ("a byte order mark", b"\xef\xbb\xbf{}", S.BAD_MANIFEST),
    ("a minus", b'{"a":-}', S.BAD_MANIFEST),
    ("a plus", b'{"a":+1}', S.BAD_MANIFEST),
    ("a leading zero", b'{"a":01}', S.BAD_MANIFEST),
    ("an exponent", b'{"a":1e2}', S.BAD_MANIFEST),
    ("a point", b'{"a":1.}', S.BAD_MANIFEST),
    ("a word", b'{"a":nul}', S.BAD_MANIFEST),
    ("false", b'{"a":false}', S.BAD_MANIFEST),
    ("minus infinity", b'{"a":-Infinity}', S.BAD_MANIFEST),
    ("2^63", b'{"a":9223372036854775808}', S.BAD_MANIFEST),
    ("-2^63 - 1", b'{"a":-9223372036854775809}', S.BAD_MANIFEST),
    ("20 digits", b'{"a":10000000000000000000}', S.BAD_MANIFEST),
    ("something behind", b"{}{}", S.BAD_MANIFEST),
    ("a letter as a value", b'{"a":x}', S.BAD_MANIFEST),
    ("a letter for a colon", b'{"a"x1}', S.BAD_MANIFEST),
    ("a letter for a quote", b'{xa":1}', S.BAD_MANIFEST),
    ("an object closed as a list", b'{"a":1]', S.BAD_MANIFEST),
    ("a low surrogate twice", b'{"a":"\\udc00\\udc00"}', S.BAD_MANIFEST),
    ("an escape of another letter", b'{"a":"\\x0041"}', S.BAD_MANIFEST),
    ("a letter behind", b"{}x", S.BAD_MANIFEST),
    ("a space behind", b'{"a":1} ', S.NOT_CANONICAL),
    ("a new line in front", b'\n{"a":1}', S.NOT_CANONICAL),
    ("a null under a key that stands twice", b'{"a":null,"a":1}', S.BAD_MANIFEST),
    ("nested deep behind what is not JSON", b"x" + b"[" * 9, S.LIMIT),
    ("closed too often", b"]]]]" + b"[" * 12, S.BAD_MANIFEST),
]  # fmt: skip
"""Texts that are not the JSON of FORMAT.md, section 2, whatever they stand for: (name, text, status)."""

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
    ("a list", rebuilt(b"[]", b""), S.BAD_MANIFEST),
    ("empty object", rebuilt(b"{}", b""), S.BAD_MANIFEST),
    ("a float", edited(setter("trusted_pickle", 0.5)), S.BAD_MANIFEST),
    ("true", edited(setter("trusted_pickle", True)), S.BAD_MANIFEST),
    ("null", edited(setter("name", None)), S.BAD_MANIFEST),
    ("a control character", edited(setter("name", "a\x00b")), S.BAD_MANIFEST),
    ("white space", edited(lambda v: None, text=lambda v: json.dumps(v, sort_keys=True).encode()), S.NOT_CANONICAL),
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
    ("member one byte short", edited(lambda v: v["members"][-1].__setitem__("nbytes", v["members"][-1]["nbytes"] - 1)), S.BAD_TABLE),
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
    ("fused without a member", edited(setter("variants", 0, "fused", 0, "member", ...)), S.BAD_MANIFEST),
    ("fused batch as a text", edited(setter("variants", 0, "fused", 0, "batch", "2")), S.BAD_MANIFEST),
    ("fused program as a number", edited(setter("variants", 0, "fused", 0, "program", 1)), S.BAD_MANIFEST),
    ("fused as an object", edited(setter("variants", 0, "fused", {})), S.BAD_MANIFEST),
    ("fused with a key more", edited(setter("variants", 0, "fused", 0, "engine", "x")), S.BAD_MANIFEST),
    ("fused in an absent member", edited(setter("variants", 0, "fused", 0, "member", "other.onnx")), S.INCONSISTENT),
    ("fused of an unknown program", edited(setter("variants", 0, "fused", 0, "program", "two")), S.INCONSISTENT),
    ("fused batch 0", edited(setter("variants", 0, "fused", 0, "batch", 0)), S.INCONSISTENT),
    ("fused batch 65537", edited(setter("variants", 0, "fused", 0, "batch", 65537)), S.INCONSISTENT),
    ("fused batch 2^32 + 1", edited(setter("variants", 0, "fused", 0, "batch", 2**32 + 1)), S.INCONSISTENT),
    ("fused twice", edited(lambda v: v["variants"][0].update(fused=v["variants"][0]["fused"] * 2)), S.INCONSISTENT),
    ("257 fused programs", edited(lambda v: v["variants"][0].update(fused=v["variants"][0]["fused"] * 257)), S.LIMIT),
    ("threads -1", edited(setter("variants", 0, "threads", -1)), S.INCONSISTENT),
    ("threads 1025", edited(setter("variants", 0, "threads", 1025)), S.INCONSISTENT),
    ("threads 2^32", edited(setter("variants", 0, "threads", 2**32)), S.INCONSISTENT),
    ("threads as a text", edited(setter("variants", 0, "threads", "2")), S.BAD_MANIFEST),
    ("variant without threads", edited(setter("variants", 0, "threads", ...)), S.BAD_MANIFEST),
    ("golden of an unknown program", edited(setter("variants", 0, "golden", 0, "program", "two")), S.INCONSISTENT),
    ("golden with a negative tolerance", edited(setter("variants", 0, "golden", 0, "tolerance", "-0x1.0000000000000p+0")), S.INCONSISTENT),
    ("golden tolerance as inf", edited(setter("variants", 0, "golden", 0, "tolerance", "inf")), S.BAD_MANIFEST),
    ("golden tolerance as 0.5", edited(setter("variants", 0, "golden", 0, "tolerance", "0.5")), S.BAD_MANIFEST),
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
    ("padding that is not zero", padded(SMALL), S.CORRUPT),
    ("manifest cut by the end of the file", cut_manifest(), S.CORRUPT),
    ("manifest that is text", rebuilt(b'"[[[["', b""), S.BAD_MANIFEST),
    ("member table is an object", edited(lambda v: v.update(members={f"m{i}": m for i, m in enumerate(v["members"])})), S.BAD_TABLE),
    ("member that reaches behind the end, the next still further", beyond(), S.BAD_TABLE),
    ("member of no bytes, its hash right", with_empty_member(), S.BAD_TABLE),
    ("no programs at all", bundle_bytes(replace(MANIFEST, programs=(), components={}, variants=(EMPTY,), documents={"r": "recipe.json"}), {"recipe.json": b"{}"}), S.INCONSISTENT),
    ("no variants at all", bundle_bytes(replace(MANIFEST, programs=PLAIN, components={}, variants=(), documents={}), {"p.json": PLAIN_TEXT}), S.INCONSISTENT),
    ("two programs of one name", bundle_bytes(replace(MANIFEST, programs=(*MANIFEST.programs, ProgramEntry("one", 1, "p.json"))), MEMBERS | {"p.json": PLAIN_TEXT}), S.INCONSISTENT),
    ("variant with another component", edited(setter("variants", 0, "components", {"g": "f.onnx"})), S.INCONSISTENT),
    ("component that the variant lacks", edited(lambda v: v["components"].update(g=v["components"]["f"])), S.INCONSISTENT),
    ("condition that is text", edited(setter("conditions", ["[[[["])), S.BAD_MANIFEST),
    # names and limits
    ("variant with a bad name", edited(setter("variants", 0, "name", "float 32")), S.BAD_MANIFEST),
    ("engine with a bad name", edited(setter("variants", 0, "engine", "../x.so")), S.BAD_MANIFEST),
    ("condition with a bad name", edited(setter("conditions", 0, "name", "c d")), S.BAD_MANIFEST),
    ("tensor with a bad name", edited(setter("components", "f", "outputs", 0, "name", "")), S.BAD_MANIFEST),
    ("tensor name of 65 characters", edited(setter("components", "f", "outputs", 0, "name", "o" * 65)), S.BAD_MANIFEST),
    ("component that begins with a digit", edited(lambda v: v["components"].update({"0f": v["components"]["f"]})), S.BAD_MANIFEST),
    ("document that begins with a point", edited(setter("documents", ".recipe", "recipe.json")), S.BAD_MANIFEST),
    ("program with a bad name", edited(setter("programs", 0, "name", "o/ne")), S.BAD_MANIFEST),
    ("summary of 2,049 bytes", edited(setter("summary", "é" * 1024 + "e")), S.LIMIT),
    ("name of 2,049 bytes", edited(setter("name", "n" * 2049)), S.LIMIT),
    ("licence of 2,049 bytes", edited(setter("licence", "n" * 2049)), S.LIMIT),
    ("producer of 2,049 bytes", edited(setter("producer", "n" * 2049)), S.LIMIT),
    ("condition summary of 2,049 bytes", edited(setter("conditions", 0, "summary", "n" * 2049)), S.LIMIT),
    ("65 conditions", edited(setter("conditions", [condition(f"c{i}") for i in range(65)])), S.LIMIT),
    ("65 components", edited(lambda v: v.update(components={f"f{i}": v["components"]["f"] for i in range(65)})), S.LIMIT),
    ("257 programs", edited(lambda v: v.update(programs=[v["programs"][0] | {"name": f"p{i}"} for i in range(257)])), S.LIMIT),
    ("65 variants", edited(lambda v: v.update(variants=[v["variants"][0] | {"name": f"v{i}"} for i in range(65)])), S.LIMIT),
    ("65 documents", edited(setter("documents", {f"d{i}": "recipe.json" for i in range(65)})), S.LIMIT),
    ("2,049 tensors", edited(lambda v: v["components"].update(g=tensors(1000), h=tensors(1046))), S.LIMIT),
    ("257 golden vectors", edited(lambda v: v["variants"][0].update(golden=v["variants"][0]["golden"] * 257)), S.LIMIT),
    ("17 providers", edited(setter("variants", 0, "providers", [{"name": "CUDA", "options": {}}] * 17)), S.LIMIT),
    ("65 options of a provider", edited(setter("variants", 0, "providers", [{"name": "CUDA", "options": {f"o{i}": "1" for i in range(65)}}])), S.LIMIT),
    # keys and types of every part
    ("format is a number", edited(setter("format", 1)), S.BAD_MANIFEST),
    ("sample without a kind", edited(setter("sample", "kind", ...)), S.BAD_MANIFEST),
    ("sample with a key more", edited(setter("sample", "unit", "px")), S.BAD_MANIFEST),
    ("sample shape as text", edited(setter("sample", "shape", "2")), S.BAD_MANIFEST),
    ("sample size as text", edited(setter("sample", "shape", ["2"])), S.BAD_MANIFEST),
    ("sample size of the batch", edited(setter("sample", "shape", ["batch"])), S.BAD_MANIFEST),
    ("sample of rank 7", edited(setter("sample", "shape", [1, 1, 1, 1, 1, 1, 2])), S.BAD_MANIFEST),
    ("sample size 0", edited(setter("sample", "shape", [0])), S.BAD_MANIFEST),
    ("sample low as text", edited(setter("sample", "low", "-1")), S.BAD_MANIFEST),
    ("sample high as text", edited(setter("sample", "high", "1")), S.BAD_MANIFEST),
    ("image of rank 1", edited(setter("sample", "kind", "image")), S.BAD_MANIFEST),
    ("image of two channels", edited(setter("sample", {"shape": [2, 2, 2], "kind": "image", "low": "-0x1.0000000000000p+0", "high": "0x1.0000000000000p+0"})), S.BAD_MANIFEST),
    ("conditions as an object", edited(setter("conditions", {})), S.BAD_MANIFEST),
    ("condition as text", edited(setter("conditions", ["c"])), S.BAD_MANIFEST),
    ("condition without summary", edited(setter("conditions", 0, "summary", ...)), S.BAD_MANIFEST),
    ("condition with a key more", edited(setter("conditions", 0, "unit", "m")), S.BAD_MANIFEST),
    ("condition of an unknown dtype", edited(setter("conditions", 0, "dtype", "int16")), S.BAD_MANIFEST),
    ("condition of rank 7", edited(setter("conditions", 0, "shape", [1] * 7)), S.BAD_MANIFEST),
    ("condition with the batch in its shape", edited(setter("conditions", 0, "shape", ["batch"])), S.BAD_MANIFEST),
    ("condition minimum as text", edited(setter("conditions", 0, "minimum", "0")), S.BAD_MANIFEST),
    ("condition maximum as text", edited(setter("conditions", 0, "maximum", "0")), S.BAD_MANIFEST),
    ("condition default as text", edited(setter("conditions", 0, "default", "0")), S.BAD_MANIFEST),
    ("condition null as a number", edited(setter("conditions", 0, "null", 0)), S.BAD_MANIFEST),
    ("condition twice", edited(setter("conditions", [condition("c"), condition("c")])), S.INCONSISTENT),
    ("component as a list", edited(setter("components", "f", [])), S.BAD_MANIFEST),
    ("component without outputs", edited(setter("components", "f", "outputs", [])), S.BAD_MANIFEST),
    ("component without inputs", edited(setter("components", "f", "inputs", [])), S.BAD_MANIFEST),
    ("component with an input twice", edited(lambda v: v["components"]["f"]["inputs"].append(v["components"]["f"]["inputs"][0])), S.BAD_MANIFEST),
    ("component with a key more", edited(setter("components", "f", "state", [])), S.BAD_MANIFEST),
    ("tensor with a key more", edited(setter("components", "f", "inputs", 0, "unit", "m")), S.BAD_MANIFEST),
    ("tensor of 2^29 elements", edited(lambda v: v["components"]["f"]["outputs"].append(tensor("p", ["batch", 2**15, 2**14]))), S.INCONSISTENT),
    ("program entry with a key more", edited(setter("programs", 0, "seed", 1)), S.BAD_MANIFEST),
    ("program entry with steps as text", edited(setter("programs", 0, "steps", "1")), S.BAD_MANIFEST),
    ("program twice", edited(lambda v: v["programs"].append(v["programs"][0])), S.INCONSISTENT),
    ("two programs in one member", edited(lambda v: v["programs"].append(v["programs"][0] | {"name": "two"})), S.INCONSISTENT),
    ("variant twice", edited(lambda v: v["variants"].append(v["variants"][0])), S.INCONSISTENT),
    ("variant without weights", edited(setter("variants", 0, "weights", ...)), S.BAD_MANIFEST),
    ("variant component as a number", edited(setter("variants", 0, "components", "f", 1)), S.BAD_MANIFEST),
    ("variant weights as a number", edited(setter("variants", 0, "weights", "f", 1)), S.BAD_MANIFEST),
    ("weights of an unknown component", edited(setter("variants", 0, "weights", "g", "f.onnx")), S.INCONSISTENT),
    ("variant with a component more", edited(setter("variants", 0, "components", "g", "f.onnx")), S.INCONSISTENT),
    ("provider without options", edited(setter("variants", 0, "providers", [{"name": "CUDA"}])), S.BAD_MANIFEST),
    ("provider with a bad name", edited(setter("variants", 0, "providers", [{"name": "/x.so", "options": {}}])), S.BAD_MANIFEST),
    ("provider option as a number", edited(setter("variants", 0, "providers", [{"name": "CUDA", "options": {"device": 1}}])), S.BAD_MANIFEST),
    ("golden with a key more", edited(setter("variants", 0, "golden", 0, "seed", 1)), S.BAD_MANIFEST),
    ("golden in an absent member", edited(setter("variants", 0, "golden", 0, "member", "other.f32")), S.INCONSISTENT),
    ("document as a number", edited(setter("documents", "recipe", 1)), S.BAD_MANIFEST),
    ("document in an absent member", edited(setter("documents", "recipe", "other.json")), S.INCONSISTENT),
    *((name, rebuilt(text, b""), status) for name, text, status in TEXTS),
    ("brackets in a string", rebuilt(b'{"a":"[[[[[[[[[[[[[["}', b""), S.BAD_MANIFEST),
    ("nested 8 deep", rebuilt(b"[" * 8 + b"]" * 8, b""), S.BAD_MANIFEST),
]  # fmt: skip
