"""Step by step against diffusers' own schedulers: every network call (its state and its time) and the sample.

A scheduler is made from a config, the config goes through diffusers' JSON into `read_scheduler`, and both sides run the same smooth
nonlinear network on the same noise. diffusers computes in float32 by itself. Here its modules see a numpy and a torch whose float32 is
float64 (`in_float64`), with nothing else of them changed, so that the comparisons hold to 1e-9; one test per class runs diffusers as
released, at what float32 leaves.

Our states are alpha x0 + sigma eps. Seven schedulers keep x / alpha (`RHO`), and their networks see that times alpha, which is our state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import itertools
import json
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
schedulers = pytest.importorskip("diffusers.schedulers", reason="diffusers is not installed")

from edgegen.diffusion import make_process
from edgegen.errors import EdgegenError, ProgramError, RecipeError
from edgegen.program import Lincomb, Noise, Program, interpret, normals
from edgegen.solvers import Denoiser, build_program
from edgegen.solvers.diffusers_config import CLASSES, read_scheduler

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers deprecates its noise-form algorithms
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # torch's, where diffusers makes numpy arrays of tensors
]

SHAPE = (2, 3, 4)
SEED = 7
X = np.random.default_rng(0).standard_normal(SHAPE)
EXACT = {"rtol": 1e-9, "atol": 1e-9}
RHO = {
    "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
}  # fmt: skip
"""Schedulers whose state is x / alpha."""

ELSEWHERE = {"DPMSolverSDEScheduler": "scheduling_dpmsolver_sde", "FlowMapEulerDiscreteScheduler": "scheduling_flow_map_euler_discrete"}
"""Classes that diffusers.schedulers does not export (the first one: unless torchsde is installed)."""


def smooth(x, t):
    return np.tanh(0.7 * x + 0.3 * np.cos(t / 300)) + 0.15 * x


def diffusers_class(name: str) -> type:
    """The scheduler class. DPMSolverSDEScheduler's module imports torchsde for its noise alone, which we replace: an empty one will do."""
    if name not in ELSEWHERE:
        return getattr(schedulers, name)
    with pytest.MonkeyPatch.context() as patch:
        if name == "DPMSolverSDEScheduler":
            patch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
        return getattr(importlib.import_module(f"diffusers.schedulers.{ELSEWHERE[name]}"), name)


class Wide:
    """A module whose float32 is float64."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module
        self.float32 = module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@contextlib.contextmanager
def in_float64(cls: type, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the scheduler's module compute in float64 where it would in float32."""
    module = sys.modules[cls.__module__]
    for name in ("np", "torch"):
        if hasattr(module, name):
            patch.setattr(module, name, Wide(getattr(module, name)))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class BrownianIncrements:
    """Stands for DPMSolverSDE's noise sampler. A step asks first for the increment from s to its middle m, then for the one from s to t;
    both, over the square root of their length, come from one Brownian motion, made of a draw for [s, m] and a draw for [m, t].
    """

    def __init__(self, pairs: Sequence[Sequence[Any]]) -> None:
        self.pairs = iter(pairs)
        self.first: tuple[Any, Any, Any] | None = None

    def __call__(self, start, end):
        if self.first is None:
            early, late = next(self.pairs)
            self.first = end, early, late
            return early
        (middle, early, late), self.first = self.first, None
        return ((start - middle).sqrt() * early + (middle - end).sqrt() * late) / (start - end).sqrt()


@dataclasses.dataclass
class Trace:
    """What a run shows: the state and the time of every network call, and the sample."""

    calls: list[tuple[np.ndarray, float]]
    sample: np.ndarray


@dataclasses.dataclass(frozen=True)
class Case:
    """A scheduler's config and a number of steps."""

    name: str
    config: Mapping[str, Any]
    steps: int

    def __str__(self) -> str:
        def short(value: Any) -> str:
            return f"{len(value)}" if isinstance(value, list) else str(value)

        return "-".join([self.name, *(f"{k}={short(v)}" for k, v in self.config.items()), str(self.steps)])

    @property
    def start(self) -> np.ndarray:
        """Where our program starts: of the size of the noise there."""
        return X * 80.0 if self.name.startswith("EDM") else X


def draws_of_steps(program: Program) -> list[list[np.ndarray]]:
    """Our draws, by step."""
    steps, start = [], 0
    for step in program.steps:
        noises = [i for i in program.instructions[start : step.after] if isinstance(i, Noise)]
        steps.append([normals(SEED, i.draw, SHAPE).astype(np.float64) for i in noises])
        start = step.after
    return steps


UNUSED = np.ones(SHAPE)
"""What diffusers gets where it draws and we do not: it multiplies it by 0 (by 1e-10 in DDPMScheduler's last step)."""


