"""Mixed precision: which layers go back to float so that the final samples stay within an error budget, for as little time as possible.

In: each layer's own effect on the final sample, and the time that its integers save. Out: the layers that stay float, and the way there.
Knows neither networks nor engines: errors are measured by a function that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Effect", "Point", "repaired", "searched"]

Measure = Callable[[frozenset[str]], float]
"""measure(layers that stay float) -> relative error of the final samples."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What quantizing one layer alone does. weight, activation: relative error of the final samples by its weight, by what it reads and writes.

    saves: milliseconds of an evaluation that its integers save, as measured; less than 0 if they cost time. steps: (network time, error) where
    only that evaluation was quantized, for the worst layers.
    """

    layer: str
    weight: float
    activation: float
    saves: float
    steps: tuple[tuple[float, float], ...] = field(default=())

    @property
    def error(self) -> float:
        """Of both, if they are independent."""
        return math.hypot(self.weight, self.activation)


@dataclass(frozen=True, slots=True)
class Point:
    """A choice that was measured. floats: layers that stay float; saves: milliseconds of an evaluation that the others save."""

    floats: frozenset[str]
    error: float
    saves: float


def repaired(order: Sequence[str], measure: Measure, budget: float, most: int) -> tuple[frozenset[str], float]:
    """(layers, error): the fewest first layers of `order`, at most `most`, that must be float for an error within the budget.

    If even `most` are not enough: those, and their error.
    """
    floats: frozenset[str] = frozenset()
    error = measure(floats)
    for count in range(1, min(most, len(order)) + 1):
        if error <= budget:
            break
        floats = frozenset(order[:count])
        error = measure(floats)
    return floats, error


def searched(effects: Sequence[Effect], measure: Measure, budget: float) -> tuple[Point, list[Point]]:
    """(the choice, every choice that was measured). Starts from all layers in integers, without those that save no time; while the measured error
    is above the budget, the layer with the most squared error per millisecond goes back to float, as many at once as errors that add up
    in squares say are needed; then those come back, the most time first, that the budget turns out to have room for.
    """

    def total(floats: frozenset[str]) -> float:
        return sum(e.saves for e in effects if e.layer not in floats)

    points: list[Point] = []

    def tried(floats: frozenset[str]) -> Point:
        found = next((p for p in points if p.floats == floats), None)
        if found is None:
            found = Point(floats, measure(floats), total(floats))
            points.append(found)
        return found

    useless = frozenset(e.layer for e in effects if e.saves <= 0.0)
    point = tried(useless)
    ranked = sorted((e for e in effects if e.layer not in useless), key=lambda e: -(e.error**2) / e.saves)
    while point.error > budget and ranked:
        removed: set[str] = set()
        left = point.error**2
        while ranked and left > budget**2:
            effect = ranked.pop(0)
            removed.add(effect.layer)
            left -= effect.error**2
        point = tried(point.floats | removed)
    if point.error <= budget:
        back = sorted((e for e in effects if e.layer in point.floats - useless), key=lambda e: -e.saves)
        for effect in back:
            spare = budget**2 - point.error**2
            if effect.error**2 <= spare:
                further = tried(point.floats - {effect.layer})
                point = further if further.error <= budget else point
    return point, points
