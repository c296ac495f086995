"""What quantization does to a network's output per time -> factors that undo the regular part of it, and programs that apply them.

A solver combines outputs linearly, so a factor disappears in its constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import CalibrationError, Status
from edgegen.program import Concat, Eval, Imm, Instruction, Lincomb, Muladd, Program, Reg, Slice, verify
from edgegen.program.rewrite import allocate, expand, fold, single_assignment
from edgegen.program.verify import reads, writes

__all__ = ["Factors", "corrected", "fit_affine", "fit_ptqd", "ptqd_factors", "reduced_noise"]

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
Factors = tuple[float | Doubles, float | Doubles, float | Doubles]
"""(a, b, c) of e <- a e + b + c x, where e is the network's output and x its input: numbers, or float64 [channels] each."""

_SMALLEST_ANGLE = 1e-6
"""1 - correlation^2 below which two columns of a fit count as one, and the variance below which a column counts as constant, over its mean square."""


def fit_ptqd(reference: Array, quantized: Array) -> tuple[float, Doubles, float]:
    """(k, bias per channel, standard deviation of the rest) of quantized - reference = k reference + bias + rest: He et al. 2023 (PTQD).

    reference, quantized: the float and the quantized network's outputs on the same inputs, [samples, channels, ...]. k is one for all
    channels and at least 0, as in the paper: a negative regression is not undone. bias: float64 [channels]; unlike the paper's mean error it is
    an intercept, which leaves the part k times the reference's mean to k.
    Raises CalibrationError: shapes that differ or have no channels, NaN or infinity.
    """
    reference, quantized = _checked(reference, quantized)
    error = quantized - reference
    across = tuple(i for i in range(error.ndim) if i != 1)
    middle = reference.mean(axis=across, keepdims=True)
    centred = reference - middle
    spread = float((centred**2).sum())
    k = max(float((centred * error).sum()) / spread, 0.0) if spread > 0.0 else 0.0
    bias = (error - k * reference).mean(axis=across, keepdims=True)
    return k, bias.reshape(-1), float((error - k * reference - bias).std())


def ptqd_factors(k: float, bias: Doubles) -> Factors:
    """The factors that undo k and bias: e <- (e - bias) / (1 + k). What is left of the rest has its deviation over 1 + k."""
    return 1.0 / (1.0 + k), -bias / (1.0 + k), 0.0


def reduced_noise(sigma: float, lam: float, sigma_q: float) -> float:
    """The deviation of the noise that a sampler still draws, so that it and the quantization noise together have `sigma`: sqrt(max(sigma^2 -
    lam^2 sigma_q^2, 0)), He et al. 2023 (PTQD), section 4.3.

    sigma: of the step's own noise. lam: what the step multiplies the network's output with: beta_t / sqrt(alpha_t (1 - abar_t)) in DDPM,
    sqrt(1 - abar_prev - sigma^2) - sqrt(abar_prev (1 - abar_t) / abar_t) in DDIM. sigma_q: what `fit_ptqd` returns last, over 1 + k if
    `ptqd_factors` are applied.
    """
    return math.sqrt(max(sigma * sigma - (lam * sigma_q) ** 2, 0.0))


def fit_affine(reference: Array, quantized: Array, x: Array | None = None, per_channel: bool = False) -> Factors:
    """(a, b, c) of the least squares fit reference = a quantized + b + c x, float64.

    reference, quantized: as of `fit_ptqd`. x: the network's input in the reference's shape; None leaves c at 0. per_channel: a fit for each
    channel, each factor [channels]. Two folds over the samples guard it: a fit that does not lower the squared error of samples that it did not
    see, or whose columns are constant or parallel, is tried again without x, and is (1, 0, 0) if that is no better.
    Raises CalibrationError as `fit_ptqd` does.
    """
    reference, quantized, *rest = _checked(reference, quantized, *(() if x is None else (x,)))
    columns = [quantized, *rest]
    if not per_channel:
        return _guarded(reference, columns)
    fits = [_guarded(reference[:, c], [column[:, c] for column in columns]) for c in range(reference.shape[1])]
    a, b, c = (np.array(values) for values in zip(*fits, strict=True))
    return a, b, c


