"""Guidance and the model's binding are transforms of programs: the same for every solver."""

from __future__ import annotations

import numpy as np
import pytest

from edgegen.diffusion import make_process
from edgegen.errors import ProgramError, Status
from edgegen.program import Concat, Eval, Lincomb, Muladd, Reduce, Slice, interpret, verify
from edgegen.solvers import SOLVERS, Denoiser, Guidance, build_program

VP = make_process("vp_linear")
X = np.random.default_rng(0).standard_normal((4, 3, 5))
LABELS = np.arange(4)
MODEL = Denoiser(conditions=("label",))


def network(x, t, label):
    """A smooth network; 10 is the null label."""
    shift = np.where(np.asarray(label) == 10, 0.0, 1.0 + np.asarray(label)).reshape(-1, *[1] * (x.ndim - 1))
    return np.tanh(0.7 * x + 0.3 * np.cos(float(np.mean(t)))) + 0.1 * shift + 0.02 * shift * x


def sample(program, net=network, **inputs):
    return interpret(program, {"denoiser": net}, {"x_T": X, "label": LABELS} | inputs, dtype=np.float64, seed=3)["sample"]


def test_rescaled_guidance_is_the_papers_formula():
    w, phi = 4.0, 0.7
    program = build_program("dpmpp_2m", VP, "epsilon", 5, guidance=Guidance(w, {"label": 10}, rescale=phi), model=MODEL)

    def rescaled(x, t):
        conditional, unconditional = network(x, t, LABELS), network(x, t, np.full(4, 10))
        guided = unconditional + w * (conditional - unconditional)
        ratio = conditional.std((1, 2), ddof=1) / guided.std((1, 2), ddof=1)
        return phi * guided * ratio[:, None, None] + (1 - phi) * guided

    plain = build_program("dpmpp_2m", VP, "epsilon", 5)
    wanted = interpret(plain, {"denoiser": rescaled}, {"x_T": X}, dtype=np.float64)["sample"]
    np.testing.assert_allclose(sample(program), wanted, rtol=1e-10)
    without = build_program("dpmpp_2m", VP, "epsilon", 5, guidance=Guidance(w, {"label": 10}), model=MODEL)
    assert np.abs(sample(without) - wanted).max() > 0.01  # so the test can fail


def test_guidance_in_an_interval_runs_the_conditional_branch_alone_outside_it():
    grid = [1.0, 0.8, 0.6, 0.4, 0.2, 0.05]
    guidance = Guidance(3.0, {"label": 10}, interval=(0.3, 0.7))
    program = build_program("ddim", VP, "epsilon", 5, grid=grid, guidance=guidance, model=MODEL)
    branches = [i.branches for i in program.instructions if isinstance(i, Eval)]
    assert branches == [1, 1, 2, 2, 1]  # at 0.6 and 0.4
    assert dict(program.nfe) == {"denoiser": 7}

    def combined(x, t):
        conditional = network(x, t, LABELS)
        if not 0.3 <= float(np.mean(t)) <= 0.7:
            return conditional
        return 3.0 * conditional - 2.0 * network(x, t, np.full(4, 10))

    wanted = interpret(build_program("ddim", VP, "epsilon", 5, grid=grid), {"denoiser": combined}, {"x_T": X}, dtype=np.float64)["sample"]
    np.testing.assert_allclose(sample(program), wanted, rtol=1e-11)


