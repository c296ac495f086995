"""A small digit classifier: the judge of generated digits, and the features of their Frechet distance.

    python -m benchmarks.classifier --data ../shared/data/mnist        (about two minutes; writes classifier.safetensors)

Trained on images 0..7999 of MNIST's test set with small shifts; 8000..8999 choose nothing and are only reported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).with_name("classifier.safetensors")
FEATURES = 64


class Classifier(nn.Module):
    """float32[N, 1, 28, 28] in [-1, 1] -> logits float32[N, 10]; `features` gives float32[N, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 7 * 7, FEATURES)
        self.out = nn.Linear(FEATURES, 10)

    def features(self, x: Tensor) -> Tensor:
        h = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        h = functional.max_pool2d(functional.relu(self.conv2(h)), 2)
        return functional.relu(self.hidden(functional.dropout(h.flatten(1), 0.3, self.training)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


def load_classifier() -> Classifier:
    """The committed classifier, in evaluation mode."""
    model = Classifier()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by -2 .. 2 pixels both ways, background -1 outside."""
    padded = functional.pad(x, (2, 2, 2, 2), value=-1.0)
    dy, dx = torch.randint(0, 5, (2, len(x)), generator=generator)
    rows, columns = dy[:, None] + torch.arange(28), dx[:, None] + torch.arange(28)
    return padded[torch.arange(len(x))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def accuracy(model: Classifier, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "export" / "digits"))
    from train import read_mnist

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images, labels = read_mnist(args.data)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    model = Classifier()
    steps = args.epochs * 8000 // 100
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        pick = torch.randint(0, 8000, (100,), generator=generator)
        loss = functional.cross_entropy(model.train()(shifted(x[pick], generator)), y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(
                f"step {step + 1}/{steps}  loss {loss.item():.4f}  images 8000..8999: {accuracy(model, x[8000:9000], y[8000:9000]):.4f}", flush=True
            )
    print(f"images 9000..9999: {accuracy(model, x[9000:], y[9000:]):.4f}")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, WEIGHTS)


if __name__ == "__main__":
    main()
