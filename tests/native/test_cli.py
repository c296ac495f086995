"""edgegen-run: what it prints, writes and returns, beside the Python runtime; every engine that is missing, too old or without a provider."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest

import edgegen
from edgegen.bundle import Provider, bundle_bytes, open_bundle
from edgegen.program import Executable, initial_state, normals
from edgegen.program.surrogate import surrogates
from tests.native.conftest import BUILD, command, other_onnxruntime


@pytest.fixture(scope="module")
def tiny(files):
    return files / "tiny.edgegen"


@pytest.fixture
def run(tmp_path, onnxruntime_library):
    """Run edgegen-run in an empty folder: exit code, standard output and error."""

    def go(*words, build="asan", library=onnxruntime_library, **environment):
        engine = [] if library is None else ["--onnxruntime", library]
        done = subprocess.run(
            [*command(build, "edgegen-run"), *map(str, [*words[:1], *engine, *words[1:]])], capture_output=True, text=True, cwd=tmp_path, timeout=120,
            env=os.environ | {"ASAN_OPTIONS": "detect_leaks=1"} | environment,
        )  # fmt: skip
        assert "Sanitizer" not in done.stderr, done.stderr
        mine = [line for line in done.stderr.splitlines(keepends=True) if "cpuid_info warning" not in line]  # qemu's processor
        return done.returncode, done.stdout, "".join(mine)

    return go


@pytest.mark.parametrize("variant", ["float32", "int8"])
@pytest.mark.parametrize(
    "words, options",
    [
        ([], {}),
        (["--seed", 2**64 - 1], {"seed": 2**64 - 1}),
        (["--steps", 2, "--batch", 3, "--set", "label=3"], {"steps": 2, "batch": 3, "label": 3}),
        (["--program", "ddim-3", "--batch", 2, "--set", "label=0,2", "--seed", 7], {"program": "ddim-3", "batch": 2, "label": [0, 2], "seed": 7}),
        (["--batch", 2, "--set", "label=@labels.npy"], {"batch": 2, "label": [3, 1]}),
    ],
)
def test_samples_are_those_of_the_python_runtime(tiny, run, tmp_path, variant, words, options):
    np.save(tmp_path / "labels.npy", np.array([3, 1]))
    code, out, err = run(tiny, "--variant", variant, "--threads", 1, "-o", "x.npy", *words)
    assert (code, out) == (0, "x.npy\n") and re.fullmatch(rf"\S+ on {variant}: \d+ evaluations, [\d.]+ ms\n", err), err
    with edgegen.load(tiny, variant=variant, threads=1) as session:
        expected = session.generate(**{"seed": 0} | options)
    found = np.load(tmp_path / "x.npy")
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    assert not list(tmp_path.glob("*.part"))


def test_pictures(tiny, run, tmp_path):
    assert run(tiny, "--batch", 3, "-o", "x.pgm")[0] == 0 and run(tiny, "--batch", 3, "-o", "x.npy")[0] == 0
    values = np.load(tmp_path / "x.npy").clip(-1, 1)
    expected = np.hstack(np.floor((values[:, 0].astype(np.float64) + 1) / 2 * 255 + 0.5).astype(np.uint8))
    assert (tmp_path / "x.pgm").read_bytes() == b"P5\n24 8\n255\n" + expected.tobytes()


def test_the_surrogate_and_its_digest(tiny, run):
    bundle = open_bundle(tiny)
    program = bundle.programs["ddim-3"]
    inputs = {"label": np.array([2, 2])} | initial_state(program, normals(5, 0, (2, 1, 8, 8)))
    sample = Executable(program).run(surrogates(bundle.manifest.components), inputs, seed=5, rows=2)["sample"]
    words = (tiny, "--surrogate", "--digest", "--program", "ddim-3", "--seed", 5, "--batch", 2, "--set", "label=2")
    code, out, _ = run(*words, library=None, PATH="")
    assert (code, out) == (0, hashlib.sha256(sample.tobytes()).hexdigest() + "\n")


def test_verify_bench_inspect_and_help(tiny, run, tmp_path):
    code, out, _ = run("verify", tiny)
    lines = out.splitlines()
    assert code == 0 and lines.pop() == str(tiny)
    assert len(lines) == sum(len(v.golden) for v in open_bundle(tiny).manifest.variants)
    assert all(re.fullmatch(r"(float32|int8) \S+ RMSE \S+ tolerance \S+ ok", line) for line in lines)
    code, out, _ = run("bench", tiny, "--iters", 3, "--warmup", 1, "--variant", "int8", build="test")
    assert code == 0 and re.match(
        r"int8 \S+ batch 1: p50 [\d.]+ ms, p90 [\d.]+ ms, p99 [\d.]+ ms, outside the networks [\d.]+%, peak RSS \d+ MiB\n", out
    )
    code, out, _ = run("inspect", tiny)
    assert code == 0 and "condition label: int64[] from 0 to 3, default 1" in out
    assert "  in  x: float32[batch, 1, 8, 8]" in out and "program ddim-3: 3 steps, 3 evaluations" in out
    assert run("--help", library=None)[1].startswith("usage: edgegen-run FILE")
    assert run("--version", library=None)[1] == f"edgegen-run {edgegen.__version__}\n"
    # a golden vector that is not what this device makes
    bundle = open_bundle(tiny)
    members = {name: bundle.member(name) for name in bundle.table}
    wrong = bundle.manifest.variants[0].golden[0].member
    members[wrong] = (np.frombuffer(members[wrong], "<f4") + np.float32(0.5)).tobytes()
    (tmp_path / "wrong.edgegen").write_bytes(bundle_bytes(bundle.manifest, members))
    code, out, _ = run("verify", tmp_path / "wrong.edgegen")
    assert code == 1 and out.count("DIFFERS") == 1 and out.count("ok") == len(lines) - 1
    code, out, err = run("verify", tiny, "--variant", "none")
    assert code == 4 and "no variant" in err and out == ""
    damaged = bytearray(tiny.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.edgegen").write_bytes(damaged)
    code, out, err = run("verify", tmp_path / "damaged.edgegen")
    assert code == 1 and "SHA-256" in err and "damaged.edgegen" in err and out == ""


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "usage:"),
        (["FILE", "more"], "only one file"),
        (["FILE", "--fast"], "expected a value"),
        (["FILE", "--fast", "1"], "unknown option"),
        (["FILE", "--seed"], "expected a value"),
        (["FILE", "--seed", "-1"], "0 .. 2^64 - 1"),
        (["FILE", "--seed", str(2**64)], "0 .. 2^64 - 1"),
        (["FILE", "--seed", "01"], "0 .. 2^64 - 1"),
        (["FILE", "--seed", "1.5"], "0 .. 2^64 - 1"),
        (["FILE", "--steps", "0"], "1 .. 65536"),
        (["FILE", "--steps", "9"], "no program of 9 steps"),
        (["FILE", "--batch", "65537"], "1 .. 65536"),
        (["FILE", "--threads", "2000"], "0 .. 1024"),
        (["FILE", "--iters", "0"], "at least 1"),
        (["FILE", "--program", "none"], "no program 'none'"),
        (["FILE", "-o", "x.png"], ".npy, .pgm or .ppm"),
        (["FILE", "--set", "label"], "NAME=number"),
        (["FILE", "--set", "label="], "NAME=number"),
        (["FILE", "--set", "label=1,"], "NAME=number"),
        (["FILE", "--set", "label=one"], "NAME=number"),
        (["FILE", "--set", "lable=1"], "no condition"),
        (["FILE", "--set", "label=7"], "out of range"),
        (["FILE", "--set", "label=1.5"], "int64"),
        (["FILE", "--set", "label=1e30,1e30", "--batch", "2"], "does not fit"),
        (["FILE", "--set", "label=nan,1", "--batch", "2"], "does not fit"),
        (["FILE", "--set", "label=1,2,3", "--batch", "2"], "expected 16"),
        (["FILE", "--set", "label=@absent.npy"], "cannot be opened"),
        (["FILE", "--set", "label=@text.npy"], "not a .npy file"),
        (["FILE", "--set", "label=@cut.npy"], "shorter than its shape"),
        (["FILE", "--set", "label=@fortran.npy"], "C order"),
        (["FILE", "--set", "label=@complex.npy"], "dtype"),
        (["FILE", "--set", "label=@float.npy"], "expected int64, found float32"),
        (["FILE", "--set", "label=@wide.npy"], "shape [2, 2]"),
        (["FILE", *["--set", "label=1"] * 65], "at most 64"),
    ],
)
def test_wrong_usage_ends_with_two_and_one_sentence(tiny, run, tmp_path, words, says):
    (tmp_path / "text.npy").write_text("no array at all, only text")
    np.save(tmp_path / "whole.npy", np.arange(2))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-1])
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.zeros((2, 2), np.int64)))
    np.save(tmp_path / "complex.npy", np.zeros(2, np.complex64))
    np.save(tmp_path / "float.npy", np.zeros((), np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((2, 2), np.int64))
    code, out, err = run(*[tiny if word == "FILE" else word for word in words])
    assert code == 2 and out == "" and says in err, (code, err)
    assert says == "usage:" or len(err.splitlines()) == 1
    assert not (tmp_path / "out.npy").exists()


def test_npy_files_of_any_bytes_end_in_an_exit_code(tiny, run, tmp_path):
    np.save(tmp_path / "whole.npy", np.array([1]))
    data, rng = (tmp_path / "whole.npy").read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        mutant = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            mutant[int(rng.integers(6, len(mutant)))] = int(rng.integers(256))
        (tmp_path / "mutant.npy").write_bytes(mutant)
        assert run(tiny, "--surrogate", "--digest", "--set", "label=@mutant.npy", library=None)[0] in (0, 1, 2)


def test_what_cannot_be_read_or_written_ends_with_one(tiny, run, tmp_path):
    code, _, err = run(tmp_path / "absent.edgegen")
    assert code == 1 and err.count("absent.edgegen") == 1 and "No such file" in err
    code, out, err = run(tiny, "-o", "absent/x.npy")
    assert code == 1 and out == "" and "absent/x.npy: cannot be written" in err
    (tmp_path / "folder.npy").mkdir()
    code, _, err = run(tiny, "-o", "folder.npy")
    assert code == 1 and "not a regular file" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.npy"]
    code, _, err = run(tiny, "--batch", 65536, "--variant", "none")
    assert code == 4 and "no variant 'none'" in err


def test_an_existing_file_stays_whole_until_the_new_one_is(tiny, run, tmp_path):
    (tmp_path / "x.npy").write_text("old")
    assert run(tiny, "-o", "x.npy", "--set", "label=9")[0] == 2 and (tmp_path / "x.npy").read_text() == "old"
    assert run(tiny, "-o", "x.npy")[0] == 0 and np.load(tmp_path / "x.npy").shape == (1, 1, 8, 8)


def test_an_interrupt_ends_the_run(tiny, tmp_path, onnxruntime_library):
    words = [*command("", "edgegen-run"), tiny, "--batch", "65536", "--threads", "1", "--onnxruntime", onnxruntime_library]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    began = time.perf_counter()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "cancelled" in err and time.perf_counter() - began < 4
    assert not list(tmp_path.iterdir())


def with_providers(path, *named):
    """A bundle's float32 variant, once for each list of providers (name, options), as variants a, b, ..."""
    bundle = open_bundle(path)
    v = next(v for v in bundle.manifest.variants if v.name == "float32")
    variants = tuple(replace(v, name="abc"[i], providers=tuple(Provider(*p) for p in providers)) for i, providers in enumerate(named))
    manifest = replace(bundle.manifest, variants=variants)
    return bundle_bytes(manifest, {name: bundle.member(name) for name in manifest.members()})


