"""The `digits` denoiser: a class-conditional U-Net for 28 x 28 grey digits.

In: a noisy image, the process's time and a class label. Out: the predicted noise (epsilon).
Built for integer hardware: almost all arithmetic sits in 3 x 3 convolutions of 64 and 128 channels at 14 x 14 and
7 x 7, because the first convolution already halves the resolution.
"""

from __future__ import annotations

import math
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
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.embed(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class DigitsUNet(nn.Module):
    """epsilon(x, t, label) with 1.2 M parameters.

    x: float32[N, 1, 28, 28], data in [-1, 1]; t: float32[N], index 0..999 of the training betas (fractions allowed);
    label: int64[N], 0..9, or `NULL_LABEL`. Returns float32[N, 1, 28, 28].
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        wide, c_embedding = 2 * width, 2 * width
        self.frequencies = 32
        self.time1 = nn.Linear(2 * self.frequencies, c_embedding)
        self.time2 = nn.Linear(c_embedding, c_embedding)
        self.label = nn.Embedding(NULL_LABEL + 1, c_embedding)
        self.conv_in = nn.Conv2d(1, width, 4, stride=2, padding=1)
        self.encode = nn.ModuleList(ResidualBlock(width, width, c_embedding) for _ in range(2))
        self.down = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(ResidualBlock(wide, wide, c_embedding) for _ in range(2))
        self.up = nn.Conv2d(wide, width, 1)
        self.decode = nn.ModuleList(ResidualBlock(c, width, c_embedding) for c in (2 * width, width))
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = nn.Conv2d(width, 4, 3, padding=1)

    def embed(self, t: Tensor, label: Tensor) -> Tensor:
        """Sinusoids of t and a learned vector per class, mixed. Returns float32[N, c_embedding]."""
        exponent = torch.arange(self.frequencies, dtype=torch.float32, device=t.device) / self.frequencies
        angle = t[:, None] * torch.exp(-math.log(10_000.0) * exponent)[None, :]
        h = self.time1(torch.cat([angle.sin(), angle.cos()], dim=1))
        return functional.silu(self.time2(functional.silu(h)) + self.label(label))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        embedding = self.embed(t, label)
        h = self.conv_in(x)
        for block in self.encode:
            h = block(h, embedding)
        skip = h
        h = self.down(h)
        for block in self.middle:
            h = block(h, embedding)
        h = functional.interpolate(self.up(h), scale_factor=2.0, mode="nearest")
        h = torch.cat([h, skip], dim=1)
        for block in self.decode:
            h = block(h, embedding)
        return functional.pixel_shuffle(self.conv_out(functional.silu(self.norm_out(h))), 2)


def load(weights: Path) -> DigitsUNet:
    """The trained network, from the safetensors file that train.py wrote."""
    model = DigitsUNet()
    model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return model
