"""The wheel: installed in an empty environment it finds its families and calibration sets."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_carries_the_families_and_works_without_the_checkout(tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "edgegen/data/export/digits/recipe.toml" in names and "edgegen/data/calib/deployed.py" in names
    assert not [n for n in names if n.startswith(("export/", "calib/", "tests/", "benchmarks/"))]
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    subprocess.run([environment / "bin" / "pip", "install", "--quiet", f"{wheel}[cpu]"], check=True)
    done = subprocess.run([environment / "bin" / "edgegen", "build", "digits", "--dry-run"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 4 and "needs torch and onnxscript" in " ".join(done.stderr.split())


def test_the_wheel_carries_the_library_that_was_built(tmp_path, tiny_bundle):
    """Unpacked apart from the checkout, it opens and runs a bundle with its own libedgegen."""
    if not (ROOT / "build" / "native" / "libedgegen.so").exists():
        pytest.skip("build/native/libedgegen.so is not built: make native")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith(f"-py3-none-{sysconfig.get_platform().replace('-', '_')}.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "import edgegen.runtime.native as n; print(n.find_library()); import edgegen; print(edgegen.load(%r, runtime='native').generate(seed=1).shape)"
    done = subprocess.run(
        [sys.executable, "-c", code % str(tiny_bundle)], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [str(tmp_path / "installed" / "edgegen" / "native" / "libedgegen.so"), "(1, 1, 8, 8)"]
