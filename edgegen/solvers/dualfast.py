"""DualFast: a wrapper that extrapolates the network's error away with an earlier noise estimate. Source: arXiv 2506.13058.

The noise estimate of step i is replaced by (1 + c_i) eps_i - c_i eps_tau with tau an earlier step, whose estimate is kept: no
further evaluations. The paper's schedule of c is not public; c, tau and the place are parameters here. With an exact network the
scheme is inconsistent (its error does not vanish with the steps): judge it on the network it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from edgegen.diffusion import Process
from edgegen.errors import ProgramError, Status
from edgegen.program import Program
from edgegen.solvers.ddim import ddim
from edgegen.solvers.dpm import dpm_solver, dpmpp_2m, dpmpp_2s, dpmpp_3m, dpmpp_3s
from edgegen.solvers.lowering import Grid, Mix, Prediction
from edgegen.solvers.options import one_of

__all__ = ["dualfast"]

BASES: dict[str, Callable[..., Program]] = {
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_3s": dpmpp_3s,
}
PLACES = ("m0_only", "everywhere")


def dualfast(
    process: Process, prediction: Prediction, grid: Grid, *, base: str = "ddim", c: float | Sequence[float] = 0.5, tau: int | Sequence[int] = 0,
    where: str = "m0_only", base_options: Mapping[str, object] | None = None,
) -> Program:  # fmt: skip
    """`base` (DDIM, DPM-Solver or DPM-Solver++) with the mixed noise estimate.

    c: one number is reached linearly from 0 at the first step; a list gives each step's. tau: the step whose estimate is kept (0: the
    first); negative counts back from the current step (-1: the one before); a list gives each step's. where: "m0_only" mixes in the
    first-order term, "everywhere" also in difference terms and inner stages.
    """
    one_of("dualfast", "base", base, BASES)
    one_of("dualfast", "place", where, PLACES)
    steps = len(grid) - 1
    schedule = tuple(float(v) for v in c) if isinstance(c, Sequence) else tuple(float(c) * i / max(steps - 1, 1) for i in range(steps))
    chosen = tuple(tau) if isinstance(tau, Sequence) else (tau,) * steps
    if len(schedule) != steps or len(chosen) != steps:
        raise ProgramError(f"dualfast: expected {steps} values of c and tau, found {len(schedule)} and {len(chosen)}", Status.BAD_SHAPE)
    chosen = tuple(max(i + k, 0) if k < 0 else min(k, i) for i, k in enumerate(chosen))
    mixed = replace(prediction, mix=Mix(schedule, chosen, where == "everywhere"))
    return replace(BASES[base](process, mixed, grid, **(base_options or {})), name="dualfast")
