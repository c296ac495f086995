"""The C runtime held to reliability.md: T13 to T16, T21 to T23; and what the library is made of."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.native.conftest import BUILD, command, run_native

C = Path(__file__).parents[2] / "runtimes" / "c"


@pytest.mark.parametrize("name", ["tiny", "stream"])
def test_every_allocation_may_fail(files, name):
    """T13, under ASan and LSan: once each, and all from some point on; every call says so, nothing leaks, handles can be destroyed."""
    counts = [int(n) for n in re.findall(r"^(\d+) allocations", run_native("asan", "memory", "failing", files / f"{name}.edgegen"), re.M)]
    assert len(counts) == 2 and min(counts) > 100


def test_every_allocation_of_ours_may_fail_around_onnx_runtime(files, onnxruntime_library):
    assert run_native("test", "memory", "failing", files / "tiny.edgegen", onnxruntime_library).count("allocations") == 2


@pytest.mark.parametrize("engine", [False, True])
def test_later_runs_allocate_nothing_and_memory_stays_flat(files, onnxruntime_library, engine):
    run_native("test", "memory", "steady", files / "tiny.edgegen", 3000, *([onnxruntime_library] if engine else []))


@pytest.mark.parametrize("build", ["asan", "test", "aarch64", "armhf"])
def test_wrong_calls_have_their_exact_status_and_touch_nothing(files, build):
    """T14, T15, T23: between pages that cannot be touched."""
    assert int(run_native(build, "misuse", files / "tiny.edgegen", files / "stream.edgegen").split()[0]) >= 200


def test_eight_threads_on_one_model(files, onnxruntime_library):
    """T16: 8 x 1,000 runs each under TSan with the surrogate, and with ONNX Runtime (which TSan would see half of)."""
    assert "8000 of 8000 runs the same" in run_native("tsan", "threads", "shared", files / "tiny.edgegen", 1000)
    assert "8000 of 8000 runs the same" in run_native("test", "threads", "shared", files / "tiny.edgegen", 1000, onnxruntime_library)


@pytest.mark.parametrize(("build", "times"), [("test", 1000), ("tsan", 200)])
def test_cancelling_at_a_random_time(files, build, times):
    """T22."""
    assert f" of {times} cancelled" in run_native(build, "threads", "cancel", files / "tiny.edgegen", times)


def test_cancelling_stops_inside_a_network(tmp_path, onnxruntime_library):
    """eg_cancel reaches ONNX Runtime: a network of many slow nodes does not run to its end."""
    import threading
    import time

    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from edgegen import canonical
    from edgegen.bundle import Manifest, ProgramEntry, Variant, bundle_bytes, parse_bundle
    from edgegen.errors import Cancelled
    from edgegen.program import Eval, Input, Program, Reg, Step, program_to_json
    from edgegen.runtime.session import open_session
    from edgegen.spec import BATCH, SampleSpec, Signature, TensorSpec

    size, depth = 600, 300
    nodes = [helper.make_node("MatMul", [f"x{i}" if i else "x", "w"], [f"x{i + 1}" if i + 1 < depth else "y"]) for i in range(depth)]
    orthogonal = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0].astype(np.float32)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size, size]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "deep", values[:1], values[1:], [numpy_helper.from_array(orthogonal, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    tensor = (BATCH, size, size)
    program = Program("p", (Input("x_T"),), (Eval("f", {"x": (Reg("x_T"),)}, {"y": ("y",)}),), {"sample": "y"}, {"f": 1}, (Step(1, "y", 0.0),))
    manifest = Manifest(
        "deep", "", "", "test", False, SampleSpec(tensor[1:]), (), {"f": Signature((TensorSpec("x", "float32", tensor),), (TensorSpec("y", "float32", tensor),))},
        (ProgramEntry("p", 1, "p.json"),), (Variant("v", "onnxruntime", {"f": "f.onnx"}, ()),), {},
    )  # fmt: skip
    bundle = parse_bundle(bundle_bytes(manifest, {"p.json": canonical.encode(program_to_json(program)), "f.onnx": model.SerializeToString()}))
    assert onnx.checker.check_model(model) is None
    with open_session(bundle, threads=1, runtime="native") as session:
        began = time.perf_counter()
        session.generate(seed=1)
        whole = time.perf_counter() - began
        runner = session._runner
        native = runner._idle[0]
        threading.Timer(whole / 5, lambda: runner.library.c.eg_cancel(native.handle)).start()
        began = time.perf_counter()
        with pytest.raises(Cancelled, match="inside a network"):
            session.generate(seed=1)
        assert time.perf_counter() - began < 0.7 * whole
        assert session.generate(seed=1).shape == (1, size, size)


def stripped(tmp_path):
    path = tmp_path / "libedgegen.so"
    subprocess.run(["strip", "-o", path, BUILD / "native" / "libedgegen.so"], check=True)
    return path


def test_the_library_is_small_and_needs_little(tmp_path):
    assert stripped(tmp_path).stat().st_size <= 600_000
    needed = re.findall(
        r"NEEDED.*\[(.*)\]", subprocess.run(["readelf", "-d", BUILD / "native" / "libedgegen.so"], capture_output=True, text=True, check=True).stdout
    )
    assert {name.split(".so")[0] for name in needed} <= {"libc", "libstdc++", "libdl", "ld-linux-x86-64"}


@pytest.mark.parametrize("build", ["", "aarch64"])
def test_exported_symbols_are_the_committed_list(build):
    library = BUILD / (f"native-{build}" if build else "native") / "libedgegen.so"
    lines = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {line.split()[-1].split("@")[0] for line in lines if not line.endswith(" A EDGEGEN_1")} - {"EDGEGEN_1"}
    assert found == set((C / "symbols.txt").read_text().split())
    header = (C / "include" / "edgegen.h").read_text()
    assert found == set(re.findall(r"^EG_API [^(]*?\b(eg_\w+)\(", header, re.M))


def test_all_memory_comes_from_the_allocator():
    """No operator new, no default memory resource: what the library itself allocates is what the caller's allocator gives. malloc is its default."""
    undefined = subprocess.run(["nm", "-D", "-u", BUILD / "native" / "libedgegen.so"], capture_output=True, text=True, check=True).stdout
    assert "_Znw" not in undefined and "_Zna" not in undefined and "get_default_resource" not in undefined and "new_delete_resource" not in undefined
    users = [p.name for p in (C / "src").glob("*.cpp") if re.search(r"\b(malloc|calloc|realloc|strdup)\s*\(", p.read_text())]
    assert users == ["memory.cpp"]


