"""Channels of activations and weights brought to a like size, so that one scale per tensor fits both, without changing the network's result.

In: the largest absolute values of activations per time and channel, and a float ONNX model. Out: one factor per channel, and a new model in
which activations are divided by the factors and the weights that read them are multiplied by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import BuildError, CalibrationError, Status, nearest
from edgegen.quantize.graph import Names, attribute, check_names, constants, copied, known_shapes, producers, prune, readers

if TYPE_CHECKING:
    import onnx

__all__ = ["ALPHAS", "METHODS", "best_alpha", "factors", "reading_weights", "smooth", "spearman"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Edit = tuple[int, int, Array]
"""(node, input, multiplier): this constant input is to be multiplied by an array that broadcasts with it."""
Edits = list[Edit] | None

METHODS = ("smoothquant", "balance")
ALPHAS = tuple(k / 20 for k in range(21))
_SMALLEST, _LARGEST = 1e-4, 1e4
"""Factors are kept between these, so that neither side leaves the range of float16."""
_DEVIATIONS = 3.0
"""The largest absolute value of a channel is taken for so many of its root mean squares, where these are not known."""


def factors(activation: Floats, weights: Sequence[Floats], method: str = "smoothquant", alpha: float = 0.5) -> Floats:
    """One factor per channel, to divide activations by and multiply weights by: float32[C] in [1e-4, 1e4]; 1 where either side is zero.

    activation: float32[T, C], largest absolute value per deployed time and channel. weights: those that read it, each [C, N].
    "smoothquant": max|x|^alpha / max|w|^(1 - alpha), over all times. Source: Xiao et al. 2023 (SmoothQuant), equation 4.
    "balance": sqrt(x / max|w|), x averaged over times with weights softmax(-rho), where rho is the Spearman correlation of the activations' and
    the weights' sizes: times at which large activations meet small weights count more. Source: Wu et al. 2024 (PTQ4DiT), section 3.
    Raises CalibrationError: shapes that do not fit, values that are not finite, or an alpha outside [0, 1]; BuildError for an unknown method.
    """
    if method not in METHODS:
        raise BuildError(f"method {method!r}: {nearest(method, METHODS)}", Status.UNKNOWN_NAME)
    x, joined = _checked(activation, weights)
    if not 0.0 <= alpha <= 1.0:
        raise CalibrationError(f"alpha is {alpha}, expected 0 .. 1", Status.OUT_OF_RANGE)
    w = np.abs(joined).max(axis=1)
    if method == "balance":
        rho = np.array([spearman(row, w) for row in x])
        share = np.exp(-rho) / np.exp(-rho).sum()
        return _ratio(share @ x, w, 0.5, 0.5)
    return _ratio(x.max(axis=0), w, alpha, 1.0 - alpha)


def best_alpha(activation: Floats, weights: Sequence[Floats], mean_square: Floats | None = None, alphas: Sequence[float] = ALPHAS) -> float:
    """The alpha of `alphas` whose "smoothquant" factors promise the least error of the layers' outputs with int8 activations and weights.

    activation, weights: as `factors` takes them. mean_square: float32[C] of the activations over all times; by default a ninth of the largest
    value's square, averaged over times. The promise takes every rounding as uniform and independent: a tensor's step d makes d^2 / 12 per value,
    d_x^2 / 12 sum w^2 + sum over outputs of d_w^2 / 12 sum x^2, activations with one scale, weights with one per output. The first of equals.
    """
    x, joined = _checked(activation, weights)
    square = (x**2).mean(axis=0) / _DEVIATIONS**2 if mean_square is None else np.asarray(mean_square, np.float64)
    if square.shape != x.shape[1:] or not len(alphas):
        raise CalibrationError(f"mean_square {list(square.shape)} and {len(alphas)} alphas, expected [{x.shape[1]}] and at least one")

    def promised(alpha: float) -> float:
        s = factors(activation, weights, alpha=alpha).astype(np.float64)
        scaled = joined * s[:, None]
        step_x, steps_w = (x / s).max() / 127.0, np.abs(scaled).max(axis=0) / 127.0
        return float(step_x**2 * (scaled**2).sum() + (steps_w**2).sum() * (square / s**2).sum())

    return min(alphas, key=promised)


def spearman(a: Array, b: Array) -> float:
    """Spearman's rank correlation of two vectors, equal values sharing the mean of their ranks; 0 where one of them is constant."""
    ranks = [_ranks(np.asarray(v)) for v in (a, b)]
    centred = [r - r.mean() for r in ranks]
    norm = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / norm if norm > 0 else 0.0


