"""Grids: the decreasing times that a solver visits. Each is float64[steps + 1]; the network is evaluated at all but the last.

A grid whose end is clean (sigma = 0) and that is spaced in lambda or rho goes to the process's `t_floor` first and then jumps
to the clean time, as EDM and diffusers do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgegen.diffusion.processes import Flow, Process, VPBetas, vp_linear
from edgegen.errors import ProgramError, Status, nearest

__all__ = ["GRIDS", "check_grid", "fast_orders", "make_grid"]

Array = npt.NDArray[np.float64]


def uniform(process: Process, steps: int, first: float, last: float) -> Array:
    """Equally spaced in the process's own time."""
    return np.linspace(first, last, steps + 1)


def polynomial(process: Process, steps: int, first: float, last: float, *, power: float = 2.0) -> Array:
    """Equally spaced in time^(1 / power), time measured from the process's earliest. Source: DEIS (kappa; 1 is uniform, 2 quadratic)."""
    _positive("polynomial", "power", power)
    origin = process.t_min
    return np.linspace((first - origin) ** (1.0 / power), (last - origin) ** (1.0 / power), steps + 1) ** power + origin


def quadratic(process: Process, steps: int, first: float, last: float) -> Array:
    """Equally spaced in the square root of time: `polynomial` of power 2."""
    return polynomial(process, steps, first, last)


def shifted(process: Process, steps: int, first: float, last: float, *, shift: float = 3.0, floor: float = 0.0) -> Array:
    """A flow's uniform times s moved towards noise: shift s / (1 + (shift - 1) s). Source: Esser et al. 2024 (SD3), equation 23.

    floor: where the equal spacing ends (before the shift) if the last step then goes to a clean end, as diffusers does.
    """
    _positive("shifted", "shift", shift)
    if not isinstance(process, Flow):
        raise ProgramError(f"grid 'shifted' is for flows; the process is {type(process).__name__}; use 'polynomial' or 'karras'")
    first, last = (t / (shift - (shift - 1.0) * t) for t in (first, last))
    s = np.append(np.linspace(first, floor, steps), last) if floor > last else np.linspace(first, last, steps + 1)
    return shift * s / (1.0 + (shift - 1.0) * s)


def _between(process: Process, steps: int, first: float, last: float, inner: Callable[[float, float, int], Array]) -> Array:
    """Nodes of `inner` from first to last; where last is clean, one node fewer to `t_floor` and then the clean time."""
    if process.sigma(last) > 0:
        return inner(first, last, steps + 1)
    if steps == 1:
        return np.array([first, last])
    times = inner(first, process.t_floor, steps)
    times[0], times[-1] = first, process.t_floor  # not off by the rounding of lambda and back
    return np.append(times, last)


def uniform_lambda(process: Process, steps: int, first: float, last: float) -> Array:
    """Equally spaced in lambda (log-SNR). Source: Lu et al. 2022 (DPM-Solver)."""
    _finite_start("lambda", process, first)

    def inner(a: float, b: float, count: int) -> Array:
        return process.inverse_lambda(np.linspace(process.lam(a), process.lam(b), count))

    return _between(process, steps, first, last, inner)


