"""A network from PyTorch, or an ONNX file as it is, to a checked ONNX component without external data."""

from edgegen.onnx_export.component import ExportReport, export_component
from edgegen.onnx_export.onnx_file import read_onnx_file
from edgegen.onnx_export.torch_module import export_module

__all__ = ["ExportReport", "export_component", "export_module", "read_onnx_file"]
