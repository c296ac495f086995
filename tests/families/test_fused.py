"""Fused equals stepwise on trained networks, for every solver; what fused files weigh; the lines that the documentation shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgegen.bundle import open_bundle, parse_bundle
from edgegen.errors import ProgramError
from edgegen.fusing import fused_onnx, with_fused
from edgegen.program import Eval, initial_state, interpret, normals
from edgegen.program.fuse import fuse
from edgegen.search import Subject
from edgegen.solvers import SOLVERS
from edgegen.solvers.table import why_not
from edgegen.spec import default_conditions
from edgegen.targets.onnxruntime import network_of, open_component, open_engine

ROOT = Path(__file__).parents[2]


def evaluations(model):
    """How many copies of the network the graph holds: the nodes that read its largest weight, but for the merged projections of time and label,
    which evaluations at one time share.
    """
    weights = [t for t in model.graph.initializer if t.name.startswith("denoiser/") and not t.name.endswith("_merged")]
    weight = max(weights, key=lambda t: len(t.raw_data))
    return sum(weight.name in node.input for node in model.graph.node)


STEPS = {"deis_rk": 10, "ipndm": 20, "kdpm2_a": 10, "pndm": 20, "sa_solver": 20}


@pytest.mark.parametrize(("family", "most"), [("digits", 20), ("reach", 19)])
def test_every_solver_gives_the_same_fused(family, most, request):
    """Deterministic and stochastic, in about 10 evaluations, unrolled and as a Loop: at most 1e-4 apart, and as many evaluations.

    In fewer steps the solvers of high order amplify what is rounded: pndm in 10 is 1.3e-4 from its own float64 step by step.
    """
    bundle = open_bundle(request.getfixturevalue(family))
    variant = next(v for v in bundle.manifest.variants if v.name == "float32")
    network, conditions = network_of(bundle, variant, "denoiser"), default_conditions(bundle.manifest.conditions)
    sample, done, worst = bundle.manifest.sample.shape, 0, 0.0
    declared = {c.name: (c.dtype, c.shape) for c in bundle.manifest.conditions}
    with Subject(bundle, samples=1, threads=1) as subject, open_component(bundle, variant, "denoiser", threads=1) as component:
        reasons = why_not(subject.process, subject.recipe.model.prediction, 4)
        for solver in sorted(set(SOLVERS) - {name for name, reason in reasons.items() if reason} - {"gl_lcm", "prodiff", "ddgan"}):
            calls = sum(isinstance(i, Eval) for i in subject.program(solver, 4).instructions)
            program = subject.program(solver, STEPS.get(solver) or max(4, 40 // calls))
            inputs = {i.name: declared.get(i.name, ("float32", sample)) for i in program.inputs}
            given = {name: conditions[name] for name in inputs if name in conditions} | initial_state(program, normals(5, 0, (1, *sample)))
            wanted = interpret(program, {"denoiser": component}, given, seed=5)["sample"]
            for loop in (False, True):
                try:
                    fused = fuse(program, {"denoiser": network}, inputs, 1, loop=loop)
                except ProgramError as e:
                    assert loop and "no three steps" in str(e), f"{solver}: {e}"
                    continue
                feeds = given | {name: normals(5, draw, shape) for name, (draw, shape) in fused.draws.items()}
                (found,) = open_engine(fused.model.SerializeToString(), solver, 1).run(["out.sample"], feeds)
                worst = max(worst, float(np.abs(found - wanted).max()))
                assert np.abs(found - wanted).max() <= 1e-4, (solver, loop)
                if not loop:
                    calls = sum(isinstance(i, Eval) for i in program.instructions)
                    assert evaluations(fused.model) == calls and sum(program.nfe.values()) % calls == 0, solver
                done += 1
    print(f"{family}: {done} comparisons, at most {worst:.1e} apart")
    assert done >= 2 * most


def test_a_loop_of_ten_steps_weighs_little_more_than_one(digits):
    bundle = open_bundle(digits)
    for variant in bundle.manifest.variants:
        one = len(network_of(bundle, variant, "denoiser").SerializeToString())
        model = fused_onnx(bundle, "dpmpp_2m-10", variant=variant.name, loop=True)
        assert len(model.SerializeToString()) <= 1.1 * one + 200_000
        for form in (model, fused_onnx(bundle, "dpmpp_2m-10", variant=variant.name)):
            stored = [(t.data_type, tuple(t.dims), t.raw_data) for t in form.graph.initializer if len(t.raw_data) > 1000]
            assert len(set(stored)) == len(stored)


def test_a_fused_program_in_a_bundle_adds_its_nodes_and_no_weights(digits):
    bundle = open_bundle(digits)
    for variant in bundle.manifest.variants:
        fused, members = with_fused(bundle, variant)
        (data,) = members.values()
        assert fused.fused[0].program == "dpmpp_2m-10" and len(data) < 700_000


def test_the_three_lines_of_the_documentation_run(reach, tmp_path, monkeypatch):
    (tmp_path / "reach.onnx").write_bytes(fused_onnx(parse_bundle(reach.read_bytes())).SerializeToString())
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "fused.md").read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) == 3 and "edgegen" not in code
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    assert found["actions"].shape == (1, 8, 2) and np.isfinite(found["actions"]).all()