def reference(case: Case, scheduler: Any, draws: list[list[np.ndarray]], patch: pytest.MonkeyPatch, dtype: Any, **step_options: Any) -> Trace:
    """diffusers' loop, as its pipelines write it, after set_timesteps."""
    module = sys.modules[type(scheduler).__module__]
    if case.name == "DPMSolverSDEScheduler":
        scheduler.noise_sampler = BrownianIncrements([[torch.from_numpy(d).to(dtype) for d in pair] for pair in draws])
    else:
        assert all(len(d) <= 1 for d in draws)
        one_a_step = iter(draws)

        def drawn(*args: Any, **kwargs: Any) -> Any:
            return torch.from_numpy((next(one_a_step) or [UNUSED])[0]).to(dtype)

        patch.setattr(module, "randn_tensor", drawn, raising=False)
    x = torch.from_numpy(case.start).to(dtype)
    if case.name in RHO:
        x = x * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    calls: list[tuple[np.ndarray, float]] = []
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        calls.append((seen.double().numpy().copy(), float(t)))
        x = scheduler.step(torch.from_numpy(smooth(*calls[-1])).to(dtype), t, x, **step_options).prev_sample
    assert case.name == "DPMSolverSDEScheduler" or not any(one_a_step), "a draw of ours that diffusers did not ask for"
    if case.name in RHO:
        x = x / (scheduler.sigmas[-1] ** 2 + 1) ** 0.5
    return Trace(calls, x.double().numpy())


def ours(case: Case, program: Program) -> Trace:
    calls = []

    def network(x, t, r=None):
        calls.append((x.copy(), float(t)))
        return smooth(x, float(t))

    return Trace(calls, interpret(program, {"denoiser": network}, {"x_T": case.start}, dtype=np.float64, seed=SEED)["sample"])


def theirs(
    case: Case, program: Program | None = None, *, released: bool = False, set_timesteps: Mapping[str, Any] | None = None, **step_options: Any
) -> tuple[Program, Trace]:
    """Our program of a case (or the one given), and diffusers' run of it. released: in its own precision. step_options: of its `step`."""
    cls = diffusers_class(case.name)
    with pytest.MonkeyPatch.context() as patch, contextlib.nullcontext() if released else in_float64(cls, patch):
        scheduler = cls(**case.config)
        if program is None:
            program = read_scheduler(json.loads(scheduler.to_json_string())).program(case.steps)
        scheduler.set_timesteps(**(set_timesteps or {"num_inference_steps": case.steps}))
        dtype = torch.float32 if released else torch.float64
        return program, reference(case, scheduler, draws_of_steps(program), patch, dtype, **step_options)


def check(found: Trace, wanted: Trace, *, rtol: float, atol: float, times: float = 1e-7) -> None:
    """Both runs called the network equally often, at the same times and states, and ended with the same sample."""
    np.testing.assert_allclose([t for _, t in found.calls], [t for _, t in wanted.calls], rtol=0, atol=times, err_msg="times")
    for i, ((x, _), (y, _)) in enumerate(zip(found.calls, wanted.calls, strict=True)):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=f"state of network call {i}")
    np.testing.assert_allclose(found.sample, wanted.sample, rtol=rtol, atol=atol, err_msg="sample")


def compare(case: Case, program: Program | None = None, **options: Any) -> None:
    program, wanted = theirs(case, program, **options)
    check(ours(case, program), wanted, **EXACT)


def product(name: str, steps: Sequence[int], *alternatives: Sequence[Mapping[str, Any]], every: bool = False) -> list[Case]:
    """Each combination of alternatives with one of the numbers of steps, dealt in turn, or with every one of them."""
    configs = [{k: v for part in parts for k, v in part.items()} for parts in itertools.product(*alternatives)]
    if every:
        return [Case(name, config, n) for config in configs for n in steps]
    return [Case(name, config, steps[i % len(steps)]) for i, config in enumerate(configs)]


def option(name: str, *values: Any) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


LEADING, LEADING_1, LINSPACE, TRAILING = (
    {"timestep_spacing": "leading"}, {"timestep_spacing": "leading", "steps_offset": 1}, {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing"},
)  # fmt: skip
SPACINGS = [LEADING, LEADING_1, LINSPACE, TRAILING]
DEFAULT: dict[str, Any] = {}
PREDICTIONS = option("prediction_type", "epsilon", "sample", "v_prediction")
TWO_PREDICTIONS = option("prediction_type", "epsilon", "v_prediction")
TABLES = [
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.linspace(1e-3, 0.1, 100).tolist(), "num_train_timesteps": 100},
    {"num_train_timesteps": 500},
]
LEVELS = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}]
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
CLIP = {"clip_sample": True, "clip_sample_range": 0.8}
NO_CLIP = {"clip_sample": False}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
ZERO_SNR = {"rescale_betas_zero_snr": True}
HEUN = {"solver_type": "heun"}
FLOW = [{"use_flow_sigmas": True, "prediction_type": kind} for kind in ("flow_prediction", "sample", "epsilon")]


