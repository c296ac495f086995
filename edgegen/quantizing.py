"""Quantizing a float network for ONNX Runtime: weights rounded with the second moments of what their layers read, activations by ranges, and layers
put back to float by their effect on the final samples.

In: a float ONNX model, a calibration record and the calibration set's inputs. Out: networks for variants, and what became of each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.calibration import Batch, with_outputs
from edgegen.errors import BuildError, CalibrationError
from edgegen.quantize.hessian import HessianSum, rows_of
from edgegen.quantize.keeping import RULES, kept_by_rule
from edgegen.quantize.ranges import Ranges, choose_ranges
from edgegen.quantize.record import Record
from edgegen.quantize.rounding import Codes, adaround, gptq, nearest
from edgegen.quantize.scheme import Scheme
from edgegen.quantize.smoothing import best_alpha, factors, reading_weights, smooth
from edgegen.recipe import Quantization
from edgegen.spec import Signature
from edgegen.targets.onnxruntime import OrtComponent
from edgegen.targets.onnxruntime.lowering import finish
from edgegen.targets.onnxruntime.qdq import Integers, Placement, plan, quantize, watched
from edgegen.targets.placement import OPERATORS, place

if TYPE_CHECKING:
    import onnx

__all__ = ["HESSIAN_BYTES", "HESSIAN_ROWS", "Layer", "Network", "Quantizer", "hessians", "round_weight", "smoothed"]

HESSIAN_ROWS = 1 << 14
"""Rows of a layer's input that its Hessian is made from, drawn evenly over the calibration set: ten times the width of a large layer."""
HESSIAN_BYTES = 256_000_000
"""Hessians that are held at once; a network with more of them takes several passes over the calibration set."""
Array = npt.NDArray[Any]


def _hessian_bytes(node: Any, shape: Sequence[int]) -> int:
    groups = next((a.i for a in node.attribute if a.name == "group"), 1) if node.op_type == "Conv" else 1
    width = int(np.prod(shape[1:])) if node.op_type == "Conv" else max(shape)
    return 8 * groups * width * width


def hessians(
    model: onnx.ModelProto, component: str, signature: Signature, nodes: Sequence[int], batches: Callable[[], Iterator[Batch]], *,
    rows: int = HESSIAN_ROWS, seed: int = 0,
) -> Iterator[tuple[int, Array]]:  # fmt: skip
    """(a node's index, the mean x x^T of the vectors that its weight multiplies) for each of `nodes`, over the calibration set.

    batches: gives the set anew at each call. Raises CalibrationError: no batches, values that are not finite.
    """
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    chunk: list[int] = []
    held = 0
    for i in nodes:
        size = _hessian_bytes(model.graph.node[i], shapes[model.graph.node[i].input[1]])
        if chunk and held + size > HESSIAN_BYTES:
            yield from _pass(model, component, signature, chunk, shapes, batches, rows, seed)
            chunk, held = [], 0
        chunk.append(i)
        held += size
    if chunk:
        yield from _pass(model, component, signature, chunk, shapes, batches, rows, seed)


