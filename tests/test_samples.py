"""`edgegen compare --samples`: closed forms on a linear network, the session's own samples, pictures, features, and what it refuses."""

from __future__ import annotations

import functools
import io
import json
import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy.linalg import sqrtm

import edgegen
from edgegen import canonical
from edgegen.bundle import Manifest, ProgramEntry, Variant, bundle_bytes, open_bundle
from edgegen.comparing import open_side
from edgegen.errors import EdgegenError, RuntimeFault, Status
from edgegen.fusing import with_fused
from edgegen.program import Eval, Imm, Input, Lincomb, Program, Reg, Step, normals, program_to_json
from edgegen.quality import frechet, relative_errors
from edgegen.recipe import load_recipe, recipe_to_json
from edgegen.samples import compare_samples, feature_distance, gate_of, sheet
from edgegen.spec import ConditionSpec, SampleSpec, Signature, TensorSpec
from tests.tiny import stream_bundle

W, V, A = 0.5, 0.52, 0.4
"""The linear network's weight in A and in B, and the step of the program: x <- x + A w x, twice."""


@pytest.fixture
def command(edgegen_command):
    """`edgegen compare` in this process: (standard output, standard error)."""
    return functools.partial(edgegen_command, "compare")


def linear(weight):
    """prediction = weight x, float32[batch, 3]."""
    nodes = [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Unsqueeze", ["t", "axis"], ["u"])]
    nodes += [helper.make_node("Mul", ["u", "none"], ["z"]), helper.make_node("Add", ["m", "z"], ["prediction"])]
    constants = {"w": np.float32(weight), "axis": np.array([1], np.int64), "none": np.float32(0)}
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]), helper.make_tensor_value_info("t", TensorProto.FLOAT, ["batch"])]
    outputs = [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "linear", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def linear_bundle(path, *, sample=None, conditions=(), step=A, name="two", times=(9.0, 4.0), evaluations=1):
    """x <- x + step w x at each time; variants a and b of the two weights. evaluations: such moves per step of the program."""
    x = [Input("x_T"), *(Input(c.name, "condition") for c in conditions)]
    body = []
    for k, t in enumerate(times):
        state = "x_T" if k == 0 else f"x{k}"
        body += [
            Eval("denoiser", {"x": (Reg(state),), "t": (Imm(t),)}, {"prediction": (f"p{k}",)}),
            Lincomb(f"x{k + 1}", ((1.0, state), (step, f"p{k}"))),
        ]
    steps = tuple(Step(2 * k, f"x{k}", t - 1.0) for k, t in enumerate(times, 1) if k % evaluations == 0)
    program = Program(name, tuple(x), tuple(body), {"sample": f"x{len(times)}"}, {"denoiser": len(times)}, steps)
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("t", "float32", ("batch",))), (TensorSpec("prediction", "float32", ("batch", 3)),)
    )
    variants = tuple(Variant(v, "onnxruntime", {"denoiser": f"{v}.onnx"}, ()) for v in ("a", "b"))
    manifest = Manifest(
        "linear", "", "", "tests", False, sample or SampleSpec((3,), low=-2.0, high=2.0), tuple(conditions), {"denoiser": signature},
        (ProgramEntry(name, len(steps), "program.0.json"),), variants, {},
    )  # fmt: skip
    members = {"program.0.json": canonical.encode(program_to_json(program))}
    members |= {f"{v}.onnx": linear(w).SerializeToString(deterministic=True) for v, w in (("a", W), ("b", V))}
    path.write_bytes(bundle_bytes(manifest, members))
    return path


def sides(path):
    return open_side(f"{path}:a"), open_side(f"{path}:b")


# --- the numbers


