"""Euler's method on the probability-flow ODE. Sources: Karras et al. 2022, algorithm 1 without churn; Liu et al. 2023 for flow."""

from __future__ import annotations

from edgegen.diffusion import Process
from edgegen.diffusion.processes import Flow
from edgegen.program import Program
from edgegen.solvers.lowering import Grid, Lowering

__all__ = ["euler"]


def euler(process: Process, prediction: str, grid: Grid) -> Program:
    """Flow: x' = x + (t' - t) u with u = eps - x0. Otherwise Euler in rho = sigma / alpha on x / alpha (EDM's ODE):
    x' = (alpha' / alpha) x + (sigma' - alpha' sigma / alpha) eps. First order; equal to DDIM with eta = 0.
    """
    p = Lowering("euler", process, prediction, grid)
    for i in range(p.steps):
        output = p.network(i)
        if isinstance(process, Flow) and prediction == "flow":
            terms = [(1.0, p.x), (float(grid[i + 1] - grid[i]), output)]
        elif isinstance(process, Flow):
            h = float(grid[i + 1] - grid[i])
            terms = [(1.0, p.x), *((h * c, name) for c, name in p.noise_terms(i, output)), *((-h * c, name) for c, name in p.data_terms(i, output))]
        else:
            shrink = p.alpha[i + 1] / p.alpha[i]
            slope = p.sigma[i + 1] - shrink * p.sigma[i]
            terms = [(shrink, p.x), *((slope * c, name) for c, name in p.noise_terms(i, output))]
        p.advance(i, p.combine(terms))
    return p.finish()
