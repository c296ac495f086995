"""Multistep solvers of the reverse SDE: SDE-DPM-Solver(++) and SA-Solver.

In data form, with h = lambda' - lambda and one parameter that says how much noise is added,

    x' = (sigma' / sigma) exp(-eta h) x + alpha' (1 + eta) I + sigma' sqrt(1 - exp(-2 eta h)) z,
    I = the integral of exp(-(1 + eta) (lambda' - l)) x0(l) dl

eta = 0 is the probability-flow ODE, eta = 1 the reverse SDE; SA-Solver writes tau^2 for eta.
Sources: Lu et al. 2022 (2211.01095), appendix; Xue et al. 2023 (2309.05019), SA-Solver; k-diffusion for the singlestep form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from edgegen.diffusion import Process
from edgegen.diffusion.processes import VarianceExploding, VPBetas
from edgegen.errors import ProgramError, Status
from edgegen.program import Program
from edgegen.solvers.dpm import difference_terms
from edgegen.solvers.exponential import adams, ancestral, finite, integrals, step, usable
from edgegen.solvers.lowering import DATA, NOISE, Grid, Lowering, Node, Prediction
from edgegen.solvers.options import one_of, whole_number

__all__ = ["dpmpp_sde", "sa_solver"]

CURVATURES = ("compat", "exact", "diffusers")
METHODS = ("multistep", "singlestep")
VARIANTS = ("midpoint", "heun")


def dpmpp_sde(
    process: Process, prediction: Prediction, grid: Grid, *, order: int = 2, eta: float = 1.0, variant: str = "midpoint", form: str = DATA,
    method: str = "multistep", d2: str = "compat", lower_order_final: bool = True,
) -> Program:  # fmt: skip
    """SDE-DPM-Solver++ of order 1 to 3 (data form), or SDE-DPM-Solver of order 1 or 2 (noise form, eta = 1).

    method: "multistep" (k-diffusion's dpmpp_2m_sde and dpmpp_3m_sde, diffusers' sde-dpmsolver++), or "singlestep" (k-diffusion's
    dpmpp_sde: two evaluations per step, noise from one Brownian path). variant: as in `dpmpp_2m`. d2, at order 3: "exact",
    "compat" (half of it, as k-diffusion) or "diffusers" (whose sign is wrong: order 1).
    """
    for what, value, choices in (("variant", variant, VARIANTS), ("method", method, METHODS), ("form", form, (DATA, NOISE)), ("d2", d2, CURVATURES)):
        one_of("dpmpp_sde", what, value, choices)
    if order not in (1, 2, 3) or (form == NOISE and (order == 3 or eta != 1.0 or method != "multistep")):
        raise ProgramError(f"dpmpp_sde: order {order} with form {form!r}, eta {eta:g}, method {method!r} is not a method", Status.OUT_OF_RANGE)
    p = Lowering("dpmpp_sde", process, prediction, grid)
    if method == "singlestep":
        _singlestep(p, eta)
    else:
        _multistep(p, form, order, eta, variant, d2, lower_order_final)
    return p.finish()


def _multistep(p: Lowering, form: str, order: int, eta: float, variant: str, d2: str, lower_order_final: bool) -> None:
    history: list[tuple[Node, str]] = []
    for i, (s, t) in enumerate(pairwise(p.nodes)):
        history = [(s, p.estimate(form, s)), *history][:order]
        used = usable(i, p.nodes, order, lower_order_final, history)
        kind = variant if len(used) == 2 else "heun"
        if form == DATA:
            a, w, spread = _reverse(s, t, eta)
            g = -(1.0 + eta) * (t.lam - s.lam)
            weights = [w * _part(k, g, kind, d2) for k in range(len(used))]
        else:
            whole = step(NOISE, s, t)
            if not math.isfinite(whole.g):
                raise ProgramError("dpmpp_sde in noise form cannot end at sigma = 0; set t_end above it, or use the data form", Status.OUT_OF_RANGE)
            a, spread = whole.a, t.sigma * math.sqrt(math.expm1(2.0 * whole.g))
            weights = [2.0 * whole.first * _part(k, whole.g, kind, d2) for k in range(len(used))]
        terms = [(a, p.x), (weights[0], p.lead(history[0][1])), *difference_terms(used, t, weights)]
        p.advance(p.combine(terms + ([(spread, p.noise())] if spread > 0.0 else [])), t)


def _reverse(s: Node, t: Node, eta: float) -> tuple[float, float, float]:
    """(A, weight of a constant estimate, noise) of the exact step in data form."""
    whole = step(DATA, s, t)
    h = t.lam - s.lam
    if math.isinf(h):
        # from alpha = 0 nothing of the state is left for eta > 0; to sigma = 0 the step is the estimate itself
        return (whole.a, whole.first, 0.0) if t.sigma == 0.0 or eta == 0.0 else (0.0, t.alpha, t.sigma)
    return whole.a * math.exp(-eta * h), -t.alpha * math.expm1(-(1.0 + eta) * h), t.sigma * math.sqrt(-math.expm1(-2.0 * eta * h))


def _part(k: int, g: float, variant: str, d2: str) -> float:
    """What multiplies the k-th difference, relative to the weight of a constant estimate."""
    if k == 0:
        return 1.0
    p1, p2, p3 = integrals(g, 3)
    if k == 1:
        return 0.5 if variant == "midpoint" else p2 / p1
    if d2 == "diffusers":
        return (p3 + 1.0) / p1
    return p3 / p1 * (1.0 if d2 == "compat" else 2.0)


def _singlestep(p: Lowering, eta: float) -> None:
    """DPM-Solver++ 2S with r = 1/2, ancestral at the middle and at the end, both from the state at s; the two noises are increments
    of one Brownian motion in rho, as k-diffusion's BrownianTree gives them.
    """
    for s, t in pairwise(p.nodes):
        x, m0 = p.x, p.estimate(DATA, s)
        if not finite(s, t):
            whole = step(DATA, s, t)
            p.advance(p.combine([(whole.a, x), (whole.first, m0)]), t)
            continue
        middle = p.at_lambda(0.5 * (s.lam + t.lam))
        down, up = ancestral(s, middle, eta)
        early = p.noise() if up > 0.0 else None
        m1 = p.estimate(DATA, middle, p.combine(_downwards(s, middle, down, x, m0) + ([] if early is None else [(middle.alpha * up, early)])))
        down, up = ancestral(s, t, eta)
        terms = _downwards(s, t, down, x, m1)
        if early is not None:
            span = s.rho - t.rho
            terms += [(t.alpha * up * math.sqrt((s.rho - middle.rho) / span), early)]
            terms += [(t.alpha * up * math.sqrt((middle.rho - t.rho) / span), p.noise())]
        p.advance(p.combine(terms), t)


def _downwards(s: Node, t: Node, down: float, x: str, m: str) -> list[tuple[float, str]]:
    """x' / alpha' = (down / rho) x / alpha + (1 - down / rho) x0."""
    ratio = down / s.rho
    return [(t.alpha * ratio / s.alpha, x), (t.alpha * (1.0 - ratio), m)]


def sa_solver(
    process: Process, prediction: Prediction, grid: Grid, *, predictor_order: int = 2, corrector_order: int = 2, tau: float = 1.0,
    tau_low: float | None = None, tau_high: float | None = None, lower_order_final: bool = True,
) -> Program:  # fmt: skip
    """SA-Solver: stochastic Adams, predictor (1 to 4 estimates) and corrector (0 is none; 1 to 4 with the new one), one evaluation per step.

    tau: how much noise is added (0: ODE, 1: reverse SDE) in steps that start at tau_low <= t <= tau_high; outside, 0. The default
    interval is the middle of the process, as diffusers' (200 to 800 of 1,000; 0.05 to 50 in EDM's sigma). A corrector uses its
    predictor's draw and tau again.
    """
    for name, value, least in (("predictor_order", predictor_order, 1), ("corrector_order", corrector_order, 0)):
        whole_number("sa_solver", name, value, least, 4)
    low, high = _noisy_times(process)
    low, high = (low if tau_low is None else tau_low), (high if tau_high is None else tau_high)
    p = Lowering("sa_solver", process, prediction, grid)
    history: list[tuple[Node, str]] = []
    corrected, fresh, strength, corrector_used = p.x, "", 0.0, 0
    for i, (s, t) in enumerate(pairwise(p.nodes)):
        m = p.estimate(DATA, s)
        if i > 0 and corrector_used > 0 and finite(history[0][0]):
            corrected = p.combine(_adams_step(history[0][0], s, strength, corrected, [(s, m), *history][:corrector_used], fresh, corrector=True))
        else:
            corrected = p.x
        history = [(s, m), *history][: max(predictor_order, corrector_order)]
        used = usable(i, p.nodes, predictor_order, lower_order_final, history, below=math.inf)
        corrector_used = min(corrector_order, i + 2, p.steps - i + 1 if lower_order_final else corrector_order)
        strength = tau**2 if low <= s.time <= high else 0.0
        fresh = p.noise() if strength > 0.0 and t.sigma > 0.0 else ""
        p.advance(p.combine(_adams_step(s, t, strength, corrected, used, fresh, corrector=False)), t)
    return p.finish()


def _noisy_times(process: Process) -> tuple[float, float]:
    if isinstance(process, VarianceExploding):
        return 0.05, 50.0
    span = len(process.log_alphas) - 1 if isinstance(process, VPBetas) else process.t_max
    return 0.2 * span, 0.8 * span


def _adams_step(
    s: Node, t: Node, eta: float, x: str, estimates: Sequence[tuple[Node, str]], fresh: str, *, corrector: bool
) -> list[tuple[float, str]]:  # fmt: skip
    """The step from s to t with the polynomial through `estimates`, which for a corrector begin at t."""
    a, constant, spread = _reverse(s, t, eta)
    h, q = t.lam - s.lam, 1.0 + eta
    if len(estimates) == 1:
        weights = [constant]
    else:
        g = -q * h
        weights = [-t.alpha * w for w in adams([(n.lam - s.lam) / h for n, _ in estimates], g)]
        if len(estimates) == 2:  # the authors' third-order change for few steps
            gap = q * h * h / 2.0 - g * integrals(g, 2)[1] / q
            extra = t.alpha * gap / (h if corrector else s.lam - estimates[1][0].lam)
            weights = [weights[0] + extra, weights[1] - extra]
    terms = [(a, x), *zip(weights, (m for _, m in estimates), strict=True)]
    return [*terms, (spread, fresh)] if fresh else terms
