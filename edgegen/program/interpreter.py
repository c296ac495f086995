"""The reference interpreter: runs a program with numpy, in float32 as a device does, or in float64 to measure solvers.

The order of operations is FORMAT.md's, so float32 results are bit-equal in every runtime, given equal network outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import Cancelled, ProgramError, RuntimeFault, Status, nearest
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
    Threshold,
)  # fmt: skip
from edgegen.program.noise import check_seed, normals
from edgegen.program.verify import verify, writes

__all__ = ["Executable", "Network", "OnStep", "StreamState", "compile_program", "initial_state", "interpret"]

Tensor = npt.NDArray[Any]
Network = Callable[..., Tensor | Mapping[str, Tensor]]
"""Called with keyword arrays named as the component's inputs; returns its named outputs, or one array if there is one output.
Numbers that are the same for the whole batch (times) arrive as 0-d arrays of the interpreter's dtype."""
OnStep = Callable[[int, int, Tensor], object]
"""on_step(steps done, steps in all, sample so far); returning False cancels. The array is the interpreter's own: copy it to keep it."""


@dataclass(slots=True)
class StreamState:
    """What a stream carries from call to call: how many calls it has had, and the value of each state (none before the first)."""

    calls: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)


class _State:
    """What one run owns: registers, the networks it calls, the seed, the callback, and joined conditions (the same at each step)."""

    __slots__ = ("call", "joined", "networks", "on_step", "registers", "seed")

    def __init__(self, registers: dict[str, Tensor], networks: Mapping[str, Network], seed: int, call: int, on_step: OnStep | None) -> None:
        self.registers = registers
        self.networks = networks
        self.seed = seed
        self.call = call
        self.on_step = on_step
        self.joined: dict[int, Tensor] = {}


_Action = Callable[[_State], None]
_Read = Callable[[_State, int], Tensor]
"""An EVAL operand's value, given the rows of one branch."""


_SMALL = 4096
"""Up to this many elements numpy's dot product is the fastest sum; above, it would start threads that spin beside the engine's."""


def _all_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite. One sum settles it, unless finite numbers overflow it."""
    total = np.vdot(value, value) if value.size <= _SMALL else np.add.reduce(value, axis=None)
    return math.isfinite(total) or bool(np.isfinite(value).all())


def _round(value: float, dtype: np.dtype[Any]) -> Tensor:
    """`value` in the interpreter's type, rounded once, as a 0-d array; numbers too large for it are refused."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(value, np.float64).astype(dtype)
    if not np.isfinite(rounded):
        raise ProgramError(f"the number {value} does not fit {dtype.name}; use float64", Status.OUT_OF_RANGE)
    return rounded


