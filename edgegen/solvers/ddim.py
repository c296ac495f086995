"""DDIM. Source: Song et al. 2021 (2010.02502), equation 12, with the noise eps and the data x0 both from the network's output."""

from __future__ import annotations

import math

from edgegen.diffusion import Process
from edgegen.program import Program
from edgegen.solvers.lowering import Grid, Lowering

__all__ = ["ddim"]


def ddim(process: Process, prediction: str, grid: Grid, *, eta: float = 0.0, clip: float | None = None, threshold: float | None = None) -> Program:
    """x' = alpha' x0 + sigma' sqrt(1 - eta^2 q) eps + eta sigma' sqrt(q) z, with q = 1 - exp(-2 h) and h = lambda' - lambda.

    eta: 0 (deterministic, first order) to 1 (the DDPM posterior). clip: clamp x0 to [-clip, clip]; eps is not derived again
    from the clamped x0 (as diffusers' default). threshold: quantile of dynamic thresholding, with `clip` as its ceiling.
    """
    p = Lowering("ddim", process, prediction, grid)
    for i in range(p.steps):
        output = p.network(i)
        alpha, sigma = p.alpha[i + 1], p.sigma[i + 1]
        q = -math.expm1(2.0 * (p.lam[i] - p.lam[i + 1])) if sigma > 0 else 1.0
        c_noise, c_fresh = sigma * math.sqrt(1.0 - eta**2 * q), eta * sigma * math.sqrt(q)
        if clip is None and threshold is None:
            terms = [(alpha * c, name) for c, name in p.data_terms(i, output)]
        else:
            terms = [(alpha, p.data(i, output, clip=clip, threshold=threshold))]
        if c_noise != 0.0:
            terms += [(c_noise * c, name) for c, name in p.noise_terms(i, output)]
        if c_fresh != 0.0:
            terms.append((c_fresh, p.noise()))
        p.advance(i, p.combine(terms))
    return p.finish()
