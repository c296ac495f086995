"""Distance between final samples at equal seeds, and the gate that a quantized variant must pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Distance", "distance"]


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
