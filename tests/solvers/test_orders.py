"""Orders of convergence: errors against exact solutions at 2, 4, ... times the steps, in float64, ending at sigma > 0.

Deterministic solvers are measured on a Gaussian mixture, whose probability-flow ODE is solved by DOP853; stochastic ones by the exact
standard deviation of their output on Gaussian data. Expected orders are those of the methods' derivations (specification, section 6.3).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from edgegen.diffusion import make_process
from edgegen.program import Lincomb, Noise, interpret
from edgegen.program.verify import writes
from edgegen.solvers import SOLVERS, build_program
from edgegen.solvers.runge_kutta import TABLEAUS
from tests.analytic import X_T, affine_statistics, everywhere, exact_flow, gaussian_law, gaussian_noise, network, slopes

PROCESSES = {
    "vp": (make_process("vp_linear"), (0.9, 0.05)),
    "vp_middle": (make_process("vp_linear"), (0.9, 0.3)),
    "vp_short": (make_process("vp_linear"), (0.6, 0.2)),
    "cosine": (make_process("vp_cosine"), (0.9, 0.05)),
    "edm": (make_process("edm"), (5.0, 0.05)),
    "edm_short": (make_process("edm"), (2.0, 0.2)),
    "flow": (make_process("flow"), (0.95, 0.05)),
    "edm_narrow": (make_process("edm"), (2.0, 0.5)),
    "mean_reverting": (make_process("mean_reverting"), (80.0, 5.0)),
    "mean_reverting_middle": (make_process("mean_reverting"), (90.0, 30.0)),
}
WITHIN = 0.25


@dataclass(frozen=True)
class Case:
    """A solver, its expected order, and how it is measured.

    seeds: after so many steps the state is put back on the exact solution, so that the history of a multistep method is exact: its
    first steps are of lower order, and their error would hide the method's. finest: the steps of the last of three runs.
    """

    solver: str
    order: float
    options: dict[str, Any] = field(default_factory=dict)
    process: str = "vp"
    grid: str = "lambda"
    prediction: str = "epsilon"
    seeds: int = 0
    finest: int = 128

    def __str__(self) -> str:
        return "-".join([self.solver, *(str(v) for v in self.options.values()), self.process, self.prediction, f"order{self.order:g}"])

    def program(self, steps):
        process, (first, last) = PROCESSES[self.process]
        return build_program(self.solver, process, self.prediction, steps, grid=self.grid, t_start=first, t_end=last, **self.options)

    def steps(self):
        return [self.finest // 4, self.finest // 2, self.finest]


def same(program):
    return program


def observed(case, change=same):
    """The slopes over the last two doublings; `change` is made to every program."""
    process, (first, last) = PROCESSES[case.process]
    x = X_T * float(process.sigma(first))
    exact = exact_flow(process, x, first, last)
    errors = []
    for steps in case.steps():
        program = change(case.program(steps))

        def seed(done, total, state, program=program):
            if done <= case.seeds:
                state[...] = exact_flow(process, x, first, program.steps[done - 1].time)

        networks = {"denoiser": network(process, case.prediction)}
        found = interpret(program, networks, {"x_T": x}, dtype=np.float64, on_step=seed if case.seeds else None)["sample"]
        errors.append(np.abs(found - exact).max())
    return slopes(errors)


def is_of_order(found, order):
    return bool(np.abs(found - order).max() < WITHIN)


def sa(predictor, corrector, tau=0.0):
    """SA-Solver's options: noise in every step, no lower orders at the end."""
    return dict(predictor_order=predictor, corrector_order=corrector, tau=tau, tau_low=0.0, tau_high=100.0, lower_order_final=False)


def unipc(order, variant, form, corrector):
    return dict(order=order, variant=variant, form=form, corrector=corrector, lower_order_final=False)


