"""How far a quantized network's final samples are from the float network's, at equal noise and conditions: what every choice is judged by.

In: networks, as ONNX models or open components. Out: relative errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from edgegen.calibration import Batch
from edgegen.errors import CalibrationError, Status
from edgegen.program import Program, compile_program, initial_state, normals
from edgegen.quality import relative_errors
from edgegen.quantize import Factors, fit_affine, fit_ptqd, ptqd_factors
from edgegen.spec import ConditionSpec, SampleSpec, Signature, draw_condition
from edgegen.targets.onnxruntime import OrtComponent
from edgegen.targets.onnxruntime.scales import TimedScales

if TYPE_CHECKING:
    import onnx

__all__ = ["AT_A_TIME", "Judge", "TimedComponent", "fit_corrections", "with_constants"]

AT_A_TIME = 16
"""Samples that are generated at once."""
Array = npt.NDArray[Any]
Network = Callable[..., dict[str, Array]]


class TimedComponent:
    """A network with constants of its own at each time: one engine per time, chosen by the time that it is called with."""

    def __init__(
        self, name: str, model: onnx.ModelProto, signature: Signature, time: str, constants: Mapping[float, Mapping[str, onnx.TensorProto]],
        threads: int = 0,
    ) -> None:  # fmt: skip
        self.time = time
        self.engines: dict[float, OrtComponent] = {}
        for at, own in constants.items():
            self.engines[at] = OrtComponent(name, with_constants(model, own), signature, threads=threads)

    def __call__(self, **arrays: Array) -> dict[str, Array]:
        """The outputs for arrays as the interpreter passes them. Raises CalibrationError for a time that has no engine."""
        at = float(np.asarray(arrays[self.time]).flat[0])
        engine = self.engines.get(at)
        if engine is None:
            known = ", ".join(f"{t:g}" for t in sorted(self.engines))
            raise CalibrationError(f"network time {at:g} was not calibrated; known: {known}", Status.OUT_OF_RANGE)
        return engine(**arrays)

    def close(self) -> None:
        """Release the engines."""
        for engine in self.engines.values():
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def with_constants(model: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]) -> bytes:
    """The model's bytes with some of its initializers replaced, by name."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in constants:
            tensor.CopyFrom(constants[tensor.name])
    return bytes(copy.SerializeToString())


@dataclass(slots=True)
class Judge:
    """A program with fixed noise and conditions. samples: how many, `batch` at once; seed: of their noise and conditions.

    reference: the float network's samples, which others are compared with.
    """

    component: str
    program: Program
    conditions: Sequence[ConditionSpec]
    sample: SampleSpec
    samples: int
    seed: int
    batch: int = AT_A_TIME
    reference: Array | None = None

    @property
    def drawn(self) -> dict[str, Array]:
        """The conditions of each sample."""
        rng = np.random.default_rng(self.seed)
        return {c.name: draw_condition(c, self.samples, rng) for c in self.conditions}

    def generate(self, network: Network) -> Array:
        """The final samples, float32[samples, *sample shape]."""
        drawn, noise = self.drawn, normals(self.seed, 0, (self.samples, *self.sample.shape))
        executable, made = compile_program(self.program), []
        for start in range(0, self.samples, self.batch):
            rows = slice(start, start + self.batch)
            inputs = {i.name: drawn[i.name][rows] for i in self.program.inputs if i.kind == "condition"}
            inputs |= initial_state(self.program, noise[rows])
            made.append(executable.run({self.component: network}, inputs, seed=self.seed + start)["sample"])
        return np.concatenate(made)

    def error(self, network: Network) -> float:
        """The mean relative error of a network's final samples. Raises CalibrationError without a reference."""
        return float(relative_errors(self.expected, self.generate(network)).mean())

    @property
    def expected(self) -> Array:
        """The reference. Raises CalibrationError if there is none."""
        if self.reference is None:
            raise CalibrationError("the judge has no reference: give it the float network's samples first")
        return self.reference


_FITTED = 1 << 22
"""At most so many values of a time's predictions are held while a correction is fitted."""


def fit_corrections(
    reference: Network, quantized: Network, batches: Iterable[Batch], scales: TimedScales, method: str
) -> dict[float, Factors]:  # fmt: skip
    """For each time of `scales`, what brings the quantized network's predictions nearest to the reference's, on equal inputs.

    method: "affine", least squares of a e + b + c x, or "ptqd" (edgegen/quantize/correction.py). Times that no batch has are left as they are.
    """
    held: dict[float, list[tuple[Array, Array, Array]]] = {}
    for batch in batches:
        rows = held.setdefault(batch.time, [])
        if batch.time not in scales.times or sum(row[0].size for row in rows) > _FITTED:
            continue
        x = batch.feeds[scales.state]
        wanted, found = (network(**{**batch.feeds, scales.input: np.float32(batch.time)})[scales.output] for network in (reference, quantized))
        rows.append((wanted, found, x))
    made: dict[float, Factors] = {}
    for time in scales.times:
        if not held.get(time):
            made[time] = (1.0, 0.0, 0.0)
            continue
        wanted, found, x = (np.concatenate(parts) for parts in zip(*held[time], strict=True))
        channels = wanted.shape[1]
        state = x[:, :channels] if x.shape[1] >= channels and x.shape[2:] == wanted.shape[2:] else None
        if method == "ptqd":
            k, bias, _ = fit_ptqd(wanted, found)
            made[time] = ptqd_factors(k, bias)
        else:
            made[time] = fit_affine(wanted, found, state)
    return made
