"""Exact means and standard deviations on Gaussian data, and the coefficients that published samplers list (specification, 6.4, 3.5 to 3.9).

No Monte Carlo: with Gaussian data every network here is affine, and so is every register (`tests.analytic.affine_outputs`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from edgegen.diffusion import make_process
from edgegen.program import Eval, Lincomb, Noise, interpret
from edgegen.program.noise import normals
from edgegen.solvers import build_program
from tests.analytic import affine_outputs, affine_statistics, changed, gaussian_law, gaussian_noise, network

VP = make_process("vp_linear")
BETAS = make_process("vp_betas")
FLOW = make_process("flow")
MEAN, DEVIATION = 0.7, 0.4
ALL = dict(tau_low=-1.0, tau_high=1000.0)


def gaussian_network(process, prediction="epsilon", deviation=DEVIATION):
    return {"denoiser": network(process, prediction, gaussian_noise(MEAN, deviation))}


def with_draw(program, which, draw):
    """The program with NOISE number `which` reading another draw."""
    places = [k for k, i in enumerate(program.instructions) if isinstance(i, Noise)]
    k = places[which]
    return replace(program, instructions=(*program.instructions[:k], replace(program.instructions[k], draw=draw), *program.instructions[k + 1 :]))


@pytest.mark.parametrize(
    ("solver", "options"),
    [("ddpm", {}), ("dpmpp_sde", dict(method="singlestep")), ("sa_solver", dict(tau=1.0, **ALL)), ("unipc", dict(order=3)), ("heun", {})],
)
@pytest.mark.parametrize("prediction", ["epsilon", "edm"])
def test_the_algebra_of_registers_agrees_with_the_interpreter_draw_by_draw(solver, options, prediction):
    program = build_program(solver, VP, prediction, 6, t_end=0.01, **options)
    networks = gaussian_network(VP, prediction)
    out = affine_outputs(program, networks)["sample"]
    x = np.linspace(-2.0, 2.0, 7)
    found = interpret(program, networks, {"x_T": x}, seed=11, dtype=np.float64)["sample"]
    fresh = sum((c * normals(11, k, x.shape).astype(np.float64) for k, c in enumerate(out[2:], 1)), np.zeros(7))
    np.testing.assert_allclose(found, out[0] + out[1] * x + fresh, rtol=0, atol=1e-12)


# DDPM and its equals


ANCESTRAL = {
    "ddpm": ("ddpm", {}),
    "ddim": ("ddim", dict(eta=1.0)),
    "euler_a": ("euler_a", dict(eta=1.0)),
    "sde": ("dpmpp_sde", dict(order=1)),
    "sa": ("sa_solver", dict(predictor_order=1, corrector_order=0, tau=1.0, **ALL)),
}


def posterior_recursion(process, times, deviation, start):
    """Mean and standard deviation after each DDPM posterior step with x0 = E[x0 | x], by scalar recursion."""
    mean, std = start
    for s, t in pairwise(times):
        (a, b), (c, d) = [(float(process.alpha(k)), float(process.sigma(k))) for k in (s, t)]
        ratio = a / c
        beta = b * b - ratio**2 * d * d  # variance of x_s given x_t
        gain = a * deviation**2 / (a * a * deviation**2 + b * b)
        on_x, on_data = ratio * d * d / (b * b), c * beta / (b * b)
        mean = on_x * mean + on_data * (MEAN + gain * (mean - a * MEAN))
        std = math.hypot((on_x + on_data * gain) * std, d * math.sqrt(beta) / b)
    return mean, std


@pytest.mark.parametrize("end", ["noisy", "clean"])
@pytest.mark.parametrize("name", ANCESTRAL)
def test_ancestral_samplers_have_the_mean_and_deviation_of_the_posterior_recursion(name, end):
    solver, options = ANCESTRAL[name]
    process, times = (VP, np.linspace(0.95, 0.01, 12)) if end == "noisy" else (BETAS, np.array([999.0, 700, 400, 150, 30, -1]))
    start = (0.1, 1.1)
    program = build_program(solver, process, "epsilon", len(times) - 1, grid=times, **options)
    found = affine_statistics(program, gaussian_network(process), start)
    np.testing.assert_allclose(found, posterior_recursion(process, times, DEVIATION, start), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ANCESTRAL)
def test_reused_or_wrongly_scaled_noise_changes_the_deviation_of_an_ancestral_sampler(name):
    solver, options = ANCESTRAL[name]
    times = np.linspace(0.95, 0.01, 12)
    program = build_program(solver, VP, "sample", 11, grid=times, **options)
    wanted = posterior_recursion(VP, times, DEVIATION, (0.0, 1.0))[1]
    networks = gaussian_network(VP, "sample")
    assert abs(affine_statistics(program, networks)[1] - wanted) < 1e-13
    broken = [with_draw(program, 5, 5), changed(program, -1, lambda terms: [*terms[:-1], (1.001 * terms[-1][0], terms[-1][1])])]
    for wrong in broken:
        assert abs(affine_statistics(wrong, networks)[1] - wanted) > 1e-7


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_sde", "sa_solver", "unipc", "deis"])
def test_the_mean_of_the_data_is_a_fixed_point(solver):
    program = build_program(solver, VP, "epsilon", 7, t_start=0.9, t_end=0.01)
    found = affine_statistics(program, gaussian_network(VP), gaussian_law(VP, 0.9, MEAN, DEVIATION))
    assert abs(found[0] - float(VP.alpha(0.01)) * MEAN) < 1e-13


# Consistency models


def exact_consistency_epsilon(process, scaling):
    """The network with which c_out x0 + c_skip x is the exact end of the trajectory of Gaussian data."""

    def run(x, t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        end = MEAN + DEVIATION * (x - alpha * MEAN) / math.sqrt((alpha * DEVIATION) ** 2 + sigma**2)
        tau = 10.0 * t * scaling
        c_skip, c_out = 0.25 / (tau**2 + 0.25), tau / math.sqrt(tau**2 + 0.25)
        return (x - alpha * (end - c_skip * x) / c_out) / sigma

    return {"denoiser": run}


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20])
def test_lcm_with_the_exact_consistency_function_has_the_exact_law(steps):
    program = build_program("lcm", BETAS, "epsilon", steps)
    found = affine_statistics(program, exact_consistency_epsilon(BETAS, 1.0), gaussian_law(BETAS, program_times(program)[0], MEAN, DEVIATION))
    np.testing.assert_allclose(found, (MEAN, DEVIATION), rtol=0, atol=1e-13)


def test_lcm_over_continuous_time_has_the_exact_law_too():
    times = [0.9, 0.6, 0.3, 0.0]
    program = build_program("lcm", VP, "epsilon", 3, grid=times)
    found = affine_statistics(program, exact_consistency_epsilon(VP, 1000.0), gaussian_law(VP, 0.9, MEAN, DEVIATION))
    np.testing.assert_allclose(found, (MEAN, DEVIATION), rtol=0, atol=1e-13)


def test_lcm_without_its_noise_misses_the_law():
    program = build_program("lcm", BETAS, "epsilon", 4)
    start = gaussian_law(BETAS, 999.0, MEAN, DEVIATION)
    wrong = changed(program, -2, lambda terms: terms[:-1])
    assert abs(affine_statistics(wrong, exact_consistency_epsilon(BETAS, 1.0), start)[1] - DEVIATION) > 1e-3


def program_times(program):
    return [i.inputs["t"][0].value for i in program.instructions if isinstance(i, Eval)]


def test_lcm_visits_the_times_of_the_specification():
    assert program_times(build_program("lcm", BETAS, "epsilon", 4)) == [999.0, 759.0, 499.0, 259.0]
    fifty = program_times(build_program("lcm", BETAS, "epsilon", 50))
    assert (len(fifty), fifty[0], fifty[1], fifty[-1]) == (50, 999.0, 979.0, 19.0)


@pytest.mark.parametrize(("time", "c_skip"), [(259.0, 3.7e-8), (19.0, 6.9e-6)])
def test_lcm_boundary_scaling_is_that_of_the_specification(time, c_skip):
    program = build_program("lcm", BETAS, "sample", 1, grid=[time, -1.0])
    (last,) = [i for i in program.instructions if isinstance(i, Lincomb)]
    on_x = {name: c for c, name in last.terms}["x_T"]
    assert abs(on_x - c_skip) < 0.05 * 10.0 ** math.floor(math.log10(c_skip))


def tcd_recursion(process, times, gamma, deviation, start):
    """Section 3.7: x_s = alpha_s x0 + sigma_s eps at s = floor((1 - gamma) t'), then noise from s to t'; none in the last step."""
    mean, std = start
    for i, (s, t) in enumerate(pairwise(times)):
        last = i == len(times) - 2
        a, b = float(process.alpha(s)), float(process.sigma(s))
        gain = a * deviation**2 / (a * a * deviation**2 + b * b)
        data = (MEAN - gain * a * MEAN, gain)  # constant, weight of x
        noise = (-a * data[0] / b, (1 - a * data[1]) / b)
        c, d = float(process.alpha(t)), float(process.sigma(t))
        if d == 0.0:
            add, scale, extra = data[0], data[1], 0.0
        else:
            there = math.floor((1 - gamma) * t)
            e, f = (float(process.alpha(there)), float(process.sigma(there))) if not last and gamma > 0 else (c, d)
            ratio = c / e
            add, scale = (ratio * (e * data[k] + f * noise[k]) for k in (0, 1))
            extra = math.sqrt(max(1 - ratio**2, 0.0)) if not last and gamma > 0 else 0.0
        mean, std = add + scale * mean, math.hypot(scale * std, extra)
    return mean, std


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_tcd_follows_the_recursion_of_the_specification(gamma, steps):
    program = build_program("tcd", BETAS, "epsilon", steps, gamma=gamma)
    start = (0.1, 0.9)
    times = [*program_times(program), -1.0]
    np.testing.assert_allclose(
        affine_statistics(program, gaussian_network(BETAS), start), tcd_recursion(BETAS, times, gamma, DEVIATION, start), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_tcd_has_the_exact_law_on_data_of_one_point(gamma, steps):
    """On one point DDIM's jump is exact at any length, so what is left to be wrong is the noise."""
    times = [*np.linspace(999, 199, steps).round(), 0.0]
    assert_exact_on_one_point(times, gamma)


@pytest.mark.parametrize(("times", "gamma"), [([999.0, 500.0, 50.0], 0.3), ([999.0, 500.0, 50.0], 1.0), ([999.0, 500.5, 0.0], 0.0)])
def test_tcd_is_at_the_time_that_its_steps_say_where_it_adds_no_noise(times, gamma):
    """Also where the grid ends above index 0, and where gamma = 0 visits a fraction of an index."""
    assert_exact_on_one_point(times, gamma)


def assert_exact_on_one_point(times, gamma):
    program = build_program("tcd", BETAS, "epsilon", len(times) - 1, grid=times, gamma=gamma)
    found = affine_statistics(program, gaussian_network(BETAS, deviation=0.0), gaussian_law(BETAS, times[0], MEAN, 0.0))
    np.testing.assert_allclose(found, gaussian_law(BETAS, times[-1], MEAN, 0.0), rtol=0, atol=1e-13)


def test_tcd_without_one_draw_misses_the_law_on_data_of_one_point():
    program = build_program("tcd", BETAS, "epsilon", 3, grid=[999.0, 600.0, 300.0, 0.0])
    wrong = changed(program, -2, lambda terms: terms[:-1])
    found = affine_statistics(wrong, gaussian_network(BETAS, deviation=0.0), gaussian_law(BETAS, 999.0, MEAN, 0.0))
    assert abs(found[1] - float(BETAS.sigma(0.0))) > 1e-5


# Denoising diffusion GAN, ProDiff


def exact_generator(process):
    """A draw of x0 given x: its mean and standard deviation, the latent being the draw."""

    def run(x, t, latent):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        precision = 1 / DEVIATION**2 + (alpha / sigma) ** 2
        return (MEAN / DEVIATION**2 + alpha * x / sigma**2) / precision + latent / math.sqrt(precision)

    return {"denoiser": run}


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_ddgan_with_the_exact_generator_has_the_exact_law(steps):
    process = make_process("vp_betas", schedule="ddgan", steps=steps)
    program = build_program("ddgan", process, "sample", steps, latent=1)
    found = affine_statistics(program, exact_generator(process), gaussian_law(process, steps - 1, MEAN, DEVIATION))
    np.testing.assert_allclose(found, (MEAN, DEVIATION), rtol=0, atol=1e-13)


def test_ddgan_with_one_latent_for_two_steps_misses_the_law():
    process = make_process("vp_betas", schedule="ddgan", steps=4)
    program = build_program("ddgan", process, "sample", 4, latent=1)
    latents = [k for k, i in enumerate(i for i in program.instructions if isinstance(i, Noise)) if i.shape is not None]
    earlier = [i.draw for i in program.instructions if isinstance(i, Noise)][latents[-2]]
    broken = with_draw(program, latents[-1], earlier)
    found = affine_statistics(broken, exact_generator(process), gaussian_law(process, 3, MEAN, DEVIATION))
    assert abs(found[1] - DEVIATION) > 1e-3


def test_ddgan_draws_its_latent_and_its_noise_in_their_own_shapes_from_their_own_draws():
    process = make_process("vp_betas", schedule="ddgan", steps=4)
    program = build_program("ddgan", process, "sample", 4, latent=100)
    drawn = [i for i in program.instructions if isinstance(i, Noise)]
    assert [i.shape for i in drawn] == [(100,), None] * 3 + [(100,)]
    assert len({i.draw for i in drawn}) == 7
    assert program_times(program) == [3.0, 2.0, 1.0, 0.0]
    seen = []

    def net(x, t, latent):
        seen.append(latent.shape)
        return 0.1 * x

    interpret(program, {"denoiser": net}, {"x_T": np.zeros((2, 3, 4, 4))})
    assert seen == [(2, 100)] * 4


# Section 3.8, T = 4, and section 3.9, T = 5: (c1 on x0, c2 on x, standard deviation) of each index
DDGAN = {
    "beta": [0.4782553, 0.8492060, 0.9564177, 0.9874039],
    "c1": [1.0, 0.66577836, 0.26919089, 0.05782154],
    "c2": [0.0, 0.20157628, 0.19300081, 0.11185234],
    "std": [0.0, 0.66394213, 0.94032039, 0.99199834],
}
PRODIFF = {
    "beta": [0.5586866, 0.9105433, 0.9818666, 0.9963243, 0.9992549],
    "c1": [1.0, 0.62974834, 0.19522868, 0.02665763, 0.00162095],
    "c2": [0.0, 0.17396733, 0.12943678, 0.06058466, 0.02729634],
    "std": [0.0, 0.72774774, 0.97148322, 0.9978044, 0.99962607],
}


def posterior_coefficients(program):
    """Per step (c1 on the network's output, c2 on the state, standard deviation), in the program's order of steps.

    A step without an update returns the network's output itself.
    """
    outputs, drawn, rows = set(), set(), []
    evaluated = False
    for i in program.instructions:
        if isinstance(i, Eval):
            if evaluated:
                raise AssertionError("two evaluations in a step")
            (out,) = next(iter(i.outputs.values()))
            outputs, evaluated = {out}, True
        elif isinstance(i, Noise) and i.shape is None:
            drawn = {i.out}
        elif isinstance(i, Lincomb):
            row = [0.0, 0.0, 0.0]
            for c, name in i.terms:
                row[0 if name in outputs else 2 if name in drawn else 1] += c
            rows.append(row)
            evaluated = False
    return rows + ([[1.0, 0.0, 0.0]] if evaluated else [])


def test_ddgan_has_the_coefficients_of_the_specification():
    process = make_process("vp_betas", schedule="ddgan", steps=4)
    rows = posterior_coefficients(build_program("ddgan", process, "sample", 4))
    np.testing.assert_allclose(rows[::-1], np.transpose([DDGAN[k] for k in ("c1", "c2", "std")]), atol=6e-9)


def test_prodiff_teacher_has_the_coefficients_of_the_specification():
    process = make_process("vp_betas", schedule="prodiff", steps=5)
    program = build_program("prodiff", process, "sample", 5, grid=[4.0, 3.0, 2.0, 1.0, 0.0, -1.0])
    np.testing.assert_allclose(posterior_coefficients(program)[::-1], np.transpose([PRODIFF[k] for k in ("c1", "c2", "std")]), atol=6e-9)


def test_released_prodiff_teacher_visits_3_2_1_0():
    """Section 3.9, trap (c): of the five betas the last is not visited."""
    process = make_process("vp_betas", schedule="prodiff", steps=5)
    program = build_program("prodiff", process, "sample", 4, grid=[3.0, 2.0, 1.0, 0.0, -1.0])
    assert program_times(program) == [3.0, 2.0, 1.0, 0.0]
    np.testing.assert_allclose(posterior_coefficients(program)[::-1], np.transpose([PRODIFF[k][:4] for k in ("c1", "c2", "std")]), atol=6e-9)


def test_prodiff_student_visits_2_then_0_with_the_coefficients_of_those_indices():
    process = make_process("vp_betas", schedule="prodiff", steps=5)
    program = build_program("prodiff", process, "sample", 2)
    assert program_times(program) == [2.0, 0.0]
    wanted = [[PRODIFF[k][index] for k in ("c1", "c2", "std")] for index in (2, 0)]
    np.testing.assert_allclose(posterior_coefficients(program), wanted, atol=6e-9)


@pytest.mark.parametrize(("schedule", "listed"), [("ddgan", DDGAN), ("prodiff", PRODIFF)])
def test_the_betas_of_the_specification_are_those_of_the_process(schedule, listed):
    process = make_process("vp_betas", schedule=schedule, steps=len(listed["beta"]))
    squares = process.alpha(np.arange(-1.0, len(listed["beta"]))) ** 2
    np.testing.assert_allclose(1 - squares[1:] / squares[:-1], listed["beta"], atol=6e-8)


def test_ddgan_coefficients_are_not_those_of_neighbouring_betas():
    """The negative control: the table shifted by one index is far from the program's."""
    process = make_process("vp_betas", schedule="ddgan", steps=4)
    rows = np.array(posterior_coefficients(build_program("ddgan", process, "sample", 4)))[::-1]
    assert np.abs(rows[1:] - np.transpose([DDGAN[k] for k in ("c1", "c2", "std")])[:-1]).max() > 0.1


# MeanFlow


def flow_map(x, t, r):
    """The exact flow of Gaussian data along x_t = (1 - t) x0 + t eps."""

    def spread(k):
        return math.sqrt(((1 - k) * DEVIATION) ** 2 + k * k)

    return (1 - r) * MEAN + spread(r) / spread(t) * (x - (1 - t) * MEAN)


@pytest.mark.parametrize("conditioning", ["t_r", "t_h"])
@pytest.mark.parametrize("steps", [1, 2, 5, 17])
def test_meanflow_with_the_exact_average_velocity_is_exact_at_any_number_of_steps(steps, conditioning):
    def average(x, t, r):
        end = float(r) if conditioning == "t_r" else float(t) - float(r)
        return (x - flow_map(x, float(t), end)) / (float(t) - end)

    program = build_program("meanflow", FLOW, "average_velocity", steps, conditioning=conditioning)
    x = np.linspace(-2.0, 2.0, 9)
    found = interpret(program, {"denoiser": average}, {"x_T": x}, dtype=np.float64)["sample"]
    np.testing.assert_allclose(found, flow_map(x, 1.0, 0.0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(affine_statistics(program, {"denoiser": average}, (0.0, 1.0)), (MEAN, DEVIATION), rtol=0, atol=1e-13)


@pytest.mark.parametrize("conditioning", ["t_r", "t_h"])
def test_meanflow_reads_the_end_or_the_length_of_the_step_not_the_other(conditioning):
    def average(x, t, r):  # reads its second time the wrong way round
        end = float(t) - float(r) if conditioning == "t_r" else float(r)
        return (x - flow_map(x, float(t), end)) / max(float(t) - end, 1e-9)

    program = build_program("meanflow", FLOW, "average_velocity", 3, conditioning=conditioning)
    assert abs(affine_statistics(program, {"denoiser": average}, (0.0, 1.0))[1] - DEVIATION) > 1e-2


def test_euler_with_the_instantaneous_velocity_is_not_exact():
    program = build_program("euler", FLOW, "flow", 5)
    found = affine_statistics(program, gaussian_network(FLOW, "flow"), (0.0, 1.0))
    assert abs(found[1] - DEVIATION) > 0.05


# MR Sampler

MR_COMPAT, MR_EXACT = make_process("mean_reverting", compat=True), make_process("mean_reverting")
SIGMA_INF = 50 / 255


@pytest.mark.parametrize("process", [MR_COMPAT, MR_EXACT], ids=["compat", "exact"])
def test_the_tables_of_mr_sampler_are_those_of_the_specification(process):
    assert abs(float(process.alpha(0)) - 0.99994) < 5e-6
    assert abs(float(process.sigma(0)) - 0.00222) < 5e-6
    assert abs(float(process.lam(0)) - 6.11) < 5e-3
    assert abs(float(process.alpha(100)) - 0.005) < 1e-12
    assert abs(float(process.lam(100)) + 3.669) < 5e-4


def mr_tables():
    """Section 3.5, literally: the released code's schedule for T = 100."""
    k = np.arange(103)
    bar = np.cos((k / 102 + 0.008) / 1.008 * math.pi / 2) ** 2
    bar = bar / bar[0]
    theta = 1 - bar[1:102]
    dt = -math.log(0.005) / theta.sum()
    alpha = np.exp(-dt * np.cumsum(theta))
    sigma = SIGMA_INF * np.sqrt(1 - alpha**2)
    return alpha, sigma, np.log(alpha / sigma)


@pytest.mark.parametrize("process", [MR_COMPAT, MR_EXACT], ids=["compat", "exact"])
def test_fractional_indices_are_interpolated_as_the_mode_says(process):
    alpha, sigma, lam = mr_tables()
    t = np.array([0.0, 3.0, 12.25, 50.5, 99.9, 100.0])
    index = np.arange(101)
    np.testing.assert_allclose(process.alpha(index), alpha, rtol=1e-13)
    np.testing.assert_allclose(process.sigma(index), sigma, rtol=1e-11)
    np.testing.assert_allclose(process.lam(index), lam, rtol=0, atol=1e-11)
    if process.compat:
        wanted = [np.interp(t, index, table) for table in (alpha, sigma, lam)]
    else:
        a = np.exp(np.interp(t, index, np.log(alpha)))
        s = SIGMA_INF * np.sqrt(1 - a**2)
        wanted = [a, s, np.log(a / s)]
    for found, table in zip((process.alpha(t), process.sigma(t), process.lam(t)), wanted, strict=True):
        np.testing.assert_allclose(found, table, rtol=1e-10, atol=1e-11)


def mr_reference(process, times, form, order, sde, x, mu, draws, *, denoise_last=False, mean_from_weights=False):
    """Section 3.5, items 2 and 6(b), in the variable x itself: multistep ODE and SDE formulas with their mu-terms."""

    def at(t):
        return float(process.alpha(t)), float(process.sigma(t)), float(process.lam(t))

    n = len(times) - 1
    history = []
    for i, (s, t) in enumerate(pairwise(times)):
        (a, b, ls), (c, d, lt) = at(s), at(t)
        noise = gaussian_noise(MEAN, DEVIATION)(x - mu, a, b)
        data = (x - mu - b * noise) / a + mu
        if denoise_last and i == n - 1:
            return data
        history = [(ls, noise if form == "noise" else data), *history][:3]
        h = lt - ls
        used = min(order, i + 1)
        if n < 10 and i < n - 1:
            used = min(used, n - 1 - i)
        m = [v for _, v in history]
        d1 = d2 = 0.0
        if used > 1:
            r0 = (history[0][0] - history[1][0]) / h
            d1 = (m[0] - m[1]) / r0
        if used > 2:
            r1 = (history[1][0] - history[2][0]) / h
            second = (m[1] - m[2]) / r1
            d2 = (d1 - second) / (r0 + r1)
            d1 = d1 + r0 / (r0 + r1) * (d1 - second)
        e = math.expm1
        if form == "noise":
            k = 2.0 if sde else 1.0
            p = [e(h), e(h) / h - 1, (e(h) / h - 1) / h - 0.5]
            moved = c / a * x - k * d * (p[0] * m[0] + p[1] * d1 + p[2] * d2) + mu * (1 - c / a)
            z = d * math.sqrt(e(2 * h))
        elif not sde:
            p = [e(-h), e(-h) / -h - 1, (e(-h) / -h - 1) / -h - 0.5]
            weight = 1 - d / b + c * p[0] if mean_from_weights else 1 - d / b + a * d / b - c
            moved = d / b * x - c * (p[0] * m[0] + p[1] * d1 + p[2] * d2) + mu * weight
            z = 0.0
        else:
            q = -e(-2 * h)
            moved = d / b * math.exp(-h) * x + c * q * m[0] + c * (1 - q / (2 * h)) * d1 + mu * (1 - c / a * math.exp(-2 * h) - c * q)
            z = d * math.sqrt(q)
        x = moved + (z * next(draws) if sde else 0.0)
    return x


def mr_run(process, steps, times, mu, y, change=lambda program: program, **options):
    program = change(build_program("mrs", process, "epsilon", steps, grid=times, low=-99.0, high=99.0, **options))
    networks = {"denoiser": network(process, "epsilon", gaussian_noise(MEAN, DEVIATION))}
    return interpret(program, networks, {"x_T": y, "mu": np.full(y.shape, mu)}, seed=3, dtype=np.float64)["sample"]


MRS = [(form, order, sde) for form in ("data", "noise") for sde in (False, True) for order in (1, 2, 3) if not (sde and order == 3)]


@pytest.mark.parametrize("steps", [5, 12])
@pytest.mark.parametrize(("form", "order", "sde"), MRS)
@pytest.mark.parametrize("process", [MR_COMPAT, MR_EXACT], ids=["compat", "exact"])
def test_mrs_equals_the_formulas_of_the_specification_around_mu(process, form, order, sde, steps):
    times = np.linspace(100.0, 0.0, steps + 1)
    y, mu = np.linspace(-0.4, 0.4, 5), 0.6
    draws = (normals(3, k, (5,)).astype(np.float64) for k in range(1, steps + 1))
    wanted = mr_reference(process, times, form, order, sde, y + mu, mu, draws)
    found = mr_run(process, steps, times, mu, y, form=form, order=order, sde=sde)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", ["data", "noise"])
def test_mrs_with_denoise_last_returns_the_data_estimate(form):
    times = np.linspace(100.0, 0.0, 7)
    y, mu = np.linspace(-0.4, 0.4, 5), 0.6
    wanted = mr_reference(MR_EXACT, times, form, 2, False, y + mu, mu, iter(()), denoise_last=True)
    np.testing.assert_allclose(mr_run(MR_EXACT, 6, times, mu, y, form=form, denoise_last=True), wanted, rtol=0, atol=1e-11)


def test_the_term_of_mu_matters_where_the_tables_disagree():
    """Section 3.5, trap (a): with interpolated tables 1 - a - sum(w) is another term. On consistent tables it is the same."""
    y, mu = np.linspace(-0.4, 0.4, 5), 0.6
    times = np.linspace(100.0, 0.0, 8)
    for process, least, most in ((MR_COMPAT, 1e-6, 1.0), (MR_EXACT, 0.0, 1e-11)):
        other = mr_reference(process, times, "data", 2, False, y + mu, mu, iter(()), mean_from_weights=True)
        gap = np.abs(mr_run(process, 7, times, mu, y) - other).max()
        assert least <= gap <= most, gap


def test_a_wrong_weight_of_mrs_is_seen():
    times = np.linspace(100.0, 0.0, 13)
    y, mu = np.linspace(-0.4, 0.4, 5), 0.6
    wanted = mr_reference(MR_COMPAT, times, "data", 2, False, y + mu, mu, iter(()))
    broken = mr_run(MR_COMPAT, 12, times, mu, y, lambda p: changed(p, 5, lambda terms: [*terms[:-1], (terms[-1][0] + 1e-6, terms[-1][1])]))
    assert np.abs(broken - wanted).max() > 1e-8


def test_mrs_has_the_posterior_of_the_mean_reverting_process():
    """Section 3.5, item 2: the posterior baseline's mean and variance for one step from index k to k - 1."""
    k, mu = 40, 0.6
    B, C = (float(MR_EXACT.alpha(t)) for t in (k, k - 1))
    A = B / C
    program = build_program("mrs", MR_EXACT, "sample", 1, grid=[float(k), k - 1.0], order=1, sde=True, low=-99.0, high=99.0)
    x0 = 0.9
    out = affine_outputs(program, {"denoiser": lambda x, t: x0}, (0.25, 0.0), {"mu": mu})["sample"]
    mean = mu + A * (1 - C**2) / (1 - B**2) * 0.25 + C * (1 - A**2) / (1 - B**2) * (x0 - mu)
    variance = SIGMA_INF**2 * (1 - A**2) * (1 - C**2) / (1 - B**2)
    np.testing.assert_allclose((out[0], np.sum(out[1:] ** 2)), (mean, variance), rtol=0, atol=1e-13)


@pytest.mark.parametrize("process", [MR_COMPAT, MR_EXACT], ids=["compat", "exact"])
def test_mrs_starts_from_noise_of_the_stationary_deviation(process):
    program = build_program("mrs", process, "epsilon", 5)
    assert {i.name: i.scale for i in program.inputs if i.kind == "noise"} == {"x_T": SIGMA_INF}


@pytest.mark.parametrize(("form", "sde"), [("data", False), ("noise", False), ("data", True), ("noise", True)])
def test_mrs_has_the_mean_and_deviation_of_gaussian_data_around_mu(form, sde):
    mu, times = 0.6, np.linspace(100.0, 0.0, 401)
    program = build_program("mrs", MR_EXACT, "epsilon", 400, grid=times, form=form, sde=sde, order=2, low=-99.0, high=99.0)
    start = gaussian_law(MR_EXACT, 100.0, MEAN - mu, 0.2)
    networks = {"denoiser": network(MR_EXACT, "epsilon", gaussian_noise(MEAN - mu, 0.2))}
    mean, deviation = gaussian_law(MR_EXACT, 0.0, MEAN - mu, 0.2)
    found = affine_statistics(program, networks, start, {"mu": mu})
    assert abs(found[0] - mu - mean) < 1e-12
    assert abs(found[1] - deviation) < 1e-4


# SA-Solver and the singlestep SDE solver


def test_sa_solver_with_tau_zero_draws_nothing():
    program = build_program("sa_solver", VP, "epsilon", 8, tau=0.0, t_end=0.01)
    assert not any(isinstance(i, Noise) for i in program.instructions)


def test_sa_solver_is_silent_outside_its_interval():
    program = build_program("sa_solver", VP, "epsilon", 10, grid=np.linspace(1.0, 0.1, 11), tau=1.0)
    starts = np.linspace(1.0, 0.1, 11)[:-1]
    assert sum(isinstance(i, Noise) for i in program.instructions) == sum((starts >= 0.2) & (starts <= 0.8))


@pytest.mark.parametrize("tau", [0.4, 1.0])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 0), (2, 0), (2, 2), (3, 3)])
def test_every_step_of_sa_solver_draws_once_and_its_corrector_reads_the_same_draw(predictor, corrector, tau):
    steps = 9
    options = dict(predictor_order=predictor, corrector_order=corrector, tau=tau, tau_low=0.0, tau_high=1.0)
    program = build_program("sa_solver", VP, "sample", steps, grid="lambda", t_start=0.9, t_end=0.05, **options)
    assert sum(isinstance(i, Noise) for i in program.instructions) == steps
    # a network that returns nothing leaves the sum of independent noises: each draw once, decayed by the later steps
    out = affine_outputs(program, {"denoiser": lambda x, t: 0.0}, (0.0, 1.0))["sample"]
    times = [0.9, *(s.time for s in program.steps)]
    lam, sigma = VP.lam(times), VP.sigma(times)
    decay = sigma[-1] / sigma * np.exp(-(tau**2) * (lam[-1] - lam))
    spread = sigma[1:] * np.sqrt(1 - np.exp(-2 * tau**2 * np.diff(lam)))
    np.testing.assert_allclose(out, [0.0, decay[0], *(spread * decay[1:])], rtol=0, atol=1e-13)


