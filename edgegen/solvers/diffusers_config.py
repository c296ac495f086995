"""A diffusers `scheduler_config.json` read as solver, process, prediction, grid and options: the program that the scheduler would run.

diffusers itself is not needed. Every option of the 22 classes below is understood or refused by name; keys that start with an
underscore are metadata. Source: diffusers 0.42, schedulers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from edgegen.diffusion import Process, make_grid, make_process
from edgegen.errors import ProgramError, RecipeError, Status, nearest
from edgegen.program import Program
from edgegen.solvers import Denoiser, Guidance, build_program

__all__ = ["CLASSES", "Scheduler", "read_scheduler"]


@dataclass(frozen=True, slots=True)
class Scheduler:
    """What a scheduler's config says. process: name and parameters for `edgegen.diffusion.make_process`. time: a key of `TIMES`.

    spacing: (steps -> decreasing times), the end included.
    """

    class_name: str
    solver: str
    process: Mapping[str, Any]
    prediction: str
    time: str
    spacing: Callable[[Process, int], np.ndarray[Any, np.dtype[np.float64]]]
    options: Mapping[str, Any] = field(default_factory=dict)
    sigma_data: float = 0.5
    clip: float | None = None
    threshold: float | None = None

    def times(self, steps: int) -> list[float]:
        """The times that `steps` steps visit, in the process's own units, the end included."""
        return [float(t) for t in self.spacing(self.made_process(), steps)]

    def made_process(self) -> Process:
        """The process."""
        return make_process(**self.process)

    def program(self, steps: int, *, model: Denoiser | None = None, guidance: Guidance | float | None = None) -> Program:
        """The program of `steps` steps; see `build_program`. The model's time map is the scheduler's."""
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ProgramError(f"expected a whole number of steps >= 1, found {steps!r}", Status.OUT_OF_RANGE)
        return build_program(
            self.solver, self.made_process(), self.prediction, steps, grid=self.times(steps), guidance=guidance, sigma_data=self.sigma_data,
            model=replace(model or Denoiser(), time=self.time), clip=self.clip, threshold=self.threshold, **self.options,
        )  # fmt: skip


class _Config:
    """A config's options, defaults filled in, each asked for once; what is not a default and not asked for is refused."""

    def __init__(self, name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.name = name
        self.values = dict(defaults)
        for key, value in given.items():
            if key.startswith("_"):
                continue
            if key not in defaults:
                raise RecipeError(f"{name} has no option {key!r}: {nearest(key, defaults)}")
            self.values[key] = value
        self.defaults = defaults
        self.left = set(self.values)

    def take(self, key: str) -> Any:
        self.left.discard(key)
        return self.values[key]

    def choose(self, key: str, table: Mapping[Any, Any]) -> Any:
        """The table's entry for the option's value."""
        value = self.take(key)
        if value not in table:
            raise self.refused(key, f"supported: {', '.join(map(str, table))}")
        return table[value]

    def refused(self, key: str, why: str) -> RecipeError:
        return RecipeError(f"{self.name}: option {key} = {self.values[key]!r} is not supported; {why}")

    def close(self) -> None:
        """Refuse every option that was not asked for and differs from its default."""
        for key in sorted(self.left):
            if self.values[key] != self.defaults[key]:
                raise self.refused(key, f"leave it at {self.defaults[key]!r}")


_PREDICTIONS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}
_WITHOUT_SAMPLE = {"epsilon": "epsilon", "v_prediction": "v"}
_OF_A_FLOW = {"epsilon": "epsilon", "sample": "sample", "flow_prediction": "flow"}
_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None}
_LATENT_BETAS = _BETAS | {"beta_start": 0.00085, "beta_end": 0.012}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
_DYNAMIC = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_EPSILON = {"prediction_type": "epsilon"}
_ZERO_SNR = {"rescale_betas_zero_snr": False}


def _spacing(name: str, offset: int = 0) -> dict[str, Any]:
    return {"timestep_spacing": name, "steps_offset": offset}


