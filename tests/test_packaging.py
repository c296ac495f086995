"""The wheel: installed in an empty environment it finds its families and calibration sets."""

from __future__ import annotations

import subprocess
import sys
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
