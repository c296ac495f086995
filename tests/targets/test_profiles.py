"""Target profiles: the built-in files, a user's own, what is refused and how, and whether a profile runs here."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgegen.errors import RecipeError
from edgegen.targets import profiles
from edgegen.targets.nvidia import Gpu, board, nvidia_gpus
from edgegen.targets.profiles import PRECISIONS, TargetProfile, host_profile, profile_named, profile_names

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "edgegen" / "targets" / "profiles"
DOCUMENT = ROOT / "docs" / "targets.md"

OWN = """\
summary = "my camera's board"
engine = "onnxruntime"
architecture = "any"
providers = ["XNNPACK"]
precisions = ["float32", "int8"]
threads = [1, 2]
memory_mb = 512
"""


def write(folder, text, name="mine.toml"):
    (folder / name).write_text(text)
    return folder / name


def test_every_device_of_the_issue_has_a_profile():
    assert set(profile_names()) >= {
        "cpu-x86", "cpu-arm64", "rtx-2000", "rtx-3000", "rtx-4000", "rtx-5000", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin",
        "jetson-thor", "android-arm64",
    }  # fmt: skip


@pytest.mark.parametrize("name", profile_names())
def test_a_built_in_profile_is_valid_and_says_where_its_facts_are_from(name):
    profile = profile_named(name)
    assert profile.name == name and profile.summary and profile.precisions[0] == "float32"
    assert list(profile.precisions) == [p for p in PRECISIONS if p in profile.precisions]
    assert (FOLDER / f"{name}.toml").read_text().startswith("# ")


def test_compute_capabilities_are_those_that_the_installed_tensorrt_rtx_builds_for():
    """Jetsons' are not among them, which is why their engine is tensorrt: if a later version has them, this test says so."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    import tensorrt_rtx

    known = tensorrt_rtx.ComputeCapability.__members__
    for name in profile_names():
        profile = profile_named(name)
        if profile.engine == "tensorrt-rtx":
            assert profile.compute_capability in known
        if profile.engine == "tensorrt":
            assert profile.compute_capability not in known


def test_float8_is_only_tried_where_the_gpu_has_it():
    for name in profile_names():
        profile = profile_named(name)
        number = int((profile.compute_capability or "SM0")[2:])
        assert ("float8" in profile.precisions) == (number >= 89), name


