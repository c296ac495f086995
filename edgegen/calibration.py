"""Calibration: a set of calib/ gives network inputs, the float network runs on them, and what its tensors look like is recorded per time.

In: float components and programs. Out: a `Record` (edgegen/quantize/record.py).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.diffusion import Process
from edgegen.errors import CalibrationError, Status, nearest
from edgegen.library import run_file
from edgegen.program import Program
from edgegen.quantize.record import Record, Recorder
from edgegen.spec import ConditionSpec, SampleSpec, Signature
from edgegen.targets.onnxruntime import OrtComponent

if TYPE_CHECKING:
    import onnx

__all__ = ["Batch", "CalibrationContext", "calibration_inputs", "calibration_set", "collect_record", "read_batches", "write_batches"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class CalibrationContext:
    """What a calibration set may use. `components` are the float networks, by name; `model` has them as ONNX.

    samples: how many trajectories to run, `batch` at once, from `seed`. process: the recipe's; None if each program's scheduler has its own.
    program: steps -> the recipe's first program at that number of steps. options: the recipe's, over the set's own `OPTIONS`; `calibration_set`
    fills them in. time: the name of the networks' time input.
    """

    components: Mapping[str, OrtComponent]
    programs: Sequence[Program]
    conditions: Sequence[ConditionSpec]
    sample: SampleSpec
    samples: int
    batch: int
    seed: int
    process: Process | None = None
    program: Callable[[int], Program] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    time: str = "t"
    model: Mapping[str, onnx.ModelProto] = field(default_factory=dict)

    def opened(self, component: str, tensors: Sequence[str]) -> OrtComponent:
        """A copy of a float network that has inner tensors among its outputs, on one thread; to be closed by the caller."""
        return OrtComponent(component, with_outputs(self.model[component], tensors), self.components[component].signature, threads=1)


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one network evaluation, ready for the engine, and the network time they belong to."""

    component: str
    time: float
    feeds: dict[str, Array]

    def of(self, chosen: npt.NDArray[np.bool_]) -> Batch | None:
        """The rows of the samples marked in bool[samples], in each branch of guidance; None if none is marked."""
        if not chosen.any():
            return None
        branches = len(next(iter(self.feeds.values()))) // len(chosen)
        return replace(self, feeds={name: array[np.tile(chosen, branches)] for name, array in self.feeds.items()})


CalibrationSet = Callable[[CalibrationContext], Iterator[Batch]]


def calibration_set(name: str, folders: Sequence[Path], options: Mapping[str, Any] | None = None) -> tuple[CalibrationSet, Path]:
    """The `batches` function of a calibration set, and its file: a path ending in .py, or a name looked up in `folders`.

    options: laid over the file's `OPTIONS` (name -> default), and given to it as `context.options`. What it yields is checked on the way.
    Raises CalibrationError: no such set or option (with the nearest names), an option of another type; later, from the batches: none at all,
    or one that its component cannot take.
    """
    candidates = [folder / name for folder in folders] if name.endswith(".py") else [folder / f"{name}.py" for folder in folders]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        known = {p.stem for folder in folders if folder.is_dir() for p in folder.glob("*.py")}
        raise CalibrationError(f"no calibration set {name!r}: {nearest(name, known)}", Status.UNKNOWN_NAME)
    module = run_file(path, "calib")
    if not callable(getattr(module, "batches", None)):
        raise CalibrationError(f"{path}: a calibration set defines batches(context), which is missing")
    merged = _options(path, options or {}, getattr(module, "OPTIONS", {}))

    def batches(context: CalibrationContext) -> Iterator[Batch]:
        empty = True
        for batch in module.batches(replace(context, options=merged)):
            empty = False
            yield _checked_batch(batch, context, path)
        if empty:
            raise CalibrationError(f"{path}: the calibration set gave no batches; expected at least one")

    return batches, path


