"""The one derivation (docs/solvers.md): for x = alpha x0 + sigma eps the probability-flow ODE is, exactly,

    noise form: d(x / alpha) = eps d rho,  rho = sigma / alpha          data form: d(x / sigma) = x0 d kappa,  kappa = alpha / sigma

so a step from s to t is x_t = A x_s + an integral of the estimates m (eps or x0). With a polynomial through stored estimates in
lambda = ln(alpha / sigma), h = lambda_t - lambda_s, and D_k = h^k d^k m / d lambda^k at s:

    x_t = A x_s - B (p1 m + p2 D1 + p3 D2 + ...),  p1 = expm1(g),  p_{k+1} = p_k / g - 1 / k!
    data: A = sigma_t / sigma_s, B = alpha_t, g = -h;  noise: A = alpha_t / alpha_s, B = sigma_t, g = h

Only differences of lambda are formed. Where h is infinite (sigma_t = 0, or alpha_s = 0) the first-order step has a finite limit,
which `step` gives; higher orders have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgegen.errors import ProgramError, Status
from edgegen.solvers.lowering import DATA, Node, away

__all__ = ["Transfer", "adams", "ancestral", "finite", "integrals", "ramp", "step", "usable"]

LOWER_ORDER_BELOW = 15
"""`lower_order_final` lowers the order of the last steps below this many steps, as in diffusers."""


def ramp(i: int, steps: int, order: int, lower_order_final: bool, below: float = LOWER_ORDER_BELOW) -> int:
    """The order of step i: i + 1 while there is no history; with lower_order_final, for short programs, down to 1 at the end."""
    order = min(order, i + 1)
    return min(order, steps - i) if lower_order_final and steps < below else order


def usable(
    i: int, nodes: Sequence[Node], order: int, lower_order_final: bool, history: Sequence[tuple[Node, str]], below: float = LOWER_ORDER_BELOW
) -> list[tuple[Node, str]]:  # fmt: skip
    """The estimates, newest first, that a multistep polynomial in lambda may use in step i: as many as `ramp` says, one where h is
    infinite, and none from a node before or at which lambda is.
    """
    count = ramp(i, len(nodes) - 1, order, lower_order_final, below) if finite(nodes[i], nodes[i + 1]) else 1
    while count > 1 and not finite(*(n for n, _ in history[:count])):
        count -= 1
    return list(history[:count])


def integrals(g: float, count: int) -> list[float]:
    """[p_1, ..., p_count] at g: p_k = sum_{n >= k} g^(n - k + 1) / n!. g may be -inf, where all are finite."""
    if math.isinf(g):
        return [-1.0 / math.factorial(k) for k in range(count)]
    if abs(g) > 2.0:
        p = [math.expm1(g)]
        for k in range(1, count):
            p.append(p[-1] / g - 1.0 / math.factorial(k))
        return p
    last = math.fsum(g ** (n - count + 1) / math.factorial(n) for n in range(count, count + 26))
    p = [last]  # downwards p_k = g (p_{k+1} + 1 / k!), which does not cancel
    for k in range(count - 1, 0, -1):
        p.insert(0, g * (p[0] + 1.0 / math.factorial(k)))
    return p


class Transfer:
    """The exact step from s to t in one form: A, B, g as above, and `first`, the weight -B p1 of a constant estimate."""

    __slots__ = ("a", "b", "first", "g")

    def __init__(self, form: str, s: Node, t: Node) -> None:
        if form == DATA:
            here, there, other_here, other_there, sign = s.sigma, t.sigma, s.alpha, t.alpha, -1.0
        else:
            here, there, other_here, other_there, sign = s.alpha, t.alpha, s.sigma, t.sigma, 1.0
        if here == 0.0 and form == DATA:
            raise ProgramError(f"a step from time {s.time:g} starts at sigma = 0; end the grid there", Status.OUT_OF_RANGE)
        if here == 0.0:
            away(s)
        self.a, self.b = there / here, other_there
        h = t.lam - s.lam
        self.g = sign * h
        self.first = -self.b * math.expm1(self.g) if math.isfinite(h) else other_there - self.a * other_here


def step(form: str, s: Node, t: Node) -> Transfer:
    """The exact step of a form from s to t."""
    return Transfer(form, s, t)


def ancestral(s: Node, t: Node, eta: float) -> tuple[float, float]:
    """(rho_down, rho_up) of an ancestral step: down to rho_down without noise, then rho_up of fresh noise, with
    rho_down^2 + rho_up^2 = rho'^2 and rho_up = eta rho' sqrt(1 - (rho' / rho)^2). eta: 0 (no noise) to 1. Nothing cancels.
    """
    here, there = away(s).rho, t.rho
    up = min(there, eta * there * math.sqrt(1.0 - (there / here) ** 2))
    return there * math.sqrt(1.0 - eta**2 + (eta * there / here) ** 2), up


def finite(*nodes: Node) -> bool:
    """Whether lambda is finite at all nodes, so that an order above 1 has a limit."""
    return all(math.isfinite(n.lam) for n in nodes)


def lagrange(points: Sequence[float]) -> list[list[float]]:
    """For each point the coefficients, constant term first, of the polynomial that is 1 there and 0 at the others."""
    rows = []
    for j, at in enumerate(points):
        others = [p for k, p in enumerate(points) if k != j]
        rows.append((np.poly(others)[::-1] / math.prod(at - p for p in others)).tolist() if others else [1.0])
    return rows


def adams(points: Sequence[float], g: float) -> list[float]:
    """Weights w with x_t = A x_s - B sum_j w_j m_j, exact for polynomials in lambda through m_j at theta_j = (lambda_j - lambda_s) / h."""
    p = integrals(g, len(points))
    return [math.fsum(c * math.factorial(k) * p[k] for k, c in enumerate(row)) for row in lagrange(points)]
