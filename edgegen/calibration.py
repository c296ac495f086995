"""Calibration: a set of calib/ gives network inputs, the float network runs on them, and what its tensors look like is recorded per time.

In: float components and programs. Out: a `Record` (edgegen/quantize/record.py).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import CalibrationError, Status, nearest
from edgegen.library import run_file
from edgegen.program import Program
from edgegen.quantize.record import Record, Recorder
from edgegen.spec import ConditionSpec, SampleSpec, Signature
from edgegen.targets.onnxruntime import OrtComponent

if TYPE_CHECKING:
    import onnx

__all__ = ["Batch", "CalibrationContext", "calibration_set", "collect_record", "read_batches", "write_batches"]

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


def collect_record(
    models: Mapping[str, onnx.ModelProto], signatures: Mapping[str, Signature], tensors: Mapping[str, Sequence[str]], batches: Iterator[Batch]
) -> Record:
    """Run every batch and record the tensors that `tensors` names, per component, at each time.

    One engine thread, so the result does not depend on the machine's cores.
    Raises CalibrationError: no batches, or a value that is NaN or infinite (with the tensor's name and time).
    """
    recorder = Recorder()
    with contextlib.ExitStack() as stack:
        watchers = {
            name: stack.enter_context(OrtComponent(name, _with_outputs(model, tensors[name]), signatures[name], threads=1))
            for name, model in models.items()
        }
        for batch in batches:
            values = batch.feeds | watchers[batch.component].run(batch.feeds)
            for tensor in tensors[batch.component]:
                recorder.add(tensor, batch.time, values[tensor])
    recorder.expect(name for names in tensors.values() for name in names)
    return recorder.finish()


def write_batches(path: Path, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, each written to `path` (a zip of .npy files) as it goes by; equal batches give equal bytes."""
    with zipfile.ZipFile(path, "w") as file:
        for i, batch in enumerate(batches):
            for name, array in batch.feeds.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                file.writestr(zipfile.ZipInfo(f"{i}/{batch.component}/{batch.time.hex()}/{name}.npy"), buffer.getvalue())
            yield batch


def read_batches(path: Path) -> Iterator[Batch]:
    """What `write_batches` wrote, one at a time."""
    with zipfile.ZipFile(path) as file:
        members = [(info.filename.removesuffix(".npy").split("/", 3), info) for info in file.infolist()]
        for _, group in itertools.groupby(members, key=lambda member: member[0][0]):
            batch = list(group)
            (_, component, time, _), _ = batch[0]
            feeds = {parts[3]: np.load(io.BytesIO(file.read(info))) for parts, info in batch}
            yield Batch(component, float.fromhex(time), feeds)
