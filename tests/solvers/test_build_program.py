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


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize(("process", "prediction"), [(VP, "epsilon"), (EDM, "sample"), (FLOW, "flow"), (make_process("vp_betas"), "v")])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_solver_builds_and_runs_with_its_defaults_from_one_step_on(solver, process, prediction, steps):
    program = build_program(solver, process, prediction, steps)
    assert dict(program.nfe) == {"denoiser": steps}
    assert len(program.steps) == steps
    out = interpret(program, {"denoiser": lambda x, t: 0.1 * x}, {"x_T": X_T}, dtype=np.float64)["sample"]
    assert np.isfinite(out).all()


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
