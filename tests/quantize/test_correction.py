"""Corrections of a quantized network's output: fits of known errors, and programs against the corrected network itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgegen.diffusion import make_process
from edgegen.errors import CalibrationError
from edgegen.program import Eval, Lincomb, Muladd, Slice, interpret
from edgegen.program.rewrite import fold, single_assignment
from edgegen.quantize import corrected, fit_affine, fit_ptqd, ptqd_factors, reduced_noise
from edgegen.solvers import SOLVERS, Denoiser, Guidance, build_program

VP = make_process("vp_linear")
X = np.random.default_rng(0).standard_normal((4, 3, 5))
LABELS = np.arange(4)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def network(x, t, **rest):
    return np.tanh(0.7 * x + 0.3 * np.cos(float(np.mean(t)))) + 0.1


def times_of(program, component="denoiser"):
    """As the network is told them in float32: some solvers come back to a time by another way, and miss it by float64's rounding."""
    values = [o.value for i in program.instructions if isinstance(i, Eval) and i.component == component for o in i.inputs["t"]]
    return sorted({float(np.float32(v)) for v in values})


def factors_of(program):
    """Different numbers at each time."""
    return {t: (1.0 - 0.05 * k, 0.02 * k - 0.03, 0.01 * (k + 1)) for k, t in enumerate(times_of(program))}


def lincombs(program):
    return sum(isinstance(i, Lincomb) for i in program.instructions)


def run(program, net=network, **inputs):
    return interpret(program, {"denoiser": net}, {"x_T": X} | inputs, dtype=np.float64, seed=3)["sample"]


# --- fits


@pytest.mark.parametrize(("k", "seed"), [(0.0, 1), (0.08, 2), (0.5, 3)])
def test_ptqd_finds_the_known_slope_bias_and_noise(k, seed):
    reference = normal(256, 3, 8, 8, seed=seed) + np.array([0.0, 1.0, -0.5]).reshape(1, 3, 1, 1)
    bias, sigma = np.array([0.1, -0.2, 0.05]), 0.07
    noise = sigma * normal(*reference.shape, seed=seed + 10)
    quantized = (1 + k) * reference + bias.reshape(1, 3, 1, 1) + noise
    found_k, found_bias, found_sigma = fit_ptqd(reference.astype(np.float32), quantized.astype(np.float32))
    error = sigma / math.sqrt(reference.size)
    assert abs(found_k - k) < 5 * error and found_k >= 0
    np.testing.assert_allclose(found_bias, bias, atol=20 * error)
    assert found_sigma == pytest.approx(sigma, rel=0.01)
    a, b, c = ptqd_factors(found_k, found_bias)
    restored = a * quantized + b.reshape(1, 3, 1, 1) + c
    assert (restored - reference).std() == pytest.approx(sigma / (1 + k), rel=0.01)
    assert abs((restored - reference).mean()) < 10 * error


def test_ptqd_leaves_a_negative_slope_alone():
    reference = normal(16, 2, 8, 8)
    k, bias, sigma = fit_ptqd(reference, 0.9 * reference + 0.25)
    assert k == 0.0
    np.testing.assert_allclose(bias, 0.25 - 0.1 * reference.mean(axis=(0, 2, 3)), atol=1e-12)
    assert sigma == pytest.approx(0.1 * (reference - reference.mean(axis=(0, 2, 3), keepdims=True)).std())
    assert fit_ptqd(np.zeros((4, 2, 3)), np.full((4, 2, 3), 0.5)) == (0.0, pytest.approx([0.5, 0.5]), 0.0)


def test_the_affine_fit_is_numpys_least_squares():
    x, quantized = normal(64, 2, 6, 6, seed=1), normal(64, 2, 6, 6, seed=2)
    reference = 0.9 * quantized + 0.3 + 0.2 * x + 0.1 * normal(64, 2, 6, 6, seed=3)
    for columns in ([quantized], [quantized, x]):
        table = np.stack([columns[0].ravel(), np.ones(quantized.size), *(c.ravel() for c in columns[1:])], axis=1)
        wanted = np.linalg.lstsq(table, reference.ravel())[0]
        found = fit_affine(reference, *columns)
        np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=1e-9)
        assert len(columns) == 2 or found[2] == 0.0
    each = fit_affine(reference, quantized, x, per_channel=True)
    for c in range(2):
        alone = fit_affine(reference[:, c : c + 1], quantized[:, c : c + 1], x[:, c : c + 1])
        np.testing.assert_allclose([v[c] for v in each], alone, rtol=1e-12)
    assert each[0].shape == (2,) and abs(each[0][0] - each[0][1]) > 1e-5


