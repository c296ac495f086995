"""Two variants' samples at equal seeds and conditions: in go two sides of one model, out comes how far apart they are, by step and in the end."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.bundle import Bundle
from edgegen.comparing import Side
from edgegen.errors import RecipeError, RuntimeFault, Status, nearest
from edgegen.images import png_bytes
from edgegen.program import Executable, Program, StreamState, initial_state, normals
from edgegen.program.noise import check_seed
from edgegen.quality import Distance, distance, frechet, relative_errors
from edgegen.recipe import Gate, recipe_from_json
from edgegen.spec import SampleSpec, draw_condition

__all__ = ["SampleComparison", "StepError", "compare_samples", "feature_distance", "gate_of", "sheet"]

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
"""progress(samples done, in all)"""

SHEET_ROWS = 32
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class StepError:
    """One step of the sampler, over all samples; each side follows its own trajectory.

    evaluated: the time that the networks were first given in it; None if none was. time: where the step ends, of the state x. psnr_db: of x, over
    the sample's range. error: mean_i ||b_i - a_i|| / ||a_i|| of x. prediction: the same of everything that the networks gave in the step; None
    where they did not run.
    """

    step: int
    evaluated: float | None
    time: float
    psnr_db: float
    error: float
    prediction: float | None


@dataclass(frozen=True, slots=True)
class SampleComparison:
    """`count` samples a, b float32[count, *sample shape] of a program; sample i is that of seed `seed` + i, batch 1.

    conditions: by name, a row for each sample. fused: whether A and B ran as one network; then there are no steps. errors: ||b_i - a_i|| /
    ||a_i|| of each sample, float64[count].
    """

    program: str
    seed: int
    conditions: Mapping[str, Array]
    fused: tuple[bool, bool]
    steps: tuple[StepError, ...]
    a: Array
    b: Array
    final: Distance
    errors: npt.NDArray[np.float64]

    @property
    def error(self) -> float:
        """The mean of the samples' relative errors."""
        return float(self.errors.mean())

    @property
    def worst(self) -> int:
        """The number of the sample of the largest relative error, from 0; the first of several."""
        return int(np.argmax(self.errors))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON without the samples; what is not finite is the word "inf"."""
        rows = [{name: _plain(getattr(step, name)) for name in step.__slots__} for step in self.steps]
        return {
            "program": self.program, "samples": len(self.a), "seed": self.seed, "fused": list(self.fused), "steps": rows,
            "psnr_db": _plain(self.final.psnr_db), "rmse": self.final.rmse, "max_abs": self.final.max_abs, "error": _plain(self.error),
            "worst_error": _plain(float(self.errors.max())), "worst_seed": self.seed + self.worst,
            "errors": [_plain(error) for error in self.errors.tolist()],
        }  # fmt: skip


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(slots=True)
class _Trace:
    """What one generation gave: the sample and, where it ran step by step, x after each step and what the networks gave in it."""

    sample: Array
    states: list[Array] = field(default_factory=list)
    predictions: list[list[Array]] = field(default_factory=list)
    times: list[float | None] = field(default_factory=list)


_Generate = Callable[[int, Mapping[str, Array]], _Trace]
"""generate(seed, conditions dtype[1, ...])"""


def compare_samples(
    a: Side, b: Side, *, samples: int, seed: int = 0, program: str | None = None, conditions: Mapping[str, Array] | None = None,
    stepwise: bool = False, threads: int = 0, progress: Progress | None = None,
) -> SampleComparison:  # fmt: skip
    """Make `samples` samples on both sides, one at a time as `edgegen run --seed` makes them, from the seeds `seed`, `seed` + 1, ...

    a, b: of `edgegen.comparing.open_side`; A is the reference. program: by name; None takes A's first; one with states runs its first call.
    conditions: dtype[samples, *shape] by name; None draws them over their ranges. stepwise: step by step even where a variant ships the
    program fused, which has no steps to show. threads: of the engine, 0 for what the variant was measured with, or one per core.
    Raises RuntimeFault: a side is no bundle, the two are not of one model (BAD_ARGUMENT; says what differs), no such program, or a network fails.
    """
    if samples < 1:
        raise RuntimeFault(f"samples: expected at least 1, found {samples}", Status.OUT_OF_RANGE)
    check_seed(seed)
    check_seed(seed + samples - 1)
    manifest = _bundle(a).manifest
    name = program or manifest.programs[0].name
    _check_same(a, b, name)
    if conditions is None:
        rng = np.random.default_rng(seed)
        conditions = {c.name: draw_condition(c, samples, rng) for c in manifest.conditions}
    needed = [i.name for i in _bundle(a).programs[name].inputs if i.kind == "condition"]
    conditions = {key: conditions[key] for key in needed}
    span = manifest.sample.high - manifest.sample.low
    steps, pairs = _Steps(_bundle(a).programs[name], span), []
    with contextlib.ExitStack() as stack:
        (first, fused_a), (second, fused_b) = (_opened(side, name, stepwise, threads, stack) for side in (a, b))
        for i in range(samples):
            own = {key: value[i : i + 1] for key, value in conditions.items()}
            traces = first(seed + i, own), second(seed + i, own)
            pairs.append((traces[0].sample, traces[1].sample))
            if not (fused_a or fused_b):
                steps.add(*traces)
            if progress is not None:
                progress(i + 1, samples)
    made_a, made_b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    final, errors = distance(made_a, made_b, span), relative_errors(made_a, made_b)
    return SampleComparison(name, seed, conditions, (fused_a, fused_b), steps.rows(), made_a, made_b, final, errors)


class _Steps:
    """The sums that a table of steps is made of."""

    def __init__(self, program: Program, span: float) -> None:
        self._program, self._span = program, span
        self._squares: list[list[float]] = [[] for _ in program.steps]
        self._errors: list[list[float]] = [[] for _ in program.steps]
        self._predictions: list[list[float]] = [[] for _ in program.steps]
        self._times: list[float | None] = [None] * len(program.steps)

    def add(self, a: _Trace, b: _Trace) -> None:
        """Count one sample."""
        for k, (x, y) in enumerate(zip(a.states, b.states, strict=True)):
            self._squares[k].append(float(np.mean((y.astype(np.float64) - x) ** 2)))
            self._errors[k].append(float(relative_errors(x.reshape(1, -1), y.reshape(1, -1))[0]))
            if a.predictions[k]:
                joined = [np.concatenate([array.ravel() for array in trace.predictions[k]])[np.newaxis] for trace in (a, b)]
                self._predictions[k].append(float(relative_errors(*joined)[0]))
        self._times = a.times

    def rows(self) -> tuple[StepError, ...]:
        """The table; empty where no sample was counted."""
        made = []
        for k, step in enumerate(self._program.steps):
            if self._errors[k]:
                rmse = math.sqrt(math.fsum(self._squares[k]) / len(self._squares[k]))
                psnr = math.inf if rmse == 0.0 else 20.0 * math.log10(self._span / rmse)
                predicted = float(np.mean(self._predictions[k])) if self._predictions[k] else None
                made.append(StepError(k + 1, self._times[k], step.time, psnr, float(np.mean(self._errors[k])), predicted))
        return tuple(made)


def _bundle(side: Side) -> Bundle:
    if side.bundle is None:
        raise RuntimeFault(f"{side.label}: samples are made by bundles: expected FILE.edgegen or FILE.edgegen:VARIANT", Status.BAD_ARGUMENT)
    return side.bundle


def _check_same(a: Side, b: Side, name: str) -> None:
    """Raise RuntimeFault unless both sides make the same kind of sample from the same conditions with the same program."""
    first, second = _bundle(a), _bundle(b)
    if name not in first.programs:
        raise RuntimeFault(f"no program {name!r} in {a.label}: {nearest(name, first.programs)}", Status.UNKNOWN_NAME)
    programs, differ = [bundle.programs[name] for bundle in (first, second) if name in bundle.programs], []
    if first.manifest.sample != second.manifest.sample:
        differ.append(f"the sample: {_describe(first.manifest.sample)} in A, {_describe(second.manifest.sample)} in B")
    if len(programs) == 1:
        differ.append(f"the program: B has no {name!r}; {nearest(name, second.programs)}")
    elif programs[0] != programs[1]:
        differ.append(f"the program {name!r}: {_difference(*programs)}")
    needed = {i.name for program in programs for i in program.inputs if i.kind == "condition"}
    ranges = [
        {c.name: (c.dtype, c.shape, c.minimum, c.maximum) for c in bundle.manifest.conditions if c.name in needed} for bundle in (first, second)
    ]
    unlike = sorted(key for key in needed if ranges[0].get(key) != ranges[1].get(key))
    if unlike:
        differ.append(f"the condition{'s' * (len(unlike) > 1)} {', '.join(unlike)}")
    if differ:
        message = f"{a.label} (A) and {b.label} (B) are not of one model, so equal seeds mean nothing; they differ in {'; in '.join(differ)}"
        raise RuntimeFault(message, Status.BAD_ARGUMENT)


def _describe(sample: SampleSpec) -> str:
    return f"{sample.kind} {list(sample.shape)} from {sample.low:g} to {sample.high:g}"


def _difference(a: Program, b: Program) -> str:
    if len(a.steps) != len(b.steps):
        return f"{len(a.steps)} steps in A, {len(b.steps)} in B"
    if [s.time for s in a.steps] != [s.time for s in b.steps]:
        return "other times"
    return "other inputs" if a.inputs != b.inputs else "other instructions or coefficients"


def _opened(side: Side, name: str, stepwise: bool, threads: int, stack: contextlib.ExitStack) -> tuple[_Generate, bool]:
    """What makes one sample of a side's program, and whether it runs fused. Opens the networks on `stack`."""
    from edgegen.runtime.session import open_session
    from edgegen.targets.opening import open_component

    bundle, variant = _bundle(side), side.variant
    assert variant is not None
    if not stepwise and any((f.program, f.batch) == (name, 1) for f in variant.fused):
        session = stack.enter_context(open_session(bundle, variant=variant.name, threads=threads))
        return lambda seed, conditions: _Trace(session.generate(seed, program=name, **conditions)), True
    program, shape = bundle.programs[name], (1, *bundle.manifest.sample.shape)
    components = {c: stack.enter_context(open_component(bundle, variant, c, threads=threads or variant.threads)) for c in program.nfe}
    executable = Executable(program)

    def generate(seed: int, conditions: Mapping[str, Array]) -> _Trace:
        trace = _Trace(np.empty(0))
        seen: list[Array] = []
        times: list[float | None] = []

        def watched(component: Callable[..., Mapping[str, Array]]) -> Callable[..., Mapping[str, Array]]:
            def run(**arrays: Array) -> Mapping[str, Array]:
                times.append(next((float(array) for array in arrays.values() if array.ndim == 0), None))
                outputs = component(**arrays)
                seen.extend(outputs.values())
                return outputs

            return run

        def on_step(done: int, total: int, x: Array) -> None:
            trace.states.append(x.copy())
            trace.predictions.append(list(seen))
            trace.times.append(times[0] if times else None)
            seen.clear()
            times.clear()

        inputs = dict(conditions) | initial_state(program, normals(seed, 0, shape))
        stream = StreamState() if program.states else None
        networks = {c: watched(component) for c, component in components.items()}
        trace.sample = executable.run(networks, inputs, seed=seed, on_step=on_step, stream=stream, rows=1)["sample"]
        return trace

    return generate, False


