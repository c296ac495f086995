"""Programs run as one engine call each: from the variant's fused networks, or made when they are first asked for with a batch, and kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.bundle import Bundle, FusedEntry, Variant
from edgegen.errors import RuntimeFault, Status
from edgegen.fusing import fused_onnx
from edgegen.program import initial_state, normals
from edgegen.targets.component import Component
from edgegen.targets.onnxruntime import OrtComponent, fused_signature
from edgegen.targets.opening import open_fused

__all__ = ["FusedPrograms"]

Tensor = npt.NDArray[Any]


class FusedPrograms:
    """The fused programs of a bundle's variant, by (program, batch); safe to use from several threads.

    made: make those that the variant does not hold.
    """

    def __init__(self, bundle: Bundle, variant: Variant, threads: int, *, made: bool) -> None:
        self.bundle, self.variant, self.threads, self.made = bundle, variant, threads, made
        self._entries = {(f.program, f.batch): f for f in variant.fused}
        self._open: dict[tuple[str, int], Component] = {}
        self._lock = threading.Lock()

    def has(self, name: str, batch: int) -> bool:
        """Whether `run` can run a program at a batch."""
        return self.made or (name, batch) in self._entries

    def run(self, name: str, conditions: Mapping[str, Tensor], noise: Tensor | None, batch: int, seed: int) -> tuple[Tensor, dict[str, float]]:
        """A program's sample and the seconds that it took; arguments as of `Stepwise.run`.

        Raises BundleError (INCONSISTENT), RuntimeFault, or ProgramError if it cannot be fused.
        """
        program = self.bundle.programs[name]
        network = self._open.get((name, batch)) or self.open(name, batch)
        start = normals(seed, 0, (batch, *self.bundle.manifest.sample.shape)) if noise is None else noise
        feeds = dict(conditions) | initial_state(program, start)
        for spec in network.signature.inputs[len(feeds) :]:
            feeds[spec.name] = normals(seed, int(spec.name.removeprefix("draw.")), spec.shape)  # type: ignore[arg-type]
        began = time.perf_counter()
        sample = network.run(feeds)["out.sample"]
        seconds = time.perf_counter() - began
        if not np.isfinite(sample).all():
            raise RuntimeFault(f"program {name!r}: the sample is NaN or infinite; run it step by step to see where it began", Status.NONFINITE)
        return sample, {"fused": seconds}

    def open(self, name: str, batch: int) -> Component:
        """The network of a program at a batch, opened when it is first needed."""
        with self._lock:
            if (name, batch) not in self._open:
                entry = self._entries.get((name, batch))
                self._open[name, batch] = (
                    self._make(name, batch) if entry is None else open_fused(self.bundle, self.variant, entry, threads=self.threads)
                )
            return self._open[name, batch]

    def _make(self, name: str, batch: int) -> OrtComponent:
        model = fused_onnx(self.bundle, name, variant=self.variant.name, batch=batch).SerializeToString()
        signature = fused_signature(self.bundle, FusedEntry(name, batch, ""))
        return OrtComponent(name, model, signature, threads=self.threads, providers=self.variant.providers, what=f"fused program {name!r}")

    def close(self) -> None:
        """Release the engine's sessions."""
        for network in self._open.values():
            network.close()
        self._open.clear()
