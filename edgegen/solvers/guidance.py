"""Classifier-free guidance as a transform of a program, so that every solver has it.

output = scale * conditional + (1 - scale) * unconditional (Ho and Salimans 2022), at the evaluations inside an interval of times only
(Kynkaanniemi et al. 2024), and rescaled to the conditional output's spread (Lin et al. 2024, section 3.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgegen.errors import ProgramError, Status
from edgegen.program import Eval, Imm, Input, Instruction, Lincomb, Program, Reduce, Reg, Scalar, Slincomb
from edgegen.program.instructions import Operand
from edgegen.program.rewrite import expand

__all__ = ["Guidance", "guide", "guided_nodes"]


@dataclass(frozen=True, slots=True)
class Guidance:
    """null: component input -> what the unconditional branch feeds it: a number for every row (a null label), or the name of a
    program input that the caller fills (a negative prompt). batched: one evaluation of two joined batches, else two evaluations.

    rescale: 0 (off) to 1: how far each sample's standard deviation is moved back to the conditional output's. interval: (earliest,
    latest) process times at which guidance applies; at others the conditional branch runs alone.
    """

    scale: float
    null: Mapping[str, float | str] = field(default_factory=dict)
    batched: bool = True
    rescale: float = 0.0
    interval: tuple[float, float] | None = None


def guided_nodes(program: Program, guidance: Guidance) -> list[bool]:
    """For each evaluation of a solver's program, whether guidance applies at its (process) time."""
    times = [o.value for i in program.instructions if isinstance(i, Eval) for o in i.inputs["t"][:1] if isinstance(o, Imm)]
    if guidance.interval is None:
        return [True] * len(times)
    low, high = guidance.interval
    if not low <= high:
        raise ProgramError(f"guidance interval: expected earliest <= latest, found {low} and {high}", Status.OUT_OF_RANGE)
    return [low <= t <= high for t in times]


def guide(program: Program, guidance: Guidance, where: Sequence[bool]) -> Program:
    """`program` with the evaluations marked in `where` replaced by a conditional and an unconditional one and their combination.

    A scale of 1 is the conditional branch alone: the program stays as it is.
    """
    w, rescale = float(guidance.scale), float(guidance.rescale)
    if not math.isfinite(w):
        raise ProgramError(f"guidance scale {w} is not finite", Status.NONFINITE)
    if not 0.0 <= rescale <= 1.0:
        raise ProgramError(f"guidance rescale: expected 0 to 1, found {rescale}", Status.OUT_OF_RANGE)
    if w == 1.0:
        return program
    pieces: list[list[Instruction]] = []
    extra: dict[str, Input] = {}
    nfe: dict[str, int] = {}
    at = iter(where)
    for instruction in program.instructions:
        if not isinstance(instruction, Eval):
            pieces.append([instruction])
            continue
        if instruction.branches != 1:
            raise ProgramError(f"solver {program.name!r} has branches of its own; it takes no classifier-free guidance", Status.OUT_OF_RANGE)
        null = _null_operands(instruction, guidance, extra)
        guided = next(at)
        pieces.append(_guided(instruction, null, w, rescale, batched=guidance.batched) if guided else [instruction])
        nfe[instruction.component] = nfe.get(instruction.component, 0) + 1 + guided
    declared = {i.name for i in program.inputs}
    added = tuple(i for i in extra.values() if i.name not in declared) if any(where) else ()
    return replace(expand(program, pieces), inputs=program.inputs + added, nfe=nfe)


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


def _guided(instruction: Eval, null: dict[str, tuple[Operand, ...]], w: float, rescale: float, *, batched: bool) -> list[Instruction]:
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
    mixed = Lincomb(f"{out}.g" if rescale else out, ((w, conditional), (1.0 - w, unconditional)))
    if not rescale:
        return [*evaluations, mixed]
    return [
        *evaluations,
        mixed,
        Reduce(f"{out}.sc", "std", conditional),
        Reduce(f"{out}.sg", "std", mixed.out),
        Scalar(f"{out}.r", "div", f"{out}.sc", f"{out}.sg"),
        Slincomb(out, ((1.0 - rescale, mixed.out, None), (rescale, mixed.out, f"{out}.r"))),
    ]
