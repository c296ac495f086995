"""The `deployed` calibration set: the inputs that the network will really see.

Runs each of the bundle's programs with the float network and records the network's inputs at every evaluation, so times,
guidance branches and the states between steps are the deployed ones. (Random training images with random times are not.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgegen.calibration import Batch, CalibrationContext
from edgegen.program import compile_program, initial_state, normals
from edgegen.spec import draw_condition


def batches(context: CalibrationContext) -> Iterator[Batch]:
    """Every evaluation of every program, for `samples` samples in groups of `batch`, with conditions drawn over their ranges."""
    rng = np.random.default_rng(context.seed)
    for program in context.programs:
        executable = compile_program(program)
        needed = {i.name for i in program.inputs}
        for start in range(0, context.samples, context.batch):
            count = min(context.batch, context.samples - start)
            inputs = {c.name: draw_condition(c, count, rng) for c in context.conditions if c.name in needed}
            inputs |= initial_state(program, normals(context.seed + start, 0, (count, *context.sample.shape)))
            seen: list[Batch] = []
            executable.run({name: _recording(name, context, seen) for name in program.nfe}, inputs, seed=context.seed + start)
            yield from seen


def _recording(name: str, context: CalibrationContext, seen: list[Batch]) -> Any:
    """The float component `name`, which also notes what it is fed and at which time."""
    component = context.components[name]

    def network(**arrays: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        time = next((float(a) for a in arrays.values() if a.ndim == 0), 0.0)
        feeds = component.feeds(arrays)
        seen.append(Batch(name, time, feeds))
        return component.run(feeds)

    return network
