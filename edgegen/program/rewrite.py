"""Rewriting programs: solvers write each value once under a fresh name; these passes then spare the device work and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgegen.program.instructions import (
    Clamp,
    Concat,
    Eval,
    Imm,
    Instruction,
    Lincomb,
    Muladd,
    Noise,
    Operand,
    Program,
    Reduce,
    Reg,
    Scalar,
    Select,
    Slice,
    Slincomb,
    Step,
    Threshold,
)  # fmt: skip
from edgegen.program.verify import LIMITS, reads, scalar_reads, writes

__all__ = ["allocate", "expand", "fold", "last_uses", "renamed", "rescale", "single_assignment"]


_CANCELLED = 2.0**-50


def expand(program: Program, pieces: Sequence[Sequence[Instruction]]) -> Program:
    """`program` with instruction i replaced by the instructions pieces[i], its step marks moved along."""
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    return replace(
        program,
        instructions=tuple(instruction for piece in pieces for instruction in piece),
        steps=tuple(replace(step, after=ends[step.after]) for step in program.steps),
    )


def fold(program: Program) -> Program:
    """The same program with each LINCOMB that only one other LINCOMB reads written into that one, coefficients multiplied in float64,
    and without those that nothing reads.

    Guidance, conversion and update become one pass over memory. Needs every register to be written once.
    """
    uses = Counter(name for i in program.instructions for name in reads(i))
    kept = {*program.outputs.values(), *(step.state for step in program.steps), *(state.next for state in program.states)}
    inner: dict[str, Lincomb] = {}
    pieces: list[list[Instruction]] = []
    for instruction in program.instructions:
        if isinstance(instruction, Lincomb):
            instruction = _inlined(instruction, inner)
            for _, name in instruction.terms:
                inner.pop(name, None)
            if uses[instruction.out] == 1 and instruction.out not in kept:
                inner[instruction.out] = instruction
        pieces.append([instruction])
    needed = kept
    for piece in reversed(pieces):
        if isinstance(piece[0], Lincomb) and piece[0].out not in needed:
            piece.clear()
        else:
            needed.update(reads(piece[0]))
    return expand(program, pieces)


def _inlined(outer: Lincomb, inner: dict[str, Lincomb]) -> Lincomb:
    """`outer` with the terms that `inner` defines written out, equal registers merged; unchanged if that made too many terms.

    A term whose parts cancel up to float64's rounding is left out.
    """
    merged: dict[str, float] = {}
    largest: dict[str, float] = {}
    bias = outer.bias
    for c, name in outer.terms:
        expanded = [(c, name)] if name not in inner else [(c * d, term) for d, term in inner[name].terms]
        bias += c * inner[name].bias if name in inner else 0.0
        for d, term in expanded:
            merged[term] = merged.get(term, 0.0) + d
            largest[term] = max(largest.get(term, 0.0), abs(d))
    terms = tuple((c, name) for name, c in merged.items() if abs(c) > _CANCELLED * largest[name])
    return outer if len(terms) > LIMITS["terms"] or not terms else Lincomb(outer.out, terms, bias)


def rescale(program: Program) -> Program:
    """The same program with each multiple y = c x of a register that is read besides by LINCOMBs alone put in x's place there.

    A network's scaled input then is the state itself: one pass over memory less per step. Needs every register to be written once, and
    changes results by rounding, so it is for fused programs, whose engines round in their own ways anyway.
    """
    fixed = {*program.outputs.values(), *(state.next for state in program.states), *(step.state for step in program.steps)}
    readers: dict[str, list[int]] = {}
    for i, instruction in enumerate(program.instructions):
        for name in reads(instruction):
            readers.setdefault(name, []).append(i)
    instructions = list(program.instructions)
    for i, instruction in enumerate(instructions):
        if not isinstance(instruction, Lincomb) or len(instruction.terms) != 1 or instruction.bias != 0.0:
            continue
        (c, x), y = instruction.terms[0], instruction.out
        others = [k for k in readers[x] if k != i]
        if c == 0.0 or x in fixed or not others or not all(k > i and isinstance(instructions[k], Lincomb) for k in others):
            continue
        for k in others:
            reader = instructions[k]
            assert isinstance(reader, Lincomb)
            instructions[k] = replace(reader, terms=tuple((d / c, y) if name == x else (d, name) for d, name in reader.terms))
            readers.setdefault(y, []).append(k)
    return replace(program, instructions=tuple(instructions))


def last_uses(program: Program) -> dict[str, int]:
    """Register -> index of the last instruction after which it is still needed."""
    last: dict[str, int] = {}
    for i, instruction in enumerate(program.instructions):
        for name in (*reads(instruction), *scalar_reads(instruction), *writes(instruction)):
            last[name] = i
    for step in program.steps:
        last[step.state] = max(last[step.state], step.after - 1)
    for name in (*program.outputs.values(), *(state.next for state in program.states)):
        last[name] = len(program.instructions)
    return last


def renamed(instruction: Instruction, old: Mapping[str, str], new: Mapping[str, str]) -> Instruction:
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
        case Noise(out, like):
            return replace(instruction, out=new[out], like=old[like])
        case Clamp(out, x) | Threshold(out, x) | Muladd(out, x) | Slice(out, x):
            return replace(instruction, out=new[out], x=old[x])
        case Concat(out, parts):
            return Concat(new[out], tuple(old[name] for name in parts))
        case Select(out, mask, a, b):
            return Select(new[out], old[mask], old[a], old[b])
        case Reduce(out, kind, x, mask, quantile):
            return Reduce(new[out], kind, old[x], None if mask is None else old[mask], quantile)
        case Scalar(out, kind, a, b):
            return Scalar(new[out], kind, old[a] if isinstance(a, str) else a, old[b] if isinstance(b, str) else b)
        case Slincomb(out, terms):
            return Slincomb(new[out], tuple((c, old[name], None if f is None else old[f]) for c, name, f in terms))


def single_assignment(program: Program) -> Program:
    """The same program with every register written once: the k-th register written is `v{k}`; inputs and states keep their names.

    The names that step marks and outputs have follow; names of inputs that look like `v3` are left to them.
    """
    names = {name: name for name in (*(i.name for i in program.inputs), *(s.name for s in program.states))}
    taken, instructions, after = set(names), list[Instruction](), [dict(names)]
    count = 0
    for instruction in program.instructions:
        before = dict(names)
        for name in writes(instruction):
            while f"v{count}" in taken:
                count += 1
            names[name], count = f"v{count}", count + 1
        instructions.append(renamed(instruction, before, names))
        after.append(dict(names))
    return replace(
        program,
        instructions=tuple(instructions),
        outputs={name: names[register] for name, register in program.outputs.items()},
        steps=tuple(replace(step, state=after[step.after][step.state]) for step in program.steps),
        states=tuple(replace(s, next=names[s.next]) for s in program.states),
    )


def allocate(program: Program) -> Program:
    """The same program on the fewest registers (linear scan); inputs and states keep their names, the others become r0, r1, ... (scalars s0, s1, ...)

    An instruction never writes a register that it reads. Needs every register to be written once.
    """
    last = last_uses(program)
    names = {i.name: i.name for i in program.inputs} | {s.name: s.name for s in program.states}
    inputs = set(names)
    free: dict[str, list[str]] = {"r": [], "s": []}  # tensors are r0, r1, ...; scalars are s0, s1, ...
    made = Counter[str]()
    instructions: list[Instruction] = []
    states: dict[int, str] = {}
    marks = {step.after: step.state for step in program.steps}
    for i, instruction in enumerate(program.instructions):
        before = dict(names)
        kind = "s" if isinstance(instruction, (Reduce, Scalar)) else "r"
        for name in writes(instruction):
            while not free[kind]:
                register = f"{kind}{made[kind]}"
                made[kind] += 1
                free[kind] += [register] * (register not in inputs)
            names[name] = free[kind].pop()
        instructions.append(renamed(instruction, before, names))
        if i + 1 in marks:
            states[i + 1] = names[marks[i + 1]]
        dead = [n for n in names if last.get(n, -1) == i and n not in inputs]
        for name in dead:
            register = names.pop(name)
            free[register[0]].append(register)
    return replace(
        program,
        instructions=tuple(instructions),
        outputs={name: names[register] for name, register in program.outputs.items()},
        steps=tuple(Step(s.after, states[s.after], s.time) for s in program.steps),
        states=tuple(replace(s, next=names[s.next]) for s in program.states),
    )