class _Compiler:
    """Turns each instruction into a closure over its rounded numbers.

    constant: registers that keep the caller's value. checked: whether each network output is looked at for NaN and infinity.
    """

    def __init__(self, dtype: np.dtype[Any], constant: frozenset[str], checked: bool) -> None:
        self.dtype = dtype
        self.checked = checked
        self.constant = constant
        self.slots: dict[tuple[Operand, ...], int] = {}

    def action(self, instruction: Instruction, index: int) -> _Action:
        match instruction:
            case Eval():
                return self.evaluate(instruction, index)
            case Lincomb():
                return self.lincomb(instruction)
            case Noise():
                return self.noise(instruction)
            case Clamp():
                return self.clamp(instruction)
            case Threshold():
                return self.threshold(instruction)
            case Muladd():
                return self.muladd(instruction)
            case Concat():
                return self.concat(instruction)
            case Slice():
                return self.slice(instruction)
            case Select():
                return self.select(instruction)
            case Reduce():
                return self.reduce(instruction)
            case Scalar():
                return self.scalar(instruction)
            case Slincomb():
                return self.slincomb(instruction)

    def evaluate(self, instruction: Eval, index: int) -> _Action:
        component, branches, dtype, checked = instruction.component, instruction.branches, self.dtype, self.checked
        gather = self.one_branch if branches == 1 else self.many_branches
        inputs = [(name, gather(operands)) for name, operands in instruction.inputs.items()]
        rows_from = next(o.name for operands in instruction.inputs.values() for o in operands if isinstance(o, Reg))
        outputs = list(instruction.outputs.items())

        def run(state: _State) -> None:
            registers = state.registers
            rows = registers[rows_from].shape[0] if branches > 1 else 0
            result = state.networks[component](**{name: read(state, rows) for name, read in inputs})
            for name, targets in outputs:
                value = result.get(name) if type(result) is dict else None
                if value is None or value.dtype != dtype:
                    value = np.asarray(_output(result, name, component, len(outputs)), dtype)
                if checked and not _all_finite(value):
                    raise RuntimeFault(f"component {component!r} returned NaN or infinity in {name!r} at instruction {index}", Status.NONFINITE)
                if branches == 1:
                    registers[targets[0]] = value
                    continue
                if value.shape[:1] != (branches * rows,):
                    raise RuntimeFault(
                        f"component {component!r}: output {name!r} has shape {list(value.shape)}, expected {branches * rows} rows", Status.BAD_SHAPE
                    )
                for branch, target in enumerate(targets):
                    registers[target] = value[branch * rows : (branch + 1) * rows]

        return run

    def one_branch(self, operands: tuple[Operand, ...]) -> _Read:
        operand = operands[0]
        if isinstance(operand, Imm):
            constant = _round(operand.value, self.dtype)
            return lambda state, rows: constant
        name = operand.name
        if operand.scale == 1.0:
            return lambda state, rows: state.registers[name]
        scale = _round(operand.scale, self.dtype)
        return lambda state, rows: state.registers[name] * scale

    def many_branches(self, operands: tuple[Operand, ...]) -> _Read:
        if all(operand == operands[0] for operand in operands):
            first, branches = self.one_branch(operands), len(operands)
            if isinstance(operands[0], Imm):
                return first

            def repeat(state: _State, rows: int) -> Tensor:
                value = first(state, rows)
                if value.ndim == 0:
                    return np.full(branches * rows, value)
                joined = np.empty((branches, *value.shape), value.dtype)
                joined[:] = value  # a third of the time of np.concatenate, whose code is cold after a network ran
                return joined.reshape(-1, *value.shape[1:])

            return repeat
        parts = [self.one_branch((o,)) for o in operands]
        like = next((o.name for o in operands if isinstance(o, Reg)), None)

        def join(state: _State, rows: int) -> Tensor:
            model = np.empty(rows, self.dtype) if like is None else state.registers[like]
            shape = model.shape or (rows,)
            return np.concatenate([np.broadcast_to(part(state, rows), shape).astype(model.dtype) for part in parts])

        if not all(isinstance(o, Imm) or o.name in self.constant for o in operands):
            return join

        slot = self.slots.setdefault(operands, len(self.slots))

        def join_once(state: _State, rows: int) -> Tensor:
            if slot not in state.joined:
                state.joined[slot] = join(state, rows)
            return state.joined[slot]

        return join_once

    def lincomb(self, instruction: Lincomb) -> _Action:
        out = instruction.out
        (c0, first), *rest = [(_round(c, self.dtype), name) for c, name in instruction.terms]
        bias = _round(instruction.bias, self.dtype)
        has_bias = instruction.bias != 0.0

        def run(state: _State) -> None:
            registers = state.registers
            total = registers[first] * c0
            for c, name in rest:
                term = registers[name]
                if term.shape != total.shape:
                    raise _mismatch("LINCOMB", out, {first: total, name: term})
                total += term * c
            if has_bias:
                total += bias
            registers[out] = total

        return run

    def noise(self, instruction: Noise) -> _Action:
        out, like, draw, sizes, dtype = instruction.out, instruction.like, instruction.draw, instruction.shape, self.dtype

        def run(state: _State) -> None:
            shape = state.registers[like].shape
            if sizes is not None:
                shape = (*shape[:1], *sizes)
            state.registers[out] = normals(state.seed, draw, shape, state.call).astype(dtype, copy=False)

        return run

    def clamp(self, instruction: Clamp) -> _Action:
        low, high = _round(instruction.low, self.dtype), _round(instruction.high, self.dtype)
        zero_bound = low == 0.0 or high == 0.0

        def run(state: _State) -> None:
            x = state.registers[instruction.x]
            clamped = np.minimum(np.maximum(x, low), high)
            if zero_bound:  # which of 0 and -0 numpy's minimum and maximum give depends on the processor
                clamped = np.where(x == 0.0, x, clamped)
            state.registers[instruction.out] = clamped

        return run

    def threshold(self, instruction: Threshold) -> _Action:
        floor, ceiling = _round(instruction.floor, self.dtype), _round(instruction.ceiling, self.dtype)

        def run(state: _State) -> None:
            x = state.registers[instruction.x]
            s = _per_sample(np.minimum(np.maximum(_quantile(_rows(x), instruction.quantile), floor), ceiling), x)
            state.registers[instruction.out] = np.minimum(np.maximum(x, -s), s) / s

        return run

    def muladd(self, instruction: Muladd) -> _Action:
        scale, shift = (np.array([_round(c, self.dtype) for c in values]) for values in (instruction.scale, instruction.shift))

        def run(state: _State) -> None:
            x = state.registers[instruction.x]
            channels = x.shape[1] if x.ndim > 1 else 1
            if len(scale) not in (1, channels):
                raise RuntimeFault(f"MULADD {instruction.out!r}: {len(scale)} channels for shape {list(x.shape)}", Status.BAD_SHAPE)
            across = (-1,) + (1,) * max(x.ndim - 2, 0) if len(scale) > 1 else ()
            state.registers[instruction.out] = x * scale.reshape(across) + shift.reshape(across)

        return run

    def concat(self, instruction: Concat) -> _Action:
        def run(state: _State) -> None:
            parts = [state.registers[name] for name in instruction.parts]
            try:
                state.registers[instruction.out] = np.concatenate(parts, axis=1, dtype=self.dtype, casting="unsafe")
            except ValueError as e:  # numpy's word for sizes that differ, and for tensors without an axis 1
                raise _mismatch("CONCAT", instruction.out, dict(zip(instruction.parts, parts, strict=True))) from e

        return run

    def slice(self, instruction: Slice) -> _Action:
        start, stop = instruction.start, instruction.stop

        def run(state: _State) -> None:
            x = state.registers[instruction.x]
            if x.ndim < 2 or x.shape[1] < stop:
                raise RuntimeFault(f"SLICE {instruction.out!r}: [:, {start}:{stop}] of shape {list(x.shape)}", Status.BAD_SHAPE)
            state.registers[instruction.out] = x[:, start:stop]

        return run

    def select(self, instruction: Select) -> _Action:
        def run(state: _State) -> None:
            a, b = state.registers[instruction.a], state.registers[instruction.b]
            mask = state.registers[instruction.mask]
            if a.shape != b.shape:
                raise _mismatch("SELECT", instruction.out, {instruction.a: a, instruction.b: b})
            state.registers[instruction.out] = np.where(_mask_over(mask, a, instruction.mask), a, b)

        return run

    def reduce(self, instruction: Reduce) -> _Action:
        kind, dtype = instruction.kind, self.dtype

        def run(state: _State) -> None:
            x = state.registers[instruction.x]
            rows = list(_rows(x))
            if instruction.mask is not None:
                keep = _rows(np.broadcast_to(_mask_over(state.registers[instruction.mask], x, instruction.mask), x.shape))
                rows = [row[kept] for row, kept in zip(rows, keep, strict=True)]
            if kind == "quantile":
                made = [float(_quantile(row[None], instruction.quantile)[0]) if row.size else 0.0 for row in rows]
            else:
                made = [_reduced(kind, row.astype(np.float64)) for row in rows]
            state.registers[instruction.out] = np.array(made, dtype)

        return run

    def scalar(self, instruction: Scalar) -> _Action:
        operate = _SCALAR_OPERATIONS[instruction.kind]

        def operand(o: str | float) -> Callable[[_State], Tensor]:
            if isinstance(o, str):
                return lambda state: state.registers[o]
            constant = _round(o, self.dtype)
            return lambda state: constant

        a, b = operand(instruction.a), operand(instruction.b)

        def run(state: _State) -> None:
            state.registers[instruction.out] = operate(a(state), b(state))

        return run

    def slincomb(self, instruction: Slincomb) -> _Action:
        out = instruction.out
        terms = [(_round(c, self.dtype), name, scalar) for c, name, scalar in instruction.terms]

        def run(state: _State) -> None:
            registers = state.registers
            total: Tensor | None = None
            for c, name, scalar in terms:
                x = registers[name]
                term = x * (c if scalar is None else _per_sample(registers[scalar] * c, x))
                if total is not None and total.shape != term.shape:
                    raise _mismatch("SLINCOMB", out, {terms[0][1]: total, name: term})
                total = term if total is None else total + term
            assert total is not None
            registers[out] = total

        return run


