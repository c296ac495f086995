"""MR Sampler: fast solvers of the mean-reverting process of image restoration. Source: Li et al. 2025 (2502.07856).

With y = x - mu the process is y = alpha y0 + sigma eps, so its solvers are DPM-Solver's (and SDE-DPM-Solver's) on y; the network
sees y, and mu beside it (declare mu as a condition with `input = "concat"`). mu is added back at the end.
"""

from __future__ import annotations

import math
from itertools import pairwise

from edgegen.diffusion import Process
from edgegen.diffusion.processes import MeanReverting
from edgegen.errors import ProgramError, Status
from edgegen.program import Clamp, Program
from edgegen.solvers.dpm import difference_terms
from edgegen.solvers.exponential import integrals, ramp, step
from edgegen.solvers.lowering import DATA, NOISE, Grid, Lowering, Node, Prediction
from edgegen.solvers.options import one_of, whole_number

__all__ = ["mrs"]

FORMS = (DATA, NOISE)
PREDICTED = ("epsilon", "sample", "v")


def mrs(
    process: Process, prediction: Prediction, grid: Grid, *, form: str = DATA, order: int = 2, sde: bool = False, lower_order_final: bool = True,
    denoise_last: bool = False, low: float = 0.0, high: float = 1.0,
) -> Program:  # fmt: skip
    """MRS of order 1 to 3 (ODE) or 1 to 2 (SDE), in the data or the noise form; a network of noise, data or velocity.

    lower_order_final: the authors' schedule of orders below 10 steps, in which the step before the last has order 1 and the last the
    full order. denoise_last: the last step returns the data estimate. low, high: the restored image is clamped to this range.
    """
    if not isinstance(process, MeanReverting):
        raise ProgramError(f"mrs needs the process 'mean_reverting', found {type(process).__name__}", Status.OUT_OF_RANGE)
    one_of("mrs", "form", form, FORMS)
    whole_number("mrs", "order", order, 1, 2 if sde else 3)
    if prediction.kind not in PREDICTED or prediction.limited:
        raise ProgramError(f"mrs takes predictions {', '.join(PREDICTED)} without clip or threshold, found {prediction.kind!r}", Status.OUT_OF_RANGE)
    p = Lowering("mrs", process, prediction, grid)
    mu = p.condition("mu")
    history: list[tuple[Node, str]] = []
    for i, (s, t) in enumerate(pairwise(p.nodes)):
        last = i == p.steps - 1
        history = [(s, _estimate(p, process, form if not (last and denoise_last) else DATA, s, mu)), *history][:order]
        if last and denoise_last:
            p.advance(history[0][1], t)
            continue
        used = ramp(i, p.steps, order, False)
        if lower_order_final and p.steps < 10 and not last:
            used = min(used, p.steps - 1 - i)
        terms, spread, drift = _step(form, s, t, sde)
        weights = _weights(form, s, t, sde, used)
        fresh = [(spread, p.noise())] if sde else []
        mean = [(drift, mu)] if process.compat else []
        p.advance(p.combine([(terms, p.x), (weights[0], history[0][1]), *difference_terms(history[:used], t, weights), *fresh, *mean]), t)
    restored = p.combine([(1.0, p.x), (1.0, mu)])
    return p.finish(sample=p.emit(lambda out: Clamp(out, restored, low, high)))


def _estimate(p: Lowering, process: MeanReverting, form: str, s: Node, mu: str) -> str:
    """y0 or eps at s from what the network returns: eps, x0, or v = alpha sigma_inf eps - (sigma / sigma_inf) y0."""
    kind = p.prediction.kind
    output = p.network(s)
    limit = process.sigma_inf
    if kind == "sample":
        data = [(1.0, output), (-1.0, mu)]
        return p.combine(data if form == DATA else [(1.0 / s.sigma, p.x), *((-s.alpha / s.sigma * c, name) for c, name in data)])
    if kind == "v":
        if form == DATA:
            return p.combine([(s.alpha, p.x), (-s.sigma / limit, output)])
        return p.combine([(s.alpha / limit, output), (s.sigma / limit**2, p.x)])
    return p.combine([(1.0 / s.alpha, p.x), (-s.sigma / s.alpha, output)]) if form == DATA else output


def _step(form: str, s: Node, t: Node, sde: bool) -> tuple[float, float, float]:
    """(coefficient of y, of fresh noise, of mu). The last is 0 but for rounding unless alpha, sigma and lambda disagree (compat)."""
    h = t.lam - s.lam
    whole = step(form, s, t)
    if form == NOISE:
        return whole.a, t.sigma * math.sqrt(math.expm1(2.0 * h)), 0.0
    if not sde:
        return whole.a, 0.0, whole.first - (t.alpha - s.alpha * whole.a)
    a = whole.a * math.exp(-h)
    return a, t.sigma * math.sqrt(-math.expm1(-2.0 * h)), a - t.alpha / s.alpha * math.exp(-2.0 * h)


def _weights(form: str, s: Node, t: Node, sde: bool, used: int) -> list[float]:
    """Weights of the estimate and of its differences D1 and D2 ("heun"; D2 as the authors weight it, half of the exact)."""
    h = t.lam - s.lam
    b, factor, g = (t.alpha, 1.0, -2.0 * h if sde else -h) if form == DATA else (t.sigma, 2.0 if sde else 1.0, h)
    return [-b * factor * p for p in integrals(g, 3)[:used]]
