"""Quality of quantization: calibration sets, ways to round, bits and scales by time, on the final samples at equal noise.

    python -m benchmarks.quantization --json quantization.json [--family ddpm_mnist --checkpoint PATH] [--seeds 3] [--part calibration]

Reproduces the experiment of the quantization issue on a trained network. The error is the mean over 128 noises of ||sample - float|| / ||float||
after the whole default program. The noise that is judged calibrates nothing. Parts: weights, calibration, schemes (default: all).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, WORK, bar, finish
from edgegen.calibration import Batch, CalibrationContext, calibration_set, collect_record
from edgegen.judging import Judge, TimedComponent
from edgegen.pipeline import Options, build
from edgegen.plan import make_plan
from edgegen.quality import distance, relative_errors
from edgegen.quantize import Ranges, Record, choose_ranges
from edgegen.quantize.scheme import SCHEMES
from edgegen.quantizing import Quantizer, hessians, round_weight
from edgegen.recipe import Quantization, load_recipe
from edgegen.targets.onnxruntime import OrtComponent, parse_model
from edgegen.targets.onnxruntime.qdq import quantize, watched
from edgegen.targets.onnxruntime.scales import TimedScales
from edgegen.trajectory import network_times
from edgegen.workspace import Workspace

HELD_OUT, SAMPLES, FIRST_SEED = 128, 48, 10
SETS: dict[str, tuple[str, dict[str, Any], int]] = {
    "single, noisiest": ("single", {}, SAMPLES),
    "single, noisiest, 8x": ("single", {}, 8 * SAMPLES),
    "ptq4dm": ("ptq4dm", {}, 8 * SAMPLES),
    "uniform": ("uniform", {"times": 8}, SAMPLES),
    "density_variety": ("density_variety", {}, 8 * SAMPLES),
    "deployed": ("deployed", {}, SAMPLES),
}
"""Rows of the table: the calibration set, its options, how many trajectories."""


class Subject:
    """A family's float network, its default program, and the judge with the float samples."""

    def __init__(self, family: str, settings: tuple[str, ...]) -> None:
        recipe = ROOT / "export" / family / "recipe.toml"
        self.plan = make_plan(load_recipe(recipe, settings), recipe.parent, trust_pickle=True)
        exported = build(self.plan, WORK / "unused", Workspace(WORK / "cache"), Options("export"))
        self.model = parse_model((exported / "float32.onnx").read_bytes(), "float32.onnx")
        self.program = next(iter(self.plan.programs.values()))
        self.network = OrtComponent(self.plan.component, self.model.SerializeToString(), self.plan.signature, threads=0)
        judge = Judge(self.plan.component, self.program, self.plan.conditions, self.plan.sample, HELD_OUT, 12_345, batch=32)
        self.judge = replace(judge, reference=judge.generate(self.network))

    def batches(self, name: str, options: dict[str, Any], samples: int, seed: int) -> list[Batch]:
        """The inputs of a calibration set, for the default program."""
        made, _ = calibration_set(name, [ROOT / "calib"], options)
        names = self.plan.recipe.model.names
        context = CalibrationContext(
            {self.plan.component: self.network}, (self.program,), self.plan.conditions, self.plan.sample, samples, 16, seed, self.plan.process,
            self.plan.many_steps, time=names.t, model={self.plan.component: self.model},
        )  # fmt: skip
        return list(made(context))

    def quantizer(self, batches: list[Batch], options: Quantization, *, symmetric: bool = False) -> Quantizer:
        """A quantizer calibrated on some batches."""
        names = self.plan.recipe.model.names

        def given() -> Iterator[Batch]:
            return iter(batches)

        made = Quantizer(
            self.model, self.plan.component, self.plan.signature, names.x, names.output, options, Record({}), given, "int8" if symmetric else "uint8"
        )
        tensors = watched(self.model, made.placements)
        component = self.plan.component
        made.record = collect_record({component: self.model}, {component: self.plan.signature}, {component: tensors}, iter(batches))
        return made

    def error(self, model: Any, ranges: Ranges | None = None, tensors: tuple[str, ...] = (), *, symmetric: bool = False) -> tuple[float, float]:
        """(relative error, PSNR in dB) of a network's samples; with ranges by time, of a network per time."""
        if ranges is None or not ranges.times:
            with OrtComponent(self.plan.component, model.SerializeToString(), self.plan.signature, threads=0) as network:
                samples = self.judge.generate(network)
        else:
            name = self.plan.recipe.model.names.t
            kind = "int8" if symmetric else "uint8"
            constants = TimedScales.of(ranges, tensors, network_times(self.program, name), name, kind).constants
            with TimedComponent(self.plan.component, model, self.plan.signature, name, constants, threads=0) as timed:
                samples = self.judge.generate(timed)
        span = self.plan.sample.high - self.plan.sample.low
        reference = self.judge.expected
        return float(relative_errors(reference, samples).mean()), distance(reference, samples, span).psnr_db


