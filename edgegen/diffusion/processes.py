"""Forward processes x_t = alpha(t) x_0 + sigma(t) eps, in float64.

Each gives alpha, sigma, lambda = ln(alpha / sigma) and the inverse of lambda on its own time axis, on which noise grows
with t. A clean end (sigma = 0, lambda = +inf) and a pure-noise end (alpha = 0, lambda = -inf) are legal times.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgegen.errors import ProgramError, Status, nearest

__all__ = ["PROCESSES", "Process", "make_process"]

Array = npt.NDArray[np.float64]
Times = npt.ArrayLike


@dataclass(frozen=True)
class Process(ABC):
    """A forward process. Times may be scalars or arrays; results are float64 of the same shape.

    t_first, t_last: where sampling starts and ends unless told otherwise.
    t_floor: the least noisy time with sigma > 0 that a lambda or rho grid may reach before a clean end.
    t_min, t_max: the times for which the process is defined.
    """

    t_first: float
    t_last: float
    t_floor: float
    t_min: float
    t_max: float

    @abstractmethod
    def alpha(self, t: Times) -> Array:
        """Scale of the data at t, in [0, 1]."""

    @abstractmethod
    def sigma(self, t: Times) -> Array:
        """Standard deviation of the noise at t, >= 0."""

    @abstractmethod
    def inverse_lambda(self, lam: Times) -> Array:
        """The time at which ln(alpha / sigma) equals `lam`."""

    def levels(self, lam: float) -> tuple[float, float]:
        """(alpha, sigma) where ln(alpha / sigma) equals `lam`; where alpha or sigma is a function of the other, without a round trip
        through time.
        """
        t = self.inverse_lambda(lam)
        return float(self.alpha(t)), float(self.sigma(t))

    def lam(self, t: Times) -> Array:
        """lambda(t) = ln(alpha / sigma): half the log signal-to-noise ratio; +inf where sigma = 0, -inf where alpha = 0."""
        with np.errstate(divide="ignore"):
            difference: Array = np.log(self.alpha(t)) - np.log(self.sigma(t))
        return difference

    def initial_scale(self, t: float) -> float:
        """What standard normal noise is multiplied by to give the state at t: 1 for variance-preserving processes."""
        return float(self.sigma(t))


@dataclass(frozen=True)
class _VariancePreserving(Process):
    """alpha^2 + sigma^2 = 1, from ln(alpha)."""

    @abstractmethod
    def log_alpha(self, t: Times) -> Array:
        """ln(alpha(t)) <= 0."""

    @abstractmethod
    def inverse_log_alpha(self, log_alpha: Array) -> Array:
        """The time at which ln(alpha) has this value."""

    def alpha(self, t: Times) -> Array:
        return np.exp(self.log_alpha(t))

    def sigma(self, t: Times) -> Array:
        return np.sqrt(-np.expm1(2.0 * self.log_alpha(t)))

    def lam(self, t: Times) -> Array:
        log_alpha = self.log_alpha(t)
        with np.errstate(divide="ignore"):
            return log_alpha - 0.5 * np.log(-np.expm1(2.0 * log_alpha))

    def inverse_lambda(self, lam: Times) -> Array:
        lam = np.asarray(lam, np.float64)
        return self.inverse_log_alpha(-0.5 * np.logaddexp(-2.0 * lam, 0.0))

    def levels(self, lam: float) -> tuple[float, float]:
        alpha = math.exp(-0.5 * float(np.logaddexp(-2.0 * lam, 0.0)))
        return alpha, alpha * math.exp(-lam)

    def initial_scale(self, t: float) -> float:
        return 1.0


@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    """VP with beta(t) = beta_min + t (beta_max - beta_min), t in [0, 1]. Source: Song et al. 2021, appendix C."""

    beta_min: float
    beta_max: float

    def log_alpha(self, t: Times) -> Array:
        t = np.asarray(t, np.float64)
        return np.asarray(-0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min)

    def inverse_log_alpha(self, log_alpha: Array) -> Array:
        slope = self.beta_max - self.beta_min
        w = -4.0 * slope * log_alpha
        return np.asarray(w / ((np.sqrt(self.beta_min**2 + w) + self.beta_min) * slope))


@dataclass(frozen=True)
class VPCosine(_VariancePreserving):
    """VP with alpha(t) = cos((t + s) / (1 + s) pi / 2) / cos(s / (1 + s) pi / 2). Source: Nichol and Dhariwal 2021."""

    s: float

    def _angle(self, t: Times) -> Array:
        return (np.asarray(t, np.float64) + self.s) / (1.0 + self.s) * (math.pi / 2.0)

    def log_alpha(self, t: Times) -> Array:
        with np.errstate(divide="ignore"):
            return np.log(np.cos(self._angle(t))) - np.log(np.cos(self._angle(0.0)))

    def inverse_log_alpha(self, log_alpha: Array) -> Array:
        angle = np.arccos(np.exp(log_alpha + np.log(np.cos(self._angle(0.0)))))
        return np.asarray(angle * (2.0 * (1.0 + self.s) / math.pi) - self.s)


@dataclass(frozen=True)
class VPBetas(_VariancePreserving):
    """VP from a table of betas: alpha(i)^2 = prod_{j<=i} (1 - beta_j) at the index i = 0 .. T-1.

    The time -1 is the empty product: clean data, which diffusers calls `set_alpha_to_one` or `final_sigmas_type="zero"`.
    interpolation: what is linear between indices: "log_alpha" (DPM-Solver's discrete schedule) or "log_sigma" (ln rho, as diffusers
    finds the index of a noise level); "sigma" reads rho linearly at a fraction of an index, and finds indices as "log_sigma" does:
    diffusers' pair.
    """

    log_alphas: tuple[float, ...] = field(repr=False)
    interpolation: str = "log_alpha"

    @cached_property
    def _table(self) -> tuple[Array, Array, Array]:
        """Indices -1 .. T-1, ln(alpha), and rho there; a last alpha of 0 is kept finite in the logarithm."""
        logs = np.maximum(self.log_alphas, _NO_ALPHA)
        return np.arange(-1.0, len(logs) - 1), logs, np.sqrt(np.expm1(np.minimum(-2.0 * logs, -_NO_ALPHA)))

    def log_alpha(self, t: Times) -> Array:
        t = np.asarray(t, np.float64)
        indices, logs, rho = self._table
        if self.interpolation == "log_alpha":
            return np.asarray(np.interp(t, indices, logs))
        linear = -0.5 * np.log1p(np.interp(t, indices, rho) ** 2)
        if self.interpolation == "log_sigma":
            linear = np.where(t > 0, -0.5 * np.logaddexp(2.0 * np.interp(t, indices[1:], np.log(rho[1:])), 0.0), linear)
        known = np.isin(t, indices)
        return np.asarray(np.where(known, np.interp(t, indices, logs), linear))

    def inverse_log_alpha(self, log_alpha: Array) -> Array:
        indices, logs, rho = self._table
        if self.interpolation == "log_alpha":
            return np.asarray(np.interp(-log_alpha, -logs, indices))
        wanted = np.sqrt(np.expm1(-2.0 * log_alpha))
        with np.errstate(divide="ignore"):
            return np.where(wanted > rho[1], np.interp(np.log(wanted), np.log(rho[1:]), indices[1:]), np.interp(wanted, rho, indices))

    def alpha(self, t: Times) -> Array:
        return np.where(self.log_alpha(t) <= _NO_ALPHA, 0.0, super().alpha(t))

    def lam(self, t: Times) -> Array:
        return np.where(self.log_alpha(t) <= _NO_ALPHA, -np.inf, super().lam(t))


_NO_ALPHA = -300.0
"""ln(alpha) below which alpha is 0: the end of a schedule with zero terminal signal-to-noise ratio."""


@dataclass(frozen=True)
class MeanReverting(Process):
    """x - mu = alpha (x0 - mu) + sigma eps with sigma^2 = sigma_inf^2 (1 - alpha^2): image restoration from the degraded image mu.

    Times are indices 0 .. T of a table of ln(alpha). compat: alpha, sigma and lambda are each interpolated linearly between
    indices, as the authors' code does (they then disagree with each other); else ln(alpha) is, and the others follow.
    Source: Luo et al. 2023 (IR-SDE); Li et al. 2025 (MR Sampler).
    """

    log_alphas: tuple[float, ...] = field(repr=False)
    sigma_inf: float
    compat: bool

    def _at(self, t: Times, of: Callable[[Array], Array]) -> Array:
        """`of(ln alpha)`, linear between indices in itself (compat) or in ln(alpha)."""
        t, table = np.asarray(t, np.float64), np.asarray(self.log_alphas)
        indices = np.arange(len(table))
        return np.asarray(np.interp(t, indices, of(table)) if self.compat else of(np.asarray(np.interp(t, indices, table))))

    def alpha(self, t: Times) -> Array:
        return self._at(t, np.exp)

    def sigma(self, t: Times) -> Array:
        return self._at(t, lambda logs: self.sigma_inf * np.sqrt(-np.expm1(2.0 * logs)))

    def lam(self, t: Times) -> Array:
        return self._at(t, lambda logs: logs - np.log(self.sigma_inf) - 0.5 * np.log(-np.expm1(2.0 * logs)))

    def inverse_lambda(self, lam: Times) -> Array:
        lam = np.asarray(lam, np.float64)
        table = np.asarray(self.log_alphas)
        indices = np.arange(len(table))
        if self.compat:
            return np.asarray(np.interp(-lam, -self.lam(indices), indices))
        log_alpha = -0.5 * np.logaddexp(-2.0 * (lam + math.log(self.sigma_inf)), 0.0)
        return np.asarray(np.interp(-log_alpha, -table, indices))

    def initial_scale(self, t: float) -> float:
        return self.sigma_inf


@dataclass(frozen=True)
class VarianceExploding(Process):
    """alpha = 1, sigma = t: EDM's coordinates. Source: Karras et al. 2022, table 1."""

    def alpha(self, t: Times) -> Array:
        return np.ones_like(np.asarray(t, np.float64))

    def sigma(self, t: Times) -> Array:
        return np.asarray(t, np.float64)

    def inverse_lambda(self, lam: Times) -> Array:
        return np.asarray(np.exp(-np.asarray(lam, np.float64)))