@pytest.mark.parametrize("build", ["", "aarch64"])
def test_a_provider_that_is_not_there_gives_way_to_the_next_variant(tiny, run, tmp_path, onnxruntime_library, build):
    library = other_onnxruntime("1.24.4-aarch64") if build == "aarch64" else onnxruntime_library
    (tmp_path / "two.edgegen").write_bytes(with_providers(tiny, [("TensorRT", {}), ("CUDA", {})], []))
    code, _, err = run("two.edgegen", "-o", "x.npy", build=build, library=library)
    first, second = err.splitlines()
    assert code == 0 and second.startswith("dpmpp_2m-4 on b:")
    assert re.fullmatch(
        r"edgegen-run: variant a: the execution provider TensorRT is needed, which ONNX Runtime [\d.]+ here does not have.*", first
    ), first
    code, _, err = run("two.edgegen", "--variant", "a", build=build, library=library)
    assert code == 4 and "execution provider TensorRT" in err and len(err.splitlines()) == 1
    (tmp_path / "one.edgegen").write_bytes(with_providers(tiny, [("QNN", {})]))
    code, _, err = run("one.edgegen", build=build, library=library)
    assert code == 4 and "execution provider QNN" in err and len(err.splitlines()) == 1
    (tmp_path / "none.edgegen").write_bytes(with_providers(tiny, [("CUDA", {})], [("CoreML", {})]))
    code, _, err = run("none.edgegen", build=build, library=library)
    assert code == 4 and "no variant of this bundle runs here" in err.splitlines()[-1] and "CUDA" in err and "CoreML" in err


