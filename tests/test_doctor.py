"""`edgegen doctor` and the check that a build fits: what is told of real, absent and broken engines, and estimates beside what builds really took."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgegen import fit
from edgegen.bundle import open_bundle
from edgegen.cli import _exit_code
from edgegen.doctor import PROVIDERS, Fit, _instructions, _try, fit_of, how_to_get
from edgegen.errors import BuildError, EdgegenError, ExportError, Status
from edgegen.fit import Need, build_need, check_fit, free_disk, free_memory, run_need, shortage
from edgegen.plan import make_plan
from edgegen.recipe import load_recipe
from tests.tiny import write_tiny

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MB = 10**6


def doctor(*arguments, cwd=None, env=None, before="pass"):
    """Run the command as a user does, after the line of Python `before`; returns (exit code, stdout, stderr)."""
    code = f"import sys; {before}; from edgegen.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", *map(str, arguments)], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def parts(out):
    return {p["name"]: p for p in json.loads(out)["parts"]}


@pytest.fixture(scope="module")
def facts():
    """What the command says of this machine."""
    code, out, err = doctor("--json")
    assert code == 0, err
    return json.loads(out)


def test_it_tells_what_is_there_and_how_to_get_the_rest(facts):
    found = {p["name"]: p for p in facts["parts"]}
    for name in ("Python", "edgegen", "numpy", "onnx", "ONNX Runtime", "CPU"):
        assert found[name]["state"] == "there", found[name]
    assert {"torch", "tensorrt", "tensorrt_rtx", "libedgegen", "NVIDIA GPU", *PROVIDERS} <= set(found)
    assert all(p["get"] for p in facts["parts"] if p["state"] != "there")
    assert facts["ok"] and facts["fit"] is None and facts["disk_free"] > 0


@linux
def test_it_tells_memory_instructions_and_which_profiles_run_here(facts):
    assert 0 < facts["memory_free"] <= facts["memory"]
    cpuinfo = Path("/proc/cpuinfo").read_text()
    assert all(name in cpuinfo for name in facts["instructions"])
    runs = {p["name"]: p for p in facts["profiles"]}
    assert runs[{"x86_64": "cpu-x86", "aarch64": "cpu-arm64"}[facts["architecture"]]]["runs"]
    assert all(p["why"] for p in facts["profiles"] if not p["runs"])


def test_instructions_are_those_that_every_core_has(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimddp i8mm\n\nprocessor\t: 1\nFeatures\t: fp asimddp\n")
    assert _instructions(tmp_path) == ("asimddp",)
    assert _instructions(tmp_path / "absent") == ()


def test_without_onnx_runtime_it_exits_4_and_says_how_to_get_it():
    code, out, err = doctor("--json", before="sys.modules['onnxruntime'] = None")
    assert code == 4 and "pip install 'edgegen[cpu]'" in err and "Traceback" not in err
    assert parts(out)["ONNX Runtime"]["state"] == "missing" and "pip install 'edgegen[cpu]'" in parts(out)["ONNX Runtime"]["get"]
    assert not json.loads(out)["ok"]


def test_without_torch_the_line_that_brings_it():
    code, out, _ = doctor("--json", before="sys.modules['torch'] = None")
    assert code == 0 and parts(out)["torch"]["state"] == "missing" and parts(out)["torch"]["get"] == "pip install 'edgegen[torch]'"


_FALSE = """\
import sys
here = sys.path.pop(0) if sys.path[0] == {folder!r} else sys.path.remove({folder!r})
sys.modules.pop("onnxruntime")
import onnxruntime
providers = onnxruntime.get_available_providers()
onnxruntime.get_available_providers = lambda: ["CUDAExecutionProvider", *providers]
"""


@pytest.fixture
def false_list(tmp_path):
    """An environment whose ONNX Runtime, the real one, lists CUDA and cannot load it: what onnxruntime-gpu does on a machine without CUDA."""
    (tmp_path / "onnxruntime.py").write_text(_FALSE.format(folder=str(tmp_path)))
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}


def test_a_provider_that_is_listed_and_cannot_be_loaded_is_told_apart(false_list):
    code, out, err = doctor("--json", env=false_list)
    assert code == 0, err
    cuda = parts(out)["CUDA"]
    assert cuda["state"] == "broken" and "CUDA" in cuda["note"] and cuda["get"]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_provider_that_crashes_takes_only_its_own_process_with_it(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert _try("CPU") == "the process that tried it ended with signal SIGSEGV"


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text(
        "import sys\nprint('[E] Failed to load libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file', file=sys.stderr)\nsys.exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert _try("CUDA") == "libcublasLt.so.13 cannot be loaded"


@pytest.mark.parametrize("system", ["Linux", "Windows", "Darwin"])
@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_has_a_line_on_every_system(name, system, processor):
    assert how_to_get(name, system, processor)


def test_the_lines_are_true_of_pypi():
    """As pip found them: onnxruntime-gpu and onnxruntime-openvino have wheels for x86-64 only, onnxruntime-trt-rtx for Windows only."""
    assert "'edgegen[gpu]'" in how_to_get("CUDA", "Linux", "x86_64") and "pip" not in how_to_get("CUDA", "Linux", "aarch64")
    assert "onnxruntime-openvino" in how_to_get("OpenVINO", "Windows", "x86_64") and "pip" not in how_to_get("OpenVINO", "Darwin", "aarch64")
    assert "onnxruntime-trt-rtx" in how_to_get("NvTensorRTRTX", "Windows", "x86_64")
    assert "onnxruntime-trt-rtx" not in how_to_get("NvTensorRTRTX", "Linux", "x86_64")


def test_the_table_is_for_people(tiny_bundle):
    code, out, err = doctor(tiny_bundle, env={"COLUMNS": "160"})
    assert code == 0, err
    for fact in ("free memory", "ONNX Runtime", "there", "missing", "cpu-x86", "runs here"):
        assert fact in out
    assert out.splitlines()[-1].startswith(f"running {tiny_bundle} fits: it needs about 150 MB of memory (")


def test_a_recipe_that_fits_and_one_that_does_not(tmp_path):
    import onnx

    write_tiny(tmp_path)
    code, out, _ = doctor("recipe.toml", "--json", cwd=tmp_path)
    found = json.loads(out)["fit"]
    assert code == 0 and found["fits"] and found["kind"] == "build" and found["need"]["memory"] >= 200 * MB
    model = onnx.load(tmp_path / "tiny.onnx")
    giant = onnx.TensorProto(name="giant", data_type=onnx.TensorProto.FLOAT, dims=[10**7, 10**6], data_location=onnx.TensorProto.EXTERNAL)
    giant.external_data.add(key="location", value="giant.bin")  # 40 TB, of which nothing is in the file
    model.graph.initializer.append(giant)
    (tmp_path / "tiny.onnx").write_bytes(model.SerializeToString())
    code, out, err = doctor("recipe.toml", cwd=tmp_path)
    assert code == 4 and re.match(r"error: building recipe.toml will not fit: it needs about \d{3},\d{3},\d{3} MB of memory, there are", err)
    assert "building" not in out


@pytest.mark.parametrize(
    ("subject", "code", "message"),
    [
        ("digts", 2, "no recipe 'digts': expected the path of a recipe.toml, or a family: did you mean 'digits'?"),
        ("none.toml", 2, "no recipe at none.toml"),
        ("none.edgegen", 1, "none.edgegen: cannot be opened"),
        ("broken.edgegen", 1, "not an edgegen bundle"),
        ("folder", 2, "no recipe at folder/recipe.toml"),
        ("folder.edgegen", 1, "folder.edgegen"),
        ("wrong.toml", 2, "unknown key 'nme'"),
    ],
)
def test_bad_input_says_what_is_wrong_with_the_code_of_other_commands(tmp_path, monkeypatch, subject, code, message):
    write_bad(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EdgegenError) as e:
        fit_of(subject, tmp_path)
    assert message in str(e.value) and _exit_code(e.value) == code


def write_bad(folder):
    (folder / "folder").mkdir()
    (folder / "folder.edgegen").mkdir()
    (folder / "broken.edgegen").write_bytes(b"no bundle")
    (folder / "wrong.toml").write_text("schema = 1\nnme = 'x'\n")


@pytest.mark.parametrize(("subject", "code"), [("wrong.toml", 2), ("broken.edgegen", 1)])
def test_bad_input_gives_one_clear_line(tmp_path, subject, code):
    write_bad(tmp_path)
    found, out, err = doctor(subject, cwd=tmp_path)
    assert found == code and err.startswith(f"error: {subject}: ") and err.count("\n") == 1 and out == ""


def plan_of(folder, **changes):
    path = write_tiny(folder)
    settings = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return make_plan(load_recipe(path, settings), folder)


def test_what_is_short_is_said_with_numbers():
    need = Need(memory=700 * MB, measuring=1200 * MB, disk=50 * MB, weights=MB, sure=True)
    assert shortage(need, 1200 * MB, 50 * MB) is None
    assert shortage(need, None, 50 * MB) is None
    assert shortage(need, 699 * MB, 50 * MB) == (Status.NO_MEMORY, "about 700 MB of memory, there are 699 MB")
    status, sentence = shortage(need, 1000 * MB, 50 * MB)
    assert status == Status.NO_MEMORY and sentence.endswith("while its candidates are timed; --no-measure needs 700 MB")
    assert shortage(replace(need, measuring=0), 1000 * MB, 50 * MB) is None
    assert shortage(need, 2000 * MB, 49 * MB) == (Status.NO_SPACE, "about 50 MB of disk, there are 49 MB")
    found = Fit("x", "build", need, 1200 * MB, 60 * MB, "")
    assert found.sentence == "building x fits: it needs about 1,200 MB of memory (1,200 MB are free), and 50 MB of disk (60 MB are free)"


def test_check_fit_raises_before_long_work(tmp_path, monkeypatch):
    plan = plan_of(tmp_path)
    check_fit(plan, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(fit, "free_memory", lambda: 100 * MB)
    with pytest.raises(BuildError, match=r"will not fit: it needs about \d+ MB of memory, there are 100 MB; lower calibration.batch") as e:
        check_fit(plan, tmp_path / "cache")
    assert e.value.code == Status.NO_MEMORY
    monkeypatch.setattr(fit, "free_memory", lambda: None)
    monkeypatch.setattr(fit, "free_disk", lambda folder: 1000)
    with pytest.raises(BuildError, match=r"about \d MB of disk, there are 1 MB; free some at .*cache, or give another place") as e:
        check_fit(plan, tmp_path / "cache")
    assert e.value.code == Status.NO_SPACE


def test_the_estimate_follows_weights_batch_and_precisions(tmp_path):
    few, many = (build_need(plan_of(tmp_path, calibration__batch=n, calibration__samples=64)) for n in (1, 64))
    assert many.memory > few.memory and many.disk == few.disk and few.sure
    assert build_need(plan_of(tmp_path, quantization__precisions="[]")).disk < few.disk
    assert build_need(plan_of(tmp_path), measured=False).measuring == 0
    assert build_need(plan_of(tmp_path, target__threads=1)).measuring <= few.measuring


def test_a_weights_file_that_is_none_is_an_error(tmp_path):
    plan = plan_of(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"no safetensors")
    (tmp_path / "model.py").write_text("")
    model = replace_struct(plan.recipe.model, source="model.py:load", weights="w.safetensors")
    broken = replace(plan, recipe=replace_struct(plan.recipe, model=model), weights=tmp_path / "w.safetensors")
    with pytest.raises(ExportError, match="not a safetensors file"):
        build_need(broken)
    (tmp_path / "tiny.onnx").write_bytes(b"no onnx")
    with pytest.raises(ExportError, match="not an ONNX file"):
        build_need(plan)


def replace_struct(value, **changes):
    import msgspec

    return msgspec.structs.replace(value, **changes)


def write_machine(root, meminfo, groups):
    for name, text in {"proc/meminfo": meminfo, **groups}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_free_memory_is_what_the_system_or_the_control_group_leaves(tmp_path):
    meminfo = "MemTotal:       24683664 kB\nMemFree:         1000000 kB\nMemAvailable:   2000000 kB\n"
    assert free_memory(write_machine(tmp_path / "a", meminfo, {})) == 2_000_000 * 1024
    v2 = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.current": "5\n"}
    v2 |= {"sys/fs/cgroup/a/memory.max": "900000000\n", "sys/fs/cgroup/a/memory.current": "500000000\n"}
    v2 |= {"sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 100000000\n"}
    assert free_memory(write_machine(tmp_path / "b", meminfo, v2)) == 500_000_000
    v1 = {"proc/self/cgroup": "5:cpu:/\n4:memory:/docker/1\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "600000000\n"}
    v1 |= {"sys/fs/cgroup/memory/memory.usage_in_bytes": "700000000\n"}
    assert free_memory(write_machine(tmp_path / "c", meminfo, v1)) == 0
    unlimited = v1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert free_memory(write_machine(tmp_path / "d", meminfo, unlimited)) == 2_000_000 * 1024
    assert free_memory(tmp_path / "none") is None
    assert free_memory(write_machine(tmp_path / "e", "MemAvailable: a lot\n", {"proc/self/cgroup": "nonsense\n"})) is None


def test_free_disk_is_that_of_the_nearest_folder_that_exists(tmp_path):
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(free_disk(tmp_path), rel=0.1)


_PEAK = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); " + (
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
)


def peak_of(*arguments, cwd):
    """Peak resident bytes of the command."""
    command = [sys.executable, "-c", _PEAK, sys.executable, "-m", "edgegen.cli", *arguments]
    return int(subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout)


def size_of(*paths):
    return sum(p.stat().st_size for path in paths for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())


@linux
def test_a_build_takes_no_more_than_the_estimate_and_no_less_than_a_third(tmp_path):
    need = build_need(plan_of(tmp_path))
    peak = peak_of("build", "recipe.toml", "--no-measure", "--cache-dir", "cache", cwd=tmp_path)
    assert peak <= need.memory <= 3 * peak
    assert size_of(tmp_path / "cache", tmp_path / "tiny.edgegen") <= need.disk
    ran = peak_of("run", "tiny.edgegen", cwd=tmp_path)
    assert ran <= run_need(open_bundle(tmp_path / "tiny.edgegen")).memory <= 3 * ran


@linux
@pytest.mark.slow
@pytest.mark.parametrize("family", ["digits", "reach_policy"])
def test_a_familys_build_takes_no_more_than_the_estimate_and_no_less_than_a_third(tmp_path, family):
    pytest.importorskip("torch", reason="torch is not installed")
    from edgegen.library import find_recipe

    path = find_recipe(family)
    need = build_need(make_plan(load_recipe(path), path.resolve().parent))
    peak = peak_of("build", family, "--no-measure", "--cache-dir", "cache", "-o", "x.edgegen", cwd=tmp_path)
    print(f"{family}: peak {peak / 1e6:.0f} MB, estimate {need.memory / 1e6:.0f} MB")
    assert peak <= need.memory <= 3 * peak
    disk = size_of(tmp_path / "cache", tmp_path / "x.edgegen")
    assert disk <= need.disk <= 3 * disk
