"""A float32 network as TensorRT is given it: quantized by QDQ where the precision says so, everything else in float16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgegen.errors import BuildError, Status, nearest
from edgegen.quantize import Ranges
from edgegen.quantize.rounding import Codes
from edgegen.targets.tensorrt.precision import lower_precision
from edgegen.targets.tensorrt.qdq import OPERATORS, plan, quantize

if TYPE_CHECKING:
    import onnx

__all__ = ["PRECISIONS", "network_for"]

PRECISIONS = {"float32": None, "float16": None, "bfloat16": None, "int8": "int8", "float8": "fp8", "int4": "int4", "w4a8": "w4a8", "w8a16": "w8a16"}
"""A profile's precision -> what the emitter calls it; None: nothing is quantized."""


def network_for(
    model: onnx.ModelProto,
    precision: str,
    ranges: Ranges | None = None,
    operators: Sequence[str] = OPERATORS,
    keep: Sequence[str] = (),
    *,
    codes: Mapping[str, Codes] | None = None,
    time: str | None = None,
) -> onnx.ModelProto:
    """`model` in a precision. ranges: of the tensors that int8, float8 and w4a8 quantize. keep: patterns of names that stay float.

    codes: weights that are rounded already, by name, as `edgegen.targets.tensorrt.qdq.roundings` says. time: the network's time input, by
    which tensors of several ranges get their scales; None: one scale over all times.
    Raises BuildError: an unknown precision, nothing to quantize, codes that do not fit, weights that overflow float16; CalibrationError as
    `quantize` does.
    """
    if precision not in PRECISIONS:
        raise BuildError(f"no precision {precision!r}: {nearest(precision, PRECISIONS)}", Status.UNKNOWN_NAME)
    kind = PRECISIONS[precision]
    if kind is None:
        return model if precision == "float32" else lower_precision(model, precision)
    placements = plan(model, operators, keep, kind)
    if not placements:
        raise BuildError(f"nothing to quantize to {precision}: the network has no {', '.join(operators)} that takes it")
    return lower_precision(quantize(model, placements, ranges, kind, codes=codes, time=time), "float16")