def test_a_fit_that_tells_nothing_changes_nothing():
    reference = normal(32, 1, 4, 4)
    assert fit_affine(reference, reference) == (1.0, 0.0, 0.0)  # exact already
    assert fit_affine(reference, np.full_like(reference, 0.5)) == (1.0, 0.0, 0.0)  # a constant
    assert fit_affine(reference[:1], 1.1 * reference[:1]) == (1.0, 0.0, 0.0)  # one sample: nothing to check a fit with
    pure = [fit_affine(normal(4, 1, 2, seed=s), normal(4, 1, 2, seed=s) + 1e-3 * normal(4, 1, 2, seed=s + 99)) for s in range(40)]
    assert sum(f == (1.0, 0.0, 0.0) for f in pure) > 20  # noise alone is mostly left alone
    a, b, c = fit_affine(reference, 2.0 * reference - 1.0, 3.0 * reference)  # x says the same as the output: it is left out
    assert (a, b, c) == (pytest.approx(0.5), pytest.approx(0.5), 0.0)


@pytest.mark.parametrize("fit", [fit_ptqd, fit_affine])
def test_what_cannot_be_fitted_is_refused(fit):
    for bad, message in [
        ((np.zeros((2, 3)), np.zeros((2, 4))), r"one shape .* found \[2, 3\], \[2, 4\]|one shape .* found \[2, 4\], \[2, 3\]"),
        ((np.zeros(3), np.zeros(3)), "one shape"), ((np.zeros((0, 3)), np.zeros((0, 3))), "one shape"),
        ((np.zeros((2, 3)), np.full((2, 3), np.nan)), "NaN"),
    ]:  # fmt: skip
        with pytest.raises(CalibrationError, match=message):
            fit(*bad)


# --- noise


def ddim_lambda(abar, abar_prev, sigma):
    return math.sqrt(1 - abar_prev - sigma**2) - math.sqrt(abar_prev) * math.sqrt(1 - abar) / math.sqrt(abar)


def test_the_specs_lambda_is_what_a_step_multiplies_the_output_with():
    """And at eta = 1 it is DDPM's, beta_t / (sqrt(alpha_t) sqrt(1 - abar_t)), up to sign."""
    grid = [0.9, 0.6]
    abar, abar_prev = (float(VP.alpha(t)) ** 2 for t in grid)
    for eta in (0.0, 0.5, 1.0):
        program = build_program("ddim", VP, "epsilon", 1, grid=grid, eta=eta)
        slope = run(program, lambda x, t: np.ones_like(x)) - run(program, lambda x, t: np.zeros_like(x))
        sigma = eta * math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
        np.testing.assert_allclose(slope, ddim_lambda(abar, abar_prev, sigma), rtol=1e-9)
    alpha = abar / abar_prev
    assert ddim_lambda(abar, abar_prev, sigma) == pytest.approx(-(1 - alpha) / (math.sqrt(alpha) * math.sqrt(1 - abar)))


def test_reduced_noise_and_quantization_noise_make_the_samplers_noise():
    abar, abar_prev, s, k = 0.5, 0.7, 0.2, 0.1
    sigma = math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
    lam = ddim_lambda(abar, abar_prev, sigma)
    reference = normal(200, 2, 16, 16, seed=4)
    quantized = (1 + k) * reference + s * normal(200, 2, 16, 16, seed=5)
    found_k, bias, rest = fit_ptqd(reference, quantized)
    a, b, _ = ptqd_factors(found_k, bias)
    less = reduced_noise(sigma, lam, rest / (1 + found_k))
    assert 0 < less < sigma
    total = lam * (a * quantized + b.reshape(1, 2, 1, 1) - reference) + less * normal(200, 2, 16, 16, seed=6)
    assert total.std() == pytest.approx(sigma, rel=0.01)
    assert reduced_noise(0.1, 1.0, 0.2) == 0.0 and reduced_noise(0.0, 1.0, 0.2) == 0.0
    assert reduced_noise(0.5, -0.6, 0.5) == pytest.approx(0.4)  # 3 - 4 - 5


