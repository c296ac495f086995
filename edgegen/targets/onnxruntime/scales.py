"""What of a quantized network depends on its time: scales of activations, and corrections of the prediction; a bundle's document `scales`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgegen.errors import BundleError, Status
from edgegen.program import Eval, Imm, Program
from edgegen.quantize import Factors, Ranges, corrected
from edgegen.targets.onnxruntime.qdq import Integers, scale_constants, scales_at

if TYPE_CHECKING:
    import onnx

__all__ = ["TimedScales"]

_DTYPES: dict[str, type[np.uint8] | type[np.int8]] = {"uint8": np.uint8, "int8": np.int8}


@dataclass(frozen=True, slots=True)
class TimedScales:
    """For each time, (scale, zero point) of each tensor. input, state, output: the network's time, noisy input and prediction; integers: the type of
    activations. corrections: (a, b, c) of e <- a e + b + c x at each time, to be folded into programs; empty for none.

    Times are float32, as networks read them.
    """

    input: str
    integers: Integers
    times: Mapping[float, Mapping[str, tuple[float, int]]]
    state: str = "x"
    output: str = "prediction"
    corrections: Mapping[float, Factors] = field(default_factory=dict)

    @classmethod
    def of(cls, ranges: Ranges, tensors: Sequence[str], times: Sequence[float], input_name: str, integers: Integers) -> TimedScales:
        """Those of ranges at some times. Raises CalibrationError for a time without ranges."""
        return cls(input_name, integers, {time: scales_at(ranges, tensors, time, integers) for time in times})

    @property
    def constants(self) -> dict[float, dict[str, onnx.TensorProto]]:
        """The initializers that a network has at each time in place of its own."""
        return {time: scale_constants(tensors, self.integers) for time, tensors in self.times.items()}

    def corrected(self, program: Program, component: str) -> Program:
        """The program with the corrections, if there are any."""
        if not self.corrections:
            return program
        return corrected(program, component, self.corrections, x=self.state, t=self.input, output=self.output)

    def covers(self, program: Program, component: str) -> bool:
        """Whether every time at which the program evaluates the component is among these."""
        operands = [o for i in program.instructions if isinstance(i, Eval) and i.component == component for o in i.inputs[self.input]]
        return all(isinstance(o, Imm) and float(np.float32(o.value)) in self.times for o in operands)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: the times, and for each tensor [name, scales, zero points] in their order; floats are the bits of float32 as whole numbers."""
        times = sorted(self.times)
        names = sorted({name for tensors in self.times.values() for name in tensors})
        rows = [[name, _bits([self.times[t][name][0] for t in times]), [self.times[t][name][1] for t in times]] for name in names]
        value = {"input": self.input, "state": self.state, "output": self.output, "integers": self.integers, "times": _bits(times), "tensors": rows}
        if self.corrections:
            value["corrections"] = [[[float(v).hex() for v in np.atleast_1d(f)] for f in self.corrections[time]] for time in times]
        return value

    @classmethod
    def from_json(cls, value: Any) -> TimedScales:
        """The inverse of `to_json`. Raises BundleError for anything else, and for scales that are not positive and finite."""
        try:
            times: dict[float, dict[str, tuple[float, int]]] = {time: {} for time in _floats(value["times"])}
            dtype = _DTYPES[value["integers"]]
            for name, scales, zeros in value["tensors"]:
                for time, scale, zero in zip(times, _floats(scales), zeros, strict=True):
                    if not (math.isfinite(scale) and scale > 0.0):
                        raise ValueError(f"tensor {name!r} has the scale {scale}")
                    times[time][str(name)] = scale, int(np.array(zero, dtype))
            corrections = dict(zip(times, [_factors(row) for row in value["corrections"]], strict=True)) if "corrections" in value else {}
            return cls(str(value["input"]), value["integers"], times, str(value["state"]), str(value["output"]), corrections)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as e:
            raise BundleError(f"the document 'scales' is malformed: {e}", Status.INCONSISTENT) from e


def _factors(row: Any) -> Factors:
    a, b, c = (np.array([float.fromhex(v) for v in values]) for values in row)
    return tuple(float(f[0]) if len(f) == 1 else f for f in (a, b, c))  # type: ignore[return-value]


def _bits(values: Sequence[float]) -> list[int]:
    return [int(v) for v in np.array(values, "<f4").view("<u4")]


def _floats(bits: Any) -> list[float]:
    return [float(v) for v in np.array(bits, "<u4").view("<f4")]
