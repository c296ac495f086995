"""Train the `reach_policy` network on demonstrations from its simulator, and save its averaged weights.

    python export/reach_policy/train.py --minutes 10 --out export/reach_policy/weights.safetensors
    python export/reach_policy/train.py --minutes 5 --regression --state /tmp/edgegen-reach-regression.pt
    python export/reach_policy/train.py --evaluate export/reach_policy/weights.safetensors

In: nothing but the simulator. Out: one safetensors file, float16, written when the time is up, and the success on held-out episodes.
`--regression` trains the same network to answer with the mean action (x = 0, t = 0, squared error), reports its success, and writes no weights.
`--state FILE` (outside the repository) is written every minute, and a run that finds it goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
import simulator
from model import HORIZON, ReachPolicy, load

SIGMA_DATA = 0.5
SIGMA_MIN, SIGMA_MAX = 0.005, 1.0
DROP_GOAL = 0.1
DEMONSTRATIONS = 20_000
TRAIN_SEED, HELD_OUT_SEED = 0, 1_000
BATCH = 512
PEAK_RATE = 2e-3
STEPS = (1, 2, 3, 5, 10, 50)


def preconditioning(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in of EDM (Karras et al. 2022, table 1) at sigma, each of sigma's shape."""
    root = (sigma**2 + SIGMA_DATA**2).sqrt()
    return SIGMA_DATA**2 / root**2, sigma * SIGMA_DATA / root, 1.0 / root


def loss_of(model: ReachPolicy, context: Tensor, goal: Tensor, chunk: Tensor, generator: torch.Generator) -> Tensor:
    """EDM's loss with its weight 1 / c_out**2, sigma log-normal in BESO's range, and goals dropped for guidance."""
    n = chunk.shape[0]
    sigma = torch.exp(torch.randn(n, generator=generator) * 0.9 - 0.6).clamp(SIGMA_MIN, SIGMA_MAX)
    noise = torch.randn(chunk.shape, generator=generator)
    kept = (torch.rand(n, 1, generator=generator) >= DROP_GOAL).float()
    c_skip, c_out, c_in = (c[:, None, None] for c in preconditioning(sigma))
    noisy = chunk + sigma[:, None, None] * noise
    answer = model(torch.cat([c_in * noisy, context], dim=1), sigma.log() / 4, goal * kept)
    return functional.mse_loss(answer, (chunk - c_skip * noisy) / c_out)


def regression_loss_of(model: ReachPolicy, context: Tensor, goal: Tensor, chunk: Tensor) -> Tensor:
    """Squared error of the network's answer to no noise at all, as a plain regression policy has it."""
    answer = model(torch.cat([torch.zeros_like(chunk), context], dim=1), torch.zeros(len(chunk)), goal)
    return functional.mse_loss(answer, chunk / SIGMA_DATA)


def sigma_grid(steps: int) -> list[float]:
    """BESO's linear grid: `steps` values from SIGMA_MAX to SIGMA_MIN, then 0."""
    return [*np.linspace(SIGMA_MAX, SIGMA_MIN, steps).tolist(), 0.0]


def diffusion_policy(model: ReachPolicy, steps: int) -> simulator.Policy:
    """Chunks by DDIM, which is Euler's method here, on the linear grid, from SIGMA_MAX times standard noise."""

    @torch.inference_mode()
    def policy(context: np.ndarray, goal: np.ndarray, seed: int) -> np.ndarray:
        c, g, sigmas = torch.from_numpy(context), torch.from_numpy(goal), sigma_grid(steps)
        x = SIGMA_MAX * torch.randn((len(c), HORIZON, 2), generator=torch.Generator().manual_seed(seed))
        for sigma, following in pairwise(sigmas):
            level = torch.full((len(c),), sigma)
            c_skip, c_out, c_in = (k[:, None, None] for k in preconditioning(level))
            denoised = c_skip * x + c_out * model(torch.cat([c_in * x, c], dim=1), level.log() / 4, g)
            x = (following / sigma) * x + (1.0 - following / sigma) * denoised
        return x.numpy()

    return policy


