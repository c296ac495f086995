"""Shapes are known before a program runs: what the interpreter would refuse, and what would fill the memory."""

from __future__ import annotations

import numpy as np
import pytest

from edgegen.diffusion import make_process
from edgegen.errors import ProgramError, Status
from edgegen.program import (
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
    Select,
    Slice,
    Slincomb,
    State,
    Step,
    interpret,
    verify,
)  # fmt: skip
from edgegen.program.shapes import MAX_ELEMENTS, check_types, infer_shapes
from edgegen.solvers import SOLVERS, build_program
from edgegen.solvers.table import EXAMPLES
from edgegen.spec import Signature, TensorSpec

X = {"x_T": (3, 4)}


def program(*instructions, inputs=(Input("x_T"),)):
    return Program("p", inputs, instructions, {"sample": "y"}, {})


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_inferred_shapes_are_those_of_a_run(solver):
    for process, prediction in EXAMPLES:
        try:
            made = build_program(solver, make_process(**process), prediction, 4)
        except ProgramError:
            continue
        break
    tails = {i.name: (1, 4) if i.name == "mask" else (3, 4) for i in made.inputs}
    evaluation = next(i for i in made.instructions if isinstance(i, Eval))
    wide = (6, 4) if solver == "gl_lcm" else (3, 4)
    components = {"denoiser": ({name: {"x": wide, "latent": (100,)}.get(name, ()) for name in evaluation.inputs}, {"prediction": (3, 4)})}
    inputs = {name: np.random.default_rng(0).standard_normal((2, *tail)).astype(np.float32) for name, tail in tails.items()}
    outputs = interpret(made, {"denoiser": lambda x, **others: 0.1 * x[:, :3]}, inputs)
    assert infer_shapes(made, tails, components) == {name: value.shape[1:] for name, value in outputs.items()}


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        ((Concat("c", ("x_T", "x_T")), Lincomb("y", ((1.0, "x_T"), (1.0, "c")))), r"'c' has shape \[6, 4\], 'x_T' has \[3, 4\]"),
        ((Noise("z", "x_T", 1, (3, 5)), Concat("y", ("x_T", "z"))), r"'z' \[3, 5\] beside 'x_T' \[3, 4\]"),
        ((Slice("y", "x_T", 0, 4),), r"\[:, 0:4\] of 'x_T' of shape \[3, 4\]"),
        ((Muladd("y", "x_T", (1.0, 2.0), (0.0, 0.0)),), "2 channels for 'x_T'"),
        ((Noise("m", "x_T", 1, (2, 4)), Select("y", "m", "x_T", "x_T")), "mask 'm' has shape"),
        ((Noise("m", "x_T", 1, (2, 4)), Reduce("s", "mean", "x_T", "m"), Slincomb("y", ((1.0, "x_T", "s"),))), "mask 'm' has shape"),
        ((Noise("z", "x_T", 1, (2, 4)), Slincomb("y", ((1.0, "x_T", None), (1.0, "z", None)))), "'z' has shape"),
        ((Noise("y", "x_T", 1, (2**14, 2**15)),), f"more than {MAX_ELEMENTS} elements"),
    ],
)
def test_what_does_not_fit_is_found_before_it_runs(instructions, message):
    with pytest.raises(ProgramError, match=message) as e:
        infer_shapes(verify(program(*instructions)), X, {})
    assert e.value.code == Status.BAD_SHAPE


def test_a_register_that_doubles_forty_times_is_refused():
    """A few hundred bytes of program that would want a tebibyte."""
    doubling = [Concat("r0", ("x_T", "x_T")), *(Concat(f"r{i + 1}", (f"r{i}", f"r{i}")) for i in range(40)), Slice("y", "r40", 0, 3)]
    with pytest.raises(ProgramError, match="elements per sample"):
        infer_shapes(verify(program(*doubling)), X, {})


def test_an_operand_of_another_shape_than_the_components_input_is_refused():
    evaluation = Eval("f", {"x": (Reg("x_T"),), "t": (Imm(1.0),)}, {"o": ("y",)})
    with pytest.raises(ProgramError, match=r"'x_T' has shape \[3, 4\], input 'x' takes \[6, 4\]"):
        infer_shapes(Program("p", (Input("x_T"),), (evaluation,), {"sample": "y"}, {"f": 1}), X, {"f": ({"x": (6, 4), "t": ()}, {"o": (3, 4)})})


@pytest.mark.parametrize(("shape", "message"), [((3, 5), r"state 'h' \[3, 5\] continues as 'y'"), ((2**14, 2**15), "above")])
def test_a_state_continues_in_its_own_shape_and_within_the_limit(shape, message):
    p = Program("p", (Input("x_T"),), (Lincomb("y", ((1.0, "x_T"),)),), {"sample": "y"}, {}, (), (State("h", shape, "y"),))
    with pytest.raises(ProgramError, match=message):
        infer_shapes(verify(p), X, {})


