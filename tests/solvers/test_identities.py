"""Identities between solvers (specification, sections 1, 3 and 5), and their weights by quadrature and by textbook loops.

Programs are compared by their outputs on the Gaussian mixture, at 1e-13 of the state's size, or number by number.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from edgegen.diffusion import make_grid, make_process
from edgegen.diffusion.grids import fast_orders
from edgegen.program import Eval, Lincomb, Noise, interpret
from edgegen.program import noise as philox
from edgegen.solvers import build_program
from edgegen.solvers.exponential import integrals
from tests.analytic import MEAN, X_T, changed, exact_flow, network, rho

VP = make_process("vp_linear")
EDM = make_process("edm")
FLOW = make_process("flow")
MR = make_process("mean_reverting")
PLACES = {
    "vp": (VP, "epsilon", 0.98, 0.01),
    "cosine": (make_process("vp_cosine"), "v", 0.95, 0.01),
    "betas": (make_process("vp_betas"), "epsilon", 990.0, 5.0),
    "edm": (EDM, "edm", 20.0, 0.02),
    "flow": (FLOW, "flow", 0.97, 0.02),
}
STEPS = 7


def run(solver, place="vp", steps=STEPS, grid="lambda", dtype=np.float64, x=None, change=lambda program: program, net=None, seed=5, **options):
    process, prediction, first, last = PLACES[place]
    ends = {} if not isinstance(grid, str) else dict(t_start=first, t_end=last)
    program = change(build_program(solver, process, prediction, steps, grid=grid, **ends, **options))
    x = X_T * float(process.sigma(first)) if x is None else x
    return interpret(program, {"denoiser": net or network(process, prediction)}, {"x_T": x}, seed=seed, dtype=dtype)["sample"]


def assert_same(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * max(1.0, np.abs(b).max()))


def normals(draw, shape):
    """What NOISE number `draw` gives under the seed of `run`."""
    return philox.normals(5, draw, shape).astype(np.float64)


# First order: one method under many names

FIRST_ORDER = {
    "euler": {},
    "dpm_solver-multistep": dict(order=1),
    "dpm_solver-singlestep": dict(order=1, method="singlestep"),
    "dpm_solver-fast": dict(order=1, method="fast"),
    "deis-t": dict(order=0, variable="t"),
    "deis-rho": dict(order=0, variable="rho"),
    "deis-log_rho": dict(order=0, variable="log_rho"),
    "deis_rk": dict(tableau="euler"),
    "lms": dict(order=1),
    "ipndm": dict(order=1),
    "unipc-data": dict(order=1, corrector=False),
    "unipc-noise": dict(order=1, corrector=False, form="noise"),
    "dpmpp_sde": dict(order=1, eta=0.0),
    "sa_solver": dict(predictor_order=1, corrector_order=0, tau=0.0),
    "euler_a": dict(eta=0.0),
    "dualfast": dict(c=0.0),
}


@pytest.mark.parametrize("place", [p for p in PLACES if p != "flow"])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_every_first_order_solver_is_ddim(name, place):
    assert_same(run(name.split("-")[0], place, **FIRST_ORDER[name]), run("ddim", place))


@pytest.mark.parametrize("name", [n for n in FIRST_ORDER if n != "deis_rk"])
def test_every_first_order_solver_is_ddim_on_a_flow(name):
    assert_same(run(name.split("-")[0], "flow", **FIRST_ORDER[name]), run("ddim", "flow"))


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m", "dpmpp_3m", "dpmpp_2s", "dpmpp_3s", "dpmpp_sde", "unipc", "sa_solver", "tcd"])
def test_one_step_to_clean_data_returns_the_data_estimate(solver):
    process = make_process("vp_betas")
    program = build_program(solver, process, "sample", 1, grid=[500.0, -1.0])
    out = interpret(program, {"denoiser": lambda x, t: 0.3 * x}, {"x_T": X_T}, dtype=np.float64)["sample"]
    np.testing.assert_array_equal(out, 0.3 * X_T)


@pytest.mark.parametrize("place", PLACES)
def test_ddim_is_the_textbook_loop(place):
    process, _, first, last = PLACES[place]
    times = make_grid("uniform", process, STEPS, t_start=first, t_end=last)
    x = X_T * float(process.sigma(first))
    noise_of = network(process, "epsilon")
    for s, t in pairwise(times):
        (a, b), (c, d) = ((float(process.alpha(k)), float(process.sigma(k))) for k in (s, t))
        noise = noise_of(x, s)
        x = c * (x - b * noise) / a + d * noise
    assert_same(run("ddim", place, grid=times), x)


def velocity_from_noise_on(x, t):
    """The mixture's velocity on a flow; at t = 1 the data, given pure noise, is the mixture's mean."""
    return x - MEAN if t == 1.0 else network(FLOW, "flow")(x, t)


@pytest.mark.parametrize("solver", ["euler", "ddim"])
def test_a_flow_from_pure_noise_to_data_is_the_textbook_loop(solver):
    times = np.linspace(1.0, 0.0, 9)
    x = X_T.copy()
    for t, after in pairwise(times):
        x = x + (after - t) * velocity_from_noise_on(x, t)
    program = build_program(solver, FLOW, "flow", 8, grid=times)
    found = interpret(program, {"denoiser": velocity_from_noise_on}, {"x_T": X_T}, dtype=np.float64)["sample"]
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("times", [[1.0, 0.4], [1.0, 0.7, 0.4], [1.0, 0.0]], ids=str)
@pytest.mark.parametrize(
    ("solver", "options"),
    [("dpmpp_2m", {}), ("dpmpp_3m", {}), ("unipc", dict(corrector=False)), ("dpmpp_sde", dict(eta=0.0)), ("sa_solver", dict(tau=0.0, corrector_order=0))],
)  # fmt: skip
def test_after_a_start_at_pure_noise_two_steps_are_of_first_order(solver, options, times):
    """Section 3.11: there lambda is -inf; the step from it is the finite first-order one, and the next cannot look back at it."""
    steps = len(times) - 1
    programs = [build_program(name, FLOW, "flow", steps, grid=times, **o) for name, o in ((solver, options), ("ddim", {}))]
    a, b = (interpret(p, {"denoiser": velocity_from_noise_on}, {"x_T": X_T}, dtype=np.float64)["sample"] for p in programs)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


# Runge-Kutta and Heun: textbook loops in EDM's coordinates


def rk_loop(process, times, x, tableau):
    """A Runge-Kutta method on dv / d rho = eps(v), v = x / alpha, written from its Butcher tableau."""
    c, a, b = tableau
    noise = network(EDM, "epsilon")
    v = x / float(process.alpha(times[0]))
    for s, t in pairwise(times):
        r, step = rho(process, s), rho(process, t) - rho(process, s)
        k = []
        for position, row in zip(c, a, strict=True):
            k.append(noise(v + step * sum(w * e for w, e in zip(row, k, strict=True)), r + position * step))
        v = v + step * sum(w * e for w, e in zip(b, k, strict=True))
    return v * float(process.alpha(times[-1]))


# Section 3.1, item 2, and Kutta's, Ralston's and Heun's textbook tableaus
TEXTBOOK = {
    "2heun": ([0, 1], [[], [1]], [1 / 2, 1 / 2]),
    "3kutta": ([0, 1 / 2, 1], [[], [1 / 2], [-1, 2]], [1 / 6, 4 / 6, 1 / 6]),
    "4rk": ([0, 1 / 2, 1 / 2, 1], [[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 2 / 6, 2 / 6, 1 / 6]),
    "3ral": ([0, 1 / 2, 3 / 4], [[], [1 / 2], [0, 3 / 4]], [2 / 9, 1 / 3, 4 / 9]),
    "3heun": ([0, 1 / 3, 2 / 3], [[], [1 / 3], [0, 2 / 3]], [1 / 4, 0, 3 / 4]),
    "3vdh": ([0, 8 / 15, 2 / 3], [[], [8 / 15], [1 / 4, 5 / 12]], [1 / 4, 0, 3 / 4]),
    "3ssprk": ([0, 1, 1 / 2], [[], [1], [1 / 4, 1 / 4]], [1 / 6, 1 / 6, 2 / 3]),
}


@pytest.mark.parametrize("place", ["vp", "edm", "cosine"])
@pytest.mark.parametrize("name", TEXTBOOK)
def test_deis_rk_is_its_butcher_tableau_in_rho(name, place):
    process, _, first, last = PLACES[place]
    times = make_grid("quadratic", process, STEPS, t_start=first, t_end=last)
    wanted = rk_loop(process, times, X_T * float(process.sigma(first)), TEXTBOOK[name])
    assert_same(run("deis_rk", place, grid=times, tableau=name), wanted)
    if name == "2heun":
        assert_same(run("heun", place, grid=times), wanted)


def test_classical_runge_kutta_on_a_flow_is_the_textbook_method_in_t():
    times = np.linspace(0.97, 0.02, STEPS + 1)
    u = network(FLOW, "flow")
    x = X_T * 0.97
    for t, after in pairwise(times):
        h = after - t
        k1 = u(x, t)
        k2 = u(x + h / 2 * k1, t + h / 2)
        k3 = u(x + h / 2 * k2, t + h / 2)
        k4 = u(x + h * k3, after)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    assert_same(run("deis_rk", "flow", grid=times, tableau="4rk"), x)


def test_kdpm2_is_dpm_solver_2s_in_edm_coordinates_and_elsewhere():
    """The midpoint in ln rho, the full step with its estimate: DPM-Solver-2 with r = 1/2."""
    for place in ("vp", "edm", "cosine"):
        assert_same(run("kdpm2", place), run("dpm_solver", place, order=2, method="singlestep"))


# Multistep


@pytest.mark.parametrize("place", PLACES)
def test_deis_in_log_rho_of_degree_1_is_dpm_solver_multistep_2_taylor(place):
    assert_same(
        run("deis", place, variable="log_rho", order=1, lower_order_final=False),
        run("dpm_solver", place, order=2, variant="heun", lower_order_final=False),
    )


@pytest.mark.parametrize("place", PLACES)
def test_deis_in_log_rho_of_degree_2_is_exact_dpm_solver_multistep_3(place):
    exact = run("dpm_solver", place, order=3, d2="exact", variant="heun", lower_order_final=False)
    assert_same(run("deis", place, variable="log_rho", order=2, lower_order_final=False), exact)


@pytest.mark.parametrize("lower", [False, True])
def test_deis_lowers_its_order_at_the_end_as_dpm_solver_does(lower):
    dpm = run("dpm_solver", order=3, d2="exact", variant="heun", lower_order_final=lower)
    assert_same(run("deis", variable="log_rho", order=2, lower_order_final=lower), dpm)


@pytest.mark.parametrize("place", PLACES)
def test_unip_2_with_bh2_is_dpmpp_2m_midpoint(place):
    assert_same(run("unipc", place, order=2, corrector=False, lower_order_final=False), run("dpmpp_2m", place, lower_order_final=False))


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("place", PLACES)
def test_unip_3_is_exact_multistep_3_after_its_own_second_step(place, variant, form):
    """B(h) cancels from the third step on; the second step of bh2 is the midpoint one."""
    process, _prediction, first, last = PLACES[place]
    unip = build_program(
        "unipc", process, "sample" if form == "data" else "epsilon", STEPS, grid="lambda", t_start=first, t_end=last, order=3, variant=variant,
        form=form, corrector=False, lower_order_final=False,
    )  # fmt: skip
    solver = "dpmpp_3m" if form == "data" else "dpm_solver"
    order = {} if form == "data" else dict(order=3)
    ab2 = build_program(
        solver, process, "sample" if form == "data" else "epsilon", STEPS, grid="lambda", t_start=first, t_end=last, d2="exact",
        variant="midpoint", lower_order_final=False, **order,
    )  # fmt: skip
    for i, (a, b) in enumerate(zip(weights(unip), weights(ab2), strict=True)):
        if i != 1 or variant == "bh2":
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def weights(program):
    """The coefficients of every LINCOMB in the written order."""
    return [[c for c, _ in i.terms] for i in program.instructions if isinstance(i, Lincomb)]


def test_bh_matters_for_the_predictor_of_order_2_and_the_corrector_of_order_1_only():
    for order, corrector, same in ((2, False, False), (1, True, False), (1, False, True)):
        a, b = (run("unipc", order=order, corrector=corrector, variant=v, lower_order_final=False) for v in ("bh1", "bh2"))
        assert bool(np.abs(a - b).max() < 1e-13) is same
    a, b = (
        weights(build_program("unipc", VP, "sample", 6, grid="lambda", t_end=0.01, order=3, variant=v, lower_order_final=False))
        for v in ("bh1", "bh2")
    )
    for x, y in zip(a[4:], b[4:], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11)


@pytest.mark.parametrize("place", PLACES)
def test_lms_is_rho_adams_bashforth_with_as_many_estimates(place):
    for order in (1, 2, 3, 4):
        assert_same(run("lms", place, order=order), run("deis", place, variable="rho", order=order - 1, lower_order_final=False))


def test_lms_and_ipndm_agree_on_equal_steps_of_rho():
    """Adams and Bashforth's constants are the weights of equal steps."""
    times = np.linspace(8.0, 1.0, 9)
    x = 8.0 * X_T
    for order in (1, 2, 3, 4):
        a, b = (run(s, "edm", 8, times, order=order, x=x) for s in ("lms", "ipndm"))
        assert_same(a, b)


