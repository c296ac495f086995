"""runtimes/jetson without a Jetson: the C++ engine cache is the Python one's twin and keeps T8, measure.sh refuses other machines, networks.py writes what it says.

`python -m tests.native.test_jetson` prints runtimes/jetson/tests/vectors.txt. What needs TensorRT and a GPU is not tested here: runtimes/jetson/README.md.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgegen.bundle import open_bundle
from edgegen.targets.onnxruntime import network_of
from edgegen.targets.tensorrt import BuildOptions, EngineCache, engine_key

ROOT = Path(__file__).parents[2]
JETSON = ROOT / "runtimes" / "jetson"
SCRIPT, VECTORS = JETSON / "measure.sh", JETSON / "tests" / "vectors.txt"
WARNINGS = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
ORIN = "Orin 00112233445566778899aabbccddeeff SM87"

CASES = (
    (b"", "10.3.0", ORIN, {}),
    (b"a model", "10.3.0", ORIN, {}),
    (b"a model", "10.13.3", ORIN, {}),
    (b"a model", "10.3.0", "NVIDIA Thor ffeeddccbbaa99887766554433221100 SM110", {}),
    (b"a model", "10.3.0", ORIN, {"workspace": 1 << 30}),
    (b"a model", "10.3.0", ORIN, {"optimization_level": 5}),
    (b"a model", "10.3.0", ORIN, {"profiles": {"x": ((1, 1, 28, 28), (1, 1, 28, 28), (16, 1, 28, 28))}}),
    (
        b"a model",
        "10.3.0",
        ORIN,
        {"profiles": {"x": ((1, 4), (2, 4), (16, 4)), "a.t-b_1": ((1,), (2,), (16,)), "X": ((1,), (1,), (1,))}, "workspace": 1},
    ),
    (bytes(range(256)), "10.3.0", 'a "GPU" \\ \t\x7f', {"optimization_level": 0}),
    (b"\0" * 63, "11.4.1", ORIN, {"workspace": 2**63, "optimization_level": 3, "profiles": {"t": ((1,), (1,), (1,))}}),
)


def vectors():
    """What the Python cache computes for CASES, and whole files of it."""
    lines = ["# Keys and files of the engine cache as edgegen/targets/tensorrt/cache.py makes them; python -m tests.native.test_jetson writes this."]
    for i, (model, version, gpu, options) in enumerate(CASES):
        flags = BuildOptions(engine="tensorrt", **options)
        key = engine_key(model, "tensorrt", version, gpu, flags.to_json())
        secret, engine = hashlib.sha256(b"secret %d" % i).digest(), hashlib.sha512(b"engine %d" % i).digest() * (i + 1)
        magic = b"edgegen engine 1"
        file = magic + hmac.new(secret, magic + key.encode() + engine, "sha256").digest() + engine
        lines += ["", "case", f"model {model.hex()}", f"version {version}", f"gpu {gpu}"]
        lines += [f"{name} {value}" for name, value in options.items() if name != "profiles"]
        lines += [f"profile {name} {' '.join(','.join(map(str, s)) for s in shapes)}" for name, shapes in options.get("profiles", {}).items()]
        lines += [f"key {key}", f"secret {secret.hex()}", f"engine {engine.hex()}", f"file {file.hex()}"]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def cache_test(tmp_path_factory):
    """The C++ test program, built with sanitizers and without any SDK."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    program = tmp_path_factory.mktemp("jetson") / "engine_cache_test"
    sources = [JETSON / "tests" / "engine_cache_test.cpp", JETSON / "engine_cache.cpp", ROOT / "runtimes" / "c" / "src" / "sha256.cpp"]
    done = subprocess.run(["g++", *WARNINGS, *SANITIZERS, *map(str, sources), "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def run(*arguments):
        ran = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


def test_the_committed_vectors_are_those_of_the_python_cache():
    assert VECTORS.read_text() == vectors()


def test_the_cpp_cache_computes_the_vectors(cache_test, tmp_path):
    assert cache_test("vectors", VECTORS, tmp_path) == f"{len(CASES)} cases\nok\n"


def test_no_tampered_engine_is_opened(cache_test, tmp_path):
    output = cache_test("attack", tmp_path)
    flips, opened = (int(word) for word in output.split("\n")[0].replace(" bit flips, ", " ").replace(" opened", "").split())
    assert flips >= 1000
    assert opened == 0
    assert output.endswith("ok\n")


def test_python_and_cpp_share_a_cache(cache_test, tmp_path):
    folder, data = tmp_path / "engines", np.random.default_rng(0).bytes(100_000)
    key, other = (engine_key(model, "tensorrt", "10.3.0", ORIN, BuildOptions(engine="tensorrt").to_json()) for model in (b"one", b"two"))
    python = EngineCache(folder)
    python.store(key, data)
    assert cache_test("get", folder, key) == data.hex() + "\nok\n"
    assert cache_test("get", folder, other) == "none\nok\n"
    cache_test("put", folder, other, data[:1000].hex())
    assert python.load(other) == data[:1000]
    (folder / f"{other}.engine").chmod(0o644)
    assert cache_test("get", folder, other) == "none\nok\n"
    assert not (folder / f"{other}.engine").exists()
    assert python.load(key) == data


def test_the_program_compiles_without_warnings_where_no_sdk_is_needed():
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    source = JETSON / "edgegen_jetson.cpp"
    done = subprocess.run(
        ["g++", *WARNINGS, "-fsyntax-only", f"-I{ROOT / 'runtimes' / 'c' / 'include'}", str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_cmake_says_in_one_line_what_is_missing(tmp_path):
    if shutil.which("cmake") is None or shutil.which("ninja") is None:
        pytest.skip("cmake or ninja is not installed: runtimes/c/install_tools.sh native")
    command = ["cmake", "-G", "Ninja", "-S", str(JETSON), "-B", str(tmp_path), "-DTENSORRT_HEADERS=TENSORRT_HEADERS-NOTFOUND"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "edgegen-jetson" in line]
    if not said:
        pytest.skip("TensorRT and CUDA are here, so nothing is missing")
    assert len(said) == 1
    assert "NvInfer.h" in said[0]
    assert "sudo apt install" in said[0]


def measure(*arguments, root=None, code=0):
    environment = os.environ | ({} if root is None else {"EDGEGEN_TEST_ROOT": str(root)})
    done = subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=60, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def test_the_script_is_valid_bash():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True).returncode == 0
    assert os.access(SCRIPT, os.X_OK)


def test_the_script_passes_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt install shellcheck)")
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_script_ends_with_4_and_one_sentence_on_a_machine_that_is_no_jetson():
    if Path("/etc/nv_tegra_release").exists():
        pytest.skip("this machine is a Jetson")
    output, said = measure(code=4)
    assert output == ""
    step, refusal = said.splitlines()
    assert step.startswith("1. ")
    assert refusal.startswith("measure.sh: this machine is no Jetson: ")


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", "L4T 35.4.1 is too old"),
        ("something else", "names no release that this script knows"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "and a Jetson is aarch64"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic", "and a Jetson is aarch64"),
    ],
)
def test_other_releases_and_machines_are_refused(tmp_path, release, expected):
    if os.uname().machine == "aarch64":
        pytest.skip("this machine could be a Jetson")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text(release + "\n")
    _, said = measure(root=tmp_path, code=4)
    assert expected in said.splitlines()[-1]


def test_a_dry_run_lists_the_steps_and_does_nothing(tmp_path):
    output, said = measure("--dry-run", "--bundle", tmp_path / "none.edgegen", "--batch", 4, root=tmp_path)
    assert output == ""
    lines = said.splitlines()
    assert [line.partition(".")[0] for line in lines] == [str(i + 1) for i in range(len(lines))]
    assert len(lines) >= 10
    assert "none.edgegen" in said
    assert "batch 4" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("--nope",), ("--bundle",), ("--batch", "0"), ("--batch", "x"), ("--iters", "-1"), ("FILE",)])
