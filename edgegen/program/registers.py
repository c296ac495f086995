"""Register allocation: solvers write each value once under a fresh name; the device keeps as few tensors as are alive at a time."""

from __future__ import annotations

from dataclasses import replace

from edgegen.program.instructions import Clamp, Eval, Imm, Instruction, Lincomb, Noise, Operand, Program, Reg, Step, Threshold
from edgegen.program.verify import reads, writes

__all__ = ["allocate"]


def _last_uses(program: Program) -> dict[str, int]:
    """Register -> index of the last instruction after which it is still needed."""
    last: dict[str, int] = {}
    for i, instruction in enumerate(program.instructions):
        for name in (*reads(instruction), *writes(instruction)):
            last[name] = i
    for step in program.steps:
        last[step.state] = max(last[step.state], step.after - 1)
    for name in program.outputs.values():
        last[name] = len(program.instructions)
    return last


def _renamed(instruction: Instruction, old: dict[str, str], new: dict[str, str]) -> Instruction:
    """`instruction` with its reads renamed by `old` and its writes by `new`."""
    match instruction:
        case Eval(component, inputs, outputs):

            def operand(o: Operand) -> Operand:
                return o if isinstance(o, Imm) else Reg(old[o.name], o.scale)

            return Eval(
                component,
                {name: tuple(operand(o) for o in operands) for name, operands in inputs.items()},
                {name: tuple(new[r] for r in targets) for name, targets in outputs.items()},
            )
        case Lincomb(out, terms, bias):
            return Lincomb(new[out], tuple((c, old[name]) for c, name in terms), bias)
        case Noise(out, like, draw):
            return Noise(new[out], old[like], draw)
        case Clamp(out, x) | Threshold(out, x):
            return replace(instruction, out=new[out], x=old[x])


def allocate(program: Program) -> Program:
    """The same program on the fewest registers (linear scan); inputs keep their names, the others become r0, r1, ...

    An instruction never writes a register that it reads. Needs every register to be written once.
    """
    last = _last_uses(program)
    names = {i.name: i.name for i in program.inputs}
    free: list[str] = []
    made = 0
    instructions: list[Instruction] = []
    states: dict[int, str] = {}
    marks = {step.after: step.state for step in program.steps}
    for i, instruction in enumerate(program.instructions):
        before = dict(names)
        for name in writes(instruction):
            if free:
                names[name] = free.pop()
            else:
                names[name] = f"r{made}"
                made += 1
        instructions.append(_renamed(instruction, before, names))
        if i + 1 in marks:
            states[i + 1] = names[marks[i + 1]]
        inputs = {p.name for p in program.inputs}
        for name in [n for n in names if last.get(n, -1) == i and n not in inputs]:
            free.append(names.pop(name))
    return replace(
        program,
        instructions=tuple(instructions),
        outputs={name: names[register] for name, register in program.outputs.items()},
        steps=tuple(Step(s.after, states[s.after], s.time) for s in program.steps),
    )
