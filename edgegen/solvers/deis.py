"""DEIS and its relatives: Adams-Bashforth on the noise form, with the polynomial in a variable of one's choice.

Sources: Zhang and Chen 2023 (2204.13902): tAB, rhoAB, iPNDM; Liu et al. 2022 (2202.09778): PNDM; Karras et al. 2022: LMS in sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edgegen.diffusion import Process
from edgegen.program import Program
from edgegen.solvers.exponential import adams, finite, lagrange, ramp, step
from edgegen.solvers.lowering import NOISE, Grid, Lowering, Node, Prediction
from edgegen.solvers.options import one_of, whole_number

__all__ = ["deis", "ipndm", "lms", "pndm"]

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of 1 to 4 estimates, newest first, on an equidistant grid."""


def deis(
    process: Process, prediction: Prediction, grid: Grid, *, variable: str = "t", order: int = 3, lower_order_final: bool = True
) -> Program:  # fmt: skip
    """x' = (alpha' / alpha) x + sum_j C_j eps_j,  C_j = alpha' times the integral of l_j d rho over the step.

    order: the degree 0 to 3 of the polynomial through the last order + 1 noise estimates (0 is DDIM); it grows from 0 in the first
    steps. variable: what it is a polynomial in: "t", "rho" or "log_rho" (= -lambda). lower_order_final: end with lower degrees
    below 15 steps, as diffusers' DEISMultistepScheduler does (the authors' code does not).
    """
    one_of("deis", "variable", variable, _WEIGHTS)
    whole_number("deis", "order", order, 0, 3)
    return _adams_bashforth("deis", process, prediction, grid, variable, order + 1, lower_order_final)


def lms(process: Process, prediction: Prediction, grid: Grid, *, order: int = 4, lower_order_final: bool = False) -> Program:
    """Linear multistep in rho with up to `order` (1 to 4) estimates: k-diffusion's LMS, which is rhoAB with as many estimates.

    lower_order_final: as in `deis`; diffusers' LMSDiscreteScheduler has none.
    """
    whole_number("lms", "order", order, 1, 4)
    return _adams_bashforth("lms", process, prediction, grid, "rho", order, lower_order_final)


def ipndm(process: Process, prediction: Prediction, grid: Grid, *, order: int = 4, lower_order_final: bool = False) -> Program:
    """Improved PNDM: the DDIM step with Adams-Bashforth's mean of the last `order` (1 to 4) noise estimates; made for uniform times.

    lower_order_final: as in `deis`; the authors have none.
    """
    whole_number("ipndm", "order", order, 1, 4)
    p = Lowering("ipndm", process, prediction, grid)
    history: list[str] = []
    for i, (s, t) in enumerate(pairwise(p.nodes)):
        history = [p.estimate(NOISE, s), *history][:order]
        used = ramp(i, p.steps, order, lower_order_final)
        _ddim_step(p, s, t, p.x, list(zip(ADAMS_BASHFORTH[used - 1], history[:used], strict=True)))
    return p.finish()


def pndm(
    process: Process, prediction: Prediction, grid: Grid, *, runge_kutta: bool = False, lower_order_final: bool = False
) -> Program:  # fmt: skip
    """Pseudo linear multistep: the first interval is done twice (with e0, then with the mean of e0 and the estimate at its end), later
    ones with 2, 3, then 4 estimates: steps + 1 evaluations.

    runge_kutta: pseudo Runge-Kutta in the first three intervals instead (4 evaluations each): steps + 9 evaluations.
    lower_order_final: as in `deis`; diffusers' PNDMScheduler has none.
    """
    p = Lowering("pndm", process, prediction, grid)
    history: list[str] = []
    for i, (s, t) in enumerate(pairwise(p.nodes)):
        if runge_kutta and i < 3:
            history = [_pseudo_runge_kutta(p, s, t), *history]
            continue
        x, e = p.x, p.estimate(NOISE, s)
        history = [e, *history][:4]
        if i == 0:
            if p.steps > 1:
                there = p.estimate(NOISE, t, _ddim(p, s, t, x, [(1.0, e)]))
                _ddim_step(p, s, t, x, [(0.5, e), (0.5, there)])
            else:
                _ddim_step(p, s, t, x, [(1.0, e)])
        else:
            used = ramp(i, p.steps, len(history), lower_order_final)
            _ddim_step(p, s, t, x, list(zip(ADAMS_BASHFORTH[used - 1], history[:used], strict=True)))
    return p.finish()


