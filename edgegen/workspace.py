"""Content-addressed stage directories: what a stage made is found again by the hash of everything it was made from.

A stage writes into a temporary directory that is renamed into place once complete, so a directory with a stamp is whole.
A killed build leaves only a temporary directory; the next one removes it and goes on after the last stamp.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from edgegen.errors import BuildError, EdgegenError, Status

if sys.platform != "win32":
    import fcntl

__all__ = ["Workspace", "cache_folder", "check_writable", "digest_file", "stage_digest", "write_atomically", "write_error"]

_log = logging.getLogger(__name__)
_STAMP = "stage.json"
_TEMPORARY = "tmp-"
_LOCK = ".lock"


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_error(path: Path, error: OSError) -> EdgegenError:
    """The error for a failed write: what could not be written, why, and what to do."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BuildError(f"no space left to write {path}: {error.strerror}; free some, or choose another place", Status.NO_SPACE)
    return BuildError(f"cannot write {path}: {error.strerror or error}; choose a folder that you may write to", Status.CANNOT_WRITE)


def _sync(path: Path) -> None:
    """Flush a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: Path) -> None:
    """Raise BuildError now if `path` could not be written at the end of a long build: its folder is absent or read-only."""
    folder = path.parent
    if not folder.is_dir():
        raise BuildError(f"cannot write {path}: no folder {folder}; make it first", Status.CANNOT_WRITE)
    if path.is_dir():
        raise BuildError(f"cannot write {path}: it is a folder; give a file name", Status.CANNOT_WRITE)
    probe = path.with_name(f".{path.name}.tmp")
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
        probe.unlink()
    except FileExistsError:
        return  # left by a killed build, or another build is writing now: write_atomically tells them apart
    except OSError as e:
        raise write_error(path, e) from e


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file through a locked temporary sibling and a rename: `path` holds the old bytes or all of the new ones.

    Raises BuildError: the folder is absent or read-only, the disk is full, or another process is writing the same file.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o644), "wb", buffering=0) as f:
            if not _try_lock(f) or not _is_file(f, temporary):
                raise BuildError(f"another process is writing {path}; wait for it, or give another output", Status.CANNOT_WRITE)
            try:
                f.truncate()
                rest = memoryview(data)
                while rest:
                    rest = rest[f.write(rest) :]
                os.fsync(f.fileno())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        _sync(path.parent)
    except OSError as e:
        raise write_error(path, e) from e


def _is_file(f: IO[bytes], path: Path) -> bool:
    """Whether `path` still names the open file: another writer may have renamed it into place before we held the lock."""
    try:
        return os.path.samestat(os.fstat(f.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(f: IO[bytes]) -> bool:
    """Take an advisory lock that dies with the process; where there are none (Windows), every try succeeds."""
    if sys.platform != "win32":
        try:
            fcntl.flock(f.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def cache_folder() -> Path:
    """Where stages and engines are kept: $EDGEGEN_CACHE, else `edgegen` in the user's cache folder."""
    if os.environ.get("EDGEGEN_CACHE"):
        return Path(os.environ["EDGEGEN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgegen"


class Workspace:
    """A folder of stage directories, `root/<stage>-<key>`. Several builds may share it, at the same time too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
        except OSError as e:
            raise write_error(root, e) from e

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the workspace for the short moments in which its list of directories changes."""
        with (self.root / _LOCK).open("a+b") as f:
            if sys.platform != "win32":
                fcntl.flock(f.fileno(), fcntl.LOCK_EX)
            yield

    def _remove_stale(self) -> None:
        """Remove what killed builds left: temporary directories whose lock nobody holds."""
        with self._locked():
            for directory in self.root.glob(f"{_TEMPORARY}*"):
                with (directory / _LOCK).open("a+b") as f:
                    if sys.platform != "win32" and _try_lock(f):
                        shutil.rmtree(directory, ignore_errors=True)

    def stage(self, name: str, key: Mapping[str, Any], produce: Callable[[Path], None]) -> Path:
        """The directory that `produce` made from `key` (JSON values), now or in an earlier build.

        `produce` receives an empty directory to fill. If it raises, nothing stays behind.
        """
        text = json.dumps({"stage": name, **key}, sort_keys=True, separators=(",", ":"))
        final = self.root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        if self._is_whole(final):
            _log.info("%s: found %s", name, final.name)
            return final
        try:
            with self._temporary(name) as directory:
                produce(directory)
                self._commit(directory, final, text)
        except OSError as e:
            raise write_error(self.root, e) from e
        return final

    @contextlib.contextmanager
    def _temporary(self, name: str) -> Iterator[Path]:
        directory = self.root / f"{_TEMPORARY}{name}-{os.getpid()}-{os.urandom(4).hex()}"
        with contextlib.ExitStack() as stack:
            with self._locked():
                directory.mkdir()
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                _try_lock(stack.enter_context((directory / _LOCK).open("wb")))
            yield directory

    def _commit(self, directory: Path, final: Path, key: str) -> None:
        files = sorted(p for p in directory.iterdir() if p.name != _LOCK)
        for path in files:
            _sync(path)
        stamp = {"key": key, "files": {p.name: [p.stat().st_size, digest_file(p)] for p in files}}
        (directory / _STAMP).write_text(json.dumps(stamp, sort_keys=True))
        _sync(directory / _STAMP)
        with self._locked():
            if self._is_whole(final):
                return  # another build finished the same stage first
            if final.exists():
                shutil.rmtree(final)
            (directory / _LOCK).unlink()
            directory.rename(final)
            _sync(self.root)

    def _is_whole(self, directory: Path) -> bool:
        """Whether a stage directory has a stamp and the very bytes that it lists."""
        try:
            files = json.loads((directory / _STAMP).read_text())["files"]
            for name, (size, digest) in files.items():
                path = directory / name
                if path.stat().st_size != size or digest_file(path) != digest:
                    _log.warning("%s: %s was changed after it was made; making it again", directory.name, name)
                    return False
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as e:
            _log.warning("%s: unreadable (%s); making it again", directory.name, e)
            return False
        return True


def stage_digest(directory: Path) -> str:
    """The digest of a stage's files: what a later stage's key holds for it."""
    files = json.loads((directory / _STAMP).read_text())["files"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
