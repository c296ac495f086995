"""`edgegen compile`: a bundle's TensorRT engines, on the device that will run them or, with TensorRT-RTX, ahead of time and without a GPU."""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgegen.bundle import Bundle, Variant, open_bundle
from edgegen.errors import RuntimeFault, Status
from edgegen.runtime.session import open_session
from edgegen.spec import Signature
from edgegen.targets.onnxruntime import fused_network_of, fused_signature, network_of
from edgegen.targets.profiles import TargetProfile
from edgegen.targets.tensorrt import EngineCache, build_engine
from edgegen.targets.tensorrt.component import engine_folder, engine_of, engine_options
from edgegen.targets.tensorrt.module import MODULES, version
from edgegen.targets.tensorrt.run import gpu_name
from edgegen.workspace import write_atomically

__all__ = ["Compiled", "build_ahead", "compile_here", "take_engines"]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
_RUNS = 20


@dataclass(frozen=True, slots=True)
class Compiled:
    """A variant whose engines this device built, keeps and has verified. worst: RMSE over tolerance of its golden vectors, at most 1."""

    variant: str
    worst: float
    milliseconds: float


def _variants(bundle: Bundle, profile: TargetProfile | None) -> list[Variant]:
    """The variants for TensorRT, of the profile's engine where there is one. Raises RuntimeFault (NO_VARIANT)."""
    wanted = MODULES if profile is None else (profile.engine,)
    if profile is not None and profile.engine not in MODULES:
        message = f"the profile {profile.name} runs in {profile.engine}, which needs no engines built; edgegen tune measures it"
        raise RuntimeFault(message, Status.BAD_ARGUMENT)
    found = [v for v in bundle.manifest.variants if v.engine in wanted]
    if not found:
        held = ", ".join(f"{v.name} ({v.engine})" for v in bundle.manifest.variants)
        message = f"no variant for {' or '.join(wanted)} in this bundle; it has {held}. Build it with --target of a device with TensorRT"
        raise RuntimeFault(message, Status.NO_VARIANT)
    return found


def compile_here(path: Path, profile: TargetProfile | None = None, progress: Progress | None = None) -> list[Compiled]:
    """Build the engines for this device's GPU into its own cache, hold the golden vectors against them, and time them.

    Raises RuntimeFault: no such variant, no GPU here (PROVIDER_MISSING), golden vectors that differ (BACKEND_FAILED); BuildError.
    """
    bundle, made = open_bundle(path), list[Compiled]()
    variants = _variants(bundle, profile)
    for i, variant in enumerate(variants):
        if progress is not None:
            progress(f"building {variant.name}", i, len(variants))
        with open_session(bundle, variant=variant.name) as session:
            ratios = [(found.rmse / tolerance, program) for program, _, found, tolerance in session.self_test() if tolerance > 0]
            worst, program = max(ratios, default=(0.0, ""))
            if not worst <= 1.0:
                message = f"variant {variant.name!r}: {program} differs from its golden vector by {worst:.1f} times its tolerance on this device"
                raise RuntimeFault(message, Status.BACKEND_FAILED)
            conditions: dict[str, Any] = session.default_conditions()
            seconds = []
            for _ in range(_RUNS):
                began = time.perf_counter()
                session.generate(seed=1, **conditions)
                seconds.append(time.perf_counter() - began)
        made.append(Compiled(variant.name, worst, statistics.median(seconds) * 1e3))
    return made


def build_ahead(path: Path, profile: TargetProfile, folder: Path, progress: Progress | None = None) -> list[Path]:
    """Build the engines of a bundle for the GPUs of a profile and write each, with its report, into a folder: NAME.VARIANT.SMxx.engine.

    Needs TensorRT-RTX and no GPU. Raises RuntimeFault (BAD_ARGUMENT) for other engines, BuildError.
    """
    if profile.engine != "tensorrt-rtx" or profile.compute_capability is None:
        message = f"{profile.name}: only engines of tensorrt-rtx can be built ahead of time; those of {profile.engine} are built on the device"
        raise RuntimeFault(message, Status.BAD_ARGUMENT)
    bundle, written = open_bundle(path), list[Path]()
    networks = [(v, *network) for v in _variants(bundle, profile) for network in _networks(bundle, v)]
    folder.mkdir(parents=True, exist_ok=True)
    for i, (variant, name, model, signature) in enumerate(networks):
        if progress is not None:
            progress(f"building {name}, {variant.name}", i, len(networks))
        options = engine_options(signature, profile.engine, profile.compute_capability)
        engine = build_engine(model, options, where=f"{name}, variant {variant.name}")
        target = folder / f"{name}.{variant.name}.{profile.compute_capability}.engine"
        write_atomically(target, engine.data)
        report = engine.report.to_json() | _hashes(model, engine.data)
        write_atomically(target.with_suffix(".json"), json.dumps(report, indent=1).encode())
        written.append(target)
    return written


def _hashes(model: bytes, engine: bytes) -> dict[str, str]:
    return {"model_sha256": hashlib.sha256(model).hexdigest(), "engine_sha256": hashlib.sha256(engine).hexdigest()}


def take_engines(path: Path, folder: Path, cache: EngineCache | None = None, gpu: str | None = None) -> list[Path]:
    """Put engines that `build_ahead` wrote into this device's own cache, so that it does not build them: those of this bundle's networks, this
    version of TensorRT-RTX and this GPU. An engine is native code: whoever calls this trusts the folder.

    gpu: as `gpu_name` calls it; None asks the device. Raises RuntimeFault: no GPU (PROVIDER_MISSING), nothing that fits (NO_VARIANT).
    """
    bundle, gpu, taken = open_bundle(path), gpu or gpu_name(), list[Path]()
    cache = cache or EngineCache(engine_folder())
    capability = gpu.rpartition(" ")[2]
    for variant in _variants(bundle, None):
        for name, model, signature in _networks(bundle, variant):
            source = folder / f"{name}.{variant.name}.{capability}.engine"
            if variant.engine != "tensorrt-rtx" or not source.is_file() or not source.with_suffix(".json").is_file():
                continue
            report, data = json.loads(source.with_suffix(".json").read_text()), source.read_bytes()
            expected = _hashes(model, data) | {"version": version(variant.engine)}
            differing = [key for key, value in expected.items() if report.get(key) != value]
            if differing:
                logger.warning("%s: not taken, its %s differs from what is needed here", source, " and ".join(differing))
                continue
            cache.store(engine_of(model, signature, variant.engine, gpu)[0], data)
            taken.append(source)
    if not taken:
        raise RuntimeFault(f"{folder}: no engine for {capability} of this bundle's networks and this version of TensorRT-RTX", Status.NO_VARIANT)
    return taken


def _networks(bundle: Bundle, variant: Variant) -> Sequence[tuple[str, bytes, Signature]]:
    """Every network of a variant as (name, ONNX bytes, signature): its components and its fused programs."""
    found = [(name, network_of(bundle, variant, name), bundle.manifest.components[name]) for name in variant.components]
    found += [(f"{f.program}.x{f.batch}", fused_network_of(bundle, variant, f), fused_signature(bundle, f)) for f in variant.fused]
    return [(name, model.SerializeToString(deterministic=True), signature) for name, model, signature in found]
