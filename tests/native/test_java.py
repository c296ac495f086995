"""The Java classes over libedgegen, on a desktop JVM that checks every call of JNI: samples, errors, cancelling, closing, threads, memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import edgegen
from edgegen import canonical
from edgegen.bundle import Manifest, ProgramEntry, Variant, bundle_bytes, open_bundle
from edgegen.errors import Status
from edgegen.program import Eval, Input, Lincomb, Program, Reg, Step, program_to_json
from edgegen.spec import DTYPES, ConditionSpec, SampleSpec, Signature, TensorSpec
from tests.tiny import stream_bundle

ROOT = Path(__file__).parents[2]
ANDROID = ROOT / "runtimes" / "android"
HEADER = ROOT / "runtimes" / "c" / "include" / "edgegen.h"
LIBRARY = ROOT / "build" / "native" / "libedgegen.so"


@dataclass(frozen=True)
class Java:
    """The compiled classes and the library behind them."""

    classes: Path
    library: Path
    onnxruntime: Path

    def run(self, *words: str, flags: tuple[str, ...] = (), engine: str = "") -> str:
        """What a program printed. It must end well, and the JVM must have found nothing wrong with the calls of JNI."""
        command = ["java", "-Xcheck:jni", *flags, f"-Djava.library.path={self.library}", "-cp", str(self.classes), *words]
        # memory that was released is overwritten, so that its use is noticed
        environment = os.environ | {"LC_ALL": "C.UTF-8", "MALLOC_PERTURB_": "165"} | ({"LD_LIBRARY_PATH": engine} if engine else {})
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, cwd=self.library)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr
        return done.stdout

    def check(self, name: str, bundle: Path, *arguments: object, flags: tuple[str, ...] = ("-Xmx64m",)) -> str:
        """What a check of java/Checks.java printed."""
        return self.run("Checks", name, str(bundle), str(self.onnxruntime), *map(str, arguments), flags=flags)


@pytest.fixture(scope="module")
def java(tmp_path_factory):
    import onnxruntime

    compiler = shutil.which("javac")
    if compiler is None:
        pytest.skip("javac is missing: install a JDK, 9 or newer")
    if not LIBRARY.exists():
        pytest.skip(f"{LIBRARY} is missing: make native")
    folder = tmp_path_factory.mktemp("java")
    sources = [*sorted(ANDROID.glob("src/main/java/edgegen/*.java")), ANDROID / "Example.java", Path(__file__).parent / "java" / "Checks.java"]
    # "options" warns that release 8 is old, in JDKs that are newer than this wrapper needs
    subprocess.run(["javac", "--release", "8", "-Xlint:all,-options", "-Werror", "-d", folder / "classes", *sources], check=True)
    home = os.environ.get("JAVA_HOME") or Path(compiler).resolve().parents[1]
    configure = ["cmake", "-S", ANDROID, "-B", folder / "library", f"-DEDGEGEN_LIBRARY={LIBRARY}"]
    for command in (configure, ["cmake", "--build", folder / "library"]):
        done = subprocess.run(command, env=os.environ | {"JAVA_HOME": str(home)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    engine = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
    return Java(folder / "classes", folder / "library", engine)


@pytest.fixture(scope="module")
def streaming(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "stream.edgegen"
    path.write_bytes(stream_bundle())
    return path


def _program(name: str, conditions: tuple[str, ...], count: int) -> Program:
    """x_T + 0.5 of a network over conditions, with `count` steps that change nothing more."""
    inputs = {"x": (Reg("x_T"),)} | {c: (Reg(c),) for c in conditions}
    first = (Eval("net", inputs, {"y": ("y",)}), Lincomb("out0", ((0.5, "y"), (1.0, "x_T"))))
    rest = tuple(Lincomb(f"out{i}", ((1.0, f"out{i - 1}"),)) for i in range(1, count))
    steps = tuple(Step(2 + i, f"out{i}", 0.0) for i in range(count))
    return Program(name, (Input("x_T"), *(Input(c, "condition") for c in conditions)), first + rest, {"sample": f"out{count - 1}"}, {"net": 1}, steps)


def _sum_of_casts(dtypes: dict[str, str]) -> onnx.ModelProto:
    """y = x + the inputs as float32, each times another power of 4."""
    elements = {d: helper.np_dtype_to_tensor_dtype(np.dtype(d)) for d in DTYPES}
    nodes, total = [], "x"
    constants = []
    for i, name in enumerate(dtypes):
        constants.append(helper.make_tensor(f"w{i}", TensorProto.FLOAT, [], np.float32(4.0**-i).tobytes(), raw=True))
        nodes += [
            helper.make_node("Cast", [name], [f"c{i}"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"c{i}", f"w{i}"], [f"m{i}"]),
            helper.make_node("Add", [total, f"m{i}"], [total := f"s{i}"]),
        ]
    nodes.append(helper.make_node("Identity", [total], ["y"]))
    declared = [helper.make_tensor_value_info(n, elements[d], ["batch", 2]) for n, d in {"x": "float32", **dtypes}.items()]
    output = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])]
    graph = helper.make_graph(nodes, "net", declared, output, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _bundle(path: Path, programs: list[Program], conditions: tuple[ConditionSpec, ...], read: dict[str, str], variants: int = 1) -> Path:
    """A bundle of programs over the network of `_sum_of_casts`."""
    tensors = tuple(TensorSpec(n, d, ("batch", 2)) for n, d in {"x": "float32", **read}.items())
    entries = tuple(ProgramEntry(p.name, len(p.steps), f"program.{i}.json") for i, p in enumerate(programs))
    manifest = Manifest(
        "gru\u00df", "Gr\u00fc\u00dfe \U0001f600 \u6f22", "none", "tests", True, SampleSpec((2,), low=-2.5, high=3.0), conditions,
        {"net": Signature(tensors, (TensorSpec("y", "float32", ("batch", 2)),))}, entries,
        tuple(Variant(f"v{i}", "onnxruntime", {"net": "net.onnx"}, ()) for i in range(variants)), {"recipe": "recipe.json"},
    )  # fmt: skip
    members = {"net.onnx": _sum_of_casts(read).SerializeToString(deterministic=True), "recipe.json": canonical.encode({"note": "\U0001f600"})}
    members |= {e.member: canonical.encode(program_to_json(p)) for e, p in zip(entries, programs, strict=True)}
    path.write_bytes(bundle_bytes(manifest, members))
    return path


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A bundle with a condition of each dtype."""
    conditions = tuple(ConditionSpec(d, d, (2,), default=0.0) for d in DTYPES)
    return _bundle(
        tmp_path_factory.mktemp("kinds") / "kinds.edgegen", [_program("all", DTYPES, 1)], conditions, dict(zip(DTYPES, DTYPES, strict=True))
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A bundle with long lists, texts beyond the basic plane, and a program of 200 steps; its path is no ASCII either."""
    programs = [_program(f"p{i}", ("c1",), 1) for i in range(100)] + [_program("long", ("c1",), 200)]
    numbers = {"minimum": -1.0, "maximum": 1.0, "default": 0.25, "null": 2.0}  # of each condition others; c1, which is read, has a default
    some = [{key: n for bit, (key, n) in enumerate(numbers.items()) if (i + 3) >> bit & 1} for i in range(64)]
    conditions = tuple(ConditionSpec(f"c{i}", "float32", (2,), summary="\U0001f600", **some[i]) for i in range(64))
    return _bundle(tmp_path_factory.mktemp("many") / "\u00fc\U0001f600.edgegen", programs, conditions, {"c1": "float32"}, variants=60)


def _samples(path: Path, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    numbers = np.fromfile(path, "<f4")
    ends = np.cumsum([int(np.prod(s)) for s in shapes])
    assert numbers.size == ends[-1]
    return [part.reshape(s) for part, s in zip(np.split(numbers, ends[:-1]), shapes, strict=True)]


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_samples_equal_those_of_python_bit_for_bit(java, tiny_bundle, tmp_path, variant):
    programs = open_bundle(tiny_bundle).programs
    other = next(name for name, p in programs.items() if len(p.steps) == 3)
    java.check("samples", tiny_bundle, tmp_path / "samples", variant, other)
    noise = ((np.arange(128, dtype=np.float32) - 64) / 32).reshape(2, 1, 8, 8)
    with edgegen.load(tiny_bundle, variant=variant, threads=1) as session:
        wanted = [
            session.generate(seed=5),
            session.generate(seed=5, label=3),
            session.generate(seed=2**64 - 1, label=3),
            session.generate(seed=5, label=3, steps=2),
            session.generate(seed=5, label=3, program=other),
            session.generate(seed=6, label=3, noise=noise, batch=2),
            session.generate(seed=7, label=np.array([0, 1, 3]), batch=3),
            session.generate(seed=8, label=2, batch=2),
            session.generate(seed=5),
            session.generate(seed=5),
        ]
    found = _samples(tmp_path / "samples", *(w.shape for w in wanted))
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.tobytes() == b.tobytes(), f"sample {i}"


def test_arrays_of_every_dtype_reach_the_network(java, kinds, tmp_path):
    java.check("dtypes", kinds, tmp_path / "sample")
    values = {
        "float32": [0.5, -2.25], "float64": [[1.5, -0.125], [3.0, 4.0]], "float16": [1.0, -2.0], "int64": [-3, 1 << 20],
        "int32": [7, -8], "int8": [-128, 127], "uint8": [200, 1], "bool": [True, False],
    }  # fmt: skip
    with edgegen.load(kinds, threads=1) as session:
        wanted = session.generate(seed=1, batch=2, **{name: np.array(v, name) for name, v in values.items()})
    assert _samples(tmp_path / "sample", (2, 2))[0].tobytes() == wanted.tobytes()


def test_infinity_is_an_error_unless_it_is_allowed(java, kinds):
    java.check("nonfinite", kinds)


def test_a_stream_equals_that_of_python_and_survives_failed_steps(java, streaming, tmp_path):
    java.check("stream", streaming, tmp_path / "samples")
    with edgegen.load(streaming, threads=1) as session:
        frames = [np.array([[i, 1, 2, 3], [-i, 5, 6, 7]], np.float32) for i in range(3)]
        with session.stream(seed=4, batch=2) as stream:
            wanted = [*(stream.step(frame=f) for f in frames), stream.step(frame=np.zeros(4, np.float32))]
        with session.stream(seed=9) as stream:
            wanted.append(stream.step(frame=np.zeros(4, np.float32)))
    found = _samples(tmp_path / "samples", *(w.shape for w in wanted))
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.tobytes() == b.tobytes(), f"step {i}"


def _java(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _described(path: Path) -> list[str]:
    """What Checks.inside writes, from the Python reader."""
    bundle = open_bundle(path)
    m, s = bundle.manifest, bundle.manifest.sample
    rows: list[tuple[object, ...]] = [
        (
            m.name,
            m.summary,
            m.licence,
            m.producer,
            path.stat().st_size,
            m.trusted_pickle,
            s.low,
            s.high,
            s.kind == "image",
            list(s.shape),
            int(np.prod(s.shape)),
        )
    ]
    rows += [(c.name, c.summary, c.dtype.upper(), list(c.shape), c.minimum, c.maximum, c.default, c.null) for c in m.conditions]
    for entry in m.programs:
        p = bundle.programs[entry.name]
        read = {i.name for i in p.inputs if i.kind == "condition"}
        reads = [len(m.conditions) > i and m.conditions[i].name in read for i in (0, 1)]
        rows.append((p.name, entry.steps, sum(p.nfe.values()), bool(p.states), *reads, False, False))
    for v in m.variants:
        size = sum(len(bundle.member(x)) for x in (*v.components.values(), *v.weights.values()))
        rows.append((v.name, v.engine, ",".join(p.name for p in v.providers), None, size, len(v.golden)))
    return ["|".join(map(_java, row)) + "|" for row in rows]


def test_what_is_inside_is_what_python_reads(java, tiny_bundle, many, tmp_path):
    for path in (tiny_bundle, many):
        java.check("inside", path, tmp_path / "inside")
        *lines, recipe = (tmp_path / "inside").read_text("utf-8").split("\n")
        assert lines == _described(path)
        assert canonical.decode(recipe.encode()) == open_bundle(path).document("recipe")


def test_long_lists_and_runs_keep_few_references(java, many):
    assert "101 programs, 200 steps" in java.check("many", many)


def test_the_constants_are_those_of_edgegen_h(java, tiny_bundle):
    compilers = {"EG_OK", "EG_BAD_RECIPE", "EG_CANNOT_WRITE", "EG_NO_SPACE", "EG_EXPORT_FAILED", "EG_GATE_FAILED"}
    header = {name: int(n) for name, n in re.findall(r"^  (EG_\w+) = (\d+)\b", HEADER.read_text(), re.M) if int(n) >= 100 and name not in compilers}
    found = dict(re.findall(r"(EG_\w+) = (\d+)", java.check("constants", tiny_bundle)))
    assert {name: int(n) for name, n in found.items()} == header


def test_known_answers(java, tiny_bundle, tmp_path):
    bundle = open_bundle(tiny_bundle)
    for variant in bundle.manifest.variants:
        lines = [f"{g.program} true true" for g in variant.golden]
        assert lines and java.check("selfTest", tiny_bundle, variant.name).splitlines() == lines
    first = bundle.manifest.variants[0]
    members = {name: bundle.member(name) for name in bundle.table}
    members[first.golden[0].member] = np.full(64, 7, "<f4").tobytes()
    wrong = tmp_path / "wrong.edgegen"
    wrong.write_bytes(bundle_bytes(bundle.manifest, members))
    assert java.check("selfTest", wrong, first.name).splitlines()[0] == f"{first.golden[0].program} false false"


def test_the_report_is_of_the_last_run(java, tiny_bundle):
    manifest = open_bundle(tiny_bundle).manifest
    two = next(p.name for p in manifest.programs if p.steps == 2)
    java.check("report", tiny_bundle, two, manifest.variants[0].name)


ERRORS = {
    "missing file": (Status.CANNOT_OPEN, "\U0001f600"),
    "missing file, mapped": (Status.CANNOT_OPEN, "\U0001f600"),
    "another kind of file": (Status.NOT_A_BUNDLE, ""),
    "no bytes": (Status.TRUNCATED, ""),
    "a path with NUL": (Status.BAD_ARGUMENT, r"a\0b"),
    "no path": (Status.BAD_ARGUMENT, "path"),
    "a truncated bundle": (Status.TRUNCATED, ""),
    "a damaged bundle": (Status.CORRUPT, "SHA-256"),
    "a heap buffer in place": (Status.BAD_ARGUMENT, "direct"),
    "unknown document": (Status.UNKNOWN_NAME, "document"),
    "unknown variant": (Status.NO_VARIANT, "int3"),
    "no engine": (Status.BACKEND_MISSING, "ONNX Runtime"),
    "threads": (Status.OUT_OF_RANGE, "found -1"),
    "session batch": (Status.OUT_OF_RANGE, "found 0"),
    "unknown condition": (Status.UNKNOWN_NAME, "lable"),
    "unknown condition, array": (Status.UNKNOWN_NAME, "lable"),
    "unknown condition, unset": (Status.UNKNOWN_NAME, "lable"),
    "a name with NUL": (Status.BAD_ARGUMENT, r"label\0"),
    "no name": (Status.BAD_ARGUMENT, "name"),
    "out of range": (Status.OUT_OF_RANGE, "label"),
    "out of range, array": (Status.OUT_OF_RANGE, "label"),
    "not whole": (Status.BAD_DTYPE, "1.5"),
    "NaN": (Status.NONFINITE, "label"),
    "another dtype": (Status.BAD_DTYPE, "label"),
    "too many values": (Status.BAD_SHAPE, "label"),
    "no values": (Status.BAD_SHAPE, "label"),
    "unknown program": (Status.UNKNOWN_NAME, "euler"),
    "unknown steps": (Status.OUT_OF_RANGE, "77"),
    "negative steps": (Status.OUT_OF_RANGE, "found -1"),
    "batch": (Status.OUT_OF_RANGE, "found 3"),
    "negative batch": (Status.OUT_OF_RANGE, "found -1"),
    "noise of another size": (Status.BAD_SHAPE, "63"),
    "noise with NaN": (Status.NONFINITE, "noise"),
    "no stream": (Status.BAD_STATE, "states"),
    "a batch other than the condition's": (Status.BAD_SHAPE, "label"),
}


def test_every_error_has_its_status_and_a_message(java, tiny_bundle, tmp_path):
    lines = java.check("errors", tiny_bundle, tmp_path / "\U0001f600.edgegen").splitlines()
    found = {what: (int(status), message) for what, status, message in (line.split("|", 2) for line in lines)}
    assert {what: status for what, (status, _) in found.items()} == {what: int(status) for what, (status, _) in ERRORS.items()}
    for what, (_, part) in ERRORS.items():
        assert part in found[what][1] and len(found[what][1]) >= 10, f"{what}: {found[what][1]}"


def test_what_is_closed_refuses_every_call(java, tiny_bundle):
    java.check("closed", tiny_bundle)


def test_closing_within_a_run_ends_it(java, tiny_bundle):
    java.check("closeWithinARun", tiny_bundle)


def test_cancelling_and_closing_race_without_harm(java, tiny_bundle):
    java.check("races", tiny_bundle)


def test_a_listener_sees_every_step_and_can_stop(java, tiny_bundle):
    java.check("listener", tiny_bundle)


def test_what_a_listener_throws_ends_the_run_and_comes_out(java, tiny_bundle):
    java.check("exceptions", tiny_bundle)


def test_cancel_from_another_thread_ends_the_run(java, tiny_bundle):
    java.check("cancel", tiny_bundle)


def test_a_second_thread_in_a_session_is_refused(java, tiny_bundle):
    java.check("secondThread", tiny_bundle)


def test_four_threads_with_sessions_of_one_model(java, tiny_bundle):
    java.check("fourThreads", tiny_bundle)


def test_bundles_in_memory(java, tiny_bundle):
    java.check("memory", tiny_bundle)


def test_a_buffer_in_place_is_kept(java, tiny_bundle):
    java.check("inPlace", tiny_bundle)


STEADY = ("-Xms64m", "-Xmx64m", "-XX:+AlwaysPreTouch", "-XX:+UseSerialGC")


@pytest.mark.parametrize("check", ["openings", "calls"])
def test_memory_does_not_grow(java, tiny_bundle, check):
    for line in java.check(check, tiny_bundle, flags=STEADY).splitlines():
        what, times, kib = line.split("|")
        print(f"{what}: {times} times, {kib} KiB")
        assert int(kib) < 4096, line


def test_the_example(java, tiny_bundle, tmp_path):
    (tmp_path / "libonnxruntime.so.1").symlink_to(java.onnxruntime)
    lines = java.run("Example", str(tiny_bundle), "5", "label=3", engine=str(tmp_path)).splitlines()
    assert lines[0].startswith("tiny: ") and "step 4 of 4" in lines
    numbers = [np.float32(n) for n in lines[-1].split("[")[1].rstrip("]").split(", ")]
    with edgegen.load(tiny_bundle) as session:
        np.testing.assert_allclose(numbers, session.generate(seed=5, label=3).ravel()[:8], atol=1e-5)
