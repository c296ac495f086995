"""A device's own cache of engines. An engine is native code: what comes out of here is what this user put in on this device, or nothing.

A folder that only its owner may enter (0700) holds a key made once (0600) and one file per engine, `KEY.engine`: magic, an HMAC-SHA256 over
the key's name and the bytes, the bytes. Anything that does not agree (a flipped bit, another engine's file, another owner or mode, a
link) is deleted and built again; it never reaches TensorRT.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgegen.errors import BuildError, EdgegenError, Status
from edgegen.workspace import write_error

__all__ = ["EngineCache", "engine_key"]

_log = logging.getLogger(__name__)
_MAGIC = b"edgegen engine 1"
_KEY_FILE, _KEY_BYTES, _MAC_BYTES = "key", 32, 32
_SUFFIX = ".engine"
_HEX = frozenset("0123456789abcdef")

T = TypeVar("T")


def engine_key(model: bytes, engine: str, version: str, gpu: str, flags: Mapping[str, Any]) -> str:
    """The name of an engine: 64 hex digits over all that it depends on.

    model: the ONNX bytes it is built from. engine, version: of the module. gpu: name and UUID of the device. flags: `BuildOptions.to_json()`.
    """
    parts = [hashlib.sha256(model).hexdigest(), engine, version, gpu, dict(flags)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _ours(status: os.stat_result, mode: int) -> bool:
    """Whether a file is this user's and lets others do nothing. Windows has neither owners nor modes here: its profile folders do that."""
    if sys.platform == "win32":
        return True
    return status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == mode


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A descriptor of a regular file that is ours, 0600 and no link; None for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        yield None
        return
    try:
        status = os.fstat(descriptor)
        yield descriptor if stat.S_ISREG(status.st_mode) and _ours(status, 0o600) else None
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes | None:
    """The bytes of a file that `_opened` accepts."""
    with _opened(path) as descriptor:
        if descriptor is None:
            return None
        with os.fdopen(os.dup(descriptor), "rb") as f:
            return f.read()


def _remove(path: Path) -> None:
    """Delete a file or a link; what cannot be deleted (a folder) stays, and is never read either."""
    with contextlib.suppress(OSError):
        path.unlink()


def _write(path: Path, data: bytes) -> None:
    """Write a file of mode 0600: `path` holds the old bytes or all of the new ones. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.chmod(0o600)  # whatever the umask
        temporary.replace(path)
    except BaseException:
        _remove(temporary)
        raise


class EngineCache:
    """A folder of engines, made if it is not there. Several processes of one user may share it.

    Raises BuildError (CANNOT_WRITE) for a folder that is a link, another user's, or that cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._secure()
        except OSError as e:
            raise write_error(folder, e) from e

    def _secure(self) -> None:
        """Make sure that only we may enter the folder. What others could have written until now is thrown away."""
        status = self.folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise BuildError(f"{self.folder}: the engine cache must be a folder of its own, not a link or a file", Status.CANNOT_WRITE)
        if sys.platform == "win32":
            return
        if status.st_uid != os.geteuid():
            message = f"{self.folder}: the engine cache belongs to user {status.st_uid}, expected {os.geteuid()}; choose a folder of yours"
            raise BuildError(message, Status.CANNOT_WRITE)
        if stat.S_IMODE(status.st_mode) != 0o700:
            _log.warning("%s: others could enter the engine cache; emptying it", self.folder)
            self.folder.chmod(0o700)
            for path in self.folder.iterdir():
                if path.name == _KEY_FILE or path.suffix in (_SUFFIX, ".tmp"):
                    _remove(path)

    def _secret(self) -> bytes:
        """This device's key; made if there is none, or if the one there is not ours alone."""
        path = self.folder / _KEY_FILE
        secret = _read(path)
        if secret is None or len(secret) != _KEY_BYTES:
            _remove(path)
            _write(path, os.urandom(_KEY_BYTES))
            secret = _read(path)  # another process may have written its own at the same time: the last one counts
        if secret is None or len(secret) != _KEY_BYTES:
            raise BuildError(f"{path}: the engine cache's key cannot be kept there", Status.CANNOT_WRITE)
        return secret

    def _path(self, key: str) -> Path:
        if len(key) != 64 or not _HEX.issuperset(key):
            raise BuildError(f"{key!r} is no key of the engine cache; expected 64 hex digits, of `engine_key`")
        return self.folder / f"{key}{_SUFFIX}"

    def _mac(self, key: str, data: bytes) -> bytes:
        mac = hmac.new(self._secret(), _MAGIC + key.encode(), "sha256")
        mac.update(data)
        return mac.digest()

    def load(self, key: str) -> bytes | None:
        """The engine stored under `key`, or None: not there, or not as this device wrote it, and then it is deleted."""
        path = self._path(key)
        try:
            self._secure()
            found = _read(path)
            head = len(_MAGIC) + _MAC_BYTES
            if found is not None and found[: len(_MAGIC)] == _MAGIC and len(found) > head:
                data = found[head:]
                if hmac.compare_digest(found[len(_MAGIC) : head], self._mac(key, data)):
                    return data
        except (OSError, EdgegenError) as e:
            _log.warning("%s: cannot be used as an engine cache: %s", self.folder, e)
            return None
        if path.is_symlink() or path.exists():
            _log.warning("%s is not as this device wrote it; building the engine again", path)
            _remove(path)
        return None

    def store(self, key: str, data: bytes) -> None:
        """Keep an engine. Raises BuildError (NO_SPACE, CANNOT_WRITE)."""
        path = self._path(key)
        try:
            self._secure()
            _write(path, _MAGIC + self._mac(key, data) + data)
        except OSError as e:
            raise write_error(path, e) from e

    def get_or_build(self, key: str, build: Callable[[], bytes], deserialize: Callable[[bytes], T | None]) -> T:
        """What `deserialize` makes of the stored engine, or of a new one, which is then stored.

        An engine that TensorRT itself turns down (None) is built once more. A cache that cannot be written costs a warning, not the engine.
        Raises what the two raise, and BuildError if the new engine is turned down too.
        """
        stored = self.load(key)
        if stored is not None:
            opened = deserialize(stored)
            if opened is not None:
                return opened
            _remove(self._path(key))
        data = build()
        try:
            self.store(key, data)
        except BuildError as e:
            _log.warning("the engine is used and not kept: %s", e)
        opened = deserialize(data)
        if opened is None:
            raise BuildError("TensorRT does not open the engine that it has just built; its log says why", Status.BACKEND_FAILED)
        return opened
