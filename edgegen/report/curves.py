"""Error against evaluations, one curve per solver, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from edgegen.errors import RuntimeFault, Status
from edgegen.search.sampling import Candidate
from edgegen.workspace import write_atomically

__all__ = ["check_matplotlib", "draw_comparison"]


def check_matplotlib() -> None:
    """Raise now, before slow work, if matplotlib is not installed."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeFault("drawing needs matplotlib; install with: pip install 'edgegen[report]'", Status.BACKEND_MISSING)


def draw_comparison(path: Path, candidates: Sequence[Candidate], title: str) -> None:
    """Write the picture to `path` (.png) atomically: log error over NFE, the best solvers' names at their curves' ends."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    curves: dict[str, list[Candidate]] = {}
    for c in candidates:
        curves.setdefault(c.solver, []).append(c)
    ranked = sorted(curves, key=lambda name: min(c.error for c in curves[name]))
    markers = "osD^v<>Pphx*"
    for k, name in enumerate(ranked):
        points = sorted(curves[name], key=lambda c: c.nfe)
        axes.plot(
            [c.nfe for c in points], [c.error for c in points], marker=markers[k % len(markers)], markersize=4, linewidth=1.2,
            linestyle=("-", "--", ":")[k // 10 % 3], label=name,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("network evaluations (NFE)")
    axes.set_ylabel("relative RMSE to the many-step solution")
    axes.set_title(title)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, title="best at the top")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": "edgegen"})
    write_atomically(path, buffer.getvalue())
