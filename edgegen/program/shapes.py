"""Shapes of a program's registers before it runs: what does not fit is found when a bundle is read, and memory is bounded.

Shapes here are tails: the sizes of one sample, without the batch, which is axis 0 of every register.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgegen.errors import ProgramError, Status
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
    Select,
    Slice,
    Slincomb,
    Threshold,
)  # fmt: skip

__all__ = ["MAX_ELEMENTS", "Shape", "infer_shapes", "written_shapes"]

Shape = tuple[int, ...]
Components = Mapping[str, tuple[Mapping[str, Shape], Mapping[str, Shape]]]

MAX_ELEMENTS = 2**28
"""Elements of one sample in a register: a gibibyte of float32."""


def infer_shapes(program: Program, inputs: Mapping[str, Shape], components: Components) -> dict[str, Shape]:
    """The shape of each output of a verified program.

    inputs: of the program's inputs. components: name -> (shapes of its inputs, of its outputs).
    Raises ProgramError (BAD_SHAPE) that names the instruction whose operands do not fit, or whose result is above `MAX_ELEMENTS`.
    """
    shapes = dict(inputs)
    for i, instruction in enumerate(program.instructions):
        try:
            made = written_shapes(instruction, shapes, components)
            for name, shape in made.items():
                _expect(math.prod(shape) <= MAX_ELEMENTS, f"{name!r} would have shape {list(shape)}, more than {MAX_ELEMENTS} elements per sample")
        except _MisfitError as e:
            where = f"program {program.name!r}, instruction {i} ({type(instruction).__name__.upper()})"
            raise ProgramError(f"{where}: {e}", Status.BAD_SHAPE) from e
        shapes.update(made)
    return {name: shapes[register] for name, register in program.outputs.items()}


class _MisfitError(Exception):
    pass


def _expect(fits: bool, message: str) -> None:
    if not fits:
        raise _MisfitError(message)


def written_shapes(instruction: Instruction, shapes: Mapping[str, Shape], components: Components) -> dict[str, Shape]:
    """The shapes of the tensor registers that an instruction writes."""
    match instruction:
        case Eval():
            return _evaluated(instruction, shapes, components)
        case Lincomb(out, terms):
            return {out: _equal([name for _, name in terms], shapes)}
        case Slincomb(out, scaled):
            return {out: _equal([name for _, name, _ in scaled], shapes)}
        case Noise(out, like, _, tail):
            return {out: shapes[like] if tail is None else tail}
        case Clamp(out, x) | Threshold(out, x):
            return {out: shapes[x]}
        case Muladd(out, x, scale):
            _expect(len(scale) == 1 or shapes[x][:1] == (len(scale),), f"{len(scale)} channels for {x!r} of shape {list(shapes[x])}")
            return {out: shapes[x]}
        case Concat(out, parts):
            first = shapes[parts[0]]
            for name in parts:
                _expect(len(shapes[name]) > 0 and shapes[name][1:] == first[1:], f"{name!r} {list(shapes[name])} beside {parts[0]!r} {list(first)}")
            return {out: (sum(shapes[name][0] for name in parts), *first[1:])}
        case Slice(out, x, start, stop):
            _expect(shapes[x][:1] >= (stop,), f"[:, {start}:{stop}] of {x!r} of shape {list(shapes[x])}")
            return {out: (stop - start, *shapes[x][1:])}
        case Select(out, mask, a, b):
            _masked(mask, a, shapes)
            return {out: _equal([a, b], shapes)}
        case Reduce(_, _, x, mask):
            if mask is not None:
                _masked(mask, x, shapes)
            return {}
        case _:
            return {}


def _equal(names: list[str], shapes: Mapping[str, Shape]) -> Shape:
    for name in names[1:]:
        _expect(shapes[name] == shapes[names[0]], f"{name!r} has shape {list(shapes[name])}, {names[0]!r} has {list(shapes[names[0]])}")
    return shapes[names[0]]


def _masked(mask: str, x: str, shapes: Mapping[str, Shape]) -> None:
    fits = shapes[mask] == shapes[x] or (len(shapes[x]) > 0 and shapes[mask] == (1, *shapes[x][1:]))
    _expect(fits, f"mask {mask!r} has shape {list(shapes[mask])}, expected {list(shapes[x])} or one channel of it")


def _evaluated(instruction: Eval, shapes: Mapping[str, Shape], components: Components) -> dict[str, Shape]:
    inputs, outputs = components[instruction.component]
    for name, operands in instruction.inputs.items():
        for o in operands:
            if isinstance(o, Reg):
                _expect(shapes[o.name] == inputs[name], f"{o.name!r} has shape {list(shapes[o.name])}, input {name!r} takes {list(inputs[name])}")
    return {target: outputs[name] for name, targets in instruction.outputs.items() for target in targets}
