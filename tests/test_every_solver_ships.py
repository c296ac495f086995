"""Every solver, and every way of telling a network what it needs, goes through the same recipe, bundle and runtime unchanged."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import edgegen
from edgegen.errors import ProgramError, RecipeError, RuntimeFault
from edgegen.pipeline import Options, build
from edgegen.plan import make_plan
from edgegen.recipe import load_recipe
from edgegen.runtime.session import open_session
from edgegen.solvers import SOLVERS
from edgegen.solvers.table import why_not
from edgegen.workspace import Workspace
from tests.tiny import mixing_model, write_tiny

STATE = [3, 4, 4]


def ship(folder, recipe, inputs, output=None, files=None):
    """Build a bundle of a mixing network and open it."""
    onnx.save(mixing_model(inputs, output or STATE), folder / "net.onnx")
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    (folder / "recipe.toml").write_text('schema = 1\nname = "ship"\n' + recipe + "\n[gate]\nsamples = 2\n[quantization]\nprecisions = []\n")
    plan = make_plan(load_recipe(folder / "recipe.toml"), folder)
    return edgegen.load(build(plan, folder / "ship.edgegen", Workspace(folder / "cache"), Options(measured=False)), threads=1)


def checked(session, **conditions):
    """Golden vectors hold, every program gives finite samples that do not depend on the batch, and the same fused."""
    assert all(d.rmse <= tolerance for _, _, d, tolerance in session.self_test())
    fused = open_session(session.bundle, threads=1, fused=True)
    for name in session.programs:
        needed = {i.name for i in session.bundle.programs[name].inputs}
        given = {k: v for k, v in conditions.items() if k in needed}
        samples = session.generate(seed=3, batch=2, program=name, **given)
        assert np.isfinite(samples).all()
        assert session.report.nfe == dict(session.bundle.programs[name].nfe)
        np.testing.assert_allclose(fused.generate(seed=3, batch=2, program=name, **given), samples, rtol=1e-4, atol=1e-4)
        first = session.generate(seed=3, batch=1, program=name, **given)
        if not any(type(i).__name__ == "Noise" and i.shape is not None for i in session.bundle.programs[name].instructions):
            np.testing.assert_allclose(samples[:1], first, rtol=1e-4, atol=1e-5)
    return samples


STATE_AND_TIME = {"x": ("float32", STATE), "t": ("float32", [])}


@pytest.mark.parametrize("process", ["vp_linear", "vp_betas", "edm", "flow"])
def test_every_solver_that_fits_a_process_ships_and_runs(process, tmp_path):
    from edgegen.diffusion import make_process

    reasons = why_not(make_process(process), "v" if process != "flow" else "flow", 3)
    fitting = [name for name, reason in reasons.items() if not reason]
    assert len(fitting) >= (24 if process != "flow" else 9)
    assert all(reasons[name] for name in set(SOLVERS) - set(fitting))
    programs = "\n".join(f'[[programs]]\nsolver = "{name}"\nsteps = [3]\n' for name in fitting if name != "ddgan")
    recipe = f'[model]\nsource = "net.onnx"\nprediction = "{"v" if process != "flow" else "flow"}"\nsample_shape = {STATE}\n[process]\nname = "{process}"\n'
    with ship(tmp_path, recipe + programs, STATE_AND_TIME) as session:
        checked(session)
        assert len(session.programs) == len([name for name in fitting if name != "ddgan"])


def test_meanflow_tells_the_network_both_times(tmp_path):
    recipe = f"""[model]
