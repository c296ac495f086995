"""UniPC: a predictor and a corrector that share evaluations. Source: Zhao et al. 2023 (2302.04867), algorithms 5 to 8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from edgegen.diffusion import Process
from edgegen.program import Program
from edgegen.solvers.exponential import finite, integrals, step, usable
from edgegen.solvers.lowering import DATA, NOISE, Grid, Lowering, Node, Prediction
from edgegen.solvers.options import one_of, whole_number

__all__ = ["unipc"]

VARIANTS = ("bh1", "bh2")
FORMS = (DATA, NOISE)

History = Sequence[tuple[Node, str]]


def unipc(
    process: Process, prediction: Prediction, grid: Grid, *, order: int = 2, variant: str = "bh2", corrector: bool = True, form: str = DATA,
    lower_order_final: bool = True,
) -> Program:  # fmt: skip
    """UniPC of order 1 to 3. After the evaluation at a predicted state the step that led there is corrected, and the next predictor
    starts from the corrected state; the estimate is not evaluated again, so the evaluations equal the steps. The last predicted
    state is not corrected.

    variant: B(h) = h ("bh1") or expm1(h) ("bh2"); it matters for the predictor of order 2 and the corrector of order 1 only.
    lower_order_final: the last steps have orders ..., 2, 1, for any number of steps, as in diffusers.
    """
    one_of("unipc", "variant", variant, VARIANTS)
    one_of("unipc", "form", form, FORMS)
    whole_number("unipc", "order", order, 1, 3)
    p = Lowering("unipc", process, prediction, grid)
    history: list[tuple[Node, str]] = []
    corrected, used = p.x, history
    for i, (s, t) in enumerate(pairwise(p.nodes)):
        m = p.estimate(form, s)
        if corrector and i > 0 and finite(history[0][0]):
            corrected = p.combine(_corrected(form, used, s, m, corrected, variant))
        else:
            corrected = p.x
        history = [(s, m), *history][:order]
        used = usable(i, p.nodes, order, lower_order_final, history, below=math.inf)
        p.advance(p.combine(_predicted(p, form, used, t, corrected, variant)), t)
    return p.finish()


def _system(g: float, ratios: Sequence[float], variant: str) -> tuple[float, list[list[float]], list[float]]:
    """B_h, and the rows and right-hand side of R rho = b for the differences at `ratios`."""
    b_h = g if variant == "bh1" else math.expm1(g)
    p = integrals(g, len(ratios) + 1)
    rows = [[r**k for r in ratios] for k in range(len(ratios))]
    return b_h, rows, [p[k + 1] * math.factorial(k + 1) / b_h for k in range(len(ratios))]


def _predicted(p: Lowering, form: str, history: History, t: Node, x: str, variant: str) -> list[tuple[float, str]]:
    (s, m0), *before = history
    whole = step(form, s, t)
    terms = [(whole.a, x), (whole.first, p.lead(m0))]
    if before:
        h = t.lam - s.lam
        ratios = [(n.lam - s.lam) / h for n, _ in before]
        b_h, rows, right = _system(whole.g, ratios, variant)
        weights = [0.5] if len(before) == 1 else np.linalg.solve(rows, right).tolist()
        terms += _differences(-whole.b * b_h, weights, ratios, before, m0)
    return terms


def _corrected(form: str, history: History, t: Node, m: str, x: str, variant: str) -> list[tuple[float, str]]:
    """The state at t, from x at the node before it, with the estimate m that was made at the predicted state."""
    (s, m0), *before = history
    whole = step(form, s, t)
    h = t.lam - s.lam
    ratios = [*((n.lam - s.lam) / h for n, _ in before), 1.0]
    b_h, rows, right = _system(whole.g, ratios, variant)
    weights = [0.5] if not before else np.linalg.solve(rows, right).tolist()
    return [(whole.a, x), (whole.first, m0), *_differences(-whole.b * b_h, weights, ratios, [*before, (t, m)], m0)]


def _differences(scale: float, weights: Sequence[float], ratios: Sequence[float], others: History, m0: str) -> list[tuple[float, str]]:
    """scale * sum_j w_j (m_j - m0) / r_j as terms."""
    factors = [scale * w / r for w, r in zip(weights, ratios, strict=True)]
    return [(-math.fsum(factors), m0), *zip(factors, (m for _, m in others), strict=True)]
