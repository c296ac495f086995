"""How good are the generated digits? Accuracy by a classifier, and Frechet distance in its features to real digits.

    python -m benchmarks.quality --data ../shared/data/mnist --json quality.json

1,000 generated digits (100 of each class) per variant of the `digits` bundle, equal seeds, against images 9000..9999, which neither
the generator nor the classifier has seen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import edgegen
from benchmarks.classifier import load_classifier
from benchmarks.common import ROOT, bar, built, finish
from edgegen.bundle import open_bundle
from edgegen.quality import frechet

PER_CLASS, BATCH = 100, 100


def generate(bundle: Path, variant: str, program: str | None) -> tuple[np.ndarray, np.ndarray]:
    """1,000 samples and the labels that they were asked for."""
    labels = np.tile(np.arange(10), PER_CLASS)
    with edgegen.load(bundle, variant=variant) as session:
        samples = [session.generate(seed=i, batch=BATCH, label=labels[:BATCH], program=program) for i in range(len(labels) // BATCH)]
    return np.concatenate(samples), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mnist")
    parser.add_argument("--program", help="default: the bundle's first")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "export" / "digits"))
    from train import read_mnist

    images, _ = read_mnist(args.data)
    classifier = load_classifier()

    def features(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return classifier.features(torch.from_numpy(x)).double().numpy()

    real = features(images[9000:])
    figures: dict[str, float] = {"frechet:training images": frechet(features(images[:1000]), real)}
    bundle = built("digits", measured=False)
    for variant in (v.name for v in open_bundle(bundle).manifest.variants):
        samples, labels = generate(bundle, variant, args.program)
        with torch.no_grad():
            read = classifier(torch.from_numpy(samples)).argmax(1).numpy()
        figures[f"accuracy:{variant}"] = float((read == labels).mean())
        figures[f"frechet:{variant}"] = frechet(features(samples), real)
    for name, value in figures.items():
        print(f"{name:<28}{value:.4f}")
    bars = [bar("float32 digits read as their class", figures["accuracy:float32"], ">=", 0.95)]
    if "accuracy:int8" in figures:
        bars.append(bar("int8 accuracy below float's by", figures["accuracy:float32"] - figures["accuracy:int8"], "<=", 0.01))
        bars.append(bar("int8 Frechet distance over float's", figures["frechet:int8"] / figures["frechet:float32"], "<=", 1.05))
    finish(args.json, figures, bars)


if __name__ == "__main__":
    main()
