"""Integer scales from ranges and weights. Knows no target: where quantization goes is the target's business."""

from edgegen.quantize.ranges import Ranges, choose_ranges
from edgegen.quantize.record import Record, Recorder, TensorRecord
from edgegen.quantize.scales import affine_uint8, bias_int32, per_channel_int8

__all__ = ["Ranges", "Record", "Recorder", "TensorRecord", "affine_uint8", "bias_int32", "choose_ranges", "per_channel_int8"]