def test_rho_ab_1_has_the_closed_form_of_the_specification():
    times = [0.9, 0.6, 0.35]
    program = build_program("deis", VP, "epsilon", 2, grid=times, variable="rho", order=1, lower_order_final=False)
    before, here, there = (rho(VP, t) for t in times)
    step, last = there - here, here - before
    alpha = float(VP.alpha(times[2]))
    wanted = [alpha / float(VP.alpha(times[1])), alpha * step * (1 + step / (2 * last)), -alpha * step**2 / (2 * last)]
    np.testing.assert_allclose(weights(program)[-1], wanted, rtol=1e-13)


# The integrals of section 1 by quadrature: nodes y of the stored estimates, Lagrange polynomials in y, weight d rho or d kappa


def quadrature_weights(process, nodes, t, variable, form, rate=1.0):
    """Weights C_j of the estimates at `nodes` (newest first): scale times the integral of l_j(y) over the step, 200 Gauss points.

    form "noise": alpha_t l_j d rho. "data": (1 + eta) alpha_t exp(-(1 + eta) (lambda_t - lambda)) l_j d lambda, with rate = 1 + eta.
    """
    s = nodes[0]
    points, w = np.polynomial.legendre.leggauss(200)
    low, high = float(process.lam(s)), float(process.lam(t))
    lam = low + (high - low) * (points + 1) / 2
    w = w * (high - low) / 2
    scale = float(process.sigma(t)) if form == "noise" else float(process.alpha(t))
    kernel = -np.exp(high - lam) * scale if form == "noise" else scale * rate * np.exp(-rate * (high - lam))
    y = {"t": process.inverse_lambda, "rho": lambda k: np.exp(-k), "lambda": lambda k: k}[variable]
    at = [y(np.asarray(process.lam(n), np.float64)) for n in nodes]
    out = []
    for j, here in enumerate(at):
        polynomial = np.prod([(y(lam) - other) / (here - other) for k, other in enumerate(at) if k != j], axis=0) * np.ones_like(lam)
        out.append(float(np.sum(w * kernel * polynomial)))
    return out


