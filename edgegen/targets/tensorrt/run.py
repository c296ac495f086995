"""An engine on a CUDA device: inputs and outputs stay in device memory, and the calls are one CUDA graph.

NOT RUN SO FAR: written by the documentation of TensorRT, TensorRT-RTX 1.7 and cuda-python 13 on machines without a GPU. What is tested is
that such a machine gets one sentence. Needs cuda-python; engines are only ever those that this device built (see `cache`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.errors import BuildError, RuntimeFault, Status
from edgegen.targets.nvidia import nvidia_gpus
from edgegen.targets.tensorrt.module import load

__all__ = ["CudaEngine", "gpu_name"]

Array = npt.NDArray[Any]


def _cuda() -> Any:
    """cuda.bindings.runtime with a device to talk to. Raises RuntimeFault (PROVIDER_MISSING) where there is none."""
    try:
        from cuda.bindings import runtime
    except (ImportError, OSError) as e:
        if not nvidia_gpus():
            raise RuntimeFault("no NVIDIA GPU is seen here, or its driver is not loaded", Status.PROVIDER_MISSING) from e
        raise RuntimeFault(f"no CUDA library here: {e}; install one with: pip install cuda-python", Status.PROVIDER_MISSING) from e
    try:
        error, count = runtime.cudaGetDeviceCount()
    except RuntimeError as e:  # how cuda-python says that it finds no driver library
        raise RuntimeFault(f"no NVIDIA GPU here: {e}", Status.PROVIDER_MISSING) from e
    if int(error) != 0 or not count:
        raise RuntimeFault(f"no NVIDIA GPU here: {error.name}", Status.PROVIDER_MISSING)
    return runtime


def _call(cuda: Any, function: str, *arguments: Any) -> Any:
    """A CUDA call's result (None, a value or a tuple). Raises RuntimeFault with CUDA's own words."""
    error, *results = getattr(cuda, function)(*arguments)
    if int(error) != 0:
        status = Status.NO_MEMORY if error.name == "cudaErrorMemoryAllocation" else Status.BACKEND_FAILED
        raise RuntimeFault(f"{function}: {error.name}", status)
    return results[0] if len(results) == 1 else tuple(results) or None


def gpu_name(device: int = 0) -> str:
    """Name, UUID and compute capability of a GPU, for `engine_key`. Raises RuntimeFault (PROVIDER_MISSING) without one."""
    cuda = _cuda()
    properties = _call(cuda, "cudaGetDeviceProperties", device)
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return f"{name} {bytes(properties.uuid.bytes).hex()} SM{properties.major}{properties.minor}"


class CudaEngine:
    """A deserialized engine with a buffer per tensor on the device, of fixed shapes; a context manager. One thread at a time.

    data: the engine. engine: "tensorrt-rtx" or "tensorrt". shapes: of the inputs that have dimensions of any size. graph: record the calls as
    a CUDA graph, where the engine can be. Raises RuntimeFault: no GPU (PROVIDER_MISSING), no module (BACKEND_MISSING), an engine that is not
    for this GPU and version (BACKEND_FAILED), no memory.
    """

    def __init__(
        self, data: bytes, engine: str = "tensorrt-rtx", *, device: int = 0, shapes: Mapping[str, tuple[int, ...]] | None = None, graph: bool = True
    ) -> None:
        self._cuda = _cuda()
        self._buffers: dict[str, Any] = {}
        self._graph: Any = None
        self._stream: Any = None
        try:
            self._trt = load(engine)
        except BuildError as e:
            raise RuntimeFault(str(e), e.code) from e
        try:
            self._open(data, device, shapes or {}, graph)
        except BaseException:
            self.close()
            raise

    def _open(self, data: bytes, device: int, shapes: Mapping[str, tuple[int, ...]], graph: bool) -> None:
        cuda, trt = self._cuda, self._trt
        _call(cuda, "cudaSetDevice", device)
        self._stream = _call(cuda, "cudaStreamCreate")
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise RuntimeFault(f"{trt.__name__} {trt.__version__} does not open this engine; build it on this device", Status.BACKEND_FAILED)
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.inputs = tuple(n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        self.outputs = tuple(n for n in names if n not in self.inputs)
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise RuntimeFault(f"input {name!r} does not take the shape {list(shape)}; see the profile it was built with", Status.BAD_SHAPE)
        self._layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        for name in names:
            self._allocate(name)
        self.run()  # once outside a recording: kernels are compiled and loaded here
        if graph and getattr(self._context, "is_stream_capturable", lambda _: True)(int(self._stream)):
            self._record()

    def _allocate(self, name: str) -> None:
        """A zeroed device buffer for a tensor, known to the engine."""
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise RuntimeFault(f"tensor {name!r} has the shape {list(shape)}; give `shapes` of every input of any size", Status.BAD_SHAPE)
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        self._layout[name] = shape, dtype
        size = max(math.prod(shape) * dtype.itemsize, 1)
        self._buffers[name] = _call(self._cuda, "cudaMalloc", size)
        _call(self._cuda, "cudaMemset", self._buffers[name], 0, size)
        self._context.set_tensor_address(name, int(self._buffers[name]))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise RuntimeFault("TensorRT did not run the engine; its log says why", Status.BACKEND_FAILED)

    def _record(self) -> None:
        cuda = self._cuda
        _call(cuda, "cudaStreamBeginCapture", self._stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            self._enqueue()
        finally:
            recorded = _call(cuda, "cudaStreamEndCapture", self._stream)
        try:
            self._graph = _call(cuda, "cudaGraphInstantiate", recorded, 0)
        finally:
            _call(cuda, "cudaGraphDestroy", recorded)

    def _at(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        if name not in self._layout:
            raise RuntimeFault(f"the engine has no tensor {name!r}; it has {', '.join(self._layout)}", Status.UNKNOWN_NAME)
        return self._layout[name]

    def write(self, name: str, array: Array) -> None:
        """Copy an array to an input's buffer, where it stays. Raises RuntimeFault (BAD_SHAPE, BAD_DTYPE) unless it fits."""
        shape, dtype = self._at(name)
        if array.dtype != dtype:
            raise RuntimeFault(f"input {name!r} is {dtype}, found {array.dtype}", Status.BAD_DTYPE)
        if array.shape != shape:
            raise RuntimeFault(f"input {name!r} has the shape {list(shape)}, found {list(array.shape)}", Status.BAD_SHAPE)
        source = np.ascontiguousarray(array)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call(self._cuda, "cudaMemcpy", self._buffers[name], source.ctypes.data, source.nbytes, kind)

    def copy(self, source: str, target: str) -> None:
        """Copy one tensor's buffer to another's on the device: an output becomes the next call's input."""
        if self._at(source) != self._at(target):
            raise RuntimeFault(f"tensor {source!r} is {self._at(source)}, {target!r} is {self._at(target)}", Status.BAD_SHAPE)
        shape, dtype = self._at(source)
        kind, size = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice, math.prod(shape) * dtype.itemsize
        _call(self._cuda, "cudaMemcpy", self._buffers[target], self._buffers[source], size, kind)

    def read(self, name: str) -> Array:
        """A copy of a tensor's buffer on the host."""
        shape, dtype = self._at(name)
        array = np.empty(shape, dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call(self._cuda, "cudaMemcpy", array.ctypes.data, self._buffers[name], array.nbytes, kind)
        return array

    def run(self) -> None:
        """Run the engine on its buffers and wait for it."""
        if self._graph is None:
            self._enqueue()
        else:
            _call(self._cuda, "cudaGraphLaunch", self._graph, self._stream)
        _call(self._cuda, "cudaStreamSynchronize", self._stream)

    def __call__(self, **arrays: Array) -> dict[str, Array]:
        """Write the arrays, run, read every output."""
        for name, array in arrays.items():
            self.write(name, array)
        self.run()
        return {name: self.read(name) for name in self.outputs}

    def close(self) -> None:
        """Free the buffers and the engine."""
        if self._graph is not None:
            self._cuda.cudaGraphExecDestroy(self._graph)
        for buffer in self._buffers.values():
            self._cuda.cudaFree(buffer)
        self._buffers, self._graph = {}, None
        self._context = self._engine = self._runtime = None
        if self._stream is not None:
            self._cuda.cudaStreamDestroy(self._stream)
            self._stream = None

    def __enter__(self) -> CudaEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