# --- programs


def test_ddim_corrected_is_the_trajectory_by_hand():
    grid = [0.9, 0.5, 0.2]
    program = build_program("ddim", VP, "epsilon", 2, grid=grid)
    factors = {0.9: (0.9, 0.05, 0.02), 0.5: (1.1, -0.03, -0.04)}
    x = X
    for t, t_next in ((0.9, 0.5), (0.5, 0.2)):
        a, b, c = factors[t]
        e = a * network(x, t) + b + c * x
        alpha, sigma, alpha_next, sigma_next = (float(f(u)) for u in (t, t_next) for f in (VP.alpha, VP.sigma))
        x = alpha_next * (x - sigma * e) / alpha + sigma_next * e
    better = corrected(program, "denoiser", factors)
    np.testing.assert_allclose(run(better), x, rtol=1e-12)
    assert lincombs(better) == lincombs(program) == 2 and len(better.instructions) == len(program.instructions)
    assert better.steps == program.steps and better.nfe == program.nfe and better.name == program.name


COSTS_ONE = {"deis", "deis_rk", "dpm_solver", "heun", "ipndm", "lms", "pndm"}
"""Solvers that read a raw output more than once: a correction costs them one combination. It is free for all others."""


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"gl_lcm", "mrs", "meanflow", "prodiff", "ddgan"}))
def test_every_solver_corrected_equals_itself_on_a_corrected_network(solver):
    program = build_program(solver, VP, "epsilon", 4)
    factors = factors_of(program)
    seen = []

    def better_network(x, t):
        a, b, c = factors[min(factors, key=lambda k: abs(k - float(t)))]
        seen.append(float(t))
        return a * network(x, t) + b + c * x

    better = corrected(program, "denoiser", factors)
    wanted = run(program, better_network)
    np.testing.assert_allclose(run(better), wanted, rtol=1e-9, atol=1e-11)
    assert np.abs(run(program) - wanted).max() > 1e-3
    assert {float(np.float32(t)) for t in seen} == set(factors)
    assert lincombs(fold(single_assignment(better))) == lincombs(better)
    assert lincombs(better) - lincombs(program) <= (program.nfe["denoiser"] if solver in COSTS_ONE else 0)


@pytest.mark.parametrize("batched", [True, False])
def test_each_branch_of_guidance_is_corrected(batched):
    def labelled(x, t, label):
        return network(x, t) + 0.1 * np.where(np.asarray(label) == 10, 0.0, 1.0 + np.asarray(label)).reshape(-1, 1, 1)

    def better_network(x, t, label):
        a, b, c = factors[min(factors, key=lambda k: abs(k - float(np.mean(t))))]
        return a * labelled(x, t, label) + b + c * x

    program = build_program("dpmpp_2m", VP, "epsilon", 4, guidance=Guidance(3.0, {"label": 10}, batched), model=Denoiser(conditions=("label",)))
    factors = factors_of(program)
    better = corrected(program, "denoiser", factors)
    np.testing.assert_allclose(run(better, labelled, label=LABELS), run(program, better_network, label=LABELS), rtol=1e-10)
    assert lincombs(better) == lincombs(program)


