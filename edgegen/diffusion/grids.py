"""Grids: the decreasing times that a solver visits. Each is float64[steps + 1]; the network is evaluated at all but the last.

A grid whose end is clean (sigma = 0) and that is spaced in lambda or rho goes to the process's `t_floor` first and then jumps
to the clean time, as EDM and diffusers do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgegen.diffusion.processes import Process, VPBetas
from edgegen.errors import ProgramError, Status, nearest

__all__ = ["GRIDS", "check_grid", "make_grid"]

Array = npt.NDArray[np.float64]


def uniform(process: Process, steps: int, first: float, last: float) -> Array:
    """Equally spaced in the process's own time."""
    return np.linspace(first, last, steps + 1)


def quadratic(process: Process, steps: int, first: float, last: float) -> Array:
    """Equally spaced in the square root of time, measured from the process's earliest time. Source: DEIS (kappa = 2)."""
    origin = process.t_min
    return np.linspace((first - origin) ** 0.5, (last - origin) ** 0.5, steps + 1) ** 2 + origin


def _between(process: Process, steps: int, first: float, last: float, inner: Callable[[float, float, int], Array]) -> Array:
    """Nodes of `inner` from first to last; where last is clean, one node fewer to `t_floor` and then the clean time."""
    if process.sigma(last) > 0:
        times = inner(first, last, steps + 1)
    elif steps == 1:
        times = np.array([first, last])
    else:
        times = np.append(inner(first, process.t_floor, steps), last)
    return times


def uniform_lambda(process: Process, steps: int, first: float, last: float) -> Array:
    """Equally spaced in lambda (log-SNR). Source: Lu et al. 2022 (DPM-Solver)."""
    if process.alpha(first) == 0:
        raise ProgramError(f"grid 'lambda': lambda is -inf at t = {first}; set t_start below it, or use grid 'uniform'", Status.OUT_OF_RANGE)

    def inner(a: float, b: float, count: int) -> Array:
        return process.inverse_lambda(np.linspace(process.lam(a), process.lam(b), count))

    return _between(process, steps, first, last, inner)


def karras(process: Process, steps: int, first: float, last: float, *, power: float = 7.0) -> Array:
    """rho = sigma / alpha equally spaced in rho^(1/7). Source: Karras et al. 2022, equation 5."""
    if process.alpha(first) == 0:
        raise ProgramError(f"grid 'karras': rho is infinite at t = {first}; set t_start below it, or use grid 'uniform'", Status.OUT_OF_RANGE)

    def inner(a: float, b: float, count: int) -> Array:
        rho = np.linspace(np.exp(-process.lam(a) / power), np.exp(-process.lam(b) / power), count) ** power
        return process.inverse_lambda(-np.log(rho))

    return _between(process, steps, first, last, inner)


def _table_length(process: Process, name: str) -> int:
    if not isinstance(process, VPBetas):
        raise ProgramError(f"grid {name!r} spaces the indices of a table; the process is {type(process).__name__}; use 'uniform' or 'lambda'")
    return len(process.log_alphas) - 1


def leading(process: Process, steps: int, *, multistep: bool) -> Array:
    """diffusers' timestep_spacing="leading" (DDIM: multiples of T // steps; DPM-Solver family: of T // (steps + 1))."""
    total = _table_length(process, "leading")
    if multistep:
        return np.arange(0, steps + 1)[::-1][:-1].astype(np.float64) * (total // (steps + 1))
    return np.arange(0, steps)[::-1].astype(np.float64) * (total // steps)


def linspace(process: Process, steps: int, *, multistep: bool) -> Array:
    """diffusers' timestep_spacing="linspace" (Euler and DDIM: down to 0; DPM-Solver family: the node at 0 dropped)."""
    total = _table_length(process, "linspace")
    if multistep:
        return np.linspace(0, total - 1, steps + 1).round()[::-1][:-1]
    return np.linspace(0, total - 1, steps).round()[::-1]


def trailing(process: Process, steps: int, *, multistep: bool) -> Array:
    """diffusers' timestep_spacing="trailing": from T - 1 in strides of T / steps."""
    total = _table_length(process, "trailing")
    return np.arange(total, 0, -total / steps).round()[:steps] - 1.0


GRIDS: dict[str, Callable[..., Array]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "lambda": uniform_lambda,
    "karras": karras,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
}

_SPACINGS = ("leading", "linspace", "trailing")


def make_grid(name: str, process: Process, steps: int, *, t_start: float | None = None, t_end: float | None = None, multistep: bool = False) -> Array:
    """The grid called `name` (a key of `GRIDS`), float64[steps + 1], decreasing, checked.

    multistep: which of diffusers' two conventions the names leading and linspace mean (see those functions).
    Their times come from the table, so `t_start` is refused with them; `t_end` is -1 (clean) or 0 (sigma_min).
    """
    if name not in GRIDS:
        raise ProgramError(f"no grid {name!r}: {nearest(name, GRIDS)}", Status.UNKNOWN_NAME)
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ProgramError(f"expected a whole number of steps >= 1, found {steps!r}", Status.OUT_OF_RANGE)
    first = process.t_first if t_start is None else float(t_start)
    last = process.t_last if t_end is None else float(t_end)
    if name in _SPACINGS:
        if t_start is not None:
            raise ProgramError(f"grid {name!r} takes its start from the table; leave t_start out, or use grid 'uniform'")
        total = _table_length(process, name)
        if steps > total:
            raise ProgramError(f"grid {name!r}: {steps} steps do not fit a table of {total} betas", Status.OUT_OF_RANGE)
        times = np.append(GRIDS[name](process, steps, multistep=multistep), last)
    else:
        _check_ends(process, first, last)
        times = GRIDS[name](process, steps, first, last)
        times[0], times[-1] = first, last
    return check_grid(process, times, steps)


def _check_ends(process: Process, first: float, last: float) -> None:
    if not process.t_min <= last < first <= process.t_max:
        raise ProgramError(
            f"expected {process.t_min:g} <= t_end < t_start <= {process.t_max:g}, found t_start = {first:g} and t_end = {last:g}",
            Status.OUT_OF_RANGE,
        )


def check_grid(process: Process, times: npt.ArrayLike, steps: int) -> Array:
    """`times` as float64[steps + 1], or ProgramError: wrong length, not finite, not strictly decreasing, outside the process."""
    grid = np.array(times, np.float64)
    if grid.shape != (steps + 1,):
        raise ProgramError(f"a grid for {steps} steps needs {steps + 1} times, found shape {list(grid.shape)}", Status.BAD_SHAPE)
    if not np.all(np.isfinite(grid)):
        raise ProgramError(f"grid: time {int(np.argmin(np.isfinite(grid)))} is not finite", Status.NONFINITE)
    rising = np.flatnonzero(np.diff(grid) >= 0)
    if len(rising):
        i = int(rising[0])
        raise ProgramError(f"grid: times must strictly decrease; times {i} and {i + 1} are {grid[i]:g} and {grid[i + 1]:g}", Status.OUT_OF_RANGE)
    _check_ends(process, float(grid[0]), float(grid[-1]))
    return grid
