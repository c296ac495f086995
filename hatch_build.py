"""Puts libedgegen into the wheel where `make native` built it; without it the wheel is pure Python."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeLibrary(BuildHookInterface):  # type: ignore[type-arg]
    """A hook of hatchling, named in pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library, and say which platform the wheel is for."""
        library = Path(self.root, "build", "native", "libedgegen.so")
        if version != "standard" or not library.is_file():
            return
        build_data["force_include"][str(library.resolve())] = "edgegen/native/libedgegen.so"
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
