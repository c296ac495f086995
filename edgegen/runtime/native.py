"""Programs run by libedgegen, the C runtime: the same bundle, noise and arithmetic, without numpy between the networks.

The library is looked for inside the package (where a wheel carries it) and in build/native of a checkout (where `make native` puts it).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegen.bundle import Bundle, Variant
from edgegen.errors import BundleError, Cancelled, EdgegenError, RuntimeFault, Status
from edgegen.program.interpreter import OnStep

__all__ = ["Library", "Native", "find_library", "onnxruntime_library", "open_bytes"]

Tensor = npt.NDArray[Any]

ABI_MAJOR = 1
_MAX_RANK = 8
_BORROWED = 2
_STEPWISE = 2
_DTYPES = {"float32": 1, "float64": 2, "float16": 3, "int64": 4, "int32": 5, "int8": 6, "uint8": 7, "bool": 8}
_STEP = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(ctypes.c_float), ctypes.c_size_t)
_COMPONENT = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)


class _Struct(ctypes.Structure):
    """A struct of edgegen.h: its first field is its size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


class _OpenOptions(_Struct):
    _fields_ = [("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("allocator", ctypes.c_void_p)]


class _SessionOptions(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_uint32), ("threads", ctypes.c_uint32), ("batch", ctypes.c_uint32), ("reserved", ctypes.c_uint32),
        ("variant", ctypes.c_char_p), ("onnxruntime", ctypes.c_char_p), ("component", _COMPONENT), ("component_user", ctypes.c_void_p),
        ("log", ctypes.c_void_p), ("log_user", ctypes.c_void_p),
    ]  # fmt: skip


class _RunOptions(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("seed", ctypes.c_uint64), ("program", ctypes.c_char_p),
        ("steps", ctypes.c_uint32), ("batch", ctypes.c_uint32), ("noise", ctypes.c_void_p), ("noise_elements", ctypes.c_size_t),
        ("on_step", _STEP), ("user", ctypes.c_void_p),
    ]  # fmt: skip


class _Tensor(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_uint32), ("dtype", ctypes.c_int32), ("name", ctypes.c_char_p), ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t), ("rank", ctypes.c_uint32), ("reserved", ctypes.c_uint32), ("shape", ctypes.c_int64 * _MAX_RANK),
    ]  # fmt: skip


class Library:
    """libedgegen with the types of its functions, and errors as exceptions."""

    def __init__(self, path: Path) -> None:
        try:
            self.c = ctypes.CDLL(str(path))
        except OSError as e:
            raise RuntimeFault(f"{path} cannot be loaded: {e}", Status.BACKEND_MISSING) from e
        handle, options, message = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "eg_abi_version": (ctypes.c_uint32, []),
            "eg_open_memory": (ctypes.c_int32, [ctypes.c_char_p, ctypes.c_size_t, options, ctypes.POINTER(handle), message]),
            "eg_close": (None, [handle]),
            "eg_session_create": (ctypes.c_int32, [handle, options, ctypes.POINTER(handle), message]),
            "eg_session_destroy": (None, [handle]),
            "eg_last_error": (ctypes.c_char_p, [handle]),
            "eg_set": (ctypes.c_int32, [handle, options]),
            "eg_generate": (ctypes.c_int32, [handle, options, ctypes.c_void_p, ctypes.c_size_t]),
            "eg_stream_step": (ctypes.c_int32, [handle, options, ctypes.c_void_p, ctypes.c_size_t]),
            "eg_stream_reset": (ctypes.c_int32, [handle]),
            "eg_cancel": (None, [handle]),
            "eg_session_component_report": (
                ctypes.c_int32, [handle, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_double)],
            ),
        }  # fmt: skip
        for name, (result, arguments) in signatures.items():
            function = getattr(self.c, name)
            function.restype, function.argtypes = result, arguments
        found = self.c.eg_abi_version()
        if found >> 16 != ABI_MAJOR:
            raise RuntimeFault(f"{path} has interface version {found >> 16}.{found & 0xFFFF}, expected {ABI_MAJOR}", Status.BACKEND_TOO_OLD)

    def check(self, status: int, text: bytes | None) -> None:
        """Raise the exception of a status that is not 0."""
        if status != Status.OK:
            raise _error(status, (text or b"").decode(errors="replace"))