def reading_weights(model: onnx.ModelProto) -> dict[str, list[Floats]]:
    """For each tensor that layers read, in the graph's order: their weights as [C, N] each, C the channels of the tensor.

    Layers are Conv, Gemm and MatMul with a constant float32 weight, which is [out, in / groups, ...], [in, out] or, with transB, [out, in].
    """
    weights, found = constants(model), dict[str, list[Floats]]()
    for node in model.graph.node:
        if _is_layer(node, weights):
            found.setdefault(node.input[0], []).append(_oriented(node, weights[node.input[1]]))
    return found


def smooth(model: onnx.ModelProto, factors: Mapping[str, Floats]) -> tuple[onnx.ModelProto, dict[str, tuple[str, ...]]]:
    """The model with tensors divided by their factors and the layers that read them making up for it; its result is the same up to rounding.

    factors: tensor -> float32[C] > 0, C the input channels of the layers that read it. Also gives, per tensor, the constants that took the
    division: a norm's or a layer's weight and bias, what a modulation (1 + scale) x + shift comes from, or a table. It is followed back through
    arithmetic, Relu and LeakyRelu, Reshape, Transpose, Unsqueeze, Split and the product of attention, as long as nothing else reads the way.
    Where it cannot be taken in (SiLU and GELU let no factor through) there are no names: the layers then read `NAME.smoothed`, made by a Mul.

    Raises BuildError: a tensor that no layer reads, or factors that do not fit it.
    """
    network = _Network(copied(model))
    report = {}
    for tensor, factor in factors.items():
        report[tensor] = network.smooth(tensor, np.asarray(factor))
    network.write()
    return network.model, report


def _checked(activation: Floats, weights: Sequence[Floats]) -> tuple[Array, Array]:
    """The activations and the joined weights in float64, or CalibrationError."""
    x = np.asarray(activation, np.float64)
    shapes = [list(np.shape(w)) for w in weights]
    if x.ndim != 2 or not x.size or not weights or any(len(s) != 2 or s[0] != x.shape[1] or not s[1] for s in shapes):
        raise CalibrationError(f"activation {list(x.shape)} and weights {shapes}: expected [T, C] and at least one [C, N]", Status.BAD_SHAPE)
    joined = np.concatenate([np.asarray(w, np.float64) for w in weights], axis=1)
    if not (np.isfinite(x).all() and (x >= 0).all() and np.isfinite(joined).all()):
        raise CalibrationError("expected finite weights, and absolute values of activations: finite and not negative", Status.NONFINITE)
    return x, joined


def _ratio(x: Array, w: Array, a: float, b: float) -> Floats:
    """x^a / w^b where both x and w are positive, else 1; within the bounds of factors."""
    ratio = np.divide(x**a, w**b, out=np.ones_like(x), where=(x > 0) & (w > 0))
    return np.clip(ratio, _SMALLEST, _LARGEST).astype(np.float32)


def _ranks(values: Array) -> Array:
    """Ranks from 0, equal values sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean: Array = (ends - (counts + 1) / 2.0)[inverse]
    return mean


def _is_layer(node: Any, weights: Mapping[str, Array]) -> bool:
    """Whether a node is a Conv, Gemm or MatMul of something with a constant float32 weight."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[0] in weights or node.input[1] not in weights:
        return False
    weight = weights[node.input[1]]
    return weight.dtype == np.float32 and (node.op_type == "Conv" or weight.ndim == 2) and not attribute(node, "transA", 0)


