"""The families of export/: real training, real checkpoints, read by a classifier and compared with diffusers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import edgegen
from edgegen.bundle import open_bundle

ROOT = Path(__file__).parents[2]


def read(samples):
    """What the committed classifier reads."""
    from benchmarks.classifier import load_classifier

    with torch.no_grad():
        return load_classifier()(torch.from_numpy(samples)).argmax(1).numpy()


def test_digits_weights_are_small_enough_to_commit():
    assert (ROOT / "export" / "digits" / "weights.safetensors").stat().st_size <= 4e6


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_digits_are_read_as_their_class(digits, variant):
    labels = np.tile(np.arange(10), 20)
    with edgegen.load(digits, variant=variant) as session:
        samples = session.generate(seed=11, batch=200, label=labels)
        assert session.report.program == "dpmpp_2m-10"
        assert session.report.nfe["denoiser"] == 20
    assert (read(samples) == labels).mean() >= 0.95


def test_without_guidance_or_with_the_wrong_label_the_classifier_disagrees(digits):
    """The negative control: the null label gives digits of any class."""
    with edgegen.load(digits, variant="float32") as session:
        samples = session.generate(seed=11, batch=200, label=10)
    assert (read(samples) == np.tile(np.arange(10), 20)).mean() < 0.3


def test_digits_are_generated_by_every_solver_that_fits_their_process(digits):
    """About 20 guided evaluations each, in float32 and through one network: the classifier reads every class."""
    from edgegen.search import Subject
    from edgegen.solvers import SOLVERS
    from edgegen.solvers.table import why_not

    with Subject(open_bundle(digits), samples=20, threads=1) as subject:
        subject.conditions["label"] = np.tile(np.arange(10), 2)
        reasons = why_not(subject.process, subject.recipe.model.prediction, 20)
        assert {name for name, reason in reasons.items() if reason} == {"mrs", "meanflow"}
        # made for other networks: a conditional generator with latent noise, two conditioned paths, five betas
        others = {"gl_lcm", "prodiff", "ddgan"}
        for name in set(SOLVERS) - {"mrs", "meanflow"} - others:
            per_step = subject.program(name, 4).nfe["denoiser"] // 4
            samples = subject.run(subject.program(name, 40 // max(per_step, 2)))
            assert (read(samples) == subject.conditions["label"]).mean() >= 0.95, name


def test_golden_vectors_hold_and_the_report_names_each_verdict(digits):
    for variant in ("float32", "int8"):
        with edgegen.load(digits, variant=variant, threads=1) as session:
            assert all(d.rmse <= tolerance for _, _, d, tolerance in session.self_test())
    assert set(open_bundle(digits).document("report")["variants"]) == {"float32", "int8"}


def success(path, episodes, steps, policy=None, seed=21):
    """The share of closed-loop episodes that reach the goal."""
    from edgegen.rollout import load_world

    with edgegen.load(path, threads=1, fused=True) as session:

        def act(draw_seed, **conditions):
            return session.generate(draw_seed, steps, len(conditions["goal"]), **conditions)

        reached, picture = load_world("reach_policy")(policy(act) if policy else act, episodes, seed)
    assert picture.dtype == np.uint8 and picture.ndim == 3
    return reached.mean()


def test_reach_policy_weights_are_small_enough_to_commit():
    assert (ROOT / "export" / "reach_policy" / "weights.safetensors").stat().st_size <= 2e6


def test_reach_policy_succeeds_in_three_steps_nearly_as_often_as_in_ten(reach):
    three, ten = success(reach, 400, 3), success(reach, 400, 10)
    assert ten >= 0.97
    assert three >= ten - 0.02


def test_edgegen_run_rolls_the_policy_out_and_draws_its_paths(reach, tmp_path):
    arguments = ["run", reach, "--rollout", "reach_policy", "--batch", "40", "--seed", "3", "-o", tmp_path / "paths.png", "--json"]
    done = subprocess.run([sys.executable, "-m", "edgegen.cli", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["nfe"] == 3 and figures["success"] >= 0.9
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "paths.png"))
    assert picture.shape == (512, 512, 3) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_the_mean_action_fails_so_the_task_has_more_than_one_answer(reach):
    """What a plain regression policy learns is the mean of the demonstrations; here, of 32 samples of the policy."""

    def mean_of(act):
        return lambda seed, **conditions: np.mean([act(seed + k, **conditions) for k in range(32)], axis=0, dtype=np.float32)

    assert success(reach, 100, 5, mean_of) <= 0.75


def test_a_goal_that_is_withheld_is_not_reached(reach):
    """The negative control: without its goal the robot goes somewhere."""

    def blind(act):
        return lambda seed, context, goal: act(seed, context=context, goal=np.zeros_like(goal))

    assert success(reach, 100, 3, blind) <= 0.5


@pytest.mark.parametrize("program", ["dpmpp_2m-10", "ddim-50"])
def test_a_checkpoint_that_nobody_here_trained_equals_diffusers(ddpm, checkpoint, program):
    schedulers = pytest.importorskip("diffusers.schedulers", reason="diffusers is not installed")
    sys.path.insert(0, str(ROOT / "export" / "ddpm_mnist"))
    try:
        sys.modules.pop("model", None)
        from model import load
    finally:
        sys.path.pop(0)
        sys.modules.pop("model", None)
    network = load(checkpoint).eval()
    scheduler = {
        "dpmpp_2m-10": lambda: schedulers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2),
        "ddim-50": lambda: schedulers.DDIMScheduler(clip_sample=False),
    }[program]()
    scheduler.set_timesteps(int(program.split("-")[1]))
    noise = np.random.default_rng(3).standard_normal((4, 1, 28, 28)).astype(np.float32)
    x = torch.from_numpy(noise)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.repeat(4)), t, x).prev_sample
    with edgegen.load(ddpm, variant="float32") as session:
        found = session.generate(noise=noise, batch=4, program=program)
    np.testing.assert_allclose(found, x.numpy(), atol=1e-4)


def test_the_bundle_says_that_a_pickle_was_trusted(ddpm):
    assert open_bundle(ddpm).manifest.trusted_pickle


@pytest.mark.parametrize("program", ["dpmpp_2m-10", "ddim-50"])
def test_its_digits_are_close_to_real_ones_in_the_judges_features(ddpm, data_folder, program):
    """Frechet distance to real digits; the control is the same pictures turned upside down, which are no digits."""
    from benchmarks.classifier import load_classifier
    from benchmarks.quality import frechet

    sys.path.insert(0, str(ROOT / "export" / "digits"))
    try:
        from train import read_mnist
    finally:
        sys.path.pop(0)
    images, _ = read_mnist(data_folder / "mnist")

    def features(x):
        with torch.no_grad():
            return load_classifier().features(torch.from_numpy(np.ascontiguousarray(x))).double().numpy()

    real = features(images[9000:])
    with edgegen.load(ddpm, variant="float32") as session:
        samples = 2 * session.generate(seed=5, batch=200, program=program) - 1  # it was trained on [0, 1], the judge on [-1, 1]
    good, flipped = frechet(features(samples), real), frechet(features(samples[:, :, ::-1]), real)
    assert good < 0.5 * flipped
