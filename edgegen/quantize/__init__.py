"""Integer scales from ranges and weights. Knows no target: where quantization goes is the target's business."""

from edgegen.quantize.scales import affine_uint8, bias_int32, per_channel_int8

__all__ = ["affine_uint8", "bias_int32", "per_channel_int8"]
