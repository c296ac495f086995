"""Charts as inline SVG: numbers go in, markup comes out, its colours and fonts by the classes of page.html.

Each is 340 units wide with letters of 14, so that it is readable on a phone without scaling. Positions without a number are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["COLOURS", "Line", "band_chart", "line_chart", "log_ticks", "point_chart", "ticks"]

COLOURS = 6
"""How many colours of lines the page has: classes s0 .. s5; further lines are dashed."""
_WIDTH, _HEIGHT = 340, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 46


@dataclass(frozen=True, slots=True)
class Line:
    """A named curve: one value, or None, for each position."""

    name: str
    values: Sequence[float | None]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within [low, high], at most `most`, apart by 1, 2 or 5 times a power of ten. low < high."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step for factor in (1, 2, 5, 10, 20) if (high - low) / (step := factor * power) <= most - 1)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Numbers 1, 2 or 5 times a power of ten within [low, high]; only powers of ten, or every n-th of them, where more than `most` fit. 0 < low."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [found for power in powers for factor in (1, 2, 5) if low <= (found := factor * 10.0**power) <= high]
    if len(fine) <= most:
        return fine
    whole = [found for power in powers if low <= (found := 10.0**power) <= high]
    return whole[:: math.ceil(len(whole) / most)]


class _Scale:
    """Values -> places along an axis from `start` to `end`; values that a logarithm does not take have none."""

    def __init__(self, values: Iterable[float | None], start: float, end: float, *, log: bool = False, zero: bool = False) -> None:
        self.log, self._start, self._end = log, start, end
        kept = [v for v in values if v is not None and math.isfinite(v) and (v > 0.0 or not log)] + ([0.0] if zero else [])
        low, high = min(kept, default=1.0), max(kept, default=1.0)
        if not (low < high and math.isfinite(high - low)):
            low, high = (low / 2.0, high * 2.0) if log else (low - 0.5 * (abs(low) or 1.0), low + 0.5 * (abs(low) or 1.0))
        self.low, self.high = low, high

    def __call__(self, value: float | None) -> float | None:
        if value is None or not self.low <= value <= self.high:
            return None
        share = math.log(value / self.low) / math.log(self.high / self.low) if self.log else (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """(place, words) of each tick."""
        values = log_ticks(self.low, self.high, most) if self.log else []
        if len(values) < 3:
            values = ticks(self.low, self.high, most)
        return [(place, f"{value:.4g}") for value in values if (place := self(value)) is not None]


def _text(x: float, y: float, words: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(words)}</text>'


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" aria-label="{escape(title)}">'
    return f"{head}{''.join(parts)}</svg>"


def _y_axis(scale: _Scale, name: str, height: int, most: int = 5) -> list[str]:
    parts = []
    for place, words in scale.ticks(most):
        parts.append(f'<path class="rule" d="M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, place + 5, words, "end"))
    middle = (_TOP + height - _BOTTOM) / 2
    return [*parts, _text(14, middle, name, extra=f' transform="rotate(-90 14 {middle:.1f})"')] if name else parts


def _short(name: str) -> str:
    """A position's name as it fits below the axis: four digits of a number, nine letters of a word."""
    try:
        return f"{float(name):.4g}"
    except ValueError:
        return name[:9]


def _x_names(positions: Sequence[str], places: Sequence[float], base: float, name: str) -> list[str]:
    """The names of up to four positions below an axis, and the axis' own."""
    count = len(positions)
    shown = sorted({round(k * (count - 1) / 3) for k in range(4)}) if count > 4 else list(range(count))
    parts = []
    for i in shown:
        anchor = "middle" if count == 1 or 0 < i < count - 1 else "start" if i == 0 else "end"
        parts.append(_text(places[i], base + 17, _short(positions[i]), anchor))
    return [*parts, _text((_LEFT + _WIDTH - _RIGHT) / 2, base + 36, name)] if name else parts


