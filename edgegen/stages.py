"""The stages of a build. Each reads the directories of earlier stages and fills its own; the same inputs give the same bytes
(except `measure`, which looks at the clock). They never call each other: edgegen/pipeline.py does.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen import __version__, canonical
from edgegen.bundle import Golden, Manifest, ProgramEntry, Variant, bundle_bytes, open_bundle, parse_bundle
from edgegen.calibration import CalibrationContext, collect_record, write_batches
from edgegen.errors import BuildError, GateError, ProgramError, RuntimeFault, Status
from edgegen.fusing import with_fused
from edgegen.onnx_export import export_component
from edgegen.plan import Plan
from edgegen.program import Program, initial_state, interpret, normals, program_to_json
from edgegen.quality import distance
from edgegen.quantize import Record, choose_ranges
from edgegen.spec import default_conditions, draw_condition
from edgegen.targets.choose import Candidate, candidates_of, measured_document, settle, thread_counts, time_candidates
from edgegen.targets.onnxruntime import OrtComponent, check_model, parse_model, split_weights
from edgegen.targets.onnxruntime.qdq import plan as plan_qdq
from edgegen.targets.onnxruntime.qdq import quantize as quantize_model
from edgegen.targets.onnxruntime.qdq import watched
from edgegen.targets.tensorrt import build_engine, check_for_tensorrt, slow_spots
from edgegen.targets.tensorrt.component import engine_options
from edgegen.targets.tensorrt.module import MODULES
from edgegen.targets.tensorrt.networks import network_for
from edgegen.timing import machine

__all__ = ["calibrate", "compile_variants", "export", "measure", "pack", "quantize"]

Progress = Callable[[str, int, int], None]
"""progress(what is being done, done, total)"""
Array = npt.NDArray[Any]

FLOAT = "float32"
_TOLERANCE = {FLOAT: 1e-3, "float16": 1e-2, "bfloat16": 5e-2, "int8": 5e-2, "float8": 5e-2, "int4": 5e-2}
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


def calibrate(plan: Plan, exported: Path, out: Path, progress: Progress) -> None:
    """Writes record.npz: what each tensor looked like at each time of the calibration set; and inputs.zip, the set. Empty if nothing needs it."""
    recipe = plan.recipe
    data = _model(exported, FLOAT).read_bytes()
    model = parse_model(data, "float32.onnx")
    tensors = watched(model, plan_qdq(model, recipe.quantization.operators, recipe.quantization.keep)) if _quantized(plan) else ()
    if not tensors:
        Record({}).save(out / "record.npz")
        return
    evaluations = sum(sum(p.nfe.values()) for p in plan.programs.values()) * recipe.calibration.samples
    name, seen = plan.component, 0
    with OrtComponent(name, data, plan.signature, threads=1) as network:
        context = CalibrationContext(
            {name: network}, tuple(plan.programs.values()), plan.conditions, plan.sample,
            recipe.calibration.samples, recipe.calibration.batch, recipe.calibration.seed,
        )  # fmt: skip

        def counted() -> Any:
            nonlocal seen
            for batch in plan.calibration(context):
                seen += len(next(iter(batch.feeds.values())))
                progress("running the calibration set", min(seen, evaluations), evaluations)
                yield batch

        batches = write_batches(out / "inputs.zip", counted())
        record = collect_record({name: model}, {name: plan.signature}, {name: tensors}, batches)
    record.save(out / "record.npz")


def _quantized(plan: Plan) -> bool:
    """Whether anything of the build needs the ranges of activations."""
    return bool(plan.recipe.quantization.precisions) or not {"int8", "float8"}.isdisjoint(plan.engine_precisions)


def quantize(plan: Plan, exported: Path, calibrated: Path, out: Path, progress: Progress) -> None:
    """Writes quantize.json (how many nodes, and what TensorRT does not get), int8.onnx unless there are none, and TensorRT's networks."""
    progress("placing scales", 0, 1)
    model = parse_model(_model(exported, FLOAT).read_bytes(), "float32.onnx")
    ranges = choose_ranges(Record.load(calibrated / "record.npz"), times="shared")
    placements = plan_qdq(model, plan.recipe.quantization.operators, plan.recipe.quantization.keep)
    if placements and plan.recipe.quantization.precisions:
        data = quantize_model(model, placements, ranges).SerializeToString(deterministic=True)
        check_model(parse_model(data, "int8.onnx"), plan.signature, "int8.onnx")
        _model(out, "int8").write_bytes(data)
    refused: dict[str, str] = {}
    for name, precision in _engine_networks(plan).items():
        try:
            network = network_for(model, precision, ranges, plan.recipe.quantization.operators, plan.recipe.quantization.keep)
            _model(out, name).write_bytes(network.SerializeToString(deterministic=True))
        except BuildError as e:
            refused[name] = str(e)
    _write_json(out / "quantize.json", {"nodes": len(placements), "refused": refused})
    progress("quantized", 1, 1)


