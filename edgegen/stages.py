"""The stages of a build. Each reads the directories of earlier stages and fills its own; the same inputs give the same bytes
(except `measure`, which looks at the clock). They never call each other: edgegen/pipeline.py does.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen import __version__, canonical
from edgegen.bundle import Golden, Manifest, ProgramEntry, Variant, bundle_bytes, open_bundle, parse_bundle
from edgegen.calibration import Batch, CalibrationContext, calibration_inputs, collect_record, read_batches, write_batches
from edgegen.errors import BuildError, GateError, ProgramError, RuntimeFault, Status, nearest
from edgegen.fusing import with_fused
from edgegen.judging import Judge, TimedComponent, fit_corrections
from edgegen.onnx_export import export_component
from edgegen.plan import Plan
from edgegen.program import Program, initial_state, interpret, normals, program_to_json
from edgegen.quality import Bounds, Verdict
from edgegen.quantize import Codes, Record
from edgegen.quantize.scheme import SCHEMES
from edgegen.quantize.splitting import split_concat_convolutions
from edgegen.quantizing import Network, Quantizer, smoothed
from edgegen.search.sampling import load_quality
from edgegen.sensitivity import Choice, Trial, measure_effects, repair, search
from edgegen.spec import default_conditions
from edgegen.targets.choose import Candidate, candidates_of, measured_document, settle, thread_counts, time_candidates
from edgegen.targets.onnxruntime import OrtComponent, check_model, parse_model, split_weights
from edgegen.targets.onnxruntime.kernels import check_kernels
from edgegen.targets.onnxruntime.lowering import lower
from edgegen.targets.onnxruntime.qdq import watched
from edgegen.targets.onnxruntime.scales import TimedScales
from edgegen.targets.profiles import architecture
from edgegen.targets.tensorrt import build_engine, check_for_tensorrt, slow_spots
from edgegen.targets.tensorrt.component import engine_options
from edgegen.targets.tensorrt.module import MODULES
from edgegen.targets.tensorrt.networks import PRECISIONS, network_for
from edgegen.targets.tensorrt.qdq import plan as plan_engine
from edgegen.targets.tensorrt.qdq import roundings
from edgegen.timing import machine
from edgegen.trajectory import network_times

if TYPE_CHECKING:
    import onnx

__all__ = ["calibrate", "compile_variants", "export", "measure", "pack", "quantize"]

Progress = Callable[[str, int, int], None]
"""progress(what is being done, done, total)"""
Array = npt.NDArray[Any]

FLOAT, PREPARED = "float32", "prepared"
_DRIFT = 1.5
"""TensorRT's tables cost size, so they are for tensors that drift at least so much."""
_OTHER_SEED = 1_000_003
"""Choices are made on samples of a seed that neither calibrates nor, being the gate's, decides."""
_TOLERANCE = {FLOAT: 1e-3, "float16": 1e-2}
_TOLERANCE_OF_OTHERS = 5e-2
"""Tolerance of golden vectors per precision, as RMSE relative to the sample's range: engines differ in the order of their sums."""
_ROUNDS, _RUNS = 9, 3


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, sort_keys=True, indent=1))


def _model(directory: Path, precision: str) -> Path:
    return directory / f"{precision}.onnx"


def export(plan: Plan, out: Path, progress: Progress) -> None:
    """Writes float32.onnx and export.json (how well it agrees with torch)."""
    progress("tracing and converting the network", 0, 1)
    recipe = plan.recipe
    data, report = export_component(
        recipe.model.source, plan.folder, plan.signature, plan.conditions, plan.times, time=recipe.model.names.t,
        component=plan.component, weights=plan.weights, options=recipe.model.options,
    )  # fmt: skip
    check_model(parse_model(data, "exported model"), plan.signature, "exported model")
    _model(out, FLOAT).write_bytes(data)
    _write_json(out / "export.json", {"max_error": report.max_error.hex(), "cases": report.cases})
    progress("exported", 1, 1)