def _pseudo_runge_kutta(p: Lowering, s: Node, t: Node) -> str:
    """Four evaluations in one interval, the classical Runge-Kutta weights; returns the estimate at s, which the history keeps."""
    x = p.x
    middle = p.node(0.5 * (s.time + t.time))
    e1 = p.estimate(NOISE, s)
    e2 = p.estimate(NOISE, middle, _ddim(p, s, middle, x, [(1.0, e1)]))
    e3 = p.estimate(NOISE, middle, _ddim(p, s, middle, x, [(1.0, e2)]))
    e4 = p.estimate(NOISE, t, _ddim(p, s, t, x, [(1.0, e3)]))
    _ddim_step(p, s, t, x, [(1 / 6, e1), (1 / 3, e2), (1 / 3, e3), (1 / 6, e4)])
    return e1


def _ddim(p: Lowering, s: Node, t: Node, x: str, noise: Sequence[tuple[float, str]]) -> str:
    """The DDIM map from s to t with a combination of noise estimates."""
    whole = step(NOISE, s, t)
    return p.combine([(whole.a, x), *((whole.first * c, e) for c, e in noise)])


def _ddim_step(p: Lowering, s: Node, t: Node, x: str, noise: Sequence[tuple[float, str]]) -> None:
    p.advance(_ddim(p, s, t, x, noise), t)


def _adams_bashforth(
    name: str, process: Process, prediction: Prediction, grid: Grid, variable: str, count: int, lower_order_final: bool
) -> Program:  # fmt: skip
    p = Lowering(name, process, prediction, grid)
    history: list[tuple[Node, str]] = []
    for i, (s, t) in enumerate(pairwise(p.nodes)):
        history = [(s, p.estimate(NOISE, s)), *history][:count]
        used = history[: ramp(i, p.steps, count, lower_order_final)]
        if variable == "log_rho" and not finite(s, t):
            used = used[:1]
        whole = step(NOISE, s, t)
        weights = [whole.first] if len(used) == 1 else _WEIGHTS[variable](process, [n for n, _ in used], t)
        p.advance(p.combine([(whole.a, p.x), *zip(weights, (e for _, e in used), strict=True)]), t)
    return p.finish()


@cache
def _quadrature() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Gauss-Legendre points and weights on [0, 1], 64 of them."""
    points, weights = np.polynomial.legendre.leggauss(64)
    return 0.5 * (points + 1.0), 0.5 * weights


def _in_time(process: Process, nodes: Sequence[Node], t: Node) -> list[float]:
    """alpha_t times the integral of l_j(tau) d rho(tau), by parts: [l_j rho] - integral of l_j' rho, Gauss-Legendre with 64 points."""
    s = nodes[0]
    span = t.time - s.time
    theta, weights = _quadrature()
    times = s.time + span * theta
    rho = process.sigma(times) / process.alpha(times)
    out = []
    for row in lagrange([(n.time - s.time) / span for n in nodes]):
        slope = sum(k * c * theta ** (k - 1) for k, c in enumerate(row) if k > 0)
        out.append(t.alpha * (math.fsum(row) * t.rho - row[0] * s.rho - math.fsum(weights * slope * rho)))
    return out


def _in_rho(process: Process, nodes: Sequence[Node], t: Node) -> list[float]:
    """alpha_t times the integral of l_j(rho) d rho, in closed form."""
    s = nodes[0]
    span = t.rho - s.rho
    rows = lagrange([(n.rho - s.rho) / span for n in nodes])
    return [t.alpha * span * math.fsum(c / (k + 1) for k, c in enumerate(row)) for row in rows]


def _in_log_rho(process: Process, nodes: Sequence[Node], t: Node) -> list[float]:
    """The exponential integrals of `adams`."""
    s = nodes[0]
    h = t.lam - s.lam
    return [-t.sigma * w for w in adams([(n.lam - s.lam) / h for n in nodes], h)]


_WEIGHTS: dict[str, Callable[[Process, Sequence[Node], Node], list[float]]] = {"t": _in_time, "rho": _in_rho, "log_rho": _in_log_rho}
