"""build_program: names, grids, guidance, bad input."""

from __future__ import annotations

import numpy as np
import pytest

from edgegen.diffusion import make_process
from edgegen.errors import ProgramError, Status
from edgegen.program import Eval, interpret, verify
from edgegen.solvers import SOLVERS, Denoiser, Guidance, build_program
from tests.analytic import X_T, network

VP = make_process("vp_linear")
EDM = make_process("edm")
FLOW = make_process("flow")


def conditional(x, t, label):
    """A network whose label shifts the data: 10 is the null label."""
    return network(VP, "epsilon")(x, float(t)) + 0.1 * np.where(np.asarray(label) == 10, 0.0, 1.0 + np.asarray(label))


BETAS = make_process("vp_betas")
CASES = {"vp": (VP, "epsilon"), "edm": (EDM, "sample"), "edm raw": (EDM, "edm"), "flow": (FLOW, "flow"), "table": (BETAS, "v")}
OWN = {
    "mrs": (make_process("mean_reverting"), "epsilon"), "meanflow": (FLOW, "average_velocity"), "gl_lcm": (BETAS, "epsilon"),
    "ddgan": (make_process("vp_betas", schedule="ddgan", steps=4), "sample"), "prodiff": (make_process("vp_betas", schedule="prodiff", steps=5), "sample"),
}  # fmt: skip
REFUSALS = {
    "mrs": "needs the process 'mean_reverting'",
    "meanflow": "needs the process 'flow' and the prediction 'average_velocity'",
    "prodiff": "steps through a table of betas",
    "gl_lcm": "needs a network of epsilon",
}
PURE_NOISE_START = "start the grid just below it, or use a solver in data form"


