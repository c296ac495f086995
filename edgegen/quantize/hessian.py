"""A layer's input -> the vectors that its weight multiplies, and their mean outer product, which GPTQ and AdaRound need.

Conv, Gemm and MatMul of ONNX. The numbers of a vector come in the order in which edgegen.quantize.rounding flattens the weight.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import CalibrationError, Status

if TYPE_CHECKING:
    import onnx

__all__ = ["HessianSum", "rows_of"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def rows_of(
    node: onnx.NodeProto, x: npt.NDArray[Any], weight_shape: tuple[int, ...], limit: int | None = None, rng: np.random.Generator | None = None
) -> Floats:
    """The vectors that a node multiplies its weight with, float32 [rows, K], or [groups, rows, K] for a Conv of several groups.

    node: Conv (any strides, pads, auto_pad, dilations, group), Gemm or MatMul; x: its first input; weight_shape: of its second, [K, N]
    of a MatMul. limit: at most so many rows, drawn without replacement by rng and in the order of the output's positions; None for all.
    Raises CalibrationError for another operator, and where x does not fit the weight.
    """
    if node.op_type == "Conv":
        return _conv_rows(node, x, weight_shape, limit, rng)
    if node.op_type not in ("Gemm", "MatMul"):
        raise CalibrationError(f"node {node.name!r}: expected Conv, Gemm or MatMul, found {node.op_type}", Status.UNKNOWN_NAME)
    attributes = {a.name: a.i for a in node.attribute}
    if attributes.get("transA"):
        x = x.T
    width = weight_shape[1] if attributes.get("transB") else weight_shape[0]
    if len(weight_shape) != 2 or not x.ndim or x.shape[-1] != width:
        raise _misfit(node, x, weight_shape)
    rows = x.reshape(-1, width)
    return rows[_chosen(len(rows), limit, rng)].astype(np.float32)


def _conv_rows(
    node: onnx.NodeProto, x: npt.NDArray[Any], weight_shape: tuple[int, ...], limit: int | None, rng: np.random.Generator | None
) -> Floats:
    """`rows_of` a Conv: only the chosen output positions are read from x."""
    kernel, rank = weight_shape[2:], len(weight_shape) - 2
    attributes = {a.name: a for a in node.attribute}

    def integers(name: str, default: int, count: int) -> list[int]:
        return list(attributes[name].ints) if name in attributes else [default] * count

    groups = attributes["group"].i if "group" in attributes else 1
    if rank < 1 or x.ndim != rank + 2 or x.shape[1] != groups * weight_shape[1]:
        raise _misfit(node, x, weight_shape)
    strides, dilations, pads = integers("strides", 1, rank), integers("dilations", 1, rank), integers("pads", 0, 2 * rank)
    sizes, spans = x.shape[2:], [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto_pad = attributes["auto_pad"].s.decode() if "auto_pad" in attributes else "NOTSET"
    if auto_pad == "VALID":
        pads = [0] * (2 * rank)
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = [max((math.ceil(n / s) - 1) * s + span - n, 0) for n, s, span in zip(sizes, strides, spans, strict=True)]
        less, more = [n // 2 for n in total], [n - n // 2 for n in total]
        pads = less + more if auto_pad == "SAME_UPPER" else more + less
    counts = [(n + pads[i] + pads[rank + i] - spans[i]) // strides[i] + 1 for i, n in enumerate(sizes)]
    if min(counts) < 1:
        raise _misfit(node, x, weight_shape)
    sample, *place = np.unravel_index(_chosen(len(x) * math.prod(counts), limit, rng), (len(x), *counts))
    inside = np.ones((len(sample), *(1,) * rank), np.bool_)
    indices = []
    for i, n in enumerate(sizes):
        index = (place[i] * strides[i] - pads[i])[:, None] + np.arange(kernel[i]) * dilations[i]
        index = index.reshape(len(sample), *(kernel[i] if k == i else 1 for k in range(rank)))
        inside = inside & (index >= 0) & (index < n)
        indices.append(np.clip(index, 0, n - 1)[:, None])
    first = sample.reshape(-1, *(1,) * (rank + 1))
    channels = np.arange(x.shape[1]).reshape(1, -1, *(1,) * rank)
    patches = np.where(inside[:, None], x[(first, channels, *indices)], 0).astype(np.float32)
    rows = patches.reshape(len(sample), groups, -1)
    return np.ascontiguousarray(np.swapaxes(rows, 0, 1)) if groups > 1 else rows[:, 0]


def _chosen(count: int, limit: int | None, rng: np.random.Generator | None) -> npt.NDArray[np.int64]:
    """Which of `count` rows are kept, ascending."""
    if limit is None or limit >= count:
        return np.arange(count)
    if rng is None or limit < 1:
        raise CalibrationError(f"a limit of {limit} rows: expected at least 1, and a generator to draw them with")
    return np.sort(rng.choice(count, limit, replace=False))


def _misfit(node: onnx.NodeProto, x: npt.NDArray[Any], weight_shape: tuple[int, ...]) -> CalibrationError:
    return CalibrationError(f"node {node.name!r}: {node.op_type} of x {list(x.shape)} with a weight {list(weight_shape)}", Status.BAD_SHAPE)


class HessianSum:
    """The sum of x x^T over the rows of a layer. Products are float32, the sum over calls is float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Doubles | None = None

    def add(self, rows: npt.NDArray[Any]) -> None:
        """rows: [rows, K] or [groups, rows, K], as `rows_of` gives them. Raises CalibrationError on NaN, infinity or another shape than before."""
        rows = rows.astype(np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            product = np.swapaxes(rows, -1, -2) @ rows
        if not np.isfinite(product).all():
            raise CalibrationError("a layer's input holds NaN, infinity or numbers whose squares overflow float32", Status.NONFINITE)
        if self._sum is None:
            self._sum = np.zeros(product.shape)
        if product.shape != self._sum.shape:
            raise CalibrationError(f"rows for a Hessian of shape {list(product.shape)}, expected {list(self._sum.shape)}", Status.BAD_SHAPE)
        self._sum += product
        self.count += rows.shape[-2]

    @property
    def mean(self) -> Doubles:
        """The mean of x x^T, float64 [K, K] or [groups, K, K]. Raises CalibrationError if nothing was added."""
        if self._sum is None or not self.count:
            raise CalibrationError("no rows were added to a Hessian: the calibration set never ran its layer")
        return self._sum / self.count
