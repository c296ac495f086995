"""What a page is made of: sections of tables, charts, pictures and words, and lenient readers of the documents that they come from.

A bundle's documents are checked to be canonical JSON, not to be of any form: what is missing or strange reads as empty, and is shown as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Block", "Cell", "Figure", "Grid", "Note", "Section", "Table", "bars", "cell", "entries", "number", "pairs", "shaded", "table", "text"]

_LARGEST = 1e100


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell. shade: 0 to 9, how dark; bar: length in percent; strong: stands out."""

    text: str
    shade: int | None = None
    bar: int | None = None
    strong: bool = False

    @property
    def numeric(self) -> bool:
        """Whether it holds a number that is set to the right."""
        return self.bar is None and (number(self.text) is not None or self.text in ("inf", "-inf", "nan"))


@dataclass(frozen=True, slots=True)
class Table:
    """headings, and rows of as many cells; folded: opened by the reader; caption: its name."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    folded: bool = False
    kind: str = "table"


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart (svg: trusted markup of charts.py) or a picture (a data URI), words under it, and the names of its lines."""

    caption: str
    svg: str = ""
    picture: str = ""
    lines: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """Figures side by side where there is room."""

    figures: Sequence[Figure]
    kind: str = "grid"


@dataclass(frozen=True, slots=True)
class Note:
    """A paragraph; code: words in their own layout."""

    text: str
    code: bool = False
    kind: str = "note"


Block = Table | Grid | Note


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. missing: why it is left out and which command would give it; then it has no blocks."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    missing: str = ""


def entries(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """(name, object) of each object in an object; or of each in a list, whose names are their numbers."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(str(name), item) for name, item in items if isinstance(item, dict)]


def pairs(value: Any, width: int) -> list[list[str]]:
    """The rows of at least `width` values in a list of lists, as words, cut to the width."""
    rows = value if isinstance(value, list) else []
    return [[text(item) for item in row[:width]] for row in rows if isinstance(row, list) and len(row) >= width]


def text(value: Any) -> str:
    """A string or whole number as words; anything else is empty."""
    return str(value) if isinstance(value, (str, int)) else ""


def number(value: Any) -> float | None:
    """The number that a string writes; None if it is none, not finite, or too large to draw."""
    try:
        found = float(text(value))
    except ValueError:
        return None
    if not abs(found) <= _LARGEST:  # NaN too
        return None
    return found if abs(found) >= 1.0 / _LARGEST else 0.0


def table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "", *, folded: bool = False) -> Table:
    """A table without the columns that are empty in every row."""
    kept = [i for i in range(len(headings)) if any(row[i].text for row in rows)]
    return Table([headings[i] for i in kept], [[row[i] for i in kept] for row in rows], caption, folded)


def cell(value: Any, *, strong: bool = False) -> Cell:
    """A plain cell."""
    return Cell(text(value), strong=strong)


def shaded(rows: Iterable[Sequence[Any]]) -> list[list[Cell]]:
    """Cells of a heat map: shades by the logarithm of their numbers over the whole map; the first column is names."""
    made = [list(row) for row in rows]
    found = [n for row in made for value in row[1:] if (n := number(value)) is not None and n > 0.0]
    low, high = min(found, default=1.0), max(found, default=1.0)

    def shade(value: Any) -> int | None:
        size = number(value)
        if size is None:
            return None
        if size <= 0.0:
            return 0
        return round(9 * math.log(size / low) / math.log(high / low)) if low < high else 9

    return [[cell(row[0]), *(Cell(text(value), shade(value)) for value in row[1:])] for row in made]


def bars(values: Sequence[Any]) -> list[Cell]:
    """Cells with bars, the largest number's the full length; numbers below 0 have none."""
    sizes = [number(value) or 0.0 for value in values]
    largest = max([*sizes, 0.0]) or 1.0
    return [Cell(text(value), bar=round(100 * max(size, 0.0) / largest)) for value, size in zip(values, sizes, strict=True)]
