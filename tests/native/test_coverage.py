"""T1b: how much of the reader the corpus, the mutants and the misuse run, counted by gcov."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tests.native.conftest import BUILD

ROOT = Path(__file__).parents[2]
READER = ("bundle.cpp", "checked.h", "json.cpp", "manifest.cpp", "network.cpp", "program.cpp")


@pytest.mark.slow
def test_lines_and_branches_of_the_reader(files, tmp_path):
    """At least 95% of lines and 90% of branches; branches that only a throw takes are not counted."""
    configure = ["cmake", "-G", "Ninja", "-S", ROOT / "runtimes" / "c", "-B", tmp_path, f"-DEDGEGEN_ORT_INCLUDE={BUILD / 'ort-headers'}"]
    subprocess.run([*configure, "-DEDGEGEN_TESTS=ON", "-DEDGEGEN_COVERAGE=ON", "-DCMAKE_BUILD_TYPE=Debug"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", tmp_path], check=True, capture_output=True)
    tiny, small, stream = (files / f"{name}.edgegen" for name in ("tiny", "small", "stream"))
    for words in (
        ["statuses", files / "corpus"], ["misuse", tiny, stream], ["memory", "failing", tiny], ["sizes", small],
        ["mutants", "tables", "20000", "1", "even", "quiet", tiny, small, stream], ["mutants", "whole", "10000", "2", "odd", "quiet", tiny, stream],
    ):  # fmt: skip
        subprocess.run([tmp_path / "tests" / f"test-{words[0]}", *words[1:]], check=True, capture_output=True)
    subprocess.run([tmp_path / "edgegen-run", "inspect", tiny], check=True, capture_output=True)
    lines: dict[tuple[str, int], int] = defaultdict(int)
    branches: dict[tuple[str, int, int], int] = defaultdict(int)
    for data in tmp_path.glob("CMakeFiles/edgegen_objects.dir/src/*.gcda"):
        report = json.loads(
            subprocess.run(["gcov", "--json-format", "--branch-probabilities", "--stdout", data], check=True, capture_output=True).stdout
        )
        for file in report["files"]:
            name = Path(file["file"]).name
            for line in file["lines"] if name in READER else ():
                lines[name, line["line_number"]] += line["count"]
                for i, branch in enumerate(b for b in line["branches"] if not b["throw"]):
                    branches[name, line["line_number"], i] += branch["count"]
    for name in READER:
        mine, ways = [c for (f, _), c in lines.items() if f == name], [c for (f, _, _), c in branches.items() if f == name]
        print(f"{name}: {sum(c > 0 for c in mine)} of {len(mine)} lines, {sum(c > 0 for c in ways)} of {len(ways)} branches")
    assert sum(c > 0 for c in lines.values()) >= 0.95 * len(lines)
    assert sum(c > 0 for c in branches.values()) >= 0.9 * len(branches)