def _k_diffusion(name: str, predictions: list[dict[str, Any]], *, levels: bool = True) -> list[Case]:
    """The schedulers that work in rho. The cosine table at "trailing" is left out: its first rho is 2e4, and x / alpha loses 1e-8."""
    cases = product(name, (1, 4, 10), SPACINGS, predictions)
    cases += product(name, (3, 5), TABLES, [LEADING]) + product(name, (2,), TABLES[:2], [TRAILING])
    return cases + product(name, (1, 2, 5, 20), LEVELS, [LINSPACE, TRAILING, LEADING_1]) if levels else cases


CASES: list[Case] = [
    # DDIM
    *product("DDIMScheduler", (1, 4, 10, 50), [LEADING, TRAILING], PREDICTIONS, [NO_CLIP], every=True),
    *product("DDIMScheduler", (4, 10), [LEADING, TRAILING], PREDICTIONS, [CLIP], every=True),
    *product("DDIMScheduler", (4, 10), [LEADING], [DEFAULT], every=True),
    *product("DDIMScheduler", (3, 7, 8, 30), [LEADING, LEADING_1], [NO_CLIP], every=True),
    *product("DDIMScheduler", (2, 5), [LEADING_1, TRAILING], TABLES, [THRESHOLD, {"set_alpha_to_one": False, **NO_CLIP}]),
    *product("DDIMScheduler", (1, 4), [TRAILING], PREDICTIONS[1:], [ZERO_SNR], every=True),
    # DDPM
    *product("DDPMScheduler", (1, 3, 4, 10), SPACINGS, PREDICTIONS, [NO_CLIP, CLIP]),
    *product("DDPMScheduler", (3, 10, 7), [LEADING, LINSPACE], TWO_PREDICTIONS, [{"variance_type": "fixed_large"}]),
    *product("DDPMScheduler", (2, 6), [TRAILING, LINSPACE], TABLES, [THRESHOLD]),
    *product("DDPMScheduler", (1, 5), [TRAILING], PREDICTIONS[1:], [ZERO_SNR, {**ZERO_SNR, **NO_CLIP}]),
    # PNDM
    *product("PNDMScheduler", (1, 2, 4, 10, 50), [{"skip_prk_steps": True}], [LEADING_1, {"set_alpha_to_one": True}], every=True),
    *product("PNDMScheduler", (4, 10, 50), [LEADING_1, {"set_alpha_to_one": True}], every=True),
    *product("PNDMScheduler", (3, 7), [{"skip_prk_steps": True, "set_alpha_to_one": True}], TABLES),
    # LCM and TCD; TCDScheduler declares clip_sample and thresholding, and does neither
    *product("LCMScheduler", (1, 2, 4, 8), PREDICTIONS, [DEFAULT, CLIP, THRESHOLD, {**CLIP, **THRESHOLD}]),
    *product("LCMScheduler", (1, 4), [{"timestep_scaling": 2.0}, {"original_inference_steps": 20, "set_alpha_to_one": False}], every=True),
    *product("LCMScheduler", (3,), TABLES, [{"original_inference_steps": 25}]),
    *product("LCMScheduler", (1, 4), PREDICTIONS[1:], [ZERO_SNR], every=True),
    *product("TCDScheduler", (1, 2, 4, 8), PREDICTIONS, [DEFAULT, CLIP, THRESHOLD]),
    *product("TCDScheduler", (1, 4), [{"original_inference_steps": 20, "set_alpha_to_one": False, "steps_offset": 1}], every=True),
    *product("TCDScheduler", (3,), TABLES, [{"original_inference_steps": 25}]),
    *product("TCDScheduler", (1, 4), PREDICTIONS[1:], [ZERO_SNR], every=True),
    # those that work in rho
    *_k_diffusion("EulerDiscreteScheduler", option("prediction_type", "epsilon", "sample", "original_sample", "v_prediction")),
    *product("EulerDiscreteScheduler", (1, 4), [SIGMA_MIN], [LEADING_1, TRAILING], [DEFAULT, *LEVELS]),
    *product("EulerDiscreteScheduler", (1, 4), [ZERO_SNR], [LINSPACE, TRAILING], PREDICTIONS),
    *_k_diffusion("EulerAncestralDiscreteScheduler", TWO_PREDICTIONS, levels=False),
    *product("EulerAncestralDiscreteScheduler", (1, 2, 10), [ZERO_SNR], [LINSPACE, TRAILING], TWO_PREDICTIONS),
    *product("EulerAncestralDiscreteScheduler", (20,), [DEFAULT]),
    *_k_diffusion("HeunDiscreteScheduler", PREDICTIONS),
    *product("HeunDiscreteScheduler", (2, 5), [CLIP], PREDICTIONS, [LINSPACE, TRAILING]),
    *_k_diffusion("LMSDiscreteScheduler", PREDICTIONS),
    *product("LMSDiscreteScheduler", (2, 20), [DEFAULT], every=True),
    *_k_diffusion("KDPM2DiscreteScheduler", TWO_PREDICTIONS),
    *_k_diffusion("KDPM2AncestralDiscreteScheduler", TWO_PREDICTIONS),
    *_k_diffusion("DPMSolverSDEScheduler", TWO_PREDICTIONS),
    # the DPM-Solver family
    *product("DPMSolverMultistepScheduler", (2, 5, 10, 20), [DEFAULT, HEUN], [LEADING, LINSPACE, TRAILING], [DEFAULT], every=True),
    *product("DPMSolverMultistepScheduler", (2, 5, 10, 20), [DEFAULT, HEUN], [LEADING, LINSPACE, TRAILING], [SIGMA_MIN], every=True),
    *product("DPMSolverMultistepScheduler", (1, 4, 10, 20), option("solver_order", 1, 3), [DEFAULT, HEUN], [DEFAULT, SIGMA_MIN], every=True),
    *product(
        "DPMSolverMultistepScheduler", (1, 4, 10, 20), option("solver_order", 1, 2, 3), [DEFAULT, HEUN], [DEFAULT, SIGMA_MIN],
        [{"algorithm_type": "sde-dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++", "lower_order_final": False}],
    ),
    *product("DPMSolverMultistepScheduler", (1, 4, 20), option("solver_order", 1, 2, 3), [DEFAULT, HEUN], [{"algorithm_type": "dpmsolver", **SIGMA_MIN}]),
    *product("DPMSolverMultistepScheduler", (1, 4, 20), option("solver_order", 1, 2), [DEFAULT, HEUN], [{"algorithm_type": "sde-dpmsolver", **SIGMA_MIN}]),
    *product("DPMSolverMultistepScheduler", (4, 10), option("solver_order", 2, 3), [DEFAULT, SIGMA_MIN], [{"lower_order_final": False}]),
    *product("DPMSolverMultistepScheduler", (5, 10), [LINSPACE], PREDICTIONS, [THRESHOLD], every=True),
    *product("DPMSolverMultistepScheduler", (5,), PREDICTIONS, [{**THRESHOLD, **SIGMA_MIN, "algorithm_type": "dpmsolver"}]),
    *product("DPMSolverMultistepScheduler", (1, 3, 5, 10), LEVELS, PREDICTIONS, option("solver_order", 2, 3)),
    *product("DPMSolverMultistepScheduler", (3, 5), LEVELS, TABLES),
    *product("DPMSolverMultistepScheduler", (3, 5), TABLES, [DEFAULT, ZERO_SNR, {**ZERO_SNR, **TRAILING}]),
    *product("DPMSolverMultistepScheduler", (1, 4), option("lambda_min_clipped", -5.1, -3.0), [LEADING, LINSPACE, TRAILING], TABLES[1:3]),
    *product("DPMSolverMultistepScheduler", (1, 2, 4, 10), FLOW, option("flow_shift", 1.0, 3.0), option("solver_order", 2, 3)),
    *product("DPMSolverSinglestepScheduler", (1, 2, 3, 4, 7, 10), option("solver_order", 2, 3), [DEFAULT, HEUN], every=True),
    *product("DPMSolverSinglestepScheduler", (2, 6, 10), [{"solver_order": 2, **SIGMA_MIN}], [DEFAULT, {"algorithm_type": "dpmsolver"}], [DEFAULT, HEUN]),
    *product("DPMSolverSinglestepScheduler", (4, 5, 10), [{"solver_order": 3, **SIGMA_MIN}], [DEFAULT, {"algorithm_type": "dpmsolver"}], [DEFAULT, HEUN]),
    *product("DPMSolverSinglestepScheduler", (3, 7), [{"solver_order": 2, "lower_order_final": True, **SIGMA_MIN}], [DEFAULT, HEUN]),
    *product("DPMSolverSinglestepScheduler", (4, 7), [DEFAULT, *LEVELS], PREDICTIONS, [THRESHOLD, DEFAULT]),
    *product("DPMSolverSinglestepScheduler", (4,), TABLES, option("lambda_min_clipped", -np.inf, -5.1)),
    *product("DPMSolverSinglestepScheduler", (1, 4), FLOW, option("solver_order", 2, 3)),
    *product("DEISMultistepScheduler", (1, 2, 4, 10, 20), option("solver_order", 1, 2, 3), [LEADING_1, LINSPACE, TRAILING], PREDICTIONS),
    *product("DEISMultistepScheduler", (4, 10), option("solver_order", 2, 3), [{"lower_order_final": False}, THRESHOLD], every=True),
    *product("DEISMultistepScheduler", (5,), TABLES),
    *product(
        "UniPCMultistepScheduler", (1, 2, 4, 10, 20), option("solver_order", 1, 2, 3), option("solver_type", "bh1", "bh2"), [SIGMA_MIN],
        [DEFAULT, {"lower_order_final": False}, {"predict_x0": False}],
    ),
    *product("UniPCMultistepScheduler", (1, 4, 10), option("solver_order", 1, 2, 3), every=True),
    *product("UniPCMultistepScheduler", (2, 5), SPACINGS, PREDICTIONS, [DEFAULT, THRESHOLD]),
    *product("UniPCMultistepScheduler", (3,), PREDICTIONS, [{"predict_x0": False, **SIGMA_MIN, **THRESHOLD}]),
    *product("UniPCMultistepScheduler", (1, 5, 10), LEVELS, option("solver_order", 2, 3), PREDICTIONS),
    *product("UniPCMultistepScheduler", (5,), TABLES, [DEFAULT, ZERO_SNR]),
    *product("UniPCMultistepScheduler", (1, 2, 4, 10), FLOW[:2], option("flow_shift", 1.0, 3.0), option("solver_order", 2, 3)),
    *product("SASolverScheduler", (2, 4, 10, 20), option("predictor_order", 1, 2, 3, 4), option("corrector_order", 1, 2, 3, 4)),
    *product("SASolverScheduler", (4, 20), option("predictor_order", 2, 3), option("corrector_order", 2, 3), [{"lower_order_final": False}]),
    *product("SASolverScheduler", (1, 3, 10), SPACINGS[1:], PREDICTIONS, [DEFAULT, THRESHOLD]),
    *product("SASolverScheduler", (3, 6), TABLES, option("lambda_min_clipped", -np.inf, -5.1)),
    # EDM
    *product(
        "EDMEulerScheduler", (2, 4, 10), TWO_PREDICTIONS,
        [DEFAULT, {"sigma_schedule": "exponential"}, {"rho": 5.0}, {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.0}],
    ),
    *product("EDMEulerScheduler", (1, 20), [DEFAULT], every=True),
    *product(
        "EDMDPMSolverMultistepScheduler", (4, 20, 2), TWO_PREDICTIONS, option("solver_order", 2, 3), [DEFAULT, HEUN],
        [DEFAULT, {"sigma_schedule": "exponential"}, {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.0}],
    ),
    *product("EDMDPMSolverMultistepScheduler", (1, 10), [DEFAULT, THRESHOLD, {"lower_order_final": False}], every=True),
    # flows
    *(
        case
        for name in ("FlowMapEulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
        for case in product(name, (1, 2, 4, 10), option("shift", 1.0, 3.0, 0.5), every=True)
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_network_call_and_the_sample_are_those_of_diffusers(case):
    compare(case)


def test_all_classes_are_compared_in_several_configurations():
    count = {name: sum(case.name == name for case in CASES) for name in CLASSES}
    assert min(count.values()) >= 10 and {case.name for case in CASES} == set(CLASSES) and len(CLASSES) == 22
    assert len(set(map(str, CASES))) == len(CASES)


# What a config does not say: arguments of diffusers' step, named grids, given noise levels.

VP = make_process("vp_betas")


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("steps", [4, 10])
def test_ddim_with_noise_matches_given_the_same_draws(eta, steps):
    case = Case("DDIMScheduler", NO_CLIP, steps)
    compare(case, build_program("ddim", VP, "epsilon", steps, grid="leading", eta=eta), eta=eta)


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("steps", [2, 4])
def test_tcd_matches_at_every_gamma(gamma, steps):
    case = Case("TCDScheduler", DEFAULT, steps)
    process = make_process("vp_betas", schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    compare(case, build_program("tcd", process, "epsilon", steps, t_end=0.0, gamma=gamma), eta=gamma)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_lms_matches_at_every_order(order):
    case = Case("LMSDiscreteScheduler", TRAILING, 8)
    compare(case, build_program("lms", VP, "epsilon", 8, grid="trailing", order=order), order=order)


@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_on_a_named_grid_matches(spacing, steps):
    case = Case("DDIMScheduler", {**NO_CLIP, "timestep_spacing": spacing}, steps)
    compare(case, build_program("ddim", VP, "epsilon", steps, grid=spacing))


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_dpmpp_2m_on_a_named_grid_matches(spacing, final):
    case = Case("DPMSolverMultistepScheduler", {"timestep_spacing": spacing, "final_sigmas_type": final}, 8)
    compare(case, build_program("dpmpp_2m", VP, "epsilon", 8, grid=spacing, t_end={"zero": -1.0, "sigma_min": 0.0}[final]))


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_flow_match_euler_matches_at_given_noise_levels(steps):
    levels = np.linspace(1.0, 1.0 / steps, steps)
    program = build_program("euler", make_process("flow"), "flow", steps, grid=np.append(levels, 0.0), model=Denoiser(time="times_1000"))
    compare(Case("FlowMatchEulerDiscreteScheduler", DEFAULT, steps), program, set_timesteps={"sigmas": levels})


# diffusers as released: float32 states, coefficients and noise levels. The tolerance is float32's (6e-8) times what the formulas amplify:
# x0 = (x - sigma eps) / alpha with alpha = 0.0065 at the start, differences of logarithms and exponentials (DEIS, SA, UniPC), and
# rounding errors of x / alpha, which begins at 157. Times that are interpolated in ln(sigma) lose 1e-3 of an index (KDPM2, SDE).
# Exponential levels are not among these: diffusers cuts their times to integers, and in float32 exp(ln(sigma)) may fall below the
# table's last sigma, so that the first time is 998 instead of 999, which no other precision repeats.

RELEASED = [
    Case(name, LEADING_1 if name == "PNDMScheduler" else {"lower_order_final": True} if name == "DPMSolverSinglestepScheduler" else DEFAULT, steps)
    for name in CLASSES
    for steps in (4, 10)
]


@pytest.mark.parametrize("case", RELEASED, ids=str)
def test_diffusers_in_its_own_precision_agrees_to_what_float32_leaves(case):
    program, wanted = theirs(case, released=True)
    check(ours(case, program), wanted, rtol=1e-4, atol=1e-4, times=2e-3)


# The table of options.


@pytest.mark.parametrize("name", CLASSES)
def test_the_options_and_defaults_of_a_class_are_diffusers_own(name):
    parameters = list(inspect.signature(diffusers_class(name).__init__).parameters.values())[1:]  # register_to_config keeps the signature
    assert dict(CLASSES[name][0]) == {p.name: p.default for p in parameters}


@pytest.mark.parametrize("name", CLASSES)
def test_an_option_that_diffusers_does_not_have_is_refused_with_the_nearest(name):
    with pytest.raises(RecipeError, match="has no option 'num_train_timestep': did you mean 'num_train_timesteps'"):
        read_scheduler({"_class_name": name, "num_train_timestep": 1000})


def test_a_class_that_we_do_not_know_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="no scheduler class 'DDIMSchedular': did you mean 'DDIMScheduler'"):
        read_scheduler({"_class_name": "DDIMSchedular"})


REFUSED = [
    *((name, {"use_beta_sigmas": True}, "use_beta_sigmas = True") for name, (defaults, _) in CLASSES.items() if "use_beta_sigmas" in defaults),
    *((name, {"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid'") for name, (defaults, _) in CLASSES.items() if "beta_schedule" in defaults),
    *((name, {"prediction_type": "noise"}, "prediction_type = 'noise'") for name, (defaults, _) in CLASSES.items() if "prediction_type" in defaults),
    *(
        (name, {"use_dynamic_shifting": True}, "use_dynamic_shifting = True")
        for name, (defaults, _) in CLASSES.items()
        if "use_dynamic_shifting" in defaults
    ),
    *(
        (name, {"trained_betas": [0.1, 0.2]}, "num_train_timesteps = 1000 is not supported; trained_betas has 2")
        for name, (defaults, _) in CLASSES.items()
        if "trained_betas" in defaults
    ),
    *(
        (name, {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "use_exponential_sigmas = True")
        for name, (defaults, _) in CLASSES.items()
        if "use_karras_sigmas" in defaults and not name.startswith("Flow")
    ),
    *((name, {"num_train_timesteps": 500}, "num_train_timesteps = 500") for name in CLASSES if name.startswith("Flow")),
    ("DDIMScheduler", {"timestep_spacing": "linspace"}, "timestep_spacing = 'linspace'"),
    ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type = 'learned_range'"),
    ("DDPMScheduler", {"variance_type": "fixed_small_log"}, "variance_type = 'fixed_small_log'"),
    ("PNDMScheduler", {"timestep_spacing": "trailing"}, "timestep_spacing = 'trailing'"),
    ("PNDMScheduler", {"prediction_type": "v_prediction"}, "prediction_type = 'v_prediction'"),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "interpolation_type = 'log_linear'"),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type = 'continuous'"),
    ("EulerDiscreteScheduler", {"sigma_max": 14.6}, "sigma_max = 14.6"),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, "prediction_type = 'sample'"),
    ("KDPM2DiscreteScheduler", {"prediction_type": "sample"}, "prediction_type = 'sample'"),
    ("KDPM2AncestralDiscreteScheduler", {"prediction_type": "sample"}, "prediction_type = 'sample'"),
    ("DPMSolverSDEScheduler", {"prediction_type": "sample"}, "prediction_type = 'sample'"),
    ("DPMSolverSDEScheduler", {"noise_sampler_seed": 1}, "noise_sampler_seed = 1"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "algorithm_type = 'dpmsolver'"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type = 'sde-dpmsolver'"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver", "solver_order": 3, **SIGMA_MIN}, "algorithm_type = 'sde-dpmsolver'"),
    ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order = 4"),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas = True"),
    ("DPMSolverMultistepScheduler", {"euler_at_final": True}, "euler_at_final = True"),
    ("DPMSolverMultistepScheduler", {"variance_type": "learned"}, "variance_type = 'learned'"),
    ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "prediction_type = 'flow_prediction'"),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "v_prediction"}, "prediction_type = 'v_prediction'"),
    ("DPMSolverMultistepScheduler", {**FLOW[0], **SIGMA_MIN}, "use_flow_sigmas = True"),
    ("DPMSolverMultistepScheduler", {**FLOW[0], "use_karras_sigmas": True}, "use_flow_sigmas = True"),
    ("DPMSolverMultistepScheduler", {**FLOW[0], "num_train_timesteps": 500}, "num_train_timesteps = 500"),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type = 'sde-dpmsolver"),
    ("DPMSolverSinglestepScheduler", {"solver_order": 1}, "solver_order = 1"),
    ("DEISMultistepScheduler", FLOW[0], "use_flow_sigmas = True"),
    ("SASolverScheduler", FLOW[0], "use_flow_sigmas = True"),
    ("SASolverScheduler", {"algorithm_type": "noise_prediction"}, "algorithm_type = 'noise_prediction'"),
    ("UniPCMultistepScheduler", {"disable_corrector": [0]}, "disable_corrector"),
    ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0 = False"),
    ("UniPCMultistepScheduler", {"lower_order_final": False}, "lower_order_final = False"),
    ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "solver_type = 'bh1'"),
    ("UniPCMultistepScheduler", {"sigma_min": 0.1}, "sigma_min = 0.1"),
    ("EDMEulerScheduler", {"sigma_schedule": "linear"}, "sigma_schedule = 'linear'"),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type = 'sde-dpmsolver"),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas = True"),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas = True"),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "stochastic_sampling = True"),
    ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.02}, "shift_terminal = 0.02"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "message"), REFUSED, ids=[f"{name}-{message}" for name, _, message in REFUSED])
