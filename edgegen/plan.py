"""A recipe resolved into everything that the stages need, and checked, before any slow work starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgegen.calibration import CalibrationSet, calibration_set
from edgegen.diffusion import Process, make_process
from edgegen.errors import EdgegenError, RecipeError, nearest
from edgegen.library import data_folders
from edgegen.onnx_export.component import check_tools, check_weights_file, source_file
from edgegen.program import Eval, Imm, Program
from edgegen.recipe import Recipe, Sampling, plain, recipe_to_json
from edgegen.solvers import Denoiser, Guidance, build_program, solver_named
from edgegen.solvers.diffusers_config import Scheduler, read_scheduler
from edgegen.spec import BATCH, ConditionSpec, SampleSpec, Signature, TensorSpec
from edgegen.targets.profiles import PRECISIONS, TargetProfile, profile_named
from edgegen.workspace import digest_file

__all__ = ["Plan", "make_plan", "program_of"]

CHECKED_TIMES = 4
_USUAL_PRECISIONS = ("float16", "int8", "float8")


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
    schedulers: Mapping[str, Scheduler]
    process: Process | None = None
    profile: TargetProfile | None = None

    @property
    def engine_precisions(self) -> tuple[str, ...]:
        """Precisions of the variants for the profile's TensorRT; empty where there is no such profile."""
        if self.profile is None or self.profile.engine == "onnxruntime":
            return ()
        return self.recipe.target.precisions or tuple(p for p in _USUAL_PRECISIONS if p in self.profile.precisions)

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
        if self.calibration_inputs is not None:
            recipe["calibration"]["inputs"] = self.calibration_inputs.name
        if self.profile is not None:
            recipe["target"]["profile"] = self.profile.name
        if not recipe["process"]:
            scheduler = next(iter(self.schedulers.values()))
            recipe["process"] = plain(dict(scheduler.process))
            recipe["model"]["names"]["time"] = scheduler.time
            recipe["model"]["sigma_data"] = plain(scheduler.sigma_data)
        for sampling in recipe["programs"]:
            if "scheduler" in sampling:
                sampling["scheduler"] = Path(sampling["scheduler"]).name
        return recipe

    @property
    def calibration_inputs(self) -> Path | None:
        """The recipe's file of real inputs."""
        return None if self.recipe.calibration.inputs is None else self.folder / Path(self.recipe.calibration.inputs).expanduser()

    def many_steps(self, steps: int) -> Program:
        """The first program of the recipe at another number of steps; where its times are listed, on the solver's own grid instead."""
        sampling = self.recipe.programs[0]
        if isinstance(sampling.grid, tuple):
            sampling = msgspec.structs.replace(sampling, grid=None)
        return program_of(self.recipe, sampling, steps, self.process, self.schedulers)

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


def _programs(recipe: Recipe, process: Process | None, schedulers: Mapping[str, Scheduler]) -> dict[str, Program]:
    """Every program of the recipe, named solver-steps (with its place added where two would have the same name)."""
    programs: dict[str, Program] = {}
    for i, sampling in enumerate(recipe.programs):
        for steps in sampling.steps:
            try:
                program = program_of(recipe, sampling, steps, process, schedulers)
            except EdgegenError as e:
                raise RecipeError(f"programs[{i}], {steps} steps: {e}") from e
            name = program.name if program.name not in programs else f"{program.name}-{i}"
            programs[name] = replace(program, name=name)
    return programs


def program_of(
    recipe: Recipe, sampling: Sampling, steps: int, process: Process | None, schedulers: Mapping[str, Scheduler] | None = None
) -> Program:  # fmt: skip
    """The program of the recipe's model for one entry (the recipe's, or another) at one number of steps.

    process: for an entry that names a solver. schedulers: by path, for one that names a scheduler's config.
    """
    model, guidance = _denoiser(recipe), None
    if sampling.guidance is not None:
        guidance = Guidance(sampling.guidance, _null_values(recipe), sampling.batched_guidance, sampling.guidance_rescale, sampling.guidance_interval)
    if sampling.scheduler is not None:
        assert schedulers is not None
        scheduler = schedulers[sampling.scheduler]
        if scheduler.prediction != recipe.model.prediction:
            raise RecipeError(f"model.prediction is {recipe.model.prediction!r}, but {sampling.scheduler} is for {scheduler.prediction!r}")
        return scheduler.program(steps, model=model, guidance=guidance)
    assert sampling.solver is not None and process is not None
    options = dict(sampling.options)
    if solver_named(sampling.solver) == "ddgan":
        options.setdefault("latent", recipe.model.latent)
    return build_program(
        sampling.solver, process, recipe.model.prediction, steps, grid=sampling.grid, grid_options=sampling.grid_options, guidance=guidance,
        t_start=sampling.t_start, t_end=sampling.t_end, model=model, sigma_data=recipe.model.sigma_data, **options,
    )  # fmt: skip


def _null_values(recipe: Recipe) -> dict[str, float | str]:
    """Condition -> what the unconditional branch of guidance feeds it: a number, or the name of its negative condition."""
    return {name: value for name, c in recipe.conditions.items() if (value := c.negative or c.null) is not None}


