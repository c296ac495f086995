"""The `uniform` calibration set: equally many states at equally spaced times of a many-step trajectory.

Source: Li et al. 2023 (Q-Diffusion), section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgegen.calibration import Batch, CalibrationContext
from edgegen.errors import CalibrationError
from edgegen.trajectory import many_steps, trajectory

OPTIONS = {"steps": 100, "times": 20}
"""steps: of the trajectory. times: how many of the N times that it visits, every floor(N / times)-th from the noisiest on."""


def batches(context: CalibrationContext) -> Iterator[Batch]:
    """The evaluations at those times, for `samples` samples in groups of `batch`."""
    program, visited = many_steps(context, context.options["steps"])
    count = context.options["times"]
    if not 1 <= count <= len(visited):
        raise CalibrationError(f"calibration.options.times: expected 1 to {len(visited)}, the times of {program.name!r}; found {count}")
    chosen = set(visited[:: len(visited) // count][:count])
    rng = np.random.default_rng(context.seed)
    yield from trajectory(context, program, rng, lambda batch, numbers: batch if batch.time in chosen else None)
