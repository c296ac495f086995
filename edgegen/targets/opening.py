"""A variant's networks open in its engine."""

from __future__ import annotations

from edgegen.bundle import Bundle, FusedEntry, Variant
from edgegen.errors import BuildError, RuntimeFault, Status
from edgegen.spec import Signature
from edgegen.targets import onnxruntime
from edgegen.targets.component import Component

__all__ = ["ENGINES", "open_component", "open_fused"]

ENGINES = ("onnxruntime", "tensorrt", "tensorrt-rtx")
"""Engines that the Python runtime runs; the others of a bundle are passed over."""


def open_component(bundle: Bundle, variant: Variant, component: str, *, threads: int = 0) -> Component:
    """A component of a bundle's variant. Raises BundleError (INCONSISTENT), or RuntimeFault if this device cannot run it."""
    if variant.engine == "onnxruntime":
        return onnxruntime.open_component(bundle, variant, component, threads=threads)
    model = onnxruntime.network_of(bundle, variant, component)
    return _tensorrt(
        component, model.SerializeToString(deterministic=True), bundle.manifest.components[component], variant, f"component {component!r}"
    )


def open_fused(bundle: Bundle, variant: Variant, entry: FusedEntry, *, threads: int = 0) -> Component:
    """A fused program of a bundle's variant; as `open_component`."""
    if variant.engine == "onnxruntime":
        return onnxruntime.open_fused(bundle, variant, entry, threads=threads)
    model, signature = onnxruntime.fused_network_of(bundle, variant, entry), onnxruntime.fused_signature(bundle, entry)
    return _tensorrt(entry.program, model.SerializeToString(deterministic=True), signature, variant, f"fused program {entry.program!r}")


def _tensorrt(name: str, model: bytes, signature: Signature, variant: Variant, what: str) -> Component:
    from edgegen.targets.tensorrt.component import TensorrtComponent

    if variant.engine not in ENGINES:
        raise RuntimeFault(f"variant {variant.name!r} is for {variant.engine}, which this runtime cannot run", Status.NO_VARIANT)
    try:
        return TensorrtComponent(name, model, signature, variant.engine, what=what)
    except BuildError as e:
        raise RuntimeFault(str(e), e.code) from e