TIMES = [0.9, 0.72, 0.6, 0.41, 0.3]


@pytest.mark.parametrize("process", [VP, make_process("vp_cosine"), FLOW], ids=["vp", "cosine", "flow"])
@pytest.mark.parametrize(("variable", "name"), [("t", "t"), ("rho", "rho"), ("lambda", "log_rho")])
def test_deis_weights_are_the_integrals_of_section_1(process, variable, name):
    program = build_program("deis", process, "epsilon", 4, grid=TIMES, variable=name, order=3, lower_order_final=False)
    for i, found in enumerate(weights(program)):
        s, t = TIMES[i], TIMES[i + 1]
        wanted = quadrature_weights(process, TIMES[i::-1], t, variable, "noise")
        np.testing.assert_allclose(found, [float(process.alpha(t) / process.alpha(s)), *wanted], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("solver", "options"), [("dpmpp_3m", dict(d2="exact", variant="heun", lower_order_final=False))])
def test_exact_3m_weights_are_the_integrals_of_section_1(solver, options):
    for i, found in enumerate(weights(build_program(solver, VP, "sample", 4, grid=TIMES, **options))):
        s, t = TIMES[i], TIMES[i + 1]
        wanted = quadrature_weights(VP, TIMES[max(i - 2, 0) : i + 1][::-1], t, "lambda", "data")
        np.testing.assert_allclose(found, [float(VP.sigma(t) / VP.sigma(s)), *wanted], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_sa_solver_weights_are_the_integrals_of_section_1(tau):
    """Of 1, 3 and 4 estimates; with exactly 2 the authors add a term (section 3.11), checked next."""
    options = dict(predictor_order=4, corrector_order=0, tau=tau, tau_low=0.0, tau_high=1.0, lower_order_final=False)
    for i, found in enumerate(weights(build_program("sa_solver", VP, "sample", 4, grid=TIMES, **options))):
        s, t = TIMES[i], TIMES[i + 1]
        h = float(VP.lam(t) - VP.lam(s))
        wanted = quadrature_weights(VP, TIMES[i::-1], t, "lambda", "data", 1 + tau**2)
        if i == 1:
            q = 1 + tau**2
            gap = float(VP.alpha(t)) * q * (h**2 / 2 - (h * q - 1 + math.exp(-q * h)) / q**2) / float(VP.lam(s) - VP.lam(TIMES[0]))
            wanted = [wanted[0] + gap, wanted[1] - gap]
        noise = [float(VP.sigma(t)) * math.sqrt(1 - math.exp(-2 * tau**2 * h))] if tau else []
        np.testing.assert_allclose(found, [float(VP.sigma(t) / VP.sigma(s)) * math.exp(-(tau**2) * h), *wanted, *noise], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_sa_corrector_weights_are_the_integrals_with_the_new_estimate(tau):
    """corrector_order 1 (the new estimate alone), 2 (with the term of section 3.11) and 3, at the third node."""
    for order in (1, 2, 3):
        options = dict(predictor_order=1, corrector_order=order, tau=tau, tau_low=0.0, tau_high=1.0, lower_order_final=False)
        program = build_program("sa_solver", VP, "sample", 4, grid=TIMES, **options)
        third = weights(program)[3]  # predictor 0, corrector 0, predictor 1, corrector 1
        s, t = TIMES[1], TIMES[2]
        h, q = float(VP.lam(t) - VP.lam(s)), 1 + tau**2
        # the integral runs from s to t; the nodes are t, s, ...
        nodes = [t, s, TIMES[0]][:order]
        wanted = corrector_weights(nodes, s, t, q)
        if order == 2:
            gap = float(VP.alpha(t)) * q * (h / 2 - (h * q - 1 + math.exp(-q * h)) / (q**2 * h))
            wanted = [wanted[0] + gap, wanted[1] - gap]
        noise = [float(VP.sigma(t)) * math.sqrt(1 - math.exp(-2 * tau**2 * h))] if tau else []
        np.testing.assert_allclose(third, [float(VP.sigma(t) / VP.sigma(s)) * math.exp(-(tau**2) * h), *wanted, *noise], rtol=1e-10, atol=1e-12)


def corrector_weights(nodes, s, t, q):
    points, w = np.polynomial.legendre.leggauss(60)
    low, high = float(VP.lam(s)), float(VP.lam(t))
    lam = low + (high - low) * (points + 1) / 2
    kernel = float(VP.alpha(t)) * q * np.exp(-q * (high - lam)) * w * (high - low) / 2
    at = [float(VP.lam(n)) for n in nodes]
    return [float(np.sum(kernel * np.prod([(lam - o) / (p - o) for o in at if o != p], axis=0))) for p in at]


@pytest.mark.parametrize("g", [-30.0, -2.5, -1.9, -0.3, -1e-3, -1e-9, 1e-9, 1e-3, 0.3, 1.9, 2.5, 9.0])
def test_the_exponential_integrals_match_their_series_in_rational_arithmetic(g):
    x = Fraction(g)
    term, p = Fraction(1), [Fraction(0)] * 4
    total = Fraction(0)
    for n in range(1, 140):
        term = term * x / n
        total += term  # expm1
    p[0] = total
    for k in range(1, 4):
        p[k] = p[k - 1] / x - Fraction(1, math.factorial(k))
    np.testing.assert_allclose(integrals(g, 4), [float(v) for v in p], rtol=2e-14)


def test_the_exponential_integrals_have_the_limits_of_section_1():
    assert integrals(-math.inf, 3) == [-1.0, -1.0, -0.5]


# DDIM with noise, and the one-parameter family


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_has_the_coefficients_of_the_specification(eta):
    s, t = 0.8, 0.5
    a, b, c, d = (float(f(k)) for k in (s, t) for f in (VP.alpha, VP.sigma))
    q = 1 - math.exp(-2 * float(VP.lam(t) - VP.lam(s)))
    kept = d * math.sqrt(1 - eta**2 * q)
    found = weights(build_program("ddim", VP, "epsilon", 1, grid=[s, t], eta=eta))[-1]
    np.testing.assert_allclose(found, [c / a, kept - c * b / a, *([eta * d * math.sqrt(q)] if eta else [])], rtol=1e-13)
    # the variance of the noise in x' given x0: nothing is lost
    assert abs(kept**2 + eta**2 * d**2 * q - d**2) < 1e-15


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_a_ddim_step_is_the_tau_step_with_1_minus_eta2_q_equal_to_exp_of_minus_2_tau2_h(eta):
    s, t = 0.8, 0.5
    h = float(VP.lam(t) - VP.lam(s))
    q = 1 - math.exp(-2 * h)
    tau = math.sqrt(-math.log(1 - eta**2 * q) / (2 * h))
    sa = dict(predictor_order=1, corrector_order=0, tau=tau, tau_low=0.0, tau_high=1.0)
    outs = [
        interpret(build_program(solver, VP, "epsilon", 1, grid=[s, t], **options), {"denoiser": network(VP, "epsilon")}, {"x_T": X_T},
                  seed=5, dtype=np.float64)["sample"]
        for solver, options in (("ddim", dict(eta=eta)), ("sa_solver", sa))
    ]  # fmt: skip
    assert_same(*outs)
    assert abs(tau - eta) < 1e-12 or 0 < eta < 1


# The reverse SDE of first order under many names, with the same draws

ANCESTRAL = {
    "ddim": dict(eta=1.0),
    "euler_a": {},
    "dpmpp_sde": dict(order=1),
    "sa_solver": dict(predictor_order=1, corrector_order=0, tau=1.0, tau_low=-1.0, tau_high=1000.0),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("solver", ANCESTRAL)
def test_first_order_sde_solvers_are_ddpm_draw_by_draw(solver, place):
    assert_same(run(solver, place, **ANCESTRAL[solver]), run("ddpm", place))


def test_mrs_sde_1_is_the_ddpm_posterior_of_its_process():
    y = X_T / 5
    net = {"denoiser": network(MR, "epsilon")}
    mrs = build_program("mrs", MR, "epsilon", STEPS, t_start=95.0, t_end=5.0, order=1, sde=True, low=-99.0, high=99.0)
    ddpm = build_program("ddpm", MR, "epsilon", STEPS, t_start=95.0, t_end=5.0)
    mu = np.full(5, 0.25)
    a = interpret(mrs, net, {"x_T": y, "mu": mu}, seed=5, dtype=np.float64)["sample"]
    b = interpret(ddpm, net, {"x_T": y}, seed=5, dtype=np.float64)["sample"]
    np.testing.assert_allclose(a, b + mu, rtol=0, atol=1e-13)


MRS_AS = [
    (dict(form="data", order=1), "ddim", {}),
    (dict(form="noise", order=1), "ddim", {}),
    (dict(form="data", order=2), "dpmpp_2m", dict(variant="heun", lower_order_final=False)),
    (dict(form="noise", order=2), "dpm_solver", dict(variant="heun", lower_order_final=False)),
    (dict(form="data", order=3), "dpmpp_3m", dict(lower_order_final=False)),
    (dict(form="noise", order=3), "dpm_solver", dict(order=3, variant="heun", lower_order_final=False)),
    (dict(form="data", order=2, sde=True), "dpmpp_sde", dict(variant="heun", lower_order_final=False)),
    (dict(form="noise", order=1, sde=True), "dpmpp_sde", dict(order=1, form="noise", lower_order_final=False)),
    (dict(form="noise", order=2, sde=True), "dpmpp_sde", dict(form="noise", variant="heun", lower_order_final=False)),
]


@pytest.mark.parametrize(("options", "solver", "theirs"), MRS_AS, ids=[f"{s}-{o}" for o, s, _ in MRS_AS])
def test_mrs_is_the_solver_of_the_same_name_on_x_minus_mu(options, solver, theirs):
    y = X_T / 5
    net = {"denoiser": network(MR, "epsilon")}
    mrs = build_program("mrs", MR, "epsilon", 11, grid="lambda", t_start=95.0, t_end=5.0, low=-99.0, high=99.0, **options)
    other = build_program(solver, MR, "epsilon", 11, grid="lambda", t_start=95.0, t_end=5.0, **theirs)
    mu = np.full(5, 0.25)
    a = interpret(mrs, net, {"x_T": y, "mu": mu}, seed=5, dtype=np.float64)["sample"]
    b = interpret(other, net, {"x_T": y}, seed=5, dtype=np.float64)["sample"]
    np.testing.assert_allclose(a, b + mu, rtol=0, atol=2e-13)


# The k-diffusion formulas of section 3.3, as loops over the same draws


def sde_loop(times, x, order, eta, variant, form="data", curvature="compat"):
    lam = [float(VP.lam(t)) for t in times]
    history = []
    for i, (s, t) in enumerate(pairwise(times)):
        (a, b), (c, d) = ((float(VP.alpha(k)), float(VP.sigma(k))) for k in (s, t))
        h = lam[i + 1] - lam[i]
        noise = network(VP, "epsilon")(x, s)
        history = [(lam[i], noise if form == "noise" else (x - b * noise) / a), *history][:3]
        m = [v for _, v in history]
        used = min(order, i + 1)
        d1 = d2 = 0.0
        if used > 1:
            r0 = (history[0][0] - history[1][0]) / h
            d1 = (m[0] - m[1]) / r0
        if used > 2:
            r1 = (history[1][0] - history[2][0]) / h
            older = (m[1] - m[2]) / r1
            d1, d2 = d1 + r0 / (r0 + r1) * (d1 - older), (d1 - older) / (r0 + r1)
        if form == "noise":
            grown = math.expm1(h)
            on_d1 = -d * grown if variant == "midpoint" else -2 * d * (grown / h - 1)
            x = c / a * x - 2 * d * grown * m[0] + on_d1 * d1 + d * math.sqrt(math.expm1(2 * h)) * normals(i + 1, x.shape)
            continue
        k = (1 + eta) * h
        q = -math.expm1(-k)
        on_d1 = c * q / 2 if variant == "midpoint" and used == 2 else c * (1 - q / k)
        # k-diffusion's weight of D2, and with diffusers' sign of the last term
        on_d2 = {"compat": c * ((q - k) / k**2 + 0.5), "exact": 2 * c * ((q - k) / k**2 + 0.5), "diffusers": c * ((q - k) / k**2 - 0.5)}[curvature]
        spread = d * math.sqrt(-math.expm1(-2 * eta * h))
        x = d / b * math.exp(-eta * h) * x + c * q * m[0] + on_d1 * d1 + on_d2 * d2 + spread * normals(i + 1, x.shape)
    return x


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("variant", ["midpoint", "heun"])
@pytest.mark.parametrize(("order", "d2"), [(1, "compat"), (2, "compat"), (3, "compat"), (3, "exact"), (3, "diffusers")])
def test_sde_dpmpp_is_the_loop_of_the_specification(order, d2, variant, eta):
    times = np.linspace(0.95, 0.05, STEPS + 1)
    found = run("dpmpp_sde", grid=times, x=X_T, order=order, eta=eta, variant=variant, d2=d2, lower_order_final=False)
    assert_same(found, sde_loop(times, X_T, order, eta, variant, curvature=d2))


@pytest.mark.parametrize("variant", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver_in_noise_form_is_the_loop_of_the_specification(order, variant):
    times = np.linspace(0.95, 0.05, STEPS + 1)
    found = run("dpmpp_sde", grid=times, x=X_T, order=order, variant=variant, form="noise", lower_order_final=False)
    assert_same(found, sde_loop(times, X_T, order, 1.0, variant, "noise"))


def test_a_reused_draw_breaks_the_equality_with_the_loop():
    times = np.linspace(0.95, 0.05, STEPS + 1)
    found = run("dpmpp_sde", grid=times, x=X_T, order=2, lower_order_final=False, seed=6)
    assert np.abs(found - sde_loop(times, X_T, 2, 1.0, "midpoint")).max() > 1e-3


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_euler_ancestral_is_the_loop_of_the_specification(eta):
    """Section 3.10: sigma_up, sigma_down in EDM's coordinates."""
    times = make_grid("karras", EDM, STEPS, t_start=20.0, t_end=0.02)
    x = 20.0 * X_T
    wanted = x
    for i, (s, t) in enumerate(pairwise(times)):
        down, up = ancestral(s, t, eta)
        data = network(EDM, "sample")(wanted, s)
        wanted = wanted + (down - s) * (wanted - data) / s + up * normals(i + 1, x.shape)
    assert_same(run("euler_a", "edm", grid=times, x=x, eta=eta), wanted)


def ancestral(s, t, eta=1.0):
    up = min(t, eta * math.sqrt(t**2 * (s**2 - t**2) / s**2))
    return math.sqrt(t**2 - up**2), up


def test_kdpm2_ancestral_is_the_loop_of_k_diffusion():
    times = make_grid("karras", EDM, STEPS, t_start=20.0, t_end=0.02)
    data = network(EDM, "sample")
    x = wanted = 20.0 * X_T
    for i, (s, t) in enumerate(pairwise(times)):
        down, up = ancestral(s, t)
        middle = math.sqrt(s * down)
        u = wanted + (wanted - data(wanted, s)) / s * (middle - s)
        wanted = wanted + (u - data(u, middle)) / middle * (down - s) + up * normals(i + 1, x.shape)
    assert_same(run("kdpm2_a", "edm", grid=times, x=x), wanted)


def test_dpmpp_2s_ancestral_is_the_loop_of_k_diffusion():
    times = make_grid("karras", EDM, STEPS, t_start=20.0, t_end=0.02)
    data = network(EDM, "sample")
    x = wanted = 20.0 * X_T
    for i, (s, t) in enumerate(pairwise(times)):
        down, up = ancestral(s, t)
        h = math.log(s / down)
        middle = s * math.exp(-h / 2)
        u = middle / s * wanted - math.expm1(-h / 2) * data(wanted, s)
        wanted = down / s * wanted - math.expm1(-h) * data(u, middle) + up * normals(i + 1, x.shape)
    assert_same(run("dpmpp_2s_a", "edm", grid=times, x=x), wanted)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_dpmpp_sde_singlestep_is_the_loop_of_k_diffusion_on_one_brownian_path(eta):
    """Section 3.3: both stages from the state at s; the noise sampler gives (W(s) - W(t)) / sqrt(s - t) of one path in sigma."""
    times = make_grid("karras", EDM, STEPS, t_start=20.0, t_end=0.02)
    data = network(EDM, "sample")
    x = wanted = 20.0 * X_T
    for i, (s, t) in enumerate(pairwise(times)):
        middle = math.sqrt(s * t)
        first = math.sqrt(s - middle) * normals(2 * i + 1, x.shape)
        second = math.sqrt(middle - t) * normals(2 * i + 2, x.shape)
        m0 = data(wanted, s)
        down, up = ancestral(s, middle, eta)
        u = down / s * wanted + (1 - down / s) * m0 + up * first / math.sqrt(s - middle)
        down, up = ancestral(s, t, eta)
        wanted = down / s * wanted + (1 - down / s) * data(u, middle) + up * (first + second) / math.sqrt(s - t)
    assert_same(run("dpmpp_sde", "edm", grid=times, x=x, method="singlestep", eta=eta), wanted)


# DualFast

BASES = ("ddim", "dpm_solver", "dpmpp_2m", "dpmpp_2s", "dpmpp_3m", "dpmpp_3s")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("where", ["m0_only", "everywhere"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "edm"])
def test_dualfast_with_c_zero_is_its_base_bit_for_bit(prediction, base, where, dtype):
    def sample(solver, **options):
        program = build_program(solver, VP, prediction, 8, grid="lambda", t_end=0.01, **options)
        exact = network(VP, prediction)
        return interpret(program, {"denoiser": lambda x, t: exact(np.asarray(x, np.float64), float(t))}, {"x_T": X_T}, dtype=dtype)["sample"]

    np.testing.assert_array_equal(sample("dualfast", base=base, c=0.0, where=where), sample(base))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dualfast_with_the_step_before_and_c_one_half_is_ipndm_2_bit_for_bit(dtype):
    c = [0.0] + [0.5] * (STEPS - 1)
    dual = run("dualfast", grid="uniform", dtype=dtype, base="dpm_solver", base_options=dict(order=1), tau=-1, c=c)
    np.testing.assert_array_equal(dual, run("ipndm", grid="uniform", dtype=dtype, order=2))


def test_dualfast_on_ddim_is_the_same_method():
    """DDIM writes its step as data and noise, so the last bit may differ."""
    c = [0.0] + [0.5] * (STEPS - 1)
    assert_same(run("dualfast", grid="uniform", base="ddim", tau=-1, c=c), run("ipndm", grid="uniform", order=2))


@pytest.mark.parametrize("place", ["vp", "cosine", "edm"])
@pytest.mark.parametrize("tau", [0, -1, -2])
def test_dualfast_on_ddim_is_the_loop_of_the_specification(place, tau):
    process, _, first, last = PLACES[place]
    times = make_grid("lambda", process, STEPS, t_start=first, t_end=last)
    c = [0.1 * i for i in range(STEPS)]
    x = X_T * float(process.sigma(first))
    kept = []
    for i, (s, t) in enumerate(pairwise(times)):
        kept.append(network(process, "epsilon")(x, s))
        earlier = kept[0 if tau == 0 else max(i + tau, 0)]
        mixed = (1 + c[i]) * kept[i] - c[i] * earlier
        x = float(process.alpha(t) / process.alpha(s)) * x + (float(process.sigma(t)) - float(process.alpha(t)) * rho(process, s)) * mixed
    assert_same(run("dualfast", place, c=c, tau=tau), x)


def test_dualfast_on_2m_mixes_the_first_order_term_or_everywhere():
    times = make_grid("lambda", VP, STEPS, t_start=0.98, t_end=0.01)
    c = [0.05 * i for i in range(STEPS)]
    for where in ("m0_only", "everywhere"):
        x, noises, history = X_T * float(VP.sigma(0.98)), [], []
        for i, (s, t) in enumerate(pairwise(times)):
            a, b = float(VP.alpha(s)), float(VP.sigma(s))
            noises.append(network(VP, "epsilon")(x, s))
            mixed = (x - b * ((1 + c[i]) * noises[i] - c[i] * noises[0])) / a
            plain = mixed if where == "everywhere" else (x - b * noises[i]) / a
            h = float(VP.lam(t) - VP.lam(s))
            d1 = 0.0 if i == 0 else (plain - history[-1][1]) * h / float(VP.lam(s) - VP.lam(history[-1][0]))
            history.append((s, plain))
            x = float(VP.sigma(t)) / b * x - float(VP.alpha(t)) * math.expm1(-h) * (mixed + 0.5 * d1)
        assert_same(run("dualfast", base="dpmpp_2m", base_options=dict(lower_order_final=False), c=c, where=where), x)


@pytest.mark.parametrize("size", [-0.2, -0.1, 0.1, 0.2])
def test_dualfast_reduces_the_error_of_ddim_at_five_steps_with_a_network_that_errs_at_low_noise(size):
    """Section 3.4, item 7: eps (1 + b), b smaller where there is more noise."""

    def biased(x, t):
        return network(VP, "epsilon")(x, t) * (1 + size / (1 + math.exp(-float(VP.lam(t)))))

    def error(solver, **options):
        program = build_program(solver, VP, "epsilon", 5, grid="lambda", t_end=1e-3, **options)
        out = interpret(program, {"denoiser": biased}, {"x_T": X_T}, dtype=np.float64)["sample"]
        return np.abs(out - exact_flow(VP, X_T, 1.0, 1e-3)).max()

    assert error("dualfast", c=0.3) < 0.92 * error("ddim")


@pytest.mark.parametrize(("steps", "error"), [(10, 0.28), (40, 0.020), (160, 0.048), (640, 0.056)])
def test_dualfast_with_an_exact_network_and_fixed_c_has_the_plateau_of_the_specification(steps, error):
    """Section 3.4, trap (a): it is inconsistent there, and does not converge."""
    program = build_program("dualfast", VP, "epsilon", steps, grid="lambda", t_end=1e-3, c=[0.0] + [0.1] * (steps - 1))
    out = interpret(program, {"denoiser": network(VP, "epsilon")}, {"x_T": X_T}, dtype=np.float64)["sample"]
    found = np.abs(out - exact_flow(VP, X_T, 1.0, 1e-3)).max()
    assert abs(found - error) <= 0.5 * 10 ** (math.floor(math.log10(error)) - 1)


def test_dualfast_costs_no_evaluations():
    for base, count in (("ddim", 6), ("dpmpp_2m", 6), ("dpmpp_2s", 12), ("dpmpp_3s", 18)):
        program = build_program("dualfast", VP, "epsilon", 6, grid="lambda", base=base)
        assert dict(program.nfe) == {"denoiser": count}


# Grids and orders that the specification lists


@pytest.mark.parametrize(("budget", "groups"), [(8, [3, 3, 2]), (9, [3, 3, 2, 1]), (10, [3, 3, 3, 1]), (11, [3, 3, 3, 2]), (12, [3, 3, 3, 2, 1])])
def test_the_fast_solver_spends_its_evaluations_as_the_specification_lists(budget, groups):
    assert fast_orders(budget, 3) == groups
    assert dict(build_program("dpm_solver", VP, "epsilon", budget, method="fast", order=3).nfe) == {"denoiser": budget}


def test_a_fast_group_is_a_singlestep_step_of_its_order():
    process, _, first, last = PLACES["vp"]
    times = make_grid("lambda_fast", process, 3, t_start=first, t_end=last, order=3)
    assert len(times) == 4
    whole = build_program("dpm_solver", process, "epsilon", 3, grid=[first, *times[1:]], method="fast", order=3)
    assert fast_orders(3, 3) == [2, 1]
    inner = np.interp(0.5, [0, 1], process.lam([times[0], times[2]]))
    assert abs(float(process.lam(times[1])) - inner) < 1e-12
    assert len(whole.steps) == 2


def test_the_linear_grid_of_beso_is_the_listed_one():
    np.testing.assert_allclose(
        make_grid("karras", make_process("edm", sigma_min=0.005, sigma_max=1.0), 3, power=1.0), [1, 0.5025, 0.005, 0], atol=1e-12
    )


def test_lower_order_final_of_mrs_is_the_authors_off_by_one():
    """Section 3.5, trap (b): below 10 steps the last but one is of order 1, the last of full order."""
    program = build_program("mrs", MR, "epsilon", 6, order=3, form="noise", low=-99.0, high=99.0)
    per_step = [len(w) - 1 for w in weights(program)][:6]
    assert per_step == [1, 2, 3, 2, 1, 3]


@pytest.mark.parametrize(
    ("solver", "options", "orders"),
    [
        ("dpm_solver", dict(order=3), [1, 2, 3, 3, 2, 1]),
        ("deis", dict(variable="log_rho", order=2, lower_order_final=True), [1, 2, 3, 3, 2, 1]),
        ("deis", dict(variable="t", order=3, lower_order_final=False), [1, 2, 3, 4, 4, 4]),
        ("lms", dict(lower_order_final=True), [1, 2, 3, 3, 2, 1]),
        ("ipndm", dict(lower_order_final=True), [1, 2, 3, 3, 2, 1]),
        ("pndm", dict(lower_order_final=True), [1, 2, 2, 3, 3, 2, 1]),
        ("unipc", dict(order=3, form="noise", corrector=False), [1, 2, 3, 3, 2, 1]),
        ("ipndm", dict(order=4), [1, 2, 3, 4, 4, 4]),
    ],
)
def test_orders_ramp_up_and_down_as_the_specification_says(solver, options, orders):
    assert [len(w) - 1 for w in weights(build_program(solver, VP, "epsilon", 6, t_end=0.01, **options))] == orders


# Negative controls: the comparisons above can fail


@pytest.mark.parametrize("solver", ["ddim", "deis", "dpmpp_2m", "unipc", "sa_solver", "heun"])
def test_a_weight_changed_by_one_part_in_1e9_is_no_longer_the_same(solver):
    options = dict(tau=0.0) if solver == "sa_solver" else {}
    right = run(solver, **options)
    wrong = run(solver, change=lambda p: changed(p, 2, lambda terms: [*terms[:-1], (terms[-1][0] * (1 + 1e-9), terms[-1][1])]), **options)
    with pytest.raises(AssertionError):
        assert_same(wrong, right)


def test_solvers_that_are_not_the_same_differ():
    assert np.abs(run("dpmpp_2m", variant="heun") - run("dpmpp_2m", variant="midpoint")).max() > 1e-3
    assert np.abs(run("dpmpp_3m", d2="exact") - run("dpmpp_3m", d2="compat")).max() > 1e-3
    assert np.abs(run("ddpm") - run("ddim")).max() > 1e-2


@pytest.mark.parametrize("solver", ["ddpm", "euler_a", "dpmpp_sde", "sa_solver"])
def test_every_draw_of_a_program_is_another(solver):
    drawn = [i.draw for i in build_program(solver, VP, "epsilon", 9).instructions if isinstance(i, Noise)]
    assert len(drawn) == len(set(drawn)) > 0


def test_evaluations_per_step_are_those_of_the_specification():
    """Sections 2 and 3.11: Heun and DPM-2 are Euler in the step to sigma = 0."""
    process = make_process("vp_betas")
    for solver, options, clean, noisy in (
        ("ddim", {}, 10, 10), ("heun", {}, 19, 20), ("kdpm2", {}, 19, 20), ("lms", {}, 10, 10), ("unipc", {}, 10, 10), ("pndm", {}, None, 11),
        ("pndm", dict(runge_kutta=True), None, 19), ("deis_rk", {}, 28, 30), ("dpmpp_2s", {}, 19, 20), ("dpmpp_3s", {}, 28, 30),
    ):  # fmt: skip
        for end, wanted in ((-1.0, clean), (0.0, noisy)):
            if wanted is not None:
                program = build_program(solver, process, "epsilon", 10, grid="uniform", t_start=999.0, t_end=end, **options)
                assert sum(isinstance(i, Eval) for i in program.instructions) == program.nfe["denoiser"] == wanted