def test_a_missing_library_is_one_clear_sentence(tiny, run, tmp_path):
    code, _, err = run(tiny, library=None, PATH="", HOME=str(tmp_path), VIRTUAL_ENV="")
    assert code == 4 and len(err.splitlines()) == 1
    assert "ONNX Runtime was not found" in err and "pip install onnxruntime" in err and "400" in err
    code, _, err = run(tiny, library="absent/libonnxruntime.so.1")
    assert code == 4 and "absent/libonnxruntime.so.1" in err and len(err.splitlines()) == 1
    code, _, err = run(tiny, library=BUILD / "native" / "libedgegen.so")
    assert code == 4 and "is not ONNX Runtime" in err and len(err.splitlines()) == 1


def test_a_library_that_is_too_old_is_one_clear_sentence(tiny, run):
    """ONNX Runtime 1.19.2."""
    code, _, err = run(tiny, library=other_onnxruntime("1.19.2-x86_64"))
    ours = [line for line in err.splitlines() if line.startswith("edgegen-run")]  # 1.19 writes a line of its own
    assert code == 4 and len(ours) == 1 and "ONNX Runtime 1.19.2" in err and "is too old: 1.20 or newer is needed" in err


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_the_oldest_version_runs(tiny, run, tmp_path, variant):
    """ONNX Runtime 1.20.1: the same samples to the engine's tolerance, and every golden vector."""
    old = other_onnxruntime("1.20.1-x86_64")
    assert run(tiny, "--variant", variant, "-o", "new.npy")[0] == 0
    assert run(tiny, "--variant", variant, "-o", "old.npy", library=old, build="test")[0] == 0  # the old one has a leak of its own
    np.testing.assert_allclose(np.load(tmp_path / "old.npy"), np.load(tmp_path / "new.npy"), atol=1e-5)
    assert run("verify", tiny, "--variant", variant, library=old, build="test")[0] == 0


