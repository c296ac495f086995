"""The loop in a program: a run of steps that do the same with other numbers, found in the straight line that a solver wrote.

Multistep solvers read values of earlier steps; those become the loop's carried values, zero (with coefficient zero) where a first step of
lower order has none. What does not fit the pattern, a last step without noise for one, stays before or after the loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edgegen.program.instructions import (
    Clamp,
    Eval,
    Imm,
    Instruction,
    Lincomb,
    Noise,
    Operand,
    Program,
    Reg,
    Scalar,
    Slincomb,
    Threshold,
)  # fmt: skip
from edgegen.program.rewrite import renamed, single_assignment
from edgegen.program.verify import reads, scalar_reads, writes

__all__ = ["Carried", "Rolled", "Varying", "VaryingDraw", "roll"]

_FEWEST_TURNS = 3
_FIRST_STEPS = 4
"""How many steps before the loop are tried: warm-ups are at most as long as the order of a solver."""
_PERIODS = (1, 2, 3)
"""How many steps may make one turn: singlestep solvers repeat a group of steps."""


class Varying(float):
    """A number in a loop's body that is another in each turn: `values`."""

    values: tuple[float, ...]

    def __new__(cls, values: Sequence[float]) -> Varying:  # noqa: D102
        made = super().__new__(cls, "nan")  # so that nobody takes it for a number
        made.values = tuple(values)
        return made


class VaryingDraw(int):
    """The draw of a NOISE in a loop's body: `values`, one per turn."""

    values: tuple[int, ...]

    def __new__(cls, values: Sequence[int]) -> VaryingDraw:  # noqa: D102
        made = super().__new__(cls, values[0])
        made.values = tuple(values)
        return made


@dataclass(frozen=True, slots=True)
class Carried:
    """A value that goes from turn to turn: the body reads it as `name`, finds it first in register `initial` (None: zeros, which nothing uses),
    and leaves `next` (a register of the body, or another carried value) for the next turn. After the loop it is `{name}.last`.

    like: a register of the body that has its shape.
    """

    name: str
    initial: str | None
    next: str
    like: str


@dataclass(frozen=True, slots=True)
class Rolled:
    """before; `turns` times the body, whose numbers may be Varying; after. Every register is written once. outputs: as a program's.

    originals: register of the body -> one of the program's, in single assignment, that it stands for.
    """

    before: tuple[Instruction, ...]
    body: tuple[Instruction, ...]
    carried: tuple[Carried, ...]
    turns: int
    after: tuple[Instruction, ...]
    outputs: dict[str, str]
    originals: dict[str, str]


_Place = tuple[int, int]
"""Where in a step a value is written: (instruction, which of its outputs)."""
_Role = tuple[int, _Place] | str
"""Where a step finds an operand: (how many steps ago, place), or the name of what was there before the loop."""


def roll(program: Program) -> Rolled | None:
    """The longest loop of a program's steps, or None if fewer than three steps do the same."""
    program = single_assignment(program)
    starts = [0, *(step.after for step in program.steps)]
    best: _Loop | None = None
    for period in _PERIODS:
        for first in range(min(_FIRST_STEPS, len(program.steps))):
            found = _Loop(program.instructions, starts[first::period])
            if found.match() and found.turns >= _FEWEST_TURNS and (best is None or found.length > best.length):
                best = found
    return None if best is None else best.rolled(program)


def _with_numbers(instruction: Instruction, numbers: Iterator[float]) -> Instruction:
    """The instruction with the numbers that may vary taken from `numbers`; a LINCOMB's are handled apart."""
    match instruction:
        case Eval(_, inputs):

            def operand(o: Operand) -> Operand:
                return Imm(next(numbers)) if isinstance(o, Imm) else Reg(o.name, next(numbers))

            return replace(instruction, inputs={name: tuple(operand(o) for o in operands) for name, operands in inputs.items()})
        case Noise():
            draw = next(numbers)
            return replace(instruction, draw=draw if isinstance(draw, VaryingDraw) else int(draw))
        case Clamp():
            return replace(instruction, low=next(numbers), high=next(numbers))
        case Threshold():
            return replace(instruction, floor=next(numbers), ceiling=next(numbers))
        case Scalar(_, _, a, b):
            return replace(instruction, a=a if isinstance(a, str) else next(numbers), b=b if isinstance(b, str) else next(numbers))
        case Slincomb(out, terms):
            return Slincomb(out, tuple((next(numbers), name, scalar) for _, name, scalar in terms))
        case _:
            return instruction