def _conditions(recipe: Recipe) -> tuple[ConditionSpec, ...]:
    """What the caller may give: the recipe's conditions, each followed by its negative, if it has one."""
    made = []
    for name, c in recipe.conditions.items():
        made.append(ConditionSpec(name, c.dtype, c.shape, c.minimum, c.maximum, c.default, c.null, c.summary))
        if c.negative is not None:
            made.append(
                ConditionSpec(c.negative, c.dtype, c.shape, c.minimum, c.maximum, c.default, None, f"what guidance leads away from, as {name}")
            )
    return tuple(made)


def _signature(recipe: Recipe) -> Signature:
    """The network's inputs and outputs."""
    model, names = recipe.model, recipe.model.names
    shape = model.sample_shape
    joined = sum(c.shape[0] if c.shape else 0 for c in recipe.conditions.values() if c.input == "concat")
    wide = model.input_shape or (shape[0] + joined, *shape[1:])
    inputs = [TensorSpec(names.x, "float32", (BATCH, *wide)), TensorSpec(names.t, names.time_dtype, (BATCH,))]
    if names.r is not None:
        inputs.append(TensorSpec(names.r, names.time_dtype, (BATCH,)))
    if names.latent is not None:
        inputs.append(TensorSpec(names.latent, "float32", (BATCH, model.latent)))
    inputs += [TensorSpec(name, c.dtype, (BATCH, *c.shape)) for name, c in recipe.conditions.items() if c.input == "network"]
    return Signature(tuple(inputs), (TensorSpec(names.output, "float32", (BATCH, *(model.output_shape or shape))),))


def _denoiser(recipe: Recipe) -> Denoiser:
    """How the network is called."""
    model, names = recipe.model, recipe.model.names
    by_input = {kind: tuple(name for name, c in recipe.conditions.items() if c.input == kind) for kind in ("network", "concat")}
    wider = model.output_shape is not None and model.output_shape != model.sample_shape
    return Denoiser(
        model.component, names.x, names.t, names.output, by_input["network"], names.time, names.r or "r", names.latent or "latent",
        by_input["concat"], model.sample_shape[0] if wider else None, recipe.sample.scale, recipe.sample.shift,
    )  # fmt: skip


def _sources(recipe: Recipe, folder: Path, weights: Path | None) -> dict[str, str]:
    """Digests of what the export reads: the ONNX file, or the source with its neighbouring Python files; and the weights."""
    path, function = source_file(recipe.model.source, folder)
    files = [path] if function is None else sorted({path, *path.parent.glob("*.py")})
    sources = {p.name: digest_file(p) for p in files}
    sources |= {s.scheduler: digest_file(folder / s.scheduler) for s in recipe.programs if s.scheduler is not None}
    return sources | ({} if weights is None else {"weights": digest_file(weights)})


def _profile_path(name: str, folder: Path) -> str | Path:
    """A profile by its name, or by a path relative to the recipe."""
    return folder / Path(name).expanduser() if name.endswith(".toml") else name


def make_plan(recipe: Recipe, folder: Path, *, trust_pickle: bool = False) -> Plan:
    """Resolve and check a recipe whose relative paths start at `folder`.

    Raises RecipeError, ExportError or CalibrationError: unknown names (with the nearest ones), absent files, untrusted pickles,
    impossible programs.
    """
    model = recipe.model
    conditions = _conditions(recipe)
    profile = None if recipe.target.profile is None else profile_named(_profile_path(recipe.target.profile, folder))
    if recipe.target.precisions and (profile is None or profile.engine == "onnxruntime"):
        raise RecipeError("target.precisions: needs target.profile of a device with TensorRT; quantization.precisions is for ONNX Runtime")
    for precision in recipe.target.precisions:
        if precision not in PRECISIONS:
            raise RecipeError(f"target.precisions: {nearest(precision, PRECISIONS)}")
    if recipe.target.engine != "onnxruntime":
        raise RecipeError(f"target.engine {recipe.target.engine!r}: this edgegen builds for 'onnxruntime'")
    schedulers = {path: read_scheduler(folder / path) for s in recipe.programs if (path := s.scheduler) is not None}
    process = make_process(recipe.process["name"], **{k: v for k, v in recipe.process.items() if k != "name"}) if recipe.process else None
    programs = _programs(recipe, process, schedulers)
    weights = None if model.weights is None else folder / Path(model.weights).expanduser()
    if weights is not None:
        check_weights_file(weights, trust_pickle=trust_pickle)
    calibration, calibration_file = calibration_set(recipe.calibration.set, [folder, *data_folders("calib")], recipe.calibration.options)
    if recipe.calibration.inputs is not None and not (folder / Path(recipe.calibration.inputs).expanduser()).is_file():
        raise RecipeError(f"calibration.inputs: no file {recipe.calibration.inputs} in {folder}; expected an .npz written by numpy.savez")
    check_tools(source_file(model.source, folder)[1])
    sample = SampleSpec(model.sample_shape, recipe.sample.kind, recipe.sample.low, recipe.sample.high)
    return Plan(
        recipe, folder, _signature(recipe), conditions, sample, programs, weights,
        trust_pickle and weights is not None and weights.suffix != ".safetensors",
        _sources(recipe, folder, weights), calibration, calibration_file, schedulers, process, profile,
    )  # fmt: skip
