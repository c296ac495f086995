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
from torch import nn
from torch.nn import functional

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


class Block(nn.Module):
    """A DiT block, adaLN-zero, attention with separate linears, and an MLP (Peebles and Xie 2023)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.ada = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Linear(width, 6 * width)

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(functional.silu(c)).chunk(6, dim=1)
        y = self.norm1(x) * (1 + scale1[:, None]) + shift1[:, None]
        n, length, width = y.shape
        q, k, v = (f(y).reshape(n, length, self.heads, width // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5, -1)
        x = x + gate1[:, None] * self.o((weights @ v).transpose(1, 2).reshape(n, length, width))
        y = self.norm2(x) * (1 + scale2[:, None]) + shift2[:, None]
        return x + gate2[:, None] * self.down(functional.gelu(self.up(y), approximate="tanh"))


class Dit(nn.Module):
    """prediction(x, t) of 9 tokens with 16 values, through one block whose activations have outlier channels."""

    def __init__(self, width=32):
        super().__init__()
        self.enter, self.time, self.leave = nn.Linear(16, width), nn.Linear(8, width), nn.Linear(width, 16)
        self.block = Block(width, 2)
        self.frequencies = nn.Buffer(torch.arange(1.0, 5.0))
        with torch.no_grad():
            for k, size in ((3, 40.0), (17, -25.0)):
                self.block.ada.bias[width + k] = self.block.ada.bias[4 * width + k] = size  # of both modulations' scales
                self.block.v.weight[k] *= size
                self.block.up.weight[k] *= size

    def forward(self, x, t):
        angle = t[:, None] * self.frequencies
        return self.leave(self.block(self.enter(x), self.time(torch.cat([angle.sin(), angle.cos()], 1))))


@functools.cache
def dit() -> onnx.ModelProto:
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((2, 9, 16)).astype(np.float32)
    return _exported(Dit(), {"x": x, "t": np.array([0.25, 0.5], np.float32)}, (9, 16))


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