def gate_of(bundle: Bundle) -> Gate | None:
    """What the bundle's recipe asks of final samples; None if the bundle holds no recipe that this edgegen reads."""
    recipe = bundle.document("recipe")
    try:
        return None if recipe is None else recipe_from_json(recipe).gate
    except RecipeError:
        return None


def feature_distance(path: Path, a: Array, b: Array) -> tuple[float, int]:
    """(Frechet distance between the features of samples a and b, their number D).

    path: an ONNX file of one input, float32[N, *sample shape] with any N, whose first output is float[N, D].
    Raises RuntimeFault: no such file, or a network that does not do that.
    """
    from edgegen.targets.onnxruntime import open_engine

    if not path.is_file():
        raise RuntimeFault(f"{path}: no such file; expected an ONNX network from samples [N, ...] to features [N, D]", Status.CANNOT_OPEN)
    engine = open_engine(path.read_bytes(), str(path), 0)
    inputs = [i.name for i in engine.get_inputs()]
    if len(inputs) != 1:
        raise RuntimeFault(f"{path}: expected one input, the samples; found {', '.join(inputs) or 'none'}", Status.BAD_SHAPE)

    def features(samples: Array) -> Array:
        made = []
        for start in range(0, len(samples), _ROWS_AT_ONCE):
            rows = samples[start : start + _ROWS_AT_ONCE]
            try:
                found = engine.run(None, {inputs[0]: rows})[0]
            except Exception as e:  # ONNX Runtime's exceptions have no common public base
                message = f"{path}: does not take samples float32{list(rows.shape)}: {' '.join(str(e).split())}"
                raise RuntimeFault(message, Status.BAD_SHAPE) from e
            if found.ndim != 2 or len(found) != len(rows):
                raise RuntimeFault(f"{path}: expected features [{len(rows)}, D], found shape {list(found.shape)}", Status.BAD_SHAPE)
            made.append(found)
        return np.concatenate(made)

    first, second = features(a), features(b)
    return frechet(first, second), first.shape[1]


def sheet(found: SampleComparison, spec: SampleSpec) -> tuple[bytes, float]:
    """A PNG of images: a row for each sample, the largest relative error first, at most 32; in it A, B and |B - A| amplified; and the factor.

    The factor is the largest power of two, at least 1, by which no difference leaves the sample's range. Small images are enlarged four times.
    Raises RuntimeFault for samples that are no images.
    """
    if spec.kind != "image":
        message = f"a sheet shows images, and these samples are arrays of shape {list(spec.shape)}; leave it out, or compare them in Python"
        raise RuntimeFault(message, Status.BAD_ARGUMENT)
    rows = np.argsort(-found.errors, kind="stable")[:SHEET_ROWS]
    a, b = (side[rows].astype(np.float64) for side in (found.a, found.b))
    difference, span = np.abs(b - a), spec.high - spec.low
    largest = float(difference.max())
    factor = 1.0 if largest == 0.0 else max(1.0, 2.0 ** math.floor(math.log2(span / largest)))
    tiles = np.stack([a, b, spec.low + factor * difference], axis=1).reshape(-1, *spec.shape)
    return png_bytes(tiles, spec.low, spec.high, columns=3, scale=4 if max(spec.shape[1:]) <= 64 else 1), factor