def test_relative_errors_by_hand():
    a = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    b = np.array([[3.0, 4.5], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert relative_errors(a, b).tolist() == pytest.approx([0.1, 0.0, math.inf, math.sqrt(2)])
    assert relative_errors(a.reshape(4, 1, 2), b.reshape(4, 1, 2)).shape == (4,)


def test_frechet_distance_of_one_feature_and_against_a_general_matrix_root():
    rng = np.random.default_rng(3)
    a, b = rng.normal(1.0, 2.0, (50, 1)), rng.normal(-1.0, 0.5, (40, 1))
    assert frechet(a, b) == pytest.approx((a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2)
    a, b = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(70, 5)) @ rng.normal(size=(5, 5)) + 0.5
    ca, cb, mean = np.cov(a, rowvar=False), np.cov(b, rowvar=False), a.mean(0) - b.mean(0)
    assert frechet(a, b) == pytest.approx(float(mean @ mean + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)), rel=1e-9)
    assert frechet(a[:4], a[:4]) == pytest.approx(0.0, abs=1e-6)  # fewer rows than features: a singular covariance
    with pytest.raises(RuntimeFault, match=r"at least two rows, found \[1, 5\] and \[70, 5\]"):
        frechet(a[:1], b)


def test_a_linear_network_has_the_errors_that_follow_from_its_weights(tmp_path):
    """x_k = (1 + A w)^k x_T, so every sample is equally far off, and each number of the table has a closed form."""
    found = compare_samples(*sides(linear_bundle(tmp_path / "l.edgegen")), samples=5, seed=7, threads=1)
    noise = np.concatenate([normals(7 + i, 0, (1, 3)) for i in range(5)])
    grow, other = 1 + A * W, 1 + A * V
    assert np.allclose(found.a, grow**2 * noise, rtol=1e-6) and np.allclose(found.b, other**2 * noise, rtol=1e-6)
    assert [(row.step, row.evaluated, row.time) for row in found.steps] == [(1, 9.0, 8.0), (2, 4.0, 3.0)]
    for k, row in enumerate(found.steps, 1):
        rmse = (other**k - grow**k) * math.sqrt(float(np.mean(noise.astype(np.float64) ** 2)))
        assert row.error == pytest.approx((other / grow) ** k - 1, rel=1e-4)
        assert row.psnr_db == pytest.approx(20 * math.log10(4.0 / rmse), abs=1e-3)
        assert row.prediction == pytest.approx(V / W * (other / grow) ** (k - 1) - 1, rel=1e-4)
    assert found.error == pytest.approx((other / grow) ** 2 - 1, rel=1e-4) and found.final.psnr_db == pytest.approx(found.steps[-1].psnr_db)
    same = compare_samples(*[open_side(f"{tmp_path / 'l.edgegen'}:a")] * 2, samples=2, threads=1)
    assert same.final.psnr_db == math.inf and same.errors.tolist() == [0.0, 0.0] and {row.psnr_db for row in same.steps} == {math.inf}
    assert json.loads(json.dumps(same.to_json(), allow_nan=False))["psnr_db"] == "inf"


def test_samples_are_those_of_the_session_and_the_worst_is_found(tiny_bundle):
    """Guidance, a class per sample, several steps: against generate() with the states that it tells, and plain loops."""
    found = compare_samples(open_side(f"{tiny_bundle}:float32"), open_side(f"{tiny_bundle}:int8"), samples=3, seed=5, threads=1)
    samples, states = {}, {}
    for variant in ("float32", "int8"):
        with edgegen.load(tiny_bundle, variant=variant, threads=1) as session:
            for i in range(3):
                kept = states.setdefault((variant, i), [])
                label = int(found.conditions["label"][i])
                samples[variant, i] = session.generate(seed=5 + i, label=label, on_step=lambda done, total, x, kept=kept: kept.append(x.copy()))
    assert np.array_equal(found.a, np.concatenate([samples["float32", i] for i in range(3)]))
    assert np.array_equal(found.b, np.concatenate([samples["int8", i] for i in range(3)]))

    def far(a, b):
        return math.sqrt(float(((b.astype(float) - a) ** 2).sum())) / math.sqrt(float((a.astype(float) ** 2).sum()))

    errors = [far(samples["float32", i], samples["int8", i]) for i in range(3)]
    assert found.errors.tolist() == pytest.approx(errors, rel=1e-9) and found.worst == errors.index(max(errors)) and min(errors) > 1e-4
    assert len(found.steps) == 4
    for k, row in enumerate(found.steps):
        assert row.error == pytest.approx(sum(far(states["float32", i][k], states["int8", i][k]) for i in range(3)) / 3, rel=1e-9)
    assert found.final.psnr_db == pytest.approx(found.steps[-1].psnr_db) and found.steps[0].evaluated == pytest.approx(1.0)


def test_a_step_of_two_evaluations_counts_both_predictions(tmp_path):
    path = linear_bundle(tmp_path / "l.edgegen", evaluations=2)
    (row,) = compare_samples(*sides(path), samples=2, threads=1).steps
    first, second = (np.array([w, w * (1 + A * w)]) for w in (W, V))
    assert (row.evaluated, row.time) == (9.0, 3.0)
    assert row.prediction == pytest.approx(np.linalg.norm(second - first) / np.linalg.norm(first), rel=1e-4)


def test_fresh_noise_and_states(tiny_bundle, tmp_path):
    side = open_side(f"{tiny_bundle}:float32")
    found = compare_samples(side, open_side(f"{tiny_bundle}:int8"), samples=2, program="ddim-3", threads=1)
    with edgegen.load(tiny_bundle, variant="int8", threads=1) as session:
        label = int(found.conditions["label"][1])
        assert np.array_equal(found.b[1:], session.generate(seed=1, program="ddim-3", label=label))
    (tmp_path / "s.edgegen").write_bytes(stream_bundle())
    side = open_side(str(tmp_path / "s.edgegen"))
    stream = compare_samples(side, side, samples=2, program="stream", threads=1)
    with edgegen.load(tmp_path / "s.edgegen", threads=1) as session, session.stream("stream", seed=1) as opened:
        assert np.array_equal(stream.a[1:], opened.step(frame=stream.conditions["frame"][1]))


def test_conditions_may_be_given(tiny_bundle):
    side = open_side(f"{tiny_bundle}:float32")
    labels = np.array([3, 1], np.int64)
    found = compare_samples(side, side, samples=2, conditions={"label": labels}, threads=1)
    with edgegen.load(tiny_bundle, variant="float32", threads=1) as session:
        assert np.array_equal(found.a[:1], session.generate(seed=0, label=3)) and not np.array_equal(found.a[:1], session.generate(seed=0, label=1))


@pytest.fixture(scope="module")
def fused_bundle(tiny_bundle, tmp_path_factory):
    """The tiny bundle with both variants' default program fused."""
    bundle, path = open_bundle(tiny_bundle), tmp_path_factory.mktemp("fused") / "f.edgegen"
    variants, members = [], {name: bundle.member(name) for name in bundle.table}
    for variant in bundle.manifest.variants:
        fused, added = with_fused(bundle, variant)
        variants.append(fused)
        members |= added
    path.write_bytes(bundle_bytes(replace(bundle.manifest, variants=tuple(variants)), members))
    return path


def test_fused_variants_are_compared_as_they_ship(command, tiny_bundle, fused_bundle):
    pair = open_side(f"{fused_bundle}:float32"), open_side(f"{fused_bundle}:int8")
    found = compare_samples(*pair, samples=2, threads=1)
    with edgegen.load(fused_bundle, variant="float32", threads=1) as session:
        assert session.runs_fused()
        assert np.array_equal(found.a[1:], session.generate(seed=1, label=int(found.conditions["label"][1])))
    assert found.fused == (True, True) and found.steps == () and found.error > 0.0
    forced = compare_samples(*pair, samples=2, stepwise=True, threads=1)
    assert forced.fused == (False, False) and len(forced.steps) == 4 and np.allclose(forced.a, found.a, atol=1e-5)
    mixed = compare_samples(open_side(f"{tiny_bundle}:float32"), pair[1], samples=1, threads=1)
    assert mixed.fused == (False, True) and mixed.steps == ()
    assert compare_samples(*pair, samples=1, program="dpmpp_2m-2", threads=1).fused == (False, False)  # only the default program is fused
    assert "A and B ran fused, as shipped" in command(f"{fused_bundle}:float32", f"{fused_bundle}:int8", "--samples", 1, "--threads", 1).out


# --- pictures and features


def test_the_sheet_has_the_worst_sample_first_and_the_difference_beside_it(tiny_bundle):
    spec = SampleSpec((1, 2, 2), "image", -1.0, 1.0)
    found = compare_samples(open_side(f"{tiny_bundle}:float32"), open_side(f"{tiny_bundle}:int8"), samples=2, threads=1)
    a = np.array([[1.0, 0.0, -1.0, 0.5], [1.0, 1.0, 1.0, 1.0]]).reshape(2, 1, 2, 2)
    b = a + np.array([[0.0, 0.0, 0.0, 0.01], [0.0, -0.2, 0.1, 0.0]]).reshape(2, 1, 2, 2)
    made = replace(found, a=a, b=b, errors=relative_errors(a, b))
    data, factor = sheet(made, spec)
    picture = np.asarray(Image.open(io.BytesIO(data)))[::4, ::4]  # enlarged four times
    assert factor == 8.0 and picture.shape == (4, 6)  # 0.2 x 8 is the last power of two within the range of 2
    grey = lambda x: np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(int)  # noqa: E731
    for row, i in enumerate((1, 0)):
        wanted = np.concatenate([grey(a[i, 0]), grey(b[i, 0]), grey(-1 + 8 * np.abs(b[i, 0] - a[i, 0]))], axis=1)
        assert np.abs(picture[2 * row : 2 * row + 2].astype(int) - wanted).max() <= 1
    assert sheet(replace(made, b=a), spec)[1] == 1.0
    with pytest.raises(RuntimeFault, match=r"these samples are arrays of shape \[3\]"):
        sheet(made, SampleSpec((3,)))


def features_model(path, width=64, outputs=5, reshape=True):
    weights = np.random.default_rng(2).standard_normal((width, outputs)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])] if reshape else []
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    stored = [numpy_helper.from_array(weights, "w")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "f", [x], [y], stored), opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return weights


