"""The exact surrogate of a network: a few operations that round the same way everywhere, so that any two interpreters must agree to the bit
(runtimes/FORMAT.md, section 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.program.interpreter import Network
from edgegen.spec import Signature

__all__ = ["surrogate", "surrogates"]


def _squashed(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    value = value.astype(np.float32)
    return np.asarray(value / (np.float32(1.0) + np.abs(value)))


def surrogate(signature: Signature) -> Network:
    """A network of this signature: each output is the sum of 2^-k v / (1 + |v|) over the inputs k, v taken cyclically, in float32."""

    def network(**arrays: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        rows = next((len(a) for a in arrays.values() if a.ndim), 1)
        made = {}
        for output in signature.outputs:
            tail = tuple(int(n) for n in output.shape[1:])
            total: npt.NDArray[Any] | None = None
            for k, spec in enumerate(signature.inputs):
                value = arrays[spec.name].astype(spec.dtype)
                row = value.reshape(rows, -1) if value.ndim else np.full((rows, 1), value)
                term = _squashed(np.resize(row.T, (math.prod(tail), rows)).T) * np.float32(2.0**-k)
                total = term if total is None else total + term
            assert total is not None
            made[output.name] = total.reshape(rows, *tail).astype(output.dtype)
        return made

    return network


def surrogates(components: Mapping[str, Signature]) -> dict[str, Network]:
    """A surrogate for each component."""
    return {name: surrogate(signature) for name, signature in components.items()}