def _error(status: int, text: str) -> EdgegenError:
    code = Status(status)
    if code == Status.CANCELLED:
        return Cancelled(text)
    return (BundleError if 200 <= code < 300 else RuntimeFault)(text, code)


def find_library() -> Path:
    """The path of libedgegen. Raises RuntimeFault (BACKEND_MISSING) where it was not built."""
    package = Path(__file__).resolve().parents[1]
    candidates = [package / "native" / "libedgegen.so", package.parent / "build" / "native" / "libedgegen.so"]
    for path in candidates:
        if path.is_file():
            return path
    places = " or ".join(map(str, candidates))
    raise RuntimeFault(f"libedgegen is not at {places}; build it with `make native`, or use runtime='python'", Status.BACKEND_MISSING)


@functools.cache
def _library() -> Library:
    return Library(find_library())


def onnxruntime_library() -> str | None:
    """The library inside the Python package onnxruntime; None leaves the search to libedgegen."""
    spec = importlib.util.find_spec("onnxruntime")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        for path in sorted(Path(folder, "capi").glob("libonnxruntime.so.*")):
            return str(path)
    return None


def open_bytes(data: bytes, library: Library | None = None) -> tuple[Library, ctypes.c_void_p]:
    """A model over `data`, which the caller keeps until it is closed. Raises BundleError as the C reader does."""
    library = library or _library()
    model, message = ctypes.c_void_p(), ctypes.create_string_buffer(512)
    options = _OpenOptions(flags=_BORROWED)
    library.check(library.c.eg_open_memory(data, len(data), ctypes.byref(options), ctypes.byref(model), message), message.value)
    return library, model


class _Session:
    """An eg_session: of one thread at a time, with room for so many samples."""

    def __init__(self, owner: Native, batch: int) -> None:
        self.owner, self.batch, library = owner, batch, owner.library
        self.handle, message = ctypes.c_void_p(), ctypes.create_string_buffer(512)
        engine = onnxruntime_library()
        options = _SessionOptions(
            threads=owner.threads, batch=batch, variant=owner.variant.name.encode(), onnxruntime=None if engine is None else engine.encode()
        )  # fmt: skip
        library.check(library.c.eg_session_create(owner.model, ctypes.byref(options), ctypes.byref(self.handle), message), message.value)

    def check(self, status: int) -> None:
        self.owner.library.check(status, self.owner.library.c.eg_last_error(self.handle) if status else None)

    def call(
        self, function: str, name: str, conditions: Mapping[str, Tensor], noise: Tensor | None, batch: int, seed: int, on_step: OnStep | None
    ) -> tuple[Tensor, dict[str, float]]:
        """eg_generate or eg_stream_step: the sample, and the seconds of each component."""
        c, shape = self.owner.library.c, self.owner.sample
        for condition, value in conditions.items():
            self.check(c.eg_set(self.handle, ctypes.byref(_tensor(condition, value))))
        flags = _STEPWISE if self.owner.stepwise else 0
        options, raised = _RunOptions(flags=flags, seed=seed, program=name.encode(), batch=batch), list[BaseException]()
        if noise is not None:
            noise = np.ascontiguousarray(noise, np.float32)
            options.noise, options.noise_elements = noise.ctypes.data, noise.size
        if on_step is not None:
            options.on_step = _callback(on_step, (batch, *shape), raised)
        sample = np.empty((batch, *shape), np.float32)
        status = getattr(c, function)(self.handle, ctypes.byref(options), sample.ctypes.data, sample.size)
        if raised:
            raise raised[0]
        if status == Status.CANCELLED:
            raise Cancelled(c.eg_last_error(self.handle).decode())
        self.check(status)
        return sample, self.seconds()

    def seconds(self) -> dict[str, float]:
        found, count, value = {}, ctypes.c_uint32(), ctypes.c_double()
        for i, component in enumerate(self.owner.components):
            self.owner.library.c.eg_session_component_report(self.handle, i, ctypes.byref(count), ctypes.byref(value))
            found[component] = value.value
        return found

    def close(self) -> None:
        self.owner.library.c.eg_session_destroy(self.handle)
        self.handle = ctypes.c_void_p()


