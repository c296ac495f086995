"""Every golden row, and the order at which each solver converges to the exact ODE solution."""

from __future__ import annotations

import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edgegen.diffusion import make_process
from edgegen.program import interpret
from edgegen.solvers import build_program
from tests.analytic import X_T, exact_flow, network

ROWS = tomllib.loads((Path(__file__).parents[1] / "golden" / "solvers.toml").read_text())["row"]
VP = make_process("vp_linear", beta_min=0.1, beta_max=20.0)


def solve(solver, process, prediction, steps, x=X_T, dtype=np.float64, **options):
    program = build_program(solver, process, prediction, steps, **options)
    return interpret(program, {"denoiser": network(process, prediction)}, {"x_T": x}, dtype=dtype)["sample"]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['solver']}-{r['grid']}-{r.get('options', {}).get('variant', '')}")
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "flow"])
def test_golden_row_is_met_whatever_the_network_predicts(row, prediction):
    sample = solve(row["solver"], VP, prediction, row["steps"], grid=row["grid"], t_start=1.0, t_end=1e-3, **row.get("options", {}))
    np.testing.assert_allclose(sample, row["sample"], atol=2e-9, rtol=0)


def test_golden_row_of_the_exact_flow_is_met_by_our_reference_solution():
    wanted = [-1.558935838, -1.182293079, 0.310606167, 1.379723721, 1.681424392]
    np.testing.assert_allclose(exact_flow(VP, X_T, 1.0, 1e-3), wanted, atol=2e-9)


def test_float32_stays_within_1e_5_of_float64():
    for row in ROWS:
        options = dict(grid=row["grid"], t_end=1e-3, **row.get("options", {}))
        double = solve(row["solver"], VP, "epsilon", 10, **options)
        single = solve(row["solver"], VP, "epsilon", 10, dtype=np.float32, **options)
        np.testing.assert_allclose(single, double, atol=3e-5)


@pytest.mark.parametrize(
    ("solver", "process", "prediction", "ends", "grid", "order", "options"),
    [
        ("ddim", VP, "epsilon", (0.9, 0.05), "lambda", 1.0, {}),
        ("euler", VP, "epsilon", (0.9, 0.05), "lambda", 1.0, {}),
        ("dpmpp_2m", VP, "epsilon", (0.9, 0.05), "lambda", 2.0, {"variant": "midpoint"}),
        ("dpmpp_2m", VP, "epsilon", (0.9, 0.05), "lambda", 2.0, {"variant": "heun"}),
        ("euler", make_process("edm"), "sample", (5.0, 0.05), "karras", 1.0, {}),
        ("dpmpp_2m", make_process("edm"), "sample", (5.0, 0.05), "lambda", 2.0, {}),
        ("euler", make_process("flow"), "flow", (0.95, 0.05), "uniform", 1.0, {}),
        ("dpmpp_2m", make_process("vp_cosine"), "v", (0.9, 0.05), "lambda", 2.0, {}),
    ],
)
def test_order_of_convergence_is_within_a_quarter(solver, process, prediction, ends, grid, order, options):
    x = X_T * float(process.sigma(ends[0]))
    exact = exact_flow(process, x, *ends)
    errors = []
    for steps in (64, 128, 256):
        found = solve(solver, process, prediction, steps, x, grid=grid, t_start=ends[0], t_end=ends[1], **options)
        errors.append(np.abs(found - exact).max())
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(slopes - order).max() < 0.25, f"slopes {slopes}"


def test_a_wrong_weight_is_caught_by_order_and_golden_row():
    """The negative control: 2M with its correction dropped is DDIM, of first order."""
    program = build_program("dpmpp_2m", VP, "epsilon", 10, grid="lambda", t_end=1e-3, lower_order_final=False)
    first_order = build_program("ddim", VP, "epsilon", 10, grid="lambda", t_end=1e-3)
    net = {"denoiser": network(VP, "epsilon")}
    right = interpret(program, net, {"x_T": X_T}, dtype=np.float64)["sample"]
    wrong = interpret(first_order, net, {"x_T": X_T}, dtype=np.float64)["sample"]
    assert np.abs(right - wrong).max() > 0.1


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_euler_equals_ddim_without_noise(prediction):
    for process, grid in ((VP, "quadratic"), (make_process("vp_cosine"), "lambda")):
        ddim = solve("ddim", process, prediction, 12, grid=grid)
        euler = solve("euler", process, prediction, 12, grid=grid)
        np.testing.assert_allclose(euler, ddim, rtol=1e-12, atol=1e-13)


def test_euler_on_flow_equals_ddim_and_the_textbook_loop():
    process = make_process("flow")
    grid = np.linspace(1.0, 0.0, 9)
    net = network(process, "flow")
    x = X_T.copy()
    for t, after in pairwise(grid):
        # at t = 1 alpha is 0: x0 given pure noise is the mixture's mean
        u = x - (0.3 * -1.2 + 0.5 * 0.4 + 0.2 * 1.5) if t == 1.0 else net(x, t)
        x = x + (after - t) * u

    def with_limit(x, t):
        return x - 0.14 if t == 1.0 else net(x, t)

    for solver in ("euler", "ddim"):
        program = build_program(solver, process, "flow", 8, grid=grid)
        found = interpret(program, {"denoiser": with_limit}, {"x_T": X_T}, dtype=np.float64)["sample"]
        np.testing.assert_allclose(found, x, atol=1e-12)


def affine_statistics(program, process, mean, deviation):
    """The exact mean and standard deviation of a program's output for data N(mean, deviation^2): the network is then affine, so every
    register is (constant, weights over independent draws). No Monte Carlo."""
    draws = 1 + sum(type(i).__name__ == "Noise" for i in program.instructions)
    registers = {"x_T": np.eye(draws + 1)[1]}
    fresh = iter(range(2, draws + 1))
    for i in program.instructions:
        match type(i).__name__:
            case "Eval":
                t = i.inputs["t"][0].value
                alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
                x = registers[i.inputs["x"][0].name].copy()
                x[0] -= alpha * mean
                registers[i.outputs["prediction"][0]] = x * sigma / (alpha**2 * deviation**2 + sigma**2)
            case "Lincomb":
                registers[i.out] = sum(c * registers[name] for c, name in i.terms)
            case "Noise":
                registers[i.out] = np.eye(draws + 1)[next(fresh)]
    out = registers[program.outputs["sample"]]
    return out[0], np.sqrt((out[1:] ** 2).sum())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_reaches_the_exact_mean_and_variance_with_order_one(eta):
    mean, deviation = 0.7, 0.4
    alpha, sigma = float(VP.alpha(1e-3)), float(VP.sigma(1e-3))
    errors = []
    for steps in (80, 160, 320, 640):
        program = build_program("ddim", VP, "epsilon", steps, grid="lambda", t_end=1e-3, eta=eta)
        found_mean, found_deviation = affine_statistics(program, VP, mean, deviation)
        assert abs(found_mean - alpha * mean) < 0.01
        errors.append(abs(found_deviation - np.sqrt(alpha**2 * deviation**2 + sigma**2)))
    assert np.abs(np.log2(np.array(errors[1:-1]) / errors[2:]) - 1.0).max() < 0.25, errors
