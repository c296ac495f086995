"""What `edgegen solvers` says of each solver, read off the programs that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgegen.diffusion import Process, make_process
from edgegen.errors import EdgegenError
from edgegen.program import Noise, Program
from edgegen.program.rewrite import last_uses
from edgegen.program.verify import reads, writes
from edgegen.solvers import ALIASES, SOLVERS, build_program

__all__ = ["Row", "solver_table", "why_not"]

_STEPS = 12

EXAMPLES: tuple[tuple[dict[str, object], str], ...] = (
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


def _example(solver: str, steps: int) -> Program:
    for process, prediction in EXAMPLES[:-1]:
        try:
            return build_program(solver, make_process(**process), prediction, steps)  # type: ignore[arg-type]
        except EdgegenError:
            continue
    process, prediction = EXAMPLES[-1]
    return build_program(solver, make_process(**process), prediction, steps)  # type: ignore[arg-type]


def _history(program: Program) -> int:
    """Registers, the state and the inputs aside, that a step in the middle reads and an earlier step wrote."""
    last = last_uses(program)
    written: dict[str, int] = {}
    middle = len(program.steps) // 2 + 2
    begin, end = program.steps[middle - 1].after, program.steps[middle].after
    states = {step.state for step in program.steps[middle - 1 : middle]}
    for i, instruction in enumerate(program.instructions[:begin]):
        for name in writes(instruction):
            written[name] = i
    live = {name for name in written if last[name] >= begin} - states
    read: set[str] = set()
    fresh: set[str] = set()
    for instruction in program.instructions[begin:end]:
        read |= {name for name in reads(instruction) if name not in fresh}
        fresh |= set(writes(instruction))
    return len(live & read)


def solver_table() -> list[Row]:
    """One row per solver, in the order of `SOLVERS`."""
    rows = []
    for name, solver in SOLVERS.items():
        program, shorter = _example(name, _STEPS), _example(name, _STEPS // 2)
        per_step = (sum(program.nfe.values()) - sum(shorter.nfe.values())) / (_STEPS - _STEPS // 2)
        stochastic = any(isinstance(i, Noise) for i in program.instructions)
        aliases = tuple(alias for alias, meaning in ALIASES.items() if meaning == name)
        rows.append(Row(name, aliases, solver.order, per_step, _history(program), stochastic, solver.grid or "uniform", solver.source))
    return rows


def why_not(process: Process, prediction: str, steps: int, options: Mapping[str, object] | None = None) -> dict[str, str]:
    """Solver -> why no program of `steps` steps can be made for this process and prediction; "" where one can."""
    reasons = {}
    for name in SOLVERS:
        try:
            build_program(name, process, prediction, steps, **(options or {}))  # type: ignore[arg-type]
            reasons[name] = ""
        except EdgegenError as e:
            reasons[name] = str(e)
    return reasons
