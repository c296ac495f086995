"""The process that builds an engine: TensorRT's parser and builder may crash, and then only this process dies.

`python -m edgegen.targets.tensorrt.builder FOLDER`. The folder holds request.json and model.onnx; this writes log.jsonl (one [severity,
message] a line, at once, so that it survives a crash), answer.json, and engine.bin if there is an engine. Standard output: one
[phase, done, total] a line. edgegen/targets/tensorrt/build.py is its only caller.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgegen.errors import BuildError, Status, nearest
from edgegen.targets.tensorrt.module import PARSED, load

__all__ = ["FLAGS", "main"]

FLAGS = {"refit": "REFIT", "strip_weights": "STRIP_PLAN", "version_compatible": "VERSION_COMPATIBLE"}
"""Field of BuildOptions -> BuilderFlag."""


def _logger(trt: Any, path: Path) -> Any:
    """An ILogger that appends to a file, unbuffered."""
    out = path.open("ab", buffering=0)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            out.write(json.dumps([severity.name, message]).encode() + b"\n")

    return Logger()


def _monitor(trt: Any, report: Callable[[str, int, int], None]) -> Any:
    """An IProgressMonitor that reports the steps of each phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            report(phase_name, 0, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            steps = self.steps.pop(phase_name, 1)
            report(phase_name, steps, steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            report(phase_name, step + 1, self.steps.get(phase_name, step + 1))
            return True

    return Monitor()


def _lacks(trt: Any, what: str) -> BuildError:
    return BuildError(f"{trt.__name__} {trt.__version__} has no {what}, which the options ask for", Status.PROVIDER_MISSING)


def _configure(trt: Any, builder: Any, options: dict[str, Any], cache: Path | None) -> Any:
    """The builder's configuration. Raises BuildError for an option that this module does not have."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for option, name in FLAGS.items():
        if options[option]:
            if not hasattr(trt.BuilderFlag, name):
                raise _lacks(trt, f"builder flag {name}")
            config.set_flag(getattr(trt.BuilderFlag, name))
    if options["capabilities"]:
        _set_capabilities(trt, config, options["capabilities"])
    if options["hardware_compatible"]:
        if not hasattr(trt, "HardwareCompatibilityLevel"):
            raise _lacks(trt, "hardware compatibility level")
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options["optimization_level"] is not None:
        config.builder_optimization_level = options["optimization_level"]
    if options["workspace"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options["workspace"])
    if options["profiles"]:
        profile = builder.create_optimization_profile()
        for tensor, shapes in options["profiles"].items():
            profile.set_shape(tensor, *map(tuple, shapes))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"the builder does not take the shapes {options['profiles']}", Status.BAD_SHAPE)
    if cache is not None:
        config.set_timing_cache(config.create_timing_cache(cache.read_bytes() if cache.exists() else b""), False)
    return config


def _set_capabilities(trt: Any, config: Any, names: list[str]) -> None:
    if not hasattr(trt, "ComputeCapability"):
        raise _lacks(trt, "compute capability to choose (it builds for the GPU of this machine)")
    known = trt.ComputeCapability.__members__
    for name in names:
        if name not in known:
            built_for = [n for n in known if n.startswith("SM")]
            raise BuildError(f"{trt.__name__} {trt.__version__} does not build for {name}: {nearest(name, built_for)}", Status.PROVIDER_MISSING)
    config.num_compute_capabilities = len(names)
    for i, name in enumerate(names):
        config.set_compute_capability(known[name], i)


def _parser_error(parser: Any) -> dict[str, Any]:
    error = parser.get_error(0)
    return {"node": error.node_name(), "operator": error.node_operator(), "index": error.node(), "text": error.desc()}


def _build(folder: Path, answer: dict[str, Any], report: Callable[[str, int, int], None]) -> None:
    request = json.loads((folder / "request.json").read_text())
    options = request["options"]
    trt = load(options["engine"])
    answer["version"] = str(trt.__version__)
    builder = trt.Builder(_logger(trt, folder / "log.jsonl"))
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0)
    parser = trt.OnnxParser(network, builder.logger)
    cache = Path(request["timing_cache"]) if request["timing_cache"] else None
    config = _configure(trt, builder, options, cache)
    start = time.perf_counter()
    report("parsing", 0, 1)
    if not parser.parse((folder / "model.onnx").read_bytes()):
        answer["refused"] = _parser_error(parser)
        return
    report("parsing", 1, 1)
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps([PARSED, ""]) + "\n")
    monitor = _monitor(trt, report)
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    answer["seconds"] = time.perf_counter() - start
    if engine is not None:
        (folder / "engine.bin").write_bytes(engine)
        answer["built"] = True
        if cache is not None:
            cache.write_bytes(bytes(config.get_timing_cache().serialize()))


def main(arguments: list[str]) -> int:
    """Build what the folder asks for. 0: answer.json says how it went; anything else is a crash."""
    folder = Path(arguments[0])
    # TensorRT prints too: what it says goes to standard error, progress alone to standard output
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)
        answer: dict[str, Any] = {}
        try:
            _build(folder, answer, lambda phase, done, total: print(json.dumps([phase, done, total]), file=out))
        except BuildError as e:
            answer["error"] = {"message": str(e), "code": int(e.code)}
        (folder / "answer.json").write_text(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
