"""How a solver's program meets one model: tensor names, the network's own time, conditions, classifier-free guidance.

Each is a transform of a program, so a solver never hears of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edgegen.diffusion import Process
from edgegen.errors import ProgramError, Status, nearest
from edgegen.program import Eval, Imm, Input, Instruction, Lincomb, Program, Reg
from edgegen.program.instructions import Operand
from edgegen.program.rewrite import expand

__all__ = ["TIMES", "Denoiser", "Guidance", "bind", "guide"]

TIMES: dict[str, Callable[[Process, float], float]] = {
    "process": lambda process, t: t,
    "times_1000": lambda process, t: 1000.0 * t,
    "times_999": lambda process, t: 999.0 * t,
    "log_sigma_over_4": lambda process, t: 0.25 * math.log(float(process.sigma(t))),
}
"""What the network's time input receives at process time t: as it is, scaled (score_sde: 999 t), or EDM's ln(sigma) / 4."""


@dataclass(frozen=True, slots=True)
class Denoiser:
    """The names a model gives to what a solver calls denoiser(x, t) -> prediction. `conditions` are further inputs."""

    component: str = "denoiser"
    x: str = "x"
    t: str = "t"
    output: str = "prediction"
    conditions: tuple[str, ...] = ()
    time: str = "process"


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance: output = scale * conditional + (1 - scale) * unconditional (Ho and Salimans 2022).

    null: component input -> what the unconditional branch feeds it: a number for every row (a null label), or the name of a
    program input that the caller fills (a negative prompt). batched: one evaluation of two joined batches, else two evaluations.
    """

    scale: float
    null: Mapping[str, float | str] = field(default_factory=dict)
    batched: bool = True


def bind(program: Program, process: Process, model: Denoiser) -> Program:
    """`program` with the model's names, its times mapped, and its conditions as program inputs."""
    if model.time not in TIMES:
        raise ProgramError(f"no time map {model.time!r}: {nearest(model.time, TIMES)}", Status.UNKNOWN_NAME)
    to_network = TIMES[model.time]

    def bound(instruction: Instruction) -> Instruction:
        if not isinstance(instruction, Eval):
            return instruction
        times = tuple(Imm(to_network(process, o.value)) for o in instruction.inputs["t"] if isinstance(o, Imm))
        inputs: dict[str, tuple[Operand, ...]] = {model.x: instruction.inputs["x"], model.t: times}
        inputs |= {name: (Reg(name),) for name in model.conditions}
        return Eval(model.component, inputs, {model.output: instruction.outputs["prediction"]})

    return replace(
        program,
        inputs=program.inputs + tuple(Input(name, "condition") for name in model.conditions),
        instructions=tuple(bound(i) for i in program.instructions),
        nfe={model.component: program.nfe["denoiser"]},
    )


def guide(program: Program, guidance: Guidance) -> Program:
    """`program` with each evaluation replaced by a conditional and an unconditional one and their combination.

    A scale of 1 is the conditional branch alone: the program stays as it is.
    """
    w = float(guidance.scale)
    if not math.isfinite(w):
        raise ProgramError(f"guidance scale {w} is not finite", Status.NONFINITE)
    if w == 1.0:
        return program
    pieces: list[list[Instruction]] = []
    extra: dict[str, Input] = {}
    nfe: dict[str, int] = {}
    for instruction in program.instructions:
        if isinstance(instruction, Eval):
            null = _null_operands(instruction, guidance, extra)
            pieces.append(_guided(instruction, null, w, batched=guidance.batched))
            nfe[instruction.component] = nfe.get(instruction.component, 0) + 2
        else:
            pieces.append([instruction])
    return replace(expand(program, pieces), inputs=program.inputs + tuple(extra.values()), nfe=nfe)


def _null_operands(instruction: Eval, guidance: Guidance, extra: dict[str, Input]) -> dict[str, tuple[Operand, ...]]:
    """The unconditional branch's operands; program inputs that they name are added to `extra`."""
    unknown = set(guidance.null) - set(instruction.inputs)
    if unknown or not guidance.null:
        raise ProgramError(
            f"guidance needs `null`: which input of {instruction.component!r} becomes unconditional, and its value; "
            f"found {', '.join(sorted(unknown)) or 'nothing'}. Inputs: {', '.join(instruction.inputs)}",
            Status.UNKNOWN_NAME,
        )
    null: dict[str, tuple[Operand, ...]] = {}
    for name, value in guidance.null.items():
        if isinstance(value, str):
            extra[value] = Input(value, "condition")
            null[name] = (Reg(value),)
        else:
            null[name] = (Imm(float(value)),)
    return null


def _guided(instruction: Eval, null: dict[str, tuple[Operand, ...]], w: float, *, batched: bool) -> list[Instruction]:
    """Both branches of one evaluation and their combination into its output register."""
    ((output, (out,)),) = instruction.outputs.items()
    conditional, unconditional = f"{out}.c", f"{out}.u"
    evaluations: list[Instruction]
    if batched:
        inputs = {name: operands + null.get(name, operands) for name, operands in instruction.inputs.items()}
        evaluations = [Eval(instruction.component, inputs, {output: (conditional, unconditional)})]
    else:
        evaluations = [
            replace(instruction, outputs={output: (conditional,)}),
            Eval(instruction.component, {**instruction.inputs, **null}, {output: (unconditional,)}),
        ]
    return [*evaluations, Lincomb(out, ((w, conditional), (1.0 - w, unconditional)))]
