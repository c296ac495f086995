"""Random sound programs over every instruction, as bundles: what two interpreters must agree on to the bit."""

from __future__ import annotations

import numpy as np

from edgegen import canonical
from edgegen.bundle import Manifest, ProgramEntry, Variant, bundle_bytes
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
    program_to_json,
    verify,
)  # fmt: skip
from edgegen.spec import BATCH, ConditionSpec, SampleSpec, Signature, TensorSpec

__all__ = ["random_bundle"]

SAMPLE = (3, 2, 5)
DTYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "bool")


class _Maker:
    """Writes instructions at random, keeping track of which registers hold which shapes."""

    def __init__(self, rng: np.random.Generator, components: dict[str, Signature], states: list[State]) -> None:
        self.rng, self.components = rng, components
        self.tensors = {"x_T": SAMPLE, "goal": SAMPLE, "mask": (1, *SAMPLE[1:])} | {s.name: s.shape for s in states}
        self.given = set(self.tensors)
        self.scalars: list[str] = []
        self.instructions: list = []
        self.draw = 0
        self.nfe: dict[str, int] = {}

    def number(self) -> float:
        return float(self.rng.choice([0.0, -0.0, 1.0, -1.0, 0.5, 1e-3, self.rng.normal(), self.rng.normal() * 100]))

    def pick(self, shape=None) -> str:
        names = [n for n, s in self.tensors.items() if shape is None or s == shape]
        return str(self.rng.choice(names))

    def new(self, shape) -> str:
        """A register for a result: mostly a fresh one, sometimes one that is overwritten."""
        old = [n for n in self.tensors if n not in self.given]
        name = str(self.rng.choice(old)) if old and self.rng.random() < 0.3 else f"r{len(self.tensors)}"
        self.tensors[name] = shape
        return name

    def mask_of(self, shape) -> str:
        wide = (1, *shape[1:])
        return self.pick(wide if wide in self.tensors.values() and self.rng.random() < 0.5 else shape)

    def add(self) -> None:
        x = self.pick()
        shape = self.tensors[x]
        count = int(self.rng.integers(1, 5))
        match self.rng.choice(
            [
                "eval",
                "eval",
                "lincomb",
                "lincomb",
                "noise",
                "clamp",
                "threshold",
                "muladd",
                "concat",
                "slice",
                "select",
                "reduce",
                "scalar",
                "slincomb",
            ]
        ):
            case "eval":
                self.evaluate()
            case "lincomb":
                terms = tuple((self.number(), self.pick(shape)) for _ in range(count))
                self.instructions.append(Lincomb(self.new(shape), terms, self.number()))
            case "noise":
                self.draw += int(self.rng.integers(1, 4))
                own = (2, 3) if self.rng.random() < 0.3 else None
                self.instructions.append(Noise(self.new(own or shape), x, self.draw, own))
            case "clamp":
                low, high = sorted((self.number(), self.number()))
                self.instructions.append(Clamp(self.new(shape), x, low, high))
            case "threshold":
                self.instructions.append(Threshold(self.new(shape), x, float(self.rng.random()), 0.5, 2.0))
            case "muladd":
                n = shape[0] if shape and self.rng.random() < 0.6 else 1
                self.instructions.append(Muladd(self.new(shape), x, tuple(self.number() for _ in range(n)), tuple(self.number() for _ in range(n))))
            case "concat" if shape and shape[0] < 12:
                parts = [n for n, s in self.tensors.items() if s and s[1:] == shape[1:]]
                chosen = [str(self.rng.choice(parts)) for _ in range(2)]
                self.instructions.append(Concat(self.new((sum(self.tensors[p][0] for p in chosen), *shape[1:])), tuple(chosen)))
            case "slice" if shape and shape[0] > 1:
                start = int(self.rng.integers(0, shape[0]))
                stop = int(self.rng.integers(start + 1, shape[0] + 1))
                self.instructions.append(Slice(self.new((stop - start, *shape[1:])), x, start, stop))
            case "select" if shape:
                mask, a, b = self.mask_of(shape), self.pick(shape), self.pick(shape)
                self.instructions.append(Select(self.new(shape), mask, a, b))
            case "reduce":
                kind = str(self.rng.choice(["mean", "std", "norm", "quantile"]))
                mask = self.mask_of(shape) if shape and self.rng.random() < 0.5 else None
                self.scalars.append(f"s{int(self.rng.integers(0, 6))}")
                self.instructions.append(Reduce(self.scalars[-1], kind, x, mask, float(self.rng.random()) if kind == "quantile" else 0.0))
            case "scalar" if self.scalars:
                kind = str(self.rng.choice(["add", "sub", "mul", "div", "min", "max", "sqrt"]))
                a: str | float = str(self.rng.choice(self.scalars))
                b: str | float = self.number() if self.rng.random() < 0.5 else str(self.rng.choice(self.scalars))
                if kind == "sqrt":
                    b = 0.0
                elif self.rng.random() < 0.3 and isinstance(b, str):
                    a = self.number()
                self.scalars.append(f"s{int(self.rng.integers(0, 6))}")
                self.instructions.append(Scalar(self.scalars[-1], kind, a, b))
            case "slincomb" if self.scalars:
                terms = tuple(
                    (self.number(), self.pick(shape), str(self.rng.choice(self.scalars)) if self.rng.random() < 0.6 else None) for _ in range(count)
                )
                self.instructions.append(Slincomb(self.new(shape), terms))

    def evaluate(self) -> None:
        name = str(self.rng.choice(list(self.components)))
        signature, branches = self.components[name], int(self.rng.integers(1, 4))
        self.nfe[name] = self.nfe.get(name, 0) + branches
        inputs = {}
        for t in signature.inputs:
            if t.name == "x":
                operands = [Reg(self.pick(SAMPLE), float(self.rng.choice([1.0, 1.0, 0.5]))) for _ in range(branches)]
                if self.rng.random() < 0.4:
                    operands = [operands[0]] * branches
                elif self.rng.random() < 0.3:
                    operands[-1:] = [Imm(0.25)] if branches > 1 else operands[-1:]
            elif t.name == "label":
                operands = [Reg("label"), *(Imm(float(self.rng.integers(0, 5))) for _ in range(branches - 1))]
            else:
                value = (lambda: float(self.rng.integers(0, 2))) if t.dtype == "bool" else (lambda: float(self.rng.integers(0, 100)))
                same = self.rng.random() < 0.5 or t.shape != (BATCH,)
                operands = [Imm(value())] * branches if same else [Imm(value()) for _ in range(branches)]
            inputs[t.name] = tuple(operands)
        outputs = {}
        for t in signature.outputs:
            outputs[t.name] = tuple(f"e{len(self.instructions)}{t.name}{b}" for b in range(branches))
            self.tensors |= dict.fromkeys(outputs[t.name], tuple(n for n in t.shape[1:]))
        self.instructions.append(Eval(name, inputs, outputs))


