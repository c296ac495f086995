"""Processes, predictions and grids against closed forms, round trips and diffusers' tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from edgegen.diffusion import PREDICTIONS, convert, data_coefficients, make_grid, make_process, noise_coefficients
from edgegen.errors import ProgramError, Status

NAMES = ["vp_linear", "vp_cosine", "vp_betas", "edm", "flow"]


def inner_times(process):
    last = process.t_max if np.isfinite(process.t_max) else process.t_first
    return np.linspace(process.t_floor, last * 0.99, 301)


@pytest.mark.parametrize("name", NAMES)
def test_lambda_and_its_inverse_agree(name):
    process = make_process(name)
    t = inner_times(process)
    np.testing.assert_allclose(process.inverse_lambda(process.lam(t)), t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vp_linear", "vp_cosine", "vp_betas"])
def test_variance_is_preserved(name):
    process = make_process(name)
    t = inner_times(process)
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1.0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_lambda_is_the_log_ratio_and_falls_with_time(name):
    process = make_process(name)
    t = inner_times(process)
    np.testing.assert_allclose(process.lam(t), np.log(process.alpha(t) / process.sigma(t)), atol=1e-10)
    assert (np.diff(process.lam(t)) < 0).all()


def test_vp_linear_is_the_integral_of_beta():
    process = make_process("vp_linear", beta_min=0.1, beta_max=20.0)
    for t in (0.01, 0.3, 1.0):
        integral, _ = quad(lambda s: 0.1 + s * 19.9, 0, t)
        assert float(process.alpha(t)) == pytest.approx(np.exp(-0.5 * integral), rel=1e-13)


def test_vp_betas_equals_the_cumulative_product_and_is_clean_at_minus_one():
    betas = np.linspace(1e-4, 0.02, 1000)
    process = make_process("vp_betas", betas=betas)
    np.testing.assert_allclose(process.alpha(np.arange(1000)) ** 2, np.cumprod(1 - betas), rtol=1e-12)
    assert float(process.sigma(-1.0)) == 0.0
    assert float(process.lam(-1.0)) == np.inf


def test_scaled_linear_betas_are_stable_diffusions():
    process = make_process("vp_betas", schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(process.alpha(999) ** 2, np.prod(1 - betas), rtol=1e-12)


def test_cosine_starts_at_lambda_minus_5_1():
    process = make_process("vp_cosine")
    assert float(process.lam(process.t_first)) == pytest.approx(-5.1, abs=1e-9)


@given(
    st.floats(-3, 3), st.floats(-3, 3), st.floats(0.05, 0.95), st.sampled_from(PREDICTIONS[:-1]), st.sampled_from(PREDICTIONS[:-1]),
    st.sampled_from(["vp", "flow", "ve"]),
)  # fmt: skip
def test_predictions_convert_exactly(x0, eps, u, source, target, kind):
    alpha, sigma = {"vp": (np.sqrt(1 - u * u), u), "flow": (1 - u, u), "ve": (1.0, 5 * u)}[kind]
    x = alpha * x0 + sigma * eps
    truth = {"epsilon": eps, "sample": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0, "score": -eps / sigma}
    rho, sigma_data = sigma / alpha, 0.5  # Karras et al. 2022, table 1, in their coordinates x / alpha
    c_skip, c_out = sigma_data**2 / (rho**2 + sigma_data**2), rho * sigma_data / np.sqrt(rho**2 + sigma_data**2)
    truth["edm"] = (x0 - c_skip * x / alpha) / c_out
    truth["edm_v"] = -truth["edm"]
    assert convert(truth[source], x, alpha, sigma, source, target) == pytest.approx(truth[target], abs=1e-9 / min(alpha, sigma) ** 2)
    c_x, c_out = data_coefficients(source, alpha, sigma)
    assert c_x * x + c_out * truth[source] == pytest.approx(x0, abs=1e-9 / alpha)
    c_x, c_out = noise_coefficients(source, alpha, sigma)
    assert c_x * x + c_out * truth[source] == pytest.approx(eps, abs=1e-9 / sigma)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", ["uniform", "quadratic", "lambda", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_grids_decrease_between_their_ends(name, grid, steps):
    process = make_process(name)
    start = 0.99 if name == "flow" else None
    times = make_grid(grid, process, steps, t_start=start)
    assert times.shape == (steps + 1,)
    assert times[0] == (start or process.t_first)
    assert times[-1] == process.t_last
    assert (np.diff(times) < 0).all()


def test_karras_grid_is_the_formula_of_the_paper():
    times = make_grid("karras", make_process("edm"), 18)
    i = np.arange(18)
    wanted = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(times[:-1], wanted, rtol=1e-12)
    assert times[-1] == 0.0


def test_lambda_grid_is_uniform_in_lambda():
    process = make_process("vp_linear")
    steps = np.diff(process.lam(make_grid("lambda", process, 10)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: make_process("vp_liner"), Status.UNKNOWN_NAME),
        (lambda: make_process("vp_linear", beta=3), Status.UNKNOWN_NAME),
        (lambda: make_process("vp_linear", beta_min=3, beta_max=1), Status.OUT_OF_RANGE),
        (lambda: make_process("vp_betas", betas=[0.1, 1.0]), Status.OUT_OF_RANGE),
        (lambda: make_process("vp_betas", betas=[]), Status.OUT_OF_RANGE),
        (lambda: make_process("edm", sigma_min=0.0), Status.OUT_OF_RANGE),
        (lambda: make_grid("lambda", make_process("flow"), 4), Status.OUT_OF_RANGE),
        (lambda: make_grid("leading", make_process("vp_betas"), 1001), Status.OUT_OF_RANGE),
        (lambda: data_coefficients("epsilon", 0.0, 1.0), Status.OUT_OF_RANGE),
        (lambda: noise_coefficients("sample", 1.0, 0.0), Status.OUT_OF_RANGE),
    ],
)
def test_bad_processes_and_grids_are_refused_with_their_code(call, code):
    with pytest.raises(ProgramError) as e:
        call()
    assert e.value.code == code