def _oriented(node: Any, weight: Floats) -> Floats:
    """A layer's weight as [C, N]."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        grouped = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        return grouped.transpose(0, 2, 1, 3).reshape(groups * weight.shape[1], -1)
    return weight.T if attribute(node, "transB", 0) else weight


def _along_inputs(node: Any, weight: Floats, factor: Array) -> Array:
    """A factor per input channel, shaped to multiply a layer's weight."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        rows = factor.reshape(groups, -1).repeat(len(weight) // groups, axis=0)
        return rows.reshape(*rows.shape, *(1 for _ in weight.shape[2:]))
    return factor[None, :] if attribute(node, "transB", 0) else factor[:, None]


def _vector(r: Array, axis: int, size: int) -> Array | None:
    """The vector of `size` that r is, if it varies along one (negative) axis only."""
    full = r.reshape((1,) * max(-axis - r.ndim, 0) + r.shape)
    if full.size != full.shape[axis] or full.shape[axis] not in (1, size):
        return None
    return np.broadcast_to(full.reshape(-1), (size,))


def _compact(r: Array) -> Array:
    """r without the axes along which it does not vary: size 1, or left out in front."""
    for axis in range(r.ndim):
        first = r.take([0], axis)
        r = first if np.array_equal(first.repeat(r.shape[axis], axis), r) else r
    while r.ndim > 1 and r.shape[0] == 1:
        r = r[0]
    return r