def network(*inputs, output=("batch", 3, 4)):
    return {"f": Signature(inputs, (TensorSpec("o", "float32", output),))}


LATENT, TIME = TensorSpec("x", "float32", ("batch", 3, 4)), TensorSpec("t", "float32", ("batch",))
CALL = Eval("f", {"x": (Reg("x_T"),), "t": (Imm(1.0),)}, {"o": ("y",)})


def fed(x=Reg("x_T"), t=Imm(1.0)):
    return Eval("f", {"x": (x,), "t": (t,)}, {"o": ("y",)})


WELL = [
    (CALL, network(LATENT, TIME)),
    (CALL, network(LATENT, TensorSpec("t", "float32", ()))),  # a time for all rows
    (CALL, network(LATENT, TensorSpec("t", "int64", (1,)))),
    (CALL, network(TensorSpec("x", "float16", ("batch", 3, 4)), TIME)),
    (CALL, network(TensorSpec("x", "float64", ("batch", 3, 4)), TIME)),
    (fed(t=Imm(1.0)), network(LATENT, TensorSpec("t", "bool", ("batch",)))),
    (fed(t=Reg("label")), network(LATENT, TensorSpec("t", "int64", ("batch",)))),
]
ILL = [
    (fed(t=Imm(0.5)), network(LATENT, TensorSpec("t", "int64", ("batch",))), "cannot take 0.5; use a grid of whole times"),
    (fed(t=Imm(2.0)), network(LATENT, TensorSpec("t", "bool", ("batch",))), "cannot take 2"),
    (fed(t=Imm(128.0)), network(LATENT, TensorSpec("t", "int8", ("batch",))), "cannot take 128"),
    (fed(t=Imm(16777217.0)), network(LATENT, TensorSpec("t", "int64", ("batch",))), "cannot take"),
    (fed(t=Imm(65519.9999)), network(LATENT, TensorSpec("t", "float16", ("batch",))), "cannot take"),
    (fed(t=Imm(65520.0)), network(LATENT, TensorSpec("t", "float16", ("batch",))), "cannot take 65520"),
    (fed(t=Imm(1e39)), network(LATENT, TIME), "does not fit float32"),
    (fed(x=Reg("x_T", 1e39)), network(LATENT, TIME), "does not fit float32"),
    (fed(t=Reg("label")), network(LATENT, TIME), "cannot take 'label', which is int64"),
    (fed(t=Reg("label", 2.0)), network(LATENT, TensorSpec("t", "int64", ("batch",))), "times 2"),
    (CALL, network(TensorSpec("x", "int64", ("batch", 3, 4)), TIME), "cannot take 'x_T', which is float32"),
    (CALL, network(TensorSpec("x", "float32", (1, 3, 4)), TIME), "does not have the batch as its first size"),
    (CALL, network(TensorSpec("x", "float32", ("batch", "batch", 4)), TIME), "does not have the batch as its first size"),
    (
        Eval("f", {"x": (Reg("x_T"), Reg("x_T")), "t": (Imm(1.0), Imm(2.0))}, {"o": ("y", "z")}),
        network(LATENT, TensorSpec("t", "float32", ("batch", 1))),
        "different immediates per branch",
    ),
    (CALL, network(LATENT, TIME, output=(1, 3, 4)), "does not have the batch as its first size"),
    (CALL, network(LATENT, TIME, output=(3, 4)), "does not have the batch as its first size"),
    (Lincomb("y", ((1.0, "label"),)), {}, "only EVAL reads conditions that are not float32"),
]
INPUTS = (Input("x_T"), Input("label", "condition"))


@pytest.mark.parametrize(("instruction", "components"), WELL)
def test_dtypes_that_fit(instruction, components):
    check_types(Program("p", INPUTS, (instruction,), {"sample": "y"}, {}), {"label": "int64"}, components)


@pytest.mark.parametrize(("instruction", "components", "message"), ILL)
def test_dtypes_that_do_not_fit_are_found_before_it_runs(instruction, components, message):
    with pytest.raises(ProgramError, match=message):
        check_types(Program("p", INPUTS, (instruction,), {"sample": "y"}, {}), {"label": "int64"}, components)


@pytest.mark.parametrize(
    "changed",
    [
        {"outputs": {"sample": "label"}},
        {"steps": (Step(1, "label", 0.0),)},
        {"states": (State("h", (), "label"),)},
        {"inputs": (*INPUTS[1:], Input("x_T", "noise", 1e39))},
    ],
)
def test_outputs_marks_and_states_are_float32(changed):
    p = Program(**({"name": "p", "inputs": INPUTS, "instructions": (CALL,), "outputs": {"sample": "y"}, "nfe": {}} | changed))
    with pytest.raises(ProgramError, match="float32"):
        check_types(p, {"label": "int64"}, network(LATENT, TIME))