def _quantizer(plan: Plan, model: onnx.ModelProto, record: Record, inputs: Path) -> Quantizer:
    """The quantizer of the network in `model`. inputs: the calibration set that the calibrate stage kept."""
    names = plan.recipe.model.names
    arm = plan.profile is not None and plan.profile.engine == "onnxruntime" and plan.profile.architecture == "aarch64"
    return Quantizer(
        model, plan.component, plan.signature, names.x, names.output, plan.recipe.quantization, record, lambda: read_batches(inputs),
        "int8" if arm else "uint8",
    )  # fmt: skip


def calibrate(plan: Plan, exported: Path, out: Path, progress: Progress) -> None:
    """Writes prepared.onnx, the float network that is quantized; record.npz, what its tensors look like at each time of the calibration set; and
    inputs.zip, the set. An empty record if nothing needs it.
    """
    recipe, options = plan.recipe, plan.recipe.quantization
    model = parse_model(_model(exported, FLOAT).read_bytes(), "float32.onnx")
    if options.split:
        model, _ = split_concat_convolutions(model)
    name, inputs, seen = plan.component, out / "inputs.zip", 0
    tensors = _watched(plan, model, inputs)
    if not tensors:
        _model(out, PREPARED).write_bytes(model.SerializeToString(deterministic=True))
        Record({}).save(out / "record.npz")
        return
    with OrtComponent(name, model.SerializeToString(), plan.signature, threads=1) as network:
        context = CalibrationContext(
            {name: network}, tuple(plan.programs.values()), plan.conditions, plan.sample, recipe.calibration.samples, recipe.calibration.batch,
            recipe.calibration.seed, plan.process, plan.many_steps, time=recipe.model.names.t, model={name: model},
        )  # fmt: skip
        real: Iterable[Batch] = ()
        if plan.calibration_inputs is not None:
            real = calibration_inputs(plan.calibration_inputs, name, plan.signature, recipe.model.names.t, recipe.calibration.batch)

        def counted() -> Iterator[Batch]:
            nonlocal seen
            for batch in itertools.chain(plan.calibration(context), real):
                seen += len(next(iter(batch.feeds.values())))
                progress(f"running the calibration set, {seen} evaluations", 0, 1)
                yield batch

        record = collect_record({name: model}, {name: plan.signature}, {name: tensors}, write_batches(inputs, counted()))
    if options.smooth != "none":
        model = smoothed(model, record, options.smooth)
        record = collect_record({name: model}, {name: plan.signature}, {name: _watched(plan, model, inputs)}, read_batches(inputs))
    _model(out, PREPARED).write_bytes(model.SerializeToString(deterministic=True))
    record.save(out / "record.npz")
    progress("calibrated", 1, 1)


def _watched(plan: Plan, model: onnx.ModelProto, inputs: Path) -> tuple[str, ...]:
    """Names of the tensors that are recorded: none if only weights are quantized, to the nearest."""
    precisions = plan.recipe.quantization.precisions
    integers = any(SCHEMES[p].activation_bits for p in precisions) or not {"int8", "float8", "w4a8"}.isdisjoint(plan.engine_precisions)
    rounded = plan.recipe.quantization.weights != "nearest" and any(SCHEMES[p].weight_bits for p in precisions)
    if not (integers or rounded):
        return ()
    quantizer = _quantizer(plan, model, Record({}), inputs)
    return watched(model, quantizer.placements)


