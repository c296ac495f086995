"""Which solver, how many steps, which times? Every candidate is run on the bundle's own float network, at equal seeds and conditions,
and judged by its distance to the model's own many-step solution, or by a quality function of the user's.

In: a bundle. Out: `Candidate`s, best first. Nothing is written here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.bundle import Bundle
from edgegen.diffusion import Process, make_grid, make_process
from edgegen.errors import EdgegenError, ProgramError, RecipeError, Status
from edgegen.library import run_file
from edgegen.plan import program_of
from edgegen.program import Noise, Program, compile_program, initial_state, normals
from edgegen.recipe import Recipe, Sampling, recipe_from_json
from edgegen.solvers import SOLVERS, solver_named
from edgegen.spec import draw_condition
from edgegen.targets.onnxruntime import OrtComponent, open_component

__all__ = ["Candidate", "Subject", "compare", "search"]

Array = npt.NDArray[Any]
Progress = Callable[[int, int], object]
Quality = Callable[[Array, Mapping[str, Array]], float]
"""quality(samples float32[N, ...], conditions) -> a number, higher is better."""

REFERENCE_STEPS = 200
FAMILIES: dict[str, tuple[float, ...]] = {"karras": (1.0, 3.0, 5.0, 7.0, 10.0), "polynomial": (1.0, 1.5, 2.0, 3.0), "lambda": ()}
"""Grids that are searched, and the powers that their search starts from."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sampler and how it did. error: relative RMSE to the many-step solution; quality: of the user's function, if one was given.

    times: the grid if it was searched for, else empty (the solver's own grid).
    """

    solver: str
    steps: int
    nfe: int
    error: float
    quality: float | None = None
    times: tuple[float, ...] = ()
    grid: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def rank(self) -> float:
        """Lower is better."""
        return self.error if self.quality is None else -self.quality


@dataclass(slots=True)
class Subject:
    """A bundle's float network with everything that makes its programs; opens the engine, so it is a context manager.

    samples: how many are drawn at once for every candidate. seed: of their noise and conditions.
    """

    bundle: Bundle
    samples: int = 16
    seed: int = 0
    threads: int = 0
    recipe: Recipe = field(init=False)
    process: Process = field(init=False)
    conditions: dict[str, Array] = field(init=False)
    network: OrtComponent = field(init=False)
    _noise: Array = field(init=False)
    _reference: Array | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        manifest = self.bundle.manifest
        self.recipe = recipe_from_json(self.bundle.document("recipe"))
        self.process = make_process(**self.recipe.process)
        component = self.recipe.model.component
        variant = next((v for v in manifest.variants if v.name == "float32"), manifest.variants[0])
        self.network = open_component(self.bundle, variant, component, threads=self.threads)
        rng = np.random.default_rng(self.seed)
        self.conditions = {c.name: draw_condition(c, self.samples, rng) for c in manifest.conditions}
        self._noise = normals(self.seed, 0, (self.samples, *manifest.sample.shape))

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *_: object) -> None:
        self.network.close()

    def program(
        self, solver: str, steps: int, grid: str | Sequence[float] | None = None, grid_options: Mapping[str, Any] | None = None
    ) -> Program:  # fmt: skip
        """A program of the bundle's model: the recipe's first program with another solver, steps and grid."""
        first = self.recipe.programs[0]
        named = grid if grid is None or isinstance(grid, str) else tuple(grid)
        sampling = Sampling(
            steps=(steps,), solver=solver, grid=named, grid_options=dict(grid_options or {}),
            guidance=first.guidance, batched_guidance=first.batched_guidance,
            guidance_rescale=first.guidance_rescale, guidance_interval=first.guidance_interval,
            options={k: v for k, v in first.options.items() if k in ("clip", "threshold")},
        )  # fmt: skip
        return program_of(self.recipe, sampling, steps, self.process)

    @property
    def per_step(self) -> int:
        """Network evaluations of one step of a solver that evaluates once: 2 with guidance, else 1."""
        guidance = self.recipe.programs[0].guidance
        return 1 if guidance in (None, 1.0) else 2

    def run(self, program: Program) -> Array:
        """The samples of a program, float32[samples, *sample shape], from this subject's noise."""
        inputs = {i.name: self.conditions[i.name] for i in program.inputs if i.kind == "condition"}
        inputs |= initial_state(program, self._noise)
        return compile_program(program).run({self.recipe.model.component: self.network}, inputs, seed=self.seed)["sample"]

    @property
    def reference(self) -> Array:
        """The model's many-step solution: 200 steps of DPM-Solver++ 2M on its own grid."""
        if self._reference is None:
            self._reference = self.run(self.program("dpmpp_2m", REFERENCE_STEPS))
        return self._reference

    def judge(self, solver: str, program: Program, quality: Quality | None, times: Sequence[float] = (), grid: str = "") -> Candidate:
        """Run a program and measure it."""
        samples = self.run(program)
        error = float(np.sqrt(np.mean((samples - self.reference) ** 2) / np.mean(self.reference**2)))
        score = None if quality is None else float(quality(samples, self.conditions))
        return Candidate(solver, len(program.steps), sum(program.nfe.values()), error, score, tuple(times), grid)


def _fitting(subject: Subject, solvers: Iterable[str], steps: int) -> list[str]:
    """The solvers that are compared: those that can be built here, draw no noise, and are not for distilled networks.

    Raises ProgramError, with the reason for each, if there is none.
    """
    reasons = {}
    for name in solvers:
        key = solver_named(name)
        try:
            program = subject.program(key, steps)
        except EdgegenError as e:
            reasons[key] = str(e)
            continue
        stochastic = any(isinstance(i, Noise) for i in program.instructions)
        learned = SOLVERS[key].order == 0
        reasons[key] = "draws noise: it has no solution to be near to" if stochastic else "for networks trained for it" if learned else ""
    chosen = [name for name, reason in reasons.items() if not reason]
    if not chosen:
        raise ProgramError("no solver fits this model: " + "; ".join(f"{n}: {r}" for n, r in reasons.items()), Status.OUT_OF_RANGE)
    return chosen


def _steps_for(subject: Subject, solver: str, budget: int) -> int:
    """The most steps whose evaluations fit the budget; 0 if none do."""
    for steps in range(budget, 0, -1):
        try:
            if sum(subject.program(solver, steps).nfe.values()) <= budget:
                return steps
        except EdgegenError:
            continue
    return 0


def compare(
    subject: Subject, solvers: Iterable[str] | None = None, budgets: Sequence[int] = (4, 6, 8, 10, 15, 20), progress: Progress | None = None
) -> list[Candidate]:
    """Every deterministic solver that fits, with as many steps as each budget of evaluations allows (guided: twice as many).

    Raises ProgramError if no solver fits.
    """
    chosen = _fitting(subject, SOLVERS if solvers is None else solvers, max(budgets))
    jobs = list(itertools.product(chosen, budgets))
    found: dict[tuple[str, int], Candidate] = {}
    for done, (solver, budget) in enumerate(jobs, 1):
        steps = _steps_for(subject, solver, budget * subject.per_step)
        if steps and (solver, steps) not in found:
            found[solver, steps] = subject.judge(solver, subject.program(solver, steps), None)
        if progress is not None:
            progress(done, len(jobs))
    return list(found.values())


def search(
    subject: Subject, solvers: Iterable[str], steps: Iterable[int], *, quality: Quality | None = None, refine: int = 40,
    progress: Progress | None = None,
) -> list[Candidate]:  # fmt: skip
    """The best sampler for each number of evaluations, by increasing evaluations.

    Each solver is tried with each number of steps on its own grid; then, for each number of evaluations, the best solver's times are
    searched: families of grids (`FAMILIES`) with start, end and power moved by `refine` trials of pattern search.
    Raises ProgramError if no solver fits.
    """
    counts = sorted(set(steps))
    chosen = _fitting(subject, solvers, max(counts))
    total, done = len(chosen) * len(counts) + len(counts) * refine, 0

    def tick(n: int = 1) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(min(done, total), total)

    best: list[Candidate] = []
    for count in counts:
        tried = []
        for solver in chosen:
            fit = _steps_for(subject, solver, count * subject.per_step)
            if fit:
                tried.append(subject.judge(solver, subject.program(solver, fit), quality))
            tick()
        if tried:
            winner = min(tried, key=lambda c: c.rank)
            best.append(_refined(subject, winner, quality, refine, tick))
    return best


def _refined(subject: Subject, winner: Candidate, quality: Quality | None, trials: int, tick: Callable[[int], None]) -> Candidate:
    """`winner` with the best times that `trials` evaluations of a pattern search over (family, start, end, power) find."""
    process = subject.process
    if winner.steps < 2 or trials < 1 or not np.isfinite(process.t_first):
        tick(trials)
        return winner
    budget = trials

    def attempt(family: str, start: float, end: float, power: float) -> Candidate | None:
        nonlocal budget
        if budget <= 0:
            return None
        budget -= 1
        tick(1)
        try:
            times = _grid(process, winner.steps, family, start, end, power)
            program = subject.program(winner.solver, winner.steps, times)
            if sum(program.nfe.values()) > winner.nfe:
                return None
            return subject.judge(winner.solver, program, quality, times, family)
        except EdgegenError:
            return None

    places = [
        (family, 0.0, end, power)
        for family, powers in FAMILIES.items()
        for power in powers or (1.0,)
        for end in ((0.0,) if family == "polynomial" else (1.0 / winner.steps, 0.0))
    ]
    tried = [(found, place) for place in places if (found := attempt(*place)) is not None]
    if not tried:
        tick(budget)
        return winner
    best, place = min(tried, key=lambda pair: pair[0].rank)
    step = 1.0
    while budget > 0 and step > 0.05:
        family, start, end, power = place
        moves = [
            (start, end, power * 1.4**step), (start, end, power / 1.4**step),
            (start + 0.1 * step, end, power), (max(start - 0.1 * step, 0.0), end, power),
            (start, end + 0.1 * step, power), (start, max(end - 0.1 * step, 0.0), power),
        ]  # fmt: skip
        improved = False
        for move in moves:
            found = attempt(family, *move) if move != place[1:] else None
            if found is not None and found.rank < best.rank:
                best, place, improved = found, (family, *move), True
        if not improved:
            step *= 0.5
    tick(max(budget, 0))
    return best if best.rank < winner.rank else winner


def _grid(process: Process, steps: int, family: str, start: float, end: float, power: float) -> tuple[float, ...]:
    """Times to the clean end. start: how far in lambda the first is above the process's own; end: where the last noisy node of a
    lambda or rho grid is, as a fraction of the range of lambda from its cleaner end (polynomial grids reach the clean end themselves).
    """
    first, last = process.t_first, process.t_last
    low, high = float(process.lam(first)), float(process.lam(process.t_floor))
    if start > 0.0 and math.isfinite(low):
        first = float(process.inverse_lambda(low + start))
    options = {} if family == "lambda" else {"power": power}
    floor = float(process.inverse_lambda(high - end * (high - low))) if math.isfinite(low) else process.t_floor
    if float(process.sigma(last)) > 0.0 or family == "polynomial" or not last < floor < first:
        return tuple(make_grid(family, process, steps, t_start=first, t_end=None, multistep=False, **options).tolist())
    inner = make_grid(family, process, steps - 1, t_start=first, t_end=floor, multistep=False, **options)
    return (*inner.tolist(), last)


def winner_of(best: Sequence[Candidate], within: float) -> Candidate:
    """The candidate with the fewest evaluations whose error is at most `within`, else the one of least error; with a quality function,
    the fewest evaluations whose quality is at most a hundredth part (of its range over the candidates) below the best.
    """
    if best[0].quality is not None:
        scores = [c.quality for c in best if c.quality is not None]
        bar = max(scores) - 0.01 * (max(scores) - min(scores))
        return next(c for c in best if c.quality is not None and c.quality >= bar)
    return next((c for c in best if c.error <= within), min(best, key=lambda c: c.error))


def load_quality(source: str, folder: Path) -> Quality:
    """The function that "file.py:function" names, the file relative to `folder`. Raises RecipeError if there is none."""
    name, _, function = source.partition(":")
    path = folder / name
    if not path.is_file() or not function:
        raise RecipeError(f"quality function {source!r}: expected file.py:function, and a file at {path}")
    found = getattr(run_file(path, "quality"), function, None)
    if not callable(found):
        raise RecipeError(f"{path} has no function {function!r}")
    return found  # type: ignore[no-any-return]


def sampling_block(candidate: Candidate, recipe: Recipe) -> str:
    """The candidate as a [[programs]] block of a recipe, with what was measured in a comment."""
    first = recipe.programs[0]
    measured = (
        f"error {candidate.error:.3g} of the {REFERENCE_STEPS}-step solution" if candidate.quality is None else f"quality {candidate.quality:.6g}"
    )
    lines = [
        "",
        f"[[programs]]                # edgegen search: {candidate.nfe} evaluations, {measured}",
        f'solver = "{candidate.solver}"',
        f"steps = [{candidate.steps}]",
    ]
    if candidate.times:
        lines.append(f"grid = [{', '.join(repr(t) for t in candidate.times)}]")
    if first.guidance is not None:
        lines.append(f"guidance = {first.guidance!r}")
    if first.guidance_rescale:
        lines.append(f"guidance_rescale = {first.guidance_rescale!r}")
    if first.guidance_interval is not None:
        lines.append(f"guidance_interval = [{first.guidance_interval[0]!r}, {first.guidance_interval[1]!r}]")
    options = {k: v for k, v in first.options.items() if k in ("clip", "threshold")}
    if options:
        lines.append("options = { " + ", ".join(f"{k} = {v!r}" for k, v in options.items()) + " }")
    return "\n".join(lines) + "\n"


def with_program(text: str, candidate: Candidate, recipe: Recipe) -> str:
    """A recipe's text with the candidate appended as a further program. Raises RecipeError if the recipe has it already."""
    block = sampling_block(candidate, recipe)
    body = "\n".join(line for line in block.splitlines()[2:])
    if body in text:
        raise RecipeError(f"the recipe already has this program: {candidate.solver}, {candidate.steps} steps, these times")
    return text.rstrip("\n") + "\n" + block