def _checked(*arrays: Array) -> list[Doubles]:
    shapes = {a.shape for a in arrays}
    if len(shapes) != 1 or arrays[0].ndim < 2 or not arrays[0].size:
        found = ", ".join(str(list(a.shape)) for a in arrays)
        raise CalibrationError(f"arrays to fit a correction to: expected one shape [samples, channels, ...], found {found}", Status.BAD_SHAPE)
    if not all(np.isfinite(a).all() for a in arrays):
        raise CalibrationError("a network's output holds NaN or infinity; no correction can be fitted to it", Status.NONFINITE)
    return [a.astype(np.float64) for a in arrays]


def _guarded(reference: Doubles, columns: Sequence[Doubles]) -> tuple[float, float, float]:
    """(a, b, c) of the fit with all columns, or with the first alone, or none, whichever first stands the guard."""
    samples = len(reference)
    folds = [np.arange(samples) % 2 == k for k in range(2)] if samples > 1 else []
    for count in range(len(columns), 0, -1):
        used = columns[:count]
        gains = []
        for half in folds:
            found = _least_squares(reference[half], [c[half] for c in used])
            if found is None:
                break
            seen_not = [c[~half] for c in used]
            gains.append(_squares(reference[~half] - columns[0][~half]) - _squares(reference[~half] - _applied(found, seen_not)))
        whole = _least_squares(reference, used)
        if whole is not None and len(gains) == 2 and sum(gains) > 0.0:
            return whole[0], whole[1], whole[2] if count > 1 else 0.0
    return 1.0, 0.0, 0.0


def _least_squares(reference: Doubles, columns: Sequence[Doubles]) -> list[float] | None:
    """[a, b] or [a, b, c], or None if the columns do not tell them apart."""
    table = np.stack([c.reshape(-1) for c in columns])
    means, target = table.mean(axis=1), reference.reshape(-1)
    centred = table - means[:, None]
    deviations = np.sqrt((centred**2).mean(axis=1))
    if (deviations**2 <= _SMALLEST_ANGLE * (table**2).mean(axis=1)).any():
        return None
    centred /= deviations[:, None]
    gram = centred @ centred.T / len(target)
    if np.linalg.det(gram) < _SMALLEST_ANGLE:
        return None
    slopes = np.linalg.solve(gram, centred @ (target - target.mean()) / len(target)) / deviations
    return [float(slopes[0]), float(target.mean() - slopes @ means), *(float(s) for s in slopes[1:])]


def _applied(found: Sequence[float], columns: Sequence[Doubles]) -> Doubles:
    a, b, *c = found
    return a * columns[0] + b + sum(s * column for s, column in zip(c, columns[1:], strict=True))


def _squares(difference: Doubles) -> float:
    return float((difference**2).sum())


