"""Integer scales from ranges and weights. Knows no target: where quantization goes is the target's business."""

from edgegen.quantize.correction import Factors, corrected, fit_affine, fit_ptqd, ptqd_factors, reduced_noise
from edgegen.quantize.hessian import HessianSum, rows_of
from edgegen.quantize.ranges import Ranges, choose_ranges
from edgegen.quantize.record import Record, Recorder, TensorRecord
from edgegen.quantize.rounding import Codes, adaround, gptq, nearest, weighted_error
from edgegen.quantize.scales import affine_uint8, symmetric

__all__ = [
    "Codes",
    "Factors",
    "HessianSum",
    "Ranges",
    "Record",
    "Recorder",
    "TensorRecord",
    "adaround",
    "affine_uint8",
    "choose_ranges",
    "corrected",
    "fit_affine",
    "fit_ptqd",
    "gptq",
    "nearest",
    "ptqd_factors",
    "reduced_noise",
    "rows_of",
    "symmetric",
    "weighted_error",
]
