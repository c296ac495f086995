"""Shapes and dtypes of a program's registers before it runs: what does not fit is found when a bundle is read, and memory is bounded.

Shapes here are tails: the sizes of one sample, without the batch, which is axis 0 of every register (FORMAT.md, section 4.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from edgegen.errors import ProgramError, Status
from edgegen.program.instructions import (
    Clamp,
    Concat,
    Eval,
    Imm,
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
from edgegen.program.verify import numbers, reads
from edgegen.spec import BATCH, Signature, TensorSpec

__all__ = ["MAX_ELEMENTS", "Shape", "check_types", "infer_shapes", "noise_shapes", "written_shapes"]

Shape = tuple[int, ...]
Components = Mapping[str, tuple[Mapping[str, Shape], Mapping[str, Shape]]]

MAX_ELEMENTS = 2**28
"""Elements of one sample in a register: a gibibyte of float32."""


def infer_shapes(program: Program, inputs: Mapping[str, Shape], components: Components) -> dict[str, Shape]:
    """The shape of each output of a verified program.

    inputs: of the program's inputs; its states declare their own. components: name -> (shapes of its inputs, of its outputs).
    Raises ProgramError (BAD_SHAPE) that names the instruction whose operands do not fit, or whose result is above `MAX_ELEMENTS`.
    """
    shapes = dict(inputs) | {s.name: s.shape for s in program.states}
    for name, shape in shapes.items():
        if math.prod(shape) > MAX_ELEMENTS:
            raise ProgramError(f"program {program.name!r}: input {name!r} has shape {list(shape)}, above {MAX_ELEMENTS} elements", Status.BAD_SHAPE)
    for i, instruction in enumerate(program.instructions):
        try:
            made = written_shapes(instruction, shapes, components)
            for name, shape in made.items():
                _expect(math.prod(shape) <= MAX_ELEMENTS, f"{name!r} would have shape {list(shape)}, more than {MAX_ELEMENTS} elements per sample")
        except _MisfitError as e:
            where = f"program {program.name!r}, instruction {i} ({type(instruction).__name__.upper()})"
            raise ProgramError(f"{where}: {e}", Status.BAD_SHAPE) from e
        shapes.update(made)
    for state in program.states:
        if shapes[state.next] != state.shape:
            found = f"{state.next!r} of shape {list(shapes[state.next])}"
            raise ProgramError(f"program {program.name!r}: state {state.name!r} {list(state.shape)} continues as {found}", Status.BAD_SHAPE)
    return {name: shapes[register] for name, register in program.outputs.items()}


def noise_shapes(program: Program, inputs: Mapping[str, Shape], components: Components) -> dict[int, Shape]:
    """The shape of each draw of a program whose shapes fit; arguments as of `infer_shapes`."""
    shapes = dict(inputs) | {s.name: s.shape for s in program.states}
    draws: dict[int, Shape] = {}
    for instruction in program.instructions:
        shapes |= written_shapes(instruction, shapes, components)
        if isinstance(instruction, Noise):
            draws[instruction.draw] = shapes[instruction.out]
    return draws


def check_types(program: Program, conditions: Mapping[str, str], components: Mapping[str, Signature]) -> None:
    """Raise ProgramError (BAD_DTYPE) unless the dtypes of a verified program fit, as FORMAT.md 4.4 says.

    conditions: name -> dtype, of the program's inputs of that kind. components: those that it evaluates.
    """
    other = {i.name: conditions[i.name] for i in program.inputs if i.kind == "condition" and conditions[i.name] != "float32"}
    for i, instruction in enumerate(program.instructions):
        try:
            for value in numbers(instruction):
                _expect(_fits(value, "float32"), f"the number {value} does not fit float32")
            if isinstance(instruction, Eval):
                _check_evaluation(instruction, other, components[instruction.component])
            else:
                _expect_float32(reads(instruction), other)
        except _MisfitError as e:
            where = f"program {program.name!r}, instruction {i} ({type(instruction).__name__.upper()})"
            raise ProgramError(f"{where}: {e}", Status.BAD_DTYPE) from e
    try:
        _expect_float32([*program.outputs.values(), *(s.state for s in program.steps), *(s.next for s in program.states)], other)
        for value in (*(i.scale for i in program.inputs), *(s.initial for s in program.states)):
            _expect(_fits(value, "float32"), f"the number {value} does not fit float32")
    except _MisfitError as e:
        raise ProgramError(f"program {program.name!r}: {e}", Status.BAD_DTYPE) from e


def _expect_float32(names: Iterable[str], other: Mapping[str, str]) -> None:
    for name in names:
        _expect(name not in other, f"condition {name!r} is {other.get(name)}; only EVAL reads conditions that are not float32")


def _fits(value: float, dtype: str) -> bool:
    """Whether a number can be given to an instruction, or as an immediate to a network's input of that dtype, once rounded to float32."""
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
        if dtype.startswith("float"):
            return bool(np.isfinite(rounded.astype(dtype)))
    limits = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return float(rounded) == value == math.floor(value) and limits[0] <= value <= limits[1]


def _check_evaluation(instruction: Eval, other: Mapping[str, str], signature: Signature) -> None:
    declared = {t.name: t for t in signature.inputs}
    outputs = {t.name: t for t in signature.outputs}
    for name in instruction.outputs:
        _expect(_by_rows(outputs[name]), f"output {outputs[name]} does not have the batch as its first size, and only there")
    for name, operands in instruction.inputs.items():
        spec = declared[name]
        for o in operands:
            if isinstance(o, Imm):
                advice = "; use a grid of whole times (leading, linspace or trailing)" if o.value != math.floor(o.value) else ""
                _expect(_fits(o.value, spec.dtype), f"input {spec} cannot take {o.value:g}{advice}")
                continue
            dtype = other.get(o.name, "float32")
            fits = spec.dtype == dtype or (dtype == "float32" and spec.dtype in ("float16", "float64"))
            _expect(fits and (dtype == "float32" or o.scale == 1.0), f"input {spec} cannot take {o.name!r}, which is {dtype}, times {o.scale:g}")
        if not all(isinstance(o, Imm) for o in operands):
            _expect(_by_rows(spec), f"input {spec} does not have the batch as its first size, and only there")
        elif any(o != operands[0] for o in operands):
            _expect(spec.shape == (BATCH,), f"input {spec} has different immediates per branch, which needs one number per row")


def _by_rows(spec: TensorSpec) -> bool:
    return spec.shape[:1] == (BATCH,) and BATCH not in spec.shape[1:]


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
