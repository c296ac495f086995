"""One-step methods on the probability-flow ODE, without and with added noise: Euler, Heun, DPM-2, Runge-Kutta, and the ancestral ones.

The state follows d(x / alpha) = eps d rho (EDM's ODE, for every process), or dx = (eps - x0) dt where the process is a flow.
Sources: Karras et al. 2022 (2206.00364), algorithms 1 and 2; Zhang and Chen 2023 (2204.13902), rhoRK; Liu et al. 2023, flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from edgegen.diffusion import Process
from edgegen.diffusion.processes import Flow
from edgegen.errors import ProgramError, Status
from edgegen.program import Program
from edgegen.solvers.exponential import ancestral, step
from edgegen.solvers.lowering import DATA, NOISE, Grid, Lowering, Node, Prediction, away
from edgegen.solvers.options import one_of

__all__ = ["TABLEAUS", "deis_rk", "dpmpp_2s_a", "euler", "euler_a", "heun", "kdpm2", "kdpm2_a"]

Tableau = tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]

TABLEAUS: dict[str, Tableau] = {
    "euler": ((0.0,), ((),), (1.0,)),
    "2heun": ((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),
    "3kutta": ((0.0, 1 / 2, 1.0), ((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 4 / 6, 1 / 6)),
    "3ral": ((0.0, 1 / 2, 3 / 4), ((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),
    "3heun": ((0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "3vdh": ((0.0, 8 / 15, 2 / 3), ((), (8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0.0, 3 / 4)),
    "3ssprk": ((0.0, 1.0, 1 / 2), ((), (1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "4rk": ((0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""Explicit Runge-Kutta methods (c, a, b); Ralston, Heun, van der Houwen and strong-stability-preserving ones of third order."""


def euler(process: Process, prediction: Prediction, grid: Grid) -> Program:
    """Flow: x' = x + (t' - t) u with u = eps - x0. Otherwise x' = (alpha' / alpha) x + (sigma' - alpha' sigma / alpha) eps.

    First order; equal to DDIM with eta = 0.
    """
    return _explicit("euler", process, prediction, grid, TABLEAUS["euler"])


def heun(process: Process, prediction: Prediction, grid: Grid) -> Program:
    """Heun's method (EDM, algorithm 1 without churn): second order, two evaluations per step; a step to sigma = 0 is Euler's."""
    return _explicit("heun", process, prediction, grid, TABLEAUS["2heun"])


def deis_rk(process: Process, prediction: Prediction, grid: Grid, *, tableau: str = "3kutta") -> Program:
    """DEIS's rhoRK: a Runge-Kutta method of `TABLEAUS` in rho; a step to sigma = 0 is Euler's."""
    one_of("deis_rk", "tableau", tableau, TABLEAUS)
    return _explicit("deis_rk", process, prediction, grid, TABLEAUS[tableau])


def kdpm2(process: Process, prediction: Prediction, grid: Grid) -> Program:
    """DPM-2 (k-diffusion): the midpoint method with the midpoint half-way in log rho (in t for a flow); a step to sigma = 0 is Euler's."""
    p = Lowering("kdpm2", process, prediction, grid)
    for s, t in pairwise(p.nodes):
        x = p.x
        slope = _slope(p, s)
        if t.sigma > 0.0:
            middle = _middle(p, s, t)
            slope = _slope(p, middle, _moved(p, s, middle, x, [(1.0, slope)]))
        p.advance(_moved(p, s, t, x, [(1.0, slope)]), t)
    return p.finish()


def euler_a(process: Process, prediction: Prediction, grid: Grid, *, eta: float = 1.0) -> Program:
    """Euler ancestral: to rho_down without noise, then rho_up of fresh noise, rho_down^2 + rho_up^2 = rho'^2. eta: 0 is Euler, 1 DDPM."""
    p = Lowering("euler_a", process, prediction, grid)
    for s, t in pairwise(p.nodes):
        down, up = ancestral(s, t, eta)
        noise = p.estimate(NOISE, s)
        ratio = t.alpha / away(s).alpha
        p.advance(p.combine([(ratio, p.x), (t.alpha * (down - s.rho), noise), *_fresh(p, t, up)]), t)
    return p.finish()


