"""What every solver's loop is written with: network evaluations, linear combinations and draws, each value under a fresh name.

`build_program` packs the names onto few registers afterwards, so a solver reads like its paper.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from edgegen.diffusion import Process, data_coefficients, noise_coefficients
from edgegen.program import Clamp, Eval, Imm, Input, Instruction, Lincomb, Noise, Program, Reg, Step, Threshold
from edgegen.program.instructions import Operand

__all__ = ["Lowering"]

Grid = npt.NDArray[np.float64]


class Lowering:
    """A program being written. `x` is the state's register; `alpha`, `sigma` and `lam` are float64 tables over the grid."""

    def __init__(self, name: str, process: Process, prediction: str, grid: Grid) -> None:
        self.name = name
        self.prediction = prediction
        self.grid = grid
        self.alpha = process.alpha(grid).tolist()
        self.sigma = process.sigma(grid).tolist()
        self.lam = process.lam(grid).tolist()
        self.x = "x_T"
        self._input = Input("x_T", "noise", process.initial_scale(float(grid[0])))
        self._instructions: list[Instruction] = []
        self._steps: list[Step] = []
        self._evaluations = self._values = self._draws = 0

    @property
    def steps(self) -> int:
        """Number of intervals of the grid."""
        return len(self.grid) - 1

    def _fresh(self, prefix: str) -> str:
        self._values += 1
        return f"{prefix}{self._values}"

    def network(self, i: int) -> str:
        """Evaluate the network on the state at grid node i; returns the register of its raw output."""
        out = self._fresh("e")
        self._evaluations += 1
        inputs: dict[str, tuple[Operand, ...]] = {"x": (Reg(self.x),), "t": (Imm(float(self.grid[i])),)}
        self._instructions.append(Eval("denoiser", inputs, {"prediction": (out,)}))
        return out

    def combine(self, terms: Iterable[tuple[float, str]]) -> str:
        """A register holding sum c_k reg_k. Terms with a zero coefficient are dropped and equal registers merged."""
        merged: dict[str, float] = {}
        for c, name in terms:
            merged[name] = merged.get(name, 0.0) + float(c)
        kept = tuple((c, name) for name, c in merged.items() if c != 0.0) or ((0.0, next(iter(merged))),)
        out = self._fresh("v")
        self._instructions.append(Lincomb(out, kept))
        return out

    def data_terms(self, i: int, output: str) -> tuple[tuple[float, str], tuple[float, str]]:
        """x0 at node i as terms of the state and the raw output."""
        c_x, c_out = data_coefficients(self.prediction, self.alpha[i], self.sigma[i])
        return (c_x, self.x), (c_out, output)

    def noise_terms(self, i: int, output: str) -> tuple[tuple[float, str], tuple[float, str]]:
        """eps at node i as terms of the state and the raw output."""
        c_x, c_out = noise_coefficients(self.prediction, self.alpha[i], self.sigma[i])
        return (c_x, self.x), (c_out, output)

    def data(self, i: int, output: str, *, clip: float | None, threshold: float | None) -> str:
        """A register holding x0 at node i, clamped to +-clip or dynamically thresholded at the quantile `threshold`."""
        x0 = self.combine(self.data_terms(i, output))
        if threshold is not None:
            ceiling = 1.0 if clip is None else clip
            self._instructions.append(Threshold(limited := self._fresh("v"), x0, threshold, min(1.0, ceiling), ceiling))
            return limited
        if clip is not None:
            self._instructions.append(Clamp(limited := self._fresh("v"), x0, -clip, clip))
            return limited
        return x0

    def noise(self) -> str:
        """A register of fresh standard normals."""
        self._draws += 1
        out = self._fresh("z")
        self._instructions.append(Noise(out, self.x, self._draws))
        return out

    def advance(self, i: int, x: str) -> None:
        """The state at grid node i + 1 is in register `x`: one step is done."""
        self.x = x
        self._steps.append(Step(len(self._instructions), x, float(self.grid[i + 1])))

    def finish(self) -> Program:
        """The program, ending with the state as output `sample`. Its registers are not packed yet."""
        return Program(self.name, (self._input,), tuple(self._instructions), {"sample": self.x}, {"denoiser": self._evaluations}, tuple(self._steps))