@dataclass(frozen=True)
class Flow(Process):
    """alpha = 1 - t, sigma = t: the straight path of rectified flow. Source: Liu et al. 2023; Lipman et al. 2023."""

    def alpha(self, t: Times) -> Array:
        return 1.0 - np.asarray(t, np.float64)

    def sigma(self, t: Times) -> Array:
        return np.asarray(t, np.float64)

    def inverse_lambda(self, lam: Times) -> Array:
        return np.asarray(np.exp(-np.logaddexp(np.asarray(lam, np.float64), 0.0)))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProgramError(message, Status.OUT_OF_RANGE)


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> VPLinear:
    """VP with linear beta. beta_min >= 0, beta_max > beta_min; samples from t = 1 to 1e-3."""
    _require(
        math.isfinite(beta_max) and 0 <= beta_min < beta_max,
        f"vp_linear: expected 0 <= beta_min < beta_max, found {beta_min} and {beta_max}",
    )
    return VPLinear(1.0, 1e-3, 1e-3, 0.0, 1.0, float(beta_min), float(beta_max))


def vp_cosine(s: float = 0.008) -> VPCosine:
    """VP with the cosine schedule. s > 0; samples from lambda = -5.1 (as DPM-Solver does) to t = 1e-3."""
    _require(0 < s < 1, f"vp_cosine: expected 0 < s < 1, found {s}")
    whole = VPCosine(1.0, 1e-3, 1e-3, 0.0, 1.0, float(s))
    return VPCosine(float(whole.inverse_lambda(-5.1)), 1e-3, 1e-3, 0.0, 1.0, float(s))