def quantize(plan: Plan, exported: Path, calibrated: Path, out: Path, progress: Progress) -> None:
    """Writes a network for each precision, its scales by time, TensorRT's networks; and quantize.json: layers, ranges, sensitivity, the search,
    and what was refused.
    """
    recipe = plan.recipe
    model = parse_model(_model(calibrated, PREPARED).read_bytes(), "prepared.onnx")
    record, inputs = Record.load(calibrated / "record.npz"), calibrated / "inputs.zip"
    quantizer = _quantizer(plan, lower(model), record, inputs)
    refused: dict[str, str] = {}
    document: dict[str, Any] = {"variants": {}}
    judge = _judge(plan, next(iter(plan.programs.values())), recipe.calibration.seed + _OTHER_SEED)
    precisions = recipe.quantization.precisions
    if precisions:
        with OrtComponent(plan.component, _model(exported, FLOAT).read_bytes(), plan.signature, threads=1) as network:
            progress("generating reference samples", 0, 1)
            judge = replace(judge, reference=judge.generate(network))
    for precision in precisions:
        scheme = SCHEMES[precision]

        def report(what: str, done: int, total: int, precision: str = precision) -> None:
            progress(f"{precision}: {what}", done, total)

        try:
            report("rounding weights", 0, 1)
            trial = Trial(quantizer, scheme, judge, _bounds(plan))
            choice = _chosen(plan, quantizer, trial, report, document)
            report("checking that it runs in integers", 0, 1)
            fused = _integer_operators(quantizer, choice.network)
        except BuildError as e:
            refused[precision] = str(e)
            continue
        network_made = choice.network
        check_model(network_made.model, plan.signature, f"{precision}.onnx")
        _model(out, precision).write_bytes(network_made.model.SerializeToString(deterministic=True))
        scales = _timed_scales(plan, quantizer, trial, network_made, report)
        if scales is not None:
            _write_json(out / f"{precision}.scales.json", scales.to_json())
        document["variants"][precision] = {
            "weight_bits": scheme.weight_bits or 16, "activation_bits": scheme.activation_bits, "rounding": recipe.quantization.weights,
            "ranges": recipe.quantization.ranges, "times": recipe.quantization.times if scales is not None else "shared",
            "planned": len(network_made.planned), **({} if fused is None else {"fused": fused}),
            "layers": [layer.to_json() for layer in network_made.layers], "error": {"calibration": f"{choice.verdict.relative_error:.5f}"},
        }  # fmt: skip
    exact = _quantizer(plan, model, record, inputs)  # TensorRT gets the network as it was exported
    for name, precision in _engine_networks(plan).items():
        try:
            made = _engine_network(plan, exact, precision)
            _model(out, name).write_bytes(made.SerializeToString(deterministic=True))
        except BuildError as e:
            refused[name] = str(e)
    if any(v["activation_bits"] for v in document["variants"].values()):
        document["tensors"] = _tensor_rows(plan, quantizer)
    _write_json(out / "quantize.json", {"nodes": len(quantizer.placements), "refused": refused, "quantization": document})
    progress("quantized", 1, 1)


def _judge(plan: Plan, program: Program, seed: int) -> Judge:
    return Judge(plan.component, program, plan.conditions, plan.sample, plan.recipe.gate.samples, seed)


def _bounds(plan: Plan) -> Bounds:
    gate = plan.recipe.gate
    quality = None if gate.quality is None else load_quality(gate.quality, plan.folder)
    return Bounds(plan.sample.high - plan.sample.low, gate.psnr_db, gate.relative_error, quality, gate.quality_loss)


def _chosen(plan: Plan, quantizer: Quantizer, trial: Trial, report: Progress, document: dict[str, Any]) -> Choice:
    """The network of a precision, with layers back in float where the search, or the gate, asks for it."""
    network = quantizer.network(trial.scheme)
    batch = next(iter(quantizer.batches()), None) if network.planned else None
    report("comparing final samples", 0, 1)
    verdict = trial.verdict(network.model)
    if plan.recipe.quantization.search and batch is not None and trial.scheme.activation_bits:
        effects = measure_effects(trial, batch.feeds, plan.recipe.model.names.t, lambda d, t: report("measuring layers", d, t))
        choice = search(trial, effects)
        document["search"] = {
            "budget": f"{trial.bounds.budget(trial.judge.expected):.5f}",
            "chosen": next(i for i, p in enumerate(choice.points) if p.floats == frozenset(choice.floats)),
            "points": [
                {"label": f"{len(p.floats)} layers in float", "error": f"{p.error:.5f}", "milliseconds": f"{-p.saves:.4f}"} for p in choice.points
            ],
        }
    else:
        choice = repair(trial, network, verdict, plan.recipe.gate.repair, lambda d, t: report("measuring layers", d, t))
    for effect in choice.effects:
        for tensor, error in (("weight", effect.weight), ("activation", effect.activation)):
            steps = [[f"{t:g}", f"{e:.5f}"] for t, e in effect.steps] if tensor == "weight" else []
            row = {"node": effect.layer, "tensor": tensor, "error": f"{error:.5f}", "saves_ms": f"{effect.saves:.4f}", "steps": steps}
            document.setdefault("sensitivity", []).append(row)
    return choice


