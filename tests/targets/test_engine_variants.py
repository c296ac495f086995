"""A bundle for a device with TensorRT, built on a machine without a GPU: what it holds, and what happens where its best variant cannot run."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import edgegen
from edgegen.bundle import bundle_bytes, open_bundle, parse_bundle
from edgegen.compiling import take_engines
from edgegen.errors import RecipeError, RuntimeFault, Status
from edgegen.pipeline import Options, build
from edgegen.plan import make_plan
from edgegen.recipe import load_recipe
from edgegen.runtime.session import open_session
from edgegen.targets.nvidia import nvidia_gpus
from edgegen.targets.onnxruntime import network_of
from edgegen.targets.tensorrt import EngineCache
from edgegen.targets.tensorrt.component import engine_of
from edgegen.tuning import tune
from edgegen.workspace import Workspace

pytestmark = pytest.mark.skipif(bool(nvidia_gpus()), reason="says what happens without a GPU")


@pytest.fixture(scope="module")
def rtx_bundle(tiny_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rtx")
    plan = make_plan(load_recipe(tiny_recipe, ["target.profile=rtx-4000", "target.form=fused", "gate.psnr_db=10"]), tiny_recipe.parent)
    return build(plan, folder / "rtx.edgegen", Workspace(folder / "cache"), Options(measured=False))


def test_it_holds_what_tensorrt_gets_in_front_and_says_what_was_built(rtx_bundle):
    bundle = open_bundle(rtx_bundle)
    engines = [(v.name, v.engine) for v in bundle.manifest.variants]
    assert engines[:3] == [(f"tensorrt-rtx-{p}", "tensorrt-rtx") for p in ("float16", "int8", "float8")]
    assert {name for name, engine in engines[3:]} == {"float32", "int8"} and {engine for _, engine in engines[3:]} == {"onnxruntime"}
    report = bundle.document("report")["variants"]
    assert report["tensorrt-rtx-int8"]["engine"]["products"]["Conv"] == ["Int8"]
    assert report["tensorrt-rtx-float16"]["engine"]["products"]["Conv"] == ["Half"]
    assert report["tensorrt-rtx-float8"]["engine"]["products"]["Conv"] == ["FP8"]
    for v in bundle.manifest.variants[:3]:
        assert v.fused and v.golden
        kinds = {t.data_type for t in network_of(bundle, v, "denoiser").graph.initializer}
        assert {"float16": 10, "int8": 3, "float8": 17}[v.name.rpartition("-")[2]] in kinds


@pytest.mark.parametrize("runtime", ["python", "native"])
def test_without_a_gpu_the_next_variant_runs_after_a_line(rtx_bundle, runtime, caplog):
    with caplog.at_level(logging.WARNING), edgegen.load(rtx_bundle, runtime=runtime, threads=1) as session:
        assert session.variant.engine == "onnxruntime"
        assert np.isfinite(session.generate(seed=1)).all()
    if runtime == "python":
        lines = [r.getMessage() for r in caplog.records]
        assert (
            len(lines) == 3
            and all("no NVIDIA GPU" in line or "CUDA" in line for line in lines)
            and lines[0].endswith(f"taking {session.variant.name}")
        )
    with pytest.raises(RuntimeFault) as e:
        edgegen.load(rtx_bundle, variant="tensorrt-rtx-int8", runtime=runtime)
    assert e.value.code in (Status.PROVIDER_MISSING, Status.NO_VARIANT)


def command(*words, code):
    done = subprocess.run([sys.executable, "-m", "edgegen.cli", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def test_the_command_ends_with_four_where_nothing_can_run(rtx_bundle, tmp_path):
    bundle = open_bundle(rtx_bundle)
    only = replace(bundle.manifest, variants=bundle.manifest.variants[:2])
    path = tmp_path / "only.edgegen"
    path.write_bytes(bundle_bytes(only, {name: bundle.member(name) for name in only.members()}))
    done = command("run", path, "-o", tmp_path / "o.npy", code=4)
    assert "no variant of this bundle runs here: tensorrt-rtx-float16: no NVIDIA GPU" in " ".join(done.stderr.split())
    assert not (tmp_path / "o.npy").exists()
    assert "no NVIDIA GPU" in command("compile", rtx_bundle, code=4).stderr
    assert "float32" in command("run", rtx_bundle, "-o", tmp_path / "o.npy", code=0).stderr


def test_engines_are_built_ahead_with_their_reports(rtx_bundle, tmp_path):
    out = command("compile", rtx_bundle, "--target", "rtx-3000", "-o", tmp_path / "engines", "--json", code=4)
    assert "FP8" in out.stderr or "float8" in out.stderr.lower()  # SM86 has none: said by the check, with the node
    bundle = open_bundle(rtx_bundle)
    fewer = replace(bundle.manifest, variants=tuple(v for v in bundle.manifest.variants if v.name != "tensorrt-rtx-float8"))
    path = tmp_path / "fewer.edgegen"
    path.write_bytes(bundle_bytes(fewer, {name: bundle.member(name) for name in fewer.members()}))
    made = json.loads(command("compile", path, "--target", "rtx-3000", "-o", tmp_path / "engines", "--json", code=0).stdout)["engines"]
    names = sorted(m.rpartition("/")[2] for m in made)
    assert names == [f"{n}.tensorrt-rtx-{p}.SM86.engine" for n in ("denoiser", "dpmpp_2m-4.x1") for p in ("float16", "int8")]
    cache = EngineCache(tmp_path / "cache")
    gpu = "NVIDIA GeForce RTX 3060 0123 SM86"
    assert len(take_engines(path, tmp_path / "engines", cache, gpu)) == 4
    with pytest.raises(RuntimeFault, match="no engine for SM89"):
        take_engines(path, tmp_path / "engines", cache, gpu.replace("SM86", "SM89"))
    network = network_of(open_bundle(path), fewer.variants[1], "denoiser").SerializeToString(deterministic=True)
    key, _ = engine_of(network, fewer.components["denoiser"], "tensorrt-rtx", gpu)
    assert cache.load(key) == (tmp_path / "engines" / "denoiser.tensorrt-rtx-int8.SM86.engine").read_bytes()
    damaged = tmp_path / "engines" / "denoiser.tensorrt-rtx-int8.SM86.engine"
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    assert len(take_engines(path, tmp_path / "engines", EngineCache(tmp_path / "other"), gpu)) == 3
    report = json.loads((tmp_path / "engines" / "denoiser.tensorrt-rtx-int8.SM86.json").read_text())
    assert report["layers"] and report["engine"] == "tensorrt-rtx"
    assert "built on the device" in command("compile", path, "--target", "jetson-thor", "-o", tmp_path / "e", code=2).stderr


def test_tune_leaves_engines_that_it_cannot_time_behind(rtx_bundle):
    tuned = tune(rtx_bundle, threads=(1,), rounds=1, runs=1)
    names = [v.name for v in parse_bundle(tuned.data).manifest.variants]
    assert set(names[:2]) == {"float32", "int8"} and names[2:] == [f"tensorrt-rtx-{p}" for p in ("float16", "int8", "float8")]
    assert all("no NVIDIA GPU" in tuned.unmeasured[name] or "CUDA" in tuned.unmeasured[name] for name in names[2:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["target.profile=rtx-9000"], "no target profile 'rtx-9000'"),
        (['target.precisions=["int8"]'], "needs target.profile of a device with TensorRT"),
        (["target.profile=rtx-4000", 'target.precisions=["int9"]'], "did you mean"),
        (["target.profile=none.toml"], "no target profile at"),
    ],
)
def test_a_target_that_is_none_is_refused(tiny_recipe, settings, message):
    with pytest.raises(RecipeError) as e:
        make_plan(load_recipe(tiny_recipe, settings), tiny_recipe.parent)
    assert message in str(e.value)


def test_an_engine_that_gives_something_else_is_not_used(rtx_bundle, monkeypatch):
    """The golden vectors are held against an engine before its first use; here the engine is ONNX Runtime with a network that was changed."""
    from edgegen.targets import opening

    bundle = open_bundle(rtx_bundle)
    real = opening.onnxruntime.open_component

    def other(b, variant, component, **options):
        return real(b, next(v for v in b.manifest.variants if v.engine == "onnxruntime"), component, **options)

    class Wrong:
        def __init__(self, inner):
            self.inner = inner

        def feeds(self, arrays):
            return self.inner.feeds(arrays)

        def run(self, feeds):
            return {name: value + 0.5 for name, value in self.inner.run(feeds).items()}

        def close(self):
            self.inner.close()

    monkeypatch.setattr(
        "edgegen.runtime.stepwise.open_component",
        lambda b, v, c, **o: other(b, v, c, **o) if v.engine == "onnxruntime" else Wrong(other(b, v, c, **o)),
    )
    with open_session(bundle, fused=False) as session:
        assert session.variant.engine == "onnxruntime"
    monkeypatch.setattr("edgegen.runtime.stepwise.open_component", lambda b, v, c, **o: other(b, v, c, **o))
    with open_session(bundle, fused=False) as session:
        assert session.variant.name == "tensorrt-rtx-float16"
