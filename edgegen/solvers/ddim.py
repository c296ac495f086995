"""DDIM. Source: Song et al. 2021 (2010.02502), equation 12, with the noise eps and the data x0 both from the network's output."""

from __future__ import annotations

import math
from itertools import pairwise

from edgegen.diffusion import Process
from edgegen.program import Program
from edgegen.solvers.lowering import NOISE, Grid, Lowering, Prediction, away

__all__ = ["ddim"]


def ddim(process: Process, prediction: Prediction, grid: Grid, *, eta: float = 0.0) -> Program:
    """x' = alpha' x0 + sigma' sqrt(1 - eta^2 q) eps + eta sigma' sqrt(q) z, with q = 1 - exp(-2 h) and h = lambda' - lambda.

    eta: 0 (deterministic, first order) to 1 (the DDPM posterior). Where x0 is clipped, eps is not derived again from it (as
    diffusers' default).
    """
    p = Lowering("ddim", process, prediction, grid)
    for s, t in pairwise(p.nodes):
        q = -math.expm1(2.0 * (s.lam - t.lam)) if t.sigma > 0 else 1.0
        c_noise, c_fresh = t.sigma * math.sqrt(1.0 - eta**2 * q), eta * t.sigma * math.sqrt(q)
        output = p.network(s)
        p.remember(s, p.x, output)
        if p.mixes:
            noise = p.lead(p.estimate(NOISE, s, output=output))
            x0 = p.limit(p.combine([(1.0 / away(s).alpha, p.x), (-s.sigma / s.alpha, noise)]))
            terms = [(t.alpha, x0), (c_noise, noise)]
        else:
            terms = [(t.alpha, p.data(s, output))]
            if c_noise != 0.0:
                terms += [(c_noise * c, name) for c, name in p.noise_terms(s, output)]
        if c_fresh != 0.0:
            terms.append((c_fresh, p.noise()))
        p.advance(p.combine(terms), t)
    return p.finish()
