"""T18, T19: the same bits in numpy, in C on x86-64 at every optimization, and in C on 64-bit ARM."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from edgegen import canonical
from edgegen.bundle import Manifest, ProgramEntry, Variant, bundle_bytes, parse_bundle
from edgegen.diffusion import make_process
from edgegen.errors import EdgegenError, Status
from edgegen.program import Eval, Executable, StreamState, initial_state, normals, philox4x32, program_to_json
from edgegen.program.surrogate import surrogates
from edgegen.solvers import SOLVERS, Guidance, build_program
from edgegen.solvers.model import Denoiser
from edgegen.spec import BATCH, ConditionSpec, SampleSpec, Signature, TensorSpec, default_conditions
from tests.native.conftest import BUILD, command, run_native
from tests.native.random_programs import random_bundle

SEEDS, BATCHED = 10, 2
SHAPES = ((3, 4, 4), (6, 5), (9,))
STEPS = (1, 2, 4, 8)
PREDICTIONS = ("epsilon", "v", "sample", "flow", "average_velocity")
PROCESSES = ("vp_linear", "flow", "vp_betas", "mean_reverting")
BUILDS = ("test", "O0", "v3", "aarch64")


def solver_programs(prediction):
    """Every solver that fits one of the processes, at every number of steps, guided and not: (name, program)."""
    for solver in SOLVERS:
        for steps in STEPS:
            for guidance in (None, Guidance(1.5, {"label": 4.0}, rescale=0.3)):
                for process in PROCESSES:
                    options = {"latent": 7} if solver == "ddgan" else {}
                    made = (
                        make_process(process, schedule="ddgan", steps=steps) if solver == "ddgan" and process == "vp_betas" else make_process(process)
                    )
                    try:
                        program = build_program(solver, made, prediction, steps, guidance=guidance, model=Denoiser(conditions=("label",)), **options)
                    except EdgegenError:
                        continue
                    yield f"{solver}-{steps}-{'guided' if guidance else 'plain'}", program
                    break


def bundles_of(prediction, shape):
    """The programs of a prediction, those that call the network in the same way in one bundle."""
    groups = defaultdict(list)
    for name, program in solver_programs(prediction):
        evaluation = next(i for i in program.instructions if isinstance(i, Eval))
        conditions = tuple(sorted(i.name for i in program.inputs if i.kind == "condition"))
        groups[tuple(sorted(evaluation.inputs)), conditions, name.startswith("gl_lcm")].append(replace(program, name=name))
    for (inputs, conditions, wide), programs in groups.items():
        shapes = {"x": (shape[0] * (2 if wide else 1), *shape[1:]), "latent": (7,)}
        signature = Signature(
            tuple(TensorSpec(n, "int64" if n == "label" else "float32", (BATCH, *shapes.get(n, ()))) for n in inputs),
            (TensorSpec("prediction", "float32", (BATCH, *shape)),),
        )
        declared = tuple(
            ConditionSpec(n, "int64", (), 0, 4, 1)
            if n == "label"
            else ConditionSpec(n, "float32", (1, *shape[1:]) if n == "mask" else shape, default=0.5)
            for n in conditions
        )
        members = {"network": b"none"} | {f"program.{k:03}": canonical.encode(program_to_json(p)) for k, p in enumerate(programs)}
        manifest = Manifest(
            "solvers", "", "", "test", False, SampleSpec(shape), declared, {"denoiser": signature},
            tuple(ProgramEntry(p.name, 1, f"program.{k:03}") for k, p in enumerate(programs)), (Variant("v", "elsewhere", {"denoiser": "network"}, ()),), {},
        )  # fmt: skip
        yield bundle_bytes(manifest, members)


def digests_in_numpy(data, seeds=SEEDS, batch=BATCHED):
    """What `test-digests programs` prints for a bundle, by the reference interpreter."""
    bundle = parse_bundle(data)
    networks, lines = surrogates(bundle.manifest.components), []
    for entry in bundle.manifest.programs:
        executable = Executable(bundle.programs[entry.name])
        program = executable.program
        needed = [c for c in bundle.manifest.conditions if c.name in {i.name for i in program.inputs}]
        given = {name: np.repeat(value, batch, 0) for name, value in default_conditions(needed).items()}
        for seed in range(seeds):
            stream = StreamState() if program.states else None
            sample = b""
            try:
                for call in range(5 if program.states else 1):
                    noise = normals(seed, 0, (batch, *bundle.manifest.sample.shape), call)
                    outputs = executable.run(networks, given | initial_state(program, noise), seed=seed, stream=stream, rows=batch)
                    sample += outputs["sample"].astype("<f4").tobytes()
                line = hashlib.sha256(sample).hexdigest()
            except EdgegenError as e:
                assert e.code == Status.NONFINITE
                line = f"status {int(e.code)}"
            lines.append(f"{entry.name} {seed} {line}")
    return lines


@pytest.fixture(scope="module")
def solver_bundles(tmp_path_factory):
    """Files of every solver's programs, and the digests that numpy gives, file by file."""
    folder = tmp_path_factory.mktemp("solvers")
    files, lines = [], []
    for prediction in PREDICTIONS:
        for shape in SHAPES:
            for data in bundles_of(prediction, shape):
                files.append(folder / f"{len(files)}.edgegen")
                files[-1].write_bytes(data)
                lines += digests_in_numpy(data)
    assert {line.split("-")[0] for line in lines} == set(SOLVERS)
    assert not [line for line in lines if "status" in line]
    return files, lines