def _mismatch(op: str, out: str, shapes: Mapping[str, Tensor]) -> RuntimeFault:
    found = ", ".join(f"{name!r} {list(value.shape)}" for name, value in shapes.items())
    return RuntimeFault(f"{op} {out!r}: shapes do not fit: {found}", Status.BAD_SHAPE)


def _rows(x: Tensor) -> Tensor:
    """One row per sample: [samples, elements of a sample]."""
    return x.reshape(x.shape[0], -1) if x.ndim else x.reshape(1, 1)


def _per_sample(scalar: Tensor, x: Tensor) -> Tensor:
    """A scalar per sample, shaped so that it multiplies x."""
    return scalar.reshape((-1,) + (1,) * (x.ndim - 1) if x.ndim else ())


def _quantile(rows: Tensor, quantile: float) -> Tensor:
    """The quantile of the absolute values of each row, linear between neighbours (FORMAT.md, THRESHOLD)."""
    rows = np.abs(rows)
    position = quantile * (rows.shape[1] - 1)
    low = math.floor(position)
    high = min(low + 1, rows.shape[1] - 1)
    rows = np.partition(rows, (low, high), axis=1)
    return np.asarray(rows[:, low] + (rows[:, high] - rows[:, low]) * rows.dtype.type(position - low))


