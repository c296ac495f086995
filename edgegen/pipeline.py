"""The build: export -> calibrate -> quantize -> compile -> measure -> pack, each stage found again if its inputs are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from edgegen import stages
from edgegen.errors import EdgegenError
from edgegen.fit import check_fit
from edgegen.plan import Plan
from edgegen.program import program_to_json
from edgegen.timing import machine
from edgegen.workspace import Workspace, digest_file, stage_digest, write_atomically

__all__ = ["STAGES", "Options", "build"]

STAGES = ("export", "calibrate", "quantize", "compile", "measure", "pack")
Progress = Callable[[str, str, int, int], None]
"""progress(stage, what is being done, done, total)"""


@dataclass(frozen=True, slots=True)
class Options:
    """until: the last stage to run. measured: time candidates and drop slow ones; without it builds are reproducible.

    fit: refuse, before any work, a build that by its sizes has too little memory or disk here.
    """

    until: str = "pack"
    measured: bool = True
    fit: bool = True


def _versions(*packages: str) -> dict[str, str]:
    """Installed versions of what a stage's result depends on."""
    return {p: next((d.version for d in metadata.distributions(name=p)), "absent") for p in packages}


def _own_sources() -> str:
    """The digest of edgegen's own code: a stage made by other code is not found again."""
    package = Path(__file__).parent
    files = sorted(package.rglob("*.py"))
    return hashlib.sha256("".join(f"{p.relative_to(package)} {digest_file(p)}\n" for p in files).encode()).hexdigest()


class _Runner:
    """Runs stages of one build: each is keyed by its inputs' content, its part of the recipe, and the code that makes it."""

    def __init__(self, plan: Plan, workspace: Workspace, progress: Progress | None) -> None:
        self.plan, self.workspace, self.progress, self.code = plan, workspace, progress, _own_sources()

    def __call__(self, name: str, stage: Callable[..., None], inputs: tuple[Path | None, ...], key: dict[str, Any]) -> Path:
        def report(what: str, done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(name, what, done, total)

        digests = [stage_digest(directory) if directory else "" for directory in inputs]
        try:
            return self.workspace.stage(name, {"edgegen": self.code, "inputs": digests, **key}, lambda out: stage(self.plan, *inputs, out, report))
        except EdgegenError as e:
            raise type(e)(f"{name}: {e}", e.code) from e


def build(plan: Plan, output: Path, workspace: Workspace, options: Options | None = None, progress: Progress | None = None) -> Path:
    """Build the bundle at `output`, or stop after an earlier stage; returns the path of what was made.

    Errors carry the stage's name. Whatever stages were completed are kept, so the same call goes on from there.
    """
    options = options or Options()
    if options.fit:
        check_fit(plan, workspace.root, measured=options.measured)
    until, run, recipe = options.until, _Runner(plan, workspace, progress), plan.resolved
    programs = {name: program_to_json(p) for name, p in plan.programs.items()}
    engine = _versions("numpy", "onnx", "onnxruntime")

    network = {"model": recipe["model"], "conditions": recipe["conditions"], "times": [t.hex() for t in plan.times]}
    exported = run("export", stages.export, (), network | {"sources": dict(plan.sources), "versions": engine | _versions("torch", "onnxscript")})
    quantized: Path | None = None
    if until == "export":
        return exported
    engines = {"profile": None if plan.profile is None else msgspec.to_builtins(plan.profile), "precisions": plan.engine_precisions}
    if plan.recipe.quantization.precisions or plan.engine_precisions:
        key = engines | {"set": digest_file(plan.calibration_file), "calibration": recipe["calibration"], "quantization": recipe["quantization"]}
        calibrated = run("calibrate", stages.calibrate, (exported,), key | {"programs": programs, "versions": engine})
        if until == "calibrate":
            return calibrated
        quantized = run("quantize", stages.quantize, (exported, calibrated), engines | {"quantization": recipe["quantization"]})
    if until in ("calibrate", "quantize"):
        return quantized or exported
    key = engines | {"recipe": recipe, "programs": programs, "pickle": int(plan.trusted_pickle), "versions": engine | _versions("tensorrt-rtx")}
    compiled = run("compile", stages.compile_variants, (exported, quantized), key)
    if until == "compile":
        return compiled
    measured = run("measure", stages.measure, (compiled,), {"machine": machine(), "versions": engine}) if options.measured else None
    if until == "measure":
        return measured or compiled
    write_atomically(output, stages.pack(plan, exported, quantized, compiled, measured))
    if progress is not None:
        progress("pack", "written", 1, 1)
    return output
