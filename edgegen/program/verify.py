"""The verifier: the numbered rules of runtimes/FORMAT.md, section 4.3. A program that passes cannot read an undefined register,
multiply by NaN, draw the same noise twice or count its evaluations wrongly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from edgegen.errors import ProgramError
from edgegen.program.instructions import (
    Clamp,
    Concat,
    Eval,
    Instruction,
    Lincomb,
    Muladd,
    Noise,
    Program,
    Reduce,
    Reg,
    Scalar,
    Select,
    Slice,
    Slincomb,
    Threshold,
)  # fmt: skip
from edgegen.spec import NAME

__all__ = ["LIMITS", "numbers", "reads", "scalar_reads", "verify", "writes"]

LIMITS = {
    "instructions": 65_536,
    "registers": 4_096,
    "terms": 16,
    "branches": 16,
    "inputs": 64,
    "channels": 65_536,
    "rank": 6,
    "operands": 1024,
    "components": 64,
}
REDUCTIONS = ("mean", "std", "norm", "quantile")
SCALAR_OPERATIONS = ("add", "sub", "mul", "div", "min", "max", "sqrt")
_KINDS = ("noise", "condition")


def reads(instruction: Instruction) -> list[str]:
    """The tensor registers that an instruction reads, in order."""
    match instruction:
        case Eval():
            return [o.name for operands in instruction.inputs.values() for o in operands if isinstance(o, Reg)]
        case Lincomb():
            return [name for _, name in instruction.terms]
        case Noise():
            return [instruction.like]
        case Clamp() | Threshold() | Muladd() | Slice():
            return [instruction.x]
        case Concat():
            return list(instruction.parts)
        case Select():
            return [instruction.mask, instruction.a, instruction.b]
        case Reduce():
            return [instruction.x] if instruction.mask is None else [instruction.x, instruction.mask]
        case Scalar():
            return []
        case Slincomb():
            return [name for _, name, _ in instruction.terms]


def scalar_reads(instruction: Instruction) -> list[str]:
    """The scalar registers that an instruction reads, in order."""
    match instruction:
        case Scalar():
            return [o for o in (instruction.a, instruction.b) if isinstance(o, str)]
        case Slincomb():
            return [scalar for _, _, scalar in instruction.terms if scalar is not None]
        case _:
            return []


def writes(instruction: Instruction) -> list[str]:
    """The registers that an instruction writes."""
    if isinstance(instruction, Eval):
        return [name for names in instruction.outputs.values() for name in names]
    return [instruction.out]


def numbers(instruction: Instruction) -> Iterable[float]:
    """The floating-point numbers of an instruction."""
    match instruction:
        case Eval():
            return [o.scale if isinstance(o, Reg) else o.value for operands in instruction.inputs.values() for o in operands]
        case Lincomb():
            return [*(c for c, _ in instruction.terms), instruction.bias]
        case Clamp():
            return [instruction.low, instruction.high]
        case Threshold():
            return [instruction.quantile, instruction.floor, instruction.ceiling]
        case Muladd():
            return [*instruction.scale, *instruction.shift]
        case Reduce():
            return [instruction.quantile]
        case Scalar():
            return [o for o in (instruction.a, instruction.b) if not isinstance(o, str)]
        case Slincomb():
            return [c for c, _, _ in instruction.terms]
        case Noise() | Concat() | Slice() | Select():
            return []


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


class _Verifier:
    def __init__(self, program: Program) -> None:
        self.program = program

    def fail(self, rule: str, message: str) -> ProgramError:
        return ProgramError(f"program {self.program.name!r}, rule {rule}: {message}")

    def name(self, name: object, what: str) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise self.fail("P1", f"{what} {name!r} is not a name ([A-Za-z_][A-Za-z0-9_.-]*, at most 64 characters)")

    def run(self) -> None:
        self.limits()
        defined = self.inputs()
        self.states(defined)
        given = frozenset(defined)
        scalars: set[str] = set()
        counted: Counter[str] = Counter()
        draw = 0
        ready = dict.fromkeys(given, 0)
        signatures: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        for i, instruction in enumerate(self.program.instructions):
            where = f"instruction {i} ({type(instruction).__name__.upper()})"
            for name in reads(instruction):
                if name not in defined:
                    if name in scalars:
                        raise self.fail("P18", f"{where} reads the scalar {name!r} as a tensor")
                    raise self.fail("P2", f"{where} reads register {name!r} before anything writes it")
            for name in scalar_reads(instruction):
                if name not in scalars:
                    if name in defined:
                        raise self.fail("P18", f"{where} reads the tensor {name!r} as a scalar")
                    raise self.fail("P2", f"{where} reads scalar {name!r} before anything writes it")
            bad = [v for v in numbers(instruction) if not math.isfinite(v)]
            if bad:
                raise self.fail("P3", f"{where} has the number {bad[0]}; all must be finite (sigma = 0 with an order above 1 does this)")
            match instruction:
                case Eval():
                    self.evaluation(instruction, where, signatures)
                    counted[instruction.component] += instruction.branches
                case Lincomb():
                    if not 1 <= len(instruction.terms) <= LIMITS["terms"]:
                        raise self.fail("P6", f"{where} has {len(instruction.terms)} terms, expected 1 to {LIMITS['terms']}")
                case Noise():
                    draw = self.draw(instruction, where, draw)
                case Clamp():
                    if instruction.low > instruction.high:
                        raise self.fail("P8", f"{where}: low {instruction.low} is above high {instruction.high}")
                case Threshold():
                    if not (0 <= instruction.quantile <= 1 and 0 < instruction.floor <= instruction.ceiling):
                        raise self.fail("P9", f"{where}: expected 0 <= quantile <= 1 and 0 < floor <= ceiling")
                case Select():
                    pass
                case _:
                    self.shaping(instruction, where)
            made, other = (scalars, defined) if isinstance(instruction, (Reduce, Scalar)) else (defined, scalars)
            for name in writes(instruction):
                self.name(name, "register")
                if name in given:
                    raise self.fail("P19", f"{where} writes {name!r}, which is an input or a state")
                if name in other:
                    raise self.fail("P18", f"{where} writes {name!r}, which holds {'a tensor' if other is defined else 'a scalar'} elsewhere")
                made.add(name)
                ready.setdefault(name, i + 1)
        if len(defined) + len(scalars) > LIMITS["registers"]:
            raise self.fail("P0", f"{len(defined) + len(scalars)} registers, at most {LIMITS['registers']} are allowed")
        self.ends(defined, counted, ready)

    def states(self, defined: set[str]) -> None:
        """States are defined from the start, as inputs are."""
        for state in self.program.states:
            self.name(state.name, "state")
            if state.name in defined:
                raise self.fail("P19", f"state {state.name!r} is also an input, or declared twice")
            if len(state.shape) >= LIMITS["rank"] or not all(_whole(n) and n > 0 for n in state.shape):
                raise self.fail("P19", f"state {state.name!r}: shape {list(state.shape)}, expected at most {LIMITS['rank'] - 1} sizes >= 1")
            if not math.isfinite(state.initial):
                raise self.fail("P3", f"state {state.name!r} has the initial value {state.initial}")
            defined.add(state.name)

    def limits(self) -> None:
        program = self.program
        if not 1 <= len(program.instructions) <= LIMITS["instructions"]:
            raise self.fail("P0", f"{len(program.instructions)} instructions, expected 1 to {LIMITS['instructions']}")
        if len(program.inputs) > LIMITS["inputs"]:
            raise self.fail("P0", f"{len(program.inputs)} inputs, at most {LIMITS['inputs']} are allowed")
        if len(program.nfe) > LIMITS["components"]:
            raise self.fail("P0", f"{len(program.nfe)} components, at most {LIMITS['components']} are allowed")
        if len(program.states) > LIMITS["inputs"]:
            raise self.fail("P0", f"{len(program.states)} states, at most {LIMITS['inputs']} are allowed")
        if not 1 <= len(program.outputs) <= LIMITS["inputs"]:
            raise self.fail("P0", f"{len(program.outputs)} outputs, expected 1 to {LIMITS['inputs']}")

    def inputs(self) -> set[str]:
        defined: set[str] = set()
        for declared in self.program.inputs:
            self.name(declared.name, "input")
            if declared.name in defined:
                raise self.fail("P1", f"input {declared.name!r} is declared twice")
            if declared.kind not in _KINDS:
                raise self.fail("P1", f"input {declared.name!r} has kind {declared.kind!r}, expected one of {', '.join(_KINDS)}")
            if not math.isfinite(declared.scale):
                raise self.fail("P3", f"input {declared.name!r} has scale {declared.scale}")
            defined.add(declared.name)
        return defined

    def evaluation(self, instruction: Eval, where: str, signatures: dict[str, tuple[frozenset[str], frozenset[str]]]) -> None:
        self.name(instruction.component, "component")
        if not instruction.inputs or not instruction.outputs:
            raise self.fail("P4", f"{where} needs at least one input and one output")
        for name in (*instruction.inputs, *instruction.outputs):
            self.name(name, "component tensor")
        branches = instruction.branches
        if not 1 <= branches <= LIMITS["branches"]:
            raise self.fail("P4", f"{where} has {branches} branches, expected 1 to {LIMITS['branches']}")
        if max(sum(map(len, side.values())) for side in (instruction.inputs, instruction.outputs)) > LIMITS["operands"]:
            raise self.fail("P4", f"{where} has more than {LIMITS['operands']} operands or registers")
        for side in (instruction.inputs, instruction.outputs):
            for name, operands in side.items():
                if len(operands) != branches:
                    raise self.fail("P4", f"{where}: {name!r} has {len(operands)} operands for {branches} branches")
        if not any(isinstance(o, Reg) for operands in instruction.inputs.values() for o in operands):
            raise self.fail("P4", f"{where} reads no register, so its batch size is unknown")
        written = writes(instruction)
        if len(set(written)) != len(written):
            raise self.fail("P4", f"{where} writes one register twice")
        signature = (frozenset(instruction.inputs), frozenset(instruction.outputs))
        if signatures.setdefault(instruction.component, signature) != signature:
            raise self.fail("P5", f"{where}: component {instruction.component!r} was used with other inputs or outputs before")

    def shaping(self, instruction: Instruction, where: str) -> None:
        """P12 to P17: the instructions that change shapes or use runtime scalars."""
        match instruction:
            case Muladd():
                if not 1 <= len(instruction.scale) == len(instruction.shift) <= LIMITS["channels"]:
                    counts = f"{len(instruction.scale)} scales and {len(instruction.shift)} shifts"
                    raise self.fail("P12", f"{where} has {counts}, expected as many of each, 1 to {LIMITS['channels']}")
            case Concat():
                if not 2 <= len(instruction.parts) <= LIMITS["terms"]:
                    raise self.fail("P13", f"{where} joins {len(instruction.parts)} parts, expected 2 to {LIMITS['terms']}")
            case Slice():
                if not (_whole(instruction.start) and _whole(instruction.stop) and instruction.start < instruction.stop):
                    raise self.fail("P14", f"{where}: expected 0 <= start < stop < 2^31, found {instruction.start!r} and {instruction.stop!r}")
            case Reduce():
                if instruction.kind not in REDUCTIONS:
                    raise self.fail("P15", f"{where}: kind {instruction.kind!r}, expected one of {', '.join(REDUCTIONS)}")
                if not 0 <= instruction.quantile <= 1 or (instruction.quantile and instruction.kind != "quantile"):
                    raise self.fail(
                        "P15", f"{where}: quantile {instruction.quantile} with {instruction.kind!r}, expected 0 to 1, and 0 for other kinds"
                    )
            case Scalar():
                if instruction.kind not in SCALAR_OPERATIONS:
                    raise self.fail("P16", f"{where}: kind {instruction.kind!r}, expected one of {', '.join(SCALAR_OPERATIONS)}")
                if not isinstance(instruction.a, str) and not isinstance(instruction.b, str):
                    raise self.fail("P16", f"{where} reads no scalar, so its number of samples is unknown")
                if instruction.kind == "sqrt" and (not isinstance(instruction.a, str) or instruction.b != 0.0):
                    raise self.fail("P16", f"{where}: sqrt takes the scalar a alone; b must be 0")
            case Slincomb():
                if not 1 <= len(instruction.terms) <= LIMITS["terms"]:
                    raise self.fail("P17", f"{where} has {len(instruction.terms)} terms, expected 1 to {LIMITS['terms']}")
            case _:
                raise self.fail("P0", f"{where} is not an instruction")

    def draw(self, instruction: Noise, where: str, before: int) -> int:
        draw = instruction.draw
        if isinstance(draw, bool) or not isinstance(draw, int) or not 1 <= draw < 2**32:
            raise self.fail("P7", f"{where}: draw {draw!r} is not in 1 .. 2^32 - 1 (0 is the initial noise)")
        if draw <= before:
            raise self.fail("P7", f"{where}: draw {draw} comes after draw {before}; draws are numbered upwards")
        sizes = instruction.shape
        if sizes is not None and not (1 <= len(sizes) < LIMITS["rank"] and all(_whole(n) and n > 0 for n in sizes) and math.prod(sizes) < 2**31):
            raise self.fail("P7", f"{where}: shape {list(sizes)}, expected 1 to {LIMITS['rank'] - 1} sizes >= 1, fewer than 2^31 elements")
        return draw

    def ends(self, defined: set[str], counted: Counter[str], ready: dict[str, int]) -> None:
        program = self.program
        for name, register in program.outputs.items():
            self.name(name, "output")
            if register not in defined:
                raise self.fail("P2", f"output {name!r} reads register {register!r}, which nothing writes")
        for state in program.states:
            if state.next not in defined:
                raise self.fail("P19", f"state {state.name!r} continues as {state.next!r}, a tensor that nothing writes")
        if dict(program.nfe) != dict(counted):
            raise self.fail("P10", f"declared NFE {dict(program.nfe)}, but the instructions evaluate {dict(counted)}")
        last = 0
        for i, step in enumerate(program.steps):
            if not last < step.after <= len(program.instructions):
                raise self.fail("P11", f"step {i} ends after instruction {step.after}; steps must advance and stay inside the program")
            if step.state not in defined or ready[step.state] > step.after or not math.isfinite(step.time):
                raise self.fail("P11", f"step {i} names register {step.state!r} at time {step.time}, expected one written by then, a finite time")
            last = step.after


def verify(program: Program) -> Program:
    """`program` itself, or ProgramError naming the first broken rule (P0 .. P19)."""
    _Verifier(program).run()
    return program