def _integer_operators(quantizer: Quantizer, network: Network) -> int | None:
    """How many operators ONNX Runtime runs in integers, which must be as many as planned; None if that cannot be seen here: of activations in int8,
    which are for ARM, on another processor. Raises BuildError.
    """
    if not network.planned:
        return 0
    if quantizer.integers == "int8" and architecture() != "aarch64":
        return None
    return check_kernels(network.model, network.planned, next(iter(quantizer.batches())).feeds, "the quantized network")


def _timed_scales(plan: Plan, quantizer: Quantizer, trial: Trial, network: Network, report: Progress) -> TimedScales | None:
    """The network's scales at the times of the default program, and the corrections there if they bring the samples nearer; None without either.

    Raises CalibrationError naming the first time that the calibration set never saw.
    """
    names, correct = plan.recipe.model.names, plan.recipe.quantization.correct
    if not network.ranges.times and correct == "none":
        return None
    times = network_times(trial.judge.program, names.t)
    scales = TimedScales.of(network.ranges, network.tensors, times, names.t, quantizer.integers)
    scales = replace(scales, state=names.x, output=names.output)
    if correct == "none":
        return scales
    report("fitting corrections", 0, 1)
    with (
        trial.open(quantizer.model) as reference,
        TimedComponent(plan.component, network.model, plan.signature, names.t, scales.constants, threads=1) as timed,
    ):
        fitted = replace(scales, corrections=fit_corrections(reference, timed, quantizer.batches(), scales, correct))
        before, after = (replace(trial.judge, program=s.corrected(trial.judge.program, plan.component)).error(timed) for s in (scales, fitted))
    chosen = fitted if after < before else scales
    return chosen if network.ranges.times or chosen.corrections else None


def _tensor_rows(plan: Plan, quantizer: Quantizer) -> list[dict[str, Any]]:
    """Of each recorded tensor: how much it drifts, and its range at the times of the default program."""
    times = set(network_times(next(iter(plan.programs.values())), plan.recipe.model.names.t))
    rows = []
    for name, tensor in quantizer.record.tensors.items():
        seen = zip(tensor.times, tensor.lows, tensor.highs, strict=True)
        shown = [[f"{t:g}", f"{low:.4g}", f"{high:.4g}"] for t, low, high in seen if not times or t in times]
        rows.append({"name": name, "drift": f"{min(tensor.drift, 1e6):.3f}", "rows": shown})
    return rows


def _engine_network(plan: Plan, quantizer: Quantizer, precision: str) -> onnx.ModelProto:
    """The network as the profile's TensorRT gets it."""
    options = plan.recipe.quantization
    keep = (*options.keep, *(re.sub(r"([*?[])", r"[\1]", name) for name in quantizer.kept))
    kind = PRECISIONS[precision]
    ranges = quantizer.ranges(symmetric=True, drift=_DRIFT) if kind in ("int8", "fp8", "w4a8") else None
    codes: dict[str, Codes] = {}
    if kind is not None and options.weights != "nearest":
        wanted = roundings(quantizer.model, plan_engine(quantizer.model, options.operators, keep, kind), kind)
        codes = quantizer.rounded_as(wanted)
    time = plan.recipe.model.names.t if ranges is not None and ranges.times else None
    return network_for(quantizer.model, precision, ranges, options.operators, keep, codes=codes, time=time)


