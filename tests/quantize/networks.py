"""Networks that tests of rewrites share, exported once per process, and how they are run. Callers do not change the models."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

from edgegen.onnx_export import export_module
from edgegen.spec import Signature, TensorSpec

EXPORT = Path(__file__).parents[2] / "export"
F = onnx.TensorProto.FLOAT


def _source(family):
    spec = importlib.util.spec_from_file_location(f"{family}_model", EXPORT / family / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _exported(module, inputs, output):
    """inputs: name -> example of two samples."""
    specs = tuple(TensorSpec(name, str(value.dtype), ("batch", *value.shape[1:])) for name, value in inputs.items())
    return export_module(module, Signature(specs, (TensorSpec("prediction", "float32", ("batch", *output)),)), inputs)


def _image():
    return np.random.default_rng(0).standard_normal((2, 1, 28, 28)).astype(np.float32)


@functools.cache
def digits() -> onnx.ModelProto:
    """The trained network of export/digits."""
    module = _source("digits").load(EXPORT / "digits" / "weights.safetensors")
    return _exported(module, {"x": _image(), "t": np.array([3.0, 5.0], np.float32), "label": np.array([1, 10])}, (1, 28, 28))


@functools.cache
def ddpm() -> onnx.ModelProto:
    """The architecture of export/ddpm_mnist with random weights: its time is int64 and indexes a table."""
    torch.manual_seed(0)
    return _exported(_source("ddpm_mnist").MnistUNet(), {"x": _image(), "t": np.array([3, 5])}, (1, 28, 28))


def graph(nodes, inputs, outputs, constants) -> onnx.ModelProto:
    """inputs, outputs: name -> (ONNX type, shape); constants: name -> array."""
    values = [[helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in side.items()] for side in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "g", *values, tensors), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, feeds, fetch=None):
    """The first output by ONNX Runtime, or the tensors named `fetch`, inner ones too."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    present = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in fetch or () if name not in present)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(fetch, feeds) if fetch else session.run(None, feeds)[0]
