"""The bundles of export/, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgegen.pipeline import Options, build
from edgegen.plan import make_plan
from edgegen.recipe import load_recipe
from edgegen.workspace import Workspace

ROOT = Path(__file__).parents[2]


def built(family, tmp_path_factory, *settings, trust_pickle=False):
    folder = tmp_path_factory.mktemp(family)
    recipe = ROOT / "export" / family / "recipe.toml"
    plan = make_plan(load_recipe(recipe, settings), recipe.parent, trust_pickle=trust_pickle)
    return build(plan, folder / f"{family}.edgegen", Workspace(folder / "cache"), Options(measured=False))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return built("digits", tmp_path_factory)


@pytest.fixture(scope="session")
def reach(tmp_path_factory):
    return built("reach_policy", tmp_path_factory)


@pytest.fixture(scope="session")
def checkpoint(data_folder):
    path = data_folder / "ddpm_mnist_unet" / "model_unet_res.pth"
    if not path.is_file():
        pytest.skip(f"no checkpoint at {path}")
    return path


@pytest.fixture(scope="session")
def ddpm(tmp_path_factory, checkpoint):
    return built("ddpm_mnist", tmp_path_factory, f"model.weights={checkpoint}", trust_pickle=True)
