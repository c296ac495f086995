"""A bundle's networks as TensorRT takes them, one ONNX file each with its weights inside: `python networks.py FILE.edgegen DIR`.

Writes DIR/NAME.COMPONENT.onnx for float32 and float16 (of the float32 variant), for int8 (of the same, with the ranges that the bundle's int8
variant was calibrated to) where there is one, and for each variant whose engine is TensorRT, under its own name. Prints the names. The same bytes
as edgegen's own TensorRT engines are built from, so that both share the engine cache.
"""

from __future__ import annotations

import glob
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.bundle import Bundle, Variant, open_bundle
from edgegen.errors import BuildError, EdgegenError
from edgegen.quantize import Ranges
from edgegen.targets.onnxruntime import network_of
from edgegen.targets.tensorrt.networks import network_for
from edgegen.targets.tensorrt.qdq import OPERATORS, plan

if TYPE_CHECKING:
    import onnx

__all__ = ["main", "networks", "ranges_of"]


def ranges_of(model: onnx.ModelProto) -> Ranges:
    """What each quantized activation of a network for ONNX Runtime covers: uint8 codes 0 to 255 of its QuantizeLinear nodes."""
    from onnx import numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    rows: dict[str, Any] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and all(name in constants for name in node.input[1:3]):
            scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
            if scale.size == 1:
                low, high = (0 - int(zero)) * float(scale), (255 - int(zero)) * float(scale)
                rows[node.input[0].removesuffix("_float")] = ((0.0, low, high),)  # "_float": a Conv's output before its Q
    return Ranges(rows)


def _int8(model: onnx.ModelProto, quantized: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in int8 where `quantized` is."""
    ranges = ranges_of(quantized)
    placements = plan(model, tuple(OPERATORS), ())
    keep = [glob.escape(p.weight) for p in placements if model.graph.node[p.node].input[0] not in ranges.rows]
    return network_for(model, "int8", ranges, tuple(OPERATORS), keep)


def _find(bundle: Bundle, name: str) -> Variant | None:
    return next((v for v in bundle.manifest.variants if v.name == name and v.engine == "onnxruntime"), None)


def networks(bundle: Bundle, component: str) -> dict[str, onnx.ModelProto]:
    """Name -> network of a component. Raises EdgegenError if the bundle has neither a float32 variant nor one for TensorRT."""
    made = {v.name: network_of(bundle, v, component) for v in bundle.manifest.variants if v.engine == "tensorrt"}
    plain, quantized = _find(bundle, "float32"), _find(bundle, "int8")
    if plain is not None:
        model = network_of(bundle, plain, component)
        made.setdefault("float32", model)
        if "float16" not in made:
            made["float16"] = network_for(model, "float16")
        if quantized is not None and "int8" not in made:
            made["int8"] = _int8(model, network_of(bundle, quantized, component))
    if not made:
        raise BuildError(f"{bundle.origin}: no variant for TensorRT and none called float32 to make networks of")
    return made


def main(arguments: list[str]) -> int:
    """Write the files and print the networks' names."""
    if len(arguments) != 2:
        print("usage: networks.py FILE.edgegen DIR", file=sys.stderr)  # noqa: T201
        return 2
    bundle, folder = open_bundle(arguments[0]), Path(arguments[1])
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, None] = {}
    for component in bundle.manifest.components:
        for name, model in networks(bundle, component).items():
            (folder / f"{name}.{component}.onnx").write_bytes(model.SerializeToString(deterministic=True))
            names[name] = None
    print("\n".join(names))  # noqa: T201
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EdgegenError as error:
        print(f"networks.py: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
