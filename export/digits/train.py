"""Train the `digits` denoiser on the first 8,000 images of MNIST's test set, and save its averaged weights.

    python export/digits/train.py --data ../shared/data/mnist --minutes 40 --out export/digits/weights.safetensors

The committed weights come from two runs: 27 minutes with two blocks each way at 28 x 28, then 10 minutes with four,
--init the first and --rate 6e-4.

In: t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz. Out: one safetensors file, float16, written when the time is up.
`--state FILE` (outside the repository) is written every minute, and a run that finds it goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from model import NULL_LABEL, DigitsUNet

TRAIN_IMAGES = 8_000
DROP_LABEL = 0.1
BATCH = 64
PEAK_RATE = 1.5e-3


def read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """float32[10000, 1, 28, 28] in [-1, 1] and int64[10000], from the two idx files in `folder`."""
    images = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return images.reshape(-1, 1, 28, 28).astype(np.float32) / 127.5 - 1.0, labels.astype(np.int64)


def log_alpha_bar() -> Tensor:
    """ln(alpha_bar) of the DDPM betas, 1e-4 to 0.02 in 1,000 steps: float32[1000]."""
    return torch.from_numpy(np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000))).astype(np.float32))


def loss_of(model: DigitsUNet, x: Tensor, label: Tensor, alpha_bar: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the predicted noise at uniform times, with labels dropped for guidance."""
    n = x.shape[0]
    t = torch.randint(0, 1000, (n,), generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    dropped = torch.rand(n, generator=generator) < DROP_LABEL
    a = alpha_bar[t][:, None, None, None]
    noisy = a.sqrt() * x + (1 - a).sqrt() * noise
    label = torch.where(dropped, torch.full_like(label, NULL_LABEL), label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = model(noisy, t.float(), label)
    return functional.mse_loss(prediction.float(), noise)


def save_state(path: Path, state: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("/tmp/edgegen-digits-state.pt"))
    parser.add_argument("--init", type=Path, help="weights to start from; blocks that they lack start as the identity")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="peak learning rate")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images, labels = read_mnist(args.data)
    x, y = torch.from_numpy(images[:TRAIN_IMAGES]), torch.from_numpy(labels[:TRAIN_IMAGES])
    alpha_bar = log_alpha_bar().exp()
    model = DigitsUNet().to(memory_format=torch.channels_last)
    if args.init is not None:
        model.load_state_dict({k: v.float() for k, v in load_file(args.init).items()}, strict=False)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=1e-2, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    step, spent = 0, 0.0
    if args.state.exists():
        state = torch.load(args.state, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        step, spent = state["step"], state["spent"]
        print(f"resumed at step {step}", flush=True)

    budget, began, saved, running = args.minutes * 60.0, time.monotonic() - spent, time.monotonic(), 0.0
    while (elapsed := time.monotonic() - began) < budget:
        progress = elapsed / budget
        rate = args.rate * min(1.0, step / 200) * (1.0 - progress) ** 0.7
        for group in optimizer.param_groups:
            group["lr"] = rate
        pick = torch.randint(0, TRAIN_IMAGES, (BATCH,), generator=generator)
        loss = loss_of(model, x[pick], y[pick], alpha_bar, generator)
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
        if step % 100 == 0:
            print(f"step {step}  {elapsed / 60:.1f} min  loss {running:.4f}  rate {rate:.2e}", flush=True)
        if time.monotonic() - saved > 60:
            save_state(args.state, {
                "model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(), "step": step, "spent": time.monotonic() - began,
            })  # fmt: skip
            saved = time.monotonic()

    save_file({k: v.to(torch.float16).contiguous() for k, v in average.state_dict().items()}, args.out)
    print(f"{step} steps; wrote {args.out}", flush=True)


if __name__ == "__main__":
    main()