def test_a_value_that_we_do_not_support_is_refused_by_name(name, config, message):
    with pytest.raises(RecipeError, match=f"{name}: option {message}"):
        read_scheduler({"_class_name": name, **config})


STUCK = [
    # the last step would stay where it is: diffusers returns its start, or NaN
    (Case("DDIMScheduler", {"set_alpha_to_one": False}, 4), "stays at time 0"),
    (Case("PNDMScheduler", DEFAULT, 4), "stays at time 0"),
    (Case("EulerDiscreteScheduler", SIGMA_MIN, 4), "stays at time 0"),
    (Case("DPMSolverMultistepScheduler", {**SIGMA_MIN, **LEVELS[0]}, 4), "stays there"),
    *((Case(name, level, n), "stays there") for name in ("DEISMultistepScheduler", "SASolverScheduler") for level in LEVELS for n in (1, 4)),
    (Case("UniPCMultistepScheduler", {**SIGMA_MIN, **LEVELS[1]}, 1), "stays there"),
    # diffusers' step is not the distance of its times
    (Case("DDIMScheduler", TRAILING, 3), "do not divide into 3 equal steps"),
    # diffusers moves to 813 and tells the network 812
    (Case("PNDMScheduler", LEADING_1, 8), "steps of 125 times have no middle time"),
    (Case("PNDMScheduler", LEADING_1, 3), "needs at least 4"),
    # diffusers adds noise to the result
    (Case("DDPMScheduler", {"variance_type": "fixed_large", **TRAILING}, 4), "adds noise to the result"),
    # diffusers takes other intervals, or fewer steps than asked for, or starts at sigma_min
    (Case("DPMSolverSinglestepScheduler", SIGMA_MIN, 3), "not DPM-Solver-fast's intervals"),
    (Case("DPMSolverMultistepScheduler", {"lambda_min_clipped": -3.0, **TRAILING}, 5), "4 times are left of 5"),
    (Case("EDMEulerScheduler", {"sigma_schedule": "exponential"}, 1), "sigma_min alone"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "message"), STUCK, ids=lambda value: str(value))
