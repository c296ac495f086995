"""T8: a tampered or foreign engine never reaches TensorRT; it is built again."""

from __future__ import annotations

import os
import shutil
import stat

import numpy as np
import pytest

from edgegen.errors import BuildError, Status
from edgegen.targets.tensorrt import BuildOptions, EngineCache, cache, engine_key

MODEL, GPU = b"a model", "NVIDIA GeForce RTX 3060 00112233445566778899aabbccddeeff SM86"
ENGINE = np.random.default_rng(0).bytes(700)


def key(model=MODEL, engine="tensorrt-rtx", version="1.7.1.116", gpu=GPU, options=None):
    return engine_key(model, engine, version, gpu, (options or BuildOptions()).to_json())


class Spy:
    """Stands in for TensorRT's deserializer; anything but a good engine must never come here."""

    def __init__(self, *good):
        self.good, self.calls, self.builds = good or (ENGINE,), 0, 0

    def deserialize(self, data):
        assert data in self.good, "tampered bytes reached the deserializer"
        self.calls += 1
        return data

    def build(self):
        self.builds += 1
        return self.good[0]


@pytest.fixture
def kept(tmp_path):
    """A cache with one engine, and that engine's file."""
    engines = EngineCache(tmp_path / "engines")
    engines.store(key(), ENGINE)
    return engines, tmp_path / "engines" / f"{key()}.engine"


def test_an_engine_is_built_once(tmp_path):
    engines, spy = EngineCache(tmp_path / "a" / "b"), Spy()
    for _ in range(3):
        assert engines.get_or_build(key(), spy.build, spy.deserialize) == ENGINE
    assert (spy.builds, spy.calls) == (1, 3)
    assert EngineCache(tmp_path / "a" / "b").load(key()) == ENGINE
    assert engines.load(key(model=b"another")) is None


def test_a_thousand_bit_flips_are_all_rebuilt_and_none_is_deserialized(kept, monkeypatch):
    engines, path = kept
    monkeypatch.setattr(cache.os, "fsync", lambda _: None)  # a thousand waits for the disk are no part of this
    good = path.read_bytes()
    bits = len(good) * 8
    assert bits > 1000
    places = np.random.default_rng(1).choice(bits, 1000, replace=False)
    for bit in places:
        data = bytearray(good)
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        assert engines.load(key()) is None
        assert not path.exists()
        path.write_bytes(data)
        path.chmod(0o600)
        spy = Spy()
        assert engines.get_or_build(key(), spy.build, spy.deserialize) == ENGINE
        assert (spy.builds, spy.calls) == (1, 1)  # the one call is of what was built just now
    assert engines.load(key()) == ENGINE


@pytest.mark.parametrize("size", [0, 1, 16, 47, 48, 49, 747])
def test_truncated_and_lengthened_files_are_rebuilt(kept, size):
    engines, path = kept
    good = path.read_bytes()
    for data in (good[:size], good + bytes(size + 1)):
        path.write_bytes(data)
        assert engines.load(key()) is None
        assert not path.exists()


def test_swapped_files_and_other_gpus_versions_and_flags_are_other_engines(kept):
    engines, path = kept
    others = {
        "model": key(model=b"a modem"), "engine": key(engine="tensorrt"), "version": key(version="1.8"), "gpu": key(gpu=GPU.replace("3060", "4060")),
        "uuid": key(gpu=GPU.replace("00", "01", 1)), "flags": key(options=BuildOptions(capabilities=("SM86",))),
        "profiles": key(options=BuildOptions(profiles={"x": ((1,), (2,), (3,))})),
    }  # fmt: skip
    assert len({*others.values(), key()}) == 8
    for other in others.values():
        target = path.with_name(f"{other}.engine")
        assert engines.load(other) is None
        shutil.copy2(path, target)  # a good engine under another's name
        assert engines.load(other) is None
        assert not target.exists()
    assert engines.load(key()) == ENGINE


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o666, 0o700, 0o400])
def test_files_of_another_mode_are_rebuilt(kept, mode):
    engines, path = kept
    path.chmod(mode)
    assert engines.load(key()) is None
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["engine", "key"])
def test_files_of_another_owner_are_rebuilt(kept, which):
    engines, path = kept
    os.chown(path if which == "engine" else path.with_name("key"), 12345, -1)
    spy = Spy()
    assert engines.get_or_build(key(), spy.build, spy.deserialize) == ENGINE
    assert spy.builds == 1
    assert path.stat().st_uid == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_owner_is_refused_and_never_read(kept, caplog):
    engines, path = kept
    os.chown(path.parent, 12345, -1)
    assert engines.load(key()) is None
    with pytest.raises(BuildError, match="belongs to user 12345") as e:
        EngineCache(path.parent)
    assert e.value.code == Status.CANNOT_WRITE
    spy = Spy()
    assert engines.get_or_build(key(), spy.build, spy.deserialize) == ENGINE  # used, not kept
    assert "not kept" in caplog.text


