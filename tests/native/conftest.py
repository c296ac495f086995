"""Builds of libedgegen and its test programs (make native-tests), and the files that they read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.attacks.bundles import SMALL
from tests.native.corpus import everything, write_corpus
from tests.tiny import stream_bundle

BUILD = Path(__file__).parents[2] / "build"
EMULATORS = {"aarch64": ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"], "armhf": ["qemu-arm", "-L", "/usr/arm-linux-gnueabihf"]}


def command(build: str, program: str) -> list[str]:
    """The command of a program of a build: "test", "asan", "tsan", "O0", "v3", "checks", "aarch64", "armhf", or "" for the library's own build."""
    folder = BUILD / (f"native-{build}" if build else "native")
    path = folder / "tests" / f"test-{program}" if program != "edgegen-run" else folder / program
    emulator = EMULATORS.get(build, [])
    for tool in emulator[:1] or []:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: runtimes/c/install_tools.sh test")
    if not path.exists():
        pytest.skip(f"{path} is not built: make native-tests")
    return [*emulator, str(path)]


def run_native(build: str, program: str, *arguments: object, code: int = 0, timeout: float = 600) -> str:
    """Run a program of a build; its standard output. Fails, with what it printed, on another exit code."""
    done = subprocess.run([*command(build, program), *map(str, arguments)], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == code, f"{program} {arguments}: exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def files(tmp_path_factory, tiny_bundle):
    """A folder with small.edgegen, tiny.edgegen, stream.edgegen and the corpus of all malformations."""
    folder = tmp_path_factory.mktemp("native")
    (folder / "small.edgegen").write_bytes(SMALL)
    (folder / "tiny.edgegen").write_bytes(tiny_bundle.read_bytes())
    (folder / "stream.edgegen").write_bytes(stream_bundle())
    write_corpus(folder / "corpus", everything(tiny_bundle))
    return folder


def other_onnxruntime(name: str) -> Path:
    """libonnxruntime of another version or machine, such as "1.24.4-aarch64" (make native-tests)."""
    found = list((BUILD / "ort" / name).glob("libonnxruntime.so.*"))
    if not found:
        pytest.skip(f"build/ort/{name} is not there: make native-tests")
    return found[0]
