"""GL-LCM: bone suppression in chest X-rays by two paths of one network. Source: Sun et al. 2025, code of diaoquesang/GL-LCM.

A global path conditioned on the image and a local path conditioned on its masked lungs start from the same noise; the local path's
noise estimate is sharpened by local-enhanced guidance, eps <- a eps + (1 - a) z / std(eps).
"""

from __future__ import annotations

from itertools import pairwise

from edgegen.diffusion import Process
from edgegen.errors import ProgramError, Status
from edgegen.program import Clamp, Concat, Muladd, Program, Reduce, Scalar, Select, Slincomb
from edgegen.solvers.consistency import boundary_scalings
from edgegen.solvers.lowering import Grid, Lowering, Prediction

__all__ = ["gl_lcm"]


def gl_lcm(
    process: Process, prediction: Prediction, grid: Grid, *, guidance: float = 3.0, clip_global: float = 2.0, clip_local: float = 3.5,
    clip_growth: float = 0.025, fuse: bool = True, timestep_scaling: float = 10.0,
) -> Program:  # fmt: skip
    """LCM steps of both paths, in one batch of two; the network sees each state joined to its condition along axis 1.

    Conditions: `global_condition` and `local_condition`, shaped as the state, and with `fuse` a `mask` of one channel or of the state's.
    guidance: a above. clip_global, clip_local: x0 is clamped to +-(clip + clip_growth * step).
    Outputs: `global` and `local`; `sample` is their fusion (with `fuse`: inside the mask the local one, moved to the global one's mean
    there) or the global one. The authors' Poisson blending of the two on 8-bit pictures is the application's.
    """
    if prediction.kind != "epsilon" or prediction.limited or prediction.mix:
        raise ProgramError(f"gl_lcm needs a network of epsilon, without clip or threshold; found {prediction.kind!r}", Status.OUT_OF_RANGE)
    p = Lowering("gl_lcm", process, prediction, grid)
    if any(node.alpha == 0.0 for node in p.nodes):
        raise ProgramError(
            "gl_lcm estimates x0 by dividing by alpha, which is 0 at a time of this grid; use a process as vp_betas", Status.OUT_OF_RANGE
        )
    conditions = p.condition("global_condition"), p.condition("local_condition")
    mask = p.condition("mask") if fuse else None
    states = (p.x, p.x)
    for i, (s, t) in enumerate(pairwise(p.nodes)):
        joined = [_joined(p, x, c) for x, c in zip(states, conditions, strict=True)]
        noise_global, noise_local = p.branched_network(s, (joined[0], joined[1]))
        noise_local = _enhanced(p, noise_local, guidance)
        skip, out = boundary_scalings(process, s.time, timestep_scaling)
        last = i == p.steps - 1
        made = []
        for x, noise, clip in zip(states, (noise_global, noise_local), (clip_global, clip_local), strict=True):
            x0 = _clamped(p, p.combine([(1.0 / s.alpha, x), (-s.sigma / s.alpha, noise)]), clip + clip_growth * i)
            scale = 1.0 if last else t.alpha
            made.append(p.combine([(scale * out, x0), (scale * skip, x), *([] if last else [(t.sigma, p.noise())])]))
        states = (made[0], made[1])
        p.advance(states[0], t)
    if mask is None:
        return p.finish(**{"global": states[0], "local": states[1]})
    return p.finish(sample=_fused(p, *states, mask), **{"global": states[0], "local": states[1]})


def _joined(p: Lowering, x: str, condition: str) -> str:
    return p.emit(lambda out: Concat(out, (x, condition)))


def _clamped(p: Lowering, x0: str, bound: float) -> str:
    return p.emit(lambda out: Clamp(out, x0, -bound, bound))


def _enhanced(p: Lowering, noise: str, a: float) -> str:
    if a == 1.0:
        return noise
    spread = p.emit(lambda out: Reduce(out, "std", noise), "s")
    inverse = p.emit(lambda out: Scalar(out, "div", 1.0, spread), "s")
    fresh = p.noise()
    return p.emit(lambda out: Slincomb(out, ((a, noise, None), (1.0 - a, fresh, inverse))))


def _fused(p: Lowering, whole: str, local: str, mask: str) -> str:
    """Inside the mask the local picture, shifted to the global one's mean there; outside, the global one."""
    mean_whole = p.emit(lambda out: Reduce(out, "mean", whole, mask), "s")
    mean_local = p.emit(lambda out: Reduce(out, "mean", local, mask), "s")
    shift = p.emit(lambda out: Scalar(out, "sub", mean_whole, mean_local), "s")
    ones = _ones(p, whole)
    moved = p.emit(lambda out: Slincomb(out, ((1.0, local, None), (1.0, ones, shift))))
    return p.emit(lambda out: Select(out, mask, moved, whole))


def _ones(p: Lowering, like: str) -> str:
    """A tensor of ones: 0 times a finite tensor, plus 1."""
    return p.emit(lambda out: Muladd(out, like, (0.0,), (1.0,)))
