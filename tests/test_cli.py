"""The command: exit codes, last lines, JSON, and what a user sees when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from edgegen.bundle import open_bundle, write_bundle
from tests.tiny import write_tiny


def edgegen(*arguments, cwd=None, env=None, code=0):
    """Run the command as a user does; returns (stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "edgegen.cli", *map(str, arguments)], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A measured build of the tiny recipe by the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    write_tiny(folder)
    out, err = edgegen("build", "recipe.toml", "-o", "t.edgegen", "--cache-dir", "cache", cwd=folder)
    assert out.splitlines()[-1] == "t.edgegen"
    assert "float32 ships" in err and "int8" in err
    return folder


def test_run_writes_a_picture_and_an_array(built):
    out, err = edgegen("run", "t.edgegen", "--seed", "1", "--set", "label=0,1,2,3,0", "--batch", "5", "-o", "o.png", cwd=built)
    assert out.splitlines()[-1] == "o.png"
    assert "denoiser x 8 evaluations" in err
    picture = Image.open(built / "o.png")
    assert picture.mode == "L" and picture.size == (3 * 8 * 4, 2 * 8 * 4)
    edgegen("run", "t.edgegen", "--steps", "2", "-o", "o.npy", cwd=built)
    assert np.load(built / "o.npy", allow_pickle=False).shape == (1, 1, 8, 8)


def test_equal_seeds_give_equal_files(built):
    for name in ("a.npy", "b.npy"):
        edgegen("run", "t.edgegen", "--seed", "7", "-o", name, cwd=built)
    assert (built / "a.npy").read_bytes() == (built / "b.npy").read_bytes()


def test_json_output_is_json(built):
    for command in (
        ["run", "t.edgegen", "-o", "j.npy", "--json"],
        ["inspect", "t.edgegen", "--json"],
        ["verify", "t.edgegen", "--json"],
        ["doctor", "--json"],
    ):
        json.loads(edgegen(*command, cwd=built)[0])
    rows = json.loads(edgegen("bench", "t.edgegen", "--iters", "5", "--warmup", "1", "--json", cwd=built)[0])
    assert {"p50_ms", "p90_ms", "p99_ms", "component_ms", "outside"} <= set(rows[0])


def test_inspect_tells_a_newcomer_what_is_inside(built):
    out, _ = edgegen("inspect", "t.edgegen", cwd=built, env={"COLUMNS": "160"})
    for fact in (
        "tiny: a tiny denoiser for tests",
        "1 x 8 x 8",
        "label",
        "from 0 to 3",
        "dpmpp_2m-4",
        "denoiser x 8",
        "float32",
        "SHA-256",
        "try: edgegen run",
    ):
        assert fact in out


def test_verify_passes_and_fails(built, tmp_path):
    out, _ = edgegen("verify", "t.edgegen", cwd=built)
    assert out.splitlines()[-1] == "t.edgegen"
    damaged = tmp_path / "d.edgegen"
    data = bytearray((built / "t.edgegen").read_bytes())
    data[open_bundle(built / "t.edgegen").table["denoiser.float32.weights"].offset] ^= 1
    damaged.write_bytes(data)
    _, err = edgegen("verify", damaged, code=1)
    assert "SHA-256" in err and "damaged" in err


def test_verify_fails_where_golden_vectors_differ(built, tmp_path):
    from dataclasses import replace

    bundle = open_bundle(built / "t.edgegen")
    members = {name: bundle.member(name) for name in bundle.table}
    golden = bundle.manifest.variants[0].golden[0].member
    members[golden] = (np.frombuffer(members[golden], "<f4") + 1).tobytes()
    write_bundle(tmp_path / "g.edgegen", replace(bundle.manifest), members)
    _, err = edgegen("verify", tmp_path / "g.edgegen", code=1)
    assert "golden vectors differ" in err


