"""Float weights and the second moments of their inputs -> integer codes and scales, by nearest rounding, GPTQ or AdaRound.

A layer computes y = W x. Its expected squared output error is tr((W - Wq) H (W - Wq)^T) with H = E[x x^T] (edgegen.quantize.hessian),
which GPTQ and AdaRound make small; every output channel is a problem of its own. Arithmetic is float64, but for AdaRound's iterations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgegen.errors import CalibrationError, Status
from edgegen.quantize.scales import SMALLEST_SCALE

__all__ = ["Clip", "Codes", "adaround", "gptq", "nearest", "weighted_error"]

Clip = Literal["absmax", "mse"]
"""How a scale is chosen: the largest magnitude gets the largest code, or the multiple of that scale with the smallest squared error."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_RATIOS = tuple(1.0 - 0.05 * i for i in range(13))
"""Multiples of the absmax scale that clip "mse" tries, 1 to 0.4; of equal ones the first wins."""
_CHUNK = 64
"""Columns whose errors are spread to each other one by one; to later columns they go in one matrix product per chunk."""
_LOW, _HIGH = -0.1, 1.1
_BETA = (20.0, 2.0)
_WARM_UP, _REGULARIZER = 0.2, 0.03
"""AdaRound's constants: the stretch of its sigmoid, the exponent's way, the share of iterations without regulariser, its mean weight."""
_RATE = 0.05
"""Adam's step. With a row's loss counted in units of its loss at nearest rounding, 1000 such iterations end closer than 20000 of 0.001."""


@dataclass(frozen=True, slots=True)
class Codes:
    """An integer weight: `codes` times `scale`.

    codes: int8 of the weight's shape, -(2**(bits-1) - 1) .. 2**(bits-1) - 1. scale: float32, positive and finite: [channels] along
    `axis` (the output channels), or, with `block` > 0, [channels, blocks] over the other axes flattened in memory order with `axis`
    moved to the front: K numbers per channel, blocks = ceil(K / block).
    """

    codes: npt.NDArray[np.int8]
    scale: Floats
    bits: int
    axis: int
    block: int = 0

    def values(self) -> Floats:
        """The weight that the codes stand for, float32, as DequantizeLinear computes it."""
        front = np.moveaxis(self.codes, self.axis, 0)
        rows = front.reshape(len(front), -1).astype(np.float32)
        scale = self.scale.reshape(len(rows), -1)
        if self.block:
            scale = np.repeat(scale, self.block, axis=1)[:, : rows.shape[1]]
        return np.ascontiguousarray(np.moveaxis((rows * scale).reshape(front.shape), 0, self.axis))