def test_x_is_the_scaled_input_without_joined_conditions_and_a_cut_output_is_corrected_after_the_cut():
    edm = make_process("edm")
    model = Denoiser("net", "sample", "sigma", "out", concat=("low",), channels=3)
    program = build_program("heun", edm, "edm", 3, model=model)
    times = sorted({o.value for i in program.instructions if isinstance(i, Eval) for o in i.inputs["sigma"]})
    factors = {t: (1.0 - 0.1 * k, 0.02 * k, 0.03) for k, t in enumerate(times)}
    low = normal(4, 2, 5, seed=8)

    def wide(sample, sigma):
        return np.concatenate([network(sample, sigma)[:, :3] + sample[:, 3:4], sample[:, :1]], axis=1)

    def better_network(sample, sigma):
        a, b, c = factors[min(factors, key=lambda k: abs(k - float(sigma)))]
        out = wide(sample, sigma)
        out[:, :3] = a * out[:, :3] + b + c * sample[:, :3]
        return out

    better = corrected(program, "net", factors, x="sample", t="sigma", output="out")
    assert any(isinstance(i, Slice) for i in program.instructions)
    inputs = {"x_T": X, "low": low}
    wanted = interpret(program, {"net": better_network}, inputs, dtype=np.float64)["sample"]
    np.testing.assert_allclose(interpret(better, {"net": wide}, inputs, dtype=np.float64)["sample"], wanted, rtol=1e-9)


@pytest.mark.parametrize("c", [0.05, np.array([0.02, 0.04, 0.06])])
def test_x_is_what_the_network_is_fed(c):
    """EDM scales the state by 1 / sqrt(sigma^2 + sigma_data^2)."""
    program = build_program("heun", make_process("edm"), "edm", 3)
    assert any(o.scale != 1.0 for i in program.instructions if isinstance(i, Eval) for o in i.inputs["x"])
    better = corrected(program, "denoiser", dict.fromkeys(times_of(program), (0.9, 0.1, c)))
    wanted = run(program, lambda x, t: 0.9 * network(x, t) + 0.1 + np.reshape(c, (-1, 1)) * x)
    np.testing.assert_allclose(run(better), wanted, rtol=1e-9)


@pytest.mark.parametrize("c", [0.0, 0.05])
def test_factors_per_channel(c):
    program = build_program("ddim", VP, "epsilon", 3)
    a, b = np.array([0.9, 1.0, 1.1]), np.array([0.1, 0.0, -0.1])
    factors = {t: (a, b, c * np.array([1.0, 2.0, 3.0])) for t in times_of(program)}

    def better_network(x, t):
        return a[:, None] * network(x, t) + b[:, None] + c * np.array([1.0, 2.0, 3.0])[:, None] * x

    better = corrected(program, "denoiser", factors)
    np.testing.assert_allclose(run(better), run(program, better_network), rtol=1e-10)
    assert sum(isinstance(i, Muladd) for i in better.instructions) == (6 if c else 3)


def test_times_are_compared_as_the_network_is_told_them():
    program = build_program("ddim", VP, "epsilon", 3, grid=[0.9, 0.7, 0.3, 0.1])
    exact = dict.fromkeys((0.9, 0.7, 0.3), (0.9, 0.0, 0.0))
    rounded = {float(np.float32(t)): f for t, f in exact.items()}
    assert corrected(program, "denoiser", rounded) == corrected(program, "denoiser", exact)


def test_factors_that_are_missing_or_no_numbers_are_refused():
    program = build_program("ddim", VP, "epsilon", 3, grid=[0.9, 0.7, 0.3, 0.1])
    with pytest.raises(CalibrationError, match=r"program 'ddim-3': no factors for 'denoiser' at 0.3, 0.9; fit them"):
        corrected(program, "denoiser", {0.7: (1.0, 0.0, 0.0)})
    with pytest.raises(CalibrationError, match=r"factors of time 0.7 are not finite"):
        corrected(program, "denoiser", {t: (1.0, math.nan if t == 0.7 else 0.0, 0.0) for t in (0.9, 0.7, 0.3)})
    assert corrected(program, "another", {}) == program


def test_corrections_of_one_and_nothing_change_nothing():
    for solver in ("ddim", "dpmpp_2m", "heun", "deis"):
        program = build_program(solver, VP, "epsilon", 4)
        same = corrected(program, "denoiser", dict.fromkeys(times_of(program), (1.0, 0.0, 0.0)))
        np.testing.assert_array_equal(run(same), run(program))
        assert len(same.instructions) == len(program.instructions)
