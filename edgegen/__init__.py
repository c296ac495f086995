"""edgegen: an edge-deployment compiler for few-step generative models. Importing it needs numpy only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgegen import errors

if TYPE_CHECKING:
    from edgegen.runtime import Session, load

__all__ = ["Session", "__version__", "errors", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`load` and `Session` come with the runtime, which is imported when it is first asked for."""
    if name in ("load", "Session"):
        from edgegen import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module 'edgegen' has no attribute {name!r}")