def nearest(
    weight: npt.NDArray[Any], axis: int, bits: int, block: int = 0, *, clip: Clip = "absmax", hessian_diagonal: npt.NDArray[Any] | None = None
) -> Codes:
    """`weight` rounded to the nearest codes, half to even.

    weight: floats, any rank; axis: its output channels; bits: 2 to 8; block: numbers of a channel that share a scale, 0 for all of them.
    hessian_diagonal: what clip "mse" weighs the squared errors with: [K], or [groups, K] for a grouped convolution; None for all alike.
    Raises CalibrationError: NaN or infinity, a hessian_diagonal of another shape or with negative numbers, or such an argument.
    """
    rows = _rows(weight, axis, bits, block)
    channels, width = rows.shape
    importance = np.ones((1, width))
    if hessian_diagonal is not None:
        importance = np.atleast_2d(np.asarray(hessian_diagonal, np.float64))
        if importance.ndim != 2 or importance.shape[1] != width or channels % len(importance):
            raise CalibrationError(_shape_message("Hessian's diagonal", "[K] or [groups, K]", np.shape(hessian_diagonal), channels, width))
        if not (np.isfinite(importance).all() and (importance >= 0).all()):
            raise CalibrationError("a Hessian's diagonal holds NaN, infinity or a negative number; collect it again", Status.NONFINITE)
    importance = np.repeat(importance, channels // len(importance), axis=0)
    size, top = block or width, _top(bits)
    scale = np.stack([_scales(rows[:, a : a + size], importance[:, a : a + size], top, clip, 1) for a in range(0, width, size)], axis=1)
    codes = np.clip(np.rint(rows / np.repeat(scale, size, axis=1)[:, :width]), -top, top)
    return _codes(codes, scale, weight.shape, axis, bits, block)


def gptq(
    weight: npt.NDArray[Any], axis: int, hessian: npt.NDArray[Any], bits: int, block: int = 0, *,
    damping: float = 0.01, clip: Clip = "mse", activation_order: bool = True, passes: int = 2,
) -> Codes:  # fmt: skip
    """`weight` rounded input by input, each input's error made up for by those that come after it: Frantar et al. 2022 (GPTQ).

    With the factor H + damping * mean(diag H) = V V^T, V upper triangular, that is to round w_j + sum_{i<j} (w_i - q_i) V_ij / V_jj:
    Babai's nearest plane. A block's scale is chosen when its turn comes, from the numbers as they are then. `passes` rounds of
    coordinate descent follow (Behdin et al. 2023, QuantEase), each code set to its best value given all others. A channel for which
    nearest rounding with the same clip is better keeps it. An input that was always 0 is rounded to nearest.

    weight, axis, bits, block: as `nearest` takes them. hessian: [K, K] symmetric, or [groups, K, K] of a grouped convolution. clip: "mse"
    weighs with the Hessian's diagonal. activation_order: start with the inputs of the largest mean square; blocks keep memory order.
    Raises CalibrationError as `nearest` does, and for a Hessian of another shape, with NaN, not symmetric or not positive.
    """
    problem = _Problem(weight, axis, hessian, bits, block, damping, clip)
    by_activation = activation_order and not block
    diagonal = _diagonal(problem.damped)
    order = np.argsort(-diagonal, axis=1, kind="stable") if by_activation else np.tile(np.arange(problem.width), (len(diagonal), 1))
    codes, scale = problem.spread(order)
    problem.descend(codes, scale, passes)
    return problem.better(codes, scale)


def adaround(
    weight: npt.NDArray[Any], axis: int, hessian: npt.NDArray[Any], bits: int, block: int = 0, *,
    iterations: int = 1000, damping: float = 0.01, clip: Clip = "mse", passes: int = 2,
) -> Codes:  # fmt: skip
    """`weight` with each number rounded down or up as a gradient descent on the layer's output error decides: Nagel et al. 2020 (AdaRound).

    h = clip(1.2 sigmoid(v) - 0.1, 0, 1) is added to floor(w / scale); Adam minimises a channel's error, in units of that of nearest
    rounding, plus sum_j c_j (1 - |2 h_j - 1|^beta), beta going linearly from 20 to 2 once the first fifth of the iterations has run without
    it. c_j is 0.03 on average and goes with H_jj: what matters most settles first, and the rest can still make up for it (the paper's
    one c for all ends farther from the optimum where inputs differ in size). Arguments, coordinate descent, fallback and errors are as
    in `gptq`; the scales are those of `nearest`. Nothing is drawn at random.
    """
    problem = _Problem(weight, axis, hessian, bits, block, damping, clip)
    scale = problem.start_scale
    codes = problem.relaxed(scale, iterations)
    problem.descend(codes, scale, passes)
    return problem.better(codes, scale)


def weighted_error(weight: npt.NDArray[Any], codes: Codes, hessian: npt.NDArray[Any]) -> Doubles:
    """The expected squared error of each output channel, (w - wq) H (w - wq)^T, float64 [channels]. hessian: as `gptq` takes it.

    Raises CalibrationError as `gptq` does.
    """
    rows = _rows(weight, codes.axis, codes.bits, codes.block)
    hessian = _hessian(hessian, *rows.shape)
    difference = rows - _rows(codes.values(), codes.axis, codes.bits, codes.block)
    return _errors(hessian, _grouped(difference, len(hessian))).reshape(-1)


class _Problem:
    """One layer's weight as [groups, K, channels of a group], with its Hessians, raw and damped, scaled to a mean diagonal of 1."""

    def __init__(self, weight: npt.NDArray[Any], axis: int, hessian: npt.NDArray[Any], bits: int, block: int, damping: float, clip: Clip) -> None:
        rows = _rows(weight, axis, bits, block)
        if not (math.isfinite(damping) and damping >= 0.0):
            raise CalibrationError(f"damping: expected a finite number of at least 0, found {damping}")
        self.hessian = _hessian(hessian, *rows.shape)
        self.shape, self.axis, self.bits, self.block, self.clip = weight.shape, axis, bits, block, clip
        self.top, self.width = _top(bits), rows.shape[1]
        diagonal = _diagonal(self.hessian)
        mean = diagonal.mean(axis=1)[:, None, None]
        self.hessian = self.hessian / np.where(mean > 0.0, mean, 1.0)
        self.damped = self.hessian.copy()
        inputs = np.arange(self.width)
        self.damped[:, inputs, inputs] += np.where(diagonal == 0.0, 1.0, damping)
        self.weight = _grouped(rows, len(self.hessian))
        self.start = nearest(weight, axis, bits, block, clip=clip, hessian_diagonal=_diagonal(self.hessian))
        self.start_codes = _grouped(_rows(self.start.codes, axis, bits, block), len(self.hessian))
        self.start_scale = _grouped(self.start.scale.reshape(len(rows), -1).astype(np.float64), len(self.hessian))

    def steps(self, scale: Doubles) -> Doubles:
        """The scale of every number, [groups, K, channels], from [groups, blocks, channels]."""
        return np.repeat(scale, self.block or self.width, axis=1)[:, : self.width]

    def spread(self, order: npt.NDArray[np.int64]) -> tuple[Doubles, Doubles]:
        """GPTQ's codes and scales, [groups, K, channels] and [groups, blocks, channels]. order: of the inputs, [groups, K]."""
        places = order[:, :, None]
        weight = np.take_along_axis(self.weight, places, axis=1)
        importance = _diagonal(self.hessian)[:, :, None]
        factor = _upper_factor(np.take_along_axis(np.take_along_axis(self.damped, places, axis=1), order[:, None, :], axis=2))
        share = np.ascontiguousarray(np.swapaxes(factor / _diagonal(factor)[:, None, :], 1, 2))
        codes, difference, scale = np.empty_like(weight), np.empty_like(weight), self.start_scale.copy()
        chunk = self.block or _CHUNK
        for a in range(0, self.width, chunk):
            b = min(a + chunk, self.width)
            owed = share[:, a:b, :a] @ difference[:, :a]
            wanted = weight[:, a:b] + owed
            if self.block:
                current = weight[:, a:b] + np.linalg.solve(share[:, a:b, a:b], owed)  # if the block's own errors were 0
                scale[:, a // chunk] = _scales(current, importance[:, a:b], self.top, self.clip, 1)
            step = scale[:, a // chunk if self.block else 0]
            for j in range(a, b):
                target = wanted[:, j - a] + (share[:, j : j + 1, a:j] @ difference[:, a:j])[:, 0]
                codes[:, j] = np.clip(np.rint(target / step), -self.top, self.top)
                difference[:, j] = weight[:, j] - codes[:, j] * step
        ordered = np.empty_like(codes)
        np.put_along_axis(ordered, places, codes, axis=1)
        return ordered, scale

    def descend(self, codes: Doubles, scale: Doubles, passes: int) -> None:
        """Coordinate descent on the damped error, in place: each code in turn to the best value given the others."""
        coupling = self.damped / _diagonal(self.damped)[:, :, None]
        step = self.steps(scale)
        difference = self.weight - codes * step
        for _ in range(passes):
            for a in range(0, self.width, _CHUNK):
                b = min(a + _CHUNK, self.width)
                slope = coupling[:, a:b] @ difference
                moved = np.zeros_like(slope)
                for j in range(a, b):
                    now = slope[:, j - a] + (coupling[:, j : j + 1, a:j] @ moved[:, : j - a])[:, 0]
                    best = np.clip(np.rint(codes[:, j] + now / step[:, j]), -self.top, self.top)
                    moved[:, j - a] = (codes[:, j] - best) * step[:, j]
                    codes[:, j] = best
                difference[:, a:b] += moved

    def relaxed(self, scale: Doubles, iterations: int) -> Doubles:
        """AdaRound's codes, [groups, K, channels], for the given scales."""
        _upper_factor(self.damped)  # without one the loss has no minimum
        step = self.steps(scale)
        exact = self.weight / step
        low = np.clip(np.floor(exact), -self.top, self.top - 1)
        unit = (step / step.max(axis=1, keepdims=True)).astype(np.float32)
        rest = (exact - low).astype(np.float32)
        hessian = self.damped.astype(np.float32)
        rounded = (exact - np.clip(np.rint(exact), -self.top, self.top)).astype(np.float32) * unit
        loss = _errors(hessian, rounded)[:, None, :]
        share = _diagonal(self.damped)[:, :, None] * unit.astype(np.float64) ** 2
        pull = (2.0 * _REGULARIZER * share / share.mean(axis=1, keepdims=True)).astype(np.float32)
        push = -2.0 * unit / np.where(loss > 0.0, loss, 1.0).astype(np.float32)
        start = np.clip(rest, 1e-3, 1.0 - 1e-3)
        v = np.log((start - _LOW) / (_HIGH - start))
        mean, square = np.zeros_like(v), np.zeros_like(v)
        warm_up = int(_WARM_UP * iterations)
        for i in range(iterations):
            sigmoid = 1.0 / (1.0 + np.exp(-v))
            stretched = sigmoid * (_HIGH - _LOW) + _LOW
            h = np.clip(stretched, 0.0, 1.0)
            gradient = (hessian @ ((rest - h) * unit)) * push
            if i >= warm_up:
                beta = _BETA[0] + (_BETA[1] - _BETA[0]) * (i - warm_up) / (iterations - warm_up)
                u = 2.0 * h - 1.0
                gradient -= pull * beta * np.abs(u) ** (beta - 1.0) * np.sign(u)
            gradient *= (_HIGH - _LOW) * sigmoid * (1.0 - sigmoid) * (stretched == h)
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (gradient * gradient - square)
            v -= _RATE / (1.0 - 0.9 ** (i + 1)) * mean / (np.sqrt(square / (1.0 - 0.999 ** (i + 1))) + 1e-8)
        codes: Doubles = low + (v >= 0.0)
        return codes

    def better(self, codes: Doubles, scale: Doubles) -> Codes:
        """The codes, or the nearest ones for the channels where these have the smaller error under the raw Hessian."""
        found = _errors(self.hessian, self.weight - codes * self.steps(scale))
        before = _errors(self.hessian, self.weight - self.start_codes * self.steps(self.start_scale))
        worse = (before < found)[:, None, :]
        kept, scale = np.where(worse, self.start_codes, codes), np.where(worse, self.start_scale, scale)
        rows, scales = (np.swapaxes(a, 1, 2).reshape(-1, a.shape[1]) for a in (kept, scale))
        return _codes(rows, scales, self.shape, self.axis, self.bits, self.block)


def _top(bits: int) -> int:
    """The largest code."""
    return int(2 ** (bits - 1)) - 1


def _rows(weight: npt.NDArray[Any], axis: int, bits: int, block: int) -> Doubles:
    """The weight as float64 [channels, K], after checking the arguments."""
    if not 2 <= bits <= 8:
        raise CalibrationError(f"bits: expected 2 to 8, found {bits}")
    if block < 0:
        raise CalibrationError(f"block: expected the numbers that share a scale, or 0 for a whole channel, found {block}")
    if not 0 <= axis < weight.ndim or not weight.size:
        raise CalibrationError(f"axis {axis} of a weight of shape {list(weight.shape)}: expected one of its axes, and no empty one", Status.BAD_SHAPE)
    if not np.isfinite(weight).all():
        raise CalibrationError("a weight holds NaN or infinity and cannot be quantized; look at the model that it comes from", Status.NONFINITE)
    front = np.moveaxis(weight, axis, 0)
    rows: Doubles = front.reshape(len(front), -1).astype(np.float64)
    return rows


def _hessian(hessian: npt.NDArray[Any], channels: int, width: int) -> Doubles:
    """The Hessian as float64 [groups, K, K], after checking it."""
    found = np.asarray(hessian, np.float64)
    groups = found[None] if found.ndim == 2 else found
    if groups.ndim != 3 or groups.shape[1:] != (width, width) or not len(groups) or channels % len(groups):
        raise CalibrationError(_shape_message("Hessian", "[K, K] or [groups, K, K]", np.shape(hessian), channels, width), Status.BAD_SHAPE)
    if not np.isfinite(groups).all():
        raise CalibrationError("the Hessian holds NaN or infinity: the calibration set's activations overflow; collect it anew", Status.NONFINITE)
    if (_diagonal(groups) < 0.0).any():
        raise CalibrationError("the Hessian is not positive: its diagonal, a mean of squares, has a negative number", Status.NONFINITE)
    if np.abs(groups - np.swapaxes(groups, 1, 2)).max() > 1e-4 * np.abs(groups).max():
        raise CalibrationError("the Hessian is not symmetric; expected the mean of x x^T, as HessianSum gives it")
    return groups


def _upper_factor(hessian: Doubles) -> Doubles:
    """The upper triangular V of H = V V^T, [groups, K, K]. Raises CalibrationError if there is none."""
    try:
        lower: Doubles = np.linalg.cholesky(hessian[:, ::-1, ::-1]).astype(np.float64, copy=False)
    except np.linalg.LinAlgError as e:
        raise CalibrationError(
            "the Hessian is not positive, damped as it is; raise the damping, or collect it anew: a mean of x x^T has no negative eigenvalues",
            Status.NONFINITE,
        ) from e
    return lower[:, ::-1, ::-1]


def _shape_message(what: str, wanted: str, found: tuple[int, ...], channels: int, width: int) -> str:
    return f"{what} of shape {list(found)}: expected {wanted} with K = {width}, and groups that divide the weight's {channels} channels"


def _diagonal(matrices: Doubles) -> Doubles:
    diagonal: Doubles = np.diagonal(matrices, axis1=1, axis2=2)
    return diagonal


def _grouped(rows: Doubles, groups: int) -> Doubles:
    """[channels, K] -> [groups, K, channels of a group]."""
    return np.ascontiguousarray(np.swapaxes(rows.reshape(groups, -1, rows.shape[1]), 1, 2))


def _errors(hessian: npt.NDArray[Any], difference: npt.NDArray[Any]) -> Doubles:
    """d^T H d of each channel, float64 [groups, channels of a group]."""
    return np.asarray((difference * (hessian @ difference)).sum(axis=1, dtype=np.float64))


def _scales(values: Doubles, importance: Doubles, top: int, clip: Clip, axis: int) -> Doubles:
    """The scales of the numbers along `axis`, exact in float32, so that rounding and device agree on them."""
    largest = np.abs(values).max(axis=axis) / top
    if clip == "absmax":
        return _usable(largest, top)
    if clip != "mse":
        raise CalibrationError(f"clip: expected 'absmax' or 'mse', found {clip!r}")
    best, least = _usable(largest, top), np.full(largest.shape, np.inf)
    for ratio in _RATIOS:
        scale = _usable(largest * ratio, top)
        step = np.expand_dims(scale, axis)
        error = (importance * (values - np.clip(np.rint(values / step), -top, top) * step) ** 2).sum(axis=axis)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _usable(scale: Doubles, top: int) -> Doubles:
    """Scales rounded to float32, never 0, and small enough for `top` times them to be finite."""
    largest = np.nextafter(np.float32(np.finfo(np.float32).max / top), np.float32(0.0))
    return np.clip(scale, SMALLEST_SCALE, largest).astype(np.float32).astype(np.float64)


def _codes(rows: Doubles, scale: Doubles, shape: tuple[int, ...], axis: int, bits: int, block: int) -> Codes:
    """Codes of a weight of `shape` from [channels, K] and [channels, blocks]."""
    front = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    codes = np.ascontiguousarray(np.moveaxis(rows.astype(np.int8).reshape(front), 0, axis))
    scales = scale.astype(np.float32)
    return Codes(codes, np.ascontiguousarray(scales) if block else scales[:, 0].copy(), bits, axis, block)