class _Network:
    """A model whose constants are being changed. In `r`, an array that tensors are to be multiplied by, axes count from the last."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.weights = constants(model)
        self.changed: dict[str, Array] = {}
        self.made, self.readers, self.shapes = producers(model), readers(model), known_shapes(model)
        self.outputs = {o.name for o in model.graph.output}
        self.names = Names(model)
        self.inserted: dict[int, list[Any]] = {}

    def smooth(self, tensor: str, factor: Array) -> tuple[str, ...]:
        """Divide a tensor by a factor per channel; the names of the constants that took it, none if a Mul did."""
        layers = [i for i in self.readers.get(tensor, ()) if _is_layer(self.nodes[i], self.weights) and self.nodes[i].input[0] == tensor]
        known = {self.nodes[i].input[0] for i in range(len(self.nodes)) if _is_layer(self.nodes[i], self.weights)}
        check_names([tensor] if not layers else [], known, "the tensor that layers read,")
        axes = set()
        for i in layers:
            node, weight = self.nodes[i], self.weights[self.nodes[i].input[1]]
            axes.add(1 - weight.ndim if node.op_type == "Conv" else -1)
            channels = len(_oriented(node, weight))
            if factor.shape != (channels,) or not (np.isfinite(factor).all() and (factor > 0).all()):
                raise BuildError(f"factors of {tensor!r}: {factor.dtype}{list(factor.shape)}, expected [{channels}], finite and above 0")
        if len(axes) > 1:
            raise BuildError(f"tensor {tensor!r} is read by a Conv and by a linear layer: its channels are on two axes, so it cannot be smoothed")
        inverse = (1.0 / factor.astype(np.float64)).reshape(-1, *(1 for _ in range(-axes.pop() - 1)))
        others = [i for i in self.readers[tensor] if i not in layers and self.nodes[i].op_type != "Shape"]
        edits = None if others or tensor in self.outputs else self.multiplied(tensor, inverse)
        if edits is None:
            self.insert(tensor, layers, inverse)
        for i in layers:
            self.apply((i, 1, _along_inputs(self.nodes[i], self.weights[self.nodes[i].input[1]], factor.astype(np.float64))))
        return tuple(dict.fromkeys(self.apply(edit) for edit in edits or ()))

    def insert(self, tensor: str, layers: Sequence[int], inverse: Array) -> None:
        """A Mul that layers read instead of the tensor."""
        from onnx import helper

        made, constant = self.names.new(f"{tensor}.smoothed"), self.names.new(f"{tensor}.factor")
        self.changed[constant] = inverse.astype(np.float32)
        self.inserted.setdefault(layers[0], []).append(helper.make_node("Mul", [tensor, constant], [made], made))
        for i in layers:
            self.nodes[i].input[0] = made

    def apply(self, edit: Edit) -> str:
        """Multiply a constant that a node reads; a copy of it, if others read it too. Returns its name."""
        i, position, r = edit
        node = self.nodes[i]
        name: str = node.input[position]
        value = (self.weights[name] * r).astype(self.weights[name].dtype)
        if sum(list(n.input).count(name) for n in self.nodes) > 1 or name in self.outputs:
            name = self.names.new(f"{name}.smoothed")
            node.input[position] = name
        self.weights[name] = self.changed[name] = value
        return name

    def write(self) -> None:
        """Put the changes into the model."""
        prune(self.model, [n for i, node in enumerate(self.nodes) for n in (*self.inserted.get(i, ()), node)], self.changed)

    def multiplied(self, tensor: str, r: Array) -> Edits:
        """What multiplies a tensor by r, or None where nothing does without changing others."""
        r, i = _compact(r), self.made.get(tensor)
        shape = self.shapes.get(tensor)
        wider = shape is not None and (r.ndim > len(shape) or any(n not in (1, m) for n, m in zip(r.shape[::-1], shape[::-1], strict=False) if m))
        rule = _RULES.get(self.nodes[i].op_type) if i is not None and not wider else None
        return rule(self, i, tensor, r) if rule is not None and i is not None else None

    def operand(self, i: int, k: int, r: Array) -> Edits:
        """What multiplies an operand of arithmetic, or None; nothing but that node may read its value, and it only once."""
        name = self.nodes[i].input[k]
        if name in self.weights:
            return [(i, k, r)]
        alone = all(reader == i or self.nodes[reader].op_type == "Shape" for reader in self.readers[name])
        if not alone or name in self.outputs or list(self.nodes[i].input).count(name) > 1:
            return None
        return self.multiplied(name, r)

    def all_of(self, i: int, operands: Sequence[tuple[int, Array]]) -> Edits:
        """What multiplies several operands, those that are absent left out."""
        edits: list[Edit] = []
        for k, r in operands:
            if k < len(self.nodes[i].input) and self.nodes[i].input[k]:
                found = self.operand(i, k, r)
                if found is None:
                    return None
                edits += found
        return edits

    def constant(self, i: int, k: int) -> Array | None:
        return self.weights.get(self.nodes[i].input[k])


def _through(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    return net.operand(i, 0, r)


def _product(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    """Either factor, a constant rather than another."""
    for k in sorted((0, 1), key=lambda k: net.constant(i, k) is None):
        edits = net.operand(i, k, r)
        if edits is not None:
            return edits
    return None


def _quotient(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    return [(i, 1, 1.0 / r)] if net.constant(i, 1) is not None else net.operand(i, 0, r)


def _sum(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    return net.all_of(i, [(0, r), (1, r)])


def _matmul(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    """The columns of a weight; or of the values of attention, whose sum over positions (the last axis but one) takes out what is the same for all."""
    weight = net.constant(i, 1)
    if weight is None:
        return net.operand(i, 1, r) if r.ndim < 2 or r.shape[-2] == 1 else None
    columns = _vector(r, -1, weight.shape[-1])
    return [(i, 1, columns)] if columns is not None else None


def _gemm(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    weight = net.constant(i, 1)
    transposed = attribute(net.nodes[i], "transB", 0)
    columns = None if weight is None else _vector(r, -1, weight.shape[0 if transposed else 1])
    return None if columns is None else net.all_of(i, [(1, columns[:, None] if transposed else columns), (2, columns)])


def _conv(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    weight = net.constant(i, 1)
    channels = None if weight is None else _vector(r, 1 - weight.ndim, len(weight))
    if weight is None or channels is None:
        return None
    return net.all_of(i, [(1, channels.reshape(-1, *(1 for _ in weight.shape[1:]))), (2, channels)])


def _layer_norm(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    """The affine part, which spans the last axes."""
    scale = net.constant(i, 1)
    fits = scale is not None and r.ndim <= scale.ndim and np.broadcast_shapes(r.shape, scale.shape) == scale.shape
    return net.all_of(i, [(1, r), (2, r)]) if fits else None


def _channel_norm(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    """The affine part of a norm with one scale and bias per channel, which is axis 1."""
    scale, rank = net.constant(i, 1), len(net.shapes.get(net.nodes[i].input[0], ()))
    channels = _vector(r, 1 - rank, len(scale)) if scale is not None and rank > 1 else None
    return net.all_of(i, [(1, channels), (2, channels)]) if channels is not None else None


def _gather(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    """The rows of a table."""
    table = net.constant(i, 0)
    rows = table is not None and attribute(net.nodes[i], "axis", 0) == 0 and r.ndim < table.ndim
    return [(i, 0, r)] if table is not None and rows and np.broadcast_shapes(r.shape, table.shape) == table.shape else None


def _full(r: Array, rank: int) -> Array:
    return r.reshape((1,) * (rank - r.ndim) + r.shape)


def _unsqueeze(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    axes, rank = net.constant(i, 1), len(net.shapes.get(tensor, ()))
    if axes is None or not rank:
        return None
    return net.operand(i, 0, _full(r, rank).squeeze(tuple(int(a) % rank for a in axes)))


def _transpose(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    perm = attribute(net.nodes[i], "perm", None)
    return net.operand(i, 0, _full(r, len(perm)).transpose(np.argsort(perm))) if perm is not None else None


def _reshape(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    """The last axes, as many before as after that hold the same number of values, of known sizes."""
    after, before = net.shapes.get(tensor, ()), net.shapes.get(net.nodes[i].input[0], ())
    span = after[len(after) - r.ndim :]
    if len(after) < r.ndim or None in span:
        return None
    total = int(np.prod([n for n in span if n is not None]))
    for k in range(1, len(before) + 1):
        tail = [n for n in before[-k:] if n is not None]
        if len(tail) == k and int(np.prod(tail)) == total:
            return net.operand(i, 0, np.broadcast_to(r, [n for n in span if n is not None]).reshape(tail))
    return None


def _split(net: _Network, i: int, tensor: str, r: Array) -> Edits:
    """The part's range of what is split; the other parts keep their values."""
    node, rank = net.nodes[i], len(net.shapes.get(tensor, ()))
    if not rank:
        return None
    axis = attribute(node, "axis", 0) % rank
    sizes = [net.shapes[name][axis] if len(net.shapes.get(name, ())) == rank else None for name in node.output]
    known = [n for n in sizes if n is not None]
    if len(known) < len(sizes):
        return None
    k, full = list(node.output).index(tensor), _full(r, rank)
    whole = np.ones((*full.shape[:axis], sum(known), *full.shape[axis + 1 :]))
    start = sum(known[:k])
    whole[(slice(None),) * axis + (slice(start, start + known[k]),)] = full
    return net.operand(i, 0, whole)


_RULES: dict[str, Callable[[_Network, int, str, Array], Edits]] = {
    "Relu": _through,
    "LeakyRelu": _through,
    "Identity": _through,
    "Mul": _product,
    "Div": _quotient,
    "Add": _sum,
    "Sub": _sum,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "BatchNormalization": _channel_norm,
    "InstanceNormalization": _channel_norm,
    "GroupNormalization": _channel_norm,
    "Gather": _gather,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Split": _split,
}
