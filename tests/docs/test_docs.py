"""The documents do what they say: docs/your_model.md as a new user, from an empty folder; names in docs/recipe.md; the README's commands."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgegen import recipe as recipe_module
from edgegen.diffusion import GRIDS, PREDICTIONS, PROCESSES, make_process
from edgegen.program import interpret
from edgegen.recipe import Recipe
from edgegen.solvers import SOLVERS, TIMES, Solver, build_program
from tests.analytic import X_T, mixture_noise, network

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


def test_the_solver_of_adding_a_solver_md_works_as_written_and_meets_its_row(monkeypatch):
    text = (ROOT / "docs" / "adding_a_solver.md").read_text()
    (source,), (row,) = blocks(text, "python"), tomllib.loads(blocks(text, "toml")[0])["row"]
    scope: dict = {}
    exec(compile(source, "midpoint_rho.py", "exec"), scope)
    line = re.search(r'^\+ +"midpoint_rho": (.*),$', blocks(text, "diff")[0], re.MULTILINE)[1]
    monkeypatch.setitem(SOLVERS, "midpoint_rho", eval(line, {"Solver": Solver, **scope}))
    process = make_process("vp_linear", beta_min=0.1, beta_max=20.0)
    program = build_program(row["solver"], process, "epsilon", row["steps"], grid=row["grid"], t_start=1.0, t_end=1e-3)
    found = interpret(program, {"denoiser": network(process, "epsilon")}, {"x_T": X_T}, dtype=np.float64)["sample"]
    np.testing.assert_allclose(found, row["sample"], atol=2e-9)  # the row is from a plain numpy loop in the coordinates x / alpha

    v, levels = X_T / float(process.alpha(1.0)), np.exp(-np.linspace(process.lam(1.0), process.lam(1e-3), 11))
    for r, after in pairwise(levels):
        half = v + (0.5 * (r + after) - r) * mixture_noise(v, 1.0, r)
        v = v + (after - r) * mixture_noise(half, 1.0, 0.5 * (r + after))
    np.testing.assert_allclose(row["sample"], v * float(process.alpha(1e-3)), atol=2e-9)


def test_solvers_md_names_every_solver_and_option():
    text = (ROOT / "docs" / "solvers.md").read_text()
    words = set(SOLVERS)
    for solver in SOLVERS.values():
        words |= {name for name, p in inspect.signature(solver.function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert not [w for w in words if f"`{w}`" not in text]


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
