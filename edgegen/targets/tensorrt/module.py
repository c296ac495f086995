"""The two modules that build and run TensorRT engines, of one Python API: chosen by the engine's name at run time."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from typing import Any

from edgegen.errors import BuildError, Status, nearest

__all__ = ["MODULES", "PARSED", "find", "load", "version"]

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""Engine -> Python module. tensorrt-rtx: GPUs of RTX, builds without one. tensorrt: Jetson and servers, builds for the GPU of its machine."""
PARSED = "PARSED"
"""Severity of the line that the builder's process puts in its log when everything is parsed."""


def find(engine: str) -> str:
    """The Python module of an engine. Raises BuildError: no such engine (UNKNOWN_NAME), not installed (BACKEND_MISSING)."""
    if engine not in MODULES:
        raise BuildError(f"no TensorRT engine {engine!r}: {nearest(engine, MODULES)}", Status.UNKNOWN_NAME)
    module = MODULES[engine]
    if importlib.util.find_spec(module) is None:
        how = "pip install 'edgegen[tensorrt]'" if engine == "tensorrt-rtx" else "JetPack, or pip install tensorrt (another choice: tensorrt-rtx)"
        raise BuildError(f"the Python module {module} is not installed; install it with: {how}", Status.BACKEND_MISSING)
    return module


def load(engine: str) -> Any:
    """The module itself, imported. Raises BuildError as `find`, and if its libraries cannot be loaded (BACKEND_MISSING)."""
    name = find(engine)
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as e:
        raise BuildError(f"the Python module {name} is installed and cannot be loaded: {e}", Status.BACKEND_MISSING) from e


def version(engine: str) -> str:
    """The installed version of an engine's module, for cache keys. Raises BuildError as `load`, which it calls only if it must."""
    name = find(engine)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # JetPack installs without metadata
        return str(load(engine).__version__)