def _options(path: Path, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` with the given values in their place, each of its default's type; a whole number may stand for a float."""
    merged = dict(defaults)
    for name, value in given.items():
        if name not in defaults:
            known = nearest(name, defaults) if defaults else "it has none"
            raise CalibrationError(f"calibration.options: {path.name} has no option {name!r}: {known}", Status.UNKNOWN_NAME)
        kind = type(defaults[name])
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or value != value:
            raise CalibrationError(f"calibration.options.{name}: expected {kind.__name__}, such as {defaults[name]!r}, found {value!r}")
        merged[name] = value
    return merged


def _checked_batch(batch: Any, context: CalibrationContext, path: Path) -> Batch:
    """What a set's file yielded, if the network can be run on it."""
    if not isinstance(batch, Batch):
        raise CalibrationError(f"{path}: batches(context) yields edgegen.calibration.Batch, found {type(batch).__name__}")
    if batch.component not in context.components:
        raise CalibrationError(f"{path}: no component {batch.component!r}: {nearest(batch.component, context.components)}", Status.UNKNOWN_NAME)
    if not np.isfinite(batch.time):
        raise CalibrationError(f"{path}: a batch of time {batch.time}, expected a finite number", Status.NONFINITE)
    _check_inputs(batch.feeds, context.components[batch.component].signature, f"{path}: time {batch.time:g}")
    return batch


def _check_inputs(arrays: Mapping[str, Array], signature: Signature, where: str) -> int:
    """How many rows the arrays have. Raises CalibrationError unless each input has one finite array of its dtype and shape, of as many rows."""
    declared = {spec.name: spec for spec in signature.inputs}
    expected = "expected " + ", ".join(map(str, signature.inputs))
    for name in arrays:
        if name not in declared:
            raise CalibrationError(f"{where}: the network has no input {name!r}: {nearest(name, declared)}", Status.UNKNOWN_NAME)
    for name in declared:
        if name not in arrays:
            raise CalibrationError(f"{where}: the input {name!r} is missing; {expected}", Status.UNKNOWN_NAME)
    rows = {name: len(array) for name, array in arrays.items() if array.ndim}
    for name, spec in declared.items():
        array = arrays[name]
        if array.dtype != np.dtype(spec.dtype):
            raise CalibrationError(f"{where}: {name!r} is {array.dtype.name}, expected {spec}; convert it with astype", Status.BAD_DTYPE)
        if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]:
            raise CalibrationError(f"{where}: {name!r} has shape {list(array.shape)}, expected {spec}", Status.BAD_SHAPE)
    if len(set(rows.values())) != 1:
        counts = ", ".join(f"{name}: {n}" for name, n in rows.items())
        raise CalibrationError(f"{where}: expected equally many rows of each input, found {counts}", Status.BAD_SHAPE)
    count = next(iter(rows.values()))
    if count == 0:
        raise CalibrationError(f"{where}: there are 0 rows; expected at least one")
    for name, array in arrays.items():
        finite = np.isfinite(array)
        if not finite.all():
            row = int(np.argwhere(~finite)[0, 0])
            raise CalibrationError(f"{where}: {name!r} is NaN or infinite in row {row}; leave such rows out", Status.NONFINITE)
    return count


def calibration_inputs(path: Path, component: str, signature: Signature, time: str, batch: int) -> Iterator[Batch]:
    """Real inputs of a network: an .npz file of one array per input, row i of each belonging together, the times in the input called `time`.

    Gives rows of one time together, at most `batch` of them, times ascending. The file is read and checked at once.
    Raises CalibrationError: no such file, not an .npz, names, dtypes or shapes that are not the network's, no rows, NaN or infinity.
    """
    where = f"calibration.inputs: {path}"
    if not path.is_file():
        raise CalibrationError(f"{where}: no such file; expected an .npz written by numpy.savez", Status.CANNOT_OPEN)
    if not zipfile.is_zipfile(path):
        raise CalibrationError(f"{where}: not an .npz file; write one with numpy.savez(path, name=array, ...)")
    try:
        with zipfile.ZipFile(path) as file:
            read = ((info.filename.removesuffix(".npy"), io.BytesIO(file.read(info))) for info in file.infolist())
            arrays = {name: np.lib.format.read_array(data, allow_pickle=False) for name, data in read}
    except (OSError, ValueError, EOFError, RuntimeError, MemoryError, TokenError, zipfile.BadZipFile, zlib.error) as e:
        raise CalibrationError(f"{where}: cannot be read as an .npz of plain arrays: {e}") from e
    rows = _check_inputs(arrays, signature, where)
    times = np.asarray(arrays[time], np.float64) if time in arrays else np.zeros(rows)

    def batches() -> Iterator[Batch]:
        for value in np.unique(times):
            indices = np.flatnonzero(times == value)
            for start in range(0, len(indices), batch):
                chosen = indices[start : start + batch]
                yield Batch(component, float(value), {name: array[chosen] for name, array in arrays.items()})

    return batches()


def with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> bytes:
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
            name: stack.enter_context(OrtComponent(name, with_outputs(model, tensors[name]), signatures[name], threads=1))
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
