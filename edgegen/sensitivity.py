"""What quantizing each layer alone does to the final samples, and what its integers save: measured, and used to choose which layers stay float.

In: a `Quantizer`, a `Judge` with the float network's samples. Out: `Effect`s, and a network within its bounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import BuildError
from edgegen.judging import Judge
from edgegen.quality import Bounds, Verdict
from edgegen.quantize.mixed import Effect, Point, repaired, searched
from edgegen.quantize.ranges import Ranges
from edgegen.quantize.scheme import Scheme
from edgegen.quantizing import Network, Quantizer
from edgegen.targets.onnxruntime import OrtComponent
from edgegen.targets.onnxruntime.kernels import layer_times, time_of
from edgegen.targets.onnxruntime.qdq import quantize
from edgegen.targets.placement import Placement
from edgegen.trajectory import network_times

if TYPE_CHECKING:
    import onnx

__all__ = ["Choice", "Trial", "measure_effects", "repair", "search"]

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
WORST = 0.2
"""The share of layers whose effect is measured for each step by itself."""
REPAIRED = "put back to float to pass the gate"
SEARCHED = "put back to float by the search"


class _OneStep:
    """The float network, but at one network time another."""

    def __init__(self, network: OrtComponent, other: OrtComponent, time: str, at: float) -> None:
        self.network, self.other, self.time, self.at = network, other, time, at

    def __call__(self, **arrays: Array) -> dict[str, Array]:
        chosen = self.other if float(np.asarray(arrays[self.time]).flat[0]) == self.at else self.network
        return chosen(**arrays)


@dataclass(frozen=True, slots=True)
class Trial:
    """Networks of one quantizer, tried on a judge's samples against bounds."""

    quantizer: Quantizer
    scheme: Scheme
    judge: Judge
    bounds: Bounds
    threads: int = 1

    def open(self, model: onnx.ModelProto) -> OrtComponent:
        """A network of the quantizer's component."""
        return OrtComponent(self.quantizer.component, model.SerializeToString(), self.quantizer.signature, threads=self.threads)

    def verdict(self, model: onnx.ModelProto) -> Verdict:
        """How a network's final samples stand to the bounds."""
        with self.open(model) as network:
            samples = self.judge.generate(network)
        return self.bounds.judge(self.judge.expected, samples, self.judge.drawn)

    def error(self, model: onnx.ModelProto) -> float:
        """The relative error of a network's final samples."""
        with self.open(model) as network:
            return self.judge.error(network)


@dataclass(frozen=True, slots=True)
class Choice:
    """A network, how it did on the calibration's noise, what was measured on the way. points: a search's choices; effects: of each layer."""

    network: Network
    verdict: Verdict
    floats: Mapping[str, str]
    effects: tuple[Effect, ...] = ()
    points: tuple[Point, ...] = ()


def _alone(trial: Trial, placement: Placement, ranges: Ranges, *, weight: bool) -> onnx.ModelProto:
    """The float network with one layer's weight, or what it reads and writes, quantized."""
    quantizer = trial.quantizer
    if weight:
        return quantize(quantizer.model, [], Ranges({}), stored=dict(quantizer.codes(trial.scheme.weight_bits, [placement])))
    return quantize(quantizer.model, [placement], ranges, integers=quantizer.integers, float_weights=True)


def _effects(trial: Trial, ranges: Ranges, saves: Mapping[str, float], tick: Callable[[], None]) -> list[Effect]:
    """The effect of each layer that the scheme quantizes, its weight and its activations one by one."""
    made = []
    for p in trial.quantizer.placements:
        weight = trial.error(_alone(trial, p, ranges, weight=True))
        tick()
        activation = 0.0
        if trial.scheme.activation_bits:
            activation = trial.error(_alone(trial, p, ranges, weight=False))
            tick()
        made.append(Effect(p.weight, weight, activation, saves.get(p.weight, 0.0)))
    return made