def _engine_networks(plan: Plan) -> dict[str, str]:
    """Names of the variants for the profile's TensorRT -> their precisions."""
    return {} if plan.profile is None else {f"{plan.profile.engine}-{precision}": precision for precision in plan.engine_precisions}


def _golden(plan: Plan, network: Callable[..., Any]) -> dict[str, Array]:
    """The golden sample of each program: seed 0, batch 1, default conditions."""
    made = {}
    for name, program in plan.programs.items():
        defaults = default_conditions(plan.conditions)
        inputs = {i.name: defaults[i.name] for i in program.inputs if i.kind == "condition"}
        inputs |= initial_state(program, normals(0, 0, (1, *plan.sample.shape)))
        made[name] = interpret(program, {plan.component: network}, inputs, seed=0)["sample"]
    return made


def _scales(quantized: Path | None, name: str) -> TimedScales | None:
    path = None if quantized is None else quantized / f"{name}.scales.json"
    return TimedScales.from_json(_read_json(path)) if path is not None and path.exists() else None


class _Gate:
    """The float network's samples of every program, and the verdict on other networks."""

    def __init__(self, plan: Plan, tick: Callable[[], None]) -> None:
        self.plan, self.tick, self.bounds = plan, tick, _bounds(plan)
        self.judges = {name: _judge(plan, program, plan.recipe.gate.seed) for name, program in plan.programs.items()}

    def reference(self, network: Callable[..., Any]) -> None:
        """Take a network's samples as what others are compared with."""
        for name, judge in self.judges.items():
            self.judges[name] = replace(judge, reference=judge.generate(network))
            self.tick()

    def verdicts(self, data: bytes, network: Callable[..., Any], scales: TimedScales | None) -> dict[str, Verdict]:
        """On each program; on the default one also as it is when fused, with scales by time, if it has them."""
        found = {}
        for name, judge in self.judges.items():
            found[name] = self.bounds.judge(judge.expected, judge.generate(network), judge.drawn)
            self.tick()
        if scales is not None:
            name, judge = next(iter(self.judges.items()))
            model = parse_model(data, "quantized")
            with TimedComponent(self.plan.component, model, self.plan.signature, scales.input, scales.constants, threads=1) as timed:
                own = replace(judge, program=scales.corrected(judge.program, self.plan.component))
                found[f"{name}.fused"] = self.bounds.judge(judge.expected, own.generate(timed), judge.drawn)
        return found