def _tensor(name: str, value: Tensor) -> _Tensor:
    shape = (ctypes.c_int64 * _MAX_RANK)(*value.shape)
    return _Tensor(dtype=_DTYPES[value.dtype.name], name=name.encode(), data=value.ctypes.data, bytes=value.nbytes, rank=value.ndim, shape=shape)


def _callback(on_step: OnStep, shape: tuple[int, ...], raised: list[BaseException]) -> Callable[..., int]:
    def step(user: int, done: int, total: int, state: Any, elements: int) -> int:
        try:
            return int(on_step(done, total, np.ctypeslib.as_array(state, (elements,)).reshape(shape)) is False)
        except BaseException as e:  # goes on its way once the C frames are left
            raised.append(e)
            return 1

    return _STEP(step)


class Native:
    """A variant open in libedgegen; safe to use from several threads, each of which borrows a session of its own. stepwise: nothing runs fused."""

    def __init__(self, bundle: Bundle, variant: Variant, threads: int, *, stepwise: bool = False) -> None:
        self.variant, self.threads, self.stepwise = variant, threads, stepwise
        self.sample, self.components = bundle.manifest.sample.shape, tuple(sorted(bundle.manifest.components))
        self._data = bundle.data
        self.library, self.model = open_bytes(bundle.data)
        self._lock = threading.Lock()
        self._idle: list[_Session] = []
        try:
            self._idle.append(_Session(self, 1))  # so that a device that cannot run the variant says so now
        except EdgegenError:
            self.library.c.eg_close(self.model)
            raise

    @contextmanager
    def _borrowed(self, batch: int) -> Iterator[_Session]:
        with self._lock:
            fitting = [s for s in self._idle if s.batch >= batch]
            session = min(fitting, key=lambda s: s.batch) if fitting else None
            if session is not None:
                self._idle.remove(session)
        session = session or _Session(self, batch)
        try:
            yield session
        finally:
            with self._lock:
                self._idle.append(session)

    def run(
        self, name: str, conditions: Mapping[str, Tensor], noise: Tensor | None, batch: int, seed: int, on_step: OnStep | None
    ) -> tuple[Tensor, dict[str, float]]:
        """A program's sample, and the seconds spent in each network; arguments as of `Stepwise.run`."""
        with self._borrowed(batch) as session:
            return session.call("eg_generate", name, conditions, noise, batch, seed, on_step)

    def open_stream(self, name: str, batch: int, seed: int) -> NativeStream:
        """A stream of a program with states, from its beginning."""
        return NativeStream(self, name, batch, seed)

    def close(self) -> None:
        """Release sessions and model."""
        with self._lock:
            for session in self._idle:
                session.close()
            self._idle.clear()
            self.library.c.eg_close(self.model)
            self.model = ctypes.c_void_p()


class NativeStream:
    """One stream: a session of its own."""

    def __init__(self, runner: Native, name: str, batch: int, seed: int) -> None:
        self._session, self._name, self._batch, self._seed = _Session(runner, batch), name, batch, seed

    def step(self, conditions: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """One call; if it raises, the stream is as before."""
        return self._session.call("eg_stream_step", self._name, conditions, None, self._batch, self._seed, None)

    def reset(self) -> None:
        """Back to the beginning."""
        self._session.check(self._session.owner.library.c.eg_stream_reset(self._session.handle))

    def close(self) -> None:
        """Release the session."""
        self._session.close()