def test_dry_run_builds_nothing(tmp_path):
    write_tiny(tmp_path)
    out, err = edgegen("build", "recipe.toml", "--dry-run", "--cache-dir", "cache", cwd=tmp_path)
    assert out.strip() == "tiny.edgegen"
    assert "program dpmpp_2m-4: 4 steps, NFE 8" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.toml", "tiny.onnx"]


@pytest.mark.parametrize("stage", ["export", "calibrate", "quantize", "compile", "measure"])
def test_until_stops_after_a_stage_and_prints_its_directory(built, stage):
    out, _ = edgegen("build", "recipe.toml", "-o", "u.edgegen", "--cache-dir", "cache", "--until", stage, cwd=built)
    assert out.strip().split("/")[-1].startswith(stage + "-")
    assert not (built / "u.edgegen").exists()


def test_export_writes_the_onnx_file(built):
    import onnx

    assert edgegen("export", "recipe.toml", "-o", "e.onnx", "--cache-dir", "cache", cwd=built)[0].splitlines()[-1] == "e.onnx"
    onnx.checker.check_model(onnx.load(built / "e.onnx"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "none.toml"], 2, "no recipe at none.toml"),
        (["build", "digts"], 2, "did you mean 'digits'"),
        (["build", "recipe.toml", "--until", "exprot"], 2, "did you mean 'export'"),
        (["build", "recipe.toml", "--set", "gate.psnr=1"], 2, "unknown key 'psnr' in gate"),
        (["build", "recipe.toml", "--set", "programs.0.solver=dpmp_2m"], 2, "did you mean 'dpmpp_2m'"),
        (["build", "recipe.toml", "-o", "absent/x.edgegen"], 1, "no folder absent"),
        (["run", "none.edgegen"], 1, "cannot be opened"),
        (["run", "recipe.toml"], 1, "not an edgegen bundle"),
        (["run", "t.edgegen", "--set", "label=9"], 2, "out of range, from 0 to 3"),
        (["run", "t.edgegen", "--set", "lable=1"], 2, "did you mean 'label'"),
        (["run", "t.edgegen", "--set", "label"], 2, "expected name=number"),
        (["run", "t.edgegen", "--steps", "9"], 2, "no program of 9 steps"),
        (["run", "t.edgegen", "--seed", "-1"], 2, "expected a seed"),
        (["run", "t.edgegen", "-o", "x.jpg"], 2, "give a .png or .npy"),
        (["run", "t.edgegen", "-o", "absent/x.npy"], 1, "no folder absent"),
        (["run", "t.edgegen", "--variant", "int4"], 4, "no variant 'int4'"),
        (["frobnicate"], 2, "No such command"),
        (["run", "t.edgegen", "--batch", "many"], 2, "valid int"),
    ],
)
def test_errors_have_their_exit_code_and_one_clear_line(built, arguments, code, message):
    _, err = edgegen(*arguments, cwd=built, code=code)
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_a_gate_that_float_cannot_pass_exits_3(tmp_path):
    """A network whose output is NaN in the float model itself."""
    import onnx
    from onnx import numpy_helper

    path = write_tiny(tmp_path)
    model = onnx.load(tmp_path / "tiny.onnx")
    model.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.array([np.nan], np.float32), "b2"))
    onnx.save(model, tmp_path / "tiny.onnx")
    _, err = edgegen("build", path, "--cache-dir", tmp_path / "c", "-o", tmp_path / "x.edgegen", "--set", "quantization.precisions=[]", code=3)
    assert "the float network does not give samples" in err and "NaN" in err
    assert not (tmp_path / "x.edgegen").exists()