def compile_variants(plan: Plan, exported: Path, quantized: Path | None, out: Path, progress: Progress) -> None:
    """Writes candidates.edgegen, a bundle of every variant that passes the quality gate, and gate.json, the verdict on each.

    Raises GateError if the float network itself gives samples that are not finite, and, where the gate is `required`, with a table of the
    verdicts if a precision of the recipe does not pass.
    """
    recipe = plan.recipe
    exact = _model(exported, FLOAT).read_bytes()
    candidates = {FLOAT: lower(parse_model(exact, "float32.onnx")).SerializeToString(deterministic=True)}
    verdicts: dict[str, Any] = {}
    refused = {} if quantized is None else _read_json(quantized / "quantize.json")["refused"]
    for precision in recipe.quantization.precisions:
        if precision in refused:
            verdicts[precision] = {"passed": 0, "why": refused[precision], "bytes": 0}
        elif quantized is not None:
            candidates[precision] = _model(quantized, precision).read_bytes()
    engines: dict[str, Any] = {}
    for i, name in enumerate(_engine_networks(plan)):
        progress(f"building {name}", i, len(plan.engine_precisions))
        assert quantized is not None
        try:
            engines[name] = _built(plan, quantized, name)
            candidates[name] = _model(quantized, name).read_bytes()
        except BuildError as e:
            verdicts[name] = {"passed": 0, "why": str(e), "bytes": 0}
    done, total = 0, len(candidates) * len(plan.programs)

    def tick() -> None:
        nonlocal done
        done += 1
        progress("comparing final samples", done, total)

    gate = _Gate(plan, tick)
    variants: list[Variant] = []
    members: dict[str, bytes] = {}
    timed: dict[str, Any] = {}
    for precision, data in candidates.items():
        scales = _scales(quantized, precision)
        try:
            with OrtComponent(plan.component, data, plan.signature, threads=1) as network:
                if precision == FLOAT:
                    with OrtComponent(plan.component, exact, plan.signature, threads=1) as reference:
                        gate.reference(reference)
                found = gate.verdicts(data, network, scales)
                golden = _golden(plan, network)
        except RuntimeFault as e:
            if precision == FLOAT and e.code == Status.NONFINITE:
                raise GateError(f"the float network does not give samples: {e}") from e
            if precision == FLOAT:
                raise
            verdicts[precision] = {"passed": 0, "why": str(e), "bytes": len(data)}
            continue
        worst = max(found.values(), key=lambda v: v.excess)
        why = worst.why
        if precision in engines:
            why = f"{why}; {engines[precision]['why']}"
        verdicts[precision] = {"passed": int(worst.passed or precision == FLOAT), "why": why, "bytes": len(data)}
        verdicts[precision]["programs"] = {
            n: {"psnr_db": f"{v.psnr_db:.2f}", "relative_error": f"{v.relative_error:.5f}", "max_abs": f"{v.max_abs:.4f}"} for n, v in found.items()
        }
        if precision in engines:
            verdicts[precision]["engine"] = engines[precision]
        if verdicts[precision]["passed"]:
            variants.append(_variant(plan, precision, data, golden, members))
            if scales is not None:
                timed[variants[-1].components[plan.component]] = scales.to_json()
    failed = [p for p in recipe.quantization.precisions if p in candidates and not verdicts[p]["passed"]]
    if failed and recipe.gate.required:
        table = "\n".join(f"  {name}: {v['why']}" for name, v in verdicts.items())
        message = f"{', '.join(failed)}: too far from the float network's samples, with up to {recipe.gate.repair} layers put back to float"
        raise GateError(f"{message}:\n{table}\nkeep more layers (quantization.keep), raise gate.repair, loosen [gate], or leave the precision out")
    documents = {"scales": timed} if timed else {}
    bundle = _bundle(plan, variants, members, documents)
    if recipe.target.form != "stepwise":
        bundle = _with_fused(plan, bundle, verdicts)
    (out / "candidates.edgegen").write_bytes(bundle)
    _write_json(out / "gate.json", verdicts)


def _built(plan: Plan, quantized: Path, name: str) -> dict[str, Any]:
    """What TensorRT makes of a network, as JSON: built here where that needs no GPU, else only checked. Raises BuildError if it refuses it."""
    profile = plan.profile
    assert profile is not None
    refused = _read_json(quantized / "quantize.json")["refused"]
    if name in refused:
        raise BuildError(refused[name])
    data = _model(quantized, name).read_bytes()
    capabilities = (profile.compute_capability,) if profile.compute_capability else ()
    model = parse_model(data, name)
    check_for_tensorrt(model, name, capabilities)
    if profile.engine == "tensorrt" or importlib.util.find_spec(MODULES[profile.engine]) is None:
        return {"why": f"checked for {profile.engine}; its engine is built on the device", "slow": slow_spots(model, capabilities)}
    engine = build_engine(data, engine_options(plan.signature, profile.engine, profile.compute_capability), where=name)
    products = {op: sorted({str(p) for p in engine.report.precisions(op)}) for op in ("Conv", "MatMul") if engine.report.products(op)}
    kinds = "; ".join(f"{op} in {' and '.join(found)}" for op, found in products.items())
    return {
        "why": f"its engine for {', '.join(capabilities)} has {len(engine.data) / 1e6:.2f} MB, {kinds}", "bytes": len(engine.data),
        "products": products, "slow": slow_spots(model, capabilities), "version": engine.report.version,
    }  # fmt: skip


