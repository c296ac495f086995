"""DPM-Solver (noise form) and DPM-Solver++ (data form), deterministic, one step or several steps at a time.

Sources: Lu et al. 2022 (2206.00927) and 2022 (2211.01095). The two differ in the form only, so each algorithm is written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from edgegen.diffusion import Process
from edgegen.diffusion.grids import fast_orders
from edgegen.errors import ProgramError, Status
from edgegen.program import Program
from edgegen.solvers.exponential import finite, integrals, step, usable
from edgegen.solvers.lowering import DATA, NOISE, Grid, Lowering, Node, Prediction
from edgegen.solvers.options import one_of, whole_number

__all__ = ["difference_terms", "dpm_solver", "dpmpp_2m", "dpmpp_2s", "dpmpp_3m", "dpmpp_3s"]

METHODS = ("singlestep", "multistep", "fast")
VARIANTS = ("midpoint", "heun", "midpoint_everywhere")
CURVATURES = ("compat", "exact")


def dpm_solver(
    process: Process, prediction: Prediction, grid: Grid, *, order: int = 2, method: str = "multistep", variant: str = "midpoint",
    lower_order_final: bool = True, d2: str = "compat",
) -> Program:  # fmt: skip
    """DPM-Solver of order 1 to 3 in the noise form; it cannot end at sigma = 0.

    method: "multistep" (one evaluation per step), "singlestep" (`order` evaluations inside each step), "fast" (groups of at most
    `order` grid intervals, so that the evaluations equal the steps). variant: "midpoint" ("dpmsolver" in the authors' code) or
    "heun" ("taylor"); "midpoint_everywhere" uses the midpoint weights inside third-order groups too, as diffusers does.
    d2: see `dpmpp_3m`.
    """
    return _solve("dpm_solver", NOISE, process, prediction, grid, order, method, variant, lower_order_final, d2)


def dpmpp_2s(process: Process, prediction: Prediction, grid: Grid, *, method: str = "singlestep", variant: str = "midpoint") -> Program:
    """DPM-Solver++ 2S: two evaluations inside each step, the inner one half-way in lambda. method, variant: as in `dpm_solver`."""
    one_of("dpmpp_2s", "method", method, METHODS[::2])
    return _solve("dpmpp_2s", DATA, process, prediction, grid, 2, method, variant, False, "compat")


def dpmpp_3s(process: Process, prediction: Prediction, grid: Grid, *, method: str = "singlestep", variant: str = "midpoint") -> Program:
    """DPM-Solver++ 3S: three evaluations inside each step, at 0, 1/3 and 2/3 of it in lambda. method, variant: as in `dpm_solver`."""
    one_of("dpmpp_3s", "method", method, METHODS[::2])
    return _solve("dpmpp_3s", DATA, process, prediction, grid, 3, method, variant, False, "compat")


def dpmpp_2m(
    process: Process, prediction: Prediction, grid: Grid, *, variant: str = "midpoint", lower_order_final: bool = True
) -> Program:  # fmt: skip
    """DPM-Solver++ 2M: second-order multistep,  x' = A x - B (p1 m0 + w D1),  D1 = (m0 - m1) / r0,  r0 = h_before / h,
    with w = p1 / 2 (midpoint) or p2 (heun).

    Steps that end at sigma = 0 or start at alpha = 0, the first step, and the step after a start at alpha = 0 are of first
    order: h is infinite there. lower_order_final: also the last step, below 15 steps.
    """
    one_of("dpmpp_2m", "variant", variant, VARIANTS[:2])
    return _solve("dpmpp_2m", DATA, process, prediction, grid, 2, "multistep", variant, lower_order_final, "compat")


def dpmpp_3m(
    process: Process, prediction: Prediction, grid: Grid, *, d2: str = "compat", variant: str = "heun", lower_order_final: bool = True
) -> Program:  # fmt: skip
    """DPM-Solver++ 3M: third-order multistep with D1 and D2 from three estimates. variant: of its second-order steps, as in `dpmpp_2m`.

    d2: "exact" weights the second difference as the derivation says, and is of third order; "compat" halves it, as the authors' code,
    diffusers and k-diffusion do, and is of second order (with few steps it can be the better of the two).
    """
    return _solve("dpmpp_3m", DATA, process, prediction, grid, 3, "multistep", variant, lower_order_final, d2)


def _solve(
    name: str, form: str, process: Process, prediction: Prediction, grid: Grid, order: int, method: str, variant: str,
    lower_order_final: bool, d2: str,
) -> Program:  # fmt: skip
    whole_number(name, "order", order, 1, 3)
    one_of(name, "method", method, METHODS)
    one_of(name, "variant", variant, VARIANTS)
    one_of(name, "d2", d2, CURVATURES)
    p = Lowering(name, process, prediction, grid)
    if method == "multistep":
        _multistep(p, form, order, variant, lower_order_final, d2)
    elif method == "singlestep":
        for s, t in pairwise(p.nodes):
            inner = [p.at_lambda(s.lam + (t.lam - s.lam) * k / order) for k in range(1, order)] if finite(s, t) else []
            _singlestep(p, form, [s, *inner, t], variant)
    else:
        at = 0
        for size in fast_orders(p.steps, order, clean_end=p.nodes[-1].sigma == 0.0):
            group = p.nodes[at : at + size + 1]
            if size > 1 and not finite(*group):
                raise ProgramError(f"{name}: method 'fast' cannot start at alpha = 0; start the grid just below it", Status.OUT_OF_RANGE)
            _singlestep(p, form, group, variant)
            at += size
    return p.finish()


def _singlestep(p: Lowering, form: str, nodes: Sequence[Node], variant: str) -> None:
    """One step over a group of nodes s, (s1, (s2,)) t: of order len(nodes) - 1, each inner state made from the state at s."""
    s, t, x = nodes[0], nodes[-1], p.x
    m0 = p.estimate(form, s)
    lead = p.lead(m0)
    estimates = [m0]
    r = [(n.lam - s.lam) / (t.lam - s.lam) for n in nodes[1:-1]]
    for k, n in enumerate(nodes[1:], 1):
        whole = step(form, s, n)
        terms = [(whole.a, x), (whole.first, lead)]
        if k == 2:
            p1, p2 = integrals(whole.g, 2)
            w = 0.5 * p1 if variant == "midpoint_everywhere" or (variant == "midpoint" and n is t) else p2
            ratio = r[0] if n is t else r[0] / r[1]
            terms += [(-whole.b * w / ratio, estimates[1]), (whole.b * w / ratio, m0)]
        elif k == 3:
            _, p2, p3 = integrals(whole.g, 3)
            d1, d2 = ((1.0 / r[0], estimates[1]), (-1.0 / r[0], m0)), ((1.0 / r[1], estimates[2]), (-1.0 / r[1], m0))
            if variant == "heun":
                gap = r[1] - r[0]
                w1, w2 = p2 * r[1] / gap - 2.0 * p3 / gap, -p2 * r[0] / gap + 2.0 * p3 / gap
            else:
                w1, w2 = 0.0, p2
            terms += [(-whole.b * w1 * c, m) for c, m in d1] + [(-whole.b * w2 * c, m) for c, m in d2]
        u = p.combine(terms)
        if n is t:
            p.advance(u, t)
        else:
            estimates.append(p.estimate(form, n, u))


def _multistep(p: Lowering, form: str, order: int, variant: str, lower_order_final: bool, d2: str) -> None:
    """One evaluation per step; the differences of the last estimates stand for the derivatives in lambda."""
    history: list[tuple[Node, str]] = []
    for i, (s, t) in enumerate(pairwise(p.nodes)):
        history = [(s, p.estimate(form, s)), *history][:3]
        used = usable(i, p.nodes, order, lower_order_final, history)
        whole = step(form, s, t)
        terms = [(whole.a, p.x), (whole.first, p.lead(history[0][1]))]
        if len(used) > 1:
            p1, p2, p3 = integrals(whole.g, 3)
            w1 = 0.5 * p1 if len(used) == 2 and variant.startswith("midpoint") else p2
            w2 = p3 if d2 == "compat" else 2.0 * p3
            terms += difference_terms(used, t, [0.0, -whole.b * w1, -whole.b * w2])
        p.advance(p.combine(terms), t)


def difference_terms(history: Sequence[tuple[Node, str]], t: Node, weights: Sequence[float]) -> list[tuple[float, str]]:
    """weights[1] D1 + weights[2] D2 for as many estimates as `history` has (newest first), from divided differences d_j in lambda:
    two give D1 = d0; three D1 = d0 + r0 / (r0 + r1) (d0 - d1), D2 = (d0 - d1) / (r0 + r1).
    """
    if len(history) == 1:
        return []
    (n0, m0), (n1, m1) = history[:2]
    h = t.lam - n0.lam
    r0 = (n0.lam - n1.lam) / h
    if len(history) == 2:
        return [(weights[1] / r0, m0), (-weights[1] / r0, m1)]
    n2, m2 = history[2]
    r1 = (n1.lam - n2.lam) / h
    both = (weights[1] * r0 + weights[2]) / (r0 + r1)
    c0, c1 = (weights[1] + both) / r0, -both / r1
    return [(c0, m0), (c1 - c0, m1), (-c1, m2)]