def _linear_betas(start: float, end: float, steps: int) -> Array:
    return np.linspace(start, end, steps)


def _scaled_linear_betas(start: float, end: float, steps: int) -> Array:
    return np.asarray(np.linspace(start**0.5, end**0.5, steps) ** 2)


def _cosine_betas(start: float, end: float, steps: int) -> Array:
    bars = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2.0) ** 2
    return np.asarray(np.minimum(1.0 - bars[1:] / bars[:-1], 0.999))


def _ddgan_betas(start: float, end: float, steps: int) -> Array:
    """Relative to the state at u = 1e-3 of VP with beta 0.1 to 20 (Xiao et al. 2022, appendix)."""
    u = np.arange(steps + 1) / steps * (1.0 - 1e-3) + 1e-3
    return -np.expm1(2.0 * np.diff(vp_linear().log_alpha(u)))


def _prodiff_betas(start: float, end: float, steps: int) -> Array:
    """steps = 5 for the released models: one more than the teacher's steps (Huang et al. 2022)."""
    t = np.arange(1, steps + 1)
    return -np.expm1(-0.1 / steps - 0.5 * 39.9 * (2 * t - 1) / steps**2)


SCHEDULES: dict[str, Callable[[float, float, int], Array]] = {
    "linear": _linear_betas,
    "scaled_linear": _scaled_linear_betas,
    "squaredcos_cap_v2": _cosine_betas,
    "ddgan": _ddgan_betas,
    "prodiff": _prodiff_betas,
}