def _engine_networks(plan: Plan) -> dict[str, str]:
    """Names of the variants for the profile's TensorRT -> their precisions."""
    return {} if plan.profile is None else {f"{plan.profile.engine}-{precision}": precision for precision in plan.engine_precisions}


def _generate(plan: Plan, network: OrtComponent, program: Program, seed: int, count: int, conditions: Mapping[str, Any]) -> Array:
    """`count` samples of a program, as a session would make them."""
    inputs = {i.name: conditions[i.name] for i in program.inputs if i.kind == "condition"}
    inputs |= initial_state(program, normals(seed, 0, (count, *plan.sample.shape)))
    return interpret(program, {plan.component: network}, inputs, seed=seed)["sample"]


def _samples(plan: Plan, data: bytes, report: Callable[[], None]) -> dict[str, tuple[Array, Array]]:
    """Per program: the gate's samples, and the golden sample (seed 0, batch 1, default conditions)."""
    gate, result = plan.recipe.gate, {}
    rng = np.random.default_rng(gate.seed)
    drawn = {c.name: draw_condition(c, gate.samples, rng) for c in plan.conditions}
    with OrtComponent(plan.component, data, plan.signature, threads=1) as network:
        for name, program in plan.programs.items():
            samples = _generate(plan, network, program, gate.seed, gate.samples, drawn)
            result[name] = samples, _generate(plan, network, program, 0, 1, default_conditions(plan.conditions))
            report()
    return result


def compile_variants(plan: Plan, exported: Path, quantized: Path | None, out: Path, progress: Progress) -> None:
    """Writes candidates.edgegen, a bundle of every variant that passes the quality gate, and gate.json, the verdict on each.

    Raises GateError if the float network itself gives samples that are not finite.
    """
    candidates = {FLOAT: _model(exported, FLOAT).read_bytes()}
    verdicts: dict[str, Any] = {}
    for precision in plan.recipe.quantization.precisions:
        if quantized is not None and _model(quantized, precision).exists():
            candidates[precision] = _model(quantized, precision).read_bytes()
        else:
            operators = ", ".join(plan.recipe.quantization.operators)
            verdicts[precision] = {"passed": 0, "why": f"nothing to quantize: the network has no {operators} with constant weights", "bytes": 0}
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

    def report() -> None:
        nonlocal done
        done += 1
        progress("comparing final samples", done, total)

    span = plan.sample.high - plan.sample.low
    reference: dict[str, tuple[Any, Any]] = {}
    variants: list[Variant] = []
    members: dict[str, bytes] = {}
    for precision, data in candidates.items():
        try:
            samples = _samples(plan, data, report)
        except RuntimeFault as e:
            if precision == FLOAT and e.code == Status.NONFINITE:
                raise GateError(f"the float network does not give samples: {e}") from e
            if precision == FLOAT:
                raise
            verdicts[precision] = {"passed": 0, "why": str(e), "bytes": len(data)}
            continue
        reference = reference or samples
        distances = {name: distance(reference[name][0], samples[name][0], span) for name in plan.programs}
        worst = min(distances.values(), key=lambda d: d.psnr_db)
        passed = worst.psnr_db >= plan.recipe.gate.psnr_db
        why = "the reference" if precision == FLOAT else f"{worst.psnr_db:.1f} dB, the gate asks {plan.recipe.gate.psnr_db:.1f} dB"
        if precision in engines:
            why = f"{why}; {engines[precision]['why']}"
        verdicts[precision] = {
            "passed": int(passed), "why": why, "bytes": len(data), **({"engine": engines[precision]} if precision in engines else {}),
            "programs": {n: {"psnr_db": f"{d.psnr_db:.2f}", "rmse": f"{d.rmse:.5f}", "max_abs": f"{d.max_abs:.4f}"} for n, d in distances.items()},
        }  # fmt: skip
        if passed:
            variants.append(_variant(plan, precision, data, {n: s[1] for n, s in samples.items()}, members))
    data = _bundle(plan, variants, members, {})
    if plan.recipe.target.form != "stepwise":
        data = _with_fused(plan, data, verdicts)
    (out / "candidates.edgegen").write_bytes(data)
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
        tolerance = _TOLERANCE.get(precision) or _TOLERANCE[_engine_networks(plan)[precision]]
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


def pack(plan: Plan, exported: Path, quantized: Path | None, compiled: Path, measured: Path | None) -> bytes:
    """The bundle: the variants that passed, the fastest first; slower ones than float left out; recipe, report and figures with them."""
    bundle = open_bundle(compiled / "candidates.edgegen")
    verdicts = _read_json(compiled / "gate.json")
    variants: Sequence[Variant] = bundle.manifest.variants
    documents: dict[str, Any] = {"recipe": plan.resolved}
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
    documents["report"] = {"export": _read_json(exported / "export.json"), "variants": verdicts}
    if quantized is not None:
        documents["report"]["quantize"] = _read_json(quantized / "quantize.json")
    members = {name: bundle.member(name) for v in variants for name in v.members()}
    return _bundle(plan, variants, members, documents)