def fast_orders(steps: int, order: int, *, clean_end: bool = False) -> list[int]:
    """How DPM-Solver-fast spends `steps` evaluations: intervals of `order` (2 or 3), the remainder last. Source: Lu et al. 2022,
    section 3.4. clean_end: the last step goes to sigma = 0, so it is of first order: a last interval of 2 becomes two of 1.
    """
    if order == 1:
        return [1] * steps
    if order == 2:
        groups = [2] * (steps // 2) + [1] * (steps % 2)
    elif steps % 3 == 0:
        groups = [3] * (steps // 3 - 1) + [2, 1]
    else:
        groups = [3] * (steps // 3) + [steps % 3]
    return [*groups[:-1], 1, 1] if clean_end and groups[-1] == 2 else groups


def lambda_fast(process: Process, steps: int, first: float, last: float, *, order: int = 3) -> Array:
    """DPM-Solver-fast's grid: the ends of its intervals equally spaced in lambda, each interval then divided equally."""

    def inner(a: float, b: float, count: int) -> Array:
        groups = fast_orders(steps, order, clean_end=clean)[: -1 if clean else None]
        ends = np.linspace(process.lam(a), process.lam(b), len(groups) + 1)
        parts = [np.linspace(low, high, n, endpoint=False) for low, high, n in zip(ends, ends[1:], groups, strict=False)]
        return process.inverse_lambda(np.append(np.concatenate(parts), ends[-1])) if groups else np.array([a])

    if order not in (2, 3):
        raise ProgramError(f"grid 'lambda_fast': expected order 2 or 3, found {order!r}", Status.OUT_OF_RANGE)
    _finite_start("lambda_fast", process, first)
    clean = float(process.sigma(last)) == 0.0
    return _between(process, steps, first, last, inner)


def karras(process: Process, steps: int, first: float, last: float, *, power: float = 7.0) -> Array:
    """rho = sigma / alpha equally spaced in rho^(1 / power). Source: Karras et al. 2022, equation 5. power = 1: linear in rho."""
    _positive("karras", "power", power)
    _finite_start("karras", process, first)

    def inner(a: float, b: float, count: int) -> Array:
        rho = np.linspace(np.exp(-process.lam(a) / power), np.exp(-process.lam(b) / power), count) ** power
        return process.inverse_lambda(-np.log(rho))

    return _between(process, steps, first, last, inner)


def vp(process: Process, steps: int, first: float, last: float) -> Array:
    """The noise levels of a VP process (beta 0.1 to 20) at equally spaced times, for a network of another process. Source: BESO."""
    _finite_start("vp", process, first)
    levels = vp_linear()

    def inner(a: float, b: float, count: int) -> Array:
        ends = levels.inverse_lambda(process.lam([a, b]))
        return process.inverse_lambda(levels.lam(np.linspace(ends[0], ends[1], count)))

    return _between(process, steps, first, last, inner)


def _positive(grid: str, name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise ProgramError(f"grid {grid!r}: expected {name} > 0, found {value}", Status.OUT_OF_RANGE)


def _finite_start(grid: str, process: Process, first: float) -> None:
    if process.alpha(first) == 0:
        raise ProgramError(
            f"grid {grid!r}: alpha is 0 at t = {first}, so lambda is -inf there; set t_start below it, or use grid 'uniform'", Status.OUT_OF_RANGE
        )


def _table_length(process: Process, name: str) -> int:
    if not isinstance(process, VPBetas):
        raise ProgramError(f"grid {name!r} spaces the indices of a table; the process is {type(process).__name__}; use 'uniform' or 'lambda'")
    return len(process.log_alphas) - 1


def leading(process: Process, steps: int, *, multistep: bool, offset: int = 0) -> Array:
    """diffusers' timestep_spacing="leading" (DDIM: multiples of T // steps; DPM-Solver family: of T // (steps + 1)), plus `offset`."""
    total = _table_length(process, "leading")
    if multistep:
        return np.arange(0, steps + 1)[::-1][:-1].astype(np.float64) * (total // (steps + 1)) + offset
    return np.arange(0, steps)[::-1].astype(np.float64) * (total // steps) + offset


def linspace(process: Process, steps: int, *, multistep: bool, rounded: bool = False) -> Array:
    """diffusers' timestep_spacing="linspace" (Euler and its kin: down to 0, fractions of indices unless `rounded`; DPM-Solver family:
    rounded, 0 dropped).
    """
    total = _table_length(process, "linspace")
    if multistep:
        return np.linspace(0, total - 1, steps + 1).round()[::-1][:-1]
    times = np.linspace(0, total - 1, steps)[::-1]
    return times.round() if rounded else times


def trailing(process: Process, steps: int, *, multistep: bool) -> Array:
    """diffusers' timestep_spacing="trailing": from T - 1 in strides of T / steps."""
    total = _table_length(process, "trailing")
    return np.arange(total, 0, -total / steps).round()[:steps] - 1.0


def lcm(process: Process, steps: int, *, multistep: bool, original_steps: int = 50) -> Array:
    """The times that LCM and TCD were distilled at (`original_steps` of them, equally spaced), thinned to `steps`."""
    total = _table_length(process, "lcm")
    if not steps <= original_steps <= total:
        raise ProgramError(f"grid 'lcm': expected steps <= original_steps <= {total}, found {steps} and {original_steps}", Status.OUT_OF_RANGE)
    trained = np.arange(1, original_steps + 1)[::-1] * (total // original_steps) - 1.0
    return np.asarray(trained[np.floor(np.linspace(0, original_steps, steps, endpoint=False)).astype(int)])


GRIDS: dict[str, Callable[..., Array]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "polynomial": polynomial,
    "shifted": shifted,
    "lambda": uniform_lambda,
    "lambda_fast": lambda_fast,
    "karras": karras,
    "vp": vp,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
    "lcm": lcm,
}

_SPACINGS = ("leading", "linspace", "trailing", "lcm")


def make_grid(
    name: str, process: Process, steps: int, *, t_start: float | None = None, t_end: float | None = None, multistep: bool = False,
    **options: float,
) -> Array:  # fmt: skip
    """The grid called `name` (a key of `GRIDS`) with its `options`, float64[steps + 1], decreasing, checked.

    multistep: which of diffusers' two conventions the names leading and linspace mean (see those functions).
    Their times come from the table, so `t_start` is refused with them; `t_end` is -1 (clean) or 0 (sigma_min).
    """
    if name not in GRIDS:
        raise ProgramError(f"no grid {name!r}: {nearest(name, GRIDS)}", Status.UNKNOWN_NAME)
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ProgramError(f"expected a whole number of steps >= 1, found {steps!r}", Status.OUT_OF_RANGE)
    known = set(inspect.signature(GRIDS[name]).parameters) - {"process", "steps", "first", "last", "multistep"}
    for option in options:
        if option not in known:
            raise ProgramError(f"grid {name!r} has no option {option!r}: {nearest(option, known)}", Status.UNKNOWN_NAME)
    first = process.t_first if t_start is None else float(t_start)
    last = process.t_last if t_end is None else float(t_end)
    if name in _SPACINGS:
        if t_start is not None:
            raise ProgramError(f"grid {name!r} takes its start from the table; leave t_start out, or use grid 'uniform'")
        total = _table_length(process, name)
        if steps > total:
            raise ProgramError(f"grid {name!r}: {steps} steps do not fit a table of {total} betas", Status.OUT_OF_RANGE)
        times = np.append(GRIDS[name](process, steps, multistep=multistep, **options), last)
    else:
        _check_ends(process, first, last)
        times = GRIDS[name](process, steps, first, last, **options)
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
