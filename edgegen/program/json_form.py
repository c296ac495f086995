"""A program as JSON and back, exactly: numbers are hex floats, unknown keys are errors (runtimes/FORMAT.md, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgegen.canonical import from_hex, to_hex
from edgegen.errors import BundleError, ProgramError
from edgegen.program.instructions import (
    Clamp,
    Concat,
    Eval,
    Imm,
    Input,
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
    State,
    Step,
    Threshold,
)  # fmt: skip
from edgegen.program.verify import verify

__all__ = ["program_from_json", "program_to_json"]

VERSION = 1
Json = Any


def _operand_to_json(operand: Operand) -> Json:
    if isinstance(operand, Imm):
        return {"imm": to_hex(operand.value)}
    return {"reg": operand.name, "scale": to_hex(operand.scale)}


def _scalar_to_json(operand: str | float) -> Json:
    return {"reg": operand} if isinstance(operand, str) else {"imm": to_hex(operand)}


def _instruction_to_json(instruction: Instruction) -> Json:
    match instruction:
        case Eval(component, inputs, outputs):
            return {
                "op": "EVAL",
                "component": component,
                "inputs": {name: [_operand_to_json(o) for o in operands] for name, operands in inputs.items()},
                "outputs": {name: list(targets) for name, targets in outputs.items()},
            }
        case Lincomb(out, terms, bias):
            return {"op": "LINCOMB", "out": out, "terms": [[to_hex(c), name] for c, name in terms], "bias": to_hex(bias)}
        case Noise(out, like, draw, shape):
            return {"op": "NOISE", "out": out, "like": like, "draw": draw} | ({} if shape is None else {"shape": list(shape)})
        case Clamp(out, x, low, high):
            return {"op": "CLAMP", "out": out, "x": x, "low": to_hex(low), "high": to_hex(high)}
        case Threshold(out, x, quantile, floor, ceiling):
            return {
                "op": "THRESHOLD", "out": out, "x": x,
                "quantile": to_hex(quantile), "floor": to_hex(floor), "ceiling": to_hex(ceiling),
            }  # fmt: skip
        case Muladd(out, x, scale, shift):
            return {"op": "MULADD", "out": out, "x": x, "scale": [to_hex(c) for c in scale], "shift": [to_hex(c) for c in shift]}
        case Concat(out, parts):
            return {"op": "CONCAT", "out": out, "parts": list(parts)}
        case Slice(out, x, start, stop):
            return {"op": "SLICE", "out": out, "x": x, "start": start, "stop": stop}
        case Select(out, mask, a, b):
            return {"op": "SELECT", "out": out, "mask": mask, "a": a, "b": b}
        case Reduce(out, kind, x, mask, quantile):
            masked = {} if mask is None else {"mask": mask}
            return {"op": "REDUCE", "out": out, "kind": kind, "x": x, "quantile": to_hex(quantile)} | masked
        case Scalar(out, kind, a, b):
            return {"op": "SCALAR", "out": out, "kind": kind, "a": _scalar_to_json(a), "b": _scalar_to_json(b)}
        case Slincomb(out, terms):
            return {"op": "SLINCOMB", "out": out, "terms": [[to_hex(c), name] + ([] if f is None else [f]) for c, name, f in terms]}


def _state_to_json(state: State) -> Json:
    return {"name": state.name, "shape": list(state.shape), "next": state.next, "initial": to_hex(state.initial)}


def program_to_json(program: Program) -> Json:
    """`program` as plain dicts, lists, strings and integers, ready for `edgegen.canonical.encode`."""
    return {
        "version": VERSION,
        "name": program.name,
        "inputs": [{"name": i.name, "kind": i.kind, "scale": to_hex(i.scale)} for i in program.inputs],
        "instructions": [_instruction_to_json(i) for i in program.instructions],
        "outputs": dict(program.outputs),
        "nfe": dict(program.nfe),
        "steps": [{"after": s.after, "state": s.state, "time": to_hex(s.time)} for s in program.steps],
    } | ({"states": [_state_to_json(s) for s in program.states]} if program.states else {})


def _fields(value: Json, where: str, types: Mapping[str, type | tuple[type, ...]]) -> list[Any]:
    """The values of exactly the keys in `types`, each of its type."""
    if not isinstance(value, dict) or set(value) != set(types):
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise ProgramError(f"{where}: expected exactly the keys {', '.join(sorted(types))}; found {found}")
    for key, kind in types.items():
        if not isinstance(value[key], kind):
            raise ProgramError(f"{where}: key {key!r} holds a {type(value[key]).__name__}")
    return [value[key] for key in types]


def _operand(value: Json, where: str) -> Operand:
    if isinstance(value, dict) and "imm" in value:
        (imm,) = _fields(value, where, {"imm": str})
        return Imm(from_hex(imm))
    name, scale = _fields(value, where, {"reg": str, "scale": str})
    return Reg(name, from_hex(scale))


def _eval(value: Json, where: str) -> Eval:
    _, component, inputs, outputs = _fields(value, where, {"op": str, "component": str, "inputs": dict, "outputs": dict})
    operands: dict[str, tuple[Operand, ...]] = {}
    for name, items in inputs.items():
        if not isinstance(items, list):
            raise ProgramError(f"{where}: input {name!r} is not a list of operands")
        operands[name] = tuple(_operand(item, f"{where}, input {name!r}") for item in items)
    targets: dict[str, tuple[str, ...]] = {}
    for name, registers in outputs.items():
        if not isinstance(registers, list) or not all(isinstance(r, str) for r in registers):
            raise ProgramError(f"{where}: output {name!r} is not a list of registers")
        targets[name] = tuple(registers)
    return Eval(component, operands, targets)


def _lincomb(value: Json, where: str) -> Lincomb:
    _, out, terms, bias = _fields(value, where, {"op": str, "out": str, "terms": list, "bias": str})
    for term in terms:
        if not isinstance(term, list) or len(term) != 2 or not all(isinstance(part, str) for part in term):
            raise ProgramError(f"{where}: a term is a pair of a hex float and a register")
    return Lincomb(out, tuple((from_hex(c), name) for c, name in terms), from_hex(bias))


def _noise(value: Json, where: str) -> Noise:
    shaped = "shape" in value
    _, out, like, draw, *rest = _fields(value, where, {"op": str, "out": str, "like": str, "draw": int} | ({"shape": list} if shaped else {}))
    return Noise(out, like, draw, tuple(rest[0]) if shaped else None)


def _clamp(value: Json, where: str) -> Clamp:
    _, out, x, low, high = _fields(value, where, {"op": str, "out": str, "x": str, "low": str, "high": str})
    return Clamp(out, x, from_hex(low), from_hex(high))


def _threshold(value: Json, where: str) -> Threshold:
    _, out, x, *numbers = _fields(value, where, {"op": str, "out": str, "x": str, "quantile": str, "floor": str, "ceiling": str})
    quantile, floor, ceiling = (from_hex(n) for n in numbers)
    return Threshold(out, x, quantile, floor, ceiling)


def _hexes(value: list[Json], where: str) -> tuple[float, ...]:
    if not all(isinstance(item, str) for item in value):
        raise ProgramError(f"{where}: expected a list of hex floats")
    return tuple(from_hex(item) for item in value)


def _muladd(value: Json, where: str) -> Muladd:
    _, out, x, scale, shift = _fields(value, where, {"op": str, "out": str, "x": str, "scale": list, "shift": list})
    return Muladd(out, x, _hexes(scale, where), _hexes(shift, where))


def _concat(value: Json, where: str) -> Concat:
    _, out, parts = _fields(value, where, {"op": str, "out": str, "parts": list})
    if not all(isinstance(part, str) for part in parts):
        raise ProgramError(f"{where}: parts is not a list of registers")
    return Concat(out, tuple(parts))


def _slice(value: Json, where: str) -> Slice:
    _, out, x, start, stop = _fields(value, where, {"op": str, "out": str, "x": str, "start": int, "stop": int})
    return Slice(out, x, start, stop)


def _select(value: Json, where: str) -> Select:
    _, out, mask, a, b = _fields(value, where, {"op": str, "out": str, "mask": str, "a": str, "b": str})
    return Select(out, mask, a, b)


def _reduce(value: Json, where: str) -> Reduce:
    masked = {"mask": str} if "mask" in value else {}
    _, out, kind, x, quantile, *mask = _fields(value, where, {"op": str, "out": str, "kind": str, "x": str, "quantile": str} | masked)
    return Reduce(out, kind, x, mask[0] if mask else None, from_hex(quantile))


def _scalar_operand(value: Json, where: str) -> str | float:
    if isinstance(value, dict) and "imm" in value:
        (imm,) = _fields(value, where, {"imm": str})
        return from_hex(imm)
    (name,) = _fields(value, where, {"reg": str})
    return str(name)


def _scalar(value: Json, where: str) -> Scalar:
    _, out, kind, a, b = _fields(value, where, {"op": str, "out": str, "kind": str, "a": dict, "b": dict})
    return Scalar(out, kind, _scalar_operand(a, where), _scalar_operand(b, where))


def _slincomb(value: Json, where: str) -> Slincomb:
    _, out, terms = _fields(value, where, {"op": str, "out": str, "terms": list})
    for term in terms:
        if not isinstance(term, list) or len(term) not in (2, 3) or not all(isinstance(part, str) for part in term):
            raise ProgramError(f"{where}: a term is a hex float, a register, and perhaps a scalar")
    return Slincomb(out, tuple((from_hex(t[0]), t[1], t[2] if len(t) == 3 else None) for t in terms))


_READERS: dict[str, Callable[[Json, str], Instruction]] = {
    "EVAL": _eval,
    "LINCOMB": _lincomb,
    "NOISE": _noise,
    "CLAMP": _clamp,
    "THRESHOLD": _threshold,
    "MULADD": _muladd,
    "CONCAT": _concat,
    "SLICE": _slice,
    "SELECT": _select,
    "REDUCE": _reduce,
    "SCALAR": _scalar,
    "SLINCOMB": _slincomb,
}


def _instruction(value: Json, index: int) -> Instruction:
    op = value.get("op") if isinstance(value, dict) else None
    if not isinstance(op, str) or op not in _READERS:
        raise ProgramError(f"instruction {index}: unknown op {op!r}; this version knows {', '.join(_READERS)}")
    return _READERS[op](value, f"instruction {index} ({op})")


def _names(value: dict[str, Any], kind: type, where: str) -> dict[str, Any]:
    if not all(isinstance(item, kind) and not isinstance(item, bool) for item in value.values()):
        raise ProgramError(f"{where}: expected {kind.__name__} values")
    return dict(value)


def program_from_json(value: Json) -> Program:
    """The verified program that `value` (decoded JSON) describes. Raises ProgramError."""
    try:
        return verify(_program(value))
    except BundleError as e:
        raise ProgramError(str(e)) from e


def _program(value: Json) -> Program:
    stateful: dict[str, type] = {"states": list} if isinstance(value, dict) and "states" in value else {}
    always: dict[str, type] = {"version": int, "name": str, "inputs": list, "instructions": list, "outputs": dict, "nfe": dict, "steps": list}
    version, name, inputs, instructions, outputs, nfe, steps, *states = _fields(value, "program", always | stateful)
    if version != VERSION:
        raise ProgramError(f"program {name!r}: version {version}, this edgegen reads version {VERSION}")
    if states and not states[0]:
        raise ProgramError(f"program {name!r}: an empty list of states; leave the key out")
    read_inputs = []
    for i, item in enumerate(inputs):
        input_name, kind, scale = _fields(item, f"input {i}", {"name": str, "kind": str, "scale": str})
        read_inputs.append(Input(input_name, kind, from_hex(scale)))
    marks = []
    for i, item in enumerate(steps):
        after, register, time = _fields(item, f"step {i}", {"after": int, "state": str, "time": str})
        marks.append(Step(after, register, from_hex(time)))
    return Program(
        name,
        tuple(read_inputs),
        tuple(_instruction(item, i) for i, item in enumerate(instructions)),
        _names(outputs, str, "outputs"),
        _names(nfe, int, "nfe"),
        tuple(marks),
        tuple(_state(item, f"state {i}") for i, item in enumerate(states[0])) if states else (),
    )


def _state(value: Json, where: str) -> State:
    name, shape, following, initial = _fields(value, where, {"name": str, "shape": list, "next": str, "initial": str})
    return State(name, tuple(shape), following, from_hex(initial))
