"""Programs run as one engine call each: fused when they are first asked for with a batch, and kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.bundle import Bundle, Variant
from edgegen.errors import RuntimeFault, Status
from edgegen.program import Program, initial_state, normals
from edgegen.program.fuse import Fused, fuse
from edgegen.targets.onnxruntime import network_of, open_engine

__all__ = ["FusedPrograms"]

Tensor = npt.NDArray[Any]


class FusedPrograms:
    """The fused programs of a bundle's variant, by (program, batch); safe to use from several threads."""

    def __init__(self, bundle: Bundle, variant: Variant, threads: int) -> None:
        self.bundle, self.threads, self.providers = bundle, threads, variant.providers
        self._models = {name: network_of(bundle, variant, name) for name in variant.components}
        self._made: dict[tuple[str, int], tuple[Fused, Any]] = {}
        self._lock = threading.Lock()

    def run(self, name: str, conditions: Mapping[str, Tensor], noise: Tensor | None, batch: int, seed: int) -> tuple[Tensor, dict[str, float]]:
        """A program's sample and the seconds that it took; arguments as of `Stepwise.run`.

        Raises RuntimeFault, or ProgramError if it cannot be fused.
        """
        began = time.perf_counter()
        program = self.bundle.programs[name]
        fused, engine = self._made.get((name, batch)) or self._make(name, program, batch)
        start = normals(seed, 0, (batch, *self.bundle.manifest.sample.shape)) if noise is None else noise
        feeds = dict(conditions) | initial_state(program, start)
        for draw_name, (draw, shape) in fused.draws.items():
            feeds[draw_name] = normals(seed, draw, shape)
        try:
            (sample,) = engine.run(["out.sample"], feeds)
        except Exception as e:  # ONNX Runtime's exceptions have no common public base
            raise RuntimeFault(f"program {name!r} failed in ONNX Runtime: {e}", Status.BACKEND_FAILED) from e
        if not np.isfinite(sample).all():
            raise RuntimeFault(f"program {name!r}: the sample is NaN or infinite; run it step by step to see where it began", Status.NONFINITE)
        return np.asarray(sample), {"fused": time.perf_counter() - began}

    def _make(self, name: str, program: Program, batch: int) -> tuple[Fused, Any]:
        with self._lock:
            if (name, batch) not in self._made:
                manifest = self.bundle.manifest
                specs = {c.name: (c.dtype, c.shape) for c in manifest.conditions}
                inputs = {i.name: specs[i.name] if i.kind == "condition" else ("float32", manifest.sample.shape) for i in program.inputs}
                fused = fuse(program, self._models, inputs, batch)
                engine = open_engine(fused.model.SerializeToString(), f"fused program {name!r}", self.threads, providers=self.providers)
                self._made[name, batch] = fused, engine
            return self._made[name, batch]

    def close(self) -> None:
        """Release the engine's sessions."""
        self._made.clear()
