"""kill -9, Ctrl-C, full disks and read-only folders: nothing is lost, half-written or different afterwards."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import write_tiny


def command(recipe, output, cache, *more):
    return [sys.executable, "-m", "edgegen.cli", "build", str(recipe), "-o", str(output), "--cache-dir", str(cache), "--no-measure", *more]


def build(recipe, output, cache, *more, env=None, cwd=None):
    done = subprocess.run(command(recipe, output, cache, *more), env={**os.environ, **(env or {})}, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return hashlib.sha256(Path(output).read_bytes()).hexdigest()


def kill_and_resume(recipe, tmp_path, kills, seconds, *more):
    """Kill `kills` builds at random moments; after each, one more build must give the reference bytes and leave no temporary files."""
    reference = build(recipe, tmp_path / "reference.edgegen", tmp_path / "reference-cache", *more)
    draw, killed = random.Random(0), 0
    for i in range(kills):
        cache, output = tmp_path / f"cache{i}", tmp_path / f"out{i}.edgegen"
        process = subprocess.Popen(command(recipe, output, cache, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.0, seconds))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        if output.exists():
            assert hashlib.sha256(output.read_bytes()).hexdigest() == reference
        finished = {p.parent.name: p.stat().st_mtime_ns for p in cache.glob("[!t]*-*/stage.json")} if cache.exists() else {}
        assert build(recipe, output, cache, *more) == reference, f"kill {i}"
        again = {p.parent.name: p.stat().st_mtime_ns for p in cache.glob("[!t]*-*/stage.json")}
        remade = [name for name, made in finished.items() if again.get(name) != made]
        assert not remade, f"kill {i}: finished stages were made again: {remade}"
        assert not list(cache.glob("tmp-*")) and not list(tmp_path.glob(".*.tmp"))
        shutil.rmtree(cache)
    return killed


def test_builds_killed_at_20_random_moments_resume_to_the_same_bytes(tmp_path):
    began = time.monotonic()
    write_tiny(tmp_path)
    build(tmp_path / "recipe.toml", tmp_path / "w.edgegen", tmp_path / "w")
    whole = time.monotonic() - began
    assert kill_and_resume(tmp_path / "recipe.toml", tmp_path, 20, whole) >= 10


@pytest.mark.slow
def test_digits_killed_at_20_random_moments_resumes_to_the_same_bytes(tmp_path):
    recipe = Path(__file__).parents[2] / "export" / "digits" / "recipe.toml"
    assert kill_and_resume(recipe, tmp_path, 20, 35.0) >= 10


def test_folders_locales_time_zones_hash_seeds_and_threads_do_not_change_the_bytes(tmp_path):
    hashes = set()
    for i, env in enumerate([
        {"TZ": "UTC", "LC_ALL": "C", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        {"TZ": "Asia/Kathmandu", "LC_ALL": "de_DE.UTF-8", "PYTHONHASHSEED": "1"},
        {"TZ": "America/St_Johns", "LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2"},
    ]):  # fmt: skip
        folder = tmp_path / f"folder {i}" / ("deep" * i or "x")
        write_tiny(folder)
        (folder / "weights.safetensors").write_bytes(b"unused by an ONNX source, but its path must not travel")
        hashes.add(
            build(
                folder / "recipe.toml",
                folder / "o.edgegen",
                folder / "cache",
                "--set",
                f"model.weights={folder / 'weights.safetensors'}",
                env=env,
                cwd=folder,
            )
        )
        assert str(tmp_path).encode() not in (folder / "o.edgegen").read_bytes()
    assert len(hashes) == 1


STAGE_HOOK = """
import sys, os, signal
from edgegen import stages, cli
name = sys.argv.pop(1)
def interrupted(*a, **k):
    os.kill(os.getpid(), signal.SIGINT)
    import time; time.sleep(5)
if name == "pack":
    import edgegen.pipeline; edgegen.pipeline.write_atomically = interrupted
else:
    setattr(stages, name, interrupted)
