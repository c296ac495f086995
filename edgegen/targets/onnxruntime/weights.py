"""Where a network's constants lie in a bundle: small ones inside the ONNX model, large ones in a member of their own that engines read in place.

A large constant keeps its name, dtype and shape in the model; its bytes are at a multiple of 64 in the weights (FORMAT.md, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

__all__ = ["ALIGNMENT", "LARGE", "Place", "constants", "join_weights", "make_raw", "outside", "place_weights", "places_of", "split_weights"]

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


Place = tuple[str, int, int]
"""Where a moved constant lies: (member, offset, length)."""


def split_weights(model: onnx.ModelProto, member: str) -> tuple[bytes, bytes]:
    """The model with its large initializers moved out, and their bytes (empty if there were none). member: the name they will have."""
    weights, places = bytearray(), dict[str, Place]()
    for tensor in model.graph.initializer:
        data = tensor.raw_data
        if len(data) >= LARGE:
            weights += bytes(-len(weights) % ALIGNMENT)
            places[tensor.name] = member, len(weights), len(data)
            weights += data
    return place_weights(model, places), bytes(weights)


def place_weights(model: onnx.ModelProto, places: Mapping[str, Place]) -> bytes:
    """The model with the initializers that `places` names, by their bytes' places in members, moved out."""
    import onnx

    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if tensor.name in places:
            tensor.ClearField("raw_data")
            tensor.data_location = EXTERNAL
            for key, value in zip(("location", "offset", "length"), places[tensor.name], strict=True):
                tensor.external_data.add(key=key, value=str(value))
    return bytes(light.SerializeToString(deterministic=True))


def places_of(model: onnx.ModelProto) -> dict[str, Place]:
    """Where the moved constants of a model lie, by name."""
    return {t.name: _place(t) for t in model.graph.initializer if t.data_location == EXTERNAL}


def _place(tensor: Any) -> Place:
    entries = {e.key: e.value for e in tensor.external_data}
    return entries["location"], int(entries["offset"]), int(entries["length"])


def join_weights(model: onnx.ModelProto, weights: Mapping[str, bytes]) -> None:
    """Put the constants of a checked model back inside, in place: afterwards it is an ONNX model like any other. weights: by member."""
    for tensor in model.graph.initializer:
        if tensor.data_location == EXTERNAL:
            member, offset, length = _place(tensor)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = weights[member][offset : offset + length]


def outside(model: onnx.ModelProto, weights: Mapping[str, bytes]) -> dict[str, npt.NDArray[Any]]:
    """The moved constants of a checked model as views of `weights` (by member), by name."""
    from onnx import helper

    views = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == EXTERNAL:
            member, offset, length = _place(tensor)
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            views[tensor.name] = np.frombuffer(weights[member], dtype, length // dtype.itemsize, offset).reshape(tuple(tensor.dims))
    return views
