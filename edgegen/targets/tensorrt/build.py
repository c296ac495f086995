"""ONNX bytes -> a TensorRT engine, built in a child process: a builder that crashes, hangs or runs out of memory is a BuildError here.

TensorRT-RTX builds without a GPU for the compute capabilities that it is given; TensorRT builds for the GPU of its machine.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgegen.errors import BuildError, Status, nearest
from edgegen.targets.tensorrt.check import check_for_tensorrt
from edgegen.targets.tensorrt.module import PARSED, find
from edgegen.targets.tensorrt.report import Report, layers_of

if TYPE_CHECKING:
    import onnx

__all__ = ["BuildOptions", "Engine", "build_engine"]

Progress = Callable[[str, int, int], None]
"""progress(phase, done, total)"""
Shape = tuple[int, ...]
Messages = list[tuple[str, str]]

_RTX_LACKS = {
    "hardware_compatible": "a hardware compatibility level; list the GPUs in `capabilities`, its engines run on each of them",
    "timing_cache": "a timing cache (setting one does nothing since 1.2); it chooses its kernels on the device that runs the engine",
    "version_compatible": "version compatible engines: it lacks libnvinfer_lean; build one engine per version",
}
_NOISE = ("cudaError 35", "[checkMacros.cpp", "--- Begin node", "--- End node", "While parsing node", "ERROR: ModelImporter", "Make sure ")
"""Parts of messages that say nothing new: what follows from there being no GPU, and the parser's echoes."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build. Whatever the engine's module cannot do is an error that names it, never left out.

    engine: "tensorrt-rtx" or "tensorrt". capabilities: GPUs to build for, "SM75" to "SM121" (tensorrt-rtx only; empty: this machine's, or any
    that it can without one). workspace: bytes of scratch memory that a kernel may use. profiles: input -> (least, usual, most) shape, for every
    input with a dimension of any size. timing_cache: a file of measured kernels, read and written (tensorrt only). refit, strip_weights:
    weights can be, or must be, put in later (tensorrt-rtx builds these with a GPU only). version_compatible, hardware_compatible: engines
    for later versions, for Ampere and later (tensorrt only). optimization_level: 0 to 5, more is slower to build (made no difference to
    tensorrt-rtx 1.7.1). timeout: seconds. CUDA graphs are a matter of running: see `run`.
    """

    engine: str = "tensorrt-rtx"
    capabilities: tuple[str, ...] = ()
    workspace: int | None = None
    profiles: Mapping[str, tuple[Shape, Shape, Shape]] = field(default_factory=lambda: MappingProxyType({}))
    timing_cache: Path | None = None
    refit: bool = False
    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    optimization_level: int | None = None
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise BuildError(f"optimization_level {self.optimization_level}: expected 0 to 5", Status.OUT_OF_RANGE)
        if self.workspace is not None and self.workspace <= 0:
            raise BuildError(f"workspace {self.workspace}: expected bytes, more than 0", Status.OUT_OF_RANGE)
        if self.engine == "tensorrt" and self.capabilities:
            message = "tensorrt builds for the GPU of this machine and takes no `capabilities`; tensorrt-rtx does"
            raise BuildError(message, Status.PROVIDER_MISSING)
        for option, what in _RTX_LACKS.items():
            if self.engine == "tensorrt-rtx" and getattr(self, option):
                raise BuildError(f"tensorrt-rtx has no {what}  (option {option})", Status.PROVIDER_MISSING)

    def to_json(self) -> dict[str, Any]:
        """What decides the engine's bytes, as plain JSON: the flags of a cache key."""
        return {
            "engine": self.engine,
            "capabilities": list(self.capabilities),
            "workspace": self.workspace,
            "profiles": {name: [list(shape) for shape in shapes] for name, shapes in sorted(self.profiles.items())},
            "refit": self.refit,
            "strip_weights": self.strip_weights,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "optimization_level": self.optimization_level,
        }


