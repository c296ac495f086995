"""What every solver's loop is written with: network evaluations, estimates of data or noise, linear combinations and draws.

Each value has a fresh name; `build_program` packs the names onto few registers afterwards, so a solver reads like its paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgegen.diffusion import Process, data_coefficients, input_scale, noise_coefficients
from edgegen.errors import ProgramError, Status
from edgegen.program import Clamp, Eval, Imm, Input, Instruction, Lincomb, Noise, Program, Reg, Step, Threshold
from edgegen.program.instructions import Operand

__all__ = ["DATA", "NOISE", "Grid", "Lowering", "Mix", "Node", "Prediction", "away"]

Grid = npt.NDArray[np.float64]
Terms = Iterable[tuple[float, str]]

DATA, NOISE = "data", "noise"
"""The two forms of the exact solution: a polynomial is put through estimates of the data x0, or of the noise eps."""


@dataclass(frozen=True, slots=True)
class Node:
    """A point of the process: its time, alpha, sigma and lambda, float64."""

    time: float
    alpha: float
    sigma: float
    lam: float

    @property
    def rho(self) -> float:
        """sigma / alpha: EDM's sigma. Infinite at alpha = 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf


def away(node: Node) -> Node:
    """The node itself, refused where alpha = 0: rho is infinite there, and x0 is no function of x and eps."""
    if node.alpha == 0.0:
        raise ProgramError(
            f"alpha is 0 at time {node.time:g}: rho = sigma / alpha is infinite; "
            f"start the grid just below it, or use a solver in data form (DPM-Solver++, UniPC)",
            Status.OUT_OF_RANGE,
        )
    return node


