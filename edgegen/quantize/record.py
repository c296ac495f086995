"""The calibration record: what every watched tensor looked like at every network time, in bounded memory.

In: arrays, one evaluation after the other. Out: per tensor and time the exact minimum and maximum, those of each channel, and a histogram
of a sample of the values. Knows no engine and no target.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import CalibrationError, Status

__all__ = ["BINS", "Record", "Recorder", "TensorRecord"]

BINS = 1024
"""Bins of a histogram, over [-limit, limit]."""
_COUNTED = 1 << 14
"""At most so many values of one evaluation are counted in the histogram; minima and maxima are of all."""
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor over the times of the calibration set.

    times: float64[T], ascending. low, high: float32[T, C], per channel (axis 1 of images, the last axis of the rest). counts: int64[T, BINS],
    of values in equal bins over [-limit, limit].
    """

    times: npt.NDArray[np.float64]
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    limit: float

    @property
    def lows(self) -> npt.NDArray[np.float64]:
        """Minimum at each time: float64[T]."""
        lows: npt.NDArray[np.float64] = self.low.min(axis=1).astype(np.float64)
        return lows

    @property
    def highs(self) -> npt.NDArray[np.float64]:
        """Maximum at each time: float64[T]."""
        highs: npt.NDArray[np.float64] = self.high.max(axis=1).astype(np.float64)
        return highs

    @property
    def largest(self) -> npt.NDArray[np.float64]:
        """Largest magnitude at each time: float64[T]."""
        largest: npt.NDArray[np.float64] = np.maximum(self.highs, -self.lows)
        return largest

    @property
    def channels(self) -> npt.NDArray[np.float32]:
        """Largest magnitude at each time in each channel: float32[T, C]."""
        largest: npt.NDArray[np.float32] = np.maximum(self.high, -self.low)
        return largest

    @property
    def drift(self) -> float:
        """Largest over smallest of `largest`: 1 for a tensor that does not care for the time, inf if it is 0 at one (spec: scales that know
        the time pay above 1.5)."""
        smallest = float(self.largest.min())
        biggest = float(self.largest.max())
        return 1.0 if biggest == 0.0 else math.inf if smallest == 0.0 else biggest / smallest

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Bounds of the histogram's bins: float64[BINS + 1]."""
        return np.linspace(-self.limit, self.limit, BINS + 1)


@dataclass(frozen=True, slots=True)
class Record:
    """What the calibration set showed, by tensor."""

    tensors: Mapping[str, TensorRecord]

    def __getitem__(self, tensor: str) -> TensorRecord:
        if tensor not in self.tensors:
            raise CalibrationError(f"no range for tensor {tensor!r}: the calibration set never ran its component")
        return self.tensors[tensor]

    def save(self, path: Path) -> None:
        """Write an .npz file; equal records give equal bytes."""
        arrays: dict[str, Any] = {"names": np.array(sorted(self.tensors))}
        for i, name in enumerate(sorted(self.tensors)):
            r = self.tensors[name]
            arrays |= {f"{i}.times": r.times, f"{i}.low": r.low, f"{i}.high": r.high, f"{i}.counts": r.counts, f"{i}.limit": r.limit}
        np.savez_compressed(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Record:
        """The inverse of `save`."""
        with np.load(path) as held:
            names = [str(name) for name in held["names"]]
            parts = [[held[f"{i}.{part}"] for part in ("times", "low", "high", "counts", "limit")] for i in range(len(names))]
        return cls({name: TensorRecord(t, low, high, counts, float(limit)) for name, (t, low, high, counts, limit) in zip(names, parts, strict=True)})


class _Seen:
    """One tensor while it is recorded."""

    def __init__(self, channels: int) -> None:
        self.limit = 0.0
        self.low: dict[float, Array] = {}
        self.high: dict[float, Array] = {}
        self.counts: dict[float, Array] = {}
        self.channels = channels

    def widen(self, largest: float) -> None:
        """Make the histogram's range hold `largest`, by doubling: pairs of bins become one, so nothing is lost."""
        if self.limit == 0.0:
            self.limit = 2.0 ** math.ceil(math.log2(max(largest, 2.0**-100)))
        while self.limit < largest:
            self.limit *= 2.0
            for time, counts in self.counts.items():
                wider = np.zeros(BINS, np.int64)
                wider[BINS // 4 : 3 * BINS // 4] = counts.reshape(-1, 2).sum(axis=1)
                self.counts[time] = wider


class Recorder:
    """Watches tensors: call `add` for each evaluation, then `finish`."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def add(self, tensor: str, time: float, values: Array) -> None:
        """values: floats [N, C, ...] or [N, ..., C] (of two or three axes). Raises CalibrationError for NaN and infinities, with tensor and time."""
        array = np.asarray(values, np.float32)
        rows = array.reshape(len(array), array.shape[1], -1) if array.ndim > 3 else array.reshape(-1, array.shape[-1] if array.ndim else 1, 1)
        low, high = rows.min(axis=(0, 2)), rows.max(axis=(0, 2))
        largest = float(np.maximum(np.abs(low), np.abs(high)).max())
        if not math.isfinite(largest):
            raise CalibrationError(f"tensor {tensor!r} is NaN or infinite at time {time:g} of the calibration set", Status.NONFINITE)
        seen = self._seen.setdefault(tensor, _Seen(len(low)))
        seen.widen(largest)
        flat = array.ravel()
        # an odd stride: rows are of even length as a rule, so that every place in them is met
        step = max(1, flat.size // _COUNTED) | 1
        start = zlib.crc32(f"{tensor} {time!r} {len(seen.low)}".encode()) % step
        counts = np.histogram(flat[start::step], BINS, (-seen.limit, seen.limit))[0]
        if time in seen.low:
            low, high = np.minimum(low, seen.low[time]), np.maximum(high, seen.high[time])
            counts = counts + seen.counts[time]
        seen.low[time], seen.high[time], seen.counts[time] = low, high, counts

    def finish(self) -> Record:
        """What was seen."""
        made = {}
        for name, seen in self._seen.items():
            times = sorted(seen.low)
            low, high, counts = (np.stack([rows[t] for t in times]) for rows in (seen.low, seen.high, seen.counts))
            made[name] = TensorRecord(np.array(times), low, high, counts, seen.limit)
        return Record(made)

    def expect(self, tensors: Iterable[str]) -> None:
        """Raise CalibrationError unless at least one of `tensors`, if there are any, was seen."""
        if not self._seen and any(True for _ in tensors):
            raise CalibrationError("the calibration set gave no batches; expected at least one, from its function batches(context)")
