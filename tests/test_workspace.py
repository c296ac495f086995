"""Stage directories: found again by content, whole or absent, and clean after a kill."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading

import pytest

from edgegen.errors import BuildError, Status
from edgegen.workspace import Workspace, check_writable, stage_digest, write_atomically


def make(text, calls=None):
    def produce(directory):
        if calls is not None:
            calls.append(text)
        (directory / "a.txt").write_text(text)

    return produce


def contents(folder):
    """Names in a workspace, without its lock."""
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock")


def test_a_stage_is_made_once_per_key(tmp_path):
    calls = []
    workspace = Workspace(tmp_path / "cache")
    first = workspace.stage("export", {"x": 1}, make("one", calls))
    assert workspace.stage("export", {"x": 1}, make("one", calls)) == first
    assert Workspace(tmp_path / "cache").stage("export", {"x": 1}, make("one", calls)) == first
    assert workspace.stage("export", {"x": 2}, make("two", calls)) != first
    assert calls == ["one", "two"]
    assert (first / "a.txt").read_text() == "one"


def test_equal_content_has_an_equal_digest(tmp_path):
    workspace = Workspace(tmp_path)
    a, b, c = (workspace.stage("s", {"k": k}, make(text)) for k, text in enumerate(["same", "same", "other"]))
    assert stage_digest(a) == stage_digest(b) != stage_digest(c)


@pytest.mark.parametrize("damage", ["change", "remove", "stamp", "no stamp"])
def test_a_damaged_stage_is_made_again(tmp_path, damage, caplog):
    calls = []
    workspace = Workspace(tmp_path)
    made = workspace.stage("s", {}, make("right", calls))
    match damage:
        case "change":
            (made / "a.txt").write_text("wrong")
        case "remove":
            (made / "a.txt").unlink()
        case "stamp":
            (made / "stage.json").write_text("{")
        case "no stamp":
            (made / "stage.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert workspace.stage("s", {}, make("right", calls)) == made
    assert (made / "a.txt").read_text() == "right"
    assert len(calls) == 2


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failed_stage_leaves_nothing(tmp_path, error):
    workspace = Workspace(tmp_path)

    def produce(directory):
        (directory / "half").write_text("half")
        raise error

    with pytest.raises((ValueError, KeyboardInterrupt, BuildError)) as e:
        workspace.stage("s", {}, produce)
    if isinstance(error, OSError):
        assert e.value.code == Status.NO_SPACE
    assert contents(tmp_path) == []


def test_what_a_killed_build_left_is_removed_and_a_running_one_is_not(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from edgegen.workspace import Workspace\n"
        "def produce(d):\n    (d / 'x').write_text('x'); print('in', flush=True); time.sleep(60)\n"
        "Workspace(Path(sys.argv[1])).stage('s', {}, produce)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    Workspace(tmp_path)
    assert len(list(tmp_path.glob("tmp-*"))) == 1  # it is still running
    process.kill()
    process.communicate()
    (tmp_path / "tmp-s-1-empty").mkdir()  # killed between mkdir and the lock
    Workspace(tmp_path)
    assert list(tmp_path.glob("tmp-*")) == []


def test_two_builds_at_once_agree_on_one_stage(tmp_path):
    barrier = threading.Barrier(4)
    found = []

    def produce(directory):
        barrier.wait()
        (directory / "a.txt").write_text("same")

    threads = [threading.Thread(target=lambda: found.append(Workspace(tmp_path).stage("s", {}, produce))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert contents(tmp_path) == [found[0].name]


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_mix(tmp_path, monkeypatch):
    path = tmp_path / "out"
    inside, done = threading.Event(), threading.Event()

    def slow(descriptor):
        inside.set()
        done.wait(10)

    monkeypatch.setattr(os, "fsync", slow)
    thread = threading.Thread(target=write_atomically, args=(path, b"slow"))
    thread.start()
    inside.wait(10)
    with pytest.raises(BuildError, match="another process is writing"):
        write_atomically(path, b"second")
    done.set()
    thread.join()
    assert path.read_bytes() == b"slow"


def test_a_symlink_at_the_temporary_name_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".out.tmp").symlink_to(victim)
    with pytest.raises(BuildError):
        write_atomically(tmp_path / "out", b"x")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("place", ["absent/out", "."])
def test_places_that_cannot_be_written_are_refused_at_once(tmp_path, place):
    with pytest.raises(BuildError, match="cannot write") as e:
        check_writable(tmp_path / place)
    assert e.value.code == Status.CANNOT_WRITE


def test_checking_a_place_leaves_another_writers_file_alone(tmp_path):
    (tmp_path / ".out.tmp").write_text("someone is writing this")
    check_writable(tmp_path / "out")
    assert (tmp_path / ".out.tmp").read_text() == "someone is writing this"
    check_writable(tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.tmp"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; tests/faults mounts a read-only folder instead")
def test_a_read_only_folder_is_refused_at_once(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(BuildError, match="choose a folder that you may write to"):
        check_writable(tmp_path / "out")
