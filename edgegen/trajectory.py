"""Trajectories for calibration sets: programs run with the float networks, and what the networks were fed comes out as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.calibration import Batch, CalibrationContext
from edgegen.errors import CalibrationError, ProgramError
from edgegen.program import Eval, Imm, Program, compile_program, initial_state, normals
from edgegen.spec import draw_condition

__all__ = ["Keep", "many_steps", "network_times", "regrouped", "trajectory"]

Keep = Callable[[Batch, npt.NDArray[np.int64]], Batch | None]
"""keep(an evaluation, the numbers int64[n] of the samples that its branches hold) -> what of it to give on, see `Batch.of`."""


def trajectory(context: CalibrationContext, program: Program, rng: np.random.Generator, keep: Keep | None = None) -> Iterator[Batch]:
    """The evaluations of a program, in order, for `context.samples` samples in groups of `context.batch`; `keep` chooses among them.

    Conditions are drawn from `rng` over their ranges; noise is that of seed `context.seed` plus the number of the group's first sample.
    Holds what is kept of one group. Raises RuntimeFault where a network gives NaN.
    """
    executable = compile_program(program)
    needed = {i.name for i in program.inputs}
    for start in range(0, context.samples, context.batch):
        count = min(context.batch, context.samples - start)
        inputs = {c.name: draw_condition(c, count, rng) for c in context.conditions if c.name in needed}
        inputs |= initial_state(program, normals(context.seed + start, 0, (count, *context.sample.shape)))
        seen: list[Batch] = []
        numbers = np.arange(start, start + count)

        def note(batch: Batch, numbers: npt.NDArray[np.int64] = numbers, seen: list[Batch] = seen) -> None:
            kept = batch if keep is None else keep(batch, numbers)
            if kept is not None:
                seen.append(kept)

        executable.run({name: _recording(name, context, note) for name in program.nfe}, inputs, seed=context.seed + start)
        yield from seen


def _recording(name: str, context: CalibrationContext, note: Callable[[Batch], None]) -> Any:
    """The float component `name`, which also tells what it is fed and at which time."""
    component = context.components[name]

    def network(**arrays: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        feeds = component.feeds(arrays)
        time = arrays.get(context.time)
        note(Batch(name, 0.0 if time is None else float(time.flat[0]), feeds))
        return component.run(feeds)

    return network


def network_times(program: Program, time: str) -> tuple[float, ...]:
    """The different times that a program feeds to the input `time`, the noisiest first, rounded to float32 as `Batch.time` is.

    Raises CalibrationError if there are none.
    """
    found = {
        float(np.float32(o.value)) for i in program.instructions if isinstance(i, Eval) for o in i.inputs.get(time, ())[:1] if isinstance(o, Imm)
    }
    if not found:
        raise CalibrationError(f"program {program.name!r} feeds no times to an input {time!r}; calibrate with the set deployed, which needs none")
    return tuple(sorted(found, reverse=True))


def many_steps(context: CalibrationContext, steps: int) -> tuple[Program, tuple[float, ...]]:
    """The recipe's first program at `steps` steps, and its network times. Raises CalibrationError where the solver has no such program."""
    if context.program is None:
        raise CalibrationError("a trajectory of many steps needs a recipe's solver, and this context has none (CalibrationContext.program)")
    try:
        program = context.program(steps)
    except ProgramError as e:
        raise CalibrationError(f"calibration.options.steps: no trajectory of {steps} steps: {e}") from e
    return program, network_times(program, context.time)


def regrouped(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """The same rows, those of one component and time together: given on once there are `rows` of them or more, what is left at the end.

    Holds fewer than `rows` rows of each time.
    """
    waiting: dict[tuple[str, float], list[Batch]] = {}
    for batch in batches:
        group = waiting.setdefault((batch.component, batch.time), [])
        group.append(batch)
        if sum(len(next(iter(b.feeds.values()))) for b in group) >= rows:
            yield _joined(waiting.pop((batch.component, batch.time)))
    for group in waiting.values():
        yield _joined(group)


def _joined(group: list[Batch]) -> Batch:
    first = group[0]
    return Batch(first.component, first.time, {name: np.concatenate([b.feeds[name] for b in group]) for name in first.feeds})
