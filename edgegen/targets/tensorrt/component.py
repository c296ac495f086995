"""A network of a bundle on an NVIDIA GPU: its engine is built once on this device, kept in the device's own cache, and run with CUDA."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgegen.errors import RuntimeFault, Status
from edgegen.spec import BATCH, Signature
from edgegen.targets.component import Component
from edgegen.targets.tensorrt.build import BuildOptions, build_engine
from edgegen.targets.tensorrt.cache import EngineCache, engine_key
from edgegen.targets.tensorrt.module import version
from edgegen.targets.tensorrt.run import CudaEngine, gpu_name
from edgegen.workspace import cache_folder

__all__ = ["TensorrtComponent", "batch_profiles", "engine_folder", "engine_of", "engine_options"]

MOST_ROWS = 16
"""Rows that one call of a network with a batch of any size takes; engines are built for 1 to this many."""
Shape = tuple[int, ...]


def engine_folder() -> Path:
    """Where this device keeps engines."""
    return cache_folder() / "engines"


def batch_profiles(signature: Signature, usual: int = 1, most: int = MOST_ROWS) -> dict[str, tuple[Shape, Shape, Shape]]:
    """The least, usual and most shape of every input whose first size is the batch."""

    def sized(shape: tuple[int | str, ...], rows: int) -> Shape:
        return tuple(n if isinstance(n, int) else rows for n in shape)

    return {t.name: (sized(t.shape, 1), sized(t.shape, usual), sized(t.shape, most)) for t in signature.inputs if BATCH in t.shape}


def engine_options(signature: Signature, engine: str, capability: str | None) -> BuildOptions:
    """How a network of a bundle is built, wherever that is. capability: of the GPU, which tensorrt-rtx is told and tensorrt sees."""
    capabilities = (capability,) if capability and engine == "tensorrt-rtx" else ()
    return BuildOptions(engine=engine, capabilities=capabilities, profiles=batch_profiles(signature))


def engine_of(model: bytes, signature: Signature, engine: str, gpu: str) -> tuple[str, BuildOptions]:
    """The cache key of a network's engine on a GPU (as `gpu_name` calls it), and how it is built there."""
    options = engine_options(signature, engine, gpu.rpartition(" ")[2])
    return engine_key(model, engine, version(engine), gpu, options.to_json()), options


class TensorrtComponent(Component):
    """One network; calls from several threads run one after the other.

    model: the ONNX bytes, checked, weights inside. engine: "tensorrt-rtx" or "tensorrt". folder: of the engine cache. Raises RuntimeFault
    (PROVIDER_MISSING without a GPU, BACKEND_MISSING without the module) or BuildError (what TensorRT does not take).
    """

    def __init__(self, name: str, model: bytes, signature: Signature, engine: str, *, folder: Path | None = None, what: str = "") -> None:
        super().__init__(name, signature)
        self._what, self._engine, self._lock = what or f"component {name!r}", engine, threading.Lock()
        key, options = engine_of(model, signature, engine, gpu_name())
        self._running: dict[int, CudaEngine] = {}
        cache = EngineCache(folder or engine_folder())
        cache.get_or_build(key, lambda: build_engine(model, options, where=self._what).data, self._kept)

    def _kept(self, data: bytes) -> CudaEngine | None:
        """The engine open for one row; None if TensorRT turns it down."""
        self._data = data
        try:
            return self._for_rows(1)
        except RuntimeFault as e:
            if e.code != Status.BACKEND_FAILED:
                raise
            return None

    def _for_rows(self, rows: int) -> CudaEngine:
        if rows > MOST_ROWS and batch_profiles(self.signature):
            raise RuntimeFault(f"{self._what}: {rows} rows in one call; engines are built for at most {MOST_ROWS}", Status.OUT_OF_RANGE)
        if rows not in self._running:
            shapes = {name: shape for name, (_, shape, _) in batch_profiles(self.signature, rows).items()}
            self._running[rows] = CudaEngine(self._data, self._engine, shapes=shapes)
        return self._running[rows]

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The named outputs for feeds that `feeds` prepared."""
        batched = [t.name for t in self.signature.inputs if BATCH in t.shape]
        with self._lock:
            return self._for_rows(len(feeds[batched[0]]) if batched else 1)(**feeds)

    def close(self) -> None:
        """Free the engines and their buffers."""
        for running in self._running.values():
            running.close()
        self._running.clear()
