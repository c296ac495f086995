"""Denoisers known in closed form, exact solutions of their probability-flow ODE, and exact statistics of programs on Gaussian data:
independent of edgegen's own formulas (of a process they use alpha and sigma only).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy.integrate import solve_ivp

from edgegen.program import Eval, Imm, Lincomb, Noise, Program

WEIGHTS = np.array([0.3, 0.5, 0.2])
MEANS = np.array([-1.2, 0.4, 1.5])
DEVIATIONS = np.array([0.25, 0.35, 0.15])
MEAN = float(WEIGHTS @ MEANS)
X_T = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])


def mixture_noise(x, alpha, sigma):
    """E[eps | x_t = x] of the mixture, elementwise."""
    variance = alpha**2 * DEVIATIONS**2 + sigma**2
    d = np.asarray(x)[..., None] - alpha * MEANS
    logs = np.log(WEIGHTS) - 0.5 * np.log(variance) - 0.5 * d * d / variance
    r = np.exp(logs - logs.max(-1, keepdims=True))
    r /= r.sum(-1, keepdims=True)
    return sigma * (r * d / variance).sum(-1)


def gaussian_noise(mean, deviation):
    """E[eps | x_t = x] for data N(mean, deviation^2): affine in x."""

    def noise(x, alpha, sigma):
        return sigma * (x - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)

    return noise


def predicted(prediction, x, data, noise, alpha, sigma, sigma_data=0.5):
    """What a network of this prediction returns where it is told the state x and knows the data and the noise (0. of the specification)."""
    if prediction == "edm":
        rho = sigma / alpha
        c_skip, c_out = sigma_data**2 / (rho**2 + sigma_data**2), rho * sigma_data / np.sqrt(rho**2 + sigma_data**2)
        return (data - c_skip * x / alpha) / c_out
    table = {"epsilon": noise, "sample": data, "v": alpha * noise - sigma * data, "flow": noise - data, "score": -noise / sigma if sigma else noise}
    return table[prediction]


def network(process, prediction, noise_of=mixture_noise, sigma_data=0.5):
    """The exact network for a process and a prediction. One of edm receives c_in x / alpha, c_in = 1 / sqrt(rho^2 + sigma_data^2)."""

    def run(x, t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        if prediction == "edm":
            x = x * alpha * np.sqrt((sigma / alpha) ** 2 + sigma_data**2)
        noise = noise_of(x, alpha, sigma)
        data = (x - sigma * noise) / alpha if alpha > 0.0 else MEAN
        return predicted(prediction, x, data, noise, alpha, sigma, sigma_data)

    return run


def rho(process, t):
    return float(process.sigma(t) / process.alpha(t))


@lru_cache(maxsize=256)
def _flow(start, stop, values):
    def slope(s, v):
        # the same marginals in EDM coordinates: alpha = 1, sigma = rho
        return np.exp(s) * mixture_noise(v, 1.0, np.exp(s))

    solution = solve_ivp(slope, (start, stop), np.array(values), method="DOP853", rtol=3e-14, atol=1e-14)
    return solution.y[:, -1]


def exact_flow(process, x, first, last):
    """The probability-flow ODE d(x / alpha) = eps d(sigma / alpha) from t = first to t = last, by DOP853 over ln rho."""
    scaled = tuple((np.asarray(x) / float(process.alpha(first))).tolist())
    return _flow(np.log(rho(process, first)), np.log(rho(process, last)), scaled) * float(process.alpha(last))


def slopes(errors):
    """log2 of the ratios of successive errors: the observed orders when each has twice the steps of the one before."""
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


def gaussian_law(process, t, mean, deviation):
    """Mean and standard deviation of x_t = alpha x_0 + sigma eps for data N(mean, deviation^2)."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    return alpha * mean, float(np.hypot(alpha * deviation, sigma))


def affine_outputs(
    program: Program, networks: Mapping[str, Callable], start: tuple[float, float] = (0.0, 1.0), conditions: Mapping[str, float] | None = None
) -> dict[str, np.ndarray]:
    """The program's outputs where its networks are affine in all their inputs but the times: no Monte Carlo.

    Every register is [constant, weight of draw 0 (x_T), weight of draw 1, ...], the draws being independent standard normals.
    start: mean and standard deviation of x_T. conditions: what the other inputs hold. A latent is one number; a clamp is taken as
    wide enough to do nothing.
    """
    draws = max([i.draw for i in program.instructions if isinstance(i, Noise)], default=0)
    unit = np.eye(draws + 2)
    registers = {"x_T": start[0] * unit[0] + start[1] * unit[1]}
    registers |= {name: value * unit[0] for name, value in (conditions or {}).items()}
    for i in program.instructions:
        if isinstance(i, Eval):
            for branch in range(i.branches):
                times = {name: o[branch].value for name, o in i.inputs.items() if isinstance(o[branch], Imm)}
                given = {name: o[branch].scale * registers[o[branch].name] for name, o in i.inputs.items() if name not in times}
                for name, targets in i.outputs.items():
                    registers[targets[branch]] = _affine(networks[i.component], given, times, unit[0], name)
        elif isinstance(i, Lincomb):
            registers[i.out] = sum(c * registers[name] for c, name in i.terms) + i.bias * unit[0]
        elif isinstance(i, Noise):
            registers[i.out] = unit[i.draw + 1].copy()
        elif type(i).__name__ == "Clamp":
            registers[i.out] = registers[i.x]
        elif type(i).__name__ == "Muladd":
            registers[i.out] = i.scale[0] * registers[i.x] + i.shift[0] * unit[0]
        else:
            raise TypeError(f"{type(i).__name__} is not affine")
    return {name: registers[register] for name, register in program.outputs.items()}


def _affine(call, given, times, one, output):
    def value(**inputs):
        result = call(**inputs, **times)
        return float(result[output] if isinstance(result, dict) else result)

    at_zero = value(**dict.fromkeys(given, 0.0))
    total = at_zero * one
    for name, register in given.items():
        total = total + (value(**(dict.fromkeys(given, 0.0) | {name: 1.0})) - at_zero) * register
    return total


def affine_statistics(program, networks, start=(0.0, 1.0), conditions=None, output="sample"):
    """Exact mean and standard deviation of an output; see `affine_outputs`."""
    out = affine_outputs(program, networks, start, conditions)[output]
    return float(out[0]), float(np.sqrt(np.sum(out[1:] ** 2)))


def changed(program: Program, which: int, change: Callable) -> Program:
    """The program with its LINCOMB number `which` (negative: from the end) replaced by one with the terms change(terms): a negative
    control's broken program.
    """
    places = [k for k, i in enumerate(program.instructions) if isinstance(i, Lincomb)]
    place = places[which]
    old = program.instructions[place]
    broken = replace(old, terms=tuple(change(old.terms)))
    assert broken != old
    return replace(program, instructions=(*program.instructions[:place], broken, *program.instructions[place + 1 :]))


def everywhere(program: Program, change: Callable) -> Program:
    """The program with every LINCOMB's terms replaced by change(terms)."""
    broken = tuple(replace(i, terms=tuple(change(i.terms))) if isinstance(i, Lincomb) else i for i in program.instructions)
    assert broken != program.instructions
    return replace(program, instructions=broken)
