"""ONNX Runtime: the engine for CPUs, and the reference that other engines are compared with."""

from edgegen.targets.onnxruntime.check import check_model, parse_model
from edgegen.targets.onnxruntime.component import (
    OrtComponent,
    fused_network_of,
    fused_signature,
    network_of,
    onnxruntime_version,
    open_component,
    open_engine,
    open_fused,
)
from edgegen.targets.onnxruntime.weights import make_raw, place_weights, places_of, split_weights

__all__ = [
    "OrtComponent",
    "check_model",
    "fused_network_of",
    "fused_signature",
    "make_raw",
    "network_of",
    "onnxruntime_version",
    "open_component",
    "open_engine",
    "open_fused",
    "parse_model",
    "place_weights",
    "places_of",
    "split_weights",
]