def run(program, dtype=np.float64):
    """The sample, and how often the network ran (a batch of k branches k times)."""
    rows = 2
    calls = []

    def net(x, **others):
        calls.append(len(x) // rows)
        return 0.1 * x[:, :3] + 0.01 * float(np.mean([np.mean(v) for v in others.values()]))

    inputs = {i.name: np.random.default_rng(1).standard_normal((rows, 3, 2)) for i in program.inputs}
    return interpret(program, {"denoiser": net}, inputs, dtype=dtype)["sample"], sum(calls)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("case", [*CASES, "own"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_every_solver_works_from_one_step_on_or_is_refused_with_the_reason(solver, case, steps):
    process, prediction = OWN.get(solver, (BETAS, "epsilon")) if case == "own" else CASES[case]
    if case != "own" and solver in REFUSALS and (solver, case) not in (("prodiff", "table"), ("gl_lcm", "vp")):
        with pytest.raises(ProgramError, match=REFUSALS[solver]):
            build_program(solver, process, prediction, steps)
        return
    try:
        program = build_program(solver, process, prediction, steps)
    except ProgramError as e:
        assert process is FLOW and PURE_NOISE_START in str(e)  # flows start at alpha = 0, where the noise form has no step
        program = build_program(solver, process, prediction, steps, t_start=0.99)
    assert len(program.steps) == steps
    sample, evaluations = run(program)
    assert np.isfinite(sample).all() and sample.shape == (2, 3, 2)
    assert dict(program.nfe) == {"denoiser": evaluations}


@pytest.mark.parametrize("solver", ["unipc", "dpmpp_2m", "dpmpp_3m", "sa_solver", "dpmpp_sde", "deis", "dpm_solver", "ddim"])
def test_a_zero_terminal_snr_start_works_in_data_form_and_is_refused_in_noise_form(solver):
    process = make_process("vp_betas", terminal=0.0)
    assert float(process.alpha(999.0)) == 0.0
    if solver in ("deis", "dpm_solver"):
        with pytest.raises(ProgramError, match=PURE_NOISE_START):
            build_program(solver, process, "v", 6, grid="trailing")
    else:
        sample, _ = run(build_program(solver, process, "v", 6, grid="trailing"))
        assert np.isfinite(sample).all()
    with pytest.raises(ProgramError, match="says nothing about the data at alpha = 0|start the grid just below it"):
        build_program(solver, process, "epsilon", 6, grid="trailing")


@pytest.mark.parametrize(("solver", "options"), [("dpm_solver", {"order": 2}), ("deis", {"variable": "log_rho"}), ("dpmpp_2s", {}), ("dpmpp_3s", {}),
                                                 ("unipc", {"order": 3}), ("dpmpp_3m", {}), ("heun", {}), ("kdpm2", {}), ("lms", {})])  # fmt: skip
def test_an_end_at_sigma_zero_lowers_the_order_of_the_last_step(solver, options):
    sample, _ = run(build_program(solver, BETAS, "epsilon", 5, t_end=-1.0, **options))
    assert np.isfinite(sample).all()


def test_noise_form_sde_is_refused_at_sigma_zero():
    with pytest.raises(ProgramError, match="cannot end at sigma = 0; set t_end above it, or use the data form"):
        build_program("dpmpp_sde", BETAS, "epsilon", 4, form="noise")


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        ("deis", dict(order=4), "order from 0 to 3, found 4"),
        ("deis", dict(variable="x"), "no variable 'x'"),
        ("deis_rk", dict(tableau="5rk"), "no tableau '5rk'"),
        ("lms", dict(order=0), "order from 1 to 4"),
        ("ipndm", dict(order=5), "order from 1 to 4"),
        ("dpm_solver", dict(order=4), "order"),
        ("dpm_solver", dict(method="adaptive"), "method"),
        ("dpmpp_2m", dict(variant="taylor"), "variant"),
        ("dpmpp_3m", dict(d2="half"), "d2"),
        ("dpmpp_2s", dict(method="multistep"), "method"),
        ("dpmpp_sde", dict(order=4), "order 4"),
        ("dpmpp_sde", dict(form="noise", eta=0.5, t_end=0.0), "is not a method"),
        ("unipc", dict(order=4), "order from 1 to 3"),
        ("unipc", dict(variant="bh3"), "no variant 'bh3'"),
        ("sa_solver", dict(predictor_order=0), "predictor_order from 1 to 4"),
        ("sa_solver", dict(corrector_order=5), "corrector_order from 0 to 4"),
        ("ddpm", dict(variance="learned"), "no variance 'learned'"),
        ("tcd", dict(gamma=1.5), "gamma from 0 to 1"),
        ("lcm", dict(timestep_scaling=0.0), "timestep_scaling > 0"),
        ("ddgan", dict(latent=0), "latent from 1 to"),
        ("dualfast", dict(base="heun"), "no base 'heun'"),
        ("dualfast", dict(where="nowhere"), "no place"),
        ("dualfast", dict(c=[0.1]), "4 values of c and tau"),
        ("dualfast", dict(tau=[0, 0]), "4 values of c and tau"),
        ("ddim", dict(eta=float("nan")), "eta is nan"),
        ("dpmpp_2m", dict(lower_order_final="no"), "true or false"),
        ("pndm", dict(runge_kutta=1), "true or false"),
        ("lms", dict(steps=1001, grid="leading"), "1001 steps do not fit a table of 1000"),
        ("lcm", dict(steps=60), "steps <= original_steps"),
        ("meanflow", {}, "needs the process 'flow'"),
        ("heun", dict(clip=1.0, threshold=2.0), "threshold quantile"),
        ("dpmpp_2m", dict(grid="karras", grid_options={"power": 0}), "power > 0"),
        ("dpmpp_2m", dict(grid="karras", grid_options={"rho": 7}), "grid 'karras' has no option 'rho'"),
        ("dpmpp_2m", dict(grid=[999.0, 500.0, 250.0, 100.0, -1.0], grid_options={"power": 2}), "has its own ends"),
        ("dpmpp_2m", dict(grid="shifted"), "is for flows"),
        ("dpmpp_2m", dict(prediction="average_velocity"), "only solver 'meanflow' reads it"),
    ],
)
def test_options_that_make_no_method_are_refused(solver, options, message):
    arguments = dict(solver=solver, process=BETAS, prediction="epsilon", steps=4) | options
    with pytest.raises(ProgramError, match=message):
        build_program(**arguments)


@pytest.mark.parametrize("solver", ["meanflow", "mrs", "gl_lcm"])
def test_clip_is_refused_where_there_is_no_estimate_to_clip(solver):
    process, prediction = OWN[solver]
    with pytest.raises(ProgramError, match="clip"):
        build_program(solver, process, prediction, 4, clip=1.0)


def test_class_names_of_diffusers_and_short_names_mean_the_same_solver():
    for name in ("euler_a", "euler_ancestral", "EulerAncestralDiscreteScheduler"):
        assert build_program(name, BETAS, "epsilon", 4) == build_program("euler_a", BETAS, "epsilon", 4)
    with pytest.raises(ProgramError, match="did you mean .*UniPCMultistepScheduler.*Known"):
        build_program("UniPCScheduler", BETAS, "epsilon", 4)


def test_unknown_solver_lists_the_nearest():
    with pytest.raises(ProgramError, match="no solver 'dpmp_2m': did you mean 'dpmpp_2m'") as e:
        build_program("dpmp_2m", VP, "epsilon", 4)
    assert e.value.code == Status.UNKNOWN_NAME


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prediction="eps"), "no prediction 'eps'"),
        (dict(grid="lamda"), "did you mean 'lambda'"),
        (dict(steps=0), "whole number of steps >= 1, found 0"),
        (dict(steps=2.5), "whole number of steps"),
        (dict(t_start=0.1, t_end=0.5), "expected 0 <= t_end < t_start <= 1"),
        (dict(t_start=1.5), "t_start = 1.5"),
        (dict(grid=[1.0, 0.5, 0.5, 0.2, 0.1]), "times 1 and 2 are 0.5 and 0.5"),
        (dict(grid=[0.1, 0.5, 0.6, 0.7, 0.8]), "strictly decrease"),
        (dict(grid=[1.0, 0.5, np.nan, 0.2, 0.1]), "time 2 is not finite"),
        (dict(grid=[1.0, 0.5]), "needs 5 times"),
        (dict(grid=[1.0, 0.8, 0.5, 0.2, 0.1], t_end=0.1), "has its own ends"),
        (dict(grid="leading"), "spaces the indices of a table"),
        (dict(eta=2.0), "0 <= eta <= 1"),
        (dict(order=3), "has no option 'order'"),
        (dict(threshold=0.0), "threshold quantile"),
        (dict(clip=-1.0), "clip > 0"),
        (dict(guidance=Guidance(2.0, {})), "guidance needs `null`"),
        (dict(guidance=Guidance(2.0, {"text": 0})), "found text"),
        (dict(guidance=Guidance(np.nan, {"t": 0})), "not finite"),
    ],
)
def test_bad_arguments_say_what_was_expected(arguments, message):
    arguments = dict(solver="ddim", process=VP, prediction="epsilon", steps=4) | arguments
    with pytest.raises(ProgramError, match=message.replace("(", r"\(")):
        build_program(**arguments)