def test_an_interval_is_in_the_processs_time_whatever_the_network_is_told():
    guidance = Guidance(3.0, {"label": 10}, interval=(0.3, 0.7))
    model = Denoiser(conditions=("label",), time="times_999")
    program = build_program("ddim", VP, "epsilon", 5, grid=[1.0, 0.8, 0.6, 0.4, 0.2, 0.05], guidance=guidance, model=model)
    assert dict(program.nfe) == {"denoiser": 7}


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"gl_lcm", "mrs", "meanflow", "prodiff", "ddgan"}))
@pytest.mark.parametrize("batched", [True, False])
def test_every_solver_guided_equals_itself_on_a_guided_network(solver, batched):
    program = build_program(solver, VP, "epsilon", 4, guidance=Guidance(2.5, {"label": 10}, batched), model=MODEL)
    plain = build_program(solver, VP, "epsilon", 4)
    assert program.nfe["denoiser"] == 2 * plain.nfe["denoiser"]

    def combined(x, t):
        return 2.5 * network(x, t, LABELS) - 1.5 * network(x, t, np.full(4, 10))

    wanted = interpret(plain, {"denoiser": combined}, {"x_T": X}, dtype=np.float64, seed=3)["sample"]
    np.testing.assert_allclose(sample(program), wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (Guidance(2.0, {"label": 10}, rescale=1.5), "rescale: expected 0 to 1"),
        (Guidance(2.0, {"label": 10}, interval=(0.7, 0.3)), "earliest <= latest"),
        (Guidance(np.inf, {"label": 10}), "not finite"),
    ],
)
def test_guidance_that_makes_no_sense_is_refused(guidance, message):
    with pytest.raises(ProgramError, match=message):
        build_program("ddim", VP, "epsilon", 3, guidance=guidance, model=MODEL)


def test_a_solver_with_branches_of_its_own_takes_no_guidance():
    with pytest.raises(ProgramError, match="takes no classifier-free guidance"):
        build_program("gl_lcm", make_process("vp_betas"), "epsilon", 4, guidance=2.0)


def test_gl_lcm_says_that_it_cannot_begin_at_alpha_zero():
    with pytest.raises(ProgramError, match="dividing by alpha, which is 0") as e:
        build_program("gl_lcm", make_process("flow"), "epsilon", 2)
    assert e.value.code == Status.OUT_OF_RANGE


def test_conditions_joined_to_the_state_reach_the_network_behind_it():
    program = build_program("ddim", VP, "epsilon", 3, model=Denoiser(concat=("mask", "masked")))
    assert sum(isinstance(i, Concat) for i in program.instructions) == 3
    mask, masked = np.ones((4, 1, 5)), np.full((4, 3, 5), 2.0)

    def net(x, t):
        assert x.shape == (4, 7, 5) and (x[:, 3:4] == 1).all() and (x[:, 4:] == 2).all()
        return 0.1 * x[:, :3]

    inputs = {"x_T": X, "mask": mask, "masked": masked}
    found = interpret(program, {"denoiser": net}, inputs, dtype=np.float64)["sample"]
    plain = interpret(build_program("ddim", VP, "epsilon", 3), {"denoiser": lambda x, t: 0.1 * x}, {"x_T": X}, dtype=np.float64)["sample"]
    np.testing.assert_allclose(found, plain, rtol=1e-13)


def test_edms_input_scale_touches_the_state_and_not_what_is_joined_to_it():
    process = make_process("edm", sigma_min=0.005, sigma_max=1.0)
    program = build_program("ddim", process, "edm", 3, model=Denoiser(concat=("context",), time="log_sigma_over_4"))
    seen = []

    def net(x, t):
        seen.append((x.copy(), float(t)))
        return np.zeros_like(x[:, :3])

    interpret(program, {"denoiser": net}, {"x_T": X, "context": np.ones((4, 2, 5))}, dtype=np.float64)
    assert all((x[:, 3:] == 1).all() for x, _ in seen)
    np.testing.assert_allclose(seen[0][0][:, :3], X / np.sqrt(1.0 + 0.25), rtol=1e-13)
    np.testing.assert_allclose([t for _, t in seen][:1], [0.0], atol=1e-15)
    assert any(isinstance(i, Lincomb) for i in program.instructions)


