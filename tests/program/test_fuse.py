"""A fused program gives what its steps give: one graph, weights once, the same noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

import edgegen
from edgegen.bundle import open_bundle
from edgegen.diffusion import make_process
from edgegen.errors import ProgramError, RuntimeFault
from edgegen.fusing import timed_scales
from edgegen.judging import TimedComponent
from edgegen.pipeline import Options, build
from edgegen.plan import make_plan
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
    Reduce,
    Reg,
    Scalar,
    Select,
    Slice,
    Slincomb,
    State,
    Step,
    Threshold,
    initial_state,
    interpret,
    normals,
    verify,
)
from edgegen.program.fuse import Timed, fuse
from edgegen.program.roll import Varying, roll
from edgegen.recipe import load_recipe
from edgegen.solvers.table import why_not
from edgegen.targets.onnxruntime import network_of, open_engine
from edgegen.workspace import Workspace
from tests.tiny import mixing_model, write_tiny

STATE = [3, 4, 4]


@pytest.fixture(scope="module")
def looping_bundle(tmp_path_factory):
    """The tiny network under every solver that fits it, in 7 guided steps; and ddim in 40."""
    folder = tmp_path_factory.mktemp("looping")
    recipe = write_tiny(folder)
    head, _, tail = recipe.read_text().partition("[[programs]]")
    names = [name for name, reason in why_not(make_process("vp_linear"), "sample", 7).items() if not reason and name != "ddgan"]
    entries = "".join(f'[[programs]]\nsolver = "{name}"\nsteps = [7]\nguidance = 1.5\n\n' for name in names if name != "gl_lcm")
    entries += '[[programs]]\nsolver = "ddim"\nsteps = [40]\nguidance = 1.5\n\n'
    recipe.write_text(head + entries + "[calibration]" + tail.partition("[calibration]")[2].replace("rules = []", "precisions = []"))
    return build(make_plan(load_recipe(recipe), folder), folder / "looping.edgegen", Workspace(folder / "cache"), Options(measured=False))


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


def test_int8_networks_fuse_with_scales_of_their_own_at_each_time(tiny_bundle):
    """Equal to running a network per time; not equal to the one that has a scale for all."""
    bundle = open_bundle(tiny_bundle)
    variant = next(v for v in bundle.manifest.variants if v.name == "int8")
    program = bundle.programs["dpmpp_2m-4"]
    (scales,) = timed_scales(bundle, variant, program.name).values()
    assert len(scales.times) == 4
    with (
        TimedComponent(
            "denoiser", network_of(bundle, variant, "denoiser"), bundle.manifest.components["denoiser"], "t", scales.constants, 1
        ) as timed,
        edgegen.load(tiny_bundle, variant="int8", threads=1, fused=True) as fused,
    ):
        inputs = {"label": np.ones(1, np.int64)} | initial_state(program, normals(1, 0, (1, 1, 8, 8)))
        wanted = interpret(program, {"denoiser": timed}, inputs, seed=1)["sample"]
        found = fused.generate(seed=1, label=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    with edgegen.load(tiny_bundle, variant="int8", threads=1) as stepwise:
        assert np.abs(stepwise.generate(seed=1, label=1) - found).max() > 2e-3


def test_a_time_that_was_not_calibrated_is_refused_by_name(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    variant = next(v for v in bundle.manifest.variants if v.name == "int8")
    model, inputs = network_of(bundle, variant, "denoiser"), {"x_T": ("float32", (1, 8, 8)), "label": ("int64", ())}
    (scales,) = timed_scales(bundle, variant, "dpmpp_2m-4").values()
    assert timed_scales(bundle, variant, "ddim-3") == {}
    with pytest.raises(ProgramError, match=r"'ddim-3'.*evaluated at the time 0\.\d+, and it was quantized for 0\.0"):
        fuse(bundle.programs["ddim-3"], {"denoiser": model}, inputs, 1, timed={"denoiser": Timed("t", scales.constants)})


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
    bundle = open_bundle(tiny_bundle)
    model = network_of(bundle, bundle.manifest.variants[0], "denoiser")
    inputs = {"x_T": ("float32", (1, 8, 8)), "label": ("int64", ())}
    fused = fuse(bundle.programs["dpmpp_2m-4"], {"denoiser": model}, inputs, 1)
    of_the_network = [t.name for t in fused.model.graph.initializer if t.name.startswith("denoiser/")]
    assert len(of_the_network) == len(set(of_the_network)) <= len(model.graph.initializer)
    large = [t for t in model.graph.initializer if len(t.raw_data) > 256]
    assert {f"denoiser/{t.name}" for t in large} <= set(of_the_network)


def shaped(*instructions, **inputs):
    """Fused and interpreted sample of instructions that end in a tensor `y`, over inputs of 3 samples."""
    program = verify(Program("p", (Input("x_T"), *(Input(name, "condition") for name in inputs)), instructions, {"sample": "y"}, {}))
    x = np.random.default_rng(1).standard_normal((3, *STATE)).astype(np.float32)
    given = {"x_T": x, **inputs}
    fused = fuse(program, {}, {name: ("float32", tuple(value.shape[1:])) for name, value in given.items()}, 3)
    (found,) = open_engine(fused.model.SerializeToString(), "test", 1).run(["out.sample"], given)
    return found, interpret(program, {}, given)["sample"]


MASK = (np.random.default_rng(2).random((3, 1, 4, 4)) > 0.6).astype(np.float32)
EMPTY = MASK * np.array([1.0, 0.0, 1.0], np.float32).reshape(3, 1, 1, 1)
ONE = np.zeros((3, *STATE), np.float32)
ONE[:, 1, 2, 3] = 1.0


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.995, 1.0])
def test_threshold_fused_keeps_its_law(quantile):
    found, wanted = shaped(Threshold("y", "x_T", quantile, 0.7, 1.9))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mask", [None, MASK, EMPTY, ONE])
@pytest.mark.parametrize(("kind", "quantile"), [("mean", 0.0), ("std", 0.0), ("norm", 0.0), ("quantile", 0.0), ("quantile", 0.37), ("quantile", 1.0)])
def test_reduce_fused_keeps_its_law(kind, quantile, mask):
    given = {} if mask is None else {"mask": mask}
    reduce = Reduce("s", kind, "x_T", None if mask is None else "mask", quantile)
    found, wanted = shaped(reduce, Slincomb("y", ((2.0, "x_T", "s"), (0.5, "x_T", None))), **given)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "div", "min", "max", "sqrt"])
def test_scalar_fused_keeps_its_law(kind):
    scalar = Scalar("b", kind, "a") if kind == "sqrt" else Scalar("b", kind, "a", 0.8)
    found, wanted = shaped(Reduce("a", "std", "x_T"), scalar, Slincomb("y", ((1.0, "x_T", "b"),)))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def reversed_scalar(kind):
    return shaped(Reduce("a", "std", "x_T"), Scalar("b", kind, 0.8, "a"), Slincomb("y", ((1.0, "x_T", "b"),)))


@pytest.mark.parametrize("kind", ["sub", "div"])
def test_a_number_may_stand_before_a_scalar(kind):
    np.testing.assert_allclose(*reversed_scalar(kind), rtol=1e-6, atol=1e-6)


def test_what_cannot_be_fused_is_refused_by_name():
    program = Program("p", (), (Clamp("y", "s", 0.0, 1.0),), {"sample": "y"}, {}, states=(State("s", (3,), "y"),))
    with pytest.raises(ProgramError, match="it has states; it runs as a stream"):
        fuse(program, {}, {}, 1)
    branch = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["o"])], "b", [], [onnx.helper.make_tensor_value_info("o", 1, None)])
    model = mixing_model({"x": ("float32", STATE)}, STATE)
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["unused"], then_branch=branch, else_branch=branch))
    with pytest.raises(ProgramError, match="component 'f' has control flow; run it step by step"):
        fuse(verify(Program("p", (Input("x_T"),), (Clamp("y", "x_T", 0.0, 1.0),), {"sample": "y"}, {})), {"f": model}, {"x_T": ("float32", ())}, 1)


# --- the Loop form


def test_every_solver_of_a_bundle_gives_the_same_in_a_loop(looping_bundle):
    """Every solver with 7 steps and guidance: warm-ups, noise in every step, last steps of another kind, several evaluations in a step."""
    bundle = open_bundle(looping_bundle)
    model = network_of(bundle, bundle.manifest.variants[0], "denoiser")
    inputs = {"x_T": ("float32", (1, 8, 8)), "label": ("int64", ())}
    one, looped = len(model.SerializeToString()), []
    with edgegen.load(looping_bundle, threads=1) as session:
        for name, program in bundle.programs.items():
            try:
                fused = fuse(program, {"denoiser": model}, inputs, 2, loop=True)
            except ProgramError as e:
                assert "no three steps" in str(e)
                continue
            onnx.checker.check_model(fused.model)
            looped.append(name.rpartition("-")[0])
            feeds = {"label": np.array([2, 0])} | initial_state(program, normals(4, 0, (2, 1, 8, 8)))
            feeds |= {k: normals(4, draw, shape) for k, (draw, shape) in fused.draws.items()}
            (found,) = open_engine(fused.model.SerializeToString(), "test", 1).run(["out.sample"], feeds)
            wanted = session.generate(seed=4, batch=2, program=name, label=np.array([2, 0]))
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5, err_msg=name)
            weights = [t.name for t in fused.model.graph.initializer if t.name.startswith("denoiser/")]
            assert len(set(weights)) == len(weights) <= len(model.graph.initializer)
            assert len(fused.model.SerializeToString()) < one + 60_000
    assert len(looped) >= 20 and {"ddim", "dpmpp_2m", "dpmpp_sde", "euler_a", "heun", "unipc", "dpmpp_3s", "lcm"} <= set(looped)


def test_a_loop_does_not_grow_with_the_steps(looping_bundle):
    bundle = open_bundle(looping_bundle)
    model = network_of(bundle, bundle.manifest.variants[0], "denoiser")
    inputs = {"x_T": ("float32", (1, 8, 8)), "label": ("int64", ())}
    nodes = {n: len(fuse(bundle.programs[f"ddim-{n}"], {"denoiser": model}, inputs, 1, loop=True).model.graph.node) for n in (7, 40)}
    assert nodes[7] == nodes[40]


@pytest.mark.parametrize("wrong", ["initial", "table", "order"])
def test_a_loop_put_together_wrongly_is_seen(looping_bundle, wrong, monkeypatch):
    """What the comparison above would miss if it could not fail."""
    import edgegen.program.fuse as module

    def spoiled(program):
        rolled = roll(program)
        if wrong == "initial":
            doubled = Lincomb("doubled", ((2.0, "x_T"),))
            carried = tuple(replace(c, initial="doubled" if c.initial == "x_T" else c.initial) for c in rolled.carried)
            return replace(rolled, before=(*rolled.before, doubled), carried=carried)
        if wrong == "order":
            return replace(rolled, turns=rolled.turns - 1)
        body = list(rolled.body)
        at = next(i for i, b in enumerate(body) if isinstance(b, Lincomb) and any(isinstance(c, Varying) for c, _ in b.terms))
        terms = tuple((Varying(c.values[::-1]) if isinstance(c, Varying) else c, name) for c, name in body[at].terms)
        body[at] = replace(body[at], terms=terms)
        return replace(rolled, body=tuple(body))

    monkeypatch.setattr(module, "roll", spoiled)
    with pytest.raises(AssertionError):
        test_every_solver_of_a_bundle_gives_the_same_in_a_loop(looping_bundle)


def test_the_time_branch_is_folded_and_what_no_step_changes_is_computed_once():
    """A network with a branch of the time, one of the condition, and one of the state: 4 steps leave 0, 1 and 4 of them."""
    node, const = onnx.helper.make_node, onnx.numpy_helper.from_array
    nodes = [
        node("Exp", ["t"], ["t_branch"]), node("Tanh", ["c"], ["c_branch"]), node("Sin", ["x"], ["x_branch"]),
        node("Reshape", ["t_branch", "shape"], ["t4"]), node("Add", ["x_branch", "t4"], ["a"]), node("Add", ["a", "c_branch"], ["prediction"]),
    ]  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", 1, ["n", *STATE]), value("t", 1, ["n"]), value("c", 1, ["n", *STATE])], [value("prediction", 1, ["n", *STATE])],
        [const(np.array([-1, 1, 1, 1]), "shape")],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    steps, x = [], "x_T"
    for i in range(4):
        steps += [
            Eval("f", {"x": (Reg(x),), "t": (Imm(0.1 * i),), "c": (Reg("c"),)}, {"prediction": (f"p{i}",)}),
            Lincomb(f"x{i}", ((0.5 + i, x), (0.1, f"p{i}"))),
        ]
        x = f"x{i}"
    marks = tuple(Step(2 * i + 2, f"x{i}", 0.0) for i in range(4))
    program = verify(Program("p", (Input("x_T"), Input("c", "condition")), tuple(steps), {"sample": x}, {"f": 4}, marks))
    declared = {"x_T": ("float32", tuple(STATE)), "c": ("float32", tuple(STATE))}
    unrolled, loop = (fuse(program, {"f": model}, declared, 1, loop=form) for form in (False, True))
    kinds = [n.op_type for n in unrolled.model.graph.node]
    assert (kinds.count("Exp"), kinds.count("Tanh"), kinds.count("Sin")) == (0, 1, 4)
    (turn,) = (a.g for n in loop.model.graph.node for a in n.attribute if a.HasField("g"))
    assert [n.op_type for n in loop.model.graph.node].count("Tanh") == 1 and "Tanh" not in [n.op_type for n in turn.node]
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((1, *STATE)).astype(np.float32) for name in declared}
    found = [open_engine(f.model.SerializeToString(), "test", 1).run(["out.sample"], feeds)[0] for f in (unrolled, loop)]
    wanted = feeds["x_T"].astype(np.float64)
    for i in range(4):
        wanted = (0.5 + i) * wanted + 0.1 * (np.sin(wanted) + np.exp(0.1 * i) + np.tanh(feeds["c"].astype(np.float64)))
    for value in found:
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


def test_nan_from_a_fused_program_is_an_error(tiny_bundle):
    with edgegen.load(tiny_bundle, variant="float32", threads=1, fused=True) as session:
        with pytest.raises(RuntimeFault, match="NaN or infinite"):
            session.generate(seed=0, noise=np.full((1, 1, 8, 8), 3e38, np.float32))
        assert np.isfinite(session.generate(seed=0)).all()
