"""ONNX Runtime: the engine for CPUs, and the reference that other engines are compared with."""

from edgegen.targets.onnxruntime.check import check_model, parse_model
from edgegen.targets.onnxruntime.component import OrtComponent, network_of, onnxruntime_version, open_component, open_engine
from edgegen.targets.onnxruntime.weights import make_raw, split_weights

__all__ = [
    "OrtComponent", "check_model", "make_raw", "network_of", "onnxruntime_version", "open_component", "open_engine", "parse_model",
    "split_weights",
]  # fmt: skip