def _variant(plan: Plan, precision: str, data: bytes, golden: Mapping[str, Array], members: dict[str, bytes]) -> Variant:
    """A variant's entry; its network, its weights and its golden samples are added to `members`."""
    engine = plan.profile.engine if plan.profile is not None and precision in _engine_networks(plan) else "onnxruntime"
    network, place = f"{plan.component}.{precision}.onnx", f"{plan.component}.{precision}.weights"
    members[network], weights = split_weights(parse_model(data, network), place)
    if weights:
        members[place] = weights
    vectors = []
    for i, (program, sample) in enumerate(golden.items()):
        member = f"golden.{i}.{precision}.f32"
        members[member] = np.ascontiguousarray(sample, "<f4").tobytes()
        tolerance = _TOLERANCE.get(_engine_networks(plan).get(precision, precision), _TOLERANCE_OF_OTHERS)
        vectors.append(Golden(program, member, tolerance * (plan.sample.high - plan.sample.low)))
    weights_of = {plan.component: place} if weights else {}
    return Variant(precision, engine, {plan.component: network}, tuple(vectors), weights_of, threads=plan.recipe.target.threads)


def _with_fused(plan: Plan, data: bytes, verdicts: dict[str, Any]) -> bytes:
    """A bundle's bytes with the default program fused in each variant; why not, where that cannot be, goes to the verdicts.

    If the recipe asks for the fused form, a variant that cannot have it is left out; GateError if that is the float one.
    """
    bundle = parse_bundle(data, "candidates")
    variants, members = [], {name: bundle.member(name) for name in bundle.table}
    for variant in bundle.manifest.variants:
        try:
            fused, added = with_fused(bundle, variant)
            members |= added
        except (ProgramError, RuntimeFault, GateError) as e:
            wanted = plan.recipe.target.form == "fused"
            if wanted and variant.name == FLOAT:
                raise GateError(f"target.form is 'fused', but {e}") from e
            verdicts[variant.name]["why"] += f"; stepwise only: {e}"
            if wanted:
                verdicts[variant.name]["passed"] = 0
                continue
            fused = variant
        variants.append(fused)
    manifest = replace(bundle.manifest, variants=tuple(variants))
    return bundle_bytes(manifest, {name: members[name] for name in manifest.members()})


def _bundle(plan: Plan, variants: Sequence[Variant], members: dict[str, bytes], documents: Mapping[str, Any]) -> bytes:
    """The bundle's bytes: programs, documents and manifest added to the variants' members."""
    members, entries, recipe = dict(members), [], plan.recipe
    for i, (name, program) in enumerate(plan.programs.items()):
        members[f"program.{i}.json"] = canonical.encode(program_to_json(program))
        entries.append(ProgramEntry(name, len(program.steps), f"program.{i}.json"))
    for name, value in documents.items():
        members[f"{name}.json"] = canonical.encode(value)
    manifest = Manifest(
        recipe.name, recipe.summary, recipe.model.licence, f"edgegen {__version__}", plan.trusted_pickle, plan.sample, plan.conditions,
        {plan.component: plan.signature}, tuple(entries), tuple(variants), {name: f"{name}.json" for name in documents},
    )  # fmt: skip
    return bundle_bytes(manifest, members)


def measure(plan: Plan, compiled: Path, out: Path, progress: Progress) -> None:
    """Writes measured.json: the time of each candidate on this machine, default program, batch 1."""
    path, target = compiled / "candidates.edgegen", plan.recipe.target
    bundle = open_bundle(path)
    program = bundle.manifest.programs[0].name
    here = [v for v in bundle.manifest.variants if v.engine == "onnxruntime"]  # of an engine built for another device nothing can be said here
    candidates = candidates_of(here, program, (target.threads,) if target.threads else thread_counts())
    if target.form == "fused":
        candidates = [c for c in candidates if c.fused]
    progress(f"timing {len(candidates)} candidates", 0, _ROUNDS)
    times = time_candidates(
        path, candidates, program, rounds=_ROUNDS, runs=_RUNS, on_round=lambda i: progress(f"timing {len(candidates)} candidates", i, _ROUNDS)
    )  # fmt: skip
    rows = [{"variant": c.variant, "fused": int(c.fused), "threads": c.threads, "milliseconds": ms} for c, ms in times.items()]
    _write_json(out / "measured.json", {"program": program, "batch": 1, "machine": machine(), "candidates": rows})


