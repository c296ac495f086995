"""What an engine is made of: the builder's own table of layers, read from its log, so that no GPU is needed to see what it does.

Answers: are the convolutions int8? Are weights written out as floats in every run?
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgegen.errors import BuildError

__all__ = ["Layer", "Report", "Tensor", "layers_of"]

_QUANTIZED = ("Int8", "Int4", "FP8", "FP4", "UInt8")
_TYPES = {"FP32": "Float", "FP16": "Half", "BF16": "BFloat16", "INT8": "Int8", "INT4": "Int4", "INT32": "Int32", "INT64": "Int64", "BOOL": "Bool"}
_PRODUCTS = {"correlation": "Conv", "deconv": "ConvTranspose", "gemm": "MatMul", "convolution": "Conv"}
"""Layer type -> the ONNX operator that it computes."""
_TABLE = "Layers:\n"
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[^\]]*)\](?P<rest>.*?)(?= \}(?:, \{|$|\]))")
_NODES = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a layer reads or writes. dtype: as the builder calls it (Float, Half, BFloat16, Int8, Int4, FP8, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many values it holds; a dimension of any size counts as one."""
        count = 1
        for size in self.shape:
            count *= max(size, 1)
        return count


@dataclass(frozen=True, slots=True)
class Layer:
    """One kernel of an engine. kind: the builder's own word; nodes: the names of the ONNX nodes that it computes parts of."""

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]

    @property
    def product(self) -> str | None:
        """Conv, ConvTranspose or MatMul if this kernel sums products, else None."""
        if self.kind == "runtime_fusion" and re.search(r"Fc|Gemm|Bmm", self.name):
            return "MatMul"
        return _PRODUCTS.get(self.kind.lower().removeprefix("cask"))

    @property
    def weight(self) -> Tensor | None:
        """Its largest constant; or its second input, where weights come from another kernel."""
        large = max(self.constants, key=lambda t: t.elements, default=None)
        if len(self.inputs) > 1 and (large is None or large.elements <= self.inputs[1].elements):
            return self.inputs[1]
        return large

    @property
    def precision(self) -> str:
        """The type that a product is computed in: that of its activations."""
        tensors = self.inputs or self.constants or self.outputs
        return tensors[0].dtype if tensors else ""


def _balanced(line: str, key: str) -> str:
    """What stands between the brackets after `key`; names may hold brackets of their own."""
    start = line.find(f"{key}: [")
    if start < 0:
        return ""
    start += len(key) + 3
    depth = 1
    for i in range(start, len(line)):
        depth += (line[i] == "[") - (line[i] == "]")
        if depth == 0:
            return line[start:i]
    return line[start:]


def _tensors(line: str, key: str) -> tuple[Tensor, ...]:
    found = []
    for match in _TENSOR.finditer(_balanced(line, key).rstrip() + "]"):
        rest = match["rest"]
        direct = re.search(r"Datatype: (\w+)(?=,|$| )", rest)
        word = direct[1] if direct and "Format/Datatype" not in rest else next((t for t in _TYPES if t in rest.upper()), "")
        shape = tuple(int(size) for size in match["shape"].split(",") if size.strip().lstrip("-").isdigit())
        found.append(Tensor(match["name"], _TYPES.get(word.upper(), word), shape))
    return tuple(found)


def layers_of(messages: Sequence[str]) -> tuple[Layer, ...]:
    """The layers in a builder's messages (verbose, of profiling verbosity DETAILED); none if it printed no table."""
    layers = []
    for message in messages:
        if not message.startswith(_TABLE):
            continue
        for line in message[len(_TABLE) :].split("\n\nI/O Tensors:")[0].split("\n"):
            head = re.match(r"Name: (.*?), LayerType: ([^,]*),", line)
            if head:
                nodes = tuple(dict.fromkeys(_NODES.findall(line[line.rfind("Metadata:") :])))
                layers.append(Layer(head[1], head[2], _tensors(line, "Inputs"), _tensors(line, "Constants"), _tensors(line, "Outputs"), nodes))
    return tuple(layers)


@dataclass(frozen=True, slots=True)
class Report:
    """How an engine was made. seconds: parsing and building; size: of the engine in bytes; warnings: the builder's own words."""

    engine: str
    version: str
    capabilities: tuple[str, ...]
    options: Mapping[str, Any]
    seconds: float
    size: int
    layers: tuple[Layer, ...]
    warnings: tuple[str, ...]

    def _table(self) -> tuple[Layer, ...]:
        if not self.layers:
            raise BuildError(f"{self.engine} {self.version} gave no table of layers, so what its kernels compute in is not known")
        return self.layers

    def products(self, operator: str | None = None) -> tuple[Layer, ...]:
        """The kernels that sum products: of Conv, ConvTranspose or MatMul (Gemm too), or all. Raises BuildError if there is no table."""
        return tuple(layer for layer in self._table() if layer.product and operator in (None, layer.product))

    def precisions(self, operator: str | None = None) -> dict[str, int]:
        """How many of these kernels compute in each type: {"Int8": 12, "Float": 2}."""
        counts: dict[str, int] = {}
        for layer in self.products(operator):
            counts[layer.precision] = counts.get(layer.precision, 0) + 1
        return dict(sorted(counts.items()))

    def all_in(self, operator: str, dtype: str) -> bool:
        """Are there such kernels, and do all compute in `dtype`? `all_in("Conv", "Int8")`: are the convolutions int8?"""
        return set(self.precisions(operator)) == {dtype}

    def written_out(self) -> tuple[str, ...]:
        """Kernels that do nothing but turn a constant weight into floats, in every run: quantization that costs time and saves none."""
        return tuple(
            layer.name for layer in self._table()
            if not layer.inputs and any(c.dtype in _QUANTIZED for c in layer.constants) and any(o.dtype not in _QUANTIZED for o in layer.outputs)
        )  # fmt: skip

    def dequantized_inside(self) -> tuple[str, ...]:
        """Kernels that turn a weight into floats as they read it: what weight-only int4 is meant to be."""
        return tuple(
            layer.name for layer in self.products()
            if layer.precision not in _QUANTIZED and layer.weight is not None and layer.weight.dtype in _QUANTIZED
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