def _numbers(instruction: Instruction) -> list[float]:
    """The numbers that `_with_numbers` sets, in its order."""
    match instruction:
        case Eval(_, inputs):
            return [o.value if isinstance(o, Imm) else o.scale for operands in inputs.values() for o in operands]
        case Noise(_, _, draw):
            return [draw]
        case Clamp(_, _, low, high):
            return [low, high]
        case Threshold(_, _, _, floor, ceiling):
            return [floor, ceiling]
        case Scalar(_, _, a, b):
            return [o for o in (a, b) if not isinstance(o, str)]
        case Slincomb(_, terms):
            return [c for c, _, _ in terms]
        case _:
            return []


def _kind(instruction: Instruction) -> Instruction:
    """What must be equal in two instructions of a loop: everything but registers and the numbers that may vary."""
    if isinstance(instruction, Lincomb):
        return Lincomb("", ())
    nameless: defaultdict[str, str] = defaultdict(str)
    return renamed(_with_numbers(instruction, iter([0.0] * len(_numbers(instruction)))), nameless, nameless)


def _operands(instruction: Instruction) -> list[str]:
    return [*reads(instruction), *scalar_reads(instruction)]


class _Loop:
    """A loop whose turns begin at the instructions `starts`; `match` finds out how many there are. A step here is a turn."""

    def __init__(self, instructions: Sequence[Instruction], starts: Sequence[int]) -> None:
        self.instructions, self.starts = instructions, starts
        self.written: dict[str, tuple[int, _Place]] = {}
        """Value -> (step, place), of those that the loop's steps write."""
        for step in range(len(starts) - 1):
            for i, instruction in enumerate(self.step(step)):
                for output, name in enumerate(writes(instruction)):
                    self.written[name] = step, (i, output)
        self.initial: dict[tuple[_Place, int], str] = {}
        """(place, step before the loop) -> the value that an early step of the loop reads in its stead."""
        self.turns = 0

    @property
    def length(self) -> int:
        """Instructions in the loop."""
        return self.starts[self.turns] - self.starts[0]

    def step(self, index: int) -> Sequence[Instruction]:
        return self.instructions[self.starts[index] : self.starts[index + 1]]

    def role(self, name: str, step: int) -> _Role:
        if name not in self.written:
            return name
        written, place = self.written[name]
        return step - written, place

    def match(self) -> bool:
        """Whether there is a loop of at least one turn here; sets `turns`."""
        if len(self.starts) < 2:
            return False
        kinds = [_kind(i) for i in self.step(0)]
        if not any(isinstance(i, Eval) for i in kinds):
            return False
        end = 0
        while end < len(self.starts) - 1 and [_kind(i) for i in self.step(end)] == kinds:
            end += 1
        candidates = range(end)
        self.model = max(candidates, key=lambda s: (sum(len(i.terms) for i in self.step(s) if isinstance(i, Lincomb)), s))
        self.roles = [[self.role(name, self.model) for name in _operands(i)] for i in self.step(self.model)]
        self.coefficients: list[list[dict[int, float]]] = []
        """Per turn and instruction, a LINCOMB's coefficients by the place in the model's terms."""
        for step in candidates:
            matched = self.match_step(step)
            if matched is None:
                break
            self.coefficients.append(matched)
        self.turns = len(self.coefficients)
        return self.model < self.turns

    def match_step(self, step: int) -> list[dict[int, float]] | None:
        made: list[dict[int, float]] = []
        for instruction, roles in zip(self.step(step), self.roles, strict=True):
            placed: dict[int, float] = {}
            if isinstance(instruction, Lincomb):
                for c, name in instruction.terms:
                    own = self.role(name, step)
                    free = sorted((k for k in range(len(roles)) if k not in placed), key=lambda k: roles[k] != own)
                    place = next((k for k in free if self.agrees(name, roles[k], step)), None)
                    if place is None:
                        return None
                    placed[place] = c
            elif not all(self.agrees(name, role, step) for name, role in zip(_operands(instruction), roles, strict=True)):
                return None
            made.append(placed)
        return made

    def agrees(self, name: str, role: _Role, step: int) -> bool:
        """Whether a step finds `name` where the model step finds its operand; a value from before the loop may be a carried value's first."""
        own = self.role(name, step)
        if own == role:
            return True
        if isinstance(role, str) or not isinstance(own, str) or step - role[0] >= 0:
            return False
        return self.initial.setdefault((role[1], step - role[0]), name) == name

    def rolled(self, program: Program) -> Rolled:
        start, end = self.starts[0], self.starts[self.turns]
        depth: dict[_Place, int] = {}

        def name_of(role: _Role) -> str:
            if isinstance(role, str):
                return role
            ago, (instruction, output) = role
            if ago == 0:
                return f"turn.{instruction}.{output}"
            depth[role[1]] = max(depth.get(role[1], 0), ago)
            return f"turn.{instruction}.{output}.ago{ago}"

        body = [self.body_instruction(i, [name_of(r) for r in roles]) for i, roles in enumerate(self.roles)]
        last = self.turns
        names: dict[str, str] = {}
        for name in self._values(program, end):
            role = self.role(name, last)
            names[name] = name if isinstance(role, str) or role[0] <= 0 else f"{name_of(role)}.last"
        after = tuple(renamed(i, names, _Same()) for i in program.instructions[end:])
        carried = []
        for place, most in depth.items():
            for ago in range(1, most + 1):
                initial = self.initial.get((place, -ago))
                carried.append(Carried(name_of((ago, place)), initial, name_of((ago - 1, place)), name_of((0, place))))
        outputs = {name: names.get(register, register) for name, register in program.outputs.items()}
        written = [(name_of((0, (i, k))), name) for i, step in enumerate(self.step(self.model)) for k, name in enumerate(writes(step))]
        return Rolled(tuple(program.instructions[:start]), tuple(body), tuple(carried), self.turns, after, outputs, dict(written))

    def _values(self, program: Program, end: int) -> Iterator[str]:
        """What is read after the loop."""
        for instruction in program.instructions[end:]:
            yield from _operands(instruction)
        yield from program.outputs.values()

    def body_instruction(self, index: int, operands: list[str]) -> Instruction:
        """The model step's instruction, reading `operands`, with the numbers of all turns."""
        turns = [self.step(s)[index] for s in range(self.turns)]
        model = self.step(self.model)[index]
        written = {name: f"turn.{index}.{output}" for output, name in enumerate(writes(model))}
        if isinstance(model, Lincomb):
            terms = tuple((_varying([t[index].get(k, 0.0) for t in self.coefficients]), name) for k, name in enumerate(operands))
            return Lincomb(written[model.out], terms, _varying([t.bias for t in turns if isinstance(t, Lincomb)]))
        columns = list(zip(*(_numbers(t) for t in turns), strict=True))
        if isinstance(model, Noise):
            numbers: list[float] = [VaryingDraw([int(v) for v in columns[0]])]
        else:
            numbers = [_varying(column) for column in columns]
        read = dict(zip(_operands(model), operands, strict=True))
        return renamed(_with_numbers(model, iter(numbers)), read, written)


class _Same(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return key


def _varying(values: Sequence[float]) -> float:
    return values[0] if all(v == values[0] for v in values) else Varying(values)