def _wanted(plan: Plan, variants: Sequence[Variant], verdicts: Mapping[str, Any]) -> Sequence[Variant]:
    """The variants that the recipe names; all, if it names none. Raises GateError if one that it names is not there, with the reason."""
    names = plan.recipe.target.variants
    if not names:
        return variants
    there = {v.name for v in variants}
    for name in names:
        if name not in there:
            reason = verdicts[name]["why"] if name in verdicts else f"it was not built: {nearest(name, verdicts)}"
            raise GateError(f"target.variants asks for {name!r}: {reason}")
    return [v for v in variants if v.name in names]


def pack(plan: Plan, exported: Path, quantized: Path | None, compiled: Path, measured: Path | None) -> bytes:
    """The bundle: the variants that passed, the fastest first; slower ones than float left out; recipe, report and figures with them."""
    bundle = open_bundle(compiled / "candidates.edgegen")
    verdicts = _read_json(compiled / "gate.json")
    variants: Sequence[Variant] = bundle.manifest.variants
    documents: dict[str, Any] = {"recipe": plan.resolved}
    held = bundle.document("scales") if "scales" in bundle.manifest.documents else {}
    if measured is not None:
        figures = _read_json(measured / "measured.json")
        times = {Candidate(r["variant"], bool(r["fused"]), r["threads"]): r["milliseconds"] for r in figures["candidates"]}
        auto = plan.recipe.target.form == "auto"
        engines = [replace(v, fused=() if auto else v.fused) for v in variants if v.engine != "onnxruntime"]
        variants = settle([v for v in variants if v.engine == "onnxruntime"], times)
        best = {v.name: min(ms for c, ms in times.items() if c.variant == v.name) for v in variants}
        for v in engines:
            verdicts[v.name]["why"] += "; not measured: it is for another device, edgegen tune measures it there"
        for v in variants:
            ratio = best[FLOAT] / best[v.name]
            form = f"{'fused' if v.fused else 'stepwise'}, {v.threads or 'all'} thread{'s' * (v.threads != 1)}"
            verdicts[v.name]["why"] += f"; {best[v.name]:.2f} ms {form}" + (
                "" if v.name == FLOAT else f", {ratio:.2f}x float, the gate asks {plan.recipe.gate.speedup:.2f}x"
            )
            if v.name != FLOAT and ratio < plan.recipe.gate.speedup:
                verdicts[v.name]["passed"] = 0
        variants = [*engines, *(v for v in variants if verdicts[v.name]["passed"])]
        documents["measured"] = measured_document(figures["program"], figures["machine"], times)
    else:
        if plan.recipe.target.form == "auto":
            variants = [replace(v, fused=()) for v in variants]  # not measured, so not known to be faster
        variants = sorted(variants, key=lambda v: v.engine == "onnxruntime")
    variants = _wanted(plan, variants, verdicts)
    documents["report"] = {"export": _read_json(exported / "export.json"), "variants": verdicts}
    if quantized is not None:
        made = _read_json(quantized / "quantize.json")
        documents["report"]["quantize"] = {"nodes": made["nodes"], "refused": made["refused"]}
        documents["quantization"] = made["quantization"]
        if plan.recipe.target.variants:
            kept = {n: v for n, v in made["quantization"]["variants"].items() if n in plan.recipe.target.variants}
            documents["quantization"] = made["quantization"] | {"variants": kept}
        for name, variant in documents["quantization"]["variants"].items():
            programs = verdicts.get(name, {}).get("programs", {})
            variant["error"]["validation"] = max((p["relative_error"] for p in programs.values()), key=float, default="")
    networks = {member for v in variants for member in v.components.values()}
    if scales := {member: value for member, value in held.items() if member in networks}:
        documents["scales"] = scales
    members = {name: bundle.member(name) for v in variants for name in v.members()}
    return _bundle(plan, variants, members, documents)