def test_wrong_arguments_end_with_2(arguments):
    output, said = measure(*arguments, code=2)
    assert output == ""
    assert len(said.splitlines()) == 1


def run_networks(bundle, folder):
    done = subprocess.run(
        [sys.executable, str(JETSON / "networks.py"), str(bundle), str(folder)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_networks_are_written_for_tensorrt(tiny_bundle, tmp_path):
    import onnx
    import onnxruntime

    bundle = open_bundle(tiny_bundle)
    (component,) = bundle.manifest.components
    assert run_networks(tiny_bundle, tmp_path) == ["float32", "float16", "int8"]
    variant = next(v for v in bundle.manifest.variants if v.name == "float32")
    assert (tmp_path / f"float32.{component}.onnx").read_bytes() == network_of(bundle, variant, component).SerializeToString(deterministic=True)
    rng = np.random.default_rng(0)
    shape = bundle.manifest.sample.shape
    feeds = {"x": rng.standard_normal((2, *shape)).astype(np.float32), "t": np.full(2, 0.5, np.float32), "label": np.ones(2, np.int64)}
    outputs = {}
    for name in ("float32", "float16", "int8"):
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.{component}.onnx", providers=["CPUExecutionProvider"])
        outputs[name] = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})[0]
    spread = np.std(outputs["float32"])
    assert 0 < np.sqrt(np.mean((outputs["float16"] - outputs["float32"]) ** 2)) < 0.01 * spread
    assert 0 < np.sqrt(np.mean((outputs["int8"] - outputs["float32"]) ** 2)) < 0.2 * spread
    model = onnx.load(tmp_path / f"int8.{component}.onnx")
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    zeros = [kinds[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert zeros
    assert set(zeros) == {onnx.TensorProto.INT8}  # what TensorRT takes; the bundle's own int8 is uint8 for CPUs


if __name__ == "__main__":
    print(vectors(), end="")
