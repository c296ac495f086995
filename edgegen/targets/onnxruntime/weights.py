"""Where a network's constants lie in a bundle: small ones inside the ONNX model, large ones in a member of their own that engines read in place.

A large constant keeps its name, dtype and shape in the model; its bytes are at a multiple of 64 in the weights (FORMAT.md, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

__all__ = ["ALIGNMENT", "LARGE", "constants", "join_weights", "make_raw", "outside", "split_weights"]

LARGE = 1024
"""Constants of at least so many bytes are moved out. Engines read the small ones (shapes, axes) before they run anything."""
ALIGNMENT = 64
EXTERNAL = 1
"""TensorProto.DataLocation.EXTERNAL"""


def constants(model: onnx.ModelProto) -> Iterator[Any]:
    """Every constant of the graph: initializers, and tensors that are attributes of nodes."""
    yield from model.graph.initializer
    for node in model.graph.node:
        yield from (a.t for a in node.attribute if a.HasField("t"))


def make_raw(model: onnx.ModelProto) -> None:
    """Rewrite constants that are stored as lists of numbers as raw little-endian bytes, in place."""
    from onnx import numpy_helper

    for tensor in constants(model):
        if not tensor.HasField("raw_data") and tensor.data_location != EXTERNAL:
            name, doc = tensor.name, tensor.doc_string
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), name))
            if doc:
                tensor.doc_string = doc


def split_weights(model: onnx.ModelProto, member: str) -> tuple[bytes, bytes]:
    """The model with its large initializers moved out, and their bytes (empty if there were none). member: the name they will have."""
    import onnx

    light = onnx.ModelProto()
    light.CopyFrom(model)
    weights = bytearray()
    for tensor in light.graph.initializer:
        data = tensor.raw_data
        if len(data) < LARGE:
            continue
        weights += bytes(-len(weights) % ALIGNMENT)
        tensor.ClearField("raw_data")
        tensor.data_location = EXTERNAL
        for key, value in (("location", member), ("offset", str(len(weights))), ("length", str(len(data)))):
            tensor.external_data.add(key=key, value=value)
        weights += data
    return light.SerializeToString(deterministic=True), bytes(weights)


def _place(tensor: Any) -> tuple[int, int]:
    """Where a moved constant lies: (offset, length)."""
    entries = {e.key: e.value for e in tensor.external_data}
    return int(entries["offset"]), int(entries["length"])


def join_weights(model: onnx.ModelProto, weights: bytes) -> None:
    """Put the constants of a checked model back inside, in place: afterwards it is an ONNX model like any other."""
    for tensor in model.graph.initializer:
        if tensor.data_location == EXTERNAL:
            offset, length = _place(tensor)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = weights[offset : offset + length]


def outside(model: onnx.ModelProto, weights: bytes) -> dict[str, npt.NDArray[Any]]:
    """The moved constants of a checked model as views of `weights`, by name."""
    from onnx import helper

    views = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == EXTERNAL:
            offset, length = _place(tensor)
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            views[tensor.name] = np.frombuffer(weights, dtype, length // dtype.itemsize, offset).reshape(tuple(tensor.dims))
    return views