class Figures:
    """Errors per row and seed; their means go to the JSON file."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.rows: dict[str, list[float]] = {}
        self.start = time.monotonic()

    def add(self, name: str, found: tuple[float, float]) -> None:
        """Note a row's error and PSNR."""
        self.rows.setdefault(name, []).append(found[0])
        self.rows.setdefault(f"psnr:{name}", []).append(found[1])
        print(f"{time.monotonic() - self.start:6.0f} s  {self.prefix}{name:<42} {found[0]:.4f}  {found[1]:.1f} dB", flush=True)

    def mean(self, name: str) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.rows[name])

    def spread(self, name: str) -> float:
        """The largest over the smallest."""
        return max(self.rows[name]) / min(self.rows[name])

    def all(self) -> dict[str, float]:
        """Means by name."""
        return {f"{self.prefix}{name}": statistics.fmean(values) for name, values in self.rows.items()}


def weights(subject: Subject, figures: Figures, seed: int) -> None:
    """Rounding of weights, activations in float."""
    deployed = subject.batches("deployed", {}, SAMPLES, seed)
    states = sum(len(next(iter(b.feeds.values()))) for b in deployed) // (2 if subject.plan.recipe.programs[0].guidance else 1)
    times = network_times(subject.program, subject.plan.recipe.model.names.t)
    sets = {
        "deployed": deployed, "noisiest time": subject.batches("single", {"time": times[0]}, states, seed),
        "least noisy time": subject.batches("single", {"time": times[-1]}, states, seed),
    }  # fmt: skip
    quantizer = subject.quantizer(deployed[:1], Quantization(weights="nearest"))
    arrays = quantizer.arrays()
    cases = {"w8": (8, 0), "w4": (4, 0), "w4 g32": (4, 32)}

    def case(name: str, codes: dict[str, Any]) -> None:
        figures.add(name, subject.error(quantize(subject.model, [], Ranges({}), stored=codes)))

    for name, (bits, block) in cases.items():
        case(f"{name} nearest", {p.weight: round_weight(arrays[p.weight], p.axis, None, bits, block, "nearest") for p in quantizer.placements})
    for set_name, batches in sets.items():
        made: dict[str, dict[str, Any]] = {name: {} for name in cases}
        by_node = {p.node: p for p in quantizer.placements}
        for i, hessian in hessians(subject.model, subject.plan.component, subject.plan.signature, sorted(by_node), lambda b=batches: iter(b)):
            p = by_node[i]
            for name, (bits, block) in cases.items():
                made[name][p.weight] = round_weight(arrays[p.weight], p.axis, hessian, bits, block, "gptq")
        for name, codes in made.items():
            case(f"{name} gptq {set_name}", codes)


def calibration(subject: Subject, figures: Figures, seed: int) -> None:
    """Calibration sets and estimators, weights GPTQ int8 of the deployed trajectory in all of them."""
    reference = subject.quantizer(subject.batches("deployed", {}, SAMPLES, seed), Quantization())
    codes = reference.codes(8, reference.placements)
    for name, (chosen, options, samples) in SETS.items():
        quantizer = reference if chosen == "deployed" else subject.quantizer(subject.batches(chosen, options, samples, seed), Quantization())
        for symmetric, kind in ((True, "s8"), (False, "u8")):
            for estimator in ("minmax", "mse"):
                for times in ("shared", "step") if chosen == "deployed" else ("shared",):
                    ranges = choose_ranges(quantizer.record, estimator, times, symmetric=symmetric)
                    integers = "int8" if symmetric else "uint8"
                    model = quantize(subject.model, quantizer.placements, ranges, codes=codes, integers=integers)
                    tensors = watched(subject.model, quantizer.placements)
                    label = f"{name} {times} {kind} {estimator}" if chosen == "deployed" else f"{name} {kind} {estimator}"
                    figures.add(label, subject.error(model, ranges, tensors, symmetric=symmetric))


