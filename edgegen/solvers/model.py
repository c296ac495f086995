"""How a solver's program meets one model: tensor names, the network's own time, conditions. A transform of a program, so a solver
never hears of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgegen.diffusion import Process
from edgegen.errors import ProgramError, Status, nearest
from edgegen.program import Concat, Eval, Imm, Input, Instruction, Lincomb, Muladd, Program, Reg, Slice
from edgegen.program.instructions import Operand
from edgegen.program.rewrite import expand

__all__ = ["TIMES", "Denoiser", "bind"]

TIMES: dict[str, Callable[[Process, float], float]] = {
    "process": lambda process, t: t,
    "rounded": lambda process, t: float(round(t)),
    "rounded_nodes": lambda process, t: float(round(t)),
    "truncated": lambda process, t: float(math.floor(t)),
    "times_1000": lambda process, t: 1000.0 * t,
    "times_1000_truncated": lambda process, t: float(math.floor(1000.0 * t)),
    "times_999": lambda process, t: 999.0 * t,
    "log_sigma_over_4": lambda process, t: 0.25 * math.log(float(process.sigma(t))),
}
"""What the network's time input receives at process time t: as it is, rounded to an index (diffusers with Karras sigmas; "rounded_nodes"
only where a step starts, as KDPM2 does), cut to an index (diffusers with exponential sigmas), scaled (score_sde: 999 t; a flow: 1000 t, cut
or not), or EDM's ln(sigma) / 4."""


@dataclass(frozen=True, slots=True)
class Denoiser:
    """The names a model gives to what a solver calls denoiser(x, t) -> prediction, and what else it is told.

    conditions: further inputs, filled by program inputs of the same names. r, latent: inputs of the second time (MeanFlow) and of
    the latent noise (denoising diffusion GANs). concat: conditions joined to x along axis 1 instead.
    channels: keep only the first so many channels of the output (networks that also return a variance).
    scale, shift: what the sample is multiplied by and moved by at the end, one number per channel or one for all.
    """

    component: str = "denoiser"
    x: str = "x"
    t: str = "t"
    output: str = "prediction"
    conditions: tuple[str, ...] = ()
    time: str = "process"
    r: str = "r"
    latent: str = "latent"
    concat: tuple[str, ...] = ()
    channels: int | None = None
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()


def bind(program: Program, process: Process, model: Denoiser) -> Program:
    """`program` with the model's names, its times mapped, and its conditions as program inputs."""
    if model.time not in TIMES:
        raise ProgramError(f"no time map {model.time!r}: {nearest(model.time, TIMES)}", Status.UNKNOWN_NAME)
    inner = _inside_steps(program) if model.time == "rounded_nodes" else set()
    pieces = [
        _bound(i, process, model, TIMES["process" if k in inner else model.time]) if isinstance(i, Eval) else [i]
        for k, i in enumerate(program.instructions)
    ]
    outputs = dict(program.outputs)
    if model.scale or model.shift:
        count = max(len(model.scale), len(model.shift))
        scale, shift = (v * count if len(v) == 1 else v for v in (model.scale or (1.0,), model.shift or (0.0,)))
        pieces[-1] = [*pieces[-1], Muladd("restored", outputs["sample"], tuple(scale), tuple(shift))]
        outputs["sample"] = "restored"
    declared = {i.name for i in program.inputs}
    inputs = program.inputs + tuple(Input(name, "condition") for name in (*model.conditions, *model.concat) if name not in declared)
    bound = replace(expand(program, pieces), inputs=inputs, outputs=outputs, nfe={model.component: program.nfe["denoiser"]})
    return _marks_at_the_end(bound)


def _inside_steps(program: Program) -> set[int]:
    """Indices of the evaluations that are not the first of their step."""
    inner: set[int] = set()
    start = 0
    for step in program.steps:
        inner |= set([k for k in range(start, step.after) if isinstance(program.instructions[k], Eval)][1:])
        start = step.after
    return inner


def _marks_at_the_end(program: Program) -> Program:
    """The last step mark moved behind what was appended after it."""
    *before, last = program.steps
    return replace(program, steps=(*before, replace(last, after=max(last.after, len(program.instructions)))))


def _bound(
    instruction: Eval, process: Process, model: Denoiser, to_network: Callable[[Process, float], float]
) -> list[Instruction]:  # fmt: skip
    """The evaluation under the model's names, with what must be done to its state before and to its output after."""
    before: list[Instruction] = []
    after: list[Instruction] = []
    states: list[Operand] = []
    outs = []
    for operand, out in zip(instruction.inputs["x"], instruction.outputs["prediction"], strict=True):
        if model.concat and isinstance(operand, Reg):
            x = operand.name
            if operand.scale != 1.0:
                x = f"{out}.in"
                before.append(Lincomb(x, ((operand.scale, operand.name),)))
            before.append(Concat(f"{out}.joined", (x, *model.concat)))
            operand = Reg(f"{out}.joined")
        states.append(operand)
        outs.append(out if model.channels is None else f"{out}.whole")
        if model.channels is not None:
            after.append(Slice(out, f"{out}.whole", 0, model.channels))
    inputs: dict[str, tuple[Operand, ...]] = {model.x: tuple(states)}
    for role, name in (("t", model.t), ("r", model.r), ("latent", model.latent)):
        if role in instruction.inputs:
            inputs[name] = tuple(Imm(to_network(process, o.value)) if isinstance(o, Imm) else o for o in instruction.inputs[role])
    inputs |= {name: (Reg(name),) * instruction.branches for name in model.conditions}
    return [*before, Eval(model.component, inputs, {model.output: tuple(outs)}), *after]
