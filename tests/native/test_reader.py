"""The reader in C++ (FORMAT.md, section 6) held to reliability.md: T2 to T7, T9, T24, T25. docs/security.md has the figures."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import replace

import pytest

from edgegen import canonical
from edgegen.bundle import FusedEntry, Golden, Variant, bundle_bytes
from edgegen.bundle.layout import HEADER, MAGIC
from edgegen.errors import Status
from edgegen.program import Concat, Eval, Input, Lincomb, Muladd, Noise, Program, Reg, program_to_json
from edgegen.spec import ConditionSpec, Signature, TensorSpec
from tests.attacks.bundles import CASES, MANIFEST, MEMBERS, PROGRAM, SMALL, reheadered
from tests.attacks.networks import NETWORKS
from tests.native.conftest import command, run_native
from tests.native.corpus import write_corpus


@pytest.mark.parametrize("build", ["asan", "test", "aarch64", "armhf"])
@pytest.mark.parametrize("odd", [False, True])
def test_every_malformation_has_its_exact_status(files, build, odd):
    """T2, T10, T24. The same corpus is held against the Python reader in tests/bundle, tests/program and tests/runtime."""
    assert len(CASES) >= 60 and len(NETWORKS) >= 30
    run_native(build, "statuses", files / "corpus", *(["--odd"] if odd else []))


def test_the_python_reader_agrees_with_the_corpus(tiny_bundle):
    from edgegen.bundle import parse_bundle
    from edgegen.errors import EdgegenError
    from tests.native.corpus import everything

    for name, data, status in everything(tiny_bundle):
        if name.startswith(("network", "encoding")):
            continue  # found when a session opens them: tests/runtime/test_session.py
        try:
            parse_bundle(bytes(data))
            found = Status.OK
        except EdgegenError as e:
            found = e.code
        assert found == status, name


@pytest.mark.parametrize("name", ["small", "tiny"])
def test_every_truncation_and_every_flipped_bit_is_rejected(files, name):
    """T3, T4."""
    out = run_native("test", "flips", files / f"{name}.edgegen")
    cuts, flips = map(int, re.findall(r"\d+", out))
    size = (files / f"{name}.edgegen").stat().st_size
    assert cuts == size and flips == 8 * size


def test_sizes_at_the_corners_of_the_integers_have_their_exact_status(files):
    """T9: 7,380 shapes of rank 1 to 4 for each dtype."""
    assert run_native("test", "sizes", files / "small.edgegen").strip() == f"{7380 * 8} shapes"


def test_deleting_any_check_is_noticed(files):
    """T25."""
    out = run_native("checks", "deleted_checks", files / "corpus")
    noticed, total = map(int, re.findall(r"(\d+) of (\d+)", out)[0])
    assert noticed == total >= 200


def greedy():
    """Sound bundles, and nearly sound ones, that want as much memory as the format lets them: (name, bytes, status)."""
    long = "n" * 63
    shape = ("batch", 1, 1, 1, 1, 1)
    many = tuple(TensorSpec(f"{long[:58]}_{i:04}", "float32", shape) for i in range(1024))
    texts = dict(name="n" * 2048, summary="s" * 2048, licence="l" * 2048, producer="p" * 2048)
    conditions = tuple(ConditionSpec(f"{long[:60]}{i:03}", "float32", (1,) * 6, 0.0, 1.0, 0.5, 2.0, "s" * 2048) for i in range(64))
    yield "2,048 tensors and 64 conditions with long names and texts", bundle_bytes(
        replace(MANIFEST, components=MANIFEST.components | {"g": Signature(many[:1021], many[:1024])}, conditions=conditions, variants=(replace(MANIFEST.variants[0], components={"f": "f.onnx", "g": "f.onnx"}),), **texts), MEMBERS
    ), Status.OK  # fmt: skip
    golden = tuple(Golden("one", "golden.f32", 0.5) for _ in range(256))
    fused = tuple(FusedEntry("one", i + 1, "fused.onnx") for i in range(40))
    variants = tuple(Variant(f"v{i}", "elsewhere", {"f": "f.onnx"}, golden[:40], fused=fused) for i in range(64))
    documents = {f"d{i}": "recipe.json" for i in range(64)}
    yield (
        "64 variants of 40 golden vectors and 40 fused programs",
        bundle_bytes(replace(MANIFEST, variants=variants, documents=documents), MEMBERS),
        Status.OK,
    )
    steps = [Lincomb(f"{long[:58]}_{i:04}", tuple((1.0, "x_T") for _ in range(16))) for i in range(4093)]
    yield "4,096 registers with long names", bundle_bytes(MANIFEST, MEMBERS | {"program.0.json": encoded(*steps)}), Status.OK
    yield (
        "65,536 instructions",
        bundle_bytes(MANIFEST, MEMBERS | {"program.0.json": encoded(*(Noise("z", "x_T", i + 1) for i in range(65_534)))}),
        Status.OK,
    )
    wide = Muladd("z", "x_T", (1.0,) * 65_536, (0.0,) * 65_536)
    yield "65,536 channels", bundle_bytes(MANIFEST, MEMBERS | {"program.0.json": encoded(wide)}), Status.INCONSISTENT
    doubling = [Concat("r0", ("x_T", "x_T")), *(Concat(f"r{i + 1}", (f"r{i}",) * 16) for i in range(60))]
    yield "a register of 2^240 elements", bundle_bytes(MANIFEST, MEMBERS | {"program.0.json": encoded(*doubling)}), Status.INCONSISTENT
    operands = Eval("f", {f"i{k:03}": tuple(Reg("x_T") for _ in range(16)) for k in range(64)}, {"o": tuple(f"o{b}" for b in range(16))})
    yield "1,024 operands", bundle_bytes(MANIFEST, MEMBERS | {"program.0.json": encoded(operands, nfe=16)}), Status.BAD_PROGRAM
    yield "a file of 4 KiB that claims 2^40", reheadered(SMALL[:64] + bytes(4032), total=2**40), Status.TRUNCATED
    yield "a header that claims a manifest of 1 MiB", HEADER.pack(MAGIC, 1, 0, 0, 64, 2**20, 4096, 64, bytes(32)), Status.CORRUPT
    yield "a list of half a million numbers", with_text(b"[" + b"1," * 500_000 + b"1]"), Status.BAD_MANIFEST
    yield "an object of many keys", with_text(b"{" + b",".join(b'"k%06d":1' % i for i in range(80_000)) + b"}"), Status.BAD_MANIFEST
    yield "a string of a mebibyte", with_text(b'"' + b"x" * (2**20 - 2) + b'"'), Status.BAD_MANIFEST


def with_text(text):
    import hashlib

    return HEADER.pack(MAGIC, 1, 0, 0, 64, len(text), 1, 64 + len(text), hashlib.sha256(text).digest()) + text


def encoded(*instructions, nfe=0):
    program = Program("one", (Input("x_T"),), (*instructions, *PROGRAM.instructions), {"sample": "y"}, {"f": 1 + nfe})
    return canonical.encode(program_to_json(program))


@pytest.mark.parametrize("build", ["test", "armhf"])
def test_opening_costs_the_files_size_and_at_most_a_mebibyte(files, tmp_path, build):
    """T5."""
    from edgegen.bundle import parse_bundle
    from edgegen.errors import EdgegenError

    cases = list(greedy())
    for name, data, status in cases:
        try:
            parse_bundle(data)
            assert status == Status.OK, name
        except EdgegenError as e:
            assert e.code == status, name
    corpus = write_corpus(tmp_path / "greedy", cases)
    run_native(build, "statuses", corpus)
    print(run_native(build, "memory", "peak", corpus), run_native(build, "memory", "peak", files / "corpus"))


def archives():
    """Other formats, and formats that are also something else: (name, bytes)."""
    z, t = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(z, "w") as f:
        f.writestr("manifest.json", "{}")
    with tarfile.open(fileobj=t, mode="w") as f:
        f.addfile(tarfile.TarInfo("manifest.json"))
    png = b"\x89PNG\r\n\x1a\n" + bytes(100)
    formats = {
        "zip": z.getvalue(), "tar": t.getvalue(), "gzip": b"\x1f\x8b\x08" + bytes(100), "elf": b"\x7fELF" + bytes(100), "png": png, "gguf": b"GGUF" + bytes(100),
        "pickle": b"\x80\x04\x95" + bytes(100), "onnx": b"\x08\x0a" + bytes(100), "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100), "text": b"#!/bin/sh\nexit 0\n" * 10,
        "json": b"{}" * 50, "safetensors": b"\x02\0\0\0\0\0\0\0{}" + bytes(100),
    }  # fmt: skip
    for name, data in formats.items():
        yield name, data, Status.NOT_A_BUNDLE
        yield f"{name} in front", data + SMALL, Status.NOT_A_BUNDLE
        yield f"{name} behind", SMALL + data, Status.CORRUPT


@pytest.mark.parametrize("name,data,status", list(archives()), ids=[a[0] for a in archives()])
def test_archives_and_polyglots_are_foreign(tmp_path, name, data, status):
    """T7; and not more than 64 KiB of a foreign file is read, however large it is."""
    path = tmp_path / "x.edgegen"
    path.write_bytes(data + (b"" if status == Status.CORRUPT else bytes(300_000)))
    done = subprocess.run([*command("", "edgegen-run"), "inspect", path], capture_output=True, text=True)
    assert done.returncode == 1 and f", {int(status)})" in done.stderr
    if status == Status.NOT_A_BUNDLE and shutil.which("strace"):
        trace = subprocess.run(
            ["strace", "-e", "trace=read,pread64,mmap", "-P", path, *command("", "edgegen-run"), "inspect", path], capture_output=True, text=True
        ).stderr
        assert sum(int(n) for n in re.findall(r"= (\d+)$", trace, re.M)) <= 65_536


NAMES = [
    "..", "../x", "../../etc/passwd", "/etc/passwd", "/", "./x", "a/b", "a\\b", "C:\\x", "C:x", "\\\\server\\share", "//server/share", "a:b", "a b", "a\tb", "a\nb",
    "a\u0000b", "con", "CON", "Aux", "NUL", "x" * 65, "x" * 255, "é", "e\u0301", "\u212a", "x.", ".x", "..x", "-x", "~", "~root", "$HOME", "%PATH%", "x;rm", "x|y", "x&y",
    "*", "?", "x\u202ey", "", " ", "file:///etc/passwd", "..%2f..%2fetc",
]  # fmt: skip


def test_names_that_are_paths_are_refused_and_nothing_else_is_opened(tmp_path):
    """T6: member names, in the file that edgegen-run opens under strace."""
    from tests.attacks.bundles import edited, setter

    assert len(NAMES) >= 40
    for i, name in enumerate(NAMES):
        data = edited(setter("members", 0, "name", name))
        path = tmp_path / f"{i}.edgegen"
        path.write_bytes(data)
        done = subprocess.run([*command("", "edgegen-run"), "inspect", path], capture_output=True, text=True, cwd=tmp_path)
        allowed = re.fullmatch(r"[a-z0-9_][a-z0-9_.-]{0,63}", name)
        assert done.returncode == 1 and re.search(r", (209|207|210)\)", done.stderr), (name, done.stderr)
        assert not allowed or "nothing names" in done.stderr or "not there" in done.stderr or "ascending" in done.stderr, (name, done.stderr)
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: what is opened was not watched")
    trace = subprocess.run(
        ["strace", "-f", "-e", "trace=open,openat,creat,unlink,rename,mkdir,execve", *command("", "edgegen-run"), "inspect", tmp_path / "2.edgegen"],
        capture_output=True, text=True, cwd=tmp_path,
    ).stderr  # fmt: skip
    opened = re.findall(r'(?:open|openat|creat)\((?:AT_FDCWD, )?"([^"]+)"', trace)
    assert [p for p in opened if not re.search(r"^/(lib|usr|etc)/|\.so\b", p)] == [str(tmp_path / "2.edgegen")]
    assert not [p for p in opened if "passwd" in p] and not re.search(r"(unlink|rename|mkdir)\(", trace)


def test_what_is_not_a_regular_file_is_not_opened(tmp_path):
    """T6: a fifo does not block, a device is not read; a link to a bundle is a bundle."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for path in (tmp_path, tmp_path / "fifo", "/dev/zero", "/dev/full", tmp_path / "dangling", tmp_path / "absent"):
        done = subprocess.run([*command("", "edgegen-run"), "inspect", path], capture_output=True, text=True, timeout=20)
        assert done.returncode == 1 and ", 200)" in done.stderr, done.stderr
    (tmp_path / "small.edgegen").write_bytes(SMALL)
    (tmp_path / "link").symlink_to(tmp_path / "small.edgegen")
    subprocess.run([*command("", "edgegen-run"), "inspect", tmp_path / "link"], check=True, capture_output=True)