def test_a_variant_that_fails_the_gate_stays_out_with_its_figures(tmp_path):
    write_tiny(tmp_path)
    settings = ["--set", "gate.psnr_db=200", "--set", "gate.repair=0"]
    _, err = edgegen("build", "recipe.toml", "--no-measure", "--cache-dir", "c", *settings, cwd=tmp_path, code=3)
    assert "int8: too far from the float network's samples" in err and "the gate asks 200.0 dB" in err
    assert not (tmp_path / "tiny.edgegen").exists()
    _, err = edgegen("build", "recipe.toml", "--no-measure", "--cache-dir", "c", *settings, "--set", "gate.required=false", cwd=tmp_path)
    assert "int8 stays out" in err and "the gate asks 200.0 dB" in err
    out, _ = edgegen("inspect", "tiny.edgegen", cwd=tmp_path, env={"COLUMNS": "160"})
    assert "(int8)" in out and "left out" in out
    facts = json.loads(edgegen("inspect", "tiny.edgegen", "--json", cwd=tmp_path)[0])
    assert [v["name"] for v in facts["variants"]] == ["float32"]


def test_a_network_without_convolutions_has_no_int8_variant_and_the_report_says_why(tmp_path):
    write_tiny(tmp_path)
    _, err = edgegen("build", "recipe.toml", "--no-measure", "--cache-dir", "c", "--set", "quantization.operators=['Gemm']", cwd=tmp_path)
    assert "int8 stays out" in err and "nothing to quantize: the network has no Gemm" in " ".join(err.split())


def test_a_variant_that_is_too_slow_stays_out(tmp_path):
    write_tiny(tmp_path)
    _, err = edgegen("build", "recipe.toml", "--cache-dir", "c", "--set", "gate.speedup=1000", cwd=tmp_path)
    assert "int8 stays out" in err and "the gate asks 1000.00x" in err


def test_without_onnx_runtime_the_exit_code_is_4(built):
    code = "import sys; sys.modules['onnxruntime'] = None; sys.argv = ['edgegen', 'run', 't.edgegen']; from edgegen.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=built, capture_output=True, text=True)
    assert done.returncode == 4
    assert "pip install 'edgegen[cpu]'" in done.stderr


@pytest.mark.parametrize(
    ("absent", "message"), [("torch", "needs torch; install with: pip install 'edgegen[torch]'"), ("onnxruntime", "edgegen[cpu]")]
)
def test_a_missing_tool_is_said_before_slow_work(tmp_path, absent, message):
    write_tiny(tmp_path)
    (tmp_path / "model.py").write_text("raise SystemExit('it was loaded')")
    code = f"import sys; sys.modules[{absent!r}] = None; from edgegen.cli import main; main()"
    arguments = ["build", "recipe.toml", "--cache-dir", "c", "--set", "model.source=model.py:load"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 4
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "c").exists()


def test_version():
    import edgegen as package

    assert edgegen("--version")[0].strip() == f"edgegen {package.__version__}"


def test_solvers_lists_every_solver_with_its_source():
    out, _ = edgegen("solvers", env={"COLUMNS": "100"})
    for fact in ("dpmpp_2m", "2211.01095", "NFE/step", "gl_lcm", "k-diffusion"):
        assert fact in out
    rows = {row["name"]: row for row in json.loads(edgegen("solvers", "--json")[0])}
    expected = {"ddim": (1, 0, False), "heun": (2, 0, False), "dpmpp_2m": (1, 1, False), "dpmpp_3m": (1, 2, False), "deis": (1, 3, False),
                "euler_a": (1, 0, True), "gl_lcm": (2, None, True), "dpmpp_3s": (3, 0, False)}  # fmt: skip
    for name, (nfe, history, stochastic) in expected.items():
        assert rows[name]["nfe_per_step"] == nfe and rows[name]["stochastic"] is stochastic
        assert history is None or rows[name]["history"] == history, name


def test_solvers_for_a_bundle_says_which_fit_and_why_others_do_not(built):
    out, _ = edgegen("solvers", "--for", "t.edgegen", cwd=built, env={"COLUMNS": "200"})
    assert "needs the process 'mean_reverting', found VPLinear" in out
    rows = {row["name"]: row["why_not"] for row in json.loads(edgegen("solvers", "--for", "t.edgegen", "--json", cwd=built)[0])}
    assert rows["dpmpp_2m"] == "" and "average_velocity" in rows["meanflow"]