def corrected(
    program: Program, component: str, factors: Mapping[float, Factors], *, x: str = "x", t: str = "t", output: str = "prediction"
) -> Program:  # fmt: skip
    """`program` with e <- a e + b + c x after each evaluation of `component`, folded into its combinations where these alone read e once.

    factors: network time -> (a, b, c); times are compared as float32. They apply to every branch of guidance by itself. x, t, output: the
    component's names. x is the state as the network is fed it, scaled, without the conditions that are joined to it; of a wider output the
    channels that the program keeps are corrected.
    Raises CalibrationError: times of the program that `factors` lacks, a time that is no number, factors that are not finite.
    """
    known = {float(np.float32(time)): _usable(time, values) for time, values in factors.items()}
    straight = single_assignment(program)
    taken = {name for i in straight.instructions for name in writes(i)} | {i.name for i in straight.inputs} | {s.name for s in straight.states}
    joined = {i.out: i.parts[0] for i in straight.instructions if isinstance(i, Concat)}
    readers: dict[str, list[Instruction]] = {}
    for instruction in straight.instructions:
        for name in reads(instruction):
            readers.setdefault(name, []).append(instruction)
    wanted: dict[str, tuple[Factors, Reg]] = {}
    missing: list[float] = []
    for instruction in straight.instructions:
        if not isinstance(instruction, Eval) or instruction.component != component:
            continue
        for state, time, out in zip(instruction.inputs[x], instruction.inputs[t], instruction.outputs[output], strict=True):
            if not isinstance(time, Imm) or not isinstance(state, Reg):
                raise CalibrationError(f"program {program.name!r}: expected a number for {t!r} and a register for {x!r} of {component!r}")
            found = known.get(float(np.float32(time.value)))
            if found is None:
                missing.append(time.value)
            if found is None or _identity(found):
                continue
            cut = readers.get(out, [])
            target = cut[0].out if len(cut) == 1 and isinstance(cut[0], Slice) and cut[0].start == 0 else out
            wanted[target] = found, Reg(joined.get(state.name, state.name), state.scale)
    if missing:
        times = ", ".join(f"{time:g}" for time in sorted(set(missing)))
        raise CalibrationError(f"program {program.name!r}: no factors for {component!r} at {times}; fit them on this program", Status.UNKNOWN_NAME)
    pieces = [_with_correction(i, wanted, taken) for i in straight.instructions]
    return verify(allocate(fold(expand(straight, pieces))))


def _usable(time: float, values: Factors) -> Factors:
    if not all(np.isfinite(v).all() for v in values):
        raise CalibrationError(f"the factors of time {time:g} are not finite: {values}", Status.NONFINITE)
    return values


def _identity(factors: Factors) -> bool:
    a, b, c = factors
    return bool(np.all(np.equal(a, 1.0)) and not np.any(b) and not np.any(c))


def _with_correction(instruction: Instruction, wanted: Mapping[str, tuple[Factors, Reg]], taken: set[str]) -> list[Instruction]:
    """The instruction, writing under other names what is to be corrected, and the corrections."""
    if isinstance(instruction, Eval):
        names = {out: _fresh(out, taken) if out in wanted else out for out in writes(instruction)}
        outputs = {name: tuple(names[out] for out in outs) for name, outs in instruction.outputs.items()}
        made: list[Instruction] = [replace(instruction, outputs=outputs)]
    elif isinstance(instruction, Slice) and instruction.out in wanted:
        names = {instruction.out: _fresh(instruction.out, taken)}
        made = [replace(instruction, out=names[instruction.out])]
    else:
        return [instruction]
    for out, raw in names.items():
        if out in wanted:
            made += _correction(out, raw, *wanted[out], taken)
    return made


def _correction(out: str, raw: str, factors: Factors, state: Reg, taken: set[str]) -> list[Instruction]:
    """out <- a raw + b + c state."""
    a, b, c = factors
    channels = max(np.size(v) for v in factors)
    if channels == 1:
        terms = ((float(np.squeeze(a)), raw), *(((float(np.squeeze(c)) * state.scale, state.name),) if np.any(c) else ()))
        return [Lincomb(out, terms, float(np.squeeze(b)))]

    def each(values: float | Doubles) -> tuple[float, ...]:
        return tuple(float(v) for v in np.broadcast_to(values, channels))

    if not np.any(c):
        return [Muladd(out, raw, each(a), each(b))]
    scaled, share = _fresh(out, taken), _fresh(out, taken)
    return [
        Muladd(scaled, raw, each(a), each(b)),
        Muladd(share, state.name, each(c * np.float64(state.scale)), each(0.0)),
        Lincomb(out, ((1.0, scaled), (1.0, share))),
    ]


def _fresh(name: str, taken: set[str]) -> str:
    """A register's name that nothing has yet."""
    made = next(f"{name}.{k}" for k in range(len(taken) + 1) if f"{name}.{k}" not in taken)
    taken.add(made)
    return made