def test_epsilon_at_alpha_zero_is_refused_with_the_reason():
    with pytest.raises(ProgramError, match="says nothing about the data at alpha = 0"):
        build_program("dpmpp_2m", FLOW, "epsilon", 4)


@pytest.mark.parametrize("prediction", ["flow", "v", "sample"])
def test_a_start_at_alpha_zero_and_an_end_at_sigma_zero_stay_finite(prediction):
    program = build_program("dpmpp_2m", FLOW, prediction, 6)
    assert program.steps[-1].time == 0.0
    verify(program)


def test_lower_order_final_makes_the_last_of_few_steps_first_order():
    few = build_program("dpmpp_2m", VP, "epsilon", 5)
    always = build_program("dpmpp_2m", VP, "epsilon", 5, lower_order_final=False)
    assert len(few.instructions[-1].terms) < len(always.instructions[-1].terms)
    many = build_program("dpmpp_2m", VP, "epsilon", 15)
    assert len(many.instructions[-1].terms) == len(always.instructions[-1].terms)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_guidance_equals_a_network_that_is_guided_itself(solver, batched):
    w, label = 2.5, np.array([0, 1, 2, 3, 4])
    model = Denoiser(conditions=("label",))
    guided = build_program(solver, VP, "epsilon", 6, guidance=Guidance(w, {"label": 10}, batched), model=model)
    assert dict(guided.nfe) == {"denoiser": 12}
    found = interpret(guided, {"denoiser": conditional}, {"x_T": X_T, "label": label}, dtype=np.float64)["sample"]
    plain = build_program(solver, VP, "epsilon", 6)

    def combined(x, t):
        return w * conditional(x, t, label) + (1 - w) * conditional(x, t, np.full(5, 10))

    wanted = interpret(plain, {"denoiser": combined}, {"x_T": X_T}, dtype=np.float64)["sample"]
    np.testing.assert_allclose(found, wanted, rtol=1e-11)


def test_guidance_with_a_negative_condition_reads_it_from_the_caller():
    program = build_program("ddim", VP, "epsilon", 3, guidance=Guidance(3.0, {"label": "negative"}), model=Denoiser(conditions=("label",)))
    assert [i.name for i in program.inputs] == ["x_T", "label", "negative"]
    inputs = {"x_T": X_T, "label": np.arange(5), "negative": np.full(5, 2)}
    assert np.isfinite(interpret(program, {"denoiser": conditional}, inputs)["sample"]).all()


def test_guidance_of_one_costs_nothing():
    program = build_program("ddim", VP, "epsilon", 3, guidance=Guidance(1.0, {"label": 10}), model=Denoiser(conditions=("label",)))
    assert dict(program.nfe) == {"denoiser": 3}


def test_a_bare_number_guides_cond_against_uncond():
    program = build_program("ddim", VP, "epsilon", 3, guidance=2.0)
    assert [i.name for i in program.inputs] == ["x_T", "cond", "uncond"]


def test_model_names_and_time_maps_reach_the_network():
    seen = []

    def net(latent, timestep):
        seen.append(float(timestep))
        return {"noise": 0.1 * latent}

    model = Denoiser("unet", "latent", "timestep", "noise", time="times_999")
    program = build_program("ddim", VP, "epsilon", 2, grid=[1.0, 0.5, 0.1], model=model)
    interpret(program, {"unet": net}, {"x_T": X_T}, dtype=np.float64)
    assert seen == [999.0, 499.5]
    edm = build_program("euler", EDM, "sample", 2, grid=[4.0, 1.0, 0.5], model=Denoiser(time="log_sigma_over_4"))
    times = [i.inputs["t"][0].value for i in edm.instructions if isinstance(i, Eval)]
    np.testing.assert_allclose(times, np.log([4.0, 1.0]) / 4)


def test_a_thousand_steps_build_and_verify():
    assert len(build_program("ddim", VP, "epsilon", 1000).steps) == 1000


def test_programs_need_few_registers():
    program = build_program("dpmpp_2m", VP, "epsilon", 50)
    assert len({r for i in program.instructions for r in ([i.out] if hasattr(i, "out") else i.outputs["prediction"])}) <= 4