def test_no_text_of_the_library_names_a_solver():
    """Architecture, line 1: the device knows only instructions."""
    from edgegen.solvers import SOLVERS

    texts = re.findall(rb"[\x20-\x7e]{6,}", (BUILD / "native" / "libedgegen.so").read_bytes())  # shorter ones are machine code
    words = {word for text in texts for word in re.findall(r"[a-z0-9_]+", text.decode().lower())}
    assert "onnx" in words and not words & set(SOLVERS)


def test_statuses_are_those_of_the_python_package():
    from edgegen.errors import Status

    header = (C / "include" / "edgegen.h").read_text()
    enum = header[header.index("EG_OK = 0") :]
    found = dict(re.findall(r"^ *EG_([A-Z_]+) = (\d+)", "  " + enum[: enum.index("}")], re.M))
    assert {s.name: str(int(s)) for s in Status} == found


@pytest.mark.soak
def test_generations_of_a_real_model_for_a_day(onnxruntime_library, tmp_path):
    """T21 by count: reach_policy, 86,400 generations."""
    subprocess.run([".venv/bin/edgegen", "build", "reach_policy", "--no-measure", "-o", tmp_path / "r.edgegen"], check=True, capture_output=True)
    print(run_native("test", "memory", "steady", tmp_path / "r.edgegen", 86_400, onnxruntime_library, timeout=7200))


@pytest.mark.soak
def test_openings(files, onnxruntime_library):
    """T21: open, session, run, close, 40,000 times; resident memory, descriptors and threads of the process stay as they are."""
    print(run_native("test", "memory", "openings", files / "tiny.edgegen", 40_000, timeout=3600))
    print(run_native("test", "memory", "openings", files / "tiny.edgegen", 40_000, onnxruntime_library, timeout=3600))


def test_the_test_programs_see_what_they_are_for(files):
    """The negative control of the harness: a program that fails says so."""
    done = subprocess.run([*command("test", "statuses"), files / "tiny.edgegen"], capture_output=True, text=True)
    assert done.returncode == 1 and "a corpus that is cut" in done.stderr
