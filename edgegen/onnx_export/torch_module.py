"""A torch.nn.Module to an ONNX model with named tensors and a dynamic batch, through torch.export (dynamo).

The same module gives the same bytes in any folder: what the exporter notes about source files is removed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgegen.errors import ExportError, Status
from edgegen.spec import Signature

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["OPSET", "check_weights", "export_module"]

OPSET = 20
"""ONNX opset of exported components: the newest that int8 MatMul with a 1-D bias survives in ONNX Runtime 1.32."""


def check_weights(module: torch.nn.Module) -> None:
    """Raise ExportError naming the first parameter or buffer that holds NaN or infinity, and how many."""
    import torch

    for name, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise ExportError(
                f"weight {name!r}: {bad} of {value.numel()} values are NaN or infinite; the checkpoint is damaged or training diverged",
                Status.NONFINITE,
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its notes about absent packages out of our output."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger = logging.getLogger("torch.onnx")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _module_of(program: Any, target: str) -> str:
    """The module path and class in which an operator of the (decomposed) program is called."""
    for graph in (program.graph, program.run_decompositions().graph):
        for node in graph.nodes:
            if node.op == "call_function" and str(node.target) == target:
                path, kind = list((node.meta.get("nn_module_stack") or {"": ("", "?")}).values())[-1]
                return f"{path or 'the top module'} ({kind if isinstance(kind, str) else kind.__name__})"
    return "an unknown module"


def _unsupported(error: BaseException, program: Any) -> ExportError:
    """The exporter's failure as one sentence: operator, module, what to do."""
    cause: BaseException | None = error
    while cause is not None:
        found = re.search(r"call_function\[target=torch\.ops\.([\w.]+)\]", str(cause))
        if found:
            operator = found[1]
            return ExportError(
                f"operator {operator} in module {_module_of(program, operator)} has no ONNX form; "
                f"write that part of forward() with supported operators"
            )
        cause = cause.__cause__
    return ExportError(f"torch.onnx could not convert the network: {str(error).splitlines()[0]}")


def export_module(module: torch.nn.Module, signature: Signature, example: Mapping[str, np.ndarray[Any, Any]]) -> onnx.ModelProto:
    """`module` called with keyword arguments named as the signature's inputs, as an ONNX model.

    example: one array per input, batch 2 or more (a batch of 1 would be taken for a constant).
    Raises ExportError: weights not finite, forward() fails or depends on data, or an operator has no ONNX form (named with its module).
    """
    import torch

    check_weights(module)
    module = module.eval()
    arguments = {t.name: torch.from_numpy(np.ascontiguousarray(example[t.name])) for t in signature.inputs}
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    shapes = {t.name: {i: batch for i, size in enumerate(t.shape) if size == "batch"} for t in signature.inputs}
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(module, (), arguments, dynamic_shapes=shapes)
    except Exception as e:  # user code: anything may come out of forward()
        inputs = ", ".join(map(str, signature.inputs))
        raise ExportError(f"torch.export could not trace forward({inputs}): {type(e).__name__}: {str(e).strip().splitlines()[0]}") from e
    try:
        with _quiet():
            converted = torch.onnx.export(
                program, (), dynamo=True, opset_version=OPSET, external_data=False, optimize=True, verbose=False,
                input_names=[t.name for t in signature.inputs], output_names=[t.name for t in signature.outputs],
            )  # fmt: skip
    except Exception as e:  # the exporter's own errors are not public classes
        raise _unsupported(e, program) from e
    assert converted is not None
    return _cleaned(converted.model_proto, signature)


def _cleaned(model: onnx.ModelProto, signature: Signature) -> onnx.ModelProto:
    """Without the exporter's notes (they name folders), and with the batch called "batch"."""
    graph = model.graph
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "edgegen", "", ""
    graph.name, graph.doc_string = "component", ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    batches: Sequence[Any] = [
        v.type.tensor_type.shape.dim[0] for v, t in zip(graph.input, signature.inputs, strict=True) if t.shape[:1] == ("batch",)
    ]
    for dim in (*batches, *(v.type.tensor_type.shape.dim[0] for v in graph.output)):
        if dim.dim_param:
            dim.dim_param = "batch"
    return model