def vp_betas(
    betas: Sequence[float] | None = None, *, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000,
    schedule: str = "linear", terminal: float | None = None, interpolation: str = "log_alpha",
) -> VPBetas:  # fmt: skip
    """VP from a table of betas, or from a named one of length `steps`; samples from the last index to -1 (clean data).

    schedule: "linear" (DDPM), "scaled_linear" (linear in sqrt(beta), Stable Diffusion), "squaredcos_cap_v2" (cosine), "ddgan" or
    "prodiff". terminal: rescale the table to zero terminal SNR (Lin et al. 2024), then set the last alpha^2 to this value: 0, or
    diffusers' 2^-24 for solvers that need a finite lambda. interpolation: see `VPBetas`.
    """
    if betas is None:
        if schedule not in SCHEDULES:
            raise ProgramError(f"vp_betas: no schedule {schedule!r}: {nearest(schedule, SCHEDULES)}", Status.UNKNOWN_NAME)
        _require(isinstance(steps, int) and steps >= 1, f"vp_betas: expected steps >= 1, found {steps!r}")
        table = SCHEDULES[schedule](beta_start, beta_end, steps)
    else:
        table = np.asarray(betas, np.float64)
    _require(interpolation in ("log_alpha", "sigma", "log_sigma"), f"vp_betas: interpolation {interpolation!r}: log_alpha, sigma or log_sigma")
    _require(table.ndim == 1 and len(table) >= 1, f"vp_betas: expected a list of betas, found shape {table.shape}")
    _require(
        bool(np.all((table > 0) & (table < 1))),
        "vp_betas: every beta must be in (0, 1): a table that reaches 1 (zero terminal SNR) is made with `terminal = 0` from one that does not",
    )
    logs = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-table))])
    if terminal is not None:
        _require(0 <= terminal < 1 and len(table) > 1, f"vp_betas: expected 0 <= terminal < 1, found {terminal}")
        root = np.exp(logs[1:])
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        logs[1:-1] = np.log(root[:-1])
        logs[-1] = 0.5 * math.log(terminal) if terminal > 0 else -math.inf
    last = float(len(table) - 1)
    return VPBetas(last, -1.0, 0.0, -1.0, last, tuple(logs.tolist()), interpolation)


def mean_reverting(steps: int = 100, sigma_inf: float = 50.0 / 255.0, *, epsilon: float = 0.005, compat: bool = False) -> MeanReverting:
    """The mean-reverting process with the authors' cosine schedule: times are indices 0 .. `steps`, sampled from the last to 0.

    sigma_inf: the stationary standard deviation, > 0. epsilon: what alpha ends at. compat: see `MeanReverting`.
    """
    _require(isinstance(steps, int) and steps >= 1, f"mean_reverting: expected steps >= 1, found {steps!r}")
    _require(0 < sigma_inf < math.inf and 0 < epsilon < 1, f"mean_reverting: expected sigma_inf > 0, 0 < epsilon < 1, found {sigma_inf}, {epsilon}")
    bars = np.cos((np.arange(steps + 3) / (steps + 2) + 0.008) / 1.008 * math.pi / 2.0) ** 2
    theta = 1.0 - bars[1 : steps + 2] / bars[0]
    logs = math.log(epsilon) / theta.sum() * np.cumsum(theta)
    return MeanReverting(float(steps), 0.0, 0.0, 0.0, float(steps), tuple(logs.tolist()), float(sigma_inf), bool(compat))


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> VarianceExploding:
    """EDM / VE, time is sigma. 0 < sigma_min < sigma_max; samples from sigma_max to 0."""
    _require(0 < sigma_min < sigma_max < math.inf, f"edm: expected 0 < sigma_min < sigma_max, found {sigma_min} and {sigma_max}")
    return VarianceExploding(float(sigma_max), 0.0, float(sigma_min), 0.0, math.inf)


def flow(t_floor: float = 1e-3) -> Flow:
    """Straight-path flow, t in [0, 1], noise at 1; samples from 1 to 0. t_floor: the last noisy node of lambda grids."""
    _require(0 < t_floor < 1, f"flow: expected 0 < t_floor < 1, found {t_floor}")
    return Flow(1.0, 0.0, float(t_floor), 0.0, 1.0)


PROCESSES: dict[str, Callable[..., Process]] = {
    "vp_linear": vp_linear,
    "vp_cosine": vp_cosine,
    "vp_betas": vp_betas,
    "edm": edm,
    "ve": edm,
    "flow": flow,
    "mean_reverting": mean_reverting,
}


def make_process(name: str, **parameters: object) -> Process:
    """The process called `name` (a key of `PROCESSES`) with its parameters.

    Raises ProgramError for an unknown name or parameter, or a value out of range.
    """
    if name not in PROCESSES:
        raise ProgramError(f"no process {name!r}: {nearest(name, PROCESSES)}", Status.UNKNOWN_NAME)
    known = inspect.signature(PROCESSES[name]).parameters
    for parameter in parameters:
        if parameter not in known:
            raise ProgramError(f"process {name!r} has no parameter {parameter!r}: {nearest(parameter, known)}", Status.UNKNOWN_NAME)
    return PROCESSES[name](**parameters)