def test_a_corrector_with_a_fresh_draw_would_be_seen():
    program = build_program("sa_solver", VP, "sample", 6, grid="lambda", t_start=0.9, t_end=0.05, tau=1.0, tau_low=0.0, tau_high=1.0)
    out = affine_outputs(program, {"denoiser": lambda x, t: 0.0}, (0.0, 1.0))["sample"]
    other = affine_outputs(with_draw(program, 2, 99), {"denoiser": lambda x, t: 0.0}, (0.0, 1.0))["sample"]
    assert np.abs(out[1:8] - other[1:8]).max() > 1e-3


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_two_noises_of_a_singlestep_sde_step_are_increments_of_one_brownian_path(eta):
    """W(rho) at the middle and at the end: the variances are rho_up^2 of each, and their correlation is sqrt of the ratio of the spans."""
    times = [0.8, 0.5]
    program = build_program("dpmpp_sde", VP, "sample", 1, grid=times, method="singlestep", eta=eta)
    first, second = [i.draw for i in program.instructions if isinstance(i, Noise)]
    seen = []

    def net(x, t):
        seen.append(float(t))
        return 0.0

    out = affine_outputs(program, {"denoiser": net}, (0.0, 0.0))["sample"]
    here, there = (float(VP.sigma(t) / VP.alpha(t)) for t in times)
    middle = math.sqrt(here * there)
    up = min(there, eta * there * math.sqrt(1 - (there / here) ** 2))
    found = out / float(VP.alpha(times[1]))
    assert abs(np.sum(found**2) - up**2) < 1e-13
    np.testing.assert_allclose((found[first + 1] / up) ** 2, (here - middle) / (here - there), rtol=1e-12)
    np.testing.assert_allclose((found[second + 1] / up) ** 2, (middle - there) / (here - there), rtol=1e-12)


