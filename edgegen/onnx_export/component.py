"""From a recipe's [model] to a checked ONNX component: load the user's source, export, compare with torch."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgegen.errors import ExportError, Status, nearest
from edgegen.library import run_file
from edgegen.onnx_export.onnx_file import read_onnx_file
from edgegen.onnx_export.torch_module import export_module
from edgegen.spec import BATCH, ConditionSpec, Signature, draw_condition
from edgegen.targets.onnxruntime import OrtComponent, make_raw, onnxruntime_version

if TYPE_CHECKING:
    import torch

__all__ = ["ExportReport", "export_component", "source_file"]

TOLERANCE = 1e-4
BATCHES = (1, 3)
_SAFE_WEIGHTS = (".safetensors", ".onnx")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """max_error: largest absolute difference between torch and ONNX Runtime over `cases` comparisons; 0 cases for an ONNX file."""

    max_error: float
    cases: int


def source_file(source: str, folder: Path) -> tuple[Path, str | None]:
    """The path and function of "file.py:function", or the path and None of "file.onnx". Raises ExportError if absent."""
    name, separator, function = source.rpartition(":")
    path = folder / (name if separator and name else source)
    if not path.is_file():
        raise ExportError(f"model.source {source!r}: no file at {path}; paths are relative to the recipe's folder")
    if path.suffix == ".onnx":
        return path, None
    if path.suffix != ".py" or not separator or not function:
        raise ExportError(f"model.source {source!r}: expected 'file.py:function' or 'file.onnx'")
    return path, function


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a source file import its neighbours while it is loaded and called."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _load_module(path: Path, function: str, weights: Path | None, options: dict[str, Any]) -> torch.nn.Module:
    """Call the user's function and return its torch.nn.Module."""
    import torch

    arguments = options | ({"weights": weights} if weights is not None else {})
    with _importable(path.parent):
        try:
            source = run_file(path, "model")
            build: Callable[..., Any] | None = getattr(source, function, None)
            if not callable(build):
                known = [n for n, v in vars(source).items() if callable(v) and not n.startswith("_")]
                raise ExportError(f"{path} has no function {function!r}: {nearest(function, known)}")
            module = build(**arguments)
        except ExportError:
            raise
        except Exception as e:  # user code: anything may come out of it
            raise ExportError(f"{path}:{function} failed: {type(e).__name__}: {_short(e)}") from e
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"{path}:{function} returned a {type(module).__name__}, expected a torch.nn.Module")
    return module


def _short(error: BaseException, limit: int = 300) -> str:
    """A message on one line, cut where it gets long (a checkpoint of another architecture lists every key)."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]} ..."


def _example(signature: Signature, conditions: Sequence[ConditionSpec], time: str, at: float, count: int) -> dict[str, np.ndarray[Any, Any]]:
    """One set of inputs: normal noise for the state, `at` for the time, random valid conditions."""
    rng = np.random.default_rng(count)
    by_name = {c.name: c for c in conditions}
    example = {}
    for tensor in signature.inputs:
        shape = [count if size == BATCH else int(size) for size in tensor.shape]
        if tensor.name == time:
            example[tensor.name] = np.full(shape, at, tensor.dtype)
        elif tensor.name in by_name:
            example[tensor.name] = draw_condition(by_name[tensor.name], count, rng)
        else:
            example[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    return example


def check_tools(function: str | None) -> None:
    """Raise now, before slow work, if ONNX Runtime or (for a PyTorch source) torch and onnxscript are not installed."""
    onnxruntime_version()
    missing = [package for package in ("torch", "onnxscript") if function is not None and importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(
            f"exporting a PyTorch model needs {' and '.join(missing)}; install with: pip install 'edgegen[torch]'", Status.BACKEND_MISSING
        )


def check_weights_file(weights: Path, *, trust_pickle: bool) -> None:
    """Raise ExportError if the checkpoint is absent, or could run code when it is opened and that was not allowed."""
    if not weights.is_file():
        raise ExportError(f"model.weights: no file at {weights}; give its path with --set model.weights=PATH", Status.CANNOT_OPEN)
    if weights.suffix not in _SAFE_WEIGHTS and not trust_pickle:
        raise ExportError(
            f"model.weights: {weights.name} is not a safetensors file: opening it may run code that it holds. "
            f"Convert it, or allow it with --trust-pickle if you trust where it came from"
        )


def export_component(
    source: str, folder: Path, signature: Signature, conditions: Sequence[ConditionSpec], times: Sequence[float], *,
    time: str = "t", component: str = "denoiser", weights: Path | None = None, options: dict[str, Any] | None = None,
) -> tuple[bytes, ExportReport]:  # fmt: skip
    """The ONNX bytes of a network and how well they agree with torch.

    source: as in the recipe, relative to `folder`. times: network times at which torch and ONNX are compared, with batches of 1 and 3.
    Raises ExportError: see `export_module` and `read_onnx_file`; also where any output differs by more than 1e-4, naming where.
    """
    path, function = source_file(source, folder)
    if function is None:
        return read_onnx_file(path, signature).SerializeToString(deterministic=True), ExportReport(0.0, 0)
    module = _load_module(path, function, weights, options or {})
    with _importable(path.parent):
        model = export_module(module, signature, _example(signature, conditions, time, times[0], 2))
        make_raw(model)
        data = model.SerializeToString(deterministic=True)
        report = _compare(module, data, signature, conditions, times, time, component)
    return data, report


def _compare(
    module: torch.nn.Module, data: bytes, signature: Signature, conditions: Sequence[ConditionSpec], times: Sequence[float], time: str, component: str
) -> ExportReport:
    import torch

    worst = 0.0
    with OrtComponent(component, data, signature, threads=1) as exported, torch.no_grad():
        for at in times:
            for count in BATCHES:
                example = _example(signature, conditions, time, at, count)
                wanted = module(**{name: torch.from_numpy(value) for name, value in example.items()})
                outputs = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
                found = exported.run(example)
                for tensor, value in zip(signature.outputs, outputs, strict=True):
                    expected = value.numpy()
                    shape = tuple(count if size == BATCH else size for size in tensor.shape)
                    if expected.shape != shape:
                        raise ExportError(f"output {tensor.name!r} has shape {list(expected.shape)} for a batch of {count}, expected {list(shape)}")
                    error = float(np.max(np.abs(found[tensor.name] - expected)))
                    if not error <= TOLERANCE:
                        raise ExportError(
                            f"ONNX differs from torch by {error:.3g} in {tensor.name!r} at time {at:g}, batch {count}; "
                            f"at most {TOLERANCE:g} is allowed"
                        )
                    worst = max(worst, error)
    return ExportReport(worst, len(times) * len(BATCHES))
