"""Programs run step by step: the reference interpreter calls each network when its turn comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.bundle import Bundle, Variant
from edgegen.program import Executable, StreamState, initial_state, normals
from edgegen.program.interpreter import OnStep
from edgegen.targets.component import Component
from edgegen.targets.opening import open_component

__all__ = ["Stepwise"]

Tensor = npt.NDArray[Any]


class _Timed:
    """A component that counts its time within one run."""

    __slots__ = ("component", "seconds")

    def __init__(self, component: Component) -> None:
        self.component = component
        self.seconds = 0.0

    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        feeds = self.component.feeds(arrays)
        began = time.perf_counter()
        outputs = self.component.run(feeds)
        self.seconds += time.perf_counter() - began
        return outputs


class Stepwise:
    """A variant's networks in ONNX Runtime, and the bundle's programs; safe to use from several threads."""

    def __init__(self, bundle: Bundle, variant: Variant, threads: int) -> None:
        self._sample = bundle.manifest.sample.shape
        self._programs = {name: Executable(program) for name, program in bundle.programs.items()}
        self._bundle, self._variant, self._threads = bundle, variant, threads
        self._components: dict[str, Component] = {}
        self._lock = threading.Lock()

    def open(self) -> dict[str, Component]:
        """The networks, opened when they are first needed: a session that only runs fused programs needs none."""
        with self._lock:
            if not self._components:
                made = {n: open_component(self._bundle, self._variant, n, threads=self._threads) for n in self._variant.components}
                self._components = made
            return self._components

    def run(
        self, name: str, conditions: Mapping[str, Tensor], noise: Tensor | None, batch: int, seed: int, on_step: OnStep | None,
        stream: StreamState | None = None,
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        """A program's sample, and the seconds spent in each network. conditions: as they were declared, the batch in front.

        noise: standard normals to start from; None draws the seed's. stream: see `Executable.run`.
        """
        executable = self._programs[name]
        call = 0 if stream is None else stream.calls
        start = normals(seed, 0, (batch, *self._sample), call) if noise is None else noise
        inputs = dict(conditions) | initial_state(executable.program, start)
        timed = {component: _Timed(opened) for component, opened in (self._components or self.open()).items()}
        sample = executable.run(timed, inputs, seed=seed, on_step=on_step, stream=stream, rows=batch)["sample"]
        return np.asarray(sample), {component: t.seconds for component, t in timed.items()}

    def open_stream(self, name: str, batch: int, seed: int) -> StepwiseStream:
        """A stream of a program with states, from its beginning."""
        return StepwiseStream(self, name, batch, seed)

    def close(self) -> None:
        """Release the engine's sessions."""
        for component in self._components.values():
            component.close()


class StepwiseStream:
    """One stream: the states of one program between its calls."""

    def __init__(self, runner: Stepwise, name: str, batch: int, seed: int) -> None:
        self._runner, self._name, self._batch, self._seed = runner, name, batch, seed
        self._state = StreamState()

    def step(self, conditions: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """One call; if it raises, the stream is as before."""
        return self._runner.run(self._name, conditions, None, self._batch, self._seed, None, self._state)

    def reset(self) -> None:
        """Back to the beginning."""
        self._state = StreamState()

    def close(self) -> None:
        """Nothing is held."""
