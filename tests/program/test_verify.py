"""One program per rule of FORMAT.md section 4.3, each broken in that rule only; and the JSON form."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest

from edgegen import canonical
from edgegen.diffusion import make_process
from edgegen.errors import EdgegenError, ProgramError, Status
from edgegen.program import Clamp, Eval, Imm, Input, Lincomb, Noise, Program, Reg, Step, Threshold, program_from_json, program_to_json, verify
from edgegen.solvers import build_program

X = Input("x_T")
EVAL = Eval("f", {"x": (Reg("x_T"),), "t": (Imm(1.0),)}, {"o": ("e",)})
SCALE = Lincomb("y", ((1.0, "x_T"),))


def program(*instructions, inputs=(X,), outputs=None, nfe=None, steps=()):
    return Program("p", inputs, instructions, outputs or {"sample": "y"}, nfe or {}, steps)


BROKEN = [
    ("P0", program()),
    ("P0", program(SCALE, inputs=tuple(Input(f"x{i}") for i in range(65)))),
    ("P0", program(*(Lincomb(f"r{i}", ((1.0, "x_T"),)) for i in range(5000)), SCALE)),
    ("P0", replace(program(SCALE), outputs={})),
    ("P1", program(Lincomb("1y", ((1.0, "x_T"),)))),
    ("P1", program(Lincomb("y" * 65, ((1.0, "x_T"),)))),
    ("P1", program(Lincomb("y\0", ((1.0, "x_T"),)))),
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
    ("P5", program(EVAL, Eval("f", {"x": (Reg("e"),)}, {"o": ("y",)}), nfe={"f": 2})),
    ("P6", program(Lincomb("y", ()))),
    ("P6", program(Lincomb("y", ((1.0, "x_T"),) * 17))),
    ("P7", program(Noise("y", "x_T", 0))),
    ("P7", program(Noise("y", "x_T", 2**32))),
    ("P7", program(Noise("z", "x_T", 1), Noise("y", "x_T", 1))),
    ("P8", program(Clamp("y", "x_T", 1.0, -1.0))),
    ("P9", program(Threshold("y", "x_T", 1.5, 1.0, 2.0))),
    ("P9", program(Threshold("y", "x_T", 0.9, 0.0, 2.0))),
    ("P9", program(Threshold("y", "x_T", 0.9, 2.0, 1.0))),
    ("P10", program(EVAL, SCALE)),
    ("P10", program(EVAL, SCALE, nfe={"f": 2})),
    ("P10", program(SCALE, nfe={"f": 0})),
    ("P11", program(SCALE, steps=(Step(2, "y", 0.0),))),
    ("P11", program(SCALE, steps=(Step(0, "y", 0.0),))),
    ("P11", program(SCALE, steps=(Step(1, "z", 0.0),))),
    ("P11", program(SCALE, Lincomb("w", ((1.0, "y"),)), steps=(Step(1, "y", 1.0), Step(1, "y", 0.0)))),
]


@pytest.mark.parametrize(("rule", "broken"), BROKEN, ids=[f"{i}-{rule}" for i, (rule, _) in enumerate(BROKEN)])
def test_each_rule_rejects_the_program_that_breaks_it(rule, broken):
    with pytest.raises(ProgramError, match=rf"rule {rule}:") as e:
        verify(broken)
    assert e.value.code == Status.BAD_PROGRAM


def test_every_rule_of_format_md_has_a_case():
    assert {rule for rule, _ in BROKEN} == {f"P{i}" for i in range(12)}


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