def test_the_middle_state_of_a_singlestep_sde_step_has_the_noise_of_its_own_ancestral_step():
    program = build_program("dpmpp_sde", VP, "sample", 1, grid=[0.8, 0.5], method="singlestep")
    here, there = (float(VP.sigma(t) / VP.alpha(t)) for t in (0.8, 0.5))
    middle = math.sqrt(here * there)
    # the second evaluation returns its state: with x_T = 0 that is the noise at the middle
    states = iter([lambda x: 0.0, lambda x: x])
    current = {}

    def net(x, t):
        if t not in current:
            current[t] = next(states)
        return current[t](x)

    out = affine_outputs(program, {"denoiser": net}, (0.0, 0.0))["sample"]
    still = affine_outputs(program, {"denoiser": lambda x, t: 0.0}, (0.0, 0.0))["sample"]
    draw = next(i.draw for i in program.instructions if isinstance(i, Noise))
    alpha = 1 / math.sqrt(1 + middle**2)
    up = middle * math.sqrt(1 - (middle / here) ** 2)
    up_end = there * math.sqrt(1 - (there / here) ** 2)
    down_end = math.sqrt(there**2 - up_end**2)
    weight = float(VP.alpha(0.5)) * (1 - down_end / here)
    np.testing.assert_allclose((out - still)[draw + 1], weight * alpha * up, rtol=1e-12)
