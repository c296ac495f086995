"""What ONNX Runtime makes of a quantized network: whether it runs what was planned in integers as such, whether its optimizer keeps the numbers,
and how long each node takes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import BuildError, Status

if TYPE_CHECKING:
    import onnx

__all__ = ["INTEGER", "check_kernels", "integer_operators", "layer_times", "time_of"]

INTEGER = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger")
"""Operators of ONNX Runtime's CPU that multiply integers."""
Array = npt.NDArray[Any]


def _session(model: bytes, optimize: bool, threads: int = 1, **paths: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if "optimized" in paths:
        options.optimized_model_filepath = str(paths["optimized"])
    if "profile" in paths:
        options.enable_profiling = True
        options.profile_file_prefix = str(paths["profile"])
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, slots=True)
class _Kernels:
    integer: int
    floats: tuple[str, ...]
    """Names of nodes that multiply floats."""


def integer_operators(model: onnx.ModelProto) -> _Kernels:
    """The integer operators of a network as ONNX Runtime runs it on this machine, and the names of its float products."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        _session(model.SerializeToString(), True, optimized=path)
        nodes = onnx.load(path, load_external_data=False).graph.node
    floats = tuple(n.name for n in nodes if n.op_type in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"))
    return _Kernels(sum(n.op_type in INTEGER for n in nodes), floats)


def check_kernels(model: onnx.ModelProto, planned: Sequence[str], feeds: Mapping[str, Array], where: str) -> int:
    """The number of integer operators, which must be that of the planned nodes. planned: their names.

    feeds: inputs of one evaluation, on which the optimized and the plain network must agree within 1% of each output's range on average. Raises
    BuildError naming nodes that silently run in float, or the output that differs.
    """
    found = integer_operators(model)
    if found.integer != len(planned):
        slow = [name for name in planned if name in found.floats] or ["one that ONNX Runtime renamed"]
        raise BuildError(
            f"{where}: {len(planned)} nodes were quantized and ONNX Runtime runs {found.integer} of them in integers; "
            f"{', '.join(slow[:5])} would silently run in float. Keep it with quantization.keep, or report it"
        )
    data = model.SerializeToString()
    plain, optimized = (_session(data, optimize) for optimize in (False, True))
    names = [o.name for o in optimized.get_outputs()]
    for name, a, b in zip(names, plain.run(names, dict(feeds)), optimized.run(names, dict(feeds)), strict=True):
        allowed = 0.01 * float(np.ptp(a))
        off = np.abs(np.asarray(a, np.float64) - b)
        if not float(np.mean(off)) <= allowed:
            raise BuildError(
                f"{where}: output {name!r} is {off.mean():.3g} off on average once ONNX Runtime optimized the network", Status.BACKEND_FAILED
            )
    return found.integer


def layer_times(model: onnx.ModelProto, feeds: Mapping[str, Array], runs: int = 20, threads: int = 1) -> dict[str, float]:
    """Median milliseconds of each node of a network as ONNX Runtime runs it, by its name there: see `time_of`."""

    with tempfile.TemporaryDirectory() as folder:
        session = _session(model.SerializeToString(), True, threads, profile=Path(folder) / "profile")
        for _ in range(runs):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] / 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def time_of(times: Mapping[str, float], node: onnx.NodeProto) -> float | None:
    """A layer's milliseconds among those of `layer_times`: fused operators are called after its node, blocked ones after its output."""
    for name, value in times.items():
        if name in (node.name, f"{node.output[0]}_nchwc") or name.startswith(f"{node.name}_token_"):
            return value
    return None
