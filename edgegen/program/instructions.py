"""The device language: a Program is data. Registers hold tensors, instructions read and write them in order.

Every number is a float64 rounded once to the interpreter's type. The laws are in runtimes/FORMAT.md, section 4; the rules that a
program must keep are checked by `edgegen.program.verify`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "Clamp", "Concat", "Eval", "Imm", "Input", "Instruction", "Lincomb", "Muladd", "Noise", "Program", "Reduce", "Reg", "Scalar", "Select",
    "Slice", "Slincomb", "State", "Step", "Threshold",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reg:
    """An EVAL operand: the register, times `scale`."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Imm:
    """An EVAL operand: one number for every row of the batch, such as a time or a null label."""

    value: float


Operand = Reg | Imm


@dataclass(frozen=True, slots=True)
class Eval:
    """outputs <- component(inputs). Each input has one operand per branch, each output one register per branch.

    With k > 1 branches the rows are joined along axis 0, the component runs once, and its outputs are split again.
    """

    component: str
    inputs: Mapping[str, tuple[Operand, ...]]
    outputs: Mapping[str, tuple[str, ...]]

    @property
    def branches(self) -> int:
        """How many network evaluations this counts as."""
        return len(next(iter(self.outputs.values())))


@dataclass(frozen=True, slots=True)
class Lincomb:
    """out <- sum_k c_k reg_k + bias, terms added in the written order, no fused multiply-add."""

    out: str
    terms: tuple[tuple[float, str], ...]
    bias: float = 0.0


@dataclass(frozen=True, slots=True)
class Noise:
    """out <- N(0, 1) in the shape of `like`, or [rows of `like`, *shape]; the bits depend on (seed, draw, element) only."""

    out: str
    like: str
    draw: int
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Clamp:
    """out <- min(max(x, low), high)."""

    out: str
    x: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """s <- clamp(quantile(|x|) of each sample, floor, ceiling); out <- clamp(x, -s, s) / s.

    Source: dynamic thresholding, Saharia et al. 2022 (Imagen), section 2.3, with a ceiling as in diffusers.
    """

    out: str
    x: str
    quantile: float
    floor: float
    ceiling: float


@dataclass(frozen=True, slots=True)
class Muladd:
    """out <- x * scale + shift, with one constant per channel (axis 1), or one for all of them."""

    out: str
    x: str
    scale: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """out <- the parts joined along axis 1 (channels, or tokens)."""

    out: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """out <- x[:, start:stop]."""

    out: str
    x: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Select:
    """out <- a where the mask is not 0, else b. The mask has their shape, or one channel for all of theirs."""

    out: str
    mask: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Reduce:
    """scalar out <- one number per sample over all its elements, or over those where `mask` is not 0.

    kind: "mean", "std" (divisor n - 1, as torch), "norm" (square root of the sum of squares), "quantile" (of the absolute values).
    """

    out: str
    kind: str
    x: str
    mask: str | None = None
    quantile: float = 0.0


@dataclass(frozen=True, slots=True)
class Scalar:
    """scalar out <- kind(a, b): "add", "sub", "mul", "div", "min", "max" of scalars or numbers; "sqrt" of a alone (b is 0)."""

    out: str
    kind: str
    a: str | float
    b: str | float = 0.0


@dataclass(frozen=True, slots=True)
class Slincomb:
    """out <- sum_k (c_k f_k) reg_k, where f_k is a scalar (one per sample) or absent. Terms: (c, register, scalar or None)."""

    out: str
    terms: tuple[tuple[float, str, str | None], ...]


Instruction = Eval | Lincomb | Noise | Clamp | Threshold | Muladd | Concat | Slice | Select | Reduce | Scalar | Slincomb


@dataclass(frozen=True, slots=True)
class Input:
    """A register that the caller fills. kind "noise": standard normals (draw 0) times `scale`; kind "condition": the caller's own."""

    name: str
    kind: str = "noise"
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class State:
    """A register that lives across the calls of a stream: `initial` in every element at first, then what `next` held when a call ended.

    shape: without the batch. Streaming networks keep their hidden states and overlap buffers so.
    """

    name: str
    shape: tuple[int, ...]
    next: str
    initial: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """A mark for progress and cancelling: once `after` instructions have run, `state` holds the sample at `time`."""

    after: int
    state: str
    time: float


@dataclass(frozen=True, slots=True)
class Program:
    """inputs and states -> instructions -> outputs. `nfe` declares the network evaluations per component; the verifier counts them."""

    name: str
    inputs: tuple[Input, ...]
    instructions: tuple[Instruction, ...]
    outputs: Mapping[str, str]
    nfe: Mapping[str, int]
    steps: tuple[Step, ...] = field(default=())
    states: tuple[State, ...] = field(default=())
