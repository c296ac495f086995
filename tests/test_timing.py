"""Contenders are timed in processes of their own, in turns."""

from __future__ import annotations

import sys

import pytest

from edgegen.errors import BuildError
from edgegen.timing import alternate, machine

SLEEPER = "import sys, time; from edgegen.timing import serve; serve(lambda: (print('more noise'), time.sleep(float(sys.argv[1]))))"


def test_slower_contenders_take_longer_and_their_prints_do_not_matter():
    rounds = []
    commands = {name: [sys.executable, "-c", SLEEPER, str(s)] for name, s in (("fast", 0.001), ("slow", 0.02))}
    seconds = alternate(commands, rounds=3, runs=2, on_round=rounds.append)
    assert rounds == [1, 2, 3]
    assert {name: len(values) for name, values in seconds.items()} == {"fast": 6, "slow": 6}
    assert min(seconds["slow"]) > 0.019 > max(0.001, sorted(seconds["fast"])[0])


def test_a_contender_that_ends_is_an_error_with_its_last_line():
    with pytest.raises(BuildError, match="timing 'broken': its process ended with code 1: ValueError: no"):
        alternate({"broken": [sys.executable, "-c", "raise ValueError('no')"]}, rounds=1, runs=1)


def test_the_machine_has_a_name():
    assert machine().endswith("cores")
