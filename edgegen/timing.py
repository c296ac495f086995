"""Honest timing: contenders run in alternation, each in a process of its own, and only ratios of medians are trusted.

A contender is a command that calls `serve`. Two engines in one process spoil each other's times: their idle threads spin.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgegen.errors import BuildError

__all__ = ["alternate", "machine", "serve"]


def machine() -> str:
    """What makes a measurement valid in another build: the processor's name and the number of cores."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores"


def serve(run: Callable[[], object]) -> None:
    """Answer timing requests on standard input: each line is a count n; the answer is a JSON list of n seconds.

    Whatever `run` prints goes to standard error.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        run()
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            seconds = []
            for _ in range(int(line)):
                began = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - began)
            print(json.dumps(seconds), file=answers, flush=True)


def _answer(name: str, process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait()
        errors = process.stderr.read().strip().splitlines() if process.stderr else []
        raise BuildError(f"timing {name!r}: its process ended with code {process.returncode}: {errors[-1] if errors else 'no message'}")
    return line


@contextlib.contextmanager
def _contenders(commands: Mapping[str, Sequence[str]], environment: Mapping[str, str] | None) -> Iterator[dict[str, subprocess.Popen[str]]]:
    running: dict[str, subprocess.Popen[str]] = {}
    pipe: Any = subprocess.PIPE
    try:
        for name, command in commands.items():
            running[name] = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
            _answer(name, running[name])
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def alternate(
    commands: Mapping[str, Sequence[str]], *, rounds: int, runs: int, on_round: Callable[[int], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of rounds * runs calls of each command's `serve`, taken in turns of `runs`; the order turns round after round.

    Raises BuildError with the last line of its errors if a contender's process ends.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with _contenders(commands, environment) as running:
        names = list(running)
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                process = running[name]
                assert process.stdin is not None
                print(runs + 1, file=process.stdin, flush=True)
                seconds[name] += json.loads(_answer(name, process))[1:]  # the first wakes the engine's threads
            if on_round is not None:
                on_round(i + 1)
    return seconds
