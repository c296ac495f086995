"""Execution providers other than the CPU's, from the packages that carry them: one that runs on this processor, and those that cannot be loaded here."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from tests.native.conftest import BUILD, command
from tests.native.test_cli import with_providers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package():
    """The folder of a package of PyPI, unpacked under build/ort/ and kept."""

    def unpack(name, version):
        folder = BUILD / "ort" / f"{name}-{version}"
        if not folder.exists():
            words = ["download", "--quiet", "--no-deps", "-d", str(folder / "wheel"), f"{name}=={version}"]
            if subprocess.run([sys.executable, "-m", "pip", *words]).returncode != 0:
                pytest.skip(f"{name} cannot be downloaded")
            (wheel,) = (folder / "wheel").glob("*.whl")
            zipfile.ZipFile(wheel).extractall(folder)
            wheel.unlink()
        return folder

    return unpack


def run(words, library, **environment):
    done = subprocess.run(
        [*command("", "edgegen-run"), *map(str, words), "--onnxruntime", library], capture_output=True, text=True, env=os.environ | environment
    )
    return done.returncode, done.stderr


def capi(folder):
    return folder / "onnxruntime" / "capi"


def test_openvino_runs_and_refuses_options_that_it_does_not_know(package, tiny_bundle, tmp_path, onnxruntime_library):
    folder = capi(package("onnxruntime-openvino", "1.24.1"))
    (library,) = folder.glob("libonnxruntime.so.*")
    (tmp_path / "x.edgegen").write_bytes(with_providers(tiny_bundle, [("OpenVINO", {"device_type": "CPU"})], [("OpenVINO", {"device": "CPU"})], []))

    def go(*words, engine=library):
        return run((tmp_path / "x.edgegen", *words), engine, LD_LIBRARY_PATH=str(folder))

    code, err = go("-o", tmp_path / "a.npy")
    assert code == 0 and err.startswith("dpmpp_2m-4 on a:")
    assert go("--variant", "c", "-o", tmp_path / "c.npy", engine=onnxruntime_library)[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), np.load(tmp_path / "c.npy"), atol=1e-5)
    code, err = go("--variant", "b")
    assert code == 4 and "edgegen-run:" in err and "OpenVINO" in err


@pytest.mark.parametrize("provider", ["CUDA", "TensorRT"])
def test_a_provider_that_is_there_and_cannot_be_loaded_gives_way(package, tiny_bundle, tmp_path, provider):
    """onnxruntime-gpu without CUDA's libraries: it lists the provider, and fails when asked for it. Python's own session goes on with the CPU."""
    folder = package("onnxruntime-gpu", "1.31.1")
    (library,) = capi(folder).glob("libonnxruntime.so.*")
    (tmp_path / "x.edgegen").write_bytes(with_providers(tiny_bundle, [(provider, {})], []))
    code, err = run((tmp_path / "x.edgegen", "-o", tmp_path / "x.npy"), library)
    first, second = err.splitlines()
    assert code == 0 and provider in first and "cannot open shared object file" in first and second.startswith("dpmpp_2m-4 on b:")
    script = "import sys, edgegen; print(edgegen.load(sys.argv[1], runtime=sys.argv[2]).variant.name)"
    for runtime in ("python", "native"):
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "x.edgegen", runtime],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(folder)},
        )
        assert done.stdout.endswith("b\n") and "taking b" in done.stderr, done.stderr
