"""Samplers of networks distilled into consistency functions: LCM and TCD.

Sources: Luo et al. 2023 (2310.04378), algorithm 3, with the boundary scalings of their code; Zheng et al. 2024 (2402.19159), TCD.
"""

from __future__ import annotations

import math
from itertools import pairwise

from edgegen.diffusion import Process
from edgegen.diffusion.processes import VPBetas
from edgegen.errors import ProgramError, Status
from edgegen.program import Program
from edgegen.solvers.lowering import Grid, Lowering, Prediction

__all__ = ["boundary_scalings", "lcm", "tcd"]


def boundary_scalings(process: Process, time: float, timestep_scaling: float, sigma_data: float = 0.5) -> tuple[float, float]:
    """(c_skip, c_out) with f = c_skip x + c_out x0, tau = timestep_scaling times the time counted in thousandths of the process."""
    tau = timestep_scaling * (time if isinstance(process, VPBetas) else 1000.0 * time)
    return sigma_data**2 / (tau**2 + sigma_data**2), tau / math.hypot(tau, sigma_data)


def lcm(process: Process, prediction: Prediction, grid: Grid, *, timestep_scaling: float = 10.0) -> Program:
    """x' = alpha' f(x) + sigma' z, f = c_out x0 + c_skip x; the last step returns f without noise.

    A network with a guidance embedding takes its w as a condition; guidance is then already inside it.
    """
    if not timestep_scaling > 0:
        raise ProgramError(f"lcm: expected timestep_scaling > 0, found {timestep_scaling}", Status.OUT_OF_RANGE)
    p = Lowering("lcm", process, prediction, grid)
    for i, (s, t) in enumerate(pairwise(p.nodes)):
        c_skip, c_out = boundary_scalings(process, s.time, timestep_scaling)
        x0 = p.data(s, p.network(s))
        if i == p.steps - 1:
            terms = [(c_out, x0), (c_skip, p.x)]
        else:
            terms = [(t.alpha * c_out, x0), (t.alpha * c_skip, p.x), (t.sigma, p.noise())]
        p.advance(p.combine(terms), t)
    return p.finish()


def tcd(process: Process, prediction: Prediction, grid: Grid, *, gamma: float = 0.3) -> Program:
    """Trajectory consistency: to time s = (1 - gamma) t' along the trajectory, then noise from s to t'; none in the last step.

    gamma: 0 (deterministic) to 1 (as much noise as LCM). Over a table of betas s is rounded down to an index.
    """
    if not 0 <= gamma <= 1:
        raise ProgramError(f"tcd: expected gamma from 0 to 1, found {gamma}", Status.OUT_OF_RANGE)
    p = Lowering("tcd", process, prediction, grid)
    for i, (s, t) in enumerate(pairwise(p.nodes)):
        output = p.network(s)
        x0 = p.data(s, output)
        if t.sigma == 0.0:
            p.advance(x0, t)
            continue
        noisy = gamma > 0.0 and i < p.steps - 1
        between = (1.0 - gamma) * t.time
        middle = p.node(math.floor(between) if isinstance(process, VPBetas) else between) if noisy else t
        ratio = t.alpha / middle.alpha if noisy else 1.0
        terms = [(ratio * middle.alpha, x0), *((ratio * middle.sigma * c, name) for c, name in p.noise_terms(s, output))]
        spread = math.sqrt(max(t.sigma**2 - (ratio * middle.sigma) ** 2, 0.0))
        p.advance(p.combine(terms + ([(spread, p.noise())] if noisy and spread > 0.0 else [])), t)
    return p.finish()
