"""Solvers: pure functions (process, prediction, grid) -> Program, on the host in float64.

To add one: write its function in a file of its own, add its line to `SOLVERS`, and a golden row to tests/golden/solvers.toml.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy.typing as npt

from edgegen.diffusion import Process, check_grid, make_grid
from edgegen.diffusion.predictions import output_coefficients
from edgegen.diffusion.processes import Flow, VarianceExploding
from edgegen.errors import ProgramError, Status, nearest
from edgegen.program import Program, verify
from edgegen.program.rewrite import allocate, fold
from edgegen.solvers.ddim import ddim
from edgegen.solvers.dpmpp import dpmpp_2m
from edgegen.solvers.euler import euler
from edgegen.solvers.model import TIMES, Denoiser, Guidance, bind, guide

__all__ = ["SOLVERS", "TIMES", "Denoiser", "Guidance", "build_program"]

SOLVERS: dict[str, Callable[..., Program]] = {
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "euler": euler,
}

_LAMBDA_SOLVERS = frozenset({"dpmpp_2m"})
"""Solvers whose natural grid is uniform in lambda, and for which diffusers spaces times the multistep way."""


def _default_grid(solver: str, process: Process) -> str:
    if isinstance(process, VarianceExploding):
        return "karras"
    if isinstance(process, Flow) or solver not in _LAMBDA_SOLVERS:
        return "uniform"
    return "lambda"


def _check_options(solver: str, options: Mapping[str, object]) -> None:
    known = [name for name, p in inspect.signature(SOLVERS[solver]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise ProgramError(f"solver {solver!r} has no option {name!r}: {nearest(name, known)}", Status.UNKNOWN_NAME)
    eta, threshold, clip = (options.get(name) for name in ("eta", "threshold", "clip"))
    if isinstance(eta, (int, float)) and not 0 <= eta <= 1:
        raise ProgramError(f"solver {solver!r}: expected 0 <= eta <= 1, found {eta}", Status.OUT_OF_RANGE)
    if isinstance(threshold, (int, float)) and not 0 < threshold <= 1:
        raise ProgramError(f"solver {solver!r}: expected a threshold quantile in (0, 1], found {threshold}", Status.OUT_OF_RANGE)
    if isinstance(clip, (int, float)) and not clip > 0:
        raise ProgramError(f"solver {solver!r}: expected clip > 0, found {clip}", Status.OUT_OF_RANGE)


def build_program(
    solver: str,
    process: Process,
    prediction: str,
    steps: int,
    *,
    grid: str | npt.ArrayLike | None = None,
    guidance: Guidance | float | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    model: Denoiser | None = None,
    **options: object,
) -> Program:
    """The program of `steps` steps of a solver: its input `x_T` is the state at t_start, its output `sample` the state at t_end.

    Args:
        solver: a key of `SOLVERS`; `options` are that function's keyword options.
        process, prediction: what the network was trained on; a prediction is one of `edgegen.diffusion.PREDICTIONS`.
        steps: number of intervals, >= 1.
        grid: a key of `edgegen.diffusion.GRIDS`, or decreasing float64[steps + 1] times; None takes lambda for DPM-Solver++ on
            a VP process, karras for EDM, else uniform.
        guidance: classifier-free guidance. A bare number w guides the input `cond` against the program input `uncond`.
        t_start, t_end: ends of a named grid; None takes the process's own.
        model: tensor names, conditions and time map; None is denoiser(x, t) -> prediction.

    Returns a verified program. Cost: host arithmetic only, a few milliseconds.
    Raises ProgramError for an unknown name (with the nearest ones), an impossible grid, or coefficients that are not finite.
    """
    if solver not in SOLVERS:
        raise ProgramError(f"no solver {solver!r}: {nearest(solver, SOLVERS)}", Status.UNKNOWN_NAME)
    _check_options(solver, options)
    output_coefficients(prediction, 0.5, 0.5)  # an unknown prediction is named before anything else is computed
    if grid is None or isinstance(grid, str):
        name = grid or _default_grid(solver, process)
        times = make_grid(name, process, steps, t_start=t_start, t_end=t_end, multistep=solver in _LAMBDA_SOLVERS)
    else:
        if t_start is not None or t_end is not None:
            raise ProgramError("a grid of times has its own ends; leave t_start and t_end out")
        times = check_grid(process, grid, steps)
    model = model or Denoiser()
    if isinstance(guidance, (int, float)):
        guidance = Guidance(float(guidance), {"cond": "uncond"})
        model = replace(model, conditions=model.conditions or ("cond",))
    program = bind(SOLVERS[solver](process, prediction, times, **options), process, model)
    if guidance is not None:
        program = guide(program, guidance)
    return verify(allocate(fold(replace(program, name=f"{solver}-{steps}"))))
