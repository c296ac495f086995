"""Ranges to quantize with: chosen from a calibration record by an estimator, one per tensor, per group of times, or per time.

In: a `Record`. Out: `Ranges`, keyed by network time, which emitters read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import CalibrationError, Status, nearest
from edgegen.quantize.record import Record, TensorRecord

__all__ = ["ESTIMATORS", "TIMES", "Ranges", "choose_ranges"]

ESTIMATORS = ("minmax", "percentile", "mse", "l2.4")
"""How a range is found: all values; all but `OUTLIERS` of them at each end; the least squared, or |error|^2.4, rounding and clipping error
(PTQ4DM, 100 thresholds)."""
TIMES = ("shared", "group", "step")
OUTLIERS = 1e-4
_THRESHOLDS = 100

Row = tuple[float, float, float]
"""(time, low, high)"""


@dataclass(frozen=True, slots=True)
class Ranges:
    """For each tensor: rows (time, low, high), times ascending; a single row is for all times."""

    rows: Mapping[str, tuple[Row, ...]]

    def at(self, tensor: str, time: float | None = None) -> tuple[float, float]:
        """(low, high) of a tensor at a network time; None: over all times. Raises CalibrationError for a tensor or a time that was not seen."""
        if tensor not in self.rows:
            raise CalibrationError(f"no range for tensor {tensor!r}: the calibration set never ran its component")
        rows = self.rows[tensor]
        if time is None or len(rows) == 1:
            return min(r[1] for r in rows), max(r[2] for r in rows)
        found = next((r for r in rows if r[0] == time), None)
        if found is None:
            known = ", ".join(f"{r[0]:g}" for r in rows[:12])
            message = f"no range of tensor {tensor!r} at network time {time:g}: calibrated at {known}{', ...' if len(rows) > 12 else ''}"
            raise CalibrationError(f"{message}; calibrate with the program that has it", Status.OUT_OF_RANGE)
        return found[1], found[2]

    @property
    def times(self) -> tuple[float, ...]:
        """The times that have ranges of their own, ascending; empty if all tensors have one for all."""
        return tuple(sorted({r[0] for rows in self.rows.values() if len(rows) > 1 for r in rows}))


def choose_ranges(
    record: Record, estimator: str = "minmax", times: str = "step", *, symmetric: bool = False, bits: int = 8, groups: int = 3, drift: float = 1.0,
    fixed: Mapping[str, tuple[float, float]] | None = None,
) -> Ranges:  # fmt: skip
    """Ranges of every tensor of a record.

    times: "shared": one for all times; "group": at most `groups` runs of neighbouring times, cut where that saves most; "step": each time its own.
    Those two only for tensors whose `drift` is at least `drift`. symmetric, bits: of the integers that the clipping estimators try.
    fixed: ranges known beforehand, such as [0, 1] of a softmax, which must never be clipped.
    """
    for name, value, known in (("estimator", estimator, ESTIMATORS), ("times", times, TIMES)):
        if value not in known:
            raise CalibrationError(f"{name}: {nearest(value, known)}", Status.UNKNOWN_NAME)
    rows: dict[str, tuple[Row, ...]] = {}
    for name, tensor in record.tensors.items():
        if fixed and name in fixed:
            rows[name] = ((float(tensor.times[0]), *fixed[name]),)
            continue
        own = times if tensor.drift >= drift else "shared"
        parts = _runs(tensor, own, groups)
        chosen = [_range(tensor, part, estimator, symmetric, bits) for part in parts]
        ends = [tensor.times[:1]] if len(parts) == 1 else [tensor.times[part] for part in parts]
        rows[name] = tuple((float(t), *r) for own_times, r in zip(ends, chosen, strict=True) for t in own_times)
    return Ranges(rows)


def _runs(tensor: TensorRecord, times: str, groups: int) -> list[slice]:
    """The runs of neighbouring times that share a range."""
    count = len(tensor.times)
    if times == "shared":
        return [slice(0, count)]
    if times == "step":
        return [slice(i, i + 1) for i in range(count)]
    return _cut(tensor.largest, groups)


def _cut(largest: npt.NDArray[np.float64], groups: int) -> list[slice]:
    """At most `groups` runs with the least sum of (largest of the run / own)^2, which is the rounding error that sharing adds. Dynamic program."""
    n, k = len(largest), min(groups, len(largest))
    own = np.maximum(largest, largest.max(initial=0.0) * 1e-6 + 1e-30)
    cost = np.zeros((n, n + 1))
    for i in range(n):
        for j in range(i + 1, n + 1):
            cost[i, j] = float(((own[i:j].max() / own[i:j]) ** 2).sum())
    best = np.full((k + 1, n + 1), math.inf)
    came = np.zeros((k + 1, n + 1), int)
    best[0, 0] = 0.0
    for g in range(1, k + 1):
        for j in range(1, n + 1):
            options = best[g - 1, :j] + cost[:j, j]
            came[g, j] = int(options.argmin())
            best[g, j] = options[came[g, j]]
    cuts, end = [], n
    for g in range(int(best[1:, n].argmin()) + 1, 0, -1):
        cuts.append(slice(int(came[g, end]), end))
        end = int(came[g, end])
    return cuts[::-1]


def _range(tensor: TensorRecord, part: slice, estimator: str, symmetric: bool, bits: int) -> tuple[float, float]:
    low, high = float(tensor.lows[part].min()), float(tensor.highs[part].max())
    if estimator == "minmax" or low == high:
        return low, high
    counts, edges = tensor.counts[part].sum(axis=0), tensor.edges
    if estimator == "percentile":
        share = np.cumsum(counts) / counts.sum()
        first, last = int(np.searchsorted(share, OUTLIERS, side="right")), int(np.searchsorted(share, 1.0 - OUTLIERS))
        return max(low, float(edges[first])), min(high, float(edges[last + 1]))
    return _least_error(counts, edges, low, high, 2.0 if estimator == "mse" else 2.4, symmetric, bits)


def _least_error(
    counts: npt.NDArray[np.int64], edges: npt.NDArray[np.float64], low: float, high: float, power: float, symmetric: bool, bits: int
) -> tuple[float, float]:
    """The range, of `_THRESHOLDS` that shrink [low, high], with the least sum of |x - q(x)|^power over the histogram."""
    used = np.flatnonzero(counts)
    width = edges[1] - edges[0]
    # four points in each bin: a bin may be wider than a step
    points = (edges[used][:, None] + width * (np.arange(4) + 0.5) / 4.0).ravel()
    points = np.clip(points, low, high)
    weights = np.repeat(counts[used] / 4.0, 4)
    levels = float(2 ** (bits - 1) - 1) if symmetric else float(2**bits - 1)
    best = (math.inf, low, high)
    for i in range(_THRESHOLDS, 0, -1):
        a, b = low * i / _THRESHOLDS, high * i / _THRESHOLDS
        if symmetric:
            scale = max(-a, b) / levels
            if scale <= 0.0:
                continue
            values: Any = np.clip(np.rint(points / scale), -levels, levels) * scale
        else:
            a, b = min(a, 0.0), max(b, 0.0)
            scale = (b - a) / levels
            if scale <= 0.0:
                continue
            zero = np.rint(-a / scale)
            values = (np.clip(np.rint(points / scale) + zero, 0.0, levels) - zero) * scale
        error = float(weights @ np.abs(points - values) ** power)
        if error < best[0]:
            best = (error, low * i / _THRESHOLDS, high * i / _THRESHOLDS)
    return best[1], best[2]
