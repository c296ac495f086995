"""Choosing by measurement: every candidate (variant, fused or stepwise, threads) is timed on this machine, and a variant keeps what was fastest.

Candidates run in turns, each in a process of its own, and are compared pair by pair with the first, so that what the machine does to all of
them cancels. Nothing is called fast that was not measured here.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgegen.bundle import Variant
from edgegen.timing import alternate

__all__ = ["AT_ONCE", "Candidate", "Times", "candidates_of", "measured_document", "settle", "thread_counts", "time_candidates"]


@dataclass(frozen=True, order=True, slots=True)
class Candidate:
    """One way to run a variant's default program. threads: of the engine, 0 for one per core."""

    variant: str
    fused: bool
    threads: int

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads or 'all'} threads"
        return f"{self.variant}, {'fused' if self.fused else 'stepwise'}, {threads}"


AT_ONCE = 4
"""Processes that are timed in turns, the first candidate's among them."""
Times = Mapping[Candidate, float]
"""Milliseconds of one generation, batch 1."""


def thread_counts(cores: int | None = None) -> tuple[int, ...]:
    """1, 2, 4, ... and all of them."""
    cores = cores or os.cpu_count() or 1
    return tuple(sorted({min(2**i, cores) for i in range(cores.bit_length() + 1)}))


def candidates_of(variants: Iterable[Variant], program: str, threads: Sequence[int]) -> list[Candidate]:
    """Every way to run each variant's `program` at batch 1."""
    made = []
    for v in variants:
        forms = (False, True) if any((f.program, f.batch) == (program, 1) for f in v.fused) else (False,)
        made += [Candidate(v.name, fused, count) for fused in forms for count in threads]
    return made


def time_candidates(
    path: Path, candidates: Sequence[Candidate], program: str, *, rounds: int, runs: int, on_round: Callable[[int], None] | None = None
) -> dict[Candidate, float]:
    """Time `rounds` turns of `runs` generations of each candidate of the bundle at `path`. Raises BuildError if one of them fails.

    At most `AT_ONCE` processes are there at a time: each holds a network.
    """
    python = [sys.executable, "-m", "edgegen.runtime.contender", str(path)]
    commands = {c: [*python, c.variant, program, str(c.threads), "1", "python", "fused" if c.fused else "stepwise"] for c in candidates}
    first, *others = candidates
    groups = [others[i : i + AT_ONCE - 1] for i in range(0, len(others), AT_ONCE - 1)] or [[]]
    times: dict[Candidate, float] = {}
    for i, group in enumerate(groups):

        def done(round_: int, before: int = i) -> None:
            if on_round is not None:
                on_round((before * rounds + round_) // len(groups))

        seconds = alternate({str(c): commands[c] for c in (first, *group)}, rounds=rounds, runs=runs, on_round=done)
        reference = seconds[str(first)]
        times.setdefault(first, statistics.median(reference) * 1e3)
        times |= {c: times[first] * statistics.median(a / b for a, b in zip(seconds[str(c)], reference, strict=True)) for c in group}
    return times


def settle(variants: Iterable[Variant], times: Times) -> tuple[Variant, ...]:
    """The variants, the fastest first, each with the form and the threads that were fastest; those that were not timed are last, stepwise."""
    timed: list[tuple[float, Variant]] = []
    others: list[Variant] = []
    for v in variants:
        own = {c: ms for c, ms in times.items() if c.variant == v.name}
        if not own:
            others.append(replace(v, fused=()))
            continue
        best = min(own, key=lambda c: own[c])
        timed.append((own[best], replace(v, fused=v.fused if best.fused else (), threads=best.threads)))
    return (*(v for _, v in sorted(timed, key=lambda pair: pair[0])), *others)


def measured_document(program: str, machine: str, times: Times) -> dict[str, Any]:
    """The bundle's document `measured`: every candidate's time, and each variant's best."""
    best: dict[str, float] = {}
    for c, ms in times.items():
        best[c.variant] = min(ms, best.get(c.variant, ms))
    rows = [{"variant": c.variant, "fused": int(c.fused), "threads": c.threads, "milliseconds": f"{ms:.3f}"} for c, ms in times.items()]
    return {"program": program, "batch": 1, "machine": machine, "milliseconds": {n: f"{ms:.3f}" for n, ms in best.items()}, "candidates": rows}
