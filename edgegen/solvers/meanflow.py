"""MeanFlow: networks that return the average velocity over a step. Source: Geng et al. 2025 (2505.13447), equation 12 and algorithm 2."""

from __future__ import annotations

from itertools import pairwise

from edgegen.diffusion import Process
from edgegen.diffusion.processes import Flow
from edgegen.errors import ProgramError, Status
from edgegen.program import Imm, Program
from edgegen.solvers.lowering import Grid, Lowering, Prediction
from edgegen.solvers.options import one_of

__all__ = ["meanflow"]

CONDITIONINGS = ("t_r", "t_h")


def meanflow(process: Process, prediction: Prediction, grid: Grid, *, conditioning: str = "t_r") -> Program:
    """x_r = x_t - (t - r) u(x_t, r, t), exact for an exact network at any number of steps, one included.

    conditioning: what the network's second time input (role `r`) receives: "t_r" the end of the step (MeanAudio; diffusers'
    FlowMapEuler), or "t_h" its length t - r (the authors' code). Guidance belongs inside such a network, at training time.
    """
    one_of("meanflow", "conditioning", conditioning, CONDITIONINGS)
    if not isinstance(process, Flow) or prediction.kind != "average_velocity":
        raise ProgramError(
            f"meanflow needs the process 'flow' and the prediction 'average_velocity', found {type(process).__name__} and {prediction.kind!r}",
            Status.OUT_OF_RANGE,
        )
    p = Lowering("meanflow", process, prediction, grid)
    for s, t in pairwise(p.nodes):
        u = p.network(s, r=Imm(t.time if conditioning == "t_r" else s.time - t.time))
        p.advance(p.combine([(1.0, p.x), (t.time - s.time, u)]), t)
    return p.finish()