@dataclass(frozen=True, slots=True)
class Engine:
    """A serialized engine, native code for its GPUs and its version alone, and what is known about it."""

    data: bytes
    report: Report


def _check_profiles(model: onnx.ModelProto, options: BuildOptions, where: str) -> None:
    """Raise BuildError (BAD_SHAPE) unless the profiles fit the model's inputs."""
    stored = {t.name for t in model.graph.initializer}
    inputs = {v.name: [d.dim_value if d.HasField("dim_value") else -1 for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    inputs = {name: shape for name, shape in inputs.items() if name not in stored}
    for name, shapes in options.profiles.items():
        if name not in inputs:
            raise BuildError(f"{where}: a profile for the input {name!r}: {nearest(name, inputs)}", Status.UNKNOWN_NAME)
        for shape in shapes:
            fits = len(shape) == len(inputs[name]) and all(
                size > 0 and declared in (-1, size) for size, declared in zip(shape, inputs[name], strict=True)
            )
            if not fits:
                declared = ["any" if size < 0 else size for size in inputs[name]]
                raise BuildError(f"{where}: input {name!r} is {declared}, its profile says {list(shape)}", Status.BAD_SHAPE)
        least, usual, most = shapes
        if not all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True)):
            message = f"{where}: input {name!r}: expected least <= usual <= most, found {[list(s) for s in shapes]}"
            raise BuildError(message, Status.BAD_SHAPE)
    missing = [name for name, shape in inputs.items() if -1 in shape and name not in options.profiles]
    if missing:
        raise BuildError(f"{where}: input {missing[0]!r} has dimensions of any size; give its shapes in `profiles`", Status.BAD_SHAPE)


def _request(model: bytes, options: BuildOptions, folder: Path) -> None:
    request = {"options": options.to_json(), "timing_cache": None if options.timing_cache is None else str(options.timing_cache.resolve())}
    (folder / "model.onnx").write_bytes(model)
    (folder / "request.json").write_text(json.dumps(request))
    (folder / "log.jsonl").touch()


