"""DPM-Solver++, data prediction. Source: Lu et al. 2022 (2211.01095), algorithm 2 (2M)."""

from __future__ import annotations

import math

from edgegen.diffusion import Process
from edgegen.errors import ProgramError, nearest
from edgegen.program import Program
from edgegen.solvers.lowering import Grid, Lowering

__all__ = ["dpmpp_2m"]

_VARIANTS = ("midpoint", "heun")
_LOWER_ORDER_BELOW = 15
"""`lower_order_final` drops the last step to order 1 below this many steps, as in diffusers."""


def _p2(g: float) -> float:
    """expm1(g) / g - 1, by its series where the difference would cancel."""
    if abs(g) >= 0.05:
        return math.expm1(g) / g - 1.0
    return math.fsum(g**n / math.factorial(n + 1) for n in range(1, 10))


def dpmpp_2m(
    process: Process, prediction: str, grid: Grid, *, variant: str = "midpoint", lower_order_final: bool = True,
    clip: float | None = None, threshold: float | None = None,
) -> Program:  # fmt: skip
    """Second-order multistep in lambda:  x' = (sigma' / sigma) x - alpha' (p1 m0 + w D1),  D1 = (m0 - m1) / r0,
    with h = lambda' - lambda, p1 = expm1(-h), r0 = h_before / h, and w = p1 / 2 (midpoint) or p2 = p1 / (-h) - 1 (heun).

    Steps that end at sigma = 0 or start at alpha = 0, the first step, and the step after a start at alpha = 0 are of first
    order: h is infinite there. lower_order_final: also the last step, below 15 steps. clip, threshold: as in `ddim`.
    """
    if variant not in _VARIANTS:
        raise ProgramError(f"dpmpp_2m has no variant {variant!r}: {nearest(variant, _VARIANTS)}")
    p = Lowering("dpmpp_2m", process, prediction, grid)
    previous: str | None = None
    for i in range(p.steps):
        m0 = p.data(i, p.network(i), clip=clip, threshold=threshold)
        shrink = p.sigma[i + 1] / p.sigma[i]
        h = p.lam[i + 1] - p.lam[i]
        h_before = p.lam[i] - p.lam[i - 1] if i > 0 else math.inf
        last = lower_order_final and i == p.steps - 1 and p.steps < _LOWER_ORDER_BELOW
        if previous is None or last or math.isinf(h) or math.isinf(h_before):
            terms = [(shrink, p.x), (p.alpha[i + 1] - p.alpha[i] * shrink, m0)]
        else:
            p1, r0 = math.expm1(-h), h_before / h
            w = 0.5 * p1 if variant == "midpoint" else _p2(-h)
            terms = [(shrink, p.x), (-p.alpha[i + 1] * (p1 + w / r0), m0), (p.alpha[i + 1] * w / r0, previous)]
        p.advance(i, p.combine(terms))
        previous = m0
    return p.finish()