@pytest.mark.parametrize("build", BUILDS)
def test_every_solver_gives_the_same_bits(solver_bundles, build):
    files, wanted = solver_bundles
    found = run_native(build, "digests", "programs", SEEDS, BATCHED, *files).splitlines()
    assert len(found) == len(wanted) >= 10_000
    assert found == wanted


def test_the_digests_tell_seeds_solvers_and_steps_apart(solver_bundles):
    """The negative control: equal digests mean equal arithmetic, not blindness."""
    _, lines = solver_bundles
    by_digest = defaultdict(set)
    for line in lines:
        name, seed, digest = line.split()
        if not name.startswith("mrs"):  # whose images are clamped to 0 .. 1, so that some come out all black
            by_digest[digest].add((name, seed))
    assert len(by_digest) > 0.5 * len(lines)
    assert all(len({seed for _, seed in names}) == 1 for names in by_digest.values())


@pytest.fixture(scope="module")
def random_bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    files, lines = [], []
    for seed in range(40):
        data = random_bundle(seed, 20)
        files.append(folder / f"{seed}.edgegen")
        files[-1].write_bytes(data)
        lines += digests_in_numpy(data, seeds=2, batch=3)
    return files, lines


@pytest.mark.parametrize("build", [*BUILDS, "asan"])
def test_random_programs_of_every_instruction_give_the_same_bits(random_bundles, build):
    files, wanted = random_bundles
    found = run_native(build, "digests", "programs", 2, 3, *files).splitlines()
    assert sum("status" in line for line in wanted) < 0.4 * len(wanted)
    assert found == wanted


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("arguments", [(0, 0, 0, 1_000_003), (2**64 - 1, 2**32 - 1, 2**32 - 1, 999), (5, 7, 3, 1), (12345678901234567890, 1, 0, 64)])
def test_normals_have_the_same_bits(build, arguments):
    seed, draw, call, count = arguments
    wanted = hashlib.sha256(normals(seed, draw, (count,), call).tobytes()).hexdigest()
    assert run_native(build, "digests", "normals", *arguments).strip() == wanted


@pytest.mark.parametrize("build", BUILDS)
def test_philox_gives_random123s_known_answers(build):
    """Random123's kat_vectors for philox4x32-10, which FORMAT.md repeats."""
    known = [
        ("00000000 00000000 00000000 00000000 00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]
    done = subprocess.run([*command(build, "digests"), "philox"], input="\n".join(k for k, _ in known), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [words for _, words in known]


def test_ten_million_normals_are_normal():
    """T19. In numpy; the bits are those of C (above, and below at this length)."""
    from scipy import stats

    n = 10_000_000
    x = normals(2026, 1, (n,))
    assert run_native("test", "digests", "normals", 2026, 1, 0, n).strip() == hashlib.sha256(x.tobytes()).hexdigest()
    x = x.astype(np.float64)
    assert abs(x.mean()) < 4 / np.sqrt(n)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(stats.kurtosis(x)) < 4 * np.sqrt(24 / n)
    assert stats.kstest(x[:1_000_000], "norm").pvalue > 0.001
    assert abs(philox4x32(np.zeros((4, 1), np.uint32), (0, 0))[0, 0] - 0x6627E8D5) == 0


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1_000_000])
@pytest.mark.parametrize("build", ["test", "aarch64"])
def test_sha256_is_hashlibs_by_the_processor_and_by_plain_code(tmp_path, size, build):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "x").write_bytes(data)
    assert run_native(build, "digests", "sha256", tmp_path / "x").split() == [hashlib.sha256(data).hexdigest()] * 2


@pytest.mark.parametrize("build", ["", "v3", "aarch64"])
def test_no_object_that_computes_has_a_fused_multiply_add(build):
    """T18: -march=x86-64-v3 and aarch64 would fuse by default."""
    folder = BUILD / (f"native-{build}" if build else "native") / "CMakeFiles" / "edgegen_objects.dir" / "src"
    tool = "aarch64-linux-gnu-objdump" if build == "aarch64" else "objdump"
    for name in ("laws", "noise", "plan"):
        text = subprocess.run([tool, "-d", folder / f"{name}.cpp.o"], capture_output=True, text=True, check=True).stdout
        assert len(text) > 1000
        assert not re.findall(r"\b(vfn?m(?:add|sub)\w*|fmadd|fmsub|fmla|fmls|fnmadd|fnmsub)\b", text)
