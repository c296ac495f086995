"""Denoisers known in closed form, and exact solutions of their probability-flow ODE: independent of edgegen's own formulas."""

from __future__ import annotations

import numpy as np
from scipy.integrate import solve_ivp

WEIGHTS = np.array([0.3, 0.5, 0.2])
MEANS = np.array([-1.2, 0.4, 1.5])
DEVIATIONS = np.array([0.25, 0.35, 0.15])
X_T = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])


def mixture_noise(x, alpha, sigma):
    """E[eps | x_t = x] of the mixture, elementwise."""
    variance = alpha**2 * DEVIATIONS**2 + sigma**2
    d = np.asarray(x)[..., None] - alpha * MEANS
    logs = np.log(WEIGHTS) - 0.5 * np.log(variance) - 0.5 * d * d / variance
    r = np.exp(logs - logs.max(-1, keepdims=True))
    r /= r.sum(-1, keepdims=True)
    return sigma * (r * d / variance).sum(-1)


def network(process, prediction):
    """The mixture's exact network for a process (its alpha and sigma only) and a prediction."""

    def run(x, t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        noise = mixture_noise(x, alpha, sigma)
        if prediction == "epsilon":
            return noise
        data = (x - sigma * noise) / alpha
        return {"sample": data, "v": alpha * noise - sigma * data, "flow": noise - data}[prediction]

    return run


def exact_flow(process, x, first, last):
    """The probability-flow ODE d(x / alpha) = eps d(sigma / alpha) from t = first to t = last, by DOP853 over ln rho."""

    def rho(t):
        return float(process.sigma(t) / process.alpha(t))

    def slope(s, v):
        r = np.exp(s)
        # the same marginals in EDM coordinates: alpha = 1, sigma = rho
        return r * mixture_noise(v, 1.0, r)

    start, stop = np.log(rho(first)), np.log(rho(last))
    solution = solve_ivp(slope, (start, stop), x / float(process.alpha(first)), method="DOP853", rtol=1e-12, atol=1e-13)
    return solution.y[:, -1] * float(process.alpha(last))