def test_features_come_from_an_onnx_network(tmp_path):
    weights = features_model(tmp_path / "f.onnx")
    rng = np.random.default_rng(8)
    a, b = (rng.normal(size=(n, 1, 8, 8)).astype(np.float32) for n in (100, 100))  # more than are run at once
    distance, count = feature_distance(tmp_path / "f.onnx", a, b)
    first, second = (x.reshape(100, 64).astype(np.float64) @ weights for x in (a, b))
    ca, cb, mean = np.cov(first, rowvar=False), np.cov(second, rowvar=False), first.mean(0) - second.mean(0)
    assert count == 5 and distance == pytest.approx(float(mean @ mean + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)), rel=1e-4)
    features_model(tmp_path / "narrow.onnx", width=63)
    features_model(tmp_path / "same.onnx", reshape=False)
    for name, words in (
        ("none", "no such file; expected an ONNX"),
        ("narrow", "does not take samples float32"),
        ("same", r"expected features \[64, D\]"),
    ):
        with pytest.raises(RuntimeFault, match=words):
            feature_distance(tmp_path / f"{name}.onnx", a, b)


# --- what it refuses, and the command


def test_models_that_are_not_the_same(tmp_path, tiny_bundle):
    plain = linear_bundle(tmp_path / "l.edgegen")
    label = ConditionSpec("label", "int64", minimum=0, maximum=3)
    for name, words, options in (
        ("sample", r"differ in the sample: array \[3\] from -2 to 2 in A, array \[3\] from -1 to 1 in B$", {"sample": SampleSpec((3,))}),
        ("step", "differ in the program 'two': other instructions or coefficients$", {"step": 0.3}),
        ("times", "differ in the program 'two': other times$", {"times": (9.0, 5.0)}),
        ("three", "differ in the program 'two': 2 steps in A, 3 in B$", {"times": (9.0, 5.0, 1.0)}),
        ("renamed", "differ in the program: B has no 'two'; .*Known: zwei$", {"name": "zwei"}),
        ("condition", "differ in the program 'two': other inputs; in the condition label$", {"conditions": (label,)}),
    ):
        other = linear_bundle(tmp_path / f"{name}.edgegen", **options)
        with pytest.raises(RuntimeFault, match=words) as e:
            compare_samples(open_side(str(plain)), open_side(str(other)), samples=1)
        assert e.value.code == Status.BAD_ARGUMENT
    wide = (
        linear_bundle(tmp_path / "c1.edgegen", conditions=(label,)),
        linear_bundle(tmp_path / "c2.edgegen", conditions=(replace(label, maximum=4.0),)),
    )
    with pytest.raises(RuntimeFault, match="they differ in the condition label$"):
        compare_samples(*(open_side(str(path)) for path in wide), samples=1)
    with pytest.raises(RuntimeFault, match="no program 'twos' in .*: did you mean 'two'"):
        compare_samples(*sides(plain), samples=1, program="twos")
    onnx.save(linear(W), tmp_path / "l.onnx")
    with pytest.raises(RuntimeFault, match="l.onnx: samples are made by bundles"):
        compare_samples(open_side(str(plain)), open_side(str(tmp_path / "l.onnx")), samples=1)
    for samples, seed in ((0, 0), (2, 2**64 - 1)):
        with pytest.raises(EdgegenError) as e:
            compare_samples(*sides(plain), samples=samples, seed=seed)
        assert e.value.code == Status.OUT_OF_RANGE