def _mask_over(mask: Tensor, x: Tensor, name: str) -> Tensor:
    """Where the mask is not 0, able to spread over x: of x's shape, or with one channel."""
    if mask.shape != x.shape and not (x.ndim > 1 and mask.shape == (x.shape[0], 1, *x.shape[2:])):
        raise RuntimeFault(f"mask {name!r} has shape {list(mask.shape)}, expected {list(x.shape)} or one channel of it", Status.BAD_SHAPE)
    return np.asarray(mask != 0)


def _reduced(kind: str, row: Tensor) -> float:
    """One number of float64 values, each sum in the written order (np.cumsum, which is sequential; np.sum is not)."""
    n = row.size
    if kind == "norm":
        return math.sqrt(float(np.cumsum(row * row)[-1])) if n else 0.0
    mean = float(np.cumsum(row)[-1]) / n if n else 0.0
    if kind == "mean":
        return mean
    return math.sqrt(float(np.cumsum((row - mean) * (row - mean))[-1]) / (n - 1)) if n > 1 else 0.0


_SCALAR_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": lambda a, b: np.where((a < b) | np.isnan(a), a, b),  # of 0 and -0 the second, on every processor
    "max": lambda a, b: np.where((a > b) | np.isnan(a), a, b),
    "sqrt": lambda a, b: np.sqrt(a),
}


def _output(result: Tensor | Mapping[str, Tensor], name: str, component: str, count: int) -> Tensor:
    if not isinstance(result, Mapping):
        if count == 1:
            return result
        raise RuntimeFault(f"component {component!r} returned one array, expected a dict with {count} outputs", Status.BAD_SHAPE)
    if name not in result:
        raise RuntimeFault(f"component {component!r} has no output {name!r}: {nearest(name, result)}", Status.UNKNOWN_NAME)
    return result[name]


def _mark(done: int, total: int, register: str) -> _Action:
    def run(state: _State) -> None:
        if state.on_step is not None and state.on_step(done, total, state.registers[register]) is False:
            raise Cancelled(f"cancelled by on_step after step {done} of {total}")

    return run


