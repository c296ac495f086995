"""The `ptq4dm` calibration set: of each sample's many-step trajectory one state, at a normally distributed time (NDTC).

Source: Shang et al. 2023 (PTQ4DM), section 3.3. Of the paper's two orders of time this is the one in which a state keeps its own time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgegen.calibration import Batch, CalibrationContext
from edgegen.errors import CalibrationError
from edgegen.trajectory import many_steps, regrouped, trajectory

OPTIONS = {"steps": 100, "mean": 0.4, "std": 0.4}
"""steps: of the trajectory. mean, std: of the drawn time, as shares of the times visited, counted from the least noisy."""


def batches(context: CalibrationContext) -> Iterator[Batch]:
    """For `samples` samples, in groups of `batch`: the evaluations at the time that was drawn for each; equal times together."""
    program, times = many_steps(context, context.options["steps"])
    rng = np.random.default_rng(context.seed)
    indices = drawn(context.options["mean"], context.options["std"], len(times), context.samples, rng)
    wanted = np.array(times[::-1])[indices]
    yield from regrouped(trajectory(context, program, rng, lambda batch, numbers: batch.of(wanted[numbers] == batch.time)), context.batch)


def drawn(mean: float, std: float, times: int, samples: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """int64[samples], each Normal(mean T, std T) cut to a whole number and clamped to 0 .. T - 1, T = times; 0 is the least noisy."""
    if std < 0.0:
        raise CalibrationError(f"calibration.options.std: expected a share of 0 or more, found {std}")
    normal = rng.normal(mean * times, std * times, samples)
    return np.clip(np.trunc(normal), 0, times - 1).astype(np.int64)