def test_a_folder_that_others_may_enter_is_emptied(kept):
    engines, path = kept
    secret = path.with_name("key").read_bytes()
    path.parent.chmod(0o777)
    assert engines.load(key()) is None
    assert not path.exists()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    engines.store(key(), ENGINE)
    assert path.with_name("key").read_bytes() != secret  # it could have been read
    assert engines.load(key()) == ENGINE


def test_links_are_not_followed(kept, tmp_path):
    engines, path = kept
    elsewhere = tmp_path / "elsewhere.engine"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert engines.load(key()) is None
    assert not path.is_symlink()
    assert elsewhere.exists()
    (tmp_path / "link").symlink_to(path.parent)
    with pytest.raises(BuildError, match="not a link") as e:
        EngineCache(tmp_path / "link")
    assert e.value.code == Status.CANNOT_WRITE
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BuildError):
        EngineCache(tmp_path / "file")


def test_a_fifo_or_a_folder_in_an_engines_place_is_never_read(kept):
    engines, path = kept
    path.unlink()
    os.mkfifo(path, 0o600)
    assert engines.load(key()) is None
    assert not path.exists()
    path.mkdir(0o700)
    assert engines.load(key()) is None


@pytest.mark.parametrize("change", ["lost", "short", "another", "readable"])
def test_engines_of_another_key_are_rebuilt(kept, change):
    engines, path = kept
    secret = path.with_name("key")
    if change == "lost":
        secret.unlink()
    elif change == "readable":
        secret.chmod(0o644)
    else:
        secret.write_bytes(os.urandom(31 if change == "short" else 32))
    assert engines.load(key()) is None
    spy = Spy()
    assert engines.get_or_build(key(), spy.build, spy.deserialize) == ENGINE
    assert engines.load(key()) == ENGINE


def test_what_is_written_is_the_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        engines = EngineCache(tmp_path / "engines")
        engines.store(key(), ENGINE)
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "engines").iterdir()}
    assert modes == {"key": 0o600, f"{key()}.engine": 0o600}
    assert stat.S_IMODE((tmp_path / "engines").stat().st_mode) == 0o700


def test_a_killed_writer_leaves_the_old_engine(kept, monkeypatch):
    engines, path = kept

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", fail)
    with pytest.raises(BuildError, match="no space left") as e:
        engines.store(key(), b"new")
    assert e.value.code == Status.NO_SPACE
    monkeypatch.undo()
    assert engines.load(key()) == ENGINE
    assert sorted(p.suffix for p in path.parent.iterdir()) == ["", ".engine"]


def test_an_engine_that_tensorrt_turns_down_is_built_once_more(kept):
    engines, _ = kept
    old, new = ENGINE, b"built for the new driver"
    spy = Spy(new, old)
    assert engines.get_or_build(key(), spy.build, lambda data: None if data == old else data) == new
    assert engines.load(key()) == new
    with pytest.raises(BuildError, match="does not open the engine that it has just built"):
        engines.get_or_build(key(), spy.build, lambda data: None)


@pytest.mark.parametrize("name", ["", "../evil", "a" * 63, "G" * 64, "a" * 63 + "/"])
def test_keys_are_names_of_files_and_nothing_else(kept, name):
    with pytest.raises(BuildError, match="no key of the engine cache"):
        kept[0].load(name)
