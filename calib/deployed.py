"""The `deployed` calibration set: the inputs that the network will really see.

Runs each of the bundle's programs with the float network and records the network's inputs at every evaluation, so times,
guidance branches and the states between steps are the deployed ones. (Random training images with random times are not.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgegen.calibration import Batch, CalibrationContext
from edgegen.trajectory import trajectory


def batches(context: CalibrationContext) -> Iterator[Batch]:
    """Every evaluation of every program, for `samples` samples in groups of `batch`, with conditions drawn over their ranges."""
    rng = np.random.default_rng(context.seed)
    for program in context.programs:
        yield from trajectory(context, program, rng)