def test_solvers_compare_draws_a_picture_and_more_steps_come_nearer(built):
    arguments = ["solvers", "--compare", "t.edgegen", "-o", "c.png", "--samples", "4"]
    out, _ = edgegen(*arguments, "--solvers", "ddim,dpmpp_2m,heun", "--nfe", "4,8,32", cwd=built)
    assert out.splitlines()[-1] == "c.png"
    assert min(Image.open(built / "c.png").size) > 400
    found = json.loads(edgegen(*arguments, "--solvers", "ddim,dpmpp_2m,heun", "--nfe", "4,8,32", "--json", cwd=built)[0])
    for solver in ("ddim", "dpmpp_2m", "heun"):
        errors = [c["error"] for c in sorted((c for c in found if c["solver"] == solver), key=lambda c: c["nfe"])]
        assert errors[-1] < errors[0] and len(errors) == 3
    assert {c["nfe"] for c in found if c["solver"] == "ddim"} == {8, 16, 64}  # guidance doubles each


def test_search_writes_the_winner_into_the_recipe_and_the_recipe_builds(built, tmp_path):
    write_tiny(tmp_path)
    arguments = ["search", built / "t.edgegen", "--steps", "3..5", "--solvers", "ddim,dpmpp_2m", "--samples", "4", "--refine", "6"]
    out, err = edgegen(*arguments, "--write", "recipe.toml", "--within", "0.5", cwd=tmp_path)
    assert out.splitlines()[-1] == "recipe.toml" and "winner:" in err
    text = (tmp_path / "recipe.toml").read_text()
    assert text.count("[[programs]]") == 3 and "edgegen search:" in text and "guidance = 1.5" in text
    _, err = edgegen("build", "recipe.toml", "--dry-run", cwd=tmp_path)
    assert err.count("program ") == 4
    edgegen(*arguments, "--write", "recipe.toml", "--within", "0.5", cwd=tmp_path, code=2)  # it has that program already


def test_search_for_times_comes_nearer_than_the_solvers_own(built):
    arguments = ["search", "t.edgegen", "--steps", "4,6", "--solvers", "dpmpp_2m", "--samples", "4", "--json"]
    own, searched = (json.loads(edgegen(*arguments, "--refine", n, cwd=built)[0])["best"] for n in (0, 40))
    assert all(s["error"] <= o["error"] for s, o in zip(searched, own, strict=True))
    assert any(s["error"] < 0.95 * o["error"] and s["times"] and s["nfe"] == o["nfe"] for s, o in zip(searched, own, strict=True))


def test_search_can_follow_a_quality_function_of_the_users(built, tmp_path):
    (tmp_path / "q.py").write_text(
        "def score(samples, conditions):\n    assert conditions['label'].shape == (4,)\n    return -float(abs(samples).mean())\n"
    )
    arguments = ["search", built / "t.edgegen", "--steps", "2,4", "--solvers", "ddim,dpmpp_2m", "--samples", "4", "--refine", "0", "--json"]
    found = json.loads(edgegen(*arguments, "--quality", "q.py:score", cwd=tmp_path)[0])
    assert all(c["quality"] < 0 for c in found["best"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "t.edgegen", "--steps", "9..3"], 2, "expected whole numbers >= 1"),
        (["search", "t.edgegen", "--solvers", "dpmp_2m"], 2, "did you mean 'dpmpp_2m'"),
        (["search", "t.edgegen", "--solvers", "euler_a", "--steps", "4"], 2, "draws noise: it has no solution to be near to"),
        (["search", "t.edgegen", "--quality", "none.py:f"], 2, "expected file.py:function"),
        (["solvers", "--compare", "t.edgegen", "-o", "absent/c.png"], 1, "absent"),
        (["run", "t.edgegen", "--rollout", "nowhere"], 2, "no world 'nowhere'"),
    ],
)
def test_solver_commands_refuse_with_one_clear_line(built, arguments, code, message):
    _, err = edgegen(*arguments, cwd=built, code=code)
    assert message in " ".join(err.split()) and "Traceback" not in err
