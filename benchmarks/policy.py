"""The reach_policy family in closed loop: success for each solver and number of steps, and the time of one decision beside diffusers + torch.

    python -m benchmarks.policy --json policy.json

Success: the share of `--episodes` simulated episodes that reach the goal without touching an obstacle; the same starts, goals and noise
for every row. Time: 3 steps, batch 1, one thread, contenders in their own processes and in turns (benchmarks/README.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, bar, built, finish
from edgegen.bundle import Bundle, open_bundle
from edgegen.errors import ProgramError
from edgegen.program import compile_program, initial_state, normals
from edgegen.rollout import load_world
from edgegen.search import Subject
from edgegen.timing import alternate, serve

FAMILY = ROOT / "export" / "reach_policy"
CONTENDERS = ("edgegen-fused", "edgegen-stepwise", "diffusers+torch")
STEPS = (1, 2, 3, 5, 10, 50)
SOLVERS = ("ddim", "euler_a", "dpmpp_2m", "dpmpp_2s", "heun", "lms", "deis", "unipc", "dpmpp_sde")
POSITION, PREVIOUS, GOAL = (0.0, -0.85), (0.0, 0.0), (0.1, 0.85)


def actor(subject: Subject, solver: str, steps: int) -> tuple[Callable[..., np.ndarray], int]:
    """A policy by this solver on the recipe's own grid, and its evaluations per decision."""
    first = subject.recipe.programs[0]
    program = subject.program(solver, steps, first.grid, first.grid_options)
    executable = compile_program(program)

    def act(seed: int, **conditions: np.ndarray) -> np.ndarray:
        rows = len(conditions["goal"])
        inputs = dict(conditions) | initial_state(program, normals(seed, 0, (rows, *subject.recipe.model.sample_shape)))
        return executable.run({subject.recipe.model.component: subject.network}, inputs, seed=seed)["sample"]

    return act, sum(program.nfe.values())


def successes(bundle: Bundle, episodes: int, seed: int) -> dict[str, float]:
    """success:SOLVER:STEPS in percent, and nfe:SOLVER:STEPS."""
    evaluate = load_world(str(FAMILY / "simulator.py"))
    figures: dict[str, float] = {}
    with Subject(bundle, samples=1, threads=1) as subject:
        for solver in SOLVERS:
            line = [f"{solver:10}"]
            for steps in STEPS:
                try:
                    act, nfe = actor(subject, solver, steps)
                except ProgramError:
                    continue
                success, _ = evaluate(act, episodes, seed)
                figures[f"success:{solver}:{steps}"] = 100.0 * float(np.mean(success))
                figures[f"nfe:{solver}:{steps}"] = nfe
                line.append(f"{steps} steps ({nfe}): {figures[f'success:{solver}:{steps}']:.1f}%")
            print("  ".join(line), flush=True)
    return figures


def diffusers_loop() -> Callable[[], object]:
    """What a user of diffusers writes: EDM's scheduler, the torch module, the same noise levels."""
    import torch
    from diffusers.schedulers import EDMEulerScheduler

    sys.path.insert(0, str(FAMILY))
    from model import load

    torch.set_num_threads(1)
    network = load(weights=FAMILY / "weights.safetensors").eval()
    scheduler = EDMEulerScheduler(sigma_min=0.005, sigma_max=1.0, sigma_data=0.5, rho=1.0)
    context, goal = torch.tensor([[POSITION, PREVIOUS]]), torch.tensor([GOAL])

    def run() -> object:
        with torch.inference_mode():
            scheduler.set_timesteps(3)
            x = torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                scaled = scheduler.scale_model_input(x, t)
                x = scheduler.step(network(torch.cat([scaled, context], dim=1), t.reshape(1), goal), t, x).prev_sample
            return x

    return run


def edgegen_loop(path: Path, *, fused: bool) -> Callable[[], object]:
    """What a user of edgegen writes."""
    import edgegen

    session = edgegen.load(path, threads=1, fused=fused)
    context, goal = np.array([POSITION, PREVIOUS], np.float32), np.array(GOAL, np.float32)
    return lambda: session.generate(seed=0, steps=3, context=context, goal=goal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    path = built("reach_policy", measured=False)
    if args.contender:
        serve(diffusers_loop() if args.contender == "diffusers+torch" else edgegen_loop(path, fused=args.contender == "edgegen-fused"))
        return
    me = [sys.executable, "-m", "benchmarks.policy", "--contender"]
    times = alternate({name: [*me, name] for name in CONTENDERS}, rounds=args.rounds, runs=args.runs)
    medians = {name: statistics.median(v) * 1e6 for name, v in times.items()}
    print(json.dumps({f"us:{name}": round(v, 1) for name, v in medians.items()}))
    figures = {f"us:{name}": v for name, v in medians.items()} | successes(open_bundle(path), args.episodes, args.seed)
    ratio = medians["edgegen-fused"] / medians["diffusers+torch"]
    figures["ratio:diffusers+torch"] = 1.0 / ratio
    gap = figures["success:ddim:50"] - figures["success:ddim:3"]
    bars = [
        bar("3 steps below 50 steps of ddim, points of success", gap, "<=", 2.0),
        bar("time of a 3-step decision over diffusers + torch", ratio, "<=", 0.2),
    ]
    finish(args.json, figures, bars)


if __name__ == "__main__":
    main()
