"""Without a GPU there is one sentence. (With one, see the docstring of run.py: it has not been run.)"""

from __future__ import annotations

import sys
import types

import pytest

from edgegen.errors import RuntimeFault, Status
from edgegen.targets.tensorrt.run import CudaEngine, gpu_name


@pytest.mark.parametrize("what", [gpu_name, lambda: CudaEngine(b"an engine")])
def test_a_machine_without_a_gpu_gets_one_sentence(what):
    try:
        from cuda.bindings import runtime
    except ImportError:
        found = "no NVIDIA GPU is seen here|no CUDA library here: .*pip install cuda-python"
    else:
        if runtime.cudaGetDeviceCount()[1]:
            pytest.skip("this machine has a GPU")
        found = "no NVIDIA GPU here: cudaError"
    with pytest.raises(RuntimeFault, match=f"^({found})") as e:
        what()
    assert e.value.code == Status.PROVIDER_MISSING
    assert "\n" not in str(e.value)


def test_a_driver_without_a_device_gets_one_sentence(monkeypatch):
    class Error(int):
        name = "cudaErrorInsufficientDriver"

    # what cuda-bindings 13.5 returned on this machine: (cudaErrorInsufficientDriver, None)
    runtime = types.ModuleType("cuda.bindings.runtime")
    runtime.cudaGetDeviceCount = lambda: (Error(35), None)
    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime = runtime
    for name, value in (("cuda", types.ModuleType("cuda")), ("cuda.bindings", bindings), ("cuda.bindings.runtime", runtime)):
        monkeypatch.setitem(sys.modules, name, value)
    with pytest.raises(RuntimeFault, match="^no NVIDIA GPU here: cudaErrorInsufficientDriver$") as e:
        gpu_name()
    assert e.value.code == Status.PROVIDER_MISSING
