"""T1, T1b, T17, T24: structure-aware mutants of bundles, opened under sanitizers, at odd addresses, and by both readers.

Each change runs the counts of reliability.md; `make fuzz` those of a release, in hours.
"""

from __future__ import annotations

import re
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgegen import canonical
from edgegen.bundle import parse_bundle
from edgegen.bundle.layout import HEADER
from edgegen.errors import EdgegenError, Status
from tests.native.conftest import command, run_native
from tests.native.random_programs import random_bundle


@pytest.fixture(scope="module")
def seeds(files, tmp_path_factory):
    """Sound bundles to start from: small ones, one with states, one with every instruction."""
    path = tmp_path_factory.mktemp("seeds") / "every.edgegen"
    path.write_bytes(random_bundle(3, 3))
    return [files / "small.edgegen", files / "stream.edgegen", path, files / "tiny.edgegen"]


def mutate(build, kind, count, seed, seeds, placed="even"):
    """How many mutants were opened with each status."""
    done = subprocess.run(
        [*command(build, "mutants"), kind, str(count), str(seed), placed, "quiet", *map(str, seeds)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = {int(status): int(n) for status, n in re.findall(r"^(\d+): (\d+)$", done.stderr, re.M)}
    assert sum(found.values()) == count
    return found


def test_mutants_of_headers_and_tables_end_in_a_status(seeds):
    """T1: 200,000 under ASan and UBSan, 200,000 in the build that ships; and every kind of status is reached."""
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(mutate, build, "tables", 100_000, seed, seeds[:3]) for build, seed in (("asan", 1), ("test", 2), ("asan", 3), ("test", 4))
        ]
    for run in runs:
        assert set(run.result()) >= {201, 202, 203, 204, 205, 206, 207, 208, 209}


def test_mutants_of_whole_bundles_end_in_a_status(seeds):
    """T1b: 20,000, hashes made right; a fifth or so opens."""
    found = mutate("asan", "whole", 20_000, 5, seeds)
    assert set(found) >= {0, 205, 207, 208, 210, 211}
    assert 1000 < found[0] < 15_000


def test_mutants_at_odd_addresses_on_32_bit_arm_and_under_ubsan(seeds):
    """T24: 10,000 each."""
    for build in ("asan", "armhf"):
        mutate(build, "whole", 5_000, 6, seeds[:3], "odd")
        mutate(build, "tables", 5_000, 7, seeds[:3], "odd")


def python_status(data):
    try:
        bundle = parse_bundle(data)
    except EdgegenError as e:
        return int(e.code)
    length = HEADER.unpack_from(data)[5]
    text = data[64 : 64 + length]
    assert canonical.encode(canonical.decode(text)) == text and bundle.data == data  # encoding again is the identity
    return 0


def differential(count, seed, seeds, kind):
    """Statuses of both readers on the same mutants: all differences, and how often each status was met."""
    process = subprocess.Popen(
        [*command("test", "mutants"), kind, str(count), str(seed), "even", "emit", *map(str, seeds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    differences, met = [], dict.fromkeys(Status, 0)
    for _ in range(count):
        status, size = struct.unpack("<iI", process.stdout.read(8))
        data = process.stdout.read(size)
        found = python_status(data)
        met[Status(status)] += 1
        if found != status:
            differences.append((status, found, data))
    assert process.wait() == 0
    return differences, met


@pytest.mark.parametrize("kind", ["tables", "whole"])
def test_both_readers_give_the_same_status(seeds, kind):
    """T17."""
    differences, met = differential(25_000, 11, seeds[:3], kind)
    assert not differences, [(a, b, d[:200]) for a, b, d in differences[:3]]
    assert met[Status.BAD_MANIFEST] > 100 and (kind == "tables" or met[Status.OK] > 1000)


@pytest.mark.fuzz
@pytest.mark.parametrize("build", ["asan", "test"])
def test_forty_million_mutants(seeds, build):
    """T1 before a release: 40 million of headers and tables, 1 million of whole bundles."""
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(mutate, build, "tables", 10_000_000, seed, seeds[:3]) for seed in range(100, 104)]
        runs += [pool.submit(mutate, build, "whole", 500_000, seed, seeds) for seed in range(200, 202)]
    print({build: [run.result() for run in runs]})


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["tables", "whole"])
def test_both_readers_agree_on_a_million(seeds, kind):
    """T17 before a release."""
    differences, met = differential(500_000, 12, seeds[:3], kind)
    print(kind, met)
    assert not differences, [(a, b, d[:200]) for a, b, d in differences[:3]]


@pytest.mark.fuzz
def test_every_bit_of_a_hundred_kilobytes(files, tmp_path):
    """T4: about 10^6 flips."""
    data = random_bundle(5, 40)
    (tmp_path / "big.edgegen").write_bytes(data)
    print(run_native("test", "flips", tmp_path / "big.edgegen", timeout=7200))
