"""The `density_variety` calibration set: of each sample's many-step trajectory one state, more of them at times whose features are typical
of many times, and unlike the others in direction.

Source: Liu et al. 2024 (EDA-DM, 2401.04585), temporal distribution alignment. Its features are those of the middle block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.calibration import Batch, CalibrationContext
from edgegen.errors import CalibrationError
from edgegen.program import Program
from edgegen.trajectory import many_steps, regrouped, trajectory

OPTIONS = {"steps": 100, "variety": 1.2, "radius": 0.0}
"""steps: of the trajectory. variety: its weight beside density. radius: mean squared distance within which two times' features are
neighbours; 0: the median distance."""

Floats = npt.NDArray[np.float64]


def batches(context: CalibrationContext) -> Iterator[Batch]:
    """For `samples` samples, in groups of `batch`: the evaluations at the time that each was given; equal times together."""
    program, times = many_steps(context, context.options["steps"])
    features = np.array([f for _, f in sorted(_features(context, program).items(), reverse=True)])
    weights = time_weights(features, context.options["variety"], context.options["radius"])
    rng = np.random.default_rng(context.seed)
    wanted = rng.permutation(np.repeat(times, allocated(weights, context.samples)))
    yield from regrouped(trajectory(context, program, rng, lambda batch, numbers: batch.of(wanted[numbers] == batch.time)), context.batch)


def time_weights(features: npt.NDArray[Any], variety: float, radius: float) -> Floats:
    """float64[N]: density + variety * `variety`, each scaled to 0 .. 1, of N times' features [N, D].

    Density: how many times' features lie within `radius` (mean squared difference). Variety: sum of 1 - cosine to all of them.
    """
    if variety < 0.0 or radius < 0.0:
        raise CalibrationError(f"calibration.options: expected variety and radius of 0 or more, found {variety} and {radius}")
    wide = features.astype(np.float64)
    distances = np.array([np.square(wide - one).mean(axis=1) for one in wide])
    lengths = np.sqrt(np.square(wide).sum(axis=1))
    units = np.divide(wide, lengths[:, None], out=np.zeros_like(wide), where=lengths[:, None] > 0)
    spread = np.array([(1.0 - (units * one).sum(axis=1)).sum() for one in units])
    density = (distances <= (radius or np.median(distances))).sum(axis=1)
    return _scaled(density) + variety * _scaled(spread)


def _scaled(values: npt.NDArray[Any]) -> Floats:
    """Moved and stretched to 0 .. 1; zeros if all are equal."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros(len(values))


def allocated(weights: Floats, samples: int) -> npt.NDArray[np.int64]:
    """int64[N] that adds up to `samples`, in proportion to the weights: rounded down, the largest remainders get one more; equal if all are 0."""
    shares = weights if weights.sum() > 0 else np.ones_like(weights)
    exact: Floats = shares / shares.sum() * samples
    counts: npt.NDArray[np.int64] = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: samples - counts.sum()]] += 1
    return counts


def _features(context: CalibrationContext, program: Program) -> dict[float, npt.NDArray[Any]]:
    """Time -> the network's innermost tensor there, flat, of one batch's samples in the conditional branch."""
    pilot = replace(context, samples=min(context.samples, context.batch))
    name = next(iter(program.nfe))
    found: dict[float, npt.NDArray[Any]] = {}
    tensor = innermost(context, name)
    with context.opened(name, [tensor]) as network:

        def look(batch: Batch, numbers: npt.NDArray[np.int64]) -> None:
            if batch.time not in found:
                first = replace(batch, feeds={k: v[: len(numbers)] for k, v in batch.feeds.items()})
                found[batch.time] = network.run(first.feeds)[tensor].ravel()

        for _ in trajectory(pilot, program, np.random.default_rng(context.seed), look):
            pass
    return found


def innermost(context: CalibrationContext, component: str) -> str:
    """The tensor that stands for the middle block: of the layers (Conv, Gemm, MatMul) on the way of the network's first input, those whose outputs
    have the fewest pixels or tokens, and of these the middle one. One pixel is no place (squeeze-and-excitation), unless there is nothing else.
    """
    signature = context.components[component].signature
    reached, layers = {signature.inputs[0].name}, dict[str, bool]()
    for node in context.model[component].graph.node:
        if reached.intersection(node.input):
            reached.update(filter(None, node.output))  # an output that is left out has no name
            if node.op_type in ("Conv", "Gemm", "MatMul"):
                layers[node.output[0]] = node.op_type == "Conv"
    if not layers:
        raise CalibrationError(f"component {component!r} has no Conv, Gemm or MatMul behind its input {signature.inputs[0].name!r}: no features")
    zeros = {spec.name: np.zeros([1, *(n for n in spec.shape[1:] if isinstance(n, int))], spec.dtype) for spec in signature.inputs}
    with context.opened(component, list(layers)) as network:
        values = network.run(zeros)
    places = {name: math.prod(values[name].shape[2:] if channels_first else values[name].shape[1:-1]) for name, channels_first in layers.items()}
    several = {name: n for name, n in places.items() if n > 1} or places
    fewest = [name for name, n in several.items() if n == min(several.values())]
    return fewest[len(fewest) // 2]