def regression_policy(model: ReachPolicy) -> simulator.Policy:
    """Chunks by one evaluation of a network trained with --regression; the seed is not used."""

    @torch.inference_mode()
    def policy(context: np.ndarray, goal: np.ndarray, seed: int) -> np.ndarray:
        c = torch.from_numpy(context)
        x = torch.cat([torch.zeros(len(c), HORIZON, 2), c], dim=1)
        return (SIGMA_DATA * model(x, torch.zeros(len(c)), torch.from_numpy(goal))).numpy()

    return policy


def report(model: ReachPolicy, episodes: int, regression: bool) -> None:
    """Print the closed-loop success on held-out episodes, for each number of steps."""
    policies = {"regression": regression_policy(model)} if regression else {f"{n} steps": diffusion_policy(model, n) for n in STEPS}
    for name, policy in policies.items():
        success, _ = simulator.rollout(policy, episodes, HELD_OUT_SEED)
        print(f"{name}: success {100 * success.mean():.1f} % of {episodes} episodes", flush=True)


def save_state(path: Path, state: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the weights go; needed unless --regression or --evaluate is given")
    parser.add_argument("--evaluate", type=Path, metavar="WEIGHTS", help="train nothing, report these weights")
    parser.add_argument("--regression", action="store_true", help="train and report a plain regression policy instead")
    parser.add_argument("--state", type=Path, default=Path("/tmp/edgegen-reach-state.pt"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--episodes", type=int, default=1_000, help="held-out episodes of the report")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.out is None and not args.regression and args.evaluate is None:
        parser.error("--out is needed")

    torch.set_num_threads(args.threads)
    if args.evaluate is not None:
        report(load(args.evaluate), args.episodes, regression=False)
        return
    torch.manual_seed(0)
    context, goal, chunk = (torch.from_numpy(part) for part in simulator.demonstrations(DEMONSTRATIONS, TRAIN_SEED))
    print(f"{len(chunk)} chunks, standard deviation {chunk.std():.3f}", flush=True)
    model = ReachPolicy()
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=1e-2, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    step, spent = 0, 0.0
    if args.state.exists():
        state = torch.load(args.state, weights_only=True)
        if state["regression"] != args.regression:
            parser.error(f"{args.state} is the state of the other kind of policy; give another --state")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        step, spent = state["step"], state["spent"]
        print(f"resumed at step {step}", flush=True)

    budget, began, saved, running = args.minutes * 60.0, time.monotonic() - spent, time.monotonic(), 0.0
    while (elapsed := time.monotonic() - began) < budget:
        rate = PEAK_RATE * min(1.0, step / 500) * (1.0 - elapsed / budget)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pick = torch.randint(0, len(chunk), (BATCH,), generator=generator)
        batch = context[pick], goal[pick], chunk[pick]
        loss = regression_loss_of(model, *batch) if args.regression else loss_of(model, *batch, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(0.9995, 1.0 - 1.0 / (1.0 + 0.1 * step))
        with torch.no_grad():
            for p_average, p in zip(average.parameters(), model.parameters(), strict=True):
                p_average.lerp_(p, 1.0 - keep)
        step += 1
        running = loss.item() if step == 1 else 0.99 * running + 0.01 * loss.item()
        if step % 500 == 0:
            print(f"step {step}  {elapsed / 60:.1f} min  loss {running:.4f}  rate {rate:.2e}", flush=True)
        if time.monotonic() - saved > 60:
            save_state(args.state, {
                "model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(), "regression": args.regression,
                "generator": generator.get_state(), "step": step, "spent": time.monotonic() - began,
            })  # fmt: skip
            saved = time.monotonic()

    print(f"{step} steps", flush=True)
    if not args.regression:
        save_file({k: v.to(torch.float16).contiguous() for k, v in average.state_dict().items()}, args.out)
        print(f"wrote {args.out}", flush=True)
        average = load(args.out)
    report(average, args.episodes, args.regression)


if __name__ == "__main__":
    main()
