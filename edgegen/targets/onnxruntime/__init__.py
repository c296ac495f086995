"""ONNX Runtime: the engine for CPUs, and the reference that other engines are compared with."""

from edgegen.targets.onnxruntime.check import check_model, parse_model
from edgegen.targets.onnxruntime.component import OrtComponent, onnxruntime_version, open_engine

__all__ = ["OrtComponent", "check_model", "onnxruntime_version", "open_engine", "parse_model"]
