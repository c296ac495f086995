"""Calibration: a set of calib/ gives network inputs, the float network runs on them, and tensors' ranges are kept per time.

In: float components and programs. Out: `Ranges`, one [min, max] per tensor and network time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import CalibrationError, Status, nearest
from edgegen.library import run_file
from edgegen.program import Program
from edgegen.spec import ConditionSpec, SampleSpec, Signature
from edgegen.targets.onnxruntime import OrtComponent

if TYPE_CHECKING:
    import onnx

__all__ = ["Batch", "CalibrationContext", "Ranges", "calibration_set", "collect_ranges"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class CalibrationContext:
    """What a calibration set may use. `components` are the float networks, by name."""

    components: Mapping[str, OrtComponent]
    programs: Sequence[Program]
    conditions: Sequence[ConditionSpec]
    sample: SampleSpec
    samples: int
    batch: int
    seed: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one network evaluation, ready for the engine, and the network time they belong to."""

    component: str
    time: float
    feeds: dict[str, Array]


CalibrationSet = Callable[[CalibrationContext], Iterator[Batch]]


def calibration_set(name: str, folders: Sequence[Path]) -> tuple[CalibrationSet, Path]:
    """The `batches` function of a calibration set, and its file: a path ending in .py, or a name looked up in `folders`."""
    candidates = [folder / name for folder in folders] if name.endswith(".py") else [folder / f"{name}.py" for folder in folders]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        known = {p.stem for folder in folders if folder.is_dir() for p in folder.glob("*.py")}
        raise CalibrationError(f"no calibration set {name!r}: {nearest(name, known)}", Status.UNKNOWN_NAME)
    module = run_file(path, "calib")
    if not callable(getattr(module, "batches", None)):
        raise CalibrationError(f"{path}: a calibration set defines batches(context), which is missing")
    return module.batches, path


@dataclass(frozen=True, slots=True)
class Ranges:
    """For each tensor: rows [time, min, max], times ascending."""

    rows: Mapping[str, tuple[tuple[float, float, float], ...]]

    def overall(self, tensor: str) -> tuple[float, float]:
        """(min, max) over all times. Raises CalibrationError if the tensor was never seen."""
        if tensor not in self.rows:
            raise CalibrationError(f"no range for tensor {tensor!r}: the calibration set never ran its component")
        return min(r[1] for r in self.rows[tensor]), max(r[2] for r in self.rows[tensor])

    def to_json(self) -> dict[str, list[list[str]]]:
        """Plain JSON with hex floats."""
        return {name: [[v.hex() for v in row] for row in rows] for name, rows in self.rows.items()}

    @classmethod
    def from_json(cls, value: dict[str, list[list[str]]]) -> Ranges:
        """The inverse of `to_json`."""
        return cls({name: tuple((float.fromhex(t), float.fromhex(a), float.fromhex(b)) for t, a, b in rows) for name, rows in value.items()})


def _with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> bytes:
    """`model` with inner tensors added to its outputs."""
    import onnx

    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    present = {o.name for o in observed.graph.output} | {i.name for i in observed.graph.input}
    for name in tensors:
        if name not in present:
            observed.graph.output.append(onnx.ValueInfoProto(name=name))
    return bytes(observed.SerializeToString())


def collect_ranges(
    models: Mapping[str, onnx.ModelProto], signatures: Mapping[str, Signature], tensors: Mapping[str, Sequence[str]], batches: Iterator[Batch]
) -> Ranges:
    """Run every batch and keep each tensor's minimum and maximum per time. tensors: names to watch, per component.

    One engine thread, so the result does not depend on the machine's cores.
    Raises CalibrationError: no batches, or a value that is NaN or infinite (with the tensor's name and time).
    """
    seen: dict[str, dict[float, tuple[float, float]]] = {}
    watchers = {name: OrtComponent(name, _with_outputs(model, tensors[name]), signatures[name], threads=1) for name, model in models.items()}
    for batch in batches:
        values = batch.feeds | watchers[batch.component].run(batch.feeds)
        for tensor in tensors[batch.component]:
            low, high = float(values[tensor].min()), float(values[tensor].max())
            if not np.isfinite(low + high):
                raise CalibrationError(f"tensor {tensor!r} is NaN or infinite at time {batch.time:g} of the calibration set", Status.NONFINITE)
            times = seen.setdefault(tensor, {})
            before = times.get(batch.time, (low, high))
            times[batch.time] = min(low, before[0]), max(high, before[1])
    if not seen and any(tensors.values()):
        raise CalibrationError("the calibration set gave no batches")
    return Ranges({name: tuple((t, *times[t]) for t in sorted(times)) for name, times in sorted(seen.items())})
