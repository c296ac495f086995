"""edgegen.hpp, runtimes/c/examples and docs/c_api.md: what a C or C++ programmer copies compiles without warnings, runs, and gives the Python runtime's numbers.

Programs here are built with AddressSanitizer and UndefinedBehaviorSanitizer, whose leak detection is on, with ONNX Runtime too.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgegen
from edgegen import canonical
from edgegen.bundle import Golden, Variant, bundle_bytes, open_bundle, parse_bundle
from edgegen.program import initial_state, interpret, normals, program_to_json
from edgegen.program.surrogate import surrogates
from edgegen.spec import ConditionSpec
from tests.tiny import stream_bundle

ROOT = Path(__file__).parents[2]
C = ROOT / "runtimes" / "c"
LIBRARY = ROOT / "build" / "native" / "libedgegen.so"
EDGEGEN_RUN = LIBRARY.with_name("edgegen-run")
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
LINK = [f"-L{LIBRARY.parent}", "-ledgegen", f"-Wl,-rpath,{LIBRARY.parent}"]

pytestmark = pytest.mark.skipif(not LIBRARY.is_file(), reason=f"{LIBRARY} is not built: make native")

CASES = (
    "samples_by_a_function", "descriptions", "errors_have_the_status_of_the_library", "numbers_that_a_double_does_not_hold_are_refused",
    "conditions_are_set_in_every_form", "samples_go_where_they_should", "every_output_can_be_had", "programs_are_picked_by_name_and_steps",
    "steps_are_reported", "a_step_that_returns_false_cancels", "what_a_step_throws_reaches_the_caller", "what_a_component_throws_reaches_the_caller",
    "a_tensor_is_read_as_what_it_holds", "tensors_of_a_later_library_are_found", "nan_passes_where_it_is_allowed", "cancel_from_another_thread",
    "a_second_call_meanwhile_is_refused", "sessions_move_and_models_are_shared", "a_session_keeps_its_model", "streams_go_on_and_begin_again",
    "later_runs_allocate_nothing", "bundles_open_from_files_and_memory", "the_memory_of_a_session_is_known", "dtypes_follow_from_types",
    "samples_by_the_engine", "a_stream_by_the_engine", "known_answers_by_the_engine", "what_a_log_throws_reaches_the_caller",
)  # fmt: skip


def tool(name):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def run(*words, cwd=None, **environment):
    return subprocess.run([str(w) for w in words], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


def succeed(*words, **where):
    done = run(*words, **where)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def onnxruntime():
    """The pip package's libonnxruntime."""
    (path,) = (Path(importlib.util.find_spec("onnxruntime").origin).parent / "capi").glob("libonnxruntime.so.*")
    return path


@pytest.fixture(scope="module")
def loader_path(onnxruntime, tmp_path_factory):
    """A folder for LD_LIBRARY_PATH, in which that library has the name that is looked for."""
    folder = tmp_path_factory.mktemp("lib")
    (folder / "libonnxruntime.so.1").symlink_to(onnxruntime)
    return folder


