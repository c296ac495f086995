"""Samplers that draw from the Gaussian posterior q(x' | x, x0) with the network's x0: DDPM, denoising diffusion GANs, ProDiff.

x' = (sigma' / sigma) exp(-h) x + alpha' q x0 + sigma' sqrt(q) z,  q = 1 - exp(-2 h);  the last step, to sigma = 0, is x0.
Sources: Ho et al. 2020 (2006.11239), equation 7; Xiao et al. 2022 (2112.07804), equation 6; Huang et al. 2022 (2207.06389).
"""

from __future__ import annotations

import math
from itertools import pairwise

from edgegen.diffusion import Process
from edgegen.diffusion.processes import VPBetas
from edgegen.errors import ProgramError, Status
from edgegen.program import Program, Reg
from edgegen.solvers.exponential import step
from edgegen.solvers.lowering import DATA, Grid, Lowering, Node, Prediction
from edgegen.solvers.options import one_of, whole_number

__all__ = ["ddgan", "ddpm", "prodiff"]

VARIANCES = ("small", "large")


def ddpm(process: Process, prediction: Prediction, grid: Grid, *, variance: str = "small") -> Program:
    """Ancestral sampling. variance of the noise: "small" (the posterior's; equal to DDIM with eta = 1 where nothing is clipped) or
    "large" (the forward process's beta). A clipped x0 enters the posterior mean, as in diffusers' DDPMScheduler.
    """
    one_of("ddpm", "variance", variance, VARIANCES)
    p = Lowering("ddpm", process, prediction, grid)
    for s, t in pairwise(p.nodes):
        _draw(p, s, t, p.data(s, p.network(s)), t, large=variance == "large")
    return p.finish()


def ddgan(process: Process, prediction: Prediction, grid: Grid, *, latent: int = 100) -> Program:
    """A conditional generator x0 = G(x, index, z) and the posterior: a fresh z of `latent` normals (component input `latent`) each step.

    The process is vp_betas with schedule "ddgan" and as many betas as steps; the network's time is the index, not scaled.
    """
    whole_number("ddgan", "latent", latent, 1, 2**20)
    p = Lowering("ddgan", process, prediction, grid)
    for s, t in pairwise(p.nodes):
        z = p.noise((latent,))
        _draw(p, s, t, p.data(s, p.network(s, latent=Reg(z))), t)
    return p.finish()


def prodiff(process: Process, prediction: Prediction, grid: Grid) -> Program:
    """ProDiff, teacher or student. Each step uses the posterior from index k to k - 1, also where the grid goes further: so the
    released student, which visits 2 and then 0 of its five betas (vp_betas, schedule "prodiff", grid "leading"), does it.
    """
    if not isinstance(process, VPBetas):
        raise ProgramError(f"prodiff steps through a table of betas; the process is {type(process).__name__}; use vp_betas", Status.OUT_OF_RANGE)
    p = Lowering("prodiff", process, prediction, grid)
    for s, t in pairwise(p.nodes):
        _draw(p, s, p.node(s.time - 1.0), p.data(s, p.network(s)), t)
    return p.finish()


def _draw(p: Lowering, s: Node, t: Node, x0: str, mark: Node, *, large: bool = False) -> None:
    """Advance by a draw of the posterior from s to t; the state is then at node `mark`."""
    whole = step(DATA, s, t)
    q = -math.expm1(2.0 * (s.lam - t.lam)) if t.sigma > 0.0 else 1.0
    terms = [(whole.a * math.exp(s.lam - t.lam), p.x), (t.alpha * q, x0)]
    spread = math.sqrt(max(s.sigma**2 - (s.alpha / t.alpha * t.sigma) ** 2, 0.0)) if large else t.sigma * math.sqrt(q)
    if t.sigma > 0.0:
        terms.append((spread, p.noise()))
    p.advance(p.combine(terms), mark)
