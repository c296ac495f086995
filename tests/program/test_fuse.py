"""A fused program gives what its steps give: one graph, weights once, the same noise."""

from __future__ import annotations

import numpy as np
import pytest

import edgegen
from edgegen.bundle import open_bundle
from edgegen.errors import ProgramError, RuntimeFault
from edgegen.program import (
    Clamp,
    Concat,
    Eval,
    Imm,
    Input,
    Lincomb,
    Muladd,
    Noise,
    Program,
    Reg,
    Select,
    Slice,
    Threshold,
    interpret,
    normals,
    verify,
)
from edgegen.program.fuse import fuse
from edgegen.targets.onnxruntime import open_engine
from tests.tiny import mixing_model

STATE = [3, 4, 4]


@pytest.mark.parametrize("batch", [1, 3])
def test_each_program_of_a_bundle_gives_the_same_fused(tiny_bundle, batch):
    """Guidance in one batch of two, an integer condition, and fresh noise in every step."""
    with (
        edgegen.load(tiny_bundle, variant="float32", threads=1) as stepwise,
        edgegen.load(tiny_bundle, variant="float32", threads=1, fused=True) as fused,
    ):
        for name in stepwise.programs:
            label = np.arange(batch)
            wanted = stepwise.generate(seed=5, batch=batch, program=name, label=label)
            found = fused.generate(seed=5, batch=batch, program=name, label=label)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
            assert fused.report.nfe == stepwise.report.nfe
            assert np.abs(found - fused.generate(seed=6, batch=batch, program=name, label=label)).max() > 1e-3


def test_int8_networks_fuse_too(tiny_bundle):
    with edgegen.load(tiny_bundle, variant="int8", threads=1) as stepwise, edgegen.load(tiny_bundle, variant="int8", threads=1, fused=True) as fused:
        np.testing.assert_allclose(fused.generate(seed=1), stepwise.generate(seed=1), rtol=1e-3, atol=1e-3)


def test_a_call_with_on_step_runs_step_by_step(tiny_bundle):
    seen = []
    with edgegen.load(tiny_bundle, variant="float32", threads=1, fused=True) as session:
        session.generate(seed=1, on_step=lambda done, total, x: seen.append(done))
    assert seen == [1, 2, 3, 4]


def mixing(program, batch=2, seed=9, **inputs):
    """Fused and interpreted outputs of a program over the mixing network."""
    model = mixing_model({"x": ("float32", STATE), "t": ("float32", [])}, STATE)
    declared = {name: ("float32", tuple(value.shape[1:])) for name, value in inputs.items()}
    fused = fuse(program, {"f": model}, declared, batch)
    feeds = inputs | {name: normals(seed, draw, shape) for name, (draw, shape) in fused.draws.items()}
    (found,) = open_engine(fused.model.SerializeToString(), "test", 1).run(["out.sample"], feeds)

    def network(x, t):
        return np.float32(0.5) * x + np.float32(0.01) * np.reshape(t, (-1, 1, 1, 1))

    wanted = interpret(program, {"f": network}, inputs, seed=seed)["sample"]
    return fused, found, wanted


def test_every_lowered_instruction_keeps_its_law():
    rng = np.random.default_rng(0)
    program = verify(
        Program(
            "p",
            (Input("x_T"), Input("mask", "condition")),
            (
                Eval("f", {"x": (Reg("x_T", 0.5), Reg("x_T")), "t": (Imm(2.0), Imm(3.0))}, {"prediction": ("a", "b")}),
                Noise("z", "x_T", 4),
                Lincomb("c", ((0.1, "a"), (1.0, "z"), (-0.3, "b")), 0.25),
                Clamp("d", "c", -1.0, 0.5),
                Muladd("e", "d", (1.0, 2.0, 3.0), (0.5, 0.0, -0.5)),
                Concat("g", ("e", "x_T")),
                Slice("h", "g", 1, 4),
                Select("i", "mask", "h", "b"),
                Eval("f", {"x": (Reg("i"),), "t": (Imm(1.0),)}, {"prediction": ("y",)}),
            ),
            {"sample": "y"},
            {"f": 3},
        )
    )
    x, mask = rng.standard_normal((2, *STATE)).astype(np.float32), (rng.random((2, 1, 4, 4)) > 0.5).astype(np.float32)
    fused, found, wanted = mixing(program, x_T=x, mask=mask)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert list(fused.draws) == ["draw.4"]


def test_weights_are_stored_once_however_many_steps_there_are(tiny_bundle):
    from edgegen.targets.onnxruntime import network_of

    bundle = open_bundle(tiny_bundle)
    model = network_of(bundle, bundle.manifest.variants[0], "denoiser")
    inputs = {"x_T": ("float32", (1, 8, 8)), "label": ("int64", ())}
    fused = fuse(bundle.programs["dpmpp_2m-4"], {"denoiser": model}, inputs, 1)
    of_the_network = [t.name for t in fused.model.graph.initializer if t.name.startswith("denoiser/")]
    assert sorted(of_the_network) == sorted(f"denoiser/{t.name}" for t in model.graph.initializer)


def test_what_has_no_lowering_is_refused_by_name():
    program = Program("p", (Input("x_T"),), (Threshold("y", "x_T", 0.9, 1.0, 2.0),), {"sample": "y"}, {})
    with pytest.raises(ProgramError, match="cannot be fused: THRESHOLD has no lowering yet; run it step by step"):
        fuse(program, {"f": mixing_model({"x": ("float32", STATE)}, STATE)}, {"x_T": ("float32", (3, 4, 4))}, 1)


def test_nan_from_a_fused_program_is_an_error(tiny_bundle):
    with edgegen.load(tiny_bundle, variant="float32", threads=1, fused=True) as session:
        with pytest.raises(RuntimeFault, match="NaN or infinite"):
            session.generate(seed=0, noise=np.full((1, 1, 8, 8), 3e38, np.float32))
        assert np.isfinite(session.generate(seed=0)).all()
