"""An existing ONNX file, accepted as it is once its signature and its safety are checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgegen.errors import EdgegenError, ExportError, Status
from edgegen.spec import Signature
from edgegen.targets.onnxruntime import check_model, make_raw, parse_model

if TYPE_CHECKING:
    import onnx

__all__ = ["read_onnx_file"]


def read_onnx_file(path: Path, signature: Signature) -> onnx.ModelProto:
    """The model at `path`, whose inputs and outputs must be `signature`'s: names, dtypes, ranks and fixed sizes.

    Raises ExportError: absent, not ONNX, another signature, external data, unknown operator domains.
    """
    try:
        model = parse_model(path.read_bytes(), str(path))
        make_raw(model)
        check_model(model, signature, str(path))
    except ValueError as e:  # onnx's word for a constant whose list of numbers does not fit its shape
        raise ExportError(f"{path}: {e}", Status.INCONSISTENT) from e
    except OSError as e:
        raise ExportError(f"{path}: cannot be read: {e.strerror}") from e
    except EdgegenError as e:
        raise ExportError(str(e), e.code) from e
    return model