def _betas(c: _Config, interpolation: str = "log_alpha", *, terminal: float = 2.0**-24) -> dict[str, Any]:
    """The process of a scheduler with a table of betas."""
    steps, start, end, trained = (c.take(k) for k in ("num_train_timesteps", "beta_start", "beta_end", "trained_betas"))
    schedule = c.choose("beta_schedule", {name: name for name in ("linear", "scaled_linear", "squaredcos_cap_v2")})
    process: dict[str, Any] = {"name": "vp_betas", "interpolation": interpolation}
    if trained is not None and len(trained) != steps:
        raise c.refused("num_train_timesteps", f"trained_betas has {len(trained)} of them")
    process |= {"betas": list(trained)} if trained is not None else {"beta_start": start, "beta_end": end, "steps": steps, "schedule": schedule}
    if "rescale_betas_zero_snr" in c.values and c.take("rescale_betas_zero_snr"):
        process["terminal"] = terminal
    return process


class _Limits(TypedDict, total=False):
    clip: float
    threshold: float


def _limits(c: _Config) -> _Limits:
    """clip and threshold of x0."""
    if "thresholding" in c.values:
        ratio, ceiling = c.take("dynamic_thresholding_ratio"), c.take("sample_max_value")
        if c.take("thresholding"):
            for key in ("clip_sample", "clip_sample_range"):
                c.left.discard(key)
            return {"threshold": float(ratio), "clip": float(ceiling)}
    if "clip_sample" in c.values:
        reach = c.take("clip_sample_range")
        if c.take("clip_sample"):
            return {"clip": float(reach)}
    return {}


def _sigma_spacing(c: _Config) -> str | None:
    """The grid that replaces the times by noise levels, if any."""
    if c.take("use_beta_sigmas"):
        raise c.refused("use_beta_sigmas", "use Karras or exponential sigmas, or neither")
    karras, exponential = c.take("use_karras_sigmas"), c.take("use_exponential_sigmas")
    if karras and exponential:
        raise c.refused("use_exponential_sigmas", "use_karras_sigmas is also on; use one of them")
    return "karras" if karras else "lambda" if exponential else None


def _to_index_zero(c: _Config, grid: Any, because: str, instead: str) -> Any:
    """The grid with its clean end moved to index 0, where diffusers ends `because` of an option; refused where it is there already."""
    if grid[-2] == 0.0:
        raise ProgramError(f"{c.name}: with {because} the last step stays at time 0; {instead}", Status.OUT_OF_RANGE)
    grid[-1] = 0.0
    return grid


def _ddim_like(c: _Config, solver: str, options: Mapping[str, Any], *, strided: bool) -> Scheduler:
    """DDIM and DDPM. strided: the state goes from t to t - T // steps, which must be the next time."""
    spacing, offset = c.choose("timestep_spacing", {n: n for n in ("leading", "linspace", "trailing")}), c.take("steps_offset")
    to_one = c.take("set_alpha_to_one") if "set_alpha_to_one" in c.values else True
    if strided and spacing == "linspace":
        raise c.refused(
            "timestep_spacing", "this scheduler steps by T // steps, which is not the distance of its linspace times; use leading or trailing"
        )

    def times(process: Process, steps: int) -> Any:
        extra = {"offset": offset} if spacing == "leading" else {"rounded": True} if spacing == "linspace" else {}
        grid = make_grid(spacing, process, steps, **extra)
        total = int(process.t_max) + 1
        if strided and len(set(np.diff(grid[:-1]))) > 1:
            raise ProgramError(f"{c.name}: {total} times do not divide into {steps} equal steps; take a divisor of {total}", Status.OUT_OF_RANGE)
        if options.get("variance") == "large" and grid[-2] > 0.0:
            raise ProgramError(
                f"{c.name}: with variance_type = 'fixed_large' diffusers adds noise to the result of a last step that starts at time "
                f"{grid[-2]:g} > 0; use timestep_spacing = 'leading' with steps_offset = 0, 'linspace', or 'fixed_small'",
                Status.OUT_OF_RANGE,
            )
        return grid if to_one else _to_index_zero(c, grid, "set_alpha_to_one off", "set steps_offset = 1")

    process = _betas(c, terminal=0.0)
    prediction = c.choose("prediction_type", _PREDICTIONS)
    return Scheduler(c.name, solver, process, prediction, "process", times, options, **_limits(c))


