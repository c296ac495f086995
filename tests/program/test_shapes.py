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
    interpret,
    verify,
)  # fmt: skip
from edgegen.program.shapes import MAX_ELEMENTS, infer_shapes
from edgegen.solvers import SOLVERS, build_program
from edgegen.solvers.table import EXAMPLES

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
