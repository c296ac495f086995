"""What `edgegen solvers` says of each solver, read off the programs that it makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgegen.diffusion import Process, make_process
from edgegen.errors import EdgegenError
from edgegen.program import Noise, Program
from edgegen.program.rewrite import last_uses
from edgegen.program.verify import reads, writes
from edgegen.solvers import ALIASES, SOLVERS, build_program

__all__ = ["EXAMPLES", "Row", "example", "solver_table", "why_not"]

_STEPS = 12

EXAMPLES: tuple[tuple[Mapping[str, Any], str], ...] = (
    ({"name": "vp_betas"}, "epsilon"),
    ({"name": "flow"}, "average_velocity"),
    ({"name": "mean_reverting"}, "epsilon"),
)
"""What a solver is built for to be described: the first that fits."""


@dataclass(frozen=True, slots=True)
class Row:
    """A solver: its order (0: none), network evaluations per step, estimates kept from earlier steps, whether it draws noise."""

    name: str
    aliases: tuple[str, ...]
    order: int
    nfe_per_step: float
    history: int
    stochastic: bool
    grid: str
    source: str


def example(solver: str, steps: int, cases: Iterable[tuple[Mapping[str, Any], str]] = EXAMPLES) -> tuple[Process, str, Program]:
    """A process and a prediction that the solver fits, the first of `cases`, and its program. Raises the last case's ProgramError."""
    *others, last = cases
    for case in others:
        try:
            return _built(solver, steps, *case)
        except EdgegenError:
            continue
    return _built(solver, steps, *last)


def _built(solver: str, steps: int, process: Mapping[str, Any], prediction: str) -> tuple[Process, str, Program]:
    made = make_process(**process)
    return made, prediction, build_program(solver, made, prediction, steps)


def _history(program: Program) -> int:
    """Registers, the state and the inputs aside, that a step in the middle reads and an earlier step wrote."""
    last = last_uses(program)
    before, step = program.steps[len(program.steps) // 2 + 1 :][:2]
    written = {name for i in program.instructions[: before.after] for name in writes(i)}
    live = {name for name in written if last[name] >= before.after} - {before.state}
    read: set[str] = set()
    fresh: set[str] = set()
    for instruction in program.instructions[before.after : step.after]:
        read.update(name for name in reads(instruction) if name not in fresh)
        fresh.update(writes(instruction))
    return len(live & read)


def solver_table() -> list[Row]:
    """One row per solver, in the order of `SOLVERS`."""
    rows = []
    for name, solver in SOLVERS.items():
        program, shorter = (example(name, steps)[2] for steps in (_STEPS, _STEPS // 2))
        per_step = (sum(program.nfe.values()) - sum(shorter.nfe.values())) / (_STEPS - _STEPS // 2)
        stochastic = any(isinstance(i, Noise) for i in program.instructions)
        aliases = tuple(alias for alias, meaning in ALIASES.items() if meaning == name)
        rows.append(Row(name, aliases, solver.order, per_step, _history(program), stochastic, solver.grid or "uniform", solver.source))
    return rows


def why_not(process: Process, prediction: str, steps: int) -> dict[str, str]:
    """Solver -> why no program of `steps` steps can be made for this process and prediction; "" where one can."""
    reasons = {}
    for name in SOLVERS:
        try:
            build_program(name, process, prediction, steps)
            reasons[name] = ""
        except EdgegenError as e:
            reasons[name] = str(e)
    return reasons
