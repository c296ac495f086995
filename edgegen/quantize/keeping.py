"""Which layers stay in float by rule: those whose rounding costs more quality than it saves time (docs/quantization.md has the figures)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgegen.errors import BuildError, nearest
from edgegen.quantize.times import edges, raw_concat, time_path

if TYPE_CHECKING:
    import onnx

__all__ = ["RULES", "kept_by_rule"]

RULES = {
    "first": "the first layer",
    "last": "the last layer",
    "time": "depends on the time and the conditions alone",
    "concat": "a 1x1 convolution of a raw concatenation",
}
"""Rules and what they say of a layer."""


def kept_by_rule(model: onnx.ModelProto, rules: Sequence[str], x: str, output: str) -> dict[str, str]:
    """Names of the weights that the rules keep in float -> why.

    x, output: the network's noisy input and its prediction. Raises BuildError for an unknown rule.
    """
    for rule in rules:
        if rule not in RULES:
            raise BuildError(f"quantization.rules: {nearest(rule, RULES)}")
    first, last = edges(model, x, output)
    others = [i.name for i in model.graph.input if i.name != x and not any(t.name == i.name for t in model.graph.initializer)]
    found = {"first": first, "last": last, "time": time_path(model, others), "concat": raw_concat(model)}
    constants = {t.name for t in model.graph.initializer}
    kept: dict[str, str] = {}
    for rule in rules:
        for i in sorted(found[rule]):
            for name in model.graph.node[i].input[1:2]:
                if name in constants:
                    kept.setdefault(name, RULES[rule])
    return kept
