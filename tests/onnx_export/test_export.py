"""Exporting PyTorch modules, and what is said when it cannot be done."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from edgegen.errors import ExportError, Status
from edgegen.onnx_export import export_component
from edgegen.spec import ConditionSpec, Signature, TensorSpec
from edgegen.targets.onnxruntime import OrtComponent

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 4)), TensorSpec("t", "float32", ("batch",))), (TensorSpec("prediction", "float32", ("batch", 4)),)
)
TIMES = (0.9, 0.5, 0.3, 0.1)

GOOD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))
    def forward(self, x, t):
        return self.inner(x) * t[:, None]

def load():
    torch.manual_seed(0)
    return Net()
"""


def export(tmp_path, source, function="load", signature=SIGNATURE, conditions=(), name="model.py"):
    (tmp_path / name).write_text(source)
    return export_component(f"{name}:{function}", tmp_path, signature, conditions, TIMES)


def test_a_module_is_exported_compared_and_reproducible(tmp_path):
    data, report = export(tmp_path, GOOD)
    assert report.cases == 8 and report.max_error <= 1e-5
    (tmp_path / "elsewhere").mkdir()
    again, _ = export(tmp_path / "elsewhere", GOOD)
    assert data == again
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model)
    assert str(tmp_path) not in str(model)
    assert [i.name for i in model.graph.input] == ["x", "t"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    with OrtComponent("denoiser", data, SIGNATURE) as component:
        out = component(x=np.ones((7, 4), np.float32), t=np.asarray(0.5, np.float32))
    assert out["prediction"].shape == (7, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return self.inner(x) * t[:, None]", "return torch.linalg.svdvals(self.inner(x)[:, None, :]) * t[:, None]"), r"svd.* has no ONNX form"),
        (("return self.inner(x) * t[:, None]", "return x if x.sum() > 0 else -x"), "could not trace forward"),
        (("return self.inner(x) * t[:, None]", "raise ValueError('not today')"), "not today"),
        (("return self.inner(x) * t[:, None]", "return self.inner(x)[:, :3]"), r"has shape \[1, 3\] for a batch of 1, expected \[1, 4\]"),
        (("return Net()", "return 3"), "returned a int, expected a torch.nn.Module"),
        (("return Net()", "raise RuntimeError('no weights')"), "RuntimeError: no weights"),
        (("def load", "def lod"), "has no function 'load': did you mean 'lod'"),
        (("import torch\n", "import torc\n"), "No module named 'torc'"),
        (("def forward(self, x, t)", "def forward(self, x)"), "could not trace forward"),
        (("import torch\n", "import torch(\n"), "SyntaxError"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_sentence(tmp_path, change, message):
    assert change[0] in GOOD
    with pytest.raises(ExportError, match=message):
        export(tmp_path, GOOD.replace(*change, 1))


def test_an_unsupported_operator_is_named_with_its_module(tmp_path):
    source = GOOD.replace("nn.Linear(8, 4))", "nn.Linear(8, 4), Strange())").replace(
        "class Net", "class Strange(nn.Module):\n    def forward(self, x):\n        return torch.linalg.svdvals(x[:, None, :]) + x\n\nclass Net"
    )
    with pytest.raises(ExportError, match=r"operator .*svd.* in module inner\.3 \(.*Strange\)"):
        export(tmp_path, source)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    source = GOOD.replace("return Net()", f"net = Net(); net.inner[2].bias.data[1] = float('{value}'); return net")
    with pytest.raises(ExportError, match=r"weight 'inner.2.bias': 1 of 4 values are NaN or infinite") as e:
        export(tmp_path, source)
    assert e.value.code == Status.NONFINITE


def test_a_difference_above_the_tolerance_stops_the_build_and_says_where(tmp_path, monkeypatch):
    import importlib

    component = importlib.import_module("edgegen.onnx_export.component")
    monkeypatch.setattr(component, "TOLERANCE", 0.0)
    source = GOOD.replace("nn.SiLU()", "nn.GELU(), nn.LayerNorm(8), nn.Softmax(1)")
    with pytest.raises(ExportError, match=r"ONNX differs from torch by .* in 'prediction' at time 0\.\d, batch \d"):
        export(tmp_path, source)


def test_modules_may_import_their_neighbours_and_take_conditions(tmp_path):
    (tmp_path / "parts.py").write_text("from torch import nn\nclass Table(nn.Embedding):\n    pass\n")
    source = GOOD.replace("from torch import nn", "from torch import nn\nfrom parts import Table").replace(
        "def forward(self, x, t):\n        return self.inner(x) * t[:, None]",
        "def forward(self, x, t, label):\n        return self.inner(x) * t[:, None] + self.table(label)",
    ).replace("self.inner =", "self.table = Table(3, 4); self.inner =")  # fmt: skip
    signature = Signature((*SIGNATURE.inputs, TensorSpec("label", "int64", ("batch",))), SIGNATURE.outputs)
    _, report = export(tmp_path, source, signature=signature, conditions=(ConditionSpec("label", "int64", (), 0, 2),))
    assert report.cases == 8


def test_an_onnx_file_is_taken_as_it_is_and_its_signature_checked(tmp_path):
    data, _ = export(tmp_path, GOOD)
    (tmp_path / "net.onnx").write_bytes(data)
    taken, report = export_component("net.onnx", tmp_path, SIGNATURE, (), TIMES)
    assert taken == data and report.cases == 0
    other = Signature((TensorSpec("latent", "float32", ("batch", 4)), SIGNATURE.inputs[1]), SIGNATURE.outputs)
    with pytest.raises(ExportError, match="its inputs are t, x; expected latent"):
        export_component("net.onnx", tmp_path, other, (), TIMES)
    (tmp_path / "net.onnx").write_bytes(b"not onnx at all")
    with pytest.raises(ExportError, match="is not an ONNX"):
        export_component("net.onnx", tmp_path, SIGNATURE, (), TIMES)
