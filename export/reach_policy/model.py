"""The `reach_policy` network: a residual MLP that denoises eight actions of a point robot, given where it is and where it should go.

In: a noisy chunk of actions with its context, the noise level and a goal. Out: the raw network F of EDM's preconditioning
(Karras et al. 2022, equation 7): D(a, sigma) = c_skip a + c_out F, sigma_data = 0.5. All of its arithmetic sits in linear layers.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

HORIZON = 8
"""Actions in a chunk: the first eight of the ten tokens. The last two are the context, position and previous action."""


class ResidualBlock(nn.Module):
    """A gated MLP after a LayerNorm (SwiGLU, Shazeer 2020); a new block is the identity.

    The gate multiplies: which passage a noisy chunk points to is a product of the chunk and of where the robot is.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.value = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.leave = nn.Linear(hidden, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, h: Tensor) -> Tensor:
        n = self.norm(h)
        return h + self.leave(self.value(n) * functional.silu(self.gate(n)))


class ReachPolicy(nn.Module):
    """F(x, t, goal) with 0.16 M parameters.

    x: float32[N, 10, 2], the noisy chunk times c_in in x[:, :8], then the position (world units, in [-1, 1]) and the previous action (scaled);
    t: float32[N], ln(sigma) / 4; goal: float32[N, 2], world units, zero for "no goal". Returns float32[N, 8, 2].
    """

    def __init__(self, width: int = 128, hidden: int = 128, blocks: int = 3) -> None:
        super().__init__()
        octaves, time_octaves = 5, 4  # sinusoids of a position, down to a wavelength of 1/8; and of the time
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(octaves)[:, None], persistent=False)
        self.register_buffer("time_frequencies", 2.0 ** torch.arange(time_octaves), persistent=False)
        features = 2 * HORIZON + 2 * (2 + 4 * octaves) + 2 + 2 + 1 + 2 * time_octaves
        self.enter = nn.Linear(features, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, hidden) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, 2 * HORIZON)

    def forward(self, x: Tensor, t: Tensor, goal: Tensor) -> Tensor:
        noisy, position, previous, time = x[:, :HORIZON].flatten(1), x[:, HORIZON], x[:, HORIZON + 1], t[:, None]
        points = torch.stack([position, goal], dim=1)
        angles = (points[:, :, None] * self.frequencies).flatten(2)
        time_angles = time * self.time_frequencies
        where = torch.cat([points, angles.sin(), angles.cos()], dim=2).flatten(1)
        h = self.enter(torch.cat([noisy, previous, goal - position, where, time, time_angles.sin(), time_angles.cos()], dim=1))
        for block in self.blocks:
            h = block(h)
        return self.leave(functional.silu(self.norm(h))).unflatten(1, (HORIZON, 2))


def load(weights: Path) -> ReachPolicy:
    """The trained network in evaluation mode, from the safetensors file that train.py wrote."""
    model = ReachPolicy()
    model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return model.eval()