def _pass(
    model: onnx.ModelProto, component: str, signature: Signature, nodes: Sequence[int], shapes: Mapping[str, tuple[int, ...]],
    batches: Callable[[], Iterator[Batch]], rows: int, seed: int,
) -> Iterator[tuple[int, Array]]:  # fmt: skip
    """One pass over the set for the Hessians of some nodes."""
    count = sum(1 for batch in batches() if batch.component == component)
    limit = max(1, -(-rows // max(count, 1)))
    sums = {i: HessianSum() for i in nodes}
    rng = np.random.default_rng(seed)
    tensors = list(dict.fromkeys(model.graph.node[i].input[0] for i in nodes))
    with OrtComponent(component, with_outputs(model, tensors), signature, threads=1) as network:
        for batch in batches():
            if batch.component != component:
                continue
            values = batch.feeds | network.run(batch.feeds)
            for i in nodes:
                node = model.graph.node[i]
                sums[i].add(rows_of(node, values[node.input[0]], shapes[node.input[1]], limit, rng))
    for i in nodes:
        if not sums[i].count:
            raise CalibrationError("the calibration set gave no batches")
        yield i, sums.pop(i).mean


def round_weight(weight: Array, axis: int, hessian: Array | None, bits: int, block: int, method: str) -> Codes:
    """A weight's codes by `method`: nearest, gptq or adaround; the last two need the Hessian of its layer."""
    if method == "nearest" or hessian is None:
        return nearest(weight, axis, bits, block, clip="absmax" if bits == 8 else "mse")
    return (gptq if method == "gptq" else adaround)(weight, axis, hessian, bits, block)


def smoothed(model: onnx.ModelProto, record: Record, method: str) -> onnx.ModelProto:
    """The model with outliers of recorded tensors' channels moved into the weights that read them, where that costs no operator.

    method: "smoothquant", with the best alpha for each tensor, or "balance" (edgegen/quantize/smoothing.py).
    """
    chosen = {}
    for tensor, weights in reading_weights(model).items():
        if tensor in record.tensors and record[tensor].channels.shape[1] == len(weights[0]):
            channels = record[tensor].channels
            chosen[tensor] = factors(channels, weights, method, best_alpha(channels, weights) if method == "smoothquant" else 0.5)
    _, taken = smooth(model, chosen)
    return smooth(model, {tensor: values for tensor, values in chosen.items() if taken[tensor]})[0]


@dataclass(frozen=True, slots=True)
class Layer:
    """What became of a node with a constant weight. weight_bits: as stored, 16 and 32 are floats. activation_bits: 8, or 0 where it is computed in
    float. why: it is kept in float; empty if it is not.
    """

    node: str
    operator: str
    weight: str
    elements: int
    weight_bits: int
    activation_bits: int
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Network:
    """A quantized network. ranges: of its activations, by time where they have them, used by `tensors`. planned: names of the nodes in integers."""

    model: onnx.ModelProto
    ranges: Ranges
    tensors: tuple[str, ...]
    planned: tuple[str, ...]
    layers: tuple[Layer, ...]


_STORED = 256
"""Constants of fewer elements stay as they are."""


@dataclass(slots=True)
class Quantizer:
    """Makes networks of one float model: rounds each weight once, whatever is asked for.

    x, output: the names of the noisy input and the prediction. batches: gives the calibration set's inputs anew at each call.
    """

    model: onnx.ModelProto
    component: str
    signature: Signature
    x: str
    output: str
    options: Quantization
    record: Record
    batches: Callable[[], Iterator[Batch]]
    integers: Integers = "uint8"
    kept: dict[str, str] = field(init=False)
    layers: tuple[Placement, ...] = field(init=False)
    """Every node that could be quantized."""
    _codes: dict[tuple[int, int, str], Codes] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        options = self.options
        self.kept = kept_by_rule(self.model, options.rules, self.x, self.output)
        self.layers = place(self.model, OPERATORS, (), outputs=("Conv",))
        chosen = {p.node for p in plan(self.model, options.operators, options.keep)}
        for p in self.layers:
            if p.node not in chosen:
                operator = self.model.graph.node[p.node].op_type
                self.kept.setdefault(p.weight, "named in quantization.keep" if operator in options.operators else f"{operator} is not asked for")

    @property
    def placements(self) -> tuple[Placement, ...]:
        """The nodes to quantize."""
        return tuple(p for p in self.layers if p.weight not in self.kept)

    def node(self, placement: Placement) -> onnx.NodeProto:
        """The node of a placement."""
        node: onnx.NodeProto = self.model.graph.node[placement.node]
        return node

    def arrays(self) -> dict[str, Array]:
        """The float32 constants."""
        from onnx import numpy_helper

        return {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer if t.data_type == 1}

    def round(self, wanted: Sequence[tuple[int, Placement]]) -> None:
        """Round weights to so many bits, those of 4 in blocks: those that were not yet, in one pass over the calibration set for all."""
        self._round({(bits, self.options.block if bits == 4 else 0, p.weight): p for bits, p in wanted})

    def _round(self, wanted: Mapping[tuple[int, int, str], Placement]) -> None:
        missing = {key: p for key, p in wanted.items() if key not in self._codes}
        if not missing:
            return
        arrays, method = self.arrays(), self.options.weights
        nodes = sorted({p.node for p in missing.values()})
        second: Iterator[tuple[int, Array | None]] = ((i, None) for i in nodes)
        if method != "nearest":
            second = hessians(self.model, self.component, self.signature, nodes, self.batches)
        for i, hessian in second:
            for (bits, block, weight), p in missing.items():
                if p.node == i:
                    self._codes[bits, block, weight] = round_weight(arrays[weight], p.axis, hessian, bits, block, method)

    def codes(self, bits: int, placements: Sequence[Placement]) -> dict[str, Codes]:
        """The rounded weights, by name."""
        self.round([(bits, p) for p in placements])
        return {p.weight: self._codes[bits, self.options.block if bits == 4 else 0, p.weight] for p in placements}

    def rounded_as(self, wanted: Mapping[str, tuple[int, int, int]]) -> dict[str, Codes]:
        """Weights rounded as a target wants them: weight -> (axis, bits, block). Those that no layer reads along that axis are left out."""
        by_weight = {p.weight: p for p in self.layers}
        fitting = {name: rounding for name, rounding in wanted.items() if name in by_weight and by_weight[name].axis == rounding[0]}
        self._round({(bits, block, name): by_weight[name] for name, (_, bits, block) in fitting.items()})
        return {name: self._codes[bits, block, name] for name, (_, bits, block) in fitting.items()}

    def ranges(self, symmetric: bool | None = None, drift: float = 1.0) -> Ranges:
        """The ranges of activations that the options ask for. drift: the least that a target wants for ranges by time."""
        options = self.options
        estimator = options.ranges if options.ranges != "auto" else "mse" if options.times == "shared" else "minmax"
        return choose_ranges(
            self.record, estimator, options.times, symmetric=self.integers == "int8" if symmetric is None else symmetric, groups=options.groups,
            drift=max(options.drift, drift),
        )  # fmt: skip

    def network(self, scheme: Scheme, floats: Mapping[str, str] | None = None) -> Network:
        """The network of a scheme. floats: further weights that stay in float -> why.

        Raises BuildError if nothing is left to quantize.
        """
        kept = self.kept | dict(floats or {})
        placements = [p for p in self.layers if p.weight not in kept]
        if scheme.weight_bits and not placements:
            operators = ", ".join(self.options.operators)
            raise BuildError(f"nothing to quantize: the network has no {operators} with constant weights that is not kept in float")
        arrays = self.arrays()
        stored: dict[str, Codes | str] = {name: scheme.storage or "float16" for name, a in arrays.items() if a.size >= _STORED}
        if scheme.storage and not stored:
            raise BuildError(f"nothing to store as {scheme.storage}: no constant of the network has {_STORED} elements")
        codes: dict[str, Codes] = {}
        if scheme.weight_bits:
            timed = [p for p in self.layers if kept.get(p.weight) == RULES["time"] and arrays[p.weight].size >= _STORED]
            self.round([(scheme.weight_bits, p) for p in placements] + [(scheme.kept_bits, p) for p in timed])
            codes = self.codes(scheme.weight_bits, placements)
            stored = {name: how for name, how in stored.items() if name not in codes}
            stored.update(self.codes(scheme.kept_bits, timed))
        integer = placements if scheme.activation_bits else []
        if not scheme.activation_bits:
            stored.update(codes)
        for name in [name for name, how in stored.items() if how == "float16" and float(np.abs(arrays[name]).max()) > np.finfo(np.float16).max]:
            del stored[name]
        ranges = self.ranges() if integer else Ranges({})
        model = finish(quantize(self.model, integer, ranges, codes=codes, stored=stored, integers=self.integers))
        rows = []
        for p in self.layers:
            how, node, quantized = stored.get(p.weight), self.node(p), p.weight in codes
            bits = codes[p.weight].bits if quantized else how.bits if isinstance(how, Codes) else {"float8": 8, None: 32}.get(how, 16)
            activation = scheme.activation_bits if quantized else 0
            why = "" if quantized else kept.get(p.weight, "")
            rows.append(Layer(node.name, node.op_type, p.weight, int(arrays[p.weight].size), bits, activation, why))
        return Network(model, ranges, watched(self.model, integer), tuple(self.node(p).name for p in integer), tuple(rows))