def _places(count: int) -> list[float]:
    span = _WIDTH - _RIGHT - _LEFT
    return [_LEFT + span * (i / (count - 1) if count > 1 else 0.5) for i in range(count)]


def _path(points: Iterable[tuple[float, float | None]]) -> str:
    """M and L commands through the points, broken where there is none."""
    commands, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        commands.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(commands)


def line_chart(lines: Sequence[Line], positions: Sequence[str], *, x: str, y: str, log: bool = False) -> str:
    """Curves over evenly spaced named positions. x, y: names of the axes; log: of y, which then needs values > 0."""
    base = _HEIGHT - _BOTTOM
    scale = _Scale((v for line in lines for v in line.values), base, _TOP, log=log)
    places = _places(len(positions))
    parts = _y_axis(scale, y, _HEIGHT) + _x_names(positions, places, base, x)
    for i, line in enumerate(lines):
        points = [(place, scale(value)) for place, value in zip(places, line.values, strict=True)]
        dashed = ' stroke-dasharray="5 3"' if i // COLOURS % 2 else ""
        dots = "".join(f'<circle class="dot s{i % COLOURS}" cx="{px:.1f}" cy="{py:.1f}" r="2.5"/>' for px, py in points if py is not None)
        parts.append(f'<g><title>{escape(line.name)}</title><path class="line s{i % COLOURS}"{dashed} d="{_path(points)}"/>{dots}</g>')
    return _svg(parts, _HEIGHT, f"{y} against {x}" if x else y)


def band_chart(name: str, low: Sequence[float | None], high: Sequence[float | None], positions: Sequence[str]) -> str:
    """The band between two curves over evenly spaced named positions: a small chart with its name above."""
    height, top = 150, 24
    base = height - 26
    scale = _Scale([*low, *high], base, top, zero=True)
    places = _places(len(positions))
    pairs = [(p, scale(a), scale(b)) for p, a, b in zip(places, low, high, strict=True)]
    whole = [(p, a, b) for p, a, b in pairs if a is not None and b is not None]
    outline = [(p, b) for p, _, b in whole] + [(p, a) for p, a, _ in reversed(whole)]
    zero = scale(0.0)
    parts = [_text(4, 15, name if len(name) <= 40 else f"…{name[-39:]}", "start"), *_y_axis(scale, "", height, 4)]
    parts += _x_names(positions, places, base, "")
    if outline:
        parts.append(f'<path class="band" d="{_path(outline)}Z"/>')
    parts.append(f'<path class="zero" d="M{_LEFT} {zero:.1f}H{_WIDTH - _RIGHT}"/>')
    return _svg(parts, height, f"range of {name}")


def point_chart(
    points: Sequence[tuple[float | None, float | None]], *, x: str, y: str, marked: int | None = None, bound: float | None = None
) -> str:  # fmt: skip
    """Numbered points (x, y), the first 1; `marked` is the index of the one that stands out, `bound` a level of y that is drawn across."""
    base = _HEIGHT - _BOTTOM
    across = _Scale((px for px, _ in points), _LEFT + 10, _WIDTH - _RIGHT - 16)
    scale = _Scale((py for _, py in points), base, _TOP + 12, zero=True)
    parts = _y_axis(scale, y, _HEIGHT)
    for place, words in across.ticks(4):
        parts.append(_text(place, base + 17, words))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, base + 36, x))
    level = scale(bound)
    if level is not None:
        parts.append(f'<path class="bound" d="M{_LEFT} {level:.1f}H{_WIDTH - _RIGHT}"><title>budget</title></path>')
    for i, (px, py) in enumerate(points):
        cx, cy = across(px), scale(py)
        if cx is not None and cy is not None:
            kind, radius = ("dot mark", 7) if i == marked else ("dot s0", 4)
            parts.append(f'<circle class="{kind}" cx="{cx:.1f}" cy="{cy:.1f}" r="{radius}"/>{_text(cx + 9, cy - 5, str(i + 1), "start")}')
    return _svg(parts, _HEIGHT, f"{y} against {x}")
