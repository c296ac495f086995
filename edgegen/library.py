"""Where the families of export/ and the sets of calib/ are (next to the working directory, in a checkout, or in the wheel), and how a
Python file that a user names is run.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from edgegen.errors import RecipeError, nearest

__all__ = ["data_folders", "find_recipe", "run_file"]


def data_folders(kind: str) -> list[Path]:
    """Existing folders of `kind` ("export" or "calib"), the nearest to the user first."""
    package = Path(__file__).resolve().parent
    candidates = [Path.cwd() / kind, package.parent / kind, package / "data" / kind]
    return [path for path in candidates if path.is_dir()]


def find_recipe(name: str) -> Path:
    """The recipe at a path, or of a family of that name. Raises RecipeError with the nearest family names."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path / "recipe.toml" if path.is_dir() else path
    folders = data_folders("export")
    for folder in folders:
        if (folder / name / "recipe.toml").is_file():
            return folder / name / "recipe.toml"
    known = {p.parent.name for folder in folders for p in folder.glob("*/recipe.toml")}
    raise RecipeError(f"no recipe {name!r}: expected the path of a recipe.toml, or a family: {nearest(name, known)}")


def run_file(path: Path, kind: str) -> ModuleType:
    """The module that an existing Python file defines, under a name of its own. Runs the file's code; what it raises comes through."""
    spec = importlib.util.spec_from_file_location(f"edgegen_{kind}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