class Executable:
    """A verified program, its numbers rounded to one dtype. Immutable: any number of threads may run it at once."""

    def __init__(self, program: Program, dtype: npt.DTypeLike = np.float32) -> None:
        self.program = verify(program)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ProgramError(f"expected dtype float32 or float64, found {self.dtype.name}", Status.BAD_DTYPE)
        # NaN and infinity reach the outputs through these instructions, so where there are no others a look at the end is enough
        passing = all(isinstance(i, (Eval, Lincomb, Noise, Concat, Muladd)) for i in program.instructions)
        self._actions = self._compiled(checked=not passing)

    def _compiled(self, *, checked: bool) -> list[_Action]:
        """One action per instruction and step mark."""
        program = self.program
        written = {name for instruction in program.instructions for name in writes(instruction)}
        compiler = _Compiler(self.dtype, frozenset(i.name for i in program.inputs if i.kind == "condition") - written, checked)
        marks = {step.after: _mark(i + 1, len(program.steps), step.state) for i, step in enumerate(program.steps)}
        actions: list[_Action] = []
        for i, instruction in enumerate(program.instructions):
            actions.append(compiler.action(instruction, i))
            if i + 1 in marks:
                actions.append(marks[i + 1])
        return actions

    def run(
        self, networks: Mapping[str, Network], inputs: Mapping[str, npt.ArrayLike], *, seed: int = 0, on_step: OnStep | None = None,
        stream: StreamState | None = None, rows: int = 1,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The program's outputs. Arguments and errors as in `interpret`.

        stream: of a program with states, what is carried from call to call; it moves on if the call succeeds. rows: its batch.
        """
        program = self.program
        if (stream is not None) != bool(program.states):
            raise RuntimeFault(f"program {program.name!r} has {len(program.states)} states; `stream` is for programs with states", Status.BAD_STATE)
        declared = {i.name: i for i in program.inputs}
        for name in inputs:
            if name not in declared:
                raise RuntimeFault(f"program {program.name!r} has no input {name!r}: {nearest(name, declared)}", Status.UNKNOWN_NAME)
        for component in program.nfe:
            if component not in networks:
                raise RuntimeFault(f"program {program.name!r} needs component {component!r}: {nearest(component, networks)}", Status.UNKNOWN_NAME)
        registers: dict[str, Tensor] = {}
        for name, spec in declared.items():
            if name not in inputs:
                raise RuntimeFault(f"program {program.name!r} needs input {name!r} ({spec.kind})", Status.UNKNOWN_NAME)
            registers[name] = np.asarray(inputs[name], self.dtype) if spec.kind == "noise" else np.asarray(inputs[name])
        call = 0
        if stream is not None:
            call = stream.calls
            registers |= stream.values or {s.name: np.full((rows, *s.shape), _round(s.initial, self.dtype)) for s in program.states}
        initial = dict(registers)
        state = _State(registers, networks, check_seed(seed), call, on_step)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for action in self._actions:
                action(state)
            outputs = {name: registers[register] for name, register in program.outputs.items()}
            following = {s.name: registers[s.next] for s in program.states}
            if not all(_all_finite(value) for value in (*outputs.values(), *following.values())):
                self._explain(_State(initial, networks, state.seed, call, None))
        if stream is not None:
            stream.values, stream.calls = following, call + 1
        return outputs

    def _explain(self, state: _State) -> None:
        """Run once more, looking at each network output, to say where NaN or infinity came from."""
        for action in self._compiled(checked=True):
            action(state)
        raise RuntimeFault(
            f"program {self.program.name!r}: a sample is NaN or infinite although the networks' outputs are not; "
            f"an input is, or {self.dtype.name} overflows",
            Status.NONFINITE,
        )


def initial_state(program: Program, noise: Tensor) -> dict[str, Tensor]:
    """The program's inputs of kind "noise" from standard normals: times the scale that each declares, in float32."""
    return {i.name: noise if i.scale == 1.0 else noise * np.float32(i.scale) for i in program.inputs if i.kind == "noise"}


def compile_program(program: Program, dtype: npt.DTypeLike = np.float32) -> Executable:
    """Verify `program` and round its numbers to `dtype` (float32 or float64), once for many runs."""
    return Executable(program, dtype)


def interpret(
    program: Program,
    networks: Mapping[str, Network],
    inputs: Mapping[str, npt.ArrayLike],
    *,
    seed: int = 0,
    dtype: npt.DTypeLike = np.float32,
    on_step: OnStep | None = None,
) -> dict[str, Tensor]:
    """Run `program` once.

    Args:
        networks: component name -> callable; see `Network`.
        inputs: one array per program input, any shape; inputs of kind "noise" are used as they are (already scaled).
        seed: 0 .. 2^64 - 1, the key of every NOISE instruction.
        dtype: float32 (bit-identical across runtimes) or float64.
        on_step: see `OnStep`.

    Returns the named outputs, e.g. {"sample": float32[...]}.
    Raises ProgramError (a rule is broken), RuntimeFault (missing input or component, wrong shape, NaN) or Cancelled.
    """
    return Executable(program, dtype).run(networks, inputs, seed=seed, on_step=on_step)