source = "net.onnx"
prediction = "average_velocity"
sample_shape = {STATE}
[model.names]
r = "r"
[process]
name = "flow"
[[programs]]
solver = "meanflow"
steps = [1, 2]
[[programs]]
solver = "meanflow"
steps = [2]
options = {{ conditioning = "t_h" }}
"""
    with ship(tmp_path, recipe, {"x": ("float32", STATE), "t": ("float32", []), "r": ("float32", [])}) as session:
        checked(session)
        noise = np.random.default_rng(0).standard_normal((1, *STATE)).astype(np.float32)
        np.testing.assert_allclose(session.generate(noise=noise, program="meanflow-1"), noise - (0.5 * noise + 0.01), rtol=1e-5, atol=1e-6)
        x = noise - 0.5 * (0.5 * noise + 0.01 * (1.0 + 0.5))
        np.testing.assert_allclose(session.generate(noise=noise, program="meanflow-2"), x - 0.5 * (0.5 * x + 0.01 * 0.5), rtol=1e-5, atol=1e-6)
        x = noise - 0.5 * (0.5 * noise + 0.01 * (1.0 + 0.5))
        np.testing.assert_allclose(session.generate(noise=noise, program="meanflow-2-1"), x - 0.5 * (0.5 * x + 0.01), rtol=1e-5, atol=1e-6)


def test_ddgan_draws_the_latent_noise_that_the_network_wants(tmp_path):
    recipe = f"""[model]
source = "net.onnx"
prediction = "sample"
sample_shape = {STATE}
latent = 6
[model.names]
latent = "z"
[process]
name = "vp_betas"
schedule = "ddgan"
steps = 4
[[programs]]
solver = "ddgan"
steps = [4]
"""
    with ship(tmp_path, recipe, {"x": ("float32", STATE), "t": ("float32", []), "z": ("float32", [6])}) as session:
        samples = checked(session)
        assert np.abs(samples[0] - samples[1]).max() > 0


def test_mrs_restores_from_a_degraded_image_joined_to_the_state(tmp_path):
    recipe = f"""[model]
source = "net.onnx"
prediction = "epsilon"
sample_shape = {STATE}
[process]
name = "mean_reverting"
[conditions.mu]
shape = {STATE}
input = "concat"
minimum = 0.0
maximum = 1.0
[[programs]]
solver = "mrs"
steps = [5]
"""
    with ship(tmp_path, recipe, {"x": ("float32", [6, 4, 4]), "t": ("float32", [])}) as session:
        mu = np.random.default_rng(0).random(STATE).astype(np.float32)
        samples = checked(session, mu=mu)
        assert samples.min() >= 0.0 and samples.max() <= 1.0
        with pytest.raises(RuntimeFault, match="condition 'mu' is needed|out of range"):
            session.generate(seed=0, mu=mu + 2)


def test_gl_lcm_reads_its_conditions_and_mask_in_the_program(tmp_path):
    conditions = "".join(
        f'[conditions.{name}]\nshape = {shape}\ninput = "program"\ndefault = 0.5\n'
        for name, shape in (("global_condition", STATE), ("local_condition", STATE), ("mask", [1, 4, 4]))
    )
    recipe = f"""[model]
source = "net.onnx"
prediction = "epsilon"
sample_shape = {STATE}
input_shape = [6, 4, 4]
[process]
name = "vp_betas"
{conditions}
[[programs]]
solver = "gl_lcm"
steps = [4]
"""
    with ship(tmp_path, recipe, {"x": ("float32", [6, 4, 4]), "t": ("float32", [])}) as session:
        checked(session)
        assert session.report.nfe["denoiser"] == 8


def test_a_negative_condition_is_a_condition_that_the_caller_gives(tmp_path):
    recipe = f"""[model]
source = "net.onnx"
prediction = "v"
sample_shape = {STATE}
[process]
name = "vp_linear"
[conditions.text]
shape = [5]
negative = "negative_text"
default = 0.0
[[programs]]
solver = "ddim"
steps = [3]
guidance = 4.0
guidance_rescale = 0.5
guidance_interval = [0.2, 0.9]
[[programs]]
solver = "ddim"
steps = [2]
"""
    with ship(tmp_path, recipe, {"x": ("float32", STATE), "t": ("float32", []), "text": ("float32", [5])}) as session:
        checked(session)
        text = np.ones(5, np.float32)
        plain = session.generate(seed=1, text=text)
        guided = session.generate(seed=1, text=text, negative_text=-text)
        assert np.abs(plain - guided).max() > 1e-3
        with pytest.raises(RuntimeFault, match="no condition 'negative_text'"):
            session.generate(seed=1, program="ddim-2", text=text, negative_text=-text)


def test_a_variance_beside_the_prediction_is_cut_off_and_samples_are_un_normalised(tmp_path):
    recipe = f"""[model]
