"""TensorRT and TensorRT-RTX: what they refuse, where QDQ goes, precision, building (in a child process), the engine cache, and running."""

from edgegen.targets.tensorrt.build import BuildOptions, Engine, build_engine
from edgegen.targets.tensorrt.cache import EngineCache, engine_key
from edgegen.targets.tensorrt.check import check_for_tensorrt, slow_spots
from edgegen.targets.tensorrt.precision import lower_precision
from edgegen.targets.tensorrt.report import Layer, Report, Tensor

__all__ = [
    "BuildOptions", "Engine", "EngineCache", "Layer", "Report", "Tensor", "build_engine", "check_for_tensorrt", "engine_key", "lower_precision",
    "slow_spots",
]  # fmt: skip