def _ddim(c: _Config) -> Scheduler:
    return _ddim_like(c, "ddim", {}, strided=True)


def _ddpm(c: _Config) -> Scheduler:
    variance = c.choose("variance_type", {"fixed_small": "small", "fixed_large": "large"})
    return _ddim_like(c, "ddpm", {"variance": variance}, strided=False)


def _pndm(c: _Config) -> Scheduler:
    spacing, offset, to_one = c.choose("timestep_spacing", {"leading": "leading"}), c.take("steps_offset"), c.take("set_alpha_to_one")

    def times(process: Process, steps: int) -> Any:
        if runge_kutta and steps < 4:
            raise ProgramError(f"{c.name}: {steps} steps; with skip_prk_steps off it needs at least 4", Status.OUT_OF_RANGE)
        grid = make_grid(spacing, process, steps, offset=offset)
        if runge_kutta and (grid[0] - grid[1]) % 2:
            raise ProgramError(
                f"{c.name}: steps of {grid[0] - grid[1]:g} times have no middle time, and diffusers then moves the state to another one than the "
                f"network is told; set skip_prk_steps, or take a number of steps with an even distance",
                Status.OUT_OF_RANGE,
            )
        return grid if to_one else _to_index_zero(c, grid, "set_alpha_to_one off", "set steps_offset = 1")

    runge_kutta = not c.take("skip_prk_steps")
    if c.values["prediction_type"] == "v_prediction":
        raise c.refused("prediction_type", "diffusers extrapolates velocities of several times and reads them at one, which is not PNDM; use DDIM")
    prediction = c.choose("prediction_type", {"epsilon": "epsilon"})
    return Scheduler(c.name, "pndm", _betas(c), prediction, "process", times, {"runge_kutta": runge_kutta})


def _k_diffusion(
    solver: str, *, predictions: Mapping[str, str] = _PREDICTIONS, rounds_karras: bool = False, **options: Any
) -> Callable[[_Config], Scheduler]:  # fmt: skip
    """The schedulers that work in rho: times at fractions of indices, or Karras or exponential noise levels between their ends."""

    def read(c: _Config) -> Scheduler:
        spacing, offset = c.choose("timestep_spacing", {n: n for n in ("leading", "linspace", "trailing")}), c.take("steps_offset")
        levels = _sigma_spacing(c) if "use_karras_sigmas" in c.values else None
        clean = c.choose("final_sigmas_type", {"zero": True, "sigma_min": False}) if "final_sigmas_type" in c.values else True

        def times(process: Process, steps: int) -> Any:
            grid = make_grid(spacing, process, steps, **({"offset": offset} if spacing == "leading" else {}))
            if levels is not None and steps > 1:
                grid[:-1] = make_grid(levels, process, steps - 1, t_start=grid[0], t_end=grid[-2])
            return grid if clean else _to_index_zero(c, grid, "final_sigmas_type = 'sigma_min'", "use 'zero'")

        process = _betas(c, "log_sigma" if levels else "sigma")
        time = "rounded_nodes" if rounds_karras and levels == "karras" else "process"
        prediction = c.choose("prediction_type", predictions)
        return Scheduler(c.name, solver, process, prediction, time, times, options, **_limits(c))

    return read


def _flow_levels(steps: int, total: int, shift: float) -> Any:
    """The noise levels of use_flow_sigmas, the clean end not among them, in the arithmetic of diffusers: their times are cut to integers."""
    levels = 1.0 - np.linspace(1.0, 1.0 / total, steps + 1)
    return np.flip(shift * levels / (1.0 + (shift - 1.0) * levels))[:-1]