ONE_STEP = [
    Case("ddim", 1),
    Case("euler", 1),
    Case("heun", 2),
    Case("kdpm2", 2),
    *(Case("deis_rk", {"euler": 1, "2heun": 2, "4rk": 4}.get(name, 3), dict(tableau=name)) for name in TABLEAUS),
    *(Case("dpm_solver", order, dict(order=order, method="singlestep", variant=variant)) for order in (1, 2, 3) for variant in ("midpoint", "heun")),
    *(Case("dpmpp_2s", 2, dict(variant=variant)) for variant in ("midpoint", "heun")),
    *(Case("dpmpp_3s", 3, dict(variant=variant)) for variant in ("midpoint", "heun")),
]

MULTISTEP = [
    Case("deis", 1, dict(variable="t", order=0), grid="quadratic"),
    Case("deis", 2, dict(variable="t", order=1), grid="quadratic", seeds=1),
    Case("deis", 3, dict(variable="t", order=2), grid="quadratic", seeds=2),
    Case("deis", 4, dict(variable="t", order=3), grid="quadratic", seeds=3, finest=256),
    Case("deis", 2, dict(variable="rho", order=1), grid="quadratic", seeds=1),
    Case("deis", 3, dict(variable="rho", order=2), grid="quadratic", seeds=2),
    Case("deis", 4, dict(variable="rho", order=3), grid="quadratic", seeds=3, finest=512),
    Case("deis", 2, dict(variable="log_rho", order=1), seeds=1),
    Case("deis", 3, dict(variable="log_rho", order=2), seeds=2, finest=256),
    Case("deis", 4, dict(variable="log_rho", order=3), seeds=3, finest=512),
    *(Case("lms", k, dict(order=k), seeds=k - 1, finest=256 if k < 4 else 512) for k in (1, 2, 3, 4)),
    # Adams and Bashforth's weights are for equal steps: in rho (EDM) they keep their order, in t they are of second order
    *(Case("ipndm", k, dict(order=k), "edm_narrow", "uniform", "sample", seeds=k - 1, finest=256) for k in (1, 2, 3, 4)),
    *(Case("ipndm", min(k, 2), dict(order=k), "vp_middle", "uniform") for k in (1, 2, 3, 4)),
    *(Case("pndm", 2, dict(runge_kutta=rk), "vp_middle", "uniform") for rk in (False, True)),
    *(Case("dpm_solver", 2, dict(order=2, variant=variant)) for variant in ("midpoint", "heun")),
    *(Case("dpmpp_2m", 2, dict(variant=variant)) for variant in ("midpoint", "heun")),
    Case("dpmpp_3m", 2, dict(d2="compat"), finest=256),
    Case("dpmpp_3m", 3, dict(d2="exact"), seeds=2, finest=256),
    Case("dpm_solver", 2, dict(order=3, d2="compat")),
    Case("dpm_solver", 3, dict(order=3, d2="exact"), seeds=2, finest=256),
    *(
        Case("unipc", order, unipc(order, variant, form, False), seeds=order - 1, finest=256 if order == 3 else 128)
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
        for form in ("data", "noise")
    ),
    # the corrector adds an order
    *(
        Case("unipc", order + 1, unipc(order, variant, form, True), finest=512 if order == 3 else 128)
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
        for form in ("data", "noise")
    ),
    *(Case("sa_solver", k, sa(k, 0), seeds=k - 1, finest=256 if k < 3 else 512) for k in (1, 2, 3, 4)),
    # with a corrector the order is its number of estimates, and at most one more than the predictor's
    Case("sa_solver", 1, sa(1, 1), finest=512),
    Case("sa_solver", 2, sa(2, 2), finest=256),
    Case("sa_solver", 2, sa(1, 2)),
    Case("sa_solver", 3, sa(2, 3), "vp_short"),
]

SOLVER_CHOICE = [
    ("ddim", 1, "lambda", {}, 0),
    ("euler", 1, "uniform", {}, 0),
    ("heun", 2, "karras", {}, 0),
    ("kdpm2", 2, "lambda", {}, 0),
    ("deis_rk", 4, "lambda", dict(tableau="4rk"), 0),
    ("dpmpp_2m", 2, "lambda", {}, 0),
    ("dpmpp_3m", 3, "lambda", dict(d2="exact"), 2),
    ("dpmpp_3s", 3, "karras", {}, 0),
    ("dpm_solver", 3, "lambda", dict(order=3, method="singlestep"), 0),
    ("unipc", 3, "lambda", dict(order=2, lower_order_final=False), 0),
    ("deis", 2, "quadratic", dict(order=1), 1),
    ("lms", 3, "karras", dict(order=3), 2),
]
ELSEWHERE = [
    Case(solver, order, options, process, grid, prediction, seeds)
    for process, prediction in (("cosine", "v"), ("edm_short", "edm"), ("flow", "flow"))
    for solver, order, grid, options, seeds in SOLVER_CHOICE
]

