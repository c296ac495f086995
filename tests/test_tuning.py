"""`edgegen tune` and `edgegen fuse`: candidates of a real bundle, timed for real; files that run without edgegen."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

import edgegen
from edgegen.bundle import Provider, bundle_bytes, open_bundle, parse_bundle
from edgegen.errors import GateError, RuntimeFault, Status
from edgegen.fusing import fused_onnx, with_fused
from edgegen.program import initial_state, normals
from edgegen.runtime.session import open_session
from edgegen.targets.choose import Candidate, candidates_of, settle, thread_counts
from edgegen.tuning import tune


@pytest.fixture(scope="module")
def tuned(tiny_bundle):
    return tune(tiny_bundle, providers=("CUDA",), threads=(1,), rounds=3, runs=2)


def test_the_fastest_candidate_is_the_first_variant_and_the_table_says_so(tiny_bundle, tuned):
    bundle = parse_bundle(tuned.data)
    assert {str(c) for c in tuned.times} == {f"{v}, {form}, 1 thread" for v in ("float32", "int8") for form in ("stepwise", "fused")}
    best = min(tuned.times, key=lambda c: tuned.times[c])
    first = bundle.manifest.variants[0]
    assert (first.name, bool(first.fused), first.threads) == (best.variant, best.fused, best.threads)
    measured = bundle.document("measured")
    assert len(measured["candidates"]) == 4 and measured["machine"] and measured["milliseconds"][best.variant] == f"{tuned.times[best]:.3f}"
    assert "CUDA is needed" in measured["unmeasured"]["float32-cuda"]  # said, and not put into the bundle
    assert [v.name for v in bundle.manifest.variants if v.providers] == []
    before = open_bundle(tiny_bundle)
    assert bundle.programs == before.programs and bundle.document("recipe") == before.document("recipe")


def test_what_a_tuned_bundle_gives_is_what_it_gave(tiny_bundle, tuned):
    with edgegen.load(tiny_bundle, variant="float32", threads=1) as before, open_session(parse_bundle(tuned.data), variant="float32") as after:
        for name in before.programs:
            np.testing.assert_allclose(after.generate(seed=4, program=name), before.generate(seed=4, program=name), rtol=1e-5, atol=1e-5)


def changed(path, change):
    bundle = open_bundle(path)
    variants = change(bundle.manifest.variants)
    manifest = replace(bundle.manifest, variants=variants)
    return bundle_bytes(manifest, {name: bundle.member(name) for name in manifest.members()})


def test_a_variant_for_another_device_stays_behind_those_that_were_measured(tiny_bundle, tmp_path):
    path = tmp_path / "m.edgegen"
    path.write_bytes(
        changed(tiny_bundle, lambda v: (replace(v[0], name="npu", providers=(Provider("QNN"),)), replace(v[1], name="far", engine="tensorrt"), *v))
    )
    result = tune(path, threads=(1,), rounds=1, runs=1)
    assert [v.name for v in parse_bundle(result.data).manifest.variants][2:] == ["npu", "far"]
    assert "QNN" in result.unmeasured["npu"] and "NVIDIA" in result.unmeasured["far"]


def test_a_variant_whose_golden_vector_differs_here_is_not_called_fast(tiny_bundle, tmp_path):
    path = tmp_path / "m.edgegen"
    bundle = open_bundle(tiny_bundle)
    int8 = next(v for v in bundle.manifest.variants if v.name == "int8")
    members = {name: bundle.member(name) for name in bundle.table}
    members[int8.golden[0].member] = np.full(64, 0.9, np.float32).tobytes()
    path.write_bytes(bundle_bytes(bundle.manifest, members))
    result = tune(path, threads=(1,), rounds=1, runs=1)
    assert "differs from its golden vector" in result.unmeasured["int8"] and {c.variant for c in result.times} == {"float32"}
    with pytest.raises(GateError, match="fused, .* differs from its steps"):
        with_fused(parse_bundle(path.read_bytes()), int8)


def test_a_bundle_that_cannot_run_here_is_refused(tiny_bundle, tmp_path):
    path = tmp_path / "m.edgegen"
    path.write_bytes(changed(tiny_bundle, lambda v: (replace(v[0], name="npu", providers=(Provider("QNN"),)),)))
    with pytest.raises(RuntimeFault, match="no variant of this bundle runs here: npu: .*QNN") as e:
        tune(path, threads=(1,), rounds=1, runs=1)
    assert e.value.code == Status.NO_VARIANT


def test_a_provider_that_is_here_is_tried_fused_too(tiny_bundle):
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no provider beside the CPU's")
    result = tune(tiny_bundle, providers=("Azure",), threads=(1,), rounds=1, runs=1)
    assert {(c.variant, c.fused) for c in result.times} >= {("float32-azure", True), ("float32-azure", False)} and not result.unmeasured


def test_a_program_that_cannot_be_fused_is_timed_stepwise_and_the_bundle_says_why(tiny_bundle, monkeypatch):
    def refuse(bundle, variant):
        raise GateError("differs from its steps")

    monkeypatch.setattr("edgegen.tuning.with_fused", refuse)
    result = tune(tiny_bundle, threads=(1,), rounds=1, runs=1)
    assert not any(c.fused for c in result.times)
    assert parse_bundle(result.data).document("measured")["unmeasured"]["float32"] == "fused: differs from its steps"


def test_settle_orders_by_time_and_keeps_the_fastest_form_of_each(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    variants = [with_fused(bundle, v)[0] for v in bundle.manifest.variants]
    names = [v.name for v in variants]
    times = {
        Candidate(names[0], False, 1): 3.0,
        Candidate(names[0], True, 4): 2.0,
        Candidate(names[1], False, 2): 1.0,
        Candidate(names[1], True, 2): 5.0,
    }
    first, second, last = settle([*variants, replace(variants[0], name="x")], times)
    assert (first.name, first.fused, first.threads) == (names[1], (), 2)
    assert (second.name, len(second.fused), second.threads) == (names[0], 1, 4)
    assert (last.name, last.fused) == ("x", ())
    assert len(candidates_of(variants, bundle.manifest.programs[0].name, (1, 2))) == 8 and len(candidates_of(variants, "other", (1, 2))) == 4


@pytest.mark.parametrize(("cores", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_thread_counts(cores, counts):
    assert thread_counts(cores) == counts


def edgegen_command(*words, code=0):
    result = subprocess.run([sys.executable, "-m", "edgegen.cli", *map(str, words)], capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    return result


def test_the_commands(tiny_bundle, tmp_path):
    path, out = tmp_path / "m.edgegen", tmp_path / "p.onnx"
    path.write_bytes(tiny_bundle.read_bytes())
    made = json.loads(edgegen_command("tune", path, "--threads", "1", "--rounds", "1", "--json").stdout)
    assert len(made["candidates"]) == 4 and made["output"] == str(path)
    assert "measured" in open_bundle(path).manifest.documents
    edgegen_command("verify", path)
    edgegen_command("fuse", path, "--program", "ddim-3", "-o", out)
    assert [i.name for i in onnxruntime.InferenceSession(out).get_inputs()] == ["x_T", "label", "draw.1", "draw.2", "draw.3"]
    assert "no program 'ddim-4'" in edgegen_command("fuse", path, "--program", "ddim-4", "-o", out, code=2).stderr
    assert "no three steps" in edgegen_command("fuse", path, "--loop", "--program", "dpmpp_2m-2", "-o", out, code=2).stderr
    assert "expected whole numbers" in edgegen_command("tune", path, "--threads", "x", code=2).stderr


@pytest.mark.parametrize("loop", [False, True])
def test_a_fused_file_gives_what_the_steps_give(tiny_bundle, loop):
    bundle = open_bundle(tiny_bundle)
    model = fused_onnx(bundle, "ddim-3", variant="float32", batch=2, loop=loop)
    assert {p.key: p.value for p in model.metadata_props}["edgegen.program"] == "ddim-3"
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {"label": np.array([1, 3])} | initial_state(bundle.programs["ddim-3"], normals(6, 0, (2, 1, 8, 8)))
    feeds |= {f"draw.{k}": normals(6, k, (2, 1, 8, 8)) for k in (1, 2, 3)}
    with edgegen.load(tiny_bundle, variant="float32", threads=1) as steps:
        wanted = steps.generate(seed=6, batch=2, program="ddim-3", label=[1, 3])
    np.testing.assert_allclose(session.run(["out.sample"], feeds)[0], wanted, rtol=1e-5, atol=1e-5)
