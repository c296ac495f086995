"""Malformed programs, and programs that do not fit their manifest, as bundles with the status that every reader must give: (name, bytes, status)."""

from __future__ import annotations

import copy
import json

from edgegen import canonical
from edgegen.bundle import Manifest, ProgramEntry, Variant, bundle_bytes
from edgegen.errors import EdgegenError, Status
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
    program_to_json,
)
from edgegen.spec import ConditionSpec, SampleSpec, Signature, TensorSpec
from tests.attacks.bundles import MANIFEST, MEMBERS, TEXTS
from tests.program.test_shapes import ILL, WELL
from tests.program.test_verify import BROKEN, every_instruction, mutations, sound

__all__ = ["CASES"]


def plain(value) -> bytes:
    """JSON as it is written canonically, whatever it holds."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def small(value) -> bytes:
    """The small bundle with another program."""
    return bundle_bytes(MANIFEST, MEMBERS | {"program.0.json": plain(value)})


LABEL = ConditionSpec("label", "int64", (), 0, 9)
GOAL = ConditionSpec("goal", "float32", (3, 4))


def fitting(program: Program, components=None, conditions=(LABEL, GOAL), shape=(3, 4)) -> bytes:
    """A bundle around a program: conditions `label` and `goal`, samples of [3, 4], no networks unless given, which no engine here runs."""
    components = components or {}
    manifest = Manifest(
        "fitting", "", "", "test", False, SampleSpec(shape), conditions, components, (ProgramEntry("p", 1, "program.json"),),
        (Variant("v", "elsewhere", dict.fromkeys(components, "network"), ()),), {} if components else {"spare": "network"},
    )  # fmt: skip
    return bundle_bytes(manifest, {"program.json": canonical.encode(program_to_json(program)), "network": b"x"})


X = Input("x_T")


def made(*instructions, **changed) -> Program:
    fields = {
        "name": "p",
        "inputs": (X, Input("label", "condition"), Input("goal", "condition")),
        "instructions": instructions,
        "outputs": {"sample": "y"},
        "nfe": {},
    }
    return Program(**(fields | changed))


def broken_json():
    for i, (rule, program) in enumerate(BROKEN):
        yield f"{rule} {i}", program_to_json(program)
    for what, change in mutations():
        value = copy.deepcopy(program_to_json(sound()))
        change(value)
        yield f"sound, {what}", value
    whole = program_to_json(every_instruction())
    for i, instruction in enumerate(whole["instructions"]):
        for key in instruction:
            if (instruction["op"], key) not in {("NOISE", "shape"), ("REDUCE", "mask")}:
                value = copy.deepcopy(whole)
                del value["instructions"][i][key]
                yield f"instruction {i} without {key}", value
            value = copy.deepcopy(whole)
            value["instructions"][i][key] = {"surprise": 1}
            yield f"instruction {i}, {key} an object", value
        value = copy.deepcopy(whole)
        value["instructions"][i]["extra"] = 1
        yield f"instruction {i} with a key more", value
    one = "0x1.0000000000000p+0"
    for index, path, wrong in [
        (0, ("inputs", "x", 0, "scale"), "1"), (0, ("inputs", "t", 0, "imm"), "1"), (0, ("inputs", "x", 0), {"scale": one}), (0, ("inputs", "x", 0), "x_T"),
        (0, ("inputs", "x", 0), {"imm": one, "scale": one}), (0, ("outputs", "o"), "e"), (0, ("outputs", "o", 0), 1), (0, ("outputs", "o"), []), (0, ("inputs", "x"), 1),
        (0, ("component",), "a/b"), (0, ("inputs", "a/b"), []), (0, ("inputs", "0a"), [{"reg": "x_T", "scale": one}] * 2), (0, ("outputs", "0a"), ["g", "h"]),
        (1, ("draw",), -1), (1, ("draw",), 2**62), (2, ("shape", 0), "3"), (2, ("shape", 0), 2**31), (3, ("bias",), "0.3"), (3, ("terms", 0), {}), (3, ("terms", 0), [one]),
        (3, ("terms", 0, 1), 1), (3, ("terms", 0), [one, "e", "e"]), (6, ("scale", 0), 1), (6, ("shift", 0), 1), (6, ("shift", 0), "1"), (7, ("parts", 0), 1), (8, ("start",), 2**40),
        (12, ("a",), {"reg": 1}), (12, ("a",), {"imm": "1"}), (12, ("a",), {"reg": "s", "imm": one}), (12, ("b",), {}), (14, ("terms", 0), [one]), (14, ("terms", 1, 2), 1),
        (14, ("terms", 0), [one, "m", "s", "s"]), (10, ("quantile",), "0"), (4, ("low",), "0"), (5, ("quantile",), "0"), (5, ("quantile",), "-" + one),
    ]:  # fmt: skip
        value = copy.deepcopy(whole)
        place = value["instructions"][index]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = wrong
        yield f"instruction {index}, {path} {wrong}", value
    for what, change in [
        ("an instruction that is a list", lambda v: v["instructions"].insert(0, [])),
        ("an instruction that is text", lambda v: v["instructions"].append("[[[[")),
        ("an output that is text", lambda v: v["instructions"][0]["outputs"].update(o="[[[[")),
        ("an op that is a number", lambda v: v["instructions"][0].update(op=1)),
        ("an input that is text", lambda v: v["inputs"].append("x")),
        ("an input whose scale is no number", lambda v: v["inputs"][0].update(scale="1")),
        ("an output that is a list", lambda v: v["outputs"].update(sample=["y"])),
        ("a step that is a list", lambda v: v["steps"].append([])),
        ("a step whose time is no number", lambda v: v["steps"][0].update(time="0")),
        ("a state that is a list", lambda v: v["states"].append([])),
        ("a state without a next", lambda v: v["states"][0].pop("next")),
        ("a state whose shape has text", lambda v: v["states"][0].update(shape=["3"])),
        ("a state whose initial is no number", lambda v: v["states"][0].update(initial="0")),
        ("an empty list of states", lambda v: v.update(states=[])),
        ("states as text", lambda v: v.update(states="none")),
        ("instructions as an object", lambda v: v.update(instructions={})),
        ("nfe as a list", lambda v: v.update(nfe=[])),
        ("nfe that is text", lambda v: v["nfe"].update(f="2")),
        ("nfe of a component more", lambda v: v["nfe"].update(g=1)),
        ("nfe below 0", lambda v: v["nfe"].update(f=-2)),
        ("version as text", lambda v: v.update(version="1")),
        ("version 2", lambda v: v.update(version=2)),
    ]:
        value = copy.deepcopy(whole)
        change(value)
        yield what, value
    for what, value in (("a list", []), ("text", "x"), ("a number", 3), ("an empty object", {})):
        yield f"a program that is {what}", value


def misfits():
    y = Lincomb("y", ((1.0, "x_T"),))
    for i, (instruction, components, _) in enumerate(ILL):
        yield f"dtypes {i}", fitting(made(instruction, nfe={"f": instruction.branches} if isinstance(instruction, Eval) else {}), components)
    latent, time = TensorSpec("x", "float32", ("batch", 3, 4)), TensorSpec("t", "float32", ("batch",))
    f = {"f": Signature((latent, time), (TensorSpec("o", "float32", ("batch", 3, 4)),))}
    call = Eval("f", {"x": (Reg("x_T"),), "t": (Imm(1.0),)}, {"o": ("y",)})
    yield "another component", fitting(made(call, nfe={"f": 1}), {"g": f["f"]})
    yield "an input less", fitting(made(Eval("f", {"x": (Reg("x_T"),)}, {"o": ("y",)}), nfe={"f": 1}), f)
    yield "an input of another name", fitting(made(Eval("f", {"x": (Reg("x_T"),), "time": (Imm(1.0),)}, {"o": ("y",)}), nfe={"f": 1}), f)
    yield "an output of another name", fitting(made(Eval("f", {"x": (Reg("x_T"),), "t": (Imm(1.0),)}, {"p": ("y",)}), nfe={"f": 1}), f)
    yield "an input named as an output", fitting(made(Eval("f", {"x": (Reg("x_T"),), "o": (Imm(1.0),)}, {"o": ("y",)}), nfe={"f": 1}), f)
    yield "an output named as an input", fitting(made(Eval("f", {"x": (Reg("x_T"),), "t": (Imm(1.0),)}, {"x": ("y",)}), nfe={"f": 1}), f)
    yield "a condition that is not there", fitting(made(y, inputs=(X, Input("other", "condition"))))
    yield "two noise inputs", fitting(made(y, inputs=(X, Input("x_2"))))
    yield "no noise input", fitting(made(Lincomb("y", ((1.0, "goal"),)), inputs=(Input("goal", "condition"),)))
    yield "two noise inputs and a state", fitting(made(y, inputs=(X, Input("x_2")), states=(State("h", (3, 4), "y"),)))
    yield "no output sample", fitting(made(y, outputs={"image": "y"}))
    yield "a sample of another shape", fitting(made(Slice("y", "x_T", 0, 2)))
    yield "a sample that is a label", fitting(made(y, outputs={"sample": "label"}))
    yield "a second output that is a label", fitting(made(y, outputs={"sample": "y", "a": "label"}))
    yield "a step whose state is a label", fitting(made(y, steps=(Step(1, "label", 0.0),)))
    yield "a state that continues as a label", fitting(made(y, states=(State("h", (), "label"),)))
    yield "a state that continues in another shape", fitting(made(y, states=(State("h", (3,), "y"),)))
    yield "a state that is too large", fitting(made(y, states=(State("h", (2**15, 2**14), "h"),)))
    yield "a noise that is too large", fitting(made(Noise("z", "x_T", 1, (2**15, 2**14)), y))
    yield (
        "a sample that is too large",
        fitting(made(Reduce("s", "mean", "x_T"), outputs={"sample": "x_T"}, inputs=(X,)), conditions=(), shape=(2**15, 2**14)),
    )
    yield "a condition that is too large", fitting(made(y), conditions=(LABEL, ConditionSpec("goal", "float32", (2**15, 2**14))))
    yield "terms of two shapes", fitting(made(Slice("z", "x_T", 0, 2), Lincomb("y", ((1.0, "x_T"), (1.0, "z")))))
    yield "scaled terms of two shapes", fitting(made(Slice("z", "x_T", 0, 2), Slincomb("y", ((1.0, "x_T", None), (1.0, "z", None)))))
    yield "another number of channels", fitting(made(Muladd("y", "x_T", (1.0, 2.0), (0.0, 0.0))))
    yield "channels of what has none", fitting(made(Muladd("y", "x_T", (1.0, 2.0), (0.0, 0.0)), inputs=(X,)), conditions=(), shape=())
    yield "parts that differ", fitting(made(Noise("z", "x_T", 1, (3, 5)), Concat("w", ("x_T", "z")), y))
    yield "parts of two ranks", fitting(made(Noise("z", "x_T", 1, (3,)), Concat("w", ("x_T", "z")), y))
    yield "parts without an axis", fitting(made(Concat("y", ("x_T", "x_T")), inputs=(X,)), conditions=(), shape=())
    yield "a part that is a label", fitting(made(Concat("w", ("x_T", "label")), y))
    yield "parts that are too many", fitting(made(Noise("z", "x_T", 1, (2**27,)), Concat("w", ("z",) * 16), y))
    yield "parts that are too many by a factor of 2^32", fitting(made(Noise("z", "x_T", 1, (2**28,)), Concat("w", ("z",) * 16), y))
    yield "parts that overflow", fitting(made(*(Concat(f"r{i + 1}", (f"r{i}" if i else "x_T",) * 16) for i in range(8)), y))
    yield "a cut behind the end", fitting(made(Slice("w", "x_T", 0, 4), y))
    yield "a cut of what has no axis", fitting(made(Slice("w", "x_T", 0, 1), y, inputs=(X,)), conditions=(), shape=())
    yield "a mask of another shape", fitting(made(Noise("m", "x_T", 1, (2, 4)), Select("y", "m", "x_T", "x_T")))
    yield "a mask of another size", fitting(made(Noise("m", "x_T", 1, (1, 5)), Select("y", "m", "x_T", "x_T")))
    yield "a mask of another rank", fitting(made(Noise("m", "x_T", 1, (1,)), Select("y", "m", "x_T", "x_T")))
    yield "a mask that is a label", fitting(made(Select("y", "label", "x_T", "x_T")))
    yield "a choice of another shape", fitting(made(Slice("z", "x_T", 0, 2), Select("y", "x_T", "x_T", "z")))
    yield "a reduction under a mask of another shape", fitting(made(Noise("m", "x_T", 1, (2, 4)), Reduce("s", "mean", "x_T", "m"), y))
    yield "a reduction of a label", fitting(made(Reduce("s", "mean", "label"), y))
    yield "noise like a label", fitting(made(Noise("z", "label", 1), y))
    yield "noise with the rows of a label", fitting(made(Noise("z", "label", 1, (3,)), y))
    for what, instruction in (
        ("lincomb", Lincomb("y", ((1e39, "x_T"),))),
        ("bias", Lincomb("y", ((1.0, "x_T"),), -1e39)),
        ("muladd", Muladd("y", "x_T", (1e39,), (0.0,))),
    ):
        yield f"{what} with a number above float32", fitting(made(instruction))
    yield "a scale above float32", fitting(made(y, inputs=(Input("x_T", "noise", 1e39),)))
    yield "an initial value above float32", fitting(made(y, states=(State("h", (3, 4), "y", 1e39),)))


def sound_ones():
    for i, (instruction, components) in enumerate(WELL):
        yield f"well {i}", fitting(made(instruction, nfe={"f": instruction.branches}), components)
    yield (
        "a stream without noise",
        fitting(made(Lincomb("y", ((1.0, "goal"), (0.5, "h"))), inputs=(Input("goal", "condition"),), states=(State("h", (3, 4), "y"),))),
    )
    yield (
        "64 conditions",
        fitting(made(Lincomb("y", ((1.0, "x_T"),)), inputs=(X,)), conditions=tuple(ConditionSpec(f"c{i}", "int8") for i in range(64))),
    )


def broken_status(value) -> Status:
    """Of names, keys and values that the JSON of FORMAT.md, section 2, has no room for, it is the JSON that is wrong."""
    try:
        canonical.encode(value)
    except EdgegenError:
        return Status.BAD_MANIFEST
    return Status.BAD_PROGRAM


CASES = [
    *((name, small(value), broken_status(value)) for name, value in broken_json()),
    *((f"program text: {name}", bundle_bytes(MANIFEST, MEMBERS | {"program.0.json": text}), status) for name, text, status in TEXTS),
    *((name, data, Status.INCONSISTENT) for name, data in misfits()),
    *((name, data, Status.OK) for name, data in sound_ones()),
]
