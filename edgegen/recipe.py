"""recipe.toml -> a typed, validated Recipe. Unknown keys are errors that name the nearest known ones."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from edgegen.errors import EdgegenError, RecipeError, nearest
from edgegen.quantize.keeping import RULES
from edgegen.quantize.scheme import SCHEMES

__all__ = ["Recipe", "apply_settings", "load_recipe", "plain", "recipe_from_json", "recipe_to_json"]

Positive = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9_][a-z0-9_.-]{0,31}$")]


class _Section(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Names(_Section, frozen=True):
    """Names of the network's tensors; `time` says what its time input receives (edgegen.solvers.TIMES).

    r: the second time of solver meanflow; latent: the latent noise of solver ddgan. Only networks that have them name them.
    """

    x: str = "x"
    t: str = "t"
    output: str = "prediction"
    time: str = "process"
    time_dtype: str = "float32"
    r: str | None = None
    latent: str | None = None


class Model(_Section, frozen=True):
    """The network. source: "file.py:function" returning a torch.nn.Module, or "file.onnx"; paths are relative to the recipe.

    input_shape, output_shape: of x and the prediction without the batch, where they differ from a sample joined to its `concat`
    conditions, and from a sample (of a wider output the first channels are the prediction). latent: normals that solver ddgan draws.
    """

    source: str
    prediction: str
    sample_shape: tuple[Positive, ...]
    sigma_data: float = 0.5
    input_shape: tuple[Positive, ...] | None = None
    output_shape: tuple[Positive, ...] | None = None
    latent: Positive = 100
    component: Name = "denoiser"
    weights: str | None = None
    names: Names = field(default_factory=Names)
    options: dict[str, Any] = field(default_factory=dict)
    licence: str = ""


class Condition(_Section, frozen=True):
    """An input that the caller gives for each sample.

    input: where it goes: "network" (an input of its name), "concat" (joined to x along axis 1) or "program" (the solver reads it).
    negative: the name of a second condition of the same kind, which the unconditional branch reads in place of `null`.
    """

    dtype: str = "float32"
    input: Literal["network", "concat", "program"] = "network"
    negative: str | None = None
    shape: tuple[Positive, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    default: float | None = None
    null: float | None = None
    summary: str = ""


class Sampling(_Section, frozen=True):
    """One or more programs: a solver at several step counts. The first program of the recipe is the bundle's default.

    scheduler: a diffusers scheduler_config.json (relative to the recipe) that gives solver, grid, options and process instead.
    """

    steps: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    solver: str | None = None
    scheduler: str | None = None
    grid: str | tuple[float, ...] | None = None
    grid_options: dict[str, Any] = field(default_factory=dict)
    t_start: float | None = None
    t_end: float | None = None
    guidance: float | None = None
    batched_guidance: bool = True
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    options: dict[str, Any] = field(default_factory=dict)


class Calibration(_Section, frozen=True):
    """How calibration inputs are drawn. set: a file of calib/ without .py, or a path to one of your own, with its `options`.

    inputs: an .npz of real network inputs (relative to the recipe) that are added to the set's.
    """

    set: str = "deployed"
    samples: Positive = 32
    batch: Positive = 8
    seed: Annotated[int, Meta(ge=0)] = 1
    options: dict[str, Any] = field(default_factory=dict)
    inputs: str | None = None


class Quantization(_Section, frozen=True):
    """Which variants to try beside float32, and how they are made (docs/quantization.md).

    operators: what becomes integer. keep: patterns of node or weight names that stay float, beside those of `rules`. weights: how they are
    rounded; block: weights per scale where they have 4 bits. ranges, times: of activations; "auto" is minmax for each time and mse where one
    range is for all; groups: of times, at most; drift: the least for which a tensor gets ranges by time. smooth: moves outliers of channels from
    activations into weights. split: convolutions of concatenations get a scale per part. correct: the prediction, at each time. search: measure
    every layer's effect on the final sample.
    """

    precisions: tuple[str, ...] = ("int8",)
    operators: tuple[str, ...] = ("Conv", "Gemm", "MatMul")
    keep: tuple[str, ...] = ()
    rules: tuple[str, ...] = ("first", "last", "time", "concat")
    weights: Literal["nearest", "gptq", "adaround"] = "gptq"
    block: Annotated[int, Meta(ge=16, le=1024)] = 32
    ranges: Literal["auto", "minmax", "percentile", "mse", "l2.4"] = "auto"
    times: Literal["shared", "group", "step"] = "step"
    groups: Annotated[int, Meta(ge=1, le=64)] = 3
    drift: Annotated[float, Meta(ge=1.0)] = 1.0
    smooth: Literal["none", "smoothquant", "balance"] = "none"
    split: bool = False
    correct: Literal["none", "affine", "ptqd"] = "none"
    search: bool = False


class Gate(_Section, frozen=True):
    """What a quantized variant must reach to ship: fidelity of final samples at equal seeds, and speed on this machine.

    psnr_db: at least; relative_error: at most, the mean of ||sample - float's|| / ||float's||. quality: "file.py:function" (samples, conditions) ->
    number, higher is better, of which a variant may lose at most `quality_loss`. repair: so many layers may go back to float to pass. required:
    a build fails if a variant does not pass; without, the variant is left out.
    """

    psnr_db: float = 20.0
    relative_error: Annotated[float, Meta(gt=0.0)] | None = None
    quality: str | None = None
    quality_loss: Annotated[float, Meta(ge=0.0)] = 0.0
    samples: Positive = 20
    seed: Annotated[int, Meta(ge=0)] = 2
    speedup: float = 1.0
    repair: Annotated[int, Meta(ge=0)] = 8
    required: bool = True


class Target(_Section, frozen=True):
    """Where it runs. threads: of the engine, 0 for what is measured to be fastest, or one per core.

    form: of the default program: "stepwise", "fused" (one network for all steps), or "auto" for what is measured to be fastest. profile: a kind of
    device by its name or a .toml file (docs/targets.md): variants for its engine are made beside those for ONNX Runtime. precisions: of those.
    variants: those that the bundle holds; all that pass, if none is named.
    """

    engine: str = "onnxruntime"
    profile: str | None = None
    precisions: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    form: Literal["auto", "stepwise", "fused"] = "auto"


class Sample(_Section, frozen=True):
    """What a sample is, for drawing it. scale, shift: un-normalise the network's samples at the end, per channel or one for all."""

    kind: str = "array"
    low: float = -1.0
    high: float = 1.0
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()