def schemes(subject: Subject, figures: Figures, seed: int) -> None:
    """Whole precisions as they are built, and what the keep-list is worth."""
    batches = subject.batches("deployed", {}, SAMPLES, seed)
    quantizer = subject.quantizer(batches, Quantization())
    for name in ("int8", "w4a8", "w8a16", "w4a16", "float16", "float8"):
        made = quantizer.network(SCHEMES[name])
        figures.add(f"scheme {name}", subject.error(made.model, made.ranges, made.tensors))
    nearest = subject.quantizer(batches, Quantization(weights="nearest", times="shared", ranges="minmax"))
    everything = subject.quantizer(batches, Quantization(weights="nearest", times="shared", ranges="minmax", rules=()))
    for name, q in (("kept by rule", nearest), ("everything", everything)):
        made = q.network(SCHEMES["int8"])
        figures.add(f"nearest int8, {name}", subject.error(made.model))


def bars_of(figures: Figures) -> list[dict[str, object]]:
    """The bars of the specification, section 5, as far as their figures were measured."""
    bars: list[dict[str, object]] = []
    mean, here = figures.mean, figures.rows

    def ratio(name: str, a: str, b: str, op: str, bound: float) -> None:
        if a in here and b in here:
            bars.append(bar(f"{figures.prefix}{name}", mean(a) / mean(b), op, bound))

    h = "deployed step s8 minmax"
    if h in here:
        bars.append(bar(f"{figures.prefix}1: spread over seeds of {h}", figures.spread(h), "<=", 1.15))
        bars.append(bar(f"{figures.prefix}1: error of {h}", mean(h), "<=", 0.024))
        bars.append(bar(f"{figures.prefix}1: PSNR of {h}", mean(f"psnr:{h}"), ">=", 41.5))
    ratio("2: single noisiest over H", "single, noisiest s8 minmax", h, ">=", 2.0)
    ratio("3: PTQ4DM over H", "ptq4dm s8 minmax", h, ">=", 1.6)
    ratio("4: uniform over H", "uniform s8 minmax", h, ">=", 1.4)
    ratio("5: deployed shared over H", "deployed shared s8 minmax", h, ">=", 1.15)
    ratio("6: H of int8 over uint8", h, "deployed step u8 minmax", ">=", 1.2)
    ratio("7: mse shared over H", "deployed shared s8 mse", h, "<=", 1.15)
    ratio("7: mse by time over H", "deployed step s8 mse", h, "<=", 1.15)
    if "w8 gptq deployed" in here:
        bars.append(bar(f"{figures.prefix}8: W8A16 GPTQ", mean("w8 gptq deployed"), "<=", 0.010))
        bars.append(bar(f"{figures.prefix}10: W4A16 g32", mean("w4 g32 gptq deployed"), "<=", 0.075))
    ratio("8: W8 nearest over GPTQ", "w8 nearest", "w8 gptq deployed", ">=", 3.0)
    ratio("9: W4 GPTQ over nearest", "w4 gptq deployed", "w4 nearest", "<=", 0.55)
    ratio("9: W4 g32, last time's Hessian over deployed", "w4 g32 gptq least noisy time", "w4 g32 gptq deployed", ">=", 1.4)
    ratio("9: W8, last time's Hessian over deployed", "w8 gptq least noisy time", "w8 gptq deployed", ">=", 1.4)
    if "scheme w4a8" in here:
        bars.append(bar(f"{figures.prefix}10: W4A8 g32 by time", mean("scheme w4a8"), "<=", 0.080))
        bars.append(bar(f"{figures.prefix}10: W8A8 uint8 by time, PSNR", mean("psnr:scheme int8"), ">=", 43.5))
    ratio("11: everything int8 over the keep-list", "nearest int8, everything", "nearest int8, kept by rule", ">=", 3.0)
    return bars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="digits")
    parser.add_argument("--checkpoint", type=Path, default=ROOT.parent / "shared" / "data" / "ddpm_mnist_unet" / "model_unet_res.pth")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=["weights", "calibration", "schemes"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = (f"model.weights={args.checkpoint}",) if args.family == "ddpm_mnist" else ()
    subject = Subject(args.family, settings)
    figures = Figures(f"{args.family}: ")
    parts = {"weights": weights, "calibration": calibration, "schemes": schemes}
    for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
        for name, part in parts.items():
            if args.part in (None, name):
                part(subject, figures, seed)
        finish(args.json, {k: v for k, v in figures.all().items() if math.isfinite(v)}, bars_of(figures))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