@pytest.fixture(scope="module")
def bundles(tiny_bundle, tmp_path_factory):
    """The tiny bundle; a stream; the same behind a variant for another engine with a known answer, with a further output and a condition of no use."""
    folder = tmp_path_factory.mktemp("bundles")
    (folder / "stream.edgegen").write_bytes(stream_bundle())
    stream = parse_bundle(stream_bundle())
    manifest = dataclasses.replace(
        stream.manifest,
        variants=(Variant("other", "tensorrt", {"cell": "cell.onnx"}, (Golden("once", "answer", 1.0),)), *stream.manifest.variants),
        conditions=(ConditionSpec("spare", "float64", summary="of no use", default=2.0), *stream.manifest.conditions),
    )
    members = {name: bytes(stream.member(name)) for name in ("cell.onnx", "program.1.json")} | {"answer": bytes(16)}
    once = dataclasses.replace(stream.programs["once"], outputs={"sample": "out", "state": "g"})
    members["program.0.json"] = canonical.encode(program_to_json(once))
    (folder / "passed.edgegen").write_bytes(bundle_bytes(manifest, members))
    return tiny_bundle, folder / "stream.edgegen", folder / "passed.edgegen"


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory):
    """The test program of edgegen.hpp."""
    program = tmp_path_factory.mktemp("wrapper") / "wrapper"
    source = ROOT / "tests" / "native" / "cpp" / "wrapper.cpp"
    succeed(tool("g++"), "-std=c++17", *WARNINGS, *SANITIZERS, f"-I{C / 'include'}", source, "-o", program, *LINK, "-pthread")
    return program


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Both examples, built by their CMakeLists.txt with sanitizers."""
    folder = tmp_path_factory.mktemp("examples")
    flags = " ".join([*WARNINGS, *SANITIZERS])
    succeed(
        "cmake", "-S", C / "examples", "-B", folder, f"-DEDGEGEN_LIBRARY={LIBRARY}", f"-DCMAKE_C_COMPILER={tool('gcc')}",
        f"-DCMAKE_CXX_COMPILER={tool('g++')}", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}",
    )  # fmt: skip
    succeed("cmake", "--build", folder)
    return folder


# ---- The headers ----


def test_the_test_program_has_the_cases_that_are_tested_here(wrapper):
    assert tuple(succeed(wrapper).split()) == CASES


@pytest.mark.parametrize("case", CASES)
def test_wrapper(case, wrapper, bundles, onnxruntime, tmp_path):
    assert succeed(wrapper, case, *bundles, onnxruntime, tmp_path / "out") == "ok\n"
    if case in COMPARED:
        COMPARED[case](tmp_path / "out", *bundles)


def samples_by_a_function(out, tiny, *_):
    bundle = open_bundle(tiny)
    seed, labels = 0xFEDCBA9876543210, np.array([0, 3])
    networks = surrogates(bundle.manifest.components)
    start = normals(seed, 0, (2, *bundle.manifest.sample.shape))
    expected = [
        interpret(bundle.programs[p.name], networks, {"label": labels, **initial_state(bundle.programs[p.name], start)}, seed=seed)["sample"]
        for p in bundle.manifest.programs
    ]
    np.testing.assert_array_equal(np.fromfile(out, np.uint32), np.concatenate(expected, axis=None).view(np.uint32))


def samples_by_the_engine(out, tiny, *_):
    expected = []
    for variant in open_bundle(tiny).manifest.variants:
        with edgegen.load(tiny, variant=variant.name, threads=1) as session:
            expected += [session.generate(5, batch=2, program=p, label=np.array([0, 3])) for p in session.programs]
    assert len(expected) == 6
    np.testing.assert_array_equal(np.fromfile(out, np.uint32), np.concatenate(expected, axis=None).view(np.uint32))


def a_stream_by_the_engine(out, _, path, __):
    expected = []
    with edgegen.load(path, threads=1) as session, session.stream(seed=9, batch=2) as stream:
        for step in range(5):
            if step == 3:
                stream.reset()
            expected.append(stream.step(frame=(0.25 * np.arange(8) - step).astype(np.float32).reshape(2, 4)))
    np.testing.assert_array_equal(np.fromfile(out, np.uint32), np.concatenate(expected, axis=None).view(np.uint32))


def descriptions(out, *paths):
    lines = []
    for path in paths:
        bundle = open_bundle(path)
        m = bundle.manifest
        image = int(m.sample.kind == "image")
        lines.append(
            [m.name, m.summary, m.licence, m.producer, path.stat().st_size, int(m.trusted_pickle), f"{m.sample.low:g}", f"{m.sample.high:g}", image]
        )
        lines[-1] += [_sizes(m.sample.shape), np.prod(m.sample.shape)]
        for c in m.conditions:
            lines.append(
                [
                    c.name,
                    c.summary,
                    c.dtype,
                    _sizes(c.shape),
                    *("none" if v is None else f"{v:.17g}" for v in (c.minimum, c.maximum, c.default, c.null)),
                ]
            )
        for name, signature in m.components.items():
            sides = (("in", signature.inputs), ("out", signature.outputs))
            lines.append([name, *(f"{side} {t.name} {t.dtype} {_sizes(t.shape)}" for side, tensors in sides for t in tensors)])
        for p in m.programs:
            program = bundle.programs[p.name]
            inputs = {i.name for i in program.inputs}
            lines.append([p.name, p.steps, len(program.instructions), sum(program.nfe.values()), len(program.states)])
            lines[-1] += [c.name for c in m.conditions if c.name in inputs]
        for v in m.variants:
            size = sum(len(bundle.member(name)) for name in (*v.components.values(), *v.weights.values()))
            lines.append([v.name, v.engine, ",".join(p.name for p in v.providers), "none", size, len(v.golden)])
    tiny = open_bundle(paths[0])
    text = "".join("|".join(map(str, line)) + "\n" for line in lines) + bytes(tiny.member(tiny.manifest.documents["recipe"])).decode()
    assert out.read_text() == text


def _sizes(shape):
    return "".join(f"{-1 if n == 'batch' else n}," for n in shape)


COMPARED = {f.__name__: f for f in (samples_by_a_function, samples_by_the_engine, a_stream_by_the_engine, descriptions)}


@pytest.mark.parametrize("flags", [("-std=c++17", "-fno-rtti"), ("-std=c++20", "-frtti")])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_edgegen_hpp_compiles_without_warnings(compiler, flags):
    source = ROOT / "tests" / "native" / "cpp" / "wrapper.cpp"
    succeed(tool(compiler), *flags, *WARNINGS, "-Wpedantic", "-fsyntax-only", f"-I{C / 'include'}", source)


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_options_are_set_by_name_in_cpp20(compiler, tmp_path):
    source = tmp_path / "named.cpp"
    source.write_text(
        '#include "edgegen.hpp"\n'
        "std::vector<float> f(edgegen::Session &s) { return s.generate({.seed = 1, .on_step = [](auto, auto, auto) { return true; }}); }\n"
        'edgegen::Session g(const edgegen::Model &m) { return edgegen::Session(m, {.threads = 2, .variant = "int8"}); }\n'
    )
    succeed(tool(compiler), "-std=c++20", *WARNINGS, "-fsyntax-only", f"-I{C / 'include'}", source)


def test_elements_of_a_dtype_that_there_is_not_do_not_compile(tmp_path):
    source = tmp_path / "wrong.cpp"
    for line in ('s.set("label", std::vector<unsigned>{3});', 's.set("label", "3");'):
        source.write_text(f'#include "edgegen.hpp"\nvoid f(edgegen::Session &s) {{ {line} }}\n')
        done = run(tool("g++"), "-std=c++17", "-fsyntax-only", f"-I{C / 'include'}", source)
        assert done.returncode != 0 and "edgegen: expected float, double" in done.stderr


def test_edgegen_h_compiles_as_c89(tmp_path):
    source = tmp_path / "header.c"
    initial = re.findall(r"#define (EG_\w+)_INIT ", (C / "include" / "edgegen.h").read_text())
    assert len(initial) == 14
    declared = "".join(f"  {name.lower()} v{i} = {name}_INIT;\n" for i, name in enumerate(initial))
    used = "".join(f"  if (v{i}.struct_size == 0) return 1;\n" for i in range(len(initial)))
    source.write_text(f'#include "edgegen.h"\nint main(void) {{\n{declared}{used}  return 0;\n}}\n')
    for compiler in ("gcc", "clang"):
        succeed(tool(compiler), "-std=c89", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{C / 'include'}", source)


def test_an_older_library_is_refused(bundles, tmp_path):
    header = (C / "include" / "edgegen.h").read_text()
    newer, replaced = re.subn(r"#define EG_ABI_MINOR \d+", "#define EG_ABI_MINOR 7", header)
    assert replaced == 1
    (tmp_path / "edgegen.h").write_text(newer)
    shutil.copy(C / "include" / "edgegen.hpp", tmp_path)
    source = tmp_path / "newer.cpp"
    source.write_text(
        '#include <cstdio>\n#include "edgegen.hpp"\n'
        "int main(int, char **words) try { edgegen::Model::open(words[1]); return 1; }\n"
        'catch (const edgegen::Error &e) { std::printf("%d %s", e.status(), e.what()); return 0; }\n'
    )
    succeed(tool("g++"), "-std=c++17", source, "-o", tmp_path / "newer", *LINK)
    assert re.fullmatch(r"500 libedgegen [\d.]+ has interface 1\.0, this program was compiled for 1\.7: .+", succeed(tmp_path / "newer", bundles[0]))


# ---- The examples ----


@pytest.mark.parametrize("name", ["generate_c", "generate_cpp"])
def test_an_example_writes_the_image_that_python_generates(name, examples, bundles, loader_path, tmp_path):
    done = run(examples / name, bundles[0], "label", "3", cwd=tmp_path, LD_LIBRARY_PATH=str(loader_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny: a tiny denoiser for tests, 64 numbers per sample\ncondition label")
    assert done.stderr == "".join(f"step {i} of 4\n" for i in range(1, 5))
    with edgegen.load(bundles[0], threads=1) as session:
        sample = session.generate(1, label=3).astype(np.float64)
    grey = np.clip((sample + 1.0) / 2.0 * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
    assert len(np.unique(grey)) > 10
    assert (tmp_path / "sample.pgm").read_bytes() == b"P5 8 8 255\n" + grey.tobytes()


@pytest.mark.parametrize("name", ["generate_c", "generate_cpp"])
def test_an_example_prints_the_numbers_that_python_generates(name, examples, bundles, loader_path, tmp_path):
    printed = succeed(examples / name, bundles[1], "frame", "0.5", cwd=tmp_path, LD_LIBRARY_PATH=str(loader_path))
    with edgegen.load(bundles[1], threads=1) as session:
        expected = session.generate(1, frame=np.full(4, 0.5, np.float32))
    np.testing.assert_array_equal(np.array(printed.split("\n")[-5:-1], np.float32), expected[0])
    assert not (tmp_path / "sample.pgm").exists()


@pytest.mark.parametrize("name", ["generate_c", "generate_cpp"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: generate FILE [CONDITION NUMBER]"),
        (["absent.edgegen"], "absent.edgegen: cannot be opened"),
        (["TINY", "lable", "3"], "no condition 'lable' in this bundle"),
        (["TINY", "label", "9"], "condition 'label': 9 at element 0 is out of range"),
    ],
)
def test_an_example_says_what_is_wrong(name, words, said, examples, bundles, loader_path, tmp_path):
    done = run(examples / name, *(str(bundles[0]) if w == "TINY" else w for w in words), cwd=tmp_path, LD_LIBRARY_PATH=str(loader_path))
    assert done.returncode == 1 and said in done.stderr
    assert not (tmp_path / "sample.pgm").exists()


@pytest.mark.parametrize("name", ["generate.c", "generate.cpp"])
def test_the_commands_at_the_top_of_an_example_work(name, bundles, loader_path, tmp_path):
    text = (C / "examples" / name).read_text()
    compiling, running = re.findall(r"^(?://| \*)   (\S.*)$", text, re.MULTILINE)
    tool(compiling.split()[0])
    (tmp_path / "runtimes").symlink_to(ROOT / "runtimes")
    (tmp_path / "build").symlink_to(ROOT / "build")
    shutil.copy(bundles[0], tmp_path / "digits.edgegen")
    succeed("sh", "-ec", f"{compiling}\n{running}", cwd=tmp_path, LD_LIBRARY_PATH=str(loader_path))
    assert (tmp_path / "sample.pgm").stat().st_size == len("P5 8 8 255\n") + 64


def test_examples_are_short():
    for name in ("generate.c", "generate.cpp"):
        assert len((C / "examples" / name).read_text().splitlines()) < 60


def test_the_examples_cmake_says_which_library_it_needs(tmp_path):
    done = run("cmake", "-S", C / "examples", "-B", tmp_path, "-DEDGEGEN_LIBRARY=/absent/libedgegen.so")
    assert done.returncode != 0 and "libedgegen.so was not found at '/absent/libedgegen.so': give its path" in done.stderr


# ---- docs/c_api.md ----


def page():
    return (ROOT / "docs" / "c_api.md").read_text()


def test_the_page_is_up_to_date():
    succeed(sys.executable, C / "document.py", "--check")


@pytest.fixture
def copied(tmp_path):
    """A copy of the script, the header and the page."""
    parts = [tmp_path / part for part in ("runtimes/c/document.py", "runtimes/c/include/edgegen.h", "docs/c_api.md")]
    for part in parts:
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part.relative_to(tmp_path), part)
    return parts


def test_a_page_that_is_not_up_to_date_is_found_and_made(copied):
    code, header, made = copied
    succeed(sys.executable, code, "--check")
    header.write_text(header.read_text().replace("Generate samples.", "Generate many samples."))
    done = run(sys.executable, code, "--check")
    assert done.returncode == 1 and "is not what" in done.stderr and "Generate many" not in made.read_text()
    succeed(sys.executable, code)
    assert "Generate many samples." in made.read_text()
    succeed(sys.executable, code, "--check")
    made.unlink()
    assert run(sys.executable, code, "--check").returncode == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "EG_API void eg_close(eg_model *model);",
            "EG_API void eg_close(eg_model *model) EG_NEW",
            "expected a comment, #define, typedef, enum or function",
        ),
        ("uint32_t golden; /* known", "uint32_t golden, silver; /* known\n  */ /*", "expected one member or value in a line"),
    ],
)
def test_a_header_that_the_script_cannot_read_is_an_error(copied, old, new, said):
    code, header, made = copied
    before = made.read_text()
    assert old in header.read_text()
    header.write_text(header.read_text().replace(old, new))
    done = run(sys.executable, code)
    assert done.returncode == 1 and said in done.stderr and made.read_text() == before


def test_the_script_refuses_unknown_options():
    done = run(sys.executable, C / "document.py", "--chekc")
    assert done.returncode == 2 and "--chekc" in done.stderr


def test_the_page_has_every_name_of_the_header():
    header = (C / "include" / "edgegen.h").read_text()
    names = set(re.findall(r"\bEG_[A-Z0-9_]+|\beg_[a-z_]+", re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL))) - {"EG_API"}
    text = page()
    assert len(names) > 100
    assert not [n for n in names if not re.search(rf"\b{n}\b", text)]
    functions = re.findall(r"^EG_API [^;(]*?(\w+)\(", header, re.MULTILINE)
    assert len(functions) == len(re.findall("^EG_API", header, re.MULTILINE))
    assert [f for f in re.findall(r"^[\w ]+[ *](eg_\w+)\(.*;$", text, re.MULTILINE) if f in functions] == functions
    headings = " ".join(re.findall(r"^### (.*)$", text, re.MULTILINE)).replace(",", "").split()
    assert [h for h in headings if h in functions] == functions
    fields = re.findall(r"^  [\w ]+[ *](\w+)(?:\[\w+\])?;", header, re.MULTILINE)
    assert len(fields) > 80
    assert not [f for f in fields if not re.search(rf"\| `[^`]*\b{f}(\[\w+\])?` \|", text)]


def test_the_page_is_plain_markdown():
    text = page()
    assert text.count("```") % 2 == 0
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert not re.search(r"</?[a-zA-Z]", prose)  # no HTML
    assert "`" not in prose and "/*" not in text
    assert not re.search(r"^(?!#).*\b(?:eg|EG)_\w", prose, re.MULTILINE)  # names are code
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert all(len({row.count("|") for row in table.splitlines()}) == 1 for table in tables)


def test_the_page_compiles_and_links_as_the_examples_do():
    (gcc,) = re.findall(r"^gcc .*$", page(), re.MULTILINE)
    assert gcc in (C / "examples" / "generate.c").read_text()
    (cmake,) = re.findall(r"```cmake\n(.*?)```", page(), re.DOTALL)
    built = (C / "examples" / "CMakeLists.txt").read_text().splitlines()
    assert cmake.splitlines() and not [line for line in cmake.splitlines() if line not in built]


def test_edgegen_run_does_what_the_page_says(bundles, loader_path, tmp_path):
    shutil.copy(bundles[0], tmp_path / "digits.edgegen")
    (tmp_path / "notes.txt").write_text("notes")

    def code(command):
        return run(EDGEGEN_RUN, *command.split()[1:], cwd=tmp_path, LD_LIBRARY_PATH=str(loader_path)).returncode

    commands = re.findall(r"^edgegen-run .*$", page(), re.MULTILINE)
    assert [c.split()[1] for c in commands] == ["digits.edgegen", "verify", "bench", "inspect"]
    assert [code(c) for c in commands] == [0] * 4
    rows = re.findall(r"^\| (\d+) \| .* \| `(edgegen-run [^`]*)`", page(), re.MULTILINE)
    assert [number for number, _ in rows] == ["0", "1", "2", "4"]
    assert [code(command) for _, command in rows] == [0, 1, 2, 4]
    (listed,) = re.findall(r"Exit codes: (.*)\*/", (C / "cli" / "edgegen_run.c").read_text())
    table = page()[page().index("| exit code |") : page().index("## Versions")]
    assert re.findall(r"\b\d+\b", listed) == re.findall(r"^\| (\d+) \|", table, re.MULTILINE)
