"""Programs run as one engine call each: fused when they are first asked for with a batch, and kept."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.bundle import Bundle
from edgegen.errors import RuntimeFault, Status
from edgegen.program import Program, normals
from edgegen.program.fuse import Fused, fuse
from edgegen.targets.onnxruntime import open_engine, parse_model

__all__ = ["FusedPrograms"]

Tensor = npt.NDArray[Any]


class FusedPrograms:
    """The fused programs of a bundle's variant, by (program, batch); safe to use from several threads."""

    def __init__(self, bundle: Bundle, components: Mapping[str, str], threads: int) -> None:
        self.bundle, self.threads = bundle, threads
        self._models = {name: parse_model(bundle.member(member), member) for name, member in components.items()}
        self._made: dict[tuple[str, int], tuple[Fused, Any]] = {}
        self._lock = threading.Lock()

    def run(self, name: str, program: Program, inputs: Mapping[str, Tensor], batch: int, seed: int) -> Tensor:
        """The sample of a program. inputs: as `Executable.run` takes them, batch in front. Raises RuntimeFault, or ProgramError if it
        cannot be fused.
        """
        fused, engine = self._made.get((name, batch)) or self._make(name, program, batch)
        feeds = dict(inputs)
        for draw_name, (draw, shape) in fused.draws.items():
            feeds[draw_name] = normals(seed, draw, shape)
        try:
            (sample,) = engine.run(["out.sample"], feeds)
        except Exception as e:  # ONNX Runtime's exceptions have no common public base
            raise RuntimeFault(f"program {name!r} failed in ONNX Runtime: {e}", Status.BACKEND_FAILED) from e
        if not np.isfinite(sample).all():
            raise RuntimeFault(f"program {name!r}: the sample is NaN or infinite; run it step by step to see where it began", Status.NONFINITE)
        return np.asarray(sample)

    def _make(self, name: str, program: Program, batch: int) -> tuple[Fused, Any]:
        with self._lock:
            if (name, batch) not in self._made:
                manifest = self.bundle.manifest
                specs = {c.name: (c.dtype, c.shape) for c in manifest.conditions}
                inputs = {i.name: specs[i.name] if i.kind == "condition" else ("float32", manifest.sample.shape) for i in program.inputs}
                fused = fuse(program, self._models, inputs, batch)
                self._made[name, batch] = fused, open_engine(fused.model.SerializeToString(), f"fused program {name!r}", self.threads)
            return self._made[name, batch]

    def close(self) -> None:
        """Release the engine's sessions."""
        self._made.clear()