def test_of_a_network_that_returns_a_variance_too_the_first_channels_are_taken():
    program = build_program("dpmpp_2m", VP, "epsilon", 3, model=Denoiser(channels=3))
    assert sum(isinstance(i, Slice) for i in program.instructions) == 3

    def net(x, t):
        return np.concatenate([0.1 * x, np.full_like(x, 1e6)], axis=1)

    found = interpret(program, {"denoiser": net}, {"x_T": X}, dtype=np.float64)["sample"]
    plain = interpret(build_program("dpmpp_2m", VP, "epsilon", 3), {"denoiser": lambda x, t: 0.1 * x}, {"x_T": X}, dtype=np.float64)["sample"]
    np.testing.assert_allclose(found, plain, rtol=1e-12)


def test_samples_are_un_normalised_per_channel_at_the_end():
    model = Denoiser(scale=(2.0, 3.0, 4.0), shift=(0.5,))
    program = build_program("ddim", VP, "epsilon", 3, model=model)
    assert isinstance(program.instructions[-1], Muladd)
    net = {"denoiser": lambda x, t: 0.1 * x}
    plain = interpret(build_program("ddim", VP, "epsilon", 3), net, {"x_T": X}, dtype=np.float64)["sample"]
    found = interpret(program, net, {"x_T": X}, dtype=np.float64)["sample"]
    np.testing.assert_allclose(found, plain * np.array([2.0, 3.0, 4.0])[:, None] + 0.5, rtol=1e-13)
    assert program.steps[-1].after == len(program.instructions)
    verify(program)


def test_gl_lcm_sharpens_the_local_path_and_fuses_it_by_the_mask():
    """Against a plain loop: LCM steps of two paths, the local noise estimate guided by fresh noise over its own spread."""
    from edgegen.program import normals
    from edgegen.solvers.consistency import boundary_scalings

    process = make_process("vp_betas")
    program = build_program("gl_lcm", process, "epsilon", 3)
    assert sum(isinstance(i, Reduce) for i in program.instructions) == 3 + 2
    rng = np.random.default_rng(5)
    whole, lungs, mask = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 5)), (rng.random((2, 1, 5)) > 0.4).astype(float)

    def net(x, t):
        return np.tanh(x[:, :3] + 0.3 * x[:, 3:]) + 1e-4 * t

    x_t = rng.standard_normal((2, 3, 5))
    outputs = interpret(
        program, {"denoiser": net}, {"x_T": x_t, "global_condition": whole, "local_condition": lungs, "mask": mask}, dtype=np.float64, seed=11
    )
    draws = iter(normals(11, k, x_t.shape).astype(np.float64) for k in range(1, 100))
    g = low = x_t
    times = [s.time for s in program.steps]
    for i, (t, after) in enumerate(zip([999.0, *times[:-1]], times, strict=True)):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        c_skip, c_out = boundary_scalings(process, t, 10.0)
        e_g, e_l = net(np.concatenate([g, whole], 1), t), net(np.concatenate([low, lungs], 1), t)
        e_l = 3.0 * e_l - 2.0 * next(draws) / e_l.std((1, 2), ddof=1)[:, None, None]
        f_g = c_out * np.clip((g - sigma * e_g) / alpha, -2.0 - 0.025 * i, 2.0 + 0.025 * i) + c_skip * g
        f_l = c_out * np.clip((low - sigma * e_l) / alpha, -3.5 - 0.025 * i, 3.5 + 0.025 * i) + c_skip * low
        if after < 0:
            g, low = f_g, f_l
        else:
            g, low = (float(process.alpha(after)) * f + float(process.sigma(after)) * next(draws) for f in (f_g, f_l))
    np.testing.assert_allclose(outputs["global"], g, rtol=1e-9)
    np.testing.assert_allclose(outputs["local"], low, rtol=1e-9)
    inside = np.broadcast_to(mask != 0, g.shape)
    for k in range(2):
        shift = g[k][inside[k]].mean() - low[k][inside[k]].mean()
        np.testing.assert_allclose(outputs["sample"][k], np.where(inside[k], low[k] + shift, g[k]), rtol=1e-8, atol=1e-10)