def _unipc_flow_levels(steps: int, total: int, shift: float) -> Any:
    """UniPC's own: from 1 - 1e-6, where lambda is finite."""
    levels = np.linspace(1.0, 1.0 / total, steps + 1)[:-1]
    levels = shift * levels / (1.0 + (shift - 1.0) * levels)
    levels[0] -= 1e-6
    return levels


def _multistep(
    c: _Config, solver: str, options: Mapping[str, Any], *, clean: bool, flow_levels: Callable[[int, int, float], Any] = _flow_levels,
    stays: bool = False, cuts_cosine: bool = False,
) -> Scheduler:  # fmt: skip
    """The schedulers of the DPM-Solver family: integer times, Karras or exponential levels of the whole table, or a flow's levels.

    stays: Karras and exponential levels end with the last one twice, rather than with the table's least. cuts_cosine: the times of Karras
    levels of the cosine schedule are cut to integers, as those of exponential levels are, rather than rounded.
    """
    spacing, offset = c.choose("timestep_spacing", {n: n for n in ("leading", "linspace", "trailing")}), c.take("steps_offset")
    levels = _sigma_spacing(c)
    shift, flow = c.take("flow_shift"), c.take("use_flow_sigmas")
    lowest = c.take("lambda_min_clipped") if "lambda_min_clipped" in c.values else -np.inf
    prediction = c.choose("prediction_type", _OF_A_FLOW if flow else _PREDICTIONS)
    end = -1.0 if clean else 0.0
    limits = _limits(c)
    if flow:
        process: dict[str, Any] = {"name": "flow"}
        for key in ("beta_start", "beta_end", "beta_schedule", "trained_betas"):
            c.left.discard(key)
        if not clean:
            raise c.refused("use_flow_sigmas", "the flow's least noise level comes from the betas; use final_sigmas_type = 'zero'")
        if levels is not None:
            raise c.refused("use_flow_sigmas", "use_karras_sigmas or use_exponential_sigmas is also on; use one of them")
        total = _thousand(c)

        def flow_times(process: Process, steps: int) -> Any:
            return np.append(flow_levels(steps, total, float(shift)), 0.0)

        return Scheduler(c.name, solver, process, prediction, "times_1000_truncated", flow_times, options, **limits)
    c.left.discard("flow_shift")

    def times(process: Process, steps: int) -> Any:
        if levels is not None:
            whole = make_grid(levels, process, steps - 1, t_end=0.0) if steps > 1 else np.array([process.t_first])
            return np.append(whole, end) if end < whole[-1] and not (stays and not clean) else _stays(c)
        last = int(process.t_max) + 1 - int(np.sum(process.lam(np.arange(process.t_max + 1.0)) < lowest))
        if spacing == "linspace":
            whole = np.linspace(0, last - 1, steps + 1).round()[::-1][:-1]
        elif spacing == "leading":
            whole = np.arange(0, steps + 1)[::-1][:-1] * float(last // (steps + 1)) + offset
        else:
            whole = np.arange(last, 0, -(process.t_max + 1) / steps).round()[:steps] - 1.0
        if len(whole) < steps:
            raise ProgramError(f"{c.name}: {len(whole)} times are left of {steps} at lambda_min_clipped = {lowest:g}", Status.OUT_OF_RANGE)
        return np.append(whole, end) if end < whole[-1] else _stays(c)

    rounds = levels == "karras" and not (cuts_cosine and c.values["beta_schedule"] == "squaredcos_cap_v2")
    time = "process" if levels is None else "rounded" if rounds else "truncated"
    process = _betas(c, "log_sigma" if levels else "log_alpha")
    return Scheduler(c.name, solver, process, prediction, time, times, options, **limits)


def _thousand(c: _Config) -> int:
    """num_train_timesteps of a flow, whose network is told 1000 t."""
    if c.take("num_train_timesteps") != 1000:
        raise c.refused("num_train_timesteps", "supported for a flow: 1000")
    return 1000


def _stays(c: _Config) -> Any:
    raise ProgramError(f"{c.name}: this spacing ends at time 0 and final_sigmas_type = 'sigma_min' stays there; use 'zero'", Status.OUT_OF_RANGE)


def _dpm_multistep(c: _Config) -> Scheduler:
    algorithm, order = c.take("algorithm_type"), c.choose("solver_order", {1: 1, 2: 2, 3: 3})
    variant = c.choose("solver_type", {"midpoint": "midpoint", "heun": "heun"})
    lower = {"lower_order_final": bool(c.take("lower_order_final"))}
    clean = c.choose("final_sigmas_type", {"zero": True, "sigma_min": False})
    if algorithm == "dpmsolver++":
        names = {1: ("dpmpp_sde", {"order": 1, "eta": 0.0}), 2: ("dpmpp_2m", {"variant": variant}), 3: ("dpmpp_3m", {"variant": variant})}
        solver, options = names[order]
    elif algorithm == "dpmsolver" and not clean:
        solver, options = "dpm_solver", {"order": order, "variant": variant}
    elif algorithm == "sde-dpmsolver++":
        solver, options = "dpmpp_sde", {"order": order, "variant": variant, "d2": "diffusers"}
    elif algorithm == "sde-dpmsolver" and order < 3 and not clean:
        solver, options = "dpmpp_sde", {"order": order, "variant": variant, "form": "noise"}
    else:
        raise c.refused("algorithm_type", "with this solver_order and final_sigmas_type; noise-form algorithms need final_sigmas_type = 'sigma_min'")
    return _multistep(c, solver, options | lower, clean=clean, cuts_cosine=True)


def _dpm_singlestep(c: _Config) -> Scheduler:
    form = c.choose("algorithm_type", {"dpmsolver++": "dpmpp", "dpmsolver": "dpm_solver"})
    order = c.choose("solver_order", {2: 2, 3: 3})
    variant = c.choose("solver_type", {"midpoint": "midpoint_everywhere", "heun": "heun"})
    clean = c.choose("final_sigmas_type", {"zero": True, "sigma_min": False})
    lower = c.take("lower_order_final")
    c.values |= _spacing("linspace")
    c.left |= {"timestep_spacing", "steps_offset"}
    solver, options = (f"dpmpp_{order}s", {}) if form == "dpmpp" else ("dpm_solver", {"order": order})
    made = _multistep(c, solver, options | {"method": "fast", "variant": variant}, clean=clean)

    def times(process: Process, steps: int) -> Any:
        if not clean and (steps % order == 0) == (order == 3 or bool(lower)):
            raise ProgramError(
                f"{c.name}: {steps} steps of order {order} with lower_order_final = {lower} and final_sigmas_type = 'sigma_min' "
                f"are not DPM-Solver-fast's intervals; use final_sigmas_type = 'zero' or another number of steps",
                Status.OUT_OF_RANGE,
            )
        return made.spacing(process, steps)

    return replace(made, spacing=times)


def _deis(c: _Config) -> Scheduler:
    c.choose("algorithm_type", {"deis": "deis"})
    c.choose("solver_type", {"logrho": "log_rho"})
    order = c.choose("solver_order", {1: 1, 2: 2, 3: 3})
    options = {"variable": "log_rho", "order": order - 1, "lower_order_final": bool(c.take("lower_order_final"))}
    return _multistep(c, "deis", options, clean=False, stays=True)


def _unipc(c: _Config) -> Scheduler:
    order, variant = c.choose("solver_order", {1: 1, 2: 2, 3: 3}), c.choose("solver_type", {"bh1": "bh1", "bh2": "bh2"})
    form = "data" if c.take("predict_x0") else "noise"
    clean = c.choose("final_sigmas_type", {"zero": True, "sigma_min": False})
    lower = bool(c.take("lower_order_final"))
    if clean and form == "noise":
        raise c.refused("predict_x0", "the noise form needs final_sigmas_type = 'sigma_min'")
    if clean and order > 1 and not lower:
        raise c.refused("lower_order_final", "a last step of order > 1 needs final_sigmas_type = 'sigma_min'")
    if clean and variant == "bh1":
        raise c.refused("solver_type", "B(h) = h is infinite at sigma = 0, where diffusers returns NaN; it needs final_sigmas_type = 'sigma_min'")
    if form == "noise" and c.values["use_flow_sigmas"]:
        raise c.refused("use_flow_sigmas", "with predict_x0 on only")
    options = {"order": order, "variant": variant, "form": form, "lower_order_final": lower}
    made = _multistep(c, "unipc", options, clean=clean, flow_levels=_unipc_flow_levels, stays=True)
    return replace(made, threshold=None, clip=None) if form == "noise" else made  # diffusers thresholds x0 only where it predicts it


def _sa(c: _Config) -> Scheduler:
    c.choose("algorithm_type", {"data_prediction": "data"})
    options = {name: c.take(name) for name in ("predictor_order", "corrector_order")} | {"lower_order_final": bool(c.take("lower_order_final"))}
    total = float(c.values["num_train_timesteps"])
    return _multistep(c, "sa_solver", options | {"tau_low": min(200.0, total), "tau_high": min(800.0, total)}, clean=False, stays=True)


def _distilled(c: _Config, solver: str, options: Mapping[str, Any], end: float, limits: _Limits) -> Scheduler:
    original = c.take("original_inference_steps")
    for key in ("set_alpha_to_one", "steps_offset", "timestep_spacing"):
        c.left.discard(key)  # these schedulers read none of them
    prediction = c.choose("prediction_type", _PREDICTIONS)
    process = _betas(c, terminal=0.0)
    return Scheduler(
        c.name, solver, process, prediction, "process",
        lambda process, steps: make_grid("lcm", process, steps, t_end=end, original_steps=original), options, **limits,
    )  # fmt: skip


def _lcm(c: _Config) -> Scheduler:
    return _distilled(c, "lcm", {"timestep_scaling": float(c.take("timestep_scaling"))}, -1.0, _limits(c))


def _tcd(c: _Config) -> Scheduler:
    for key in ("timestep_scaling", *_CLIP, *_THRESHOLD):
        c.left.discard(key)  # TCDScheduler declares these and uses none of them
    return _distilled(c, "tcd", {}, 0.0, {})


def _edm(c: _Config, solver: str, options: Mapping[str, Any]) -> Scheduler:
    grid = c.choose("sigma_schedule", {"karras": "karras", "exponential": "lambda"})
    extra = {"power": float(c.take("rho"))} if grid == "karras" else {}
    c.left.discard("rho")
    c.left.discard("num_train_timesteps")
    clean = c.choose("final_sigmas_type", {"zero": True, "sigma_min": False})
    low, high = float(c.take("sigma_min")), float(c.take("sigma_max"))

    def times(process: Process, steps: int) -> Any:
        if grid == "lambda" and steps == 1:
            raise ProgramError(f"{c.name}: diffusers' exponential schedule of one step is sigma_min alone; use 'karras'", Status.OUT_OF_RANGE)
        if clean:
            return make_grid(grid, process, steps, t_start=None, t_end=None, multistep=False, **extra)
        raise c.refused("final_sigmas_type", "its last step would stay at sigma_min; use 'zero'")

    prediction = c.choose("prediction_type", {"epsilon": "edm", "v_prediction": "edm_v"})
    process = {"name": "edm", "sigma_min": low, "sigma_max": high}
    sigma_data = float(c.take("sigma_data"))
    return Scheduler(c.name, solver, process, prediction, "log_sigma_over_4", times, options, sigma_data, **_limits(c))


def _edm_euler(c: _Config) -> Scheduler:
    return _edm(c, "euler", {})


def _edm_multistep(c: _Config) -> Scheduler:
    c.choose("algorithm_type", {"dpmsolver++": "data"})
    order, variant = c.choose("solver_order", {2: 2, 3: 3}), c.choose("solver_type", {"midpoint": "midpoint", "heun": "heun"})
    return _edm(c, f"dpmpp_{order}m", {"variant": variant, "lower_order_final": bool(c.take("lower_order_final"))})


def _flow_match(solver: str) -> Callable[[_Config], Scheduler]:
    def read(c: _Config) -> Scheduler:
        total, shift = _thousand(c), float(c.take("shift"))
        for key in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"):
            c.left.discard(key)  # of dynamic shifting, which `close` refuses
        floor = shift / total / (1.0 + (shift - 1.0) / total)

        def times(process: Process, steps: int) -> Any:
            return make_grid("shifted", process, steps, shift=shift, floor=floor)

        return Scheduler(c.name, solver, {"name": "flow"}, "flow", "times_1000", times)

    return read


def _flow_map(c: _Config) -> Scheduler:
    _thousand(c)
    shift = float(c.take("shift"))

    def times(process: Process, steps: int) -> Any:
        return make_grid("shifted", process, steps, shift=shift)

    return Scheduler(c.name, "meanflow", {"name": "flow"}, "average_velocity", "times_1000", times)


_MULTISTEP = _BETAS | {"solver_order": 2} | _EPSILON | _THRESHOLD | {"lower_order_final": True} | _SIGMAS | _FLOW | _spacing("linspace")
_EDM = {
    "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "num_train_timesteps": 1000, "rho": 7.0,
    "final_sigmas_type": "zero",
} | _EPSILON  # fmt: skip
_CLIPPED = {"lambda_min_clipped": -np.inf, "variance_type": None}
_DISTILLED = (
    _LATENT_BETAS | {"beta_schedule": "scaled_linear", "original_inference_steps": 50, "set_alpha_to_one": True, "timestep_scaling": 10.0}
    | _CLIP | {"clip_sample": False} | _EPSILON | _THRESHOLD | _spacing("leading") | _ZERO_SNR
)  # fmt: skip

CLASSES: dict[str, tuple[Mapping[str, Any], Callable[[_Config], Scheduler]]] = {
    "DDIMScheduler": (_BETAS | _CLIP | {"set_alpha_to_one": True} | _EPSILON | _THRESHOLD | _spacing("leading") | _ZERO_SNR, _ddim),
    "DDPMScheduler": (_BETAS | _CLIP | {"variance_type": "fixed_small"} | _EPSILON | _THRESHOLD | _spacing("leading") | _ZERO_SNR, _ddpm),
    "DEISMultistepScheduler": (_MULTISTEP | {"algorithm_type": "deis", "solver_type": "logrho"} | _DYNAMIC, _deis),
    "DPMSolverMultistepScheduler": (
        _MULTISTEP | _CLIPPED | _DYNAMIC | _ZERO_SNR
        | {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "euler_at_final": False, "use_lu_lambdas": False, "final_sigmas_type": "zero"},
        _dpm_multistep,
    ),
    "DPMSolverSinglestepScheduler": (
        {k: v for k, v in _MULTISTEP.items() if k not in _spacing("")} | _CLIPPED | _DYNAMIC
        | {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": False, "final_sigmas_type": "zero"},
        _dpm_singlestep,
    ),
    "DPMSolverSDEScheduler": (
        _LATENT_BETAS | _EPSILON | _SIGMAS | {"noise_sampler_seed": None} | _spacing("linspace"),
        _k_diffusion("dpmpp_sde", predictions=_WITHOUT_SAMPLE, method="singlestep"),
    ),
    "EDMDPMSolverMultistepScheduler": (
        _EDM | _THRESHOLD
        | {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False},
        _edm_multistep,
    ),
    "EDMEulerScheduler": (_EDM, _edm_euler),
    "EulerAncestralDiscreteScheduler": (
        _BETAS | _EPSILON | _spacing("linspace") | _ZERO_SNR, _k_diffusion("euler_a", predictions=_WITHOUT_SAMPLE),
    ),
    "EulerDiscreteScheduler": (
        _BETAS | _EPSILON | _SIGMAS | _spacing("linspace") | _ZERO_SNR
        | {"interpolation_type": "linear", "sigma_min": None, "sigma_max": None, "timestep_type": "discrete", "final_sigmas_type": "zero"},
        _k_diffusion("euler", predictions=_PREDICTIONS | {"original_sample": "sample"}),
    ),
    "FlowMapEulerDiscreteScheduler": ({"num_train_timesteps": 1000, "shift": 1.0}, _flow_map),
    "FlowMatchEulerDiscreteScheduler": (
        {"num_train_timesteps": 1000, "shift": 1.0, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096,
         "invert_sigmas": False, "shift_terminal": None, "stochastic_sampling": False} | _SIGMAS | _DYNAMIC,
        _flow_match("euler"),
    ),
    "FlowMatchHeunDiscreteScheduler": ({"num_train_timesteps": 1000, "shift": 1.0}, _flow_match("heun")),
    "HeunDiscreteScheduler": (
        _LATENT_BETAS | _EPSILON | _SIGMAS | _CLIP | {"clip_sample": False} | _spacing("linspace"), _k_diffusion("heun"),
    ),
    "KDPM2AncestralDiscreteScheduler": (
        _LATENT_BETAS | _EPSILON | _SIGMAS | _spacing("linspace"), _k_diffusion("kdpm2_a", predictions=_WITHOUT_SAMPLE, rounds_karras=True),
    ),
    "KDPM2DiscreteScheduler": (
        _LATENT_BETAS | _EPSILON | _SIGMAS | _spacing("linspace"), _k_diffusion("kdpm2", predictions=_WITHOUT_SAMPLE, rounds_karras=True),
    ),
    "LCMScheduler": (_DISTILLED, _lcm),
    "LMSDiscreteScheduler": (_BETAS | _EPSILON | _SIGMAS | _spacing("linspace"), _k_diffusion("lms")),
    "PNDMScheduler": (_BETAS | {"skip_prk_steps": False, "set_alpha_to_one": False} | _EPSILON | _spacing("leading"), _pndm),
    "SASolverScheduler": (
        {k: v for k, v in _MULTISTEP.items() if k != "solver_order"} | _CLIPPED
        | {"predictor_order": 2, "corrector_order": 2, "tau_func": None, "algorithm_type": "data_prediction"},
        _sa,
    ),
    "TCDScheduler": (_DISTILLED, _tcd),
    "UniPCMultistepScheduler": (
        _MULTISTEP | _DYNAMIC | _ZERO_SNR
        | {"predict_x0": True, "solver_type": "bh2", "disable_corrector": [], "solver_p": None, "final_sigmas_type": "zero", "sigma_min": None,
           "sigma_max": None, "shift_terminal": None},
        _unipc,
    ),
}  # fmt: skip
"""Class name -> (its options with their defaults, the function that reads them)."""


def read_scheduler(config: Mapping[str, Any] | Path) -> Scheduler:
    """The scheduler that a config (the file's path, or its decoded JSON) describes.

    Raises RecipeError: no such file, not JSON, an unknown class or option (with the nearest), or an option's value that edgegen does
    not support (with what it supports).
    """
    where = "scheduler config"
    if isinstance(config, Path):
        where = str(config)
        try:
            config = json.loads(config.read_text(encoding="utf-8"))
        except FileNotFoundError as e:
            raise RecipeError(f"no scheduler config at {where}; give the path of a scheduler_config.json") from e
        except (OSError, ValueError) as e:
            raise RecipeError(f"{where}: cannot be read as JSON: {e}") from e
    if not isinstance(config, Mapping) or not isinstance(config.get("_class_name"), str):
        raise RecipeError(f"{where}: expected an object with the key '_class_name', as diffusers writes it")
    name = config["_class_name"]
    if name not in CLASSES:
        raise RecipeError(f"{where}: no scheduler class {name!r}: {nearest(name, CLASSES)}")
    defaults, read = CLASSES[name]
    options = _Config(name, config, defaults)
    try:
        scheduler = read(options)
    except (TypeError, ValueError) as e:
        raise RecipeError(f"{where}: an option of {name} has the wrong type: {e}") from e
    options.close()
    return scheduler
