"""One tree of errors. Every error carries `.code`, equal to the status that the C runtime returns for the same fault."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum

__all__ = [
    "BuildError",
    "BundleError",
    "CalibrationError",
    "Cancelled",
    "EdgegenError",
    "ExportError",
    "GateError",
    "ProgramError",
    "RecipeError",
    "RuntimeFault",
    "Status",
    "nearest",
]


class Status(IntEnum):
    """Status codes shared by every runtime: 1xx argument, 2xx file, 3xx resource, 4xx backend, 5xx state, 6xx cancelled."""

    OK = 0
    BAD_ARGUMENT = 100
    BAD_SHAPE = 101
    BAD_DTYPE = 102
    OUT_OF_RANGE = 103
    UNKNOWN_NAME = 104
    NONFINITE = 105
    BAD_RECIPE = 106
    CANNOT_OPEN = 200
    TRUNCATED = 201
    NOT_A_BUNDLE = 202
    BAD_VERSION = 203
    BAD_HEADER = 204
    LIMIT = 205
    CORRUPT = 206
    BAD_MANIFEST = 207
    NOT_CANONICAL = 208
    BAD_TABLE = 209
    INCONSISTENT = 210
    BAD_PROGRAM = 211
    CANNOT_WRITE = 212
    NO_MEMORY = 300
    NO_SPACE = 301
    BACKEND_MISSING = 400
    BACKEND_FAILED = 401
    NO_VARIANT = 402
    EXPORT_FAILED = 403
    BACKEND_TOO_OLD = 404
    PROVIDER_MISSING = 405
    BAD_STATE = 500
    GATE_FAILED = 501
    BUSY = 502
    CANCELLED = 600


class EdgegenError(Exception):
    """Base of all errors that edgegen raises on purpose. `code` is a `Status`."""

    code = Status.BAD_ARGUMENT

    def __init__(self, message: str, code: Status | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class RecipeError(EdgegenError):
    """A recipe, or a name or number in it, is not what edgegen expects."""

    code = Status.BAD_RECIPE


class ProgramError(EdgegenError):
    """A program breaks one of the numbered rules of runtimes/FORMAT.md, or cannot be built as asked."""

    code = Status.BAD_PROGRAM


class BundleError(EdgegenError):
    """A bundle cannot be read or written."""

    code = Status.CORRUPT


class ExportError(EdgegenError):
    """A network cannot be turned into a checked ONNX component."""

    code = Status.EXPORT_FAILED


class CalibrationError(EdgegenError):
    """A calibration set gave no usable ranges."""

    code = Status.BAD_ARGUMENT


class BuildError(EdgegenError):
    """A stage of the build failed for a reason other than the network or the recipe."""

    code = Status.BACKEND_FAILED


class GateError(BuildError):
    """No variant passed the quality gate."""

    code = Status.GATE_FAILED


class RuntimeFault(EdgegenError):
    """A bundle is sound but this call, or this device, cannot run it."""

    code = Status.BACKEND_FAILED


class Cancelled(RuntimeFault):
    """`on_step` returned False."""

    code = Status.CANCELLED


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the closest known names first, then all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"