def _signature(rng: np.random.Generator) -> Signature:
    time = TensorSpec("t", str(rng.choice(DTYPES)), ((BATCH,), (), (1,), (BATCH, 2))[int(rng.integers(0, 4))])
    x = TensorSpec("x", str(rng.choice(DTYPES[:3])), (BATCH, *SAMPLE))
    outputs = (TensorSpec("o", str(rng.choice(DTYPES[:4])), (BATCH, *SAMPLE)), TensorSpec("p", "float32", (BATCH, 1, *SAMPLE[1:])))
    return Signature((x, TensorSpec("label", "int64", (BATCH,)), time)[:: int(rng.choice([1, -1]))], outputs[: int(rng.integers(1, 3))])


def random_bundle(seed: int, programs: int) -> bytes:
    """A bundle of so many random programs over the same networks; every other one has states."""
    rng = np.random.default_rng(seed)
    components = {"f": _signature(rng), "g": _signature(rng)}
    members, entries = {"network": b"none"}, []
    for k in range(programs):
        states = [State("h", SAMPLE, "y", 0.5), State("before", SAMPLE, "h", -1.0)] if k % 2 else []
        maker = _Maker(rng, components, states)
        for _ in range(int(rng.integers(4, 30))):
            maker.add()
        maker.instructions.append(Lincomb("y", ((1.0, maker.pick(SAMPLE)), (0.5, maker.pick(SAMPLE)))))
        maker.tensors["y"] = SAMPLE
        outputs = {"sample": "y", "other": maker.pick()}
        steps = (Step(len(maker.instructions), "y", 0.0),)
        inputs = (Input("x_T", "noise", float(rng.choice([1.0, 3.5]))), *(Input(n, "condition") for n in ("goal", "mask", "label")))
        program = verify(Program(f"p{k}", inputs, tuple(maker.instructions), outputs, maker.nfe, steps, tuple(states)))
        members[f"program.{k:03}"] = canonical.encode(program_to_json(program))
        entries.append(ProgramEntry(f"p{k}", 1, f"program.{k:03}"))
    conditions = (
        ConditionSpec("goal", "float32", SAMPLE, default=0.75), ConditionSpec("label", "int64", (), 0, 9, 3), ConditionSpec("mask", "float32", (1, *SAMPLE[1:]), default=1.0),
    )  # fmt: skip
    manifest = Manifest(
        "random", "", "", "test", False, SampleSpec(SAMPLE), conditions, components, tuple(entries),
        (Variant("v", "elsewhere", dict.fromkeys(components, "network"), ()),), {},
    )  # fmt: skip
    return bundle_bytes(manifest, members)