cli.main()
"""


@pytest.mark.parametrize("stage", ["export", "calibrate", "quantize", "compile_variants", "measure", "pack"])
def test_ctrl_c_in_each_stage_keeps_what_was_done_and_the_old_output(tmp_path, stage):
    write_tiny(tmp_path)
    output, cache = tmp_path / "o.edgegen", tmp_path / "cache"
    output.write_bytes(b"the old bundle")
    arguments = ["build", str(tmp_path / "recipe.toml"), "-o", str(output), "--cache-dir", str(cache)]
    done = subprocess.run([sys.executable, "-c", STAGE_HOOK, stage, *arguments], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert "interrupted; completed stages are kept" in done.stderr and "Traceback" not in done.stderr
    assert output.read_bytes() == b"the old bundle"
    assert not list(cache.glob("tmp-*")) and not list(tmp_path.glob(".*.tmp"))
    earlier = ["export", "calibrate", "quantize", "compile", "measure"]
    expected = earlier[: earlier.index(stage.removesuffix("_variants"))] if stage != "pack" else earlier
    assert sorted({p.name.split("-")[0] for p in cache.iterdir() if p.is_dir()}) == sorted(expected)


@pytest.fixture
def mounted(tmp_path):
    """mount(size) -> a small tmpfs; skipped where mounting is not allowed."""
    mounts = []

    def mount(size, options=""):
        place = tmp_path / f"mount{len(mounts)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", str(place)], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no tmpfs may be mounted here: {done.stderr.strip()}")
        mounts.append(place)
        return place

    yield mount
    for place in mounts:
        subprocess.run(["umount", "-l", str(place)], check=False)


def fails(recipe, output, cache, message, *options):
    done = subprocess.run([*command(recipe, output, cache), *options], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("kib", [4, 8, 12, 16, 24, 32, 48])
def test_a_full_disk_under_the_output_keeps_the_old_bundle(tmp_path, mounted, kib):
    write_tiny(tmp_path)
    reference = build(tmp_path / "recipe.toml", tmp_path / "r.edgegen", tmp_path / "cache")
    place = mounted(f"{kib}k")
    output = place / "o.edgegen"
    output.write_bytes(b"old")
    pages = 1 + -(-(tmp_path / "r.edgegen").stat().st_size // 4096)  # the old file, and the new one beside it
    if pages > kib // 4:
        fails(tmp_path / "recipe.toml", output, tmp_path / "cache", "no space left")
        assert output.read_bytes() == b"old"
        assert [p.name for p in place.iterdir()] == ["o.edgegen"]
        subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
    assert build(tmp_path / "recipe.toml", output, tmp_path / "cache") == reference


@pytest.mark.parametrize("kib", [4, 12, 20, 40, 60])
def test_a_full_disk_under_the_cache_is_a_clean_error_and_resumes(tmp_path, mounted, kib):
    write_tiny(tmp_path)
    reference = build(tmp_path / "recipe.toml", tmp_path / "r.edgegen", tmp_path / "cache")
    place = mounted(f"{kib}k")
    fails(tmp_path / "recipe.toml", tmp_path / "o.edgegen", place / "cache", "this build will not fit")
    assert not (tmp_path / "o.edgegen").exists() and not list(place.glob("cache/*-*"))
    fails(tmp_path / "recipe.toml", tmp_path / "o.edgegen", place / "cache", "no space left", "--no-fit")
    assert not (tmp_path / "o.edgegen").exists()
    subprocess.run(["mount", "-o", "remount,size=16m", str(place)], check=True)
    assert build(tmp_path / "recipe.toml", tmp_path / "o.edgegen", place / "cache") == reference


def test_a_read_only_output_folder_is_refused_before_slow_work(tmp_path, mounted):
    write_tiny(tmp_path)
    place = mounted("64k", ",ro")
    began = time.monotonic()
    fails(tmp_path / "recipe.toml", place / "o.edgegen", tmp_path / "cache", "cannot write")
    assert not (tmp_path / "cache").exists(), f"work was done first ({time.monotonic() - began:.1f} s)"