class Search(_Section, frozen=True):
    """What `edgegen search` maximises instead of nearness to the many-step solution: "file.py:function" (samples, conditions) -> number."""

    quality: str | None = None


class Recipe(_Section, frozen=True):
    """Everything that `edgegen build` needs to know. docs/recipe.md describes each key."""

    schema: int
    name: Name
    model: Model
    programs: Annotated[tuple[Sampling, ...], Meta(min_length=1)]
    process: dict[str, Any] = field(default_factory=dict)
    summary: str = ""
    conditions: dict[str, Condition] = field(default_factory=dict)
    sample: Sample = field(default_factory=Sample)
    calibration: Calibration = field(default_factory=Calibration)
    quantization: Quantization = field(default_factory=Quantization)
    gate: Gate = field(default_factory=Gate)
    target: Target = field(default_factory=Target)
    search: Search = field(default_factory=Search)


def _fields_at(path: str) -> list[str]:
    """The known keys of the section that a msgspec error path such as $.model.names points to."""
    kind: Any = Recipe
    for part in re.findall(r"\.([a-z_]+)", path):
        fields = {f.name: f.type for f in msgspec.structs.fields(kind)} if isinstance(kind, type) and issubclass(kind, Struct) else {}
        kind = next(iter(_structs_in(fields.get(part))), None)
    return [f.name for f in msgspec.structs.fields(kind)] if kind is not None else []