def test_a_number_of_steps_at_which_diffusers_does_not_do_what_it_says_is_refused(case, message):
    with pytest.raises(ProgramError, match=message):
        read_scheduler({"_class_name": case.name, **case.config}).program(case.steps)


def test_a_final_sigma_that_edm_never_leaves_is_refused():
    for name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        with pytest.raises(EdgegenError, match="final_sigmas_type = 'sigma_min' is not supported"):
            read_scheduler({"_class_name": name, **SIGMA_MIN}).program(4)


# Negative controls: the comparison notices small errors.


def changed(program: Program, index: int, term: int, factor: float) -> Program:
    """The program with one coefficient multiplied."""
    instruction = program.instructions[index]
    terms = tuple((c * factor if k == term else c, name) for k, (c, name) in enumerate(instruction.terms))
    instructions = list(program.instructions)
    instructions[index] = dataclasses.replace(instruction, terms=terms)
    return dataclasses.replace(program, instructions=tuple(instructions))


CONTROLS = [
    # a last step to sigma = 0 does not use UniPC's last correction
    Case(case.name, SIGMA_MIN if case.name == "UniPCMultistepScheduler" else case.config, 4)
    for case in RELEASED
    if case.steps == 4
]


@pytest.mark.parametrize("case", CONTROLS, ids=str)
def test_an_error_of_a_hundred_thousandth_in_any_coefficient_is_seen(case):
    """Above 1e-3: LMS has weights of 1e-10, whose errors are below what is compared."""
    program, wanted = theirs(case)
    check(ours(case, program), wanted, **EXACT)
    lincombs = {i: step.terms for i, step in enumerate(program.instructions) if isinstance(step, Lincomb)}
    coefficients = [(i, k) for i, terms in lincombs.items() for k, (c, _) in enumerate(terms) if abs(c) > 1e-3]
    assert len(coefficients) >= 4
    for index, term in coefficients:
        with pytest.raises(AssertionError):
            check(ours(case, changed(program, index, term, 1.0 + 1e-5)), wanted, **EXACT)