def measure_effects(trial: Trial, feeds: Mapping[str, Array], time: str, progress: Progress | None = None) -> tuple[Effect, ...]:
    """The effect of each layer that the scheme quantizes, in the network's order; of the worst `WORST` of them also at each step.

    feeds: inputs of one evaluation, on which layers are timed. time: the network's time input.
    """
    quantizer, integers = trial.quantizer, bool(trial.scheme.activation_bits)
    placements, ranges = quantizer.placements, quantizer.ranges() if integers else Ranges({})
    quantizer.round([(trial.scheme.weight_bits, p) for p in placements])
    worst, times = max(1, round(WORST * len(placements))), network_times(trial.judge.program, time)
    tick = _ticker(progress, len(placements) * (1 + integers) + worst * len(times))
    effects = _effects(trial, ranges, _savings(trial, feeds, placements) if integers else {}, tick)
    by_weight = {p.weight: p for p in placements}
    ranked = sorted(effects, key=lambda e: -e.error)[:worst]
    steps: dict[str, tuple[tuple[float, float], ...]] = {}
    with trial.open(quantizer.model) as plain:
        for effect in ranked:
            p = by_weight[effect.layer]
            codes = quantizer.codes(trial.scheme.weight_bits, [p])
            both = quantize(quantizer.model, [p] if integers else [], ranges, codes=codes, stored={} if integers else dict(codes),
                            integers=quantizer.integers)  # fmt: skip
            rows = []
            with trial.open(both) as network:
                for at in times:
                    rows.append((at, trial.judge.error(_OneStep(plain, network, time, at))))
                    tick()
            steps[effect.layer] = tuple(rows)
    return tuple(replace(e, steps=steps.get(e.layer, ())) for e in effects)


def _ticker(progress: Progress | None, total: int) -> Callable[[], None]:
    """Tells `progress` of one more of `total` at each call."""
    done = itertools.count(1)

    def tick() -> None:
        count = next(done)
        if progress is not None:
            progress(count, total)

    return tick


def _savings(trial: Trial, feeds: Mapping[str, Array], placements: Sequence[Placement]) -> dict[str, float]:
    """Milliseconds of an evaluation that each layer's integers save: its kernel's, less its share of what the conversions around them cost."""
    quantizer = trial.quantizer
    quantized = quantizer.network(trial.scheme).model
    before, after = layer_times(quantizer.model, feeds), layer_times(quantized, feeds)
    kernels = {}
    for p in placements:
        a, b = time_of(before, quantizer.node(p)), time_of(after, quantizer.node(p))
        kernels[p.weight] = a - b if a is not None and b is not None else None
    known = [v for v in kernels.values() if v is not None]
    overhead = (sum(known) - (sum(before.values()) - sum(after.values()))) / max(len(known), 1)
    usual = float(np.mean(known)) if known else 0.0
    return {name: (usual if v is None else v) - max(overhead, 0.0) for name, v in kernels.items()}


def repair(trial: Trial, first: Network, verdict: Verdict, most: int, progress: Progress | None = None) -> Choice:
    """A network within the bounds, by putting back to float the fewest of the worst layers, at most `most`; `first`, and its verdict, if it is."""
    if verdict.passed or most == 0:
        return Choice(first, verdict, {})
    placements = trial.quantizer.placements
    ranges = trial.quantizer.ranges() if trial.scheme.activation_bits else Ranges({})
    effects = _effects(trial, ranges, {}, _ticker(progress, len(placements) * (2 if trial.scheme.activation_bits else 1)))
    order = [e.layer for e in sorted(effects, key=lambda e: -e.error)][: len(placements) - 1]
    tried: dict[frozenset[str], tuple[Network, Verdict]] = {frozenset(): (first, verdict)}

    def measure(floats: frozenset[str]) -> float:
        if floats not in tried:
            network = trial.quantizer.network(trial.scheme, dict.fromkeys(sorted(floats), REPAIRED))
            tried[floats] = network, trial.verdict(network.model)
        return tried[floats][1].excess

    floats, _ = repaired(order, measure, 1.0, most)
    network, found = tried[floats]
    return Choice(network, found, dict.fromkeys(sorted(floats), REPAIRED), tuple(effects))


def search(trial: Trial, effects: Sequence[Effect]) -> Choice:
    """The network of the least time whose samples are within the bounds, by `edgegen.quantize.mixed.searched`.

    Raises BuildError if no layer is faster in integers.
    """
    tried: dict[frozenset[str], tuple[Network, Verdict]] = {}
    budget = trial.bounds.budget(trial.judge.expected)
    everything = frozenset(e.layer for e in effects)

    def measure(floats: frozenset[str]) -> float:
        if floats == everything:
            return 0.0
        network = trial.quantizer.network(trial.scheme, dict.fromkeys(sorted(floats), SEARCHED))
        tried[floats] = network, trial.verdict(network.model)
        verdict = tried[floats][1]
        return verdict.relative_error if verdict.passed else max(verdict.relative_error, budget * verdict.excess)

    point, points = searched(effects, measure, budget)
    if not tried:
        raise BuildError("the search leaves nothing in integers: no layer's integers save time here")
    if point.floats not in tried:
        floats = min(tried, key=lambda f: tried[f][1].excess)
        point = next(p for p in points if p.floats == floats)
    network, verdict = tried[point.floats]
    return Choice(network, verdict, dict.fromkeys(sorted(point.floats), SEARCHED), tuple(effects), tuple(points))
