"""Facts about tensors, conditions and samples that travel between stages and into the bundle's manifest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.canonical import from_hex, to_hex
from edgegen.errors import BundleError, Status

__all__ = [
    "BATCH", "DTYPES", "MAX_TENSORS", "MAX_TEXT", "NAME", "ConditionSpec", "SampleSpec", "Signature", "TensorSpec", "check_count", "check_name",
    "default_conditions", "draw_condition", "keys",
]  # fmt: skip

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")
BATCH = "batch"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
"""Names of tensors, components, conditions, programs, variants, documents and registers."""
MAX_TENSORS = 2048
"""Inputs and outputs of a bundle's components in all."""
MAX_TEXT = 2048
"""UTF-8 bytes of a free text."""


def _bad(message: str) -> BundleError:
    return BundleError(message, Status.BAD_MANIFEST)


def check_name(name: str, what: str) -> None:
    """Raise BundleError (BAD_MANIFEST) unless `name` is a name."""
    if not NAME.fullmatch(name):
        raise _bad(f"{what} {name[:80]!r} is not a name ([A-Za-z_][A-Za-z0-9_.-]*, at most 64 characters)")


def check_count(count: int, most: int, what: str) -> None:
    """Raise BundleError (LIMIT) if there are more than `most` of something, or a text has more bytes."""
    if count > most:
        raise BundleError(f"{what}: {count}, at most {most} are allowed", Status.LIMIT)


def _check_sizes(name: str, shape: tuple[int | str, ...]) -> None:
    """At most 6 sizes, each a whole number from 1 to 2^31 - 1."""
    if len(shape) > 6:
        raise _bad(f"tensor {name!r}: rank {len(shape)}, at most 6 is allowed")
    for size in shape:
        if not (isinstance(size, int) and 1 <= size < 2**31):
            raise _bad(f"tensor {name!r}: size {size!r}, expected 1 .. 2^31 - 1")


def keys(value: Any, where: str, required: Mapping[str, type], optional: Mapping[str, type] | None = None) -> dict[str, Any]:
    """`value` as a dict with exactly these keys, each of its type."""
    optional = optional or {}
    if not isinstance(value, dict) or not set(required) <= set(value) <= set(required) | set(optional):
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise _bad(f"{where}: expected the keys {sorted(required)} and perhaps {sorted(optional)}, found {found}")
    for key, item in value.items():
        if not isinstance(item, {**required, **optional}[key]):
            raise _bad(f"{where}: {key!r} holds a {type(item).__name__}")
    return value


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named tensor. shape: sizes >= 1, or "batch" for the number of samples."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        check_name(self.name, "tensor")
        if self.dtype not in DTYPES:
            raise _bad(f"tensor {self.name!r}: dtype {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        _check_sizes(self.name, tuple(1 if size == BATCH else size for size in self.shape))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> TensorSpec:
        """The checked inverse of `to_json`."""
        value = keys(value, where, {"name": str, "dtype": str, "shape": list})
        return cls(value["name"], value["dtype"], tuple(value["shape"]))

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """What a component takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"inputs": [t.to_json() for t in self.inputs], "outputs": [t.to_json() for t in self.outputs]}

    @classmethod
    def from_json(cls, value: Any, where: str, most: int = MAX_TENSORS) -> Signature:
        """The checked inverse of `to_json`, for at most `most` tensors."""
        value = keys(value, where, {"inputs": list, "outputs": list})
        check_count(len(value["inputs"]) + len(value["outputs"]), most, f"{where}: tensors of this component, after those before it")
        inputs, outputs = (tuple(TensorSpec.from_json(t, f"{where}.{side}") for t in value[side]) for side in ("inputs", "outputs"))
        for tensors in (inputs, outputs):
            if not tensors or len({t.name for t in tensors}) != len(tensors):
                raise _bad(f"{where}: a component needs at least one input and output, each name once")
        return cls(inputs, outputs)


@dataclass(frozen=True, slots=True)
class ConditionSpec:
    """A tensor that the caller gives, one per sample: its range (inclusive) and its default, where it has them.

    shape: without the batch. null: what the unconditional branch of guidance feeds instead.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    default: float | None = None
    null: float | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        TensorSpec(self.name, self.dtype, ())
        _check_sizes(self.name, self.shape)
        check_count(len(self.summary.encode()), MAX_TEXT, f"condition {self.name!r}: bytes of the summary")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise _bad(f"condition {self.name!r}: minimum {self.minimum} is above maximum {self.maximum}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; numbers that are absent have no key."""
        numbers = {k: getattr(self, k) for k in ("minimum", "maximum", "default", "null")}
        head = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "summary": self.summary}
        return head | {k: to_hex(v) for k, v in numbers.items() if v is not None}

    @classmethod
    def from_json(cls, value: Any, where: str) -> ConditionSpec:
        """The checked inverse of `to_json`."""
        numbers = ("minimum", "maximum", "default", "null")
        value = keys(value, where, {"name": str, "dtype": str, "shape": list, "summary": str}, dict.fromkeys(numbers, str))
        minimum, maximum, default, null = (from_hex(value[k]) if k in value else None for k in numbers)
        return cls(value["name"], value["dtype"], tuple(value["shape"]), minimum, maximum, default, null, value["summary"])


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """What one sample is. kind: "image" ([C, H, W], C = 1 or 3, values low .. high) or "array"."""

    shape: tuple[int, ...]
    kind: str = "array"
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_sizes("sample", self.shape)
        if self.kind not in ("image", "array"):
            raise _bad(f"sample kind {self.kind!r}, expected 'image' or 'array'")
        if self.kind == "image" and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
            raise _bad(f"an image sample has shape [1 or 3, height, width], found {list(self.shape)}")
        if not self.low < self.high:
            raise _bad(f"sample range: low {self.low} is not below high {self.high}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"shape": list(self.shape), "kind": self.kind, "low": to_hex(self.low), "high": to_hex(self.high)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> SampleSpec:
        """The checked inverse of `to_json`."""
        value = keys(value, where, {"shape": list, "kind": str, "low": str, "high": str})
        return cls(tuple(value["shape"]), value["kind"], from_hex(value["low"]), from_hex(value["high"]))


def default_conditions(specs: Iterable[ConditionSpec]) -> dict[str, npt.NDArray[Any]]:
    """The conditions that golden vectors and timings use, dtype[1, *shape]: the default, else the minimum, else 0."""
    value = {c.name: next((v for v in (c.default, c.minimum) if v is not None), 0.0) for c in specs}
    return {c.name: np.full((1, *c.shape), value[c.name]).astype(c.dtype) for c in specs}


def draw_condition(spec: ConditionSpec, count: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Random valid values of a condition: dtype[count, *shape], uniform over its range, normal where it has none."""
    shape = (count, *spec.shape)
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iub":
        low, high = int(spec.minimum or 0), int(1 if spec.maximum is None else spec.maximum)
        return rng.integers(low, high, shape, endpoint=True).astype(dtype)
    if spec.minimum is not None and spec.maximum is not None:
        return rng.uniform(spec.minimum, spec.maximum, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
