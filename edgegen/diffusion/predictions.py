"""What a network predicts, and how that becomes the data x0 or the noise eps: always a combination of x and the output.

With x = alpha x0 + sigma eps and rho = sigma / alpha:

    epsilon -> eps                      sample -> x0                  score -> -eps / sigma
    v -> alpha eps - sigma x0           (Salimans and Ho 2022)        flow -> eps - x0 (rectified flow)
    edm -> F, where x0 = c_skip x / alpha + c_out F and the network's input is c_in x / alpha (Karras et al. 2022, table 1);
    edm_v -> the same with the opposite sign of c_out, as networks distilled from v-prediction have it

An average velocity (MeanFlow) is the mean of eps - x0 over a step, and determines neither: only solver `meanflow` reads it.
"""

from __future__ import annotations

import math
from typing import Any

from edgegen.errors import ProgramError, Status, nearest

__all__ = ["PREDICTIONS", "convert", "data_coefficients", "input_scale", "noise_coefficients", "output_coefficients"]

PREDICTIONS = ("epsilon", "sample", "v", "flow", "score", "edm", "edm_v", "average_velocity")
SIGMA_DATA = 0.5

Pair = tuple[float, float]


def output_coefficients(prediction: str, alpha: float, sigma: float, sigma_data: float = SIGMA_DATA) -> Pair:
    """(c_data, c_noise) with output = c_data x0 + c_noise eps: the definition of each prediction. sigma_data: of edm, > 0."""
    if prediction in ("edm", "edm_v"):
        return _edm_coefficients(alpha, sigma, sigma_data if prediction == "edm" else -sigma_data)
    if prediction == "average_velocity":
        raise ProgramError("an average velocity gives neither the data nor the noise; only solver 'meanflow' reads it", Status.OUT_OF_RANGE)
    table = {
        "epsilon": (0.0, 1.0), "sample": (1.0, 0.0), "v": (-sigma, alpha), "flow": (-1.0, 1.0),
        "score": (0.0, -1.0 / sigma if sigma > 0 else -math.inf),
    }  # fmt: skip
    if prediction not in table:
        raise ProgramError(f"no prediction {prediction!r}: {nearest(prediction, PREDICTIONS)}", Status.UNKNOWN_NAME)
    return table[prediction]


def _edm_coefficients(alpha: float, sigma: float, sigma_data: float) -> Pair:
    """F = (x0 - c_skip x / alpha) / c_out; a negative sigma_data flips the sign of c_out."""
    if alpha == 0.0 or sigma == 0.0:
        return math.inf, math.inf
    rho, total = sigma / alpha, math.hypot(sigma / alpha, sigma_data)
    c_skip, c_out = (sigma_data / total) ** 2, rho * sigma_data / total
    return (1.0 - c_skip) / c_out, -c_skip * rho / c_out


def input_scale(prediction: str, alpha: float, sigma: float, sigma_data: float = SIGMA_DATA) -> float:
    """What the state is multiplied by before the network sees it: EDM's c_in / alpha, else 1."""
    return 1.0 / math.hypot(sigma, alpha * sigma_data) if prediction in ("edm", "edm_v") else 1.0


def _solve(prediction: str, alpha: float, sigma: float, sigma_data: float, *, data: bool) -> Pair:
    """Solve {x = alpha x0 + sigma eps, out = d x0 + n eps} for x0 or eps: coefficients of (x, out)."""
    d, n = output_coefficients(prediction, alpha, sigma, sigma_data)
    determinant = alpha * n - sigma * d
    if determinant == 0.0 or not math.isfinite(determinant):
        wanted = "the data" if data else "the noise"
        raise ProgramError(
            f"a network that predicts {prediction!r} says nothing about {wanted} at alpha = {alpha}, sigma = {sigma}; "
            f"start or end the grid just inside this time, or use another prediction",
            Status.OUT_OF_RANGE,
        )
    return (n / determinant, -sigma / determinant) if data else (-d / determinant, alpha / determinant)


def data_coefficients(prediction: str, alpha: float, sigma: float, sigma_data: float = SIGMA_DATA) -> Pair:
    """(c_x, c_out) with x0 = c_x x + c_out output. Raises ProgramError where the output does not determine x0 (alpha = 0, epsilon)."""
    return (0.0, 1.0) if prediction == "sample" else _solve(prediction, alpha, sigma, sigma_data, data=True)


def noise_coefficients(prediction: str, alpha: float, sigma: float, sigma_data: float = SIGMA_DATA) -> Pair:
    """(c_x, c_out) with eps = c_x x + c_out output. Raises ProgramError where the output does not determine eps (sigma = 0, sample)."""
    return (0.0, 1.0) if prediction == "epsilon" else _solve(prediction, alpha, sigma, sigma_data, data=False)


def convert(output: Any, x: Any, alpha: float, sigma: float, source: str, target: str) -> Any:
    """The network output `output` at state `x`, predicted as `source`, expressed as `target`. Works on floats and arrays."""
    d, n = output_coefficients(target, alpha, sigma)
    if source == target:
        return output
    if target == "sample" or n == 0.0:
        c_x, c_out = data_coefficients(source, alpha, sigma)
        return d * (c_x * x + c_out * output)
    if target == "epsilon" or d == 0.0:
        c_x, c_out = noise_coefficients(source, alpha, sigma)
        return n * (c_x * x + c_out * output)
    data, noise = data_coefficients(source, alpha, sigma), noise_coefficients(source, alpha, sigma)
    return (d * data[0] + n * noise[0]) * x + (d * data[1] + n * noise[1]) * output