source = "net.onnx"
prediction = "epsilon"
sample_shape = {STATE}
output_shape = [6, 4, 4]
[sample]
scale = [2.0, 3.0, 4.0]
shift = [1.0]
[process]
name = "vp_linear"
[[programs]]
solver = "ddim"
steps = [3]
"""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with ship(tmp_path / "a", recipe, STATE_AND_TIME, [6, 4, 4]) as session:
        found = checked(session)
    plain = recipe.replace("output_shape = [6, 4, 4]\n", "").replace("scale = [2.0, 3.0, 4.0]\nshift = [1.0]\n", "")
    with ship(tmp_path / "b", plain, STATE_AND_TIME) as session:
        wanted = checked(session)
    np.testing.assert_allclose(found, wanted * np.array([2.0, 3.0, 4.0], np.float32)[:, None, None] + 1.0, rtol=1e-5, atol=1e-5)


SCHEDULER = {"_class_name": "UniPCMultistepScheduler", "_diffusers_version": "0.42.1", "solver_order": 2, "prediction_type": "v_prediction"}


def scheduler_recipe(extra=""):
    return f'[model]\nsource = "net.onnx"\nprediction = "v"\nsample_shape = {STATE}\n[[programs]]\nscheduler = "scheduler_config.json"\nsteps = [4]\n{extra}'


def test_a_scheduler_config_gives_solver_process_and_grid(tmp_path):
    with ship(tmp_path, scheduler_recipe(), STATE_AND_TIME, files={"scheduler_config.json": json.dumps(SCHEDULER)}) as session:
        checked(session)
        assert session.programs == ("unipc-4",)
        assert session.bundle.document("recipe")["process"]["name"] == "vp_betas"


def test_a_bundle_made_from_a_scheduler_config_alone_knows_its_networks_time(tmp_path):
    """So that other solvers can be tried on it: a flow's network is told 1000 t."""
    from edgegen.program import Eval
    from edgegen.search import Subject

    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    recipe = scheduler_recipe().replace('"v"', '"flow"')
    with ship(tmp_path, recipe, STATE_AND_TIME, files={"scheduler_config.json": json.dumps(config)}) as session, Subject(session.bundle) as subject:
        times = [i.inputs["t"][0].value for i in subject.program("dpmpp_2m", 4).instructions if isinstance(i, Eval)]
        assert times == [1000.0, 750.0, 500.0, 250.0]
        assert np.isfinite(subject.reference).all()


@pytest.mark.parametrize(
    ("config", "extra", "message"),
    [
        (SCHEDULER | {"solver_ordre": 3}, "", "UniPCMultistepScheduler has no option 'solver_ordre': did you mean 'solver_order'"),
        (SCHEDULER | {"use_beta_sigmas": True}, "", "option use_beta_sigmas = True is not supported"),
        (SCHEDULER | {"_class_name": "UniPCScheduler"}, "", "no scheduler class 'UniPCScheduler'"),
        (SCHEDULER | {"prediction_type": "epsilon"}, "", "model.prediction is 'v', but scheduler_config.json is for 'epsilon'"),
        (SCHEDULER, 'solver = "ddim"\n', "needs `solver`, or `scheduler`"),
        (SCHEDULER, 'grid = "karras"\n', "grid comes from the scheduler's config"),
        ({"x": 1}, "", "expected an object with the key '_class_name'"),
        (None, "", "no scheduler config at"),
    ],
)
def test_a_scheduler_config_that_is_not_understood_is_refused_by_name(config, extra, message, tmp_path):
    files = {} if config is None else {"scheduler_config.json": json.dumps(config)}
    with pytest.raises((RecipeError, ProgramError)) as e:
        ship(tmp_path, scheduler_recipe(extra), STATE_AND_TIME, files=files)
    assert message in str(e.value)


def test_a_recipe_may_name_a_solver_by_its_class(tmp_path):
    recipe = write_tiny(tmp_path)
    text = recipe.read_text().replace('solver = "ddim"', 'solver = "DDIMScheduler"')
    recipe.write_text(text)
    assert "ddim-3" in make_plan(load_recipe(recipe), tmp_path).programs
