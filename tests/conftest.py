"""Fixtures that several tests share."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest

from edgegen.cli import main
from edgegen.pipeline import Options, build
from edgegen.plan import make_plan
from edgegen.recipe import load_recipe
from edgegen.workspace import Workspace
from tests.tiny import write_tiny


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_recipe, tmp_path_factory):
    """The reproducible bundle of the tiny denoiser, with its int8 variant."""
    folder = tmp_path_factory.mktemp("tiny-built")
    plan = make_plan(load_recipe(tiny_recipe), tiny_recipe.parent)
    return build(plan, folder / "tiny.edgegen", Workspace(folder / "cache"), Options(measured=False))


@pytest.fixture(scope="session")
def data_folder():
    """The shared data: $EDGEGEN_DATA, else ../shared/data; tests that need it skip without it."""
    for path in (os.environ.get("EDGEGEN_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if path and Path(path).is_dir():
            return Path(path)
    pytest.skip("no data: set EDGEGEN_DATA, or place it at ../shared/data")


@pytest.fixture(scope="session")
def onnxruntime_library():
    """libonnxruntime inside the Python package."""
    spec = importlib.util.find_spec("onnxruntime")
    return next(Path(spec.submodule_search_locations[0], "capi").glob("libonnxruntime.so.*"))


@pytest.fixture
def edgegen_command(capsys, monkeypatch):
    """The command in this process, as its console script: (standard output, standard error)."""

    def run(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["edgegen", *map(str, words)])
        before = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as e:
                main()
        finally:
            signal.signal(signal.SIGINT, before)
        said = capsys.readouterr()
        assert (e.value.code or 0) == code, said.err
        return said

    return run
