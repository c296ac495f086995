"""The `single` calibration set: the states of the deployed trajectories at one time, for measuring what the other times are worth."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from edgegen.calibration import Batch, CalibrationContext
from edgegen.trajectory import network_times, trajectory

OPTIONS = {"time": math.inf}
"""time: of the network; the nearest time that a program visits is taken. Infinity: the noisiest."""


def batches(context: CalibrationContext) -> Iterator[Batch]:
    """The evaluations at that time in every program that visits it, for `samples` samples in groups of `batch`."""
    visited = sorted({time for program in context.programs for time in network_times(program, context.time)})
    wanted = min(max(context.options["time"], visited[0]), visited[-1])
    chosen = min(visited, key=lambda time: abs(time - wanted))
    rng = np.random.default_rng(context.seed)
    for program in context.programs:
        yield from trajectory(context, program, rng, lambda batch, numbers: batch if batch.time == chosen else None)
