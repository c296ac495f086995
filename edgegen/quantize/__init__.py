"""Integer scales from ranges and weights. Knows no target: where quantization goes is the target's business."""

from edgegen.quantize.hessian import HessianSum, rows_of
from edgegen.quantize.ranges import Ranges, choose_ranges
from edgegen.quantize.record import Record, Recorder, TensorRecord
from edgegen.quantize.rounding import Codes, adaround, gptq, nearest, weighted_error
from edgegen.quantize.scales import affine_uint8, bias_int32, per_channel_int8

__all__ = [
    "Codes",
    "HessianSum",
    "Ranges",
    "Record",
    "Recorder",
    "TensorRecord",
    "adaround",
    "affine_uint8",
    "bias_int32",
    "choose_ranges",
    "gptq",
    "nearest",
    "per_channel_int8",
    "rows_of",
    "weighted_error",
]
