"""How long the host needs: a 50-step program of every solver, and the verifier on programs of 1,000 steps.

    python -m benchmarks.compile --json compile.json

Medians of repeated runs in one process: this is the compiler's own arithmetic, without an engine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import bar, finish
from edgegen.diffusion import make_process
from edgegen.program import verify
from edgegen.solvers import SOLVERS, build_program
from edgegen.solvers.table import EXAMPLES, example

SPECIAL = {
    "ddgan": [({"name": "vp_betas", "schedule": "ddgan", "steps": 50}, "sample")],
    "prodiff": [({"name": "vp_betas", "schedule": "prodiff", "steps": 51}, "sample")],
}


def median_ms(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    figures: dict[str, float] = {}
    for solver in SOLVERS:
        process, prediction, program = example(solver, 50, [*SPECIAL.get(solver, ()), *EXAMPLES])
        figures[f"ms:build:{solver}"] = median_ms(lambda s=solver, p=process, q=prediction: build_program(s, p, q, 50), args.repeats)
        print(f"{solver:12} {figures[f'ms:build:{solver}']:6.1f} ms for 50 steps, {len(program.instructions)} instructions")
    vp = make_process("vp_linear")
    for solver in ("ddim", "dpmpp_2m", "unipc", "sa_solver", "dpmpp_sde"):
        program = build_program(solver, vp, "epsilon", 1000, guidance=2.0)
        figures[f"ms:verify:{solver}"] = median_ms(lambda p=program: verify(p), args.repeats)
        print(f"{solver:12} {figures[f'ms:verify:{solver}']:6.1f} ms to verify 1,000 guided steps, {len(program.instructions)} instructions")
    slowest = max(v for k, v in figures.items() if k.startswith("ms:build:"))
    verifying = max(v for k, v in figures.items() if k.startswith("ms:verify:"))
    bars = [bar("a 50-step program of any solver, ms", slowest, "<=", 50.0), bar("verifying 1,000 steps, ms", verifying, "<=", 100.0)]
    finish(args.json, figures, bars)


if __name__ == "__main__":
    main()
