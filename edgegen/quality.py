"""How far samples are from a reference, one by one and as two sets, and the gate that a quantized variant must pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import RuntimeFault, Status

__all__ = ["Bounds", "Distance", "Verdict", "distance", "frechet", "relative_errors"]


@dataclass(frozen=True, slots=True)
class Distance:
    """How far samples are from the reference. psnr_db is relative to the sample range; +inf where they are equal."""

    psnr_db: float
    rmse: float
    max_abs: float


def distance(reference: npt.NDArray[Any], candidate: npt.NDArray[Any], span: float) -> Distance:
    """Compare samples of equal shape. span: high - low of the sample range, > 0."""
    difference = np.asarray(candidate, np.float64) - np.asarray(reference, np.float64)
    rmse = float(np.sqrt(np.mean(difference**2)))
    psnr = math.inf if rmse == 0.0 else 20.0 * math.log10(span / rmse)
    return Distance(psnr, rmse, float(np.max(np.abs(difference))))


def relative_errors(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """||candidate_i - reference_i|| / ||reference_i|| of each sample, float64[N], for arrays [N, ...] of equal shape.

    0 where both are 0; inf where only the reference is.
    """
    a, b = (np.asarray(array, np.float64).reshape(len(array), -1) for array in (reference, candidate))
    difference, size = np.linalg.norm(b - a, axis=1), np.linalg.norm(a, axis=1)
    errors: npt.NDArray[np.float64] = np.full(len(a), math.inf)
    np.divide(difference, size, where=size > 0.0, out=errors)
    errors[difference == 0.0] = 0.0
    return errors


def frechet(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Frechet distance of two Gaussians fitted to feature rows [N, D] and [M, D] (Heusel et al. 2017, equation 6).

    The trace of (Ca Cb)^(1/2) is taken of the symmetric Ca^(1/2) Cb Ca^(1/2), which has the same eigenvalues. With fewer rows than features it
    is far too large: compare it only with one of as many rows. Raises RuntimeFault (BAD_SHAPE) for other shapes, or fewer than two rows.
    """
    first, second = (np.asarray(array, np.float64) for array in (a, b))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1:] != second.shape[1:] or min(len(first), len(second)) < 2:
        message = f"Frechet distance: expected features [N, D] and [M, D] of at least two rows, found {list(first.shape)} and {list(second.shape)}"
        raise RuntimeFault(message, Status.BAD_SHAPE)
    mean = first.mean(0) - second.mean(0)
    ca, cb = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (first, second))
    values, vectors = np.linalg.eigh(ca)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cb @ root), 0.0)).sum()
    return float(mean @ mean + np.trace(ca) + np.trace(cb) - 2.0 * shared)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What samples are, and how they stand to their bounds. excess: the largest ratio of a figure to its bound; up to 1 they pass.

    relative_error: the mean of ||sample - reference|| / ||reference||. quality: of the samples, by the user's function; None without one.
    """

    psnr_db: float
    relative_error: float
    max_abs: float
    quality: float | None
    excess: float
    why: str

    @property
    def passed(self) -> bool:
        """Whether all bounds hold."""
        return self.excess <= 1.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a variant's samples must reach. span: high - low of the sample range. quality: (samples, conditions) -> number, higher is better.

    psnr_db: at least; relative_error: at most; quality_loss: what quality may be below the reference's, at most.
    """

    span: float
    psnr_db: float
    relative_error: float | None = None
    quality: Callable[[npt.NDArray[Any], Mapping[str, npt.NDArray[Any]]], float] | None = None
    quality_loss: float = 0.0

    def budget(self, reference: npt.NDArray[Any]) -> float:
        """The relative error that samples may have: as it is bounded, else what the bound in decibels is of this reference."""
        if self.relative_error is not None:
            return self.relative_error
        size = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
        return self.span * math.pow(10.0, -self.psnr_db / 20.0) / size

    def judge(self, reference: npt.NDArray[Any], samples: npt.NDArray[Any], conditions: Mapping[str, npt.NDArray[Any]]) -> Verdict:
        """Compare samples of equal shape, made from equal noise and `conditions`."""
        found, relative = distance(reference, samples, self.span), float(relative_errors(reference, samples).mean())
        excess = [10.0 ** ((self.psnr_db - found.psnr_db) / 20.0)]
        texts = [f"{found.psnr_db:.1f} dB, the gate asks {self.psnr_db:.1f} dB"]
        if self.relative_error is not None:
            excess.append(relative / self.relative_error)
            texts.append(f"relative error {relative:.4f}, the gate allows {self.relative_error:.4f}")
        own = None
        if self.quality is not None:
            own, best = float(self.quality(samples, conditions)), float(self.quality(reference, conditions))
            lost = max(best - own, 0.0)
            excess.append(lost / self.quality_loss if self.quality_loss > 0.0 else (0.0 if lost == 0.0 else math.inf))
            texts.append(f"quality {own:.4g} of {best:.4g}, the gate allows a loss of {self.quality_loss:.4g}")
        worst = max(excess) if all(not math.isnan(e) for e in excess) else math.inf
        return Verdict(found.psnr_db, relative, found.max_abs, own, worst, "; ".join(texts))