def _structs_in(kind: Any) -> list[Any]:
    """Struct types inside an annotation, such as Sampling in tuple[Sampling, ...]."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return [kind]
    return [s for argument in getattr(kind, "__args__", ()) for s in _structs_in(argument)]


def _explain(error: msgspec.ValidationError, path: Path) -> RecipeError:
    message = str(error)
    unknown = re.search(r"unknown field `([^`]*)`(?: - at `([^`]*)`)?", message)
    if unknown:
        key, where = unknown[1], unknown[2] or "$"
        section = where.lstrip("$.") or "the top level"
        return RecipeError(f"{path}: unknown key {key!r} in {section}: {nearest(key, _fields_at(where))}")
    return RecipeError(f"{path}: {message.replace('`$.', '`')}")


def apply_settings(data: dict[str, Any], settings: Sequence[str]) -> None:
    """Apply "a.b=c" settings to the parsed recipe in place; c is read as a TOML value, else as a string. programs.0.steps=[4] indexes lists."""
    for setting in settings:
        path, separator, text = setting.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise RecipeError(f"--set {setting!r}: expected key=value or section.key=value")
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            value = text
        target: Any = data
        for i, key in enumerate(keys):
            place: Any = key
            if isinstance(target, list):
                if not key.isdigit() or int(key) >= len(target):
                    raise RecipeError(f"--set {setting!r}: {'.'.join(keys[:i])} has entries 0 to {len(target) - 1}, found {key!r}")
                place = int(key)
            elif not isinstance(target, dict):
                raise RecipeError(f"--set {setting!r}: {'.'.join(keys[:i])} is a value, not a section")
            if i == len(keys) - 1:
                target[place] = value
            else:
                target = target[place] if isinstance(target, list) else target.setdefault(place, {})


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe. Raises RecipeError that names the file, the key and what was expected."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise RecipeError(f"no recipe at {path}; write one (docs/recipe.md) or give the path of an existing one") from e
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {e}") from e
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise RecipeError(f"{path}: not valid TOML: {e}") from e
    apply_settings(data, settings)
    try:
        recipe = msgspec.convert(data, Recipe)
    except msgspec.ValidationError as e:
        raise _explain(e, path) from e
    _check(recipe, path)
    return recipe


def _check(recipe: Recipe, path: Path) -> None:
    """What types alone cannot say."""
    from edgegen.spec import ConditionSpec, SampleSpec

    if recipe.schema != 1:
        raise RecipeError(f"{path}: schema {recipe.schema}, this edgegen reads schema 1")
    try:
        SampleSpec(recipe.model.sample_shape, recipe.sample.kind, recipe.sample.low, recipe.sample.high)
        for name, c in recipe.conditions.items():
            ConditionSpec(name, c.dtype, c.shape, c.minimum, c.maximum, c.default, c.null)
            if c.negative is not None and (c.null is not None or c.negative in recipe.conditions or c.input != "network"):
                raise RecipeError(f"conditions.{name}: `negative` names a new condition of a network input, and excludes `null`")
    except EdgegenError as e:
        raise RecipeError(f"{path}: {e}") from e
    named = set(recipe.conditions) | {c.negative for c in recipe.conditions.values() if c.negative}
    taken = {"seed", "steps", "batch", "noise", "on_step", "program"} & named
    if taken:
        raise RecipeError(f"{path}: conditions.{taken.pop()}: generate() has an argument of that name; call the condition something else")
    numbers = {"gate.psnr_db": recipe.gate.psnr_db, "gate.speedup": recipe.gate.speedup}
    for key, value in numbers.items():
        if not math.isfinite(value):
            raise RecipeError(f"{path}: {key} is {value}, expected a finite number")
    by_scheduler = all(sampling.scheduler is not None for sampling in recipe.programs)
    if not isinstance(recipe.process.get("name"), str) and not (by_scheduler and not recipe.process):
        raise RecipeError(f'{path}: [process] needs a name, such as name = "vp_linear"')
    for i, sampling in enumerate(recipe.programs):
        if (sampling.solver is None) == (sampling.scheduler is None):
            raise RecipeError(f"{path}: programs[{i}] needs `solver`, or `scheduler` (a scheduler_config.json), and not both")
        fixed = [name for name in ("grid", "t_start", "t_end") if getattr(sampling, name) is not None] + (["options"] if sampling.options else [])
        if sampling.scheduler is not None and fixed:
            raise RecipeError(f"{path}: programs[{i}]: {fixed[0]} comes from the scheduler's config; leave it out, or name a solver instead")
        if sampling.guidance not in (None, 1.0) and not any(c.null is not None or c.negative for c in recipe.conditions.values()):
            raise RecipeError(f"{path}: programs[{i}] uses guidance, so one condition needs `null`, its unconditional value, or `negative`")
        if len(set(sampling.steps)) != len(sampling.steps):
            raise RecipeError(f"{path}: programs[{i}]: steps {list(sampling.steps)} name one count twice")
        if isinstance(sampling.grid, tuple) and len(sampling.steps) != 1:
            raise RecipeError(f"{path}: programs[{i}]: a grid of times fits one step count, found {list(sampling.steps)}")
    for key, names, known in (
        ("precisions", recipe.quantization.precisions, SCHEMES),
        ("rules", recipe.quantization.rules, RULES),
    ):
        if wrong := sorted(set(names) - set(known)):
            hint = " (float32 is always built)" if key == "precisions" else ""
            raise RecipeError(f"{path}: quantization.{key}: {nearest(wrong[0], known)}{hint}")


def recipe_to_json(recipe: Recipe) -> Any:
    """The resolved recipe as canonical JSON values: floats as hex strings, absent values left out."""
    return plain(msgspec.to_builtins(recipe))


def recipe_from_json(value: Any) -> Recipe:
    """The inverse of `recipe_to_json`. Raises RecipeError if the value is no resolved recipe."""
    try:
        return msgspec.convert(_restored(value), Recipe, strict=False)
    except msgspec.ValidationError as e:
        raise RecipeError(f"the bundle's recipe is of another version: {e}") from e


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _restored(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_restored(v) for v in value]
    return float.fromhex(value) if isinstance(value, str) and _HEX.fullmatch(value) else value


_HEX = re.compile(r"-?0x[01](\.[0-9a-f]+)?p[+-][0-9]+|-?inf|nan")


def plain(value: Any) -> Any:
    """`value` as canonical JSON values."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, bool):
        return int(value)
    return value.hex() if isinstance(value, float) else value
