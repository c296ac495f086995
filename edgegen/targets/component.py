"""What networks open in any engine have in common: arrays as the interpreter passes them become the inputs that were declared."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgegen.errors import RuntimeFault, Status
from edgegen.spec import BATCH, Signature, TensorSpec

__all__ = ["Component"]

_KEPT_TIMES = 4096


def _rows(arrays: dict[str, npt.NDArray[Any]]) -> int:
    """The batch: rows of the first array that has any."""
    for array in arrays.values():
        if array.ndim:
            return len(array)
    return 1


class Component:
    """A network by its name and signature; a context manager. Engines define `run` and `close`."""

    def __init__(self, name: str, signature: Signature) -> None:
        self.name = name
        self.signature = signature
        self._times: dict[tuple[str, Any, int], npt.NDArray[Any]] = {}
        self._specs = {t.name: t for t in signature.inputs}
        self._usual = [(t.name, np.dtype(t.dtype), len(t.shape), t.shape[1:] if t.shape[:1] == (BATCH,) else None) for t in signature.inputs]

    def feeds(self, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """`arrays` as the engine takes them: 0-d values filled to their declared shape, dtypes as declared, shapes checked."""
        feeds = {}
        for name, dtype, rank, tail in self._usual:
            array = arrays.get(name)
            if array is None or array.dtype != dtype:
                array = self._adapted(arrays, name)
            elif array.ndim != rank or array.shape[1:] != tail:
                # a time, the same for all rows, is the usual case of the unusual
                array = self._time(array, _rows(arrays)) if rank == 1 and array.ndim == 0 and tail == () else self._adapted(arrays, name)
            feeds[name] = array
        return feeds

    def _time(self, value: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
        """`value` for each row: a program's times come again in every run, so the filled arrays are kept (read-only)."""
        key = (value.dtype.char, value.item(), rows)
        filled = self._times.get(key)
        if filled is None:
            filled = value.repeat(rows)
            filled.flags.writeable = False
            if len(self._times) >= _KEPT_TIMES:
                self._times.clear()
            self._times[key] = filled
        return filled

    def _adapted(self, arrays: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
        """One input that is not as declared [batch, ...]: cast, filled, or refused."""
        spec = self._specs[name]
        if name not in arrays:
            raise RuntimeFault(f"component {self.name!r} needs input {spec}", Status.UNKNOWN_NAME)
        array = self._cast(arrays[name], np.dtype(spec.dtype), spec)
        if array.ndim == 0 and spec.shape:
            return np.full([_rows(arrays) if isinstance(n, str) else n for n in spec.shape], array)
        if array.ndim != len(spec.shape) or any(n not in (BATCH, found) for n, found in zip(spec.shape, array.shape, strict=True)):
            raise RuntimeFault(f"component {self.name!r}: input {name!r} has shape {list(array.shape)}, expected {spec}", Status.BAD_SHAPE)
        return array

    def _cast(self, array: npt.NDArray[Any], dtype: np.dtype[Any], spec: TensorSpec) -> npt.NDArray[Any]:
        """To the declared dtype; a fraction offered as an integer (a time between two indices) is an error, not a truncation."""
        cast = array.astype(dtype, copy=False)
        if dtype.kind in "iu" and array.dtype.kind == "f" and not np.array_equal(cast, array):
            raise RuntimeFault(
                f"component {self.name!r}: input {spec} takes whole numbers, found {array.flat[0]:g}; "
                f"use a grid of whole times (leading, linspace or trailing)",
                Status.BAD_DTYPE,
            )
        return cast

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The named outputs for feeds that `feeds` prepared."""
        raise NotImplementedError

    def __call__(self, **arrays: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """The named outputs for arrays as the interpreter passes them."""
        return self.run(self.feeds(arrays))

    def close(self) -> None:
        """Release what the engine holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