def _run(folder: Path, timeout: float, progress: Progress | None) -> tuple[int, bool]:
    """Run the builder on a folder: (exit status, whether it ran out of time). Its output goes to a file there."""
    command = [sys.executable, "-m", "edgegen.targets.tensorrt.builder", str(folder)]
    late = threading.Event()
    with (
        (folder / "stderr.txt").open("wb") as errors,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as process,
    ):

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(min(timeout, threading.TIMEOUT_MAX), stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if progress is not None and not late.is_set():
                    progress(*json.loads(line))
            status = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    return status, late.is_set()


def _messages(folder: Path) -> Messages:
    """The builder's log; a last line that a crash cut off is left out."""
    found = []
    for line in (folder / "log.jsonl").read_bytes().splitlines():
        try:
            severity, message = json.loads(line)
        except ValueError:
            continue
        found.append((severity, message))
    return found


def _complaints(messages: Messages, severities: tuple[str, ...]) -> list[str]:
    found = [text.strip() for severity, text in messages if severity in severities and not any(noise in text for noise in _NOISE)]
    return list(dict.fromkeys(text.split("\n")[0] for text in found))


def _where(messages: Messages) -> str:
    """Where it was: " at node NAME [OPERATOR]" while parsing, or after that; nothing if it had not begun."""
    for severity, text in reversed(messages):
        if severity == PARSED:
            return " after the parser had read every node"
        if text.startswith("Parsing node: "):
            return f" at node {text.removeprefix('Parsing node: ').strip()}"
    return ""


def _died(status: int, folder: Path, messages: Messages) -> BuildError:
    """The error for a builder that did not end in the usual way."""
    tail = (folder / "stderr.txt").read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
    why = f"; it said: {tail[-1]}" if tail else ""
    if status < 0:
        name = signal.Signals(-status).name if -status in set(map(int, signal.Signals)) else f"signal {-status}"
        if name == "SIGKILL":
            return BuildError(f"the builder was killed, which is how a machine without free memory ends it{why}", Status.NO_MEMORY)
        return BuildError(f"the builder crashed ({name}){_where(messages)}{why}", Status.BACKEND_FAILED)
    return BuildError(f"the builder ended with status {status}{why}", Status.BACKEND_FAILED)


def _refusal(answer: dict[str, Any], messages: Messages) -> BuildError:
    """The error for a builder that said no: its own words, and the node."""
    name = f"{answer['engine']} {answer.get('version', '')}"
    if "error" in answer:
        return BuildError(answer["error"]["message"], Status(answer["error"]["code"]))
    if "refused" in answer:
        error = answer["refused"]
        text = error["text"].strip().split("\n")
        detail = text[1] if text[0].startswith("Invalid Node") and len(text) > 1 else text[0]
        node = f"node {error['node'] or error['index']!r} ({error['operator']}): " if error["operator"] else ""
        return BuildError(f"{name} does not take it: {node}{detail}", Status.BACKEND_FAILED)
    said = "; ".join(_complaints(messages, ("ERROR", "INTERNAL_ERROR"))[:3]) or "it gave no reason"
    hint = "  (this needs an NVIDIA GPU in this machine)" if "CUDA_SUCCESS" in said or "cudaError" in said else ""
    return BuildError(f"{name} cannot build it: {said}{hint}", Status.BACKEND_FAILED)


def _parsed(model: bytes, where: str) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        parsed = onnx.load_model_from_string(model)
    except DecodeError as e:
        raise BuildError(f"{where}: is not an ONNX file (protobuf)", Status.INCONSISTENT) from e
    if not parsed.graph.node or not parsed.opset_import:
        raise BuildError(f"{where}: is not an ONNX model: it has no nodes or no opset", Status.INCONSISTENT)
    return parsed


def build_engine(model: bytes, options: BuildOptions | None = None, *, where: str = "model", progress: Progress | None = None) -> Engine:
    """Build an engine from ONNX bytes with their weights inside. where: what errors call the model.

    Raises BuildError: the module is not installed (BACKEND_MISSING) or lacks an option (PROVIDER_MISSING); the model or the profiles are
    not what TensorRT takes; or the builder refused it, crashed (BACKEND_FAILED), was killed (NO_MEMORY) or took too long (BUSY).
    """
    options = options or BuildOptions()
    find(options.engine)
    parsed = _parsed(model, where)
    check_for_tensorrt(parsed, where, options.capabilities)
    _check_profiles(parsed, options, where)
    if not (options.timeout > 0 and math.isfinite(options.timeout)):
        raise BuildError(f"timeout {options.timeout}: expected seconds, more than 0", Status.OUT_OF_RANGE)
    with tempfile.TemporaryDirectory(prefix="edgegen-tensorrt-") as name:
        folder = Path(name)
        _request(model, options, folder)
        status, late = _run(folder, options.timeout, progress)
        messages = _messages(folder)
        try:
            return _engine(folder, options, status, late, messages)
        except BuildError as e:
            raise BuildError(f"{where}: {e}", e.code) from None


def _engine(folder: Path, options: BuildOptions, status: int, late: bool, messages: Messages) -> Engine:
    if late:
        raise BuildError(f"the builder took more than {options.timeout:g} s and was stopped; raise `timeout`", Status.BUSY)
    if status != 0:
        raise _died(status, folder, messages)
    answer = json.loads((folder / "answer.json").read_text()) | {"engine": options.engine}
    if not answer.get("built"):
        raise _refusal(answer, messages)
    data = (folder / "engine.bin").read_bytes()
    report = Report(
        options.engine, answer["version"], options.capabilities, options.to_json(), answer["seconds"], len(data),
        layers_of([text for _, text in messages]), tuple(_complaints(messages, ("WARNING", "ERROR"))),
    )  # fmt: skip
    return Engine(data, report)
