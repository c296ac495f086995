"""The families of export/ in edgegen-run, on x86-64 and on 64-bit ARM: the same bits from the interpreter, the same samples from the engine."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import edgegen
from edgegen.bundle import bundle_bytes, open_bundle
from edgegen.fusing import with_fused
from edgegen.program import Executable, initial_state, normals
from edgegen.program.surrogate import surrogates
from tests.native.conftest import other_onnxruntime, run_native

FAMILIES = ("digits", "ddpm", "reach")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.getfixturevalue(request.param)


def conditions(bundle):
    """Values for conditions without a default: their minimum, or 0."""
    return {c.name: 0.0 if c.minimum is None else c.minimum for c in bundle.manifest.conditions if c.default is None}


def settings(bundle):
    return [word for name, value in conditions(bundle).items() for word in ("--set", f"{name}={value:g}")]


@pytest.mark.parametrize("build", ["", "aarch64"])
def test_the_same_bits_with_the_exact_surrogate(family, build):
    """T18: every program of the family, ten seeds, a batch of two."""
    bundle = open_bundle(family)
    given = conditions(bundle)
    for name, program in bundle.programs.items():
        specs = {c.name: c for c in bundle.manifest.conditions}
        fixed = {
            i.name: np.full((2, *specs[i.name].shape), given.get(i.name, specs[i.name].default), specs[i.name].dtype)
            for i in program.inputs if i.kind == "condition"
        }  # fmt: skip
        executable = Executable(program)
        for seed in range(10):
            inputs = fixed | initial_state(program, normals(seed, 0, (2, *bundle.manifest.sample.shape)))
            sample = executable.run(surrogates(bundle.manifest.components), inputs, seed=seed, rows=2)["sample"]
            words = (family, "--surrogate", "--digest", "--program", name, "--seed", seed, "--batch", 2, *settings(bundle))
            assert run_native(build, "edgegen-run", *words).strip() == hashlib.sha256(sample.tobytes()).hexdigest(), (name, seed)


def test_the_same_samples_as_in_python(family, onnxruntime_library, tmp_path):
    bundle = open_bundle(family)
    for variant in bundle.manifest.variants:
        words = (family, "--variant", variant.name, "--threads", 1, "--batch", 2, "--seed", 3, "--onnxruntime", onnxruntime_library)
        run_native("", "edgegen-run", *words, *settings(bundle), "-o", tmp_path / "x.npy")
        with edgegen.load(family, variant=variant.name, threads=1) as session:
            np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), session.generate(seed=3, batch=2, **conditions(bundle)))


def verified(out, bundle):
    """(variant, program) -> RMSE of what `edgegen-run verify` printed, all of them within their tolerance."""
    found = re.findall(r"^(\S+) (\S+) RMSE (\S+) tolerance \S+ ok$", out, re.M)
    assert {(v, p) for v, p, _ in found} == {(v.name, g.program) for v in bundle.manifest.variants for g in v.golden}
    return {(v, p): float(rmse) for v, p, rmse in found}


def test_golden_vectors(family, onnxruntime_library):
    out = run_native("", "edgegen-run", "verify", family, "--onnxruntime", onnxruntime_library)
    print(verified(out, open_bundle(family)))


def test_golden_vectors_of_a_small_family_on_aarch64(reach):
    library = other_onnxruntime("1.24.4-aarch64")
    print(verified(run_native("aarch64", "edgegen-run", "verify", reach, "--onnxruntime", library), open_bundle(reach)))


@pytest.mark.slow
def test_golden_vectors_on_aarch64(family):
    """An emulated processor runs the networks: minutes."""
    library = other_onnxruntime("1.24.4-aarch64")
    out = run_native("aarch64", "edgegen-run", "verify", family, "--threads", 2, "--onnxruntime", library, timeout=3600)
    print(verified(out, open_bundle(family)))


@pytest.fixture(scope="module")
def fused_reach(reach, tmp_path_factory):
    """reach_policy with its default program as one network."""
    bundle = open_bundle(reach)
    made = [with_fused(bundle, v) for v in bundle.manifest.variants]
    members = {name: bundle.member(name) for name in bundle.table} | {name: data for _, added in made for name, data in added.items()}
    path = tmp_path_factory.mktemp("fused") / "reach.edgegen"
    path.write_bytes(bundle_bytes(replace(bundle.manifest, variants=tuple(v for v, _ in made)), members))
    return path


def test_a_fused_program_in_both_runtimes_and_step_by_step(fused_reach, onnxruntime_library, tmp_path):
    """The library runs the fused network, and its steps where it is told to; both are what Python gives."""
    words = (fused_reach, "--threads", 1, "--seed", 3, "--onnxruntime", onnxruntime_library, *settings(open_bundle(fused_reach)))
    found = {}
    for form in ([], ["--stepwise"]):
        run_native("", "edgegen-run", *words, *form, "-o", tmp_path / "x.npy")
        found[bool(form)] = np.load(tmp_path / "x.npy")
    given = conditions(open_bundle(fused_reach))
    for runtime in ("python", "native"):
        with edgegen.load(fused_reach, threads=1, runtime=runtime) as session:
            assert session.runs_fused() and not session.runs_fused(batch=2)
            np.testing.assert_array_equal(session.generate(seed=3, **given), found[False])
            assert session.report.nfe == {"denoiser": 3}
        with edgegen.load(fused_reach, threads=1, runtime=runtime, fused=False) as session:
            assert not session.runs_fused()
            np.testing.assert_array_equal(session.generate(seed=3, **given), found[True])
    np.testing.assert_allclose(found[False], found[True], atol=1e-4)
    out = run_native("test", "memory", "steady", fused_reach, 3000, onnxruntime_library)
    assert " 0 allocations" in out


def test_a_fused_program_on_aarch64(fused_reach, onnxruntime_library, tmp_path):
    library = other_onnxruntime("1.24.4-aarch64")
    print(verified(run_native("aarch64", "edgegen-run", "verify", fused_reach, "--onnxruntime", library), open_bundle(fused_reach)))