MEAN_REVERTING = [
    Case("mrs", order, dict(form=form, order=k, low=-99.0, high=99.0), "mean_reverting", "lambda", prediction)
    for form in ("data", "noise")
    for k, order in ((1, 1), (2, 2), (3, 2))
    for prediction in ("epsilon", "sample", "v")
    if prediction == "epsilon" or k == 2
]


@pytest.mark.parametrize("case", ONE_STEP, ids=str)
def test_a_one_step_method_converges_with_its_order(case):
    found = observed(case)
    assert is_of_order(found, case.order), found


@pytest.mark.parametrize("case", MULTISTEP, ids=str)
def test_a_multistep_method_converges_with_its_order(case):
    found = observed(case)
    assert is_of_order(found, case.order), found


@pytest.mark.parametrize("case", ELSEWHERE, ids=str)
def test_solvers_keep_their_order_on_other_processes_and_predictions(case):
    found = observed(case)
    assert is_of_order(found, case.order), found


MU = 0.3


def mean_reverting_network(process, prediction):
    """The mixture's network around mu: it sees y = x - mu, and returns eps, x0 = y0 + mu, or the velocity of section 0."""

    def run(x, t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        noise = network(process, "epsilon")(x, t)
        data = (x - sigma * noise) / alpha
        velocity = alpha * process.sigma_inf * noise - sigma / process.sigma_inf * data
        return {"epsilon": noise, "sample": data + MU, "v": velocity}[prediction]

    return run


@pytest.mark.parametrize("case", MEAN_REVERTING, ids=str)
def test_mrs_follows_the_ode_around_mu_with_its_order(case):
    process, (first, last) = PROCESSES["mean_reverting"]
    y = X_T / 2
    exact = exact_flow(process, y, first, last) + MU
    errors = []
    for steps in case.steps():
        networks = {"denoiser": mean_reverting_network(process, case.prediction)}
        found = interpret(case.program(steps), networks, {"x_T": y, "mu": np.full(5, MU)}, dtype=np.float64)["sample"]
        errors.append(np.abs(found - exact).max())
    assert is_of_order(slopes(errors), case.order), slopes(errors)


# Stochastic solvers: the error of the standard deviation on Gaussian data. The mean is kept exactly: on it x0 does not change.
MEAN, DEVIATION = 0.7, 0.4

STOCHASTIC = [
    *(Case("ddim", 1, dict(eta=eta)) for eta in (0.0, 0.5, 1.0)),
    *(Case("ddpm", 1, dict(variance=variance)) for variance in ("small", "large")),
    *(Case("euler_a", 1, dict(eta=eta)) for eta in (0.5, 1.0)),
    # The flow to rho_down keeps the law, and so does the noise that follows: what is left is the error of the ODE's method
    *(Case("kdpm2_a", 2, dict(eta=eta)) for eta in (0.5, 1.0)),
    *(Case("dpmpp_2s_a", 2, dict(eta=eta)) for eta in (0.5, 1.0)),
    *(Case("dpmpp_sde", 1, dict(order=1, eta=eta)) for eta in (0.5, 1.0)),
    Case("dpmpp_sde", 2, dict(order=2, variant="midpoint"), finest=1024),
    *(Case("dpmpp_sde", 2, dict(order=2, variant="heun", eta=eta)) for eta in (0.5, 1.0)),
    # diffusers' sign error costs an order; the noise limits the third order to the second
    Case("dpmpp_sde", 1, dict(order=3, d2="diffusers"), finest=1024),
    Case("dpmpp_sde", 2, dict(order=3, d2="compat"), finest=1024),
    Case("dpmpp_sde", 2, dict(order=3, d2="exact"), finest=1024),
    *(Case("dpmpp_sde", 2, dict(method="singlestep", eta=eta)) for eta in (0.5, 1.0)),
    Case("dpmpp_sde", 1, dict(form="noise", order=1)),
    *(Case("dpmpp_sde", 2, dict(form="noise", order=2, variant=variant)) for variant in ("midpoint", "heun")),
    *(Case("sa_solver", 1, sa(1, 0, tau)) for tau in (0.0, 0.5, 1.0)),
    *(Case("sa_solver", 2, sa(2, 0, tau)) for tau in (0.0, 0.5, 1.0)),
    *(Case("sa_solver", 2, sa(2, 2, tau), finest=256) for tau in (0.0, 0.5, 1.0)),
    Case("sa_solver", 3, sa(3, 0, 0.0)),
    Case("sa_solver", 2, sa(3, 0, 1.0), finest=1024),
    Case("sa_solver", 2, sa(3, 3, 1.0), finest=512),
    Case("sa_solver", 1, sa(1, 1, 1.0), finest=1024),
    Case("ddim", 1, dict(eta=1.0), "cosine", prediction="v"),
    Case("euler_a", 1, {}, "edm", prediction="edm"),
    Case("dpmpp_sde", 2, dict(variant="heun"), "flow", prediction="flow", finest=512),
    Case("dpmpp_sde", 2, dict(variant="heun"), "edm", prediction="sample", finest=512),
    *(Case("mrs", order, dict(form=form, order=order, sde=True), "mean_reverting_middle") for form in ("data", "noise") for order in (1, 2)),
]


def statistics_errors(case, change=same):
    """Errors of the exact mean and standard deviation, one row per number of steps."""
    process, (first, last) = PROCESSES[case.process]
    mu = MU if case.solver == "mrs" else 0.0
    networks = {"denoiser": network(process, case.prediction, gaussian_noise(MEAN, DEVIATION))}
    mean, deviation = gaussian_law(process, last, MEAN, DEVIATION)
    rows = []
    for steps in case.steps():
        conditions = {"mu": mu} if case.solver == "mrs" else {}
        found = affine_statistics(change(case.program(steps)), networks, gaussian_law(process, first, MEAN, DEVIATION), conditions)
        rows.append((abs(found[0] - mean - mu), abs(found[1] - deviation)))
    return np.array(rows)


@pytest.mark.parametrize("case", STOCHASTIC, ids=str)
def test_the_standard_deviation_of_a_stochastic_solver_converges_with_its_order(case):
    errors = statistics_errors(case)
    assert errors[:, 0].max() < 1e-12, errors
    assert is_of_order(slopes(errors[:, 1]), case.order), slopes(errors[:, 1])


# How the solvers are measured whose defaults need it: exact histories, equal steps in t, noise in every step
MEASURED = {
    "deis": dict(grid="quadratic", seeds=3, finest=256),
    "lms": dict(seeds=3, finest=512),
    "ipndm": dict(process="vp_middle", grid="uniform"),
    "pndm": dict(process="vp_middle", grid="uniform"),
    "dpmpp_3m": dict(finest=256),
    "dpmpp_sde": dict(finest=512),
    "sa_solver": dict(finest=512, options=dict(tau_low=0.0, tau_high=1.0)),
}
DECLARED = [Case(name, solver.order, **MEASURED.get(name, {})) for name, solver in SOLVERS.items() if solver.order > 0 and name != "mrs"]


@pytest.mark.parametrize("case", DECLARED, ids=str)
def test_the_table_of_solvers_declares_the_order_with_default_options(case):
    """MRS has a process of its own, and is measured above."""
    stochastic = any(isinstance(i, Noise) for i in case.program(4).instructions)
    found = slopes(statistics_errors(case)[:, 1]) if stochastic else observed(case)
    assert is_of_order(found, case.order), found


# Negative controls: one mistake in the emitted program, and the check above fails.


def newest_only(terms):
    """The correction dropped: the weight of the oldest estimate given to the newest."""
    if len(terms) < 3:
        return terms
    (a, first, *middle, last) = terms
    return [a, (first[0] + last[0], first[1]), *middle]


def weight_off(terms):
    """The last weight of a long combination 2 % off."""
    return [*terms[:-1], (terms[-1][0] * 1.02, terms[-1][1])] if len(terms) > 2 else terms


def stage_off(terms):
    """Every inner stage a tenth short."""
    return [terms[0], (0.9 * terms[1][0], terms[1][1])] if len(terms) == 2 else terms


BROKEN = [
    (Case("deis_rk", 3, dict(tableau="3kutta")), stage_off),
    (Case("deis_rk", 4, dict(tableau="4rk")), weight_off),
    (Case("heun", 2), stage_off),
    (Case("kdpm2", 2), lambda terms: [terms[0], (1.05 * terms[1][0], terms[1][1])]),
    (Case("deis", 4, dict(variable="t", order=3), grid="quadratic", seeds=3), newest_only),
    (Case("lms", 3, dict(order=3), seeds=2), newest_only),
    (Case("ipndm", 2, dict(order=2), "vp_middle", "uniform"), newest_only),
    (Case("pndm", 2, {}, "vp_middle", "uniform"), weight_off),
    (Case("dpmpp_2m", 2, prediction="sample"), newest_only),
    (Case("dpmpp_3m", 3, dict(d2="exact"), prediction="sample", seeds=2), newest_only),
    (Case("dpmpp_3s", 3, prediction="sample"), weight_off),
    (Case("dpm_solver", 2, dict(method="singlestep")), stage_off),
    (Case("unipc", 3, unipc(2, "bh2", "data", True), prediction="sample"), newest_only),
    (Case("sa_solver", 3, sa(3, 0), prediction="sample", seeds=2), newest_only),
    (Case("ddim", 1), lambda terms: [terms[0], (1.05 * terms[1][0], terms[1][1])]),
]


@pytest.mark.parametrize(("case", "mistake"), BROKEN, ids=[str(case) for case, _ in BROKEN])
def test_a_mistake_in_the_weights_fails_the_order_check(case, mistake):
    found = observed(case, lambda program: everywhere(program, mistake))
    assert not is_of_order(found, case.order), found


def with_noise(program, factor):
    """The weights of all noise in the updates times `factor`."""
    fresh, instructions = set(), []
    for i in program.instructions:
        if isinstance(i, Lincomb):
            i = replace(i, terms=tuple((c * factor if name in fresh else c, name) for c, name in i.terms))
        fresh = fresh | {i.out} if isinstance(i, Noise) else fresh - set(writes(i))
        instructions.append(i)
    return replace(program, instructions=tuple(instructions))


def louder(program):
    """All noise 5 % too loud."""
    return with_noise(program, 1.05)


def silent(program):
    """No noise."""
    return with_noise(program, 0.0)


def one_draw(program):
    """Every step reads the first draw again. (The verifier refuses such a program; the statistics see it too.)"""
    return replace(program, instructions=tuple(replace(i, draw=1) if isinstance(i, Noise) else i for i in program.instructions))


SDE_CASES = [
    Case("ddpm", 1, prediction="sample"),
    Case("ddim", 1, dict(eta=1.0), prediction="sample"),
    Case("euler_a", 1),
    Case("kdpm2_a", 2),
    Case("dpmpp_2s_a", 2, prediction="sample"),
    Case("dpmpp_sde", 2, dict(variant="heun"), prediction="sample"),
    Case("dpmpp_sde", 2, dict(method="singlestep"), prediction="sample"),
    Case("sa_solver", 2, sa(2, 0, 1.0), prediction="sample"),
]


@pytest.mark.parametrize("mistake", [louder, silent, one_draw])
@pytest.mark.parametrize("case", SDE_CASES, ids=str)
def test_a_mistake_in_the_noise_fails_the_order_of_the_standard_deviation(case, mistake):
    errors = statistics_errors(case, mistake)
    assert not is_of_order(slopes(errors[:, 1]), case.order), errors
