"""The build: export -> calibrate -> quantize -> compile -> measure -> pack, each stage found again if its inputs are the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgegen import __version__, stages
from edgegen.errors import EdgegenError
from edgegen.plan import Plan
from edgegen.program import program_to_json
from edgegen.recipe import recipe_to_json
from edgegen.workspace import Workspace, digest_file, stage_digest, write_atomically

__all__ = ["STAGES", "Options", "build"]

STAGES = ("export", "calibrate", "quantize", "compile", "measure", "pack")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """until: the last stage to run. measured: time candidates and drop slow ones; without it builds are reproducible."""

    until: str = "pack"
    measured: bool = True


def _versions(*packages: str) -> dict[str, str]:
    """Installed versions of what a stage's result depends on."""
    return {p: next((d.version for d in metadata.distributions(name=p)), "absent") for p in packages}


def build(
    plan: Plan, output: Path, workspace: Workspace, options: Options | None = None, progress: Callable[[str, str, int, int], None] | None = None
) -> Path:
    """Build the bundle at `output`, or stop after an earlier stage; returns the path of what was made.

    progress(stage, what, done, total) is called often. Errors carry the stage's name; whatever stages were completed are kept.
    """
    options = options or Options()
    recipe = recipe_to_json(plan.recipe)
    programs = {name: program_to_json(p) for name, p in plan.programs.items()}
    quantizing = bool(plan.recipe.quantization.precisions)

    def run(name: str, key: dict[str, Any], produce: Callable[[Path, stages.Progress], None]) -> Path:
        def report(what: str, done: int, total: int) -> None:
            if progress is not None:
                progress(name, what, done, total)

        def filled(directory: Path) -> None:
            produce(directory, report)

        try:
            return workspace.stage(name, {"edgegen": __version__, **key}, filled)
        except EdgegenError as e:
            raise type(e)(f"{name}: {e}", e.code) from e

    key = {
        "sources": dict(plan.sources), "model": recipe["model"], "conditions": recipe["conditions"], "times": [t.hex() for t in plan.times],
        "versions": _versions("torch", "onnx", "onnxscript", "onnxruntime"),
    }  # fmt: skip
    made = exported = run("export", key, lambda d, p: stages.export(plan, d, p))
    quantized: Path | None = None
    if quantizing and STAGES.index(options.until) >= STAGES.index("calibrate"):
        key = {
            "export": stage_digest(exported), "set": digest_file(plan.calibration_file), "programs": programs,
            "calibration": recipe["calibration"], "quantization": recipe["quantization"], "versions": _versions("numpy", "onnxruntime"),
        }  # fmt: skip
        made = calibrated = run("calibrate", key, lambda d, p: stages.calibrate(plan, exported, d, p))
        if options.until != "calibrate":
            key = {"export": stage_digest(exported), "calibrate": stage_digest(calibrated), "quantization": recipe["quantization"]}
            made = quantized = run("quantize", key, lambda d, p: stages.quantize(plan, exported, calibrated, d, p))
    if STAGES.index(options.until) < STAGES.index("compile"):
        return made
    key = {
        "export": stage_digest(exported), "quantize": stage_digest(quantized) if quantized else "", "recipe": recipe, "programs": programs,
        "pickle": int(plan.trusted_pickle), "versions": _versions("numpy", "onnxruntime"),
    }  # fmt: skip
    compiled = run("compile", key, lambda d, p: stages.compile_variants(plan, exported, quantized, d, p))
    if options.until == "compile":
        return compiled
    measured: Path | None = None
    if options.measured:
        key = {"compile": stage_digest(compiled), "machine": machine(), "versions": _versions("onnxruntime")}
        measured = run("measure", key, lambda d, p: stages.measure(plan, compiled, d, p))
        if options.until == "measure":
            return measured
    write_atomically(output, stages.pack(plan, exported, quantized, compiled, measured))
    if progress is not None:
        progress("pack", "written", 1, 1)
    return output


def machine() -> str:
    """What makes a measurement valid on another run: the processor's name and the number of cores."""
    import os
    import platform

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores"
