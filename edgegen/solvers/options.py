"""Checks of a solver's own options, with one wording."""

from __future__ import annotations

from collections.abc import Iterable

from edgegen.errors import ProgramError, Status, nearest

__all__ = ["one_of", "whole_number"]


def one_of(solver: str, option: str, value: str, choices: Iterable[str]) -> None:
    """Raise ProgramError, with the nearest choices, unless `value` is one of them."""
    known = list(choices)
    if value not in known:
        raise ProgramError(f"{solver}: no {option} {value!r}: {nearest(str(value), known)}", Status.UNKNOWN_NAME)


def whole_number(solver: str, option: str, value: int, low: int, high: int) -> None:
    """Raise ProgramError unless `value` is a whole number from low to high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ProgramError(f"{solver}: expected {option} from {low} to {high}, found {value!r}", Status.OUT_OF_RANGE)
