"""The documents do what they say: docs/your_model.md as a new user, from an empty folder; names in docs/recipe.md; the README's commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgegen import recipe as recipe_module
from edgegen.diffusion import GRIDS, PREDICTIONS, PROCESSES
from edgegen.recipe import Recipe
from edgegen.solvers import SOLVERS, TIMES

ROOT = Path(__file__).parents[2]


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_your_model_works_from_an_empty_folder_in_under_40_lines(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    text = (ROOT / "docs" / "your_model.md").read_text()
    (model,), (recipe,) = blocks(text, "python"), blocks(text, "toml")
    assert len([line for line in (model + recipe).splitlines() if line.strip()]) < 40
    (tmp_path / "model.py").write_text(model)
    (tmp_path / "recipe.toml").write_text(recipe)
    for command in re.findall(r"^edgegen (.*)$", text, re.MULTILINE):
        done = subprocess.run(
            [sys.executable, "-m", "edgegen.cli", *command.split()], cwd=tmp_path, env={**os.environ, "EDGEGEN_CACHE": str(tmp_path / "cache")},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    points = np.load(tmp_path / "points.npy", allow_pickle=False)
    assert points.shape == (100, 2) and np.isfinite(points).all()


def test_recipe_md_names_every_key_and_choice():
    text = (ROOT / "docs" / "recipe.md").read_text()

    def keys(struct):
        for f in msgspec.structs.fields(struct):
            yield f.name
            for inner in recipe_module._structs_in(f.type):
                yield from keys(inner)

    words = {*keys(Recipe), *SOLVERS, *GRIDS, *PREDICTIONS, *PROCESSES, *TIMES}
    missing = [w for w in words if not re.search(rf"\b{re.escape(w)}\b", text)]
    assert not missing


def test_the_readmes_commands_exist():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
    help_text = subprocess.run([sys.executable, "-m", "edgegen.cli", "--help"], capture_output=True, text=True, check=True).stdout
    commands = [c for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for c in re.findall(r"^edgegen (\w+)", block, re.MULTILINE)]
    assert len(commands) >= 5
    for command in commands:
        assert re.search(rf"\b{command}\b", help_text)


def test_links_between_documents_lead_somewhere():
    for path in [ROOT / "README.md", ROOT / "SECURITY.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