@dataclass(frozen=True, slots=True)
class Mix:
    """DualFast's replacement of the noise estimate of step i: (1 + c_i) eps_i - c_i eps_tau_i. everywhere: also in difference terms."""

    c: tuple[float, ...]
    tau: tuple[int, ...]
    everywhere: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network returns, and what is done with its estimate of the data.

    kind: one of `edgegen.diffusion.PREDICTIONS`. sigma_data: of edm. clip: clamp x0 to [-clip, clip]. threshold: quantile of dynamic
    thresholding, with `clip` (1 if None) as its ceiling.
    """

    kind: str
    sigma_data: float = 0.5
    clip: float | None = None
    threshold: float | None = None
    mix: Mix | None = None

    @property
    def limited(self) -> bool:
        """Whether x0 is clamped or thresholded."""
        return self.clip is not None or self.threshold is not None


class Lowering:
    """A program being written. `x` is the state's register, `nodes` the process at the grid's times."""

    def __init__(self, name: str, process: Process, prediction: Prediction | str, grid: Grid, *, initial_scale: float | None = None) -> None:
        self.name = name
        self.process = process
        self.prediction = Prediction(prediction) if isinstance(prediction, str) else prediction
        self.nodes = _nodes(process, grid)
        self.x = "x_T"
        scale = process.initial_scale(float(grid[0])) if initial_scale is None else initial_scale
        self._inputs = [Input("x_T", "noise", scale)]
        self._instructions: list[Instruction] = []
        self._marks: list[Step] = []
        self._evaluations = self._values = self._draws = 0
        self._limited = False
        self._origin: dict[str, tuple[str, Node, str, str]] = {}
        self._leads: list[tuple[Node, str, str]] = []

    @property
    def steps(self) -> int:
        """Number of intervals of the grid."""
        return len(self.nodes) - 1

    @property
    def done(self) -> int:
        """Number of steps that are finished."""
        return len(self._marks)

    def node(self, t: float) -> Node:
        """The process at time t."""
        return _nodes(self.process, np.array([t]))[0]

    def at_lambda(self, lam: float) -> Node:
        """The process where ln(alpha / sigma) = lam."""
        alpha, sigma = self.process.levels(lam)
        return Node(float(self.process.inverse_lambda(lam)), alpha, sigma, lam)

    def at_rho(self, rho: float) -> Node:
        """The process where sigma / alpha = rho > 0."""
        return self.at_lambda(-math.log(rho))

    def fresh(self, prefix: str) -> str:
        """A name that nothing has yet."""
        self._values += 1
        return f"{prefix}{self._values}"

    def emit(self, make: Callable[[str], Instruction], prefix: str = "v") -> str:
        """Append the instruction that `make` gives for a fresh register; returns the register."""
        out = self.fresh(prefix)
        self._instructions.append(make(out))
        return out

    def condition(self, name: str) -> str:
        """A tensor that the caller gives, as a register."""
        declared = Input(name, "condition")
        if declared not in self._inputs:
            self._inputs.append(declared)
        return name

    def network(self, node: Node, x: str | None = None, *, time: float | None = None, **extra: Operand) -> str:
        """Evaluate the network at a node, on the state or on register x; returns the register of its raw output.

        time: what the network is told instead of the node's time. extra: further operands, by role (`r`, `latent`).
        """
        p = self.prediction
        state = Reg(self.x if x is None else x, input_scale(p.kind, node.alpha, node.sigma, p.sigma_data))
        inputs: dict[str, tuple[Operand, ...]] = {"x": (state,), "t": (Imm(node.time if time is None else time),)}
        inputs |= {role: (operand,) for role, operand in extra.items()}
        self._evaluations += 1
        return self.emit(lambda out: Eval("denoiser", inputs, {"prediction": (out,)}), "e")

    def branched_network(self, node: Node, states: tuple[str, ...]) -> tuple[str, ...]:
        """Evaluate the network at a node on several states in one batch; returns a raw output for each."""
        outs = tuple(self.fresh("e") for _ in states)
        inputs: dict[str, tuple[Operand, ...]] = {"x": tuple(Reg(x) for x in states), "t": (Imm(node.time),) * len(states)}
        self._evaluations += len(states)
        self._instructions.append(Eval("denoiser", inputs, {"prediction": outs}))
        return outs

    def combine(self, terms: Terms) -> str:
        """A register holding sum c_k reg_k. Terms with a zero coefficient are dropped, equal registers merged, a copy is not made."""
        merged: dict[str, float] = {}
        for c, name in terms:
            merged[name] = merged.get(name, 0.0) + float(c)
        kept = tuple((c, name) for name, c in merged.items() if c != 0.0) or ((0.0, next(iter(merged))),)
        if len(kept) == 1 and kept[0][0] == 1.0:
            return kept[0][1]
        return self.emit(lambda out: Lincomb(out, kept))

    def data_terms(self, node: Node, output: str, x: str | None = None) -> list[tuple[float, str]]:
        """x0 at a node as terms of the state there (or register x) and the raw output."""
        c_x, c_out = data_coefficients(self.prediction.kind, node.alpha, node.sigma, self.prediction.sigma_data)
        return [(c_x, self.x if x is None else x), (c_out, output)]

    def noise_terms(self, node: Node, output: str, x: str | None = None) -> list[tuple[float, str]]:
        """eps at a node as terms of the state there (or register x) and the raw output."""
        c_x, c_out = noise_coefficients(self.prediction.kind, node.alpha, node.sigma, self.prediction.sigma_data)
        return [(c_x, self.x if x is None else x), (c_out, output)]

    def limit(self, x0: str) -> str:
        """x0 clamped or dynamically thresholded as the prediction says."""
        clip, threshold = self.prediction.clip, self.prediction.threshold
        self._limited = True
        if threshold is not None:
            ceiling = 1.0 if clip is None else clip
            return self.emit(lambda out: Threshold(out, x0, threshold, min(1.0, ceiling), ceiling))
        return x0 if clip is None else self.emit(lambda out: Clamp(out, x0, -clip, clip))

    def data(self, node: Node, output: str, x: str | None = None) -> str:
        """A register holding x0 at a node, limited as the prediction says."""
        return self.limit(self.combine(self.data_terms(node, output, x)))

    def estimate(self, form: str, node: Node, x: str | None = None, *, output: str | None = None) -> str:
        """Evaluate the network at a node and return its data or noise estimate; noise is derived again from a limited x0.

        output: a raw output of this node that is already there.
        """
        x = self.x if x is None else x
        output = self.network(node, x) if output is None else output
        if form == DATA:
            made = self.data(node, output, x)
        elif self.prediction.limited:
            if node.sigma == 0.0:
                raise ProgramError("the noise cannot be derived from clipped data at sigma = 0; end the grid above it", Status.OUT_OF_RANGE)
            made = self.combine([(1.0 / node.sigma, x), (-node.alpha / node.sigma, self.data(node, output, x))])
        else:
            made = self.combine(self.noise_terms(node, output, x))
        self._origin[made] = (form, node, x, output)
        self.remember(node, x, output)
        return self._mixed(made) if self.prediction.mix is not None and self.prediction.mix.everywhere else made

    def remember(self, node: Node, x: str, output: str) -> None:
        """Keep the first evaluation of the current step for DualFast's later mixes."""
        if self.prediction.mix is not None and len(self._leads) == self.done:
            self._leads.append((node, x, output))

    @property
    def mixes(self) -> bool:
        """Whether DualFast changes the noise estimate of the current step."""
        mix = self.prediction.mix
        return mix is not None and mix.c[self.done] != 0.0 and mix.tau[self.done] != self.done

    def lead(self, estimate: str) -> str:
        """The estimate as the first-order term of a step uses it: itself, unless DualFast mixes it there."""
        return estimate if self.prediction.mix is None or self.prediction.mix.everywhere else self._mixed(estimate)

    def _mixed(self, estimate: str) -> str:
        mix = self.prediction.mix
        if mix is None or not self.mixes:
            return estimate
        c, tau = mix.c[self.done], mix.tau[self.done]
        form, node, x, output = self._origin[estimate]
        noise = [((1.0 + c) * k, name) for k, name in self.noise_terms(node, output, x)]
        then_node, then_x, then_output = self._leads[tau]
        noise += [(-c * k, name) for k, name in self.noise_terms(then_node, then_output, then_x)]
        if form == NOISE:
            return self.combine(noise)
        return self.limit(self.combine([(1.0 / away(node).alpha, x), *((-node.sigma / node.alpha * k, name) for k, name in noise)]))

    def noise(self, shape: tuple[int, ...] | None = None) -> str:
        """A register of fresh standard normals, shaped as the state, or [samples, *shape]."""
        self._draws += 1
        draw = self._draws
        return self.emit(lambda out: Noise(out, "x_T", draw, shape), "z")

    def advance(self, x: str, node: Node) -> None:
        """The state at `node` is in register `x`: one step is done."""
        self.x = x
        self._marks.append(Step(len(self._instructions), x, node.time))

    def finish(self, **outputs: str) -> Program:
        """The program, ending with the state (or the registers given) as output `sample`. Its registers are not packed yet."""
        if self.prediction.limited and not self._limited:
            raise ProgramError(f"solver {self.name!r} makes no estimate of the data, so clip and threshold have no place in it", Status.OUT_OF_RANGE)
        named: Mapping[str, str] = {"sample": self.x} | outputs
        return Program(self.name, tuple(self._inputs), tuple(self._instructions), named, {"denoiser": self._evaluations}, tuple(self._marks))


def _nodes(process: Process, times: Grid) -> list[Node]:
    with np.errstate(invalid="ignore"):
        columns = [times.tolist(), *(f(times).tolist() for f in (process.alpha, process.sigma, process.lam))]
    nodes = [Node(*row) for row in zip(*columns, strict=True)]
    for n in nodes:
        if not (math.isfinite(n.alpha) and math.isfinite(n.sigma)) or math.isnan(n.lam):
            raise ProgramError(f"the process is not defined at time {n.time:g}: alpha = {n.alpha}, sigma = {n.sigma}", Status.OUT_OF_RANGE)
    return nodes