def test_the_gate_is_that_of_the_bundles_recipe(tiny_bundle, tiny_recipe, tmp_path):
    bundle = open_bundle(tiny_bundle)
    assert gate_of(bundle).psnr_db == 20.0
    members = {name: bundle.member(name) for name in bundle.table}
    member = bundle.manifest.documents["recipe"]

    def with_recipe(value):
        data = bundle_bytes(bundle.manifest, members | {member: canonical.encode(value)})
        (tmp_path / "r.edgegen").write_bytes(data)
        return open_bundle(tmp_path / "r.edgegen")

    assert gate_of(with_recipe(recipe_to_json(load_recipe(tiny_recipe, ["gate.psnr_db=33.5"])))).psnr_db == 33.5
    assert gate_of(with_recipe({"gate": "none"})) is None
    assert gate_of(open_bundle(linear_bundle(tmp_path / "l.edgegen"))) is None


def test_the_command(command, tiny_bundle, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = f"{tiny_bundle}:float32", f"{tiny_bundle}:int8"
    said = command(a, b, "--samples", 2, "--seed", 4, "--threads", 1).out
    found = compare_samples(open_side(a), open_side(b), samples=2, seed=4, threads=1)
    assert "2 samples of dpmpp_2m-4, seeds 4 to 5" in said and f"{found.final.psnr_db:.2f} dB, 20 dB is asked by the gate of {b}" in said
    assert f"(--seed {4 + found.worst} --set label={found.conditions['label'][found.worst]})" in said
    assert said.count("\n") == 8 and f"{found.steps[3].prediction:.2e}" in said
    command(a, b, "--samples", 2, "--seed", 4, "--tolerance", math.floor(found.final.psnr_db))
    low = command(a, b, "--samples", 2, "--seed", 4, "--tolerance", math.ceil(found.final.psnr_db), code=3)
    assert f"dB, {math.ceil(found.final.psnr_db)} dB is asked by --tolerance" in low.err and "agree" not in low.out
    bundle, strict = open_bundle(tiny_bundle), tmp_path / "strict.edgegen"
    members = {name: bundle.member(name) for name in bundle.table}
    recipe = recipe_to_json(load_recipe(tiny_recipe, [f"gate.relative_error={found.error * 0.99!r}"]))
    strict.write_bytes(bundle_bytes(bundle.manifest, members | {bundle.manifest.documents["recipe"]: canonical.encode(recipe)}))
    low = command(a, f"{strict}:int8", "--samples", 2, "--seed", 4, "--threads", 1, code=3)
    assert f"relative error {found.error:.4g}, {found.error * 0.99:g} is allowed" in low.err
    features_model(tmp_path / "f.onnx")
    (tmp_path / "q.py").write_text("def mean(samples, conditions):\n    return samples.mean() + conditions['label'].sum()\n")
    more = ("--sheet", "s.png", "--features", "f.onnx", "--quality", "q.py:mean", "--program", "ddim-3")
    said = json.loads(command(a, b, "--samples", 3, "--json", *more, "--threads", 1).out)
    wanted = compare_samples(open_side(a), open_side(b), samples=3, program="ddim-3", threads=1)
    assert said["frechet"] == pytest.approx(feature_distance(tmp_path / "f.onnx", wanted.a, wanted.b)[0]) and said["features"] == 5
    assert said["quality"]["b"] == pytest.approx(float(wanted.b.mean()) + wanted.conditions["label"].sum(), rel=1e-5)
    assert said["agree"] and said["tolerance_db"] == 20.0 and len(said["steps"]) == 3 and said["amplified"] >= 1
    assert Image.open(tmp_path / "s.png").size == (3 * 8 * 4, 3 * 8 * 4)
    words = command(a, b, "--samples", 3, *more, "--threads", 1).out
    assert "s.png: the worst samples from the top; A, B, and |B - A| times" in words and "in 5 features" in words and "quality: " in words
    line = linear_bundle(tmp_path / "l.edgegen")
    assert "nothing is asked: the bundle holds no recipe" in command(f"{line}:a", f"{line}:b", "--samples", 1).out
    for words, message in (
        (("--samples", 1, "--batch", 2), "leave out --inputs, --engine and --batch"),
        (("--sheet", "s.png"), "say how many with --samples"),
        (("--samples", 1, "--quality", "absent.py:f"), "expected file.py:function"),
    ):
        assert message in command(a, b, *words, code=2).err
    assert "cannot write" in command(a, b, "--samples", 1, "--sheet", "absent/s.png", code=1).err
