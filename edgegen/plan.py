"""A recipe resolved into everything that the stages need, and checked, before any slow work starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.calibration import CalibrationSet, calibration_set
from edgegen.diffusion import Process, make_process
from edgegen.errors import EdgegenError, RecipeError
from edgegen.library import data_folders
from edgegen.onnx_export.component import check_tools, check_weights_file, source_file
from edgegen.program import Eval, Imm, Program
from edgegen.recipe import Recipe, Sampling, recipe_to_json
from edgegen.solvers import Denoiser, Guidance, build_program
from edgegen.spec import BATCH, ConditionSpec, SampleSpec, Signature, TensorSpec
from edgegen.workspace import digest_file

__all__ = ["Plan", "make_plan"]

CHECKED_TIMES = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built. programs: by name, the default first. sources: digests of the files that the recipe names."""

    recipe: Recipe
    folder: Path
    signature: Signature
    conditions: tuple[ConditionSpec, ...]
    sample: SampleSpec
    programs: Mapping[str, Program]
    weights: Path | None
    trusted_pickle: bool
    sources: Mapping[str, str]
    calibration: CalibrationSet
    calibration_file: Path

    @property
    def component(self) -> str:
        """The name of the network."""
        return self.recipe.model.component

    @property
    def resolved(self) -> Any:
        """The recipe as JSON for keys and the bundle, without folders: files are known by their names here and by `sources`."""
        recipe = recipe_to_json(self.recipe)
        if self.weights is not None:
            recipe["model"]["weights"] = self.weights.name
        recipe["calibration"]["set"] = self.calibration_file.name
        return recipe

    @property
    def times(self) -> tuple[float, ...]:
        """Four network times from the programs' own, first and last among them: where export compares with torch."""
        name = self.recipe.model.names.t
        seen = {
            o.value
            for program in self.programs.values()
            for i in program.instructions
            if isinstance(i, Eval)
            for o in i.inputs[name]
            if isinstance(o, Imm)
        }
        ordered = sorted(seen)
        picks = np.linspace(0, len(ordered) - 1, CHECKED_TIMES).round().astype(int)
        return tuple(ordered[i] for i in picks)


def _programs(recipe: Recipe, process: Process, model: Denoiser, null: dict[str, float | str]) -> dict[str, Program]:
    """Every program of the recipe, named solver-steps (with its place added where two would have the same name)."""
    programs: dict[str, Program] = {}
    for i, sampling in enumerate(recipe.programs):
        for steps in sampling.steps:
            program = _program(sampling, steps, process, recipe.model.prediction, model, null, i)
            name = program.name if program.name not in programs else f"{program.name}-{i}"
            programs[name] = Program(name, program.inputs, program.instructions, program.outputs, program.nfe, program.steps)
    return programs


def _program(sampling: Sampling, steps: int, process: Process, prediction: str, model: Denoiser, null: dict[str, float | str], index: int) -> Program:
    guidance = None if sampling.guidance is None else Guidance(sampling.guidance, null, sampling.batched_guidance)
    try:
        return build_program(
            sampling.solver, process, prediction, steps, grid=sampling.grid, guidance=guidance,
            t_start=sampling.t_start, t_end=sampling.t_end, model=model, **sampling.options,
        )  # fmt: skip
    except EdgegenError as e:
        raise RecipeError(f"programs[{index}], {steps} steps: {e}") from e


def _sources(recipe: Recipe, folder: Path, weights: Path | None) -> dict[str, str]:
    """Digests of what the export reads: the ONNX file, or the source with its neighbouring Python files; and the weights."""
    path, function = source_file(recipe.model.source, folder)
    files = [path] if function is None else sorted({path, *path.parent.glob("*.py")})
    sources = {p.name: digest_file(p) for p in files}
    return sources | ({} if weights is None else {"weights": digest_file(weights)})


def make_plan(recipe: Recipe, folder: Path, *, trust_pickle: bool = False) -> Plan:
    """Resolve and check a recipe whose relative paths start at `folder`.

    Raises RecipeError, ExportError or CalibrationError: unknown names (with the nearest ones), absent files, untrusted pickles,
    impossible programs.
    """
    model, names = recipe.model, recipe.model.names
    conditions = tuple(
        ConditionSpec(name, c.dtype, c.shape, c.minimum, c.maximum, c.default, c.null, c.summary) for name, c in recipe.conditions.items()
    )
    state: tuple[int | str, ...] = (BATCH, *model.sample_shape)
    signature = Signature(
        (
            TensorSpec(names.x, "float32", state),
            TensorSpec(names.t, names.time_dtype, (BATCH,)),
            *(TensorSpec(c.name, c.dtype, (BATCH, *c.shape)) for c in conditions),
        ),
        (TensorSpec(names.output, "float32", state),),
    )
    if recipe.target.engine != "onnxruntime":
        raise RecipeError(f"target.engine {recipe.target.engine!r}: this edgegen builds for 'onnxruntime'")
    parameters = {k: v for k, v in recipe.process.items() if k != "name"}
    process = make_process(recipe.process["name"], **parameters)
    denoiser = Denoiser(model.component, names.x, names.t, names.output, tuple(recipe.conditions), names.time)
    null: dict[str, float | str] = {c.name: c.null for c in conditions if c.null is not None}
    programs = _programs(recipe, process, denoiser, null)
    weights = None if model.weights is None else folder / Path(model.weights).expanduser()
    if weights is not None:
        check_weights_file(weights, trust_pickle=trust_pickle)
    calibration, calibration_file = calibration_set(recipe.calibration.set, [folder, *data_folders("calib")])
    check_tools(source_file(model.source, folder)[1])
    sample = SampleSpec(model.sample_shape, recipe.sample.kind, recipe.sample.low, recipe.sample.high)
    return Plan(
        recipe, folder, signature, conditions, sample, programs, weights, trust_pickle and weights is not None and weights.suffix != ".safetensors",
        _sources(recipe, folder, weights), calibration, calibration_file,
    )  # fmt: skip
