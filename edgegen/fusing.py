"""A bundle's program and its networks as one: an ONNX file that any ONNX Runtime runs, in any language, without edgegen; or a part of a variant."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgegen.bundle import Bundle, FusedEntry, Variant
from edgegen.errors import GateError, RuntimeFault, Status, nearest
from edgegen.program import initial_state, normals
from edgegen.program.fuse import Timed, fuse
from edgegen.quality import distance
from edgegen.spec import default_conditions
from edgegen.targets.onnxruntime import network_of, open_engine, parse_model, place_weights, places_of
from edgegen.targets.onnxruntime.scales import TimedScales
from edgegen.targets.onnxruntime.weights import Place

if TYPE_CHECKING:
    import onnx

__all__ = ["fused_onnx", "timed_scales", "with_fused"]


def fused_onnx(bundle: Bundle, program: str | None = None, *, variant: str | None = None, batch: int = 1, loop: bool = False) -> onnx.ModelProto:
    """One graph of a program, its weights inside; inputs and outputs as FORMAT.md, section 3.2, says.

    program, variant: by name; None takes the first. loop: see `edgegen.program.fuse.fuse`. The model's metadata say what it was made from.
    Raises RuntimeFault for an unknown name, ProgramError for a program that cannot be fused.
    """
    manifest, variants = bundle.manifest, {v.name: v for v in bundle.manifest.variants}
    name, chosen = program or manifest.programs[0].name, variant or next(iter(variants))
    if name not in bundle.programs:
        raise RuntimeFault(f"no program {name!r} in this bundle: {nearest(name, bundle.programs)}", Status.UNKNOWN_NAME)
    if chosen not in variants:
        raise RuntimeFault(f"no variant {chosen!r} in this bundle: {nearest(chosen, variants)}", Status.NO_VARIANT)
    networks = {component: network_of(bundle, variants[chosen], component) for component in variants[chosen].components}
    scales = {} if loop else timed_scales(bundle, variants[chosen], name)
    constants = {component: Timed(s.input, s.constants) for component, s in scales.items()}
    straight = bundle.programs[name]
    for component, own in scales.items():
        straight = own.corrected(straight, component)
    model = fuse(straight, networks, manifest.inputs(bundle.programs[name]), batch, loop=loop, timed=constants).model
    for key, value in (("edgegen.model", manifest.name), ("edgegen.program", name), ("edgegen.variant", chosen)):
        model.metadata_props.add(key=key, value=value)
    scale = next((i.scale for i in bundle.programs[name].inputs if i.kind == "noise"), 1.0)
    model.metadata_props.add(key="edgegen.noise_scale", value=repr(scale))
    return model


def timed_scales(bundle: Bundle, variant: Variant, program: str) -> dict[str, TimedScales]:
    """Components of a variant whose activations have scales by network time, if they have those of the program -> them.

    They are in the document `scales`, by the networks' members. A program of other times runs with the scales that the network has for all times.
    """
    if "scales" not in bundle.manifest.documents:
        return {}
    held = bundle.document("scales")
    found = {component: TimedScales.from_json(held[member]) for component, member in variant.components.items() if member in held}
    return {component: scales for component, scales in found.items() if scales.covers(bundle.programs[program], component)}


def with_fused(bundle: Bundle, variant: Variant) -> tuple[Variant, dict[str, bytes]]:
    """The variant with the default program fused for one sample, and the members to add: a network whose large constants are the components'.

    Raises ProgramError if the program cannot be fused, RuntimeFault if the engine does not take it, GateError if its sample is not within the
    tolerance of the variant's golden vector.
    """
    name = bundle.manifest.programs[0].name
    model = fused_onnx(bundle, name, variant=variant.name)
    _check_golden(bundle, variant, name, model)
    places: dict[str, Place] = {}
    for component, member in variant.components.items():
        light = parse_model(bundle.member(member), member)
        places |= {f"{component}/{weight}": place for weight, place in places_of(light).items()}
    member = f"fused.0.{variant.name}.onnx".lower()
    return replace(variant, fused=(FusedEntry(name, 1, member),)), {member: place_weights(model, places)}


def _check_golden(bundle: Bundle, variant: Variant, name: str, model: onnx.ModelProto) -> None:
    golden = next((g for g in variant.golden if g.program == name), None)
    if golden is None:
        return
    sample = bundle.manifest.sample
    engine = open_engine(model.SerializeToString(), f"fused program {name!r}", 1, providers=variant.providers)
    feeds = default_conditions(bundle.manifest.conditions) | initial_state(bundle.programs[name], normals(0, 0, (1, *sample.shape)))
    inputs = {
        i.name: feeds[i.name] if i.name in feeds else normals(0, int(i.name.removeprefix("draw.")), tuple(i.shape)) for i in engine.get_inputs()
    }
    (found,) = engine.run(["out.sample"], inputs)
    expected = np.frombuffer(bundle.member(golden.member), "<f4").reshape(found.shape)
    error = distance(expected, found, sample.high - sample.low).rmse
    if not error <= golden.tolerance:
        raise GateError(f"fused, {name} differs from its steps by {error:.2e} RMSE; {golden.tolerance:.0e} is allowed")
