"""libedgegen beside bare ONNX Runtime, the Python runtime and diffusers + torch.

    python -m benchmarks.native --json native.json

Interpreter: programs of 10 guided steps at the size of `digits` with networks that take no time, in us per step, noise included. Networks: a
decision of `reach_policy` in 3 steps and a digit in 10, batch 1, beside the bare `OrtApi::Run` calls of the same program. Contenders run in
their own processes and in turns (benchmarks/README.md). Needs `make native-tests`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.common import ROOT, WORK, bar, built, finish
from edgegen import canonical
from edgegen.bundle import Bundle, ProgramEntry, bundle_bytes, open_bundle
from edgegen.errors import EdgegenError
from edgegen.program import Eval, program_to_json
from edgegen.runtime.native import onnxruntime_library
from edgegen.search import Subject
from edgegen.solvers import SOLVERS
from edgegen.targets.onnxruntime import network_of
from edgegen.timing import alternate, serve

CONTENDER = ROOT / "build" / "native-test" / "tests" / "test-contender"


def solver_bundle(digits: Bundle, steps: int) -> tuple[Path, list[str]]:
    """A bundle of `digits` with a program of every solver that fits it, and their names."""
    programs = {}
    (signature,) = digits.manifest.components.values()
    inputs = {t.name for t in signature.inputs}
    with Subject(digits, samples=1, threads=1) as subject:
        for solver in SOLVERS:
            try:
                program = replace(subject.program(solver, steps), name=solver)
            except EdgegenError:
                continue
            if all(set(i.inputs) == inputs for i in program.instructions if isinstance(i, Eval)):
                programs[solver] = program
    variant = digits.manifest.variants[0]
    kept = {name: digits.member(name) for name in (*variant.components.values(), *variant.weights.values())}
    entries = tuple(ProgramEntry(name, steps, f"{name}.json") for name in programs)
    members = kept | {f"{name}.json": canonical.encode(program_to_json(program)) for name, program in programs.items()}
    manifest = replace(digits.manifest, programs=entries, variants=(replace(variant, golden=(), fused=()),), documents={})
    path = WORK / "digits-solvers.edgegen"
    path.write_bytes(bundle_bytes(manifest, members))
    return path, list(programs)


def interpreter(digits: Bundle, rounds: int) -> dict[str, float]:
    """us:interpreter:SOLVER, per step."""
    steps = 10
    path, names = solver_bundle(digits, steps)
    commands = {name: [str(CONTENDER), "interpreter", str(path), "float32", name] for name in names}
    seconds = alternate(commands, rounds=rounds, runs=100)
    return {f"us:interpreter:{name}": statistics.median(values) / steps * 1e6 for name, values in seconds.items()}


def plain(model: str, threads: str, calls: str, rows: str) -> None:
    """A network in nothing but ONNX Runtime's Python package, called so often with so many rows, as a contender: all inputs are zeros."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    session = onnxruntime.InferenceSession(model, options)
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    feeds = {i.name: np.zeros([n if isinstance(n, int) else int(rows) for n in i.shape], kinds[i.type]) for i in session.get_inputs()}
    serve(lambda: [session.run(None, feeds) for _ in range(int(calls))])


def fused_model(path: Path, variant: str) -> Path:
    """The default program of a bundle as one ONNX file."""
    from edgegen.fusing import fused_onnx

    bundle = open_bundle(path)
    target = WORK / f"{bundle.manifest.name}.{variant}.fused.onnx"
    target.write_bytes(fused_onnx(bundle, variant=variant).SerializeToString())
    return target


def beside(path: Path, fused: Path, variant: str, steps: int, threads: int, torch: list[str], rounds: int, runs: int) -> dict[str, float]:
    """Medians in us of one generation by each contender. fused: a bundle that holds the default program fused."""
    bundle = open_bundle(path)
    entry = next(p for p in bundle.manifest.programs if p.steps == steps)
    library = onnxruntime_library()
    assert library is not None
    python = [sys.executable, "-m", "edgegen.runtime.contender", str(path), variant, entry.name, str(threads), "1"]
    calls = [i for i in bundle.programs[entry.name].instructions if isinstance(i, Eval)]
    (rows,) = {max(len(registers) for registers in call.inputs.values()) for call in calls}
    name = bundle.manifest.name
    model = WORK / f"{name}.{variant}.onnx"
    model.write_bytes(network_of(bundle, next(v for v in bundle.manifest.variants if v.name == variant), calls[0].component).SerializeToString())
    commands = {
        "bare": [str(CONTENDER), "calls", str(model), str(rows), str(len(calls)), str(threads), library],
        "c": [str(CONTENDER), "generate", str(path), variant, entry.name, str(threads), library],
        "python-native": [*python, "native"],
        "python": python,
        "c-fused": [str(CONTENDER), "generate", str(fused), variant, entry.name, str(threads), library],
        "python-fused": [*python[:3], str(fused), *python[4:]],
        "onnxruntime-bare": [sys.executable, "-m", "benchmarks.native", "--plain", str(model), str(threads), str(len(calls)), str(rows)],
        "onnxruntime-fused": [sys.executable, "-m", "benchmarks.native", "--plain", str(fused_model(fused, variant)), str(threads), "1", "1"],
        "diffusers+torch": torch,
    }  # fmt: skip
    seconds = alternate(commands, rounds=rounds, runs=runs)
    return {f"us:{name}:{contender}": statistics.median(values) * 1e6 for contender, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--plain", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        plain(*args.plain)
        return
    digits, reach = built("digits", measured=False), built("reach_policy", measured=False)
    forms = {family: built(family, measured=False, settings=("target.form=fused",), suffix="-fused") for family in ("digits", "reach_policy")}
    python = [sys.executable, "-m"]
    figures = interpreter(open_bundle(digits), args.rounds)
    torch = [*python, "benchmarks.policy", "--contender", "diffusers+torch"]
    figures |= beside(reach, forms["reach_policy"], "float32", 3, 1, torch, 2 * args.rounds, 100)
    torch = [*python, "benchmarks.peers", "--contender", "diffusers+torch", "--threads", "2"]
    figures |= beside(digits, forms["digits"], "int8", 10, 2, torch, args.rounds, 4)
    for name, value in figures.items():
        print(f"{name:<40}{value:>12.2f}")
    worst, name = max((value, name) for name, value in figures.items() if name.startswith("us:interpreter:"))
    ratio = figures["us:reach_policy:c"] / figures["us:reach_policy:bare"]
    torch_us, fused_us = figures["us:reach_policy:diffusers+torch"], figures["us:reach_policy:c-fused"]
    calls = figures["us:reach_policy:onnxruntime-fused"] / figures["us:reach_policy:onnxruntime-bare"]
    figures["ratio:reach_policy:c-fused:bare"] = fused_us / figures["us:reach_policy:bare"]
    bars = [
        bar(f"interpreter, us per step at digits size, the worst solver ({name.rpartition(':')[2]})", worst, "<=", 20.0),
        bar("reach_policy in 3 steps from C over its bare ONNX Runtime calls", ratio, "<=", 1.15),
        bar("reach_policy in 3 steps, the fused network over three bare session calls", calls, "<=", 0.8),
        bar("reach_policy in 3 steps, fused, from C over diffusers + torch", fused_us / torch_us, "<=", 0.12),
    ]
    finish(args.json, figures, bars)


if __name__ == "__main__":
    main()
