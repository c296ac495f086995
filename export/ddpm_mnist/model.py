"""The `ddpm_mnist` denoiser: the residual U-Net of the public checkpoint DM-DDPM-MNIST-ImageGen (MIT), trained by its authors.

671,950 parameters, 28 x 28 x 1, epsilon prediction. The module tree carries the checkpoint's own names, so it loads as it is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (10, 20, 40, 80)
SIZES = (28, 14, 7, 3)
TIME_FEATURES = 128
STEPS = 1000


class Block(nn.Module):
    """LayerNorm over (C, H, W), two 3 x 3 convolutions, and a residual path (1 x 1 where the channels change)."""

    def __init__(self, size: int, c_in: int, c_out: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm((c_in, size, size))
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.residual_conv = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(functional.relu(self.conv1(self.ln(x))))
        return functional.relu(h + self.residual_conv(x))


class TimeTable(nn.Module):
    """The checkpoint's fixed 1000 x 128 sinusoid table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(STEPS, TIME_FEATURES)

    def forward(self, t: Tensor) -> Tensor:
        return self.embedding(t)


def _pair(size: int, c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(Block(size, c_in, c_out), Block(size, c_out, c_out))


class MnistUNet(nn.Module):
    """epsilon(x, t). x: float32[N, 1, 28, 28], data in [-1, 1]; t: int64[N], 0..999. Returns float32[N, 1, 28, 28]."""

    def __init__(self) -> None:
        super().__init__()
        levels = len(CHANNELS) - 1
        c_in = (1, *CHANNELS[:-2])
        self.pe = TimeTable()
        self.pe_linears_en = nn.ModuleList(nn.Sequential(nn.Linear(TIME_FEATURES, c), nn.ReLU(), nn.Linear(c, c)) for c in c_in)
        self.encoders = nn.ModuleList(_pair(SIZES[i], c_in[i], CHANNELS[i]) for i in range(levels))
        self.downs = nn.ModuleList(nn.Conv2d(c, c, 2, 2) for c in CHANNELS[:-1])
        self.pe_mid = nn.Linear(TIME_FEATURES, CHANNELS[-2])
        self.mid = _pair(SIZES[-1], CHANNELS[-2], CHANNELS[-1])
        self.ups = nn.ModuleList(nn.ConvTranspose2d(CHANNELS[i + 1], CHANNELS[i], 2, 2) for i in reversed(range(levels)))
        self.pe_linears_de = nn.ModuleList(nn.Linear(TIME_FEATURES, 2 * CHANNELS[i]) for i in reversed(range(levels)))
        self.decoders = nn.ModuleList(_pair(SIZES[i], 2 * CHANNELS[i], CHANNELS[i]) for i in reversed(range(levels)))
        self.conv_out = nn.Conv2d(CHANNELS[0], 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.pe(t)
        skips = []
        for linear, encoder, down in zip(self.pe_linears_en, self.encoders, self.downs, strict=True):
            x = encoder(x + linear(time)[:, :, None, None])
            skips.append(x)
            x = down(x)
        x = self.mid(x + self.pe_mid(time)[:, :, None, None])
        for linear, decoder, up in zip(self.pe_linears_de, self.decoders, self.ups, strict=True):
            skip = skips.pop()
            x = up(x)
            missing = skip.shape[-1] - x.shape[-1]
            x = functional.pad(x, (missing // 2, missing - missing // 2, missing // 2, missing - missing // 2))
            x = decoder(torch.cat([skip, x], dim=1) + linear(time)[:, :, None, None])
        return self.conv_out(x)


def load(weights: Path) -> MnistUNet:
    """The pretrained network. The checkpoint is a pickle; it is opened with torch's weights_only unpickler."""
    model = MnistUNet()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model