def test_a_users_own_file_is_a_profile(tmp_path):
    profile = profile_named(str(write(tmp_path, OWN)))
    assert profile == TargetProfile("my camera's board", "onnxruntime", "any", ("float32", "int8"), (1, 2), ("XNNPACK",), memory_mb=512, name="mine")
    assert profile_named(write(tmp_path, OWN)) == profile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("summary", "sumary"), "unknown key 'sumary': did you mean 'summary'?"),
        (("memory_mb = 512", "memory_mb = 512\nname = 'x'"), "unknown key 'name'"),
        (('engine = "onnxruntime"', 'engine = "onxruntime"'), "engine is 'onxruntime': did you mean 'onnxruntime'?"),
        (('"any"', '"arm"'), "architecture is 'arm': Known: aarch64, any, x86_64"),
        (('"int8"', '"int9"'), "precisions has 'int9': did you mean 'int8'"),
        (('"XNNPACK"', '"XNPACK"'), "providers has 'XNPACK': did you mean 'XNNPACK'?"),
        (("[1, 2]", "[2, 2]"), "threads names one value twice: 2, 2"),
        (("[1, 2]", "[]"), "threads"),
        (("[1, 2]", "[-1]"), "threads"),
        (("[1, 2]", "3"), "Expected `array`, got `int`"),
        (("512", "0.5"), "Expected `int | null`, got `float` - at `memory_mb`"),
        (('engine = "onnxruntime"', ""), "missing required field `engine`"),
        (('engine = "onnxruntime"', 'engine = "tensorrt-rtx"'), 'add compute_capability, such as "SM86"'),
        (('engine = "onnxruntime"', 'engine = "tensorrt"\ncompute_capability = "8.6"'), "compute_capability"),
        (('engine = "onnxruntime"', "engine = "), "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_path_and_what_was_expected(tmp_path, change, message):
    text = OWN.replace(*change)
    assert text != OWN
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as e:
        profile_named(path)
    assert str(e.value).startswith(f"{path}: ") and message in str(e.value)


def test_unknown_names_and_absent_or_unreadable_files_say_what_to_do(tmp_path):
    with pytest.raises(RecipeError, match="no target profile 'jetson-orin': .*did you mean 'jetson-"):
        profile_named("jetson-orin")
    with pytest.raises(RecipeError, match=r"no target profile at none.toml; write one \(docs/targets.md\)"):
        profile_named("none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(RecipeError, match="cannot be read"):
        profile_named(tmp_path / "folder.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read as UTF-8"):
        profile_named(tmp_path / "bytes.toml")


@pytest.mark.parametrize(("machine", "name"), [("x86_64", "cpu-x86"), ("AMD64", "cpu-x86"), ("aarch64", "cpu-arm64"), ("arm64", "cpu-arm64")])
def test_the_hosts_profile_follows_the_processor(monkeypatch, machine, name):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert host_profile().name == name


def test_a_processor_without_a_profile_says_what_to_do(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(RecipeError, match="architecture 'riscv64': expected x86_64 or aarch64; write a file of your own"):
        host_profile()


def test_this_machines_profile_runs_here_and_another_architectures_does_not(monkeypatch):
    assert host_profile().runs_here() == (True, "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    runs, why = profile_named("cpu-x86").runs_here()
    assert not runs and why == "it needs a processor of architecture x86_64, this one is aarch64"


def test_a_provider_that_this_onnx_runtime_lacks_is_named(tmp_path):
    runs, why = profile_named(write(tmp_path, OWN)).runs_here()
    assert not runs and re.fullmatch(r"ONNX Runtime \S+ here has no execution provider XNNPACK", why)
    assert profile_named(write(tmp_path, OWN.replace("XNNPACK", "CUDA").replace('["CUDA"]', "[]"))).runs_here() == (True, "")


def test_a_missing_engine_or_gpu_is_said_with_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'edgegen[cpu]'" in profile_named(write(tmp_path, OWN)).runs_here()[1]
    rtx = TargetProfile("a PC", "tensorrt-rtx", "any", compute_capability="SM86")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "pip install 'edgegen[tensorrt]'" in rtx.runs_here(())[1]


def test_the_gpu_here_must_be_of_the_profiles_kind(monkeypatch):
    """The module's presence is not the matter here, so a stand-in for the look at it."""
    monkeypatch.setattr("edgegen.targets.tensorrt.module.find", lambda engine: engine)
    rtx = TargetProfile("a PC", "tensorrt-rtx", "any", compute_capability="SM86")
    assert rtx.runs_here(()) == (False, "no NVIDIA GPU is seen here, or its driver is not loaded")
    assert rtx.runs_here((Gpu("RTX 3060", "SM86"),)) == (True, "")
    assert rtx.runs_here((Gpu("a card whose driver says no more"),)) == (True, "")
    assert rtx.runs_here((Gpu("RTX 4090", "SM89"),)) == (False, "it is for GPUs of SM86, here is RTX 4090 (SM89)")


def smi(folder, output, code=0):
    """A stand-in for nvidia-smi."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'E'\n{output}\nE\nexit {code}\n")
    (folder / "nvidia-smi").chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_gpus_are_read_from_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    smi(tmp_path, "NVIDIA GeForce RTX 3060, 8.6, 12288, 580.65.06\nNVIDIA GeForce RTX 5090, 12.0, 32607, 580.65.06")
    assert nvidia_gpus(tmp_path) == (
        Gpu("NVIDIA GeForce RTX 3060", "SM86", 12288 << 20, "580.65.06"), Gpu("NVIDIA GeForce RTX 5090", "SM120", 32607 << 20, "580.65.06"),
    )  # fmt: skip
    smi(tmp_path, "Orin (nvgpu), [N/A], [N/A], 540.3.0")
    assert nvidia_gpus(tmp_path) == (Gpu("Orin (nvgpu)", "", 0, "540.3.0"),)
    smi(tmp_path, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9)
    assert nvidia_gpus(tmp_path) == ()


def test_a_jetsons_gpu_is_read_from_its_device_tree_and_a_pcs_name_from_its_driver(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    assert nvidia_gpus(tmp_path) == () and board(tmp_path) == ""
    information = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA RTX A2000\nIRQ:   \t\t 68\n")
    assert nvidia_gpus(tmp_path) == (Gpu("NVIDIA RTX A2000"),)
    tree = tmp_path / "proc/device-tree"
    tree.mkdir()
    (tree / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (tree / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
    assert nvidia_gpus(tmp_path) == (Gpu("NVIDIA Jetson Orin Nano Developer Kit", "SM87"),)


def row(profile):
    cells = [
        f"`{profile.name}`", profile.summary, profile.engine, profile.compute_capability or "", ", ".join(profile.providers),
        ", ".join(profile.precisions), ", ".join(map(str, profile.threads)), f"{profile.memory_mb:,}" if profile.memory_mb else "",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def test_the_documents_table_is_made_from_the_files():
    rows = [line for line in DOCUMENT.read_text().splitlines() if re.match(r"\| `(cpu|rtx|jetson|android)-", line)]
    assert rows == [row(profile_named(name)) for name in sorted(profile_names())]


def test_the_documents_example_is_a_complete_profile_and_every_key_is_described(tmp_path):
    text = DOCUMENT.read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert set(tomllib.loads(example)) == set(TargetProfile.__struct_fields__) - {"name"}
    assert profile_named(write(tmp_path, example)).runs_here()[0] in (True, False)
    assert not [key for key in TargetProfile.__struct_fields__ if key != "name" and f"| `{key}` |" not in text]


def test_the_files_lie_where_the_wheel_takes_them_from():
    """hatchling takes every file of the package that git does not ignore."""
    assert profiles._FOLDER == FOLDER
    ignored = subprocess.run(["git", "check-ignore", *map(str, FOLDER.glob("*.toml"))], cwd=ROOT, capture_output=True, text=True)
    if ignored.returncode == 128:
        pytest.skip("no git here")
    assert ignored.stdout == ""


@pytest.mark.slow
def test_the_wheel_carries_the_profiles(tmp_path):
    import zipfile

    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"edgegen/targets/profiles/{name}.toml" for name in profile_names()} <= set(names)


def test_importing_the_profiles_does_not_import_engines():
    code = "import sys, edgegen.targets.profiles; print([m for m in ('onnxruntime', 'torch', 'tensorrt_rtx', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
