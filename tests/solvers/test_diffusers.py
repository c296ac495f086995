"""Step by step against diffusers' schedulers, in float64, with the same smooth nonlinear network and the same noise."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
schedulers = pytest.importorskip("diffusers.schedulers", reason="diffusers is not installed")

from edgegen.diffusion import make_process
from edgegen.program import interpret
from edgegen.solvers import build_program

SHAPE = (2, 3, 4)
VP = make_process("vp_betas")


def smooth(x, t):
    return np.tanh(0.7 * x + 0.3 * np.cos(t / 300)) + 0.15 * x


def as_double(scheduler):
    for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())


def reference(scheduler, steps, x, noises=None, **step_options):
    betas = np.linspace(1e-4, 0.02, 1000)
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - betas))
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    as_double(scheduler)
    x = torch.from_numpy(x)
    for i, t in enumerate(scheduler.timesteps):
        extra = {} if noises is None else {"variance_noise": torch.from_numpy(noises[i])}
        output = torch.from_numpy(smooth(x.numpy(), float(t)))
        x = scheduler.step(output, t, x, **extra, **step_options).prev_sample
    return x.numpy()


def ours(solver, steps, x, **options):
    program = build_program(solver, VP, options.pop("prediction", "epsilon"), steps, **options)
    return interpret(program, {"denoiser": smooth}, {"x_T": x}, dtype=np.float64)["sample"]


X = np.random.default_rng(0).standard_normal(SHAPE)


@pytest.mark.parametrize("steps", [1, 4, 10, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])  # with linspace diffusers visits t - T // steps, not its next node
@pytest.mark.parametrize(("kind", "prediction"), [("epsilon", "epsilon"), ("sample", "sample"), ("v_prediction", "v")])
def test_ddim_matches(steps, spacing, kind, prediction):
    scheduler = schedulers.DDIMScheduler(clip_sample=False, timestep_spacing=spacing, prediction_type=kind)
    wanted = reference(scheduler, steps, X)
    np.testing.assert_allclose(ours("ddim", steps, X, grid=spacing, prediction=prediction), wanted, atol=1e-9)


@pytest.mark.parametrize("steps", [4, 10])
def test_ddim_clips_x0_as_diffusers_does(steps):
    scheduler = schedulers.DDIMScheduler(clip_sample=True, clip_sample_range=1.0)
    np.testing.assert_allclose(ours("ddim", steps, X, grid="leading", clip=1.0), reference(scheduler, steps, X), atol=1e-9)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("steps", [4, 10])
def test_ddim_with_noise_matches_given_the_same_draws(eta, steps):
    program = build_program("ddim", VP, "epsilon", steps, grid="leading", eta=eta)
    from edgegen.program import normals

    draws = [normals(7, k, SHAPE).astype(np.float64) for k in range(1, steps + 1)]
    scheduler = schedulers.DDIMScheduler(clip_sample=False)
    wanted = reference(scheduler, steps, X, draws, eta=eta)
    found = interpret(program, {"denoiser": smooth}, {"x_T": X}, seed=7, dtype=np.float64)["sample"]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize("variant", ["midpoint", "heun"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [2, 5, 10, 20])
def test_dpmpp_2m_matches(variant, spacing, final, steps):
    final_time = -1.0 if final == "zero" else 0.0
    scheduler = schedulers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, solver_type=variant, final_sigmas_type=final, timestep_spacing=spacing
    )
    wanted = reference(scheduler, steps, X)
    found = ours("dpmpp_2m", steps, X, grid=spacing, variant=variant, t_end=final_time)
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # diffusers rounds to float32 inside


@pytest.mark.parametrize("steps", [5, 10])
def test_dynamic_thresholding_matches(steps):
    scheduler = schedulers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5,
        timestep_spacing="linspace",
    )  # fmt: skip
    found = ours("dpmpp_2m", steps, X, grid="linspace", threshold=0.9, clip=1.5)
    np.testing.assert_allclose(found, reference(scheduler, steps, X), atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_flow_match_euler_matches(steps):
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    scheduler.sigmas = scheduler.sigmas.double()
    x = torch.from_numpy(X)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.from_numpy(smooth(x.numpy(), float(t) / 1000)), t, x).prev_sample.double()
    grid = np.append(scheduler.sigmas.numpy()[:-1], 0.0)
    program = build_program("euler", make_process("flow"), "flow", steps, grid=grid)
    found = interpret(program, {"denoiser": smooth}, {"x_T": X}, dtype=np.float64)["sample"]
    np.testing.assert_allclose(found, x.numpy(), atol=1e-5)
