"""What every benchmark shares: building the bundle it looks at, and its JSON file (benchmarks/README.md)."""

from __future__ import annotations

import json
import operator
import sys
from pathlib import Path

from edgegen.pipeline import Options, build
from edgegen.plan import make_plan
from edgegen.recipe import load_recipe
from edgegen.workspace import Workspace

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "benchmarks"
OPERATORS = {"<=": operator.le, ">=": operator.ge}


def built(family: str, *, measured: bool, settings: tuple[str, ...] = (), trust_pickle: bool = False, suffix: str = "") -> Path:
    """The bundle of a family, built into build/benchmarks (found again if nothing changed). suffix: of its name, for other settings."""
    recipe = ROOT / "export" / family / "recipe.toml"
    plan = make_plan(load_recipe(recipe, settings), recipe.parent, trust_pickle=trust_pickle)
    WORK.mkdir(parents=True, exist_ok=True)
    output = WORK / f"{family}{suffix or ('' if measured else '-all')}.edgegen"

    def report(stage: str, what: str, done: int, total: int) -> None:
        if done == total:
            print(f"  {stage}: {what}", file=sys.stderr)

    return build(plan, output, Workspace(WORK / "cache"), Options(measured=measured), report)


def bar(name: str, value: float, op: str, bound: float) -> dict[str, object]:
    """One line of an issue's "What it must show", measured."""
    return {"name": name, "value": value, "op": op, "bound": bound, "met": bool(OPERATORS[op](value, bound))}


def finish(path: Path | None, figures: dict[str, float], bars: list[dict[str, object]]) -> None:
    """Print the bars and write the JSON file."""
    for b in bars:
        print(f"{'met    ' if b['met'] else 'NOT MET'}  {b['name']}: {b['value']:.4g} {b['op']} {b['bound']:.4g}")
    if path is not None:
        path.write_text(json.dumps({"figures": figures, "bars": bars}, indent=1))
        print(path)