def kdpm2_a(process: Process, prediction: Prediction, grid: Grid, *, eta: float = 1.0) -> Program:
    """DPM-2 ancestral: `kdpm2` to rho_down, then rho_up of fresh noise, as in `euler_a`."""
    p = Lowering("kdpm2_a", process, prediction, grid)
    for s, t in pairwise(p.nodes):
        down, up = ancestral(s, t, eta)
        x, noise = p.x, p.estimate(NOISE, s)
        if down > 0.0:
            middle = p.at_rho(math.sqrt(s.rho * down))
            u = p.combine([(middle.alpha / away(s).alpha, x), (middle.alpha * (middle.rho - s.rho), noise)])
            noise = p.estimate(NOISE, middle, u)
        ratio = t.alpha / away(s).alpha
        p.advance(p.combine([(ratio, x), (t.alpha * (down - s.rho), noise), *_fresh(p, t, up)]), t)
    return p.finish()


def dpmpp_2s_a(process: Process, prediction: Prediction, grid: Grid, *, eta: float = 1.0) -> Program:
    """DPM-Solver++ 2S ancestral (k-diffusion): 2S to rho_down with the middle half-way in lambda, then rho_up of fresh noise."""
    p = Lowering("dpmpp_2s_a", process, prediction, grid)
    for s, t in pairwise(p.nodes):
        down, up = ancestral(s, t, eta)
        x, m = p.x, p.estimate(DATA, s)
        if down > 0.0:
            end = p.at_rho(down)
            middle = p.at_lambda(0.5 * (s.lam + end.lam))
            half = step(DATA, s, middle)
            m = p.estimate(DATA, middle, p.combine([(half.a, x), (half.first, m)]))
            whole, ratio = step(DATA, s, end), t.alpha / end.alpha
        else:
            whole, ratio = step(DATA, s, t), 1.0
        p.advance(p.combine([(ratio * whole.a, x), (ratio * whole.first, m), *_fresh(p, t, up)]), t)
    return p.finish()


def _explicit(name: str, process: Process, prediction: Prediction, grid: Grid, tableau: Tableau) -> Program:
    p = Lowering(name, process, prediction, grid)
    for s, t in pairwise(p.nodes):
        c, a, b = tableau if t.sigma > 0.0 else TABLEAUS["euler"]
        x = p.x
        slopes = [_slope(p, s)]
        for position, row in zip(c[1:], a[1:], strict=True):
            stage = t if position == 1.0 else _part(p, s, t, position)
            slopes.append(_slope(p, stage, _moved(p, s, stage, x, list(zip((k / position for k in row), slopes, strict=True)))))
        p.advance(_moved(p, s, t, x, list(zip(b, slopes, strict=True))), t)
    return p.finish()


def _slope(p: Lowering, node: Node, x: str | None = None) -> str:
    """What the state follows at a node: eps, or eps - x0 for a flow."""
    if not isinstance(p.process, Flow):
        return p.estimate(NOISE, away(node), x)
    output = p.network(node, x)
    if p.prediction.kind == "flow" and not p.prediction.limited:
        return output
    if not p.prediction.limited:
        return p.combine([*p.noise_terms(node, output, x), *((-c, name) for c, name in p.data_terms(node, output, x))])
    x0 = p.data(node, output, x)
    if node.sigma == 0.0:
        raise ProgramError("the velocity cannot be derived from clipped data at sigma = 0; end the grid above it", Status.OUT_OF_RANGE)
    return p.combine([(1.0 / node.sigma, p.x if x is None else x), (-1.0 / node.sigma, x0)])


def _moved(p: Lowering, s: Node, t: Node, x: str, slopes: Sequence[tuple[float, str]]) -> str:
    """x moved from s to t along a combination of slopes."""
    if isinstance(p.process, Flow):
        scale, span = 1.0, t.time - s.time
    else:
        scale = t.alpha / s.alpha
        span = t.sigma - scale * s.sigma
    return p.combine([(scale, x), *((span * c, slope) for c, slope in slopes)])


def _part(p: Lowering, s: Node, t: Node, position: float) -> Node:
    """The node at a fraction of the way from s to t, in rho (in t for a flow)."""
    if isinstance(p.process, Flow):
        return p.node(s.time + position * (t.time - s.time))
    return p.at_rho(s.rho + position * (t.rho - s.rho))


def _middle(p: Lowering, s: Node, t: Node) -> Node:
    return p.node(0.5 * (s.time + t.time)) if isinstance(p.process, Flow) else p.at_lambda(0.5 * (away(s).lam + t.lam))


def _fresh(p: Lowering, t: Node, up: float) -> list[tuple[float, str]]:
    return [(t.alpha * up, p.noise())] if up > 0.0 else []