def test_the_usual_places(tiny, run, tmp_path, onnxruntime_library):
    """Beside libedgegen, in $VIRTUAL_ENV, in the Python on PATH, in the user's packages; what does not load ends no search."""

    def package(prefix, *, good=True):
        folder = prefix / "lib" / "python3.11" / "site-packages" / "onnxruntime" / "capi"
        folder.mkdir(parents=True)
        if good:
            (folder / "libonnxruntime.so.1.32.0").symlink_to(onnxruntime_library)
        else:
            (folder / "libonnxruntime.so.1.0.0").write_text("not a library")
        (prefix / "bin").mkdir()
        (prefix / "bin" / "python3").write_text("#!/bin/sh\n")
        (prefix / "bin" / "python3").chmod(0o755)
        return prefix

    nowhere = {"PATH": "", "HOME": str(tmp_path / "nobody"), "VIRTUAL_ENV": ""}
    user = package(tmp_path / "home" / ".local").parent
    python, broken = package(tmp_path / "python"), package(tmp_path / "broken", good=False)
    for environment in ({"VIRTUAL_ENV": str(python)}, {"PATH": f"/nowhere:{python / 'bin'}"}, {"HOME": str(user)}):
        assert run(tiny, library=None, **nowhere | environment)[0] == 0, environment
    assert run(tiny, library=None, **nowhere | {"VIRTUAL_ENV": str(broken), "PATH": str(python / "bin")})[0] == 0
    code, _, err = run(tiny, library=None, **nowhere | {"VIRTUAL_ENV": str(broken)})
    assert code == 4 and "was found and cannot be loaded" in err and "broken" in err
    beside = tmp_path / "beside"
    beside.mkdir()
    for name in ("edgegen-run", "libedgegen.so.1"):
        shutil.copy(BUILD / "native" / name, beside / name)
    (beside / "libonnxruntime.so.1.32.0").symlink_to(onnxruntime_library)
    done = subprocess.run([beside / "edgegen-run", tiny], cwd=tmp_path, env=nowhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
