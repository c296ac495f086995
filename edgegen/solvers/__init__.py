"""Solvers: pure functions (process, prediction, grid) -> Program, on the host in float64.

To add one: write its function in a file of its own, add its line to `SOLVERS`, and a golden row to tests/golden/solvers.toml
(docs/adding_a_solver.md shows the whole diff).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy.typing as npt

from edgegen.diffusion import Process, check_grid, make_grid
from edgegen.diffusion.predictions import PREDICTIONS
from edgegen.diffusion.processes import Flow, VarianceExploding, VPBetas
from edgegen.errors import ProgramError, Status, nearest
from edgegen.program import Program, verify
from edgegen.program.rewrite import allocate, fold
from edgegen.solvers.consistency import lcm, tcd
from edgegen.solvers.ddim import ddim
from edgegen.solvers.deis import deis, ipndm, lms, pndm
from edgegen.solvers.dpm import dpm_solver, dpmpp_2m, dpmpp_2s, dpmpp_3m, dpmpp_3s
from edgegen.solvers.dualfast import dualfast
from edgegen.solvers.gl_lcm import gl_lcm
from edgegen.solvers.guidance import Guidance, guide, guided_nodes
from edgegen.solvers.lowering import Prediction
from edgegen.solvers.meanflow import meanflow
from edgegen.solvers.model import TIMES, Denoiser, bind
from edgegen.solvers.mrs import mrs
from edgegen.solvers.posterior import ddgan, ddpm, prodiff
from edgegen.solvers.runge_kutta import deis_rk, dpmpp_2s_a, euler, euler_a, heun, kdpm2, kdpm2_a
from edgegen.solvers.sde import dpmpp_sde, sa_solver
from edgegen.solvers.unipc import unipc

__all__ = ["ALIASES", "SOLVERS", "TIMES", "Denoiser", "Guidance", "Solver", "build_program", "solver_named"]


@dataclass(frozen=True, slots=True)
class Solver:
    """A line of the table: the function, its order of convergence with default options, its source, and the grid that it is made for
    ("" takes uniform; EDM processes take karras).

    order: 0 for a learned map or a posterior, which have none. deis and lms reach theirs with exact history; their first-order start
    leaves about 2. With noise it is the order of the sample's law.

    multistep: which of diffusers' two conventions the grids "leading" and "linspace" mean for it.
    """

    function: Callable[..., Program]
    order: int
    source: str
    grid: str = ""
    multistep: bool = False


SOLVERS: dict[str, Solver] = {
    "ddim": Solver(ddim, 1, "Song 2021 (2010.02502)"),
    "ddpm": Solver(ddpm, 1, "Ho 2020 (2006.11239)"),
    "euler": Solver(euler, 1, "Karras 2022 (2206.00364)"),
    "euler_a": Solver(euler_a, 1, "k-diffusion"),
    "heun": Solver(heun, 2, "Karras 2022 (2206.00364)"),
    "kdpm2": Solver(kdpm2, 2, "Lu 2022 (2206.00927)"),
    "kdpm2_a": Solver(kdpm2_a, 2, "k-diffusion"),
    "lms": Solver(lms, 4, "k-diffusion"),
    "pndm": Solver(pndm, 2, "Liu 2022 (2202.09778)"),
    "ipndm": Solver(ipndm, 2, "Zhang and Chen 2023 (2204.13902)"),
    "deis": Solver(deis, 4, "Zhang and Chen 2023 (2204.13902)", "quadratic", multistep=True),
    "deis_rk": Solver(deis_rk, 3, "Zhang and Chen 2023 (2204.13902)", "quadratic"),
    "dpm_solver": Solver(dpm_solver, 2, "Lu 2022 (2206.00927)", "lambda", multistep=True),
    "dpmpp_2s": Solver(dpmpp_2s, 2, "Lu 2022 (2211.01095)", "lambda", multistep=True),
    "dpmpp_3s": Solver(dpmpp_3s, 3, "Lu 2022 (2211.01095)", "lambda", multistep=True),
    "dpmpp_2m": Solver(dpmpp_2m, 2, "Lu 2022 (2211.01095)", "lambda", multistep=True),
    "dpmpp_3m": Solver(dpmpp_3m, 2, "Lu 2022 (2211.01095)", "lambda", multistep=True),
    "dpmpp_2s_a": Solver(dpmpp_2s_a, 2, "k-diffusion", "lambda"),
    "dpmpp_sde": Solver(dpmpp_sde, 2, "Lu 2022 (2211.01095)", "lambda", multistep=True),
    "unipc": Solver(unipc, 2, "Zhao 2023 (2302.04867)", "lambda", multistep=True),
    "sa_solver": Solver(sa_solver, 2, "Xue 2023 (2309.05019)", "lambda", multistep=True),
    "dualfast": Solver(dualfast, 0, "arXiv 2506.13058"),
    "mrs": Solver(mrs, 2, "Li 2025 (2502.07856)"),
    "meanflow": Solver(meanflow, 0, "Geng 2025 (2505.13447)"),
    "lcm": Solver(lcm, 0, "Luo 2023 (2310.04378)", "lcm"),
    "tcd": Solver(tcd, 0, "Zheng 2024 (2402.19159)", "lcm"),
    "gl_lcm": Solver(gl_lcm, 0, "diaoquesang/GL-LCM", "lcm"),
    "ddgan": Solver(ddgan, 0, "Xiao 2022 (2112.07804)"),
    "prodiff": Solver(prodiff, 0, "Huang 2022 (2207.06389)", "leading"),
}

ALIASES: dict[str, str] = {
    "euler_ancestral": "euler_a",
    "dpm_2": "kdpm2",
    "dpm_2_ancestral": "kdpm2_a",
    "dpmpp_2s_ancestral": "dpmpp_2s_a",
    "dpmpp_2m_sde": "dpmpp_sde",
    "plms": "pndm",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "EDMDPMSolverMultistepScheduler": "dpmpp_2m",
    "EDMEulerScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "EulerDiscreteScheduler": "euler",
    "FlowMapEulerDiscreteScheduler": "meanflow",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "HeunDiscreteScheduler": "heun",
    "KDPM2AncestralDiscreteScheduler": "kdpm2_a",
    "KDPM2DiscreteScheduler": "kdpm2",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "pndm",
    "SASolverScheduler": "sa_solver",
    "TCDScheduler": "tcd",
    "UniPCMultistepScheduler": "unipc",
}
"""Other names of solvers. A diffusers class stands for its solver with our defaults; a scheduler_config.json gives its options too."""


def solver_named(name: str) -> str:
    """The key of `SOLVERS` that a name or alias means. Raises ProgramError with the nearest names."""
    found = ALIASES.get(name, name)
    if found not in SOLVERS:
        known = SOLVERS if name.islower() else ALIASES
        raise ProgramError(f"no solver {name!r}: {nearest(name, known)}", Status.UNKNOWN_NAME)
    return found


def _default_grid(solver: str, process: Process, options: Mapping[str, object]) -> tuple[str, dict[str, float]]:
    if options.get("method") == "fast":
        order = options.get("order", 3 if solver == "dpmpp_3s" else 2)
        return ("lambda_fast", {"order": order}) if order in (2, 3) else ("lambda", {})
    if isinstance(process, VarianceExploding):
        return "karras", {}
    wanted = SOLVERS[solver].grid or "uniform"
    starts_at_pure_noise = float(process.alpha(process.t_first)) == 0.0
    needs_table = wanted in ("lcm", "leading") and not isinstance(process, VPBetas)
    return ("uniform" if isinstance(process, Flow) or needs_table or (wanted == "lambda" and starts_at_pure_noise) else wanted), {}


def _check_options(solver: str, options: Mapping[str, object]) -> None:
    parameters = {name: p for name, p in inspect.signature(SOLVERS[solver].function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name, value in options.items():
        if name not in parameters:
            raise ProgramError(f"solver {solver!r} has no option {name!r}: {nearest(name, parameters)}", Status.UNKNOWN_NAME)
        default = parameters[name].default
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ProgramError(f"solver {solver!r}: option {name} is true or false, found {value!r}", Status.OUT_OF_RANGE)
        if isinstance(default, (int, float)) and isinstance(value, (int, float)) and not math.isfinite(value):
            raise ProgramError(f"solver {solver!r}: option {name} is {value}, expected a finite number", Status.NONFINITE)
    eta = options.get("eta")
    if isinstance(eta, (int, float)) and not 0 <= eta <= 1:
        raise ProgramError(f"solver {solver!r}: expected 0 <= eta <= 1, found {eta}", Status.OUT_OF_RANGE)


def _prediction(kind: str, sigma_data: float, clip: float | None, threshold: float | None) -> Prediction:
    if kind not in PREDICTIONS:
        raise ProgramError(f"no prediction {kind!r}: {nearest(kind, PREDICTIONS)}", Status.UNKNOWN_NAME)
    if not 0 < sigma_data < math.inf:
        raise ProgramError(f"expected sigma_data > 0, found {sigma_data}", Status.OUT_OF_RANGE)
    if threshold is not None and not 0 < threshold <= 1:
        raise ProgramError(f"expected a threshold quantile in (0, 1], found {threshold}", Status.OUT_OF_RANGE)
    if clip is not None and not clip > 0:
        raise ProgramError(f"expected clip > 0, found {clip}", Status.OUT_OF_RANGE)
    return Prediction(kind, sigma_data, clip, threshold)


def build_program(
    solver: str,
    process: Process,
    prediction: str,
    steps: int,
    *,
    grid: str | npt.ArrayLike | None = None,
    grid_options: Mapping[str, float] | None = None,
    guidance: Guidance | float | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    model: Denoiser | None = None,
    sigma_data: float = 0.5,
    clip: float | None = None,
    threshold: float | None = None,
    **options: object,
) -> Program:
    """The program of `steps` steps of a solver: its input `x_T` is the state at t_start, its output `sample` the state at t_end.

    Args:
        solver: a key of `SOLVERS` or `ALIASES`; `options` are that function's keyword options.
        process, prediction: what the network was trained on; a prediction is one of `edgegen.diffusion.PREDICTIONS`.
        steps: number of intervals, >= 1.
        grid: a key of `edgegen.diffusion.GRIDS` (with its `grid_options`), or decreasing float64[steps + 1] times; None takes the
            solver's own (`Solver.grid`), karras for EDM.
        guidance: classifier-free guidance. A bare number w guides the input `cond` against the program input `uncond`.
        t_start, t_end: ends of a named grid; None takes the process's own.
        model: tensor names, conditions and time map; None is denoiser(x, t) -> prediction.
        sigma_data: of the predictions edm and edm_v.
        clip, threshold: clamp every estimate of x0 to [-clip, clip]; or threshold it dynamically at this quantile, with clip (1 if
            None) as the ceiling (Saharia et al. 2022).

    Returns a verified program. Cost: host arithmetic only, a few milliseconds.
    Raises ProgramError for an unknown name (with the nearest ones), an impossible grid, or coefficients that are not finite.
    """
    solver = solver_named(solver)
    _check_options(solver, options)
    predicted = _prediction(prediction, sigma_data, clip, threshold)
    if grid is None or isinstance(grid, str):
        name, own = (grid, {}) if grid is not None else _default_grid(solver, process, options)
        multistep = SOLVERS[solver].multistep
        times = make_grid(name, process, steps, t_start=t_start, t_end=t_end, multistep=multistep, **{**own, **(grid_options or {})})
    else:
        if t_start is not None or t_end is not None or grid_options:
            raise ProgramError("a grid of times has its own ends; leave t_start, t_end and grid_options out")
        times = check_grid(process, grid, steps)
    model = model or Denoiser()
    if isinstance(guidance, (int, float)):
        guidance = Guidance(float(guidance), {"cond": "uncond"})
        model = replace(model, conditions=model.conditions or ("cond",))
    program = SOLVERS[solver].function(process, predicted, times, **options)
    where = guided_nodes(program, guidance) if guidance is not None else []
    program = bind(program, process, model)
    if guidance is not None:
        program = guide(program, guidance, where)
    return verify(allocate(fold(replace(program, name=f"{solver}-{steps}"))))
