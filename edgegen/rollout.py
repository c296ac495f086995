"""Policies in their worlds: a Python file that knows a simulator and how to draw what happened in it.

Such a file defines `evaluate(act, episodes, seed) -> (success: bool[episodes], picture: uint8[H, W, 3])`, where `act(seed, **conditions)`
returns the bundle's samples (action chunks), one per row of the conditions. The bundle names no file: the user does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import RuntimeFault, Status, nearest
from edgegen.library import data_folders, run_file

__all__ = ["Act", "load_world"]

Act = Callable[..., npt.NDArray[Any]]
Evaluate = Callable[[Act, int, int], tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]]


def load_world(name: str) -> Evaluate:
    """The `evaluate` of a simulator: the path of its file, or a family of export/ that has a simulator.py.

    Runs that file's code. Raises RuntimeFault if there is none (with the nearest families), or it defines no `evaluate`.
    """
    folders = data_folders("export")
    candidates = [Path(name)] if name.endswith(".py") else [folder / name / "simulator.py" for folder in folders]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        known = {p.parent.name for folder in folders for p in folder.glob("*/simulator.py")}
        raise RuntimeFault(f"no world {name!r}: expected the path of a Python file, or a family: {nearest(name, known)}", Status.UNKNOWN_NAME)
    found = getattr(run_file(path, "world"), "evaluate", None)
    if not callable(found):
        raise RuntimeFault(f"{path}: a world defines evaluate(act, episodes, seed), which is missing", Status.BAD_ARGUMENT)
    return found  # type: ignore[no-any-return]
