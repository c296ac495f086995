"""One program per rule of FORMAT.md section 4.3, each broken in that rule only; and the JSON form."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from edgegen import canonical
from edgegen.diffusion import make_process
from edgegen.errors import EdgegenError, ProgramError, Status
from edgegen.program import (
    Clamp,
    Concat,
    Eval,
    Imm,
    Input,
    Instruction,
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
    program_from_json,
    program_to_json,
    verify,
)  # fmt: skip
from edgegen.solvers import build_program

X = Input("x_T")
EVAL = Eval("f", {"x": (Reg("x_T"),), "t": (Imm(1.0),)}, {"o": ("e",)})
SCALE = Lincomb("y", ((1.0, "x_T"),))
STD = Reduce("s", "std", "x_T")


def program(*instructions, inputs=(X,), outputs=None, nfe=None, steps=(), states=()):
    return Program("p", inputs, instructions, outputs or {"sample": "y"}, nfe or {}, steps, states)


BROKEN = [
    ("P0", program()),
    ("P0", program(SCALE, inputs=tuple(Input(f"x{i}") for i in range(65)))),
    ("P0", program(outputs={"sample": "x_T"})),
    ("P0", program(SCALE, inputs=(X, *(Input(f"x{i}") for i in range(64))))),
    ("P0", program(*(Lincomb(f"r{i}", ((1.0, "x_T"),)) for i in range(5000)), SCALE)),
    ("P0", replace(program(SCALE), outputs={})),
    ("P0", replace(program(SCALE), outputs={f"o{i}": "y" for i in range(65)})),
    ("P0", program(*(Eval(f"f{i}", {"x": (Reg("x_T"),)}, {"o": ("y",)}) for i in range(65)), nfe={f"f{i}": 1 for i in range(65)})),
    ("P1", program(Lincomb("1y", ((1.0, "x_T"),)))),
    ("P1", program(Lincomb("y" * 65, ((1.0, "x_T"),)))),
    ("P1", program(Lincomb("y\0", ((1.0, "x_T"),)))),
    ("P1", program(Lincomb("1y", ((1.0, "x_T"),)), SCALE)),
    ("P1", program(SCALE, inputs=(X, Input("1c", "condition")))),
    ("P1", program(SCALE, outputs={"sample": "y", "0a": "y"})),
    ("P1", program(replace(EVAL, component="0f"), SCALE, nfe={"0f": 1})),
    ("P1", program(replace(EVAL, outputs={"o": ("e",), "0a": ("g",)}), SCALE, nfe={"f": 1})),
    ("P1", program(SCALE, inputs=(X, X))),
    ("P1", program(SCALE, inputs=(X, Input("c", "secret")))),
    ("P1", program(replace(EVAL, component="a b"), SCALE, nfe={"a b": 1})),
    ("P1", program(SCALE, outputs={"sam ple": "y"})),
    ("P2", program(Lincomb("y", ((1.0, "nothing"),)))),
    ("P2", program(SCALE, outputs={"sample": "nothing"})),
    ("P2", program(Noise("y", "nothing", 1))),
    ("P3", program(Lincomb("y", ((math.inf, "x_T"),)))),
    ("P3", program(Lincomb("y", ((1.0, "x_T"),), math.nan))),
    ("P3", program(SCALE, inputs=(Input("x_T", "noise", math.inf),))),
    ("P3", program(Eval("f", {"x": (Reg("x_T"),), "t": (Imm(math.nan),)}, {"o": ("y",)}), nfe={"f": 1})),
    ("P3", program(Clamp("y", "x_T", -math.inf, 1.0))),
    ("P4", program(Eval("f", {"x": (Reg("x_T"), Reg("x_T"))}, {"o": ("y",)}), nfe={"f": 1})),
    ("P4", program(Eval("f", {"t": (Imm(1.0),)}, {"o": ("y",)}), nfe={"f": 1})),
    ("P4", program(Eval("f", {"x": (Reg("x_T"), Reg("x_T"))}, {"o": ("y", "y")}), nfe={"f": 2})),
    ("P4", program(Eval("f", {"x": (Reg("x_T"),) * 17}, {"o": tuple(f"r{i}" for i in range(17))}), SCALE, nfe={"f": 17})),
    ("P4", program(Eval("f", {}, {"o": ("y",)}), nfe={"f": 1})),
    ("P4", program(replace(EVAL, outputs={"o": ("e",), "p": ("g", "h")}), SCALE, nfe={"f": 1})),
    ("P4", program(Eval("f", {f"i{k}": (Reg("x_T"),) for k in range(1025)}, {"o": ("y",)}), nfe={"f": 1})),
    ("P4", program(Eval("f", {"x": (Reg("x_T"),)}, {}), SCALE, nfe={"f": 1})),
    ("P4", program(Eval("f", {"x": (Reg("x_T"),)}, {f"o{k}": (f"r{k}",) for k in range(1025)}), SCALE, nfe={"f": 1})),
    ("P5", program(EVAL, Eval("f", {"x": (Reg("e"),)}, {"o": ("y",)}), nfe={"f": 2})),
    ("P6", program(Lincomb("y", ()))),
    ("P6", program(Lincomb("y", ((1.0, "x_T"),) * 17))),
    ("P7", program(Noise("y", "x_T", 0))),
    ("P7", program(Noise("y", "x_T", 2**32))),
    ("P7", program(Noise("z", "x_T", 1), Noise("y", "x_T", 1))),
    ("P7", program(Noise("z", "x_T", 2), Noise("y", "x_T", 1))),
    ("P7", program(Noise("y", "x_T", 1, ()))),
    ("P7", program(Noise("y", "x_T", 1, (0,)))),
    ("P7", program(Noise("y", "x_T", 1, (2**16, 2**16)))),
    ("P7", program(Noise("y", "x_T", 1, (1,) * 6))),
    ("P8", program(Clamp("y", "x_T", 1.0, -1.0))),
    ("P9", program(Threshold("y", "x_T", 1.5, 1.0, 2.0))),
    ("P9", program(Threshold("y", "x_T", 0.9, 0.0, 2.0))),
    ("P9", program(Threshold("y", "x_T", 0.9, 2.0, 1.0))),
    ("P2", program(Slincomb("y", ((1.0, "x_T", "s"),)))),
    ("P2", program(Scalar("s", "add", "t", 1.0), SCALE)),
    ("P3", program(Muladd("y", "x_T", (math.inf,), (0.0,)))),
    ("P3", program(STD, Scalar("t", "add", "s", math.nan), SCALE)),
    ("P3", program(Slincomb("y", ((math.nan, "x_T", None),)))),
    ("P12", program(Muladd("y", "x_T", (), ()))),
    ("P12", program(Muladd("y", "x_T", (1.0, 2.0), (0.0,)))),
    ("P12", program(Muladd("y", "x_T", (1.0,) * 65_537, (0.0,) * 65_537))),
    ("P13", program(Concat("y", ("x_T",)))),
    ("P13", program(Concat("y", ("x_T",) * 17))),
    ("P14", program(Slice("y", "x_T", 2, 2))),
    ("P14", program(Slice("y", "x_T", -1, 2))),
    ("P14", program(Slice("y", "x_T", 0, 2**31))),
    ("P15", program(Reduce("s", "median", "x_T"), SCALE)),
    ("P15", program(Reduce("s", "quantile", "x_T", None, 1.5), SCALE)),
    ("P15", program(Reduce("s", "mean", "x_T", None, 0.5), SCALE)),
    ("P16", program(STD, Scalar("t", "power", "s", 2.0), SCALE)),
    ("P16", program(Scalar("t", "add", 1.0, 2.0), SCALE)),
    ("P16", program(STD, Scalar("t", "sqrt", "s", "s"), SCALE)),
    ("P16", program(STD, Scalar("t", "sqrt", 2.0, "s"), SCALE)),
    ("P17", program(Slincomb("y", ()))),
    ("P17", program(Slincomb("y", ((1.0, "x_T", None),) * 17))),
    ("P18", program(STD, Lincomb("y", ((1.0, "s"),)))),
    ("P18", program(Scalar("t", "add", "x_T", 1.0), SCALE)),
    ("P18", program(STD, Lincomb("s", ((1.0, "x_T"),)), SCALE)),
    ("P18", program(SCALE, Reduce("y", "std", "x_T"))),
    ("P18", program(Slincomb("y", ((1.0, "x_T", "x_T"),)))),
    ("P0", program(SCALE, states=tuple(State(f"h{i}", (), "y") for i in range(65)))),
    ("P1", program(SCALE, states=(State("1h", (), "y"),))),
    ("P3", program(SCALE, states=(State("h", (), "y", math.inf),))),
    ("P19", program(STD, SCALE, states=(State("s", (), "y"),))),
    ("P19", program(Lincomb("x_T", ((1.0, "x_T"),)), SCALE)),
    ("P19", program(SCALE, Lincomb("h", ((1.0, "h"),)), states=(State("h", (), "y"),))),
    ("P19", program(SCALE, states=(State("x_T", (), "y"),))),
    ("P19", program(SCALE, states=(State("h", (), "y"), State("h", (), "y")))),
    ("P19", program(SCALE, states=(State("h", (), "nothing"),))),
    ("P19", program(STD, SCALE, states=(State("h", (), "s"),))),
    ("P19", program(SCALE, states=(State("h", (0,), "y"),))),
    ("P19", program(SCALE, states=(State("h", (2**31,), "y"),))),
    ("P19", program(SCALE, states=(State("h", (1,) * 6, "y"),))),
    ("P10", program(EVAL, SCALE)),
    ("P10", program(EVAL, SCALE, nfe={"f": 2})),
    ("P10", program(SCALE, nfe={"f": 0})),
    ("P11", program(SCALE, steps=(Step(2, "y", 0.0),))),
    ("P11", program(SCALE, steps=(Step(0, "y", 0.0),))),
    ("P11", program(SCALE, steps=(Step(1, "z", 0.0),))),
    ("P11", program(SCALE, Lincomb("z", ((1.0, "y"),)), steps=(Step(1, "z", 0.0),))),
    ("P11", program(SCALE, steps=(Step(1, "y", math.inf),))),
    ("P11", program(SCALE, STD, steps=(Step(2, "s", 0.0),))),
    ("P11", program(SCALE, Lincomb("w", ((1.0, "y"),)), steps=(Step(1, "y", 1.0), Step(1, "y", 0.0)))),
]


@pytest.mark.parametrize(("rule", "broken"), BROKEN, ids=[f"{i}-{rule}" for i, (rule, _) in enumerate(BROKEN)])
def test_each_rule_rejects_the_program_that_breaks_it(rule, broken):
    with pytest.raises(ProgramError, match=rf"rule {rule}:") as e:
        verify(broken)
    assert e.value.code == Status.BAD_PROGRAM


def test_every_rule_of_format_md_has_a_case():
    text = (Path(__file__).parents[2] / "runtimes" / "FORMAT.md").read_text(encoding="utf-8")
    assert {rule for rule, _ in BROKEN} == set(re.findall(r"^\| (P\d+) \|", text, re.M)) == {f"P{i}" for i in range(20)}


def test_a_sound_program_passes():
    verify(
        program(EVAL, Noise("z", "x_T", 1), Clamp("c", "e", -1, 1), Threshold("t", "c", 0.9, 1, 2), Lincomb("y", ((1, "t"), (1, "z"))), nfe={"f": 1})
    )


def sound():
    return build_program("ddim", make_process("vp_linear"), "epsilon", 2, eta=0.5, clip=1.0, threshold=0.9, guidance=2.0)


def test_json_is_exact_and_canonical():
    p = sound()
    data = canonical.encode(program_to_json(p))
    assert program_from_json(canonical.decode(data)) == p
    assert canonical.encode(program_to_json(program_from_json(canonical.decode(data)))) == data


def mutations():
    """(what, change) pairs, each making the JSON of `sound()` malformed."""

    def at(path, value):
        def change(j):
            for key in path[:-1]:
                j = j[key]
            if value is ...:
                del j[path[-1]]
            else:
                j[path[-1]] = value

        return change

    return [
        ("unknown version", at(["version"], 2)),
        ("missing key", at(["nfe"], ...)),
        ("extra key", at(["extra"], 1)),
        ("unknown op", at(["instructions", 0, "op"], "JUMP")),
        ("op missing", at(["instructions", 0, "op"], ...)),
        ("wrong type", at(["instructions"], "none")),
        ("extra key in an instruction", at(["instructions", 0, "flags"], 1)),
        ("coefficient is no hex float", at(["instructions", 1, "terms", 0, 0], "1.5")),
        ("coefficient is inf", at(["instructions", 1, "terms", 0, 0], "inf")),
        ("coefficient in another hex form", at(["instructions", 1, "terms", 0, 0], "0x1p0")),
        ("term with three parts", at(["instructions", 1, "terms", 0], ["0x1.0000000000000p+0", "x_T", "x_T"])),
        ("operand with both", at(["instructions", 0, "inputs", "x", 0], {"reg": "x_T", "imm": "0x1.0000000000000p+0"})),
        ("operand list is no list", at(["instructions", 0, "inputs", "x"], "x_T")),
        ("output registers are numbers", at(["instructions", 0, "outputs", "prediction"], [1, 2])),
        ("nfe is text", at(["nfe", "denoiser"], "4")),
        ("nfe is true", at(["nfe", "denoiser"], True)),
        ("output is a number", at(["outputs", "sample"], 3)),
        ("step without time", at(["steps", 0, "time"], ...)),
        ("input without kind", at(["inputs", 0, "kind"], ...)),
    ]


@pytest.mark.parametrize(("what", "change"), mutations(), ids=[m[0] for m in mutations()])
def test_malformed_json_is_rejected(what, change):
    value = copy.deepcopy(program_to_json(sound()))
    change(value)
    with pytest.raises(EdgegenError):
        program_from_json(value)


@pytest.mark.parametrize("value", [None, 3, [], "x", {}])
def test_json_of_another_kind_is_rejected(value):
    with pytest.raises(EdgegenError):
        program_from_json(value)


def every_instruction():
    """A sound program that has each instruction once or more."""
    return Program(
        "every",
        (X, Input("mask", "condition")),
        (
            Eval("f", {"x": (Reg("x_T", 0.5), Reg("x_T")), "t": (Imm(1.0), Imm(2.0))}, {"o": ("e", "u")}),
            Noise("z", "x_T", 1),
            Noise("latent", "x_T", 2, (3, 4)),
            Lincomb("a", ((0.1, "e"), (0.2, "z")), 0.3),
            Clamp("b", "a", -1.0, 1.0),
            Threshold("c", "b", 0.9, 1.0, 2.0),
            Muladd("d", "c", (1.0, 2.0), (0.5, -0.5)),
            Concat("j", ("d", "u")),
            Slice("k", "j", 0, 2),
            Select("m", "mask", "k", "u"),
            Reduce("s", "mean", "m", "mask"),
            Reduce("q", "quantile", "m", None, 0.25),
            Scalar("v", "max", "s", "q"),
            Scalar("w", "div", 2.0, "v"),
            Slincomb("y", ((1.0, "m", None), (-0.5, "u", "w"))),
        ),
        {"sample": "y"},
        {"f": 2},
        (Step(15, "y", 0.0),),
        (State("h", (3, 4), "y", 0.5), State("h2", (), "h")),
    )


def test_json_of_every_instruction_is_exact_and_canonical():
    p = verify(every_instruction())
    data = canonical.encode(program_to_json(p))
    assert program_from_json(canonical.decode(data)) == p
    assert {type(i) for i in p.instructions} == set(get_args(Instruction))


@pytest.mark.parametrize("index", range(15))
def test_json_that_lacks_or_adds_a_key_in_any_instruction_is_rejected(index):
    whole = program_to_json(every_instruction())
    for key in list(whole["instructions"][index]):
        value = copy.deepcopy(whole)
        del value["instructions"][index][key]
        if (whole["instructions"][index]["op"], key) in {("NOISE", "shape"), ("REDUCE", "mask")}:
            program_from_json(value)  # these two may be absent
            continue
        with pytest.raises(EdgegenError):
            program_from_json(value)
        value = copy.deepcopy(whole)
        value["instructions"][index][key] = {"surprise": 1}
        with pytest.raises(EdgegenError):
            program_from_json(value)
    value = copy.deepcopy(whole)
    value["instructions"][index]["extra"] = 1
    with pytest.raises(EdgegenError):
        program_from_json(value)


@pytest.mark.parametrize(
    ("index", "path", "wrong"),
    [
        (2, ("shape", 0), "3"),
        (2, ("shape", 0), True),
        (6, ("scale", 0), 1),
        (7, ("parts", 0), 1),
        (8, ("start",), True),
        (12, ("a",), {"reg": 1}),
        (12, ("a",), {"reg": "s", "imm": "0x0.0p+0"}),
        (14, ("terms", 0), ["0x1.0000000000000p+0"]),
        (14, ("terms", 1, 2), 1),
    ],
)
def test_json_of_a_wrong_type_inside_an_instruction_is_rejected(index, path, wrong):
    value = program_to_json(every_instruction())
    place = value["instructions"][index]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    with pytest.raises(EdgegenError):
        program_from_json(value)


@pytest.mark.parametrize(
    "states",
    [
        [],
        "none",
        [{"name": "h", "shape": [3], "next": "y"}],
        [{"name": "h", "shape": ["3"], "next": "y", "initial": "0x0.0p+0"}],
        [{"name": "h", "shape": [3], "next": 1, "initial": "0x0.0p+0"}],
        [{"name": "h", "shape": [3], "next": "y", "initial": "0"}],
        [{"name": "h", "shape": [3], "next": "y", "initial": "0x0.0p+0", "extra": 1}],
    ],
)
def test_malformed_states_are_rejected(states):
    with pytest.raises(ProgramError):
        program_from_json(program_to_json(every_instruction()) | {"states": states})