DRAWING = [case for case in CONTROLS if case.name in {
    "DDPMScheduler", "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LCMScheduler",
    "SASolverScheduler", "TCDScheduler",
}]  # fmt: skip


@pytest.mark.parametrize("case", [*DRAWING, Case("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 4)], ids=str)
def test_draws_numbered_one_too_high_are_seen(case):
    """Two draws interchanged cannot be written: rule P7 has them ascend."""
    program, wanted = theirs(case)
    check(ours(case, program), wanted, **EXACT)
    instructions = tuple(dataclasses.replace(i, draw=i.draw + 1) if isinstance(i, Noise) else i for i in program.instructions)
    with pytest.raises(AssertionError):
        check(ours(case, dataclasses.replace(program, instructions=instructions)), wanted, **EXACT)


OTHER_SOLVERS = {
    "DDIMScheduler": {"eta": 0.01},
    "DDPMScheduler": {"variance": "large"},
    "DEISMultistepScheduler": {"order": 0},
    "DPMSolverMultistepScheduler": {"variant": "heun"},
    "DPMSolverSinglestepScheduler": {"variant": "heun"},
    "DPMSolverSDEScheduler": {"eta": 0.9},
    "EDMDPMSolverMultistepScheduler": {"variant": "heun"},
    "EulerAncestralDiscreteScheduler": {"eta": 0.9},
    "KDPM2AncestralDiscreteScheduler": {"eta": 0.9},
    "LCMScheduler": {"timestep_scaling": 9.0},
    "LMSDiscreteScheduler": {"order": 3},
    "PNDMScheduler": {"runge_kutta": False},
    "SASolverScheduler": {"corrector_order": 0},
    "TCDScheduler": {"gamma": 0.2},
    "UniPCMultistepScheduler": {"corrector": False},
}


@pytest.mark.parametrize(("name", "options"), OTHER_SOLVERS.items(), ids=str)
def test_another_option_of_the_solver_is_seen(name, options):
    (case,) = (case for case in CONTROLS if case.name == name)
    scheduler = read_scheduler({"_class_name": name, **case.config})
    other = dataclasses.replace(scheduler, options={**scheduler.options, **options}).program(case.steps)
    with pytest.raises(AssertionError):
        check(ours(case, other), theirs(case)[1], **EXACT)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_heuns_correction_is_seen_against_euler(name):
    (case,) = (case for case in CONTROLS if case.name == name)
    heun = dataclasses.replace(read_scheduler({"_class_name": name}), solver="heun").program(case.steps)
    with pytest.raises(AssertionError):
        check(ours(case, heun), theirs(case)[1], **EXACT)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_a_missing_second_stage_is_seen(name):
    (case,) = (case for case in CONTROLS if case.name == name)
    euler = dataclasses.replace(read_scheduler({"_class_name": name}), solver="euler").program(case.steps)
    with pytest.raises(AssertionError):
        check(ours(case, euler), theirs(case)[1], **EXACT)


def test_a_network_told_another_time_is_seen():
    case = Case("FlowMapEulerDiscreteScheduler", DEFAULT, 4)
    told = dataclasses.replace(read_scheduler({"_class_name": case.name}), time="times_999").program(case.steps)
    with pytest.raises(AssertionError, match="times"):
        check(ours(case, told), theirs(case)[1], **EXACT)
