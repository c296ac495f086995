"""Which layers go back to float, on problems whose best answer is found by trying everything."""

from __future__ import annotations

import itertools
import math

import pytest

from edgegen.quantize.mixed import Effect, repaired, searched

EFFECTS = [
    Effect("last", 0.10, 0.14, 0.1), Effect("wide", 0.01, 0.02, 2.0), Effect("middle", 0.02, 0.02, 1.0),
    Effect("small", 0.03, 0.01, 0.05), Effect("slow", 0.001, 0.001, -0.3),
]  # fmt: skip


def independent(floats):
    """Errors that add up in squares, which is what the search assumes."""
    return math.sqrt(sum(e.error**2 for e in EFFECTS if e.layer not in floats))


def best(budget):
    """The most time saved within the budget, by trying every choice."""
    names = [e.layer for e in EFFECTS]
    choices = [frozenset(c) for n in range(len(names) + 1) for c in itertools.combinations(names, n)]
    return max(sum(e.saves for e in EFFECTS if e.layer not in c) for c in choices if independent(c) <= budget)


@pytest.mark.parametrize("budget", [0.2, 0.18, 0.1, 0.05, 0.04, 0.03, 0.025, 0.0])
def test_the_search_finds_the_fastest_choice_within_the_budget(budget):
    point, points = searched(EFFECTS, independent, budget)
    assert point.error <= budget and point in points
    assert point.saves == pytest.approx(best(budget))
    assert "slow" in point.floats  # it saves no time, whatever the budget


def test_errors_that_do_not_add_up_in_squares_are_measured_again():
    """With `last` in float every other layer hurts three times as much: what the squares promise is not enough, and not all may come back."""
    point, points = searched(EFFECTS, lambda floats: independent(floats) * (3 if "last" in floats else 1), 0.1)
    assert points[1].error > 0.1 >= point.error
    assert point.floats == {"slow", "last", "middle", "small"}
    assert len({p.floats for p in points}) == len(points)  # nothing is measured twice


def test_repair_puts_back_as_few_of_the_worst_as_it_takes():
    order, seen = ["last", "small", "middle", "wide"], []

    def measure(floats):
        seen.append(floats)
        return independent(floats)

    floats, error = repaired(order, measure, 0.045, most=4)
    assert floats == {"last", "small"} and error == independent(floats)
    assert [len(f) for f in seen] == [0, 1, 2]
    assert repaired(order, independent, 0.0, most=3) == (frozenset(order[:3]), independent(order[:3]))  # as far as it may go
    assert repaired(order, independent, 1.0, most=4)[0] == frozenset()
