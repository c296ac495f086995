"""The `digits` denoiser: a class-conditional U-Net for 28 x 28 grey digits.

In: a noisy image, the process's time and a class label. Out: the predicted noise (epsilon).
Almost all of its arithmetic sits in 3 x 3 convolutions, which is where int8 pays.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

NULL_LABEL = 10
"""The label that means "no class": what classifier-free guidance evaluates as its unconditional branch."""


class ResidualBlock(nn.Module):
    """Two convolutions around a scale-and-shift by the embedding (the AdaGN block of Dhariwal and Nichol 2021)."""

    def __init__(self, c_in: int, c_out: int, c_embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.embed = nn.Linear(c_embedding, 2 * c_out)
        self.norm2 = nn.GroupNorm(8, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # a new block is the identity
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.embed(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class DigitsUNet(nn.Module):
    """epsilon(x, t, label) with 1.4 M parameters: 32 channels at 28 x 28 in four blocks each way, 64 at 14 x 14 and 128 at 7 x 7 in two.

    x: float32[N, 1, 28, 28], data in [-1, 1]; t: float32[N], index 0..999 of the training betas (fractions allowed);
    label: int64[N], 0..9, or `NULL_LABEL`. Returns float32[N, 1, 28, 28].
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        c0, c1, c2, c_embedding = width, 2 * width, 4 * width, 4 * width
        self.frequencies = 32
        self.time1 = nn.Linear(2 * self.frequencies, c_embedding)
        self.time2 = nn.Linear(c_embedding, c_embedding)
        self.label = nn.Embedding(NULL_LABEL + 1, c_embedding)

        def blocks(*channels: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(c_in, c_out, c_embedding) for c_in, c_out in pairwise(channels))

        self.conv_in = nn.Conv2d(1, c0, 3, padding=1)
        self.encode0 = blocks(c0, c0, c0, c0, c0)
        self.down0 = nn.Conv2d(c0, c1, 3, stride=2, padding=1)
        self.encode1 = blocks(c1, c1, c1)
        self.down1 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.middle = blocks(c2, c2, c2)
        self.up1 = nn.Conv2d(c2, c1, 1)
        self.decode1 = blocks(2 * c1, c1, c1)
        self.up0 = nn.Conv2d(c1, c0, 1)
        self.decode0 = blocks(2 * c0, c0, c0, c0, c0)
        self.norm_out = nn.GroupNorm(8, c0)
        self.conv_out = nn.Conv2d(c0, 1, 3, padding=1)

    def embed(self, t: Tensor, label: Tensor) -> Tensor:
        """Sinusoids of t and a learned vector per class, mixed. Returns float32[N, c_embedding]."""
        exponent = torch.arange(self.frequencies, dtype=torch.float32, device=t.device) / self.frequencies
        angle = t[:, None] * torch.exp(-math.log(10_000.0) * exponent)[None, :]
        h = self.time1(torch.cat([angle.sin(), angle.cos()], dim=1))
        return functional.silu(self.time2(functional.silu(h)) + self.label(label))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        embedding = self.embed(t, label)

        def through(blocks: nn.ModuleList, h: Tensor) -> Tensor:
            for block in blocks:
                h = block(h, embedding)
            return h

        skip0 = through(self.encode0, self.conv_in(x))
        skip1 = through(self.encode1, self.down0(skip0))
        h = through(self.middle, self.down1(skip1))
        h = functional.interpolate(self.up1(h), scale_factor=2.0, mode="nearest")
        h = through(self.decode1, torch.cat([h, skip1], dim=1))
        h = functional.interpolate(self.up0(h), scale_factor=2.0, mode="nearest")
        h = through(self.decode0, torch.cat([h, skip0], dim=1))
        return self.conv_out(functional.silu(self.norm_out(h)))


def load(weights: Path) -> DigitsUNet:
    """The trained network, from the safetensors file that train.py wrote."""
    model = DigitsUNet()
    model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return model
