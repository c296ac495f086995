"""Scales that know the time, in a network of one step: which tensors can have them.

A TensorRT scale is a constant. So x is divided by the scale of its row's time, quantized with scale 1, and the product of the codes multiplied
by that scale again, before the bias: TensorRT-RTX does both in the kernels that are there anyway. The time is the network's own input, of one
time per row of the batch; a row gets the scale of the nearest time that was calibrated. Never an index of steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgegen.errors import BuildError, Status, nearest
from edgegen.quantize import Ranges

if TYPE_CHECKING:
    import onnx

__all__ = ["scaled_by_time", "time_type"]

_FLOAT = 1
_TYPES = (_FLOAT, 6, 7)
"""Types of a time: float32, int32, int64."""
_BATCHES = (3, 5)
"""Two sizes that a batch is given: a tensor whose first axis has both has the batch there, and no constant that happens to be equal."""


def time_type(model: onnx.ModelProto, time: str) -> Any:
    """The ONNX tensor type of the network's time input. Raises BuildError: no such input, or one that is not [batch] of float32 or integers."""
    inputs = {value.name: value for value in model.graph.input}
    if time not in inputs:
        raise BuildError(f"the network has no time input {time!r}: {nearest(time, inputs)}", Status.UNKNOWN_NAME)
    kind = inputs[time].type.tensor_type
    if kind.elem_type not in _TYPES or len(kind.shape.dim) != 1:
        found = [d.dim_param or d.dim_value for d in kind.shape.dim]
        message = f"the time input {time!r} is of ONNX type {kind.elem_type} and shape {found}, expected float32, int32 or int64 of shape [batch]"
        raise BuildError(message, Status.BAD_SHAPE)
    return kind


def _shapes(model: onnx.ModelProto, time: str, batch: int) -> dict[str, list[int]]:
    """The shape of every tensor that is known (-1: any size) when `batch` times come in."""
    import onnx

    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    del sized.graph.value_info[:]
    sizes = {value.name: value.type.tensor_type.shape.dim for value in sized.graph.input}
    rows = (sizes[time][0].dim_param, sizes[time][0].dim_value)
    for dims in sizes.values():
        if dims and (dims[0].dim_param, dims[0].dim_value) == rows:
            dims[0].dim_value = batch
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")
    known = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    shapes = {}
    for value in (*known.input, *known.value_info):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
    return shapes


def scaled_by_time(model: onnx.ModelProto, tensors: Iterable[str], ranges: Ranges, time: str) -> dict[str, int]:
    """The tensors that get scales by time -> how many axes they have; others get one scale for all times.

    Those of several ranges whose first axis is the batch of the network's time input (of a network for one row alone: all of several ranges).
    tensors: as `watched` names them. Raises BuildError as `time_type` does.
    """
    rows = time_type(model, time).shape.dim[0]
    several = [name for name in tensors if len({row[1:] for row in ranges.rows.get(name, ())}) > 1]
    if rows.HasField("dim_value") and rows.dim_value == 1:
        shapes = _shapes(model, time, 1)
        return {name: len(shapes[name]) for name in several if shapes.get(name)}
    few, many = (_shapes(model, time, batch) for batch in _BATCHES)
    known = [name for name in several if few.get(name) and many.get(name)]
    return {name: len(few[name]) for name in known if (few[name][0], many[name][0]) == _BATCHES}
